"""What is fastest here, for this net: found by a short measurement on a copy of it, before the first step.

In: a net, its objective, one batch. Out: a `Choice` of threads and precision, each with the figures it was chosen by, of the
memory layout, and whether the step can be recorded. Called by the story on the CPU, where these depend on the machine and the
net: small nets are faster on one thread, some processors compute bf16 twice as fast as fp32 and others half as fast. On a GPU
only `bears_channels_last` is asked.

Nothing is left behind: the net, the loss's own parameters and buffers and the generators are as before. A net whose `forward`
may leave traces elsewhere, or that cannot be copied, is not called. `strict` leaves layout and precision alone.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lamina import devices, lanes, machine, optimizers, purity
from lamina.batches import Batch, keeping_generators
from lamina.errors import UsageError
from lamina.layouts import likes_channels_last

_HEAVY = 0.005  # seconds a step: below this, another precision is not worth a trial
_LIGHT = 0.010  # seconds a step: above this, one thread is never faster than several that have a core each
_CROWDED = 0.2  # seconds a step: above this, nobody asks whether they have
_CLEAR = 1.2  # times as long with one thread: then it is not asked again
_LEARNED = 8  # steps by which precisions are compared


@dataclass
class Choice:
    threads: int
    channels_last: bool = False
    precision: str = "fp32"
    recorded: bool = False
    why_eager: str = ""
    seconds: float = math.nan  # a step's gradients
    reasons: dict[str, str] = field(default_factory=dict)  # of threads and precision


class _Way:
    """One way to make steps, on a net of its own."""

    def __init__(
        self, net: nn.Module, objective: Any, batch: Batch, *, precision: str, channels_last: bool, **options: Any
    ):
        net.train(net.training)
        if channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        device = next(net.parameters()).device
        optimizer = optimizers.make("sgd", [p for p in net.parameters() if p.requires_grad], 0.0)
        self.lane = lanes.Lane(net, objective, optimizer, autocast=devices.autocast(device, precision), **options)
        self.batch, self.cores = batch, math.inf
        with keeping_generators():
            for _ in range(3):  # eager, recorded, recorded again
                self.lane.gradients(batch)

    def seconds(self, least: int = 5, most: int = 50, budget: float = 0.02) -> float:
        """A step's gradients: median of at least 5 and at most 50, in about 20 ms. Sets `cores`, how many were had."""
        taken: list[float] = []
        with keeping_generators():
            self.lane.gradients(self.batch)
            before = time.process_time()
            while len(taken) < least or (len(taken) < most and sum(taken) < budget):
                began = time.perf_counter()
                self.lane.gradients(self.batch)
                taken.append(time.perf_counter() - began)
            self.cores = (time.process_time() - before) / sum(taken)
        return statistics.median(taken)


def choose(
    net: nn.Module,
    objective: Callable[..., tuple[Tensor, Any]],
    batch: Batch,
    *,
    threads: int | None = None,
    precision: str = "auto",
    strict: bool = False,
    compile: str = "auto",
    penalty: Any = None,
) -> Choice:
    """Measure, and choose. threads, precision: what was asked for; None and "auto" where nobody did."""
    here = torch.get_num_threads()
    found = Choice(threads or here, precision="fp32" if precision == "auto" else precision)
    options: dict[str, Any] = {"compile": compile, "strict": strict, "penalty": penalty}
    reading = read(net, objective, penalty)
    found.why_eager = why_eager(reading, found.precision, compile)
    if found.why_eager:  # calling it would not be without a trace
        return found
    try:
        own = copy.deepcopy(net)
    except Exception as error:  # a lock, a result of another step, ...: whatever the net holds
        found.why_eager = f"{type(net).__name__} cannot be copied for a trial ({type(error).__name__})"
        return found
    with _as_before(reading, batch, here):
        torch.set_num_threads(found.threads)
        way = None
        if not strict and likes_channels_last(net) and bears_channels_last(net, objective, batch, reading):
            try:
                way = _Way(own, objective, batch, precision=found.precision, channels_last=True, **options)
                found.channels_last = True
            except Exception:  # a backward of the net's own may fail
                own = copy.deepcopy(net)
        if way is None:
            way = _Way(own, objective, batch, precision=found.precision, channels_last=False, **options)
        found.recorded, found.why_eager, found.seconds = way.lane.recorded, way.lane.words, way.seconds()
        if threads is None and here > 1 and found.seconds < _LIGHT:
            _try_one_thread(found, way, here)
        elif threads is None and found.seconds < _CROWDED and way.cores < machine.SHARE * here:
            # Other processes are busy, and threads wait for each other: how long does it really take?
            torch.set_num_threads(1)
            found.seconds = min(found.seconds, way.seconds())
            torch.set_num_threads(here)
        heavy = not strict and found.seconds >= _HEAVY
        if heavy and precision == "auto" and "bf16" in devices.precisions(batch.inputs[0].device) and _has_bf16():
            other = _Way(
                copy.deepcopy(net), objective, batch, precision="bf16", channels_last=found.channels_last, **options
            )
            full, half = _in_turn(way, other)
            if half < 0.85 * full and _learn_alike(net, objective, batch, penalty):
                found.reasons["precision"] = _times(full, half, "fp32") + ", and it learns alike"
                found.precision, found.seconds = "bf16", half
    return found


