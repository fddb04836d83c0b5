"""Examples -> batches.

In: encoded columns (compact tensors), a `Dataset` or a `DataLoader`. Out: `Batch`es on the device, in keyed order,
augmented and prepared. Called by the engine, which asks for `epoch(e, start=k)`; a tutorial's `for x, y in batches:`
works too, an epoch a pass.

Three kinds, one protocol (`epoch`, `len`, `state_dict`, `load_state_dict`):

    Batches          columns in memory, cut by one indexing operation; batch k of epoch e is found in O(1)
    DatasetBatches   a map-style Dataset, in the same keyed order, with a generator of its own for each example
    LoaderBatches    a DataLoader (or any iterable of (x, y)) exactly as its owner made it

What order and augmentation depend on is (seed, epoch, example), never the number of workers or the batch's neighbours.
Only a `LoaderBatches` has a state: the generators as they were when its epoch began, from which it is walked again.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from lamina.errors import DataError, LaminaError, UsageError, rows
from lamina.keyed import Key, number, permutation

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

    def __iter__(self) -> Iterator[Any]:
        """`x, y = batch`, as a tutorial's loader gives it."""
        yield from self.inputs
        if self.truth is not None:
            yield self.truth

    @property
    def key(self) -> Key:
        return Key(self.seed, self.epoch, self.indices)


