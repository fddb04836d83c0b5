"""The net of texts: it begins as naive Bayes and as the company of words, and its parts learn alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.naive_bayes import MultinomialNB

from lamina.errors import UsageError
from lamina.nets import textnet
from lamina.nets.textnet import Bag, TextNet


def texts(n=200, kinds=30, width=12, seed=0):
    """(numbers (n, width), each once a row and 0 at the end; classes (n,) that some of them tell)."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, 3, n)
    table = np.zeros((n, width), np.int32)
    for row, k in zip(table, classes, strict=True):
        weights = np.ones(kinds)
        weights[k * 5 : k * 5 + 5] = 4
        count = random.integers(1, width)
        row[:count] = 1 + random.choice(kinds, count, replace=False, p=weights / weights.sum())
    return torch.from_numpy(table), torch.from_numpy(classes)


def counts(grams, kinds):
    found = np.zeros((len(grams), kinds))
    for row, numbers in zip(found, grams.numpy(), strict=True):
        row[numbers[numbers > 0] - 1] = 1
    return found


def made(outputs=3, **arguments):
    torch.manual_seed(0)
    return TextNet(30, 30, 30, outputs, **{"embedding": 8, "channels": 6, **arguments})


def test_ratios_are_those_of_scikit_learns_naive_bayes():
    grams, classes = texts()
    found = textnet.ratios(grams, F.one_hot(classes).float(), 31)
    assert (found[0] == 0).all()
    for k in range(3):
        model = MultinomialNB(alpha=1.0).fit(counts(grams, 30), classes.numpy() == k)
        expected = model.feature_log_prob_[1] - model.feature_log_prob_[0]
        assert found[1:, k].numpy() == pytest.approx(expected, abs=1e-5)


def test_ratios_of_numbers_are_shrunken_mean_deviations():
    grams = torch.tensor([[1, 2], [1, 0], [0, 0], [2, 0]])
    found = textnet.ratios(grams, torch.tensor([[4.0], [2.0], [0.0], [-6.0]]), 3)
    assert found[:, 0].tolist() == pytest.approx([0, (4 + 2) / 3, (4 - 6) / 3])


def test_ratios_do_not_depend_on_how_many_texts_are_counted_together(monkeypatch):
    grams, classes = texts()
    whole = textnet.ratios(grams, F.one_hot(classes).float(), 31)
    monkeypatch.setattr(textnet, "_ROWS", 7)
    assert torch.allclose(textnet.ratios(grams, F.one_hot(classes).float(), 31), whole)


def test_a_bag_is_the_sum_over_the_root_of_how_many():
    bag = Bag(5, 2, share=0.5, speed=7.0).eval()
    bag.ratio.copy_(torch.arange(12.0).reshape(6, 2) * torch.tensor([[0.0], [1], [1], [1], [1], [1]]))
    with torch.no_grad():
        bag.gate.fill_(0.1)
        bag.bias.copy_(torch.tensor([1.0, -1.0]))
    found = bag(torch.tensor([[1, 3, 0, 0], [0, 0, 0, 0]]))
    weight = 0.5 + 7 * 0.1
    expected = (bag.ratio[1] + bag.ratio[3]) * weight / 2**0.5 + bag.bias
    assert torch.allclose(found[0], expected) and torch.equal(found[1], bag.bias)


def test_the_net_begins_with_the_answers_of_naive_bayes():
    grams, classes = texts(400)
    net = made(channels=0)
    net.start(grams, grams, grams, classes, F.cross_entropy)
    some, truth = texts(300, seed=1)
    with torch.no_grad():
        found = net.eval()(some, some, some).argmax(1)
    model = MultinomialNB(fit_prior=False).fit(counts(grams, 30), classes.numpy())
    said = model.predict(counts(some, 30))
    accuracy = (found == truth).double().mean()
    assert accuracy >= (said == truth.numpy()).mean() - 0.03 and accuracy > 0.6


def test_an_empty_text_is_told_how_often_each_class_comes():
    grams, _ = texts()
    classes = (torch.arange(200) % 4 == 0).long()
    net = made(2, channels=0)
    net.start(grams, grams, grams, classes, F.cross_entropy)
    nothing = torch.zeros(1, 12, dtype=torch.int32)
    with torch.no_grad():
        found = net.eval()(nothing, nothing, nothing).softmax(1)
    assert found[0].tolist() == pytest.approx([0.75, 0.25], abs=0.01)


@pytest.mark.parametrize(
    ("truth", "loss"),
    [
        (
            (torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) < 0.3).float(),
            F.binary_cross_entropy_with_logits,
        ),
        (torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), F.mse_loss),
    ],
)
def test_tags_and_numbers_have_a_start_too(truth, loss):
    grams, _ = texts()
    net = made()
    net.start(grams, grams, grams, truth, loss)
    with torch.no_grad():
        output = net.eval()(grams, grams, grams)
        assert torch.isfinite(output).all() and loss(output, truth) < loss(torch.zeros_like(truth), truth)


