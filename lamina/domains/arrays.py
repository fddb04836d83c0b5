"""Inputs as they are: numbers of any shape, one column or several, or a user's Dataset.

In: arrays (N, ...) of numbers. Out: the same, float32 where they were floating, and a first layer that scales them as
asked: `none` (as they are), `unit` (bytes to 0..1), `standard` (mean 0, standard deviation 1 over the training split;
each feature of (N, F), all values together for other shapes).

For prediction also files: `.npy`, `.npz`, rows of numbers as `.csv` or `.jsonl`, or either on standard input.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina import mapped
from lamina.batches import tensor
from lamina.domains.base import Domain
from lamina.errors import DataError, UsageError, near, rows
from lamina.joined import Joined
from lamina.nets import base
from lamina.sources import Examples
from lamina.sources.arrays import rows_not_finite
from lamina.targets.base import Target

ARRAY_FILES = (".npy", ".npz")
ROW_FILES = (".csv", ".tsv", ".jsonl")


class Scale(nn.Module):
    """(x / divisor - mean) / std, in float32, in one or two passes. mean, std broadcast against one example."""

    shift: Tensor
    width: Tensor

    def __init__(self, divisor: float, mean: Any = None, std: Any = None):
        super().__init__()
        self.factor, self.standard = 1 / divisor, mean is not None
        for name, given in (("shift", mean), ("width", std)):
            scaled = None if given is None else torch.tensor(np.multiply(given, divisor), dtype=torch.float32)
            self.register_buffer(name, scaled)

    def forward(self, x: Tensor) -> Tensor:
        own = x.dtype != torch.float32  # then float() makes a tensor of ours, which can be worked on in place
        x = x.float()
        if self.standard:
            return (x.sub_(self.shift) if own else x - self.shift).div_(self.width)
        if self.factor == 1.0:
            return x
        return x.mul_(self.factor) if own else x * self.factor

    def extra_repr(self) -> str:
        return f"factor={self.factor}, standard={self.standard}"


def parts(column: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Some rows of a column, piece by piece, in the order in which they lie there."""
    wanted = np.zeros(len(column), bool)
    wanted[rows] = True
    for piece in mapped.pieces(column):
        yield column[piece][wanted[piece]]


def moments(column: np.ndarray, rows: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of some rows over some axes, in float64: twice through them, bytes once, by their
    histogram."""
    if column.dtype == np.uint8 and axes == tuple(range(column.ndim)):
        counts, values = np.zeros(256), np.arange(256)
        for part in parts(column, rows):
            counts += torch.bincount(torch.from_numpy(part.reshape(-1)), minlength=256).numpy()
        mean = (counts * values).sum() / counts.sum()
        return mean, np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum())
    count = len(rows) * (1 if axes == (0,) else int(np.prod(column.shape[1:])))
    mean = sum(part.sum(axes, dtype=np.float64) for part in parts(column, rows)) / count
    square = sum(((part.astype(np.float64) - mean) ** 2).sum(axes) for part in parts(column, rows))
    return mean, np.sqrt(square / count)


def spread(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Standard deviations to divide by. What float32 cannot tell from a constant is left alone."""
    return np.where(std > np.maximum(1e-7 * np.abs(mean), 1e-30), std, 1.0)


def as_numbers(inputs: Any) -> Tensor:
    """Raw inputs as a tensor (N, ...). DataError for what is no array of numbers."""
    if isinstance(inputs, Tensor) and not inputs.is_complex():
        return inputs
    try:
        column = np.asarray(inputs)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"The inputs cannot be made an array: {error}", expected="numbers (N, ...)") from error
    if column.dtype.kind not in "biuf" or column.ndim == 0:
        example = f", such as {column.flat[0]!r}" if column.size else ""
        raise DataError(f"The inputs are {column.dtype}{example}.", expected="an array of numbers (N, ...)")
    if column.dtype in (np.uint8, np.float32) and column.flags.c_contiguous and not column.flags.writeable:
        mapped.adopt(column)
        return mapped.as_tensor(column)  # without a copy: nobody writes to columns
    return tensor(column)


