"""Work in a copy of this process comes out as if it were done here, and a copy that comes to grief costs no result."""

from __future__ import annotations

import functools
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import threadpoolctl
import torch

import lamina
from lamina import processes
from lamina.batches import datasets

pytestmark = pytest.mark.skipif(not processes.CAN, reason="processes cannot be copied on this system")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(processes, "cores", lambda: 2)


def who(first: int, then: object) -> tuple[int, object, int]:
    """Whoever is asked, and with how many threads. In a copy: killed, failing, or too slow, if so asked."""
    if os.getpid() != first:
        if then == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if then == "fails":
            raise ValueError("in the copy")
        if then == "hangs":
            time.sleep(60)
    return os.getpid(), then, torch.get_num_threads()


def test_work_is_done_by_another_process_while_this_one_goes_on():
    given = bytes(1_000_000)  # more than a pipe holds
    wait = processes.beside(functools.partial(who, os.getpid(), given))
    process, found, threads = wait()
    assert process != os.getpid() and found == given and threads == 1


@pytest.mark.parametrize("how", ["killed", "fails", "hangs"])
def test_what_comes_to_grief_beside_is_done_here(how, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    assert processes.beside(functools.partial(who, os.getpid(), how))()[:2] == (os.getpid(), how)
    with pytest.raises(ChildProcessError):  # nothing is left of it
        os.waitpid(-1, os.WNOHANG)


def test_work_that_nobody_waits_for_ends_without_a_word(capfd):
    processes.beside(functools.partial(bytes, 1_000_000))
    gc.collect()  # with what would have waited, the pipe goes
    for process in multiprocessing.active_children():
        process.join(10)
        assert process.exitcode == 0
    assert capfd.readouterr().err == ""


def test_an_error_of_the_work_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        processes.beside(lambda: 1 / 0)()


@pytest.mark.parametrize("what", ["one core", "no fork", "no process"])
def test_where_there_can_be_no_copy_the_work_is_done_here(what, monkeypatch):
    if what == "one core":
        monkeypatch.setattr(processes, "cores", lambda: 1)
    elif what == "no fork":
        monkeypatch.setattr(processes, "CAN", False)
    else:

        def refused() -> int:
            raise OSError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(os, "fork", refused)
    assert processes.beside(functools.partial(who, os.getpid(), "here"))()[0] == os.getpid()


class Items(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return torch.full((3,), float(k % 2)), k % 2


def trained(runs: str) -> tuple[float, int, bool]:
    datasets.WORTH = 0.0  # else so few are read without workers anyway
    given = {"loss": torch.nn.CrossEntropyLoss(), "epochs": 40, "learning_rate": 0.3}
    run = lamina.train(Items(), net=torch.nn.Linear(3, 2), **given, runs=runs, quiet=True)
    return run.headline.value, run.recipe.workers, (run.folder / "report.html").is_file()


def test_a_process_that_may_have_no_children_trains_all_the_same(tmp_path):
    """In a pool of multiprocessing, where settings are tried side by side."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        value, workers, report = pool.apply(trained, (str(tmp_path),))
    assert value == 1.0 and workers == 0 and report


def test_a_copy_ends_with_the_process_that_made_it():
    script = """
import functools, os, time
from lamina import processes
from lamina.batches import datasets
processes.cores = lambda: 2
def work():
    print(os.getpid(), flush=True)
    time.sleep(60)
processes.beside(work)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    copy = int(process.stdout.readline())
    os.kill(copy, signal.SIGINT)  # Ctrl-C is not for it
    time.sleep(0.1)
    os.kill(copy, 0)
    process.kill()
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 10
    while time.monotonic() < until and os.path.exists(f"/proc/{copy}"):
        with open(f"/proc/{copy}/stat") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "Z":
                break  # nobody has asked for its end yet
        time.sleep(0.01)
    assert time.monotonic() < until


def test_a_core_is_left_to_others_for_a_while():
    def threads() -> set[int]:
        return {torch.get_num_threads()} | {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with processes.sharing():
            assert threads() == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("net", ["mlp", "convnet"])
def test_a_report_painted_beside_is_the_one_painted_here(net, tmp_path, monkeypatch):
    def pictures(name: str) -> dict[str, bytes]:
        lamina.train("digits", net=net, epochs=1, name=name, runs=tmp_path, quiet=True, threads=1)
        found = {path.name: path.read_bytes() for path in (tmp_path / name / "figures").iterdir()}
        scores = json.loads((tmp_path / name / "scores.json").read_text())
        for entry in scores["baselines"]:
            entry.pop("seconds")
        return found | {"scores": json.dumps(scores).encode()}

    beside = pictures("beside")
    monkeypatch.setattr(processes, "CAN", False)
    assert beside == pictures("here") and {"curves.png", "confusion.png"} < set(beside)
