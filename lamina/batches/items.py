"""Items of a user's Dataset -> one batch: read in keyed order, with generators of their own, and stacked.

In: a Dataset, an epoch, the examples of a batch. Out: what `default_collate` would make of the items, or a DataError
that names the example. Called in this process, or in each of the workers.

The random numbers of an item are a function of (seed, epoch, example): python's, numpy's and torch's generators are
seeded for each. That would cost 10 us an item, so it is only done for the generators that the Dataset draws from. Those
it left alone are looked at once a batch; where one was drawn from after all, the batch is read again, seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from lamina.batches.generators import GENERATORS, keeping_generators, seeding, states
from lamina.errors import DataError, LaminaError, ResourceError, rows
from lamina.keyed import number


class Reader:
    """Reads the examples of a batch. What it learned of the Dataset changes what reading costs, never what is read."""

    def __init__(self, dataset: Any, seed: int, collate: Callable[[list[Any]], Any] = default_collate):
        self.dataset, self.seed, self.collate = dataset, seed, collate
        self.many = _reads_many(dataset)
        self.drawn: set[str] | None = None  # the generators that items draw from; None: nothing was read yet
        self.reading = -1  # the example that is being read: who dies of it can be told

    def batch(self, epoch: int, indices: list[int]) -> Any:
        """Items as one collated batch."""
        return self.collated(self.items(epoch, indices), indices)

    def items(self, epoch: int, indices: list[int], look: Callable[[int], None] | None = None) -> list[Any]:
        """Items as the Dataset gives them. The caller's generators are afterwards as they were. look(example) is called
        before each."""
        if self.many:
            with keeping_generators():
                return self._together(epoch, indices)
        if self.drawn is None:
            with keeping_generators():
                self.drawn = self._draws(epoch, indices[0])
        before = states()
        try:
            items = self._each(epoch, indices, look)
        except LaminaError:
            drawn = self._moved(before)
            if drawn <= self.drawn:
                raise
        else:
            drawn = self._moved(before)
            if drawn <= self.drawn:
                return items
        self.drawn |= drawn
        try:
            return self._each(epoch, indices, look)
        finally:
            self._moved(before)

    @staticmethod
    def _moved(before: dict[str, Any]) -> set[str]:
        """The generators that were drawn from; they are put back."""
        found = {name for name, state in before.items() if GENERATORS[name].state() != state}
        for name in found:
            GENERATORS[name].put(before[name])
        return found

    def _each(self, epoch: int, indices: list[int], look: Callable[[int], None] | None) -> list[Any]:
        dataset, seed, drawn = self.dataset, self.seed, self.drawn
        if not drawn and look is None:
            try:
                return [dataset[index] for index in self._noted(indices)]
            except Exception as error:
                raise self._unreadable(error) from error
        sow = seeding(drawn or ())
        items = []
        for index in self._noted(indices):
            if look is not None:
                look(index)
            if drawn:
                sow(number(seed, "example", epoch, index))
            try:
                items.append(dataset[index])
            except Exception as error:
                raise self._unreadable(error) from error
        return items

    def _noted(self, indices: list[int]) -> Iterator[int]:
        for self.reading in indices:
            yield self.reading

    def _draws(self, epoch: int, index: int) -> set[str]:
        """Which generators an item draws from: those it moves, and all where it comes out otherwise for another seed
        (it may ask for the seed alone: `torch.initial_seed()`)."""
        everything = set(GENERATORS)
        sow = seeding(everything)
        self.reading = index
        try:
            sow(number(self.seed, "example", epoch, index))
            before = states()
            item = self.dataset[index]
            if drawn := self._moved(before):
                return drawn
            sow(number(self.seed, "another", epoch, index))
            return set() if same(item, self.dataset[index]) else everything
        except Exception as error:
            raise self._unreadable(error) from error

    def _together(self, epoch: int, indices: list[int]) -> list[Any]:
        seeding(GENERATORS)(number(self.seed, "batch", epoch, indices[0]))
        try:
            return self.dataset.__getitems__(indices)  # type: ignore[no-any-return]
        except MemoryError as error:
            raise _memory(f"{rows(indices).capitalize()} of the Dataset") from error
        except Exception as error:
            raise DataError(
                f"{rows(indices).capitalize()} of the Dataset could not be read together: "
                f"{type(error).__name__}: {error}",
                fix="mend or leave out these examples",
            ) from error

    def _unreadable(self, error: Exception) -> DataError | ResourceError:
        if isinstance(error, MemoryError):
            return _memory(f"Example {self.reading} of the Dataset")
        return DataError(
            f"Example {self.reading} of the Dataset could not be read: {type(error).__name__}: {error}",
            fix="mend or leave out this example",
        )

    def collated(self, items: list[Any], indices: list[int]) -> Any:
        try:
            return self.collate(items)
        except (RuntimeError, TypeError, ValueError) as error:  # different shapes, or nothing a tensor can hold
            raise self._no_batch(items, indices, error) from error

    def _no_batch(self, items: list[Any], indices: list[int], error: Exception) -> DataError:
        """Which examples differ from most, and how."""
        forms = [_form(item) for item in items]
        usual = max(forms, key=forms.count)
        others = [k for k, form in enumerate(forms) if form != usual]
        words = f"{rows(indices, 3).capitalize()} of the Dataset cannot be put into one batch: "
        if self.collate is default_collate and others:
            odd = others[0]
            more = f", and {len(others) - 1} more differ" if len(others) > 1 else ""
            words += f"example {indices[forms.index(usual)]} is {usual}, example {indices[odd]} is {forms[odd]}{more}"
        else:
            words += str(error)
        return DataError(
            words,
            expected="tensors, arrays or numbers, of one shape and type",
            fix="pad, resize or convert them in the Dataset; sequences of many lengths are learned from in a loop: "
            "lamina.learn(net, lamina.RaggedBatches(x, y), loss, optimizer)",
        )


def _memory(what: str) -> ResourceError:
    return ResourceError(
        f"{what} could not be read: the memory is used up.",
        fix="fewer --workers, a smaller --batch-size, or smaller items",
    )


def _reads_many(dataset: Any) -> bool:
    """Whether a Dataset reads a whole batch by itself. A `Subset` does so only where what it is a part of does."""
    while isinstance(dataset, Subset) and type(dataset).__getitems__ is Subset.__getitems__:
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")


def same(one: Any, other: Any) -> bool:
    """Whether two items are equal, bit by bit. What is no number or word and cannot tell is taken for different."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))
    if isinstance(one, (np.ndarray, np.generic)):
        equal = one.dtype == other.dtype and one.shape == other.shape
        return equal and not one.dtype.hasobject and one.tobytes() == other.tobytes()
    return one is other or (isinstance(one, (int, float, str, bytes)) and repr(one) == repr(other))


