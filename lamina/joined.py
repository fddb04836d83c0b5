"""A column that came in several arrays, as one: what was given as train and test need not be copied together.

In: arrays, or tensors, alike but for their number of rows. Out: a `Joined`, which is asked for rows as an array or a tensor is.
Rows of one of them that follow one another are no copy. Made where parts are pooled, for arrays of the caller's, whose memory
he holds all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Joined:
    """parts: numpy arrays, or tensors, each (n, ...)."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.shape = (int(self.ends[-1]), *self.parts[0].shape[1:])
        self.dtype, self.ndim, self.itemsize = self.parts[0].dtype, len(self.shape), self.parts[0].itemsize
        self.nbytes = sum(part.nbytes for part in self.parts)
        self.size = int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """As of an array: a row by its number, a slice, some by an array of numbers; (slice, ...) for what is within them."""
        rows, within = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if isinstance(rows, slice):
            return self._sliced(rows, within)
        if within:
            raise TypeError(f"Rows of a Joined are picked by themselves, not with {within}.")
        if np.ndim(rows) == 0:
            number = int(rows) + (len(self) if rows < 0 else 0)
            if not 0 <= number < len(self):
                raise IndexError(f"There is no row {rows} of {len(self)}.")
            place = int(np.searchsorted(self.ends, number, side="right"))
            return self.parts[place][number - self._begin(place)]
        return self.take(torch.as_tensor(rows)) if isinstance(self.parts[0], Tensor) else self._picked(np.asarray(rows))

    def spans(self) -> Iterator[slice]:
        """The rows of each part."""
        for place, end in enumerate(self.ends):
            yield slice(self._begin(place), int(end))

    def narrowed(self, rows: Any) -> tuple[Any, int] | None:
        """The part in which all these rows lie, and the number of its first; None where they lie in several."""
        if len(rows) == 0:
            return self.parts[0], 0
        first, last = (int(np.searchsorted(self.ends, int(end), side="right")) for end in (rows.min(), rows.max()))
        return (self.parts[first], self._begin(first)) if first == last else None

    def take(self, rows: Tensor) -> Tensor:
        """`index_select` of tensors."""
        one = self.narrowed(rows)
        if one is not None:
            return one[0].index_select(0, rows - one[1] if one[1] else rows)
        return torch.from_numpy(self._picked(rows.numpy()))

    def numpy(self) -> np.ndarray:
        """All rows, in new memory."""
        return np.concatenate([np.asarray(part) for part in self.parts])

    def _begin(self, place: int) -> int:
        return int(self.ends[place - 1]) if place else 0

    def _sliced(self, rows: slice, within: tuple[Any, ...]) -> Any:
        if rows.start is None and rows.stop is None and rows.step in (None, 1) and not within:  # all, as every
            return self
        begin, end, step = rows.indices(len(self))
        if step < 1:
            raise ValueError(f"Rows of a Joined are asked for in their order, not by steps of {step}.")
        found = []
        for part, span in zip(self.parts, self.spans(), strict=True):
            first = begin if begin >= span.start else begin + -(-(span.start - begin) // step) * step
            if first < min(end, span.stop):
                key = (slice(first - span.start, min(end, span.stop) - span.start, step), *within)
                found.append(part[key])
        if len(found) < 2:
            return found[0] if found else self.parts[0][:0]
        return torch.cat(found) if isinstance(found[0], Tensor) else np.concatenate(found)

    def _picked(self, rows: np.ndarray) -> np.ndarray:
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        found = np.empty((len(rows), *self.shape[1:]), np.asarray(self.parts[0][:0]).dtype)
        places = np.searchsorted(self.ends, rows, side="right")
        for place in np.unique(places):
            here = places == place
            found[here] = np.asarray(self.parts[place])[rows[here] - self._begin(place)]
        return found
