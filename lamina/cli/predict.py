"""`lamina predict RUN INPUT`: answers for new inputs, as CSV or JSON lines."""

from __future__ import annotations

from typing import Annotated

import typer

from lamina.cli.frame import Debug, Device, OwnDomain, OwnNet, OwnTask


def predict(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    inputs: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file, a folder of pictures, or - for standard input.")
    ],
    out: Annotated[
        str | None, typer.Option("--out", help="Write here; .jsonl makes JSON lines, anything else CSV.")
    ] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of CSV.")] = False,
    net: OwnNet = None,
    domain: OwnDomain = None,
    task: OwnTask = None,
    device: Device = "cpu",
    debug: Debug = False,
) -> None:
    from lamina import files
    from lamina.run import load, predictions_csv, predictions_jsonl

    opened = load(run, net=net, domain=domain, task=task)
    raw, ids = opened.domain.open_inputs(inputs)
    answers = opened.predict(raw, device=device)
    as_json = jsonl or (out or "").endswith(".jsonl")
    text = (predictions_jsonl if as_json else predictions_csv)(opened.target, answers, ids)
    if out is None:
        typer.echo(text, nl=False)
    else:
        files.write(out, text)
        typer.echo(f"{len(ids):,} predictions in {out}")
