"""Clusters: groups that are there are found, without answers; how many there are; views; a run from end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples
from sklearn.neighbors import NearestNeighbors
from torch import nn

import lamina
from lamina import data, sources, views
from lamina.augment import make
from lamina.baselines import kmeans
from lamina.domains.arrays import Arrays
from lamina.domains.image import Image
from lamina.errors import DataError, RunError, UsageError
from lamina.keyed import Key
from lamina.recipe import Recipe
from lamina.targets.clusters import AGAIN, Clusters, Grouping, contrast, count, group


def blobs(clusters: int, n: int = 300, size: int = 6, apart: float = 8.0, seed: int = 0):
    """(points (n, size), which blob each is of): round normal ones, some `apart` from each other."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, clusters, n)
    centres = apart * np.linalg.qr(rng.normal(size=(max(size, clusters), size)))[0][:clusters] * np.sqrt(size)
    return (centres[which] + rng.normal(size=(n, size))).astype("float32"), which


# --- Grouping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_as_many_clusters_are_found_as_there_are(clusters):
    points, which = blobs(clusters)
    found, tried = count(points, most=8)
    assert found == clusters
    assert [entry["clusters"] for entry in tried] == list(range(2, 9))
    assert tried[clusters - 2]["stability"] == pytest.approx(1)
    assert adjusted_rand_score(which, group(points, found).answers(points).prediction) == 1


def test_the_number_of_clusters_is_the_same_every_time():
    points, _ = blobs(4, apart=1.0)
    assert count(points, most=6, seed=3) == count(points, most=6, seed=3)


def test_more_clusters_than_a_third_of_the_examples_are_not_tried():
    points, _ = blobs(2, n=10)
    assert [entry["clusters"] for entry in count(points)[1]] == [2, 3]


def test_clusters_are_numbered_by_size_and_resamples_are_matched_to_them():
    points, which = blobs(3, n=600)
    points, which = points[np.argsort(which)][: 600 - 80], np.sort(which)[: 600 - 80]
    found = group(points, 3)
    answers = found.answers(points)
    assert found.sizes.tolist() == sorted(found.sizes.tolist(), reverse=True) and found.sizes.sum() == len(points)
    assert np.bincount(answers.prediction)[1:].tolist() == found.sizes.tolist()
    assert answers.again.shape == (len(points), AGAIN)
    assert (answers.again == answers.prediction[:, None]).all()


def test_answers_are_those_of_the_formulas():
    rng = np.random.default_rng(0)
    centres, again = rng.normal(size=(3, 2)).astype("float32"), rng.normal(size=(2, 3, 2)).astype("float32")
    points = rng.normal(size=(7, 2)).astype("float32")
    answers = Grouping(centres, again, 0.5, np.ones(3, int)).answers(points)
    for n, point in enumerate(points):
        apart = [((point - centre) ** 2).sum() for centre in centres]
        k = int(np.argmin(apart))
        shares = []
        for some in (centres, *again):
            powers = np.exp([-((point - centre) ** 2).sum() / (2 * 0.5) for centre in some])
            shares.append(powers / powers.sum())
        assert answers.prediction[n] == k + 1
        np.testing.assert_allclose(answers.probabilities[n], np.mean(shares, 0), rtol=1e-4)
        assert answers.confidence[n] == answers.probabilities[n, k]
        near, next_ = np.sqrt(sorted(apart)[:2])
        assert answers.silhouette[n] == pytest.approx((next_ - near) / next_, rel=1e-4)
        assert answers.distance[n] == pytest.approx(near, rel=1e-4)
    assert (answers[2:4].again == answers.again[2:4]).all() and len(answers[2:4]) == 2


def test_the_variance_is_that_along_the_directions_in_which_points_differ():
    rng = np.random.default_rng(0)
    points = np.zeros((4000, 20), "float32")
    points[:, :2] = rng.normal(0, 0.5, (4000, 2))  # in the other 18 directions they are the same
    points[:2000, 0] += 20
    assert group(points, 2).variance == pytest.approx(0.25, rel=0.06)


def test_an_example_between_two_clusters_is_less_sure_than_one_in_the_middle():
    points, which = blobs(2, apart=3.0)
    found = group(points, 2)
    middle, centre = points.mean(0, keepdims=True), points[which == 0].mean(0, keepdims=True)
    assert found.answers(middle).confidence[0] < 0.99 < found.answers(centre).confidence[0]


