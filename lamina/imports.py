"""Heavy libraries, loaded without a search for garbage.

In: nothing. Out: a context in which the collector of cycles rests. Called wherever torch, scipy, scikit-learn or matplotlib is
loaded. What is loaded stays, so there is nothing to collect; yet the collector walks through all of it again and again,
which is a fifth of the time that loading takes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
