"""Text files of rows and cells (CSV, TSV and their kin), as they are met: any separator, encoding, decimal mark, quoting.

In: the bytes of a file, and what the user knows about it (`Reading`). Out: a `Table`: columns of pyarrow by name, the line
each row stands on, and findings: what was guessed or left out. Called by `lamina.sources.tables`.

The first part of the file is looked at, in Python, to find out how it is written (`dialect`); the whole is then read by
pyarrow. Cells are never shifted: a row with another number of them is left out and told, and many such rows, or a quote
that is never closed, are refused with their lines.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from lamina.errors import DataError, UsageError, near
from lamina.findings import Finding

SAMPLE = 1 << 18  # bytes that are looked at to find out how a file is written
_ROWS = 400  # of them, at most
_SEPARATORS = ("\t", ";", "|", ",", "::", "\x01")  # in this order where several fit: commas stand in numbers too
_PLAIN = "\x1f"  # what stands for a separator of several bytes
_RAGGED = 0.1  # share of rows with another number of cells above which a file is refused
_NAMED = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";", "pipe": "|", "point": "."}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBER = re.compile(NUMBER)
_FOREIGN = {b"<!doctype": "a web page, no table.", b"<html": "a web page, no table.", b"<?xml": "XML, no table.",
            b"version https://git-lfs": "a pointer of Git LFS; the file it stands for is not here."}  # fmt: skip
_BETWEEN = re.compile(r'"[^"]*"|[^\s"]+')  # blanks
_ESCAPED = re.compile(rb'\\(["\\])')  # \" for a quotation mark within quotes, as databases write it
_NO_NAMES = {"na", "n/a", "nan", "null", "none", "inf", "-inf"}  # that stand for a gap
_COMMA_NUMBER = re.compile(r"[+-]?(?:\d*|\d{1,3}(?:\.\d{3})+),\d+(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Reading:
    """How a file is to be read, where looking at it is not enough: the keys of `source_arg`."""

    separator: str | None = None  # between cells: ; tab space | ::
    encoding: str | None = None  # utf-8, latin-1, cp1251, shift_jis, ...
    decimal: str | None = None  # the mark in numbers: . or ,
    header: bool | None = None  # whether the first row names the columns
    quote: str | None = None  # round cells: "; "" for none
    missing: tuple[str, ...] = ()  # words that stand for a gap, beside the usual ones
    text: tuple[str, ...] = ()  # columns to be left as they are written, whatever they look like: 007 is no number
    lower: tuple[str, ...] = ()  # columns whose words are taken in small letters: Yes and yes are the same
    sheet: str | None = None  # of an Excel file
    day_first: bool | None = None  # whether 3/4/2026 is in April
    # What is not to be asked for:
    kinds: dict[str, str] = field(default_factory=dict)  # of columns as an earlier table had them: f b M O
    styles: dict[str, str] = field(default_factory=dict)  # and how their cells were written: see `cells.Column.style`
    strict: bool = True  # whether what would do nothing is refused

    @property
    def given(self) -> list[str]:
        return [name for name in ASKED if getattr(self, name) not in (None, ())]

    def only(self, names: tuple[str, ...], what: str) -> None:
        """UsageError for what would do nothing in reading this kind of source; not where another source was meant."""
        if not self.strict:
            return
        idle = [name for name in self.given if name not in names]
        if idle:
            raise UsageError(
                f"{' and '.join(idle)} in source_arg would do nothing for {what}.",
                expected=", ".join(names) if names else "no source_arg",
                fix="leave it out" if len(idle) == 1 else "leave them out",
            )


_meant: ContextVar[Reading | None] = ContextVar("reading", default=None)
beside: ContextVar[tuple[str, ...]] = ContextVar("beside", default=())  # columns that are no inputs, as everybody knows
_styles: ContextVar[dict[str, str] | None] = ContextVar("styles", default=None)
OF_CELLS = ("missing", "text", "lower", "day_first")  # that say something of every kind of table
ASKED = tuple(f.name for f in fields(Reading) if f.name not in ("kinds", "styles", "strict"))


@contextmanager
def written_as(styles: dict[str, str]) -> Iterator[None]:
    """Cells of sources that are opened within are written as those of another were: see `cells.Column.style`."""
    token = _styles.set(styles)
    try:
        yield
    finally:
        _styles.reset(token)


@contextmanager
def read_as(options: Mapping[str, Any], known: Sequence[str] = ()) -> Iterator[None]:
    """Sources that are opened within are read as another was, as far as that says anything of them. known: columns of that
    one that were no inputs, and may be there or not."""
    token = _meant.set(replace(reading(options), strict=False) if options else None)
    other = beside.set(tuple(known))
    try:
        yield
    finally:
        _meant.reset(token)
        beside.reset(other)


def reading(options: Mapping[str, Any] | None) -> Reading:
    """`source_arg` as it was given -> a Reading; UsageError with all that is wrong in it."""
    if not options and (meant := _meant.get()) is not None:
        return replace(meant, styles=_styles.get() or {})
    found: dict[str, Any] = {}
    mistakes = []
    for name, entry in (options or {}).items():
        if name not in ASKED:
            mistakes.append(f"source_arg has no {name!r}: {near(name, ASKED)}")
        elif name in ("missing", "text", "lower"):
            entry = entry if isinstance(entry, (list, tuple)) else [entry]
            found[name] = tuple("none" if word is None else str(word) for word in entry)
        elif name in ("header", "day_first"):
            if str(entry).lower() not in ("true", "false", "yes", "no", "none", "1", "0"):
                mistakes.append(f"{name} in source_arg is {entry!r}; it is yes or no.")
            found[name] = str(entry).lower() in ("true", "yes", "1")
        elif name == "quote":
            found[name] = "" if entry in (None, "", "no", False) else str(entry)
            if len(found[name]) > 1 or not found[name].isascii():
                mistakes.append(f"quote in source_arg is {entry!r}; it is one character, or none.")
        elif name == "encoding":
            found[name] = str(entry)
            try:
                codecs.lookup(found[name])
            except LookupError:
                mistakes.append(f"There is no encoding {entry!r}; such are utf-8, latin-1, cp1252, utf-16, shift_jis.")
        else:
            word = "," if entry == [] else str(entry)  # a comma alone is an empty list on the command line
            found[name] = _NAMED.get(word.lower(), word) if name != "sheet" else word
            if name == "decimal" and found[name] not in (".", ","):
                mistakes.append(f"decimal in source_arg is {entry!r}; it is . or , (point or comma).")
            if name == "separator" and (not found[name] or "\n" in found[name]):
                mistakes.append(f"separator in source_arg is {entry!r}; it is ; , | tab, space or a few characters.")
    if mistakes:
        raise UsageError("\n".join(mistakes), fix="--source-arg NAME=VALUE")
    return Reading(**found, styles=_styles.get() or {})


@dataclass
class Table:
    """Columns by name, as they were read."""

    name: str  # of the file, for messages
    names: list[str]
    columns: list[Any]  # of pyarrow, (N,) each
    lines: np.ndarray  # (N,) where each row stands: its line, or what its source calls it
    findings: list[Finding] = field(default_factory=list)
    decimal: str = "."
    folder: str | None = None  # that paths in it are relative to

    @property
    def rows(self) -> int:
        return len(self.lines)


@dataclass
class Dialect:
    """How a file is written."""

    separator: str  # "" for one column
    quote: str
    header: bool
    decimal: str
    width: int
    names: list[str]
    skip: int  # lines before the first row of data
    unsure: bool  # whether the header is missing by our own judgement
    titles: int = 0  # lines of words above the names


# --- Bytes to UTF-8 ---------------------------------------------------------------------------------------------------


def decoded(data: bytes, name: str, asked: Reading) -> tuple[bytes, list[Finding]]:
    """Bytes in any encoding -> UTF-8 without a mark, NUL or lone carriage returns; and what was found on the way."""
    found: list[Finding] = []
    marks = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
             (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
    mark, by_mark = next(((mark, coded) for mark, coded in marks if data.startswith(mark)), (b"", None))
    encoding = asked.encoding or by_mark or _wide(data)
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        data = data[3:] if mark == codecs.BOM_UTF8 else data
        bad = _not_utf8(data)
        if bad is not None and asked.encoding is None:
            data, finding = _guessed(data, bad, name)
            found.append(finding)
        elif bad is not None:
            raise _no_text(data, bad, name, "utf-8")
    else:
        try:
            data = data.decode(encoding).removeprefix("\ufeff").encode()
        except UnicodeDecodeError as error:
            raise _no_text(data, error.start, name, encoding) from None
        except UnicodeEncodeError as error:  # halves of a character that UTF-16 puts in two
            raise DataError(f"{name} is no sound {encoding}: {error.reason}.") from None
    if b"\0" in data:
        lines = _lines_with(data, b"\0")
        if data.count(b"\0") > 0.05 * len(data) and len(data) > 100:
            raise DataError(f"{name} holds NUL bytes in {len(lines):,} lines: it is no text, or in an encoding that "
                            "was not recognised.", fix="--source-arg encoding=NAME")  # fmt: skip
        data = data.replace(b"\0", b"")
        found.append(Finding("nul_bytes", "warning", f"{name} holds NUL bytes in {_lines(lines)}.", len(lines),
                             lines[:5], "they were taken out of their cells", "look whether the file is damaged"))  # fmt: skip
    if b"\r" in data and b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    return data, found


def _wide(data: bytes) -> str | None:
    """utf-16 without a mark: every other byte of Latin letters is NUL."""
    head = data[:1000]
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if len(head) >= 8 and head[start::2].count(0) > 0.4 * len(head) > 8 * head[1 - start :: 2].count(0):
            return encoding
    return None


def _not_utf8(data: bytes) -> int | None:
    """The place of the first byte that is no UTF-8, or None."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    view, step = memoryview(data), 1 << 20
    for start in range(0, max(len(data), 1), step):
        try:
            decoder.decode(view[start : start + step], final=start + step >= len(data))
        except UnicodeDecodeError:
            low = max(0, start - 4)
            while low < start and view[low] & 0xC0 == 0x80:  # begin at a whole character
                low += 1
            try:
                bytes(view[low : start + step + 4]).decode()
            except UnicodeDecodeError as error:
                return low + error.start
            return start
    return None


