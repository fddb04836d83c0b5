"""Tables: columns by name, from files or from Python, and which of them is what.

In: CSV and its kin, Parquet, JSON lines, Excel; a data frame, a dict of columns or an Arrow table; which columns hold the
answers, are to be ignored, say who belongs together, when, and which part (`Columns`). Out: a `Source` of kind "table":
numbers as float64 with NaN for a gap, booleans, dates, and texts as objects with None for a gap; the answers apart.
Called by `lamina.sources.open`; `open_inputs` and `matched` by the domains that take tables.

Columns are looked at value by value, and what is found is told: gaps that are written as words, odd cells among numbers,
answers that are missing.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lamina.errors import DataError, UsageError, near
from lamina.findings import Finding
from lamina.sources import Columns, Examples, Source, delimited
from lamina.sources.delimited import NUMBER, Reading, Table, clean_names

TEXT = (".csv", ".tsv", ".tab", ".psv", ".data", ".dat")
PARQUET, EXCEL, LINES = (".parquet", ".pq"), (".xlsx", ".xlsm"), (".jsonl", ".ndjson", ".json")
ENDINGS = (*TEXT, *PARQUET, *EXCEL, *LINES)
ANSWERS = ("target", "label", "labels", "class", "y", "outcome", "response", "answer", "category", "truth", "output")
PARTS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
         "test": "test", "testing": "test", "holdout": "test"}  # fmt: skip
SPLITS = ("split", "subset", "partition", "set", "fold")
_GAPS = {"", "na", "n/a", "nan", "null", "none", "?", "-", "<na>", "#n/a"}
_OVER = {"inf", "+inf", "-inf", "infinity", "-infinity", "+infinity"}
_WORDS_TOO = {"none", "-"}  # that may be the name of a class
_NUMERIC = 0.8  # share of numbers above which the other cells of a column are gaps
_MIXED = 0.5  # and above which it is told that it is taken as words
_NUMBER = re.compile(NUMBER)
_CODE = re.compile(r"0\d+")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")  # 1,234,567.8
_MONEY = re.compile(rf"[$€£¥]\s*({NUMBER}|{_GROUPED.pattern})|({NUMBER}|{_GROUPED.pattern})\s*[%€]")


@dataclass
class Column:
    """A column of a table as examples hold it, and what was found in it."""

    values: np.ndarray  # (N,)
    markers: dict[str, int]  # words that stand for gaps -> how often
    odd: dict[str, int]  # cells that are no numbers among numbers -> how often
    share: float = (
        1.0  # of numbers among its cells that are no gaps, of one that is read as words; then `odd` are not gaps
    )


# --- From files -------------------------------------------------------------------------------------------------------


def file(path: Path, name: str, asked: Reading) -> Table:
    """A file of any of the kinds above -> a Table. What kind it is, its first bytes say, and then its name."""
    begin = _begin(path)
    if begin.startswith(b"PAR1"):
        return _parquet(path, name, asked)
    ending = Path(name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")).suffix.lower()
    if begin.startswith(b"PK\x03\x04") and ending in EXCEL:
        return _excel(path, name, asked)
    if begin.startswith(b"\xd0\xcf\x11\xe0") or ending in EXCEL + PARQUET:
        kind = "an old Excel file (.xls)" if begin.startswith(b"\xd0\xcf") else "no Excel file" if ending in EXCEL else (
            "no Parquet file")  # fmt: skip
        raise DataError(f"{name} is {kind}.", fix="save it as CSV, .xlsx or Parquet")
    data = plain(path, name, begin)
    if ending in LINES:
        asked.only(("encoding", "missing", "text"), f"{name}, which holds JSON")
        return _json(data, name, asked)
    asked.only(("separator", "encoding", "decimal", "header", "quote", "missing", "text"), f"{name}, a text file")
    return delimited.read(data, name, ending, asked)


def _begin(path: Path) -> bytes:
    with open(path, "rb") as opened:
        return opened.read(8)


def plain(path: Path, name: str, begin: bytes | None = None) -> bytes:
    """The bytes of a text file, unpacked where it is packed by itself."""
    from lamina import archives

    return archives.plain(path, name, begin if begin is not None else _begin(path))


def _parquet(path: Path, name: str, asked: Reading) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    asked.only(("missing", "text"), f"{name}, a Parquet file")
    try:
        table = parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return _of_arrow(table, name)


def _of_arrow(table: Any, name: str) -> Table:
    if "__index_level_0__" in table.column_names:  # what pandas adds
        table = table.drop_columns(["__index_level_0__"])
    names, found = clean_names(table.column_names, name)
    rows = np.arange(table.num_rows, dtype=np.int64)
    return Table(name, names, list(table.columns), rows, found)


def _json(data: bytes, name: str, asked: Reading) -> Table:
    """An object a line, or one list of objects."""
    data, found = delimited.decoded(data, name, asked)
    text = data.decode()
    if not text.strip():
        raise DataError(f"{name} {'is empty' if not text else 'holds nothing but blank lines'}.")
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []
    whole = text.lstrip()[0] == "["
    if whole:
        try:
            entries: Iterable[tuple[int, Any]] = enumerate(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name} is no sound JSON: {error}") from None
        for number, entry in entries:
            if isinstance(entry, dict):
                rows.append(entry)
                lines.append(number)
            else:
                bad.append((number, f"it is {type(entry).__name__}, no object"))
    else:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"it is a {type(entry).__name__}, no object")
                rows.append(entry)
                lines.append(number)
            except json.JSONDecodeError as error:
                bad.append((number, f"{error.msg} at place {error.colno}"))
            except (ValueError, RecursionError) as error:
                bad.append((number, str(error)))
    if bad:
        where = "item" if whole else "line"
        numbers = ", ".join(str(number) for number, _ in bad[:5]) + (f" and {len(bad) - 5:,} more" if bad[5:] else "")
        words = (f"{len(bad):,} of {len(bad) + len(rows):,} {where}s of {name} are no JSON objects: {where} {numbers} "
                 f"({where} {bad[0][0]}: {bad[0][1]}).")  # fmt: skip
        if len(bad) > 0.1 * (len(bad) + len(rows)):
            raise DataError(words, expected='an object a line: {"text": "...", "label": "..."}', fix="mend these lines")
        found.append(Finding("bad_lines", "warning", words, len(bad), [number for number, _ in bad[:5]],
                             "they were left out", "mend these lines"))  # fmt: skip
    if not rows:
        raise DataError(f"{name} holds no objects.", expected='an object a line: {"text": "...", "label": "..."}')
    flat = [_flat(row) for row in rows]
    keys = list(dict.fromkeys(key for row in flat for key in row))
    halves: list[int] = []

    def sound(value: Any, line: int) -> Any:
        """A text that can be written: halves of characters, as "\\ud83d" alone is one, become the mark for that."""
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            halves.append(line)
            return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
        return value

    columns = [[sound(row.get(key), line) for row, line in zip(flat, lines, strict=True)] for key in keys]
    if halves:
        found.append(Finding("lone_surrogate", "warning", f"{name} holds halves of characters in line "
                             f"{', '.join(map(str, halves[:5]))}.", len(halves), halves[:5],
                             "each was replaced by \ufffd", "write the file anew from its source"))  # fmt: skip
    names, renamed = clean_names(keys, name)
    return Table(name, names, [_arrow(column) for column in columns], np.array(lines), found + renamed)


def _flat(row: dict[str, Any], before: str = "", depth: int = 0) -> dict[str, Any]:
    """An object of objects as one: {"a": {"b": 1}} is {"a.b": 1}."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and depth < 3:
            found |= _flat(value, f"{before}{key}.", depth + 1)
        else:
            found[before + key] = value
    return found


