"""A map-style `Dataset` -> batches, in the same keyed order as columns, with random numbers of its own for each example.

The items are read here (`items`), by processes that read ahead (`workers`), or not at all: out of what the first epoch
kept (`kept`). The batches are the same each way.
"""

from __future__ import annotations

import io
import math
import os
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from lamina import processes
from lamina.batches import workers
from lamina.batches.aside import SetAside, without
from lamina.batches.batch import Batch, Epochs, Order, moved, tensor, unpack
from lamina.batches.columns import Batches
from lamina.batches.items import Reader
from lamina.batches.kept import Kept
from lamina.errors import DataError, LaminaError, UsageError
from lamina.keyed import Key

WORTH = 0.5  # seconds an epoch that reading takes, from which on workers are started unasked
STEP = 5e-4  # seconds: the shortest step that reading should keep up with
MOST = 16  # workers that are started unasked
TRIED = 5  # examples from which it is learned what most are
Read = tuple[Any, dict[int, str]]  # a collated batch, None where nothing is left; what was left out, and why


class DatasetBatches(Epochs):
    """A map-style `Dataset` -> batches in keyed order.

    Items are (input, ..., truth); `__getitems__` is used where the Dataset has it (its random transforms are then keyed
    by the batch's first example instead of by each). `workers` processes read ahead; the batches are the same for any
    number, and None chooses it by measuring (`workers` and `why` say what was chosen). Transforms that draw from a
    generator of their own, instead of the process', are not keyed. `cache`: the Dataset gives the same item every time,
    so what the first epoch read is kept; `memory`: bytes above which that lies on the disk. `aside`: examples that cannot
    be used are left out of their batches and noted there; without it the first of them raises DataError.
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
        workers: int | None = None,
        encode_truth: Callable[[Any], Tensor] | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        drop_last: bool = False,
        cache: bool | Kept = False,
        memory: int | None = None,
        aside: SetAside | None = None,
    ):
        self.reader, self.aside = Reader(dataset, seed, collate, lenient=aside is not None), aside
        self.rows = np.arange(len(dataset)) if indices is None else np.asarray(indices)
        if len(self.rows) == 0:
            raise DataError("The Dataset is empty.", expected="at least one example")
        if workers is not None and workers < 0:
            raise UsageError(f"workers is {workers}.", expected="0 or more, or None to have it chosen")
        if cache and collate is not default_collate:
            raise UsageError(
                "cache keeps items as columns, and a collate of your own makes other batches of them.",
                fix="leave one of them out",
            )
        # The order is that of `Batches` over the positions themselves, so a Dataset and its columns give the same batches.
        self._options: dict[str, Any] = {
            "batch_size": batch_size, "shuffle": shuffle, "seed": seed, "order": order, "drop_last": drop_last,
        }  # fmt: skip
        self._positions = Batches(torch.as_tensor(self.rows), **self._options)
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.workers, self.why = workers, "" if workers is None else "yours"
        self.augment, self.encode_truth = augment, encode_truth
        self.prepare = prepare.to(self.device) if prepare is not None else None
        self.kept = Kept(len(dataset), memory) if cache is True else cache or None
        self.reuse = False  # see `Batches`
        self.columns: Any = None  # batches of what was kept, when all of it is
        self._pool: list[tuple[Any, Any]] = []  # the workers, and what the Dataset was when they were made
        self._ending = weakref.finalize(self, _close, self._pool)

    def __len__(self) -> int:
        return len(self._positions)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        if self.kept is not None:
            self.kept.try_claim(self.reader, epoch, self._usable(self.rows))
            if (columns := self._whole(self.kept)) is not None:
                columns.reuse = self.reuse
                yield from columns.epoch(epoch, start)
                return
        order = self._positions.columns[0][self._positions.positions(epoch)]
        plan = [self._usable(part.numpy()) for part in order.split(self.batch_size)]
        if not self._options["shuffle"]:  # to measure with: nothing is learned from twice
            plan = [part for part in plan if len(part)]
        plan = [part if len(part) else self._instead(order) for part in plan][start : len(self)]
        wanted = plan if self.kept is None else self.kept.missing(plan)
        read = self._read(epoch, [part for part in wanted if len(part)])
        for rows, new in zip(plan, wanted, strict=True):
            item, bad = next(read) if len(new) else (None, {})
            rows, new = without(rows, bad), without(new, bad)
            while not len(rows) and self._options["shuffle"]:
                rows = new = self._instead(order)
                item, bad = self._here(epoch, rows)
                rows = new = without(rows, bad)
            if self.kept is not None:
                if len(new):
                    self.kept.store(new, item)
                rows = rows[self.kept.have[rows]]
                item = self.kept.cut(rows)
            if not len(rows):
                continue
            inputs, truth = moved(item, self.encode_truth, self.device)
            indices = torch.from_numpy(rows).to(self.device)
            if self.augment is not None:
                inputs = self.augment(inputs, Key(self.seed, epoch, indices))
            if self.prepare is not None:
                with torch.no_grad():
                    inputs = (self.prepare(inputs[0]), *inputs[1:])
            yield Batch(inputs, truth, indices, len(indices), epoch, self.seed)

    def _usable(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.aside is None else self.aside.without(rows)

    def _instead(self, order: Tensor) -> np.ndarray:
        """The first sound example of an epoch, for a batch of which nothing is left."""
        return self._usable(order.numpy())[:1]

    def _read(self, epoch: int, plan: list[np.ndarray]) -> Iterator[Read]:
        """The items of each batch. What is found wrong is noted when the batch is taken, so that it does not depend on how
        far ahead somebody reads."""
        if self.aside is not None and self.reader.usual is None:
            self.reader.learn(self.rows[:: max(1, len(self.rows) // TRIED)][:TRIED].tolist())
        if self.workers is None and plan:  # whoever wants a single batch waits for no workers
            yield self._here(epoch, plan[0])
            plan = plan[1:]
            self.choose_workers()
        if self.workers and plan:
            for item, bad in self._read_ahead(epoch, plan):
                if bad and self.aside is not None:
                    self.aside.add(bad)
                yield item, bad
        else:
            for rows in plan:
                yield self._here(epoch, rows)

    def _here(self, epoch: int, rows: np.ndarray) -> Read:
        """A batch that is read by this process."""
        item, bad = self.reader.batch(epoch, rows.tolist()), self.reader.bad
        if bad and self.aside is not None:
            self.aside.add(bad, self.reader.cause)
        return item, bad

    def _read_ahead(self, epoch: int, plan: list[np.ndarray]) -> Iterator[Read]:
        assert self.workers
        if not processes.CAN:
            yield from _loaded(self.reader, epoch, plan, self.workers)
            return
        now = traits(self.reader.dataset)
        if self._pool and (self._pool[0][0].closed or self._pool[0][1] != now):  # the Dataset was changed: new copies
            _close(self._pool)
        if self._pool and self._pool[0][0].busy:  # two epochs are walked at once: this one has workers of its own
            extra = self._start()
            try:
                yield from extra.read(epoch, plan)
            finally:
                extra.close()
            return
        if not self._pool:
            self._pool.append((self._start(), now))
        yield from self._pool[0][0].read(epoch, plan)

    def _start(self) -> workers.Readers:
        return workers.Readers(self.reader, self.workers or 1, self.batch_size, self._positions._length)

    def choose_workers(self, step: float | None = None) -> int:
        """How many processes read ahead, where nobody said: measured on a few items, as many as keep up with steps of so
        many seconds, never more than there are cores."""
        if self.workers is None:
            self.workers, self.why = self._chosen(step)
        return self.workers

    def _chosen(self, step: float | None) -> tuple[int, str]:
        cores = processes.cores()
        if cores < 2 or not processes.can():
            return 0, "one core" if cores < 2 else "this process cannot be copied"
        few = [int(row) for row in self.rows[:: max(1, len(self.rows) // 18)][:18]]
        try:
            self.reader.items(0, few[:1])  # the first may open files, and import
            before = _places()
            seconds = self._seconds(few[1:2] or few)
            if seconds < 2e-3 and len(few) > 2:
                seconds = self._seconds(few[2:])
        except LaminaError:
            return 0, "a first item could not be read"  # whoever walks to it is told which, and why
        words = f"an item takes {1e6 * seconds:,.0f} us"
        count = self._positions._length
        moved = _places().items() - before.items()  # a file that another thread closed meanwhile tells nothing
        if moved or _holds_a_file(self.reader.dataset):
            return 0, "the Dataset reads from a file that it holds open, which processes cannot share"
        if seconds * count < WORTH:
            return 0, f"{words}, {count:,} of them {seconds * count:.2g} s"
        number = min(cores, MOST, max(1, math.ceil(seconds * self.batch_size / max(step or 0, STEP))))
        return (
            number,
            f"{words}{f', a step with {self.batch_size} of them {1e3 * step:.3g} ms' if step else ''}; {cores} cores",
        )

    def _seconds(self, rows: list[int]) -> float:
        began = time.perf_counter()
        self.reader.items(0, rows)
        return (time.perf_counter() - began) / len(rows)

    def _whole(self, kept: Kept) -> Any:
        """What was kept as columns, when all of it is here: later epochs are cut like any columns."""
        if self.columns is None and (batch := kept.whole(self.rows)) is not None:
            _close(self._pool)  # nothing is left to read
            inputs, truth = unpack(batch)
            rows = torch.from_numpy(self.rows)
            if truth is not None:
                some = truth[rows]
                some = self.encode_truth(some) if self.encode_truth is not None else tensor(some)
                truth = torch.empty((len(truth), *some.shape[1:]), dtype=some.dtype)
                truth[rows] = some
            self.columns = Batches(
                inputs, truth, indices=self.rows, device=self.device, augment=self.augment, prepare=self.prepare,
                **self._options,
            )  # fmt: skip
        return self.columns

    def close(self) -> None:
        """End the workers. They end by themselves when nobody holds these batches any more."""
        _close(self._pool)


def _close(pool: list[tuple[Any, Any]]) -> None:
    while pool:
        pool.pop()[0].close()


def traits(dataset: Any, most: int = 2000) -> list[Any]:
    """What can be seen cheaply of a Dataset's state: its numbers and words, which objects it holds, and whether torch's
    tensors were written to. Workers are copies: when this changes between two epochs, new ones are made."""
    found: list[Any] = []
    seen: set[int] = set()
    left = [dataset]
    while left and len(found) < most:
        thing = left.pop()
        if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
            found.append(repr(thing) if isinstance(thing, float) else thing)
        elif id(thing) not in seen:
            seen.add(id(thing))
            found.append((id(thing), thing._version if isinstance(thing, Tensor) and not thing.is_inference() else 0))
            if isinstance(thing, (list, tuple, dict)):
                found.append(len(thing))
                if len(thing) <= 64:
                    left += thing.values() if isinstance(thing, dict) else thing
            elif not isinstance(thing, (Tensor, np.ndarray, type)):
                left += list(getattr(thing, "__dict__", {}).values())
    return found


def _places() -> dict[str, tuple[str, str]]:
    """Which plain files are open for reading, and where each stands: a Dataset that moves such a place must not be copied.
    Pipes, logs that are only written to, and standard input and output belong to others."""
    found = {}
    for descriptor in Path("/proc/self/fd").glob("*"):
        try:
            place, flags = Path(f"/proc/self/fdinfo/{descriptor.name}").read_text().split("\n")[:2]
            reads = int(flags.split()[1], 8) & os.O_ACCMODE != os.O_WRONLY
            if reads and int(descriptor.name) > 2 and descriptor.is_file():
                found[descriptor.name] = str(descriptor.readlink()), place
        except OSError:  # the one that lists them
            continue
    return found


def _holds_a_file(dataset: Any) -> bool:
    """Whether a Dataset has an open file among its attributes."""
    held = list(getattr(dataset, "__dict__", {}).values())
    return any(isinstance(thing, io.IOBase) and not thing.closed for thing in held)


def _loaded(reader: Reader, epoch: int, plan: list[np.ndarray], count: int) -> Iterator[Read]:
    """The same with a DataLoader's workers, on systems where ours cannot be."""
    loader = DataLoader(
        _Asked(reader),
        sampler=[(epoch, rows.tolist()) for rows in plan],  # type: ignore[arg-type]
        batch_size=None,
        num_workers=count,
        collate_fn=_as_is,
        generator=torch.Generator(),  # the workers' base seed is drawn from here, not from the caller's generator
    )
    for item in loader:
        if isinstance(item, LaminaError):
            raise item
        yield item


class _Asked(Dataset):  # type: ignore[type-arg]
    """Whole batches by (epoch, rows). What is wrong with the data is given back, not raised: torch's workers would bury it
    under their own traceback."""

    def __init__(self, reader: Reader):
        self.reader = reader

    def __getitem__(self, item: tuple[int, list[int]]) -> Any:
        try:
            return self.reader.batch(*item), self.reader.bad
        except LaminaError as error:
            return error


def _as_is(item: Any) -> Any:
    return item