def bears_channels_last(net: nn.Module, objective: Callable[..., Any], batch: Batch, reading: purity.Reading) -> bool:
    """Whether a copy of a net that has the channels last can be asked, as it learns and as it answers: `x.view(len(x), -1)`
    fails there."""
    try:
        own = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with keeping_generators(), _as_before(reading, batch, torch.get_num_threads()), torch.no_grad():
            objective(own, batch)
            own.eval()(*batch.ready().inputs)
    except Exception:
        return False
    return True


def read(net: nn.Module, objective: Any, penalty: Any) -> purity.Reading:
    """What a step of the net does, and reads."""
    return purity.Reading(net, [*getattr(objective, "parts", [objective]), *([penalty] if penalty is not None else [])])


def why_eager(reading: purity.Reading, precision: str, compile: str) -> str:
    """What speaks against recording a step, before the first is made; UsageError where it was asked for."""
    why = "its loss is scaled for fp16" if precision == "fp16" else reading.reason
    if why and compile == "on":  # said now, and not after a run was begun
        raise UsageError(f"compile is on, and this step cannot be recorded: {why}.", fix="compile=auto, or off")
    return why


@contextlib.contextmanager
def _as_before(reading: purity.Reading, batch: Batch, threads: int) -> Iterator[None]:
    """What a step writes to beside the copy of the net: a loss's parameters and buffers, the batch, threads."""
    buffers = [b for module in reading.modules for b in module.buffers()]
    buffers += [*reading.tensors, *(part for part in (*batch.inputs, batch.truth) if isinstance(part, Tensor))]
    values = [buffer.detach().clone() for buffer in buffers]
    gradients = [(p, p.grad) for module in reading.modules for p in module.parameters()]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        with torch.no_grad():
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)
        for p, gradient in gradients:
            p.grad = gradient


def _in_turn(one: _Way, other: _Way, rounds: int = 5) -> tuple[float, float]:
    """The quickest step of each, taking turns: what another process does to one it does to the other."""
    pairs = [(one.seconds(1, 3), other.seconds(1, 3)) for _ in range(rounds)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def _try_one_thread(found: Choice, way: _Way, here: int) -> None:
    several, alone = [found.seconds], []
    for _ in range(2):  # in turn, since one look may have met another process
        torch.set_num_threads(1)
        alone.append(way.seconds())
        torch.set_num_threads(here)
        if alone[0] > _CLEAR * several[0]:
            break  # and those who do not know better take all threads
        several.append(way.seconds())
    if min(alone) < 0.97 * min(several):
        found.reasons["threads"] = _times(min(several), min(alone), f"{here} threads")
        found.threads, found.seconds = 1, min(alone)
    else:
        found.reasons["threads"] = _times(min(alone), min(several), "one thread")


def _times(slower: float, faster: float, other: str) -> str:
    return f"{1e3 * faster:.2g} ms a step, {1e3 * slower:.2g} with {other}"


def _has_bf16() -> bool:
    """Whether the processor computes in bf16, and does not only convert."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _learn_alike(net: nn.Module, objective: Any, batch: Batch, penalty: Any) -> bool:
    """Whether a few steps on one batch take the loss down by the same amount in bf16 as in fp32, within a tenth."""
    falls = []
    device = batch.inputs[0].device
    with keeping_generators():
        state = torch.get_rng_state()
        for precision in ("fp32", "bf16"):
            torch.set_rng_state(state)
            own = copy.deepcopy(net).train(net.training)
            parameters = [p for p in own.parameters() if p.requires_grad]
            lane = lanes.Lane(own, objective, optimizers.make("adam", parameters, 1e-3), penalty=penalty,
                              autocast=devices.autocast(device, precision), compile="off")  # fmt: skip
            losses = []
            for _ in range(_LEARNED + 1):
                losses.append(float(lane.gradients(batch)[0]))
                lane.update()
            falls.append(losses[0] - losses[-1])
    first, other = falls
    return math.isfinite(other) and abs(other - first) <= 0.1 * abs(first)
