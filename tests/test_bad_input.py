"""What bad input gets: one clear error of the right class, with the values, and nothing half-written.

Data, nets, losses, files, folders, disks and interruptions. What the command line makes of such errors is in test_cli.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lamina
import lamina.cli
from lamina import files, results, sources
from lamina.errors import DataError, Diverged, LaminaError, ResourceError, RunError, UsageError

LAMINA = Path(sys.executable).with_name("lamina")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results.writing, "write", lambda *_: None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)


X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3


def changed(array, row, value) -> np.ndarray:
    copy = np.array(array)
    copy[row] = value
    return copy


def refused(error: type[LaminaError], words: list[str], runs: Path, source=(X, Y), **asked) -> str:
    """What `lamina.train` says: an error of this class with these words, and no run left."""
    asked = {"net": Net, "epochs": 1, "quiet": True, "baselines": False, **asked}
    with pytest.raises(error) as found:
        lamina.train(source, runs=runs, **asked)
    message = str(found.value)
    assert type(found.value) is error, message
    assert [word for word in words if word not in message] == [], message
    assert list(runs.iterdir()) == []
    return message


# --- Data -------------------------------------------------------------------------------------------------------------


class Items(Dataset):
    """A Dataset of whatever items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        if isinstance(item := self.items[row], Exception):
            raise item
        return item


PAIRS = [(torch.from_numpy(x), int(y)) for x, y in zip(X, Y, strict=True)]


@pytest.mark.parametrize(
    "source, words",
    [
        pytest.param((X[:0], Y[:0]), ["no examples", "(0, 4)"], id="empty"),
        pytest.param(([], []), ["no examples"], id="empty lists"),
        pytest.param((X[:1], Y[:1]), ["1 example"], id="one example"),
        pytest.param((X, Y * 0), ["one class", "'0'"], id="one class"),
        pytest.param((X, changed(Y, 7, -1)), ["negative", "-1", "row 7"], id="negative labels"),
        pytest.param((X, np.where(Y == 2, 10**9, Y)), ["1000000000", "0 to K-1"], id="one huge label"),
        pytest.param((X, changed(Y.astype(float), 7, np.nan)), ["missing", "row 7"], id="a label that is NaN"),
        pytest.param((X, changed(np.array(list("abc"), object)[Y], 7, None)), ["missing", "row 7"], id="a label that is None"),
        pytest.param((X, ["" if row == 7 else "abc"[row % 3] for row in range(60)]), ["missing", "row 7"], id="no label"),
        pytest.param((X, [[1], [2, 3]] * 30), ["y", "(1,)", "(2,)"], id="ragged labels"),
        pytest.param((X, Y[:50]), ["60", "50", "an answer for every example"], id="fewer labels"),
        pytest.param((changed(X, 3, np.nan), Y), ["NaN or infinite", "row 3", "nan_to_num"], id="NaN"),
        pytest.param((changed(X, (5, 0), np.inf), Y), ["NaN or infinite", "1 of 60", "row 5"], id="infinity"),
        pytest.param((X.astype(object), Y), ["Python objects", "float (row 0)", "x.astype(float)"], id="objects"),
        pytest.param((X.astype(str), Y), ["texts", "numbers"], id="texts"),
        pytest.param((X.astype(complex), Y), ["complex"], id="complex numbers"),
        pytest.param((np.array(["2026-01-01"] * 60, "M8[D]"), Y), ["dates"], id="dates"),
        pytest.param(([[1.0], [2.0, 3.0]] * 30, Y), ["(1,)", "(2,)"], id="ragged rows"),
        pytest.param((np.zeros((60, 4), np.float32), Y), ["same in all"], id="constant inputs"),
        pytest.param(X, ["no answers"], id="no answers"),
        pytest.param(TensorDataset(torch.zeros(0, 4), torch.zeros(0)), ["empty"], id="an empty Dataset"),
        pytest.param(Items([]), ["empty"], id="an empty Dataset of one's own"),
        pytest.param(Items([*PAIRS[:40], ValueError("broken file")]), ["40", "broken file"], id="an item that raises"),
        pytest.param(Items([pair[0] for pair in PAIRS]), ["no answer"], id="items without answers"),
        pytest.param(Items([{"x": pair[0]} for pair in PAIRS]), ["dict", "(input, answer)"], id="items that are dicts"),
        pytest.param(Items([*PAIRS[:59], (torch.zeros(5), 1)]), ["shape"], id="items of different shapes"),
    ],
)  # fmt: skip
def test_bad_data_are_refused_with_their_rows(source, words, runs):
    refused(DataError, words, runs, source, epochs=2)


