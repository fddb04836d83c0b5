"""Products of bytes with numbers, by the processor's units for integers of 8 bits.

In: weights (N, F), and afterwards rows of bytes (B, F). Out: (B, N) float32. Used by `inference` and `familiar`, which ask nets
about pictures.

Each weight is written as digits d to the base 254, in units of its row's largest: w = s (d2 + d1 / 254 + d0 / 254^2),
-127 <= d <= 127. A byte times a digit is a whole number and so are the sums, which the unit adds up as int32, exactly; only the
three sums that remain are float32. Three digits are as exact as the weights are: half a unit of the last is 2^-24 of the row's
largest. That is three products in place of one, and yet a third of the time with AMX and three quarters with VNNI (784 numbers,
128 products, torch 2.13); bytes are not written as floats first, which takes as long again. The idea is that of Ozaki's scheme
(Ootomo, Ozaki and Yokota, "DGEMM on integer matrix multiplication unit", 2024).

Not covered: processors without these units, whose sums of bytes would saturate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BASE = 254
_LARGEST = 127  # of a digit
WIDEST = (2**31 - 1) // (255 * _LARGEST)  # bytes of which every sum fits into int32


def fast() -> bool:
    """Whether this processor has such units, and torch what asks them."""
    has = getattr(torch.cpu, "_is_vnni_supported", None)
    return (
        has is not None
        and has()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
    )


class OfBytes(nn.Module):
    """A linear layer for bytes. Called with anything else it raises TypeError.

    weight (N, F), bias (N,) or None; digits: of each weight, 3 for as many as float32 has. after: "relu" or "none", what is
    done with the products. ValueError where F is above WIDEST.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, digits: int = 3):
        super().__init__()
        if weight.shape[1] > WIDEST:
            raise ValueError(f"{weight.shape[1]:,} bytes, whose sums may run over; expected at most {WIDEST:,}")
        self.after = "none"
        self._bias = bias
        scale = weight.abs().amax(1) / _LARGEST
        rest = weight / torch.where(scale > 0, scale, 1.0)[:, None]
        self._digits: list[tuple[Tensor, Tensor]] = []  # (N, F) as the unit wants them, and what they are worth (N,)
        for k in range(digits):
            whole = rest.round()
            packed = torch.ops.onednn.qlinear_prepack(whole.to(torch.int8), None)
            self._digits.append((packed, scale / _BASE**k))
            rest = (rest - whole) * _BASE
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            raise TypeError(f"x holds {x.dtype}; expected bytes (torch.uint8)")
        product = torch.ops.onednn.qlinear_pointwise
        found: Tensor | None = None
        for place, (packed, worth) in reversed(
            [*enumerate(self._digits)]
        ):  # the smallest first, which is rounded least
            after = self.after if place == 0 else "none"
            ours = (x, 1.0, 0, packed, worth, self._zeros)
            if found is None:
                found = product(*ours, self._bias, 1.0, 0, torch.float32, after, [], "")
            else:
                found = product.binary(*ours, found, None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, after, [], "")
        assert found is not None
        return found
