"""`lamina bench`: figures that add up, advice that was tried, and no trace of it. Nothing here asserts a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import lamina
from lamina.batches import generators
from lamina.bench import advice, clock, machine, measure, parts, step, words
from lamina.errors import RunError

LAMINA = Path(sys.executable).with_name("lamina")
CPU = torch.device("cpu")
NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
"""


class Slow(Dataset):
    """Items made one by one; `targets` so that nobody reads them all for their answers."""

    def __init__(self, n: int = 64):
        self.targets = np.arange(n) % 3

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, k: int):
        return torch.full((4,), float(k)), int(self.targets[k])


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a run on iris, and one of an own net on a Dataset."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "my.py").write_text(NET)
    settings = {"runs": folder, "epochs": 2, "quiet": True, "baselines": False, "report": False}
    lamina.train("iris", name="iris", **settings)
    lamina.train("iris", name="own", net=f"{folder / 'my.py'}:Net", **settings)
    lamina.train(Slow(), name="slow", net=net(), test=Slow(9), **settings)
    return folder


def trace(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All that is in a folder: bytes, and when they were written."""
    return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()}


def drawn() -> str:
    """The generators' state, as text that can be compared."""
    return repr({name: str(state) for name, state in generators().items()})


# --- The machine ------------------------------------------------------------------------------------------------------


def test_every_figure_of_the_machine_is_there_and_the_generators_are_as_before():
    before = drawn()
    found = machine.measure_machine(CPU, 0.1)
    assert drawn() == before
    assert json.loads(json.dumps(found)) == found
    assert {entry["precision"] for entry in found["products"]} >= {"fp32", "bf16"}
    assert all(entry["gflops"] > 0 for entry in found["products"])
    assert min(found["memory_gb_per_s"], found["operation_us"], *found["small_product_us"].values()) > 0
    assert set(found["step_us"]) == {"hand", "lamina"}
    text = "\n".join(words.machine_lines(found))
    assert "GFLOP/s" in text and "through lamina.learn" in text
    assert words.machine_line(found).startswith("fp32 ")


def test_threads_are_put_back_also_after_an_error():
    before = torch.get_num_threads()
    seen = []

    def failing() -> None:
        with clock.threads(before + 1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("as planned")

    with pytest.raises(RuntimeError, match="as planned"):
        failing()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_the_precision_of_products_is_put_back():
    before = torch.get_float32_matmul_precision()
    assert machine.product_rate(CPU, "fp32", 1, 0.01) > 0
    assert torch.get_float32_matmul_precision() == before


def test_others_are_mentioned_when_they_were_busy_and_only_then():
    assert list(words._company({"others_cores": 0.05})) == []
    assert list(words._company({"others_cores": None})) == []  # a system that does not tell
    assert "0.8 processors" in "".join(words._company({"others_cores": 0.8}))


# --- A run ------------------------------------------------------------------------------------------------------------


def test_a_run_is_measured_and_left_as_it_was(place):
    run = lamina.load(place / "iris")
    before, weights, state = trace(place), {k: v.clone() for k, v in run.net.state_dict().items()}, drawn()
    found = measure.measure_run(run, seconds=0.6)
    assert trace(place) == before
    assert all(torch.equal(run.net.state_dict()[name], value) for name, value in weights.items())
    assert not run.net.training
    assert drawn() == state
    assert json.loads(json.dumps(found)) == found
    assert sum(entry["share"] for entry in found["parts"]) == pytest.approx(1)
    names = [entry["name"] for entry in found["parts"]]
    assert names[:2] == ["load", "prepare and augment"] and {
        "update",
        "watchers",
        "validation",
        "checkpoints",
        "everything else",
    } <= set(names)
    assert found["examples_per_second"] > 0 and found["floor"]["share"] > 0
    assert "where the time goes" in "\n".join(words.run_lines(found))
    assert words.run_line(found).count("\t") == 3


def test_settings_keep_their_origins(place):
    job = step.reopen(lamina.load(place / "iris"))
    assert job.origins["epochs"][0] == "yours" and job.origins["seed"][0] == "default"
    assert step.changed(job, seed=3).origins["seed"][0] == "yours" and job.origins["seed"][0] == "default"


def test_learning_is_switched_off_while_it_is_measured(place):
    job = step.reopen(lamina.load(place / "iris"))
    weights = {name: value.clone() for name, value in job.net.state_dict().items() if value.is_floating_point()}
    mine = step.copied(job)
    list(lamina.learn(mine.net, mine.walk, optimizer=mine.optimizer, schedule=mine.schedule, epochs=3, **mine.options))
    learned = dict(mine.net.named_parameters())
    assert learned and all(torch.equal(weights[name], parameter) for name, parameter in learned.items())
    job.recipe.learning_rate = 0.1  # and it would have moved
    optimizer = step.jobs.build_optimizer(job, job.net)
    list(lamina.learn(job.net, mine.walk, optimizer=optimizer, epochs=1, **mine.options))
    assert any(not torch.equal(weights[name], value) for name, value in job.net.named_parameters())


def test_the_arithmetic_is_that_of_the_formula(place):
    """Two operations a weight and example forward, two for the weights' gradients, two for the inputs' but the first."""
    job = step.reopen(lamina.load(place / "own", net=f"{place / 'my.py'}:Net"))
    batch = min(64, job.data.size("train"))
    assert parts.products(job) == 2 * batch * (4 * 16 * 2 + 16 * 3 * 3)
    assert parts.products(step.changed(job, accumulate=4)) == 4 * parts.products(job)


def test_layers_that_are_not_counted_are_named():
    assert parts.uncounted(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))) == ["LSTM"]
    assert parts.uncounted(nn.GRU(2, 2)) == []


