"""The residual net: what it takes, what it gives, and that its size is what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lamina.errors import UsageError
from lamina.nets import resnet
from lamina.nets.resnet import Block, ResNet

SIZES = ("small", "medium", "large")


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (3, 33, 47), (3, 64, 64), (1, 96, 96), (3, 106, 87), (3, 224, 224)]
)
@pytest.mark.parametrize("size", SIZES)
def test_a_fitted_net_takes_its_shape_and_gives_its_width(shape, size):
    net = ResNet.fitted(shape, 7, size).eval()
    assert net(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(("side", "left"), [(32, 3), (64, 4), (96, 6), (128, 4), (224, 7)])
def test_the_last_stage_sees_a_few_places(side, left):
    net = ResNet.fitted((3, side, side), 7)
    assert net.stages(net.stem(torch.randn(1, 3, side, side))).shape[2:] == (left, left)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 96, 96), (3, 128, 128)])
@pytest.mark.parametrize("size", SIZES)
def test_its_work_is_what_its_convolutions_do(shape, size):
    """Sides that halve without a rest: counted by hooks."""
    net, done = ResNet.fitted(shape, 7, size).eval(), 0

    def count(module, inputs, output):
        nonlocal done
        done += output[0].numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    net(torch.zeros(1, *shape))
    assert done == resnet.work(shape, size)


def test_larger_sizes_are_larger():
    made = [sum(p.numel() for p in ResNet.fitted((3, 32, 32), 10, size).parameters()) for size in SIZES]
    assert made == sorted(set(made))
    with pytest.raises(UsageError, match="small"):
        ResNet.fitted((3, 32, 32), 10, "smal")


def test_a_block_begins_as_the_identity_and_is_the_formula():
    block, x = Block(5).train(), torch.rand(4, 5, 6, 7)
    assert torch.equal(block(x), x)  # of what is not negative, as after a relu
    nn.init.uniform_(block.second[1].weight)
    block.eval()
    for part in (block.first[1], block.second[1]):
        part.running_mean.uniform_()
        part.running_var.uniform_(0.5, 2)

    def normalised(y, part):
        mean, var, weight, bias = (
            v[:, None, None] for v in (part.running_mean, part.running_var, part.weight, part.bias)
        )
        return (y - mean) / (var + part.eps).sqrt() * weight + bias

    y = F.relu(normalised(F.conv2d(x, block.first[0].weight, padding=1), block.first[1]))
    y = normalised(F.conv2d(y, block.second[0].weight, padding=1), block.second[1])
    torch.testing.assert_close(block(x), F.relu(x + y))


def test_the_net_of_small_pictures_begins_by_passing_on_what_it_takes():
    """Of its first channels: what a stage takes, the greatest of four places; then the same once more."""
    net, x = ResNet.fitted((3, 32, 32), 4).eval(), torch.rand(2, 3, 32, 32)
    seen = net.stem(x)
    assert seen.shape == (2, 24, 31, 31)
    torch.testing.assert_close(
        net.stages(seen)[:, :24], F.max_pool2d(F.max_pool2d(F.max_pool2d(seen, 2), 2), 2), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(net(x), net.head(net.stages(seen).amax((2, 3))))


def test_the_first_filters_of_small_pictures_find_what_is_uncorrelated():
    smooth = F.avg_pool2d(torch.randn(40, 3, 40, 40, generator=torch.Generator().manual_seed(0)), 5, stride=1)
    net = ResNet.fitted((3, 36, 36), 2)
    net.begin(smooth / smooth.std())
    found = (F.conv2d(smooth / smooth.std(), net.stem[0].weight)).transpose(0, 1).flatten(1)
    assert torch.equal(found[:12], -found[12:]) and not net.stem[0].bias.any()
    shared = torch.cov(found[:12])
    assert (shared - torch.diag(shared.diagonal())).abs().max() < 0.02
    assert (shared.diagonal() > 0.7).all() and (shared.diagonal() < 1.05).all()


def test_its_first_filters_find_what_is_uncorrelated():
    """Of smooth pictures, whose pixels are all alike: each filter's variance is 1, and two of them share nothing."""
    smooth = F.avg_pool2d(torch.randn(40, 3, 40, 40, generator=torch.Generator().manual_seed(0)), 5, stride=1)
    smooth = smooth / smooth.std() + smooth.mean(1, keepdim=True) * 3
    net = ResNet(3, 2, (8, 16), stem=20)
    net.begin(smooth)
    found = F.conv2d(smooth, net.stem[0].weight, stride=2).transpose(0, 1).flatten(1)
    assert torch.equal(found[:10], -found[10:])
    centred = found[:10] - found[:10].mean(1, keepdim=True)
    shared = centred @ centred.T / centred.shape[1]
    assert (shared - torch.diag(shared.diagonal())).abs().max() < 0.01
    assert (shared.diagonal() > 0.7).all() and (shared.diagonal() < 1.001).all()
    before = ResNet(1, 2, (8, 16), stem=40)
    weight = before.stem[0].weight.detach().clone()
    before.begin(torch.randn(9, 1, 20, 20))  # 16 axes in two signs; the other filters stay as they are
    assert torch.equal(before.stem[0].weight[32:], weight[32:]) and not torch.equal(
        before.stem[0].weight[:32], weight[:32]
    )


