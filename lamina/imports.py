"""Heavy libraries, loaded without a search for garbage, and ahead of their use.

In: nothing, or names of modules. Out: a context in which the collector of cycles rests (`loading`), and a thread that loads
(`ahead`). Called wherever torch, scikit-learn or matplotlib is loaded. What is loaded stays, so there is nothing to collect;
yet the collector walks through all of it again and again, which is a fifth of the time that loading takes.
"""

from __future__ import annotations

import gc
import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def loading(*, for_good: bool = False) -> Iterator[None]:
    """Imports inside are not searched for garbage. Where the collector is off already, it stays off.

    for_good: nor is what lives by then ever looked through again; for a process that is all ours, since what a caller
    left behind before would never be collected.
    """
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if for_good:
            gc.freeze()
        if active:
            gc.enable()


def ahead(*names: str) -> threading.Thread:
    """Load modules in a thread, while this one computes. Whoever imports one of them meanwhile waits for it; of what cannot be
    loaded nothing is said here, since whoever needs it will be told."""

    def load() -> None:
        with suppress(ImportError), loading():
            for name in names:
                importlib.import_module(name)

    thread = threading.Thread(target=load, name="lamina imports")
    thread.start()
    return thread
