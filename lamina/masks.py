"""Dropout masks at the speed of arithmetic.

Torch draws 64 bits of its Mersenne Twister for every place of a mask: for the activations of a convnet that is an eighth of
the step. Here they serve 32 places (a half, a quarter), eight, or four. So a mask depends on the state of torch's generator
and on nothing else, as torch's own does; it is another one. A probability is met exactly where it is a multiple of 1/256, else
to within 1 in 131,072; what is rarer than `RARE`, where that would be much, torch draws.

Only large masks are drawn so (`LARGE`), since the small ones cost next to nothing: with them a training has the very bits of
the loop by hand. In: a tensor and a probability. Out: the tensor, filled with 0 and 1. Used by `quicker`.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 8_192  # numbers: torch takes 0.1 ms for them, which is a third of a small net's step
RARE = 1 / 256  # of ones, or of zeros: a probability of this is met to within 0.2 %
_PLACES = torch.tensor([[1], [4], [16], [64]], dtype=torch.uint8)  # of two bits in a byte


def fill(mask: Tensor, p: float = 0.5, *, generator: torch.Generator | None = None) -> Tensor:
    """1 with probability p, else 0, in place: what `mask.bernoulli_(p)` does."""
    n = mask.numel()
    slow = generator is not None or n < LARGE or not RARE <= p <= 1 - RARE
    if slow or mask.device.type != "cpu" or not mask.is_floating_point():
        return mask.bernoulli_(p, generator=generator)
    bits = next(bits for bits in (2, 8, 16) if bits == 16 or (p * 2**bits).is_integer())
    words = torch.empty(-(-n * bits // 64), dtype=torch.int64, device="cpu").random_(-(2**63), None)  # of 64 bits
    dense = mask.is_contiguous() or (mask.ndim == 4 and mask.is_contiguous(memory_format=torch.channels_last))
    dense = dense and (bits != 2 or n % 4 == 0)
    size = 4 * -(-n // 4)  # four quarters of the same length
    # The mask in the order of memory.
    flat = mask.as_strided((n,), (1,), mask.storage_offset()) if dense else mask.new_empty(size)
    if bits == 2:
        drawn = words.view(torch.uint8)[: size // 4] & 3 * _PLACES  # two bits of each byte for each quarter of the mask
        torch.lt(drawn, int(p * 4) * _PLACES, out=flat.view(4, -1))
    else:
        drawn = words.view(torch.int8 if bits == 8 else torch.int16)[:n]
        torch.lt(drawn, round(p * 2**bits) - 2 ** (bits - 1), out=flat[:n])  # of signed numbers
    return mask if dense else mask.copy_(flat[:n].view(mask.shape))
