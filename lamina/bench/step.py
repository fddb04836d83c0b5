"""A step of a run: how long it takes as the run does it, and where the time goes.

In: a run, whose data can be read. Out: a `Job` over a copy of its net (`reopen`), the pace of whole steps through
`learn` (`pace`), the parts of the plain step one after the other (`parts`), what an epoch and a checkpoint add, and the
arithmetic that no way of doing it can avoid (`products`).

Learning rates are 0 throughout: the arithmetic is that of the run, and the weights stay where they are, so that nothing
diverges and each measurement sees the same net.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lamina import augment, devices, engine
from lamina import job as jobs
from lamina import recipe as recipes
from lamina import run as runs_
from lamina import state as states
from lamina.batches import Batch, Batches, keeping_generators
from lamina.bench.clock import per_call, wait
from lamina.job import Job
from lamina.lanes import Lane
from lamina.run import Run
from lamina.watchers.health import Health
from lamina.watchers.screen import Screen

_LEAST = 10_000  # steps that are planned at least, so that short runs can be measured too


def reopen(run: Run, *, loss: Any = None, optimizer: Any = None, source: Any = None, device: str | None = None) -> Job:
    """The job of a run with its trained net, ready to learn on. Nothing of it points to the run's folder.

    What the run was trained with and is code of yours (loss, optimiser), or data that were in memory, is given again.
    """
    facts, asked = run.facts, run.recipe.model_copy(deep=True)
    runs_.require_own({"optimizer": optimizer, **({} if loss_is_lost(run, loss) else {"loss": loss})}, facts)
    loss = None if loss is None else runs_.own_code(loss, facts.get("loss"), "loss")
    numerics = facts.get("numerics", {})
    if asked.precision == "auto":
        asked.precision = numerics.get("precision", "fp32")
    loaded = run.reload(source)
    place = devices.pick(device or asked.device or "auto")
    net = copy.deepcopy(run.net).to(place).train()
    return Job(
        asked, {}, loaded, net, jobs.build_loss(asked, loss, loaded), place, optimizer, (), Path(), dict(facts),
        Screen(quiet=True), time.monotonic(),
    )  # fmt: skip


def loss_is_lost(run: Run, given: Any) -> bool:
    """Whether the run learned with an object of yours as its loss, and nobody gives it again. What a loss costs differs
    little, so that the task's own is measured in its place, and said so."""
    record = run.facts.get("loss") or {}
    return given is None and bool(record.get("own")) and not record.get("file")


def changed(job: Job, **settings: Any) -> Job:
    """The job with other settings, as if they were asked for."""
    origins = {**job.origins, **dict.fromkeys(settings, ("yours", ""))}
    return dataclasses.replace(job, recipe=job.recipe.model_copy(update=settings), origins=origins)


@dataclass
class Pace:
    """Of whole steps. The watchers' time is in `seconds`, and given by itself."""

    seconds: float  # a step
    examples: float  # a second
    watchers: float = 0.0  # seconds a step
    steps: int = 0  # measured
    lane: str = ""  # the way the engine took


