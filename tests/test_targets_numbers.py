"""Numbers that are learned as logarithms, and intervals of prediction: against closed forms and by counting."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

import lamina
from lamina import baselines, evaluate
from lamina.errors import UsageError
from lamina.targets.base import Answers
from lamina.targets.numbers import ENOUGH, GROUPS, Numbers, conformal, skewness

RNG = np.random.default_rng(0)
PRICES = np.exp(RNG.normal(3, 1.5, 2000))


def fitted(truth, **options):
    target = Numbers(**options)
    target.fit(truth)
    return target


def outputs(target, truth):
    """What a net that is always right gives."""
    return target.encode(truth).reshape(len(truth), -1)


# --- Logarithms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [RNG.normal, lambda **k: RNG.exponential(**k), lambda **k: RNG.lognormal(0, 1, **k)])
def test_skewness_is_scipys(draw):
    column = draw(size=500)
    assert skewness(column) == pytest.approx(scipy.stats.skew(column))


@pytest.mark.parametrize(
    ("truth", "logged"),
    [
        (PRICES, True),
        (np.round(PRICES), True),  # whole, with zeros
        (PRICES * 1e-6, True),  # log1p without a unit would do nothing
        (PRICES - 1000, False),  # skewed, and not positive
        (RNG.normal(100, 10, 2000), False),
        (-PRICES, False),
        (RNG.uniform(0, 1, 2000), False),
        (np.where(np.arange(2000) == 7, 1e6, 1.0), False),  # skewed by one of them, which no logarithm mends
        (np.zeros(50), False),
    ],
)
def test_the_logarithm_is_learned_where_numbers_are_positive_and_very_skewed(truth, logged):
    target = fitted(truth)
    assert (target.units[0] > 0) == logged
    assert [finding.kind for finding in target.findings()] == (["skewed_answers"] if logged else [])
    encoded = target.encode(truth).double().numpy()
    assert abs(encoded.mean()) < 1e-5 and (encoded.std() == pytest.approx(1, abs=1e-5) or not encoded.any())
    if logged:
        assert abs(skewness(encoded)) < skewness(truth) / 2


def test_only_the_skewed_ones_of_several_are_learned_as_logarithms():
    target = fitted(np.c_[RNG.normal(5, 1, 2000), PRICES])
    assert target.units[0] == 0 < target.units[1]
    target.labels = ["age", "price"]
    assert "(price)" in target.findings()[0].what


def test_whoever_asks_gets_or_forbids_the_logarithm():
    assert fitted(PRICES, log=False).units == [0.0] and not fitted(PRICES, log=False).findings()
    positive = RNG.uniform(1, 2, 100)
    assert fitted(positive, log=True).units[0] > 0
    with pytest.raises(UsageError, match=r"1 answers are negative(?s:.*)log=false"):
        fitted([-1.0, 2.0, 3.0], log=True)


@pytest.mark.parametrize("truth", [PRICES, np.c_[PRICES, RNG.normal(size=2000)], np.round(PRICES)])
def test_logarithms_come_back_in_the_users_units(truth):
    target = fitted(truth)
    unseen = np.concatenate([truth[:50], -truth[:50], 1.5 * truth.max(0, keepdims=True), 0 * truth[:1]])
    close = {"rel": 2e-5, "abs": 2e-5 * float(np.median(np.abs(truth)))}  # float32 of the logarithm
    assert target.people(target.encode(unseen)) == pytest.approx(unseen, **close)
    assert target.decode(outputs(target, truth[:50])).prediction == pytest.approx(truth[:50], **close)


def test_the_score_of_an_epoch_is_in_the_users_units():
    target, other = fitted(PRICES), PRICES * RNG.uniform(0.8, 1.2, 2000)
    sums = target.tally(outputs(target, other), target.encode(PRICES))
    found = target.summary({name: float(value) for name, value in sums.items()}, len(PRICES))
    inside = np.minimum(other, other.max())
    assert found["rmse"] == pytest.approx(float(np.sqrt(np.mean((inside - PRICES) ** 2))), rel=1e-3)


def test_a_wild_output_of_a_logarithm_stays_near_what_was_learned():
    target = fitted(PRICES)
    found = target.decode(torch.tensor([[1e4], [-1e4]])).prediction
    span = math.log(PRICES.max()) - math.log(np.quantile(PRICES, 0.1))
    assert 0 <= found[1] < 1 and found[0] < PRICES.max() * math.exp(0.2 * span)


def test_answers_of_a_logarithm_have_the_right_mean():
    """A net that knows the mean logarithm says exp of it, which is too little by exp(s^2 / 2); Duan's smearing, 1983."""
    level, noise = RNG.normal(3, 1, 4000), RNG.normal(0, 0.8, 4000)
    truth = np.exp(level + noise)
    target = fitted(truth)
    knows = target.encode(np.exp(level))[:, None]
    before = target.decode(knows).prediction.mean() / truth.mean()
    target.calibrate(knows[:2000], target.encode(truth[:2000]))
    after = target.decode(knows[2000:]).prediction.mean() / truth[2000:].mean()
    assert before == pytest.approx(math.exp(-(0.8**2) / 2), abs=0.08) and after == pytest.approx(1, abs=0.08)


