"""`lamina bench [RUN]`: how fast this machine is; how fast a run is, where its time goes and what would help."""

from __future__ import annotations

from typing import Annotated

import typer

from lamina.cli.frame import Debug, OwnDomain, OwnNet, OwnTask, Quiet, say


def bench(
    run: Annotated[str | None, typer.Argument(help="A run folder; without it the machine is measured.")] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.5, help="About how long the measuring may take, in seconds.")
    ] = 15.0,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    net: OwnNet = None,
    loss: Annotated[str | None, typer.Option("--loss", help="Your own loss' code: FILE.py:FUNCTION.")] = None,
    domain: OwnDomain = None,
    task: OwnTask = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, mps or auto; else that of the run.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    from lamina.errors import UsageError
    from lamina.imports import loading

    with loading(for_good=True):
        from lamina.bench import words

    if run is None:
        own = {"--net": net, "--loss": loss, "--domain": domain, "--task": task}
        if idle := [flag for flag, given in own.items() if given is not None]:
            raise UsageError(f"{', '.join(idle)} belongs to a run, and none was given.", fix="lamina bench RUN")
        from lamina import devices
        from lamina.bench.machine import measure_machine

        found = measure_machine(devices.pick(device or "auto"), seconds)
        lines, line = words.machine_lines, words.machine_line
    else:
        from lamina.bench.measure import measure_run
        from lamina.run import load

        found = measure_run(load(run, net=net, domain=domain, task=task), loss=loss, device=device, seconds=seconds)
        lines, line = words.run_lines, words.run_line
    if json:
        from json import dumps

        typer.echo(dumps(found, indent=1))
    elif quiet:
        say(line(found))
    else:
        for text in lines(found):
            say(text)