@dataclass
class _Copy:
    """A net and an optimiser of its own, which learns nothing, and the batches it would learn from."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    walk: Any
    schedule: Any
    options: dict[str, Any] = field(default_factory=dict)


def _copy(job: Job, walk: Any = None) -> _Copy:
    net, given = copy.deepcopy((job.net, job.own_optimizer))
    mine = dataclasses.replace(job, net=net, own_optimizer=given)
    optimizer = jobs.build_optimizer(mine, net)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    walk = jobs.batches(mine, "train", net=net) if walk is None else walk
    recipe = job.recipe
    settings: dict[str, Any] = {
        "objective": jobs.objective(mine),
        "penalty": jobs.penalty(recipe),
        "clip_norm": recipe.clip_norm or 0.0,
        "clip_value": recipe.clip_value or 0.0,
        "accumulate": recipe.accumulate or 1,
        "precision": recipe.precision or "fp32",
        "compile": recipe.compile or "auto",
        "strict": bool(recipe.strict),
        "ema": jobs.build_ema(mine),
    }
    known = inspect.signature(engine.learn).parameters
    options = {name: value for name, value in settings.items() if name in known}
    return _Copy(net, optimizer, walk, jobs.build_schedule(mine, walk), options)


def _lane(job: Job, mine: _Copy) -> Lane:
    """How steps will be made, decided here so that it can be asked."""
    precision = job.recipe.precision or "fp32"
    chosen = {name: mine.options[name] for name in ("penalty", "compile", "strict")}
    autocast, scaled = devices.autocast(job.device, precision), devices.scaler(job.device, precision) is not None
    return Lane(mine.net, mine.options["objective"], mine.optimizer, autocast=autocast, scaled=scaled, **chosen)


def _planned(job: Job, walk: Any) -> int:
    """Steps of the run, or enough to measure."""
    recipe = job.recipe
    try:
        per_epoch = -(-len(walk) // (recipe.accumulate or 1))
    except TypeError:
        per_epoch = 0
    return max(_LEAST, recipe.steps or (recipe.epochs or 1) * per_epoch)


def pace(job: Job, seconds: float = 2.0, *, walk: Any = None, watched: bool = False) -> Pace:
    """Steps through `learn`, as the run takes them; a third of the time is for settling down.

    walk: batches to learn from instead of the run's. watched: with the watchers a run has, the screen among them.
    """
    mine = _copy(job, walk)
    kept = mine.walk.state_dict()
    watchers: list[Any] = []
    if watched:
        columns = isinstance(job.data.parts["train"][0].inputs, tuple)
        if job.supervised:
            sample = jobs.sample(job) if columns else None
            watchers.append(Health(mine.net, job.data.domain.outputs, batch=sample))
        watchers.append(Screen(stream=io.StringIO()))
    rounds: list[float] = []  # seconds a step
    examples = steps = 0
    watching, lane = 0.0, ""
    with keeping_generators(), jobs.memory_in_words():
        end = time.perf_counter() + seconds
        settled = time.perf_counter() + seconds / 3
        while not rounds or time.perf_counter() < end:
            before, began, in_round = -1.0, 0.0, 0
            way = _lane(job, mine)
            for progress in engine.learn(
                mine.net, mine.walk, optimizer=mine.optimizer, epochs=None, steps=_planned(job, mine.walk),
                schedule=mine.schedule, lane=way, **mine.options,
            ):  # fmt: skip
                asked = time.perf_counter()
                for watch in watchers:
                    watch(progress)
                now = time.perf_counter()
                if before < 0.0:  # settling down
                    if progress.step >= 2 and now >= settled:
                        wait(job.device)
                        before, began, in_round = float(progress.examples), time.perf_counter(), 0
                    continue
                watching += now - asked
                in_round += 1
                if now - began >= seconds / 12:
                    wait(job.device)
                    now = time.perf_counter()
                    rounds.append((now - began) / in_round)
                    steps += in_round
                    examples += progress.examples - int(before)
                    before, began, in_round = float(progress.examples), now, 0
                    if now >= end:
                        break
            lane = "recorded and replayed" if way.recorded else f"eager: {way.words}"
            if in_round:  # a run that ends within a round
                wait(job.device)
                rounds.append((time.perf_counter() - began) / in_round)
                steps, examples = steps + in_round, examples + progress.examples - int(before)
    mine.walk.load_state_dict(kept)
    a_step = statistics.median(rounds)
    return Pace(a_step, examples / steps / a_step, watching / steps, steps, lane)


# --- The plain step, taken apart --------------------------------------------------------------------------------------

PARTS = ("load", "prepare and augment", "forward", "backward", "update")


def parts(job: Job, seconds: float = 2.0) -> dict[str, float]:
    """Seconds a step of each part, in the order of the step; the device is waited for after each.

    This is the step without any lane: what a lane takes together cannot be taken apart.
    """
    mine = _copy(job)
    kept = mine.walk.state_dict()
    precision, every = job.recipe.precision or "fp32", job.recipe.accumulate or 1
    autocast, scaler = devices.autocast(job.device, precision), devices.scaler(job.device, precision)
    objective, penalty, average = jobs.objective(job), jobs.penalty(job.recipe), mine.options.get("ema")
    parameters = [p for p in mine.net.parameters() if p.requires_grad]
    marks: list[dict[str, float]] = []

    def step(window: Iterator[Batch]) -> dict[str, float] | None:
        spent = dict.fromkeys(PARTS, 0.0)
        at = time.perf_counter()

        def spend(part: str) -> None:
            nonlocal at
            wait(job.device)
            now = time.perf_counter()
            spent[part] += now - at
            at = now

        mine.optimizer.zero_grad(set_to_none=True)
        spend("update")
        for _ in range(every):
            batch = next(window, None)
            if batch is None:
                return None  # a short window at the end of an epoch is no measure
            spend("load")
            with autocast:
                value, _count = objective(mine.net, batch)
                value = value if penalty is None else value + penalty(mine.net)
            spend("forward")
            (value if scaler is None else scaler.scale(value)).backward()
            spend("backward")
        if scaler is not None:
            scaler.unscale_(mine.optimizer)
        if job.recipe.clip_value:
            nn.utils.clip_grad_value_(parameters, job.recipe.clip_value)
        if job.recipe.clip_norm:
            nn.utils.clip_grad_norm_(parameters, job.recipe.clip_norm)
        if scaler is None:
            mine.optimizer.step()
        else:
            scaler.step(mine.optimizer)
            scaler.update()
        if average is not None:
            average.update_parameters(mine.net)
        spend("update")
        return spent

    with keeping_generators(), jobs.memory_in_words():
        began, epoch = time.perf_counter(), 0
        while not _enough(marks, began, seconds):
            before = len(marks)
            window = iter(mine.walk.epoch(epoch))
            while (spent := step(window)) is not None:
                marks.append(spent)
                if _enough(marks, began, seconds):
                    break
            if len(marks) == before:  # an epoch is shorter than a window: it is what there is
                every = max(1, every // 2)
            epoch += 1
        settled = marks[len(marks) // 5 :]
        found = {part: _middle([spent[part] for spent in settled]) for part in PARTS}
        changing = (job.recipe.accumulate or 1) * _changing(job, seconds / 6)
    mine.walk.load_state_dict(kept)
    changing = min(changing, found["load"])
    found["load"] -= changing
    found["prepare and augment"] = changing
    return found


def _enough(marks: list[dict[str, float]], began: float, seconds: float) -> bool:
    return len(marks) >= 5 and time.perf_counter() - began >= seconds


def _middle(values: list[float]) -> float:
    """The mean of several rounds, and of those the median: what comes in bursts counts, what comes once does not."""
    size = max(1, len(values) // 9)
    return statistics.median(statistics.fmean(values[k : k + size]) for k in range(0, len(values), size))


def _changing(job: Job, seconds: float) -> float:
    """Seconds a batch of what is done to it once it is cut: augmentation, the first layers, mixing."""
    encoded, rows = job.data.parts["train"]
    recipe, spent = job.recipe, 0.0
    if isinstance(encoded.inputs, tuple):
        some = torch.arange(min(recipe.batch_size or 64, len(encoded.inputs[0])))
        some = some if rows is None else torch.as_tensor(rows)[: len(some)]
        cut = tuple(torch.as_tensor(column)[some].to(job.device) for column in encoded.inputs)
        prepare = job.data.domain.prepare().to(job.device)
        if not isinstance(prepare, nn.Identity):
            with torch.no_grad():
                spent += per_call(lambda: prepare(cut[0]), job.device, seconds)
        if recipe.augment not in (None, "none"):
            change = augment.make(recipe.augment or "")
            key = Batch(cut, None, some.to(job.device), len(some)).key
            spent += per_call(lambda: change(cut, key), job.device, seconds)
    elif recipe.augment not in (None, "none"):
        spent += max(0.0, _walking(job, seconds) - _walking(changed(job, augment="none"), seconds))
    if recipe.mixup or recipe.cutmix:
        spent += max(0.0, _walking(job, seconds) - _walking(changed(job, mixup=0.0, cutmix=0.0), seconds))
    return spent


def _walking(job: Job, seconds: float) -> float:
    """Seconds a batch of the batches alone."""
    walk = jobs.batches(job, "train")
    kept = walk.state_dict()
    marks = [time.perf_counter()]
    for _batch in walk.epoch(0):
        wait(job.device)
        marks.append(time.perf_counter())
        if len(marks) > 5 and marks[-1] - marks[0] > seconds:
            break
    walk.load_state_dict(kept)
    return _middle([after - before for before, after in itertools.pairwise(marks)])


# --- What is not a part of every step ---------------------------------------------------------------------------------


def between(job: Job, a_step: float, seconds: float = 1.0) -> dict[str, float]:
    """Seconds a step, spread over all: validation at the end of an epoch, checkpoints as often as the run saves."""
    found: dict[str, float] = {}
    mine = _copy(job)
    try:
        per_epoch: float = -(-len(mine.walk) // (job.recipe.accumulate or 1))
    except TypeError:
        per_epoch = 0
    if "valid" in job.data.parts and per_epoch:
        walk = jobs.batches(job, "valid")
        with jobs.evaluating(mine.net), keeping_generators():
            took = _some_of(job, mine.net, walk, seconds)
        found["validation"] = took / per_epoch
    unit, amount = recipes.every(job.recipe.checkpoint_every or "30s")
    state = states.TrainState(mine.net, mine.optimizer, mine.walk, mine.schedule, None, mine.options.get("ema"))
    if not mine.optimizer.state:  # moments are made by the first step, and saved with the rest
        next(engine.learn(mine.net, mine.walk, optimizer=mine.optimizer, steps=1, epochs=None, **mine.options))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        states.save(Path(folder) / "checkpoint", state, {})
        took = time.perf_counter() - began
    steps = {"steps": amount, "epochs": amount * per_epoch, "seconds": amount / a_step}[unit]
    if steps:
        found["checkpoints"] = took / steps
    return found


def _some_of(job: Job, net: nn.Module, walk: Any, seconds: float) -> float:
    """Seconds of a validation: of all its batches, or of some, taken for all."""

    class Some:
        count = 0

        def epoch(self, epoch: int) -> Iterator[Batch]:
            began = time.perf_counter()
            for batch in walk.epoch(epoch):
                Some.count += 1
                yield batch
                if time.perf_counter() - began > seconds:
                    return

    began = time.perf_counter()
    job.data.domain.validate(net, Some(), job.data.target, job.loss)
    wait(job.device)
    took = time.perf_counter() - began
    try:
        return took * len(walk) / Some.count
    except TypeError:
        return took


# --- What cannot be avoided -------------------------------------------------------------------------------------------


def products(job: Job) -> int:
    """Operations of the matrix products and convolutions in a step, forward and backward: those that
    `torch.utils.flop_counter` knows. 0 where it knows none; it does not know `nn.LSTM` on the CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    mine = _copy(job)
    objective, kept = jobs.objective(job), mine.walk.state_dict()
    with keeping_generators():
        batch = next(iter(mine.walk.epoch(0)))
        with FlopCounterMode(display=False) as counter:
            objective(mine.net, batch)[0].backward()
    mine.walk.load_state_dict(kept)
    return counter.get_total_flops() * (job.recipe.accumulate or 1)


