"""A disk that fails, is full, slow or odd, a clock that jumps, a folder that moved: training goes on or stops with words,
no checkpoint is lost, and the end is the same to the bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from small import SETTINGS, table
from test_resume import differences, outcome
from torch import nn
from torch.utils.data import Dataset

import lamina
from lamina import cli, files, state, writer
from lamina.errors import Interrupted, ResourceError, RunError, UsageError
from lamina.state import TrainState

SEED = int(os.environ.get("LAMINA_SEED", 0))


def train(runs: Path, **more: Any) -> Any:
    return lamina.train(table(), runs=runs, **{"name": "run", **SETTINGS, **more})


def resume(folder: Path, **more: Any) -> Any:
    return lamina.resume(folder, table(), quiet=True, **more)


@pytest.fixture
def runs() -> Iterator[Path]:
    """A folder that is not on a disk, where there is one: what is planted here are errors, not kills."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("short")
    train(runs, **SHORT)
    return outcome(runs / "run")


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = tmp_path_factory.mktemp("golden")
    train(runs)
    return outcome(runs / "run")


def sound(folder: Path) -> list[int]:
    """Steps of the checkpoints that verify, newest first."""
    found = []
    for path in state.listing(folder / "checkpoints"):
        try:
            files.verify(path)
            found.append(int(path.name[5:]))
        except RunError:
            pass
    return found


REQUESTS = {"create", "extend", "write", "cut", "flush", "flush_folder", "rename", "unlink", "mkdir", "rmdir", "free"}


class Failing(files.Disk):
    """The `at`-th request fails, or every one from there on."""

    def __init__(self, at: int, error: int, for_good: bool = False):
        self.at, self.error, self.for_good, self.asked = at, error, for_good, 0

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in REQUESTS:
            return found

        def passed(*arguments: Any) -> Any:
            self.asked += 1
            if self.asked == self.at or (self.for_good and self.asked > self.at):
                raise OSError(self.error, os.strerror(self.error))
            return found(*arguments)

        return passed


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again at once."""
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(writer, "AGAIN", 0.0)


# --- Every request fails ---------------------------------------------------------------------------------------------

SHORT = {"epochs": 2, "checkpoint_every": "3steps"}  # three checkpoints, of which one is deleted
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE, errno.EINTR)


def requests(runs: Path) -> int:
    """How many a short training makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "disk", counting := Failing(0, 0))
        train(runs, **SHORT)
    shutil.rmtree(runs / "run")
    return counting.asked


