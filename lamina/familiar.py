"""Is an input like those the net has learned from?

In: a trained net, batches of training examples and of others of their kind. Out: a `Familiar`, and of it tensors that a run
keeps. Called at the end of training; afterwards `Watched` gives a net's outputs with how far off each input lies, and of many
together how strange they are: above 1 is stranger than 99 in 100 of the held-out examples.

Looked at are the inputs of some of the net's own linear and convolutional layers, the first and the last among them: of what
has places (pixels, words) the mean and the standard deviation over them. Of each layer it is the Mahalanobis distance to the
nearest class, with one covariance for all (Lee et al., 2018), shrunk as Ledoit and Wolf (2004) have it; then the largest of
the layers' distances, each in units of its own 99th percentile. The early layers see noise, inverted colours and numbers far
off, which the last one takes for something it knows; the last sees unknown things made of known parts. Of inputs with many
numbers sums of every 64th are looked at: noise and a line that is stuck add up in them.

Not covered: nets without such layers. An input may be strange and the answer right, and the other way round.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lamina.products import OfBytes

FILE = "familiar.safetensors"  # in a run's folder
LAYERS = 4  # of a net that are looked at
FLAT = 2  # of one whose layers are all products of whole inputs: those between tell little more, and take as long as it does
SIDE = 10  # places in each direction of which the mean is taken, evenly spread
WIDEST = 128  # numbers of a layer; more are added up in groups, with signs (count sketch)
GROUPS = 64  # of the inputs themselves, without signs
MANY = 8  # groups, from which on to ask for each by itself costs more than to add it: all of some examples at once
TOGETHER = 64  # such examples
CLASSES = 50  # up to which each has a mean of its own
QUANTILE = 0.99  # of the held-out examples that are familiar
ENOUGH = 500  # of them, for that to be seen
ROWS = 4000  # to learn from; half as many to measure on
LEAST = 60  # examples to learn from; a quarter as many to measure on
_TINY = 1e-12
_MOST = 2.0  # strangeness that is told: beyond it, it is only strange
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)


@dataclass
class Familiar:
    """What is known of some layers: of each its name, the dimension that counts examples, two tensors and two numbers."""

    layers: list[str]
    dims: list[int]
    tensors: dict[str, Tensor]  # "factor.0" (E, E) whitens, "means.0" (K, E) whitened; "limit", "least" (layers,)

    def distances(self, seen: dict[str, Tensor]) -> Tensor:
        """Inputs of the layers by name -> (B, layers) how far off they lie, at most 2: above 1 is strange."""
        found = []
        for k, (name, dim) in enumerate(zip(self.layers, self.dims, strict=True)):
            factor, means = self.tensors[f"factor.{k}"], self.tensors[f"means.{k}"]
            found.append(distance(summary(seen[name], dim, k == 0), factor, means))
        return torch.stack(found, 1).div_(self.tensors["limit"]).clamp_(max=_MOST)

    def strangeness(self, distances: Tensor) -> Tensor:
        """(B, layers) -> (B,), from 0 to 2: above 1 is strange, of one layer too far or, where that is told, too near."""
        near = (self.tensors["least"] / self.tensors["limit"]).to(distances)
        strange = torch.maximum(distances, near / distances.clamp(min=_TINY)).amax(1)
        return strange.nan_to_num(nan=_MOST).clamp(max=_MOST)

    def rescaled(self, low: Tensor, step: Tensor) -> Familiar:
        """The same for a first layer that sees b where it saw low + step * b; low, step: (features,)."""
        factor, means, start = self.tensors["factor.0"], self.tensors["means.0"], summary(low[None], 0, True)
        if len(step) > len(factor) and not torch.allclose(step, step[:1]):
            raise ValueError("features that are added up have a step each")
        scaled = {"factor.0": step[: len(factor), None] * factor, "means.0": means - start @ factor}
        return Familiar(self.layers, self.dims, {**self.tensors, **scaled})

    def to(self, device: Any) -> Familiar:
        return Familiar(self.layers, self.dims, {name: tensor.to(device) for name, tensor in self.tensors.items()})


class Watched(nn.Module):
    """A net that gives its outputs (B, ...) as (B, D + layers): the last are the distances of `Familiar`."""

    def __init__(self, net: nn.Module, familiar: Familiar):
        super().__init__()
        self.net, self.familiar = net, familiar

    def forward(self, *inputs: Tensor) -> Tensor:
        output, seen = watch(self.net, inputs, self.familiar.layers)
        return torch.cat([output.reshape(len(output), -1), self.familiar.distances(seen).to(output)], 1)

    def apart(self, outputs: Tensor) -> tuple[Tensor, np.ndarray]:
        """What many calls gave, put together -> the net's own outputs (N, D), and which inputs are strange, bool (N,)."""
        layers = len(self.familiar.layers)
        return outputs[:, :-layers], (self.familiar.strangeness(outputs[:, -layers:]) > 1).numpy()


