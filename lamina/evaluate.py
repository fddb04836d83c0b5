"""What a net is worth, and how sure that is.

In: the truth of a held-out split, the `Answers` of a net, the `Measure`s of its target. Out: plain dicts for
scores.json, the terminal and the report: every score with its interval, precision and recall by class, the confusion
matrix, calibration, and the paired comparison of two nets on the same examples. Called by train, evaluate, compare and
the baselines.

How an interval is made, best first:

    exact      a share of right answers: Clopper and Pearson (1934), which never covers less than it says
    bootstrap  a score that is a function of sums over examples (means of per-example values, a confusion matrix):
               1,000 resamples in a few matrix products, bias-corrected and accelerated (BCa; Efron, 1987). Where the sum of
               a resample can be drawn at once, it is: `_Sums.drawn`
    bootstrap  any other score: up to 200 calls of `compute` on resampled rows, percentiles
    posterior  no mistake was seen, so every resample is perfect too: drawn from the confusion matrix' posterior

Examples that belong together (`groups`: a patient's scans, a writer's digits) are resampled together. Not covered: the
spread between trainings with other seeds. The interval is that of this net over other samples of the same size.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lamina import errors, keyed
from lamina.imports import loading

if TYPE_CHECKING:
    from lamina.targets.base import Answers, Measure

RESAMPLES = 1000  # of sums; fewer, down to 200, beyond 50,000 groups of examples or 220 classes
RESAMPLES_SLOW = 200  # of scores that must be computed anew each time
SECONDS_SLOW = 1.0  # and how long that may take, for each score; at least MIN_SLOW are made
MIN_SLOW = 30
FEW = 12  # examples up to which all ways of swapping two nets' answers are tried
MANY = 10_000  # examples from which on the sum of a resample is drawn from its distribution
TOGETHER = 64  # sums of a score that are drawn from a distribution together
CLASSES_MOST = 500  # beyond it a confusion matrix for every resample costs more than computing the score anew


def scores(
    measures: Sequence[Measure],
    truth: np.ndarray,
    answers: Answers,
    *,
    split: str = "test",
    seed: int = 0,
    level: float = 0.95,
    groups: np.ndarray | None = None,
    labels: Sequence | None = None,
) -> list[dict]:
    """Every measure with its interval: an entry of scores.json each, in the order of the measures.

    A measure's `each` may give (n,) values or (n, S); `finish` then takes the means (R,) or (R, S). `groups` (n,) are
    resampled whole. `labels` orders the classes in a measure's `from_confusion` (default: sorted).
    A number that does not exist is None, with the reason under "note": the value of no examples or one that is not
    finite, the interval of a single example.
    """
    truth, n = np.asarray(truth), len(truth)
    units = _Units(n, groups)
    generator = np.random.default_rng(keyed.number(seed, "bootstrap"))
    entries: list[dict] = []
    additive: dict[int, _Sums | None] = {}
    cells = cache(lambda: _cells(truth, answers, units, labels))
    for i, measure in enumerate(measures):
        entry: dict[str, Any] = {"score": measure.name, "value": None, "low": None, "high": None}
        entry |= {"split": split, "n": n, "better": measure.better, "interval": "none", "level": level}
        entries.append(entry)
        if n == 0:
            entry["note"] = "no examples"
            continue
        value = float(measure.compute(truth, answers))
        if not math.isfinite(value):
            entry["note"] = f"the score is {value}" + _culprits(measure, truth, answers)
            continue
        entry["value"] = value
        if measure.exact and groups is None:
            entry["low"], entry["high"] = map(float, clopper_pearson(value * n, n, level))
            entry["interval"] = "exact"
        elif units.count < 2:
            entry["note"] = "one example has no spread" if groups is None else "one group has no spread"
        else:
            additive[i] = _sums(measure, truth, answers, units, cells)

    # All scores that are functions of sums share the resamples, but those whose sums can be drawn at once.
    counted: dict[int, list[np.ndarray]] = {}
    draws = {i: list(sums.drawn(generator, counted)) for i, sums in additive.items() if sums is not None}
    fast = {i: sums for i, sums in additive.items() if sums is not None and not draws[i]}
    for weights in _resamples(units.count, max((sums.width for sums in fast.values()), default=0), generator):
        for i, sums in fast.items():
            draws[i].append(sums(weights))

    for i, maybe in additive.items():
        entry, value = entries[i], entries[i]["value"]
        if maybe is None:
            slow = _recomputed(partial(_at, measures[i], truth, answers), units, generator)
            entry |= _interval(value, slow, None, level)
            continue
        entry |= _interval(value, np.concatenate(draws[i]), maybe.left_out(), level)
        if entry["interval"] == "bootstrap" and entry["low"] == entry["high"]:
            entry |= _certain_too_soon(value, maybe, units.count, generator, level)
    return entries


def clopper_pearson(right, n, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The exact interval of a share, `right` of `n`; arrays welcome. (0, 1) where n is 0. Clopper and Pearson, 1934."""
    with loading():
        from scipy.special import betaincinv

    right, n = np.asarray(right, float), np.asarray(n, float)
    tail = (1 - level) / 2
    low = np.where(right > 0, betaincinv(np.maximum(right, 1e-9), n - right + 1, tail), 0.0)
    high = np.where(right < n, betaincinv(right + 1, np.maximum(n - right, 1e-9), 1 - tail), 1.0)
    return low, high