@pytest.mark.parametrize(
    "source, words",
    [(3, ["int"]), (None, ["NoneType"]), ({"x": X, "y": Y}, ["dict", "(data['x'], data['y'])"]), ((X, Y, Y), ["tuple of 3"]),
     ("no_such_file.npz", ["'no_such_file.npz'"]), ("", ["''"])],
    ids=str,
)  # fmt: skip
def test_what_is_no_source_is_refused(source, words, runs):
    refused(UsageError, words, runs, source)


def test_validation_and_test_data_must_fit_the_training_data(runs):
    refused(DataError, ["test", "(N, 2)", "(N, 4)"], runs, test=(X[:, :2], Y))
    refused(DataError, ["valid", "float32", "int64"], runs, valid=(X.astype(int), Y), test=(X, Y))
    refused(DataError, ["never occur in train", "'5'"], runs, test=(X, Y + 5))
    refused(UsageError, ["arrays", "DataLoader"], runs, test=DataLoader(TensorDataset(torch.from_numpy(X))))
    refused(UsageError, ["share 0.3", "of its own"], runs, test=(X, Y), valid="0.3", source=sources.Source(
        "mine", sources.Examples((X,), Y), valid=sources.Examples((X,), Y)))  # fmt: skip


def test_a_class_that_only_the_test_split_has_is_refused(runs):
    y = changed(Y, slice(0, 50), 0)
    times = np.arange(60)
    refused(DataError, ["never occur in train"], runs, (X, y), times=times, test=0.15)


@pytest.mark.parametrize(
    "source, words",
    [
        ((X, Y + 2), ["(48, 3)", "5 classes", "5 outputs"]),
        ((np.c_[X, X], Y), ["RuntimeError", "(48, 8) float32", "48x8 and 4x3"]),
        ((np.arange(240).reshape(60, 4), Y), ["(48, 4) int64", "dtype"]),
        ((X[:, :3], Y), ["(48, 3) float32"]),
        (((X, X), Y), ["(48, 4) float32 and (48, 4) float32", "forward()"]),
    ],
    ids=["labels beyond the net's", "too wide", "whole numbers", "too narrow", "two inputs"],
)
def test_data_that_do_not_fit_the_net_are_told_with_both_shapes(source, words, runs):
    refused(UsageError, words, runs, source)


def test_all_mistakes_are_told_at_once_with_near_misses(runs):
    message = refused(
        UsageError,
        ["'learning_rate'", "'mlp'", "'adam'", "'cosine'", "'focal'", "'shift'", "'classes'", "'image'", "'kaiming'", "1.5",
         "'x'", "'3 weeks'", "'cda'", "'many'", "'fp31'", "epochs = 0"],
        runs,
        net="mpl", optimizer="adm", learnin_rate=1, epochs=0, schedule="cosin", loss="focall", augment="shif=2", task="clases",
        domain="imag", valid=1.5, checkpoint_every="x", budget="3 weeks", init="kaimin", device="cda", batch_size="many",
        precision="fp31",
    )  # fmt: skip
    assert "Traceback" not in message


# --- IDX files --------------------------------------------------------------------------------------------------------

IDX = {
    "count_mismatch-labels-idx1-ubyte": ["labels", "19"],
    "float32-images-idx3": ["no answers"],
    "header_only_8_bytes-images-idx3-ubyte": ["8 bytes", "16 bytes"],
    "huge_count-images-idx3-ubyte": ["2147483647", "1,683,627,179,264 bytes"],
    "labels_as_images-images-idx3-ubyte": ["labels", "pictures"],
    "long_payload-images-idx3-ubyte": ["15,796", "15,696"],
    "short_payload-images-idx3-ubyte": ["5,000", "15,696"],
    "not_gzip-images-idx3-ubyte.gz": ["no answers"],
    "truncated-images-idx3-ubyte.gz": ["damaged", "7,859"],
    "wrong_magic-images-idx3-ubyte": ["0x12345678", "0x00000803"],
    "zero_items-images-idx3-ubyte": ["no items"],
}