# --- Intervals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "coverage"), [(9, 0.9), (19, 0.9), (99, 0.9), (100, 0.5), (39, 0.95), (7, 0.8)])
def test_half_an_interval_is_the_order_statistic_of_the_theory(n, coverage):
    errors = RNG.permutation(np.arange(1.0, n + 1))
    assert conformal(errors, coverage) == math.ceil((n + 1) * coverage)


def test_too_few_errors_make_no_interval():
    assert conformal(np.arange(8.0), 0.9) == math.inf and conformal(np.zeros(0), 0.5) == math.inf


@pytest.mark.parametrize("coverage", [0.5, 0.9])
@pytest.mark.parametrize("count", [40, 1000])
def test_intervals_hold_as_many_truths_as_they_say_on_average(count, coverage):
    """Over many calibrations, a further example lies inside with at least this probability, and not much more."""
    held = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        place = random.normal(size=(count + 50, 1))
        truth = place[:, 0] + random.exponential(1, count + 50) * (1 + (place[:, 0] > 0))
        target = Numbers(coverage=coverage)
        target.fit(np.array([-1.0, 1.0]))  # mean 0, deviation 1
        target.calibrate(torch.from_numpy(place[:count]), torch.from_numpy(truth[:count]))
        answers = target.decode(torch.from_numpy(place[count:]))
        held.append(((answers.low <= truth[count:]) & (truth[count:] <= answers.high)).mean())
    room = (GROUPS + 1) / count + 0.01
    assert coverage - 0.01 < np.mean(held) < coverage + room


def test_intervals_are_as_wide_as_errors_are_among_like_predictions():
    place = RNG.uniform(0, 10, 4000)
    truth = place + RNG.normal(0, 0.1 + 0.3 * place)
    target = fitted(truth)
    target.calibrate(target.encode(place)[:, None], target.encode(truth))
    answers = target.decode(target.encode(np.array([1.0, 9.0]))[:, None])
    narrow, wide = answers.high - answers.low
    for found, at in ((narrow, 1.0), (wide, 9.0)):
        assert found == pytest.approx(2 * 1.645 * (0.1 + 0.3 * at), rel=0.2)


@pytest.mark.parametrize(("count", "groups"), [(50, 1), (ENOUGH * 2, 2), (ENOUGH * 20, GROUPS)])
def test_groups_of_predictions_have_enough_examples_each(count, groups):
    target = fitted(RNG.normal(size=100))
    target.calibrate(torch.randn(count, 1), torch.randn(count))
    assert len(target.widths[0]) == groups == len(target.edges[0]) + 1


def test_without_enough_validation_examples_there_are_no_intervals_and_no_score_of_them():
    target = fitted(RNG.normal(size=100))
    target.calibrate(torch.randn(8, 1), torch.randn(8))
    answers = target.decode(torch.randn(3, 1))
    assert answers.low is None and answers.high is None and list(target.columns(answers)) == ["prediction"]
    assert "coverage" not in {measure.name for measure in target.measures()}


def test_equal_predictions_have_intervals_all_the_same():
    target = fitted(RNG.normal(size=100))
    target.calibrate(torch.zeros(500, 1), torch.randn(500))
    answers = target.decode(torch.zeros(1, 1))
    assert np.isfinite([answers.low[0], answers.high[0]]).all()


