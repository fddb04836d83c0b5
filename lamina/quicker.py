"""Kernels for which there are quicker ones: equal in meaning, not in every bit.

In: a step that runs on the CPU. Out: the same step, in which two of torch's kernels are replaced where they have much to do:

    masks of dropout                   numbers of the generator serve several places (`masks`)
    the bias's gradient, convolution   torch's sum in place of oneDNN's, which takes twice as long and is thirty times less
                                       exact, for it adds up a batch one number after the other

Used by `lanes` in every step, recorded or not, so that both have the same bits; `strict` does without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lamina.masks import LARGE as LARGE_MASK
from lamina.masks import fill

aten = torch.ops.aten
Backward = tuple[Tensor | None, Tensor | None, Tensor | None]


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, biases: Any, *how: Any) -> Backward:
    """aten.convolution_backward; the last of its arguments says which gradients are wanted."""
    *rest, (of_x, of_weight, of_bias) = how
    apart = of_bias and gradient.numel() >= LARGE and gradient.device.type == "cpu"
    mask = [of_x, of_weight, of_bias and not apart]
    by_x, by_weight, by_bias = aten.convolution_backward.default(gradient, x, weight, biases, *rest, mask)
    if apart:
        by_bias = gradient.sum([*range(2, gradient.ndim)]).sum(0)
    return by_x, by_weight, by_bias


LARGE = 65_536  # numbers of a gradient: 0.05 ms
INSTEAD: dict[Any, Callable[..., Any]] = {
    aten.bernoulli_.float: fill,
    aten.convolution_backward.default: _convolution_backward,
}
_MODULES = (nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase, nn.modules.conv._ConvNd)


def concerns(net: nn.Module) -> bool:
    """Whether a net may have something to replace."""
    return any(isinstance(module, _MODULES) for module in net.modules())


class Quicker(TorchDispatchMode):
    """While entered, kernels are replaced. `seen` is whether one of them had much to do."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run = INSTEAD.get(function)
        if run is None:
            return function(*args, **(kwargs or {}))
        self.seen = self.seen or args[0].numel() >= (LARGE_MASK if run is fill else LARGE)
        return run(*args, **(kwargs or {}))


# Torch wraps this method to hide it from the compiler, and imports the compiler for that.
Quicker.__torch_dispatch__ = inspect.unwrap(Quicker.__torch_dispatch__)  # type: ignore[method-assign]
