"""Where examples come from.

In: what the user has: arrays or tensors in memory, a `Dataset` or a `DataLoader`, a file or folder, a sample's name.
Out: a `Source`: the examples column by column, with the validation and test examples where the source has its own.
Called by the domains (`read`), and through them by `train`, `evaluate` and the command line.

    arrays    in memory, .npz files, and torch Datasets
    idx       the IDX files of MNIST and its kin
    samples   digits, iris, wine, breast_cancer, diabetes: small sets that come with scikit-learn
    mnist     found on the disk, or downloaded and verified
    places    paths: files, patterns, archives; and in them
    folders   folders of pictures, texts and tables
    tables    tables, from files (`delimited`, `formats`) or Python, and which of their columns (`cells`) is what

Nothing is opened by pickle. What is unreadable, not finite or contradictory is refused here, with its rows.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamina.errors import DataError, UsageError, near
from lamina.findings import Finding

if TYPE_CHECKING:
    from lamina.sources.delimited import Reading

SAMPLES = ("digits", "iris", "wine", "breast_cancer", "diabetes", "mnist")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what. A source that has no columns by name refuses those that were asked for."""

    target: tuple[str, ...] | None = None  # the answers; () for none, None to infer it
    ignore: tuple[str, ...] = ()  # not to be looked at
    groups: str | None = None  # who belongs together
    times: str | None = None  # when
    split: str | None = None  # says train, valid or test of each row; "" for none, None to infer it


@dataclass
class Examples:
    """One table of examples, column by column.

    kind     inputs
    arrays   a tuple of arrays (N, ...), one an input of the net, taken as they are
    pictures the same, of one array (N, H, W), (N, C, H, W) or (N, H, W, C)
    table    a tuple of columns (N,), one a name in `names`: float64 with NaN for a gap, bool, datetime64, or objects
             (str, None for a gap)
    texts    a tuple of one array (N,) of objects: str
    files    a tuple of one array (N,) of objects: paths of pictures, as str
    dataset, stream (no length), loader   a Dataset, IterableDataset or DataLoader itself
    """

    inputs: Any
    truth: np.ndarray | None = None  # (N, ...) the answers as given; None where there are none, or a Dataset has them
    kind: str = "arrays"
    names: list[str] | None = None  # of the columns of inputs (N, F), or of a table's columns
    ids: np.ndarray | None = None  # (N,) what a person calls each example: its file, its line; None: its number
    labels: list[str] | None = None  # of the classes, where truth holds their numbers 0..K-1 and their names are known
    groups: np.ndarray | None = None  # (N,) who belongs together and must not be split
    times: np.ndarray | None = None  # (N,) when
    styles: dict[str, str] = field(default_factory=dict)  # of a table's columns how they were written: `cells.Column`

    @property
    def count(self) -> int | None:
        """How many there are; None for a stream."""
        if isinstance(self.inputs, tuple):
            return len(self.inputs[0])
        items = self.inputs.dataset if self.kind == "loader" else self.inputs
        return None if self.kind == "stream" or not hasattr(items, "__len__") else len(items)


@dataclass
class Source:
    """Examples to learn from, and those to validate and test on where the source has its own."""

    name: str  # "digits", "arrays in memory", a path
    train: Examples
    valid: Examples | None = None
    test: Examples | None = None
    reopen: str | None = None  # opens it again (`open(reopen)`); None where anything of it lives in memory only
    about: str = ""  # a line for people: "1,797 pictures 1x8x8, from scikit-learn"
    why: dict[str, str] = field(default_factory=dict)  # what was inferred on reading, and the reason: {"target": ...}
    target: tuple[str, ...] = ()  # the columns that hold the answers, where they have names
    findings: list[Finding] = field(default_factory=list)  # what was mended, left out or guessed on reading


