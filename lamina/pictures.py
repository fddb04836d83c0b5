"""Picture files -> one compact column of bytes (N, C, H, W), decoded once and kept for later runs.

In: paths of pictures. Out: a `Decoded`: the column, which of the paths are in it, and why the others are not. Called by
the image domain, for training and for prediction alike.

    decode   all of them, on every core, into memory or above `--memory` onto the disk; or from the cache. Before that,
    look     at the headers of some of them -> their sizes, and whether they are grey
    choose   sizes, count -> the `Form` of the column, with the reason

The rules, the same for every picture: it is what its content says, whatever its name ends in; the first frame of several;
turned upright as its EXIF orientation says; 16-bit grey by its depth, 65,535 as 255; what is transparent shows white; the
whole picture is brought to the column's size, each side by itself. One of more than `MOST_PIXELS` is refused by its
header, before any of it is decoded.

The cache is `$LAMINA_CACHE/pictures` (`off` for none), else `lamina/pictures` in the user's cache folder: an entry for each
list of files, with their sizes and times of change, and form. An entry that is damaged is made again; the entries longest
unused give way above `MOST_CACHED` bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import multiprocessing
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lamina import files, mapped
from lamina.errors import LaminaError, ResourceError, printable
from lamina.processes import can, cores, in_main_thread, settle

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pbm", ".pnm", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM", "TIFF")  # none of those that run other programs
MOST_PIXELS = 80_000_000  # of one picture: decoded, 240 MB
MOST_CACHED = 10 << 30  # bytes
SAMPLE = 256  # headers looked at
TINY = 8  # pixels: a side below tells next to nothing
KEPT = 64  # pixels: pictures of one size up to this keep it
SIDES = ((3_000, 96), (30_000, 80), (math.inf, 64))  # up to so many pictures, the side of a square of the column's area
_PROCESSES = 256  # pictures from which on processes are worth their start; below, threads do it
_DAY = 86_400  # seconds
_VERSION = 2  # of what an entry of the cache holds
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose width is the height of the upright picture


@dataclass(frozen=True)
class Form:
    """What every picture of a column is brought to."""

    channels: int  # 1 grey, 3 colour, 4 colour and opacity
    height: int  # pixels
    width: int  # pixels


@dataclass(frozen=True)
class Look:
    """What headers say."""

    sizes: np.ndarray  # (n, 2) width and height in pixels, upright
    grey: bool  # all of them


@dataclass
class Decoded:
    """Pictures of one form."""

    column: np.ndarray  # (n, C, H, W) uint8
    rows: np.ndarray  # (n,) int64: which of the paths these are
    bad: dict[int, str] = field(default_factory=dict)  # the others: path's number -> what is wrong
    tiny: dict[int, str] = field(
        default_factory=dict
    )  # path's number -> the size of one that is too small to tell much
    place: Path | None = None  # its entry in the cache
    reused: bool = False  # it came from there
    note: str = ""  # why it is not in the cache
    why: str = ""  # of the form, where it was chosen

    @property
    def form(self) -> Form:
        return Form(*self.column.shape[1:])


class Unreadable(Exception):
    """Why a file cannot be used as a picture, in a few words."""


# --- Headers ----------------------------------------------------------------------------------------------------------


def look(paths: Sequence[str]) -> Look:
    """Sizes and colours of up to `SAMPLE` pictures, spread evenly over the list; those that cannot be read are passed over.
    Sizes (0, 2) where none can."""
    some: Any = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), SAMPLE)).astype(int)) if len(paths) else []
    sizes, grey = [], True
    with _quiet():
        for k, row in enumerate(some):
            try:
                with _opened(paths[row]) as picture:
                    width, height = picture.size
                    sizes.append((height, width) if _orientation(picture) in _SIDEWAYS else (width, height))
                    if grey and not _one_channel(picture.mode) and k % 8 == 0:  # what is grey need not say so
                        grey = _is_grey(_brought(picture, Form(3, min(height, 64), min(width, 64))))
            except Unreadable:
                continue
    return Look(np.array(sizes, np.int64).reshape(-1, 2), grey)


def choose(seen: Look, count: int, size: int = 0) -> tuple[Form, str]:
    """The form of a column of so many pictures, and why. size: pixels of a side, where somebody asked for it."""
    if not len(seen.sizes):
        return Form(1 if seen.grey else 3, size or KEPT, size or KEPT), "none of those looked at could be read"
    channels = 1 if seen.grey else 3
    widths, heights = seen.sizes[:, 0], seen.sizes[:, 1]
    width, height = int(np.median(widths)), int(np.median(heights))
    area = math.sqrt(float(np.median(widths * heights)))  # pixels: the side of a square of a picture's area
    shapes = widths / heights
    alike = bool(np.ptp(shapes) <= 0.02 * shapes.min())
    one = alike and bool(np.ptp(widths) == 0)
    if one:
        about = f"all are {width}x{height}"
    else:
        about = (
            f"they are {width}x{height} in the median, {widths.min()}x{heights.min()} to {widths.max()}x{heights.max()}"
        )
    if size:
        side, why = float(size), "asked for"
    elif one and max(width, height) <= KEPT:
        return Form(channels, height, width), about
    else:
        side = next(side for most, side in SIDES if count <= most)
        why = f"a size to go through {count:,} of them often"
        if area < side:
            side, why = 8.0 * max(1, round(area / 8)), "about as large as they are"
    if alike and not 0.98 < shapes[0] < 1.02:
        stretch = math.sqrt(float(shapes[0]))
        return Form(channels, max(1, round(side / stretch)), max(1, round(side * stretch))), f"{about}; {why}"
    return Form(channels, round(side), round(side)), f"{about}; {why}"


# --- One picture ------------------------------------------------------------------------------------------------------


def open_picture(path: str | Path, form: Form) -> np.ndarray:
    """A picture file -> (C, H, W) uint8. Raises `Unreadable`."""
    with _quiet(), _opened(path) as picture:
        return _brought(picture, form).transpose(2, 0, 1)


def is_picture(path: str | Path) -> bool:
    """Whether a file is a picture by its content."""
    try:
        with _quiet(), _opened(path):
            return True
    except Unreadable:
        return False


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """A picture of which only the header is read. Whatever goes wrong with it, then or later, is `Unreadable`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise Unreadable(f"{width:,} x {height:,} pixels, more than {MOST_PIXELS / 1e6:.0f} million")
            yield picture
    except (Unreadable, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {MOST_PIXELS / 1e6:.0f} million pixels") from None
    except UnidentifiedImageError:
        empty = os.path.getsize(path) == 0
        raise Unreadable("an empty file" if empty else "not a picture, or of a kind not read here") from None
    except OSError as error:
        raise Unreadable(error.strerror or _told(error)) from None
    except Exception as error:  # whatever a foreign file does to the reader
        raise Unreadable(_told(error)) from None


def _told(error: Exception) -> str:
    words = printable(str(error)) or type(error).__name__
    return "cut off: it ends too early" if "truncated" in words else words.splitlines()[0][:100]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of what is refused here, or put right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(picture: Any) -> int:
    """EXIF's, 1 to 8; 1 is upright. Only asked for where there can be one: it takes longer than to decode 32 x 32."""
    if "exif" in picture.info or picture.format in ("TIFF", "MPO", "WEBP") or "Raw profile type exif" in picture.info:
        with contextlib.suppress(Exception):  # what cannot be read says nothing
            return int(picture.getexif().get(0x0112, 1))
    return 1


def _one_channel(mode: str) -> bool:
    return mode in ("1", "L", "F", "LA", "La") or mode.startswith("I")


def _brought(picture: Any, form: Form) -> np.ndarray:
    """An opened picture -> (H, W, C) uint8: decoded, of 8 bits, over white, resized, upright."""
    turn = _orientation(picture)
    size = (form.height, form.width) if turn in _SIDEWAYS else (form.width, form.height)
    if picture.size[0] >= 2 * size[0]:
        picture.draft("RGB", size)  # of a JPEG no more pixels are made than are asked for, or twice as many a side
    plain = _eight_bits(picture)
    if plain.mode != "RGBA" or form.channels != 4:
        plain = _on_white(plain)
    if plain.size != size or turn in _TURNS:
        from PIL import Image

        plain = plain.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        if turn in _TURNS:
            plain = plain.transpose(getattr(Image.Transpose, _TURNS[turn]))
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[form.channels]
    table = np.asarray(plain if plain.mode == mode else plain.convert(mode))
    return table[:, :, None] if table.ndim == 2 else table


_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
          7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip


def _eight_bits(picture: Any) -> Any:
    """In mode L, RGB or RGBA."""
    if picture.mode in ("L", "RGB", "RGBA"):
        picture.load()
        return picture
    from PIL import Image

    if picture.mode == "F" or picture.mode.startswith("I"):
        table = np.asarray(picture)
        low, high = table.min(), table.max()
        if not (low >= 0 and high <= 65535):  # NaN too
            raise Unreadable(f"its grey goes from {low:g} to {high:g}; read are 0 to 65,535, and fractions from 0 to 1")
        by = 255.0 if picture.mode == "F" and high <= 1 else 1.0 if picture.mode == "F" and high <= 255 else 255 / 65535
        return Image.fromarray(np.rint(table * by).astype(np.uint8))
    if picture.mode in ("LA", "La", "PA", "RGBa") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _on_white(picture: Any) -> Any:
    if picture.mode in ("L", "RGB") and "transparency" in picture.info:  # one colour of a PNG is no colour
        picture = picture.convert("RGBA")
    if picture.mode != "RGBA":
        return picture
    from PIL import Image

    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _is_grey(table: np.ndarray) -> bool:
    """Whether all channels (H, W, C) are the same."""
    return bool((table[..., 1:] == table[..., :1]).all())


# --- Many pictures ----------------------------------------------------------------------------------------------------


def decode(paths: Sequence[str], form: Form | None = None, *, size: int = 0, keep: bool = True) -> Decoded:
    """All pictures that can be read, in their order, within `mapped.limited`; from the cache where it has them.

    form: as it was in training; without one it is chosen, with the reason in `why`, and has one channel where all pictures are
    grey, in whatever they are stored. size: pixels of a side, where somebody asked for it. keep: in the cache.
    Raises ResourceError where a disk or a process fails.
    """
    cache = _folder() if keep else None
    place = None if cache is None else cache / _key(paths, form or (size, *SIDES))
    if place is not None and (found := _kept(place)) is not None:
        return found
    why, grey = "", False
    if form is None:
        seen = look(paths)
        form, why = choose(seen, len(paths), size)
        grey = seen.grey
    with _quiet():
        decoded = _decoded(paths, form, check=grey)
        if decoded is None:  # another one, which was not looked at, is coloured
            decoded = _decoded(paths, Form(3, form.height, form.width), check=False)
    assert decoded is not None
    decoded.why = why
    if cache is not None and place is not None:
        _keep(cache, place, decoded)
    return decoded


def _decoded(paths: Sequence[str], form: Form, *, check: bool) -> Decoded | None:
    """None where one is coloured, and `check` asked whether one is."""
    shape = (len(paths), form.channels, form.height, form.width)
    count = max(1, min(cores(), len(paths)))
    work = _Work(paths, form, check, _shared(shape))
    each = max(1, min(64, len(paths) // (4 * count)))
    starts = [slice(start, start + each) for start in range(0, len(paths), each)]
    bad: dict[int, str] = {}
    tiny: dict[int, str] = {}
    with work.on(count) as (pool, call):
        asked = [pool.submit(call, piece) for piece in starts]
        try:
            for answer in asked:
                part = answer.result()
                if part is None:
                    return None
                bad.update(part[0])
                tiny.update(part[1])
        except BrokenProcessPool as error:
            raise ResourceError(
                f"A process that decodes {len(paths):,} pictures was ended from outside; mostly it is memory that ran out.",
                fix="free some memory",
            ) from error
        finally:
            for answer in asked:
                answer.cancel()
    rows = np.array([row for row in range(len(paths)) if row not in bad], np.int64)
    column = work.out
    if bad:
        column = mapped.empty((len(rows), *shape[1:]), np.uint8)
        for piece in mapped.pieces(column):
            column[piece] = work.out[rows[piece]]
    return Decoded(column, rows, dict(sorted(bad.items())), dict(sorted(tiny.items())))


def _shared(shape: tuple[int, ...]) -> np.ndarray:
    """Memory that processes made from now on share with this one."""
    size, limit = math.prod(shape), mapped.most()
    if limit is not None and size > limit:
        return mapped.empty(shape, np.uint8)
    return np.frombuffer(mmap.mmap(-1, max(1, size)), np.uint8, count=size).reshape(shape)


_Part = tuple[dict[int, str], dict[int, str]]  # bad, tiny
_work: _Work | None = None  # what the processes were made for


@dataclass
class _Work:
    paths: Sequence[str]
    form: Form
    check: bool
    out: np.ndarray  # (N, C, H, W)

    def piece(self, piece: slice) -> _Part | None:
        """Decode some; None where one is coloured that should be grey."""
        bad, tiny = {}, {}
        coloured = Form(3, self.form.height, self.form.width)
        for row, path in enumerate(self.paths[piece], piece.start):
            try:
                with _opened(path) as picture:
                    width, height = picture.size
                    if min(width, height) < TINY:
                        tiny[row] = f"{width}x{height}"
                    unsure = self.check and not _one_channel(picture.mode)
                    table = _brought(picture, coloured if unsure else self.form)
            except Unreadable as why:
                bad[row] = str(why)
                continue
            if unsure:
                if not _is_grey(table):
                    return None
                table = table[:, :, :1]
            self.out[row] = table.transpose(2, 0, 1)
        return bad, tiny

    @contextlib.contextmanager
    def on(self, count: int) -> Iterator[tuple[Executor, Callable[[slice], _Part | None]]]:
        """Whoever works on it, on so many cores, and what to ask of them."""
        global _work
        if count > 1 and len(self.paths) >= _PROCESSES and can():
            _work = self
            context = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(count, context, settle, (os.getpid(), in_main_thread())) as processes:
                try:
                    yield processes, _piece
                finally:
                    _work = None
        else:
            with ThreadPoolExecutor(count) as threads:
                yield threads, self.piece


def _piece(piece: slice) -> _Part | None:
    assert _work is not None
    return _work.piece(piece)


# --- The cache --------------------------------------------------------------------------------------------------------


def _folder() -> Path | None:
    """Where the cache is; None where there is to be none."""
    return files.cache("pictures")


def _key(paths: Sequence[str], asked: Any) -> str:
    """One name for the same files, unchanged, in the form that was asked for."""
    digest = hashlib.sha256(repr((_VERSION, asked, MOST_PIXELS, os.getcwd())).encode())
    for path in paths:
        try:
            facts = os.stat(path)
            told = f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0"
        except OSError:
            told = f"{path}\0none\0"
        digest.update(os.fsencode(told))
    return digest.hexdigest()[:32]


def _kept(place: Path) -> Decoded | None:
    """An entry of the cache, read back and compared with its manifest; None where there is none that is sound."""
    try:
        about = files.manifest(place)
        told = about["pictures"]
        shape, facts = tuple(told["shape"]), about["files"]["column"]
        limit = mapped.most()
        if facts["bytes"] != math.prod(shape):
            return None
        if limit is not None and facts["bytes"] > limit:
            files.check(place)
            column: np.ndarray = np.memmap(place / "column", np.uint8, "r", shape=shape)
            mapped.adopt(column)
        else:
            column, digest = np.empty(shape, np.uint8), hashlib.sha256()
            with open(place / "column", "rb") as file:
                flat = memoryview(column.reshape(-1).data)
                for start in range(0, len(flat), mapped.PIECE):
                    part = flat[start : start + mapped.PIECE]
                    if file.readinto(part) != len(part):
                        return None
                    digest.update(part)
            if digest.hexdigest() != facts["sha256"]:
                return None
        os.utime(place)
        bad, tiny = ({int(row): words for row, words in told[name].items()} for name in ("bad", "tiny"))
        rows = np.array([row for row in range(int(told["paths"])) if row not in bad], np.int64)
        found = Decoded(column, rows, bad, tiny, place, True, why=str(told["why"]))
        return found if len(rows) == len(column) else None
    except (LaminaError, OSError, LookupError, TypeError, ValueError):
        return None


def _keep(cache: Path, place: Path, decoded: Decoded) -> None:
    """Put into the cache; where that fails, the run goes on without."""
    column = decoded.column
    if not len(column):
        return
    if column.nbytes > MOST_CACHED:
        decoded.note = f"they take more than the {MOST_CACHED >> 30} GiB of the cache"
        return
    told = {
        "shape": column.shape,
        "paths": len(decoded.rows) + len(decoded.bad),
        "why": decoded.why,
        "bad": decoded.bad,
        "tiny": decoded.tiny,
    }
    try:
        files.folder(cache)
        _make_room(cache, column.nbytes)
        files.commit(place, {"column": _Pieces(column)}, {"pictures": told})
        decoded.place = place
    except (LaminaError, OSError) as error:
        decoded.note = str(error).splitlines()[0]


class _Pieces(Sequence[Any]):
    """The bytes of a column, piece by piece."""

    def __init__(self, column: np.ndarray):
        self.column, self.slices = column, list(mapped.pieces(column))

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, k: Any) -> Any:
        return np.ascontiguousarray(self.column[self.slices[k]]).reshape(-1).data


def _make_room(cache: Path, size: int) -> None:
    """Delete what was not used for longest, until so many bytes more are below `MOST_CACHED`."""
    known = []
    for place in cache.iterdir():
        with contextlib.suppress(OSError):
            used = place.stat().st_mtime
            if not place.name.startswith(files.TEMPORARY):
                known.append((used, sum(file.stat().st_size for file in place.iterdir()), place))
            elif used < time.time() - _DAY:  # of a process that was killed; a younger one may be at work
                shutil.rmtree(place)
    total = size + sum(entry[1] for entry in known)
    for _, freed, place in sorted(known):
        if total <= MOST_CACHED:
            break
        files.remove(place)
        total -= freed
