"""Answers of nets of several kinds, given floats: `predict` and `evaluate` beside the loop by hand, on random data.

    python benchmarks/answers.py [--only cnn] [--turns 3]

By hand: `inference_mode` and `argmax` of all, in batches of the best of several sizes, which are tried first. The weights lie
as the training by Lamina left them, or, in the last two columns, as the net was built. `predict` gives labels, confidence and
probabilities, and whether each example is unlike those learned from; `evaluate` all scores with their intervals. Both look for
numbers that are not finite. All take turns in one process; medians of the passes.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import measured
import numpy as np
import torch
from torch import Tensor, nn

from lamina import train

SIZES = (64, 128, 256, 512, 1000, 2000, 4096)
PASSES = 3  # in a turn


class Recurrent(nn.Module):
    """(B, T, 8) -> (B, 3)."""

    def __init__(self, kind: Any):
        super().__init__()
        self.inner, self.out = kind(8, 32, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x)[0][:, -1])  # type: ignore[no-any-return]


def example() -> nn.Module:
    """The convnet of PyTorch's examples."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4096, 10),
    )  # fmt: skip


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def wave() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 16, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 32, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def mlp(*widths: int, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


JOBS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "784-128-64-10": (lambda: mlp(784, 128, 64, 10), (60_000, 784), 10),
    "100-256-256-5": (lambda: mlp(100, 256, 256, 5), (100_000, 100), 5),
    "16-64-2": (lambda: mlp(16, 64, 2), (600_000, 16), 2),
    "64-128-10, batch norm": (lambda: mlp(64, 128, 10, norm=True), (100_000, 64), 10),
    "convnet of PyTorch's examples": (example, (10_000, 1, 28, 28), 10),
    "convnet, batch norm, 32 x 32": (normalised, (10_000, 3, 32, 32), 10),
    "LeNet": (lenet, (30_000, 1, 28, 28), 10),
    "convolutions in time": (wave, (20_000, 3, 100), 4),
    "GRU": (lambda: Recurrent(nn.GRU), (20_000, 20, 8), 3),
    "LSTM": (lambda: Recurrent(nn.LSTM), (20_000, 20, 8), 3),
}


def by_hand(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    """The loop at its best batch size."""

    def classes(size: int) -> Any:
        with torch.inference_mode():
            return torch.cat([net(part).argmax(1) for part in x.split(size)])

    best = min(SIZES, key=lambda size: min(taken(lambda: classes(size), 2)))
    return lambda: classes(best)


def taken(ask: Callable[[], Any], passes: int) -> list[float]:
    found = []
    for _ in range(passes):
        began = time.perf_counter()
        ask()
        found.append(time.perf_counter() - began)
    return found


def main() -> None:
    asked = measured.nets_and_turns(__doc__ or "")
    warnings.simplefilter("ignore")
    measured.heading("Answers of other nets, given floats: by hand in milliseconds, all else as shares of it")
    measured.table(
        "net", "by hand", "predict", "predict, unlike=False", "evaluate", "by hand, as built", "predict to that"
    )
    for name, (build, shape, classes) in JOBS.items():
        if asked.only not in name:
            continue
        hand, predict, alone, evaluate, plain = map(statistics.median, seconds(build, shape, classes, asked.turns))
        shares = [f"{part / hand:.2f}" for part in (predict, alone, evaluate, plain)]
        measured.row(name, f"{1e3 * hand:.0f}", *shares, f"{predict / plain:.2f}")


def seconds(build: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, turns: int) -> list[list[float]]:
    """Of each way."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal(shape, np.float32)
    y = np.where(x.reshape(len(x), -1)[:, 0] > 0, draw.integers(0, classes, len(x)), 0)
    torch.manual_seed(0)
    net = build()
    built = copy.deepcopy(net).eval()
    with tempfile.TemporaryDirectory() as runs:
        run = train(
            (x[:2000], y[:2000]), task="classes", net=net, loss=nn.CrossEntropyLoss(), steps=1, runs=runs, baselines=False,
            report=False, quiet=True,
        )  # fmt: skip
        net.eval()
        ways: list[Callable[[], Any]] = [
            by_hand(net, torch.from_numpy(x)), lambda: run.predict(x), lambda: run.predict(x, unlike=False),
            lambda: run.evaluate((x, y)), by_hand(built, torch.from_numpy(x)),
        ]  # fmt: skip
        found: list[list[float]] = [[] for _ in ways]
        for way in ways:
            way()
        for _ in range(turns):
            for way, own in zip(ways, found, strict=True):
                own += taken(way, PASSES)
    return found


if __name__ == "__main__":
    main()
