"""`lamina checkpoints RUN`: list and verify; exit code 4 when one is damaged."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lamina.cli.frame import Debug, say
from lamina.imports import loading


def checkpoints(run: Annotated[str, typer.Argument(help="A run folder.")], debug: Debug = False) -> int:
    with loading(for_good=True):
        from lamina import files, state
        from lamina.errors import RunError
        from lamina.run import facts

    done = facts(run)["status"] == "done"
    folder = Path(run)
    places = state.listing(folder / "checkpoints")[::-1] + [p for p in [folder / "best"] if p.is_dir()]
    if not places:
        say(f"{run} has no checkpoints yet")
    told, newest, damaged = {}, None, 0
    for place in places:
        try:
            told[place] = _words(files.check(place), time.time() - (place / files.MANIFEST).stat().st_mtime)
            newest = place if place.name != "best" else newest
        except (RunError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            damaged += 1
            told[place] = f"DAMAGED: {error.what if isinstance(error, RunError) else repr(error)}"
    for place, words in told.items():
        say(f"{place.relative_to(folder)}: {words}{', resume goes on here' if place == newest and not done else ''}")
    if newest is None and not done and places:
        say(f"none of them can be resumed; train again: lamina train --recipe {folder / 'recipe.toml'}")
    return 4 if damaged else 0


def _words(manifest: dict[str, Any], seconds: float) -> str:
    """What a manifest says of its checkpoint, and how long ago it was written, should the clock know."""
    age = next((f"{seconds // unit:.0f} {name} old" for unit, name in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))
                if seconds >= unit), "0 s old" if seconds >= 0 else "from a later clock")  # fmt: skip
    size = sum(facts["bytes"] for facts in manifest["files"].values())
    scores = "".join(f", {name} {value:.4g}" for name, value in manifest.get("score", {}).items())
    return f"step {manifest['step']:,}, epoch {manifest['epoch']}, {size:,} bytes, {age}{scores}, verified"
