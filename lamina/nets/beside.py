"""A linear model that answers beside a net, with the share that held-out examples give it.

In: what a net has learned, some numbers of each example (`features`), training and validation examples. Out: answers
(1 - share) net + share line. Used by the nets for few rows of numbers, whose attribute `beside` it is; `settle` is called once,
when the net has learned.

Of few rows a net learns what a linear model would have known better, and which of the two is right is not known before. The
line is fitted to the loss of the training with an L2 penalty, as a ridge or a logistic regression is. The share is the mean
of all shares, weighed by a prior (`PRIOR`) and by how likely the validation examples are under them: where these tell little,
a quarter; where the line is no good, nothing. Far off from what it was fitted to the line goes on level: of a logarithm it
would say anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lamina import optimizers

MOST = 2000  # numbers of an example
SHARES = 41  # that are tried, from 0 to 1
PRIOR = 2.0  # how much rather the net is believed: a share s is as likely beforehand as (1 - s) ** PRIOR
SIGNAL = 10.0  # prior variance of a linear model's output over that of its noise: a fair penalty at any width
ROUNDS = (30, 200)  # of L-BFGS, the fewest and the most; in between, as many as `WORK` allows
WORK = 4e10  # examples x numbers x outputs x rounds: a few seconds of a core
LEAST = 0.01  # a share below is none

Loss = Callable[[Tensor, Any], Tensor]  # (outputs (N, K), truth) -> 0-d, the mean of the examples


class Beside(nn.Module):
    """Answers (B, K) and numbers (B, F) -> (B, K); nothing is changed until it has been settled."""

    weight: Tensor  # (F, K)
    bias: Tensor  # (K,)
    low: Tensor  # (K,) the least that the line says of an example it was fitted to; it never says less
    high: Tensor  # (K,)
    share: Tensor  # ()

    def __init__(self, features: int, outputs: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(features, outputs))
        for name in ("bias", "low", "high"):
            self.register_buffer(name, torch.zeros(outputs))
        self.register_buffer("share", torch.zeros(()))

    def line(self, features: Tensor) -> Tensor:
        return (features @ self.weight + self.bias).clamp(self.low, self.high)

    def forward(self, answers: Tensor, features: Tensor) -> Tensor:
        return torch.lerp(answers, self.line(features), self.share)


def settle(net: Any, train: Iterable[Any], valid: Iterable[Any], loss: Loss, numbers: bool) -> float:
    """Fit the line beside a net (in evaluation mode) to batches of training examples; gives the share that others give it.
    numbers: whether the answers are numbers, and the likelihood is a normal one; else the loss is minus its logarithm."""
    beside: Beside = net.beside
    beside.share.zero_()
    with torch.no_grad():
        features, known = _together((net.features(*batch.inputs), batch.truth) for batch in train)
        answers, others, truth = _together(
            (net(*batch.inputs), net.features(*batch.inputs), batch.truth) for batch in valid
        )
    _fit(beside, features, lambda output: loss(output, known), 1.0 if numbers else 0.5)
    with torch.no_grad():
        line = beside.line(others)
        shares = torch.linspace(0, 1, SHARES, device=answers.device)
        losses = torch.stack([loss(torch.lerp(answers, line, share), truth) for share in shares])
        likelihood = -len(truth) * (losses.log() / 2 if numbers else losses)
        share = float((shares * (likelihood + PRIOR * torch.log1p(-shares)).softmax(0)).sum())
        if math.isfinite(share) and share >= LEAST:
            beside.share.fill_(share)
            return share
        for buffer in beside.buffers():
            buffer.zero_()
        return 0.0


def _together(parts: Iterable[tuple[Tensor, ...]]) -> list[Tensor]:
    """Pieces of columns -> the columns."""
    return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def _fit(beside: Beside, features: Tensor, loss: Callable[[Tensor], Tensor], strength: float) -> None:
    """The mean loss and an L2 penalty of the weights at their least, of features with mean 0 and deviation 1."""
    (n, width), mean = features.shape, features.mean(0)
    spread = (features - mean).square().mean(0).sqrt()
    spread = torch.where(spread > 1e-6, spread, torch.inf)  # what never varies says nothing
    standard = (features - mean) / spread
    weight, bias = (torch.zeros_like(known, requires_grad=True) for known in (beside.weight, beside.bias))
    rounds = int(min(max(ROUNDS[0], WORK / max(1, n * weight.numel())), ROUNDS[1]))

    def whole() -> Tensor:
        return loss(standard @ weight + bias) + strength * width / (SIGNAL * n) * weight.square().sum()

    if not torch.isfinite(whole()):
        return
    optimizers.minimise([weight, bias], whole, rounds, tolerance_grad=1e-5, history_size=10)
    with torch.no_grad():
        beside.weight.copy_(weight / spread[:, None])
        beside.bias.copy_(bias - mean @ beside.weight)
        said = standard @ weight + bias
        beside.low.copy_(said.amin(0))
        beside.high.copy_(said.amax(0))
