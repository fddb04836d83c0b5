"""Targets: answers -> tensors -> a loss, and back to answers for people; scores against scikit-learn's."""

from __future__ import annotations

import functools
import json
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lamina import evaluate, names
from lamina.errors import DataError, UsageError
from lamina.targets.base import Answers, bare
from lamina.targets.classes import Classes
from lamina.targets.numbers import Numbers
from lamina.targets.tags import Tags


def fitted(kind, truth, **options):
    target = kind()
    target.fit(np.asarray(truth), **options)
    return target


def scores(target, truth, answers):
    return {measure.name: measure.compute(truth, answers) for measure in target.measures()}


def sniffed(truth):
    """The name of the target that is surest of these answers."""
    kinds = [names.module("targets", name).TARGET for name in names.known("targets")]
    sure, _, name = max((*kind.sniff(truth), kind.name) for kind in kinds)
    return name if sure else None


# --- Which kind of answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "name"),
    [
        (np.arange(100) % 10, "classes"),
        (np.arange(100) % 10 * 100, "classes"),
        (np.array(["cat", "dog"] * 9), "classes"),
        (np.array([True, False] * 9), "classes"),
        ((np.arange(100) % 10)[:, None], "classes"),
        (np.linspace(0, 1, 50), "numbers"),
        (np.arange(5000) * 7, "numbers"),
        (np.arange(26).repeat(30), "classes"),  # letters
        (np.arange(1, 101).repeat(np.arange(20, 120)), "classes"),  # numbered from 1
        (np.array([7, 11, 1203]).repeat(40), "classes"),
        (np.array([-1, 1] * 20), "classes"),
        (np.array([-1, 0, 1] * 20), "classes"),
        (np.array([-1] * 2 + [0, 1, 2] * 20), "classes"),  # -1 for no label, as the checks will say
        (np.arange(100) % 7 - 3, "numbers"),  # errors of counting
        (np.full(30, -1), "classes"),  # one, as the checks will say
        (np.zeros(0, int), "classes"),
        ((np.arange(40) ** 2 + 3).repeat(25), "classes"),  # forty people, known by numbers of their own
        (np.random.default_rng(0).normal(500, 40, 5000).round().astype(int) // 8 * 8, "numbers"),  # a test's scores
        (np.random.default_rng(0).integers(18, 90, 5000), "numbers"),  # ages
        (np.random.default_rng(0).geometric(0.2, 5000), "numbers"),  # visits
        (np.random.default_rng(0).integers(0, 100, 25), "numbers"),
        (np.array([3, 9, 14, 2, 8, 12, 6, 1, 10] * 2), "numbers"),  # a dozen rows of a measurement
        (np.linspace(0, 1, 50).reshape(25, 2), "numbers"),
        (np.linspace(0, 1, 50).reshape(50, 1), "numbers"),
        (np.arange(60).reshape(20, 3) * 100, "numbers"),
        (np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1]] * 5), "tags"),
        (np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1]] * 5, float), "tags"),
        (np.eye(4), "tags"),
        (np.eye(4, dtype=int), "tags"),
        (np.array([["a", "b"]] * 9), None),
        (np.zeros((3, 2, 2)), None),
    ],
)
def test_the_kind_of_answer_is_seen_by_its_form(truth, name):
    assert sniffed(truth) == name


# --- Classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "own_net", "labels"),
    [
        ([0, 1, 2, 1], False, ["0", "1", "2"]),
        ([5, 1, 7, 1], False, ["1", "5", "7"]),  # our own nets need no outputs for numbers that never come
        ([5, 1, 7, 1], True, [str(k) for k in range(8)]),  # a user's net has them in their places
        ([2, 2, 1, 1], True, ["0", "1", "2"]),
        (["dog", "cat", "dog"], False, ["cat", "dog"]),
        (["dog", "cat", "dog"], True, ["cat", "dog"]),
        ([True, False], False, ["False", "True"]),
        (np.array([3, 0, 3], np.uint8), False, ["0", "3"]),
        ([0.0, 1.0, 1.0], False, ["0", "1"]),  # as binary losses are given them
        (np.array([["b"], ["a"]]), False, ["a", "b"]),
        (np.array(["a", "b", 3], dtype=object), False, ["3", "a", "b"]),
    ],
)
def test_classes_are_numbered_and_named(truth, own_net, labels):
    target = fitted(Classes, truth, own_net=own_net)
    assert target.labels == labels and target.width == len(labels)
    encoded = target.encode(np.asarray(truth))
    assert encoded.dtype == torch.int64
    spoken = [str(int(v)) if isinstance(v, float) else str(v) for v in np.asarray(truth).reshape(-1).tolist()]
    assert target.people(encoded).tolist() == spoken


