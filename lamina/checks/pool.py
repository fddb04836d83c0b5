"""Parts given or split, as one table, and how much of it is looked at.

In: a `Source` and, where it is known, the split. Out: a `Pool`, whose rows are those of train, then valid, then test as
they were given. Called by every check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lamina import mapped
from lamina.errors import printable
from lamina.findings import Finding
from lamina.joined import Joined
from lamina.sources import Examples, Source
from lamina.splits import PARTS, Split, spread

MOST_BYTES = 1 << 29  # of inputs that are looked at whole: about 2 s of one core
TINY = 100  # examples
SHOWN = 10  # examples a finding lists
_LETTERS = 60  # of a name or a value that is shown


@dataclass
class Pool:
    """Parts given or split, as one table: rows are those of train, then valid, then test as they were given."""

    columns: list[np.ndarray]  # (N, ...) an input each; empty for a Dataset, and for files that are not read yet
    truth: np.ndarray | None  # (N, ...)
    part: np.ndarray  # (N,) int8: 0 train, 1 valid, 2 test, -1 none
    examples: Examples  # those to learn from: what they are called
    ids: np.ndarray | None = None  # (N,) what a person calls each example
    target: tuple[str, ...] = ()  # the columns that held the answers
    drawn: bool = False  # whether the held-out rows were drawn from the same as those to learn from

    @property
    def kind(self) -> str:
        return self.examples.kind

    @property
    def held_out(self) -> np.ndarray:
        return self.part > 0

    @cached_property
    def step(self) -> int:
        """Of how many examples one is looked at."""
        size = sum(column.nbytes for column in self.columns)
        return max(1, -(-size // min(MOST_BYTES, (mapped.most() or 4 * MOST_BYTES) // 4)))

    def name(self, row: int) -> str:
        """What a person calls an example: "row 7 (test)", "line 9", "cat/3.jpg"."""
        called = f"row {row}" if self.ids is None else shortened(str(self.ids[row]))
        if called.isdecimal():
            called = f"line {called}"
        return called + (f" ({PARTS[self.part[row]]})" if self.held_out.any() else "")

    def names(self, rows: Any, most: int = 5) -> str:
        """'row 3, row 17 and 12 more'."""
        shown = ", ".join(self.name(int(row)) for row in rows[:most])
        return shown + (f" and {len(rows) - most:,} more" if len(rows) > most else "")

    def listed(self, rows: Any) -> list[Any]:
        """The first of some rows as a finding lists them."""
        first = [int(row) for row in rows[:SHOWN]]
        return first if self.ids is None else [str(self.ids[row]) for row in first]

    def some(self, most: int, rows: np.ndarray | None = None) -> np.ndarray:
        """At most `most` rows (of all, or of some), spread evenly."""
        return spread(np.arange(len(self.part)) if rows is None else rows, most)


def pool(source: Source, split: Split | None = None) -> Pool:
    """The table that the parts of a source make together."""
    given = [(k, part) for k, name in enumerate(PARTS) if (part := getattr(source, name)) is not None]
    counts = [len(part.truth) if part.truth is not None else part.count or 0 for _, part in given]
    part = np.repeat(np.array([k for k, _ in given], dtype=np.int8), counts)
    if split is not None:
        part[: len(part) if len(split) > counts[0] else counts[0]] = -1
        for k, name in enumerate(PARTS):
            part[getattr(split, name)] = k
    columns: list[np.ndarray] = []
    if source.train.kind != "files" and all(isinstance(examples.inputs, tuple) for _, examples in given):
        columns = [_one(column) for column in zip(*(examples.inputs for _, examples in given), strict=True)]
    truths = [examples.truth for _, examples in given]
    truth = None if any(column is None for column in truths) else _one(truths)
    names = [examples.ids for _, examples in given]
    ids = None if any(column is None for column in names) else _one(names)
    drawn = split is not None and not split.how.startswith("by ") and "as given" not in split.how
    return Pool(columns, truth, part, source.train, ids, source.target, drawn)


def _one(columns: Any) -> np.ndarray:
    if len(columns) == 1:
        return columns[0] if isinstance(columns[0], Joined) else np.asarray(columns[0])  # type: ignore[return-value]
    return np.concatenate([np.asarray(column) for column in columns])


def every(column: np.ndarray, step: int) -> np.ndarray:
    """Every step-th example."""
    plain = step == 1 or not mapped.is_mapped(column)
    return column[::step] if plain else some(column, np.arange(0, len(column), step))


def some(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows of a column; of one on the disk without those that lie beside them."""
    if not mapped.is_mapped(column):
        return column[rows]
    return mapped.take(mapped.as_tensor(column), torch.from_numpy(rows)).numpy()


def size(table: Pool) -> Iterator[Finding]:
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
    if table.step > 1:
        looked = -(-n // table.step)
        yield Finding(
            "sampled",
            "note",
            f"One input in {table.step} was looked at, {looked:,} of {n:,}: among the others faults and copies are not "
            "seen.",
            n - looked,
            [],
            "kept",
            "",
        )


def error(kind: str, what: str, count: int, examples: list[Any], fix: str) -> Finding:
    """A finding that makes training pointless."""
    return Finding(kind, "error", what, count, examples, "nothing is trained", fix)


def shortened(text: str, letters: int = _LETTERS) -> str:
    """A value as a finding quotes it: one line, not too long."""
    text = " ".join(printable(text).split())
    return text if len(text) <= letters else text[: letters - 1] + "…"


def listing(names: list[str], most: int = 5) -> str:
    """ "'ant', 'bee' and 3 more"."""
    shown = ", ".join(repr(shortened(name)) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
