"""Is the net alive? Dead and saturated units, vanishing and exploding gradients, numbers that are not finite.

In: the last batch and the gradients of the last step of an epoch. Out: `health.findings`, in words a person can act on,
and a `Log` with the shares. Called as a watcher; the findings go to the screen and the report.

The net is probed with one batch, in evaluation mode, without gradients. Activations are seen where they are called, as
functions (a torch function mode), so `nn.ReLU`, `F.relu(x)` and `x.relu()` are the same thing here; each is named by
its order in the forward pass and by the module that was entered last before it. Not seen: what happens inside one fused
call (the gates of `nn.LSTM`) and inside TorchScript. A gate that is meant to be shut for good will be reported.

After the probe the net, its buffers, its modes and the random generators are as before.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lamina import tracing
from lamina.batches import generators, set_generators
from lamina.state import keeping_buffers, meant_infinite, not_finite
from lamina.watchers import Log

_ZERO_FLOOR = {"relu", "relu_", "relu6", "threshold", "hardswish", "gelu", "silu", "mish"}  # all end at 0 on the left
_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # f' from the output y = f(x)
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
}
_SLOPES |= {f"{name}_": slope for name, slope in _SLOPES.items()}  # in place: x.tanh_()
_CONVOLUTIONS = {f"conv{transpose}{n}d" for transpose in ("", "_transpose") for n in (1, 2, 3)}

_FLAT = 0.01  # a slope below this passes next to no gradient
_MOST = 0.95  # a unit is saturated when its slope is flat for more than this share of what it saw
_ALARM = 0.25  # share of a layer's units that is worth a word: some are silent on any one batch
_ENOUGH = 32  # values of a unit in the probe below which silence may be chance
_RATIO = 1e4  # first to last layer's relative gradient: beyond this, or below its inverse, one of them does not learn
_NAMED = 5  # findings of a kind that are spelled out


class Health:
    """Look after the net at the end of an epoch.

    forward(net, batch) -> the net's outputs: how it is called; `net(*batch.inputs)` if not given.
    every: steps between two looks at least, so that short epochs do not pay a forward pass each; the first is always.
    batch(): what to look at; without it the epoch's last batch, which may be too short to tell.

    `findings` is what the last look found, a list of dicts: `severity` ("error", "warning"), `kind` ("dead",
    "saturated", "vanishing", "exploding", "not finite"), `layer`, `count` and `total` (units) or `ratio`, `what` and
    `fix` in words, `epoch` and `since` (counted from 1: of the look, and of the first look that found it).
    `layers` is every activation of the last look: `layer`, `kind`, `count`, `total`, `values` (that each unit gave). A
    layer becomes a finding when a quarter of its units are ill and each gave 32 values at least.
    """

    at_epoch_end = True

    def __init__(
        self,
        net: nn.Module,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        every: int = 100,
        batch: Callable[[], Any] | None = None,
    ):
        self.net = getattr(net, "_orig_mod", net)  # a compiled net is looked at as it was written
        self.forward = forward or (lambda net, batch: net(*batch.inputs))
        self.every = every
        self.batch = batch
        self._meant = meant_infinite(self.net)
        self.findings: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []
        self._last: int | None = None  # the step of the last look

    def __call__(self, progress: Any) -> Log | None:
        if not progress.epoch_end or (self._last is not None and progress.step - self._last < self.every):
            return None
        self._last = progress.step
        since = {(finding["kind"], finding["layer"]): finding["since"] for finding in self.findings}
        epoch = progress.epoch + 1
        gradients = _gradients(self.net)
        batch = progress.batch_data if self.batch is None else self.batch()
        self.layers = [] if batch is None else self._probe(batch)
        self.findings = [*_not_finite(self.net, self._meant), *_of_activations(self.layers), *_of_gradients(gradients)]
        for finding in self.findings:
            finding["epoch"] = epoch
            finding["since"] = since.get((finding["kind"], finding["layer"]), epoch)
        values = {f"health/{kind}_share": share for kind, share in _shares(self.layers).items()}
        if (ratio := _ratio(gradients)) is not None:
            values["health/gradient_ratio"] = ratio
        return Log(values) if values else None

    def state_dict(self) -> dict[str, Any]:
        return {"findings": self.findings, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.findings, self._last = state["findings"], state["last"]

    def _probe(self, batch: Any) -> list[dict[str, Any]]:
        with _undisturbed(self.net), _Activations(self.net) as seen:
            seen.outputs = _tensors(self.forward(self.net, batch))
        return seen.layers()


class _Activations(TorchFunctionMode):
    """Sees every activation function that is called while it is entered, and counts its dead or saturated units.

    A unit is a feature, or a channel after a convolution: the axis that the last linear map wrote to.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.outputs: list[Tensor] = []  # of the net: an activation there is meant to reach its ends
        self._net = net
        self._entered = ""
        self._axis = -1
        self._calls: dict[str, int] = {}
        self._seen: list[tuple[dict[str, Any], Tensor, Tensor]] = []

    def __enter__(self) -> _Activations:
        self._handles = [
            module.register_forward_pre_hook(self._note(name)) for name, module in tracing.layers(self._net) if name
        ]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _CONVOLUTIONS:
            self._axis = 1
        elif name in ("linear", "matmul", "__matmul__", "addmm", "bmm"):
            self._axis = -1
        elif (name in _ZERO_FLOOR or name in _SLOPES) and isinstance(result, Tensor) and result.ndim > 1:
            self._look(name, result)
        return result

    def layers(self) -> list[dict[str, Any]]:
        """What was seen, read from the device at once."""
        ends = {output.untyped_storage().data_ptr() for output in self.outputs}  # views of an output are outputs
        kept = [(layer, count) for layer, count, y in self._seen if y.untyped_storage().data_ptr() not in ends]
        counts = torch.stack([count for _, count in kept]).tolist() if kept else []
        return [{**layer, "count": count} for (layer, _), count in zip(kept, counts, strict=True)]

    def _note(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._entered = name

        return enter

    def _look(self, name: str, y: Tensor) -> None:
        axis = self._axis % y.ndim
        others = [dim for dim in range(y.ndim) if dim != axis]  # reduced where they lie: no copy in another order
        plain = name.rstrip("_")
        number = self._calls[plain] = self._calls.get(plain, 0) + 1
        if name in _SLOPES:
            kind, wrong = "saturated", (_SLOPES[name](y).abs() < _FLAT).float().mean(others) > _MOST
        else:
            kind, wrong = "dead", y.abs().amax(others) == 0
        layer = f"{_ordinal(number)} {plain}" + (f" (at {self._entered!r})" if self._entered else "")
        found = {"layer": layer, "kind": kind, "total": y.shape[axis], "values": y.numel() // y.shape[axis]}
        self._seen.append((found, wrong.sum(), y))


@contextlib.contextmanager
def _undisturbed(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module has its mode and buffers, each generator its state.

    Modes are set as attributes: a net's own train() and eval() may do more than that.
    """
    modes = [(module, module.training) for module in net.modules()]
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    before, on_devices = generators(), {device: torch.cuda.get_rng_state(device) for device in devices}
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), keeping_buffers(net):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        set_generators(before)
        for device, state in on_devices.items():
            torch.cuda.set_rng_state(state, device)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    elif not isinstance(output, (tuple, list)):
        return []
    return [tensor for part in output for tensor in _tensors(part)]


def _gradients(net: nn.Module) -> list[tuple[str, float]]:
    """Of each matrix and kernel, in the order of the net: rms of its gradient over rms of its weights."""
    weights = [
        (name, p.detach(), p.grad)
        for name, p in net.named_parameters()
        if p.ndim > 1 and p.grad is not None and not p.grad.is_sparse
    ]
    if not weights:
        return []
    names, *tensors = zip(*weights, strict=True)
    exact = [t if t.is_complex() else t.float() for column in tensors for t in column]
    norms = torch.stack(torch._foreach_norm(exact)).tolist()  # waited for once
    sizes, gradients = norms[: len(names)], norms[len(names) :]
    return [(name, grad / size) for name, size, grad in zip(names, sizes, gradients, strict=True) if size > 0]


def _not_finite(net: nn.Module, meant: frozenset[str]) -> list[dict[str, Any]]:
    """Weights and buffers, but those that are meant so. A gradient that is not finite shows in the weights, unless a GradScaler
    has skipped the step, which is then as it should be."""
    wrong = not_finite(dict([*net.named_parameters(), *net.named_buffers()]), meant)[:_NAMED]
    common = {
        "severity": "error",
        "kind": "not finite",
        "fix": "lower the learning rate, clip the gradient norm, look for infinite or missing values in the data",
    }
    return [{**common, "layer": name, "what": f"{name!r} contains NaN or infinity"} for name in wrong]


def _of_activations(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    words = {
        "dead": (
            "{count} of {total} units are dead at the {layer}: they gave 0 for every example of the last batch",
            "lower the learning rate or warm it up, look at large negative biases before it, try leaky_relu or gelu",
        ),
        "saturated": (
            "{count} of {total} units are saturated at the {layer}: their slope is below 0.01, so no gradient passes",
            "standardise the inputs, normalise before it (batch or layer norm), start from smaller weights, try relu",
        ),
    }
    findings = []
    for kind, (what, fix) in words.items():
        ill = [
            layer
            for layer in layers
            if layer["kind"] == kind and layer["values"] >= _ENOUGH and layer["count"] >= _ALARM * layer["total"]
        ]
        for layer in sorted(ill, key=lambda layer: -layer["count"] / layer["total"])[:_NAMED]:
            findings.append({"severity": "warning", **layer, "what": what.format(**layer), "fix": fix})
    return findings


def _of_gradients(gradients: list[tuple[str, float]]) -> list[dict[str, Any]]:
    ratio = _ratio(gradients)
    if ratio is None or 1 / _RATIO <= ratio <= _RATIO:
        return []
    first, last = gradients[0][0], gradients[-1][0]
    if ratio < 1:
        kind, verb = "vanishing", "vanish"
        fix = "shortcuts (residual), normalisation, relu in place of sigmoid and tanh, initialisation by He"
    else:
        kind, verb = "exploding", "explode"
        fix = "clip the gradient norm, lower the learning rate, normalisation, start from smaller weights"
    what = f"gradients {verb}: relative to its weights, {first!r} gets {ratio:.1g} times the gradient of {last!r}"
    return [{"severity": "warning", "kind": kind, "layer": first, "ratio": ratio, "what": what, "fix": fix}]


def _ratio(gradients: list[tuple[str, float]]) -> float | None:
    """How much of the signal comes through: the first layer's relative gradient over the last layer's. None where there
    are not two layers, or where the last one is at rest or not finite."""
    if len(gradients) < 2 or not gradients[-1][1] > 0:
        return None
    ratio = gradients[0][1] / gradients[-1][1]
    return ratio if math.isfinite(ratio) else None


def _shares(layers: list[dict[str, Any]]) -> dict[str, float]:
    """Of all units under an activation that can die or saturate, the share that has."""
    shares = {}
    for kind in ("dead", "saturated"):
        of_kind = [layer for layer in layers if layer["kind"] == kind]
        if of_kind:
            shares[kind] = sum(layer["count"] for layer in of_kind) / sum(layer["total"] for layer in of_kind)
    return shares


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
