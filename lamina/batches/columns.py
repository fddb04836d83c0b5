"""Columns in memory -> batches, each cut by one indexing operation; and an order in which classes come equally often.

Batch k of epoch e is found in O(1): its rows are a slice of the keyed permutation of (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lamina import mapped
from lamina.batches.batch import Batch, Epochs, Order, tensor
from lamina.errors import DataError, UsageError
from lamina.joined import Joined
from lamina.keyed import Key, number, permutation

_TOGETHER = 1 << 16  # row numbers


class Batches(Epochs):
    """Columns in memory -> batches in keyed order.

    inputs: a tensor or array (N, ...), or a tuple of them; truth: (N, ...) or None. `indices` picks the rows (a split);
    `order` replaces the keyed permutation (see `balanced`). `augment(inputs, key)` and the module `prepare` run on the
    device, in this order. The last batch of an epoch is short; `drop_last` leaves it out, unless it is the only one.
    """

    def __init__(
        self,
        inputs: Any,
        truth: Any = None,
        *,
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        indices: Any = None,
        order: Order | None = None,
        device: torch.device | str = "cpu",
        augment: Callable[[tuple[Tensor, ...], Key], tuple[Tensor, ...]] | None = None,
        prepare: nn.Module | None = None,
        drop_last: bool = False,
    ):
        self.device = torch.device(device)
        columns = inputs if isinstance(inputs, tuple) else (inputs,)
        self._first = 0  # the number of the first row that is held here
        if any(isinstance(column, Joined) for column in columns):
            columns, truth, self._first = _narrowed(columns, truth, indices)
        self.columns = tuple(tensor(column).to(self.device) for column in columns)
        self.truth = None if truth is None else tensor(truth).to(self.device)
        rows = len(self.columns[0])
        for column in (*self.columns[1:], *(() if self.truth is None else (self.truth,))):
            if len(column) != rows:
                raise DataError(
                    f"The columns have different lengths: {rows} and {len(column)}.",
                    expected="as many answers as inputs",
                )
        self.indices = None if indices is None else _checked(indices, self._first, rows)
        self.rows = rows if self.indices is None else len(self.indices)
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}.", expected="1 or more")
        if self.rows == 0:
            raise DataError("There are no examples to make batches of.", expected="at least one example")
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.order, self.augment, self.drop_last = order, augment, drop_last
        self.prepare = None if prepare is None or isinstance(prepare, nn.Identity) else prepare.to(self.device)
        self._known = self.truth is not None and not self.truth.is_floating_point() and bool(torch.all(self.truth >= 0))
        self.reuse = False  # cut every batch into the same memory, and leave `prepare` to the loop that set this
        self.views = False  # rows that follow one another are no copy: for a loop that writes to none of its inputs
        # By size of a batch: each column, and what is cut of it.
        self._memory: dict[int, list[tuple[Tensor, Tensor]]] = {}
        # Of the epoch to come, where it is known: number, seed, `indices`, and its order.
        self._next: tuple[int, int, Tensor | None, Tensor] | None = None
        self._length = self.rows if order is None else len(order(seed, 0))

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(self._length, self.batch_size)
        return full if self.drop_last and full else full + (rest > 0)

    def positions(self, epoch: int) -> Tensor:
        """The rows of the table in the order of this epoch: int64, on the CPU."""
        if self.order is not None:
            order = self.order(self.seed, epoch)
            return order if self.indices is None else self.indices[order]
        if not self.shuffle:
            return torch.arange(self.rows) if self.indices is None else self.indices
        order = permutation(self.seed, epoch, self.rows)
        if self.indices is not None:
            for part in order.split(_TOGETHER):  # in place: an order of many examples is large
                part.copy_(self.indices.index_select(0, part))
        return order

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        positions = self._positions_there(epoch)
        size, on_disk = self.batch_size, [column for column in self._table() if mapped.is_mapped(column)]
        for k in range(start, len(self)):
            batch = self._cut(positions[k * size : (k + 1) * size], epoch)
            if k == len(self) - 1 and self.device.type != "cpu" and self._is_keyed():  # which has batches to work on
                self._next = (epoch + 1, self.seed, self.indices, self._positions_there(epoch + 1))
            if on_disk:
                mapped.soon(on_disk, positions[(k + 1) * size : (k + 2) * size])
            yield batch

    def _positions_there(self, epoch: int) -> Tensor:
        """`positions`, on the device."""
        found, self._next = self._next, None
        if found is not None and self._is_keyed():
            of, seed, indices, positions = found
            if (of, seed) == (epoch, self.seed) and indices is self.indices:
                return positions
        return self.positions(epoch).to(self.device)

    def _is_keyed(self) -> bool:
        """Whether an order may be made before its epoch begins: one of the caller's may not."""
        return self.shuffle and self.order is None

    def _cut(self, indices: Tensor, epoch: int) -> Batch:
        rows = indices - self._first if self._first else indices
        cut = self._cut_again(rows) if self.reuse else self._cut_anew(rows)
        inputs, truth = (tuple(cut), None) if self.truth is None else (tuple(cut[:-1]), cut[-1])
        if self.augment is not None:
            inputs = self.augment(inputs, Key(self.seed, epoch, indices))
        lasting = self.reuse and self.augment is None
        batch = Batch(inputs, truth, indices, len(indices), epoch, self.seed, self._known, lasting, self.prepare)
        return batch if self.reuse else batch.ready()

    def _table(self) -> list[Tensor]:
        return [*self.columns, *(() if self.truth is None else (self.truth,))]

    def _cut_anew(self, indices: Tensor) -> list[Tensor]:
        take = mapped.seen if self.views else mapped.take
        return [take(column, indices) for column in self._table()]

    def _cut_again(self, indices: Tensor) -> list[Tensor]:
        count = len(indices)
        memory = self._memory.get(count)
        if memory is None:
            memory = [(column, column.new_empty((count, *column.shape[1:]))) for column in self._table()]
            self._memory[count] = memory
        return [mapped.take(column, indices, out=part) for column, part in memory]


