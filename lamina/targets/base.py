"""What every target gives: the contract between answers and everything that learns, reports and serves them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from lamina.findings import Finding
from lamina.recipe import Recipe
from lamina.sources import Examples


@dataclass
class Answers:
    """What a net's outputs mean to people, row by row."""

    prediction: np.ndarray  # (N,) labels or numbers, (N, D) numbers, (N, K) 0/1 for tags, strings for sequences
    confidence: np.ndarray | None = None  # (N,) in [0, 1]
    probabilities: np.ndarray | None = None  # (N, K)
    low: np.ndarray | None = None  # as the prediction: where the interval of each number begins
    high: np.ndarray | None = None  # and where it ends
    embedding: np.ndarray | None = None  # (N, D) where each example lies in the net's space
    unlike: np.ndarray | None = None  # (N,) bool: the input is unlike those learned from; None where nobody knows

    def __len__(self) -> int:
        return len(self.prediction)

    def __getitem__(self, rows: Any) -> Answers:
        def cut(part: np.ndarray | None) -> Any:
            return None if part is None else part[rows]

        return type(self)(*(cut(getattr(self, part.name)) for part in dataclasses.fields(self)))


VALUES_MOST = 64  # of an example, in `Measure.each`


@dataclass(frozen=True)
class Measure:
    """A score: how to compute it from (truth, answers), and how to put an interval round it."""

    name: str
    compute: Callable[[np.ndarray, Answers], float]
    better: str = "higher"  # or "lower"
    each: Callable[[np.ndarray, Answers], np.ndarray] | None = None  # values (N,) or (N, S) whose mean is the score
    finish: Callable[[np.ndarray], np.ndarray] | None = None  # applied to that mean (...) or (..., S): sqrt for rmse
    exact: bool = False  # a share of successes: Clopper-Pearson instead of the bootstrap
    from_confusion: Callable[[np.ndarray], np.ndarray] | None = None  # (R, K, K) counts -> (R,)
    intervals: bool = False  # a score of intervals of prediction, which simple models do not give


_MANY = 1000  # texts from which on a table of hashes pays
_SHORT = 4  # letters up to which it does


