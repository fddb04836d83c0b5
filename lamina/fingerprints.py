"""What the data of a run were, so that other data are noticed, and told.

In: `Data`, and the recipe that names its files. Out: a record (JSON) and a hash of each row, kept with the run; later the
differences between them and data that are given, in words. Called by training, before a run goes on and after each epoch.

Rows are hashed as they were encoded: 64 bits each, for accidents, not against an enemy. Of a user's Dataset SAMPLES items are
read, spread over all, twice: where they come out otherwise, they say nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamina import checks, files, mapped
from lamina import run as runs
from lamina.batches.items import Reader
from lamina.data import PARTS, Data, load
from lamina.errors import DataError, LaminaError, RunError, UsageError, rows
from lamina.joined import Joined
from lamina.recipe import Recipe, share
from lamina.sources import Source, places
from lamina.splits import Split

ROWS = "rows.u64"  # 8 bytes a row, in the order of the table
SAMPLES = 16  # items of a Dataset
CHEAP = 0.1  # seconds that reading them may take, to be done after every epoch
_MOST_CLASSES = 10_000


def of_source(source: Source, recipe: Recipe, task: str) -> dict[str, Any]:
    """What can be told before anything is encoded: files, sizes, shapes, classes."""
    parts = {part: getattr(source, part) for part in ("train", "valid", "test")}
    inputs = source.train.inputs
    return {
        "files": _files(recipe),
        "sizes": {part: examples.count for part, examples in parts.items() if examples is not None},
        "shapes": [list(np.shape(c)[1:]) for c in inputs] if isinstance(inputs, tuple) else [type(inputs).__name__],
        "classes": _classes(source) if task == "classes" else [],
    }


def _classes(source: Source) -> list[str]:
    """The names of the classes in their order, where they need not be read item by item."""
    examples = source.train
    truth = examples.truth if examples.truth is not None else getattr(examples.inputs, "targets", None)
    if examples.labels or truth is None:
        return examples.labels or []
    truth = truth.numpy(force=True) if isinstance(truth, Tensor) else np.asarray(truth)
    names = np.unique(truth.astype(str) if truth.dtype.kind == "O" else truth)
    return [str(name) for name in names[:_MOST_CLASSES]]


def _files(recipe: Recipe) -> dict[str, list[int]]:
    """Size and time of change of every file that the recipe names; of a folder, of those in it, and one entry for all that lie
    deeper: their bytes, and a digest of their names, sizes and times."""
    found: dict[str, list[int]] = {}
    for name in (recipe.source, recipe.data_dir, recipe.valid, recipe.test):
        if name is None or share(name) is not None:
            continue
        try:
            named = places.expanded(name)
        except UsageError:  # the name of a sample, or gone
            continue
        for place in named:
            if place.is_file():
                found[str(place)] = list(_facts(place.stat()))
                continue
            below = sorted(_walk(place))
            near = {entry for entry in below if os.path.dirname(entry[0]) == str(place)}
            near = near if len(near) <= 100 else set()
            found |= {path: [size, changed] for path, size, changed in sorted(near)}
            if far := [entry for entry in below if entry not in near]:
                digest = hashlib.sha256(repr(far).encode()).digest()
                found[f"{place}{os.sep}"] = [sum(size for _, size, _ in far), int.from_bytes(digest[:7], "big")]
    return found


def _walk(folder: Path | str) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of every file below a folder, but hidden ones."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path)
            elif entry.is_file():
                yield (entry.path, *_facts(entry.stat()))


def _facts(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns


def of_rows(loaded: Data) -> np.ndarray:
    """A hash of each row of the table: uint64 (N,). Of none, where the examples are no columns."""
    encoded = loaded.parts["train"][0]
    if loaded.split is None or not isinstance(encoded.inputs, tuple):
        return np.zeros(0, np.uint64)
    return hashed(*encoded.inputs, *(() if encoded.truth is None else (encoded.truth,)))


def hashed(*columns: Tensor | Joined) -> np.ndarray:
    """A hash of each row, of its very bits: -0.0 is another than 0.0."""
    joined = [column for column in columns if isinstance(column, Joined)]
    if joined:
        return np.concatenate([hashed(*(column[rows] for column in columns)) for rows in joined[0].spans()])
    return checks.row_hashes([column.numpy().view(f"u{column.itemsize}") for column in columns])


def of_samples(loaded: Data, which: list[int] | None = None) -> dict[str, str]:
    """SHA-256 of some items of a Dataset, by number; of those that come out the same twice. which: those of an earlier time."""
    encoded = loaded.parts["train"][0]
    if loaded.split is None or not hasattr(encoded.inputs, "__getitem__") or isinstance(encoded.inputs, tuple):
        return {}
    count, found = len(encoded.inputs), {}
    reader = Reader(encoded.inputs, 0)
    for index in range(0, count, max(1, count // SAMPLES)) if which is None else which:
        try:
            one = [_digest(reader.items(0, [index])[0]) for _ in range(2 if which is None else 1)]
        except LaminaError:  # it cannot be used, as others will say
            one = [str(loaded.aside is None or index not in loaded.aside.reasons)]
        if one[0] == one[-1]:
            found[str(index)] = one[0]
    return found


def _digest(item: Any) -> str:
    if isinstance(item, (tuple, list)):
        return hashlib.sha256("".join(map(_digest, item)).encode()).hexdigest()
    if isinstance(item, Tensor):
        item = item.detach().cpu().contiguous().view(torch.uint8 if item.ndim else item.dtype).numpy()
    data = item.tobytes() if isinstance(item, (np.ndarray, np.generic)) else repr(item).encode()
    return hashlib.sha256(data).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is otherwise in two records of `of_source`. Files that have only another time are not told."""
    found = []
    for part in sorted(before["sizes"].keys() | now["sizes"].keys()):
        one, other = before["sizes"].get(part, 0), now["sizes"].get(part, 0)
        if one != other:
            found.append(f"the {part} data had {one:,} examples and have {other:,}")
    if before["shapes"] != now["shapes"]:
        found.append(f"examples were {before['shapes']} and are {now['shapes']}")
    one, other = before.get("classes", []), now.get("classes", [])
    if one != other:
        new, gone = [name for name in other if name not in one], [name for name in one if name not in other]
        words = [f"{what} {', '.join(map(repr, names[:5]))}" for what, names in (("new", new), ("gone", gone)) if names]
        found.append(f"classes: {'; '.join(words) or 'the same in another order'}")
    for path in sorted(before["files"].keys() | now["files"].keys()):
        one, other = before["files"].get(path), now["files"].get(path)
        if one is None or other is None:
            found.append(f"{path} is {'new' if one is None else 'gone'}")
        elif one[0] != other[0]:
            found.append(f"{path} had {one[0]:,} bytes and has {other[0]:,}")
    return found


