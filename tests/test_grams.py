"""Texts as words, n-grams and numbers: compared with counting by hand and with scikit-learn's counting."""

from __future__ import annotations

import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from lamina import grams

TEXTS = [
    "the sea is calm", "the sea is wild", "a calm day", "the day is calm and the sea is calm",
    "wild winds and a wild sea", "calm winds", "the winds", "",
]  # fmt: skip


def listed(row):
    return set(row[row > 0].tolist())


def test_words_are_cut_at_spaces_and_marks_and_folded():
    assert grams.runs("Don't STOP -- it’s 3.5€!", 100) == [
        "don", "'", "t", "stop", "-", "-", "it", "’", "s", "3", ".", "5", "€", "!",
    ]  # fmt: skip
    assert grams.runs("Straße  ΣΊΣΥΦΟΣ", 100) == ["strasse", "σίσυφοσ"]
    assert grams.runs(" \t\n ", 100) == grams.runs("", 100) == []


def test_a_letter_composed_and_decomposed_is_the_same():
    assert grams.runs("café", 9) == grams.runs(unicodedata.normalize("NFD", "café"), 9) == ["café"]


def test_marks_of_a_script_belong_to_its_words():
    assert grams.runs("हिन्दी में", 9) == ["हिन्दी", "में"]  # vowels and virama are marks, not letters


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("你好世界", ["你", "好", "世", "界"]),
        ("ภาษา", ["ภ", "า", "ษ", "า"]),
        ("カタカナ漢字", ["カ", "タ", "カ", "ナ", "漢", "字"]),
        ("iPhone手机", ["iphone", "手", "机"]),
        ("한국어", ["한국어"]),  # written with spaces
    ],
)
def test_scripts_without_spaces_have_words_of_one_character(text, words):
    assert [word for run in grams.runs(text, 99) for word in grams.words(run)] == words


def test_what_has_no_width_is_left_out_and_controls_divide():
    assert grams.runs("zero\u200bwidth soft\u00adhyphen a\x00b\x1b[31m", 99) == [
        "zerowidth", "softhyphen", "a", "b", "[", "31m",
    ]  # fmt: skip
    assert grams.runs("👍🏽 ❤\ufe0f 👨\u200d👩", 99) == ["👍", "🏽", "❤", "👨", "👩"]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60))
def test_any_text_is_taken(text):
    found = grams.runs(text, 1000)
    assert all(run and " " not in run and "\n" not in run for run in found)
    learned, pieces = grams.learn([text, text, text], 1000, words_most=500, pieces_most=500)
    tables = grams.Index(learned, pieces).tables([text, ""], 1000, (100, 100, 100))
    assert all((table[1] == 0).all() for table in tables)
    assert (tables[2][0] > 0).sum() == min(100, sum(len(grams.words(run)) for run in found))


def test_lone_surrogates_are_taken():
    words, _ = grams.learn(["bad \ud800 end", "bad \ud800"], 9, words_most=9, pieces_most=9)
    assert "\ud800" in words and "bad \ud800" in words


def test_long_texts_and_long_words_are_cut():
    assert len(grams.runs("word " * 100_000, 50)) == 50
    parts = grams.runs("x" * 200_000, 50)
    assert len(parts) == 50 * grams.LETTERS // grams.LONGEST and max(map(len, parts)) == grams.LONGEST
    assert grams.is_longer("a b c", 2) and not grams.is_longer("a b c", 3) and not grams.is_longer("", 1)
    assert grams.is_longer("x" * 2_000, 100)


def test_words_and_pairs_are_those_that_scikit_learn_counts():
    found, _ = grams.learn(TEXTS, 99, words_most=1000, pieces_most=0)
    counter = CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), binary=True, min_df=2)
    counted = counter.fit_transform(TEXTS)
    assert set(found) == set(counter.vocabulary_)
    counts = dict(zip(counter.get_feature_names_out(), np.asarray(counted.sum(0)).ravel().tolist(), strict=True))
    singles = [word for word in found if " " not in word]
    assert found[: len(singles)] == singles
    for part in (singles, found[len(singles) :]):
        assert [counts[word] for word in part] == sorted((counts[word] for word in part), reverse=True)

    table, _, _ = grams.Index(found, []).tables(TEXTS, 99, (40, 1, 1))
    for row, expected in zip(table, counted.toarray(), strict=True):
        assert {found[k - 1] for k in listed(row)} == set(counter.get_feature_names_out()[expected > 0])


def test_pieces_are_those_that_scikit_learn_counts():
    _, found = grams.learn(TEXTS, 99, words_most=0, pieces_most=10_000)
    counter = CountVectorizer(analyzer="char_wb", ngram_range=grams.PIECES, binary=True)
    counted = counter.fit_transform([text for text in TEXTS if text])
    known = set(counter.get_feature_names_out())
    assert set(found) <= known
    in_words = Counter(piece for text in TEXTS for run in set(text.split()) for piece in grams.pieces(run))
    assert set(found) == {piece for piece, count in in_words.items() if count >= 3}
    _, table, _ = grams.Index([], found).tables([text for text in TEXTS if text], 99, (1, 400, 1))
    for row, expected in zip(table, counted.toarray(), strict=True):
        assert {found[k - 1] for k in listed(row)} == set(counter.get_feature_names_out()[expected > 0]) & set(found)


def test_words_in_their_order_and_unknown_ones():
    index = grams.Index(["sea", "calm", "sea calm"], [])
    assert index.singles == 2
    words, _, order = index.tables(["calm sea new calm", "sea calm"], 99, (5, 1, 3))
    assert order.tolist() == [[2, 1, 3], [1, 2, 0]]
    assert listed(words[0]) == {1, 2} and listed(words[1]) == {1, 2, 3}


def test_pairs_do_not_reach_from_one_text_into_the_next():
    index = grams.Index(["a", "b", "a b"], [])
    assert not any(3 in listed(row) for row in index.tables(["x a", "b x"], 9, (5, 1, 1))[0])


def test_a_text_with_more_than_there_is_room_for_gives_an_even_selection():
    words = [f"w{k}" for k in range(100)]
    table, _, order = grams.Index(words, []).tables([" ".join(words)], 200, (10, 1, 10))
    kept = np.sort(table[0])
    assert len(set(kept.tolist())) == 10 and kept.min() >= 1 and np.diff(kept).min() >= 9
    assert order[0].tolist() == list(range(1, 11))


def test_sizes_are_those_of_the_tables():
    found, pieces = grams.learn(TEXTS, 99, words_most=100, pieces_most=100)
    index = grams.Index(found, pieces)
    tables = index.tables(TEXTS, 99, (200, 200, 200))
    assert index.sizes(TEXTS, 99).tolist() == np.stack([(table > 0).sum(1) for table in tables], 1).tolist()


def test_vocabularies_are_cut_at_their_most():
    words, pieces = grams.learn(TEXTS, 99, words_most=3, pieces_most=4)
    assert len(words) == 3 and len(pieces) == 4
    assert grams.learn([], 9, words_most=3, pieces_most=3) == ([], [])
