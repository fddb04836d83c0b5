"""Pictures and texts: near copies are found whatever was done to them, others are none, and they stay in one part."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from lamina.checks import check, copies, near, pool
from lamina.sources import Examples, Source
from lamina.splits import Split, split

COUNT = 120


def photographs(count: int = COUNT, side: int = 48, seed: int = 0) -> np.ndarray:
    """Colours that change smoothly, each picture in its own way: (N, H, W, 3) bytes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(few).resize((side, side), Image.Resampling.BICUBIC)) for few in coarse])


def again(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def pictures(column: np.ndarray, truth=None, **other) -> Source:
    return Source("planted", Examples((column,), truth, "pictures", **other))


def texts(words: list[str], truth=None) -> Source:
    column = np.empty(len(words), object)
    column[:] = words
    return Source("planted", Examples((column,), truth, "texts", ids=np.arange(1, len(words) + 1)))


def found_pairs(source: Source) -> list[list[int]]:
    return copies.find(pool.pool(source)).near.tolist()


CHANGES = {
    "saved again": lambda picture: again(picture, 30),
    "made smaller": lambda p: np.asarray(Image.fromarray(p).resize((24, 24)).resize(p.shape[1::-1])),
    "brighter": lambda p: np.asarray(ImageEnhance.Brightness(Image.fromarray(p)).enhance(1.08)),
    "less colourful": lambda p: np.asarray(ImageEnhance.Color(Image.fromarray(p)).enhance(0.5)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_picture_that_was_changed_a_little_is_near(name):
    column = photographs()
    other = np.stack([CHANGES[name](picture) for picture in column[:20]])
    assert found_pairs(pictures(np.concatenate([column, other]))) == [[k, COUNT + k] for k in range(20)]


TURNS = {
    "mirrored": lambda picture: picture[:, ::-1],
    "upside down": lambda picture: picture[::-1],
    "half a turn": lambda picture: picture[::-1, ::-1],
    "a quarter": lambda picture: np.rot90(picture),
    "three quarters": lambda picture: np.rot90(picture, 3),
    "rows for columns": lambda picture: picture.transpose(1, 0, 2),
    "a quarter, mirrored": lambda picture: np.rot90(picture)[:, ::-1],
}


@pytest.mark.parametrize("name", TURNS)
def test_a_photograph_that_was_turned_and_saved_again_is_near(name):
    column = photographs()
    other = np.stack([again(np.ascontiguousarray(TURNS[name](picture)), 60) for picture in column[:20]])
    source = pictures(np.concatenate([column, other]))
    found = copies.find(pool.pool(source))
    wanted = [[k, COUNT + k] for k in range(20)]
    assert len(found.near) >= 18 and all(pair in wanted for pair in found.near.tolist()) and found.turned.all()
    finding = next(each for each in check(source, task="classes") if each.kind == "near_duplicates")
    assert f"as an earlier one, {len(found.near)} of them mirrored or turned: " in finding.what


def test_symmetric_pictures_are_copies_without_being_turned():
    column = photographs()
    column = np.concatenate([column[:, :, :24], column[:, :, 23::-1]], 2)
    found = copies.find(pool.pool(pictures(np.concatenate([column, again(column[5], 60)[None]]))))
    assert found.near.tolist() == [[5, COUNT]] and not found.turned.any()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_pictures_in_every_layout(layout):
    column = photographs(40)
    column = np.concatenate([column, again(column[7], 50)[None]])
    if layout == "NHW":
        column = column[..., 1].copy()
    elif layout == "NCHW":
        column = np.ascontiguousarray(column.transpose(0, 3, 1, 2))
    assert found_pairs(pictures(column)) == [[7, 40]]


def test_what_is_not_near():
    column = photographs()
    assert found_pairs(pictures(column)) == []
    drawn = np.where(column > 127, 255, 0).astype(np.uint8)  # as writing is, where a mirror makes another sign
    assert found_pairs(pictures(np.concatenate([drawn[:30], drawn[:30, :, ::-1]]))) == []
    flat = np.arange(COUNT, dtype=np.uint8)[:, None, None].repeat(48, 1).repeat(48, 2)  # of one colour each
    assert found_pairs(pictures(flat)) == []
    assert found_pairs(pictures(photographs(side=8))) == []  # too small to tell


@pytest.mark.parametrize("alike", [0.0, 0.6], ids=["each its own", "all of one kind"])
def test_of_many_pictures_nearly_all_pairs_of_brute_force_are_found_and_no_others(alike):
    """Pictures that share a ground are hashed alike, so that what is near must be found among many."""
    rng = np.random.default_rng(1)
    coarse = rng.random((3000, 6, 6)) * (1 - alike) + alike * rng.random((6, 6))
    column = np.stack([np.asarray(Image.fromarray((255 * few).astype(np.uint8)).resize((32, 32))) for few in coarse])
    noisy = column[rng.permutation(3000)[:600]] + rng.normal(0, 1, (600, 32, 32)) * rng.uniform(1, 8, (600, 1, 1))
    column = np.concatenate([column, np.clip(noisy, 0, 255).astype(np.uint8)])[rng.permutation(3600)]
    flat = column.reshape(3600, -1).astype(np.float64)
    products = np.triu(np.corrcoef(flat), 1)
    near_ones = set(map(tuple, np.argwhere(products > near.ALIKE).tolist()))
    found = set(map(tuple, found_pairs(pictures(column))))
    assert 200 < len(near_ones) < 800
    assert all(products[pair] > near.ALIKE - 1e-5 for pair in found) and len(found & near_ones) >= 0.98 * len(near_ones)


@pytest.mark.parametrize("most", [1, 3, 200])
def test_candidates_are_the_next_of_the_same_key(most):
    keys = np.random.default_rng(2).integers(0, 9, 60)
    expected = set()
    for place, key in enumerate(keys):
        later = np.flatnonzero(keys[place + 1 :] == key) + place + 1
        expected |= {(place, int(other)) for other in later[:most]}
    found = np.concatenate(list(near._candidates(keys, most)))
    assert set(map(tuple, found.tolist())) == expected and len(found) == len(expected)
    assert list(near._candidates(np.arange(5), most)) == [] == list(near._candidates(np.zeros(0, np.int64), most))


def test_signs_say_on_which_side_of_the_middle_a_vector_lies():
    rng = np.random.default_rng(3)
    vectors, directions = (rng.standard_normal(shape).astype(np.float32) for shape in ((2500, 6), (6, 11)))
    beyond = vectors @ directions > np.median(vectors @ directions, axis=0)
    shared = (beyond[:200, None] == beyond[None, :200]).all(2)
    keys = near._signs(vectors, directions)[:200]
    assert ((keys[:, None] == keys) == shared).mean() > 0.999  # but where one lies on the middle itself


@pytest.mark.parametrize("file", ["mnist"])
def test_digits_of_many_writers_are_not_near(shared_data, file):
    from lamina import sources

    source = sources.open(file, data_dir=shared_data)
    source.test = None
    source.train.inputs, source.train.truth = (source.train.inputs[0][:20_000],), None
    assert found_pairs(source) == []


def test_near_pictures_are_told_and_stay_in_one_part():
    column = photographs()
    other = np.stack([again(picture, 40) for picture in column[:30]])
    source = pictures(np.concatenate([column, other]), np.arange(150) % 2,
                      ids=np.array([f"{k}.png" for k in range(150)], object))  # fmt: skip
    units = copies.find(pool.pool(source)).units(150)
    rows = split(150, truth=np.arange(150) % 2, copies=units)
    assert all(rows.parts[k] == rows.parts[COUNT + k] for k in range(30))
    (finding,) = check(source, task="classes", split=rows)
    assert (finding.kind, finding.severity, finding.count) == ("near_duplicates", "warning", 30)
    assert finding.examples[0] == ["0.png", "120.png"] and "keeps them together" in finding.done
    assert "another answer" not in finding.what
    source.train.truth[124] = 1
    (finding,) = check(source, task="classes", split=rows)
    assert "1 of them with another answer: 124.png (" in finding.what
    torn = Split(np.arange(COUNT), np.zeros(0, np.int64), np.arange(COUNT, 150), "as given")
    found = {finding.kind: finding for finding in check(source, task="classes", split=torn)}
    assert found["near_leak"].count == 30 and found["near_leak"].examples[0] == ["0.png", "120.png"]


# --- Texts ------------------------------------------------------------------------------------------------------------

WORDS = [
    "rain",
    "wind",
    "storm",
    "calm",
    "sun",
    "cloud",
    "frost",
    "heat",
    "fog",
    "hail",
    "thunder",
    "breeze",
    "snow",
    "ice",
]


def reports(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 14)) for _ in range(count)]


def test_texts_of_the_same_words_are_copies():
    words = reports(100)
    words[50], words[60] = words[3].upper() + "!", "  " + words[4].replace(" ", ", ")
    found = copies.find(pool.pool(texts(words)))
    assert np.flatnonzero(found.first != np.arange(100)).tolist() == [50, 60] and found.first[[50, 60]].tolist() == [
        3,
        4,
    ]
    (finding,) = check(texts(words))
    assert finding.kind == "duplicates" and "line 51 as line 4" in finding.what


def test_blank_texts_are_told_and_are_no_copies():
    words = reports(100)
    words[7], words[9], words[11] = "", "  ", "\t\n"
    (finding,) = check(texts(words, np.arange(100) % 2), task="classes")
    assert (finding.kind, finding.count, finding.examples) == ("blank_texts", 3, ["8", "10", "12"])


def test_texts_of_signs_alone_differ():
    assert len(set(map(near.plain, ["?!", "!!", ":-)", "…"]))) == 4


def test_a_text_with_a_changed_word_is_near():
    words = [f"{text} {k}" for k, text in enumerate(reports(300)[::3])]
    long = [" ".join((text, other)) for text, other in zip(words, reports(400)[300:], strict=False)]
    long[80] = long[5].replace(long[5].split()[9], "gale", 1)
    assert found_pairs(texts(long)) == [[5, 80]]
    assert found_pairs(texts(reports(300))) == []  # the same words in another order
    assert found_pairs(texts(["yes 1", "yes 2", "no 1", "no 2"] * 1 + reports(20))) == []  # too short to tell


def test_shingles_share_what_brute_force_says():
    one, other = "the rain falls on the plain", "the rain fell on the plain"
    runs = [{text[k : k + near.SHINGLE] for k in range(len(text) - near.SHINGLE + 1)} for text in (one, other)]
    hashed = [set(near.shingles(text).tolist()) for text in (one, other)]
    assert [len(one) for one in hashed] == [len(one) for one in runs]
    assert len(hashed[0] & hashed[1]) == len(runs[0] & runs[1])


def test_texts_made_after_one_template_are_told_and_split_as_others():
    words = [f"dear customer your order number {k:05d} was sent on its way today and will arrive within three days"
             for k in range(200)]  # fmt: skip
    source = texts(words, np.arange(200) % 2)
    found = copies.find(pool.pool(source))
    assert found.template > 100 and found.units(200) is None
    (finding,) = check(source, task="classes")
    assert (finding.kind, finding.severity) == ("near_duplicates", "note") and "after one template" in finding.what


def test_an_answer_that_is_written_in_the_text():
    truth = np.array(["calm", "storm"], object)[np.arange(100) % 2]
    words = [f"{label}: {text}" for label, text in zip(truth, [text.replace("calm", "sun").replace("storm", "hail")
                                                               for text in reports(100)], strict=True)]  # fmt: skip
    finding = {finding.kind: finding for finding in check(texts(words, truth), task="classes")}["answer_in_text"]
    assert (
        finding.severity == "warning"
        and "'calm' of 'calm'" in finding.what
        and set(finding.examples) == {"calm", "storm"}
    )
    assert check(texts(reports(100), truth), task="classes") == []


def test_very_long_texts_are_told():
    words = reports(100)
    words[4] = "snow " * 30_000
    (finding,) = check(texts(words))
    assert (finding.kind, finding.examples) == ("long_texts", ["5"]) and "150,000" in finding.what
