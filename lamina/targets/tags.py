"""Several labels at once: any number of K tags belong to an example.

In: a 0/1 matrix (N, K). The net gives a logit a tag (N, K). Out: the matrix of tags whose probability is at least
`threshold`, and the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina.errors import DataError, UsageError, rows
from lamina.targets.base import Answers, Measure, Target, bare


@dataclass
class Tags(Target):
    name: ClassVar[str] = "tags"
    quick: ClassVar[str] = "f1"

    labels: list[str] = field(default_factory=list)
    threshold: float = 0.5
    probabilities: bool = False  # the net itself ends in probabilities (for BCELoss)

    @classmethod
    def sniff(cls, truth: Any) -> tuple[float, str]:
        table = np.asarray(truth)
        if table.ndim == 2 and table.shape[1] > 1 and table.dtype.kind in "fiub" and np.isin(table, (0, 1)).all():
            if (table.sum(1) == 1).all():
                return 0.85, "a 0/1 matrix (exactly one 1 a row: give y.argmax(1) if these are classes)"
            return 0.95, f"the answers are a 0/1 matrix of {table.shape[1]} columns"
        return 0.0, "the answers are not a 0/1 matrix"

    @staticmethod
    def _table(truth: Any) -> np.ndarray:
        table = truth.detach().cpu().numpy() if isinstance(truth, Tensor) else np.asarray(truth)
        if table.ndim != 2 or table.dtype.kind not in "fiub":
            raise DataError(f"The tags have shape {tuple(table.shape)}, {table.dtype}.", expected="a 0/1 matrix (N, K)")
        bad = np.flatnonzero(~np.isin(table, (0, 1)).all(1))
        if len(bad):
            raise DataError(f"{len(bad)} rows of tags hold other values than 0 and 1: {rows(bad)}.", expected="0 or 1")
        return table

    def fit(self, truth: Any, *, own_net: bool = False, names: list[str] | None = None) -> None:
        self.labels = list(names) if names else [str(k) for k in range(self._table(truth).shape[1])]

    def encode(self, truth: Any) -> Tensor:
        table = self._table(truth)
        if table.shape[1] != len(self.labels):
            raise DataError(f"There are {table.shape[1]} tags.", expected=f"{len(self.labels)}, as in training")
        return torch.from_numpy(table.astype(np.float32))

    @property
    def width(self) -> int:
        return len(self.labels)

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return nn.BCEWithLogitsLoss()

    def adopt(self, loss: Any) -> None:
        self.probabilities = isinstance(bare(loss), nn.BCELoss) or bare(loss) is F.binary_cross_entropy

    def check(self, output: Any, truth: Tensor, loss: Any) -> None:
        if tuple(output.shape) != tuple(truth.shape):
            raise UsageError(
                f"Your net returned {tuple(output.shape)} but there are {len(self.labels)} tags.",
                expected=f"{tuple(truth.shape)}",
                fix=f"give the last layer {len(self.labels)} outputs",
            )

    def decode(self, output: Tensor) -> Answers:
        output = output.detach().float().cpu()
        table = (output if self.probabilities else torch.sigmoid(output)).numpy()
        chosen = (table >= self.threshold).astype(np.int64)
        return Answers(chosen, np.where(chosen == 1, table, 1 - table).min(1), table)

    def tally(self, output: Tensor, truth: Tensor) -> dict[str, Tensor]:
        share = output if self.probabilities else torch.sigmoid(output)
        chosen = (share >= self.threshold).to(truth.dtype)
        return {"both": (chosen * truth).sum(), "either": chosen.sum() + truth.sum()}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:
        return {"f1": 2 * sums["both"] / sums["either"] if sums["either"] else 1.0}

    def people(self, truth: Any) -> np.ndarray:
        return np.asarray(truth).astype(np.int64)

    def measures(self) -> list[Measure]:
        def f1(truth: np.ndarray, answers: Answers) -> float:
            both = (truth * answers.prediction).sum()
            either = truth.sum() + answers.prediction.sum()
            return float(2 * both / either) if either else 1.0

        def macro(truth: np.ndarray, answers: Answers) -> float:
            both, either = (truth * answers.prediction).sum(0), (truth + answers.prediction).sum(0)
            return float((2 * both / np.maximum(either, 1)).mean())

        def whole(truth: np.ndarray, answers: Answers) -> np.ndarray:
            return (truth == answers.prediction).all(1).astype(float)

        def wrong(truth: np.ndarray, answers: Answers) -> np.ndarray:
            return (truth != answers.prediction).mean(1)

        return [
            Measure("f1", f1),
            Measure("macro_f1", macro),
            Measure("exact", lambda t, a: float(whole(t, a).mean()), each=whole, exact=True),
            Measure("hamming_loss", lambda t, a: float(wrong(t, a).mean()), "lower", each=wrong),
        ]

    def columns(self, answers: Answers) -> dict[str, Any]:
        names = np.asarray(self.labels)
        words = [" ".join(names[row == 1]) for row in answers.prediction]
        found: dict[str, Any] = {"prediction": np.array(words, dtype=object), "confidence": answers.confidence}
        if answers.probabilities is not None:
            found.update({f"p_{name}": answers.probabilities[:, k] for k, name in enumerate(self.labels)})
        return found


TARGET = Tags
