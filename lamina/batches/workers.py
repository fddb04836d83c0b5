"""Processes that read a user's Dataset ahead.

In: a `Reader` and the plan of an epoch (which examples a batch). Out: the batches of the plan, in its order. Each worker
is a copy of this process, made once and kept from epoch to epoch; it reads whole batches, whichever is next, and writes
them straight into memory it shares with this process, so only a few numbers go through a pipe. Items that are not all of
one form are sent as they are.

Memory is bounded: a worker holds `AHEAD` batches at most, read or being read. One that dies, or is `TIMEOUT` seconds at one
example while it is waited for, is replaced, and another reads the same batches; where one example ends several, it is named.
Elsewhere than where processes can be copied, a DataLoader does it.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.data._utils import worker as torch_worker

from lamina import errors, processes
from lamina.batches.items import Form, Leaf, Reader, outline
from lamina.errors import LaminaError, ResourceError

AHEAD = 3  # batches a worker holds
TIMEOUT = 300.0  # seconds at one example, from which on a worker hangs
DEATHS = 3  # workers that one example may end
_WALK, _AT = 0, 1  # places in the memory all share: the walk under way (0: the end), then what each worker is reading


class Readers:
    """Worker processes round one Dataset. `read` may be left in the middle; the next one starts afresh."""

    def __init__(self, reader: Reader, count: int, batch_size: int, most: int):
        """count: processes; batch_size, most: examples a batch and an epoch at most."""
        self.reader, self.count, self.batch_size, self.most = reader, count, batch_size, most
        self.closed = False
        self.busy = False  # somebody walks: these workers serve one walk at a time
        self._walk, self._owner = 0, os.getpid()
        self._shared = np.frombuffer(mmap.mmap(-1, 8 * (_AT + count)), np.int64)
        self._order = np.frombuffer(mmap.mmap(-1, 8 * max(1, most)), np.int64)
        self._workers: list[_Worker] = []
        try:
            for number in range(count):
                self._workers.append(_Worker(self, number))
        except OSError as error:
            self.close()
            raise ResourceError(
                f"Worker {number + 1} of {count} could not be started: {error.strerror or error}.",
                fix="fewer --workers",
            ) from error

    def read(self, epoch: int, plan: list[np.ndarray]) -> Iterator[tuple[Any, dict[int, str]]]:
        """Collated batches of the examples in `plan`, in its order, and what was left out of each (see `items`)."""
        ends = np.cumsum([0, *map(len, plan)])
        self._walk += 1
        self._shared[_WALK] = self._walk
        self._order[: ends[-1]] = np.concatenate(plan)
        self.busy, self._plan, self._epoch, self._ends = True, plan, epoch, ends
        self._next = 0
        self._ready: dict[int, tuple[_Worker, int | None, Any, dict[int, str]]] = {}
        self._deaths: dict[int, float] = {}  # by example
        try:
            for _ in range(AHEAD):  # in turn, so that the first batches are read side by side
                for worker in self._workers:
                    self._ask(worker)
            for k in range(len(plan)):
                while k not in self._ready:
                    self._receive()
                worker, slot, what, bad = self._ready.pop(k)
                batch = what if slot is None else worker.take(slot, sum(index not in bad for index in plan[k].tolist()))
                if slot is not None:
                    worker.free.append(slot)
                    self._ask(worker)
                yield batch, bad
        except GeneratorExit:
            self._shared[_WALK] = self._walk = self._walk + 1  # what is under way is no longer wanted
            raise
        except BaseException:
            self.close()
            raise
        finally:
            for worker, slot, *_ in self._ready.values():
                if slot is not None:
                    worker.free.append(slot)
            self.busy = False

    def _ask(self, worker: _Worker) -> None:
        """The next batch of the plan, from a worker that has room for it."""
        if self._next < len(self._plan) and worker.free and worker in self._workers:
            self._next += 1
            self._send(worker, self._next - 1)

    def _send(self, worker: _Worker, k: int) -> None:
        slot = worker.free.pop()
        worker.asked[slot] = self._walk, k
        with contextlib.suppress(OSError):  # it has died, as will be seen
            worker.pipe.send((self._walk, self._epoch, k, int(self._ends[k]), int(self._ends[k + 1]), slot))

    def _receive(self) -> None:
        """Wait for workers, and take what they say."""
        waited = {worker.pipe: worker for worker in self._workers}
        ends = {worker.process.sentinel: worker for worker in self._workers}
        found = connection.wait([*waited, *ends], 1.0)
        dead = {ends[end] for end in found if end in ends and not ends[end].pipe.poll()}
        for pipe in found:
            if pipe in waited:
                try:
                    heard = pipe.recv()
                except (EOFError, OSError):
                    dead.add(waited[pipe])
                else:
                    self._hear(waited[pipe], *heard)
        for worker in dead:
            self._replace(worker, worker.death())
        if not found:  # a second went by in which nobody said anything
            for worker in [worker for worker in self._workers if worker.hangs()]:
                self._replace(worker, worker.hanging(), weight=DEATHS / 2)

    def _replace(self, worker: _Worker, why: ResourceError, weight: float = 1) -> None:
        """Another worker for one that has died, with the batches it was asked for. ResourceError where its example has ended
        as many as may be."""
        example = worker.at
        worker.end()
        self._deaths[example] = self._deaths.get(example, 0.0) + weight
        if self._deaths[example] >= DEATHS:
            raise why
        warnings.warn(f"{why.what} Another reads its batches again.", RuntimeWarning, stacklevel=2)
        new = _Worker(self, worker.number)
        self._workers[self._workers.index(worker)] = new
        for walk, k in sorted(worker.asked.values()):
            if walk == self._walk:
                self._send(new, k)
        for _ in range(len(new.free)):
            self._ask(new)

    def _hear(self, worker: _Worker, walk: int, k: int, slot: int, kind: str, what: Any, bad: dict[int, str]) -> None:
        worker.asked.pop(slot, None)
        if kind == "failed" and walk == self._walk:
            name, *said = what
            if name is None:
                raise RuntimeError(f"A worker failed where it should not have:\n{said[0]}")
            raise getattr(errors, name)(said[0], expected=said[1], fix=said[2])
        if kind == "form" and what is not None:
            worker.form = Form(what[0], [Leaf(*leaf) for leaf in what[1]])
            worker.look()
        if walk != self._walk or kind != "form":
            worker.free.append(slot)
        if walk != self._walk:
            self._ask(worker)
        elif kind == "form":
            self._ready[k] = worker, slot, None, bad
        else:
            self._ready[k] = worker, None, what, bad
            self._ask(worker)

    def close(self) -> None:
        """End the workers: those that are reading, after the example they are at; those that do not end, by force."""
        if os.getpid() != self._owner:  # a copy of these in another worker, which it lets go
            return
        self._shared[_WALK] = 0
        for worker in self._workers:
            worker.pipe.close()
        until = time.monotonic() + 2.0
        for worker in self._workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            worker.end()
        self._workers = []
        self.closed = True


class _Worker:
    """One process, seen from here."""

    def __init__(self, readers: Readers, number: int):
        self.number, self.readers = number, readers
        self.free = list(range(AHEAD))
        self.asked: dict[int, tuple[int, int]] = {}  # slot -> walk, batch
        self._seen, self._still = -1, 0.0  # the example it was at when it was looked at, and for how many seconds
        readers._shared[_AT + number] = -1
        self.form: Form | None = None
        self._memory: mmap.mmap | None = None
        self._room: list[list[Tensor]] = []
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self._file = os.memfd_create(f"lamina-batches-{number}")
        others = [worker.pipe for worker in readers._workers] + [self.pipe]
        self.process = context.Process(
            target=_work,
            args=(
                os.getpid(),
                processes.in_main_thread(),
                readers.reader,
                readers.count,
                number,
                theirs,
                others,
                readers.batch_size,
                readers._shared,
                readers._order,
                self._file,
            ),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def look(self) -> None:
        """The memory that the worker has made ready for items of its form."""
        assert self.form is not None
        self._memory = mmap.mmap(self._file, _size(self.form, self.readers.batch_size))
        self._room = _rooms(self.form, self._memory, self.readers.batch_size)

    def take(self, slot: int, count: int) -> Any:
        """A batch out of the shared memory, which is then free for another."""
        assert self.form is not None
        return self.form.tied([part[:count].clone() for part in self._room[slot]])

    @property
    def at(self) -> int:
        """The example it is reading; -1 before the first."""
        return int(self.readers._shared[_AT + self.number])

    def hangs(self) -> bool:
        """Asked once a second while it is waited for: a process that was stopped with its workers is not held against them."""
        self._still = self._still + 1.0 if self.asked and self.at == self._seen else 0.0
        self._seen = self.at
        return self._still >= TIMEOUT

    def hanging(self) -> ResourceError:
        return self._error(f"was ended after {self._still:.0f} s", "look at that example: reading it does not end")

    def death(self) -> ResourceError:
        """The worker has gone: how, and over which example."""
        self.process.join(1)
        code = self.process.exitcode or 0
        how = f"ended with exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", as the system does when memory is used up"
        fix = "look at that example; if memory ran out: fewer --workers, a smaller --batch-size, or --workers 0"
        return self._error(how, fix)

    def _error(self, how: str, fix: str) -> ResourceError:
        at = f" while it read example {self.at} of the Dataset" if self.at >= 0 else " before it read an example"
        return ResourceError(f"Worker {self.number + 1} of {self.readers.count} {how}{at}.", fix=fix)

    def end(self) -> None:
        """By force, if it is still there. Batches it has written can be taken until nobody holds this any more."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _rooms(form: Form, memory: mmap.mmap, most: int) -> list[list[Tensor]]:
    """AHEAD batches of so many items in one block of memory: a tensor a leaf each, all at multiples of 64 bytes."""
    rooms, place = [], 0
    for _ in range(AHEAD):
        room = []
        for leaf in form.leaves:
            count = most * math.prod(leaf.shape)
            flat = torch.empty(0, dtype=leaf.dtype)
            if count:
                flat = torch.frombuffer(memory, dtype=leaf.dtype, count=count, offset=place)
            room.append(flat.view(most, *leaf.shape))
            place += _aligned(most * leaf.bytes)
        rooms.append(room)
    return rooms


