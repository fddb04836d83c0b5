"""Dates that are written as words: 31.01.2026, 1/31/26 2:05 PM, 31 Jan 2026, 2026年1月31日.

In: different words of a column, and how often each occurs. Out: datetime64 with NaT for what is no date, and the style that
reads most of them; None where they are no dates. Called by `lamina.sources.cells`.

A style is one of `strptime`. Where the day and the month can be told apart by no cell (3/4/2026), points and hyphens mean
that the day stands first, and strokes that the month does, unless somebody says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

_DAYS = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d-%m-%Y", "%m/%d/%Y", "%d/%m/%Y", "%m-%d-%Y", "%m.%d.%Y", "%d.%m.%y",
    "%m/%d/%y", "%d/%m/%y", "%d %b %Y", "%d. %b %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%b %d %Y", "%Y年%m月%d日",
)  # fmt: skip
_TIMES = ("", " %H:%M:%S", " %H:%M", "T%H:%M:%S", "T%H:%M", " %I:%M:%S %p", " %I:%M %p")
_FRACTIONS = "%Y-%m-%dT%H:%M:%S.%f"  # 2026-01-31T12:30:00.25, which Arrow reads by a cast
_OTHER = {"%m/%d/%Y": "%d/%m/%Y", "%m/%d/%y": "%d/%m/%y", "%d-%m-%Y": "%m-%d-%Y", "%d.%m.%Y": "%m.%d.%Y"}
_LOOKS = re.compile(
    r"\d{1,4}([./-])\d{1,2}\1\d{2,4}(?!\d|[./-]).{0,20}|\d{1,2}\.?[ -][A-Za-z]{3,9}[ -]\d{2,4}.{0,15}"
    r"|[A-Za-z]{3,9} \d{1,2},? \d{4}.{0,15}|\d{4}年\d{1,2}月\d{1,2}日.{0,15}"
)
_LAST = re.compile(r"(?<!\d)(29|30|31)(?!\d)")  # a day that not every month has
_LEAST = 0.9  # of the cells are dates
_YEARS = ("1000", "3000")
_FIRST = 100  # words by which styles are chosen


@dataclass
class Dates:
    values: np.ndarray  # datetime64 of the different words; NaT for what is none
    style: str
    either: bool = False  # the day and the month could be the other way round


def read(
    words: Sequence[str | None], counts: np.ndarray, day_first: bool | None = None, style: str = ""
) -> Dates | None:
    """words: different ones, None for a gap. style: what they are to be read by, where that is known."""
    some = [word for word in words if word is not None]
    first = some[:_FIRST]
    if not some or (not style and sum(_LOOKS.fullmatch(word) is not None for word in first) < _LEAST * len(first)):
        return None
    total = sum(int(count) for word, count in zip(words, counts, strict=True) if word is not None)
    styles = [style] if style else _fitting(first)
    best, share = None, 0.0
    for one in styles:
        values = parsed(words, one)
        found = int(counts[~np.isnat(values)].sum()) / max(1, total)
        if found > share:
            best, share = Dates(values, one), found
    if best is None or (share < _LEAST and not style):
        return None
    return best if style else _settled(best, words, counts, day_first)


def _fitting(words: Sequence[str]) -> list[str]:
    """The styles that read most of a few words."""
    found = [*(day + time for day in _DAYS for time in _TIMES), _FRACTIONS]
    return [style for style in found if np.isnat(parsed(words, style)).sum() <= (1 - _LEAST) * len(words)]


def _settled(found: Dates, words: Sequence[str | None], counts: np.ndarray, day_first: bool | None) -> Dates:
    """Day and month as they are meant, where both readings fit equally well."""
    day = next((day for day in _DAYS if found.style.startswith(day)), "")
    pairs = _OTHER | {other: one for one, other in _OTHER.items()}
    if day not in pairs:
        return found
    other = Dates(parsed(words, pairs[day] + found.style[len(day) :]), pairs[day] + found.style[len(day) :])
    if counts[~np.isnat(other.values)].sum() < counts[~np.isnat(found.values)].sum():
        return found
    if day_first is not None and found.style.startswith("%d") != day_first:
        found = other
    return Dates(found.values, found.style, either=day_first is None)


def parsed(words: Sequence[str | None], style: str) -> np.ndarray:
    """Words as dates of one style; NaT where they are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pa.array(words, pa.string())
    if style == _FRACTIONS:
        try:
            read = column.cast(pa.timestamp("us"))
        except pa.ArrowInvalid:
            read = pa.nulls(len(column), pa.timestamp("us"))
    else:
        read = pc.strptime(column, format=style, unit="us", error_is_null=True)
    values = read.to_numpy(zero_copy_only=False).astype("datetime64[us]")
    if style != _FRACTIONS:
        values[_beyond_month(words, values, style)] = np.datetime64("NaT", "us")
    low, high = np.datetime64(_YEARS[0]), np.datetime64(_YEARS[1])
    values[~((values >= low) & (values < high))] = np.datetime64("NaT", "us")
    return values.astype("datetime64[D]") if ":" not in style else values


def _beyond_month(words: Sequence[str | None], values: np.ndarray, style: str) -> list[int]:
    """Places of the 29th, 30th or 31st of a month that has none, which Arrow counts on into the next."""
    days = values.astype("datetime64[D]") - values.astype("datetime64[M]")  # from 0
    found = []
    for place in np.flatnonzero(days < np.timedelta64(3, "D")).tolist():  # of a gap nothing is true
        word = words[place] or ""
        if _LAST.search(word):
            try:
                datetime.strptime(word, style)
            except ValueError:
                found.append(place)
    return found
