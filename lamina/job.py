"""What a training will be, with everything decided: the first half of `train`.

In: what the user asked for (a `Recipe` and objects of his own) and the data. Out: a `Job`, and the parts that learning
needs made from it: net, loss, batches, optimiser, schedule. What does not fit is said here, before the first step.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lamina import (
    augment,
    data,
    determinism,
    devices,
    engine,
    layouts,
    losses,
    machine,
    mixing,
    names,
    optimizers,
    penalties,
    pieces,
    processes,
    schedules,
    trial,
    views,
)
from lamina.batches import Batch, balanced, keeping_generators
from lamina.errors import LaminaError, ResourceError, UsageError, near, out_of_memory
from lamina.finder import find_learning_rate
from lamina.recipe import Origin, Recipe
from lamina.state import TrainState, keeping_buffers, not_finite
from lamina.watchers.health import Health
from lamina.watchers.screen import Screen

_YOUNG = 1000  # steps
_LOOKED_AT = 26_000  # training examples that are asked once more at the end, at most
_SLOWER = 0.03  # share of a budget for steps that are slower later than when they were timed


@dataclass
class Job:
    """A training with everything decided."""

    recipe: Recipe
    origins: dict[str, Origin]
    data: data.Data
    net: nn.Module
    loss: Any
    device: torch.device
    own_optimizer: Any
    watchers: Sequence[Any]
    folder: Path
    facts: dict[str, Any]  # run.json
    screen: Screen
    began: float  # time.monotonic() when the user pressed enter
    health: Any = None  # the watcher that looks for dead units and vanishing gradients

    @property
    def supervised(self) -> bool:
        """Whether the batches are examples, and not made by acting."""
        return self.data.target.needs_truth or self.data.target.from_inputs


def pretrained(recipe: Recipe) -> Any:
    """The domain that a net which somebody else trained brings with it; None for other nets."""
    if not names.is_pretrained(recipe.net) or recipe.domain not in (None, "pretrained"):
        return None
    return names.module("domains", "pretrained").DOMAIN(trunk=recipe.net, weights=recipe.weights)


def build_net(
    recipe: Recipe, given: Any, loaded: data.Data, own_net: bool, name: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The net and what run.json says of it."""
    if not own_net:
        try:
            module = loaded.domain.net(loaded.target, recipe.size or "small", name, **recipe.net_arg)
        except TypeError as error:
            kind = names.module("nets", name).NET
            known = [key for key in inspect.signature(kind).parameters if key not in ("inputs", "channels", "outputs")]
            hints = [f"{key}: {near(key, known)}" for key in recipe.net_arg if key not in known]
            raise UsageError(
                f"The net {name} could not be made with {recipe.net_arg}: {error}.", expected="; ".join(hints)
            ) from error
        return module, {"name": name, "own": False, "size": recipe.size, "arguments": recipe.net_arg}
    kind = given if given is not None else names.own(recipe.net or "")
    if isinstance(kind, nn.Module):
        module, arguments = kind, {}
    elif callable(kind):
        try:
            module, arguments = kind(**recipe.net_arg), dict(recipe.net_arg)
        except TypeError as error:
            known = [k for k in inspect.signature(kind).parameters if k not in ("self", "args", "kwargs")]
            raise UsageError(
                f"{title(kind)} could not be made with {recipe.net_arg or 'no arguments'}: {error}",
                expected=f"arguments among {', '.join(known) or 'none'}",
                fix="--net-arg NAME=VALUE",
            ) from error
        except Exception as error:
            raise UsageError(f"{title(kind)} could not be made: {type(error).__name__}: {error}") from error
    else:
        module, arguments = kind, {}
    if not isinstance(module, nn.Module):
        raise UsageError(f"The net is a {type(module).__name__}.", expected="an nn.Module, or a class of one")
    return module, {"name": type(module).__name__, **code_record(kind, recipe.net), "arguments": arguments}


