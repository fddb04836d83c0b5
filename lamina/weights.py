"""Weights in files that anybody can read: PyTorch's own format, and safetensors.

In: a net and a path. Out: its state dict in a file (`.pth`, `.pt`: PyTorch's format; `.safetensors`), or the net with the
weights of such a file. What others wrote is read by `foreign`: nothing in a file is ever executed.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from lamina import files, foreign
from lamina.errors import RunError, UsageError, near

FORMATS = (".safetensors", ".pth", ".pt")
READ = (*FORMATS, ".ckpt", ".bin")  # what others call the files of torch.save
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
_MAKERS = frozenset((  # randn, randint, arange, linspace and eye load sympy or the compiler: our nets do without
    torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm, torch.arange,
    torch.linspace, torch.eye,
))  # fmt: skip
_TIMES, _BESIDE = 4, 1 << 24  # numbers that are made for each weight of a net, at most, and others


def _format(path: Path, known: tuple[str, ...] = FORMATS) -> str:
    if path.suffix not in known:
        raise UsageError(f"{path.name!r} ends in {path.suffix!r}.", expected=f"a file ending in {', '.join(known)}")
    return path.suffix


def of(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of a net, on the CPU. RunError where it holds anything but tensors (`get_extra_state`)."""
    weights = net.state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise RunError(
                f"The net's state {name!r} is a {type(value).__name__}, which cannot be saved without pickle.",
                expected="a state dict of tensors",
                fix="let get_extra_state() give a tensor",
            )
    return {name: value.detach().cpu() for name, value in weights.items()}


_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64",
    torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def pieces(weights: dict[str, Tensor]) -> list[bytes | memoryview]:
    """A safetensors file of tensors in memory, in pieces: the header, and each tensor's own memory, which is not copied.
    The library's `save` copies everything three times and holds the interpreter meanwhile. The widest numbers come first,
    as there, so that each tensor is aligned."""
    header: dict[str, Any] = {}
    found: list[bytes | memoryview] = []
    place = 0
    for name, value in sorted(weights.items(), key=lambda entry: (-entry[1].element_size(), entry[0])):
        if value.dtype not in _KINDS or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise RunError(
                f"These tensors cannot be written as safetensors: {name!r} is {value.dtype}, {value.layout} on "
                f"{value.device}.",
                expected="dense tensors of ordinary numbers",
                fix="what does not learn and can be made again: register_buffer(name, tensor, persistent=False)",
            )
        value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        flat = (torch.view_as_real(value) if value.is_complex() else value).reshape(-1).view(torch.uint8)
        header[name] = {
            "dtype": _KINDS[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [place, place := place + len(flat)],
        }
        found.append(flat.numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *found]


def to_bytes(weights: dict[str, Tensor]) -> bytes:
    """A state dict as the bytes of a safetensors file. Shared tensors are written for each of their names."""
    return b"".join(pieces(weights))


def save_weights(net: nn.Module, path: str | Path) -> None:
    """Write a net's state dict: `net.pth` as `torch.save` does, `net.safetensors` without pickle."""
    path = Path(path)
    weights = of(net)
    if _format(path) == ".safetensors":
        files.write(path, to_bytes(weights))
        return
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    files.write(path, buffer.getvalue())


def find(path: str | Path) -> foreign.Found:
    """What is in a file of weights: tensors by name, and what else."""
    path = Path(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir() if p.suffix in READ] if path.parent.is_dir() else []
        raise UsageError(f"There is no file {str(path)!r}: {near(path.name, beside)}")
    if _format(path, READ) == ".safetensors":
        return foreign.Found(foreign.read_safetensors(path), [], [], [])
    found = foreign.read(path)
    if not found.tensors:
        raise RunError(f"{path} holds no state dict.", expected="names and tensors: torch.save(net.state_dict(), path)")
    return found


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; also that under "state_dict" or "model", as many checkpoints have it."""
    found = find(path)
    if found.other:
        raise RunError(
            f"{path} holds no state dict: {', '.join(map(repr, found.other[:4]))} in it is no tensor.",
            expected="names and tensors: torch.save(net.state_dict(), path)",
            fix=f"lamina import {path}",
        )
    return found.tensors


def unwrapped(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """(weights, what was taken off every name): "module." of DataParallel, "_orig_mod." of torch.compile."""
    taken = ""
    while prefix := next((p for p in WRAPPERS if weights and all(name.startswith(p) for name in weights)), ""):
        weights, taken = {name.removeprefix(prefix): value for name, value in weights.items()}, taken + prefix
    return weights, taken


def load_weights(net: nn.Module, path: str | Path) -> nn.Module:
    """Put the weights of a file into a net, strictly; gives the net back. Names may be those of a wrapped net."""
    weights = read_weights(path)
    load_exactly(net, weights if weights.keys() == net.state_dict().keys() else unwrapped(weights)[0])
    return net


class Bounded(TorchFunctionMode):
    """Within, a net is made of about as many numbers as there are weights for it: its sizes come from a file, which may say
    anything. ValueError where it asks for more. (A net on the meta device would show that too, but there torch loads its
    compiler, which takes 0.7 s.)"""

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        self._given = sum(weight.numel() for weight in weights.values())
        self._made = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _MAKERS:
            sizes = {name: value for name, value in kwargs.items() if name != "generator"}
            self._made += function(*args, **{**sizes, "device": "meta"}).numel()
            if self._made > _TIMES * self._given + _BESIDE:
                raise ValueError(f"the net asks for {self._made:,} numbers or more, and has {self._given:,} weights")
        return function(*args, **kwargs)


def load_exactly(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """`load_state_dict`, strictly, with words for what does not fit."""
    check(net, weights)
    net.load_state_dict(dict(weights))


def check(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """That weights have the names and shapes of a net. RunError in words where they have not."""
    own = net.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    wrong = [
        f"{name}: {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if isinstance(own[name], Tensor) and not is_lazy(own[name]) and weights[name].shape != own[name].shape
    ]
    if missing or extra or wrong:
        parts = [f"{title} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" for title, names in
                 (("missing:", missing), ("not in the net:", extra), ("of other shape:", wrong)) if names]  # fmt: skip
        raise RunError(
            f"These weights do not fit the net {type(net).__name__}: {'; '.join(parts)}.",
            expected="weights of the same net with the same arguments",
        )
