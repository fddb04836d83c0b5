"""Columns of tables, cell by cell: numbers, words, booleans, dates and gaps.

In: a column of pyarrow as a file or Python gave it. Out: one of numpy, as `Examples` of kind "table" hold it: numbers as
float64 with NaN for a gap, booleans, dates, and texts as objects with None for a gap; with the words that stand for gaps,
and the odd cells among numbers, counted. Called by `lamina.sources.tables`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lamina.errors import DataError
from lamina.findings import Finding
from lamina.sources import dates, numerals
from lamina.sources.delimited import Reading, Table
from lamina.sources.formats import as_word

_GAPS = {"", "na", "n/a", "nan", "null", "none", "?", "-", "<na>", "#n/a"}
_OVER = {"inf", "+inf", "-inf", "infinity", "-infinity", "+infinity"}
_WORDS_TOO = {"none", "-"}  # that may be the name of a class
_FEW = 1000  # different words of a column that are compared with each other, or by which it is judged what they are
_NUMERIC = 0.8  # share of numbers above which the other cells of a column are gaps
_MIXED = 0.5  # and above which it is told that it is taken as words
_CODE = re.compile(r"0\d+")


@dataclass
class Column:
    """A column of a table as examples hold it, and what was found in it."""

    values: np.ndarray  # (N,)
    markers: dict[str, int]  # words that stand for gaps -> how often
    odd: dict[str, int]  # cells that are no numbers among numbers -> how often
    share: float = 1.0  # of numbers among its cells that are no gaps; below 1 it is one of words, and `odd` are no gaps
    style: str = ""  # how dates were written, for `strptime`; of numbers with a unit the decimal mark
    unit: str = ""  # what stood beside every number
    either: bool = False  # day and month of its dates may be the other way round
    example: str = ""  # a cell, where style or unit say something
    alike: list[list[str]] = field(default_factory=list)  # words that differ in capitals and blanks only


def column(values: Any, asked: Reading, name: str, decimal: str = ".", *, answers: bool = False) -> Column:
    """A column of pyarrow -> one of numpy, as `Examples` says; its gaps and odd cells counted.

    answers: of the target, whose odd cells may be classes, and whose words for a gap may be names."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    kind = values.type
    if types.is_dictionary(kind):
        values = pc.cast(values, kind.value_type)
        kind = values.type
    if types.is_null(kind):
        return Column(np.full(len(values), np.nan), {}, {})
    if types.is_boolean(kind):
        if not values.null_count:
            return Column(values.to_numpy(), {}, {})
        return Column(np.array([None if v is None else str(v) for v in values.to_pylist()], object), {}, {})
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        if name in asked.text:
            values = pc.cast(values, pa.string())
        else:
            if answers and types.is_integer(kind) and not values.null_count:
                return Column(values.to_numpy(), {}, {})
            number = np.array(pc.cast(values, pa.float64(), safe=False).to_numpy(), np.float64)
            return _finite(number, values, asked.missing)
    elif types.is_date(kind) or types.is_timestamp(kind):
        return Column(_dates(values), {}, {})
    elif types.is_duration(kind):
        seconds = values.cast(pa.duration("us"), safe=False).cast(pa.int64()).to_numpy().astype(np.float64) / 1e6
        return Column(seconds, {}, {})
    elif not (types.is_string(kind) or types.is_large_string(kind)):
        if types.is_binary(kind) or types.is_large_binary(kind):
            raise DataError(f"The column {name!r} holds bytes ({kind}).", expected="numbers, words or dates",
                            fix=f"--ignore {name}")  # fmt: skip
        values = pa.chunked_array([pa.array([as_word(v) for v in values.to_pylist()], pa.string())])
    return _words(values, asked, name, decimal, answers)


def _finite(number: np.ndarray, values: Any, missing: tuple[str, ...]) -> Column:
    """Numbers with NaN for gaps and for what is not finite; that which was not just empty is counted."""
    wrong = ~np.isfinite(number)
    markers: dict[str, int] = {}
    if wrong.any():
        infinite = np.isinf(number)
        for word, count in (("inf", int(infinite.sum())),
                            ("NaN", int(wrong.sum() - infinite.sum()) - values.null_count)):  # fmt: skip
            if count > 0:
                markers[word] = count
        number[infinite] = np.nan
    for word in missing:
        if (gap := numerals.plain(word, ".")) is not None:
            number[number == gap] = np.nan
    return Column(number, markers, {})


