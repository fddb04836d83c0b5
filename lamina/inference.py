"""A net that is only asked: how many examples at a time, and in which layout its convolutions and products work.

In: a net in evaluation mode, and some inputs as it takes them. Out: a number (`portion`), and the net as it answers
fastest (`quickest`). Called by the domains, which validate and answer. Both look at shapes and never at a clock, so the
same question is answered in the same way again; what comes out differs by rounding alone.

Not covered: devices other than the CPU, which are given a thousand examples at a time and the net as it is.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.overrides import TorchFunctionMode

from lamina import products
from lamina.chains import followers, put, twin
from lamina.familiar import Watched

BYTES = 13e6  # of the largest tensor on the way. Above some 20 MB the C library gives memory back after every layer and
# gets it anew, page by page, which doubles the time of the convnet of PyTorch's examples (2 cores, torch 2.13, glibc).
PORTIONS = (16, 4096)  # the fewest and the most at a time
MOST = 16_384  # of a net that was made quick: the more, the less is spent between its layers
ELSEWHERE = 1000
FEW = 4  # examples that are tried
WORTH = 4  # portions from which on a trial pays

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FOLLOWED = {nn.Linear, *_CONVOLUTIONS, *_NORMS, nn.ReLU}  # layers of which two or three may become one


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
        self._known = {tensor.untyped_storage().data_ptr() for tensor in there if _is_plain_memory(tensor)}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        for made in given if isinstance(given, tuple) else (given,):  # of recurrent layers one is all states
            if _is_plain_memory(made) and made.untyped_storage().data_ptr() not in self._known:
                self.bytes.append(made.nbytes)
        return given


def _is_plain_memory(value: Any) -> bool:
    """Whether it is a tensor that lies in one piece of memory: no sparse one, and none within `torch.vmap`."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not is_functorch_wrapped_tensor(value)


def quickest(net: nn.Module, inputs: tuple[Tensor, ...], *, same_layers: bool = False) -> nn.Module:
    """The net, or a copy whose weights lie as the CPU's library wants them: convolutions with the channels last, products
    in blocks. A batch norm that nobody else looks at the input of goes into the weights of the layer before it, and a relu
    is done by it. Of a net (prepare, net) that takes bytes, what `prepare` does may also have gone into the weights of the
    first product, which takes the bytes as they are where the processor can (`products`).

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
                    other = way(twin(best))
                    with warnings.catch_warnings():
                        warnings.simplefilter(
                            "ignore"
                        )  # products of oneDNN, where a net differentiates, have no gradient
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
    kinds = {type(module) for module in net.modules()}
    linear = not same_layers and any(_is_plain(module, nn.Linear) for module in net.modules())
    after: dict[str, str] = {}
    if not same_layers and kinds & {*_NORMS, nn.ReLU}:
        with contextlib.suppress(Exception):  # a net that cannot be copied
            after = followers(net, few, _FOLLOWED)
    if after and kinds & {*_NORMS}:
        yield [functools.partial(_without_norms, after=after)]
    if linear and not planes and few[0].dtype == torch.uint8 and type(net) is nn.Sequential:
        yield [
            functools.partial(_folded, column=few[0], integers=way)
            for way in ((True, False) if products.fast() else (False,))
        ]
    if any(not weight.is_contiguous(memory_format=torch.channels_last) for weight in planes):
        yield [lambda whole: copy.deepcopy(whole).to(memory_format=torch.channels_last)]
    if linear or after or (not same_layers and nn.Conv1d in kinds):
        yield [functools.partial(_packed, after=after)]


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
        put(whole, {first: products.OfBytes(weight, bias)})
    else:
        whole[0] = _Float()
        first.weight, first.bias = nn.Parameter(weight), nn.Parameter(bias)
    if isinstance(net, Watched):
        net.familiar = net.familiar.rescaled(low, step)
    return whole  # type: ignore[no-any-return]


class _Float(nn.Module):
    """Bytes as floats, in the same memory at every call, since only a product reads them."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if len(self._memory) < len(x):
            self._memory = torch.empty(x.shape)
        return self._memory[: len(x)].copy_(x)


def _without_norms(net: nn.Module, after: dict[str, str]) -> nn.Module:
    """In place: each batch norm in the weights of the layer before it."""
    layers, changes = dict(net.named_modules()), {}
    for name, follower in after.items():
        layer, norm = layers[name], layers[follower]
        convolution = any(_is_plain(layer, kind) for kind in _CONVOLUTIONS)
        if not (convolution or _is_plain(layer, nn.Linear)) or not any(_is_plain(norm, kind) for kind in _NORMS):
            continue
        if norm.running_mean is None or norm.training:  # it takes what it needs from the batch
            continue
        fuse = fuse_conv_bn_weights if convolution else fuse_linear_bn_weights
        changes[layer], changes[norm] = twin(layer), nn.Identity()
        changes[layer].weight, changes[layer].bias = fuse(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    put(net, changes)
    return net


def _packed(net: nn.Module, after: dict[str, str]) -> nn.Module:
    """In place: products and relus by oneDNN. The tutorial's MLP takes 0.8 of the time (2,048 examples, 2 cores with AVX-512,
    torch 2.13)."""
    layers = dict(net.named_modules())
    changes: dict[nn.Module, nn.Module] = {
        layer: _Product(layer) for layer in layers.values() if _is_plain(layer, nn.Linear)
    } | {layer: _Convolution(layer) for layer in layers.values() if _is_convolution(layer, nn.Conv1d)}
    for name, layer in layers.items():
        follower = after.get(name, "")
        if isinstance(layers.get(follower), nn.Identity):  # which a norm has become
            follower = after.get(follower, "")
        relu = layers.get(follower)
        if relu is None or not _is_plain(relu, nn.ReLU):
            continue
        if _is_convolution(layer, nn.Conv2d):
            changes[layer] = _Convolution(layer)
        made = changes.get(layer, layer)
        if isinstance(made, (_Product, _Convolution, products.OfBytes)):
            made.after, changes[relu] = "relu", nn.Identity()
    put(net, changes)
    return net


def _is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    return type(module) is kind and not (module._forward_hooks or module._forward_pre_hooks)


def _is_convolution(module: nn.Module, kind: type[nn.Module]) -> bool:
    return _is_plain(module, kind) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


class _Product(nn.Module):
    """A linear layer by oneDNN, its weights packed once for all calls; torch packs them at every call."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight, None)
        self.bias, self.after = layer.bias, "none"

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.after, [], "")  # type: ignore[no-any-return]


class _Convolution(nn.Module):
    """A convolution by oneDNN, with what follows it. One along a line is that of a picture of one row with the channels last,
    which takes from a tenth to all of the time."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d):
        super().__init__()
        self.weight, self.bias, self.after = layer.weight, layer.bias, "none"
        self._line = isinstance(layer, nn.Conv1d)
        padding, stride, dilation = layer.padding, layer.stride, layer.dilation
        if self._line:
            weight = layer.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            self.weight, padding, stride, dilation = nn.Parameter(weight), (0, *padding), (1, *stride), (1, *dilation)
        self._how = (padding, stride, dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        if self._line:
            x = x.unsqueeze(-2).contiguous(memory_format=torch.channels_last)
        found = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self._how, self.after, [], "")
        return found.squeeze(-2) if self._line else found  # type: ignore[no-any-return]
