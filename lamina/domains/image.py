"""Pictures in memory: bytes or floats, grey or coloured.

In: arrays (N, H, W), (N, C, H, W) or (N, H, W, C) with C of 1, 3 or 4. Out: (N, C, H, W), bytes kept as bytes; a first
layer that scales them (`unit`: 0..1; `standard`: mean 0 and standard deviation 1 a channel over the training split).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina import mapped, names
from lamina.domains.arrays import (
    ARRAY_FILES,
    Scale,
    array_file,
    as_numbers,
    mapped_moments,
    moments,
    not_finite,
    spread,
)
from lamina.domains.base import Domain
from lamina.errors import DataError, UsageError, near, rows
from lamina.sources import Examples
from lamina.targets.base import Target

CHANNELS = (1, 3, 4)
PICTURE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".tif", ".tiff")


def layout(shape: tuple[int, ...]) -> str | None:
    """How an array of this shape holds pictures: "NHW", "NCHW", "NHWC", or None."""
    if len(shape) == 3 and min(shape[1:]) >= 4:
        return "NHW"
    if len(shape) == 4:
        if shape[1] in CHANNELS and min(shape[2:]) >= 4:
            return "NCHW"
        if shape[3] in CHANNELS and min(shape[1:3]) >= 4:
            return "NHWC"
    return None


@dataclass
class Image(Domain):
    name: ClassVar[str] = "image"
    default_net: ClassVar[str] = "convnet"

    scale: str = "standard"  # none, unit, standard
    channels: int = 1
    height: int = 0  # pixels
    width: int = 0  # pixels
    bytes: bool = True
    mean: Any = None
    std: Any = None
    unit: bool = True  # bytes, or floats that lie between 0 and 1: bytes and floats can stand for each other

    @classmethod
    def sniff(cls, examples: Examples) -> tuple[float, str]:
        if examples.kind == "pictures":
            return 0.95, "the source holds pictures"
        if not isinstance(examples.inputs, tuple) or len(examples.inputs) != 1:
            return 0.0, "not one column of pictures"
        column = examples.inputs[0]
        way = layout(tuple(column.shape))
        if way and (column.dtype in (np.uint8, torch.uint8) or way != "NHW"):
            return 0.8, f"{tuple(column.shape[1:])} looks like pictures ({way})"
        return 0.0, "not the shape of pictures"

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        if not isinstance(inputs, tuple):
            self.scale = "none"
            return
        column = self._channels_first(inputs[0])
        self.channels, self.height, self.width = column.shape[1:]
        self.bytes = column.dtype == torch.uint8
        if self.bytes and self.scale != "standard":
            return
        on_disk = mapped.is_mapped(column)
        if on_disk:
            self.unit = self.bytes or all(column[p].min() >= 0 and column[p].max() <= 1 for p in mapped.pieces(column))
        else:
            training = column.numpy()[rows]
            self.unit = self.bytes or bool(training.min() >= 0 and training.max() <= 1)
        if self.scale == "standard":
            planes = range(self.channels)
            if on_disk:
                pairs = [mapped_moments(column[:, c].numpy(), rows, (0, 1, 2)) for c in planes]
            else:
                pairs = [moments(training[:, c], (0, 1, 2)) for c in planes]
            unit = 255.0 if self.bytes else 1.0
            self.mean = [[[float(mean) / unit]] for mean, _ in pairs]
            self.std = [[[float(spread(mean, std)) / unit]] for mean, std in pairs]

    def _channels_first(self, column: Any) -> Tensor:
        table = as_numbers(column)
        way = layout(tuple(table.shape))
        if way is None:
            raise DataError(
                f"The inputs have shape {tuple(table.shape)}.",
                expected="pictures (N, H, W), (N, C, H, W) or (N, H, W, C)",
                fix=self._alone(table),
            )
        table = table[:, None] if way == "NHW" else table.permute(0, 3, 1, 2) if way == "NHWC" else table
        if table.dtype == torch.bool:
            table = table.to(torch.uint8) * 255
        elif not table.is_floating_point() and table.dtype != torch.uint8:
            low, high = int(table.min()), int(table.max())
            if low < 0 or high > 255:
                raise DataError(f"The pictures hold whole numbers from {low} to {high}.", expected="bytes, 0 to 255")
            table = table.to(torch.uint8)
        return table if table.is_contiguous() else mapped.changed(table, Tensor.contiguous)

    def _alone(self, table: Tensor) -> str:
        """The hint for one picture without its batch dimension."""
        c, h, w = self.channels, self.height, self.width
        alone = table.shape in ((c, h, w), (h, w, c)) or (c == 1 and table.shape == (h, w))
        return "for one picture add the batch dimension: x[None]" if alone else ""

    def encode(self, inputs: Any) -> Any:
        if not isinstance(inputs, (tuple, list, np.ndarray, Tensor)) and not hasattr(inputs, "__array__"):
            return inputs  # a Dataset
        column = inputs[0] if isinstance(inputs, tuple) else inputs
        table = self._channels_first(column)
        if self.height and tuple(table.shape[1:]) != (self.channels, self.height, self.width):
            raise DataError(
                f"The pictures are {tuple(table.shape[1:])} (channels, height, width).",
                expected=f"{(self.channels, self.height, self.width)}, as in training",
                fix=self._alone(as_numbers(column)),
            )
        if table.is_floating_point():
            table = table if table.dtype == torch.float32 else mapped.changed(table, Tensor.float)
            bad = not_finite(table)
            if bad:
                raise DataError(f"{len(bad)} pictures hold NaN or infinite values: {rows(bad)}.", fix="drop them")
            if self.bytes and self.height and len(table):
                if table.min() < 0 or table.max() > 1:
                    raise DataError(
                        f"The pictures are floats from {table.min():g} to {table.max():g}; training had bytes.",
                        expected="bytes 0 to 255, or floats 0 to 1",
                    )
                table = (table * 255).round().to(torch.uint8)
        elif not self.bytes:
            if not self.unit:
                raise DataError(
                    "The pictures are bytes; training had floats that did not lie between 0 and 1.",
                    expected="floats as in training",
                )
            table = mapped.changed(table, lambda part: part.float() / 255)
        return (table,)

    def prepare(self) -> nn.Module:
        unit = 255.0 if self.bytes else 1.0
        if self.scale == "none":
            return nn.Identity()
        return Scale(unit) if self.scale == "unit" else Scale(unit, self.mean, self.std)

    def net(self, target: Target, size: str, name: str | None = None, **arguments: Any) -> nn.Module:
        if not self.height:
            raise UsageError(
                "What a Dataset gives is not known before, so no net can be fitted to it.",
                expected="pictures as an array, or a net of your own",
                fix="net=..., or give arrays: (x, y)",
            )
        shape = (self.channels, self.height, self.width)
        return names.module("nets", name or "convnet").NET.fitted(shape, target.width, size, **arguments)

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """Picture files (or a folder of them) as well as arrays: brought to the channels and size of training."""
        place = Path(path)
        if place.suffix.lower() in ARRAY_FILES and place.is_file():
            columns = array_file(place)
            return columns, [str(row) for row in range(len(np.atleast_1d(columns[0])))]
        files = sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURE_FILES) if place.is_dir() else [place]
        if not files or files[0].suffix.lower() not in PICTURE_FILES:
            return super().open_inputs(path)
        if not files[0].is_file():
            beside = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
            raise UsageError(f"There is no file {path!r}: {near(place.name, beside)}")
        return (np.stack([self._open(file) for file in files]),), [str(file) for file in files]

    def _open(self, file: Path) -> np.ndarray:
        """A picture file -> (C, H, W) bytes: turned upright, converted, resized."""
        from PIL import Image as Pillow
        from PIL import ImageOps

        try:
            with Pillow.open(file) as picture:
                upright = ImageOps.exif_transpose(picture)
                if upright.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off at 255
                    upright = Pillow.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
                mode = {1: "L", 3: "RGB", 4: "RGBA"}[self.channels]
                fitted = upright.convert(mode).resize((self.width, self.height), Pillow.Resampling.BILINEAR)
        except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
            raise DataError(f"{file} could not be read as a picture: {error}") from error
        table = np.asarray(fitted)
        return table[None] if table.ndim == 2 else table.transpose(2, 0, 1)

    def pictures(self, inputs: Any, rows: np.ndarray) -> np.ndarray | None:
        table = inputs[0][torch.as_tensor(rows)]
        if table.is_floating_point():
            low, high = table.amin(), table.amax()
            table = ((table - low) / (high - low).clamp_min(1e-12) * 255).to(torch.uint8)
        return table.numpy()

    @classmethod
    def tiny(cls) -> Any:
        return "digits"


DOMAIN = Image
