"""Sequences of many lengths: each once an epoch, nothing of them lost, and less padding than chance would give."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lamina
from lamina.errors import DataError, UsageError


def sequences(lengths, width=None):
    return [np.arange(t, dtype=np.float32) + 100 * k if width is None else np.full((t, width), k, np.float32)
            for k, t in enumerate(lengths)]  # fmt: skip


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), size=st.integers(1, 9), epoch=st.integers(0, 3),
       width=st.sampled_from([None, 2]))  # fmt: skip
def test_every_sequence_comes_once_and_whole(lengths, size, epoch, width):
    parts = sequences(lengths, width)
    walk = lamina.RaggedBatches(parts, np.arange(len(parts)), batch_size=size, seed=3, padding=-1)
    seen = []
    for batch in walk.epoch(epoch):
        padded, lengths_ = batch.inputs
        assert padded.shape[1] == lengths_.max() and batch.count == len(padded)
        for row, length, k in zip(padded, lengths_, batch.indices.tolist(), strict=True):
            assert np.array_equal(row[:length].numpy(), parts[k]) and (row[length:] == -1).all()
        assert torch.equal(batch.truth, batch.indices)
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(len(parts)))


def test_the_batches_are_a_function_of_seed_and_epoch_and_can_begin_anywhere():
    parts = sequences(np.random.default_rng(0).integers(1, 50, 200))
    one, other = (lamina.RaggedBatches(parts, batch_size=7, seed=2) for _ in range(2))
    list(other)
    order = [[batch.indices.tolist() for batch in one.epoch(epoch)] for epoch in range(3)]
    assert order == [[batch.indices.tolist() for batch in other.epoch(epoch)] for epoch in range(3)]
    assert [batch.indices.tolist() for batch in one.epoch(1, 5)] == order[1][5:]
    assert order[0] != order[1]
    assert {frozenset(batch) for batch in order[0]} != {frozenset(batch) for batch in order[1]}  # other neighbours too
    assert len(order[0]) == len(one) == 29 and [len(batch) for batch in order[0]] == [7] * 28 + [4]


def share(walk, epoch=0):
    """Of all places in an epoch's batches, those that hold padding."""
    tables = [batch.inputs for batch in walk.epoch(epoch)]
    return 1 - sum(int(lengths.sum()) for _, lengths in tables) / sum(padded.numel() for padded, _ in tables)


def test_far_less_is_padding_than_in_random_batches_and_about_as_little_as_can_be():
    lengths = np.random.default_rng(1).geometric(0.02, 5000).clip(1, 400)
    walk = lamina.RaggedBatches(sequences(lengths), batch_size=16)
    order = np.random.default_rng(2).permutation(lengths)
    chance = 1 - lengths.sum() / sum(16 * part.max() for part in order[:4992].reshape(-1, 16))
    best = 1 - lengths.sum() / sum(len(part) * part.max() for part in np.split(np.sort(lengths), range(16, 5000, 16)))
    assert chance > 0.6 and best < share(walk) < 0.1 * chance


def test_unshuffled_they_stay_in_their_order():
    walk = lamina.RaggedBatches(sequences([3, 1, 2, 5, 1]), batch_size=2, shuffle=False)
    assert [batch.indices.tolist() for batch in walk.epoch(4)] == [[0, 1], [2, 3], [4]]


def test_a_split_is_picked_and_the_short_batch_left_out():
    walk = lamina.RaggedBatches(sequences([3, 1, 2, 5, 1]), batch_size=2, indices=[4, 0, 3], drop_last=True)
    (batch,) = walk.epoch(0)
    assert set(batch.indices.tolist()) < {0, 3, 4} and len(walk) == 1


@pytest.mark.parametrize(
    ("parts", "options", "words"),
    [
        ([], {}, "no sequences"),
        ([np.ones(2), np.ones(0), np.ones(3)], {}, "Row 1 of the sequences are empty"),
        ([np.ones((2, 3)), np.ones((4, 2))], {}, r"row 1 is \(4, 2\) float64"),
        ([np.ones(2), np.ones(2, np.float32)], {}, r"row 1 is \(2,\) float32"),
        ([np.ones((1, 2, 3))], {}, "other than 1 or 2 dimensions"),
        ([np.ones(2)], {"truth": [1, 2]}, "different lengths: 1 and 2"),
        ([np.ones(2)], {"batch_size": 0}, "batch_size is 0"),
        ([np.ones(2)], {"indices": [1]}, "rows 0 to 0"),
    ],
)
def test_what_is_no_table_of_sequences_is_refused(parts, options, words):
    with pytest.raises((DataError, UsageError), match=words):
        lamina.RaggedBatches(parts, **options)


def test_a_recurrent_net_learns_from_them_what_padding_must_not_change():
    """The sum of a sequence, whatever stands behind its end."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Linear(1, 1)

        def forward(self, padded, lengths):
            there = torch.arange(padded.shape[1]) < lengths[:, None]
            return self.scale((padded * there).sum(1, keepdim=True))[:, 0]

    generator = np.random.default_rng(0)
    parts = [generator.standard_normal(t).astype(np.float32) for t in generator.integers(1, 9, 200)]
    truth = np.array([3 * part.sum() + 1 for part in parts], np.float32)
    losses = []
    for padding in (0.0, 99.0):
        torch.manual_seed(0)
        net = Sum()
        walk = lamina.RaggedBatches(parts, truth, batch_size=10, padding=padding)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        losses.append([p.mean_loss for p in lamina.learn(net, walk, nn.MSELoss(), optimizer, epochs=8) if p.epoch_end])
    assert losses[0] == losses[1] and losses[0][-1] < 0.01 * losses[0][0]


def test_a_walk_is_an_epoch():
    walk = lamina.RaggedBatches(sequences([2, 2, 2, 2]), batch_size=2, seed=1)
    seen = [list(itertools.chain(*(batch.indices.tolist() for batch in walk))) for _ in range(2)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in seen)
