"""Paths as sources: files, patterns, several of them, archives.

In: a path as the user wrote it: of a file or folder, a pattern (`part-*.csv`), or several with the mark of PATH between
them. Out: a `Source`, which opens again by the same words. Called by `lamina.sources.open`.

    a table             CSV and its kin, Parquet, Arrow, JSON lines, Excel, ARFF: `lamina.sources.tables`
    a text file         a text a line
    a picture           without an answer
    a folder            of any of these: `lamina.sources.folders`
    an archive          .zip, .tar, .tar.gz, .tar.bz2, .tar.xz of any of these: unpacked once, into the cache
    .npz, IDX           arrays: `lamina.sources.arrays`, `lamina.sources.idx`

What a file is, its first bytes say before its name does. The cache is `$LAMINA_CACHE/archives`, else `lamina/archives` in
the user's cache folder; where LAMINA_CACHE is `off`, what is unpacked goes when the process ends.
"""

from __future__ import annotations

import atexit
import glob
import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from lamina import archives, files
from lamina.errors import DataError, LaminaError, UsageError
from lamina.sources import Columns, Source, near_misses, no_columns
from lamina.sources.delimited import Reading, decoded, dialect

_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_NETPBM = re.compile(rb"P[1-6]\s")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
_SPARSE = re.compile(rb"[+-]?\d+(?:\.\d+)?(?: +qid:\d+)?(?: +\d+:[+-]?[\d.eE+-]+)+ *(?:#.*)?")
_HEAD = 1 << 12  # bytes of a file that say what it is
_once: dict[str, Path] = {}  # archives unpacked for this process alone


def read(name: str, columns: Columns, asked: Reading) -> Source:
    """A path, or several, as the user wrote them -> a Source."""
    from lamina.sources import folders

    paths = expanded(name)
    opened = one(paths[0], name, columns, asked) if len(paths) == 1 else folders.several(paths, name, columns, asked)
    return replace(opened, name=name, reopen=absolute(name))


def one(path: Path, name: str, columns: Columns, asked: Reading) -> Source:
    """A file or folder, called `name` in messages -> a Source."""
    from lamina.sources import arrays, folders, formats, idx, tables

    what = kind(path)
    if what in ("table", "text") and _is_sparse(path):
        raise DataError(
            f"{name} holds sparse rows, an answer and place:number pairs a line (svmlight), and neither cells nor sentences.",
            expected="a table, or texts",
            fix="x, y = sklearn.datasets.load_svmlight_file(...); lamina.train((x.toarray(), y))",
        )
    if what == "table":
        return tables.source(formats.file(path, name, asked), columns, asked)
    if what == "archive":
        return _archive(path, name, columns, asked)
    if what == "folder" and not idx.is_folder(path):
        return folders.read(path, name, columns, asked)
    if what in ("text", "picture"):
        opened = folders.flat([path], name, asked)
        no_columns(columns, asked if what == "picture" else replace(asked, encoding=None), name)
        return opened
    if what == "npz":
        opened = arrays.npz(path)
    elif what in ("idx", "folder"):
        opened = idx.folder(path) if what == "folder" else idx.file(path)
    elif not path.stat().st_size:
        raise DataError(f"{name} is empty.", expected="examples")
    else:
        raise UsageError(
            f"{name} is not a kind of file that can be opened here.",
            expected=f"a table ({formats.KINDS}), a text, a picture, an archive or folder of those, an .npz file or IDX files",
            fix="read it yourself and give the arrays: (x, y)",
        )
    no_columns(columns, asked, name)
    return opened


def expanded(name: str) -> list[Path]:
    """The files and folders that words name, a pattern's sorted; UsageError where there are none."""
    path = Path(name).expanduser()
    if name.strip() and os.path.exists(path):
        return [path]
    parts = name.split(os.pathsep)
    if len(parts) > 1 and all(parts):
        return [found for part in parts for found in expanded(part)]
    if any(mark in name for mark in "*?["):
        found = sorted(glob.glob(os.path.expanduser(name), recursive=True), key=natural)
        found = [place for place in found if not os.path.basename(place).startswith(".")]
        if not found:
            raise UsageError(f"No file fits the pattern {name!r}.", fix="try it with ls")
        return [Path(place) for place in found]
    raise UsageError(f"There is no file, folder or sample {name!r}: {near_misses(path)}")


def absolute(name: str) -> str:
    """The same words with whole paths, so that they name the same files from anywhere."""
    path = Path(name).expanduser()
    if os.path.exists(path) or os.pathsep not in name:
        return str(path.absolute())
    return os.pathsep.join(str(Path(part).expanduser().absolute()) for part in name.split(os.pathsep))