def test_a_run_that_is_over_before_a_round_can_be_paced(place, monkeypatch):
    monkeypatch.setattr(step, "_LEAST", 3)
    job = step.changed(step.reopen(lamina.load(place / "iris")), steps=3, epochs=None)
    found = step.pace(job, 0.2)
    assert found.steps > 0 and found.seconds > 0


APART = ["load", "prepare and augment", "forward", "backward", "update"]
TOGETHER = ["load", "prepare and augment", "forward and backward", "update"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"compile": "on"}, TOGETHER),
        ({"compile": "off"}, APART),
        ({"accumulate": 3}, APART),
        ({"precision": "fp16"}, APART),
        ({"compile": "off", "clip_value": 0.1, "clip_norm": 1.0, "l2": 0.1}, APART),
        ({"compile": "off", "ema": 0.9, "mixup": 0.2, "label_smoothing": 0.0}, APART),
    ],
)
def test_parts_of_every_kind_of_step(place, settings, names):
    job = step.changed(step.reopen(lamina.load(place / "iris")), **settings)
    found = parts.parts(job, 0.05)
    assert list(found) == names
    assert min(found.values()) >= 0 and found["update"] > 0
    assert sum(found.values()) > found["load"] + found["update"]


def test_what_comes_in_bursts_counts_and_what_comes_once_does_not():
    assert parts._middle([1.0, 3.0] * 50) == pytest.approx(2.0, rel=0.1)
    assert parts._middle([1.0] * 99 + [1000.0]) == 1.0
    assert parts._middle([2.0]) == 2.0


# --- What was an object of the user's -------------------------------------------------------------------------------


def test_a_loss_that_is_lost_is_replaced_and_said_so(place, tmp_path):
    x, y = np.random.default_rng(0).normal(size=(90, 4)).astype("float32"), np.arange(90) % 3
    options = {"runs": tmp_path, "epochs": 1, "quiet": True, "baselines": False, "report": False}
    run = lamina.train((x, y), net=net(), loss=nn.CrossEntropyLoss(), name="a", **options)
    opened = lamina.load(run.folder, net=net())
    found = measure.measure_run(opened, source=(x, y), seconds=0.3)
    assert "CrossEntropyLoss" in "".join(found["notes"])
    again = measure.measure_run(opened, source=(x, y), loss=nn.CrossEntropyLoss(), seconds=0.3)
    assert again["notes"] == []
    with pytest.raises(RunError, match="in memory"):
        measure.measure_run(opened, seconds=0.3)


