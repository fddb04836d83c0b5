"""Columns that are too large for the memory they were given: on the disk, and mapped.

In: columns, or the shape of one to come. Out: tensors like any other, whose bytes lie in a file without a name that goes
with them. Rows are read in the order in which they lie there, and what was read is given back to the system after
`PAGES` bytes: what this process holds does not grow with the columns.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lamina.errors import ResourceError

PAGES = 32 << 20  # bytes of a map that may lie in memory before they are given back
_AROUND = 1 << 16  # bytes that the system maps where one row is touched
PIECE = 4 << 20  # bytes worked on together


class _Map:
    """The map of one column, and how many of its bytes have been touched since they were last given back."""

    def __init__(self, memory: mmap.mmap, row: int):
        self.memory, self.row, self.touched = weakref.ref(memory), max(1, row), 0

    def touch(self, rows: int, together: bool = False) -> None:
        self.touched += rows * (self.row if together else max(self.row, _AROUND))
        memory = self.memory()
        if self.touched > PAGES and memory is not None and hasattr(memory, "madvise"):
            memory.madvise(mmap.MADV_DONTNEED)  # of a file's pages: the file keeps them
            self.touched = 0


_maps = WeakTensorKeyDictionary()


def empty(shape: tuple[int, ...], dtype: torch.dtype, folder: str | Path | None = None) -> Tensor:
    """A column on the disk to write into. folder: where its file is; else where temporary files are."""
    size = math.prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(prefix=".tmp-lamina-", dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, size))  # a full disk is said now, and not by a signal
            else:
                file.truncate(max(1, size))
            memory = mmap.mmap(file.fileno(), max(1, size))
    except OSError as error:
        raise ResourceError(
            f"{size:,} bytes of columns above --memory could not be put into {folder or tempfile.gettempdir()}: "
            f"{error.strerror or error}.",
            fix="free some space, set TMPDIR to a larger disk, or give more --memory",
        ) from error
    column = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape) if size else torch.empty(
        shape, dtype=dtype)  # fmt: skip
    return known(column, memory)


def known(column: Tensor, memory: mmap.mmap) -> Tensor:
    """Remember that a column lies in a map, so that its pages are given back."""
    _maps[column] = _Map(memory, column.element_size() * math.prod(column.shape[1:]))
    return column


def is_mapped(column: Any) -> bool:
    return isinstance(column, Tensor) and column in _maps


def mapped(column: np.ndarray) -> Tensor:
    """A memory-mapped array (`numpy.load(path, mmap_mode="r")`) as a tensor of the same bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of arrays that cannot be written to: nobody writes to columns
        return known(torch.from_numpy(np.asarray(column)), column._mmap)  # type: ignore[attr-defined]


def read(column: Tensor, rows: Tensor) -> Tensor:
    """Rows of a column, in the order asked for; of a map they are read in the order in which they lie there."""
    place = _maps.get(column)
    if place is None:
        return column.index_select(0, rows)
    order = torch.argsort(rows)
    out = torch.empty((len(rows), *column.shape[1:]), dtype=column.dtype)
    step = max(1, PAGES // max(place.row, _AROUND))
    for some in order.split(step):  # a large batch does not hold more than a small one
        out[some] = column.index_select(0, rows[some])
        place.touch(len(some))
    return out


def write(column: Tensor, rows: Tensor, values: Tensor) -> None:
    column.index_copy_(0, rows, values)
    place = _maps.get(column)
    if place is not None:
        place.touch(len(rows))
