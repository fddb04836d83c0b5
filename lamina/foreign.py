"""Weights that somebody else wrote: looked at first, then opened in a process of their own.

In: a file of `torch.save` (`.pth`, `.pt`, `.ckpt`, `.bin`) or of safetensors. Out: its tensors, and what else was in it; or
RunError, with the names of what the file would have run. A file of `torch.save` goes through three doors: it is read as
text, and what it would call is named (`look`); a separate process with limits opens it, with torch's reader of weights
alone (`quarantine`); and what comes here are the safetensors that it wrote. Nothing is ever unpickled in this process.
Called by `weights`.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import subprocess
import sys
import tempfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lamina import documents, quarantine
from lamina.archives import open_zip
from lamina.errors import ResourceError, RunError

if TYPE_CHECKING:
    from torch import Tensor

MOST_PICKLE = 8 << 20  # bytes: the part that says what the tensors are; large nets have one or two million
MOST_OPCODES = 1_000_000  # of it: a tensor takes some 40
MOST_RECORDS = 100_000  # tensors in a file
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin, after the protocol
_EXPECTED = "a state dict: torch.save(net.state_dict(), path)"
_FIX = "a whole pickled net cannot be opened safely: save its state_dict() where you trust the file"

# What torch's reader of weights knows. All else can be refused before it is opened.
_OPCODES = (
    "GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT BINUNICODE "
    "SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1 PROTO STOP"
)  # fmt: skip
_READ = frozenset(_OPCODES.split())


@dataclass
class Found:
    """What was in a file."""

    tensors: dict[str, Tensor]
    under: list[str]  # the names the state dict stood under: ["state_dict"]
    beside: list[str]  # what stood beside it: "epoch", "optimizer"
    other: list[str]  # what in it was no tensor


def read(path: Path) -> Found:
    """The tensors of a file of `torch.save`."""
    look(path)
    with tempfile.TemporaryDirectory(prefix="lamina-") as folder:
        out = Path(folder) / "out.safetensors"
        _open_apart(path, out)
        tensors, about = _safetensors(out, path)
    return Found(tensors, **json.loads(about["lamina"]))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    return _safetensors(path, path)[0]


def _safetensors(path: Path, title: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata). The library checks sizes, shapes and offsets against the file; what it lets pass comes first."""
    from safetensors import safe_open

    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length <= min(documents.MOST_BYTES, path.stat().st_size):  # if not, the library says so
                documents.parse(file.read(length), f"the header of {title}")  # a name that stands twice
            elif length < path.stat().st_size:
                raise RunError(
                    f"{title} has a header of {length:,} bytes.", expected=f"{documents.MOST_BYTES:,} at most"
                )
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name).clone() for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (MemoryError, RuntimeError) as error:  # torch's word for too little memory
        raise ResourceError(f"{title} could not be read: {str(error).splitlines()[0]}") from error
    except RunError:
        raise
    except Exception as error:  # SafetensorError, and whatever foreign bytes do to torch
        raise RunError(f"{title} is not a sound safetensors file: {error}") from error


def _open_apart(path: Path, out: Path) -> None:
    size = path.stat().st_size
    memory, seconds = (96 << 20) + 8 * size, 30 + size // (20 << 20)
    words = out.with_name("words")
    command = [sys.executable, "-I", quarantine.__file__, str(path.absolute()), str(out), str(memory), str(seconds)]
    environment = {"OMP_NUM_THREADS": "1", **{k: v for k, v in os.environ.items() if k == "SYSTEMROOT"}}
    with open(words, "wb") as errors:
        try:
            ended = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment,
                cwd=out.parent, timeout=seconds + 60, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            ended = None
    if ended == 0:
        return
    with open(words, "rb") as file:
        said = file.read(2000).decode("utf-8", "replace").strip()
    limit = f"its limit is {memory:,} bytes and {seconds} s for a file of {size:,} bytes"
    if ended == 1 and said:
        why = said.splitlines()[-1]
    else:
        why = f"the process that read it {'took too long' if ended is None else f'ended with {ended}'}; {limit}"
    if "No space left" in why:
        raise ResourceError(f"{path} could not be converted: {why}", fix=f"free some space in {out.parent.parent}")
    raise RunError(f"{path} could not be read as weights: {why}", expected=_EXPECTED, fix=_FIX)


