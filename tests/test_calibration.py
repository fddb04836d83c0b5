"""How sure answers are after calibration: temperature of classes, thresholds of tags."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

import lamina
from lamina import evaluate
from lamina.targets.classes import SPREAD, Classes, temperature


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
    run = lamina.train((x, y), epochs=60, runs=runs, quiet=True, batch_size=16, net_arg={"dropout": 0.0})
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
