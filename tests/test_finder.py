"""The learning-rate finder leaves no trace, and finds a rate that is known to be right."""

from __future__ import annotations

import copy
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lamina import finder
from lamina.batches import Batches, LoaderBatches
from lamina.errors import UsageError
from lamina.finder import find_learning_rate
from lamina.state import pack, unpack


def regression(curvature: float, n: int = 512, width: int = 8):
    """Least squares whose Hessian is `curvature` times the identity: mean (w x - y)^2 with x^T x = n curvature / 2."""
    generator = torch.Generator().manual_seed(1)
    x = torch.linalg.qr(torch.randn(n, width, generator=generator))[0] * math.sqrt(n * curvature / 2)
    y = x @ torch.randn(width, generator=generator) + 0.1 * torch.randn(n, generator=generator)
    net = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(net.weight)
    return net, x, y[:, None]


def blobs(n: int = 400):
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(n) % 3
    return torch.randn(n, 5, generator=generator) + 1.5 * torch.eye(5)[y], y


# --- The rate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", [0.02, 1.0, 50.0])
def test_gradient_descent_on_a_quadratic(curvature):
    """The best rate of gradient descent is 1 / curvature; from 2 / curvature on it diverges. While the rate rises by a
    tenth a step, the loss falls where the rates so far add up to 1 / curvature: at a tenth of it."""
    net, x, y = regression(curvature)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    found = find_learning_rate(
        net, Batches(x, y, batch_size=64), nn.functional.mse_loss, optimizer, high=1000.0, steps=200
    )
    assert 0.05 / curvature < found.suggestion < 2 / curvature


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_classification_by_the_best_of_a_grid(kind):
    """Within a factor of 10 of the rate that, of all, trains best in 100 steps."""
    x, y = blobs()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    batches = Batches(x, y, batch_size=32)
    grid = [10.0**k for k in range(-5, 2)]
    ends = []
    for rate in grid:
        trial = copy.deepcopy(net)
        optimizer = kind(trial.parameters(), lr=rate)
        for epoch in range(8):
            for batch in batches.epoch(epoch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(trial(*batch.inputs), batch.truth).backward()
                optimizer.step()
        end = nn.functional.cross_entropy(trial(x), y).item()
        ends.append(end if math.isfinite(end) else math.inf)
    best = grid[int(np.argmin(ends))]
    found = find_learning_rate(net, batches, nn.functional.cross_entropy, kind(net.parameters(), lr=1e-3))
    assert best / 10 <= found.suggestion <= best * 10


def search(monkeypatch, curve: list[float], **options):
    """The finder on losses that are given, at rates 1e-6, 2e-6, 4e-6, ..."""

    def learn(*_, **__):
        for step, loss in enumerate(curve, 1):
            yield SimpleNamespace(step=step, loss=loss, learning_rate=1e-6 * 2 ** (step - 1))

    monkeypatch.setattr(finder.engine, "learn", learn)
    net = nn.Linear(1, 1)
    return find_learning_rate(net, [], None, torch.optim.SGD(net.parameters(), lr=1.0), **options)


def test_the_suggestion_is_the_place_of_steepest_fall(monkeypatch):
    curve = [1.0] * 8 + [0.95, 0.6, 0.5, 0.45, 0.44, 0.43, 1.0, 5.0, 9.0]  # the fall is steepest round the tenth step
    found = search(monkeypatch, curve, smoothing=0.0)
    assert found.losses == curve[:16]  # 5.0 is more than four times the lowest
    assert found.suggestion == float(f"{1e-6 * 2**9:.2g}")


def test_the_suggestion_is_well_below_the_lowest_loss(monkeypatch):
    curve = [1.0] * 10 + [0.99, 0.98, 0.5, 0.01, 9.0]  # steepest just before the lowest, where it is about to explode
    assert search(monkeypatch, curve, smoothing=0.0).suggestion == float(f"{1e-6 * 2**13 / 3:.2g}")


def test_the_suggestion_is_not_far_below_the_lowest_loss(monkeypatch):
    curve = [1.0, 0.5] + [0.5 - 0.001 * k for k in range(20)] + [9.0]
    assert search(monkeypatch, curve, smoothing=0.0).suggestion == float(f"{1e-6 * 2**21 / 30:.2g}")


def test_losses_are_smoothed_without_bias(monkeypatch):
    """An exponential average, divided by the weight it has gathered (Kingma and Ba, 2015, section 3)."""
    curve = [1.0 - 0.05 * k for k in range(12)]
    expected = [
        sum(0.9 ** (n - k) * loss for k, loss in enumerate(curve[: n + 1])) / sum(0.9**k for k in range(n + 1))
        for n in range(12)
    ]
    assert search(monkeypatch, curve).losses == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_end_the_search(monkeypatch, wrong):
    """On a GPU nobody looks before the epoch's end."""
    found = search(monkeypatch, [1.0 - 0.05 * k for k in range(15)] + [wrong] + [0.0] * 5)
    assert len(found.losses) == 15 and all(map(math.isfinite, found.losses))


def test_the_rate_rises_by_a_factor_and_stays_below_the_lowest_loss():
    net, x, y = regression(1.0)
    found = find_learning_rate(
        net,
        Batches(x, y),
        nn.functional.mse_loss,
        torch.optim.SGD(net.parameters(), lr=1.0),
        low=1e-4,
        high=1.0,
        steps=41,
    )
    assert found.rates == pytest.approx([1e-4 * 10 ** (k / 10) for k in range(len(found.rates))])
    assert len(found.rates) == len(found.losses) and all(map(math.isfinite, found.losses))
    lowest = found.rates[int(np.argmin(found.losses))]
    assert lowest / 31 <= found.suggestion <= lowest / 2.9


def test_it_stops_where_the_loss_explodes():
    net, x, y = regression(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    found = find_learning_rate(net, Batches(x, y), nn.functional.mse_loss, optimizer, high=1e6, steps=300)
    assert len(found.rates) < 300 and found.losses[-1] > 4 * min(found.losses)


def test_a_loss_that_ends_in_nan_ends_the_search():
    """sqrt of a negative number at a high rate: what came before counts."""
    net, x, y = regression(1.0)

    def fragile(output, truth):
        loss = nn.functional.mse_loss(output, truth)
        return loss + torch.where(loss > 100, torch.tensor(float("nan")), torch.tensor(0.0))

    found = find_learning_rate(net, Batches(x, y), fragile, torch.optim.SGD(net.parameters(), lr=1.0), high=1000.0)
    assert all(map(math.isfinite, found.losses)) and 0.05 < found.suggestion < 2


# --- No trace --------------------------------------------------------------------------------------------------------


def stirred():
    """A net in mixed modes with dropout and running statistics, an optimiser with memory, gradients left lying about."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(
        [{"params": net[0].parameters(), "lr": 3e-3}, {"params": net[4].parameters()}], lr=1e-2
    )
    x, y = blobs()
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    random.seed(4)
    np.random.seed(4)
    return net, optimizer, x, y


def everything(net, optimizer):
    """All there is to see, as plain values that can be compared."""
    tree = {
        "weights": dict(net.state_dict()),
        "gradients": [parameter.grad for parameter in net.parameters()],
        "needs": [parameter.requires_grad for parameter in net.parameters()],
        "modes": [module.training for module in net.modules()],
        "optimizer": optimizer.state_dict(),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],
        "python": torch.tensor(random.getstate()[1]),
    }
    tensors, plain = pack(tree)
    return {name: value.clone() for name, value in tensors.items()}, plain


def equal(a, b) -> bool:
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


class Walk(Batches):
    """Batches that remember something of their own."""

    walked = 0

    def epoch(self, epoch, start=0):
        for batch in super().epoch(epoch, start):
            self.walked += 1
            yield batch

    def state_dict(self):
        return {"walked": self.walked}

    def load_state_dict(self, state):
        self.walked = state["walked"]


def test_nothing_is_changed_by_a_search():
    net, optimizer, x, y = stirred()
    batches = Walk(x, y, batch_size=32)
    before = everything(net, optimizer)
    find_learning_rate(net, batches, nn.functional.cross_entropy, optimizer)
    assert equal(everything(net, optimizer), before)
    assert batches.walked == 0


def test_nothing_is_changed_by_a_search_over_a_loader():
    """A loader draws its order, and here its noise, from the process' generators."""
    net, optimizer, x, y = stirred()

    class Noisy(TensorDataset):
        def __getitem__(self, index):
            item, truth = super().__getitem__(index)
            return item + 0.1 * torch.randn(5) + np.float32(0.1 * np.random.randn() + random.random()), truth

    batches = LoaderBatches(DataLoader(Noisy(x, y), batch_size=32, shuffle=True))
    before = everything(net, optimizer)
    find_learning_rate(net, batches, nn.functional.cross_entropy, optimizer)
    assert equal(everything(net, optimizer), before)


def test_nothing_is_changed_by_a_search_that_fails():
    net, optimizer, x, y = stirred()
    batches = Walk(x, y, batch_size=32)
    calls = []

    def broken(output, truth):
        calls.append(1)
        if len(calls) == 20:
            raise RuntimeError("planted")
        return nn.functional.cross_entropy(output, truth)

    before = everything(net, optimizer)
    with pytest.raises(RuntimeError, match="planted"):
        find_learning_rate(net, batches, broken, optimizer)
    assert equal(everything(net, optimizer), before) and batches.walked == 0


def test_a_change_is_seen():
    """The control of the three above: one step of training shows in all that is compared."""
    net, optimizer, _, _ = stirred()
    before = everything(net, optimizer)
    optimizer.step()
    assert not equal(everything(net, optimizer), before)
    net, optimizer, _, _ = stirred()
    before = everything(net, optimizer)
    torch.rand(1)
    assert not equal(everything(net, optimizer), before)
    assert equal((unpacked := everything(net, optimizer)), unpacked) and unpack(*unpacked)["modes"][2] is False


# --- What cannot be searched -----------------------------------------------------------------------------------------


def test_no_optimizer_is_said():
    net, x, y = regression(1.0)
    with pytest.raises(UsageError, match="no optimizer"):
        find_learning_rate(net, Batches(x, y), nn.functional.mse_loss)


def test_a_loss_that_never_falls_is_said():
    """Its gradient points the wrong way."""
    net, x, y = regression(1.0)

    def uphill(output, truth):
        loss = nn.functional.mse_loss(output, truth)
        return 2 * loss.detach() - loss

    with pytest.raises(UsageError, match="never fell"):
        find_learning_rate(
            net, Batches(x, y, shuffle=False, batch_size=512), uphill, torch.optim.SGD(net.parameters(), lr=1.0)
        )


def test_a_first_step_that_diverges_is_said():
    net, x, y = regression(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    with pytest.raises(UsageError, match="first step diverged"):
        find_learning_rate(net, Batches(x * float("inf"), y), nn.functional.mse_loss, optimizer)
