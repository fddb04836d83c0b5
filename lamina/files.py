"""The only module that writes what must last.

In: bytes and a place. Out: a file, or a whole directory, that is either there and complete or not there at all:

    write       a file: written beside the old one, flushed to the disk, renamed over it
    commit      a directory: its files, flushed; a manifest with sizes and SHA-256 of each, last; renamed into place
    verify      a committed directory, read back against its manifest
    Lock        one process a run folder

All of it asks the disk through `disk`, so that a test can record the requests or let one fail. An error that may pass is
met by trying again. A killed process leaves at most a `.tmp-...` beside what it was writing; `sweep` clears those away.
No torch here.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from lamina import documents
from lamina.errors import LaminaError, ResourceError, RunError, UsageError

MANIFEST = "manifest.json"
SCHEMA = 1
TEMPORARY = ".tmp-"
PAUSES = (0.05, 0.2, 1.0)  # seconds before another try, after an error that may pass
_OLD = "-old"  # ends the name of a directory that is about to be replaced
_PASSING = {
    errno.EIO,
    errno.EINTR,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EMFILE,
    errno.ENFILE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_NO_RENAME = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP}  # an overlay's lower layer, some network file systems
_WORDS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("your disk quota is used up", "free some space"),
    errno.EACCES: (
        "you have no permission to write there",
        "choose another folder with --runs, or change its permissions",
    ),
    errno.EPERM: ("you have no permission to write there", "choose another folder with --runs"),
    errno.EROFS: ("that file system is read-only", "choose another folder with --runs"),
    errno.EMFILE: ("too many files are open", "raise the limit: ulimit -n 4096"),
    errno.ELOOP: ("it is a link, which is not followed", "delete the link"),
    errno.ENOTDIR: ("a part of that path is a file, not a folder", "choose another folder with --runs"),
}


class Disk:
    """What is asked of the file system. Not flushed is not yet there, should the power fail; a name is flushed with its
    folder."""

    def create(self, path: Path) -> IO[bytes]:
        return open(path, "wb")

    def extend(self, path: Path) -> IO[bytes]:
        return open(path, "ab", buffering=0)

    def write(self, file: IO[bytes], data: Any) -> None:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]

    def cut(self, file: IO[bytes], size: int) -> None:
        file.truncate(size)

    def flush(self, file: IO[bytes]) -> None:
        file.flush()
        os.fsync(file.fileno())

    def flush_folder(self, path: Path) -> None:
        if os.name == "nt":  # which has no such call, and needs none
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def mkdir(self, path: Path) -> None:
        path.mkdir()

    def rmdir(self, path: Path) -> None:
        path.rmdir()

    def free(self, path: Path) -> int:
        return shutil.disk_usage(path).free


disk = Disk()


def point(name: str) -> None:
    """A place at which a test may end the process. It does nothing."""


@contextmanager
def _words(path: Path) -> Iterator[None]:
    """An OSError as a ResourceError that says what it means."""
    try:
        yield
    except LaminaError:
        raise
    except OSError as error:
        otherwise = str(error.strerror or error), "look after the disk, or choose another folder with --runs"
        what, fix = _WORDS.get(error.errno or 0, otherwise)
        raise ResourceError(f"{path} could not be written: {what}.", fix=fix) from error


def _lasting(act: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a path, begun anew after an error that may pass; others are told in words."""

    @functools.wraps(act)
    def wrapped(path: str | Path, *arguments: Any) -> Any:
        with _words(Path(path)):
            for pause in PAUSES:
                try:
                    return act(Path(path), *arguments)
                except OSError as error:
                    if error.errno not in _PASSING:
                        raise
                time.sleep(pause)
            return act(Path(path), *arguments)

    return wrapped


def _write_flushed(path: Path, pieces: Iterable[Any]) -> dict[str, Any]:
    """A new file; what a manifest says of it."""
    size, digest = 0, hashlib.sha256()
    with disk.create(path) as file:
        for piece in pieces:
            size += len(piece)
            digest.update(piece)
            disk.write(file, piece)
        disk.flush(file)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY}{os.getpid()}-{time.monotonic_ns()}-{path.name}"