def test_scores_are_of_what_is_found_again_and_of_how_far_clusters_are_apart():
    measures = {measure.name: measure.compute for measure in Clusters().measures()}
    for apart in (8.0, 0.3):
        points, _ = blobs(3, apart=apart)
        answers = group(points, 3).answers(points)
        again = [(answers.prediction == answers.again[:, b]).mean() for b in range(AGAIN)]
        assert measures["stability"](np.empty((300, 0)), answers) == pytest.approx(np.mean(again))
        assert (measures["stability"](np.empty((300, 0)), answers) == 1) == (apart == 8.0)
        simplified = measures["silhouette"](np.empty((300, 0)), answers)
        full = silhouette_samples(points, answers.prediction).mean()
        assert abs(simplified - full) < 0.25 and (simplified > 0.5) == (full > 0.5)


# --- What is learned --------------------------------------------------------------------------------------------------


def test_the_contrast_is_that_of_its_formula():
    torch.manual_seed(0)
    output = torch.randn(8, 5, dtype=torch.float64)
    total = 0.0
    for a in range(8):
        b = (a + 4) % 8
        alike = [torch.exp(F.cosine_similarity(output[a], output[c], 0) / 0.3) for c in range(8)]
        total -= torch.log(alike[b] / sum(alike[c] for c in range(8) if c != a))
    assert float(contrast(output, temperature=0.3)) == pytest.approx(float(total) / 8)


def test_the_contrast_is_least_where_views_agree_and_examples_do_not():
    apart = torch.eye(4)
    assert contrast(apart.repeat(2, 1), temperature=0.1) < contrast(
        torch.cat([apart, apart.roll(1, 0)]), temperature=0.1
    )
    assert contrast(apart.repeat(2, 1), temperature=0.1) < contrast(torch.ones(8, 4), temperature=0.1)


def key(n: int, epoch: int = 0) -> Key:
    return Key(7, epoch, torch.arange(n))


def test_two_views_of_an_example_differ_and_depend_on_nothing_but_the_example():
    x = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    pairs = views.Pairs(make("shift=2,rotate=20"))
    (both,) = pairs((x,), key(6))
    assert both.shape == (12, 1, 8, 8) and not torch.equal(both[:6], both[6:])
    assert torch.equal(both, pairs((x,), key(6))[0])
    assert not torch.equal(both, pairs((x,), key(6, epoch=1))[0])
    (some,) = pairs((x[2:4],), Key(7, 0, torch.tensor([2, 3])))
    assert torch.equal(some, both[[2, 3, 8, 9]])


def test_the_second_view_is_of_a_neighbour():
    x = torch.arange(10.0)[:, None]
    near = torch.tensor([[(k + 1) % 10, (k + 2) % 10] for k in range(10)])
    pairs = views.Pairs(lambda inputs, key: inputs, near, (x,))
    seen = [set() for _ in range(10)]
    for epoch in range(40):
        (both,) = pairs((x[3:7],), Key(0, epoch, torch.arange(3, 7)))
        assert both[:4, 0].tolist() == [3, 4, 5, 6]
        for k, other in zip(range(3, 7), both[4:, 0].tolist(), strict=True):
            seen[k].add(int(other))
    assert all(seen[k] == set(near[k].tolist()) for k in range(3, 7))


def test_swapped_values_are_those_of_other_examples_in_the_asked_share():
    x = torch.arange(4000.0).view(400, 10)  # every value once, its column by its last digit
    swapped = views.Swap(0.25)((x,), key(400))[0]
    assert (swapped % 10 == torch.arange(10.0)).all()
    changed = swapped != x
    assert float(changed.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(views.Swap(0.0)((x,), key(400))[0], x)
    both = views.Swap(0.5)((x, torch.arange(400).view(400, 1)), key(400))
    assert both[1].dtype == torch.int64 and both[1].shape == (400, 1)


def test_neighbours_are_the_nearest_by_a_search_through_all():
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(40, 3)).astype("float32"), rng.normal(size=(7, 3)).astype("float32")
    for given, first in ((None, 1), (others, 0)):
        asked = points if given is None else given
        expected = np.argsort(((asked[:, None] - points[None]) ** 2).sum(2), 1)[:, first : first + 4]
        assert (views.neighbours(points, given, 4) == expected).all()
    assert views.neighbours(points[:3], None, 5).shape == (3, 2)