@pytest.mark.parametrize("name", IDX)
def test_a_bad_idx_file_is_refused(name, shared_data, runs, tmp_path, capsys, monkeypatch):
    place = shared_data / "bad" / "idx" / name
    refused(DataError, [name, *IDX[name]], runs, place)
    monkeypatch.setattr(sys, "argv", ["lamina"])
    with pytest.raises(SystemExit) as end:
        lamina.cli.main(["train", str(place), "--runs", str(runs)])
    screen = capsys.readouterr()
    if "no answers" in IDX[name]:  # sound pictures: groups are sought in them
        assert end.value.code == 0 and "clusters" in screen.out
    else:
        assert end.value.code == 3 and name in screen.err and screen.out == ""


def test_every_bad_idx_file_is_tried(shared_data):
    there = {path.name for path in (shared_data / "bad" / "idx").iterdir()}
    assert there == IDX.keys() | {"good-images-idx3-ubyte", "good-labels-idx1-ubyte"}


def test_labels_of_another_count_are_refused(shared_data, runs, tmp_path):
    bad = shared_data / "bad" / "idx"
    shutil.copy(bad / "good-images-idx3-ubyte", tmp_path / "my-images-idx3-ubyte")
    shutil.copy(bad / "count_mismatch-labels-idx1-ubyte", tmp_path / "my-labels-idx1-ubyte")
    refused(DataError, ["20", "19"], runs, tmp_path / "my-images-idx3-ubyte")


# --- Nets and losses --------------------------------------------------------------------------------------------------


class Raising(Net):
    def forward(self, x):
        raise KeyError("mine")


class Pair(Net):
    def forward(self, x):
        return self.fc(x), x


class Narrow(Net):
    def forward(self, x):
        return self.fc(x)[:, :2]


class Few(Net):
    def forward(self, x):
        return self.fc(x)[:5]


class Flat(Net):
    def forward(self, x):
        return self.fc(x).flatten()


class Hidden(nn.Module):
    """Its layer stands in a list, where torch does not see it."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 3)]

    def forward(self, x):
        return self.layers[0](x)


class Frozen(Net):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class Needing(Net):
    def __init__(self, width, depth=2):
        super().__init__()


class Unmakeable(Net):
    def __init__(self):
        raise RuntimeError("no such file")


class Detached(Net):
    def forward(self, x):
        return self.fc(x).detach()


class Hungry(Net):
    def forward(self, x):
        return self.fc(x) + torch.empty(1 << 50).sum()


@pytest.mark.parametrize(
    "net, words",
    [
        (Raising, ["KeyError", "'mine'", "(48, 4) float32"]),
        (Pair, ["returned a tuple", "a tensor"]),
        (Narrow, ["(48, 2)", "3 classes", "3 outputs"]),
        (Few, ["(5, 3)", "48 examples"]),
        (Flat, ["(144,)", "(48, 3)"]),
        (Hidden, ["no parameters", "ModuleList"]),
        (Frozen, ["frozen", "requires_grad_"]),
        (Detached, ["no gradient", ".detach()"]),
        (Needing, ["Needing", "'width'", "width, depth", "--net-arg"]),
        (Unmakeable, ["Unmakeable", "RuntimeError: no such file"]),
        (dict, ["dict", "nn.Module"]),
        (3, ["int", "nn.Module"]),
        ([Net()], ["list", "nn.Module"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_net_that_cannot_be_trained_is_refused_before_there_is_a_run(net, words, runs):
    refused(UsageError, words, runs, net=net)


def test_a_net_that_needs_more_memory_than_there_is(runs):
    refused(ResourceError, ["memory", "--batch-size"], runs, net=Hungry)


@pytest.mark.parametrize(
    "loss, words",
    [
        (lambda output, truth: 1 / 0, ["ZeroDivisionError", "(48, 3)", "(48,) int64"]),
        (nn.CrossEntropyLoss(reduction="none"), ["CrossEntropyLoss", "(48,)", "0-d", "loss.mean()"]),
        (lambda output, truth: 3.0, ["float", "0-d"]),
        (lambda output: output.sum(), ["TypeError", "loss(output, truth)"]),
        (lambda output, truth: (output.argmax(1) != truth).float().mean(), ["no gradient", ".argmax()"]),
        (nn.BCEWithLogitsLoss(), ["two classes", "3"]),
        (nn.MSELoss(), ["(48, 3)", "1 number"]),
        (7, ["int", "(output, truth)"]),
    ],
    ids=["raises", "a vector", "no tensor", "takes one", "no gradient", "two classes", "numbers", "no callable"],
)
def test_a_loss_that_cannot_be_minimised_is_refused_before_there_is_a_run(loss, words, runs):
    refused(UsageError, words, runs, loss=loss)


@pytest.mark.parametrize("broken", ["net", "loss"])
def test_what_raises_later_is_told_with_its_epoch_and_the_run_says_failed(broken, runs):
    calls = []

    def count():
        calls.append(1)
        if len(calls) == 12:
            raise IndexError("out of words")

    class Later(Net):
        def forward(self, x):
            if broken == "net":
                count()
            return self.fc(x)

    def loss(output, truth):
        if broken == "loss":
            count()
        return nn.functional.cross_entropy(output, truth)

    with pytest.raises(UsageError, match=r"(?s)Later.*IndexError.*epoch 3: out of words"):
        lamina.train((X, Y), net=Later, loss=loss, batch_size=12, epochs=5, quiet=True, runs=runs, name="later")
    facts = json.loads((runs / "later" / "run.json").read_text())
    assert facts["status"] == "failed" and "out of words" in facts["reason"]


OWN = """
import torch
from torch import nn

