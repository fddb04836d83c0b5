"""A run that is stopped, killed or crashed at any instant and resumed ends in the same bits as one that was not.

What is compared: final weights, the newest checkpoint (weights, optimiser, average, generators, counters), the best
checkpoint, the history without its seconds, scores and predictions. LAMINA_KILLS sets how many real SIGKILLs are sent
(default 6); seeds are printed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lamina
from lamina import files, results, state, training
from lamina.errors import Interrupted, ResourceError, RunError, UsageError
from lamina.state import TrainState
from lamina.watchers import Log, Save, Stop

KILLS = int(os.environ.get("LAMINA_KILLS", "6"))


class Crash(BaseException):
    """The end of a process that nobody foresaw."""


@pytest.fixture
def quick(monkeypatch):
    """Without the report, and without waiting for the disk: neither bears on the bits."""
    monkeypatch.setattr(results, "_report", lambda *_: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


# --- What a run came to ----------------------------------------------------------------------------------------------


def timeless(tree: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds beside weights, without the seconds."""
    tree["cursor"]["seconds"] = 0
    for row in tree["parts"]["history"]["rows"]:
        row.pop("seconds", None)
    return tree


def outcome(folder: Path) -> dict[str, Any]:
    """All that must be equal, as values that `==` compares to the bit."""
    found: dict[str, Any] = {}
    newest = state.newest(folder / "checkpoints", pytest.fail)
    for title, place in (("last", newest), ("best", folder / "best")):
        assert place is not None
        weights, tree, manifest = state.read(place)
        for part, entry in {"weights": weights, **timeless(tree)}.items():
            tensors, plain = state.pack(entry)
            numbers = {k: (str(v.dtype), tuple(v.shape), v.numpy().tobytes()) for k, v in tensors.items()}
            found[f"{title} {part}"] = (numbers, json.dumps(plain, sort_keys=True), manifest["step"])
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    found["history"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    for name in ("weights.safetensors", "predictions.csv", "scores.json"):
        found[name] = (folder / name).read_bytes()
    facts = json.loads((folder / "run.json").read_text())
    found["run.json"] = {
        k: facts.get(k) for k in ("status", "headline", "epochs", "steps", "stopped", "weights", "data")
    }
    assert not list(folder.rglob(f"{files.TEMPORARY}*"))
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# --- Ways to end early -----------------------------------------------------------------------------------------------


class Ends:
    """A watcher that ends the process after a step: by Ctrl-C or SIGTERM, which are answered, or by a crash."""

    def __init__(self, step: int, how: str):
        self.step, self.how = step, how

    def __call__(self, progress: Any) -> None:
        if progress.step == self.step:
            if self.how == "crash":
                raise Crash
            signal.raise_signal({"int": signal.SIGINT, "term": signal.SIGTERM}[self.how])


def stopped(start: Callable[..., Any], ends: list[tuple[int, str]], folder: Path, again: Callable[..., Any]) -> Path:
    """Start, end at the first of `ends`, resume, end at the next, ..., resume to the end."""
    act = start
    for step, how in ends:
        with pytest.raises((Crash, Interrupted)):
            act(watchers=[Ends(step, how)])
        facts = json.loads((folder / "run.json").read_text())
        assert facts["status"] == ("failed" if how == "crash" else "stopped")
        if how != "crash":  # nothing is lost
            assert state.newest(folder / "checkpoints", pytest.fail) == folder / "checkpoints" / f"step-{step:07d}"
        act = again
    act()
    return folder


# --- Arrays and pictures of ours -------------------------------------------------------------------------------------


class Restless(nn.Module):
    """A user's net that draws from every generator of the process, with a frozen part."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.first, self.norm = nn.Linear(64, 24), nn.BatchNorm1d(24)
        self.frozen, self.last = nn.BatchNorm1d(24), nn.Linear(24, classes)
        self.frozen.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x.flatten(1).float() / 255))
        if self.training:
            x = nn.functional.dropout(x, 0.2) * (1 + 0.1 * float(np.random.randn())) + 0.01 * random.random()
        return self.last(torch.relu(self.frozen(x)))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """240 of the digits in a file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, x=np.round(digits.images[:240] * 255 / 16).astype(np.uint8)[:, None], y=digits.target[:240])
    return path


COMMON = {"epochs": 3, "batch_size": 16, "valid": 0.2, "checkpoint_every": "4steps", "baselines": False, "quiet": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "everything": {
        "net": "mlp", "net_arg": {"dropout": 0.3, "hidden": [24]}, "augment": "shift=1,rotate=10", "mixup": 0.2, "ema": 0.9,
        "accumulate": 3, "clip_norm": 1.0, "schedule": "one_cycle", "balance": "over", "early_stopping": 2, "keep": "best",
        "label_smoothing": 0.1, "weight_decay": 0.1, "l2": 1e-4,
    },
    "plateau": {
        "net": "mlp", "net_arg": {"dropout": 0.2, "hidden": [24]}, "optimizer": "sgd", "optimizer_arg": {"momentum": 0.9},
        "learning_rate": 0.5, "schedule": "plateau", "schedule_arg": {"patience": 0, "factor": 0.3}, "early_stopping": 2,
        "clip_value": 0.5, "balance": "under", "keep": "best", "epochs": 6, "batch_size": 8,
    },
    "convnet": {
        "net": "convnet", "net_arg": {"widths": [4, 6]}, "augment": "shift=1", "cutmix": 1.0, "schedule": "cosine",
        "warmup": 0.1, "balance": "weights", "checkpoint_every": "1epoch", "epochs": 2, "keep": "last",
        "precision": "fp32",  # on a busy machine a step may take so long that bf16 is tried, and taken
    },
    "fp16": {"net": "mlp", "net_arg": {"hidden": [24]}, "precision": "fp16", "optimizer": "adam", "steps": 25, "epochs": None},
    "own net": {"net": Restless, "optimizer": torch.optim.RAdam, "loss": nn.CrossEntropyLoss(label_smoothing=0.1), "seed": 3},
}  # fmt: skip
OWN = ("net", "loss", "optimizer")


