"""A net compiled by torch, for a GPU: what lies between its products in few kernels, where eager steps have one each.

In: a net, and what a step of it gives in three ways. Out: `Compiled`, which takes the place of what the net does for a while;
`differs`, whether a step may be made that way; `pays`, whether that is worth its time.

A recording replays the kernels of the eager step and has its bits. A compiled net has other kernels, which add up in another
order and round less often, so that it cannot be asked for the same bits. What it must not be is less exact than the eager
step; and since compilers err (torch 2.13 on a CPU gives no gradients to the first layers of some convnets), each gradient is
held against that of the eager step and against float32's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SAVED = 0.15  # of a step, at least, where compiling saves something
_LEAST = 8.0  # seconds to compile anything
_EVERY = 0.06  # and what stems from one recorded operation (a ResNet-18: 15 to 27 s in all, beside an H100)
_TIMES = 1.5  # as far from float32 as the eager step is, a gradient may be
_NOISE = 4.0  # the same where the eager gradient is rounding alone: chance has more room there
_NEAR = 0.01  # of a gradient's norm: always near enough
_SMALL = 1e-3  # of the norm that a gradient of its size has on average: always small enough
_FAR = 0.75  # of the norm of the eager step's gradient: never near enough


class Compiled:
    """What a net computes, as torch compiles it: when it is called, anew for each shape. Random masks are those of the net,
    number by number."""

    def __init__(self, net: nn.Module):
        self._net = net
        own = _with_its_own_code(net.forward)
        self._forward = torch.compile(own, dynamic=False, options={"fallback_random": True})

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, whoever calls the net calls this. The net is the same object all the while, and afterwards as before."""
        own = self._net.__dict__
        before = own.get("forward")  # of the net's own, where somebody has put one there
        own["forward"] = self._forward
        try:
            yield
        finally:
            if before is None:
                del own["forward"]
            else:
                own["forward"] = before


def _with_its_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function. Torch keeps what it compiled by the code, at most eight times, and then runs eagerly in silence;
    nets of one class, and all of torch's own, share theirs."""

    def own(*inputs: Any, **named: Any) -> Any:
        return function(*inputs, **named)

    own.__code__ = own.__code__.replace()  # equal, and another object
    return own


def pays(seconds: float, operations: int) -> bool:
    """Whether compiling a step of so many recorded operations is worth it, with so many seconds of such steps to come."""
    return _SAVED * seconds > 2 * (_LEAST + _EVERY * operations)


def differs(found: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor], first: int = 1) -> int | None:
    """Which of a step's tensors is further from the exact one than the eager step's own roundings explain: the first; or none.

    found, eager, exact: what a step of the compiled net gives, of the net, and of the net in float32: losses, and from number
    `first` on gradients; of the same shapes. With norms over all of a tensor, and `usual` the norm that as many numbers of an
    average gradient have (0 for a loss), each must fulfil

        |found - exact| <= 1.5 |eager - exact| + 0.01 |exact| + 0.001 usual
        |found - eager| <= 0.75 |eager|        + 0.01 |exact| + 0.001 usual

    A gradient that is nothing but rounding (of a bias before a normalisation, say) has |exact| < |eager| / 2: then 4 stands
    in place of 1.5, and the second line is not asked for.
    """
    norms = torch.stack([_norms(*three) for three in zip(found, eager, exact, strict=True)]).cpu()
    counts = torch.tensor([float(t.numel()) for t in eager], dtype=norms.dtype)
    usual = (norms[first:, 4].square().sum() / counts[first:].sum()).sqrt() * counts.sqrt()
    usual[:first] = 0.0
    off, own, apart, size, truth = norms.unbind(1)
    allowed = _NEAR * truth + _SMALL * usual
    noise = truth < size / 2
    right = off <= torch.where(noise, _NOISE, _TIMES) * own + allowed
    right &= noise | (apart <= _FAR * size + allowed)
    wrong = (~right).nonzero().flatten()  # numbers that are not finite are not right either
    return int(wrong[0]) if len(wrong) else None


@torch.no_grad()
def _norms(found: Tensor, eager: Tensor, exact: Tensor) -> Tensor:
    """(5,) of found - exact, eager - exact, found - eager, eager, exact. A tensor at a time is in double precision."""
    a, b, c = found.double(), eager.double(), exact.double()
    return torch.stack([torch.linalg.vector_norm(t) for t in (a - c, b - c, a - b, b, c)])
