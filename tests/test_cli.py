"""The command line: what a person types, what comes back on the screen, in the run folder and as exit code.

Few processes, shared by many tests: `real` starts the installed command, `main` runs the same entry point in here.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import lamina
from lamina.cli import VERBS

LAMINA = Path(sys.executable).with_name("lamina")
NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        return self.layers(x)


def my_loss(output, truth, sharpness=1.0):
    return nn.functional.cross_entropy(sharpness * output, truth)


def exploding(output, truth):
    return my_loss(output, truth) + output.mean() * 1e38 * 1e38
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


def real(*words: object, cwd: Path, stdin: bytes | None = None, seconds: int = 100) -> Done:
    """The installed command in a process of its own, with pipes."""
    done = subprocess.run([LAMINA, *map(str, words)], cwd=cwd, input=stdin, capture_output=True, timeout=seconds)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def main(place, monkeypatch, capfd):
    """The command's entry point, in this process, in the shared folder."""

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["lamina", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            lamina.cli.main()
        return Done(int(end.value.code or 0), *capfd.readouterr())

    monkeypatch.chdir(place)
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as a person would have it: a net, a table of digits, inputs to predict, pictures."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("place")
    (folder / "my.py").write_text(NET)
    pictures, y = load_digits(return_X_y=True)
    x = (pictures.reshape(-1, 8, 8) / 16).astype(np.float32)
    np.savez(folder / "digits.npz", x=x[:600], y=y[:600], x_test=x[600:720], y_test=y[600:720])
    np.savez(folder / "inputs.npz", x=x[600:720])
    np.savez(folder / "many.npz", x=np.repeat(x, 12, 0))
    np.savez(folder / "one_class.npz", x=x[:50], y=np.zeros(50, int))
    (folder / "pictures").mkdir()
    for row in range(4):
        Image.fromarray((x[row] * 255).astype(np.uint8)).resize((32, 32)).save(folder / "pictures" / f"{row}.png")
    return folder


@pytest.fixture(scope="module")
def piped(place) -> Done:
    """`lamina train iris`, its output in a pipe, its run in runs/iris-1."""
    return real("train", "iris", "--epochs", 2, cwd=place)


@pytest.fixture(scope="module")
def own(place) -> Done:
    """A run with own net and loss from a file, in runs/own."""
    return real("train", "digits.npz", "--net", "my.py:Net", "--net-arg", "width=16", "--loss", "my.py:my_loss",
                "--loss-arg", "sharpness=2", "--epochs", 3, "--name", "own", "-q", cwd=place)  # fmt: skip


@pytest.fixture(scope="module")
def typed(place) -> str:
    """Everything that `lamina train digits` writes to a terminal of 80 columns; its run is runs/pictures."""
    import struct

    fcntl, pty, termios = map(pytest.importorskip, ("fcntl", "pty", "termios"))  # Windows has other terminals

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONUTF8": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    words = ["train", "digits", "--epochs", "3", "--name", "pictures", "--no-baselines"]
    process = subprocess.Popen([LAMINA, *words], cwd=place, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    assert process.wait(60) == 0, written.decode()
    return written.decode()


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- Help -------------------------------------------------------------------------------------------------------------


def test_without_words_the_help_is_shown(place):
    done = real(cwd=place)
    assert done.code == 2 and done.out == ""
    assert done.err.startswith("Usage: lamina") and all(f"\n  {verb} " in done.err for verb in VERBS)


def test_the_version_is_that_of_the_package(place):
    assert real("--version", cwd=place) == Done(0, lamina.__version__ + "\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(main, verb):
    done = main(verb, "--help")
    assert done.code == 0 and done.err == "" and f"Usage: lamina {verb}" in done.out


def test_every_setting_is_an_option_of_train(main):
    from lamina.recipe import FIELDS

    page = main("train", "--help").out
    assert [name for name in FIELDS if name != "source" and f"--{name.replace('_', '-')}" not in page] == []


# --- Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, code, said",
    [
        ("trian iris", 2, ["'trian'", "'train'"]),
        ("train iris --epochz 3", 2, ["--epochz", "--epochs"]),
        ("train irsi", 2, ["'irsi'", "'iris'"]),
        ("train digit.npz", 2, ["'digit.npz'", "'digits.npz'"]),
        ("train iris --net mpl --optimizer adm --schedule cosin --epochs 0", 2,
         ["'mlp'", "'adam'", "'cosine'", "epochs = '0'"]),
        ("train", 2, ["No source", "lamina train"]),
        ("train iris --net-arg width", 2, ["'width'", "NAME=VALUE"]),
        ("train iris --net-arg hiden=3", 2, ["hiden", "hidden"]),
        ("train iris --recipe none.toml", 2, ["none.toml"]),
        ("train iris --name a/b", 2, ["'a/b'", "--runs"]),
        ("train iris --epochs 1 --budget soon", 2, ["'soon'", "90s"]),
        ("evaluate", 2, ["run", "lamina evaluate --help"]),
        ("train one_class.npz", 3, ["one class"]),
        ("check one_class.npz", 3, []),
        ("evaluate runs/none", 4, ["runs/none", "run.json"]),
        ("resume my.py", 4, ["my.py"]),
        ("report pictures", 4, ["pictures"]),
        ("checkpoints runs", 4, ["runs"]),
        ("train iris --runs my.py/runs", 6, ["my.py/runs"]),
        ("train iris --device cuda:77", 6, ["cuda"]),
    ],
)  # fmt: skip
def test_a_mistake_is_said_on_stderr_with_its_exit_code_and_no_traceback(main, words, code, said, piped, place):
    before = sorted((place / "runs").iterdir())
    done = main(*shlex.split(words))
    assert done.code == code, done
    if said:
        assert done.err.startswith("error: ") and done.out == ""
        assert all(word in done.err for word in said), done.err
        assert all(
            line.partition(":")[0] in ("error", "expected", "fix") or n for n, line in enumerate(done.err.split("\n"))
        )
    assert "Traceback" not in done.err and "\x1b" not in done.err
    assert sorted((place / "runs").iterdir()) == before


def test_the_three_parts_stand_on_lines_of_their_own(main):
    lines = main("train").err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error", "expected", "fix"]


def test_debug_shows_the_traceback(place):
    done = real("trian", "iris", "--debug", cwd=place)
    assert done.code == 1 and "Traceback" in done.err and "UsageError: There is no verb 'trian'" in done.err
    assert "Traceback" not in real("trian", "iris", cwd=place).err


def test_a_loss_that_explodes_ends_with_exit_code_5_and_a_run_that_says_so(main, place):
    done = main("train", "digits.npz", "--net", "my.py:Net", "--loss", "my.py:exploding", "-q", "--name", "exploded")
    assert done.code == 5 and done.out == "" and "Traceback" not in done.err
    assert done.err.startswith("error: The loss of step 1") and "\nfix: " in done.err
    facts = read(place / "runs" / "exploded", "run.json")
    assert facts["status"] == "failed" and "loss of step 1" in facts["reason"]


def test_the_command_line_gives_what_click_finds_wrong_in_the_same_form(main):
    done = main("train", "iris", "--no-such-option")
    assert done.code == 2 and done.err.startswith("error: ") and "fix: lamina train --help" in done.err


# --- What is seen -----------------------------------------------------------------------------------------------------


def test_in_a_pipe_there_is_no_colour_no_bar_and_no_long_line(piped, place):
    assert piped.code == 0 and piped.err == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", piped.out)
    assert max(map(len, piped.out.splitlines())) <= 80
    assert re.search(r"^epoch 1/2  loss .*\nepoch 2/2  loss ", piped.out, re.MULTILINE)
    assert (place / "runs" / "iris-1" / "train.log").read_text() == piped.out


def test_the_last_screen_says_score_and_where_to_look(piped, place):
    headline = read(place / "runs" / "iris-1", "run.json")["headline"]
    assert f"accuracy {headline['value']:.4f}" in piped.out and "runs/iris-1" in piped.out
    for command in re.findall(r"^  (lamina .*)$", piped.out, re.MULTILINE):
        assert command.split()[1] in VERBS


def test_quiet_is_one_line(own):
    assert own.code == 0 and own.err == ""
    assert re.fullmatch(
        r"runs/own\ttest accuracy 0\.\d{4} \(95 % interval 0\.\d{4} to [01]\.\d{4}, 120 examples\)\n", own.out
    )


def test_on_a_terminal_there_is_a_bar_and_no_line_is_wider(typed):
    assert "━" in typed and "\x1b[" in typed
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", typed)
    lines = re.split(r"[\r\n]+", plain)
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if re.match(r"epoch \d/3 .*loss", line)]) >= 3
    assert typed.count("\x1b[?25l") == typed.count("\x1b[?25h") > 0  # the cursor is hidden and comes back


