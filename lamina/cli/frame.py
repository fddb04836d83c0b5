"""The frame round the verbs: one application whose commands are imported when they are asked for.

In: the table of verbs. Out: a Typer application. Options of `train` come from the fields of the recipe (`with_recipe`),
so the field list is the command line.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from lamina.cli import VERBS, Carried, verb
from lamina.errors import printable

UsageMistake: type[Exception] = typer.BadParameter.__bases__[0]  # Click's UsageError, wherever Typer keeps its Click

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
OwnNet = Annotated[
    str | None, typer.Option("--net", help="Your own net's code, for a run that was trained with it: FILE.py:CLASS.")
]
OwnDomain = Annotated[str | None, typer.Option("--domain", help="Your own domain's code: FILE.py:CLASS.")]
OwnTask = Annotated[str | None, typer.Option("--task", help="Your own target's code: FILE.py:CLASS.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, mps or auto.")]


def say(text: str) -> None:
    """Lines on the screen, whatever a file's names or labels hold."""
    typer.echo(printable(text))


class Verbs(TyperGroup):
    """Commands by name; for the list of them their modules are not needed."""

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        if self.listing:
            return TyperCommand(cmd_name, callback=None, params=[], help=VERBS[cmd_name])
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cmd_name, help=VERBS[cmd_name])(_carrying(verb(cmd_name)))
        return typer.main.get_command(app)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from lamina.errors import UsageError, near

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise UsageError(f"There is no verb {args[0]!r}: {near(args[0], VERBS)}", fix="lamina --help")
        return super().resolve_command(ctx, args)


def _carrying(function: Callable[..., Any]) -> Callable[..., Any]:
    """A verb whose Ctrl-C and broken pipe reach `main` as they are."""

    @functools.wraps(function)
    def wrapped(**given: Any) -> Any:
        try:
            return function(**given)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise Carried(error) from error

    return wrapped


def show_version(wanted: bool) -> None:
    """`lamina --version`."""
    if wanted:
        from lamina import __version__

        typer.echo(__version__)
        raise typer.Exit


def application() -> Any:
    app = typer.Typer(
        cls=Verbs, add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False
    )

    @app.callback(epilog="lamina VERB --help tells the rest.  First: lamina train digits")
    def lamina(
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Say which.")
        ] = False,
    ) -> None:
        """From data to a deep neural network that is trained, measured, understood and in use."""

    return typer.main.get_command(app)


def with_recipe(function: Callable[..., Any], without: tuple[str, ...] = ("source",)) -> Callable[..., Any]:
    """Give a verb an option for every field of the recipe. Values stay text: the recipe validates them all at once."""
    from lamina.recipe import FIELDS, MAPPINGS

    own = inspect.signature(function, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    for name, field in FIELDS.items():
        if name in without:
            continue
        flag, words = f"--{name.replace('_', '-')}", field.description or ""
        choices = [c for part in get_args(field.annotation) for c in get_args(part) if isinstance(c, str)]
        words += f" One of {', '.join(choices)}." if len(choices) > 1 else ""
        if name in MAPPINGS:
            kind: Any = Annotated[list[str] | None, typer.Option(flag, metavar="K=V", help=f"{words} Repeatable.")]
        elif field.annotation == list[str] | None:
            kind = Annotated[list[str] | None, typer.Option(flag, metavar="COLUMN", help=f"{words} Repeatable.")]
        elif field.annotation == bool | None:
            kind = Annotated[bool | None, typer.Option(f"{flag}/--no-{name.replace('_', '-')}", help=words)]
        else:
            kind = Annotated[str | None, typer.Option(flag, metavar=name.rpartition("_")[2].upper(), help=words)]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))

    def wrapped(**given: Any) -> Any:
        return function(**{key: entry for key, entry in given.items() if entry is not None and entry != []})

    wrapped.__doc__ = function.__doc__
    wrapped.__name__ = function.__name__
    parameters.sort(key=lambda p: p.kind)
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def mapping(entries: list[str], flag: str) -> dict[str, Any]:
    """['k=v', ...] -> {k: v}, values read as numbers, booleans or lists where they look so."""
    from lamina.errors import UsageError
    from lamina.recipe import value

    found = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{flag} {entry!r} has no '='.", expected=f"{flag} NAME=VALUE")
        found[key.strip()] = value(text)
    return found
