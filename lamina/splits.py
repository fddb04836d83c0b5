"""Who learns, who validates, who tests.

In: how many examples there are, and what must be respected: answers (stratify), groups and copies (never split), times
(the latest are the test). Out: a `Split` of row numbers, and its text for splits.csv. Called once a run by `train`;
everything after takes the split that the run stored.

A split is a function of its arguments: the same seed gives the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamina.errors import DataError, UsageError, near, rows
from lamina.imports import loading
from lamina.sources.arrays import distinct, gaps

PARTS = ("train", "valid", "test")
HOWS = ("auto", "random", "stratified", "grouped", "time")
FEW = 3  # members a class needs to be spread: one a part
_LINES = 1 << 14  # of splits.csv, that are made together
_CELLS = 10_000_000  # groups x classes
_RARE = 0.5  # above this share of examples in classes of fewer than FEW, the answers are taken for measurements


@dataclass(frozen=True, eq=False)
class Split:
    """Row numbers of each part, int64, sorted; together every row once. `how` says in words what was done."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    how: str = ""

    def __len__(self) -> int:
        return len(self.train) + len(self.valid) + len(self.test)

    @property
    def parts(self) -> np.ndarray:
        """(N,) int8: 0 train, 1 valid, 2 test, row by row."""
        parts = np.zeros(len(self), dtype=np.int8)
        parts[self.valid], parts[self.test] = 1, 2
        return parts


def split(
    n: int,
    *,
    truth: Any = None,
    valid: float = 0.1,
    test: float = 0.2,
    how: str = "auto",
    groups: Any = None,
    times: Any = None,
    copies: Any = None,
    seed: int = 0,
) -> Split:
    """n rows -> a Split. `valid` and `test` are shares of all rows, 0 <= share < 1; a share of 0 makes an empty part.

    how     random       every row for itself, copies or not
            stratified   each class's count in each part is its exact share, rounded up or down (but no part stays empty
                         for it); classes with fewer than 3 members go to train
            grouped      rows of a group stay together; parts, and classes in them, come near their shares as far as the
                         groups allow
            time         the latest rows are the test, the next latest validate; equal times stay together
            auto         grouped where there are groups, else time where there are times, else stratified where the
                         answers are classes (texts, booleans, whole numbers that recur), else random

    copies (N,): rows with the same number are the same example and stay together, but where `how` is random or time. Classes
    and parts come as near to their shares as that allows: exactly, if there are rows enough that are no copies.

    Raises DataError where a part that was asked for would stay empty.
    """
    if how not in HOWS:
        raise UsageError(f"There is no way to split called {how!r}: {near(how, HOWS)}", expected=", ".join(HOWS))
    for name, share in (("valid", valid), ("test", test)):
        if not 0 <= share < 1:
            raise UsageError(f"{name} is {share}.", expected="a share of the examples, 0 <= share < 1")
    if valid + test >= 1:
        raise UsageError(f"valid {valid:g} and test {test:g} leave nothing to learn from.", expected="below 1 in all")
    shares = np.array([1 - valid - test, valid, test])
    need = int((shares > 0).sum())
    if n < need:
        raise DataError(
            f"There {'is 1 example' if n == 1 else f'are {n} examples'} for {need} parts.",
            expected=f"{need} or more",
            fix="give more examples, or ask for no validation or test part",
        )
    for name, column in (("truth", truth), ("groups", groups), ("times", times), ("copies", copies)):
        if column is not None and len(column) != n:
            raise UsageError(f"{name} has {len(column)} entries for {n} examples.", expected="one an example")
    classes = _classes(truth)
    reason = ""
    same, extra = (None, 0) if copies is None or how == "random" else _same(copies)
    together = f"; {extra:,} {'copies' if extra > 1 else 'copy'} kept together" if extra else ""
    if how == "auto":
        how, reason = _choose(classes, groups, times)
    if how == "grouped":
        column = _column(groups, "groups")
        parts, words = _grouped(column if same is None else _united(column, same), classes, shares, seed)
        words += together
    elif how == "time":
        parts, words = _by_time(_column(times, "times"), shares)
    elif how == "stratified":
        if classes is None:
            raise UsageError(
                "The answers cannot be stratified.",
                expected="truth (N,) of texts, booleans or whole numbers",
                fix="how='random'",
            )
        parts, words = _stratified(classes, shares, seed) if same is None else _whole(classes, same, shares, seed)
        words += together
    elif same is not None:
        parts, words = _whole(np.zeros(n, np.int64), same, shares, seed)
        words = f"at random, seed {seed}{together}"
    else:
        parts, words = _random(n, shares, seed), f"at random, seed {seed}"
    return _of(parts, words + reason)


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of some rows (n,), spread evenly over them; all where there are no more."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]