def places(known: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each value (N,) stands among the known ones (K,), int64 (N,); and the rows of those that are not known."""
    found = _hashed(known, column)
    if found is None:
        order = np.argsort(known, kind="stable")
        found = order[np.minimum(np.searchsorted(known[order], column), len(known) - 1)]
    return found, np.flatnonzero(known[found] != column)


def _hashed(known: np.ndarray, column: np.ndarray) -> np.ndarray | None:
    """The same for short texts, four times quicker: by a table of hashes. None where two of the known share one; what is not
    known is anywhere."""
    width = max(known.itemsize, column.itemsize) // 4
    if known.dtype.kind != "U" or column.dtype.kind != "U" or len(column) < _MANY or not 0 < width <= _SHORT:
        return None
    weights = np.uint32(0x9E3779B1) ** np.arange(1, width + 1, dtype=np.uint32)  # odd, so no letter is lost

    def places(texts: np.ndarray) -> np.ndarray:
        letters = np.ascontiguousarray(texts, f"U{width}").view(np.uint32).reshape(len(texts), width)
        total = letters[:, 0] * weights[0]
        for k in range(1, width):
            total += letters[:, k] * weights[k]
        return np.right_shift(total, 16)

    of_known = places(known)
    table = np.zeros(1 << 16, np.int64)
    table[of_known] = np.arange(len(known))
    return table[places(column)] if (table[of_known] == np.arange(len(known))).all() else None


def bare(loss: Any) -> Any:
    """A loss without the arguments that `functools.partial` put round it."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


@dataclass
class Target:
    """A kind of answer. Fields are its options and what it learned; they are its saved JSON."""

    name: ClassVar[str] = ""
    quick: ClassVar[str] = ""  # the score of every epoch, cheap on the device: "accuracy"
    quick_better: ClassVar[str] = "higher"
    labels: list[str] = field(default_factory=list)  # names of the classes, tags or numbers
    needs_truth: ClassVar[bool] = True  # False: the answers come from acting (the return of a game)
    from_inputs: ClassVar[bool] = False  # True, and `needs_truth` False: they are found in the inputs alone (clusters)
    baseline: ClassVar[str] = ""  # the kind of answer that simple models learn in its place; "": its own
    simple: ClassVar[tuple[str, ...]] = ()  # models of `baselines` that belong to it, beside those of the domain
    remembers: ClassVar[bool] = False  # whether `remember` is to be called
    learned_last: ClassVar[tuple[str, ...]] = ()  # the fields that `calibrate` sets, after the net has learned

    @classmethod
    def sniff(cls, truth: Any) -> tuple[float, str]:
        """How sure (0 to 1) that these answers are of this kind, and why."""
        return 0.0, "only when asked for"

    def take(self, truth: np.ndarray, names: list[str] | None) -> tuple[np.ndarray, list[str] | None]:
        """All answers as this target learns from them, and the names of its labels: of texts that hold several tags a
        matrix. Called before the split."""
        return truth, names

    def fit(self, truth: Any, *, own_net: bool = False) -> None:
        """Learn labels or scale from the training answers. A user's own net gets its numbers as they are."""

    def findings(self) -> list[Finding]:
        """What `fit` found out about the answers, and what it does about that."""
        return []

    def encode(self, truth: Any) -> Tensor:
        """Answers -> a tensor (N, ...)."""
        raise NotImplementedError(f"{type(self).__name__} must define encode")

    @property
    def width(self) -> int:
        """How many numbers a net must give for an example."""
        raise NotImplementedError(f"{type(self).__name__} must define width")

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """What is minimised when the user names no loss."""
        raise NotImplementedError(f"{type(self).__name__} must define loss")

    def adopt(self, loss: Any) -> None:
        """Fit what a user's own loss wants of net and answers."""

    def check(self, output: Any, truth: Tensor, loss: Any) -> None:
        """Raise a UsageError when a net's output for one batch does not fit the answers."""

    def shape_truth(self, truth: Tensor, output: Tensor) -> Tensor:
        """The truth in the shape the loss wants beside this output."""
        return truth

    def opinions(self, domain: str, examples: Examples, asked: Recipe) -> dict[str, tuple[Any, str]]:
        """Settings of the recipe that fit these answers for inputs of a domain's name, each with its reason. They go
        before the domain's own."""
        return {}

    def remember(self, output: Tensor, truth: Tensor | None, names: np.ndarray) -> None:
        """Keep what answers are compared with: the trained net's outputs on the training split, and what each example is
        called (N,). Called once after training where `remembers`."""

    def save(self, folder: Path) -> None:
        """Write into the run's folder what is too large for its JSON."""

    def open(self, folder: Path) -> None:
        """Read what `save` wrote."""

    def calibrate(self, output: Tensor, truth: Tensor) -> None:
        """Learn from the trained net's outputs on the validation split how sure its answers are. What is learned is part
        of the state (`learned_last` names the fields), and `decode` uses it."""

    def uncalibrated(self, answers: Answers) -> Answers:
        """The same answers as sure as the net was before `calibrate`."""
        return answers

    def remarks(self) -> list[str]:
        """What `calibrate` found, in sentences for the last screen and the report."""
        return []

    def decode(self, output: Tensor) -> Answers:
        """Outputs (N, ...) -> answers for people."""
        raise NotImplementedError(f"{type(self).__name__} must define decode")

    def given(self, answers: Answers) -> Answers:
        """Answers in the user's own values: the class numbers he gave, not their names."""
        return answers

    def tally(self, output: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Sums over a batch, on the device, from which `summary` makes the scores of an epoch."""
        return {}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:
        return {}

    def people(self, truth: Any) -> np.ndarray:
        """Encoded answers -> as `decode` writes them."""
        return np.asarray(truth)

    def measures(self) -> list[Measure]:
        """The scores of an evaluation; the first is the headline."""
        raise NotImplementedError(f"{type(self).__name__} must define measures")

    def written(self, truth: np.ndarray) -> Any:
        """Answers (N, ...), as `people` gives them, a cell of predictions.csv each."""
        return truth if truth.ndim == 1 else [" ".join(map(str, row)) for row in truth]

    def columns(self, answers: Answers) -> dict[str, Any]:
        """Answers -> named columns of predictions.csv."""
        found: dict[str, Any] = {"prediction": answers.prediction}
        if answers.confidence is not None:
            found["confidence"] = answers.confidence
        return found

    def state(self) -> dict[str, Any]:
        """JSON: enough to build it again with `type(self)(**state)`."""
        return dataclasses.asdict(self)
