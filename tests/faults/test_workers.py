"""Whoever reads a Dataset may die, hang or find bad examples: the batches are those that were to be, and what is left out is
named."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, Subset, get_worker_info

import lamina
from lamina import batches as b
from lamina import processes
from lamina.batches import workers
from lamina.batches.aside import SetAside
from lamina.errors import DataError, Interrupted, ResourceError

pytestmark = pytest.mark.skipif(not processes.CAN, reason="workers are forked")
REPLACED = pytest.mark.filterwarnings("ignore:Worker .* Another reads its batches again:RuntimeWarning")


class Noisy(Dataset):
    """Items that draw from every generator of the process. `trouble(k)` comes before each, in a worker only."""

    def __init__(self, n: int = 120, trouble: Any = None) -> None:
        self.n, self.trouble = n, trouble

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        if self.trouble is not None and get_worker_info() is not None:
            self.trouble(k)
        noise = torch.randn(6) + np.random.rand() + random.random()
        return noise + k % 3, k % 3


def walked(dataset: Any, epochs: int = 2, **options: Any) -> list[Any]:
    """What is read, to the bit."""
    walk = b.DatasetBatches(dataset, **{"batch_size": 7, "seed": 5, **options})
    return [
        (x.indices.tolist(), x.inputs[0].numpy().tobytes(), x.truth.tolist())
        for e in range(epochs)
        for x in walk.epoch(e)
    ]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def shared_memory() -> set[str]:
    """Names of what python, torch or Lamina left there; others use the place too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("torch", "psm", "sem", "lamina", "pym"))}


# --- Order and augmentation are functions -----------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    batch_size=st.integers(1, 40), count=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**40), epoch=st.integers(0, 9),
    part=st.booleans(),
)  # fmt: skip
def test_an_example_is_a_function_of_seed_epoch_and_number(batch_size, count, seed, epoch, part):
    """For any map-style Dataset, any number of workers, and any batch size: what comes out, and in which order."""
    dataset = Subset(Noisy(60), range(3, 40)) if part else Noisy(40)
    order = b.Batches(torch.arange(len(dataset)), batch_size=1, seed=seed)
    alone = b.DatasetBatches(dataset, batch_size=1, seed=seed, workers=0)
    expected = [(x.indices.item(), x.inputs[0].numpy().tobytes()) for x in alone.epoch(epoch)]
    assert [index for index, _ in expected] == [int(x.indices) for x in order.epoch(epoch)]
    walk = b.DatasetBatches(dataset, batch_size=batch_size, seed=seed, workers=count)
    found = [
        (int(i), row.numpy().tobytes())
        for x in walk.epoch(epoch)
        for i, row in zip(x.indices, x.inputs[0], strict=True)
    ]
    walk.close()
    assert found == expected


@pytest.mark.fault(40)
def test_another_number_of_workers_after_resume_changes_nothing(tmp_path):
    def pull(progress: Any) -> None:
        if progress.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    def trained(name: str, first: int, then: int | None) -> Any:
        asked: dict[str, Any] = {
            "net": nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)), "epochs": 3, "batch_size": 8, "seed": 2,
            "quiet": True, "baselines": False, "report": False, "runs": tmp_path, "name": name, "workers": first,
        }  # fmt: skip
        torch.manual_seed(0)
        asked["net"].apply(lambda layer: getattr(layer, "reset_parameters", int)())
        if then is None:
            return lamina.train(Noisy(), **asked)
        with pytest.raises(Interrupted):
            lamina.train(Noisy(), **asked, watchers=[pull])
        recipe = tmp_path / name / "recipe.toml"
        recipe.write_text(recipe.read_text().replace(f"workers = {first}", f"workers = {then}"))
        return lamina.resume(tmp_path / name, Noisy(), net=asked["net"], quiet=True)

    golden = (trained("golden", 0, None).folder / "weights.safetensors").read_bytes()
    for first, then in ((0, 2), (4, 1)):
        folder = trained(f"{first}-{then}", first, then).folder
        assert (folder / "weights.safetensors").read_bytes() == golden


# --- Workers that die -------------------------------------------------------------------------------------------------


@pytest.mark.timeout(3600)
@pytest.mark.fault(40)
@REPLACED
def test_killed_workers_cost_no_bit(counted, recorded):
    """Killed at random times, idle or in the middle of an item."""
    wanted, draw, killed = counted(5, 200), random.Random(0), 0
    dataset = Noisy(120, lambda k: time.sleep(1e-4))
    expected = walked(dataset, epochs=6, workers=0)
    while killed < wanted:
        walk = b.DatasetBatches(dataset, batch_size=7, seed=5, workers=2)
        found = []
        for epoch in range(6):
            due = draw.randrange(len(walk))
            for k, x in enumerate(walk.epoch(epoch)):
                found.append((x.indices.tolist(), x.inputs[0].numpy().tobytes(), x.truth.tolist()))
                if k == due:
                    time.sleep(draw.uniform(0, 2e-3))
                    os.kill(draw.choice(walk._pool[0][0]._workers).process.pid, signal.SIGKILL)
                    killed += 1
        walk.close()
        assert found == expected
    recorded(planted=killed, other_bits=0)


