"""Baselines against scikit-learn's own pipelines, and what they do with data that no linear model takes."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from lamina import baselines as models
from lamina.errors import DataError, UsageError
from lamina.targets.base import Measure


def baselines(task, x_train, y_train, x_test, y_test, *arguments, **options):
    """The constant and the linear model."""
    pair = None if x_train is None else (x_train, x_test)
    return models.baselines(task, {"linear": lambda: pair}, y_train, y_test, *arguments, **options)


def log_loss(order):
    place = {label: k for k, label in enumerate(order)}

    def each(truth, answers):
        rows = np.arange(len(truth))
        return -np.log(np.maximum(answers.probabilities[rows, [place[label] for label in truth.tolist()]], 1e-15))

    return Measure("log_loss", lambda t, a: float(each(t, a).mean()), "lower", each=each)


def hits(truth, answers):
    return (truth == answers.prediction).reshape(len(truth), -1).all(1).astype(float)


def squares(truth, answers):
    return np.square(truth - answers.prediction).reshape(len(truth), -1).mean(1)


ACCURACY = Measure("accuracy", lambda t, a: float(hits(t, a).mean()), each=hits, exact=True)
RMSE = Measure("rmse", lambda t, a: float(squares(t, a).mean() ** 0.5), "lower", each=squares, finish=np.sqrt)


def blobs(n: int, labels=("cat", "dog", "owl"), columns: int = 8, apart: float = 1.0, seed: int = 0):
    """Classes that a linear model can nearly tell apart, columns of very different scales."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(len(labels), columns)) * apart
    y = random.integers(0, len(labels), n)
    x = (centres[y] + random.normal(size=(n, columns))) * 10.0 ** np.linspace(-3, 3, columns) + 5
    return x, np.asarray(labels)[y]


def by_name(entries, score):
    return {entry["name"]: entry for entry in entries if entry["score"] == score}


def test_majority_is_the_dummy_classifier():
    from sklearn.dummy import DummyClassifier
    from sklearn.metrics import log_loss as reference

    (x, y), (x2, y2) = blobs(300), blobs(200, seed=1)
    y[:100] = "owl"
    dummy = DummyClassifier(strategy="prior").fit(x, y)
    order = ["cat", "dog", "owl"]
    found = baselines("classes", x, y, x2, y2, [ACCURACY, log_loss(order)], seed=0)
    assert by_name(found, "accuracy")["majority"]["value"] == dummy.score(x2, y2)
    assert by_name(found, "log_loss")["majority"]["value"] == pytest.approx(reference(y2, dummy.predict_proba(x2)))


def test_mean_is_the_dummy_regressor():
    from sklearn.dummy import DummyRegressor

    random = np.random.default_rng(0)
    x, y = random.normal(size=(100, 3)), random.normal(size=(100, 2)) + 7
    found = baselines("numbers", x[:60], y[:60], x[60:], y[60:], [RMSE], seed=0)
    dummy = DummyRegressor().fit(x[:60], y[:60]).predict(x[60:])
    assert by_name(found, "rmse")["mean"]["value"] == pytest.approx(np.sqrt(np.square(dummy - y[60:]).mean()))


@pytest.mark.parametrize("labels", [("cat", "dog"), ("cat", "dog", "owl")])  # of two, one output is modelled
def test_linear_is_standardised_logistic_regression(labels):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss as reference
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (x2, y2) = blobs(400, labels), blobs(300, labels, seed=1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10 / 8, max_iter=1000)).fit(x, y)
    found = baselines("classes", x, y, x2, y2, [ACCURACY, log_loss(model.classes_.tolist())], seed=0)
    assert by_name(found, "accuracy")["linear"]["value"] == pytest.approx(model.score(x2, y2), abs=0.011)
    ours = by_name(found, "log_loss")["linear"]["value"]
    assert ours == pytest.approx(reference(y2, model.predict_proba(x2)), rel=0.01)


@pytest.mark.parametrize("rows", [200, 5])  # 5 are fewer than the columns
def test_linear_is_standardised_ridge(rows):
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, _ = blobs(300)
    y = np.log(np.abs(x)) @ np.random.default_rng(0).normal(size=(8, 2)) + x[:, :2] * 1e3
    model = make_pipeline(StandardScaler(), Ridge(alpha=0.8)).fit(x[:rows], y[:rows])
    found = baselines("numbers", x[:rows], y[:rows], x[200:], y[200:], [RMSE], seed=0)
    theirs = np.sqrt(np.square(model.predict(x[200:]) - y[200:]).mean())
    assert by_name(found, "rmse")["linear"]["value"] == pytest.approx(theirs, rel=1e-4)