# --- The run folder ---------------------------------------------------------------------------------------------------


def test_the_files_of_a_run_are_those_of_the_design(piped, place):
    folder = place / "runs" / "iris-1"
    for name in ("run.json", "recipe.toml", "data.json", "splits.csv", "history.jsonl", "checkpoints", "best", "scores.json",
                 "predictions.csv", "report.html", "figures", "train.log", "weights.safetensors"):  # fmt: skip
        assert (folder / name).exists(), name
    assert not list(folder.rglob(".tmp-*"))


def test_run_json_and_scores_json_hold_what_others_rely_on(piped, own, place):
    for folder in (place / "runs" / "iris-1", place / "runs" / "own"):
        facts = read(folder, "run.json")
        assert facts["status"] == "done" and facts["task"] == "classes" and facts["seed"] == 0
        assert {"net", "headline", "baseline", "epochs", "seconds"} <= facts.keys()
        assert {"name", "parameters"} <= facts["net"].keys() and {"total", "train", "load"} <= facts["seconds"].keys()
        scores = read(folder, "scores.json")["scores"]
        for entry in [facts["headline"], facts["baseline"], *scores]:
            assert {"score", "value", "low", "high", "split", "n"} <= entry.keys()
        assert facts["headline"] == scores[0] and scores[0]["split"] == "test"
        assert facts["headline"]["low"] < facts["headline"]["value"] < facts["headline"]["high"]
    assert facts["net"]["name"] == "Net" and facts["net"]["arguments"] == {"width": 16}
    assert facts["net"]["parameters"] == (64 * 16 + 16) + (16 * 10 + 10)
    assert facts["command"] == shlex.join(
        ["lamina", "train", "digits.npz", "--net", "my.py:Net", "--net-arg", "width=16", "--loss", "my.py:my_loss",
         "--loss-arg", "sharpness=2", "--epochs", "3", "--name", "own", "-q"])  # fmt: skip


