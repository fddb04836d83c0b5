"""Batches: every example once, in an order that is a function of seed and epoch, whatever the workers or the history."""

from __future__ import annotations

import itertools
import pickle
import random
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import lamina
from lamina import batches as b
from lamina.errors import DataError, UsageError

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10)


def rows_of(batches, epoch=0, start=0):
    return [batch.indices.tolist() for batch in batches.epoch(epoch, start)]


def assert_same(some, others):
    some, others = list(some), list(others)
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.inputs, other.inputs, strict=True))
        assert torch.equal(one.truth, other.truth) and torch.equal(one.indices, other.indices)
        assert (one.count, one.epoch, one.seed) == (other.count, other.epoch, other.seed)


# --- Columns in memory ------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_visits_every_example_once(n, size, seed, epoch):
    batches = lamina.Batches(torch.arange(n), batch_size=size, seed=seed)
    found = rows_of(batches, epoch)
    assert sorted(itertools.chain(*found)) == list(range(n))
    assert [len(part) for part in found] == [size] * (n // size) + [n % size] * (n % size > 0)
    assert len(found) == len(batches)


def test_the_order_is_a_function_of_seed_and_epoch_only():
    one, other = (lamina.Batches(X, Y, batch_size=3, seed=5) for _ in range(2))
    list(other.epoch(0)), list(other)  # another history
    orders = {epoch: list(itertools.chain(*rows_of(one, epoch))) for epoch in range(4)}
    assert orders == {epoch: list(itertools.chain(*rows_of(other, epoch))) for epoch in range(4)}
    assert orders[2] == list(itertools.chain(*rows_of(lamina.Batches(X, Y, batch_size=7, seed=5), 2)))
    assert len({tuple(order) for order in orders.values()}) == 4
    assert rows_of(one) != rows_of(lamina.Batches(X, Y, batch_size=3, seed=6))


def test_without_shuffling_the_order_is_that_of_the_table():
    assert rows_of(lamina.Batches(X, Y, batch_size=4, shuffle=False), epoch=3) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@given(start=st.integers(0, 6), epoch=st.integers(0, 3))
def test_an_epoch_from_a_place_on_is_the_tail_of_the_epoch(start, epoch):
    batches = lamina.Batches(X, Y, batch_size=2, seed=1)
    assert_same(batches.epoch(epoch, start), list(batches.epoch(epoch))[start:])


def test_a_tutorials_loop_advances_the_epochs():
    batches = lamina.Batches(X, Y, batch_size=4)
    first, second = ([y.tolist() for _, y in batches] for _ in range(2))
    assert first == rows_of(batches, 0) and second == rows_of(batches, 1) and first != second


def test_inputs_and_answers_stay_together():
    for x, y in lamina.Batches(X, Y, batch_size=3):
        assert torch.equal(x, X[y])
    for batch in lamina.Batches((X, Y * 2), Y, batch_size=3):
        x, double, y = batch
        assert torch.equal(x, X[y]) and torch.equal(double, 2 * y) and torch.equal(batch.indices, y)


def test_without_answers_a_batch_is_its_inputs():
    (batch,) = lamina.Batches(X, batch_size=64)
    (x,) = batch
    assert batch.truth is None and x.shape == (10, 2)


def test_the_short_last_batch_can_be_left_out_unless_it_is_the_only_one():
    assert [len(part) for part in rows_of(lamina.Batches(X, batch_size=4, drop_last=True))] == [4, 4]
    assert [len(part) for part in rows_of(lamina.Batches(X, batch_size=5, drop_last=True))] == [5, 5]
    assert [len(part) for part in rows_of(lamina.Batches(X, batch_size=64, drop_last=True))] == [10]


def test_a_split_is_picked_by_row_numbers():
    batches = lamina.Batches(X, Y, batch_size=2, indices=np.array([7, 1, 4]))
    assert sorted(itertools.chain(*rows_of(batches))) == [1, 4, 7]
    assert all(torch.equal(x, X[y]) for x, y in batches)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"indices": np.arange(10) < 5}, "flatnonzero"),  # a mask, read as numbers, would be rows 0 and 1
        ({"indices": [3, 10]}, "rows 0 to 9"),
        ({"indices": [-1]}, "rows 0 to 9"),
        ({"indices": [0.5]}, "float64"),
        ({"indices": []}, "no examples"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"truth": Y[:9]}, "10 and 9"),
        ({"truth": np.array(["cat"] * 10)}, "'cat'"),
        ({"inputs": X[:0], "truth": Y[:0]}, "no examples"),
    ],
)
def test_what_cannot_be_cut_into_batches_is_refused(options, words):
    with pytest.raises((UsageError, DataError), match=words):
        lamina.Batches(options.pop("inputs", X), options.pop("truth", Y), **options)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16", "uint32", ">f4", "bool"])
