"""The parts of a step: where its time goes, and the arithmetic that no way of doing it can avoid.

In: a job. Out: seconds a step of each part (`parts`), of what comes between steps (`between`), and the operations of its
products (`products`). The parts are measured in the way the run takes (its lane): a recorded step has no forward pass
apart from its backward pass, so there the two are one part.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lamina import augment, devices, engine, mapped
from lamina import job as jobs
from lamina import recipe as recipes
from lamina import state as states
from lamina.batches import Batch, keeping_generators
from lamina.bench.clock import per_call, wait
from lamina.bench.step import PATIENCE, Copy, changed, copied, lane_of
from lamina.job import Job

PARTS = ("load", "prepare and augment", "forward", "backward", "forward and backward", "update")  # in their order


class _Spent:
    """Seconds of a step, by part; each is told when it ends."""

    def __init__(self, device: torch.device):
        self.device, self.by, self.at = device, dict[str, float](), time.perf_counter()

    def on(self, part: str) -> None:
        wait(self.device)
        now = time.perf_counter()
        self.by[part] = self.by.get(part, 0.0) + now - self.at
        self.at = now


def parts(job: Job, seconds: float = 2.0) -> dict[str, float]:
    """Seconds a step of each part, in the order of the step; the device is waited for after each."""
    mine = copied(job)
    kept = mine.walk.state_dict()
    plain = (job.recipe.accumulate or 1) > 1 or devices.scaler(job.device, job.recipe.precision or "fp32") is not None
    with keeping_generators(), jobs.memory_in_words():
        marks, lasting, recorded = (_of_plain_steps if plain else _of_lane)(job, mine, seconds)
        settled = marks[len(marks) // 5 :]
        found = {part: _middle([spent[part] for spent in settled]) for part in settled[-1]}
        if "forward" not in found and not recorded:
            forward = min(found["forward and backward"], _forward(job, mine, seconds / 6))
            found.update(forward=forward, backward=found.pop("forward and backward") - forward)
        changing = 0.0 if lasting else min(found["load"], (job.recipe.accumulate or 1) * _changing(job, seconds / 6))
    mine.walk.load_state_dict(kept)
    found["load"] -= changing
    found["prepare and augment"] = changing
    return {part: found[part] for part in PARTS if part in found}


Marks = tuple[list[dict[str, float]], bool, bool]  # parts of each step; are batches ready when they are cut; recorded


def _of_lane(job: Job, mine: Copy, seconds: float) -> Marks:
    """As the engine makes them, a batch a step."""
    lane, average = lane_of(job, mine), mine.options.get("ema")
    if hasattr(mine.walk, "reuse"):
        mine.walk.reuse = True
    marks: list[dict[str, float]] = []
    lasting, began, epoch, steps = False, time.perf_counter(), 0, 0
    try:
        while not _enough(marks, began, seconds):
            spent = _Spent(job.device)
            for batch in mine.walk.epoch(epoch):
                spent.on("load")
                settled, steps = lane.settled or steps >= PATIENCE, steps + 1
                lane.gradients(batch)
                spent.on("forward and backward")
                lane.clip(job.recipe.clip_value or 0.0, job.recipe.clip_norm or 0.0)
                lane.update()
                if average is not None:
                    average.update_parameters(mine.net)
                spent.on("update")
                if settled:
                    marks.append(spent.by)
                lasting = getattr(batch, "lasting", False)
                if _enough(marks, began, seconds):
                    break
                spent = _Spent(job.device)
            epoch += 1
        return marks, lasting, lane.recorded
    finally:
        lane.close()


def _of_plain_steps(job: Job, mine: Copy, seconds: float) -> Marks:
    """Of several batches, or with a scaled loss."""
    precision, every = job.recipe.precision or "fp32", job.recipe.accumulate or 1
    autocast, scaler = devices.autocast(job.device, precision), devices.scaler(job.device, precision)
    objective, penalty, average = mine.options["objective"], mine.options["penalty"], mine.options.get("ema")
    parameters = [p for p in mine.net.parameters() if p.requires_grad]

    def step(window: list[Batch], spent: _Spent) -> None:
        mine.optimizer.zero_grad(set_to_none=True)
        spent.on("update")
        for batch in window:
            with autocast:
                value, _count = objective(mine.net, batch)
                value = value if penalty is None else value + penalty(mine.net)
            spent.on("forward")
            (value if scaler is None else scaler.scale(value)).backward()
            spent.on("backward")
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
        spent.on("update")

    marks: list[dict[str, float]] = []
    began, epoch = time.perf_counter(), 0
    while not _enough(marks, began, seconds):
        walk = iter(mine.walk.epoch(epoch))
        spent = _Spent(job.device)
        while window := list(itertools.islice(walk, every)):  # the last of an epoch is as short as it comes
            spent.on("load")
            step(window, spent)
            marks.append(spent.by)
            if _enough(marks, began, seconds):
                break
            spent = _Spent(job.device)
        epoch += 1
    return marks, False, False


def _forward(job: Job, mine: Copy, seconds: float) -> float:
    """Seconds of net and loss for a batch, with what is kept for the backward pass."""
    autocast, batch = devices.autocast(job.device, job.recipe.precision or "fp32"), next(iter(mine.walk.epoch(0)))

    def forward() -> None:
        with autocast:
            mine.options["objective"](mine.net, batch)

    return per_call(forward, job.device, seconds)


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
        cut = tuple(mapped.take(column, some).to(job.device) for column in encoded.inputs)
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
    mine = copied(job)
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

    if job.device.type != "cpu":  # the first time, kernels are chosen
        job.data.domain.validate(net, Some(), job.data.target, job.loss)
        wait(job.device)
        Some.count = 0
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

    mine = copied(job)
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
