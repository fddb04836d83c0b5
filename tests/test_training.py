"""The whole story: what is trained is what was asked for and nothing else, for every kind of source, answer and setting.

The independent truth is a loop written by hand. Reports are left out: they have tests of their own.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lamina
from lamina import files, results
from lamina.errors import Interrupted, RunError, UsageError
from lamina.keyed import permutation
from lamina.watchers import Log, Save, Stop


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.writing, "write", lambda *_: None)


class Net(nn.Module):
    """4 numbers in, 3 classes out; nothing random but its first weights."""

    def __init__(self, outputs: int = 3, inputs: int = 4):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 16), nn.Linear(16, outputs)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class Dropping(Net):
    def forward(self, x):
        return self.last(nn.functional.dropout(torch.relu(self.first(x)), 0.3, self.training))


def blobs(n: int = 150, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n points in 4 dimensions, the classes about 2 deviations apart."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return (generator.normal(size=(n, 4)) + 2 * np.eye(4)[y]).astype(np.float32), y


X, Y = blobs()
HELD = blobs(60, seed=1)


def train(source=(X, Y), *, seeded: bool = True, **asked) -> lamina.Run:
    """`lamina.train`, quiet and quick, with the held-out points as test split unless the test says otherwise."""
    if seeded:
        torch.manual_seed(0)
    for name, value in (("baselines", False), ("quiet", True), ("epochs", 3), ("test", HELD)):
        asked.setdefault(name, value)
    if callable(made := asked.get("net")) and not isinstance(made, (nn.Module, type)):
        asked["net"] = made()
    return lamina.train(source, **asked)


def by_hand(net, x=X, y=Y, *, optimizer=None, loss=None, epochs=3, batch_size=64, seed=0) -> nn.Module:
    """The same training as people write it, over lamina's order of the rows."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    optimizer = optimizer or torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    loss = loss or nn.CrossEntropyLoss()
    net.train()
    for epoch in range(epochs):
        for rows in permutation(seed, epoch, len(x)).split(batch_size):
            optimizer.zero_grad()
            loss(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


def same(one, other) -> bool:
    """Whether two nets, runs or state dicts have the same weights, bit for bit."""
    a, b = (
        s if isinstance(s, dict) else s.state_dict() if isinstance(s, nn.Module) else s.weights() for s in (one, other)
    )
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def epochs_of(run: lamina.Run) -> list[dict]:
    return [row for row in run.history if "event" not in row]


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint folder, which verifies."""
    from safetensors.torch import load

    return load(files.verify(folder)[1]["weights.safetensors"])


def newest(run: lamina.Run) -> dict[str, torch.Tensor]:
    return saved(max((run.folder / "checkpoints").glob("step-*")))


# --- Nothing hidden ---------------------------------------------------------------------------------------------------


def test_an_own_net_is_trained_by_plain_adam_and_nothing_else(runs):
    torch.manual_seed(0)
    hand = by_hand(Net())
    run = train(net=Net, runs=runs)
    assert same(run, hand)
    assert run.recipe.optimizer == "adam" and run.recipe.learning_rate == 1e-3 and run.recipe.schedule == "constant"
    for name in ("weight_decay", "label_smoothing", "ema", "clip_norm", "clip_value", "l1", "l2", "mixup", "cutmix"):
        assert getattr(run.recipe, name) == 0, name
    assert run.recipe.scale == run.recipe.augment == run.recipe.balance == "none"


def test_an_own_net_is_never_shown_the_held_out_share_and_gives_none_to_validation(runs):
    rows = np.arange(len(X))
    run = train(net=Net, test=0.2, runs=runs)
    part = dict(line.split(",") for line in (run.folder / "splits.csv").read_text().splitlines()[1:])
    training = rows[[part[str(row)] == "train" for row in rows]]
    assert len(training) == 120 and set(part.values()) == {"train", "test"}
    torch.manual_seed(0)
    assert same(run, by_hand(Net(), X[training], Y[training]))


def test_dropout_draws_what_it_draws_in_the_loop_by_hand(runs):
    torch.manual_seed(0)
    hand = by_hand(Dropping())
    assert same(train(net=Dropping, runs=runs), hand)
    torch.manual_seed(0)
    made = Dropping()  # an object came with its own random numbers, so the caller's go on
    assert same(train(net=made, seeded=False, runs=runs), hand)


def test_the_net_of_the_run_is_the_users_object(runs):
    net = Net()
    run = train(net=net, runs=runs)
    assert run.net is net and not net.training


@pytest.mark.parametrize(("x", "kind"), [(X.astype(np.float64), "float64"), ((10 * X).astype(np.int64), "int64")])
def test_inputs_of_another_type_than_the_nets_are_refused_with_the_way_out(x, kind, runs):
    rows = TensorDataset(torch.from_numpy(x), torch.from_numpy(Y))  # columns of floats would be made float32
    with pytest.raises(
        UsageError, match=rf"of \(64, 4\) {kind}(.|\n)*its parameters, float32: x\.to\(torch\.float32\)"
    ):
        train(DataLoader(rows, batch_size=64), net=Net(), test=DataLoader(rows), runs=runs)


def test_a_run_that_held_nothing_out_says_so_where_its_score_is_asked_for(runs):
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    run = train(DataLoader(rows, batch_size=64), net=Net(), test=None, runs=runs)
    with pytest.raises(RunError, match=r"no examples were held out(.|\n)*run\.evaluate\(DATA\)"):
        _ = run.headline
    assert run.evaluate((X, Y))


class Calls(Net):
    def __init__(self, new: bool = False):
        super().__init__()
        self.new = new
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.new:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("new", [False, True])
def test_what_a_net_counts_in_a_buffer_begins_with_the_first_step(new, runs):
    counted = []
    net = Calls(new)
    train(net=net, epochs=3, runs=runs, watchers=[lambda progress: counted.append((progress.step, float(net.calls)))])
    assert counted[0] == (1, 1.0) and counted[-1] == (9, 9.0)  # nor is it called by whoever looks at its health


class Slope(Net):
    """Its answers are how much they would change: it differentiates within forward()."""

    kept = False

    def forward(self, x):
        with torch.enable_grad() if self.kept else contextlib.nullcontext():
            x = x.detach().requires_grad_()
            answers = super().forward(x)
            (slope,) = torch.autograd.grad(answers.sum(), x, create_graph=True)
            return answers + slope.sum(1, keepdim=True)


def test_a_net_that_differentiates_within_forward_needs_to_say_so(runs):
    with pytest.raises(UsageError, match=r"within torch.no_grad\(\)(.|\n)*with torch.enable_grad\(\)"):
        train(net=Slope(), runs=runs)
    assert not list(runs.glob("*"))
    net = Slope()
    net.kept = True
    run = train(net=net, valid=0.2, epochs=2, runs=runs)
    assert np.allclose(run.predict(X).probabilities, net(torch.from_numpy(X)).detach().softmax(1), atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, torch.from_numpy(X[:5]))])
def test_a_net_of_torchscript_learns_what_the_plain_net_does(make, runs):
    torch.manual_seed(0)
    net = Net()
    made = make(copy.deepcopy(net))
    plain, other = (train(net=one, epochs=2, runs=runs, seeded=False) for one in (net, made))
    assert all(map(torch.equal, plain.net.parameters(), other.net.parameters()))
    assert np.array_equal(plain.predict(X).prediction, other.predict(X).prediction)


@pytest.mark.parametrize("kind", ["object", "callable"])
def test_an_own_optimizer_is_used_as_it_is(kind, runs):
    torch.manual_seed(0)
    hand = Net()
    by_hand(hand, optimizer=torch.optim.SGD(hand.parameters(), lr=0.1, momentum=0.9))
    torch.manual_seed(0)
    net = Net()

    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    optimizer = make(net.parameters()) if kind == "object" else make
    assert same(train(net=net, optimizer=optimizer, seeded=False, runs=runs), hand)


def test_an_own_loss_is_used_as_it_is(runs):
    def loss(output, truth):
        return nn.functional.cross_entropy(output, truth, label_smoothing=0.2) * 3

    torch.manual_seed(0)
    hand = by_hand(Net(), loss=loss)
    assert same(train(net=Net, loss=loss, runs=runs), hand)


def test_named_parts_are_those_of_torch(runs):
    torch.manual_seed(0)
    hand = Net()
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.05, momentum=0.9, fused=True)
    by_hand(hand, optimizer=optimizer, loss=nn.CrossEntropyLoss(label_smoothing=0.1), batch_size=32)
    run = train(net=Net, optimizer="sgd", optimizer_arg={"momentum": 0.9}, learning_rate=0.05, batch_size=32,
                label_smoothing=0.1, runs=runs)  # fmt: skip
    assert same(run, hand)


def test_the_callers_generators_are_unchanged(runs):
    class Noisy(Dataset):
        def __len__(self):
            return len(X)

        def __getitem__(self, row):
            noise = torch.randn(4) + float(np.random.normal()) + random.gauss(0, 1)
            return torch.from_numpy(X[row]) + 0.01 * noise, int(Y[row])

    def state():
        numpy: Any = np.random.get_state()
        return torch.get_rng_state().tolist(), random.getstate(), (numpy[1].tolist(), numpy[2:])

    loader = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=32, shuffle=True)
    held = TensorDataset(*map(torch.from_numpy, HELD))
    for asked in (
        {"source": (X, Y), "epochs": 2, "mixup": 0.2},
        {"source": (X, Y), "net": Dropping},
        {"source": (X, Y), "net": Net(), "learning_rate": "find"},
        {"source": Noisy(), "net": Dropping(), "test": held},
        {"source": loader, "net": Dropping(), "test": held},
    ):
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        before = state()
        train(**asked, seeded=False, runs=runs)
        assert state() == before, asked


# --- Seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"net": Dropping}, {"task": "numbers"}], ids=["mlp", "own", "numbers"])
def test_the_same_seed_gives_the_same_bits_and_another_does_not(asked, runs):
    one, two, three = (
        train(test=0.2, seed=seed, seeded=False, net_arg={} if asked else {"dropout": 0.2}, runs=runs, **asked)
        for seed in (3, 3, 4)
    )
    assert same(one, two) and one.headline == two.headline
    assert (one.folder / "predictions.csv").read_bytes() == (two.folder / "predictions.csv").read_bytes()
    assert not same(one, three)
    assert (one.folder / "splits.csv").read_bytes() != (three.folder / "splits.csv").read_bytes()


def test_threads_of_the_callers_random_numbers_do_not_matter_to_a_net_by_name(runs):
    torch.manual_seed(1)
    one = train(seeded=False, runs=runs)
    torch.manual_seed(2)
    assert same(one, train(seeded=False, runs=runs))


# --- Validation, stopping and what is kept ----------------------------------------------------------------------------


def test_given_validation_data_are_scored_after_every_epoch(runs):
    valid = blobs(40, seed=2)
    run = train(net=Net, valid=valid, runs=runs)
    epochs = epochs_of(run)
    assert [row["epoch"] for row in epochs] == [1, 2, 3] and [row["step"] for row in epochs] == [3, 6, 9]
    assert all(
        {"train/loss", "valid/loss", "valid/accuracy", "learning_rate", "seconds"} <= row.keys() for row in epochs
    )
    with torch.no_grad():
        output = run.net(torch.from_numpy(valid[0]))
    truth = torch.from_numpy(valid[1])
    assert epochs[-1]["valid/loss"] == pytest.approx(float(nn.functional.cross_entropy(output, truth)), rel=1e-5)
    assert epochs[-1]["valid/accuracy"] == pytest.approx(float((output.argmax(1) == truth).float().mean()))
    assert {entry["split"] for entry in run.scores} == {"test", "valid", "train"}


def test_validation_does_not_change_what_is_learned(runs):
    valid = blobs(40, seed=2)
    assert same(train(net=Dropping, valid=valid, runs=runs), train(net=Dropping, runs=runs))


def test_the_loss_of_an_epoch_is_the_mean_over_its_examples(runs):
    """At a rate of nearly nothing the weights stand still, and the mean over the batches is that over the table."""
    run = train(net=Net, learning_rate=1e-12, epochs=1, runs=runs)
    with torch.no_grad():
        wanted = nn.functional.cross_entropy(run.net(torch.from_numpy(X)), torch.from_numpy(Y))
    assert epochs_of(run)[0]["train/loss"] == pytest.approx(float(wanted), rel=1e-5)


def overfitting(runs: Path, **asked) -> tuple[lamina.Run, tuple[np.ndarray, np.ndarray]]:
    """Random labels: the training loss falls, that of validation soon rises."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(160, 4)).astype(np.float32), generator.integers(0, 3, 160)
    valid = (x[100:], y[100:])
    return train((x[:100], y[:100]), net=Net, valid=valid, learning_rate=0.03, epochs=40, runs=runs, **asked), valid


def test_early_stopping_stops_and_restores_the_best_weights(runs):
    run, (x, y) = overfitting(runs, early_stopping=3)
    losses = [row["valid/loss"] for row in epochs_of(run)]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3 < 40
    assert "valid/loss" in run.facts["stopped"] and run.facts["weights"]["kept"] == "best"
    assert same(run, saved(run.folder / "best")) and not same(run, newest(run))
    with torch.no_grad():
        value = nn.functional.cross_entropy(run.net(torch.from_numpy(x)), torch.from_numpy(y))
    assert float(value) == pytest.approx(losses[best], rel=1e-5)


def test_keep_last_ends_with_the_last_weights_and_keep_best_with_the_best(runs):
    last, _ = overfitting(runs, keep="last")
    best, _ = overfitting(runs, keep="best")
    assert same(last, newest(last)) and same(newest(last), newest(best))
    assert same(best, saved(best.folder / "best")) and not same(best, last)
    accuracies = [row["valid/accuracy"] for row in epochs_of(best)]
    assert json.loads((best.folder / "best" / "manifest.json").read_text().partition("\n")[2])["epoch"] == (
        1 + int(np.argmax(accuracies))
    )


@pytest.mark.parametrize("asked", [{"early_stopping": 3}, {"keep": "best"}, {"schedule": "plateau"}], ids=str)
def test_what_needs_validation_is_refused_without_it(asked, runs):
    with pytest.raises(UsageError, match="validation"):
        train(net=Net, valid=0, runs=runs, **asked)
    assert list(runs.iterdir()) == []


class Counts(Net):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Rows(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return X[row], int(Y[row])


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y.tolist(), strict=True)


def loader():
    return DataLoader(Rows(), batch_size=50)


@pytest.mark.parametrize(
    "source, asked, idle",
    [
        (lambda: (X, Y), {"workers": 2, "cache": True}, "workers cache"),
        (lambda: TensorDataset(torch.tensor(X), torch.tensor(Y)), {"workers": 2}, "workers"),
        (lambda: (X, Y), {"valid": (X, Y), "test": (X, Y), "split": "random"}, "split"),
        (lambda: (X, Y), {"data_dir": "."}, "data_dir"),
        (lambda: (X, Y), {"steps": 3}, "epochs"),
        (lambda: (X, Y), {"optimizer": "muon", "rates": {"*": 0.1}}, "rates"),
        (Rows, {"memory": "1MB", "baselines": True}, "memory baselines"),
        (loader, {"workers": 2, "batch_size": 50, "memory": "1MB"}, "workers batch_size memory"),
        (loader, {"valid": 0.1, "test": "0.1"}, "valid test"),
        (Stream, {"valid": 0.1, "cache": True}, "valid"),
    ],
)
def test_what_would_do_nothing_is_refused_by_name(source, asked, idle, runs):
    with pytest.raises(UsageError, match="would do nothing") as caught:
        lamina.train(source(), **{"net": Net(), "epochs": 1, "baselines": False, "quiet": True, **asked}, runs=runs)
    found = [line.split(" would do nothing")[0] for line in str(caught.value).splitlines() if "nothing:" in line]
    assert sorted(found) == sorted(idle.split()) and not list(runs.iterdir())


@pytest.mark.parametrize(
    "source, asked",
    [
        (lambda: (X, Y), {"workers": 0, "memory": "1MB", "valid": (X, Y), "split": "random"}),
        (Rows, {"workers": 1, "cache": True, "memory": "1MB"}),
        (loader, {"valid": loader(), "test": 0}),
        (Stream, {"workers": 1, "batch_size": 50, "test": 0}),
    ],
)
def test_what_does_something_is_taken(source, asked, runs):
    lamina.train(source(), net=Net(), epochs=1, baselines=False, quiet=True, runs=runs, **asked)


@pytest.mark.parametrize(
    "asked, words", [({"net": Counts}, "Counts.forward sets calls"), ({"accumulate": 2}, "gradients of 2 batches"),
                     ({"precision": "fp16"}, "scaled for fp16")],
)  # fmt: skip
def test_what_cannot_be_recorded_is_refused_before_there_is_a_run(asked, words, runs):
    with pytest.raises(UsageError, match=words):
        train(**{"net": Net, "compile": "on", **asked}, runs=runs)
    assert not list(runs.iterdir())
    train(net=Net, compile="on", runs=runs)


def test_a_moving_average_ends_with_the_averaged_weights(runs):
    seen = []

    def watch(progress):
        seen.append({name: value.detach().clone() for name, value in progress.net.state_dict().items()})

    run = train(net=Net, ema=0.9, watchers=[watch], runs=runs)
    average = seen[0]
    for number, weights in enumerate(seen[1:], 1):
        kept = min(0.9, (1 + number) / (10 + number))
        average = {name: kept * average[name] + (1 - kept) * weights[name] for name in weights}
    found = run.weights()
    assert all(torch.allclose(found[name], average[name], atol=1e-6) for name in average)
    assert not same(run, seen[-1])


# --- Unequal classes, mixing, augmentation ----------------------------------------------------------------------------

COUNTS = (90, 20, 10)
UNEQUAL = np.repeat([0, 1, 2], COUNTS)
UNEQUAL_X = (np.random.default_rng(0).normal(size=(120, 4)) + 2 * np.eye(4)[UNEQUAL]).astype(np.float32)


@pytest.mark.parametrize("how, wanted", [("over", 90), ("under", 10)])
def test_balance_shows_every_class_equally_often(how, wanted, runs):
    seen = []

    def watch(progress):
        seen.append((progress.epoch, progress.batch_data.truth))

    train((UNEQUAL_X, UNEQUAL), net=Net, balance=how, batch_size=7, epochs=2, watchers=[watch], runs=runs)
    for epoch in (0, 1):
        truth = torch.cat([part for number, part in seen if number == epoch])
        assert torch.bincount(truth).tolist() == [wanted] * 3


def test_balance_weights_weighs_the_loss_by_the_inverse_share(runs):
    weight = torch.tensor([120 / (3 * count) for count in COUNTS])
    torch.manual_seed(0)
    hand = by_hand(Net(), UNEQUAL_X, UNEQUAL, loss=nn.CrossEntropyLoss(weight=weight))
    assert same(train((UNEQUAL_X, UNEQUAL), net=Net, balance="weights", runs=runs), hand)


@pytest.mark.parametrize("asked", [{"balance": "weights"}, {"balance": "over"}, {"label_smoothing": 0.1}], ids=str)
def test_what_is_for_classes_is_refused_for_numbers(asked, runs):
    with pytest.raises(UsageError, match="classes"):
        train((X, X[:, 0]), test=0.2, runs=runs, **asked)
    assert list(runs.iterdir()) == []


def test_mixing_and_augmentation_run_and_change_the_weights(runs):
    generator = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = (generator.integers(0, 100, size=(90, 1, 8, 8)) + 50 * y[:, None, None, None]).astype(np.uint8)
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"mixup": 0.4},
        {"cutmix": 1.0},
        {"augment": "shift=2,flip"},
        {"augment": "rotate=20"},
    )
    found = [train((x, y), test=0.2, runs=runs, **{"augment": "none", "epochs": 2, **asked}) for asked in settings]
    assert all(torch.isfinite(value).all() for run in found for value in run.weights().values())
    assert all(not same(one, other) for k, one in enumerate(found) for other in found[k + 1 :])
    assert found[0].facts["net"]["name"] == "convnet"