def survive(runs: Path, golden: dict[str, Any], disk: Failing) -> str:
    """A training on this disk, and then on one that is well again; what became of the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "disk", disk)
        try:
            train(runs, **SHORT)
            end = "went on"
        except ResourceError as error:
            end = "stopped" if error.exit_code == 6 and error.fix else f"stopped without words: {error}"
    folder = runs / "run"
    if not (folder / "run.json").is_file():  # it had not begun
        assert end == "stopped" and (disk.for_good or not folder.exists())
        shutil.rmtree(folder, ignore_errors=True)
        train(runs, **SHORT)
        end = "did not begin"
    elif end == "stopped":
        assert sound(folder), "no checkpoint is whole"
        resume(folder)
    assert differences(outcome(folder), golden) == []
    assert len(sound(folder)) == 2
    shutil.rmtree(folder)
    return end


@pytest.mark.timeout(3600)
@pytest.mark.fault(8, 10)
@pytest.mark.parametrize("error", ERRORS, ids=lambda code: errno.errorcode[code])
def test_whichever_request_fails_once_nothing_is_lost(impatient, runs, short, counted, recorded, error):
    total = requests(runs)
    places = range(1, total + 1)
    wanted = counted(5, total)
    ends = [
        survive(runs, short, Failing(at, error))
        for at in (places if wanted == total else sorted(random.Random(SEED + error).sample(places, wanted)))
    ]
    if error in files._PASSING:
        assert ends.count("went on") >= 0.9 * len(ends)  # all but those of a log that nobody may lose
    recorded(planted=wanted, lost=0, requests=total, **{end.replace(" ", "_"): ends.count(end) for end in set(ends)})


@pytest.mark.timeout(3600)
@pytest.mark.fault(8)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=lambda code: errno.errorcode[code])
def test_a_disk_that_fails_for_good_stops_the_training_and_loses_nothing(
    impatient, runs, short, counted, recorded, error
):
    total = requests(runs)
    wanted = counted(4, total)
    places = range(1, total + 1)
    ends = [
        survive(runs, short, Failing(at, error, for_good=True))
        for at in (places if wanted == total else sorted(random.Random(SEED + error).sample(places, wanted)))
    ]
    recorded(planted=wanted, lost=0, **{end.replace(" ", "_"): ends.count(end) for end in set(ends)})


class Full(files.Disk):
    """A disk that somebody fills, and empties."""

    full = False

    def create(self, path: Path) -> Any:
        if self.full and "checkpoints" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)


@pytest.mark.fault(8)
def test_a_disk_that_is_full_for_a_while_stops_nothing(impatient, runs, golden, monkeypatch):
    monkeypatch.setattr(files, "disk", disk := Full())

    def watch(progress: Any) -> None:
        disk.full = progress.step in (4, 5)  # the checkpoint of step 4 is refused, and written a step later than 5
        time.sleep(0.05)

    train(runs, watchers=[watch])
    log = " ".join((runs / "run" / "train.log").read_text().split())
    assert "step-0000004 could not be written: the disk is full. The training goes on, and this is tried again." in log
    assert differences(outcome(runs / "run"), golden) == []


@pytest.mark.fault(8)
def test_a_training_that_two_intervals_cannot_save_is_stopped(impatient, runs, golden, monkeypatch):
    monkeypatch.setattr(files, "disk", disk := Full())
    steps = []

    def watch(progress: Any) -> None:
        steps.append(progress.step)
        if progress.step == 4:
            while 2 not in sound(runs / "run"):  # the one of step 2 is still on its way
                time.sleep(0.01)
            disk.full = True

    with pytest.raises(ResourceError, match=r"disk is full.* step-0000002 is saved") as caught:
        train(runs, watchers=[watch])
    assert steps[-1] == 6 and "lamina resume" in str(caught.value)
    assert sound(runs / "run") == [2, 0]
    assert json.loads((runs / "run" / "run.json").read_text())["status"] == "failed"
    disk.full = False
    resume(runs / "run")
    assert differences(outcome(runs / "run"), golden) == []


@pytest.mark.fault(8)
def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "disk", disk := files.Disk())
    monkeypatch.setattr(disk, "free", lambda path: 1_999)
    with pytest.raises(ResourceError, match=r"with 1,999 bytes free\.\nExpected: 2,000, twice"):
        files.commit(tmp_path / "step-1", {"weights": bytes(1_000)}, {})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(disk, "free", lambda path: 2_000)
    files.commit(tmp_path / "step-1", {"weights": bytes(1_000)}, {})


# --- A folder that cannot be written ---------------------------------------------------------------------------------


class Untouched(Dataset):
    """Data that nobody may look at."""

    def __len__(self) -> int:
        pytest.fail("the data were looked at")

    def __getitem__(self, k: int) -> Any:
        pytest.fail("the data were looked at")


@pytest.fixture
def nobody() -> Iterator[None]:
    """This process may write only what everybody may, for the time."""
    if os.name == "nt":
        pytest.skip("POSIX permissions")
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.fault(9)
def test_a_folder_that_cannot_be_written_is_refused_before_data_are_read(runs, request):
    train(runs, watchers=[lambda progress: None])
    with pytest.raises(Interrupted):
        train(runs, name="half", watchers=[_interrupt_at(5)])
    for place in (runs / "half" / "checkpoints", runs / "half", runs):
        place.chmod(0o555)
    request.getfixturevalue("nobody")
    with pytest.raises(ResourceError, match="no permission to write") as caught:
        lamina.train(Untouched(), net=nn.Linear(6, 3), runs=runs, quiet=True)
    assert caught.value.exit_code == 6
    with pytest.raises(ResourceError, match="no permission to write"):
        lamina.resume(runs / "half", Untouched(), quiet=True)


def _interrupt_at(step: int) -> Any:
    def watch(progress: Any) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return watch


# --- A disk that is slow ---------------------------------------------------------------------------------------------


class Slow(files.Disk):
    def flush(self, file: Any) -> None:
        time.sleep(0.02)
        super().flush(file)


@pytest.mark.fault(10, 23)
def test_a_slow_disk_holds_up_the_next_checkpoint_and_changes_nothing(runs, golden, monkeypatch):
    """A checkpoint at every step: each waits for the one before it, and the last is waited for at the end."""
    monkeypatch.setattr(files, "disk", Slow())
    copies: list[Any] = []
    real = state.copy

    def copy(*arguments: Any) -> Any:
        found = real(*arguments)
        copies.append(weakref.ref(found))
        most.append(sum(one() is not None for one in copies))
        return found

    most: list[int] = []
    monkeypatch.setattr(state, "copy", copy)
    train(runs, checkpoint_every="1steps")
    found = outcome(runs / "run")
    assert differences(found, golden) == []
    assert max(most) <= 4  # of checkpoints and of the best, one that is written and one that waits
    assert found["run.json"]["steps"] == sound(runs / "run")[0]


@pytest.mark.fault(10)
def test_steps_are_made_while_a_checkpoint_is_written(runs, monkeypatch):
    """Its first flush lasts until a step was made: without a thread this would wait for ever."""

    class Waiting(files.Disk):
        met = False

        def flush(self, file: Any) -> None:
            if "step-0000002" in str(file.name):
                until = time.monotonic() + 20
                while not steps or steps[-1] < 3:
                    assert time.monotonic() < until, "no step was made meanwhile"
                    time.sleep(0.001)
                self.met = True
            super().flush(file)

    steps: list[int] = []
    monkeypatch.setattr(files, "disk", disk := Waiting())
    train(runs, checkpoint_every="2steps", watchers=[lambda progress: steps.append(progress.step)])
    assert disk.met


# --- A file system without a rename of folders -----------------------------------------------------------------------


class Overlay(files.Disk):
    """Folders cannot be renamed, as those of an overlay's lower layer; at the `at`-th request the process is gone."""

    def __init__(self, at: int = 0):
        self.at, self.asked = at, 0

    def rename(self, source: Path, target: Path) -> None:
        self.step()
        if source.is_dir():
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        super().rename(source, target)

    def step(self) -> None:
        self.asked += 1
        if self.at and self.asked >= self.at:
            raise KeyboardInterrupt  # and again at every attempt to tidy up

    def write(self, file: Any, data: Any) -> None:
        self.step()
        super().write(file, data)

    def mkdir(self, path: Path) -> None:
        self.step()
        super().mkdir(path)

    def unlink(self, path: Path) -> None:
        self.step()
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self.step()
        super().rmdir(path)