class Walkable(Protocol):
    """What the engine asks of batches. `len` may raise TypeError where nobody knows it."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


_WIDER = {"uint16": np.int32, "uint32": np.int64}  # torch holds these but cannot index them


def tensor(column: Any) -> Tensor:
    """A column as a tensor, without a copy where there need be none. DataError for what is no numbers."""
    if isinstance(column, Tensor):
        return column
    column = np.ascontiguousarray(column)
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


class Batches:
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
        self.columns = tuple(tensor(column).to(self.device) for column in columns)
        self.truth = None if truth is None else tensor(truth).to(self.device)
        rows = len(self.columns[0])
        for column in (*self.columns[1:], *(() if self.truth is None else (self.truth,))):
            if len(column) != rows:
                raise DataError(
                    f"The columns have different lengths: {rows} and {len(column)}.",
                    expected="as many answers as inputs",
                )
        self.indices = None if indices is None else _checked(indices, rows)
        self.rows = rows if self.indices is None else len(self.indices)
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}.", expected="1 or more")
        if self.rows == 0:
            raise DataError("There are no examples to make batches of.", expected="at least one example")
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.order, self.augment, self.drop_last = order, augment, drop_last
        self.prepare = prepare.to(self.device) if prepare is not None else None
        self._next_epoch = 0
        self._length = self.rows if order is None else len(order(seed, 0))

    def __len__(self) -> int:
        """Batches an epoch."""
        full, rest = divmod(self._length, self.batch_size)
        return full if self.drop_last and full else full + (rest > 0)

    def positions(self, epoch: int) -> Tensor:
        """The rows of the table in the order of this epoch: int64, on the CPU."""
        if self.order is not None:
            order = self.order(self.seed, epoch)
        elif self.shuffle:
            order = permutation(self.seed, epoch, self.rows)
        else:
            order = torch.arange(self.rows)
        return order if self.indices is None else self.indices[order]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        positions = self.positions(epoch).to(self.device)
        for k in range(start, len(self)):
            yield self._cut(positions[k * self.batch_size : (k + 1) * self.batch_size], epoch)

    def _cut(self, indices: Tensor, epoch: int) -> Batch:
        inputs = tuple(column.index_select(0, indices) for column in self.columns)
        truth = None if self.truth is None else self.truth.index_select(0, indices)
        if self.augment is not None:
            inputs = self.augment(inputs, Key(self.seed, epoch, indices))
        if self.prepare is not None:
            with torch.no_grad():
                inputs = (self.prepare(inputs[0]), *inputs[1:])
        return Batch(inputs, truth, indices, len(indices), epoch, self.seed)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _checked(indices: Any, rows: int) -> Tensor:
    """Row numbers as int64 on the CPU. A mask of booleans would otherwise be read as rows 0 and 1."""
    column = np.asarray(indices)
    if column.dtype.kind not in "iu" and column.size:
        raise UsageError(
            f"indices holds values of type {column.dtype}.",
            expected="row numbers",
            fix="numpy.flatnonzero(mask)" if column.dtype.kind == "b" else "",
        )
    if column.size and not 0 <= column.min() <= column.max() < rows:
        raise UsageError(f"indices goes from {column.min()} to {column.max()}.", expected=f"rows 0 to {rows - 1}")
    return torch.from_numpy(column.astype(np.int64))


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


class _Keyed(Dataset):  # type: ignore[type-arg]
    """A user's Dataset whose random transforms draw from generators seeded by (seed, epoch, example).

    Indexed by (epoch, rows of a batch); the caller's generators are put back afterwards. What is wrong with the data is
    given back, not raised: torch's workers would bury it under their own traceback.
    """

    def __init__(self, dataset: Any, seed: int, collate: Callable[[list[Any]], Any]):
        self.dataset, self.seed, self.collate = dataset, seed, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, list[int]]) -> Any:
        epoch, indices = item
        with keeping_generators():
            try:
                return self._collated(self._many(epoch, indices), indices)
            except LaminaError as error:
                return error

    def _many(self, epoch: int, indices: list[int]) -> list[Any]:
        if not _reads_many(self.dataset):
            return [self._one(epoch, index) for index in indices]
        _seed_generators(number(self.seed, "batch", epoch, indices[0]))
        try:
            return self.dataset.__getitems__(indices)  # type: ignore[no-any-return]
        except Exception as error:
            raise DataError(
                f"{rows(indices).capitalize()} of the Dataset could not be read together: "
                f"{type(error).__name__}: {error}",
                fix="mend or leave out these examples",
            ) from error

    def _one(self, epoch: int, index: int) -> Any:
        _seed_generators(number(self.seed, "example", epoch, index))
        try:
            return self.dataset[index]
        except Exception as error:
            raise DataError(
                f"Example {index} of the Dataset could not be read: {type(error).__name__}: {error}",
                fix="mend or leave out this example",
            ) from error

    def _collated(self, items: list[Any], indices: list[int]) -> Any:
        try:
            return self.collate(items)
        except (RuntimeError, TypeError, ValueError) as error:  # different shapes, or nothing a tensor can hold
            raise DataError(
                f"{rows(indices, 3).capitalize()} of the Dataset cannot be put into one batch: {error}",
                expected="tensors, arrays or numbers, of one shape and type",
                fix="pad, resize or convert them in the Dataset",
            ) from error


def _reads_many(dataset: Any) -> bool:
    """Whether a Dataset reads a whole batch by itself. A `Subset` does so only where what it is a part of does."""
    while isinstance(dataset, Subset) and type(dataset).__getitems__ is Subset.__getitems__:
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


class keeping_generators:
    """The process' random generators (python, numpy, torch on the CPU) are afterwards as they were."""

    def __init__(self, active: bool = True):
        self.active = active

    def __enter__(self) -> None:
        self.state = generators() if self.active else None

    def __exit__(self, *_: Any) -> None:
        if self.state is not None:
            set_generators(self.state)


