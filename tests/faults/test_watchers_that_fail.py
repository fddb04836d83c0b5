"""Row 44: a watcher of the user's that raises ends the run at a clean point, from which it is resumed bit for bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lamina
from lamina.errors import Diverged, UsageError
from lamina.state import listing

COMMON = {"test": 0, "epochs": 3, "batch_size": 8, "baselines": False, "report": False, "quiet": True}


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(48, 6)).astype(np.float32), rng.integers(0, 3, 48)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3))


class Failing:
    def __init__(self, step: int, error: Exception | None):
        self.step, self.error = step, error

    def __call__(self, progress: Any) -> None:
        if self.error is not None and progress.step == self.step:
            raise self.error


@pytest.mark.fault(44)
@pytest.mark.parametrize("error", [ValueError("seven"), KeyError("x"), MemoryError(), Diverged("by hand")], ids=repr)
def test_a_watcher_that_raises_stops_after_its_step_and_the_run_goes_on_from_there(error, counted, tmp_path):
    whole = lamina.train(data(), net=net(), watchers=[Failing(0, None)], runs=tmp_path, name="whole", **COMMON)
    for step in range(1, counted(3, 18)):
        folder = tmp_path / f"{step}"
        kind = type(error) if isinstance(error, Diverged) else UsageError
        with pytest.raises(kind) as found:
            lamina.train(data(), net=net(), watchers=[Failing(step, error)], runs=tmp_path, name=str(step), **COMMON)
        if kind is UsageError:
            assert f"The watcher Failing raised {type(error).__name__} after step {step}" in found.value.what
        assert json.loads((folder / "run.json").read_text())["status"] == "failed"
        assert int(listing(folder / "checkpoints")[0].name[5:]) == step
        lamina.resume(folder, data(), net=net(), watchers=[Failing(0, None)], quiet=True)
        assert (folder / "weights.safetensors").read_bytes() == (whole.folder / "weights.safetensors").read_bytes()
