"""Augmentation: against plain loops and scipy, exact where it says so, and blind to an example's neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from lamina import augment
from lamina.augment import (
    Augment,
    affine,
    brightness_contrast,
    crop,
    erase,
    flip,
    make,
    noise,
    rotate_scale,
    saturation,
    shift,
    warp,
    zoom,
)
from lamina.errors import UsageError
from lamina.keyed import Key

SEED, EPOCH = 4, 9
CHANCE = 1e-5  # what a p-value must exceed: the numbers are fixed, and there are some dozens of such tests


def key(n: int, seed: int = SEED, epoch: int = EPOCH) -> Key:
    return Key(seed, epoch, torch.arange(n))


def pictures(
    n: int, channels: int = 3, height: int = 9, width: int = 12, dtype: torch.dtype = torch.uint8
) -> torch.Tensor:
    x = torch.randint(1, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(1))
    return x.to(torch.uint8) if dtype == torch.uint8 else (x / 255).to(dtype)


TYPES = [torch.uint8, torch.float32, torch.float16]


# --- moving by whole pixels -------------------------------------------------------------------------------------------


def moved(picture: np.ndarray, down: int, right: int, border: int, **pad: Any) -> np.ndarray:
    """One picture (C, H, W), by numpy's padding and slicing."""
    _, height, width = picture.shape
    padded = np.pad(picture, ((0, 0), (border, border), (border, border)), **pad)
    return padded[:, border - down : border - down + height, border - right : border - right + width]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("fill", [0, 7])
