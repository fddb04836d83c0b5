"""A figure as PNG: drawn once, on white for the file and a light page, and recoloured for a dark one.

In: a matplotlib `Figure` in the colours of `figures`. Out: `Painted`: two PNG files and their size on a page. Called by the
report's writer.

Every point of a drawing is a mixture of the few colours of `figures`, and a linear map of colours takes a mixture to the
mixture of their images. So one matrix, that which comes nearest to all the pairs of light and dark colours, recolours the
whole picture at once, with its smooth edges. The pictures of examples are put back as they were.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamina.imports import loading
from lamina.report.figures import DARK, DARK_PAPER, DPI, PAPER, PICTURE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


@dataclass(frozen=True)
class Painted:
    """A picture as PNG files."""

    light: bytes
    dark: bytes
    width: int  # CSS pixels
    height: int


def paint(figure: Figure) -> Painted:
    """Draw a figure, with margins that fit."""
    with loading():
        from PIL.Image import fromarray

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script without a font is shown as boxes
        _fit(figure)
        figure.canvas.draw()
    light = fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]
    dark = light.convert("RGB", DARKENING)
    for image in (image for axis in figure.axes for image in axis.images if image.get_gid() == PICTURE):
        left, low, right, high = image.get_window_extent().extents
        box = round(left), round(light.height - high), round(right), round(light.height - low)
        dark.paste(light.crop(box), box)
    wide, high = figure.get_size_inches()
    return Painted(_png(light), _png(dark), round(96 * wide), round(96 * high))


def _fit(figure: Figure) -> None:
    """The room for ticks, labels and titles, measured once; matplotlib's own layouts take as long as the drawing."""
    grid = figure.axes[0].get_gridspec() if figure.axes else None
    if grid is None:  # axes that somebody put where they are
        return
    rooms = []  # left, bottom, right and top of each of the axes, pixels
    for axis in figure.axes:
        everything = axis.get_tightbbox(figure.canvas.get_renderer(), for_layout_only=True)  # type: ignore[attr-defined]
        assert everything is not None
        rooms.append(np.subtract(axis.bbox.extents, everything.extents) * [1, 1, -1, -1])
    room = np.maximum(rooms, 0) + 0.04 * DPI
    left, bottom, right, top = room.max(0)
    outer, across, down = room[:: grid.ncols, 0].max(), left + right, bottom + top  # the gaps between are all alike
    wide, high = figure.bbox.size
    inner_wide, inner_high = wide - outer - right - (grid.ncols - 1) * across, high - grid.nrows * down
    figure.subplots_adjust(
        outer / wide, bottom / high, 1 - right / wide, 1 - top / high,
        wspace=grid.ncols * across / inner_wide, hspace=grid.nrows * down / inner_high,
    )  # fmt: skip


def _darkening() -> tuple[float, ...]:
    """(3, 4) numbers, row by row: red, green and blue of the dark page out of red, green, blue and one.

    Paper becomes paper exactly, so that no edge is seen; of the other pairs, least squares.
    """
    light, dark = (np.array([_bytes(colour) for colour in colours]) for colours in (DARK, DARK.values()))
    paper, dark_paper = _bytes(PAPER), _bytes(DARK_PAPER)
    matrix = np.linalg.lstsq(light - paper, dark - dark_paper, rcond=None)[0].T
    return tuple(np.column_stack([matrix, dark_paper - matrix @ paper]).ravel())


def _bytes(colour: str) -> np.ndarray:
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], float)


DARKENING = _darkening()


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png", dpi=(DPI, DPI), compress_level=3)  # half the time of 6, and a tenth larger
    return buffer.getvalue()