def test_predictions_csv_holds_the_test_split_and_its_score(piped, own, place):
    for name, rows in (("iris-1", 30), ("own", 120)):
        found = table(place / "runs" / name / "predictions.csv")
        headline = read(place / "runs" / name, "run.json")["headline"]
        assert len(found) == rows == headline["n"]
        assert sum(row["truth"] == row["prediction"] for row in found) / rows == pytest.approx(headline["value"])
        assert all(0 < float(row["confidence"]) <= 1 for row in found)


def test_the_interval_of_an_accuracy_is_that_of_clopper_and_pearson(own, place):
    from scipy.stats import binomtest

    headline = read(place / "runs" / "own", "run.json")["headline"]
    wanted = binomtest(round(headline["value"] * 120), 120).proportion_ci(0.95, "exact")
    assert (headline["low"], headline["high"]) == pytest.approx((wanted.low, wanted.high))


# --- Names and recipes ------------------------------------------------------------------------------------------------


def test_a_free_number_is_taken_and_a_name_is_exact(main, place):
    for wanted in ("iris-1", "iris-2"):
        done = main("train", "iris", "--epochs", 1, "-q", "--runs", "elsewhere/deep", "--no-baselines")
        assert done.code == 0 and done.out.startswith(f"elsewhere/deep/{wanted}\t")
    done = main("train", "iris", "--epochs", 1, "-q", "--runs", "elsewhere/deep", "--name", "iris-2")
    assert done.code == 2 and "elsewhere/deep/iris-2 exists" in done.err and "lamina resume" in done.err
    assert sorted(os.listdir(place / "elsewhere" / "deep")) == ["iris-1", "iris-2"]


