"""A line beside a net: it is a ridge or logistic regression, its share is what validation says, and it travels with the run."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lamina
from lamina.nets import beside
from lamina.nets.mlp import MLP
from lamina.nets.tabular import Tabular

RNG = np.random.default_rng(0)


def batches(x: Tensor, truth: Tensor) -> list[types.SimpleNamespace]:
    """In two pieces, as batches come."""
    half = len(x) // 2
    return [types.SimpleNamespace(inputs=(x[part],), truth=truth[part]) for part in (slice(half), slice(half, None))]


def examples(n: int, width: int = 5, seed: int = 0) -> Tensor:
    """Numbers of different means and spreads."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(rng.normal(0, 3, width), rng.uniform(0.1, 4, width), (n, width))).float()


def settled(
    net: torch.nn.Module, x: Tensor, truth: Tensor, loss=F.mse_loss, numbers: bool = True, valid=None
) -> beside.Beside:
    beside.settle(net.eval(), batches(x, truth), batches(*(valid or (x, truth))), loss, numbers)
    return net.beside


def test_far_off_the_line_goes_on_level():
    x = examples(100)
    beside = settled(MLP(5, 1, beside=True), x, x.sum(1, keepdim=True))
    assert torch.equal(beside.line(100 * x + 1e6), beside.high.expand(100, 1))
    assert torch.allclose(beside.line(x), x.sum(1, keepdim=True), atol=0.5)


def test_for_squared_errors_it_is_scikit_learns_ridge():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    x = examples(80)
    truth = x @ torch.tensor([[1.0], [-0.3], [0.1], [0.0], [2.0]]) + 7 + 0.5 * torch.randn(80, 1)
    line = settled(MLP(5, 1, beside=True), x, truth).line(x)
    scaled = StandardScaler().fit_transform(x.numpy())
    ridge = Ridge(alpha=5 / beside.SIGNAL).fit(scaled, truth.numpy())
    assert np.allclose(line.numpy(), ridge.predict(scaled).reshape(-1, 1), atol=2e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_for_log_losses_it_is_scikit_learns_logistic_regression(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = examples(200)
    truth = ((x - x.mean(0)) / x.std(0) @ torch.randn(5, classes) + torch.randn(200, classes)).argmax(1)
    line = settled(MLP(5, classes, beside=True), x, truth, F.cross_entropy, False).line(x)
    scaled = StandardScaler().fit_transform(x.numpy())
    model = LogisticRegression(C=beside.SIGNAL / 5, tol=1e-8, max_iter=1000)
    if classes == 2:  # there one output says what here two do, of half its size each: half the penalty
        model.C *= 2
    assert np.allclose(line.softmax(1).numpy(), model.fit(scaled, truth.numpy()).predict_proba(scaled), atol=5e-3)


def test_the_share_is_what_the_validation_examples_say():
    x, other = examples(300), examples(300, seed=1)

    class Known(MLP):
        """Knows the truth of all, or nothing at all."""

        def __init__(self, right: float):
            super().__init__(5, 1, beside=True)
            self.right = right

        def forward(self, x: Tensor) -> Tensor:
            return self.beside(self.right * bent(x) + (1 - self.right) * straight(x) * 0, x)

    def straight(x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True)

    def bent(x: Tensor) -> Tensor:
        return (x[:, :1] - x[:, :1].mean()).square()

    def noise(seed: int) -> Tensor:
        return 0.1 * torch.randn(300, 1, generator=torch.Generator().manual_seed(seed))

    of_net = settled(Known(1.0), x, bent(x) + noise(0), valid=(other, bent(other) + noise(1)))
    assert of_net.share < 0.02
    of_line = settled(Known(0.0), x, straight(x) + noise(0), valid=(other, straight(other) + noise(1)))
    assert of_line.share > 0.95  # level beyond what it was fitted to
    nothing = settled(Known(0.0), x, noise(0), valid=(other[:4], noise(1)[:4]))  # either is as good
    assert 0.15 < nothing.share < 0.35


@pytest.mark.parametrize("kind", [MLP, Tabular])
def test_until_it_is_settled_nothing_is_changed(kind):
    def made(beside: bool) -> torch.nn.Module:
        torch.manual_seed(0)
        return (MLP(3, 2, beside=beside) if kind is MLP else Tabular([4, 0, 2], 2, [3], beside=beside)).eval()

    x = torch.rand(20, 3 if kind is MLP else 4) * 2
    assert torch.equal(made(False)(x), made(True)(x))
    assert [name for name, _ in made(True).named_parameters()] == [name for name, _ in made(False).named_parameters()]


def test_what_a_row_of_a_table_says_in_numbers():
    """Numbers and whether they are gaps, a place for each code of a category, and one for each word."""
    net = Tabular([2, 0], 1, [2, 1], [(3, 2)], edges=[[-1.0, 0.0, 3.0], []], beside=True)
    rows = torch.tensor([[1.5, 0.25, 2, 0, 3, 1], [torch.nan, -2.0, 0, 2, 0, 0]])
    gaps, words = [[0, 0], [1, 0]], [[1, 0, 1], [0, 0, 0]]
    numbers, codes = [[1.5, 0.25], [0.0, -2.0]], [[0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 1]]
    assert net.features(rows).tolist() == [
        [*a, *b, *c, *d] for a, b, c, d in zip(numbers, gaps, codes, words, strict=True)
    ]
    assert net.beside.weight.shape == (14, 1)
    assert Tabular([1], 1, [beside.MOST], beside=True).beside is None  # too many


@pytest.mark.parametrize("kind", [MLP, Tabular])
def test_a_net_with_a_line_can_be_exported_for_batches_of_any_size(kind):
    if kind is MLP:
        net, x = MLP(3, 2, beside=True), torch.rand(8, 3)
    else:
        net, x = Tabular([4, 0], 2, [3], [(5, 2)], beside=True), torch.cat([torch.rand(8, 2), torch.ones(8, 3)], 1)
    for buffer in net.eval().beside.buffers():
        buffer.fill_(0.3)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},)).module()
    for rows in (3, 8):
        assert torch.allclose(program(x[:rows]), net(x[:rows]), atol=1e-6)


