"""What must last is there and whole, or not there at all: after errors of the disk, kills, power cuts and damage."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lamina import files
from lamina.errors import ResourceError, RunError, UsageError

OLD = {"weights": b"the old weights", "state.json": b'{"step": 1}'}
NEW = {"weights": b"the new weights, which are longer than the old ones", "state.json": b'{"step": 2}'}
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file systems")


def left_over(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{files.TEMPORARY}*"))


# --- A disk that fails, and a machine that dies ----------------------------------------------------------------------


class Dead(BaseException):
    """The process is gone: nothing after this happens, no clean-up either."""


class Disk(files.Disk):
    """Every request `lamina.files` makes of the disk passes here; the `at`-th fails with an error number, or, where
    that is None, kills the process in the middle of it. `power`: what was not flushed to the disk is lost with it."""

    def __init__(self, at: int, error: int | None = None, power: bool = False):
        self.at, self.error, self.power = at, error, power
        self.asked = 0
        self.dead = False
        self.events: list[str] = []
        self.unflushed: list[Path] = []  # files whose bytes are not on the disk yet
        # From, to, what was there; until the folder is flushed.
        self.renames: list[tuple[Path, Path, bytes | None]] = []

    def request(self) -> None:
        if self.dead:
            raise Dead
        self.asked += 1
        if self.asked == self.at:
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
            self.dead = True
            raise Dead

    def create(self, path: Path) -> Any:
        self.request()
        self.unflushed.append(path)
        return super().create(path)

    def write(self, file: Any, data: Any) -> None:
        try:
            self.request()
        except BaseException:  # the half of it
            super().write(file, data[: len(data) // 2])
            raise
        super().write(file, data)

    def cut(self, file: Any, size: int) -> None:
        if not self.dead:
            super().cut(file, size)

    def flush(self, file: Any) -> None:
        self.request()
        self.events.append(f"flush {Path(file.name).name}")
        super().flush(file)
        self.unflushed = [path for path in self.unflushed if path != Path(file.name)]

    def flush_folder(self, path: Path) -> None:
        self.request()
        self.events.append(f"flush {path.name}")
        super().flush_folder(path)
        self.renames = [entry for entry in self.renames if entry[1].parent != path]

    def rename(self, source: Path, target: Path) -> None:
        self.request()
        self.events.append(f"rename to {target.name}")
        before = target.read_bytes() if target.is_file() else None
        super().rename(source, target)
        self.unflushed = [Path(str(path).replace(str(source), str(target))) for path in self.unflushed]
        self.renames.append((source, target, before))

    def unlink(self, path: Path) -> None:
        self.request()
        super().unlink(path)

    def mkdir(self, path: Path) -> None:
        self.request()
        super().mkdir(path)

    def rmdir(self, path: Path) -> None:
        self.request()
        self.events.append(f"delete {path.name}")
        super().rmdir(path)

    def crash(self) -> None:
        """Take back what a power cut takes back."""
        for source, target, before in reversed(self.renames):
            if target.exists():
                os.rename(target, source)
            if before is not None:
                target.write_bytes(before)
        for path in self.unflushed:
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    @property
    def reached(self) -> bool:
        return self.asked >= self.at


@contextmanager
def disk(at: int, error: int | None = None, power: bool = False) -> Iterator[Disk]:
    found = Disk(at, error, power)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "disk", found)
        patch.setattr(files, "PAUSES", ())  # one try
        yield found
    if found.dead and power:
        found.crash()


def at_every_request(act: Callable[[], None], set_up: Callable[[], None], check: Callable[[Disk], None], **fault: Any):
    """Let the first request fail, then the second, ..., until one run gets through; and look after each."""
    for at in itertools.count(1):
        set_up()
        with disk(at, **fault) as asked, suppress(Dead if fault["error"] is None else ResourceError):
            act()
        check(asked)
        if not asked.reached:
            return at - 1
        assert at < 100


ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE, errno.EROFS]
FAULTS = [{"error": code} for code in ERRORS] + [{"error": None}, {"error": None, "power": True}]
NAMES = [*(errno.errorcode[code] for code in ERRORS), "kill", "power cut"]


@posix
@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_a_write_is_whole_or_not_at_all(tmp_path, fault):
    place = tmp_path / "run.json"

    def check(asked: Disk) -> None:
        assert place.read_bytes() in (b"old", b"new and longer")
        if not asked.reached:
            assert place.read_bytes() == b"new and longer"
        if asked.dead:
            files.sweep(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["run.json"]

    tried = at_every_request(
        lambda: files.write(place, "new and longer"), lambda: place.write_bytes(b"old"), check, **fault
    )
    assert tried == 5  # open, write, flush, rename, flush of the folder


@posix
@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
@pytest.mark.parametrize("replacing", [False, True])
def test_a_commit_is_whole_or_not_at_all(tmp_path, fault, replacing):
    place = tmp_path / "best"

    def set_up() -> None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if replacing:
            files.commit(place, OLD, {"step": 1})

    def check(asked: Disk) -> None:
        if not asked.dead:  # at most the old one, where it is not sure yet that the new one is on the disk
            assert all(path.name.endswith("-old") for path in left_over(tmp_path))
        files.sweep(tmp_path)
        if replacing or not asked.reached or place.exists():
            manifest, data = files.verify(place)
            assert (manifest["step"], data) in ((1, OLD), (2, NEW))
            if not asked.reached:
                assert data == NEW
        assert [p.name for p in tmp_path.iterdir()] == (["best"] if place.exists() else [])

    tried = at_every_request(lambda: files.commit(place, NEW, {"step": 2}), set_up, check, **fault)
    assert tried >= 13  # folder, three files of three requests, two flushes, renames


@posix
@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_a_removal_is_whole_or_not_at_all(tmp_path, fault):
    place = tmp_path / "step-1"

    def check(asked: Disk) -> None:
        if place.exists():
            assert asked.reached and files.verify(place)[1] == OLD
        files.sweep(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == (["step-1"] if place.exists() else [])

    at_every_request(
        lambda: files.remove(place), lambda: place.exists() or files.commit(place, OLD, {}), check, **fault
    )


@posix
@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_what_is_guarded_against_is_seen(tmp_path, fault):
    """The same faults do harm to a file that is overwritten in place."""
    place, harm = tmp_path / "run.json", []

    def overwrite() -> None:
        with files._words(place), files.disk.create(place) as file:
            files.disk.write(file, b"new and longer")
            files.disk.flush(file)

    at_every_request(
        overwrite,
        lambda: place.write_bytes(b"old"),
        lambda asked: harm.append(place.read_bytes() not in (b"old", b"new and longer")),
        **fault,
    )
    assert any(harm)


def test_a_replacement_that_was_killed_half_way_comes_back(tmp_path):
    files.commit(tmp_path / "best", OLD, {"step": 1})
    with disk(13) as asked, pytest.raises(Dead):  # the second of the two renames
        files.commit(tmp_path / "best", NEW, {"step": 2})
    assert asked.renames[-1][0] == tmp_path / "best" and not (tmp_path / "best").exists()
    files.sweep(tmp_path)
    assert files.verify(tmp_path / "best")[1] == OLD
    assert not left_over(tmp_path)


def test_a_replacement_that_fails_half_way_is_taken_back_at_once(tmp_path):
    """Nobody has swept yet: whoever reads the old one finds it."""
    files.commit(tmp_path / "best", OLD, {"step": 1})
    with disk(13, errno.EIO), pytest.raises(ResourceError):
        files.commit(tmp_path / "best", NEW, {"step": 2})
    assert files.verify(tmp_path / "best")[1] == OLD
    assert not left_over(tmp_path)


def test_any_exception_leaves_nothing_behind(tmp_path, monkeypatch):
    files.write(tmp_path / "a", "old")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "a", "new")
    with pytest.raises(KeyboardInterrupt):
        files.commit(tmp_path / "b", OLD, {})
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_everything_is_flushed_before_it_is_renamed_into_place(tmp_path):
    """The order that a power cut needs: bytes, then the manifest, then the folder, then the name; what is replaced is
    deleted when the new name is on the disk, too."""
    with disk(10_000) as asked:
        for _ in range(2):
            files.commit(tmp_path / "step-1", OLD, {})
    events = [re.sub(r"\.tmp-\d+-\d+-", ".tmp-", event) for event in asked.events]
    written = ["flush weights", "flush state.json", "flush manifest.json", "flush .tmp-step-1"]
    named, sure = "rename to step-1", f"flush {tmp_path.name}"
    old = ".tmp-step-1-old"
    assert events == [*written, named, sure, *written, f"rename to {old}", named, sure, f"delete {old}"]


# --- Real faults of real disks ---------------------------------------------------------------------------------------


@posix
def test_a_file_too_large_for_its_limit_leaves_the_old_one(tmp_path):
    import resource

    files.write(tmp_path / "a", b"old")
    files.commit(tmp_path / "c", OLD, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ResourceError, match="could not be written"):
            files.write(tmp_path / "a", bytes(100_000))
        with pytest.raises(ResourceError, match="could not be written"):
            files.commit(tmp_path / "c", {"weights": bytes(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a").read_bytes() == b"old" and files.verify(tmp_path / "c")[1] == OLD
    assert not left_over(tmp_path)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 128 kB. Needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if mount is None or os.name == "nt" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_leaves_what_was_there(full_disk):
    files.write(full_disk / "run.json", "old")
    files.commit(full_disk / "best", {"weights": bytes(60_000)}, {"step": 1})
    with pytest.raises(ResourceError, match="the disk is full") as caught:
        files.commit(full_disk / "best", {"weights": bytes(60_000), "state": bytes(60_000)}, {"step": 2})
    assert caught.value.exit_code == 6 and "free some space" in str(caught.value)
    with pytest.raises(ResourceError, match="the disk is full"):
        files.write(full_disk / "run.json", bytes(200_000))
    assert (full_disk / "run.json").read_text() == "old"
    assert files.verify(full_disk / "best")[0]["step"] == 1
    assert not left_over(full_disk)
    (full_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(full_disk).free))
    files.remove(full_disk / "best")  # making room must not need room
    files.commit(full_disk / "best", {"weights": bytes(30_000)}, {"step": 3})


@pytest.fixture
def locked_folder():
    """A folder that this process may read but not write: root becomes nobody for the time."""
    if os.name == "nt":
        pytest.skip("POSIX permissions")
    place = Path(tempfile.mkdtemp())
    (place / "inside").mkdir()
    files.commit(place / "inside" / "step-1", OLD, {})
    place.chmod(0o555)
    (place / "inside").chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield place / "inside"
    if root:
        os.seteuid(0)
    (place / "inside").chmod(0o755)
    place.chmod(0o755)
    shutil.rmtree(place)


@pytest.mark.parametrize(
    "act",
    [
        lambda place: files.write(place / "a", "text"),
        lambda place: files.append(place / "train.log", "line"),
        lambda place: files.commit(place / "b", OLD, {}),
        lambda place: files.commit(place / "step-1", NEW, {}),
        lambda place: files.remove(place / "step-1"),
        lambda place: files.folder(place / "c" / "d"),
        lambda place: files.claim(place / "e"),
        files.Lock,
    ],
    ids=["write", "append", "commit", "replace", "remove", "folder", "claim", "lock"],
)
def test_a_folder_without_permission_is_said_and_left_alone(locked_folder, act):
    with pytest.raises(ResourceError, match="no permission to write") as caught:
        act(locked_folder)
    assert str(locked_folder) in str(caught.value) and "--runs" in str(caught.value)
    assert [p.name for p in locked_folder.iterdir()] == ["step-1"]
    assert files.verify(locked_folder / "step-1")[1] == OLD


def test_a_path_through_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for act in (lambda p: files.folder(p / "runs"), lambda p: files.write(p / "a", "")):
        with pytest.raises(ResourceError, match="a part of that path is a file"):
            act(tmp_path / "file")


# --- Damage is seen --------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    place = tmp_path / "step-1"
    files.commit(place, {"weights": bytes(range(40)), "state.json": b'{"a": [1, 2]}', "empty": b""}, {"step": 1})
    return place


def test_a_sound_directory_verifies(checkpoint):
    manifest, data = files.verify(checkpoint)
    assert manifest["step"] == 1 and manifest["schema"] == 1
    assert data == {"weights": bytes(range(40)), "state.json": b'{"a": [1, 2]}', "empty": b""}


def test_every_flipped_bit_is_seen(checkpoint):
    flips = 0
    for file in checkpoint.iterdir():
        sound = file.read_bytes()
        for place, bit in itertools.product(range(len(sound)), range(8)):
            file.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit]) + sound[place + 1 :])
            with pytest.raises(RunError, match="damaged"):
                files.verify(checkpoint)
            flips += 1
        file.write_bytes(sound)
    files.verify(checkpoint)
    assert flips > 3000


def test_every_truncation_and_addition_is_seen(checkpoint):
    for file in checkpoint.iterdir():
        sound = file.read_bytes()
        for length in range(len(sound)):
            file.write_bytes(sound[:length])
            with pytest.raises(RunError, match=r"damaged|bytes"):
                files.verify(checkpoint)
        for more in (b"\n", b"\0", b" "):
            file.write_bytes(sound + more)
            with pytest.raises(RunError, match=r"damaged|bytes"):
                files.verify(checkpoint)
        file.write_bytes(sound)
    files.verify(checkpoint)


def test_every_missing_or_unreadable_file_is_named(checkpoint):
    for file in list(checkpoint.iterdir()):
        sound = file.read_bytes()
        file.unlink()
        with pytest.raises(RunError, match=f"{file.name} is missing"):
            files.verify(checkpoint)
        file.mkdir()
        with pytest.raises(RunError, match=f"{file.name} could not be read"):
            files.verify(checkpoint)
        file.rmdir()
        file.write_bytes(sound)
    with pytest.raises(RunError, match="missing"):
        files.verify(checkpoint.with_name("step-2"))


def test_a_disk_that_cannot_read_back_is_damage(checkpoint, monkeypatch):
    def broken(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(RunError, match="could not be read"):
        files.verify(checkpoint)


def test_files_of_another_directory_are_seen(checkpoint, tmp_path):
    files.commit(tmp_path / "step-2", {"weights": bytes(40), "state.json": b'{"a": [1, 3]}', "empty": b""}, {"step": 2})
    for name in ("weights", "state.json"):
        ours, theirs = checkpoint / name, tmp_path / "step-2" / name
        sound = ours.read_bytes()
        ours.write_bytes(theirs.read_bytes())
        with pytest.raises(RunError, match=f"{name} is damaged"):
            files.verify(checkpoint)
        ours.write_bytes(sound)


def test_damage_to_a_large_directory_is_seen(tmp_path):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    place = tmp_path / "step-1"
    files.commit(place, {"weights": draw.randbytes(400_000), "state": draw.randbytes(50_000)}, {})
    for _ in range(100):
        file = draw.choice(sorted(place.iterdir()))
        sound = file.read_bytes()
        start, length = draw.randrange(len(sound)), draw.choice([1, 1, 512, 4096])
        damaged = bytearray(sound)
        damaged[start : start + length] = bytes(byte ^ draw.randrange(1, 256) for byte in sound[start : start + length])
        file.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged"):
            files.verify(place)
        file.write_bytes(sound)


def forged(place: Path, content: Any) -> None:
    """A manifest with the right hash, by somebody who knows how it is made."""
    import hashlib

    text = json.dumps(content).encode()
    (place / files.MANIFEST).write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text + b"\n")


@pytest.mark.parametrize(
    "content",
    [
        [], 1, None, {}, {"schema": 1}, {"schema": 1, "files": []}, {"schema": 1, "files": {"a": 3}},
        {"schema": 1, "files": {"a": {}}}, {"schema": 1, "files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"schema": 1, "files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}},
    ],
)  # fmt: skip
def test_a_forged_manifest_is_refused(checkpoint, content):
    forged(checkpoint, content)
    with pytest.raises(RunError, match="no manifest"):
        files.verify(checkpoint)


def test_another_schema_is_named(checkpoint):
    forged(checkpoint, {"schema": 2, "parts": []})
    with pytest.raises(RunError, match="schema 2") as caught:
        files.verify(checkpoint)
    assert "the Lamina that wrote it" in str(caught.value)


# --- Folders, logs, sweeping -----------------------------------------------------------------------------------------


def test_append_adds_whole_lines(tmp_path):
    for line in ("one", "two\n", "drei ü\n\n"):
        files.append(tmp_path / "train.log", line)
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "one\ntwo\ndrei ü\n"


def test_sweep_takes_what_was_half_written_and_nothing_else(tmp_path):
    kept = [tmp_path / "run.json", tmp_path / "figures" / "curves.png", tmp_path / ".hidden", tmp_path / "a.tmp-1"]
    lost = [tmp_path / ".tmp-1-2-run.json", tmp_path / "figures" / ".tmp-7-8-curves.png"]
    for path in [*kept, *lost]:
        files.folder(path.parent)
        path.write_text("")
    (tmp_path / "checkpoints" / ".tmp-1-2-step-3").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".tmp-1-2-step-3" / "weights").write_text("")
    files.sweep(tmp_path)
    assert not left_over(tmp_path) and all(path.exists() for path in kept)
    files.sweep(tmp_path / "no such folder")


def test_folder_and_claim(tmp_path):
    assert files.folder(tmp_path / "a" / "b").is_dir() and files.folder(tmp_path / "a" / "b").is_dir()
    assert files.claim(tmp_path / "runs" / "x-1") is True
    assert files.claim(tmp_path / "runs" / "x-1") is False


# --- One process a run -----------------------------------------------------------------------------------------------

RACE = """
import sys, time
from pathlib import Path
from lamina import files
from lamina.errors import UsageError
folder, start = Path(sys.argv[1]), float(sys.argv[2])
held = []
while time.time() < start:
    pass
