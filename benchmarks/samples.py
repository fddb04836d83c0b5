"""The embedded samples, from `make demo` to a table: test score and seconds over seeds, by the command line's defaults.

python benchmarks/samples.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import tempfile

from measured import heading, row, spread, table

JOBS = {
    "digits, `make demo`: the opening net": ("digits", {"net": "mlp"}),
    "digits, convnet": ("digits", {}),
    "iris": ("iris", {}),
    "wine": ("wine", {}),
    "breast_cancer": ("breast_cancer", {}),
    "diabetes": ("diabetes", {}),
}


def main() -> None:
    import lamina

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    heading("The embedded samples, defaults; the seed also draws the split")
    table("sample", "score", "net, test", "linear, same examples", "seconds of training", "seconds in all")
    for title, (source, settings) in JOBS.items():
        runs = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                run = lamina.train(source, runs=folder, seed=seed, quiet=True, **settings)
                linear = [
                    entry["value"]
                    for entry in run_baselines(run)
                    if entry["name"] == "linear" and entry["score"] == run.headline.score
                ]
                runs.append((run.headline.value, linear[0], run.facts["seconds"]))
        digits = 2 if run.headline.score == "rmse" else 4
        row(
            title,
            run.headline.score,
            spread([value for value, _, _ in runs], digits),
            spread([value for _, value, _ in runs], digits),
            spread([seconds["train"] for _, _, seconds in runs], 1),
            spread([seconds["total"] for _, _, seconds in runs], 1),
        )


def run_baselines(run) -> list:
    import json

    return json.loads((run.folder / "scores.json").read_text())["baselines"]


if __name__ == "__main__":
    main()
