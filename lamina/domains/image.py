"""Pictures: files, or arrays of bytes or floats, grey or coloured.

In: paths of picture files, or arrays (N, H, W), (N, C, H, W) or (N, H, W, C) with C of 1, 3 or 4. Out: (N, C, H, W), bytes
kept as bytes; a first layer that scales them (`unit`: 0..1; `standard`: mean 0 and standard deviation 1 a channel over the
training split). Files are decoded once into a column of one size (`pictures`), which later runs find again.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lamina import augment, mapped, pictures, splits
from lamina.checks.near import of_middle_greys
from lamina.domains.arrays import (
    ARRAY_FILES,
    Scale,
    array_file,
    as_numbers,
    moments,
    parts,
    spread,
)
from lamina.domains.base import Domain, Encoded
from lamina.errors import DataError, Unusable, UsageError, near, rows
from lamina.findings import Finding
from lamina.keyed import Key
from lamina.nets import base, hog, resnet
from lamina.processes import cores
from lamina.recipe import Recipe
from lamina.sources import Examples, Source, describe
from lamina.sources import open as open_source
from lamina.sources.arrays import rows_not_finite
from lamina.targets.base import Target
from lamina.views import Change

CHANNELS = (1, 3, 4)
RESNET = 32  # pixels a side from which on a residual net is worth its time
CORE = 8e10  # floating-point operations a second that a core learns by, about
PASSES = 90  # over 405 pictures, a net should have time for; over more pictures fewer, as their square root
MANY = 3_000  # pictures
VIEWED = 2_000  # pictures from which is learned how far those of one person differ
VIEWS = 8  # of each, moved and turned a little
THUMBNAIL = 16  # pixels a side of what simple models learn from
_SHOWN = 10  # files a finding lists


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


def shape_of(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(C, H, W) of an array of pictures; None where it is none."""
    way = layout(shape)
    if way is None:
        return None
    return (1, *shape[1:]) if way == "NHW" else shape[1:] if way == "NCHW" else (shape[3], shape[1], shape[2])  # type: ignore[return-value]