def row_differences(before: np.ndarray, now: np.ndarray) -> list[str]:
    """How rows differ: changed, added, removed, or in another order."""
    if np.array_equal(before, now) or not len(before):
        return []
    here = np.isin(now, before)
    gone, new = int((~np.isin(before, now)).sum()), int((~here).sum())
    if len(before) == len(now):
        places = np.flatnonzero(before != now)
        if gone or new:
            return [f"{len(places)} of {len(now):,} rows are otherwise: {rows(places)}"]
        return [f"{len(places)} of {len(now):,} rows are at other places, the same ones"]
    return [f"{len(now):,} rows where {len(before):,} were: {new} new ones, {gone} are gone"]


def sample_differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    other = [int(index) for index in before if now.get(index) != before[index]]
    return [f"{len(other)} of {len(before)} items that were looked at are otherwise: {rows(other)}"] if other else []


def carried(split: Split, before: np.ndarray, now: np.ndarray, source: Source) -> Split:
    """The split of a run for changed data: a row that was there keeps its part, wherever it is now; a changed one keeps that
    of its place where nothing moved; a new one is learned from. So nothing that was learned from is ever tested on."""
    part = np.zeros(len(now), np.int8)
    parts = np.zeros(max(len(before), 1), np.int8)
    for number, own in ((1, split.valid), (2, split.test)):
        parts[own] = number
    if len(before) == len(now):
        part[:] = parts
    order = np.argsort(before, kind="stable")
    places = np.searchsorted(before, now, sorter=order).clip(0, max(len(before) - 1, 0))
    if len(before):
        known = before[order[places]] == now
        part[known] = parts[order[places[known]]]
    end = source.train.count or 0  # parts that were given stay whole
    for number, examples in ((1, source.valid), (2, source.test)):
        if examples is not None:
            part[end : end + (examples.count or 0)] = number
            end += examples.count or 0
    three = [np.flatnonzero(part == number) for number in range(3)]
    return Split(three[0], three[1], three[2], f"{split.how}; carried over to changed data")


