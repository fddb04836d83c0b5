"""Histograms of oriented gradients and a linear layer: for pictures of which there are few, such as faces.

In: (B, C, H, W) floats. Out: (B, outputs). Called by name as "hog", or built by hand.

Where an edge runs and how steep it is are counted, in overlapping cells, by direction; what light does to a whole cell is
divided out (Dalal & Triggs, "Histograms of oriented gradients for human detection", CVPR 2005). That has no weights to learn,
so that a few hundred pictures are enough for the rest, one linear layer. Told who is on them (`begin`), it starts as the
whitening of what differs between pictures of one person (Hatch et al., "Within-class covariance normalization for SVM-based
speaker recognition", 2006), and learns on from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lamina.errors import UsageError
from lamina.nets import base

SIZES = {"small": 8, "medium": 12, "large": 16}  # directions
SIDE = 80  # pixels of the shorter side: larger pictures are brought down to that and more, to less than twice as much
GRIDS = (5, 6)  # blocks along the shorter side; a cell is four of them
SHRINKAGE = 0.03  # of the covariance within a person, towards that of a sphere
SCALES = (1, 2)  # gradients of the picture, and of its half
_FLOOR = 0.25  # squared gradients, in squared standard deviations of a pixel: an even cell stays near 0


class HOGNet(nn.Module):
    """Histograms of `directions` in each cell, and a linear layer to `outputs`.

    `height`, `width`: of the pictures, in pixels. `grids`: (5, 6) or "5,6" lays two grids, of 5 and of 6 blocks along the
    shorter side; each two by two blocks that touch are a cell. `mirrored`: an answer is the mean direction of those to the
    picture and to its mirror image, once training is over. `UsageError` for what cannot be built.
    """

    mean: Tensor

    def __init__(
        self,
        channels: int,
        outputs: int,
        height: int,
        width: int,
        directions: int = 8,
        grids: Sequence[int] | int | str = GRIDS,
        mirrored: bool = False,
    ):
        super().__init__()
        side = min(height, width)
        self.reduced = max(1, side // SIDE)
        blocks = base.whole_numbers(grids, "grids", '(5, 6) or "5,6"')
        if (
            min(channels, outputs, len(blocks)) < 1
            or directions < 2
            or not 2 <= min(blocks) <= max(blocks) <= side // 4
        ):
            raise UsageError(
                f"a hog net from {channels} channels of {width}x{height} with {directions} directions in grids of "
                f"{grids!r} blocks to {outputs} outputs cannot be built",
                expected="1 or more everywhere, 2 or more directions, and blocks of 4 pixels or more, 2 or more a side",
            )
        self.grids = [(round(count * height / side), round(count * width / side)) for count in blocks]
        self.directions, self.mirrored = directions, mirrored
        found = len(SCALES) * channels * directions * sum((down - 1) * (across - 1) for down, across in self.grids)
        self.register_buffer("mean", torch.zeros(found))
        self.head = nn.Linear(found, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found = self._asked(x)
        if self.training or not self.mirrored:
            return found
        return (F.normalize(found) + F.normalize(self._asked(x.flip(3)))) / 2

    def _asked(self, x: Tensor) -> Tensor:
        return self.head(self.histograms(x) - self.mean)  # type: ignore[no-any-return]

    def histograms(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, scales * C * directions * cells), each cell of length 1 or less."""
        found = []
        for scale in SCALES:
            votes = self._votes(F.avg_pool2d(x, self.reduced * scale) if self.reduced * scale > 1 else x)
            for grid in self.grids:
                blocks = F.adaptive_avg_pool2d(votes.flatten(1, 2), grid)
                cells = F.avg_pool2d(blocks, 2, 1).unflatten(1, votes.shape[1:3])
                found.append((cells / (cells.square().sum(2, keepdim=True) + _FLOOR).sqrt()).flatten(1))
        return torch.cat(found, 1)

    def _votes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, directions, H, W): how steep it is, shared by the two nearest directions."""
        across = F.pad(x[..., 2:] - x[..., :-2], (1, 1))
        down = F.pad(x[..., 2:, :] - x[..., :-2, :], (0, 0, 1, 1))
        steep = (across * across + down * down + 1e-12).sqrt()
        place = torch.atan2(down, across + 1e-12) / (2 * math.pi) * self.directions  # from - to + half of them
        bins = torch.arange(self.directions, device=x.device, dtype=x.dtype).view(1, 1, -1, 1, 1)
        away = (place[:, :, None] - bins).remainder(self.directions)
        away = torch.minimum(away, self.directions - away)
        return steep[:, :, None] * (1 - away).clamp_min(0)

    @torch.no_grad()
    def begin(self, views: Sequence[Tensor], who: Tensor, directions: Tensor) -> None:
        """Start as the whitening of what differs within a person, turned so that people lie near their `directions` (K, D).

        `views`: the same pictures (N, C, H, W) as they are and changed, as the net takes them; `who`: (N,), 0 to K - 1.
        """
        table = torch.cat([self.histograms(view) for view in views]).double()
        who = who.repeat(len(views))
        mean = table.mean(0)
        table -= mean
        spread, axes = torch.linalg.eigh(table.T @ table)  # ascending
        count = min(self.head.out_features, int((spread > 1e-9 * spread[-1]).sum()))
        axes = axes[:, len(spread) - count :]
        table = table @ axes  # (N, count)
        people = _means(table, who, len(directions))
        within = table - people[who]
        scatter = within.T @ within / len(within)
        ridge = SHRINKAGE * scatter.trace() / count + 1e-12
        sphere = torch.eye(count, dtype=scatter.dtype, device=scatter.device)
        variances, turned = torch.linalg.eigh(scatter + ridge * sphere)
        whiten = (turned / variances.sqrt()) @ turned.T  # (count, count)
        left, _, right = torch.linalg.svd(F.normalize(people @ whiten).T @ directions.double(), full_matrices=False)
        found = whiten @ left @ right  # (count, D)
        length = (table @ found).norm(dim=1).mean().clamp_min(1e-12)
        self.mean.copy_(mean)
        self.head.weight.copy_((axes @ found / length).T)

    @classmethod
    def fitted(cls, shape: Sequence[int], width_out: int, size: str = "small", **arguments: Any) -> HOGNet:
        """The net for pictures of `shape` (C, H, W)."""
        directions = base.sized(SIZES, size)
        base.demand_picture("a hog net", shape, 24)
        return cls(shape[0], width_out, shape[1], shape[2], **{"directions": directions, **arguments})


def _means(table: Tensor, who: Tensor, count: int) -> Tensor:
    """(N, F), (N,) -> (count, F): the mean of each one's rows; zeros of who has none."""
    sums = torch.zeros(count, table.shape[1], dtype=table.dtype, device=table.device).index_add_(0, who, table)
    return sums / torch.bincount(who, minlength=count).clamp_min(1)[:, None]


NET = HOGNet
