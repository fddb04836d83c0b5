"""Seconds: of a call, of the device, and who else used the processor meanwhile.

In: something to call, and how long it may take. Out: the median of several rounds, since a machine that is shared is
slow for moments and never fast by chance.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROUNDS = 7


def wait(device: torch.device) -> None:
    """Until the device has done what it was told. The CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def per_call(function: Callable[[], Any], device: torch.device, seconds: float = 0.2) -> float:
    """Seconds a call takes: the median of rounds of so many calls that all of them together take about `seconds`."""
    function()
    wait(device)
    calls, took = 1, 0.0
    while True:  # doubled until a round is long against the clock: this also warms up
        began = time.perf_counter()
        for _ in range(calls):
            function()
        wait(device)
        took = time.perf_counter() - began
        if took >= seconds / ROUNDS / 2:
            break
        calls *= 2
    calls = max(1, round(calls * seconds / ROUNDS / took))
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        wait(device)
        rounds.append((time.perf_counter() - began) / calls)
    return statistics.median(rounds)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for the arithmetic on the CPU; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Company:
    """How many processors others used meanwhile: `with Company() as company: ...; company.cores`. None where the system
    does not tell (it is read from /proc/stat)."""

    cores: float | None = None

    def __enter__(self) -> Company:
        self._began, self._before = time.perf_counter(), _used()
        return self

    def __exit__(self, *_: Any) -> None:
        now, took = _used(), time.perf_counter() - self._began
        if now is not None and self._before is not None and took > 0:
            self.cores = max(0.0, ((now[0] - self._before[0]) - (now[1] - self._before[1])) / took)


def _used() -> tuple[float, float] | None:
    """Processor seconds used by the whole machine, and by this process with the children it has waited for."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = ticks
    own = os.times()
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy, own.user + own.system + own.children_user + own.children_system
