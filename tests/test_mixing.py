"""Mixup and cutmix: the papers' formulas example by example, keyed, and as long as the batches within."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lamina.batches import Batch, Batches
from lamina.errors import UsageError
from lamina.keyed import Key
from lamina.mixing import Cutmix, Mixup, beta_quantiles, boxes, coefficients, partners

CHANCE = 1e-5  # what a p-value must exceed: the numbers are fixed, and there are some dozens of such tests
CLASSES = 5
BOTH = pytest.mark.parametrize("kind", [Mixup, Cutmix])


def key(n: int, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, epoch, torch.arange(n))


def batch(n: int = 64, channels: int = 2, height: int = 8, width: int = 10, seed: int = 3, epoch: int = 1) -> Batch:
    x = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))
    return Batch((x,), torch.arange(n) % CLASSES, torch.arange(100, 100 + n), n, epoch, seed)


def batches(n: int = 70, batch_size: int = 16, seed: int = 3) -> Batches:
    b = batch(n)
    return Batches(b.inputs, b.truth, batch_size=batch_size, seed=seed)


def drawn(kind: Any, b: Batch, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    name = kind.__name__.lower()
    k = Key(b.seed, b.epoch, b.indices)
    return coefficients(k, beta_quantiles(alpha), name), partners(k, f"{name} partner")


# --- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_coefficients_have_the_beta_distribution(alpha):
    kept = coefficients(key(20_000), beta_quantiles(alpha), "mixup").double().numpy()
    # The steps of the table are no fault of the draw: half a step is added to what chance allows.
    statistic = stats.kstest(kept, stats.beta(alpha, alpha).cdf).statistic
    assert stats.kstwo.sf(statistic - 0.5 / 4096, 20_000) > CHANCE
    assert abs(kept.mean() - 0.5) < 4.5 * kept.std() / np.sqrt(20_000)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_the_tables_moments_are_those_of_beta(alpha):
    table = beta_quantiles(alpha).double()
    assert table.mean().item() == pytest.approx(0.5, abs=1e-6)
    assert table.var(unbiased=False).item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)
    assert (table.diff() >= 0).all() and table[0] >= 0 and table[-1] <= 1


@given(indices=st.lists(st.integers(0, 10**9), min_size=1, max_size=60), epoch=st.integers(0, 1000))
@settings(deadline=None)
def test_partners_are_a_permutation(indices, epoch):
    partner = partners(Key(1, epoch, torch.tensor(indices)), "x")
    assert sorted(partner.tolist()) == list(range(len(indices)))


def test_every_partner_is_equally_likely():
    counts = np.zeros((6, 6))
    for epoch in range(3000):
        counts[np.arange(6), partners(key(6, epoch=epoch), "x").numpy()] += 1
    # A permutation's table has 5 * 5 free cells, and the sum of squares is scaled by 5/6 (as for ranks).
    statistic = ((counts - 500) ** 2 / 500).sum() * 5 / 6
    assert stats.chi2.sf(statistic, 25) > CHANCE


def test_boxes_are_those_of_the_papers_program():
    """`rand_bbox` of the authors' program, example by example, with our numbers in place of numpy's."""
    n, height, width = 500, 9, 14
    kept = torch.rand(n, generator=torch.Generator().manual_seed(0))
    pasted = boxes(key(n), kept, height, width)
    u = key(n).uniform("cutmix box", 2).numpy()
    for i in range(n):
        cut = np.sqrt(np.float32(1) - kept[i].numpy())
        cut_h, cut_w = int(height * cut), int(width * cut)
        cy, cx = int(u[i, 0] * height), int(u[i, 1] * width)
        top, bottom = np.clip(cy - cut_h // 2, 0, height), np.clip(cy + cut_h // 2, 0, height)
        left, right = np.clip(cx - cut_w // 2, 0, width), np.clip(cx + cut_w // 2, 0, width)
        expected = np.zeros((height, width), dtype=bool)
        expected[top:bottom, left:right] = True
        assert np.array_equal(pasted[i].numpy(), expected)


# --- the formulas -----------------------------------------------------------------------------------------------------


def test_mixup_is_the_formula():
    b = batch()
    mixed = Mixup(batches(), CLASSES, alpha=0.7).mixed(b)
    kept, partner = drawn(Mixup, b, 0.7)
    hot = np.eye(CLASSES)[b.truth.numpy()]
    x, y = b.inputs[0].double().numpy(), mixed.inputs[0].numpy()
    for i, (share, j) in enumerate(zip(kept.double().tolist(), partner.tolist(), strict=True)):
        np.testing.assert_allclose(y[i], share * x[i] + (1 - share) * x[j], atol=1e-6)
        np.testing.assert_allclose(mixed.truth[i].numpy(), share * hot[i] + (1 - share) * hot[j], atol=1e-6)


def test_cutmix_pastes_and_counts_the_pixels_pasted():
    b = batch()
    mixed = Cutmix(batches(), CLASSES).mixed(b)
    _, partner = drawn(Cutmix, b, 1.0)
    hot = np.eye(CLASSES)[b.truth.numpy()]
    shares = []
    for i, j in enumerate(partner.tolist()):
        own, other, y = b.inputs[0][i], b.inputs[0][j], mixed.inputs[0][i]
        pasted = (y != own).any(0)  # random pictures differ everywhere, except from themselves
        assert torch.equal(y, torch.where(pasted, other, own))
        share = pasted.double().mean().item()
        np.testing.assert_allclose(mixed.truth[i].numpy(), (1 - share) * hot[i] + share * hot[j], atol=1e-6)
        shares.append(share)
    assert min(shares) == 0 and max(shares) > 0.5


@BOTH
def test_answers_are_probabilities_that_the_loss_takes(kind):
    mixed = kind(batches(), CLASSES).mixed(batch())
    assert mixed.truth.shape == (64, CLASSES) and mixed.truth.dtype == torch.float32
    torch.testing.assert_close(mixed.truth.sum(1), torch.ones(64))
    assert mixed.truth.min() >= 0
    assert (mixed.truth > 0).sum(1).max() == 2  # something was mixed
    assert torch.isfinite(torch.nn.functional.cross_entropy(torch.zeros(64, CLASSES), mixed.truth))


@BOTH
@pytest.mark.parametrize("shape", [(), (1,), (4,)], ids=str)
def test_numbers_and_tags_are_mixed_as_they_are(kind, shape):
    b = batch()
    numbers = torch.rand(64, *shape, generator=torch.Generator().manual_seed(5))
    hot = kind(batches(), 64).mixed(replace(b, truth=torch.arange(64))).truth  # row i: who is in it, and how much
    mixed = kind(batches(), None).mixed(replace(b, truth=numbers)).truth
    assert mixed.shape == numbers.shape
    torch.testing.assert_close(mixed, (hot @ numbers.view(64, -1)).view(numbers.shape))


@BOTH
def test_half_precision_stays_and_the_rest_of_the_batch_too(kind):
    b = batch()
    mixed = kind(batches(), CLASSES).mixed(replace(b, inputs=(b.inputs[0].bfloat16(),)))
    assert mixed.inputs[0].dtype == torch.bfloat16
    assert (mixed.count, mixed.epoch, mixed.seed) == (b.count, b.epoch, b.seed)
    assert mixed.indices is b.indices


@BOTH
def test_the_batch_given_is_not_written_to(kind):
    b = batch()
    x, truth = b.inputs[0].clone(), b.truth.clone()
    mixed = kind(batches(), CLASSES).mixed(b)
    assert torch.equal(b.inputs[0], x) and torch.equal(b.truth, truth)
    assert not torch.equal(mixed.inputs[0], x)


def test_several_inputs_are_mixed_alike():
    b = batch()
    x = b.inputs[0]
    one, two = Mixup(batches(), CLASSES).mixed(replace(b, inputs=(x, x.mean((1, 2, 3))))).inputs
    torch.testing.assert_close(one.mean((1, 2, 3)), two)
    one, two = Cutmix(batches(), CLASSES).mixed(replace(b, inputs=(x, x[:, :1] * 2))).inputs
    assert torch.equal(one[:, :1] * 2, two)


@BOTH
def test_a_single_example_is_its_own_partner(kind):
    b = batch(1)
    mixed = kind(batches(), CLASSES).mixed(b)
    torch.testing.assert_close(mixed.inputs[0], b.inputs[0])
    assert mixed.truth.tolist() == [[1, 0, 0, 0, 0]]


def test_one_wraps_the_other():
    mixed = Mixup(Cutmix(batches(), CLASSES), CLASSES)
    for b in mixed.epoch(0):
        torch.testing.assert_close(b.truth.sum(1), torch.ones(b.count))


# --- a function of seed, epoch and indices ----------------------------------------------------------------------------


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.inputs[0], b.inputs[0]) and torch.equal(a.truth, b.truth)


@BOTH
def test_an_epoch_begun_in_the_middle_is_the_rest_of_the_whole(kind):
    whole = list(kind(batches(), CLASSES).epoch(2))
    assert len(whole) == 5
    for start in range(6):
        rest = list(kind(batches(), CLASSES).epoch(2, start))
        assert len(rest) == 5 - start
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@BOTH
def test_batches_epochs_and_seeds_are_mixed_differently(kind):
    b = batch()
    others = [replace(b, epoch=2), replace(b, seed=4), replace(b, indices=b.indices + 1)]
    results = [kind(batches(), CLASSES).mixed(x) for x in (b, *others)]
    for i, one in enumerate(results):
        assert not any(same(one, other) for other in results[i + 1 :])


@BOTH
def test_the_callers_generator_is_left_alone(kind):
    before = torch.get_rng_state()
    state: Any = np.random.get_state()
    list(kind(batches(), CLASSES).epoch(0))
    assert torch.equal(torch.get_rng_state(), before)
    after: Any = np.random.get_state()
    assert np.array_equal(after[1], state[1]) and after[2] == state[2]


# --- as the batches within --------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """Batches that have a state."""

    batch_size: int = 64
    seed: int = 7
    place: int = 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        yield batch(epoch=epoch)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(self.place)

    def __len__(self) -> int:
        return 1

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


@BOTH
def test_all_else_is_asked_of_the_batches_within(kind):
    inner = Counted()
    mixed = kind(inner, CLASSES)
    assert (len(mixed), mixed.batch_size, mixed.seed) == (1, 64, 7)
    mixed.load_state_dict({"place": 5})
    assert inner.place == 5 and mixed.state_dict() == {"place": 5}
    assert same(next(iter(mixed)), next(mixed.epoch(5)))
    with pytest.raises(AttributeError, match="'Counted' object has no attribute 'plce'"):
        _ = mixed.plce


@BOTH
def test_it_can_be_sent_to_another_process(kind):
    import pickle

    mixed = pickle.loads(pickle.dumps(kind(Counted(), CLASSES)))
    assert same(next(mixed.epoch(0)), next(kind(Counted(), CLASSES).epoch(0)))


# --- what is refused --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "change, classes, says",
    [
        (lambda b: {"inputs": ((b.inputs[0] * 255).to(torch.uint8),)}, CLASSES, r"torch\.uint8(.|\n)*after `prepare`"),
        (lambda b: {"inputs": (*b.inputs, b.truth)}, CLASSES, r"an input is torch\.int64"),
        (lambda b: {"truth": None}, CLASSES, "the answers are NoneType"),
        (lambda b: {"truth": (b.truth, b.truth)}, CLASSES, "the answers are tuple"),
        (lambda b: {}, None, "give classes=K"),
        (lambda b: {"truth": b.truth[:, None]}, CLASSES, "how many classes"),
        (lambda b: {"truth": torch.rand(64, 3)}, CLASSES, "classes=None for numbers and tags"),
        (lambda b: {"truth": torch.rand(64)}, CLASSES, "classes=None for numbers and tags"),
        (lambda b: {}, CLASSES - 1, r"there are classes \[4\]"),
        (lambda b: {"truth": b.truth - 1}, CLASSES, r"there are classes \[-1\]"),
    ],
)
def test_what_cannot_be_mixed_is_refused(kind, change, classes, says):
    b = batch()
    with pytest.raises(UsageError, match=says):
        kind(batches(), classes).mixed(replace(b, **change(b)))


@pytest.mark.parametrize("shapes", [[(64, 8)], [(64, 1, 8, 8), (64, 1, 4, 4)]], ids=str)
def test_cutmix_takes_pictures_of_one_size(shapes):
    b = replace(batch(), inputs=tuple(torch.zeros(shape) for shape in shapes))
    with pytest.raises(UsageError, match="pictures"):
        Cutmix(batches(), CLASSES).mixed(b)
    Mixup(batches(), CLASSES).mixed(b)


@BOTH
@pytest.mark.parametrize("alpha", [0, -1, float("inf"), float("nan")])
def test_a_wrong_alpha_is_refused(kind, alpha):
    with pytest.raises(UsageError, match="alpha"):
        kind(batches(), CLASSES, alpha)


@BOTH
@pytest.mark.parametrize("classes", [0, 1, -3])
def test_too_few_classes_are_refused(kind, classes):
    with pytest.raises(UsageError, match="2 or more"):
        kind(batches(), classes)


@BOTH
def test_uint8_is_refused_in_the_epoch_and_float_is_not(kind):
    x, truth = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % CLASSES
    with pytest.raises(UsageError, match="uint8"):
        list(kind(Batches(x, truth, batch_size=8), CLASSES).epoch(0))
    assert len(list(kind(Batches(x.float(), truth, batch_size=8), CLASSES).epoch(0))) == 3