def code_record(given: Any, named: str | None) -> dict[str, Any]:
    """Where an own object's code lies: file, class and hash. The code itself is never stored."""
    if given is None and not names.is_own(named or ""):
        return {"own": False, "name": named}
    thing = given if given is not None else names.own(named or "")
    kind = thing if inspect.isclass(thing) or inspect.isfunction(thing) else type(thing)
    record: dict[str, Any] = {"own": True, "class": getattr(kind, "__qualname__", str(kind))}
    module = getattr(kind, "__module__", "")
    if module.startswith("torch."):
        return record
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:
        file = None
    if file and Path(file).is_file():
        typed = (named or "").rpartition(":")[0] if names.is_own(named or "") else Path(file).name
        record.update(file=typed, sha256=names.file_hash(file))
    return record


def build_loss(recipe: Recipe, given: Any, loaded: data.Data) -> Any:
    """The loss: an object or function of the user's, a name, or the target's own."""
    smoothing = recipe.label_smoothing or 0.0
    arguments = dict(recipe.loss_arg)
    weigh = recipe.balance == "weights"
    name = recipe.loss
    if given is None and names.is_own(name or ""):
        given = names.own(name or "")
    if given is not None:
        if smoothing or weigh:
            asked = "label_smoothing" if smoothing else "balance=weights"
            raise UsageError(f"{asked} is built into losses by name, and you gave your own.",
                             fix="build it into your loss, or name one: loss='cross_entropy'")  # fmt: skip
        return _own_loss(given, arguments)
    if (smoothing or weigh) and loaded.target.name != "classes":
        asked = "label_smoothing" if smoothing else "balance=weights"
        raise UsageError(f"{asked} is for classes, and these answers are {loaded.target.name}.", fix="leave it out")
    if name is None and (smoothing or weigh) and loaded.target.width > 1:
        name = "cross_entropy"
    if name is None:
        return loaded.target.loss()
    if name == "focal" and loaded.target.name in ("classes", "tags"):
        arguments.setdefault("across", loaded.target.name)
    if smoothing:
        arguments["label_smoothing"] = smoothing
    if weigh:
        truth = loaded.truth("train")
        if truth is None:
            raise UsageError("balance=weights needs classes as columns.", fix="over or under")
        counts = torch.bincount(truth.long(), minlength=loaded.target.width).clamp_min(1).float()
        arguments["weight"] = len(truth) / (len(counts) * counts)
    return losses.make(name, **arguments)


def asked_loss(recipe: Recipe, given: Any) -> Any:
    """The loss that was asked for, which may tell what kind the answers are; None where nobody asked."""
    if given is None and names.is_own(recipe.loss or ""):
        given = names.own(recipe.loss or "")
    if given is not None:
        return _own_loss(given, recipe.loss_arg)
    return None if recipe.loss is None else losses.make(recipe.loss, **recipe.loss_arg)


def _own_loss(given: Any, arguments: dict[str, Any]) -> Any:
    """A class is made with the arguments, a function called with them."""
    if not inspect.isclass(given):
        return functools.partial(given, **arguments) if arguments else given
    try:
        return given(**arguments)
    except Exception as error:
        raise UsageError(
            f"The loss {title(given)} could not be made with {arguments or 'no arguments'}: {error}",
            fix="--loss-arg NAME=VALUE",
        ) from error


def batches(job: Job, part: str, *, shuffle: bool = True, net: nn.Module | None = None) -> Any:
    """Batches over a part; the training part with everything that was asked for. net: who acts, if not the job's."""
    recipe, loaded, net = job.recipe, job.data, net or job.net
    encoded, rows = loaded.more if loaded.more is not None and part == "train" and shuffle else loaded.parts[part]
    options: dict[str, Any] = {"batch_size": recipe.batch_size, "device": job.device, "seed": recipe.seed or 0}
    asked = job.origins.get("workers", ("",))[0] == "yours"
    if recipe.workers is not None and (asked or part == "train"):  # else they are chosen by measuring
        options["workers"] = recipe.workers
    if recipe.cache:
        options["cache"] = True
    if recipe.memory:
        options["memory"] = recipe.memory_bytes
    options |= _views(loaded, recipe)
    if part != "train" or not shuffle:
        size = max(512, recipe.batch_size or 1) if loaded.target.needs_truth else recipe.batch_size
        return loaded.domain.batches(net, encoded, rows, shuffle=False, **{**options, "batch_size": size})
    if recipe.balance in ("over", "under"):
        truth = loaded.truth("train")
        if loaded.target.name != "classes" or (truth is None and encoded.encode_truth is None):
            raise UsageError(f"balance={recipe.balance} is for classes.")
        if truth is None:
            truth = encoded.encode_truth(data.truths(encoded.inputs, {})[rows])  # type: ignore[misc]
        options["order"] = balanced(truth, recipe.balance)
    if recipe.augment and recipe.augment != "none" and "augment" not in options:
        options["augment"] = augment.make(recipe.augment)
    walk = loaded.domain.batches(net, encoded, rows, **options)
    classes = loaded.target.width if loaded.target.name == "classes" and loaded.target.width > 1 else None
    if recipe.mixup:
        walk = mixing.Mixup(walk, classes=classes, alpha=recipe.mixup)
    if recipe.cutmix:
        walk = mixing.Cutmix(walk, classes=classes, alpha=recipe.cutmix)
    return walk