# --- Splits -----------------------------------------------------------------------------------------------------------


def parts_of(run: lamina.Run) -> np.ndarray:
    return np.array([line.split(",")[1] for line in (run.folder / "splits.csv").read_text().splitlines()[1:]])


def test_no_group_is_in_two_parts(runs):
    groups = np.arange(150) // 3 % 17
    parts = parts_of(train(net=Net, groups=groups, test=0.2, valid=0.2, runs=runs))
    assert set(parts) == {"train", "valid", "test"}
    assert all(len(set(parts[groups == group])) == 1 for group in range(17))


def test_the_latest_are_held_out(runs):
    times = np.random.default_rng(0).permutation(150)
    parts = parts_of(train(net=Net, times=times, test=0.2, valid=0.2, runs=runs))
    assert times[parts == "train"].max() < times[parts == "valid"].min()
    assert times[parts == "valid"].max() < times[parts == "test"].min()


# --- Watchers ---------------------------------------------------------------------------------------------------------


class Counting:
    """Asks for something at a step, and remembers over a resume how often it was asked."""

    def __init__(self, wishes: dict[int, object], dies_at: int = -1):
        self.wishes, self.dies_at, self.calls = wishes, dies_at, 0

    def __call__(self, progress):
        self.calls += 1
        if progress.step == self.dies_at:
            raise KeyboardInterrupt
        return self.wishes.get(progress.step)

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