def generators() -> dict[str, Any]:
    """The state of the process' generators: python, numpy, torch."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "numpy": {
            "name": name, "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)), "position": int(position),
            "has_gauss": int(has_gauss), "cached": float(cached),
        },
        "python": {"version": version, "internal": torch.tensor(internal, dtype=torch.int64), "gauss": gauss},
    }  # fmt: skip


def set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    n = state["numpy"]
    np.random.set_state((n["name"], n["keys"].numpy().astype(np.uint32), n["position"], n["has_gauss"], n["cached"]))
    p = state["python"]
    random.setstate((p["version"], tuple(p["internal"].tolist()), p["gauss"]))


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


class DatasetBatches:
    """A map-style `Dataset` -> batches in keyed order.

    Items are (input, ..., truth); `__getitems__` is used where the Dataset has it (its random transforms are then keyed
    by the batch's first example instead of by each). `workers` processes read ahead; the batches are the same for any
    number. Transforms that draw from a generator of their own, instead of the process', are not keyed.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        indices: Any = None,
        order: Order | None = None,
        device: torch.device | str = "cpu",
        augment: Callable[[tuple[Tensor, ...], Key], tuple[Tensor, ...]] | None = None,
        prepare: nn.Module | None = None,
        workers: int = 0,
        encode_truth: Callable[[Any], Tensor] | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        drop_last: bool = False,
    ):
        self.dataset = _Keyed(dataset, seed, collate)
        positions = np.arange(len(dataset)) if indices is None else np.asarray(indices)
        if len(positions) == 0:
            raise DataError("The Dataset is empty.", expected="at least one example")
        # The order is that of `Batches` over the positions themselves, so a Dataset and its columns give the same batches.
        self._positions = Batches(
            torch.as_tensor(positions),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            order=order,
            drop_last=drop_last,
        )
        self.batch_size, self.seed, self.device, self.workers = batch_size, seed, torch.device(device), workers
        self.augment, self.encode_truth = augment, encode_truth
        self.prepare = prepare.to(self.device) if prepare is not None else None
        self._next_epoch = 0

    def __len__(self) -> int:
        return len(self._positions)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        plan = [batch.inputs[0] for batch in self._positions.epoch(epoch, start)]
        requests = [(epoch, indices.tolist()) for indices in plan]
        loader = DataLoader(
            self.dataset,
            sampler=requests,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_is,
            generator=torch.Generator(),  # the workers' base seed is drawn from here, not from the caller's generator
            pin_memory=self.device.type == "cuda",
        )
        for indices, item in zip(plan, loader, strict=True):
            if isinstance(item, LaminaError):
                raise item
            inputs, truth = _moved(item, self.encode_truth, self.device)
            indices = indices.to(self.device)
            if self.augment is not None:
                inputs = self.augment(inputs, Key(self.seed, epoch, indices))
            if self.prepare is not None:
                with torch.no_grad():
                    inputs = (self.prepare(inputs[0]), *inputs[1:])
            yield Batch(inputs, truth, indices, len(indices), epoch, self.seed)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _as_is(item: Any) -> Any:
    return item


def _moved(
    item: Any, encode_truth: Callable[[Any], Tensor] | None, device: torch.device
) -> tuple[tuple[Tensor, ...], Any]:
    """A collated batch -> (inputs, encoded truth) on the device."""
    inputs, truth = unpack(item)
    inputs = tuple(tensor(part).to(device, non_blocking=True) for part in inputs)
    if truth is not None:
        truth = encode_truth(truth) if encode_truth is not None else tensor(truth)
        truth = truth.to(device, non_blocking=True)
    return inputs, truth