def starting(
    source: Any, runs: Path, name: str, settings: dict[str, Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How the run is started, and how it is resumed."""
    settings = {**COMMON, **settings}
    own = {key: settings[key] for key in OWN if key in settings and not isinstance(settings[key], str)}
    given = {} if isinstance(source, (str, Path)) else {"source": source}
    random.seed(1), np.random.seed(1)  # the process a run is started from may be in any state; here it is the same
    return (
        lambda **more: lamina.train(source, runs=runs, name=name, **settings, **more),
        lambda **more: lamina.resume(runs / name, quiet=True, **given, **own, **more),
    )


@pytest.fixture(scope="module")
def golden(pictures, tmp_path_factory) -> Callable[[str], dict[str, Any]]:
    """What the uninterrupted run of some settings came to."""
    runs, found = tmp_path_factory.mktemp("golden"), {}

    def of(title: str) -> dict[str, Any]:
        if title not in found:
            starting(pictures, runs, title, SETTINGS[title])[0]()
            found[title] = outcome(runs / title)
        return found[title]

    return of


def steps_of(result: dict[str, Any]) -> tuple[int, int]:
    """Steps in all, and in an epoch."""
    epochs = [row["step"] for row in result["history"] if "event" not in row]
    return result["run.json"]["steps"], epochs[0]


@pytest.mark.parametrize("title", SETTINGS)
def test_uninterrupted_runs_are_equal(quick, pictures, runs, golden, title):
    starting(pictures, runs, "again", SETTINGS[title])[0]()
    assert differences(outcome(runs / "again"), golden(title)) == []


def test_the_settings_exercise_what_they_should(quick, golden):
    """Early stopping, a falling rate, a best epoch that is not the last: else there is nothing to restore."""
    assert "has not improved" in golden("plateau")["run.json"]["stopped"]
    rates = {row["learning_rate"] for row in golden("plateau")["history"] if "event" not in row}
    assert len(rates) >= 2
    assert golden("plateau")["best weights"][0] != golden("plateau")["last weights"][0]
    assert golden("fp16")["run.json"]["steps"] == 25


@pytest.mark.parametrize("title", SETTINGS)
@pytest.mark.parametrize(
    "place, how",
    [
        ("step 1", "crash"),
        ("mid-epoch", "int"),
        ("mid-epoch", "crash"),
        ("end of an epoch", "term"),
        ("last step", "crash"),
    ],
)
def test_stopped_anywhere_and_resumed_it_is_the_same(quick, pictures, runs, golden, title, place, how):
    steps, epoch = steps_of(golden(title))
    step = {"step 1": 1, "mid-epoch": epoch + epoch // 2, "end of an epoch": epoch, "last step": steps}[place]
    start, again = starting(pictures, runs, "run", SETTINGS[title])
    stopped(start, [(step, how)], runs / "run", again)
    assert differences(outcome(runs / "run"), golden(title)) == []


@pytest.mark.fault(1)
@pytest.mark.parametrize("title", ["everything", "plateau", "own net"])
def test_stopped_several_times_it_is_the_same(quick, pictures, runs, golden, title):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    steps, _ = steps_of(golden(title))
    ends = sorted((draw.randint(1, steps), draw.choice(["int", "term", "crash"])) for _ in range(draw.randint(2, 4)))
    ends = [entry for k, entry in enumerate(ends) if k == 0 or entry[0] > ends[k - 1][0]]
    print(ends)
    start, again = starting(pictures, runs, "run", SETTINGS[title])
    stopped(start, ends, runs / "run", again)
    assert differences(outcome(runs / "run"), golden(title)) == []


class Ended(Exception):
    """As a crash, but of something that may be caught on the way."""


def fails_at(
    monkeypatch, owner: Any, name: str, call: int | str, error: BaseException | type[BaseException] = Crash
) -> None:
    """The `call`-th call of a function, or the first that is given `call`, ends the process, once."""
    real, calls, fired = getattr(owner, name), itertools.count(1), []

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call or (call in arguments[:1] and not fired):
            fired.append(call)
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


MOMENTS: dict[str, tuple[Any, str, int | str]] = {
    "before the first step": (results, "opening", 1),
    "first validation": (lamina.domains.base.Domain, "validate", 1),
    "third validation": (lamina.domains.base.Domain, "validate", 3),
    "writing the second checkpoint": (files, "_write_flushed", 14),
    "writing a checkpoint's manifest": (files, "_write_flushed", 16),
    "renaming a checkpoint": (files, "_swap", 3),
    "deleting an old checkpoint": (files, "remove", 1),
    "replacing the best": (files, "point", "a folder is replaced"),
    "last checkpoint": (training, "_checkpoint", 6),
    "final weights": (results, "_final_weights", 1),
    "final evaluation": (results, "_measure", 1),
    "predictions": (lamina.run, "predictions_csv", 1),
}


@pytest.mark.fault(1)
@pytest.mark.parametrize(
    "moment, error",
    [(moment, Crash) for moment in MOMENTS]
    + [
        (moment, error)
        for moment in ("third validation", "renaming a checkpoint")
        for error in (KeyboardInterrupt, Ended)
    ],
)
def test_ended_at_any_moment_and_resumed_it_is_the_same(quick, pictures, runs, golden, monkeypatch, moment, error):
    start, again = starting(pictures, runs, "run", SETTINGS["plateau"])
    with monkeypatch.context() as patch:
        fails_at(patch, *MOMENTS[moment], error=error)
        with pytest.raises(Interrupted if error is KeyboardInterrupt else error):
            start()
    assert json.loads((runs / "run" / "run.json").read_text())["status"] in ("failed", "stopped")
    again()
    assert differences(outcome(runs / "run"), golden("plateau")) == []


def test_a_signal_in_the_final_evaluation_acts_at_once(quick, pictures, runs, golden, monkeypatch):
    start, again = starting(pictures, runs, "run", SETTINGS["plateau"])
    for act, number in ((start, signal.SIGTERM), (again, signal.SIGINT)):
        with monkeypatch.context() as patch:
            patch.setattr(results, "_measure", lambda job, number=number: signal.raise_signal(number))
            with pytest.raises(Interrupted, match="Stopped at once") as caught:
                act()
        assert caught.value.exit_code == 128 + number and "lamina resume" in str(caught.value)
        assert json.loads((runs / "run" / "run.json").read_text())["status"] == "stopped"
    again()
    assert differences(outcome(runs / "run"), golden("plateau")) == []


def test_a_signal_while_the_best_weights_are_read_again_is_no_damage(quick, pictures, runs, golden, monkeypatch):
    """What reads them takes any `Exception` for a checkpoint that somebody spoilt; a stop is none."""
    start, again = starting(pictures, runs, "run", {**SETTINGS["plateau"], "keep": "best"})
    with monkeypatch.context() as patch:
        patch.setattr(state, "unpack", lambda *given: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match="Stopped at once") as caught:
            start()
    assert caught.value.exit_code == 143 and not isinstance(caught.value, Exception)
    assert json.loads((runs / "run" / "run.json").read_text())["status"] == "stopped"
    again()
    assert json.loads((runs / "run" / "run.json").read_text())["status"] == "done"


def test_a_signal_at_the_very_end_of_learning_is_answered(quick, pictures, runs, golden, monkeypatch):
    """While the last checkpoint is written, after the last step has looked for signals."""
    start, again = starting(pictures, runs, "run", {**SETTINGS["everything"], "checkpoint_every": "1000steps"})
    real = training._checkpoint

    def signalled(job: Any, learning: Any) -> None:
        if learning.state.step:
            signal.raise_signal(signal.SIGTERM)
        real(job, learning)

    monkeypatch.setattr(training, "_checkpoint", signalled)
    with pytest.raises(Interrupted) as caught:
        start()
    assert caught.value.exit_code == 143
    monkeypatch.setattr(training, "_checkpoint", real)
    again()
    assert outcome(runs / "run")["weights.safetensors"] == golden("everything")["weights.safetensors"]


def test_a_second_signal_acts_at_once_and_damages_nothing(quick, pictures, runs, golden):
    class Twice:
        def __call__(self, progress: Any) -> None:
            if progress.step == 7:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the second signal was not answered")

    start, again = starting(pictures, runs, "run", SETTINGS["plateau"])
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="second signal"):
        start(watchers=[Twice()])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert state.newest(runs / "run" / "checkpoints", pytest.fail).name == "step-0000004"
    again()
    assert differences(outcome(runs / "run"), golden("plateau")) == []


def test_what_ends_after_the_run_is_done_leaves_it_done(quick, pictures, runs, golden, monkeypatch):
    """Ctrl-C, or a reader that went away, while the last words are printed."""
    start, _ = starting(pictures, runs, "run", SETTINGS["plateau"])
    golden("plateau")
    monkeypatch.setattr(results, "_closing", lambda *_: (_ for _ in ()).throw(BrokenPipeError()))
    with pytest.raises(BrokenPipeError):
        start()
    assert differences(outcome(runs / "run"), golden("plateau")) == []


# --- The comparison sees what is not restored ------------------------------------------------------------------------


def forgetting(monkeypatch, forget: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """State is loaded as ever, but for one ingredient, which stays as a new process has it."""
    real = TrainState.load

    def load(self: TrainState, weights: dict[str, Any], tree: dict[str, Any]) -> None:
        fresh = {"weights": {k: v.clone() for k, v in self.net.state_dict().items()}, **self.tree()}
        both = {"weights": weights, **tree}
        forget(both, fresh)
        real(self, both.pop("weights"), both)

    monkeypatch.setattr(TrainState, "load", load)


def leave(*path: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def forget(both: dict[str, Any], fresh: dict[str, Any]) -> None:
        for name in path[:-1]:
            both, fresh = both[name], fresh[name]
        both[path[-1]] = fresh[path[-1]]

    return forget


CONTROLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "weights": ("everything", ("weights",)),
    "torch's generator": ("everything", ("generators", "torch")),
    "numpy's generator": ("own net", ("generators", "numpy")),
    "python's generator": ("own net", ("generators", "python")),
    "epoch": ("everything", ("cursor", "epoch")),
    "batch": ("everything", ("cursor", "batch")),
    "step": ("everything", ("cursor", "step")),
    "examples": ("everything", ("cursor", "examples")),
    "sum of losses": ("everything", ("loss_sum",)),
    "optimiser": ("everything", ("optimizer", "state")),
    "momentum": ("plateau", ("optimizer", "state")),
    "schedule": ("plateau", ("schedule",)),
    "loss scale": ("fp16", ("scaler",)),
    "average": ("everything", ("ema",)),
    "history": ("everything", ("parts", "history")),
    "early stopping": ("plateau", ("parts", "watcher-0")),
    "health": ("plateau", ("parts", "watcher-1")),
    "modes": ("own net", ("training",)),
}


@pytest.mark.fault(1)
@pytest.mark.parametrize("what", CONTROLS)
def test_an_ingredient_that_is_forgotten_is_missed(quick, pictures, runs, golden, monkeypatch, what):
    title, path = CONTROLS[what]
    steps, epoch = steps_of(golden(title))
    at = 2 * epoch + 2 if steps > 2 * epoch + 2 else epoch + 2
    start, again = starting(pictures, runs, "run", SETTINGS[title])
    with pytest.raises(Interrupted):
        start(watchers=[Ends(at, "int")])
    if what == "modes":  # a net that comes out of its constructor differently, as after a later edit
        again = starting(pictures, runs, "run", {**SETTINGS[title], "net": Thawed})[1]
    with monkeypatch.context() as patch:
        forgetting(patch, leave(*path))
        again()
    assert differences(outcome(runs / "run"), golden(title)) != []


class Thawed(Restless):
    def __init__(self, classes: int = 10):
        super().__init__(classes)
        self.frozen.train()


def test_modes_come_back_even_so(quick, pictures, runs, golden):
    """The counterpart of the control "modes": with nothing forgotten the frozen part stays frozen."""
    start, _ = starting(pictures, runs, "run", SETTINGS["own net"])
    again = starting(pictures, runs, "run", {**SETTINGS["own net"], "net": Thawed})[1]
    stopped(start, [(steps_of(golden("own net"))[1], "int")], runs / "run", again)
    assert differences(outcome(runs / "run"), golden("own net")) == []


# --- Other sources ---------------------------------------------------------------------------------------------------


def table(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(5)
    y = np.arange(count) % 3
    return (draw.normal(size=(count, 6)) + np.eye(6)[y]).astype(np.float32), y


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))


class Noisy(Dataset):
    """A map-style Dataset as a tutorial has it: random transforms from every generator there is."""

    def __init__(self) -> None:
        self.x, self.targets = table()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x = torch.from_numpy(self.x[index]) + 0.3 * torch.randn(6)
        if random.random() < 0.5:
            x = x.flip(0)
        return x * float(np.random.uniform(0.8, 1.2)), int(self.targets[index])


class Stream(IterableDataset):
    """Nobody knows how long it is."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        for x, y in zip(*table(), strict=True):
            yield torch.from_numpy(x) * 1.5, int(y)


def shuffled_loader() -> DataLoader:
    return DataLoader(Noisy(), batch_size=16, shuffle=True)


def loader_with_a_generator() -> DataLoader:
    return DataLoader(Noisy(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(8))


def loader_with_workers() -> DataLoader:
    return DataLoader(Noisy(), batch_size=16, shuffle=True, num_workers=1)


SOURCES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "arrays": (table, {"mixup": 0.3, "accumulate": 2, "ema": 0.9}),
    "dataset": (Noisy, {"workers": 0}),
    "dataset, 2 workers": (Noisy, {"workers": 2}),
    "shuffled loader": (shuffled_loader, {"batch_size": None}),
    "loader, own generator": (loader_with_a_generator, {"batch_size": None}),
    "loader, 1 worker": (loader_with_workers, {"batch_size": None}),
    "stream": (Stream, {"schedule": "constant", "batch_size": 16}),
}
PLAIN = {"epochs": 3, "batch_size": 12, "checkpoint_every": "2steps", "baselines": False, "quiet": True}


def from_memory(title: str, runs: Path, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    make, settings = SOURCES[title][0], {**PLAIN, **SOURCES[title][1]}
    valid = {} if isinstance(make(), (Dataset, tuple)) and title != "stream" else {"valid": make()}

    def start(**options: Any) -> Any:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        return lamina.train(make(), net=small_net, runs=runs, name=name, **valid, **settings, **options)

    def again(**options: Any) -> Any:
        random.seed(2), np.random.seed(2), torch.manual_seed(2)
        return lamina.resume(runs / name, make(), net=small_net, quiet=True, **valid, **options)

    return start, again


@pytest.mark.parametrize("title", SOURCES)
def test_any_source_goes_on_where_it_was(quick, runs, title):
    """Once in the middle of an epoch, twice in the next, once at the end of one."""
    start, _ = from_memory(title, runs, "golden")
    start()
    rows = [row for row in lamina.load(runs / "golden", net=small_net).history if "event" not in row]
    epoch = rows[0]["step"]
    start, again = from_memory(title, runs, "run")
    ends = [(2, "int"), (epoch + 1, "crash"), (epoch + 2, "int"), (2 * epoch, "term")]
    stopped(start, ends, runs / "run", again)
    assert differences(outcome(runs / "run"), outcome(runs / "golden")) == []


def test_the_number_of_workers_may_change(quick, runs):
    start, _ = from_memory("dataset", runs, "golden")
    start()
    start, again = from_memory("dataset, 2 workers", runs, "run")
    with pytest.raises(Interrupted):
        start(watchers=[Ends(3, "int")])
    recipe = runs / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("workers = 2", "workers = 0"))
    again()
    assert differences(outcome(runs / "run"), outcome(runs / "golden")) == []


@pytest.mark.parametrize("title", ["shuffled loader", "loader, own generator"])
def test_a_loader_whose_place_is_forgotten_is_missed(quick, runs, monkeypatch, title):
    """The control: without the generators of the epoch's beginning its order cannot be walked again."""
    start, _ = from_memory(title, runs, "golden")
    start()
    start, again = from_memory(title, runs, "run")
    with pytest.raises(Interrupted):
        start(watchers=[Ends(8, "int")])
    forgetting(monkeypatch, leave("batches"))
    again()
    assert differences(outcome(runs / "run"), outcome(runs / "golden")) != []


def test_a_net_that_is_made_by_its_first_batch_goes_on(quick, runs):
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))

    settings = {**PLAIN, "net": lazy, "weight_decay": 0.1, "ema": 0.5}
    lamina.train(table(), runs=runs, name="golden", **settings)
    stopped(
        lambda **more: lamina.train(table(), runs=runs, name="run", **settings, **more), [(3, "int"), (5, "crash")],
        runs / "run", lambda **more: lamina.resume(runs / "run", table(), net=lazy, quiet=True, **more),
    )  # fmt: skip
    assert differences(outcome(runs / "run"), outcome(runs / "golden")) == []
    assert lamina.load(runs / "run", net=lazy).predict(table()[0]).prediction.shape == (90,)


