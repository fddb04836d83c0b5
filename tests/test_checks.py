"""Every fault is planted once and found with its rows, and sound data give no finding."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lamina
from lamina import checks, sources
from lamina.checks import arrays, check, copies, pool
from lamina.errors import DataError
from lamina.findings import SEVERITIES, Finding, raise_errors
from lamina.sources import Examples, Source
from lamina.splits import Split, split

N = 500


def sound(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """500 examples of 4 numbers in 3 balanced classes, all different."""
    return np.random.default_rng(seed).normal(size=(N, 4)).astype(np.float32), np.arange(N) % 3


def source(x, y=None, **other) -> Source:
    """As `sources.open` makes it, without its refusals."""
    x = x if isinstance(x, tuple) else (x,)
    return Source("planted", Examples(x, y, **other))


def kinds(findings: list[Finding]) -> dict[str, Finding]:
    json.dumps([asdict(finding) for finding in findings])  # they are written to data.json
    assert all(finding.severity in SEVERITIES and finding.what and finding.done for finding in findings)
    assert all(len(finding.examples) <= 10 for finding in findings)
    assert len({finding.kind for finding in findings}) == len(findings)
    return {finding.kind: finding for finding in findings}


# --- Silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y, task",
    [
        (np.arange(N) % 3, "classes"),
        (np.array(["a", "b", "c"])[np.arange(N) % 3], "classes"),
        (np.arange(N) % 2 == 0, "classes"),
        ((np.arange(N) % 2).astype(float), "classes"),
        ((np.arange(N) % 2)[:, None], "classes"),
        (np.random.default_rng(1).normal(size=N), "numbers"),
        (np.random.default_rng(1).normal(size=(N, 2)), "numbers"),
        (np.random.default_rng(1).integers(0, 2, (N, 5)), "tags"),
        (np.arange(N * 6).reshape(N, 6) % 7, "tokens"),
        (np.arange(N) % 3, None),
        (None, None),
    ],
)
def test_sound_data_give_no_finding(y, task):
    x, _ = sound()
    labels = np.arange(N) % 3
    assert check(source(x, y), task=task) == []
    assert check(source(x, y), task=task, split=split(N, truth=labels)) == []
    assert check(source((x, x > 0), y), task=task) == []


@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer"])
def test_the_samples_are_sound(name):
    opened = sources.open(name)
    truth = opened.train.truth
    assert check(opened, task="classes", split=split(len(truth), truth=truth)) == []


def test_the_copy_in_iris_is_known():
    (finding,) = check(sources.open("iris"), task="classes")
    assert finding.kind == "duplicates" and finding.examples == [[101, 142]]


def test_mnist_is_sound(shared_data):
    opened = sources.open("mnist", data_dir=shared_data)
    assert check(opened, task="classes") == []
    rows = split(60_000, truth=opened.train.truth, test=0)
    flat = source(opened.train.inputs[0].reshape(60_000, 784), opened.train.truth)
    assert set(kinds(check(flat, task="classes", split=rows))) == {"constant_columns"}


# --- Inputs -----------------------------------------------------------------------------------------------------------


def test_inputs_that_are_not_finite():
    x, y = sound()
    x[[7, 9], 1] = np.nan, -np.inf
    found = kinds(check(source(x, y), task="classes"))["not_finite"]
    assert (found.severity, found.count, found.examples) == ("error", 2, [7, 9]) and "rows 7, 9" in found.what


def test_constant_columns():
    x, y = sound()
    x[:, 2] = 4
    found = kinds(check(source(x, y, names=["a", "b", "c", "d"]), task="classes"))
    assert set(found) == {"constant_columns"}
    assert (found["constant_columns"].count, found["constant_columns"].examples) == (1, ["c"])
    assert kinds(check(source(x, y)))["constant_columns"].examples == [2]


def test_the_margin_of_pictures_may_be_constant():
    pictures = np.random.default_rng(0).integers(0, 256, (N, 1, 5, 5), dtype=np.uint8)
    pictures[:, :, 0] = 0
    assert check(source(pictures, np.arange(N) % 3, kind="pictures"), task="classes") == []
    assert set(kinds(check(source(pictures * 0, np.arange(N) % 3, kind="pictures")))) == {"constant", "duplicates"}


def test_a_value_far_off():
    x, y = sound()
    x[33, 1] = 5000
    found = kinds(check(source(x, y), task="classes"))
    assert set(found) == {"outliers"}
    assert found["outliers"].examples == [1] and "5000" in found["outliers"].what


def test_rare_flags_are_not_far_off():
    x, y = sound()
    x[:, 1] = 0
    x[33, 1] = 1  # 22 standard deviations from the mean
    assert check(source(x, y), task="classes") == []


@pytest.mark.filterwarnings("error")
def test_numbers_near_the_end_of_the_range_are_no_trouble():
    x, y = sound()
    huge = x.astype(np.float64) * 1e300
    assert set(kinds(check(source(huge, huge[:, 0]), task="numbers"))) <= {"skew", "gives_away"}
    huge[:, 1] = np.where(np.arange(N) % 2, 5e-324, 0)
    check(source(huge, y), task="classes")


def test_columns_of_very_different_sizes():
    x, y = sound()
    x[:, 0] *= 1e5
    assert check(source(x, y), task="classes") == []
    x[:, 1] *= 1e-3
    found = kinds(check(source(x, y), task="classes"))
    assert set(found) == {"ranges"} and found["ranges"].examples == [1, 0]


def test_a_rows_hash_does_not_depend_on_how_many_are_worked_on_together(monkeypatch):
    columns = [np.arange(60, dtype=np.uint8).reshape(20, 3), np.random.default_rng(0).normal(size=(20, 4))]
    found = checks.row_hashes(columns)
    for words in (1, 7, 1000):
        monkeypatch.setattr(copies, "_WORDS", words)
        assert np.array_equal(checks.row_hashes(columns), found)


@given(st.integers(2, 50), st.integers(1, 5), st.sampled_from([0, 1e6, -1e9]), st.integers(0, 2**32 - 1))
def test_moments_are_those_of_numpy(rows, features, offset, seed):
    column = np.random.default_rng(seed).normal(size=(rows, features)) + offset
    chunk, arrays._CHUNK = arrays._CHUNK, 7
    try:
        low, high, mean, std = arrays.moments(column)
    finally:
        arrays._CHUNK = chunk
    assert np.array_equal(low, column.min(0)) and np.array_equal(high, column.max(0))
    assert np.allclose(mean, column.mean(0), rtol=1e-12) and np.allclose(std, column.std(0), rtol=1e-5)


# --- Copies -----------------------------------------------------------------------------------------------------------


def test_copies_among_all():
    x, y = sound()
    x[[40, 41, 42]] = x[3]
    y[[40, 41, 42]] = y[3]
    found = kinds(check(source(x, y), task="classes"))
    assert set(found) == {"duplicates"}
    assert (found["duplicates"].count, found["duplicates"].examples) == (3, [[3, 40], [3, 41], [3, 42]])


def test_copies_across_the_split():
    x, y = sound()
    x[40], y[40] = x[3], y[3]
    x[60], y[60] = x[50], y[50]  # both in test: no leak
    rows = Split(np.setdiff1d(np.arange(N), [1, 2, 40, 50, 60]), np.array([1, 2]), np.array([40, 50, 60]))
    found = kinds(check(source(x, y), task="classes", split=rows))
    assert set(found) == {"duplicates", "leak"}
    assert (found["leak"].count, found["leak"].examples) == (1, [[3, 40]])
    assert "1 of 3 test" in found["leak"].what and "row 40 (test) as row 3 (train)" in found["leak"].what
    rows = Split(np.setdiff1d(np.arange(N), [3]), np.array([], int), np.array([3]))  # the earlier one is in test
    assert kinds(check(source(x, y), task="classes", split=rows))["leak"].examples == [[40, 3]]


def test_copies_across_given_parts():
    x, y = sound()
    other = sound(1)[0][:50]
    other[7] = x[5]
    given_parts = Source("given", Examples((x,), y), test=Examples((other,), y[:50]))
    found = kinds(check(given_parts, task="classes"))
    assert found["leak"].examples == [[5, N + 7]] and "1 of 50 test" in found["leak"].what
    rows = split(N, truth=y, test=0)  # of the training examples only
    assert kinds(check(given_parts, task="classes", split=rows))["leak"].count == 1


def test_equal_inputs_with_different_answers():
    x, y = sound()
    x[4], x[6] = x[3], x[3]  # classes 1, 0, 0
    found = kinds(check(source(x, y), task="classes"))["conflicts"]
    assert (found.severity, found.count, found.examples) == ("warning", 3, [[3, 4]])
    tags = np.eye(3, dtype=int)[y]
    assert kinds(check(source(x, tags), task="tags"))["conflicts"].examples == [[3, 4]]
    assert "conflicts" not in kinds(check(source(x, y.astype(float)), task="numbers"))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=60), st.data())
def test_copies_are_those_of_brute_force(table, data):
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.float32, np.float64, np.bool_, np.int64]))
    column = np.array(table).astype(dtype)
    several = data.draw(st.booleans())
    columns = (column[:, :1], column[:, 1:]) if several else (column,)
    expected = [row for row in range(len(column)) if any((column[row] == column[k]).all() for k in range(row))]
    counts = [finding.count for finding in check(source(columns)) if finding.kind == "duplicates"]
    assert counts == ([len(expected)] if expected else [])


def test_hashes_differ_where_sums_would_cancel():
    base = np.array([[1.0, 2.0, 3.0, 4.0]])
    signs = ([-1, -1, 1, 1], [-1, 1, -1, 1], [1, 1, -1, -1])
    rows = [base, base[:, ::-1], base + [1, -1, 0, 0], *(base * sign for sign in signs)]
    assert len(np.unique(checks.row_hashes([np.concatenate(rows)]))) == len(rows)
    zeros = np.array([[0.0, 1.0], [-0.0, 1.0]])
    assert len(np.unique(checks.row_hashes([zeros]))) == 1
    left, right = np.array([[1.0], [2.0]]), np.array([[2.0], [1.0]])
    assert len(np.unique(checks.row_hashes([left, right]))) == 2


def test_large_tables_are_sampled_and_say_so(monkeypatch):
    x, y = sound()
    x[4] = x[2] = x[0]
    x[7, 0] = np.nan
    monkeypatch.setattr(pool, "MOST_BYTES", x.nbytes // 2)
    found = kinds(check(source(x, y), task="numbers"))
    assert found["sampled"].severity == "note" and "250 of 500" in found["sampled"].what
    assert found["duplicates"].examples == [[0, 2], [0, 4]] and "not_finite" not in found
    x[8, 0] = np.nan
    assert kinds(check(source(x, y), task="numbers"))["not_finite"].examples == [8]


# --- Answers ----------------------------------------------------------------------------------------------------------


def planted(y: np.ndarray, rows, value) -> np.ndarray:
    y = y.copy()
    y[rows] = value
    return y


NAMES = np.array(["ant", "bee", "cat"])[np.arange(N) % 3]


@pytest.mark.parametrize(
    "y, task",
    [
        (planted(NAMES.astype(object), [3, 8], None), "classes"),
        (planted(NAMES.astype(object), [3, 8], float("nan")), "classes"),
        (planted(NAMES, [3, 8], ""), "classes"),
        (planted(NAMES, [3, 8], "  "), None),
        (planted((np.arange(N) % 3).astype(float), [3, 8], np.nan), "classes"),
        (planted(np.random.default_rng(1).normal(size=N), [3, 8], np.nan), "numbers"),
        (planted(np.random.default_rng(1).normal(size=(N, 2)), ([3, 8], 1), np.nan), "numbers"),
    ],
)
def test_missing_answers(y, task):
    found = kinds(check(source(sound()[0], y), task=task))
    assert set(found) == {"missing_answers"}
    finding = found["missing_answers"]
    assert (finding.severity, finding.count, finding.examples) == ("error", 2, [3, 8])


@pytest.mark.parametrize(
    "y, kind, rows",
    [
        (planted((np.arange(N) % 3).astype(float), [3, 8], 0.5), "fractional_labels", [3, 8]),
        (planted((np.arange(N) % 3).astype(float), [3, 8], -1), "negative_labels", [3, 8]),
        (planted(np.arange(N) % 3, [3, 8], -1), "negative_labels", [3, 8]),
    ],
)
def test_labels_that_are_no_classes(y, kind, rows):
    found = kinds(check(source(sound()[0], y), task="classes"))
    assert set(found) == {kind}
    assert (found[kind].severity, found[kind].count, found[kind].examples) == ("error", 2, rows)


def test_signs_are_classes():
    assert check(source(sound()[0], np.arange(N) % 2 * 2 - 1), task="classes") == []


def test_no_answers_at_all():
    assert set(kinds(check(source(sound()[0]), task="classes"))) == {"no_answers"}


def test_one_class_only():
    x, y = sound()
    found = kinds(check(source(x, y * 0), task="classes"))
    assert found["one_class"].severity == "error" and found["one_class"].examples == ["0"]
    rows = np.flatnonzero(y == 0)
    found = kinds(check(source(x, y), task="classes", split=Split(rows, rows[:0], np.flatnonzero(y > 0))))
    assert "one_class" in found  # in training: the others are of no use there


def test_rare_classes():
    y = planted(NAMES, [3, 8], "dog")
    found = kinds(check(source(sound()[0], y), task="classes"))
    assert set(found) == {"rare_classes", "imbalance"}
    assert (found["rare_classes"].severity, found["rare_classes"].examples) == ("warning", ["dog"])
    assert check(source(sound()[0], planted(NAMES, np.arange(9), "dog")), task="classes") == []


def test_imbalance():
    y = (np.arange(N) < 23).astype(int)
    found = kinds(check(source(sound()[0], y, labels=["well", "ill"]), task="classes"))
    assert set(found) == {"imbalance"}
    assert found["imbalance"].examples == ["well", "ill"] and "95.4%" in found["imbalance"].what
    assert check(source(sound()[0], (np.arange(N) < 24).astype(int)), task="classes") == []  # 476 / 24 < 20


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_class_that_train_never_sees(part):
    x, _ = sound()
    y = planted(NAMES, np.arange(5), "dog")
    held, rest = np.arange(10), np.arange(10, N)
    rows = Split(rest, held, held[:0]) if part == "valid" else Split(rest, held[:0], held)
    found = kinds(check(source(x, y), task="classes", split=rows))
    assert set(found) == {"unseen_class", "imbalance"}
    assert (found["unseen_class"].severity, found["unseen_class"].examples) == ("error", ["dog"])
    assert found["unseen_class"].count == 5 and part in found["unseen_class"].what
    given_part = Source("given", Examples((x[10:],), y[10:]), **{part: Examples((x[:10],), y[:10])})
    assert "unseen_class" in kinds(check(given_part, task="classes"))


def test_numbers_that_are_none():
    assert set(kinds(check(source(sound()[0], NAMES), task="numbers"))) == {"not_numbers"}
    y = np.random.default_rng(1).normal(size=N)
    found = kinds(check(source(sound()[0], planted(y, [3, 8], np.inf)), task="numbers"))
    assert set(found) == {"infinite_answers"} and found["infinite_answers"].examples == [3, 8]


def test_one_number_only():
    y = np.random.default_rng(1).normal(size=(N, 2))
    y[:, 0] = 2.5
    assert check(source(sound()[0], y), task="numbers") == []  # one of two
    found = kinds(check(source(sound()[0], np.full(N, 2.5)), task="numbers"))
    assert set(found) == {"one_number"} and found["one_number"].severity == "error"


def test_skewed_numbers():
    from scipy.stats import skew

    y = np.exp(2 * np.random.default_rng(1).normal(size=N))
    found = kinds(check(source(sound()[0], y), task="numbers"))
    assert set(found) == {"skew"} and f"{skew(y):+.1f}" in found["skew"].what and "log1p" in found["skew"].fix


def test_tags_that_are_none():
    tags = planted(np.random.default_rng(1).integers(0, 2, (N, 5)), ([3, 8], 2), 2)
    found = kinds(check(source(sound()[0], tags), task="tags"))
    assert set(found) == {"bad_tags"} and found["bad_tags"].examples == [3, 8]


def test_tiny_data():
    x, y = sound()
    assert set(kinds(check(source(x[:99], y[:99]), task="classes"))) == {"tiny"}
    assert check(source(x[:100], y[:100]), task="classes") == []


# --- What are no columns ----------------------------------------------------------------------------------------------


class Items(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, row):
        raise AssertionError("an item was read")


class Stream(IterableDataset):
    def __iter__(self):
        raise AssertionError("an item was read")


@pytest.mark.parametrize("dataset", [Items(), Stream(), DataLoader(Items()), DataLoader(Stream())])
def test_no_item_of_a_dataset_is_read(dataset):
    assert check(sources.open(dataset), task="classes") == []


def test_the_answers_of_a_dataset_are_checked():
    found = check(Source("items", Examples(Items(), np.zeros(N, int), kind="dataset")), task="classes")
    assert [finding.kind for finding in found] == ["one_class"]


# --- All together -----------------------------------------------------------------------------------------------------


def test_findings_come_worst_first_and_errors_are_raised_together():
    x, y = sound()
    x, y = x[:60], y[:60].astype(object)
    x[3, 1], x[9], y[5] = np.nan, x[8], None
    findings = check(source(x, y), task="classes")
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, key=SEVERITIES.index) and set(severities) == set(SEVERITIES)
    with pytest.raises(DataError) as told:
        raise_errors(findings)
    assert "row 3" in str(told.value) and "row 5" in str(told.value) and "examples" in told.value.fix
    raise_errors([finding for finding in findings if finding.severity != "error"])


def test_tensors_are_checked_like_arrays():
    x, y = sound()
    x[9] = x[8]
    opened = sources.open((torch.tensor(x), torch.tensor(y)))
    assert kinds(check(opened, task="classes"))["duplicates"].examples == [[8, 9]]


# --- What was asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "said"), [(None, False), (1, False), (30, False), (31, True), (10_000, True)])
def test_a_batch_larger_than_the_data_is_said_and_is_one_batch(asked, said):
    findings = checks.large_batch(asked, 30)
    assert [finding.kind for finding in findings] == ["large_batch"] * said
    if said:
        assert f"{asked:,}" in findings[0].what and "30 training" in findings[0].what


def test_a_training_with_a_batch_larger_than_the_data_takes_one_step_an_epoch(tmp_path):
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    run = lamina.train((x, (x[:, 0] > 0).astype(int)), net=torch.nn.Linear(3, 2), batch_size=1000, epochs=3, runs=tmp_path,
                       baselines=False, report=False)  # fmt: skip
    assert [entry["step"] for entry in run.history if "event" not in entry] == [1, 2, 3]
    said = " ".join((run.folder / "train.log").read_text().split())
    assert "batch_size is 1,000, and there are 32 training examples" in said
