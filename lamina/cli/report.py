"""`lamina report RUN`: write report.html and figures/ again."""

from __future__ import annotations

from typing import Annotated

import typer

from lamina.cli.frame import Debug, OwnDomain, OwnNet, OwnTask, say
from lamina.imports import loading


def report(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    net: OwnNet = None,
    domain: OwnDomain = None,
    task: OwnTask = None,
    debug: Debug = False,
) -> None:
    with loading(for_good=True):
        from lamina.report import writing
        from lamina.run import load

    opened = load(run, net=net, domain=domain, task=task)
    writing.again(opened)
    say(f"{opened.folder / 'report.html'}")
