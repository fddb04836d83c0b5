"""One class of two or many.

In: class numbers, names or booleans (N,). The net gives a logit a class (N, K), or one logit for the second of two
classes where the loss is a binary one. Out: the label, its probability, and the probabilities of all.

The probabilities are those of softmax(logits / temperature): the temperature that makes the answers of the validation split
likeliest (Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017). It changes how sure the
answers are, never the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina import mapped, optimizers
from lamina.checks.answers import are_signs
from lamina.errors import DataError, UsageError, rows
from lamina.sources.places import natural
from lamina.targets.base import Answers, Measure, Target, bare, places

SPREAD = 0.5  # standard deviation of log(temperature) before anything is known: a few examples prove little
_MOST = 10_000_000  # logits that a temperature is fitted to
_FEW = 20  # different whole numbers that are classes unless there is a reason against it
_WORTH_A_WORD = 0.1  # how far from 1 a temperature is told on the screen; the report always tells it


def _are_names(values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether whole numbers (K,), sorted, that occur so often number classes rather than measure something. Up to 20 do,
    where each is there a few times; of more, those that are numbered through from 0 or 1, or that lie anywhere and are about
    as frequent as one another."""
    if not len(values) or values[0] < -1:
        return not len(values)  # no class has such a number
    if values[0] < 0:  # -1 may be a class, or say that there is none
        return are_signs(values, counts) or _are_names(values[1:], counts[1:])
    distinct, each = len(values), counts.mean()
    through = values[0] in (0, 1) and values[-1] - values[0] + 1 == distinct
    if distinct <= _FEW:
        return distinct <= 3 or each >= (2 if through else 4)
    anywhere = len(np.unique(np.diff(values))) > 1 and counts.std() < 0.3 * each
    return each >= 20 and (anywhere or (through and counts.max() <= 50 * counts.min()))


