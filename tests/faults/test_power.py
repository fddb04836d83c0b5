"""The power fails at any instant: what was not flushed is gone, torn, zeroed or out of order, and a run is found again.

A real training is recorded: every request it makes of the disk. The record is played again, request by request, on a model
of a file system that keeps apart what was flushed and what was not (ALICE, Pillai et al., 2014): writes to a file, names in a
folder. After each request, states are drawn that a power cut may leave; each is laid down in a folder of memory and read by
the real code. LAMINA_SEED is where the drawing begins.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from small import SETTINGS, table
from test_resume import differences, outcome

import lamina
from lamina import files, state

SEED = int(os.environ.get("LAMINA_SEED", 0))

# --- The record ------------------------------------------------------------------------------------------------------


class Recording(files.Disk):
    """The disk, and what was asked of it, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def create(self, path: Path) -> Any:
        self.asked.append(("create", path))
        return super().create(path)

    def extend(self, path: Path) -> Any:
        if not path.exists():
            self.asked.append(("create", path))
        return super().extend(path)

    def write(self, file: Any, data: Any) -> None:
        self.asked.append(("write", Path(file.name), bytes(data)))
        super().write(file, data)

    def flush(self, file: Any) -> None:
        super().flush(file)
        if isinstance(file.name, (str, Path)):  # not one without a name
            self.asked.append(("flush", Path(file.name)))

    def flush_folder(self, path: Path) -> None:
        super().flush_folder(path)
        self.asked.append(("flush folder", path))

    def rename(self, source: Path, target: Path) -> None:
        self.asked.append(("rename", source, target))
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self.asked.append(("remove", path))
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self.asked.append(("folder", path))

    def rmdir(self, path: Path) -> None:
        super().rmdir(path)
        self.asked.append(("remove", path))


# --- The model -------------------------------------------------------------------------------------------------------


