"""Optimisers by name: torch's own, checked at the door and started without the compiler.

In: a name, what to optimise (a net, parameters or groups of them), the learning rate and the optimiser's own arguments.
Out: a `torch.optim.Optimizer`. The recipe's optimiser and its arguments come here; the loop only calls `step()`.

The arithmetic and the defaults are torch's. Three things are ours:

- `fused=True` where class, device and dtype have the fused kernel: the same update in one pass over memory. (Adam on
  1.6 million float32 weights, one thread of an AVX-512 CPU, torch 2.13: 1.1 ms a step, against 4.1 ms.)
- `muon` is Muon for the hidden matrices and AdamW for all the rest, as one optimiser.
- torch's classes load the compiler, `torch._dynamo`, when the first optimiser is built: about a second, to mark methods
  that it must not compile. `without_compiler` takes the same methods unmarked. Nothing changes unless `step()` itself
  is compiled; for that, build torch's class yourself.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lamina.errors import UsageError, near

Group = dict[str, Any]


def names() -> list[str]:
    """Every name that `make` takes: the classes of torch.optim, in lower case."""
    return sorted(_classes())


def check_step(optimizer: Optimizer) -> None:
    """UsageError for an optimiser whose step cannot be made without a closure that measures the loss anew."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise _asks_again(type(optimizer).__name__)


def _asks_again(name: str) -> UsageError:
    return UsageError(
        f"the optimiser {name!r} measures the loss several times in a step",
        expected="an optimiser that takes one gradient a step",
        fix="write the loop by hand around torch.optim.LBFGS, or use 'adamw'",
    )


def make(
    name: str,
    parameters: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]],
    learning_rate: float,
    **arguments: Any,
) -> Optimizer:
    """The optimiser of that name over a net, its parameters (named or not), or groups of them.

    A group is a dict as torch's: `params`, and any argument that differs for it (`lr` may be written `learning_rate`;
    `name` is yours). `arguments` are those of torch's class, with its defaults; `fused` is on where it can be. Mind
    that `weight_decay` of `adam` is an L2 term in the gradient; of `adamw` it is decoupled (Loshchilov and Hutter,
    2019). For `muon` see `MuonWithAdamW`.

    Raises UsageError for an unknown name, argument or group key (with near misses) and for a value that torch refuses.
    """
    if name.lower() == "lbfgs":
        raise _asks_again("lbfgs")
    if name.lower() not in _classes():
        raise UsageError(f"there is no optimiser {name!r}", expected=near(name.lower(), names()))
    number = isinstance(learning_rate, (int, float)) and not isinstance(learning_rate, bool)
    if not number or not math.isfinite(learning_rate) or learning_rate < 0:
        raise UsageError(f"the learning rate is {learning_rate!r}", expected="a finite number, 0 or more")
    kind = _classes()[name.lower()]
    if name.lower() == "muon":
        return _muon(kind, _groups(_split(parameters)), learning_rate, arguments)
    groups = _groups(parameters)
    _check(name, arguments, _options(kind))
    _check_groups(name, groups, _options(kind))
    return _build(name, kind, groups, {"lr": learning_rate, **arguments})


class MuonWithAdamW(Optimizer):
    """Muon for hidden matrices, AdamW for the rest: one list of groups, one state, one `step()`.

    Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix by
    Newton-Schulz iteration. It is made for the matrices inside a net, not for embeddings, the last layer, biases and
    norms; torch's class takes nothing but 2-D parameters. So, given

    - a net: its 2-D parameters with "weight" in their name go to Muon, but for embeddings and the last such layer;
    - parameters or groups: all 2-D ones go to Muon, unless their group says `"method": "adamw"`.

    Everything else goes to AdamW: also the kernels of convolutions, which torch's Muon does not flatten.

    Arguments are those of torch.optim.Muon; those of AdamW carry the prefix `adamw_` (`adamw_betas`, ...,
    `adamw_learning_rate`). The learning rate and `weight_decay`, if given, hold for both unless AdamW has its own.
    One default differs from torch's: `adjust_lr_fn="match_rms_adamw"` (Liu et al., 2025, arXiv:2502.16982) gives both
    parts updates of the same size, so that one learning rate, AdamW's, serves both.
    """

    def __init__(self, groups: list[Group], muon: Group, adamw: Group):
        """`muon` and `adamw` are the complete default arguments of the two; see `make`."""
        self.methods = {"muon": muon, "adamw": adamw}
        super().__init__(groups, {})
        self._share()

    def add_param_group(self, param_group: Group) -> None:
        """Split a group between the two methods, each part with its method's defaults; empty parts are left out."""
        shared = {key: value for key, value in param_group.items() if key not in ("params", "method")}
        for method, defaults in self.methods.items():
            members = [p for p in _listed(param_group["params"]) if _method(p, param_group) == method]
            if members:
                own = {key: value for key, value in shared.items() if key in defaults or key in _TAGS}
                part = {**defaults, **own, "params": members, "method": method}
                inspect.unwrap(Optimizer.add_param_group)(self, part)
        self._share()

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def _share(self) -> None:
        """Two optimisers that see our groups and our state: the very objects, so there is nothing to keep in step."""
        self._parts = []
        for method, name in (("muon", "Muon"), ("adamw", "AdamW")):
            kind = without_compiler(_classes()[name.lower()])
            part = kind.__new__(kind)
            groups = [group for group in self.param_groups if group["method"] == method]
            part.__setstate__({"defaults": self.methods[method], "state": self.state, "param_groups": groups})
            self._parts.append(part)

    def __getstate__(self) -> Group:
        return {**super().__getstate__(), "methods": self.methods}

    def __setstate__(self, state: Group) -> None:
        super().__setstate__(state)  # replaces groups and state: after load_state_dict, after a deep copy
        self._share()


