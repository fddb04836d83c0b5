"""Numbers as people write them: 1,234.5 and 1.234,5, $5, 12 kg, (3.50).

In: a word, and which mark is the decimal one. Out: the number, and what stood beside it; None where it is no number. Called by
`lamina.sources.cells`, which looks whether a whole column is so.
"""

from __future__ import annotations

import re

from lamina.sources.delimited import NUMBER

OTHER = {".": ",", ",": "."}  # decimal marks
_PLAIN = re.compile(NUMBER)
_GROUPED = r"[+-]?\d{1,3}(?:[,'’\s]\d{3})+(?:\.\d+)?"  # 1,234,567.8
_MONEY = (
    "(?:[A-Z]{0,3}[$€£¥₹₩]|USD|EUR|GBP|JPY|CNY|RMB|CHF|INR|CAD|AUD|BRL|SEK|NOK|DKK|PLN|CZK|HUF|TRY|SGD|HKD|NZD|KRW)"
)
_UNIT = r"(?:[^\W\d_]|[%‰°$€£¥₹₩/]){1,10}"
_DRESSED = re.compile(rf"([+-])?({_MONEY})?\s*({_GROUPED}|{NUMBER})\s*({_UNIT})?")
_SWAPPED = str.maketrans(",.", ".,")


def plain(word: str, decimal: str) -> float | None:
    """1234.5 as a number; 1234,5 where the decimal mark is a comma."""
    bare = word.translate(_SWAPPED) if decimal == "," and "," in word else word
    return float(bare) if _PLAIN.fullmatch(bare) else None


def dressed(word: str, decimal: str) -> tuple[float, str] | None:
    """1,234,567.8 and $5 and 12 kg and (3.50) as numbers, each with its unit; 1.234.567,8 where the decimal mark is a comma."""
    bare = (word.translate(_SWAPPED) if decimal == "," else word).replace("−", "-")
    negative = bare.startswith("(") and bare.endswith(")")
    found = _DRESSED.fullmatch(bare[1:-1] if negative else bare)
    if found is None or (found[2] and found[4]) or (found[1] and found[3][0] in "+-"):
        return None
    number = float(re.sub(r"[,'’\s]", "", found[3]))
    return (-number if negative or found[1] == "-" else number), found[2] or found[4] or ""
