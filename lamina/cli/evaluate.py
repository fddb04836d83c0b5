"""`lamina evaluate RUN [SOURCE]`: scores with intervals."""

from __future__ import annotations

from typing import Annotated

import typer

from lamina.cli.frame import Debug, Device, OwnDomain, OwnNet, OwnTask, say
from lamina.imports import loading


def evaluate(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    source: Annotated[str | None, typer.Argument(help="Labelled data; without it the run's held-out split.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, valid or test of the run's own data.")] = "test",
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    net: OwnNet = None,
    domain: OwnDomain = None,
    task: OwnTask = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    with loading(for_good=True):
        from lamina.run import load

    found = load(run, net=net, domain=domain, task=task).evaluate(source, part=split, device=device)
    if json:
        from json import dumps

        typer.echo(dumps({"scores": found}, indent=1))
        return
    say(f"{'score':<20}{'value':>10}   95 % interval           ({found[0]['split']}, n = {found[0]['n']:,})")
    for entry in found:
        value = "-" if entry["value"] is None else f"{entry['value']:.4f}"
        between = "" if entry["low"] is None else f"{entry['low']:.4f} to {entry['high']:.4f}"
        say(f"{entry['score']:<20}{value:>10}   {between}")