@dataclass
class Classes(Target):
    name: ClassVar[str] = "classes"
    quick: ClassVar[str] = "accuracy"
    learned_last: ClassVar[tuple[str, ...]] = ("temperature", "calibrated_on")

    labels: list[str] = field(default_factory=list)  # class number -> name for people
    values: list[Any] = field(default_factory=list)  # class number -> the answer as the user gave it
    single: bool = False  # one logit for two classes, as binary losses want it
    probabilities: bool = False  # the net itself ends in probabilities (for BCELoss)
    temperature: float = 1.0  # what logits are divided by: above 1 the net was too sure, below 1 too unsure
    calibrated_on: int = 0  # examples of the validation split that it was fitted to

    @classmethod
    def sniff(cls, truth: Any) -> tuple[float, str]:
        column = np.asarray(truth)
        if column.ndim == 2 and 1 in column.shape[1:]:
            column = column[:, 0]
        if column.ndim != 1:
            return 0.0, "classes are one answer an example"
        if column.dtype.kind in "USOb":
            return 0.95, f"the answers are {'booleans' if column.dtype.kind == 'b' else 'words'}"
        if column.dtype.kind in "iu":
            values, counts = np.unique(column, return_counts=True)
            sure = 0.9 if _are_names(values, counts) else 0.2
            return sure, f"the answers are {len(values):,} different whole numbers"
        return 0.0, "the answers are fractional numbers"

    def fit(self, truth: Any, *, own_net: bool = False, names: list[str] | None = None) -> None:
        column = self._column(truth)
        distinct, counts = np.unique(column, return_counts=True)
        signs = column.dtype.kind in "iu" and are_signs(distinct, counts)
        if signs and own_net:
            raise DataError(
                f"The labels are {', '.join(map(str, distinct))}, and the loss of a net of yours takes them as they are.",
                expected="class numbers 0 to K-1",
                fix="number the classes from 0: numpy.unique(y, return_inverse=True)[1]",
            )
        if column.dtype.kind in "iu" and distinct.min(initial=0) < 0 and not signs:
            bad = np.flatnonzero(column < 0)
            raise DataError(
                f"{len(bad)} labels are negative, such as {column[bad[0]]}: {rows(bad)}.",
                expected="class numbers 0 to K-1",
                fix="leave these examples out, or number the classes from 0",
            )
        if names:
            self.values, self.labels = list(range(len(names))), list(names)
        elif column.dtype.kind in "iu" and (own_net or np.array_equal(distinct, np.arange(len(distinct)))):
            if distinct.max() > max(1000, 20 * len(distinct)):
                raise DataError(
                    f"The labels go up to {distinct.max()} but only {len(distinct)} different ones occur.",
                    expected="class numbers 0 to K-1, or names",
                    fix="number the classes: numpy.unique(y, return_inverse=True)[1]",
                )
            self.values = list(range(int(distinct.max()) + 1))
            self.labels = [str(value) for value in self.values]
        else:
            words = column.dtype.kind == "U"  # in which s2 comes before s10
            self.values = sorted(distinct.tolist(), key=natural) if words else distinct.tolist()
            self.labels = [str(value) for value in self.values]
        if len(distinct) < 2:
            raise DataError(
                f"All training examples are of one class, {str(distinct[0])!r}.",
                expected="two classes or more",
                fix="check the labels, or give examples of another class",
            )

    @staticmethod
    def _column(truth: Any) -> np.ndarray:
        column = truth.detach().cpu().numpy() if isinstance(truth, Tensor) else np.asarray(truth)
        if column.ndim == 2 and column.shape[1] == 1:
            column = column[:, 0]
        if column.ndim != 1:
            raise DataError(
                f"The labels have shape {tuple(column.shape)}.",
                expected="one label an example, (N,)",
                fix="for one-hot labels give y.argmax(1); for several labels at once use task='tags'",
            )
        if column.dtype.kind == "f":
            bad = np.flatnonzero(~np.isfinite(column))
            if len(bad):
                raise DataError(f"{len(bad)} labels are missing (NaN or infinite): {rows(bad)}.", fix="leave these out")
            if np.isin(column, (0, 1)).all():  # as binary losses are given them
                return column.astype(np.int64)
            raise DataError(
                f"The labels are fractional numbers ({column.dtype}), such as {column[0]}.",
                expected="class numbers (whole) or names",
                fix="y.astype(int) if they are class numbers; task='numbers' if they are measurements",
            )
        if column.dtype.kind == "O":
            bad = np.array([k for k, value in enumerate(column) if value is None or value != value or value == ""])
            if len(bad):
                raise DataError(f"{len(bad)} labels are missing: {rows(bad)}.", fix="leave these examples out")
            column = column.astype(str)
        return column

    def encode(self, truth: Any) -> Tensor:
        column = self._column(truth)
        values = np.asarray(self.values)
        if values.dtype.kind in "iu" and column.dtype.kind in "iu" and np.array_equal(values, np.arange(len(values))):
            numbers, unknown = np.asarray(column, np.int64), np.flatnonzero((column < 0) | (column >= len(values)))
        else:
            if column.dtype.kind != values.dtype.kind:
                column, values = column.astype(str), values.astype(str)
            numbers, unknown = places(values, column)
        self._refuse(column, unknown)
        encoded = mapped.as_tensor(np.ascontiguousarray(numbers))
        return encoded.float() if self.single else encoded

    def _refuse(self, column: np.ndarray, unknown: np.ndarray) -> None:
        """unknown: the rows whose labels are no classes, none of them for no error."""
        if len(unknown):
            raise DataError(
                f"{len(unknown)} labels are not among the {len(self.labels)} classes of training, such as "
                f"{str(column[unknown[0]])!r}: {rows(unknown)}.",
                expected=f"one of {', '.join(self.labels[:12])}{' ...' if len(self.labels) > 12 else ''}",
                fix="leave these examples out, or train again with examples of these classes",
            )

    def _numbers(self, column: np.ndarray) -> np.ndarray:
        """Labels as `decode` writes them -> class numbers, int64 (N,)."""
        numbers, unknown = places(np.asarray(self.labels), column)
        self._refuse(column, unknown)
        return numbers

    @property
    def width(self) -> int:
        return 1 if self.single else len(self.labels)

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return nn.BCEWithLogitsLoss() if self.single else nn.CrossEntropyLoss()

    def adopt(self, loss: Any) -> None:
        """Fit what a user's own loss wants: the binary losses take one output for two classes."""
        loss = bare(loss)
        if isinstance(loss, (nn.SoftMarginLoss, nn.HingeEmbeddingLoss)):
            raise UsageError(
                f"{type(loss).__name__} wants answers of -1 and 1, and those of two classes are 0 and 1.",
                fix="nn.BCEWithLogitsLoss(), which is SoftMarginLoss for 0 and 1",
            )
        after_sigmoid = isinstance(loss, nn.BCELoss) or loss is F.binary_cross_entropy
        if not (after_sigmoid or isinstance(loss, nn.BCEWithLogitsLoss) or loss is F.binary_cross_entropy_with_logits):
            return
        self.single, self.probabilities = True, after_sigmoid
        if len(self.labels) != 2:
            raise UsageError(
                f"{getattr(loss, '__name__', type(loss).__name__)} is for two classes, and there are {len(self.labels)}.",
                fix="nn.CrossEntropyLoss()",
            )

    def check(self, output: Any, truth: Tensor, loss: Any) -> None:
        shape, count = tuple(output.shape), len(truth)
        if self.single:
            if output.numel() != count:
                raise UsageError(
                    f"Your net returned {shape} but {type(loss).__name__} for two classes wants one number an example.",
                    expected=f"({count}, 1) or ({count},)",
                )
        elif output.ndim != 2 or shape[0] != count:
            raise UsageError(
                f"Your net returned {shape} for a batch of {count} examples.",
                expected=f"({count}, {len(self.labels)}): a number for each of the {len(self.labels)} classes",
            )
        elif shape[1] < len(self.labels):
            raise UsageError(
                f"Your net returned {shape} but there are {len(self.labels)} classes.",
                expected=f"({count}, {len(self.labels)})",
                fix=f"give the last layer {len(self.labels)} outputs"
                + (
                    ", or name a loss for one: nn.BCEWithLogitsLoss()"
                    if shape[1] == 1 and len(self.labels) == 2
                    else ""
                ),
            )
        elif shape[1] > len(self.labels):  # a net with room for classes that did not occur
            extra = range(len(self.labels), shape[1])
            if self.values == list(range(len(self.values))) and self.labels == [str(v) for v in self.values]:
                self.values += list(extra)
                self.labels += [str(k) for k in extra]
            else:
                raise UsageError(
                    f"Your net returned {shape} but there are {len(self.labels)} classes: {', '.join(self.labels[:12])}.",
                    expected=f"({count}, {len(self.labels)})",
                )

    def shape_truth(self, truth: Tensor, output: Tensor) -> Tensor:
        """Truth in the shape a binary loss wants: that of the output."""
        return truth.reshape(output.shape) if self.single and truth.shape != output.shape else truth

    def calibrate(self, output: Tensor, truth: Tensor) -> None:
        """Fit the temperature. It stays 1 where no other makes these answers likelier."""
        output, truth = output.detach().double().cpu(), truth.long().cpu().reshape(-1)
        if self.probabilities or not len(truth):
            return
        logits = torch.stack([torch.zeros(len(truth)).double(), output.reshape(-1)], 1) if self.single else output
        step = -(-logits.numel() // _MOST)
        self.temperature, self.calibrated_on = temperature(logits[::step], truth[::step]), len(truth[::step])

    def remarks(self) -> list[str]:
        if abs(self.temperature - 1) < _WORTH_A_WORD:
            return []
        how = "sure" if self.temperature > 1 else "unsure"
        return [
            f"On {self.calibrated_on:,} validation examples the net was too {how} of its answers: its logits are divided by "
            f"{self.temperature:.3g} (temperature scaling), which changes probabilities and no answer."
        ]

    def uncalibrated(self, answers: Answers) -> Answers:
        """The same answers as sure as the net was by itself."""
        if self.temperature == 1.0 or answers.probabilities is None:
            return answers
        powers = np.power(answers.probabilities.astype(np.float64), self.temperature)
        table = powers / powers.sum(1, keepdims=True)
        places_ = self._numbers(answers.prediction)
        return replace(answers, confidence=table[np.arange(len(table)), places_], probabilities=table)

    def decode(self, output: Tensor) -> Answers:
        output = output.detach().float().cpu()
        if self.single:
            second = output.reshape(-1)
            second = second if self.probabilities else torch.sigmoid(second / self.temperature)
            probabilities = torch.stack([1 - second, second], 1)
        else:
            # Torch's softmax takes an example at a time, which for few classes costs three times as much as all together.
            powers = output.double().sub_(output.amax(1, keepdim=True)).div_(self.temperature).exp_()
            probabilities = powers.div_(powers.sum(1, keepdim=True)).float()
        best = self._best(output).numpy()
        table = probabilities.numpy()
        return Answers(np.asarray(self.labels)[best], table[np.arange(len(best)), best], table)

    def _best(self, output: Tensor) -> Tensor:
        """The class numbers (N,) that a net's outputs say: of the logits, since probabilities are rounded to ties."""
        if self.single:
            return (output.reshape(-1) > (0.5 if self.probabilities else 0.0)).long()
        return output.argmax(1)

    def given(self, answers: Answers) -> Answers:
        named = self.labels != [str(value) for value in self.values]
        if named or not all(isinstance(value, (bool, int)) for value in self.values):
            return answers
        return replace(answers, prediction=np.asarray(self.values)[self._numbers(answers.prediction)])

    def tally(self, output: Tensor, truth: Tensor) -> dict[str, Tensor]:
        return {"correct": (self._best(output) == truth.reshape(-1)).sum()}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:
        return {"accuracy": sums["correct"] / count}

    def people(self, truth: Any) -> np.ndarray:
        """Encoded answers -> labels, as `decode` writes them."""
        return np.asarray(self.labels)[np.asarray(truth).astype(int).reshape(-1)]

    def measures(self) -> list[Measure]:
        labels = self.labels
        known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

        def numbers(column: np.ndarray) -> np.ndarray:
            """Class numbers of labels; several measures ask for those of the same."""
            if id(column) not in known or known[id(column)][0] is not column:
                if len(known) > 3:
                    known.clear()
                known[id(column)] = column, self._numbers(column)
            return known[id(column)][1]

        def hits(truth: np.ndarray, answers: Answers) -> np.ndarray:
            return (truth == answers.prediction).astype(float)

        def surprise(truth: np.ndarray, answers: Answers) -> np.ndarray:
            assert answers.probabilities is not None
            return -np.log(np.clip(answers.probabilities[np.arange(len(truth)), numbers(truth)], 1e-15, 1.0))

        def margins(truth: np.ndarray, answers: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """(K,) each: how often a class was recognised, how often it was the truth, how often it was said."""
            true, said = numbers(truth), numbers(answers.prediction)
            return tuple(np.bincount(column, minlength=len(labels)) for column in (true[true == said], true, said))  # type: ignore[return-value]

        def of_counts(finish: Callable[..., np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
            return lambda counts: finish(np.einsum("rkk->rk", counts), counts.sum(2), counts.sum(1))

        def f1(right: np.ndarray, support: np.ndarray, said: np.ndarray) -> np.ndarray:
            """(..., K) -> (...): the mean over the classes that occur."""
            each = 2 * right / np.maximum(support + said, 1)
            return (each * (support > 0)).sum(-1) / np.maximum((support > 0).sum(-1), 1)

        def balanced(right: np.ndarray, support: np.ndarray, said: np.ndarray) -> np.ndarray:
            return (right / np.maximum(support, 1)).sum(-1) / np.maximum((support > 0).sum(-1), 1)

        found = [
            Measure("accuracy", lambda t, a: float(hits(t, a).mean()), each=hits, exact=True),
            Measure("f1", lambda t, a: float(f1(*margins(t, a))), from_confusion=of_counts(f1)),
            Measure(
                "balanced_accuracy", lambda t, a: float(balanced(*margins(t, a))), from_confusion=of_counts(balanced)
            ),
            Measure("log_loss", lambda t, a: float(surprise(t, a).mean()), better="lower", each=surprise),
        ]
        if len(labels) == 2:

            def in_order(truth: np.ndarray, answers: Answers) -> np.ndarray:
                """Values (n,) whose mean is the area under the curve, the share of pairs, one of each class, whose order is
                right; an equal pair counts half. By how much an example's share of its own pairs differs from that of all,
                over how frequent its class is: the structural components of DeLong, DeLong and Clarke-Pearson, "Comparing
                the areas under two or more correlated receiver operating characteristic curves", 1988."""
                assert answers.probabilities is not None
                distinct, place_of = np.unique(answers.probabilities[:, 1], return_inverse=True)
                first, second = (np.bincount(place_of[truth == label], minlength=len(distinct)) for label in labels)
                with np.errstate(invalid="ignore"):  # where there is one class alone: NaN
                    below = (np.cumsum(first) - first / 2) / first.sum()
                    above = (second.sum() - np.cumsum(second) + second / 2) / second.sum()
                    area = (second * below).sum() / second.sum()
                is_second = truth == labels[1]
                own = np.where(is_second, below[place_of], above[place_of])
                return area + (own - area) * len(truth) / np.where(is_second, second.sum(), first.sum())

            def share(mean: np.ndarray) -> np.ndarray:
                return np.clip(mean, 0, 1)

            found.append(
                Measure("roc_auc", lambda t, a: float(share(in_order(t, a).mean())), each=in_order, finish=share)
            )
        return found


def temperature(logits: Tensor, truth: Tensor) -> float:
    """What to divide logits (N, K) by so that the classes (N,) become likeliest; 1 where nothing is gained.

    The least of  sum of -log softmax(logits / T)[truth] + (log T / SPREAD)^2 / 2.  Without the second term, a few answers
    that are all right would make the net as sure as can be.
    """
    logits = logits.detach().double()
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)  # log T

    def surprise() -> Tensor:
        return F.cross_entropy(logits / shift.exp(), truth, reduction="sum") + (shift / SPREAD).square() / 2

    before = float(surprise().detach())
    optimizers.minimise([shift], surprise, 50)
    found = float(shift.detach().exp())
    return found if float(surprise().detach()) < before and np.isfinite(found) else 1.0


TARGET = Classes
