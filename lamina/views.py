"""Two views of every example: what is learned from where there are no answers.

In: a random change of a batch's inputs under which an example stays what it is, `change(inputs, key)`, as a domain gives it
(`Domain.change`); and which examples are near each other as they are (`neighbours`), where that means something. Out: what
batches take as their augmentation: each input with 2 B rows, first one view of every example, then another in the same
order. All is keyed by the example, so a resumed run sees the same views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamina import mapped
from lamina.imports import loading
from lamina.keyed import Key, number

Change = Callable[[tuple[Tensor, ...], Key], tuple[Tensor, ...]]

NEAR = 5  # neighbours of an example
PARTS = 50  # numbers an example from which on principal components take their place: distances stay nearly as they are


@dataclass(frozen=True)
class Pairs:
    """inputs, each (B, ...) -> each (2 B, ...): rows k and B + k are two views of the same, each changed by itself.

    With `near` (N, k), rows of `columns`, the second view is not of the example but of one of its neighbours: so what is
    learned is also that those are alike. Dwibedi, Aytar, Tompson, Sermanet and Zisserman, "With a little help from my
    friends", ICCV 2021, take neighbours in the learned space; these are near as they are.
    """

    change: Change
    near: Tensor | None = None  # (N, k) int64, of an example's index
    columns: tuple[Tensor, ...] = ()

    def __call__(self, inputs: tuple[Tensor, ...], key: Key) -> tuple[Tensor, ...]:
        other = inputs
        if self.near is not None:
            turn = key.integers("neighbour", 0, self.near.shape[1] - 1)
            rows = self.near.to(key.indices.device)[key.indices].gather(1, turn)[:, 0]
            other = tuple(mapped.take(column, rows.cpu()).to(rows.device) for column in self.columns)
        pairs = [
            self.change(part, replace(key, seed=number(key.seed, "view", k))) for k, part in enumerate((inputs, other))
        ]
        return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))


@dataclass(frozen=True)
class Swap:
    """Each value of an example is, with probability `share`, that of another example of the batch.

    So a changed value is one that occurs, whatever it means: numbers, codes of categories, words. Bahri, Jiang, Tay and
    Metzler, "SCARF: self-supervised contrastive learning using random feature corruption", ICLR 2022.
    """

    share: float = 0.1

    def __call__(self, inputs: tuple[Tensor, ...], key: Key) -> tuple[Tensor, ...]:
        found = []
        for k, column in enumerate(inputs):
            flat = column.reshape(len(column), -1)  # (B, F)
            other = flat[key.bits(f"swap partner {k}")[:, 0].argsort(stable=True)]
            swapped = key.uniform(f"swap {k}", flat.shape[1]) < self.share
            found.append(torch.where(swapped, other, flat).view(column.shape))
        return tuple(found)


def points(train: Any, *others: Any, seed: int = 0, dense: bool = True) -> list[Any]:
    """Tables of numbers (N, ...), dense or sparse, as points (N, D) in a space where near means alike.

    Columns of their own (N, F) are standardised by the first table, missing ones are their mean; other shapes are taken as
    they are, and of more than PARTS numbers an example the principal components. Sparse ones say which words stand in a
    text: a word counts the more the rarer it is (inverse document frequency), and only the direction counts. dense=False
    leaves these sparse.
    """
    tables = [train, *others]
    sparse = hasattr(train, "tocsr")
    if sparse:
        with loading():
            from sklearn.feature_extraction.text import TfidfTransformer

        weighed = TfidfTransformer().fit(train)
        tables = [weighed.transform(table) for table in tables]
        if not dense:
            return tables
    else:
        tables = [np.asarray(table).reshape(table.shape[0], -1).astype(np.float32) for table in tables]
        if train.ndim == 2:
            mean, spread = np.nanmean(tables[0], 0), np.nanstd(tables[0], 0)
            tables = [np.nan_to_num((table - mean) / np.where(spread > 0, spread, 1)) for table in tables]
    if tables[0].shape[1] > PARTS:
        with loading():
            from sklearn.decomposition import PCA, TruncatedSVD

        parts, state = min(PARTS, tables[0].shape[0] - 1), seed & 0xFFFFFFFF
        model: Any = TruncatedSVD(parts, random_state=state)
        if not sparse:
            model = PCA(parts, random_state=state)  # exact where that is quicker: many examples of up to 1,000 numbers
        model.fit(tables[0])
        tables = [model.transform(table) for table in tables]
    elif sparse:
        tables = [table.toarray() for table in tables]
    return [np.ascontiguousarray(table, np.float32) for table in tables]


def neighbours(train: Any, others: Any = None, count: int = NEAR) -> np.ndarray:
    """The nearest points of train (N, D), dense or sparse, to each of its own, itself left out, or to each of others:
    int64 (n, count), as many as there are."""
    with loading():
        from sklearn.neighbors import NearestNeighbors

    count = min(count, train.shape[0] - 1)
    model = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(train)
    return np.asarray(model.kneighbors(others, return_distance=False))
