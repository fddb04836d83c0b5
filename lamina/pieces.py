"""A step that does not fit into memory, made in pieces.

In: the batches of a step, and how many examples fit at a time. Out: the same examples in smaller batches, whose gradients the
engine adds up, weighted by what their means are taken over: so the step is that of the whole batch. Called by the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from lamina.batches import Batch


def part(batch: Batch, places: slice) -> Batch:
    """Some examples of a batch, as a batch."""
    truth = None if batch.truth is None else batch.truth[places]
    indices = batch.indices[places]
    inputs = tuple(column[places] for column in batch.inputs)
    return replace(batch, inputs=inputs, truth=truth, indices=indices, count=len(indices))


def cut(window: Sequence[Batch], most: int) -> list[Batch]:
    """The same examples, at most so many at a time: `most` a piece, and what is left."""
    found: list[Batch] = []
    for batch in window:
        if batch.count <= most:
            found.append(batch)
        else:
            found += [part(batch, slice(start, start + most)) for start in range(0, batch.count, most)]
    return found


def smaller(parts: Sequence[Batch]) -> int | None:
    """Half of the largest, or None where it cannot be cut: one example, or something that is no row for each."""
    largest = max(parts, key=lambda batch: batch.count)
    tensors = [*largest.inputs, *([] if largest.truth is None else [largest.truth])]
    if largest.count < 2 or not all(isinstance(t, Tensor) and t.ndim and len(t) == largest.count for t in tensors):
        return None
    return -(-largest.count // 2)


def differs(net: nn.Module) -> list[str]:
    """Layers to which a batch in pieces is another batch: they take means over it."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [name for name, module in net.named_modules() if isinstance(module, kinds) and module.training]