def to_csv(split: Split) -> str:
    """The text of splits.csv: `row,split`, a line a row."""
    return "".join(csv(split))


def csv(split: Split) -> Iterator[str]:
    """The same in pieces: as Python's texts, all lines of a large split are ten times what they are in the file."""
    yield "row,split\n"
    parts = split.parts
    for start in range(0, len(parts), _LINES):
        some = parts[start : start + _LINES].tolist()
        yield "".join(f"{row},{PARTS[part]}\n" for row, part in enumerate(some, start))


def from_csv(text: str, how: str = "as stored") -> Split:
    """The Split of a text that `to_csv` wrote. DataError names the first line that is wrong."""
    header, *lines = text.splitlines() or [""]
    if header.strip() != "row,split":
        raise DataError(f"A split file begins with {header!r}.", expected="row,split")
    parts = np.full(len(lines), -1, dtype=np.int8)
    for number, line in enumerate(lines, start=2):
        row, _, name = line.strip().partition(",")
        if not row.isdecimal() or name not in PARTS:
            raise DataError(f"Line {number} of a split file is {line!r}.", expected=f"ROW,{'|'.join(PARTS)}")
        if int(row) >= len(lines) or parts[int(row)] >= 0:
            raise DataError(
                f"Line {number} of a split file has row {row}, which is there twice or above the {len(lines)} rows.",
                expected="every row from 0 on, once",
            )
        parts[int(row)] = PARTS.index(name)
    return _of(parts, how)


def _of(parts: np.ndarray, how: str) -> Split:
    train, valid, test = (np.flatnonzero(parts == part).astype(np.int64) for part in range(3))
    return Split(train, valid, test, how)


def _choose(classes: np.ndarray | None, groups: Any, times: Any) -> tuple[str, str]:
    """What `auto` means here, and a remark where it is not obvious."""
    if groups is not None:
        return "grouped", ""
    if times is not None:
        return "time", ""
    if classes is None:
        return "random", ""
    if rare := _too_rare(classes):
        return "random", f"; not stratified: {rare:,} of {len(classes):,} answers occur fewer than {FEW} times"
    return "stratified", ""


def _too_rare(classes: np.ndarray) -> int:
    """How many examples have classes of a few, where these are too many to be kept to their shares; else 0."""
    counts = np.bincount(classes)
    rare = int(counts[counts < FEW].sum())
    return rare if rare > _RARE * len(classes) else 0


def _random(n: int, shares: np.ndarray, seed: int) -> np.ndarray:
    sizes = _apportion(n, shares)
    parts = np.repeat(np.arange(3, dtype=np.int8), sizes)
    return np.random.default_rng(seed).permutation(parts)


def _apportion(n: int, shares: np.ndarray) -> np.ndarray:
    """n in whole numbers by shares (largest remainder), at least 1 wherever a share is above 0."""
    exact = np.round(n * shares, 9)
    sizes = np.floor(exact).astype(np.int64)
    order = np.argsort(sizes - exact, kind="stable")
    sizes[order[: n - sizes.sum()]] += 1
    for part in np.flatnonzero((shares > 0) & (sizes == 0)):
        sizes[sizes.argmax()] -= 1
        sizes[part] += 1
    return sizes


