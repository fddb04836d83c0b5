"""How a net's weights begin.

In: a net, and a recipe's name or a function of a module. Out: nothing, the net is changed in place. Called before
training.

    initialise(net, "kaiming", activation="relu", seed=0)
    initialise(net, "constant:0.1")          the recipe's one argument may follow a colon
    initialise(net, "normal", std=0.01)
    initialise(net, my_function)             applied to every module, as `net.apply` does

What is set: the weights of linear, bilinear, convolution, transposed convolution, embedding, recurrent and attention
layers; their biases become zero. Normalisation layers, loose parameters and all that is frozen stay as they are.

The fan-in of a weight is the number of terms in one of its sums, the fan-out the number of sums that a term enters. So
a recurrent layer is initialised gate by gate, attention projection by projection, a grouped convolution group by group,
and a transposed convolution with its two channel dimensions exchanged (its stride is not counted).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils import parametrize

from lamina import activations
from lamina.activations import Activation
from lamina.errors import UsageError, near

# The recipes: each fills a tensor (out, in, *kernel), one block of a weight, for a gain.


def kaiming_normal(block: Tensor, gain: float, *, mode: str = "fan_in") -> None:
    """N(0, gain^2 / fan); fan_in keeps the signal's size, fan_out the gradient's. He et al. (2015)."""
    block.normal_(0, gain / math.sqrt(_fans(block)[_MODES[mode]]))


def kaiming_uniform(block: Tensor, gain: float, *, mode: str = "fan_in") -> None:
    """U(-a, a) of the variance gain^2 / fan: a = gain sqrt(3 / fan). He et al. (2015)."""
    bound = gain * math.sqrt(3 / _fans(block)[_MODES[mode]])
    block.uniform_(-bound, bound)


def xavier_normal(block: Tensor, gain: float) -> None:
    """N(0, 2 gain^2 / (fan_in + fan_out)). Glorot and Bengio (2010)."""
    block.normal_(0, gain * math.sqrt(2 / sum(_fans(block))))


def xavier_uniform(block: Tensor, gain: float) -> None:
    """U(-a, a), a = gain sqrt(6 / (fan_in + fan_out)). Glorot and Bengio (2010)."""
    bound = gain * math.sqrt(6 / sum(_fans(block)))
    block.uniform_(-bound, bound)


def orthogonal(block: Tensor, gain: float) -> None:
    """gain times a random (semi-)orthogonal matrix (out, in * kernel). Saxe et al. (2014)."""
    nn.init.orthogonal_(block, gain)


def normal(block: Tensor, gain: float, *, std: float = 0.02) -> None:
    """N(0, std^2), whatever the gain."""
    block.normal_(0, std)


def uniform(block: Tensor, gain: float, *, bound: float = 0.05) -> None:
    """U(-bound, bound), whatever the gain."""
    block.uniform_(-bound, bound)


def truncated_normal(block: Tensor, gain: float, *, std: float = 0.02) -> None:
    """N(0, std^2) cut off at 2 std, whatever the gain; its own standard deviation is 0.88 std."""
    nn.init.trunc_normal_(block, 0, std, -2 * std, 2 * std)


def zeros(block: Tensor, gain: float) -> None:
    """All zero."""
    block.zero_()


def constant(block: Tensor, gain: float, *, value: float) -> None:
    """All the same number."""
    block.fill_(value)


RECIPES: dict[str, Callable[..., None]] = {
    "kaiming": kaiming_normal,
    "kaiming_normal": kaiming_normal,
    "kaiming_uniform": kaiming_uniform,
    "xavier": xavier_uniform,
    "xavier_normal": xavier_normal,
    "xavier_uniform": xavier_uniform,
    "orthogonal": orthogonal,
    "normal": normal,
    "uniform": uniform,
    "truncated_normal": truncated_normal,
    "zeros": zeros,
    "constant": constant,
}
_MODES = {"fan_in": 0, "fan_out": 1}


def names() -> list[str]:
    """The names that `initialise` knows; "pytorch" leaves a net as it was made."""
    return [*RECIPES, "pytorch"]


def initialise(
    net: nn.Module,
    how: str | Callable[[nn.Module], Any],
    *,
    activation: Activation = "relu",
    seed: int | None = None,
    **arguments: Any,
) -> None:
    """Set the weights of a net in place by a recipe, scaled for the activation that follows them; biases to zero.

    Recurrent, attention and embedding layers, which no `activation` follows, have gain 1; an embedding's padding row
    stays zero. The numbers are drawn on the CPU, so they are the same for any device; with a `seed` they come from a
    generator of their own, and the global ones are left where they were (CPU and CUDA). A function `how` draws as it
    likes. `UsageError` for an unknown name or argument, and for a lazy layer that has no shape yet. Warns when all
    weights of several layers are made alike: their units then stay alike, and such a net cannot learn.
    """
    if callable(how):
        if arguments:
            raise UsageError(f"a function takes no arguments here, and {', '.join(arguments)} was given")
        with _seeded(net, seed):
            net.apply(how)
        return
    if how == "pytorch":
        return
    recipe, arguments = _recipe(how, arguments)
    gain = activations.gain(activation)
    done: set[int] = set()  # a shared weight is set once, by its first owner
    with torch.no_grad(), _seeded(net, seed):
        for path, module in net.named_modules():
            weights = list(_weights(module))
            for weight in weights:
                stored = _stored(module, weight.name, path)
                if not stored or id(stored[0]) in done:
                    continue
                new = _drawn(weight, getattr(module, weight.name), recipe, gain if weight.followed else 1.0, arguments)
                if getattr(module, "padding_idx", None) is not None:
                    new[module.padding_idx] = 0
                _set(module, weight.name, new, path)
                done.add(id(stored[0]))
            for name, parameter in module.named_parameters(recurse=False) if weights else ():
                if "bias" in name and parameter.requires_grad:
                    parameter.zero_()
    if recipe in (zeros, constant) and len(done) > 1:
        warnings.warn(
            f"all weights of {len(done)} layers are alike ({how}): the units of a layer get the same gradient, stay "
            "the same for ever, and the net cannot learn. Any random initialisation breaks this symmetry.",
            stacklevel=2,
        )


class _Weight(NamedTuple):
    """How a module's weight falls into blocks (out, in, *kernel) along its first dimension."""

    name: str
    blocks: int = 1
    exchanged: bool = False  # the block lies there as (in, out, *kernel)
    followed: bool = True  # by the net's activation


