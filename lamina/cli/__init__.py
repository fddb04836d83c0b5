"""The command line: `lamina VERB ...`, a verb a file.

In: the words a person typed. Out: what the verb prints, and an exit code: 0 success, 2 usage, 3 bad data, 4 bad run or
checkpoint, 5 diverged, 6 out of resources, 130 or 143 interrupted. Errors go to stderr in three parts (what, expected,
fix), without a traceback unless `--debug`. A verb's module is imported only when it runs; `--help` loads no torch.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import warnings
from typing import Any

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
    "bench": "How fast this machine is, or a run, and what would help.",
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `lamina` command."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:  # where there is no run that could be resumed
        print("stopped: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader has enough: `lamina predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if arguments is None:
        gc.freeze()  # the process ends here: to look through all that is loaded once more takes a quarter of a second
    sys.exit(code)


class Carried(Exception):
    """Ctrl-C, or a reader that went away, on its way past Typer, which has answers of its own to them."""

    def __init__(self, error: BaseException):
        self.error = error


def _warn(message: Any, category: Any, *place: Any, **more: Any) -> None:
    """A warning in our form, without the line of code it came from."""
    print(f"warning: {message}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    with loading():
        from lamina.cli.frame import UsageMistake, application
        from lamina.errors import LaminaError

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
    except LaminaError as error:
        if "--debug" in arguments:
            raise
        _print_error(error)
        return error.exit_code
    except (MemoryError, OSError) as error:
        if "--debug" in arguments or isinstance(error, BrokenPipeError):
            raise
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 6


def _print_mistake(mistake: Any) -> None:
    """A mistake in the words typed, as Typer found it, in our form; without words, the help."""
    if type(mistake).__name__ == "NoArgsIsHelpError":
        print(mistake.format_message(), file=sys.stderr)
        return
    print(f"error: {mistake.format_message()}", file=sys.stderr)
    print(f"fix: {mistake.ctx.command_path if mistake.ctx else 'lamina'} --help", file=sys.stderr)


def _print_error(error: Any) -> None:
    """The three parts of an error, each on its own lines."""
    from lamina.errors import Interrupted

    head = "stopped" if isinstance(error, Interrupted) else "error"
    print(f"{head}: {error.what}", file=sys.stderr)
    if error.expected:
        print(f"expected: {error.expected}", file=sys.stderr)
    if error.fix:
        print(f"{'go on' if head == 'stopped' else 'fix'}: {error.fix}", file=sys.stderr)


def verb(name: str) -> Any:
    """The function of a verb."""
    return getattr(importlib.import_module(f"lamina.cli.{name}"), name)