_TAGS = frozenset({"name", "param_names"})  # keys of a group that are not arguments
_FUSED = {"SGD": ("cpu", "cuda"), "Adam": ("cpu", "cuda"), "AdamW": ("cpu", "cuda"), "Adagrad": ("cpu",)}
_IMPLEMENTATIONS = ("fused", "foreach", "differentiable")  # naming one of these is the caller's choice of kernel


@functools.cache
def _classes() -> dict[str, Any]:
    found = (getattr(torch.optim, name) for name in dir(torch.optim))
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Optimizer)]
    return {kind.__name__.lower(): kind for kind in kinds if kind is not Optimizer and kind is not torch.optim.LBFGS}


@functools.cache
def without_compiler(kind: Any) -> Any:
    """A subclass whose methods are torch's own, without the wrappers that import torch._dynamo when first called."""
    marked = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {method: inspect.unwrap(getattr(kind, method)) for method in marked}
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**methods, "step": step, "__module__": __name__, "__doc__": kind.__doc__})


def minimise(tensors: list[Tensor], value: Callable[[], Tensor], rounds: int, **options: Any) -> None:
    """Bring a smooth function of tensors (0-d) to its least by L-BFGS, in place; options of torch's class."""
    solver = without_compiler(torch.optim.LBFGS)(tensors, max_iter=rounds, line_search_fn="strong_wolfe", **options)

    def slope() -> Tensor:
        solver.zero_grad()
        found = value()
        found.backward()
        return found.detach()

    solver.step(slope)  # which turns gradients on


def _options(kind: Any) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self", "params", "lr"}


def _check(name: str, arguments: Iterable[str], known: set[str]) -> None:
    unknown = sorted(set(arguments) - known)
    if unknown:
        hints = [f"use {key[:-2]}learning_rate" if key in ("lr", "adamw_lr") else near(key, known) for key in unknown]
        raise UsageError(
            f"the optimiser {name!r} has no argument {', '.join(map(repr, unknown))}", expected="; ".join(hints)
        )


def _check_groups(name: str, groups: list[Group], options: set[str]) -> None:
    known = options | _TAGS | {"params", "lr"}
    for number, group in enumerate(groups):
        unknown = sorted(set(group) - known)
        if unknown:
            raise UsageError(
                f"group {number} of the optimiser {name!r} has the unknown key {', '.join(map(repr, unknown))}",
                expected="; ".join(near(key, known) for key in unknown),
            )


