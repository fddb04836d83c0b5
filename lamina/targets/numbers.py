"""One or several numbers.

In: numbers (N,) or (N, D). For our own nets they are standardised by the training split, and the net gives (N, D); a
user's own net meets them as they are. Out: numbers in the user's units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina.errors import DataError, UsageError, rows
from lamina.targets.base import Answers, Measure, Target


@dataclass
class Numbers(Target):
    name: ClassVar[str] = "numbers"
    quick: ClassVar[str] = "rmse"
    quick_better: ClassVar[str] = "lower"

    size: int = 1  # numbers an example
    flat: bool = True  # given as (N,), so answered as (N,)
    mean: list[float] = field(default_factory=lambda: [0.0])
    std: list[float] = field(default_factory=lambda: [1.0])
    labels: list[str] = field(default_factory=list)

    @classmethod
    def sniff(cls, truth: Any) -> tuple[float, str]:
        column = np.asarray(truth)
        if column.dtype.kind == "f" and column.ndim <= 2:
            return 0.8, "the answers are fractional numbers"
        if column.dtype.kind in "iu" and column.ndim == 1:
            return 0.5, f"the answers are {len(np.unique(column))} different whole numbers"
        if column.dtype.kind in "iu" and column.ndim == 2:
            return 0.3, "several whole numbers an example"
        return 0.0, "the answers are not numbers"

    @staticmethod
    def _table(truth: Any) -> np.ndarray:
        table = truth.detach().cpu().numpy() if isinstance(truth, Tensor) else np.asarray(truth)
        if table.dtype.kind not in "fiub":
            raise DataError(
                f"The answers are {table.dtype}, such as {table.flat[0]!r}.",
                expected="numbers",
                fix="task='classes' for names",
            )
        if table.ndim not in (1, 2):
            raise DataError(f"The answers have shape {tuple(table.shape)}.", expected="(N,) or (N, D)")
        bad = np.flatnonzero(~np.isfinite(table.astype(float)).reshape(len(table), -1).all(1))
        if len(bad):
            raise DataError(f"{len(bad)} answers are NaN or infinite: {rows(bad)}.", fix="leave these examples out")
        return table

    def fit(self, truth: Any, *, own_net: bool = False, names: list[str] | None = None) -> None:
        table = self._table(truth)
        self.flat = table.ndim == 1
        table = table.reshape(len(table), -1).astype(np.float64)
        self.size = table.shape[1]
        self.labels = list(names or [])
        if own_net:
            self.mean, self.std = [0.0] * self.size, [1.0] * self.size
        else:
            std = table.std(0)
            self.mean, self.std = table.mean(0).tolist(), np.where(std > 0, std, 1.0).tolist()

    def encode(self, truth: Any) -> Tensor:
        table = self._table(truth)
        wide = table.reshape(len(table), -1).astype(np.float64)
        if wide.shape[1] != self.size:
            raise DataError(f"There are {wide.shape[1]} numbers an example.", expected=f"{self.size}, as in training")
        scaled = (wide - self.mean) / self.std
        return torch.from_numpy(scaled.reshape(table.shape).astype(np.float32))

    @property
    def width(self) -> int:
        return self.size

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return nn.MSELoss()

    def check(self, output: Any, truth: Tensor, loss: Any) -> None:
        if output.numel() != truth.numel() or len(output) != len(truth):
            wanted = (len(truth), self.size)
            raise UsageError(
                f"Your net returned {tuple(output.shape)} but there {'is' if self.size == 1 else 'are'} {self.size} "
                f"number{'s' if self.size > 1 else ''} to learn for each of {len(truth)} examples.",
                expected=f"{wanted}",
                fix=f"give the last layer {self.size} output{'s' if self.size > 1 else ''}",
            )

    def shape_truth(self, truth: Tensor, output: Tensor) -> Tensor:
        """(N,) against (N, 1) would broadcast to (N, N) in silence: the truth takes the output's shape."""
        return truth.reshape(output.shape) if truth.shape != output.shape else truth

    def decode(self, output: Tensor) -> Answers:
        wide = output.detach().double().cpu().reshape(len(output), -1).numpy() * self.std + self.mean
        return Answers(wide[:, 0] if self.flat else wide)

    def tally(self, output: Tensor, truth: Tensor) -> dict[str, Tensor]:
        scale = torch.tensor(self.std, device=output.device, dtype=torch.float32)
        error = (output.reshape(len(output), -1).float() - truth.reshape(len(truth), -1)) * scale
        return {"squared": error.square().mean(1).sum()}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:
        return {"rmse": (sums["squared"] / count) ** 0.5}

    def people(self, truth: Any) -> np.ndarray:
        wide = np.asarray(truth, dtype=np.float64).reshape(len(truth), -1) * self.std + self.mean
        return wide[:, 0] if self.flat else wide

    def measures(self) -> list[Measure]:
        def squared(truth: np.ndarray, answers: Answers) -> np.ndarray:
            return np.square(truth - answers.prediction).reshape(len(truth), -1).mean(1)

        def absolute(truth: np.ndarray, answers: Answers) -> np.ndarray:
            return np.abs(truth - answers.prediction).reshape(len(truth), -1).mean(1)

        def r2(truth: np.ndarray, answers: Answers) -> float:
            """The mean over the columns; of one that never changes, 1 where it is met exactly, else 0."""
            if len(truth) < 2:
                return float("nan")
            left, spread = (
                np.square(difference).reshape(len(truth), -1).sum(0)
                for difference in (truth - answers.prediction, truth - truth.mean(0))
            )
            return float(np.where(spread > 0, 1 - left / np.where(spread > 0, spread, 1), left == 0).mean())

        return [
            Measure("rmse", lambda t, a: float(squared(t, a).mean() ** 0.5), "lower", each=squared, finish=np.sqrt),
            Measure("mae", lambda t, a: float(absolute(t, a).mean()), "lower", each=absolute),
            Measure("r2", r2),
        ]

    def columns(self, answers: Answers) -> dict[str, Any]:
        if answers.prediction.ndim == 1:
            return {"prediction": answers.prediction}
        names = self.labels or [str(k) for k in range(self.size)]
        return {f"prediction_{name}": answers.prediction[:, k] for k, name in enumerate(names)}


TARGET = Numbers
