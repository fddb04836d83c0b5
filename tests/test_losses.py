"""Losses: all of torch's by name, our own by their formulas, and counts that make micro-batches exact."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules import loss as torch_losses

from lamina import losses
from lamina.errors import UsageError
from lamina.losses import count, focal, make, soft_cross_entropy

NEEDED = {"LinearCrossEntropyLoss": {"in_features": 4, "num_classes": 3}}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", torch_losses.__all__)
@pytest.mark.filterwarnings("ignore:.*NLLLoss2d.*:FutureWarning")
def test_every_loss_that_torch_exports_is_reachable_however_it_is_written(name):
    short = name.replace("Loss", "")
    for spelling in (name, name.lower(), short, short.lower(), short.upper(), f"{short}_loss", f"-{short} Loss"):
        assert type(make(spelling, **NEEDED.get(name, {}))) is getattr(torch_losses, name)
    assert name in losses.names()


@pytest.mark.parametrize(
    "spelling, cls",
    [
        ("cross_entropy", nn.CrossEntropyLoss),
        ("crossentropy", nn.CrossEntropyLoss),
        ("cross-entropy", nn.CrossEntropyLoss),
        ("ce", nn.CrossEntropyLoss),
        ("bce_with_logits", nn.BCEWithLogitsLoss),
        ("smooth_l1", nn.SmoothL1Loss),
        ("mae", nn.L1Loss),
        ("triplet_margin", nn.TripletMarginLoss),
    ],
)
def test_the_fields_spellings(spelling, cls):
    assert type(make(spelling)) is cls


def test_our_functions_by_name():
    output, truth = normal(5, 3), integers(3, 5)
    assert make("focal", gamma=1.0)(output, truth) == focal(output, truth, gamma=1.0)
    assert make("FocalLoss")(output, truth) == focal(output, truth)
    assert make("soft_cross_entropy", smoothing=0.2)(output, truth) == soft_cross_entropy(output, truth, 0.2)
    assert {"focal", "soft_cross_entropy"} <= set(losses.names())


def test_class_weights_may_be_lists():
    output, truth = normal(5, 2).float(), integers(2, 5)
    loss = make("cross_entropy", weight=[1, 3])
    torch.testing.assert_close(loss(output, truth), F.cross_entropy(output, truth, weight=torch.tensor([1.0, 3.0])))
    make("bce_with_logits", pos_weight=(1, 2))(output, output.sigmoid())


@pytest.mark.parametrize(
    "name, arguments, says",
    [
        ("cross_entrpy", {}, "crossentropy"),
        ("huber", {"delte": 2}, "delta"),
        ("focal", {"gama": 2}, "gamma"),
        ("focal", {"output": 2}, "gamma"),
        ("linear_cross_entropy", {}, "in_features"),
    ],
)
def test_a_mistake_shows_what_there_is(name, arguments, says):
    if name == "linear_cross_entropy" and not hasattr(nn, "LinearCrossEntropyLoss"):
        pytest.skip("this torch has no LinearCrossEntropyLoss")
    with pytest.raises(UsageError, match=says):
        make(name, **arguments)


# --- Focal loss -------------------------------------------------------------------------------------------------------


def test_focal_with_gamma_zero_is_cross_entropy():
    output, truth = normal(6, 4), integers(4, 6)
    torch.testing.assert_close(focal(output, truth, gamma=0), F.cross_entropy(output, truth))
    ones = integers(2, 6, 4).double()
    torch.testing.assert_close(focal(output, ones, gamma=0), F.binary_cross_entropy_with_logits(output, ones))
    mixed = normal(6, 4).sigmoid()
    torch.testing.assert_close(focal(output, mixed, gamma=0), F.binary_cross_entropy_with_logits(output, mixed))
    parts = normal(6, 4).softmax(1)
    torch.testing.assert_close(focal(output, parts, gamma=0, across="classes"), F.cross_entropy(output, parts))


def test_focal_by_hand():
    """Probability 0.8 for the truth, gamma 2: -(0.2)^2 log 0.8."""
    logits = torch.log(torch.tensor([[0.8, 0.15, 0.05]]))
    assert focal(logits, torch.tensor([0])).item() == pytest.approx(-(0.2**2) * math.log(0.8))
    logit = torch.tensor([math.log(0.8 / 0.2)])
    assert focal(logit, torch.tensor([1])).item() == pytest.approx(-(0.2**2) * math.log(0.8))
    assert focal(logit, torch.tensor([0])).item() == pytest.approx(-(0.8**2) * math.log(0.2))
    assert focal(logit, torch.tensor([0]), alpha=0.25).item() == pytest.approx(-0.75 * 0.8**2 * math.log(0.2))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 5), st.booleans())
def test_focal_over_classes_against_a_loop(seed, gamma, weighted):
    output, truth = normal(3, 4, 5, seed=seed), integers(4, 3, 5, seed=seed)
    alpha = [0.5, 1.0, 2.0, 3.0] if weighted else None
    total = 0.0
    for b in range(3):
        for t in range(5):
            p = np.exp(output[b, :, t].numpy())
            p_t = (p / p.sum())[truth[b, t]]
            total -= (alpha[truth[b, t]] if alpha else 1) * (1 - p_t) ** gamma * np.log(p_t)
    assert focal(output, truth, gamma, alpha).item() == pytest.approx(total / 15)
    one_hot = F.one_hot(truth, 4).movedim(-1, 1).double()
    assert focal(output, one_hot, gamma, alpha, across="classes").item() == pytest.approx(total / 15)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 5))
def test_focal_over_tags_against_a_loop(seed, gamma):
    output, truth, alpha = normal(3, 4, seed=seed), integers(2, 3, 4, seed=seed), [0.2, 0.5, 0.7, 1.0]
    total = 0.0
    for b in range(3):
        for k in range(4):
            p = 1 / (1 + np.exp(-output[b, k].item()))
            p_t, alpha_t = (p, alpha[k]) if truth[b, k] else (1 - p, 1 - alpha[k])
            total -= alpha_t * (1 - p_t) ** gamma * np.log(p_t)
    assert focal(output, truth, gamma, alpha).item() == pytest.approx(total / 12)


def test_one_yes_or_no_with_and_without_the_last_dimension():
    output, truth = normal(6, 1), integers(2, 6)
    assert focal(output, truth) == focal(output.squeeze(1), truth) == focal(output, truth[:, None])


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
def test_focal_and_its_gradient_stay_finite_far_out(gamma):
    for output, truth in (
        (torch.tensor([[200.0, -200.0], [-200.0, 200.0]]), torch.tensor([0, 0])),
        (torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([1])),
        (torch.tensor([200.0, -200.0, 200.0, -200.0]), torch.tensor([0, 0, 1, 1])),
    ):
        output.requires_grad_()
        loss = focal(output, truth, gamma)
        loss.backward()
        assert loss.isfinite() and output.grad.isfinite().all()


def test_focal_gradients():
    truth = integers(3, 4)
    assert torch.autograd.gradcheck(lambda o: focal(o, truth, 1.5, [1, 2, 3]), normal(4, 3).requires_grad_())
    assert torch.autograd.gradcheck(lambda o: focal(o, truth.clamp(max=1), 1.5, 0.3), normal(4).requires_grad_())


def test_focal_refuses_what_it_cannot_do():
    with pytest.raises(UsageError, match="gamma"):
        focal(normal(4, 3), integers(3, 4), gamma=-1)
    with pytest.raises(UsageError, match="classes or tags"):
        focal(normal(4, 3), integers(3, 4), across="boxes")


# --- Soft cross-entropy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_soft_cross_entropy_is_minus_the_sum_of_q_log_p(smoothing):
    output, numbers = normal(5, 4, 3), integers(4, 5, 3)
    for truth, q in (
        (numbers, F.one_hot(numbers, 4).movedim(-1, 1).double()),
        (numbers.to(torch.uint8), F.one_hot(numbers, 4).movedim(-1, 1).double()),
        (normal(5, 4, 3).softmax(1), normal(5, 4, 3).softmax(1)),
        (F.one_hot(numbers, 4).movedim(-1, 1), F.one_hot(numbers, 4).movedim(-1, 1).double()),
    ):
        q = (1 - smoothing) * q + smoothing / 4
        expected = -(q * output.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(soft_cross_entropy(output, truth, smoothing), expected)


def test_smoothing_is_a_share():
    with pytest.raises(UsageError, match="smoothing"):
        soft_cross_entropy(normal(4, 3), integers(3, 4), smoothing=2)


# --- Counts -----------------------------------------------------------------------------------------------------------

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
POS_WEIGHT = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
K = 4


def with_ignored(truth, every=3, number=-100):
    truth = truth.clone()
    truth.view(-1)[::every] = number
    return truth


class Transposed(nn.CrossEntropyLoss):
    """What people write for sequences: output (B, T, K)."""

    def forward(self, output, truth):
        return super().forward(output.transpose(1, 2), truth)


class OwnFocal(nn.CrossEntropyLoss):
    """What people write for focal loss: a mean of their own over numbers that torch does not reduce."""

    def forward(self, output, truth):
        each = super().forward(output, truth)
        return ((1 - (-each).exp()) ** 2 * each).mean()


def own(output, truth):
    return (output - F.one_hot(truth, K)).square().sum(1).mean()


BATCH, TIME = 10, 6
classes = integers(K, BATCH)
sequences = integers(K, BATCH, TIME)
probabilities = normal(BATCH, K, seed=3).softmax(1)
EXACT = {
    "cross-entropy": (nn.CrossEntropyLoss(), (K,), classes),
    "weighted": (nn.CrossEntropyLoss(weight=WEIGHT), (K,), classes),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), (K,), classes),
    "weighted, smoothed": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), (K,), classes),
    "ignored": (nn.CrossEntropyLoss(), (K,), with_ignored(classes)),
    "ignored, own number": (nn.CrossEntropyLoss(ignore_index=0), (K,), classes),
    "ignored, own number out of range": (nn.CrossEntropyLoss(ignore_index=99), (K,), with_ignored(classes, 3, 99)),
    "weighted, ignored, smoothed": (
        nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=1, label_smoothing=0.1),
        (K,),
        classes,
    ),
    "sequences": (nn.CrossEntropyLoss(), (K, TIME), sequences),
    "sequences, ignored": (nn.CrossEntropyLoss(weight=WEIGHT), (K, TIME), with_ignored(sequences)),
    "sequences, transposed": (Transposed(ignore_index=2), (TIME, K), sequences),
    "pictures": (nn.CrossEntropyLoss(ignore_index=2), (K, 2, 3), sequences.view(BATCH, 2, 3)),
    "probabilities": (nn.CrossEntropyLoss(), (K,), probabilities),
    "probabilities, weighted": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), (K,), probabilities),
    "probabilities, sequences": (nn.CrossEntropyLoss(), (K, TIME), normal(BATCH, K, TIME).softmax(1)),
    "nll": (nn.NLLLoss(weight=WEIGHT, ignore_index=3), (K,), classes),
    "nll, sequences": (nn.NLLLoss(), (K, TIME), with_ignored(sequences)),
    "function": (F.cross_entropy, (K,), with_ignored(classes)),
    "function, nll": (F.nll_loss, (K,), with_ignored(classes)),
    "partial": (functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=2), (K,), classes),
    "partial of partial": (
        functools.partial(functools.partial(F.cross_entropy, weight=WEIGHT, ignore_index=1), ignore_index=2),
        (K,),
        classes,
    ),
    "soft cross-entropy": (soft_cross_entropy, (K,), with_ignored(classes)),
    "soft cross-entropy, made": (make("soft_cross_entropy", smoothing=0.1), (K, TIME), with_ignored(sequences)),
    "soft cross-entropy, probabilities": (soft_cross_entropy, (K,), probabilities),
    "soft cross-entropy, one-hot": (soft_cross_entropy, (K,), F.one_hot(classes, K)),
    "focal": (focal, (K,), classes),
    "focal, weighted": (make("focal", alpha=[1, 2, 3, 4]), (K, TIME), sequences),
    "focal, tags": (focal, (K,), F.one_hot(classes, K)),
    "own focal": (OwnFocal(weight=WEIGHT, reduction="none"), (K,), classes),
    "own function": (own, (K,), classes),
    "mse": (nn.MSELoss(), (K,), normal(BATCH, K, seed=4)),
    "l1": (nn.L1Loss(), (K, TIME), normal(BATCH, K, TIME, seed=4)),
    "huber": (nn.HuberLoss(delta=0.5), (), normal(BATCH, seed=4)),
    "bce": (nn.BCEWithLogitsLoss(pos_weight=POS_WEIGHT), (K,), F.one_hot(classes, K).double()),
    "bce, weighted": (nn.BCEWithLogitsLoss(weight=WEIGHT), (K,), F.one_hot(classes, K).double()),
    "kl, mean": (nn.KLDivLoss(), (K,), probabilities),
    "kl, batchmean": (nn.KLDivLoss(reduction="batchmean"), (K,), probabilities),
    "poisson": (nn.PoissonNLLLoss(), (K,), F.one_hot(classes, K).double()),
    "multi-margin": (nn.MultiMarginLoss(weight=WEIGHT), (K,), classes),
    "multi-label soft margin": (nn.MultiLabelSoftMarginLoss(weight=WEIGHT), (K,), F.one_hot(classes, K).double()),
    "sum": (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), (K,), with_ignored(classes)),
    "sum, mse": (nn.MSELoss(reduction="sum"), (K,), normal(BATCH, K, seed=4)),
    "sum, function": (functools.partial(F.cross_entropy, reduction="sum"), (K,), classes),
}


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("case", EXACT)
@pytest.mark.parametrize("cuts", [(5,), (1, 2, 9), (4, 8)])
def test_micro_batches_joined_by_their_counts_are_the_whole_batch(case, cuts):
    loss, shape, truth = EXACT[case]
    x = normal(BATCH, 7, seed=1)
    matrix = normal(7, math.prod(shape), seed=2).requires_grad_()

    def net(rows):
        return (rows @ matrix).view(len(rows), *shape)

    whole = loss(net(x), truth)
    (expected,) = torch.autograd.grad(whole, matrix)

    joined, counts = 0.0, 0.0
    edges = [0, *cuts, BATCH]
    for start, end in itertools.pairwise(edges):
        output, part = net(x[start:end]), truth[start:end]
        c = count(loss, output, part, end - start)
        if c is None:
            joined, counts = joined + loss(output, part), 1
        else:
            c = torch.as_tensor(c)
            joined = joined + torch.where(c > 0, c * loss(output, part), 0)
            counts = counts + c
    joined = joined / counts
    (gradient,) = torch.autograd.grad(joined, matrix)
    assert joined.item() == pytest.approx(whole.item(), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["weighted", "ignored", "weighted, ignored, smoothed"])
def test_counting_examples_instead_would_be_wrong(case):
    """The fault that counts are there for."""
    loss, _, truth = EXACT[case]
    output = normal(BATCH, K, seed=1)
    parts = [loss(output[s], truth[s]) * len(truth[s]) for s in (slice(0, 4), slice(4, 10))]
    assert abs(sum(parts) / BATCH - loss(output, truth)).item() > 1e-4


def test_counts_by_hand():
    output, truth = normal(4, 3), torch.tensor([0, 1, 2, -100])
    assert count(nn.CrossEntropyLoss(), output, truth, 4) == 3
    assert count(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0, 100.0])), output, truth, 4) == 111
    assert count(nn.CrossEntropyLoss(), normal(4, 3, 5), integers(3, 4, 5), 4) == 20
    assert count(nn.CrossEntropyLoss(), output, output.softmax(1), 4) == 4
    assert count(nn.CrossEntropyLoss(), normal(4, 3, 5), normal(4, 3, 5), 4) == 20
    assert count(nn.MSELoss(), output, output, 4) == 4
    assert count(lambda output, truth: output.mean(), output, truth, 4) == 4
    assert count(nn.CrossEntropyLoss(reduction="sum"), output, truth, 4) is None


def test_a_micro_batch_of_which_nothing_counts_adds_nothing_to_loss_and_gradient():
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), F.cross_entropy):
        output, truth = normal(3, K).requires_grad_(), torch.full((3,), -100)
        c = count(loss, output, truth, 3)
        added = torch.where(c > 0, c * loss(output, truth), 0)
        added.backward()
        assert c == 0 and added == 0 and not output.grad.any()


def test_a_loss_for_each_example_is_refused():
    for loss in (nn.CrossEntropyLoss(reduction="none"), functools.partial(F.mse_loss, reduction="none")):
        with pytest.raises(UsageError, match='reduction="mean"'):
            count(loss, normal(4, 3), normal(4, 3), 4)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch has no LinearCrossEntropyLoss")
def test_the_cross_entropy_that_holds_its_own_layer_counts_alike():
    x, truth = normal(BATCH, 7), with_ignored(classes)
    loss = nn.LinearCrossEntropyLoss(7, K, weight=WEIGHT, dtype=torch.float64)
    whole = loss(x, truth)
    parts = [(count(loss, x[s], truth[s], 5), loss(x[s], truth[s])) for s in (slice(0, 5), slice(5, 10))]
    joined = sum(c * part for c, part in parts) / sum(c for c, _ in parts)
    assert joined.item() == pytest.approx(whole.item(), rel=1e-12)
