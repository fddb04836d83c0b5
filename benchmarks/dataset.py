"""An own Dataset that makes each sample in Python, as tutorials do: bytes -> PIL -> tensor -> normalised. The tutorial net.

    python benchmarks/dataset.py --data DIR [--rounds 5] [--epochs 4] [--json speed/dataset.json]

DIR holds the four IDX files. The same Dataset, net, batch size (64) and optimiser (Adam) for everybody: the usual loop with
a DataLoader of 0, 1 and 2 workers, and `lamina.train(Dataset)` without baselines and report: as it comes, without workers,
and told that the Dataset gives the same items every time (`cache=True`; its first epoch is left out of the median, as
everybody's is, and stands in the whole process). `hand` makes all samples once and then cuts batches from the tensor.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import contest
from contest import Clock
from pictures import mnist
from tutorial import BATCH, accuracy, build, learn_by_hand


def datasets(data: str) -> tuple[Any, Any]:
    """For training and for testing. ToTensor and Normalize are torchvision's own steps, written out."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import Dataset

    class ToTensor:
        def __call__(self, picture: Any) -> Any:
            table = torch.from_numpy(np.array(picture, np.uint8, copy=True))
            table = table.view(picture.size[1], picture.size[0], 1).permute((2, 0, 1)).contiguous()
            return table.to(dtype=torch.float32).div(255)

    class Normalize:
        def __init__(self, mean: Any, std: Any):
            self.mean, self.std = mean, std

        def __call__(self, table: Any) -> Any:
            table = table.clone()
            mean = torch.as_tensor(self.mean, dtype=table.dtype).view(-1, 1, 1)
            std = torch.as_tensor(self.std, dtype=table.dtype).view(-1, 1, 1)
            return table.sub_(mean).div_(std)

    class Pictures(Dataset):
        def __init__(self, x: Any, y: Any):
            self.data, self.targets = torch.from_numpy(x.copy()), torch.from_numpy(y)
            self.transform = [lambda table: Image.fromarray(table.numpy()), ToTensor(), Normalize((0.1307,), (0.3081,))]

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, k: int) -> Any:
            picture, target = self.data[k], int(self.targets[k])
            for change in self.transform:
                picture = change(picture)
            return picture, target

    x, y, x2, y2 = mnist(data)
    return Pictures(x, y), Pictures(x2, y2)


def table(dataset: Any) -> tuple[Any, Any]:
    """All samples of a Dataset, made once."""
    import torch

    return torch.stack([dataset[k][0] for k in range(len(dataset))]), dataset.targets


def dataloader(workers: int) -> contest.Contender:
    def run(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
        import torch
        from torch.nn import functional as F
        from torch.utils.data import DataLoader

        train, test = datasets(asked.data)
        net = build()
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        loader = DataLoader(train, batch_size=BATCH, shuffle=True, num_workers=workers)
        clock.begin()
        for _ in range(asked.epochs):
            for inputs, truth in loader:
                optimizer.zero_grad()
                F.cross_entropy(net(inputs), truth).backward()
                optimizer.step()
            clock.lap()
        return {"accuracy": accuracy(net, *table(test))}

    return run


def hand(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    train, test = datasets(asked.data)
    x, y = table(train)
    net = build()
    learn_by_hand(net, x, y, asked.epochs, clock)
    return {"accuracy": accuracy(net, *table(test))}


def lamina(**settings: Any) -> contest.Contender:
    def run(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
        from torch import nn

        from lamina import train as learn

        train, test = datasets(asked.data)
        with tempfile.TemporaryDirectory() as runs:
            run = learn(
                train, test=test, net=build(), loss=nn.CrossEntropyLoss(), epochs=asked.epochs, runs=runs,
                watchers=[clock], baselines=False, report=False, **settings,
            )  # fmt: skip
            return {"accuracy": run.headline.value}

    return run


CONTENDERS: dict[str, contest.Contender] = {
    "dataloader, 0 workers": dataloader(0),
    "dataloader, 1 worker": dataloader(1),
    "dataloader, 2 workers": dataloader(2),
    "lamina": lamina(),
    "lamina, workers=0": lamina(workers=0),
    "lamina, cache": lamina(cache=True),
    "hand, samples made once": hand,
}


def main() -> None:
    options = contest.parser(__doc__ or "", CONTENDERS)
    options.add_argument("--data", required=True, metavar="DIR", help="where the four IDX files lie")
    options.add_argument("--epochs", type=int, default=4)
    loaders = [name for name in CONTENDERS if name.startswith("dataloader")]
    contest.main(
        options, CONTENDERS, lambda asked: f"An own Dataset: MNIST sample by sample, batch 64, Adam, {asked.epochs} epochs",
        base=loaders[0], bases=tuple(loaders[1:]),
    )  # fmt: skip


if __name__ == "__main__":
    main()
