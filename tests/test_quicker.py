"""What is replaced means the same and is at least as exact; all else has torch's bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lamina
from lamina import Batches, engine, lanes, masks, quicker
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
    assert bool(mode.seen) == (gradient.numel() >= quicker.LARGE)
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


def bagged(length: int, width: int = 3, whole: torch.dtype = torch.int64, dtype: torch.dtype = torch.float32, *,
           flat: bool = False, weighed: bool = False, **options: object) -> Tensor:  # fmt: skip
    """The gradient of a table of 50 rows, looked up so many times: in bags of 8, or of any size, some of them empty."""
    torch.manual_seed(0)
    indices = (torch.rand(length, dtype=torch.float64) ** 3 * 50).to(whole)
    table = torch.randn(50, width).to(dtype).requires_grad_()
    weights = torch.rand(length).to(dtype) if weighed else None
    offsets = torch.cat([torch.zeros(2), torch.randint(0, length, (20,)).sort().values]).to(whole) if flat else None
    if offsets is not None and options.get("include_last_offset"):
        offsets[-1] = length
    if not flat:
        indices, weights = indices.view(-1, 8), None if weights is None else weights.view(-1, 8)
    found = F.embedding_bag(indices, table, offsets, per_sample_weights=weights, **options)  # type: ignore[arg-type]
    return torch.autograd.grad(found, [table], torch.randn(found.shape).to(dtype))[0]


BAGS: list[dict[str, Any]] = [
    {"mode": "sum"}, {"mode": "mean"}, {"mode": "sum", "weighed": True}, {"mode": "mean", "padding_idx": 0},
    {"mode": "sum", "padding_idx": 3, "weighed": True}, {"mode": "mean", "flat": True}, {"mode": "sum", "flat": True},
    {"mode": "mean", "flat": True, "include_last_offset": True, "whole": torch.int32},
    {"mode": "sum", "flat": True, "include_last_offset": True, "weighed": True}, {"mode": "mean", "width": 20},
]  # fmt: skip


@pytest.mark.parametrize("length", [80, 4000])
@pytest.mark.parametrize("options", BAGS)
def test_the_gradient_of_a_bag_is_that_of_double_precision(options: dict[str, Any], length: int) -> None:
    truth, plain = bagged(length, dtype=torch.float64, **options), bagged(length, **options)
    with Quicker() as mode:
        found = bagged(length, **options)
    assert bool(mode.seen) is (length >= quicker.MANY) and (mode.seen or torch.equal(found, plain))
    assert float((found - truth).norm() / truth.norm()) < 1e-5
    assert float((found - truth).norm()) <= 4 * float(
        (plain - truth).norm()
    )  # one that adds up fused is a little nearer
    assert torch.equal(found == 0, plain == 0)


@pytest.mark.parametrize("options", [
    {"mode": "max"}, {"mode": "sum", "scale_grad_by_freq": True}, {"mode": "sum", "sparse": True},
    {"mode": "mean", "dtype": torch.bfloat16},
])  # fmt: skip
def test_other_bags_are_torchs(options: dict[str, Any]) -> None:
    plain = bagged(4000, **options)
    with Quicker():
        found = bagged(4000, **options)
    assert torch.equal(found.to_dense(), plain.to_dense())


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.EmbeddingBag(50, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(x))


def test_a_step_with_a_bag_is_recorded_with_its_gradient_where_it_is_wanted() -> None:
    torch.manual_seed(0)
    net, x, y = Bags(), torch.randint(0, 50, (320, 40)), torch.randint(0, 3, (320,))
    optimizer, objective = torch.optim.Adam(net.parameters(), fused=True), engine.supervised(F.cross_entropy)
    lane = lanes.Lane(net, objective, optimizer)
    for _ in lamina.learn(
        net, Batches(x, y, batch_size=64), optimizer=optimizer, objective=objective, epochs=3, lane=lane
    ):
        made = [recording.tape for recording in lane._recordings.values()]
    assert lane.recorded and len(made) == 1 and "copy" not in made[0].names


@pytest.mark.parametrize("net, expected", [
    (nn.EmbeddingBag(5, 2), True),
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
