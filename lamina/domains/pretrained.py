"""Texts or pictures for a net that somebody else trained: `--net hf:FOLDER`, `--net timm:NAME --weights FILE`.

In: texts (or the text column of a table), or pictures, as the domains `text` and `image` take them. Out: the numbers of the
trunk's own tokenizer (N, T), or pictures (N, C, H, W) of the size and scale it was trained with.

The trunk is frozen: what it makes of an example is computed once and kept, and only a linear layer on top is learned, in
seconds, from where a logistic regression ends. With `--net-arg tune=true` the whole net goes on from there, each layer
before the last with a smaller rate. The run holds all it needs; the folder is not asked for again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina import features, mapped, names, pretrained, pseudo
from lamina.batches import over
from lamina.domains.arrays import Scale
from lamina.domains.base import Domain, Encoded
from lamina.errors import DataError, UsageError
from lamina.findings import Finding
from lamina.imports import loading
from lamina.recipe import Recipe
from lamina.sources import Examples, Source
from lamina.splits import spread
from lamina.targets.base import Target

KEPT_IN = "trunk"  # the folder in a run with the trunk's configuration and tokenizer
LENGTH = 0.999  # share of the training texts that are taken whole
ROOM, MANY = 128, 10_000  # tokens there are room for, where fewer training texts do not tell how long others are
FOLDS = 5
TRIED = 3_000  # examples in cross-validation
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # of what the features and the words say, that are tried
STEPS = 600  # of a linear layer that begins anywhere
CACHED = 64  # examples from which on features are looked for in the cache
AT_ONCE = 16  # examples in the trunk: few of like length, in little memory
OUTPUTS_MOST = 32  # beyond it the words would need more numbers than the trunk has


@dataclass
class Pretrained(Domain):
    name: ClassVar[str] = "pretrained"
    default_net: ClassVar[str] = ""  # it is named by whoever asks for this domain

    trunk: str = ""  # "hf:FOLDER" or "timm:NAME"
    weights: str | None = None  # the file of timm's
    length: int = 0  # tokens of a text at most; 0: as long as nearly all training texts are
    inner: dict[str, Any] = field(default_factory=dict)  # the state of the domain that takes the inputs
    cut: int = 0  # training texts that were cut

    def __post_init__(self) -> None:
        self._kept: Path | None = None  # in a run: where its configuration and tokenizer are
        self._tokens: pretrained.Tokens | None = None
        self._found: pretrained.Card | None = None
        self._below: Domain | None = None

    @property
    def card(self) -> pretrained.Card:
        if self._found is None:
            if not self.trunk:
                raise UsageError("The domain pretrained takes a net that is named.", fix="--net hf:FOLDER")
            way = self.trunk if self._kept is None else f"hf:{self._kept}"
            self._found = pretrained.card(way)
        return self._found

    @property
    def below(self) -> Domain:
        """The domain that takes texts or pictures from a source."""
        if self._below is None:
            kind = names.module("domains", "text" if self.card.inputs == "texts" else "image").DOMAIN
            known = {entry.name for entry in dataclasses.fields(kind)}
            options = {"size": self.card.side} if "size" in known and not self.inner else self.inner
            self._below = kind(**options)
        return self._below

    @property
    def tokens(self) -> pretrained.Tokens:
        if self._tokens is None:
            self._tokens = pretrained.Tokens(self.card)
        return self._tokens

    def take(self, source: Source, *, own_net: bool = False) -> Source:
        wanted, kind = self.card.inputs, source.train.kind
        fits = ("texts", "table") if wanted == "texts" else ("pictures", "files", "arrays")
        if kind not in fits:
            raise UsageError(
                f"{source.name} holds {'pictures' if kind == 'files' else kind}, and {self.trunk} takes {wanted}.",
                expected="texts: a file of them, or a table with a column of texts; pictures: a folder of picture files",
                fix="a trunk that takes such inputs, or leave --net out",
            )
        taken = source if kind == wanted == "texts" else self.below.take(source, own_net=own_net)
        if wanted == "texts" and (columns := getattr(self.below, "columns", None)):
            self.inner = {"columns": list(columns)}  # of a table, found again by name
        return taken

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        if self.card.inputs == "pictures":
            self.below.fit(inputs, rows)
            self.inner = self.below.state()
            return
        counts = np.array([len(entry) for entry in self.tokens(_texts(inputs, rows))])
        if not self.length:
            longest = int(np.quantile(counts, LENGTH, method="higher"))
            self.length = min(self.tokens.most, max(longest, ROOM if len(rows) < MANY else 4))
        if self.length > self.tokens.most:
            raise UsageError(f"length is {self.length}, and {self.trunk} takes {self.tokens.most} tokens at most.")
        self.cut = int((counts > self.length).sum())

    def findings(self) -> list[Finding]:
        if not self.cut:
            return []
        return [
            Finding(
                "cut", "note", f"{self.cut:,} texts have more than {self.length} tokens.",
                count=self.cut, examples=[], done="their ends are left out", fix=f"--domain-arg length={self.tokens.most}",
            )
        ]  # fmt: skip

    def encode(self, inputs: Any) -> Any:
        if self.card.inputs == "pictures":
            return self.below.encode(inputs)
        column = self.tokens(_texts(inputs, None), self.length)
        table = torch.full((len(column), self.length), self.tokens.padding, dtype=torch.int32)
        for row, numbers in enumerate(column):
            table[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        special = self.tokens.special
        return (table, torch.from_numpy(pretrained.grams(table.numpy(), self.tokens.padding, special)))

    def prepare(self) -> nn.Module:
        if self.card.inputs == "texts":
            return nn.Identity()
        unit = 255.0 if getattr(self.below, "bytes", True) else 1.0
        mean, std = ([[[float(value)]] for value in column] for column in (self.card.mean, self.card.std))
        return Scale(unit, mean, std)

    def net(self, target: Target, size: str, name: str | None = None, **arguments: Any) -> nn.Module:
        tune, dropout = bool(arguments.pop("tune", False)), float(arguments.pop("dropout", 0.1))
        if arguments:
            raise UsageError(f"A pretrained net has no argument {next(iter(arguments))!r}.", expected="tune, dropout")
        padding = self.tokens.padding if self.card.inputs == "texts" else 0
        trunk = pretrained.trunk(self.card, padding, file=self.weights, empty=self._kept is not None)
        width = pretrained.width(trunk, self.card)
        words = self.card.inputs == "texts"
        grams = pretrained.GRAMS if words and target.name == "classes" and target.width <= OUTPUTS_MOST else 0
        return pretrained.Tuned(trunk, width, target.width, frozen=not tune, dropout=dropout, grams=grams)

    def opinions(self, examples: Examples, target: Target, asked: Recipe) -> dict[str, tuple[Any, str]]:
        if not asked.net_arg.get("tune") and target.name != "classes":
            count = len(examples.inputs[0]) if isinstance(examples.inputs, tuple) else STEPS
            return {
                "batch_size": (64, "only a linear layer is learned"),
                "epochs": (int(np.clip(64 * STEPS // count, 20, 300)), f"some {STEPS:,} steps of a linear layer"),
                "learning_rate": (3e-3, "only a linear layer is learned"),
                "augment": ("none", "what a frozen trunk makes of an example is computed once"),
                "mixup": (0.0, ""),
            }
        if not asked.net_arg.get("tune"):
            return {
                "batch_size": (64, "only a linear layer is learned"),
                "epochs": (5, "the linear layer begins where a logistic regression ends"),
                "learning_rate": (1e-4, "the linear layer begins where a logistic regression ends"),
                "schedule": ("linear", "it is polished, no more"),
                "augment": ("none", "what a frozen trunk makes of an example is computed once"),
                "weight_decay": (0.05, "against overfitting"),
                "mixup": (0.0, ""), "label_smoothing": (0.0, ""), "clip_norm": (1.0, "one odd batch cannot throw it off"),
            }  # fmt: skip
        rate = asked.learning_rate if isinstance(asked.learning_rate, float) else 5e-5
        with torch.device("meta"):
            empty = pretrained.trunk(self.card, empty=True)
        rates = pretrained.layer_rates(nn.ModuleDict({"trunk": empty}), rate)
        return {
            "batch_size": (16, "a net that is trained already"),
            "epochs": (4, "a net that is trained already"),
            "learning_rate": (rate, "the layers before the last have less"),
            "rates": ({**rates, **asked.rates}, "each layer of the trunk 0.8 times that of the next"),
            "schedule": ("linear", "down to nothing"),
            "warmup": (0.1, "the first steps are small"),
            "label_smoothing": (0.0, ""),
        }

    # --- What a frozen trunk makes of examples is computed once -------------------------------------------------------

    def featured(self, net: Any, examples: Encoded, rows: np.ndarray | None) -> Encoded:
        """The examples with the features (N, F) of a trunk in the place of tokens or pictures; zeros in the rows that were
        not asked for. They are kept with the examples."""
        column = examples.inputs[0]
        kept = examples.__dict__.setdefault("features", {})
        if not kept:
            kept.update(table=torch.zeros(len(column), int(net.features)), there=np.zeros(len(column), bool))
        wanted = np.arange(len(column)) if rows is None else np.unique(rows)
        missing = wanted[~kept["there"][wanted]]
        if len(missing):
            kept["table"][torch.from_numpy(missing)] = self._looked_up(net, column, missing)
            kept["there"][missing] = True
        return Encoded((kept["table"], *examples.inputs[1:]), examples.truth, examples.encode_truth)

    def _looked_up(self, net: Any, column: Tensor, rows: np.ndarray) -> Tensor:
        """(n, F) of some rows: from the cache where many are asked for, else computed."""
        if len(rows) < CACHED:
            return self._computed(net.trunk, column, rows)
        padding = self.tokens.padding if self.card.inputs == "texts" else None
        trunk = features.of_trunk(net.trunk)
        keys = features.keys(mapped.take(column, torch.from_numpy(rows)), padding)
        table, there = features.known(trunk, keys, int(net.features))
        if not there.all():
            new = self._computed(net.trunk, column, rows[~there])
            table[torch.from_numpy(~there)] = new
            features.keep(trunk, keys[~there], new)
        return table

    @torch.no_grad()
    def _computed(self, trunk: nn.Module, column: Tensor, rows: np.ndarray) -> Tensor:
        """(n, F) of some rows: those of like length together."""
        order, device = np.arange(len(rows)), next(trunk.parameters()).device
        if self.card.inputs == "texts":
            lengths = (mapped.take(column, torch.from_numpy(rows)) != self.tokens.padding).sum(1)
            order = np.argsort(lengths.numpy(), kind="stable")
        prepare, found = self.prepare().to(device), []
        for places in np.split(order, range(AT_ONCE, len(order), AT_ONCE)):
            inputs = mapped.take(column, torch.from_numpy(rows[places])).to(device)
            found.append(trunk(prepare(inputs)).float().cpu())
        table = torch.cat(found)
        return table[torch.from_numpy(np.argsort(order, kind="stable"))]

    def batches(self, net: nn.Module, examples: Encoded, rows: np.ndarray | None, **options: Any) -> Any:
        if getattr(net, "frozen", False):
            if options.get("augment") is not None:
                raise UsageError(
                    "augment changes pictures in every epoch, and what a frozen trunk makes of them is computed once.",
                    fix="leave augment out, or train the trunk too: --net-arg tune=true",
                )
            examples = self.featured(net, examples, rows)
        if examples.inputs[0].ndim == 2 and examples.inputs[0].is_floating_point():  # features need no preparation
            return over(examples.inputs, examples.truth, indices=rows, **options)
        return super().batches(net, examples, rows, **options)

    def ask(self, net: Any, examples: Encoded, rows: np.ndarray | None = None, **options: Any) -> Any:
        if getattr(net, "frozen", False):
            examples, net = self.featured(net, examples, rows), net.head
        return super().ask(net, examples, rows, **options)

    def validate(self, net: Any, batches: Any, target: Target, loss: Any, **options: Any) -> dict[str, float]:
        return super().validate(net.head if getattr(net, "frozen", False) else net, batches, target, loss, **options)

    def begin(self, net: Any, examples: Encoded, rows: np.ndarray, target: Target) -> None:
        """Begin where a regression on the features and naive Bayes on the words end; how much the words are to say, and how
        sure both are together, is chosen by cross-validation."""
        some = torch.from_numpy(rows)
        found = self.featured(net, examples, rows)
        table = found.inputs[0][some]
        head = net.head
        head.mean.copy_(table.mean(0))
        head.std.copy_(table.std(0).clamp_min(1e-6) if len(table) > 1 else torch.ones_like(head.std))
        if target.name != "classes" or target.width < 2 or examples.truth is None:
            nn.init.normal_(head.out.weight, std=0.01)
            return
        numbers = ((table - head.mean.cpu()) / head.std.cpu()).numpy()
        words = None if head.bag is None else _sparse(mapped.take(found.inputs[1], some).numpy())
        shares = np.eye(target.width)[examples.truth[some].numpy()]
        scale, of_words = _mixture(numbers, words, shares)
        weight, bias = pseudo.regression(numbers, shares)
        head.out.weight.data.copy_(torch.from_numpy(scale * weight.T))
        head.out.bias.data.copy_(torch.from_numpy(scale * bias))
        if words is not None:
            head.bag.ratio[1:].copy_(torch.from_numpy(of_words * pseudo.bayes(words, shares)))

    def sides(self, net: Any, examples: Encoded, rows: np.ndarray) -> list[Any]:
        found = self.featured(net, examples, rows)
        sides: list[Any] = [found.inputs[0][torch.from_numpy(rows)].numpy()]
        return sides + [_sparse(mapped.take(column, torch.from_numpy(rows)).numpy()) for column in found.inputs[1:]]

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        return self.below.open_inputs(path)

    @property
    def simple(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.below.simple

    def plain(self, inputs: Any, rows: np.ndarray, model: str) -> Any:
        """Of pictures what the image domain gives; of texts which tokens and pairs of them stand in each."""
        if self.card.inputs == "pictures":
            return self.below.plain(inputs, rows, model)
        return _sparse(mapped.take(inputs[1], torch.from_numpy(rows)).numpy())

    def pictures(self, inputs: Any, rows: np.ndarray) -> np.ndarray | None:
        return self.below.pictures(inputs, rows) if self.card.inputs == "pictures" else None

    def save(self, folder: Path) -> None:
        pretrained.keep(self.card, folder / KEPT_IN)

    def open(self, folder: Path) -> None:
        if (folder / KEPT_IN).is_dir():
            self._kept, self._found, self._tokens = folder / KEPT_IN, None, None

    def state(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}


def _texts(inputs: Any, rows: np.ndarray | None) -> list[str]:
    column = inputs[0] if isinstance(inputs, tuple) else inputs
    column = np.asarray(column, dtype=object)
    if column.ndim != 1:
        raise DataError(f"The texts have shape {column.shape}.", expected="one text an example, (N,)")
    return [str(entry) for entry in (column if rows is None else column[rows])]


def _sparse(numbers: np.ndarray) -> Any:
    """N-grams (n, A), numbers from 1 up -> a sparse matrix (n, GRAMS) of 0 and 1."""
    with loading():
        from scipy import sparse

    of_texts, places = np.nonzero(numbers)
    shape = (len(numbers), pretrained.GRAMS)
    return sparse.csr_matrix((np.ones(len(of_texts)), (of_texts, numbers[of_texts, places] - 1)), shape)


def _mixture(numbers: np.ndarray, words: Any, shares: np.ndarray) -> tuple[float, float]:
    """(factor of the regression, factor of naive Bayes) that make held-out answers likeliest, over FOLDS folds."""
    rows = spread(np.arange(len(shares)), TRIED)
    truth = shares[rows].argmax(1)
    smallest = np.bincount(truth)[np.unique(truth)].min()
    if smallest < 2:
        return 1.0, 0.0
    fold = np.empty(len(rows), int)
    for k in np.unique(truth):
        fold[truth == k] = np.arange((truth == k).sum()) % FOLDS
    one, other = np.zeros((len(rows), shares.shape[1])), np.zeros((len(rows), shares.shape[1]))
    for k in range(FOLDS):
        out, rest = fold == k, rows[fold != k]
        if out.any():
            weight, bias = pseudo.regression(numbers[rest], shares[rest])
            one[out] = numbers[rows[out]] @ weight + bias
            if words is not None:
                count = np.maximum(np.asarray(words[rows[out]].sum(1)), 1)  # as the bag of the net does
                other[out] = words[rows[out]] @ pseudo.bayes(words[rest], shares[rest]) / np.sqrt(count)

    def surprise(pair: tuple[float, float]) -> float:
        found = pseudo.softmax(pair[0] * one + pair[1] * other)
        return float(-np.log(found[np.arange(len(truth)), truth].clip(1e-12)).mean())

    pairs = [(a, b) for a in FACTORS for b in ((0.0, *FACTORS) if words is not None else (0.0,))]
    return min(pairs, key=surprise)


DOMAIN = Pretrained
