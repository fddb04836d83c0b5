"""Intervals, tables by class, calibration and comparison against closed forms, brute force, scipy and scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina import evaluate
from lamina.errors import DataError, UsageError
from lamina.targets.base import Answers, Measure, places

LABELS = ["cat", "dog", "owl"]


def hits(truth, answers):
    return (truth == answers.prediction).astype(float)


def squares(truth, answers):
    return np.square(truth - answers.prediction)


def macro(counts):
    """Macro F1 over the classes that occur: (R, K, K) -> (R,)"""
    right, both = np.einsum("rkk->rk", counts), counts.sum(1) + counts.sum(2)
    seen = both > 0
    return (np.divide(2 * right, both, where=seen, out=np.zeros(both.shape)) * seen).sum(1) / seen.sum(1)


def macro_of(truth, answers):
    classes = np.unique(np.concatenate([truth, answers.prediction]))
    return float(
        macro(np.array([[[((truth == i) & (answers.prediction == j)).sum() for j in classes] for i in classes]]))[0]
    )


def r2_rows(truth, answers):
    return np.stack([squares(truth, answers), truth, truth**2], 1)


def r2_of_means(means):
    with np.errstate(all="ignore"):
        return 1 - means[:, 0] / (means[:, 2] - means[:, 1] ** 2)


ACCURACY = Measure("accuracy", lambda t, a: float(hits(t, a).mean()), each=hits, exact=True)
SHARE = Measure("share", lambda t, a: float(hits(t, a).mean()), each=hits)
F1 = Measure("f1", macro_of, from_confusion=macro)
RMSE = Measure("rmse", lambda t, a: float(np.sqrt(squares(t, a).mean())), "lower", each=squares, finish=np.sqrt)
R2 = Measure("r2", lambda t, a: float(r2_of_means(r2_rows(t, a).mean(0)[None])[0]), each=r2_rows, finish=r2_of_means)


def classes_at(accuracy: float, n: int, seed: int = 0, labels=LABELS):
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(labels), n)
    wrong = (truth + random.integers(1, len(labels), n)) % len(labels)
    prediction = np.where(random.random(n) < accuracy, truth, wrong)
    return np.asarray(labels)[truth], Answers(np.asarray(labels)[prediction])


def numbers_at(noise: float, n: int, seed: int = 0):
    random = np.random.default_rng(seed)
    truth = random.normal(size=n)
    return truth, Answers(truth + noise * random.standard_exponential(n) * random.choice([-1, 1], n))


def same(ours: tuple[float, float], theirs: tuple[float, float], share: float) -> bool:
    """Both ends within a share of the interval's width: two bootstraps differ by their draws."""
    return np.allclose(ours, theirs, atol=share * (theirs[1] - theirs[0]), rtol=0)


# ---------------------------------------------------------------------------------------------------- intervals


@settings(deadline=None)
@given(
    st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95, 0.99])
)
def test_the_exact_interval_is_scipys(case, level):
    from scipy.stats import binomtest

    right, n = case
    theirs = binomtest(right, n).proportion_ci(level, method="exact")
    assert np.allclose(evaluate.clopper_pearson(right, n, level), (theirs.low, theirs.high), atol=1e-9)


def test_the_exact_interval_of_nothing_is_everything():
    low, high = evaluate.clopper_pearson([0, 3], [0, 3])
    assert (low[0], high[0]) == (0, 1) and high[1] == 1


def test_accuracy_has_the_shape_of_a_headline():
    truth, answers = classes_at(0.9, 360)
    (entry,) = evaluate.scores([ACCURACY], truth, answers)
    right = int(hits(truth, answers).sum())
    low, high = evaluate.clopper_pearson(right, 360)
    assert entry == {"score": "accuracy", "value": right / 360, "low": low, "high": high, "split": "test", "n": 360} | {
        "better": "higher",
        "interval": "exact",
        "level": 0.95,
    }
    json.dumps(entry, allow_nan=False)


