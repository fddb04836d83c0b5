"""What a trained net shows of its data: which inputs it knows, and which labels it doubts.

In: a `Job` whose net has its final weights. Out: a file of the run, from which it is told later that an input is unlike those
learned from (`familiar`), and a finding about labels that look wrong (`checks.labels`). Called once, before the net is
measured. Bounded: some thousand examples are looked at, spread evenly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lamina import data, familiar, files, findings, inference, mapped, weights
from lamina.batches import Batches
from lamina.checks import labels
from lamina.job import Job
from lamina.splits import spread
from lamina.targets.base import Answers

_SOME = 250  # examples at a time
_UNKNOWN = 0.5  # share of an example that may always be unknown
_ENOUGH = 50  # held-out examples: of fewer the 99th percentile is nothing


def familiarise(job: Job) -> None:
    """What inputs the net knows goes into a file of the run, so that strange ones are told when it is asked. Held-out examples
    say how far off a familiar one may lie: those of validation, if they are enough, else some of training, which are then
    not learned from here."""
    loaded = job.data
    if not _is_plain(job):
        return
    encoded = loaded.parts["train"][0]
    known = spread(_rows(job, "train"), familiar.ROWS)
    if "valid" in loaded.parts and len(_rows(job, "valid")) >= _ENOUGH:
        measured, others = loaded.parts["valid"][0], _rows(job, "valid")
    else:
        measured, others, known = encoded, known[::4], np.delete(known, np.s_[::4])
    others = spread(others, familiar.ROWS // 2)
    classes = None
    if loaded.target.name == "classes" and encoded.truth is not None:
        classes = encoded.truth[torch.from_numpy(known)].long().reshape(-1).numpy()
    try:
        net, (near, far) = _walks(job, (encoded, known), (measured, others))
        pictures = all(column.ndim > 2 for column in encoded.inputs)
        found = familiar.learn(net, near, classes, far, both_sides=pictures)
    except Exception as error:  # a net of the user's may do what it likes; its training is done
        if not job.facts["net"]["own"]:
            raise
        job.facts["familiar"] = {"why_not": f"{type(error).__name__}: {error}"}
        return
    if found is not None:
        written = weights.to_bytes(found.tensors)
        files.write(job.folder / familiar.FILE, written)
        job.facts["familiar"] = {
            "file": familiar.FILE,
            "sha256": hashlib.sha256(written).hexdigest(),
            "layers": found.layers,
            "dims": found.dims,
        }
        unknown = loaded.domain.unknown(
            tuple(mapped.take(column, torch.from_numpy(others)) for column in measured.inputs)
        )
        if unknown is not None:
            job.facts["familiar"]["unknown"] = max(_UNKNOWN, float(np.quantile(unknown, familiar.QUANTILE)))


def doubt(job: Job, measured: Mapping[str, tuple[np.ndarray, Answers]]) -> None:
    """A finding about labels that the net, or the examples most like them, are sure are others.

    measured: of the parts that the net has not learned from, by name, row numbers and the net's answers."""
    record, loaded = job.facts.get("familiar") or {}, job.data
    if "layers" not in record or loaded.target.name != "classes":
        return
    layer, dim = record["layers"][-1], record["dims"][-1]
    found: list[tuple[Any, str, str, float]] = []
    looked = 0
    for part in loaded.parts:
        encoded, rows = loaded.parts[part][0], measured[part][0] if part in measured else _rows(job, part)
        places = spread(np.arange(len(rows)), labels.MOST)
        rows = rows[places]
        if encoded.truth is None or len(rows) <= labels.NEIGHBOURS:
            continue
        given = encoded.truth[torch.from_numpy(rows)].long().reshape(-1).numpy()
        if part == "train":
            shares = labels.of_neighbours(_embedding(job, encoded, rows, layer, dim), given, len(loaded.target.labels))
        else:
            probabilities = measured[part][1].probabilities
            assert probabilities is not None
            shares = probabilities[places]
        looked += len(rows)
        doubted, other = labels.suspects(given, shares)
        for place, better in zip(doubted.tolist(), other.tolist(), strict=True):
            margin = float(shares[place, better] - shares[place, given[place]])
            label, likelier = loaded.target.labels[given[place]], loaded.target.labels[better]
            found.append((f"{loaded.called(rows[[place]])[0]} ({part})", label, likelier, margin))
    told = labels.finding(found, looked)
    if told is not None:
        loaded.findings = findings.worst_first([*loaded.findings, told])


def _is_plain(job: Job) -> bool:
    """Whether the net is asked example by example, about columns."""
    kind = type(job.data.domain)
    usual = all(getattr(kind, name) is getattr(data.Domain, name) for name in ("answers", "ask", "predict"))
    return job.supervised and usual and isinstance(job.data.parts["train"][0].inputs, tuple)


def _rows(job: Job, part: str) -> np.ndarray:
    encoded, rows = job.data.parts[part]
    return np.arange(len(encoded.inputs[0])) if rows is None else rows


def _walks(job: Job, *parts: tuple[data.Encoded, np.ndarray]) -> tuple[nn.Module, list[Iterator[tuple[Tensor, ...]]]]:
    """The net as it answers fastest, and of each part's rows the inputs as it takes them, batch by batch."""
    options: dict[str, Any] = {"shuffle": False, "batch_size": _SOME, "device": job.device}
    net, walks = job.net, [job.data.domain.batches(job.net, *part, **options) for part in parts]
    if all(isinstance(walk, Batches) for walk in walks) and not job.recipe.strict:
        first = walks[0]
        first.batch_size = inference.FEW
        few = next(first.epoch(0)).inputs
        fitting = min(_SOME, inference.portion(net, few))
        for walk in walks:
            walk.batch_size = fitting
        if len(first) >= inference.WORTH:
            net = inference.quickest(net, few, same_layers=True)
    return net, [(batch.inputs for batch in walk.epoch(0)) for walk in walks]


@torch.no_grad()
def _embedding(job: Job, examples: data.Encoded, rows: np.ndarray, layer: str, dim: int) -> Tensor:
    """(n, E) what goes into a layer."""
    found = []
    net, (walk,) = _walks(job, (examples, rows))
    for inputs in walk:
        _, seen = familiar.watch(net, inputs, [layer])
        found.append(familiar.summary(seen[layer], dim).cpu())
    return torch.cat(found)
