"""Tables: which column is what.

In: a `Table`, from a file or from Python, and which of its columns hold the answers, are to be ignored, say who belongs
together, when, and which part (`Columns`). Out: a `Source` of kind "table", the answers apart; of kind "files" where a
column names pictures that are there. Called by `lamina.sources.open`; `open_inputs` and `matched` by the domains that take
tables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lamina.errors import DataError, UsageError, near
from lamina.findings import Finding
from lamina.sources import Columns, Examples, Source, delimited, formats, tagged
from lamina.sources.cells import as_kind, column, empty, told
from lamina.sources.delimited import Reading, Table

ANSWERS = ("target", "label", "labels", "class", "y", "outcome", "response", "answer", "category", "truth", "output")
PARTS = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
         "test": "test", "testing": "test", "holdout": "test"}  # fmt: skip
SPLITS = ("split", "subset", "partition", "set", "fold")


# --- Examples -----------------------------------------------------------------------------------------------------------


def examples(
    table: Table, columns: Columns, asked: Reading, only: str | None = None
) -> tuple[dict[str, Examples], Columns, dict[str, str], list[Finding]]:
    """A Table -> its examples by part, which columns are what, the reasons, and what was found. only: the one column that is
    learned from."""
    found = list(table.findings)
    why: dict[str, str] = {}
    _known(table, columns, asked)
    if only is not None:
        asked = replace(asked, text=(*asked.text, only))  # 7a is the name of a picture
    left = [name for name in table.names if name not in columns.ignore]
    split = _split_column(table, left, columns) if columns.split is None else columns.split or None
    if split is not None and columns.split is None:
        why["split_column"] = f"its cells say train or test; --ignore {split} for another split"
    parts = _parts(table, split) if split is not None else {"train": np.arange(table.rows)}
    left = [name for name in left if name not in (split, columns.groups)]
    target = columns.target
    if target is None:
        rest = [name for name in left if name != only]
        chosen, why["target"] = _infer_target(table, rest, asked) if rest or only is None else ("", "")
        target = (chosen,) if chosen else ()
    clash = [name for name in target if name not in left]
    if clash:
        raise UsageError(f"{clash[0]!r} cannot be the target and ignored, or who belongs together, at once.")
    inputs = [name for name in left if name not in target]
    if only is not None:
        beside = [name for name in inputs if name != only]
        inputs = [only]
        if beside:
            words = ", ".join(map(repr, beside[:6])) + (f" and {len(beside) - 6} more" if beside[6:] else "")
            found.append(Finding("columns_beside", "note", f"{table.name} has columns beside the pictures and their answers: "
                                 f"{words}.", len(beside), beside[:6], "they are not used", "--target for several answers; "
                                 f"--ignore {only} to learn from them without the pictures"))  # fmt: skip
    if not inputs:
        raise DataError(
            f"{table.name} has {'one column' if len(table.names) == 1 else 'no column'} beside the answers "
            f"({', '.join(map(repr, target)) or 'none'})." if len(table.names) > 1
            else f"{table.name} has one column, {table.names[0]!r}: nothing to learn the answers from.",
            expected="columns to learn from, and one with the answers",
            fix="where the separator was not recognised: --source-arg separator=;" if len(table.names) == 1 else "",
        )  # fmt: skip
    at = {name: table.columns[k] for k, name in enumerate(table.names)}
    truth = _truth(table, at, target, asked, found) if target else None
    have = np.ones(table.rows, bool)
    if truth is not None:
        have = ~_gaps(truth)
        if truth.dtype.kind == "O" and not have.all() and (mark := tagged.separator(truth)):
            bare = int((~have).sum())
            found.append(Finding("no_tag", "note", f"{bare:,} of {table.rows:,} rows of {table.name} have no tag.", bare,
                                 table.lines[~have][:5].tolist(), f"learned from as such: {mark!r} stands between tags",
                                 "where the tags are only not known, leave these rows out"))  # fmt: skip
            truth, have = np.where(have, truth, ""), np.ones(table.rows, bool)
        lost = table.lines[~have]
        words = " and ".join(map(repr, target))
        if not have.any():
            raise DataError(f"{table.name} has no answers: the column {words} is empty.", fix="--target COLUMN")
        if len(lost):
            found.append(Finding(
                "no_answer", "warning", f"{len(lost):,} of {table.rows:,} rows of {table.name} have no answer in {words}.",
                len(lost), lost[:5].tolist(), "they were left out",
                "fill in the answers",
            ))  # fmt: skip
        truth = _settled(truth[have], all(_whole(at[name]) for name in target))
    made = {name: column(at[name], asked, name, table.decimal) for name in inputs}
    found += told(table, made)
    values = tuple(found_.values for found_ in made.values())
    styles = {name: one.style for name, one in made.items() if one.style}
    groups = None if columns.groups is None else _groups(at[columns.groups], table, columns.groups, found)
    times = None if columns.times is None else _times(at[columns.times], table, columns.times, asked)
    answer = np.cumsum(have) - 1  # of each row that has one, among those that have
    out = {}
    for part, rows in parts.items():
        rows = rows[have[rows]]
        whole = len(rows) == table.rows

        def cut(array: Any, rows: np.ndarray = rows, whole: bool = whole) -> Any:
            return array if array is None or whole else array[rows]

        out[part] = Examples(tuple(map(cut, values)), None if truth is None else truth[answer[rows]], "table", inputs,
                             cut(table.lines), None, cut(groups), cut(times), styles)  # fmt: skip
    return out, replace(columns, target=target, split=split), why, found


def _known(table: Table, columns: Columns, asked: Reading) -> None:
    """UsageError for columns that are asked for and are not there, with all the names."""
    named = {"text in source_arg": asked.text, "lower in source_arg": asked.lower} if asked.strict else {}
    wanted: dict[str, Sequence[str | None]] = {
        "target": columns.target or (), "ignore": columns.ignore, "groups": (columns.groups,),
        "times": (columns.times,), "split_column": (columns.split,), **named,
    }  # fmt: skip
    missing = [(what, name) for what, some in wanted.items() for name in some if name and name not in table.names]
    if missing:
        words = [f"{table.name} has no column {name!r} ({what}): {near(name, table.names)}" for what, name in missing]
        shown = ", ".join(table.names[:30]) + (f" and {len(table.names) - 30} more" if table.names[30:] else "")
        raise UsageError("\n".join(words), expected=f"one of its columns: {shown}")


def _split_column(table: Table, names: list[str], columns: Columns) -> str | None:
    """A column that is called split or the like, and whose cells are all train, valid or test. None where there are no
    answers either: then all rows are wanted."""
    if columns.target == ():
        return None
    import pyarrow.compute as pc
    from pyarrow import types

    for k, name in enumerate(table.names):
        if name.casefold() in SPLITS and name in names and name not in (columns.target or ()):
            values = table.columns[k]
            if types.is_string(values.type) and not values.null_count:
                words = {word.strip().casefold() for word in pc.unique(values).to_pylist()}
                if words <= set(PARTS) and "train" in {PARTS[word] for word in words} and len(words) > 1:
                    return name
    return None


def _parts(table: Table, split: str) -> dict[str, np.ndarray]:
    words = [None if v is None else str(v).strip() for v in table.columns[table.names.index(split)].to_pylist()]
    codes = [PARTS.get((word or "").casefold()) for word in words]
    wrong = [k for k, code in enumerate(codes) if code is None]
    if wrong:
        shown = sorted({str(words[k]) for k in wrong})[:5]
        raise DataError(
            f"The column {split!r} of {table.name} says of {len(wrong):,} rows neither train, valid nor test, but "
            f"{', '.join(map(repr, shown))} (line {table.lines[wrong[0]]}).",
            expected="train, valid (val, dev) or test in every row",
            fix="leave out --split-column, or mend the column",
        )
    array = np.array(codes)
    found = {part: np.flatnonzero(array == part) for part in ("train", "valid", "test")}
    if not len(found["train"]):
        raise DataError(f"No row of {table.name} is for training by its column {split!r}.")
    return {part: rows for part, rows in found.items() if len(rows)}


def _infer_target(table: Table, names: list[str], asked: Reading) -> tuple[str, str]:
    """Which column holds the answers, and why: the last whose values come again or are numbers, which no date is."""
    import pyarrow.compute as pc
    from pyarrow import types

    if not names:
        raise DataError(f"No column of {table.name} is left to hold the answers.", fix="ignore fewer")
    for wanted in ANSWERS:
        for name in names:
            if name.casefold() == wanted:
                return name, f"a column is called {name}"
    for name in reversed(names):
        values = table.columns[table.names.index(name)]
        nested = types.is_nested(values.type) or types.is_null(values.type)
        many = table.rows if nested else pc.count_distinct(values).as_py()
        if values.null_count == table.rows or many < 2:
            continue
        text = types.is_string(values.type) or types.is_large_string(values.type)
        kind = "" if nested else column(values, asked, name, table.decimal).values.dtype.kind
        names_each = text and kind == "O" and many > 0.9 * table.rows and table.rows > 20
        if kind != "M" and not names_each:
            last = name == names[-1]
            return name, "the last column" if last else "the last column that can be answers"
    return names[-1], "the last column"


def _truth(
    table: Table, at: dict[str, Any], target: tuple[str, ...], asked: Reading, found: list[Finding]
) -> np.ndarray:
    """The answers (N,), or (N, D) of several columns; gaps as NaN or None."""
    made = {name: column(at[name], asked, name, table.decimal, answers=True) for name in target}
    found += told(table, made, answers=True)
    if len(made) == 1:
        only = next(iter(made.values())).values
        if only.dtype.kind == "M":
            raise DataError(f"The answers in {target[0]!r} are dates.", expected="classes or numbers",
                            fix="turn them into numbers, such as days from a day on")  # fmt: skip
        return only
    words = [name for name, one in made.items() if one.values.dtype.kind not in "biuf"]
    if words:
        raise DataError(
            f"There are {len(target)} targets, and {', '.join(map(repr, words[:5]))} holds no numbers.",
            expected="numbers, or 0 and 1 for tags, in each of several targets",
        )
    whole = all(one.values.dtype.kind in "biu" for one in made.values())
    return np.stack([one.values.astype(np.int64 if whole else np.float64) for one in made.values()], axis=1)


def _gaps(truth: np.ndarray) -> np.ndarray:
    if truth.dtype.kind == "f":
        return np.isnan(truth) if truth.ndim == 1 else np.isnan(truth).any(1)
    return np.array([value is None for value in truth], bool) if truth.dtype.kind == "O" else np.zeros(len(truth), bool)


def _whole(values: Any) -> bool:
    from pyarrow import types

    return types.is_integer(values.type)


def _settled(truth: np.ndarray, whole: bool) -> np.ndarray:
    """Answers without gaps in the type they have: words; whole numbers that were fractions for their gaps alone (`whole`), or
    that are few, as the numbers of classes are."""
    if truth.dtype.kind == "O":
        return truth.astype(str) if max(map(len, truth)) <= 256 else truth
    if truth.dtype.kind == "f" and (truth == np.rint(truth)).all() and (np.abs(truth) < 2**53).all():
        return truth.astype(np.int64) if whole or len(np.unique(truth)) <= 20 else truth
    return truth


def _groups(values: Any, table: Table, name: str, found: list[Finding]) -> np.ndarray:
    words = [None if v is None else str(v) for v in values.to_pylist()]
    gaps = [k for k, word in enumerate(words) if word is None or not word.strip()]
    if gaps:
        found.append(Finding("no_group", "warning", f"{len(gaps):,} rows of {table.name} have no {name}.", len(gaps),
                             table.lines[gaps][:5].tolist(), "each is a group of its own", f"fill in {name}"))  # fmt: skip
        for k in gaps:
            words[k] = f"\0{k}"
    return np.array(words)


def _times(values: Any, table: Table, name: str, asked: Reading) -> np.ndarray:
    """When, as numbers or dates that can be ordered."""
    made = column(values, asked, name, table.decimal).values
    if made.dtype.kind == "O":
        example = next((word for word in made if word is not None), "")
        raise DataError(f"The times in {name!r} of {table.name} are in no style that is known, such as {example!r}.",
                        expected="2026-01-31, 2026-01-31 12:30:00, 31.01.2026, 31/01/2026, or numbers")  # fmt: skip
    gap = np.isnat(made) if made.dtype.kind == "M" else np.isnan(made) if made.dtype.kind == "f" else np.zeros(
        len(made), bool)  # fmt: skip
    if gap.any():
        raise DataError(
            f"{int(gap.sum()):,} rows of {table.name} have no time in {name!r}: "
            f"line {', '.join(map(str, table.lines[gap][:5]))}.",
            fix="fill in the times, or leave these rows out",
        )
    return made


# --- Sources ------------------------------------------------------------------------------------------------------------


def source(table: Table, columns: Columns, asked: Reading, stems: dict[str, str] | None = None) -> Source:
    """A Table -> a Source. stems: of pictures that its rows may name without an ending -> their paths."""
    only, places = _picture_column(table, columns, stems or {})
    parts, known, why, found = examples(table, columns, asked, only)
    if only is not None:
        parts = {part: _pictures(rows, table, only, places, found) for part, rows in parts.items()}
        words = f"{sum(examples.count or 0 for examples in parts.values()):,} pictures named by the column {only!r}"
    else:
        width = len(parts["train"].inputs)
        words = f"{table.rows:,} rows, {width} column{'s' if width > 1 else ''}"
    words += f", answers in {', '.join(known.target)}" if known.target else ", no answers"
    words += f", parts by {known.split}" if known.split else ""
    return Source(table.name, parts["train"], parts.get("valid"), parts.get("test"), about=words, why=why,
                  target=known.target or (), findings=found)  # fmt: skip


def _picture_column(table: Table, columns: Columns, stems: dict[str, str]) -> tuple[str | None, dict[str, str]]:
    """The column whose cells name pictures that are there, and each name's path; from the table's folder, or from one in
    it."""
    from pyarrow import types

    from lamina.pictures import SUFFIXES

    if table.folder is None:
        return None, {}
    spoken_for = {*columns.ignore, *(columns.target or ()), columns.groups, columns.times, columns.split}
    for name, values in zip(table.names, table.columns, strict=True):
        if name in spoken_for or not (types.is_string(values.type) or (stems and types.is_integer(values.type))):
            continue
        some = _different(values.slice(0, 1000))[:50]
        if some and all(word.lower().endswith(SUFFIXES) for word in some):
            with os.scandir(table.folder) as entries:
                inner = sorted(entry.path for entry in entries if entry.is_dir() and not entry.name.startswith("."))
            bases = [table.folder, *inner[:1000]]
            there = [sum(os.path.exists(os.path.join(base, word)) for word in some) for base in bases]
            if max(there):
                base = bases[there.index(max(there))]
                return name, {word: os.path.join(base, word) for word in _different(values)}
        elif some and sum(word in stems for word in some) > 0.5 * len(some):
            return name, {word: stems.get(word, "") for word in _different(values)}
    return None, {}


def _different(values: Any) -> list[str]:
    """The different cells of a column, without blanks around."""
    import pyarrow.compute as pc

    words = (str(word).strip() for word in pc.unique(values).to_pylist() if word is not None)
    return [word for word in words if word]


def _pictures(rows: Examples, table: Table, name: str, places: dict[str, str], found: list[Finding]) -> Examples:
    """Rows of names -> examples of kind "files"; those whose picture is not there are left out."""
    called = [None if word is None else str(word).strip() for word in as_kind(rows.inputs[0], "O")[0]]
    there = np.array([word is not None and os.path.isfile(places.get(word, "")) for word in called], bool)
    lost = np.flatnonzero(~there)
    if len(lost):
        shown = [str(called[row]) for row in lost[:5]]
        words = f"{len(lost):,} of {len(called):,} pictures that {table.name} names are not there: {', '.join(shown)}."
        if not there.any():
            raise DataError(words, expected=f"paths from {table.folder} in the column {name!r}")
        found.append(Finding("missing_files", "warning", words, len(lost), shown, "their rows are left out",
                             "bring the files to their places"))  # fmt: skip

    def cut(array: Any) -> Any:
        return array if array is None or not len(lost) else array[there]

    paths = np.empty(int(there.sum()), object)
    paths[:] = [places[word or ""] for word, here in zip(called, there, strict=True) if here]
    ids = np.empty(len(paths), object)
    ids[:] = [word for word, here in zip(called, there, strict=True) if here]
    return Examples((paths,), cut(rows.truth), "files", ids=ids, groups=cut(rows.groups), times=cut(rows.times))


def source_with_answers(x: Any, y: Any, columns: Columns, asked: Reading) -> Source:
    """A table and its answers, given apart."""
    from lamina.sources import arrays

    if columns.target:
        raise UsageError("target would do nothing: the answers are given beside the table.", fix="leave it out")
    opened = source(formats.given(x), replace(columns, target=()), asked)
    truth = arrays.examples(np.zeros(len(y)), y).truth
    if truth is None or len(truth) != opened.train.count:
        raise DataError(f"The table has {opened.train.count:,} rows, and there are {len(y):,} answers.")
    opened.train.truth = truth
    return opened


def joined(tables: list[Table]) -> Table:
    """Several tables of the same columns as one; matched by name."""
    import pyarrow as pa
    from pyarrow import types

    first = tables[0]
    if len(tables) == 1:
        return first
    columns = []
    for other in tables[1:]:
        missing = [name for name in first.names if name not in other.names]
        extra = [name for name in other.names if name not in first.names]
        if missing or extra:
            words = [*(f"no {name!r}" for name in missing[:3]), *(f"{name!r} as well" for name in extra[:3])]
            raise DataError(f"{other.name} has other columns than {first.name}: {', '.join(words)}.",
                            expected="the same columns in all files", fix="give the files one by one")  # fmt: skip
    for name in first.names:
        some = [table.columns[table.names.index(name)] for table in tables]
        kinds = {str(one.type) for one in some if not types.is_null(one.type)}
        if len(kinds) > 1:
            number = all(types.is_integer(o.type) or types.is_floating(o.type) or types.is_null(o.type) for o in some)
            some = [one.cast(pa.float64() if number else pa.string(), safe=False) for one in some]
        elif kinds:
            kind = next(one.type for one in some if not types.is_null(one.type))
            some = [one.cast(kind) for one in some]
        columns.append(pa.chunked_array([chunk for one in some for chunk in one.chunks]))
    lines = np.array([f"{table.name}:{line}" for table in tables for line in table.lines], object)
    found = [finding for table in tables for finding in table.findings]
    return Table(f"{first.name} and {len(tables) - 1} more", first.names, columns, lines, found, first.decimal,
                 first.folder)  # fmt: skip


def matched(
    other: Examples,
    names: Sequence[str],
    kinds: Sequence[str],
    where: str,
    *,
    missing: str = "error",
    idle: Container[str] = (),
    styles: Mapping[str, str] | None = None,
) -> tuple[Examples, list[Finding]]:
    """A table with its columns brought into the order and the kinds of a table of before, by their names.

    kinds: the letter of numpy's for each column ("f", "b", "M", "O"): cells that do not fit are gaps. missing: "error"
    for a DataError where a column is not there, "gap" for one that is all gaps. idle: columns that nobody misses. styles:
    how the words of a column are written, where they stand for something else. New columns are left out, and told."""
    have = list(other.names or [])
    lost = [name for name in names if name not in have]
    needed = [name for name in names if name not in idle]
    missed = [name for name in lost if name not in idle]
    found = []
    if missed:
        hints = "; ".join(f"{name!r}: {near(name, have)}" for name in missed[:3])
        words = f"{where} lacks {len(missed)} of {len(needed)} columns: {hints}{'' if hints.endswith('?') else '.'}"
        if missing == "error" or len(missed) == len(needed):
            raise DataError(words, expected=f"the columns {', '.join(needed[:30])}, in any order")
        found.append(Finding("missing_columns", "warning", words, len(missed), missed[:5], "their cells are all gaps",
                             "give these columns: without them answers are less sure"))  # fmt: skip
    new = [name for name in have if name not in names and name not in delimited.beside.get()]
    if new:
        found.append(Finding("new_columns", "note", f"{where} has columns that are not used: "
                             f"{', '.join(map(repr, new[:5]))}{f' and {len(new) - 5} more' if new[5:] else ''}.",
                             len(new), new[:5], "they are left out", ""))  # fmt: skip
    columns, odd = [], {}
    for name, kind in zip(names, kinds, strict=True):
        if name in lost:
            columns.append(empty(other.count or 0, kind))
            continue
        column_, wrong = as_kind(other.inputs[have.index(name)], kind, (styles or {}).get(name, ""))
        columns.append(column_)
        if len(wrong):
            odd[name] = wrong
    for name, rows in odd.items():
        values = other.inputs[have.index(name)]
        shown = list(dict.fromkeys(str(values[row])[:40] for row in rows))[:4]
        kind = {"f": "numbers", "b": "true or false", "M": "dates"}[kinds[list(names).index(name)]]
        found.append(Finding(
            "odd_cells", "warning", f"{len(rows):,} cells of the column {name!r} of {where} are not {kind}, as in "
            f"training: {', '.join(map(repr, shown))}.", len(rows),
            (rows if other.ids is None else other.ids[rows])[:5].tolist(), "they are gaps", "mend them",
        ))  # fmt: skip
    return replace(other, inputs=tuple(columns), names=list(names)), found


_KNOWN = ("units", "spellings", "day_or_month")  # were told when the table was learned from


def open_inputs(
    path: str,
    names: Sequence[str],
    options: dict[str, Any] | None = None,
    *,
    kinds: Sequence[str] | None = None,
    missing: str = "error",
    idle: Container[str] = (),
) -> tuple[tuple[np.ndarray, ...], list[str], list[Finding]]:
    """A table to predict on, from a file or standard input (`-`) -> the columns of these names, in this order, what each row
    is called, and what was found. A column called `id` that is no input names the rows.

    kinds: of the columns in training, a letter each (f, b, M, O), so that a column is read as it was then.
    missing: "error" or "gap", for a column that is not there. idle: columns that nobody misses. New columns are left out, and
    told."""
    from lamina.sources import places

    asked = replace(delimited.reading(options), kinds=dict(zip(names, kinds or (), strict=False)))
    if path == "-":
        data = sys.stdin.buffer.read()
        begin = data.lstrip(b"\xef\xbb\xbf \r\n")[:1]
        where = "standard input"
        if not data.strip():
            raise DataError("Standard input is empty.", expected="a table: CSV with a line of names, or JSON lines")
        table = (
            formats.of_json(data, where, asked) if begin in (b"{", b"[") else delimited.read(data, where, ".csv", asked)
        )
    else:
        where = path
        paths = places.expanded(path)
        wrong = next((place for place in paths if places.kind(place) not in ("table", "text")), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is no table.", expected=f"{formats.KINDS}, or a pattern of those")
        table = joined([formats.file(place, str(place), asked) for place in paths])
    if not set(names) & set(table.names) and len(names) == len(table.names) and _header_missing(table):
        table = replace(table, names=list(names))  # rows without a line of names, as many columns as are wanted
    found = list(table.findings)
    wanted = set(names)
    made = {
        name: column(values, asked, name, table.decimal)
        for name, values in zip(table.names, table.columns, strict=True)
        if name in wanted
    }
    found += [one for one in told(table, made) if one.kind not in _KNOWN]
    rest = [name for name in table.names if name not in wanted]
    inputs = tuple(one.values for one in made.values()) + tuple(np.zeros(table.rows) for _ in rest)
    whole = Examples(inputs, None, "table", [*made, *rest], table.lines)
    if not inputs:
        raise DataError(f"{where} has no columns.")
    given_kinds = kinds if kinds is not None else [
        made[name].values.dtype.kind if name in made else "f" for name in names
    ]  # fmt: skip
    fitted, more = matched(whole, names, given_kinds, where, missing=missing, idle=idle)
    ids = table.lines
    if "id" in rest:
        ids = np.array([str(v) for v in table.columns[table.names.index("id")].to_pylist()], object)
        more = [_without(finding, "id") for finding in more]
    return fitted.inputs, [str(name) for name in ids], found + [finding for finding in more if finding.count]


def _without(finding: Finding, name: str) -> Finding:
    """New columns without the one that names the rows."""
    if finding.kind != "new_columns" or name not in finding.examples:
        return finding
    rest = [other for other in finding.examples if other != name]
    return replace(finding, count=finding.count - 1, examples=rest, what=finding.what.replace(f"{name!r}, ", "").replace(
        f", {name!r}", ""))  # fmt: skip


def _header_missing(table: Table) -> bool:
    return any(finding.kind == "no_header" for finding in table.findings)