@dataclass
class File:
    flushed: bytes = b""
    pending: list[bytes] = field(default_factory=list)  # written one after the other, in any order on the disk

    def live(self) -> bytes:
        return self.flushed + b"".join(self.pending)

    def after_a_cut(self, draw: random.Random) -> bytes:
        """Each write whole, lost, torn at a sector or a page, or with a page of zeros; what is lost in between is zero."""
        found = bytearray(self.flushed)
        at = len(found)
        for data in self.pending:
            way = draw.choice(("whole", "lost", "torn", "zeros"))
            if way == "torn":
                unit = draw.choice((512, 4096))
                data = data[: unit * draw.randint(0, len(data) // unit)]
            elif way == "zeros":
                page = 4096 * draw.randint(0, len(data) // 4096)
                data = data[:page] + bytes(len(data[page : page + 4096])) + data[page + 4096 :]
            if way != "lost":
                found.extend(bytes(max(0, at + len(data) - len(found))))
                found[at : at + len(data)] = data
            at += len(data)
        return bytes(found)


@dataclass
class Folder:
    flushed: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[tuple[str | None, str | None, Any]] = field(default_factory=list)  # old name, new name, what

    def live(self) -> dict[str, File | Folder]:
        return self.kept([True] * len(self.pending))

    def kept(self, keep: list[bool]) -> dict[str, File | Folder]:
        """Any of the changes may have reached the disk: dropping some is what a change of their order comes to."""
        found = dict(self.flushed)
        for (old, new, what), kept in zip(self.pending, keep, strict=True):
            if kept and old is not None and found.get(old) is what:
                del found[old]
            if kept and new is not None:
                found[new] = what
        return found


class Machine:
    """A file system below `root`, and what lies where."""

    def __init__(self, root: Path):
        self.root, self.top = root, Folder()

    def at(self, path: Path) -> Any:
        found: Any = self.top
        for name in path.relative_to(self.root).parts:
            found = found.live()[name]
        return found

    def play(self, what: str, path: Path, more: Any = None) -> None:
        parent = self.at(path.parent) if path != self.root else self.top
        if what in ("create", "folder"):
            parent.pending.append((None, path.name, File() if what == "create" else Folder()))
        elif what == "write":
            self.at(path).pending.append(more)
        elif what == "flush":
            file = self.at(path)
            file.flushed, file.pending = file.live(), []
        elif what == "flush folder":
            place = self.at(path)
            place.flushed, place.pending = place.live(), []
        elif what == "rename":
            parent.pending.append((path.name, more.name, self.at(path)))
        elif what == "remove":
            parent.pending.append((path.name, None, self.at(path)))

    def after_a_cut(self, draw: random.Random) -> Iterator[tuple[Path, bytes | None]]:
        """(path below the root, content, or None for a folder)."""
        share = draw.choice((0.0, 0.5, 0.9, 1.0))  # of the names that reached the disk

        def walk(folder: Folder, place: Path) -> Iterator[tuple[Path, bytes | None]]:
            for name, what in folder.kept([draw.random() < share for _ in folder.pending]).items():
                if isinstance(what, File):
                    yield place / name, what.after_a_cut(draw)
                else:
                    yield place / name, None
                    yield from walk(what, place / name)

        return walk(self.top, Path())

    def content(self, path: Path) -> Any:
        what = self.at(path)
        return what.live() if isinstance(what, File) else {name: part.live() for name, part in what.live().items()}


# --- What must hold --------------------------------------------------------------------------------------------------


class Promise:
    """What was sure to be on the disk, and what may be: versions of each file and folder, from the newest that is sure."""

    def __init__(self) -> None:
        self.versions: dict[str, list[Any]] = {}  # from the last that is sure
        self.sure: dict[str, bool] = {}
        self.checkpoints: dict[str, Any] = {}  # every one that ever was
        self.last = -1  # step of the newest that is sure
        self.history = b""  # what was flushed of it

    def note(self, machine: Machine, run: Path, asked: tuple[Any, ...]) -> None:
        what, path = asked[0], asked[1]
        if what == "rename" and not asked[2].name.startswith(files.TEMPORARY):
            name = asked[2].name
            content = machine.content(asked[2])
            if asked[2].parent.name == "checkpoints":
                self.checkpoints[name] = content
            elif asked[2].parent == run:
                self.versions.setdefault(name, []).append(content)
        elif what == "flush folder" and path.name == "checkpoints":
            there = machine.at(path).live()
            self.last = max([self.last, *(int(name[5:]) for name in self.checkpoints if name in there)])
        elif what == "flush folder" and path == run:
            for name, versions in self.versions.items():
                self.versions[name], self.sure[name] = versions[-1:], True
        elif what == "flush" and path == run / "history.jsonl":
            self.history = machine.content(path)

    def kept(self, run: Path) -> None:
        """In the folder that a power cut left."""
        newest = state.newest(run / "checkpoints", lambda words: None) if run.is_dir() else None
        if self.last >= 0:
            assert newest is not None, "no checkpoint is whole"
        if newest is not None:
            assert int(newest.name[5:]) >= self.last, "a checkpoint that was sure is lost"
            assert read(newest) == self.checkpoints[newest.name]
            state.read(newest)
        files.sweep(run)
        assert not list(run.rglob(f"{files.TEMPORARY}*"))
        for name, versions in self.versions.items():
            place = run / name
            if self.sure.get(name) or place.exists():
                content = read(place)
                if name == "history.jsonl":
                    assert content.startswith(self.history) or not self.sure.get(name)
                else:
                    assert content in versions, f"{name} is neither old nor new"
                if place.is_dir():
                    files.verify(place)
        if newest is not None:  # sweeping took nothing of it
            assert state.newest(run / "checkpoints", lambda words: None) == newest


def read(place: Path) -> Any:
    return {part.name: part.read_bytes() for part in place.iterdir()} if place.is_dir() else place.read_bytes()


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Any, ...]], Any]:
    """(folder of runs, requests, what the run came to)."""
    runs = tmp_path_factory.mktemp("record")
    disk = Recording()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "disk", disk)
        lamina.train(table(), name="run", runs=runs, **SETTINGS)
    return runs, disk.asked, outcome(runs / "run")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder that is not on a disk, where there is one."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield place
    shutil.rmtree(place)