def test_a_net_and_an_optimiser_that_are_made_already_go_on(quick, runs):
    """Objects of torch and a net in memory: given again, in whatever state, they end in the same bits."""

    def parts(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        net = small_net()
        return {
            "net": net,
            "optimizer": torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
            "loss": nn.CrossEntropyLoss(),
        }

    random.seed(1), np.random.seed(1)
    lamina.train(table(), runs=runs, name="golden", **parts(4), **PLAIN)
    stopped(
        lambda **more: lamina.train(table(), runs=runs, name="run", **parts(4), **PLAIN, **more), [(4, "int"), (9, "crash")],
        runs / "run", lambda **more: lamina.resume(runs / "run", table(), quiet=True, **parts(9), **more),
    )  # fmt: skip
    assert differences(outcome(runs / "run"), outcome(runs / "golden")) == []


class Counting:
    """A watcher of a user's, with a memory, that ends the training."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, progress: Any) -> Any:
        self.steps += 1
        if progress.step == 4:
            return Save("fourth")
        return Stop("eleven steps are enough") if self.steps == 11 else Log({"mine": self.steps})

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, given: dict[str, int]) -> None:
        self.steps = given["steps"]


def test_a_watcher_with_a_memory_goes_on(quick, runs):
    def start(name: str, *more: Any) -> Any:
        return lamina.train(table(), net=small_net, runs=runs, name=name, watchers=[Counting(), *more], **PLAIN)

    start("golden")
    with pytest.raises(Interrupted):
        start("run", Ends(6, "int"))
    before = snapshot(runs / "run")
    with pytest.raises(RunError, match="state of watcher-1") as caught:
        lamina.resume(runs / "run", table(), net=small_net, quiet=True)
    assert "watchers=" in str(caught.value) and snapshot(runs / "run") == before
    lamina.resume(runs / "run", table(), net=small_net, quiet=True, watchers=[Counting()])
    assert differences(outcome(runs / "run"), outcome(runs / "golden")) == []
    assert lamina.load(runs / "run", net=small_net).facts["stopped"] == "eleven steps are enough"
    assert files.verify(runs / "run" / "fourth")[0]["step"] == 4


def test_groups_are_asked_for_again(quick, runs):
    """They make the intervals wider, so a run without them would not be the same."""
    groups = np.repeat(np.arange(30), 3)
    x, y = table()

    def start(name: str, **more: Any) -> Any:
        return lamina.train((x, y), net=small_net, groups=groups, test=0.4, runs=runs, name=name, **PLAIN, **more)

    start("golden")
    with pytest.raises(Interrupted):
        start("run", watchers=[Ends(2, "int")])
    before = snapshot(runs / "run")
    for wrong in (None, groups[::-1]):
        with pytest.raises(RunError, match="groups"):
            lamina.resume(runs / "run", (x, y), net=small_net, groups=wrong, quiet=True)
    assert snapshot(runs / "run") == before
    lamina.resume(runs / "run", (x, y), net=small_net, groups=groups, quiet=True)
    assert differences(outcome(runs / "run"), outcome(runs / "golden")) == []


# --- What is refused, and leaves the run as it was -------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, whose holder is noted in it, and the log, in which a refusal may be told."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "train.log")
    }


@pytest.fixture
def half(quick, pictures, runs):
    """A run that was stopped half-way."""
    start, _ = starting(pictures, runs, "run", SETTINGS["plateau"])
    with pytest.raises(Interrupted):
        start(watchers=[Ends(7, "int")])
    return runs / "run"


def refused(folder: Path, kind: type[Exception], match: str, **given: Any) -> str:
    before = snapshot(folder)
    with pytest.raises(kind, match=match) as caught:
        lamina.resume(folder, quiet=True, **given)
    assert snapshot(folder) == before
    return str(caught.value)


def test_a_folder_that_is_no_run(tmp_path, half):
    with pytest.raises(RunError, match="no run") as caught:
        lamina.resume(half.with_name("ran"))
    assert "did you mean 'run'" in str(caught.value)
    (half / "run.json").unlink()  # as when the process was killed before the run began
    refused(half, RunError, r"no run\.json")


@pytest.mark.fault(19)
def test_a_run_of_another_schema(half):
    facts = json.loads((half / "run.json").read_text())
    (half / "run.json").write_text(json.dumps({**facts, "schema": 2, "lamina": "9.1"}))
    assert "Lamina 9.1" in refused(half, RunError, "run schema 2")


def test_a_run_that_another_process_holds(half):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; from lamina import files; lock = files.Lock(sys.argv[1]); print(1, flush=True); "
         "sys.stdin.read()", str(half)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        assert str(holder.pid) in refused(half, UsageError, "in use by process")
    finally:
        holder.communicate()
    lamina.resume(half, quiet=True)


def test_data_that_changed(half, pictures, tmp_path, golden):
    kept = pictures.read_bytes()
    try:
        with np.load(pictures) as found:
            x, y = found["x"].copy(), found["y"].copy()
        for change in ("a pixel", "a label", "the order", "a row less"):
            new_x, new_y = x.copy(), y.copy()
            if change == "a pixel":
                new_x[3, 0, 4, 4] ^= 1
            elif change == "a label":
                new_y[3] = (new_y[3] + 1) % 10
            elif change == "the order":
                new_x, new_y = new_x[::-1], new_y[::-1]
            else:
                new_x, new_y = new_x[:-1], new_y[:-1]
            np.savez(pictures, x=new_x, y=new_y)
            words = refused(half, RunError, "data are not those")
            assert "give them as they were" in words and "--accept-data-change" in words
        pictures.unlink()
        refused(half, UsageError, "There is no file")
    finally:
        pictures.write_bytes(kept)
    lamina.resume(half, quiet=True)
    assert differences(outcome(half), golden("plateau")) == []


def test_data_from_memory_must_be_given_again(quick, runs):
    start, again = from_memory("arrays", runs, "run")
    with pytest.raises(Interrupted):
        start(watchers=[Ends(3, "int")])
    assert "lamina.resume(run, (x, y)" in refused(runs / "run", UsageError, "were in memory", net=small_net)
    x, y = table()
    refused(runs / "run", RunError, "data are not those", source=(x + 1, y), net=small_net)
    refused(runs / "run", RunError, "examples were .*6.* and are .*5", source=(x[:, :5], y), net=small_net)
    again()


def test_an_own_net_loss_and_optimiser_must_be_given_again(quick, pictures, runs, golden):
    settings = SETTINGS["own net"]
    start, again = starting(pictures, runs, "run", settings)
    with pytest.raises(Interrupted):
        start(watchers=[Ends(5, "int")])
    place, own = runs / "run", {key: settings[key] for key in OWN}
    net = refused(place, RunError, "net of this run is code of yours", **{**own, "net": None})
    assert "--net test_resume.py:Restless" in net
    assert "lamina.resume(run, loss=...)" in refused(place, RunError, "The loss of this run", **{**own, "loss": None})
    assert "optimizer=" in refused(place, RunError, "The optimizer of this run", **{**own, "optimizer": None})
    refused(place, UsageError, "loss given is a MSELoss", **{**own, "loss": nn.MSELoss()})
    refused(place, UsageError, "optimizer given is a SGD", **{**own, "optimizer": torch.optim.SGD})
    refused(place, RunError, "do not fit the net", **{**own, "net": lambda: Restless(11)})
    again()
    assert differences(outcome(place), golden("own net")) == []


def test_what_was_not_own_cannot_be_replaced(half):
    refused(half, UsageError, "not started with an own loss", loss=nn.MSELoss())
    refused(half, UsageError, "not started with an own optimizer", optimizer=torch.optim.Adam)


def test_the_file_of_an_own_net_must_be_the_same(quick, pictures, runs, tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "from torch import nn\ndef Net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def loss(o, t): return nn.functional.cross_entropy(o / 255, t)\n"
    )
    own = {"net": f"{code}:Net", "loss": f"{code}:loss"}
    with pytest.raises(Interrupted):
        lamina.train(pictures, runs=runs, name="run", watchers=[Ends(5, "int")], **own, **COMMON)
    text = code.read_text()
    code.write_text(text + "# edited\n")
    refused(runs / "run", RunError, r"mine\.py is not the file the run was trained with", **own)
    code.write_text(text)
    lamina.resume(runs / "run", quiet=True, **own)
    lamina.train(pictures, runs=runs, name="golden", **own, **COMMON)
    assert differences(outcome(runs / "run"), outcome(runs / "golden")) == []


def test_a_run_without_a_sound_checkpoint(half):
    for place in (half / "checkpoints").iterdir():
        (place / "weights.safetensors").write_bytes(b"")
    assert "train again" in refused(half, RunError, "No checkpoint .* is sound")
    assert "step-0000007" in (half / "train.log").read_text()


@pytest.mark.parametrize("name", ["recipe.toml", "data.json", "splits.csv"])
def test_a_run_with_a_damaged_file(half, name):
    sound = (half / name).read_bytes()
    (half / name).write_bytes(sound[: len(sound) // 2])
    refused(half, RunError, name.replace(".", r"\."))
    (half / name).write_bytes(sound)
    lamina.resume(half, quiet=True)


def test_a_run_that_is_done_is_left_alone(half):
    lamina.resume(half, quiet=True)
    before = snapshot(half)
    assert lamina.resume(half).facts["status"] == "done"
    assert snapshot(half) == before


def test_a_run_that_cannot_begin_leaves_no_folder(quick, pictures, runs):
    for wrong in ({"optimizer_arg": {"foo": 1}}, {"schedule": "step", "schedule_arg": {}}, {"net_arg": {"foo": 1}}):
        with pytest.raises(UsageError):
            lamina.train(pictures, runs=runs, name="run", **{**COMMON, **wrong})
    assert list(runs.iterdir()) == []


@pytest.mark.parametrize("error", [ResourceError("no space"), KeyboardInterrupt(), Crash()], ids=repr)
def test_a_run_that_ends_before_it_has_begun_leaves_no_folder(quick, pictures, runs, monkeypatch, error):
    fails_at(monkeypatch, files, "_write_flushed", 8, error)
    with pytest.raises(type(error)):
        lamina.train(pictures, runs=runs, name="run", **COMMON)
    assert list(runs.iterdir()) == []


# --- Circumstances ---------------------------------------------------------------------------------------------------


def test_a_damaged_newest_checkpoint_costs_an_interval_and_is_named(half, golden):
    assert [p.name for p in state.listing(half / "checkpoints")] == ["step-0000007", "step-0000004"]
    (half / "checkpoints" / "step-0000007" / "state.json").write_text("{}")
    lamina.resume(half, quiet=True)
    assert "checkpoint step-0000007 is passed over" in (half / "train.log").read_text().replace("\n", " ").replace(
        "  ", " "
    )
    assert differences(outcome(half), golden("plateau")) == []


@pytest.mark.fault(18)
def test_a_run_may_be_moved(half, golden, tmp_path):
    moved = tmp_path / "elsewhere" / "renamed run"
    moved.parent.mkdir()
    shutil.move(half, moved)
    lamina.resume(moved, quiet=True)
    assert differences(outcome(moved), golden("plateau")) == []


def test_a_run_may_be_resumed_from_another_folder(quick, pictures, runs, golden, tmp_path, monkeypatch):
    """Its source was named by a relative path."""
    monkeypatch.chdir(pictures.parent)
    start, _ = starting(pictures.name, runs, "run", SETTINGS["plateau"])
    with pytest.raises(Interrupted):
        start(watchers=[Ends(7, "int")])
    monkeypatch.chdir(tmp_path)
    lamina.resume(runs / "run", quiet=True)
    assert differences(outcome(runs / "run"), golden("plateau")) == []


@pytest.mark.fault(20)
def test_other_numerics_are_said_and_the_run_goes_on(half):
    facts = json.loads((half / "run.json").read_text())
    facts["numerics"]["cpu"] = "a processor of another kind"
    (half / "run.json").write_text(json.dumps(facts))
    lamina.resume(half, quiet=True)
    assert "this machine differs from the one before (cpu)" in (half / "train.log").read_text().replace("\n", " ")


def test_a_resumed_run_has_the_threads_it_was_started_with(half):
    """Whatever the process that resumes it has, which gets them back."""
    torch.set_num_threads(2)
    lamina.resume(half, quiet=True)
    assert "this machine differs" not in (half / "train.log").read_text()
    assert torch.get_num_threads() == 2


def test_what_a_killed_process_left_is_cleared_away(half, golden):
    for place in (half, half / "checkpoints", half / "figures"):
        (place / f"{files.TEMPORARY}1-2-left").mkdir(parents=True)
    lamina.resume(half, quiet=True)
    assert differences(outcome(half), golden("plateau")) == []  # which looks for them, too


def test_the_callers_generators_are_as_they_were(half):
    torch.manual_seed(4), np.random.seed(4), random.seed(4)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    lamina.resume(half, quiet=True)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


# --- Real processes --------------------------------------------------------------------------------------------------

# A process that has imported everything, and forks one child for each `lamina` command: a start costs no import.
NURSERY = """
import json, os, sys, traceback
import matplotlib.figure, sklearn.datasets, scipy.stats, torch
import lamina.training, lamina.cli.train, lamina.cli.resume
from lamina.cli import main
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if not child:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        try:
            main(arguments)
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    print(child, flush=True)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Command:
    """A running `lamina` command."""

    def __init__(self, process: subprocess.Popen[str], arguments: list[str], log: Path):
        assert process.stdin is not None and process.stdout is not None
        self.process, self.log, self.began = process, log, log.stat().st_size
        process.stdin.write(json.dumps([arguments, str(log)]) + "\n")
        process.stdin.flush()
        self.pid = int(process.stdout.readline())

    def kill(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(self.pid, number)

    def wait(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def said(self) -> str:
        return self.log.read_text()[self.began :]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Callable[..., Command]]:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs a fork that is safe after torch was imported")
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    log = tmp_path_factory.mktemp("nursery") / "log"
    log.touch()
    yield lambda *arguments: Command(process, [str(part) for part in arguments], log)
    process.communicate()


TRAIN = (
    "train", "digits", "--net", "mlp", "--net-arg", "hidden=24", "--net-arg", "dropout=0.3", "--augment", "shift=1",
    "--epochs", "3", "--batch-size", "64", "--ema", "0.9", "--keep", "best", "--checkpoint-every", "5steps",
    "--no-baselines",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory) -> tuple[dict[str, Any], float]:
    """What the command comes to when nobody disturbs it, and the seconds it takes here."""
    runs = tmp_path_factory.mktemp("undisturbed")
    assert nursery("--version").wait() == 0
    began = time.monotonic()
    command = nursery(*TRAIN, "--runs", runs, "--name", "golden")
    assert command.wait() == 0, command.said()
    return outcome(runs / "golden"), time.monotonic() - began


@pytest.mark.fault(1)
@pytest.mark.timeout(300 + 20 * KILLS)
def test_killed_at_random_instants_and_resumed_it_is_the_same(nursery, undisturbed, tmp_path):
    """SIGKILL, from before the run has a folder until it is done; several times a run."""
    golden, seconds = undisturbed
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}; {seconds:.2f} s undisturbed")
    draw, kills, k = random.Random(seed), 0, 0
    while kills < KILLS:
        name = f"run-{(k := k + 1)}"
        folder = tmp_path / name
        while True:
            is_run = (folder / "run.json").is_file()
            if folder.exists() and not is_run:  # it was not a run yet: nothing to resume, and nothing lost
                shutil.rmtree(folder)
            command = nursery("resume", folder) if is_run else nursery(*TRAIN, "--runs", tmp_path, "--name", name)
            began = time.monotonic()
            if kills < KILLS:
                time.sleep(draw.uniform(0, seconds))
                command.kill(signal.SIGKILL)
            code = command.wait()
            assert code in (0, -signal.SIGKILL), command.said()
            if code == 0:
                seconds = seconds if is_run else min(seconds, time.monotonic() - began)
                break
            kills += 1
        assert differences(outcome(folder), golden) == []


def lamina_command(*arguments: Any) -> subprocess.Popen[str]:
    """The real command, in a process of its own."""
    command = [sys.executable, "-m", "lamina", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


SLOW = """
import time
from torch.nn import functional as F
def loss(output, truth):
    time.sleep(0.02)
    return F.cross_entropy(output, truth)
"""


def when_learning(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Wait until that many steps are in a checkpoint."""
    while not any(p.name >= f"step-{step:07d}" for p in state.listing(folder / "checkpoints")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_real_command_answers_ctrl_c_and_sigterm(nursery, tmp_path):
    """130 and 143, a run that is saved, and the same bits in the end."""
    (tmp_path / "slow.py").write_text(SLOW)
    own = ("--loss", f"{tmp_path / 'slow.py'}:loss")
    folder = tmp_path / "run"
    for number, code, first in ((signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)):
        named = (*TRAIN, "--runs", tmp_path, "--name", "run", *own) if first else ("resume", folder, *own)
        process = lamina_command(*named)
        when_learning(process, folder, 5 if first else 25)
        process.send_signal(number)
        _, errors = process.communicate()
        assert process.returncode == code
        step = int(state.listing(folder / "checkpoints")[0].name[5:])
        assert f"stopped: Stopped after step {step} " in errors and f"go on: lamina resume {folder}" in errors
        assert "Traceback" not in errors
        assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
    process = lamina_command("resume", folder, *own)
    golden = nursery(*TRAIN, "--runs", tmp_path, "--name", "golden", *own)
    assert golden.wait() == 0, golden.said()
    out, errors = process.communicate()
    assert process.returncode == 0 and errors == "", errors
    assert "resumed" in out
    assert differences(outcome(folder), outcome(tmp_path / "golden")) == []


def test_the_command_refuses_with_the_code_of_its_kind(nursery, undisturbed, tmp_path):
    """4 for what is no run or in use, 2 for what is missing, 0 and a word for what is done."""

    def ran(*arguments: Any) -> tuple[int, str]:
        command = nursery(*arguments)
        return command.wait(), command.said()

    code, words = ran("resume", tmp_path / "none")
    assert code == 4 and "error: " in words and "no run" in words
    (tmp_path / "slow.py").write_text(SLOW)
    own = ("--loss", f"{tmp_path / 'slow.py'}:loss")
    command = nursery(*TRAIN, "--runs", tmp_path, "--name", "run", *own)
    while not (tmp_path / "run" / "checkpoints" / "step-0000005").is_dir():
        time.sleep(0.01)
    command.kill(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL
    with files.Lock(tmp_path / "run"):
        code, words = ran("resume", tmp_path / "run", *own)
        assert code == 2 and f"in use by process {os.getpid()}" in words
    code, words = ran("resume", tmp_path / "run")
    assert code == 4 and "--loss " in words and "slow.py:loss" in words
    code, _ = ran("resume", tmp_path / "run", *own)
    assert code == 0
    code, words = ran("resume", tmp_path / "run")
    assert code == 0 and "nothing to resume" in words


def test_a_full_disk_ends_a_run_with_words_and_room_lets_it_go_on(nursery, undisturbed, tmp_path):
    """6, nothing damaged; after room was made, the same bits."""
    place, mount = tmp_path / "disk", shutil.which("mount")
    place.mkdir()
    if mount is None or os.geteuid() != 0 or subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True
    ).returncode:  # fmt: skip
        pytest.skip("a small file system cannot be mounted here")
    try:
        command = nursery(*TRAIN, "--runs", place, "--name", "run")
        assert command.wait() == 6, command.said()
        assert "the disk is full" in command.said() and "free some space" in command.said()
        assert "Traceback" not in command.said()
        before = [p.name for p in state.listing(place / "run" / "checkpoints")]
        for checkpoint in state.listing(place / "run" / "checkpoints"):
            files.verify(checkpoint)
        assert len(before) >= 2
        subprocess.run([mount, "-o", "remount,size=20m", place], check=True)
        assert nursery("resume", place / "run").wait() == 0
        assert differences(outcome(place / "run"), undisturbed[0]) == []
    finally:
        subprocess.run(["umount", "-l", place], check=True)
