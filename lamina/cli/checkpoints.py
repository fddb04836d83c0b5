"""`lamina checkpoints RUN`: list and verify; exit code 4 when one is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli.frame import Debug
from lamina.imports import loading


def checkpoints(run: Annotated[str, typer.Argument(help="A run folder.")], debug: Debug = False) -> int:
    with loading(for_good=True):
        from lamina import files
        from lamina.errors import RunError
        from lamina.run import facts

    facts(run)
    folder = Path(run)
    places = sorted((folder / "checkpoints").glob("step-*")) + [p for p in [folder / "best"] if p.is_dir()]
    if not places:
        typer.echo(f"{run} has no checkpoints yet")
    damaged = 0
    for place in places:
        try:
            manifest, data = files.verify(place)
            size = sum(map(len, data.values()))
            words = f"step {manifest['step']:,}, epoch {manifest['epoch']}, {size:,} bytes, verified"
        except RunError as error:
            damaged += 1
            words = f"DAMAGED: {error.what}"
        typer.echo(f"{place.relative_to(folder)}: {words}")
    return 4 if damaged else 0
