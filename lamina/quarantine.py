"""The process in which a file of somebody else's is opened: it reads tensors, writes them as safetensors, and ends.

    python -I lamina/quarantine.py FILE OUT BYTES SECONDS

In: a file of `torch.save`, read with `weights_only=True`. Out: OUT, with the tensors of its state dict and, as metadata,
where they stood and what was left behind; or one line on stderr and exit code 1. Once the libraries are loaded the process
may take BYTES more of memory and SECONDS of processor time, may write no larger files, start no process, and is asked
by Python before it opens, imports or calls anything: all but reading FILE is refused. Called by `foreign` alone.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
import warnings
from typing import Any

NESTS = ("state_dict", "model_state_dict", "model", "net", "module")  # where checkpoints keep a state dict
_HARMLESS = ("object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe")


def _shut(file: str, memory: int, seconds: int) -> None:
    """From here on nothing but reading the file."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is what is left
        resource = None  # type: ignore[assignment]
    if resource is not None:
        with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else open(os.devnull) as statm:
            pages = int((statm.read().split() or ["0"])[0])
        limits = {
            "RLIMIT_CPU": math.ceil(time.process_time()) + seconds,
            "RLIMIT_FSIZE": memory,
            "RLIMIT_CORE": 0,
            "RLIMIT_NPROC": 0,
        }
        if pages:
            limits["RLIMIT_AS"] = pages * resource.getpagesize() + memory
        for name, most in limits.items():
            resource.setrlimit(getattr(resource, name), (most, most))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        reads = event == "open" and arguments[0] == file and arguments[1] in ("r", "rb")
        if not reads and event not in _HARMLESS:
            raise RuntimeError(f"it asked for {event} {arguments!r:.100}")

    sys.addaudithook(watch)


def _state_dict(found: Any) -> tuple[dict[Any, Any], list[str], list[str]]:
    """(the state dict, the names it stood under, what stood beside it)."""
    under: list[str] = []
    beside: list[str] = []
    while isinstance(found, dict):
        key = next((key for key in NESTS if isinstance(found.get(key), dict)), None)
        if key is None or len(under) > 3:
            return found, under, beside
        beside += [_word(name) for name in found if name != key]
        under.append(key)
        found = found[key]
    return {}, under, beside


def _word(name: Any) -> str:
    return name[:200] if isinstance(name, str) else f"a key of the type {type(name).__name__}"


def main(file: str, out: str, memory: int, seconds: int) -> None:
    warnings.simplefilter("ignore")
    import torch
    from safetensors.torch import save, save_file

    torch.set_num_threads(1)
    for zipped in (True, False):  # all that is imported late is imported now
        torch.save({"a": torch.zeros(1)}, small := io.BytesIO(), _use_new_zipfile_serialization=zipped)
        save(torch.load(io.BytesIO(small.getvalue()), weights_only=True))
    size = os.path.getsize(file)
    _shut(file, memory, seconds)
    weights, under, beside = _state_dict(torch.load(file, map_location="cpu", weights_only=True))
    tensors: dict[str, torch.Tensor] = {}
    other: list[str] = []
    total = 0
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            other.append(_word(name))
            continue
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"{_word(name)} is no dense tensor of ordinary numbers")
        total += value.numel() * value.element_size()
        if total > 4 * size + (1 << 20):  # a few numbers that are said to be many; tied weights count again
            raise ValueError(f"{size:,} bytes are said to hold {total:,} bytes of tensors")
        tensors[name] = value.detach().contiguous().clone()
    about = {"under": under, "beside": beside[:1000], "other": other[:1000]}
    save_file(tensors, out, metadata={"lamina": json.dumps(about)})


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        code = 0
    except BaseException as error:  # whatever the file does: one line
        print((str(error).strip() or type(error).__name__).splitlines()[0][:500], file=sys.stderr, flush=True)
        code = 1
    os._exit(code)  # without the end of the interpreter, which would ask for more