def _narrowed(columns: tuple[Any, ...], truth: Any, indices: Any) -> tuple[tuple[Any, ...], Any, int]:
    """Of columns that came in several arrays the one that has all these rows, and the number of its first row."""
    held = columns[0].narrowed(np.asarray(indices)) if indices is not None and isinstance(columns[0], Joined) else None
    if held is None:
        return tuple(torch.cat(column.parts) if isinstance(column, Joined) else column for column in columns), truth, 0
    rows = slice(held[1], held[1] + len(held[0]))
    return tuple(column[rows] for column in columns), None if truth is None else truth[rows], held[1]


def _checked(indices: Any, first: int, rows: int) -> Tensor:
    """Row numbers as int64 on the CPU. A mask of booleans would otherwise be read as rows 0 and 1."""
    column = np.asarray(indices)
    if column.dtype.kind not in "iu" and column.size:
        raise UsageError(
            f"indices holds values of type {column.dtype}.",
            expected="row numbers",
            fix="numpy.flatnonzero(mask)" if column.dtype.kind == "b" else "",
        )
    if column.size and not first <= column.min() <= column.max() < first + rows:
        raise UsageError(
            f"indices goes from {column.min()} to {column.max()}.", expected=f"rows {first} to {first + rows - 1}"
        )
    return mapped.as_tensor(column.astype(np.int64, copy=False))


def balanced(classes: Any, how: str) -> Order:
    """An order in which every class comes equally often.

    classes (N,): the class number of each row. `over` repeats the small classes up to the size of the largest: whole
    keyed permutations, so no example comes twice before all have come once. `under` draws from the large classes as many
    as the smallest has, others in every epoch.
    """
    numbers = tensor(classes).long().cpu()
    members = [torch.nonzero(numbers == k).flatten() for k in torch.unique(numbers).tolist()]
    sizes = [len(member) for member in members]
    if how not in ("over", "under"):
        raise UsageError(f"balance is {how!r}.", expected="over, under, weights or none")
    wanted = max(sizes) if how == "over" else min(sizes)

    def order(seed: int, epoch: int) -> Tensor:
        parts = []
        for k, member in enumerate(members):
            rounds = -(-wanted // len(member))
            passes = [
                member[permutation(number(seed, "class", k), epoch * rounds + r, len(member))] for r in range(rounds)
            ]
            parts.append(torch.cat(passes)[:wanted])
        together = torch.cat(parts)
        return together[permutation(seed, epoch, len(together))]

    return order
