"""Examples that are there more than once: which, on which side of the split, and with which answers.

In: a `Pool`. Out: `Copies`, from which the split keeps together what is equal, and findings. Equal are arrays, pictures and
rows of a table byte by byte (of a table without columns that only name a row, if the others are enough to know one again), and
texts whatever their spaces, signs
and capitals. Near copies are those of `near`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from lamina import mapped
from lamina.checks import near
from lamina.checks.columns import codes, is_identifier
from lamina.checks.pool import SHOWN, Pool, every, shortened
from lamina.findings import Finding
from lamina.imports import loading
from lamina.splits import PARTS

CHAIN = 0.05  # of all examples that may hang together by near copies: above it they are made after one template
CHANCE = 0.01  # pairs an example that may be equal by chance, beside columns that name the rows
_WORDS = 1 << 16  # words of 8 bytes worked on together: so few that they stay in the processor's cache


@dataclass
class Copies:
    """What is there more than once, by rows of the pool."""

    first: np.ndarray  # (N,) int64: the first row with the same inputs, for most their own
    near: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 2), np.int64)
    )  # (M, 2) pairs that are nearly the same
    turned: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # (M,) which of them only mirrored or turned
    template: int = 0  # examples in the largest chain of near copies, where that is too long for one part

    def units(self, count: int) -> np.ndarray | None:
        """(count,) for the first rows of the pool: which of them belong in one part; None where each is for itself, or all
        are the same, so that there is nothing to keep apart."""
        near = self.near[(self.near < count).all(1)] if not self.template else self.near[:0]
        first = self.first[:count]
        if not len(near) and (first == np.arange(count)).all():
            return None
        found = united(first, near)
        return found if found.any() else None


def united(first: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(N,) numbers of what hangs together by `first` (a row each row belongs to) and by pairs of rows (M, 2)."""
    if not len(pairs):
        return np.unique(first, return_inverse=True)[1].reshape(-1)
    with loading():
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

    rows = np.concatenate([np.arange(len(first)), pairs[:, 0]])
    others = np.concatenate([first, pairs[:, 1]])
    links = coo_array((np.ones(len(rows), bool), (rows, others)), shape=(len(first), len(first)))
    return np.asarray(connected_components(links, directed=False)[1])


def find(table: Pool, nearly: bool = True) -> Copies:
    """The copies among the inputs of a pool, and the near copies."""
    n = len(table.part)
    first = np.arange(n)
    columns = _comparable(table)
    if not columns or n < 2:
        return Copies(first)
    hashes = row_hashes([every(column, table.step) for column in columns])
    _, places, group = np.unique(hashes, return_index=True, return_inverse=True)
    first[:: table.step] = places[group] * table.step
    if not nearly:
        return Copies(first)
    pairs, turned = near.pairs(table, np.flatnonzero(first == np.arange(n))[:: 1 if table.step == 1 else table.step])
    found = Copies(first, pairs, turned)
    if len(pairs):
        longest = int(np.bincount(united(first, pairs)).max())
        if longest > max(20, CHAIN * n):
            found.template = longest
    return found


def _comparable(table: Pool) -> list[np.ndarray]:
    """The columns by which examples are equal, as arrays that can be hashed."""
    if table.kind == "texts":
        keys: dict[object, int] = {}
        words = (
            near.plain(text) or place for place, text in enumerate(table.columns[0])
        )  # a blank one is like no other
        return [np.array([keys.setdefault(key, len(keys)) for key in words], np.int64)]
    if table.kind != "table":
        return [column for column in table.columns if column.dtype.kind != "O"]
    coded = [codes(column) for column in table.columns]
    names = [is_identifier(column) for column in table.columns]
    if not any(names):
        return coded
    rest = [column for column, name in zip(coded, names, strict=True) if not name]
    return rest if _by_chance(rest) < CHANCE * len(coded[0]) else coded


def _by_chance(columns: list[np.ndarray]) -> float:
    """How many pairs of rows would be equal if columns had nothing to do with each other."""
    if not columns:
        return float("inf")
    n = len(columns[0])
    shares = [np.unique(column, return_counts=True)[1] / n for column in columns]
    return n * n / 2 * float(np.prod([(share**2).sum() for share in shares]))


# --- Hashes -----------------------------------------------------------------------------------------------------------


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


# --- Findings ---------------------------------------------------------------------------------------------------------


def findings(table: Pool, copies: Copies, task: str | None, kept_together: bool) -> Iterator[Finding]:
    """Equal inputs: among all, on both sides of the split, and with different answers; then those nearly equal."""
    first = copies.first
    again = np.flatnonzero(first != np.arange(len(first)))
    done = "kept; the split keeps them together" if kept_together else "kept"
    spread = "; --split random spreads them" if kept_together else ""
    if len(again):
        yield Finding(
            "duplicates",
            "warning",
            f"{len(again):,} of {-(-len(first) // table.step):,} {_things(table, len(again))} of an earlier one: "
            f"{_pairs(table, np.stack([first[again], again], 1))}.",
            len(again),
            _listed(table, np.stack([first[again], again], 1)),
            done,
            f"leave the copies out, unless they were measured anew{spread}",
        )
        yield from _leak(table, first)
        if task in ("classes", "tags") and table.truth is not None:
            yield from _conflicts(table, first)
    if len(copies.near):
        yield from _near(table, copies, task, done)


