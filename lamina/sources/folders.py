"""Folders and several files as sources: pictures, texts, tables.

In: a folder, or paths. Out: a `Source`. Called by `lamina.sources.places`.

    a folder for each class     of pictures (kind "files") or of texts, a file an example (kind "texts")
    train, valid, test          folders (also val, validation, dev), each of these forms; or files: train.tsv, test.tsv
    a table beside pictures     with a column of their paths, and one of the answers
    files of lines              a file for each class, a line an example (rt-polarity.pos, rt-polarity.neg)
    tables of the same columns  put together
    pictures or texts alone     without answers

Names that begin with a point, and what systems leave behind (Thumbs.db, desktop.ini, ...), are not there. What is no
picture among pictures is left out and counted. Answers are the names of the classes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lamina import archives
from lamina.errors import DataError, UsageError
from lamina.findings import Finding
from lamina.sources import Columns, Examples, Source, describe, no_columns, place_part
from lamina.sources.delimited import Reading, Table, decoded
from lamina.sources.formats import ENDINGS, file
from lamina.sources.places import kind, natural
from lamina.sources.tables import PARTS, joined, source

_LITTER = {"thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "ehthumbs.db"}
_ABOUT = ("readme", "license", "licence", "copying", "changelog", "citation", "notice")
_NO_CLASS = ("unsup", "unlabeled", "unlabelled")
_TEXTS = (".txt", ".text")
_LOOSE = (".dat", ".data")  # endings that tell little
_MOST_CLASSES = 50  # files of lines that may be one class each
_LINES = 5  # lines a file, in the mean, that make it a file of examples


@dataclass
class Found:
    """What lies in a folder: paths, sorted as people sort, by what they are."""

    pictures: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def looked(folder: Path, name: str = "") -> Found:
    """All files below a folder, by kind; by their ending, and where that tells nothing by their first bytes."""
    from lamina.pictures import SUFFIXES

    found = Found()
    for path in _walk(os.fspath(folder)):
        _, ending = os.path.splitext(path)
        ending = ending.lower()
        if ending in SUFFIXES:
            found.pictures.append(path)
        elif os.path.basename(path).lower().startswith(_ABOUT):
            found.foreign.append(path)
        elif ending in _TEXTS:
            found.texts.append(path)
        elif ending in ENDINGS and ending not in _LOOSE:
            found.tables.append(path)
        else:
            what = kind(Path(path))
            {"picture": found.pictures, "text": found.texts, "table": found.tables}.get(what, found.foreign).append(
                path
            )
    return found


def _walk(folder: str) -> Iterable[str]:
    """Files below a folder, in natural order; links to folders are not followed."""
    with os.scandir(folder) as entries:
        here = sorted((entry for entry in entries if not _is_litter(entry.name)), key=lambda entry: natural(entry.name))
    for entry in here:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif entry.is_file():
            yield entry.path


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _inner(folder: Path) -> list[Path]:
    """The folders in a folder, in natural order."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not _is_litter(entry.name) and entry.is_dir()]
    return [folder / name for name in sorted(names, key=natural)]


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not _is_litter(entry.name) and entry.is_file()]
    return [folder / name for name in sorted(names, key=natural) if not name.lower().startswith(_ABOUT)]


# --- A folder ---------------------------------------------------------------------------------------------------------


def read(folder: Path, name: str, columns: Columns, asked: Reading) -> Source:
    """A folder -> a Source."""
    root = folder
    inner, files = _inner(folder), _files(folder)
    while len(inner) == 1 and not files and (_inner(inner[0]) or not looked(inner[0]).pictures) and not _part(inner[0]):
        folder = inner[0]  # wrapped once more, as archives often are
        inner, files = _inner(folder), _files(folder)
    parts: dict[str, Path] = {}
    for place in [*inner, *files]:
        part = _part(place)
        if part is not None and (place.is_dir() or kind(place) in ("table", "text")):
            parts.setdefault(part, place)
    plain_parts = set(inner) <= set(parts.values()) and not any(map(_inner, inner))
    if files and (len(inner) < 2 or plain_parts):
        table = _with_pictures(files, folder, name, columns, asked)
        if table is not None:
            return table
    if "train" in parts and len({place.is_dir() for place in parts.values()}) == 1:
        return _by_part(parts, root, name, columns, asked)
    if inner:
        return _classes(inner, files, root, name, columns, asked)
    return _flat_folder(files, root, name, columns, asked)