@dataclass
class Image(Domain):
    name: ClassVar[str] = "image"
    default_net: ClassVar[str] = "convnet"
    simple: ClassVar[tuple[str, ...]] = ("linear", "centroid")

    scale: str = "standard"  # none, unit, standard
    channels: int = 1
    height: int = 0  # pixels
    width: int = 0  # pixels
    bytes: bool = True
    mean: Any = None
    std: Any = None
    size: int = 0  # pixels of a side that files are brought to; 0: by their number and their own size
    unreadable: float = 0.2  # share of the files that may be unreadable: they are left out
    unit: bool = True  # bytes, or floats that lie between 0 and 1: bytes and floats can stand for each other

    @classmethod
    def sniff(cls, examples: Examples) -> tuple[float, str]:
        if examples.kind == "pictures":
            return 0.95, "the source holds pictures"
        if examples.kind == "files":
            return 0.95, "the source lists picture files"
        if not isinstance(examples.inputs, tuple) or len(examples.inputs) != 1:
            return 0.0, "not one column of pictures"
        column = examples.inputs[0]
        way = layout(tuple(column.shape))
        if way and (column.dtype in (np.uint8, torch.uint8) or way != "NHW"):
            return 0.8, f"{tuple(column.shape[1:])} looks like pictures ({way})"
        return 0.0, "not the shape of pictures"

    def take(self, source: Source, *, own_net: bool = False) -> Source:
        """Files decoded, those that cannot be read left out and told; arrays as they are."""
        if source.train.kind != "files":
            return source
        found: list[Finding] = list(source.findings)
        taken: dict[str, Examples] = {}
        form = None
        if self.height:  # as it was in training
            form = pictures.Form(self.channels, self.height, self.width)
        for part in ("train", "valid", "test"):
            examples: Examples | None = getattr(source, part)
            if examples is None:
                continue
            paths = [str(path) for path in examples.inputs[0]]
            decoded = pictures.decode(paths, form, size=self.size)
            ids = examples.ids if examples.ids is not None else np.array([Path(path).name for path in paths], object)
            found += self._told(decoded, ids, part)
            if form is None:
                found.append(_size(decoded))
            form = decoded.form
            taken[part] = _only(examples, decoded)
        return replace(source, about=describe(taken["train"]), findings=found, **taken)  # type: ignore[arg-type]

    def _told(self, decoded: pictures.Decoded, ids: np.ndarray, part: str) -> list[Finding]:
        """Findings about files that cannot be read or tell nothing; DataError where too many cannot be read."""
        found = []
        where = "" if part == "train" else f" of the {part} data"
        if decoded.bad:
            count = len(decoded.bad) + len(decoded.rows)
            listed = [f"{ids[row]} ({why})" for row, why in decoded.bad.items()]
            what = f"{len(listed):,} of {_pictures(count)}{where} cannot be read: {_listed(listed)}."
            if len(listed) > self.unreadable * count:
                raise DataError(
                    what,
                    expected=f"at most {self.unreadable:.0%} that cannot be read" if self.unreadable else "none",
                    fix="mend or delete them"
                    + ("" if self.unreadable else ", or train without --strict")
                    + "; --domain-arg unreadable=0.9 leaves out as many",
                )
            found.append(
                Finding("unreadable", "warning", what, len(listed), listed[:_SHOWN], "left out",
                        "mend or delete them; --strict refuses them")
            )  # fmt: skip
        if decoded.tiny:
            listed = [f"{ids[row]} ({size})" for row, size in decoded.tiny.items()]
            what = f"{_pictures(len(listed))}{where} of less than {pictures.TINY} pixels a side: {_listed(listed)}."
            found.append(Finding("tiny_pictures", "warning", what, len(listed), listed[:_SHOWN],
                                 f"enlarged to {decoded.column.shape[3]}x{decoded.column.shape[2]}",
                                 "delete them, unless they are meant"))  # fmt: skip
        return found

    def opinions(self, examples: Examples, target: Target, asked: Recipe) -> dict[str, tuple[Any, str]]:
        """For pictures of 32 pixels and more: a residual net, as large as its passes leave time for, and changes that leave
        a picture what it is. Smaller ones are left to `convnet` and what the recipe knows of it."""
        if not isinstance(examples.inputs, tuple) or asked.net not in (None, "resnet"):
            return {}
        column = examples.inputs[0]
        shape = shape_of(tuple(np.shape(column)))
        if shape is None or (min(shape[1:]) < RESNET and asked.net is None):
            return {}
        count, height, width = len(column), shape[1], shape[2]
        classes = target.name == "classes"

        # As much work as the time allows; of the nets that see every picture often enough in it, the largest.
        seconds = 0.85 * asked.budget if asked.budget else 170 * max(1.0, count / 3000) ** 0.4
        power = CORE * cores() if asked.budget else 2 * CORE
        passes = max(7.0, PASSES * math.sqrt(405 / max(405, count)))
        size: str = asked.size or "small"
        epochs = 1.0
        for larger in (asked.size,) if asked.size else resnet.SIZES:
            fitting = seconds * power / (6 * resnet.work(shape, larger) * count)
            if fitting >= passes or larger == "small" or asked.size:
                size, epochs = larger, fitting
        found: dict[str, tuple[Any, str]] = {
            "net": ("resnet", f"pictures of {width}x{height}"),
            "size": (size, f"{count:,} pictures, and some {seconds:,.0f} s for them"),
            "batch_size": (32 if count < MANY else 64 if count < 20_000 else 128, f"{count:,} pictures"),
        }
        if asked.budget is None and asked.steps is None:
            found["epochs"] = (round(min(4 * passes, max(passes, epochs))), f"{count:,} pictures of {width}x{height}")
        if asked.optimizer is None and count >= MANY:
            batch = asked.batch_size or found["batch_size"][0]
            found["optimizer"] = ("sgd", "with momentum: of many pictures it learns more in a pass than adamw")
            found["optimizer_arg"] = (
                {"momentum": 0.9, "nesterov": True, **asked.optimizer_arg},
                "as usual for pictures",
            )
            found["learning_rate"] = (0.2 * batch / 128, f"peak of sgd for resnet, batches of {batch}")
            found["weight_decay"] = (5e-4, "against overfitting; biases and norms are spared")
        elif asked.optimizer in (None, "adamw"):
            found["learning_rate"] = (3e-3, "peak of adamw for resnet")
        change, why = self._change(examples, shape, target)
        found["augment"] = (change, why)
        if "flip" in (asked.augment or change):
            found["net_arg"] = ({"mirrored": True, **asked.net_arg}, "the mean of a picture and its mirror image")
        if classes:
            found["label_smoothing"] = (0.1, "against too much certainty")
        return found

    def _change(self, examples: Examples, shape: tuple[int, int, int], target: Target) -> tuple[str, str]:
        """Random changes under which a picture of these stays what it is, and why they do."""
        side = min(shape[1:])
        plain = f"shift={max(1, round(side / 14))},rotate=10,scale=0.1"
        if target.name == "numbers":
            return f"shift={max(1, round(side / 14))}", "a number may depend on size, direction and light"
        called: Any = examples.labels
        if called is None and examples.truth is not None and examples.truth.dtype.kind in "UO":
            called = np.unique(examples.truth.astype(str))
        if called is not None and all(len(str(label)) == 1 for label in called):
            return plain, "no mirror: the classes are letters or digits"
        if shape[0] == 1 and not of_middle_greys(examples.inputs[0]):
            return plain, "no mirror: black on white, or white on black, as writing is"
        light = "brightness=0.2,contrast=0.2" + (",saturation=0.3" if shape[0] == 3 else "")
        if side < 48 and len(examples.inputs[0]) >= MANY:
            return f"crop={max(1, side // 16)},flip", "photographs: mirrored and moved"
        return f"zoom=0.6,flip,{light}", "photographs: a part of each, mirrored, in another light"

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        if not isinstance(inputs, tuple):
            self.scale = "none"
            return
        column = self._channels_first(inputs[0])
        self.channels, self.height, self.width = column.shape[1:]
        self.bytes = column.dtype == torch.uint8
        if self.bytes and self.scale != "standard":
            return
        table = column.numpy()
        self.unit = self.bytes or all(
            part.min(initial=0) >= 0 and part.max(initial=1) <= 1 for part in parts(table, rows)
        )
        if self.scale == "standard":
            pairs = [moments(table[:, channel], rows, (0, 1, 2)) for channel in range(self.channels)]
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
        if self.height and _are_paths(column):
            column = self._opened([str(path) for path in column])[0]
        table = self._channels_first(column)
        if self.height and tuple(table.shape[1:]) != (self.channels, self.height, self.width):
            raise DataError(
                f"The pictures are {tuple(table.shape[1:])} (channels, height, width).",
                expected=f"{(self.channels, self.height, self.width)}, as in training",
                fix=self._alone(as_numbers(column)),
            )
        if table.is_floating_point():
            table = table if table.dtype == torch.float32 else mapped.changed(table, Tensor.float)
            bad = rows_not_finite(table.detach().cpu().numpy())
            if len(bad):
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

    def begin(self, net: nn.Module, examples: Encoded, rows: np.ndarray, target: Target) -> None:
        """From some of the training pictures the first filters of a residual net, or how far a person's pictures differ."""
        if not isinstance(examples.inputs, tuple):
            return
        column = examples.inputs[0]

        def shown(some: np.ndarray) -> Tensor:
            device = next(net.parameters()).device
            return self.prepare().to(device)(mapped.take(column, torch.from_numpy(some)).to(device))

        if isinstance(net, resnet.ResNet):
            net.begin(shown(splits.spread(rows, max(1, 4 * resnet.SEEN // (column.shape[2] * column.shape[3])))))
        elif isinstance(net, hog.HOGNet) and target.name == "embedding" and examples.truth is not None:
            some = splits.spread(rows, VIEWED)
            plain, numbers = shown(some), torch.from_numpy(some)
            sides = [plain, plain.flip(3)] if net.mirrored else [plain]
            change = functools.partial(augment.affine, degrees=6, scale=0.07, share=0.05, fill=float(plain.mean()))
            moved = [change(sides[k % len(sides)], Key(k, 0, numbers.to(plain.device))) for k in range(VIEWS)]
            who = examples.truth[numbers].to(plain.device)
            net.begin(sides + moved, who, target.centres(plain))  # type: ignore[attr-defined]

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
        return base.named(name or "convnet", "pictures").fitted(shape, target.width, size, **arguments)

    def plain(self, inputs: Any, rows: np.ndarray, model: str) -> Any:
        """Thumbnails of 16 pixels a side; pictures of up to 1,024 numbers as they are. Colour pictures that are near each
        other pixel by pixel need not show the same, so they have no neighbours."""
        if model == "neighbours" and self.channels > 1:
            return None
        if not isinstance(inputs, tuple) or len(inputs) != 1 or inputs[0][0].numel() <= 1024:
            return super().plain(inputs, rows, model)
        height, width = (min(side, THUMBNAIL) for side in inputs[0].shape[2:])
        step = max(1, mapped.PIECE // inputs[0][0].numel())
        small = [
            F.adaptive_avg_pool2d(mapped.take(inputs[0], part).float(), (height, width)).flatten(1)
            for part in torch.from_numpy(rows).split(step)
        ]
        return torch.cat(small).numpy()

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A picture, a folder of them, a list (`.txt`: a path a line), or a table with a column of paths; and arrays. Files
        are brought to the form of training; those that cannot be read are named in a warning and have no prediction."""
        place = Path(path)
        if place.suffix.lower() in ARRAY_FILES and place.is_file():
            columns = array_file(place)
            return columns, [str(row) for row in range(len(np.atleast_1d(columns[0])))]
        if not place.exists() and place.suffix.lower() in pictures.SUFFIXES:
            beside = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
            raise UsageError(f"There is no file {path!r}: {near(place.name, beside)}")
        found = _picture_files(place)
        ids = found
        if not found:
            source = open_source(path)
            if source.train.kind != "files":
                return source.train.inputs, [str(row) for row in range(source.train.count or 0)]
            found = [str(entry) for entry in source.train.inputs[0]]
            ids = found if source.train.ids is None else [str(name) for name in source.train.ids]
        column, rows = self._opened(found, ids)
        return (column,), [ids[row] for row in rows]

    def _opened(self, paths: list[str], ids: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Picture files -> (n, C, H, W) in the form of training, and which of them; the others are warned of by name."""
        form = pictures.Form(self.channels, self.height, self.width)
        decoded = pictures.decode(paths, form, keep=False)
        if decoded.bad:
            named = ids or paths
            listed = [f"{named[row]} ({why})" for row, why in decoded.bad.items()]
            if len(paths) == 1:
                raise DataError(f"{named[0]} could not be read as a picture: {decoded.bad[0]}.", expected=_EXPECTED)
            if ids is None or not len(decoded.rows):
                raise DataError(
                    f"{len(listed)} of {len(paths)} could not be read as pictures: {_listed(listed)}.",
                    expected=_EXPECTED,
                )
            what = f"{len(listed)} of {len(paths)} pictures cannot be read and have no prediction: {_listed(listed)}"
            broken = {row: (named[row], f"cannot be read: {why}") for row, why in decoded.bad.items()}
            warnings.warn(Unusable(what, broken), stacklevel=2)
        return decoded.column, decoded.rows

    def change(self, recipe: Recipe) -> Change:
        if recipe.augment in (None, "none"):
            raise UsageError("Pictures are learned from two changed views of each, and augment is none.",
                             fix="--augment shift=2,rotate=10, or leave it out")  # fmt: skip
        return augment.make(recipe.augment)

    def pictures(self, inputs: Any, rows: np.ndarray) -> np.ndarray | None:
        table = inputs[0][torch.as_tensor(rows)]
        if table.is_floating_point():
            low, high = table.amin(), table.amax()
            table = ((table - low) / (high - low).clamp_min(1e-12) * 255).to(torch.uint8)
        return table.numpy()

    @classmethod
    def tiny(cls) -> Any:
        return "digits"


_EXPECTED = f"a picture ({', '.join(pictures.FORMATS)})"


def _pictures(count: int) -> str:
    return f"{count:,} picture{'s' if count != 1 else ''}"


def _listed(entries: list[str]) -> str:
    return ", ".join(entries[:_SHOWN]) + (f" and {len(entries) - _SHOWN:,} more" if len(entries) > _SHOWN else "")


def _are_paths(column: Any) -> bool:
    return len(column) > 0 and all(isinstance(entry, (str, Path)) for entry in column[:1])


def _picture_files(place: Path) -> list[str]:
    """The pictures that a file or folder is, holds or lists, sorted; [] where there are none."""
    if place.is_dir():
        return [
            str(file)
            for file in sorted(place.rglob("*"))
            if file.suffix.lower() in pictures.SUFFIXES and not file.name.startswith(".") and file.is_file()
        ]
    if place.suffix.lower() == ".txt" and place.is_file():
        lines = place.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        return [str(place.parent / line.strip()) for line in lines if line.strip()]
    looks = place.suffix.lower() in pictures.SUFFIXES or (place.is_file() and pictures.is_picture(place))
    return [str(place)] if looks else []


def _only(examples: Examples, decoded: pictures.Decoded) -> Examples:
    """The examples whose pictures could be read, with their pictures."""
    kept = {
        name: None if (column := getattr(examples, name)) is None else np.asarray(column)[decoded.rows]
        for name in ("truth", "ids", "groups", "times")
    }
    return replace(examples, inputs=(decoded.column,), kind="pictures", names=None, **kept)  # type: ignore[arg-type]


def _size(decoded: pictures.Decoded) -> Finding:
    count, form = len(decoded.column), decoded.form
    shape = f"{'grey' if form.channels == 1 else 'colour'}, {form.width}x{form.height}"
    if decoded.place is None:
        kept = f"not kept for later runs: {decoded.note or 'LAMINA_CACHE is off'}"
    else:
        megabytes = max(1, decoded.column.nbytes >> 20)
        kept = f"{'found again in' if decoded.reused else 'kept in'} {decoded.place} ({megabytes:,} MiB)"
    return Finding("picture_size", "note", f"The pictures are learned from in {shape} pixels: {decoded.why}.", count, [], kept,
                   "another size: --domain-arg size=128; another cache: LAMINA_CACHE=FOLDER")  # fmt: skip


DOMAIN = Image