def _things(table: Pool, count: int) -> str:
    have = "has" if count == 1 else "have"
    return f"texts {have} the words" if table.kind == "texts" else f"examples {have} the inputs"


def _leak(table: Pool, first: np.ndarray) -> Iterator[Finding]:
    in_train = np.full(len(first), len(first))  # of what is equal: the first that is learned from
    learned = np.flatnonzero(table.part == 0)
    np.minimum.at(in_train, first[learned], learned)
    leaked = np.flatnonzero((table.part > 0) & (in_train[first] < len(first)))
    if len(leaked):
        yield _leaking(table, np.stack([in_train[first[leaked]], leaked], 1), "leak", "have the inputs of one of train",
                       "leave the copies out")  # fmt: skip


def _leaking(table: Pool, pairs: np.ndarray, kind: str, words: str, fix: str) -> Finding:
    """pairs (M, 2): a row of train, and the held-out one."""
    part = table.part[pairs[:, 1]]
    looked = table.part[:: table.step]
    each = [f"{(part == k).sum():,} of {(looked == k).sum():,} {PARTS[k]}" for k in np.unique(part)]
    return Finding(
        kind,
        "warning",
        f"{' and '.join(each)} examples {words}, so scores on them flatter: {_pairs(table, pairs)}.",
        len(pairs),
        _listed(table, pairs),
        "kept",
        fix,
    )


def _conflicts(table: Pool, first: np.ndarray) -> Iterator[Finding]:
    assert table.truth is not None
    answers = codes_of(table.truth)
    looked = np.arange(0, len(first), table.step)
    least, most = np.full(len(first), len(first)), np.full(len(first), -1)
    np.minimum.at(least, first[looked], answers[looked])
    np.maximum.at(most, first[looked], answers[looked])
    torn = looked[(least != most)[first[looked]]]
    if len(torn):
        other = torn[answers[torn] != answers[first[torn]]]
        pairs = np.stack([first[other], other], 1)
        yield Finding(
            "conflicts",
            "warning",
            f"{len(torn):,} of {len(looked):,} examples have the inputs of another but a different answer: "
            f"{_pairs(table, pairs)}.",
            len(torn),
            _listed(table, pairs),
            "kept",
            "find out which answer is right",
        )


def _near(table: Pool, copies: Copies, task: str | None, done: str) -> Iterator[Finding]:
    pairs, thing = copies.near, "texts" if table.kind == "texts" else "pictures"
    together = done if not copies.template else "kept"
    template = f" {copies.template:,} of them hang together, as if made after one template." if copies.template else ""
    said, count = _pairs(table, pairs), len(np.unique(pairs[:, 1]))
    turned = len(np.unique(pairs[copies.turned, 1]))
    how = f", {turned:,} of them mirrored or turned" if turned else ""
    if task in ("classes", "tags") and table.truth is not None:
        answers = codes_of(table.truth)
        torn = pairs[answers[pairs[:, 0]] != answers[pairs[:, 1]]]
        if len(torn):
            template += f" {len(np.unique(torn[:, 1])):,} of them with another answer: {_pairs(table, torn)}."
    if table.kind == "texts":
        said += f", such as {shortened(str(table.columns[0][pairs[0, 0]]))!r}"
    yield Finding(
        "near_duplicates",
        "warning" if not copies.template else "note",
        f"{count:,} of {len(table.part):,} {thing} {'is' if count == 1 else 'are'} nearly the same as an earlier one{how}: "
        f"{said}.{template}",
        count,
        _listed(table, pairs),
        together,
        "look at them; leave out what is a copy",
    )
    part = table.part[pairs]
    across = np.concatenate([pairs[(part[:, 0] == 0) & (part[:, 1] > 0)],
                             pairs[(part[:, 1] == 0) & (part[:, 0] > 0)][:, ::-1]])  # fmt: skip
    if len(across):
        across = across[np.unique(across[:, 1], return_index=True)[1]]
        yield _leaking(table, across, "near_leak", f"are {thing} nearly the same as one of train",
                       "leave out the copies, or give --groups")  # fmt: skip


def _pairs(table: Pool, pairs: np.ndarray) -> str:
    shown = ", ".join(f"{table.name(b)} as {table.name(a)}" for a, b in pairs[:3].tolist())
    return shown + (f" and {len(pairs) - 3:,} more" if len(pairs) > 3 else "")


def codes_of(truth: np.ndarray) -> np.ndarray:
    """Answers (N, ...) -> numbers that are equal where the answers are."""
    if truth.dtype.kind == "O":
        truth = np.array([str(answer) for answer in truth.reshape(len(truth), -1).tolist()])
    return np.unique(row_hashes([truth]), return_inverse=True)[1].reshape(-1)


def _listed(table: Pool, pairs: np.ndarray) -> list[list[object]]:
    return [table.listed(pair) for pair in pairs[:SHOWN]]
