"""JSON that somebody else may have written, read within limits.

In: the bytes of a file, and its path for the words. Out: plain Python values. What would take much memory or time is
refused before it is parsed: very long texts, very many values, deep nests; so are names that stand twice, of which
readers keep one or the other. Called for all JSON of run folders and checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lamina.errors import RunError

MOST_BYTES = 16 << 20
MOST_VALUES = 300_000  # a value takes up to 250 bytes of memory


def parse(data: bytes, place: str | Path, fix: str = "", times: int = 1) -> Any:
    """The value of a JSON text. RunError, with `fix`, where it is none, or larger than so many `times` the usual limits."""
    values = sum(map(data.count, (b",", b"[", b"{")))
    if len(data) > times * MOST_BYTES or values > times * MOST_VALUES:
        raise RunError(
            f"{place} has {len(data):,} bytes and about {values:,} values.",
            expected=f"at most {times * MOST_BYTES:,} bytes and {times * MOST_VALUES:,} values",
            fix=fix,
        )
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError, UnicodeDecodeError, a number too long
        raise RunError(f"{place} is damaged: {error}", fix=fix) from None


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return found