def test_watchers_can_stop_save_and_log(runs):
    kept = {}

    def keep(progress):
        if progress.step == 4:
            kept.update({name: value.clone() for name, value in progress.net.state_dict().items()})

    wishes = {2: Log({"own/number": 7.5}), 4: Save("mine"), 5: Stop("enough is enough")}
    run = train(net=Net, watchers=[keep, Counting(wishes)], runs=runs)
    assert run.facts["status"] == "done" and run.facts["steps"] == 5
    assert run.facts["stopped"] == "enough is enough"
    assert [(row["step"], row["event"]) for row in run.history if row.get("event") == {"own/number": 7.5}] == [
        (2, {"own/number": 7.5})
    ]
    assert same(saved(run.folder / "mine"), kept)
    torch.manual_seed(0)
    assert not same(run, by_hand(Net()))


def test_a_watcher_of_the_end_of_an_epoch_is_asked_then_only(runs):
    class Ends(Counting):
        at_epoch_end = True

    ends, all_steps = Ends({}), Counting({})
    run = train(net=Net, epochs=3, watchers=[ends, all_steps], runs=runs)
    assert ends.calls == 3 and all_steps.calls == run.facts["steps"] > 3


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_a_watcher_that_changes_the_net_all_the_same_is_heard_at_the_next_step(runs, compile):
    def freeze(progress):
        if progress.step == 12:
            next(progress.net.parameters()).requires_grad_(False)

    torch.manual_seed(0)
    net = Net()
    weights = next(net.parameters())
    seen = []

    def keep(progress):
        seen.append(weights.detach().clone())

    train(net=net, epochs=2, batch_size=8, watchers=[freeze, keep], compile=compile, runs=runs)
    assert not torch.equal(seen[10], seen[11]) and len(seen) > 13
    assert all(torch.equal(seen[11], later) for later in seen[12:])