def test_translate_is_the_loop_over_examples(dtype, fill):
    x = pictures(40, dtype=dtype)
    down, right = torch.randint(-2, 3, (40,)), torch.randint(-5, 6, (40,))
    y = augment.translate(x, down, right, reach=(2, 5), fill=fill)
    for i in range(40):
        expected = moved(x[i].numpy(), int(down[i]), int(right[i]), 5, constant_values=fill)
        assert np.array_equal(y[i].numpy(), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_reflect_translate_is_the_loop_over_examples(dtype):
    x = pictures(40, dtype=dtype)
    down, right = torch.randint(-8, 9, (40,)), torch.randint(-4, 5, (40,))
    y = augment.reflect_translate(x, down, right, reach=(8, 4))
    for i in range(40):
        assert np.array_equal(y[i].numpy(), moved(x[i].numpy(), int(down[i]), int(right[i]), 8, mode="reflect"))


@pytest.mark.parametrize("shape", [(30, 3, 6, 8), (30, 3, 9, 12), (30, 3, 1, 1)], ids=str)
def test_windows_are_the_same_by_memory_and_by_index(shape):
    """The way of the CPU and the way of other devices."""
    padded, size = pictures(30), torch.Size(shape)
    top, left = torch.randint(0, 10 - size[2], (30,)), torch.randint(0, 13 - size[3], (30,))
    expected = torch.stack([p[:, t : t + size[2], c : c + size[3]] for p, t, c in zip(padded, top, left, strict=True)])
    for cut in (augment._gather, augment._cut_memory):
        y = cut(padded, top * 12 + left, size)
        assert torch.equal(y, expected) and y.is_contiguous()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("change", [shift, lambda x, k: crop(x, k, padding=2)], ids=["shift", "crop"])
def test_the_layout_in_memory_does_not_matter(memory_format, change):
    x = pictures(16)
    assert torch.equal(change(x.to(memory_format=memory_format), key(16)), change(x, key(16)))


def places(x: torch.Tensor, y: torch.Tensor, border: int, **pad: Any) -> list[tuple[int, int]]:
    """By trial: how far each picture was moved."""
    found = []
    for before, after in zip(x.numpy(), y.numpy(), strict=True):
        reach = range(-border, border + 1)
        hits = [(d, r) for d in reach for r in reach if np.array_equal(moved(before, d, r, border, **pad), after)]
        assert len(hits) == 1
        found += hits
    return found


@pytest.mark.parametrize(
    "change, border, pad",
    [
        (lambda x, k: shift(x, k, pixels=2), 2, {"constant_values": 0}),
        (lambda x, k: crop(x, k, padding=2), 2, {"mode": "reflect"}),
        (lambda x, k: crop(x, k, padding=2, mode="constant"), 2, {"constant_values": 0}),
    ],
    ids=["shift", "crop, reflected", "crop, constant"],
)
def test_every_shift_within_reach_is_equally_likely(change, border, pad):
    x = pictures(2000, 1, 6, 6)
    found = places(x, change(x, key(2000)), border, **pad)
    counts = [found.count((d, r)) for d in range(-2, 3) for r in range(-2, 3)]
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > CHANCE


def test_a_share_is_taken_of_each_side():
    x = pictures(400, 1, 10, 20)
    found = np.array(places(x, shift(x, key(400), share=0.1), 2, constant_values=0))
    assert np.abs(found).max(axis=0).tolist() == [1, 2]


@pytest.mark.parametrize("height, width", [(1, 40), (6, 40), (1, 1)])
def test_a_share_fits_pictures_of_any_form(height, width):
    """Half of a long side may be more than the whole of the short one."""
    x = pictures(200, 1, height, width)
    y = shift(x, key(200), share=0.5)
    kept = (y != 0).any(3).any(2)[:, 0]  # part of every picture is still to be seen
    assert kept.all()
    assert torch.equal(x, y) == (width == 1)


def test_flip_is_the_loop_over_examples():
    x = pictures(500, 2, 5, 6)
    for vertical in (False, True):
        y = flip(x, key(500), p=0.3, vertical=vertical)
        flipped = 0
        for before, after in zip(x.numpy(), y.numpy(), strict=True):
            mirror = before[:, ::-1] if vertical else before[:, :, ::-1]
            flipped += (is_mirror := np.array_equal(after, mirror))
            assert is_mirror or np.array_equal(after, before)
        assert stats.binomtest(flipped, 500, 0.3).pvalue > CHANCE


def test_flips_are_independent_of_each_other():
    x = pictures(2000, 1, 2, 2)
    across, down = ((flip(x, key(2000), vertical=v) != x).any(3).any(2)[:, 0] for v in (False, True))
    table = torch.bincount(2 * across + 1 * down, minlength=4).view(2, 2).numpy()
    assert table.min() > 300
    assert stats.chi2_contingency(table).pvalue > CHANCE


def test_of_two_epochs_each_picture_is_mirrored_in_one_and_of_four_each_way_is_seen_once():
    x = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).expand(300, 1, 2, 2)
    epochs = [key(300, epoch=epoch) for epoch in range(7)]
    across = torch.stack([(flip(x, k) != x).any(3).any(2)[:, 0] for k in epochs])
    assert torch.equal(across[1:], ~across[:-1])
    both = torch.stack([flip(flip(x, k), k, vertical=True).flatten(1) for k in epochs[:4]])  # (4, 300, 4)
    assert all(len(both[:, row].unique(dim=0)) == 4 for row in range(300))
    for vertical in (False, True):
        first = (flip(x, epochs[0], vertical=vertical) != x).any(3).any(2).sum()
        assert stats.binomtest(int(first), 300, 0.5).pvalue > CHANCE


def test_flipping_is_certain_or_impossible_at_the_ends():
    x = pictures(50)
    assert torch.equal(flip(x, key(50), p=1), x.flip(3))
    assert torch.equal(flip(x, key(50), p=1, vertical=True), x.flip(2))
    assert flip(x, key(50), p=0) is x


# --- resampling -------------------------------------------------------------------------------------------------------


def amounts(n: int, **given: float) -> dict[str, Any]:
    neutral = {"degrees": 0.0, "scale": 1.0, "shear": 0.0, "down": 0.0, "right": 0.0}
    return {name: torch.full((n,), value) for name, value in (neutral | given).items()}


@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("side", [7, 8])
def test_quarter_turns_are_exact(turns, side):
    x = pictures(5, height=side, width=side)
    assert torch.equal(warp(x, **amounts(5, degrees=90.0 * turns)), torch.rot90(x, turns, (2, 3)))
    z = pictures(5, height=side, width=side, dtype=torch.float32)
    torch.testing.assert_close(
        warp(z, **amounts(5, degrees=90.0 * turns)), torch.rot90(z, turns, (2, 3)), atol=2e-6, rtol=0
    )


def test_a_half_turn_of_an_oblong_is_both_flips():
    x = pictures(5)
    assert torch.equal(warp(x, **amounts(5, degrees=180)), x.flip(2, 3))


