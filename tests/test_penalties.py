"""Penalties against their sums and autograd's gradients, and groups in which every parameter stands once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lamina.errors import UsageError
from lamina.penalties import chosen, decay_groups, elastic, l1, l2


def net():
    """Weights, biases, three kinds of normalisation (one with a scale of two dimensions), an embedding, a slope."""
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "body": nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.PReLU(), nn.LayerNorm((3, 2))),
            "conv": nn.Conv2d(2, 4, 3),
            "norm": nn.GroupNorm(2, 4),
            "head": nn.Linear(6, 3),
        }
    )


WEIGHTS = {"embedding.weight", "body.0.weight", "conv.weight", "head.weight"}


def numbers(model, names=WEIGHTS):
    values = [p.detach().double().numpy().ravel() for name, p in model.named_parameters() if name in names]
    return np.concatenate(values)


def test_weights_are_chosen_and_biases_and_normalisation_spared():
    assert set(chosen(net())) == WEIGHTS


def test_the_values_are_the_sums():
    model, w = net(), numbers(net())
    assert l1(0.3)(model).item() == pytest.approx(0.3 * np.abs(w).sum())
    assert l2(0.3)(model).item() == pytest.approx(0.3 * (w**2).sum())
    assert elastic(0.2, 0.5)(model).item() == pytest.approx(0.2 * np.abs(w).sum() + 0.5 * (w**2).sum())
    assert l2(1.0)(model).shape == ()


@settings(deadline=None)
@given(st.floats(0, 10), st.floats(0, 10), st.integers(0, 1000))
def test_the_gradient_is_that_of_autograd(a, b, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[0] = 0  # where |w| has no derivative it is 0
    weights = [model[0].weight, model[2].weight]
    got = torch.autograd.grad(7 * elastic(a, b)(model), weights)
    expected = torch.autograd.grad(7 * sum(a * w.abs().sum() + b * w.square().sum() for w in weights), weights)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_the_second_derivative_is_right_too():
    layer = nn.Linear(3, 2, bias=False).double()
    (gradient,) = torch.autograd.grad(elastic(0.3, 0.7)(layer), layer.weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), layer.weight)
    expected = 2 * (0.3 * layer.weight.sign() + 1.4 * layer.weight) * 1.4
    torch.testing.assert_close(second, expected)


def test_l2_on_plain_sgd_is_weight_decay_of_twice_the_strength():
    one, other = nn.Linear(4, 3, bias=False).double(), nn.Linear(4, 3, bias=False).double()
    other.load_state_dict(one.state_dict())
    x = torch.randn(8, 4, dtype=torch.float64)
    first = torch.optim.SGD(one.parameters(), lr=0.1)
    second = torch.optim.SGD(other.parameters(), lr=0.1, weight_decay=0.06)
    for _ in range(5):
        for model, optimizer, penalty in ((one, first, l2(0.03)), (other, second, l2(0.0))):
            optimizer.zero_grad()
            (model(x).square().mean() + penalty(model)).backward()
            optimizer.step()
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "which, names",
    [
        ("head", {"head.weight", "head.bias"}),
        ("head.*", {"head.weight", "head.bias"}),
        ("*.bias", {"body.0.bias", "body.1.bias", "body.3.bias", "conv.bias", "norm.bias", "head.bias"}),
        ("body.0.weight", {"body.0.weight"}),
        (lambda name, p: p.ndim == 4, {"conv.weight"}),
        (lambda name, p: name.startswith("body.0"), {"body.0.weight", "body.0.bias"}),
    ],
)
def test_which_parameters_by_pattern_and_by_function(which, names):
    model = net()
    assert set(chosen(model, which)) == names
    assert l2(1.0, which)(model).item() == pytest.approx((numbers(model, names) ** 2).sum())


def test_frozen_parameters_are_left_out():
    model = net()
    model["conv"].requires_grad_(False)
    assert set(chosen(model)) == WEIGHTS - {"conv.weight"}
    assert sum(len(group["params"]) for group in decay_groups(model, 0.1)) == len(list(model.parameters())) - 2


def tied():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    return model


def test_a_shared_parameter_counts_once_and_answers_to_each_of_its_names():
    model = tied()
    expected = model[0].weight.detach().double().square().sum().item()
    for which in (None, "0.weight", "1.weight", "*.weight"):
        assert l2(1.0, which)(model).item() == pytest.approx(expected)
    groups = decay_groups(model, 0.1, learning_rates={"1.weight": 0.5})
    assert [(len(g["params"]), g["weight_decay"], g.get("lr")) for g in groups] == [(1, 0.1, 0.5), (1, 0.0, None)]


def test_mixed_precision_weights_are_summed_in_the_widest():
    model = nn.Sequential(nn.Linear(30, 30).bfloat16(), nn.Linear(30, 30), nn.Linear(30, 30).double())
    w = numbers(model, {"0.weight", "1.weight", "2.weight"})
    value = elastic(1.0, 1.0)(model)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx((np.abs(w) + w**2).sum(), rel=1e-3)
    value.backward()
    assert [layer.weight.grad.dtype for layer in model] == [torch.bfloat16, torch.float32, torch.float64]


def test_a_net_without_weights_has_no_penalty():
    assert l1(1.0)(nn.LayerNorm(4)).item() == 0


@pytest.mark.parametrize("strength", [-1, math.nan, math.inf])
def test_a_strength_is_a_number_from_zero_up(strength):
    for penalty in (l1, l2, lambda s: elastic(0.1, s)):
        with pytest.raises(UsageError, match="strength"):
            penalty(strength)
    with pytest.raises(UsageError, match="weight decay"):
        decay_groups(net(), strength)


def test_a_pattern_that_fits_nothing_gets_the_near_names():
    with pytest.raises(UsageError, match=r"head\.weight"):
        l2(1.0, "haed.weight")(net())
    with pytest.raises(UsageError, match=r"conv\.weight"):
        decay_groups(net(), 0.1, learning_rates={"conv.wieght": 0.1})
    with pytest.raises(UsageError) as caught:
        l2(1.0, "zzz")(nn.ModuleList(nn.Linear(1, 1) for _ in range(500)))
    assert len(str(caught.value)) < 600


# --- Groups -----------------------------------------------------------------------------------------------------------


def named_groups(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return [({names[id(p)] for p in g["params"]}, g["weight_decay"], g.get("lr")) for g in groups]


def test_weights_decay_and_the_rest_does_not():
    model = net()
    groups = named_groups(model, decay_groups(model, 0.05))
    everything = {name for name, _ in model.named_parameters()}
    assert groups == [(WEIGHTS, 0.05, None), (everything - WEIGHTS, 0.0, None)]


def test_without_decay_there_is_one_group():
    assert len(decay_groups(net(), 0.0)) == 1


def test_what_decays_can_be_said():
    model = net()
    groups = named_groups(model, decay_groups(model, 0.05, which="head"))
    assert [names for names, decay, _ in groups if decay] == [{"head.weight", "head.bias"}]


def test_own_learning_rates_the_first_pattern_that_fits_counts():
    model = net()
    rates = {"body.0.bias": 0.5, "body": "x0.1", "head": 0.3}
    groups = named_groups(model, decay_groups(model, 0.05, learning_rates=rates, learning_rate=0.02))
    by_name = {name: (decay, rate) for names, decay, rate in groups for name in names}
    assert by_name["body.0.bias"] == (0.0, 0.5)
    assert by_name["body.0.weight"] == (0.05, pytest.approx(0.002))
    assert by_name["head.weight"] == (0.05, 0.3)
    assert by_name["conv.weight"] == (0.05, None)
    assert len(by_name) == sum(len(names) for names, _, _ in groups) == len(list(model.parameters()))


def test_an_optimiser_takes_them_and_spares_what_is_spared():
    model = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = decay_groups(model, 0.5, learning_rates={"head": 0.01})
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.01 if name.startswith("head") else 0.1
        torch.testing.assert_close(parameter, before[name] * (1 - rate * 0.5 * (name in WEIGHTS)))


@pytest.mark.parametrize("rate", [-0.1, math.nan, "fast", "0.1", "xfast", None])
def test_a_rate_is_a_number_or_a_factor(rate):
    with pytest.raises(UsageError, match="learning rate of 'head'"):
        decay_groups(net(), 0.1, learning_rates={"head": rate}, learning_rate=0.1)


def test_a_factor_needs_a_learning_rate_to_multiply():
    with pytest.raises(UsageError, match="no learning rate"):
        decay_groups(net(), 0.1, learning_rates={"head": "x0.1"})


def test_a_net_that_is_all_frozen_is_refused():
    with pytest.raises(UsageError, match="no parameter"):
        decay_groups(net().requires_grad_(False), 0.1)
