"""Hostile files of our own making: pickles that would run something, in every container that a model file may be."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import random
import re
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError

MAGIC = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00."  # magic, version, machine of old torch
)


def actions(canary: str, port: int) -> list[tuple[str, str, tuple[Any, ...]]]:
    """(module, name, arguments) of what would leave a canary or call out, by every way to code that we know of."""
    touch, code = f"touch {canary}", f"open({canary!r}, 'w').close()"
    inner = pickle.dumps(0)[:2] + b"cos\nsystem\n(U" + bytes([len(touch)]) + touch.encode() + b"tR."
    return [
        ("os", "system", (touch,)), ("posix", "system", (touch,)), ("nt", "system", (touch,)),
        ("os", "popen", (touch,)),
        ("os", "mkdir", (canary,)), ("os", "execv", ("/bin/touch", ["touch", canary])), ("os", "putenv", ("A", "b")),
        ("os", "spawnlp", (0, "touch", "touch", canary)), ("os", "posix_spawn", ("/bin/touch", ["touch", canary], {})),
        ("posixpath", "os.system", (touch,)), ("subprocess", "Popen", (["touch", canary],)),
        ("subprocess", "call", (["touch", canary],)), ("subprocess", "run", (["touch", canary],)),
        ("subprocess", "check_output", (["touch", canary],)), ("subprocess", "getoutput", (touch,)),
        ("commands", "getoutput", (touch,)), ("multiprocessing.util", "spawnv_passfds", (b"/bin/touch", [b"t"], [])),
        ("builtins", "eval", (code,)), ("builtins", "exec", (code,)), ("__builtin__", "eval", (code,)),
        ("__builtin__", "execfile", (canary,)), ("builtins", "__import__", ("antigravity",)),
        ("builtins", "open", (canary, "w")),
        ("builtins", "getattr", (io.BytesIO, "write")), ("builtins", "compile", (code, "a", "exec")),
        ("builtins", "breakpoint", ()), ("io", "open", (canary, "w")), ("_io", "FileIO", (canary, "w")),
        ("pathlib", "Path.touch", (canary,)), ("runpy", "run_path", (canary,)), ("runpy", "_run_code", (code, {})),
        ("runpy", "run_module", ("antigravity",)), ("pty", "spawn", (["touch", canary],)),
        ("importlib", "import_module", ("this",)),
        ("code", "interact", ()), ("code", "InteractiveInterpreter.runcode", (code,)), ("timeit", "timeit", (code,)),
        ("timeit", "main", ([code],)), ("pdb", "run", (code,)), ("bdb", "Bdb.run", (code,)),
        ("cProfile", "run", (code,)),
        ("profile", "run", (code,)), ("trace", "Trace.run", (code,)), ("doctest", "debug_script", (code,)),
        ("webbrowser", "open", (f"http://127.0.0.1:{port}/",)),
        ("urllib.request", "urlopen", (f"http://127.0.0.1:{port}/",)),
        ("socket", "create_connection", (("127.0.0.1", port),)), ("socket", "socket.connect", (("127.0.0.1", port),)),
        ("http.client", "HTTPConnection", ("127.0.0.1", port)), ("ftplib", "FTP", ("127.0.0.1",)),
        ("pickle", "loads", (inner,)), ("_pickle", "loads", (inner,)), ("marshal", "loads", (b"c",)),
        ("dill", "loads", (inner,)),
        ("joblib", "load", (canary,)), ("shelve", "open", (canary,)), ("dbm.dumb", "open", (canary, "c")),
        ("sqlite3", "connect", (canary,)), ("logging", "FileHandler", (canary,)),
        ("shutil", "copyfile", ("/etc/hostname", canary)),
        ("tempfile", "mkdtemp", ("x", canary, "/tmp")), ("zipimport", "zipimporter", (canary,)),
        ("site", "addsitedir", ("/tmp",)),
        ("types", "FunctionType", (canary,)), ("types", "CodeType", ()), ("functools", "partial", (print, canary)),
        ("functools", "reduce", (print, [canary])), ("operator", "attrgetter", ("system",)),
        ("operator", "methodcaller", ("a",)),
        ("builtins", "map", (print, [1])), ("ctypes", "CDLL", ("libc.so.6",)), ("_ctypes", "dlopen", ("libc.so.6",)),
        ("cffi", "FFI", ()), ("torch", "load", (canary,)), ("torch.serialization", "load", (canary,)),
        ("torch.hub", "load", ("a/b", "c")),
        ("torch.jit", "load", (canary,)), ("torch.utils.cpp_extension", "load", ("a", canary)),
        ("torch.ops", "load_library", (canary,)),
        ("torch._utils", "_import_dotted_name", ("os.system",)), ("torch.storage", "_load_from_bytes", (inner,)),
        ("torch.serialization", "add_safe_globals", ([eval],)),
        ("torch._weights_only_unpickler", "_add_safe_globals", ([eval],)),
        ("torch.nn.modules.container", "Sequential", ()), ("torch.fx.graph_module", "reduce_graph_module", ({}, "")),
        ("torch.package.package_importer", "PackageImporter", (canary,)), ("numpy", "load", (canary,)),
        ("numpy.core.multiarray", "_reconstruct", (list, (0,), b"b")),
        ("numpy.testing._private.utils", "runstring", (code, {})),
        ("numpy", "fromfile", ("/etc/hostname",)), ("pip._internal", "main", (["download", "x"],)),
        ("pip", "main", (["list"],)),
        ("ensurepip", "_run_pip", ([],)), ("distutils.spawn", "spawn", (["touch", canary],)),
        ("venv", "create", (canary,)),
        ("asyncio", "run", (None,)), ("smtplib", "SMTP", ("127.0.0.1", port)), ("signal", "alarm", (1,)),
        ("sys", "exit", (3,)),
        ("os", "_exit", (0,)), ("os", "abort", ()), ("os", "kill", (0, 9)), ("faulthandler", "_sigsegv", ()),
        ("gc", "get_objects", ()),
    ]  # fmt: skip


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def value(argument: Any, protocol: int) -> bytes:
    """What leaves an argument on the stack: a pickle without its beginning and its end."""
    try:
        found = pickle.dumps(argument, min(protocol, 3))
    except Exception:
        found = pickle.dumps(repr(argument), min(protocol, 3))
    return found[2 if found[:1] == b"\x80" else 0 : -1]


def tricks(module: str, name: str, arguments: tuple[Any, ...]) -> dict[str, bytes]:
    """Ways in which a pickle may say module.name(*arguments)."""
    given, line = value(arguments, 2), f"c{module}\n{name}\n".encode()
    parts = b"".join(value(part, 2) for part in arguments)
    stacked = text(module) + text(name) + b"\x93"
    out = {
        "reduce": b"\x80\x02" + line + given + b"R.",
        "no protocol": line + given + b"R.",
        "inst": b"(" + parts + f"i{module}\n{name}\n".encode() + b".",
        "obj": b"(" + line + parts + b"o.",
        "newobj": b"\x80\x02" + line + given + b"\x81.",
        "newobj_ex": b"\x80\x04" + line + given + b"}\x92.",
        "stack": b"\x80\x04" + stacked + given + b"R.",
        "memo": b"\x80\x04" + text(module) + b"\x94" + text(name) + b"\x94" + b"00h\x00h\x01\x93" + given + b"R.",
        "put": b"\x80\x02" + line + b"q\x05" + b"0h\x05" + given + b"R.",
        "short": b"\x80\x04" + short(module) + short(name) + b"\x93" + given + b"R.",
        "build": b"\x80\x02ccollections\nOrderedDict\n)R}(" + text("__setstate__") + line + text("a") + given + b"ubN.",
        "state": b"\x80\x02}" + text("weight") + line + given + b"Rs.",
        "key": b"\x80\x02}" + line + given + b"RK\x01s.",
        "deep": b"\x80\x02" + b"]" * 900 + line + given + b"R" + b"a" * 900 + b".",
        "late": b"\x80\x02" + b"N0" * 40_000 + line + given + b"R.",
        "framed": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + stacked + given + b"R.",
        "future": b"\x80\xff" + line + given + b"R.",
        "second": b"\x80\x02N." + b"\x80\x02" + line + given + b"R.",
        "persistent": b"\x80\x02(" + text("storage") + line + given + b"R" + text("0") + text("cpu") + b"K\x01tQ.",
        "name": b"P" + f"{module}.{name}".encode() + b"\n.",
        "reduced state": b"\x80\x02ctorch._utils\n_rebuild_parameter_with_state\n(" + line + given + b"R\x89}}tR.",
        "subclass": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(" + line + line + given + b"}tR.",
    }  # fmt: skip
    return out


def in_zip(data: bytes, packed: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as file:
        for name, content in {
            "data.pkl": data,
            "version": b"3\n",
            "byteorder": b"little",
            "data/0": bytes(64),
            **more,
        }.items():
            file.writestr(f"archive/{name}", content)
    return out.getvalue()


def containers(data: bytes) -> dict[str, bytes]:
    """A pickle in what a model file may be."""
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as file:
        file.writestr("archive/inner.zip", in_zip(data))
    array = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n"
    return {
        "bare": data,
        "zip": in_zip(data),
        "legacy": MAGIC + data,
        "packed zip": in_zip(data, zipfile.ZIP_DEFLATED),
        "nested zip": nested.getvalue(),
        "two pickles": in_zip(b"\x80\x02}.", **{"data/data.pkl": data}),
        "jit": in_zip(data, **{"constants.pkl": b"\x80\x02).", "code/__torch__.py": b"pass"}),
        "pickle, then zip": data + in_zip(b"\x80\x02}."),
        "zip, then pickle": in_zip(b"\x80\x02}.") + data,
        "joblib": data[:-1] + b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81" + bytes(64) + b".",
        "npy": array + data,
        "gz": gzip.compress(data),
    }


def everything(canary: str, port: int) -> Iterator[tuple[str, bytes]]:
    """(what it is, the file): each action with each trick, the containers in turn; and each container with each trick."""
    for k, (module, name, arguments) in enumerate(actions(canary, port)):
        for j, (trick, data) in enumerate(tricks(module, name, arguments).items()):
            found = list(containers(data).items())
            title, content = found[(k + j) % len(found)]
            yield f"{module}.{name} by {trick} in {title}", content
    for trick, data in tricks("os", "system", (f"touch {canary}",)).items():
        for title, content in containers(data).items():
            yield f"os.system by {trick} in {title}", content


class Watch:
    """How a function does with many files: what it takes, what it refuses, what it crashes on, and what that costs."""

    def __init__(self) -> None:
        self.taken = self.refused = 0
        self.crashes: list[str] = []
        self.slowest = 0.0  # seconds of the processor
        self._most = 0.0

    def __call__(self, act: Callable[[], Any], title: str) -> LaminaError | None:
        began, before = time.process_time(), memory("VmRSS")
        forget_peak()
        try:
            act()
            self.taken += 1
        except LaminaError as error:
            self.refused += 1
            return error
        except Exception as error:
            self.crashes.append(f"{title}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            self.slowest = max(self.slowest, time.process_time() - began)
            self._most = max(self._most, memory("VmHWM") - before)
        return None

    def megabytes(self) -> float:
        """The most memory that one file took, above what the process had before."""
        return round(self._most, 1)


def memory(name: str) -> float:
    """VmRSS, the memory of this process, or VmHWM, the most it had: in MB. 0 where the system does not tell."""
    try:
        return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3  # type: ignore[index]
    except OSError:
        return 0.0


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_of_children() -> float:
    """The most memory that a process started here ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    """One of some files with a few changes: bytes, cuts, repeats, parts of another."""
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1 if data:
                data[at % len(data)] = draw.choice(b'\x00\x01\x7f\x80\xff\x2e\x52\x63(0[{"9')
            case 2:
                data[at:at] = draw.randbytes(draw.randrange(1, 9))
            case 3:
                del data[at : at + draw.choice([1, 2, 8, 64])]
            case 4:
                data[at : at + 8] = struct.pack(
                    "<Q", draw.choice([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
                )
            case 5:
                data[at:at] = data[at : at + draw.randrange(1, 64)] * draw.choice([1, 2, 50])
            case 6:
                other = draw.choice(seeds)
                start = draw.randrange(len(other) + 1)
                data[at:] = other[start:]
    return bytes(data)


def until(seconds: float, seed: int) -> Iterator[random.Random]:
    """Generators of random numbers, one after the other, for so long."""
    end, k = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        yield random.Random(f"{seed}-{k}")
        k += 1


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