def test_its_last_layer_sees_the_whole_and_its_quarters():
    net, x = ResNet(3, 4, (8, 16), parts=2).eval(), torch.randn(3, 3, 32, 32)
    seen = net.stages(net.stem(x))
    quarters = [seen[:, :, down, right] for down in (slice(4), slice(4, 8)) for right in (slice(4), slice(4, 8))]
    means = [seen.mean((2, 3)), *(part.mean((2, 3)) for part in quarters)]
    features = torch.stack(means[1:], 2).flatten(1)  # a channel's quarters side by side
    torch.testing.assert_close(net(x), net.head(torch.cat([means[0], features], 1)))
    alone = ResNet(3, 4, (8, 16)).eval()
    torch.testing.assert_close(alone(x), alone.head(alone.stages(alone.stem(x)).mean((2, 3))))


def test_mirrored_answers_are_the_same_for_a_picture_and_its_mirror_image():
    x = torch.randn(3, 3, 32, 32)
    plain, mirrored = ResNet(3, 4, (8, 16)), ResNet(3, 4, (8, 16), mirrored=True)
    mirrored.load_state_dict(plain.state_dict())
    plain.eval(), mirrored.eval()
    expected = (plain(x) + plain(x.flip(3))) / 2
    torch.testing.assert_close(mirrored(x), expected)
    torch.testing.assert_close(mirrored(x.flip(3)), expected)
    assert not torch.allclose(plain(x), plain(x.flip(3)))
    plain.train(), mirrored.train()
    assert torch.equal(mirrored(x), plain(x))  # while it learns, once is enough


def test_it_comes_back_from_its_seed_and_from_its_state_dict():
    torch.manual_seed(3)
    one = ResNet.fitted((3, 32, 32), 4)
    torch.manual_seed(3)
    two, x = ResNet.fitted((3, 32, 32), 4), torch.randn(5, 3, 32, 32)
    other = ResNet.fitted((3, 32, 32), 4)
    assert torch.equal(one.eval()(x), two.eval()(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other.eval()(x))


def test_it_learns_where_a_stroke_runs():
    """Strokes that run up or across, anywhere in the picture."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.zeros(64, 1, 32, 32), torch.arange(64) % 2
    for k in range(64):
        place = int(torch.randint(2, 30, (), generator=generator))
        x[k, 0, place] = 1
        if y[k]:
            x[k, 0] = x[k, 0].T.clone()
    torch.manual_seed(0)
    net = ResNet(1, 2, (8, 16), stem=8)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net.eval()(x).argmax(1) == y).double().mean() > 0.95


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"widths": ()}, "at least one stage"), ({"widths": "8,x"}, "whole numbers"), ({"blocks": 0}, "1 or more"),
     ({"parts": 0}, "1 or more"),
     ({"halvings": 3}, "1 or 2 halvings"), ({"dropout": 1.0}, "below 1")],
)  # fmt: skip
def test_what_cannot_be_built_says_so(arguments, says):
    with pytest.raises(UsageError, match=says):
        ResNet(3, 4, **arguments)


@pytest.mark.parametrize("shape", [(10,), (3, 32), (3, 4, 32)])
def test_it_takes_only_pictures(shape):
    with pytest.raises(UsageError, match="cannot take inputs of shape"):
        ResNet.fitted(shape, 2)