def test_whole_shifts_are_those_of_translate():
    x = pictures(20)
    down, right = torch.randint(-2, 3, (20,)), torch.randint(-2, 3, (20,))
    y = warp(x, **amounts(20) | {"down": down.float(), "right": right.float()}, fill=9)
    assert torch.equal(y, augment.translate(x, down, right, reach=(2, 2), fill=9))


@given(
    degrees=st.floats(-180, 180), scale=st.floats(0.5, 2), shear=st.floats(-40, 40),
    down=st.floats(-3, 3), right=st.floats(-3, 3), fill=st.sampled_from([0.0, 0.5]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_warp_is_scipys_affine_transform(degrees, scale, shear, down, right, fill):
    x = pictures(1, 2, dtype=torch.float32)
    t, s = np.deg2rad(degrees), np.tan(np.deg2rad(shear))
    # Forward, in (right, down) from the middle, as the docstring says it: shear, scale, rotate counter-clockwise, move.
    forward = scale * np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]]) @ np.array([[1, s], [0, 1]])
    back = np.linalg.inv(forward)[::-1, ::-1]  # to (down, right), scipy's order
    middle = (np.array(x.shape[2:]) - 1) / 2
    offset = middle - back @ (middle + [down, right])
    asked = {"degrees": degrees, "scale": scale, "shear": shear, "down": down, "right": right}
    y = warp(x, **amounts(1, **asked), fill=fill)
    for before, after in zip(x[0].double().numpy(), y[0].numpy(), strict=True):
        expected = ndimage.affine_transform(before, back, offset, order=1, mode="grid-constant", cval=fill)
        np.testing.assert_allclose(after, expected, atol=2e-5)


def test_signs_are_as_said():
    """A dot on the right: counter-clockwise takes it up, enlarging takes it out; shear moves the lower half right."""
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 6] = 1

    def dot(**given: float) -> list[list[int]]:
        return torch.nonzero(warp(x, **amounts(1, **given))[0, 0] > 0.9).tolist()

    assert dot(degrees=90) == [[2, 4]]
    assert dot(down=1, right=-2) == [[5, 4]]
    assert dot(scale=2)[0] == [4, 8]
    low = x.roll(2, 2)
    assert torch.nonzero(warp(low, **amounts(1, shear=45))[0, 0] > 0.9).tolist() == [[6, 8]]


def test_affine_draws_each_amount_uniformly_and_passes_it_on(monkeypatch):
    seen = {}
    monkeypatch.setattr(augment, "warp", lambda x, **given: seen.update(given) or x)
    affine(pictures(3000, 1, 10, 20), key(3000), degrees=20, scale=0.2, shear=5, share=0.1, fill=3)
    spans = {"degrees": (-20, 20), "scale": (0.8, 1.2), "shear": (-5, 5), "down": (-1, 1), "right": (-2, 2)}
    for name, (low, high) in spans.items():
        assert stats.kstest(seen[name].numpy(), "uniform", (low, high - low)).pvalue > CHANCE
    correlations = np.corrcoef([seen[name].numpy() for name in spans]) - np.eye(5)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(3000)
    assert seen["fill"] == 3


def test_rotate_scale_is_affine_without_a_shift():
    x = pictures(8)
    asked = {"degrees": 30, "scale": 0.2, "shear": 3}
    assert torch.equal(rotate_scale(x, key(8), **asked), affine(x, key(8), **asked, pixels=0))


def test_what_comes_in_is_the_fill():
    x = torch.full((20, 1, 16, 16), 100, dtype=torch.uint8)
    y = affine(x, key(20), degrees=45, pixels=4, fill=100)
    assert torch.equal(y, x)
    assert affine(x, key(20), degrees=45, pixels=4).min() == 0


