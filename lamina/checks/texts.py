"""Texts: without a word, very long, or with the answer written in them.

In: a `Pool` of the kind "texts". Out: findings. At most `LOOKED` texts are searched for the answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lamina.checks.copies import codes_of
from lamina.checks.pool import Pool, shortened
from lamina.findings import Finding

LOOKED = 4000  # texts
LONG = 100_000  # letters
SURE = 0.98  # of a class's texts that hold the word, and of the texts with the word that are of the class
_LETTERS = 2000  # of a text that are searched


def texts(table: Pool, task: str | None) -> Iterator[Finding]:
    column = table.columns[0]
    blank = np.array([k for k, text in enumerate(column) if not str(text).strip()], np.int64)
    if len(blank):
        yield Finding(
            "blank_texts",
            "warning",
            f"{len(blank):,} of {len(column):,} texts are empty or blank: {table.names(blank)}.",
            len(blank),
            table.listed(blank),
            "kept",
            "leave them out, or find their words",
        )
    long = np.array([k for k, text in enumerate(column) if len(str(text)) > LONG], np.int64)
    if len(long):
        yield Finding(
            "long_texts",
            "warning",
            f"{len(long):,} texts have more than {LONG:,} letters, such as {len(str(column[long[0]])):,} in "
            f"{table.name(int(long[0]))}.",
            len(long),
            table.listed(long),
            "kept; of a text only as much is read as the net takes",
            "cut them where they can be cut",
        )
    if task == "classes" and table.truth is not None and len(table.truth) == len(column):
        yield from _written(table)


def _written(table: Pool) -> Iterator[Finding]:
    """Words that are in nearly all texts of a class and in nearly no others."""
    assert table.truth is not None
    rows = table.some(LOOKED, np.flatnonzero(table.part >= 0))
    classes = codes_of(table.truth[rows])
    counts = np.bincount(classes)
    seen: dict[str, Counter] = {}
    for row, k in zip(rows, classes.tolist(), strict=True):
        for word in set(re.findall(r"\w+", str(table.columns[0][row])[:_LETTERS].casefold())):
            seen.setdefault(word, Counter())[k] += 1
    tell: dict[int, tuple[str, int]] = {}
    for word, of in seen.items():
        k, most = of.most_common(1)[0]
        total = sum(of.values())
        tells = 10 <= counts[k] < len(rows) and most >= SURE * max(counts[k], total)
        if tells and (k not in tell or most > tell[k][1]):
            tell[k] = (word, most)
    if tell:
        number = np.unique(table.truth[rows].astype(str))
        first = {int(k): str(table.truth[rows[int(np.flatnonzero(classes == k)[0])]]) for k in tell}
        listed = ", ".join(f"{shortened(word)!r} of {shortened(first[k])!r}" for k, (word, _) in list(tell.items())[:5])
        yield Finding(
            "answer_in_text",
            "warning",
            f"A word of the text gives the answer away in {len(tell)} of {len(number)} classes: {listed}. If it is not there "
            "before the answer is known, scores on these data mean nothing.",
            int(sum(counts[k] for k in tell)),
            [word for word, _ in tell.values()][:10],
            "kept: training goes on",
            "take these words out of the texts",
        )