def _size(form: Form, most: int) -> int:
    """Bytes of those rooms."""
    return max(64, AHEAD * sum(_aligned(most * leaf.bytes) for leaf in form.leaves))


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


# --- In the worker ----------------------------------------------------------------------------------------------------


class _Unwanted(Exception):
    """The walk that this batch was for has ended."""


def _work(
    parent: int, in_main: bool, reader: Reader, count: int, number: int, pipe: Any, others: list[Any], batch_size: int,
    shared: Any, order: Any, file: int,
) -> None:  # fmt: skip
    """The life of a worker: requests in, batches out, until the pipe is closed."""
    processes.settle(parent, in_main)
    for other in others:  # else this process would keep them open, and nobody would see them end
        other.close()
    torch_worker._worker_info = torch_worker.WorkerInfo(
        id=number, num_workers=count, seed=torch.initial_seed(), dataset=reader.dataset
    )
    form: Form | None = None
    form_of: Any = None
    rooms: list[list[Tensor]] = []
    shared[_AT + number] = -1
    plain = reader.collate is default_collate

    def look(example: int) -> None:
        if shared[_WALK] != walk or os.getppid() != parent:
            raise _Unwanted
        shared[_AT + number] = example

    while True:
        try:
            if not pipe.poll(1.0):
                if os.getppid() != parent:
                    return
                continue
            walk, epoch, k, first, last, slot = pipe.recv()
        except (EOFError, OSError):
            return
        indices = order[first:last].tolist()
        try:
            look(indices[0])
            items = reader.items(epoch, indices, look)
            good = reader.left(indices)
            if form is None and plain and items and (form := Form.of(_first(reader, items))) is not None:
                os.ftruncate(file, _size(form, batch_size))
                rooms = _rooms(form, mmap.mmap(file, _size(form, batch_size)), batch_size)
                form_of = form.tree, [(leaf.kind, leaf.shape, leaf.own, leaf.dtype) for leaf in form.leaves]
            room = _written(items, form, rooms, slot) if len(items) == len(good) else None
            if reader.lenient and items and (room is None or not reader.fits(room)):
                items, good = reader.sift(items, good)
                room = _written(items, form, rooms, slot)
            if room is not None:
                said: tuple[str, Any] = "form", form_of  # which is said with the first batch of it
                form_of = None
            else:
                said = "items", reader.collated(items, good) if items else None
        except _Unwanted:
            said = "unwanted", None
        except LaminaError as error:
            said = "failed", (type(error).__name__, error.what, error.expected, error.fix)
        except BaseException:
            said = "failed", (None, traceback.format_exc())
        try:
            pipe.send((walk, k, slot, *said, reader.bad))
        except OSError:
            return
        except Exception as error:  # it cannot be sent
            pipe.send((walk, k, slot, "failed", ("DataError", f"A batch of the Dataset cannot be sent from a worker: {error}",
                       "tensors, arrays or numbers", "--workers 0"), {}))  # fmt: skip


def _written(items: list[Any], form: Form | None, rooms: list[list[Tensor]], slot: int) -> list[Tensor] | None:
    """Items in shared memory; None where they are of another form."""
    if form is None or not items:
        return None
    room = [part[: len(items)] for part in rooms[slot]]
    return room if form.write(items, room) else None


def _first(reader: Reader, items: list[Any]) -> Any:
    """The first item of the usual shape, if there is one."""
    return next((item for item in items if reader.lenient and outline(item) == reader.usual), items[0])