def test_zoom_shows_a_part_of_the_area_and_shape_asked_for_from_inside_the_picture():
    """Of a picture whose two channels are column and row, each place of what comes out says where it was."""
    n, height, width, share = 2000, 40, 60, 0.6
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = torch.stack([column, row]).float().expand(n, -1, -1, -1)
    y = zoom(x, key(n), share=share).double()
    inner = y[:, :, 8:-8, 8:-8]  # beside the border, a resampling meets mirrored pixels
    wide = (inner[:, 0, 0, -1] - inner[:, 0, 0, 0]) / (width - 17)  # shares of the sides
    high = (inner[:, 1, -1, 0] - inner[:, 1, 0, 0]) / (height - 17)
    whole = (wide > 0.999) | (high > 0.999)  # a side that was cut to the picture's
    assert 0.05 < whole.double().mean() < 0.5 and wide.max() < 1.001 and high.max() < 1.001
    area, ratio = (wide * high)[~whole], (wide / high)[~whole]
    assert 1 - share < area.min() < 0.42 and area.max() > 0.9
    assert 0.75 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.334
    for k, (part, side) in enumerate(((wide, width), (high, height))):
        middle = y[:, k, height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1].mean((1, 2))
        at = (middle - (side - 1) / 2) / ((1 - part) * side / 2)  # -1 to 1: from one border to the other
        assert stats.kstest(at[part < 0.95].numpy(), "uniform", (-1, 2)).pvalue > CHANCE


def test_zoom_by_nothing_is_the_picture_and_its_outside_is_the_mirrored_picture():
    x = pictures(5)
    assert torch.equal(zoom(x, key(5), share=0), x)
    grey = torch.full((20, 1, 16, 16), 100, dtype=torch.uint8)
    assert torch.equal(zoom(grey, key(20), share=0.5, degrees=45), grey)


# --- changing the values ----------------------------------------------------------------------------------------------


def test_noise_is_normal_with_the_std_asked_for():
    x = torch.full((50, 3, 20, 21), 0.5)
    z = (noise(x, key(50), std=0.1) - x).flatten().numpy() / 0.1
    assert stats.kstest(z, "norm").pvalue > CHANCE
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)


def test_noise_is_independent_between_neighbouring_values_examples_and_epochs():
    x = torch.zeros(200, 2, 11, 13)
    z = noise(x, key(200))
    pairs = {
        "values beside": (z[..., 1:], z[..., :-1]),
        "lines": (z[..., 1:, :], z[..., :-1, :]),
        "channels": (z[:, 0], z[:, 1]),
        "examples": (z[1:], z[:-1]),
        "epochs": (z, noise(x, key(200, epoch=EPOCH + 1))),
        "seeds": (z, noise(x, key(200, seed=SEED + 1))),
    }
    for a, b in pairs.values():
        r = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
        assert abs(r) * np.sqrt(a.numel()) < 4


def test_noise_on_bytes_is_the_rounded_and_clipped_noise_on_numbers():
    x = pictures(20)
    exact = x.double() + noise(torch.zeros(x.shape), key(20), std=0.2).double() * 255
    y = noise(x, key(20), std=0.2)
    assert y.dtype == torch.uint8
    assert (y.double() - exact.clamp(0, 255)).abs().max() <= 0.5 + 1e-4
    assert y.min() == 0 and y.max() == 255  # it did clip, and did not wrap around


def test_brightness_contrast_is_the_formula():
    x = pictures(600, dtype=torch.float32)
    y = brightness_contrast(x, key(600), brightness=0.3, contrast=0.4)
    mean = x.double().mean((1, 2, 3))
    lighter = y.double().mean((1, 2, 3)) - mean  # the mean moves by the brightness alone
    factor = y.double().std((1, 2, 3)) / x.double().std((1, 2, 3))
    assert stats.kstest(lighter.numpy(), "uniform", (-0.3, 0.6)).pvalue > CHANCE
    assert stats.kstest(factor.numpy(), "uniform", (0.6, 0.8)).pvalue > CHANCE
    each = [v[:, None, None, None] for v in (mean, lighter, factor)]
    torch.testing.assert_close(y.double(), (x - each[0]) * each[2] + each[0] + each[1], atol=1e-5, rtol=0)


def test_brightness_contrast_on_bytes_is_rounded_and_clipped():
    x = pictures(30)
    y = brightness_contrast(x, key(30), brightness=0.5, contrast=0.5)
    z = brightness_contrast(x.float() / 255, key(30), brightness=0.5, contrast=0.5) * 255
    assert (y.float() - z.clamp(0, 255)).abs().max() <= 0.5 + 1e-3
    assert y.min() == 0 and y.max() == 255