def test_texts_whose_classes_take_turns_begin_no_worse():
    grams, classes = texts(400)
    order = torch.argsort(torch.argsort(classes, stable=True) % 134, stable=True)  # one of each class, and so on
    nets = [made(channels=0), made(channels=0)]
    for net, rows in zip(nets, (torch.arange(400), order), strict=True):
        net.start(grams[rows], grams[rows], grams[rows], classes[rows], F.cross_entropy)
    one, other = (net.words.ratio.abs().max() for net in nets)
    assert 0.5 < one / other < 2


def test_the_scale_of_a_start_is_one_at_which_halves_answer_for_each_other():
    """Where words say nothing, the start says nothing either."""
    grams, _ = texts(400)
    noise = torch.from_numpy(np.random.default_rng(5).integers(0, 3, 400))
    net = made(channels=0)
    net.start(grams, grams, grams, noise, F.cross_entropy)
    with torch.no_grad():
        probabilities = net.eval()(grams, grams, grams).softmax(1)
    assert probabilities.max() < 0.5


def test_the_parts_answer_apart_while_training_and_together_afterwards():
    net = made()
    grams, _ = texts(4)
    assert net.members == 3 and net.train()(grams, grams, grams).shape == (4, 3, 3)
    net.eval()
    parts = [net.words(grams), net.pieces(grams), net.convolution(grams)]
    assert torch.allclose(net(grams, grams, grams), sum(parts) / 3)
    assert made(channels=0).members == 2


def test_padding_says_nothing():
    net = made().eval()
    grams, _ = texts(5)
    wider = F.pad(grams, (0, 9))
    assert torch.allclose(net(grams, grams, grams), net(wider, wider, wider), atol=1e-6)


def test_company_is_the_mutual_information_of_a_brute_force_count():
    random = np.random.default_rng(0)
    tokens = random.integers(1, 9, (60, 15)) * (random.random((60, 15)) < 0.9)
    found = textnet.company(torch.from_numpy(tokens.astype(np.int32)), 9, 9).double().numpy()
    both = np.zeros((9, 9))
    for row in tokens:
        for i, one in enumerate(row):
            for j in range(max(0, i - textnet.NEAR), min(15, i + textnet.NEAR + 1)):
                if i != j and one and row[j]:
                    both[one, row[j]] += 1
    often = both.sum(1)
    chance = often**0.75 / (often**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        more = np.nan_to_num(np.log(np.maximum(both / (often[:, None] * chance), 1.0)))
    values, vectors = np.linalg.eigh((more + more.T) / 2)
    best = np.argsort(-np.abs(values))
    expected = vectors[:, best] * np.sqrt(np.abs(values[best]))
    expected *= 0.1 / np.sqrt((expected**2).mean())
    assert (found[0] == 0).all() and found @ found.T == pytest.approx(expected @ expected.T, abs=1e-4)


def test_words_in_the_same_company_lie_near_one_another():
    random = np.random.default_rng(0)
    seas, lands = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]
    rows = [random.choice(seas if k % 2 else lands, 10) for k in range(300)]
    found = F.normalize(textnet.company(torch.tensor(np.array(rows)), 11, 4)[1:], dim=1)
    alike = found @ found.T
    assert alike[:5, :5].mean() > alike[:5, 5:].mean() + 0.5


def test_the_net_is_exported_and_gives_the_same():
    net = made().eval()
    grams, _ = texts(4)
    program = torch.export.export(net, (grams, grams, grams)).module()
    assert torch.allclose(program(grams, grams, grams), net(grams, grams, grams))


def test_larger_sizes_are_larger_and_arguments_win():
    sizes = [sum(p.numel() for p in TextNet.fitted((30, 30, 30), 2, size).parameters()) for size in textnet.SIZES]
    assert sizes == sorted(set(sizes))
    assert TextNet.fitted((30, 30, 30), 2, "large", channels=5, kernels="3").convolution.out.in_features == 5 + 256
    assert TextNet.fitted((0, 0, 1), 2).eval()(*[torch.zeros(3, 1, dtype=torch.int32)] * 3).shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernels": "1,4"}, "odd"),
        ({"kernels": "x"}, "kernels"),
        ({"gram_dropout": 1.0}, "gram_dropout"),
        ({"embedding": 0}, "embedding"),
        ({"channels": -1}, "channels"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        TextNet(3, 3, 3, 2, **arguments)
    with pytest.raises(UsageError, match="small"):
        TextNet.fitted((3, 3, 3), 2, "smal")