def test_flags_go_before_a_recipe(main, place):
    (place / "mine.toml").write_text(
        'epochs = 40\nseed = 3\nbatch_size = 32\noptimizer = "sgd"\n[net_arg]\nhidden = [5]\n'
    )
    done = main("train", "iris", "--recipe", "mine.toml", "--epochs", 1, "--batch-size", 50, "-q", "--name", "recipe")
    assert done.code == 0, done.err
    recipe = lamina.load(place / "runs" / "recipe").recipe
    assert (recipe.epochs, recipe.batch_size, recipe.seed, recipe.optimizer) == (1, 50, 3, "sgd")
    assert read(place / "runs" / "recipe", "run.json")["net"]["parameters"] == (4 * 5 + 5) + (5 * 3 + 3)


def test_a_mistake_in_a_recipe_has_its_near_miss(main, place):
    (place / "wrong.toml").write_text("epoch = 3\nlearning_rte = 0.1\n")
    done = main("train", "iris", "--recipe", "wrong.toml")
    assert done.code == 2 and "'epochs'" in done.err and "'learning_rate'" in done.err
    (place / "broken.toml").write_text("epochs = = 3\n")
    assert main("train", "iris", "--recipe", "broken.toml").code == 2


def test_the_recipe_of_a_run_gives_the_same_run_again(own, place, tmp_path):
    words = ("train", "--recipe", place / "runs" / "own" / "recipe.toml", "--name", "again", "-q")
    refused = real(*words, cwd=place)  # a recipe may be somebody else's, and so may the code that it names
    assert refused.code == 2 and "has net = my.py:Net: code is run only when you name it." in refused.err
    assert "fix: --net my.py:Net --loss my.py:my_loss" in refused.err
    again = real(*words, "--net", "my.py:Net", "--loss", "my.py:my_loss", cwd=place)
    assert again.code == 0, again.err
    for name in ("weights.safetensors", "predictions.csv", "splits.csv"):
        assert (place / "runs" / "own" / name).read_bytes() == (place / "runs" / "again" / name).read_bytes(), name
    one, two = (lamina.load(place / "runs" / name, net=f"{place}/my.py:Net") for name in ("own", "again"))
    assert one.recipe == two.recipe and one.scores == two.scores


def test_every_setting_in_recipe_toml_says_where_it_is_from(own, place):
    text = (place / "runs" / "own" / "recipe.toml").read_text()
    settings = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    top = settings[: next(n for n, line in enumerate(settings) if line.startswith(("width", "sharpness")))]
    assert top and all(re.search(r"# (yours|default|inferred: .+)$", line) for line in top)
    assert re.search(r"^epochs = 3 # yours$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("data", "size", "budget", "words"),
    [
        ("digits", "large", "6s", r"6 s, .* ms a step measured"),
        ("iris", "small", "12s", r"enough for \d+ training examples, .*; [\d,]+ would fit into 12 s"),
    ],
)
def test_a_budget_sets_the_epochs_and_gives_the_reason(data, size, budget, words, place):
    done = real("train", data, "--budget", budget, "--net", "mlp", "--size", size, "--name", data, "-q", cwd=place)
    assert done.code == 0, done.err
    facts, text = (place / "runs" / data / name for name in ("run.json", "recipe.toml"))
    found = re.search(rf"^epochs = (\d+) # inferred: {words}", text.read_text(), re.MULTILINE)
    assert found and int(found[1]) >= json.loads(facts.read_text())["epochs"] >= 1
    assert json.loads(facts.read_text())["seconds"]["total"] < 30


def test_a_learning_rate_can_be_found(main, place):
    done = main("train", "iris", "--learning-rate", "find", "--epochs", 1, "-q", "--name", "found", "--no-baselines")
    assert done.code == 0, done.err
    text = (place / "runs" / "found" / "recipe.toml").read_text()
    found = re.search(r"^learning_rate = (\S+) # inferred: measured", text, re.MULTILINE)
    assert found and 1e-6 < float(found[1]) < 10


# --- The verbs that take a run ----------------------------------------------------------------------------------------


