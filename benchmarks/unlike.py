"""How many of damaged pictures are told to be unlike those a net has learned from: MNIST, two nets.

    python benchmarks/unlike.py --data DIR [--seeds 3]

DIR holds the four IDX files. The nets are the tutorial's 784-128-64-10 (3 epochs) and the convnet of the PyTorch examples
(600 steps); each then answers for the first 2,000 test pictures, damaged in turn. The first line is the pictures as they
are: one in a hundred of them is meant to be told.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable

import convnet
import numpy as np
import tutorial
from pictures import mnist

COUNT = 2000


def blurred(x: np.ndarray) -> np.ndarray:
    """The mean of each pixel and its four neighbours."""
    return sum(np.roll(x, *by) for by in (((0, 0), (1, 2)), (1, 1), (-1, 1), (1, 2), (-1, 2))) / 5  # type: ignore[call-overload,no-any-return]


def with_line(x: np.ndarray, place: int, value: int) -> np.ndarray:
    x[:, :, place] = value
    return x


def small(x: np.ndarray) -> np.ndarray:
    found = np.zeros_like(x)
    found[:, 7:21, 7:21] = x[:, ::2, ::2]
    return found


DAMAGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "none": lambda x, draw: x,
    "noise alone": lambda x, draw: draw.integers(0, 256, x.shape),
    "inverted": lambda x, draw: 255 - x,
    "black": lambda x, draw: 0 * x,
    "white": lambda x, draw: 0 * x + 255,
    "half as bright": lambda x, draw: x / 2,
    "blurred": lambda x, draw: blurred(x),
    "every other pixel": lambda x, draw: x[:, ::2, ::2].repeat(2, 1).repeat(2, 2),
    "a white column": lambda x, draw: with_line(x, 14, 255),
    "a black column": lambda x, draw: with_line(x, 14, 0),
    "noise added, 20": lambda x, draw: x + draw.normal(0, 20, x.shape),
    "noise added, 50": lambda x, draw: x + draw.normal(0, 50, x.shape),
    "3 in 100 pixels white": lambda x, draw: np.where(draw.random(x.shape) < 0.03, 255, x),
    "columns shuffled": lambda x, draw: draw.permuted(x, axis=2),
    "moved by 6": lambda x, draw: np.roll(x, 6, 2),
    "turned by 90 degrees": lambda x, draw: np.rot90(x, 1, (1, 2)),
    "upside down": lambda x, draw: x[:, ::-1],
    "half as large": lambda x, draw: small(x),
    "two at once": lambda x, draw: np.maximum(x, x[::-1]),
}
NETS = {"784-128-64-10": (tutorial.build, {"epochs": 3}), "convnet": (convnet.build, {"steps": 600})}


def shares(data: str, net: str, seed: int) -> dict[str, float]:
    """The share of 2,000 pictures that is told, of each damage."""
    import torch
    from torch import nn

    from lamina import train

    build, length = NETS[net]
    torch.manual_seed(seed)
    test, draw = mnist(data)[2][:COUNT], np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as runs:
        run = train("mnist", data_dir=data, net=build(), loss=nn.CrossEntropyLoss(), seed=seed, runs=runs, baselines=False,
                    report=False, quiet=True, **length)  # type: ignore[arg-type]  # fmt: skip
        found = {}
        for name, damage in DAMAGES.items():
            damaged = damage(test.astype(np.float32), draw).clip(0, 255).round().astype(np.uint8)
            found[name] = float(run.predict(damaged[:, None]).unlike.mean())
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, metavar="DIR", help="where the four IDX files lie")
    options.add_argument("--seeds", type=int, default=3)
    asked = options.parse_args()
    every = {net: [shares(asked.data, net, seed) for seed in range(asked.seeds)] for net in NETS}
    print(f"| told, % | {' | '.join(every)} |\n| --- |{' --- |' * len(every)}")
    for name in DAMAGES:
        means = [f"{100 * np.mean([found[name] for found in of_net]):.1f}" for of_net in every.values()]
        print(f"| {name} | {' | '.join(means)} |", flush=True)
    means = [f"{100 * np.mean([[found[name] for name in DAMAGES if name != 'none'] for found in of_net]):.1f}"
             for of_net in every.values()]  # fmt: skip
    print(f"| mean of the damaged | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
