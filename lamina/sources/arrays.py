"""Arrays in memory, `.npz` files and torch Datasets as sources.

In: (x, y) or x alone, of numpy arrays, torch tensors or lists; the path of an .npz file; a Dataset or DataLoader. Out:
a `Source` whose columns are numpy arrays: tensors are detached, brought to the CPU and share their memory where they
can (bfloat16 and the 8-bit floats, which numpy lacks, become float32). Called by `lamina.sources.open`.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lamina import mapped
from lamina.errors import DataError, UsageError, near, rows
from lamina.joined import Joined
from lamina.sources import Examples, Source, describe

_SEQUENCES = (  # what to do with those of many lengths
    "pad them to one length, or train in a loop over batches of like length: "
    "lamina.learn(net, lamina.RaggedBatches(x, y), loss, optimizer)"
)
_NEAR = 1 << 16  # whole numbers
_TOGETHER = 1 << 18  # values worked on together
_WORDS = {
    "c": ("complex numbers", "give real and imaginary part as two columns"),
    "M": ("dates", "turn them into numbers: days since the first, hour, weekday"),
    "m": ("durations", "turn them into numbers: x / numpy.timedelta64(1, 's')"),
    "U": ("texts", "turn them into numbers first"),
    "S": ("bytes", "decode them: x.astype(str)"),
    "V": ("records of several fields", "stack the fields as columns"),
    "O": ("Python objects", "x.astype(float)"),
}


def read(source: Any) -> Source:
    """Arrays in memory, a Dataset or a DataLoader -> a Source."""
    if isinstance(source, tuple):
        if len(source) != 2:
            raise UsageError(
                f"The source is a tuple of {len(source)}.",
                expected="(x, y), x alone, or ((x1, x2), y) for several inputs",
            )
        return in_memory(*source)
    if isinstance(source, (list, np.ndarray, Tensor)) or hasattr(source, "__array__"):
        return in_memory(source)
    if isinstance(source, (IterableDataset, DataLoader)) or is_items(source):
        return of_torch(source)
    raise UsageError(
        f"A source cannot be a {type(source).__name__}.",
        expected="(x, y) of arrays, a Dataset or DataLoader, a path, or the name of a sample",
        fix="give its values as a tuple: (data['x'], data['y'])" if isinstance(source, dict)
        else "lamina.learn(net, batches, loss, optimizer) takes batches" if hasattr(source, "epoch") else "",
    )  # fmt: skip


def in_memory(x: Any, y: Any = None) -> Source:
    """x (N, ...) or a tuple of such, and y (N, ...) or None -> a Source."""
    train = examples(x, y)
    form = "" if train.kind == "texts" else f", {train.inputs[0].dtype}"
    return Source("arrays in memory", train, about=f"{describe(train)}{form}, in memory")


def examples(x: Any, y: Any = None, *, names: tuple[str, str] = ("x", "y")) -> Examples:
    """Inputs and answers as columns, checked. `names` are what messages call the two."""
    columns = x if isinstance(x, tuple) else (x,)
    if not columns:
        raise DataError(f"{names[0]} is an empty tuple.", expected="one array or more")
    called = [names[0] if len(columns) == 1 else f"{names[0]}[{k}]" for k in range(len(columns))]
    written = _texts(x)
    inputs = (written,) if written is not None else tuple(map(_inputs, columns, called))
    truth = None if y is None else _truth(y, names[1])
    for column, what in [*zip(inputs, called, strict=True)][1:] + ([] if truth is None else [(truth, names[1])]):
        if len(column) != len(inputs[0]):
            raise DataError(
                f"{called[0]} has {len(inputs[0]):,} examples and {what} has {len(column):,}.",
                expected="an answer for every example" if what == names[1] else "the same number in every input",
            )
    if not len(inputs[0]):
        raise DataError(f"{called[0]} has no examples: its shape is {inputs[0].shape}.", expected="one or more")
    return Examples(inputs, truth, "arrays" if written is None else "texts")


def _texts(value: Any) -> np.ndarray | None:
    """A list or column of texts, None for a gap, as objects (N,); None for anything else, and where all are numbers."""
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim == 1 and value.dtype.kind in "UO" else ()
    if not isinstance(value, list) or not value or not all(entry is None or isinstance(entry, str) for entry in value):
        return None
    if all(not entry or not entry.strip() or _is_number(entry) for entry in value):
        return None
    column = np.empty(len(value), object)
    column[:] = ["" if entry is None else entry for entry in value]
    return column


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def rows_not_finite(column: np.ndarray | Joined) -> np.ndarray:
    """Which rows of (N, ...) hold NaN or infinity: int64, sorted."""
    if column.dtype.kind != "f":
        return np.empty(0, dtype=np.int64)
    if isinstance(column, Joined):
        spans = zip(column.parts, column.spans(), strict=True)
        return np.concatenate([span.start + rows_not_finite(part) for part, span in spans])
    found = []
    by_torch = column.dtype in (np.float32, np.float64) and column.flags.c_contiguous
    for piece in mapped.pieces(column):
        part = column[piece]
        # Where the sum is, each is; a tenth of the time of asking each.
        if by_torch and torch.isfinite(mapped.as_tensor(part).sum()):
            continue
        finite = np.isfinite(part)
        if not finite.all():
            found.append(piece.start + np.flatnonzero(~finite.reshape(len(finite), -1).all(1)))
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def distinct(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of (N,) that occur, sorted, and which of them each is: `numpy.unique(column, return_inverse=True)`, but
    whole numbers near each other are counted and not sorted, in 4 bytes an example and not in 40."""
    low, high = (int(column.min()), int(column.max())) if column.dtype.kind in "iu" and len(column) else (0, _NEAR)
    if high - low >= _NEAR or high >= 1 << 62:
        values, codes = np.unique(column, return_inverse=True)
        return values, codes.reshape(-1)
    number = np.zeros(high - low + 1, np.int32)  # of each value: first whether it occurs
    pieces = [slice(start, start + _TOGETHER) for start in range(0, len(column), _TOGETHER)]
    for piece in pieces:
        number[column[piece].astype(np.int64) - low] = 1
    values = (np.flatnonzero(number) + low).astype(column.dtype)
    number = np.cumsum(number, dtype=np.int32) - np.int32(1)
    codes = np.empty(len(column), np.int32)
    for piece in pieces:
        codes[piece] = number[column[piece].astype(np.int64) - low]
    return values, codes


