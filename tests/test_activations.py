"""Activations: every one of torch's by name, and gains that keep the size of a signal."""

import math

import pytest
import torch
from torch import nn
from torch.nn.modules import activation as torch_activations

from lamina import activations
from lamina.errors import UsageError

NEEDED = {"Threshold": {"threshold": 0.1, "value": 0.0}}


@pytest.mark.parametrize("name", [name for name in torch_activations.__all__ if name != "MultiheadAttention"])
def test_every_activation_that_torch_exports_is_reachable_however_it_is_written(name):
    cls = getattr(nn, name)
    snake = "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))
    for spelling in (name, name.lower(), name.upper(), snake, name.lower() + "_"):
        assert type(activations.make(spelling, **NEEDED.get(name, {}))) is cls
    assert name in activations.names()


def test_attention_is_no_activation():
    with pytest.raises(UsageError):
        activations.make("multihead_attention")
    assert "MultiheadAttention" not in activations.names()


@pytest.mark.parametrize(
    "spelling, cls",
    [("swish", nn.SiLU), ("leaky-relu", nn.LeakyReLU), ("identity", nn.Identity), ("linear", nn.Identity)],
)
def test_the_fields_other_names(spelling, cls):
    assert type(activations.make(spelling)) is cls


def test_arguments_reach_the_activation():
    assert activations.make("leaky_relu", negative_slope=0.3)(torch.tensor(-1.0)).item() == pytest.approx(-0.3)


def test_a_mistyped_name_gets_the_near_one():
    with pytest.raises(UsageError, match="leakyrelu"):
        activations.make("leaky_rulu")


def test_a_wrong_or_missing_argument_shows_the_signature():
    with pytest.raises(UsageError, match="negative_slope"):
        activations.make("leaky_relu", slope=0.3)
    with pytest.raises(UsageError, match="threshold: float"):
        activations.make("threshold")


def test_a_module_is_copied_and_a_maker_is_called():
    mine = nn.PReLU(init=0.4)
    made = activations.make(mine)
    assert made is not mine and made.weight is not mine.weight and made.weight.item() == mine.weight.item()
    assert type(activations.make(nn.GELU)) is nn.GELU


@pytest.mark.filterwarnings("error")
def test_a_softmax_works_over_the_features_and_does_not_warn():
    x = torch.randn(4, 3, 2)
    assert torch.equal(activations.make("softmax")(x), x.softmax(1))
    assert torch.equal(activations.make("softmax", dim=2)(x), x.softmax(2))


def test_between_layers_an_activation_keeps_the_shape():
    before = torch.random.get_rng_state()
    assert type(activations.hidden("rrelu", 1, 8)) is nn.RReLU
    assert torch.equal(before, torch.random.get_rng_state()), "building draws no random number"
    assert activations.hidden("relu", 1, 8).training
    assert type(activations.hidden("softmax2d", 1, 8, 4, 4)) is nn.Softmax2d
    for misfit, shape in [("glu", (1, 8)), ("glu", (1, 8, 4, 4)), ("softmax2d", (1, 8))]:
        with pytest.raises(UsageError, match="keep the shape"):
            activations.hidden(misfit, *shape)


def test_the_measured_gain_of_relu_is_that_of_he_et_al():
    assert activations.measured_gain(nn.ReLU()) == pytest.approx(nn.init.calculate_gain("relu"), rel=1e-6)
    assert activations.measured_gain(nn.LeakyReLU(0.3)) == pytest.approx(
        nn.init.calculate_gain("leaky_relu", 0.3), rel=1e-6
    )
    assert activations.measured_gain(nn.Identity()) == pytest.approx(1, rel=1e-9)


def test_gains_that_torch_knows_are_torchs():
    for name in ("relu", "tanh", "sigmoid", "selu", "leaky_relu"):
        assert activations.gain(name) == pytest.approx(nn.init.calculate_gain(name))
    assert activations.gain("leaky_relu", negative_slope=0.5) == pytest.approx(math.sqrt(2 / 1.25))
    assert activations.gain(nn.LeakyReLU(0.5)) == activations.gain("leaky_relu", negative_slope=0.5)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "elu", "softplus", "prelu", "hardswish", "tanhshrink"])
def test_a_measured_gain_keeps_the_second_moment_of_a_normal_signal(name):
    z = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        power = activations.make(name).eval()(z).square().mean().item()
    assert activations.gain(name) == pytest.approx(1 / math.sqrt(power), rel=0.01)


def test_every_activation_has_a_gain_or_says_why_not():
    for name in activations.names():
        gain = activations.gain(name, **NEEDED.get(name, {}))
        assert math.isfinite(gain) and gain > 0
    with pytest.raises(UsageError, match="no gain"):
        activations.gain("threshold", threshold=100.0, value=0.0)


def test_a_gain_does_not_change_the_module_it_is_asked_of():
    module = nn.PReLU()
    activations.gain(module)
    assert module.weight.dtype == torch.float32 and module.training