class LoaderBatches:
    """A `DataLoader`, or any iterable of (x, ..., y), as its owner made it: his order, his generators, his workers.

    To resume in the middle of an epoch, the generators are put back to where they were when the epoch began and the
    loader is walked again up to the place: exact when its items depend on nothing but those generators. A batch's
    `indices` are places in that walk, since only the loader knows which examples it gives.
    """

    indices_are = "counted in the order your loader gave them"

    def __init__(
        self,
        loader: Any,
        *,
        device: torch.device | str = "cpu",
        prepare: nn.Module | None = None,
        encode_truth: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
    ):
        self.loader, self.device, self.encode_truth, self.seed = loader, torch.device(device), encode_truth, seed
        self.prepare = prepare.to(self.device) if prepare is not None else None
        self.batch_size = getattr(loader, "batch_size", None)
        # With several workers the last batches of a stream can be more, or fewer, than its len() says.
        self.exact = not isinstance(getattr(loader, "dataset", None), IterableDataset)
        self._began: dict[str, Any] | None = None  # the generators at the beginning of the epoch under way
        self._given = 0  # batches of this epoch handed out: one more than the steps took, where one is read ahead
        self._resume: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def _generator(self) -> torch.Generator | None:
        own = getattr(self.loader, "generator", None)
        return own if own is not None else getattr(getattr(self.loader, "sampler", None), "generator", None)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        now, given = generators(), max(start, self._resume.get("given", 0))
        if start and self._resume.get("began") is not None:
            self._set(self._resume["began"])
        self._began, self._given = self._get(), 0
        walk, place = iter(self.loader), 0
        ahead: list[Any] = []  # had been read but not learned from, when the state was saved
        for k in range(given if start else 0):
            item = next(walk, None)
            if item is None:
                raise DataError(
                    f"The loader gave {k} batches; the run had already learned from {start} in this epoch.",
                    fix="give the loader of the run, over the same data",
                )
            if k < start:
                place += len(unpack(item)[0][0])
            else:
                ahead.append(item)
        if start:
            set_generators(now)
        for item in itertools.chain(ahead, walk):
            self._given = max(start, self._given) + 1
            inputs, truth = _moved(item, self.encode_truth, self.device)
            if self.prepare is not None:
                with torch.no_grad():
                    inputs = (self.prepare(inputs[0]), *inputs[1:])
            count = len(inputs[0])
            indices = torch.arange(place, place + count, device=self.device)
            place += count
            yield Batch(inputs, truth, indices, count, epoch, self.seed)
        self._given = 0

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def _get(self) -> dict[str, Any]:
        state, own = generators(), self._generator()
        return state if own is None else {**state, "own": own.get_state()}

    def _set(self, state: dict[str, Any]) -> None:
        set_generators(state)
        own = self._generator()
        if own is not None and "own" in state:
            own.set_state(state["own"])

    def state_dict(self) -> dict[str, Any]:
        own = self._generator()
        return {"began": self._began, "given": self._given, "own": None if own is None else own.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resume = dict(state)
        own = self._generator()
        if own is not None and state.get("own") is not None:
            own.set_state(state["own"])


def walkable(batches: Any, device: torch.device | str = "cpu") -> Any:
    """Batches for the engine from what a user brings: ours as they are, a DataLoader or an iterable wrapped."""
    if hasattr(batches, "epoch") and callable(batches.epoch):
        return batches
    if isinstance(batches, Dataset):
        return over(batches, device=device)
    columns = batches if isinstance(batches, tuple) else (batches,)
    if all(isinstance(column, (Tensor, np.ndarray)) for column in columns):
        raise UsageError(
            "batches holds whole columns, not batches.", expected="(x, y) in batches", fix="lamina.Batches(x, y)"
        )
    if isinstance(batches, Sequence) or hasattr(batches, "__iter__"):
        return LoaderBatches(batches, device=device)
    raise UsageError(
        f"batches is a {type(batches).__name__}.",
        expected="lamina.Batches, a DataLoader, a Dataset, or an iterable of (x, y)",
    )


def over(inputs: Any, truth: Any = None, **options: Any) -> Batches | DatasetBatches | LoaderBatches:
    """Batches of whichever kind fits `inputs`: columns, a Dataset, an IterableDataset or a DataLoader."""
    encode_truth, workers = options.pop("encode_truth", None), options.pop("workers", 0)
    if isinstance(inputs, (tuple, Tensor, np.ndarray)):
        return Batches(inputs, truth, **options)
    if isinstance(inputs, (DataLoader, IterableDataset)):
        for name in ("augment", "order", "drop_last"):
            if options.get(name):
                raise UsageError(
                    f"{'balance' if name == 'order' else name} is asked for a {type(inputs).__name__}, which gives the "
                    "batches it likes.",
                    expected="columns or a map-style Dataset, whose examples are read one by one",
                    fix="do it in your Dataset or loader",
                )
        if isinstance(inputs, IterableDataset):
            inputs = DataLoader(inputs, batch_size=options.get("batch_size", 64), num_workers=workers)
        return LoaderBatches(
            inputs, encode_truth=encode_truth, **{k: options[k] for k in ("device", "prepare", "seed") if k in options}
        )
    return DatasetBatches(inputs, workers=workers, encode_truth=encode_truth, **options)
