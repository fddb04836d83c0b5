"""A map-style `Dataset` -> batches, in the same keyed order as columns, with generators of its own for each example."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from lamina.batches.batch import Batch, Order, moved
from lamina.batches.columns import Batches
from lamina.batches.generators import keeping_generators, seed_generators
from lamina.errors import DataError, LaminaError, rows
from lamina.keyed import Key, number


class DatasetBatches:
    """A map-style `Dataset` -> batches in keyed order.

    Items are (input, ..., truth); `__getitems__` is used where the Dataset has it (its random transforms are then keyed
    by the batch's first example instead of by each). `workers` processes read ahead; the batches are the same for any
    number. Transforms that draw from a generator of their own, instead of the process', are not keyed.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        indices: Any = None,
        order: Order | None = None,
        device: torch.device | str = "cpu",
        augment: Callable[[tuple[Tensor, ...], Key], tuple[Tensor, ...]] | None = None,
        prepare: nn.Module | None = None,
        workers: int = 0,
        encode_truth: Callable[[Any], Tensor] | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        drop_last: bool = False,
    ):
        self.dataset = _Keyed(dataset, seed, collate)
        positions = np.arange(len(dataset)) if indices is None else np.asarray(indices)
        if len(positions) == 0:
            raise DataError("The Dataset is empty.", expected="at least one example")
        # The order is that of `Batches` over the positions themselves, so a Dataset and its columns give the same batches.
        self._positions = Batches(
            torch.as_tensor(positions),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            order=order,
            drop_last=drop_last,
        )
        self.batch_size, self.seed, self.device, self.workers = batch_size, seed, torch.device(device), workers
        self.augment, self.encode_truth = augment, encode_truth
        self.prepare = prepare.to(self.device) if prepare is not None else None
        self._next_epoch = 0

    def __len__(self) -> int:
        return len(self._positions)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        plan = [batch.inputs[0] for batch in self._positions.epoch(epoch, start)]
        requests = [(epoch, indices.tolist()) for indices in plan]
        loader = DataLoader(
            self.dataset,
            sampler=requests,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_as_is,
            generator=torch.Generator(),  # the workers' base seed is drawn from here, not from the caller's generator
            pin_memory=self.device.type == "cuda",
        )
        for indices, item in zip(plan, loader, strict=True):
            if isinstance(item, LaminaError):
                raise item
            inputs, truth = moved(item, self.encode_truth, self.device)
            indices = indices.to(self.device)
            if self.augment is not None:
                inputs = self.augment(inputs, Key(self.seed, epoch, indices))
            if self.prepare is not None:
                with torch.no_grad():
                    inputs = (self.prepare(inputs[0]), *inputs[1:])
            yield Batch(inputs, truth, indices, len(indices), epoch, self.seed)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _as_is(item: Any) -> Any:
    return item


class _Keyed(Dataset):  # type: ignore[type-arg]
    """A user's Dataset whose random transforms draw from generators seeded by (seed, epoch, example).

    Indexed by (epoch, rows of a batch); the caller's generators are put back afterwards. What is wrong with the data is
    given back, not raised: torch's workers would bury it under their own traceback.
    """

    def __init__(self, dataset: Any, seed: int, collate: Callable[[list[Any]], Any]):
        self.dataset, self.seed, self.collate = dataset, seed, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, list[int]]) -> Any:
        epoch, indices = item
        with keeping_generators():
            try:
                return self._collated(self._many(epoch, indices), indices)
            except LaminaError as error:
                return error

    def _many(self, epoch: int, indices: list[int]) -> list[Any]:
        if not _reads_many(self.dataset):
            return [self._one(epoch, index) for index in indices]
        seed_generators(number(self.seed, "batch", epoch, indices[0]))
        try:
            return self.dataset.__getitems__(indices)  # type: ignore[no-any-return]
        except Exception as error:
            raise DataError(
                f"{rows(indices).capitalize()} of the Dataset could not be read together: "
                f"{type(error).__name__}: {error}",
                fix="mend or leave out these examples",
            ) from error

    def _one(self, epoch: int, index: int) -> Any:
        seed_generators(number(self.seed, "example", epoch, index))
        try:
            return self.dataset[index]
        except Exception as error:
            raise DataError(
                f"Example {index} of the Dataset could not be read: {type(error).__name__}: {error}",
                fix="mend or leave out this example",
            ) from error

    def _collated(self, items: list[Any], indices: list[int]) -> Any:
        try:
            return self.collate(items)
        except (RuntimeError, TypeError, ValueError) as error:  # different shapes, or nothing a tensor can hold
            raise DataError(
                f"{rows(indices, 3).capitalize()} of the Dataset cannot be put into one batch: {error}",
                expected="tensors, arrays or numbers, of one shape and type",
                fix="pad, resize or convert them in the Dataset",
            ) from error


def _reads_many(dataset: Any) -> bool:
    """Whether a Dataset reads a whole batch by itself. A `Subset` does so only where what it is a part of does."""
    while isinstance(dataset, Subset) and type(dataset).__getitems__ is Subset.__getitems__:
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__")
