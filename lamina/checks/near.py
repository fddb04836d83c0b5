"""Pictures and texts that are nearly the same as another.

In: a `Pool` of pictures (uint8, in memory) or texts, and the rows to compare. Out: pairs of rows (M, 2), each a row and an
earlier one, and which of them only once they are turned. Candidates are found by hashing and every one is then compared in
full, so that what is told is near and what is near is missed now and then.

Pictures: grey thumbnails, mean and size taken out; the bits of a hash are the signs of the products of coarse ones with
random directions (Charikar, 2002). What is alike in these is looked at in finer ones, at last of 32x32: near is a
correlation above `ALIKE`. Photographs are compared once more, each mirrored and turned by quarters into a way of its own: that
in which its right half is the lighter one, then its lower half, and of the two the first by more.
Texts: letters in runs of `SHINGLE`, and of their hashes the least of each of some functions (Broder, 1997). Near is a share of
common runs above `SHARED`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np

from lamina.checks.pool import Pool
from lamina.distinct import distinct

MOST = 60_000  # pictures or texts that are compared
ALIKE = 0.993  # correlation of two thumbnails: no two of the 70,000 digits of MNIST are that near
SHARED = 0.8  # of the runs of letters that either text has
SHINGLE = 6  # letters
SMALLEST = 16  # pixels of a side: smaller pictures are alike by chance
LETTERS = 40  # a text has at least, to be compared
_CUT = 1500  # letters of a text that are looked at
_SIDE = 32  # of a thumbnail, at most
_STEPS = ((8, 0.985), (16, 0.988), (_SIDE, ALIKE))  # sides of thumbnails, and what their correlation is above
_TABLES, _BITS = 5, 20
_BANDS, _ROWS = 6, 3  # of least hashes: 98 of 100 pairs that share 0.8 are equal in all rows of a band
_AT_ONCE = 1024  # thumbnails, or pairs of them, that lie in the cache of a core together: a quarter of the time
_NEXT, _BUCKET = 32, 200  # pictures, and texts, of the same hash that each is compared with


def pairs(table: Pool, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, 2) rows that are nearly the same, the earlier one first, and (M,) whether only mirrored or turned; at most `MOST` of
    the rows are looked at."""
    rows = table.some(MOST, rows)
    found, turned = np.zeros((0, 2), np.int64), np.zeros(0, bool)
    if len(rows) > 1 and table.columns and table.kind == "texts":
        found = _texts([str(table.columns[0][row]) for row in rows])
        turned = np.zeros(len(found), bool)
    elif len(rows) > 1 and table.columns and _are_pictures(table):
        found, turned = _pictures(table.columns[0], rows)
    return rows[found], turned


# --- Pictures ---------------------------------------------------------------------------------------------------------


