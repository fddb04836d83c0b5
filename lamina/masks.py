"""Dropout masks at the speed of arithmetic.

Torch draws the numbers of a mask one after the other from one generator, on one thread: for the activations of a convnet
that is an eighth of the step. Here one draw from the same generator is the key of a counter-based generator, SplitMix64
(Steele, Lea and Flood, 2014), which is computed for all places at once; each of its 64-bit numbers serves four places. So a
mask depends on the state of torch's generator and on nothing else, as torch's own does; the numbers are others. With 16 bits
a place, a probability is met to within 1 in 131,072; what is rarer than `RARE`, where that would be much, torch draws.

Only large masks are drawn so (`LARGE`), since the small ones cost next to nothing: with them a training has the very bits of
the loop by hand. In: a tensor and a probability. Out: the tensor, filled with 0 and 1. Used by `lanes`, in every step.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LARGE = 65_536  # numbers: about 0.3 ms of torch's generator
RARE = 1 / 256  # of ones, or of zeros: a probability of this is met to within 0.2 %

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # the constants of SplitMix64, as signed numbers
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))


@functools.lru_cache(maxsize=8)
def _places(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.int64, device="cpu") * _GAMMA


def fill(mask: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """1 with probability p, else 0, in place: what `mask.bernoulli_(p)` does."""
    n = mask.numel()
    slow = generator is not None or n < LARGE or not RARE <= p <= 1 - RARE
    if slow or mask.device.type != "cpu" or not mask.is_floating_point():
        return mask.bernoulli_(p, generator=generator)
    key = torch.empty(1, dtype=torch.int64, device="cpu").random_(-(2**63), None).item()
    x = _places(-(-n // 4)) + key
    step = torch.empty_like(x)
    for shift, multiplier in _ROUNDS:
        torch.bitwise_right_shift(x, shift, out=step)
        x.bitwise_xor_(step.bitwise_and_((1 << (64 - shift)) - 1))
        if multiplier != 1:
            x.mul_(multiplier)
    limit = round(p * 2**16) - 2**15  # of signed 16-bit numbers
    drawn = x.view(torch.int16)[:n]
    if mask.is_contiguous() or (mask.ndim == 4 and mask.is_contiguous(memory_format=torch.channels_last)):
        torch.lt(drawn, limit, out=mask.as_strided((n,), (1,), mask.storage_offset()))  # in the order of memory
        return mask
    return mask.copy_((drawn < limit).view(mask.shape))


class Fast(TorchDispatchMode):
    """While entered, large masks are drawn by `fill`. `seen` is whether there was one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is DRAW:
            self.seen = self.seen or args[0].numel() >= LARGE
            return fill(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


# Torch wraps this method to hide it from the compiler, and imports the compiler for that.
Fast.__torch_dispatch__ = inspect.unwrap(Fast.__torch_dispatch__)  # type: ignore[method-assign]

DRAW = torch.ops.aten.bernoulli_.float
