"""What is replaced means the same and is at least as exact; all else has torch's bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina import masks, quicker
from lamina.quicker import Quicker, concerns

N = 1 << 20  # places of a mask


def convolved(kind: type[nn.Module], shape: tuple[int, ...], bias: bool = True, **options: object) -> list[Tensor]:
    """Gradients of input, weight and bias, which does not sum to nothing."""
    torch.manual_seed(0)
    net = kind(shape[1], 8, 3, bias=bias, **options)
    x = torch.randn(shape, requires_grad=True)
    y = net(x)
    gradient = torch.randn_like(y) + 1
    return [gradient, *torch.autograd.grad(y, [x, *net.parameters()], gradient)]


KINDS = [
    (nn.Conv1d, (16, 3, 1200), {}),
    (nn.Conv2d, (16, 3, 40, 40), {}),
    (nn.Conv2d, (16, 4, 40, 40), {"groups": 2, "stride": 2, "padding": 1}),
    (nn.Conv2d, (40, 3, 40, 40), {"dilation": 2}),
    (nn.Conv3d, (4, 3, 16, 16, 16), {}),
    (nn.ConvTranspose2d, (16, 3, 40, 40), {}),
]


@pytest.mark.parametrize("kind, shape, options", KINDS)
def test_the_gradient_of_a_bias_is_the_sum_in_double_precision(kind, shape, options) -> None:
    plain = convolved(kind, shape, **options)
    with Quicker() as mode:
        gradient, *found, of_bias = convolved(kind, shape, **options)
    assert mode.seen == (gradient.numel() >= quicker.LARGE)
    assert all(torch.equal(a, b) for a, b in zip(found, plain[1:-1], strict=True))  # of the input and the weight
    truth = gradient.double().sum([0, *range(2, gradient.ndim)])
    assert float((of_bias - truth).abs().max() / truth.abs().max()) < 1e-6
    if mode.seen:  # and torch's own is no nearer
        assert float((of_bias - truth).norm()) <= float((plain[-1] - truth).norm())


def test_small_gradients_and_those_without_a_bias_are_torchs() -> None:
    for shape, bias in (((2, 3, 10, 10), True), ((16, 3, 40, 40), False)):
        plain = convolved(nn.Conv2d, shape, bias)
        with Quicker():
            found = convolved(nn.Conv2d, shape, bias)
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


@pytest.mark.parametrize("net, expected", [
    (nn.Linear(2, 2), False), (nn.Dropout(), True), (nn.Sequential(nn.Conv1d(1, 1, 1)), True), (nn.GRU(1, 1), True),
    (nn.TransformerEncoderLayer(4, 2), True), (nn.BatchNorm1d(2), False),
])  # fmt: skip
def test_whom_it_concerns(net: nn.Module, expected: bool) -> None:
    assert concerns(net) is expected


def test_large_masks_are_drawn_quickly() -> None:
    x = torch.randn(512, 512)
    torch.manual_seed(0)
    with Quicker() as mode:
        out = F.dropout(x, 0.3)
    assert mode.seen
    torch.manual_seed(0)
    assert torch.equal(out, x * masks.fill(torch.empty_like(x), 0.7).div_(0.7))
    torch.manual_seed(0)
    assert not torch.equal(out, F.dropout(x, 0.3))


def test_nothing_else_changes() -> None:
    def arithmetic() -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(300, 300, requires_grad=True)
        small = F.dropout(x[:10], 0.3)
        generator = torch.Generator().manual_seed(1)
        own = torch.empty(N).bernoulli_(0.5, generator=generator)
        others = [
            torch.rand(N),
            torch.bernoulli(torch.full((300, 300), 0.2)),
            torch.randperm(100),
            torch.empty(9).normal_(),
        ]
        value = (small.sum() + (x @ x.t()).tanh().sum()) * 2
        whole = torch.empty(300, 300, dtype=torch.int64).bernoulli_(0.4)
        return [small, own, *others, value, whole, *torch.autograd.grad(value, [x]), torch.get_rng_state()]

    with Quicker() as mode:
        found = arithmetic()
    assert all(torch.equal(a, b) for a, b in zip(found, arithmetic(), strict=True))
    assert mode.seen  # the large one with a generator of its own, drawn as torch does


def test_it_is_said_when_there_was_nothing_large() -> None:
    with Quicker() as mode:
        F.dropout(torch.randn(100), 0.5)
    assert not mode.seen
