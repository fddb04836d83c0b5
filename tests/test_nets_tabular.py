"""The net for tables against its formulas, written out by hand, one number and one member at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from lamina import purity
from lamina.errors import UsageError
from lamina.nets.tabular import TOGETHER, UNKNOWN, WIDEST, Steps, Tabular

NAN = float("nan")


def net(**changed):
    torch.manual_seed(0)
    arguments = {"steps": [3, 0, 5], "outputs": 4, "categories": [2, 6], "texts": [(7, 3)], "hidden": (16, 8), "members": 5,
                 "embedding": 6, "dropout": 0.0}  # fmt: skip
    made = Tabular(**{**arguments, **changed})
    for parameter in made.parameters():  # what begins at zero counts too
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for bag in made.words or ():
        with torch.no_grad():
            bag.weight[bag.padding_idx] = 0
    return made


def rows(count=9):
    """Rows as the domain encodes them: three numbers, two codes, three places for words."""
    random = torch.Generator().manual_seed(1)
    numbers = torch.rand(count, 3, generator=random) * torch.tensor([3.0, 2.0, 5.0])
    numbers[1, 0] = numbers[2, 2] = NAN
    codes = torch.stack([torch.randint(0, high, (count,), generator=random) for high in (4, 8)], 1).float()
    words = torch.randint(0, 8, (count, 3), generator=random).float()
    words[3] = 0
    return torch.cat([numbers, codes, words], 1)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_a_number_fills_the_steps_below_it_as_the_paper_says():
    """Gorishniy et al., 2022, equation 1, in terms of the position: step t is 0 below t, 1 from t + 1 on."""
    torch.manual_seed(0)
    steps = Steps([3], 2)
    with torch.no_grad():
        steps.pieces.copy_(torch.randn_like(steps.pieces))
        for position in (0.0, 0.25, 1.0, 1.7, 2.999, 3.0):
            expected = steps.bias[0] + (position - 1.5) / (1.5 / 3**0.5) * steps.slope[0]
            for t in range(3):
                filled = 0.0 if position < t else 1.0 if position >= t + 1 else position - t
                expected = expected + filled * steps.pieces[0, t]
            assert torch.allclose(steps(torch.tensor([[position]]))[0][0, 0], expected, atol=1e-6)


def test_the_linear_part_of_uniform_positions_has_mean_0_and_deviation_1():
    steps = Steps([8], 1)
    with torch.no_grad():
        steps.slope.fill_(1.0), steps.bias.fill_(0.0)
        found, numbers = (part.flatten() for part in steps(torch.linspace(0, 8, 10_001)[:, None]))
    assert found.mean().item() == pytest.approx(0, abs=1e-3) and found.std().item() == pytest.approx(1, abs=1e-2)
    assert torch.allclose(found, numbers, atol=1e-5)


def test_a_gap_has_a_vector_of_its_own_and_no_other_part():
    steps = Steps([3, 4], 2)
    with torch.no_grad():
        steps.pieces.copy_(torch.randn_like(steps.pieces))
    found, numbers = steps(torch.tensor([[NAN, 2.0]]))
    assert abs(numbers[0, 0].item()) < 1e-6
    assert torch.equal(found[0, 0], steps.pieces[0, -1] + steps.bias[0])
    assert torch.isfinite(found).all()


def test_columns_of_fewer_steps_do_not_see_those_of_others():
    steps = Steps([2, 5], 3)
    before = steps(torch.tensor([[2.0, 5.0]]))
    with torch.no_grad():
        steps.pieces[0, 2:5] = 99  # steps 2, 3 and 4 of a column that has two
    after = steps(torch.tensor([[2.0, 5.0]]))
    assert all(map(torch.equal, after, before))


def test_a_number_as_it_is_goes_through_a_line_as_far_as_it_likes():
    steps = Steps([0], 1)
    found, numbers = (part.flatten() for part in steps(torch.tensor([[-50.0], [0.0], [50.0]])))
    assert numbers.tolist() == [-50, 0, 50]
    assert (found[2] - found[1]).item() == pytest.approx((found[1] - found[0]).item())
    assert found[1].item() == pytest.approx(steps.bias.item())


def test_positions_are_turned_back_into_the_numbers_they_stand_for():
    edges = [[-2.0, -0.5, 0.1, 3.0], [-1.0, 4.0]]
    steps = Steps([3, 1], 2, edges)
    places = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0])
    expected = np.stack([np.interp(places[:, k].numpy(), np.arange(len(own)), own) for k, own in enumerate(edges)], 1)
    assert np.allclose(steps(places)[1].detach(), expected, atol=1e-6)
    assert (steps(torch.full((1, 2), NAN))[1].abs() < 1e-6).all()


def test_what_numbers_have_in_common_is_taken_out():
    """The inverse root of the covariance, by scipy; what hardly varies is not blown up."""
    random = np.random.default_rng(0)
    common = random.normal(size=(4000, 1))
    x = torch.from_numpy(common + 0.1 * random.normal(size=(4000, 3))).float()
    made = Tabular([0, 0, 0], 1)
    made.begin(x)
    assert np.allclose(made.apart, scipy.linalg.fractional_matrix_power(np.cov(x.T, bias=True), -0.5), rtol=1e-3)
    assert np.allclose(np.cov((x @ made.apart).T), np.eye(3), atol=1e-2)
    made.begin(x[:, :1].expand(-1, 3))  # one number three times over
    assert made.apart.isfinite().all() and (x @ made.apart).abs().max() < 1e3
    made.begin(torch.zeros(10, 3))
    assert made.apart.isfinite().all()


def test_a_line_through_the_numbers_is_added_to_every_member():
    made = net()
    with torch.no_grad():
        made.apart.copy_(torch.randn(3, 3))
        x, before = rows(), made.train()(rows())
        made.line.mul_(2)
        _, values = made.steps(x[:, :3])
        assert torch.allclose(
            made(x) - before, (values @ made.apart @ made.line / 2)[:, None].expand(-1, 5, -1), atol=1e-5
        )


def test_of_very_many_numbers_nobody_asks_what_they_have_in_common():
    made = Tabular([0] * (TOGETHER + 1), 1)
    made.begin(torch.zeros(3, TOGETHER + 1))
    assert made.line is None and "apart" not in made.state_dict()
    assert made.eval()(torch.zeros(3, TOGETHER + 1)).shape == (3, 1)


# --- Categories and words ----------------------------------------------------------------------------------------------


def test_what_was_never_seen_says_nothing_before_it_is_learned():
    torch.manual_seed(0)
    made = Tabular([], 2, categories=[3, 4])
    table = made.codes.weight
    assert (table[:UNKNOWN] == 0).all() and (table[5 : 5 + UNKNOWN] == 0).all() and (table[UNKNOWN:5] != 0).all()


def test_columns_of_categories_have_vectors_of_their_own():
    made = net(steps=[], texts=[]).eval()
    one, other = made(torch.tensor([[2.0, 3.0]])), made(torch.tensor([[3.0, 2.0]]))
    assert not torch.allclose(one, other)


def test_a_text_is_the_mean_of_its_words_in_any_order():
    made = net(steps=[], categories=[], texts=[(7, 3)]).eval()
    assert torch.allclose(made(torch.tensor([[2.0, 5.0, 0.0]])), made(torch.tensor([[5.0, 0.0, 2.0]])), atol=1e-6)
    columns = made.words[0].weight[[2, 5]].mean(0)
    assert torch.allclose(made(torch.tensor([[2.0, 5.0, 0.0]])), by_hand(made, columns[None]).mean(0), atol=1e-5)
    assert torch.isfinite(made(torch.zeros(1, 3))).all()  # no word at all


# --- Members ------------------------------------------------------------------------------------------------------------


def by_hand(made, columns):
    """What each member says (members, B, outputs) of the columns' vectors (B, D), layer by layer, without the line."""
    linear = [layer for layer in made.layers if isinstance(layer, nn.Linear)]
    found = []
    for member in range(made.members):
        x = columns * made.scales[member]
        for layer in linear:
            x = (x @ layer.weight.T + layer.bias).clamp(min=0)
        found.append(x @ made.heads[member] + made.biases[member])
    return torch.stack(found)


