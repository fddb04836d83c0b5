"""Whole steps of a run, as the run does them.

In: a run, whose data can be read. Out: a `Job` over a copy of its net (`reopen`), the same with other settings
(`changed`), copies that can learn and leave no trace (`Copy`), and the pace of steps through `learn` (`pace`).

Learning rates are 0 throughout: the arithmetic is that of the run, and the weights stay where they are, so that nothing
diverges and each measurement sees the same net.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lamina import devices, engine
from lamina import job as jobs
from lamina import run as runs_
from lamina.batches import Batches, keeping_generators
from lamina.bench.clock import wait
from lamina.job import Job
from lamina.lanes import Lane
from lamina.run import Run
from lamina.watchers.screen import Screen

PATIENCE = 64  # steps after which a lane that has not settled is measured as it is
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
    record = runs_.read_json(run.folder / "data.json").get("origins", {})
    origins = {name: (origin[0], origin[1]) for name, origin in record.items()}
    return Job(
        asked, origins, loaded, net, jobs.build_loss(asked, loss, loaded), place, optimizer, (), Path(), dict(facts),
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
class Copy:
    """A net and an optimiser of its own, which learns nothing, and the batches it would learn from."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    walk: Any
    schedule: Any
    options: dict[str, Any] = field(default_factory=dict)


def copied(job: Job, walk: Any = None) -> Copy:
    net, given = copy.deepcopy((job.net, job.own_optimizer))
    if job.facts.get("step", {}).get("channels_last"):  # the layout that the run has found the fastest
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mine = dataclasses.replace(job, net=net, own_optimizer=given)
    optimizer = jobs.build_optimizer(mine, net)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
    walk = jobs.batches(mine, "train", net=net) if walk is None else walk
    recipe = job.recipe
    options: dict[str, Any] = {
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
    return Copy(net, optimizer, walk, jobs.build_schedule(mine, walk), options)


def lane_of(job: Job, mine: Copy) -> Lane:
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
    mine = copied(job, walk)
    kept = mine.walk.state_dict()
    watchers: list[Any] = []
    if watched:
        if job.supervised:
            watchers.append(jobs.health(job, mine.net))
        watchers.append(Screen(stream=io.StringIO()))
    rounds: list[float] = []  # seconds a step
    examples = steps = 0
    watching, lane, planned = 0.0, "", _planned(job, mine.walk)
    with keeping_generators(), jobs.memory_in_words():
        end = time.perf_counter() + seconds
        settled = time.perf_counter() + seconds / 3
        while not rounds or time.perf_counter() < end:
            before, began, in_round = -1.0, 0.0, 0
            way = lane_of(job, mine)
            for progress in engine.learn(
                mine.net, mine.walk, optimizer=mine.optimizer, epochs=None, steps=planned,
                schedule=mine.schedule, lane=way, **mine.options,
            ):  # fmt: skip
                asked = time.perf_counter()
                for watch in watchers:
                    watch(progress)
                now = time.perf_counter()
                if before < 0.0:  # settling down
                    if progress.step >= (2 if way.settled else min(PATIENCE, planned - 1)) and now >= settled:
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
