"""Several labels at once: any number of K tags belong to an example, none included.

In: a 0/1 matrix (N, K), or texts (N,) that name the tags of each example with a separator between them: "sweet;red", an
empty text or None for none. The net gives a logit a tag (N, K). Out: the matrix of tags whose probability is at least the
tag's threshold, and the probabilities.

Thresholds are chosen on the validation split: where F1 is highest, for each tag (Lewis, "Evaluating and optimizing
autonomous text classification systems", SIGIR 1995), drawn towards the one that is best for all tags together by as much as
the tag is rare.
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
from lamina.sources import tagged
from lamina.sources.tagged import MARKS
from lamina.targets.base import VALUES_MOST, Answers, Measure, Target, bare

FEW = 10  # positive examples of a tag that weigh as much as what is best for all tags


@dataclass
class Tags(Target):
    name: ClassVar[str] = "tags"
    quick: ClassVar[str] = "f1"
    learned_last: ClassVar[tuple[str, ...]] = ("thresholds", "chosen_on")

    labels: list[str] = field(default_factory=list)
    threshold: float | None = None  # one for all tags, as asked; without it 0.5 until the validation split chooses
    separator: str = ""  # between the tags of a text; "" for a matrix, and to be found out
    thresholds: list[float] = field(default_factory=list)  # (K,) chosen on the validation split
    chosen_on: int = 0  # examples of it
    probabilities: bool = False  # the net itself ends in probabilities (for BCELoss)

    @classmethod
    def sniff(cls, truth: Any) -> tuple[float, str]:
        table = np.asarray(truth)
        if _is_texts(table) and (mark := tagged.separator(table)):
            count = len(tagged.distinct(table, mark))
            return 0.97, f"the answers are {count} words in changing company, with {mark!r} between them"
        if table.ndim == 2 and table.shape[1] > 1 and table.dtype.kind in "fiub" and np.isin(table, (0, 1)).all():
            if (table.sum(1) == 1).all():
                return 0.85, "a 0/1 matrix (exactly one 1 a row: give y.argmax(1) if these are classes)"
            return 0.95, f"the answers are a 0/1 matrix of {table.shape[1]} columns"
        return 0.0, "the answers are not a 0/1 matrix"

    def take(self, truth: np.ndarray, names: list[str] | None) -> tuple[np.ndarray, list[str] | None]:
        if not _is_texts(truth):
            return truth, names
        if not self.labels:
            self.separator = self.separator or tagged.separator(truth) or MARKS[0]
        labels = self.labels or tagged.distinct(truth, self.separator)
        return self._spread(truth, labels), labels

    def _spread(self, texts: np.ndarray, labels: list[str]) -> np.ndarray:
        """Texts (N,) -> 0/1 (N, K)."""
        place = {label: k for k, label in enumerate(labels)}
        table = np.zeros((len(texts), len(labels)), np.uint8)
        unknown: list[tuple[int, str]] = []
        for row, tags in enumerate(tagged.sets(texts, self.separator or MARKS[0])):
            for tag in tags:
                if tag in place:
                    table[row, place[tag]] = 1
                else:
                    unknown.append((row, tag))
        if unknown:
            raise DataError(
                f"{len(unknown)} tags are not among the {len(labels)} of training, such as {unknown[0][1]!r}: "
                f"{rows([row for row, _ in unknown])}.",
                expected=f"{', '.join(labels[:12])}{' ...' if len(labels) > 12 else ''}, with {self.separator or MARKS[0]!r} "
                "between them",
                fix="leave these tags out, or train again with examples of them",
            )
        return table

    def _table(self, truth: Any) -> np.ndarray:
        table = truth.detach().cpu().numpy() if isinstance(truth, Tensor) else np.asarray(truth)
        if self.labels and _is_texts(table):
            return self._spread(table, self.labels)
        if table.ndim != 2 or table.dtype.kind not in "fiub":
            raise DataError(
                f"The tags have shape {tuple(table.shape)}, {table.dtype}.",
                expected="a 0/1 matrix (N, K), or texts (N,) such as 'sweet;red'",
            )
        bad = np.flatnonzero(~np.isin(table, (0, 1)).all(1))
        if len(bad):
            raise DataError(f"{len(bad)} rows of tags hold other values than 0 and 1: {rows(bad)}.", expected="0 or 1")
        return table

    def fit(self, truth: Any, *, own_net: bool = False, names: list[str] | None = None) -> None:
        taken, found = self.take(np.asarray(truth), names)
        self.labels = list(found) if found else [str(k) for k in range(self._table(taken).shape[1])]

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

    def _limits(self) -> Tensor:
        """(K,) from which probability on a tag is given."""
        if self.threshold is not None or not self.thresholds:
            return torch.full((len(self.labels),), 0.5 if self.threshold is None else self.threshold)
        return torch.tensor(self.thresholds)

    def _shares(self, output: Tensor) -> Tensor:
        return output if self.probabilities else torch.sigmoid(output)

    def calibrate(self, output: Tensor, truth: Tensor) -> None:
        """Choose the thresholds, unless one was asked for."""
        if self.threshold is None and len(truth):
            shares = self._shares(output.detach().float().cpu()).double().numpy()
            self.thresholds, self.chosen_on = thresholds(shares, truth.cpu().numpy() > 0.5).tolist(), len(truth)

    def remarks(self) -> list[str]:
        if not self.thresholds:
            return []
        low, high = min(self.thresholds), max(self.thresholds)
        between = f"{low:.2g} for all" if low == high else f"{low:.2g} to {high:.2g}"
        return [
            f"From which probability on a tag is given was chosen on {self.chosen_on:,} validation examples ({between}); "
            "--task-arg threshold=0.5 sets it."
        ]

    def decode(self, output: Tensor) -> Answers:
        shares = self._shares(output.detach().float().cpu())
        table = shares.numpy()
        chosen = (shares >= self._limits()).long().numpy()
        return Answers(chosen, np.where(chosen == 1, table, 1 - table).min(1), table)

    def tally(self, output: Tensor, truth: Tensor) -> dict[str, Tensor]:
        chosen = (self._shares(output) >= self._limits().to(output.device)).to(truth.dtype)
        return {"both": (chosen * truth).sum(), "either": chosen.sum() + truth.sum()}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:
        return {"f1": 2 * sums["both"] / sums["either"] if sums["either"] else 1.0}

    def people(self, truth: Any) -> np.ndarray:
        return np.asarray(truth).astype(np.int64)

    def measures(self) -> list[Measure]:
        def tags(truth: np.ndarray, answers: Answers) -> np.ndarray:
            """(n, 2 K) of each tag whether it is there and was said, and how often it is or was."""
            return np.concatenate([truth * answers.prediction, truth + answers.prediction], 1)

        def any_tag(truth: np.ndarray, answers: Answers) -> np.ndarray:
            """(n, 2) the same of all tags together."""
            return tags(truth, answers).reshape(len(truth), 2, -1).sum(2)  # type: ignore[no-any-return]

        def f1(means: np.ndarray) -> np.ndarray:
            both, either = means[..., 0], means[..., 1]
            return np.where(either > 0, 2 * both / np.where(either > 0, either, 1), 1.0)

        def macro(means: np.ndarray) -> np.ndarray:
            both, either = np.split(means, 2, axis=-1)
            return (2 * both / np.where(either > 0, either, 1)).mean(-1)  # type: ignore[no-any-return]

        def whole(truth: np.ndarray, answers: Answers) -> np.ndarray:
            return (truth == answers.prediction).all(1).astype(float)

        def wrong(truth: np.ndarray, answers: Answers) -> np.ndarray:
            return (truth != answers.prediction).mean(1)

        return [
            Measure("f1", lambda t, a: float(f1(any_tag(t, a).mean(0))), each=any_tag, finish=f1),
            Measure(
                "macro_f1",
                lambda t, a: float(macro(tags(t, a).mean(0))),
                each=tags if 2 * len(self.labels) <= VALUES_MOST else None,
                finish=macro,
            ),
            Measure("exact", lambda t, a: float(whole(t, a).mean()), each=whole, exact=True),
            Measure("hamming_loss", lambda t, a: float(wrong(t, a).mean()), "lower", each=wrong),
        ]

    def written(self, truth: np.ndarray) -> np.ndarray:
        names = np.asarray(self.labels)
        between = self.separator or (" " if not any(" " in name for name in self.labels) else MARKS[0])
        return np.array([between.join(names[row == 1]) for row in truth], dtype=object)

    def columns(self, answers: Answers) -> dict[str, Any]:
        found: dict[str, Any] = {"prediction": self.written(answers.prediction), "confidence": answers.confidence}
        if answers.probabilities is not None:
            found.update({f"p_{name}": answers.probabilities[:, k] for k, name in enumerate(self.labels)})
        return found


# --- Tags in texts ----------------------------------------------------------------------------------------------------


def _is_texts(column: np.ndarray) -> bool:
    return column.ndim == 1 and column.dtype.kind in "UO"


# --- Thresholds -------------------------------------------------------------------------------------------------------


def best_threshold(shares: np.ndarray, truth: np.ndarray) -> float:
    """The probability from which on to say yes, so that F1 is highest on (n,) examples; 0.5 where none is true.

    In the middle between the last that is given and the first that is not; of equal ones that which gives fewest.
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-shares, kind="stable")
    ordered, right = shares[order], np.cumsum(truth[order])
    cuts = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))  # the last of each run of equal ones
    f1 = 2 * right[cuts] / (cuts + 1 + right[-1])
    last = int(cuts[f1.argmax()])
    below = ordered[last + 1] if last + 1 < len(ordered) else 0.0
    return float((ordered[last] + below) / 2)