def _guessed(data: bytes, bad: int, name: str) -> tuple[bytes, Finding]:
    """Bytes that are no UTF-8, read as the Western encoding where letters with accents stand within words; with a few bad
    bytes in sound UTF-8 replaced; refused else."""
    text = data.decode("utf-8", errors="replace")
    lines = [number for number, line in enumerate(text.split("\n"), 1) if "\ufffd" in line]
    runs = list(re.finditer(rb"[\x80-\xff]+", data[: 4 << 20]))
    within = [run for run in runs if len(run[0]) <= 2 and re.search(rb"[A-Za-z]", _beside(data, run))]
    if len(within) >= 0.8 * len(runs) and not re.search("[\x80-\ufffc\ufffe-\U0010ffff]", text):
        coding = "cp1252" if not re.search(rb"[\x81\x8d\x8f\x90\x9d]", data) else "latin-1"
        finding = Finding(
            "encoding", "warning", f"{name} is not in UTF-8; its letters with accents were read as latin-1 ({coding}), "
            f"first in line {lines[0]}.", len(lines), lines[:5], f"read as {coding}",
            "where letters look wrong, name the encoding: --source-arg encoding=NAME",
        )  # fmt: skip
        return data.decode(coding).encode(), finding
    if len(lines) > max(1, 0.02 * text.count("\n")):
        raise _no_text(data, bad, name, "utf-8")
    finding = Finding(
        "encoding", "warning", f"{name} holds bytes that are no UTF-8 in {_lines(lines)}.", len(lines), lines[:5],
        "each was replaced by \ufffd", "mend the lines, or name the encoding: --source-arg encoding=NAME",
    )  # fmt: skip
    return text.encode(), finding


