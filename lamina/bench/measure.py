"""A run, measured: pace, parts, floor and what would help, in one dict.

In: a `Run`, or what `reopen` needs to make a job of it. Out: JSON values, for `words` and for machines.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lamina import devices, machine
from lamina.bench import parts, step
from lamina.bench.advice import trials
from lamina.bench.clock import Company
from lamina.bench.machine import product_rate
from lamina.run import Run

_LOSS = (
    "the loss of this run was an object of yours ({}), which is not stored: the task's own was measured in its place"
)

_CACHE = "the cache was not full yet when it was measured: later epochs load faster; give it more --seconds"


def measure_run(
    run: Run, *, loss: Any = None, optimizer: Any = None, source: Any = None, device: str | None = None,
    seconds: float = 15.0,
) -> dict[str, Any]:  # fmt: skip
    """What a step of a run takes, where it goes and what would help, as JSON values.

    seconds: about how long the measuring may take, reading the data left out. Code and data of yours, which a run folder
    does not hold, are given again as to `lamina.resume`. The folder, the net and the generators stay as they are.
    """
    most = torch.get_num_threads()
    job = step.reopen(run, loss=loss, optimizer=optimizer, source=source, device=device)
    precision = job.recipe.precision or "fp32"
    count = min(most, job.recipe.threads or run.facts.get("numerics", {}).get("threads") or most)
    with Company() as company, machine.ready(bool(job.recipe.strict), count):
        notes = [_LOSS.format(run.facts["loss"].get("class"))] if step.loss_is_lost(run, loss) else []
        notes += [] if step.filled(job, seconds / 3) else [_CACHE]
        in_tf32 = job.device.type == "cuda" and precision == "fp32" and torch.backends.cuda.matmul.allow_tf32
        kind = "tf32" if in_tf32 else precision
        rate = product_rate(job.device, kind, most, seconds / 30)
        now = step.pace(job, seconds / 5, watched=True)
        apart = parts.parts(job, seconds / 5)
        extra = parts.between(job, now.seconds, seconds / 15)
        tried = trials(job, now, apart, count, most, seconds / 2.5)
        device_words = devices.describe(job.device)
        work = parts.products(job)  # last: the counter loads the compiler

    a_step = now.seconds + sum(extra.values())
    rest = now.seconds - now.watchers - sum(apart.values())
    spent = {**apart, "watchers": now.watchers, **extra, "everything else": max(0.0, rest)}
    whole = sum(spent.values())
    floor = {
        "gflop": work / 1e9,
        "gflops": rate / 1e9,
        "kind": kind,
        "milliseconds": 1000 * work / rate,
        "share": work / rate / a_step,
        "uncounted": parts.uncounted(job.net),
    }
    return {
        "run": str(run.folder),
        "net": run.facts["net"]["name"],
        "device": device_words,
        "precision": precision,
        "batch_size": job.recipe.batch_size,
        "examples_per_second": now.examples * now.seconds / a_step,
        "milliseconds": 1000 * a_step,
        "lane": now.lane,
        "floor": floor if work else None,
        "parts": [
            {"name": name, "milliseconds": 1000 * took, "share": took / whole} for name, took in spent.items()
        ],
        "tried": [{**dataclasses.asdict(trial), "helps": trial.helps} for trial in tried],
        "others_cores": company.cores,
        "notes": notes,
    }  # fmt: skip