def _views(loaded: data.Data, recipe: Recipe) -> dict[str, Any]:
    """What is learned from the inputs alone is learned from two views of each."""
    if not loaded.target.from_inputs:
        return {}
    return {"augment": views.Pairs(loaded.domain.change(recipe), loaded.near, loaded.parts["train"][0].inputs)}


def health(job: Job, net: nn.Module) -> Health:
    """Who looks after a net: at the first training examples, in their own order, now and then, in the precision of training.
    A look is at some 512 of them, the time of a few steps, so that with small batches it is rarer; and on a GPU, where steps
    are captured and a look is launched kernel by kernel."""
    columns = isinstance(job.data.parts["train"][0].inputs, tuple)  # a loader's own generators are left alone
    sample = functools.cache(lambda: first_batch(batches(job, "train", shuffle=False)))
    every = max(200 if job.device.type == "cpu" else 400, 12_800 // (job.recipe.batch_size or 128))
    autocast = devices.autocast(job.device, job.recipe.precision or "fp32")

    def forward(net: nn.Module, batch: Batch) -> Any:
        with autocast:
            return job.data.domain.outputs(net, batch)

    return Health(net, forward, every, sample if columns else None)


def try_batch(job: Job, walk: Any) -> None:
    """What changes batches (augmentation, mixing) is tried on one of them. Leaves no trace."""
    recipe = job.recipe
    if recipe.mixup or recipe.cutmix or recipe.augment not in (None, "none"):
        with keeping_generators():
            first_batch(walk)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """In evaluation mode; afterwards every module has the mode it had, a frozen BatchNorm its own."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def moved(
    net: nn.Module, loss: Any, device: torch.device, loaded: data.Data, recipe: Recipe, own: bool
) -> tuple[nn.Module, Any]:
    """Net and loss on the device. Before a net of somebody's own goes to a GPU, one batch goes through it on the CPU: an index
    that is out of range is an error there, and on a GPU the end of the process. What must not leave the GPU is tried there."""
    if own and device.type == "cuda" and all(p.device.type == "cpu" for p in net.parameters()):
        try:
            check_contract(net, loaded, loss, torch.device("cpu"), recipe)
        except UsageError as error:
            if "device" not in error.what and "cuda" not in error.what.lower():
                raise
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    return net.to(device), loss


def check_contract(net: nn.Module, loaded: data.Data, loss: Any, device: torch.device, recipe: Recipe) -> None:
    """One batch through net and loss, before an hour is spent: what does not fit is said now. Leaves no trace."""
    if not any(True for _ in net.parameters()):
        raise UsageError(
            f"The net {type(net).__name__} has no parameters to learn.",
            fix="make its layers attributes (self.fc1 = ...), lists of layers an nn.ModuleList",
        )
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UsageError(
            f"All parameters of the net {type(net).__name__} are frozen: there is nothing to learn.",
            fix="requires_grad_(True) for those that are to learn",
        )
    learning = {name: p for name, p in net.named_parameters() if p.requires_grad and not is_lazy(p)}
    if bad := not_finite(learning):
        raise UsageError(
            f"The net {type(net).__name__} comes with weights that are not finite: {', '.join(bad[:4])}.",
            expected="numbers to learn from; infinite ones, of a mask, in a buffer",
            fix="look at how they were initialised, or at the run that they are from",
        )
    if type(loaded.domain).loss is not data.Domain.loss and not loaded.domain.tried:
        return  # the domain computes its loss itself
    lazy = any(isinstance(p, nn.parameter.UninitializedParameter) for p in net.parameters())
    with evaluating(net), keeping_buffers(net), keeping_generators(not lazy), torch.enable_grad():
        batch = first_to_learn(net, loaded, device, recipe)
        shapes = " and ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in batch.inputs)
        try:
            output = loaded.domain.outputs(net, batch)
        except Exception as error:
            if out_of_memory(error):
                loaded.domain.outputs(net, pieces.part(batch, slice(1)))  # one example must fit
                return  # the first step will be made in pieces
            raise UsageError(
                f"Your net raised {type(error).__name__} on a batch of {shapes}: {error}",
                expected="a forward() that takes such a batch",
                fix=_of_the_nets_type(net, batch) if "dtype" in str(error) else "",
            ) from error
        if not isinstance(output, Tensor):
            raise UsageError(
                f"Your net returned a {type(output).__name__} for a batch of {shapes}.", expected="a tensor"
            )
        try:
            with torch.no_grad():
                loaded.domain.outputs(net, pieces.part(batch, slice(2)))
        except Exception as error:
            raise UsageError(
                f"Your net works on a batch of {shapes}, but within torch.no_grad(), where it is measured and asked, it "
                f"raised {type(error).__name__}: {error}",
                expected="a forward() that needs nobody to keep gradients",
                fix="where it differentiates, let it say so: with torch.enable_grad(): ...",
            ) from error
        loaded.target.check(output, batch.truth, loss)
        truth = loaded.target.shape_truth(batch.truth, output)
        try:
            value = loss(output, truth)
        except Exception as error:
            raise UsageError(
                f"The loss {title(loss)} raised {type(error).__name__} on outputs {tuple(output.shape)} and "
                f"truth {tuple(truth.shape)} {str(truth.dtype).removeprefix('torch.')}: {error}",
                expected="loss(output, truth) -> 0-d tensor",
            ) from error
        if not isinstance(value, Tensor) or value.ndim != 0:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(f"The loss {title(loss)} returned {got}.", expected="a 0-d tensor: loss.mean()")
        if not value.requires_grad:
            raise UsageError(
                f"The loss {title(loss)} of net {type(net).__name__} has no gradient: nothing would be learned.",
                expected="a loss computed from the net's output by operations of torch",
                fix="look for .detach(), .item(), .argmax() or torch.no_grad() on the way from weights to loss",
            )


def _of_the_nets_type(net: nn.Module, batch: Batch) -> str:
    """How to give a net numbers of its own type, where it is given others."""
    kinds = list(dict.fromkeys(p.dtype for p in net.parameters() if p.is_floating_point()))
    if len(kinds) != 1 or all(column.dtype == kinds[0] for column in batch.inputs):
        return ""
    name = str(kinds[0]).removeprefix("torch.")
    return f"inputs of the type of its parameters, {name}: x.to(torch.{name}) where they are made"


@contextmanager
def memory_in_words() -> Iterator[None]:
    """Memory that is used up as a ResourceError that says what to do."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"The memory is used up: {(str(error).splitlines() or ['no more can be had'])[0]}",
            fix="a smaller --batch-size (--accumulate keeps the step as it was), a smaller net, or --precision bf16",
        ) from error