def _beside(data: bytes, run: re.Match[bytes]) -> bytes:
    return data[max(0, run.start() - 1) : run.start()] + data[run.end() : run.end() + 1]


def _no_text(data: bytes, place: int, name: str, encoding: str) -> DataError:
    line = data.count(b"\n", 0, place) + 1
    column = place - data.rfind(b"\n", 0, place)
    return DataError(
        f"{name} is no {encoding}: line {line} holds the byte 0x{data[place]:02x} at place {column}.",
        expected="UTF-8, or an encoding that is named",
        fix="--source-arg encoding=latin-1, cp1251, shift_jis, gb18030, ...; or save it as UTF-8",
    )


def _lines_with(data: bytes, what: bytes) -> list[int]:
    return [number for number, line in enumerate(data.split(b"\n"), 1) if what in line]


def _lines(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:5]))
    more = f" and {len(lines) - 5:,} more" if len(lines) > 5 else ""
    return f"line{'s' if len(lines) != 1 else ''} {shown}{more}"


# --- How a file is written --------------------------------------------------------------------------------------------


def sample_of(data: bytes) -> str:
    """The first part of a file, to the end of a line, as text."""
    if len(data) <= SAMPLE:
        return data.decode()
    cut = data.rfind(b"\n", 0, SAMPLE)
    if cut < 0:
        cut = data.find(b"\n")
    return data[: cut + 1 if cut >= 0 else len(data)].decode()