def test_names_of_classes_that_the_source_knows_are_used():
    target = fitted(Classes, [0, 2, 2], names=["setosa", "versicolor", "virginica"])
    assert target.width == 3 and target.people(target.encode([1, 2])).tolist() == ["versicolor", "virginica"]


@given(truth=st.lists(st.integers(0, 20), min_size=2, max_size=30).filter(lambda y: len(set(y)) > 1))
def test_labels_come_back_as_they_were_given_whatever_their_type(truth):
    for form in (np.array(truth), np.array([f"c{y}" for y in truth]), np.array(truth, np.uint8), torch.tensor(truth)):
        target = Classes()
        target.fit(form)
        assert target.people(target.encode(form)).tolist() == [str(y) for y in form.tolist()]
        again = Classes(**json.loads(json.dumps(target.state())))
        assert torch.equal(again.encode(form), target.encode(form))


def test_numbers_written_as_words_are_the_same_classes():
    """A CSV at evaluation, an array at training."""
    target = fitted(Classes, [3, 5, 5])
    assert target.encode(np.array(["5", "3"])).tolist() == [1, 0]


def test_signs_are_classes_like_others():
    target = fitted(Classes, [-1, 1, 1, -1])
    assert target.labels == ["-1", "1"] and target.encode(np.array([1, -1])).tolist() == [1, 0]
    assert fitted(Classes, [-1, 0, 1, 0]).labels == ["-1", "0", "1"]
    with pytest.raises(DataError, match="1 labels are negative"):  # too rare to be a class
        fitted(Classes, [-1, *[0, 1] * 10])
    with pytest.raises(DataError, match="The labels are -1, 1, and the loss"):
        Classes().fit(np.array([-1, 1, 1, -1]), own_net=True)
    with pytest.raises(DataError, match="not among the 2 classes"):
        fitted(Classes, [0, 1, 1]).encode(np.array([0, -1]))


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ([0, -1, 1, -2], "2 labels are negative, such as -1: rows 1, 3"),
        ([0.0, 1.0, float("nan"), float("inf")], r"2 labels are missing \(NaN or infinite\): rows 2, 3"),
        ([0.5, 1.0], r"fractional numbers \(float64\), such as 0.5"),
        ([0.0, 2.0], "y.astype"),
        (np.array(["a", None, "b", ""], dtype=object), "2 labels are missing: rows 1, 3"),
        (np.array(["a", float("nan")], dtype=object), "1 labels are missing: row 1"),
        ([1, 1, 1], "All training examples are of one class, '1'"),
        (np.eye(3), r"shape \(3, 3\)(?s:.*)y.argmax\(1\)"),
        (np.zeros((2, 2, 2)), "one label an example"),
    ],
)
def test_labels_that_are_none_are_refused_with_their_rows(truth, words):
    with pytest.raises(DataError, match=words):
        fitted(Classes, truth)


def test_a_number_that_is_no_class_number_is_refused_for_a_users_net():
    with pytest.raises(DataError, match="go up to 123456 but only 2 different"):
        fitted(Classes, [7, 123456], own_net=True)
    assert fitted(Classes, [7, 123456]).labels == ["7", "123456"]


@pytest.mark.parametrize(
    ("known", "given", "words"),
    [
        ([0, 1, 2], [0, 3, 1, 4], r"2 labels are not among the 3 classes of training, such as '3': rows 1, 3"),
        ([1, 5], [5, 2], "such as '2': row 1"),
        (["cat", "dog"], ["dog", "cow"], "such as 'cow': row 1(?s:.*)one of cat, dog"),
        ([True, False], [1, 0], "such as '1'"),
    ],
)
def test_a_class_that_training_did_not_know_is_named(known, given, words):
    with pytest.raises(DataError, match=words):
        fitted(Classes, known).encode(np.asarray(given))


def test_a_long_list_of_classes_is_shortened():
    with pytest.raises(DataError, match=r"0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 \.\.\."):
        fitted(Classes, np.arange(30)).encode([99])


