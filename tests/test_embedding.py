"""People by likeness: the margin loss against its formula, pairs and thresholds against brute force, the gallery on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F

import lamina
from lamina import losses
from lamina.errors import RunError, UsageError
from lamina.targets import embedding
from lamina.targets.embedding import NOBODY, Embedding, area, bounded, centres, equal_error, pairs

RNG = np.random.default_rng(0)


def fitted(people=("ada", "bo", "cy"), dimensions=16):
    target = Embedding(dimensions=dimensions)
    target.fit(np.array(people))
    return target


def near(target, people, noise=0.1, seed=0):
    """Outputs (N, D) near the centres of some people, and the numbers of those."""
    truth = target.encode(np.array(people))
    table = torch.nn.functional.one_hot(truth, 16).float()  # whoever it is, a direction of his own
    generator = torch.Generator().manual_seed(seed)
    return table + noise * torch.randn(len(table), 16, generator=generator), truth


# --- The loss ---------------------------------------------------------------------------------------------------------


def test_arcface_is_cross_entropy_of_the_angle_made_larger_by_the_margin():
    angles = torch.rand(40, 5, dtype=torch.float64) * 2 + 0.2
    truth = torch.arange(40) % 5
    wider = angles + 0.4 * F.one_hot(truth, 5)
    expected = F.cross_entropy(wider.cos() * 10, truth)
    assert float(losses.arcface(angles.cos(), truth, margin=0.4, scale=10)) == pytest.approx(float(expected), rel=1e-6)


def test_arcface_without_a_margin_is_cross_entropy_of_scaled_cosines():
    cosines, truth = torch.rand(30, 4) * 2 - 1, torch.arange(30) % 4
    expected = F.cross_entropy(cosines * 16, truth)
    assert float(losses.arcface(cosines, truth, margin=0.0)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("cosine", [1.0, -1.0, -0.99, 0.999999])
def test_the_gradient_of_arcface_is_finite_at_the_ends(cosine):
    cosines = torch.tensor([[cosine, 0.3]], requires_grad=True)
    losses.arcface(cosines, torch.tensor([0])).backward()
    assert torch.isfinite(cosines.grad).all()


def test_arcface_falls_as_the_angle_to_the_truth_gets_smaller_all_the_way():
    cosines = torch.linspace(-1, 1, 201)
    values = [float(losses.arcface(torch.tensor([[c, 0.0]]), torch.tensor([0]), margin=0.5)) for c in cosines.tolist()]
    assert (np.diff(values) < 0).all()


def test_people_without_a_centre_are_left_out_of_the_mean():
    cosines, truth = torch.rand(4, 3), torch.tensor([0, 2, 7, 1])
    kept = truth < 3
    assert torch.allclose(losses.arcface(cosines, truth), losses.arcface(cosines[kept], truth[kept]))
    assert float(losses.arcface(cosines, torch.tensor([3, 4, 5, 6]))) == 0


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"margin": 1.6}, {"scale": 0}])
def test_a_margin_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError, match="margin"):
        losses.arcface(torch.rand(2, 2), torch.tensor([0, 1]), **wrong)


# --- Centres ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "dimensions"), [(2, 16), (40, 128), (16, 16), (5, 7)])
def test_up_to_as_many_centres_as_dimensions_are_a_simplex(classes, dimensions):
    table = centres(classes, dimensions).double()
    cosines = table @ table.T
    expected = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    assert torch.allclose(cosines, expected, atol=1e-5)


def test_more_centres_than_dimensions_are_far_apart_and_always_the_same():
    table = centres(300, 128)
    cosines = (table @ table.T).fill_diagonal_(0)
    assert cosines.abs().max() < 0.5 and torch.allclose(table.norm(dim=1), torch.ones(300))
    centres.cache_clear()
    assert torch.equal(table, centres(300, 128))


# --- Pairs and thresholds ---------------------------------------------------------------------------------------------


def test_pairs_are_all_pairs_of_two_examples_and_one_row_is_no_pair_with_itself():
    table = RNG.normal(size=(7, 3)).astype(np.float32)
    people, row = np.array([0, 0, 1, 1, 2, 0, 0]), np.array([0, 1, 2, 3, 4, 0, 1])
    scores, same = pairs(table, people, row)
    expected = [(i, j) for i in range(7) for j in range(i + 1, 7) if row[i] != row[j]]
    assert len(scores) == len(expected) == 19
    assert scores == pytest.approx([table[i] @ table[j] for i, j in expected], rel=1e-5)
    assert same.tolist() == [people[i] == people[j] for i, j in expected]


def test_the_area_is_that_of_scikit_learn_ties_included():
    same, other = RNG.integers(0, 9, 50) / 9, RNG.integers(0, 7, 80) / 9
    truth = np.r_[np.ones(50), np.zeros(80)]
    assert area(same, other) == pytest.approx(sklearn.metrics.roc_auc_score(truth, np.r_[same, other]))
    assert np.isnan(area(same, np.zeros(0)))


def test_the_equal_error_is_where_both_kinds_of_mistake_meet():
    same, other = RNG.normal(1, 1, 4000), RNG.normal(-1, 1, 4000)
    threshold, error = equal_error(same, other)
    missed, taken = (same < threshold).mean(), (other >= threshold).mean()
    assert abs(missed - taken) < 0.002 and error == pytest.approx((missed + taken) / 2, abs=1e-3)
    assert threshold == pytest.approx(0, abs=0.1) and error == pytest.approx(0.1587, abs=0.01)  # Phi(-1)


def test_pairs_that_are_apart_have_no_error_and_a_threshold_midway():
    threshold, error = equal_error(np.array([0.9, 0.8]), np.array([0.1, 0.4]))
    assert error == 0 and threshold == pytest.approx(0.6)


# --- The gallery ------------------------------------------------------------------------------------------------------


def test_who_is_near_is_named_and_who_is_not_is_nobody():
    target = fitted()
    output, truth = near(target, ["ada", "bo", "cy"] * 5)
    target.remember(output, truth, np.array([f"p{k}" for k in range(15)]))
    target.calibrate(*near(target, ["ada", "bo", "cy"] * 8, seed=1))
    assert -1 < target.stranger < 1 and -1 < target.same < 1
    known = target.decode(near(target, ["cy", "ada"], seed=2)[0])
    assert known.known.all() and known.prediction.tolist() == ["cy", "ada"]
    assert all(name in {f"p{k}" for k in range(2, 15, 3)} for name in known.nearest[0])  # three pictures of cy
    stranger = target.decode(F.one_hot(torch.tensor([9]), 16).float())
    assert target.given(stranger).prediction.tolist() == [NOBODY] and not stranger.known[0]
    assert target.given(known).prediction.tolist() == ["cy", "ada"]


def test_without_a_validation_split_nobody_is_a_stranger_and_that_is_said():
    target = fitted()
    output, truth = near(target, ["ada", "bo", "cy"])
    target.remember(output, truth, np.array(list("abc")))
    assert target.decode(torch.randn(9, 16)).known.all() and "no" in " ".join(target.remarks())
    target.calibrate(*near(target, ["ada", "bo", "cy"] * 3, seed=3))
    assert "Below a similarity" in " ".join(target.remarks())


def test_a_person_is_added_without_training():
    target = fitted()
    output, truth = near(target, ["ada", "bo", "cy"] * 4)
    target.remember(output, truth, np.arange(12).astype(str))
    dan = F.one_hot(torch.tensor([7, 7]), 16).float()
    assert "dan" not in target.decode(dan).prediction
    target.gallery = target.gallery.with_(dan, np.array(["dan", "dan"]), np.array(["d1", "d2"]))
    assert target.decode(dan).prediction.tolist() == ["dan", "dan"]
    assert target.decode(near(target, ["bo"], seed=5)[0]).prediction.tolist() == ["bo"]


def test_a_gallery_is_the_same_after_the_disk_whatever_people_are_called(tmp_path):
    people = ["ada", "bo\nwith a line", "çy ", ""]
    target = Embedding(dimensions=16)
    target.fit(np.array(["ada", "bo", "cy"]))
    target.gallery = bounded(F.normalize(torch.randn(4, 16)), np.array(people), np.array(["p 1", "p2", "ü", ""]))
    target.save(tmp_path)
    again = Embedding(**json.loads(json.dumps(target.state())))
    again.open(tmp_path)
    assert torch.equal(again.gallery.embeddings, target.gallery.embeddings)
    assert again.gallery.people.tolist() == ["ada", "bo with a line", "çy ", ""]
    assert again.gallery.names.tolist() == ["p 1", "p2", "ü", ""]


def test_a_gallery_that_is_cut_off_is_damaged(tmp_path):
    target = fitted()
    target.gallery = bounded(F.normalize(torch.randn(4, 16)), np.array(list("abcd")), np.array(list("abcd")))
    target.save(tmp_path)
    place = tmp_path / embedding.GALLERY
    place.write_bytes(place.read_bytes()[:-3])
    with pytest.raises(RunError):
        fitted().open(tmp_path)


def test_a_large_gallery_keeps_examples_of_everybody(monkeypatch):
    monkeypatch.setattr(embedding, "EXAMPLES_MOST", 10)
    people = np.array(["many"] * 90 + ["few"] * 3)
    found = bounded(torch.arange(93.0)[:, None], people, np.arange(93).astype(str))
    assert len(found.people) <= 10 and found.left_out == 93 - len(found.people)
    assert (found.people == "few").sum() == 3 and (found.people == "many").sum() == 5
    assert found.embeddings[:, 0].long().tolist() == [int(name) for name in found.names]


# --- Scores -----------------------------------------------------------------------------------------------------------


def test_strangers_are_right_where_they_are_not_named():
    target = fitted()
    output, truth = near(target, ["ada", "bo", "cy"] * 5)
    target.remember(output, truth, np.arange(15).astype(str))
    target.stranger = 0.5
    truth = target.people(target.encode(np.array(["ada", "zoe", "yan"])))
    assert truth.tolist() == ["ada", "zoe", "yan"]
    answers = target.decode(F.one_hot(torch.tensor([0, 9, 1]), 16).float())
    scores = {measure.name: measure.compute(truth, answers) for measure in target.measures()}
    assert scores["accuracy"] == pytest.approx(2 / 3)  # ada is named, zoe is not, yan is taken for bo


def test_verification_is_measured_over_pairs():
    target = fitted()
    output, truth = near(target, ["ada", "bo", "cy"] * 6, noise=0.4)
    answers, people = target.decode(output), target.people(truth)
    scores = {measure.name: measure.compute(people, answers) for measure in target.measures()}
    table = F.normalize(output).numpy()
    one, other = np.triu_indices(18, 1)
    same = people[one] == people[other]
    cosines = (table[one] * table[other]).sum(1)
    assert scores["verification_auc"] == pytest.approx(sklearn.metrics.roc_auc_score(same, cosines))
    false, true, _ = sklearn.metrics.roc_curve(same, cosines)
    assert scores["verification_eer"] == pytest.approx(false[np.argmin(abs(1 - true - false))], abs=0.05)


def test_two_pictures_are_compared_pair_by_pair():
    target = fitted()
    one, other = target.decode(torch.eye(16)[:3]), target.decode(torch.eye(16)[[0, 5, 2]])
    similarity, same = target.compare(one, other)
    assert similarity.tolist() == [1, 0, 1] and same is None
    target.same = 0.5
    assert target.compare(one, other)[1].tolist() == [True, False, True]
    with pytest.raises(UsageError, match="3 pictures on one side"):
        target.compare(one, other[:2])


# --- From start to end ------------------------------------------------------------------------------------------------


def test_a_run_names_people_compares_unseen_ones_and_learns_a_new_one_without_training(runs):
    """Digits as people: the last two are unseen."""
    from sklearn.datasets import load_digits

    table, truth = load_digits(return_X_y=True)
    pictures = table.reshape(-1, 8, 8).astype(np.uint8) * 15
    seen = truth < 8
    run = lamina.train(
        (pictures[seen][:900], truth[seen][:900]), task="embedding", net="convnet", epochs=6, runs=runs, quiet=True,
        report=False, batch_size=64, learning_rate=6e-3, task_arg={"dimensions": 128}, threads=1,
    )  # fmt: skip
    assert run.headline.score == "accuracy" and run.headline.value > 0.9
    again = lamina.load(run.folder)
    again.reload((pictures[seen][:900], truth[seen][:900]))  # the thresholds are no part of the data
    new, who = pictures[~seen][:120], truth[~seen][:120]
    scores = {entry["score"]: entry for entry in again.evaluate((new, who))}
    assert scores["verification_auc"]["value"] > 0.6 and scores["verification_auc"]["low"] is not None
    similarity, same = again.verify(new[who == 8][:20], new[who == 8][20:40])
    other, _ = again.verify(new[who == 8][:20], new[who == 9][:20])
    assert similarity.mean() > other.mean() and same.dtype == bool
    again.enroll("eight", new[who == 8][:30])
    told = lamina.load(run.folder).predict(new[who == 8][30:])
    nines = lamina.load(run.folder).predict(new[who == 9])
    assert (told.prediction == "eight").mean() > 0.2 + (nines.prediction == "eight").mean()
