"""Checkpoints written while the training goes on.

In: work, such as writing a copy of the state, under a key ("checkpoint", "best"). Out: the work done by one thread, in the
order in which it was given, so that a checkpoint is on the disk only after everything that came before it. Work that the
disk refuses stays, is tried again, and holds up what comes after it, but not the training. Called by training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lamina.errors import LaminaError, ResourceError, RunError

_REFUSED = (ResourceError, RunError)  # by the disk
AGAIN = 10.0  # seconds before work that was refused is tried again


class Writer:
    """One thread that writes, which lives as long as there is something to write. `warn` is called in the thread that
    gives the work."""

    def __init__(self, warn: Callable[[LaminaError], None]):
        self._warn = warn
        self._lock = threading.Lock()  # of the two below
        self._work: dict[str, Callable[[], None]] = {}  # what is not done yet, in order
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None  # why the first of the work is not done
        self._told = False
        self._again = 0.0  # when to try again, on the monotonic clock

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def give(self, key: str, work: Callable[[], None]) -> bool:
        """Have work done. Waits while earlier work of this key is still being done; what was refused by the disk gives
        way to the new, and then this is True."""
        if key in self._work:
            self._join()
        refused = key in self._work
        with self._lock:
            self._work[key] = work
        self._start()
        return refused

    def look(self) -> None:
        """Between steps: warn of what the disk refused, and try it again after a while. Other errors are raised."""
        if self._error is None or self._thread is not None:
            return
        if isinstance(self._error, _REFUSED) and not self._told:
            self._told = True
            self._warn(self._error)
        if not isinstance(self._error, _REFUSED) or time.monotonic() >= self._again:
            self._start()

    def wait(self) -> None:
        """Until all is on the disk; what was refused is tried once more, and if it is refused again, the error is raised."""
        self._join()
        if self._work:
            self._start()
            self._join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Until nothing is being written, whatever came of it."""
        self._join()

    def _start(self) -> None:
        with self._lock:
            if self._error is not None and not isinstance(self._error, _REFUSED):
                raise self._error
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lamina-writer", daemon=True)
                self._thread.start()

    def _join(self) -> None:
        if thread := self._thread:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                key = next(iter(self._work), None)
                if key is None:
                    self._error, self._told, self._thread = None, False, None
                    return
                work = self._work[key]
            try:
                work()
            except BaseException as error:
                with self._lock:
                    self._error, self._again, self._thread = error, time.monotonic() + AGAIN, None
                return
            with self._lock:
                del self._work[key]
