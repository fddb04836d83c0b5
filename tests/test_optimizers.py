"""Optimisers: torch's numbers to the bit, Muon against its formula, mistakes named at the door."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lamina import optimizers
from lamina.errors import UsageError

DENSE = [name for name in optimizers.names() if name not in ("muon", "sparseadam")]


def _net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


def _train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5, start: int = 0) -> list[torch.Tensor]:
    for step in range(start, start + steps):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in net.parameters()]


def _torch_class(name: str) -> type[torch.optim.Optimizer]:
    return next(kind for kind in vars(torch.optim).values() if getattr(kind, "__name__", "").lower() == name)


@pytest.mark.parametrize("name", DENSE)
def test_the_same_bits_as_torchs_own_class(name):
    ours, theirs = _net(), _net()
    kind = _torch_class(name)
    fused = {"fused": True} if name in ("sgd", "adam", "adamw", "adagrad") else {}
    optimizer = optimizers.make(name, ours, 0.01)
    assert isinstance(optimizer, kind)
    for got, expected in zip(
        _train(ours, optimizer), _train(theirs, kind(theirs.parameters(), lr=0.01, **fused)), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "adagrad"])
def test_fused_is_torchs_default_within_rounding(name):
    ours, theirs = _net(), _net()
    optimizer = optimizers.make(name, ours, 0.01, weight_decay=0.1)
    assert all(group["fused"] for group in optimizer.param_groups)
    expected = _train(theirs, _torch_class(name)(theirs.parameters(), lr=0.01, weight_decay=0.1))
    for got, want in zip(_train(ours, optimizer), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_adam_decays_in_the_gradient_and_adamw_beside_it():
    """One step from rest with no gradient of the loss: Adam divides the decay by its own size, AdamW does not."""
    results = {}
    for name in ("adam", "adamw"):
        weight = nn.Parameter(torch.tensor([2.0]))
        weight.grad = torch.zeros(1)
        optimizers.make(name, [weight], 0.1, weight_decay=0.5).step()
        results[name] = weight.item()
    assert results["adam"] == pytest.approx(2.0 - 0.1)  # m / sqrt(v) = 1, whatever the decay
    assert results["adamw"] == pytest.approx(2.0 * (1 - 0.1 * 0.5))


def test_naming_the_kernel_is_the_callers_choice():
    assert not optimizers.make("adam", _net(), 0.1, foreach=True).param_groups[0]["fused"]
    assert not optimizers.make("adam", _net(), 0.1, fused=False).param_groups[0]["fused"]
    assert optimizers.make("adam", _net(), 0.1, differentiable=True).defaults["differentiable"]


def test_where_the_fused_kernel_does_not_reach_torchs_default_is_used():
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = optimizers.make("adam", [weight], 0.1)
    assert not optimizer.param_groups[0]["fused"]
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert weight[0].real.item() == pytest.approx(0.9)


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_sparse_gradients_work_as_with_torchs_own_class(name):
    tables = [nn.Embedding(6, 3, sparse=True, _weight=torch.ones(6, 3)) for _ in range(2)]
    pair = [optimizers.make(name, tables[0], 0.1), _torch_class(name)(tables[1].parameters(), lr=0.1)]
    for table, optimizer in zip(tables, pair, strict=True):
        for _ in range(2):
            table(torch.tensor([1, 1, 4])).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(tables[0].weight, tables[1].weight)
    assert not torch.equal(tables[0].weight[1], torch.ones(3))


def test_a_sparse_gradient_under_a_scaler_is_an_error_not_a_wrong_step():
    table = nn.Embedding(6, 3, sparse=True)
    optimizer = optimizers.make("sgd", table, 0.1)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(table(torch.tensor([1])).sum()).backward()
    with pytest.raises(UsageError, match="fused=False"):
        scaler.step(optimizer)


def test_a_scaler_steps_with_the_fused_kernel():
    ours, theirs = _net(), _net()
    optimizer, scaler = optimizers.make("sgd", ours, 0.1, momentum=0.9), torch.amp.GradScaler("cpu", init_scale=8.0)
    x = torch.randn(4, 5)
    scaler.scale(ours(x).square().mean()).backward()
    scaler.step(optimizer)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    theirs(x).square().mean().backward()
    reference.step()
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, want)


# Muon -----------------------------------------------------------------------------------------------------------------


def _newton_schulz(g: np.ndarray, steps: int = 5) -> np.ndarray:
    """Jordan's quintic iteration in float64: X <- aX + b(XX')X + c(XX')^2 X, from the matrix over its norm."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (g.T if g.shape[0] > g.shape[1] else g) / np.linalg.norm(g)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def _muon_by_hand(weight, gradients, rate, momentum=0.95, decay=0.1):
    buffer = np.zeros_like(weight)
    for g in gradients:
        buffer = momentum * buffer + (1 - momentum) * g
        update = _newton_schulz((1 - momentum) * g + momentum * buffer)
        weight = weight * (1 - rate * decay) - rate * 0.2 * np.sqrt(max(weight.shape)) * update
    return weight


def _adamw_by_hand(weight, gradients, rate, decay=0.01):
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        weight = weight * (1 - rate * decay)
        weight = weight - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return weight


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
def test_muon_is_its_formula_and_the_bias_gets_adamw(shape):
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=shape), random.normal(size=shape[0])
    parameters = [nn.Parameter(torch.tensor(value, dtype=torch.float32)) for value in (weight, bias)]
    optimizer = optimizers.make("muon", parameters, 0.1)
    gradients = [(random.normal(size=shape), random.normal(size=shape[0])) for _ in range(3)]
    for pair in gradients:
        for parameter, gradient in zip(parameters, pair, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    moved = _muon_by_hand(weight, [pair[0] for pair in gradients], 0.1)
    # torch iterates in bfloat16 (8 bits): compare with the way gone, not with the weights
    way = np.linalg.norm(moved - weight)
    assert np.linalg.norm(parameters[0].detach().numpy() - moved) < 0.03 * way
    expected = _adamw_by_hand(bias, [pair[1] for pair in gradients], 0.1)
    np.testing.assert_allclose(parameters[1].detach().numpy(), expected, rtol=1e-5)


def test_muon_has_the_bits_of_torchs_two_optimisers():
    ours, theirs = _net(), _net()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    rest = [p for p in theirs.parameters() if p.ndim != 2]
    pair = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=0.003, weight_decay=0.2, fused=True),
    ]
    optimizer = optimizers.make(
        "muon",
        ours.parameters(),
        0.02,
        weight_decay=0.0,
        adjust_lr_fn="original",
        adamw_learning_rate=0.003,
        adamw_weight_decay=0.2,
    )
    for step in range(4):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        theirs(x).square().mean().backward()
        for part in pair:
            part.step()
            part.zero_grad()
    for got, expected in zip(_train(ours, optimizer, 4), theirs.parameters(), strict=True):
        assert torch.equal(got, expected)