def vectors(made, x):
    """(B, D): the vectors of all columns of rows(), side by side."""
    numbers = made.steps(x[:, :3])[0].flatten(1)
    codes = [made.codes.weight[made.starts[k] + x[:, 3 + k].long()] for k in range(2)]
    words = torch.stack([
        torch.stack([made.words[0].weight[int(word)] for word in row if word > 0]).mean(0) if (row > 0).any() else
        torch.zeros(6) for row in x[:, 5:]
    ])  # fmt: skip
    return torch.cat([numbers, *codes, words], 1)


def test_each_member_is_a_perceptron_with_its_own_scales_and_last_layer():
    made, x = net(), rows()
    with torch.no_grad():
        found = made.train()(x)
        assert found.shape == (9, 5, 4)
        line = made.steps(x[:, :3])[1] @ made.line
        assert torch.allclose(found.transpose(0, 1), by_hand(made, vectors(made, x)) + line, atol=1e-5)


def test_members_begin_unlike_one_another():
    torch.manual_seed(0)
    made = Tabular([4, 4, 4, 4], 1, members=8)
    assert set(made.scales.unique().tolist()) == {-1.0, 1.0}
    assert len({tuple(row.tolist()) for row in made.scales}) > 1
    assert (made.scales.reshape(8, 4, -1) == made.scales.reshape(8, 4, -1)[:, :, :1]).all()  # a sign a column


