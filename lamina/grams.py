"""Texts of any script as words, n-grams and their numbers.

In: texts, as Python has them: any characters, lone surrogates among them. Out: `learn` gives the n-grams that are worth a
place in a vocabulary; an `Index` of them turns texts into tables of whole numbers, one row a text. Called by the domain of
texts.

No language is assumed. A text is normalised (NFC), its case folded, and cut where its characters say so: at spaces and
control characters, and around every mark and symbol, which are words of their own; what has no width is left out. Scripts
that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) come as long runs: there every character is a
word, so that pairs of words are pairs of characters. Pieces are runs of characters inside such a run, its ends included.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lamina.distinct import distinct

LETTERS = 16  # letters looked at for each word that a text may have
LONGEST = 40  # letters of a word: what is longer is cut into pieces of this length
PIECES = (2, 6)  # the shortest and longest piece, in letters; the end of a word counts as one
_TOGETHER = 2048  # texts
_KEPT = 1 << 16  # runs whose pieces are kept: the same ones come again and again
# Thai, Lao, Burmese, Khmer, Japanese, Chinese
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_SOME_UNSPACED = re.compile(f"[{_UNSPACED}]")
_WORDS = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")


class _Characters(dict[int, str | None]):
    """What becomes of a character, found out when it comes for the first time: for `str.translate`."""

    def __missing__(self, code: int) -> str | None:
        letter = chr(code)
        category = unicodedata.category(letter)
        if category == "Cf" or 0xFE00 <= code <= 0xFE0F:  # no width; variation selectors
            found = None
        elif category[0] in "LNM":
            found = letter
        elif category[0] == "Z" or category == "Cc":
            found = " "
        else:
            found = f" {letter} "
        self[code] = found
        return found


_CHARACTERS = _Characters()


def runs(text: str, most: int) -> list[str]:
    """The words of a text as spaces and marks divide it, `most` at most; none is longer than LONGEST."""
    text = unicodedata.normalize("NFC", text[: most * LETTERS])
    found = unicodedata.normalize("NFC", text.casefold()).translate(_CHARACTERS).split()
    if max(map(len, found), default=0) > LONGEST:
        found = [run[at : at + LONGEST] for run in found for at in range(0, len(run), LONGEST)]
    return found[:most]


def words(run: str) -> list[str]:
    """A run as words: itself, or its characters where its script has no spaces."""
    return [run] if run.isascii() or not _SOME_UNSPACED.search(run) else _WORDS.findall(run)


def pieces(run: str) -> set[str]:
    """Runs of characters in a word, of which the first and last may be its end, written as a space."""
    ended = f" {run} "
    shortest, longest = PIECES
    return {ended[at : at + size] for size in range(shortest, longest + 1) for at in range(len(ended) - size + 1)}


def is_longer(text: str, most: int) -> bool:
    """Whether a text has more words than are looked at."""
    if len(text) <= most:
        return False
    return len(text) > most * LETTERS or len(runs(text, most + 1)) > most


class _Numbered:
    """Runs and words of some texts as numbers, in the order in which they first came."""

    def __init__(self, texts: Iterable[str], most: int):
        self.runs: dict[str, int] = {}
        self.words: dict[str, int] = {}
        of_runs: list[int] = []
        of_words: list[int] = []
        run_ends, word_ends = [0], [0]
        known: dict[str, list[int]] = {}  # the words of a run
        for text in texts:
            for run in runs(text, most):
                if run not in known:
                    known[run] = [self.words.setdefault(word, len(self.words)) for word in words(run)]
                    self.runs[run] = len(self.runs)
                of_runs.append(self.runs[run])
                of_words += known[run]
            run_ends.append(len(of_runs))
            word_ends.append(len(of_words))
        self.flat_runs, self.flat_words = np.array(of_runs, np.int64), np.array(of_words, np.int64)
        self.texts_of_runs = np.repeat(np.arange(len(run_ends) - 1), np.diff(run_ends))
        self.texts_of_words = np.repeat(np.arange(len(word_ends) - 1), np.diff(word_ends))


def learn(
    texts: Sequence[str], most: int, *, words_most: int, pieces_most: int, least: int = 2
) -> tuple[list[str], list[str]]:
    """The words and pairs of words that stand in at least two of the texts, and the pieces that stand in three.

    Words come first, then pairs, written with a space between; each sorted by how many texts they stand in, the most
    frequent first, and cut at `words_most` together and `pieces_most`.
    """
    found = _Numbered(texts, most)
    names = list(found.words)
    counts = _texts_with(found.texts_of_words, found.flat_words, len(names))
    order = _most_frequent(counts, least, words_most)
    chosen = [names[k] for k in order.tolist()]

    place = np.zeros(len(names) + 1, np.int64)
    place[order] = np.arange(1, len(order) + 1)
    codes, of_texts = _pairs(place[found.flat_words], found.texts_of_words, len(order) + 1)
    kinds, inverse = np.unique(codes, return_inverse=True)
    order = _most_frequent(_texts_with(of_texts, inverse, len(kinds)), least, words_most - len(chosen))
    first, second = np.divmod(kinds[order], len(chosen) + 1)
    pairs = [f"{chosen[a - 1]} {chosen[b - 1]}" for a, b in zip(first.tolist(), second.tolist(), strict=True)]

    counts = _texts_with(found.texts_of_runs, found.flat_runs, len(found.runs))
    total: Counter[str] = Counter()
    for run, count in zip(found.runs, counts.tolist(), strict=True):
        for piece in pieces(run):
            total[piece] += count
    frequent = sorted((-count, piece) for piece, count in total.items() if count > least)
    return chosen + pairs, [piece for _, piece in frequent[:pieces_most]]


def _texts_with(of_texts: np.ndarray, numbers: np.ndarray, kinds: int) -> np.ndarray:
    """In how many texts each of so many kinds of things stands."""
    once = distinct(of_texts * max(1, kinds) + numbers) % max(1, kinds)
    return np.bincount(once, minlength=kinds)


def _most_frequent(counts: np.ndarray, least: int, most: int) -> np.ndarray:
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] >= least][: max(0, most)]


def _pairs(places: np.ndarray, of_texts: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """(code of each pair of known words that follow one another in a text, the text). Place 0 is that of unknown words."""
    first, second = places[:-1], places[1:]
    there = (first > 0) & (second > 0) & (of_texts[:-1] == of_texts[1:])
    return first[there] * base + second[there], of_texts[:-1][there]


class Index:
    """Numbers of known n-grams. `words` and `pieces` are what `learn` gives; the first has number 1, and 0 is nobody's."""

    def __init__(self, words: Sequence[str], pieces: Sequence[str]):
        self.singles = len(list(itertools.takewhile(lambda word: " " not in word, words)))
        self._word = {word: k for k, word in enumerate(words[: self.singles], 1)}
        self._piece = {piece: k for k, piece in enumerate(pieces, 1)}
        self._kept = functools.lru_cache(maxsize=_KEPT)(self._pieces_of)
        self.words, self.pieces = len(words), len(pieces)
        base = self.singles + 1
        halves = [pair.split(" ") for pair in words[self.singles :]]
        codes = np.array([self._word[one] * base + self._word[other] for one, other in halves], np.int64)
        self._sorted = np.argsort(codes)
        self._codes = codes[self._sorted]

    def tables(self, texts: Sequence[str], most: int, widths: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
        """Texts -> (N, width) int32 each: the words and pairs that stand in a text; its pieces; its first words in their
        order, unknown ones as number singles + 1. 0 fills up. Of a text with more than there is room for, an even
        selection of its words, and of its pieces."""
        found = tuple(np.zeros((len(texts), width), np.int32) for width in widths)
        for at in range(0, len(texts), _TOGETHER):
            part = slice(at, at + _TOGETHER)
            for table, rows in zip(found, self._some(texts[part], most, widths), strict=True):
                table[part] = rows
        return found

    def sizes(self, texts: Sequence[str], most: int) -> np.ndarray:
        """How many words and pairs, pieces, and words in a row each text has: (N, 3)."""
        found = []
        for at in range(0, len(texts), _TOGETHER):
            some = texts[at : at + _TOGETHER]
            found.append(np.stack([np.bincount(of, minlength=len(some)) for of, _ in self._numbers(some, most)], 1))
        return np.concatenate(found)

    def _numbers(self, texts: Sequence[str], most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(text, number) of everything, for each of the three tables; sorted by text."""
        found = _Numbered(texts, most)
        kinds = np.array([self._word.get(word, 0) for word in found.words], np.int64)
        singles = kinds[found.flat_words] if len(kinds) else found.flat_words
        codes, of_pairs = _pairs(singles, found.texts_of_words, self.singles + 1)
        pairs = np.zeros(len(codes), np.int64)
        if len(self._codes):
            places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
            pairs = np.where(self._codes[places] == codes, self._sorted[places] + self.singles + 1, 0)
        yield _once(np.concatenate([found.texts_of_words, of_pairs]), np.concatenate([singles, pairs]), self.words)

        lists = list(map(self._kept, found.runs))
        sizes = np.array([len(numbers) for numbers in lists], np.int64)
        flat = np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(sizes.sum()))
        if len(sizes):
            counts, begins = sizes[found.flat_runs], (np.cumsum(sizes) - sizes)[found.flat_runs]
            steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            yield _once(np.repeat(found.texts_of_runs, counts), flat[np.repeat(begins, counts) + steps], self.pieces)
        else:
            yield flat, flat
        yield found.texts_of_words, np.where(singles > 0, singles, self.singles + 1)

    def _pieces_of(self, run: str) -> list[int]:
        return [number for piece in pieces(run) if (number := self._piece.get(piece))]

    def _some(self, texts: Sequence[str], most: int, widths: tuple[int, int, int]) -> Iterator[np.ndarray]:
        for k, (of_texts, numbers) in enumerate(self._numbers(texts, most)):
            yield _table(of_texts, numbers, len(texts), widths[k], spread=k < 2)


def _once(of_texts: np.ndarray, numbers: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Each known number once a text."""
    codes = distinct((of_texts * (most + 1) + numbers)[numbers > 0])
    return codes // (most + 1), codes % (most + 1)


def _table(of_texts: np.ndarray, numbers: np.ndarray, texts: int, width: int, *, spread: bool) -> np.ndarray:
    """(text, number), sorted by text -> (texts, width); where there are more, the first of them or an even selection."""
    counts = np.bincount(of_texts, minlength=texts)
    places = np.arange(len(of_texts)) - (np.cumsum(counts) - counts)[of_texts]
    if spread:
        many = np.maximum(counts, width)[of_texts]
        places = places * width // many
    table = np.zeros((texts, width), np.int32)
    there = places < width
    table[of_texts[there], places[there]] = numbers[there]
    return table


@functools.lru_cache(maxsize=2)
def index(words: str, pieces: str) -> Index:
    """An `Index` of n-grams that are written one a line."""
    return Index(words.split("\n") if words else [], pieces.split("\n") if pieces else [])