def test_intervals_of_a_logarithm_are_in_the_users_units_and_never_negative():
    level, noise = RNG.normal(2, 1.5, 3000), RNG.normal(0, 1, 3000)
    truth = np.exp(level + noise)
    target = fitted(truth)
    assert target.units[0] > 0
    knows = target.encode(np.exp(level))[:, None]
    target.calibrate(knows[:1500], target.encode(truth[:1500]))
    answers = target.decode(knows[1500:])
    assert answers.low.min() >= 0
    assert ((answers.low <= truth[1500:]) & (truth[1500:] <= answers.high)).mean() == pytest.approx(0.9, abs=0.03)


def test_several_numbers_have_an_interval_each():
    truth = RNG.normal([0, 50], [1, 10], (1000, 2))
    target = fitted(truth)
    target.labels = ["x", "y"]
    target.calibrate(torch.zeros(1000, 2), target.encode(truth))
    answers = target.decode(torch.zeros(4, 2))
    assert answers.low.shape == answers.high.shape == (4, 2)
    widths = (answers.high - answers.low)[0]
    assert widths == pytest.approx([2 * 1.645, 20 * 1.645], rel=0.1)
    assert list(target.columns(answers)) == [
        f"{part}_{name}" for name in "xy" for part in ("prediction", "low", "high")
    ]


def test_what_was_calibrated_is_part_of_the_state():
    target = fitted(PRICES)
    target.calibrate(torch.randn(600, 1), torch.randn(600))
    again = Numbers(**json.loads(json.dumps(target.state(), allow_nan=False)))
    one, other = (kind.decode(torch.linspace(-3, 3, 20)[:, None]) for kind in (target, again))
    for part in ("prediction", "low", "high"):
        assert np.array_equal(getattr(one, part), getattr(other, part))


def test_how_many_examples_intervals_need_is_said_where_there_are_fewer():
    for count, words in ((8, "9 are needed"), (9, "9 validation examples")):
        target = fitted(RNG.normal(size=100))
        assert target.remarks() == []
        target.calibrate(torch.randn(count, 1), torch.randn(count))
        assert words in target.remarks()[0] and bool(target.widths[0]) == (count == 9)


def test_a_run_of_numbers_knows_its_data_again_and_writes_intervals(runs):
    x = RNG.normal(size=(200, 3)).astype(np.float32)
    y = np.exp(2 * x[:, 0]) * RNG.lognormal(0, 0.1, 200)
    data = (x, y)
    run = lamina.train(data, runs=runs, epochs=3, valid=0.2, quiet=True, report=False, baselines=False)
    assert run.target.units[0] > 0 and run.target.widths[0]
    again = lamina.load(run.folder)
    assert len(again.reload(data).parts["test"][1]) == 40  # the same data, though the target has learned since
    answers = again.predict(x[:5])
    assert (answers.low <= answers.high).all() and answers.low.min() >= 0
    header = (run.folder / "predictions.csv").read_text().split("\n")[0]
    assert {"truth", "prediction", "low", "high"} <= set(header.split(","))


def test_a_second_fit_forgets_the_calibration():
    target = fitted(PRICES)
    target.calibrate(torch.randn(600, 1), torch.randn(600))
    target.fit(PRICES)
    assert target.decode(torch.zeros(2, 1)).low is None


def test_rows_of_answers_take_their_intervals_with_them():
    answers = Answers(np.arange(4.0), low=np.arange(4.0) - 1, high=np.arange(4.0) + 1)[np.array([2, 0])]
    assert answers.low.tolist() == [1.0, -1.0] and answers.high.tolist() == [3.0, 1.0] and answers.confidence is None


def test_how_many_intervals_hold_is_a_score_of_the_net_alone():
    truth = RNG.normal(size=200)
    target = fitted(truth)
    target.calibrate(torch.zeros(200, 1), target.encode(truth))
    answers = Answers(np.zeros(4), low=np.full(4, -1.0), high=np.full(4, 1.0))
    entries = evaluate.scores(target.measures(), np.array([0.0, -1.0, 1.0, 1.1]), answers)
    assert {entry["score"]: entry["value"] for entry in entries}["coverage"] == 0.75
    simple = baselines.baselines("numbers", {}, truth, truth[:20], target.measures(), seed=0)
    assert {entry["score"] for entry in simple} == {"rmse", "mae", "r2"}


@pytest.mark.parametrize("coverage", [0.0, 1.0, 90])
def test_a_coverage_that_is_no_probability_is_refused(coverage):
    with pytest.raises(UsageError, match="such as 0"):
        Numbers(coverage=coverage)