def test_columns_of_any_number_type_keep_their_values(dtype):
    column = np.arange(12).reshape(6, 2).astype(dtype)
    column.flags.writeable = False
    (batch,) = lamina.Batches(column[::-1], shuffle=False)
    assert batch.inputs[0].numpy().tolist() == column[::-1].tolist()


def test_augmentation_is_a_function_of_the_example_whatever_its_batch():
    def shifted(inputs, key):
        return (inputs[0] + key.uniform("shift"),)

    def by_example(size, epoch=0):
        walk = lamina.Batches(X, Y, batch_size=size, augment=shifted, seed=3).epoch(epoch)
        return {int(i): row.tolist() for batch in walk for i, row in zip(batch.indices, batch.inputs[0], strict=True)}

    assert by_example(1) == by_example(3) == by_example(10)
    assert by_example(3, epoch=1) != by_example(3)


def test_prepare_comes_after_augmentation_and_leaves_no_graph():
    prepare = nn.Linear(2, 3)
    (batch,) = lamina.Batches(X, Y, batch_size=10, augment=lambda inputs, key: (inputs[0] * 2,), prepare=prepare)
    assert torch.equal(batch.inputs[0], prepare(X[batch.indices] * 2)) and not batch.inputs[0].requires_grad


# --- Classes equally often --------------------------------------------------------------------------------------------

unequal = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@given(sizes=unequal, how=st.sampled_from(["over", "under"]), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_balanced_classes_come_exactly_equally_often(sizes, how, seed, epoch):
    classes = np.repeat(np.arange(len(sizes)) * 3, sizes)  # numbers with gaps
    order = b.balanced(classes, how)(seed, epoch).numpy()
    wanted = max(sizes) if how == "over" else min(sizes)
    assert Counter(classes[order].tolist()) == {3 * k: wanted for k in range(len(sizes))}
    times = np.bincount(order, minlength=len(classes))
    for k, size in enumerate(sizes):
        member = times[classes == 3 * k]
        assert member.max() - member.min() <= 1 if how == "over" else member.max() <= 1, (k, size)
    assert order.tolist() == b.balanced(classes, how)(seed, epoch).tolist()


def test_balanced_by_over_repeats_an_example_only_after_all_of_its_class_came():
    classes = np.array([0] * 11 + [1] * 4)
    small = [row for row in b.balanced(classes, "over")(0, 0).tolist() if row >= 11]
    assert Counter(small).most_common() == sorted(Counter(small).items(), key=lambda item: -item[1])
    assert sorted(Counter(small).values()) == [2, 3, 3, 3]  # 11 draws of 4: each twice, three of them once more


def test_balanced_by_under_takes_others_in_other_epochs():
    order = b.balanced(np.array([0] * 30 + [1] * 3), "under")
    assert len({row for epoch in range(20) for row in order(0, epoch).tolist()}) > 20


def test_balanced_batches_have_the_length_of_their_order():
    classes = torch.tensor([0] * 8 + [1] * 2)
    batches = lamina.Batches(X, classes, batch_size=4, order=b.balanced(classes, "over"))
    assert len(batches) == 4 and [batch.count for batch in batches] == [4, 4, 4, 4]
    rows = np.array([9, 0, 1, 2])  # a split: the order speaks of places in it
    split = lamina.Batches(X, classes, indices=rows, order=b.balanced(classes[rows], "over"))
    (batch,) = split
    assert sorted(batch.indices.tolist()) == [0, 1, 2, 9, 9, 9]


def test_balancing_otherwise_is_refused():
    with pytest.raises(UsageError, match="'sideways'"):
        b.balanced(Y, "sideways")


# --- Datasets ---------------------------------------------------------------------------------------------------------


class Noisy(Dataset):
    """Random transforms out of all three generators of the process."""

    def __init__(self, n=10):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        return torch.tensor([k, torch.rand(()).item(), np.random.rand(), random.random()], dtype=torch.float64), k


class Together(Noisy):
    asked: ClassVar[list] = []

    def __getitems__(self, indices):
        self.asked.append(list(indices))
        return [self[k] for k in indices]


def values(dataset, size=3, workers=0, epoch=0, seed=0):
    walk = b.DatasetBatches(dataset, batch_size=size, workers=workers, seed=seed).epoch(epoch)
    return {int(i): tuple(row.tolist()) for batch in walk for i, row in zip(batch.indices, *batch.inputs, strict=True)}


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"indices": [8, 2, 5, 3]}, {"drop_last": True}])
def test_a_dataset_and_its_columns_give_the_same_batches(options):
    columns = lamina.Batches(X, Y, batch_size=3, seed=2, **options)
    dataset = b.DatasetBatches(TensorDataset(X, Y), batch_size=3, seed=2, **options)
    assert len(columns) == len(dataset)
    for epoch, start in [(0, 0), (1, 0), (1, 1)]:
        assert_same(dataset.epoch(epoch, start), columns.epoch(epoch, start))


