"""A column that came in several arrays against the same numbers in one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lamina
from lamina import data, fingerprints, mapped, sources
from lamina.baselines.limits import Rows
from lamina.batches import Batches
from lamina.domains.arrays import Arrays
from lamina.joined import Joined
from lamina.recipe import Recipe

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def parts(sizes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(n, 3, 2)).astype(np.float32) for n in sizes]


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(mapped, "JOINED", 0)


@given(SIZES, st.data())
def test_rows_are_those_of_the_arrays_one_after_the_other(sizes, draw):
    arrays = parts(sizes)
    whole, n = np.concatenate(arrays), sum(sizes)
    plain, tensors = Joined(arrays), Joined([torch.from_numpy(array) for array in arrays])
    assert (plain.shape, plain.size, plain.nbytes, len(plain)) == (whole.shape, whole.size, whole.nbytes, n)

    begin, end = (draw.draw(st.one_of(st.none(), st.integers(-7, 25))) for _ in range(2))
    rows = slice(begin, end, draw.draw(st.sampled_from([None, 1, 2, 3, 7])))
    numbers = np.array(draw.draw(st.lists(st.integers(0, n - 1), max_size=6)), np.int64)
    one = draw.draw(st.integers(-n, n - 1))
    for column in (plain, tensors):
        assert np.array_equal(
            np.asarray(column[rows].numpy() if isinstance(column[rows], Joined) else column[rows]), whole[rows]
        )
        assert np.array_equal(np.asarray(column[numbers]), whole[numbers])
        assert np.array_equal(np.asarray(column[one]), whole[one])
        assert np.array_equal(np.asarray(column[:, 2, 1]), whole[:, 2, 1])
        assert np.array_equal(column.numpy(), whole)
    for take in (mapped.take, mapped.seen):
        assert np.array_equal(take(tensors, torch.from_numpy(numbers)).numpy(), whole[numbers])
    assert np.array_equal(plain[np.arange(n) % 2 == 0], whole[::2])


def test_rows_of_one_part_that_follow_one_another_are_no_copy():
    arrays = parts([4, 5])
    column = Joined([torch.from_numpy(array) for array in arrays])
    assert np.shares_memory(mapped.seen(column, torch.arange(5, 8)).numpy(), arrays[1])
    assert np.shares_memory(column[1:4].numpy(), arrays[0])


def test_what_a_joined_cannot_do_is_an_error():
    with pytest.raises(ValueError, match="steps of -1"):
        Joined(parts([2, 3]))[::-1]
    for row in (5, -6):
        with pytest.raises(IndexError, match=f"no row {row} of 5"):
            Joined(parts([2, 3]))[row]
    with pytest.raises(TypeError, match="by themselves"):
        Joined(parts([2, 3]))[np.array([0]), 1]


@given(SIZES, st.integers(1, 4))
def test_batches_of_a_part_are_those_of_the_table(sizes, size):
    arrays = parts(sizes)
    column, truth = Joined([torch.from_numpy(array) for array in arrays]), torch.arange(sum(sizes))
    whole = torch.from_numpy(np.concatenate(arrays))
    rows = [np.arange(span.start, span.stop) for span in column.spans()] + [np.arange(sum(sizes)), None]
    for indices in rows:
        joined, plain = (Batches((x,), truth, indices=indices, batch_size=size) for x in (column, whole))
        for one, other in zip(joined.epoch(1), plain.epoch(1), strict=True):
            assert torch.equal(one.inputs[0], other.inputs[0]) and torch.equal(one.truth, other.truth)
            assert torch.equal(one.indices, other.indices)


def test_batches_of_a_part_hold_no_copy_of_it():
    arrays = parts([4, 5])
    column = Joined([torch.from_numpy(array) for array in arrays])
    for k, rows in enumerate([np.arange(4), np.arange(4, 9)]):
        assert Batches((column,), indices=rows).columns[0].data_ptr() == arrays[k].ctypes.data


def test_rows_are_taken_when_they_are_asked_for():
    arrays = parts([6, 7])
    whole, rows = np.concatenate(arrays), np.array([0, 3, 7, 8, 12])
    for column in (Joined([torch.from_numpy(array) for array in arrays]), torch.from_numpy(whole)):
        table = Rows(column, rows)
        assert (len(table), table.shape, table.dtype, table.size) == (5, (5, 3, 2), whole.dtype, 30)
        assert np.array_equal(table[1:4], whole[rows[1:4]])
        assert np.array_equal(table[np.array([4, 0])], whole[rows[[4, 0]]])


# --- In a training ----------------------------------------------------------------------------------------------------

G = np.random.default_rng(1)
X = G.normal(size=(500, 4, 3)).astype(np.float32)
Y = (X[:, 0, 0] > 0).astype(np.int64)
GIVEN = [{"test": (X[400:], Y[400:])}, {"valid": (X[400:], Y[400:])},
         {"valid": (X[300:400], Y[300:400]), "test": (X[400:], Y[400:])}]  # fmt: skip


def loaded(x=X, domain=None, **given):
    first = min(len(x) - len(part[0]) for part in given.values()) if given else len(x)
    return data.load(Recipe(test="0.1"), sources.open((x[:first], Y[:first]), **given), domain=domain, own_net=True)[0]


@pytest.mark.parametrize("given", GIVEN)
def test_arrays_that_are_given_for_the_parts_are_not_copied(given, always):
    found = loaded(**given)
    column = found.parts["train"][0].inputs[0]
    assert isinstance(column, Joined)
    assert all(np.shares_memory(part.numpy(), X) for part in column.parts)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("given", GIVEN)
def test_a_training_is_the_same_whether_they_are_copied_or_not(given, kind, monkeypatch, tmp_path):
    first = 500 - sum(len(part[0]) for part in given.values())
    x, given = X.astype(kind), {name: (part.astype(kind), y) for name, (part, y) in given.items()}

    def trained(least):
        monkeypatch.setattr(mapped, "JOINED", least)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
        return lamina.train((x[:first], Y[:first]), net=net, loss=nn.CrossEntropyLoss(), epochs=3, scale="standard", quiet=True,
                            runs=tmp_path, **given)  # fmt: skip

    joined, copied = trained(0), trained(1 << 40)
    for name, value in joined.net.state_dict().items():
        assert torch.equal(value, copied.net.state_dict()[name])
    one, other = ({**run.facts} for run in (joined, copied))
    assert one["data"] == other["data"]  # with the fingerprint
    for name in ("splits.csv", "rows.u64", "data.json", "predictions.csv"):
        assert (joined.folder / name).read_bytes() == (copied.folder / name).read_bytes()
    found = [json.loads((run.folder / "scores.json").read_text())["baselines"] for run in (joined, copied)]
    scores = [{(entry["name"], entry["score"]): entry["value"] for entry in entries} for entries in found]
    assert scores[0] == scores[1]
    assert any(name == "linear" for name, _ in scores[0])


def test_the_hash_of_rows_is_that_of_the_table(always, monkeypatch):
    joined = fingerprints.of_rows(loaded(**GIVEN[2])), loaded(**GIVEN[2]).fingerprint()
    monkeypatch.setattr(mapped, "JOINED", 1 << 40)
    assert np.array_equal(joined[0], fingerprints.of_rows(loaded(**GIVEN[2])))
    assert joined[1] == loaded(**GIVEN[2]).fingerprint()


def test_what_is_said_of_the_parts_is_what_is_said_of_the_table(monkeypatch):
    x = X.copy()
    x[450], x[7, 2, 2], x[:, 3, 1] = x[10], 1e4, 1.0
    told = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(mapped, "JOINED", least)
        told.append(loaded(x, test=(x[400:], Y[400:])).findings)
    assert told[0] == told[1]
    assert {"leak", "outliers", "constant_columns"} <= {finding.kind for finding in told[0]}


class Own(Arrays):
    """One that might do anything with its columns."""


def test_small_arrays_those_on_the_disk_and_those_of_an_own_domain_are_copied(always, monkeypatch, tmp_path):
    def column(x=X, **options):
        return loaded(x, test=(x[400:], Y[400:]), **options).parts["train"][0].inputs[0]

    assert isinstance(column(), Joined)
    assert not isinstance(column(domain=Own), Joined)
    assert column(X.astype(np.float64)).dtype == torch.float32
    assert not isinstance(column(X.astype(np.float16)), Joined)
    np.save(tmp_path / "x.npy", X)
    assert not isinstance(column(np.load(tmp_path / "x.npy", mmap_mode="r")), Joined)
    for limit in (0, 100):
        with mapped.limited(limit):
            assert mapped.joined([X[:400], X[400:]]) is None
    assert mapped.joined([X[:400], X[400:].astype(np.float64)]) is None
    assert mapped.joined([X[::2], X[1::2]]) is None
    monkeypatch.setattr(mapped, "JOINED", 1 << 20)
    assert not isinstance(column(), Joined)
