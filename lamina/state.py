"""All that a resumed run needs, in one explicit object.

In: the objects of a training. Out: a checkpoint directory without pickle (`weights.safetensors`, `state.safetensors`,
`state.json`, a manifest with the SHA-256 of each), and back. Written by `files.commit`; "latest" is a scan for the newest
that verifies, so there is no pointer that could be wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lamina import documents, files
from lamina.batches import generators, set_generators
from lamina.errors import Diverged, LaminaError, RunError
from lamina.weights import load_exactly, pieces
from lamina.weights import of as weights_of

LOOK = 32  # steps on a GPU after which the host looks at them; the first so many, and those after a bad one, one by one
_LONG = 20  # of the usual limits of a JSON text: a history of a million epochs


@dataclass
class TrainState:
    """What the engine changes while it learns, and the place it has reached.

    `parts` are further objects with `state_dict`/`load_state_dict` (watchers, the story's history) by name.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Any = None
    schedule: Any = None
    scaler: Any = None
    ema: Any = None
    parts: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0  # the cursor: the next batch is `batch` of `epoch`
    batch: int = 0
    step: int = 0  # optimiser steps done
    examples: int = 0  # seen so far
    loss_sum: Any = None  # of this epoch; on a GPU a tensor there
    loss_count: Any = 0  # what that is the sum over; on a GPU a tensor there
    seconds: float = 0.0  # of learning, before this process
    most: int | None = None  # examples at a time that memory has room for, where a batch did not fit
    skipped: Any = 0  # steps left out because loss or gradient were not finite; on a GPU a tensor there
    in_row: Any = 0  # of those, how many were the last ones
    watched: int = LOOK  # steps up to which a GPU is asked after each whether it was left out, and later now and then
    modes: list[bool] | None = None  # of the modules while learning: a caller may have put them into evaluation mode
    infinite: frozenset[str] = field(init=False)  # what was so when the net came, and does not learn

    def __post_init__(self) -> None:
        self.infinite = meant_infinite(self.net)

    def net_modes(self) -> list[bool]:
        return [module.training for module in self.net.modules()]

    def tree(self) -> dict[str, Any]:
        """Everything but the weights."""
        found: dict[str, Any] = {
            "cursor": {
                "epoch": self.epoch, "batch": self.batch, "step": self.step, "examples": self.examples,
                "loss_count": self.loss_count, "seconds": self.seconds,
                "most": self.most, "skipped": self.skipped, "in_row": self.in_row, "watched": self.watched,
            },
            "loss_sum": self.loss_sum,
            "optimizer": self.optimizer.state_dict(),
            "generators": all_generators(),
            "training": dict(zip(dict(self.net.named_modules()), self.modes or self.net_modes(), strict=True)),
        }  # fmt: skip
        for name in ("batches", "schedule", "scaler", "ema"):
            part = getattr(self, name)
            if part is not None and hasattr(part, "state_dict"):
                found[name] = part.state_dict()
        found["parts"] = {name: part.state_dict() for name, part in self.parts.items()}
        return found

    def load(self, weights: dict[str, Tensor], tree: dict[str, Any]) -> None:
        """Put everything back as it was. RunError where a part that was saved is not there to take its state."""
        lost = sorted(tree["parts"].keys() - self.parts.keys())
        if lost:
            raise RunError(
                f"The checkpoint holds the state of {', '.join(lost)}, which this training does not have.",
                expected="the watchers the run was started with",
                fix="lamina.resume(run, watchers=[...]) with all of them, in the same order",
            )
        load_exactly(self.net, weights)
        cursor = tree["cursor"]
        self.epoch, self.batch, self.step = cursor["epoch"], cursor["batch"], cursor["step"]
        self.examples, self.loss_count, self.seconds = cursor["examples"], cursor["loss_count"], cursor["seconds"]
        self.most, self.skipped, self.in_row = cursor.get("most"), cursor.get("skipped", 0), cursor.get("in_row", 0)
        self.watched = cursor.get("watched", self.watched)
        self.loss_sum = tree["loss_sum"]
        try:
            self.optimizer.load_state_dict(tree["optimizer"])
        except (ValueError, KeyError) as error:
            raise RunError(
                f"The optimiser {type(self.optimizer).__name__} cannot take the state of the checkpoint: {error}.",
                expected="the optimiser the run was started with, over the same parameters",
            ) from error
        _in_order(self.optimizer)
        for name in ("batches", "schedule", "scaler", "ema"):
            part = getattr(self, name)
            if part is not None and name in tree:
                part.load_state_dict(tree[name])
        for name, state in tree["parts"].items():
            self.parts[name].load_state_dict(state)
        for name, module in self.net.named_modules():
            module.training = tree["training"].get(name, module.training)
        set_all_generators(tree["generators"])


def _in_order(optimizer: torch.optim.Optimizer) -> None:
    """The optimiser's state in the memory order of its parameters, which fused kernels take for granted."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            like = isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride()
            if like:
                state[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def all_generators() -> dict[str, Any]:
    """The state of the process' generators, those of GPUs included."""
    found = generators()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state()
    return found


def set_all_generators(state: dict[str, Any]) -> None:
    """Put them back as `all_generators` found them, on devices that are still here."""
    set_generators(state)
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def pack(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """A nest of dicts, lists, tuples, tensors, arrays and plain values -> (tensors by name, JSON), all of it copied."""
    tensors: dict[str, Tensor] = {}

    def keep(value: Tensor, place: str) -> str:
        while place in tensors:  # {"a.b": x, "a": {"b": y}}
            place += "'"
        tensors[place] = torch.view_as_real(value) if value.is_complex() else value
        return place

    def walk(node: Any, place: str) -> Any:
        if isinstance(node, Tensor) and node.layout == torch.strided and not (node.is_quantized or node.is_meta):
            value = _copied(node)
            return {"$complex" if value.is_complex() else "$tensor": keep(value, place)}
        if isinstance(node, np.ndarray) and node.dtype.char in "?bBhHiIlLqQefdFD":
            return {"$array": walk(torch.from_numpy(node.astype(node.dtype.newbyteorder("="))), place)}
        if isinstance(node, np.generic) and not isinstance(node.item(), np.generic):
            return walk(node.item(), place)
        if isinstance(node, dict):
            if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return {key: walk(part, f"{place}.{key}") for key, part in node.items()}
            return {"$dict": [[walk(key, ""), walk(part, f"{place}.{key}")] for key, part in node.items()]}
        if isinstance(node, tuple):
            return {"$tuple": [walk(part, f"{place}.{k}") for k, part in enumerate(node)]}
        if isinstance(node, list):
            return [walk(part, f"{place}.{k}") for k, part in enumerate(node)]
        if isinstance(node, float) and node != node:
            return {"$float": "nan" if math.copysign(1, node) > 0 else "-nan"}
        if isinstance(node, float) and node in (float("inf"), float("-inf")):
            return {"$float": str(node)}
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise RunError(
            f"The state at {place!r} holds a {type(node).__name__}, which cannot be saved without pickle.",
            expected="tensors, arrays, numbers, strings, lists, tuples and dicts of those",
        )

    return tensors, walk(tree, "state")


def _copied(value: Tensor) -> Tensor:
    """A tensor in host memory of its own."""
    value = value.detach().resolve_conj().resolve_neg()
    if value.layout != torch.strided:  # who writes it has words for that
        return value.to("cpu", copy=True)
    return value.to("cpu", copy=True, memory_format=torch.contiguous_format)


def unpack(tensors: dict[str, Tensor], node: Any) -> Any:
    """The inverse of `pack`."""
    if isinstance(node, list):
        return [unpack(tensors, part) for part in node]
    if not isinstance(node, dict):
        return node
    if "$tensor" in node:
        return tensors[node["$tensor"]]
    if "$complex" in node:
        return torch.view_as_complex(tensors[node["$complex"]])
    if "$array" in node:
        return unpack(tensors, node["$array"]).numpy()
    if "$tuple" in node:
        return tuple(unpack(tensors, part) for part in node["$tuple"])
    if "$dict" in node:
        return {unpack(tensors, key): unpack(tensors, part) for key, part in node["$dict"]}
    if "$float" in node:
        return float(node["$float"])
    return {key: unpack(tensors, part) for key, part in node.items()}


@dataclass
class Copy:
    """A training as it was after a step, in memory of its own: it can be written while the training goes on."""

    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]
    tree: Any  # JSON
    about: dict[str, Any]


def not_finite(tensors: Mapping[str, Tensor], meant: Container[str] = ()) -> list[str]:
    """The names of those that hold a number that is not finite, but for those that are meant so. Of tensors on a GPU, where all
    is well, one answer is waited for and not one each."""
    values = {
        name: value.detach()
        for name, value in tensors.items()
        if (value.is_floating_point() or value.is_complex()) and name not in meant
    }
    there = [value for value in values.values() if not value.is_cpu]
    if there:
        norms = torch._foreach_norm([torch.view_as_real(value) if value.is_complex() else value for value in there])
        if torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]).isfinite().all():
            values = {name: value for name, value in values.items() if value.is_cpu}
    return [name for name, value in values.items() if not (value.sum().isfinite() or value.isfinite().all())]