def test_a_dataset_and_its_columns_are_augmented_and_balanced_alike():
    classes = (Y > 6).long()
    options = {
        "batch_size": 4, "seed": 2, "order": b.balanced(classes, "over"),
        "augment": lambda inputs, key: (inputs[0] + key.normal("noise"),), "prepare": nn.Linear(2, 2),
    }  # fmt: skip
    assert_same(b.DatasetBatches(TensorDataset(X, classes), **options), lamina.Batches(X, classes, **options))


def test_random_transforms_are_the_same_for_any_number_of_workers_and_any_batch_size():
    reference = values(Noisy())
    assert reference == values(Noisy(), workers=1) == values(Noisy(), workers=2)
    assert reference == values(Noisy(), size=1) == values(Noisy(), size=10)
    assert len(set(reference.values())) == 10
    for other in (values(Noisy(), epoch=1), values(Noisy(), seed=1)):
        assert all(other[k][1:] != reference[k][1:] for k in reference)


def test_without_keys_random_transforms_depend_on_the_workers():
    """What the test above would see in a plain loader: the comparison can fail."""

    def plain(workers):
        torch.manual_seed(0)
        walk = DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=workers)
        return {int(k): tuple(row.tolist()) for x, y in walk for k, row in zip(y, x, strict=True)}

    assert plain(1) != plain(2)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_callers_generators_are_left_as_they_were(workers):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    walk = b.DatasetBatches(Noisy(), batch_size=4, workers=workers).epoch(0)
    next(walk)  # in the middle of an epoch too
    found = [torch.rand(3), np.random.rand(3), random.random()]
    list(walk)
    assert torch.equal(found[0], expected[0]) and (found[1] == expected[1]).all() and found[2] == expected[2]


def test_generators_come_back_exactly():
    random.gauss(0, 1), np.random.randn()  # both keep a second number for the next call
    with b.keeping_generators():
        expected = torch.rand(2), np.random.randn(3), [random.gauss(0, 1) for _ in range(3)]
    found = torch.rand(2), np.random.randn(3), [random.gauss(0, 1) for _ in range(3)]
    assert torch.equal(found[0], expected[0]) and (found[1] == expected[1]).all() and found[2] == expected[2]


def test_a_dataset_that_reads_many_items_together_is_asked_for_whole_batches():
    Together.asked.clear()
    assert sorted(values(Together(), size=4)) == list(range(10))
    assert [len(indices) for indices in Together.asked] == [4, 4, 2]
    Together.asked.clear()
    values(Subset(Together(), range(10)), size=4)
    assert [len(indices) for indices in Together.asked] == [4, 4, 2]
    assert values(Together(), workers=2) == values(Together())