def _weights(module: nn.Module) -> Iterator[_Weight]:
    if isinstance(module, _ConvNd):
        yield _Weight("weight", module.groups, exchanged=isinstance(module, _ConvTransposeNd))
    elif isinstance(module, nn.Linear | nn.Bilinear):
        yield _Weight("weight")
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        yield _Weight("weight", followed=False)
    elif isinstance(module, nn.RNNBase | RNNCellBase):
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("weight"):  # (gates * hidden, in); an LSTM's projection is (less than hidden, hidden)
                yield _Weight(name, max(1, len(parameter) // module.hidden_size), followed=False)
    elif isinstance(module, nn.MultiheadAttention):
        if module.in_proj_weight is not None:
            yield _Weight("in_proj_weight", 3, followed=False)
        else:
            yield from (_Weight(f"{part}_proj_weight", followed=False) for part in "qkv")


def _fans(block: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a block (out, in, *kernel)."""
    return block[0].numel(), block[:, 0].numel()


def _drawn(weight: _Weight, old: Tensor, recipe: Callable, gain: float, arguments: dict[str, Any]) -> Tensor:
    """A new value for a weight, on the CPU."""
    shape = [len(old) // weight.blocks, *old.shape[1:]]
    if weight.exchanged:
        shape[:2] = shape[1], shape[0]
    dtype = torch.promote_types(old.dtype, torch.float32)
    blocks = [torch.empty(shape, dtype=dtype, device="cpu") for _ in range(weight.blocks)]
    for block in blocks:
        recipe(block, gain, **arguments)
    return torch.cat([block.transpose(0, 1) if weight.exchanged else block for block in blocks])


def _stored(module: nn.Module, name: str, path: str) -> list[nn.Parameter]:
    """The parameters that hold a weight: itself, those of its parametrisation, or none where it must be left alone."""
    if parametrize.is_parametrized(module, name):
        held = list(module.parametrizations[name].parameters())  # type: ignore[union-attr, operator, index]
    else:
        held = [parameter] if (parameter := module._parameters.get(name)) is not None else []
        if not held:
            warnings.warn(
                f"{path}.{name} is computed before each call (pruning, the old weight_norm): it is left as it was",
                stacklevel=4,
            )
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in held):
        raise UsageError(f"{path}.{name} has no shape yet", fix="send one batch through the net first")
    return held if all(parameter.requires_grad for parameter in held) else []


def _set(module: nn.Module, name: str, new: Tensor, path: str) -> None:
    if not parametrize.is_parametrized(module, name):
        getattr(module, name).copy_(new)
        return
    old = getattr(module, name)
    try:
        setattr(module, name, new.to(old))
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{path}.{name} has a parametrisation that cannot be given a start: {error}",
            fix="initialise before the parametrisation is added",
        ) from error


def _recipe(how: str, arguments: dict[str, Any]) -> tuple[Callable[..., None], dict[str, Any]]:
    """ "constant:0.1" -> the recipe and {"value": 0.1}; with all arguments checked."""
    name, colon, text = how.partition(":")
    name = name.strip().lower().replace("-", "_")
    if name not in RECIPES:
        raise UsageError(f"unknown initialisation {name!r}", expected=near(name, names()))
    recipe = RECIPES[name]
    takes = inspect.signature(recipe)
    if colon:
        first = [*takes.parameters][2:3] or ["value"]  # after the block and the gain
        arguments = {first[0]: text, **arguments}
    try:
        takes.bind(None, 1.0, **arguments)
        arguments = {word: value if word == "mode" else float(value) for word, value in arguments.items()}
        if arguments.get("mode", "fan_in") not in _MODES:
            raise ValueError(f"the mode is fan_in or fan_out, not {arguments['mode']!r}")
        if not all(map(math.isfinite, (value for word, value in arguments.items() if word != "mode"))):
            raise ValueError("the number must be finite")
    except (TypeError, ValueError) as error:
        shown = ", ".join(str(parameter) for parameter in [*takes.parameters.values()][2:]) or "no arguments"
        raise UsageError(f"initialisation {how!r} with {arguments}: {error}", expected=shown) from None
    return recipe, arguments


@contextlib.contextmanager
def _seeded(net: nn.Module, seed: int | None) -> Iterator[None]:
    """Inside, random numbers from a seed; outside, the global generators (CPU, the net's CUDA devices) as they were."""
    if seed is None:
        yield
        return
    devices = sorted({p.device.index for p in net.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would reach every device
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