# --- Stratified -------------------------------------------------------------------------------------------------------


def _classes(truth: Any) -> np.ndarray | None:
    """Answers (N,) or (N, 1) -> class numbers 0..K-1; None where they are no classes."""
    if truth is None:
        return None
    column = np.asarray(truth)
    if column.ndim == 2 and column.shape[1] == 1:
        column = column[:, 0]
    if column.ndim != 1 or column.dtype.kind not in "biuUO":
        return None
    return _codes(column)


def _codes(column: np.ndarray) -> np.ndarray:
    """(N,) values -> numbers 0..K-1 of the distinct ones. None and NaN count as one value."""
    if column.dtype.kind == "O":
        column = np.array([f"{type(v).__name__} {v}" for v in column])
    return distinct(column)[1]


def _stratified(classes: np.ndarray, shares: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    rng = np.random.default_rng(seed)
    counts = np.bincount(classes)
    spread = np.flatnonzero(counts >= FEW)
    if not len(spread):
        raise DataError(
            f"No class has {FEW} examples or more: the largest of {len(counts)} classes has {counts.max()}.",
            expected=f"{FEW} or more in a class that is to be spread over the parts",
            fix="how='random', or give more examples",
        )
    parts = np.zeros(len(classes), dtype=np.int8)
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    order = rng.permutation(spread)
    for sizes, label in zip(_table(counts[order], shares), order, strict=True):
        parts[rng.permutation(members[label])] = np.repeat(np.arange(3, dtype=np.int8), sizes)
    few = len(counts) - len(spread)
    rare = f"; {few} class{'es' if few > 1 else ''} with fewer than {FEW} examples in train only" if few else ""
    return parts, f"stratified by class, seed {seed}{rare}"


def _table(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Class counts (K,) -> sizes (K, 3): each the exact share rounded up or down, the columns near their shares too.

    What a class's floors leave over goes to the parts that so far lack most (error diffusion over the classes).
    """
    exact = np.round(counts[:, None] * shares, 9)
    table = np.floor(exact).astype(np.int64)
    lack = np.zeros(3)
    for row in range(len(counts)):
        fraction = exact[row] - table[row]
        lack += fraction
        left = counts[row] - table[row].sum()
        most = np.argsort(np.where(fraction > 0, -lack, np.inf), kind="stable")[:left]
        table[row, most] += 1
        lack[most] -= 1
    for part in np.flatnonzero((shares > 0) & (table.sum(0) == 0)):  # so few that a part is empty: the mildest move
        above = table - exact
        worst = np.maximum(1 - above, 1 + above[:, [part]])
        worst[(table == 0) | (table.sum(0) < 2)] = np.inf
        row, donor = np.unravel_index(worst.argmin(), worst.shape)
        table[row, donor] -= 1
        table[row, part] += 1
    return table


# --- Copies -----------------------------------------------------------------------------------------------------------


def _same(copies: Any) -> tuple[np.ndarray | None, int]:
    """(N,) numbers 0..U-1 of the examples, and how many rows are copies; None where no row is one."""
    codes = _codes(_column(copies, "copies"))
    extra = len(codes) - (int(codes.max()) + 1)
    return (codes, extra) if extra else (None, 0)


def _united(groups: np.ndarray, same: np.ndarray) -> np.ndarray:
    """(N,) numbers of what hangs together by groups and by copies."""
    with loading():
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

    codes = _codes(groups)
    nodes = int(codes.max()) + 1 + int(same.max()) + 1
    links = coo_array((np.ones(len(codes), bool), (codes, int(codes.max()) + 1 + same)), shape=(nodes, nodes))
    return np.asarray(connected_components(links, directed=False)[1])[codes]


def _whole(classes: np.ndarray, same: np.ndarray, shares: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Stratified, what is the same example in one part: first those of many rows, the largest first, each to a part drawn by
    the room that is left there for its classes; then the others of each class fill the rooms up.

    Classes of fewer than FEW different examples stay in train, and so does every class's last: what is held out was seen.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(same, kind="stable")
    sizes = np.bincount(same)
    starts = np.cumsum(sizes) - sizes  # of each example's rows, in this order
    different = np.bincount(np.unique(np.stack([classes, same]), axis=1)[0])  # examples of each class
    need = int((shares > 0).sum())
    if len(sizes) < need:
        raise DataError(
            f"There {'is 1 different example' if len(sizes) == 1 else f'are {len(sizes)} different examples'} for "
            f"{need} parts: the others are copies.",
            expected=f"{need} or more",
            fix="give more examples, ask for no validation or test part, or how='random'",
        )
    rare = np.flatnonzero(different < FEW)
    if len(rare) == len(different) > 1:
        why = f"; not stratified: no class has {FEW} different examples"
        return _whole(np.zeros_like(classes), same, shares, seed)[0], f"at random, seed {seed}{why}"
    counts = np.bincount(classes)
    room = np.zeros((len(counts), 3), np.int64)
    room[rare, 0] = counts[rare]
    spread = rng.permutation(np.setdiff1d(np.arange(len(counts)), rare))
    room[spread] = _table(counts[spread], shares) if len(spread) else 0
    parts = np.full(len(classes), -1, np.int8)
    several = np.flatnonzero(sizes > 1)
    for unit in several[np.lexsort((rng.permutation(len(several)), -sizes[several]))]:
        rows = order[starts[unit] : starts[unit] + sizes[unit]]
        kinds, amounts = np.unique(classes[rows], return_counts=True)
        left = room[kinds] - amounts[:, None]  # (kinds, 3)
        fitting = np.flatnonzero((left >= 0).all(0) & (shares > 0))
        if np.isin(kinds, rare).any():
            part = 0
        elif len(fitting):
            chances = room[kinds][:, fitting].sum(0).astype(np.float64)
            part = int(rng.choice(fitting, p=chances / chances.sum()))
        else:
            part = int(np.where(shares > 0, left.min(0), -len(classes)).argmax())
        parts[rows] = part
        room[kinds, part] -= amounts
    single = np.flatnonzero(parts < 0)
    for label in np.unique(classes[single]):
        rows = single[classes[single] == label]
        parts[rng.permutation(rows)] = np.repeat(np.arange(3, dtype=np.int8), _filled(room[label], len(rows)))
    _mend(parts, classes, same, shares)
    few = len(rare)
    words = (
        f"; {few} class{'es' if few > 1 else ''} with fewer than {FEW} different examples in train only" if few else ""
    )
    return parts, f"stratified by class, seed {seed}{words}"


def _filled(room: np.ndarray, count: int) -> np.ndarray:
    """Sizes (3,) that add up to `count`, as `room` says; what copies took too much of one part is taken from the largest."""
    sizes = np.maximum(room, 0)
    while (over := sizes.sum() - count) > 0:
        largest = int(sizes.argmax())
        sizes[largest] -= min(over, max(1, sizes[largest] // 2))
    sizes[0] += count - sizes.sum()
    return sizes


def _mend(parts: np.ndarray, classes: np.ndarray, same: np.ndarray, shares: np.ndarray) -> None:
    """In place: no part that was asked for is empty, and no class is held out that train has not."""
    sizes = np.bincount(same)
    for part in np.flatnonzero(shares > 0):
        if not (parts == part).any():
            of = np.zeros(len(sizes), np.int8)
            of[same] = parts
            movable = np.bincount(of, minlength=3)[of] > 1
            parts[same == np.where(movable, sizes, len(parts) + 1).argmin()] = part
    learned = np.zeros(int(classes.max()) + 1, bool)
    learned[classes[parts == 0]] = True
    for row in np.flatnonzero(~learned[classes]):
        unit = same == same[row]
        if not learned[classes[row]] and (parts == parts[row]).sum() > unit.sum():
            parts[unit] = 0
            learned[classes[unit]] = True


# --- Grouped, by time -------------------------------------------------------------------------------------------------


def _column(values: Any, name: str) -> np.ndarray:
    """(N,) without gaps; times as numbers or dates."""
    if values is None:
        raise UsageError(f"There are no {name} to split by.", expected=f"{name} (N,)", fix="give them, or another how")
    column = np.asarray(values)
    if column.ndim != 1:
        raise UsageError(f"{name} has shape {column.shape}.", expected="(N,)")
    if name == "times" and column.dtype.kind in "UO":
        try:
            column = column.astype("datetime64[us]")
        except (ValueError, TypeError) as error:
            raise DataError(
                f"The times cannot be read: {error}.", expected="numbers, datetime64 or ISO dates such as 2026-01-31"
            ) from error
    missing = np.flatnonzero(gaps(column))
    if len(missing):
        raise DataError(f"{len(missing)} {name} are missing: {rows(missing)}.", fix="fill them, or leave these out")
    return column


def _grouped(
    groups: np.ndarray, classes: np.ndarray | None, shares: np.ndarray, seed: int
) -> tuple[np.ndarray, str]:  # fmt: skip
    """Groups that stay whole, each class as near to its shares as they allow."""
    codes = _codes(groups)
    sizes = np.bincount(codes)
    need = int((shares > 0).sum())
    if len(sizes) < need:
        raise DataError(
            f"There {'is 1 group' if len(sizes) == 1 else f'are {len(sizes)} groups'} for {need} parts.",
            expected=f"{need} groups or more",
            fix="give more groups, or ask for no validation or test part",
        )
    # The largest first (equal ones in random order), each to the part that lacks most of what it holds: that which brings
    # the squares of all that is lacking, of each class as a share of it, down the most.
    if classes is None or _too_rare(classes) or len(sizes) * (int(classes.max()) + 1) > _CELLS:
        classes = np.zeros(len(groups), np.int64)
    held = np.zeros((len(sizes), int(classes.max(initial=0)) + 1))
    np.add.at(held, (codes, classes), 1)
    counts = held.sum(0)
    lack = shares[:, None] * counts
    part_of = np.zeros(len(sizes), dtype=np.int8)
    empty = set(np.flatnonzero(shares > 0).tolist())
    order = np.lexsort((np.random.default_rng(seed).permutation(len(sizes)), -sizes))
    for place, group in enumerate(order):
        open_to = sorted(empty) if len(order) - place <= len(empty) else np.flatnonzero(shares > 0).tolist()
        gains = lack @ (held[group] / counts)
        part = max(open_to, key=gains.__getitem__)
        part_of[group] = part
        lack[part] -= held[group]
        empty.discard(part)
    near = ", classes as near to their shares as that allows" if len(counts) > 1 else ""
    return part_of[codes], f"by {len(sizes):,} groups that stay whole{near}, seed {seed}"


def _by_time(times: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, str]:
    n = len(times)
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    edges = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1  # places where the time changes: a cut keeps ties whole
    cuts = int((shares[1:] > 0).sum())
    if len(edges) < cuts:
        times_found = "is 1 time" if len(edges) == 0 else f"are {len(edges) + 1} different times"
        raise DataError(
            f"There {times_found} for {cuts + 1} parts.",
            expected=f"{cuts + 1} different times or more",
        )
    test_from = valid_from = n
    if shares[2] > 0:
        test_from = _nearest(edges[cuts - 1 :], n * (1 - shares[2]))
    if shares[1] > 0:
        valid_from = _nearest(edges[edges < test_from], test_from - n * shares[1])
    else:
        valid_from = test_from
    parts = np.zeros(n, dtype=np.int8)
    parts[order[valid_from:test_from]] = 1
    parts[order[test_from:]] = 2
    starts = {"validation": (shares[1], valid_from), "test": (shares[2], test_from)}
    begins = [f"{name} from {ordered[start]}" for name, (share, start) in starts.items() if share > 0]
    return parts, f"by time: {', '.join(begins)}" if begins else "by time"


def _nearest(edges: np.ndarray, wanted: float) -> int:
    return int(edges[np.abs(edges - wanted).argmin()])
