"""IDX files, the format of MNIST and its kin.

In: a file of pictures (its labels are found beside it), or a folder of the four canonical files; plain or gzip, told by
content. Out: arrays, examples, a `Source`; above `--memory` arrays in a map of the file itself, or of what it unpacks to.
Called by `lamina.sources.open` and `lamina.sources.mnist`.

The format (yann.lecun.com/exdb/mnist): two zero bytes, a type, the number of dimensions; each dimension as a big-endian
32-bit number; then the values, big-endian. The header is a claim: no memory is taken for it before it is compared with
the bytes that are there.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from lamina import mapped
from lamina.errors import DataError, ResourceError
from lamina.sources import Examples, Source, describe

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CANONICAL = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_GZIP = b"\x1f\x8b"
_DEFLATE_BEST = 1100  # deflate cannot do better than 1 : 1032 (zlib's technical notes), so a claim above is false
_CHUNK = 1 << 20  # bytes


def read(path: str | Path) -> np.ndarray:
    """An IDX file -> its array, in this machine's byte order. DataError says which bytes were expected and found."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            stored = os.fstat(file.fileno()).st_size
            zipped = file.read(2) == _GZIP
            file.seek(0)
            if not zipped:
                return _parse(file, path, stored, zipped=False)
            with gzip.open(file) as stream:
                return _parse(stream, path, stored, zipped=True)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged: {error}.",
            expected=f"a whole gzip file; this one ends or breaks within its {stored:,} bytes",
            fix="get the file again",
        ) from error
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parse(stream: io.BufferedIOBase, path: Path, stored: int, *, zipped: bool) -> np.ndarray:
    """The array of an open stream whose file has `stored` bytes on the disk."""
    magic = stream.read(4)
    kind, dimensions = (magic[2], magic[3]) if len(magic) == 4 else (0, 0)
    if magic[:2] != b"\0\0" or kind not in TYPES or not 0 < dimensions <= 32:  # 32: numpy's own limit
        found = f"begins with 0x{magic.hex()}" if magic else "is empty"
        raise DataError(
            f"{path} is no IDX file: it {found}.",
            expected="0x00000803 for pictures (bytes in 3 dimensions), 0x00000801 for labels",
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(
            f"{path} ends within its header, after {4 + len(sizes)} bytes.",
            expected=f"a header of {4 + 4 * dimensions} bytes for {dimensions} dimensions",
            fix="get the file again",
        )
    shape = struct.unpack(f">{dimensions}I", sizes)
    dtype = np.dtype(TYPES[kind])
    header, promised = 4 + 4 * dimensions, math.prod(shape) * dtype.itemsize
    claim = f"its header promises {' x '.join(map(str, shape))} items of {dtype.itemsize * 8} bits"
    expected = f"{header:,} + {promised:,} = {header + promised:,} bytes"
    if promised == 0:
        raise DataError(f"{path} has no items: {claim}.", expected="one or more")
    if zipped and header + promised > _DEFLATE_BEST * stored:
        raise DataError(
            f"{path} cannot hold what it says: {claim}, in {stored:,} bytes of gzip.",
            expected=expected,
            fix="get the file again",
        )
    if not zipped and stored != header + promised:
        raise DataError(f"{path} has {stored:,} bytes, but {claim}.", expected=expected, fix="get the file again")
    large = promised > (mapped.most() or math.inf)
    if large and not zipped and dtype.itemsize == 1:
        return np.memmap(path, dtype, "r", header, shape)  # as it lies there
    payload = np.empty(0 if large else promised, np.uint8)
    count = 0
    while count < promised:
        step = min(_CHUNK, promised - count)
        got = len(stream.read(step)) if large else stream.readinto(payload.data[count : count + step])
        if not got:
            break
        count += got
    count += len(stream.read(1))
    if count != promised:
        found = f"more than {header + promised:,}" if count > promised else f"{header + count:,}"
        raise DataError(f"{path} unpacks to {found} bytes, but {claim}.", expected=expected, fix="get the file again")
    if not large:
        return np.frombuffer(payload, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    stream.seek(header)  # a second time, now that its length is known
    table = mapped.empty(shape, dtype.newbyteorder("="))
    for piece in mapped.pieces(flat := table.reshape(-1)):
        flat[piece] = np.frombuffer(stream.read(flat[piece].nbytes), dtype)
    return table


def examples(images: str | Path, labels: str | Path | None = None) -> Examples:
    """A file of pictures (N, H, W), and one of their labels -> pictures (N, 1, H, W). Other dimensions stay arrays."""
    from lamina.sources import arrays

    table = read(images)
    if table.ndim == 1:
        raise DataError(
            f"{images} is a file of labels: 1 dimension, {len(table):,} items.",
            expected="a file of pictures (3 dimensions)",
            fix="give the file of pictures; its labels are found beside it",
        )
    truth = None
    if labels is not None:
        truth = read(labels)
        if truth.ndim != 1:
            raise DataError(f"{labels} is no file of labels: it has {truth.ndim} dimensions.", expected="1 dimension")
        if len(truth) != len(table):
            raise DataError(
                f"{labels} has {len(truth):,} labels for the {len(table):,} pictures of {images}.",
                expected="a label for every picture",
                fix="check that both files are of the same set",
            )
        if truth.dtype.kind in "iu":
            truth = truth.astype(np.int64)
    pictures = table.ndim == 3 or (table.ndim == 4 and table.shape[1] in (1, 3, 4))
    checked = arrays.examples(table[:, None] if table.ndim == 3 else table, truth, names=(str(images), str(labels)))
    return Examples(checked.inputs, checked.truth, kind="pictures" if pictures else "arrays")


def file(path: Path) -> Source:
    """A file of pictures, with the labels beside it where there are such: X-images... has X-labels..."""
    labels = _labels_of(path)
    train = examples(path, labels)
    beside = f"labels from {labels.name}" if labels else "no labels beside it"
    return Source(str(path), train, about=f"{describe(train)}, from {path.name}, {beside}")


def folder(path: Path) -> Source:
    """train-images..., train-labels... and, for the test, t10k-images..., t10k-labels... of a folder."""
    found = [find(path, name) for name in CANONICAL]
    if found[2] is None and found[3] is None:
        del found[2:]
    missing = [name for name, place in zip(CANONICAL, found, strict=False) if place is None]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}.", expected=f"{', '.join(CANONICAL)}, plain or .gz")
    train, *test = (examples(images, labels) for images, labels in zip(found[::2], found[1::2], strict=True) if images)
    extra = f", {test[0].count:,} for test" if test else ""
    return Source(str(path), train, test=test[0] if test else None, about=f"{describe(train)}{extra}, from {path.name}")


def find(folder: Path, name: str) -> Path | None:
    """The file of a canonical name: X-images-idx3-ubyte or X-images.idx3-ubyte, plain or .gz."""
    spellings = [spelling + end for end in ("", ".gz") for spelling in (name, name.replace("-idx", ".idx"))]
    return next((folder / spelling for spelling in spellings if (folder / spelling).is_file()), None)


def is_folder(path: Path) -> bool:
    """Whether a folder holds any of the canonical files."""
    return any(find(path, name) for name in CANONICAL)


def is_file(path: Path) -> bool:
    """Whether a file is meant as IDX: by its name, or by how it begins."""
    if re.search(r"idx\d|ubyte", path.name):
        return True
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    if start[:2] == _GZIP:
        try:
            start = zlib.decompressobj(wbits=31).decompress(start, 4)
        except zlib.error:
            return False
    return len(start) >= 4 and start[:2] == b"\0\0" and start[2] in TYPES and start[3] > 0


def _labels_of(images: Path) -> Path | None:
    plain = images.name.removesuffix(".gz")
    before, word, after = plain.rpartition("images")
    if not word:
        return None
    name = f"{before}labels{after.replace('idx3', 'idx1')}"
    stems = [name, name + "-ubyte"] if not name.endswith("ubyte") else [name]
    return next((place for stem in stems if (place := find(images.parent, stem))), None)