@pytest.mark.parametrize(
    ("loss", "after_sigmoid"),
    [
        (nn.BCEWithLogitsLoss(), False),
        (nn.BCELoss(), True),
        (F.binary_cross_entropy_with_logits, False),
        (functools.partial(functools.partial(F.binary_cross_entropy), reduction="mean"), True),
    ],
)
def test_a_binary_loss_takes_one_output_for_two_classes(loss, after_sigmoid):
    target = fitted(Classes, ["no", "yes", "no"])
    target.adopt(loss)
    assert target.single and target.probabilities is after_sigmoid and target.width == 1
    truth = target.encode(np.array(["yes", "no"]))
    assert truth.dtype == torch.float32 and truth.tolist() == [1, 0]
    output = torch.tensor([[0.9], [0.2]])
    target.check(output, truth, loss)
    value = loss(output, target.shape_truth(truth, output))
    p = np.array([0.9, 0.2]) if after_sigmoid else 1 / (1 + np.exp(-np.array([0.9, 0.2])))
    assert value.item() == pytest.approx(-(np.log(p[0]) + np.log(1 - p[1])) / 2, rel=1e-5)
    answers = target.decode(output)
    assert answers.probabilities[:, 1] == pytest.approx(p, rel=1e-6)
    assert answers.prediction.tolist() == ["yes", "no" if after_sigmoid else "yes"]


def test_other_losses_leave_a_target_as_it_is():
    target = fitted(Classes, [0, 1])
    for loss in (None, nn.CrossEntropyLoss(), F.cross_entropy, nn.MSELoss()):
        target.adopt(loss)
    assert not target.single
    asked = Classes(single=True)
    asked.fit([0, 1])
    asked.adopt(None)
    assert asked.single


def test_binary_losses_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="BCEWithLogitsLoss is for two classes, and there are 3"):
        fitted(Classes, [0, 1, 2]).adopt(nn.BCEWithLogitsLoss())
    for loss in (nn.SoftMarginLoss(), nn.HingeEmbeddingLoss()):  # with 0 and 1 they would learn nothing of the zeros
        with pytest.raises(UsageError, match=r"answers of -1 and 1(?s:.*)BCEWithLogitsLoss"):
            fitted(Classes, [0, 1]).adopt(loss)


def test_the_loss_to_use_instead_of_a_soft_margin_is_the_same():
    x, y = torch.randn(9), torch.tensor([0.0, 1, 1, 0, 0, 1, 0, 1, 1])
    assert nn.SoftMarginLoss()(x, 2 * y - 1).item() == pytest.approx(nn.BCEWithLogitsLoss()(x, y).item())


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 2), r"returned \(4, 2\) but there are 3 classes(?s:.*)last layer 3 outputs"),
        ((4,), r"\(4, 3\): a number for each of the 3 classes"),
        ((3, 4), r"\(4, 3\)"),
        ((4, 3, 2), r"\(4, 3\)"),
    ],
)
def test_an_output_that_does_not_fit_the_classes_is_refused(shape, words):
    with pytest.raises(UsageError, match=words):
        fitted(Classes, [0, 1, 2]).check(torch.zeros(shape), torch.zeros(4), nn.CrossEntropyLoss())


def test_one_output_for_two_classes_is_met_with_both_ways():
    with pytest.raises(UsageError, match=r"last layer 2 outputs, or name a loss for one: nn.BCEWithLogitsLoss\(\)"):
        fitted(Classes, [0, 1]).check(torch.zeros(4, 1), torch.zeros(4), lambda output, truth: None)
    single = fitted(Classes, [0, 1])
    single.adopt(nn.BCEWithLogitsLoss())
    with pytest.raises(UsageError, match="wants one number an example"):
        single.check(torch.zeros(4, 2), torch.zeros(4), nn.BCEWithLogitsLoss())


def test_a_net_may_have_more_outputs_than_classes_came():
    target = fitted(Classes, [0, 1, 3], own_net=True)
    target.check(torch.zeros(2, 10), torch.zeros(2), None)
    assert target.labels == [str(k) for k in range(10)] and target.encode([9]).tolist() == [9]
    for truth in (["a", "b"], [1, 5]):  # which output would be whose?
        with pytest.raises(UsageError, match="there are 2 classes: "):
            fitted(Classes, truth).check(torch.zeros(2, 3), torch.zeros(2), None)