def _arrow(values: list[Any]) -> Any:
    """Python values as a column: of one type where they have one, else as texts."""
    import pyarrow as pa

    try:
        return pa.chunked_array([pa.array(values, from_pandas=True)])
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.chunked_array([pa.array([_word(value) for value in values], pa.string())])


def _word(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def _excel(path: Path, name: str, asked: Reading) -> Table:
    asked.only(("sheet", "header", "missing", "text"), f"{name}, an Excel file")
    try:
        import openpyxl
    except ImportError:
        raise UsageError(
            f"{name} is an Excel file, and openpyxl, which reads them, is not installed.",
            fix="pip install 'lamina[excel]', or save the sheet as CSV",
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = book.sheetnames
        if asked.sheet is not None and asked.sheet not in sheets:
            raise UsageError(f"{name} has no sheet {asked.sheet!r}: {near(asked.sheet, sheets)}")
        rows = [list(row) for row in book[asked.sheet or sheets[0]].iter_rows(values_only=True)]
        book.close()
    except UsageError:
        raise
    except Exception as error:  # whatever a foreign file does to the reader
        raise DataError(f"{name} cannot be read as Excel: {error}", fix="save the sheet as CSV") from error
    full = [(number, row) for number, row in enumerate(rows, 1) if any(cell is not None for cell in row)]
    if not full:
        raise DataError(f"The sheet {asked.sheet or sheets[0]!r} of {name} is empty.")
    width = max(len(row) - next(k for k, cell in enumerate(reversed(row)) if cell is not None) for _, row in full)
    words = [["" if cell is None else str(cell) for cell in (*row, *[None] * width)][:width] for _, row in full[:400]]
    header = asked.header if asked.header is not None else delimited._is_header(words[0], words[1:])
    found: list[Finding] = []
    if len(sheets) > 1 and asked.sheet is None:
        found.append(Finding("sheet", "note", f"{name} has {len(sheets)} sheets.", len(sheets), sheets[:5],
                             f"the first was read, {sheets[0]!r}", "--source-arg sheet=NAME"))  # fmt: skip
    names, renamed = clean_names(words[0] if header else [f"column_{k}" for k in range(1, width + 1)], name)
    full = full[1:] if header else full
    if not full:
        raise DataError(f"{name} has a row of names and no rows below it.", expected="a row for each example")
    columns = [_arrow([row[k] if k < len(row) else None for _, row in full]) for k in range(width)]
    return Table(name, names, columns, np.array([number for number, _ in full]), found + renamed)


# --- From Python ------------------------------------------------------------------------------------------------------


def is_table(source: Any) -> bool:
    """Whether something given from Python is a table: a data frame, an Arrow table, a dict of columns."""
    if isinstance(source, dict):
        return bool(source) and all(isinstance(name, str) for name in source) and all(
            isinstance(column, (list, tuple)) or getattr(column, "ndim", 0) == 1 for column in source.values()
        )  # fmt: skip
    return (hasattr(source, "columns") and hasattr(source, "__getitem__") and hasattr(source, "shape")) or hasattr(
        source, "column_names"
    )


def given(source: Any, name: str = "a table in memory") -> Table:
    """A data frame (of pandas, polars), an Arrow table or a dict of columns -> a Table."""
    import pyarrow as pa

    rows: Any = None
    if isinstance(source, dict):
        lengths = {key: len(column) for key, column in source.items()}
        if len(set(lengths.values())) > 1:
            words = ", ".join(f"{key!r} {length:,}" for key, length in list(lengths.items())[:6])
            raise DataError(f"The columns of the table have different lengths: {words}.", expected="one length")
        keys, columns = list(source), [_column(column) for column in source.values()]
    elif hasattr(source, "column_names"):
        keys, columns = list(source.column_names), list(source.columns)
    elif hasattr(source, "iloc"):  # pandas; by place, since a name may be there twice
        keys = [str(key) for key in source.columns]
        columns = [_column(source.iloc[:, k]) for k in range(len(keys))]
        index = np.asarray(source.index)
        rows = index if len(np.unique(index.astype(str))) == len(index) else None
    else:
        keys, columns = [str(key) for key in source.columns], [_column(source[key]) for key in source.columns]
    if not keys or not len(columns[0]):
        raise DataError("The table is empty.", expected="a row for each example")
    names, found = clean_names(keys, name)
    columns = [column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column]) for column in columns]
    return Table(name, names, columns, np.arange(len(columns[0])) if rows is None else rows, found)


