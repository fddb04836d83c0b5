"""A small convolutional net for pictures from 8x8 up, made to learn quickly on a processor.

In: (B, C, H, W) floats. Out: (B, outputs). Called by name as "convnet", or built by hand.

Where the time goes on a processor: into everything at full resolution, and there into moving memory as much as into
arithmetic. So the picture is halved early, normalisation and activation come after the pooling (on a quarter of the
numbers), and the channels lie innermost in memory (1.5 times as quick as the usual order, with the same arithmetic).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lamina import activations
from lamina.activations import Activation
from lamina.errors import UsageError
from lamina.nets import base

SIZES = {"small": 64, "medium": 128, "large": 256}  # channels of the last stage; a stage before has half
SIDES = (8, 16, 40, 96)  # pixels of the shorter side from which on there are 2, 3, 4 and 5 stages: 2 to 6 are left


class ConvNet(nn.Module):
    """Stages that each halve the picture, the mean over what is left of it, dropout, and a linear layer.

    `widths` are the channels after each stage and may be written "16,32,64". `dropout` is the share of the averaged
    features set to zero while training. `UsageError` for what cannot be built. With the defaults, 72,666 parameters for
    28x28 grey pictures of ten classes.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        widths: Sequence[int] | int | str = (16, 32, 64),
        activation: Activation = "relu",
        dropout: float = 0.1,
    ):
        super().__init__()
        all_widths = [channels, *base.whole_numbers(widths, "widths", '(16, 32, 64) or "16,32,64"')]
        if len(all_widths) < 2 or min(*all_widths, outputs) < 1:
            raise UsageError(
                f"a convnet from {channels} channels over {widths!r} to {outputs} outputs cannot be built",
                expected="at least one stage, and 1 or more everywhere",
            )
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout is {dropout}", expected="a share from 0 to below 1")
        self.stages = nn.Sequential(
            *(Stage(before, width, activation) for before, width in itertools.pairwise(all_widths))
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(all_widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(memory_format=torch.channels_last)  # the stages keep this order
        x = self.stages(x)  # (B, C, H, W) -> (B, widths[-1], H / 2^stages, W / 2^stages)
        x = x.mean((2, 3))  # -> (B, widths[-1])
        return self.head(self.dropout(x))  # -> (B, outputs)

    @classmethod
    def fitted(cls, shape: Sequence[int], width_out: int, size: str = "small", **arguments: Any) -> ConvNet:
        """The net for pictures of `shape` (C, H, W): 2 stages for 8x8, 3 for 28x28, 4 for 64x64.

        The last stage has 64, 128 or 256 channels and each before it half of the next, so that a larger picture, with
        more stages, has fewer channels where it is large.
        """
        last = base.sized(SIZES, size)
        base.demand_picture("a convnet", shape, 2)
        stages = 1 + sum(min(shape[1:]) >= side for side in SIDES)
        widths = [last >> halvings for halvings in reversed(range(stages))]
        return cls(shape[0], width_out, **{"widths": widths, **arguments})


class Stage(nn.Module):
    """(B, C, H, W) -> (B, width, H / 2, W / 2): a convolution that halves the picture, then one that refines it.

    The second adds to what it takes (He et al., "Deep residual learning", 2016), which costs nothing measurable.
    """

    def __init__(self, channels: int, width: int, activation: Activation):
        super().__init__()
        self.halve = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(width),
            activations.hidden(activation, 1, width, 2, 2),
        )
        self.refine = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            activations.hidden(activation, 1, width, 2, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.halve(x)
        return x + self.refine(x)


NET = ConvNet
