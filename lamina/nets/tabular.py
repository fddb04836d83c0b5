"""The net for tables: numbers in steps, categories and words as vectors, and many perceptrons in one.

In: rows (B, W) as the domain `table` encodes them: first the numbers, as positions among the steps of their column (NaN a
gap), then the codes of categories, then the codes of the words of short texts (0 none). Out: (B, outputs); while it learns
(B, members, outputs), since each member has a loss of its own. Called by name as "tabular".

- A number is embedded piece by piece between quantiles of its column: "On embeddings for numerical features in tabular
  deep learning", Gorishniy, Rubachev and Babenko, 2022, arXiv 2203.05556; the linear part beside it is from the paper below.
- Beside it all stands a linear function of the numbers, freed of what they have in common (`begin`): where columns hardly
  differ from one another and that little is the answer, gradient descent would be long in finding it (LeCun, Bottou, Orr and
  Müller, "Efficient backprop", 1998).
- The members share all weights but a scale for each input and the last layer: TabM-mini of "TabM: advancing tabular deep
  learning with parameter-efficient ensembling", Gorishniy, Kotelnikov and Babenko, 2024, arXiv 2410.24210.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina.errors import UsageError, near
from lamina.nets import base
from lamina.nets.beside import MOST, Beside

SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden": (128, 128), "members": 8, "embedding": 8},
    "medium": {"hidden": (256, 256), "members": 8, "embedding": 12},
    "large": {"hidden": (384, 384, 384), "members": 16, "embedding": 16},
}
AVERAGES = ("mean", "softmax", "sigmoid")
WIDEST = 2048  # numbers that all embeddings together have: of very many columns each gets fewer
TOGETHER = 512  # columns of numbers up to which it is learned what they have in common
LEAST = 1e-3  # variance of a direction, as a part of the largest, that is told from noise
NEVER = 1e9  # a position that no number reaches
UNKNOWN = 2  # codes of a category that say nothing of it: 0 a gap, 1 another than those known


class Steps(nn.Module):
    """Positions (B, N) -> vectors (B, N, D), a linear function and a piecewise linear one of each number; and the numbers
    themselves (B, N), mean 0 and deviation 1, where a gap is 0.

    Position p of a column of T steps lies in 0..T; step t is filled by clamp(p - t, 0, 1). A column of no steps is a number
    as it is, and its function is linear. A gap (NaN) has a vector of its own. edges: of each column the T + 1 numbers that
    its positions 0 to T stand for, in deviations from the mean; without them the positions are the numbers.
    """

    first: Tensor
    scale: Tensor
    shift: Tensor
    rises: Tensor  # (N, T + 1, 1) how far a number goes in each step; what is last makes a gap 0
    lowest: Tensor  # (N,)

    def __init__(self, steps: Sequence[int], width: int, edges: Sequence[Sequence[float]] | None = None):
        super().__init__()
        count, most = len(steps), max(steps, default=0)
        begins = torch.ones(count, most).cumsum(1).sub_(1)  # 0, 1, 2, ...
        middle = torch.tensor(steps).float() / 2
        scale = torch.where(middle > 0, middle / 3**0.5, 1.0)  # if uniform
        rises, lowest = torch.zeros(count, most + 1, 1), -middle / scale
        for column, size in enumerate(steps):
            begins[column, size:] = NEVER
            rises[column, :size] = 1 / scale[column]
            if edges is not None and size:
                own = torch.tensor(edges[column], dtype=torch.float32)
                rises[column, :size, 0], lowest[column] = own.diff(), own[0]
        rises[:, -1, 0] = -lowest
        for name, buffer in (
            ("first", begins),
            ("shift", middle),
            ("scale", scale),
            ("rises", rises),
            ("lowest", lowest),
        ):
            self.register_buffer(name, buffer, persistent=False)
        self.slope = nn.Parameter(torch.empty(count, width).uniform_(-1, 1) / width**0.5)
        self.pieces = nn.Parameter(torch.zeros(count, most + 1, width))  # the last is that of a gap
        self.bias = nn.Parameter(torch.empty(count, width).uniform_(-1, 1) / width**0.5)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        gap = positions.isnan()
        place = positions.masked_fill(gap, 0.0)
        line = ((place - self.shift) / self.scale).masked_fill(gap, 0.0)
        filled = (place[:, :, None] - self.first).clamp(0, 1).masked_fill(gap[:, :, None], 0.0)
        filled = torch.cat([filled, gap[:, :, None].to(filled.dtype)], 2)  # (B, N, T + 1)
        pieces = torch.cat([self.pieces, self.rises], 2)
        found = torch.bmm(filled.transpose(0, 1), pieces).transpose(0, 1)  # (B, N, D + 1)
        numbers = found[:, :, -1] + self.lowest + torch.where(self.shift > 0, 0.0, line)
        return line[:, :, None] * self.slope + found[:, :, :-1] + self.bias, numbers


class Tabular(nn.Module):
    """Rows (B, W) -> logits or numbers (B, outputs), the mean answer of all members.

    steps: of each column of numbers, how many steps it has; 0 for a number as it is. categories: of each column of
    categories, how many are known; codes are 0 for a gap, 1 for any other, and 2 and on for the known. texts: of each column
    of short texts, how many words are known and how many places a row has for their codes (1 and on). `hidden` are the
    widths of the layers, `members` how many nets are in this one, `embedding` the width of a column's vector, `dropout` the
    share of hidden numbers set to zero while learning.

    average: what the mean is taken of while it is asked: "softmax" or "sigmoid" probabilities, whose logits are given, or
    the numbers themselves ("mean"). edges: what the steps of numbers stand for, see `Steps`. beside: a linear model answers
    beside it, once it has learned (`lamina.nets.beside`). `UsageError` for what cannot be built.
    """

    starts: Tensor  # (C,) where the codes of each column begin in their common table
    apart: Tensor  # (N, N) what makes numbers that have much in common independent of one another

    def __init__(
        self,
        steps: Sequence[int],
        outputs: int,
        categories: Sequence[int] = (),
        texts: Sequence[Sequence[int]] = (),
        hidden: Sequence[int] | int = (256, 256),
        members: int = 8,
        embedding: int = 12,
        dropout: float = 0.1,
        average: str = "mean",
        edges: Sequence[Sequence[float]] | None = None,
        beside: bool = False,
    ):
        super().__init__()
        hidden = [hidden] if isinstance(hidden, int) else list(hidden)
        columns = len(steps) + len(categories) + len(texts)
        if min([columns, outputs, members, embedding, *hidden]) < 1:
            raise UsageError(
                f"A net of {columns} columns, {members} members, embeddings of {embedding}, hidden {hidden} and {outputs} "
                "outputs cannot be built.",
                expected="1 or more of each",
            )
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is {dropout}", expected="a share from 0 to below 1")
        if average not in AVERAGES:
            raise UsageError(f"unknown average {average!r}", expected=near(average, AVERAGES))
        self.numbers, self.categories, self.members, self.average = len(steps), len(categories), members, average
        self.slots, self.known = [int(slots) for _, slots in texts], [int(count) for count, _ in texts]
        width = max(1, min(embedding, WIDEST // columns))

        self.steps = Steps(steps, width, edges) if len(steps) else None
        self.line = nn.Parameter(torch.zeros(len(steps), outputs)) if 0 < len(steps) <= TOGETHER else None
        if self.line is not None:
            self.register_buffer("apart", torch.zeros(len(steps), len(steps)).fill_diagonal_(1))
        self.codes = self.words = None
        if len(categories):
            starts = list(itertools.accumulate((count + UNKNOWN for count in categories), initial=0))
            self.register_buffer("starts", torch.tensor(starts[:-1]), persistent=False)
            self.codes = nn.Embedding(starts[-1], width)
            with torch.no_grad():
                self.codes.weight.uniform_(-1, 1).div_(width**0.5)
                for start in starts[:-1]:  # what was never seen says nothing
                    self.codes.weight[start : start + UNKNOWN] = 0
        if len(texts):
            self.words = nn.ModuleList(nn.Embedding(count + 1, width, padding_idx=0) for count, _ in texts)

        self.scales = nn.Parameter(torch.empty(members, columns).random_(0, 2).mul_(2).sub_(1)
                                   .repeat_interleave(width, 1))  # +-1, one sign for all of a column's vector  # fmt: skip
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([columns * width, *hidden]):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        bound = hidden[-1] ** -0.5 if hidden else (columns * width) ** -0.5
        last = hidden[-1] if hidden else columns * width
        self.heads = nn.Parameter(torch.empty(members, last, outputs).uniform_(-bound, bound))
        self.biases = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))
        features = 2 * len(steps) + sum(count + UNKNOWN for count in categories) + sum(count for count, _ in texts)
        self.beside = Beside(features, outputs) if beside and features <= MOST else None

    def forward(self, x: Tensor) -> Tensor:
        parts, values = [], None
        if self.steps is not None:
            vectors, values = self.steps(x[:, : self.numbers])
            parts.append(vectors)  # (B, N, D)
        end = self.numbers + self.categories
        if self.codes is not None:
            parts.append(self.codes(x[:, self.numbers : end].long() + self.starts))  # (B, C, D)
        if self.words is not None:
            for bag, slots in zip(self.words, self.slots, strict=True):
                words = x[:, end : end + slots].long()
                count = (words > 0).sum(1, keepdim=True).clamp(min=1)
                parts.append((bag(words).sum(1) / count)[:, None])  # (B, 1, D): the mean of the words
                end += slots
        columns = (torch.cat(parts, 1) if len(parts) > 1 else parts[0]).flatten(1)
        found = self.layers(columns * self.scales[:, None])  # (members, B, columns x D) -> (members, B, hidden)
        answers = torch.baddbmm(self.biases, found, self.heads)  # (members, B, outputs)
        if self.line is not None and values is not None:
            answers = answers + values @ self.apart @ self.line
        if self.training:
            return answers.transpose(0, 1)
        answers = self._mean(answers)
        return answers if self.beside is None else self.beside(answers, self.features(x, values))

    def features(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        """(B, F): what the line beside it is a function of: numbers, gaps, categories and words, 0 or 1 each. values: the
        numbers (B, N), where they are known already."""
        parts, end = [], self.numbers + self.categories
        if self.steps is not None:
            positions = x[:, : self.numbers]
            parts += [self.steps(positions)[1] if values is None else values, positions.isnan().float()]
        if self.codes is not None:
            places = x[:, self.numbers : end].long() + self.starts
            parts.append(x.new_zeros(x.shape[0], self.codes.num_embeddings).scatter(1, places, 1.0))
        for count, slots in zip(self.known, self.slots, strict=True):
            said = x.new_zeros(x.shape[0], count + 1).scatter(1, x[:, end : end + slots].long(), 1.0)
            parts.append(said[:, 1:])
            end += slots
        return torch.cat(parts, 1)

    def _mean(self, answers: Tensor) -> Tensor:
        """(members, B, outputs) -> (B, outputs)."""
        if self.average == "softmax":
            return answers.log_softmax(2).logsumexp(0) - math.log(self.members)
        if self.average == "sigmoid":  # log p - log (1 - p)
            return F.logsigmoid(answers).logsumexp(0) - F.logsigmoid(-answers).logsumexp(0)
        return answers.mean(0)

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Learn from rows (N, W) what their numbers have in common: by the inverse root of their covariance, in which a
        direction hardly any row goes in counts no more than 1 / LEAST of the widest."""
        if self.steps is None or self.line is None:
            return
        values = self.steps(x[:, : self.numbers].to(self.apart.device))[1].double()
        values = values - values.mean(0)
        spread, axes = torch.linalg.eigh(values.T @ values / len(values))
        self.apart.copy_(axes / spread.clamp(min=max(LEAST * float(spread[-1]), 1e-12)).sqrt() @ axes.T)

    @classmethod
    def fitted(cls, shape: Sequence[int], width_out: int, size: str = "small", **arguments: Any) -> Tabular:
        """The net for rows of `shape` (W,), all of them numbers as they are unless `steps` says otherwise."""
        parts = base.sized(SIZES, size)
        if len(shape) != 1:
            raise UsageError(
                f"The net tabular takes rows of columns, and an example here has the shape {tuple(shape)}.",
                expected="(columns,)",
                fix="--net mlp",
            )
        steps = arguments.pop("steps", [0] * shape[0])
        return cls(steps, width_out, **{**parts, **arguments})


NET = Tabular