def _column(column: Any) -> Any:
    """A column of whatever holds one -> pyarrow."""
    import pyarrow as pa

    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        return column
    values = column if isinstance(column, (list, tuple)) else np.asarray(column)
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufM" and values.dtype.itemsize <= 8:
        return pa.chunked_array([pa.array(values, from_pandas=True)])
    return _arrow(list(values) if not isinstance(values, np.ndarray) else values.tolist())


# --- Columns of examples ----------------------------------------------------------------------------------------------


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
        values = pa.chunked_array([pa.array([_word(v) for v in values.to_pylist()], pa.string())])
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
        if _NUMBER.fullmatch(word):
            number[number == float(word)] = np.nan
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
    numbers = None if keep or kind == "O" else _numbers(different, is_gap, counts, decimal)
    if numbers is not None:
        read, share, odd = numbers
        few = len(different) - len(odd) - int(is_gap.sum()) <= 20
        if share == 1.0 or kind == "f" or (share >= _NUMERIC and not (answers and few)):
            over = {word: n for word, n in odd.items() if word.casefold() in _OVER or _NUMBER.fullmatch(word)}
            out = np.append(read, np.nan)[places]
            return Column(out, markers | over, {word: n for word, n in odd.items() if word not in over})
    else:
        share, odd = 0.0, {}
    objects = np.empty(len(different) + 1, object)
    objects[:-1] = [None if gap else word for word, gap in zip(different, is_gap, strict=True)]
    return Column(objects[places], markers, odd, share)