def lay_down(left: Iterator[tuple[Path, bytes | None]], place: Path) -> None:
    for path, content in left:
        if content is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(content)


def play(
    recorded_run: Any, memory: Path, states: int, promise: Promise | None = None, skip: Any = lambda asked: False
) -> int:
    """Lay down so many states in all, evenly over the requests, and look after each."""
    runs, asked, _ = recorded_run
    machine, promise = Machine(runs), promise or Promise()
    draw, done = random.Random(SEED), 0
    for k, request in enumerate(asked, 1):
        if skip(request):
            continue
        machine.play(*request)
        promise.note(machine, runs / "run", request)
        while done < states * k // len(asked):
            place = memory / "left"
            place.mkdir()
            lay_down(machine.after_a_cut(draw), place)
            try:
                promise.kept(place / "run")
            except Exception as error:
                raise AssertionError(
                    f"LAMINA_SEED={SEED}, state {done}, after request {k}, {request[:2]}: {error}"
                ) from error
            shutil.rmtree(place)
            done += 1
    return done


def test_the_model_agrees_with_the_disk(recorded_run):
    """With everything on the disk, it holds what the real folder holds."""
    runs, asked, _ = recorded_run
    machine = Machine(runs)
    for request in asked:
        machine.play(*request)
    for path in (runs / "run").rglob("*"):
        if path.is_file() and path.name not in ("lock",):
            assert machine.content(path) == path.read_bytes(), path
    committed = [r[2].name for r in asked if r[0] == "rename" and r[2].name.startswith("step-")]
    assert len(committed) >= 6 and sum(r[0] == "remove" for r in asked) > 20
    assert sum(r[0] == "rename" and r[2].name == "best" for r in asked) >= 2


@pytest.mark.timeout(3600)
@pytest.mark.fault(3, 4)
def test_after_a_power_cut_the_newest_whole_checkpoint_is_found(recorded_run, memory, counted, recorded):
    wanted = counted(2000, 100_000)
    states = play(recorded_run, memory, wanted)
    recorded(planted=states, unrecoverable=0, requests=len(recorded_run[1]), seed=SEED)


@pytest.mark.parametrize("left_out", ["flush", "flush folder"])
def test_a_flush_that_is_left_out_is_seen(recorded_run, memory, left_out):
    """The control: the same training without one kind of flush loses checkpoints that were promised."""

    class Trusting(Promise):
        def note(self, machine: Machine, run: Path, asked: tuple[Any, ...]) -> None:
            super().note(machine, run, asked)
            if left_out == "flush folder" and asked[0] == "rename":
                super().note(machine, run, ("flush folder", asked[1].parent))

    with pytest.raises(AssertionError, match="LAMINA_SEED"):
        play(recorded_run, memory, 3000, Trusting(), skip=lambda asked: asked[0] == left_out)


@pytest.mark.timeout(3600)
@pytest.mark.fault(4)
def test_after_a_power_cut_the_run_goes_on_to_the_same_bits(recorded_run, memory, counted, recorded):
    """A few of the states, resumed for good."""
    runs, asked, golden = recorded_run
    ready = next(k for k, r in enumerate(asked) if r[0] == "rename" and r[2] == runs / "run" / "run.json") + 2
    draw, wanted = random.Random(SEED + 1), counted(4, 200)
    for stop in sorted(draw.randint(ready, len(asked)) for _ in range(wanted)):
        machine = Machine(runs)
        for request in asked[:stop]:
            machine.play(*request)
        lay_down(machine.after_a_cut(draw), memory)
        lamina.resume(memory / "run", table(), quiet=True)
        assert differences(outcome(memory / "run"), golden) == [], f"LAMINA_SEED={SEED}, after request {stop}"
        shutil.rmtree(memory / "run")
    recorded(planted=wanted, bit_equal=wanted, seed=SEED)