def test_a_subset_of_a_plain_dataset_is_keyed_example_by_example():
    """`random_split` gives Subsets, and every Subset has `__getitems__`."""
    subset = Subset(Subset(Noisy(), range(10)), [9, 8, 7, 6, 5, 4])
    assert values(subset, size=1) == values(subset, size=3) == values(subset, size=6)


class Broken(Noisy):
    def __getitem__(self, k):
        if k == 7:
            raise OSError("the file ends too early")
        return super().__getitem__(k)


class BrokenTogether(Broken):
    def __getitems__(self, indices):
        return [self[k] for k in indices]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_cannot_be_read_is_named(workers):
    before = torch.get_rng_state()
    with pytest.raises(DataError) as error:
        list(b.DatasetBatches(Broken(), batch_size=4, workers=workers).epoch(0))
    assert "Example 7 " in error.value.what and "OSError: the file ends too early" in error.value.what
    assert "Traceback" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_items_that_cannot_be_read_together_are_named():
    with pytest.raises(DataError, match=r"(?s)Rows .*7.*could not be read together: OSError"):
        list(b.DatasetBatches(BrokenTogether(), batch_size=4).epoch(0))


@pytest.mark.parametrize(
    "item",
    [lambda k: (torch.zeros(k + 1), k), lambda k: (object(), k), lambda k: ([0.0] * (k + 1), k)],
    ids=["shapes", "objects", "lists"],
)
def test_items_that_do_not_go_into_one_batch_are_named(item):
    class Odd(Noisy):
        def __getitem__(self, k):
            return item(k)

    with pytest.raises(DataError, match=r"Rows \d, \d, \d and 1 more of the Dataset cannot be put into one batch"):
        list(b.DatasetBatches(Odd(), batch_size=4).epoch(0))


def test_a_collation_of_the_users_own_takes_items_of_different_shapes():
    class Growing(Noisy):
        def __getitem__(self, k):
            return torch.ones(k + 1), k

    def padded(items):
        return nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True), torch.tensor([y for _, y in items])

    for batch in b.DatasetBatches(Growing(), batch_size=4, collate=padded).epoch(0):
        assert torch.equal(batch.inputs[0].sum(1), batch.truth + 1.0)


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="empty"):
        b.DatasetBatches(Noisy(0))


def test_answers_that_are_words_go_through_their_encoding():
    class Named(Noisy):
        def __getitem__(self, k):
            return torch.ones(2), "odd" if k % 2 else "even"

    walk = b.DatasetBatches(Named(), encode_truth=lambda words: torch.tensor([word == "odd" for word in words]))
    assert all(torch.equal(batch.truth, batch.indices % 2 == 1) for batch in walk)
    with pytest.raises(DataError, match=r"'even'|'odd'"):
        list(b.DatasetBatches(Named()))


@pytest.mark.parametrize(
    ("item", "inputs", "truth"),
    [
        ((1, 2), (1,), 2),
        ([1, 2, 3], (1, 2), 3),
        (((1, 2), 3), (1, 2), 3),
        ((1,), (1,), None),
        (X, (X,), None),
    ],
)
def test_the_last_part_of_an_item_is_its_answer(item, inputs, truth):
    assert b.unpack(item) == (inputs, truth)


@pytest.mark.parametrize("item", [{"x": 1}, 5, "ab", ()])
def test_items_of_no_known_form_are_refused(item):
    with pytest.raises(DataError, match=type(item).__name__):
        b.unpack(item)


def test_several_inputs_may_stand_in_a_tuple_of_their_own():
    class Pair(Noisy):
        def __getitem__(self, k):
            return (torch.ones(2) * k, torch.zeros(3)), k

    (batch,) = b.DatasetBatches(Pair(), batch_size=10)
    assert [tuple(part.shape) for part in batch.inputs] == [(10, 2), (10, 3)]
    assert torch.equal(batch.inputs[0][:, 0].long(), batch.truth)


# --- Loaders ----------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, n=10, noise=False):
        self.n, self.noise = n, noise

    def __iter__(self):
        for k in range(self.n):
            yield torch.tensor([k, torch.rand(()).item() if self.noise else 0.0]), k


