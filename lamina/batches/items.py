"""Items of a user's Dataset -> one batch: read in keyed order, with generators of their own, and stacked.

In: a Dataset, an epoch, the examples of a batch. Out: what `default_collate` would make of the items, or a DataError
that names the example. Called in this process, or in each of the workers.

Where examples may be set aside (see `aside`), those that cannot be read, have another shape than most, or are not finite are
left out, and `bad` says which they are and why.

The random numbers of an item are a function of (seed, epoch, example): python's, numpy's and torch's generators are
seeded for each. That would cost 10 us an item, so it is only done for the generators that the Dataset draws from. Those
it left alone are looked at once a batch; where one was drawn from after all, the batch is read again, seeded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from lamina.batches.aside import reason
from lamina.batches.generators import GENERATORS, keeping_generators, seeding, states
from lamina.errors import DataError, LaminaError, ResourceError, out_of_memory, rows
from lamina.keyed import number


class Reader:
    """Reads the examples of a batch. What it learned of the Dataset changes what reading costs, never what is read."""

    def __init__(
        self, dataset: Any, seed: int, collate: Callable[[list[Any]], Any] = default_collate, lenient: bool = False
    ):
        """lenient: examples may be left out."""
        self.dataset, self.seed, self.collate, self.lenient = dataset, seed, collate, lenient
        self.bad: dict[int, str] = {}  # what was left out of the batch that was read last, and why
        self.cause: Exception | None = None  # of the last of them
        self.usual: Any = None  # the outline of most items
        self.wild: list[bool] = []  # which of their parts are not finite as a rule, such as masks
        self.many = _reads_many(dataset)
        self.drawn: set[str] | None = None  # the generators that items draw from; None: nothing was read yet
        self.reading = -1  # the example that is being read: who dies of it can be told

    def batch(self, epoch: int, indices: list[int]) -> Any:
        """Items as one collated batch; None where all were left out. The caller's generators are afterwards as they were."""
        items = self.items(epoch, indices)
        if not self.lenient:
            return self.collated(items, indices)
        good = self.left(indices)
        try:
            batch = self.collate(items) if items else None
        except (RuntimeError, TypeError, ValueError):
            batch = None
        if batch is None or not self.fits(batch):
            items, good = self.sift(items, good)
            batch = self.collated(items, good) if items else None
        return batch

    def left(self, indices: list[int]) -> list[int]:
        """Those that were not left out."""
        return [index for index in indices if index not in self.bad]

    def items(self, epoch: int, indices: list[int], look: Callable[[int], None] | None = None) -> list[Any]:
        """Items as the Dataset gives them. The caller's generators are afterwards as they were. look(example) is called
        before each."""
        self.bad = {}
        if self.many:
            with keeping_generators():
                return self._together(epoch, indices)
        if self.drawn is None:
            with keeping_generators():
                self.drawn = self._draws(epoch, indices)
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
        self.bad = {}
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
        if not drawn and look is None and not self.lenient:
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
                self._leave_out(index, error)
        return items

    def _leave_out(self, index: int, error: Exception) -> None:
        """An example that cannot be read, where that may be; else a DataError."""
        if not self.lenient or out_of_memory(error):
            raise self._unreadable(error) from error
        self.bad[index], self.cause = reason(error), error

    def _noted(self, indices: list[int]) -> Iterator[int]:
        for self.reading in indices:
            yield self.reading

    def _draws(self, epoch: int, indices: list[int]) -> set[str]:
        """Which generators an item draws from, as the first that can be read does: those it moves, and all where it comes
        out otherwise for another seed (it may ask for the seed alone: `torch.initial_seed()`)."""
        everything = set(GENERATORS)
        sow = seeding(everything)
        for index in self._noted(indices):
            try:
                sow(number(self.seed, "example", epoch, index))
                before = states()
                item = self.dataset[index]
                if drawn := self._moved(before):
                    return drawn
                sow(number(self.seed, "another", epoch, index))
                return set() if same(item, self.dataset[index]) else everything
            except Exception as error:
                if not self.lenient or out_of_memory(error):
                    raise self._unreadable(error) from error
        return set()

    def _together(self, epoch: int, indices: list[int]) -> list[Any]:
        try:
            return self._asked(epoch, indices)
        except Exception as error:
            if out_of_memory(error):
                raise _memory(f"{rows(indices).capitalize()} of the Dataset") from error
            if not self.lenient:
                raise DataError(
                    f"{rows(indices).capitalize()} of the Dataset could not be read together: "
                    f"{type(error).__name__}: {error}",
                    fix="mend or leave out these examples",
                ) from error
        for index in self._noted(indices):  # one at a time, to see which it is
            try:
                self._asked(epoch, [index])
            except Exception as error:
                self._leave_out(index, error)
        good = self.left(indices)
        return self._asked(epoch, good) if good else []

    def _asked(self, epoch: int, indices: list[int]) -> list[Any]:
        seeding(GENERATORS)(number(self.seed, "batch", epoch, indices[0]))
        return self.dataset.__getitems__(indices)  # type: ignore[no-any-return]

    def _unreadable(self, error: Exception) -> DataError | ResourceError:
        if out_of_memory(error):
            return _memory(f"Example {self.reading} of the Dataset")
        return DataError(
            f"Example {self.reading} of the Dataset could not be read: {type(error).__name__}: {error}",
            fix="mend or leave out this example",
        )

    # What most items are, and which are not so

    def learn(self, some: list[int]) -> None:
        """What most items are, from some of them, the same whoever reads. DataError where most cannot be read."""
        lenient, self.lenient, errors, items = self.lenient, True, [], []
        for index in some:
            items += self.items(0, [index])
            errors += [self._unreadable(self.cause)] if self.bad and self.cause else []
        self.lenient = lenient
        if len(errors) > len(items):
            raise errors[0] from self.cause
        self.usual = Counter(map(outline, items)).most_common(1)[0][0]
        alike = [_leaves(item) for item in items if outline(item) == self.usual]
        self.wild = [sum(map(_finite, part)) <= len(part) / 2 for part in zip(*alike, strict=True)]

    def fits(self, batch: Any) -> bool:
        """Whether all in a collated batch, or in the leaves of one, have the usual shape and are finite."""
        leaves, shapes = _leaves(batch), _shapes(self.usual)
        return len(leaves) == len(shapes) and all(
            (shape is None or leaf.shape[1:] == shape) and (wild or _finite(leaf))
            for leaf, shape, wild in zip(leaves, shapes, self.wild, strict=True)
        )

    def sift(self, items: list[Any], indices: list[int]) -> tuple[list[Any], list[int]]:
        """Items of the usual shape that are finite, and whose they are. The others are left out."""
        kept = []
        for item, index in zip(items, indices, strict=True):
            if outline(item) != self.usual:
                self.bad[index], self.cause = f"it is {_form(item)}, and most are of another shape", None
            elif not all(wild or _finite(leaf) for leaf, wild in zip(_leaves(item), self.wild, strict=True)):
                self.bad[index], self.cause = "it holds NaN or infinite values", None
            else:
                kept.append((item, index))
        return [item for item, _ in kept], [index for _, index in kept]

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