def _numbers(
    different: list[str], is_gap: np.ndarray, counts: np.ndarray, decimal: str
) -> tuple[np.ndarray, float, dict[str, int]] | None:
    """The different values as numbers, NaN for those that are none; the share of numbers; and the others, counted. None where
    there are hardly any."""
    words = [(k, word) for k, word in enumerate(different) if not is_gap[k]]
    if not any(_number(word, decimal) is not None or _undressed(word) is not None for _, word in words[:1000]):
        return None
    if any(_CODE.fullmatch(word) for _, word in words) and all(word.isdecimal() for _, word in words):
        return None  # 007 is no number
    read = np.full(len(different), np.nan)
    odd: dict[str, int] = {}
    told = 0
    for k, word in words:
        number = _number(word, decimal)
        finite = number is not None and abs(number) < float("inf")
        if finite:
            read[k] = number
        else:
            odd[word] = int(counts[k])
            told += 0 if word.casefold() in _OVER or number is not None else int(counts[k])
    total = int(sum(counts[k] for k, _ in words))
    infinite = sum(odd.values()) - told
    share = 1.0 - told / max(1, total - infinite) if total > infinite else 0.0
    if share < _NUMERIC and odd:  # are they numbers in another dress: 1,234 or $5 or 12 %?
        dressed = {k: _undressed(word) for k, word in words}
        if all(number is not None for number in dressed.values()):
            for k, number in dressed.items():
                read[k] = number
            return read, 1.0, {}
    return read, share, odd


def _number(word: str, decimal: str) -> float | None:
    plain = word.replace(",", ".") if decimal == "," and word.count(",") == 1 and "." not in word else word
    return float(plain) if _NUMBER.fullmatch(plain) else None


def _undressed(word: str) -> float | None:
    """1,234,567.8 and $5 and 12 % as numbers."""
    money = _MONEY.fullmatch(word)
    bare = (money[1] or money[2]) if money else word
    return float(bare.replace(",", "")) if _GROUPED.fullmatch(bare) or _NUMBER.fullmatch(bare) else None


# --- Examples ---------------------------------------------------------------------------------------------------------


def examples(table: Table, columns: Columns, asked: Reading) -> tuple[dict[str, Examples], Columns, dict[str, str],
                                                                     list[Finding]]:  # fmt: skip
    """A Table -> its examples by part, which columns are what, the reasons, and what was found."""
    found = list(table.findings)
    why: dict[str, str] = {}
    _known(table, columns, asked)
    left = [name for name in table.names if name not in columns.ignore]
    split = columns.split or _split_column(table, left, columns)
    if split is not None and columns.split is None:
        why["split_column"] = f"its cells say train or test; --ignore {split} for another split"
    parts = _parts(table, split) if split is not None else {"train": np.arange(table.rows)}
    left = [name for name in left if name not in (split, columns.groups)]
    target = columns.target
    if target is None:
        chosen, why["target"] = _infer_target(table, left)
        target = (chosen,)
    clash = [name for name in target if name not in left]
    if clash:
        raise UsageError(f"{clash[0]!r} cannot be the target and ignored, or who belongs together, at once.")
    inputs = [name for name in left if name not in target]
    if not inputs:
        raise DataError(
            f"{table.name} has {'one column' if len(table.names) == 1 else 'no column'} beside the answers "
            f"({', '.join(map(repr, target)) or 'none'})." if len(table.names) > 1
            else f"{table.name} has one column, {table.names[0]!r}: nothing to learn the answers from.",
            expected="columns to learn from, and one with the answers",
            fix="where the separator was not recognised: --source-arg separator=;" if len(table.names) == 1 else "",
        )  # fmt: skip
    at = {name: table.columns[k] for k, name in enumerate(table.names)}
    truth = _truth(table, at, target, asked, found) if target else None
    have = np.ones(table.rows, bool)
    if truth is not None:
        have = ~_gaps(truth)
        lost = table.lines[~have]
        words = " and ".join(map(repr, target))
        if not have.any():
            raise DataError(f"{table.name} has no answers: the column {words} is empty.", fix="--target COLUMN")
        if len(lost):
            found.append(Finding(
                "no_answer", "warning", f"{len(lost):,} of {table.rows:,} rows of {table.name} have no answer in {words}.",
                len(lost), lost[:5].tolist(), "they were left out",
                f"fill in the answers; where a word is a class and no gap: --source-arg text={target[0]}",
            ))  # fmt: skip
        truth = _settled(truth[have], all(_whole(at[name]) for name in target))
    made = {name: column(at[name], asked, name, table.decimal) for name in inputs}
    found += _told(table, made)
    values = tuple(found_.values for found_ in made.values())
    groups = None if columns.groups is None else _groups(at[columns.groups], table, columns.groups, found)
    times = None if columns.times is None else _times(at[columns.times], table, columns.times, asked)
    answer = np.cumsum(have) - 1  # of each row that has one, among those that have
    out = {}
    for part, rows in parts.items():
        rows = rows[have[rows]]
        whole = len(rows) == table.rows

        def cut(array: Any, rows: np.ndarray = rows, whole: bool = whole) -> Any:
            return array if array is None or whole else array[rows]

        out[part] = Examples(tuple(map(cut, values)), None if truth is None else truth[answer[rows]], "table", inputs,
                             cut(table.lines), None, cut(groups), cut(times))  # fmt: skip
    return out, replace(columns, target=target, split=split), why, found


