"""The command line: `lamina VERB ...`, a verb a file.

In: the words a person typed. Out: what the verb prints, and an exit code: 0 success, 2 usage, 3 bad data, 4 bad run or
checkpoint, 5 diverged, 6 out of resources, 130 or 143 interrupted. Errors go to stderr in three parts (what, expected,
fix), without a traceback unless `--debug`. A verb's module is imported only when it runs; `--help` loads no torch.
"""

from __future__ import annotations

import errno
import gc
import importlib
import keyword
import os
import sys
import warnings
from typing import Any

from lamina.errors import printable
from lamina.imports import loading

VERBS = {
    "train": "Train a net, measure it on unseen data, write a run.",
    "resume": "Go on with a run where it stopped.",
    "evaluate": "Scores of a run, on held-out or given data.",
    "predict": "Answers of a run for new inputs.",
    "compare": "Is one run better than another? Paired.",
    "check": "What is wrong with these data, before an hour is spent.",
    "checkpoints": "List the checkpoints of a run and verify them.",
    "report": "Write the report of a run again.",
    "import": "Weights of others -> safetensors, running nothing.",
    "bench": "How fast this machine is, or a run, and what would help.",
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `lamina` command."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # where there is no run that could be resumed
        _say("stopped: interrupted")
        code = 130
    except BrokenPipeError:  # the reader has enough: `lamina predict ... | head`
        code = 0
    try:
        sys.stdout.flush()
    except OSError as error:  # nobody reads any more, or the file's disk is full
        _forget(sys.stdout)
        code = code or (0 if error.errno in (errno.EPIPE, errno.EIO) else 6)
    if arguments is None:
        gc.freeze()  # the process ends here: to look through all that is loaded once more takes a quarter of a second
    sys.exit(code)


class Carried(Exception):
    """Ctrl-C, or a reader that went away, on its way past Typer, which has answers of its own to them."""

    def __init__(self, error: BaseException):
        self.error = error


def _say(*lines: str) -> None:
    """On stderr, if anybody is there: a closed terminal must not stop what is warned of."""
    try:
        print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)
    except OSError:
        _forget(sys.stderr)


def _forget(stream: Any) -> None:
    """What was not read goes nowhere: else the interpreter would try again when it ends, and give a code of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _warn(message: Any, category: Any, *place: Any, **more: Any) -> None:
    """A warning in our form, without the line of code it came from."""
    _say(f"warning: {message}")


def _run(arguments: list[str]) -> int:
    with loading():
        from lamina.cli.frame import UsageMistake, application
        from lamina.errors import Interrupted, LaminaError

    warnings.showwarning = _warn
    try:
        try:
            result = application()(arguments, prog_name="lamina", standalone_mode=False)
        except Carried as carried:
            raise carried.error from None
        return result if isinstance(result, int) else 0
    except UsageMistake as mistake:
        _print_mistake(mistake)
        return 2
    except (LaminaError, Interrupted) as error:
        if "--debug" in arguments:
            raise
        _print_error(error)
        return error.exit_code
    except (MemoryError, OSError) as error:
        if "--debug" in arguments or isinstance(error, BrokenPipeError):
            raise
        _say(f"error: {type(error).__name__}: {error}")
        return 6


def _print_mistake(mistake: Any) -> None:
    """A mistake in the words typed, as Typer found it, in our form; without words, the help."""
    if type(mistake).__name__ == "NoArgsIsHelpError":
        _say(mistake.format_message())
        return
    _say(f"error: {mistake.format_message()}", f"fix: {mistake.ctx.command_path if mistake.ctx else 'lamina'} --help")


def _print_error(error: Any) -> None:
    """The three parts of an error, each on its own lines."""
    from lamina.errors import Interrupted

    head = "stopped" if isinstance(error, Interrupted) else "error"
    parts = {head: error.what, "expected": error.expected, "go on" if head == "stopped" else "fix": error.fix}
    _say(*(f"{part}: {words}" for part, words in parts.items() if words))


def verb(name: str) -> Any:
    """The function of a verb."""
    word = f"{name}_" if keyword.iskeyword(name) else name
    return getattr(importlib.import_module(f"lamina.cli.{word}"), word)