def test_evaluate_gives_the_scores_of_the_run(own, place, main):
    done = main("evaluate", "runs/own", "--net", "my.py:Net", "--json")
    stored = [entry for entry in read(place / "runs" / "own", "scores.json")["scores"] if entry["split"] == "test"]
    assert done.code == 0 and json.loads(done.out)["scores"] == stored
    done = main("evaluate", "runs/own", "--net", "my.py:Net")
    assert done.out.splitlines()[1].split() == ["accuracy", f"{stored[0]['value']:.4f}", f"{stored[0]['low']:.4f}", "to",
                                                f"{stored[0]['high']:.4f}"]  # fmt: skip


def test_evaluate_takes_other_data_and_another_split(own, main):
    given = json.loads(main("evaluate", "runs/own", "digits.npz", "--net", "my.py:Net", "--json").out)["scores"]
    assert given[0]["n"] == 120 and given[0]["split"] == "given"
    train = json.loads(main("evaluate", "runs/own", "--split", "train", "--net", "my.py:Net", "--json").out)["scores"]
    assert train[0]["n"] == 600 and train[0]["split"] == "train"
    done = main("evaluate", "runs/own", "--split", "tset", "--net", "my.py:Net")
    assert done.code == 2 and "'test'" in done.err
    assert main("evaluate", "runs/own", "inputs.npz", "--net", "my.py:Net").code == 3


