"""A net that is only asked: how many examples at a time, and in which layout its convolutions and products work.

In: a net in evaluation mode, and some inputs as it takes them. Out: a number (`portion`), and the net as it answers
fastest (`quickest`). Called by the domains, which validate and answer. Both look at shapes and never at a clock, so the
same question is answered in the same way again; what comes out differs by rounding alone.

Not covered: devices other than the CPU, which are given a thousand examples at a time and the net as it is.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lamina import products
from lamina.familiar import Watched

BYTES = 13e6  # of the largest tensor on the way. Above some 20 MB the C library gives memory back after every layer and
# gets it anew, page by page, which doubles the time of the convnet of PyTorch's examples (2 cores, torch 2.13, glibc).
PORTIONS = (16, 4096)  # the fewest and the most at a time
MOST = 16_384  # of a net that was made quick: the more, the less is spent between its layers
ELSEWHERE = 1000
FEW = 4  # examples that are tried
WORTH = 4  # portions from which on a trial pays


def portion(
    net: nn.Module, inputs: tuple[Tensor, ...], ask: Callable[[int], Any] | None = None, *, most: int = PORTIONS[1],
    views: bool = False,
) -> int:  # fmt: skip
    """How many examples to give a net at a time: a power of two, up to `most`, that keeps every tensor on the way below 13 MB
    that grows with them; others are as large whatever their number.

    inputs: one example or more. ask: how the net is asked about the first so many, where it is not called with them alone.
    views: the inputs are no copies, so their size does not count.
    """
    if inputs[0].device.type != "cpu":
        return ELSEWHERE

    def sizes(some: int) -> list[int]:
        few = tuple(column[:some] for column in inputs)
        with torch.no_grad(), _Sizes([*net.parameters(), *net.buffers(), *(few if views else ())]) as seen:
            ask(some) if ask is not None else net(*few)
        return [*seen.bytes, *(column.nbytes for column in few if not views)]

    count = min(FEW, len(inputs[0]))
    whole, half = sizes(count), sizes(count // 2) if count > 1 else []
    if len(whole) == len(half):
        growing = [(one, (one - other) / (count - count // 2)) for one, other in zip(whole, half, strict=True)]
    else:  # the two calls cannot be compared
        growing = [(one, one / count) for one in whole]
    room = [(BYTES - max(0.0, one - each * count)) / each for one, each in growing if each > 0]
    fitting = max(1, int(min(room, default=1)))
    return min(most, max(PORTIONS[0], 1 << (fitting.bit_length() - 1)))


class _Sizes(TorchFunctionMode):
    """Notes the bytes of each tensor that is made on the way; those that are there, such as weights, are not made."""

    def __init__(self, there: Iterable[Tensor]):
        self.bytes: list[int] = []
        self._known = {tensor.untyped_storage().data_ptr() for tensor in there}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        plain = isinstance(made, Tensor) and made.layout == torch.strided
        if plain and made.untyped_storage().data_ptr() not in self._known:
            self.bytes.append(made.nbytes)
        return made


def quickest(net: nn.Module, inputs: tuple[Tensor, ...], *, same_layers: bool = False) -> nn.Module:
    """The net, or a copy whose weights lie as the CPU's library wants them: convolutions with the channels last, products
    in blocks, with the relu that follows them in an `nn.Sequential`. Of a net (prepare, net) that takes bytes, what
    `prepare` does may also have gone into the weights of the first product, which takes the bytes as they are where the
    processor can (`products`).

    same_layers: only what leaves each layer what it is, for those who look at what goes into one.
    Each change is made only where the copy gives the same on a few examples as the net itself, within 1e-4 of the largest
    number; a net that cannot be copied, or that fails in a layout (`x.view(len(x), -1)` does), stays as it was before.
    """
    if inputs[0].device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return net
    few = tuple(column[:FEW] for column in inputs)
    with torch.no_grad():
        expected = net(*few)
        best = net
        for ways in _changes(net, few, same_layers):
            for way in ways:
                try:
                    other = way(_twin(best))
                    fits = torch.allclose(other(*few), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
                except Exception:  # whatever a user's net does not like about it
                    continue
                if fits:
                    best = other
                    break
    return best


def _changes(net: nn.Module, few: tuple[Tensor, ...], same_layers: bool) -> Iterator[list[Callable[[Any], nn.Module]]]:
    """Those that there is something to do for, each in the ways that it can be made, the quickest first."""
    planes = [weight for weight in net.parameters() if weight.ndim == 4]
    linear = not same_layers and any(_is_plain(module, nn.Linear) for module in net.modules())
    if linear and not planes and few[0].dtype == torch.uint8 and type(net) is nn.Sequential:
        yield [
            functools.partial(_folded, column=few[0], integers=way)
            for way in ((True, False) if products.fast() else (False,))
        ]
    if any(not weight.is_contiguous(memory_format=torch.channels_last) for weight in planes):
        yield [lambda whole: copy.deepcopy(whole).to(memory_format=torch.channels_last)]
    if linear:
        yield [_packed]


def _twin(net: nn.Module) -> nn.Module:
    """Modules like those of a net, with its own weights: what is put in the place of one is not put into the net. A deep copy
    takes fifty times as long."""
    made: dict[int, nn.Module] = {}

    def of(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            twin = made[id(module)] = module.__class__.__new__(module.__class__)
            twin.__dict__.update(module.__dict__)
            for table in ("_parameters", "_buffers", "_modules"):
                twin.__dict__[table] = dict(module.__dict__[table])
            for name, child in twin._modules.items():
                twin._modules[name] = None if child is None else of(child)
        return made[id(module)]

    return of(net)


def _folded(whole: Any, column: Tensor, integers: bool) -> nn.Module:
    """(prepare, net) -> (little, net), in place, where `prepare` gives each byte b as low + b * step, with its own numbers for
    each place, and the first product takes them all. integers: by the units for those, else as floats."""
    prepare, net = whole
    low, high = (prepare(torch.full_like(column[:1], value)).flatten() for value in (0, 255))
    step = (high - low) / 255
    first = next(module for module in net.modules() if _is_plain(module, nn.Linear))
    weight, bias = first.weight * step, first.weight @ low + (0 if first.bias is None else first.bias)
    if integers:
        whole[0] = nn.Identity()
        _put(whole, first, products.OfBytes(weight, bias))
    else:
        whole[0] = _Float()
        first.weight, first.bias = nn.Parameter(weight), nn.Parameter(bias)
    if isinstance(net, Watched):
        net.familiar = net.familiar.rescaled(low, step)
    return whole  # type: ignore[no-any-return]


def _put(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """One module in the place of another, wherever that is."""
    for parent in list(net.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


class _Float(nn.Module):
    """Bytes as floats, in the same memory at every call, since only a product reads them."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if len(self._memory) < len(x):
            self._memory = torch.empty(x.shape)
        return self._memory[: len(x)].copy_(x)


def _packed(net: nn.Module) -> nn.Module:
    """In place. The tutorial's MLP takes 0.8 of the time (2,048 examples, 2 cores with AVX-512, torch 2.13)."""
    for parent in list(net.modules()):
        layers = list(parent._modules.items())
        for (name, layer), (name_after, after) in itertools.pairwise([*layers, ("", None)]):
            if _is_plain(layer, nn.Linear):
                layer = parent._modules[name] = _Product(layer)  # type: ignore[arg-type]
            if (
                isinstance(layer, (_Product, products.OfBytes))
                and type(parent) is nn.Sequential
                and _is_plain(after, nn.ReLU)
            ):
                layer.after = "relu"
                parent._modules[name_after] = nn.Identity()
    return net


def _is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)  # type: ignore[union-attr]


class _Product(nn.Module):
    """A linear layer by oneDNN, its weights packed once for all calls; torch packs them at every call."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight, None)
        self.bias, self.after = layer.bias, "none"

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.after, [], "")  # type: ignore[no-any-return]
