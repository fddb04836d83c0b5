"""Row 46: files of other people's models run nothing. What would run is named, and the file is not opened."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import zipfile

import hostile
import pytest
import torch
from torch import nn

from lamina import foreign, weights
from lamina.errors import RunError

KINDS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")


@pytest.fixture
def listener():
    """A port, and whether anybody came."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def came() -> bool:
            try:
                server.accept()
            except BlockingIOError:
                return False
            return True

        yield server.getsockname()[1], came


def sound(**more: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {**nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).state_dict(), **more}


@pytest.mark.fault(46)
@pytest.mark.timeout(1800)
def test_nothing_of_a_hostile_file_is_run(tmp_path, listener, counted, recorded):
    port, came = listener
    canary = tmp_path / "canary"
    watch = hostile.Watch()
    for k, (title, content) in enumerate(hostile.everything(str(canary), port)):
        if k % counted(47, 1):
            continue
        path = hostile.write(tmp_path / f"net{KINDS[k % len(KINDS)]}", content)
        watch(lambda path=path: weights.read_weights(path), title)
        assert not canary.exists() and not came(), title
        path.unlink()
    assert watch.crashes == [] and watch.taken == 0 and watch.megabytes() < 100
    recorded(files=watch.refused, executed=0, crashes=0, megabytes=watch.megabytes(), slowest_s=round(watch.slowest, 2))


@pytest.mark.parametrize("trick", ["reduce", "inst", "obj", "stack", "memo", "short", "state", "late", "put"])
def test_the_canary_sings(tmp_path, trick):
    canary = tmp_path / "canary"
    data = hostile.tricks("os", "system", (f"touch {canary}",))[trick]
    subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=data, check=False)
    assert canary.exists()


@pytest.mark.fault(46)
@pytest.mark.parametrize("trick", ["reduce", "inst", "obj", "newobj", "stack", "memo", "put", "short", "state", "late"])
@pytest.mark.parametrize("container", ["bare", "zip", "legacy", "packed zip", "two pickles", "jit"])
def test_what_would_run_is_named(tmp_path, trick, container):
    data = hostile.tricks("posix", "system", ("true",))[trick]
    path = hostile.write(tmp_path / "net.pth", hostile.containers(data)[container])
    with pytest.raises(RunError, match=r"it would use os\.system\. It was not opened\."):
        foreign.look(path)


def test_weights_alone_are_let_pass(tmp_path):
    for zipped in (True, False):
        torch.save({"model": sound(), "epoch": 3, "notes": ["a", 0.5, None, (1, True)]}, tmp_path / "net.pth",
                   _use_new_zipfile_serialization=zipped)  # fmt: skip
        found = foreign.read(tmp_path / "net.pth")
        assert found.under == ["model"] and found.beside == ["epoch", "notes"] and found.other == []
        assert all(torch.equal(value, found.tensors[name]) for name, value in sound().items())


# --- The process of its own, were the first door open and torch's reader broken ---------------------------------------

REAL = foreign.quarantine.__file__
BROKEN = """
import importlib.util, sys
import torch, pickle, socket, subprocess, ctypes, os
spec = importlib.util.spec_from_file_location("quarantine", {real!r})
quarantine = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quarantine)
shut = quarantine._shut
def broken(*arguments):
    shut(*arguments)
    torch.load = lambda file, **_: {code}
quarantine._shut = broken
try:
    quarantine.main(sys.argv[1], sys.argv[2], int(sys.argv[3]), {seconds})
except BaseException as error:
    print((str(error) or type(error).__name__).splitlines()[0], file=sys.stderr)
    os._exit(1)
os._exit(0)
"""


ASKED = {
    "pickle.load(open(file, 'rb'))": r"it asked for pickle\.find_class",
    "os.system('touch {canary}')": r"it asked for os\.system",
    "subprocess.run(['touch', '{canary}'])": r"it asked for subprocess\.Popen",
    "os.fork()": r"it asked for os\.fork",
    "open('{canary}', 'w')": r"it asked for open",
    "open('/etc/hostname').read()": r"it asked for open",
    "os.mkdir('{canary}')": r"it asked for os\.mkdir",
    "socket.socket()": r"it asked for socket",
    "ctypes.CDLL(None)": r"it asked for ctypes",
    "__import__('antigravity')": r"it asked for import",
    "exec('import this')": r"it asked for compile",
    "bytearray(10**12)": r"MemoryError",
    "[bytearray(10**6) for _ in range(10**4)]": r"MemoryError",
    "torch.zeros(10**11)": r"memory",
    "[0 for _ in iter(int, 1)]": r"MemoryError|ended with -",
    "sum(0 for _ in iter(int, 1))": r"ended with -\d+; its limit is .* and 30 s",
    "os.abort()": r"ended with -6",
    "sys.exit(0)": r"could not be read",
}