def test_a_run_is_opened_from_any_folder(own, place, tmp_path, main, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = main("evaluate", place / "runs" / "own", "--net", f"{place}/my.py:Net", "--json")
    assert done.code == 0 and json.loads(done.out)["scores"][0]["n"] == 120


def test_own_code_is_run_only_when_it_is_named(own, main):
    for words in ("evaluate runs/own", "predict runs/own inputs.npz", "report runs/own"):
        done = main(*words.split())
        assert done.code == 4 and "--net my.py:Net" in done.err, words


def test_predict_an_npz_file_of_inputs(own, place, main):
    done = main("predict", "runs/own", "inputs.npz", "--net", "my.py:Net")
    found, stored = list(csv.DictReader(done.out.splitlines())), table(place / "runs" / "own" / "predictions.csv")
    assert [row["prediction"] for row in found] == [row["prediction"] for row in stored]
    assert [row["id"] for row in found] == [str(k) for k in range(120)]
    assert [float(row["confidence"]) for row in found] == pytest.approx(
        [float(row["confidence"]) for row in stored], abs=1e-5
    )


def test_predict_writes_json_lines(own, place, main):
    done = main("predict", "runs/own", "inputs.npz", "--net", "my.py:Net", "--out", "f.jsonl")
    assert done.code == 0 and "120 predictions in f.jsonl" in done.out
    lines = [json.loads(line) for line in (place / "f.jsonl").read_text().splitlines()]
    assert len(lines) == 120 and lines[0].keys() == {"id", "prediction", "confidence", "unlike", "probabilities"}
    for line in lines:
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(line["probabilities"], key=line["probabilities"].get) == str(line["prediction"])


def test_predict_takes_standard_input(own, place):
    content = (place / "inputs.npz").read_bytes()
    done = real("predict", "runs/own", "-", "--net", "my.py:Net", cwd=place, stdin=content)
    stored = table(place / "runs" / "own" / "predictions.csv")
    assert done.code == 0, done.err
    assert [row["prediction"] for row in csv.DictReader(done.out.splitlines())] == [row["prediction"] for row in stored]
    assert real("predict", "runs/own", "-", "--net", "my.py:Net", cwd=place, stdin=b"").code == 3


def test_predict_takes_a_picture_and_a_folder_of_them(typed, place, main):
    one = main("predict", "runs/pictures", "pictures/2.png")
    assert one.code == 0 and one.out.splitlines()[1].startswith("pictures/2.png,")
    many = main("predict", "runs/pictures", "pictures", "--jsonl")
    lines = [json.loads(line) for line in many.out.splitlines()]
    assert [line["id"] for line in lines] == [f"pictures/{row}.png" for row in range(4)]
    assert str(lines[2]["prediction"]) == one.out.splitlines()[1].split(",")[1]
    (place / "no_picture.png").write_text("this is text")
    done = main("predict", "runs/pictures", "no_picture.png")
    assert done.code == 3 and "no_picture.png" in done.err


def test_a_reader_that_has_enough_is_no_error(own, place):
    words = [str(LAMINA), "predict", "runs/own", "many.npz", "--net", "my.py:Net"]
    with subprocess.Popen(words, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"id,prediction,confidence,unlike\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_compare_two_runs(own, piped, place, main):
    shutil.copytree(place / "runs" / "own", place / "runs" / "twin", dirs_exist_ok=True)
    done = main("compare", "runs/own", "runs/twin")
    assert done.code == 0 and "no certain difference" in done.out and "p = 1 " in done.out and "n = 120" in done.out
    assert main("compare", "runs/own").code == 2
    done = main("compare", "runs/own", "runs/iris-1")
    assert done.code == 2 and "digits.npz" in done.err and "iris" in done.err


def test_check_tells_what_is_wrong(main):
    done = main("check", "iris")
    assert done.code == 0 and "150 examples" in done.out and "warning  " in done.out
    assert done.out.endswith("1 warning. Training would go on.\n")
    done = main("check", "one_class.npz")
    assert done.code == 3 and "error  " in done.out and done.out.endswith("Training would be refused.\n")
    done = main("check", "iris", "--json")
    found = json.loads(done.out)
    assert (found["domain"], found["task"]) == ("arrays", "classes")
    assert [(finding["kind"], finding["examples"]) for finding in found["findings"]] == [("duplicates", [[101, 142]])]


def test_checkpoints_are_listed_and_verified(piped, place, main):
    done = main("checkpoints", "runs/iris-1")
    names = sorted(path.name for path in (place / "runs" / "iris-1" / "checkpoints").glob("step-*"))
    assert done.code == 0 and len(done.out.splitlines()) == len(names) + 1
    assert all(f"checkpoints/{name}: step {int(name[5:]):,}" in done.out for name in names)

    copy = place / "runs" / "damaged"
    shutil.copytree(place / "runs" / "iris-1", copy)
    file = copy / "checkpoints" / names[-1] / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = main("checkpoints", "runs/damaged")
    assert done.code == 4 and f"checkpoints/{names[-1]}: DAMAGED" in done.out and done.out.count("DAMAGED") == 1


def test_the_report_is_written_again(own, place, main):
    page = place / "runs" / "own" / "report.html"
    before = page.read_text()
    page.unlink()
    done = main("report", "runs/own", "--net", "my.py:Net")
    assert done.code == 0 and done.out == "runs/own/report.html\n"
    assert len(page.read_text()) == pytest.approx(len(before), rel=0.1)


def test_a_run_that_is_done_is_not_resumed(own, place, main):
    before = (place / "runs" / "own" / "run.json").read_bytes()
    done = main("resume", "runs/own")
    assert done.code == 0 and "is done" in done.out
    assert (place / "runs" / "own" / "run.json").read_bytes() == before


def test_a_run_with_own_net_and_loss_is_resumed_when_they_are_named(own, place, main):
    copy = place / "runs" / "cut"
    shutil.copytree(place / "runs" / "own", copy)
    for name in ("weights.safetensors", "scores.json", "predictions.csv", "report.html"):
        (copy / name).unlink()
    shutil.rmtree(copy / "best")
    shutil.rmtree(max((copy / "checkpoints").glob("step-*")))  # back to the first
    facts = read(copy, "run.json")
    (copy / "run.json").write_text(json.dumps({**facts, "status": "running"}))
    done = main("resume", "runs/cut", "-q")
    assert done.code == 4 and "--net my.py:Net" in done.err and "--loss my.py:my_loss" in done.err
    done = main("resume", "runs/cut", "--net", "my.py:Net", "-q")
    assert done.code == 4 and "--loss my.py:my_loss" in done.err
    done = main("resume", "runs/cut", "--net", "my.py:Net", "--loss", "my.py:my_loss", "-q")
    assert done.code == 0 and done.out.startswith("runs/cut\ttest accuracy"), done.err
    for name in ("weights.safetensors", "predictions.csv"):
        assert (copy / name).read_bytes() == (place / "runs" / "own" / name).read_bytes(), name
