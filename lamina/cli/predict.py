"""`lamina predict RUN INPUT...`: answers for new inputs, as CSV or JSON lines.

What cannot be used has a line all the same, with an error in it, and is warned of; the others are answered. Where several
inputs are named, a row's id begins with its file.
"""

from __future__ import annotations

import glob
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lamina.cli.frame import Debug, Device, OwnDomain, OwnNet, OwnTask, say
from lamina.errors import DataError, LaminaError, Unusable, UsageError, printable
from lamina.imports import loading

STANDARD = "standard input"
_BEGINNINGS = {
    b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"GIF8": ".gif", b"II*\x00": ".tif", b"MM\x00*": ".tif", b"RIFF": ".webp",
    b"BM": ".bmp", b"P5": ".pgm", b"P6": ".ppm", b"PAR1": ".parquet", b"ARROW1": ".arrow",
    b"\xff\xff\xff\xff": ".arrow", b"\x00\x00": ".idx", b"\x1f\x8b": ".gz",
}  # fmt: skip


def _suffix(content: bytes, domain: str) -> str:
    """What a file with this content would be called, from how it begins and what the run takes."""
    if content.startswith(b"PK"):
        return ".xlsx" if b"[Content_Types].xml" in content[:4096] else ".npz"
    for begin, suffix in _BEGINNINGS.items():
        if content.startswith(begin):
            return suffix
    if domain == "text" and not content.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"{", b"[{")):
        return ".txt"
    if domain in ("table", "text", "arrays"):
        return ".jsonl" if content.lstrip(b"\xef\xbb\xbf \r\n")[:1] in (b"{", b"[") else ".csv"
    return ".png"


@contextmanager
def _as_file(name: str, domain: str) -> Iterator[str]:
    """The path of a file with what comes in: standard input goes into one, and is called by its own name in what is said."""
    if name != "-":
        yield name
        return
    content = sys.stdin.buffer.read()
    if not content.strip():
        raise DataError(
            "Standard input is empty.", expected="a table with a line of names, a text a line, or a picture"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / f"input{_suffix(content, domain)}")
        Path(path).write_bytes(content)
        try:
            yield path
        except LaminaError as error:
            said = (part.replace(path, STANDARD).replace(Path(path).name, STANDARD) for part in
                    (error.what, error.expected, error.fix))  # fmt: skip
            raise type(error)(*(next(said),), expected=next(said), fix=next(said)) from error


def _paths(names: list[str]) -> list[str]:
    """What was named, patterns spelled out."""
    found = []
    for name in names:
        matches = (
            sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) and not Path(name).exists() else [name]
        )
        if not matches:
            raise UsageError(f"No file fits {name!r}.", expected="a file, a folder, a pattern, or - for standard input")
        found += matches
    return found


def _opened(run: Any, path: str, name: str) -> tuple[Any, list[str], dict[int, str]]:
    """Raw inputs of a file, what each is called, those without an answer among them, and which these are, and why."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        raw, ids = run.open_inputs(path)
    broken: dict[int, tuple[str, str]] = {}
    for warning in told:
        if isinstance(warning.message, Unusable):
            broken.update(warning.message.broken)
        warnings.warn(str(warning.message).replace(path, STANDARD if name == "-" else path), warning.category
                      if not isinstance(warning.message, Unusable) else UserWarning, stacklevel=2)  # fmt: skip
    names = ["-" if name == "-" and called == path else called for called in ids]
    for place in sorted(broken):
        names.insert(place, broken[place][0])
    return raw, names, {place: why for place, (_, why) in broken.items()}


def predict(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Files, folders or patterns; - for standard input: a table with a line of "
                       "names, a text a line, or a picture."),
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
) -> None:  # fmt: skip
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
    as_json = jsonl or (out or "").endswith(".jsonl")
    names = _paths(inputs)
    found: list[tuple[Any, list[str], dict[int, str]]] = []
    gone: list[LaminaError] = []
    for name in names:
        try:
            with _as_file(name, opened.domain.name) as path:
                raw, ids, broken = _opened(opened, path, name)
                answers = opened.predict(raw, device=device)
        except DataError as error:
            if len(names) == 1:
                raise
            warnings.warn(f"{name} has no prediction: {error.what}", stacklevel=2)
            gone.append(error)
            found.append((None, [name], {0: error.what}))
            continue
        if len(names) > 1:
            ids = [called if called.startswith(name) else f"{name}:{called}" for called in ids]
        found.append((answers, ids, broken))
    if len(gone) == len(names):
        raise DataError(f"None of the {len(names)} inputs has a prediction: {gone[0].what}", expected=gone[0].expected,
                        fix=gone[0].fix)  # fmt: skip
    whole = next(answers for answers, _, _ in found if answers is not None)
    pieces = []
    failed = any(broken for _, _, broken in found)
    for answers, ids, broken in found:
        some = whole[:0] if answers is None else answers
        if as_json:
            pieces.append(predictions_jsonl(opened.target, some, ids, broken))
        else:
            table = predictions_csv(opened.target, some, ids, broken=broken, errors=failed)
            pieces.append(table.partition("\n")[2] if pieces else table)
    text = "".join(pieces)
    if out is None:
        typer.echo(printable(text) if sys.stdout.isatty() else text, nl=False)
    else:
        files.write(out, text)
        count, bad = sum(len(ids) for _, ids, _ in found), sum(len(broken) for _, _, broken in found)
        say(f"{count - bad:,} predictions in {out}" + (f", and {bad:,} inputs without one" if bad else ""))
