"""A residual convolutional net for pictures from 24 pixels up: photographs, small or large.

In: (B, C, H, W) floats. Out: (B, outputs). Called by name as "resnet", or built by hand.

As in `convnet`, little is done where the picture is large. One of 48 pixels and more is brought to its half by the first
filters and to its quarter by a pooling, then stages halve it again before they look at it: one of 96 is worked on at 24, 12 and
6 a side. A smaller one, of 32, has no detail to spare: its stages look first and halve then, at 31, 15 and 7.

The first filters are given the main axes of the pictures' own patches (`begin`), in both signs, so that what they find is
uncorrelated from the first step: "94 % on CIFAR-10 in 3.29 seconds on a single GPU", Jordan, 2024, whose plan for small
pictures this follows. Here they learn on with the rest.

Residual blocks: He et al., "Deep residual learning for image recognition", CVPR 2016, with the last normalisation of a block
beginning at zero, so that every block begins as the identity (Goyal et al., "Accurate, large minibatch SGD", 2017).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lamina.errors import UsageError
from lamina.nets import base

SIZES = {"small": 128, "medium": 192, "large": 320}  # channels of the last stage; a stage before has half
SMALL = 48  # pixels: the shorter side below which a picture is small
SMALL_WIDTHS = {"small": (32, 96, 128), "medium": (48, 128, 192), "large": (64, 192, 256)}  # for small pictures
KERNEL = 4  # pixels a side of the first filters; of small pictures half of it
RECENT = 0.4  # share of a batch in the running statistics of small pictures' nets, which learn for few passes
SEEN = 300_000  # patches from which the first filters are made
LAST = 5  # pixels a side, about: stages halve the picture until no more are left


class ResNet(nn.Module):
    """A stem, stages of residual blocks, the mean over what is left of the picture and over its parts, dropout, and a linear
    layer: of its parts, since in many photographs what is above and what is below are not the same.

    `widths`: channels of each stage, (64, 128, 256) or "64,128,256". `blocks`: residual blocks a stage. `stem`: channels of
    the first convolution, of 4x4 pixels. `halvings`: how often the stem halves the picture, 1 or 2; or 0, for filters of 2x2
    pixels, stages that look before they halve and then `blocks` times more, and the greatest value instead of the mean.
    `dropout`: share of the averaged features set to zero while training. `mirrored`: an answer is the mean of those to the
    picture and to its mirror image, once training is over. `parts`: how many a side the mean is taken of, beside that of the
    whole; 1 for none. `UsageError` for what cannot be built.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        widths: Sequence[int] | int | str = (64, 128, 256),
        blocks: int = 1,
        stem: int = 48,
        halvings: int = 1,
        dropout: float = 0.0,
        mirrored: bool = False,
        parts: int = 1,
    ):
        super().__init__()
        all_widths = [stem, *base.whole_numbers(widths, "widths", '(64, 128, 256) or "64,128,256"')]
        if len(all_widths) < 2 or min(*all_widths, channels, outputs, blocks, parts) < 1 or halvings not in (0, 1, 2):
            raise UsageError(
                f"a resnet from {channels} channels by a stem of {stem} with {halvings} halvings over {widths!r} with "
                f"{blocks} blocks to {outputs} outputs cannot be built",
                expected="at least one stage, 1 or more everywhere, and 0, 1 or 2 halvings",
            )
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is {dropout}", expected="a share from 0 to below 1")
        self.mirrored, self.parts, self.greatest = mirrored, parts, halvings == 0
        stages: list[nn.Module] = []
        if halvings == 0:
            self.stem = nn.Sequential(nn.Conv2d(channels, stem, KERNEL // 2), nn.ReLU())
            for before, width in itertools.pairwise(all_widths):
                stages.append(_passing(before, width, nn.MaxPool2d(2)))
                stages.extend(_passing(width, width) for _ in range(blocks))
        else:
            self.stem = nn.Sequential(
                nn.Conv2d(channels, stem, KERNEL, stride=2, padding=1, bias=False),
                *([nn.MaxPool2d(2)] if halvings == 2 else []),  # before what follows, which then has a quarter to do
                nn.BatchNorm2d(stem),
                nn.ReLU(),
            )
            for number, (before, width) in enumerate(itertools.pairwise(all_widths)):
                if number:
                    stages.append(nn.MaxPool2d(2))
                stages.append(nn.Sequential(*_normalised(before, width), nn.ReLU()))
                stages.extend(Block(width) for _ in range(blocks))
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(all_widths[-1] * (1 if parts == 1 else 1 + parts**2), outputs)

    def forward(self, x: Tensor) -> Tensor:
        found = self._asked(x)
        return found if self.training or not self.mirrored else (found + self._asked(x.flip(3))) / 2

    def _asked(self, x: Tensor) -> Tensor:
        x = self.stem(x.to(memory_format=torch.channels_last))  # -> (B, stem, H / 2, W / 2), or a quarter, or all
        x = self.stages(x)  # -> (B, widths[-1], H', W')
        found = x.amax((2, 3)) if self.greatest else x.mean((2, 3))  # -> (B, widths[-1])
        if self.parts > 1:
            found = torch.cat([found, F.adaptive_avg_pool2d(x, self.parts).flatten(1)], 1)
        return self.head(self.dropout(found))  # -> (B, outputs)

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Take the first filters from pictures (N, C, H, W) as the net takes them: the axes along which their patches vary
        most, each scaled to a variance of 1, and its negative."""
        first = self.stem[0]
        assert isinstance(first, nn.Conv2d)
        patches = F.unfold(x.float(), first.kernel_size, stride=2)  # (N, C * 16, places), or C * 4
        patches = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        patches = patches[:: max(1, len(patches) // SEEN)].double()
        patches -= patches.mean(0)
        variances, axes = torch.linalg.eigh(patches.T @ patches / len(patches))  # ascending
        count = min(len(variances), first.out_channels // 2)
        found = (axes / (variances + 1e-3).sqrt()).flip(1)[:, :count].T
        found = found * found[torch.arange(count), found.abs().argmax(1)].sign()[:, None]  # the same on any machine
        first.weight[: 2 * count] = torch.cat([found, -found]).view(2 * count, *first.weight.shape[1:]).float()
        if first.bias is not None:
            first.bias.zero_()

    @classmethod
    def fitted(cls, shape: Sequence[int], width_out: int, size: str = "small", **arguments: Any) -> ResNet:
        """The net for pictures of `shape` (C, H, W): 3 stages for 32x32 and for 96x96, 4 for 224x224."""
        base.sized(SIZES, size)
        base.demand_picture("a resnet", shape, 8)
        plan = planned(shape, size) | arguments
        return cls(shape[0], width_out, **plan)


def planned(shape: Sequence[int], size: str) -> dict[str, Any]:
    """The arguments that fit pictures of `shape` (C, H, W)."""
    if min(shape[1:]) < SMALL:
        stages = 2 if min(shape[1:]) < 24 else 3
        stem = min(24, 2 * (KERNEL // 2) ** 2 * shape[0])
        return {"widths": list(SMALL_WIDTHS[size][-stages:]), "stem": stem, "halvings": 0, "parts": 1}
    side, stages = min(shape[1:]) >> 2, 1
    while side >= 2 * LAST - 2:
        side, stages = side >> 1, stages + 1
    widths = [SIZES[size] >> left for left in reversed(range(stages))]
    stem = min(48, 2 * KERNEL**2 * shape[0])  # each axis of a patch, in two signs
    return {"widths": widths, "stem": stem, "halvings": 2, "parts": 2}


def work(shape: Sequence[int], size: str) -> int:
    """Multiplications and additions of a forward pass over one picture, without those of the last layer."""
    plan = planned(shape, size)
    found, before = 0, plan["stem"]
    if plan["halvings"] == 0:
        high, wide = shape[1] - 1, shape[2] - 1
        found = high * wide * before * shape[0] * (KERNEL // 2) ** 2
        for width in plan["widths"]:
            found += high * wide * 9 * before * width
            high, wide, before = high // 2, wide // 2, width
            found += high * wide * 9 * width**2
        return int(found)
    area = shape[1] * shape[2] >> 2
    found, area = area * before * shape[0] * KERNEL**2, area >> 2
    for width in plan["widths"]:
        found += area * 9 * width * (before + 2 * width)
        area, before = area >> 2, width
    return int(found)


class Block(nn.Module):
    """(B, width, H, W) -> the same: what two convolutions find is added to what they took."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Sequential(*_normalised(width, width), nn.ReLU())
        self.second = nn.Sequential(*_normalised(width, width))
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _normalised(before: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]


def _passing(before: int, width: int, *then: nn.Module) -> nn.Module:
    """A convolution that begins by passing on what it takes (Zagoruyko and Komodakis, "DiracNets", 2017): as far as it has
    room, beside channels that begin at random."""
    found = nn.Conv2d(before, width, 3, padding=1, bias=False)
    nn.init.dirac_(found.weight[:before])
    return nn.Sequential(found, *then, nn.BatchNorm2d(width, momentum=RECENT), nn.ReLU())


NET = ResNet
