"""Texts that name several tags: "sweet;red".

In: a column of texts (N,), None or blank for none. Out: what stands between the tags, or that they are one label each; the
tags of each. Called where tables are read, since a row without a tag has an answer, and by the target `tags`.
"""

from __future__ import annotations

import numpy as np

from lamina.sources.arrays import gaps

MARKS = (";", "|", ",")  # separators that are looked for


def sets(texts: np.ndarray, mark: str) -> list[list[str]]:
    """The tags of each text, without blanks around them; none of an empty text, None or NaN."""
    empty = gaps(texts)
    return [
        [] if empty[row] else [tag for part in str(text).split(mark) if (tag := part.strip())]
        for row, text in enumerate(texts)
    ]


def distinct(texts: np.ndarray, mark: str) -> list[str]:
    """All tags, sorted."""
    return sorted({tag for tags in sets(texts, mark) for tag in tags})


def separator(texts: np.ndarray) -> str:
    """What stands between the tags of texts (N,), or "" where they seem to be one label each.

    Tags come in changing company: there are more different sets of them than tags. Of names that only hold the mark
    ("Paris, France") there are not.
    """
    for mark in MARKS:
        found = [frozenset(tags) for tags in sets(texts, mark)]
        several = [tags for tags in found if len(tags) > 1]
        if len(several) >= max(2, len(found) / 50) and len(set(found)) > len(frozenset().union(*found)):
            return mark
    return ""