@pytest.mark.fault(11)
def test_where_folders_cannot_be_renamed_a_run_is_the_same(runs, golden, monkeypatch):
    monkeypatch.setattr(files, "disk", Overlay())
    with pytest.raises(Interrupted):
        train(runs, watchers=[_interrupt_at(7)])
    assert len(sound(runs / "run")) == 2
    resume(runs / "run")
    assert differences(outcome(runs / "run"), golden) == []


@pytest.mark.fault(11)
def test_where_folders_cannot_be_renamed_a_replacement_may_be_killed(runs, monkeypatch, recorded):
    """At every request: the old or the new one is there, whole, when what was left is cleared away."""
    old, new = {"weights": b"old", "state": b"1"}, {"weights": b"newer", "state": b"2"}
    at = 1
    while True:
        monkeypatch.setattr(files, "disk", Overlay())
        files.commit(runs / "best", old, {})
        monkeypatch.setattr(files, "disk", disk := Overlay(at))
        with suppress(KeyboardInterrupt):
            files.commit(runs / "best", new, {})
        monkeypatch.setattr(files, "disk", Overlay())
        files.sweep(runs)
        assert files.verify(runs / "best")[1] in (old, new), f"killed at request {at}"
        assert [path.name for path in runs.iterdir()] == ["best"]
        shutil.rmtree(runs / "best")
        if disk.asked < at:
            break
        at += 1
    assert at > 15
    recorded(planted=at - 1, lost=0)


@pytest.mark.fault(11)
def test_where_files_cannot_be_replaced_a_training_is_refused(runs, monkeypatch):
    class Odd(files.Disk):
        def rename(self, source: Path, target: Path) -> None:
            if target.is_file():
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            super().rename(source, target)

    steps: list[int] = []
    monkeypatch.setattr(files, "disk", Odd())
    with pytest.raises(ResourceError, match=r"\w+\.json could not be written"):
        train(runs, watchers=[lambda progress: steps.append(progress.step)])
    assert steps == []


# --- Clocks, places, versions, machines ------------------------------------------------------------------------------


@pytest.mark.fault(15)
def test_a_clock_that_jumps_changes_nothing(runs, golden, monkeypatch):
    """By years, forward and back, at every look; and the dates of checkpoints are those of another order."""
    draw, year = random.Random(SEED), 365 * 86400.0
    monkeypatch.setattr(time, "time", lambda: draw.choice([0.0, 1.0, 1.8e9 - year, 1.8e9, 1.8e9 + year]))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    with pytest.raises(Interrupted):
        train(runs, watchers=[_interrupt_at(7)])
    newest, older = state.listing(runs / "run" / "checkpoints")
    os.utime(newest / files.MANIFEST, (0, 0))
    os.utime(newest, (0, 0))
    os.utime(older, (4e9, 4e9))
    assert state.newest(runs / "run" / "checkpoints", pytest.fail) == newest
    resume(runs / "run")
    assert differences(outcome(runs / "run"), golden) == []
    rows = [json.loads(line) for line in (runs / "run" / "history.jsonl").read_text().splitlines()]
    assert all(0 <= row["seconds"] < 60 for row in rows if "seconds" in row)
    seconds = json.loads((runs / "run" / "run.json").read_text())["seconds"]
    assert all(0 <= part < 60 for part in seconds.values())