def test_an_optimiser_that_forgets_when_a_checkpoint_is_made_is_heard_at_the_next_step(runs, monkeypatch):
    """As it does where weights are not finite: with nobody between the steps as with a watcher that is asked after each."""

    def forgets(recovery):
        if recovery.state.step == 12:
            recovery.state.optimizer.state.clear()
        return []

    monkeypatch.setattr("lamina.training.Recovery.sound", forgets)
    ends = []
    for watchers in ([], [Counting({})]):
        torch.manual_seed(0)
        options = {"epochs": 2, "batch_size": 8, "checkpoint_every": "6steps", "watchers": watchers, "keep": "last"}
        ends.append(train(net=Net(), runs=runs, **options))
    assert ends[0].facts["steps"] > 15 and same(*ends)


def test_watchers_change_nothing(runs):
    wishes: dict[int, object] = {2: Save("mine"), 3: Save("mine"), 4: Log({"a": 1.0})}
    assert same(train(net=Dropping, watchers=[Counting(wishes)], runs=runs), train(net=Dropping, runs=runs))


@pytest.mark.parametrize(
    "watcher, words",
    [(3, "int"), (lambda progress: "stop", "str"), (lambda progress: Save("checkpoints"), "checkpoints"),
     (lambda progress: Save("../elsewhere"), "elsewhere")],
    ids=["not callable", "not a request", "a name that is taken", "a path"],
)  # fmt: skip
def test_a_watcher_that_cannot_be_one_is_refused(watcher, words, runs):
    with pytest.raises(UsageError, match=words):
        train(net=Net, watchers=[watcher], runs=runs)
    assert not (runs.parent / "elsewhere").exists()
    for folder in runs.iterdir():
        assert files.manifest(min((folder / "checkpoints").glob("step-*")))["step"] == 0