def uncounted(net: nn.Module) -> list[str]:
    """Layers whose arithmetic is one call to the counter, and is left out."""
    return sorted({type(module).__name__ for module in net.modules() if isinstance(module, nn.LSTM)})


def filled(job: Job, seconds: float) -> bool:
    """Read what the run keeps of a Dataset's items (--cache), as its first epoch does. False where time runs out."""
    if not job.recipe.cache or isinstance(job.data.parts["train"][0].inputs, tuple):
        return True
    began = time.perf_counter()
    with keeping_generators():
        for _batch in jobs.batches(job, "train").epoch(0):
            if time.perf_counter() - began > seconds:
                return False
    return True


def in_memory(job: Job, seconds: float = 0.5) -> Any:
    """Some of a Dataset's batches as columns: the pace it would have if its items were kept."""
    walk = jobs.batches(job, "train")
    kept, began = walk.state_dict(), time.perf_counter()
    inputs: list[tuple[Tensor, ...]] = []
    truths: list[Any] = []
    with keeping_generators():
        for batch in walk.epoch(0):
            inputs.append(batch.inputs)
            truths.append(batch.truth)
            if time.perf_counter() - began > seconds and len(inputs) >= 2:
                break
    walk.load_state_dict(kept)
    columns = tuple(torch.cat(column) for column in zip(*inputs, strict=True))
    truth = None if truths[0] is None else torch.cat(truths)
    return Batches(columns, truth, batch_size=job.recipe.batch_size or 64, device=job.device)
