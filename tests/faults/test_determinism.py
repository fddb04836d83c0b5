"""Row 43: with --strict, a step that does not give the same bits twice is refused, and its first operation named."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lamina
from lamina.errors import UsageError

pytestmark = pytest.mark.timeout(3600)

QUIET = {"baselines": False, "report": False, "quiet": True, "epochs": 1, "batch_size": 16, "test": 0}


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(48, 6)).astype(np.float32), rng.integers(0, 3, 48)


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OwnGenerator(nn.Module):
    """Draws from a generator that nobody seeded, and no checkpoint knows."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()
        self.generator.seed()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1e-6 * torch.randn(x.shape, generator=self.generator)


class System(nn.Module):
    """A factor from the system's random numbers, and no tensor of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + int.from_bytes(os.urandom(4), "big") / 2**40)


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(np.random.default_rng().normal(size=tuple(x.shape)).astype(np.float32))


class Clock(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + (time.perf_counter_ns() % 1_000_003) * 1e-7)


class Counter(nn.Module):
    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x / self.calls


class _AnyOrder(torch.autograd.Function):
    """Sums in any order, in the backward pass: as kernels with atomic additions do."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        order = np.random.default_rng().permutation(len(gradient))
        return gradient + 1e-6 * (gradient[torch.from_numpy(order)].cumsum(0)[-1:] + gradient[int(order[0])])


class AnyOrder(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _AnyOrder.apply(x)  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self, planted: nn.Module):
        super().__init__()
        self.one, self.norm, self.drop = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3)
        self.planted, self.two = planted, nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.planted(self.drop(torch.relu(self.norm(self.one(x))))))


PLANTED = [OwnGenerator, System, Numpy, Clock, Counter, AnyOrder]


@pytest.mark.fault(43)
def test_whatever_differs_is_found_and_its_layer_named(counted, recorded, tmp_path):
    times = counted(2, 34)
    found = 0
    for kind in PLANTED:
        for k in range(times):
            torch.manual_seed(k)
            with pytest.raises(UsageError, match="made twice") as error:
                lamina.train(data(), net=Net(kind()), strict=True, runs=tmp_path, name=f"{kind.__name__}{k}", **QUIET)
            found += f"in layer 'planted' ({kind.__name__})" in error.value.what and "aten." in error.value.what
            assert error.value.exit_code == 2
    assert not list(tmp_path.iterdir()), "refused before there is a run"
    recorded(planted=times * len(PLANTED), found=found)
    assert found == times * len(PLANTED)


@pytest.mark.fault(43)
def test_an_ordinary_net_is_let_through_and_learns_as_without_the_check(tmp_path, monkeypatch):
    """Dropout and running means among it; what the check draws and counts is put back."""
    files = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr("lamina.determinism.check", lambda *_, **__: None)
        torch.manual_seed(0)
        run = lamina.train(data(), net=Net(Plain()), strict=True, runs=tmp_path, name=str(checked), **QUIET)
        files.append((run.folder / "weights.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.fault(43)
def test_without_strict_nobody_is_refused(tmp_path):
    lamina.train(data(), net=Net(Counter()), runs=tmp_path, name="a", **QUIET)
