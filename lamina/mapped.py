"""Columns that are too large for the memory they were given (`--memory`): on the disk, and mapped.

In: a limit in bytes, and arrays to be made. Out: arrays and tensors like any other; those above the limit lie in files
that have no name and go with them. What was read of a map is given back to the system at once, or a few milliseconds
later, so what this process holds does not grow with the columns, whoever reads them.

Called where columns are made: by the sources, when they are pooled and encoded, and for what is kept of a Dataset.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamina.errors import ResourceError
from lamina.joined import Joined

PIECE = 4 << 20  # bytes worked on together
PAGES = 32 << 20  # bytes that may have been read before they are given back
AHEAD = 16  # batches
JOINED = 16 << 20  # bytes of arrays that are worth more trouble than a copy
_EVERY = 0.005  # seconds
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_touched = 0
_most: ContextVar[int | None] = ContextVar("memory", default=None)


@dataclass
class _Map:
    """A map that is known: where it lies in memory, and in which file from which place on."""

    address: int
    size: int
    memory: weakref.ref[mmap.mmap]
    file: int
    place: int
    ahead: int = 0  # batches for which rows are asked ahead, since some were on the disk alone


_maps: dict[int, _Map] = {}  # by address
_lock = threading.Lock()


@contextmanager
def limited(most: int | None) -> Iterator[None]:
    """Columns made within, of more than so many bytes, lie on the disk; None: all in memory."""
    token = _most.set(most)
    try:
        yield
    finally:
        _most.reset(token)


def most() -> int | None:
    """Bytes that columns may take in memory; None for any number."""
    return _most.get()


def empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array to write into: in memory, or above the limit on the disk."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    limit = _most.get()
    if limit is None or size <= limit:
        return np.empty(shape, dtype)
    memory = _file(size)
    return np.frombuffer(memory, dtype).reshape(shape)


def empty_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The same as a tensor, of any of torch's types."""
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(empty((size,), np.uint8)).view(dtype).view(tuple(shape)) if size else torch.empty(
        tuple(shape), dtype=dtype)  # fmt: skip


def adopt(array: Any) -> bool:
    """Whether an array lies in a map. One that its owner mapped (`numpy.load(path, mmap_mode="r")`) is from now on given
    back like ours."""
    base = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.mode in ("r", "r+") and isinstance(base._mmap, mmap.mmap):  # type: ignore[attr-defined]
            begin = base.offset - base.offset % mmap.ALLOCATIONGRANULARITY
            with suppress(OSError):  # a file that has gone stays mapped, and is read by its map alone
                _known(base._mmap, os.open(base.filename, os.O_RDONLY), begin)  # type: ignore[attr-defined, arg-type]
            return is_mapped(array)
        base = base.base
    return is_mapped(array)


def is_mapped(column: Any) -> bool:
    """Whether the bytes of an array or a tensor lie in a map."""
    return _of(column) is not None


def _of(column: Any) -> _Map | None:
    if not _maps or isinstance(column, Joined):
        return None
    place = column.data_ptr() if isinstance(column, Tensor) else column.__array_interface__["data"][0]
    with _lock:
        for known in _maps.values():
            if known.address <= place < known.address + known.size and known.memory() is not None:
                return known
    return None


