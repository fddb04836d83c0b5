"""Answers for many pictures: MNIST's 60,000 through a net, again and again, nothing is learned.

    python benchmarks/evaluation.py --data DIR [--net convnet --examples 10000] [--passes 6] [--json speed/evaluation.json]

DIR holds the four IDX files. `hand` is the loop by hand at the best of several batch sizes, which each process tries first:
pictures that lie there as scaled floats, `inference_mode`, `argmax`. `hand, from bytes` scales each batch of bytes itself,
as whoever is given pictures must. Of Lamina: `classes alone` is what a run does for a class a picture, from bytes; `predict`
gives labels, confidence and probabilities too, and whether each is unlike those learned from; `evaluate` measures all scores
with their 95 % intervals; `validate` is what an epoch of training ends with, loss and accuracy. The first pass of each process
warms up and does not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import contest
from contest import Clock
from pictures import floats, mnist

SIZES = {"mlp": (128, 256, 512, 1000, 2000, 4096), "convnet": (16, 32, 64, 128, 256, 1000)}


def build(name: str) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        ).eval()
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    ).eval()  # fmt: skip


def by_hand(asked: argparse.Namespace, clock: Clock, x: Any, scaled: Callable[[Any], Any]) -> dict[str, Any]:
    import torch

    net, x = build(asked.net), x[: asked.examples, None]

    def classes(size: int, count: int) -> Any:
        with torch.inference_mode():
            return torch.cat([net(scaled(x[at : min(at + size, count)])).argmax(1) for at in range(0, count, size)])

    def seconds(size: int) -> float:
        began = time.perf_counter()
        classes(size, some)
        return time.perf_counter() - began

    some = min(len(x), 2048 if asked.net == "convnet" else 20_000)
    for size in SIZES[asked.net]:
        classes(size, some)  # the first time costs more
    best = min(SIZES[asked.net], key=lambda size: min(seconds(size) for _ in range(2)))
    clock.begin()
    for _ in range(asked.passes):
        classes(best, len(x))
        clock.lap()
    return {"note": f"batches of {best}"}


def hand(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return by_hand(asked, clock, floats(asked.data)[0], lambda batch: batch)


def hand_from_bytes(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    import torch

    return by_hand(asked, clock, torch.from_numpy(mnist(asked.data)[0]), lambda batch: batch / 255)


def of_lamina(asked: argparse.Namespace, clock: Clock, ask: Callable[[Any, Any, Any], Any]) -> dict[str, Any]:
    """ask(run, x, y), over and over; the run has learned one step."""
    from torch import nn

    from lamina import train

    x, y, _, _ = mnist(asked.data)
    x, y = x[: asked.examples, None], y[: asked.examples]
    with tempfile.TemporaryDirectory() as runs, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these are the pictures it was trained on
        run = train(
            (x[:2000], y[:2000]), task="classes", net=build(asked.net), loss=nn.CrossEntropyLoss(), steps=1, runs=runs,
            baselines=False, report=False, quiet=True,
        )  # fmt: skip
        clock.begin()
        for _ in range(asked.passes):
            ask(run, x, y)
            clock.lap()
    return {}


def predict(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return of_lamina(asked, clock, lambda run, x, y: run.predict(x))


def predict_alone(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return of_lamina(asked, clock, lambda run, x, y: run.predict(x, unlike=False))


def evaluate(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return of_lamina(asked, clock, lambda run, x, y: run.evaluate((x, y)))


def classes_alone(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    from lamina.targets.base import Answers
    from lamina.targets.classes import Classes

    class Numbers(Classes):
        def decode(self, output: Any) -> Answers:
            return Answers(output.argmax(1).numpy())

    target = Numbers()
    return of_lamina(asked, clock, lambda run, x, y: run.domain.predict(run.net, (x,), target))


def validate(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """The whole of it, with the batches cut as a training cuts them."""
    import torch

    from lamina.domains.base import Encoded

    def ask(run: Any, x: Any, y: Any) -> Any:
        examples = Encoded(run.domain.encode((x,)), torch.from_numpy(y))
        walk = run.domain.batches(run.net, examples, None, batch_size=512, shuffle=False)
        return run.domain.validate(run.net, walk, run.target, torch.nn.CrossEntropyLoss())

    return of_lamina(asked, clock, ask)


CONTENDERS = {
    "hand": hand,
    "hand, from bytes": hand_from_bytes,
    "lamina, classes alone": classes_alone,
    "lamina, predict": predict,
    "lamina, predict, unlike=False": predict_alone,
    "lamina, validate": validate,
    "lamina, evaluate": evaluate,
}


def main() -> None:
    options = contest.parser(__doc__ or "", CONTENDERS, rounds=3)
    options.add_argument("--data", required=True, help="the folder of the four IDX files")
    options.add_argument(
        "--net", choices=SIZES, default="mlp", help="784-128-64-10, or the convnet of PyTorch's examples"
    )
    options.add_argument("--examples", type=int, default=60_000, help="pictures (default 60000)")
    options.add_argument("--passes", type=int, default=6, help="times each process goes through them (default 6)")
    contest.main(
        options,
        CONTENDERS,
        lambda asked: f"{asked.examples:,} pictures through the {asked.net}",
        bases=("hand, from bytes",),
        unit=lambda asked: "a pass",
    )


if __name__ == "__main__":
    main()
