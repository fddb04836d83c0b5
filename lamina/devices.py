"""Where the arithmetic runs, and in which precision.

In: a device by name ("auto", "cpu", "cuda", "cuda:1", "mps") and a precision ("fp32", "bf16", "fp16"). Out: the
`torch.device`, the autocast context and the gradient scaler that the loop wraps a step in, the line for the opening
block, and the fingerprint by which a resumed run tells whether it will get the same bits.
"""

from __future__ import annotations

import contextlib
import platform
from typing import Any

import torch

from lamina.errors import ResourceError, UsageError, near

_KINDS = ("cpu", "cuda", "mps")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick(name: str = "auto") -> torch.device:
    """The device of that name. "auto" is cuda where there is one, else mps, else cpu; "cuda" is the current GPU, by its
    number. Raises UsageError for a name that is none, ResourceError for a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in _KINDS:
        raise UsageError(f"there is no device {name!r}", expected=f"auto, {', '.join(_KINDS)}, or cuda:1")
    if index and not (kind == "cuda" and index.isdecimal()):
        raise UsageError(f"there is no device {name!r}", expected="a GPU by number: cuda:0, cuda:1")
    if kind == "cuda":
        return _cuda(int(index) if index else None)
    if kind == "mps" and not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        why = "this Mac has no Metal GPU, or macOS is too old" if built else "this torch was built without it"
        raise ResourceError(f"the device 'mps' is not available: {why}", expected="a Mac with Apple silicon", fix=_CPU)
    return torch.device(kind)


def seed(number: int) -> None:
    """Seed every device's generator, as `torch.manual_seed` does; that one also imports the compiler, for 0.8 s."""
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def precisions(device: torch.device) -> list[str]:
    """The precisions to choose from on this device; bf16 on a GPU only where its hardware has it."""
    if device.type == "cpu":
        return ["fp32", "bf16", "fp16"]
    if device.type == "cuda":
        with torch.cuda.device(device):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ["fp32", *(["bf16"] if bf16 else []), "fp16"]
    if device.type == "mps":
        return ["fp32", *(["bf16"] if torch.backends.mps.is_macos_or_newer(14, 0) else []), "fp16"]
    return ["fp32"]


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """The context for forward and loss: torch.autocast for bf16 and fp16 (weights stay float32), nothing for fp32. One
    object serves all steps. Raises UsageError for a precision that is unknown or that the device lacks."""
    if precision not in _DTYPES:
        raise UsageError(f"there is no precision {precision!r}", expected=near(precision, _DTYPES))
    if precision not in precisions(device):
        raise UsageError(
            f"the precision {precision!r} is not available on {describe(device)}",
            expected=f"on this device: {', '.join(precisions(device))}",
        )
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def scaler(device: torch.device, precision: str) -> torch.amp.GradScaler | None:
    """For fp16, in which small gradients round to 0: a GradScaler, to scale the loss and skip steps that overflow. None
    for fp32 and bf16, which have the range."""
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def describe(device: torch.device) -> str:
    """For people: "cpu, 2 threads", "cuda:0, NVIDIA H200, 139 GiB"."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu, {threads} thread{'s' if threads != 1 else ''}"
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return f"{device}, {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    return str(device)


def fingerprint(
    device: torch.device, precision: str = "fp32", *, compiled: bool = False, processes: int = 1
) -> dict[str, Any]:
    """What the last bits of a result depend on beside seed and code, as JSON values.

    Sums are split by threads, vector width and GPU, and versions of torch order them differently.
    """
    prints: dict[str, Any] = {
        "torch": torch.__version__,
        "device": device.type,
        "precision": precision,
        "compiled": compiled,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.type == "cuda":
        prints["gpu"] = torch.cuda.get_device_name(device)
        prints["cuda"] = torch.version.cuda or torch.version.hip
        prints["cudnn"] = torch.backends.cudnn.version()
        prints["cudnn_deterministic"] = torch.backends.cudnn.deterministic
        prints["cudnn_benchmark"] = torch.backends.cudnn.benchmark
        prints["cudnn_tf32"] = torch.backends.cudnn.allow_tf32
    return prints


_CPU = "use 'auto' or 'cpu'"


def _cuda(index: int | None) -> torch.device:
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "no GPU is visible, or its driver is missing or too old" if built else "this torch was built without it"
        raise ResourceError(f"the device 'cuda' is not available: {why}", expected="a GPU that torch can use", fix=_CPU)
    count = torch.cuda.device_count()
    index = torch.cuda.current_device() if index is None else index
    if index >= count:
        here = ", ".join(f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(count))
        raise ResourceError(f"there is no GPU number {index}", expected=here)
    return torch.device("cuda", index)


def _cpu_name() -> str:
    """The processor's name: /proc/cpuinfo where there is one, since platform.processor() is empty on most Linux."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0] if names else platform.processor() or platform.machine()
