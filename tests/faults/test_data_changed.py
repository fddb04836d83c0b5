"""Data that are not those a run was trained on are noticed and told; with your word for it the run goes on as another."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import lamina
from lamina import fingerprints, run
from lamina.errors import DataError, Interrupted, RunError
from lamina.splits import Split

ASKED: dict[str, Any] = {
    "epochs": 3, "batch_size": 16, "quiet": True, "baselines": False, "report": False, "valid": 0.1, "test": 0.2, "seed": 1,
}  # fmt: skip


def pulls(step: int) -> Callable[[Any], None]:
    def pull(progress: Any) -> None:
        if progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return pull


def table(names: tuple[str, ...] = ("ant", "bee", "cat")) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(150) % 3
    return {"x": (rng.normal(size=(150, 5)) + y[:, None]).astype(np.float32), "y": np.array(names)[y]}


def stopped(source: Any, runs: Path, **asked: Any) -> Path:
    with pytest.raises(Interrupted):
        lamina.train(source, runs=runs, name="run", watchers=[pulls(9)], **{**ASKED, **asked})
    return runs / "run"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """A file, and a run on it that stopped."""
    np.savez(tmp_path / "t.npz", **table())
    return tmp_path / "t.npz", stopped(tmp_path / "t.npz", tmp_path)


def edited(t: dict[str, np.ndarray]) -> None:
    t["x"][40, 2] += 1e-3


def relabelled(t: dict[str, np.ndarray]) -> None:
    t["y"][7] = "bee" if t["y"][7] != "bee" else "ant"


def added(t: dict[str, np.ndarray]) -> None:
    t["x"], t["y"] = np.concatenate([t["x"], t["x"][:1] + 1]), np.concatenate([t["y"], t["y"][:1]])


def removed(t: dict[str, np.ndarray]) -> None:
    t["x"], t["y"] = np.delete(t["x"], 3, 0), np.delete(t["y"], 3)


def reordered(t: dict[str, np.ndarray]) -> None:
    t["x"][[5, 90]], t["y"][[5, 90]] = t["x"][[90, 5]], t["y"][[90, 5]]


CHANGES: dict[Callable[..., None], str] = {
    edited: "1 of 150 rows are otherwise: row 40",
    relabelled: "1 of 150 rows are otherwise: row 7",
    added: "151 rows where 150 were: 1 new ones, 0 are gone",
    removed: "149 rows where 150 were: 0 new ones, 1 are gone",
    reordered: "2 of 150 rows are at other places",
}


@pytest.mark.fault(24)
@pytest.mark.parametrize("change", list(CHANGES))
def test_changed_rows_are_told_and_accepted_on_your_word(saved, change):
    file, folder = saved
    before, split = table(), run.stored_split(folder)
    now = table()
    change(now)
    np.savez(file, **now)
    facts = (folder / "run.json").read_bytes()
    with pytest.raises(RunError) as caught:
        lamina.resume(folder, quiet=True)
    assert CHANGES[change] in caught.value.what and "--accept-data-change" in caught.value.fix
    assert caught.value.exit_code == 4 and (folder / "run.json").read_bytes() == facts

    found = lamina.resume(folder, quiet=True, accept_data_change=True)
    assert found.facts["status"] == "done"
    (lineage,) = found.facts["lineage"]
    assert lineage["until_step"] == 9 and CHANGES[change] in "; ".join(lineage["changes"])
    assert [row["event"]["data_changed"] for row in found.history if "data_changed" in row.get("event", {})] == [
        lineage["changes"]
    ]
    # Nothing that was learned from is tested on: rows keep their parts, wherever they are now.
    where = {row.tobytes(): part for part in ("train", "valid", "test") for row in before["x"][getattr(split, part)]}
    own = run.stored_split(folder)
    for part in ("train", "valid", "test"):
        for row in now["x"][getattr(own, part)]:
            assert where.get(row.tobytes(), part) == part
    assert sum(len(getattr(own, part)) for part in ("train", "valid", "test")) == len(now["x"])
    assert lamina.load(folder).reload().fingerprint() == found.facts["data"]["fingerprint"]


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("aaa", "bee", "cat"), "classes: new 'aaa'; gone 'ant'"),
        (("ant", "bee", "bee"), "classes: gone 'cat'"),
        (("bee", "ant", "cat"), "100 of 150 rows are otherwise"),
    ],
    ids=["renamed", "gone", "swapped"],
)
def test_other_classes_are_told_and_never_shifted(saved, names, words):
    file, folder = saved
    np.savez(file, **table(names))
    with pytest.raises(RunError) as caught:
        lamina.resume(folder, quiet=True)
    assert words in caught.value.what
    if "classes" in words:
        with pytest.raises(RunError, match=r"(?s)classes: .*train a new run"):
            lamina.resume(folder, quiet=True, accept_data_change=True)


@pytest.mark.fault(25)
def test_a_new_class_is_told(saved):
    file, folder = saved
    now = table()
    now["y"] = now["y"].copy()
    now["y"][:5] = "aaa"
    np.savez(file, **now)
    for accept in (False, True):
        with pytest.raises(RunError, match="classes: new 'aaa'"):
            lamina.resume(folder, quiet=True, accept_data_change=accept)


@pytest.mark.fault(24)
def test_other_shapes_are_never_accepted(saved):
    file, folder = saved
    now = table()
    np.savez(file, x=now["x"][:, :4], y=now["y"])
    for accept in (False, True):
        with pytest.raises(RunError, match=r"examples were \[\[5\]\] and are \[\[4\]\]"):
            lamina.resume(folder, quiet=True, accept_data_change=accept)


@pytest.mark.fault(24)
def test_a_file_that_was_only_touched_or_packed_anew_is_the_same(saved):
    file, folder = saved
    np.savez_compressed(file, **table())
    found = lamina.resume(folder, quiet=True)
    assert found.facts["status"] == "done" and "lineage" not in found.facts


@pytest.mark.fault(24)
def test_one_changed_value_anywhere_is_found(counted, recorded):
    """Whatever the type: a bit is flipped at a random place of a table, and every one is seen in its row."""
    rng, wanted, missed = np.random.default_rng(0), counted(200, 20_000), 0
    for _ in range(wanted):
        kind = rng.choice(["float32", "uint8", "int64", "float64"])
        column = rng.integers(0, 100, (20, int(rng.integers(1, 30)))).astype(kind)
        other = column.copy()
        flat = other.view(np.uint8).reshape(20, -1)
        row, place = rng.integers(20), rng.integers(flat.shape[1])
        flat[row, place] ^= 1 << rng.integers(8)
        one, two = (fingerprints.hashed(torch.from_numpy(c)) for c in (column, other))
        missed += np.flatnonzero(one != two).tolist() != [row]
    assert not missed
    recorded(planted=wanted, missed=0)


def test_a_split_is_carried_by_what_the_rows_are():
    before, now = np.array([1, 2, 3, 4], np.uint64), np.array([4, 9, 2, 1, 3], np.uint64)
    source = lamina.sources.open((np.zeros((5, 1)), np.arange(5)))
    own = fingerprints.carried(Split(np.array([0, 1]), np.array([2]), np.array([3])), before, now, source)
    assert (own.train.tolist(), own.valid.tolist(), own.test.tolist()) == ([1, 2, 3], [4], [0])


# --- A Dataset of one's own -------------------------------------------------------------------------------------------


class Items(Dataset):
    def __init__(self, x: Any, y: Any, jitter: float = 0.0, own: bool = False) -> None:
        self.x, self.targets, self.jitter = torch.as_tensor(x), y.tolist(), jitter
        self.draw = np.random.default_rng() if own else None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: int) -> Any:
        noise = torch.randn(5) * self.jitter if self.draw is None else torch.tensor(self.draw.normal(size=5)).float()
        return self.x[k] + noise, self.targets[k]


def net() -> nn.Module:
    return nn.Linear(5, 3)


def numbers() -> tuple[np.ndarray, np.ndarray]:
    return table()["x"], np.arange(150) % 3


@pytest.mark.fault(24)
@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_items_of_a_dataset_that_are_otherwise_are_told(tmp_path, jitter):
    x, y = numbers()
    folder = stopped(Items(x, y, jitter), tmp_path, net=net)
    x[:] += 0.5
    with pytest.raises(RunError, match=r"17 of 17 items that were looked at are otherwise: rows 0, 9, 18"):
        lamina.resume(folder, Items(x, y, jitter), net=net, quiet=True)
    found = lamina.resume(folder, Items(x, y, jitter), net=net, quiet=True, accept_data_change=True)
    assert found.facts["lineage"][0]["until_step"] == 9


@pytest.mark.fault(24)
def test_a_dataset_of_another_size_is_never_accepted(tmp_path):
    x, y = numbers()
    folder = stopped(Items(x, y), tmp_path, net=net)
    for accept in (False, True):
        with pytest.raises(RunError, match="the train data had 150 examples and have 149"):
            lamina.resume(folder, Items(x[1:], y[1:]), net=net, quiet=True, accept_data_change=accept)


@pytest.mark.fault(24)
@pytest.mark.parametrize("own", [False, True], ids=["random", "with a generator of its own"])
def test_a_dataset_that_is_the_same_goes_on_in_silence(tmp_path, own):
    x, y = numbers()
    folder = stopped(Items(x, y, 1.0, own), tmp_path, net=net)
    found = lamina.resume(folder, Items(x, y, 1.0, own), net=net, quiet=True)
    assert "lineage" not in found.facts


# --- While it is learned from -----------------------------------------------------------------------------------------


@pytest.mark.fault(37)
@pytest.mark.parametrize("touched", [False, True])
def test_a_file_that_changes_under_a_training_stops_it(tmp_path, touched):
    """An IDX file above --memory is read where it lies."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (200, 8, 8)).astype(np.uint8)
    y = (np.arange(200) % 3).astype(np.uint8)
    pictures += (y * 20)[:, None, None]
    place = tmp_path / "train-images-idx3-ubyte"
    place.write_bytes(b"\0\0\x08\x03" + np.array(pictures.shape, ">i4").tobytes() + pictures.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + np.array([200], ">i4").tobytes() + y.tobytes())

    def change(progress: Any) -> None:
        if progress.step == 9:
            with place.open("r+b") as file:
                file.seek(16 + 64 * 100)
                file.write(pictures[100].tobytes() if touched else bytes(64))

    asked = {**ASKED, "memory": "1kB", "runs": tmp_path, "name": "run", "watchers": [change], "augment": "none"}
    if touched:
        assert lamina.train(place, **asked).facts["status"] == "done"
        return
    with pytest.raises(DataError, match="train-images-idx3-ubyte has other contents") as caught:
        lamina.train(place, **asked)
    assert caught.value.exit_code == 3
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["status"] == "failed" and "changed while they were learned from" in facts["reason"]


