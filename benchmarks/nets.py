"""A step of nets of many kinds: `lamina.learn` beside the same loop by hand, on random data.

    python benchmarks/nets.py [--only lstm] [--turns 3]

By hand: all examples one tensor, a permutation and one indexing operation a batch, or where the job says so a `DataLoader`,
which `lamina.learn` then gets as well; torch's optimiser (fused where it has such a kernel), nothing read back. Both take
turns in one process; an epoch of each turn warms up, `lamina.learn` three, since in the first steps it records. The last
column says why steps were not recorded, where they were not.
"""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import measured
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lamina
from lamina import Batches

EPOCHS = 4  # timed in a turn


class Last(nn.Module):
    """What a recurrent net says at the end of a sequence (B, T, 16)."""

    def __init__(self, kind: Any):
        super().__init__()
        self.inner, self.out = kind(16, 64, batch_first=True), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x)[0][:, -1])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Two layers of a transformer over tokens (B, T)."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.table, self.inner, self.out = nn.Embedding(1000, 64), nn.TransformerEncoder(layer, 2), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.table(x)).mean(1))  # type: ignore[no-any-return]


class Mean(nn.Module):
    """The mean of embeddings (B, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(20_000, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(x).mean(1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two convolutions with batch norm, one of them beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.one, self.two, self.out = nn.BatchNorm2d(32), nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(self.first(x))), 2)
        x = F.relu(self.two(self.second(x)) + x)
        return self.out(x.mean((2, 3)))  # type: ignore[no-any-return]


def dense(*widths: int, act: Any = nn.ReLU, between: Callable[[int], nn.Module] | None = None) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), act(), *([between(b)] if between else [])]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def wave() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 32, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(32, 32, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
        nn.Flatten(), nn.Linear(32, 6),
    )  # fmt: skip


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def l1(net: nn.Module) -> Tensor:
    return 1e-4 * sum(p.abs().sum() for p in net.parameters())  # type: ignore[return-value]


@dataclass
class Job:
    """A net, how many examples of which shape, classes, batch size; whole: the inputs are numbers below it."""

    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    batch_size: int = 64
    optimizer: Callable[[Any], torch.optim.Optimizer] = adam
    whole: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of `lamina.learn`
    dataset: Callable[[Tensor, Tensor], Any] | None = None  # which a DataLoader reads

    def data(self) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, self.whole, self.shape) if self.whole else torch.randn(self.shape)
        return x, torch.randint(0, self.classes, self.shape[:1])

    def loader(self, x: Tensor, y: Tensor) -> Any:
        return None if self.dataset is None else DataLoader(self.dataset(x, y), self.batch_size, shuffle=True)


class Rows(Dataset[Any]):
    """Examples made in Python, one by one."""

    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        return self.x[k], self.y[k]


TUTORIAL = (784, 128, 64, 10)
JOBS = {
    "784-128-64-10, batch 32": Job(lambda: dense(*TUTORIAL), (6000, 784), 10, 32),
    "the same, batch 512": Job(lambda: dense(*TUTORIAL), (20_000, 784), 10, 512),
    "the same, SGD with momentum": Job(
        lambda: dense(*TUTORIAL), (6000, 784), 10, optimizer=lambda p: torch.optim.SGD(p, 0.01, 0.9, fused=True)
    ),
    "the same, AdamW and dropout": Job(
        lambda: dense(*TUTORIAL, between=lambda _: nn.Dropout(0.2)), (6000, 784), 10,
        optimizer=lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
    ),
    "the same, batch norm": Job(lambda: dense(*TUTORIAL, between=nn.BatchNorm1d), (6000, 784), 10),
    "the same, Adam not fused": Job(
        lambda: dense(*TUTORIAL), (6000, 784), 10, optimizer=lambda p: torch.optim.Adam(p, 1e-3)
    ),
    "the same, RMSprop": Job(
        lambda: dense(*TUTORIAL), (6000, 784), 10, optimizer=lambda p: torch.optim.RMSprop(p, 1e-3)
    ),
    "the same, gradients clipped": Job(lambda: dense(*TUTORIAL), (6000, 784), 10, options={"clip_norm": 1.0}),
    "the same, L1": Job(lambda: dense(*TUTORIAL), (6000, 784), 10, options={"penalty": l1}),
    "the same, DataLoader": Job(lambda: dense(*TUTORIAL), (6000, 784), 10, dataset=TensorDataset),
    "the same, DataLoader, own Dataset": Job(lambda: dense(*TUTORIAL), (6000, 784), 10, dataset=Rows),
    "13-32-32-3, batch 32": Job(lambda: dense(13, 32, 32, 3), (3000, 13), 3, 32),
    "ten layers of 64, Adam not fused": Job(
        lambda: dense(*[64] * 10, 10), (3000, 64), 10, 32, optimizer=lambda p: torch.optim.Adam(p, 1e-3)
    ),
    "ten layers of 64, tanh": Job(lambda: dense(20, *[64] * 10, 5, act=nn.Tanh), (6000, 20), 5),
    "784-1024-1024-10, batch 128": Job(lambda: dense(784, 1024, 1024, 10), (6000, 784), 10, 128),
    "LSTM": Job(lambda: Last(nn.LSTM), (3000, 50, 16), 5),
    "GRU": Job(lambda: Last(nn.GRU), (3000, 50, 16), 5),
    "transformer, batch 32": Job(Attention, (2000, 40), 5, 32, whole=1000),
    "embedding bag": Job(
        lambda: nn.Sequential(nn.EmbeddingBag(20_000, 64), nn.Linear(64, 4)), (6000, 40), 4, whole=20_000
    ),
    "mean of embeddings": Job(Mean, (6000, 40), 4, whole=20_000),
    "convolutions in time": Job(wave, (3000, 4, 128), 6),
    "LeNet": Job(lenet, (4000, 1, 28, 28), 10),
    "residual, 32 x 32": Job(Residual, (1500, 3, 32, 32), 10),
}  # fmt: skip


def by_hand(job: Job, x: Tensor, y: Tensor) -> Iterator[None]:
    """Epoch after epoch."""
    net, penalty, clip = job.net(), job.options.get("penalty"), job.options.get("clip_norm")
    optimizer = job.optimizer(net.parameters())
    loader = job.loader(x, y)

    def cut() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(x)).split(job.batch_size):
            yield x.index_select(0, rows), y.index_select(0, rows)

    while True:
        for inputs, truth in cut() if loader is None else loader:
            loss = F.cross_entropy(net(inputs), truth)
            if penalty is not None:
                loss = loss + penalty(net)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
        yield


def learned(job: Job, x: Tensor, y: Tensor, words: list[str]) -> Iterator[None]:
    net = job.net()
    batches, optimizer = job.loader(x, y) or Batches(x, y, batch_size=job.batch_size), job.optimizer(net.parameters())
    for progress in lamina.learn(net, batches, nn.CrossEntropyLoss(), optimizer, epochs=1000, **job.options):
        if progress.epoch_end:
            words[:] = [progress.eager]
            yield


def seconds(epochs: Iterator[None], warm: int) -> list[float]:
    found = []
    for number in range(warm + EPOCHS):
        began = time.perf_counter()
        next(epochs)
        if number >= warm:
            found.append(time.perf_counter() - began)
    return found


def main() -> None:
    asked = measured.nets_and_turns(__doc__ or "")
    measured.heading("A step of other nets, milliseconds: medians of all timed epochs, lowest to highest")
    measured.table("net", "by hand", "lamina.learn", "ratio", "eager, since")
    warnings.simplefilter("ignore")
    for name, job in JOBS.items():
        if asked.only not in name:
            continue
        torch.manual_seed(0)
        x, y = job.data()
        hand: list[float] = []
        ours: list[float] = []
        words: list[str] = []
        for _ in range(asked.turns):
            hand += seconds(by_hand(job, x, y), 1)
            ours += seconds(learned(job, x, y, words), 3)
        steps = -(-len(x) // job.batch_size)
        cells = [
            f"{1e3 * statistics.median(found) / steps:.3f} ({1e3 * min(found) / steps:.3f} to {1e3 * max(found) / steps:.3f})"
            for found in (hand, ours)
        ]
        measured.row(name, *cells, f"{statistics.median(ours) / statistics.median(hand):.2f}", *words)


if __name__ == "__main__":
    main()
