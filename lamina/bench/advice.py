"""What would help a run: each candidate tried for some steps on a copy of its net, none guessed.

In: a job, its pace and its parts. Out: a list of what was tried (`Trial`), with the factor it gave. What is worth a word
is what makes a step at least a tenth faster; the rest is told as tried without gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lamina import devices
from lamina.bench.clock import threads
from lamina.bench.step import Pace, changed, in_memory, pace
from lamina.errors import LaminaError, out_of_memory
from lamina.job import Job

GAIN = 1.1  # worth a word


@dataclass
class Trial:
    """Something that was tried. factor: examples a second against those of the run; None where it could not be done."""

    option: str  # as typed
    words: str  # why one would, and what it costs
    factor: float | None
    error: str = ""

    @property
    def helps(self) -> bool:
        return self.factor is not None and self.factor >= GAIN


@dataclass
class _Candidate:
    option: str
    words: str
    settings: dict[str, Any]
    threads: int | None = None
    kept: bool = False  # batches from memory
    channels_last: bool = False


def trials(job: Job, now: Pace, parts: dict[str, float], count: int, most: int, seconds: float) -> list[Trial]:
    """Everything that may help, tried. count: threads of the run; most: those there are. Best first."""
    found = []
    candidates = _candidates(job, now, parts, count, most)
    each = seconds / (len(candidates) + 2)  # what helps is measured once more
    for candidate in candidates:
        try:
            then = _tried(job, candidate, count, each).examples / now.examples
            if then >= GAIN:  # unless the run itself was slow by chance, just then
                with threads(count):
                    again = pace(job, each).examples
                then = min(then, _tried(job, candidate, count, each).examples / again)
        except (LaminaError, RuntimeError, ValueError, TypeError) as error:
            if out_of_memory(error):
                error = RuntimeError("the memory is used up")
            found.append(Trial(candidate.option, candidate.words, None, str(error).splitlines()[0]))
        else:
            found.append(Trial(candidate.option, candidate.words, then))
    return sorted(found, key=lambda trial: -(trial.factor or 0.0))


def _tried(job: Job, candidate: _Candidate, count: int, seconds: float) -> Pace:
    with threads(candidate.threads or count):
        walk = in_memory(job) if candidate.kept else None
        then = changed(job, **candidate.settings)
        if candidate.channels_last:
            then.facts = {**job.facts, "step": {"channels_last": True}}
        return pace(then, seconds, walk=walk)


def _candidates(job: Job, now: Pace, parts: dict[str, float], count: int, most: int) -> list[_Candidate]:
    recipe, found = job.recipe, []
    whole = sum(parts.values())
    share = {part: spent / whole for part, spent in parts.items()}
    on_cpu = job.device.type == "cpu"

    # The machine.
    if on_cpu:
        for other in sorted({1, most} - {count}):
            plural = "" if other == 1 else "s"
            found.append(_Candidate(f"--threads {other}", f"{other} thread{plural} instead of {count}", {}, other))
    if (recipe.precision or "fp32") == "fp32" and "bf16" in devices.precisions(job.device):
        words = "products in bfloat16, three significant digits; look at the score"
        found.append(_Candidate("--precision bf16", words, {"precision": "bf16"}))
    if recipe.strict:
        words = "other orders of sums than the plain loop's, and where there are convolutions another layout"
        layout = any(isinstance(module, torch.nn.Conv2d) for module in job.net.modules())
        found.append(_Candidate("--no-strict", words, {"strict": False}, channels_last=layout))
    if recipe.compile == "off":
        found.append(_Candidate("--compile auto", "compile is off", {"compile": "auto"}))
    elif job.device.type == "cuda" and recipe.compile != "on" and not recipe.strict:
        words = "the net compiled by torch, whose time to compile is not in this figure"
        found.append(_Candidate("--compile on", words, {"compile": "on"}))

    # Loading.
    loading = f"loading takes {100 * share['load']:.0f} %"
    encoded = job.data.parts["train"][0].inputs
    if share["load"] > 0.2 and not isinstance(encoded, (tuple, torch.utils.data.DataLoader)):
        asked = job.origins.get("workers", ("",))[0] == "yours"  # else the batches have chosen by measuring
        for workers in sorted({0, 1, 2, most} - {recipe.workers or 0}) if asked else ():
            found.append(_Candidate(f"--workers {workers}", loading, {"workers": workers}))
        if not recipe.cache:
            words = f"{loading}; right if your Dataset gives the same item every time"
            found.append(_Candidate("--cache", words, {}, kept=True))
    if share["prepare and augment"] > 0.3 and recipe.augment not in (None, "none"):
        words = f"augmentation takes {100 * share['prepare and augment']:.0f} %, and costs score to leave out"
        found.append(_Candidate("--augment none", words, {"augment": "none"}))

    # What does not grow with the batch.
    size = job.data.size("train") or 0
    larger = 4 * (recipe.batch_size or 64)
    if larger <= size / 2 and not isinstance(encoded, torch.utils.data.DataLoader):
        words = "update and loop cost as much for more examples; fewer steps an epoch: another training"
        found.append(_Candidate(f"--batch-size {larger}", words, {"batch_size": larger}))
    return found