@pytest.mark.fault(18)
def test_a_run_that_was_moved_or_copied_goes_on(runs, golden):
    with pytest.raises(Interrupted):
        train(runs, watchers=[_interrupt_at(5)])
    (runs / "far" / "away").mkdir(parents=True)
    copy = shutil.copytree(runs / "run", runs / "far" / "away" / "copy of it")
    moved = shutil.move(runs / "run", runs / "far" / "moved")
    for folder in (copy, moved):
        resume(Path(folder))
        assert differences(outcome(Path(folder)), golden) == []


def by_hand(place: Path, weights: dict[str, Any], tensors: dict[str, Any], tree: Any, schema: int = 1) -> None:
    """A checkpoint of schema 1, made of nothing but safetensors, JSON and SHA-256."""
    place.mkdir(parents=True)
    parts = {
        "weights.safetensors": save(weights), "state.safetensors": save(tensors), "state.json": json.dumps(tree).encode(),
    }  # fmt: skip
    listed = {}
    for name, data in parts.items():
        (place / name).write_bytes(data)
        listed[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = json.dumps({"schema": schema, "step": 0, "epoch": 0, "batch": 0, "files": listed})
    (place / "manifest.json").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")


@pytest.mark.fault(19)
def test_schema_1_is_read_for_ever_and_a_newer_one_is_named(tmp_path):
    net = nn.Linear(3, 2)
    found = TrainState(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    net(torch.ones(1, 3)).sum().backward()
    found.optimizer.step()
    by_hand(tmp_path / "step-0000001", dict(net.state_dict()), *state.pack(found.tree()))
    weights, tree, manifest = state.read(tmp_path / "step-0000001")
    assert torch.equal(weights["weight"], net.weight) and manifest["step"] == 0
    found.load(weights, tree)

    by_hand(tmp_path / "step-0000002", dict(net.state_dict()), *state.pack(found.tree()), schema=2)
    told: list[str] = []
    assert state.newest(tmp_path, told.append) == tmp_path / "step-0000001"
    assert "schema 2" in told[0]
    with pytest.raises(RunError, match=r"schema 2") as caught:
        state.read(tmp_path / "step-0000002")
    assert "schema 1" in str(caught.value) and "the Lamina that wrote it" in str(caught.value)


@pytest.mark.fault(20)
def test_another_number_of_threads_is_said_and_the_run_goes_on(runs, golden):
    with pytest.raises(Interrupted):
        train(runs, watchers=[_interrupt_at(5)])
    recipe = runs / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("threads = 1", "threads = 2"))
    found = resume(runs / "run")
    log = " ".join((runs / "run" / "train.log").read_text().split())
    assert "differs from the one before (threads): the run goes on, valid but not bit for bit the same" in log
    assert found.facts["status"] == "done" and found.headline.n == golden["run.json"]["headline"]["n"]


@pytest.mark.fault(20)
def test_the_same_machine_is_not_said_to_differ(runs):
    with pytest.raises(Interrupted):
        train(runs, watchers=[_interrupt_at(5)])
    resume(runs / "run")
    assert "differs" not in (runs / "run" / "train.log").read_text()


# --- The list --------------------------------------------------------------------------------------------------------


def listed(folder: Path, capsys: Any) -> tuple[int, dict[str, str]]:
    with pytest.raises(SystemExit) as end:
        cli.main(["checkpoints", str(folder)])
    return int(end.value.code or 0), dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


@pytest.mark.fault(5)
def test_checkpoints_are_listed_with_what_a_resume_would_take(runs, capsys):
    with pytest.raises(Interrupted):
        train(runs, watchers=[_interrupt_at(7)])
    code, lines = listed(runs / "run", capsys)
    newest, older = state.listing(runs / "run" / "checkpoints")
    size = sum(path.stat().st_size for path in newest.iterdir() if path.name != files.MANIFEST)
    words = lines[f"checkpoints/{newest.name}"]
    assert (
        code == 0
        and f"{size:,} bytes" in words
        and " old, " in words
        and words.endswith("verified, resume goes on here")
    )
    assert "valid/accuracy 0." in words and lines[f"checkpoints/{older.name}"].endswith("verified")
    assert "valid/accuracy 0." in lines["best"]

    (newest / "state.json").write_bytes(b"{}")
    code, lines = listed(runs / "run", capsys)
    assert code == 4 and lines[f"checkpoints/{newest.name}"].startswith("DAMAGED: ")
    assert "state.json has 2 bytes" in lines[f"checkpoints/{newest.name}"]
    assert lines[f"checkpoints/{older.name}"].endswith("resume goes on here")
    (older / "weights.safetensors").unlink()
    assert "none of them can be resumed; train again" in listed(runs / "run", capsys)[1]


def test_a_second_run_of_that_name_is_refused(runs):
    train(runs)
    with pytest.raises(UsageError, match="exists already"):
        train(runs)
