"""Which layers of a net take what another gives, with nobody else looking at it.

In: a net and some inputs. Out: the name of a layer -> the name of the one that follows it. Called by `inference`, which makes
one of two such layers.

It is seen as the net runs: each layer notes the tensors that it is given and gives, and a mode of torch every function that
reads one. So it holds of modules however they call each other; what a net does otherwise with other inputs, it does not tell.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


def twin(net: nn.Module) -> nn.Module:
    """Modules like those of a net, with its own weights: what is put in the place of one is not put into the net. A deep copy
    takes fifty times as long."""
    made: dict[int, nn.Module] = {}

    def of(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            copied = made[id(module)] = module.__class__.__new__(module.__class__)
            copied.__dict__.update(module.__dict__)
            for table in ("_parameters", "_buffers", "_modules"):
                copied.__dict__[table] = dict(module.__dict__[table])
            for name, child in copied._modules.items():
                copied._modules[name] = None if child is None else of(child)
        return made[id(module)]

    return of(net)


def put(net: nn.Module, changes: dict[nn.Module, nn.Module]) -> None:
    """Modules in the place of others, wherever those are."""
    for parent in list(net.modules()):
        for name, child in parent._modules.items():
            if child in changes:
                parent._modules[name] = changes[child]


def followers(net: nn.Module, inputs: tuple[Tensor, ...], kinds: Container[type[nn.Module]]) -> dict[str, str]:
    """Of the layers of these kinds, by name, that are called once with one tensor: which one alone reads what a layer gives.
    One that works in place may have readers after it, who see the same either way."""
    names = {module: name for name, module in net.named_modules() if name and type(module) in kinds}
    copied, seen = twin(net), _Seen()
    layers = zip(list(net.modules()), list(copied.modules()), strict=True)
    put(copied, {copy: _Noted(copy, names[own], seen) for own, copy in layers if own in names})
    with seen:
        copied(*inputs)
    found: dict[str, str] = {}
    givers: dict[int, str] = {}
    for name, given, gives in seen.calls:
        giver = givers.get(id(given))
        if seen.times[name] == 1 and giver is not None and seen.times[giver] == 1:
            readers = seen.readers[id(given)]
            if readers[0] == name and (gives is given or set(readers) == {name}):
                found[giver] = name
        givers[id(gives)] = name
    return found


class _Seen(TorchFunctionMode):
    """Who reads which tensor. Those that layers give are kept, so that no other has their number."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []  # in their order: layer, what it is given, what it gives
        self.times: dict[str, int] = {}
        self.readers: dict[int, list[str]] = {}  # of a tensor, in their order; "" is the net itself
        self.now = ""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in pytree.tree_iter((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.readers.setdefault(id(leaf), []).append(self.now)
        return function(*args, **(kwargs or {}))


class _Noted(nn.Module):
    def __init__(self, layer: nn.Module, name: str, seen: _Seen):
        super().__init__()
        self.layer, self.name = layer, name
        self.__dict__["seen"] = seen

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        seen = self.seen
        seen.now, before = self.name, seen.now
        gives = self.layer(*args, **kwargs)
        seen.now = before
        given = args[0] if len(args) == 1 and not kwargs else None
        seen.times[self.name] = seen.times.get(self.name, 0) + 1
        seen.calls.append((self.name, given, gives))
        if gives is not given:
            seen.readers[id(gives)] = []  # whatever had this number before is gone
        return gives

    def __getattr__(self, name: str) -> Any:
        """Of the layer, where a net asks for more than an answer: its weight, say."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)
