"""`lamina compare RUN RUN...`: a paired comparison on the held-out examples that the runs share."""

from __future__ import annotations

from typing import Annotated

import typer

from lamina.cli.frame import Debug, say
from lamina.imports import loading


def compare(runs: Annotated[list[str], typer.Argument(help="Two run folders or more.")], debug: Debug = False) -> None:
    with loading(for_good=True):
        from lamina import evaluate
        from lamina.errors import UsageError
        from lamina.run import Run, shared_predictions

    if len(runs) < 2:
        raise UsageError("One run was given.", expected="two runs or more: lamina compare RUN RUN")
    opened = [Run(folder) for folder in runs]
    for run in opened:
        say(f"{run.folder}: {run.headline}")
    for other in opened[1:]:
        truth, first, second, measure = shared_predictions(opened[0], other)
        found = evaluate.compare(truth, first, second, measure, seed=0)
        say(f"A = {opened[0].folder}, B = {other.folder}: {found['words']}")
