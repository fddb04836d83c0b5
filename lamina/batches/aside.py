"""Examples that could not be used: named, left out of their batches, and counted.

In: what was wrong with an example, as it was found. Out: a list that goes with the run (its checkpoints, data.json, the
history and the last screen), and a DataError when it grows beyond a share of the data. Called by who reads a Dataset.

An example that is set aside stays so to the end of the run, whatever it gives when it is read again. The order of an epoch
is the same with and without it: its batch is smaller by it, and means are taken over those that are there. A training batch
of which nothing would be left holds the first sound example of its epoch instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from lamina.errors import DataError

SHARE = 1e-3  # of the examples


class SetAside:
    """The examples of one Dataset that could not be used, each with the reason."""

    def __init__(self, count: int, share: float = SHARE):
        self.count, self.share, self.most = count, share, int(share * count)
        self.reasons: dict[int, str] = {}
        self.tell: Callable[[int, str], None] = _warn  # called with each, once

    def add(self, found: dict[int, str], cause: BaseException | None = None) -> None:
        """What was found wrong with some examples. DataError where that makes too many of them."""
        new = {index: reason for index, reason in found.items() if index not in self.reasons}
        self.reasons |= new
        if len(self.reasons) > self.most:
            shown = "; ".join(f"example {index} ({reason})" for index, reason in list(self.reasons.items())[-5:])
            raise DataError(
                f"{len(self.reasons)} of {self.count:,} examples of the Dataset could not be used: {shown}.",
                expected=f"at most {self.most}: {self.share:.3g} of them",
                fix="mend these examples, leave them out of the Dataset, or allow more: --set-aside SHARE",
            ) from cause
        for index, reason in new.items():
            self.tell(index, reason)

    def without(self, rows: np.ndarray) -> np.ndarray:
        """Rows that are not among them."""
        return without(rows, self.reasons)

    def state_dict(self) -> dict[str, Any]:
        return {"examples": list(self.reasons), "reasons": list(self.reasons.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Those of a checkpoint, and what this process has found already."""
        found, self.reasons = self.reasons, dict(zip(state["examples"], state["reasons"], strict=True))
        self.add(found)


def without(rows: np.ndarray, bad: dict[int, str]) -> np.ndarray:
    """Rows that are not among the bad ones."""
    return rows[~np.isin(rows, list(bad))] if bad else rows


def reason(error: Exception) -> str:
    """Why an example could not be read, in not too many words."""
    return f"{type(error).__name__}: {error}"[:300]


def _warn(index: int, reason: str) -> None:
    warnings.warn(f"Example {index} of the Dataset is set aside: {reason}", RuntimeWarning, stacklevel=2)
