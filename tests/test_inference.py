"""Asking a net: portions that keep what is on the way small, and a layout that changes nothing but the time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamina.domains.base import Domain, Encoded
from lamina.inference import portion, quickest
from lamina.targets.classes import Classes


def convnet(*last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), *last, nn.Linear(8 * 36, 4)).eval()


class Functional(nn.Module):
    """The largest tensor (6 MB an example) is made by a function and seen by no module; the weights are larger still."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1_000_000, 2))

    def forward(self, x):
        return F.relu(x.repeat(1, 1500).cumsum(1)).sum(1, keepdim=True) @ self.weight.t()[:1, :2]


@pytest.mark.parametrize(
    ("net", "width", "expected"),
    [
        (nn.Linear(4, 2), 4, 1024),  # tiny: the most
        (nn.Linear(4, 10_000), 4, 128),  # 40 kB an example: 250 in 10 MB
        (nn.Sequential(nn.Linear(4, 100_000), nn.Linear(100_000, 2)), 4, 16),  # 400 kB: 25
        (nn.Identity(), 50_000, 32),  # 200 kB of input: 50
        (Functional(), 1000, 16),  # 1 in 10 MB: the fewest
    ],
)
def test_a_portion_keeps_the_largest_tensor_on_the_way_below_ten_megabytes(net, width, expected):
    assert portion(net, (torch.zeros(2, width),)) == expected


def test_a_portion_is_not_made_small_by_weights():
    net = Functional()
    assert portion(net, (torch.zeros(2, 1),)) == portion(nn.Linear(1, 1500), (torch.zeros(2, 1),)) == 1024


def test_a_copy_with_the_channels_last_answers_the_same_and_the_net_is_left_alone():
    net, x = convnet(nn.Flatten()), torch.randn(9, 3, 10, 10)
    before = [weight.stride() for weight in net.parameters()]
    quick = quickest(net, (x,))
    assert quick is not net
    assert quick[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(quick(x), net(x), atol=1e-5)
    assert [weight.stride() for weight in net.parameters()] == before


class View(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


class Uncopied(nn.Flatten):
    def __deepcopy__(self, memory):
        raise TypeError("one of a kind")


class Strides(nn.Module):
    """Gives other numbers where the layout is another."""

    def forward(self, x):
        return x.flatten(1) + float(x.stride()[1] == 1)


@pytest.mark.parametrize("odd", [View(), Uncopied(), Strides()], ids=["fails", "cannot be copied", "answers otherwise"])
def test_a_net_that_does_not_bear_the_layout_stays_as_it_is(odd):
    net = convnet(odd)
    assert quickest(net, (torch.randn(4, 3, 10, 10),)) is net


def test_a_net_without_convolutions_is_not_copied():
    net = nn.Linear(3, 2)
    assert quickest(net, (torch.zeros(2, 3),)) is net
    point = nn.Conv2d(3, 3, 1)  # its weights are in both layouts at once
    assert quickest(point, (torch.zeros(2, 3, 4, 4),)) is point


class Plain(Domain):
    def encode(self, inputs):
        return inputs


@pytest.mark.parametrize("count", [1, 16, 17, 700])
def test_answers_do_not_depend_on_the_portion(count):
    """Against the net asked once for all; enough examples for the other layout, and too few."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(count + 5, 3, 10, 10)).astype(np.float32))
    truth = torch.from_numpy(rng.integers(0, 4, count + 5))
    net, target = convnet(nn.Flatten()), Classes(labels=list("abcd"), values=list("abcd"))
    rows = rng.permutation(count + 5)[:count]
    with torch.no_grad():
        expected = net(x[rows]).softmax(1).numpy()
    for size in (None, 1, 64, 10_000):
        options = {} if size is None else {"batch_size": size}
        found, same = Plain().answers(net, Encoded((x,), truth), target, rows, **options)
        assert np.allclose(found.probabilities, expected, atol=1e-5)
        assert np.array_equal(same, truth[rows])


def test_validation_in_the_other_layout_is_the_loss_and_the_score_of_all():
    x, truth = torch.randn(300, 3, 10, 10), torch.randint(0, 4, (300,))
    net, target, domain = convnet(nn.Flatten()), Classes(labels=list("abcd"), values=list("abcd")), Plain()
    walk = domain.batches(net, Encoded((x,), truth), None, batch_size=50, shuffle=False)
    found = domain.validate(net, walk, target, nn.CrossEntropyLoss())
    with torch.no_grad():
        output = net(x)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(output, truth)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((output.argmax(1) == truth).float().mean()))


def test_asked_exactly_the_net_itself_answers_to_the_bit():
    x, truth = torch.randn(300, 3, 10, 10), torch.randint(0, 4, (300,))
    net, target, domain = convnet(nn.Flatten()), Classes(labels=list("abcd"), values=list("abcd")), Plain()
    asked = []
    net.register_forward_hook(lambda module, inputs, output: asked.append(module is net))
    domain.answers(net, Encoded((x,), truth), target, batch_size=50, exact=True)
    walk = domain.batches(net, Encoded((x,), truth), None, batch_size=50, shuffle=False)
    domain.validate(net, walk, target, nn.CrossEntropyLoss(), exact=True)
    assert len(asked) == 12 and all(asked)