def loaders():
    """Every way in which a loader's order can be random, made anew as after a restart of the process."""
    own = torch.Generator().manual_seed(3)
    return {
        "process": DataLoader(Noisy(), batch_size=3, shuffle=True),
        "own generator": DataLoader(Noisy(), batch_size=3, shuffle=True, generator=own),
        "own sampler": DataLoader(
            Noisy(), 3, sampler=RandomSampler(Noisy(), generator=torch.Generator().manual_seed(3))
        ),
        "two workers": DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=2),
        "stream": DataLoader(Stream(noise=True), batch_size=3),
        "tensors": DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
        "list": [(X[:5], Y[:5]), (X[5:], Y[5:])],
    }


@pytest.mark.parametrize("name", list(loaders()))
def test_a_loader_is_walked_exactly_as_its_owner_made_it(name):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = [[(x, y) for x, y in loader] for loader in [loaders()[name]] for _ in range(2)]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    walk = b.LoaderBatches(loaders()[name])
    for epoch, plain in enumerate(expected):
        found = list(walk.epoch(epoch))
        assert len(found) == len(plain)
        for batch, (x, y) in zip(found, plain, strict=True):
            assert torch.equal(batch.inputs[0], x) and torch.equal(batch.truth, y) and batch.count == len(x)
        assert torch.cat([batch.indices for batch in found]).tolist() == list(range(10))


class Back:
    """A batch sampler that counts from the end."""

    def __iter__(self):
        yield from ([-1, -2], [-3], [0, -4, 5])

    def __len__(self):
        return 3


class Doubled(TensorDataset):
    def __getitem__(self, index):
        return tuple(2 * part for part in super().__getitem__(index))


def last_first(items):
    return default_collate(items[::-1])


ROWS = torch.arange(20.0).reshape(2, 10).t()  # not contiguous
OF_TENSORS = {
    "shuffled": (TensorDataset(ROWS, Y), {"batch_size": 3, "shuffle": True}, True),
    "own generator": (
        TensorDataset(ROWS, Y),
        {"batch_size": 4, "shuffle": True, "generator": torch.Generator().manual_seed(3)},
        True,
    ),
    "weighted": (
        TensorDataset(ROWS, ROWS, Y),
        {"batch_size": 3, "sampler": WeightedRandomSampler([1.0] * 9 + [9.0], 12), "drop_last": True},
        True,
    ),
    "own batches": (TensorDataset(ROWS, Y), {"batch_sampler": Back()}, True),
    "one column": (TensorDataset(ROWS), {"batch_size": 4}, True),
    "a part": (Subset(TensorDataset(ROWS, Y), [9, 0, -2, 4, 7]), {"batch_size": 2, "shuffle": True}, True),
    "a part of a part": (
        Subset(Subset(TensorDataset(ROWS, Y), torch.arange(1, 10)), np.array([0, 5, 8, -1])),
        {"batch_size": 3, "sampler": [-1, 0, 2]},
        True,
    ),
    "a part of another": (Subset(Doubled(ROWS, Y), [1, 2, 3]), {"batch_size": 2}, False),
    "subclass": (Doubled(ROWS, Y), {"batch_size": 3, "shuffle": True}, False),
    "own collate": (TensorDataset(ROWS, Y), {"batch_size": 3, "collate_fn": last_first}, False),
    "worker": (TensorDataset(ROWS, Y), {"batch_size": 3, "shuffle": True, "num_workers": 1}, False),
    "a gradient": (TensorDataset(ROWS.clone().requires_grad_(), Y), {"batch_size": 3}, False),
    "rows as tensors": (TensorDataset(ROWS, Y), {"batch_size": 3, "sampler": list(torch.arange(10))}, False),
}


@pytest.mark.parametrize("name", list(OF_TENSORS))
def test_rows_of_tensors_are_those_that_the_loader_stacks(name, monkeypatch):
    dataset, options, at_once = OF_TENSORS[name]

    def walk(made):
        torch.manual_seed(7)
        if "generator" in options:
            options["generator"].manual_seed(3)
        loader = DataLoader(dataset, **options)
        found = [made(loader) for _ in range(2)]
        return found, torch.get_rng_state(), loader.generator and loader.generator.get_state()

    expected, after, own = walk(list)
    called, getitem = [], TensorDataset.__getitem__
    monkeypatch.setattr(TensorDataset, "__getitem__", lambda self, row: called.append(row) or getitem(self, row))
    found, now, too = walk(lambda loader: list(b.LoaderBatches(loader).epoch(0)))
    for plain, batches in zip(expected, found, strict=True):
        for parts, batch in zip(plain, batches, strict=True):
            mine = [*batch.inputs, *([] if batch.truth is None else [batch.truth])]
            for part, other in zip(parts, mine, strict=True):
                assert torch.equal(part, other) and part.stride() == other.stride() and part.dtype == other.dtype
    assert torch.equal(after, now) and (own is None or torch.equal(own, too))
    assert bool(called) is (not at_once and name != "worker")  # the worker's calls are its own


