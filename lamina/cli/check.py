"""`lamina check SOURCE`: what is wrong with these data; exit code 3 when training would refuse them."""

from __future__ import annotations

from typing import Annotated

import typer

from lamina.cli.frame import Debug, say
from lamina.imports import loading


def check(
    source: Annotated[str, typer.Argument(help="As for train.")],
    task: Annotated[str | None, typer.Option("--task", help="classes, numbers or tags; inferred without it.")] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help="Where named data sets such as mnist lie.")] = None,
    debug: Debug = False,
) -> int:
    with loading(for_good=True):
        from lamina import data, sources
        from lamina.checks import check as find

    opened = sources.open(source, data_dir=data_dir)
    task = (
        task
        or data.choose_target(data.answers(opened.train), None, None, known=opened.train.labels, name=opened.name)[
            0
        ].name
    )
    findings = find(opened, task=task, split=None)  # type: ignore[arg-type]
    say(f"{opened.name}: {opened.about or 'examples'}; task {task}")
    for found in findings:
        say(f"{found.severity}: {found.what}" + (f" {found.fix}" if found.fix else ""))
    if not findings:
        say("nothing to complain of")
    return 3 if any(found.severity == "error" for found in findings) else 0