@pytest.mark.fault(46, 47)
@pytest.mark.timeout(600)
def test_the_process_is_shut(tmp_path, monkeypatch, counted, recorded):
    canary, wrapper, path = tmp_path / "canary", tmp_path / "wrapper.py", tmp_path / "net.pth"
    hostile.write(path, hostile.in_zip(hostile.tricks("os", "mkdir", (str(canary),))["reduce"]))
    hostile.write(tmp_path / "legacy", hostile.tricks("os", "mkdir", (str(canary),))["reduce"])
    monkeypatch.setattr(foreign, "look", lambda path: None)
    monkeypatch.setattr(foreign.quarantine, "__file__", str(wrapper))
    for code, words in list(ASKED.items())[:: counted(6, 1)]:
        code = code.replace("{canary}", str(canary))
        wrapper.write_text(BROKEN.format(real=REAL, code=code, seconds=1))
        with pytest.raises(RunError, match=words):
            foreign.read(tmp_path / "legacy" if code.startswith("pickle") else path)
        assert not canary.exists(), code
    recorded(attempts=len(ASKED), executed=0)


def test_the_process_lets_a_reader_read(tmp_path, monkeypatch):
    wrapper, path = tmp_path / "wrapper.py", tmp_path / "net.pth"
    torch.save(sound(), path)
    code = "dict(a=torch.ones(len(open(file, 'rb').read(7))))"
    wrapper.write_text(BROKEN.format(real=REAL, code=code, seconds=9))
    monkeypatch.setattr(foreign.quarantine, "__file__", str(wrapper))
    assert torch.equal(foreign.read(path).tensors["a"], torch.ones(7))


# --- Much out of little -----------------------------------------------------------------------------------------------