def _part(place: Path) -> str | None:
    stem = place.name if place.is_dir() else place.name.partition(".")[0]
    return PARTS.get(stem.casefold())


def _by_part(parts: dict[str, Path], root: Path, name: str, columns: Columns, asked: Reading) -> Source:
    """train, valid and test: a folder each, or a table each."""
    from lamina.sources.places import one

    opened: Source | None = None
    for part in ("train", "valid", "test"):
        if part not in parts:
            continue
        place, called = parts[part], f"{name}/{parts[part].name}"
        if opened is None:
            opened = one(place, called, columns, asked)
            continue
        try:
            place_part(opened, part, lambda c, a, p=place, n=called: one(p, n, c, a), columns, asked)  # type: ignore[misc]
        except UsageError as error:
            if not place.is_file() or "no column" not in str(error):
                raise
            opened.findings.append(Finding(
                "no_answer", "note", f"{called} has no answers.", 1, [called], "it is left out",
                "predict on it when the net is trained: lamina predict RUN FILE",
            ))  # fmt: skip
    assert opened is not None
    for part in ("train", "valid", "test"):
        examples = getattr(opened, part)
        if examples is not None and examples.ids is not None and part in parts and parts[part].is_dir():
            start = parts[part].name
            examples.ids = np.array([f"{start}/{given}" for given in examples.ids], object)
    extra = "".join(
        f", {getattr(opened, p).count:,} for {p}" for p in ("valid", "test") if getattr(opened, p) is not None
    )
    return replace(opened, name=name, about=f"{opened.about}{extra}")


def _classes(inner: list[Path], files: list[Path], root: Path, name: str, columns: Columns, asked: Reading) -> Source:
    """A folder for each class."""
    by_class = {place.name: looked(place) for place in inner}
    pictures = sum(len(found.pictures) for found in by_class.values())
    texts = sum(len(found.texts) for found in by_class.values())
    tables = sum(len(found.tables) for found in by_class.values())
    if not pictures and not texts and not tables:
        raise _nothing(name, inner, files)
    what = "pictures" if pictures >= max(texts, tables) else "texts" if texts >= tables else "tables"
    if what == "tables":
        paths = [path for found in by_class.values() for path in found.tables]
        return several([Path(path) for path in paths], name, columns, asked)
    paths, truth, findings = [], [], []
    for title, found in by_class.items():
        if title.casefold() in _NO_CLASS:
            count = len(getattr(found, what))
            findings.append(Finding("no_answer", "note", f"{count:,} {what} lie in {title!r}, which names no class.", count,
                                    [title], "they are left out", "rename the folder if it is one"))  # fmt: skip
            continue
        here = getattr(found, what)
        if not here:
            findings.append(Finding("empty_class", "warning", f"The folder {title!r} of {name} holds no {what}.", 1,
                                    [title], "it is no class", "fill it, or remove it"))  # fmt: skip
        paths += here
        truth += [title] * len(here)
    foreign = [path for found in by_class.values() for k in ("pictures", "texts", "tables", "foreign") if k != what
               for path in getattr(found, k)] + [os.fspath(path) for path in files]  # fmt: skip
    findings += _left_out(foreign, root, what)
    if what == "pictures":
        no_columns(columns, asked, name)
        train = _of_pictures(paths, root, truth)
    else:
        no_columns(columns, replace(asked, encoding=None), name)
        train = _of_texts(paths, root, truth, asked, findings)
    classes = len(set(truth))
    return Source(
        name, train, about=f"{describe(train)} in {classes} folder{'s' if classes != 1 else ''}", findings=findings
    )


def _flat_folder(files: list[Path], root: Path, name: str, columns: Columns, asked: Reading) -> Source:
    found = Found()
    if files:
        found = looked(files[0].parent)
    if found.pictures and len(found.pictures) >= max(len(found.texts), len(found.tables)):
        no_columns(columns, asked, name)
        train = _of_pictures(found.pictures, root)
        rest = [*found.texts, *found.tables, *found.foreign]
        return Source(name, train, about=f"{describe(train)}, no answers", findings=_left_out(rest, root, "pictures"))
    chosen = found.tables if len(found.tables) >= len(found.texts) else found.texts
    if not chosen:
        raise _nothing(name, [], files)
    return several([Path(path) for path in chosen], name, columns, asked)


