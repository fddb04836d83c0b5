"""One process a run: of two that begin together one is refused in words, and what a dead process left is taken over."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina import files
from lamina.errors import Interrupted, ResourceError, UsageError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are made by fork")


def forked(act: Callable[[], int]) -> int:
    """A process that does something and ends with its exit code."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = act()
    finally:
        os._exit(code)


def code_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A run that stopped after its first steps."""

    def pull(progress: Any) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        lamina.train("iris", epochs=2, runs=tmp_path, name="run", quiet=True, baselines=False, report=False,
                     watchers=[pull])  # fmt: skip
    return tmp_path / "run"


@pytest.mark.fault(16)
def test_of_two_that_race_for_a_run_one_wins_and_the_other_names_it(tmp_path, counted, recorded):
    races = counted(15, 200)
    for race in range(races):
        folder = tmp_path / f"run-{race}"
        folder.mkdir()
        start, gate = os.pipe()
        done, hold = os.pipe()

        def racer(
            folder: Path = folder, start: int = start, gate: int = gate, done: int = done, hold: int = hold
        ) -> int:
            os.close(gate), os.close(hold)
            os.read(start, 1)  # both begin when the gate is shut
            try:
                with files.Lock(folder):
                    (folder / str(os.getpid())).touch()
                    os.read(done, 1)
                return 0
            except UsageError as error:
                named = int(error.what.partition(" by process ")[2].partition(" on ")[0])
                while not (folder / str(named)).exists():  # it has the lock, and says so next
                    time.sleep(0.001)
                return error.exit_code

        children = [forked(racer), forked(racer)]
        for end in (start, gate, done):
            os.close(end)
        first, status = os.wait()
        os.close(hold)
        (other,) = set(children) - {first}
        assert (os.waitstatus_to_exitcode(status), code_of(other)) == (2, 0)
        assert [entry.name for entry in folder.iterdir() if entry.name != "lock"] == [str(other)]
    recorded(races=races, winners=races)


@pytest.mark.fault(16)
def test_two_that_resume_together_leave_one_sound_run(stopped):
    def act() -> int:
        try:
            lamina.resume(stopped, quiet=True)
            return 0
        except UsageError as error:
            return error.exit_code if "in use by process" in error.what else 98

    codes = sorted(code_of(child) for child in [forked(act), forked(act)])
    assert codes in ([0, 2], [0, 0])  # the second may have come when the first was done
    run = lamina.load(stopped)
    assert run.facts["status"] == "done" and [row["epoch"] for row in run.history if "train/loss" in row] == [1, 2]


def forged(**facts: Any) -> bytes:
    return json.dumps(
        {"process": os.getpid(), "host": socket.gethostname(), **files._born(os.getpid()), **facts}
    ).encode()


def dead() -> int:
    child = forked(lambda: 0)
    code_of(child)
    return child


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    "text",
    [
        lambda: forged(process=dead()),
        lambda: forged(ticks=1),
        lambda: forged(boot="another start of this machine"),
        lambda: forged(host="elsewhere"),
        lambda: forged(process=-1),
        lambda: forged(process=1 << 40),
        lambda: forged(process="1; rm -rf"),
        lambda: b"process 1 on here",
        lambda: b"[" * 100_000,
        lambda: b"\xff\x00" * 1000,
        lambda: b"",
    ],
    ids=["dead", "number given again", "another start", "another machine", "negative", "too large", "words", "old", "deep",
         "bytes", "empty"],
)  # fmt: skip
def test_what_is_left_in_the_file_keeps_nobody_out(tmp_path, text):
    (tmp_path / "lock").write_bytes(text())
    with files.Lock(tmp_path):
        assert json.loads((tmp_path / "lock").read_bytes())["process"] == os.getpid()
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()} on "):
            files.Lock(tmp_path)
    assert (tmp_path / "lock").read_bytes() == b""


@pytest.mark.fault(17)
@pytest.mark.parametrize(
    ("facts", "gone"),
    [({}, False), ({"ticks": 1}, True), ({"boot": "x"}, True), ({"host": "x", "ticks": 1}, False)],
    ids=["lives", "number given again", "another start", "another machine"],
)
def test_a_number_that_was_given_again_is_another_process(facts, gone):
    """Whom a process that waits for a dying child's lock believes to be alive."""
    assert files._gone(json.loads(forged(**facts))) is gone


@pytest.mark.fault(17)
def test_a_lock_that_is_held_stays_so_whatever_its_file_says(tmp_path):
    with files.Lock(tmp_path):
        (tmp_path / "lock").write_bytes(b"nobody")
        with pytest.raises(UsageError, match="in use by another process"):
            files.Lock(tmp_path)


@pytest.mark.fault(17)
def test_a_link_is_not_written_through(tmp_path):
    other = tmp_path / "precious"
    other.write_text("precious")
    (tmp_path / "lock").symlink_to(other)
    with pytest.raises(ResourceError, match="a link, which is not followed"):
        files.Lock(tmp_path)
    assert other.read_text() == "precious"


@pytest.mark.fault(16)
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_cannot_lock_is_told_from_another_process(tmp_path, monkeypatch, number):
    import fcntl

    def fails(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(ResourceError, match=f"could not be locked: {os.strerror(number)}") as caught:
        files.Lock(tmp_path)
    assert "--runs" in caught.value.fix
