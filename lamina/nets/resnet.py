"""A residual convolutional net for pictures from 24 pixels up: photographs, small or large.

In: (B, C, H, W) floats. Out: (B, outputs). Called by name as "resnet", or built by hand.

As in `convnet`, little is done where the picture is large: one convolution to its half or its quarter, then stages that
each halve it again before they look at it. A picture of 32 pixels is worked on at 16, 8 and 4 a side, one of 96 at 24, 12
and 6; the same net takes about twice the time for the latter. Channels lie innermost in memory.

The first filters are given the main axes of the pictures' own patches (`begin`), in both signs, so that what they find is
uncorrelated from the first step: "94 % on CIFAR-10 in 3.29 seconds on a single GPU", Jordan, 2024, where it halves the
training. Here they learn on with the rest.

Residual blocks: He et al., "Deep residual learning for image recognition", CVPR 2016, with the last normalisation of a block
beginning at zero, so that every block begins as the identity (Goyal et al., "Accurate, large minibatch SGD", 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lamina.errors import UsageError, near

SIZES = {"small": 128, "medium": 192, "large": 320}  # channels of the last stage; a stage before has half
KERNEL = 4  # pixels a side of the first filters
SEEN = 300_000  # patches from which the first filters are made
LAST = 5  # pixels a side, about: stages halve the picture until no more are left


class ResNet(nn.Module):
    """A stem, stages of residual blocks, the mean over what is left of the picture and over its parts, dropout, and a linear
    layer: of its parts, since in many photographs what is above and what is below are not the same.

    `widths`: channels of each stage, (64, 128, 256) or "64,128,256". `blocks`: residual blocks a stage. `stem`: channels of
    the first convolution, of 4x4 pixels. `halvings`: how often the stem halves the picture, 1 or 2. `dropout`: share of the
    averaged features set to zero while training. `mirrored`: an answer is the mean of those to the picture and to its mirror
    image, once training is over. `parts`: how many a side the mean is taken of, beside that of the whole; 1 for none.
    `UsageError` for what cannot be built.
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
        all_widths = [stem, *_numbers(widths)]
        if len(all_widths) < 2 or min(*all_widths, channels, outputs, blocks, parts) < 1 or halvings not in (1, 2):
            raise UsageError(
                f"a resnet from {channels} channels by a stem of {stem} with {halvings} halvings over {widths!r} with "
                f"{blocks} blocks to {outputs} outputs cannot be built",
                expected="at least one stage, 1 or more everywhere, and 1 or 2 halvings",
            )
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is {dropout}", expected="a share from 0 to below 1")
        self.mirrored, self.parts = mirrored, parts
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, KERNEL, stride=2, padding=1, bias=False),
            *([nn.MaxPool2d(2)] if halvings == 2 else []),  # before what follows, which then has a quarter to do
            nn.BatchNorm2d(stem),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        for number, width in enumerate(all_widths[1:]):
            if number:
                stages.append(nn.MaxPool2d(2))
            stages.append(nn.Sequential(*_normalised(all_widths[number], width), nn.ReLU()))
            stages.extend(Block(width) for _ in range(blocks))
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(all_widths[-1] * (1 if parts == 1 else 1 + parts**2), outputs)

    def forward(self, x: Tensor) -> Tensor:
        found = self._asked(x)
        return found if self.training or not self.mirrored else (found + self._asked(x.flip(3))) / 2

    def _asked(self, x: Tensor) -> Tensor:
        x = self.stem(x.to(memory_format=torch.channels_last))  # (B, C, H, W) -> (B, stem, H / 2, W / 2), or a quarter
        x = self.stages(x)  # -> (B, widths[-1], H', W')
        found = x.mean((2, 3))  # -> (B, widths[-1])
        if self.parts > 1:
            found = torch.cat([found, F.adaptive_avg_pool2d(x, self.parts).flatten(1)], 1)
        return self.head(self.dropout(found))  # -> (B, outputs)

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Take the first filters from pictures (N, C, H, W) as the net takes them: the axes along which their patches vary
        most, each scaled to a variance of 1, and its negative."""
        first = self.stem[0]
        assert isinstance(first, nn.Conv2d)
        patches = F.unfold(x.float(), KERNEL, stride=2)  # (N, C * 16, places)
        patches = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        patches = patches[:: max(1, len(patches) // SEEN)].double()
        patches -= patches.mean(0)
        variances, axes = torch.linalg.eigh(patches.T @ patches / len(patches))  # ascending
        count = min(len(variances), first.out_channels // 2)
        found = (axes / (variances + 1e-3).sqrt()).flip(1)[:, :count].T
        found = found * found[torch.arange(count), found.abs().argmax(1)].sign()[:, None]  # the same on any machine
        first.weight[: 2 * count] = torch.cat([found, -found]).view(2 * count, *first.weight.shape[1:]).float()

    @classmethod
    def fitted(cls, shape: Sequence[int], width_out: int, size: str = "small", **arguments: Any) -> ResNet:
        """The net for pictures of `shape` (C, H, W): 3 stages for 32x32 and for 96x96, 4 for 224x224."""
        if size not in SIZES:
            raise UsageError(f"unknown size {size!r}", expected=near(size, SIZES))
        if len(shape) != 3 or min(shape[1:]) < 8:
            raise UsageError(f"a resnet cannot take inputs of shape {tuple(shape)}", expected="(C, H, W), sides >= 8")
        plan = planned(shape, size) | arguments
        return cls(shape[0], width_out, **plan)


def planned(shape: Sequence[int], size: str) -> dict[str, Any]:
    """The arguments that fit pictures of `shape` (C, H, W)."""
    halvings = 1 if min(shape[1:]) < 48 else 2
    side, stages = min(shape[1:]) >> halvings, 1
    while side >= 2 * LAST - 2:
        side, stages = side >> 1, stages + 1
    widths = [SIZES[size] >> left for left in reversed(range(stages))]
    stem = min(48, 2 * KERNEL**2 * shape[0])  # each axis of a patch, in two signs
    return {"widths": widths, "stem": stem, "halvings": halvings, "parts": halvings}


def work(shape: Sequence[int], size: str) -> int:
    """Multiplications and additions of a forward pass over one picture, without those of the last layer."""
    plan = planned(shape, size)
    area = shape[1] * shape[2] >> 2
    found, before = area * plan["stem"] * shape[0] * KERNEL**2, plan["stem"]
    area >>= 2 * (plan["halvings"] - 1)
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


def _numbers(widths: Sequence[int] | int | str) -> list[int]:
    """(16, 32), 16 or "16,32" -> [16, 32], [16] or [16, 32]."""
    if isinstance(widths, int):
        return [widths]
    try:
        return [int(width) for width in (widths.split(",") if isinstance(widths, str) else widths)]
    except (TypeError, ValueError):
        raise UsageError(
            f"widths {widths!r} are not whole numbers", expected='(64, 128, 256) or "64,128,256"'
        ) from None


NET = ResNet