def thresholds(shares: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(K,) thresholds from probabilities (n, K) and tags (n, K), bool.

    Logit of a tag's threshold: the mean of that of its own best and that of the best for all, weighted by its positive
    examples and FEW; the best for all is drawn towards 0.5 in the same way. Where all tags together have a lower F1 by
    their own thresholds than by the common one, they have that; where by that than by 0.5, they have 0.5.
    """

    def drawn(own: float, towards: float, positive: float) -> float:
        own, towards = (np.clip(value, 1e-6, 1 - 1e-6) for value in (own, towards))
        logit = (positive * _logit(own) + FEW * _logit(towards)) / (positive + FEW)
        return float(1 / (1 + np.exp(-logit)))

    def f1(limits: np.ndarray) -> float:
        chosen = shares >= limits
        return float(2 * (chosen & truth).sum() / max(chosen.sum() + truth.sum(), 1))

    together = drawn(best_threshold(shares.ravel(), truth.ravel()), 0.5, truth.sum())
    each = [
        drawn(best_threshold(shares[:, k], truth[:, k]), together, positive) for k, positive in enumerate(truth.sum(0))
    ]
    ways = [np.full(shares.shape[1], 0.5), np.full(shares.shape[1], together), np.array(each)]
    scores = [f1(way) for way in ways]
    best = 1 if scores[1] >= scores[0] else 0
    return ways[2] if scores[2] >= scores[best] else ways[best]


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


TARGET = Tags
