"""Texts with the defaults of `lamina train`, beside naive Bayes and a logistic regression on the same split.

    python benchmarks/texts.py --data DIR [--only rt-polarity] [--seeds 5] [--folds 10] [--job epochs=3 ...]

DIR holds text/ with rt_polarity/, sst2/ and ag_news/. rt-polarity is ten-fold (stratified, shuffled with seed 0), the seed of
each run that of its fold; the others are as given, over the seeds. Every training is the real command in a process of its
own. Prints a section of RESULTS.md: test accuracy (measured once, after the last epoch), how often the net was better than
each baseline, and seconds of processor time.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measured import heading, row, spread, table

SETS = ("rt-polarity", "sst2", "ag_news")


def sources(name: str, data: Path, folder: Path, folds: int, seeds: int) -> list[tuple[list[str], int]]:
    """What the command is given for each run: (source and options, seed)."""
    if name == "sst2":
        place = data / "text" / "sst2"
        given = [place / "train.tsv", "--valid", place / "dev.tsv", "--test", place / "test.tsv"]
    elif name == "ag_news":
        place = data / "text" / "ag_news"
        given = [place / "train.csv", "--test", place / "test.csv"]
    else:
        return [(part, fold) for fold, part in enumerate(_folds(data / "text" / "rt_polarity", folder))][:folds]
    return [(list(map(str, given)), seed) for seed in range(seeds)]


def _folds(place: Path, folder: Path) -> list[list[str]]:
    """Ten pairs of files, each class in ten shuffled parts, as scikit-learn deals them out."""
    from sklearn.model_selection import StratifiedKFold

    rows = [
        (line, kind)
        for kind in ("neg", "pos")
        for line in (place / f"rt-polarity.{kind}").read_text(encoding="utf-8").splitlines()
    ]
    labels = np.array([kind for _, kind in rows])
    found = []
    for fold, parts in enumerate(StratifiedKFold(10, shuffle=True, random_state=0).split(labels, labels)):
        files = [folder / f"{part}{fold}.csv" for part in ("train", "test")]
        for file, chosen in zip(files, parts, strict=True):
            with open(file, "w", encoding="utf-8", newline="") as out:
                csv.writer(out).writerows([("text", "label"), *(rows[k] for k in chosen)])
        found.append([str(files[0]), "--test", str(files[1])])
    return found


def one(given: list[str], seed: int, job: list[str], runs: str) -> dict[str, Any]:
    """The command in a process of its own -> accuracy of the net and of the baselines, seconds."""
    options = [word for setting in job for word in (f"--{setting.split('=')[0]}", setting.split("=", 1)[1])]
    words = ["train", *given, "--seed", str(seed), "--runs", runs, "--name", "run", "-q", *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "lamina", *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    folder = Path(runs) / "run"
    facts, scores = (json.loads((folder / name).read_text()) for name in ("run.json", "scores.json"))
    found = {
        "seconds": facts["seconds"]["total"],
        "processor": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        "epochs": facts["epochs"],
        "n": facts["headline"]["n"],
        "lamina": facts["headline"]["value"],
    }
    return found | {e["name"]: e["value"] for e in scores["baselines"] if e["score"] == facts["headline"]["score"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--job", action="append", default=[], metavar="NAME=VALUE", help="an option of lamina train")
    arguments = parser.parse_args()

    heading("Texts, defaults: accuracy on the test part, %")
    names = ("lamina", "bayes", "ngrams")
    table("", *names, "runs where lamina is the best", "seconds of processor time", "epochs")
    for name in arguments.only or SETS:
        with tempfile.TemporaryDirectory() as folder:
            found = []
            for given, seed in sources(name, arguments.data, Path(folder), arguments.folds, arguments.seeds):
                with tempfile.TemporaryDirectory() as runs:
                    found.append(one(given, seed, arguments.job, runs))
                print(name, seed, json.dumps(found[-1]), file=sys.stderr, flush=True)
        best = sum(run["lamina"] > max(run["bayes"], run["ngrams"]) for run in found)
        cells = [spread([100 * run[model] for run in found], 2) for model in names]
        seconds = spread([run["processor"] for run in found], 1)
        row(name, *cells, f"{best} of {len(found)}", seconds, found[0]["epochs"])


if __name__ == "__main__":
    main()
