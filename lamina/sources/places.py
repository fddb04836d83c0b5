"""Paths of files and folders as sources.

In: the path of a file, a pattern of paths, or several. Out: a `Source`, which opens again by the same path. Called by
`lamina.sources.open`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from lamina.errors import UsageError
from lamina.sources import Columns, Source, near_misses, no_columns
from lamina.sources.delimited import Reading


def read(name: str, columns: Columns, asked: Reading) -> Source:
    """A path as the user wrote it -> a Source."""
    from lamina.sources import arrays, idx, tables

    path = Path(name).expanduser()
    if not name.strip() or not os.path.exists(path):
        raise UsageError(f"There is no file, folder or sample {name!r}: {near_misses(path)}")
    if path.is_dir():
        if not idx.is_folder(path):
            raise UsageError(
                f"{name} holds no data that can be opened here.",
                expected=f"the IDX files {', '.join(idx.CANONICAL)}, plain or .gz",
                fix="give the file itself",
            )
        opened = idx.folder(path)
    elif path.suffix.lower() == ".npz":
        opened = arrays.npz(path)
    elif idx.is_file(path):
        opened = idx.file(path)
    elif path.name.lower().removesuffix(".gz").endswith(tables.ENDINGS):
        opened = tables.source(tables.file(path, name, asked), columns, asked)
        return replace(opened, name=name, reopen=str(path.absolute()))
    else:
        raise UsageError(
            f"{name} is not a kind of file that can be opened here.",
            expected="an .npz file with x and y, an IDX file of pictures, or a folder of IDX files",
            fix="read it yourself and give the arrays: (x, y)",
        )
    no_columns(columns, asked, name)
    return replace(opened, name=name, reopen=str(path.absolute()))