def _nothing(name: str, inner: list[Path], files: list[Path]) -> UsageError:
    shown = [path.name for path in [*inner, *files]][:8]
    return UsageError(
        f"{name} holds no data that can be opened here" + (f": {', '.join(shown)}." if shown else "; it is empty."),
        expected="a folder of pictures or texts for each class; train, valid and test folders of those; tables; the IDX files "
        "of MNIST",
    )


def _left_out(foreign: list[str], root: Path, what: str) -> list[Finding]:
    if not foreign:
        return []
    shown = [os.path.relpath(path, root) for path in foreign[:5]]
    more = f" and {len(foreign) - 5:,} more" if len(foreign) > 5 else ""
    return [Finding("foreign_files", "note", f"{len(foreign):,} other file{'s' if len(foreign) > 1 else ''} "
                    f"lie{'' if len(foreign) > 1 else 's'} among the {what}: {', '.join(shown)}{more}.",
                    len(foreign), shown, "left out", "")]  # fmt: skip


# --- Examples ---------------------------------------------------------------------------------------------------------


def _objects(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _relative(paths: list[str], root: Path) -> np.ndarray:
    start = len(os.fspath(root).rstrip(os.sep)) + 1
    return _objects([path[start:].replace(os.sep, "/") for path in paths])


def _of_pictures(paths: list[str], root: Path, truth: list[str] | None = None) -> Examples:
    answers = None if truth is None else np.array(truth)
    return Examples((_objects(paths),), answers, "files", ids=_relative(paths, root))


def _of_texts(
    paths: list[str], root: Path, truth: list[str] | None, asked: Reading, findings: list[Finding]
) -> Examples:
    """Texts, a file an example; or a line an example, where there are few files of many lines."""
    contents, told = [], []
    for path in paths:
        data, some = decoded(archives.plain(Path(path), path), os.path.relpath(path, root), asked)
        contents.append(data.decode())
        told += some
    findings += _together(told, len(paths))
    ids = _relative(paths, root)
    lines = sum(content.count("\n") for content in contents)
    few = len(paths) <= (2 * len(set(truth)) if truth is not None else _MOST_CLASSES)
    if not few or lines < (_LINES if len(paths) > 1 else 1) * len(paths):
        return Examples((_objects(contents),), None if truth is None else np.array(truth), "texts", ids=ids)
    texts: list[str] = []
    answers: list[str] = []
    names: list[Any] = []
    blank: list[str] = []
    for k, content in enumerate(contents):
        for number, line in enumerate(content.split("\n"), 1):
            line = line.rstrip("\r")
            if not line.strip():
                blank += [f"{ids[k]}:{number}"] if number <= content.count("\n") else []
                continue
            texts.append(line)
            names.append(number if len(paths) == 1 else f"{ids[k]}:{number}")
            answers += [truth[k]] if truth is not None else []
    if blank:
        findings.append(Finding("blank_lines", "warning", f"{len(blank):,} lines are blank: {', '.join(blank[:5])}.",
                                len(blank), blank[:5], "they were left out", ""))  # fmt: skip
    if not texts:
        raise DataError(f"{', '.join(ids[:3])} holds no text.", expected="a text a line")
    named = np.array(names) if len(paths) == 1 else _objects(names)
    return Examples((_objects(texts),), np.array(answers) if truth is not None else None, "texts", ids=named)


def _together(told: list[Finding], count: int) -> list[Finding]:
    """The findings of many files, one of each kind."""
    if count < 4:
        return told
    found = []
    for what in dict.fromkeys(finding.kind for finding in told):
        some = [finding for finding in told if finding.kind == what]
        first = some[0]
        more = f" And {len(some) - 1:,} more files." if len(some) > 1 else ""
        found.append(replace(first, what=first.what + more, count=len(some)))
    return found


def flat(paths: list[Path], name: str, asked: Reading) -> Source:
    """Pictures or texts without answers."""
    findings: list[Finding] = []
    if kind(paths[0]) == "picture":
        train = _of_pictures([os.fspath(path) for path in paths], paths[0].parent)
    else:
        with open(paths[0], "rb") as file_:
            if not file_.read(1 << 16).strip():
                raise DataError(f"{name} holds no text.", expected="a text a line")
        train = _of_texts([os.fspath(path) for path in paths], paths[0].parent, None, asked, findings)
    return Source(name, train, about=f"{describe(train)}, no answers", findings=findings)


# --- Several files ----------------------------------------------------------------------------------------------------


def several(paths: list[Path], name: str, columns: Columns, asked: Reading) -> Source:
    """Several files, or folders, as one source: tables of the same columns; files of lines, each a class; pictures."""
    if any(path.is_dir() for path in paths):
        if not all(path.is_dir() for path in paths):
            raise UsageError(f"{name} names files and folders.", expected="all files, or a folder for each class")
        root = Path(os.path.commonpath([path.absolute() for path in paths]))
        return _classes(paths, [], root, name, columns, asked)
    kinds = {path: kind(path) for path in paths}
    counts = Counter(kinds.values())
    if set(counts) <= {"table"}:
        shown = {path: os.path.relpath(path, paths[0].parent) for path in paths}
        return _tables([file(path, shown[path], asked) for path in paths], paths[0].parent, columns, asked)
    if set(counts) == {"picture"}:
        no_columns(columns, asked, name)
        parents = [path.parent.name for path in paths]
        truth = parents if len(set(parents)) > 1 else None
        root = Path(os.path.commonpath([path.absolute() for path in paths]))
        train = _of_pictures([os.fspath(path.absolute()) for path in paths], root, truth)
        return Source(name, train, about=f"{describe(train)}, {'classes by folder' if truth else 'no answers'}")
    if set(counts) <= {"text", "table"} and counts["text"]:
        no_columns(columns, replace(asked, encoding=None), name)
        findings: list[Finding] = []
        truth = _titles(paths) if len(paths) <= _MOST_CLASSES else None
        root = paths[0].parent
        strings = [os.fspath(path) for path in paths]
        train = _of_texts(strings, root, truth, asked, findings)
        if train.count == len(paths):  # a file an example: its name is no class
            train.truth = None
        classes = "no answers" if train.truth is None else f"a class a file: {', '.join(sorted(set(truth or ())))[:80]}"
        return Source(name, train, about=f"{describe(train)}, {classes}", findings=findings)
    words = ", ".join(f"{count} {what or 'unknown'}" for what, count in counts.items())
    raise UsageError(f"{name} names files of several kinds: {words}.", expected="files of one kind")


def _titles(paths: list[Path]) -> list[str]:
    """What tells the files of classes apart: their endings, where the rest is the same, else their names."""
    if len({path.stem for path in paths}) == 1 and len({path.suffix for path in paths}) == len(paths):
        return [path.suffix.lstrip(".") for path in paths]
    stems = [path.name.partition(".")[0] for path in paths]
    if len(set(stems)) < len(paths):
        return [path.name for path in paths]
    start = next((k for k, letters in enumerate(zip(*stems, strict=False)) if len(set(letters)) > 1), 0)
    while start and stems[0][start - 1] not in "-_. ":  # whole words only
        start -= 1
    rests = [stem[start:] for stem in stems]
    return rests if all(rests) else stems


def _tables(tables: list[Table], folder: Path, columns: Columns, asked: Reading) -> Source:
    return source(replace(joined(tables), folder=os.fspath(folder)), columns, asked)


def _with_pictures(files: list[Path], folder: Path, name: str, columns: Columns, asked: Reading) -> Source | None:
    """A table in a folder of pictures that names them, by their paths or by what their names begin with; None where there is
    none."""
    with_tables = [path for path in files if path.name.lower().endswith(ENDINGS)]
    pictures = looked(folder).pictures if with_tables else []
    if not pictures:
        return None
    stems = {os.path.splitext(os.path.basename(path))[0]: path for path in pictures}
    for path in with_tables:
        opened = source(file(path, f"{name}/{path.name}", asked), columns, asked, stems)
        if opened.train.kind == "files":
            return opened
    return None