def rebuilt(numel: str, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A state dict with one tensor of a storage of so many floats."""
    storage = b"(" + hostile.text("storage") + b"ctorch\nFloatStorage\n" + hostile.text("0") + hostile.text("cpu")
    parts = storage + numel.encode("latin1") + b"tQK\x00" + hostile.value(size, 2) + hostile.value(stride, 2) + b"\x89"
    return (
        b"\x80\x02}"
        + hostile.text("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + parts
        + b"ccollections\nOrderedDict\n)RtRs."
    )


def call(name: str, *arguments: object) -> bytes:
    return b"\x80\x02}" + hostile.text("w") + f"c{name}\n".encode() + hostile.value(arguments, 2) + b"Rs."


BOMBS = {
    "expanded": rebuilt("K\x10", (1 << 40,), (0,)),
    "beyond": rebuilt("K\x10", (1 << 20,), (1,)),
    "negative": rebuilt("K\x10", (-1,), (1,)),
    "overflow": rebuilt("K\x10", (1 << 62, 1 << 62), (1, 1)),
    "storage": rebuilt("\x8a\x08" + "\xff" * 7 + "\x0f", (4,), (1,)),
    "bytearray": call("builtins\nbytearray", 10**12),
    "complex": call("builtins\ncomplex", "1" * 100_000),
    "codec": call("_codecs\nencode", "a" * 1000, "zip"),
    "codec import": call("_codecs\nencode", "a", "idna"),
    "tensor": call("torch\nTensor", 1 << 40),
    "float tensor": call("torch\nFloatTensor", 1 << 40),
    "untyped": call("torch\nUntypedStorage", 1 << 40),
    "size": call("torch\nSize", [1] * 1000),
    "meta": call("torch._utils\n_rebuild_meta_tensor_no_storage", 0, (1 << 40,), (1,), False),
    "device": call("torch\ndevice", "cuda:99"),
    "set": call("builtins\nset", "a"),
    "laughs": b"\x80\x02}" + hostile.text("w") + b"]q\x00" + b"".join(b"]q" + bytes([k]) + b"(" + b"h" + bytes([k - 1])
              + b"h" + bytes([k - 1]) + b"e" for k in range(1, 200)) + b"s.",
    "itself": b"\x80\x02}q\x00" + hostile.text("state_dict") + b"h\x00s.",
    "names": b"\x80\x02}(" + b"".join(hostile.text(f"{k}") + b"N" for k in range(100_000)) + b"u.",
    "long name": b"\x80\x02}" + hostile.text("a\x1b[31m" * 1_000_000) + b"Ns.",
    "tuple deep": b"\x80\x02N" + b"\x85" * 1_000_000 + b".",
    "state_dict deep": b"\x80\x02" + (b"}" + hostile.text("model")) * 50_000 + b"}" + b"s" * 50_000 + b".",
    "popped": b"\x80\x020000000.",
    "mark": b"\x80\x02" + b"(" * 1_000_000 + b".",
    "unhashable": b"\x80\x02}]Ns.",
    "empty": b"\x80\x02.",
    "large": b"\x80\x02" + b"N0" * 5_000_000 + b"N.",
}  # fmt: skip


@pytest.mark.fault(46, 47)
@pytest.mark.timeout(1800)
def test_much_out_of_little_is_refused(tmp_path, counted, recorded):
    path = tmp_path / "net.pth"
    torch.save(sound(), path)
    weights.read_weights(path)
    watch, before = hostile.Watch(), hostile.peak_of_children()
    for k, (title, data) in enumerate(BOMBS.items()):
        for container in ("zip", "legacy"):
            if k % counted(13, 1) or (container == "legacy" and not counted(0, 1)):
                continue
            hostile.write(path, hostile.containers(data)[container])
            error = watch(lambda: weights.read_weights(path), f"{title} in {container}")
            assert error is None or len(str(error)) < 2000
    more = hostile.peak_of_children() - before
    assert watch.crashes == [] and watch.taken == 0 and watch.megabytes() < 100 and more < 100
    recorded(bombs=watch.refused, crashes=0, megabytes=max(watch.megabytes(), round(more, 1)))


@pytest.mark.fault(46, 5)
@pytest.mark.timeout(1800)
def test_every_cut_is_refused(tmp_path, counted, recorded):
    watch, path = hostile.Watch(), tmp_path / "net.pth"
    for zipped in (True, False):
        torch.save({"a": torch.arange(3.0)}, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for length in range(0, len(whole), counted(197, 1)):
            if (
                zipped or length < len(whole) - 12 or length % 4 == 0
            ):  # of the last: its storage, which goes to the process
                hostile.write(path, whole[:length])
                watch(lambda: weights.read_weights(path), f"{length} bytes")
    assert watch.crashes == [] and watch.taken == 0
    recorded(cuts=watch.refused, silent=0, crashes=0)


@pytest.mark.fault(46, 47)
@pytest.mark.timeout(900)
def test_changed_files_are_refused_in_words(tmp_path, listener, counted, recorded):
    _, came = listener
    canary, path, seeds = tmp_path / "canary", tmp_path / "net.pth", []
    for zipped in (True, False):
        torch.save({"model": sound(), "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
        seeds.append(path.read_bytes())
    inner = [
        zipfile.ZipFile(io.BytesIO(seeds[0])).read("net/data.pkl"),
        *hostile.tricks("os", "system", (f"touch {canary}",)).values(),
        *BOMBS.values(),
    ]
    inner = [part for part in inner if len(part) < 20_000]
    watch, opened, apart = hostile.Watch(), 0, counted(1, 20)
    for draw in hostile.until(counted(1, 240), seed=46):
        within = draw.random() < 0.7
        content = hostile.in_zip(hostile.mutated(draw, inner)) if within else hostile.mutated(draw, seeds)
        if draw.random() < 0.2:
            content = hostile.MAGIC + hostile.mutated(draw, inner)
        hostile.write(path, content)
        if watch(lambda: foreign.look(path), "look") is None and opened < apart:
            opened += 1
            watch(lambda: weights.read_weights(path), "read")
    assert watch.crashes == [] and watch.megabytes() < 100 and not canary.exists() and not came()
    recorded(files=watch.refused + watch.taken - opened, opened_apart=opened, executed=0, crashes=0,
             megabytes=watch.megabytes(), slowest_s=round(watch.slowest, 2))  # fmt: skip
