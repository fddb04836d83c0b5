"""One or several numbers.

In: numbers (N,) or (N, D). For our own nets they are standardised by the training split, after their logarithm was taken
where they are positive and very skewed, and the net gives (N, D); a user's own net meets them as they are. Out: numbers in
the user's units, and once `calibrate` has seen a validation split, an interval for each that holds the truth with a known
probability (split conformal prediction: Papadopoulos et al., "Inductive confidence machines for regression", 2002; Lei et
al., 2018), as wide as the errors were among predictions of like size (its Mondrian form: Vovk et al., 2003).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina.errors import DataError, UsageError, rows
from lamina.findings import Finding
from lamina.targets.base import VALUES_MOST, Answers, Measure, Target

SKEW = 2.0  # from which on the logarithm is learned; that of an exponential distribution
GROUPS = 5  # of predictions of like size, each with an interval of its own width
ENOUGH = 100  # validation examples for each of these
BIAS = (0.5, 2.0)  # the least and the most by which answers of a logarithm are corrected


@dataclass
class Numbers(Target):
    name: ClassVar[str] = "numbers"
    quick: ClassVar[str] = "rmse"
    quick_better: ClassVar[str] = "lower"
    learned_last: ClassVar[tuple[str, ...]] = ("bias", "edges", "widths", "calibrated_on")

    log: bool | None = None  # learn the logarithm; None: where the training answers are positive and very skewed
    coverage: float = 0.9  # probability with which an interval of prediction shall hold the truth
    # What was learned:
    size: int = 1  # numbers an example
    flat: bool = True  # given as (N,), so answered as (N,)
    mean: list[float] = field(default_factory=lambda: [0.0])  # of what is learned
    std: list[float] = field(default_factory=lambda: [1.0])
    labels: list[str] = field(default_factory=list)
    units: list[float] = field(default_factory=list)  # log(1 + y / unit) is learned; 0 for y itself
    reach: list[list[float]] = field(default_factory=list)  # the least and the most that was learned, where it is a log
    bias: list[float] = field(default_factory=list)  # exp of a mean log is less than the mean: by this factor
    edges: list[list[float]] = field(default_factory=list)  # between groups of predictions, as they are learned
    widths: list[list[float]] = field(default_factory=list)  # half an interval in each group, as it is learned
    calibrated_on: int = 0  # examples of the validation split

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise UsageError(f"coverage is {self.coverage}", expected="a probability between 0 and 1, such as 0.9")

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
        self.mean, self.std, self.units = [0.0] * self.size, [1.0] * self.size, [0.0] * self.size
        self.reach, self.bias, self.edges, self.widths = [], [1.0] * self.size, [], []
        self.calibrated_on = 0
        if own_net:
            return
        self.units = [self._unit(column) for column in table.T]
        learned = self._learned(table)
        std = learned.std(0)
        self.mean, self.std = learned.mean(0).tolist(), np.where(std > 0, std, 1.0).tolist()
        self.reach = [[float(column.min()), float(column.max())] for column in learned.T]

    def _unit(self, column: np.ndarray) -> float:
        """That of the logarithm of a column: a small one of its numbers; 0 where the numbers themselves are learned."""
        positive = column[column > 0]
        if self.log is False or not len(positive):
            return 0.0
        if self.log and column.min() < 0:
            raise UsageError(f"log is asked for, and {(column < 0).sum():,} answers are negative.", fix="log=false")
        unit = float(np.quantile(positive, 0.1))
        if self.log:
            return unit
        before, after = skewness(column), skewness(np.log1p(np.maximum(column, 0) / unit))
        return unit if column.min() >= 0 and before > SKEW and abs(after) < before / 2 else 0.0

    def findings(self) -> list[Finding]:
        logs = [k for k, unit in enumerate(self.units) if unit]
        if not logs or self.log:
            return []
        which = (
            ""
            if self.size == 1
            else f" ({', '.join((self.labels or list(map(str, range(self.size))))[k] for k in logs)})"
        )
        return [Finding(
            "skewed_answers", "note", f"The answers{which} are positive and very skewed.", len(logs), [],
            "their logarithm is learned; what is answered is in their own units", "--task-arg log=false",
        )]  # fmt: skip

    def _learned(self, wide: np.ndarray) -> np.ndarray:
        """Numbers (N, D) as they are learned, before they are standardised. Negative ones go the mirrored way."""
        if not any(self.units):
            return wide
        unit = np.asarray(self.units)
        safe = np.where(unit > 0, unit, 1.0)
        return np.where(unit > 0, np.sign(wide) * np.log1p(np.abs(wide) / safe), wide)

    def _back(self, output: Tensor) -> Tensor:
        """Standardised numbers (N, D), of a net or encoded, in the user's units."""

        def row(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=output.dtype, device=output.device)

        learned = output * row(self.std) + row(self.mean)
        if not any(self.units):
            return learned
        unit = row(self.units)
        powers = torch.sign(learned) * torch.expm1(learned.abs().clamp(max=80)) * unit
        return torch.where(unit > 0, powers, learned)

    def _within(self, output: Tensor) -> Tensor:
        """A net's outputs (N, D); of logarithms not further than a tenth beyond those of the training, since exp goes far."""
        if not any(self.units):
            return output
        low, high = torch.tensor(self.reach, dtype=output.dtype, device=output.device).T
        mean, std, unit = (
            torch.tensor(v, dtype=output.dtype, device=output.device) for v in (self.mean, self.std, self.units)
        )
        room = 0.1 * (high - low)
        return torch.where(unit > 0, output.clamp((low - room - mean) / std, (high + room - mean) / std), output)

    def _predicted(self, output: Tensor) -> Tensor:
        """A net's outputs (N, D) -> predictions in the user's units."""
        found = self._back(self._within(output))
        if not any(self.units):
            return found
        unit, bias = (torch.tensor(v, dtype=output.dtype, device=output.device) for v in (self.units, self.bias))
        return torch.where(unit > 0, ((found + unit) * bias - unit).clamp(min=0), found)

    def encode(self, truth: Any) -> Tensor:
        table = self._table(truth)
        wide = table.reshape(len(table), -1).astype(np.float64)
        if wide.shape[1] != self.size:
            raise DataError(f"There are {wide.shape[1]} numbers an example.", expected=f"{self.size}, as in training")
        scaled = (self._learned(wide) - self.mean) / self.std
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

    def calibrate(self, output: Tensor, truth: Tensor) -> None:
        """Learn from the validation split how far predictions are off, and by how much those of a logarithm are too low."""
        guess = self._within(output.detach().double().cpu().reshape(len(output), -1))
        aim = truth.detach().double().cpu().reshape(guess.shape)
        means, guesses = self._back(aim).numpy(), self._back(guess).numpy()
        self.bias = [
            float(np.clip((means[:, k] + unit).mean() / (guesses[:, k] + unit).mean(), *BIAS)) if unit else 1.0
            for k, unit in enumerate(self.units or [0.0] * self.size)
        ]
        self.edges, self.widths, self.calibrated_on = [], [], len(guess)
        for place, error in zip(guess.numpy().T, (aim - guess).abs().numpy().T, strict=True):
            groups = max(1, min(GROUPS, len(place) // ENOUGH))
            edges = np.quantile(place, np.arange(1, groups) / groups)
            group = np.searchsorted(edges, place)
            widths = [conformal(error[group == k], self.coverage) for k in range(groups)]
            if not np.isfinite(widths).all():  # too few for any interval
                edges, widths = np.zeros(0), [conformal(error, self.coverage)]
            self.edges.append(edges.tolist())
            self.widths.append(widths if np.isfinite(widths).all() else [])

    def remarks(self) -> list[str]:
        if not self.calibrated_on:
            return []
        if not (self.widths and all(self.widths)):
            needed = next(n for n in itertools.count(1) if math.ceil((n + 1) * self.coverage) <= n)
            return [
                f"{self.calibrated_on:,} validation examples are too few for intervals of prediction that hold "
                f"{self.coverage:.4g} of the truths: {needed:,} are needed."
            ]
        return [
            f"Each prediction has an interval (low, high) that is to hold {self.coverage:.4g} of the truths: as wide as the "
            f"errors on {self.calibrated_on:,} validation examples, so right for new examples that are like those."
        ]

    def decode(self, output: Tensor) -> Answers:
        wide = output.detach().double().cpu().reshape(len(output), -1)
        parts: list[Any] = [self._predicted(wide).numpy(), None, None]
        if self.widths and all(self.widths):
            inside = self._within(wide).numpy()
            half = np.stack([
                np.asarray(widths)[np.searchsorted(edges, column)]
                for column, edges, widths in zip(inside.T, self.edges, self.widths, strict=True)
            ], 1)  # fmt: skip
            parts[1:] = [self._back(torch.from_numpy(inside + side * half)).numpy() for side in (-1, 1)]
            logs = np.asarray(self.units or [0.0] * self.size) > 0
            parts[1] = np.where(logs, np.maximum(parts[1], 0), parts[1])
        prediction, low, high = (part if part is None or not self.flat else part[:, 0] for part in parts)
        return Answers(prediction, low=low, high=high)

    def tally(self, output: Tensor, truth: Tensor) -> dict[str, Tensor]:
        wide = output.reshape(len(output), -1).float()
        error = self._predicted(wide) - self._back(truth.reshape(len(truth), -1).float())
        return {"squared": error.square().mean(1).sum()}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:
        return {"rmse": (sums["squared"] / count) ** 0.5}

    def people(self, truth: Any) -> np.ndarray:
        wide = self._back(torch.from_numpy(np.asarray(truth, dtype=np.float64).reshape(len(truth), -1))).numpy()
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
            return float(explained(left, spread).mean())

        def explained(left: np.ndarray, spread: np.ndarray) -> np.ndarray:
            return np.where(spread > 0, 1 - left / np.where(spread > 0, spread, 1), left == 0)

        def squares(truth: np.ndarray, answers: Answers) -> np.ndarray:
            """(n, 3 D) what r2 is made of the means of: squares of errors, squares of the truth and the truth, off its mean."""
            error, apart = ((truth - of).reshape(len(truth), -1) for of in (answers.prediction, truth.mean(0)))
            return np.concatenate([error**2, apart**2, apart], 1)

        def r2_of(means: np.ndarray) -> np.ndarray:
            left, square, mean = np.split(means, 3, axis=-1)
            return explained(left, square - mean**2).mean(-1)  # type: ignore[no-any-return]

        def held(truth: np.ndarray, answers: Answers) -> np.ndarray:
            """The share of an example's numbers that lie in their intervals."""
            if answers.low is None or answers.high is None:
                return np.full(len(truth), np.nan)
            inside = (answers.low <= truth) & (truth <= answers.high)
            return inside.reshape(len(truth), -1).mean(1)

        return [
            Measure("rmse", lambda t, a: float(squared(t, a).mean() ** 0.5), "lower", each=squared, finish=np.sqrt),
            Measure("mae", lambda t, a: float(absolute(t, a).mean()), "lower", each=absolute),
            Measure("r2", r2, each=squares if 3 * self.size <= VALUES_MOST else None, finish=r2_of),
            *(
                [Measure("coverage", lambda t, a: float(held(t, a).mean()), each=held, intervals=True)]
                if self.widths and all(self.widths)
                else []
            ),
        ]

    def columns(self, answers: Answers) -> dict[str, Any]:
        parts = {"prediction": answers.prediction, "low": answers.low, "high": answers.high}
        there = {name: part for name, part in parts.items() if part is not None}
        if answers.prediction.ndim == 1:
            return there
        names = self.labels or [str(k) for k in range(self.size)]
        return {f"{part}_{name}": table[:, k] for k, name in enumerate(names) for part, table in there.items()}


def skewness(column: np.ndarray) -> float:
    """The third standardised moment of numbers (N,); 0 of a constant."""
    away = column - column.mean()
    spread = np.sqrt(np.mean(away**2))
    return float(np.mean(away**3) / spread**3) if spread > 0 else 0.0


def conformal(errors: np.ndarray, coverage: float) -> float:
    """Half an interval that holds a further example like these with at least this probability: of n errors (n,) the
    ceil((n + 1) coverage)-th smallest; infinite where they are too few."""
    place = math.ceil((len(errors) + 1) * coverage)
    return float(np.sort(errors)[place - 1]) if place <= len(errors) else math.inf


TARGET = Numbers
