"""A net that is only asked: how many examples at a time, and in which layout its convolutions work.

In: a net in evaluation mode, and some inputs as it takes them. Out: a number (`portion`), and the net as it answers
fastest (`quickest`). Called by the domains, which validate and answer. Both look at shapes and never at a clock, so the
same question is answered in the same way again; what comes out differs by rounding alone.

Not covered: devices other than the CPU, which are given a thousand examples at a time and the net as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

BYTES = 10e6  # of the largest tensor on the way. Above some 20 MB the C library gives memory back after every layer and
# gets it anew, page by page, which doubles the time of the convnet of PyTorch's examples (2 cores, torch 2.13, glibc).
PORTIONS = (16, 1024)  # the fewest and the most at a time
ELSEWHERE = 1000
FEW = 2  # examples that are tried
WORTH = 4  # portions from which on a trial pays


def portion(net: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """How many examples to give a net at a time: a power of two that keeps every tensor on the way below 10 MB."""
    if inputs[0].device.type != "cpu":
        return ELSEWHERE
    few = tuple(column[:FEW] for column in inputs)
    with torch.no_grad(), _Largest(net) as seen:
        net(*few)
    largest = max([seen.bytes, *(column.nbytes for column in few)]) / len(few[0])
    fitting = max(1, int(BYTES / max(1.0, largest)))
    least, most = PORTIONS
    return min(most, max(least, 1 << (fitting.bit_length() - 1)))


class _Largest(TorchFunctionMode):
    """Notes the size of the largest tensor that is made on the way; weights are not made, they are there."""

    def __init__(self, net: nn.Module):
        self.bytes = 0
        self._known = {weight.untyped_storage().data_ptr() for weight in (*net.parameters(), *net.buffers())}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        plain = isinstance(made, Tensor) and made.layout == torch.strided
        if plain and made.untyped_storage().data_ptr() not in self._known:
            self.bytes = max(self.bytes, made.nbytes)
        return made


def quickest(net: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The net, or a copy whose convolutions work with the channels last, as the CPU's library wants them.

    The copy is taken only where it gives the same on a few examples as the net itself, within 1e-4 of the largest
    number; a net that cannot be copied, or that fails in this layout (`x.view(len(x), -1)` does), stays as it is.
    """
    planes = [weight for weight in net.parameters() if weight.ndim == 4]
    wanted = any(not weight.is_contiguous(memory_format=torch.channels_last) for weight in planes)
    if not wanted or inputs[0].device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return net
    few = tuple(column[:FEW] for column in inputs)
    with torch.no_grad():
        expected = net(*few)
        try:
            other = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            found = other(*few)
            near = 1e-4 * float(expected.abs().max())
            return other if torch.allclose(found, expected, rtol=0, atol=near) else net
        except Exception:  # whatever a user's net does not like about it
            return net