def take(column: Tensor | Joined, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """`column.index_select(0, rows)`. Rows of a map are read from its file, in the order in which they lie there: to touch
    them in the map would draw in all that is around them. Those that come from the disk are asked for together."""
    if isinstance(column, Joined):
        return column.take(rows)
    known = _of(column)
    if known is None or not column.is_contiguous() or not len(rows):
        return column.index_select(0, rows) if out is None else torch.index_select(column, 0, rows, out=out)
    made = torch.empty((len(rows), *column.shape[1:]), dtype=column.dtype) if out is None else out
    size = made[0].nbytes
    if not size:
        return made
    into = memoryview(made.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    begin = known.place + column.data_ptr() - known.address
    wanted = rows.tolist()
    if wanted == list(range(wanted[0], wanted[0] + len(wanted))):
        _fill(known.file, into, begin + wanted[0] * size)
        return made
    places = [(begin + row * size, into[k * size : (k + 1) * size]) for row, k in sorted(zip(wanted, count()))]
    away = [(place, part) for place, part in places if not _is_here(known.file, part, place)]
    known.ahead = AHEAD if away else max(0, known.ahead - 1)
    _ask(known.file, [place for place, _ in away], size)
    for place, part in away:
        _fill(known.file, part, place)
    return made


def seen(column: Tensor | Joined, rows: Tensor) -> Tensor:
    """The same for who writes to none of them: rows in memory that follow one another are no copy."""
    if isinstance(column, Joined) and (one := column.narrowed(rows)) is not None:
        column, rows = one[0], rows - one[1]
    if not len(rows) or is_mapped(column) or not bool((rows.diff() == 1).all()):
        return take(column, rows)
    return column[int(rows[0]) : int(rows[-1]) + 1]


def soon(columns: Sequence[Tensor], rows: Tensor) -> None:
    """These rows will be taken next: a disk that had to be waited for begins to read them."""
    for column in columns:
        known = _of(column)
        if known is not None and known.ahead:
            size, begin = column[0].nbytes, known.place + column.data_ptr() - known.address
            _ask(known.file, [begin + row * size for row in sorted(rows.tolist())], size)


def _ask(file: int, places: list[int], size: int) -> None:
    """All of them at once: a disk that is asked for one row after the other is idle most of the time."""
    for place in places if hasattr(os, "posix_fadvise") else ():
        os.posix_fadvise(file, place, size, os.POSIX_FADV_WILLNEED)


def _is_here(file: int, into: memoryview, place: int) -> bool:
    """Read a row that the system holds in memory; False for one that has to come from the disk."""
    try:
        return os.preadv(file, [into], place, _NOWAIT) == into.nbytes
    except BlockingIOError:
        return False
    except OSError:  # this file system cannot tell
        return _fill(file, into, place)


def _fill(file: int, into: memoryview, place: int) -> bool:
    while into.nbytes:
        read = os.preadv(file, [into], place)
        if read <= 0:
            raise ResourceError(
                f"A file of columns ends {into.nbytes:,} bytes too early.", fix="leave it alone while it is read"
            )
        into, place = into[read:], place + read
    return True


def as_tensor(array: np.ndarray) -> Tensor:
    """An array in a map as a tensor of the same bytes. Nobody writes to columns, so torch's warning is not for us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def pieces(column: Any) -> Iterator[slice]:
    """Slices of a column, each of about PIECE bytes."""
    step = max(1, PIECE * len(column) // max(1, column.nbytes)) if len(column) else 1
    for start in range(0, len(column), step):
        yield slice(start, start + step)
        read(step, PIECE // step)


def read(rows: int, size: int) -> None:
    """So many places of some map were read, of so many bytes each: above PAGES bytes they are given back at once."""
    global _touched
    if _maps:
        _touched += rows * size
        if _touched > PAGES:
            _touched = 0
            _give_back()


def changed(column: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """change(column), which makes one row of each: piece by piece where the column lies in a map."""
    if not is_mapped(column):
        return change(column)
    one = change(column[:1])
    made = empty_tensor((len(column), *one.shape[1:]), one.dtype)
    for piece in pieces(column):
        made[piece] = change(column[piece])
    return made


def joined(arrays: Sequence[Any]) -> Joined | None:
    """Arrays of floats of the caller's as one column without a copy; None where that is not worth it, or one of them lies on
    the disk or is to."""
    alike = len({(type(array), array.dtype) for array in arrays}) == 1 and isinstance(arrays[0], np.ndarray)
    if not alike or arrays[0].dtype not in (np.float32, np.float64) or not all(a.flags.c_contiguous for a in arrays):
        return None
    size, limit = sum(array.nbytes for array in arrays), _most.get()
    if size < JOINED or (limit is not None and size > limit) or any(map(adopt, arrays)):
        return None
    return Joined(arrays)


def concatenated(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """`numpy.concatenate`, into a map where the whole is above the limit."""
    limit = _most.get()
    if limit is None or sum(array.nbytes for array in arrays) <= limit:
        plain = len({array.dtype for array in arrays}) == 1 and all(
            array.dtype.isnative and array.dtype.kind in "bu" and array.itemsize == 1 and array.flags.writeable
            for array in arrays
        )
        if plain:  # ten times quicker: numpy asks for huge pages, which the system first has to make
            return torch.cat([torch.from_numpy(array) for array in arrays]).numpy()
        return np.concatenate(arrays)
    whole = empty((sum(map(len, arrays)), *arrays[0].shape[1:]), np.result_type(*arrays))
    place = 0
    for array in arrays:
        for piece in pieces(array):
            part = array[piece]
            whole[place : place + len(part)] = part
            place += len(part)
    return whole


def within(columns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Columns as they are, or, where together they take more than the limit, on the disk: the largest first."""
    limit, left = _most.get(), {k: column for k, column in enumerate(columns) if not is_mapped(column)}
    found = list(columns)
    while limit is not None and left and sum(column.nbytes for column in left.values()) > limit:
        k = max(left, key=lambda key: left[key].nbytes)
        column = left.pop(k)
        with limited(0):
            found[k] = empty_tensor(column.shape, column.dtype)
        for piece in pieces(column):
            found[k][piece] = column[piece]
    return tuple(found)


def _file(size: int) -> mmap.mmap:
    """So many bytes of disk, mapped."""
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(prefix=".tmp-lamina-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, size))  # a full disk is said now, and not by a signal
            else:
                file.truncate(max(1, size))
            memory = mmap.mmap(file.fileno(), max(1, size))
            _known(memory, os.dup(file.fileno()), 0)
            return memory
    except OSError as error:
        raise ResourceError(
            f"{size:,} bytes of columns above --memory could not be put into {folder}: {error.strerror or error}.",
            fix="free some space, set TMPDIR to a folder on a larger disk, or give more --memory",
        ) from error


def _known(memory: mmap.mmap, file: int, begin: int) -> None:
    """From now on the pages of a map are given back, and its rows read from its file."""
    if not hasattr(memory, "madvise") or not hasattr(os, "preadv"):
        os.close(file)
        return
    place = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    with _lock:
        known = _maps.get(place)
        if known is not None and known.memory() is memory:
            os.close(file)
            return
        started = bool(_maps)
        if known is not None:
            os.close(known.file)
        _maps[place] = _Map(place, len(memory), weakref.ref(memory), file, begin)
        if not started:
            threading.Thread(target=_keep_giving, name="lamina-maps", daemon=True).start()


def _give_back() -> bool:
    """The pages are those of files, which keep them: who reads them again finds them there. False: no map is left."""
    with _lock:
        for place, known in list(_maps.items()):
            memory = known.memory()
            if memory is None or memory.closed:
                del _maps[place]
                os.close(known.file)
            else:
                memory.madvise(mmap.MADV_DONTNEED)
            memory = None
        return bool(_maps)


def _keep_giving() -> None:
    """For those who read a map and do not say so."""
    going = True
    while going:
        time.sleep(_EVERY)
        going = _give_back()


def _forget() -> None:
    """In a forked child, such as a worker: it has no such thread, nor whoever may have held the lock."""
    global _lock
    _lock = threading.Lock()
    _maps.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