def first_to_learn(net: nn.Module, loaded: data.Data, device: torch.device, recipe: Recipe) -> Batch:
    """The first training examples, as many as a step has, in their own order and as they are."""
    encoded, rows = loaded.parts["train"]
    options = {"batch_size": recipe.batch_size, "device": device, "shuffle": False, **_views(loaded, recipe)}
    return first_batch(loaded.domain.batches(net, encoded, rows, **options))


def first_batch(walk: Any) -> Batch:
    """A batch to try things on. A loader with a generator of its own gets it back as it was."""
    kept = walk.state_dict()
    batch: Batch = next(iter(walk.epoch(0)))
    walk.load_state_dict(kept)
    return batch


def title(given: Any) -> str:
    """The name of a loss or a net, for people."""
    if isinstance(given, functools.partial):
        return title(given.func)
    return getattr(given, "__name__", type(given).__name__)


def build_optimizer(job: Job, net: nn.Module) -> torch.optim.Optimizer:
    recipe, given = job.recipe, job.own_optimizer
    if given is not None:
        made = given if isinstance(given, torch.optim.Optimizer) else given(net.parameters())
        if not isinstance(made, torch.optim.Optimizer):
            raise UsageError(
                f"optimizer(parameters) returned a {type(made).__name__}.", expected="a torch.optim.Optimizer"
            )
        own = {id(parameter) for parameter in net.parameters()}
        if not any(id(parameter) in own for group in made.param_groups for parameter in group["params"]):
            raise UsageError(
                f"The {type(made).__name__} holds none of the net's parameters: it would train another net.",
                fix="make it from this net: optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
            )
        optimizers.check_step(made)
        return made
    rate = float(recipe.learning_rate or 1e-3)
    name = recipe.optimizer or "adam"
    if name == "muon":
        arguments = dict(recipe.optimizer_arg)
        if recipe.weight_decay:
            arguments["weight_decay"] = recipe.weight_decay
        return optimizers.make(name, net, rate, **arguments)
    if recipe.weight_decay or recipe.rates:
        groups: Any = penalties.decay_groups(
            net, recipe.weight_decay or 0.0, learning_rates=recipe.rates or None, learning_rate=rate
        )
        if not recipe.weight_decay:
            for group in groups:
                group.pop("weight_decay", None)
    else:
        groups = [p for p in net.parameters() if p.requires_grad]
    return optimizers.make(name, groups, rate, **recipe.optimizer_arg)


