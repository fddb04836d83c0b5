"""Signals at any time: the step is finished and saved, a second signal ends at once, a closed terminal stops nothing; and
what was stopped ends, resumed, in the bits of the run that was never disturbed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_resume
import torch
from small import Net, code_of
from test_resume import differences
from torch.utils.data import Dataset

import lamina
from lamina import signals

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")


class Noisy(Dataset):
    """Random items, so that workers and generators matter."""

    def __len__(self) -> int:
        return 120

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return torch.randn(12) + 0.1 * np.random.rand() + (k % 3), k % 3


SETTINGS: dict[str, Any] = {
    "batch_size": 8, "epochs": 5, "seed": 3, "ema": 0.9, "clip_norm": 1.0, "accumulate": 2, "early_stopping": 4,
    "threads": 1, "checkpoint_every": "7steps", "quiet": True, "baselines": False, "report": False,
}  # fmt: skip


def start(runs: Path, **more: Any) -> None:
    lamina.train(Noisy(), net=Net, name="run", runs=runs, **{**SETTINGS, **more})


def go_on(runs: Path, **more: Any) -> None:
    lamina.resume(runs / "run", Noisy(), net=Net, quiet=True, **more)


def forked(act: Callable[[], Any]) -> int:
    """A process that is warm already. Its exit code is the one of the command line."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        act()
        code = 0
    except KeyboardInterrupt as error:
        code = getattr(error, "exit_code", 130)
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)


def outcome(folder: Path) -> dict[str, Any]:
    """All that must come out the same, to the bit."""
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    return {**test_resume.outcome(folder), "splits.csv": (folder / "splits.csv").read_bytes()}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The run that was never disturbed, and how long it took once all is warm."""
    seconds = []
    for name in ("cold", "warm"):
        runs = tmp_path_factory.mktemp(name)
        began = time.monotonic()
        assert code_of(forked(lambda runs=runs: start(runs))) == 0
        seconds.append(time.monotonic() - began)
    return outcome(runs / "run"), min(seconds)


@pytest.mark.timeout(3600)
@pytest.mark.fault(12, 13)
def test_signals_at_random_times_cost_no_bit(tmp_path, golden, counted, recorded):
    expected, whole = golden
    wanted, seed = counted(4, 500), int(os.environ.get("LAMINA_SEED", 0))
    draw = random.Random(seed)
    sent, runs_done, answered, slowest = 0, 0, 0, 0.0
    while sent < wanted:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        act = start
        while True:
            child = forked(lambda act=act: act(tmp_path))
            number = draw.choice([signal.SIGINT, signal.SIGTERM])
            time.sleep(draw.uniform(0, whole))
            began = time.monotonic()
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            code = code_of(child)
            if code == 0:  # it came too late
                break
            sent, slowest = sent + 1, max(slowest, time.monotonic() - began)
            # Before there is a run, and after it is done, the system's own answer does.
            assert code in (128 + number, -number), f"exit code {code}, seed {seed}"
            if (tmp_path / "run" / "run.json").exists():
                act, answered = go_on, answered + (code > 0)
            else:
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
                act = start
        assert differences(outcome(tmp_path / "run"), expected) == [], f"seed {seed}"
        runs_done += 1
    assert answered and slowest < signals.GRACE
    recorded(planted=sent, answered=answered, runs=runs_done, lost=0, slowest_seconds=round(slowest, 2))


@pytest.mark.fault(12)
def test_a_signal_between_two_steps_loses_no_step(tmp_path):
    def pull(progress: Any) -> None:
        if progress.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    assert code_of(forked(lambda: start(tmp_path, watchers=[pull], checkpoint_every="1h"))) == 143
    assert (tmp_path / "run" / "checkpoints" / "step-0000009").is_dir()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"


def dawdling(how: Callable[[], Any], ready: int) -> Callable[[Any], None]:
    """A watcher that says when it is in the middle of a step, and then takes its time."""

    def watch(progress: Any) -> None:
        if progress.step == 10:
            os.write(ready, b"x")
            how()

    return watch


def in_c() -> None:
    """Half a minute in which Python cannot answer a signal."""
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 60_000_000)


def in_python() -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.fault(13)
@pytest.mark.parametrize("how", [in_python, in_c])
@pytest.mark.parametrize("twice", [True, False], ids=["a second signal", "the grace is over"])
def test_what_does_not_end_is_ended_and_nothing_is_damaged(tmp_path, golden, monkeypatch, how, twice):
    monkeypatch.setattr(signals, "GRACE", 30.0 if twice else 0.3)
    monkeypatch.setattr(signals, "STUCK", 0.3)
    ready, tell = os.pipe()
    child = forked(lambda: start(tmp_path, watchers=[dawdling(how, tell)]))
    os.close(tell)
    assert os.read(ready, 1) == b"x"
    began = time.monotonic()
    os.kill(child, signal.SIGINT)
    if twice:
        time.sleep(0.1)
        os.kill(child, signal.SIGINT)
    assert code_of(child) == 130 and time.monotonic() - began < 25
    assert code_of(forked(lambda: go_on(tmp_path))) == 0
    assert differences(outcome(tmp_path / "run"), golden[0]) == []


@pytest.mark.timeout(3600)
@pytest.mark.fault(13)
def test_second_signals_at_random_times_damage_nothing(tmp_path, golden, counted, recorded):
    expected, whole = golden
    wanted, draw = counted(2, 100), random.Random(1)
    sent = 0
    while sent < wanted:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        act = start
        for _ in range(4):
            child = forked(lambda act=act: act(tmp_path))
            time.sleep(draw.uniform(0.3, 1.0) * whole)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGINT)
                time.sleep(draw.uniform(0, 0.01))
                os.kill(child, signal.SIGTERM)
            code = code_of(child)
            if code == 0:
                break
            sent += 1
            if (tmp_path / "run" / "run.json").exists():
                act = go_on
            else:
                shutil.rmtree(tmp_path / "run", ignore_errors=True)
        else:
            assert code_of(forked(lambda act=act: act(tmp_path))) == 0
        assert differences(outcome(tmp_path / "run"), expected) == []
    recorded(planted=sent, lost=0)


# --- Nobody reads any more ---------------------------------------------------------------------------------------------

PATIENT = """
import time
def loss(output, truth):
    time.sleep(0.001)
    from torch.nn.functional import cross_entropy
    return cross_entropy(output, truth)
