"""`lamina train SOURCE`: check, split, baseline, train, evaluate, report."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer

from lamina.cli.frame import Debug, Quiet, mapping, say, with_recipe
from lamina.imports import loading
from lamina.recipe import MAPPINGS


def _train(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A table (CSV, Parquet, Arrow, JSON lines, Excel, ARFF), a folder or archive of pictures, texts or tables, "
            "a pattern of files ('part-*.csv'); an .npz or IDX file; or digits, iris, wine, breast_cancer, diabetes, mnist."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Settings from a TOML file; flags go before it.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run's folder; a free number without it.")
    ] = None,
    runs: Annotated[str, typer.Option("--runs", help="Where run folders are made.")] = "runs",
    quiet: Quiet = False,
    debug: Debug = False,
    **settings: Any,
) -> None:
    with loading(for_good=True):
        from lamina import training
        from lamina.errors import UsageError

    if source is None and recipe is None:
        raise UsageError("No source was given.", expected="lamina train SOURCE", fix="lamina train digits")
    for key in MAPPINGS:
        if key in settings:
            settings[key] = mapping(settings[key], f"--{key.replace('_', '-')}")
    run = training.train(
        source,
        recipe=recipe,
        name=name,
        runs=runs,
        quiet=quiet,
        command=shlex.join(["lamina", *sys.argv[1:]]),
        **settings,
    )
    if quiet:
        say(f"{run.folder}\t{run.headline}")


train = with_recipe(_train)