@given(
    logits=st.lists(
        st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=20
    )
)  # fmt: skip
def test_probabilities_are_the_softmax_and_sum_to_one(logits):
    target = fitted(Classes, [0, 1, 2])
    answers = target.decode(torch.tensor(logits))
    powers = np.exp(np.array(logits) - np.max(logits, axis=1, keepdims=True))
    assert answers.probabilities == pytest.approx(powers / powers.sum(1, keepdims=True), abs=1e-6)
    assert answers.probabilities.sum(1) == pytest.approx(np.ones(len(logits)), abs=1e-6)
    assert answers.prediction.tolist() == [str(k) for k in np.argmax(np.array(logits), 1)]
    assert answers.confidence == pytest.approx(answers.probabilities.max(1), abs=1e-6)


@given(logits=st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20))
def test_the_probabilities_of_one_logit_sum_to_one(logits):
    target = fitted(Classes, [0, 1])
    target.adopt(nn.BCEWithLogitsLoss())
    answers = target.decode(torch.tensor(logits)[:, None])
    assert answers.probabilities.sum(1) == pytest.approx(np.ones(len(logits)), abs=1e-6)
    assert answers.prediction.tolist() == ["1" if logit > 0 else "0" for logit in logits]


def test_log_probabilities_of_a_net_are_its_probabilities():
    """For NLLLoss a net ends in log_softmax: the softmax of that is the softmax."""
    x = torch.randn(5, 3)
    target = fitted(Classes, [0, 1, 2])
    assert target.decode(x.log_softmax(1)).probabilities == pytest.approx(x.softmax(1).numpy(), abs=1e-6)


def random_classes(seed, n, k, present=None):
    """A target of k classes, encoded truth (of the classes that are present), and logits better than chance."""
    rng = np.random.default_rng(seed)
    target = fitted(Classes, np.arange(k))
    truth = rng.choice(np.arange(k) if present is None else present, n)
    logits = torch.from_numpy(rng.normal(size=(n, k)) + 1.5 * np.eye(k)[truth]).float()
    return target, torch.from_numpy(truth), logits


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(3, 60), k=st.integers(2, 6))
def test_scores_of_classes_are_scikit_learns(seed, n, k):
    target, truth, logits = random_classes(seed, n, k)
    people, answers = target.people(truth), target.decode(logits)
    found = scores(target, people, answers)
    guess, seen = answers.prediction, np.unique(people)
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(people, guess),
        "f1": sklearn.metrics.f1_score(people, guess, average="macro", labels=seen, zero_division=0),
        "log_loss": sklearn.metrics.log_loss(truth.numpy(), logits.double().softmax(1).numpy(), labels=range(k)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected["balanced_accuracy"] = sklearn.metrics.balanced_accuracy_score(people, guess)
    if k == 2:
        both = len(seen) == 2
        expected["roc_auc"] = sklearn.metrics.roc_auc_score(truth, logits.softmax(1)[:, 1]) if both else float("nan")
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6, nan_ok=True), name


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(1, 40), k=st.integers(2, 5))
def test_each_measures_parts_make_its_whole(seed, n, k):
    """Per-example values whose mean is the score, and scores out of a confusion matrix: what the intervals are made of."""
    target, truth, logits = random_classes(seed, n, k)
    people, answers = target.people(truth), target.decode(logits)
    counts = np.zeros((1, k, k))
    np.add.at(counts[0], (truth.numpy(), logits.argmax(1).numpy()), 1)
    for measure in target.measures():
        whole = measure.compute(people, answers)
        if measure.each is not None:
            assert measure.each(people, answers).mean() == pytest.approx(whole, nan_ok=True)  # of one class no area
        if measure.from_confusion is not None:
            assert measure.from_confusion(counts)[0] == pytest.approx(whole)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(2, 40), levels=st.integers(1, 4))