def _known(table: Table, columns: Columns, asked: Reading) -> None:
    """UsageError for columns that are asked for and are not there, with all the names."""
    wanted: dict[str, Sequence[str | None]] = {
        "target": columns.target or (), "ignore": columns.ignore, "groups": (columns.groups,),
        "times": (columns.times,), "split_column": (columns.split,), "text in source_arg": asked.text,
    }  # fmt: skip
    missing = [(what, name) for what, some in wanted.items() for name in some if name and name not in table.names]
    if missing:
        words = [f"{table.name} has no column {name!r} ({what}): {near(name, table.names)}" for what, name in missing]
        shown = ", ".join(table.names[:30]) + (f" and {len(table.names) - 30} more" if table.names[30:] else "")
        raise UsageError("\n".join(words), expected=f"one of its columns: {shown}")


def _split_column(table: Table, names: list[str], columns: Columns) -> str | None:
    """A column that is called split or the like, and whose cells are all train, valid or test."""
    import pyarrow.compute as pc
    from pyarrow import types

    for k, name in enumerate(table.names):
        if name.casefold() in SPLITS and name in names and name not in (columns.target or ()):
            values = table.columns[k]
            if types.is_string(values.type) and not values.null_count:
                words = {word.strip().casefold() for word in pc.unique(values).to_pylist()}
                if words <= set(PARTS) and "train" in {PARTS[word] for word in words} and len(words) > 1:
                    return name
    return None


def _parts(table: Table, split: str) -> dict[str, np.ndarray]:
    words = [None if v is None else str(v).strip() for v in table.columns[table.names.index(split)].to_pylist()]
    codes = [PARTS.get((word or "").casefold()) for word in words]
    wrong = [k for k, code in enumerate(codes) if code is None]
    if wrong:
        shown = sorted({str(words[k]) for k in wrong})[:5]
        raise DataError(
            f"The column {split!r} of {table.name} says of {len(wrong):,} rows neither train, valid nor test, but "
            f"{', '.join(map(repr, shown))} (line {table.lines[wrong[0]]}).",
            expected="train, valid (val, dev) or test in every row",
            fix="leave out --split-column, or mend the column",
        )
    array = np.array(codes)
    found = {part: np.flatnonzero(array == part) for part in ("train", "valid", "test")}
    if not len(found["train"]):
        raise DataError(f"No row of {table.name} is for training by its column {split!r}.")
    return {part: rows for part, rows in found.items() if len(rows)}


def _infer_target(table: Table, names: list[str]) -> tuple[str, str]:
    """Which column holds the answers, and why."""
    import pyarrow.compute as pc
    from pyarrow import types

    if not names:
        raise DataError(f"No column of {table.name} is left to hold the answers.", fix="ignore fewer")
    for wanted in ANSWERS:
        for name in names:
            if name.casefold() == wanted:
                return name, f"a column is called {name}"
    for name in reversed(names):
        values = table.columns[table.names.index(name)]
        nested = types.is_nested(values.type) or types.is_null(values.type)
        many = table.rows if nested else pc.count_distinct(values).as_py()
        text = types.is_string(values.type) or types.is_large_string(values.type)
        if values.null_count < table.rows and many > 1 and not (text and many > 0.9 * table.rows and table.rows > 20):
            last = name == names[-1]
            return name, "the last column" if last else "the last column whose values come again"
    return names[-1], "the last column"


def _truth(
    table: Table, at: dict[str, Any], target: tuple[str, ...], asked: Reading, found: list[Finding]
) -> np.ndarray:
    """The answers (N,), or (N, D) of several columns; gaps as NaN or None."""
    made = {name: column(at[name], asked, name, table.decimal, answers=True) for name in target}
    found += _told(table, made, answers=True)
    if len(made) == 1:
        only = next(iter(made.values())).values
        if only.dtype.kind == "M":
            raise DataError(f"The answers in {target[0]!r} are dates.", expected="classes or numbers",
                            fix="turn them into numbers, such as days from a day on")  # fmt: skip
        return only
    words = [name for name, one in made.items() if one.values.dtype.kind not in "biuf"]
    if words:
        raise DataError(
            f"There are {len(target)} targets, and {', '.join(map(repr, words[:5]))} holds no numbers.",
            expected="numbers, or 0 and 1 for tags, in each of several targets",
        )
    whole = all(one.values.dtype.kind in "biu" for one in made.values())
    return np.stack([one.values.astype(np.int64 if whole else np.float64) for one in made.values()], axis=1)


def _gaps(truth: np.ndarray) -> np.ndarray:
    if truth.dtype.kind == "f":
        return np.isnan(truth) if truth.ndim == 1 else np.isnan(truth).any(1)
    return np.array([value is None for value in truth], bool) if truth.dtype.kind == "O" else np.zeros(len(truth), bool)


