"""The tutorial job (MNIST, 784-128-64-10, batch 64, Adam 1e-3) through other trainers, on the same machine in turn.

    python benchmarks/peers.py --data DIR [--rounds 3] [--python lightning=PATH --python skorch=PATH]

Seconds an epoch, training only, the first epoch left out; bars, loggers and checkpoints of the others are off. Each run is
a process of its own, contenders taking turns. A trainer that no given interpreter can import is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

from measured import heading, row, table

EPOCHS = 4


def arrays(data: str) -> tuple:
    import torch

    from lamina import sources

    source = sources.open("mnist", data_dir=data)
    assert source.test is not None
    x, x2 = (torch.from_numpy(part.inputs[0]).float() / 255 for part in (source.train, source.test))
    y, y2 = (torch.from_numpy(part.truth).long() for part in (source.train, source.test))
    return x, y, x2, y2


def build():
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def hand(data: str) -> list[float]:
    """Resident tensors, one indexing operation a batch, fused Adam."""
    import torch
    from torch import nn

    x, y, _, _ = arrays(data)
    net, loss, seconds = build(), nn.CrossEntropyLoss(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    for _ in range(EPOCHS):
        began = time.perf_counter()
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(net(x[rows]), y[rows]).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def dataloader(data: str) -> list[float]:
    """The usual loop: TensorDataset, DataLoader, Adam as it comes."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    x, y, _, _ = arrays(data)
    net, loss, seconds = build(), nn.CrossEntropyLoss(), []
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    for _ in range(EPOCHS):
        began = time.perf_counter()
        for inputs, truth in loader:
            optimizer.zero_grad()
            loss(net(inputs), truth).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def lamina(data: str) -> list[float]:
    """`lamina.train` with everything it does: checkpoints, history, health of the net, a screen in a pipe."""
    from torch import nn

    import lamina as library

    with tempfile.TemporaryDirectory() as runs:
        run = library.train(
            "mnist", data_dir=data, net=build(), loss=nn.CrossEntropyLoss(), epochs=EPOCHS, runs=runs, baselines=False
        )
        return [line["seconds"] for line in run.history if "event" not in line]


def lightning(data: str) -> list[float]:
    import lightning as pl
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    x, y, _, _ = arrays(data)
    seconds: list[float] = []

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.loss = build(), nn.CrossEntropyLoss()

        def training_step(self, batch, index):
            return self.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

        def on_train_epoch_start(self):
            self.began = time.perf_counter()

        def on_train_epoch_end(self):
            seconds.append(time.perf_counter() - self.began)

    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True))
    return seconds


def skorch(data: str) -> list[float]:
    import torch
    from skorch import NeuralNetClassifier
    from torch import nn

    x, y, _, _ = arrays(data)
    net = NeuralNetClassifier(
        build(), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=1e-3, batch_size=64, max_epochs=EPOCHS,
        train_split=None, iterator_train__shuffle=True, verbose=0,
    )  # fmt: skip
    net.fit(x, y)
    return [epoch["dur"] for epoch in net.history]


JOBS = {"hand": hand, "dataloader": dataloader, "lamina": lamina, "skorch": skorch, "lightning": lightning}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--one", choices=JOBS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(JOBS[asked.one](asked.data)))
        return
    pythons = dict(entry.split("=", 1) for entry in asked.python)
    found: dict[str, list[float]] = {}
    for _ in range(asked.rounds):
        for name in JOBS:
            python = pythons.get(name, sys.executable)
            done = subprocess.run(
                [python, __file__, "--data", asked.data, "--one", name], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"# {name} left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            found.setdefault(name, []).extend(json.loads(done.stdout.splitlines()[-1])[1:])
            print(f"# {name}: {found[name][-3:]}", file=sys.stderr, flush=True)
    heading("The tutorial job through other trainers, seconds an epoch")
    table("", "median", "lowest", "highest", "n", "ratio to hand")
    base = statistics.median(found["hand"])
    for name, seconds in found.items():
        median = statistics.median(seconds)
        row(name, f"{median:.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}", len(seconds), f"{median / base:.2f}")


if __name__ == "__main__":
    main()
