"""Activations by name.

In: a name such as "relu", "leaky_relu" or "GELU", from a recipe, the command line or a net's argument. Out: a new
`nn.Module`, or the gain that fits it, for `initialisers`. Called by `nets` and `initialisers`.

The names are those of the classes that `torch.nn.modules.activation` exports, found by looking, so a new torch brings
its new activations; case, underscores and hyphens do not matter. `MultiheadAttention`, filed there too, is left out.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules import activation as torch_activations

from lamina.errors import UsageError, near

Activation = str | nn.Module | Callable[[], nn.Module]  # what a net takes: a name, a module to copy, or its maker

_ALSO = {"swish": "silu", "linear": "identity", "none": "identity"}
_CONVENTIONAL: dict[type[nn.Module], Any] = {  # what nn.init.calculate_gain knows
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SELU: "selu",
}
_ACROSS_FEATURES = (nn.GLU, nn.Softmax, nn.Softmin, nn.Softmax2d, nn.LogSoftmax)  # not number by number


def _key(name: str) -> str:
    key = name.lower().replace("_", "").replace("-", "").replace(" ", "")
    return _ALSO.get(key, key)


def _classes() -> dict[str, type[nn.Module]]:
    found = {name: getattr(torch_activations, name) for name in torch_activations.__all__}
    found["Identity"] = nn.Identity
    return {_key(name): cls for name, cls in found.items() if cls is not nn.MultiheadAttention}


def names() -> list[str]:
    """Every name as torch writes it: "CELU", "ELU", ..., "Tanhshrink", "Threshold"."""
    return sorted(cls.__name__ for cls in _classes().values())


def make(name: Activation, **arguments: Any) -> nn.Module:
    """A new activation: by name ("leaky_relu", negative_slope=0.2), as a copy of a module, or from a maker (`nn.GELU`).

    A softmax (softmin, log-softmax) works over dimension 1, the features or channels, unless `dim` says otherwise.
    `UsageError` for an unknown name and for arguments that the activation does not take.
    """
    if isinstance(name, nn.Module):
        return copy.deepcopy(name)  # two layers never share a PReLU's slope by accident
    if not isinstance(name, str):
        return name(**arguments)
    classes = _classes()
    cls = classes.get(_key(name))
    if cls is None:
        raise UsageError(f"unknown activation {name!r}", expected=near(_key(name), classes))
    if cls in (nn.Softmax, nn.Softmin, nn.LogSoftmax):
        arguments.setdefault("dim", 1)
    try:
        return cls(**arguments)
    except TypeError as error:
        raise UsageError(
            f"activation {name!r} does not work with the arguments {arguments}: {error}",
            expected=f"{cls.__name__}{inspect.signature(cls)}",
        ) from error


def hidden(activation: Activation, *shape: int) -> nn.Module:
    """An activation to stand between two layers: it must keep the shape of what it takes, tried on zeros of `shape`.

    `UsageError` for one that does not (GLU halves the width, Softmax2d takes only pictures).
    """
    module = make(activation)
    try:
        with torch.no_grad():  # in evaluation mode RReLU draws nothing: building a net leaves the random state alone
            kept = tuple(module.eval()(torch.zeros(shape)).shape) == shape
    except (RuntimeError, ValueError):
        kept = False
    if not kept:
        raise UsageError(
            f"{type(module).__name__} cannot stand between these layers: it does not keep the shape {shape}",
            expected="an activation that works number by number, such as relu, gelu or tanh",
        )
    return module.train()


def gain(activation: Activation, **arguments: Any) -> float:
    """By how much to scale a layer's weights so that the activation after it keeps the size of the signal.

    `gain("relu")`, `gain("leaky_relu", negative_slope=0.2)`: `nn.init.calculate_gain` where it knows the activation;
    its values are partly by convention (tanh 5/3, selu 3/4, sigmoid 1). For all others 1 / sqrt(E[f(z)^2]) with
    z ~ N(0, 1), integrated numerically: the argument of LeCun et al. (1998) and of He et al. (2015), whose sqrt(2) for
    relu it gives. 1 for those that work across features (softmax, GLU), which set a scale of their own.
    """
    module = make(activation, **arguments)
    if type(module) in _CONVENTIONAL:
        return float(nn.init.calculate_gain(_CONVENTIONAL[type(module)], getattr(module, "negative_slope", None)))
    if isinstance(module, _ACROSS_FEATURES):
        return 1.0
    return measured_gain(module)


def measured_gain(module: nn.Module) -> float:
    """1 / sqrt(E[f(z)^2]), z ~ N(0, 1), for a module f that works number by number.

    It fits a signal of size 1. Where f is not homogeneous (gelu, silu), a signal a little larger grows from layer to
    layer and one a little smaller shrinks: beyond some ten layers such nets need normalisation, whatever the gain.
    """
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64)  # beyond 12 sigma lies less than 1e-32
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    with torch.no_grad():
        power = torch.trapezoid(copy.deepcopy(module).double().eval()(z).square() * density, z).item()
    if power == 0:
        raise UsageError(f"{type(module).__name__} is zero wherever a signal of unit size falls: no gain fits it")
    return 1 / math.sqrt(power)
