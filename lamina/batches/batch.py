"""What a batch is, and what the engine asks of whoever makes them.

In: a column, or an item of a Dataset or loader. Out: a tensor, or (inputs, truth); the words all kinds of batches share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from lamina import mapped
from lamina.errors import DataError
from lamina.keyed import Key

Order = Callable[[int, int], Tensor]  # (seed, epoch) -> positions, int64


@dataclass
class Batch:
    """Tensors on the device, whose they are, and how many examples a mean over them is taken over."""

    inputs: tuple[Tensor, ...]  # each (B, ...)
    truth: Any  # (B, ...) tensor; None where there is no answer
    indices: Tensor  # (B,) int64: which examples, as positions in the whole table
    count: int  # B
    epoch: int = 0
    seed: int = 0
    known: bool = False  # all answers are there: none is negative, as the ones that a loss leaves out are
    lasting: bool = False  # the next batch of this size is cut into the same tensors
    prepare: Any = None  # the module that the first input still has to go through

    def ready(self) -> Batch:
        """The batch as a net takes it."""
        if self.prepare is None:
            return self
        inputs = (prepared(self.prepare, self.inputs[0]), *self.inputs[1:])
        return Batch(inputs, self.truth, self.indices, self.count, self.epoch, self.seed, self.known, self.lasting)

    def __iter__(self) -> Iterator[Any]:
        """`x, y = batch`, as a tutorial's loader gives it."""
        yield from self.inputs
        if self.truth is not None:
            yield self.truth

    @property
    def key(self) -> Key:
        return Key(self.seed, self.epoch, self.indices)


def prepared(prepare: Any, column: Tensor) -> Tensor:
    """Through a module that does not learn."""
    made: Tensor = prepare(column)
    return made.detach() if made.requires_grad else made


def columns_of(dataset: Any) -> tuple[tuple[Tensor, ...], Tensor | None] | None:
    """The tensors of a TensorDataset, whose rows may be cut at once, and of a Subset of one (`random_split`) which rows are
    its; None where the items of a Dataset may be something else."""
    if type(dataset) is Subset:
        whole, picked = columns_of(dataset.dataset), np.asarray(dataset.indices)
        if whole is None or picked.ndim != 1 or picked.dtype.kind not in "iu":
            return None
        rows = torch.from_numpy(picked.astype(np.int64))
        held = torch.arange(len(whole[0][0])) if whole[1] is None else whole[1]
        return whole[0], held[rows]  # which counts negative numbers from the end
    if type(dataset) is not TensorDataset:
        return None
    plain = all(type(c) is Tensor and c.layout == torch.strided and not c.requires_grad for c in dataset.tensors)
    return (dataset.tensors, None) if plain else None


class Walkable(Protocol):
    """What the engine asks of batches. `len` may raise TypeError where nobody knows it."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Epochs:
    """What all batches share whose epoch k is a function of k: nothing to save, and a pass of `for` is the next epoch."""

    _next_epoch = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        raise NotImplementedError(f"{type(self).__name__} must define epoch")

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


_WIDER = {"uint16": np.int32, "uint32": np.int64}  # torch holds these but cannot index them


def tensor(column: Any) -> Tensor:
    """A column as a tensor, without a copy where there need be none. DataError for what is no numbers."""
    if isinstance(column, Tensor):
        return column
    column = np.ascontiguousarray(column)
    if mapped.adopt(column) and column.dtype.name not in _WIDER and column.dtype.isnative:
        return mapped.as_tensor(column)
    column = column.astype(_WIDER.get(column.dtype.name, column.dtype.newbyteorder("=")), copy=False)
    try:
        return torch.from_numpy(column if column.flags.writeable else column.copy())
    except TypeError:
        example = f", such as {column.flat[0]!r}" if column.size else ""
        raise DataError(
            f"Values of type {column.dtype}{example}, cannot be put into a tensor.",
            expected="numbers",
            fix="for names of classes: numpy.unique(y, return_inverse=True)[1]",
        ) from None


def unpack(item: Any) -> tuple[tuple[Any, ...], Any]:
    """(inputs, truth) of what a Dataset or loader gives: the last part is the answer, the others are the inputs."""
    if isinstance(item, (tuple, list)) and item:
        inputs, truth = (tuple(item[:-1]), item[-1]) if len(item) > 1 else (tuple(item), None)
        if len(inputs) == 1 and isinstance(inputs[0], (tuple, list)):  # ((input, input), answer)
            inputs = tuple(inputs[0])
        return inputs, truth
    if isinstance(item, (Tensor, np.ndarray)):
        return (item,), None
    raise DataError(
        f"The Dataset gives items of type {type(item).__name__}.",
        expected="(input, answer), (input, input, ..., answer), or ((input, input), answer)",
        fix="wrap it in a Dataset whose __getitem__ returns such a tuple",
    )


def moved(
    item: Any, encode_truth: Callable[[Any], Tensor] | None, device: torch.device
) -> tuple[tuple[Tensor, ...], Any]:
    """A collated batch -> (inputs, encoded truth) on the device."""
    inputs, truth = unpack(item)
    inputs = tuple(tensor(part).to(device, non_blocking=True) for part in inputs)
    if truth is not None:
        truth = encode_truth(truth) if encode_truth is not None else tensor(truth)
        truth = truth.to(device, non_blocking=True)
    return inputs, truth
