"""Pictures: what the defaults reach on folders of them, and how fast they are decoded.

    python benchmarks/images.py objects10 --data DIR [--seeds 5] [--budget 5m]     450 photographs of ten kinds of things
    python benchmarks/images.py scenes6 --data DIR [--budget 5m]                   600 grey photographs of six kinds of places
    python benchmarks/images.py cifar10 --data DIR --seeds 3 --budget 15m          50,000 JPEGs of 32x32
    python benchmarks/images.py decode --data DIR [--rounds 5]                     against a loop by hand, and from the cache

DIR holds objects10/ and objects10_split.csv, scenes6.zip, cifar10_jpg.tar.gz. Every training and every round of decoding is
a process of its own. Pictures are decoded anew for each set and found again by its later seeds. Prints a section of
RESULTS.md: test accuracy (measured once, at the end), the simple models beside it, and seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from measured import heading, row, spread, table

TITLES = {
    "objects10": "objects10, ten kinds of things, 450 photographs to learn from and 150 to test on",
    "scenes6": "scenes6, six kinds of places, 600 grey photographs to learn from and 240 to test on",
    "cifar10": "CIFAR-10 as JPEG, 50,000 pictures to learn from and 10,000 to test on",
}
SIDES = {"objects10": 96, "scenes6": 96, "cifar10": 32}  # pixels: what is decoded to, here and by hand


def source(name: str, data: Path, scratch: Path) -> Path:
    """What `lamina train` is given."""
    if name == "scenes6":
        return data / "scenes6.zip"
    if name == "cifar10":
        return data / "cifar10_jpg.tar.gz"
    place = scratch / "objects10"
    with open(data / "objects10_split.csv", newline="", encoding="utf-8") as file:
        for entry in csv.DictReader(file):
            kept = place / entry["split"] / entry["file"]
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(data / "objects10" / entry["file"], kept)
    return place


def train(name: str, place: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    import lamina

    began, spent = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as runs:
        run = lamina.train(place, seed=seed, runs=runs, quiet=True, report=False, **settings)
        scores = json.loads((run.folder / "scores.json").read_text(encoding="utf-8"))
        simple = {e["name"]: e["value"] for e in scores["baselines"] if e["score"] == "accuracy"}
        return {
            "accuracy": run.headline.value, "simple": simple, "net": run.facts["net"]["size"], "epochs": run.facts["epochs"],
            "seconds": time.perf_counter() - began, "processor": time.process_time() - spent,
            "learning": run.facts["seconds"]["train"],
        }  # fmt: skip


# --- Decoding ---------------------------------------------------------------------------------------------------------


def by_hand(job: tuple[str, int]) -> Any:
    import numpy as np
    from PIL import Image

    path, side = job
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


def hand(paths: list[str], side: int) -> Any:
    import numpy as np

    with multiprocessing.Pool(len(os.sched_getaffinity(0))) as pool:
        return np.stack(pool.map(by_hand, [(path, side) for path in paths], chunksize=64))


def ours(paths: list[str], side: int) -> Any:
    """As the image domain does it: the headers of some, all pictures, into the cache; or from there."""
    from lamina import pictures

    return pictures.decode(paths, size=side).column


def resident(paths: list[str], side: int) -> Any:
    """The same bytes from one .npy file."""
    import numpy as np

    return np.load(Path(os.environ["LAMINA_CACHE"]) / "resident.npy")


def decode(name: str, way: str, folder: str) -> dict[str, Any]:
    paths = sorted(str(place) for place in Path(folder).rglob("*.jpg"))
    import numpy as np
    import PIL.Image  # noqa: F401

    import lamina.pictures  # noqa: F401  imported before the clock, as numpy and Pillow are

    began = time.perf_counter()
    column = {"hand": hand, "lamina": ours, "cache": ours, "resident": resident}[way](paths, SIDES[name])
    seconds = time.perf_counter() - began
    if way == "hand":
        np.save(Path(os.environ["LAMINA_CACHE"]) / "resident.npy", column.transpose(0, 3, 1, 2))
    return {"pictures": len(column), "seconds": seconds}


def unpack(name: str, data: Path, scratch: Path) -> Path:
    """Files to decode."""
    place = scratch / name
    if name == "objects10":
        return data / "objects10"
    if name == "scenes6":
        with zipfile.ZipFile(data / "scenes6.zip") as archive:
            archive.extractall(place)
    else:
        with tarfile.open(data / "cifar10_jpg.tar.gz") as archive:
            archive.extractall(place, filter="data")
    return place


# --- All together -----------------------------------------------------------------------------------------------------


def one(*words: object, cache: Path) -> dict[str, Any]:
    """One of them in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)], check=True, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "LAMINA_CACHE": str(cache)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def trainings(asked: argparse.Namespace, scratch: Path) -> None:
    place = source(asked.job, asked.data, scratch)
    settings: dict[str, Any] = {"budget": asked.budget} if asked.budget else {}
    settings |= {"epochs": asked.epochs} if asked.epochs else {}
    found = []
    for seed in range(asked.seeds):
        words = (asked.job, "--data", asked.data, "--one", json.dumps([str(place), seed, settings]))
        found.append(one(*words, cache=scratch / "cache"))
        print(f"# seed {seed}: {found[-1]}", file=sys.stderr, flush=True)
    heading(TITLES[asked.job])
    table("", "test accuracy, %", "epochs", "seconds in all", "seconds of processor")
    row(
        f"lamina, resnet {found[0]['net']}",
        spread([100 * each["accuracy"] for each in found], 1),
        f"{min(each['epochs'] for each in found)} to {max(each['epochs'] for each in found)}",
        spread([each["seconds"] for each in found], 0),
        spread([each["processor"] for each in found], 0),
    )
    for name in found[0]["simple"]:
        row(name, spread([100 * each["simple"][name] for each in found], 1), "", "", "")


def decodings(asked: argparse.Namespace, scratch: Path) -> None:
    heading(
        "Pictures decoded: seconds, a loop of a `multiprocessing.Pool` by hand against lamina, the first time and again"
    )
    table("", "pictures", "by hand", "lamina", "to hand", "from the cache", "one .npy file")
    for name in asked.only or SIDES:
        folder, cache = unpack(name, asked.data, scratch), scratch / f"cache-{name}"
        taken: dict[str, list[float]] = {"hand": [], "lamina": [], "cache": [], "resident": []}
        count = 0
        for _ in range(asked.rounds):
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
            for way in taken:
                made = one("decode", "--data", asked.data, "--one", json.dumps([name, way, str(folder)]), cache=cache)
                taken[way].append(made["seconds"])
                count = made["pictures"]
        least = {way: min(seconds) for way, seconds in taken.items()}
        row(f"{name}, {SIDES[name]} pixels", f"{count:,}", *(spread(taken[way], 2) for way in ("hand", "lamina")),
            f"{least['lamina'] / least['hand']:.2f}", *(spread(taken[way], 3) for way in ("cache", "resident")))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=[*TITLES, "decode"])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=list(SIDES), help="decode this set alone; may be repeated")
    parser.add_argument("--budget", help="time for each run: 5m")
    parser.add_argument("--epochs", type=int, help="instead of a budget, where the machine is shared")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        first, second, third = json.loads(asked.one)
        found = decode(first, second, third) if asked.job == "decode" else train(asked.job, first, second, third)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as scratch:
        (decodings if asked.job == "decode" else trainings)(asked, Path(scratch))


if __name__ == "__main__":
    main()