def _whole(values: Any) -> bool:
    from pyarrow import types

    return types.is_integer(values.type)


def _settled(truth: np.ndarray, whole: bool) -> np.ndarray:
    """Answers without gaps in the type they have: words; whole numbers that were fractions for their gaps alone (`whole`), or
    that are few, as the numbers of classes are."""
    if truth.dtype.kind == "O":
        return truth.astype(str) if max(map(len, truth)) <= 256 else truth
    if truth.dtype.kind == "f" and (truth == np.rint(truth)).all() and (np.abs(truth) < 2**53).all():
        return truth.astype(np.int64) if whole or len(np.unique(truth)) <= 20 else truth
    return truth


def _groups(values: Any, table: Table, name: str, found: list[Finding]) -> np.ndarray:
    words = [None if v is None else str(v) for v in values.to_pylist()]
    gaps = [k for k, word in enumerate(words) if word is None or not word.strip()]
    if gaps:
        found.append(Finding("no_group", "warning", f"{len(gaps):,} rows of {table.name} have no {name}.", len(gaps),
                             table.lines[gaps][:5].tolist(), "each is a group of its own", f"fill in {name}"))  # fmt: skip
        for k in gaps:
            words[k] = f"\0{k}"
    return np.array(words)


_STYLES = ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%Y%m%d", "%d.%m.%Y %H:%M", "%d/%m/%Y %H:%M",
           "%m/%d/%Y %H:%M", "%Y/%m/%d %H:%M:%S", "%d-%m-%Y", "%m/%d/%y", "%d/%m/%y", "%b %d %Y", "%d %b %Y")  # fmt: skip


def _times(values: Any, table: Table, name: str, asked: Reading) -> np.ndarray:
    """When, as numbers or dates that can be ordered."""
    made = column(values, asked, name, table.decimal).values
    if made.dtype.kind == "O":
        made = _as_dates(made, table, name)
    gap = np.isnat(made) if made.dtype.kind == "M" else np.isnan(made) if made.dtype.kind == "f" else np.zeros(
        len(made), bool)  # fmt: skip
    if gap.any():
        raise DataError(
            f"{int(gap.sum()):,} rows of {table.name} have no time in {name!r}: "
            f"line {', '.join(map(str, table.lines[gap][:5]))}.",
            fix="fill in the times, or leave these rows out",
        )
    return made