def test_points_of_columns_are_standardised_and_gaps_their_mean():
    table = np.array([[1.0, 100], [3.0, np.nan], [5.0, 300]])
    one, other = views.points(table, np.array([[3.0, 200], [np.nan, 300]]))
    np.testing.assert_allclose(one.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(other, [[0, 0], [0, 1]], atol=1e-5)
    assert views.points(np.full((4, 2), 3.0))[0].tolist() == [[0, 0]] * 4


def test_points_of_many_numbers_keep_the_order_of_distances_in_fewer():
    from scipy import sparse

    x = load_digits().data
    flat = x.reshape(-1, 8, 8)
    (points,) = views.points(flat)
    assert points.shape == (len(x), views.PARTS)
    nearest = NearestNeighbors(n_neighbors=1).fit(x).kneighbors(return_distance=False)[:, 0]
    assert (views.neighbours(points)[:, 0] == nearest).mean() > 0.95
    (thin,) = views.points(sparse.csr_matrix(x))
    assert thin.shape == (len(x), views.PARTS) and np.isfinite(thin).all()


def test_the_test_part_is_nobodys_neighbour():
    x, _ = blobs(3, n=200)
    asked = Recipe(task="clusters", valid="0.2", test="0.2", scale="standard", seed=0)
    loaded, _ = data.load(asked, sources.open(x))
    train, valid = loaded.rows("train"), loaded.rows("valid")
    assert np.isin(loaded.near[train].numpy(), train).all() and np.isin(loaded.near[valid].numpy(), train).all()
    assert not (loaded.near[train].numpy() == train[:, None]).any()


def test_colour_pictures_that_are_near_pixel_by_pixel_are_no_neighbours():
    rng = np.random.default_rng(0)
    for channels, some in ((1, True), (3, False)):
        x = rng.integers(0, 256, (20, channels, 8, 8)).astype("uint8")
        domain = Image()
        domain.fit((x,), np.arange(20))
        found = domain.plain(domain.encode((x,)), np.arange(10), "neighbours")
        assert (found is not None) == some


def test_pictures_need_changes_to_be_seen_twice():
    with pytest.raises(UsageError, match=r"two changed views of each, and augment is none(?s:.*)--augment"):
        Image().change(Recipe(augment="none"))
    assert Image().change(Recipe(augment="shift=2")).spec == "shift=2"
    assert Arrays().change(Recipe()) == views.Swap()


# --- Runs -------------------------------------------------------------------------------------------------------------


def test_groups_are_found_from_end_to_end(runs):
    x, which = blobs(4, n=400, apart=5.0)
    run = lamina.train(x, epochs=5, runs=runs, quiet=True)
    assert run.facts["task"] == "clusters" and run.target.labels == ["1", "2", "3", "4"]
    answers = run.predict(x)
    assert normalized_mutual_info_score(which, answers.prediction) > 0.95
    assert run.headline.score == "stability" and run.headline.value > 0.95 and run.headline.split == "test"
    entry = json.loads((run.folder / "scores.json").read_text())
    assert {e["score"] for e in entry["scores"]} == {"stability", "silhouette"}
    assert {e["name"] for e in entry["baselines"]} == {"k-means"}
    lines = (run.folder / "predictions.csv").read_text().splitlines()
    assert lines[0] == "id,cluster,confidence" and len(lines) == 81
    page = (run.folder / "report.html").read_text()
    assert "Cluster by cluster" in page and "4 clusters by stability" in page
    again = lamina.load(run.folder)
    assert (again.predict(x).prediction == answers.prediction).all()
    assert again.reload(x).fingerprint() == run.facts["data"]["fingerprint"]
    scores = {e["score"]: e["value"] for e in again.evaluate(x)}
    assert scores["stability"] > 0.95 and 0 < scores["silhouette"] <= 1


def test_answers_that_are_there_are_not_looked_at(runs):
    x, which = blobs(3, n=200)
    one = lamina.train((x, which), task="clusters", epochs=2, runs=runs, quiet=True, report=False)
    other = lamina.train((x, 1 - which), task=Clusters(clusters=3), epochs=2, runs=runs, quiet=True, report=False)
    assert one.facts["data"]["train"] == other.facts["data"]["train"] == 140
    weights = [run.weights() for run in (one, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_as_many_clusters_as_were_asked_for(runs):
    x, _ = blobs(3, n=200)
    run = lamina.train(x, task_arg={"clusters": 5}, epochs=2, runs=runs, quiet=True)
    assert len(run.target.labels) == 5 and run.target.remarks() == []
    assert run.predict(x[:9]).probabilities.shape == (9, 5)


def test_pictures_are_learned_from_two_changed_views(runs):
    x = load_digits().images.astype("uint8")[:300] * 16
    run = lamina.train(x, task_arg={"clusters": 10}, epochs=3, runs=runs, quiet=True)
    assert run.facts["domain"] == "image" and run.recipe.augment.startswith("shift=1,rotate")
    page = (run.folder / "report.html").read_text()
    assert "The most typical held-out examples" in page
    assert (run.folder / "figures" / "clusters.png").is_file()


def test_a_run_that_is_killed_goes_on_to_the_same_clusters(runs):
    x, _ = blobs(3, n=200)
    options = {"task_arg": {"clusters": 3}, "runs": runs, "quiet": True, "report": False, "baselines": False}
    whole = lamina.train(x, epochs=4, **options)

    def cut(progress):
        if progress.step == 5:
            raise RuntimeError("cut off")

    with pytest.raises(UsageError, match="cut off"):
        lamina.train(x, epochs=4, watchers=[cut], name="cut", **options)
    again = lamina.resume(runs / "cut", x, quiet=True)
    one, other = whole.weights(), again.weights()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole.predict(x).prediction == again.predict(x).prediction).all()


# --- Refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [1, 0, -3, 2.5, "many"])
def test_numbers_of_clusters_that_are_none_are_refused(clusters):
    with pytest.raises(UsageError, match=r"clusters is(?s:.*)a whole number, 2 or more"):
        Clusters(clusters=clusters)


def test_too_few_examples_are_refused_before_training(runs):
    with pytest.raises(DataError, match="There are 8 examples for 10 clusters"):
        lamina.train(blobs(2, n=8)[0], task_arg={"clusters": 10}, runs=runs, quiet=True)
    assert not list(runs.iterdir())


def test_a_loss_and_a_dataset_are_refused(runs):
    x, which = blobs(2, n=60)
    with pytest.raises(UsageError, match="you named a loss"):
        lamina.train(x, task="clusters", loss="mse", runs=runs, quiet=True)

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, k):
            return x[k], int(which[k])

    with pytest.raises(UsageError, match="sought among columns, and you gave a Items"):
        lamina.train(Items(), task="clusters", net=nn.Linear(6, 4), runs=runs, quiet=True)


def test_an_own_net_without_answers_is_told_what_is_missing(runs):
    with pytest.raises(DataError, match="has no answers to learn from"):
        lamina.train(blobs(2, n=60)[0], net=nn.Linear(6, 4), runs=runs, quiet=True)


def test_an_own_net_learns_clusters_where_they_are_asked_for(runs):
    x, which = blobs(3, n=300)
    run = lamina.train(
        x, task="clusters", task_arg={"clusters": 3}, net=nn.Linear(6, 4), epochs=5, runs=runs, quiet=True
    )
    assert run.target.dimensions == 4
    assert normalized_mutual_info_score(which, run.predict(x).prediction) > 0.9


def test_a_run_without_its_clusters_says_so(runs):
    run = lamina.train(blobs(2, n=60)[0], epochs=1, runs=runs, quiet=True, report=False, baselines=False)
    place = run.folder / "clusters.safetensors"
    whole = place.read_bytes()
    place.write_bytes(whole[:40])
    with pytest.raises(RunError, match=r"clusters\.safetensors"):
        _ = lamina.load(run.folder).target
    place.unlink()
    with pytest.raises(RunError, match="no clusters yet"):
        lamina.load(run.folder).predict(blobs(2, n=60)[0])


def test_k_means_beside_the_net_is_scikit_learns():
    x, which = blobs(3, n=400)
    answers, note = kmeans.answers(x[:300], x[300:], 3, 0)
    assert adjusted_rand_score(which[300:], answers.prediction) == 1 and note == ""
    pictures = np.random.default_rng(0).integers(0, 256, (80, 1, 12, 12)).astype("uint8")
    assert kmeans.answers(pictures[:60], pictures[60:], 2, 0)[1] == "on 50 principal components"


def test_answers_say_where_an_example_lies():
    points, _ = blobs(2)
    assert np.array_equal(group(points, 2).answers(points).embedding, points)


def test_the_report_tells_what_sets_a_cluster_of_a_table_apart(runs):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 200)
    table = {
        "size": (10.0 * kind + rng.normal(size=200)).round(2).tolist(),
        "noise": rng.normal(size=200).round(2).tolist(),
        "colour": np.array(["red", "blue"])[kind].tolist(),
    }
    options = {"target": "none", "task_arg": {"clusters": 2}, "epochs": 5, "runs": runs, "quiet": True}
    run = lamina.train(table, **options)
    page = (run.folder / "report.html").read_text()
    assert "size high (+" in page and "size low (-" in page and "noise high" not in page and "noise low" not in page
    assert "colour red (100 % instead of" in page and "colour blue (100 % instead of" in page


def test_a_check_of_data_without_answers_has_nothing_against_that(tmp_path, capsys):
    from lamina.cli import main

    place = tmp_path / "points.csv"
    x, _ = blobs(3, n=200)
    place.write_text("\n".join(["a,b,c,d,e,f", *(",".join(f"{value:.3f}" for value in row) for row in x)]))
    with pytest.raises(SystemExit) as left:
        main(["check", str(place), "--target", "none"])
    assert left.value.code in (0, None)
    told = capsys.readouterr().out
    assert "clusters" in told and "no answers to learn from" not in told