def _clear(path: Path) -> None:
    """Delete a file or a folder, its manifest first: what is half deleted must not verify. What stays is swept later."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for place in sorted(path.iterdir(), key=lambda place: place.name != MANIFEST):
                _clear(place)
            disk.rmdir(path)
        else:
            disk.unlink(path)


@_lasting
def write(path: Path, data: bytes | str | Sequence[str]) -> None:
    """A file, or its pieces, whole or not at all; the old one stays until the new one is on the disk."""
    pieces = [data] if isinstance(data, (bytes, str)) else data
    beside = _temporary(path)
    try:
        _write_flushed(beside, (piece.encode() if isinstance(piece, str) else piece for piece in pieces))
        point("a file is written")
        disk.rename(beside, path)
    except BaseException:
        _clear(beside)
        raise
    point("a file is renamed")
    disk.flush_folder(path.parent)


@_lasting
def append(path: Path, lines: str) -> None:
    """Lines at the end of a log, all or none of them, handed to the system at once."""
    with disk.extend(path) as file:
        size = file.tell()
        try:
            disk.write(file, (lines.rstrip("\n") + "\n").encode())
        except BaseException:
            disk.cut(file, size)
            raise


@_lasting
def flush(path: Path) -> None:
    """What was appended to a log, down to the disk."""
    with disk.extend(path) as file:
        disk.flush(file)


@_lasting
def folder(path: Path) -> Path:
    """Make a folder and those above it, for good."""
    if not path.is_dir():
        folder(path.parent)
        with suppress(FileExistsError):
            disk.mkdir(path)
        disk.flush_folder(path.parent)
    return path


def cache(kind: str) -> Path | None:
    """The folder for what can be computed again, of a kind ("pictures"): `$LAMINA_CACHE/kind` (`off` for none), else
    `lamina/kind` in the user's cache folder. It need not be there."""
    asked = os.environ.get("LAMINA_CACHE")
    if asked == "off":
        return None
    if asked:
        return Path(asked).expanduser() / kind
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamina" / kind


@_lasting
def claim(path: Path) -> bool:
    """Make a folder that must not exist yet; False where it does. Only one of several processes gets True."""
    folder(path.parent)
    try:
        disk.mkdir(path)
    except FileExistsError:
        return False
    try:
        disk.flush_folder(path.parent)
    except BaseException:  # begun anew, it must not be in its own way
        _clear(path)
        raise
    return True


@_lasting
def probe(path: Path) -> None:
    """ResourceError where nothing can be written into a folder. The file has no name, so that nobody needs to clear it."""
    with tempfile.TemporaryFile(dir=path) as file:
        file.write(b"1")
        disk.flush(file)


