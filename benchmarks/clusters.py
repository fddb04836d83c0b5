"""Clusters sought without labels, against the labels that nobody gave: normalised mutual information.

    python benchmarks/clusters.py [--data DIR] [--only mnist] [--seed 0] [--count]

DIR holds the four IDX files of MNIST. Plain defaults and as many clusters as there are classes; with --count their number is
found by stability. The net learns from the inputs of the training split alone, the labels of the test split are looked at
once, here. `k-means` is scikit-learn's of the same training inputs (numbers standardised, pixels as they are), the best of 3
starts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import measured

SMALL = ("digits", "iris", "wine", "breast_cancer")


def k_means(train: Any, test: Any, clusters: int, seed: int) -> Any:
    """Clusters of the test inputs, as they are."""
    import numpy as np
    from sklearn.cluster import KMeans

    one, other = (np.asarray(table).reshape(len(table), -1).astype(np.float32) for table in (train, test))
    if np.ndim(train) == 2:
        mean, spread = one.mean(0), one.std(0)
        one, other = ((table - mean) / np.where(spread > 0, spread, 1) for table in (one, other))
    return KMeans(clusters, n_init=3, random_state=seed).fit(one).predict(other)


def run(name: str, data_dir: str | None, seed: int, count: bool, settings: dict[str, Any]) -> dict[str, float]:
    import numpy as np
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    import lamina
    from lamina import sources

    source = sources.open(name, **({"data_dir": data_dir} if name == "mnist" else {}))
    classes = len(np.unique(source.train.truth))
    given = {} if count else {"task_arg": {"clusters": classes}}
    where = {"data_dir": data_dir} if name == "mnist" else {}
    with tempfile.TemporaryDirectory() as runs:
        began, before = time.monotonic(), time.process_time()
        found = lamina.train(name, task="clusters", seed=seed, runs=runs, quiet=True, baselines=False, report=False,
                             **given, **where, **settings)  # fmt: skip
        seconds, processor = time.monotonic() - began, time.process_time() - before
        (inputs,), truth = source.train.inputs, source.train.truth
        if source.test is None:
            parts = (found.folder / "splits.csv").read_text().splitlines()[1:]
            held_out = np.array([part.endswith("test") for part in parts])
            train, test, truth = inputs[~held_out], inputs[held_out], truth[held_out]
        else:
            train, test, truth = inputs, source.test.inputs[0], source.test.truth
        said = found.predict(test).prediction
        plain = k_means(train, test, classes, seed)
        return {
            "clusters": len(found.target.labels),
            "net": normalized_mutual_info_score(truth, said),
            "k-means": normalized_mutual_info_score(truth, plain),
            "net, ARI": adjusted_rand_score(truth, said),
            "k-means, ARI": adjusted_rand_score(truth, plain),
            "seconds": seconds,
            "processor": processor,
        }


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", metavar="DIR", help="where the four IDX files of MNIST lie; without it no MNIST")
    options.add_argument("--only", action="append", choices=[*SMALL, "mnist"], help="this set, and others named so")
    options.add_argument("--seed", action="append", type=int, help="0, 1 and 2 without it")
    options.add_argument("--count", action="store_true", help="the number of clusters is found as well")
    options.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe")
    asked = options.parse_args()
    settings = {name: value for name, _, value in (item.partition("=") for item in asked.set)}
    measured.heading("Clusters without labels: normalised mutual information with the classes of the test split")
    titles = ("clusters", "net", "k-means", "net, ARI", "k-means, ARI", "seconds", "processor")
    measured.table("set", *titles)
    for name in asked.only or [*SMALL, *(["mnist"] if asked.data else [])]:
        found = [run(name, asked.data, seed, asked.count, settings) for seed in asked.seed or range(3)]
        cells = [measured.spread([one[title] for one in found], 0 if title in ("clusters", "seconds", "processor") else 3)
                 for title in titles]  # fmt: skip
        measured.row(name, *cells)


if __name__ == "__main__":
    main()