def objective(job: Job) -> engine.Objective:
    domain, target, loss = job.data.domain, job.data.target, job.loss

    def learned(net: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        try:
            return domain.loss(net, batch, target, loss)
        except Exception as error:
            if isinstance(error, LaminaError) or out_of_memory(error):
                raise
            shapes = " and ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in batch.inputs)
            raise UsageError(
                f"The net {type(net).__name__} or the loss {title(loss)} raised {type(error).__name__} on a batch of "
                f"{shapes} in epoch {batch.epoch + 1}: {error}",
                expected="a net and a loss that take every batch",
            ) from error

    learned.parts = [loss, domain.loss, domain.outputs, target.shape_truth]  # type: ignore[attr-defined]
    return learned


def penalty(recipe: Recipe) -> Callable[[nn.Module], Tensor] | None:
    if not recipe.l1 and not recipe.l2:
        return None
    return penalties.elastic(recipe.l1 or 0.0, recipe.l2 or 0.0, which=recipe.penalize)


def build_schedule(job: Job, batches: Any) -> Any:
    recipe = job.recipe
    per_epoch = None
    with suppress(TypeError):  # a stream has no length
        per_epoch = -(-len(batches) // (recipe.accumulate or 1))
    total = recipe.steps or (recipe.epochs * per_epoch if recipe.epochs and per_epoch else None)
    warmup: Any = recipe.warmup or 0
    warmup = int(warmup) if warmup >= 1 else warmup
    if (recipe.schedule or "constant") == "constant" and not warmup and not recipe.schedule_arg:
        return None
    return schedules.make(
        recipe.schedule or "constant", steps=total, steps_per_epoch=per_epoch, warmup=warmup, **recipe.schedule_arg
    )


def build_ema(job: Job) -> Any:
    if not job.recipe.ema:
        return None
    from torch.optim.swa_utils import AveragedModel

    decay = job.recipe.ema

    def average(old: Tensor, new: Tensor, count: Any) -> Tensor:
        """Decay rises from 0.1 to its full value, so that the average forgets the initial weights in time."""
        kept = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        return old * kept + new * (1.0 - kept)

    return AveragedModel(job.net, avg_fn=average)


def _scratch(job: Job) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of the net with an optimiser of its own, for measurements that leave no trace."""
    if isinstance(job.own_optimizer, torch.optim.Optimizer):
        return copy.deepcopy((job.net, job.own_optimizer))
    net = copy.deepcopy(job.net)
    return net, build_optimizer(job, net)


def measured_rate(job: Job) -> float:
    job.recipe.learning_rate = 1e-3
    net, optimizer = _scratch(job)
    return find_learning_rate(
        net,
        batches(job, "train"),
        optimizer=optimizer,
        objective=objective(job),
        precision=job.recipe.precision or "fp32",
    ).suggestion


def check_strict(job: Job) -> None:
    """With `strict`, a step that is made twice gives the same bits; UsageError where it does not."""
    if job.recipe.strict and job.supervised:
        with keeping_generators():
            batch = first_to_learn(job.net, job.data, job.device, job.recipe)
        autocast = devices.autocast(job.device, job.recipe.precision or "fp32")
        determinism.check(job.net, objective(job), batch, penalty=penalty(job.recipe), autocast=autocast)


def lower_rate(job: Job, state: TrainState) -> float:
    """The factor on the rate after a training went back. Half; or less, where it had hardly begun and a rate is measured."""
    group, asked = state.optimizer.param_groups[0], job.recipe.learning_rate
    if not job.supervised or state.step >= _YOUNG:
        return 0.5
    try:
        return min(0.5, measured_rate(job) / float(group.get("initial_lr", group["lr"])))
    except UsageError:  # no rate made the loss fall
        return 0.5
    finally:
        job.recipe.learning_rate = asked


def plan_budget(job: Job) -> None:
    """Epochs that fit the time, and no more than are enough. Some steps are timed on a copy of the net; validation and
    evaluation are set aside."""
    recipe = job.recipe
    rate, recipe.learning_rate = recipe.learning_rate, 1e-3 if recipe.learning_rate == "find" else recipe.learning_rate
    net, optimizer = _scratch(job)
    walk = batches(job, "train", net=net)
    try:
        length = len(walk)
    except TypeError:
        raise UsageError(
            "A budget plans whole epochs, and nobody knows how long one of this source is.",
            fix="steps=..., or epochs=...",
        ) from None
    kept = walk.state_dict()
    with keeping_generators():
        began = time.monotonic()
        marks, ends = [began], []
        for progress in engine.learn(
            net, walk, optimizer=optimizer, objective=objective(job), epochs=None, clip_norm=recipe.clip_norm or 0.0,
            accumulate=recipe.accumulate or 1, precision=recipe.precision or "fp32", compile=recipe.compile or "auto",
            strict=bool(recipe.strict), penalty=penalty(recipe), skips=1 << 30,
        ):  # fmt: skip
            marks.append(time.monotonic())
            if progress.epoch_end:
                ends.append(marks[-1])
            if len(marks) > 10 and (marks[-1] - began > 1.5 or len(marks) > 300):
                break
        step = float(np.quantile(np.diff(marks), 0.75))  # the mean is above the median; the first are far above
        valid = 0.0
        if "valid" in job.data.parts:
            began = time.monotonic()
            net.eval()
            job.data.domain.validate(net, batches(job, "valid"), job.data.target, job.loss)
            valid = time.monotonic() - began
    walk.load_state_dict(kept)
    recipe.learning_rate = rate
    steps = -(-length // (recipe.accumulate or 1))
    budget = recipe.budget or 0.0
    sizes = {part: job.data.size(part) or 0 for part in ("train", "valid", "test")}
    seen = sizes["valid"] + sizes["test"] + min(sizes["train"], _LOOKED_AT)
    looking = valid * seen / sizes["valid"] if sizes["valid"] else 0.0
    after = looking + min(3.0 + (4.0 if recipe.baselines else 0.0), 0.4 * budget)  # scores, figures, report
    left = (1 - _SLOWER) * (budget - (time.monotonic() - job.began) - after)
    # Whole epochs, where some were seen, hold what is no step: workers that start, acting.
    epoch = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else step * steps
    epochs, enough = left / (epoch + valid), recipe.epochs
    words = f"{budget:g} s, {1000 * step:.1f} ms a step measured"
    if enough is not None and enough < int(epochs):
        words = f"enough for {job.origins['epochs'][1]}; {int(epochs):,} would fit into {budget:g} s"
        job.origins["epochs"] = "inferred", words
    elif epochs >= 1:
        recipe.epochs, job.origins["epochs"] = int(epochs), ("inferred", words)
    else:
        recipe.epochs, job.origins["epochs"] = 1, ("inferred", words)
        recipe.steps, job.origins["steps"] = max(1, int(left / step)), ("inferred", f"{words}: less than an epoch fits")
    if recipe.early_stopping and job.origins.get("early_stopping", ("yours",))[0] == "inferred":
        recipe.early_stopping = max(recipe.early_stopping, (recipe.epochs or 0) // 3)  # the rate has to fall before


def fit_to_machine(job: Job) -> None:
    """Threads, memory layout and precision that nobody asked for: measured on a copy of the net."""
    recipe, origins = job.recipe, job.origins
    auto = recipe.precision == "auto"
    if auto:
        recipe.precision = "fp32"
    job.facts["step"] = {"recorded": False, "why": "", "channels_last": False, "seconds": None}
    if not job.supervised or (recipe.accumulate or 1) > 1:
        return
    if job.device.type not in ("cpu", "cuda"):
        job.facts["step"]["why"] = f"it runs on {job.device}"
        return
    if job.device.type == "cuda":
        asked, learns = recipe.compile or "auto", objective(job)
        reading = trial.read(job.net, learns, penalty(recipe))
        why, bears = trial.why_eager(reading, recipe.precision or "fp32", asked), False
        if not why and not recipe.strict and layouts.likes_channels_last(job.net):
            with keeping_generators():
                bears = trial.bears_channels_last(
                    job.net, learns, first_to_learn(job.net, job.data, job.device, recipe), reading
                )
        job.facts["step"].update(captured=asked != "off" and not why, why=why, channels_last=bears)
        lay_out(job)
        return
    with keeping_generators():
        batch = first_to_learn(job.net, job.data, job.device, recipe)
    try:
        choice = trial.choose(
            job.net, objective(job), batch, threads=recipe.threads, strict=bool(recipe.strict),
            precision="auto" if auto else recipe.precision or "fp32", compile=recipe.compile or "auto",
            penalty=penalty(recipe),
        )  # fmt: skip
    except Exception as error:
        if out_of_memory(error):
            job.facts["step"]["why"] = "a batch does not fit into memory"
            return
        raise
    job.facts["step"].update(
        recorded=choice.recorded, why=choice.why_eager, channels_last=choice.channels_last,
        seconds=round(choice.seconds, 6) if choice.seconds > 0 else None,
    )  # fmt: skip
    reasons = choice.reasons
    if recipe.threads is None:
        recipe.threads, origins["threads"] = choice.threads, ("inferred", reasons.get("threads", "as torch has it"))
        torch.set_num_threads(choice.threads)
    if auto and choice.precision != "fp32":
        recipe.precision, origins["precision"] = "bf16", ("inferred", reasons["precision"])
    lay_out(job)


def read_ahead(job: Job, walk: Any) -> None:
    """How many processes read a Dataset ahead, where nobody said; and no more threads than there are cores beside them."""
    if not hasattr(walk, "choose_workers"):
        return
    recipe, origins = job.recipe, job.origins
    workers, cores = walk.choose_workers(job.facts["step"]["seconds"]), processes.cores()
    if recipe.workers is None:
        recipe.workers, origins["workers"] = workers, ("inferred", walk.why)
    left = max(1, cores - workers)
    always = workers and not recipe.cache  # what is kept is not read any more
    if always and origins.get("threads", ("",))[0] != "yours" and torch.get_num_threads() > left:
        recipe.threads, origins["threads"] = left, ("inferred", f"{workers} of {cores} cores read the Dataset")
        torch.set_num_threads(left)


def lay_out(job: Job) -> None:
    """The memory layout that fits the net. To its owner it is the same net."""
    if job.facts.get("step", {}).get("channels_last"):
        job.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def lay_back(job: Job) -> None:
    """The layout that the net came in."""
    if job.facts.get("step", {}).get("channels_last"):
        job.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def numerics(job: Job) -> dict[str, Any]:
    """What the last bits of a result depend on."""
    recipe = job.recipe
    found = devices.fingerprint(job.device, recipe.precision or "fp32", compiled=recipe.compile != "off")
    found["strict"], found["denormals"] = bool(recipe.strict), "flushed" if machine.flushes() else "kept"
    found["channels_last"] = bool(job.facts.get("step", {}).get("channels_last"))
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]
