"""Convolutions with the channels last give the same as torch's, and no net is trained otherwise for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lamina
from lamina import lanes, layouts, quicker
from lamina.batches.batch import Batch
from lamina.layouts import CONVOLUTION, LAID, Reshaping
from lamina.quicker import Quicker

KERNELS = quicker.INSTEAD | LAID


def gradients(net: nn.Module, x: Tensor, out: Tensor | None = None) -> list[Tensor]:
    """What a net gives, and the gradients of its input and parameters."""
    x = x.detach().requires_grad_()
    found = net(x)
    weights = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).view_as(found.detach().reshape(found.shape))
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), [x, *net.parameters()])]


def assert_near(found: list[Tensor], truth: list[Tensor], plain: list[Tensor]) -> None:
    """Near double precision, with the shapes and layouts of parameters."""
    for a, b, c in zip(found, truth, plain, strict=True):
        size = float(b.abs().max()) + 1e-12
        error, own = (float((part.double() - b).abs().max()) / size for part in (a, c))
        assert a.shape == b.shape and a.is_contiguous() == c.is_contiguous() and error <= max(4 * own, 1e-4), (
            error,
            own,
        )


@settings(max_examples=80, deadline=None)
@given(
    dimensions=st.sampled_from([1, 2]),
    channels=st.integers(1, 6),
    outputs=st.integers(1, 7),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    norm=st.booleans(),
    training=st.booleans(),
)
def test_a_convolution_with_the_channels_last_is_that_of_double_precision(
    dimensions, channels, outputs, kernel, stride, padding, dilation, bias, norm, training
):
    channels += channels == dimensions == 1  # one along a line is torch's
    bias = bias and not (norm and training)  # whose gradient is nothing but rounding
    torch.manual_seed(0)
    convolution, batch_norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[dimensions - 1]
    net = nn.Sequential(
        convolution(channels, outputs, kernel, stride, padding, dilation, bias=bias), *([batch_norm(outputs)] if norm else [])
    ).train(training)  # fmt: skip
    places = (17, 23) if dimensions == 2 else (400,)
    x = torch.randn(-(-layouts.ENOUGH // (channels * 391)), channels, *places)
    assert x.numel() >= layouts.ENOUGH
    plain = gradients(copy.deepcopy(net), x)
    truth = gradients(copy.deepcopy(net).double(), x.double())
    with Quicker(KERNELS) as mode:
        found = gradients(net, x)
    assert CONVOLUTION in mode.seen
    assert_near(found[2:], truth[2:], plain[2:])
    assert_near([part.contiguous() for part in found[:2]], truth[:2], plain[:2])


def test_running_statistics_of_lines_are_kept_as_torch_keeps_them():
    nets = [nn.Sequential(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(64, 4, 100)
    nets[0](x)
    with Quicker(KERNELS) as mode:
        nets[1](x)
    assert torch.ops.aten.native_batch_norm.default in mode.seen
    for a, b in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Conv1d(1, 8, 3), (64, 1, 400)),  # of one channel
        (nn.Conv1d(4, 8, 3, groups=2), (64, 4, 100)),
        (nn.ConvTranspose1d(4, 8, 3), (64, 4, 100)),
        (nn.Conv1d(4, 8, 3), (4, 4, 100)),  # little to do
        (nn.Conv3d(4, 8, 3), (8, 4, 9, 9, 9)),
        (nn.Conv1d(4, 8, 3).double(), (64, 4, 100)),
        (nn.BatchNorm1d(4), (64, 4, 100)),  # which is not laid so
    ],
)
def test_all_others_are_torchs(net: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=next(net.parameters()).dtype)
    with Quicker():
        plain = gradients(net, x)
    with Quicker(KERNELS) as mode:
        found = gradients(net, x)
    assert CONVOLUTION not in mode.seen
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (nn.Linear(3, 3), False),
        (nn.Conv1d(4, 8, 3), True),
        (nn.Conv1d(1, 8, 3), False),
        (nn.Conv1d(4, 8, 3, groups=2), False),
        (nn.Conv2d(32, 32, 3), False),  # 9,216 weights
        (nn.Conv2d(32, 40, 3), True),
        (nn.Conv2d(32, 40, 3).to(memory_format=torch.channels_last), False),
    ],
)
def test_whom_it_concerns(net: nn.Module, expected: bool) -> None:
    assert layouts.concerns(net) is expected


# --- Views ------------------------------------------------------------------------------------------------------------


def lying_otherwise() -> Tensor:
    return torch.arange(24.0).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize(
    "ask", [lambda x: x.view(2, -1), lambda x: x.view((2, 12)), lambda x: x.view_as(torch.ones(2, 12))]
)
def test_a_view_that_memory_does_not_allow_is_a_copy_with_its_gradient(ask: Any) -> None:
    x = lying_otherwise()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        ask(x)
    with Reshaping():
        found = ask(x)
    assert torch.equal(found, torch.arange(24.0).view(2, 12))
    (gradient,) = torch.autograd.grad((found * found).sum(), x)
    assert torch.equal(gradient, 2 * x)


def test_other_views_and_other_errors_are_torchs() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    with Reshaping():
        assert x.view(6, 4).data_ptr() == x.data_ptr() and x.view(torch.int32).dtype == torch.int32
        x.view(6, 4).zero_()  # into a view that is one
        for wrong in (lambda: x.view(5, 5), lambda: x @ x, lambda: x[..., :3].view(torch.float64)):
            with pytest.raises(RuntimeError):
                wrong()
    assert not x.any()


@pytest.mark.parametrize(
    "writes", [lambda x, y: y.add_(1), lambda x, y: x.add_(1), lambda x, y: F.relu(y, inplace=True)]
)
def test_who_writes_into_either_of_both_is_told(writes: Any) -> None:
    def ask(error: type[Exception] | None = None) -> None:
        with Reshaping(), torch.no_grad():
            x = lying_otherwise()
            writes(x, x.view(2, 12))
            if error is not None:
                raise error

    with pytest.raises(RuntimeError, match="written into a view"):
        ask()
    with pytest.raises(ZeroDivisionError):  # an error of the net's own goes first
        ask(ZeroDivisionError)


# --- In a training ----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """way: what happens between the convolutions and the last layer."""

    def __init__(self, way: Any, planes: bool):
        super().__init__()
        convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if planes else (nn.Conv1d, nn.BatchNorm1d)
        self.first, self.norm, self.second = convolution(4, 32, 3), norm(32), convolution(32, 40, 3)
        self.last, self.way = nn.LazyLinear(3), way

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.way(F.relu(self.second(F.relu(self.norm(self.first(x)))))))  # type: ignore[no-any-return]


def by_strides(x: Tensor) -> Tensor:
    """Fails where memory lies in another order, and is no view."""
    return x.as_strided((len(x), x[0].numel()), (x.stride(0), 1)) if x.is_contiguous() else x.nonsense


WAYS = {
    "flattened": (lambda x: x.flatten(1), True),
    "viewed": (lambda x: x.view(x.size(0), -1), True),
    "viewed and written into": (lambda x: (1.5 * x).view(x.size(0), -1).add_(1.0), False),
    "by strides": (by_strides, False),
}


def steps(net: nn.Module, x: Tensor, count: int, **options: Any) -> tuple[lanes.Lane, list[float], list[Tensor]]:
    def objective(net: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        return F.cross_entropy(net(*batch.inputs), batch.truth), batch.count

    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    lane, losses = lanes.Lane(net, objective, optimizer, **options), []
    truth = torch.arange(len(x)) % 3
    for _ in range(count):
        loss, *_ = lane.gradients(Batch((x,), truth, torch.arange(len(x)), len(x)))
        losses.append(float(loss))
        lane.update()
    return lane, losses, [*(p.detach().clone() for p in net.parameters()), *(b.clone() for b in net.buffers())]


@pytest.mark.parametrize("planes", [True, False], ids=["planes", "lines"])
@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("hooked", [False, True], ids=["recorded", "eager"])
def test_a_net_that_does_not_bear_it_is_trained_as_it_is(kind: str, planes: bool, hooked: bool) -> None:
    way, bears = WAYS[kind]
    x = torch.randn(30, 4, *((14, 14) if planes else (200,)))
    torch.manual_seed(1)
    net = Net(way if kind != "by strides" else (lambda x: x.flatten(1)), planes)
    net(x[:2])
    net.way = way
    if hooked:
        net.norm.register_forward_hook(lambda *_: None)
    other = copy.deepcopy(net)
    lane, losses, found = steps(net, x, 6)
    _, plain, truth = steps(other, x, 6, compile="off")
    assert lane.recorded is not hooked
    assert (CONVOLUTION in lane._kernels) is bears
    assert (lane._views is Reshaping) is bears
    assert losses == pytest.approx(plain, rel=1e-5)
    for a, b in zip(found, truth, strict=True):
        assert a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=2e-5)
    assert int(net.norm.num_batches_tracked) == 7  # one step more is none


def test_the_error_of_a_net_comes_out_as_it_is() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ValueError("mine")

    net = Net(lambda x: x.flatten(1), False)
    x = torch.randn(30, 4, 200)
    net(x[:2])
    net.way = fails
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="mine"):
        steps(net, x, 1)
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert int(net.norm.num_batches_tracked) == 2  # once before, and once of the two attempts


def test_strict_and_compile_off_do_without() -> None:
    net, x = Net(lambda x: x.flatten(1), False), torch.randn(30, 4, 200)
    net(x[:2])
    for options in ({"strict": True}, {"compile": "off"}):
        assert CONVOLUTION not in steps(copy.deepcopy(net), x, 2, **options)[0]._kernels


def test_who_has_little_to_do_is_asked_again_with_more() -> None:
    torch.manual_seed(0)
    net, x = Net(lambda x: x.flatten(1), False), torch.randn(30, 4, 200)
    net(x[:2])
    lane, *_ = steps(net, x[:2], 1)
    assert lane._tries_layout
    lane.gradients(Batch((x,), torch.arange(30) % 3, torch.arange(30), 30))
    assert not lane._tries_layout and CONVOLUTION in lane._kernels
    lane.net.way = lambda x: x.view(x.size(0), -1)  # another way than the first time
    lane.gradients(Batch((x,), torch.arange(30) % 3, torch.arange(30), 30))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tutorials_convnet_is_trained_validated_and_asked(tmp_path: Path, precision: str) -> None:
    """`view` ends the convolutions, whose 10,000 weights are enough for another layout."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 600)
    x = draw.normal(0, 1, (600, 1, 16, 16)).astype(np.float32)
    x[:, 0, 4:12, 4:12] += y[:, None, None]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 64, 3), nn.ReLU(), nn.MaxPool2d(2), View(64 * 36),
                        nn.Linear(64 * 36, 3))  # fmt: skip
    assert layouts.likes_channels_last(net)
    run = lamina.train((x, y), net=net, loss=nn.CrossEntropyLoss(), task="classes", epochs=4, batch_size=50, seed=1,
                       precision=precision, runs=tmp_path, report=False, baselines=False, quiet=True)  # fmt: skip
    step = run.facts["step"]
    assert step["recorded"] and not step["channels_last"]
    assert run.headline.value > 0.9
    assert (run.predict(x).prediction == y).mean() > 0.9
    assert net[2].weight.is_contiguous()


class View(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, self.features)
