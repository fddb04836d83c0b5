"""What happened, epoch by epoch.

In: an entry an epoch, and events. Out: history.jsonl, and the part of a checkpoint that lets a resumed run tell everything
exactly once.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina import files


@dataclass
class History:
    """An entry an epoch and an event. Part of the checkpoint, so that a resumed run tells everything once."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""  # why training ended before its planned end
    _told: int = 0  # entries that are in the file already

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.stopped = list(state["rows"]), state["stopped"]

    def tell(self, epoch: int, step: int, event: dict[str, Any]) -> None:
        """Something that happened. epoch: counted from 0."""
        self.rows.append({"epoch": epoch + 1, "step": step, "event": event})

    def scores(self) -> dict[str, float]:
        """Of the last epoch that ended, as far as they are finite."""
        row: dict[str, Any] = next((row for row in reversed(self.rows) if "event" not in row), {})
        return {name: value for name, value in row.items() if "/" in name and math.isfinite(value)}

    def text(self) -> str:
        """All of it, for a file that is written anew."""
        self._told = len(self.rows)
        return _lines(self.rows)

    def add_to(self, path: Path) -> None:
        """The entries since the last time, added to the file: a long training must not write all of them in every epoch.
        What the disk refuses is added the next time."""
        if news := _lines(self.rows[self._told :]):
            files.append(path, news)
            self._told = len(self.rows)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, default=float) + "\n" for row in rows)
