"""`lamina resume RUN`: go on where it stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from lamina.cli.frame import Debug, OwnDomain, OwnNet, OwnTask, Quiet, say
from lamina.imports import loading


def resume(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    net: OwnNet = None,
    loss: Annotated[str | None, typer.Option("--loss", help="Your own loss' code: FILE.py:FUNCTION.")] = None,
    domain: OwnDomain = None,
    task: OwnTask = None,
    accept_data_change: Annotated[
        bool, typer.Option("--accept-data-change", help="Go on with data that changed, of the same classes and shapes.")
    ] = False,
    restart_epoch: Annotated[
        bool,
        typer.Option(
            "--restart-epoch", help="Walk the epoch under way from its beginning, with the weights as they are."
        ),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    with loading(for_good=True):
        from lamina import training
        from lamina.run import facts

    if facts(run)["status"] == "done":
        training.resume(run, quiet=True)  # which only tidies up
        say(f"{run} is done: there is nothing to resume.")
        return
    found = training.resume(
        run,
        net=net,
        loss=loss,
        domain=domain,
        task=task,
        accept_data_change=accept_data_change,
        restart_epoch=restart_epoch,
        quiet=quiet,
    )
    if quiet:
        say(f"{found.folder}\t{found.headline}")
