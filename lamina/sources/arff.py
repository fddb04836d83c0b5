"""Tables of Weka: a head that names the columns, and rows of cells below it (.arff).

In: the bytes of a file, in UTF-8. Out: the same as CSV, line for line, so that what is said of a line is right; and which
columns are texts. Called by `lamina.sources.formats`. Source: the format's description,
https://waikato.github.io/weka-wiki/formats_and_processing/arff_stable/.

Cells may stand in single or double quotes, with a backslash before what would end them. A `?` is a gap, which it is in every
table. Not covered: sparse rows and relations within a cell, which are refused.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from lamina.errors import DataError

_NAME = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s{]+)"""
_ATTRIBUTE = re.compile(rf"@attribute\s+{_NAME}\s*(.*)", re.IGNORECASE)
_CELL = re.compile(r"""\s*('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,\t]*?)\s*(?:[,\t]|$)""")
_ESCAPED = re.compile(r"\\(.)")
_TYPES = ("numeric", "real", "integer", "string", "date")


def as_csv(data: bytes, name: str) -> tuple[bytes, list[str]]:
    """(the table as CSV, names of the columns that are texts). DataError for what is no such table."""
    lines = data.decode().splitlines()
    begin = next((k for k, line in enumerate(lines) if line.strip().lower() == "@data"), None)
    if begin is None:
        raise DataError(f"{name} has no line @data.", expected="an ARFF file: @attribute lines, @data, rows")
    attributes = [found for line in lines[:begin] if (found := _ATTRIBUTE.match(line.strip()))]
    if not attributes:
        raise DataError(f"{name} has no @attribute lines above @data.", expected="one for each column")
    names = [_plain(found[1]) for found in attributes]
    kinds = [found[2].strip() for found in attributes]
    for title, kind in zip(names, kinds, strict=True):
        if not kind.startswith("{") and not kind.lower().startswith(_TYPES):
            raise DataError(
                f"The column {title!r} of {name} is of the kind {kind or 'nothing'!r}, which is not read here.",
                expected=f"{', '.join(_TYPES)} or {{a, b, ...}}",
                fix="leave the column out",
            )
    rows = lines[begin + 1 :]
    sparse = next((k for k, line in enumerate(rows, begin + 2) if line.lstrip().startswith("{")), None)
    if sparse is not None:
        raise DataError(
            f"{name} holds sparse rows, which are not read here (line {sparse}).",
            expected="a cell for each column",
            fix="Weka's filter SparseToNonSparse writes them in full",
        )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    out.write("\n" * begin)
    writer.writerow(names)
    for line in rows:
        if not line.strip() or line.lstrip().startswith("%"):
            out.write("\n")
        elif "'" in line or '"' in line or "\t" in line:
            writer.writerow(_cells(line))
        else:
            out.write(line + "\n")
    texts = [title for title, kind in zip(names, kinds, strict=True) if kind.lower().startswith("string")]
    return out.getvalue().encode(), texts


def _cells(line: str) -> Iterator[str]:
    at = 0
    while at <= len(line):
        found = _CELL.match(line, at)
        if found is None:  # a quote that is not closed, or something after one: as it is
            yield line[at:]
            return
        yield _plain(found[1])
        if found.end() == len(line) and line[-1:] not in (",", "\t"):
            return
        at = found.end()


def _plain(cell: str) -> str:
    return _ESCAPED.sub(r"\1", cell[1:-1]) if len(cell) > 1 and cell[0] in "'\"" and cell[0] == cell[-1] else cell