def gaps(column: np.ndarray) -> np.ndarray:
    """Where an array has None, NaN, NaT or a blank text: booleans of its shape."""
    if column.dtype.kind in "fc":
        return np.isnan(column)
    if column.dtype.kind in "Mm":
        return np.isnat(column)
    if column.dtype.kind == "U":
        return np.char.str_len(np.char.strip(column)) == 0
    if column.dtype.kind != "O":
        return np.zeros(column.shape, dtype=bool)
    blank = [v is None or (isinstance(v, (float, np.floating)) and v != v) or str(v).strip() == "" for v in column.flat]
    return np.array(blank, dtype=bool).reshape(column.shape)


# --- .npz files -------------------------------------------------------------------------------------------------------


def npz(path: Path) -> Source:
    """x, y (or x_train, y_train), and where there are such x_valid, y_valid, x_test, y_test of an .npz file."""
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("it is no zip archive, or ends too early")
        with np.load(path, allow_pickle=False) as file:
            keys = list(file.files)
            first = "x_train" if "x_train" in keys else "x"
            if first not in keys:
                raise DataError(
                    f"{path} has no array 'x': {near('x', keys)}",
                    expected="x and y (or x_train and y_train), and if you like x_valid, y_valid, x_test, y_test",
                    fix="numpy.savez(path, x=..., y=...)",
                )
            parts = {}
            for part, x in (("train", first), ("valid", "x_valid"), ("test", "x_test")):
                y = x.replace("x", "y", 1)
                if x in keys:
                    called = (f"{x} in {path}", f"{y} in {path}")
                    parts[part] = examples(_member(file, x), file[y] if y in keys else None, names=called)
                elif y in keys:
                    raise DataError(f"{path} has an array {y!r} but no {x!r}.", expected="both, or none")
    except Exception as error:  # whatever a foreign file does to the reader, it is unreadable
        if isinstance(error, DataError):
            raise
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds Python objects. They are stored by pickle, which can run code and is never opened here.",
                expected="arrays of numbers, or of texts for labels",
                fix="save them again: numpy.savez(path, x=x.astype('float32'), y=y.astype(str))",
            ) from error
        raise DataError(f"{path} cannot be read as .npz: {error}", fix="numpy.savez(path, x=..., y=...)") from error
    extra = "".join(f", {parts[part].count:,} for {part}" for part in ("valid", "test") if part in parts)
    about = f"{describe(parts['train'])}{extra}, from {path.name}"
    return Source(str(path), parts["train"], parts.get("valid"), parts.get("test"), about=about)


