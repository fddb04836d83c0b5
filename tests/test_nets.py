"""Nets: every file of the folder keeps the contract, and the two nets are what they say."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lamina import activations
from lamina.errors import UsageError
from lamina.names import known, module
from lamina.nets.convnet import ConvNet
from lamina.nets.mlp import MLP

SIZES = ("small", "medium", "large")


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


def layers(net, kind):
    return [part for part in net.modules() if isinstance(part, kind)]


def learn(net, x, y, steps, rate=0.01):
    """The share of right answers after some steps of Adam on one batch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return (net.eval()(x).argmax(1) == y).double().mean().item()


# --- The folder -------------------------------------------------------------------------------------------------------


def test_the_folder_has_the_two_nets():
    assert {"mlp", "convnet"} <= set(known("nets"))


@pytest.mark.parametrize("name", ["mlp", "convnet"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 24)])
@pytest.mark.parametrize("size", SIZES)
def test_a_fitted_net_takes_its_shape_and_gives_its_width(name, shape, size):
    net = module("nets", name).NET.fitted(shape, 7, size)
    assert isinstance(net, nn.Module)
    assert net(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_larger_sizes_are_larger(name):
    made = [parameters(module("nets", name).NET.fitted((1, 28, 28), 10, size)) for size in SIZES]
    assert made == sorted(set(made))
    with pytest.raises(UsageError, match="small"):
        module("nets", name).NET.fitted((1, 28, 28), 10, "smal")


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_a_net_comes_back_from_its_seed_and_from_its_state_dict(name):
    make = module("nets", name).NET.fitted
    torch.manual_seed(3)
    one = make((1, 12, 12), 4)
    torch.manual_seed(3)
    two = make((1, 12, 12), 4, "small")
    other = make((1, 12, 12), 4)
    x = torch.randn(5, 1, 12, 12)
    assert torch.equal(one.eval()(x), two.eval()(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other.eval()(x))
    assert all(parameter.is_contiguous() for parameter in one.parameters())


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_every_activation_that_keeps_a_shape_fits_and_the_others_say_so(name):
    make = module("nets", name).NET.fitted
    refused = []
    for activation in [*activations.names(), nn.PReLU(init=0.1), nn.ELU]:
        if activation == "Threshold":
            continue  # needs arguments: given as a module
        try:
            net = make((1, 8, 8), 3, activation=activation)
        except UsageError:
            refused.append(activation)
        else:
            assert net(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert refused == (["GLU", "Softmax2d"] if name == "mlp" else ["GLU"])
    assert make((1, 8, 8), 3, activation=nn.Threshold(0.1, 0.0))


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_each_layer_has_an_activation_of_its_own(name):
    slopes = layers(module("nets", name).NET.fitted((1, 16, 16), 3, activation=nn.PReLU()), nn.PReLU)
    assert len(slopes) > 1 and len({id(slope.weight) for slope in slopes}) == len(slopes)


# --- MLP --------------------------------------------------------------------------------------------------------------


def test_the_opening_net():
    net = MLP(784, 10)
    assert [(layer.in_features, layer.out_features) for layer in layers(net, nn.Linear)] == [
        (784, 128),
        (128, 64),
        (64, 10),
    ]
    assert [type(part) for part in net.layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert parameters(net) == 784 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10


def test_the_forward_pass_is_the_formula():
    net = MLP(6, 2, (5, 4), activation="tanh")
    x = torch.randn(3, 2, 3)
    first, second, last = layers(net, nn.Linear)
    h = torch.tanh(x.reshape(3, 6) @ first.weight.T + first.bias)
    h = torch.tanh(h @ second.weight.T + second.bias)
    torch.testing.assert_close(net(x), h @ last.weight.T + last.bias)


def test_parts_stand_in_their_order():
    net = MLP(4, 2, (8,), dropout=0.5, normalisation="batch", input_dropout=0.2)
    assert [type(part) for part in net.layers] == [
        nn.Dropout,
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
    ]
    assert [part.p for part in layers(net, nn.Dropout)] == [0.2, 0.5]
    assert type(MLP(4, 2, (8,), normalisation="layer").layers[1]) is nn.LayerNorm


@pytest.mark.parametrize(
    "hidden, widths",
    [("128,64", [128, 64]), ("32", [32]), (16, [16]), ("8, 4,", [8, 4]), ("", []), ((), []), ([3, 2, 1], [3, 2, 1])],
)
def test_widths_as_they_come_from_the_command_line(hidden, widths):
    assert [layer.out_features for layer in layers(MLP(5, 2, hidden), nn.Linear)] == [*widths, 2]


def test_sizes_and_arguments_of_a_fitted_mlp():
    widths = {size: [p.out_features for p in layers(MLP.fitted((3, 4, 4), 5, size), nn.Linear)] for size in SIZES}
    assert widths == {"small": [128, 64, 5], "medium": [512, 512, 5], "large": [1024, 1024, 512, 5]}
    net = MLP.fitted((7,), 1, "large", hidden="9", dropout=0.1)
    assert [layer.out_features for layer in layers(net, nn.Linear)] == [9, 1] and layers(net, nn.Dropout)


def test_an_mlp_learns_what_no_linear_net_can():
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)))
    y = (x.sum(1) == 1).long()
    torch.manual_seed(0)
    assert learn(MLP(2, 2, (16,)), x, y, 200) == 1
    assert learn(MLP(2, 2, ()), x, y, 200) < 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"inputs": 0}, "0-128"),
        ({"hidden": (8, 0)}, "8-0"),
        ({"hidden": "8,wide"}, "8,wide"),
        ({"hidden": None}, "None"),
        ({"outputs": -1}, "-1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"input_dropout": -0.1}, "input_dropout"),
        ({"normalisation": "bach"}, "batch"),
        ({"activation": "rellu"}, "relu"),
    ],
)
def test_an_mlp_that_cannot_be_built(arguments, says):
    with pytest.raises(UsageError, match=says):
        MLP(**{"inputs": 4, "outputs": 2, **arguments})


