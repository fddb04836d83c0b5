"""A step watched operation by operation, each with the layer that it belongs to.

In: a net, and a function that is told of every operation of ATen. Out: a context in which forward and backward run as they
always do, while that function sees (operation, place, arguments, results). A place is a layer in words, "'fc1' (Linear)", or
"" for what lies outside the net: the loss, a penalty. The operations of a backward pass belong to the layer whose forward
they differentiate. Used where a fault is looked for, never in the steps of a training: it takes several times as long.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Look = Callable[[Any, str, Any, Any], None]

_MARK = "lamina.place"  # in the metadata of an autograd node


def layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules by name, the net itself first, that can be watched from outside: those of TorchScript cannot."""
    return [(name, module) for name, module in net.named_modules() if not isinstance(module, torch.jit.ScriptModule)]


class Trace(TorchDispatchMode):
    """Tells `look` of every operation; `backward` says whether the last one was part of a backward pass."""

    def __init__(self, net: nn.Module, look: Look):
        super().__init__()
        self.backward = False
        self._net, self._look = net, look
        self._inside: list[str] = []  # the layers that are being run, outermost first
        self._handles: list[Any] = []

    def __enter__(self) -> Trace:
        for name, module in layers(self._net):
            words = title(name, module)
            self._handles.append(module.register_forward_pre_hook(self._entering(words), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leaving(words), always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        node: Any = torch._C._current_autograd_node()
        self.backward = node is not None
        place = node.metadata.get(_MARK, "") if node is not None else self._inside[-1] if self._inside else ""
        results = function(*args, **(kwargs or {}))
        self._look(function, place, (args, kwargs or {}), results)
        return results

    def _entering(self, words: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            _mark((args, kwargs), self._inside[-1] if self._inside else "")  # made by whoever calls this layer
            self._inside.append(words)

        return enter

    def _leaving(self, words: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, output: Any) -> None:
            _mark(output, words)
            self._inside.pop()

        return leave


# Torch wraps this method so that the compiler leaves it alone, and imports the compiler for that: a second, when first called.
Trace.__torch_dispatch__ = inspect.unwrap(Trace.__torch_dispatch__)  # type: ignore[method-assign]


def title(name: str, module: nn.Module) -> str:
    """A layer in words."""
    return f"{name!r} ({type(module).__name__})" if name else type(module).__name__


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _mark(values: Any, place: str) -> None:
    """Write the place into every autograd node behind these values that has none yet."""
    behind: list[Any] = [tensor.grad_fn for tensor in tensors(values) if tensor.grad_fn is not None]
    while behind:
        node = behind.pop()
        if _MARK not in node.metadata:
            node.metadata[_MARK] = place
            behind += [before for before, _ in node.next_functions if before is not None]