def test_an_optimiser_that_is_lost_is_asked_for(tmp_path):
    options = {"runs": tmp_path, "epochs": 1, "quiet": True, "baselines": False, "report": False}
    run = lamina.train("iris", optimizer=lambda p: torch.optim.SGD(p, lr=0.1), name="a", **options)
    with pytest.raises(RunError, match="optimizer"):
        measure.measure_run(lamina.load(run.folder), seconds=0.3)
    given = measure.measure_run(lamina.load(run.folder), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), seconds=0.3)
    assert given["examples_per_second"] > 0


# --- Advice -----------------------------------------------------------------------------------------------------------


def candidates(job, loading: float, count: int = 1, most: int = 1) -> list[str]:
    rest = (1 - loading) / 3
    parts = {"load": loading, "prepare and augment": 0.0, "forward": rest, "backward": rest, "update": rest}
    return [c.option for c in advice._candidates(job, step.Pace(1.0, 1.0), parts, count, most)]


def test_a_slow_dataset_is_tried_with_workers_and_kept_and_fast_loading_is_not(place):
    job = step.reopen(lamina.load(place / "slow", net=net()), source=lamina_source(Slow(), Slow(9)))
    assert "--cache" in candidates(job, 0.6)
    assert "--workers 1" not in candidates(job, 0.6)  # nobody asked for a number: it was chosen by measuring
    fixed = step.changed(job, workers=1)
    assert {"--workers 0", "--workers 2"} <= set(candidates(fixed, 0.6))
    assert "--workers 1" not in candidates(fixed, 0.6)
    assert not {"--workers 1", "--cache"} & set(candidates(job, 0.1))
    columns = step.reopen(lamina.load(place / "iris"))
    assert not {"--workers 1", "--cache"} & set(candidates(columns, 0.6))


def lamina_source(train, test):
    from lamina import sources

    return sources.open(train, test=test)


def test_only_what_the_run_does_not_have_yet_is_tried(place):
    job = step.reopen(lamina.load(place / "iris"))
    plain = step.changed(job, precision="fp32", compile="auto", strict=False)
    assert not {"--compile auto", "--no-strict"} & set(candidates(plain, 0.1))
    assert {"--compile auto", "--no-strict"} <= set(candidates(step.changed(plain, compile="off", strict=True), 0.1))
    assert "--precision bf16" in candidates(plain, 0.1)
    assert "--precision bf16" not in candidates(step.changed(plain, precision="bf16"), 0.1)
    assert "--threads 1" in candidates(plain, 0.1, count=2, most=2)
    assert "--threads 2" in candidates(plain, 0.1, count=1, most=2)
    assert not [option for option in candidates(plain, 0.1) if "threads" in option]


def test_the_layout_of_the_run_is_that_of_the_copy(place):
    job = step.reopen(lamina.load(place / "iris"))
    job.net = nn.Sequential(nn.Conv2d(3, 4, 3))
    (weight,) = (p for p in step.copied(job).net.parameters() if p.ndim == 4)
    assert weight.is_contiguous() and not weight.is_contiguous(memory_format=torch.channels_last)
    job.facts["step"] = {"channels_last": True}
    (weight,) = (p for p in step.copied(job).net.parameters() if p.ndim == 4)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_larger_batch_is_tried_only_where_there_are_examples_for_it(place):
    job = step.changed(step.reopen(lamina.load(place / "iris")), batch_size=4)
    assert "--batch-size 16" in candidates(job, 0.1)
    assert not [option for option in candidates(step.changed(job, batch_size=64), 0.1) if "batch" in option]


