"""Names -> things: the folders are the lists, and a user's file is run only because he named it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import lamina
from lamina import names
from lamina.errors import (
    DataError,
    Diverged,
    Interrupted,
    LaminaError,
    ResourceError,
    RunError,
    UsageError,
    near,
    rows,
)

ROOMS = ("nets", "targets", "domains")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_the_files_of_its_folder(room):
    folder = Path(lamina.__file__).parent / room
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert set(names.known(room)) == {name for name in files if not name.startswith("_")}
    assert names.known(room) == sorted(names.known(room))


def test_the_list_of_names_imports_nothing():
    code = (
        "import sys; from lamina import names; names.known('nets'), names.known('domains'); "
        "sys.exit(any(name.startswith(('torch', 'lamina.nets.', 'lamina.domains.')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["mlp", "MLP", " mlp ", "Mlp"])
def test_a_name_is_found_however_it_is_written(name):
    assert names.module("nets", name).__name__ == "lamina.nets.mlp"


@pytest.mark.parametrize(
    ("room", "name", "words"),
    [
        ("nets", "mpl", r"There is no net 'mpl': did you mean 'mlp'\?"),
        ("domains", "imag", r"There is no domain 'imag': did you mean 'image'\?"),
        ("targets", "zebra", "There is no target 'zebra': known are: classes, "),
        ("nets", "base", "There is no net 'base'"),
        ("nets", "../targets/classes", "There is no net"),
        ("nets", "", "There is no net ''"),
    ],
)
def test_an_unknown_name_is_met_with_what_is_near(room, name, words):
    with pytest.raises(UsageError, match=words) as error:
        names.module(room, name)
    assert "FILE.py:NAME" in error.value.expected and all(known in error.value.expected for known in names.known(room))


# --- A file of the user's own -----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    def write(content, name="mine.py"):
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("my.py:Net", True), ("dir/my.py:Net", True), ("C:\\my.py:Net", True), ("mlp", False), ("my.py", False),
        ("cuda:1", False), (None, False), (5, False),
    ],
)  # fmt: skip
def test_what_names_something_of_the_users_own(name, own):
    assert names.is_own(name) is own


def test_the_class_a_user_names_is_his_and_can_be_looked_at(file):
    path = file("class Net:\n    width = 3\n")
    net = names.own(f"{path}:Net")
    assert net.width == 3 and inspect.getsourcefile(net) == path and "width = 3" in inspect.getsource(net)
    assert names.own(f"{path}:Net") is net  # once, so that isinstance holds


def test_a_file_that_changed_is_run_again_even_within_a_second(file, monkeypatch):
    """Bytecode beside the file would be taken for current: it knows the time to the second, and the size."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert [names.own(f"{file(f'width = {k}')}:width") for k in range(5)] == [0, 1, 2, 3, 4]


def test_two_files_of_one_name_are_two(file, tmp_path):
    (tmp_path / "other").mkdir()
    one, other = file("width = 1"), file("width = 2", "other/mine.py")
    assert (names.own(f"{one}:width"), names.own(f"{other}:width"), names.own(f"{one}:width")) == (1, 2, 1)


def test_a_file_may_import_its_neighbours(file):
    file("depth = 7", "neighbour_of_mine.py")
    before = list(sys.path)
    assert names.own(f"{file('from neighbour_of_mine import depth')}:depth") == 7
    assert sys.path == before


def test_dataclasses_and_pickles_find_the_module_of_a_users_file(file):
    path = file(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Kind:\n    k: int = 3\n"
    )
    kind = names.own(f"{path}:Kind")
    assert kind().k == 3 and sys.modules[kind.__module__].Kind is kind


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("1 / 0", "could not be run: ZeroDivisionError: division by zero"),
        ("class Net(:", "could not be run: SyntaxError"),
        ("import no_such_module_anywhere", "could not be run: ModuleNotFoundError"),
        ("import sys; sys.exit(0)", "could not be run: SystemExit"),  # else the command would end, with success
        ("class Nett: pass\n_hidden = 1", r"has no 'Net': did you mean 'Nett'\?"),
    ],
)
def test_what_a_users_file_lacks_is_said(file, content, words):
    path, before = file(content), list(sys.path)
    for _ in range(2):  # and said again
        with pytest.raises(UsageError, match=words):
            names.own(f"{path}:Net")
    assert sys.path == before


def test_a_file_that_is_not_there_is_met_with_its_neighbours(file, tmp_path):
    file("")
    with pytest.raises(UsageError, match=r"There is no file '.*mien\.py': did you mean 'mine\.py'\?"):
        names.own(f"{tmp_path / 'mien.py'}:Net")


def test_the_hash_of_a_file_is_its_sha_256(file):
    path = file("abc")
    assert names.file_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code", "also"),
    [
        (LaminaError, 1, Exception), (UsageError, 2, ValueError), (DataError, 3, ValueError), (RunError, 4, LaminaError),
        (Diverged, 5, ArithmeticError), (ResourceError, 6, OSError), (Interrupted, 130, KeyboardInterrupt),
    ],
)  # fmt: skip
def test_every_error_has_its_exit_code_and_is_what_python_knows(kind, code, also):
    error = kind("It rained.", fix="an umbrella")
    assert isinstance(error, also) and error.exit_code == code
    assert isinstance(error, LaminaError) == isinstance(error, Exception) == (kind is not Interrupted)
    assert str(error) == "It rained.\nFix: an umbrella"


def test_an_error_says_what_happened_what_was_expected_and_how_to_mend_it():
    error = DataError("It rained.", expected="sun", fix="an umbrella")
    assert str(error) == "It rained.\nExpected: sun\nFix: an umbrella"
    assert (error.what, error.expected, error.fix) == ("It rained.", "sun", "an umbrella")
    assert str(DataError("It rained.")) == "It rained."
    assert Interrupted("Stopped.", signal=15).exit_code == 143


def test_an_error_survives_the_way_from_another_process():
    import pickle

    error = pickle.loads(pickle.dumps(DataError("It rained.", expected="sun", fix="an umbrella")))
    assert (error.what, error.expected, error.fix) == ("It rained.", "sun", "an umbrella")


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("adma", ["adam", "sgd"], "did you mean 'adam'?"),
        ("zebra", ["sgd", "adam"], "known are: adam, sgd"),
        ("zebra", [], "none is known here"),
        ("col", ["cola", "colb"], "did you mean 'colb' or 'cola'?"),
    ],
)
def test_near_misses(name, known, words):
    assert near(name, known) == words


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([3], "row 3"),
        ([3, 17], "rows 3, 17"),
        (range(8), "rows 0, 1, 2, 3, 4 and 3 more"),
        ([], "rows "),
    ],
)
def test_rows_are_listed_but_not_all(indices, words):
    assert rows(indices) == words