class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

number = 3
def my_loss(output, truth):
    return nn.functional.cross_entropy(output, truth)
"""


@pytest.mark.parametrize(
    "given, text, words",
    [
        ({"net": "gone.py:Net"}, OWN, ["'gone.py'", "'own.py'"]),
        ({"net": "own.py:Nett"}, OWN, ["'Nett'", "'Net'"]),
        ({"net": "own.py:number"}, OWN, ["int"]),
        ({"loss": "own.py:my_los"}, OWN, ["'my_los'", "'my_loss'"]),
        ({"loss": "own.py:number"}, OWN, ["int"]),
        ({"net": "own.py:Net"}, "raise ValueError('at import')", ["own.py", "ValueError: at import"]),
        ({"net": "own.py:Net"}, "def (:", ["own.py", "SyntaxError"]),
        ({"net": "own.py:Net"}, "import no_such_package", ["own.py", "no_such_package"]),
        ({"net": "own.py:Net"}, "import sys\nsys.exit(3)", ["own.py"]),
    ],
    ids=lambda value: None if isinstance(value, (list, dict)) else value.splitlines()[0] or "own.py",
)
def test_a_file_of_ones_own_that_is_not_right_is_told(given, text, words, runs, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    refused(UsageError, words, runs, **given)


# --- Losses that are not finite ---------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_layer_and_example_and_keeps_the_last_good_state(runs):
    """One input is so large that a sum of products overflows: the step that meets it is not applied."""

    class Heavy(Net):
        def __init__(self):
            super().__init__()
            nn.init.constant_(self.fc.weight, 2.0)

    x = changed(X, 7, 3e38)
    seen = []

    def watch(progress):
        seen.append(progress.net.fc.weight.detach().clone())

    torch.manual_seed(0)
    with pytest.raises(Diverged) as found:
        lamina.train((x, Y), net=Heavy, test=(X, Y), batch_size=4, epochs=2, watchers=[watch], checkpoint_every="1steps",
                     on_divergence="stop", baselines=False, quiet=True, runs=runs, name="broken")  # fmt: skip
    assert found.value.exit_code == 5
    for word in ("'fc' (Linear)", "row 7", "not applied", f"step {len(seen) + 1} ", "learning rate"):
        assert word in str(found.value)
    facts = json.loads((runs / "broken" / "run.json").read_text())
    assert facts["status"] == "failed" and "row 7" in facts["reason"]
    from safetensors.torch import load

    newest = max((runs / "broken" / "checkpoints").glob("step-*"))
    weights = load(files.verify(newest)[1]["weights.safetensors"])
    assert int(newest.name[5:]) == len(seen) and torch.equal(weights["fc.weight"], seen[-1])
    assert torch.isfinite(weights["fc.weight"]).all()


# --- Folders and disks ------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(runs) -> Path:
    """A run that was stopped after 6 of 10 steps."""

    def watch(progress):
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lamina.train((X, Y), net=Net, epochs=10, watchers=[watch], checkpoint_every="2steps", baselines=False, quiet=True,
                     runs=runs, name="stopped")  # fmt: skip
    return runs / "stopped"


def resume(folder: Path) -> lamina.Run:
    return lamina.resume(folder, (X, Y), net=Net, watchers=[lambda progress: None], quiet=True)


def test_a_name_that_is_taken_is_refused_and_its_run_untouched(stopped):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"(?s)stopped exists.*lamina resume"):
        lamina.train((X, Y), net=Net, runs=stopped.parent, name="stopped", quiet=True)
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_run_of_another_version_is_not_resumed(stopped):
    facts = json.loads((stopped / "run.json").read_text())
    text = json.dumps({**facts, "schema": 2, "lamina": "7.0"})
    (stopped / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"(?s)Lamina 7\.0.*schema 1"):
        resume(stopped)
    assert (stopped / "run.json").read_text() == text


def test_a_run_in_use_is_not_resumed_by_a_second_process(stopped):
    statements = (
        f"import sys, lamina.files as f; l = f.Lock({str(stopped)!r}); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", statements], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=rf"in use by process {holder.pid}"):
            resume(stopped)
    finally:
        holder.communicate()
    assert resume(stopped).facts["status"] == "done"


def test_other_data_are_not_resumed_on(stopped):
    with pytest.raises(RunError, match="not those"):
        lamina.resume(stopped, (X + 1, Y), net=Net, watchers=[lambda progress: None], quiet=True)
    with pytest.raises(LaminaError, match="in memory"):
        lamina.resume(stopped, net=Net, quiet=True)
    assert resume(stopped).facts["status"] == "done"


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"(?s)file.*--runs") as found:
        lamina.train((X, Y), net=Net, runs=tmp_path / "file" / "runs", quiet=True)
    assert found.value.exit_code == 6


def test_a_folder_without_permission_is_refused(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows has permissions of another kind")
    (tmp_path / "shut").mkdir(mode=0o500)
    root = os.geteuid() == 0  # who may write everywhere
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(ResourceError, match=r"(?s)no permission.*--runs"):
            lamina.train((X, Y), net=Net, runs=tmp_path / "shut", quiet=True)
    except PermissionError:
        pytest.skip("another user cannot even enter the folder of the tests")
    finally:
        if root:
            os.seteuid(0)
    assert os.listdir(tmp_path / "shut") == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 600 kB; gives its folder and a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", *options, "tmpfs", folder]
        return subprocess.run(words, capture_output=True).returncode == 0

    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not mount("size=600k"):
        pytest.skip("only root on Linux can mount a small disk")
    yield folder, lambda: mount("remount,size=20m")
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_with_words_and_old_files_and_can_be_resumed(small_disk):
    """It fills while the run is on its way; what was on it stays whole, and with more room the run goes on."""
    folder, enlarge = small_disk

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 3))

        def forward(self, x):
            return self.layers(x)

    filled = []

    def fill(progress):
        if progress.step == 5:
            while sorted(p.name for p in (folder / "run" / "checkpoints").iterdir()) != [
                "step-0000002",
                "step-0000004",
            ]:
                time.sleep(0.01)  # it is written meanwhile
            (folder / "others").write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize - 40_000))
            filled.append({path: path.read_bytes() for path in folder.rglob("*.json")})

    asked: dict[str, Any] = {"net": Wide, "epochs": 10, "baselines": False, "quiet": True, "checkpoint_every": "2steps"}
    with pytest.raises(ResourceError, match=r"(?s)could not be written: the disk is full.*free some space") as found:
        lamina.train((X, Y), **asked, watchers=[fill], runs=folder, name="run")
    assert found.value.exit_code == 6
    assert {path: content for path, content in filled[0].items() if path.name != "run.json"} == {
        path: path.read_bytes() for path in filled[0] if path.name != "run.json"
    }
    assert json.loads((folder / "run" / "run.json").read_text())["status"] in ("running", "failed")
    assert not list(folder.rglob(".tmp-*"))

    assert enlarge()
    run = lamina.resume(folder / "run", (X, Y), net=Wide, watchers=[lambda progress: None], quiet=True)
    assert run.facts["status"] == "done" and run.facts["steps"] == 10


def test_a_disk_that_is_full_at_the_beginning_leaves_nothing(small_disk):
    folder, _ = small_disk
    (folder / "others").write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize))
    with pytest.raises(ResourceError, match="disk is full"):
        lamina.train((X, Y), net=Net, runs=folder, quiet=True)
    assert os.listdir(folder) == ["others"]


# --- Interruptions ----------------------------------------------------------------------------------------------------

SLOW = """
import os
import time