def write(folder: Path, loaded: Data, recipe: Recipe) -> None:
    """The record of a run's data, into data.json, and its rows beside it."""
    found = {**of_source(loaded.source, recipe, loaded.target.name), "samples": of_samples(loaded)}
    files.write(folder / ROWS, of_rows(loaded).tobytes())
    runs.write_json(folder / "data.json", {**runs.read_json(folder / "data.json"), "print": found})


def again(
    folder: Path,
    asked: Recipe,
    opened: Source,
    kinds: tuple[Any, Any],
    *,
    fingerprint: str,
    accept: bool,
    **options: Any,
) -> tuple[Data, list[str]]:
    """The data of a run that goes on, and what is otherwise about them. RunError, which tells it, unless that is accepted;
    other classes or shapes never are."""
    record = runs.read_json(folder / "data.json").get("print")
    now = of_source(opened, asked, kinds[1].name)
    changes, split = differences(record, now) if record else [], runs.stored_split(folder)
    count = sum(size or 0 for size in now["sizes"].values())
    moved = record is not None and record["sizes"] != now["sizes"]
    columns = isinstance(opened.train.inputs, tuple)

    def refusal(why: str, fix: str) -> RunError:
        told = "; ".join(changes) or "their SHA-256 is another"
        return RunError(f"The data are not those {folder} was trained on: {told}.", expected=why, fix=fix)

    settled = record is not None and [record[key] for key in ("classes", "shapes")] == [now["classes"], now["shapes"]]
    if changes and accept and (not settled or (moved and not columns)):
        why = "the classes and shapes of the run" if not settled else "as many items: nobody knows which is which"
        raise refusal(why, "train a new run: nothing that was learned fits these data")
    provisional = Split(np.arange(count), np.arange(0), np.arange(0)) if moved and columns else split
    try:
        loaded, _ = load(asked, opened, split=provisional, fitted=kinds, **options)
    except DataError as error:
        if not changes:
            raise
        raise refusal("the data as they were", f"give them back as they were; now: {error.what}") from error
    samples = record["samples"] if record else {}
    otherwise = sample_differences(samples, of_samples(loaded, [int(index) for index in samples]))
    if not moved and not otherwise and (record is None or settled) and loaded.fingerprint() == fingerprint:
        return loaded, []
    place, rows_now = folder / ROWS, of_rows(loaded)
    before = np.frombuffer(place.read_bytes(), np.uint64) if place.is_file() else np.zeros(0, np.uint64)
    changes = [*row_differences(before, rows_now), *otherwise, *changes]
    if not accept or record is None:
        raise refusal(
            "the data as they were",
            "give them as they were, train a new run, or go on with these: lamina resume --accept-data-change",
        )
    if columns and split is not None:
        loaded.split = carried(split, before, rows_now, opened)
        encoded = loaded.parts["train"][0]
        loaded.parts = {part: (encoded, own) for part in PARTS if len(own := getattr(loaded.split, part))}
    return loaded, changes


class Watch:
    """Whether the data change while they are learned from: looked at after every epoch. Columns in memory cannot; those that
    are read from their files can, and the items of a Dataset where looking at some is cheap."""

    def __init__(self, loaded: Data, recipe: Recipe):
        self._loaded, self._recipe = loaded, recipe
        self._print = ""
        self._samples: dict[str, str] = {}
        encoded = loaded.parts["train"][0]
        if (
            loaded.split is not None
            and isinstance(encoded.inputs, tuple)
            and any(map(mapped.is_mapped, encoded.inputs))
        ):
            self._files, self._print = _files(recipe), loaded.fingerprint()
        else:
            began = time.monotonic()
            samples = of_samples(loaded)
            self._samples = samples if time.monotonic() - began < 2 * CHEAP else {}

    def look(self, epoch: int) -> None:
        """DataError where they have changed."""
        found: list[str] = []
        if self._print and (now := _files(self._recipe)) != self._files:
            changed = [path for path in self._files if now.get(path) != self._files[path]]
            if self._loaded.fingerprint() != self._print:
                found = [f"{', '.join(changed) or 'a file'} has other contents"]
            self._files = now
        elif self._samples:
            found = sample_differences(self._samples, of_samples(self._loaded, [int(index) for index in self._samples]))
        if found:
            raise DataError(
                f"The data changed while they were learned from, in epoch {epoch + 1} or before: {'; '.join(found)}.",
                expected="data that stay as they are until the run ends",
                fix="train a new run on data that nobody writes to",
            )
