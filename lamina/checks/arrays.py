"""Inputs that are numbers: what is not finite, the same everywhere, or far from the rest.

In: a `Pool` of arrays (N, ...), each place of an example a feature. Out: findings. Of pictures and bytes only whether they
vary, since their range is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lamina import mapped
from lamina.checks.pool import SHOWN, Pool, every
from lamina.errors import rows
from lamina.findings import Finding
from lamina.sources.arrays import rows_not_finite

FAR = 20  # standard deviations from the mean
SPREAD = 1e6  # largest / smallest standard deviation of the columns
_CHUNK = 1 << 18  # values worked on together: so few that they stay in the processor's cache


def inputs(table: Pool) -> Iterator[Finding]:
    step = table.step
    for number, column in enumerate(table.columns):
        which = "The inputs" if len(table.columns) == 1 else f"Input {number}"
        seen = every(column, step)
        bad = rows_not_finite(seen) * step
        if len(bad):
            yield Finding(
                "not_finite",
                "error",
                f"{which} hold NaN or infinite values in {len(bad):,} examples: {rows(bad)}.",
                len(bad),
                bad[:SHOWN].tolist(),
                "nothing is trained",
                "leave these examples out, or fill the gaps",
            )
        elif len(seen) > 1 and column.size:
            yield from _columns(table, which, seen)


def _columns(table: Pool, which: str, column: np.ndarray) -> Iterator[Finding]:
    """Constant, far-off and ill-matched features of (N, ...), each place of an example a feature."""
    pictures = table.examples.kind == "pictures"
    low, high, mean, std = moments(column)
    names = table.examples.names if table.examples.names and len(table.examples.names) == len(low) else None

    def called(places: np.ndarray) -> list[Any]:
        return [names[place] if names else int(place) for place in places[:SHOWN]]

    constant = np.flatnonzero(low == high)
    if len(constant) == len(low):
        yield Finding(
            "constant",
            "error",
            f"{which} are the same in all {len(column):,} examples: there is nothing to learn from.",
            len(column),
            [],
            "nothing is trained",
            "check how the inputs were read",
        )
        return
    if len(constant) and not pictures:  # the margins of pictures are constant and do no harm
        listed = ", ".join(map(str, called(constant)[:5])) + (", ..." if len(constant) > 5 else "")
        yield Finding(
            "constant_columns",
            "note",
            f"{len(constant):,} of {len(low):,} input columns are constant: {listed}.",
            len(constant),
            called(constant),
            "kept",
            "leave them out: they tell nothing",
        )
    if pictures or column.dtype.kind == "b" or column.dtype == np.uint8:
        return  # bounded
    spread = np.where(std > 0, std, np.inf)
    far = np.flatnonzero(np.maximum(high - mean, mean - low) / spread > FAR)
    within: list[Any] = [(slice(None), *np.unravel_index(place, column.shape[1:])) for place in far]
    far = np.array([place for place, k in zip(far, within, strict=True) if stands_out(column[k])], dtype=np.int64)
    if len(far):
        place = int(far[0])
        value = high[place] if high[place] - mean[place] > mean[place] - low[place] else low[place]
        yield Finding(
            "outliers",
            "note",
            f"{len(far):,} input columns have values more than {FAR} standard deviations from their mean, such as "
            f"{value:g} in column {called(far)[0]} (mean {mean[place]:g}, standard deviation {std[place]:g}).",
            len(far),
            called(far),
            "kept",
            "check these values; clip them or take their logarithm",
        )
    varied = np.flatnonzero(low < high)
    ratio = std[varied].max() / max(std[varied].min(), np.finfo(float).tiny)
    if ratio > SPREAD:
        ends = varied[[std[varied].argmin(), std[varied].argmax()]]
        yield Finding(
            "ranges",
            "note",
            f"The input columns are of very different sizes: standard deviation {std[ends[0]]:.2g} in column "
            f"{called(ends)[0]}, {std[ends[1]]:.2g} in column {called(ends)[1]}.",
            len(varied),
            called(ends),
            "kept",
            "standardise them (scale='standard')",
        )


def stands_out(values: np.ndarray) -> bool:
    """Whether the farthest of (N,) values is far even beside the others off the middle: a rare 1 among 0s is not."""
    apart = np.abs(values.astype(np.float64) - np.median(values))
    return bool(apart.max() > FAR * np.median(apart[apart > 0]))


def moments(column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N, ...) -> lowest, highest, mean and standard deviation of each feature, float64 (F,), in one pass."""
    features = column[0].size
    origin = column[0].reshape(-1).astype(np.float64)  # sums of differences from it: a large offset costs no digits
    low, high, total, squares = origin.copy(), origin.copy(), np.zeros(features), np.zeros(features)
    step = max(1, _CHUNK // features)
    bounded = column.dtype.kind == "b" or column.dtype == np.uint8  # no use for their mean
    for start in range(0, len(column), step):
        block = column[start : start + step].reshape(-1, features)
        mapped.read(1, block.nbytes)
        np.minimum(low, block.min(0), out=low)
        np.maximum(high, block.max(0), out=high)
        if not bounded:
            apart = block - origin
            total += apart.sum(0)
            squares += np.einsum("nf,nf->f", apart, apart)
    mean = total / len(column)
    variance = np.maximum(squares / len(column) - mean**2, 0)
    return low, high, origin + mean, np.sqrt(variance)