# ---------------------------------------------------------------------------------------------------- classes


def confusion(truth: np.ndarray, prediction: np.ndarray, labels: Sequence) -> np.ndarray:
    """(K, K) counts, rows the truth and columns the prediction, in the order of `labels`. Other labels are an error."""
    known, size = _known(labels, truth, prediction), len(labels)
    if len(known) > size:
        raise errors.DataError(
            f"{len(known) - size} label(s) are not among the {size} classes, such as {known[size]!r}.",
            expected=f"one of {', '.join(map(repr, known[: min(size, 10)]))}",
        )
    return np.bincount(_codes(known, truth) * size + _codes(known, prediction), minlength=size**2).reshape(size, size)


def per_class(truth: np.ndarray, prediction: np.ndarray, labels: Sequence, level: float = 0.95) -> list[dict]:
    """Precision, recall, F1 and support of every class; 0 where undefined. Exact intervals of precision and recall."""
    counts = confusion(truth, prediction, labels)
    right, support, claimed = np.diag(counts), counts.sum(1), counts.sum(0)
    columns = {"precision": _share(right, claimed), "recall": _share(right, support)}
    columns["f1"] = _share(2 * right, support + claimed)
    for name, of in (("precision", claimed), ("recall", support)):
        columns[f"{name}_low"], columns[f"{name}_high"] = clopper_pearson(right, of, level)
    return [
        {"label": label, **{name: float(column[k]) for name, column in columns.items()}, "support": int(support[k])}
        for k, label in enumerate(labels)
    ]


def confused(counts: np.ndarray, labels: Sequence, most: int = 8) -> list[dict]:
    """The pairs of classes most often taken for one another: truth, prediction, count, its share of the truth's."""
    off, support = counts - np.diag(np.diag(counts)), counts.sum(1)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = [(i, j, int(off[i, j])) for i, j in zip(*np.unravel_index(order, off.shape), strict=True) if off[i, j]]
    return [
        {"truth": labels[i], "prediction": labels[j], "count": count, "share": count / int(support[i])}
        for i, j, count in pairs
    ]


def calibration(truth, answers: Answers, labels: Sequence | None = None, *, bins: int = 15, seed: int = 0) -> dict:
    """Does 90 % sure mean right nine times in ten? {} for a net that gives no confidence, or no examples.

    "ece": expected calibration error, the mean gap between confidence and accuracy over `bins` bins of equal mass
    (Nixon et al., 2019; equal confidences stay together). "ece_chance": what a perfectly calibrated net would stay
    below 95 times in 100 with these confidences, for the error is never 0 on finitely many examples. "brier": the
    squared error of the probabilities, summed over classes (Brier, 1950); None unless `labels`, or the labels seen,
    tell which column is whose. "bins": the points of the reliability picture, with exact intervals.
    """
    confidence = answers.confidence
    if confidence is None and answers.probabilities is not None:
        confidence = answers.probabilities.max(1)
    if confidence is None or len(truth) == 0:
        return {}
    confidence = np.asarray(confidence, float)
    right = (np.asarray(truth) == np.asarray(answers.prediction)).astype(float)
    edges = np.unique(np.quantile(confidence, np.arange(1, bins) / bins))
    bin_of = np.searchsorted(edges, confidence, side="right")
    size = np.bincount(bin_of, minlength=bins)

    def error(hits: np.ndarray) -> float:
        return float(np.abs(np.bincount(bin_of, hits - confidence, bins)).sum() / len(truth))

    generator = np.random.default_rng(keyed.number(seed, "calibration"))
    chance = [error((generator.random(len(truth)) < confidence).astype(float)) for _ in range(RESAMPLES_SLOW)]
    hits, mass = np.bincount(bin_of, right, bins), np.bincount(bin_of, confidence, bins)
    low, high = clopper_pearson(hits, size)
    points = [
        {"confidence": float(mass[b] / size[b]), "accuracy": float(hits[b] / size[b]), "low": float(low[b])}
        | {"high": float(high[b]), "n": int(size[b])}
        for b in np.flatnonzero(size)
    ]
    return {
        "ece": error(right),
        "ece_chance": float(np.quantile(chance, 0.95)),
        "brier": _brier(truth, answers, labels),
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "bins": points,
    }