def test_columns_that_are_one_column_are_solved():
    x = np.random.default_rng(0).normal(size=(100_000, 1)).repeat(6, 1)
    found = baselines("numbers", x[:90_000], x[:90_000, 0], x[90_000:], x[90_000:, 0], [RMSE], seed=0)
    assert by_name(found, "rmse")["linear"]["value"] < 1e-3


def test_entries_are_scores_with_a_name():
    (x, y), (x2, y2) = blobs(300), blobs(120, seed=1)
    found = baselines("classes", x, y, x2, y2, [ACCURACY, log_loss(["cat", "dog", "owl"])], seed=0, split="valid")
    assert [(entry["name"], entry["score"]) for entry in found] == [
        (name, score) for name in ("majority", "linear") for score in ("accuracy", "log_loss")
    ]
    for entry in found:
        assert entry["low"] <= entry["value"] <= entry["high"] and entry["n"] == 120 and entry["split"] == "valid"
        assert entry["trained_on"] == 300 and entry["seconds"] >= 0 and "note" not in entry
    json.dumps(found, allow_nan=False)


def test_a_class_more_or_another_order_changes_no_score():
    (x, y), (x2, y2) = blobs(300), blobs(120, seed=1)
    orders = ["cat", "dog", "owl"], ["owl", "cat", "dog"], ["ape", "owl", "cat", "dog"]
    values = [
        [e["value"] for e in baselines("classes", x, y, x2, y2, [ACCURACY, log_loss(order)], seed=0, labels=order)]
        for order in orders
    ]
    assert values[0] == pytest.approx(values[1]) and values[0] == pytest.approx(values[2])


def test_pictures_of_any_type_are_rows_of_columns():
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (200, 1, 6, 6), dtype=np.uint8)
    y = np.where(x[:, 0, :3].mean((1, 2)) > x[:, 0, 3:].mean((1, 2)), 1, 0)
    for kind in (np.uint8, np.float32, np.int64):
        found = baselines("classes", x[:150].astype(kind), y[:150], x[150:].astype(kind), y[150:], [ACCURACY], seed=0)
        assert by_name(found, "accuracy")["linear"]["value"] > 0.85
    mask = x > 127
    assert len(baselines("classes", mask[:150], y[:150], mask[150:], y[150:], [ACCURACY], seed=0)) == 2


def test_what_is_too_much_is_sampled_by_the_seed_and_said():
    (x, y), (x2, y2) = blobs(4000, columns=20, apart=0.3), blobs(500, columns=20, apart=0.3, seed=1)

    def linear(seed, seconds):
        measures = [log_loss(["cat", "dog", "owl"])]
        return by_name(baselines("classes", x, y, x2, y2, measures, seed=seed, seconds=seconds), "log_loss")["linear"]

    few, again, other, all_rows = linear(0, 0.005), linear(0, 0.005), linear(1, 0.005), linear(0, 10.0)
    assert few["trained_on"] == 500 and few["note"] == "learned from 500 of 4,000 rows"  # 10,000 cells of 20 columns
    assert few["value"] == again["value"] != other["value"]
    assert all_rows["trained_on"] == 4000 and "note" not in all_rows and all_rows["value"] < few["value"]


def test_a_rare_class_is_never_sampled_away():
    x, y = blobs(4000, columns=20)
    y[123] = "yak"
    only = slice(123, 124)
    measures = [log_loss(["cat", "dog", "owl", "yak"])]
    found = baselines("classes", x, y, x[only], y[only], measures, seed=0, seconds=0.001)
    entry = by_name(found, "log_loss")["linear"]
    assert entry["trained_on"] in (100, 101)  # 2,000 cells, and the yak
    assert entry["value"] < 15  # its probability is not 0


def test_wide_rows_are_thinned_and_said():
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 3000))
    y = np.where(x[:, ::10].mean(1) > 0, "up", "down")
    found = baselines("classes", x[:200], y[:200], x[200:], y[200:], [ACCURACY], seed=0, seconds=0.1)
    assert by_name(found, "accuracy")["linear"]["note"] == "learned from 1,000 of 3,000 columns"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_values_stand_at_the_mean(bad):
    (x, y), (x2, y2) = blobs(300, apart=2.0), blobs(120, apart=2.0, seed=1)
    for table in (x, x2):
        table[::7, 2] = bad
        table[:, 5] = bad
    found = baselines("classes", x, y, x2, y2, [ACCURACY], seed=0)
    assert by_name(found, "accuracy")["linear"]["value"] > 0.8