for k in range(40):
    if files.claim(folder / f"claimed-{k}"):
        print(f"claimed-{k}")
    try:
        held.append(files.Lock(folder / f"locked-{k}"))
        print(f"locked-{k}")
    except UsageError as error:
        assert "in use by" in str(error), error
print("done", flush=True)
sys.stdin.read()  # hold on to the locks until everybody has tried
"""

HOLDER = """
import os, sys, time
if sys.argv[2] == "late":  # a child that is slow to start, and holds the lock meanwhile: this runs before it is let go
    os.register_at_fork(after_in_child=lambda: time.sleep(1))
from lamina import files
lock = files.Lock(sys.argv[1])
child = os.fork() if sys.argv[2] != "alone" else 0
if sys.argv[2] != "alone" and not child:
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_exactly_one_wins(tmp_path):
    for k in range(40):
        (tmp_path / f"locked-{k}").mkdir()
    racers = [start(RACE, str(tmp_path), str(time.time() + 1.0)) for _ in range(3)]
    won = []
    for racer in racers:
        assert racer.stdout is not None
        for line in iter(racer.stdout.readline, ""):
            if line == "done\n":
                break
            won.append(line.strip())
    for racer in racers:
        racer.communicate("")
        assert racer.returncode == 0
    assert sorted(won) == sorted(f"{what}-{k}" for what in ("claimed", "locked") for k in range(40))


@posix
@pytest.mark.parametrize("how", ["alone", "fork", "late"])
def test_the_lock_of_a_killed_process_is_free(tmp_path, how):
    """Also where a child it forked, a loader's worker, lives on for a while."""
    holder = start(HOLDER, str(tmp_path), how)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UsageError, match=f"in use by process {holder.pid} on ") as caught:
            files.Lock(tmp_path)
        assert caught.value.exit_code == 2 and "one process a run" in str(caught.value)
        holder.kill()
        holder.wait()
        files.Lock(tmp_path).release()
    finally:
        holder.kill()
        if child:
            os.kill(child, 9)
        holder.communicate()


def test_a_lock_is_held_against_its_own_process_and_given_back(tmp_path):
    with files.Lock(tmp_path) as lock, pytest.raises(UsageError, match=f"process {os.getpid()}"):
        files.Lock(tmp_path)
    lock.release()  # twice does no harm
    with files.Lock(tmp_path):
        pass
    assert (tmp_path / "lock").read_text() == ""


@posix
def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(ResourceError, match="lock could not be locked: No locks available"):
        files.Lock(tmp_path)