def test_muon_of_a_net_leaves_embeddings_head_kernels_and_bare_parameters_to_adamw():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(7, 4)
            self.positions = nn.Parameter(torch.zeros(9, 4))
            self.attention = nn.MultiheadAttention(4, 2)
            self.kernel = nn.Conv1d(4, 4, 3)
            self.head = nn.Linear(4, 2)

    net = Net()
    optimizer = optimizers.make("muon", net, 0.01)
    by_method = {
        method: {id(p) for group in optimizer.param_groups if group["method"] == method for p in group["params"]}
        for method in ("muon", "adamw")
    }
    hidden = {n for n, p in net.named_parameters() if id(p) in by_method["muon"]}
    assert hidden == {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert by_method["muon"] | by_method["adamw"] == {id(p) for p in net.parameters()}


def test_muon_splits_groups_and_keeps_their_own_settings():
    net = _net()
    groups = [
        {"params": net[0].parameters(), "learning_rate": 0.5, "name": "body"},
        {"params": list(net[4].parameters()), "method": "adamw", "weight_decay": 0.0},
    ]
    optimizer = optimizers.make("muon", groups, 0.1)
    seen = [(g["method"], g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert seen == [("muon", 0.5, 0.1, 1), ("adamw", 0.5, 0.01, 1), ("adamw", 0.1, 0.0, 2)]
    assert "learning_rate" in groups[0]  # the caller's dict is not ours to change
    optimizer.add_param_group({"params": list(net[2].parameters())})
    assert [g["method"] for g in optimizer.param_groups[3:]] == ["muon", "adamw"]


# State ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DENSE, "muon"])
def test_a_saved_and_loaded_optimiser_goes_on_to_the_bit(name):
    straight = _train(net := _net(), optimizers.make(name, net, 0.01), 6)
    first = _net()
    optimizer = optimizers.make(name, first, 0.01)
    _train(first, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    second = _net(1)
    second.load_state_dict(first.state_dict())
    resumed = optimizers.make(name, second, 0.5)  # the saved rate must win
    resumed.load_state_dict(state)
    for got, expected in zip(_train(second, resumed, 3, start=3), straight, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_deep_copy_steps_its_own_parameters(name):
    net = _net()
    optimizer = optimizers.make(name, net, 0.01)
    _train(net, optimizer, 2)
    net2, optimizer2 = copy.deepcopy((net, optimizer))
    for got, expected in zip(_train(net2, optimizer2, 2, 2), _train(net, optimizer, 2, 2), strict=True):
        assert torch.equal(got, expected)


def test_a_rate_set_in_the_groups_is_the_rate_of_the_next_step():
    for name in ("sgd", "muon"):
        net = _net()
        before = [p.detach().clone() for p in net.parameters()]
        optimizer = optimizers.make(name, net, 0.1)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        assert all(torch.equal(a, b) for a, b in zip(before, _train(net, optimizer, 1), strict=True))


def test_the_compiler_is_not_loaded_by_making_stepping_and_saving():
    code = """
import sys, torch
from lamina import optimizers
net = torch.nn.Linear(3, 3)
for name in ("adamw", "sgd", "muon"):
    optimizer = optimizers.make(name, [{"params": net.weight}, {"params": net.bias}], 0.1)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: optimizers.make("adamv", _net(), 0.1), "did you mean 'adam"),
        (lambda: optimizers.make("optimizer", _net(), 0.1), "no optimiser"),
        (lambda: optimizers.make("lbfgs", _net(), 0.1), "several times"),
        (lambda: optimizers.make("sgd", _net(), 0.1, momentun=0.9), "did you mean 'momentum'"),
        (lambda: optimizers.make("sgd", _net(), 0.1, lr=0.2), "learning_rate"),
        (lambda: optimizers.make("adam", _net(), float("nan")), "learning rate is nan"),
        (lambda: optimizers.make("adam", _net(), -1), "0 or more"),
        (lambda: optimizers.make("adam", _net(), 0.1, betas=(0.9, 1.5)), "Invalid beta"),
        (lambda: optimizers.make("sgd", _net(), 0.1, nesterov=True), "Nesterov"),
        (lambda: optimizers.make("sgd", _net(), 0.1, momentum="0.9"), "refuses"),
        (lambda: optimizers.make("sgd", nn.ReLU(), 0.1), "nothing to optimise"),
        (lambda: optimizers.make("sgd", [{"lr": 0.1}], 0.1), "no 'params'"),
        (lambda: optimizers.make("sgd", [{"params": [], "weigth_decay": 0.1}], 0.1), "weight_decay"),
        (lambda: optimizers.make("muon", _net(), 0.1, betas=(0.9, 0.99)), "adamw_betas"),
        (lambda: optimizers.make("muon", _net(), 0.1, adamw_lr=0.1), "adamw_learning_rate"),
        (lambda: optimizers.make("muon", [nn.Parameter(torch.ones(3))], 0.1), "no hidden matrix"),
        (lambda: optimizers.make("muon", [{"params": _net()[0].weight, "method": "sgd"}], 0.1), "'muon' or 'adamw'"),
    ],
)
def test_a_mistake_is_named_with_its_cure(call, words):
    with pytest.raises(UsageError, match=words):
        call()