def _dates(values: Any) -> np.ndarray:
    """datetime64 in days or microseconds; a zone is taken off (UTC)."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_date32(values.type):
        return values.to_numpy().astype("datetime64[D]")
    return values.cast(pa.timestamp("us"), safe=False).to_numpy().astype("datetime64[us]")


def _words(values: Any, asked: Reading, name: str, decimal: str, answers: bool) -> Column:
    """A column of texts: numbers after all, or words with None for a gap. Looked at by its different values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(values) and values.nbytes > (1 << 31) - 1:
        values = values.cast(pa.large_string())
    coded = pc.dictionary_encode(values.combine_chunks())
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    places = pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy(zero_copy_only=False)
    different = [word.strip() for word in coded.dictionary.to_pylist()]
    if name in asked.lower:
        different = [" ".join(word.casefold().split()) for word in different]
    counts = np.bincount(places, minlength=len(different) + 1)[:-1]
    gaps = {word.casefold() for word in asked.missing} | _GAPS
    keep, kind = name in asked.text, asked.kinds.get(name)
    own = {word.casefold() for word in asked.missing} | {""}
    is_gap = np.array([word.casefold() in (own if keep else gaps) for word in different], bool)
    if answers and not keep:  # "None" may be a class: it is where it is no rarity
        for k, word in enumerate(different):
            if is_gap[k] and word.casefold() in _WORDS_TOO - own and counts[k] > 0.02 * max(1, counts.sum()):
                is_gap[k] = False
    markers = {different[k]: int(counts[k]) for k in np.flatnonzero(is_gap) if different[k]}
    style = asked.styles.get(name, "")
    mark = style if style in numerals.OTHER else ""
    found = None if keep or kind in ("O", "M") else _numbers(different, is_gap, counts, mark or decimal, not mark)
    share, odd = (0.0, {}) if found is None else (found.share, found.odd)
    if found is not None:
        few = len(different) - len(odd) - int(is_gap.sum()) <= 20
        named = answers and few and found.unit.isalpha()  # classes such as 4G and 5G
        if not named and (share == 1.0 or kind == "f" or (share >= _NUMERIC and not (answers and few))):
            over = {
                word: n for word, n in odd.items() if word.casefold() in _OVER or numerals.plain(word, ".") is not None
            }
            found.values = np.append(found.values, np.nan)[places]
            found.markers, found.odd = markers | over, {word: n for word, n in odd.items() if word not in over}
            found.share = 1.0
            return found
    if not keep and not answers and kind in (None, "M") and share < _MIXED:
        words = [None if gap else word for word, gap in zip(different, is_gap, strict=True)]
        when = dates.read(words, counts, asked.day_first, "" if mark else style)
        if when is not None:
            lost = np.isnat(when.values) & ~is_gap
            return Column(
                np.append(when.values, np.datetime64("NaT", "D"))[places], markers,
                {different[k]: int(counts[k]) for k in np.flatnonzero(lost)},
                style=when.style, either=when.either, example=next(word for word in words if word is not None),
            )  # fmt: skip
    objects = np.empty(len(different) + 1, object)
    objects[:-1] = [None if gap else word for word, gap in zip(different, is_gap, strict=True)]
    return Column(
        objects[places], markers, odd, share, alike=_alike([word for word in objects[:-1] if word is not None])
    )


def _alike(words: list[str]) -> list[list[str]]:
    """Of few words those that differ in capitals and blanks only; a single letter may mean what it says."""
    together: dict[str, dict[str, None]] = {}
    for word in words if len(words) <= _FEW else []:
        if len(word) > 1:
            together.setdefault("".join(word.casefold().split()), {})[word] = None
    return [list(some) for some in together.values() if len(some) > 1]