@pytest.mark.parametrize(
    ("average", "probabilities"),
    [("softmax", lambda x: x.softmax(-1)), ("sigmoid", lambda x: x.sigmoid()), ("mean", lambda x: x)],
)
def test_asked_the_net_gives_the_mean_of_what_its_members_say(average, probabilities):
    made, x = net(average=average), rows()
    with torch.no_grad():
        expected = probabilities(made.train()(x)).mean(1)
        assert torch.allclose(probabilities(made.eval()(x)), expected, atol=1e-6)


def test_far_logits_of_members_stay_finite():
    for average in ("softmax", "sigmoid"):
        made = net(average=average).eval()
        with torch.no_grad():
            made.heads.mul_(1e4)
            assert torch.isfinite(made(rows())).all()


# --- As a net -----------------------------------------------------------------------------------------------------------


def test_a_training_may_record_it():
    assert purity.reason(net()) == ""


def test_no_gradient_is_nan_where_numbers_are():
    made = net()
    made(rows()).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters())


def test_it_learns_what_no_line_can():
    """Whether two numbers are on the same side of the middle, and a category that turns the answer round."""
    random = np.random.default_rng(0)
    x = np.c_[random.uniform(0, 8, (800, 2)), random.integers(2, 4, 800)]
    y = torch.from_numpy(((x[:, 0] > 4) ^ (x[:, 1] > 4) ^ (x[:, 2] > 2)).astype(np.int64))
    x = torch.from_numpy(x.astype(np.float32))
    torch.manual_seed(0)
    made = Tabular([8, 8], 2, categories=[2], hidden=(32, 32), members=4, embedding=4, average="softmax")
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        output = made(x[:600])
        nn.functional.cross_entropy(output.flatten(0, 1), y[:600].repeat_interleave(4)).backward()
        optimizer.step()
    with torch.no_grad():
        assert (made.eval()(x[600:]).argmax(1) == y[600:]).double().mean() > 0.95


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_a_fitted_net_takes_its_shape_and_gives_its_width(size):
    made = Tabular.fitted((6,), 3, size).eval()
    assert made(torch.randn(4, 6)).shape == (4, 3)


def test_larger_sizes_are_larger():
    counts = [
        sum(p.numel() for p in Tabular.fitted((6,), 3, size).parameters()) for size in ("small", "medium", "large")
    ]
    assert counts == sorted(set(counts))


def test_very_many_columns_make_no_giant():
    made = Tabular([4] * 3000, 2, hidden=(256, 256))
    assert made.layers[0].in_features <= max(WIDEST, 3000)
    assert sum(p.numel() for p in made.parameters()) < 3e6


def test_weights_alone_make_it_again():
    made, x = net().eval(), rows()
    again = net(hidden=(16, 8))
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    assert torch.equal(again.eval()(x), made(x))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": [], "categories": [], "texts": []}, "0 columns"),
        ({"members": 0}, "0 members"),
        ({"hidden": (16, 0)}, r"hidden \[16, 0\]"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"average": "softmac"}, "softmax"),
    ],
)
def test_what_cannot_be_built_is_said(changed, words):
    with pytest.raises(UsageError, match=words):
        net(**changed)


def test_an_unknown_size_and_a_shape_that_is_no_row_are_said():
    with pytest.raises(UsageError, match="small"):
        Tabular.fitted((6,), 3, "smal")
    with pytest.raises(UsageError, match=r"\(1, 8, 8\)"):
        Tabular.fitted((1, 8, 8), 3)