def linear(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = RNG.normal(size=(n, 12))
    return x, x @ RNG.normal(size=12) + 0.5 * RNG.normal(size=n)


@pytest.mark.parametrize("domain", ["arrays", "table"])
def test_where_the_truth_is_linear_a_run_is_nearly_as_good_as_a_line(domain, tmp_path):
    x, y = linear(200)
    source = (x, y) if domain == "arrays" else {**{f"x{k}": column for k, column in enumerate(x.T)}, "y": y}
    run = lamina.train(source, task="numbers", runs=tmp_path, quiet=True, report=False)
    scores = json.loads((run.folder / "scores.json").read_text())
    line = next(each["value"] for each in scores["baselines"] if (each["name"], each["score"]) == ("linear", "rmse"))
    assert run.recipe.net_arg["beside"] is True and run.net.beside.share > 0.2
    assert run.facts["beside"] == round(float(run.net.beside.share), 3)
    again = lamina.load(run.folder)
    inputs = x if domain == "arrays" else {f"x{k}": column for k, column in enumerate(x.T)}
    assert np.array_equal(run.predict(inputs).prediction, again.predict(inputs).prediction)
    alone = lamina.train(source, task="numbers", net_arg={"beside": False}, runs=tmp_path, quiet=True, report=False)
    assert alone.net.beside is None and line < run.headline.value < (line + 2 * alone.headline.value) / 3


def test_where_the_line_is_most_of_it_the_last_screen_and_the_report_say_so(tmp_path, capsys):
    x = RNG.normal(size=(1000, 12))
    y = x.sum(1) + 2 * RNG.normal(size=1000)
    run = lamina.train((x, y), task="numbers", runs=tmp_path, epochs=2, learning_rate=1e-5)
    assert run.facts["beside"] > 0.9 and "linear model beside the net has 9" in capsys.readouterr().out
    page = (run.folder / "report.html").read_text()
    assert f"a linear model, {run.facts['beside']:.0%} of the answer" in page


def test_a_line_of_no_use_leaves_nothing_behind():
    x = examples(300)
    net = MLP(5, 1, beside=True)
    with torch.no_grad():
        truth = net.eval()(x)  # the net knows all of it
    assert settled(net, x, truth + 1e-4 * torch.randn(300, 1)).share == 0
    assert not any(buffer.any() for buffer in net.beside.buffers())
    assert settled(MLP(5, 1, beside=True), x, torch.full((300, 1), torch.nan)).share == 0


def test_tags_have_one_too(tmp_path):
    x, _ = linear(300)
    y = (x[:, :3] + 0.3 * RNG.normal(size=(300, 3)) > 0).astype(int)
    run = lamina.train((x, y), task="tags", runs=tmp_path, quiet=True, report=False)
    assert run.net.beside.share > 0


@pytest.mark.parametrize("why", ["own loss", "no validation", "own weights"])
def test_who_has_no_line(why, tmp_path):
    x, y = linear(100)
    more = {
        "own loss": {"loss": lambda output, truth: (output - truth).abs().mean()},
        "no validation": {"valid": "0"},
        "own weights": {},
    }[why]
    if why == "own weights":
        torch.save(MLP(12, 1, dropout=0.2).state_dict(), tmp_path / "own.pth")
        more = {"weights": str(tmp_path / "own.pth")}
    run = lamina.train((x, y), task="numbers", runs=tmp_path, quiet=True, report=False, epochs=2, **more)
    assert run.net.beside is None or float(run.net.beside.share) == 0
