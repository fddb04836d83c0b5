"""The image domain: files that become pictures, what is told about them, and what it would have for them."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from test_pictures import bomb, halves, noise, saved

import lamina
from lamina import mapped, pictures
from lamina.domains.image import Image
from lamina.errors import DataError, RunError
from lamina.recipe import Recipe
from lamina.sources import Examples, Source
from lamina.targets.classes import Classes
from lamina.targets.numbers import Numbers

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))


def listed(folder, **more):
    """Examples as a source lists them: the files of a folder, one class a folder within."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    labels = sorted({file.parent.name for file in files})
    column = np.empty(len(files), object)
    column[:] = [str(file) for file in files]
    ids = np.array([str(file.relative_to(folder)) for file in files], object)
    truth = np.array([labels.index(file.parent.name) for file in files])
    return Examples((column,), truth, kind="files", ids=ids, labels=labels, **more)


@pytest.fixture
def folder(tmp_path):
    """Two classes with everything that folders of pictures have in them: 20 pictures, 3 of them broken."""
    place = tmp_path / "in"
    for kind, colour in (("butterfly", (200, 60, 60)), ("watch", (60, 60, 200))):
        for k in range(6):
            picture = Pillow.fromarray(RNG.integers(0, 60, (48, 64, 3), dtype=np.uint8) + np.uint8(colour))
            saved(picture, place / kind / f"good_{k}.jpg", quality=95)
    whole = (place / "butterfly" / "good_0.jpg").read_bytes()
    (place / "butterfly" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (place / "butterfly" / "zero_bytes.jpg").write_bytes(b"")
    (place / "butterfly" / "text_named.jpg").write_bytes(b"no picture\n" * 20)
    saved(noise((1, 1)), place / "butterfly" / "one_by_one.png")
    saved(halves((255, 0, 0, 255), (0, 0, 0, 0), (64, 48), "RGBA"), place / "watch" / "rgba.png")
    saved(noise((64, 48)).convert("CMYK"), place / "watch" / "cmyk.jpg")
    exif = Pillow.Exif()
    exif[0x0112] = 6
    saved(noise((48, 64)), place / "watch" / "turned.jpg", exif=exif)
    saved(noise((64, 48), "L"), place / "watch" / "grey.jpg")
    return place


def kinds(source):
    return {finding.kind: finding for finding in source.findings}


def test_files_become_pictures_and_their_rows_stay_together(folder):
    examples = listed(folder, groups=np.arange(20), times=np.arange(20) * 10)
    taken = Image().take(Source("in", examples)).train
    assert taken.kind == "pictures" and taken.inputs[0].dtype == np.uint8
    assert len(taken.inputs[0]) == len(taken.truth) == len(taken.ids) == len(taken.groups) == len(taken.times) == 17
    broken = {"butterfly/truncated.jpg", "butterfly/zero_bytes.jpg", "butterfly/text_named.jpg"}
    assert set(taken.ids) == set(examples.ids) - broken
    for row, name in enumerate(taken.ids):
        k = examples.ids.tolist().index(name)
        assert (taken.groups[row], taken.times[row], taken.truth[row]) == (k, 10 * k, examples.truth[k])
        form = pictures.Form(*taken.inputs[0].shape[1:])
        assert np.array_equal(taken.inputs[0][row], pictures.open_picture(folder / name, form))


def test_one_finding_lists_what_cannot_be_read(folder):
    found = kinds(Image().take(Source("in", listed(folder))))
    told = found["unreadable"]
    assert (told.severity, told.count) == ("warning", 3) and "3 of 20 pictures cannot be read" in told.what
    assert "butterfly/truncated.jpg (cut off: it ends too early)" in told.examples
    assert "butterfly/zero_bytes.jpg (an empty file)" in told.examples and "--strict" in told.fix
    assert found["tiny_pictures"].examples == ["butterfly/one_by_one.png (1x1)"]
    assert found["picture_size"].severity == "note" and "in colour" in found["picture_size"].what


def test_sound_pictures_are_taken_without_a_warning(tmp_path):
    for k in range(6):
        saved(noise((64, 48)), tmp_path / "in" / "ab"[k % 2] / f"{k}.png")
    found = Image().take(Source("in", listed(tmp_path / "in"))).findings
    assert [finding.severity for finding in found] == ["note"]


def test_too_many_that_cannot_be_read_are_refused_by_name(folder):
    with pytest.raises(DataError, match="3 of 20 pictures cannot be read") as refused:
        Image(unreadable=0.0).take(Source("in", listed(folder)))  # as --strict has it
    assert "zero_bytes.jpg" in str(refused.value) and "--strict" in str(refused.value)
    (folder / "butterfly" / "good_1.jpg").write_bytes(b"")
    (folder / "butterfly" / "good_2.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="at most 20%"):
        Image().take(Source("in", listed(folder)))


def test_a_bomb_is_named_and_never_decoded(tmp_path):
    for k in range(6):
        saved(noise((64, 48)), tmp_path / "in" / "ab"[k % 2] / f"{k}.png")
    (tmp_path / "in" / "a" / "bomb.png").write_bytes(bomb(30_000))
    taken = Image().take(Source("in", listed(tmp_path / "in")))
    assert len(taken.train.inputs[0]) == 6
    assert kinds(taken)["unreadable"].examples == ["a/bomb.png (more than 80 million pixels)"]


def test_test_pictures_are_brought_to_the_form_of_training(tmp_path):
    for k in range(6):
        saved(noise((40, 40), "L"), tmp_path / "in" / "ab"[k % 2] / f"{k}.png")
        saved(noise((90, 50)), tmp_path / "test" / "ab"[k % 2] / f"{k}.png")
    source = Source("in", listed(tmp_path / "in"), test=listed(tmp_path / "test"))
    domain = Image()
    taken = domain.take(source)
    assert taken.train.inputs[0].shape == (6, 1, 40, 40) == taken.test.inputs[0].shape
    domain.fit(taken.train.inputs, np.arange(6))
    again = Image(**domain.state()).take(Source("other", listed(tmp_path / "test")))
    assert np.array_equal(again.train.inputs[0], taken.test.inputs[0])


def test_a_size_that_was_asked_for_is_taken(folder):
    taken = Image(size=24).take(Source("in", listed(folder)))
    assert taken.train.inputs[0].shape[1:] == (3, 24, 24)


def test_arrays_stay_as_they_are():
    source = Source("x", Examples((RNG.integers(0, 256, (9, 3, 40, 40), dtype=np.uint8),), np.arange(9), "pictures"))
    assert Image().take(source) is source


# --- Prediction -------------------------------------------------------------------------------------------------------


def trained(folder):
    domain = Image()
    taken = domain.take(Source("in", listed(folder))).train
    domain.fit(taken.inputs, np.arange(len(taken.inputs[0])))
    return domain, taken


def test_prediction_decodes_as_training_did(folder):
    domain, taken = trained(folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        inputs, ids = domain.open_inputs(str(folder))
    assert "3 of 20 pictures cannot be read and have no prediction" in str(told[0].message)
    assert "zero_bytes.jpg (an empty file)" in str(told[0].message)
    assert ids == [str(folder / name) for name in taken.ids]
    assert torch.equal(domain.encode(inputs)[0], torch.from_numpy(taken.inputs[0]))
    assert np.array_equal(domain.encode(([ids[3], ids[0]],))[0].numpy(), taken.inputs[0][[3, 0]])  # paths, from Python


def test_a_list_names_pictures_beside_it(folder):
    domain, _ = trained(folder)
    (folder / "some.txt").write_text("watch/rgba.png\n\nbutterfly/good_3.jpg\n")
    inputs, ids = domain.open_inputs(str(folder / "some.txt"))
    assert ids == [str(folder / "watch/rgba.png"), str(folder / "butterfly/good_3.jpg")]
    assert inputs[0].shape[0] == 2


def test_a_picture_under_any_name_is_predicted(folder):
    domain, _ = trained(folder)
    (folder / "butterfly" / "good_0.jpg").rename(folder / "picture.dat")
    assert domain.open_inputs(str(folder / "picture.dat"))[1] == [str(folder / "picture.dat")]


# --- What it would have -----------------------------------------------------------------------------------------------


def asked(**settings):
    return Recipe(**settings)


def photographs(n=60, side=96, channels=3, labels=("cat", "dog")):
    x = RNG.integers(60, 200, (n, channels, side, side), dtype=np.uint8)
    return Examples((x,), np.arange(n) % 2, "pictures", labels=list(labels) if labels else None)


def writing(n=60, side=48, channels=1, labels=None):
    x = np.where(RNG.random((n, channels, side, side)) < 0.2, 255, 0).astype(np.uint8)
    return Examples((x,), np.arange(n) % 2, "pictures", labels=labels)


def named(examples, names):
    """As folders give them: the answers are the names."""
    examples.truth = np.array(names)[examples.truth]
    return examples


@pytest.mark.parametrize(
    ("examples", "target", "mirrored"),
    [
        (photographs(), Classes(), True),
        (photographs(channels=1), Classes(), True),
        (photographs(labels=None), Classes(), True),
        (photographs(labels="01"), Classes(), False),  # house numbers
        (named(photographs(labels=None), ["a", "b"]), Classes(), False),
        (named(photographs(labels=None), ["cat", "dog"]), Classes(), True),
        (writing(), Classes(), False),
        (writing(labels=["one", "two"]), Classes(), False),
        (photographs(), Numbers(), False),
    ],
)
def test_only_photographs_are_mirrored(examples, target, mirrored):
    found = Image().opinions(examples, target, asked())
    assert ("flip" in found["augment"][0]) == mirrored == ("net_arg" in found)


def test_what_was_asked_for_decides_on_the_mirror():
    found = Image().opinions(photographs(), Classes(), asked(augment="shift=2"))
    assert "net_arg" not in found
    found = Image().opinions(photographs(labels="01"), Classes(), asked(augment="flip"))
    assert found["net_arg"][0]["mirrored"]


def test_more_time_buys_a_larger_net_and_more_pictures_fewer_passes():
    sizes = [Image().opinions(photographs(600), Classes(), asked(budget=s))["size"][0] for s in (20, 20_000)]
    assert sizes == ["small", "large"]
    few, many = (Image().opinions(photographs(n, 32), Classes(), asked())["epochs"][0] for n in (300, 9_000))
    assert few > many > 5
    assert "epochs" not in Image().opinions(photographs(), Classes(), asked(budget=60))


def test_what_is_chosen_fits_the_optimiser():
    many, few = photographs(3_000, 32), photographs(300, 32)
    found = Image().opinions(many, Classes(), asked())
    assert found["optimizer"][0] == "sgd" and found["optimizer_arg"][0]["momentum"] == 0.9
    assert found["learning_rate"][0] == pytest.approx(0.2 * found["batch_size"][0] / 128)
    assert Image().opinions(many, Classes(), asked(batch_size=32))["learning_rate"][0] == pytest.approx(0.05)
    assert "optimizer" not in Image().opinions(few, Classes(), asked())
    for optimizer in ("adamw", "lion"):
        found = Image().opinions(many, Classes(), asked(optimizer=optimizer))
        assert "optimizer" not in found and ("learning_rate" in found) == (optimizer == "adamw")


def test_small_pictures_and_other_nets_are_left_to_the_recipe():
    assert Image().opinions(writing(side=28), Classes(), asked()) == {}
    assert Image().opinions(photographs(), Classes(), asked(net="convnet")) == {}
    assert Image().opinions(photographs(), Classes(), asked(net="my.py:Net")) == {}
    assert "net" in Image().opinions(writing(side=28), Classes(), asked(net="resnet"))


def test_simple_models_see_thumbnails():
    x = RNG.integers(0, 256, (30, 3, 48, 64), dtype=np.uint8)
    domain, rows = Image(), np.array([2, 3, 11])
    domain.fit((x,), np.arange(30))
    columns = domain.encode((x,))
    expected = x[rows].reshape(3, 3, 16, 3, 16, 4).mean((3, 5)).reshape(3, -1)
    assert domain.plain(columns, rows, "linear") == pytest.approx(expected, abs=1e-3)
    with mapped.limited(1000):
        on_disk = mapped.within(columns)
    assert mapped.is_mapped(on_disk[0]) and np.array_equal(
        domain.plain(on_disk, rows, "linear"), domain.plain(columns, rows, "")
    )
    small = RNG.integers(0, 256, (30, 1, 28, 28), dtype=np.uint8)
    assert np.array_equal(domain.plain((torch.from_numpy(small),), rows, "linear"), small[rows])


# --- From a folder to a model -----------------------------------------------------------------------------------------


@pytest.fixture
def quick():
    """Training without report and baselines, and one epoch of it."""
    return {
        "epochs": 1,
        "quiet": True,
        "report": False,
        "baselines": False,
        "domain_arg": {"size": 24},
        "net": "resnet",
        "net_arg": {"widths": [8, 16]},
        "compile": "off",
        "precision": "fp32",
    }


def test_a_folder_is_trained_on_and_predicted_from(folder, runs, quick):
    for k in range(6, 12):
        for kind in ("butterfly", "watch"):
            saved(noise((64, 48)), folder / kind / f"more_{k}.png")
    run = lamina.train(str(folder), runs=runs, **quick)
    told = json.loads((run.folder / "data.json").read_text())["findings"]
    assert [found["count"] for found in told if found["kind"] == "unreadable"] == [3]
    assert sum(run.facts["data"][part] for part in ("train", "valid", "test")) == 29
    named = [line.split(",")[0] for line in (run.folder / "predictions.csv").read_text().splitlines()[1:]]
    assert len(named) == run.headline.n and all((folder / name).is_file() for name in named)
    with pytest.warns(UserWarning, match=r"3 of 32 pictures cannot be read and have no prediction: .*zero_bytes\.jpg"):
        answers = run.predict(str(folder))
    assert len(answers.prediction) == 29
    rated = lamina.load(run.folder).evaluate()  # decoded again, or found again: the same pictures
    assert rated[0]["value"] == run.headline.value
    saved(noise((64, 48)), folder / "watch" / "good_1.jpg")
    with pytest.raises(RunError, match="not those"):
        lamina.load(run.folder).evaluate()


def test_strict_refuses_what_cannot_be_read(folder, runs, quick):
    with pytest.raises(DataError, match="3 of 20 pictures cannot be read"):
        lamina.train(str(folder), runs=runs, strict=True, **quick)
    assert not list(runs.iterdir())


def test_a_folder_of_one_class_is_refused(tmp_path, runs, quick):
    for k in range(8):
        saved(noise((64, 48)), tmp_path / "in" / "only" / f"{k}.png")
    with pytest.raises(DataError, match="one class"):
        lamina.train(str(tmp_path / "in"), runs=runs, **quick)
    assert not list(runs.iterdir())
