"""Rows 46, 47, 49, 50: safetensors, JSON, recipes, arrays and run folders that somebody made to do harm are refused in
words, before they take memory, and run nothing."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch

import lamina
from lamina import documents, files, foreign, recipe, state, weights
from lamina.errors import DataError, LaminaError, RunError, UsageError
from lamina.run import load, read_json

# --- Safetensors ------------------------------------------------------------------------------------------------------


def tensors(header: Any, body: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def part(begin: int, end: int, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SOUND = tensors({"a": part(0, 8), "b": part(8, 16), "__metadata__": {"format": "pt"}})
SAFETENSORS = {
    "empty": b"", "short": b"\0" * 7, "no header": tensors(b""), "list": tensors([]), "word": tensors(b'"a"'),
    "overlap": tensors({"a": part(0, 8), "b": part(4, 12)}), "twice the same": tensors({"a": part(0, 16, [4]),
    "b": part(0, 16, [4])}),
    "hole": tensors({"a": part(0, 8), "b": part(12, 20)}, bytes(20)), "more behind": tensors({"a": part(0, 8)}),
    "beyond": tensors({"a": part(0, 800, [200])}), "backwards": tensors({"a": part(8, 0)}),
    "negative": tensors({"a": part(-8, 0)}),
    "2^62 squared": tensors({"a": part(0, 16, [2**62, 2**62])}), "2^64": tensors({"a": part(0, 16, [2**64])}),
    "offset 2^63": tensors({"a": part(2**63, 2**63 + 16, [4])}),
    "offset 2^64 - 8": tensors({"a": part(2**64 - 8, 2**64 - 1)}),
    "header 2^63": struct.pack("<Q", 2**63) + b"{}", "header 2^64 - 1": b"\xff" * 8 + b"{}",
    "header beyond": struct.pack("<Q", 99) + b"{}",
    "header 1 GB": struct.pack("<Q", 10**9) + b"{}" * 100, "deep": tensors(b"[" * 1_000_000),
    "deep objects": tensors(b'{"a":' * 200_000),
    "name twice": tensors(b'{"a":%b,"a":%b}' % ((json.dumps(part(0, 16, [4])).encode(),) * 2)),
    "names twice": tensors(b'{"a":%b,"a":%b}' % (json.dumps(part(0, 8)).encode(), json.dumps(part(8, 16)).encode())),
    "field twice": tensors(b'{"a":{"dtype":"F32","shape":[2],"shape":[4],"data_offsets":[0,16]}}'),
    "kind": tensors({"a": part(0, 16, [4], "X9")}),
    "infinite": tensors(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,16]}}'),
    "long number": tensors(b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,16]}}' % (b"9" * 5000)),
    "words in shape": tensors({"a": part(0, 16, ["4"])}), "no shape": tensors({"a": {"dtype": "F32",
    "data_offsets": [0, 16]}}),
    "not UTF-8": tensors(b'{"\xff\xfe": 1}'), "metadata": tensors({"__metadata__": {"a": {"b": 1}}}, b""),
    "a million shapes": tensors({"a": part(0, 16, [1] * 1_000_000)}),
    "half numbers": tensors({"a": part(0, 16, [33], "F4")}),
    "many names": tensors({str(k): part(0, 0, [0], "U8") for k in range(60_000)}, b""),
    "header of 20 MB": tensors(b'{"a": "' + b"a" * 20_000_000 + b'"}'), "cut": SOUND[:-1], "longer": SOUND + b"\0",
}  # fmt: skip


@pytest.mark.fault(47)
def test_hostile_safetensors_are_refused(tmp_path, recorded):
    path = hostile.write(tmp_path / "net.safetensors", SOUND)
    assert set(weights.read_weights(path)) == {"a", "b"}
    watch = hostile.Watch()
    for title, content in SAFETENSORS.items():
        hostile.write(path, content)
        error = watch(lambda: weights.read_weights(path), title)
        assert isinstance(error, RunError) and "net.safetensors" in error.what and len(str(error)) < 2000, title
    with open(path, "wb") as file:  # a terabyte of nothing
        file.write(tensors({"a": part(0, 1 << 40, [1 << 38])}, b""))
        file.truncate(file.tell() + (1 << 40))
    watch(lambda: weights.read_weights(path), "a terabyte")
    assert watch.crashes == [] and watch.taken == 0 and watch.megabytes() < 100
    recorded(files=watch.refused, crashes=0, megabytes=watch.megabytes(), slowest_s=round(watch.slowest, 2))


# --- JSON and recipes -------------------------------------------------------------------------------------------------

JSONS = {
    "empty": b"", "cut": b'{"a": 1', "not UTF-8": b'"\xff"', "deep": b"[" * 1_000_000,
    "deep and closed": b"[" * 99_999 + b"]" * 99_999,
    "deep objects": b'{"a":' * 100_000, "twice": b'{"a": 1, "a": 2}', "twice inside": b'[{"b": {"a": 1, "a": 1}}]',
    "long number": b"9" * 5000, "negative long": b"-" + b"9" * 10_000, "many": b"[" + b"{}," * 400_000 + b"{}]",
    "many numbers": b"[" + b"1," * 2_000_000 + b"1]", "large": b'"' + b"a" * (17 << 20) + b'"', "two": b"{}{}",
    "comment": b"{} // a",
    "single quotes": b"{'a': 1}", "NUL": b'{"a": "\x00"}', "BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "pickle": b"\x80\x02cos\nsystem\n.", "wide": b"[" + b"[" * 300_001,
    "yaml": b"!!python/object/apply:os.system ['true']",
}  # fmt: skip


@pytest.mark.fault(47)
def test_hostile_json_is_refused(tmp_path, recorded):
    watch = hostile.Watch()
    path = tmp_path / "run.json"
    for title, content in JSONS.items():
        hostile.write(path, content)
        error = watch(lambda: read_json(path), title)
        assert isinstance(error, RunError) and "run.json" in error.what, title
    assert watch.crashes == [] and watch.taken == 0 and watch.megabytes() < 100
    assert documents.parse(b'{"a": [1, 2.5, "\\u00e9", null, true, {"a": {}}], "b": 1}', "x")["a"][2] == "é"
    recorded(files=watch.refused, crashes=0, megabytes=watch.megabytes(), slowest_s=round(watch.slowest, 2))


RECIPES = {
    "deep": "a=" + "[" * 30_000, "dotted": "a" + ".a" * 15_000 + "=1",
    "tables": "".join(f"[a{k}]\n" for k in range(3500)),
    "dotted inside": "a={" + ",".join("x." * k + f"b{k}=1" for k in range(95)) + "}", "quoted": '"a".' * 7000 + "b=1",
    "dotted tables": "[" + "a." * 15_000 + "a]", "large": "#" * 40_000, "not UTF-8": "a = '\udcff'",
    "NUL": "net = '\0'", "twice": "seed=1\nseed=2",
    "yaml tag": "net: !!python/object/apply:os.system ['true']", "yaml aliases": "a: &a [x]\nb: *a",
    "json": '{"net": "mlp"}',
    "numbers": "seed = 1" + "0" * 5000, "infinite": "learning_rate = inf", "nan": "learning_rate = nan",
    "date": "seed = 1979-05-27",
    "2^63": f"batch_size = {2**63}.5", "unknown": "hook = 'os.system'", "method": "__class__ = 'os.system'",
    "own code": "net = 'evil.py:Net'",
    "own loss": "loss = 'evil.py:loss'", "own domain": "domain = 'evil.py:D'", "own task": "task = 'code/evil.py:T'",
    "own optimiser": "optimizer = 'evil.py:O'", "dotted name": "net = 'os.system'", "up": "net = '../evil'",
    "init": "init = 'evil.py:init'",
    "net of a package": "net = 'lamina.nets.mlp'", "dunder": "net = '__init__'",
}  # fmt: skip


@pytest.mark.fault(49)
def test_hostile_recipes_are_refused_and_run_nothing(tmp_path, monkeypatch, recorded):
    monkeypatch.chdir(tmp_path)
    code = f"open({str(tmp_path / 'canary')!r}, 'w').close()\nNet = loss = D = T = O = init = None\n"
    (tmp_path / "evil.py").write_text(code)
    watch, path = hostile.Watch(), tmp_path / "recipe.toml"
    for title, text in RECIPES.items():
        hostile.write(
            path,
            ("source = 'iris'\n" * ("yaml" not in title and "json" not in title) + text).encode(
                "utf-8", "surrogateescape"
            ),
        )
        error = watch(lambda: lamina.train(None, recipe=path, quiet=True, epochs=1, baselines=False), title)
        assert isinstance(error, UsageError) and len(str(error)) < 20_000, title
        assert not (tmp_path / "canary").exists(), title
    assert watch.crashes == [] and watch.taken == 0 and watch.megabytes() < 100
    recorded(files=watch.refused, executed=0, crashes=0, megabytes=watch.megabytes(), slowest_s=round(watch.slowest, 2))


@pytest.mark.fault(49)
def test_code_runs_when_the_user_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self): super().__init__(4, 3)\n"
    )
    (tmp_path / "recipe.toml").write_text("source = 'iris'\nnet = 'my.py:Net'\nepochs = 1\nbaselines = false\n")
    with pytest.raises(
        UsageError, match=r"recipe\.toml has net = my\.py:Net: code is run only when you name it"
    ) as caught:
        lamina.train(None, recipe="recipe.toml", quiet=True)
    assert caught.value.fix == "--net my.py:Net"
    assert lamina.train(None, recipe="recipe.toml", net="my.py:Net", quiet=True, report=False).facts["net"]["own"]


@pytest.mark.fault(49)
def test_nothing_in_a_recipe_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("LAMINA_SECRET", "iris")
    for source in ("$LAMINA_SECRET", "${LAMINA_SECRET}", "%LAMINA_SECRET%", "`echo iris`", "$(echo iris)", "{{7*7}}"):
        (tmp_path / "recipe.toml").write_text(f"source = '{source}'\n")
        with pytest.raises(UsageError, match=r"There is no file|No file fits") as caught:
            lamina.train(None, recipe=tmp_path / "recipe.toml", runs=tmp_path / "runs", quiet=True)
        assert source in str(caught.value)


@pytest.mark.fault(49)
@pytest.mark.parametrize(
    "name", ["../up", "/abs", "a/b", "..", ".", "", "a\0b", "a\nb", "\x1b[31m", "x" * 300, "a\\b", "C:x"]
)
def test_the_name_of_a_run_is_no_path(tmp_path, name):
    with pytest.raises(UsageError, match="name is"):
        lamina.train("iris", name=name, runs=tmp_path / "runs", epochs=1, quiet=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"] and list((tmp_path / "runs").iterdir()) == []


# --- Arrays, and formats that carry code ------------------------------------------------------------------------------


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode("latin1").ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def npz(**arrays: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)
    return out.getvalue()


def of(shape: Any, kind: str = "<f4") -> str:
    return str({"descr": kind, "fortran_order": False, "shape": shape})


def arrays(canary: Path) -> dict[str, bytes]:
    pickled = hostile.tricks("os", "mkdir", (str(canary),))["reduce"]
    y = npy(of((2,), "<i8"), bytes(16))
    return {
        "objects": npz(x=npy(of((1,), "|O"), pickled), y=y), "objects within": npz(x=npy(of((1,),
        "[('a', '|O')]"), pickled), y=y),
        "2^62": npz(x=npy(of((2**62, 4))), y=y), "2^63": npz(x=npy(of((2**63,))), y=y),
        "10^11": npz(x=npy(of((10**11,))), y=y),
        "negative": npz(x=npy(of((-1,))), y=y), "short": npz(x=npy(of((2, 1000)), bytes(8)), y=y),
        "code": npz(x=npy(f"__import__('os').mkdir({str(canary)!r})"), y=y), "deep": npz(x=npy("(" * 110), y=y),
        "zip of pickle": npz(x=pickled, y=y), "pickle": pickled, "joblib": hostile.containers(pickled)["joblib"],
        "empty zip": npz(), "cut": npz(x=npy(of((2, 2)), bytes(16)), y=y)[:-30], "torch": hostile.in_zip(pickled),
    }  # fmt: skip


@pytest.mark.fault(46, 47)
def test_hostile_arrays_are_refused(tmp_path, recorded):
    canary, watch = tmp_path / "canary", hostile.Watch()
    for title, content in arrays(canary).items():
        path = hostile.write(tmp_path / "data.npz", content)
        error = watch(lambda path=path: lamina.train(path, runs=tmp_path / "runs", epochs=1, quiet=True), title)
        assert isinstance(error, (DataError, UsageError)) and not canary.exists(), title
    assert watch.crashes == [] and watch.taken == 0 and watch.megabytes() < 100
    recorded(files=watch.refused, executed=0, crashes=0, megabytes=watch.megabytes())


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    "name",
    ["net.onnx", "net.pt2", "net.so", "net.dll", "net.pkl", "net.joblib", "net.h5", "net.keras", "net.npy", "net"],
)
def test_formats_that_carry_code_or_other_files_are_not_opened(tmp_path, name):
    path = hostile.write(tmp_path / name, hostile.in_zip(b"\x80\x02}."))
    with pytest.raises(UsageError, match=r"expected|Expected: a file ending in \.safetensors"):
        weights.read_weights(path)


# --- Run folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return lamina.train(
        "iris", runs=tmp_path_factory.mktemp("runs"), epochs=2, quiet=True, baselines=False, report=False
    ).folder


def use(folder: Path) -> None:
    """All that reads what a run folder says."""
    run = load(folder)
    for read in (lambda: run.headline, lambda: run.history, lambda: run.scores, lambda: repr(run), lambda: run.recipe):
        read()
    run.predict(np.zeros((3, 4), "float32"))
    run.evaluate()
    if (newest := state.newest(folder / "checkpoints", lambda words: None)) is not None:
        state.read(newest)


@pytest.mark.fault(46)
@pytest.mark.parametrize("what", ["net", "loss", "optimizer", "domain", "task"])
def test_a_run_folder_runs_no_code(tmp_path, trained, what):
    folder, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(trained, folder)
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Net: pass\n")
    evil = {
        "own": True,
        "name": f"{folder}/evil.py:Net",
        "class": "Net",
        "file": f"{folder}/evil.py; rm -rf ~",
        "sha256": "",
    }
    place = folder / ("data.json" if what in ("domain", "task") else "run.json")
    found = json.loads(place.read_text())
    found[what] = {**found.get(what, {}), **evil} if isinstance(found.get(what), dict) else evil
    place.write_text(json.dumps({**found, "status": "stopped"} if place.name == "run.json" else found))
    if place.name == "data.json":
        facts = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**facts, "status": "stopped"}))
    text = (folder / "recipe.toml").read_text().splitlines()
    text = [line for line in text if not line.startswith(f"{what} =")]
    (folder / "recipe.toml").write_text("\n".join([f"{what} = '{folder}/evil.py:Net'", *text]))
    (folder / "weights.safetensors").unlink()
    acts = [lambda: use(folder), lambda: lamina.load(folder).net, lambda: lamina.resume(folder, quiet=True),
            lambda: lamina.train(None, recipe=folder / "recipe.toml", runs=tmp_path / "runs", quiet=True)]  # fmt: skip
    for act in acts:
        if what in ("loss", "optimizer") and act in acts[:2]:
            act()  # which needs neither
            continue
        with pytest.raises(LaminaError, match="only when you name it") as caught:
            act()
        assert not canary.exists()
        assert "; rm -rf ~" not in caught.value.fix or "'" in caught.value.fix  # what can be copied is quoted


ODD = [
    None,
    -1,
    2**63,
    10**400,
    1e308,
    "",
    "x" * 10_000,
    "../../etc/passwd",
    "evil.py:Net",
    [],
    {},
    True,
    [[[]]],
    {"own": True},
    0,
    "nan",
]


def changed(draw: random.Random, value: Any) -> Any:
    """A JSON value with one place of it replaced by something nobody wrote."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {name: entry for name, entry in value.items() if name != key}
        return {**value, key: changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], changed(draw, value[at]), *value[at + 1 :]]
    return draw.choice(ODD)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every place of a JSON value; of a list to its first three."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    if isinstance(value, list):
        for k in range(min(3, len(value))):
            yield from places(value[k], (*at, k))


