"""Where numbers stop being finite.

In: a net, its objective, and the batch of a step whose loss or gradient is NaN or infinite. Out: a `Cause`: the layer and
the examples, in words. The step is made once more, slowly: with every layer's output looked at, then with every operation
of the backward pass. Called by the engine, which has not applied that step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lamina import pieces, tape, tracing
from lamina.batches import Batch
from lamina.errors import rows
from lamina.state import not_finite

Objective = Callable[[nn.Module, Batch], tuple[Tensor, Any]]


@dataclass
class Cause:
    """words complete "the step was not applied: ..."."""

    words: str
    layer: str = ""  # its title, or the name of the weights; "" where no layer is to blame
    rows: list[int] = field(default_factory=list)  # the examples, where only some are at fault
    found: bool = True


def explain(
    net: nn.Module, objective: Objective, batch: Batch, *, penalty: Any = None, autocast: Any = None, counted: str = ""
) -> Cause:
    """Why loss or gradient of this batch are not finite. Changes nothing but buffers and generators.

    counted: what row numbers of this source are, where they are no rows of a table.
    """
    if weights := not_finite(dict(net.named_parameters())):
        words = f"the weights of {', '.join(weights[:3])} are not finite since the step before"
        return Cause(words, weights[0].rpartition(".")[0] or weights[0])
    with autocast or contextlib.nullcontext():
        try:
            with torch.no_grad():
                cause = _bad_data(batch) or _bad_layer(net, objective, batch) or _bad_loss(net, objective, batch)
            cause = cause or _bad_gradient(net, objective, batch, penalty)
        except Exception as error:  # what cannot be looked into must not hide what happened
            cause = Cause(f"the step could not be made again to find out why ({type(error).__name__}: {error})")
    cause = cause or Cause("made again everything is finite, so it does not happen every time", found=False)
    if cause.rows:
        cause.words += f", for {rows(cause.rows)}{f' ({counted})' if counted else ''}"
    return cause


def finite(loss: Tensor, gradients: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite: their sum is, or a closer look decides. On a GPU the answer is waited for once."""
    if not loss.is_cpu:
        return not found(loss, gradients)
    for gradient in gradients:
        values = gradient if gradient.layout == torch.strided and gradient.is_floating_point() else _values(gradient)
        flat = values.ndim == 1 and values.dtype in (torch.float32, torch.float64)
        total = torch.dot(values, values) if flat else values.sum()  # the quicker of the two
        if not math.isfinite(total.item()) and not values.isfinite().all():
            return False
    return True


def found(loss: Tensor, gradients: Iterable[Tensor]) -> Tensor:
    """1 where a number is not finite, else 0: on the device, without waiting for it. As torch's GradScaler does."""
    seen = torch.zeros((), device=loss.device)
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for gradient in (loss.detach(), *gradients):
        kinds.setdefault(gradient.dtype, []).append(gradient._values() if gradient.is_sparse else gradient)
    for alike in kinds.values():
        torch._amp_foreach_non_finite_check_and_unscale_(alike, seen, torch.ones_like(seen))
    return seen


def _values(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = tensor._values() if tensor.is_sparse else tensor
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _floats(values: Any) -> list[Tensor]:
    """The floating point tensors in what a module was given or gave."""
    return [value for value in tracing.tensors(values) if value.is_floating_point()]


def _finite(values: Any) -> bool:
    return all(torch.isfinite(value).all() for value in _floats(values))


def _bad_rows(values: Tensor, batch: Batch) -> list[int]:
    """The examples whose values are not finite, where others' are."""
    if values.ndim == 0 or len(values) != len(batch.indices):
        return []
    wrong = ~torch.isfinite(values.reshape(len(values), -1)).all(1).cpu()
    return [] if wrong.all() else batch.indices.cpu()[wrong].tolist()


def _bad_data(batch: Batch) -> Cause | None:
    for what, values in (("inputs", batch.inputs), ("answers", batch.truth)):
        for column in _floats(values):
            if not torch.isfinite(column).all():
                return Cause(f"the {what} of the batch are not finite", rows=_bad_rows(column, batch))
    return None


def _bad_layer(net: nn.Module, objective: Objective, batch: Batch) -> Cause | None:
    """The first module whose output is not finite. Modules report before the modules they are part of."""
    found: list[Cause] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            wrong = [values for values in _floats(output) if not torch.isfinite(values).all()]
            if found or not wrong:
                return
            layer = tracing.title(name, module)
            if not _finite(inputs):
                where = f"before layer {layer}, which is given such values by the forward() around it"
            elif next(module.children(), None) is None:
                where = f"in layer {layer}"
            else:
                where = f"in the forward() of {layer}, not in its layers"
            found.append(Cause(f"values stop being finite {where}", layer, _bad_rows(wrong[0], batch)))

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in tracing.layers(net)]
    try:
        value, _ = objective(net, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found and not math.isfinite(value) else None


def _bad_loss(net: nn.Module, objective: Objective, batch: Batch) -> Cause | None:
    """Every layer's output is finite: which examples, one by one, have no finite loss?"""
    if math.isfinite(objective(net, batch)[0]):
        return None
    modes = [(module, module.training) for module in net.modules()]
    net.eval()  # one example has no batch statistics
    wrong = torch.zeros(len(batch.indices), dtype=torch.bool)
    try:
        for k in range(len(wrong)):
            wrong[k] = not math.isfinite(objective(net, pieces.part(batch, slice(k, k + 1)))[0])
    except Exception:  # this objective cannot do with one example, so it is not said which it is
        wrong[:] = False
    finally:
        for module, mode in modes:
            module.training = mode
    some = batch.indices.cpu()[wrong].tolist() if not wrong.all() else []
    return Cause("every layer's output is finite, so it is the loss itself", rows=some)


def _bad_gradient(net: nn.Module, objective: Objective, batch: Batch, penalty: Any) -> Cause | None:
    """The first operation of the backward pass that is given finite numbers and gives others."""
    found: list[Cause] = []

    def look(function: Any, place: str, given: Any, results: Any) -> None:
        if found or not trace.backward or function in tape.EMPTY or _finite(results):
            return
        node = torch._C._current_autograd_node().name()
        where = f"of layer {place}" if place else "of the loss, not of a layer"
        entered = "" if _finite(given) else ", which is given such values"
        wrong = next(value for value in _floats(results) if not torch.isfinite(value).all())
        words = f"the loss is finite, and gradients stop being so in the backward pass {where} ({node}{entered})"
        found.append(Cause(words, place, _bad_rows(wrong, batch)))

    trace = tracing.Trace(net, look)
    with trace, torch.enable_grad():
        value, _ = objective(net, batch)
        value = value if penalty is None else value + penalty(net)
        parameters = [p for p in net.parameters() if p.requires_grad]
        torch.autograd.grad(value, parameters, allow_unused=True)
    return found[0] if found else None
