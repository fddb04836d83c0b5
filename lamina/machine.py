"""The process made ready for arithmetic, for as long as a training lasts.

In: whether only exact means are allowed. Out: a context in which memory, small numbers and matrix products are handled as
fast as this machine can; everything is afterwards as it was. Used by the story; a loop of your own may use it as well.

- Memory that was freed is kept for the next step. glibc gives blocks of some megabytes back to the system at once, and
  the next step pays for every page again: a fifth of the time of a convnet. Nothing changes in the results.
- Denormal numbers, below 1.2e-38, are flushed to zero. They are a hundred times slower, and an optimiser makes them by
  itself: the momentum of a weight that gets no gradient halves until it is one. No weight notices.
- On a GPU, TensorFloat-32 in matrix products and convolutions, and convolutions chosen by trial.

Only the first is left with `strict`, and on a GPU sums get a fixed order.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # the names of mallopt's parameters in glibc's malloc.h
_LARGEST_KEPT = 1 << 30  # bytes: larger blocks come from the system and go back to it


@contextlib.contextmanager
def ready(strict: bool = False, threads: int | None = None) -> Iterator[None]:
    """Fast memory; so many threads; and unless `strict`, denormals flushed and TF32 on GPUs."""
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        if threads is not None:
            torch.set_num_threads(threads)
        if (libc := _glibc()) is not None:
            libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
            stack.callback(libc.malloc_trim, 0)
        if strict and torch.cuda.is_available():
            stack.enter_context(_fixed_order())
        if not strict:
            stack.enter_context(_flushed())
            if torch.cuda.is_available():
                stack.enter_context(_on_gpus(fast=True))
        yield


class Crowd:
    """Notices that other processes want the same cores, and does with one thread until they are gone.

    Torch's threads wait for each other by spinning, so one other busy process can cost more than its share: twice to forty
    times. They have come when steps take twice as long as before, when a few take most of the time again and again, or when
    the threads of the first steps got less of the cores than they would take. Ask it after every step with whether the step
    was followed by other work. A trial is a few steps with another number of threads; what it decides is returned in words,
    else nothing.
    """

    def __init__(
        self,
        threads: int,
        clock: Callable[[], float] = time.perf_counter,
        used: Callable[[], float] = time.process_time,
    ):
        self.most = self.threads = threads
        self._clock, self._used = clock, used
        self._last: tuple[float, float] | None = None  # the clock, and the seconds of all cores that this process had
        self._steps: list[float] = []
        self._shares: list[float] = []  # cores that this process had in those of the first window
        self._best = math.inf  # the median of the quickest window so far, with all threads
        self._trying = 0  # threads on trial
        self._before = math.inf  # the window that the trial is compared with
        self._not_until = -math.inf
        self._refused = math.inf  # the window that one thread was no better than
        self._stuck = 0  # windows in a row of which most of the time went into a few steps

    def __call__(self, interrupted: bool = False) -> str:
        """interrupted: what follows this step (a validation, a checkpoint) is not to be counted."""
        now, first = self._clock(), self._best == math.inf
        used = self._used() if first else 0.0  # which asks the system
        if self._last is not None:
            self._steps.append(now - self._last[0])
            if first:
                self._shares.append((used - self._last[1]) / max(now - self._last[0], 1e-9))
        self._last = None if interrupted else (now, used)
        if len(self._steps) < _WINDOW and not self._crawls():
            return ""
        window, mean = statistics.median(self._steps), statistics.fmean(self._steps)
        self._steps.clear()
        if self._trying:
            return self._decide(mean, now)
        if self.threads == self.most:
            slower = statistics.median(self._shares) < SHARE * self.most if first else window > 2 * self._best
            self._stuck = self._stuck + 1 if mean > 2 * self._best else 0
            if self._stuck == _STUCK:  # a step in twenty that takes a hundred times as long, which no median sees
                slower, window = True, mean
            self._best = min(self._best, window)
            due = now >= self._not_until or window > 2 * self._refused  # it has become another machine since
            if self.most > 1 and slower and due:
                self._try(1, window)
        elif now >= self._not_until:
            self._try(self.most, window)
        return ""

    def _crawls(self) -> bool:
        """Whether a window that is not full yet takes so long that nobody need wait for its end."""
        steps, best = self._steps, self._best
        long = _LONG if best == math.inf else 4 * _WINDOW * best
        return len(steps) >= _FEW and (best == math.inf or steps[-1] > 2 * best) and sum(steps) > long

    def _try(self, threads: int, window: float) -> None:
        self._trying, self._before, self._stuck = threads, window, 0
        torch.set_num_threads(threads)

    def _decide(self, window: float, now: float) -> str:
        tried, self._trying = self._trying, 0
        self._not_until = now + _PATIENCE
        if window < 0.8 * self._before:
            self.threads = tried
            many = "all are free again" if tried == self.most else "another process is busy"
            return f"{tried} thread{'s' if tried > 1 else ''} from here: {many}"
        if tried == 1:
            self._refused = self._before
        torch.set_num_threads(self.threads)
        return ""


_WINDOW = 24  # steps
_FEW = 6  # of them, to judge by where they take several times as long as a window did
_STUCK = 3  # windows; one step that takes long may be anything
_LONG = 0.3  # seconds of the first window, whose steps may be of a slow net
SHARE = 0.75  # of the cores that a process alone takes with its threads, which wait for each other by spinning
_PATIENCE = 10.0  # seconds between two trials


@functools.cache
def _glibc() -> Any:
    """The C library, where it is glibc; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def flushes() -> bool:
    """Whether this thread flushes denormals."""
    return float(torch.full((1,), 1e-30) * 1e-10) == 0.0


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """The mode belongs to a thread, and torch's threads take it from their maker: so they are made anew, now and after."""
    if flushes() or not torch.set_flush_denormal(True):  # already so, or this processor cannot
        yield
        return
    _new_threads()
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        _new_threads()


def _new_threads() -> None:
    """End the threads of OpenMP, which starts new ones when it needs them."""
    for library in _openmp():
        library.omp_pause_resource_all(1)


def _openmp() -> list[Any]:
    """The OpenMP runtimes that are loaded and can pause (OpenMP 5.0). There may be several: scikit-learn brings its own."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as lines:
            paths = {line.split(maxsplit=5)[-1].strip() for line in lines if "libgomp" in line or "libomp" in line}
    except OSError:  # not Linux
        return []
    libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    return [library for library in libraries if hasattr(library, "omp_pause_resource_all")]


@contextlib.contextmanager
def _fixed_order() -> Iterator[None]:
    """On a GPU only kernels whose sums have a fixed order; an operation that has none raises, and torch names it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # asked for by torch
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def full_precision() -> contextlib.AbstractContextManager[None]:
    """On a GPU float32 as it is, and kernels that are not chosen by trial: answers that are the same another day."""
    return _on_gpus(fast=False) if torch.cuda.is_available() else contextlib.nullcontext()


@contextlib.contextmanager
def _on_gpus(fast: bool) -> Iterator[None]:
    """TF32 and kernels chosen by trial, or neither."""
    cudnn = torch.backends.cudnn
    before = torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    _set_cuda(fast, fast, fast)
    try:
        yield
    finally:
        _set_cuda(*before)


def _set_cuda(matmul: bool, convolutions: bool, trial: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cudnn.benchmark = trial
