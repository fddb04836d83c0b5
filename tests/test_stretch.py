"""The contract stretched: an answer made letter by letter, and examples made by acting. Both are files of a user's.

Short trainings only; the scores of the whole ones are measured by benchmarks/stretch.py.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lamina
from lamina import names
from lamina.batches import Batch
from lamina.cli import main
from lamina.domains.base import Encoded
from lamina.errors import DataError, Interrupted, UsageError
from lamina.evaluate import clopper_pearson
from lamina.report import writing
from lamina.targets.base import Answers

ROOT = Path(__file__).resolve().parents[1]
FILES = {name: ROOT / "examples" / f"{name}.py" for name in ("reverse", "cartpole")}
CODE = {
    "reverse": {"domain": "Reverse", "task": "Tokens", "net": "Seq2Seq"},
    "cartpole": {"domain": "CartPole", "task": "Return", "net": "Policy"},
}


def own(example: str) -> dict[str, str]:
    """domain, task and net as the command line names them."""
    return {what: f"{FILES[example]}:{name}" for what, name in CODE[example].items()}


def flags(example: str) -> list[str]:
    return [word for what, name in own(example).items() for word in (f"--{what}", name)]


def part(example: str, name: str) -> Any:
    return names.own(f"{FILES[example]}:{name}")


Reverse, Tokens, Seq2Seq, greedy, distance = (
    part("reverse", name) for name in ("Reverse", "Tokens", "Seq2Seq", "greedy", "distance")
)
CartPole, Return, Policy, Pole, Rollouts, play, clipped = (
    part("cartpole", name) for name in ("CartPole", "Return", "Policy", "Pole", "Rollouts", "play", "clipped")
)
WORDS = st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=8)


def small_words(count: int = 300) -> np.ndarray:
    """Different words of up to 5 letters a, b, c."""
    draw = np.random.default_rng(5)
    words = {"".join(draw.choice(list("abc"), draw.integers(1, 6))) for _ in range(20 * count)}
    return np.array(sorted(words)[:count])


def fitted(words: Any) -> tuple[Any, Any]:
    words = np.asarray(words)
    domain, target = Reverse(), Tokens()
    domain.fit((words,), np.arange(len(words)))
    target.fit(np.array([word[::-1] for word in words]))
    return domain, target


def small_net() -> nn.Module:
    torch.manual_seed(3)
    return Seq2Seq(letters=3, width=12, embedding=6).eval()


# --- Words and tokens -------------------------------------------------------------------------------------------------


@given(WORDS)
def test_words_become_tokens_and_words_again(words):
    _, target = fitted(words)
    encoded = target.encode(words)
    assert target.people(encoded).tolist() == words
    for row, word in zip(encoded.tolist(), words, strict=True):
        assert row == [1, *(3 + target.letters.index(letter) for letter in word), 2] + [0] * (len(row) - len(word) - 2)


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_distance_is_the_least_number_of_edits(one, other):
    def brute(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(brute(a[1:], b) + 1, brute(a, b[1:]) + 1, brute(a[1:], b[1:]) + (a[0] != b[0]))

    assert distance(one, other) == brute(one, other)


def test_scores_are_shares_of_whole_words_and_of_letters():
    exact, errors = Tokens().measures()
    truth, answers = np.array(["ab", "abcd", "cc", "bb"]), Answers(np.array(["ab", "abd", "ca", "bb"]))
    assert exact.name == "exact" and exact.compute(truth, answers) == 2 / 4
    assert errors.name == "character_error_rate" and errors.compute(truth, answers) == pytest.approx(2 / 10)


def test_unknown_letters_and_empty_words_are_named():
    domain, target = fitted(["ab", "ba"])
    with pytest.raises(DataError, match=r"'aé'.*rows 1, 2"):
        domain.encode(np.array(["ab", "aé", ""]))
    with pytest.raises(DataError, match="row 0"):
        target.encode(np.array(["x"]))
    assert domain.encode(["ab"])[0].shape == (1, 2)


def test_a_file_of_words_takes_each_pair_once(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("ab\nabc\nab\n\nab\tAB\n")
    source = Reverse().read(str(file))
    assert source.train.inputs[0].tolist() == ["ab", "abc", "ab"]
    assert source.train.truth.tolist() == ["ba", "cba", "AB"]
    with pytest.raises(UsageError, match=r"no file 'no\.txt'"):
        Reverse().read("no.txt")


# --- A net that writes ------------------------------------------------------------------------------------------------


def test_padding_and_neighbours_do_not_matter():
    net, (domain, _) = small_net(), fitted(["abc"])
    alone, together = domain.encode(["ab"])[0], domain.encode(["ab", "cbabc"])[0]
    tokens = torch.tensor([[1, 3, 4]])
    torch.testing.assert_close(net(alone, tokens)[0], net(together, tokens.expand(2, -1))[0])


def test_a_token_is_told_nothing_of_those_after_it():
    net, (domain, _) = small_net(), fitted(["abc"])
    word, tokens = domain.encode(["abc"])[0], torch.tensor([[1, 3, 4, 5]])
    changed = tokens.clone()
    changed[0, 3] = 4
    before, after = net(word, tokens), net(word, changed)
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3], after[:, 3])


@settings(max_examples=20, deadline=None)
@given(WORDS, st.integers(0, 100))
def test_greedy_writes_what_asking_anew_for_every_token_gives(words, seed):
    domain, _ = fitted(["abc"])
    torch.manual_seed(seed)
    net = Seq2Seq(letters=3, width=8, embedding=4)
    with torch.no_grad():
        tokens, sure = greedy(net, domain.encode(words)[0], 5)
        for k, word in enumerate(words):
            so_far, p = [1], 1.0
            while len(so_far) < 6 and so_far[-1] != 2:
                chances = net(domain.encode([word])[0], torch.tensor([so_far]))[0, -1].softmax(0)
                so_far.append(int(chances.argmax()))
                p *= float(chances.max())
            assert tokens[k].tolist() == so_far[1:] + [0] * (6 - len(so_far))
            assert float(sure[k]) == pytest.approx(p, rel=1e-4)


def test_the_loss_is_a_mean_over_tokens_that_are_no_padding():
    words = ["a", "abc", "bc"]
    net, (domain, target) = small_net(), fitted(words)
    inputs, truth = domain.encode(words), target.encode([word[::-1] for word in words])
    batch = Batch(inputs, truth, torch.arange(3), 3)
    loss, count = domain.loss(net, batch, target, target.loss())
    terms = []
    for k, word in enumerate(words):  # one word at a time, so that there is no padding
        log_p = net(domain.encode([word])[0], truth[k : k + 1, : len(word) + 1]).log_softmax(2)[0]
        terms += [-float(log_p[t, truth[k, t + 1]].detach()) for t in range(len(word) + 1)]
    assert int(count) == len(terms) == 9
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_reversing_is_learned_and_told_in_the_run(runs):
    words = small_words()
    run = lamina.train(
        (words, np.array([word[::-1] for word in words])), domain=Reverse, task=Tokens, net=Seq2Seq,
        net_arg={"letters": 3, "width": 32, "embedding": 8}, learning_rate=1e-2, batch_size=32, epochs=12, test=0.2,
        valid=0.1, runs=runs, quiet=True,
    )  # fmt: skip
    assert run.headline.score == "exact" and run.headline.value > 0.5  # the best constant answer: 1 in 60
    ends = clopper_pearson(round(run.headline.value * run.headline.n), run.headline.n)
    assert [run.headline.low, run.headline.high] == pytest.approx(list(map(float, ends)))
    last = [line for line in run.history if "event" not in line][-1]
    assert {"train/loss", "valid/loss", "valid/token_accuracy"} <= last.keys()
    assert last["valid/token_accuracy"] > 0.8
    domain, target = run.domain, run.target
    rows = np.flatnonzero([line.endswith("test") for line in (run.folder / "splits.csv").read_text().splitlines()[1:]])
    assert run.headline.n == len(rows) and not set(words[rows]) & set(np.delete(words, rows))
    answers, truth = domain.answers(run.net, Encoded(domain.encode(words[rows])), target)
    assert truth is None and run.predict(list(words[rows])).prediction.tolist() == answers.prediction.tolist()
    table = (run.folder / "predictions.csv").read_text().splitlines()
    assert table[0] == "id,truth,prediction,confidence"
    assert [line.split(",")[2] for line in table[1:]] == answers.prediction.tolist()


def test_a_net_with_too_few_letters_is_refused_before_the_first_step(runs):
    given = {"domain": Reverse, "task": Tokens, "net": Seq2Seq, "runs": runs, "quiet": True}
    with pytest.raises(UsageError, match=r"raised IndexError on a batch of \(64, 5\)"):
        lamina.train(list(small_words()), net_arg={"letters": 2}, **given)

    net = Seq2Seq(letters=3)
    net.out = nn.Linear(net.out.in_features, 5)
    with pytest.raises(UsageError, match="--net-arg letters=3"):
        lamina.train(list(small_words()), **{**given, "net": net})
    assert list(runs.iterdir()) == []


# --- Playing ----------------------------------------------------------------------------------------------------------


def balance(seen: np.ndarray) -> int:
    """A hand-made controller."""
    return int(0.1 * seen[0] + 0.5 * seen[1] + 8 * seen[2] + 2 * seen[3] > 0)


@pytest.mark.parametrize("most", [30, 600])
def test_a_pole_is_gymnasiums_also_when_put_away_and_taken_up(most):
    env, pole = gymnasium.make("CartPole-v1"), Pole()
    seen, _ = env.reset(seed=11)
    pole.begin(11)
    for k in range(most):
        action = balance(seen) if most > 500 else k % 3 == 0
        seen, reward, fell, over, _ = env.step(int(action))
        assert pole.push(int(action)) == (reward, fell, over)
        assert np.array_equal(pole.seen, seen)
        if fell or over:
            break
        if k % 10 == 5:
            kept, pole = pole.state_dict(), Pole()
            pole.begin(1)
            pole.load_state_dict(kept)
    assert (fell, over) == ((False, True) if most > 500 else (True, False))


def test_episodes_side_by_side_are_gymnasiums_one_by_one():
    torch.manual_seed(2)
    net = Policy(8)
    nn.init.normal_(net.actor[-1].weight)
    returns = []
    for seed in (7, 8, 9):
        env = gymnasium.make("CartPole-v1")
        seen, _ = env.reset(seed=seed)
        total, ended = 0.0, False
        while not ended:
            seen, reward, fell, over, _ = env.step(int(net(torch.from_numpy(seen)[None])[0].argmax()))
            total, ended = total + float(reward), fell or over
        returns.append(total)
    assert play(net, [7, 8, 9]).tolist() == returns


def rollouts(net: nn.Module, **options: Any) -> Any:
    game = CartPole(**{"poles": 3, "moves": 40, "passes": 2, **options})
    return game.batches(net, Encoded((torch.arange(50),)), np.arange(10, 50), batch_size=32, seed=1, device="cpu")


def test_an_epoch_is_every_move_once_a_pass():
    batches = rollouts(Policy(8))
    assert len(batches) == 2 * 4
    seen = [batch.inputs[0] for batch in batches.epoch(0)]
    assert [len(part) for part in seen] == [32, 32, 32, 24] * 2
    whole = sorted(map(tuple, batches.memory["seen"].tolist()))
    assert sorted(map(tuple, torch.cat(seen[:4]).tolist())) == sorted(map(tuple, torch.cat(seen[4:]).tolist())) == whole
    assert set(batches.memory["seed"].tolist()) <= set(range(10, 50))  # of the rows it was given


def test_what_was_gained_is_the_discounted_sum_of_what_came():
    net = Policy(8)
    batches = rollouts(net, poles=1, moves=150, trace=1.0, discount=0.9)
    next(batches.epoch(0))
    seeds, gain = batches.memory["seed"].tolist(), batches.memory["gain"].tolist()
    assert len(set(seeds)) > 2
    with torch.no_grad():
        hope = float(net(torch.from_numpy(batches.poles[0].seen)[None])[1])  # of the pole that still stands
    for k, seed in enumerate(seeds):
        left = seeds[k:].count(seed)  # moves of this episode from here on; each is worth 1
        expected = sum(0.9**t for t in range(left)) + (0.9**left * hope if seed == batches.poles[0].seed else 0)
        assert gain[k] == pytest.approx(expected, rel=1e-4)
    assert batches.scores()["return"] == np.mean([seeds.count(s) for s in set(seeds) if s != batches.poles[0].seed])


def test_the_clipped_loss():
    ratio, advantage = torch.tensor([1.5, 0.5, 1.1, 0.5, 1.5]), torch.tensor([1.0, 1.0, 2.0, -1.0, -1.0])
    expected = -np.mean([1.2, 0.5, 2.2, -0.8, -1.5])  # what is good is clipped above, what is bad below
    assert float(clipped(ratio, advantage)) == pytest.approx(expected)


def test_acting_is_with_the_net_as_it_is_now():
    net = Policy(8)
    batches = rollouts(net)
    list(batches.epoch(0))
    tried = batches.memory["action"]
    with torch.no_grad():
        net.actor[-1].bias.copy_(torch.tensor([0.0, 50.0]))
    list(batches.epoch(1))
    assert 0 < tried.float().mean() < 1 and batches.memory["action"].all()


def test_balancing_is_learned_and_told_in_the_run(runs):
    run = lamina.train(
        "CartPole-v1", domain=CartPole, task=Return, net=Policy, batch_size=128, epochs=7, learning_rate=4e-3,
        valid=0.0002, runs=runs, quiet=True,
    )  # fmt: skip
    assert (run.headline.score, run.headline.split, run.headline.n) == ("return", "test", 100)
    found = run.scores[0]
    assert found["low"] <= found["value"] <= found["high"] and found["value"] > 60
    torch.manual_seed(0)
    assert play(Policy(), list(range(10_000, 10_100))).mean() < 30  # before learning
    lines = [line for line in run.history if "event" not in line]
    assert all({"train/loss", "valid/return"} <= line.keys() for line in lines)
    returns = [line["train/return"] for line in lines if "train/return" in line]  # where one ended
    assert returns[-1] > 2 * returns[0]
    table = (run.folder / "predictions.csv").read_text().splitlines()
    assert table[0] == "id,prediction" and len(table) == 101
    assert np.mean([float(line.split(",")[1]) for line in table[1:]]) == run.headline.value
    assert run.evaluate()[0]["value"] == run.headline.value
    assert run.evaluate([10_000, 10_001])[0]["n"] == 2
    assert run.predict([10_000]).prediction.tolist() == [float(table[1].split(",")[1])]


def test_early_stopping_and_the_best_weights_go_by_the_return_where_nothing_is_lost(runs):
    run = lamina.train(
        "CartPole-v1", domain=CartPole(poles=2, moves=8, passes=1), task=Return, net=Policy, batch_size=16, epochs=50,
        learning_rate=1e-9, valid=0.0005, early_stopping=2, schedule="plateau", runs=runs, quiet=True,
    )  # fmt: skip
    assert run.facts["epochs"] == 3 and "valid/return has not improved" in run.facts["stopped"]


# --- The command line, and other processes ----------------------------------------------------------------------------


def lamina_cli(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*words])
    return int(end.value.code or 0)


def test_reverse_through_the_command_line_and_in_another_process(runs, tmp_path, capsys):
    words = tmp_path / "strings.txt"
    words.write_text("".join(f"{word}\n" for word in small_words(200)))
    asked = ["--net-arg", "letters=3", "--net-arg", "width=8", "--steps", "5", "--name", "a", "--runs", str(runs), "-q"]
    assert lamina_cli("train", str(words), *flags("reverse"), *asked) == 0
    assert "exact" in capsys.readouterr().out
    assert lamina_cli("evaluate", str(runs / "a"), *flags("reverse")) == 0
    assert re.search(r"^exact +0\.", capsys.readouterr().out, re.MULTILINE)
    assert lamina_cli("resume", str(runs / "a"), *flags("reverse")) == 0
    code = f"""
