"""Kernels for which there are quicker ones: equal in meaning, not in every bit.

In: a step that runs on the CPU. Out: the same step, in which some of torch's kernels are replaced where they have much to do:

    masks of dropout                   numbers of the generator serve several places (`masks`)
    the bias's gradient, convolution   torch's sum in place of oneDNN's, which takes twice as long and is thirty times less
                                       exact, for it adds up a batch one number after the other
    a table's gradient, embedding_bag  rows scaled, then added up all at once: a fifth of the time

Used by `lanes` in every step, recorded or not, so that both have the same bits; `strict` does without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lamina.masks import LARGE as LARGE_MASK
from lamina.masks import fill

aten = torch.ops.aten
Backward = tuple[Tensor | None, Tensor | None, Tensor | None]


def convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, biases: Any, *how: Any) -> Backward:
    """aten.convolution_backward; the last of its arguments says which gradients are wanted."""
    *rest, (of_x, of_weight, of_bias) = how
    apart = of_bias and gradient.numel() >= LARGE and gradient.device.type == "cpu"
    mask = [of_x, of_weight, of_bias and not apart]
    by_x, by_weight, by_bias = aten.convolution_backward.default(gradient, x, weight, biases, *rest, mask)
    if apart:
        by_bias = gradient.sum([*range(2, gradient.ndim)]).sum(0)
    return by_x, by_weight, by_bias


def _bag_backward(
    gradient: Tensor, indices: Tensor, offsets: Tensor, bags: Tensor, sizes: Tensor, most: Tensor, rows: int, by_count: bool,
    mode: int, sparse: bool, weights: Tensor | None, padding: int = -1, *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """aten._embedding_bag_backward: gradient (bags, D), indices (n,) -> (rows, D), into `out` if that is given."""
    exact = gradient.dtype in (torch.float32, torch.float64) and gradient.device.type == "cpu"
    if sparse or by_count or mode not in (_SUM, _MEAN) or indices.numel() < MANY or not exact:
        found = aten._embedding_bag_backward.default(
            gradient, indices, offsets, bags, sizes, most, rows, by_count, mode, sparse, weights, padding
        )
        return found if out is None else out.copy_(found)
    if not bags.numel():  # forward did not need to know which bag an index is in
        begun = indices.new_zeros(len(indices) + 1).index_add_(0, offsets, torch.ones_like(offsets))
        bags = begun.cumsum(0)[:-1].sub_(1)
    part = gradient if mode == _SUM else gradient / sizes.clamp(min=1)[:, None]
    source = part.index_select(0, bags)
    if weights is not None:
        source.mul_(weights[:, None])
    found = gradient.new_empty(rows, gradient.shape[1]) if out is None else out
    add_rows(found, indices, source, padding)
    return found


def add_rows(out: Tensor, indices: Tensor, source: Tensor, padding: int) -> None:
    """out (R, D) becomes the sum of the rows of source (n, D) that `indices` (n,) give to each of its rows, one after the
    other in their order, as torch adds up the gradient of an embedding; up to ten times as fast. The row `padding` stays 0;
    -1 for none."""
    width = source.shape[1]
    out.zero_()
    if width <= NARROW and len(source) >= MANY and out.is_contiguous():
        places = indices.long()[:, None] * width + torch.arange(width)
        out.view(-1).scatter_add_(0, places.reshape(-1), source.reshape(-1))
    else:
        out.index_add_(0, indices.long(), source)
    if padding >= 0:
        out[padding].zero_()


LARGE = 65_536  # numbers of a gradient: 0.05 ms
MANY = 1024  # rows that are added up
NARROW = 8  # numbers of a row that are better added up one by one
_SUM, _MEAN = 0, 1


class Kernel(NamedTuple):
    """What is called in the place of an operation, and whether it has much to do: else it does what torch does."""

    run: Callable[..., Any]
    much: Callable[..., bool]


INSTEAD = {
    aten.bernoulli_.float: Kernel(fill, lambda x, *_: x.numel() >= LARGE_MASK),
    aten.convolution_backward.default: Kernel(convolution_backward, lambda gradient, *_: gradient.numel() >= LARGE),
    aten._embedding_bag_backward.default: Kernel(_bag_backward, lambda gradient, indices, *_: indices.numel() >= MANY),
}
_MODULES = (
    nn.modules.dropout._DropoutNd, nn.MultiheadAttention, nn.RNNBase, nn.modules.conv._ConvNd, nn.EmbeddingBag
)  # fmt: skip


def concerns(net: nn.Module) -> bool:
    """Whether a net may have something to replace."""
    return any(isinstance(module, _MODULES) for module in net.modules())


class Quicker(TorchDispatchMode):
    """While entered, kernels are replaced. `seen` are the operations that had much to do."""

    def __init__(self, kernels: dict[Any, Kernel] = INSTEAD) -> None:
        super().__init__()
        self._kernels = kernels
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernel = self._kernels.get(function)
        if kernel is None:
            return function(*args, **(kwargs or {}))
        if kernel.much(*args):
            self.seen.add(function)
        return kernel.run(*args, **(kwargs or {}))


# Torch wraps this method to hide it from the compiler, and imports the compiler for that.
Quicker.__torch_dispatch__ = inspect.unwrap(Quicker.__torch_dispatch__)  # type: ignore[method-assign]