def open(
    source: Any,
    *,
    data_dir: str | Path | None = None,
    test: Any = None,
    valid: Any = None,
    columns: Columns | None = None,
    options: Mapping[str, Any] | None = None,
) -> Source:
    """Whatever holds examples -> a `Source`.

    `source` is a tuple (x, y), or x alone, of arrays (N, ...), tensors or lists, where x may be a tuple of several
    inputs; a data frame, an Arrow table or a dict of columns; a map-style Dataset, an IterableDataset or a DataLoader; the
    path of a file or folder (see `lamina.sources.places`), a list of paths, or a pattern of them (`part-*.csv`); or the
    name of a sample (SAMPLES; a name comes before a file of the same name: write ./mnist for that). `data_dir` is where
    `mnist` lies. `columns` says which columns of a table are what, `options` how a file is read (see
    `lamina.sources.delimited.Reading`).

    `test` and `valid` may be sources of any of these forms: their own test (valid) examples where they have such, else
    all they have. They take the place of those of `source`. The columns of tables are matched by name.

    Raises UsageError where nothing can be opened, DataError where the data are bad, ResourceError where the disk or the
    network fails.
    """
    from lamina.sources import delimited
    from lamina.sources.arrays import is_items

    columns, asked = columns or Columns(), delimited.reading(options)
    opened = _open(source, data_dir, columns, asked)
    for part, given in (("valid", valid), ("test", test)):
        if given is None:
            continue
        if opened.train.kind == "dataset" and is_items(given):
            _open(given, data_dir, columns, asked)  # which says what is wrong with it
            setattr(opened, part, Examples(given, kind="dataset"))  # beside a Dataset its likes stay whole
            opened.reopen = None
        else:
            place_part(opened, part, lambda c, a, given=given: _open(given, data_dir, c, a), columns, asked)  # type: ignore[misc]
    for part, title in (("valid", "validation"), ("test", "test")):
        examples = getattr(opened, part)
        if examples is not None:
            _agree(opened.train, examples, title)
    return opened


def place_part(
    opened: Source, part: str, read: Callable[[Columns, Reading], Source], columns: Columns, asked: Any
) -> None:
    """Validation or test examples, read as those of `opened` were, into it: their own part where they have such, else all
    they have. The columns of tables are matched by name, and are as in training."""
    from lamina.sources import tables

    same = replace(columns, target=opened.target if opened.target else columns.target, split="")
    kinds = _kinds(opened)
    other = read(same, replace(asked, kinds=kinds))
    examples = getattr(other, part)
    if examples is None:
        examples = other.train
    opened.findings += other.findings
    train = opened.train
    if examples.kind == train.kind == "table":
        wanted = [kinds[name] for name in train.names or ()]
        examples, told = tables.matched(examples, train.names or [], wanted, other.name)
        opened.findings += told
    setattr(opened, part, examples)
    if other.reopen is None:
        opened.reopen = None


def named(source: Any) -> str | None:
    """The text that names a source and opens it again: a name, a path, paths with the mark of PATH between them; None for
    what lives in memory."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(os.fspath(source))
    if isinstance(source, (list, tuple)) and source and all(isinstance(path, os.PathLike) for path in source):
        return os.pathsep.join(os.fsdecode(os.fspath(path)) for path in source)
    if isinstance(source, list) and source and all(isinstance(path, str) and os.path.exists(path) for path in source):
        return os.pathsep.join(source)
    return None


def describe(examples: Examples) -> str:
    """'1,797 pictures 1x8x8', '150 examples of 4 numbers', '344 rows of 6 columns', 'a stream': examples in a few words."""
    if examples.count is None:
        return "a stream of examples"
    plain = {"table": f"rows of {len(examples.names or ())} columns", "texts": "texts", "files": "picture files"}
    if examples.kind in plain:
        return f"{examples.count:,} {plain[examples.kind]}"
    if not isinstance(examples.inputs, tuple):
        return f"{examples.count:,} examples"
    shapes = [column.shape[1:] for column in examples.inputs]
    words = [f"{shape[0]} numbers" if len(shape) == 1 else "x".join(map(str, shape)) or "1 number" for shape in shapes]
    thing = "pictures" if examples.kind == "pictures" else "examples of" if len(shapes) == 1 else "examples of inputs"
    return f"{examples.count:,} {thing} {' and '.join(words)}"


def _open(source: Any, data_dir: str | Path | None, columns: Columns, asked: Reading) -> Source:
    from lamina.sources import arrays, delimited, formats, places, tables

    name = named(source)
    if name is not None and name not in SAMPLES:
        opened = places.read(name, columns, asked)
    elif formats.is_table(source):
        asked.only(delimited.OF_CELLS, "a table in memory")
        opened = tables.source(formats.given(source), columns, asked)
    elif isinstance(source, tuple) and len(source) == 2 and formats.is_table(source[0]) and not _is_array(source[0]):
        opened = tables.source_with_answers(*source, columns, asked)
    else:
        if name == "mnist":
            from lamina.sources import mnist

            opened = mnist.read(data_dir)
        elif name is not None:
            from lamina.sources import samples

            opened = samples.read(name)
        else:
            opened = arrays.read(source)
        no_columns(columns, asked, opened.name)
    if columns.target == ():  # there are no answers, whatever there is
        for part in ("train", "valid", "test"):
            if (examples := getattr(opened, part)) is not None:
                examples.truth = examples.labels = None
    return opened


def _is_array(table: Any) -> bool:
    """Whether a data frame holds nothing but finite numbers: beside its answers it is taken as an array (N, F)."""
    numbers = np.asarray(table) if hasattr(table, "__array__") else np.empty(0, object)
    return numbers.ndim == 2 and numbers.dtype.kind in "biuf" and bool(np.isfinite(numbers).all())


def no_columns(columns: Columns, asked: Reading, name: str) -> None:
    """UsageError for columns, or ways of reading, that were asked for of a source that has none."""
    words = {"target": columns.target, "ignore": columns.ignore, "groups": columns.groups, "times": columns.times,
             "split_column": columns.split}  # fmt: skip
    idle = [what for what, given in words.items() if given]
    if idle:
        from lamina.sources import formats

        raise UsageError(
            f"{' and '.join(idle)} would do nothing: {name} has no columns with names.",
            expected=f"a table: {formats.KINDS}, a data frame",
            fix="leave it out" if len(idle) == 1 else "leave them out",
        )
    asked.only((), name)


def near_misses(path: Path) -> str:
    """'did you mean ...?' for a path that is not there."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r} either"
    beside = os.listdir(folder)
    if len(beside) > 12:
        beside = difflib.get_close_matches(path.name, beside, n=12)
    return near(path.name, [*SAMPLES, *beside])