# ---------------------------------------------------------------------------------------------------- two nets


def compare(
    truth: np.ndarray,
    answers_a: Answers,
    answers_b: Answers,
    measure: Measure,
    seed: int = 0,
    *,
    level: float = 0.95,
    groups: np.ndarray | None = None,
    labels: Sequence | None = None,
) -> dict:
    """Is A better than B? Both answered the same examples, so differences are taken example by example.

    The interval of the difference (A minus B) is a paired bootstrap. The p-value is McNemar's exact test (1947) where
    every answer is right or wrong, else a paired permutation test: were A and B the same, their answers could be
    swapped. The verdict is certain only when both agree at `level`.
    """
    truth, n = np.asarray(truth), len(truth)
    units = _Units(n, groups)
    result: dict[str, Any] = {"score": measure.name, "better": measure.better, "n": n, "level": level}
    result |= dict.fromkeys(("value_a", "value_b", "difference", "low", "high", "p", "test", "winner"))
    result |= {"certain": False, "words": "no certain difference"}
    values = [float(measure.compute(truth, answers)) for answers in (answers_a, answers_b)] if n else [math.nan] * 2
    if units.count < 2 or not all(map(math.isfinite, values)):
        reason = "fewer than two examples" if units.count < 2 else "a score is not finite"
        return result | {"words": f"no certain difference: {reason}"}
    difference = values[0] - values[1]
    generator = np.random.default_rng(keyed.number(seed, "compare"))
    known = _known(labels, truth, answers_a.prediction, answers_b.prediction) if measure.from_confusion else None
    a, b = (
        _sums(measure, truth, answers, units, partial(_cells, truth, answers, units, known))
        for answers in (answers_a, answers_b)
    )

    shares = a is not None and b is not None and groups is None and a.shares and b.shares
    if a is not None and b is not None:
        if shares:  # each example adds -1, 0 or 1: how many of each a resample has is multinomial
            found, counts = np.unique(a.rows[:, 0] - b.rows[:, 0], return_counts=True)
            drawn = [generator.multinomial(n, counts / n, RESAMPLES) @ found / n]
        else:
            drawn = [a(weights) - b(weights) for weights in _resamples(units.count, a.width, generator)]
        left_a, left_b = a.left_out(), b.left_out()
        left = left_a - left_b if left_a is not None and left_b is not None else None
        interval = _interval(difference, np.concatenate(drawn), left, level)
    else:
        draws = _recomputed(
            lambda rows: _at(measure, truth, answers_a, rows) - _at(measure, truth, answers_b, rows), units, generator
        )
        interval = _interval(difference, draws, None, level)

    if a is not None and b is not None and shares:
        test, p = "McNemar, exact", _mcnemar(a.rows[:, 0], b.rows[:, 0])
    else:
        test, p = "paired permutation", _permutation(measure, truth, answers_a, answers_b, a, b, units, generator)

    certain = p < 1 - level and interval["low"] is not None and not interval["low"] <= 0 <= interval["high"]
    winner = ("A" if (difference > 0) == (measure.better == "higher") else "B") if certain else None
    words = f"{winner} is better for certain" if certain else "no certain difference"
    words += f": {measure.name} {values[0]:.4g} against {values[1]:.4g}"
    if interval["low"] is not None:
        words += f", difference {difference:+.3g} ({interval['low']:+.3g} to {interval['high']:+.3g})"
    words += f", p {'= ' + format(p, '.2g') if p >= 1e-4 else '< 0.0001'} ({test}, n = {n})"
    result |= {"value_a": values[0], "value_b": values[1], "difference": difference, **interval, "p": p, "test": test}
    return result | {"certain": certain, "winner": winner, "words": words}


