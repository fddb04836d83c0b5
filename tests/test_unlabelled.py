"""Examples without answers: the two simple models against independent ones, and what a training makes of what they tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

import lamina
from lamina import foreign, pseudo
from lamina.errors import DataError, RunError, UsageError
from lamina.sources import Examples, Source

RNG = np.random.default_rng(0)


def blobs(count, known, seed=0, apart=1.2):
    """(numbers (N, 6), words (N, 300) sparse, classes (N,)): the numbers tell a little, a word of a hundred each a lot."""
    generator = np.random.default_rng(seed)
    truth = np.arange(count) % 2
    numbers = generator.normal(size=(count, 6)) + apart * (2 * truth[:, None] - 1) * np.array([1, 0.5, 0, 0, 0, 0])
    words = (generator.random((count, 300)) < 0.03).astype(float)
    for row in range(count):
        words[row, generator.integers(0, 100, 3) + 100 * truth[row]] = 1
    return numbers.astype(np.float32), sparse.csr_matrix(words), truth


# --- The models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
def test_the_regression_is_that_of_scikit_learn_with_the_same_penalty(classes):
    truth = np.arange(120) % classes
    table = RNG.normal(size=(120, 5)) + truth[:, None] * 0.5
    weight, bias = pseudo.regression(table, np.eye(classes)[truth], strength=2.0)
    strength = 1 / (2.0 * 5)
    if classes == 2:  # its weights are the difference of two, whose penalties add up
        expected = LogisticRegression(C=2 * strength, tol=1e-8, max_iter=1000).fit(table, truth)
        found = table @ (weight[:, 1] - weight[:, 0]) + bias[1] - bias[0]
        assert found == pytest.approx(expected.decision_function(table), abs=2e-3)
    else:
        expected = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(table, truth)
        assert pseudo.softmax(table @ weight + bias) == pytest.approx(expected.predict_proba(table), abs=2e-3)


def test_a_weight_of_two_is_an_example_twice():
    table, truth = RNG.normal(size=(40, 3)), np.arange(40) % 2
    weights = np.where(np.arange(40) < 10, 2.0, 1.0)
    twice = np.r_[np.arange(40), np.arange(10)]
    one = pseudo.regression(table, np.eye(2)[truth], weights)
    other = pseudo.regression(table[twice], np.eye(2)[truth[twice]])
    assert one[0] == pytest.approx(other[0], abs=1e-3)


def test_naive_bayes_is_that_of_scikit_learn_also_for_shares():
    words = sparse.csr_matrix((RNG.random((50, 30)) < 0.2).astype(float))
    truth = np.arange(50) % 3
    expected = MultinomialNB(fit_prior=False).fit(words, truth).predict_joint_log_proba(words)
    found = words @ pseudo.bayes(words, np.eye(3)[truth])
    assert found - found[:, :1] == pytest.approx(expected - expected[:, :1], abs=1e-9)
    shares = RNG.dirichlet(np.ones(2), 50)
    doubled = sparse.vstack([words, words])
    expected = MultinomialNB(fit_prior=False).fit(
        doubled, np.r_[np.zeros(50), np.ones(50)], np.r_[shares[:, 0], shares[:, 1]]
    )
    ratio = expected.feature_log_prob_[1] - expected.feature_log_prob_[0]
    found = pseudo.bayes(words, shares)
    assert found[:, 1] - found[:, 0] == pytest.approx(ratio, abs=1e-9)


def test_classes_get_the_shares_of_the_known_answers():
    logits = RNG.normal(size=(500, 3)) + [5, 0, -2]
    prior = np.array([0.2, 0.5, 0.3])
    found = pseudo.softmax(pseudo.balanced(logits, np.arange(500), prior))
    assert found.mean(0) == pytest.approx(prior, abs=1e-3)


def test_the_surest_are_taken_of_each_class():
    sure = np.r_[np.linspace(0.5, 0.99, 100), np.linspace(0.51, 0.6, 10)]
    table = np.stack([np.r_[sure[:100], 1 - sure[100:]], np.r_[1 - sure[:100], sure[100:]]], 1)
    found = pseudo.surest(table, 0.5)
    assert found.tolist() == [*range(50, 100), *range(105, 110)]


def test_two_sides_tell_more_than_one():
    numbers, words, truth = blobs(1500, 20)
    right = []
    for sides in ([numbers], [numbers, words]):
        table = pseudo.tell(sides, truth[:20], 2)
        assert table.shape == (1500, 2) and table.sum(1) == pytest.approx(1)
        right.append((table[20:].argmax(1) == truth[20:]).mean())
    assert right[1] > right[0] + 0.02 and right[0] > 0.8


def test_what_is_told_is_the_same_whenever_it_is_asked():
    numbers, words, truth = blobs(300, 20)
    assert np.array_equal(pseudo.tell([numbers, words], truth[:20], 2), pseudo.tell([numbers, words], truth[:20], 2))


# --- In a training ----------------------------------------------------------------------------------------------------


def arrays(count, seed):
    numbers, _, truth = blobs(count, 20, seed=seed)
    return numbers, truth


def test_told_examples_are_learned_from_and_held_out_ones_never(runs):
    x, y = arrays(60, 1)
    test, answers = arrays(200, 2)
    more = np.concatenate([arrays(400, 3)[0], test[:7]])
    run = lamina.train((x, y), test=(test, answers), unlabelled=more, epochs=5, runs=runs, quiet=True, report=False)
    told = run.facts["unlabelled"]
    assert told["offered"] == 407 and told["held_out"] == 7
    assert told["used"] == sum(told["shares"].values()) and 200 < told["used"] < 400
    assert run.facts["data"]["train"] == 54  # the known answers alone
    finding = next(f for f in lamina.run.read_json(run.folder / "data.json")["findings"] if f["kind"] == "unlabelled")
    assert finding["count"] == told["used"] and "7 are validation or test examples" in finding["what"]
    held = foreign.read_safetensors(run.folder / "told.safetensors")
    assert len(held["rows"]) == told["used"] and held["rows"].max() < 400


def test_steps_of_an_epoch_are_those_of_known_and_told_together(runs):
    x, y = arrays(60, 1)
    run = lamina.train(
        (x, y), valid=0, unlabelled=arrays(400, 3)[0], epochs=2, batch_size=20, runs=runs, quiet=True, report=False
    )
    assert run.facts["steps"] == 2 * -(-(48 + run.facts["unlabelled"]["used"]) // 20)


def test_without_unlabelled_nothing_is_told(runs):
    run = lamina.train(arrays(60, 1), epochs=1, runs=runs, quiet=True, report=False)
    assert "unlabelled" not in run.facts and not (run.folder / "told.safetensors").exists()


def test_a_training_with_unlabelled_examples_goes_on_where_it_stopped(runs):
    data, more = arrays(100, 1), arrays(300, 3)[0]
    options = {"unlabelled": more, "epochs": 3, "runs": runs, "quiet": True, "report": False, "batch_size": 32}
    straight = lamina.train(data, name="a", **options)
    steps = []

    def stop(progress):
        steps.append(progress.step)
        if len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lamina.train(data, name="b", watchers=[stop], **options)
    with pytest.raises(UsageError, match="unlabelled examples"):
        lamina.resume(runs / "b", data, quiet=True, watchers=[lambda progress: None])
    with pytest.raises(RunError, match="SHA-256"):
        lamina.resume(runs / "b", data, unlabelled=more + 1, quiet=True, watchers=[lambda progress: None])
    resumed = lamina.resume(runs / "b", data, unlabelled=more, quiet=True, watchers=[lambda progress: None])
    assert all(torch.equal(value, resumed.weights()[name]) for name, value in straight.weights().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unlabelled": np.zeros((10, 4), np.float32)}, "shape"),
        ({"balance": "over"}, "balance=over"),
        ({"net": torch.nn.Linear(6, 2)}, "is yours"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_reason(runs, options, words):
    options = {"unlabelled": arrays(50, 3)[0], **options}
    with pytest.raises((UsageError, DataError), match=words):
        lamina.train(arrays(60, 1), runs=runs, quiet=True, **options)


def test_numbers_are_not_told(runs):
    x, _ = arrays(60, 1)
    with pytest.raises(UsageError, match="classes"):
        lamina.train((x, x[:, 0]), unlabelled=x, runs=runs, quiet=True)


def test_texts_are_told_by_their_words(runs):
    generator = np.random.default_rng(0)
    words = [[f"{kind}{k}" for k in range(60)] for kind in ("calm", "storm")]
    fill = [f"word{k}" for k in range(50)]

    def column(count):
        found = np.empty(count, object)
        found[:] = [" ".join([*generator.choice(words[k % 2], 4), *generator.choice(fill, 4)]) for k in range(count)]
        return found

    known, test, more = column(40), column(200), column(600)
    made = Source("texts", Examples((known,), np.arange(40) % 2, kind="texts", labels=["calm", "storm"]),
                  test=Examples((test,), np.arange(200) % 2, kind="texts", labels=["calm", "storm"]))  # fmt: skip
    run = lamina.train(
        made, unlabelled=Source("more", Examples((more,), None, kind="texts")), runs=runs, quiet=True, report=False,
        epochs=3,
    )  # fmt: skip
    assert run.headline.value > 0.8 and run.facts["unlabelled"]["used"] > 300
