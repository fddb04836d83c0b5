"""How sure answers are after calibration: temperature of classes, thresholds of tags."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score
from torch import Tensor, nn

import lamina
from lamina import evaluate
from lamina.errors import DataError
from lamina.sources.tagged import separator
from lamina.targets.classes import SPREAD, Classes, temperature
from lamina.targets.tags import Tags, best_threshold, thresholds


def drawn(n: int, k: int, factor: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(factor * logits, classes drawn from softmax(logits)): the right temperature is the factor."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, k, generator=generator)
    truth = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return factor * logits, truth


def letters(k: int = 4, **state) -> Classes:
    return Classes(list("abcdefgh"[:k]), list("abcdefgh"[:k]), **state)


def surprise(logits: Tensor, truth: Tensor) -> float:
    return float(nn.functional.cross_entropy(logits.double(), truth))


# --- Classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_the_temperature_that_answers_were_drawn_with_is_found(factor):
    assert temperature(*drawn(4000, 4, factor)) == pytest.approx(factor, rel=0.06)


@pytest.mark.parametrize(("n", "factor"), [(12, 3.0), (40, 0.5), (500, 2.0)])
def test_the_temperature_is_the_least_of_its_formula(n, factor):
    logits, truth = drawn(n, 3, factor)

    def formula(shift):
        return n * surprise(logits / np.exp(shift), truth) + (shift / SPREAD) ** 2 / 2

    expected = minimize_scalar(formula, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x
    assert np.log(temperature(logits, truth)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_no_temperature_makes_the_answers_it_was_fitted_to_less_likely(seed):
    logits, truth = drawn(10, 3, [0.2, 1, 5][seed % 3], seed)
    assert surprise(logits / temperature(logits, truth), truth) <= surprise(logits, truth)


def test_a_few_answers_that_are_all_right_do_not_make_the_net_certain():
    logits = 4 * torch.eye(3).repeat(2, 1)
    assert 0.5 < temperature(logits, torch.arange(3).repeat(2)) < 1


def test_a_temperature_changes_no_answer_and_gives_the_probabilities_of_the_formula():
    logits, truth = drawn(300, 4, 3.0)
    plain, target = letters(), letters()
    target.calibrate(logits, truth)
    before, after = plain.decode(logits), target.decode(logits)
    assert target.temperature > 2 and np.array_equal(before.prediction, after.prediction)
    np.testing.assert_allclose(after.probabilities, (logits / target.temperature).softmax(1), atol=1e-6)
    np.testing.assert_allclose(target.uncalibrated(after).probabilities, before.probabilities, atol=1e-5)
    np.testing.assert_allclose(target.uncalibrated(after).confidence, before.confidence, atol=1e-5)
    people = plain.people(truth)
    off = [evaluate.calibration(people, answers, plain.labels)["ece"] for answers in (before, after)]
    assert off[1] < off[0] / 2
    assert "too sure" in target.remarks()[0] and "300 validation examples" in target.remarks()[0]


def test_one_logit_for_two_classes_is_calibrated_as_two():
    logits, truth = drawn(500, 2, 3.0)
    two, one = letters(2), letters(2, single=True)
    two.calibrate(logits, truth)
    one.calibrate((logits[:, 1:] - logits[:, :1]), truth.float())
    assert one.temperature == pytest.approx(two.temperature, rel=1e-4) and one.temperature > 2
    difference = logits[:, 1:] - logits[:, :1]
    np.testing.assert_allclose(one.decode(difference).probabilities, two.decode(logits).probabilities, atol=1e-5)


def test_what_is_calibrated_already_is_left_and_not_talked_of():
    target = letters()
    target.calibrate(*drawn(4000, 4, 1.0))
    assert target.temperature == pytest.approx(1, abs=0.06) and target.remarks() == []
    assert letters().uncalibrated(answers := letters().decode(torch.eye(4))) is answers


def test_a_run_keeps_its_temperature_and_tells_it(runs):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = (rng.normal(size=(400, 6)) + y[:, None] * 0.5).astype("float32")
    alone = {"dropout": 0.0, "beside": False}
    run = lamina.train((x, y), epochs=60, runs=runs, quiet=True, batch_size=16, net_arg=alone)
    learned = json.loads((run.folder / "data.json").read_text())["task"]["state"]["temperature"]
    assert learned > 1.5  # it knows its 280 examples by heart
    again = lamina.load(run.folder)
    raw = again.net(again.domain.prepare()(torch.from_numpy(x[:5]))).detach()
    np.testing.assert_allclose(again.predict(x[:5]).probabilities, (raw / learned).softmax(1), atol=1e-5)
    assert "divided by the temperature" in (run.folder / "report.html").read_text()
    assert again.reload((x, y)).fingerprint() == run.facts["data"]["fingerprint"]
    truth, answers, _ = again.answers("test", (x, y))
    tempered, plain = (
        next(m.compute(truth, given) for m in again.target.measures() if m.name == "log_loss")
        for given in (answers, again.target.uncalibrated(answers))
    )
    assert tempered < plain


def test_an_own_net_answers_as_it_is(runs):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = (rng.normal(size=(200, 4)) + y[:, None]).astype("float32")
    run = lamina.train((x, y), net=nn.Linear(4, 2), valid=0.2, epochs=1, runs=runs, quiet=True, report=False)
    assert run.target.temperature == 1.0


# --- Tags -------------------------------------------------------------------------------------------------------------


def micro(shares, truth, limits):
    return f1_score(truth, shares >= limits, average="micro", zero_division=1.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_best_threshold_of_a_tag_is_that_of_a_search_over_all(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(40) < 0.3
    truth[0] = True
    shares = np.round(np.clip(rng.normal(0.3 + 0.3 * truth, 0.2), 0.01, 0.99), 1 + seed % 2)  # with ties
    found = best_threshold(shares, truth)
    values = np.unique(shares)
    every = [0.0, *(values[1:] + values[:-1]) / 2, 1.0]
    assert f1_score(truth, shares >= found) == pytest.approx(max(f1_score(truth, shares >= t) for t in every))
    assert found in [pytest.approx(t) for t in [values[0] / 2, *every[1:-1]]]


def test_of_no_positive_example_nothing_is_learned():
    assert best_threshold(np.array([0.1, 0.9]), np.array([False, False])) == 0.5
    rng = np.random.default_rng(0)
    shares, truth = rng.random((200, 2)), np.stack([rng.random(200) < 0.4, np.zeros(200, bool)], 1)
    shares[:, 0] = 0.5 * shares[:, 0] + 0.3 * truth[:, 0]
    limits = thresholds(shares, truth)
    assert np.isfinite(limits).all() and (limits > 0).all() and (limits < 1).all()


def test_a_rare_tag_stays_near_the_threshold_of_all_and_a_common_one_goes_its_own_way():
    rng = np.random.default_rng(1)
    n = 4000
    truth = np.stack([rng.random(n) < 0.5, rng.random(n) < 0.5, np.arange(n) < 2], 1)
    shares = np.clip(rng.normal([0.2, 0.5, 0.02], 0.1, (n, 3)) + 0.25 * truth * [1, 1, 0.02], 0.001, 0.999)
    limits, together = thresholds(shares, truth), best_threshold(shares.ravel(), truth.ravel())
    assert limits[0] == pytest.approx(best_threshold(shares[:, 0], truth[:, 0]), abs=0.01)
    assert limits[1] == pytest.approx(best_threshold(shares[:, 1], truth[:, 1]), abs=0.01)
    own = best_threshold(shares[:, 2], truth[:, 2])
    assert abs(limits[2] - together) < abs(limits[2] - own)


@pytest.mark.parametrize("seed", range(20))
def test_thresholds_are_never_worse_than_a_half_on_what_they_were_chosen_on(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((60, 5)) < rng.random(5) * 0.4
    shares = np.clip(rng.normal(0.3 + 0.2 * truth, 0.2), 0.001, 0.999)
    assert micro(shares, truth, thresholds(shares, truth)) >= micro(shares, truth, 0.5)


def test_thresholds_help_on_examples_that_they_were_not_chosen_on():
    rng = np.random.default_rng(0)

    def sample(n):
        logits = rng.normal(-2.5 + np.arange(6) * 0.3, 1.5, (n, 6))
        return 1 / (1 + np.exp(-logits)), rng.random((n, 6)) < 1 / (1 + np.exp(-logits))

    gains = []
    for _ in range(20):
        (shares, truth), (other, answers) = sample(300), sample(5000)
        limits = thresholds(shares, truth)
        gains.append([f1_score(answers, other >= t, average=how) for t in (limits, 0.5) for how in ("micro", "macro")])
    chosen_micro, chosen_macro, half_micro, half_macro = np.mean(gains, 0)
    assert chosen_micro > half_micro + 0.05 and chosen_macro > half_macro + 0.05


def test_a_threshold_that_was_asked_for_stays():
    target = Tags(["a", "b"], threshold=0.3)
    target.calibrate(torch.randn(50, 2), (torch.rand(50, 2) < 0.5).float())
    assert target.thresholds == [] and target.remarks() == []
    assert target.decode(torch.logit(torch.tensor([[0.31, 0.29]]))).prediction.tolist() == [[1, 0]]


def test_chosen_thresholds_decide():
    target = Tags(["a", "b"], thresholds=[0.2, 0.7], chosen_on=9)
    answers = target.decode(torch.logit(torch.tensor([[0.25, 0.65], [0.15, 0.75]])))
    assert answers.prediction.tolist() == [[1, 0], [0, 1]]
    np.testing.assert_allclose(answers.confidence, [0.25, 0.75], atol=1e-6)
    sums = target.tally(torch.logit(torch.tensor([[0.25, 0.65]])), torch.tensor([[1.0, 1.0]]))
    assert target.summary({name: float(value) for name, value in sums.items()}, 1) == {"f1": pytest.approx(2 / 3)}
    assert "9 validation examples (0.2 to 0.7)" in target.remarks()[0]


def test_texts_with_several_tags_are_learned_and_answered_as_such(runs):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype("float32")
    y = np.array(["; ".join(w for w, v in zip(["red", "round", "sour fruit"], row) if v > 0.5) for row in x], object)  # noqa: B905
    y[y == ""] = None
    run = lamina.train((x, y), epochs=15, runs=runs, quiet=True)
    assert run.facts["task"] == "tags" and run.target.labels == ["red", "round", "sour fruit"]
    assert run.headline.score == "f1" and run.headline.value > 0.9
    assert len(run.target.thresholds) == 3
    sure = np.array([[3, 3, 3], [-3, -3, -3], [3, -3, 3]], "float32")
    columns = run.target.columns(run.predict(sure))
    assert columns["prediction"].tolist() == ["red;round;sour fruit", "", "red;sour fruit"]
    again = lamina.load(run.folder)
    assert again.evaluate((x, y))[0]["value"] > 0.9  # texts again, as they are
    assert again.reload((x, y)).fingerprint() == run.facts["data"]["fingerprint"]
    with pytest.raises(DataError, match=r"1 tags are not among the 3 of training, such as 'blue'(?s:.*)between them"):
        again.evaluate((x[:2], np.array(["red;blue", "red"])))


@pytest.mark.parametrize(
    ("truth", "mark"),
    [
        (["a;b", "b;c", "a", "a;c", "", "b;c;a"], ";"),
        (["a|b", "b|c", "a", "a|c", None, "b|c|a"], "|"),
        (["a, b", "b, c", "a", "a, c", "", "b, c, a"], ","),
        (["Paris, France", "Lyon, France", "Rome, Italy", "Paris, France"] * 5, ""),  # names with a mark in them
        (["a", "b", "c", "a;b"] * 20, ";"),
        (["a", "b", "c"] * 20, ""),
        (["a;b"] + ["a", "b"] * 500, ""),  # one slip of the pen
    ],
)
def test_tags_in_texts_are_told_from_classes_with_a_mark_in_their_names(truth, mark):
    column = np.array(truth, object)
    assert separator(column) == mark
    sure, why = Tags.sniff(column)
    assert (sure > Classes.sniff(column)[0]) == bool(mark) and (f"{mark!r} between" in why if mark else True)


def test_a_row_of_a_table_without_a_tag_is_an_answer_too(tmp_path, runs):
    rng = np.random.default_rng(0)
    lines = ["size,weight,tags"]
    for size, weight in rng.normal(size=(300, 2)):
        tags = [tag for tag, value in (("large", size), ("heavy", weight)) if value > 0.3]
        lines.append(f"{size:.3f},{weight:.3f},{'|'.join(tags)}")
    place = tmp_path / "things.csv"
    place.write_text("\n".join(lines))
    run = lamina.train(str(place), target="tags", epochs=10, runs=runs, quiet=True, report=False)
    assert sum(run.facts["data"][part] for part in ("train", "valid", "test")) == 300
    assert run.target.labels == ["heavy", "large"] and run.target.separator == "|"
    found = json.loads((run.folder / "data.json").read_text())["findings"]
    told = next(finding for finding in found if finding["kind"] == "no_tag")
    assert told["count"] == sum(line.endswith(",") for line in lines) and "have no tag" in told["what"]
    answers = run.target.columns(run.predict({"size": [3.0, -3.0], "weight": [3.0, -3.0]}))
    assert answers["prediction"].tolist() == ["heavy|large", ""]
    with open(run.folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["truth"] for row in rows} == {"heavy|large", "heavy", "large", ""}
    assert np.mean([row["truth"] == row["prediction"] for row in rows]) > 0.8
