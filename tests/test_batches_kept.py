"""A Dataset that gives the same item every time is read once: the batches stay what they were, and the claim is tried."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import lamina
from lamina import batches as b
from lamina import mapped
from lamina.batches import kept as k_
from lamina.errors import DataError, UsageError

N = 23


class Counted(Dataset):
    """Item k is a function of k; who was read is counted."""

    def __init__(self, make=lambda k: (torch.full((2, 3), k, dtype=torch.uint8), k % 3), n=N):
        self.make, self.n, self.read = make, n, []

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        self.read.append(k)
        return self.make(k)


def facts(batches):
    return [
        (batch.indices.tolist(), [part.tolist() for part in batch.inputs], [part.dtype for part in batch.inputs],
         batch.truth.tolist(), batch.truth.dtype, batch.epoch, batch.count)
        for batch in batches
    ]  # fmt: skip


OPTIONS = {
    "plain": {},
    "in the order of the table": {"shuffle": False},
    "a split": {"indices": np.array([20, 3, 4, 11, 7, 0, 19])},
    "short batch left out": {"drop_last": True},
    "classes repeated": {"order": b.balanced(np.arange(N) % 3 == 0, "over")},
    "few of a class": {"order": b.balanced(np.arange(N) % 5 == 0, "under")},
    "augmented and prepared": {
        "augment": lambda inputs, key: (inputs[0].float() + key.normal("noise")[:, :, None],), "prepare": nn.Linear(3, 2)
    },
    "answers encoded": {"encode_truth": lambda truth: 2 - truth},
    "above the memory": {"memory": 10},
    "two workers": {"workers": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", list(OPTIONS))
def test_kept_items_give_the_batches_that_reading_gives(name):
    options = {"batch_size": 5, "seed": 2, "workers": 0, **OPTIONS[name]}
    plain = b.DatasetBatches(Counted(), **{key: value for key, value in options.items() if key != "memory"})
    cached = b.DatasetBatches(Counted(), cache=True, **options)
    for epoch, start in [(0, 0), (1, 0), (2, 2), (1, 1), (3, 0)]:
        assert facts(cached.epoch(epoch, start)) == facts(plain.epoch(epoch, start)), (epoch, start)


def test_later_epochs_read_only_to_try_the_claim():
    dataset = Counted()
    walk = b.DatasetBatches(dataset, batch_size=5, cache=True, workers=0)
    list(walk.epoch(0))
    assert sorted(set(dataset.read)) == list(range(N))
    dataset.read.clear()
    list(walk.epoch(1))
    assert 1 <= len(dataset.read) <= k_.TRIED
    first = list(dataset.read)
    dataset.read.clear()
    list(walk.epoch(2))
    assert dataset.read != first  # others, and seeded otherwise


def test_an_epoch_that_was_left_in_the_middle_is_read_to_its_end_later():
    dataset = Counted()
    walk = b.DatasetBatches(dataset, batch_size=5, cache=True, workers=0)
    next(going := walk.epoch(0)), next(going)
    dataset.read.clear()
    found = facts(walk.epoch(1))
    assert found == facts(b.DatasetBatches(Counted(), batch_size=5, workers=0).epoch(1))
    assert len(dataset.read) == N - 10 + k_.TRIED


def test_parts_of_one_dataset_share_what_was_read():
    dataset, shared = Counted(), k_.Kept(N)
    for rows in (range(0, 15), range(10, N)):
        list(b.DatasetBatches(dataset, indices=np.array(rows), batch_size=4, cache=shared, workers=0))
    assert shared.have.all()
    once = [dataset.read.count(row) for row in range(N)]
    assert sum(once) <= N + 2 + 2 + k_.TRIED  # each walk looks at its first item twice more; one tries the claim


@pytest.mark.parametrize("memory", [None, 10])
@pytest.mark.parametrize(
    "make",
    [lambda k: (torch.rand(2), k), lambda k: (np.random.rand(2), k), lambda k: (float(torch.initial_seed() % 9999), k)],
    ids=["torch", "numpy", "the seed alone"],
)
def test_a_dataset_that_is_random_after_all_is_refused_with_an_example(make, memory):
    walk = b.DatasetBatches(Counted(make), batch_size=5, cache=True, workers=0, memory=memory)
    list(walk.epoch(0))
    with pytest.raises(DataError, match=r"Example \d+ of the Dataset came out otherwise .* in epoch 2"):
        next(walk.epoch(1))


def test_a_dataset_that_was_changed_is_refused_too():
    dataset = Counted()
    walk = b.DatasetBatches(dataset, batch_size=5, cache=True)
    list(walk.epoch(0))
    dataset.make = lambda k: (torch.full((2, 3), k + 1, dtype=torch.uint8), k % 3)
    with pytest.raises(DataError, match="leave cache out"):
        next(walk.epoch(1))


def test_nan_is_the_same_as_nan():
    walk = b.DatasetBatches(Counted(lambda k: (torch.tensor([float("nan"), k]), k)), batch_size=5, cache=True)
    for epoch in range(3):
        list(walk.epoch(epoch))


def test_items_whose_shape_changes_are_refused_by_name():
    """Each batch is of one shape, so only what was kept tells."""
    walk = b.DatasetBatches(Counted(lambda k: (torch.ones(2 + k // 5), k)), batch_size=5, shuffle=False, cache=True)
    with pytest.raises(DataError, match=r"Example 5 of the Dataset is \(3,\) float32, \(\) int64"):
        list(walk.epoch(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b.over(DataLoader(Counted()), cache=True), "cache is asked for a DataLoader"),
        (lambda: b.DatasetBatches(Counted(), cache=True, collate=list), "collate of your own"),
        (lambda: list(b.DatasetBatches(Counted(lambda k: (torch.ones(1), "cat")), cache=True)), "words into numbers"),
    ],
    ids=["loader", "collate", "words"],
)
def test_what_cannot_be_kept_is_refused(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert words in str(error.value)


def test_columns_above_the_memory_lie_on_the_disk():
    for memory, expected in ((10, True), (1 << 20, False), (None, False)):
        walk = b.DatasetBatches(Counted(), batch_size=5, cache=True, memory=memory)
        list(walk.epoch(0))
        assert [mapped.is_mapped(column) for column in walk.kept._columns] == [expected] * 2


def test_a_training_reads_a_cached_dataset_once_and_learns_the_same(tmp_path):
    def trained(dataset, **options):
        torch.manual_seed(0)
        return lamina.train(
            dataset, net=nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), epochs=4, batch_size=4, quiet=True, baselines=False,
            report=False, runs=tmp_path, valid=0.2, **options,
        )  # fmt: skip

    def made(k):
        return torch.arange(6.0).view(2, 3) * k / 30, k % 3

    dataset, plain = Counted(made, 30), Counted(made, 30)
    cached, other = trained(dataset, cache=True), trained(plain)
    assert torch.equal(cached.net[1].weight, other.net[1].weight)
    assert cached.headline.value == other.headline.value
    assert len(dataset.read) < len(plain.read) - 2 * 24


def test_a_subset_is_kept_by_its_own_numbers():
    subset = Subset(Counted(), [5, 9, 2, 8])
    walk = b.DatasetBatches(subset, batch_size=3, cache=True)
    first, again = facts(walk.epoch(1)), facts(walk.epoch(1))
    assert first == again
