"""`lamina predict RUN INPUT`: answers for new inputs, as CSV or JSON lines."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lamina.cli.frame import Debug, Device, OwnDomain, OwnNet, OwnTask, say
from lamina.errors import DataError, printable
from lamina.imports import loading


@contextmanager
def _as_file(inputs: str) -> Iterator[str]:
    """The path of a file with what comes in: standard input goes into one, with the suffix of what it begins like."""
    if inputs != "-":
        yield inputs
        return
    content = sys.stdin.buffer.read()
    if not content:
        raise DataError("Standard input is empty.", expected="an .npz file, an IDX file or a picture")
    known = {b"PK": ".npz", b"\x00\x00": ".idx", b"\x1f\x8b": ".gz"}
    suffix = next((suffix for begin, suffix in known.items() if content.startswith(begin)), ".png")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"standard-input{suffix}"
        path.write_bytes(content)
        yield str(path)


def predict(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    inputs: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file, a folder of pictures, or - for standard input.")
    ],
    out: Annotated[
        str | None, typer.Option("--out", help="Write here; .jsonl makes JSON lines, anything else CSV.")
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of CSV.")] = False,
    gallery: Annotated[
        str | None,
        typer.Option("--gallery", help="People to know as well, without training: a folder of each one's pictures."),
    ] = None,
    net: OwnNet = None,
    domain: OwnDomain = None,
    task: OwnTask = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    with loading(for_good=True):
        from lamina import files
        from lamina.run import load, predictions_csv, predictions_jsonl

    opened = load(run, net=net, domain=domain, task=task)
    if gallery is not None:
        people = sorted(place for place in Path(gallery).iterdir() if place.is_dir()) if Path(gallery).is_dir() else []
        if not people:
            raise DataError(
                f"{gallery} holds no folders.", expected="a folder of pictures for each person, named by him"
            )
        for place in people:
            opened.enroll(place.name, place, keep=False, device=device)
    with _as_file(inputs) as path:
        raw, ids = opened.domain.open_inputs(path)
        ids = ["-" if name == path != inputs else name for name in ids]
    answers = opened.predict(raw, device=device)
    as_json = jsonl or (out or "").endswith(".jsonl")
    text = (predictions_jsonl if as_json else predictions_csv)(opened.target, answers, ids)
    if out is None:
        typer.echo(printable(text) if sys.stdout.isatty() else text, nl=False)
    else:
        files.write(out, text)
        say(f"{len(ids):,} predictions in {out}")
