"""Examples that nobody gave answers for, made part of what is learned from.

In: the data of a training, a source of such examples and the net as it begins. Out: `Data.more`, the training examples with
the told ones behind them, and a finding that says how many were told. Called by training before the net learns, and by resume
with what was told then. How they are told is in `pseudo`.

Validation and test examples are not looked at, and an unlabelled example that is one of them, number for number, is left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamina import data, files, fingerprints, foreign, mapped, pseudo, weights
from lamina import run as runs
from lamina import sources as sources_
from lamina.domains.base import Encoded
from lamina.errors import DataError, RunError, UsageError
from lamina.findings import Finding
from lamina.recipe import Recipe
from lamina.sources import Columns, Source

TOLD = "told.safetensors"


def tell(loaded: data.Data, given: Any, net: Any, asked: Recipe) -> dict[str, Any]:
    """Set `loaded.more`; what was done, for run.json. UsageError where the answers are not classes."""
    rows = loaded.rows("train")
    encoded = loaded.parts["train"][0]
    if loaded.target.name != "classes" or loaded.target.width < 2 or encoded.truth is None or rows is None:
        raise UsageError(
            f"unlabelled is for classes learned from columns, and these answers are {loaded.target.name}.",
            fix="leave it out",
        )
    if asked.balance not in (None, "none"):
        raise UsageError(f"unlabelled keeps the shares of the classes, and balance={asked.balance} changes them.",
                         fix="leave one of them out")  # fmt: skip
    others, taken = _encoded(loaded, given, asked)
    free = _not_held_out(loaded, encoded, others)
    if not len(free):
        raise DataError(f"{taken.name} holds nothing that is not a validation or test example.",
                        expected="other examples without answers")  # fmt: skip
    whole = _behind(encoded, others, np.zeros(len(others[0]), np.int64))
    behind = len(encoded.truth) + free
    sides = loaded.domain.sides(net, whole, np.concatenate([rows, behind]))
    if not sides:
        raise UsageError(f"The domain {loaded.domain.name} has no side that simple models see.",
                         fix="a net that is trained already: --net hf:FOLDER")  # fmt: skip
    truth = encoded.truth[torch.from_numpy(rows)].long().numpy()
    table = pseudo.tell(sides, truth, loaded.target.width)[len(rows) :]
    chosen = pseudo.surest(table)
    labels = table[chosen].argmax(1)
    whole.truth[torch.from_numpy(behind[chosen])] = torch.from_numpy(labels).to(encoded.truth.dtype)  # type: ignore[index]
    loaded.more = whole, np.sort(np.concatenate([rows, behind[chosen]]))
    told = {
        "source": taken.name,
        "fingerprint": _print(others),
        "offered": len(others[0]),
        "held_out": len(others[0]) - len(free),
        "used": len(chosen),
        "shares": {str(name): int((labels == k).sum()) for k, name in enumerate(loaded.target.labels)},
    }
    shares = ", ".join(f"{count:,} {name}" for name, count in list(told["shares"].items())[:10])  # type: ignore[attr-defined]
    loaded.findings.append(
        Finding(
            "unlabelled", "note",
            f"Of {told['offered']:,} examples without answers the surest {told['used']:,} were told by simple models that "
            f"learned from {len(rows):,} known answers: {shares}."
            + (f" {told['held_out']:,} are validation or test examples, which were left out." if told["held_out"] else ""),
            len(chosen), [], "learned from as if they were known", "leave --unlabelled out to compare",
        )
    )  # fmt: skip
    return told


def save(loaded: data.Data, folder: Path) -> None:
    """What was told: the row in the unlabelled source, and the class, of each."""
    if loaded.more is None:
        return
    encoded, rows = loaded.more
    n = len(loaded.parts["train"][0].truth)  # type: ignore[arg-type]
    behind = torch.from_numpy(rows[rows >= n])
    held = {"rows": behind - n, "classes": encoded.truth[behind].long()}  # type: ignore[index]
    files.write(folder / TOLD, weights.to_bytes(held))


def again(loaded: data.Data, folder: Path, asked: Recipe, facts: dict[str, Any], given: Any = None) -> None:
    """`loaded.more` as it was, for a run that goes on. RunError where the unlabelled examples are others now."""
    told = facts.get("unlabelled")
    if told is None:
        return
    given = asked.unlabelled if given is None else given
    if given is None:
        raise UsageError(f"The unlabelled examples of {folder} were in memory and are gone.",
                         fix="lamina.resume(run, ..., unlabelled=...) from Python")  # fmt: skip
    others, _ = _encoded(loaded, given, asked)
    if _print(others) != told["fingerprint"]:
        raise RunError(f"The unlabelled examples are not those {folder} was trained with: their SHA-256 differs.",
                       fix="give them as they were, or train again")  # fmt: skip
    held = foreign.read_safetensors(folder / TOLD)
    encoded, rows = loaded.parts["train"]
    classes = np.zeros(len(others[0]), np.int64)
    classes[held["rows"].numpy()] = held["classes"].numpy()
    loaded.more = (
        _behind(encoded, others, classes),
        np.sort(
            np.concatenate([rows if rows is not None else np.zeros(0, int), len(encoded.truth) + held["rows"].numpy()])  # type: ignore[arg-type]
        ),
    )


def _encoded(loaded: data.Data, given: Any, asked: Recipe) -> tuple[tuple[Tensor, ...], Source]:
    """The examples of the unlabelled source as the fitted domain encodes them. Answers they may have are not looked at."""
    options = runs.reading(asked)
    columns = options.pop("columns", Columns())
    hidden = tuple(name for name in loaded.source.target if name not in columns.ignore)
    if isinstance(given, Source):
        opened = given
    else:
        try:
            opened = sources_.open(given, columns=Columns((), (*columns.ignore, *hidden)), **options)
        except (UsageError, DataError):  # it has no such column
            opened = sources_.open(given, columns=Columns((), columns.ignore), **options)
    taken = loaded.domain.take(opened)
    inputs = loaded.domain.encode(taken.train.inputs)
    if not isinstance(inputs, tuple):
        raise UsageError(f"unlabelled is a {type(given).__name__}.", expected="columns: files, tables, arrays")
    known = loaded.parts["train"][0].inputs
    ours, theirs = ([tuple(column.shape[1:]) for column in table] for table in (known, inputs))
    if ours != theirs:
        raise DataError(f"The unlabelled examples have the shape {theirs}, the others {ours}.", fix="give both alike")
    return inputs, taken


def _behind(encoded: Encoded, others: tuple[Tensor, ...], classes: np.ndarray) -> Encoded:
    """The encoded examples with others behind them."""
    pairs = zip(encoded.inputs, others, strict=True)
    inputs = tuple(mapped.as_tensor(mapped.concatenated([one.numpy(), other.numpy()])) for one, other in pairs)
    assert encoded.truth is not None
    whole = Encoded(inputs, torch.cat([encoded.truth, torch.from_numpy(classes).to(encoded.truth.dtype)]))
    kept = encoded.__dict__.get("features")
    if kept:  # what a frozen trunk made of the first ones
        room = torch.zeros(len(others[0]), kept["table"].shape[1])
        there = np.concatenate([kept["there"], np.zeros(len(room), bool)])
        whole.__dict__["features"] = {"table": torch.cat([kept["table"], room]), "there": there}
    return whole


def _not_held_out(loaded: data.Data, encoded: Encoded, others: tuple[Tensor, ...]) -> np.ndarray:
    """Rows of the others that are no validation or test example, by the hash of all their numbers."""
    known = [np.zeros(0, np.uint64)]
    for part in ("valid", "test"):
        if part in loaded.parts:
            held, rows = loaded.parts[part]
            all_rows = np.arange(len(held.inputs[0])) if rows is None else rows
            known.append(
                fingerprints.hashed(*(mapped.take(column, torch.from_numpy(all_rows)) for column in held.inputs))
            )
    return np.flatnonzero(~np.isin(fingerprints.hashed(*others), np.concatenate(known)))


def _print(columns: tuple[Tensor, ...]) -> str:
    digest = hashlib.sha256(json.dumps([list(column.shape) for column in columns]).encode())
    for column in columns:
        digest.update(np.ascontiguousarray(column.numpy()).data)
    return digest.hexdigest()