import json, lamina
run = lamina.load({str(runs / "a")!r}, **{own("reverse")!r})
print(json.dumps([run.predict(["abc", "cab"]).prediction.tolist(), run.evaluate()[0]["value"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    run = lamina.load(runs / "a", net=Seq2Seq, domain=Reverse, task=Tokens)
    assert json.loads(done.stdout) == [run.predict(["abc", "cab"]).prediction.tolist(), run.headline.value]
    inputs = tmp_path / "inputs.txt"
    inputs.write_text("abc\ncab\n")
    capsys.readouterr()
    assert lamina_cli("predict", str(runs / "a"), str(inputs), *flags("reverse")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "id,prediction,confidence" and [line.split(",")[0] for line in lines[1:]] == ["abc", "cab"]


def test_cartpole_through_the_command_line(runs, capsys):
    asked = ["--steps", "40", "--batch-size", "256", "--name", "a", "--runs", str(runs)]
    assert lamina_cli("train", "CartPole-v1", *flags("cartpole"), *asked) == 0
    printed = capsys.readouterr().out
    assert "100 test examples" in printed
    for what, name in CODE["cartpole"].items():  # the next commands name all the code they need
        assert f"--{what} {FILES['cartpole']}:{name}" in " ".join(printed.split())
    assert lamina_cli("evaluate", str(runs / "a"), *flags("cartpole")) == 0
    assert lamina_cli("report", str(runs / "a"), *flags("cartpole")) == 0
    for words, told_ in (("Pong", "CartPole-v1"), ("CartPole-v1 --augment flip", "without augment"),
                         ("CartPole-v1 --test 0.1,0.2", "no test")):  # fmt: skip
        assert lamina_cli("train", *words.split(), *flags("cartpole"), "--runs", str(runs)) == 2
        assert told_ in capsys.readouterr().err
    assert [place.name for place in runs.iterdir()] == ["a"]


# --- Interrupted and resumed ------------------------------------------------------------------------------------------

SHORT: dict[str, dict[str, Any]] = {  # 4 and 8 steps an epoch, 6 and 3 epochs
    "reverse": {"net_arg": {"width": 8, "embedding": 4}, "batch_size": 60, "epochs": 3, "valid": 0.02},
    "cartpole": {"batch_size": 32, "epochs": 6, "valid": 0.0002, "schedule": "linear"},
}
SOURCES = {"reverse": "random-600", "cartpole": "CartPole-v1"}
STEPS = {"reverse": 24, "cartpole": 24}


def kinds(example: str) -> dict[str, Any]:
    found = {what: part(example, name) for what, name in CODE[example].items()}
    if example == "cartpole":
        found["domain"] = CartPole(poles=4, moves=16, passes=2)
    return found


def told(folder: Path) -> dict[str, Any]:
    """What two runs must have in common."""
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {
        "weights": (folder / "weights.safetensors").read_bytes(),
        "history": [{key: entry for key, entry in line.items() if key != "seconds"} for line in lines],
        "predictions": (folder / "predictions.csv").read_bytes(),
        "scores": (folder / "scores.json").read_bytes(),
    }


class Interrupt:
    """A watcher that ends the process' patience after a step: with an exception, or a signal."""

    def __init__(self, step: int, how: str):
        self.step, self.how = step, how

    def __call__(self, progress: Any) -> None:
        if progress.step == self.step:
            assert not progress.epoch_end
            if self.how == "signal":
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def without_page() -> Iterator[None]:
    """Runs without figures and page, which take longer than the rest of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "write", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, without_page) -> dict[str, dict[str, Any]]:
    """The runs that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return {
        example: told(
            lamina.train(SOURCES[example], **kinds(example), **SHORT[example], runs=folder, quiet=True).folder
        )
        for example in SHORT
    }


def interrupted(example: str, runs: Path, step: int, how: str, every: str) -> Path:
    with pytest.raises(Interrupted):
        lamina.train(
            SOURCES[example], **kinds(example), **SHORT[example], checkpoint_every=every, name="stopped", runs=runs,
            watchers=[Interrupt(step, how)], quiet=True,
        )  # fmt: skip
    return runs / "stopped"


@pytest.mark.parametrize("example", SHORT)
@pytest.mark.parametrize(("step", "how", "every"), [(14, "signal", "1h"), (15, "exception", "3steps")])
def test_a_run_that_was_interrupted_in_an_epoch_ends_in_the_same_bits(example, step, how, every, runs, whole):
    folder = interrupted(example, runs, step, how, every)
    names_ = sorted(place.name for place in (folder / "checkpoints").glob("step-*"))
    assert names_[-1] == f"step-{14 if how == 'signal' else 12:07d}" and STEPS[example] > 14
    run = lamina.resume(folder, **{what: part(example, name) for what, name in CODE[example].items()}, quiet=True)
    found = told(run.folder)
    for what in found:
        assert found[what] == whole[example][what], what


@pytest.mark.parametrize("left_out", ["poles", "begun", "memory"])
def test_a_state_without_the_game_does_not(left_out, runs, whole, monkeypatch):
    folder = interrupted("cartpole", runs, 14, "signal", "1h")
    load = Rollouts.load_state_dict

    def forgetful(self, state):
        fresh = self.state_dict() if left_out != "memory" else {"memory": _other_memory(state["memory"])}
        load(self, {**state, left_out: fresh[left_out]})

    monkeypatch.setattr(Rollouts, "load_state_dict", forgetful)
    run = lamina.resume(folder, **{what: part("cartpole", name) for what, name in CODE["cartpole"].items()}, quiet=True)
    assert told(run.folder)["weights"] != whole["cartpole"]["weights"]


def _other_memory(memory: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: column.flip(0) for name, column in memory.items()}


# --- The engine knows nothing of this ---------------------------------------------------------------------------------

SPECIAL = re.compile(r"token|letter|vocab|game|episode|rollout|reward|advantage|gym|policy", re.IGNORECASE)


def special_words(source: str) -> set[str]:
    """Names and texts of a module's code, its comments and docstrings left out, that speak of these examples."""
    tree = ast.parse(source)
    texts = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    for node in ast.walk(tree):
        for value in (getattr(node, field, None) for field in ("id", "attr", "name", "arg", "value")):
            if isinstance(value, str):
                texts.add(value)
    return {text for text in texts if SPECIAL.search(text)}


@pytest.mark.parametrize("module", ["engine", "data", "state", "run", "training", "job", "results", "batches"])
def test_the_library_has_no_word_about_tokens_and_games(module):
    place = ROOT / "lamina" / module
    for path in place.glob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        assert special_words(path.read_text()) == set(), path.name


def test_such_a_word_is_seen():
    assert special_words("'''A game.'''\nif target.name == 'tokens':  # a game\n    reward = 1") == {"tokens", "reward"}