@dataclass
class Arrays(Domain):
    name: ClassVar[str] = "arrays"

    scale: str = "standard"  # none, unit, standard
    shapes: list[list[int]] = field(default_factory=list)  # of one example, an entry an input
    kinds: list[str] = field(default_factory=list)  # u: bytes, i: whole numbers, f: fractional
    mean: Any = None
    std: Any = None
    features: list[str] | None = None

    @classmethod
    def sniff(cls, examples: Examples) -> tuple[float, str]:
        if examples.kind in ("dataset", "stream", "loader"):
            return 0.5, "a Dataset or loader of yours, taken as it is"
        return 0.5, f"numbers of shape {tuple(np.shape(examples.inputs[0])[1:])}"

    def joins(self) -> bool:
        return type(self) is Arrays  # one derived from it may think otherwise

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        if not isinstance(inputs, tuple):
            self.scale = "none"
            return
        self.shapes = [list(np.shape(column)[1:]) for column in inputs]
        self.kinds = [_kind(column) for column in inputs]
        if self.scale == "standard":
            column: Any = inputs[0] if isinstance(inputs[0], Joined) else np.asarray(inputs[0])
            axes = (0,) if column.ndim == 2 else tuple(range(column.ndim))
            mean, std = moments(column, rows, axes)
            self.mean, self.std = mean.tolist(), spread(mean, std).tolist()

    def encode(self, inputs: Any) -> Any:
        if not isinstance(inputs, (tuple, list, np.ndarray, Tensor)) and not hasattr(inputs, "__array__"):
            return inputs  # a Dataset
        columns = inputs if isinstance(inputs, tuple) else (inputs,)
        if self.shapes and len(columns) != len(self.shapes):
            raise DataError(f"There are {len(columns)} inputs.", expected=f"{len(self.shapes)}, as in training")
        return tuple(
            Joined([self._column(part, k) for part in column.parts])
            if isinstance(column, Joined)
            else self._column(column, k)
            for k, column in enumerate(columns)
        )

    def _column(self, column: Any, k: int) -> Tensor:
        table = as_numbers(column)
        kind = self.kinds[k] if self.kinds else ""
        if self.shapes and list(table.shape[1:]) != self.shapes[k]:
            alone = list(table.shape) == self.shapes[k]
            raise DataError(
                f"The inputs have shape {tuple(table.shape)}.",
                expected=f"(N, {', '.join(map(str, self.shapes[k]))}), as in training",
                fix="for one example add the batch dimension: x[None]" if alone else "",
            )
        if kind == "u":
            return _as_bytes(table)
        if table.is_floating_point():
            table = table if table.dtype == torch.float32 else mapped.changed(table, Tensor.float)
            bad = rows_not_finite(table.detach().cpu().numpy())
            if len(bad):
                raise DataError(
                    f"{len(bad)} inputs hold NaN or infinite values: {rows(bad)}.", fix="clean or drop them"
                )
        elif table.dtype == torch.bool or kind == "f":
            table = mapped.changed(table, Tensor.float)
        elif table.dtype not in (torch.uint8, torch.int64) or (kind == "i" and table.dtype != torch.int64):
            table = mapped.changed(table, Tensor.long)
        return table

    def prepare(self) -> nn.Module:
        if self.scale == "none":
            return nn.Identity()
        if self.scale == "unit":
            return Scale(255.0)
        return Scale(1.0, self.mean, self.std)

    def net(self, target: Target, size: str, name: str | None = None, **arguments: Any) -> nn.Module:
        if len(self.shapes) != 1:
            what = f"There are {len(self.shapes)} inputs" if self.shapes else "What a Dataset gives is not known before"
            raise UsageError(
                f"{what}, so no net can be fitted to it.",
                expected="one column of numbers, or a net of your own",
                fix="net=..., or give arrays: (x, y)",
            )
        return base.named(name or "mlp", "numbers without columns").fitted(
            tuple(self.shapes[0]), target.width, size, **arguments
        )

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A file of inputs -> arrays and a name for each example: its column `id`, else its number from 0 on.

        .npy; .npz (x, or as many arrays as the net has inputs); .csv and .tsv (a header is recognised); .jsonl (an array
        of numbers a line, or an object); any other text, and - for standard input: JSON lines where it begins with [ or
        {, else CSV; and what a training source may be. Columns are matched by name where the run knows their names.
        """
        place = Path(path)
        ending = place.suffix.lower()
        if path == "-":
            text, where = sys.stdin.read().removeprefix("\ufeff"), "standard input"
        elif not place.is_file():
            return super().open_inputs(path)
        elif ending in ARRAY_FILES:
            columns = array_file(place, len(self.shapes) or 1)
            return columns, [str(row) for row in range(len(np.atleast_1d(columns[0])))]
        elif ending in ROW_FILES or _is_text(place):
            text, where = _text(place), path
        else:
            return super().open_inputs(path)
        if ending not in ROW_FILES:
            ending = ".jsonl" if text.lstrip()[:1] in ("[", "{") else ".csv"
        if len(self.shapes) > 1:
            raise UsageError(
                f"{where} holds one input an example, and the net takes {len(self.shapes)}.",
                expected=f"an .npz file of {len(self.shapes)} arrays",
            )
        found = (_json_rows if ending == ".jsonl" else _csv_rows)(text, where, self.features)
        return self._table(found, where)

    def _table(self, found: Iterator[tuple[int, Any, list[Any] | str]], where: str) -> tuple[Any, list[str]]:
        """Rows (line, id, values or what is wrong with them) -> ((N, ...) numbers,), names."""
        shape = self.shapes[0] if self.shapes else None
        wanted = None if shape is None else math.prod(shape)
        table: list[list[float]] = []
        ids: list[str] = []
        bad: list[tuple[int, str]] = []
        for line, name, values in found:
            flat = values if isinstance(values, str) else _flat(values)
            if not isinstance(flat, str):
                wanted = len(flat) if wanted is None else wanted
                if len(flat) != wanted:
                    flat = f"there are {len(flat)} numbers, expected {wanted}"
            if isinstance(flat, str):
                bad.append((line, flat))
            else:
                ids.append(str(len(ids)) if name is None else str(name))
                table.append(flat)
        if bad:
            lines = rows([line for line, _ in bad]).replace("row", "line", 1)
            raise DataError(
                f"{len(bad):,} of {len(bad) + len(table):,} rows of {where} cannot be used: {lines}. "
                f"Line {bad[0][0]}: {bad[0][1]}.",
                expected="finite numbers in every row",
                fix="mend or leave out these lines",
            )
        if not table:
            raise DataError(f"{where} holds no rows.", expected="a row of numbers for each example")
        column = np.array(table)
        if self.kinds and self.kinds[0] != "f" and (column == np.rint(column)).all():
            column = column.astype(np.int64)
        return (column if shape is None else column.reshape(len(column), *shape),), ids

    @classmethod
    def tiny(cls) -> Any:
        return "iris"


def _kind(column: Any) -> str:
    dtype = tensor(column[:1] if isinstance(column, Tensor) else np.asarray(column[:1])).dtype
    if dtype == torch.uint8:
        return "u"
    return "f" if dtype.is_floating_point or dtype == torch.bool else "i"


def _as_bytes(table: Tensor) -> Tensor:
    """Whole numbers from 0 to 255 as bytes. Fractions are refused: 0..1 and 0..255 cannot be told apart in all cases."""
    if table.dtype == torch.uint8:
        return table
    low, high = (table.min(), table.max()) if table.numel() else (0, 0)
    if table.is_floating_point() or table.dtype == torch.bool or low < 0 or high > 255:
        raise DataError(
            f"The inputs are {str(table.dtype).removeprefix('torch.')} from {float(low):g} to {float(high):g}; training "
            "had bytes.",
            expected="whole numbers from 0 to 255",
            fix="x.astype('uint8'), after x * 255 where they go from 0 to 1",
        )
    return table.to(torch.uint8)


# --- Files of inputs to predict on ------------------------------------------------------------------------------------


def array_file(path: Path, inputs: int = 1) -> tuple[np.ndarray, ...]:
    """The arrays of an .npy file, or of an .npz file: `x` (`x_test`, `x_train`), or as many as the net has inputs."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return (loaded,)
        with loaded:
            known = loaded.files
            chosen = [name for name in ("x", "x_test", "x_train") if name in known][:1] if inputs == 1 else known
            chosen = chosen or known
            if len(chosen) != inputs:
                raise DataError(
                    f"{path} holds the arrays {', '.join(known) or 'none'}.",
                    expected="one array, or one called x" if inputs == 1 else f"{inputs} arrays, one an input",
                    fix="numpy.savez(path, x=...)" if inputs == 1 else "numpy.savez(path, first, second)",
                )
            return tuple(loaded[name] for name in chosen)
    except Exception as error:  # whatever a foreign file does to the reader, it is unreadable
        if isinstance(error, DataError):
            raise
        pickled = "pickle" in str(error)
        raise DataError(
            f"{path} cannot be read as numbers: {'it is no array, or holds Python objects' if pickled else error}.",
            expected="arrays of numbers; Python objects are stored by pickle, which is never opened here",
            fix="numpy.save(path, x.astype('float32'))",
        ) from error


def _is_text(path: Path) -> bool:
    """Whether a file begins without the control characters that all binary formats begin with."""
    with path.open("rb") as file:
        return not any(byte < 9 or 13 < byte < 32 for byte in file.read(64))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}", fix="save it as UTF-8") from error


def _csv_rows(text: str, where: str, features: list[str] | None) -> Iterator[tuple[int, Any, list[Any] | str]]:
    """(line, id, cells or what is wrong) of each row. A first row of words, or of the inputs' names, is the header."""
    first = text.strip().partition("\n")[0]
    delimiter = next((mark for mark in "\t;" if mark in first), ",")
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{where} cannot be read as CSV at line {reader.line_num}: {error}") from error
    places: list[int] | None = None
    name: int | None = None
    width = len(lines[0][1]) if lines else 0
    named = lines and features and set(features) <= set(lines[0][1])
    if lines and (named or not any(map(_is_number, lines[0][1]))):
        header = lines.pop(0)[1]
        name = header.index("id") if "id" in header and "id" not in (features or ()) else None
        known = [column for column in header if column != "id" or name is None]
        places = [header.index(column) for column in _matched(known, features, where)]
    for line, row in lines:
        if len(row) != width:
            yield line, None, f"it has {len(row)} cells, the first row has {width}"
        else:
            yield line, None if name is None else row[name], row if places is None else [row[k] for k in places]


def _json_rows(text: str, where: str, features: list[str] | None) -> Iterator[tuple[int, Any, list[Any] | str]]:
    """(line, id, values or what is wrong) of each line that is not empty."""
    order: list[str] | None = None
    for line, entry in enumerate(text.split("\n"), 1):
        if not entry.strip():
            continue
        try:
            value = json.loads(entry)
        except (ValueError, RecursionError) as error:
            yield line, None, f"it is not JSON ({error})"
            continue
        name = None
        if isinstance(value, dict):
            name = value.pop("id", None) if "id" not in (features or ()) else None
            if order is None:
                order = _matched(list(value), features, where)
            missing = [column for column in order if column not in value]
            if missing:
                yield line, name, f"it lacks {', '.join(map(repr, missing))}"
                continue
            value = [value[column] for column in order]
        yield line, name, value if isinstance(value, list) else [value]


def _matched(given: list[str], features: list[str] | None, where: str) -> list[str]:
    """The names of the columns to take, in the order of the net's inputs. What is missing is an error, what is left out
    is said."""
    if not features:
        return given
    missing = [column for column in features if column not in given]
    if missing:
        hints = "; ".join(f"{column!r}: {near(column, given)}" for column in missing[:3])
        raise DataError(
            f"{where} lacks {len(missing)} of the {len(features)} columns of this run: {hints}",
            expected=f"the columns {', '.join(features)}, in any order",
        )
    left_out = [column for column in given if column not in features]
    if left_out:
        warnings.warn(f"{where}: {', '.join(left_out)} is no input of this run and is left out.", stacklevel=2)
    return features


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _flat(values: Sequence[Any]) -> list[float] | str:
    """The numbers in nested lists, row by row; or what is wrong with the first that is none."""
    found: list[float] = []
    for k, value in enumerate(values):
        if isinstance(value, list):
            inner = _flat(value)
            if isinstance(inner, str):
                return inner
            found += inner
        elif value is None or value == "":
            return f"value {k + 1} is missing"
        elif not _is_number(value):
            return f"{value!r} is no number"
        elif not math.isfinite(float(value)):
            return f"value {k + 1} is {value}, which is not finite"
        else:
            found.append(float(value))
    return found


DOMAIN = Arrays