def natural(text: str | Path) -> list[tuple[bool, int, str]]:
    """A key to sort by, in which s2 comes before s10."""
    parts = re.split(r"(\d+)", str(text))
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def kind(path: Path) -> str:
    """What a path is: folder, npz, idx, archive, table, picture, text, or "" for none of those."""
    from lamina.sources import formats, idx

    if path.is_dir():
        return "folder"
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    name = path.name.lower()
    if name.endswith(".npz"):
        return "npz"
    if name.endswith(formats.EXCEL) or head.startswith((*formats.BINARY, b"\xd0\xcf\x11\xe0")):
        return "table"
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06") or head[257:262] == b"ustar":
        return "archive"
    if is_picture(head):
        return "picture"
    if head.startswith(_PACKED):
        if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz)$", name):
            return "archive"
        if idx.is_file(path):
            return "idx"
        inner = archives.head(path, _HEAD)
        if inner[257:262] == b"ustar":
            return "archive"
        head, name = inner, name.rpartition(".")[0]
    elif idx.is_file(path):
        return "idx"
    if name.endswith(formats.ENDINGS):
        return "table"
    if not is_text(head):
        return ""
    return "table" if _is_table(path, head) else "text"


def is_picture(head: bytes) -> bool:
    """Whether a file is a picture, by its first 16 bytes."""
    return (
        (head.startswith(_PICTURES) and not (head.startswith(b"BM") and is_text(head)))
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (_NETPBM.match(head) is not None and head[3:4].isdigit() | head[3:4].isspace() | (head[3:4] == b"#"))
    )


def is_text(head: bytes) -> bool:
    """Whether bytes are text: in UTF-16, or without the control characters that all binary formats begin with."""
    return head.startswith((b"\xff\xfe", b"\xfe\xff")) or not any(byte < 9 or 13 < byte < 32 for byte in head[:64])


def _is_table(path: Path, head: bytes) -> bool:
    """Whether a text file without the ending of a table is one: its lines are cut alike, by a mark that is none of prose."""
    if not head.strip() or path.suffix.lower() in (".md", ".rst", ".html", ".xml", ".py"):
        return False
    try:
        cut = head.rfind(b"\n") + 1
        data, _ = decoded(head[:cut] if len(head) == _HEAD and cut else head, path.name, Reading())
        way = dialect(data, path.name, path.suffix.lower(), Reading())
    except LaminaError:
        return False
    lines = [line for line in data.decode().splitlines() if line.strip()]
    single = len(way.separator) == 1 and way.separator != " "
    alike = sum(line.count(way.separator) == way.width - 1 for line in lines) if single else len(lines)
    if not way.separator or len(lines) < 3 or alike < 0.9 * len(lines):
        return False
    return way.separator in ("\t", ";", "|", "::", " ") or (alike == len(lines) and way.width > 2)


def _is_sparse(path: Path) -> bool:
    """Whether the first lines of a text file are those of svmlight and libsvm."""
    with open(path, "rb") as opened:
        lines = opened.read(_HEAD).splitlines()
    lines = [line for line in (lines[:-1] if len(lines) > 1 else lines)[:20] if line and not line.startswith(b"#")]
    return len(lines) > 1 and all(_SPARSE.fullmatch(line) for line in lines)


# --- Archives ---------------------------------------------------------------------------------------------------------


def _archive(path: Path, name: str, columns: Columns, asked: Reading) -> Source:
    folder = unpacked(path)
    inside = [place for place in sorted(folder.iterdir()) if not place.name.startswith((".", "__MACOSX"))]
    if not inside:
        raise DataError(f"{name} is an empty archive.", expected="pictures, texts or tables")
    if len(inside) == 1 and inside[0].is_file():
        return one(inside[0], f"{name}/{inside[0].name}", columns, asked)
    from lamina.sources import folders

    opened = folders.read(folder, name, columns, asked)
    return replace(opened, about=f"{opened.about}, unpacked in {folder}")


def unpacked(path: Path) -> Path:
    """The folder with what an archive holds: unpacked once, and found again while the archive stays as it is."""
    facts = path.stat()
    whole = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:12]
    state = hashlib.sha256(f"{facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()[:12]
    cache = files.cache("archives")
    if cache is None:
        key = f"{whole}-{state}"
        if key not in _once:
            parent = Path(tempfile.mkdtemp(prefix="lamina-"))
            atexit.register(shutil.rmtree, parent, ignore_errors=True)
            archives.unpack(path, parent / "archive", most_files=archives.MANY)
            _once[key] = parent / "archive"
        return _once[key]
    folder = cache / f"{whole}-{state}"
    if not folder.is_dir():
        try:
            archives.unpack(path, folder, most_files=archives.MANY)
        except LaminaError:
            if not folder.is_dir():  # or another process was quicker
                raise
        for old in cache.glob(f"{whole}-*"):  # of the same archive as it was before
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
    return folder