def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """1 where `one` is better for certain than `other`, -1 where worse, 0 where nobody can tell: from two entries alone.

    The interval of the difference is put together from the two (MOVER: Zou and Donner, Statistics in Medicine 2008). It
    takes them for independent; on the same examples they agree more than that, so this errs on the side of "nobody can
    tell". `compare` is sharper where the answers are at hand.
    """
    if any(entry.get(key) is None for entry in (one, other) for key in ("value", "low", "high")):
        return 0
    difference = one["value"] - other["value"]
    low = difference - math.hypot(one["value"] - one["low"], other["high"] - other["value"])
    high = difference + math.hypot(one["high"] - one["value"], other["value"] - other["low"])
    return (-1 if one.get("better") == "lower" else 1) * (int(low > 0) - int(high < 0))


def best_of(baselines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The best of some entries of one score; None where none has a value."""
    known = [entry for entry in baselines if entry.get("value") is not None]
    return max(known, key=lambda e: -e["value"] if e.get("better") == "lower" else e["value"]) if known else None


def beats(headline: Mapping[str, Any], baseline: Mapping[str, Any]) -> int:
    """1 where the net is better than a baseline for certain, -1 where worse, 0 where nobody can tell.

    By the paired comparison of their answers (`paired` in the baseline's entry), else by the two intervals.
    """
    if "paired" in baseline:
        return {"A": 1, "B": -1}.get(baseline["paired"]["winner"], 0)
    return apart(headline, baseline)


def _mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> float:
    """Two-sided binomial test on the examples that exactly one of the two got right."""
    with loading():
        from scipy.special import bdtr

    only_a, only_b = int(((right_a == 1) & (right_b == 0)).sum()), int(((right_a == 0) & (right_b == 1)).sum())
    if only_a + only_b == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def _permutation(
    measure: Measure, truth, answers_a: Answers, answers_b: Answers, a: _Sums | None, b: _Sums | None, units, generator
) -> float:
    """How often a difference as large turns up when the two answers to an example are swapped by the toss of a coin."""
    if a is None or b is None:

        def difference(swap: np.ndarray) -> float:
            swap = swap[units.of].astype(bool)
            one, other = _mixed(answers_a, answers_b, swap), _mixed(answers_b, answers_a, swap)
            return float(measure.compute(truth, one)) - float(measure.compute(truth, other))

        seen = difference(np.zeros(units.count))
        drawn = _bounded(lambda: difference(generator.integers(0, 2, units.count)))
    else:
        total_a, total_b = (np.asarray(sums.rows.sum(0)).reshape(1, -1) for sums in (a, b))
        change, n, pieces = b.rows - a.rows, a.sizes.sum(), []
        seen = (a.finish(total_a, np.array([n])) - b.finish(total_b, np.array([n])))[0]
        for swap in _coins(units.count, a.width, generator):
            moved, count = np.asarray(swap @ change), np.full(len(swap), n)
            pieces.append(a.finish(total_a + moved, count) - b.finish(total_b - moved, count))
        drawn = np.concatenate(pieces)
    drawn = drawn[np.isfinite(drawn)]
    sizes = np.abs(drawn)
    as_large = int((sizes >= abs(seen) - 1e-9 * sizes.max(initial=0)).sum())  # rounding must not tell equals apart
    every = a is not None and units.count <= FEW
    return as_large / len(drawn) if every else (1 + as_large) / (1 + len(drawn))


# ---------------------------------------------------------------------------------------------------- resampling


class _Units:
    """What is drawn: examples, or whole groups of them. `of` (n,) tells whose an example is."""

    def __init__(self, n: int, groups: np.ndarray | None):
        self.of = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        if len(self.of) != n:
            raise errors.UsageError(f"There are {len(self.of)} groups for {n} examples.", expected="one an example")
        self.count = int(self.of.max()) + 1 if n else 0
        self.single = groups is None


@dataclass(frozen=True)
class _Sums:
    """A score as a function of sums over units: a resample is a row of weights, and 1,000 are a matrix product."""

    rows: Any  # (units, S) what each unit adds; sparse where S is the K x K cells of a confusion matrix
    sizes: np.ndarray  # (units,) examples in each
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray]  # sums (R, S), examples (R,) -> scores (R,)
    cells: bool  # S are the cells of a confusion matrix
    shares: bool  # a plain mean of zeros and ones

    @property
    def width(self) -> int:
        return self.rows.shape[1]

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """weights (R, units), how often each unit was drawn -> scores (R,)"""
        return self._scores(np.asarray(weights @ self.rows), weights @ self.sizes)

    def _scores(self, sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(self.finish(sums, sizes), float)

    def drawn(self, generator: np.random.Generator, counted: dict[int, list[np.ndarray]]) -> Iterator[np.ndarray]:
        """Pieces (R,) of scores of resamples, whose sums are drawn without drawing units; none where that cannot be done.

        The cells of a confusion matrix have a multinomial distribution, which is the very one of resampled examples. One
        value an example: the sum of MANY is drawn from the gamma distribution (shifted, scaled) of its mean, variance and
        skewness. What is left is the excess kurtosis of that sum, which moves an end of the interval by less than
        a hundredth of half its width, a tenth of the noise of 1,000 resamples. Several values an example: their sums are drawn
        from the normal distribution of their means and covariances, where none is skewed.

        counted: drawn cells, which all scores of one confusion matrix share where they are few enough to be kept.
        """
        n = len(self.sizes)
        if n < MANY or self.sizes.max() > 1:
            return
        if self.cells:
            counts = np.asarray(self.rows.sum(0)).reshape(-1)
            full = np.flatnonzero(counts)
            if len(full) > n // 10:  # then to draw units costs less
                return

            def pieces() -> Iterator[np.ndarray]:
                for piece in _pieces(0, self.width, RESAMPLES):
                    sums = np.zeros((piece, self.width))
                    sums[:, full] = generator.multinomial(n, counts[full] / n, piece)
                    yield sums

            shared = counted.get(id(self.rows))
            if shared is None and self.width * RESAMPLES <= 2_000_000:  # numbers
                shared = counted[id(self.rows)] = list(pieces())
            for sums in pieces() if shared is None else shared:
                yield self._scores(sums, np.full(len(sums), float(n)))
        elif self.width == 1 and np.ptp(self.rows) > 0:
            values = self.rows[:, 0]
            mean, deviation = values.mean(), values.std()
            apart = (values - mean) / deviation
            squares = apart * apart  # many times faster than a power
            skewness = (squares * apart).mean() / math.sqrt(n)  # of the sum
            kurtosis = ((squares * squares).mean() - 3) / n
            if not kurtosis < 0.1:
                return
            shape = 4 / max(abs(skewness), 1e-4) ** 2
            standard = (generator.standard_gamma(shape, RESAMPLES) - shape) / math.sqrt(shape)
            sums = n * mean + math.sqrt(n) * deviation * math.copysign(1, skewness) * standard
            yield self._scores(sums[:, None], np.full(RESAMPLES, float(n)))
        elif 1 < self.width <= TOGETHER:
            mean = self.rows.mean(0)
            apart = self.rows - mean
            deviation = apart.std(0)
            standard = apart / np.where(deviation > 0, deviation, 1)
            cubes = standard * standard * standard
            skewness, kurtosis = cubes.mean(0) / math.sqrt(n), ((cubes * standard).mean(0) - 3) / n
            if abs(skewness).max() < 0.1 and kurtosis.max() < 0.1:
                drawn = generator.multivariate_normal(
                    np.zeros(self.width), apart.T @ apart / n, RESAMPLES, method="eigh"
                )
                yield self._scores(n * mean + math.sqrt(n) * drawn, np.full(RESAMPLES, float(n)))

    def left_out(self) -> np.ndarray | None:
        """(units,) the score without each unit (the jackknife); None where that costs too much."""
        total, n, sizes = np.asarray(self.rows.sum(0)).reshape(1, -1), self.sizes.sum(), self.sizes
        of: Any = slice(None)
        if not self.cells:
            without = total - self.rows
        else:  # to leave out an example is to take one from its cell, and there are few different cells
            cells = np.flatnonzero(total)
            number = np.zeros(total.size, np.int64)
            number[cells] = np.arange(len(cells))
            of = number[self.rows.indices]
            if self.rows.nnz != len(sizes) or sizes.max() > 1 or len(cells) * total.size > 2e7:
                return None
            without, sizes = np.repeat(total, len(cells), 0), np.ones(len(cells))
            without[np.arange(len(cells)), cells] -= 1
        with np.errstate(all="ignore"):
            return np.asarray(self.finish(without, n - sizes), float)[of]


def _cells(truth, answers: Answers, units: _Units, labels: Sequence | None) -> tuple[int, Any]:
    """K, and what each unit adds to the K x K cells of the confusion matrix: sparse, None where there are too many."""
    with loading():
        from scipy.sparse import csr_array

    known, n = _known(labels, truth, answers.prediction), len(truth)
    size = len(known)
    if size > CLASSES_MOST:
        return size, None
    cell = _codes(known, truth) * size + _codes(known, answers.prediction)
    return size, csr_array((np.ones(n), (units.of, cell)), shape=(units.count, size**2))


def _sums(
    measure: Measure, truth, answers: Answers, units: _Units, cells: Callable[[], tuple[int, Any]]
) -> _Sums | None:
    """The measure as a function of sums, where it says how. cells: gives those of the confusion matrix."""
    with loading():
        from scipy.sparse import csr_array

    n = len(truth)
    sizes = np.bincount(units.of, minlength=units.count).astype(float)
    if measure.each is not None:
        values = np.asarray(measure.each(truth, answers), float)
        flat, rows = values.ndim == 1, values.reshape(n, -1)
        shares = flat and measure.finish is None and bool(np.isin(values, (0, 1)).all())
        if not units.single:
            rows = csr_array((np.ones(n), (units.of, np.arange(n))), shape=(units.count, n)) @ rows

        def of_means(sums: np.ndarray, count: np.ndarray) -> np.ndarray:
            means = sums / count[:, None]
            means = means[:, 0] if flat else means
            return measure.finish(means) if measure.finish else means

        return _Sums(rows, sizes, of_means, cells=False, shares=shares)
    if measure.from_confusion is not None:
        (size, counts), of_counts = cells(), measure.from_confusion
        if counts is not None:
            return _Sums(
                counts, sizes, lambda sums, _: of_counts(sums.reshape(-1, size, size)), cells=True, shares=False
            )
    return None


def _pieces(units: int, width: int, most: int) -> Iterator[int]:
    """How many resamples, as the sizes of pieces that fit in memory: fewer where there are many units or wide sums."""
    wide = max(units, width)
    left = int(np.clip(5e7 // wide, RESAMPLES_SLOW, most)) if width else 0
    while left:
        piece = min(left, max(1, int(2e6 // wide)))
        left -= piece
        yield piece


def _resamples(units: int, width: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Pieces (R, units) of weights: how often each unit is drawn when `units` are drawn with replacement."""
    for piece in _pieces(units, width, RESAMPLES):
        drawn = generator.integers(0, units, (piece, units)) + np.arange(piece)[:, None] * units
        yield np.bincount(drawn.reshape(-1), minlength=piece * units).reshape(piece, units).astype(float)


def _coins(units: int, width: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Pieces (R, units) of zeros and ones; all 2**units of them when there are few units."""
    if units <= FEW:
        yield (np.arange(2**units)[:, None] >> np.arange(units) & 1).astype(float)
        return
    for piece in _pieces(units, width, 2 * RESAMPLES):
        yield generator.integers(0, 2, (piece, units), dtype=np.int8).astype(float)


def _bounded(draw: Callable[[], float]) -> np.ndarray:
    """Up to RESAMPLES_SLOW draws, fewer when they are slow."""
    start = time.perf_counter()
    drawn: list[float] = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a resample may lack a class; that is what nan is for
        while len(drawn) < RESAMPLES_SLOW and (len(drawn) < MIN_SLOW or time.perf_counter() - start < SECONDS_SLOW):
            drawn.append(draw())
    return np.array(drawn)


def _recomputed(statistic: Callable[[np.ndarray], float], units: _Units, generator: np.random.Generator) -> np.ndarray:
    """The statistic of resampled rows, again and again."""

    def draw() -> float:
        times = np.bincount(generator.integers(0, units.count, units.count), minlength=units.count)
        return statistic(np.repeat(np.arange(len(units.of)), times[units.of]))

    return _bounded(draw)


def _at(measure: Measure, truth, answers: Answers, rows: np.ndarray) -> float:
    return float(measure.compute(truth[rows], answers[rows]))


def _interval(value: float, draws: np.ndarray, left_out: np.ndarray | None, level: float) -> dict:
    """BCa where the jackknife is known, percentiles otherwise, the normal one from fewer than 100 draws."""
    with loading():
        from scipy.special import ndtr, ndtri

    finite = draws[np.isfinite(draws)]
    if len(finite) < max(2, len(draws) / 2):
        note = "the score does not exist in most resamples"
        return {"low": None, "high": None, "interval": "none", "note": note}
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if len(finite) < 100:
        low, high = value + ndtri(tails) * finite.std(ddof=1)
    else:
        if left_out is not None and np.isfinite(left_out).all() and np.ptp(left_out) > 0:
            below = ((finite < value).mean() + (finite <= value).mean()) / 2
            if 0 < below < 1:
                apart = left_out.mean() - left_out
                squares = apart * apart
                acceleration = (squares * apart).sum() / (6 * squares.sum() ** 1.5)
                bias = ndtri(below)
                shifted = bias + ndtri(tails)
                tails = ndtr(bias + shifted / (1 - acceleration * shifted))
        low, high = np.quantile(finite, tails)
    ends = {"low": float(min(low, value)), "high": float(max(high, value))}
    return ends | {"interval": "bootstrap", "resamples": len(finite)}


def _certain_too_soon(value: float, sums: _Sums, units: int, generator: np.random.Generator, level: float) -> dict:
    """Every resample gave the same number: nothing varied, which is not certainty. What can be said instead.

    Of zeros and ones: the exact interval. Of a confusion matrix: draws from its Dirichlet posterior under a prior worth
    one example spread over all cells (Perks, 1947), so that a class of three without a mistake is no sure thing.
    """
    if sums.shares:
        low, high = clopper_pearson(value * units, units, level)
        return {"low": float(low), "high": float(high), "interval": "exact"}
    if not sums.cells:
        return {"note": "every resample gave the same score"}
    counts = np.asarray(sums.rows.sum(0)).reshape(-1)
    size = math.isqrt(len(counts))
    table = counts.reshape(size, size)
    seen = (table.sum(0) + table.sum(1)) > 0
    prior = np.outer(seen, seen).reshape(-1) / seen.sum() ** 2
    how_many = int(np.clip(2e7 // len(counts), 100, RESAMPLES))
    drawn = generator.standard_gamma(counts * units / counts.sum() + prior, (how_many, len(counts)))
    drawn *= counts.sum() / drawn.sum(1, keepdims=True)
    low, high = np.quantile(sums.finish(drawn, drawn.sum(1)), [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(min(low, value)), "high": float(max(high, value)), "interval": "posterior"}


def _culprits(measure: Measure, truth, answers: Answers) -> str:
    """Which examples make a score infinite or undefined, where the measure can tell."""
    if measure.each is None:
        return ""
    values = np.asarray(measure.each(truth, answers), float).reshape(len(truth), -1)
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    return f": {errors.rows(bad)}" if len(bad) else ""


def _mixed(one: Answers, other: Answers, swap: np.ndarray) -> Answers:
    """`one`, with the other's answers in the rows where `swap` (n,) is true."""

    def mix(a, b):
        return None if a is None or b is None else np.where(swap.reshape(-1, *[1] * (np.ndim(a) - 1)), b, a)

    return replace(one, **{part.name: mix(getattr(one, part.name), getattr(other, part.name)) for part in fields(one)})


def _known(labels: Sequence | None, *columns: np.ndarray) -> list:
    """The labels as given, then those met in the columns that were not, sorted."""
    given = [] if labels is None else np.asarray(labels).tolist()
    met = {label for column in columns for label in np.unique(column).tolist()} - set(given)
    return given + sorted(met, key=lambda label: (str(type(label)), label))


def _codes(known: list, column: np.ndarray) -> np.ndarray:
    """Labels -> their places among the known, int64 (n,)."""
    from lamina.targets.base import places  # torch is loaded where there are answers

    column, names = np.asarray(column), np.asarray(known)
    if column.dtype.kind == names.dtype.kind == "U" and all(isinstance(label, str) for label in known):
        return places(names, column)[0]
    place = {label: k for k, label in enumerate(known)}
    return np.array([place[label] for label in column.tolist()], np.int64)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


def _brier(truth, answers: Answers, labels: Sequence | None) -> float | None:
    if answers.probabilities is None:
        return None
    n, size = answers.probabilities.shape
    known = _known(labels, truth, answers.prediction)
    if len(known) != size:
        return None  # which column is whose is not known
    wrong = np.array(answers.probabilities, float)
    wrong[np.arange(n), _codes(known, truth)] -= 1
    return float((wrong**2).sum(1).mean())
