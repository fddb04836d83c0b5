"""A run folder, opened again: the same numbers as right after training, in another process, with the code that was used
and no other; and words for what is damaged."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lamina
from lamina import data, results, run
from lamina.errors import LaminaError, RunError, UsageError

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))
"""
WORDS = np.array(["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "-2+3"])


def shares(run: lamina.Run) -> np.ndarray:
    """Its probabilities of the held-out points."""
    found = run.predict(HELD[0]).probabilities
    assert found is not None
    return found


def points(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return (generator.normal(size=(n, 4)) + 2 * np.eye(4)[y]).astype(np.float32), y


X, Y = points(120, 0)
HELD = points(45, 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "my.py").write_text(NET)
    np.savez(folder / "points.npz", x=X, y=Y, x_test=HELD[0], y_test=HELD[1])
    return folder


def trained(place: Path, name: str, source: str = "points.npz", **asked) -> lamina.Run:
    """A run over a file of points, without a report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.writing, "write", lambda *_: None)
        asked = {"epochs": 4, "baselines": False, "quiet": True, **asked}
        return lamina.train(place / source, runs=place / "runs", name=name, **asked)


@pytest.fixture(scope="module")
def ours(place) -> lamina.Run:
    return trained(place, "ours", valid=0.2)


@pytest.fixture(scope="module")
def own(place) -> lamina.Run:
    return trained(place, "own", net=f"{place}/my.py:Net", net_arg={"width": 12})


@pytest.fixture(scope="module")
def elsewhere(place, ours, own) -> dict[str, list]:
    """What another process says of both runs: probabilities of the held-out points, and scores."""
    statements = f"""
import json, numpy, lamina
x = numpy.load({str(place / "points.npz")!r})["x_test"]
runs = lamina.load("runs/ours"), lamina.load("runs/own", net="my.py:Net")
print(json.dumps([[run.predict(x).probabilities.tolist(), run.evaluate()] for run in runs]))
"""
    done = subprocess.run([sys.executable, "-c", statements], cwd=place, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return dict(zip(("ours", "own"), json.loads(done.stdout), strict=True))


@pytest.fixture
def copy(place, ours, tmp_path) -> Path:
    """A copy of our run, to be damaged."""
    return Path(shutil.copytree(ours.folder, tmp_path / "copy"))


# --- Opened again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ours", "own"])
def test_another_process_predicts_and_scores_the_same(name, elsewhere, request):
    here = request.getfixturevalue(name)
    probabilities, scores = elsewhere[name]
    assert np.array_equal(shares(here), np.array(probabilities, dtype=np.float32))
    assert scores == [entry for entry in here.scores if entry["split"] == "test"]


@pytest.mark.parametrize("form", ["object", "class", "file"])
def test_an_own_net_is_given_again_in_any_form(form, place, own):
    from lamina import names

    kind = names.own(f"{place}/my.py:Net")
    again = lamina.load(own.folder, net={"object": kind(12), "class": kind, "file": f"{place}/my.py:Net"}[form])
    assert np.array_equal(shares(again), shares(own))


def test_an_own_net_is_not_opened_without_its_code(own):
    with pytest.raises(RunError, match="only when you name it") as refused:
        lamina.load(own.folder)
    assert "/my.py:Net" in str(refused.value)  # as it was typed: it can be pasted


def test_an_own_net_of_another_shape_is_refused(own):
    class Other(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first = nn.Linear(4, 3)

        def forward(self, x):
            return self.first(x)

    with pytest.raises(RunError, match=r"do not fit the net Other.*last"):
        lamina.load(own.folder, net=Other).predict(X)


def test_a_file_that_has_changed_is_refused(own, tmp_path):
    (tmp_path / "my.py").write_text(NET + "\n# one word more\n")
    with pytest.raises(RunError, match=r"my\.py is not the file .* SHA-256"):
        lamina.load(own.folder, net=f"{tmp_path}/my.py:Net").predict(X)
    with pytest.raises(UsageError, match=r"gone\.py"):
        lamina.load(own.folder, net=f"{tmp_path}/gone.py:Net").predict(X)


def test_the_net_is_a_plain_module_and_its_weights_load_in_plain_torch(ours, tmp_path):
    assert isinstance(ours.net, nn.Module) and not ours.net.training
    place = ours.save(tmp_path / "net.pth")
    stored = torch.load(place, weights_only=True)
    fresh = type(ours.net)(4, 3, **ours.facts["net"]["arguments"])
    fresh.load_state_dict(stored)
    x = (torch.from_numpy(HELD[0]) - torch.tensor(ours.domain.mean)) / torch.tensor(ours.domain.std)
    wanted = torch.softmax(fresh.eval()(x.float()) / ours.target.temperature, 1).detach().numpy()
    assert np.allclose(shares(ours), wanted, atol=1e-6)
    lamina.load_weights(fresh, ours.save(tmp_path / "net.safetensors"))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in stored.items())


def test_evaluate_gives_what_the_training_stored(ours):
    for part in ("test", "valid"):
        assert ours.evaluate(part=part) == [entry for entry in ours.scores if entry["split"] == part]


def test_evaluate_on_data_given(ours):
    given = ours.evaluate(HELD)
    assert [entry["split"] for entry in given] == ["given"] * len(given)
    assert [entry["value"] for entry in given] == [entry["value"] for entry in ours.evaluate()]
    assert given[0]["value"] == (ours.predict(HELD[0]).prediction == HELD[1]).mean() and given[0]["n"] == 45
    tensors = torch.utils.data.TensorDataset(*map(torch.from_numpy, HELD))
    assert ours.evaluate(tensors) == given


def test_the_headline_and_history_are_those_on_the_disk(ours):
    assert ours.headline.value == ours.scores[0]["value"] and f"{ours.headline.value:.4f}" in str(ours.headline)
    epochs = [row for row in ours.history if "event" not in row]
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4]
    lines = (ours.folder / "history.jsonl").read_text().splitlines()
    assert ours.history == [json.loads(line) for line in lines]
    assert "done" in repr(ours) and "ours" in repr(ours)


def test_one_example_without_a_batch_is_told_so(ours):
    with pytest.raises(LaminaError, match=r"(?s)\(N, 4\).*x\[None\]"):
        ours.predict(X[0])
    assert len(ours.predict(X[:1])) == 1


def test_groups_widen_the_interval_again_when_they_are_given_again(place):
    groups = np.arange(120) // 10
    np.savez(place / "undivided.npz", x=X, y=Y)
    one, other = (
        trained(place, name, "undivided.npz", net=f"{place}/my.py:Net", groups=given, test=0.3)
        for name, given in (("grouped", groups), ("single", None))
    )
    again = lamina.load(one.folder, net=f"{place}/my.py:Net")
    with pytest.raises(RunError, match="groups"):
        again.evaluate()
    stored = [entry for entry in one.scores if entry["split"] == "test"]
    assert again.evaluate(groups=groups) == stored
    assert again.evaluate(HELD)[0]["n"] == 45  # other data have groups of their own, or none
    with pytest.raises(LaminaError, match="120 entries"):
        again.evaluate(HELD, groups=groups)
    assert other.evaluate() == [entry for entry in other.scores if entry["split"] == "test"]


# --- Answers as they were given ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(place) -> lamina.Run:
    """Classes whose names are markup and formulas; with a report."""
    return lamina.train((X, WORDS[Y]), test=(HELD[0], WORDS[HELD[1]]), runs=place / "runs", name="odd", epochs=1,
                        learning_rate=1e-5, baselines=False, quiet=True)  # fmt: skip


def test_odd_names_come_back_as_they_were(odd):
    assert odd.target.labels == sorted(WORDS)
    assert set(odd.predict(HELD[0]).prediction) <= set(WORDS)


def test_a_table_program_is_not_given_a_formula(odd):
    with open(odd.folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    truth = [row["truth"] for row in rows]
    assert set(truth) == {"<script>alert(1)</script>", "'=cmd|' /C calc'!A0", "'-2+3"}
    assert [word.removeprefix("'") for word in truth] == WORDS[HELD[1]].tolist()


def test_the_report_shows_markup_as_text(odd):
    page = (odd.folder / "report.html").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("text, escaped", [("-1", False), ("-1.5e3", False), ("+7", False), ("-a", True), ("@x", True),
                                           ("=1+1", True), ("a=1", False), ("", False)])  # fmt: skip
def test_what_is_escaped_in_a_table(text, escaped):
    assert run._cell(text) == ("'" + text if escaped else text)


# --- Damage -----------------------------------------------------------------------------------------------------------


def damaged(copy: Path) -> str:
    """What is said when somebody uses a run in every way: its first error, as text."""

    def use() -> None:
        found = lamina.load(copy)
        found.predict(X)
        found.evaluate()

    with pytest.raises(RunError) as refused:
        use()
    assert refused.value.exit_code == 4 and refused.value.fix
    return str(refused.value)


def test_a_flipped_bit_in_the_weights_is_seen(copy):
    place = copy / "weights.safetensors"
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    assert "weights.safetensors is damaged" in damaged(copy)


def test_weights_that_are_gone_are_not_replaced_by_others_in_silence(copy):
    (copy / "weights.safetensors").unlink()
    assert "weights.safetensors is missing" in damaged(copy)


OTHER = {
    "run.json": b'{"schema": 1}',
    "data.json": b"{}",
    "recipe.toml": b"epoch = 3\n",
    "splits.csv": b"row,split\n7,all\n",
}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("how", ["cut short", "not text", "something else"])
def test_a_damaged_file_is_named(name, how, copy):
    place = copy / name
    content = place.read_bytes()
    short = content[: len(content) // 2 // 10 * 10 + 3]
    while name == "recipe.toml" and not short.endswith(b" = "):  # a table of fewer lines is a table
        short = short[:-1]
    place.write_bytes({"cut short": short, "not text": b"\xff\xfe\x00" + content, "something else": OTHER[name]}[how])
    assert name in damaged(copy)


@pytest.mark.parametrize("hidden", [[10**6, 10**6, 10**6], [30_000, 30_000], [4096] * 1000])
def test_a_net_that_asks_for_more_than_its_weights_is_not_made(hidden, copy):
    facts = json.loads((copy / "run.json").read_text())
    facts["net"]["arguments"] = {**facts["net"]["arguments"], "hidden": hidden}
    (copy / "run.json").write_text(json.dumps(facts))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "asks for" in damaged(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.parametrize("domain", ["arrays", "image", "table", "text"])
def test_a_run_is_used_without_the_compiler_of_torch(domain, tmp_path):
    """Which takes longer to load than a net takes for ten thousand answers."""
    program = f"""
import sys
import lamina
from lamina import names
domain = names.module("domains", {domain!r}).DOMAIN
source = domain.tiny()
run = lamina.train(source, domain={domain!r}, epochs=1, runs={str(tmp_path)!r}, quiet=True)
assert lamina.load(run.folder).evaluate(source) and not {{"torch._dynamo", "sympy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_net_of_another_shape_than_its_weights_is_refused(copy):
    facts = json.loads((copy / "run.json").read_text())
    facts["net"]["arguments"] = {**facts["net"]["arguments"], "hidden": [7]}
    (copy / "run.json").write_text(json.dumps(facts))
    with pytest.raises(RunError, match="do not fit"):
        lamina.load(copy).predict(X)


def test_a_run_of_another_version_says_which(copy):
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**facts, "schema": 99, "lamina": "9.9"}))
    message = damaged(copy)
    assert "9.9" in message and "99" in message and "schema 1" in message


def test_what_is_no_run_has_near_misses(place, ours):
    with pytest.raises(RunError, match=r"(?s)ousr is no run.*'ours'"):
        lamina.load(place / "runs" / "ousr")


def test_a_run_that_has_not_ended_predicts_with_its_newest_checkpoint(copy, ours):
    for name in ("weights.safetensors", "scores.json", "predictions.csv"):
        (copy / name).unlink()
    facts = {name: value for name, value in ours.facts.items() if name not in ("headline", "weights")}
    (copy / "run.json").write_text(json.dumps({**facts, "status": "stopped"}))
    found, alone = lamina.load(copy), lamina.load(ours.folder)
    alone.net.beside.share.zero_()  # what answers beside a net is settled at the end
    assert np.array_equal(shares(found), shares(alone))
    with pytest.raises(RunError, match=r"(?s)no score.*lamina resume"):
        found.headline  # noqa: B018


def test_data_in_memory_must_be_given_again(odd):
    with pytest.raises(RunError, match=r"(?s)in memory.*run\.evaluate\(\(x, y\)\)"):
        odd.evaluate()
    assert odd.evaluate((HELD[0], WORDS[HELD[1]]))[0]["value"] == odd.headline.value


def test_data_that_changed_under_the_run_are_not_scored_as_the_old(place, tmp_path):
    """Of fewer rows the split would speak of some that are gone; of others the score would be that of other data."""
    np.savez(tmp_path / "points.npz", x=X, y=Y)
    found = trained(tmp_path, "short", net=f"{place}/my.py:Net", test=0.2)
    again = lamina.load(found.folder, net=f"{place}/my.py:Net")
    np.savez(tmp_path / "points.npz", x=X[:60], y=Y[:60])
    with pytest.raises(LaminaError, match="60"):
        again.evaluate()
    np.savez(tmp_path / "points.npz", x=X[::-1], y=Y[::-1])
    with pytest.raises(RunError, match="not those"):
        again.evaluate()


def test_the_parts_are_those_the_run_was_trained_on(ours):
    loaded = ours.reload()
    assert isinstance(loaded, data.Data) and [loaded.size(part) for part in data.PARTS] == [96, 24, 45]
    assert loaded.fingerprint() == ours.facts["data"]["fingerprint"]