@pytest.mark.fault(40)
def test_an_example_that_ends_a_worker_once_is_read_by_another(tmp_path):
    def trouble(k: int) -> None:
        if k == 50 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            os._exit(3)

    with pytest.warns(
        RuntimeWarning, match="ended with exit code 3 while it read example 50 of the Dataset. Another reads"
    ):
        found = walked(Noisy(trouble=trouble), workers=2)
    assert found == walked(Noisy(), workers=0)


@pytest.mark.fault(41)
@REPLACED
@pytest.mark.parametrize("always", [False, True])
def test_a_worker_that_hangs_is_replaced_and_an_example_that_always_does_is_named(tmp_path, monkeypatch, always):
    monkeypatch.setattr(workers, "TIMEOUT", 1.0)

    def trouble(k: int) -> None:
        if k == 50 and (always or not (tmp_path / "once").exists()):
            (tmp_path / "once").touch()
            threading.Event().wait()

    if always:
        with pytest.raises(
            ResourceError, match="was ended after 1 s while it read example 50 of the Dataset"
        ) as caught:
            walked(Noisy(trouble=trouble), workers=2)
        assert "does not end" in caught.value.fix
    else:
        assert walked(Noisy(trouble=trouble), workers=2) == walked(Noisy(), workers=0)


@pytest.mark.fault(41)
def test_a_reader_that_is_slow_but_goes_on_does_not_hang(monkeypatch):
    monkeypatch.setattr(workers, "TIMEOUT", 2.0)
    slow = Noisy(5, lambda k: time.sleep(0.6))
    assert len(walked(slow, workers=1, batch_size=5, epochs=1)) == 1  # and without a warning


@pytest.mark.fault(22)
def test_a_worker_that_fills_the_memory_is_named_with_its_example():
    import resource

    def trouble(k: int) -> None:
        if k == 50:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)
            torch.ones(1 << 28)

    with pytest.raises(ResourceError, match="Example 50 of the Dataset could not be read: the memory is used up"):
        walked(Noisy(trouble=trouble), workers=2)
    with pytest.raises(ResourceError, match="Example 50 of the Dataset"):  # which is no fault of the example
        walked(Noisy(trouble=trouble), workers=2, aside=SetAside(120))


@pytest.mark.fault(21)
def test_workers_end_with_their_parent_and_leave_nothing(counted, recorded):
    """In the middle of an item that never ends; with batches in shared memory."""
    wanted, before, slowest = counted(3, 100), shared_memory(), 0.0
    for _ in range(wanted):
        hears, says = os.pipe()
        child = os.fork()
        if not child:
            os.close(hears)
            walk = b.DatasetBatches(
                Noisy(trouble=lambda k: threading.Event().wait() if k == 99 else None), batch_size=7, workers=3
            )
            next(walk.epoch(0))
            os.write(says, " ".join(str(w.process.pid) for w in walk._pool[0][0]._workers).encode())
            signal.pause()
        os.close(says)
        pids = [int(pid) for pid in os.read(hears, 100).split()]
        assert len(pids) == 3 and all(map(alive, pids))
        os.close(hears)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        began = time.monotonic()
        while any(map(alive, pids)):
            assert time.monotonic() - began < 2, "a worker outlives its parent"
            time.sleep(0.01)
        slowest = max(slowest, time.monotonic() - began)
    assert shared_memory() <= before
    recorded(planted=wanted, orphans=0, leaks=0, slowest_seconds=round(slowest, 3))


