"""Whether a step gives the same bits when it is made twice.

In: a net, its objective and a batch. Out: nothing, or a UsageError that names the first operation whose result differs, and its
layer. Forward and backward are made twice on a copy of the net, with the same random numbers (python's, numpy's, torch's) and
the same buffers; every result of every operation is compared, to the bit. Asked by `train` and `resume` with `strict`.
On a GPU, where some operations differ only seldom, torch raises for those that it knows (see `machine`), which is said too.

What differs then cannot be made again by a resumed run either: numbers from a generator of one's own or from the system, the
clock, a counter that `forward` keeps, sums that are made in any order.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lamina import tape, tracing
from lamina.batches import Batch
from lamina.errors import UsageError
from lamina.state import all_generators, set_all_generators

_FIX = (
    "random numbers from torch's own generator (torch.rand, F.dropout); nothing that a forward() counts; or no --strict"
)


def check(
    net: nn.Module, objective: Callable[..., Any], batch: Batch, *, penalty: Any = None, autocast: Any = None
) -> None:
    """UsageError where two steps on this batch differ. Afterwards net and generators are as they were."""
    with contextlib.suppress(Exception):  # some nets cannot be copied: then it is made on the net itself
        net = copy.deepcopy(net)
    buffers = [(buffer, buffer.detach().clone()) for buffer in net.buffers()]
    modes = [(module, module.training) for module in net.modules()]
    before = all_generators()
    try:
        first, second = (_made(net, objective, batch, penalty, autocast, before, buffers) for _ in range(2))
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        words = str(error).splitlines()[0]
        raise UsageError(f"strict is on, and sums of a step have no fixed order: {words}", fix=_FIX) from error
    finally:
        set_all_generators(before)
        _restore(buffers)
        for module, mode in modes:
            module.training = mode
    for (name, place, result), again in zip(first, second, strict=False):
        if (name, place, result) != again:
            where = f"in layer {place}" if place else "outside the layers"
            what = f"{name} gives other bits" if name == again[0] else f"{again[0]} comes in the place of {name}"
            raise UsageError(f"strict is on, and a step that is made twice differs: {where} {what}.", fix=_FIX)
    if len(first) != len(second):
        raise UsageError("strict is on, and a step that is made twice ends in other operations.", fix=_FIX)


def _made(
    net: nn.Module,
    objective: Callable[..., Any],
    batch: Batch,
    penalty: Any,
    autocast: Any,
    generators: Any,
    buffers: Any,
) -> list[tuple[str, str, bytes]]:
    """Every operation of a step: its name, its layer, and a digest of what it gave."""
    _restore(buffers)
    set_all_generators(generators)
    if not net.training:
        net.train()
    seen: list[tuple[str, str, bytes]] = []

    def look(function: Any, place: str, given: Any, results: Any) -> None:
        if function not in tape.EMPTY:  # whatever was in that memory
            seen.append((str(function), place, _digest(results)))

    with tracing.Trace(net, look), torch.enable_grad(), autocast or contextlib.nullcontext():
        value, _ = objective(net, batch)
        value = value if penalty is None else value + penalty(net)
        torch.autograd.grad(value, [p for p in net.parameters() if p.requires_grad], allow_unused=True)
    return seen


def _restore(buffers: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)


def _digest(results: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tracing.tensors(results):
        if tensor.layout == torch.strided:
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