@_lasting
def commit(path: Path, files: Mapping[str, bytes | Sequence[Any]], about: Mapping[str, Any]) -> None:
    """A new directory of files, each bytes or pieces of them, with a manifest; replaces one of the same name."""
    pieces: dict[str, Sequence[Any]] = {k: [data] if isinstance(data, bytes) else data for k, data in files.items()}
    wanted = 2 * sum(len(piece) for data in pieces.values() for piece in data)
    free = disk.free(folder(path.parent))
    if free < wanted:
        raise ResourceError(
            f"{path} could not be written: the disk is full, with {free:,} bytes free.",
            expected=f"{wanted:,}, twice what is to be written",
            fix="free some space",
        )
    beside = _temporary(path)
    try:
        disk.mkdir(beside)
        listed = {}
        for name, data in pieces.items():
            point("a folder's file is due")
            listed[name] = _write_flushed(beside / name, data)
        text = json.dumps({"schema": SCHEMA, **about, "files": listed}, indent=1, sort_keys=True)
        point("the manifest is due")
        _write_flushed(beside / MANIFEST, [f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n".encode()])
        point("the manifest is written")
        disk.flush_folder(beside)
        point("a folder is written")
        _swap(beside, path)
    except BaseException:
        _clear(beside)
        raise


def _swap(new: Path, path: Path) -> None:
    """Rename a directory into place. One that is in the way steps aside first, and comes back if anything fails: at once,
    or by `sweep` where the process was killed between the two renames."""
    if not path.exists():
        _move(new, path)
        point("a folder is renamed")
        disk.flush_folder(path.parent)
        return
    old = _temporary(path.with_name(path.name + _OLD))
    try:
        _move(path, old)
        point("the old folder is aside")
        _move(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            _move(old, path)
        raise
    point("a folder is replaced")
    disk.flush_folder(path.parent)
    point("the old folder is due for deletion")
    _clear(old)


def _move(source: Path, target: Path) -> None:
    """Rename a committed directory; where the file system will not, copy it, its manifest last, and delete it."""
    try:
        disk.rename(source, target)
        return
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
    disk.mkdir(target)
    for place in source.iterdir():
        if place.name != MANIFEST:
            _write_flushed(target / place.name, [place.read_bytes()])
    disk.flush_folder(target)
    write(target / MANIFEST, (source / MANIFEST).read_bytes())
    _clear(source)


def manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a committed directory, checked against its own hash."""
    place = Path(path) / MANIFEST
    first, _, text = _read(place).partition(b"\n")
    if not text.endswith(b"\n") or hashlib.sha256(text[:-1]).hexdigest().encode() != first:
        raise RunError(f"{place} is damaged: it does not match its own SHA-256.")
    try:
        found = documents.parse(text, place)
        version = found["schema"]
        listed = version != SCHEMA or all(
            Path(name).name == name and {"bytes", "sha256"} <= facts.keys() for name, facts in found["files"].items()
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RunError(f"{place} is no manifest: {type(error).__name__}: {error}") from error
    if version != SCHEMA:
        raise RunError(
            f"{place} has schema {version!r}.", expected=f"schema {SCHEMA}", fix="use the Lamina that wrote it"
        )
    if not listed:
        raise RunError(f"{place} is no manifest: it lists files outside its folder.")
    return dict(found)


def verify(path: str | Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(manifest, files) of a committed directory; a RunError names the first file that is not as it was written."""
    path = Path(path)
    found = manifest(path)
    data = {name: _read(path / name) for name in found["files"]}
    for name, facts in found["files"].items():
        _compare(path / name, facts, len(data[name]), hashlib.sha256(data[name]).hexdigest())
    return found, data


def check(path: str | Path) -> dict[str, Any]:
    """The manifest of a directory that verifies, read without keeping it in memory."""
    found = manifest(path)
    for name, facts in found["files"].items():
        place = Path(path) / name
        size, digest = 0, hashlib.sha256()
        with _reading(place), open(place, "rb") as file:
            while piece := file.read(1 << 20):
                size += len(piece)
                digest.update(piece)
        _compare(place, facts, size, digest.hexdigest())
    return found


def _compare(place: Path, facts: Mapping[str, Any], size: int, digest: str) -> None:
    if size != facts["bytes"]:
        raise RunError(f"{place} has {size} bytes.", expected=f"{facts['bytes']}")
    if digest != facts["sha256"]:
        raise RunError(f"{place} is damaged: its SHA-256 is not that of the manifest.")


@contextmanager
def _reading(place: Path) -> Iterator[None]:
    """A file that must be there: a disk that cannot give its bytes back is as bad as one that gives others."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(f"{place} is missing.", expected="a checkpoint folder as Lamina writes it") from error
    except OSError as error:
        raise RunError(f"{place} could not be read: {error.strerror or error}.") from error


def _read(place: Path) -> bytes:
    with _reading(place):
        return place.read_bytes()


@_lasting
def remove(path: Path) -> None:
    """A committed directory, out of sight at once and then deleted."""
    gone = _temporary(path)
    try:
        disk.rename(path, gone)
    except OSError as error:
        if error.errno not in _NO_RENAME:
            raise
        gone = path  # then it stops verifying first
    point("a folder is out of sight")
    disk.flush_folder(path.parent)
    _clear(gone)
    point("a folder is deleted")


def sweep(path: str | Path) -> None:
    """Clear away what killed processes left half-done in a folder and those below it."""
    for left in list(Path(path).rglob(f"{TEMPORARY}*")):
        name = left.name.split("-", 3)[-1]  # .tmp-PROCESS-TIME-NAME
        place = left.with_name(name.removesuffix(_OLD))
        if name.endswith(_OLD) and (left / MANIFEST).exists() and not (place / MANIFEST).exists():
            with suppress(OSError):  # killed in the middle of a replacement
                _clear(place)
                _move(left, place)
        else:
            _clear(left)


class Lock:
    """One process a run folder. The system drops the lock when its process ends, however it ends; what is written in the
    file only tells people, and others who wait, whose it is."""

    def __init__(self, path: str | Path):
        self.path = Path(path) / "lock"
        with _words(self.path):
            # No link is followed: the folder may be a stranger's, and what is opened here is written to.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            self._file = open(os.open(self.path, flags, 0o666), "r+b", buffering=0)  # noqa: SIM115  (held as long as the lock)
        try:
            free = self._taken()
        except OSError as error:
            self._file.close()
            raise ResourceError(
                f"{self.path} could not be locked: {error.strerror or error}.",
                expected="a file system that can lock files, so that two processes do not train one run",
                fix="a folder on a disk of this machine: --runs DIR",
            ) from error
        if not free:
            for _ in range(50):  # who has only just won it, is about to write his name
                if holder := _holder(self._file):
                    break
                time.sleep(0.01)
            self._file.close()
            raise UsageError(
                f"{Path(path)} is in use by {_told(holder)}.",
                expected="one process a run",
                fix="wait until it ends, stop it, or train under another --name",
            )
        text = json.dumps({"process": os.getpid(), "host": socket.gethostname(), **_born(os.getpid())})
        with suppress(OSError):  # on a full disk the lock holds all the same
            self._write(text.encode())
        _held.add(self)

    def _taken(self) -> bool:
        """Whether the lock is ours now. A child that was forked just before its parent was killed holds it for the
        instant it takes to start: where the process that is named has gone, that instant is waited for."""
        until = time.monotonic() + 5.0
        while not _lock(self._file):
            if time.monotonic() > until or not _gone(_holder(self._file)):
                return False
            time.sleep(0.01)
        return True

    def _write(self, text: bytes) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)

    def release(self) -> None:
        if not self._file.closed:
            with suppress(OSError):
                self._write(b"")  # the file stays: deleting it would let two later processes lock two different files
            self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


def _holder(file: Any) -> dict[str, Any]:
    """What a lock's file says of its holder. Whatever it holds: it may be torn, or forged."""
    file.seek(0)
    try:
        found = json.loads(file.read(4096))
    except (ValueError, OSError, RecursionError):
        return {}
    known = isinstance(found, dict) and type(found.get("process")) is int and isinstance(found.get("host"), str)
    return found if known and 0 < found["process"] < 1 << 31 else {}


def _told(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    host = "".join(c if c.isprintable() else "?" for c in holder["host"][:100])
    return f"process {holder['process']} on {host}"


def _born(process: int) -> dict[str, Any]:
    """When a process began, and since which start of the machine that is counted: its number alone may be given again."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "ticks": int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])}
    except (OSError, ValueError, IndexError):
        return {}


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the process that is named was one of this machine's and is no more."""
    if not holder or holder["host"] != socket.gethostname() or os.name == "nt":
        return False
    try:
        os.kill(holder["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it lives, and is another user's
    now = _born(holder["process"])
    return bool(now) and "ticks" in holder and (holder.get("boot"), holder["ticks"]) != (now["boot"], now["ticks"])


def _lock(file: Any) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child, such as a loader's worker: a lock is its parent's alone, and must not outlive the parent here."""
    for lock in _held:
        lock._file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