def cells(sample: str, separator: str, quote: str) -> list[list[str]]:
    """Rows of a sample; blank lines are none."""
    if separator == " ":
        lines = [line for line in sample.splitlines() if line.strip()][:_ROWS]
        return [[cell.strip(quote) if quote else cell for cell in _BETWEEN.findall(line)] for line in lines]
    if not quote or quote not in sample:
        lines = [line for line in sample.splitlines() if line][:_ROWS]
        return [line.split(separator) if separator else [line] for line in lines]
    rows: list[list[str]] = []
    with _wide_fields():
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=_one(separator) or _PLAIN, quotechar=quote)
        try:
            for row in reader:
                if row:
                    rows.append(row)
                if len(rows) >= _ROWS:
                    break
        except csv.Error:
            pass
    return rows


class _wide_fields:
    """Within, Python's csv takes cells of any length."""

    def __enter__(self) -> None:
        self.before = csv.field_size_limit(1 << 30)

    def __exit__(self, *error: object) -> None:
        csv.field_size_limit(self.before)


def _one(separator: str) -> str:
    return separator if len(separator) == 1 and separator.isascii() else ""


def separator_of(sample: str, quote: str, ending: str = "") -> tuple[str, float]:
    """The separator that cuts the rows of a sample most evenly, "" for none; and the share of rows that it cuts alike."""
    best, best_width, best_score, best_share = "", 1, 0.0, 0.0
    for separator in _SEPARATORS:
        if separator not in sample:
            continue
        rows = cells(sample.replace(separator, _PLAIN) if len(separator) > 1 else sample,
                     _PLAIN if len(separator) > 1 else separator, quote)  # fmt: skip
        widths = Counter(map(len, rows))
        width, count = max(widths.items(), key=lambda found: (found[1], found[0])) if widths else (1, 0)
        if width < 2:
            continue
        share = count / len(rows)
        score = round(share, 1) * (1.0 if len(rows[0]) in (width, width - 1) and len(rows[0]) > 1 else 0.5)
        score += 0.25 if separator == "\t" and ending in (".tsv", ".tab") else 0.0
        if score > best_score:
            best, best_width, best_score, best_share = separator, width, score, share
    rows = cells(sample, " ", quote)  # numbers in columns, with any blanks between
    widths = Counter(map(len, rows))
    width, count = widths.most_common(1)[0] if widths else (1, 0)
    numbers = [_NUMBER.fullmatch(cell) is not None for row in rows[1:] for cell in row]
    even = width > 1 and count >= 0.95 * len(rows) and len(rows) > 2 and sum(numbers) >= 0.7 * len(numbers)
    if even and (not best or (best == "\t" and width != best_width)):
        return " ", count / len(rows)
    return best, best_share


def quote_of(sample: str, separator: str) -> str:
    """The quotation mark round cells, or "" where marks are part of the text."""
    if '"' not in sample:
        return '"'  # it may come later in the file
    cut = re.escape(separator) if separator else "(?!)"
    whole = re.compile(rf'(?:(?<=\n)|(?<={cut})|\A) *"(?:[^"]|"")*" *(?={cut}|\r?\n|\Z)' if separator
                       else r'(?:(?<=\n)|\A)"(?:[^"]|"")*"(?=\r?\n|\Z)')  # fmt: skip
    quoted, rest = len(whole.findall(sample)), whole.sub("", sample)
    if '"' not in rest:
        return '"'
    if not quoted and not re.search(rf'(?:(?<=\n)|(?<={cut})|\A)"', rest):
        return ""  # marks, and never round a cell
    plain = cells(sample, separator, "")
    even = {len(row) for row in plain}
    open_ = any(cell.startswith('"') and cell.count('"') % 2 for row in plain for cell in row)
    marks = separator and len(even) == 1 and max(even) > 1 and (separator == "\t" or not open_)
    return "" if marks else '"'