"""


def command(tmp_path: Path, *more: str) -> None:
    """`lamina train` in this process, with the streams that the system gave it."""
    from lamina.cli import main

    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
    os.environ["TERM"] = "xterm"
    (tmp_path / "patient.py").write_text(PATIENT)
    main(["train", "digits", "--loss", f"{tmp_path / 'patient.py'}:loss", "--epochs", "4", "--runs", str(tmp_path),
          "--name", "run", "--no-baselines", "--no-report", *more])  # fmt: skip


def is_whole(folder: Path) -> None:
    run = lamina.load(folder)
    assert run.facts["status"] == "done" and run.facts["epochs"] == 4
    log = (folder / "train.log").read_text()
    assert "epoch 4/4" in log and "95 % interval" in log and "lamina predict" in log


@pytest.mark.fault(14)
@pytest.mark.parametrize("after", ["opening", "bar"])
def test_a_closed_terminal_stops_nothing(tmp_path, after):
    child, terminal = pty.fork()
    if not child:
        forked_code = 99
        try:
            command(tmp_path)
        except SystemExit as error:
            forked_code = int(error.code or 0)
        finally:
            os._exit(forked_code)
    seen = b""
    while (b"split" if after == "opening" else b"\x1b[?25l") not in seen:  # the bar hides the cursor
        seen += os.read(terminal, 1000)
    if after == "opening":  # SIGHUP is answered from the opening block on
        time.sleep(0.05)
    os.close(terminal)
    assert code_of(child) == 0
    is_whole(tmp_path / "run")


@pytest.mark.fault(14)
def test_a_reader_that_goes_away_stops_nothing(tmp_path):
    """`lamina train ... | head -1`."""
    hears, says = os.pipe()

    def act() -> None:
        os.dup2(says, 1)
        os.dup2(says, 2)
        os.close(hears), os.close(says)
        command(tmp_path)

    child = forked(act)
    os.close(says)
    seen = b""
    while b"split" not in seen:
        seen += os.read(hears, 1000)
    time.sleep(0.05)
    os.close(hears)
    assert code_of(child) == 0
    is_whole(tmp_path / "run")


def test_signals_are_given_back(tmp_path):
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before, open_before = [signal.getsignal(kind) for kind in kinds], os.listdir("/proc/self/fd")
    with signals.Signals(tmp_path):
        assert [signal.getsignal(kind) for kind in kinds] != before
    assert [signal.getsignal(kind) for kind in kinds] == before
    assert len(os.listdir("/proc/self/fd")) == len(open_before)
    assert signal.set_wakeup_fd(-1) == -1
