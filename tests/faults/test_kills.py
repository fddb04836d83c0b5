"""kill -9 at any instant: what is resumed ends in the bits of the run that was never disturbed, and nothing is left behind.

Children are forked from this process, in which everything is imported and warm, so that a life costs a fraction of a
second; tests/test_resume.py kills the real command. LAMINA_SEED is where the random instants begin.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Net, code_of
from test_resume import differences, outcome
from torch.utils.data import Dataset

import lamina
from lamina import files, state

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")

SEED = int(os.environ.get("LAMINA_SEED", 0))
EVERY = 3  # steps between checkpoints
COMMON: dict[str, Any] = {  # what would be measured is said: while others are at work another run might choose otherwise
    "precision": "fp32",
    "batch_size": 8, "epochs": 3, "seed": 5, "valid": 0.25, "threads": 1, "checkpoint_every": f"{EVERY}steps", "keep": "best",
    "quiet": True, "baselines": False, "report": False,
}  # fmt: skip


class Noisy(Dataset):
    """Random items, so that workers and generators matter."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return torch.randn(12) + 0.1 * np.random.rand() + random.random() + (k % 3), k % 3


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the runs learn from, by name."""
    draw, place = np.random.default_rng(2), tmp_path_factory.mktemp("data")
    y = np.arange(96) % 4
    for name, side in (("pictures", 8), ("photographs", 32)):
        x = (draw.integers(0, 200, (96, 1, side, side)) + 10 * y[:, None, None, None]).astype(np.uint8)
        np.savez(place / f"{name}.npz", x=x, y=y)
    rows = [f"{draw.normal() + k % 2:.4f},{draw.integers(9)},{'abc'[draw.integers(3)]},{k % 2}" for k in range(96)]
    (place / "table.csv").write_text("\n".join(["size,count,colour,kind", *rows]))
    words = ["sun", "rain", "wind", "snow", "calm", "storm"]
    texts = [f"{' '.join(draw.choice(words, 5))} {'good' if k % 2 else 'bad'},{k % 2}" for k in range(96)]
    (place / "texts.csv").write_text("\n".join(["text,kind", *texts]))
    return {path.stem: path for path in place.iterdir()} | {"dataset": Noisy()}


MLP = {"net": "mlp", "net_arg": {"dropout": 0.3, "hidden": [12]}}
RUNS: dict[str, dict[str, Any]] = {  # what a run must survive, together; each begins with the name of its source
    "pictures, everything": {
        **MLP, "augment": "shift=1,rotate=10", "mixup": 0.2, "ema": 0.9, "accumulate": 2, "clip_norm": 1.0, "batch_size": 6,
        "schedule": "one_cycle", "balance": "over", "label_smoothing": 0.1, "weight_decay": 0.1, "early_stopping": 3,
    },
    "pictures, bf16": {
        **MLP, "precision": "bf16", "optimizer": "sgd", "optimizer_arg": {"momentum": 0.9}, "schedule": "plateau",
        "schedule_arg": {"patience": 0}, "augment": "shift=1", "cutmix": 1.0, "clip_value": 0.5,
    },
    "photographs, norms": {"net": "resnet", "augment": "crop=2,flip", "epochs": 1},
    "table": {},
    "texts": {"epochs": 2},
    "dataset": {"net": Net, "workers": 0, "ema": 0.9, "accumulate": 2, "clip_norm": 1.0},
    "dataset, 2 workers": {"net": Net, "workers": 2, "ema": 0.9, "accumulate": 2, "clip_norm": 1.0},
}  # fmt: skip


class Life:
    """A run of some settings, in processes that end as they may. `seen` is the last step its children made."""

    def __init__(self, title: str, sources: dict[str, Any], runs: Path):
        self.settings = {**COMMON, **RUNS[title]}
        self.source = sources[title.split(",")[0]]
        self.runs, self.folder = runs, runs / "run"
        self.page = mmap.mmap(-1, 8)

    def step(self, progress: Any) -> None:
        self.page[:] = struct.pack("q", progress.step)

    @property
    def seen(self) -> int:
        return int(struct.unpack("q", self.page)[0])

    @property
    def began(self) -> bool:
        return (self.folder / "run.json").is_file()

    def act(self) -> None:
        """Start, or go on."""
        if self.began:
            own = {"net": Net} if self.settings.get("net") is Net else {}
            lamina.resume(self.folder, self.source, quiet=True, watchers=[self.step], **own)
            return
        shutil.rmtree(self.folder, ignore_errors=True)  # it was no run yet: nothing is lost
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        lamina.train(self.source, name="run", runs=self.runs, watchers=[self.step], **self.settings)

    def child(self, before: Callable[[], None] = lambda: None) -> int:
        child = os.fork()
        if child:
            return child
        try:
            before()
            self.act()
        except BaseException:
            traceback.print_exc()
            os._exit(99)
        os._exit(0)

    def whole(self) -> tuple[int, int]:
        """After a death: the steps that are saved, and how many must be made again."""
        if not self.began:
            return 0, 0
        newest = state.newest(self.folder / "checkpoints", lambda words: None)
        assert newest is not None, "nothing can be resumed"
        return int(newest.name[5:]), max(0, self.seen - int(newest.name[5:]))


@pytest.fixture(scope="module")
def golden(
    sources: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, float, list[str]]]:
    """What a run comes to undisturbed, the seconds it takes, and the named points that it passes."""
    found: dict[str, Any] = {}
    for title in RUNS:  # children find everything imported
        Life(title, sources, tmp_path_factory.mktemp("warm")).act()

    def of(title: str) -> tuple[Any, float, list[str]]:
        if title not in found:
            life = Life(title, sources, tmp_path_factory.mktemp("golden"))
            passed, began = life.runs / "points", time.monotonic()
            assert code_of(life.child(lambda: setattr(files, "point", lambda name: _note(passed, name)))) == 0
            found[title] = outcome(life.folder), time.monotonic() - began, passed.read_text().splitlines()
        return found[title]

    return of


def _note(place: Path, name: str) -> None:
    with open(place, "a") as file:
        file.write(name + "\n")


@pytest.mark.timeout(3600)
@pytest.mark.fault(1)
def test_killed_at_random_instants_nothing_is_lost(sources, golden, tmp_path, counted, recorded):
    wanted, draw, ends = counted(2 * len(RUNS), 1000), random.Random(SEED), Counter()
    kills, most, k = 0, 0, 0
    while kills < wanted:
        title = list(RUNS)[k % len(RUNS)]
        expected, seconds, _ = golden(title)
        life = Life(title, sources, tmp_path)
        k, saved = k + 1, 0
        while True:
            child = life.child()
            time.sleep(draw.uniform(0, 1.05 * seconds))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            code = code_of(child)
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
            now, again = life.whole()
            assert now >= saved, "a checkpoint was lost"
            assert again <= 2 * EVERY  # an interval, and what is made while a checkpoint is on its way to the disk
            saved, most = now, max(most, again)
        assert differences(outcome(life.folder), expected) == [], f"{title}, run {k} of LAMINA_SEED={SEED}"
        ends[title] += 1
        shutil.rmtree(life.folder)
    recorded(
        planted=kills, lost=0, runs=k, bit_equal=sum(ends.values()), most_steps_redone=most, interval=EVERY, seed=SEED
    )


@pytest.mark.timeout(3600)
@pytest.mark.fault(2, 3)
def test_killed_within_the_writing_of_a_checkpoint_nothing_is_lost(sources, golden, tmp_path, counted, recorded):
    """At each named point, in the thread that writes; every second run is killed again when it is resumed."""
    wanted, draw, at = counted(8, 500), random.Random(SEED), Counter()
    k = 0
    while sum(at.values()) < wanted:
        title = list(RUNS)[k % len(RUNS)]
        expected, _, points = golden(title)
        life = Life(title, sources, tmp_path)
        k += 1
        for _ in range(draw.choice([1, 2])):
            name = min(set(points), key=lambda name: (at[name], draw.random()))
            turn = draw.randint(1, max(1, points.count(name) // (2 if life.began else 1)))
            saved = life.whole()[0]
            code = code_of(life.child(lambda name=name, turn=turn: _die(name, turn)))
            if code == 0:
                break
            assert code == -signal.SIGKILL
            at[name] += 1
            assert life.whole()[0] >= saved, "a checkpoint was lost"
        assert code_of(life.child()) == 0
        assert differences(outcome(life.folder), expected) == [], f"{title}, {name}, turn {turn}"  # and nothing left
        assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
        shutil.rmtree(life.folder)
    recorded(planted=sum(at.values()), lost=0, points=len(at), runs=k, left_behind=0, seed=SEED)


def _die(name: str, turn: int) -> None:
    """This process is killed when it passes a point for the `turn`-th time."""
    passed = Counter()  # type: ignore[var-annotated]

    def point(at: str) -> None:
        passed[at] += 1
        if passed[name] == turn:
            os.kill(os.getpid(), signal.SIGKILL)

    files.point = point  # type: ignore[assignment]


def test_the_points_are_those_of_writing(golden):
    """Else nothing is killed where it hurts most."""
    points = set(golden("pictures, everything")[2])
    assert {
        "a folder's file is due",
        "the manifest is written",
        "a folder is renamed",
        "the old folder is aside",
    } <= points
    assert {"a folder is replaced", "a folder is out of sight", "a file is renamed"} <= points


def test_a_write_that_is_no_commit_is_seen(sources, golden, tmp_path):
    """The control: checkpoints written in place, file after file, are lost by such kills."""

    def plain(path: Any, parts: Any, about: Any) -> None:
        shutil.rmtree(path, ignore_errors=True)
        Path(path).mkdir()
        for name, pieces in parts.items():
            files.point("in place")
            (Path(path) / name).write_bytes(b"".join(bytes(piece) for piece in pieces))
        (Path(path) / files.MANIFEST).write_text(json.dumps(about))

    def before() -> None:
        files.commit = plain
        _die("in place", 8)

    life = Life("pictures, everything", sources, tmp_path)
    assert code_of(life.child(before)) != 0
    assert state.newest(life.folder / "checkpoints", lambda words: None) is None