def outline(item: Any) -> Any:
    """The shapes of an item's parts, in their order: what all items of a Dataset must have in common. A number has ()."""
    if isinstance(item, (tuple, list)):
        return tuple(map(outline, item))
    if isinstance(item, (Tensor, np.ndarray, np.generic)):
        return torch.Size(item.shape)
    return torch.Size(()) if isinstance(item, (int, float)) else type(item).__name__


def _leaves(item: Any) -> list[Any]:
    return [leaf for part in item for leaf in _leaves(part)] if isinstance(item, (tuple, list)) else [item]


def _shapes(tree: Any) -> list[torch.Size | None]:
    """The shape of each leaf of an outline; None for what has none."""
    if isinstance(tree, tuple) and not isinstance(tree, torch.Size):
        return [shape for part in tree for shape in _shapes(part)]
    return [tree if isinstance(tree, torch.Size) else None]


def _finite(part: Any) -> bool:
    """Whether there is no NaN and no infinity in a tensor, array or number."""
    if isinstance(part, float):
        return math.isfinite(part)
    if isinstance(part, (np.ndarray, np.generic)):
        return part.dtype.kind not in "fc" or bool(np.isfinite(part).all())
    if not isinstance(part, Tensor) or not (part.is_floating_point() or part.is_complex()):
        return True
    with torch.no_grad():  # a sum is a tenth of the time of asking each; it may overflow where all are finite
        return math.isfinite(abs(part.sum().item())) or bool(torch.isfinite(part).all())


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
