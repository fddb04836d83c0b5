"""The pictures of MNIST as everybody reads them who does not use Lamina: four IDX files, numpy and nothing else."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any


def mnist(data: str) -> tuple[Any, Any, Any, Any]:
    """(60000, 28, 28) bytes, (60000,) int64, and the same of the 10,000 for testing."""
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    x, y, x2, y2 = (idx(Path(data), name) for name in names)
    return x, y.astype("int64"), x2, y2.astype("int64")


def idx(folder: Path, name: str) -> Any:
    """An array of bytes: two zero bytes, the type (8), the number of axes, their lengths as big-endian 32-bit numbers."""
    import numpy as np

    found = [place for place in sorted(folder.rglob(f"{name}*")) if place.suffix in ("", ".gz")]
    if not found:
        raise SystemExit(f"there is no {name} or {name}.gz in {folder}")
    raw = (gzip.open if found[0].suffix == ".gz" else open)(found[0], "rb").read()
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def floats(data: str) -> tuple[Any, Any, Any, Any]:
    """The same as torch tensors, pictures from 0 to 1."""
    import torch

    x, y, x2, y2 = mnist(data)
    return torch.from_numpy(x) / 255, torch.from_numpy(y), torch.from_numpy(x2) / 255, torch.from_numpy(y2)
