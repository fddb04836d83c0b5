"""Tables: each fault of a column is planted once and found by the column's name, and sound tables give no finding."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.checks import check, columns, copies, giveaways, pool
from lamina.findings import Finding
from lamina.sources import Examples, Source
from lamina.splits import Split

N = 300
RNG = np.random.default_rng(0)


def sound() -> dict[str, np.ndarray]:
    """A table of two numbers, a category, a boolean, a date, in which nothing is wrong."""
    rng = np.random.default_rng(0)
    return {
        "height": rng.normal(170, 10, N).round(1),
        "weight": rng.normal(70, 10, N).round(1),
        "colour": np.array(["red", "green", "blue"], object)[rng.integers(0, 3, N)],
        "member": rng.random(N) < 0.5,
        "day": np.datetime64("2026-01-01") + rng.integers(0, 365, N),
    }


def table(given: dict[str, np.ndarray], truth=None, **other) -> Source:
    examples = Examples(tuple(given.values()), truth, "table", list(given), np.arange(2, len(truth) + 2), **other)
    return Source("planted", examples, target=("kind",))


def kinds(findings: list[Finding]) -> dict[str, Finding]:
    json.dumps([finding.state() for finding in findings])
    assert len({finding.kind for finding in findings}) == len(findings)
    return {finding.kind: finding for finding in findings}


CLASSES = np.array(["a", "b", "c"], object)[np.arange(N) % 3]
NUMBERS = np.random.default_rng(5).normal(size=N)


@pytest.mark.parametrize("truth, task", [(CLASSES, "classes"), (NUMBERS, "numbers"), (CLASSES, None)])
def test_a_sound_table_gives_no_finding(truth, task):
    assert check(table(sound(), truth), task=task) == []


# --- Columns ----------------------------------------------------------------------------------------------------------


def test_empty_constant_and_naming_columns():
    given = {
        **sound(),
        "none": np.full(N, np.nan),
        "nothing": np.full(N, None, object),
        "same": np.full(N, 7.0),
        "key": np.array([f"{k * 7919 % 10007:05d}x" for k in range(N)], object),
        "number": np.arange(N)[::-1] + 100.0,
    }
    found = kinds(check(table(given, CLASSES), task="classes"))
    assert set(found) == {"empty_columns", "constant_columns", "identifier_columns"}
    assert found["empty_columns"].examples == ["none", "nothing"]
    assert found["constant_columns"].examples == ["same"]
    assert found["identifier_columns"].examples == ["key", "number"]
    assert found["identifier_columns"].fix == "--ignore key --ignore number"


@pytest.mark.parametrize(
    "column",
    [
        np.array([f"a note of some words about case {k}" for k in range(N)], object),  # texts
        np.random.default_rng(0).normal(size=N),  # a measurement
        np.array([f"{k % 200}" for k in range(N)], object),
        np.random.default_rng(0).integers(0, 10**6, N).astype(float),  # whole, but it counts nothing
    ],
)
def test_what_names_no_row(column):
    assert not columns.is_identifier(column)


def test_gaps_are_counted_column_by_column():
    given = sound()
    given["weight"][:30] = np.nan
    given["colour"][:200] = None
    found = kinds(check(table(given, CLASSES), task="classes"))
    finding = found["missing_values"]
    assert (finding.severity, finding.count, finding.examples) == ("warning", 2, ["colour", "weight"])
    assert "'colour' 66.7%, 'weight' 10.0%" in finding.what and finding.fix.endswith("or --ignore colour")
    given["colour"] = sound()["colour"]
    assert kinds(check(table(given, CLASSES), task="classes"))["missing_values"].severity == "note"


def test_a_category_for_most_rows():
    given = {**sound(), "user": np.array([f"u{k % 200}" for k in range(N)], object)}
    found = kinds(check(table(given, CLASSES), task="classes"))
    assert found["high_cardinality"].examples == ["user"] and "'user' (200) of 300" in found["high_cardinality"].what


def test_a_value_far_off_is_told_with_its_line():
    given = sound()
    given["weight"][9] = 70_000
    finding = kinds(check(table(given, CLASSES), task="classes"))["outliers"]
    assert finding.examples == ["weight"] and "70000 in 'weight' (line 11;" in finding.what
    given["weight"][9] = 1e308  # its square is beyond the range
    assert kinds(check(table(given, CLASSES), task="classes"))["outliers"].examples == ["weight"]


# --- Copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark, others", [(-999, (18, 90)), (-1, (0, 0.9)), (9, (1, 4)), (99999, (0, 500)), (-9, (0.5, 1.5))]
)
def test_a_number_that_stands_for_a_gap_is_told(mark, others):
    draw = np.random.default_rng(0)
    column = draw.uniform(*others, N).round(1 if others[1] < 5 else 0)
    assert "missing_marks" not in kinds(check(table({"age": column}, CLASSES), task="classes"))
    column[[3, 77, 200, 299]] = mark
    finding = kinds(check(table({"age": column}, CLASSES), task="classes"))["missing_marks"]
    assert finding.severity == "warning" and finding.examples == ["age"] and f"missing={mark}" in finding.fix
    assert f"{mark} in 'age' (4 rows" in finding.what


@pytest.mark.parametrize(
    "values",
    [[-1, 1], [-1, 0, 1], [0, 9], [1, 5, 9], [95, 97, 99], [-1, 5, 5], [7, 8, 9]],
    ids=lambda values: str(values),
)
def test_numbers_among_their_like_are_no_marks(values):
    column = np.resize(np.array(values, float), N)
    assert "missing_marks" not in kinds(check(table({"x": column}, CLASSES), task="classes"))


def test_rows_are_equal_in_all_columns_but_their_names():
    given = sound()
    given["weight"][5] = np.nan
    given["colour"][5] = None
    for column in given.values():
        column[40] = column[5]
    numbered = {"id": np.arange(N) + 0.0, **given}
    for table_ in (given, numbered):
        found = kinds(check(table(table_, CLASSES), task="classes"))
        assert found["duplicates"].examples == [["7", "42"]] and "line 42 as line 7" in found["duplicates"].what
        assert found["conflicts"].examples == [["7", "42"]]


def test_a_coarse_table_with_a_name_for_each_row_has_no_copies():
    given = {"id": np.arange(N) + 0.0, "colour": sound()["colour"]}
    assert "duplicates" not in kinds(check(table(given, CLASSES), task="classes"))


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from([0.0, -0.0, 1.0, np.nan])), min_size=2,
                max_size=40))  # fmt: skip
def test_codes_are_equal_where_the_values_are(rows):
    texts = np.array([text for text, _ in rows] + [None], object)[:-1]
    numbers = np.array([number for _, number in rows])
    for column in (texts, numbers):
        found = columns.codes(column)
        for a in range(len(column)):
            for b in range(a):
                gaps = column[a] != column[a] and column[b] != column[b]
                assert (found[a] == found[b]) == (column[a] == column[b] or gaps)


# --- What gives the answer away ---------------------------------------------------------------------------------------


def told(given: dict[str, np.ndarray], truth: np.ndarray, task: str) -> dict[str, Finding]:
    return kinds([*giveaways.giveaways(pool.pool(table(given, truth)), task)])


SPREAD = np.random.default_rng(3).permutation(N)
PAIRS = [*zip(SPREAD, CLASSES, strict=True)]
COPIES = {
    "a code": np.array([{"a": 1.0, "b": 2.0, "c": 3.0}[label] for label in CLASSES]),
    "a word": np.array([label.upper() for label in CLASSES], object),
    "the beginning of a word": np.array([f"{label}-{k * 7919 % 1000}" for k, label in PAIRS], object),
    "its first letters": np.array([f"x{label}{k}" for k, label in PAIRS], object),
    "a range of numbers": np.array([{"a": 0.0, "b": 1000.0, "c": 2000.0}[label] + k for k, label in PAIRS]),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_column_that_tells_the_class(name):
    finding = told({**sound(), "spy": COPIES[name]}, CLASSES, "classes")["gives_away"]
    assert (finding.severity, finding.examples, finding.fix) == ("warning", ["spy"], "--ignore spy")


@pytest.mark.parametrize("name", COPIES)
def test_a_column_that_tells_it_mostly_is_a_good_column(name):
    spy = COPIES[name].copy()
    wrong = np.random.default_rng(1).permutation(N)[:30]
    spy[wrong] = spy[np.roll(wrong, 1)]
    assert told({**sound(), "spy": spy}, CLASSES, "classes") == {}


@pytest.mark.parametrize(
    "spy, away",
    [
        (3 * NUMBERS - 7, True),
        (np.exp(NUMBERS), True),
        (np.round(NUMBERS, 2), True),
        (NUMBERS**2, False),  # without the sign
        (NUMBERS + np.random.default_rng(1).normal(0, 0.3, N), False),
        (np.array([f"{number:.1f}" for number in NUMBERS], object), False),  # most values occur once
    ],
)
def test_a_column_that_tells_the_number(spy, away):
    assert bool(told({**sound(), "spy": spy}, NUMBERS, "numbers")) == away


def test_a_sum_of_columns_is_told_as_a_formula():
    rng = np.random.default_rng(0)
    casual, registered, other = rng.poisson(30, N) + 0.0, rng.poisson(200, N) + 0.0, rng.normal(size=N)
    given = {"casual": casual, "noise": other, "registered": registered}
    finding = told(given, casual + registered, "numbers")["sum_gives_away"]
    assert finding.examples == ["casual", "registered"] and "kind = casual + registered in" in finding.what
    finding = told(given, 2 * casual - registered / 2 + 3, "numbers")["sum_gives_away"]
    assert "kind = 2 casual - 0.5 registered + 3 in" in finding.what
    assert told(given, casual + registered + rng.normal(0, 1, N), "numbers") == {}


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.booleans())
def test_the_score_of_a_column_is_that_of_leaving_one_out(seed, values, ordered):
    rng = np.random.default_rng(seed)
    column, classes = rng.integers(0, values, 60).astype(float), rng.integers(0, 3, 60)
    column[:10] = 100 + np.arange(10)  # values that occur once
    wrong = 0
    for row in range(60):
        rest = np.arange(60) != row
        like = classes[rest & (column == column[row])]
        if len(like):
            counts = np.bincount(like, minlength=3)
            right = counts[classes[row]] == counts.max() and (counts == counts.max()).sum() == 1
        elif ordered:
            distinct = np.unique(column[rest])
            nearest = distinct[np.abs(distinct - column[row]).argmin()]  # the lower one of two
            counts = np.bincount(classes[column == nearest], minlength=3)
            right = counts[classes[row]] == counts.max()
            if right and (counts == counts.max()).sum() > 1:
                return  # which of two equally frequent is said, nobody knows
        else:
            right = False
        wrong += not right
    always = np.bincount(classes).max()
    expected = 1 - max(0, wrong - 1) / (60 - always)
    assert giveaways._classes_told(column, classes, ordered=ordered) == pytest.approx(expected)


# --- Drift ------------------------------------------------------------------------------------------------------------


def drawn(shift: float, how: str = "as given") -> dict[str, Finding]:
    given = sound()
    later = np.arange(N) >= 200
    given["weight"] = given["weight"] + shift * later
    rows = Split(np.flatnonzero(~later), np.zeros(0, np.int64), np.flatnonzero(later), how)
    return kinds(check(table(given, CLASSES), task="classes", split=rows))


def test_test_examples_that_are_otherwise_are_told():
    finding = drawn(12)["drift"]
    assert (finding.severity, finding.examples) == ("warning", ["weight"]) and "1 of 6 respects" in finding.what
    assert "drift" not in drawn(0)
    assert "drift" not in drawn(12, "stratified by class, seed 0")  # drawn from the same


def test_words_and_answers_drift_too():
    given, later = sound(), np.arange(N) >= 200
    given["colour"] = np.where(later & (np.arange(N) % 2 == 0), "violet", given["colour"]).astype(object)
    truth = np.where(later & (np.arange(N) % 3 > 0), "a", CLASSES).astype(object)
    rows = Split(np.flatnonzero(~later), np.zeros(0, np.int64), np.flatnonzero(later), "as given")
    found = kinds(check(table(given, truth), task="classes", split=rows))
    assert set(found["drift"].examples) == {"colour", "the answer"}


def test_distances_of_distributions_are_those_of_scipy():
    from scipy.stats import ks_2samp

    from lamina.checks import drift

    before, after = RNG.normal(size=300), RNG.normal(0.2, 1, size=200)
    assert drift._numbers(before, after)[0] == pytest.approx(ks_2samp(before, after).statistic)
    assert drift._numbers(before, after)[1] == pytest.approx(ks_2samp(before, after, method="asymp").pvalue, abs=0.02)


@pytest.mark.parametrize("words", [2, 3, 9])
def test_the_distance_of_words_has_the_p_value_of_scipy(words):
    from scipy.stats import chi2_contingency

    from lamina.checks import drift

    before, after = RNG.integers(0, words, 300), np.minimum(RNG.integers(0, words + 1, 200), words - 1)
    counts = np.stack([np.bincount(side, minlength=words) for side in (before, after)])
    distance, chance = drift._words(before, after)
    assert distance == pytest.approx(np.abs(counts[0] / 300 - counts[1] / 200).sum() / 2)
    assert chance == pytest.approx(chi2_contingency(counts)[1])
    assert drift._words(before * 0, after * 0) == (0.0, 1.0)


def test_copies_of_tables_with_gaps_stay_in_one_part():
    given = sound()
    for column in given.values():
        column[200:] = column[:100]
    units = copies.find(pool.pool(table(given, CLASSES))).units(N)
    assert units is not None and all(units[200 + k] == units[k] for k in range(100)) and len(set(units)) == 200