def watch(net: nn.Module, inputs: tuple[Tensor, ...], layers: Sequence[str]) -> tuple[Any, dict[str, Tensor]]:
    """(the net's output, what went into some of its layers by name: of pictures (B, C, H, W), of sequences (B, T, C)); of a
    layer that is called more than once, the last time."""
    seen: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[name] = given[0].transpose(1, 2) if isinstance(module, nn.Conv1d) else given[0]  # features last

    handles = [net.get_submodule(name).register_forward_pre_hook(functools.partial(note, name)) for name in layers]
    try:
        return net(*inputs), seen
    finally:
        for handle in handles:
            handle.remove()


def summary(given: Tensor, dim: int, first: bool = False) -> Tensor:
    """What went into a layer -> (B, E), E at most WIDEST: features as they are; of places their mean and deviation.
    first: into the net's first layer; of pictures there the sums, too."""
    x = given if dim == 0 else given.transpose(0, dim)
    if first and x.dtype == torch.uint8 and x.ndim == 2 and x.shape[1] > WIDEST:
        return _adding(x.shape[1])(x)  # type: ignore[no-any-return]
    x = x.float()
    if x.ndim > 2 and dim != 0:  # (B, members, E): one net's members see the same
        x = x.flatten(1)
    elif x.ndim > 2:
        pictures = first and x.ndim == 4 and x[0].numel() >= GROUPS and 2 * x.shape[1] + GROUPS <= WIDEST
        sums = [_sums(x.flatten(1))] if pictures else []
        places = list(range(2, x.ndim)) if x.ndim > 3 else [1]
        for place in places:
            steps = -(-x.shape[place] // SIDE)
            x = x[(slice(None),) * place + (slice(None, None, steps),)]
        mean = x.mean(places).flatten(1)
        squares = (x * x).mean(places).flatten(1)  # var_mean takes ten times as long
        deviation = (squares - mean * mean).clamp(min=0).sqrt()
        x = torch.cat([mean, deviation, *sums], 1)
    elif x.ndim == 1:
        x = x[:, None]
    width = x.shape[1]
    if width <= WIDEST:
        return x
    if first:
        return _sums(x)
    return _sketched(x)


def _sketched(x: Tensor) -> Tensor:
    """(B, E) -> (B, WIDEST): of every 128th number, each with its sign."""
    width = x.shape[1]
    signs = _signs(width, x.device)
    groups = x[:, :WIDEST] * signs[:WIDEST]
    done = WIDEST
    if width >= MANY * WIDEST:
        done = width // WIDEST * WIDEST
        for some, out in zip(x.split(TOGETHER), groups.split(TOGETHER), strict=True):
            torch.sum(some[:, :done].unflatten(1, (-1, WIDEST)) * signs[:done].view(-1, WIDEST), 1, out=out)
    for at in range(done, width, WIDEST):  # one pass over x
        end = min(at + WIDEST, width)
        groups[:, : end - at].addcmul_(x[:, at:end], signs[at:end])
    return groups


def _sums(x: Tensor) -> Tensor:
    """(B, E) -> (B, GROUPS): of every 64th number."""
    width = x.shape[1]
    whole = width // GROUPS * GROUPS
    groups = x[:, :whole].unflatten(1, (-1, GROUPS)).sum(1)
    groups[:, : width - whole] += x[:, whole:]
    return groups


@functools.lru_cache(maxsize=16)
def _adding(width: int) -> OfBytes:
    """The same for bytes (B, width), which a first layer is given that takes them as they are (`inference`)."""
    return OfBytes(torch.eye(GROUPS).repeat(1, -(-width // GROUPS))[:, :width], digits=1)


@functools.lru_cache(maxsize=16)
def _signs(width: int, device: torch.device) -> Tensor:
    """+1 or -1 for each place, the same for ever: a bit of the place times an odd number."""
    bits = (np.arange(width, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(63)
    return torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32)).to(device)


def distance(x: Tensor, factor: Tensor, means: Tensor) -> Tensor:
    """(B, E) -> (B,): to the nearest of the whitened means (K, E)."""
    white = x @ factor
    apart = torch.addmm((means * means).sum(1)[:, None], means, white.T, alpha=-2)  # (K, B), less the length of `white`
    return white.square_().sum(1).add_(apart.amin(0)).clamp_(min=0).sqrt_()


# --- Learning what is familiar ----------------------------------------------------------------------------------------


@torch.no_grad()
def learn(
    net: nn.Module, known: Iterable[tuple[Tensor, ...]], classes: np.ndarray | None, others: Iterable[tuple[Tensor, ...]],
    *, both_sides: bool = False,
) -> Familiar | None:  # fmt: skip
    """What a net (in evaluation mode) makes of the examples it has learned from, and how far others of their kind lie off;
    None where there are too few of them, or no layers to look at.

    known, others: batches of inputs as the net takes them. classes (N,): whole numbers from 0 of the known, or None.
    both_sides: inputs of many numbers that lie nearer to a mean than 99 in 100 are strange as well. Blurred, dark and empty
    pictures do; of a table it is the most usual row.
    """
    walk = iter(known)
    first = next(walk, None)
    layers, dims = _choose(net, first) if first is not None else ([], [])
    if first is None or not layers:
        return None
    near = _summaries(net, itertools.chain([first], walk), layers, dims)
    far = _summaries(net, others, layers, dims)
    if near is None or far is None or len(near[0]) < LEAST or len(far[0]) < LEAST // 4:
        return None
    if classes is None or int(classes.max()) >= CLASSES:
        classes = np.zeros(len(near[0]), np.int64)
    tensors: dict[str, Tensor] = {}
    limits, least = np.zeros(len(layers), np.float32), np.zeros(len(layers), np.float32)
    strange = np.zeros(len(far[0]))
    for k, (ours, theirs) in enumerate(zip(near, far, strict=True)):
        factor, means = _fitted(ours.astype(np.float64), classes)
        tensors[f"factor.{k}"], tensors[f"means.{k}"] = factor, means
        apart = distance(torch.from_numpy(theirs), factor, means).numpy().astype(np.float64)
        apart = np.maximum(apart, _TINY)
        limits[k] = max(_limit(apart), 1e-6)
        if both_sides and k == 0 and ours.shape[1] >= GROUPS:
            least[k] = 1 / _limit(1 / apart)
        strange = np.maximum(strange, np.maximum(apart / limits[k], least[k] / apart))
    together = _limit(strange)  # of the largest of all layers together
    tensors["limit"], tensors["least"] = torch.from_numpy(limits * together), torch.from_numpy(least / together)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        return None
    return Familiar(layers, dims, tensors)


def _choose(net: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[str], list[int]]:
    """Up to LAYERS of the net, or FLAT, in the order they are called, and which dimension of their inputs counts examples."""
    names = [name for name, module in net.named_modules() if isinstance(module, _KINDS) and name]
    calls: list[dict[str, tuple[int, ...]]] = []
    for rows in (5, 7):  # numbers that are no widths
        few = tuple(column[:rows] for column in inputs)
        output, seen = watch(net, few, names)
        if not isinstance(output, Tensor) or not output.is_floating_point() or len(output) != rows:
            return [], []
        calls.append({name: tuple(given.shape) for name, given in seen.items() if given.is_floating_point()})
    found = []
    for name in calls[0]:  # in the order they were called
        one, other = calls[0][name], calls[1].get(name, ())
        dims = [d for d, (a, b) in enumerate(zip(one, other, strict=False)) if (a, b) == (5, 7)]
        if dims and len(one) == len(other) <= 5:
            found.append((name, dims[0]))
    flat = all(len(calls[0][name]) == 2 for name, _ in found)
    most = min(FLAT if flat else LAYERS, len(found))
    places = sorted({round(k) for k in np.linspace(0, len(found) - 1, most)}) if found else []
    return [found[k][0] for k in places], [found[k][1] for k in places]


def _summaries(
    net: nn.Module, batches: Iterable[tuple[Tensor, ...]], layers: list[str], dims: list[int]
) -> list[np.ndarray] | None:
    """(N, E) of each layer."""
    found: list[list[Tensor]] = [[] for _ in layers]
    for inputs in batches:
        _, seen = watch(net, inputs, layers)
        for k, (name, dim) in enumerate(zip(layers, dims, strict=True)):
            found[k].append(summary(seen[name], dim, k == 0).cpu())
    return [torch.cat(column).numpy() for column in found] if found[0] else None


def _fitted(x: np.ndarray, classes: np.ndarray) -> tuple[Tensor, Tensor]:
    """(N, E) and class numbers -> what whitens (E, E), and the classes' whitened means (K, E)."""
    means = np.stack([x[classes == k].mean(0) for k in np.unique(classes)])
    apart = x - means[np.unique(classes, return_inverse=True)[1].reshape(-1)]
    scale = apart.std(0) + 1e-3 * x.std(0)
    scale = np.where(
        scale > 1e-9, scale, max(1e-3 * float(np.abs(x).max()), 1e-6)
    )  # what never varied: far when it does
    values, vectors = np.linalg.eigh(shrunk(apart / scale))
    factor = vectors / np.sqrt(np.maximum(values, 1e-4 * values.max())) / scale[:, None]
    return torch.from_numpy(factor.astype(np.float32)), torch.from_numpy((means @ factor).astype(np.float32))


def shrunk(x: np.ndarray) -> np.ndarray:
    """The covariance (E, E) of rows (N, E) whose mean is 0, drawn towards a multiple of the identity by as much as it is
    chance: formula (14) of Ledoit and Wolf (2004). As scikit-learn's `ledoit_wolf`, which takes longer to import than
    everything else here together."""
    n, width = x.shape
    found = x.T @ x / n
    size = np.trace(found) / width
    off = np.square(found).sum() / width - size**2  # of the covariance from that multiple, squared
    squares = np.square(x)
    chance = (np.square(squares.sum(1)).sum() / n - np.square(found).sum()) / (width * n)
    share = min(chance, off) / off if off > 0 else 0.0
    found = (1 - share) * found
    found.flat[:: width + 1] += share * size
    return found


def _limit(apart: np.ndarray) -> float:
    """The 99th percentile of distances. Of few, where that is the largest of them, perhaps of an example that is strange
    itself: that of a log-normal distribution, fitted to the middle, with some room for its tail."""
    if len(apart) >= ENOUGH:
        return float(np.quantile(apart, QUANTILE))
    logs = np.log(np.maximum(apart, _TINY))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))  # a normal distribution's deviation
    within = np.clip(logs, middle - 3 * spread, middle + 3 * spread)
    return float(np.exp(within.mean() + 2.8 * within.std()))
