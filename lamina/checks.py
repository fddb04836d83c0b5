"""What is wrong with these data, before an hour is spent.

In: a `Source` and, where they are known, the task and the split. Out: findings, the worst first; an "error" means that
training would be pointless. Called by `train` and by `lamina check`. Findings change nothing: they name rows, count
them and say what to do.

Plain numpy over whole columns. Of tables above `MOST_BYTES` every k-th example is looked at, and a finding says so.
Of a Dataset only the answers are looked at. Near-duplicates are not sought: copies are copies byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lamina import mapped
from lamina.errors import rows
from lamina.findings import Finding, worst_first
from lamina.sources import Examples, Source
from lamina.sources.arrays import distinct, gaps, rows_not_finite
from lamina.splits import FEW, PARTS, Split

MOST_BYTES = 1 << 29  # of inputs that are looked at whole: about 2 s of one core
IMBALANCE = 20  # largest class / smallest class
FAR = 20  # standard deviations from the mean
SPREAD = 1e6  # largest / smallest standard deviation of the columns
SKEW = 3
TINY = 100  # examples
_SHOWN = 10  # examples a finding lists
_CHUNK = 1 << 18  # values worked on together: so few that they stay in the processor's cache
_WORDS = 1 << 16  # words of 8 bytes, the same


@dataclass
class _Table:
    """Parts given or split, as one table: rows are those of train, then valid, then test as they were given."""

    columns: list[np.ndarray]  # (N, ...) an input each; empty for a Dataset
    truth: np.ndarray | None  # (N, ...)
    part: np.ndarray  # (N,) int8: 0 train, 1 valid, 2 test, -1 none
    examples: Examples  # those to learn from: what they are called

    @property
    def held_out(self) -> np.ndarray:
        return self.part > 0

    def name(self, row: int) -> str:
        return f"row {row}" + (f" ({PARTS[self.part[row]]})" if self.held_out.any() else "")


def check(source: Source, *, task: str | None = None, split: Split | None = None) -> list[Finding]:
    """Findings about a source, the worst first.

    task: "classes", "numbers" or "tags"; without one (or with another) answers are looked at for gaps only. split: rows
    of the training examples, or of the training, validation and test examples one after the other; without one,
    examples that were given to validate and test on are told from the others all the same. Rows are counted through
    all of them, in this order.
    """
    table = _table(source, split)
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers near the end of the range
        findings = [*_size(table), *_inputs(table), *_copies(table, task), *_answers(table, task)]
    return worst_first(findings)


def large_batch(batch_size: int | None, count: int) -> list[Finding]:
    """A batch that was asked for and is larger than what there is to train on."""
    if batch_size is None or batch_size <= count or not count:
        return []
    what = f"batch_size is {batch_size:,}, and there are {count:,} training examples: an epoch is one batch, of all of them."
    return [
        Finding("large_batch", "warning", what, count, [], "one step an epoch", f"--batch-size {max(1, count // 8)}")
    ]


def _table(source: Source, split: Split | None) -> _Table:
    given = [(k, part) for k, name in enumerate(PARTS) if (part := getattr(source, name)) is not None]
    counts = [len(part.truth) if part.truth is not None else part.count or 0 for _, part in given]
    part = np.repeat(np.array([k for k, _ in given], dtype=np.int8), counts)
    if split is not None:
        part[: len(part) if len(split) > counts[0] else counts[0]] = -1
        for k, name in enumerate(PARTS):
            part[getattr(split, name)] = k
    columns: list[np.ndarray] = []
    if all(isinstance(examples.inputs, tuple) for _, examples in given):
        columns = [_pool(column) for column in zip(*(examples.inputs for _, examples in given), strict=True)]
    truths = [examples.truth for _, examples in given]
    truth = None if any(column is None for column in truths) else _pool(truths)
    return _Table(columns, truth, part, source.train)


def _pool(columns: Any) -> np.ndarray:
    return np.asarray(columns[0]) if len(columns) == 1 else np.concatenate([np.asarray(column) for column in columns])


# --- Size and inputs --------------------------------------------------------------------------------------------------


def _size(table: _Table) -> Iterator[Finding]:
    n = len(table.part)
    if 0 < n < TINY:
        yield Finding(
            "tiny",
            "note",
            f"There are only {n} examples: scores will have wide intervals.",
            n,
            [],
            "kept",
            "give more examples, or judge by cross-validation",
        )
    step = _step(table)
    if step > 1:
        looked = -(-n // step)
        yield Finding(
            "sampled",
            "note",
            f"One input in {step} was looked at, {looked:,} of {n:,}: among the others faults and copies are not seen.",
            n - looked,
            [],
            "kept",
            "",
        )


def _every(column: np.ndarray, step: int) -> np.ndarray:
    """Every step-th example; of a column on the disk as an array in memory, so that no others are drawn in."""
    if step == 1 or not mapped.is_mapped(column):
        return column[::step]
    return mapped.take(mapped.as_tensor(column), torch.arange(0, len(column), step)).numpy()


def _step(table: _Table) -> int:
    """Of how many examples one is looked at."""
    size = sum(column.nbytes for column in table.columns)
    return max(1, -(-size // min(MOST_BYTES, (mapped.most() or 4 * MOST_BYTES) // 4)))


def _inputs(table: _Table) -> Iterator[Finding]:
    step = _step(table)
    for number, column in enumerate(table.columns):
        which = "The inputs" if len(table.columns) == 1 else f"Input {number}"
        seen = _every(column, step)
        bad = rows_not_finite(seen) * step
        if len(bad):
            yield Finding(
                "not_finite",
                "error",
                f"{which} hold NaN or infinite values in {len(bad):,} examples: {rows(bad)}.",
                len(bad),
                bad[:_SHOWN].tolist(),
                "nothing is trained",
                "leave these examples out, or fill the gaps",
            )
        elif len(seen) > 1 and column.size:
            yield from _columns(table, which, seen)


def _columns(table: _Table, which: str, column: np.ndarray) -> Iterator[Finding]:
    """Constant, far-off and ill-matched features of (N, ...), each place of an example a feature."""
    pictures = table.examples.kind == "pictures"
    low, high, mean, std = _moments(column)
    names = table.examples.names if table.examples.names and len(table.examples.names) == len(low) else None

    def called(places: np.ndarray) -> list[Any]:
        return [names[place] if names else int(place) for place in places[:_SHOWN]]

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
    flat = column.reshape(len(column), -1)
    far = np.array([place for place in far if _stands_out(flat[:, place])], dtype=np.int64)
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


def _stands_out(values: np.ndarray) -> bool:
    """Whether the farthest of (N,) values is far even beside the others off the middle: a rare 1 among 0s is not."""
    apart = np.abs(values.astype(np.float64) - np.median(values))
    return bool(apart.max() > FAR * np.median(apart[apart > 0]))


def _moments(column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
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


# --- Copies -----------------------------------------------------------------------------------------------------------


def row_hashes(columns: list[np.ndarray]) -> np.ndarray:
    """(N,) uint64: equal where two rows are equal in all columns (0.0 is -0.0), else different but for 1 in 2^64."""
    total = np.zeros(len(columns[0]), dtype=np.uint64)
    for number, column in enumerate(columns):
        width = column[0].size * column.dtype.itemsize  # bytes
        words = -(-width // 8)
        places = (np.arange(words, dtype=np.uint64) + np.uint64(number << 32)) * np.uint64(0x9E3779B97F4A7C15)
        step = max(1, _WORDS // max(1, words))
        for start in range(0, len(column), step):
            block = np.ascontiguousarray(column[start : start + step]).reshape(min(step, len(column) - start), -1)
            mapped.read(1, block.nbytes)
            if block.dtype.kind == "f":
                block = block + block.dtype.type(0)  # -0.0 becomes 0.0
            if width % 8:
                padded = np.zeros((len(block), words * 8), dtype=np.uint8)
                padded[:, :width] = block.view(np.uint8)
                block = padded
            total[start : start + step] += _mix(block.view(np.uint64) + places).sum(1, dtype=np.uint64)
    return total


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014), in place: sums of it do not cancel as sums of words do."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _copies(table: _Table, task: str | None) -> Iterator[Finding]:
    """Equal inputs: among all, on both sides of the split, and with different answers."""
    if not table.columns or len(table.part) < 2:
        return
    step = _step(table)
    hashes = row_hashes([_every(column, step) for column in table.columns])
    _, first, group, sizes = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    again = np.flatnonzero(np.arange(len(hashes)) != first[group])
    if not len(again):
        return
    pairs = np.stack([first[group[again]], again], 1) * step
    yield Finding(
        "duplicates",
        "warning",
        f"{len(again):,} of {len(hashes):,} examples have the inputs of an earlier one: {_pairs(table, pairs)}.",
        len(again),
        pairs[:_SHOWN].tolist(),
        "kept",
        "leave the copies out, unless they were measured anew",
    )
    part = table.part[::step]
    in_train = np.zeros(len(sizes), dtype=bool)
    in_train[group[part == 0]] = True
    leaked = np.flatnonzero((part > 0) & in_train[group])
    if len(leaked):
        rows_of_train = np.full(len(sizes), len(part))
        np.minimum.at(rows_of_train, group[part == 0], np.flatnonzero(part == 0))
        pairs = np.stack([rows_of_train[group[leaked]], leaked], 1) * step
        each = [f"{(part[leaked] == k).sum():,} of {(part == k).sum():,} {PARTS[k]}" for k in np.unique(part[leaked])]
        yield Finding(
            "leak",
            "warning",
            f"{' and '.join(each)} examples have the inputs of one of train, so scores on them flatter: "
            f"{_pairs(table, pairs)}.",
            len(leaked),
            pairs[:_SHOWN].tolist(),
            "kept",
            "leave the copies out, or split by groups of equal examples",
        )
    if task in ("classes", "tags") and table.truth is not None:
        answers = _codes(table.truth)[::step]
        least, most = np.full(len(sizes), len(table.truth)), np.full(len(sizes), -1)
        np.minimum.at(least, group, answers)
        np.maximum.at(most, group, answers)
        torn = np.flatnonzero((least != most)[group])
        if len(torn):
            other = torn[answers[torn] != answers[first[group[torn]]]]
            pairs = np.stack([first[group[other]], other], 1) * step
            yield Finding(
                "conflicts",
                "warning",
                f"{len(torn):,} of {len(hashes):,} examples have the inputs of another but a different answer: "
                f"{_pairs(table, pairs)}.",
                len(torn),
                pairs[:_SHOWN].tolist(),
                "kept",
                "find out which answer is right",
            )


def _pairs(table: _Table, pairs: np.ndarray) -> str:
    shown = ", ".join(f"{table.name(b)} as {table.name(a)}" for a, b in pairs[:3].tolist())
    return shown + (f" and {len(pairs) - 3:,} more" if len(pairs) > 3 else "")


def _codes(truth: np.ndarray) -> np.ndarray:
    """Answers (N, ...) -> numbers that are equal where the answers are."""
    if truth.dtype.kind == "O":
        truth = np.array([str(answer) for answer in truth.reshape(len(truth), -1).tolist()])
    return np.unique(row_hashes([truth]), return_inverse=True)[1].reshape(-1)


# --- Answers ----------------------------------------------------------------------------------------------------------


def _answers(table: _Table, task: str | None) -> Iterator[Finding]:
    truth = table.truth
    if truth is None:
        if task and table.columns:
            yield _error("no_answers", "There are no answers to learn from.", len(table.part), [], "give them: (x, y)")
        return
    gone = gaps(truth).reshape(len(truth), -1).any(1)
    missing, present = np.flatnonzero(gone), np.flatnonzero(~gone)
    if len(missing):
        yield _error(
            "missing_answers",
            f"{len(missing):,} of {len(truth):,} answers are missing: {rows(missing)}.",
            len(missing),
            missing[:_SHOWN].tolist(),
            "leave these examples out, or find their answers",
        )
    if not len(present):
        return
    if task == "classes" and truth.size == len(truth):
        yield from _classes(table, truth.reshape(len(truth)), present)
    elif task == "numbers":
        yield from _numbers(truth, present)
    elif task == "tags":
        yield from _tags(truth, present)


def _classes(table: _Table, truth: np.ndarray, present: np.ndarray) -> Iterator[Finding]:
    if truth.dtype.kind in "fiu":
        numbers = truth[present]
        for kind, bad, fix in (
            ("fractional", present[numbers != np.floor(numbers)], "task='numbers' if these are measurements"),
            ("negative", present[numbers < 0], "number the classes from 0, or leave these examples out"),
        ):
            if len(bad):
                yield _error(
                    f"{kind}_labels",
                    f"{len(bad):,} labels are {kind}, such as {truth[bad[0]]:g}: {rows(bad)}.",
                    len(bad),
                    bad[:_SHOWN].tolist(),
                    fix,
                )
                return
    column = truth[present].astype(str) if truth.dtype.kind == "O" else truth[present]
    values, codes = distinct(column)
    names = [_label(value, table.examples.labels) for value in values]
    part = table.part[present]
    learned = np.bincount(codes[part == 0], minlength=len(values))
    if (learned > 0).sum() == 1:
        only = names[int(learned.argmax())]
        yield _error(
            "one_class",
            f"All {learned.sum():,} training examples are of one class, {only!r}: there is nothing to tell apart.",
            int(learned.sum()),
            [only],
            "give examples of another class",
        )
    for k in (1, 2):
        unseen = np.flatnonzero((np.bincount(codes[part == k], minlength=len(values)) > 0) & (learned == 0))
        if len(unseen) and learned.any():
            count = int(np.isin(codes[part == k], unseen).sum())
            listed = [names[code] for code in unseen]
            yield _error(
                "unseen_class",
                f"{count:,} {PARTS[k]} examples are of classes that never occur in train: {_list(listed)}.",
                count,
                listed[:_SHOWN],
                "split stratified, give training examples of them, or leave them out",
            )
    counts = np.bincount(codes)
    few = np.flatnonzero(counts < FEW)
    if len(few):
        listed = [names[code] for code in few]
        yield Finding(
            "rare_classes",
            "warning",
            f"{len(few)} classes have fewer than {FEW} examples and cannot be in every part: {_list(listed)}.",
            len(few),
            listed[:_SHOWN],
            "kept",
            "give more examples of them, or merge them into others",
        )
    if len(counts) > 1 and counts.max() > IMBALANCE * counts.min():
        large, small = names[int(counts.argmax())], names[int(counts.argmin())]
        yield Finding(
            "imbalance",
            "warning",
            f"The largest class, {large!r}, has {counts.max():,} examples, the smallest, {small!r}, has "
            f"{counts.min():,}: always answering {large!r} is right in {counts.max() / counts.sum():.1%}.",
            len(counts),
            [large, small],
            "kept",
            "judge by balanced accuracy or F1, and weigh the classes",
        )


def _numbers(truth: np.ndarray, present: np.ndarray) -> Iterator[Finding]:
    if truth.dtype.kind not in "fiub":
        first = truth.reshape(len(truth), -1)[present[0], 0]
        yield _error("not_numbers", f"The answers are no numbers: {str(first)!r}.", len(truth), [], "task='classes'")
        return
    table = truth[present].reshape(len(present), -1).astype(np.float64)
    infinite = present[np.isinf(table).any(1)]
    if len(infinite):
        yield _error(
            "infinite_answers",
            f"{len(infinite):,} answers are infinite: {rows(infinite)}.",
            len(infinite),
            infinite[:_SHOWN].tolist(),
            "leave these examples out",
        )
        return
    if len(table) > 1 and (table == table[0]).all():
        yield _error(
            "one_number",
            f"All {len(table):,} answers are the same, {', '.join(f'{number:g}' for number in table[0, :3])}.",
            len(table),
            table[0, :_SHOWN].tolist(),
            "check how the answers were read",
        )
        return
    centred = table - table.mean(0)
    skew = (centred**3).mean(0) / np.maximum((centred**2).mean(0), np.finfo(float).tiny) ** 1.5
    worst = int(np.abs(skew).argmax())
    if abs(skew[worst]) > SKEW:
        low, middle, high = np.quantile(table[:, worst], [0, 0.5, 1])
        yield Finding(
            "skew",
            "note",
            f"The answers are skewed ({skew[worst]:+.1f}): from {low:g} to {high:g}, half of them below {middle:g}.",
            len(table),
            [],
            "kept",
            "learn their logarithm, numpy.log1p(y)" if low >= 0 and skew[worst] > 0 else "look at the far values",
        )


def _tags(truth: np.ndarray, present: np.ndarray) -> Iterator[Finding]:
    bad = present[~np.isin(truth[present], (0, 1)).reshape(len(present), -1).all(1)]
    if len(bad):
        yield _error(
            "bad_tags",
            f"{len(bad):,} rows of tags hold other values than 0 and 1: {rows(bad)}.",
            len(bad),
            bad[:_SHOWN].tolist(),
            "give a 0/1 matrix (N, K)",
        )


def _error(kind: str, what: str, count: int, examples: list[Any], fix: str) -> Finding:
    return Finding(kind, "error", what, count, examples, "nothing is trained", fix)


def _label(value: Any, labels: list[str] | None) -> str:
    if labels and isinstance(value, np.integer) and 0 <= value < len(labels):
        return labels[int(value)]
    return str(value)


def _list(names: list[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
