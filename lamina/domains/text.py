"""Texts of any language and script.

In: texts, one column of them, or a table with such columns, which are joined. Out: three tables of whole numbers, one row a
text: the words and pairs of words that stand in it, its pieces of words, its first words in their order (see `grams`). Which
n-grams have a number is learned from the training rows. An empty text is answered by what is most usual.

A net of yours gets one tensor instead, the words in their order (B, T): 0 where there is none, 1 to `vocabulary`, the most
frequent first, of which the last is for all unknown words.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina import grams, mapped, names
from lamina.batches import Batch
from lamina.domains.base import Domain, Encoded
from lamina.errors import DataError, UsageError, near
from lamina.errors import rows as row_words
from lamina.findings import Finding
from lamina.imports import loading
from lamina.nets.textnet import SIZES, TextNet
from lamina.recipe import Recipe
from lamina.sources import Columns, Examples, Source, formats
from lamina.sources import open as open_source
from lamina.splits import spread
from lamina.targets.base import Target

LEARNED = 30_000  # texts that the vocabulary is made from
STARTED = 100_000  # texts that the first weights are counted on
COUNTED = ("classes", "tags", "numbers")  # answers of which words can speak for one or the other
STEPS = 500  # that are enough: a net that begins as naive Bayes has little to learn
CORE = 1e10  # operations a second that one core makes of a convolution
GRAMS = 60_000  # words and pairs, and pieces, that have a number
WIDTHS = (2048, 4096, 256)  # words and pairs, pieces, and words in their order: at most so many of a text
BYTES = 512 << 20  # of the three tables together
USUAL = 0.995  # share of the training texts for which the tables are wide enough
WORDS = 4.0  # of a value on average, from which on a column of a table holds texts
DISTINCT = 0.5  # share of its values that differ
OTHERS = 2  # columns beside them that a table of texts may have
LOOKED = 2000  # rows that are looked at to find that out
TOLD, HEAVIEST = 30, 15  # classes, and words that speak for each, in the report
TABLES = (".csv", ".tsv", ".tab", *formats.PARQUET, *formats.ARROW, *formats.LINES, *formats.EXCEL, *formats.ARFF, ".xls",
          ".npz", ".zip", ".gz")  # fmt: skip


@dataclass
class Text(Domain):
    name: ClassVar[str] = "text"
    default_net: ClassVar[str] = "textnet"
    simple: ClassVar[tuple[str, ...]] = ("bayes", "ngrams")
    tried: ClassVar[bool] = True

    columns: list[str] = field(default_factory=list)  # of a table, joined to one text; without, those that hold texts
    most: int = 1000  # words of a text that are looked at
    # What was learned:
    own: bool = False  # for a net of yours
    words: str = ""  # words and pairs of words, one a line, the most frequent first
    pieces: str = ""  # of words, the same
    widths: list[int] = field(default_factory=list)  # of the three tables
    cut: int = 0  # training texts that have more words

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):  # one name, from the command line
            self.columns = [self.columns]

    @classmethod
    def sniff(cls, examples: Examples) -> tuple[float, str]:
        if examples.kind == "texts":
            return 0.95, "the source holds texts"
        if examples.kind != "table":
            return 0.0, "no texts"
        found = text_columns(examples)
        others = len(examples.names or ()) - len(found)
        if not found or others > OTHERS:
            return 0.0, "no column of texts" if not found else f"{others} columns beside the texts"
        return 0.9, f"{' and '.join(map(repr, found))} {'hold' if len(found) > 1 else 'holds'} texts"

    # --- What is learned from ---------------------------------------------------------------------------------------

    def take(self, source: Source, *, own_net: bool = False) -> Source:
        """Of a table the columns that hold texts, joined in their order by line breaks; a gap is an empty text."""
        if not self.words:
            self.own = own_net
        if source.train.kind == "texts":
            return source
        if source.train.kind != "table":
            raise DataError(
                f"{source.name} holds no texts.",
                expected="texts: a file with one a line, a folder of them, a table with a column of texts",
                fix="--domain names another kind of input",
            )
        titles = source.train.names or []
        findings = list(source.findings)
        if not self.columns:
            self.columns = text_columns(source.train) or _words_at_all(source.train)
        if not self.columns:
            raise DataError(
                f"No column of {source.name} holds texts: {', '.join(map(repr, titles))}.",
                fix="--domain-arg columns=NAME takes one all the same",
            )
        unknown = [title for title in self.columns if title not in titles]
        if unknown:
            raise UsageError("\n".join(f"There is no column {title!r}: {near(title, titles)}" for title in unknown),
                             fix="--domain-arg columns=NAME,OTHER")  # fmt: skip
        left = [title for title in titles if title not in self.columns]
        if left:
            findings.append(Finding(
                "columns_left_out", "note",
                f"{len(left)} of {len(titles)} columns hold no texts and are not learned from: {', '.join(map(repr, left))}.",
                len(left), left[:10], "left out", "--domain table learns from all columns; --domain-arg columns=NAME chooses",
            ))  # fmt: skip
        parts = {
            part: self._joined(examples, f"the {part} data")
            for part in ("train", "valid", "test")
            if (examples := getattr(source, part)) is not None
        }
        return replace(source, findings=findings, **parts)  # type: ignore[arg-type]

    def _joined(self, examples: Examples, where: str) -> Examples:
        """A table as texts."""
        titles = examples.names or []
        missing = [title for title in self.columns if title not in titles]
        if missing:
            hints = "; ".join(f"{title!r}: {near(title, titles)}" for title in missing)
            raise DataError(f"{where}: {len(missing)} of {len(self.columns)} columns of texts missing: {hints}",
                            expected=f"the columns {', '.join(map(repr, self.columns))}, in any order")  # fmt: skip
        parts = [_texts(examples.inputs[titles.index(title)], gaps=True) for title in self.columns]
        joined = parts[0] if len(parts) == 1 else ["\n".join(filter(None, row)) for row in zip(*parts, strict=True)]
        column = np.empty(len(joined), object)
        column[:] = joined
        return replace(examples, inputs=(column,), kind="texts", names=None)

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        if self.most < 1:
            raise UsageError(f"most is {self.most}.", expected="1 or more words of a text")
        column = inputs[0] if isinstance(inputs, tuple) else inputs
        some = spread(rows, LEARNED)
        texts = _texts(np.asarray(column, object)[some])
        found, pieces = grams.learn(texts, self.most, words_most=GRAMS, pieces_most=GRAMS)
        self.words, self.pieces = "\n".join(found), "\n".join(pieces)
        sizes = np.quantile(self._index.sizes(texts, self.most), USUAL, axis=0)
        room = max(8, BYTES // (4 * max(1, len(column))))  # numbers a text
        widths = [min(most, max(1, math.ceil(size))) for size, most in zip(sizes.tolist(), WIDTHS, strict=True)]
        if sum(widths) > room:
            widths = [max(1, width * room // sum(widths)) for width in widths]
        self.widths = widths
        self.cut = sum(grams.is_longer(text, self.most) for text in texts) * len(rows) // len(texts)

    def findings(self) -> list[Finding]:
        if not self.cut:
            return []
        return [Finding(
            "long_texts_cut", "warning", f"About {self.cut:,} texts have more than {self.most:,} words.", self.cut, [],
            f"only their first {self.most:,} words are read", f"--domain-arg most={4 * self.most} reads more, or cut them",
        )]  # fmt: skip

    @property
    def _index(self) -> grams.Index:
        return grams.index(self.words, self.pieces)

    @property
    def vocabulary(self) -> int:
        """The largest number of a word in its order: that of all unknown words."""
        return self._index.singles + 1

    def encode(self, inputs: Any) -> Any:
        column = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs
        if not isinstance(column, (list, tuple, np.ndarray)):
            if isinstance(column, str):
                raise DataError(f"The input is one text, {column[:40]!r}.", expected="a list of texts", fix="[text]")
            return inputs  # a Dataset
        a, b, c = self.widths
        tables = self._index.tables(_texts(column), self.most, (a, b, c))
        tensors = tuple(mapped.as_tensor(table) for table in tables)
        return (tensors[2].long(),) if self.own else tensors

    def unknown(self, inputs: Any) -> np.ndarray | None:
        """Of the words of each text; of a text without one, all of it."""
        words = inputs[-1]
        count = (words > 0).sum(1)
        return np.where(count > 0, (words == self.vocabulary).sum(1) / count.clamp(min=1), 1.0)

    def opinions(self, examples: Examples, target: Target, asked: Recipe) -> dict[str, tuple[Any, str]]:
        if asked.net not in (None, self.default_net) or not isinstance(examples.inputs, tuple):
            return {}
        if asked.scale not in (None, "none"):
            raise UsageError(f"scale={asked.scale} is for numbers, and these are texts.", fix="leave it out")
        texts = _texts(examples.inputs[0])
        n, some = len(texts), texts[:: max(1, len(texts) // LOOKED)]
        words = min(
            WIDTHS[2], 1 + sum(len(text[: self.most * grams.LETTERS].split()) for text in some) / max(1, len(some))
        )
        few = f"{n:,} texts of {words:.0f} words"
        batch = asked.batch_size or (16 if n < 500 else 32 if n < 2_000 else 64 if n < 50_000 else 128)
        epochs = max(3, min(20, round(STEPS * batch / max(1, n))))

        def seconds(size: str) -> float:
            work = 6 * words * 4 * SIZES[size]["embedding"] * SIZES[size]["channels"]  # of a text
            return epochs * n * work / CORE

        found: dict[str, tuple[Any, str]] = {
            "scale": ("none", "words are numbers by name"),
            "batch_size": (batch, few),
            "weight_decay": (0.02, "leads back to naive Bayes; biases are spared"),
        }
        if asked.optimizer in (None, "adamw"):
            found["learning_rate"] = (2e-3 * math.sqrt(batch / 64), "peak of adamw for textnet")
        if asked.budget is None:
            found["size"] = ("small", few)
        else:
            fitting = [size for size in SIZES if seconds(size) < 0.6 * asked.budget] or ["small"]
            found["size"] = (fitting[-1], f"{few} in {asked.budget:g} s")
        if asked.steps is None and (asked.budget is None or seconds("small") < 0.6 * asked.budget):
            found["epochs"] = (epochs, few)  # more of them would learn the texts by heart
        return found

    # --- The net ----------------------------------------------------------------------------------------------------

    def net(self, target: Target, size: str, name: str | None = None, **arguments: Any) -> nn.Module:
        kind = names.module("nets", name or self.default_net).NET
        if (name or self.default_net) != self.default_net:
            raise UsageError(f"The net {name} is not for texts.", expected="textnet, or a net of your own",
                             fix="--net FILE.py:CLASS")  # fmt: skip
        index = self._index
        return kind.fitted((index.words, index.pieces, self.vocabulary), target.width, size, **arguments)

    def begin(self, net: nn.Module, examples: Encoded, rows: np.ndarray, target: Target) -> None:
        if not isinstance(net, TextNet):
            return
        some = torch.from_numpy(spread(rows, STARTED))
        words, pieces, tokens = (mapped.take(column, some) for column in examples.inputs)
        truth = None if examples.truth is None or target.name not in COUNTED else examples.truth[some]
        loss = target.loss()

        def measured(output: Tensor, truth: Tensor) -> Tensor:
            return loss(output, target.shape_truth(truth, output))

        net.start(words, pieces, tokens, truth, measured)

    def loss(self, net: nn.Module, batch: Batch, target: Target, loss: Any) -> tuple[Tensor, Any]:
        """Of a net of several members, the mean of their losses."""
        if not (isinstance(net, TextNet) and net.training):
            return super().loss(net, batch, target, loss)
        if batch.truth is None:  # an embedding without answers is that of all members together
            return loss(self.outputs(net, batch).mean(1), None), batch.count
        return self.loss_of_members(net, batch, target, loss)

    def telling(self, net: nn.Module, target: Target) -> list[tuple[str, str]]:
        """The words and pairs of words that weigh most for each class or tag, in the bag of words."""
        if not isinstance(net, TextNet) or target.name not in ("classes", "tags") or not self.words:
            return []
        weights = net.words.weight[1:].detach().cpu()  # (F, outputs)
        if weights.shape[1] == 1:  # of two classes, one output for the second
            weights = torch.cat([-weights, weights], 1)
        elif target.name == "classes":
            weights = weights - weights.mean(1, keepdim=True)
        known, found = self.words.split("\n"), []
        for label, column in list(zip(target.labels, weights.T, strict=False))[:TOLD]:
            best = column.topk(min(HEAVIEST, len(column))).indices.tolist()
            found.append((label, " · ".join(known[k] for k in best if column[k] > 0)))
        return found

    def plain(self, inputs: Any, rows: np.ndarray, model: str) -> Any:
        """Which words and pairs of words stand in each text, as a sparse matrix (n, F) of 0 and 1."""
        with loading():
            from scipy import sparse

        numbers = mapped.take(inputs[0], torch.from_numpy(rows)).numpy()
        of_texts, places = np.nonzero(numbers)
        columns = numbers[of_texts, places] - 1
        width = self.vocabulary if self.own else self._index.words
        table = sparse.csr_matrix((np.ones(len(columns), np.float32), (of_texts, columns)), (len(rows), max(1, width)))
        table.data[:] = 1.0
        return table

    # --- Files ------------------------------------------------------------------------------------------------------

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A file of texts -> texts and a name for each. A table where it looks like one: its columns of texts, matched by
        name; any other text: one text a line, named by the number of the line, from 0 on."""
        place = Path(path)
        if place.is_file() and place.suffix.lower() not in TABLES:
            lines = _lines(place)
            if not _is_table(lines, self.columns):
                column = np.empty(len(lines), object)
                column[:] = lines
                return (column,), [str(k) for k in range(len(lines))]
        source = open_source(path, columns=Columns(target=()))
        examples = source.train
        for found in source.findings:
            warnings.warn(f"{path}: {found.what}", stacklevel=2)
        if examples.kind == "table":
            examples = self._joined(examples, path) if self.columns else self.take(source).train
        if examples.kind != "texts":
            raise DataError(f"{path} holds no texts.", expected="texts: one a line, or a table with the columns "
                            f"{', '.join(map(repr, self.columns)) or 'of texts'}")  # fmt: skip
        ids = range(len(examples.inputs[0])) if examples.ids is None else examples.ids
        return examples.inputs, [str(name) for name in ids]

    @classmethod
    def tiny(cls) -> Any:
        return Source(
            "tiny texts", Examples((_tiny(),), np.arange(120) // 2 % 2, kind="texts", labels=["calm", "storm"])
        )

    def read(self, source: Any, **options: Any) -> Source:
        return source if isinstance(source, Source) else super().read(source, **options)


def text_columns(examples: Examples) -> list[str]:
    """The columns of a table that hold texts: words, mostly different ones, and several a value or in the only column."""
    titles = examples.names or []
    found = []
    for title, column in zip(titles, examples.inputs, strict=True):
        if column.dtype != object:
            continue
        some = [value for value in column[:: max(1, len(column) // LOOKED)] if isinstance(value, str) and value.strip()]
        if len(some) < 2 or len(set(some)) < DISTINCT * len(some):
            continue
        words = np.mean([sum(len(grams.words(run)) for run in value[:1000].split()) for value in some])
        if words >= WORDS or len(titles) == 1:
            found.append(title)
    return found


def _words_at_all(examples: Examples) -> list[str]:
    """The columns of a table whose values are words."""
    return [t for t, column in zip(examples.names or [], examples.inputs, strict=True) if column.dtype == object]


def _texts(column: Any, gaps: bool = False) -> list[str]:
    """Texts (N,) as a list. gaps: what is missing, or a number, is a text too."""
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    found = ["" if value is None or value != value else str(value) if gaps else value for value in values]
    bad = [k for k, value in enumerate(found) if not isinstance(value, str)]
    if bad:
        raise DataError(
            f"{len(bad):,} of {len(found):,} inputs are no texts, such as {found[bad[0]]!r}: {row_words(bad)}.",
            expected="texts (str)",
        )
    return found


def _lines(place: Path) -> list[str]:
    """The lines of a file, without the empty ones at its end."""
    try:
        text = place.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place} is no text in UTF-8: byte {error.start:,} cannot be read.", fix="save it as UTF-8"
        ) from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{place} is empty.", expected="a text a line")
    return lines


def _is_table(lines: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether the first line names the columns of texts, or begins a JSON object."""
    first = lines[0].strip()
    cells = [cell.strip(" \"'") for mark in "\t;,|" for cell in first.split(mark)]
    named = bool(columns) and set(columns) <= set(cells)
    return first.startswith("{") or (named and len(lines) > 1)


def _tiny() -> np.ndarray:
    """120 texts: two of calm weather, two of a storm, and so on."""
    calm = ["quiet sea", "mild breeze", "clear sky", "soft light", "still water"]
    storm = ["high waves", "heavy rain", "dark clouds", "strong gusts", "loud thunder"]
    places = [
        "in the harbour",
        "off the cape",
        "along the coast",
        "near the island",
        "by the pier",
        "at the light house",
    ]
    column = np.empty(120, object)
    column[:] = [
        f"{words[k // 4 % 5]} and {words[k // 3 % 5]} {places[k // 7 % 6]}"
        for k in range(120)
        for words in [storm if k // 2 % 2 else calm]
    ]
    return column


DOMAIN = Text