def put(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The same tree with another value at a place."""
    if not at:
        return value
    whole = copy.copy(tree)
    whole[at[0]] = put(tree[at[0]], at[1:], value)
    return whole


@pytest.mark.fault(47)
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_at_every_place_of_a_run_folder_may_stand_anything(tmp_path, trained, counted, recorded):
    folder, watch, draw = tmp_path / "run", hostile.Watch(), random.Random(50)
    shutil.copytree(trained, folder)
    for name in ("run.json", "data.json", "scores.json"):
        sound = (folder / name).read_text()
        tree = json.loads(sound)
        for at in places(tree):
            for odd in draw.sample(ODD, counted(1, len(ODD))):
                (folder / name).write_text(json.dumps(put(tree, at, odd)))
                watch(lambda: use(folder), f"{name} {'.'.join(map(str, at))} = {str(odd)[:40]!r}")
        (folder / name).write_text(sound)
    assert watch.crashes == []
    use(folder)
    recorded(places=watch.taken + watch.refused, refused=watch.refused, crashes=0, megabytes=watch.megabytes())


@pytest.mark.fault(47, 49)
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_changed_run_folders_are_used_or_refused(tmp_path, trained, counted, recorded):
    folder, watch = tmp_path / "run", hostile.Watch()
    names = [
        "run.json",
        "data.json",
        "scores.json",
        "recipe.toml",
        "splits.csv",
        "history.jsonl",
        "weights.safetensors",
    ]
    for draw in hostile.until(counted(2, 120), seed=49):
        shutil.copytree(trained, folder)
        place = folder / draw.choice(names)
        sound = place.read_bytes()
        if place.suffix == ".json" and draw.random() < 0.8:
            place.write_text(json.dumps(changed(draw, json.loads(sound))))
        else:
            place.write_bytes(hostile.mutated(draw, [sound]))
        watch(lambda: use(folder), place.name)
        shutil.rmtree(folder)
    for crash in sorted(set(watch.crashes)):
        print(crash)
    assert watch.crashes == []
    recorded(folders=watch.taken + watch.refused, refused=watch.refused, crashes=0, megabytes=watch.megabytes())


@pytest.mark.fault(47)
@pytest.mark.timeout(900)
def test_changed_safetensors_json_and_recipes_are_refused_in_words(tmp_path, trained, counted, recorded):
    out = tmp_path / "net.safetensors"
    weights.save_weights(torch.nn.Linear(3, 2), out)
    kinds: list[tuple[list[bytes], Callable[[Path], Any]]] = [
        ([SOUND, out.read_bytes(), *(c for c in SAFETENSORS.values() if len(c) < 5000)], foreign.read_safetensors),
        ([(trained / "run.json").read_bytes(), *(c for c in JSONS.values() if len(c) < 5000)], read_json),
        ([(trained / "recipe.toml").read_bytes()], lambda path: recipe.make(**recipe.read(path))),
    ]
    watch = hostile.Watch()
    for draw in hostile.until(counted(1, 150), seed=47):
        seeds, act = draw.choice(kinds)
        path = hostile.write(tmp_path / "file", hostile.mutated(draw, seeds))
        watch(lambda act=act, path=path: act(path), act.__name__)
    assert watch.crashes == [] and watch.megabytes() < 100
    recorded(
        files=watch.taken + watch.refused, crashes=0, megabytes=watch.megabytes(), slowest_s=round(watch.slowest, 2)
    )


@pytest.mark.fault(47)
def test_a_forged_checkpoint_that_verifies_is_refused(tmp_path):
    good = {"weights.safetensors": SOUND, "state.safetensors": SOUND, "state.json": b'{"a": {"$tensor": "a"}}'}
    files.commit(tmp_path / "step-1", good, {"step": 1, "epoch": 0, "batch": 0})
    assert torch.equal(state.read(tmp_path / "step-1")[1]["a"], torch.zeros(2))
    trees = [b'{"a": {"$tensor": "z"}}', b'{"a": {"$array": 3}}', b'{"$tuple": 3}', b'{"$dict": [3]}',
             b'{"$float": "x"}', b'{"$complex": "z"}']  # fmt: skip
    forged = {"weights.safetensors": list(SAFETENSORS.values()), "state.json": [*JSONS.values(), *trees]}
    k = 1
    for name, contents in forged.items():
        for content in contents:
            k += 1
            files.commit(tmp_path / f"step-{k}", {**good, name: content}, {"step": k, "epoch": 0, "batch": 0})
            if content in (SAFETENSORS["name twice"], SAFETENSORS["many names"]):
                continue  # the same bytes under the same name; sound, if long
            if content in (JSONS["many"], JSONS["many numbers"], JSONS["large"]):
                continue  # no longer than a long history
            with pytest.raises(RunError, match=f"step-{k}"):
                state.read(tmp_path / f"step-{k}")
