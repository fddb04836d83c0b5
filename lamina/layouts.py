"""Convolutions with the channels of a place side by side ("channels last"), where torch is faster with them so.

In: a net that learns on the CPU. Out: kernels for `quicker`, which lay what a convolution takes and leave what it gives in that
order, so that the rest of the net finds it so; one along a line is that of a plane of one row. With all copies a convolution
along a line takes 0.5 to 1 of the time; a pooling of what it gives, a tenth. And `Reshaping`, for nets that ask for views of
what lies in another order than they think. Used by `lanes`; nets whose weights are laid so themselves (`trial`) need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lamina.quicker import Backward, Kernel, convolution_backward

aten = torch.ops.aten
CONVOLUTION = aten.convolution.default
ENOUGH = 16_384  # numbers of an input
KERNELS = 10_000  # weights of convolutions of planes


def likes_channels_last(net: nn.Module) -> bool:
    """Whether convolutions of pictures are most of what a net does. It is a rule, not a measurement: two runs must not differ
    by a chance look."""
    return sum(weight.numel() for weight in _planes(net)) >= KERNELS


def concerns(net: nn.Module) -> bool:
    """Whether the kernels have something to do: in a net whose weights are laid already they have not."""
    lines = any(isinstance(m, nn.Conv1d) and m.groups == 1 and m.in_channels > 1 for m in net.modules())
    laid = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in _planes(net))
    return lines or (likes_channels_last(net) and not laid)


def _planes(net: nn.Module) -> list[Tensor]:
    """The weights of the convolutions of planes that are in no groups."""
    return [m.weight for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]


class Reshaping(TorchFunctionMode):
    """While entered, a view that torch cannot make since memory lies in another order is a copy. It ends in a RuntimeError
    where somebody has written into either of both: then they are no longer the same."""

    def __init__(self) -> None:
        super().__init__()
        self._written: list[tuple[Tensor, int]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return function(*args, **(kwargs or {}))
        except RuntimeError:
            if function not in _COPYING or kwargs or isinstance(args[1], torch.dtype):
                raise
            made = _COPYING[function](*args)
            self._written += [(tensor, tensor._version) for tensor in (args[0], made)]
            return made

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        written, self._written = self._written, []
        if error is None and any(tensor._version != version for tensor, version in written):
            raise RuntimeError("something is written into a view, which in another layout is a copy")


_COPYING: dict[Any, Callable[..., Tensor]] = {Tensor.view: Tensor.reshape, Tensor.view_as: Tensor.reshape_as}


# --- Kernels ----------------------------------------------------------------------------------------------------------


def _laid_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Any) -> Tensor:
    """aten.convolution, with the channels last."""
    if not _worth_laying(x, *how):
        return aten.convolution.default(x, weight, bias, *how)  # type: ignore[no-any-return]
    return _as(x, aten.convolution.default(_laid(x), _laid(weight), bias, *_of_planes(x, how)))  # type: ignore[return-value]


def _laid_convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, biases: Any, *how: Any) -> Backward:
    """aten.convolution_backward, with the channels last."""
    *rest, mask = how
    if not _worth_laying(x, *rest):
        return convolution_backward(gradient, x, weight, biases, *how)
    by_x, by_weight, by_bias = convolution_backward(
        _laid(gradient), _laid(x), _laid(weight), biases, *_of_planes(x, rest), mask
    )
    by_weight = _as(x, by_weight)
    return _as(x, by_x), None if by_weight is None else by_weight.contiguous(), by_bias


def _laid_norm(x: Tensor, *how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """aten.native_batch_norm, for which torch knows such a layout of planes alone."""
    if not _is_laid_line(x):
        return aten.native_batch_norm.default(x, *how)  # type: ignore[no-any-return]
    found, mean, deviation = aten.native_batch_norm.default(_laid(x), *how)
    return _as(x, found), mean, deviation  # type: ignore[return-value]


def _laid_norm_backward(gradient: Tensor, x: Tensor, *how: Any) -> Backward:
    """aten.native_batch_norm_backward."""
    if not _is_laid_line(x):
        return aten.native_batch_norm_backward.default(gradient, x, *how)  # type: ignore[no-any-return]
    by_x, by_weight, by_bias = aten.native_batch_norm_backward.default(_laid(gradient), _laid(x), *how)
    return _as(x, by_x), by_weight, by_bias


def _worth_laying(x: Tensor, *how: Any) -> bool:
    """Whether a convolution is quicker with the channels last: not in groups, or of one channel along a line."""
    transposed, groups = how[3], how[5]
    enough = (x.ndim == 4 or (x.ndim == 3 and x.shape[1] > 1)) and x.numel() >= ENOUGH and x.device.type == "cpu"
    return enough and not transposed and groups == 1 and x.dtype in (torch.float32, torch.bfloat16)


def _is_laid_line(x: Tensor) -> bool:
    return x.ndim == 3 and x.shape[1] > 1 and x.stride(1) == 1 and x.numel() >= ENOUGH and x.device.type == "cpu"


def _laid(x: Tensor) -> Tensor:
    """(B, C, L), which is a plane of one row, or (B, C, H, W) -> with the channels last."""
    x = x.unsqueeze(-2) if x.ndim == 3 else x
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    rows, columns = x.shape[2:]  # of one channel memory is the same; to torch the strides say what is wanted
    return x.contiguous().as_strided(x.shape, (rows * columns, 1, columns, 1))


def _as(x: Tensor, found: Tensor | None) -> Tensor | None:
    """What was found of planes, of lines again where x is such."""
    return found.squeeze(-2) if found is not None and x.ndim == 3 else found


def _of_planes(x: Tensor, how: Sequence[Any]) -> Sequence[Any]:
    """Stride, padding, dilation, whether transposed, padding of the output, groups: for two dimensions."""
    if x.ndim == 4:
        return how
    stride, padding, dilation, transposed, output_padding, groups = how
    return [[1, *stride], [0, *padding], [1, *dilation], transposed, [0, *output_padding], groups]


LAID = {
    CONVOLUTION: Kernel(_laid_convolution, lambda x, weight, bias, *how: _worth_laying(x, *how)),
    aten.convolution_backward.default: Kernel(
        _laid_convolution_backward, lambda gradient, x, *_: max(gradient.numel(), x.numel()) >= ENOUGH
    ),
    aten.native_batch_norm.default: Kernel(_laid_norm, lambda x, *_: _is_laid_line(x)),
    aten.native_batch_norm_backward.default: Kernel(_laid_norm_backward, lambda gradient, x, *_: _is_laid_line(x)),
}
