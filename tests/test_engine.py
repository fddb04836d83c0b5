"""The loop: the same bits as the loop written by hand, the same step as the big batch, and no step that is not finite."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lamina
from lamina import devices
from lamina.batches import Batch, Batches
from lamina.engine import supervised
from lamina.errors import DataError, Diverged, UsageError
from lamina.state import TrainState

torch.manual_seed(0)
X, Y = torch.randn(50, 6), torch.randint(0, 3, (50,))
PARTS = [(X[k : k + 8], Y[k : k + 8]) for k in range(0, 50, 8)]  # six of 8 and one of 2


class Net(nn.Module):
    """Dropout and batch statistics: every draw and every mode matters."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.norm, self.drop, self.two = (
            nn.Linear(6, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.3),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        return self.two(self.drop(torch.relu(self.norm(self.one(x)))))


def run(learning):
    """Walk to the end; the last progress."""
    progress = None
    for progress in learning:  # noqa: B007
        pass
    return progress


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same_bits(net, other):
    assert net.state_dict().keys() == other.state_dict().keys()
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def adam(net):
    return torch.optim.Adam(net.parameters(), lr=1e-2)


# --- The same bits as the loop by hand --------------------------------------------------------------------------------


def by_hand(net, loader, optimizer, epochs=3, *, before=None, after=None, extra=None, loss=F.cross_entropy):
    """The loop of every tutorial."""
    net.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            value = loss(net(x), y)
            if extra is not None:
                value = value + extra(net)
            value.backward()
            if before is not None:
                before(net)
            optimizer.step()
            if after is not None:
                after(net)
    return net


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam])
def test_gradients_that_are_sparse_give_the_bits_of_the_plain_loop(kind, compile):
    torch.manual_seed(0)
    net = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Tanh())
    if kind is not torch.optim.SparseAdam:  # which takes no others
        net.append(nn.Linear(4, 4))
    other = copy.deepcopy(net)
    parts = [(torch.randint(0, 9, (6, 3)), torch.randint(0, 4, (6,))) for _ in range(5)]
    run(lamina.learn(net, parts, F.cross_entropy, kind(net.parameters(), lr=0.1), epochs=3, compile=compile))
    by_hand(other, parts, kind(other.parameters(), lr=0.1))
    assert_same_bits(net, other)
    assert net[0].weight.grad.layout == torch.sparse_coo


