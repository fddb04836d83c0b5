"""Two views of every example: what is learned from where there are no answers.

In: a random change of a batch's inputs under which an example stays what it is, `change(inputs, key)`, as a domain gives it
(`Domain.change`). Out: what batches take as their augmentation: each input with 2 B rows, first one view of every example,
then another in the same order. The changes are keyed by the example, so a resumed run sees the same views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lamina.keyed import Key, number

Change = Callable[[tuple[Tensor, ...], Key], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Pairs:
    """inputs, each (B, ...) -> each (2 B, ...): rows k and B + k are the same example, changed twice."""

    change: Change

    def __call__(self, inputs: tuple[Tensor, ...], key: Key) -> tuple[Tensor, ...]:
        one, other = (self.change(inputs, replace(key, seed=number(key.seed, "view", k))) for k in (1, 2))
        return tuple(torch.cat(parts) for parts in zip(one, other, strict=True))


@dataclass(frozen=True)
class Swap:
    """Each value of an example is, with probability `share`, that of another example of the batch.

    So a changed value is one that occurs, whatever it means: numbers, codes of categories, words. Bahri, Jiang, Tay and
    Metzler, "SCARF: self-supervised contrastive learning using random feature corruption", ICLR 2022.
    """

    share: float = 0.3

    def __call__(self, inputs: tuple[Tensor, ...], key: Key) -> tuple[Tensor, ...]:
        found = []
        for k, column in enumerate(inputs):
            flat = column.reshape(len(column), -1)  # (B, F)
            other = flat[key.bits(f"swap partner {k}")[:, 0].argsort(stable=True)]
            swapped = key.uniform(f"swap {k}", flat.shape[1]) < self.share
            found.append(torch.where(swapped, other, flat).view(column.shape))
        return tuple(found)
