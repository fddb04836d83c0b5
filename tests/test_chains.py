"""Which layer alone reads what another gives."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lamina.chains import followers, put, twin

KINDS = {nn.Linear, nn.ReLU, nn.Tanh, nn.BatchNorm1d}


class Net(nn.Module):
    def __init__(self, way, inplace=False):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.relu, self.tanh = nn.BatchNorm1d(4), nn.ReLU(inplace=inplace), nn.Tanh()
        self.way = way

    def forward(self, x):
        return self.way(self, x)


def found(way, **options):
    return followers(Net(way, **options).eval(), (torch.randn(3, 4),), KINDS)


def test_layers_that_follow_each_other_are_found_however_they_are_called():
    assert followers(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(3, 4),), KINDS) == {
        "0": "1", "1": "2",
    }  # fmt: skip
    assert found(lambda net, x: net.relu(net.norm(net.first(x)))) == {"first": "norm", "norm": "relu"}
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Identity(), nn.Sequential(nn.ReLU()))
    assert followers(nested, (torch.randn(3, 4),), KINDS) == {"0.0": "2.0"}


def in_turn(net, x):
    y = net.first(x)
    return net.relu(y) if len(x) > 2 else net.tanh(y)


def between(net, x):
    return net.relu(net.first(x) * 2)


def past(net, x):
    y = net.first(x)
    return net.relu(y) + y


def both(net, x):
    y = net.first(x)
    return net.relu(y) + net.tanh(y)


def before(net, x):
    y = net.first(x)
    size = y.abs().sum()
    return net.relu(y) * size


def again(net, x):
    return net.relu(net.first(net.relu(x)))


def twice(net, x):
    return net.relu(net.first(net.first(x)))


def by_hand(net, x):
    return F.relu(F.linear(x, net.first.weight, net.first.bias))


def after(net, x):
    y = net.first(x)
    z = net.relu(y)
    return z + 0 * y.sum()


@pytest.mark.parametrize(
    ("way", "apart", "in_place"),
    [
        (in_turn, {"first": "relu"}, {"first": "relu"}),
        (between, {}, {}),
        (past, {}, {"first": "relu"}),  # who reads it afterwards sees what the relu gave
        (both, {}, {"first": "relu"}),
        (before, {}, {}),
        (again, {}, {}),  # the relu is called for something else, too
        (twice, {}, {}),
        (by_hand, {}, {}),
        (after, {}, {"first": "relu"}),
    ],
)
def test_nobody_else_may_read_what_goes_between(way, apart, in_place):
    assert found(way) == apart
    assert found(way, inplace=True) == in_place


def test_the_net_is_left_as_it_was():
    net = Net(in_turn).eval()
    weights, modules = copy.deepcopy(net.state_dict()), list(net.modules())
    followers(net, (torch.randn(3, 4),), KINDS)
    assert list(net.modules()) == modules
    assert all(torch.equal(weights[name], weight) for name, weight in net.state_dict().items())
    assert not any(module._forward_hooks for module in modules)


def test_a_twin_has_its_own_modules_and_the_same_weights():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    net.append(net[0])  # twice in it
    copied = twin(net)
    assert copied[0] is not net[0] and copied[0] is copied[2] and copied[1][0].weight is net[1][0].weight
    put(copied, {copied[0]: nn.Identity()})
    assert isinstance(copied[0], nn.Identity) and copied[2] is copied[0] and isinstance(net[0], nn.Linear)