def test_a_run_is_resumed_with_own_net_loss_optimizer_and_watchers(runs):
    def parts(dies_at=-1):
        net = Dropping()
        return {
            "net": net,
            "loss": nn.CrossEntropyLoss(label_smoothing=0.1),
            "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
            "watchers": [Counting({}, dies_at)],
            "test": HELD,
            "quiet": True,
        }

    torch.manual_seed(0)
    whole = lamina.train((X, Y), **parts(), epochs=4, baselines=False, runs=runs, name="whole")
    torch.manual_seed(0)
    with pytest.raises(Interrupted) as stopped:
        lamina.train((X, Y), **parts(8), epochs=4, baselines=False, runs=runs, name="cut", checkpoint_every="3steps")
    assert stopped.value.exit_code == 130 and f"lamina resume {runs / 'cut'}" in str(stopped.value)
    assert json.loads((runs / "cut" / "run.json").read_text())["status"] == "stopped"

    again = parts()
    run = lamina.resume(runs / "cut", (X, Y), **again)
    assert run.facts["status"] == "done" and same(run, whole)
    assert again["watchers"][0].calls == 12  # 6 before the checkpoint, 6 after
    assert [row["train/loss"] for row in epochs_of(run)] == [row["train/loss"] for row in epochs_of(whole)]
    assert (run.folder / "predictions.csv").read_bytes() == (whole.folder / "predictions.csv").read_bytes()


