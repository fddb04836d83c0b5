"""A net for texts: two bags of n-grams that begin as naive Bayes, and a small convolution over the words.

In: whole numbers, 0 where there is nothing: words and pairs of words (B, A), pieces of words (B, D), words in their order
(B, T). Out: (B, outputs). Called by name as "textnet". The bags know what single n-grams speak for, which on few texts no
net beats; the convolution knows words by the company they keep. Each learns alone, since beside a part that has learned
the training texts by heart the others learn nothing, and the answer is the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamina.errors import UsageError
from lamina.imports import loading
from lamina.nets import base

SIZES = {
    "small": {"embedding": 64, "channels": 96},
    "medium": {"embedding": 128, "channels": 192},
    "large": {"embedding": 256, "channels": 384},
}
# Of the bags of words and of pieces: the share of naive Bayes that a bag begins with, since n-grams that overlap say the
# same more than once, pieces more than words; and how much further a gate moves than other weights at the same rate.
WORDS = {"share": 0.5, "speed": 20.0}
PIECES = {"share": 0.3, "speed": 30.0}
NEAR = 5  # words on either side that are a word's company
_MEAN = 10.0  # brings the mean of embeddings to the size of the channels' answers
_ROWS = 4096  # texts counted together
_TOKENS = 2_000_000  # words from which the company of each is counted
_SCALES = 2.0 ** torch.arange(-6.0, 5.0, 0.25)


class Bag(nn.Module):
    """A linear layer over the n-grams of a text: the sum of their weights, over the root of how many there are, plus a bias.

    `ratio` (n-grams + 1, outputs) says what each n-gram speaks for and is not learned; row 0, of no n-gram, is zero, the
    others are random until somebody knows better. A weight is ratio * (share + speed * gate), where `gate` is learned and
    begins at 0. With log-count ratios and a share of 1 that is naive Bayes; learning goes the way of NB-SVM (Wang and
    Manning, 2012, "Baselines and Bigrams"): what says much moves far, and weight decay leads back to the beginning.
    dropout: the share of n-grams left out.
    """

    ratio: Tensor

    def __init__(self, grams: int, outputs: int, dropout: float = 0.5, share: float = 1.0, speed: float = 10.0):
        super().__init__()
        self.share, self.speed = share, speed
        self.register_buffer("ratio", torch.empty(grams + 1, outputs).normal_(std=0.1))
        self.ratio[0] = 0
        self.gate = nn.Parameter(torch.zeros(grams + 1, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.dropout = nn.Dropout(dropout)

    def forward(self, grams: Tensor) -> Tensor:
        there = (grams > 0).float()  # (B, A)
        weights = self.dropout(there) / there.sum(1, keepdim=True).clamp_min(1).sqrt()
        return F.embedding_bag(grams, self.weight, per_sample_weights=weights, mode="sum") + self.bias

    @property
    def weight(self) -> Tensor:
        """(n-grams + 1, outputs)"""
        return self.ratio * (self.share + self.speed * self.gate)


class Convolution(nn.Module):
    """Words in their order -> embeddings, convolutions over some words each, the largest answer of every channel and the mean
    of the embeddings, a linear layer (Kim, 2014, "Convolutional Neural Networks for Sentence Classification"). word_dropout
    and dropout: the share of words, and of what the last layer sees, left out."""

    def __init__(
        self, words: int, outputs: int, embedding: int, channels: int, kernels: Sequence[int], word_dropout: float,
        dropout: float,
    ):  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(words + 1, embedding, padding_idx=0)
        with torch.no_grad():
            self.embedding.weight.mul_(0.1)
        self.layers = nn.ModuleList(nn.Conv1d(embedding, channels, size, padding=size // 2) for size in kernels)
        self.word_dropout, self.dropout = nn.Dropout(word_dropout), nn.Dropout(dropout)
        self.out = nn.Linear(channels * len(kernels) + embedding, outputs)

    def forward(self, words: Tensor) -> Tensor:
        there = (words > 0).float()  # (B, T)
        x = self.embedding(words) * self.word_dropout(there)[:, :, None]  # (B, T, C)
        x = x.transpose(1, 2)
        answers = [layer(x) * there[:, None] for layer in self.layers]  # (B, channels, T) each
        # Torch finds the same largest quicker by amax, and its gradient by max.
        found = [F.relu(part.max(2).values if self.training else part.amax(2)) for part in answers]
        found.append(x.sum(2) * (_MEAN / there.sum(1, keepdim=True).clamp_min(1)))  # (B, embedding)
        return self.out(self.dropout(torch.cat(found, 1)))


class TextNet(nn.Module):
    """The mean of two bags, of `words` n-grams of words and `pieces` of letters, and a convolution over `vocabulary` words.
    While training (B, members, outputs): what each part says.

    The numbers 1 to n mean something, 0 nothing. `kernels` are the words each convolution sees, "1,3" or (1, 3), odd;
    channels=0 leaves the convolution out, pieces=0 their bag. `gram_dropout`, `word_dropout` and `dropout` are the shares
    of n-grams, words and channels left out while training. `UsageError` for what cannot be built.
    """

    def __init__(
        self,
        words: int,
        pieces: int,
        vocabulary: int,
        outputs: int,
        embedding: int = 64,
        channels: int = 96,
        kernels: Sequence[int] | int | str = (1, 3),
        gram_dropout: float = 0.5,
        word_dropout: float = 0.3,
        dropout: float = 0.5,
    ):
        super().__init__()
        sizes = _sizes(kernels)
        for name, share in (("gram_dropout", gram_dropout), ("word_dropout", word_dropout), ("dropout", dropout)):
            if not 0 <= share < 1:
                raise UsageError(f"{name} is {share}", expected="a share from 0 to below 1")
        for name, number in (("embedding", embedding), ("channels", channels)):
            if number < (name == "embedding"):
                raise UsageError(f"{name} is {number}", expected="1 or more, channels also 0 for no convolution")
        self.words = Bag(words, outputs, gram_dropout, **WORDS)
        self.pieces = Bag(pieces, outputs, gram_dropout, **PIECES) if pieces else None
        parts = (vocabulary, outputs, embedding, channels, sizes, word_dropout, dropout)
        self.convolution = Convolution(*parts) if channels and vocabulary else None

    def forward(self, words: Tensor, pieces: Tensor, tokens: Tensor) -> Tensor:
        parts = [self.words(words)]
        if self.pieces is not None:
            parts.append(self.pieces(pieces))
        if self.convolution is not None:
            parts.append(self.convolution(tokens))
        found = torch.stack(parts, 1)  # (B, members, outputs)
        return found if self.training else found.mean(1)

    @property
    def members(self) -> int:
        """The parts, each of which learns alone."""
        return 1 + (self.pieces is not None) + (self.convolution is not None)

    @classmethod
    def fitted(cls, shape: Sequence[int], width_out: int, size: str = "small", **arguments: Any) -> TextNet:
        """The net for so many n-grams of words, pieces and words: `shape` is (words, pieces, vocabulary)."""
        words, pieces, vocabulary = shape
        return cls(words, pieces, vocabulary, width_out, **{**base.sized(SIZES, size), **arguments})

    @torch.no_grad()
    def start(
        self,
        words: Tensor,
        pieces: Tensor,
        tokens: Tensor,
        truth: Tensor | None,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        """Begin with what can be counted in texts: words (N, A), pieces (N, D), tokens (N, T). The embeddings of words begin
        as the company they keep, and the bags as naive Bayes where a truth is given: (N,) classes, (N, outputs) zeros and
        ones or numbers, as the loss takes them. It is counted on the CPU."""
        home = next(self.parameters()).device
        self.to("cpu")
        for bag, grams in ((self.words, words), (self.pieces, pieces)):
            if bag is not None and truth is not None:
                _begin(bag, grams, truth, loss)
        if self.convolution is not None:
            table = self.convolution.embedding.weight
            found = company(tokens, *table.shape)
            table[:, : found.shape[1]] = found
        self.to(home)


def _begin(bag: Bag, grams: Tensor, truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Ratios of all texts, at the scale at which those of one half answer best for the other half."""
    kinds, width = bag.ratio.shape
    answers = _answers(truth, width)
    outputs, drawn = [], torch.randperm(len(grams), generator=torch.Generator().manual_seed(0)) % 2 == 0
    mode, share, _ = bag.training, bag.share, bag.eval()
    bag.share = 1.0  # the scale is that of naive Bayes itself, whatever share of it the bag begins with
    for half in (drawn, ~drawn):
        bag.ratio.copy_(ratios(grams[half], answers[half], kinds))
        outputs.append((torch.cat([bag(part) for part in grams[~half].split(_ROWS)]), truth[~half]))
    bag.train(mode)
    bag.share = share
    output, said = (torch.cat(column) for column in zip(*outputs, strict=True))
    rest = _rest(answers)
    losses = torch.stack([loss(rest + scale * output, said).float() for scale in _SCALES])
    bag.ratio.copy_(ratios(grams, answers, kinds)).mul_(_SCALES[losses.nan_to_num(torch.inf).argmin()])
    bag.bias.copy_(rest)