def _member(file: Any, name: str) -> np.ndarray:
    """An array of an .npz file; one above the limit of memory goes to the disk piece by piece, and is never whole here."""
    if mapped.most() is None:
        return file[name]  # type: ignore[no-any-return]
    with file.zip.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if dtype.hasobject or fortran or not math.prod(shape):
            return file[name]  # type: ignore[no-any-return]
        array = mapped.empty(shape, dtype)
        left = array.reshape(-1).view(np.uint8).data
        while left.nbytes:
            count = stream.readinto(left[: mapped.PIECE])
            if not count:
                raise ValueError(f"{name} ends {left.nbytes:,} bytes too early")
            left = left[count:]
            mapped.read(1, count)
        return array


# --- Datasets ---------------------------------------------------------------------------------------------------------


def of_torch(source: Any) -> Source:
    """A Dataset or DataLoader. A TensorDataset (or a Subset of one) becomes its columns; others are left whole."""
    name = type(source).__name__
    tensors = None
    if isinstance(source, DataLoader):
        kind, items = "loader", source.dataset
    elif isinstance(source, IterableDataset):
        kind, items = "stream", source
    else:
        kind, items, tensors = "dataset", source, _tensors(source)
    if not isinstance(items, IterableDataset):
        if not hasattr(items, "__len__"):
            raise UsageError(
                f"{type(items).__name__} has no length.",
                expected="a Dataset with __getitem__ and __len__, or an IterableDataset",
                fix="def __len__(self): return ...",
            )
        if len(items) == 0:
            raise DataError(f"{type(items).__name__} is empty.", expected="one example or more")
    if tensors:
        *inputs, truth = tensors if len(tensors) > 1 else (*tensors, None)
        called = (f"the input of the {name}", f"the last tensor of the {name}")
        train = examples(tuple(inputs), truth, names=called)
        return Source(name, train, about=f"{describe(train)}, from your {name}")
    train = Examples(source, kind=kind)
    return Source(name, train, about=f"{describe(train)}, from your {name}")


def is_items(source: Any) -> bool:
    """Whether something is a map-style Dataset or behaves as one: not the containers that only look so."""
    if isinstance(source, Dataset):
        return not isinstance(source, IterableDataset)
    plain = (dict, tuple, list, str, bytes, bytearray, memoryview, range, np.ndarray, Tensor, type)
    return hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, plain)


def _tensors(dataset: Any) -> tuple[Tensor, ...] | None:
    """The columns of a TensorDataset; None for subclasses too, whose items may be something else."""
    if type(dataset) is TensorDataset:
        return dataset.tensors
    if type(dataset) is Subset and (whole := _tensors(dataset.dataset)) is not None:
        picked = torch.as_tensor(list(dataset.indices), dtype=torch.int64)
        return tuple(tensor[picked.to(tensor.device)] for tensor in whole)
    return None


# --- Columns ----------------------------------------------------------------------------------------------------------


def _inputs(value: Any, what: str) -> np.ndarray:
    """(N, ...) numbers or booleans, finite."""
    column = _array(value, what)
    if column.dtype.kind not in "biuf":
        words, fix = _words(column)
        found = f": {_types(column)}" if column.dtype.kind == "O" else ""
        if _are_sequences(column):
            found, fix = f"{found}; {_ragged(column)}", _SEQUENCES
        raise DataError(f"{what} holds {words} ({column.dtype}){found}.", expected="numbers", fix=fix)
    if len(column) and not column.size:
        raise DataError(f"{what} holds no values: its shape is {column.shape}.", expected="at least one an example")
    bad = rows_not_finite(column)
    if len(bad):
        raise DataError(
            f"{what} holds NaN or infinite values in {len(bad):,} of {len(column):,} examples: {rows(bad)}.",
            expected="finite numbers",
            fix="leave these examples out, or fill them: numpy.nan_to_num(x)",
        )
    return column


