"""Picture files: what each kind decodes to, what cannot be read, and the cache of decoded columns."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from lamina import files, mapped, pictures
from lamina.errors import ResourceError
from lamina.pictures import Form

RNG = np.random.default_rng(0)
COLOUR = Form(3, 16, 16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictures"


def halves(left, right, size=(16, 16), mode="RGB"):
    """A picture whose left half is one colour and whose right half is another."""
    picture = Pillow.new(mode, size, left)
    picture.paste(Pillow.new(mode, (size[0] // 2, size[1]), right), (size[0] // 2, 0))
    return picture


def saved(picture, place, **options):
    place.parent.mkdir(parents=True, exist_ok=True)
    picture.save(place, **options)
    return str(place)


def noise(size=(20, 14), mode="RGB"):
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    return Pillow.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode)


# --- What each kind decodes to ----------------------------------------------------------------------------------------


def corners(table):
    """The colours of the middle of the left and of the right half: (C,), (C,)."""
    _, height, width = table.shape
    return table[:, height // 2, 2].tolist(), table[:, height // 2, width - 3].tolist()


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "webp", "ppm", "tiff"])
def test_a_lossless_picture_of_the_columns_size_is_kept_to_the_byte(tmp_path, ending):
    picture = halves((200, 10, 60), (0, 90, 250))
    place = saved(picture, tmp_path / f"a.{ending}", **({"lossless": True} if ending == "webp" else {}))
    assert np.array_equal(pictures.open_picture(place, COLOUR), np.asarray(picture).transpose(2, 0, 1))


def test_a_picture_is_resized_as_pillow_does_it(tmp_path):
    picture = noise((40, 30))
    place = saved(picture, tmp_path / "a.png")
    expected = np.asarray(picture.resize((12, 10), Pillow.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(pictures.open_picture(place, Form(3, 10, 12)), expected)


def test_a_large_jpeg_decoded_at_a_part_of_its_size_looks_the_same(tmp_path):
    smooth = Pillow.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((480, 360), Pillow.BICUBIC)
    place = saved(smooth, tmp_path / "a.jpg", quality=95)
    expected = np.asarray(smooth.resize((32, 32), Pillow.BILINEAR)).transpose(2, 0, 1).astype(int)
    assert np.abs(pictures.open_picture(place, Form(3, 32, 32)).astype(int) - expected).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, orientation):
    """The inverse of what a camera does: stored turned, with the number that says how."""
    from PIL import ImageOps

    upright = Pillow.fromarray(RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    place = saved(upright, tmp_path / "a.png", exif=exif)
    turned = ImageOps.exif_transpose(Pillow.open(place))
    form = Form(3, turned.height, turned.width)
    assert np.array_equal(pictures.open_picture(place, form), np.asarray(turned).transpose(2, 0, 1))
    assert pictures.look([place]).sizes.tolist() == [[turned.width, turned.height]]


def test_grey_of_16_bits_is_scaled_by_its_depth(tmp_path):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(8, 0)
    for ending in ("png", "tiff", "pgm"):
        picture = Pillow.fromarray(ramp if ending != "pgm" else ramp.astype(np.int32))
        place = saved(picture, tmp_path / f"a.{ending}")
        found = pictures.open_picture(place, Form(1, 8, 256))[0, 0]
        assert np.abs(found.astype(int) - np.arange(256)).max() <= 1, ending


def test_fractions_are_taken_from_0_to_1_or_to_255_and_refused_beyond(tmp_path):
    fractions = np.array([[0, 0.5, 1, 0.25]] * 4, np.float32)
    for by in (1, 255):
        place = saved(Pillow.fromarray(fractions * np.float32(by)), tmp_path / f"{by}.tiff")
        assert pictures.open_picture(place, Form(1, 4, 4))[0, 0].tolist() == [0, 128, 255, 64]
    for wrong in (-1.0, 1e6, np.nan):
        table = fractions.copy()
        table[0, 0] = wrong
        with pytest.raises(pictures.Unreadable, match="its grey goes from"):
            pictures.open_picture(saved(Pillow.fromarray(table), tmp_path / "wrong.tiff"), Form(1, 4, 4))


def test_what_is_transparent_shows_white(tmp_path):
    clear = halves((255, 0, 0, 255), (9, 9, 9, 0), mode="RGBA")
    assert corners(pictures.open_picture(saved(clear, tmp_path / "a.png"), COLOUR)) == ([255, 0, 0], [255, 255, 255])
    half = halves((0, 0, 0, 255), (0, 0, 0, 51), mode="RGBA")  # a fifth of black over white
    assert corners(pictures.open_picture(saved(half, tmp_path / "b.png"), COLOUR))[1] == [204, 204, 204]
    palette = halves((255, 0, 0), (0, 0, 255)).quantize(2)
    place = saved(palette, tmp_path / "c.png", transparency=palette.getpixel((15, 0)))
    assert corners(pictures.open_picture(place, COLOUR)) == ([255, 0, 0], [255, 255, 255])
    place = saved(halves((255, 0, 0), (0, 0, 255)), tmp_path / "d.png", transparency=(0, 0, 255))
    assert corners(pictures.open_picture(place, COLOUR)) == ([255, 0, 0], [255, 255, 255])
    grey = Pillow.merge("LA", [Pillow.new("L", (16, 16), 0), Pillow.new("L", (16, 16), 0)])
    assert (pictures.open_picture(saved(grey, tmp_path / "e.png"), Form(1, 16, 16)) == 255).all()


def test_opacity_is_kept_where_training_had_it(tmp_path):
    picture = halves((255, 0, 0, 255), (9, 9, 9, 0), mode="RGBA")
    found = pictures.open_picture(saved(picture, tmp_path / "a.png"), Form(4, 16, 16))
    assert corners(found) == ([255, 0, 0, 255], [9, 9, 9, 0])


def test_cmyk_and_black_and_white_become_what_pillow_makes_of_them(tmp_path):
    picture = halves((200, 10, 60), (0, 90, 250), (32, 32)).convert("CMYK")
    place = saved(picture, tmp_path / "a.jpg", quality=100, subsampling=0)
    with Pillow.open(place) as opened:
        expected = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(pictures.open_picture(place, Form(3, 32, 32)), expected)
    place = saved(halves(0, 1, mode="1"), tmp_path / "b.png")
    assert corners(pictures.open_picture(place, Form(1, 16, 16))) == ([0], [255])


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Pillow.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    place = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert corners(pictures.open_picture(place, COLOUR)) == ([255, 0, 0], [255, 0, 0])


def test_a_picture_is_what_its_content_says(tmp_path):
    saved(Pillow.new("RGB", (16, 16), "red"), tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert corners(pictures.open_picture(tmp_path / "a.png", COLOUR))[0] == [254, 0, 0]
    assert pictures.is_picture(tmp_path / "a.png")


# --- What cannot be read ----------------------------------------------------------------------------------------------


def bomb(side):
    """A grey PNG of side x side pixels, as far as its header goes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def broken(tmp_path):
    """Files that are no good pictures, by name, with a word of the reason."""
    whole = Path(saved(noise((64, 64)), tmp_path / "whole.jpg")).read_bytes()
    contents = {
        "cut.jpg": (whole[: len(whole) // 2], "cut off"),
        "empty.png": (b"", "an empty file"),
        "text.jpg": (b"not a picture at all\n" * 9, "not a picture"),
        "bomb.png": (bomb(30_000), "million"),
        "less.png": (bomb(10_000), "10,000 x 10,000 pixels"),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a picture"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "whole.jpg").unlink()
    told = {name: reason for name, (_, reason) in contents.items()}
    return {**told, "gone.png": "No such file", "folder.png": "Is a directory"}


def test_what_cannot_be_read_is_left_out_with_its_reason(tmp_path, broken):
    good = [saved(Pillow.new("RGB", (16, 16), (k, 0, 0)), tmp_path / f"good{k}.png") for k in range(3)]
    paths = [good[0], *(str(tmp_path / name) for name in broken), good[1], good[2]]
    for _ in range(2):  # from the cache as well
        found = pictures.decode(paths, COLOUR)
        assert found.column[:, 0, 0, 0].tolist() == [0, 1, 2]
        assert found.rows.tolist() == [0, len(paths) - 2, len(paths) - 1]
        assert [Path(paths[row]).name for row in found.bad] == list(broken)
        for name, why in zip(broken, found.bad.values(), strict=True):
            assert broken[name] in why, (name, why)
    assert found.reused


def test_a_bomb_is_refused_with_flat_memory(tmp_path):
    """Its pixels, were they decoded, would take 900 MB."""
    (tmp_path / "bomb.png").write_bytes(bomb(30_000))
    script = f"""
import resource
from lamina import pictures
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = pictures.decode([{str(tmp_path / "bomb.png")!r}], pictures.Form(3, 16, 16))
assert len(found.bad) == 1 and not len(found.column)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) * (1024 if resource.RUSAGE_SELF == 0 else 1) < 64 << 20


def test_tiny_pictures_are_told(tmp_path):
    paths = [saved(noise((1, 1)), tmp_path / "one.png"), saved(noise((40, 40)), tmp_path / "good.png")]
    assert pictures.decode(paths, COLOUR).tiny == {0: "1x1"}


# --- The form of a column ---------------------------------------------------------------------------------------------


def seen(*sizes, grey=False):
    return pictures.Look(np.array(sizes), grey)


@pytest.mark.parametrize(
    ("look", "count", "form"),
    [
        (seen(*[(32, 32)] * 9), 50_000, Form(3, 32, 32)),  # small pictures of one size keep it
        (seen(*[(28, 28)] * 9, grey=True), 60_000, Form(1, 28, 28)),
        (seen(*[(48, 64)] * 9), 100, Form(3, 64, 48)),
        (seen((300, 200), (200, 300), (320, 240)), 450, Form(3, 96, 96)),  # photographs are squares
        (seen((300, 200), (200, 300), (320, 240)), 1_000_000, Form(3, 64, 64)),
        (seen((40, 41), (44, 39), (40, 40)), 450, Form(3, 40, 40)),  # nothing is enlarged
        (seen(*[(92, 112)] * 9, grey=True), 400, Form(1, 106, 87)),  # of one shape: it is kept, with the area
    ],
)
def test_the_form_follows_from_sizes_and_count(look, count, form):
    assert pictures.choose(look, count)[0] == form


def test_a_size_that_was_asked_for_is_taken():
    assert pictures.choose(seen((300, 200), (90, 80)), 450, 50)[0] == Form(3, 50, 50)
    assert pictures.choose(seen(*[(32, 32)] * 3), 9, 16)[0] == Form(3, 16, 16)


def test_grey_pictures_stored_as_colour_have_one_channel(tmp_path):
    paths = [saved(noise(mode="L").convert("RGB"), tmp_path / f"{k}.png") for k in range(20)]
    look = pictures.look(paths)
    assert look.grey
    for reused in (False, True):
        found = pictures.decode(paths)
        assert found.form == Form(1, 14, 20) and (found.why, found.reused) == ("all are 20x14", reused)
        assert np.array_equal(found.column[3, 0], np.asarray(Pillow.open(paths[3]))[..., 0])
    assert pictures.decode(paths, size=9).form == Form(1, 8, 11)


def test_one_coloured_picture_that_was_not_looked_at_brings_the_colours_back(tmp_path):
    paths = [saved(noise(mode="L"), tmp_path / f"{k}.png") for k in range(20)]
    paths[13] = saved(halves((255, 0, 0), (255, 0, 0)), tmp_path / "red.png")
    assert pictures.look(paths).grey  # a sample of them
    found = pictures.decode(paths, size=16)
    assert found.column.shape == (20, 3, 16, 16) and found.column[13, :, 0, 0].tolist() == [255, 0, 0]
    assert pictures.decode(paths, Form(1, 16, 16)).column.shape == (20, 1, 16, 16)  # as it was in training


# --- The cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path):
    return [saved(noise(), tmp_path / "in" / f"{k}.png") for k in range(9)]


def test_a_second_time_nothing_is_decoded(paths, monkeypatch):
    first = pictures.decode(paths, COLOUR)
    assert not first.reused and first.place is not None
    monkeypatch.setattr(pictures, "_brought", None)
    again = pictures.decode(paths, COLOUR)
    assert again.reused and again.place == first.place and np.array_equal(again.column, first.column)


@pytest.mark.parametrize("change", ["content", "another", "fewer", "form", "order"])
def test_a_change_is_noticed(paths, change):
    first = pictures.decode(paths, COLOUR)
    form = COLOUR
    if change == "content":
        saved(noise(), Path(paths[4]))
        os.utime(paths[4], ns=(1, 1))
    elif change == "another":
        paths.append(saved(noise(), Path(paths[0]).parent / "more.png"))
    elif change == "fewer":
        os.unlink(paths[4])
    elif change == "form":
        form = Form(1, 16, 16)
    else:
        paths.reverse()
    again = pictures.decode(paths, form)
    assert not again.reused and again.place != first.place
    for row, path in enumerate(paths):
        if row in again.rows:
            found = again.column[again.rows.tolist().index(row)]
            assert np.array_equal(found, pictures.open_picture(path, form))


@pytest.mark.parametrize("damage", ["a bit", "shorter", "manifest", "no column", "numbers"])
def test_a_damaged_entry_is_made_again(paths, damage):
    first = pictures.decode(paths, COLOUR)
    place = first.place / "column"
    if damage == "a bit":
        content = bytearray(place.read_bytes())
        content[1000] ^= 1
        place.write_bytes(content)
    elif damage == "shorter":
        place.write_bytes(place.read_bytes()[:-1])
    elif damage == "no column":
        place.unlink()
    elif damage == "manifest":
        (first.place / files.MANIFEST).write_text("{}")
    else:  # one that verifies and says something else
        files.commit(first.place, {"column": place.read_bytes()}, {"pictures": {"shape": [3, 3], "paths": "nine"}})
    again = pictures.decode(paths, COLOUR)
    assert not again.reused and np.array_equal(again.column, first.column)
    assert pictures.decode(paths, COLOUR).reused


def test_above_memory_the_column_lies_on_the_disk(paths):
    plain = pictures.decode(paths, COLOUR).column
    for keep in (False, True):  # decoded anew, and from the cache
        with mapped.limited(1000):
            found = pictures.decode(paths, COLOUR, keep=keep)
            assert found.reused == keep and mapped.is_mapped(found.column) and np.array_equal(found.column, plain)
    assert not mapped.is_mapped(plain)


def test_the_entries_longest_unused_give_way(paths, cache, monkeypatch):
    size = 9 * 3 * 16 * 16
    monkeypatch.setattr(pictures, "MOST_CACHED", int(2.9 * size))  # two entries fit, with their manifests
    forms = [Form(3, 16, 15), Form(3, 15, 16), COLOUR]
    places = []
    for age, form in enumerate(forms[:2]):
        places.append(pictures.decode(paths, form).place)
        os.utime(places[-1], (age + 1, age + 1))
    assert pictures.decode(paths, forms[0]).reused  # the older one is used again
    assert pictures.decode(paths, forms[2]).place.is_dir()
    assert places[0].is_dir() and not places[1].exists()


def test_what_a_killed_process_left_is_cleared_after_a_day(paths, cache):
    for name, age in ((".tmp-1-old", 2 * 86_400), (".tmp-2-young", 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age, time.time() - age))
    pictures.decode(paths, COLOUR)
    assert not (cache / ".tmp-1-old").exists() and (cache / ".tmp-2-young").exists()


def test_where_the_cache_cannot_be_written_the_pictures_are_there_all_the_same(paths, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LAMINA_CACHE", str(tmp_path / "file"))
    found = pictures.decode(paths, COLOUR)
    assert len(found.column) == 9 and found.place is None and found.note
    monkeypatch.setenv("LAMINA_CACHE", "off")
    found = pictures.decode(paths, COLOUR)
    assert len(found.column) == 9 and found.place is None and not found.note


# --- Many -------------------------------------------------------------------------------------------------------------


def test_processes_threads_and_one_by_one_give_the_same(tmp_path, monkeypatch):
    paths = [saved(noise((24, 18)), tmp_path / f"{k}.png") for k in range(40)]
    (tmp_path / "7.png").write_bytes(b"")
    monkeypatch.setattr(pictures, "cores", lambda: 2)
    expected = np.stack([pictures.open_picture(path, COLOUR) for k, path in enumerate(paths) if k != 7])
    for least in (1, 1000):  # processes, threads
        monkeypatch.setattr(pictures, "_PROCESSES", least)
        found = pictures.decode(paths, COLOUR, keep=False)
        assert np.array_equal(found.column, expected) and found.bad == {7: "an empty file"}


def test_a_process_that_is_killed_is_told(tmp_path, monkeypatch):
    paths = [saved(noise(), tmp_path / f"{k}.png") for k in range(8)]
    monkeypatch.setattr(pictures, "cores", lambda: 2)
    monkeypatch.setattr(pictures, "_PROCESSES", 1)
    monkeypatch.setattr(pictures, "_brought", lambda picture, form: os._exit(1))
    with pytest.raises(ResourceError, match="8 pictures was ended"):
        pictures.decode(paths, COLOUR)


def test_the_manifest_tells_what_an_entry_holds(paths):
    place = pictures.decode([*paths, "gone.png"], COLOUR).place
    told = json.loads((place / files.MANIFEST).read_text().partition("\n")[2])["pictures"]
    assert told["shape"] == [9, 3, 16, 16] and told["paths"] == 10 and list(told["bad"]) == ["9"]