def dialect(data: bytes, name: str, ending: str, asked: Reading) -> Dialect:
    """Look at the first part of a file to see how it is written; what was asked for goes before."""
    sample = sample_of(data)
    skip, separator = 0, asked.separator
    given = re.match(r"sep=(.)\r?\n", sample)
    if given:  # as Excel writes it
        separator, skip, sample = separator or given[1], 1, sample[given.end() :]
    while remark := re.match(r"(?:#[^\n]*)?\r?\n", sample):
        start = sample[: remark.end()]
        cut = max(_SEPARATORS, key=sample.count)
        if start.count(cut) and start.count(cut) == sample[remark.end() :].partition("\n")[0].count(cut):
            break  # names that begin with a #
        skip, sample = skip + 1, sample[remark.end() :]
    if separator is None:
        separator, _ = separator_of(sample, '"' if asked.quote is None else asked.quote, ending)
    quote = asked.quote if asked.quote is not None else quote_of(sample, separator) if separator != " " else '"'
    if quote == "" and asked.separator is None and not given:
        separator, _ = separator_of(sample, "", ending)
    several = separator if len(separator) > 1 or not separator.isascii() else ""
    rows = cells(sample.replace(several, _PLAIN) if several else sample, _PLAIN if several else separator, quote)
    width = Counter(map(len, rows)).most_common(1)[0][0] if rows else 1
    titles = titles_of(rows, width)
    rows, above = rows[titles:], titles
    for line in sample.split("\n") if titles else ():  # those, and the blank ones before the names
        if not titles and line.strip("\r"):
            break
        titles -= bool(line.strip("\r"))
        skip += 1
    body, first = rows[1:], rows[0]
    full = [row for row in body if len(row) == width]
    named = len(first) == width - 1 and len(full) > 0 and all(map(_is_word, first))
    header = asked.header if asked.header is not None else named or _is_header(first, body)
    if header:
        if named and all(not row[-1].strip() for row in full):
            first = [*first, ""]  # each row ends with a separator, but that of the names
        elif named and len({row[0] for row in full}) == len(full):
            first = ["row", *first]  # as R writes it: the names of the rows have no name
        width = len(first) if len(rows) == 1 else width
        if len(first) != width:
            raise DataError(
                f"{name} has {len(first)} names in its first line and {width} cells in most others.",
                expected="a name for each column",
                fix="mend the first line, or name the separator: --source-arg separator=;",
            )
        names = [first[0].lstrip("#"), *first[1:]]
        skip += 1 + sum(cell.count("\n") for cell in rows[0])
    else:
        names = [f"column_{k}" for k in range(1, width + 1)]
    decimal = asked.decimal or _decimal(body if header else rows, separator)
    unsure = not header and asked.header is None
    return Dialect(separator, quote, header, decimal, width, names, skip, unsure, above)


def _is_word(cell: str) -> bool:
    return bool(cell.strip()) and _NUMBER.fullmatch(cell.strip().replace(",", ".")) is None


def titles_of(rows: list[list[str]], width: int) -> int:
    """How many rows stand above the names: of few cells, or of words in few of them, as spreadsheets write them."""

    def is_title(row: list[str]) -> bool:
        filled = [cell.strip() for cell in row if cell.strip()]
        return len(row) <= width // 2 or (len(filled) <= width // 2 and not any(map(_NUMBER.fullmatch, filled)))

    found = 0
    while width > 2 and found < min(10, len(rows) - 2) and is_title(rows[found]):
        found += 1
    return found


def title_lines(count: int, name: str) -> Finding:
    return Finding(
        "title_lines", "note", f"{count} line{'s' if count > 1 else ''} of words stand above the names of the columns of "
        f"{name}.", count, [], "left out", "take them out of the file",
    )  # fmt: skip


