"""AT&T faces: known people named, unseen ones compared, by the command line's defaults (`--task embedding`).

python benchmarks/faces.py --data FACES.zip [--splits 5]

FACES.zip holds s1/1.pgm to s40/10.pgm. Identification: five pictures of each of the 40 people to learn from, five to test,
drawn anew for each split (the first takes 1 to 5 and 6 to 10). Verification: thirty people to learn from,
all pairs of pictures of the ten others to test, drawn anew likewise (the first learns from s1 to s30).
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from measured import heading, row, table


def pictures(place: str) -> np.ndarray:
    """(40, 10, H, W) bytes."""
    from PIL import Image

    with zipfile.ZipFile(place) as held:
        names = {name.rpartition("/")[0].rpartition("s")[2] + "/" + name.rpartition("/")[2]: name
                 for name in held.namelist() if name.endswith(".pgm")}  # fmt: skip
        return np.stack([
            np.stack([np.asarray(Image.open(io.BytesIO(held.read(names[f"{who}/{k}.pgm"]))).convert("L"))
                      for k in range(1, 11)])
            for who in range(1, 41)
        ])  # fmt: skip


def write(place: Path, people: dict[str, np.ndarray]) -> None:
    """A folder for each person, as users have them."""
    from PIL import Image

    for who, table_ in people.items():
        (place / who).mkdir(parents=True)
        for k, picture in enumerate(table_):
            Image.fromarray(picture).save(place / who / f"{k + 1}.png")


def main() -> None:
    import lamina

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", choices=["identification", "verification"])
    asked = parser.parse_args()
    faces = pictures(asked.data)
    if asked.only != "verification":
        heading("AT&T faces: 40 people, five pictures of each to learn from, five to test; defaults")
        table("split", "named right", "same person or not: AUC", "nearest neighbour", "eigenfaces, LDA", "CPU seconds")
        found = []
        for split in range(asked.splits):
            generator = np.random.default_rng(split)
            order = [np.arange(10) if split == 0 else generator.permutation(10) for _ in range(40)]
            with tempfile.TemporaryDirectory() as folder:
                for part, cut in (("train", slice(5)), ("test", slice(5, 10))):
                    write(Path(folder, part), {f"s{k + 1}": faces[k][order[k][cut]] for k in range(40)})
                began = time.process_time()
                run = lamina.train(
                    folder, task="embedding", seed=split, runs=Path(folder, "runs"), quiet=True, report=False
                )
                seconds = time.process_time() - began
                scores = {entry["score"]: entry["value"] for entry in run.scores if entry["split"] == "test"}
                held = json.loads((run.folder / "scores.json").read_text())["baselines"]
                simple = {entry["name"]: entry["value"] for entry in held if entry["score"] == "accuracy"}
            found.append(
                [scores["accuracy"], scores["verification_auc"], simple["neighbour"], simple["fisher"], seconds]
            )
            row(str(split), *(f"{value:.4f}" for value in found[-1][:4]), f"{seconds:.0f}")
        row("mean", *(f"{value:.4f}" for value in np.mean(found, 0)[:4]), f"{np.mean(found, 0)[4]:.0f}")
    if asked.only != "identification":
        heading("AT&T faces: 30 people to learn from, all pairs of pictures of ten others; defaults")
        table("split", "AUC", "equal error", "strangers refused", "CPU seconds")
        found = []
        for split in range(asked.splits):
            order = np.arange(40) if split == 0 else np.random.default_rng(split).permutation(40)
            with tempfile.TemporaryDirectory() as folder:
                for part, who in (("known", order[:30]), ("unseen", order[30:])):
                    write(Path(folder, part), {f"s{k + 1}": faces[k] for k in who})
                began = time.process_time()
                run = lamina.train(
                    str(Path(folder, "known")), task="embedding", test=0, seed=split, runs=Path(folder, "runs"), quiet=True,
                    report=False,
                )  # fmt: skip
                seconds = time.process_time() - began
                scores = {entry["score"]: entry["value"] for entry in run.evaluate(str(Path(folder, "unseen")))}
            found.append([scores["verification_auc"], scores["verification_eer"], scores["accuracy"], seconds])
            row(str(split), *(f"{value:.4f}" for value in found[-1][:3]), f"{seconds:.0f}")
        row("mean", *(f"{value:.4f}" for value in np.mean(found, 0)[:3]), f"{np.mean(found, 0)[3]:.0f}")


if __name__ == "__main__":
    main()
