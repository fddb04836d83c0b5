"""What goes wrong, said once and well.

In: facts, from whoever met the trouble. Out: one message in three parts (what happened, with the values; what was
expected; how to fix it) and the exit code of its kind. Everything a user can cause is a `LaminaError`; the command line
prints it without a traceback, Python shows it as any exception. Anything else that escapes is a defect of Lamina.
A stop is no error, and no `Exception`: it comes at any time, and `except Exception` in whatever code is at work then
must not take it for that code's own failure.

    LaminaError
    ├── UsageError      2   the request itself: an unknown name, a wrong value, a net that does not fit, a run in use
    ├── DataError       3   the data: unreadable, contradictory, not finite
    ├── RunError        4   a run folder or checkpoint: damaged, from another version
    ├── Diverged        5   training produced a loss or weights that are not finite
    └── ResourceError   6   disk, memory, permission
    Interrupted       130   Ctrl-C or SIGTERM (143); the run is saved and can be resumed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


class _Told(BaseException):
    """`what` happened, what was `expected`, and how to `fix` it."""

    exit_code = 1

    def __init__(self, what: str, *, expected: str = "", fix: str = ""):
        self.what, self.expected, self.fix = what, expected, fix
        parts = [what]
        if expected:
            parts.append(f"Expected: {expected}")
        if fix:
            parts.append(f"Fix: {fix}")
        super().__init__("\n".join(parts))


class LaminaError(_Told, Exception):
    """Something a user can mend. `what` happened, what was `expected`, and how to `fix` it."""


class UsageError(LaminaError, ValueError):
    exit_code = 2


class DataError(LaminaError, ValueError):
    exit_code = 3


class RunError(LaminaError):
    exit_code = 4


class Diverged(LaminaError, ArithmeticError):
    exit_code = 5
    step = 0  # counted from 1: the step that was not applied
    layer = ""  # the first whose output or gradient is not finite, where one is to blame
    rows: Sequence[int] = ()  # the examples, where only some of the batch are at fault


class ResourceError(LaminaError, OSError):
    exit_code = 6


class Interrupted(_Told, KeyboardInterrupt):
    """Ctrl-C (130) or SIGTERM (143). A `KeyboardInterrupt`, as a caller's own handling of Ctrl-C expects it."""

    def __init__(self, what: str, *, fix: str = "", signal: int = 2):
        super().__init__(what, fix=fix)
        self.exit_code = 128 + signal


class Unusable(UserWarning):
    """Some inputs have no answer: `broken` has, by their place among all of them, the name of each, and why."""

    def __init__(self, what: str, broken: Mapping[int, tuple[str, str]]):
        super().__init__(what)
        self.broken = dict(broken)


def near(name: str, known: Iterable[str]) -> str:
    """'did you mean ...?' for a mistyped name, or the known names when none is near."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if matches:
        return f"did you mean {' or '.join(repr(match) for match in matches)}?"
    return f"known are: {', '.join(known)}" if known else "none is known here"


def rows(indices: Iterable[int], most: int = 5) -> str:
    """'rows 3, 17, 40 and 12 more': the first few of many indices, for messages."""
    indices = list(indices)
    shown = ", ".join(str(int(index)) for index in indices[:most])
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return f"row{'s' if len(indices) != 1 else ''} {shown}{more}"


# Torch has a class of its own for a GPU's memory, a RuntimeError, and none for the machine's.
_MEMORY = ("can't allocate memory", "std::bad_alloc", "not enough memory", "out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python's, numpy's or torch's says that memory is used up."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY)
    )


_UNSEEN_AND_FINE = "\n\t\u00a0\u200c\u200d\u3000"  # wide spaces; what joins letters and emoji


def printable(text: str) -> str:
    """Text from a file as a screen or a page may show it: other characters that are not seen, such as the control codes
    that a terminal obeys and the marks that turn the direction of writing, become \ufffd."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _UNSEEN_AND_FINE else "\ufffd" for c in text)