def meant_infinite(net: nn.Module) -> frozenset[str]:
    """The names of what a net has that is not finite and does not learn, such as an attention mask: it is meant so."""
    still = [(name, p) for name, p in net.named_parameters() if not p.requires_grad and not is_lazy(p)]
    return frozenset(not_finite(dict([*still, *((name, b) for name, b in net.named_buffers() if not is_lazy(b))])))


def copy(state: TrainState, about: dict[str, Any]) -> Copy:
    """All that `save` writes. Weights that are not finite are never saved: Diverged."""
    weights = weights_of(state.net)
    if bad := not_finite(weights, state.infinite):
        raise Diverged(
            f"After step {state.step} the weights are not finite: {', '.join(bad[:4])}. They were not saved.",
            fix="lower the learning rate or clip gradients (--clip-norm 1); the last good checkpoint is kept",
        )
    about = {"step": state.step, "epoch": state.epoch, "batch": state.batch, **about}
    return Copy({name: _copied(value) for name, value in weights.items()}, *pack(state.tree()), about)


def write(path: str | Path, copied: Copy) -> None:
    """A checkpoint of what was copied."""
    parts = {
        "weights.safetensors": pieces(copied.weights),
        "state.safetensors": pieces(copied.tensors),
        "state.json": json.dumps(copied.tree).encode(),
    }
    files.commit(path, parts, copied.about)