def _answers(truth: Tensor, width: int) -> Tensor:
    """Truth as numbers (N, width): classes as 0 and 1."""
    if truth.is_floating_point():
        return truth.float().reshape(len(truth), -1)
    return F.one_hot(truth.long(), width).float()


def _rest(answers: Tensor) -> Tensor:
    """What an empty text is told (width,): the logarithm of each share against the rest, or the mean."""
    if not _counts(answers):
        return answers.mean(0)
    share = (answers.sum(0) + 1) / (len(answers) + 2)
    classes = answers.shape[1] > 1 and bool((answers.sum(1) == 1).all())
    return share.log() if classes else (share / (1 - share)).log()


def _counts(answers: Tensor) -> bool:
    return bool(((answers == 0) | (answers == 1)).all())


def ratios(grams: Tensor, answers: Tensor, kinds: int) -> Tensor:
    """What each n-gram speaks for (kinds, K): grams (N, A) numbers below `kinds`, answers (N, K).

    Of answers 0 and 1 the log-count ratio log((p + 1) / |p + 1|) - log((q + 1) / |q + 1|), where p and q count the texts with
    the n-gram among those with the answer and those without (Wang and Manning, 2012). Of other numbers the mean deviation of
    the texts with the n-gram, shrunk as if one more had none. Row 0 is zero.
    """
    counted = _counts(answers)
    values = answers if counted else answers - answers.mean(0)
    sums, texts = torch.zeros(kinds, answers.shape[1]), torch.zeros(kinds)
    for at in range(0, len(grams), _ROWS):
        part = grams[at : at + _ROWS].long()
        flat = part.flatten()
        texts.add_(torch.bincount(flat, minlength=kinds))
        for k in range(answers.shape[1]):
            weights = values[at : at + _ROWS, k : k + 1].expand(part.shape).flatten()
            sums[:, k].add_(torch.bincount(flat, weights, minlength=kinds))
    if counted:
        p, q = sums + 1, texts[:, None] - sums + 1
        p[0], q[0] = 0, 0
        found = (p / p.sum(0)).log() - (q / q.sum(0)).log()
    else:
        found = sums / (texts[:, None] + 1)
    found[0] = 0
    return found


