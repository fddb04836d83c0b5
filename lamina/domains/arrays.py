"""Inputs as they are: numbers of any shape, one column or several, or a user's Dataset.

In: arrays (N, ...) of numbers. Out: the same, float32 where they were floating, and a first layer that scales them as
asked: `none` (as they are), `unit` (bytes to 0..1), `standard` (mean 0, standard deviation 1 over the training split;
each feature of (N, F), all values together for other shapes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina import names
from lamina.batches import tensor
from lamina.domains.base import Domain
from lamina.errors import DataError, UsageError, rows
from lamina.sources import Examples
from lamina.targets.base import Target


class Scale(nn.Module):
    """(x / divisor - mean) / std, in float32. mean, std broadcast against one example."""

    mean: Tensor
    std: Tensor

    def __init__(self, divisor: float, mean: Any = None, std: Any = None):
        super().__init__()
        self.divisor = divisor
        self.register_buffer("mean", None if mean is None else torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", None if std is None else torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.divisor != 1.0:
            x = x / self.divisor
        return x if self.mean is None else (x - self.mean) / self.std

    def extra_repr(self) -> str:
        return f"divisor={self.divisor}, standard={self.mean is not None}"


def moments(column: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over some axes, in float64; bytes by their histogram, without a float copy."""
    if column.dtype == np.uint8 and axes == tuple(range(column.ndim)):
        counts = np.bincount(column.reshape(-1), minlength=256).astype(np.float64)
        values = np.arange(256)
        mean = (counts * values).sum() / counts.sum()
        return mean, np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum())
    return column.mean(axes, dtype=np.float64), column.std(axes, dtype=np.float64)


def spread(std: np.ndarray) -> np.ndarray:
    """Standard deviations to divide by: constant columns are left alone."""
    return np.where(std > 1e-12, std, 1.0)


@dataclass
class Arrays(Domain):
    name: ClassVar[str] = "arrays"

    scale: str = "standard"  # none, unit, standard
    shapes: list[list[int]] = field(default_factory=list)  # of one example, an entry an input
    kinds: list[str] = field(default_factory=list)  # u: bytes, i: whole numbers, f: fractional
    mean: Any = None
    std: Any = None
    features: list[str] | None = None

    @classmethod
    def sniff(cls, examples: Examples) -> tuple[float, str]:
        if examples.kind in ("dataset", "stream", "loader"):
            return 0.5, "a Dataset or loader of yours, taken as it is"
        return 0.5, f"numbers of shape {tuple(np.shape(examples.inputs[0])[1:])}"

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        if not isinstance(inputs, tuple):
            self.scale = "none"
            return
        self.shapes = [list(np.shape(column)[1:]) for column in inputs]
        self.kinds = [_kind(column) for column in inputs]
        if self.scale == "standard":
            column = np.asarray(inputs[0])[rows]
            axes = (0,) if column.ndim == 2 else tuple(range(column.ndim))
            mean, std = moments(column, axes)
            self.mean, self.std = mean.tolist(), spread(std).tolist()

    def encode(self, inputs: Any) -> Any:
        if not isinstance(inputs, (tuple, list, np.ndarray, Tensor)):
            return inputs  # a Dataset
        columns = inputs if isinstance(inputs, tuple) else (inputs,)
        if self.shapes and len(columns) != len(self.shapes):
            raise DataError(f"There are {len(columns)} inputs.", expected=f"{len(self.shapes)}, as in training")
        return tuple(self._column(column, k) for k, column in enumerate(columns))

    def _column(self, column: Any, k: int) -> Tensor:
        table = tensor(column if isinstance(column, Tensor) else np.asarray(column))
        if self.shapes and list(table.shape[1:]) != self.shapes[k]:
            alone = list(table.shape) == self.shapes[k]
            raise DataError(
                f"The inputs have shape {tuple(table.shape)}.",
                expected=f"(N, {', '.join(map(str, self.shapes[k]))}), as in training",
                fix="for one example add the batch dimension: x[None]" if alone else "",
            )
        if table.is_floating_point():
            table = table.float()
            finite = torch.isfinite(table).reshape(len(table), -1).all(1)
            if not finite.all():
                bad = torch.nonzero(~finite).flatten().tolist()
                raise DataError(
                    f"{len(bad)} inputs hold NaN or infinite values: {rows(bad)}.", fix="clean or drop them"
                )
        elif table.dtype == torch.bool:
            table = table.float()
        elif table.dtype != torch.uint8:
            table = table.long()
        if self.kinds and self.kinds[k] == "f" and not table.is_floating_point():
            table = table.float()
        return table

    def prepare(self) -> nn.Module:
        if self.scale == "none":
            return nn.Identity()
        if self.scale == "unit":
            return Scale(255.0)
        return Scale(1.0, self.mean, self.std)

    def net(self, target: Target, size: str, name: str | None = None, **arguments: Any) -> nn.Module:
        if len(self.shapes) != 1:
            raise UsageError(f"There are {len(self.shapes)} inputs.", expected="an own net that takes them all")
        return names.module("nets", name or "mlp").NET.fitted(tuple(self.shapes[0]), target.width, size, **arguments)

    @classmethod
    def tiny(cls) -> Any:
        return "iris"


def _kind(column: Any) -> str:
    dtype = tensor(column[:1] if isinstance(column, Tensor) else np.asarray(column[:1])).dtype
    if dtype == torch.uint8:
        return "u"
    return "f" if dtype.is_floating_point or dtype == torch.bool else "i"


DOMAIN = Arrays
