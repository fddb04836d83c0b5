"""Every row is in one part; shares, classes, groups and times are respected; the same seed gives the same split."""

from __future__ import annotations

import datetime
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import DataError, UsageError
from lamina.splits import FEW, Split, from_csv, split, to_csv

shares = st.sampled_from([0, 0.01, 0.05, 0.1, 0.15, 0.2, 1 / 3, 0.4, 0.45])
seeds = st.integers(0, 3)


def whole(found: Split, n: int) -> bool:
    """Whether the parts are disjoint, complete and sorted."""
    parts = (found.train, found.valid, found.test)
    together = np.sort(np.concatenate(parts))
    ordered = all(np.array_equal(part, np.sort(part)) and part.dtype == np.int64 for part in parts)
    return ordered and np.array_equal(together, np.arange(n)) and len(found) == n


def same(a: Split, b: Split) -> bool:
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in ("train", "valid", "test"))


def asked_for(valid: float, test: float) -> int:
    return 1 + (valid > 0) + (test > 0)


# --- Random -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), shares, shares, seeds)
def test_random_parts_are_whole_near_their_shares_and_never_empty(n, valid, test, seed):
    if n < asked_for(valid, test):
        with pytest.raises(DataError, match=f"{asked_for(valid, test)} or more"):
            split(n, valid=valid, test=test, seed=seed)
        return
    found = split(n, valid=valid, test=test, seed=seed)
    assert whole(found, n) and same(found, split(n, valid=valid, test=test, seed=seed))
    for part, share in ((found.valid, valid), (found.test, test), (found.train, 1 - valid - test)):
        assert bool(len(part)) == (share > 0)
        assert abs(len(part) - n * share) <= 2
    if n >= 100:
        assert abs(len(found.test) - n * test) <= 1


def test_a_split_of_a_thousand():
    found = split(1000)
    assert (len(found.train), len(found.valid), len(found.test)) == (700, 100, 200)
    assert found.how == "at random, seed 0"
    assert not same(found, split(1000, seed=1))
    assert found.parts[found.test].tolist() == [2] * 200 and found.parts[found.train].tolist() == [0] * 700


def test_every_row_has_the_same_chance():
    hits = np.zeros(10)
    for seed in range(600):
        hits[split(10, valid=0, test=0.3, seed=seed).test] += 1
    assert np.abs(hits / 600 - 0.3).max() < 4 * math.sqrt(0.3 * 0.7 / 600)


# --- Stratified -------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), shares, shares, seeds)
def test_every_class_is_in_every_part_by_its_share_within_one(counts, valid, test, seed):
    truth = np.repeat(np.arange(len(counts)), counts)
    n, spread = len(truth), [label for label, count in enumerate(counts) if count >= FEW]
    if not spread or n < asked_for(valid, test):
        with pytest.raises(DataError):
            split(n, truth=truth, valid=valid, test=test, how="stratified", seed=seed)
        return
    found = split(n, truth=truth, valid=valid, test=test, how="stratified", seed=seed)
    assert whole(found, n)
    assert same(found, split(n, truth=truth, valid=valid, test=test, how="stratified", seed=seed))
    members = sum(counts[label] for label in spread)
    enough = all(share * members >= 1 for share in (valid, test) if share)  # else 1 goes to a part that is due less
    for part, share in ((found.train, 1 - valid - test), (found.valid, valid), (found.test, test)):
        have = np.bincount(truth[part], minlength=len(counts))
        assert bool(len(part)) == (share > 0)
        for label in spread:
            assert abs(have[label] - share * counts[label]) <= (1 if enough else 2) + 1e-9
        total = share * members
        assert abs(have[spread].sum() - total) <= 2 + 1e-9  # the parts too, not only the classes
    rare = [label for label, count in enumerate(counts) if count < FEW]
    assert set(truth[found.valid]).isdisjoint(rare) and set(truth[found.test]).isdisjoint(rare)


def test_the_members_of_a_class_are_drawn_at_random():
    truth = np.repeat([0, 1], 50)
    tests = {tuple(split(100, truth=truth, seed=seed).test) for seed in range(20)}
    assert len(tests) == 20


