"""Parameters, gradients and optimiser state one after the other in memory, so that an update is one pass.

In: an optimiser of torch's that treats each number by itself, and the parameters that get gradients. Out: a `Flat`: the same
parameters, now views of one tensor, as ordinary as before to the module and its owner; views for their gradients; and
`update()`, which does what `optimizer.step()` does, to the bit, over all of a group at once: by torch's fused kernel where the
optimiser was made with that, else (on the CPU) by an optimiser of the same class whose parameter is the group's one tensor. The
optimiser's own state tensors become views too, so its `state_dict()` and `load_state_dict()` go on working. On a GPU the
learning rate is a tensor, rounded to float32, so that an update can be captured.

To the bit: the fused kernels work in vectors of 16 numbers and finish a tensor one by one, with other roundings. So a tensor
whose size is no multiple of 16 is then not joined to its neighbours, and is updated beside them. The plain operations round the
same way everywhere.
"""

from __future__ import annotations

import collections
import functools
import inspect
import math
import operator
import types
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

_LANE = 16  # numbers: a cache line of float32, the kernels' unit
_STATES = {  # of as many numbers as the parameter
    "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "SGD": ("momentum_buffer",),
    "RMSprop": ("square_avg", "momentum_buffer", "grad_avg"),
    "NAdam": ("exp_avg", "exp_avg_sq"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "Adagrad": ("sum",),
    "Adadelta": ("square_avg", "acc_delta"),
    "Adamax": ("exp_avg", "exp_inf"),
    "ASGD": ("ax",),
    "Rprop": ("prev", "step_size"),
}
_COUNTS = ("step", "mu_product", "eta", "mu")  # state that is one number a parameter
_MOST = 1 << 20  # numbers, for an update by plain operations: of more the time goes into the arithmetic, in more memory
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_HOOKS_OF_ALL = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


def why_not(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> str:
    """Why these cannot be laid flat, in words that complete "the optimiser ..."; empty where they can."""
    kind = type(optimizer)
    base = next((k for k in kind.__mro__ if k.__module__.startswith("torch.optim.")), None)
    own = kind is not base and not kind.__module__.startswith("lamina.")
    if base is None or own or base.__name__ not in _STATES:
        return f"{kind.__name__} updates its tensors one by one"
    if any(not getattr(hook, "once", False) for hooks in _HOOKS for hook in getattr(optimizer, hooks, {}).values()):
        return "has hooks of its own"
    if any(getattr(torch_optimizer, hooks, None) for hooks in _HOOKS_OF_ALL):
        return "has hooks, as all optimisers have here"
    if "step" in vars(optimizer):
        return "has a step that was replaced"
    fused = [bool(group.get("fused")) for group in optimizer.param_groups]
    if any(fused) and not (all(fused) and base.__name__ in _KERNELS):
        return f"{kind.__name__} has fused kernels of its own, or for some groups alone"
    rates = [rate for group in optimizer.param_groups for rate in (group["lr"], *group.get("betas", ()))]
    if any(isinstance(rate, Tensor) for rate in rates) or any(g.get("differentiable") for g in optimizer.param_groups):
        return "has a rate that is a tensor, or is differentiable"
    if not parameters:
        return "has no parameters that get a gradient"
    if not any(fused) and parameters[0].device.type != "cpu":
        return f"{kind.__name__} was not made with fused=True"
    if not any(fused) and sum(p.numel() for p in parameters) > _MOST:
        return f"{kind.__name__} was not made with fused=True, and has more than {_MOST:,} numbers to update"
    if len({(p.device, p.dtype) for p in parameters}) > 1:
        return "has parameters of several types or devices"
    if parameters[0].device.type not in ("cpu", "cuda") or parameters[0].dtype not in (torch.float32, torch.float64):
        return f"has parameters of {parameters[0].dtype} on {parameters[0].device}"
    if any(type(p) not in (Tensor, nn.Parameter) or not _dense(p) for p in parameters):
        return "has a parameter that is not a dense tensor of torch's"
    if any(p.grad is not None and p.grad.layout != torch.strided for p in parameters):
        return "gets gradients that are sparse"
    if any(p.untyped_storage().nbytes() != p.nbytes for p in parameters):
        return "has a parameter that is a part of another tensor"
    known = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    if not all(id(p) in known for p in parameters):
        return "does not hold all parameters that get a gradient"
    wanted = {p.untyped_storage()._cdata for p in parameters}
    if sum(p.untyped_storage()._cdata in wanted for p in known.values() if p.layout == torch.strided) > len(wanted):
        return "has parameters that share memory"
    return ""


def _dense(p: Tensor) -> bool:
    """Whether a tensor covers its memory without gaps or overlap, in any order of its axes."""
    expected = 1
    for stride, size in sorted((stride, size) for size, stride in zip(p.shape, p.stride(), strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return p.layout == torch.strided and p.numel() > 0


class _Group:
    """A parameter group, and the tensors that one call of the kernel takes."""

    def __init__(self, settings: dict[str, Any], members: list[Tensor]):
        self.settings = settings
        self.members = members
        self.parameters: list[Tensor] = []  # one tensor for all whose size is a multiple of 16, and the others
        self.gradients: list[Tensor] = []
        self.states: dict[str, list[Tensor]] = {}
        self.steps: list[Tensor] = []
        self.counts: dict[str, Tensor] = {}  # of each parameter, where the update is by plain operations
        self.rate: Any = settings["lr"]  # on a GPU a tensor there, so that a captured update may change it
        self._rate: Any = None  # what is in that tensor

    def set_rate(self) -> None:
        """The learning rate as its owner has it now."""
        rate = self.settings["lr"]
        if self.members[0].is_cpu:
            self.rate = rate
        elif not isinstance(self.rate, Tensor):
            self.rate, self._rate = torch.tensor(rate, dtype=torch.float32, device=self.members[0].device), rate
        elif rate != self._rate:
            self.rate.fill_(rate)
            self._rate = rate


class Flat:
    """Parameters in one tensor. parameters: those that get a gradient at every step; `why_not` must have agreed.

    `gradients` are views of `gradient`, in the order of `parameters`: write them and call
    `update()`. `separate()` gives everything back its own memory.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]):
        self.optimizer, self.parameters = optimizer, list(parameters)
        self.kind = next(k.__name__ for k in type(optimizer).__mro__ if k.__module__.startswith("torch.optim."))
        self.fused = bool(optimizer.param_groups[0].get("fused"))
        wanted = {id(p) for p in parameters}
        self._groups = []
        for group in optimizer.param_groups:
            members = [p for p in group["params"] if id(p) in wanted]
            if self.fused:
                members.sort(key=lambda p: p.numel() % _LANE != 0)  # stable: those that are joined come first
            if members:
                self._groups.append(_Group(group, members))
        self._places: dict[int, int] = {}
        place = 0
        for own in self._groups:
            for p in own.members:
                self._places[id(p)] = place
                place += -(-p.numel() // _LANE) * _LANE
        self.size = place
        self.weights = self._laid(lambda p: p.detach())
        self.gradient = torch.zeros_like(self.weights)
        self.gradients = [self._view(self.gradient, p) for p in self.parameters]
        self._memory: dict[str, Tensor] = {}  # of the optimiser's state
        self._steps: Tensor | None = None
        for p in self.parameters:
            p.data = self._view(self.weights, p)
        for own in self._groups:
            own.parameters, own.gradients = self._joined(self.weights, own), self._joined(self.gradient, own)
        self._pointers = [p.data_ptr() for p in self.parameters]
        self._owners: list[tuple[dict[str, Any], str]] = []  # of the optimiser's state: dictionary and key
        self._kept: list[Tensor] = []  # what must still be there
        self._settings = list(optimizer.param_groups)
        self._states: list[dict[str, Any]] = []  # all of the optimiser's, in its order
        self._ready = False  # the optimiser's state lies flat
        self._twin: Any = None  # the optimiser of the groups' one tensors
        # Its step without what torch wraps around: hooks, of which there are none, and marks for the profiler, 0.03 ms.
        self._bare = inspect.unwrap(type(optimizer).step, stop=_is_of_others)

    def intact(self) -> bool:
        """Whether parameters and optimiser state still lie where they were put: a caller may have set others."""
        if [p.data_ptr() for p in self.parameters] != self._pointers:
            return False
        groups, states = self.optimizer.param_groups, self.optimizer.state  # both are replaced by load_state_dict
        if not _same(groups, self._settings) or (self._states and not _same(states.values(), self._states)):
            return False
        return all(map(operator.is_, [state.get(name) for state, name in self._owners], self._kept))

    @property
    def settings(self) -> list[Any]:
        """What an update reads as plain values; the learning rate is none of them."""
        return [value for own in self._groups for name, value in own.settings.items() if name not in ("params", "lr")]

    def prepare(self) -> bool:
        """Before an update: take in the optimiser's state and its rates. False where the update will be torch's own."""
        if self._ready and any(_missing(own) for own in self._groups):  # momentum that was 0, for one
            self._ready = False
        if not self._ready and self._adopt():
            self._ready, self._twin = True, None if self.fused else self._twinned()
        for own in self._groups:
            own.set_rate()
        return self._ready

    def update(self, found: Tensor | None = None) -> None:
        """`optimizer.step()`, over everything at once. The first one is torch's own: it makes the state. found: a number on
        a GPU; where it is not 0, nothing happens."""
        if not self.prepare():
            for p, gradient in zip(self.parameters, self.gradients, strict=True):
                p.grad = gradient
            self.optimizer.step()
            return
        if not self.fused:
            self._step()
            return
        if self._steps is not None:
            self._steps.add_(1)
        for own in self._groups:
            _KERNELS[self.kind](own, found)
        if self._steps is not None and found is not None:
            self._steps.sub_(found)

    def separate(self) -> None:
        """Everything its own memory again, with the same values."""
        for p in self.parameters:
            p.data = p.data.clone()
            gradient = p.grad
            if gradient is None or gradient.layout != torch.strided:
                continue
            if gradient.untyped_storage()._cdata == self.gradient.untyped_storage()._cdata:
                p.grad = gradient.clone()
        for (state, name), tensor in zip(self._owners, self._kept, strict=True):
            if state.get(name) is tensor:
                state[name] = tensor.clone()
        self._owners, self._kept, self._states, self._ready, self._twin = [], [], [], False, None

    def _step(self) -> None:
        """An update by plain operations."""
        for own, group in zip(self._groups, self._twin.param_groups, strict=True):
            group.update((name, value) for name, value in own.settings.items() if name != "params")
        with torch.no_grad():
            self._bare(self._twin)
        for own in self._groups:
            for name, counts in own.counts.items():
                counts.fill_(self._twin.state[own.parameters[0]][name])

    def _twinned(self) -> Any:
        """An optimiser like the one given, of the groups' one tensors and their state."""
        twin = type(self.optimizer).__new__(type(self.optimizer))
        # A scheduler may have put a `step` there that counts the optimiser's own.
        twin.__dict__.update({name: value for name, value in vars(self.optimizer).items() if name != "step"})
        twin.__dict__.update({name: collections.OrderedDict() for name in _HOOKS})
        twin.param_groups = [{**own.settings, "params": own.parameters} for own in self._groups]
        twin.state = collections.defaultdict(dict)
        for own in self._groups:
            (whole,), (whole.grad,) = own.parameters, own.gradients
            twin.state[whole] = {name: parts[0] for name, parts in own.states.items()}
            twin.state[whole] |= {name: counts[0].clone() for name, counts in own.counts.items()}
        return twin

    def _adopt(self) -> bool:
        """Take the optimiser's state into one tensor a kind; False where there is none yet, or it is not of one age."""
        self._owners, self._kept, self._states, self._steps = [], [], [], None
        for own in self._groups:
            own.states, own.counts = {}, {}
        if self.kind == "SGD" and all(own.settings.get("momentum") == 0 for own in self._groups):
            return True  # SGD without memory
        states = [self.optimizer.state[p] for p in self.parameters]
        names = [name for name in _STATES[self.kind] if any(name in state for state in states)]
        if not names or any(state.get(name) is None for state in states for name in names):
            return False
        ages = {float(state["step"]) for state in states if "step" in state}
        if len(ages) > 1 or not (self.fused or self._counted()):
            return False
        if ages and self.fused:
            device = next(state["step"].device for state in states if "step" in state)
            self._steps = torch.full((len(states),), ages.pop(), dtype=torch.float32, device=device)
            for state, step in zip(states, self._steps.unbind(), strict=True):
                self._keep(state, "step", step)
        for name in names:
            memory = self._memory[name] = self._laid(lambda p, name=name: self.optimizer.state[p][name])  # type: ignore[misc]
            for p, state in zip(self.parameters, states, strict=True):
                self._keep(state, name, self._view(memory, p))
        self._states = list(self.optimizer.state.values())  # looked up one by one, tensors are hashed in Python
        for own in self._groups:
            own.states = {name: self._joined(self._memory[name], own) for name in names}
            own.steps = [] if self._steps is None else [self._steps[0]] * len(own.parameters)
        return True

    def _counted(self) -> bool:
        """Take in what is one number a parameter; False where it is not the same for all of a group."""
        for own in self._groups:
            states = [self.optimizer.state[p] for p in own.members]
            for name in [name for name in _COUNTS if name in states[0]]:
                values = [state[name] for state in states]
                if not all(isinstance(value, Tensor) for value in values):
                    return False
                counts = own.counts[name] = torch.stack(values)
                if not bool((counts == counts[0]).all()):
                    return False
        for own in self._groups:
            for name, counts in own.counts.items():
                for p, count in zip(own.members, counts.unbind(), strict=True):
                    self._keep(self.optimizer.state[p], name, count)
        return True

    def _keep(self, state: dict[str, Any], name: str, tensor: Tensor) -> None:
        state[name] = tensor
        self._owners.append((state, name))
        self._kept.append(tensor)

    def _laid(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        first = self.parameters[0]
        memory = torch.zeros(self.size, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            for p in self.parameters:
                self._view(memory, p).copy_(of(p))
        return memory

    def _view(self, memory: Tensor, p: Tensor) -> Tensor:
        return memory.as_strided(p.shape, p.stride(), self._places[id(p)])

    def _joined(self, memory: Tensor, own: _Group) -> list[Tensor]:
        if not self.fused:
            first, last = self._places[id(own.members[0])], own.members[-1]
            return [memory[first : self._places[id(last)] + last.numel()]]
        joined = [p for p in own.members if p.numel() % _LANE == 0]
        parts = []
        if joined:
            start = self._places[id(joined[0])]
            parts.append(memory[start : start + sum(p.numel() for p in joined)])
        for p in own.members[len(joined) :]:
            parts.append(memory[self._places[id(p)] :][: p.numel()])
        return parts


def _is_of_others(step: Any) -> bool:
    """Whether it is not torch that wraps this around an optimiser's step."""
    return type(step) is not types.FunctionType or step.__globals__["__name__"] != torch_optimizer.__name__


def _same(some: Collection[Any], others: Collection[Any]) -> bool:
    """Whether these are the same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _missing(own: _Group) -> bool:
    """Whether the settings, which may change between steps, now ask for state that is not there."""
    of = own.settings
    return bool((of.get("momentum") and not own.states) or (of.get("amsgrad") and "max_exp_avg_sq" not in own.states))


def _adam(own: _Group, found: Tensor | None, decoupled: bool = False) -> None:
    of, states = own.settings, own.states
    beta1, beta2 = of["betas"]
    kernel = torch._fused_adamw_ if of.get("decoupled_weight_decay", decoupled) else torch._fused_adam_
    kernel(
        own.parameters, own.gradients, states["exp_avg"], states["exp_avg_sq"],
        states["max_exp_avg_sq"] if of["amsgrad"] else [], own.steps, lr=own.rate, beta1=beta1, beta2=beta2,
        weight_decay=of["weight_decay"], eps=of["eps"], amsgrad=of["amsgrad"], maximize=of["maximize"], found_inf=found,
    )  # fmt: skip


def _sgd(own: _Group, found: Tensor | None) -> None:
    of = own.settings
    torch._fused_sgd_(
        own.parameters, own.gradients, own.states["momentum_buffer"] if of["momentum"] else [],
        weight_decay=of["weight_decay"], momentum=of["momentum"], lr=own.rate, dampening=of["dampening"],
        nesterov=of["nesterov"], maximize=of["maximize"], is_first_step=False, found_inf=found,
    )  # fmt: skip


_KERNELS: dict[str, Callable[[_Group, Tensor | None], None]] = {
    "Adam": _adam,
    "AdamW": functools.partial(_adam, decoupled=True),  # of itself, before torch 2.7 made it a kind of Adam
    "SGD": _sgd,
}


def clip_norm(gradient: Tensor, largest: float) -> Tensor:
    """Scale all gradients together to a norm of at most `largest`, as torch.nn.utils.clip_grad_norm_ does; gives the norm."""
    norm = torch.linalg.vector_norm(gradient)
    if math.isfinite(largest):
        gradient.mul_((largest / (norm + 1e-6)).clamp_(max=1.0).nan_to_num_(0.0))  # what lies between gradients stays 0
    return norm