def test_saturation_moves_colours_from_and_to_their_grey():
    x = pictures(400, dtype=torch.float32)
    y = saturation(x, key(400), share=0.5)
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(y.mean(1, keepdim=True), grey, atol=1e-5, rtol=0)
    factor = ((y - grey) * (x - grey)).sum((1, 2, 3)) / (x - grey).square().sum((1, 2, 3))
    assert stats.kstest(factor.numpy(), "uniform", (0.5, 1.0)).pvalue > CHANCE
    torch.testing.assert_close(y, grey + (x - grey) * factor[:, None, None, None], atol=1e-5, rtol=0)
    alone = pictures(4, channels=1)
    assert torch.equal(saturation(alone, key(4), share=0.5), alone)
    assert torch.equal(saturation(grey.expand(-1, 3, -1, -1), key(400)), grey.expand(-1, 3, -1, -1))


def rectangle(before: torch.Tensor, after: torch.Tensor) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of what differs, which must be a full rectangle; None when nothing does."""
    differs = (before != after).any(0)
    if not differs.any():
        return None
    i, j = np.nonzero(differs.numpy())
    top, left, height, width = int(i.min()), int(j.min()), int(np.ptp(i)) + 1, int(np.ptp(j)) + 1
    assert differs[top : top + height, left : left + width].all() and differs.sum() == height * width
    return top, left, height, width


def test_erase_covers_rectangles_of_the_areas_and_shapes_asked_for():
    n, side, share = 1500, 60, 0.2
    x = torch.ones(n, 1, side, side)
    found = [rectangle(a, b) for a, b in zip(x, erase(x, key(n), share=share, p=0.5, fill=0), strict=True)]
    hit = np.array([r for r in found if r is not None])
    assert stats.binomtest(len(hit), n, 0.5).pvalue > CHANCE
    top, left, height, width = hit.T
    assert (top >= 0).all() and (left + width <= side).all()
    # Sides are whole pixels, so the distributions are those asked for within the rounding: 0.5 of at least 5 pixels.
    assert stats.kstest(height * width / side**2, "uniform", (0.02, share - 0.02)).statistic < 0.08
    ratio = np.log(height / width)
    assert stats.kstest(ratio, "uniform", (np.log(0.3), -2 * np.log(0.3))).statistic < 0.08
    assert stats.kstest((top + 0.5) / (side - height + 1), "uniform").pvalue > CHANCE  # anywhere inside
    assert stats.kstest((left + 0.5) / (side - width + 1), "uniform").pvalue > CHANCE


def test_a_single_pixel_is_erased_anywhere():
    x = torch.ones(3000, 1, 5, 6)
    erased = (erase(x, key(3000), share=0.02, p=1, fill=0) == 0).flatten(1)
    assert (erased.sum(1) == 1).all()
    assert stats.chisquare(erased.sum(0).numpy()).pvalue > CHANCE


@pytest.mark.parametrize("dtype", TYPES)
def test_erase_keeps_the_rest_and_fills_with_what_was_asked_for(dtype):
    x = pictures(60, dtype=dtype)
    for fill in ("mean", "noise", 0):
        y = erase(x, key(60), share=0.3, p=1, fill=fill)
        for before, after in zip(x, y, strict=True):
            assert after.dtype == dtype
            assert rectangle(before, after) or fill == "mean"  # a mean may be the value it covers
            covered = (before != after).any(0)
            for channel in range(3):
                values = after[channel][covered].double()
                if fill == "mean":
                    mean = before[channel].double().mean()
                    bound = {torch.uint8: 0.5, torch.float32: 1e-6, torch.float16: 1e-3}[dtype]
                    assert (values - mean).abs().max() <= bound + 1e-6
                elif fill == "noise":
                    assert before.min() <= values.min() and values.max() <= before.max()
                else:
                    assert (values == 0).all()


def test_erased_noise_is_uniform_between_the_pictures_least_and_largest():
    x = torch.linspace(-2, 3, 900).view(1, 1, 30, 30).expand(40, 1, 30, 30)
    y = erase(x, key(40), share=1, p=1, fill="noise")
    values = y[y != x].numpy()
    assert values.size > 5000
    assert stats.kstest(values, "uniform", (-2, 5)).statistic < 0.03  # 256 levels


def test_a_rectangle_that_does_not_fit_is_cut_to_the_picture():
    x = torch.ones(300, 1, 4, 40)
    found = [rectangle(a, b) for a, b in zip(x, erase(x, key(300), share=1, p=1, fill=0), strict=True)]
    assert max(r[2] for r in found if r) == 4
    assert None not in found


# --- what holds for all -----------------------------------------------------------------------------------------------

CHANGES = {
    "shift": lambda x, k: shift(x, k, pixels=2),
    "shift by a share": lambda x, k: shift(x, k, share=0.2, fill=1),
    "crop": lambda x, k: crop(x, k, padding=3),
    "crop, constant": lambda x, k: crop(x, k, padding=3, mode="constant"),
    "flip": flip,
    "flip, vertical": lambda x, k: flip(x, k, vertical=True),
    "affine": lambda x, k: affine(x, k, shear=5, fill=1),
    "rotate_scale": rotate_scale,
    "noise": noise,
    "brightness_contrast": brightness_contrast,
    "erase": lambda x, k: erase(x, k, p=0.8),
    "erase, noise": lambda x, k: erase(x, k, p=0.8, fill="noise"),
    "all": lambda x, k: make(list(augment._SETTINGS))((x,), k)[0],
}
every_change = pytest.mark.parametrize("name", CHANGES)


@every_change
@pytest.mark.parametrize("dtype", TYPES)
def test_shape_and_type_stay_and_the_input_is_not_written_to(name, dtype):
    x = pictures(32, dtype=dtype)
    before = x.clone()
    y = CHANGES[name](x, key(32))
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.equal(x, before)
    assert not torch.equal(y, x)


WHOLE = {
    (name, dtype): change(pictures(64, dtype=dtype), key(64)) for name, change in CHANGES.items() for dtype in TYPES[:2]
}


@given(
    case=st.sampled_from(sorted(WHOLE, key=str)),
    indices=st.lists(st.integers(0, 63), min_size=1, max_size=40),
)
@settings(max_examples=250, deadline=None)
def test_an_example_is_changed_alike_in_any_batch(case, indices):
    """Alone or not, whatever the order, even twice: the same bits."""
    name, dtype = case
    y = CHANGES[name](pictures(64, dtype=dtype)[indices], Key(SEED, EPOCH, torch.tensor(indices)))
    assert torch.equal(y, WHOLE[case][indices])


@pytest.mark.parametrize("name", ["brightness_contrast", "erase", "all"])
def test_the_number_of_threads_does_not_matter(name):
    x = torch.rand(3, 1, 300, 300, generator=torch.Generator().manual_seed(0))  # beyond torch's grain of 32,768
    one = CHANGES[name](x, key(3))
    torch.set_num_threads(2)
    assert torch.equal(CHANGES[name](x, key(3)), one)
    assert torch.equal(CHANGES[name](x[1:2], Key(SEED, EPOCH, torch.tensor([1]))), one[1:2])


@every_change
def test_seed_and_epoch_matter(name):
    x = pictures(32)
    results = [CHANGES[name](x, key(32, seed, epoch)) for seed in (0, 1) for epoch in (0, 3)]
    for i, a in enumerate(results):
        assert not any(torch.equal(a, b) for b in results[i + 1 :])


@every_change
def test_the_callers_generator_is_left_alone(name):
    before = torch.get_rng_state()
    CHANGES[name](pictures(4), key(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, k: shift(x, k, pixels=0),
        lambda x, k: shift(x, k, share=0),
        lambda x, k: crop(x, k, padding=0),
        lambda x, k: flip(x, k, p=0),
        lambda x, k: rotate_scale(x, k, degrees=0, scale=0),
        lambda x, k: affine(x, k, degrees=0, scale=0, pixels=0),
        lambda x, k: noise(x, k, std=0),
        lambda x, k: brightness_contrast(x, k, brightness=0, contrast=0),
        lambda x, k: erase(x, k, share=0),
        lambda x, k: erase(x, k, p=0),
    ],
)
def test_nothing_asked_for_is_nothing_done(change):
    x = pictures(4)
    assert change(x, key(4)) is x


@every_change
def test_an_empty_batch_stays_empty(name):
    assert CHANGES[name](pictures(0), key(0)).shape == (0, 3, 9, 12)


@every_change
@pytest.mark.parametrize("x", [torch.zeros(4, 9), torch.zeros(4, 9, 9), torch.zeros(4, 1, 1, 9, 9), [[1]]], ids=str)
def test_what_is_no_picture_is_refused(name, x):
    with pytest.raises(UsageError, match=r"\(B, C, H, W\)"):
        CHANGES[name](x, key(4))


@every_change
def test_a_type_that_holds_no_pictures_is_refused(name):
    with pytest.raises(UsageError, match=r"torch\.int64"):
        CHANGES[name](pictures(4).long(), key(4))


@every_change
def test_a_key_of_other_examples_is_refused(name):
    with pytest.raises(UsageError, match="4 pictures and the key of 5 examples"):
        CHANGES[name](pictures(4), key(5))


@pytest.mark.parametrize(
    "change, side",
    [
        (lambda x, k: shift(x, k, pixels=4), 4),
        (lambda x, k: affine(x, k, pixels=4), 4),
        (lambda x, k: crop(x, k, padding=4), 4),
        (rotate_scale, 1),
    ],
)
def test_pictures_too_small_are_refused_and_just_large_enough_are_not(change, side):
    with pytest.raises(UsageError, match="too small"):
        change(pictures(2, height=side, width=20), key(2))
    with pytest.raises(UsageError, match="too small"):
        change(pictures(2, height=20, width=side), key(2))
    change(pictures(2, height=side + 1, width=side + 1), key(2))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda x, k: shift(x, k, pixels=-1), "whole pixels"),
        (lambda x, k: shift(x, k, pixels=1.5), "whole pixels"),  # type: ignore[arg-type]
        (lambda x, k: shift(x, k, pixels=0.5), "say share="),  # type: ignore[arg-type]
        (lambda x, k: shift(x, k, share=1.0), "below 1"),
        (lambda x, k: shift(x, k, pixels=2, share=0.1), "one of them"),
        (lambda x, k: shift(x, k, fill=256), "0 to 255"),
        (lambda x, k: shift(x, k, fill=0.5), "0 to 255"),
        (lambda x, k: crop(x, k, padding=2.5), "whole pixels"),  # type: ignore[arg-type]
        (lambda x, k: crop(x, k, mode="reflct"), "did you mean 'reflect'"),
        (lambda x, k: flip(x, k, p=1.1), "probability"),
        (lambda x, k: rotate_scale(x, k, degrees=181, scale=1), "degrees, from 0 to 180; scale=1 is not"),
        (lambda x, k: affine(x, k, shear=90), "degrees, from 0 to 60"),
        (lambda x, k: noise(x, k, std=12), "units of the range"),
        (lambda x, k: brightness_contrast(x, k, brightness=float("nan")), "brightness=nan"),
        (lambda x, k: erase(x, k, share=2), "share of the picture"),
        (lambda x, k: erase(x, k, p=-0.1), "probability"),
        (lambda x, k: erase(x, k, fill="nois"), "did you mean 'noise'"),
        (lambda x, k: erase(x, k, fill=-1), "0 to 255"),
    ],
)
def test_wrong_amounts_are_refused(change, says):
    with pytest.raises(UsageError, match=says):
        change(pictures(2), key(2))


# --- all together -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, canonical",
    [
        ("none", "none"),
        ("", "none"),
        ([], "none"),
        (["none"], "none"),
        ("noise=0", "none"),
        ("flip", "flip=0.5"),
        (" erase = 0.10 , shift=2.0,", "shift=2,erase=0.1"),
        (["flip=1", "shift=0.25"], "shift=0.25,flip=1"),
        (["flip", "rotate=1e1,scale=0.1"], "rotate=10,scale=0.1,flip=0.5"),
        ("shift=2,flip,rotate=10,scale=0.1,erase=0.1,noise=0.05",
         "shift=2,rotate=10,scale=0.1,flip=0.5,noise=0.05,erase=0.1"),
    ],
)  # fmt: skip
def test_a_request_has_one_form(spec, canonical):
    assert make(spec).spec == canonical
    assert make(canonical) == make(spec)


@given(
    st.dictionaries(
        st.sampled_from(sorted(augment._SETTINGS)),
        st.one_of(st.floats(1e-9, 0.9), st.integers(1, 1).map(float)),
        max_size=6,
    )
)
@settings(deadline=None)
def test_the_form_says_every_amount(wanted):
    wanted = {name: 1.0 if name == "crop" else min(v, augment._SETTINGS[name].most) for name, v in wanted.items()}
    made = make([f"{name}={value!r}" for name, value in wanted.items()])
    assert made.amounts == wanted
    assert make(made.spec) == made


def test_none_is_the_identity():
    inputs = (torch.zeros(3, 5), torch.zeros(3))  # not even pictures
    assert make("none")(inputs, key(3)) is inputs


def test_each_name_does_what_its_function_does():
    x, k = pictures(30), key(30)
    expected = {
        "shift=3": shift(x, k, pixels=3),
        "shift=0.2": shift(x, k, share=0.2),
        "crop=3": crop(x, k, padding=3),
        "flip=0.4": flip(x, k, p=0.4),
        "flip_vertical=0.4": flip(x, k, p=0.4, vertical=True),
        "rotate=20": rotate_scale(x, k, degrees=20, scale=0),
        "scale=0.3": rotate_scale(x, k, degrees=0, scale=0.3),
        "shear=9": rotate_scale(x, k, degrees=0, scale=0, shear=9),
        "rotate=20,shift=2": affine(x, k, degrees=20, scale=0, pixels=2),
        "rotate=20,scale=0.2,shear=9,shift=0.1": affine(x, k, degrees=20, scale=0.2, shear=9, share=0.1),
        "zoom=0.6": zoom(x, k, share=0.6),
        "zoom=0.6,rotate=20,scale=0.2,shear=9": zoom(x, k, share=0.6, degrees=20, scale=0.2, shear=9),
        "zoom=0.6,shift=3": shift(zoom(x, k, share=0.6), k, pixels=3),
        "saturation=0.4": saturation(x, k, share=0.4),
        "brightness=0.3": brightness_contrast(x, k, brightness=0.3, contrast=0),
        "contrast=0.3": brightness_contrast(x, k, brightness=0, contrast=0.3),
        "noise=0.1": noise(x, k, std=0.1),
        "erase=0.3": erase(x, k, share=0.3),
        "noise,flip=1": noise(x.flip(3), k),  # flip comes before noise, however it was written
    }
    for spec, y in expected.items():
        assert torch.equal(make(spec)((x,), k)[0], y), spec
    assert set(augment._SETTINGS) == {item.split("=")[0] for spec in expected for item in spec.split(",")}


def test_only_the_first_input_changes():
    x, other = pictures(6), torch.arange(6)
    y, same = make("flip=1")((x, other), key(6))
    assert torch.equal(y, x.flip(3)) and same is other


def test_one_asked_for_does_not_bring_the_others_demands():
    """Noise on a single line of pixels, though a rotation could not be had there."""
    make("noise,erase,flip")((pictures(2, height=1),), key(2))


@pytest.mark.parametrize(
    "spec, says",
    [
        ("shfit=2", "did you mean 'shift'"),
        ("cutout", "known are: brightness, contrast, crop"),
        ("shift=two", "'shift=two' is not a number: expected whole pixels"),
        ("shift=", "not a number"),
        ("shift=1.5", "shift=1.5 is not whole pixels"),
        ("shift=inf", "shift=inf is not whole pixels"),
        ("crop=0.5", "whole pixels"),
        ("rotate=200", "from 0 to 180"),
        ("noise=-1", "noise=-1"),
        ("noise=nan", "noise=nan"),
        ("flip,flip=1", "'flip' is given twice"),
        ("none,flip", "'none' stands alone"),
        ([2], "a list of such texts"),
    ],
)
def test_a_request_with_a_mistake_is_refused(spec, says):
    with pytest.raises(UsageError, match=says):
        make(spec)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UsageError) as error:
        make("shfit=2,rotate=ten,noise=7,flip")
    assert all(part in str(error.value) for part in ("'shift'", "rotate=ten", "noise=7"))


def test_the_augmentation_can_be_compared_and_sent_to_another_process():
    import pickle

    made = make("shift=2,flip")
    assert isinstance(made, Augment)
    assert pickle.loads(pickle.dumps(made)) == made != make("shift=3,flip")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("spec", ["shift=2", "crop=3", "flip", "noise", "erase"])
def test_a_gpu_gives_the_same_bytes(spec):
    x = pictures(32)
    assert torch.equal(make(spec)((x.cuda(),), key(32))[0].cpu(), make(spec)((x,), key(32))[0])
