"""The only module that writes what must last.

In: bytes and a place. Out: a file, or a whole directory, that is either there and complete or not there at all:

    write       a file: written beside the old one, flushed to the disk, renamed over it
    commit      a directory: its files, flushed; a manifest with sizes and SHA-256 of each, last; renamed into place
    verify      a committed directory, read back against its manifest
    Lock        one process a run folder

A killed process leaves at most a `.tmp-...` beside what it was writing; `sweep` clears those away. No torch here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError, ResourceError, RunError, UsageError

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
_OLD = "-old"  # ends the name of a directory that is about to be replaced
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


@contextmanager
def _words(path: Path) -> Iterator[None]:
    """An OSError as a ResourceError that says what it means."""
    try:
        yield
    except LaminaError:
        raise
    except OSError as error:
        what, fix = _WORDS.get(error.errno or 0, (str(error.strerror or error), ""))
        raise ResourceError(f"{path} could not be written: {what}.", fix=fix) from error


def _flush_directory(path: Path) -> None:
    """Make a rename durable. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_flushed(path: Path, data: bytes | Iterable[bytes]) -> None:
    with open(path, "wb") as file:
        for piece in [data] if isinstance(data, bytes) else data:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    return path.parent / f"{TEMPORARY}{os.getpid()}-{time.monotonic_ns()}-{path.name}"


def write(path: str | Path, data: bytes | str | Iterable[str]) -> None:
    """A file, or its pieces, whole or not at all; the old one stays until the new one is on the disk."""
    path = Path(path)
    beside = _temporary(path)
    with _words(path):
        try:
            text = [data] if isinstance(data, str) else data
            _write_flushed(beside, text if isinstance(text, bytes) else (piece.encode() for piece in text))
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        _flush_directory(path.parent)


def append(path: str | Path, line: str) -> None:
    """A line at the end of a log, handed to the system at once."""
    with _words(Path(path)), open(path, "a", encoding="utf-8") as file:
        file.write(line.rstrip("\n") + "\n")


def folder(path: str | Path) -> Path:
    """Make a folder and those above it."""
    path = Path(path)
    with _words(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def claim(path: str | Path) -> bool:
    """Make a folder that must not exist yet; False where it does. Only one of several processes gets True."""
    path = Path(path)
    with _words(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
    return True


def commit(path: str | Path, files: Mapping[str, bytes], about: Mapping[str, Any]) -> None:
    """A new directory of files with a manifest; replaces one of the same name."""
    path = Path(path)
    beside = _temporary(path)
    with _words(path):
        try:
            beside.mkdir(parents=True)
            listed = {}
            for name, data in files.items():
                _write_flushed(beside / name, data)
                listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            manifest = {"schema": 1, **about, "files": listed}
            text = json.dumps(manifest, indent=1, sort_keys=True)
            _write_flushed(beside / MANIFEST, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n".encode())
            _flush_directory(beside)
            _swap(beside, path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _swap(new: Path, path: Path) -> None:
    """Rename a directory into place. One that is in the way steps aside first, and comes back if anything fails: at once,
    or by `sweep` where the process was killed between the two renames."""
    if not path.exists():
        os.replace(new, path)
        _flush_directory(path.parent)
        return
    old = _temporary(path.with_name(path.name + _OLD))
    try:
        os.replace(path, old)
        os.replace(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    _flush_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a committed directory, checked against its own hash."""
    place = Path(path) / MANIFEST
    first, _, text = _read(place).partition(b"\n")
    if not text.endswith(b"\n") or hashlib.sha256(text[:-1]).hexdigest().encode() != first:
        raise RunError(f"{place} is damaged: it does not match its own SHA-256.")
    try:
        found = json.loads(text)
        version = found["schema"]
        listed = version != 1 or all(
            Path(name).name == name and {"bytes", "sha256"} <= facts.keys() for name, facts in found["files"].items()
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RunError(f"{place} is no manifest: {type(error).__name__}: {error}") from error
    if version != 1:
        raise RunError(f"{place} has schema {version!r}.", expected="schema 1", fix="use the Lamina that wrote it")
    if not listed:
        raise RunError(f"{place} is no manifest: it lists files outside its folder.")
    return dict(found)


def verify(path: str | Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(manifest, files) of a committed directory; a RunError names the first file that is not as it was written."""
    path = Path(path)
    found = manifest(path)
    data = {}
    for name, facts in found["files"].items():
        place = path / name
        data[name] = _read(place)
        if len(data[name]) != facts["bytes"]:
            raise RunError(f"{place} has {len(data[name])} bytes.", expected=f"{facts['bytes']}")
        if hashlib.sha256(data[name]).hexdigest() != facts["sha256"]:
            raise RunError(f"{place} is damaged: its SHA-256 is not that of the manifest.")
    return found, data


def _read(place: Path) -> bytes:
    """The bytes of a file that must be there: a disk that cannot give them back is as bad as one that gives others."""
    try:
        return place.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{place} is missing.", expected="a checkpoint folder as Lamina writes it") from error
    except OSError as error:
        raise RunError(f"{place} could not be read: {error.strerror or error}.") from error


def remove(path: str | Path) -> None:
    """A committed directory, out of sight at once and then deleted."""
    path = Path(path)
    gone = _temporary(path)
    with _words(path):
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(path: str | Path) -> None:
    """Clear away what killed processes left half-done in a folder and those below it."""
    for left in list(Path(path).rglob(f"{TEMPORARY}*")):
        name = left.name.split("-", 3)[-1]  # .tmp-PROCESS-TIME-NAME
        place = left.with_name(name.removesuffix(_OLD))
        if name.endswith(_OLD) and not place.exists():  # killed between the two renames of a replacement
            with _words(place):
                os.replace(left, place)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


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
