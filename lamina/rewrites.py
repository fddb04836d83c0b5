"""Fewer passes over memory in a recording, with the same bits.

In: the operations of a recording (`tape`), and the storages that others will read. Out: operations that compute the same.
In a convnet an activation is several megabytes, and reading it once more costs as much as a tenth of the convolution that
made it. So what is done to every number before a pooling is done behind it, on a quarter of the numbers:

    pool(relu(x))                           relu(pool(x)): the largest number stays the largest, and where it is negative, so
                                            that another one may be told to be the largest, no gradient goes
    threshold(unpool(gradient), relu(x))    unpool(threshold(gradient, pooled)): the gradient of a pooled number goes where
                                            that number came from
    unpool(gradient * mask)                 the product is written in the layout that the unpooling wants
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lamina.tape import Operation, span, storage

aten = torch.ops.aten


@torch.no_grad()
def rewritten(operations: Sequence[Operation], stays: set[int]) -> list[Operation]:
    """The same arithmetic. stays: storages whose values are wanted afterwards."""
    found = list(operations)
    flow = _Flow(operations, stays)
    for number, operation in enumerate(operations):
        if operation.function is aten.threshold_backward.default:
            _pool_first(found, flow, number)
    return found


class _Flow:
    """Which operation makes a storage, which ones read it, and which storages are written to after they were made."""

    def __init__(self, operations: Sequence[Operation], stays: set[int]):
        self._stays = stays
        self._readers: dict[int, set[int]] = {}
        self.makers: dict[int, int] = {}
        self.written: set[int] = set()
        for number, operation in enumerate(operations):
            self.makers.update(dict.fromkeys(operation.made, number))
            mutable = operation.function._schema.is_mutable
            if operation.made or mutable:  # else a view
                for tensor in operation.tensors():
                    self._readers.setdefault(storage(tensor), set()).add(number)
                    if mutable:
                        self.written.add(storage(tensor))

    def only(self, tensor: Tensor, *readers: int | None) -> int | None:
        """Which operation made a tensor that nobody else needs."""
        key = storage(tensor)
        return None if key in self._stays or self._readers[key] != set(readers) else self.makers.get(key)


def _made_by(found: list[Operation], maker: int | None, function: Any, tensor: Tensor) -> Operation | None:
    """The operation, where it is this function and the tensor is its result, not a part or another view of it."""
    operation = None if maker is None else found[maker]
    if operation is None or operation.function is not function or span(operation.results[0]) != span(tensor):
        return None
    return operation


def _pool_first(found: list[Operation], flow: _Flow, number: int) -> None:
    threshold = found[number]
    gradient, x, limit = threshold.arguments
    maker = flow.only(gradient, number)
    unpooling = _made_by(found, maker, aten.max_pool2d_with_indices_backward.default, gradient)
    if unpooling is None or maker is None or gradient.stride() != threshold.results[0].stride():
        return
    outer, y, *shape, indices = unpooling.arguments
    before = flow.makers.get(storage(indices))
    pooling = None if before is None else found[before]
    if pooling is None or pooling.function is not aten.max_pool2d_with_indices.default:
        return
    pooled = pooling.results[0]
    if not span(x) == span(y) == span(pooling.arguments[0]) or flow.written & {storage(x), storage(pooled)}:
        return
    outer, inner = _in_layout(found, flow, outer, maker, pooled), torch.empty_like(pooled)
    found[maker] = replace(threshold, arguments=(outer, pooled, limit), results=[inner], made=[storage(inner)])
    first = flow.only(x, before, maker, number)
    relu = _made_by(found, first, aten.relu.default, x)
    free = relu is not None and storage(relu.arguments[0]) not in flow.written and limit == 0
    if free and relu is not None and first is not None and before is not None:
        y, raw = relu.arguments[0], torch.empty_like(pooled)  # y is asked for its shape alone
        rest = pooling.arguments[1:]
        made = [storage(raw), storage(indices)]
        found[first] = replace(pooling, arguments=(y, *rest), results=[raw, pooling.results[1]], made=made)
        found[before] = replace(relu, arguments=(raw,), results=[pooled], made=[storage(pooled)])
    found[number] = replace(
        unpooling, arguments=(inner, y, *shape, indices), results=threshold.results, made=threshold.made
    )


def _in_layout(found: list[Operation], flow: _Flow, tensor: Tensor, reader: int, like: Tensor) -> Tensor:
    """The tensor; where it is a product that nobody else reads, one that is written in the layout of another."""
    maker = flow.only(tensor, reader)
    product = _made_by(found, maker, aten.mul.Tensor, tensor)
    if product is None or maker is None or tensor.dtype != like.dtype or tensor.stride() == like.stride():
        return tensor
    result = torch.empty_like(like)
    found[maker] = replace(product, results=[result], made=[storage(result)])
    return result