def look(path: Path) -> None:
    """Read a file of `torch.save` as text, without opening it. RunError where it would call what no weights need, and
    names it; where its parts do not add up; where it is something else."""
    with open(path, "rb") as file:
        begin = file.read(4)
    named: list[str] = []
    why = ""
    try:
        if begin == b"PK\x03\x04":
            why = _look_at_zip(path, named)
        else:
            with open(path, "rb") as file:
                head = io.BytesIO(file.read(MOST_PICKLE))
            begin = head.read(2 + len(_LEGACY))
            head.seek(0)
            for _ in range(5 if begin[2:] == _LEGACY else 1):  # magic number, version, machine, object, its storages
                why = why or _scan(head, named)
            if begin[:1] != b"\x80" or begin[2:] != _LEGACY:
                why = "it is no file that torch.save wrote"
    except Exception as error:  # whatever a foreign file does to the reader, it is unreadable
        why = why or str(error).strip() or type(error).__name__
    if named:
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        raise RunError(
            f"{path} could not be read as weights: opened by pickle it would use {', '.join(named[:5])}{more}. It was not "
            "opened.",
            expected=_EXPECTED,
            fix=_FIX,
        )
    if why:
        raise RunError(
            f"{path} could not be read as weights: {why[:500].splitlines()[0]}", expected=_EXPECTED, fix=_FIX
        )


def _look_at_zip(path: Path, named: list[str]) -> str:
    with open_zip(path, MOST_RECORDS) as zipped:
        entries = zipped.infolist()
        packed = next((entry.filename for entry in entries if entry.compress_type), None)
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        for entry in pickles:
            if entry.file_size > MOST_PICKLE:
                return f"{entry.filename} has {entry.file_size:,} bytes, and no more than {MOST_PICKLE:,} are read"
            with zipped.open(entry) as file:
                _scan(file, named)
        names = [entry.filename for entry in entries]
        if any(name.partition("/")[2].startswith("code/") or name.endswith("/constants.pkl") for name in names):
            return "it is a TorchScript archive, which holds code"
        if len(pickles) != 1 or pickles[0].filename.partition("/")[2] != "data.pkl":
            return "it is a zip file, but none that torch.save wrote"
        if packed is not None:
            return f"{packed} is compressed, which torch.save does not do"
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            return "its parts are larger than the whole"
        damaged = zipped.testzip()
        return f"{damaged} is damaged: its checksum is another" if damaged is not None else ""


def _scan(file: IO[bytes], named: list[str]) -> str:
    """Adds to `named` what one pickle would import; gives what else keeps it from being read, or ""."""
    from torch._weights_only_unpickler import _get_allowed_globals

    known, why = _get_allowed_globals(), ""
    for name, opcode in _globals(file):
        if name is not None and name not in known and name not in named:
            named.append(name)
        elif opcode not in _READ and not why:
            why = f"it has the pickle opcode {opcode}, which no weights need"
    return why


def _globals(file: IO[bytes]) -> Iterator[tuple[str | None, str]]:
    """(what would be imported there or None, the opcode) for each opcode of a pickle."""
    words: list[Any] = []  # the last texts, which STACK_GLOBAL takes from the stack
    memo: dict[Any, Any] = {}
    last: Any = None
    for count, (code, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_OPCODES:
            raise ValueError(f"it has more than {MOST_OPCODES:,} pickle opcodes, and a tensor takes some 40")
        name = None
        if code.name in ("GLOBAL", "INST"):
            name = _title(*str(argument).split(" ", 1))
        elif code.name == "STACK_GLOBAL":
            name = _title(*(["?", "?", *words][-2:]))
        elif code.name in ("EXT1", "EXT2", "EXT4"):
            name = f"extension {argument} of the copyreg module"
        elif "UNICODE" in code.name or "STRING" in code.name:
            last = argument
            words = [*words[-1:], argument]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = last
        elif code.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = last
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            last = memo.get(argument)
            words = [*words[-1:], last]
        yield name, code.name


def _title(module: Any, name: Any = "?") -> str:
    """A name as Python 3 on any machine would write it: os.system, not posix.system."""
    module, name = str(module)[:100], str(name)[:100]
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{'os' if module in ('posix', 'nt') else module}.{name}"
