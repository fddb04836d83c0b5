"""What a frozen trunk made of examples, kept from one run to the next: it is the slow part, and always the same.

In: the SHA-256 of a trunk's weights, and a key for each example (`keys`). Out: the features that are known (`known`), and a
place for those that were computed (`keep`). Called by the domain `pretrained`.

The cache is `$LAMINA_CACHE/features` (`off` for none), else `lamina/features` in the user's cache folder: one safetensors
file a trunk, of at most MOST_BYTES, from which the oldest examples go first. It may be deleted at any time; a file that is
damaged, or a disk that is full, is as good as none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lamina import files, foreign, weights
from lamina.errors import LaminaError

MOST_BYTES = 256 << 20


def of_trunk(trunk: nn.Module) -> str:
    """SHA-256 of the names and weights of a trunk."""
    digest = hashlib.sha256(b"1")  # the version of what is kept
    for name, value in sorted(trunk.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keys(column: Tensor, padding: int | None = None) -> np.ndarray:
    """128 bits of each row of (N, ...): uint64 (N, 2). What fills up the end of a row (N, T) of tokens says nothing."""
    table = column.contiguous().numpy()
    ends = np.full(len(table), table.shape[1])
    if padding is not None:
        there = table != padding
        ends = np.where(there.any(1), table.shape[1] - there[:, ::-1].argmax(1), 0)
    parts = (row[:end].tobytes() for row, end in zip(table, ends, strict=True))
    found = b"".join(hashlib.blake2b(part, digest_size=16).digest() for part in parts)
    return np.frombuffer(found, np.uint64).reshape(len(table), 2)


def known(trunk: str, wanted: np.ndarray, width: int) -> tuple[Tensor, np.ndarray]:
    """(features (n, F), whether they are known (n,)) of some keys."""
    table, there = torch.zeros(len(wanted), width), np.zeros(len(wanted), bool)
    held = _read(trunk, width)
    if held is None or not len(wanted):
        return table, there
    places = {key: k for k, key in enumerate(map(bytes, held[0]))}
    rows = np.array([places.get(key, -1) for key in map(bytes, wanted)])
    there = rows >= 0
    table[torch.from_numpy(there)] = held[1][torch.from_numpy(rows[there])]
    return table, there


def keep(trunk: str, found: np.ndarray, table: Tensor) -> None:
    """Put the features (n, F) of some keys into the cache; where that fails, it goes on without."""
    folder = files.cache("features")
    if folder is None or not len(found):
        return
    held = _read(trunk, table.shape[1])
    if held is not None:
        found, table = np.concatenate([held[0], found]), torch.cat([held[1], table])
    most = max(1, MOST_BYTES // (4 * table.shape[1] + 16))
    content = {"keys": torch.from_numpy(found[-most:].view(np.int64).copy()), "features": table[-most:].contiguous()}
    try:
        files.folder(folder)
        files.write(folder / f"{trunk[:32]}.safetensors", weights.to_bytes(content))
    except (LaminaError, OSError):
        return


def _read(trunk: str, width: int) -> tuple[np.ndarray, Tensor] | None:
    folder = files.cache("features")
    place = Path() if folder is None else folder / f"{trunk[:32]}.safetensors"
    if not place.is_file():
        return None
    try:
        held = foreign.read_safetensors(place)
        found, table = held["keys"].numpy().view(np.uint64), held["features"].float()
    except (LaminaError, KeyError, OSError):
        return None
    return (found, table) if found.ndim == 2 and table.shape == (len(found), width) else None
