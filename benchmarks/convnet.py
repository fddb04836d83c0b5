"""The convnet of the PyTorch examples on MNIST: conv 32, conv 64, pool, dropout, 128, dropout; batch 64, Adam 1e-3.

    python benchmarks/convnet.py --data DIR [--rounds 5] [--json speed/convnet.json]     one epoch each
    python benchmarks/convnet.py --data DIR --steps 50 --rounds 1                        to see that it works

DIR holds the four IDX files. `hand` is the loop of tutorial.py in float32; the others by hand are the same with the
memory of a convolution's channels last, and in bfloat16. `lamina` is `lamina.train` as it comes, without baselines and
report; what it tries before the first step is in its whole process. With --steps the test by hand is on a tenth of the
pictures, and accuracies mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from typing import Any

import contest
from contest import Clock
from pictures import floats

BATCH = 64


def build() -> Any:
    """Takes (B, 1, 28, 28)."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


def hand(asked: argparse.Namespace, clock: Clock, *, last: bool = False, bf16: bool = False) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F

    x, y, x2, y2 = floats(asked.data)
    x, x2 = x[:, None], x2[:, None]
    if asked.steps:
        x, y, x2, y2 = x[: BATCH * asked.steps], y[: BATCH * asked.steps], x2[:1000], y2[:1000]
    net = build()
    if last:
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
    clock.begin()
    for rows in torch.randperm(len(x)).split(BATCH):
        with autocast:
            loss = F.cross_entropy(net(x.index_select(0, rows)), y.index_select(0, rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clock.lap()
    with torch.inference_mode(), autocast:
        right = torch.cat([net.eval()(part).argmax(1) for part in x2.split(1000)]) == y2
    return {"accuracy": float(right.float().mean())}


def hand_last(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return hand(asked, clock, last=True)


def hand_bf16(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return hand(asked, clock, bf16=True)


def hand_last_bf16(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return hand(asked, clock, last=True, bf16=True)


def lamina(asked: argparse.Namespace, clock: Clock, **settings: Any) -> dict[str, Any]:
    from torch import nn

    from lamina import train

    length = {"steps": asked.steps} if asked.steps else {"epochs": 1}
    with tempfile.TemporaryDirectory() as runs:
        clock.begin()
        run = train("mnist", data_dir=asked.data, net=build(), loss=nn.CrossEntropyLoss(), runs=runs, baselines=False,
                    report=False, **length, **settings)  # fmt: skip
        clock.lap(run.facts["seconds"]["train"])  # with what is measured and compiled within it
        return {"accuracy": run.headline.value}


def compile_off(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return lamina(asked, clock, compile="off")


def strict(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return lamina(asked, clock, strict=True)


CONTENDERS: dict[str, contest.Contender] = {
    "hand": hand,
    "lamina": lamina,
    "lamina, compile off": compile_off,
    "lamina, strict": strict,
    "hand, channels last": hand_last,
    "hand, bf16": hand_bf16,
    "hand, channels last, bf16": hand_last_bf16,
}


def main() -> None:
    options = contest.parser(__doc__ or "", CONTENDERS)
    options.add_argument("--data", required=True, metavar="DIR", help="where the four IDX files lie")
    options.add_argument("--steps", type=int, help="so many instead of an epoch")
    contest.main(
        options, CONTENDERS, lambda asked: "The convnet of the PyTorch examples: MNIST, batch 64, Adam",
        unit=lambda asked: f"{asked.steps} steps" if asked.steps else "epoch",
    )  # fmt: skip


if __name__ == "__main__":
    main()