# --- ConvNet ----------------------------------------------------------------------------------------------------------


def widths(net):
    return [stage.halve[0].out_channels for stage in net.stages]


@pytest.mark.parametrize(
    "shape, size, expected",
    [
        ((1, 8, 8), "small", [32, 64]),
        ((1, 28, 28), "small", [16, 32, 64]),
        ((3, 32, 32), "medium", [32, 64, 128]),
        ((3, 64, 64), "small", [8, 16, 32, 64]),
        ((1, 64, 9), "small", [32, 64]),
        ((1, 4, 4), "large", [256]),
    ],
)
def test_the_number_of_stages_fits_the_picture(shape, size, expected):
    net = ConvNet.fitted(shape, 10, size)
    assert widths(net) == expected
    assert net(torch.randn(2, *shape)).shape == (2, 10)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(2, 70), st.integers(2, 70))
def test_a_fitted_convnet_takes_every_picture(channels, height, width):
    net = ConvNet.fitted((channels, height, width), 3)
    assert net(torch.randn(2, channels, height, width)).isfinite().all()


def test_the_default_convnet_has_the_parameters_it_says():
    assert parameters(ConvNet(1, 10)) == 72_666
    assert widths(ConvNet(1, 10, "8,16")) == [8, 16] and widths(ConvNet(1, 10, 8)) == [8]


def test_a_stage_adds_its_refinement_and_the_head_reads_the_mean():
    net = ConvNet(1, 3, (4,)).eval()
    x = torch.randn(2, 1, 6, 6)
    halved = net.stages[0].halve(x)
    assert halved.shape == (2, 4, 3, 3)
    features = (halved + net.stages[0].refine(halved)).flatten(2).mean(2)
    torch.testing.assert_close(net(x), features @ net.head.weight.T + net.head.bias)


def test_the_channels_lie_innermost_between_the_stages():
    net, seen = ConvNet(1, 3, (8, 8)), []
    net.stages[1].register_forward_pre_hook(lambda stage, inputs: seen.append(inputs[0]))
    net(torch.randn(2, 1, 16, 16))
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()


def test_the_answer_does_not_depend_on_the_order_in_memory_or_on_the_batch():
    net = ConvNet(3, 5).eval()
    x = torch.randn(4, 3, 28, 28)
    torch.testing.assert_close(net(x), net(x.to(memory_format=torch.channels_last)))
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


def test_a_convnet_learns_where_a_stroke_runs():
    """Upright or lying strokes anywhere: the pixels' mean tells nothing."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.zeros(64, 1, 8, 8), torch.arange(64) % 2
    for i, place in enumerate(torch.randint(8, (64,), generator=generator)):
        x[i, 0, place if y[i] else slice(None), slice(None) if y[i] else place] = 1
    torch.manual_seed(0)
    assert learn(ConvNet(1, 2, (8, 16), dropout=0.0), x, y, 60) == 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"channels": 0}, "0 channels"),
        ({"widths": ()}, "at least one stage"),
        ({"widths": "16,wide"}, "16,wide"),
        ({"widths": (16, 0)}, "16, 0"),
        ({"outputs": 0}, "0 outputs"),
        ({"dropout": 1}, "dropout"),
        ({"activation": "glu"}, "keep the shape"),
    ],
)
def test_a_convnet_that_cannot_be_built(arguments, says):
    with pytest.raises(UsageError, match=says):
        ConvNet(**{"channels": 1, "outputs": 2, **arguments})


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 1, 8), (1, 3, 8, 8)])
def test_a_convnet_takes_only_pictures(shape):
    with pytest.raises(UsageError, match=r"\(C, H, W\)"):
        ConvNet.fitted(shape, 2)
