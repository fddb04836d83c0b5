"""Archives of others, unpacked where they cannot do harm.

In: a `.zip`, `.tar`, `.tar.gz`, `.tar.bz2` or `.tar.xz`, and a folder that is not there yet. Out: the folder with the
archive's files; or DataError, and nothing on the disk. Only files and folders come out, below the folder, each name once
(also on a disk that takes "A" for "a"), with the rights of any new file. Sizes are counted as the bytes come out, whatever
the headers say. Archives inside are files like any other.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lamina import files
from lamina.errors import DataError, LaminaError, ResourceError, UsageError

MANY = 2_000_000  # files and folders of a data set
SLACK = 16 << 20  # bytes: so much comes out of any archive, however small it is
_PIECE = 1 << 20  # bytes at a time
_HEADER = 1 << 20  # bytes: the longest header of a tar
_READERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE}


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    most_bytes: int = 64 << 30,
    most_files: int = 100_000,
    most_ratio: float = 100.0,
) -> list[Path]:
    """Unpack an archive into a new folder; gives the paths of the files, sorted.

    most_bytes: of all files together. most_files: files and folders. most_ratio: bytes out for a byte of the archive,
    after the first 16 MiB. All that is refused leaves no folder behind.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise UsageError(f"There is no archive {str(archive)!r}.")
    if folder.exists():
        raise UsageError(f"{folder} exists already.", fix="give the name of a folder that is not there yet")
    files.folder(folder.parent)
    most = int(min(most_bytes, SLACK + most_ratio * archive.stat().st_size))
    beside = folder.with_name(f"{files.TEMPORARY}{os.getpid()}-{time.monotonic_ns()}-{folder.name}")
    try:
        beside.mkdir()
        names = _write(archive, beside, most, most_files)
        os.rename(beside, folder)
    except LaminaError:
        raise
    except Exception as error:  # whatever foreign bytes do to the reader, the archive is not sound
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise ResourceError(f"{archive} could not be unpacked: {error.strerror}.") from error
        raise DataError(f"{archive} is no sound archive: {str(error) or type(error).__name__}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return [folder / name for name in sorted(names)]


def _write(archive: Path, root: Path, most: int, most_files: int) -> list[str]:
    """The files written below a folder, by their names there."""
    spelled: dict[str, str] = {}  # a name as a disk may fold it -> as it is written
    made: set[str] = set()  # folders
    names: list[str] = []
    left = most
    for count, (name, is_folder, content) in enumerate(_entries(archive, most, most_files), 1):
        if count > most_files:
            raise DataError(f"{archive} has more than {most_files:,} files.", fix="unpack it yourself if you trust it")
        place = _inside(archive, name, spelled, made, is_folder)
        above = place if is_folder else place.rpartition("/")[0]
        if above not in made:
            (root / above).mkdir(parents=True, exist_ok=True)
            made.add(above)
        if is_folder:
            continue
        names.append(place)
        with open(f"{root}{os.sep}{place}", "xb") as out:
            while piece := content.read(_PIECE):
                left -= len(piece)
                if left < 0:
                    raise DataError(
                        f"{archive} has {archive.stat().st_size:,} bytes, and unpacks to more than {most:,}.",
                        fix="unpack it yourself if you trust it",
                    )
                out.write(piece)
    return names


def _inside(archive: Path, name: str, spelled: dict[str, str], made: set[str], is_folder: bool) -> str:
    """A name as a path below the folder, or DataError."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    why = (
        "is absolute" if name.startswith("/") or re.match("[A-Za-z]:", name)
        else "leads out of its folder" if ".." in parts
        else "has a character that no file's name should have" if "\\" in name or not name.isprintable()
        else "is too long" if len(os.fsencode(name)) > 1000 or any(len(os.fsencode(part)) > 255 for part in parts)
        else "names nothing" if not parts and not is_folder
        else ""
    )  # fmt: skip
    path = "/".join(parts[:-1])
    for k in range(len(parts) - 1 if path in made else 0, len(parts)):  # what is made was looked at
        path = "/".join(parts[: k + 1])
        known = spelled.setdefault(unicodedata.normalize("NFC", path).casefold(), path)
        if not why and known != path:
            why = f"is {known!r} on a disk that does not tell small letters from capitals"
    if why:
        raise DataError(f"{archive} holds a file whose name {why}: {name[:200]!r}.", fix="do not trust this archive")
    return "/".join(parts)


def _entries(archive: Path, most: int, most_files: int) -> Iterator[tuple[str, bool, Any]]:
    """(name, whether it is a folder, its content) one after the other."""
    with open(archive, "rb") as file:
        begin = file.read(6)
    if begin.startswith(b"PK"):
        with open_zip(archive, most_files) as zipped:
            for entry in zipped.infolist():
                kind = stat.S_IFMT(entry.external_attr >> 16)
                folder = entry.is_dir() or kind == stat.S_IFDIR
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _special(archive, entry.filename, "a link or a device")
                if folder and entry.file_size:
                    raise DataError(f"{archive} holds a folder with content: {entry.filename[:200]!r}.")
                with zipped.open(entry) as content:
                    yield entry.filename, folder, content
        return
    reader = next((reader for magic, reader in _READERS.items() if begin.startswith(magic)), open)
    with reader(archive, "rb") as raw:
        within: Any = _Within(raw, archive, most)
        tar = tarfile.open(fileobj=within, mode="r:")  # noqa: SIM115  (nothing of it is to be closed)
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it keeps all it has seen
            if member.issparse() or not (member.isreg() or member.isdir()):
                raise _special(archive, member.name, "a link, a device or a file with holes")
            yield member.name, member.isdir(), None if member.isdir() else tar.extractfile(member)
        within.seek(tar.offset)
        if within.read(512) != bytes(512):  # where `tarfile` takes a damaged header for the end
            raise tarfile.ReadError("it ends too early, or is damaged")
        while within.read(_PIECE):
            pass  # to the end, where a checksum may stand


def head(path: Path, size: int) -> bytes:
    """The first bytes of what comes out of a file that is packed by itself; b"" where it is damaged there."""
    try:
        with (_reader(path) or open)(path, "rb") as packed:
            return packed.read(size)
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        return b""


def _reader(path: Path) -> Any:
    """What unpacks a file that is packed by itself; None where it is not."""
    with open(path, "rb") as file:
        begin = file.read(6)
    return next((reader for magic, reader in _READERS.items() if begin.startswith(magic)), None)


def plain(path: Path, name: str) -> bytes:
    """The bytes of a file; of one that is packed by itself (.gz, .bz2, .xz) those that come out, which may be 200 times as
    many as it has, after the first 16 MiB."""
    reader = _reader(path)
    if reader is None:
        return path.read_bytes()
    most = SLACK + 200 * path.stat().st_size
    pieces, size = [], 0
    try:
        with reader(path, "rb") as packed:
            while piece := packed.read(_PIECE):
                size += len(piece)
                if size > most:
                    raise DataError(
                        f"{name} unpacks to more than {most:,} bytes.", fix="unpack it yourself if you trust it"
                    )
                pieces.append(piece)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            raise ResourceError(f"{name} could not be read: {error.strerror}.") from error
        raise DataError(f"{name} cannot be unpacked: {error}", fix="get it again from its source") from error
    return b"".join(pieces)


def _special(archive: Path, name: str, what: str) -> DataError:
    return DataError(
        f"{archive} holds {what}: {name[:200]!r}.", expected="files and folders", fix="do not trust this archive"
    )


def open_zip(path: Path, most_files: int) -> zipfile.ZipFile:
    """A zip file whose directory is sound: entries of their own names that do not overlap, stored or deflated."""
    with open(path, "rb") as file:
        end: Any = zipfile._EndRecData(file)  # type: ignore[attr-defined]
        if end:  # counted before zipfile makes an object of each
            file.seek(max(0, end[zipfile._ECD_LOCATION] - end[zipfile._ECD_SIZE] - 76))  # type: ignore[attr-defined]
            count, seam = 0, b""
            while piece := file.read(_PIECE):
                count += (seam + piece).count(b"PK\x01\x02")
                seam = piece[-3:]
            if count > most_files:
                raise zipfile.BadZipFile(f"it has more than {most_files:,} files")
    opened = zipfile.ZipFile(path)
    try:
        entries = sorted(opened.infolist(), key=lambda entry: entry.header_offset)
        if len({entry.filename for entry in entries}) < len(entries):
            raise zipfile.BadZipFile("it holds two files of one name")
        if any("\0" in entry.orig_filename for entry in entries):
            raise zipfile.BadZipFile("it holds a name with a NUL, which readers cut at different places")
        reach = 0
        for entry in entries:
            if entry.header_offset < reach:
                raise zipfile.BadZipFile(f"{entry.filename[:200]!r} overlaps another file of it")
            reach = entry.header_offset + 30 + entry.compress_size
            if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{entry.filename[:200]!r} is encrypted, or packed in an unusual way")
        return opened
    except BaseException:
        opened.close()
        raise


class _Within:
    """A file that is read in small pieces and not beyond a place: `tarfile` takes the sizes of headers on trust."""

    def __init__(self, file: IO[bytes], archive: Path, most: int):
        self.file, self.archive = file, archive
        self.most = most + (most >> 2) + SLACK  # headers and padding beside the content

    def seek(self, place: int, whence: int = 0) -> int:
        if not 0 <= place <= self.most:
            raise DataError(f"{self.archive} unpacks to more than {self.most:,} bytes, or says so.")
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= max(_HEADER, _PIECE) or self.file.tell() > self.most:
            raise DataError(f"{self.archive} has a header that is said to have {size:,} bytes, or too many of them.")
        return self.file.read(size)