def test_the_area_under_the_curve_counts_equal_scores_half(seed, n, levels):
    rng = np.random.default_rng(seed)
    truth = np.append([0, 1], rng.integers(0, 2, n))
    second = rng.integers(0, levels, n + 2) / 4
    target = fitted(Classes, ["no", "yes"])
    found = scores(target, target.people(truth), Answers(target.people(second > 0.4), None, np.c_[1 - second, second]))
    assert found["roc_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, second))


def of_two_classes(n, apart=1.0, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random(n) < share).astype(int)
    second = 1 / (1 + np.exp(-rng.normal(size=n) - apart * truth))
    target = fitted(Classes, ["no", "yes"])
    (area,) = [measure for measure in target.measures() if measure.name == "roc_auc"]
    return (
        area,
        target.people(truth),
        Answers(target.people(second > 0.5), None, np.c_[1 - second, second]),
        truth,
        second,
    )


def test_the_spread_of_the_area_is_that_of_delong():
    """DeLong, DeLong and Clarke-Pearson, 1988: from all pairs, one by one."""
    area, people, answers, truth, second = of_two_classes(300)
    ours, theirs = second[truth == 1][:, None], second[truth == 0]
    right = (ours > theirs) + 0.5 * (ours == theirs)
    variance = right.mean(1).var() / len(ours) + right.mean(0).var() / len(theirs)
    assert area.each(people, answers).var() / len(truth) == pytest.approx(variance)
    assert area.compute(people, answers) == pytest.approx(right.mean())


@pytest.mark.parametrize(("n", "apart"), [(400, 1.0), (400, 1.8), (20_000, 1.0)])
def test_the_interval_of_the_area_is_that_of_resampled_examples(n, apart):
    area, people, answers, truth, second = of_two_classes(n, apart)
    (found,) = evaluate.scores([area], people, answers)
    low, high = resampled(sklearn.metrics.roc_auc_score, truth, second)
    assert found["low"] == pytest.approx(low, abs=0.15 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.15 * (high - low)) and found["high"] <= 1


def test_scores_by_hand():
    target = fitted(Classes, ["a", "b", "c"])
    truth = np.array(["a", "a", "a", "b"])
    answers = Answers(np.array(["a", "a", "b", "b"]), probabilities=np.array([[0.5, 0.5, 0]] * 4))
    found = scores(target, truth, answers)
    assert found["accuracy"] == 3 / 4
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["log_loss"] == pytest.approx(np.log(2))


# --- Numbers ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    table=st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2), min_size=2, max_size=20),
    own_net=st.booleans(),
    flat=st.booleans(),
)
def test_numbers_come_back_in_their_units(table, own_net, flat):
    truth = np.array(table)[:, 0] if flat else np.array(table)
    target = fitted(Numbers, truth, own_net=own_net)
    encoded = target.encode(truth)
    assert encoded.dtype == torch.float32 and encoded.shape == truth.shape
    # float32 rounds where the standardised numbers are, so to a share of the largest
    close = {"rel": 1e-6, "abs": 1e-6 * max(1e-30, np.abs(truth).max())}
    assert target.people(encoded) == pytest.approx(truth, **close)
    assert target.decode(encoded).prediction == pytest.approx(truth, **close)
    if own_net:
        assert torch.equal(encoded, torch.from_numpy(truth.astype(np.float32)))


def test_numbers_are_standardised_for_our_own_nets():
    truth = np.array([[1.0, 500.0, 3.0], [3.0, 100.0, 3.0], [8.0, 0.0, 3.0]])
    encoded = fitted(Numbers, truth).encode(truth)
    expected = (truth - truth.mean(0)) / np.where(truth.std(0) > 0, truth.std(0), 1)
    assert encoded.numpy() == pytest.approx(expected, abs=1e-6)
    assert encoded[:, 2].tolist() == [0, 0, 0]


def test_the_scale_is_that_of_the_training_answers():
    target = fitted(Numbers, [0.0, 2.0])
    assert target.encode([1.0, 5.0]).tolist() == [0.0, 4.0]


@pytest.mark.parametrize("shapes", [((5,), (5, 1)), ((5, 1), (5,)), ((5, 3), (5, 3))])
def test_truth_takes_the_shape_of_the_output_and_never_broadcasts(shapes):
    given_, wanted = shapes
    truth = np.arange(np.prod(given_)).reshape(given_).astype(float)
    target = fitted(Numbers, truth, own_net=True)
    output = torch.zeros(wanted)
    encoded = target.encode(truth)
    target.check(output, encoded, nn.MSELoss())
    shaped = target.shape_truth(encoded, output)
    assert shaped.shape == output.shape
    assert target.loss()(output, shaped).item() == pytest.approx(np.square(truth).mean())
    assert target.decode(output).prediction.shape == given_
    assert target.tally(output, encoded)["squared"].item() == pytest.approx(
        np.square(truth).reshape(5, -1).mean(1).sum()
    )


