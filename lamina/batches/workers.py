"""Processes that read a user's Dataset ahead.

In: a `Reader` and the plan of an epoch (which examples a batch). Out: the batches of the plan, in its order. Each worker
is a copy of this process, made once and kept from epoch to epoch; it reads whole batches, whichever is next, and writes
them straight into memory it shares with this process, so only a few numbers go through a pipe. Items that are not all of
one form are sent as they are.

Memory is bounded: a worker holds `AHEAD` batches at most, read or being read. A worker that dies is named, with the
example it was at; it is the first that the system ends when memory runs out.
"""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.data._utils import worker as torch_worker

from lamina import errors
from lamina.batches.items import Form, Leaf, Reader
from lamina.errors import LaminaError, ResourceError

AHEAD = 3  # batches a worker holds
CAN = hasattr(os, "memfd_create") and hasattr(os, "fork")  # elsewhere a DataLoader does it
_WALK, _AT = 0, 1  # places in the memory all share: the walk under way (0: the end), then what each worker is reading


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    def read(self, epoch: int, plan: list[np.ndarray]) -> Iterator[Any]:
        """Collated batches of the examples in `plan`, in its order."""
        ends = np.cumsum([0, *map(len, plan)])
        self._walk += 1
        self._shared[_WALK] = self._walk
        self._order[: ends[-1]] = np.concatenate(plan)
        self.busy, self._plan, self._epoch, self._ends = True, plan, epoch, ends
        self._next = 0
        self._ready: dict[int, tuple[_Worker, int | None, Any]] = {}
        try:
            for _ in range(AHEAD):  # in turn, so that the first batches are read side by side
                for worker in self._workers:
                    self._ask(worker)
            for k in range(len(plan)):
                while k not in self._ready:
                    self._receive()
                worker, slot, what = self._ready.pop(k)
                batch = what if slot is None else worker.take(slot, len(plan[k]))
                if slot is not None:
                    worker.free.append(slot)
                    self._ask(worker)
                yield batch
        except GeneratorExit:
            self._shared[_WALK] = self._walk = self._walk + 1  # what is under way is no longer wanted
            raise
        except BaseException:
            self.close()
            raise
        finally:
            for worker, slot, _ in self._ready.values():
                if slot is not None:
                    worker.free.append(slot)
            self.busy = False

    def _ask(self, worker: _Worker) -> None:
        """The next batch of the plan, from a worker that has room for it."""
        if self._next == len(self._plan) or not worker.free:
            return
        slot, k = worker.free.pop(), self._next
        self._next += 1
        try:
            worker.pipe.send((self._walk, self._epoch, k, int(self._ends[k]), int(self._ends[k + 1]), slot))
        except OSError:
            raise worker.death() from None

    def _receive(self) -> None:
        """Wait for workers, and take what they say."""
        waited = {worker.pipe: worker for worker in self._workers}
        ends = {worker.process.sentinel: worker for worker in self._workers}
        found = connection.wait([*waited, *ends])
        for pipe in found:
            if pipe in waited:
                worker = waited[pipe]
                try:
                    heard = worker.pipe.recv()
                except (EOFError, OSError):
                    raise worker.death() from None
                self._hear(worker, *heard)
        for end in found:
            if end in ends and not ends[end].pipe.poll():
                raise ends[end].death()

    def _hear(self, worker: _Worker, walk: int, k: int, slot: int, kind: str, what: Any) -> None:
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
            self._ready[k] = worker, slot, None
        else:
            self._ready[k] = worker, None, what
            self._ask(worker)

    def close(self) -> None:
        """End the workers: those that are reading, after the example they are at; those that do not end, by force."""
        if os.getpid() != self._owner:  # a copy of these in another worker, which it lets go
            return
        self._shared[_WALK] = 0
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.forget()
        self._workers = []
        self.closed = True


class _Worker:
    """One process, seen from here."""

    def __init__(self, readers: Readers, number: int):
        self.number, self.readers = number, readers
        self.free = list(range(AHEAD))
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

    def death(self) -> LaminaError:
        """The worker has gone: how, and over which example."""
        self.process.join(1)
        code = self.process.exitcode or 0
        how = f"ended with exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", as the system does when memory is used up"
        example = int(self.readers._shared[_AT + self.number])
        at = f" while it read example {example} of the Dataset" if example >= 0 else " before it read an example"
        return ResourceError(
            f"Worker {self.number + 1} of {self.readers.count} {how}{at}.",
            fix="look at that example; if memory ran out: fewer --workers, a smaller --batch-size, or --workers 0",
        )

    def forget(self) -> None:
        self._room = []
        if self._memory is not None:
            with contextlib.suppress(BufferError):  # somebody still looks at it: it goes with him
                self._memory.close()
            self._memory = None
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
    reader: Reader, count: int, number: int, pipe: Any, others: list[Any], batch_size: int, shared: Any, order: Any,
    file: int,
) -> None:  # fmt: skip
    """The life of a worker: requests in, batches out, until the pipe is closed."""
    parent = os.getppid()
    for other in others:  # else this process would keep them open, and nobody would see them end
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # when memory runs out, rather this process than the trainer
    torch.set_num_threads(1)
    gc.freeze()  # what came from the parent is not looked through, and its pages stay shared
    torch_worker._worker_info = torch_worker.WorkerInfo(
        id=number, num_workers=count, seed=torch.initial_seed(), dataset=reader.dataset
    )
    form: Form | None = None
    form_of: Any = None
    rooms: list[list[Tensor]] = []
    shared[_AT + number] = -1
    plain = reader.collate is default_collate

    def look(example: int) -> None:
        if shared[_WALK] != walk:
            raise _Unwanted
        shared[_AT + number] = example

    while True:
        try:
            if not pipe.poll(5.0):
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
            if form is None and plain and (form := Form.of(items[0])) is not None:
                os.ftruncate(file, _size(form, batch_size))
                rooms = _rooms(form, mmap.mmap(file, _size(form, batch_size)), batch_size)
                form_of = form.tree, [(leaf.kind, leaf.shape, leaf.own, leaf.dtype) for leaf in form.leaves]
            if (
                form is not None
                and len(items) == len(indices)
                and form.write(items, [r[: len(items)] for r in rooms[slot]])
            ):
                said: tuple[str, Any] = "form", form_of  # which is said with the first batch of it
                form_of = None
            else:
                said = "items", reader.collated(items, indices)
        except _Unwanted:
            said = "unwanted", None
        except LaminaError as error:
            said = "failed", (type(error).__name__, error.what, error.expected, error.fix)
        except BaseException:
            said = "failed", (None, traceback.format_exc())
        try:
            pipe.send((walk, k, slot, *said))
        except OSError:
            return
        except Exception as error:  # it cannot be sent
            pipe.send((walk, k, slot, "failed", ("DataError", f"A batch of the Dataset cannot be sent from a worker: {error}",
                       "tensors, arrays or numbers", "--workers 0")))  # fmt: skip
