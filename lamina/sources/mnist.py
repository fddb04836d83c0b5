"""MNIST: found on the disk, or downloaded once and verified.

In: a folder to look in, or none. Out: a `Source` of 60,000 pictures 1x28x28 to learn from and 10,000 to test on. Called
by `lamina.sources.open("mnist")`.

Looked for in `data_dir`, then in the folder that LAMINA_DATA names, then in the cache. The bytes are compared with the
SHA-256 of the unpacked files (mirrors pack them differently), whether they were found or downloaded: a folder of
Fashion-MNIST carries the same names.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lamina import files
from lamina.errors import DataError, ResourceError, UsageError
from lamina.sources import Source, describe, idx

# name -> bytes and SHA-256 of the unpacked file
KNOWN = {
    "train-images-idx3-ubyte": (47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": (60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": (7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": (10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_TIMEOUT = 20  # seconds without a byte
_TRIES = 5  # a mirror and file, as long as each brings it further
_CHUNK = 1 << 16  # bytes
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.EISDIR)

Known = dict[str, tuple[int, str]]
Report = Callable[[str, int, "int | None"], None]  # file, bytes so far, bytes in all


def read(data_dir: str | Path | None = None, *, mirrors: Sequence[str] = MIRRORS, known: Known = KNOWN) -> Source:
    """The four files as a Source, downloaded into the cache where they are not found.

    ResourceError where they are neither found nor to be had; DataError where files of these names hold other bytes.
    """
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise UsageError(f"There is no folder {str(data_dir)!r}.", fix="make it, or leave data_dir out")
    folder = next((place for place in _places(data_dir) if all(idx.find(place, name) for name in known)), None)
    if folder is None:
        folder = download(_cache(), mirrors=mirrors, known=known)
    found = idx.folder(folder)
    assert found.test is not None
    columns = [found.train.inputs[0][:, 0], found.train.truth, found.test.inputs[0][:, 0], found.test.truth]
    for name, column in zip(known, columns, strict=True):
        if _digest(column) != known[name][1]:
            raise DataError(
                f"{idx.find(folder, name)} does not hold MNIST: its bytes are others.",
                expected=f"SHA-256 {known[name][1]} of the unpacked file",
                fix=f"to use it as it is, give the folder itself ({folder}); else delete it and run again",
            )
    for part in (found.train, found.test):
        part.labels = [str(digit) for digit in range(10)]
    reopen = "mnist" if data_dir is None else str(folder.absolute())
    about = f"{describe(found.train)}, {found.test.count:,} for test, from {folder}"
    return Source("mnist", found.train, test=found.test, reopen=reopen, about=about)


def download(folder: Path, *, mirrors: Sequence[str] = MIRRORS, known: Known = KNOWN) -> Path:
    """Fetch what is missing of the four .gz files into `folder`, resuming what was begun; returns `folder`.

    A file takes its name only when its unpacked bytes are the known ones. One process at a time: others wait.
    """
    with _alone(folder), _progress() as report:
        for name, facts in known.items():
            if idx.find(folder, name) is None:
                _fetch(folder / f"{name}.gz", mirrors, facts, report)
    return folder


def _places(data_dir: str | Path | None) -> Iterator[Path]:
    """Folders that may hold the four files, the user's first."""
    for root in (data_dir, os.environ.get("LAMINA_DATA")):
        if root:
            for below in (".", "mnist", "image/mnist", "MNIST/raw"):  # the last is torchvision's
                yield Path(root).expanduser() / below
    yield _cache()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamina" / "mnist"


def _digest(column: np.ndarray | None) -> str:
    """SHA-256 of the IDX file of a column: its header made again, then its bytes."""
    assert column is not None
    values = np.ascontiguousarray(column, dtype=np.uint8)
    header = np.array([0x0800 + values.ndim, *values.shape], dtype=">u4").tobytes()
    digest = hashlib.sha256(header)
    digest.update(values.data)
    return digest.hexdigest()


def _fetch(target: Path, mirrors: Sequence[str], facts: tuple[int, str], report: Report) -> None:
    """One file, from the first mirror that has it. ResourceError says what every mirror answered."""
    part = target.with_name(target.name + ".part")
    troubles = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{target.name}"
        for _ in range(_TRIES):
            before = part.stat().st_size if part.exists() else 0
            trouble = _append(url, part, most=facts[0] + (1 << 16), report=report)
            if trouble is None and _is_known(part, facts):
                os.replace(part, target)
                return
            if trouble is None:  # what was resumed may have been another mirror's: once more, from the start
                part.unlink(missing_ok=True)
                troubles.append(f"{url}: its bytes are not those of {target.name}")
                if before == 0:
                    break
            else:
                troubles.append(f"{url}: {trouble}")
                if not part.exists() or part.stat().st_size <= before:
                    break
    raise ResourceError(
        f"MNIST is not on this machine, and {target.name} could not be downloaded:\n  " + "\n  ".join(troubles),
        expected=f"the four files {', '.join(f'{name}.gz' for name in KNOWN)} (or unpacked, without .gz)",
        fix=f"put them into {target.parent}, or into any folder and name that by data_dir=... or the environment "
        "variable LAMINA_DATA; or take `digits`, which needs no download",
    )


def _append(url: str, part: Path, *, most: int, report: Report) -> str | None:
    """Bring a partial file further. Returns what went wrong on the network; None where it came to its end."""
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            if response.status != 206:
                have = 0  # the server sends all of it again
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                return f"it answered with the range {response.headers.get('Content-Range')!r}"
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            with _cache_words(part), part.open("r+b" if have else "wb") as file:
                file.seek(have)
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    report(part.name.removesuffix(".part"), have, total)
                    if have > most:
                        return None  # far too long: the comparison of the bytes will say so
                file.flush()
                os.fsync(file.fileno())
        return f"cut after {have:,} of {total:,} bytes" if total is not None and have < total else None
    except urllib.error.HTTPError as error:
        return None if error.code == 416 and have else f"it answered {error.code} {error.reason}"  # 416: it is whole
    except urllib.error.URLError as error:
        return str(error.reason)
    except (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"


def _is_known(part: Path, facts: tuple[int, str]) -> bool:
    """Whether a .gz file unpacks to the known bytes; it is unpacked no further than they go."""
    size, expected = facts
    digest, unpacked = hashlib.sha256(), 0
    try:
        with gzip.open(part) as stream:
            while unpacked <= size and (chunk := stream.read(1 << 20)):
                digest.update(chunk)
                unpacked += len(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return unpacked == size and digest.hexdigest() == expected


@contextmanager
def _cache_words(place: Path) -> Iterator[None]:
    """Trouble with the disk, told from trouble with the network."""
    try:
        yield
    except OSError as error:
        if not isinstance(error, ResourceError) and error.errno not in _DISK:
            raise
        what = error.what if isinstance(error, ResourceError) else f"{place} could not be written: {error.strerror}."
        fix = "free some space there, or name another cache by the environment variable XDG_CACHE_HOME"
        raise ResourceError(what, fix=fix) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One download at a time in a folder; the other processes wait for it."""
    lock = None
    while lock is None:
        try:
            with _cache_words(folder):
                lock = files.Lock(files.folder(folder))
        except UsageError:
            time.sleep(0.2)
    with lock:
        yield


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on standard error where that is a terminal; silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda name, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, object] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done, total=total)  # type: ignore[arg-type]

        yield report