@pytest.mark.fault(37)
def test_items_that_change_under_a_training_stop_it(tmp_path):
    x, y = numbers()
    dataset = Items(x, y)

    def change(progress: Any) -> None:
        if progress.step == 9:
            dataset.x[9] += 1

    with pytest.raises(DataError, match="1 of 17 items that were looked at are otherwise: row 9"):
        lamina.train(dataset, net=net, runs=tmp_path, watchers=[change], **ASKED)


# --- A stream ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    """Numbers that go on from where they were, as a socket's would; or the same in every walk."""

    def __init__(self, live: bool) -> None:
        self.live, self.at = live, 1

    def __iter__(self) -> Any:
        for k in range(96):
            number, self.at = (self.at if self.live else k), self.at + 1
            yield torch.full((5,), number % 7.0) + torch.rand(5), number % 3


@pytest.mark.fault(24)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stream_that_gives_the_same_again_goes_on_in_the_middle(tmp_path, accumulate):
    asked = {"epochs": 3, "batch_size": 8, "quiet": True, "seed": 1, "runs": tmp_path, "accumulate": accumulate}

    def own() -> nn.Module:
        torch.manual_seed(0)
        return net()

    torch.manual_seed(5)
    golden = lamina.train(Stream(False), net=own(), name="golden", **asked)
    for step in (5, 6):
        name, module = f"run-{step}", own()
        with pytest.raises(Interrupted):
            lamina.train(Stream(False), net=module, name=name, watchers=[pulls(step)], **asked)
        with pytest.raises(Interrupted):  # and once more, one step later
            lamina.resume(tmp_path / name, Stream(False), net=module, quiet=True, watchers=[pulls(step + 1)])
        found = lamina.resume(tmp_path / name, Stream(False), net=module, quiet=True, watchers=[pulls(1000)])
        assert (found.folder / "weights.safetensors").read_bytes() == (
            golden.folder / "weights.safetensors"
        ).read_bytes()


@pytest.mark.fault(24)
def test_a_stream_that_cannot_be_read_again_is_refused_or_its_epoch_begins_anew(tmp_path):
    asked = {"epochs": 3, "batch_size": 8, "quiet": True, "seed": 1, "runs": tmp_path, "name": "run"}
    stream = Stream(True)
    with pytest.raises(Interrupted):
        lamina.train(stream, net=net, watchers=[pulls(15)], **asked)
    with pytest.raises(
        RunError, match=r"did not give the . batches again .*so nobody knows where it stopped"
    ) as caught:
        lamina.resume(tmp_path / "run", stream, net=net, quiet=True)
    assert "--restart-epoch" in caught.value.fix and caught.value.exit_code == 4
    found = lamina.resume(tmp_path / "run", stream, net=net, quiet=True, restart_epoch=True)
    assert found.facts["status"] == "done" and found.facts["steps"] == 15 + 2 * 12
    assert [row["event"] for row in found.history if "event" in row] == [{"restarted_epoch": 2}]
