"""Tables by the command line's defaults, over seeds, beside boosted trees on the same split.

    python benchmarks/tables.py --data DIR [--only adult,mpg] [--seeds 5] [--large-seeds 3]

DIR holds adult_train.csv, adult_test.csv, california_housing.csv, letter_recognition.csv, bike_hour.csv, mpg.csv, penguins.csv
and iris.csv. The seed draws the split where the set has none, validation rows, initial weights and order. Boosted trees are
scikit-learn's HistGradientBoosting as the run itself trains it for comparison, on the training rows without validation; beside
them the same on training and validation rows together, however long it takes. Adult has its own test file; letters
are split as published (the first 16,000 train, the last 4,000 test); of the bicycles the last two months are the test, and
the columns `casual` and `registered`, whose sum is the answer, are ignored; of the others a fifth, drawn, is the test.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measured import heading, row, spread, table

SETS: dict[str, dict[str, Any]] = {
    "adult": {"target": "income", "score": "roc_auc", "large": True},
    "california": {"target": "median_house_value", "score": "rmse", "large": True},
    "letter": {"target": "lettr", "score": "accuracy", "large": True},
    "bike": {"target": "cnt", "score": "rmse", "large": True},
    "mpg": {"target": "mpg", "score": "rmse"},
    "penguins": {"target": "species", "score": "accuracy"},
    "iris": {"target": "species", "score": "accuracy"},
}
FILES = {
    "adult": "adult_train",
    "california": "california_housing",
    "letter": "letter_recognition",
    "bike": "bike_hour",
}


def cut(data: Path, name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """The source of a set, and what goes with it: files of a fixed split are written into the folder."""
    place = data / f"{FILES.get(name, name)}.csv"
    settings: dict[str, Any] = {"target": SETS[name]["target"]}
    if name == "adult":
        return str(place), {**settings, "test": str(data / "adult_test.csv")}
    if name not in ("letter", "bike"):
        return str(place), settings
    header, *lines = place.read_text(encoding="utf-8").splitlines()
    if name == "letter":
        parts = lines[:16_000], lines[16_000:]
    else:
        settings["ignore"] = ["casual", "registered"]
        late = [line.split(",")[1] >= "2012-11-01" for line in lines]
        early, later = (
            [line for line, is_late in zip(lines, late, strict=True) if is_late is k] for k in (False, True)
        )
        parts = early, later
    for part, chosen in zip(("train", "test"), parts, strict=True):
        (folder / f"{name}_{part}.csv").write_text("\n".join([header, *chosen, ""]), encoding="utf-8")
    return str(folder / f"{name}_train.csv"), {**settings, "test": str(folder / f"{name}_test.csv")}


def all_rows(run: Any, score: str) -> float:
    """The score of boosted trees that learned from training and validation rows."""
    from lamina import baselines

    loaded = run.reload()
    encoded, test = loaded.parts["test"]
    rows = np.sort(np.concatenate([loaded.rows("train"), loaded.rows("valid")]))
    x, x_test = (loaded.domain.plain(encoded.inputs, some, "trees") for some in (rows, test))
    truth, target = loaded.parts["train"][0].truth, loaded.target
    y, y_test = (target.people(truth[some].numpy()) for some in (rows, test))
    entries = baselines.baselines(
        target.name, {"trees": lambda: (x, x_test)}, y, y_test, target.measures(), seed=run.facts["seed"], seconds=100.0,
        labels=target.labels or None,
    )  # fmt: skip
    return next(entry["value"] for entry in entries if entry["name"] == "trees" and entry["score"] == score)


def main() -> None:
    import lamina

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--only", default=",".join(SETS), metavar="NAMES")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--large-seeds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    heading("Tables, defaults, beside boosted trees on the same split")
    table("set", "score", "net, test", "boosted trees", "with the validation rows", "linear", "intervals hold (of 0.9)",
          "epochs", "seconds in all", "processor seconds")  # fmt: skip
    for name in asked.only.split(","):
        found: dict[str, list[float]] = {}
        score = SETS[name]["score"]
        for seed in range(asked.large_seeds if SETS[name].get("large") else asked.seeds):
            with tempfile.TemporaryDirectory() as folder:
                source, settings = cut(Path(asked.data), name, Path(folder))
                if asked.threads:
                    settings["threads"] = asked.threads
                began = time.process_time()
                run = lamina.train(source, runs=folder, seed=seed, quiet=True, **settings)
                used = time.process_time() - began
                scores = json.loads((run.folder / "scores.json").read_text())
                for entry in scores["scores"]:
                    if entry["split"] == "test" and entry["score"] in (score, "coverage"):
                        found.setdefault("net" if entry["score"] == score else "coverage", []).append(entry["value"])
                for entry in scores["baselines"]:
                    if entry["score"] == score:
                        found.setdefault(entry["name"], []).append(entry["value"])
                found.setdefault("more", []).append(all_rows(run, score))
                for title, value in (
                    ("epochs", run.facts["epochs"]),
                    ("seconds", run.facts["seconds"]["total"]),
                    ("cpu", used),
                ):
                    found.setdefault(title, []).append(value)
        digits = 4 if score != "rmse" else 2 if name == "mpg" else 1
        row(name, score, *(spread(found[key], digits) for key in ("net", "trees", "more", "linear")),
            spread(found["coverage"], 3) if "coverage" in found else "–",
            *(spread(found[key], 0) for key in ("epochs", "seconds", "cpu")))  # fmt: skip


if __name__ == "__main__":
    main()