def test_moments_in_time_keep_their_seconds():
    """1.7e9 + x is the same number for most x in float32."""
    x = np.random.default_rng(0).normal(size=(200, 1))
    found = baselines("numbers", 1.7e9 + x[:150], x[:150, 0], 1.7e9 + x[150:], x[150:, 0], [RMSE], seed=0)
    assert by_name(found, "rmse")["linear"]["value"] < 0.01


def test_tags_are_a_logistic_regression_each():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(0)
    x = random.normal(size=(400, 5)) * 10.0 ** np.arange(-2, 3)
    y = (x @ random.normal(size=(5, 3)) / np.array([1, 10, 100]) + random.normal(size=(400, 3)) > 0).astype(int)
    theirs = [
        make_pipeline(StandardScaler(), LogisticRegression(C=2)).fit(x[:300], tag).predict_proba(x[300:])[:, 1]
        for tag in y[:300].T
    ]
    seen = []
    measure = Measure("seen", lambda t, a: seen.append(a.probabilities) or 0.0, each=hits)
    baselines("tags", x[:300], y[:300], x[300:], y[300:], [measure], seed=0)
    assert np.stack(theirs, 1) == pytest.approx(seen[-1], abs=2e-3)


def test_tags_that_never_vary_need_no_model():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 5))
    y = np.stack([x[:, 0] > 0, x[:, 1] > 1, np.zeros(400), np.ones(400)], 1).astype(int)
    found = baselines("tags", x[:300], y[:300], x[300:], y[300:], [ACCURACY], seed=0)
    values = by_name(found, "accuracy")
    share = (y[300:] == [y[:300, 0].mean() >= 0.5, 0, 0, 1]).all(1).mean()
    assert values["majority"]["value"] == pytest.approx(share) and values["linear"]["value"] > 0.9


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (None, np.array(["a", "b"] * 10), "not arrays"),
        (np.array(["some", "words"] * 10), np.array(["a", "b"] * 10), "<U5, not numbers"),
        (np.ones((20, 3)), np.array(["a"] * 20), "one class"),
        (np.ones((402, 3)), np.arange(402) // 2, "201 classes are more than 200"),
        (np.ones((20, 0)), np.array(["a", "b"] * 10), "no columns"),
    ],
)
def test_what_no_linear_model_takes_gets_the_majority_and_a_note(x, y, reason):
    found = baselines("classes", x, y, x, y, [ACCURACY], seed=0)
    assert [entry["name"] for entry in found] == ["majority"]
    assert found[0]["note"].startswith("no linear baseline: ") and reason in found[0]["note"]


def test_nothing_held_out():
    x, y = blobs(20)
    found = baselines("classes", x, y, x[:0], y[:0], [ACCURACY], seed=0)
    assert found[0]["value"] is None and found[0]["note"] == "no examples; no linear baseline: no held-out examples"


def test_two_hundred_numbers_an_example_are_not_too_many():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 3)), random.normal(size=(60, 250))
    assert len(baselines("numbers", x[:40], y[:40], x[40:], y[40:], [RMSE], seed=0)) == 2


def test_neither_scikit_learn_nor_the_compiler_is_loaded():
    """Either takes longer to import than the baselines to make."""
    program = """
import sys
import numpy as np
from lamina.baselines import baselines
from lamina.targets.base import Measure
x = np.arange(40.0)[:, None]
score = Measure("accuracy", lambda t, a: 0.0, each=lambda t, a: (t == a.prediction) * 1.0)
assert [entry["name"] for entry in baselines("classes", {"linear": lambda: (x, x)}, x[:, 0] > 19,
                                                         x[:, 0] > 19, [score], seed=0)][-1] == "linear"
assert not {"sklearn", "scipy.stats", "scipy.optimize", "torch._dynamo"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_warning_reaches_the_user():
    x, y = blobs(500, columns=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baselines("classes", x[:400], y[:400], x[400:], y[400:], [ACCURACY], seed=0, seconds=0.001)


def test_impossible_requests_are_told():
    x, y = blobs(20)
    with pytest.raises(UsageError, match="'tokens'"):
        baselines("tokens", x, y, x, y, [ACCURACY], seed=0)
    with pytest.raises(DataError, match="no training examples"):
        baselines("classes", x[:0], y[:0], x, y, [ACCURACY], seed=0)
    with pytest.raises(DataError, match="'owl'"):
        baselines("classes", x, y, x, y, [ACCURACY], seed=0, labels=["cat", "dog"])


def test_real_digits_are_learned_by_a_linear_model():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    found = baselines("classes", x[:1400], y[:1400], x[1400:], y[1400:], [ACCURACY], seed=0)
    values = by_name(found, "accuracy")
    assert values["linear"]["low"] > 0.85 > 0.2 > values["majority"]["high"]
