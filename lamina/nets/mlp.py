"""The multilayer perceptron: fully connected layers, one after the other.

In: (B, ...) floats, flattened to (B, inputs). Out: (B, outputs). Called by name as "mlp", or built by hand.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lamina import activations
from lamina.activations import Activation
from lamina.errors import UsageError, near
from lamina.nets import base
from lamina.nets.beside import MOST, Beside

SIZES = {"small": (128, 64), "medium": (512, 512), "large": (1024, 1024, 512)}
NORMALISATIONS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class MLP(nn.Module):
    """Hidden layers of the given widths, each linear - normalisation - activation - dropout, and a last linear one.

    `MLP(784, 10)` is 784-128-64-10 with relu. `hidden` may be empty, which leaves linear or logistic regression, and
    may be written "128,64". `dropout` is the share of hidden numbers set to zero while training (Srivastava et al.,
    2014), `input_dropout` that of the inputs. `normalisation` is None, "batch" (Ioffe and Szegedy, 2015) or "layer"
    (Ba et al., 2016). `beside`: a linear model answers beside it, once it has learned (`lamina.nets.beside`). `UsageError`
    for what cannot be built.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] | int | str = (128, 64),
        activation: Activation = "relu",
        dropout: float = 0.0,
        normalisation: str | None = None,
        input_dropout: float = 0.0,
        beside: bool = False,
    ):
        super().__init__()
        between = [] if hidden == "" else base.whole_numbers(hidden, "hidden widths", '(128, 64) or "128,64"')
        widths = [inputs, *between, outputs]
        if min(widths) < 1:
            raise UsageError(f"an MLP of widths {'-'.join(map(str, widths))} cannot be built", expected="1 or more")
        for name, share in (("dropout", dropout), ("input_dropout", input_dropout)):
            if not 0 <= share < 1:
                raise UsageError(f"{name} is {share}", expected="a share from 0 to below 1")
        if normalisation is not None and normalisation not in NORMALISATIONS:
            raise UsageError(f"unknown normalisation {normalisation!r}", expected=near(normalisation, NORMALISATIONS))

        layers: list[nn.Module] = [nn.Dropout(input_dropout)] if input_dropout else []
        for before, width in itertools.pairwise(widths[:-1]):
            layers.append(nn.Linear(before, width))
            if normalisation:
                layers.append(NORMALISATIONS[normalisation](width))
            layers.append(activations.hidden(activation, 1, width))
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(widths[-2], outputs))
        self.layers = nn.Sequential(*layers)
        self.beside = Beside(inputs, outputs) if beside and inputs <= MOST else None

    def forward(self, x: Tensor) -> Tensor:
        answers = self.layers(x.flatten(1))  # (B, ...) -> (B, inputs) -> (B, outputs)
        return answers if self.beside is None or self.training else self.beside(answers, self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """(B, inputs): what the line beside it is a function of."""
        return x.flatten(1)

    @classmethod
    def fitted(cls, shape: Sequence[int], width_out: int, size: str = "small", **arguments: Any) -> MLP:
        """The net for inputs of `shape` (any, it is flattened): hidden 128-64, 512-512 or 1024-1024-512."""
        return cls(math.prod(shape), width_out, **{"hidden": base.sized(SIZES, size), **arguments})


NET = MLP
