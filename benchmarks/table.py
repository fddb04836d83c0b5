"""The table job: adult (census income), numbers standardised, categories as embeddings, an MLP of 3 x 256, batch 256.

    python benchmarks/table.py --data DIR [--rounds 5] [--epochs 10] [--json speed/table.json]

DIR holds adult_train.csv and adult_test.csv. The same net and the same two columns of input (six numbers, eight codes)
for everybody: `dataloader` is the usual loop with TensorDataset and DataLoader, `hand` the best ordinary one with
resident tensors and fused Adam, `lamina` is `lamina.train(((numbers, codes), y), ...)` without baselines and report.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import contest
from contest import Clock

BATCH = 256
NUMBERS = ("age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week")
CODES = ("workclass", "education", "marital_status", "occupation", "relationship", "race", "sex", "native_country")


def columns(data: str) -> tuple[Any, Any, list[int]]:
    """((numbers (N, 6) float32, codes (N, 8) int64, truth (N,) int64)) for training and for testing; categories a code.

    Scale and categories are learned from the training rows; 0 is a category that they do not have."""
    import numpy as np

    tables = []
    for part in ("train", "test"):
        with open(Path(data) / f"adult_{part}.csv", encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    kinds = [{value: k for k, value in enumerate(sorted({row[name] for row in tables[0]}), 1)} for name in CODES]
    found = []
    for table in tables:
        numbers = np.array([[float(row[name]) for name in NUMBERS] for row in table])
        codes = np.array([[kind.get(row[name], 0) for name, kind in zip(CODES, kinds, strict=True)] for row in table])
        found.append([numbers, codes.astype(np.int64), np.array([row["income"] == ">50K" for row in table], np.int64)])
    mean, deviation = found[0][0].mean(0), found[0][0].std(0)
    for part in found:
        part[0] = ((part[0] - mean) / deviation).astype(np.float32)
    return (*map(tuple, found), [len(kind) + 1 for kind in kinds])  # type: ignore[return-value]


def build(categories: list[int]) -> Any:
    import torch
    from torch import nn

    class Net(nn.Module):
        """Numbers (B, 6) and codes (B, 8) -> (B, 2)."""

        def __init__(self) -> None:
            super().__init__()
            widths = [min(16, (count + 1) // 2) for count in categories]
            self.tables = nn.ModuleList(map(nn.Embedding, categories, widths))
            self.layers = nn.Sequential(
                nn.Linear(len(NUMBERS) + sum(widths), 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2),
            )  # fmt: skip

        def forward(self, numbers: Any, codes: Any) -> Any:
            looked = [table(code) for table, code in zip(self.tables, codes.unbind(1), strict=True)]
            return self.layers(torch.cat([numbers, *looked], 1))

    return Net()


def tensors(data: str) -> tuple[Any, Any, list[int]]:
    import torch

    train, test, categories = columns(data)
    return tuple(map(torch.from_numpy, train)), tuple(map(torch.from_numpy, test)), categories


def accuracy(net: Any, test: Any) -> float:
    import torch

    with torch.inference_mode():
        return float((net.eval()(*test[:2]).argmax(1) == test[2]).float().mean())


def hand(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F

    train, test, categories = tensors(asked.data)
    net = build(categories)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    clock.begin()
    for _ in range(asked.epochs):
        for rows in torch.randperm(len(train[2])).split(BATCH):
            numbers, codes, truth = (column.index_select(0, rows) for column in train)
            loss = F.cross_entropy(net(numbers, codes), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        clock.lap()
    return {"accuracy": accuracy(net, test)}


def dataloader(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    train, test, categories = tensors(asked.data)
    net = build(categories)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(*train), batch_size=BATCH, shuffle=True)
    clock.begin()
    for _ in range(asked.epochs):
        for numbers, codes, truth in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(numbers, codes), truth).backward()
            optimizer.step()
        clock.lap()
    return {"accuracy": accuracy(net, test)}


def lamina(asked: argparse.Namespace, clock: Clock, **settings: Any) -> dict[str, Any]:
    from torch import nn

    from lamina import train

    (*inputs, truth), (*inputs2, truth2), categories = columns(asked.data)
    with tempfile.TemporaryDirectory() as runs:
        run = train(
            (tuple(inputs), truth), net=build(categories), loss=nn.CrossEntropyLoss(), test=(tuple(inputs2), truth2),
            epochs=asked.epochs, batch_size=BATCH, runs=runs, watchers=[clock], baselines=False, report=False, **settings,
        )  # fmt: skip
        return {"accuracy": run.headline.value}


def compile_off(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return lamina(asked, clock, compile="off")


CONTENDERS: dict[str, contest.Contender] = {
    "hand": hand,
    "dataloader": dataloader,
    "lamina": lamina,
    "lamina, compile off": compile_off,
}


def main() -> None:
    options = contest.parser(__doc__ or "", CONTENDERS)
    options.add_argument("--data", required=True, metavar="DIR", help="where adult_train.csv and adult_test.csv lie")
    options.add_argument("--epochs", type=int, default=10)
    contest.main(
        options, CONTENDERS,
        lambda asked: f"The table job: adult, MLP 3 x 256 with embeddings, batch 256, Adam, {asked.epochs} epochs",
        bases=("dataloader",),
    )  # fmt: skip


if __name__ == "__main__":
    main()