def _pictures(column: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    small = thumbnails(column, rows, _STEPS[0][0])
    found = _confirmed(_likely(small), column, rows)
    if not of_middle_greys(column):
        return found, np.zeros(len(found), bool)
    ways = _ways(small)
    others = _likely(_brought(small, ways))
    others = _confirmed(others[ways[others[:, 0]] != ways[others[:, 1]]], column, rows, ways)
    both = np.concatenate([found, others])
    _, first = np.unique(_keys(both), return_index=True)
    return both[first], first >= len(found)


def _likely(small: np.ndarray) -> np.ndarray:
    """(M, 2) places of the coarsest thumbnails that are alike. They are laid in the order in which they lie along the direction
    in which they differ most, so that of those with the same hash the next ones are the likest."""
    some = small[:: 1 + len(small) // 4000]
    some = some - some.mean(0)
    order = np.argsort(small @ np.linalg.eigh(some.T @ some)[1][:, -1], kind="stable")
    small, rng = small[order], np.random.default_rng(0)
    found = []
    for _ in range(_TABLES):
        keys = _signs(small, rng.standard_normal((small.shape[1], _BITS), dtype=np.float32))
        found += [pairs[_alike(small, pairs, _STEPS[0][1])] for pairs in _candidates(keys, _NEXT)]
    return _distinct([order[pairs] for pairs in found])


def _signs(small: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(n,) numbers, of a bit for each direction (F, bits): whether a vector (n, F) lies further along it than half of all."""
    middle = np.median(small[:: 1 + len(small) // 4000] @ directions, axis=0)
    found = np.zeros(len(small), np.int64)
    for start in range(0, len(small), _AT_ONCE):
        beyond = small[start : start + _AT_ONCE] @ directions > middle
        for part in np.packbits(beyond, axis=1).T:
            found[start : start + _AT_ONCE] = found[start : start + _AT_ONCE] << 8 | part
    return found


def _confirmed(left: np.ndarray, column: np.ndarray, rows: np.ndarray, ways: np.ndarray | None = None) -> np.ndarray:
    """Those pairs of places that are alike in finer thumbnails too, each brought into its way."""
    for side, least in _STEPS[1:]:
        kept = []
        for part in np.split(left, range(1 << 18, len(left), 1 << 18)):
            some, places = np.unique(part, return_inverse=True)
            finer = thumbnails(column, rows[some], side)
            finer = finer if ways is None else _brought(finer, ways[some])
            kept.append(part[_alike(finer, places.reshape(-1, 2), least)])
        left = np.concatenate(kept)
    return left


def _ways(small: np.ndarray) -> np.ndarray:
    """(n,) of each thumbnail whether it is to be mirrored (1), turned upside down (2), and its rows to become columns (4)."""
    side = round(small.shape[1] ** 0.5)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    square = small.reshape(-1, side, side)
    across, down = square.sum(1) @ ramp, square.sum(2) @ ramp
    return (across < 0) + 2 * (down < 0) + 4 * (abs(down) > abs(across))  # type: ignore[no-any-return]


def _brought(flat: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Thumbnails (n, F), each brought into its way."""
    side = round(flat.shape[1] ** 0.5)
    found = flat.reshape(-1, side, side).copy()
    for way in set(ways.tolist()):
        some = found[ways == way]
        some = some[:, :, ::-1] if way & 1 else some
        some = some[:, ::-1] if way & 2 else some
        found[ways == way] = some.transpose(0, 2, 1) if way & 4 else some
    return found.reshape(flat.shape)


def _alike(vectors: np.ndarray, pairs: np.ndarray, least: float) -> np.ndarray:
    """(M,) whether the product of the vectors of two places (M, 2) is above `least`."""
    return np.concatenate([
        np.einsum("nf,nf->n", vectors.take(some[:, 0], 0), vectors.take(some[:, 1], 0)) > least
        for some in np.split(pairs, range(_AT_ONCE, len(pairs), _AT_ONCE))
    ])  # fmt: skip


def of_middle_greys(column: Any) -> bool:
    """Whether most of what some pictures show is neither near their darkest nor near their lightest: photographs, and no
    writing, which says something else in a mirror."""
    some = np.asarray(column[:: max(1, len(column) // 256)]).astype(np.float32)
    low, high = float(some.min()), float(some.max())
    return high > low and bool(np.mean((some > low + 0.15 * (high - low)) & (some < high - 0.15 * (high - low))) > 0.5)


def _are_pictures(table: Pool) -> bool:
    column = table.columns[0]
    if table.kind != "pictures" or len(table.columns) != 1 or column.dtype != np.uint8 or column.ndim not in (3, 4):
        return False
    return _shorter(column) >= SMALLEST


def _shorter(column: np.ndarray) -> int:
    """Pixels of the shorter side, wherever the channels stand: there are fewer of them."""
    return int(sorted(column.shape[1:])[-2])


def thumbnails(column: np.ndarray, rows: np.ndarray, side: int = _SIDE) -> np.ndarray:
    """Pictures (N, H, W), (N, C, H, W) or (N, H, W, C) -> float32 (n, F): grey, of at most `side` a side, of mean 0 and
    length 1 (of length 0 where there is one colour only)."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    side = min(side, _shorter(column))
    found = np.empty((len(rows), side * side), np.float32)
    for start in range(0, len(rows), 512):
        some = torch.from_numpy(np.ascontiguousarray(column[rows[start : start + 512]]))
        if some.ndim == 4:
            some = (some if some.shape[1] in (1, 3, 4) else some.permute(0, 3, 1, 2)).float()
            weights = torch.tensor([0.299, 0.587, 0.114])  # as JPEG has it
            some = torch.einsum("nchw,c->nhw", some[:, :3], weights) if some.shape[1] > 1 else some[:, 0]
        some = some.float()
        flat = (adaptive_avg_pool2d(some[:, None], side) if some.shape[1:] != (side, side) else some).flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        length = flat.norm(dim=1, keepdim=True)
        flat = torch.where(length > flat.shape[1] ** 0.5, flat / length.clamp(min=1e-6), torch.zeros(()))
        found[start : start + 512] = flat.numpy()
    return found


# --- Texts ------------------------------------------------------------------------------------------------------------


def _texts(texts: list[str]) -> np.ndarray:
    texts = [plain(text[: 2 * _CUT])[:_CUT] for text in texts]
    which = np.array([k for k, text in enumerate(texts) if len(text) >= LETTERS], np.int64)
    if len(which) < 2:
        return np.zeros((0, 2), np.int64)
    runs = [shingles(texts[k]) for k in which]
    joined = np.concatenate(runs)
    starts = np.cumsum([0, *(len(run) for run in runs[:-1])])
    rng = np.random.default_rng(0)
    least = np.empty((_BANDS * _ROWS, len(which)), np.uint64)
    for k, (factor, shift) in enumerate(rng.integers(1, 1 << 62, (_BANDS * _ROWS, 2), dtype=np.uint64)):
        mixed = joined * (factor | np.uint64(1)) + shift
        least[k] = np.minimum.reduceat(mixed ^ (mixed >> np.uint64(29)), starts)
    found: list[np.ndarray] = []
    for band in least.reshape(_BANDS, _ROWS, -1):
        key = band[0]
        for row in band[1:]:
            key = key * np.uint64(0x9E3779B97F4A7C15) + row
        found += _candidates(key, _BUCKET)
    sets: dict[int, np.ndarray] = {}
    kept = []
    for a, b in _distinct(found).tolist():
        one, other = (sets.setdefault(k, distinct(runs[k])) for k in (a, b))
        common = len(np.intersect1d(one, other, assume_unique=True))
        if common > SHARED * (len(one) + len(other) - common):
            kept.append((a, b))
    return which[np.array(kept, np.int64)] if kept else np.zeros((0, 2), np.int64)


def plain(text: object) -> str:
    """A text without what does not tell it from another: width, capitals, spaces and signs at its ends and between."""
    words = unicodedata.normalize("NFKC", str(text)).casefold()
    return " ".join(re.findall(r"\w+", words)) or " ".join(words.split())


def shingles(text: str) -> np.ndarray:
    """The hashes of all runs of SHINGLE letters, uint64."""
    letters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    total = np.zeros(len(letters) - SHINGLE + 1, np.uint64)
    for k in range(SHINGLE):
        total = total * np.uint64(0x100000001B3) + letters[k : len(letters) - SHINGLE + 1 + k]
    return total * np.uint64(0xBF58476D1CE4E5B9)


# --- Candidates -------------------------------------------------------------------------------------------------------


def _candidates(keys: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """(M, 2) places of equal keys (N,): of each with the next one that has its key, with the one after that, and so on, up to
    `most`."""
    order = np.argsort(keys, kind="stable")
    ordered, first = keys[order], np.arange(len(keys))
    for apart in range(1, most + 1):  # of those that have a next one of their key, some have a second
        first = first[: np.searchsorted(first, len(keys) - apart)]
        first = first[ordered[first] == ordered[first + apart]]
        if not len(first):
            return
        yield np.stack([order[first], order[first + apart]], 1)


def _distinct(found: list[np.ndarray]) -> np.ndarray:
    """Pairs once, the earlier place first, in order."""
    once = distinct(_keys(np.concatenate(found))) if found else np.zeros(0, np.int64)
    return np.stack([once >> 32, once & 0xFFFFFFFF], 1)


def _keys(pairs: np.ndarray) -> np.ndarray:
    """(M, 2) places -> (M,) a number for each pair, the same whichever comes first."""
    return pairs.min(1) << 32 | pairs.max(1)  # type: ignore[no-any-return]