@pytest.mark.parametrize("measure", [RMSE, R2], ids=lambda measure: measure.name)
def test_a_score_of_means_has_scipys_bca_interval(measure):
    from scipy.stats import bootstrap

    truth, answers = numbers_at(0.5, 80)
    (entry,) = evaluate.scores([measure], truth, answers)
    theirs = bootstrap(
        (truth, answers.prediction),
        lambda t, p: measure.compute(t, Answers(p)),
        paired=True,
        vectorized=False,
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert same((entry["low"], entry["high"]), theirs, 0.12)
    assert entry["value"] == pytest.approx(measure.compute(truth, answers), rel=1e-12)


def test_a_score_of_a_confusion_matrix_has_scipys_bca_interval():
    from scipy.stats import bootstrap

    truth, answers = classes_at(0.8, 70)
    (entry,) = evaluate.scores([F1], truth, answers)
    numbers = [np.searchsorted(LABELS, column) for column in (truth, answers.prediction)]

    def statistic(t, p):
        return float(macro(np.bincount(t * 3 + p, minlength=9).reshape(1, 3, 3))[0])

    theirs = bootstrap(
        numbers, statistic, paired=True, vectorized=False, n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert entry["interval"] == "bootstrap" and same((entry["low"], entry["high"]), theirs, 0.12)


def surprises(skewed: bool, n: int, seed: int = 0):
    """Losses of a net that is sure of itself, and seldom wrong."""
    random = np.random.default_rng(seed)
    wrong = random.random(n) < 0.02
    return np.zeros(n), Answers(
        np.sqrt(np.where(wrong, random.exponential(3, n), random.exponential(0.02, n))) + skewed
    )


@pytest.mark.parametrize("case", ["cells", "values", "skewed values"])
def test_sums_of_many_examples_drawn_at_once_are_those_of_resampled_examples(case, monkeypatch):
    """Ends within the noise of 1,000 resamples: a tenth of a standard deviation, of which an interval has four."""
    cells = case == "cells"
    truth, answers = classes_at(0.9, 12_000) if cells else surprises(case == "values", 12_000)
    measure = F1 if cells else RMSE
    at_once = [evaluate.scores([measure], truth, answers, seed=seed)[0] for seed in range(6)]
    monkeypatch.setattr(evaluate, "MANY", 10**9)
    drawn = [evaluate.scores([measure], truth, answers, seed=seed)[0] for seed in range(6)]
    ends = [[np.mean([entry[end] for entry in entries]) for end in ("low", "high")] for entries in (at_once, drawn)]
    assert same(*ends, 0.03) and {entry["resamples"] for entry in (*at_once, *drawn)} == {1000}
    assert len({entry["low"] for entry in at_once}) == 6


def test_examples_are_drawn_where_their_sum_is_far_from_known_distributions(monkeypatch):
    truth, answers = numbers_at(0.5, 10_000)
    drawn = []
    resamples = evaluate._resamples
    monkeypatch.setattr(evaluate, "_resamples", lambda *asked: (drawn.append(w) or w for w in resamples(*asked)))
    evaluate.scores([RMSE], truth, answers)
    assert not drawn
    answers.prediction[7] += 1e3  # one example is nearly all of the sum
    evaluate.scores([RMSE], truth, answers)
    assert drawn
    drawn.clear()
    evaluate.scores([RMSE], *numbers_at(0.5, 10_000), groups=np.arange(10_000) // 2)
    assert drawn


def test_a_score_that_says_nothing_of_itself_is_computed_anew():
    truth, answers = numbers_at(0.5, 150)
    plain = Measure("rmse", RMSE.compute, "lower")
    fast, slow = evaluate.scores([RMSE, plain], truth, answers)
    assert slow["resamples"] == 200 and fast["resamples"] == 1000
    assert same((slow["low"], slow["high"]), (fast["low"], fast["high"]), 0.25)


def test_a_slow_score_stops_early_and_says_so(monkeypatch):
    monkeypatch.setattr(evaluate, "SECONDS_SLOW", 0.0)
    truth, answers = numbers_at(0.5, 150)
    fast, slow = evaluate.scores([RMSE, Measure("rmse", RMSE.compute, "lower")], truth, answers)
    assert slow["resamples"] == 30
    assert same((slow["low"], slow["high"]), (fast["low"], fast["high"]), 0.5)


@pytest.mark.parametrize("measure", [ACCURACY, SHARE, F1, RMSE], ids=lambda measure: measure.name)
def test_intervals_cover_as_often_as_they_say(measure):
    """95 in 100 is promised; over 300 trials no fewer than 90."""
    make = numbers_at if measure is RMSE else classes_at
    truth_at_large = measure.compute(*make(0.8, 400_000, seed=999)) if measure is not F1 else 0.8
    covered = 0
    for seed in range(300):
        (entry,) = evaluate.scores([measure], *make(0.8, 60, seed=seed), seed=seed)
        covered += entry["low"] <= truth_at_large <= entry["high"]
    assert covered >= 300 * 0.90


def test_no_mistake_seen_is_not_certainty():
    truth, _ = classes_at(1, 90)
    right = Answers(truth.copy())
    accuracy, share, f1 = evaluate.scores([ACCURACY, SHARE, F1], truth, right)
    assert (accuracy["value"], accuracy["high"]) == (1, 1) and accuracy["low"] == pytest.approx(0.025 ** (1 / 90))
    assert (share["low"], share["high"]) == (accuracy["low"], 1)
    assert f1["interval"] == "posterior" and f1["value"] == f1["high"] == 1
    assert 1 - f1["low"] == pytest.approx(1 - accuracy["low"], rel=0.4)


def test_a_class_of_three_without_a_mistake_is_no_sure_thing():
    balanced = np.repeat(LABELS, 100)
    rare = np.repeat(LABELS, [149, 148, 3])
    low = [evaluate.scores([F1], truth, Answers(truth.copy()))[0]["low"] for truth in (balanced, rare)]
    assert low[1] < low[0] - 0.03


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly_so():
    truth, answers = numbers_at(0.5, 200)
    first, again = (evaluate.scores([RMSE, R2], truth, answers, seed=3) for _ in range(2))
    other = evaluate.scores([RMSE, R2], truth, answers, seed=4)
    assert first == again and first != other
    assert same((first[0]["low"], first[0]["high"]), (other[0]["low"], other[0]["high"]), 0.2)


def test_examples_that_belong_together_are_drawn_together():
    """Every example four times over adds nothing: with groups the interval stays, without it halves."""
    truth, answers = classes_at(0.8, 100)
    fourfold = np.repeat(np.arange(100), 4)
    numbers, guesses = numbers_at(0.5, 100)
    for measure, t, a in ((SHARE, truth, answers), (F1, truth, answers), (RMSE, numbers, guesses)):
        (once,) = evaluate.scores([measure], t, a)
        (grouped,) = evaluate.scores([measure], t[fourfold], a[fourfold], groups=fourfold)
        (naive,) = evaluate.scores([measure], t[fourfold], a[fourfold])
        assert same((grouped["low"], grouped["high"]), (once["low"], once["high"]), 0.15), measure.name
        assert naive["high"] - naive["low"] == pytest.approx((once["high"] - once["low"]) / 2, rel=0.2)
    (accuracy,) = evaluate.scores([ACCURACY], truth[fourfold], answers[fourfold], groups=fourfold)
    assert accuracy["interval"] == "bootstrap"


def test_a_measure_computed_anew_draws_groups_too():
    truth, answers = numbers_at(0.5, 60)
    fourfold = np.repeat(np.arange(60), 4)
    plain = Measure("rmse", RMSE.compute, "lower")
    (grouped,) = evaluate.scores([plain], truth[fourfold], answers[fourfold], groups=fourfold)
    (once,) = evaluate.scores([RMSE], truth, answers)
    assert same((grouped["low"], grouped["high"]), (once["low"], once["high"]), 0.3)


def test_groups_of_another_length_are_an_error():
    with pytest.raises(UsageError, match="3 groups for 10 examples"):
        evaluate.scores([SHARE], *classes_at(0.8, 10), groups=np.arange(3))


@pytest.mark.parametrize("measure", [ACCURACY, F1, RMSE, R2], ids=lambda measure: measure.name)
def test_no_example_and_a_single_one(measure):
    none = evaluate.scores([measure], np.zeros(0), Answers(np.zeros(0)))[0]
    assert (none["value"], none["low"], none["high"], none["interval"]) == (None, None, None, "none")
    assert none["note"] == "no examples" and none["n"] == 0
    one = evaluate.scores([measure], np.ones(1), Answers(np.ones(1)))[0]
    if measure is ACCURACY:
        assert (one["value"], one["low"], one["high"]) == (1, pytest.approx(0.025), 1)
    elif measure is R2:  # no variance to explain
        assert one["value"] is None and "nan" in one["note"]
    else:
        assert one["value"] is not None and one["low"] is None and one["note"] == "one example has no spread"
    json.dumps([none, one], allow_nan=False)


def test_a_score_that_is_not_finite_names_the_examples():
    truth, answers = numbers_at(0.5, 20)
    answers.prediction[[3, 17]] = np.inf
    (entry,) = evaluate.scores([RMSE], truth, answers)
    assert entry["value"] is None and entry["note"] == "the score is inf: rows 3, 17"
    (clean,) = evaluate.scores([RMSE], *numbers_at(0.5, 20))
    assert "note" not in clean


def test_a_score_undefined_in_most_resamples_has_no_interval():
    once = Measure("once", lambda t, a: 1.0 if len(np.unique(t)) == len(t) else math.nan)
    (entry,) = evaluate.scores([once], np.arange(30.0), Answers(np.arange(30.0)))
    assert entry["value"] == 1 and entry["low"] is None and "most resamples" in entry["note"]


# ---------------------------------------------------------------------------------------------------- classes


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1, max_size=40))
def test_tables_by_class_are_scikit_learns(pairs):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    truth, prediction = map(np.array, zip(*pairs, strict=True))
    order = LABELS[::-1]
    assert (evaluate.confusion(truth, prediction, order) == confusion_matrix(truth, prediction, labels=order)).all()
    theirs = precision_recall_fscore_support(truth, prediction, labels=order, zero_division=0)
    rows = evaluate.per_class(truth, prediction, order)
    assert [row["label"] for row in rows] == order
    for name, column in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert np.allclose([row[name] for row in rows], column), name
    for row in rows:
        assert row["recall_low"] <= row["recall"] <= row["recall_high"] or not row["support"]
    json.dumps(rows, allow_nan=False)


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(DataError, match="'cow'"):
        evaluate.confusion(np.array(["cat", "cow"]), np.array(["cat", "cat"]), LABELS)


def test_the_order_of_a_measures_classes_is_the_one_given():
    """F1 of the second class depends on which is second."""
    second = Measure("f1", lambda t, a: 0.5, from_confusion=lambda c: c[:, 1, 1] / np.maximum(c[:, 1].sum(1), 1))
    truth, prediction = np.repeat(["a", "b"], 50), np.repeat(["a", "b", "a"], [50, 5, 45])
    high = [
        evaluate.scores([second], truth, Answers(prediction), labels=order)[0] for order in (["a", "b"], ["b", "a"])
    ]
    assert high[0]["low"] < 0.15 and high[1]["high"] == 1


def test_the_pairs_most_taken_for_one_another():
    counts = np.array([[8, 2, 0], [0, 9, 1], [3, 0, 7]])
    assert evaluate.confused(counts, LABELS, most=2) == [
        {"truth": "owl", "prediction": "cat", "count": 3, "share": 0.3},
        {"truth": "cat", "prediction": "dog", "count": 2, "share": 0.2},
    ]
    assert evaluate.confused(np.diag([3, 4, 5]), LABELS) == []


# ---------------------------------------------------------------------------------------------------- calibration


def confident(n: int, power: float, seed: int = 0):
    """Truths drawn from known probabilities, and a net that says those raised to a power: above 1 it is too sure."""
    random = np.random.default_rng(seed)
    honest = random.dirichlet(np.full(3, 0.5), n)
    truth = (honest.cumsum(1) < random.random((n, 1))).sum(1).clip(max=2)
    said = honest**power / (honest**power).sum(1, keepdims=True)
    names = np.asarray(LABELS)
    return names[truth], Answers(names[said.argmax(1)], said.max(1), said)


def test_calibration_is_the_definition_written_out():
    truth, answers = confident(450, 2.0)
    found = evaluate.calibration(truth, answers, LABELS)
    order = np.argsort(answers.confidence)
    bins = np.array_split(order, 15)  # 30 each, no two confidences alike
    right = hits(truth, answers)
    gaps = [abs(right[rows].mean() - answers.confidence[rows].mean()) * len(rows) for rows in bins]
    assert found["ece"] == pytest.approx(sum(gaps) / 450)
    assert [point["n"] for point in found["bins"]] == [30] * 15
    assert found["bins"][3]["accuracy"] == pytest.approx(right[bins[3]].mean())
    onehot = truth[:, None] == np.array(LABELS)
    assert found["brier"] == pytest.approx(np.square(answers.probabilities - onehot).sum(1).mean())
    json.dumps(found, allow_nan=False)


def test_a_net_too_sure_is_told_from_an_honest_one():
    honest, sure = (evaluate.calibration(*confident(2000, power), LABELS) for power in (1.0, 3.0))
    assert honest["ece"] < honest["ece_chance"] < sure["ece"] / 3
    assert sure["confidence"] - sure["accuracy"] > 0.05


def test_equal_confidences_stay_in_one_bin():
    truth = np.repeat(["cat", "dog"], [75, 25])
    found = evaluate.calibration(truth, Answers(np.full(100, "cat"), np.full(100, 0.75)))
    assert found["ece"] == pytest.approx(0) and len(found["bins"]) == 1 and found["brier"] is None


def test_no_confidence_no_calibration():
    truth, answers = classes_at(0.9, 10)
    assert evaluate.calibration(truth, answers) == {}
    assert evaluate.calibration(truth[:0], Answers(truth[:0], np.zeros(0))) == {}


# ---------------------------------------------------------------------------------------------------- two nets


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_mcnemar_is_the_binomial_test_on_the_examples_that_differ(pairs):
    from scipy.stats import binomtest

    right_a, right_b = np.array(pairs).T
    truth = np.ones(len(pairs))
    found = evaluate.compare(truth, Answers(right_a.astype(float)), Answers(right_b.astype(float)), ACCURACY)
    only_a, only_b = (right_a & ~right_b).sum(), (right_b & ~right_a).sum()
    assert found["test"] == "McNemar, exact"
    assert found["p"] == pytest.approx(binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0)
    assert found["difference"] == pytest.approx((only_a - only_b) / len(pairs))


@pytest.mark.parametrize("measure", [RMSE, Measure("mse", lambda t, a: squares(t, a).mean(), "lower", each=squares)])
def test_few_examples_are_permuted_in_all_ways_as_scipy_does(measure):
    from scipy.stats import permutation_test

    truth, a = numbers_at(0.5, 8, seed=1)
    b = Answers(truth + 2 * (numbers_at(0.5, 8, seed=2)[1].prediction - numbers_at(0.5, 8, seed=2)[0]))
    found = evaluate.compare(truth, a, b, measure)
    finish = measure.finish or (lambda mean: mean)
    theirs = permutation_test(
        (squares(truth, a), squares(truth, b)),
        lambda one, other: finish(one.mean()) - finish(other.mean()),
        permutation_type="samples",
        vectorized=False,
    )
    assert found["p"] == pytest.approx(theirs.pvalue) and found["test"] == "paired permutation"


def test_many_examples_give_scipys_p_up_to_the_draws():
    from scipy.stats import permutation_test

    truth, a = numbers_at(0.5, 60, seed=1)
    b = Answers(truth + 1.25 * (a.prediction - truth)[::-1])
    p = [evaluate.compare(truth, a, b, measure)["p"] for measure in (RMSE, Measure("rmse", RMSE.compute, "lower"))]
    theirs = permutation_test(
        (squares(truth, a), squares(truth, b)),
        lambda one, other, axis: np.sqrt(one.mean(axis)) - np.sqrt(other.mean(axis)),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue
    assert p[0] == pytest.approx(theirs, abs=0.04) and p[1] == pytest.approx(theirs, abs=0.12)


def test_a_better_net_is_found_and_named():
    truth, good = classes_at(0.9, 500)
    bad = Answers(np.where(np.arange(500) % 7 == 0, "cat", good.prediction))
    for measure in (ACCURACY, SHARE, F1, Measure("f1", F1.compute)):
        there, back = evaluate.compare(truth, good, bad, measure), evaluate.compare(truth, bad, good, measure)
        assert there["certain"] and there["winner"] == "A" and there["words"].startswith("A is better for certain")
        assert back["winner"] == "B" and back["difference"] == -there["difference"]
        assert there["low"] > 0 and back["high"] < 0
    lower = evaluate.compare(*[np.zeros(50)], *(Answers(np.full(50, x) + np.arange(50) / 1e3) for x in (1, 2)), RMSE)
    assert lower["winner"] == "A" and lower["difference"] < 0
    json.dumps(there, allow_nan=False)


def test_equal_nets_are_seldom_told_apart():
    """A false alarm in 20 is the price; over 200 trials no more than one in ten."""
    alarms = 0
    for seed in range(100):
        truth, a = classes_at(0.8, 80, seed=2 * seed)
        b = Answers(np.where(np.arange(80) % 2, a.prediction, np.roll(truth, 1)))
        c = Answers(np.where(np.arange(80) % 2, np.roll(truth, 1), a.prediction))
        alarms += (
            evaluate.compare(truth, b, c, F1, seed)["certain"] + evaluate.compare(truth, b, c, ACCURACY)["certain"]
        )
    assert alarms <= 200 * 0.10


def test_the_same_answers_twice_make_no_difference():
    truth, answers = classes_at(0.9, 200)
    for measure in (ACCURACY, F1, Measure("f1", F1.compute)):
        found = evaluate.compare(truth, answers, Answers(answers.prediction.copy()), measure)
        assert (found["difference"], found["p"], found["certain"], found["winner"]) == (0, 1, False, None)
        assert found["words"].startswith("no certain difference")


def test_groups_compare_as_groups():
    truth, good = classes_at(0.75, 40)
    _, bad = classes_at(0.55, 40, seed=0)
    tenfold = np.repeat(np.arange(40), 10)
    naive = evaluate.compare(truth[tenfold], good[tenfold], bad[tenfold], ACCURACY)
    grouped = evaluate.compare(truth[tenfold], good[tenfold], bad[tenfold], ACCURACY, groups=tenfold)
    once = evaluate.compare(truth, good, bad, SHARE)
    assert naive["p"] < grouped["p"] / 10 and grouped["test"] == "paired permutation"
    assert same((grouped["low"], grouped["high"]), (once["low"], once["high"]), 0.15)


def test_two_entries_are_told_apart_as_two_independent_normal_means():
    def entry(value, half, better="higher"):
        return {"value": value, "low": value - half, "high": value + half, "better": better}

    near = 0.9 - np.hypot(0.03, 0.04)  # where the interval of the difference touches 0
    assert evaluate.apart(entry(0.9, 0.03), entry(near - 1e-6, 0.04)) == 1
    assert evaluate.apart(entry(0.9, 0.03), entry(near + 1e-6, 0.04)) == 0
    assert evaluate.apart(entry(near - 1e-6, 0.04), entry(0.9, 0.03)) == -1
    assert evaluate.apart(entry(5, 0.1, "lower"), entry(6, 0.1, "lower")) == 1
    assert evaluate.apart(entry(0.9, 0.03), {"value": 0.1, "low": None, "high": None}) == 0


def test_entries_of_equal_nets_are_seldom_told_apart():
    alarms = 0
    for seed in range(200):
        truth, a = classes_at(0.9, 200, seed=seed)
        right = hits(*classes_at(0.9, 200, seed=seed + 1000)) == 1
        b = Answers(np.where(right, truth, "none"))
        one, other = (evaluate.scores([ACCURACY], truth, answers)[0] for answers in (a, b))
        alarms += evaluate.apart(one, other) != 0
    assert alarms <= 200 * 0.08


def test_too_little_to_compare():
    empty, one = np.zeros(0), np.zeros(1)
    for truth in (empty, one):
        found = evaluate.compare(truth, Answers(truth), Answers(truth), RMSE)
        assert not found["certain"] and found["p"] is None and "fewer than two" in found["words"]
    truth, answers = numbers_at(0.5, 10)
    found = evaluate.compare(truth, answers, Answers(np.full(10, np.nan)), RMSE)
    assert not found["certain"] and "not finite" in found["words"]


@pytest.mark.parametrize(
    "known",
    [[str(k) for k in range(90)], ["b", "a", ""], ["ü", "u", "long names too"], ["a", "b", "a"], ["\U0001f600", "x"]],
    ids=["digits", "empty", "long", "twice", "plane 1"],
)
def test_many_texts_stand_where_few_do(known):
    """A table of hashes is taken for many short ones; text that is not known is found whatever its hash."""
    rng = np.random.default_rng(3)
    column = np.array([*known, "zz", "9999", "A", "?"])[rng.integers(0, len(known) + 4, 3000)]
    found, unknown = places(np.array(known), column)
    assert unknown.tolist() == [k for k, text in enumerate(column.tolist()) if text not in known]
    inside = np.setdiff1d(np.arange(len(column)), unknown)
    assert found[inside].tolist() == [known.index(text) for text in column[inside].tolist()]
