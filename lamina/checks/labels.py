"""Labels that look wrong, once a net has learned from them.

In: of examples the class numbers they were given, and probabilities that were made without them: of held-out examples the
net's own; of those it has learned from the share of each class among the examples next to them in the net's last layer, each
left out itself, since the net has learned its label by heart but not those of its neighbours. Out: a finding.

A label is suspected by confident learning (Northcutt, Jiang and Chuang, 2021): another class is as probable as it is, on
average, for the examples that bear it; and the given one is not, with `LEAST`. Where classes overlap, some of what is
suspected is only rare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamina.checks.pool import shortened
from lamina.findings import Finding

LEAST = 0.1  # probability of a label below which it is suspected
NEIGHBOURS = 20
MOST = 6_000  # training examples that are compared with each other
LISTED = 200
_AT_ONCE = 128  # examples compared with all others at a time, in the same memory
MANY = 0.01  # of all that were looked at: above it the finding is a warning


def suspects(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers (N,) and probabilities (N, K) -> (rows that are suspected, the surest first; the class of each that is
    likelier)."""
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    usual = np.where(counts > 0, np.bincount(labels, own, minlength=classes) / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= usual, probabilities, -1.0)
    other = confident.argmax(1)
    found = np.flatnonzero((confident.max(1) >= 0) & (other != labels) & (own < LEAST))
    order = np.argsort(own[found] - probabilities[found, other[found]], kind="stable")
    return found[order], other[found[order]]


def of_neighbours(embedding: Tensor, labels: np.ndarray, classes: int) -> np.ndarray:
    """(N, E) and class numbers (N,) -> (N, K): the shares of the classes among the NEIGHBOURS nearest by the cosine, without
    the example itself."""
    near = min(NEIGHBOURS, len(labels) - 1)
    unit = torch.nn.functional.normalize(embedding.float(), dim=1)
    known = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).float()
    others, memory = unit.T.contiguous(), unit.new_empty(_AT_ONCE, len(unit))
    found = []
    for start in range(0, len(unit), _AT_ONCE):
        some = unit[start : start + _AT_ONCE]
        alike = torch.mm(some, others, out=memory[: len(some)])
        alike.diagonal(start).fill_(-2.0)
        found.append(known[alike.topk(near, 1, sorted=False).indices].sum(1))
    return ((torch.cat(found) + 0.5 / classes) / (near + 0.5)).numpy()  # type: ignore[no-any-return]


def finding(found: list[tuple[Any, str, str, float]], looked: int) -> Finding | None:
    """What is told of suspected labels. found: (name, label, the likelier one, margin), looked: how many labels were."""
    if not found:
        return None
    count = len(found)
    found = sorted(found, key=lambda entry: -entry[3])
    shown = ", ".join(
        f"{shortened(str(name))} is {label!r} and looks like {other!r}" for name, label, other, _ in found[:3]
    )
    return Finding(
        "suspected_labels",
        "warning" if count > MANY * looked else "note",
        f"{count:,} of {looked:,} labels {'looks' if count == 1 else 'look'} wrong to the net, or to the examples most like "
        f"them: {shown}{f' and {count - 3:,} more' if count > 3 else ''}.",
        count,
        [[str(name), label, other] for name, label, other, _ in found[:LISTED]],
        "kept",
        "look at them, data.json lists the surest first; correct the labels or leave the examples out",
    )
