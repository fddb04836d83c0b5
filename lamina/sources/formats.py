"""Tables from files and from Python, each kind read by the library that was made for it.

In: the path of a file of CSV and its kin (read by `delimited`), Parquet, Arrow, JSON lines, Excel, ARFF; a data frame of pandas
or polars, an Arrow table, a dict of columns. Out: a `Table`. Called by `lamina.sources.tables` and `lamina.sources.places`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lamina import archives
from lamina.errors import DataError, UsageError, near
from lamina.findings import Finding
from lamina.sources import arff, delimited
from lamina.sources.delimited import Reading, Table, clean_names

TEXT = (".csv", ".tsv", ".tab", ".psv", ".data", ".dat")
PARQUET, EXCEL, LINES = (".parquet", ".pq"), (".xlsx", ".xlsm"), (".jsonl", ".ndjson", ".json")
ARROW, ARFF = (".feather", ".arrow", ".ipc"), (".arff",)
KINDS = "CSV, Parquet, Arrow, JSON lines, Excel, ARFF"
ENDINGS = (*TEXT, *PARQUET, *ARROW, *EXCEL, *LINES, *ARFF)
BINARY = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"FEA1": "Arrow"}  # how they begin
_STREAM = b"\xff\xff\xff\xff"  # and one of Arrow's, which only its name makes sure
_NEEDED = {end: kind for kind, ends in (("Parquet", PARQUET), ("Arrow", ARROW), ("Excel", EXCEL)) for end in ends}


def file(path: Path, name: str, asked: Reading) -> Table:
    """A file of any of the kinds above -> a Table. What kind it is, its first bytes say, and then its name."""
    return replace(_file(path, name, asked), folder=os.fspath(path.parent))


def _file(path: Path, name: str, asked: Reading) -> Table:
    begin = _begin(path)
    ending = Path(name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")).suffix.lower()
    binary = next((kind for first, kind in BINARY.items() if begin.startswith(first)), None)
    if binary is not None or (begin.startswith(_STREAM) and ending in ARROW):
        return _binary(path, name, asked, binary or "an Arrow stream")
    if begin.startswith(b"PK\x03\x04") and ending in EXCEL:
        return _excel(path, name, asked)
    if begin.startswith(b"\xd0\xcf\x11\xe0") or ending in _NEEDED:
        kind = "an old Excel file (.xls)" if begin.startswith(b"\xd0\xcf") else f"no {_NEEDED[ending]} file"
        raise DataError(f"{name} is {kind}.", fix="save it as CSV, .xlsx or Parquet")
    data = archives.plain(path, name)
    if ending in LINES:
        asked.only(("encoding", *delimited.OF_CELLS), f"{name}, which holds JSON")
        return of_json(data, name, asked)
    if ending in ARFF:
        asked.only(("encoding", *delimited.OF_CELLS), f"{name}, an ARFF file")
        data, found = delimited.decoded(data, name, asked)
        data, texts = arff.as_csv(data, name)
        as_written = replace(
            asked, encoding="utf-8", separator=",", header=True, quote='"', text=(*asked.text, *texts)
        )  # fmt: skip
        table = delimited.read(data, name, ".csv", as_written)
        return replace(table, findings=found + table.findings)
    asked.only(("separator", "encoding", "decimal", "header", "quote", *delimited.OF_CELLS), f"{name}, a text file")
    return delimited.read(data, name, ending, asked)


def _begin(path: Path) -> bytes:
    with open(path, "rb") as opened:
        return opened.read(8)


def _binary(path: Path, name: str, asked: Reading, kind: str) -> Table:
    """A file that Arrow reads. What it says of itself is not believed: a damaged one must not take the process along."""
    import pyarrow as pa
    from pyarrow import feather, ipc, parquet

    asked.only(delimited.OF_CELLS, f"{name}, a file of {kind}")
    try:
        if kind == "Parquet":
            table = parquet.ParquetFile(path).read()
        elif kind == "Arrow":
            table = feather.read_table(path, memory_map=False)
        else:
            table = ipc.open_stream(path.read_bytes()).read_all()
        table.validate(full=True)
        return _of_arrow(table, name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} cannot be read as {kind}: {str(error).splitlines()[0]}") from error


def _of_arrow(table: Any, name: str) -> Table:
    if "__index_level_0__" in table.column_names:  # what pandas adds
        table = table.drop_columns(["__index_level_0__"])
    names, found = clean_names(table.column_names, name)
    rows = np.arange(table.num_rows, dtype=np.int64)
    return Table(name, names, list(table.columns), rows, found)


def of_json(data: bytes, name: str, asked: Reading) -> Table:
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
        return pa.chunked_array([pa.array([as_word(value) for value in values], pa.string())])


def as_word(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)


def _excel(path: Path, name: str, asked: Reading) -> Table:
    asked.only(("sheet", "header", *delimited.OF_CELLS), f"{name}, an Excel file")
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
    titles = delimited.titles_of(words, width)
    words, full = words[titles:], full[titles:]
    header = asked.header if asked.header is not None else delimited._is_header(words[0], words[1:])
    found = [delimited.title_lines(titles, name)] if titles else []
    if len(sheets) > 1 and asked.sheet is None:
        found.append(Finding("sheet", "note", f"{name} has {len(sheets)} sheets.", len(sheets), sheets[:5],
                             f"the first was read, {sheets[0]!r}", "--source-arg sheet=NAME"))  # fmt: skip
    names, renamed = clean_names(words[0] if header else [f"column_{k}" for k in range(1, width + 1)], name)
    full = full[1:] if header else full
    if not full:
        raise DataError(f"{name} has a row of names and no rows below it.", expected="a row for each example")
    columns = [_arrow([row[k] if k < len(row) else None for _, row in full]) for k in range(width)]
    return Table(name, names, columns, np.array([number for number, _ in full]), found + renamed)


# --- From Python -------------------------------------------------------------------------------------------------------


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
