"""Small things to train, and children to train them in, for the tests of faults."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import nn

SETTINGS: dict[str, Any] = {
    "net": "mlp", "net_arg": {"dropout": 0.3, "hidden": [8]}, "epochs": 4, "batch_size": 16, "seed": 3, "valid": 0.25,
    "learning_rate": 0.03, "ema": 0.5, "keep": "best", "threads": 1, "checkpoint_every": "2steps", "baselines": False,
    "report": False, "quiet": True,
}  # fmt: skip


def table() -> tuple[np.ndarray, np.ndarray]:
    """(60, 6) inputs and their three classes, for SETTINGS."""
    y = np.arange(60) % 3
    return (np.random.default_rng(5).normal(size=(60, 6)) + np.eye(6)[y]).astype(np.float32), y


class Net(nn.Sequential):
    """12 numbers -> 3 classes; with running means and dropout, so that every step leaves traces."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def code_of(child: int) -> int:
    """The exit code of a forked process, which is waited for; of a killed one the signal, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