def _is_header(first: list[str], body: list[list[str]]) -> bool:
    """Whether a first row names columns: a word above numbers; or no numbers in it (but for years and counts), and no cells
    that come again below."""
    for k, cell in enumerate(first):
        below = [row[k].strip() for row in body if len(row) > k and row[k].strip()]
        numbers = sum(_NUMBER.fullmatch(word.replace(",", ".")) is not None for word in below)
        words = re.search(r"[^\W\d_]", cell) and cell.strip().casefold() not in _NO_NAMES
        if words and len(below) > 2 and numbers > 0.8 * len(below):
            return True
    figures = [cell.strip() for cell in first if _NUMBER.fullmatch(cell.strip().replace(",", "."))]
    if figures:
        whole = [int(cell) for cell in figures if cell.isdecimal()]
        steps = len(whole) > 2 and {b - a for a, b in itertools.pairwise(whole)} == {1}
        return len(whole) == len(figures) and steps and (whole[0] in (0, 1) or 1800 <= whole[0] <= 2200)
    titles = [(k, cell) for k, cell in enumerate(first) if cell.strip()]
    again = sum(sum(len(row) > k and row[k] == cell for row in body) > min(1, len(body) // 4) for k, cell in titles)
    return again < max(1, 0.5 * len(titles)) and max((len(cell) for _, cell in titles), default=0) <= 200


def _decimal(rows: list[list[str]], separator: str) -> str:
    """The decimal mark: a comma where numbers with one are met, and hardly any with a point."""
    if separator == ",":
        quoted = [cell.strip() for row in rows for cell in row if "," in cell]
        if not quoted:
            return "."
    flat = [cell.strip() for row in rows for cell in row]
    comma = [cell for cell in flat if _COMMA_NUMBER.fullmatch(cell)]
    points = sum("." in cell and _NUMBER.fullmatch(cell) is not None for cell in flat)
    thousands = all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", cell) for cell in comma)
    return "," if comma and not (thousands and (points or separator == ",")) and 10 * points < len(comma) else "."


# --- The whole file ---------------------------------------------------------------------------------------------------


def read(data: bytes, name: str, ending: str, asked: Reading) -> Table:
    """The bytes of a text file of rows -> a Table."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    if not data.strip(b"\xef\xbb\xbf \t\r\n"):
        what = "is empty" if not data else f"holds nothing but {'blank lines' if data.strip(b' ') else 'spaces'}"
        raise DataError(f"{name} {what}.", expected="a line of names, and a row for each example")
    kind = next((words for begin, words in _FOREIGN.items() if data.lstrip()[:40].lower().startswith(begin)), None)
    if kind is not None:
        raise DataError(f"{name} is {kind}", expected="rows and cells", fix="get the file itself")
    data, found = decoded(data, name, asked)
    data = _unescaped(data)
    way = dialect(data, name, ending, asked)
    body = memoryview(data)[_after(data, way.skip) :]
    if not bytes(body[:SAMPLE]).strip() and not bytes(body).strip():
        raise DataError(f"{name} has a line of names and no rows below it.", expected="a row for each example")
    separator = way.separator or _PLAIN
    if separator == " ":
        between = re.compile(_BETWEEN.pattern.encode())
        body = memoryview(b"\n".join(_PLAIN.encode().join(between.findall(line)) for line in bytes(body).split(b"\n")))
        separator = _PLAIN
    elif not _one(separator):
        if _PLAIN.encode() in data:
            raise DataError(f"{name} holds the control character 0x1f.", fix="take it out")
        body, separator = memoryview(bytes(body).replace(separator.encode(), _PLAIN.encode())), _PLAIN
    elif way.quote and re.search(rf'[{re.escape(separator)}\n] +"', sample_of(data)):
        before = re.escape(separator.encode())
        body = memoryview(re.sub(rb"((?:^|[" + before + rb"\n])) +(?=\")", rb"\1", bytes(body)))
    quoted = bool(way.quote) and _counted(body, way.quote.encode()) > 0
    names, renamed = clean_names(way.names, name)
    found += renamed
    if way.unsure:
        found.append(Finding(
            "no_header", "warning", f"The first line of {name} looks like data, not like names of columns.", 1,
            [way.names[0]], f"it was read as data; columns are called {names[0]} to {names[-1]}",
            "if it names the columns: --source-arg header=yes; if not, say so: header=no",
        ))  # fmt: skip
    words = (*asked.text, *(name for name, kind in asked.kinds.items() if kind == "O"), *_codes(data, way, names))
    if way.titles:
        found.append(title_lines(way.titles, name))
    as_text = {column: pa.string() for column in words if column in names}

    bad: list[Any] = []  # rows of another number of cells

    def parse(block: int, invalid: Callable[[Any], str] | None = None) -> Any:
        return arrow.read_csv(
            pa.BufferReader(pa.py_buffer(body)),
            read_options=arrow.ReadOptions(column_names=names, use_threads=invalid is None, block_size=block),
            parse_options=arrow.ParseOptions(delimiter=separator, quote_char=way.quote or False,
                                             newlines_in_values=quoted, invalid_row_handler=invalid),
            convert_options=arrow.ConvertOptions(null_values=[""], strings_can_be_null=True, check_utf8=False,
                                                 decimal_point=way.decimal, column_types=as_text),
        )  # fmt: skip

    def left_out(row: Any) -> str:
        bad.append(row)
        return "skip"

    block, whole = 1 << 20, min(len(body) + 1, (1 << 31) - 2)
    try:
        try:
            table = parse(block)
        except pa.ArrowInvalid as error:  # a row that has to be left out, or a cell longer than a block
            long = "straddling" in str(error)
            try:  # On one thread: then rows have numbers. A thread that lets go of a function when all ends is a crash.
                table = parse(whole if long else block, left_out)
            except pa.ArrowInvalid as other:
                if long or "straddling" not in str(other):
                    raise
                bad.clear()
                table = parse(whole, left_out)
    except pa.ArrowInvalid as error:
        raise DataError(f"{name} cannot be read as rows and cells: {str(error).splitlines()[0]}") from None
    lines = _row_lines(body, table, way, quoted, bad)
    shift = np.int64(way.skip + 1)
    _refuse_open_quote(name, body, table, way, lines + shift, bad, shift, quoted)
    if bad:
        numbers = sorted(int(row.number) for row in bad)
        places = [int(line) for line in (_records(body, way, quoted)[np.array(numbers) - 1] + shift)]
        told = f"{len(bad):,} of {table.num_rows + len(bad):,} rows of {name} have another number of cells than " \
               f"{way.width}: {_lines(places)} (line {places[0]} has {bad[0].actual_columns})."  # fmt: skip
        fix = "mend these lines; where the separator or the quotes were guessed wrong: --source-arg separator=; quote=none"
        if len(bad) > _RAGGED * (table.num_rows + len(bad)):
            raise DataError(told, expected="the same number of cells in every row", fix=fix)
        found.append(Finding("ragged_rows", "warning", told, len(bad), places[:5], "they were left out", fix))
    again = _names_again(table, way) if way.header else None
    if again is not None:
        places = [int(line) for line in lines[again] + shift]
        found.append(Finding("names_again", "warning", f"{name} repeats its names in {_lines(places)}.", len(places),
                             places[:5], "they were left out", ""))  # fmt: skip
        table, lines = table.filter(~again), lines[~again]
    columns = [table.column(k) for k in range(table.num_columns)]
    return Table(name, names, columns, lines + shift, found, way.decimal)


def _names_again(table: Any, way: Dialect) -> np.ndarray | None:
    """Rows that hold the names of the columns once more, as where files were put one behind the other; None for none."""
    import pyarrow.compute as pc
    from pyarrow import types

    alike = None
    for column, title in zip(table.columns, way.names, strict=True):
        if not title.strip():
            continue
        if not types.is_string(column.type):
            return None
        same = pc.fill_null(pc.equal(column, title), False).to_numpy()
        alike = same if alike is None else alike & same
        if not alike.any():
            return None
    return alike


def _unescaped(data: bytes) -> bytes:
    """Quotation marks within quotes doubled, where they have a backslash before them and the rows are even only so."""
    if b'\\"' not in data[:SAMPLE]:
        return data
    sample = sample_of(data)
    doubled = _ESCAPED.sub(lambda found: b'""' if found[1] == b'"' else found[1], sample.encode()).decode()

    def even(text: str) -> bool:
        separator, _ = separator_of(text, '"')
        return bool(separator) and len({len(row) for row in cells(text, separator, '"')}) == 1

    if even(sample) or not even(doubled):
        return data
    return _ESCAPED.sub(lambda found: b'""' if found[1] == b'"' else found[1], data)


def _after(data: bytes, lines: int) -> int:
    """The place after so many lines."""
    place = 0
    for _ in range(lines):
        end = data.find(b"\n", place)
        if end < 0:
            return len(data)
        place = end + 1
    return place


def _counted(body: memoryview, what: bytes) -> int:
    return sum(bytes(body[start : start + (8 << 20)]).count(what) for start in range(0, len(body), 8 << 20))


def _codes(data: bytes, way: Dialect, names: list[str]) -> list[str]:
    """Columns of whole numbers that begin with a nought: codes such as 01234, which are no numbers."""
    if not way.separator or not _one(way.separator) or way.separator == " ":
        return []
    rows = cells(sample_of(data), way.separator, way.quote)[1:]
    return [
        names[k]
        for k in range(way.width)
        if any(len(row) == way.width and re.fullmatch(r"0\d+", row[k].strip()) for row in rows)
        and all(re.fullmatch(r"\d*", row[k].strip()) for row in rows if len(row) == way.width)
    ]


def _records(body: memoryview, way: Dialect, quoted: bool) -> np.ndarray:
    """The line, from 0, on which each row begins; blank lines are no rows."""
    if not quoted:
        array = np.frombuffer(body, np.uint8)
        ends = np.flatnonzero(array == 10)
        if not len(ends) or ends[-1] != len(array) - 1:
            ends = np.append(ends, len(array))
        starts = np.concatenate([[0], ends[:-1] + 1])
        length = ends - starts
        lone = (length == 1) & (array[np.minimum(starts, len(array) - 1)] == 13)
        return np.flatnonzero((length > 0) & ~lone)
    found, before = [], 0
    with _wide_fields():
        reader = csv.reader(io.TextIOWrapper(io.BytesIO(body), encoding="utf-8", newline=""),
                            delimiter=way.separator or _PLAIN, quotechar=way.quote)  # fmt: skip
        for row in reader:
            if row:
                found.append(before)
            before = reader.line_num
    return np.array(found, np.int64)


def _row_lines(body: memoryview, table: Any, way: Dialect, quoted: bool, bad: list[Any]) -> np.ndarray:
    """The line, from 0, of each row of the table. Counting is enough where every line is a row."""
    count = _counted(body, b"\n") + (bytes(body[-1:]) != b"\n")
    if not bad and count == table.num_rows:
        return np.arange(table.num_rows, dtype=np.int64)
    if not bad and quoted:
        import pyarrow.compute as pc
        from pyarrow import types

        within = np.zeros(table.num_rows, np.int64)
        for column in table.columns:
            if types.is_string(column.type):
                within += pc.fill_null(pc.count_substring(column, "\n"), 0).to_numpy()
        if within.sum() + table.num_rows == count:
            return np.concatenate([[0], np.cumsum(1 + within)[:-1]])
    lines = _records(body, way, quoted)
    if bad:
        lines = np.delete(lines, np.array([int(row.number) - 1 for row in bad]))
    return lines if len(lines) == table.num_rows else np.arange(table.num_rows, dtype=np.int64)


def _refuse_open_quote(
    name: str, body: memoryview, table: Any, way: Dialect, lines: np.ndarray, bad: list[Any], shift: Any, quoted: bool
) -> None:
    """DataError where a quote is not closed, and swallows the rows after it."""
    if not quoted:
        return
    import pyarrow.compute as pc
    from pyarrow import types

    line = next((int(_records(body, way, quoted)[row.number - 1] + shift) for row in bad if "\n" in row.text), None)
    for k, column in enumerate(table.columns):
        if line is not None or not types.is_string(column.type):
            continue
        many = np.flatnonzero(pc.fill_null(pc.match_substring(column, "\n"), False).to_numpy())
        if not len(many):
            continue
        last = k == way.width - 1 and many[-1] == table.num_rows - 1
        if last and not bytes(body[-1000:]).rstrip().endswith(way.quote.encode()):
            line = int(lines[many[-1]])
        for row in many[:10_000] if way.width > 3 and line is None else ():
            inner = str(column[int(row)]).split("\n")[1:]
            if any(part.count(way.separator) == way.width - 1 for part in inner):
                line = int(lines[row])
                break
    if line is not None:
        raise DataError(
            f"{name} opens a quote in line {line} that is not closed before other rows follow.",
            expected=f"a closing {way.quote} before the end of the cell",
            fix="mend this line; where quotation marks are part of the text: --source-arg quote=none",
        )


def clean_names(given: list[str], where: str) -> tuple[list[str], list[Finding]]:
    """Names of columns: none blank, none twice, spaces within single and none around, no control characters."""
    names: list[str] = []
    renamed: list[str] = []
    taken: set[str] = set()
    all_given = Counter(map(str, given))
    for k, old in enumerate(given, 1):
        new = " ".join("".join(c if c.isprintable() else " " for c in str(old)).split()) or f"column_{k}"
        stem, count = new, 2
        while new in taken or (new != old and new in all_given):
            new, count = f"{stem}_{count}", count + 1
        names.append(new)
        taken.add(new)
        if new != old:
            renamed.append(f"{old!r} to {new!r}")
    if not renamed:
        return names, []
    if all(new == str(old).strip() for old, new in zip(given, names, strict=True)):
        return names, []  # spaces beside the separators
    return names, [Finding(
        "column_names", "warning",
        f"Names of columns of {where} are blank, there twice or oddly spaced: {len(renamed)}.",
        len(renamed), renamed[:5], f"renamed: {', '.join(renamed[:5])}{f', {len(renamed) - 5} more' if renamed[5:] else ''}",
        "name the columns in the file's first line",
    )]  # fmt: skip