@pytest.mark.parametrize(
    "truth",
    [
        np.repeat([3, 7], 50),
        np.repeat(["a", "b"], 50),
        np.repeat([True, False], 50),
        np.repeat([3, 7], 50)[:, None],
        ["a"] * 50 + ["b"] * 50,
        np.array(["a", None] * 50, dtype=object),
    ],
)
def test_auto_stratifies_classes(truth):
    found = split(100, truth=truth)
    assert found.how == "stratified by class, seed 0"
    assert (len(found.train), len(found.valid), len(found.test)) == (70, 10, 20)
    for part in (found.valid, found.test):
        values = np.asarray(truth)[part].reshape(-1).astype(str)
        assert np.unique(values, return_counts=True)[1].tolist() == [len(part) // 2] * 2


@pytest.mark.parametrize("truth", [None, np.linspace(0, 1, 100), np.eye(100, dtype=int), np.zeros((100, 3, 3), int)])
def test_auto_splits_at_random_where_there_are_no_classes(truth):
    assert split(100, truth=truth).how == "at random, seed 0"


def test_auto_sees_whole_numbers_that_are_measurements():
    assert "not stratified: 100 of 100 answers occur fewer than 3 times" in split(100, truth=np.arange(100)).how


def test_a_class_of_two_goes_to_train_with_a_word():
    truth = np.array([0] * 50 + [1] * 48 + [2] * 2)
    found = split(100, truth=truth)
    assert found.how == "stratified by class, seed 0; 1 class with fewer than 3 examples in train only"
    assert {98, 99} <= set(found.train.tolist())
    assert "2 classes with" in split(101, truth=np.append(truth, 3)).how


def test_what_cannot_be_stratified_is_refused():
    with pytest.raises(UsageError, match="cannot be stratified"):
        split(10, truth=np.linspace(0, 1, 10), how="stratified")
    with pytest.raises(UsageError, match="cannot be stratified"):
        split(10, how="stratified")
    with pytest.raises(DataError, match="No class has 3 examples or more: the largest of 5 classes has 2"):
        split(10, truth=np.arange(10) // 2, how="stratified")


# --- Grouped ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=1, max_size=120), shares, shares, seeds)
def test_no_group_straddles(groups, valid, test, seed):
    n, distinct = len(groups), len(set(groups))
    if distinct < asked_for(valid, test):
        with pytest.raises(DataError, match=f"{asked_for(valid, test)} (groups )?or more"):
            split(n, groups=groups, valid=valid, test=test, seed=seed)
        return
    found = split(n, groups=groups, valid=valid, test=test, seed=seed)
    assert whole(found, n) and same(found, split(n, groups=groups, valid=valid, test=test, seed=seed))
    sides = [set(np.array(groups)[part]) for part in (found.train, found.valid, found.test)]
    assert sum(map(len, sides)) == distinct == len(set.union(*sides))
    assert [bool(side) for side in sides] == [True, valid > 0, test > 0]


def test_groups_come_near_the_shares():
    groups = np.random.default_rng(0).integers(0, 60, 2000)
    found = split(2000, groups=[f"speaker {group}" for group in groups])
    assert found.how == "by 60 groups that stay whole, seed 0"
    assert abs(len(found.valid) - 200) < 20 and abs(len(found.test) - 400) < 20
    equal = np.repeat(np.arange(20), 5)
    assert not same(split(100, groups=equal), split(100, groups=equal, seed=1))


def test_groups_of_one_class_each_come_near_the_shares_of_all_classes():
    """As persons who are ill or well. The parts of scikit-learn's `StratifiedGroupKFold` are no nearer."""
    from sklearn.model_selection import StratifiedGroupKFold

    def off(rows: np.ndarray) -> float:
        """The furthest that a class is from a fifth of it."""
        return float(np.abs(np.bincount(truth[rows], minlength=3) / np.bincount(truth) - 0.2).max())

    for seed in range(20):
        rng = np.random.default_rng(seed)
        kind = rng.choice(3, 40, p=[0.6, 0.3, 0.1])
        groups = np.repeat(np.arange(40), rng.integers(3, 15, 40))
        truth = kind[groups]
        found = split(len(groups), truth=truth, groups=groups, valid=0, test=0.2, seed=seed)
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(groups, truth, groups)
        assert off(found.test) <= max(0.1, min(off(rows) for _, rows in folds))
    assert "40 groups that stay whole, classes as near to their shares as that allows" in found.how
    mixed = split(400, truth=np.arange(400) % 2, groups=np.arange(400) // 10, valid=0, test=0.2)
    assert np.bincount(np.arange(400)[mixed.test] % 2).tolist() == [40, 40]
    numbers = split(400, truth=np.arange(400), groups=np.arange(400) // 10)  # no class among them comes again
    assert numbers.how == "by 40 groups that stay whole, seed 0"


def test_a_missing_group_is_refused():
    with pytest.raises(DataError, match="2 groups are missing: rows 1, 3"):
        split(4, groups=["a", None, "b", ""])
    with pytest.raises(DataError, match="1 groups are missing: row 2"):
        split(4, groups=[1.0, 2.0, float("nan"), 3.0])


# --- By time ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), min_size=1, max_size=120), shares, shares)
def test_the_latest_are_the_test_and_ties_never_straddle(times, valid, test):
    n = len(times)
    if len(set(times)) < asked_for(valid, test):
        with pytest.raises(DataError, match=f"{asked_for(valid, test)} (different times )?or more"):
            split(n, times=times, valid=valid, test=test)
        return
    found = split(n, times=times, valid=valid, test=test)
    assert whole(found, n)
    parts = [np.array(times)[part] for part in (found.train, found.valid, found.test) if len(part)]
    assert len(parts) == asked_for(valid, test)
    assert all(earlier.max() < later.min() for earlier, later in itertools.pairwise(parts))


@pytest.mark.parametrize(
    "times",
    [
        np.arange(100.0)[::-1],
        (np.datetime64("2026-01-01") + np.arange(100))[::-1],
        [(datetime.date(2026, 1, 1) + datetime.timedelta(k)).isoformat() for k in range(100)][::-1],
        [datetime.date(2026, 1, 1) + datetime.timedelta(k) for k in range(100)][::-1],
    ],
    ids=["numbers", "datetime64", "ISO dates", "dates"],
)
def test_times_in_every_form(times):
    found = split(100, times=times)
    assert found.test.tolist() == list(range(20)) and found.valid.tolist() == list(range(20, 30))
    assert found.how.startswith("by time: validation from") and ("2026-03-12" in found.how or "70.0" in found.how)


def test_times_that_cannot_be_ordered_are_refused():
    with pytest.raises(DataError, match="cannot be read"):
        split(3, times=["yesterday", "today", "tomorrow"])
    with pytest.raises(DataError, match="1 times are missing: row 1"):
        split(3, times=["2026-01-01", "", "2026-01-03"])
    with pytest.raises(DataError, match="1 times are missing: row 0"):
        split(3, times=np.array(["NaT", "2026-01-01", "2026-01-02"], dtype="datetime64[D]"))


# --- Requests ---------------------------------------------------------------------------------------------------------


def test_auto_prefers_groups_to_times_to_classes():
    truth, groups, times = np.arange(60) % 3, np.arange(60) % 10, np.arange(60)
    assert split(60, truth=truth, groups=groups, times=times).how.startswith("by 10 groups")
    assert split(60, truth=truth, times=times).how.startswith("by time")
    assert split(60, truth=truth, groups=groups, how="random").how.startswith("at random")


@pytest.mark.parametrize(
    "request_, words",
    [
        ({"how": "stratifed"}, "did you mean 'stratified'"),
        ({"valid": 1.0}, "valid is 1.0"),
        ({"test": -0.1}, "test is -0.1"),
        ({"valid": 0.5, "test": 0.5}, "leave nothing"),
        ({"how": "grouped"}, "no groups"),
        ({"how": "time"}, "no times"),
        ({"truth": [1, 2, 3]}, "truth has 3 entries for 10"),
        ({"groups": np.zeros((10, 2))}, r"groups has shape \(10, 2\)"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_, words):
    with pytest.raises(UsageError, match=words):
        split(10, **request_)


# --- Copies -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3)), min_size=1, max_size=150), shares, shares, seeds,
       st.sampled_from(["auto", "stratified", "numbers"]))  # fmt: skip
def test_copies_never_straddle_and_what_is_held_out_was_learned(rows, valid, test, seed, how):
    copies, truth = np.array(rows).T
    options = {"valid": valid, "test": test, "seed": seed, "copies": copies}
    if how != "numbers":
        options.update(truth=truth, how=how)
    copied = len(set(copies.tolist())) < len(copies)
    common = copied or how != "stratified" or np.bincount(truth).max() >= FEW
    if len(set(copies.tolist())) < asked_for(valid, test) or not common:
        with pytest.raises(DataError, match=r"parts|No class has 3"):
            split(len(rows), **options)
        return
    found = split(len(rows), **options)
    assert whole(found, len(rows)) and same(found, split(len(rows), **options))
    sides = [set(copies[part]) for part in (found.train, found.valid, found.test)]
    assert sum(map(len, sides)) == len(set(copies.tolist()))
    assert [bool(side) for side in sides] == [True, valid > 0, test > 0]


@given(st.integers(40, 300), st.integers(2, 5), st.integers(0, 40), seeds)
def test_with_copies_every_class_has_its_exact_shares_where_there_are_rows_enough(n, classes, again, seed):
    rng = np.random.default_rng(seed)
    truth = np.arange(n * classes) % classes
    copies = np.arange(n * classes)
    copied = rng.permutation(n * classes)[:again]
    truth, copies = np.append(truth, truth[copied]), np.append(copies, copied)
    found = split(len(truth), truth=truth, copies=copies, seed=seed)
    plain = split(len(truth), truth=truth, seed=seed)
    for part in ("train", "valid", "test"):
        ours, theirs = (np.bincount(truth[getattr(one, part)], minlength=classes) for one in (found, plain))
        assert np.abs(ours - theirs).max() <= 1  # each rounded up or down
        assert abs(len(getattr(found, part)) - len(getattr(plain, part))) <= 1
    assert found.how.endswith(
        f"; {again} {'copy' if again == 1 else 'copies'} kept together" if again else "seed " + str(seed)
    )


def test_where_nothing_is_a_copy_the_split_is_as_it_was():
    truth = np.arange(200) % 3
    for how in ({"truth": truth}, {}, {"groups": np.arange(200) // 5}, {"times": np.arange(200)}):
        found, plain = split(200, copies=np.arange(200)[::-1], **how), split(200, **how)
        assert same(found, plain) and found.how == plain.how


def test_copies_have_the_same_chance_as_others():
    copies = np.append(np.arange(90), np.arange(10))
    hits = np.zeros(100)
    for seed in range(600):
        hits[split(100, valid=0, test=0.3, copies=copies, seed=seed).test] += 1
    assert np.abs(hits / 600 - 0.3).max() < 4.5 * math.sqrt(0.3 * 0.7 / 600)


def test_copies_unite_groups():
    groups = np.arange(60) // 3
    copies = np.arange(60)
    copies[3], copies[58] = 0, 7  # group 1 hangs on group 0, the last on group 2
    found = split(60, groups=groups, copies=copies)
    assert found.how == "by 18 groups that stay whole, seed 0; 2 copies kept together"
    together = [{0, 1, 2, 3, 4, 5}, {6, 7, 8, 57, 58, 59}]
    for rows in together:
        assert len({int(found.parts[row]) for row in rows}) == 1


def test_who_asks_for_random_rows_or_times_gets_them():
    copies = np.arange(100) // 2
    assert same(split(100, how="random", copies=copies), split(100, how="random"))
    assert same(split(100, times=np.arange(100), copies=copies), split(100, times=np.arange(100)))


def test_too_few_different_examples_are_refused():
    with pytest.raises(DataError, match="There are 2 different examples for 3 parts: the others are copies"):
        split(100, copies=np.arange(100) % 2)


# --- splits.csv -------------------------------------------------------------------------------------------------------


@given(st.integers(3, 60), seeds)
def test_a_split_comes_back_from_its_text(n, seed):
    found = split(n, seed=seed)
    assert same(found, from_csv(to_csv(found)))
    assert to_csv(from_csv(to_csv(found))) == to_csv(found)


def test_the_text_of_a_split():
    found = Split(np.array([0, 3]), np.array([1]), np.array([2]))
    assert to_csv(found) == "row,split\n0,train\n1,valid\n2,test\n3,train\n"
    assert same(found, from_csv("row,split\r\n3,train\r\n2,test\r\n0,train\r\n1,valid"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "begins with ''"),
        ("row;split\n", "begins with"),
        ("row,split\n0,train\nx,test\n", "Line 3 .*'x,test'"),
        ("row,split\n0,train\n1,dev\n", "Line 3 .*'1,dev'"),
        ("row,split\n0,train\n0,test\n", "Line 3 .* row 0"),
        ("row,split\n0,train\n7,test\n", "Line 3 .* row 7"),
        ("row,split\n0,train\n-1,test\n", "Line 3"),
    ],
)
def test_a_damaged_text_is_refused(text, words):
    with pytest.raises(DataError, match=words):
        from_csv(text)
