"""Random changes to batches of pictures, on the device where they are.

In: pictures (B, C, H, W), uint8 or floating point, and the `Key` of their examples. Out: new pictures of the same
shape and type; the input is never written to. `make("shift=2,flip")` is called once, and what it gives by the batches,
before `prepare`.

What happens to an example depends on the seed, the epoch and the example's index: not on its neighbours, its place in
the batch, the size of the batch or the number of workers. Nothing loops over examples; nothing waits for the device.

`translate`, `reflect_translate` and `warp` take an amount for each example; the other functions draw them from a key.

uint8 stays uint8. `shift`, `crop`, `flip` and the outside of `erase` move bytes and are exact; `affine`, `noise` and
the changes of light compute in float32, round to the nearest whole number (half to even) and clip to 0 to 255.
Floating point keeps its type and is not clipped. "The range" is 255 for uint8 and 1 for floating point.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lamina.errors import UsageError, near
from lamina.keyed import Key


@dataclass(frozen=True)
class _Setting:
    default: float
    most: float  # the least is 0, which switches it off
    says: str  # what is allowed, for messages
    whole_from: float = math.inf  # from here on only whole numbers


_SETTINGS = {  # in the order in which `Augment` applies them
    "shift": _Setting(2, math.inf, "whole pixels, or below 1 a share of the side", whole_from=1),
    "rotate": _Setting(10, 180, "degrees, from 0 to 180"),
    "scale": _Setting(0.1, 0.9, "a share from 0 to 0.9: 0.1 is a factor from 0.9 to 1.1"),
    "shear": _Setting(5, 60, "degrees, from 0 to 60"),
    "zoom": _Setting(0.5, 0.98, "the largest share of the picture cut away, from 0 to 0.98"),
    "crop": _Setting(4, math.inf, "whole pixels of reflected border", whole_from=0),
    "flip": _Setting(0.5, 1, "a probability from 0 to 1"),
    "flip_vertical": _Setting(0.5, 1, "a probability from 0 to 1"),
    "brightness": _Setting(0.2, 1, "a share of the range, from 0 to 1"),
    "contrast": _Setting(0.2, 1, "a share from 0 to 1: 0.2 is a factor from 0.8 to 1.2"),
    "saturation": _Setting(0.3, 1, "a share from 0 to 1: 0.3 is a factor from 0.7 to 1.3"),
    "noise": _Setting(0.05, 1, "a standard deviation in units of the range, from 0 to 1"),
    "erase": _Setting(0.1, 1, "a share of the picture, from 0 to 1"),
}


def _fault(name: str, value: float) -> str:
    """What is wrong with a setting's value, or nothing."""
    setting = _SETTINGS[name]
    fractional = value >= setting.whole_from and value % 1 != 0
    if not 0 <= value <= setting.most or value == math.inf or fractional:  # NaN fails the first comparison
        return f"{name}={value:g} is not {setting.says}"
    return ""


def _demand(**values: float) -> None:
    faults = [fault for name, value in values.items() if (fault := _fault(name, value))]
    if faults:
        raise UsageError("Augmentation: " + "; ".join(faults))


def _check(x: Tensor, key: Key, name: str, *, least: int = 1, fill: float = 0) -> Key:
    """The key on the pictures' device, if these are pictures of `least` pixels a side that can hold the `fill`."""
    if not isinstance(x, Tensor) or x.ndim != 4:
        given = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise UsageError(
            f"Augmentation: {name} was given {given}.",
            expected="pictures (B, C, H, W)",
            fix="x[:, None] makes (B, 1, H, W) of grey pictures (B, H, W); for other inputs, leave augmentation out",
        )
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise UsageError(f"Augmentation: {name} was given pictures of {x.dtype}.", expected="uint8 or floating point")
    _check_size(x, name, least)
    if x.dtype == torch.uint8 and not (0 <= fill <= 255 and fill % 1 == 0):
        raise UsageError(f"Augmentation: {name} with fill={fill:g}.", expected="0 to 255, whole, for pictures of uint8")
    if len(key.indices) != len(x):
        raise UsageError(
            f"Augmentation: {name} was given {len(x)} pictures and the key of {len(key.indices)} examples.",
            expected="one index a picture",
        )
    return key if key.indices.device == x.device else replace(key, indices=key.indices.to(x.device))


