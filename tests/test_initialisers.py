"""Initialisers: variances by the formulas, torch's own numbers, and nothing touched that should stay."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from lamina import activations
from lamina.errors import UsageError
from lamina.initialisers import initialise, names

WIDE = (400, 300)  # outputs, inputs


def linear(how, seed=0, **arguments):
    net = nn.Linear(WIDE[1], WIDE[0])
    initialise(net, how, seed=seed, **arguments)
    return net.weight.detach()


@pytest.mark.parametrize(
    "how, variance",
    [
        ("kaiming", 2 / 300),
        ("kaiming_normal", 2 / 300),
        ("kaiming_uniform", 2 / 300),
        ("kaiming:fan_out", 2 / 400),
        ("xavier", 2 * 2 / 700),
        ("xavier_normal", 2 * 2 / 700),
        ("xavier_uniform", 2 * 2 / 700),
        ("orthogonal", 2 / 400),
        ("normal", 0.02**2),
        ("normal:0.3", 0.3**2),
        ("uniform:0.6", 0.6**2 / 3),
        ("truncated_normal:0.5", 0.5**2 * 0.774),
    ],
)
def test_the_variance_is_that_of_the_formula(how, variance):
    weight = linear(how, activation="relu")  # gain^2 = 2
    assert weight.var().item() == pytest.approx(variance, rel=0.03)
    assert abs(weight.mean().item()) < 4 * math.sqrt(variance / weight.numel())


@pytest.mark.parametrize(
    "how, theirs",
    [
        ("kaiming_normal", lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
        ("kaiming_uniform", lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu")),
        ("kaiming_uniform:fan_out", lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu")),
        ("xavier_normal", lambda w: nn.init.xavier_normal_(w, gain=math.sqrt(2))),
        ("xavier_uniform", lambda w: nn.init.xavier_uniform_(w, gain=math.sqrt(2))),
        ("orthogonal", lambda w: nn.init.orthogonal_(w, gain=math.sqrt(2))),
    ],
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(30, 20), lambda: nn.Conv2d(5, 7, 3), lambda: nn.Conv1d(4, 6, 5)])
def test_from_the_same_seed_the_numbers_are_torchs(how, theirs, make):
    ours, reference = make(), make()
    initialise(ours, how, seed=11)
    torch.manual_seed(11)
    theirs(reference.weight)
    torch.testing.assert_close(ours.weight, reference.weight, rtol=1e-6, atol=0)


def test_orthogonal_rows_or_columns():
    wide, tall = nn.Linear(50, 20), nn.Conv2d(4, 60, 3)
    initialise(nn.ModuleList([wide, tall]), "orthogonal", activation="tanh", seed=0)
    torch.testing.assert_close(wide.weight @ wide.weight.T, torch.eye(20) * (5 / 3) ** 2, atol=1e-4, rtol=0)
    matrix = tall.weight.flatten(1)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(36) * (5 / 3) ** 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "activation, depth",
    [("relu", 20), ("leaky_relu", 20), ("elu", 20), ("identity", 20), ("gelu", 3), ("silu", 3)],
)
def test_kaiming_keeps_the_size_of_the_signal(activation, depth):
    net = nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(500, 500), activations.make(activation))))
    initialise(net, "kaiming", activation=activation, seed=0)
    with torch.no_grad():  # not the weights' seed, whose numbers are the weights
        x = net(torch.randn(200, 500, generator=torch.Generator().manual_seed(1)))
    assert 0.5 < x.square().mean().item() < 2


def test_biases_are_zero_and_normalisation_is_left_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GRU(4, 5))
    with torch.no_grad():
        net[1].weight.fill_(3), net[1].bias.fill_(2), net[2].bias.fill_(1)
    initialise(net, "xavier", seed=0)
    assert not net[0].bias.any() and not net[3].bias_ih_l0.any() and not net[3].bias_hh_l0.any()
    assert (net[1].weight == 3).all() and (net[1].bias == 2).all() and (net[2].bias == 1).all()


def test_loose_parameters_and_frozen_ones_are_left_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).requires_grad_(False))
    net.register_parameter("loose", nn.Parameter(torch.ones(3, 3)))
    before = net[1].weight.clone(), net[1].bias.clone()
    initialise(net, "normal", seed=0)
    assert (net.loose == 1).all()
    assert torch.equal(net[1].weight, before[0]) and torch.equal(net[1].bias, before[1])


def test_recurrent_weights_are_initialised_gate_by_gate_with_gain_one():
    lstm, cell = nn.LSTM(40, 30, num_layers=2, proj_size=10), nn.GRUCell(20, 30)
    initialise(nn.ModuleList([lstm, cell]), "orthogonal", activation="relu", seed=0)
    for weight in (lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.weight_ih_l1, cell.weight_ih, cell.weight_hh):
        for gate in weight.split(30):  # (30, in): orthonormal rows or columns
            small = gate @ gate.T if gate.shape[1] >= 30 else gate.T @ gate
            torch.testing.assert_close(small, torch.eye(len(small)), atol=1e-5, rtol=0)
    torch.testing.assert_close(lstm.weight_hr_l0 @ lstm.weight_hr_l0.T, torch.eye(10), atol=1e-5, rtol=0)


def test_xavier_counts_the_outputs_of_one_gate_and_one_projection():
    lstm, attention = nn.LSTM(100, 100), nn.MultiheadAttention(100, 4)
    initialise(nn.ModuleList([lstm, attention]), "xavier", activation="relu", seed=0)
    for weight in (lstm.weight_hh_l0, attention.in_proj_weight):
        assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / 200), rel=1e-2)
    assert not attention.in_proj_bias.any()


def test_attention_with_its_own_widths():
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    initialise(attention, "normal:0.001", seed=0)
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        assert getattr(attention, name).abs().max() < 0.01


def test_grouped_and_transposed_convolutions_keep_the_size_of_the_signal():
    x = torch.randn(8, 64, 20, 20, generator=torch.Generator().manual_seed(0))
    for layer in (
        nn.Conv2d(64, 128, 3, groups=4),
        nn.Conv2d(64, 64, 3, groups=64),
        nn.ConvTranspose2d(64, 256, 3),
        nn.ConvTranspose2d(64, 32, 3, groups=8),
    ):
        initialise(layer, "kaiming", activation="identity", seed=0)
        with torch.no_grad():
            y = layer(x)[:, :, 4:-4, 4:-4]  # away from the border, where all terms of the sum are there
        assert y.square().mean().item() == pytest.approx(1, rel=0.15), layer


def test_an_embeddings_padding_row_stays_zero():
    embedding = nn.Embedding(10, 4, padding_idx=3)
    initialise(embedding, "normal:1", seed=0)
    assert not embedding.weight[3].any() and embedding.weight.any(1).sum() == 9


def test_a_shared_weight_is_set_once():
    net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False))
    net[1].weight = net[0].weight
    initialise(net, "kaiming", activation="relu", seed=0)
    alone = nn.Embedding(50, 8)
    initialise(alone, "kaiming", activation="relu", seed=0)
    assert torch.equal(net[1].weight, alone.weight)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    first, second, third = linear("kaiming", seed=1), linear("kaiming", seed=1), linear("kaiming", seed=2)
    assert torch.equal(first, second) and not torch.equal(first, third)
    net = nn.Linear(2, 2)
    before = torch.random.get_rng_state()
    initialise(net, "orthogonal", seed=3)
    initialise(net, lambda module: nn.init.normal_(module.weight), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    initialise(net, "normal")
    assert not torch.equal(before, torch.random.get_rng_state()), "without a seed the global generator is the source"


def test_a_double_precision_and_a_half_precision_net():
    for dtype in (torch.float64, torch.bfloat16):
        net = nn.Linear(300, 400, dtype=dtype)
        initialise(net, "kaiming", seed=0)
        assert net.weight.dtype == dtype
        assert net.weight.double().var().item() == pytest.approx(2 / 300, rel=0.03)


def test_pytorch_leaves_the_net_as_it_was_made():
    net = nn.Linear(3, 2)
    before = net.weight.clone(), net.bias.clone()
    initialise(net, "pytorch")
    assert torch.equal(net.weight, before[0]) and torch.equal(net.bias, before[1])


def test_a_function_is_applied_to_every_module():
    net, seen = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), []
    initialise(net, seen.append)
    assert seen == [net[0], net[1], net]
    with pytest.raises(UsageError, match="std"):
        initialise(net, seen.append, std=1)


def test_constants_by_colon_and_by_name():
    for how, arguments in (("constant:0.25", {}), ("Constant", {"value": 0.25})):
        net = nn.Linear(3, 2)
        initialise(net, how, **arguments)
        assert (net.weight == 0.25).all() and not net.bias.any()


@pytest.mark.parametrize("how", ["zeros", "constant:0.1"])
def test_several_layers_of_equal_weights_warn_that_they_cannot_learn(how):
    with pytest.warns(UserWarning, match="cannot learn"):
        initialise(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialise(nn.Linear(3, 4), how)  # one layer alone can: its gradients differ by the inputs
        initialise(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "normal", seed=0)


def test_a_parametrised_weight_gets_its_start_through_the_parametrisation():
    net = parametrizations.weight_norm(nn.Linear(300, 400))
    plain = nn.Linear(300, 400)
    initialise(net, "kaiming", seed=0)
    initialise(plain, "kaiming", seed=0)
    torch.testing.assert_close(net.weight, plain.weight)


def test_a_weight_that_a_hook_computes_is_left_and_said_so():
    net = nn.Sequential(nn.Linear(3, 4), prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5))
    before = net[1].weight_orig.clone()
    with pytest.warns(UserWarning, match=r"1\.weight is computed"):
        initialise(net, "normal", seed=0)
    assert torch.equal(net[1].weight_orig, before)


def test_a_lazy_layer_says_what_to_do():
    with pytest.raises(UsageError, match="one batch"):
        initialise(nn.Sequential(nn.LazyLinear(4)), "kaiming")


@pytest.mark.parametrize(
    "how, arguments, says",
    [
        ("kaimin", {}, "kaiming"),
        ("constant", {}, "value"),
        ("constant:often", {}, "often"),
        ("normal", {"sigma": 1}, "sigma"),
        ("normal:nan", {}, "finite"),
        ("zeros:3", {}, "no arguments"),
        ("kaiming:fan_around", {}, "fan_in or fan_out"),
    ],
)
def test_what_cannot_be_done_says_what_was_expected_and_changes_nothing(how, arguments, says):
    net = nn.Linear(2, 2)
    before = net.weight.clone()
    with pytest.raises(UsageError, match=says):
        initialise(net, how, **arguments)
    assert torch.equal(net.weight, before)


@settings(deadline=None)
@given(st.sampled_from([name for name in names() if name != "constant"]), st.integers(0, 2**32))
def test_every_name_works_on_every_kind_of_layer(name, seed):
    net = nn.ModuleList([nn.Linear(3, 2), nn.Conv1d(2, 4, 3, groups=2), nn.ConvTranspose2d(2, 3, 2), nn.RNN(2, 3)])
    net.extend([nn.Embedding(4, 2), nn.EmbeddingBag(4, 2), nn.Bilinear(2, 3, 4), nn.MultiheadAttention(4, 2)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        initialise(net, name, seed=seed)
    assert all(parameter.isfinite().all() for parameter in net.parameters())