def _truth(value: Any, what: str) -> np.ndarray:
    """(N, ...) numbers, booleans or texts. Missing labels (None, NaN, '') stay, for `lamina.checks` to name."""
    column = _array(value, what)
    if column.dtype.kind == "U" and isinstance(value, (list, tuple)):
        loose = np.array(value, dtype=object)  # numpy writes [1, 'a', None] as texts, in silence
        column = column if all(isinstance(answer, str) for answer in loose.flat) else loose
    if column.dtype.kind == "O":
        present = column[~gaps(column)]
        whole = len(present) == column.size
        if all(isinstance(answer, str) for answer in present):
            return column.astype(str) if whole else column
        if all(isinstance(answer, (bool, int, float, np.number, np.bool_)) for answer in present):
            return np.array(column.tolist()) if whole else column
        raise DataError(
            f"{what} holds answers of several types: {_types(column)}.",
            expected="all numbers, or all texts",
            fix="numpy.array([str(answer) for answer in y])",
        )
    if column.dtype.kind not in "biufU":
        words, fix = _words(column)
        raise DataError(f"{what} holds {words} ({column.dtype}).", expected="numbers or texts", fix=fix)
    return column


def _array(value: Any, what: str) -> np.ndarray:
    """Whatever numpy can hold, with at least one axis, in this machine's byte order."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        value = _stack(value, what)
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise DataError(f"{what} is a sparse tensor.", expected="a dense one", fix="x.to_dense()")
        value = value.detach().cpu()
        if value.is_floating_point() and value.dtype not in (torch.float16, torch.float32, torch.float64):
            value = value.float()
        value = value.resolve_conj().resolve_neg().numpy()
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        masked = np.flatnonzero(np.ma.getmaskarray(value).reshape(len(value), -1).any(1))
        raise DataError(f"{what} holds masked values: {rows(masked)}.", fix="fill them, x.filled(0), or leave them out")
    try:
        column = np.asarray(value)
    except (ValueError, OverflowError) as error:
        found, fix = _ragged(value) or str(error), _SEQUENCES if _are_sequences(value) else ""
        raise DataError(f"{what} cannot be made an array: {found}.", expected="an array (N, ...)", fix=fix) from error
    if mapped.most() is not None:
        mapped.adopt(column)
    if column.ndim == 0:
        raise DataError(f"{what} is a single {type(value).__name__}, {value!r}.", expected="an array (N, ...)")
    if column.dtype.kind == "f" and column.dtype.itemsize > 8:
        column = column.astype(np.float64)  # torch has nothing wider
    return column if column.dtype.isnative else column.astype(column.dtype.newbyteorder("="))


def _stack(items: Any, what: str) -> Tensor:
    shapes = [tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__ for item in items]
    if len(set(shapes)) > 1:
        row = next(k for k, shape in enumerate(shapes) if shape != shapes[0])
        raise DataError(
            f"{what} is a list of unlike tensors: row 0 is {shapes[0]}, row {row} is {shapes[row]}.",
            expected="tensors of one shape",
            fix="for inputs and answers give a tuple: (x, y)" if len(items) == 2
            else _SEQUENCES if _are_sequences(items) else "",
        )  # fmt: skip
    return torch.stack([item.detach().cpu() for item in items])


def _are_sequences(items: Any) -> bool:
    """Whether a list's items are numbers (T,) or (T, C) that differ in T."""
    try:
        forms = {np.shape(item) for item in items}
    except (ValueError, TypeError):
        return False
    return len(forms) > 1 and {len(form) for form in forms} in ({1}, {2}) and len({form[1:] for form in forms}) == 1


def _ragged(items: Any) -> str:
    """'row 0 is (3,), row 5 is (2,)' where a list's items have different shapes."""
    try:
        shapes = [np.shape(item) for item in items]
    except ValueError:
        return "its rows are ragged"
    row = next((k for k, shape in enumerate(shapes) if shape != shapes[0]), None)
    return "" if row is None else f"its rows differ in shape, row 0 is {shapes[0]} and row {row} is {shapes[row]}"


def _words(column: np.ndarray) -> tuple[str, str]:
    """What an array holds that cannot be learned from, and how to mend it."""
    return _WORDS.get(column.dtype.kind, ("values of an unknown type", "x.astype('float32')"))


def _types(column: np.ndarray) -> str:
    """'float (row 0), str (row 7)': the types among Python objects, each where it is met first."""
    first: dict[str, int] = {}
    width = max(1, column.size // max(1, len(column)))
    for k, item in enumerate(column.flat):
        first.setdefault(type(item).__name__, k // width)
    return ", ".join(f"{name} (row {row})" for name, row in first.items())