def test_gradients_that_become_sparse_are_no_fault():
    """Parameters that were laid flat before get their own memory again."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 4))
    other = copy.deepcopy(net)
    parts = [(torch.randint(0, 9, (6, 3)), torch.randint(0, 4, (6,))) for _ in range(8)]

    def sparse(trained):
        trained[0].sparse = True

    for progress in lamina.learn(net, parts, F.cross_entropy, sgd(net), epochs=1, compile="off"):
        if progress.step == 4:
            sparse(net)
    optimizer = sgd(other)
    by_hand(other, parts[:4], optimizer, 1)
    sparse(other)
    by_hand(other, parts[4:], optimizer, 1)
    assert_same_bits(net, other)


def test_an_optimiser_that_measures_the_loss_again_is_refused():
    net = Net()
    with pytest.raises(UsageError, match=r"'LBFGS' measures the loss several times(.|\n)*torch\.optim\.LBFGS"):
        run(lamina.learn(net, PARTS, F.cross_entropy, torch.optim.LBFGS(net.parameters())))


def l1_of_all(net):
    return 1e-3 * sum(parameter.abs().sum() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("make", "options", "hand"),
    [
        (sgd, {}, {}),
        (adam, {}, {}),
        (
            sgd,
            {"clip_norm": 0.5, "strict": True},
            {"before": lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.5)},
        ),
        (sgd, {"clip_value": 0.01}, {"before": lambda net: nn.utils.clip_grad_value_(net.parameters(), 0.01)}),
        (adam, {"penalty": l1_of_all}, {"extra": l1_of_all}),
    ],
    ids=["sgd", "adam", "clip_norm", "clip_value", "penalty"],
)
def test_learn_is_the_loop_by_hand_bit_for_bit(make, options, hand):
    net, other = Net(), Net()
    torch.manual_seed(7)
    run(lamina.learn(net, PARTS, nn.CrossEntropyLoss(), make(net), epochs=3, **options))
    torch.manual_seed(7)
    by_hand(other, PARTS, make(other), **hand)
    assert_same_bits(net, other)


def test_the_comparison_of_bits_sees_another_draw_of_dropout():
    nets = [Net(), Net()]
    for seed, net in enumerate(nets):
        torch.manual_seed(seed)
        by_hand(net, PARTS, sgd(net))
    with pytest.raises(AssertionError):
        assert_same_bits(*nets)


def test_a_schedule_is_a_factor_of_each_groups_own_rate():
    def factor(step):
        return 1 / (1 + 0.1 * step)

    def make(net):
        return torch.optim.SGD([{"params": net.one.parameters()}, {"params": net.two.parameters(), "lr": 0.5}], lr=0.1)

    net, other = Net(), Net()
    rates = []
    torch.manual_seed(7)
    for progress in lamina.learn(net, PARTS, F.cross_entropy, make(net), epochs=3, schedule=factor):
        rates.append(progress.learning_rate)
    torch.manual_seed(7)
    optimizer = make(other)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    by_hand(other, PARTS, optimizer, after=lambda net: scheduler.step())
    assert_same_bits(net, other)
    assert rates == [0.1 * factor(step) for step in range(21)]


def test_without_a_schedule_the_rate_is_the_callers():
    net, other = Net(), Net()
    optimizer, plain = sgd(net), sgd(other)
    torch.manual_seed(7)
    for progress in lamina.learn(net, PARTS, F.cross_entropy, optimizer, epochs=3):
        progress.optimizer.param_groups[0]["lr"] *= 0.9
    torch.manual_seed(7)
    by_hand(other, PARTS, plain, after=lambda net: plain.param_groups[0].update(lr=plain.param_groups[0]["lr"] * 0.9))
    assert_same_bits(net, other)
    assert optimizer.param_groups[0].keys() == plain.param_groups[0].keys()  # nothing of ours is left in there


def test_the_average_of_the_weights_is_updated_after_each_step():
    net, other = Net(), Net()
    ema, plain = (AveragedModel(n, avg_fn=lambda old, new, k: 0.9 * old + 0.1 * new) for n in (net, other))
    torch.manual_seed(7)
    run(lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=3, ema=ema))
    torch.manual_seed(7)
    by_hand(other, PARTS, sgd(other), after=plain.update_parameters)
    assert_same_bits(ema, plain)
    assert int(ema.n_averaged) == 21


def test_a_states_schedule_and_average_are_used_where_no_others_are_given():
    net, other = Net(), Net()
    ema = AveragedModel(net)
    state = TrainState(net, sgd(net), schedule=lambda step: 0.5**step, ema=ema)
    torch.manual_seed(7)
    progress = run(lamina.learn(net, PARTS, F.cross_entropy, state=state))
    assert progress.learning_rate == 0.05 * 0.5**6 and int(ema.n_averaged) == 7
    torch.manual_seed(7)
    run(lamina.learn(other, PARTS, F.cross_entropy, sgd(other), schedule=lambda step: 0.5**step))
    assert_same_bits(net, other)


class Noisy(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, k):
        return X[k] + 0.1 * torch.randn(6), Y[k]


@pytest.mark.parametrize(
    ("dataset", "workers"),
    [(TensorDataset(X, Y), 0), (Noisy(), 0), (Noisy(), 2)],
    ids=["dropout", "random transforms", "two workers"],
)
def test_a_loader_of_yours_gives_the_weights_of_the_plain_loop(dataset, workers):
    """Shuffling, transforms and dropout draw from one generator: no draw more, none less, in the same order."""
    net, other = Net(), Net()
    torch.manual_seed(3)
    run(
        lamina.learn(
            net, DataLoader(dataset, 8, shuffle=True, num_workers=workers), F.cross_entropy, adam(net), epochs=2
        )
    )
    torch.manual_seed(3)
    by_hand(other, DataLoader(dataset, 8, shuffle=True, num_workers=workers), adam(other), epochs=2)
    assert_same_bits(net, other)


def test_columns_and_a_dataset_of_them_give_the_same_weights():
    nets = [Net(), Net()]
    for net, data in zip(nets, [lamina.Batches(X, Y, batch_size=64), TensorDataset(X, Y)], strict=True):
        torch.manual_seed(3)
        run(lamina.learn(net, data, F.cross_entropy, adam(net), epochs=3))
    assert_same_bits(*nets)


# --- Accumulation -----------------------------------------------------------------------------------------------------

wide = functools.partial(torch.randn, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
INPUTS = wide(23, 5)
CLASSES = torch.arange(23) ** 2 % 4
NUMBERS = wide(23, 4)
TOKENS = torch.where(torch.arange(23 * 6).reshape(23, 6) % 7 < torch.arange(23)[:, None] % 6, -100, CLASSES[:, None])
TOKENS[4:8] = -100  # the second micro-batch of 4: its loss alone is 0/0
TAGS = (wide(23, 4) > 0).double()
WEIGHT = torch.tensor([0.1, 3.0, 1.0, 7.0], dtype=torch.float64)


class Small(nn.Module):
    """float64; (B, 5) -> (B, 4), or with positions (B, 4, 6)."""

    def __init__(self, positions=0):
        super().__init__()
        torch.manual_seed(2)
        self.positions = positions
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4 * max(1, positions))).double()

    def forward(self, x):
        output = self.layers(x)
        return output.reshape(len(x), 4, self.positions) if self.positions else output


LOSSES = {
    "cross entropy": (nn.CrossEntropyLoss(), CLASSES),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHT), CLASSES),
    "class weights and smoothing": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), CLASSES),
    "tokens, some ignored": (nn.CrossEntropyLoss(), TOKENS),
    "a sum": (nn.CrossEntropyLoss(reduction="sum"), CLASSES),
    "numbers": (nn.MSELoss(), NUMBERS),
    "tags": (nn.BCEWithLogitsLoss(), TAGS),
    "a function": (F.smooth_l1_loss, NUMBERS),
}


def cut(truth, size):
    return [(INPUTS[k : k + size], truth[k : k + size]) for k in range(0, 23, size)]


def accumulated(loss, truth, size, accumulate, steps=None, **options):
    net = Small(6 if truth.shape[1:] == (6,) else 0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    progress = run(lamina.learn(net, cut(truth, size), loss, optimizer, epochs=3, accumulate=accumulate, **options))
    return net, progress


def big(loss, truth, size, **hand):
    net = Small(6 if truth.shape[1:] == (6,) else 0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    return by_hand(net, cut(truth, size), optimizer, loss=loss, **hand)


def distance(net, other):
    return max((p - q).abs().max().item() for p, q in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("size, times", [(4, 3), (4, 2), (5, 4), (2, 5), (23, 2)])
@pytest.mark.parametrize("name", LOSSES)
def test_accumulated_micro_batches_are_the_big_batch(name, size, times):
    """23 examples: the last window is shorter, and so is its last micro-batch."""
    loss, truth = LOSSES[name]
    net, progress = accumulated(loss, truth, size, times)
    assert distance(net, big(loss, truth, size * times)) < 1e-12
    assert progress.step == 3 * -(-23 // (size * times)) and progress.examples == 3 * 23


def test_the_mean_of_the_micro_batches_means_is_not_the_big_batch():
    """What most trainers do, and what the test above would see."""
    loss, truth = LOSSES["tokens, some ignored"]
    net = Small(6)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(3):
        for window in (cut(truth, 4)[:3], cut(truth, 4)[3:]):
            optimizer.zero_grad()
            for x, y in window:
                (loss(net(x), y).nan_to_num() / len(window)).backward()
            optimizer.step()
    assert distance(net, big(loss, truth, 12)) > 1e-4


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({"clip_norm": 0.1}, {"before": lambda net: nn.utils.clip_grad_norm_(net.parameters(), 0.1)}),
        ({"penalty": l1_of_all}, {"extra": l1_of_all}),
    ],
    ids=["clip_norm", "penalty"],
)
def test_clipping_and_penalties_see_the_whole_step(options, hand):
    loss, truth = LOSSES["class weights"]
    net, _ = accumulated(loss, truth, 4, 3, **options)
    assert distance(net, big(loss, truth, 12, **hand)) < 1e-12


def test_the_loss_of_an_accumulated_step_is_that_of_the_big_batch():
    for name in ("class weights", "tokens, some ignored", "a sum", "numbers"):
        loss, truth = LOSSES[name]
        found = {}
        for size, times in ((12, 1), (4, 3)):
            net = Small(6 if truth.shape[1:] == (6,) else 0)
            learning = lamina.learn(net, cut(truth, size), loss, sgd(net), accumulate=times, penalty=l1_of_all)
            found[times] = [progress.loss for progress in learning]
        assert found[1] == pytest.approx(found[3], rel=1e-12), name


def test_accumulating_fewer_than_one_batch_is_refused():
    with pytest.raises(UsageError, match="accumulate is 0"):
        next(lamina.learn(Net(), PARTS, F.cross_entropy, sgd(Net()), accumulate=0))


# --- What a progress says ---------------------------------------------------------------------------------------------


def test_progress_counts_steps_batches_epochs_and_examples():
    net = Net()
    found = [
        (p.epoch, p.batch, p.epoch_end, p.step, p.examples)
        for p in lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=2)
    ]
    seen = list(itertools.accumulate([8, 8, 8, 8, 8, 8, 2] * 2))
    assert found == [(k // 7, k % 7, k % 7 == 6, k + 1, seen[k]) for k in range(14)]


def test_progress_of_accumulated_steps_points_to_the_last_micro_batch():
    net = Net()
    learning = lamina.learn(net, PARTS, F.cross_entropy, sgd(net), accumulate=3)
    assert [(p.batch, p.epoch_end, p.step, p.batch_data.count) for p in learning] == [
        (2, False, 1, 8), (5, False, 2, 8), (6, True, 3, 2)
    ]  # fmt: skip


def test_progress_knows_what_is_planned():
    net = Net()
    first = next(lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=4, accumulate=2))
    assert (first.epochs, first.batches, first.steps) == (4, 7, 16)
    assert first.net is net and "epoch=0, batch=1, step=1" in repr(first)


def test_the_mean_loss_is_that_of_the_examples_of_the_epoch_so_far():
    net = Net()
    total = count = 0.0
    for progress in lamina.learn(
        net, PARTS, F.cross_entropy, sgd(net), epochs=2, penalty=lambda net: torch.tensor(5.0)
    ):
        if progress.batch == 0:
            total = count = 0.0
        total, count = total + (progress.loss - 5) * progress.batch_data.count, count + progress.batch_data.count
        assert progress.mean_loss == pytest.approx(total / count, rel=1e-5)
    assert count == 50


def test_the_mean_loss_of_many_steps_is_added_up_without_rounding():
    net, parts = Net(), PARTS * 200
    losses, counts = [], []
    for progress in lamina.learn(net, parts, F.cross_entropy, sgd(net)):
        losses.append(progress.loss)
        counts.append(progress.batch_data.count)
    assert isinstance(progress.state.loss_sum, float)
    assert progress.mean_loss == pytest.approx(np.average(losses, weights=counts), rel=1e-12)


@pytest.mark.parametrize("make", [sgd, lambda net: fused(net)], ids=["plain", "fused"])
def test_losses_on_a_device_that_is_not_waited_for_are_added_up_there(make, monkeypatch):
    found = []
    for near in (True, False):
        monkeypatch.setattr("lamina.engine._is_near", lambda tensor, near=near: near)
        net = Net()
        torch.manual_seed(3)
        progress = list(lamina.learn(net, PARTS, F.cross_entropy, make(net), epochs=2))[-1]
        assert isinstance(progress.state.loss_sum, float if near else torch.Tensor)
        found.append((progress.mean_loss, *net.parameters()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(found[0][1:], found[1][1:], strict=True))


@pytest.mark.parametrize("stored", [3.5, torch.tensor(3.5)], ids=["a number", "a tensor, as on a GPU or of before"])
def test_a_sum_of_losses_that_was_stored_is_gone_on_with(stored):
    net = Net()
    parts = [PARTS[0]] * 5
    state = TrainState(net, sgd(net), batch=3, loss_sum=stored, loss_count=24)
    progress = next(lamina.learn(net, parts, F.cross_entropy, state=state))
    count = len(PARTS[0][0])
    assert progress.mean_loss == pytest.approx((3.5 + count * progress.loss) / (24 + count))


@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_loss_of_a_net_that_stands_still_is_the_loss_of_all_examples(name):
    loss, truth = LOSSES[name]
    truth = truth[torch.arange(23) >= 8] if name == "tokens, some ignored" else truth
    inputs = INPUTS[-len(truth) :]
    net = Small(6 if truth.shape[1:] == (6,) else 0)
    parts = [(inputs[k : k + 4], truth[k : k + 4]) for k in range(0, len(truth), 4)]
    progress = run(lamina.learn(net, parts, loss, torch.optim.SGD(net.parameters(), lr=0.0)))
    whole = loss(net(inputs), truth).item() / (len(truth) if name == "a sum" else 1)
    assert progress.mean_loss == pytest.approx(whole, rel=1e-5)


def test_scores_of_the_caller_last_until_the_next_epoch_ends():
    net = Net()
    for progress in lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=2):
        assert progress.scores == ({} if progress.epoch_end or progress.epoch == 0 else {"valid/loss": 0})
        if progress.epoch_end:
            progress.scores["valid/loss"] = progress.epoch


# --- How long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 6, 7, 8, 20])
def test_steps_stop_exactly_and_take_the_place_of_epochs(steps):
    net = Net()
    progress = run(lamina.learn(net, PARTS, F.cross_entropy, sgd(net), steps=steps))
    assert progress.step == progress.steps == steps and progress.epoch == (steps - 1) // 7


def test_without_epochs_or_steps_the_caller_stops():
    net = Net()
    for progress in lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=None):
        if progress.step == 30:
            break
    assert progress.epoch == 4 and progress.steps is None


class Stream(IterableDataset):
    """A stream that may say how long it is."""

    def __init__(self, n=50, says=None):
        self.n = n
        if says is not None:
            self.__class__ = type("Measured", (Stream,), {"__len__": lambda self: says})

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, every = (0, 1) if info is None else (info.id, info.num_workers)
        yield from ((X[k], Y[k]) for k in range(first, self.n, every))


def test_batches_of_unknown_length_end_their_epochs_all_the_same():
    net, other = Net(), Net()
    torch.manual_seed(7)
    learning = lamina.learn(net, DataLoader(Stream(), batch_size=8), F.cross_entropy, sgd(net), epochs=2)
    found = [(p.epoch, p.batch, p.epoch_end, p.batches, p.steps) for p in learning]
    assert found == [(k // 7, k % 7, k % 7 == 6, None, None) for k in range(14)]
    torch.manual_seed(7)
    by_hand(other, DataLoader(Stream(), batch_size=8), sgd(other), epochs=2)
    assert_same_bits(net, other)


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize("says", [10, 50, 90])
def test_a_stream_that_is_longer_or_shorter_than_it_says_is_walked_to_its_end(says):
    """With several workers torch's own loaders give other numbers of batches than their len()."""
    net = Net()
    loader = DataLoader(Stream(says=says), batch_size=8)
    found = [(p.epoch, p.batch, p.epoch_end) for p in lamina.learn(net, loader, F.cross_entropy, sgd(net), epochs=2)]
    assert found == [(k // 7, k % 7, k % 7 == 6) for k in range(14)]


class Endless:
    """A sampler that does not know how many rows it gives."""

    def __iter__(self):
        yield from (7 * k % 50 for k in range(50))


def test_rows_of_tensors_in_an_order_of_unknown_length_are_each_learned_from():
    """One batch is read ahead there, so it cannot lie in the memory of the one before."""
    net, other = Net(), Net()
    rows = TensorDataset(X[:50], Y[:50])
    torch.manual_seed(7)
    run(lamina.learn(net, DataLoader(rows, batch_size=10, sampler=Endless()), F.cross_entropy, sgd(net), epochs=2))
    torch.manual_seed(7)
    by_hand(other, DataLoader(rows, batch_size=10, sampler=Endless()), sgd(other), epochs=2)
    assert_same_bits(net, other)


class Lying:
    def __iter__(self):
        return iter(PARTS)

    def __len__(self):
        return 5


def test_an_iterable_that_gives_more_than_its_length_is_refused():
    net = Net()
    with pytest.raises(DataError, match="more batches than the 5 its len"):
        run(lamina.learn(net, Lying(), F.cross_entropy, sgd(net)))


@pytest.mark.parametrize(
    "batches", [[], iter([]), DataLoader(Stream(0), batch_size=4)], ids=["list", "iterator", "stream"]
)
def test_an_empty_epoch_is_refused(batches):
    net = Net()
    with pytest.raises(DataError, match="Epoch 1 gave no batch"):
        run(lamina.learn(net, batches, F.cross_entropy, sgd(net)))


def test_what_can_be_walked_only_once_is_refused_in_the_second_epoch():
    net = Net()
    with pytest.raises(DataError, match="Epoch 2 gave no batch"):
        run(lamina.learn(net, (part for part in PARTS), F.cross_entropy, sgd(net), epochs=2))


def test_learning_goes_on_from_a_state():
    net, other = Net(), Net()
    state = TrainState(net, sgd(net))
    torch.manual_seed(7)
    for k, _ in enumerate(lamina.learn(net, PARTS, F.cross_entropy, state=state, epochs=3)):
        if k == 9:
            break
    assert (state.epoch, state.batch, state.step, state.examples) == (1, 3, 10, 50 + 24)
    progress = run(lamina.learn(net, PARTS, F.cross_entropy, state=state, epochs=3))
    assert progress.step == 21 and progress.examples == 150
    torch.manual_seed(7)
    by_hand(other, PARTS, sgd(other))
    assert_same_bits(net, other)


# --- Modes of the net -------------------------------------------------------------------------------------------------


def test_after_the_caller_evaluates_the_modes_are_as_they_were():
    net, other = Net(), Net()
    torch.manual_seed(7)
    for _ in lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=3):
        net.eval()
        with torch.no_grad():
            net(X)
    torch.manual_seed(7)
    by_hand(other, PARTS, sgd(other))
    assert_same_bits(net, other)


def test_a_net_in_evaluation_mode_is_put_into_training_mode():
    net = Net().eval()
    next(lamina.learn(net, PARTS, F.cross_entropy, sgd(net)))
    assert all(module.training for module in net.modules())


def test_a_batch_norm_that_was_frozen_before_stays_frozen():
    net = Net()
    net.norm.eval()
    before = net.norm.running_mean.clone()
    for progress in lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=2):
        if progress.batch == 2:
            net.eval()
    assert torch.equal(net.norm.running_mean, before) and not net.norm.training and net.drop.training


