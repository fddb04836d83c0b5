"""Items of a Dataset that gives the same item every time, kept as columns: later epochs read nothing.

In: the batches of the first epoch. Out: columns in the types that the items have, row k being example k. The claim is the
user's; it is tried at the beginning of every later epoch, where a few examples are read again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamina import mapped
from lamina.batches.items import Reader, same
from lamina.errors import DataError, UsageError
from lamina.keyed import number

TRIED = 4  # examples that are read again in each later epoch


class Kept:
    """What was read of one Dataset, whichever parts of it are walked over."""

    def __init__(self, count: int, memory: int | None = None):
        """count: items of the Dataset. memory: bytes; columns that together take more lie on the disk."""
        self.have = np.zeros(count, bool)
        self._memory = memory
        self._columns: list[Tensor] = []
        self._tree: Any = None

    def missing(self, plan: list[np.ndarray]) -> list[np.ndarray]:
        """What each batch of a plan must read: what is not here, and was not read for an earlier batch."""
        if not plan:
            return []
        order = np.concatenate(plan)
        first = np.zeros(len(order), bool)
        first[np.unique(order, return_index=True)[1]] = True
        ends = np.cumsum([len(indices) for indices in plan])[:-1]
        return [rows[new] for rows, new in zip(plan, np.split(first & ~self.have[order], ends), strict=True)]

    def store(self, rows: np.ndarray, collated: Any) -> None:
        """A batch as it was read."""
        leaves: list[Tensor] = []
        tree = _plant(collated, leaves)
        if not self._columns:
            count = len(self.have)
            size = count * sum(leaf[0].numel() * leaf.element_size() for leaf in leaves)
            above = self._memory is not None and size > self._memory
            with mapped.limited(0 if above else None):
                self._columns = [mapped.empty_tensor((count, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
            self._tree = tree
        found = [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        wanted = [(column.shape[1:], column.dtype) for column in self._columns]
        if tree != self._tree or found != wanted:
            raise DataError(
                f"Example {rows[0]} of the Dataset is {_words(found)}, and those before it are {_words(wanted)}.",
                expected="items of one shape and type, as cache keeps them",
                fix="pad, resize or convert them in the Dataset, or leave cache out",
            )
        places = torch.from_numpy(rows)
        for column, leaf in zip(self._columns, leaves, strict=True):
            column.index_copy_(0, places, leaf)
        self.have[rows] = True

    def cut(self, rows: np.ndarray) -> Any:
        """A batch as the Dataset would have given it."""
        places = torch.from_numpy(rows)
        return self._tie([mapped.take(column, places) for column in self._columns])

    def whole(self, rows: np.ndarray) -> Any:
        """All columns, as a batch, when every one of these rows is here; None before."""
        return self._tie(self._columns) if self._columns and self.have[rows].all() else None

    def try_claim(self, reader: Reader, epoch: int, rows: np.ndarray) -> None:
        """Read a few of the kept examples again. DataError for one that has changed."""
        here = rows[self.have[rows]]
        if not len(here):
            return
        chosen = here[[number(reader.seed, "try", epoch, k) % len(here) for k in range(TRIED)]]
        for row, item in zip(chosen.tolist(), reader.items(epoch, chosen.tolist()), strict=True):
            again: list[Tensor] = []
            _plant(reader.collated([item], [row]), again)
            if not all(same(new[0], old[row]) for new, old in zip(again, self._columns, strict=True)):
                raise DataError(
                    f"Example {row} of the Dataset came out otherwise when it was read again in epoch {epoch + 1}, so what "
                    "was kept of it is not what the Dataset gives.",
                    expected="with cache: the same item every time",
                    fix="leave cache out; or take what is random out of the Dataset (--augment changes kept pictures)",
                )

    def _tie(self, leaves: list[Tensor]) -> Any:
        def tie(tree: Any) -> Any:
            return leaves[tree] if isinstance(tree, int) else [tie(inner) for inner in tree]

        return tie(self._tree)


def _plant(collated: Any, leaves: list[Tensor]) -> Any:
    """The tree of a collated batch, its tensors in `leaves`."""
    if isinstance(collated, (tuple, list)):
        return [_plant(part, leaves) for part in collated]
    if not isinstance(collated, Tensor):
        raise UsageError(
            f"The items of the Dataset hold {type(collated).__name__}s, which cache cannot keep.",
            expected="tensors, arrays and numbers",
            fix="leave cache out, or turn words into numbers in the Dataset",
        )
    leaves.append(collated)
    return len(leaves) - 1


def _words(found: list[tuple[Any, torch.dtype]]) -> str:
    return ", ".join(f"{tuple(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in found)