@pytest.mark.parametrize("name", list(OF_TENSORS))
def test_whole_batches_of_a_loader_are_cut_into_the_same_memory_where_that_is_asked_for(name):
    dataset, options, at_once = OF_TENSORS[name]

    def walk(reuse):
        torch.manual_seed(7)
        if "generator" in options:
            options["generator"].manual_seed(3)
        made = b.LoaderBatches(DataLoader(dataset, **options))
        made.reuse = reuse
        found = []
        for epoch in range(2):
            for batch in made.epoch(epoch):
                parts = [*batch.inputs, *([] if batch.truth is None else [batch.truth])]
                found.append((batch.lasting, [part.data_ptr() for part in parts], [part.clone() for part in parts]))
        return found

    expected, found = walk(False), walk(True)
    for (_, _, parts), (_, _, others) in zip(expected, found, strict=True):
        assert all(map(torch.equal, parts, others))
    places = {tuple(places) for lasting, places, _ in found if lasting}
    whole = [len(parts[0]) == options.get("batch_size") for _, _, parts in found]
    assert len(places) == (at_once and any(whole)) and not any(lasting for lasting, _, _ in expected)
    assert [lasting for lasting, _, _ in found] == [at_once and full for full in whole]


def test_a_dataset_that_is_given_other_tensors_is_cut_into_other_memory():
    rows = TensorDataset(X, Y)
    walk = b.LoaderBatches(DataLoader(rows, batch_size=5))
    walk.reuse = True
    for x in (X, X.double(), X[:, None].expand(-1, 3, -1).contiguous()):
        rows.tensors = (x, Y)
        found = [batch.inputs[0].clone() for batch in walk.epoch(0)]
        assert torch.equal(torch.cat(found), x) and found[0].dtype == x.dtype


def test_what_is_read_ahead_of_a_resumed_epoch_is_not_cut_into_one_memory():
    def made():
        torch.manual_seed(7)
        walk = b.LoaderBatches(loaders()["tensors"])
        walk.reuse = True
        return walk

    expected = [batch.inputs[0].clone() for batch in made().epoch(0)]
    epoch = (walk := made()).epoch(0)
    assert [next(epoch).lasting for _ in range(3)] == [True] * 3
    again = made()
    again.load_state_dict(walk.state_dict())
    found = list(again.epoch(0, 1))
    assert not any(batch.lasting for batch in found)
    assert all(torch.equal(batch.inputs[0], rows) for batch, rows in zip(found, expected[1:], strict=True))


@pytest.mark.parametrize("at", [(0, 1), (0, 2), (1, 1), (1, 0), (2, 0)])
@pytest.mark.parametrize("name", ["process", "own generator", "own sampler", "two workers", "stream", "tensors"])
def test_a_loader_goes_on_where_its_state_was_saved(name, at):
    """(epoch, batch): the rest of the epoch and the next one are as if nothing had happened, in a new process."""

    def rest(walk, epoch, batch):
        places = [*walk.epoch(epoch, batch), *walk.epoch(epoch + 1)]
        return [batch.inputs[0].tolist() for batch in places]

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    walk = b.LoaderBatches(loaders()[name])
    epoch, batch = at
    for e in range(epoch):
        list(walk.epoch(e))
    going = walk.epoch(epoch)
    for _ in range(batch):
        next(going)
    kept = pickle.loads(pickle.dumps((walk.state_dict(), b.generators())))  # as a checkpoint holds them
    following = [*going, *walk.epoch(epoch + 1)] if batch else [*walk.epoch(epoch), *walk.epoch(epoch + 1)]
    expected = [batch.inputs[0].tolist() for batch in following]

    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    again = b.LoaderBatches(loaders()[name])
    again.load_state_dict(kept[0])
    b.set_generators(kept[1])
    assert rest(again, epoch, batch) == expected