def save(path: str | Path, state: TrainState, about: dict[str, Any]) -> None:
    """A checkpoint of a training, written at once."""
    write(path, copy(state, about))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """(weights, tree, manifest) of a checkpoint that verifies."""
    from safetensors.torch import load as from_bytes

    manifest, data = files.verify(path)
    try:
        tree = unpack(
            from_bytes(data["state.safetensors"]),
            documents.parse(data["state.json"], f"{path}/state.json", times=_LONG),
        )
        return from_bytes(data["weights.safetensors"]), tree, manifest
    except KeyError as error:
        raise RunError(f"{path} lacks {error}.", expected="a checkpoint as Lamina writes it") from error
    except Exception as error:  # it verifies: so somebody wrote it like this
        raise RunError(f"{path} is no checkpoint: {error}", expected="a checkpoint as Lamina writes it") from error


def listing(folder: str | Path) -> list[Path]:
    """Checkpoints of a run, newest first, unverified."""
    found = [p for p in Path(folder).glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def newest(folder: str | Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are named on the way."""
    for path in listing(folder):
        try:
            files.check(path)
            return path
        except LaminaError as error:
            warn(f"checkpoint {path.name} is passed over: {error.what}")
    return None


def prune(folder: str | Path, keep: int = 2, sound: Path | None = None) -> None:
    """Delete old checkpoints, after re-reading the newer ones: never fewer than `keep` that verify. sound: one that was
    re-read just now."""
    good = 0
    for path in listing(folder):
        if good >= keep:
            files.remove(path)
            continue
        try:
            if path != sound:
                files.check(path)
            good += 1
        except RunError:
            continue


@contextmanager
def keeping_buffers(net: nn.Module) -> Iterator[None]:
    """Buffers that forward() writes to or replaces are afterwards as they were; not those of TorchScript."""
    tables = [found for module in net.modules() if isinstance(found := vars(module).get("_buffers"), dict)]
    made = [(t, name, b) for t in tables for name, b in t.items() if b is not None and not is_lazy(b)]
    values = [buffer.detach().clone() for _, _, buffer in made]
    try:
        yield
    finally:
        with torch.no_grad():
            for (table, name, buffer), value in zip(made, values, strict=True):
                buffer.copy_(value)
                if table.get(name) is not buffer:
                    table[name] = buffer