def company(tokens: Tensor, kinds: int, width: int) -> Tensor:
    """Embeddings (kinds, at most `width`) of the words in tokens (N, T): how much more often than by chance they stand
    within 5 words of others, which is positive pointwise mutual information, by its largest eigenvectors (Levy and Goldberg,
    2014). Their root mean square is 0.1; row 0 is zero."""
    with loading():
        from scipy import sparse

    rows = max(1, _TOKENS // tokens.shape[1])
    table = tokens[:: -(-len(tokens) // rows)].numpy()
    counts = sparse.csr_matrix((kinds, kinds), dtype=np.float32)
    for step in range(1, min(NEAR, table.shape[1] - 1) + 1):
        one, other = table[:, :-step].ravel(), table[:, step:].ravel()
        there = (one > 0) & (other > 0)
        ones = np.ones(there.sum(), np.float32)
        counts = counts + sparse.csr_matrix((ones, (one[there], other[there])), (kinds, kinds))
    both = (counts + counts.T).tocoo()
    often = np.asarray(both.sum(1)).ravel() + 1e-9
    chance = often**0.75 / (often**0.75).sum()  # rare company counts less
    more = np.log(np.maximum(both.data / (often[both.row] * chance[both.col]), 1.0)).astype(np.float32)
    matrix = sparse.csr_matrix((more, (both.row, both.col)), (kinds, kinds))
    matrix = (matrix + matrix.T) * np.float32(0.5)

    # A few rounds of subspace iteration with some vectors to spare.
    width = min(width, kinds)
    basis = torch.randn(kinds, min(kinds, width + 8), generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        basis = torch.linalg.qr(torch.from_numpy(matrix @ basis.numpy()))[0]
    values, vectors = torch.linalg.eigh(basis.T @ torch.from_numpy(matrix @ basis.numpy()))
    best = values.abs().argsort(descending=True)[:width]
    found = (basis @ vectors[:, best]) * values[best].abs().sqrt()
    found[0] = 0
    return found * (0.1 / found.square().mean().sqrt().clamp_min(1e-12))


def _sizes(kernels: Sequence[int] | int | str) -> list[int]:
    """(1, 3), 3 or "1,3" -> [1, 3] or [3]."""
    listed = [kernels] if isinstance(kernels, int) else kernels.split(",") if isinstance(kernels, str) else kernels
    try:
        found = [int(size) for size in listed]
    except (TypeError, ValueError):
        found = []
    if not found or any(size < 1 or size % 2 == 0 for size in found):
        raise UsageError(f"kernels are {kernels!r}", expected='odd numbers of words, (1, 3) or "1,3"')
    return found


NET = TextNet