def test_a_batch_norm_that_is_frozen_on_the_way_stays_frozen():
    net = Net()
    for progress in lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=2):
        if progress.step == 3:
            net.norm.eval()
            before = net.norm.running_mean.clone()
        if progress.step == 5:
            net.eval()
    assert torch.equal(net.norm.running_mean, before) and net.training


# --- Losses that are not finite ---------------------------------------------------------------------------------------


def diverge(net, parts, loss=F.cross_entropy, make=sgd, **options):
    """Learn until it diverges: the error, and whether the weights are those before the step."""
    kept = [weights(net)]
    learning = lamina.learn(net, parts, loss, make(net), **options)
    with pytest.raises(Diverged) as error:
        kept.extend(weights(net) for _ in learning)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, kept[-1][name]), f"{name} was changed by a step that was not finite"
    return error.value


def with_row(k, values, parts=X):
    x = parts.clone()
    x[k] = values
    return x


def plain_net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers)


def test_one_example_that_is_not_finite_is_named():
    batches = lamina.Batches(with_row(31, float("nan")), Y, batch_size=8)
    error = diverge(Net(), batches)
    assert "the inputs of the batch are not finite, for row 31" in error.what and "is nan" in error.what
    assert "rate (now 0.05)" in error.fix


def test_an_answer_that_is_not_finite_is_named():
    truth = torch.zeros(50, 1)
    truth[[9, 12]] = float("inf")
    error = diverge(nn.Linear(6, 1), lamina.Batches(X, truth, batch_size=16, shuffle=False), F.mse_loss)
    assert "the answers of the batch are not finite, for rows 9, 12" in error.what