import torch
from torch import nn


def reached(place):
    # Say so once; then wait, so that the signal comes here.
    if os.environ.get("REACHED") == place:
        print("REACHED", flush=True)
        time.sleep(60)


reached("import")


class Net(nn.Module):
    steps = 0

    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(4, 3), nn.Dropout(0.2)
        reached("making")

    def forward(self, x):
        if self.training:
            Net.steps += 1
            if os.environ.get("REACHED") == "training":
                print("REACHED" if Net.steps == 12 else "", flush=True)
                time.sleep(0.02 if Net.steps >= 12 else 0)
        elif Net.steps == 30:
            reached("evaluation")
        return self.fc(self.drop(x))
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> tuple[Path, dict]:
    """A folder with data and a net that says how far it is, and the weights of its undisturbed training of 30 steps."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow.py").write_text(SLOW)
    np.savez(folder / "points.npz", x=X, y=Y, x_test=X, y_test=Y)
    whole = lamina.train(folder / "points.npz", net=f"{folder}/slow.py:Net", epochs=6, batch_size=12, baselines=False,
                         quiet=True, runs=folder / "runs", name="whole")  # fmt: skip
    return folder, whole.weights()


@pytest.mark.parametrize(
    "place, number, code",
    [("import", signal.SIGINT, 130), ("making", signal.SIGINT, 130), ("training", signal.SIGINT, 130),
     ("training", signal.SIGTERM, 143), ("evaluation", signal.SIGINT, 130)],
    ids=lambda value: str(getattr(value, "name", value)),
)  # fmt: skip
def test_an_interruption_ends_at_once_and_a_run_that_began_can_be_resumed(place, number, code, slow):
    if os.name == "nt":
        pytest.skip("Windows sends signals in another way")
    folder, whole = slow
    name = f"{place}-{code}"
    words = ["train", "points.npz", "--net", "slow.py:Net", "--epochs", "6", "--batch-size", "12", "--no-baselines", "-q",
             "--name", name]  # fmt: skip
    process = subprocess.Popen([LAMINA, *words], cwd=folder, env={**os.environ, "REACHED": place}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        if line.strip() == "REACHED":
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=50)
    assert process.returncode == code and "Traceback" not in err and err.startswith("stopped: ")
    run = folder / "runs" / name
    if place in ("import", "making"):
        assert not run.exists()
        return
    assert f"go on: lamina resume runs/{name}" in err
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    again = lamina.resume(run, net=f"{folder}/slow.py:Net", quiet=True)
    assert again.facts["status"] == "done"
    assert all(torch.equal(again.weights()[name], whole[name]) for name in whole)


class Masked(nn.Module):
    """Attention to what came before: the mask is infinite where it does not look."""

    def __init__(self, weight: float = 0.0):
        super().__init__()
        self.inner, self.attention, self.last = (
            nn.Linear(4, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 3),
        )
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))
        self.scale = nn.Parameter(torch.tensor([torch.inf, 1.0]), requires_grad=False)
        with torch.no_grad():
            self.last.weight[0, 0] += weight

    def forward(self, x: Any) -> Any:
        x = self.inner(x)
        return self.last(self.attention(x, x, x, attn_mask=self.mask)[0].mean(1)) * self.scale[1]


def sequences() -> tuple[Any, Any]:
    y = np.arange(240) % 3
    return np.random.default_rng(0).normal(y[:, None, None], 0.3, (240, 6, 4)).astype(np.float32), y


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_mask_that_is_infinite_is_no_divergence(runs, ema):
    run = lamina.train(sequences(), net=Masked(), loss=nn.CrossEntropyLoss(), task="classes", epochs=12, batch_size=20, ema=ema,
                       learning_rate=0.01, baselines=False, quiet=True, report=False, runs=runs, name="masked")  # fmt: skip
    assert run.headline.value > 0.9
    told = "".join(path.read_text(encoding="utf-8") for path in run.folder.glob("*.json*"))
    assert "not finite" not in told and "contains NaN" not in told
    assert torch.equal(run.net.mask, Masked().mask)


@pytest.mark.parametrize("weight", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_told_before_training(runs, weight):
    with pytest.raises(UsageError, match=r"comes with weights that are not finite: last\.weight"):
        lamina.train(sequences(), net=Masked(weight), loss=nn.CrossEntropyLoss(), task="classes", epochs=1, baselines=False,
                     quiet=True, runs=runs, name="odd")  # fmt: skip
    assert not (runs / "odd").exists()


def test_weights_that_become_infinite_beside_such_a_mask_are_a_divergence(runs):
    with pytest.raises(Diverged):
        lamina.train(sequences(), net=Masked(), loss=nn.CrossEntropyLoss(), task="classes", epochs=3, batch_size=20,
                     optimizer="sgd", learning_rate=1e38, on_divergence="stop", baselines=False, quiet=True, report=False,
                     runs=runs, name="far")  # fmt: skip


class Graph(nn.Module):
    """Nodes that look at their neighbours, by a sparse matrix."""

    def __init__(self, persistent: bool):
        super().__init__()
        self.register_buffer("edges", torch.eye(6).roll(1, 0).to_sparse(), persistent=persistent)
        self.inner, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.inner(x)).transpose(0, 1)
        near = torch.sparse.mm(self.edges, x.reshape(6, -1)).view(6, -1, 8)
        return self.last((x + near).mean(0))


class Members(nn.Module):
    """Several layers at once, by `torch.vmap`; and a gradient within, by `torch.func`."""

    def __init__(self, persistent: bool):
        super().__init__()
        self.weight, self.inner, self.last = nn.Parameter(torch.randn(5, 24, 8) / 5), nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        x = torch.vmap(lambda weight: x.flatten(1) @ weight)(self.weight).mean(0)
        slope = torch.func.vmap(torch.func.grad(lambda row: torch.tanh(self.inner(row)).sum()))(x)
        return self.last(x + slope)


@pytest.mark.parametrize("net", [Graph, Members])
def test_nets_whose_tensors_lie_in_no_memory_of_their_own_are_trained_and_asked(runs, net):
    x, y = sequences()
    run = lamina.train((x, y), net=net(False), loss=nn.CrossEntropyLoss(), task="classes", epochs=12, batch_size=20,
                       learning_rate=0.01, baselines=False, quiet=True, report=False, runs=runs, name="odd")  # fmt: skip
    assert run.headline.value > 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many = run.predict(np.tile(x, (80, 1, 1)))
    assert (many.prediction == np.tile(y, 80)).mean() > 0.9
    again = lamina.load(run.folder, net=net(False))
    assert np.allclose(again.predict(x).probabilities, run.predict(x).probabilities, atol=1e-6)


def test_a_sparse_buffer_that_cannot_be_saved_is_told_before_training(runs):
    with pytest.raises(RunError, match=r"edges.*sparse") as found:
        lamina.train(sequences(), net=Graph(True), loss=nn.CrossEntropyLoss(), task="classes", epochs=1, baselines=False,
                     quiet=True, runs=runs, name="odd")  # fmt: skip
    assert "persistent=False" in found.value.fix