def test_a_batch_that_was_read_ahead_is_not_drawn_again():
    """Where nobody knows the length the engine reads one batch ahead: a saved state counts it."""
    torch.manual_seed(0)
    walk = b.LoaderBatches(DataLoader(Stream(noise=True), batch_size=3))
    going = walk.epoch(0)
    next(going), (ahead := next(going))  # learned from one, read two
    torch.rand(5)  # dropout
    kept = walk.state_dict(), b.generators()
    expected = [ahead.inputs[0].tolist(), *(batch.inputs[0].tolist() for batch in going)]
    torch.manual_seed(99)
    again = b.LoaderBatches(DataLoader(Stream(noise=True), batch_size=3))
    again.load_state_dict(kept[0])
    b.set_generators(kept[1])
    assert [batch.inputs[0].tolist() for batch in again.epoch(0, 1)] == expected


def test_a_loader_that_became_shorter_is_refused():
    walk = b.LoaderBatches(DataLoader(Stream(4), batch_size=3))
    with pytest.raises(DataError, match="gave 2 batches; the run had already learned from 3"):
        list(walk.epoch(0, 3))


def test_a_streams_length_may_be_unknown():
    walk = b.LoaderBatches(DataLoader(Stream(), batch_size=4))
    with pytest.raises(TypeError):
        len(walk)
    assert [batch.count for batch in walk.epoch(0)] == [4, 4, 2]
    assert not walk.exact and b.LoaderBatches(DataLoader(Noisy())).exact


# --- Whatever the user brings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (lamina.Batches(X, Y), lamina.Batches),
        (TensorDataset(X, Y), lamina.Batches),
        (Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(5, 15)), lamina.Batches),
        (Subset(TensorDataset(X), range(10)), b.DatasetBatches),
        (TensorDataset(X), b.DatasetBatches),
        (TensorDataset(X.clone().requires_grad_(), Y), b.DatasetBatches),
        (ConcatDataset([TensorDataset(X, Y)]), b.DatasetBatches),
        (DataLoader(TensorDataset(X, Y)), b.LoaderBatches),
        ([(X, Y)], b.LoaderBatches),
        (Stream(), b.LoaderBatches),
    ],
)
def test_the_engine_takes_whatever_gives_batches(given, kind):
    walk = b.walkable(given)
    assert isinstance(walk, kind)
    assert sum(batch.count for batch in walk.epoch(0)) == 10


def test_a_stream_of_examples_is_put_into_batches():
    (batch,) = b.walkable(Stream()).epoch(0)
    assert batch.inputs[0].shape == (10, 2) and batch.truth.tolist() == list(range(10))


@pytest.mark.parametrize("given", [(X, Y), X, X.numpy(), (X,)])
def test_whole_columns_are_not_taken_for_batches(given):
    with pytest.raises(UsageError, match=r"lamina\.Batches\(x, y\)"):
        b.walkable(given)


def test_what_gives_no_batches_is_refused():
    with pytest.raises(UsageError, match="batches is a int"):
        b.walkable(5)


@pytest.mark.parametrize("options", [{"augment": lambda inputs, key: inputs}, {"order": lambda seed, epoch: Y}])
def test_what_a_loader_cannot_be_asked_is_refused_and_not_forgotten(options):
    for source in (DataLoader(TensorDataset(X, Y)), Stream()):
        with pytest.raises(UsageError, match="do it in your Dataset"):
            b.over(source, **options)
    assert len(b.over(TensorDataset(X, Y), **options)) == len(b.over((X,), Y, **options)) == 1


@settings(max_examples=20)
@given(n=st.integers(1, 30), size=st.integers(1, 12), start=st.integers(0, 5))
def test_a_key_of_a_batch_is_that_of_its_examples(n, size, start):
    for batch in lamina.Batches(torch.arange(n), batch_size=size, seed=4).epoch(2, start):
        assert torch.equal(batch.key.indices, batch.inputs[0]) and (batch.key.seed, batch.key.epoch) == (4, 2)