@pytest.mark.parametrize("output", [(5, 5), (5, 2), (4, 1), (1, 5)])
def test_an_output_of_another_size_is_refused(output):
    target = fitted(Numbers, np.arange(5.0), own_net=True)
    with pytest.raises(UsageError, match=r"1 number to learn for each of 5 examples(?s:.*)\(5, 1\)"):
        target.check(torch.zeros(output), torch.zeros(5), nn.MSELoss())


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ([1.0, float("nan"), float("inf")], "2 answers are NaN or infinite: rows 1, 2"),
        ([[1.0, 2.0], [3.0, float("nan")]], "1 answers are NaN or infinite: row 1"),
        (["1", "2"], "task='classes' for names"),
        (np.zeros((2, 2, 2)), r"\(N,\) or \(N, D\)"),
    ],
)
def test_answers_that_are_no_numbers_are_refused_with_their_rows(truth, words):
    with pytest.raises(DataError, match=words):
        fitted(Numbers, truth)


def test_another_count_of_numbers_than_in_training_is_refused():
    with pytest.raises(DataError, match=r"3 numbers an example(?s:.*)2, as in training"):
        fitted(Numbers, np.ones((4, 2))).encode(np.ones((4, 3)))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(2, 40), d=st.integers(1, 3))
def test_scores_of_numbers_are_scikit_learns(seed, n, d):
    rng = np.random.default_rng(seed)
    truth, guess = rng.normal(3, 5, (n, d)), rng.normal(3, 5, (n, d))
    if d == 1:
        truth, guess = truth[:, 0], guess[:, 0]
    found = scores(fitted(Numbers, truth), truth, Answers(guess))
    assert found["rmse"] == pytest.approx(np.sqrt(sklearn.metrics.mean_squared_error(truth, guess)))
    assert found["mae"] == pytest.approx(sklearn.metrics.mean_absolute_error(truth, guess))
    residual = ((truth - guess) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)
    assert found["r2"] == pytest.approx(np.mean(1 - residual))
    for measure in fitted(Numbers, truth).measures():
        if measure.each is not None:
            mean = measure.each(truth, Answers(guess)).mean(0)
            assert (measure.finish or float)(mean) == pytest.approx(measure.compute(truth, Answers(guess)))


def resampled(score, truth, guess, draws=300):
    """The 2.5th and the 97.5th percentile over resampled examples."""
    rng, drawn = np.random.default_rng(1), []
    for _ in range(draws):
        rows = rng.integers(0, len(truth), len(truth))
        drawn.append(score(truth[rows], guess[rows]))
    return np.quantile(drawn, [0.025, 0.975])


def assert_interval(target, name, score, truth, guess):
    (measure,) = [measure for measure in target.measures() if measure.name == name]
    (found,) = evaluate.scores([measure], truth, Answers(guess))
    low, high = resampled(score, truth, guess)
    assert found["resamples"] == evaluate.RESAMPLES and found["value"] == pytest.approx(score(truth, guess))
    assert found["low"] == pytest.approx(low, abs=0.15 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.15 * (high - low))


@pytest.mark.parametrize("n", [500, 20_000])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_the_interval_of_the_share_explained_is_that_of_resampled_examples(n, d, mean):
    rng = np.random.default_rng(0)
    truth = rng.normal(mean, 1, (n, d))
    guess = truth + rng.normal(size=(n, d))
    if d == 1:
        truth, guess = truth[:, 0], guess[:, 0]
    assert_interval(fitted(Numbers, truth), "r2", sklearn.metrics.r2_score, truth, guess)


