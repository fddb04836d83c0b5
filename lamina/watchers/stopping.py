"""When to stop and what to keep: watchers that read the validation's scores and the clock.

In: `progress.scores` at the end of an epoch, `progress.seconds` at every step. Out: `Save("best")` on an improvement,
`Stop` with the figures. The story puts them in the list of watchers; `EarlyStopping` does all that `Best` does.
"""

from __future__ import annotations

import math
from typing import Any

from lamina.errors import UsageError
from lamina.watchers import Save, Stop


class Best:
    """Ask to save as "best" at the end of every epoch whose score beats all before it.

    score: its name in `progress.scores`. better: "lower" or "higher". An improvement is more than `threshold` beyond
    the best so far; NaN never is one. Raises UsageError when validation gives no score of that name.
    """

    at_epoch_end = True

    def __init__(self, score: str = "valid/loss", better: str = "lower", threshold: float = 0.0):
        if better not in ("lower", "higher"):
            raise UsageError(f"better is {better!r}", expected="'lower' or 'higher'")
        if not threshold >= 0:
            raise UsageError(f"the threshold is {threshold!r}", expected="0 or more: how much counts as an improvement")
        self.score, self.better, self.threshold = score, better, threshold
        self.best: float | None = None
        self.best_epoch: int | None = None  # counted from 0, as progress.epoch

    def __call__(self, progress: Any) -> Save | None:
        if progress.epoch_end and self._improved(progress):
            return Save("best")
        return None

    def _improved(self, progress: Any) -> bool:
        if self.score not in progress.scores:
            there = ", ".join(sorted(progress.scores)) or "none, as nothing was validated in this epoch"
            raise UsageError(
                f"{type(self).__name__} reads the score {self.score!r}, which epoch {progress.epoch + 1} does not have",
                expected=f"one of the scores there are: {there}",
            )
        value = float(progress.scores[self.score])
        sign = 1 if self.better == "lower" else -1
        bar = math.inf if self.best is None else sign * self.best - self.threshold
        if not sign * value < bar:  # also when the value is NaN
            return False
        self.best, self.best_epoch = value, progress.epoch
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]


class EarlyStopping(Best):
    """As `Best`, and ask to stop after `patience` epochs in a row without an improvement (Prechelt, 1998)."""

    def __init__(self, score: str = "valid/loss", better: str = "lower", patience: int = 5, threshold: float = 0.0):
        super().__init__(score, better, threshold)
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise UsageError(f"the patience is {patience!r}", expected="a whole number of epochs, 1 or more")
        self.patience = patience
        self.waited = 0  # epochs since the last improvement

    def __call__(self, progress: Any) -> Save | Stop | None:  # type: ignore[override]
        if not progress.epoch_end:
            return None
        if self._improved(progress):
            self.waited = 0
            return Save("best")
        self.waited += 1
        if self.waited < self.patience:
            return None
        return Stop(self._reason(float(progress.scores[self.score])))

    def _reason(self, last: float) -> str:
        epochs = f"{self.patience} epoch{'s' if self.patience > 1 else ''}"
        if self.best is None or self.best_epoch is None:
            return f"{self.score} was not finite for {epochs}; the last was {last:.4g}"
        return (
            f"{self.score} has not improved for {epochs}: "
            f"the best was {self.best:.4g} in epoch {self.best_epoch + 1}, the last {last:.4g}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.waited = state["waited"]


class TimeLimit:
    """Ask to stop at the first step that ends after so many seconds of learning, those before a resume included."""

    def __init__(self, seconds: float):
        if not 0 < seconds < math.inf:
            raise UsageError(f"the time limit is {seconds!r} s", expected="a finite number of seconds above 0")
        self.seconds = seconds

    def __call__(self, progress: Any) -> Stop | None:
        if progress.seconds < self.seconds:
            return None
        return Stop(f"the time limit of {self.seconds:g} s was reached after {progress.step:,} steps")