def _listed(parameters: Any) -> list:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _groups(parameters: Any) -> list[Group]:
    """Groups as torch wants them, ours to change: the caller's dicts are copied, generators are read once."""
    items = _listed(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
    if not items:
        raise UsageError("there is nothing to optimise", expected="a net or a list with at least one parameter")
    if not isinstance(items[0], Mapping):
        return [{"params": items}]
    groups = []
    for number, item in enumerate(items):
        if not isinstance(item, Mapping) or "params" not in item:
            raise UsageError(f"group {number} of the parameters has no 'params'", expected="{'params': [...], ...}")
        group = {("lr" if key == "learning_rate" else key): value for key, value in item.items()}
        groups.append({**group, "params": _listed(item["params"])})
    return groups


def _build(name: str, kind: Any, groups: list[Group], arguments: Group) -> Optimizer:
    chosen = any(flag in settings for flag in _IMPLEMENTATIONS for settings in (arguments, *groups))
    tensors = [p[1] if isinstance(p, tuple) else p for group in groups for p in group["params"]]
    fuse = not chosen and all(_has_fused_kernel(kind.__name__, tensor) for tensor in tensors)
    if fuse:
        arguments = {**arguments, "fused": True}
    if not arguments.get("differentiable"):
        kind = without_compiler(kind)
    try:
        optimizer = kind(groups, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"the optimiser {name!r} refuses its arguments: {error}") from error
    if fuse and kind.__name__ in ("SGD", "Adagrad"):
        _watch_for_sparse(optimizer)
    return optimizer


def _has_fused_kernel(kind: str, parameter: Any) -> bool:
    ours = type(parameter) in (Tensor, nn.Parameter)  # a subclass may bring its own arithmetic
    return ours and parameter.is_floating_point() and parameter.device.type in _FUSED.get(kind, ())


def _watch_for_sparse(optimizer: Optimizer) -> None:
    """Go back from the fused kernel when the first step brings a sparse gradient (`nn.Embedding(sparse=True)`).

    SGD and Adagrad take sparse gradients, their fused kernels do not, and parameters do not tell beforehand.
    """

    def look_once(optimizer: Optimizer, args: tuple, kwargs: Group) -> None:
        handle.remove()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not any(p.grad is not None and p.grad.is_sparse for p in parameters):
            return
        if getattr(optimizer, "found_inf", None) is not None:  # a GradScaler counts on the fused kernel to unscale
            what = "a sparse gradient met a fused optimiser under a GradScaler"
            raise UsageError(what, fix="give the optimiser fused=False")
        for group in optimizer.param_groups:
            group["fused"] = False

    look_once.once = True  # type: ignore[attr-defined]  # for `flat`, whose first update is torch's own
    handle = optimizer.register_step_pre_hook(look_once)


def _method(parameter: Tensor | tuple[str, Tensor], group: Group) -> str:
    tensor = parameter[1] if isinstance(parameter, tuple) else parameter
    return "muon" if tensor.ndim == 2 and group.get("method") != "adamw" else "adamw"


def _split(net: Any) -> Any:
    """For a net: its hidden matrices in one group, the rest in another. Anything else is returned as it is.

    Hidden are 2-D parameters named as weights, without embeddings and without the last layer, which makes the outputs.
    """
    if not isinstance(net, nn.Module):
        return net
    weights = [m.weight for m in net.modules() if isinstance(getattr(m, "weight", None), nn.Parameter)]
    matrices = [weight for weight in weights if weight.ndim == 2]
    tables = [m.weight for m in net.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    outside = {id(p) for p in [*tables, *matrices[-1:]]}
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in net.named_parameters():
        inside = parameter.ndim == 2 and "weight" in name and id(parameter) not in outside
        (hidden if inside else rest).append(parameter)
    return [{"params": hidden}, {"params": rest, "method": "adamw"}]


def _muon(kind: Any, groups: list[Group], learning_rate: float, arguments: Group) -> Optimizer:
    adamw = _classes()["adamw"]
    _check("muon", arguments, _options(kind) | {"adamw_" + option for option in {*_options(adamw), "learning_rate"}})
    of_muon = {key: value for key, value in arguments.items() if not key.startswith("adamw_")}
    of_adamw = {key.removeprefix("adamw_"): value for key, value in arguments.items() if key not in of_muon}
    of_adamw["lr"] = of_adamw.pop("learning_rate", learning_rate)
    if "weight_decay" in of_muon:
        of_adamw.setdefault("weight_decay", of_muon["weight_decay"])
    _check_groups("muon", groups, _options(kind) | _options(adamw) | {"method"})
    wrong = sorted({str(group["method"]) for group in groups if group.get("method", "adamw") not in ("muon", "adamw")})
    if wrong:
        raise UsageError(f"a group asks for the method {', '.join(map(repr, wrong))}", expected="'muon' or 'adamw'")

    members = [(p, group) for group in groups for p in group["params"]]
    matrices = [p for p, group in members if _method(p, group) == "muon"]
    rest = [p for p, group in members if _method(p, group) == "adamw"]
    if not matrices:
        raise UsageError("'muon' found no hidden matrix to work on", expected="a 2-D weight", fix="use 'adamw'")
    # Built once for torch's own checks of the values, and for the complete defaults.
    settings = {"lr": learning_rate, "adjust_lr_fn": "match_rms_adamw", **of_muon}
    muon_defaults = _build("muon", kind, [{"params": matrices}], settings).defaults
    nothing = torch.empty(0, device=matrices[0][1].device if isinstance(matrices[0], tuple) else matrices[0].device)
    adamw_defaults = _build("muon", adamw, [{"params": rest or [nothing]}], of_adamw).defaults
    return without_compiler(MuonWithAdamW)(groups, muon_defaults, adamw_defaults)