def _as_dates(words: np.ndarray, table: Table, name: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    some = pa.array(words.tolist(), pa.string())
    for style in (None, *_STYLES):
        try:
            read = some.cast(pa.timestamp("us")) if style is None else pc.strptime(some, format=style, unit="us")
            return read.to_numpy(zero_copy_only=False).astype("datetime64[us]")
        except pa.ArrowInvalid:
            continue
    example = next((word for word in words if word is not None), "")
    raise DataError(f"The times in {name!r} of {table.name} are in no style that is known, such as {example!r}.",
                    expected="2026-01-31, 2026-01-31 12:30:00, 31.01.2026, 31/01/2026, or numbers")  # fmt: skip


def _told(table: Table, made: dict[str, Column], *, answers: bool = False) -> list[Finding]:
    """Findings about columns: words for gaps, odd cells among numbers, numbers among words."""
    found = []
    marked = {name: one.markers for name, one in made.items() if one.markers}
    if marked:
        words = "; ".join(f"{name}: {_counts(markers)}" for name, markers in list(marked.items())[:6])
        more = f"; and {len(marked) - 6} more columns" if len(marked) > 6 else ""
        count = sum(sum(markers.values()) for markers in marked.values())
        numbers = any(made[name].values.dtype.kind == "f" for name in marked)
        found.append(Finding(
            "markers", "warning" if numbers else "note", f"Cells of {table.name} say that a value is missing, or too "
            f"large: {words}{more}.", count, list(marked)[:5], "they are gaps",
            f"where such a word is a value of its own: --source-arg text={next(iter(marked))}",
        ))  # fmt: skip
    for name, one in made.items():
        count = sum(one.odd.values())
        if one.odd and one.share == 1.0:
            found.append(Finding(
                "odd_cells", "warning", f"{count:,} cells of the column {name!r} of {table.name} are no numbers, as its "
                f"others are: {_counts(one.odd)}.", count, list(one.odd)[:5],
                "their rows are left out" if answers else "they are gaps",
                f"mend them; to take the column as words: --source-arg text={name}",
            ))  # fmt: skip
        elif one.odd and one.share >= _MIXED:
            found.append(Finding(
                "mixed_column", "warning", f"The column {name!r} of {table.name} holds numbers in {one.share:.0%} of its "
                f"cells, and words: {_counts(one.odd)}.", count, list(one.odd)[:5],
                "each is a class" if answers else "all are taken as words", "mend the words",
            ))  # fmt: skip
    return found


def _counts(words: dict[str, int]) -> str:
    """'?' 12 times, 'NA' once."""
    first = sorted(words.items(), key=lambda entry: -entry[1])[:4]
    shown = ", ".join(f"{word[:40]!r} {'once' if count == 1 else f'{count:,} times'}" for word, count in first)
    return shown + (f" and {len(words) - 4:,} other words" if len(words) > 4 else "")


# --- Sources ----------------------------------------------------------------------------------------------------------


def source(table: Table, columns: Columns, asked: Reading) -> Source:
    """A Table -> a Source."""
    parts, known, why, found = examples(table, columns, asked)
    inputs = parts["train"].inputs
    words = f"{table.rows:,} rows, {len(inputs)} columns"
    words += f", answers in {', '.join(known.target)}" if known.target else ", no answers"
    return Source(table.name, parts["train"], parts.get("valid"), parts.get("test"), about=words, why=why,
                  target=known.target or (), findings=found)  # fmt: skip


def source_with_answers(x: Any, y: Any, columns: Columns, asked: Reading) -> Source:
    """A table and its answers, given apart."""
    from lamina.sources import arrays

    if columns.target:
        raise UsageError("target would do nothing: the answers are given beside the table.", fix="leave it out")
    opened = source(given(x), replace(columns, target=()), asked)
    truth = arrays.examples(np.zeros(len(y)), y).truth
    if truth is None or len(truth) != opened.train.count:
        raise DataError(f"The table has {opened.train.count:,} rows, and there are {len(y):,} answers.")
    opened.train.truth = truth
    return opened


def joined(tables: list[Table]) -> Table:
    """Several tables of the same columns as one; matched by name."""
    import pyarrow as pa
    from pyarrow import types

    first = tables[0]
    if len(tables) == 1:
        return first
    columns = []
    for other in tables[1:]:
        missing = [name for name in first.names if name not in other.names]
        extra = [name for name in other.names if name not in first.names]
        if missing or extra:
            words = [*(f"no {name!r}" for name in missing[:3]), *(f"{name!r} as well" for name in extra[:3])]
            raise DataError(f"{other.name} has other columns than {first.name}: {', '.join(words)}.",
                            expected="the same columns in all files", fix="give the files one by one")  # fmt: skip
    for name in first.names:
        some = [table.columns[table.names.index(name)] for table in tables]
        kinds = {str(one.type) for one in some if not types.is_null(one.type)}
        if len(kinds) > 1:
            number = all(types.is_integer(o.type) or types.is_floating(o.type) or types.is_null(o.type) for o in some)
            some = [one.cast(pa.float64() if number else pa.string(), safe=False) for one in some]
        elif kinds:
            kind = next(one.type for one in some if not types.is_null(one.type))
            some = [one.cast(kind) for one in some]
        columns.append(pa.chunked_array([chunk for one in some for chunk in one.chunks]))
    lines = np.array([f"{table.name}:{line}" for table in tables for line in table.lines], object)
    found = [finding for table in tables for finding in table.findings]
    return Table(f"{first.name} and {len(tables) - 1} more", first.names, columns, lines, found, first.decimal,
                 first.folder)  # fmt: skip


def matched(
    other: Examples, names: Sequence[str], kinds: Sequence[str], where: str, *, missing: str = "error"
) -> tuple[Examples, list[Finding]]:
    """A table with its columns brought into the order and the kinds of a table of before, by their names.

    kinds: the letter of numpy's for each column ("f", "b", "M", "O"): cells that do not fit are gaps. missing: "error"
    for a DataError where a column is not there, "gap" for one that is all gaps. New columns are left out, and told."""
    have = list(other.names or [])
    lost = [name for name in names if name not in have]
    found = []
    if lost:
        hints = "; ".join(f"{name!r}: {near(name, have)}" for name in lost[:3])
        words = f"{where} lacks {len(lost)} of {len(names)} columns: {hints}"
        if missing == "error" or len(lost) == len(names):
            raise DataError(words, expected=f"the columns {', '.join(list(names)[:30])}, in any order")
        found.append(Finding("missing_columns", "warning", words, len(lost), lost[:5], "their cells are all gaps",
                             "give these columns: without them answers are less sure"))  # fmt: skip
    new = [name for name in have if name not in names]
    if new:
        found.append(Finding("new_columns", "note", f"{where} has columns that are not used: "
                             f"{', '.join(map(repr, new[:5]))}{f' and {len(new) - 5} more' if new[5:] else ''}.",
                             len(new), new[:5], "they are left out", ""))  # fmt: skip
    columns, odd = [], {}
    for name, kind in zip(names, kinds, strict=True):
        if name in lost:
            columns.append(_empty(other.count or 0, kind))
            continue
        column_, wrong = as_kind(other.inputs[have.index(name)], kind)
        columns.append(column_)
        if len(wrong):
            odd[name] = wrong
    for name, rows in odd.items():
        values = other.inputs[have.index(name)]
        shown = list(dict.fromkeys(str(values[row])[:40] for row in rows))[:4]
        kind = {"f": "numbers", "b": "true or false", "M": "dates"}[kinds[list(names).index(name)]]
        found.append(Finding(
            "odd_cells", "warning", f"{len(rows):,} cells of the column {name!r} of {where} are not {kind}, as in "
            f"training: {', '.join(map(repr, shown))}.", len(rows),
            (rows if other.ids is None else other.ids[rows])[:5].tolist(), "they are gaps", "mend them",
        ))  # fmt: skip
    return replace(other, inputs=tuple(columns), names=list(names)), found


def _empty(count: int, kind: str) -> np.ndarray:
    if kind == "M":
        return np.full(count, np.datetime64("NaT", "D"))
    return np.full(count, None, object) if kind in "OU" else np.full(count, np.nan)


def as_kind(values: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A column as one of another kind, and the rows whose cells do not fit; they are gaps. A column of booleans with gaps
    stays one of objects, as it does on reading."""
    own = values.dtype.kind
    if own == kind or (own in "OU" and kind in "OU"):
        return values, np.arange(0)
    if own == "f" and np.isnan(values).all():
        return _empty(len(values), "O" if kind == "b" else kind), np.arange(0)
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
    out = _empty(len(values), "O" if kind == "b" else kind)
    wrong = []
    for row, word in enumerate(as_words):
        if word is None:
            continue
        try:
            if kind == "f":
                out[row] = float(word)
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


def open_inputs(
    path: str,
    names: Sequence[str],
    options: dict[str, Any] | None = None,
    *,
    kinds: Sequence[str] | None = None,
    missing: str = "error",
) -> tuple[tuple[np.ndarray, ...], list[str], list[Finding]]:
    """A table to predict on, from a file or standard input (`-`) -> the columns of these names, in this order, what each row
    is called, and what was found. A column called `id` that is no input names the rows.

    kinds: of the columns in training, a letter each (f, b, M, O), so that a column is read as it was then. missing: "error"
    or "gap", for a column that is not there. New columns are left out, and told."""
    asked = replace(delimited.reading(options), kinds=dict(zip(names, kinds or (), strict=False)))
    if path == "-":
        data = sys.stdin.buffer.read()
        begin = data.lstrip(b"\xef\xbb\xbf \r\n")[:1]
        where = "standard input"
        if not data.strip():
            raise DataError("Standard input is empty.", expected="a table: CSV with a line of names, or JSON lines")
        table = _json(data, where, asked) if begin in (b"{", b"[") else delimited.read(data, where, ".csv", asked)
    else:
        where = path
        if not os.path.exists(path):
            place = Path(path)
            beside = os.listdir(place.parent) if place.parent.is_dir() else []
            raise UsageError(f"There is no file {path!r}: {near(place.name, beside)}")
        table = file(Path(path), path, replace(asked, text=tuple(n for n in asked.text if n in names)))
    if not set(names) & set(table.names) and len(names) == len(table.names) and _header_missing(table):
        table = replace(table, names=list(names))  # rows without a line of names, as many columns as are wanted
    found = list(table.findings)
    wanted = set(names)
    made = {
        name: column(values, asked, name, table.decimal)
        for name, values in zip(table.names, table.columns, strict=True)
        if name in wanted
    }
    found += _told(table, made)
    rest = [name for name in table.names if name not in wanted]
    inputs = tuple(one.values for one in made.values()) + tuple(np.zeros(table.rows) for _ in rest)
    whole = Examples(inputs, None, "table", [*made, *rest], table.lines)
    if not inputs:
        raise DataError(f"{where} has no columns.")
    given_kinds = kinds if kinds is not None else [
        made[name].values.dtype.kind if name in made else "f" for name in names
    ]  # fmt: skip
    fitted, more = matched(whole, names, given_kinds, where, missing=missing)
    ids = table.lines
    if "id" in rest:
        ids = np.array([str(v) for v in table.columns[table.names.index("id")].to_pylist()], object)
        more = [_without(finding, "id") for finding in more]
    return fitted.inputs, [str(name) for name in ids], found + [finding for finding in more if finding.count]


def _without(finding: Finding, name: str) -> Finding:
    """New columns without the one that names the rows."""
    if finding.kind != "new_columns" or name not in finding.examples:
        return finding
    rest = [other for other in finding.examples if other != name]
    return replace(finding, count=finding.count - 1, examples=rest, what=finding.what.replace(f"{name!r}, ", "").replace(
        f", {name!r}", ""))  # fmt: skip


def _header_missing(table: Table) -> bool:
    return any(finding.kind == "no_header" for finding in table.findings)
