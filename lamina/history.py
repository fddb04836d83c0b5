"""What happened, epoch by epoch.

In: an entry an epoch, and events. Out: history.jsonl, and the part of a checkpoint that lets a resumed run tell everything
exactly once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


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

    def text(self) -> str:
        self._told = 0
        return self.news()

    def news(self) -> str:
        """The entries since the last time: a long training must not write all of them in every epoch."""
        told, self._told = self._told, len(self.rows)
        return "".join(json.dumps(row, default=float) + "\n" for row in self.rows[told:])
