"""Three jobs on a GPU, in one call: the tutorial net, the convnet of the PyTorch examples, a ResNet-18 for 32 x 32.

    python benchmarks/gpu.py [--rounds 3] [--json speed]                                      on a machine with CUDA
    python benchmarks/gpu.py --device cpu --job tutorial --steps 20 --batch 8 --rounds 1      to see that it works

It needs no data: pictures are random bytes that lie on the device, since only time is measured. `hand` is the ordinary
loop with fused Adam and TF32; `hand, CUDA graphs` replays the same step captured as a graph. For the ResNet (bfloat16,
channels last, batches of 512) `hand, compiled` is the loop that somebody tunes by hand: `torch.compile`, fused SGD,
normalisation within the compiled net; `hand, compiled, graphs` has it capture graphs besides. `lamina` is
`lamina.train` as it comes (bf16 asked for with the ResNet), without baselines and report; so short a training compiles
no net by itself, `lamina, compile on` does.

A lap is a tenth of the steps, ended by waiting for the device; the first warms up and is left out. Below each table:
examples a second, and the share of the peak that a large matrix product reaches on this device in the same precision.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contest
import convnet
import tutorial
from contest import Clock

LAPS = 10
JOBS = {  # title, batch, steps
    "tutorial": ("The tutorial net 784-128-64-10, batch 64, Adam, on the GPU", 64, 5000),
    "convnet": ("The convnet of the PyTorch examples, batch 64, Adam, on the GPU", 64, 5000),
    "resnet": ("ResNet-18 for 32 x 32 pictures, bf16, channels last, batch 512, SGD, on the GPU", 512, 1000),
}


def resnet(width: int = 64) -> Any:
    """ResNet-18 as for CIFAR: a 3 x 3 convolution first, no pooling after it. (B, 3, 32, 32) -> (B, 10)."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int, wider: int, stride: int):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU(),
                nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider),
            )  # fmt: skip
            self.short: nn.Module = nn.Identity()
            if stride > 1 or channels != wider:
                self.short = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))

        def forward(self, x: Any) -> Any:
            return (self.layers(x) + self.short(x)).relu()

    first = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks, channels = [], width
    for wider, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        blocks += [Block(channels, wider, stride), Block(wider, wider, 1)]
        channels = wider
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def build(asked: argparse.Namespace) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "tutorial": tutorial.build, "convnet": convnet.build, "resnet": lambda: resnet(asked.width)
    }  # fmt: skip
    return makers[asked.job]()


def pictures(asked: argparse.Namespace) -> tuple[Any, Any]:
    """(N, C, H, W) random bytes, (N,) int64: as many as MNIST or CIFAR-10 has, fewer where few are asked for."""
    import numpy as np

    generator = np.random.default_rng(0)
    shape = (3, 32, 32) if asked.job == "resnet" else (1, 28, 28)
    count = min(50_000 if asked.job == "resnet" else 60_000, max(200, asked.steps * asked.batch))
    return generator.integers(0, 256, (count, *shape), np.uint8), generator.integers(0, 10, count)


def batches(asked: argparse.Namespace, count: int, device: Any) -> Any:
    """Rows of each step, epoch after epoch; short batches at the end of one are left out."""
    import torch

    done = 0
    while True:
        for rows in torch.randperm(count, device=device).split(asked.batch):
            if len(rows) == asked.batch:
                yield rows
                done += 1
                if done == asked.steps:
                    return


def wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def finish(asked: argparse.Namespace, clock: Clock, net: Any) -> dict[str, Any]:
    """Examples a second, and the share of the device's measured peak."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lamina.bench.machine import product_rate

    device = torch.device(asked.device)
    kind = "bf16" if asked.job == "resnet" else "tf32" if device.type == "cuda" else "fp32"
    x, y = pictures(asked)
    some, truth = torch.from_numpy(x[: asked.batch]).to(device) / 255, torch.from_numpy(y[: asked.batch]).to(device)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(net.to(device)(some), truth).backward()
    step = statistics.median(clock.seconds[1:]) / (asked.steps // LAPS)
    share = counter.get_total_flops() / step / product_rate(device, kind)
    peak = f"{100 * share:.1f} % of the measured {kind} peak"
    return {"note": f"{len(some) / step:,.0f} examples/s, {1000 * step:.3f} ms a step, {peak}"}


def by_hand(asked: argparse.Namespace, clock: Clock, *, graphs: bool = False, compiled: str = "") -> dict[str, Any]:
    import torch
    from torch import nn
    from torch.nn import functional as F

    device = torch.device(asked.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    x, y = (torch.from_numpy(column).to(device) for column in pictures(asked))
    net, large = build(asked).to(device), asked.job == "resnet"
    if large:
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)
    else:
        x = x / 255
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True, capturable=graphs)

    class Whole(nn.Module):
        """Bytes -> scores, so that the scaling is compiled with the net."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, inputs: Any) -> Any:
            return self.net(inputs / 255)

    whole: Any = Whole() if large else net
    if compiled:
        whole = torch.compile(whole, mode=compiled)

    def learn(inputs: Any, truth: Any) -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=large):
            loss = F.cross_entropy(whole(inputs), truth)
        loss.backward()
        optimizer.step()

    step = graphed(learn, optimizer, x[: asked.batch].clone(), y[: asked.batch].clone()) if graphs else None
    clock.begin()
    for k, rows in enumerate(batches(asked, len(x), device), 1):
        inputs, truth = x.index_select(0, rows), y.index_select(0, rows)
        if step is not None:
            step(inputs, truth)
        else:
            optimizer.zero_grad(set_to_none=True)
            learn(inputs, truth)
        if k % (asked.steps // LAPS) == 0:
            wait(device)
            clock.lap()
    return finish(asked, clock, build(asked))


def graphed(learn: Callable[[Any, Any], None], optimizer: Any, inputs: Any, truth: Any) -> Callable[[Any, Any], None]:
    """The step as one CUDA graph over fixed buffers, as torch's notes on graphs say: warmed up on a stream of its own."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            learn(inputs, truth)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)  # so that backward writes gradients of the graph's own
    with torch.cuda.graph(graph):
        learn(inputs, truth)

    def step(new_inputs: Any, new_truth: Any) -> None:
        inputs.copy_(new_inputs)
        truth.copy_(new_truth)
        graph.replay()

    return step


def hand_graphs(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return by_hand(asked, clock, graphs=True)


def hand_compiled(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return by_hand(asked, clock, compiled="default")


def hand_compiled_graphs(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return by_hand(asked, clock, compiled="reduce-overhead")


def lamina(asked: argparse.Namespace, clock: Clock, **settings: Any) -> dict[str, Any]:
    import torch
    from torch import nn

    from lamina import train

    device, each = torch.device(asked.device), asked.steps // LAPS
    x, y = pictures(asked)

    def lap(progress: Any) -> None:
        if progress.step % each == 0:
            wait(device)
            clock.lap()

    if asked.job == "resnet":
        sgd = {"optimizer": "sgd", "learning_rate": 0.01, "optimizer_arg": {"momentum": 0.9}}
        settings = {"precision": "bf16", **sgd, **settings}
    with tempfile.TemporaryDirectory() as runs:
        clock.begin()
        run = train((x, y), net=build(asked), loss=nn.CrossEntropyLoss(), test=(x[:100], y[:100]), device=asked.device,
                    steps=asked.steps, batch_size=asked.batch, runs=runs, watchers=[lap], baselines=False, report=False,
                    **settings)  # fmt: skip
    found = finish(asked, clock, build(asked))
    words = run.facts["step"].get("compiled", "")
    return {"note": f"{found['note']}; {words}" if words else found["note"]}


def compile_on(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return lamina(asked, clock, compile="on")


def compile_off(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return lamina(asked, clock, compile="off")


def contenders(job: str, device: str) -> dict[str, contest.Contender]:
    graphs: dict[str, contest.Contender] = {"hand, CUDA graphs": hand_graphs} if device.startswith("cuda") else {}
    ours: dict[str, contest.Contender] = {"lamina": lamina, "lamina, compile on": compile_on}
    if job == "resnet":
        return {
            "hand": by_hand,
            "hand, compiled": hand_compiled,
            "hand, compiled, graphs": hand_compiled_graphs,
            **ours,
        }
    ours["lamina, compile off"] = compile_off
    return {"hand": by_hand, **graphs, **ours}


def main() -> None:
    before = argparse.ArgumentParser(add_help=False)
    before.add_argument("--job", choices=JOBS)
    before.add_argument("--device", default="cuda")
    before.add_argument("--json")
    known, _ = before.parse_known_args()
    if known.job is None and not {"-h", "--help"} & set(sys.argv):  # each job in turn
        words = [word for k, word in enumerate(sys.argv[1:], 1) if "--json" not in (word, sys.argv[k - 1])]
        for job in JOBS:
            file = ["--json", str(Path(known.json) / f"gpu-{job}.json")] if known.json else []
            subprocess.run([sys.executable, sys.argv[0], *words, *file, "--job", job], check=True)
        return
    names = contenders(known.job or "tutorial", known.device)
    options = contest.parser(__doc__ or "", names, rounds=3)
    title, batch, steps = JOBS[known.job or "tutorial"]
    options.add_argument("--job", choices=JOBS, help="one of the jobs; else all, and --json names a folder")
    options.add_argument("--device", default="cuda")
    options.add_argument("--steps", type=int, default=steps, help=f"{LAPS} or more; else what suits the job")
    options.add_argument("--batch", type=int, default=batch, help="examples a step; else what suits the job")
    options.add_argument("--width", type=int, default=64, help="channels of the ResNet's first layer")
    if options.parse_args().steps < LAPS:
        options.error(f"--steps is less than the {LAPS} laps")
    contest.main(
        options, names, lambda asked: title, bases=tuple(name for name in names if name.startswith("hand,")),
        unit=lambda asked: f"{asked.steps // LAPS} steps",
    )  # fmt: skip


if __name__ == "__main__":
    main()