def paced(monkeypatch, rates: dict[str, list[float]]) -> None:
    """`pace` gives these rates in turn, by precision."""

    def pace(job, seconds, walk=None, watched=False):
        given = rates[job.recipe.precision]
        rate = given.pop(0) if len(given) > 1 else given[0]
        if rate < 0:
            raise RuntimeError("this processor cannot do that\nat great length")
        return step.Pace(1 / rate, rate)

    monkeypatch.setattr(advice, "pace", pace)
    monkeypatch.setattr(
        advice, "_candidates", lambda *_: [advice._Candidate("--precision bf16", "", {"precision": "bf16"})]
    )


@pytest.mark.parametrize(
    ("rates", "factor", "helps"),
    [
        ({"fp32": [100.0], "bf16": [180.0]}, 1.8, True),
        ({"fp32": [100.0], "bf16": [105.0]}, 1.05, False),
        ({"fp32": [170.0], "bf16": [180.0]}, 180 / 170, False),  # the run was slow by chance the first time
        ({"fp32": [100.0], "bf16": [-1.0]}, None, False),
    ],
)
def test_what_helps_is_what_did_twice(place, monkeypatch, rates, factor, helps):
    paced(monkeypatch, rates)
    job = step.changed(step.reopen(lamina.load(place / "iris")), precision="fp32")
    (trial,) = advice.trials(job, step.Pace(1.0, 100.0), dict.fromkeys(APART, 1.0), 1, 1, 1.0)
    assert trial.helps == helps
    if factor is None:
        assert (trial.factor, trial.error) == (None, "this processor cannot do that")
    else:
        assert trial.factor == pytest.approx(factor)


def test_kept_batches_are_those_of_the_dataset(place):
    job = step.reopen(lamina.load(place / "slow", net=net()), source=lamina_source(Slow(), Slow(9)))
    kept = step.in_memory(job, seconds=10.0)
    assert sorted(kept.columns[0][:, 0].tolist()) == list(map(float, range(64)))
    assert torch.equal(kept.truth, kept.columns[0][:, 0].long() % 3)


def test_a_cache_is_filled_first_or_the_words_say_that_it_was_not(place):
    job = step.reopen(lamina.load(place / "slow", net=net()), source=lamina_source(Slow(), Slow(9)))
    assert step.filled(job, 0.0)  # nothing is kept
    cached = step.changed(job, cache=True, batch_size=8)
    assert not step.filled(cached, 0.0)
    assert step.filled(cached, 60.0)


def test_the_way_the_steps_take_is_told(place):
    job = step.reopen(lamina.load(place / "iris"))
    assert step.pace(step.changed(job, compile="off"), 0.1).lane == "eager: compile is off"
    assert step.pace(step.changed(job, compile="on"), 0.1).lane == "recorded and replayed"


# --- The command ------------------------------------------------------------------------------------------------------


def command(*typed: object) -> subprocess.CompletedProcess:
    return subprocess.run([LAMINA, "bench", *map(str, typed)], capture_output=True, text=True, timeout=120)


def test_the_command_gives_words_a_line_or_json(place):
    mine = [place / "own", "--net", f"{place / 'my.py'}:Net", "--seconds", "0.5"]
    told = command(*mine)
    assert told.returncode == 0, told.stderr
    assert "where the time goes" in told.stdout and "█" in told.stdout
    quiet = command(*mine, "--quiet")
    assert quiet.stdout.count("\n") == 1 and quiet.stdout.count("\t") == 3
    found = json.loads(command(*mine, "--json").stdout)
    assert found["run"] == str(place / "own") and found["net"] == "Net"


def test_the_command_without_a_run_measures_the_machine():
    found = json.loads(command("--seconds", "0.5", "--json").stdout)
    assert found["products"] and found["step_us"]["lamina"] > 0


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (["nowhere"], 4, "is no run"),
        (["--net", "my.py:Net"], 2, "--net belongs to a run"),
        (["--device", "gpu"], 2, "there is no device"),
        (["--seconds", "0"], 2, "seconds"),
    ],
)
def test_mistakes_are_said(typed, code, said):
    done = command(*typed)
    assert done.returncode == code and said in done.stderr