class Exp(nn.Module):
    def forward(self, x):
        return x.exp()


def test_the_layer_in_which_one_example_overflows_is_named():
    net = plain_net(nn.Linear(6, 4), Exp(), nn.Linear(4, 3))
    nn.init.constant_(net[0].weight, 0.1)
    error = diverge(net, lamina.Batches(with_row(20, 1e4), Y, batch_size=8, shuffle=False))
    assert "in layer '1' (Exp), for row 20" in error.what
    assert "step 3 (epoch 1)" in error.what


def test_a_layer_that_fails_at_the_seventeenth_batch_is_named():
    class Failing(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * (float("nan") if self.calls >= 17 else 1.0)

    net = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(5, 5), "c": Failing(5, 3)})
    net.forward = lambda x: net["c"](net["b"](net["a"](x)))
    error = diverge(net, PARTS, epochs=5)
    assert "step 17 (epoch 3)" in error.what and "in layer 'c' (Failing)." in error.what


def test_a_function_between_the_layers_is_not_blamed_on_a_layer_or_on_the_data():
    class Logarithm(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.two(torch.log(self.one(x)))

    error = diverge(Logarithm(), lamina.Batches(X, Y, batch_size=8))
    assert "before layer 'two' (Linear), which is given such values" in error.what


def test_a_function_after_the_last_layer_is_found():
    class Last(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Last(6, 3)

        def forward(self, x):
            return self.body(x) / (x[:, :1] != 77)

    error = diverge(Whole(), lamina.Batches(with_row(20, 77.0), Y, batch_size=8, shuffle=False))
    assert "in the forward() of Whole, not in its layers, for row 20" in error.what


def test_a_layer_that_gives_several_tensors_is_looked_into():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.two = nn.GRU(6, 4, batch_first=True), nn.Linear(4, 3)
            self.bad = False

        def forward(self, x):
            output, _ = self.gru(x[:, None])
            return self.two(output[:, 0])

    net = Recurrent()
    net.gru.register_forward_hook(lambda module, given, output: (output[0] / 0, output[1]))
    assert "in layer 'gru' (GRU)" in diverge(net, PARTS).what


def test_a_loss_that_is_infinite_for_one_example_names_it():
    def likelihood(output, truth):
        return -torch.log(output.clamp(0, 1)).mean()  # of 0 it is infinite

    net = plain_net(nn.Linear(6, 1, bias=False), nn.Sigmoid())
    x = X.abs()
    nn.init.constant_(net[0].weight, 0.1)
    x[33] = -1e4
    error = diverge(net, lamina.Batches(x, Y, batch_size=16, shuffle=False), likelihood)
    assert "every layer's output is finite, so it is the loss itself, for row 33" in error.what
    assert all(module.training for module in net.modules())


def test_a_loss_that_is_never_finite_names_no_example():
    error = diverge(Net(), PARTS, lambda output, truth: output.sum() * float("nan"))
    assert "so it is the loss itself." in error.what


def root(output, truth):
    return output.sum().mul(0).sqrt() + output.square().mean()  # d sqrt(u) = 1 / 0


def test_an_infinite_gradient_of_a_finite_loss_is_seen_before_the_weights_meet_it():
    error = diverge(nn.Linear(6, 3), PARTS, root)
    assert "A gradient of step 1" in error.what and "of the loss, not of a layer (SqrtBackward0)" in error.what


def test_the_layer_whose_backward_pass_is_not_finite_is_named():
    class Root(nn.Module):
        def forward(self, x):
            return x.mul(0).sqrt()

    net = nn.ModuleDict({"a": nn.Linear(6, 5), "root": Root(), "b": nn.Linear(5, 3)})
    net.forward = lambda x: net["b"](net["root"](net["a"](x)))
    error = diverge(net, PARTS)
    assert "in the backward pass of layer 'root' (Root)" in error.what and error.layer == "'root' (Root)"


def test_weights_that_are_not_finite_are_named_as_the_cause():
    net = nn.Linear(6, 3)
    learning = lamina.learn(net, PARTS, F.cross_entropy, sgd(net))
    next(learning)
    net.weight.data.fill_(float("nan")), net.bias.data.fill_(float("inf"))
    with pytest.raises(Diverged, match="the weights of weight, bias are not finite since the step before"):
        next(learning)


def test_gradients_that_are_large_but_finite_go_on():
    """Their sum overflows, they do not."""

    def steep(output, truth):
        return (output.sum() - output.sum().detach()) * 3e37

    net = nn.Linear(6, 3)
    last = run(lamina.learn(net, PARTS[:6], steep, torch.optim.SGD(net.parameters(), lr=1e-38)))
    assert last.step == 6 and not torch.isfinite(net.bias.grad.sum()) and torch.isfinite(net.weight).all()


def test_steps_that_are_left_out_leave_weights_and_running_means_as_they_were():
    """What is left is the training without those batches."""
    parts = [*PARTS[:2], (torch.full((8, 6), float("nan")), Y[:8]), *PARTS[2:5]]
    with_them, without = Net(), Net()
    said = [p.incident for p in lamina.learn(with_them, parts, F.cross_entropy, sgd(with_them), skips=1)]
    rows = [bool(incident) for incident in said]
    assert rows == [False, False, True, False, False, False] and "inputs of the batch" in said[2]["skipped"].what
    generator = torch.get_rng_state()
    torch.manual_seed(0)
    with_them, without = Net(), Net()
    with_them.drop.p = without.drop.p = 0.0
    run(lamina.learn(with_them, parts, F.cross_entropy, sgd(with_them), skips=1))
    run(lamina.learn(without, [*PARTS[:5]], F.cross_entropy, sgd(without)))
    torch.set_rng_state(generator)
    assert_same_bits(with_them, without)


def test_more_steps_in_a_row_than_may_be_left_out_stop():
    bad = (torch.full((8, 6), float("nan")), Y[:8])
    net = Net()
    learning = lamina.learn(net, [bad, PARTS[0], bad, bad, bad], F.cross_entropy, sgd(net), skips=2)
    with pytest.raises(Diverged, match="step 5"):
        run(learning)


def test_places_of_a_loaders_examples_are_said_to_be_places():
    loader = DataLoader(TensorDataset(with_row(31, float("nan")), Y), batch_size=8)
    error = diverge(Net(), loader)
    assert "for row 31 (counted in the order your loader gave them)" in error.what


def test_looking_for_the_cause_draws_nothing_from_the_callers_generator():
    net = Net()
    optimizer = sgd(net)
    bad = [(with_row(0, float("nan"), X[:8]), Y[:8])]
    torch.manual_seed(4)
    with pytest.raises(Diverged):
        run(lamina.learn(net, bad, F.cross_entropy, optimizer))
    after = torch.rand(1)
    torch.manual_seed(4)
    net(bad[0][0])  # the step itself
    assert torch.equal(after, torch.rand(1))


def test_a_loss_that_is_large_but_finite_goes_on():
    net = nn.Linear(6, 1)
    progress = run(lamina.learn(net, PARTS, lambda output, truth: 1e30 + output.sum() * 0, sgd(net)))
    assert progress.step == 7 and math.isfinite(progress.loss)


def test_divergence_in_an_accumulated_step_leaves_the_weights_too():
    batches = lamina.Batches(with_row(31, float("inf")), Y, batch_size=4, shuffle=False)
    assert "for row 31" in diverge(Net(), batches, accumulate=4).what


# --- Precision --------------------------------------------------------------------------------------------------------


def test_bf16_is_autocast_by_hand_bit_for_bit():
    net, other = Net(), Net()
    seen = []
    net.one.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    torch.manual_seed(7)
    run(lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=2, precision="bf16"))
    torch.manual_seed(7)
    optimizer = sgd(other)
    for _ in range(2):
        for x, y in PARTS:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = F.cross_entropy(other(x), y)
            value.backward()
            optimizer.step()
    assert_same_bits(net, other)
    assert set(seen) == {torch.bfloat16} and net.one.weight.dtype == torch.float32


def test_fp16_scales_the_loss_as_by_hand():
    cpu = torch.device("cpu")
    if "fp16" not in devices.precisions(cpu):
        pytest.skip("this CPU build of torch has no fp16 autocast")
    net, other = Net(), Net()
    torch.manual_seed(7)
    run(lamina.learn(net, PARTS, F.cross_entropy, sgd(net), epochs=2, precision="fp16", clip_norm=0.5))
    torch.manual_seed(7)
    optimizer, scaler = sgd(other), torch.amp.GradScaler("cpu")
    for _ in range(2):
        for x, y in PARTS:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                value = F.cross_entropy(other(x), y)
            scaler.scale(value).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(other.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
    assert_same_bits(net, other)


def test_accumulation_in_bf16_weighs_in_float32():
    def loss(output, truth):  # a loss that autocast leaves in bfloat16
        return (output.bfloat16() * torch.ones(3, dtype=torch.bfloat16)).mean()

    found = {}
    for times, parts in ((1, [(X[:12], Y[:12])]), (2, [(X[:7], Y[:7]), (X[7:12], Y[7:12])])):
        net = nn.Linear(6, 3)
        torch.manual_seed(0), nn.init.normal_(net.weight)
        run(lamina.learn(net, parts, loss, torch.optim.SGD(net.parameters(), lr=0.0), accumulate=times))
        found[times] = net.bias.grad
    assert torch.allclose(found[1], found[2], rtol=5e-3)


# --- Objectives of the caller's own -----------------------------------------------------------------------------------


def test_an_objective_of_your_own_says_what_its_mean_is_over():
    counts = torch.tensor([3, 0, 5, 1, 2, 4, 6])

    def objective(net, batch):
        place = int(batch.indices[0]) // 8
        return net(*batch.inputs).mean() * 0 + place, counts[place]

    net = Net()
    progress = run(lamina.learn(net, PARTS, objective=objective, optimizer=sgd(net)))
    assert progress.mean_loss == pytest.approx(np.average(np.arange(7), weights=counts))


def test_the_objective_of_a_loss_is_that_loss_and_the_count_of_the_examples():
    net = nn.Linear(6, 3)
    batch = Batch((X,), Y, torch.arange(50), 50)
    value, count = supervised(nn.L1Loss())(net, Batch((X,), net(X).detach() + 2, torch.arange(50), 50))
    assert value.item() == pytest.approx(2) and count == 50
    assert supervised(nn.CrossEntropyLoss(reduction="sum"))(net, batch)[1] is None


# --- What cannot be learned -------------------------------------------------------------------------------------------


def test_a_net_without_parameters_is_refused():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(6, 3)]  # a plain list hides its layers

    frozen = Net().requires_grad_(False)
    for net in (Listed(), frozen):
        with pytest.raises(UsageError, match=r"no parameters to learn(?s:.*)nn\.ModuleList"):
            next(lamina.learn(net, PARTS, F.cross_entropy, sgd(Net())))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optimizer": None}, "no optimizer"),
        ({"loss": None}, "neither a loss nor an objective"),
        ({"batches": [X]}, "inputs without answers"),
        ({"batches": (X, Y)}, "whole columns"),
        ({"precision": "fp8"}, "fp8"),
    ],
)
def test_what_is_missing_is_said(arguments, words):
    net = Net()
    given = {"batches": PARTS, "loss": F.cross_entropy, "optimizer": sgd(net), **arguments}
    with pytest.raises(UsageError, match=words):
        next(lamina.learn(net, **given))


