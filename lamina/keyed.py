"""Random numbers as a function, not as a state.

In: a seed, an epoch, examples' indices and a purpose ("shift", "flip", ...). Out: the same numbers for the same four,
whatever the batch they came in, the number of workers, the device or the history. So batch k of epoch e is found without
walking through the batches before it, and a resumed run augments as the uninterrupted one would have.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), in wrapping 64-bit integer arithmetic that is the same on every device. Not for cryptography.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio, as a signed 64-bit integer
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch has only the arithmetic one for int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def number(seed: int, *words: int | str) -> int:
    """One 63-bit number of a seed and any words: the seed of a generator, say."""
    text = "\0".join([str(int(seed)), *map(str, words)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order of `n` examples in an epoch: int64 (n,), on the CPU."""
    generator = torch.Generator().manual_seed(number(seed, "order", epoch))
    return torch.randperm(n, generator=generator)


@dataclass(frozen=True)
class Key:
    """Whose random numbers: `indices` (B,) int64 on the batch's device, in an epoch of a run with a seed."""

    seed: int
    epoch: int
    indices: Tensor

    def bits(self, purpose: str, draws: int = 1) -> Tensor:
        """(B, draws) int64, all 64 bits random."""
        base = number(self.seed, purpose, self.epoch)
        x = _mix(self.indices.long() * _GAMMA + base)
        steps = torch.arange(1, draws + 1, device=x.device, dtype=torch.int64) * _GAMMA
        return _mix(x[:, None] + steps)

    def uniform(self, purpose: str, draws: int = 1, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, draws) float32 in [low, high): 24 random bits, each exactly representable."""
        unit = _shift(self.bits(purpose, draws), 40).float() * 2.0**-24
        return unit * (high - low) + low

    def normal(self, purpose: str, draws: int = 1) -> Tensor:
        """(B, draws) float32, standard normal (Box and Muller, 1958)."""
        u = self.uniform(purpose, 2 * draws)
        radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :draws]))
        return radius * torch.cos(2.0 * torch.pi * u[:, draws:])

    def integers(self, purpose: str, low: int, high: int, draws: int = 1) -> Tensor:
        """(B, draws) int64 in [low, high] (both ends included)."""
        return low + (self.uniform(purpose, draws) * (high - low + 1)).long().clamp_(max=high - low)