def _check_size(x: Tensor, name: str, least: int) -> None:
    height, width = x.shape[2:]
    if min(height, width) < least:
        raise UsageError(
            f"Augmentation: pictures of {height} x {width} pixels are too small for {name}.",
            expected=f"at least {least} pixels a side",
            fix="give a smaller amount, or leave it out",
        )


def _as_given(y: Tensor, x: Tensor) -> Tensor:
    """float32 results in the type of the pictures they came from: uint8 rounded (half to even) and clipped."""
    return y.round().clamp(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else y.to(x.dtype)


# ---------------------------------------------------------------- moving by whole pixels


def translate(x: Tensor, down: Tensor, right: Tensor, *, reach: tuple[int, int], fill: float = 0) -> Tensor:
    """Move each picture by whole pixels; what comes in from outside is `fill`.

    `down` and `right` are int64 (B,), at most `reach` (rows, columns) in size: passed rather than read, since reading a
    maximum would wait for the device.
    """
    rows, columns = reach
    return _windows(F.pad(x, (columns, columns, rows, rows), value=fill), rows - down, columns - right, x.shape)


def reflect_translate(x: Tensor, down: Tensor, right: Tensor, *, reach: tuple[int, int]) -> Tensor:
    """Move each picture by whole pixels; what comes in from outside is the picture mirrored at its border pixel."""

    def bordered(x: Tensor, dim: int, border: int) -> Tensor:  # 0 1 2 3 -> 2 1 0 1 2 3 2 1; F.pad cannot reflect uint8
        before = x.narrow(dim, 1, border).flip(dim)
        after = x.narrow(dim, x.shape[dim] - 1 - border, border).flip(dim)
        return torch.cat([before, x, after], dim)

    (rows, columns), shape = reach, x.shape
    return _windows(bordered(bordered(x, 2, rows), 3, columns), rows - down, columns - right, shape)


def _windows(padded: Tensor, top: Tensor, left: Tensor, shape: torch.Size) -> Tensor:
    """Cut the window (H, W) at its own (top, left) out of each picture: (B, C, H + .., W + ..) -> (B, C, H, W)."""
    corner = top * padded.shape[3] + left  # (B,) where the window starts in its plane
    cut = _cut_memory if padded.device.type == "cpu" and padded.numel() else _gather
    return cut(padded, corner, shape)


def _gather(padded: Tensor, corner: Tensor, shape: torch.Size) -> Tensor:
    _, channels, height, width = shape
    pixel = torch.arange(height, device=padded.device)[:, None] * padded.shape[3]
    pixel = pixel + torch.arange(width, device=padded.device)  # (H, W) from the corner
    index = (corner[:, None] + pixel.view(1, -1))[:, None].expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(shape)


def _cut_memory(padded: Tensor, corner: Tensor, shape: torch.Size) -> Tensor:
    """`_gather` as one memcpy a plane: a window is one run of memory, with the pixels between its lines.

    On the CPU twice as fast for bytes of 28 x 28, three times for 224 x 224. MPS would copy the view, run by run.
    """
    batch, channels, height, width = shape
    padded = padded.contiguous()
    line, plane = padded.shape[3], padded.shape[2] * padded.shape[3]
    run = (height - 1) * line + width
    starts = (torch.arange(batch * channels).view(batch, channels) * plane + corner[:, None]).view(-1)
    runs = padded.as_strided((batch * channels * plane - run + 1, run), (1, 1)).index_select(0, starts)
    return runs.as_strided(shape, (channels * run, run, line, 1)).contiguous()


def _reach(pixels: int | None, share: float | None, x: Tensor) -> tuple[int, int]:
    """How far, in rows and columns: an amount in pixels, or a share of each side (at least a pixel, but never all)."""
    if pixels is not None and share is not None:
        raise UsageError(f"Augmentation: shift was given pixels={pixels} and share={share:g}.", expected="one of them")
    if share is None:
        pixels = 2 if pixels is None else pixels
        _demand(shift=pixels)
        if pixels % 1:
            raise UsageError(f"Augmentation: shift by pixels={pixels:g}.", expected="whole pixels", fix="say share=")
        _check_size(x, f"a shift of {pixels:g}", int(pixels) + 1)
        return int(pixels), int(pixels)
    if not 0 <= share < 1:
        raise UsageError(f"Augmentation: shift by share={share:g}.", expected="from 0 to below 1")
    rows, columns = (min(side - 1, max(1, round(share * side))) if share else 0 for side in x.shape[2:])
    return rows, columns


def _offsets(key: Key, purpose: str, reach: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Whole (down, right), each int64 (B,), uniform from -reach to reach."""
    u = key.uniform(purpose, 2)  # one hash for both, though their reaches may differ
    down, right = ((u[:, i] * (2 * r + 1)).long().clamp_(max=2 * r) - r for i, r in enumerate(reach))
    return down, right


def shift(x: Tensor, key: Key, *, pixels: int | None = None, share: float | None = None, fill: float = 0) -> Tensor:
    """Move each picture by whole pixels, up to `pixels` (2) or a `share` of its sides each way. Exact.

    What comes in from outside is `fill`.
    """
    key = _check(x, key, "shift", fill=fill)
    reach = _reach(pixels, share, x)
    if not any(reach):
        return x
    down, right = _offsets(key, "shift", reach)
    return translate(x, down, right, reach=reach, fill=fill)


def crop(x: Tensor, key: Key, *, padding: int = 4, mode: str = "reflect") -> Tensor:
    """Pad by `padding` pixels and cut the old size out at a random place. Exact.

    The border is the picture mirrored ("reflect") or zero ("constant", which is `shift`).
    """
    _demand(crop=padding)
    if mode not in ("reflect", "constant"):
        raise UsageError(f"Augmentation: crop with mode={mode!r}; {near(str(mode), ['reflect', 'constant'])}")
    padding = int(padding)
    key = _check(x, key, f"a crop with {padding} pixels of padding", least=padding + 1)
    if not padding:
        return x
    reach = (padding, padding)
    down, right = _offsets(key, "crop", reach)
    if mode == "constant":
        return translate(x, down, right, reach=reach)
    return reflect_translate(x, down, right, reach=reach)


def flip(x: Tensor, key: Key, *, p: float = 0.5, vertical: bool = False) -> Tensor:
    """Mirror a picture with probability `p`: left and right, or top and bottom if `vertical`. Exact.

    With p = 1/2 chance says how a picture begins, and then it is mirrored in every second epoch (top and bottom: in two of
    four), so that the net sees both sides equally often (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024).
    """
    name = "flip_vertical" if vertical else "flip"
    _demand(**{name: p})
    key = _check(x, key, name)
    if not p:
        return x
    turned = False
    if p == 0.5:
        turned = bool(key.epoch // (2 if vertical else 1) % 2)
        key = replace(key, epoch=0)
    chosen = (key.uniform(name)[:, :, None, None] < p) ^ turned  # (B, 1, 1, 1)
    return torch.where(chosen, x.flip(2 if vertical else 3), x)


# ---------------------------------------------------------------- resampling


def warp(
    x: Tensor,
    *,
    degrees: Tensor,
    scale: Tensor,
    shear: Tensor,
    down: Tensor,
    right: Tensor,
    aspect: Tensor | None = None,
    fill: float | None = 0,
) -> Tensor:
    """Stretch, shear, scale and rotate each picture about its middle, then move it: one bilinear resampling.

    Each amount is floating point (B,): `degrees` counter-clockwise as seen; `scale` a factor, above 1 enlarges; `aspect`
    what width over height is multiplied with, the area kept; `shear` the degrees by which upright lines lean (positive:
    the lower half goes right); `down` and `right` in pixels. What comes in from outside is `fill`; None for the picture
    mirrored at its border.
    """
    height, width = x.shape[2:]
    angle, lean = torch.deg2rad(degrees.float()), torch.tan(torch.deg2rad(shear.float()))
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # Where each pixel comes from. Forward is scale * R * S, R = [cos sin; -sin cos] and S = [1 lean; 0 1] in (right,
    # down); this is its inverse. Written out: a matrix product may round differently for another size of the batch.
    xx, xy, yx, yy = cos - lean * sin, -sin - lean * cos, sin, cos
    if aspect is not None:
        wide = aspect.sqrt()
        xx, xy, yx, yy = xx / wide, xy / wide, yx * wide, yy * wide
    u = torch.arange(width, device=x.device) - (width - 1) / 2 - right[:, None]  # (B, W) from the middle, in pixels
    v = torch.arange(height, device=x.device) - (height - 1) / 2 - down[:, None]  # (B, H)
    from_x = (xx[:, None] * u)[:, None, :] + (xy[:, None] * v)[:, :, None]  # (B, H, W)
    from_y = (yx[:, None] * u)[:, None, :] + (yy[:, None] * v)[:, :, None]
    grid = torch.stack([from_x * (2 / width), from_y * (2 / height)], dim=-1)  # (B, H, W, 2) from -1 to 1
    if fill is None:
        y = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        return _as_given(y, x)
    y = F.grid_sample(x.float() - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _as_given(y + fill, x)


def affine(
    x: Tensor,
    key: Key,
    *,
    degrees: float = 10,
    scale: float = 0.1,
    shear: float = 0.0,
    pixels: int | None = None,
    share: float | None = None,
    fill: float = 0,
) -> Tensor:
    """Rotate, scale, shear and shift in one resampling (see `warp`), so that pictures are blurred once.

    Each is uniform: the angle from -degrees to degrees, the factor from 1 - scale to 1 + scale, the shear from -shear
    to shear degrees, the shift within `pixels` (2) or a `share` of the sides, in fractions of pixels. uint8 is rounded.
    """
    _demand(rotate=degrees, scale=scale, shear=shear)
    key = _check(x, key, "an affine change", least=2, fill=fill)
    rows, columns = _reach(pixels, share, x)
    if not (degrees or scale or shear or rows or columns):
        return x
    u = key.uniform("affine", 5, -1, 1)
    return warp(
        x,
        degrees=u[:, 0] * degrees,
        scale=1 + u[:, 1] * scale,
        shear=u[:, 2] * shear,
        down=u[:, 3] * rows,
        right=u[:, 4] * columns,
        fill=fill,
    )


def zoom(
    x: Tensor, key: Key, *, share: float = 0.5, degrees: float = 0.0, scale: float = 0.0, shear: float = 0.0
) -> Tensor:
    """Cut a random part out of each picture and enlarge it to the old size: a random resized crop, in one resampling with
    what `affine` does beside shifting.

    The part has from 1 - share to all of the area, uniform, and its width over height is the picture's times 3/4 to 4/3,
    log-uniform; a side that would not fit is cut to the picture's. It lies anywhere inside. What `degrees` and `scale`
    bring in from outside is the picture mirrored at its border. ("Going deeper with convolutions", Szegedy et al., CVPR
    2015, with 1 - share = 0.08.)
    """
    _demand(zoom=share, rotate=degrees, scale=scale, shear=shear)
    key = _check(x, key, "zoom", least=2)
    if not (share or degrees or scale or shear):
        return x
    height, width = x.shape[2:]
    u = key.uniform("zoom", 4)
    area, ratio = 1 - share * u[:, 0], torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    wide, high = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)  # shares of the sides
    turned = key.uniform("affine", 3, -1, 1)
    factor = 1 + turned[:, 1] * scale
    return warp(
        x,
        degrees=turned[:, 0] * degrees,
        scale=factor / (wide * high).sqrt(),
        shear=turned[:, 2] * shear,
        aspect=high / wide,
        right=(2 * u[:, 2] - 1) * (1 - wide) / wide * factor * width / 2,
        down=(2 * u[:, 3] - 1) * (1 - high) / high * factor * height / 2,
        fill=None,
    )


def rotate_scale(
    x: Tensor, key: Key, *, degrees: float = 10, scale: float = 0.1, shear: float = 0.0, fill: float = 0
) -> Tensor:
    """`affine` without a shift: the same angles, factors and shears for the same key."""
    return affine(x, key, degrees=degrees, scale=scale, shear=shear, pixels=0, fill=fill)


# ---------------------------------------------------------------- changing the values


@functools.lru_cache(maxsize=8)
def _normal_quantiles(device: torch.device) -> Tensor:
    """The standard normal's quantiles at (i + 1/2) / 65536, float32: from -4.3 to 4.3, variance 1 to four digits."""
    levels = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    return torch.special.ndtri(levels).float().to(device)


def noise(x: Tensor, key: Key, *, std: float = 0.05) -> Tensor:
    """Add normal noise to every value; `std` is in units of the range (255 for uint8, 1 for floating point).

    A value takes 16 random bits and a table of quantiles: several times as fast as logarithm and cosine for each, and
    the same on every device.
    """
    _demand(noise=std)
    key = _check(x, key, "noise")
    if not std:
        return x
    values = math.prod(x.shape[1:])
    words = key.bits("noise", -(-values // 4)).view(torch.int16)  # (B, values and up to 3 more)
    normal = _normal_quantiles(x.device).index_select(0, (words.int() + 32768).view(-1)).view(words.shape)
    spread = std * (255 if x.dtype == torch.uint8 else 1)
    return _as_given(x.float() + normal[:, :values].reshape(x.shape) * spread, x)


def _mean(x: Tensor) -> Tensor:
    """The mean of every channel, float32 (B, C, 1, 1).

    One side after the other: over both at once, a batch of one picture is cut among threads and rounds differently.
    """
    return x.mean(3, keepdim=True, dtype=torch.float32).mean(2, keepdim=True)


def brightness_contrast(x: Tensor, key: Key, *, brightness: float = 0.2, contrast: float = 0.2) -> Tensor:
    """Stretch each picture about its own mean by a factor from 1 - contrast to 1 + contrast, and add a constant from
    -brightness to brightness, in units of the range (255 for uint8, 1 for floating point)."""
    _demand(brightness=brightness, contrast=contrast)
    key = _check(x, key, "brightness and contrast")
    if not (brightness or contrast):
        return x
    u = key.uniform("brightness_contrast", 2, -1, 1)[:, :, None, None, None]  # (B, 2, 1, 1, 1)
    lighter = u[:, 0] * (brightness * (255 if x.dtype == torch.uint8 else 1))
    mean = _mean(x).mean(1, keepdim=True)
    return _as_given((x.float() - mean) * (1 + u[:, 1] * contrast) + (mean + lighter), x)


def saturation(x: Tensor, key: Key, *, share: float = 0.3) -> Tensor:
    """Move the colours of each picture from or to its grey by a factor from 1 - share to 1 + share. The grey of a pixel is
    the mean of its three channels; pictures of other than three channels stay as they are."""
    _demand(saturation=share)
    key = _check(x, key, "saturation")
    if not share or x.shape[1] != 3:
        return x
    factor = 1 + key.uniform("saturation", 1, -share, share)[:, :, None, None]
    grey = x.float().mean(1, keepdim=True)
    return _as_given(torch.lerp(grey, x.float(), factor), x)


def erase(x: Tensor, key: Key, *, share: float = 0.1, p: float = 0.5, fill: str | float = "mean") -> Tensor:
    """Cover a random rectangle with probability `p` ("Random erasing data augmentation", Zhong et al., AAAI 2020).

    Its area is uniform from 2 % (or `share`, if less) to `share` of the picture, its height over width log-uniform from
    0.3 to 1/0.3. It lies inside the picture: a side that would not fit is cut to the picture's (the paper draws again).
    `fill` is a number, "mean" (of each channel of the picture), or "noise" (uniform between the picture's least and
    largest value).
    """
    _demand(erase=share)
    if not 0 <= p <= 1:
        raise UsageError(f"Augmentation: erase with p={p:g}.", expected="a probability from 0 to 1")
    if isinstance(fill, str) and fill not in ("mean", "noise"):
        raise UsageError(f"Augmentation: erase with fill={fill!r}; {near(fill, ['mean', 'noise'])}")
    key = _check(x, key, "erase", fill=0 if isinstance(fill, str) else fill)
    if not (share and p):
        return x
    height, width = x.shape[2:]
    u = key.uniform("erase", 5)
    area = (min(0.02, share) * (1 - u[:, 0]) + share * u[:, 0]) * (height * width)
    ratio = torch.exp((2 * u[:, 1] - 1) * math.log(0.3))
    rows = (area * ratio).sqrt().round().clamp(1, height)
    columns = (area / ratio).sqrt().round().clamp(1, width)
    top = torch.minimum((u[:, 2] * (height - rows + 1)).floor(), height - rows)
    left = torch.minimum((u[:, 3] * (width - columns + 1)).floor(), width - columns)
    rows = rows * (u[:, 4] < p)  # no rows: nothing is covered

    i = torch.arange(height, device=x.device) - top[:, None]  # (B, H), 0 at the rectangle's first row
    j = torch.arange(width, device=x.device) - left[:, None]
    inside = ((i >= 0) & (i < rows[:, None]))[:, None, :, None] & ((j >= 0) & (j < columns[:, None]))[:, None, None, :]
    if fill == "mean":
        paint = _as_given(_mean(x), x)
    elif isinstance(fill, str):
        values = math.prod(x.shape[1:])
        level = key.bits("erase fill", -(-values // 8)).view(torch.uint8)[:, :values].reshape(x.shape).float() / 255
        least, largest = x.float().flatten(1).aminmax(dim=1)
        paint = _as_given(torch.lerp(least[:, None, None, None], largest[:, None, None, None], level), x)
    else:
        paint = torch.full((), fill, dtype=x.dtype, device=x.device)
    return torch.where(inside, paint, x)


# ---------------------------------------------------------------- all together


@dataclass(frozen=True)
class Augment:
    """What `make` gives: call it on a batch's inputs. Only the first input is changed; the others pass through.

    The order is fixed, however the request was written: geometry, then light, then noise, then the erased rectangle.
    Where pictures are rotated, scaled or sheared, the shift is part of that resampling; with a zoom, it comes after it.
    """

    amounts: dict[str, float]  # name -> amount, above 0, in the order of application

    @property
    def spec(self) -> str:
        """The request in one form: every amount said, in the order of application. `make(spec)` gives this again."""
        said = (f"{name}={int(v) if v.is_integer() else v}" for name, v in self.amounts.items())
        return ",".join(said) or "none"

    def __call__(self, inputs: tuple[Tensor, ...], key: Key) -> tuple[Tensor, ...]:
        if not self.amounts:
            return inputs
        x, asked = inputs[0], self.amounts
        amount = {name: asked.get(name, 0.0) for name in _SETTINGS}
        far = amount["shift"]
        pixels, share = (None, far) if 0 < far < 1 else (int(far), None)
        turn, grow, lean = amount["rotate"], amount["scale"], amount["shear"]
        if amount["zoom"]:
            x = zoom(x, key, share=amount["zoom"], degrees=turn, scale=grow, shear=lean)
            x = shift(x, key, pixels=pixels, share=share)
        elif asked.keys() & {"rotate", "scale", "shear"}:
            x = affine(x, key, degrees=turn, scale=grow, shear=lean, pixels=pixels, share=share)
        else:
            x = shift(x, key, pixels=pixels, share=share)
        x = crop(x, key, padding=int(amount["crop"]))
        x = flip(x, key, p=amount["flip"])
        x = flip(x, key, p=amount["flip_vertical"], vertical=True)
        x = brightness_contrast(x, key, brightness=amount["brightness"], contrast=amount["contrast"])
        x = saturation(x, key, share=amount["saturation"])
        x = noise(x, key, std=amount["noise"])
        x = erase(x, key, share=amount["erase"])
        return (x, *inputs[1:])


def make(spec: str | Iterable[str]) -> Augment:
    """The augmentation that a request asks for: "shift=2,flip,rotate=10", the same in a list, or "none".

    A name without a value takes its default; 0 switches it off. All mistakes are reported at once.
    """
    if not isinstance(spec, str):
        spec = list(spec)
        if not all(isinstance(item, str) for item in spec):
            raise UsageError(f"augment = {spec!r}", expected='text such as "shift=2,flip", or a list of such texts')
        spec = ",".join(spec)
    items = [item.strip() for item in spec.split(",") if item.strip()]
    if items in ([], ["none"]):
        return Augment({})

    amounts: dict[str, float] = {}
    mistakes = []
    for item in items:
        name, equals, text = (part.strip() for part in item.partition("="))
        if name == "none":
            mistakes.append("'none' stands alone")
        elif name not in _SETTINGS:
            mistakes.append(f"{name!r} is unknown: {near(name, _SETTINGS)}")
        elif name in amounts:
            mistakes.append(f"{name!r} is given twice")
        else:
            try:
                amounts[name] = float(text) if equals else float(_SETTINGS[name].default)
            except ValueError:
                amounts[name] = 0.0
                mistakes.append(f"{item!r} is not a number: expected {_SETTINGS[name].says}")
            if fault := _fault(name, amounts[name]):
                mistakes.append(fault)
    if mistakes:
        raise UsageError(
            f"augment = {spec!r}: " + "; ".join(mistakes),
            expected='name=value, with commas between: "shift=2,flip,rotate=10"',
            fix='mend it, or say "none"',
        )
    return Augment({name: amounts[name] for name in _SETTINGS if amounts.get(name)})