def _numbers(different: list[str], is_gap: np.ndarray, counts: np.ndarray, decimal: str, guess: bool) -> Column | None:
    """The different values as numbers, NaN for those that are none, which are counted in `odd`; and the share of numbers. None
    where there are hardly any. guess: the decimal mark may be the other one."""
    words = [(k, word) for k, word in enumerate(different) if not is_gap[k]]
    some = [word for _, word in words[:_FEW]]

    def dressed() -> list[str]:
        """The decimal marks with which half of the first are numbers in another dress: 1,234 or $5 or 12 kg."""
        marks = (decimal, numerals.OTHER[decimal]) if guess else (decimal,)
        return [
            mark for mark in marks if 2 * sum(numerals.dressed(word, mark) is not None for word in some) >= len(some)
        ]

    if not any(numerals.plain(word, decimal) is not None for word in some) and not (some and dressed()):
        return None
    if any(_CODE.fullmatch(word) for _, word in words) and all(word.isdecimal() for _, word in words):
        return None  # 007 is no number
    read = np.full(len(different), np.nan)
    odd: dict[str, int] = {}
    told = 0
    for k, word in words:
        number = numerals.plain(word, decimal)
        finite = number is not None and abs(number) < float("inf")
        if finite:
            read[k] = number
        else:
            odd[word] = int(counts[k])
            told += 0 if word.casefold() in _OVER or number is not None else int(counts[k])
    total = int(sum(counts[k] for k, _ in words))
    infinite = sum(odd.values()) - told
    share = 1.0 - told / max(1, total - infinite) if total > infinite else 0.0
    best = Column(read, {}, odd, share)
    for mark in dressed() if share < _NUMERIC and odd else ():
        other = _without_dress(words, len(different), counts, total, mark)
        if other is not None and other.share > max(best.share, _NUMERIC):
            best = other
    return best


def _without_dress(words: list[tuple[int, str]], size: int, counts: np.ndarray, total: int, mark: str) -> Column | None:
    """Numbers with a unit, the same in all cells that have one; None where there are several."""
    read, odd = np.full(size, np.nan), {}
    units: set[str] = set()
    for k, word in words:
        bare = numerals.dressed(word, mark)
        if bare is None:
            odd[word] = int(counts[k])
        else:
            read[k], unit = bare
            units |= {unit} - {""}
    if len(units) > 1:
        return None
    example = next(word for k, word in words if not np.isnan(read[k])) if len(odd) < len(words) else ""
    return Column(
        read, {}, odd, 1.0 - sum(odd.values()) / max(1, total), style=mark, unit="".join(units), example=example
    )


def told(table: Table, made: dict[str, Column], *, answers: bool = False) -> list[Finding]:
    """Findings about columns: words for gaps, odd cells among numbers, numbers among words, units, dates."""
    found = []
    marked = {name: one.markers for name, one in made.items() if one.markers}
    if marked:
        words = "; ".join(f"{name}: {_counts(markers)}" for name, markers in list(marked.items())[:6])
        more = f"; and {len(marked) - 6} more columns" if len(marked) > 6 else ""
        count = sum(sum(markers.values()) for markers in marked.values())
        numbers = any(made[name].values.dtype.kind == "f" for name in marked)
        found.append(Finding(
            "markers", "warning" if numbers else "note", f"Cells of {table.name} say that a value is missing, or too "
            f"large: {words}{more}.", count, list(marked)[:5], "they are gaps" if not answers else "their rows are left out",
            f"where such a word is a value of its own: --source-arg text={shlex.quote(next(iter(marked)))}",
        ))  # fmt: skip
    for name, one in made.items():
        count = sum(one.odd.values())
        if one.odd and one.share == 1.0:
            what = "dates" if one.values.dtype.kind == "M" else "numbers"
            found.append(Finding(
                "odd_cells", "warning", f"{count:,} cells of the column {name!r} of {table.name} are no {what}, as its "
                f"others are: {_counts(one.odd)}.", count, list(one.odd)[:5],
                "their rows are left out" if answers else "they are gaps",
                f"mend them; to take the column as words: --source-arg text={shlex.quote(name)}",
            ))  # fmt: skip
        elif one.odd and one.share >= _MIXED:
            found.append(Finding(
                "mixed_column", "warning", f"The column {name!r} of {table.name} holds numbers in {one.share:.0%} of its "
                f"cells, and words: {_counts(one.odd)}.", count, list(one.odd)[:5],
                "each is a class" if answers else "all are taken as words",
                "if they should be numbers, mend the words",
            ))  # fmt: skip
        if one.alike:
            shown = "; ".join(", ".join(map(repr, some[:3])) for some in one.alike[:3])
            shown += f" and {len(one.alike) - 3} more" if one.alike[3:] else ""
            found.append(Finding(
                "spellings", "warning" if answers else "note", f"Words of the column {name!r} of {table.name} differ in "
                f"capitals or blanks only: {shown}.", len(one.alike),
                one.alike[0][:5], "each is a class of its own" if answers else "each is a value of its own",
                f"where they mean the same: --source-arg lower={shlex.quote(name)}",
            ))  # fmt: skip
        if one.either:
            first = "day" if one.style.startswith("%d") else "month"
            found.append(Finding(
                "day_or_month", "warning", f"In the dates of the column {name!r} of {table.name}, such as {one.example!r}, "
                f"day and month cannot be told apart.", int((~np.isnat(one.values)).sum()), [one.example],
                f"the {first} is taken to stand first", f"--source-arg day_first={'no' if first == 'day' else 'yes'}",
            ))  # fmt: skip
    dressed = {name: one for name, one in made.items() if one.style in numerals.OTHER}
    if dressed:
        shown = ", ".join(f"{name} (such as {one.example!r})" for name, one in list(dressed.items())[:6])
        more = f" and {len(dressed) - 6} more columns" if len(dressed) > 6 else ""
        found.append(Finding(
            "units", "note", f"Cells of {table.name} are numbers with a unit, or in groups of digits: {shown}{more}.",
            len(dressed), list(dressed)[:5], "taken as numbers; a unit says nothing",
            f"to take them as words: --source-arg text={shlex.quote(next(iter(dressed)))}",
        ))  # fmt: skip
    return found