def _kinds(opened: Source) -> dict[str, str]:
    """The kind of each column of a table, by name, its answers among them, so that another table is read alike."""
    train = opened.train
    if train.kind != "table":
        return {}
    found = {name: column.dtype.kind for name, column in zip(train.names or (), train.inputs, strict=True)}
    answers = "" if train.truth is None else train.truth.dtype.kind
    return found | dict.fromkeys(opened.target, {"U": "O", "i": "f", "u": "f"}.get(answers, answers))


def _agree(train: Examples, other: Examples, part: str) -> None:
    """Refuse validation or test examples that cannot stand in one table with the training examples."""
    if train.kind in ("loader", "stream"):
        return  # taken as they come, each by itself
    columns = [isinstance(examples.inputs, tuple) for examples in (train, other)]
    if columns[0] != columns[1] or other.kind in ("loader", "stream"):
        raise UsageError(
            f"The training examples are {_form(train)}, the {part} examples {_form(other)}.",
            expected="both in the same form",
            fix="give both as arrays, both as a Dataset, or both as a DataLoader",
        )
    if not columns[0]:
        return  # what a Dataset gives is known only when it is walked
    if train.kind != other.kind and {train.kind, other.kind} & {"table", "texts", "files"}:
        raise UsageError(f"The training examples are {describe(train)}, the {part} examples {describe(other)}.",
                         expected="both in the same form")  # fmt: skip
    ours, theirs = ([(column.shape[1:], column.dtype.kind) for column in e.inputs] for e in (train, other))
    if ours != theirs and train.kind != "table":
        raise DataError(
            f"The {part} inputs are {_shapes(other.inputs)}; the training inputs are {_shapes(train.inputs)}.",
            expected="the same shape and kind of numbers",
            fix="prepare both in the same way",
        )
    if (train.truth is None) != (other.truth is None):
        which = part if other.truth is None else "training"
        raise DataError(f"The {which} examples have no answers, the others have.", fix="give both as (x, y)")
    if train.truth is None or other.truth is None:
        return
    whole, words = "biu", "UO"
    kinds = {"f": "f" + whole}.get(train.truth.dtype.kind, whole if train.truth.dtype.kind in whole else words)
    if train.truth.shape[1:] != other.truth.shape[1:] or other.truth.dtype.kind not in kinds:
        raise DataError(
            f"The {part} answers are {_shapes((other.truth,))}; the training answers are {_shapes((train.truth,))}.",
            expected="the same shape and kind",
        )


def _form(examples: Examples) -> str:
    return {"dataset": "a Dataset", "stream": "a stream", "loader": "a DataLoader"}.get(examples.kind, "arrays")


def _shapes(columns: tuple[np.ndarray, ...]) -> str:
    return ", ".join(f"({', '.join(['N', *map(str, column.shape[1:])])}) {column.dtype}" for column in columns)
