"""Signals of a training: a first Ctrl-C or SIGTERM waits for the step, and a closed terminal stops nothing.

In: the signals of the system, while a `Signals` is entered. Out: `received`, which the loop looks at after every step, or
an `Interrupted` raised where the work stands. Called by `training`.

    first SIGINT, SIGTERM     noted; the step is finished and saved, and the run ends with 130 or 143
    GRACE seconds later       like a second one: the run ends where it stands, in its newest checkpoint
    second                    at once
    SIGHUP                    the screen falls silent, the log goes on

Ending at once damages nothing: whatever lasts is written beside the old and renamed. Python answers signals between its own
instructions only, so a thread watches too: a main thread that is stuck elsewhere is ended, unless somebody is typing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from lamina.errors import Interrupted

GRACE = 20.0  # seconds from the first signal to the end
STUCK = 2.0  # seconds that the main thread has, to answer what must be answered at once
_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Ctrl-C and SIGTERM: while steps are made the first is noted, and answered after the step; else, and the second
    time, it acts at once."""

    def __init__(self, folder: Path) -> None:
        self.received = 0
        self.patient = False  # steps are being made
        self._folder = folder
        self._old: dict[int, Any] = {}
        self._terminals: list[int] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._terminals = [number for number in (0, 1, 2) if _is_terminal(number)]
        for number in _STOPPING:
            self._old[number] = signal.signal(number, self._note)
        if os.name != "nt":
            self._old[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hang_up)
            self._ear, self._mouth = os.pipe()
            os.set_blocking(self._mouth, False)
            self._before = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="lamina-signals", daemon=True)
            self._thread.start()
        return self

    def _note(self, number: int, frame: Any) -> None:
        again, self.received = self.received, number
        if again or not self.patient:
            raise self.answer(
                f"Stopped at once{' by a second signal' if again else ''}. The run is kept in {self._folder}."
            )

    def _hang_up(self, number: int, frame: Any) -> None:
        """The terminal is closed, perhaps: what would be written to it, or read, goes nowhere."""
        for place in [place for place in self._terminals if not _is_terminal(place)]:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, place)
            os.close(nowhere)

    def _watch(self) -> None:
        """In a thread: after GRACE a second signal is sent; after the second one, and STUCK seconds, the process ends."""
        heard: list[int] = []
        while len(heard) < 2:
            if select.select([self._ear], [], [], GRACE if heard else None)[0]:
                told = os.read(self._ear, 64)
                if not told or 0 in told:  # left
                    return
                heard += [number for number in told if number in _STOPPING]
            else:
                os.kill(os.getpid(), heard[0])  # which is heard here too
        if select.select([self._ear], [], [], STUCK)[0] and 0 in os.read(self._ear, 64):
            return
        if not hasattr(sys, "ps1"):
            with contextlib.suppress(OSError):
                os.write(2, f"stopped: at once. The run is kept in {self._folder}.\n".encode())
            os._exit(128 + heard[0])

    def answer(self, words: str) -> Interrupted:
        return Interrupted(words, fix=f"lamina resume {self._folder}", signal=self.received)

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.received, self.patient = 0, True  # one that comes now is noted, and answered when all is put back
        if self._thread is not None:
            signal.set_wakeup_fd(self._before)
            os.write(self._mouth, b"\0")
            self._thread.join()
            os.close(self._ear)
            os.close(self._mouth)
        for number, old in self._old.items():
            signal.signal(number, old)
        if self.received and kind is None:
            raise self.answer(f"Stopped at the end. The run is kept in {self._folder}.")


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False