# --- Answers of every kind --------------------------------------------------------------------------------------------


def test_numbers_end_to_end(runs):
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    run = train((x.astype(np.float32), y), test=0.25, epochs=30, runs=runs)
    scores = {entry["score"]: entry["value"] for entry in run.scores if entry["split"] == "test"}
    assert run.facts["task"] == "numbers" and run.headline.score == "rmse"
    assert scores["rmse"] < 0.85 * y.std() and scores["r2"] > 0.3
    assert run.predict(x[:5].astype(np.float32)).prediction.shape == (5,)


def test_tags_end_to_end(runs):
    from sklearn.datasets import make_multilabel_classification

    x, y = make_multilabel_classification(n_samples=500, n_features=12, n_classes=4, random_state=0)
    run = train((x.astype(np.float32), y), test=0.3, epochs=25, runs=runs)
    assert run.facts["task"] == "tags" and run.headline.score == "f1" and run.headline.n == 150
    assert run.headline.value > 0.1 + 2 * y.mean() / (1 + y.mean())  # which is the f1 of "all tags, always"
    answers = run.predict(x[:5].astype(np.float32))
    assert answers.prediction.shape == (5, 4) and set(answers.prediction.flat) <= {0, 1}


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)], ids=["N", "N1"])
def test_two_classes_with_a_binary_loss_and_one_output(dtype, shape, runs):
    y = (X[:, 0] + X[:, 1] > 1).astype(dtype).reshape(shape)
    test = (HELD[0], (HELD[0][:, 0] + HELD[0][:, 1] > 1).astype(dtype).reshape(shape))
    torch.manual_seed(0)
    truth = y.astype(np.float32).reshape(-1, 1)
    hand = Net(1)
    by_hand(hand, X, truth, loss=nn.BCEWithLogitsLoss(), epochs=20, batch_size=16,
            optimizer=torch.optim.Adam(hand.parameters(), lr=0.01, fused=True))  # fmt: skip
    run = train((X, y), net=lambda: Net(1), loss=nn.BCEWithLogitsLoss(), test=test, epochs=20, batch_size=16,
                learning_rate=0.01, runs=runs)  # fmt: skip
    assert same(run, hand)
    assert run.facts["task"] == "classes" and run.headline.value > 0.9
    wanted = (hand(torch.from_numpy(HELD[0])) > 0).numpy()[:, 0]
    probabilities: Any = run.predict(HELD[0]).probabilities
    assert ((probabilities[:, 1] > 0.5) == wanted).all()
    assert run.evaluate(test)[0]["value"] == run.headline.value