def _counts(words: dict[str, int]) -> str:
    """'?' 12 times, 'NA' once."""
    first = sorted(words.items(), key=lambda entry: -entry[1])[:4]
    shown = ", ".join(f"{word[:40]!r} {'once' if count == 1 else f'{count:,} times'}" for word, count in first)
    return shown + (f" and {len(words) - 4:,} more" if len(words) > 4 else "")


def empty(count: int, kind: str) -> np.ndarray:
    if kind == "M":
        return np.full(count, np.datetime64("NaT", "D"))
    return np.full(count, None, object) if kind in "OU" else np.full(count, np.nan)


def as_kind(values: np.ndarray, kind: str, style: str = "") -> tuple[np.ndarray, np.ndarray]:
    """A column as one of another kind, and the rows whose cells do not fit; they are gaps. A column of booleans with gaps
    stays one of objects, as it does on reading. style: how words for dates or numbers are written (`Column.style`)."""
    own = values.dtype.kind
    if own == kind or (own in "OU" and kind in "OU"):
        return values, np.arange(0)
    if own == "f" and np.isnan(values).all():
        return empty(len(values), "O" if kind == "b" else kind), np.arange(0)
    if kind == "O":
        if own == "f":
            words = [None if v != v else str(int(v)) if v == int(v) else repr(v) for v in values.tolist()]
        else:
            words = [None if v is None else str(v) for v in values.tolist()]
        out = np.empty(len(words), object)
        out[:] = words
        return out, np.arange(0)
    if kind == "f" and own == "b":
        return values.astype(np.float64), np.arange(0)
    as_words, _ = as_kind(values, "O")
    if kind == "M" and style:
        when = dates.parsed(as_words.tolist(), style)
        return when, np.flatnonzero(np.isnat(when) & (as_words != np.array(None)))
    out = empty(len(values), "O" if kind == "b" else kind)
    wrong = []
    for row, word in enumerate(as_words):
        if word is None:
            continue
        try:
            if kind == "f":
                out[row] = dressed[0] if style and (dressed := numerals.dressed(word, style)) else float(word)
            elif kind == "M":
                out[row] = np.datetime64(word)
            else:
                out[row] = {"true": "True", "1": "True", "yes": "True", "false": "False", "0": "False", "no": "False"}[
                    word.casefold()
                ]
        except (ValueError, KeyError):
            wrong.append(row)
    if kind == "f":
        out[np.isinf(out)] = np.nan
    return out, np.array(wrong, np.int64)