def test_a_frozen_part_of_a_net_is_left_alone():
    net = Net()
    net.one.requires_grad_(False)
    before = net.one.weight.clone()
    run(lamina.learn(net, PARTS, F.cross_entropy, sgd(net), clip_norm=1.0, accumulate=2))
    assert torch.equal(net.one.weight, before)


def test_an_answer_that_would_broadcast_is_left_to_torch():
    """`learn` changes no shapes: that is the targets' work."""
    net = nn.Linear(6, 1)
    with pytest.warns(UserWarning, match="different to the input size"):
        next(lamina.learn(net, [(X, Y.float())], F.mse_loss, sgd(net)))


# --- As on a GPU, where nobody looks in each step ----------------------------------------------------------------------


@pytest.fixture
def far(monkeypatch):
    """The way that steps go on a GPU, on the CPU: its fused kernels know `found_inf` too."""
    monkeypatch.setattr("lamina.engine._is_near", lambda tensor: False)
    monkeypatch.setattr("lamina.flat.why_not", lambda *_: "is on a device of its own")


def fused(net):
    return torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)


def unwatched(net):
    """As after the first steps."""
    return TrainState(net, fused(net), watched=0)


def steady():
    net = Net()
    net.drop.p = 0.0
    return net


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_far_away_the_kernel_leaves_the_step_out(far, bad):
    parts = [*PARTS[:2], (torch.full((8, 6), bad), Y[:8]), *PARTS[2:5]]
    with_it, without = steady(), steady()
    said = [
        (p.step, p.mean_loss)
        for p in lamina.learn(with_it, parts, F.cross_entropy, skips=1, state=unwatched(with_it))
        if p.incident
    ]
    last = run(lamina.learn(without, PARTS[:5], F.cross_entropy, fused(without)))
    assert_same_bits(with_it, without)
    assert said == [(6, pytest.approx(last.mean_loss))]


