"""Weights in files that anybody can read: PyTorch's own format, and safetensors.

In: a net and a path. Out: its state dict in a file (`.pth`, `.pt`: PyTorch's format; `.safetensors`), or the net with the
weights of such a file. Files are read as weights only: nothing in them is ever executed.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lamina import files
from lamina.errors import RunError, UsageError, near

FORMATS = (".safetensors", ".pth", ".pt")


def _format(path: Path) -> str:
    if path.suffix not in FORMATS:
        raise UsageError(f"{path.name!r} ends in {path.suffix!r}.", expected=f"a file ending in {', '.join(FORMATS)}")
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


def to_bytes(weights: dict[str, Tensor]) -> bytes:
    """A state dict as the bytes of a safetensors file. Shared tensors are written for each of their names."""
    from safetensors.torch import save

    try:
        return save({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()})
    except (KeyError, ValueError, RuntimeError, NotImplementedError) as error:  # a kind of number or layout it lacks
        raise RunError(
            f"These tensors cannot be written as safetensors: {error}", expected="dense tensors of ordinary numbers"
        ) from error


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


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; also that under "state_dict" or "model", as many checkpoints have it."""
    path = Path(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir() if p.suffix in FORMATS] if path.parent.is_dir() else []
        raise UsageError(f"There is no file {str(path)!r}: {near(path.name, beside)}")
    if _format(path) == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(path.read_bytes())
        except SafetensorError as error:
            raise RunError(f"{path} is not a sound safetensors file: {error}") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign file does to the reader, it is unreadable
        why = str(error).strip() or type(error).__name__
        raise RunError(
            f"{path} could not be read as weights: {why.splitlines()[0]}",
            expected="a state dict: torch.save(net.state_dict(), path)",
            fix="a whole pickled net cannot be opened safely: save its state_dict() where you trust the file",
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise RunError(f"{path} holds no state dict.", expected="names and tensors: torch.save(net.state_dict(), path)")
    return dict(found)


def load_weights(net: nn.Module, path: str | Path) -> nn.Module:
    """Put the weights of a file into a net, strictly; gives the net back."""
    load_exactly(net, read_weights(path))
    return net


def load_exactly(net: nn.Module, weights: dict[str, Tensor]) -> None:
    """`load_state_dict`, strictly, with words for what does not fit."""
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
    net.load_state_dict(dict(weights))
