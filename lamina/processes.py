"""Copies of this process that work beside it, on systems that have them.

In: what is to be done. Out: what came of it (`beside`). A copy has all that was in memory when it was made, and shares it
until one of the two writes. It lives no longer than the process that made it, leaves Ctrl-C to it, and is the first that the
system ends when memory runs out. Threads of OpenMP do not outlive the copying: arithmetic in a copy has one thread.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import threadpoolctl
import torch

CAN = hasattr(os, "memfd_create") and hasattr(os, "fork")
PATIENCE = 20.0  # seconds after which work that is not done beside is done here
T = TypeVar("T")


def can() -> bool:
    """Whether this process can be copied. One that was made to end with its parent (a worker of a `multiprocessing.Pool`) may
    have no children."""
    return CAN and not multiprocessing.current_process().daemon


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def settle(parent: int, from_main: bool) -> None:
    """What a copy does first. parent: the process that made it; from_main: whether its main thread did."""
    if from_main:
        _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its copies
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")  # when memory runs out, rather this process than the trainer
    torch.set_num_threads(1)
    gc.freeze()  # what came from the parent is not looked through, and its pages stay shared


def _die_with(parent: int) -> None:
    """This process is ended with its parent, in the middle of its work too. Linux ends it with the thread that made it, so
    that must be the main one."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it has ended meanwhile
            os._exit(0)


def beside(work: Callable[[], T]) -> Callable[[], T]:
    """Begin work in a copy of this process, and go on; gives what waits for what comes out of it. Where there can be no copy,
    or where it comes to grief, the work is done here, once somebody waits for it."""
    if not can() or cores() < 2:
        return work
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_do, args=(os.getpid(), in_main_thread(), work, theirs, ours), daemon=True)
    try:
        process.start()
    except OSError:  # too many processes, or no memory for one more
        ours.close()
        return work
    finally:
        theirs.close()

    def wait() -> T:
        done, found = False, None
        with ours, contextlib.suppress(EOFError, OSError):
            if ours.poll(PATIENCE):
                done, found = True, ours.recv()
        if not done:
            process.kill()
        process.join()
        return found if done else work()  # type: ignore[return-value]  # whatever is wrong with it is seen here

    return wait


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """A core is left to others meanwhile: of threads that work together, all wait for the one that has no core."""
    before, fewer = torch.get_num_threads(), max(1, cores() - 1)
    with threadpoolctl.threadpool_limits(min(before, fewer)):  # those of numpy and scikit-learn
        torch.set_num_threads(min(before, fewer))
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _do(parent: int, from_main: bool, work: Callable[[], Any], pipe: Any, theirs: Any) -> None:
    settle(parent, from_main)
    theirs.close()
    try:
        found = work()
    except Exception:  # it is told by whoever does it again
        return
    with contextlib.suppress(OSError):  # nobody waits any more
        pipe.send(found)