def test_far_away_the_host_hears_of_it_within_32_steps(far):
    parts = [*PARTS[:3], (torch.full((8, 6), float("nan")), Y[:8]), *PARTS[:6] * 10]
    net = steady()
    state = unwatched(net)
    optimizer = state.optimizer
    with pytest.raises(Diverged, match=r"of step 4 .*not at hand") as told:
        run(lamina.learn(net, parts, F.cross_entropy, state=state))
    assert told.value.step == 4
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())
    assert not hasattr(optimizer, "found_inf")


def test_far_away_the_first_steps_are_asked_about_and_those_after_one_left_out(far):
    bad = (torch.full((8, 6), float("nan")), Y[:8])
    parts = [*PARTS[:5], bad, *(PARTS[:6] * 10)[:40], bad, *PARTS[:5], bad, *PARTS[:6] * 10]
    net = steady()
    told = [p.step for p in lamina.learn(net, parts, F.cross_entropy, fused(net), skips=1) if p.incident]
    assert told == [6, 65]  # the 47th and the 53rd when the 65th is asked about


@pytest.mark.parametrize("accumulate", [1, 2])
def test_far_away_the_examples_are_named_that_were_at_fault(far, accumulate):
    """They came some steps before the host hears of it, in a batch that can be cut again."""
    x, y = torch.randn(8 * 40, 6), torch.arange(8 * 40) % 3
    x[131, 2] = float("nan")
    batches, net = Batches(x, y, batch_size=8, seed=3), steady()
    at = next(k for k, batch in enumerate(batches.epoch(0)) if 131 in batch.indices)
    with pytest.raises(Diverged, match="Loss or gradient") as told:
        run(lamina.learn(net, batches, F.cross_entropy, accumulate=accumulate, state=unwatched(net)))
    assert told.value.rows == [131] and told.value.step == at // accumulate + 1