def test_words_as_classes_come_back_as_words(runs):
    words = np.array(["ant", "bee", "cat"])
    run = train((X, words[Y]), test=(HELD[0], words[HELD[1]]), net=Net, epochs=30, learning_rate=0.01, runs=runs)
    assert set(run.predict(HELD[0]).prediction) <= set(words) and run.headline.value > 0.8


def test_a_test_split_of_one_example_and_one_without_spread_do_not_disturb(runs):
    assert train(test=(X[:1], Y[:1]), runs=runs).headline.n == 1
    assert train((X, X[:, 0]), test=(X[:1], X[:1, 0]), runs=runs).headline.n == 1


def test_without_a_test_split_the_score_says_of_which_it_is(runs):
    assert train(net=Net, test=0, runs=runs).headline.split == "train"
    assert train(net=Net, test=0, valid=0.2, runs=runs).headline.split == "valid"


# --- Sources of every kind --------------------------------------------------------------------------------------------


class Rows(Dataset):
    """A Dataset of the user's over the same rows."""

    def __len__(self):
        return len(X)

    def __getitem__(self, row):
        return torch.from_numpy(X[row]), int(Y[row])


class Stream(IterableDataset):
    def __init__(self, x=X, y=Y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter([(torch.from_numpy(a), int(b)) for a, b in zip(self.x, self.y, strict=True)])


TENSORS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
HELD_TENSORS = TensorDataset(*map(torch.from_numpy, HELD))


@pytest.mark.parametrize(
    "source, test",
    [(TENSORS, HELD_TENSORS), (Rows(), HELD_TENSORS), ((torch.from_numpy(X), torch.from_numpy(Y)), HELD),
     ((X.tolist(), Y.tolist()), HELD), ((X.astype(np.float64), Y.astype(np.int32)), (HELD[0].astype(float), HELD[1]))],
    ids=["TensorDataset", "Dataset", "tensors", "lists", "other dtypes"],
)  # fmt: skip
def test_the_same_rows_give_the_same_net_however_they_come(source, test, runs):
    if isinstance(source, tuple) and isinstance(source[0], list):
        test = (HELD[0].tolist(), HELD[1].tolist())
    run = train(source, net=Net, test=test, runs=runs)
    torch.manual_seed(0)
    assert same(run, by_hand(Net()))
    assert run.headline == train(net=Net, runs=runs).headline


@pytest.mark.parametrize("generator", [None, 7], ids=["global generator", "its own generator"])
def test_a_loader_is_walked_as_by_hand(generator, runs):
    def loader():
        own = None if generator is None else torch.Generator().manual_seed(generator)
        return DataLoader(TENSORS, batch_size=32, shuffle=True, generator=own)

    torch.manual_seed(0)
    hand = Dropping()
    optimizer = torch.optim.Adam(hand.parameters(), lr=1e-3, fused=True)
    walk = loader()
    for _ in range(3):
        for x, y in walk:
            optimizer.zero_grad()
            nn.functional.cross_entropy(hand(x), y).backward()
            optimizer.step()
    run = train(loader(), net=Dropping, test=DataLoader(HELD_TENSORS, batch_size=50), runs=runs)
    assert same(run, hand)
    assert run.headline.n == 60


def test_a_stream_is_walked_as_it_comes(runs):
    torch.manual_seed(0)
    hand = Net()
    optimizer = torch.optim.Adam(hand.parameters(), lr=1e-3, fused=True)
    for _ in range(3):
        for rows in torch.arange(len(X)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(hand(torch.from_numpy(X)[rows]), torch.from_numpy(Y)[rows]).backward()
            optimizer.step()
    for test in (Stream(*HELD), HELD):
        run = train(Stream(), net=Net, test=test, runs=runs)
        assert same(run, hand) and run.headline.n == 60


@pytest.mark.parametrize(
    "source", [DataLoader(TENSORS, batch_size=32, shuffle=True), Stream()], ids=["loader", "stream"]
)
def test_a_run_over_a_loader_or_stream_is_resumed_and_evaluated(source, runs):
    whole = train(source, net=Dropping, runs=runs)
    with pytest.raises(Interrupted):
        train(source, net=Dropping, watchers=[Counting({}, 7)], runs=runs, name="cut", checkpoint_every="2steps")
    run = lamina.resume(runs / "cut", source, net=Dropping, test=HELD, quiet=True, watchers=[Counting({})])
    assert same(run, whole) and run.headline == whole.headline
    assert run.evaluate(HELD)[0]["value"] == whole.headline.value


def test_a_net_of_two_inputs(runs):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 8), nn.Linear(1, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, left, right):
            return self.last(torch.relu(self.left(left) + self.right(right)))

    run = train(((X[:, :3], X[:, 3:]), Y), net=Two, test=((HELD[0][:, :3], HELD[0][:, 3:]), HELD[1]), epochs=40,
                learning_rate=0.01, runs=runs)  # fmt: skip
    assert run.headline.value > 0.8
    answers = run.predict((HELD[0][:, :3], HELD[0][:, 3:]))
    assert (answers.prediction.astype(int) == HELD[1]).mean() == run.headline.value


# --- Requests that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, words",
    [
        ({"net": Net, "optimizer": torch.optim.SGD(Net().parameters(), lr=0.1)}, "none of the net's"),
        ({"net": Net, "optimizer": 3}, "int"),
        ({"net": Net, "optimizer": lambda parameters: 3}, "int"),
        ({"net": Net, "optimizer": torch.optim.SGD, "learning_rate": 0.1}, "learning_rate"),
        ({"net": Net, "size": "large"}, "size"),
        ({"net": Net(), "net_arg": {"outputs": 3}}, "net_arg"),
        ({"net": Net, "loss": nn.CrossEntropyLoss(), "label_smoothing": 0.1}, "label_smoothing"),
        ({"net": Net, "loss": nn.CrossEntropyLoss(), "loss_arg": {"weight": [1, 2, 3]}}, "loss_arg"),
        ({"optimizer_arg": {"betaz": 1}}, "betas"),
        ({"schedule": "step", "schedule_arg": {"gama": 1}}, "gamma"),
        ({"rates": {"nothing*": 0.1}}, "nothing"),
        ({"net_arg": {"hiden": 3}}, "hidden"),
        ({"cutmix": 1.0}, "pictures"),
        ({"augment": "shift=1"}, "pictures"),
        ({"init": "kaimin"}, "kaiming"),
        ({"device": "cda"}, "cda"),
        ({"domain": 3}, "int"),
        ({"task": 3}, "int"),
        ({"groups": [1, 2]}, "150"),
        ({"weights": "none.pth"}, "none.pth"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_what_cannot_be_done_is_said_before_there_is_a_run(asked, words, runs):
    with pytest.raises(UsageError, match=words):
        train(runs=runs, **asked)
    assert list(runs.iterdir()) == []


def test_a_recipe_of_objects_is_not_trained_without_them(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    net = nn.Sequential(nn.Linear(4, 3))
    run = lamina.train((x, y), net=net, loss=nn.CrossEntropyLoss(), epochs=1, runs=tmp_path, quiet=True)
    with pytest.raises(lamina.LaminaError, match="net = Sequential, given from Python"):
        lamina.train((x, y), recipe=run.folder / "recipe.toml", runs=tmp_path, quiet=True)
    again = lamina.train(
        (x, y), recipe=run.folder / "recipe.toml", net=nn.Sequential(nn.Linear(4, 3)), loss=nn.CrossEntropyLoss(),
        runs=tmp_path, quiet=True,
    )  # fmt: skip
    assert again.recipe.epochs == 1


def test_fields_of_a_target_are_options(tmp_path):
    settings = {"epochs": 1, "runs": tmp_path, "quiet": True, "task": "tags"}
    x = np.random.default_rng(0).normal(size=(80, 4)).astype("float32")
    y = (x[:, :3] > 0).astype(int)
    run = lamina.train((x, y), task_arg={"threshold": 0.9}, **settings)
    assert run.target.threshold == 0.9
    with pytest.raises(UsageError, match="no option 'treshold': did you mean 'threshold'"):
        lamina.train((x, y), task_arg={"treshold": 0.9}, **settings)


def test_one_held_out_example_is_scored_and_compared_with_nobody(tmp_path):
    """Of one example no difference is certain, and the last screen says so."""
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1] * 3)
    run = lamina.train((x[:5], y[:5]), test=(x[5:], y[5:]), task="classes", epochs=1, runs=tmp_path, report=False)
    assert run.headline.n == 1
    paired = [
        entry["paired"]
        for entry in json.loads((run.folder / "scores.json").read_text())["baselines"]
        if "paired" in entry
    ]
    assert paired and all(entry["p"] is None and not entry["certain"] for entry in paired)


@pytest.mark.parametrize(
    ("own", "asked", "words"),
    [
        (True, {}, "more data or nn.Dropout in your net or --early-stopping 5 may help"),
        (True, {"early_stopping": 200, "valid": 0.1}, "more data or nn.Dropout in your net may help"),
        (False, {"net": "mlp", "early_stopping": 200, "valid": 0.1}, "more data or --net-arg dropout=0.3 may help"),
    ],
)
def test_a_net_that_learns_by_heart_is_told_what_can_be_done_about_it(tmp_path, capsys, own, asked, words):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(200, 20)).astype(np.float32), generator.integers(0, 2, 200)
    if own:
        torch.manual_seed(0)
        asked = {"net": nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2)), **asked}
    lamina.train(
        (x, y), task="classes", epochs=60, learning_rate=0.01, runs=tmp_path, baselines=False, report=False, **asked
    )
    said = " ".join(capsys.readouterr().out.split())
    assert words in said
