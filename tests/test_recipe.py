"""Recipes: what was asked for, checked all at once, written with its reasons and read back the same."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import UsageError
from lamina.recipe import FIELDS, MAPPINGS, Recipe, every, make, read, resolve, share, text, value


def resolved(asked=None, *, own_net=True, net="mlp", examples=1000, pictures=None, task="classes", **facts):
    return resolve(
        asked or Recipe(), own_net=own_net, net=net, examples=examples, pictures=pictures, task=task, **facts
    )


# --- Fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_it_is(name):
    """The field list is the help of the command line and the documentation."""
    words = FIELDS[name].description
    assert words and len(words) > 10 and words == words.strip() and words.endswith("."), words


def test_nothing_is_asked_for_by_default():
    assert all(getattr(Recipe(), name) in (None, {}) for name in FIELDS)
    assert {name for name in FIELDS if getattr(Recipe(), name) == {}} == set(MAPPINGS)


def test_no_torch_is_loaded_for_a_recipe():
    code = "import sys; from lamina import recipe; recipe.make(epochs=3); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Times, intervals, shares, values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [
        ("90", 90), ("90s", 90), (" 90 sec ", 90), ("3m", 180), ("1.5h", 5400), ("0.5m", 30), ("2min", 120), (45, 45),
        (0.25, 0.25),
    ],
)  # fmt: skip
def test_times(given_, seconds):
    assert make(budget=given_).budget == seconds


@pytest.mark.parametrize(
    "given_", ["", "soon", "-3m", "3 d", "1h30", "m", "3,5m", "0", 0, -1, float("inf"), float("nan"), []]
)
def test_times_that_are_none(given_):
    with pytest.raises(UsageError, match="budget = "):
        make(budget=given_)


@pytest.mark.parametrize(
    ("given_", "interval"),
    [
        ("25steps", ("steps", 25)), ("1step", ("steps", 1)), ("10 steps", ("steps", 10)), ("1epoch", ("epochs", 1)),
        ("3epochs", ("epochs", 3)), ("2.0epochs", ("epochs", 2)), ("2m", ("seconds", 120)), ("30s", ("seconds", 30)),
        ("1.5h", ("seconds", 5400)), ("45", ("seconds", 45)),
    ],
)  # fmt: skip
def test_intervals(given_, interval):
    assert every(given_) == interval
    assert make(checkpoint_every=given_).checkpoint_every == given_


@pytest.mark.parametrize("given_", ["", "often", "0steps", "1.5epochs", "-2steps", "2 days", "steps"])
def test_intervals_that_are_none(given_):
    with pytest.raises(ValueError, match=r"interval|whole number"):
        every(given_)
    with pytest.raises(UsageError, match="checkpoint_every = "):
        make(checkpoint_every=given_)


@pytest.mark.parametrize(
    ("given_", "part"), [("0.1", 0.1), ("0", 0.0), ("1e-1", 0.1), ("test.npz", None), (None, None), ("", None)]
)
def test_shares(given_, part):
    assert share(given_) == part


def test_a_share_or_a_source_may_be_given_for_a_split():
    found = make(valid=0.25, test="other.npz")
    assert (found.valid, found.test) == ("0.25", "other.npz") and make(valid=0).valid == "0"
    for bad in (1, 1.5, -0.1, "1", "nan", float("nan"), True):
        with pytest.raises(UsageError, match="valid = "):
            make(valid=bad)


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("3", 3), ("-3", -3), ("0.5", 0.5), ("1e-3", 1e-3), ("true", True), ("False", False), ("none", None), ("Null", None),
        ("64,32", [64, 32]), ("0.9,0.999", [0.9, 0.999]), ("relu", "relu"), ("a,b", ["a", "b"]), ("5,", [5]),
    ],
)  # fmt: skip
def test_words_of_the_command_line(word, meaning):
    found = value(word)
    assert found == meaning and type(found) is type(meaning)


# --- Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"epochss": 3}, "There is no setting 'epochss': did you mean 'epochs'?"),
        ({"lr": 0.1}, "There is no setting 'lr': known are: accumulate, "),
        ({"scale": "unti"}, "scale = 'unti': did you mean 'unit'? It is one of none, unit, standard."),
        ({"keep": "first"}, "keep = 'first': it is one of best, last."),
        ({"epochs": 0}, "epochs = 0: input should be greater than or equal to 1."),
        ({"epochs": "many"}, "epochs = 'many': input should be a valid integer"),
        ({"batch_size": 2.5}, "batch_size = 2.5: "),
        ({"seed": -1}, "seed = -1: "),
        ({"ema": 1.0}, "ema = 1.0: input should be less than 1."),
        ({"mixup": float("inf")}, "mixup = inf: input should be a finite number."),
        (
            {"learning_rate": "fnid"},
            "learning_rate = 'fnid': 'fnid' is not a learning rate; it is a number above 0, or find.",
        ),
        ({"learning_rate": 0}, "learning_rate = 0: "),
        ({"learning_rate": -1e-3}, "learning_rate = -0.001: "),
        ({"learning_rate": float("nan")}, "learning_rate = nan: "),
        ({"net_arg": 3}, "net_arg = 3: input should be a valid dictionary."),
        ({"net_arg": {"act": print}}, "act is a builtin_function_or_method, which a recipe cannot hold"),
        ({"rates": {"features.*": "small"}}, "rates.features.* = 'small': input should be a valid number"),
        ({"rates": {"head": float("nan")}}, "rates.head = nan: input should be a finite number."),
    ],
)
def test_a_mistake_names_the_setting_the_value_and_what_is_near(asked, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        make(**asked)


def test_all_mistakes_are_told_at_once_each_on_its_line():
    asked = {"epochss": 3, "scale": "unti", "epochs": 0, "learning_rate": "x", "budget": "soon", "rates": {"a": "b"}}
    with pytest.raises(UsageError) as error:
        make(**asked)
    lines = str(error.value).splitlines()
    assert len(lines) == len(asked)
    assert all(any(name in line for line in lines) for name in asked)


def test_what_is_right_is_left_alone():
    found = make(epochs="3", learning_rate="0.001", batch_size=np.int64(32), augment=["flip", "shift=2"], ema=0)
    assert (found.epochs, found.learning_rate, found.batch_size, found.augment) == (3, 0.001, 32, "flip,shift=2")
    assert make(learning_rate="find").learning_rate == "find" and make(learning_rate=1).learning_rate == 1.0


# --- TOML -------------------------------------------------------------------------------------------------------------

word = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda w: w != "none")
number = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**62), 2**62) | st.booleans()
plain = st.recursive(number | word | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
arguments = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), plain, max_size=3)
asked_for = st.fixed_dictionaries(
    {},
    optional={
        "source": word, "net": word, "augment": word, "epochs": st.integers(1, 10**9), "seed": st.integers(0, 2**62),
        "learning_rate": st.floats(5e-324, 1e300) | st.just("find"), "ema": st.floats(0, 0.999), "valid": st.floats(0, 0.99),
        "budget": st.floats(1e-3, 1e9), "baselines": st.booleans(), "scale": st.sampled_from(["none", "unit", "standard"]),
        "net_arg": arguments, "loss_arg": arguments, "optimizer_arg": arguments, "schedule_arg": arguments,
        "rates": st.dictionaries(word, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    },
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(asked=asked_for, reason=st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), max_size=20))
def test_a_recipe_written_and_read_is_the_same_recipe(tmp_path_factory, asked, reason):
    recipe = make(**asked)
    path = tmp_path_factory.getbasetemp() / "recipe.toml"
    path.write_bytes(text(recipe, dict.fromkeys(FIELDS, ("inferred", reason))).encode())
    assert make(**read(path)) == recipe


def test_a_resolved_recipe_is_read_back_the_same_with_its_reasons(tmp_path):
    recipe, origins = resolved(make(epochs=7, optimizer_arg={"betas": (0.9, 0.95)}), own_net=False, pictures=(1, 8, 8))
    path = tmp_path / "recipe.toml"
    path.write_text(text(recipe, origins))
    assert make(**read(path)) == recipe
    written = path.read_text()
    assert re.search(r"^epochs = 7 *# yours$", written, re.M)
    assert re.search(r"^seed = 0 *# default$", written, re.M)
    assert re.search(r"^scale = \"standard\" *# inferred: the net sees mean 0 and deviation 1$", written, re.M)
    assert re.search(r"^\[optimizer_arg\] *# yours\nbetas = \[0\.9, 0\.95\]$", written, re.M)
    assert written.startswith("# Every setting of this run. Yours: you asked for it.")


def test_a_second_writing_changes_nothing(tmp_path):
    recipe, origins = resolved(own_net=False)
    path = tmp_path / "recipe.toml"
    path.write_text(text(recipe, origins))
    assert text(make(**read(path)), origins) == path.read_text()


def test_every_setting_of_a_written_recipe_has_its_origin():
    recipe, origins = resolved(own_net=False)
    document = tomlkit.parse(text(recipe, origins))
    for name in document:
        comment = document.item(name).trivia.comment
        assert comment.startswith(("# yours", "# default", "# inferred")), f"{name}: {comment}"


def test_a_reason_of_several_lines_stays_a_comment(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text(make(epochs=3), {"epochs": ("inferred", 'because\nepochs = 9 # "')}))
    assert read(path) == {"epochs": 3}


def test_none_is_written_as_on_the_command_line(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text(make(net_arg={"normalisation": None, "widths": (64, None)}), {}))
    assert 'normalisation = "none"' in path.read_text()
    assert make(**read(path)).net_arg == {"normalisation": None, "widths": [64, None]}
    path.write_text('scale = "none"\naugment = "none"\n')
    assert read(path) == {"scale": "none", "augment": "none"}  # there it is a word of the setting


def test_numbers_of_numpy_are_numbers():
    found = make(net_arg={"a": np.float32(0.5), "b": np.int64(3), "c": [np.bool_(True)]}).net_arg
    assert found == {"a": 0.5, "b": 3, "c": [True]} and [type(found[key]) for key in "ab"] == [float, int]


def test_an_empty_setting_of_a_file_is_not_asked_for(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('source = ""\nepochs = 3\n')
    assert read(path) == {"epochs": 3}


@pytest.mark.parametrize("content", [b"epochs = ", b"epochs = 3\nepochs = 4", b"\xff\xfe", b"[net_arg"])
def test_a_file_that_is_no_toml_is_refused(tmp_path, content):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"recipe\.toml is not TOML"):
        read(path)


def test_a_file_that_is_not_there_is_met_with_its_neighbours(tmp_path):
    (tmp_path / "digits.toml").write_text("")
    with pytest.raises(UsageError, match=r"digit\.toml': did you mean 'digits\.toml'\?"):
        read(tmp_path / "digit.toml")
    with pytest.raises(UsageError, match="There is no recipe"):
        read(tmp_path / "nowhere" / "a.toml")


# --- An own net -------------------------------------------------------------------------------------------------------

EXACTLY = {
    "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "clip_norm": 0.0, "clip_value": 0.0, "augment": "none",
    "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "l1": 0.0, "l2": 0.0, "ema": 0.0, "valid": "0", "accumulate": 1,
    "early_stopping": 0, "keep": "last", "balance": "none", "scale": "none", "init": "pytorch", "precision": "auto",
    "optimizer": "adam", "learning_rate": 1e-3, "batch_size": 64, "epochs": 10, "workers": None, "seed": 0,
    "net_arg": {}, "loss_arg": {}, "optimizer_arg": {}, "schedule_arg": {}, "rates": {},
    "loss": None, "steps": None, "budget": None, "weights": None, "penalize": None,
}  # fmt: skip


def settings_of(recipe):
    return {name: getattr(recipe, name) for name in EXACTLY}


@pytest.mark.parametrize("examples", [50, 1797, 60_000, None])
@pytest.mark.parametrize("pictures", [None, (1, 28, 28)])
def test_an_own_net_gets_exactly_what_was_asked(examples, pictures):
    """Adam at 1e-3 for 10 epochs of batches of 64, and nothing with an opinion, whatever the data."""
    found, origins = resolved(examples=examples, pictures=pictures)
    assert settings_of(found) == EXACTLY
    assert not {name for name in origins if origins[name][0] == "yours"}


@pytest.mark.parametrize(
    ("asked", "others"),
    [
        ({"epochs": 3}, {}),
        ({"schedule": "cosine"}, {}),
        ({"clip_norm": 2.0}, {}),
        ({"augment": "flip"}, {}),
        ({"ema": 0.9}, {}),
        ({"label_smoothing": 0.1}, {}),
        ({"optimizer": "sgd", "optimizer_arg": {"momentum": 0.9}}, {}),
        ({"steps": 100}, {"epochs": None}),
        ({"budget": 60.0}, {"epochs": None}),
        ({"valid": "0.2"}, {}),
        ({"early_stopping": 3}, {"valid": "0.1", "keep": "best"}),  # cannot be had without
        ({"schedule": "plateau"}, {"valid": "0.1"}),
        ({"keep": "best"}, {"valid": "0.1"}),
    ],
)
def test_what_was_asked_brings_nothing_else_along_but_what_it_needs(asked, others):
    found, origins = resolved(make(**asked))
    assert settings_of(found) == {**EXACTLY, **asked, **others}
    assert {name for name in origins if origins[name][0] == "yours"} == set(asked)
    for name in others:
        assert name not in origins or origins[name][0] == "inferred" or name == "keep"


def test_bytes_for_an_own_net_are_brought_to_0_to_1():
    found, origins = resolved(bytes_in=True)
    assert found.scale == "unit" and "ToTensor" in origins["scale"][1]
    assert resolved(make(scale="none"), bytes_in=True)[0].scale == "none"


def test_a_split_that_is_given_is_not_drawn_again():
    found, _ = resolved(given_valid=True, given_test=True)
    assert found.valid is None and found.test is None
    found, _ = resolved(own_net=False, given_valid=True, given_test=True)
    assert found.valid is None and found.test is None
    assert resolved()[0].test == "0.2"


def test_what_plays_has_no_test_split_and_no_baselines():
    found, _ = resolved(supervised=False, own_net=False, examples=None, task="return")
    assert (found.test, found.baselines, found.schedule) == ("0", False, "constant")


# --- Our own nets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", ["mlp", "convnet"])
@pytest.mark.parametrize("examples", [5, 150, 1797, 60_000, 10**7, None])
@pytest.mark.parametrize("pictures", [None, (1, 8, 8), (3, 224, 224)])
def test_every_opinion_about_our_own_nets_has_its_reason(net, examples, pictures):
    found, origins = resolved(own_net=False, net=net, examples=examples, pictures=pictures)
    exempt = ("source", "data_dir", "target", "ignore", "groups", "times", "split_column", "unlabelled", "domain", "task",
              "net", "loss", "weights", "steps", "budget", "penalize", "memory", "threads", "workers")  # fmt: skip
    for name in FIELDS:
        given_ = getattr(found, name)
        if name in MAPPINGS:
            assert not given_ or origins[name][1], name
        elif name not in exempt:
            assert given_ is not None and name in origins, name
            neutral = name == "optimizer" or given_ == EXACTLY.get(name, given_)
            assert neutral or origins[name][1], f"{name} = {given_} without a reason"
    assert make(**found.model_dump(exclude_none=True)) == found  # what is inferred would also be accepted


def test_what_was_asked_of_our_own_nets_wins():
    asked = {
        "epochs": 2, "learning_rate": 0.5, "schedule": "constant", "clip_norm": 0.0, "augment": "none", "valid": "0",
        "weight_decay": 0.0, "batch_size": 7, "size": "large", "keep": "last", "net_arg": {"dropout": 0.0},
    }  # fmt: skip
    found, origins = resolved(make(**asked), own_net=False, pictures=(1, 8, 8))
    assert {name: getattr(found, name) for name in asked if name != "net_arg"} == {
        name: asked[name] for name in asked if name != "net_arg"
    }
    assert found.net_arg["dropout"] == 0.0
    assert all(origins[name][0] == "yours" for name in asked if name != "net_arg")


def test_resolving_leaves_the_recipe_that_was_asked_for_alone():
    asked = make(net_arg={"hidden": [64]})
    found, _ = resolved(asked, own_net=False)
    found.net_arg["hidden"].append(5)
    assert asked == make(net_arg={"hidden": [64]})
