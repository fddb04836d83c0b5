"""Batches whose examples are mixed two by two: mixup and cutmix.

In: a batches object, whose batches hold floating point inputs (mix after `prepare`). Out: the same batches, each
example mixed with a partner of its batch, and its answer with the partner's. Written where the batches are made, since
mixing changes what is learned: `Mixup(batches, classes=10)`.

The partners are a keyed permutation of the batch; how much an example keeps of itself is keyed by the example. Both are
functions of the seed, the epoch and the batch's indices, so a resumed run mixes as the uninterrupted one would have.
Nothing waits for the device.

The coefficient is drawn for each example, as in the papers' formulas; their programs draw one a batch. Class numbers
become probabilities (B, K), which `nn.CrossEntropyLoss` takes; numbers and tags are mixed as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.errors import UsageError
from lamina.imports import loading
from lamina.keyed import Key

if TYPE_CHECKING:
    from lamina.batches import Batch

_LEVELS = 4096  # steps of the table of quantiles: the coefficient's mean is exact, its variance right to 0.1 %


def beta_quantiles(alpha: float) -> Tensor:
    """The quantiles of Beta(alpha, alpha) at (i + 1/2) / 4096, float32: torch draws Beta only from a state."""
    with loading():
        from scipy.special import betaincinv

    return torch.from_numpy(betaincinv(alpha, alpha, (torch.arange(_LEVELS).double().numpy() + 0.5) / _LEVELS)).float()


def coefficients(key: Key, quantiles: Tensor, purpose: str) -> Tensor:
    """How much of itself each example keeps: (B,) float32, distributed as the quantiles."""
    return quantiles[key.integers(purpose, 0, len(quantiles) - 1)[:, 0]]


def partners(key: Key, purpose: str) -> Tensor:
    """Whom each example is mixed with: a random permutation of the places in the batch, int64 (B,)."""
    return key.bits(purpose)[:, 0].argsort(stable=True)


def mix(a: Tensor, b: Tensor, kept: Tensor) -> Tensor:
    """kept * a + (1 - kept) * b, with one coefficient (B,) an example."""
    return torch.lerp(b, a, kept.to(a.dtype).view(-1, *[1] * (a.ndim - 1)))


def boxes(key: Key, kept: Tensor, height: int, width: int) -> Tensor:
    """Where the partner is pasted: bool (B, height, width).

    As in the paper: the sides are sqrt(1 - kept) of the picture's, the middle is anywhere, what sticks out is cut off.
    """
    u = key.uniform("cutmix box", 2)
    side = (1 - kept).sqrt()

    def span(size: int, middle: Tensor) -> Tensor:  # (B, size)
        half = (side * size).floor() // 2
        middle = (middle * size).floor()
        place = torch.arange(size, device=kept.device)
        return (place >= (middle - half)[:, None]) & (place < (middle + half)[:, None])

    return span(height, u[:, 0])[:, :, None] & span(width, u[:, 1])[:, None, :]


class _Mixing:
    """Batches that are mixed as they pass; all else is asked of the batches within."""

    def __init__(self, batches: Any, classes: int | None, alpha: float):
        name = type(self).__name__
        if not 0 < alpha < float("inf"):
            raise UsageError(f"{name}: alpha is {alpha}.", expected="a number above 0", fix=f"leave {name} out")
        if classes is not None and classes < 2:
            raise UsageError(f"{name}: classes is {classes}.", expected="2 or more, or None for numbers and tags")
        self.batches, self.classes, self.alpha = batches, classes, alpha
        self._quantiles = beta_quantiles(alpha)

    def __getattr__(self, name: str) -> Any:
        if name == "batches":  # not there yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return map(self.mixed, self.batches.epoch(epoch, start))

    def __iter__(self) -> Iterator[Batch]:
        return map(self.mixed, iter(self.batches))

    def mixed(self, batch: Batch) -> Batch:
        """One batch, mixed."""
        raise NotImplementedError

    def _key(self, batch: Batch) -> Key:
        self._quantiles = self._quantiles.to(batch.indices.device)  # copied once, by the first batch
        return Key(batch.seed, batch.epoch, batch.indices)

    def _answers(self, batch: Batch) -> Tensor:
        """The answers as floating point: class numbers as one-hot rows (B, K)."""
        name, truth, classes = type(self).__name__, batch.truth, self.classes
        if not isinstance(truth, Tensor):
            raise UsageError(f"{name}: the answers are {type(truth).__name__}.", expected="one tensor, to be mixed")
        given = f"{name}: the answers are {truth.dtype} of shape {tuple(truth.shape)} and classes is {classes}."
        if truth.is_floating_point():
            if classes is not None and (truth.ndim != 2 or truth.shape[1] != classes):
                raise UsageError(
                    given, expected="class numbers, or a column a class", fix="classes=None for numbers and tags"
                )
            return truth
        if classes is None or truth.ndim != 1:
            raise UsageError(
                given,
                expected="class numbers (B,) and how many classes there are; or floating point",
                fix="give classes=K for classes; make numbers and tags float",
            )
        # On other devices the range is asserted by one_hot: to look at it here would wait for the device.
        if truth.device.type == "cpu" and not 0 <= int(truth.min()) <= int(truth.max()) < classes:
            wrong = truth[(truth < 0) | (truth >= classes)].unique().tolist()[:5]
            raise UsageError(f"{name}: there are classes {wrong}.", expected=f"numbers from 0 to {classes - 1}")
        return F.one_hot(truth.long(), classes).float()

    def _demand_floating(self, batch: Batch) -> None:
        for x in batch.inputs:
            if not x.is_floating_point():
                raise UsageError(
                    f"{type(self).__name__}: an input is {x.dtype}.",
                    expected="floating point",
                    fix="mix after `prepare`, which makes pictures of uint8 floating point",
                )


class Mixup(_Mixing):
    """Every input and its answer are `kept * own + (1 - kept) * partner's`, with kept ~ Beta(alpha, alpha).

    classes: how many, when answers are class numbers; None when they are floating point (numbers, tags).
    "mixup: Beyond empirical risk minimization", Zhang, Cisse, Dauphin and Lopez-Paz, ICLR 2018.
    """

    def __init__(self, batches: Any, classes: int | None = None, alpha: float = 0.2):
        super().__init__(batches, classes, alpha)

    def mixed(self, batch: Batch) -> Batch:
        self._demand_floating(batch)
        truth, key = self._answers(batch), self._key(batch)
        kept, partner = coefficients(key, self._quantiles, "mixup"), partners(key, "mixup partner")
        inputs = tuple(mix(x, x[partner], kept) for x in batch.inputs)
        return replace(batch, inputs=inputs, truth=mix(truth, truth[partner], kept))


class Cutmix(_Mixing):
    """A rectangle of every picture is its partner's, and so is the same share of its answer.

    The rectangle's area is drawn as 1 - Beta(alpha, alpha); the answer is mixed by the area truly pasted, after the
    rectangle was cut to the picture. Inputs are pictures (B, C, H, W); several inputs have one H and W.
    "CutMix: Regularization strategy to train strong classifiers with localizable features", Yun et al., ICCV 2019.
    """

    def __init__(self, batches: Any, classes: int | None = None, alpha: float = 1.0):
        super().__init__(batches, classes, alpha)

    def mixed(self, batch: Batch) -> Batch:
        self._demand_floating(batch)
        shapes = [tuple(x.shape) for x in batch.inputs]
        if any(len(shape) != 4 or shape[2:] != shapes[0][2:] for shape in shapes):
            raise UsageError(
                f"Cutmix: the inputs have the shapes {shapes}.",
                expected="pictures (B, C, H, W) of one size",
                fix="Mixup takes inputs of any shape",
            )
        truth, key = self._answers(batch), self._key(batch)
        kept, partner = coefficients(key, self._quantiles, "cutmix"), partners(key, "cutmix partner")
        pasted = boxes(key, kept, *shapes[0][2:])
        inputs = tuple(torch.where(pasted[:, None], x[partner], x) for x in batch.inputs)
        kept = 1 - pasted.float().mean((1, 2))
        return replace(batch, inputs=inputs, truth=mix(truth, truth[partner], kept))