def test_sums_that_are_skewed_are_those_of_drawn_examples():
    """One error of thousands makes the score what it is: its sum is not normal, and is drawn example by example."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=12_000)
    guess = truth + 0.01 * rng.normal(size=12_000)
    guess[5] += 100
    (r2,) = [measure for measure in fitted(Numbers, truth).measures() if measure.name == "r2"]
    (found,) = evaluate.scores([r2], truth, Answers(guess))
    low, high = resampled(sklearn.metrics.r2_score, truth, guess)
    assert found["low"] < low + 0.5 < 0 and 0.99 < found["high"] <= 1 and high <= 1  # a normal sum would go beyond 1


# --- Tags -------------------------------------------------------------------------------------------------------------

TABLE = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


@pytest.mark.parametrize("guess", [[2.0, 2, 2], [2.0, 2, 3], [1.0, 2, 4]])
def test_the_share_explained_of_a_column_that_never_changes_is_scikit_learns(guess):
    truth, guess = np.array([[2.0, 1], [2, 5], [2, 4]]), np.c_[guess, [1.0, 4, 4]]
    found = scores(fitted(Numbers, truth), truth, Answers(guess))
    assert found["r2"] == pytest.approx(sklearn.metrics.r2_score(truth, guess))


@pytest.mark.parametrize("n", [500, 20_000])
@pytest.mark.parametrize(("name", "average"), [("f1", "micro"), ("macro_f1", "macro")])
def test_the_intervals_of_tags_are_those_of_resampled_examples(n, name, average):
    rng = np.random.default_rng(0)
    truth = (rng.random((n, 4)) < [0.5, 0.3, 0.2, 0.1]).astype(int)
    guess = np.where(rng.random((n, 4)) < 0.15, 1 - truth, truth)

    def score(truth, guess):
        return sklearn.metrics.f1_score(truth, guess, average=average, zero_division=0)

    assert_interval(fitted(Tags, truth), name, score, truth, guess)


def test_tags_are_a_matrix_of_zeros_and_ones():
    target = fitted(Tags, TABLE)
    for form in (TABLE, TABLE.astype(bool), TABLE.astype(float), torch.tensor(TABLE)):
        assert torch.equal(target.encode(form), torch.tensor(TABLE).float())
    assert target.people(target.encode(TABLE)).tolist() == TABLE.tolist()
    assert target.width == 3 and fitted(Tags, TABLE, names=["a", "b", "c"]).labels == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ([[0, 1], [2, 0], [0.5, 1]], "2 rows of tags hold other values than 0 and 1: rows 1, 2"),
        ([[0, 1], [float("nan"), 0]], "row 1"),
        ([0, 1], r"a 0/1 matrix \(N, K\)"),
        ([["a", "b"]], "0/1 matrix"),
    ],
)
def test_what_is_no_matrix_of_zeros_and_ones_is_refused(truth, words):
    with pytest.raises(DataError, match=words):
        fitted(Tags, truth)


def test_tags_that_do_not_fit_are_refused():
    target = fitted(Tags, TABLE)
    with pytest.raises(DataError, match=r"There are 2 tags(?s:.*)3, as in training"):
        target.encode(TABLE[:, :2])
    with pytest.raises(UsageError, match=r"\(4, 2\) but there are 3 tags(?s:.*)3 outputs"):
        target.check(torch.zeros(4, 2), target.encode(TABLE), nn.BCEWithLogitsLoss())
    target.check(torch.zeros(4, 3), target.encode(TABLE), nn.BCEWithLogitsLoss())


def test_a_tag_is_given_from_its_threshold_on():
    probabilities = torch.tensor([[0.1, 0.29, 0.31], [0.3, 0.9, 0.0]])
    for target, output in (
        (Tags(["a", "b", "c"], threshold=0.3), torch.logit(probabilities)),
        (Tags(["a", "b", "c"], threshold=0.3, probabilities=True), probabilities),
    ):
        answers = target.decode(output)
        assert answers.prediction[0].tolist() == [0, 0, 1] and answers.prediction[1, 1:].tolist() == [1, 0]
        assert answers.probabilities == pytest.approx(probabilities.numpy(), abs=1e-6)
        assert answers.confidence[0] == pytest.approx(0.31)  # of the least certain tag


def test_a_net_that_ends_in_a_sigmoid_is_known_by_its_loss():
    target = fitted(Tags, TABLE)
    for loss, after_sigmoid in ((nn.BCELoss(), True), (F.binary_cross_entropy, True), (nn.BCEWithLogitsLoss(), False)):
        target.adopt(loss)
        assert target.probabilities is after_sigmoid


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(1, 40), k=st.integers(2, 5))
def test_scores_of_tags_are_scikit_learns(seed, n, k):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, (n, k))
    output = torch.from_numpy(rng.normal(truth - 0.5)).float()
    target = fitted(Tags, truth)
    answers = target.decode(output)
    found, guess = scores(target, truth, answers), (output > 0).long().numpy()
    any_tag = truth.sum() + guess.sum() > 0
    expected = {
        "f1": sklearn.metrics.f1_score(truth, guess, average="micro", zero_division=0) if any_tag else 1.0,
        "macro_f1": sklearn.metrics.f1_score(truth, guess, average="macro", zero_division=0),
        "exact": sklearn.metrics.accuracy_score(truth, guess),
        "hamming_loss": sklearn.metrics.hamming_loss(truth, guess),
    }
    assert found == pytest.approx(expected)


def test_tags_are_written_as_words():
    target = Tags(["sun", "sea", "snow"])
    found = target.columns(target.decode(torch.tensor([[4.0, 4, -4], [-4, -4, -4]])))
    assert found["prediction"].tolist() == ["sun sea", ""] and found["p_snow"] == pytest.approx(
        [0.018, 0.018], abs=1e-3
    )


# --- All of them ------------------------------------------------------------------------------------------------------

CASES = {
    "classes": (lambda: fitted(Classes, np.arange(4)), lambda rng, n: rng.integers(0, 4, n), 4),
    "one logit": (
        lambda: Classes(["a", "b"], ["a", "b"], single=True),
        lambda rng, n: np.array(["a", "b"])[rng.integers(0, 2, n)],
        1,
    ),
    "a number": (lambda: fitted(Numbers, np.array([1.0, 5.0, 9.0])), lambda rng, n: rng.normal(5, 2, n), 1),
    "numbers": (
        lambda: fitted(Numbers, np.array([[1.0, 5.0], [9.0, 0.0]])),
        lambda rng, n: rng.normal([1, 50], [1, 20], (n, 2)),
        2,
    ),
    "tags": (lambda: fitted(Tags, TABLE), lambda rng, n: rng.integers(0, 2, (n, 3)), 3),
}


@pytest.mark.parametrize("case", CASES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), n=st.integers(1, 50), size=st.integers(1, 20))
def test_the_score_summed_over_batches_is_the_score_of_the_whole(case, seed, n, size):
    make, draw, width = CASES[case]
    rng = np.random.default_rng(seed)
    target = make()
    truth = target.encode(draw(rng, n))
    output = torch.from_numpy(rng.normal(size=(n, width))).float()
    sums: dict = {}
    for k in range(0, n, size):
        for name, value in target.tally(output[k : k + size], truth[k : k + size]).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    found = target.summary(sums, n)
    whole = scores(target, target.people(truth.numpy()), target.decode(output))
    assert found == pytest.approx({target.quick: whole[target.quick]}, rel=1e-4, abs=1e-6)
    better = {measure.name: measure.better for measure in target.measures()}
    assert better[target.quick] == target.quick_better


@given(logit=st.floats(-(2**-20), 2**-20, width=32))
def test_a_score_of_the_epoch_and_one_of_the_end_agree_on_the_closest_calls(logit):
    """Two logits whose probabilities round to the same number are still told apart, in both."""
    single, pair = fitted(Classes, [0, 1]), fitted(Classes, [0, 1])
    single.adopt(nn.BCEWithLogitsLoss())
    for target, output in ((single, torch.tensor([[logit]])), (pair, torch.tensor([[0.0, logit]]))):
        for label in (0, 1):
            truth = target.encode([label])
            right = target.decode(output).prediction[0] == str(label)
            assert bool(target.tally(output, truth)["correct"]) == right


def test_answers_are_cut_row_by_row():
    answers = Answers(np.arange(4), np.arange(4) / 4, np.eye(4))
    some = answers[np.array([3, 1])]
    assert (
        len(some) == 2
        and some.prediction.tolist() == [3, 1]
        and some.probabilities.tolist() == np.eye(4)[[3, 1]].tolist()
    )
    assert Answers(np.arange(4))[:2].confidence is None


def test_a_loss_is_seen_through_its_partials():
    assert bare(functools.partial(functools.partial(F.mse_loss, reduction="sum"), reduction="mean")) is F.mse_loss
    assert bare(None) is None


def test_classes_stand_in_the_order_in_which_people_count():
    target = Classes()
    truth = np.array(["s10", "s2", "s1", "s2"])
    target.fit(truth)
    assert target.labels == ["s1", "s2", "s10"] and target.encode(truth).tolist() == [2, 1, 0, 1]
