"""A rewritten recording gives the bits of the function, whatever the numbers; and it is rewritten only where that holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina import tape
from lamina.rewrites import rewritten


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def prove(
    function: Callable[[], list[Tensor]], x: Tensor, values: Callable[[Tensor], Tensor] = torch.randn_like
) -> list[str]:
    """The names of what is left to do, after replays on other values were compared with the function."""
    operations, kept = tape.record(function)
    fewer = rewritten(operations, set(map(tape.storage, kept)))
    made = tape.Tape(fewer, kept)
    for _ in range(3):
        with torch.no_grad():
            x.copy_(values(x))
        generator = torch.get_rng_state()
        expected = [bits(tensor) for tensor in function()]
        torch.set_rng_state(generator)
        made.replay()
        assert [bits(tensor) for tensor in made.given] == expected
    return made.names


def short(names: list[str], *words: str) -> list[str]:
    """Only the operations with one of these words in their names, and that word."""
    return [word for name in names for word in words if word in name]


def net_of(*layers: nn.Module, last: bool = True) -> nn.Sequential:
    net = nn.Sequential(*layers)
    return net.to(memory_format=torch.channels_last) if last else net


def gradients(net: nn.Module, x: Tensor) -> Callable[[], list[Tensor]]:
    def function() -> list[Tensor]:
        value = (net(x) * torch.linspace(-1, 1, 7)).sum()
        return [value.detach(), *torch.autograd.grad(value, list(net.parameters()))]

    return function


def convnet(pool: nn.Module, last: bool, size: int) -> nn.Sequential:
    return net_of(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), pool, nn.Dropout(0.25), nn.Flatten(),
        nn.Linear(size, 7), last=last,
    )  # fmt: skip


POOLS = {
    "halves": (nn.MaxPool2d(2), 16 * 6 * 6),
    "overlapping": (nn.MaxPool2d(3, stride=2, padding=1), 16 * 6 * 6),
    "dilated": (nn.MaxPool2d(2, dilation=2), 16 * 5 * 5),
    "with a rest": (nn.MaxPool2d(5, ceil_mode=True), 16 * 3 * 3),
}
VALUES = {
    "normal": torch.randn_like,
    "ties": lambda x: torch.randint_like(x, -1, 2),
    "nothing": torch.zeros_like,
    "NaN": lambda x: torch.where(torch.rand_like(x) < 0.02, torch.nan, torch.randn_like(x)),
    "huge": lambda x: torch.randn_like(x) * 1e30,
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", POOLS)
def test_a_convnet_keeps_its_bits_and_takes_fewer_passes(name: str, last: bool, values: str) -> None:
    pool, size = POOLS[name]
    x = torch.randn(4, 2, 16, 16)
    names = prove(gradients(convnet(pool, last, size), x), x, VALUES[values])
    assert short(names, "relu", "pool", "threshold") == ["relu", "pool", "relu", "threshold", "pool", "threshold"]


def test_a_product_before_the_unpooling_is_written_in_its_layout() -> None:
    x = torch.randn(4, 2, 16, 16)
    pool, size = POOLS["halves"]
    operations, _ = tape.record(gradients(convnet(pool, True, size), x))
    found = rewritten(operations, set())
    number = next(k for k, o in enumerate(found) if "threshold_backward" in str(o.function) and o.results[0].ndim == 4)
    product = found[number].arguments[0]
    assert product.is_contiguous(memory_format=torch.channels_last) and not product.is_contiguous()


def passes(function: Callable[[], list[Tensor]], x: Tensor) -> list[str]:
    return short(prove(function, x), "relu", "pool", "threshold")


PLAIN = ["relu", "pool", "pool", "threshold"]
BACKWARD = ["relu", "pool", "threshold", "pool"]
BOTH = ["pool", "relu", "threshold", "pool"]


def differentiated(value: Callable[[Tensor, Tensor], Tensor], *others: int) -> Callable[[Tensor], list[Tensor]]:
    """Gradients of a function of an activation and what is pooled of it."""

    def function(x: Tensor) -> list[Tensor]:
        start = x.detach().requires_grad_()
        raw = start * 1
        active = F.relu(raw)
        found = value(active, F.max_pool2d(active, 2))
        wanted = [start, active, raw]
        return [found.detach(), *torch.autograd.grad(found, [wanted[k] for k in (0, *others)])]

    return function


CASES = {
    "alone": (differentiated(lambda active, pooled: pooled.square().sum()), BOTH),
    "the gradient of the activation is wanted": (differentiated(lambda active, pooled: pooled.square().sum(), 1), PLAIN),
    "the activation is needed elsewhere": (
        differentiated(lambda active, pooled: pooled.square().sum() + active.detach().sin().sum()), BACKWARD),
    "its gradient comes from elsewhere, too": (
        differentiated(lambda active, pooled: pooled.square().sum() + active.sin().sum()), PLAIN),
    "what is pooled is written over": (differentiated(lambda active, pooled: pooled.mul_(-1).square().sum()), PLAIN),
    "a part of the gradient": (differentiated(lambda active, pooled: pooled[:, :1].square().sum()), BOTH),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_needed_elsewhere_stays(name: str) -> None:
    function, expected = CASES[name]
    x = torch.randn(2, 2, 8, 8)
    assert passes(lambda: function(x), x) == expected


def test_what_the_activation_reads_and_is_written_over_afterwards_is_not_pooled_later() -> None:
    x, other = torch.randn(2, 2, 8, 8), torch.zeros(2, 2, 8, 8)

    def function() -> list[Tensor]:
        start = x.detach().requires_grad_()
        raw = start * 1
        active = F.relu(raw)
        other.copy_(raw.detach())
        raw.detach().zero_()
        value = F.max_pool2d(active, 2).square().sum()
        return [value.detach(), *torch.autograd.grad(value, [start])]

    assert passes(function, x) == BACKWARD


def test_the_wanted_activation_is_given() -> None:
    x = torch.randn(2, 2, 8, 8)

    def function() -> list[Tensor]:
        start = x.detach().requires_grad_()
        active = F.relu(start * 1)
        value = F.max_pool2d(active, 2).square().sum()
        return [active.detach(), *torch.autograd.grad(value, [start])]

    assert passes(function, x) == BACKWARD