def _bits(values: Tensor) -> Tensor:
    """The bytes of a tensor, which are equal for equal NaNs too."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8)


def _form(item: Any) -> str:
    """What an item is, in words: '((3,) float32, int)'."""
    if isinstance(item, (tuple, list)):
        return f"({', '.join(map(_form, item))})"
    if isinstance(item, (Tensor, np.ndarray)):
        return f"{tuple(item.shape)} {str(item.dtype).removeprefix('torch.')}"
    return type(item).__name__


@dataclass(frozen=True)
class Leaf:
    """One part of an item: of this type and shape, always."""

    kind: type
    shape: tuple[int, ...]
    own: Any  # its own dtype, torch's or numpy's; None for a plain number
    dtype: torch.dtype  # of a batch of them

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape))


class Form:
    """What the items of a Dataset are, where all are alike: tensors, arrays and numbers of one shape and type, in a tuple
    or list, or tuples of those. Then a batch is written straight to where it belongs, as `default_collate` would make it."""

    def __init__(self, tree: Any, leaves: list[Leaf]):
        self.tree, self.leaves = tree, leaves  # tree: an index into leaves, or a list of trees

    @classmethod
    def of(cls, item: Any) -> Form | None:
        leaves: list[Leaf] = []

        def plant(part: Any) -> Any:
            if type(part) in (tuple, list) and part:
                return [plant(inner) for inner in part]
            leaves.append(_leaf(part))
            return len(leaves) - 1

        try:
            return cls(plant(item), leaves)
        except (TypeError, ValueError):  # of no number type, or of the bytes the other way round
            return None

    def room(self, count: int) -> list[Tensor]:
        """Memory for a batch of so many items: a tensor a leaf."""
        return [torch.empty((count, *leaf.shape), dtype=leaf.dtype) for leaf in self.leaves]

    def write(self, items: list[Any], into: list[Tensor]) -> bool:
        """Items into memory of that many; False where one is of another form."""
        if isinstance(self.tree, int):
            columns: list[Any] = [items]
        else:
            columns = []
            if not _sow(self.tree, items, columns):
                return False
        for leaf, column, out in zip(self.leaves, columns, into, strict=True):
            kind, shape, own = leaf.kind, leaf.shape, leaf.own
            if set(map(type, column)) != {kind}:
                return False
            if own is None:
                try:
                    out.copy_(torch.tensor(column, dtype=leaf.dtype))
                except (ValueError, OverflowError, RuntimeError):  # an int beyond 64 bits
                    return False
                continue
            if any(value.shape != shape or value.dtype != own for value in column):
                return False
            if kind is Tensor:
                if any(value.requires_grad for value in column):
                    return False
                torch.stack(column, out=out)
            elif shape:
                table = out.numpy()
                for k, value in enumerate(column):
                    table[k] = value
            else:
                out.numpy()[:] = column
        return True

    def tied(self, leaves: list[Tensor]) -> Any:
        """Leaves as the item had them: a list of parts."""

        def tie(tree: Any) -> Any:
            return leaves[tree] if isinstance(tree, int) else [tie(inner) for inner in tree]

        return tie(self.tree)


def _sow(tree: list[Any], items: list[Any], columns: list[Any]) -> bool:
    """Items of a tree as one column a leaf."""
    width = len(tree)
    if any(type(item) not in (tuple, list) or len(item) != width for item in items):
        return False
    for part, column in zip(tree, zip(*items, strict=True), strict=True):
        if isinstance(part, int):
            columns.append(column)
        elif not _sow(part, list(column), columns):
            return False
    return True


def _leaf(part: Any) -> Leaf:
    kind: Any = type(part)
    if kind is Tensor and part.layout is torch.strided and part.device.type == "cpu" and not part.requires_grad:
        return Leaf(Tensor, tuple(part.shape), part.dtype, part.dtype)
    if kind is np.ndarray or issubclass(kind, np.generic):
        return Leaf(kind, tuple(part.shape), part.dtype, torch.from_numpy(np.empty(0, part.dtype)).dtype)
    if kind in (int, float, bool):
        return Leaf(kind, (), None, {int: torch.int64, float: torch.float64, bool: torch.bool}[kind])
    raise TypeError
