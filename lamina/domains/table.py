"""Tables: columns of numbers, categories, dates, booleans and short texts, with gaps.

In: a tuple of columns (N,) with a name each: float64 with NaN for a gap, bool, datetime64, or objects (str, None for a gap).
What a column is, is found out from the training rows and kept with its reason; columns that tell nothing (empty, constant,
a name for each row) are left out, which `findings` say. Out: one tensor (N, W), float32: numbers as positions among the
quantiles of their column (so that 1e39 is as good as 1), NaN for a gap; then codes of categories: 0 a gap, 1 what is rare or
was never seen, 2 and on the known, the most frequent first; then codes of the words of texts, 0 for none.

A net of yours gets one tensor (B, F) without gaps instead, in this order: each number (as it is, a gap as the mean; with
--scale standard mean 0 and deviation 1), then 1 where it was a gap, for each column that had gaps; then a column of 0 and 1
for each code of each category; then one for each word of each text. `Table.features_out` names them.
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina import mapped
from lamina.distinct import distinct
from lamina.domains.base import Domain, Encoded
from lamina.errors import DataError, UsageError, near
from lamina.findings import Finding
from lamina.nets import base
from lamina.nets.tabular import UNKNOWN, Tabular
from lamina.recipe import ENOUGH, Recipe, share, with_line
from lamina.sources import Examples, Source, tables
from lamina.sources.delimited import written_as
from lamina.splits import spread
from lamina.targets.base import Target

KINDS = ("number", "boolean", "date", "category", "text")
LEFT_OUT = ("empty", "constant", "identifier")  # kinds that tell nothing
NUMERIC = 0.8  # share of the values of a column of words that are numbers, from which on it is one of numbers
COVERED = 0.5  # share of the values of a column that come again, from which on it is one of categories
LETTERS = 200  # of a category or a word that count
SLOTS = 16  # words of a text that count
STEPS = 16_384  # of all columns together: of very many columns each has fewer
LONG = 300  # seconds of a budget from which on the net is large
CELLS = 5e7  # of the numbers for a simple model
STARTED = 20_000  # rows that are looked through for what their numbers have in common
FAR = 1e300  # beyond it differences overflow
MOST = 1e37  # and beyond it those of float32
TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
THAT_NAME = " that are names, as the column says"
_SHOWN = 5  # values that a finding or a warning lists
_NAMES = re.compile(r"(^|[^a-z])(id|uuid|guid|key)s?($|[^a-z])", re.IGNORECASE)
_WHEN = re.compile(
    r"(^|[^a-z])(time|year|quarter|month|week|day|date|hour|minute|second|age)s?($|[^a-z])", re.IGNORECASE
)
_COUNTER = re.compile(r"(^|[^a-z])(id|index|idx|uuid|guid|key)s?($|[^a-z])", re.IGNORECASE)


@dataclass
class Table(Domain):
    name: ClassVar[str] = "table"
    default_net: ClassVar[str] = "tabular"
    simple: ClassVar[tuple[str, ...]] = ("linear", "trees")
    tried: ClassVar[bool] = True
    _given: ClassVar[Sequence[str]] = ()  # the parts that the source brings itself

    steps: int = 48  # quantile steps of a number at most
    categories: int = 500  # of a column at most; the others are pooled
    rare: int = 0  # a category that occurs fewer times is pooled; 0: by the number of rows
    words: int = 256  # of a column of texts at most
    number: list[str] = field(default_factory=list)  # columns that are numbers, whatever they look like
    category: list[str] = field(default_factory=list)  # columns that are categories
    text: list[str] = field(default_factory=list)  # columns that are texts
    scale: str = "standard"  # of numbers for a net of yours: none, standard
    # What was learned:
    own: bool = False  # for a net of yours
    features: list[str] | None = None  # the columns' names
    letters: list[str] = field(default_factory=list)  # and how they were read: f numbers, b booleans, M dates, O words
    styles: dict[str, str] = field(default_factory=dict)  # of cells that are written in a way of their own
    columns: list[dict[str, Any]] = field(default_factory=list)  # kind and reason of each, and its numbers or values
    rows: int = 0  # learned from

    def __post_init__(self) -> None:
        for option in ("number", "category", "text"):
            if isinstance(getattr(self, option), str):  # one name, from the command line
                setattr(self, option, [getattr(self, option)])

    @classmethod
    def sniff(cls, examples: Examples) -> tuple[float, str]:
        if examples.kind != "table":
            return 0.0, "not a table"
        return 0.6, f"a table of {len(examples.inputs)} columns"

    # --- What is learned from ---------------------------------------------------------------------------------------

    def take(self, source: Source, *, own_net: bool = False) -> Source:
        """The parts with the columns of the training rows (of a fitted domain, with its own), in their order."""
        if not self.columns:
            self.own, self.features = own_net, _titles(source.train)
            self.letters = [np.asarray(column).dtype.kind for column in source.train.inputs]
            self.styles = dict(source.train.styles)
        self._given = [part for part in ("valid", "test") if getattr(source, part) is not None]  # type: ignore[misc]
        findings = list(source.findings)
        parts: dict[str, Examples] = {}
        for part in ("train", "valid", "test"):
            examples = getattr(source, part)
            if examples is not None:
                parts[part], told = self._matched(examples, f"{source.name}, the {part} rows,")
                findings += told
        return replace(source, findings=findings, **parts)  # type: ignore[arg-type]

    def _matched(self, examples: Examples, where: str) -> tuple[Examples, list[Finding]]:
        """Examples with the columns of the training, found by their names; one that is missing is all gaps."""
        examples = replace(examples, names=_titles(examples))
        return tables.matched(
            examples, self.features or [], self.letters, where, missing="gap", idle=self._idle(), styles=self.styles
        )

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        if self.scale not in ("none", "standard"):
            raise UsageError(f"scale={self.scale} is not for tables.", expected="none or standard")
        titles = self.features or [f"column {k}" for k in range(len(inputs))]
        for option in ("number", "category", "text"):
            for title in getattr(self, option):
                if title not in titles:
                    raise UsageError(f"There is no column {title!r} to be a {option}: {near(title, titles)}")
        self.features, self.rows = titles, len(rows)
        self.letters = [np.asarray(column).dtype.kind for column in inputs]
        steps = max(2, min(self.steps, STEPS // max(1, len(titles)), max(8, len(rows) // 10)))
        self.columns = [
            self._learn(title, np.asarray(column)[rows], steps) for title, column in zip(titles, inputs, strict=True)
        ]
        if not self._used():
            raise DataError(
                f"No column tells anything: {'; '.join(c['name'] + ' is ' + c['why'] for c in self.columns[:_SHOWN])}.",
                expected="a column that differs from row to row, and not in every one",
                fix="--domain-arg category=NAME takes one all the same",
            )

    def _learn(self, title: str, column: np.ndarray, steps: int) -> dict[str, Any]:
        """Kind, reason, and what encoding needs of one column of the training rows."""
        asked = next((kind for kind in ("number", "category", "text") if title in getattr(self, kind)), None)
        present = ~_gaps(column)
        entry: dict[str, Any] = {"name": title, "kind": asked, "why": "yours", "gaps": int((~present).sum())}
        if not present.any():
            return {**entry, "kind": "empty", "why": "empty"}
        if asked is None:
            entry["kind"], entry["why"] = self._kind(title, column[present], len(column))
        if entry["kind"] in LEFT_OUT:
            return entry
        if entry["kind"] in ("number", "boolean", "date"):
            values, strays = PARSERS[entry["kind"]](column)
            entry["strays"], entry["stray"] = len(strays), [str(stray)[:40] for stray in strays[:_SHOWN]]
            parts = _date_parts(values, title) if entry["kind"] == "date" else {title: values}
            learned = [(part, _quantiles(part_values, steps)) for part, part_values in parts.items()]
            entry["numbers"] = [{"name": part, **numbers} for part, numbers in learned if numbers is not None]
            if not entry["numbers"]:
                return {**entry, "kind": "constant", "why": "the same in all rows"}
            return entry
        texts = [text for text in _texts(column) if text is not None]
        if entry["kind"] == "category":
            counts = Counter(texts)
            least = self.rare or (2 if len(column) < 5_000 else 5)
            known = sorted((value for value, n in counts.items() if n >= least), key=lambda v: (-counts[v], v))
            entry["values"] = known[: self.categories]
            entry["pooled"] = len(counts) - len(entry["values"])
            return entry
        counts = Counter(word for text in texts for word in set(_words(text)))
        least = max(3, len(column) // 500)
        known = sorted((word for word, n in counts.items() if n >= least), key=lambda w: (-counts[w], w))
        entry["words"] = known[: self.words]
        return entry if entry["words"] else {**entry, "kind": "identifier", "why": "texts that share no words"}

    def _kind(self, title: str, values: np.ndarray, count: int) -> tuple[str, str]:
        """(kind, reason) of the values of a column, gaps left out."""
        if values.dtype.kind in "fiu":
            different = len(distinct(values))
            if different == 1:
                return _alone(len(values), count, "number")
            whole = bool((values == np.rint(values)).all())
            span = float(values.max()) - float(values.min()) + 1
            counter = _COUNTER.search(title) or (span <= 3 * count and not _WHEN.search(title))
            if whole and different == len(values) == count >= 30 and counter:
                return "identifier", "a number that counts the rows"
            if whole and _NAMES.search(title) and 2 < different <= (1 - COVERED) * len(values):
                return "category", f"{different:,} different whole numbers{THAT_NAME}"
            return "number", f"{different:,} different {'whole ' if whole else ''}numbers"
        if values.dtype.kind == "b":
            return (
                ("boolean", "true and false") if len(np.unique(values)) > 1 else _alone(len(values), count, "boolean")
            )
        if values.dtype.kind == "M":
            return ("date", "dates") if len(np.unique(values)) > 1 else _alone(len(values), count, "date")
        texts = [text for text in _texts(values) if text is not None]
        counts = Counter(texts)
        if len(counts) == 1:
            return _alone(len(values), count, "category")
        if all(isinstance(value, bool) for value in values):
            return "boolean", "true and false"
        if 1 - len(_as_numbers(values)[1]) / len(values) >= NUMERIC:
            return "number", "words that are numbers"
        if {text.lower() for text in counts} <= {*TRUE, *FALSE}:
            return "boolean", f"{' and '.join(map(repr, sorted(counts)))}"
        again = sum(n for n in counts.values() if n > 1) / len(texts)
        if again >= COVERED:
            return "category", f"{len(counts):,} different values"
        words = Counter(min(len(_words(text)), 2) for text in texts)
        if words[2] >= len(texts) / 2:
            return "text", f"{len(counts):,} different texts, most of several words"
        if len(counts) >= 0.95 * len(texts):
            return "identifier", "nearly every row has a value of its own"
        return "category", f"{len(counts):,} different values, most of them rare"

    def findings(self) -> list[Finding]:
        """What was left out or pooled, and why."""
        found = []
        for kind, words in (("empty", "empty"), ("constant", "the same in all training rows"),
                            ("identifier", "a name for each row")):  # fmt: skip
            gone = [column for column in self.columns if column["kind"] == kind]
            if gone:
                listed = ", ".join(column["name"] for column in gone[:_SHOWN]) + (", ..." if len(gone) > _SHOWN else "")
                why = f" ({gone[0]['why']})" if kind == "identifier" else ""
                found.append(Finding(
                    f"{kind}_columns", "warning" if kind == "identifier" else "note",
                    f"{len(gone):,} of {len(self.columns):,} columns {'is' if len(gone) == 1 else 'are'} {words}: "
                    f"{listed}{why}.", len(gone), [column["name"] for column in gone], "left out",
                    f"--domain-arg category={gone[0]['name']} takes it as a category" if kind == "identifier" else "",
                ))  # fmt: skip
        for column in self.columns:
            if column.get("strays"):
                found.append(Finding(
                    "stray_values", "warning",
                    f"{column['strays']:,} value{'s' if column['strays'] > 1 else ''} of the column {column['name']} "
                    f"{'are' if column['strays'] > 1 else 'is'} no {column['kind']}: {', '.join(map(repr, column['stray']))}.",
                    column["strays"], column["stray"], "taken as gaps", f"mend them, or --domain-arg category={column['name']}",
                ))  # fmt: skip
            if column["kind"] == "category" and column["pooled"]:
                known, pooled = len(column["values"]), column["pooled"]
                many = pooled > max(known, 20)
                found.append(Finding(
                    "high_cardinality" if many else "rare_categories", "warning" if many else "note",
                    f"{pooled:,} of the {known + pooled:,} values of the column {column['name']} are rare.", pooled, [],
                    "pooled into one", f"--domain-arg rare=1 keeps the {self.categories} most frequent"
                    + (f"; --ignore {column['name']}" if many else ""),
                ))  # fmt: skip
            if column["kind"] == "category" and column["why"].endswith(THAT_NAME):
                found.append(Finding(
                    "repeated_names", "note",
                    f"The column {column['name']} names {len(column['values']) + column['pooled']:,} that come again.",
                    1, column["values"][:_SHOWN], "taken as a category: rows of one may be in train and in test",
                    f"--groups {column['name']} if the net is to be asked about others, or --ignore {column['name']}",
                ))  # fmt: skip
            if column["kind"] == "text" and column["why"] != "yours":
                words = column["words"]
                found.append(Finding(
                    "high_cardinality", "note", f"The column {column['name']} holds {column['why']}.", 1, words[:_SHOWN],
                    f"taken as short texts: {len(words):,} words that come again are learned from",
                    f"--ignore {column['name']}, or --domain-arg category={column['name']}",
                ))  # fmt: skip
        return found

    # --- What it becomes --------------------------------------------------------------------------------------------

    def _idle(self) -> set[str]:
        """Columns that were there and told nothing."""
        return {column["name"] for column in self.columns if column["kind"] in LEFT_OUT}

    def _used(self) -> list[dict[str, Any]]:
        return [column for column in self.columns if column["kind"] in KINDS]

    def _numbers(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """(column, number) of each number of the encoded rows, in their order."""
        return [(column, number) for column in self._used() for number in column.get("numbers", ())]

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [column for column in self._used() if column["kind"] == kind]

    def encode(self, inputs: Any) -> tuple[Tensor]:
        columns = self._columns(inputs)
        count = len(columns[0])
        by_name = dict(zip(self.features or [], columns, strict=True))
        width = len(self._numbers()) + len(self._of("category")) + SLOTS * len(self._of("text"))
        encoded = np.zeros((count, width), np.float32)
        at = 0
        for column in self._used():
            if "numbers" not in column:
                continue
            values, strays = PARSERS[column["kind"]](by_name[column["name"]])
            if len(strays) and not column["strays"]:  # those of the training are told by `findings`
                listed = ", ".join(repr(str(stray)[:40]) for stray in strays[:_SHOWN])
                warnings.warn(
                    f"{len(strays):,} of {count:,} values of the column {column['name']} are no {column['kind']}, such as "
                    f"{listed}: they are taken as gaps.",
                    stacklevel=2,
                )
            parts = _date_parts(values, column["name"]) if column["kind"] == "date" else {column["name"]: values}
            for number in column["numbers"]:
                encoded[:, at] = self._number(parts[number["name"]], number)
                at += 1
        for column in self._of("category"):
            places = {value: k for k, value in enumerate(column["values"], UNKNOWN)}
            encoded[:, at] = [
                (0 if column["gaps"] else 1) if text is None else places.get(text, 1)
                for text in _texts(by_name[column["name"]])
            ]
            at += 1
        for column in self._of("text"):
            places = {word: k for k, word in enumerate(column["words"], 1)}
            for row, text in enumerate(_texts(by_name[column["name"]])):
                known = [places[word] for word in dict.fromkeys(_words(text or "")) if word in places][:SLOTS]
                encoded[row, at : at + len(known)] = known
            at += SLOTS
        return (torch.from_numpy(encoded),)

    def _number(self, values: np.ndarray, number: dict[str, Any]) -> np.ndarray:
        """A column (N,) float64 -> positions among its quantiles, or for a net of yours the numbers; NaN a gap. A gap where
        training had none is as good as the middle."""
        gap = np.isnan(values)
        edges = np.asarray(number["edges"])
        values = np.clip(values, -FAR, FAR)
        if self.own:
            found, middle = np.clip(values, -MOST, MOST), number["mean"]
        else:
            found, middle = np.interp(values, edges, np.arange(len(edges))), (len(edges) - 1) / 2
        return np.where(gap, np.nan if number["gaps"] else middle, found)

    def _columns(self, inputs: Any) -> tuple[Any, ...]:
        """The raw columns, in the order of training, of a tuple of them, a mapping by name, or a data frame."""
        if hasattr(inputs, "columns") and hasattr(inputs, "to_numpy") and not isinstance(inputs, Mapping):
            inputs = {str(title): inputs[title].to_numpy() for title in inputs.columns}
        if isinstance(inputs, Mapping):
            given = tuple(np.asarray(column) for column in inputs.values())
            found, told = self._matched(
                Examples(given, None, "table", [str(title) for title in inputs]), "What was given"
            )
            _warn(told)
            inputs = found.inputs
        if isinstance(inputs, np.ndarray) and inputs.ndim == 2:
            inputs = tuple(inputs.T)
        if not isinstance(inputs, (tuple, list)) or len(inputs) != len(self.features or []):
            count = len(inputs) if isinstance(inputs, (tuple, list)) else type(inputs).__name__
            raise DataError(
                f"The inputs are {count} columns." if isinstance(count, int) else f"The inputs are a {count}.",
                expected=f"{len(self.features or [])} columns: {', '.join(self.features or [])[:200]}",
                fix="a tuple of them in this order, or a mapping from their names",
            )
        return tuple(np.asarray(column) for column in inputs)

    def prepare(self) -> nn.Module:
        return self._dense() if self.own else nn.Identity()

    def _dense(self) -> Dense:
        shift, width, fill, gaps = [], [], [], []
        for k, (_, number) in enumerate(self._numbers()):
            steps = len(number["edges"]) - 1
            mean, deviation = (number["mean"], number["std"]) if self.own else (steps / 2, steps / 12**0.5)
            scaled = not self.own or self.scale == "standard"
            shift.append(mean if scaled else 0.0)
            width.append(deviation if scaled else 1.0)
            fill.append(0.0 if scaled else mean)
            if number["gaps"]:
                gaps.append(k)
        return Dense(shift, width, fill, gaps, [len(column["values"]) for column in self._of("category")],
                     [len(column["words"]) for column in self._of("text")])  # fmt: skip

    @property
    def features_out(self) -> list[str]:
        """The names of the numbers that a net of yours gets."""
        numbers = self._numbers()
        return [
            *(number["name"] for _, number in numbers),
            *(f"{number['name']} is a gap" for _, number in numbers if number["gaps"]),
            *(f"{column['name']} = {value}" for column in self._of("category")
              for value in ("a gap", "another", *column["values"])),
            *(f"{column['name']} says {word}" for column in self._of("text") for word in column["words"]),
        ]  # fmt: skip

    def net(self, target: Target, size: str, name: str | None = None, **arguments: Any) -> nn.Module:
        name = name or self.default_net
        if name != self.default_net:
            kind = base.named(name, "columns of a table")
            dense = self._dense()
            return nn.Sequential(dense, kind.fitted((dense.outputs,), target.width, size, **arguments))
        average = {"classes": "softmax", "tags": "sigmoid"}.get(target.name, "mean")
        if getattr(target, "single", False):
            average = "sigmoid"
        return Tabular.fitted(
            (len(self._numbers()),), target.width, size, steps=[len(number["edges"]) - 1 for _, number in self._numbers()],
            categories=[len(column["values"]) for column in self._of("category")],
            texts=[(len(column["words"]), SLOTS) for column in self._of("text")], average=average,
            edges=[_deviations(np.asarray(number["edges"]), number).tolist() for _, number in self._numbers()], **arguments,
        )  # fmt: skip

    def begin(self, net: nn.Module, examples: Encoded, rows: np.ndarray, target: Target) -> None:
        if isinstance(net, Tabular):
            net.begin(mapped.take(examples.inputs[0], torch.from_numpy(spread(rows, STARTED))))

    def loss(self, net: nn.Module, batch: Any, target: Target, loss: Any) -> tuple[Tensor, Any]:
        """Of a net of several members, the mean of their losses."""
        several = getattr(net, "members", 0) and net.training
        return (self.loss_of_members if several else super().loss)(net, batch, target, loss)

    # --- Who else asks ------------------------------------------------------------------------------------------------

    def plain(self, inputs: Any, rows: np.ndarray, model: str) -> np.ndarray:
        """For "trees" the encoded rows with NaN for a gap, a code a column of categories and a column a word; for another
        model numbers of mean 0 and deviation 1 with NaN for a gap, whether they are one, and a column a category and a word,
        the most frequent where there are too many."""
        encoded = mapped.take(inputs[0], torch.from_numpy(rows)).numpy()
        numbers, categories = self._numbers(), self._of("category")
        parts = [encoded[:, : len(numbers)]]
        at = len(numbers)
        if model != "trees":
            table = parts[0].astype(np.float64)
            for k, (_, number) in enumerate(numbers):
                there = ~np.isnan(table[:, k])
                values = table[there, k]
                if not self.own:
                    values = np.interp(values, np.arange(len(number["edges"])), number["edges"])
                table[there, k] = _deviations(values, number)
            table = table.astype(np.float32)
            known = [k for k, (_, number) in enumerate(numbers) if number["gaps"]]
            parts = [table, np.isnan(table[:, known]).astype(np.float32)]
        most = max(8, int(CELLS / max(1, len(encoded)) / max(1, len(categories) + len(self._of("text")))))
        for column in categories:
            codes = encoded[:, at]
            if model == "trees":
                parts.append(np.where(codes == 0, np.nan, codes)[:, None])
            else:
                parts.append(codes[:, None] == np.arange(min(most, len(column["values"]) + UNKNOWN)))
            at += 1
        for column in self._of("text"):
            words = np.arange(1, min(most, len(column["words"])) + 1)
            said = np.zeros((len(encoded), len(words) + 1), np.float32)
            for slot in range(SLOTS):
                codes = encoded[:, at + slot].astype(np.int64)
                said[np.arange(len(codes)), np.where(codes <= len(words), codes, 0)] = 1
            parts.append(said[:, 1:])
            at += SLOTS
        return np.concatenate([np.asarray(part, parts[0].dtype) for part in parts], 1)

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A table to predict on; its columns are found by their names, what is missing or new is said."""
        with written_as(self.styles):
            columns, ids, told = tables.open_inputs(
                path, self.features or [], None, kinds=self.letters, missing="gap", idle=self._idle()
            )
        _warn(told)
        return columns, ids

    def opinions(self, examples: Examples, target: Target, asked: Recipe) -> dict[str, tuple[Any, str]]:
        if asked.net not in (None, self.default_net):
            return {}
        held_out = {"valid": asked.valid or "0.1", "test": asked.test or "0.2"}
        shares = [0.0 if part in self._given else share(given) or 0.0 for part, given in held_out.items()]
        n = round(len(examples.inputs[0]) * (1 - sum(shares)))
        rows, little = f"about {n:,} training rows", n < 2_000
        batch = asked.batch_size or max(16, min(256, 2 ** round(math.log2(max(n, 2) / 120))))
        size = "small" if little else "large" if (asked.budget or 0) >= LONG else "medium"
        found: dict[str, tuple[Any, str]] = {
            "size": (size, rows + (", and there is time" if size == "large" else "")),
            "batch_size": (batch, rows),
            "learning_rate": (2e-3 if little else 8e-3, "peak of adamw with one_cycle for tables"),
            "weight_decay": (0.02, "against overfitting; biases are spared"),
        }
        if with_line(asked, target.name, n):
            found["net_arg"] = ({"beside": True, **asked.net_arg}, f"{rows}: a linear model has a say, too")
        epochs = max(10, min(30 if little else 40, round((600 if little else 3_500) * batch / n)))
        epochs *= 1 if asked.budget is None else ENOUGH
        planned = asked.budget is not None or asked.steps is not None
        if asked.steps is None:
            found["epochs"] = (epochs, f"{rows}, about {epochs * -(-n // batch):,} steps")
        if (not little or planned) and share(held_out["valid"]) != 0:
            found["early_stopping"] = (
                20 if planned else max(5, epochs // 3),
                "tables differ in how soon they are learned by heart",
            )
        return found

    @classmethod
    def tiny(cls) -> Source:
        """Three kinds of flower-like things, 240 of them, told apart by numbers and a yes or no."""
        random = np.random.default_rng(0)
        kind = np.arange(240) % 3
        length, width = random.normal(kind * 2.0 + 5.0, 0.7), random.normal(3.0 - kind, 0.5)
        columns = (length.round(1), width.round(1), (kind * 4 + random.integers(0, 3, 240)).astype(float), kind == 1)
        titles = ["length", "width", "petals", "striped"]
        return Source("tiny table", Examples(columns, np.array(["rose", "iris", "daisy"])[kind], "table", titles))

    def read(self, source: Any, **options: Any) -> Source:
        with written_as(self.styles):
            return source if isinstance(source, Source) else super().read(source, **options)


class Dense(nn.Module):
    """Encoded rows (B, W) -> numbers without gaps (B, F), for nets that know no columns: see the top of this module."""

    shift: Tensor  # (N,), as are width and fill, what a gap becomes
    width: Tensor
    fill: Tensor

    def __init__(
        self,
        shift: Sequence[float],
        width: Sequence[float],
        fill: Sequence[float],
        gaps: Sequence[int],
        categories: Sequence[int],
        texts: Sequence[int],
    ):
        super().__init__()
        self.numbers, self.gaps, self.categories, self.texts = len(shift), list(gaps), list(categories), list(texts)
        for name, values in (("shift", shift), ("width", width), ("fill", fill)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        codes = [count + UNKNOWN for count in categories]
        self.outputs = len(shift) + len(gaps) + sum(codes) + sum(texts)

    def forward(self, x: Tensor) -> Tensor:
        numbers = x[:, : self.numbers]
        gap = numbers.isnan()
        parts = [torch.where(gap, self.fill, (numbers - self.shift) / self.width), gap[:, self.gaps].to(x.dtype)]
        at = self.numbers
        for count in self.categories:
            parts.append((x[:, at, None] == torch.arange(count + UNKNOWN, device=x.device)).to(x.dtype))
            at += 1
        for words in self.texts:
            said = x[:, at : at + SLOTS, None] == torch.arange(1, words + 1, device=x.device)  # (B, slots, words)
            parts.append(said.any(1).to(x.dtype))
            at += SLOTS
        return torch.cat(parts, 1)


# --- Columns ------------------------------------------------------------------------------------------------------------


def _titles(examples: Examples) -> list[str]:
    return examples.names or [f"column {k}" for k in range(len(examples.inputs))]


def _warn(findings: Sequence[Finding]) -> None:
    for finding in findings:
        warnings.warn(finding.told()[1], stacklevel=4)


def _alone(values: int, count: int, kind: str) -> tuple[str, str]:
    """One value: a constant, or where there are gaps, whether it is there."""
    return ("constant", "the same in all rows") if values == count else (kind, "one value, or a gap")


def _gaps(column: np.ndarray) -> np.ndarray:
    """(N,) where nothing is said. An infinite number says nothing."""
    if column.dtype.kind == "f":
        return ~np.isfinite(column)
    if column.dtype.kind == "M":
        return np.isnat(column)
    if column.dtype.kind == "O":
        return np.array([value is None or value != value or value == "" for value in column], bool)
    return np.zeros(len(column), bool)


def _as_numbers(column: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """(float64 (N,) with NaN for a gap, values that are no numbers)."""
    if column.dtype.kind in "fiub":
        values = column.astype(np.float64)
        return np.where(np.isfinite(values), values, np.nan), []
    found, strays = np.full(len(column), np.nan), []
    for row in np.flatnonzero(~_gaps(column)):
        try:
            value = float(column[row])
            found[row] = value if math.isfinite(value) else math.nan
        except (TypeError, ValueError, OverflowError):
            strays.append(column[row])
    return found, strays


def _as_booleans(column: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """(0, 1 or NaN, float64 (N,); values that are neither true nor false)."""
    if column.dtype.kind == "b":
        return column.astype(np.float64), []
    found, strays = np.full(len(column), np.nan), []
    for row in np.flatnonzero(~_gaps(column)):
        text = _text(column[row]).lower()
        if text in TRUE or text in FALSE:
            found[row] = text in TRUE
        else:
            strays.append(column[row])
    return found, strays


def _as_dates(column: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """(datetime64[s] (N,) with NaT for a gap, values that are no dates)."""
    if column.dtype.kind == "M":
        return column.astype("datetime64[s]"), []
    found, strays = np.full(len(column), "NaT", "datetime64[s]"), []
    for row in np.flatnonzero(~_gaps(column)):
        value = column[row]
        try:
            if isinstance(value, (bool, int, float, np.number)):  # numpy would take it for seconds
                raise ValueError
            found[row] = np.datetime64(value, "s")
        except (TypeError, ValueError):
            strays.append(value)
    return found, strays


PARSERS = {"number": _as_numbers, "boolean": _as_booleans, "date": _as_dates}


def _date_parts(values: np.ndarray, title: str) -> dict[str, np.ndarray]:
    """What a date (datetime64[s]) says, as numbers (N,) by name; NaN for a gap."""
    days, gap = values.astype("datetime64[D]"), np.isnat(values)
    months, years = values.astype("datetime64[M]"), values.astype("datetime64[Y]")

    def number(part: np.ndarray) -> np.ndarray:
        return np.where(gap, np.nan, part.astype(np.int64))

    second = number(values - days)
    turn = 2 * np.pi * number(days - years) / 365.25
    clock = 2 * np.pi * second / 86_400
    parts = {
        "days": number(values) / 86_400,  # since 1970
        "year": number(years) + 1970,
        "month": number(months) % 12 + 1,
        "day of the month": number(days - months) + 1,
        "weekday": (number(days) + 3) % 7 + 1,  # 1 is Monday
        "hour": second / 3600,
        "time of the year, sine": np.sin(turn),
        "time of the year, cosine": np.cos(turn),
        "time of day, sine": np.sin(clock),
        "time of day, cosine": np.cos(clock),
    }
    return {f"{title}, {part}": column for part, column in parts.items()}


def _quantiles(values: np.ndarray, steps: int) -> dict[str, Any] | None:
    """What encoding a column of numbers needs; None where it tells nothing.

    Edges are the values themselves where they are few; else quantiles, and each value that alone is worth a step."""
    there = np.clip(values[np.isfinite(values)], -FAR, FAR)
    gaps = len(values) - len(there)
    if not len(there) or (there.min() == there.max() and not gaps):
        return None
    edges, counts = np.unique(there, return_counts=True)
    if len(edges) > steps + 1:
        often = edges[counts > len(there) / steps]
        others = there[~np.isin(there, often)]
        edges = np.unique([*often, *np.quantile(others, np.linspace(0, 1, steps + 1 - len(often)))])
    if len(edges) == 1:
        edges = np.array([edges[0], edges[0] + max(1.0, abs(edges[0]))])
    near_by = np.clip(there, -MOST, MOST)
    deviation = float(np.float32(near_by.std()))
    return {"edges": edges.tolist(), "gaps": bool(gaps), "mean": float(near_by.mean()), "std": deviation or 1.0}


def _deviations(values: np.ndarray, number: dict[str, Any]) -> np.ndarray:
    """Numbers as deviations from the mean of their column."""
    found: np.ndarray = (np.clip(values, -MOST, MOST) - number["mean"]) / number["std"]
    return found.clip(-1e4, 1e4)


def _text(value: Any) -> str:
    """A value as a category: 3.0 is 3, so that a column of codes is the same whether read as numbers or as words."""
    if isinstance(value, (float, np.floating)) and float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)[:LETTERS]


def _texts(column: np.ndarray) -> list[str | None]:
    return [None if gap else _text(value) for value, gap in zip(column.tolist() if column.dtype.kind != "M" else
                                                                column.astype(str), _gaps(column), strict=True)]  # fmt: skip


def _words(text: str) -> list[str]:
    """The words of a short text, in small letters; of scripts that write none apart, pairs of letters."""
    found: list[str] = []
    for word in re.findall(r"\w+", text[:2000].casefold()):
        if len(word) > 2 and unicodedata.category(word[0]) == "Lo":
            found += [word[k : k + 2] for k in range(len(word) - 1)]
        else:
            found.append(word[:40])
    return found


DOMAIN = Table
