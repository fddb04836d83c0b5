"""Sequences of many lengths -> padded batches of sequences of like length.

In: a list of arrays (T,) or (T, C), each of its own T. Out: batches whose inputs are the padded table (B, T, ...) and the
lengths (B,). An epoch is a keyed permutation, sorted by length within windows of a hundred batches, and its batches
shuffled: each example comes once, batches have other members in every epoch, and little of a batch is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lamina.batches.batch import Batch, Epochs, tensor
from lamina.batches.columns import Batches
from lamina.errors import DataError, rows
from lamina.keyed import number, permutation

WINDOW = 100  # batches that are sorted together: more leave less padding, fewer more chance


class RaggedBatches(Epochs):
    """Sequences of many lengths -> batches of (padded, lengths), in keyed order.

    sequences: arrays or tensors (T,) or (T, C), T at least 1; truth: (N, ...) or None. `padding` fills what is missing at
    the end. `indices` picks the rows (a split). Batch k of epoch e is a function of (seed, e, k); the short batch of an
    epoch is its last, and `drop_last` leaves it out unless it is the only one. A net takes (padded, lengths):

        def forward(self, tokens, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(self.embed(tokens), lengths.cpu(), True, enforce_sorted=False)
    """

    def __init__(
        self,
        sequences: Sequence[Any],
        truth: Any = None,
        *,
        batch_size: int = 64,
        shuffle: bool = True,
        seed: int = 0,
        padding: float = 0,
        indices: Any = None,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
    ):
        parts = [tensor(part) for part in sequences]
        if not parts:
            raise DataError("There are no sequences to make batches of.", expected="at least one")
        _alike(parts)
        self.device, self.padding, self.seed, self.batch_size = torch.device(device), padding, seed, batch_size
        self.lengths = torch.tensor([len(part) for part in parts])
        self._begin = torch.cumsum(self.lengths, 0) - self.lengths
        self._values = torch.cat(parts).to(self.device)  # (sum of T, ...)
        # Whatever columns have, these have: rows, answers, their checks and their order.
        self._rows = Batches(
            torch.arange(len(parts)), truth, batch_size=batch_size, shuffle=shuffle, seed=seed, indices=indices,
            drop_last=drop_last,
        )  # fmt: skip

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._rows)

    def positions(self, epoch: int) -> list[Tensor]:
        """Which sequences each batch of this epoch holds."""
        order = self._rows.positions(epoch)
        if not self._rows.shuffle:
            return list(order.split(self.batch_size))[: len(self)]
        sorted_ = [
            window[torch.argsort(self.lengths[window], stable=True)] for window in order.split(WINDOW * self.batch_size)
        ]
        batches = [batch for window in sorted_ for batch in window.split(self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        chosen = permutation(number(self.seed, "ragged"), epoch, len(full)).tolist()
        short = [batch for batch in batches if len(batch) < self.batch_size]
        return [*(full[k] for k in chosen), *short][: len(self)]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        truth = self._rows.truth
        for indices in self.positions(epoch)[start:]:
            lengths = self.lengths[indices]
            steps = torch.arange(int(lengths.max()))
            there = (steps < lengths[:, None]).to(self.device)  # (B, T)
            places = (self._begin[indices][:, None] + torch.minimum(steps, lengths[:, None] - 1)).to(self.device)
            padded = self._values[places]  # (B, T, ...)
            padded[~there] = self.padding
            answers = None if truth is None else truth.index_select(0, indices).to(self.device)
            on_device = indices.to(self.device)
            yield Batch((padded, lengths.to(self.device)), answers, on_device, len(indices), epoch, self.seed)


def _alike(parts: list[Tensor]) -> None:
    """Refuse what cannot stand in one table, with the rows it is in."""
    flat = [k for k, part in enumerate(parts) if part.ndim not in (1, 2)]
    if flat:
        raise DataError(
            f"{rows(flat).capitalize()} of the sequences have other than 1 or 2 dimensions: row {flat[0]} is "
            f"{tuple(parts[flat[0]].shape)}.",
            expected="(T,) or (T, C)",
        )
    empty = [k for k, part in enumerate(parts) if not len(part)]
    if empty:
        raise DataError(f"{rows(empty).capitalize()} of the sequences are empty.", expected="one step or more",
                        fix="leave these examples out")  # fmt: skip
    forms = [(part.shape[1:], part.dtype) for part in parts]
    odd = [k for k, form in enumerate(forms) if form != forms[0]]
    if odd:
        raise DataError(
            f"Row 0 of the sequences is {tuple(parts[0].shape)} {str(parts[0].dtype).removeprefix('torch.')}, row {odd[0]} is "
            f"{tuple(parts[odd[0]].shape)} {str(parts[odd[0]].dtype).removeprefix('torch.')}.",
            expected="one type and one width, whatever the length",
        )