def test_workers_that_ended_leave_no_open_file():
    walked(Noisy(), workers=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        walked(Noisy(), workers=2)
    assert len(os.listdir("/proc/self/fd")) <= before


# --- Examples that cannot be used -------------------------------------------------------------------------------------

BAD = {
    "raises": (lambda: 1 // 0, "ZeroDivisionError"),
    "shape": (lambda: (torch.ones(5), 1), r"it is \(\(5,\) float32, int\), and most are of another shape"),
    "parts": (lambda: (torch.ones(6), torch.ones(6), 1), "most are of another shape"),
    "nan": (lambda: (torch.full((6,), float("nan")), 1), "it holds NaN or infinite values"),
    "infinite": (lambda: (torch.tensor([1.0, 2, 3, 4, 5, float("inf")]), 1), "it holds NaN or infinite values"),
}  # fmt: skip


class Spoilt(Noisy):
    def __init__(self, bad: dict[int, str], n: int = 120) -> None:
        super().__init__(n)
        self.bad = bad

    def __getitem__(self, k: int) -> Any:
        return BAD[self.bad[k]][0]() if k in self.bad else super().__getitem__(k)


class Together(Spoilt):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[k] for k in indices]


@pytest.mark.fault(26)
@pytest.mark.parametrize("kind", list(BAD))
@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("size", [1, 7, 119])
def test_the_rest_of_a_batch_is_as_it_was(kind, count, size):
    """Good examples keep their places and their random numbers; a batch of which nothing is left holds the first sound one."""
    aside = SetAside(4000)
    told: list[int] = []
    aside.tell = lambda index, reason: told.append(index)
    walk = b.DatasetBatches(Spoilt({33: kind, 34: kind}), batch_size=size, seed=5, workers=count, aside=aside)
    good = b.DatasetBatches(Noisy(), batch_size=size, seed=5, workers=0)
    for epoch in (0, 1):
        for found, whole in zip(walk.epoch(epoch), good.epoch(epoch), strict=True):
            rows = [k for k, index in enumerate(whole.indices.tolist()) if index not in (33, 34)]
            if not rows:
                (index,) = found.indices.tolist()
                assert index == next(int(k) for x in good.epoch(epoch) for k in x.indices if int(k) not in (33, 34))
                continue
            assert found.indices.tolist() == whole.indices[rows].tolist() and found.count == len(rows)
            assert torch.equal(found.inputs[0], whole.inputs[0][rows]) and torch.equal(found.truth, whole.truth[rows])
    assert sorted(told) == [33, 34] and len(aside.reasons) == 2
    import re

    assert re.search(BAD[kind][1], aside.reasons[33])


@pytest.mark.fault(26)
def test_a_dataset_that_reads_whole_batches_is_asked_which_it_is():
    aside = SetAside(4000)
    aside.tell = lambda index, reason: None
    seen = [
        k
        for x in b.DatasetBatches(Together({33: "raises", 70: "nan"}), batch_size=7, aside=aside)
        for k in x.indices.tolist()
    ]
    assert sorted(seen) == [k for k in range(120) if k not in (33, 70)] and sorted(aside.reasons) == [33, 70]


@pytest.mark.fault(26)
@pytest.mark.parametrize("count", [0, 2])
def test_more_than_the_share_is_refused_with_names(count):
    aside = SetAside(1999)
    aside.tell = lambda index, reason: None
    with pytest.raises(DataError) as caught:
        walked(Spoilt({33: "raises", 70: "nan"}), workers=count, aside=aside)
    assert caught.value.exit_code == 3 and "2 of 1,999 examples" in caught.value.what
    assert "example 33 (ZeroDivisionError" in caught.value.what and "example 70 (it holds NaN" in caught.value.what
    with pytest.raises(DataError, match=r"Example \d+ of the Dataset could not be read: ZeroDivisionError"):
        walked(Spoilt(dict.fromkeys(range(120), "raises")), workers=count, aside=SetAside(120))


@pytest.mark.fault(26)
def test_what_is_infinite_in_most_examples_is_meant_to_be_so():
    class Masked(Noisy):
        def __getitem__(self, k: int) -> Any:
            return torch.full((3,), -float("inf")), torch.ones(2), k

    aside = SetAside(120, 0.5)
    assert len([1 for _ in b.DatasetBatches(Masked(), batch_size=7, aside=aside).epoch(0)]) == 18 and not aside.reasons


class Listed(Spoilt):
    """Its answers are listed, so that bad items are met in the training only."""

    targets = tuple(k % 3 for k in range(1200))


@pytest.mark.fault(26)
@pytest.mark.parametrize("kind", [Spoilt, Listed])
def test_a_run_names_what_it_set_aside_and_resumes_exactly(tmp_path, kind, capsys):
    def pull(progress: Any) -> None:
        if progress.step == 40:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(name: str) -> dict[str, Any]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        return {"net": net, "epochs": 2, "batch_size": 32, "seed": 2, "baselines": False, "report": False, "runs": tmp_path,
                "name": name, "workers": 1, "threads": 1}  # fmt: skip

    dataset = kind({700: "raises"}, 1200)
    golden = lamina.train(dataset, **asked("golden"))
    screen = " ".join(capsys.readouterr().out.split())
    assert "1 of 1,200 examples could not be used" in screen and "700 (ZeroDivisionError" in screen
    told = json.loads((golden.folder / "data.json").read_text())["set_aside"]
    assert told["examples"] == [700]
    events = [row["event"] for row in golden.history if "event" in row and "set_aside" in row["event"]]
    assert [event["set_aside"] for event in events] == [700]
    rows = [line.split(",")[0] for line in (golden.folder / "predictions.csv").read_text().splitlines()[1:]]
    assert "700" not in rows and len(rows) >= 119

    wanted = asked("stopped")
    with pytest.raises(Interrupted):
        lamina.train(dataset, **wanted, watchers=[pull])
    again = lamina.resume(tmp_path / "stopped", dataset, net=wanted["net"], quiet=True)
    for name in ("weights.safetensors", "predictions.csv"):
        assert (again.folder / name).read_bytes() == (golden.folder / name).read_bytes()
    assert [row for row in again.history if "event" in row] == [row for row in golden.history if "event" in row]
