"""`lamina import FILE`: weights that somebody else wrote -> safetensors, without running anything of the file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lamina.cli.frame import Debug, Quiet, say
from lamina.imports import loading


def import_(
    file: Annotated[str, typer.Argument(help="A .pth, .pt, .ckpt or .bin file of torch.save, or .safetensors.")],
    out: Annotated[
        str | None, typer.Option("--out", help="Write here; without it FILE.safetensors, beside the file.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    with loading(for_good=True):
        from lamina import files, weights
        from lamina.errors import UsageError

    path = Path(file)
    place = Path(out) if out is not None else path.with_suffix(".safetensors")
    if place.suffix != ".safetensors":
        raise UsageError(f"--out {place} ends in {place.suffix!r}.", expected="a file ending in .safetensors")
    if place.exists():
        raise UsageError(f"{place} exists already.", fix="--out ANOTHER.safetensors, or delete it")
    found = weights.find(path)
    tensors, prefix = weights.unwrapped(found.tensors)
    files.write(place, weights.to_bytes(tensors))
    if quiet:
        say(str(place))
        return
    numbers, size = (sum(map(f, tensors.values())) for f in (lambda t: t.numel(), lambda t: t.nbytes))
    where = f" under {'.'.join(found.under)}" if found.under else ""
    say(f"{path}: {len(tensors):,} tensors{where}, {numbers:,} numbers, {size:,} bytes")
    widest = min(max(map(len, tensors)), 60)
    for name, tensor in tensors.items():
        shape = " x ".join(map(str, tensor.shape)) or "one number"
        say(f"  {name.ljust(widest)}  {shape.ljust(20)}  {str(tensor.dtype).removeprefix('torch.')}")
    if prefix:
        say(f"taken off every name: {prefix}")
    for words, names in (("no tensors, left out", found.other), ("beside the weights, left out", found.beside)):
        if names:
            say(f"{words}: {', '.join(names)}")
    say(f"written: {place}")
    say(f"next: lamina train SOURCE --net FILE.py:CLASS --weights {shlex.quote(str(place))}")
