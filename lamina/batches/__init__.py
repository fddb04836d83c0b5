"""Examples -> batches.

In: encoded columns (compact tensors), a `Dataset` or a `DataLoader`. Out: `Batch`es on the device, in keyed order,
augmented and prepared. Called by the engine, which asks for `epoch(e, start=k)`; a tutorial's `for x, y in batches:`
works too, an epoch a pass.

Four kinds, one protocol (`epoch`, `len`, `state_dict`, `load_state_dict`):

    Batches          columns in memory, cut by one indexing operation; batch k of epoch e is found in O(1)
    DatasetBatches   a map-style Dataset, in the same keyed order, with a generator of its own for each example
    RaggedBatches    sequences of many lengths, padded; those of like length share a batch
    LoaderBatches    a DataLoader (or any iterable of (x, y)) exactly as its owner made it

What order and augmentation depend on is (seed, epoch, example), never the number of workers or the batch's neighbours.
Only a `LoaderBatches` has a state: the generators as they were when its epoch began, from which it is walked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lamina.batches.batch import Batch as Batch
from lamina.batches.batch import Order as Order
from lamina.batches.batch import Walkable as Walkable
from lamina.batches.batch import columns_of
from lamina.batches.batch import tensor as tensor
from lamina.batches.batch import unpack as unpack
from lamina.batches.columns import Batches as Batches
from lamina.batches.columns import balanced as balanced
from lamina.batches.datasets import DatasetBatches as DatasetBatches
from lamina.batches.generators import generators as generators
from lamina.batches.generators import keeping_generators as keeping_generators
from lamina.batches.generators import set_generators as set_generators
from lamina.batches.kept import Kept as Kept
from lamina.batches.loaders import LoaderBatches as LoaderBatches
from lamina.batches.ragged import RaggedBatches as RaggedBatches
from lamina.errors import UsageError


def walkable(batches: Any, device: torch.device | str = "cpu") -> Any:
    """Batches for the engine from what a user brings: ours as they are, a DataLoader or an iterable wrapped."""
    if hasattr(batches, "epoch") and callable(batches.epoch):
        return batches
    if isinstance(batches, Dataset):
        tensors, rows = columns_of(batches) or ((), None)
        if len(tensors) < 2:
            return over(batches, device=device)
        *inputs, truth = tensors if rows is None else (tensor[rows] for tensor in tensors)
        return Batches(tuple(inputs), truth, device=device)
    columns = batches if isinstance(batches, tuple) else (batches,)
    if all(isinstance(column, (Tensor, np.ndarray)) for column in columns):
        raise UsageError(
            "batches holds whole columns, not batches.", expected="(x, y) in batches", fix="lamina.Batches(x, y)"
        )
    if isinstance(batches, Sequence) or hasattr(batches, "__iter__"):
        return LoaderBatches(batches, device=device)
    raise UsageError(
        f"batches is a {type(batches).__name__}.",
        expected="lamina.Batches, a DataLoader, a Dataset, or an iterable of (x, y)",
    )


def over(inputs: Any, truth: Any = None, **options: Any) -> Batches | DatasetBatches | LoaderBatches:
    """Batches of whichever kind fits `inputs`: columns, a Dataset, an IterableDataset or a DataLoader."""
    encode_truth, workers = options.pop("encode_truth", None), options.pop("workers", None)
    cache, memory, aside = options.pop("cache", False), options.pop("memory", None), options.pop("aside", None)
    if isinstance(inputs, (tuple, Tensor, np.ndarray)):  # columns are there already
        return Batches(inputs, truth, **options)
    if isinstance(inputs, (DataLoader, IterableDataset)):
        for name in ("augment", "order", "drop_last", "cache"):
            if cache if name == "cache" else options.get(name):
                raise UsageError(
                    f"{'balance' if name == 'order' else name} is asked for a {type(inputs).__name__}, which gives the "
                    "batches it likes.",
                    expected="columns or a map-style Dataset, whose examples are read one by one",
                    fix="do it in your Dataset or loader",
                )
        if isinstance(inputs, IterableDataset):
            inputs = DataLoader(inputs, batch_size=options.get("batch_size", 64), num_workers=workers or 0)
        return LoaderBatches(
            inputs, encode_truth=encode_truth, **{k: options[k] for k in ("device", "prepare", "seed") if k in options}
        )
    return DatasetBatches(
        inputs, workers=workers, encode_truth=encode_truth, cache=cache, memory=memory, aside=aside, **options
    )
