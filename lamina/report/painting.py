"""A figure, drawn once, in three colourings: on white for a file, and clear for a light and for a dark page.

In: a matplotlib `Figure` in the colours of `figures`. Out: `Painted`: three PNG files and their size on a page. Called by
the report's writer.

Most of the time of a drawing goes into layout and text, before any point is set; so every stroke goes to two canvases at
once, to the second one in the colours of the dark page, and the picture on white is the clear one laid on white.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamina.imports import loading
from lamina.report.figures import DARK

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

DPI = 144  # pixels an inch: sharp on a fine screen, where a page has 96
_STROKES = ("draw_path", "draw_markers", "draw_path_collection", "draw_quad_mesh", "draw_gouraud_triangles",
            "draw_image", "draw_text", "draw_tex")  # fmt: skip


@dataclass(frozen=True)
class Painted:
    """A picture as PNG files."""

    white: bytes
    light: bytes  # clear, for a light page
    dark: bytes
    width: int  # CSS pixels
    height: int


def paint(figure: Figure) -> Painted:
    """Draw a figure. It is afterwards as it was, but for its layout, which is made once."""
    with loading():
        from matplotlib.backends.backend_agg import RendererAgg
        from PIL.Image import fromarray

    wide, high = figure.get_size_inches()
    patches = [figure.patch, *(axis.patch for axis in figure.axes)]
    shown, dpi = [patch.get_visible() for patch in patches], figure.dpi
    try:
        figure.dpi = DPI
        for patch in patches:
            patch.set_visible(False)
        light, dark = (RendererAgg(int(wide * DPI), int(high * DPI), DPI) for _ in range(2))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script without a font is shown as boxes
            figure.draw(_Twofold(light, dark))  # type: ignore[arg-type]
    finally:
        figure.dpi = dpi
        for patch, visible in zip(patches, shown, strict=True):
            patch.set_visible(visible)
    one, other = (fromarray(np.asarray(canvas.buffer_rgba())) for canvas in (light, dark))
    return Painted(_png(_on_white(one)), _png(one), _png(other), round(96 * wide), round(96 * high))


class _Twofold:
    """A renderer of matplotlib that draws every stroke on two canvases, on the second in the colours of the dark page."""

    def __init__(self, light: Any, dark: Any):
        self._light = light
        for name in _STROKES:
            setattr(self, name, self._both(getattr(light, name), getattr(dark, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._light, name)

    @staticmethod
    def _both(light: Callable[..., None], dark: Callable[..., None]) -> Callable[..., None]:
        def draw(context: Any, *rest: Any, **more: Any) -> None:
            light(context, *rest, **more)
            other = type(context)()
            other.copy_properties(context)
            other.set_foreground(_darkened(context.get_rgb()), isRGBA=True)
            if context.get_hatch_color() is not None:
                other.set_hatch_color(_darkened(context.get_hatch_color()))
            dark(other, *map(_darkened, rest), **{name: _darkened(value) for name, value in more.items()})

        return draw


def _bytes(colours: Any) -> np.ndarray:
    """Colours (..., 3 or 4), from 0 to 1, opacity left out -> (..., 3) from 0 to 255."""
    return np.round(255 * np.asarray(colours, float)[..., :3]).astype(int)


_PAIRS = [tuple(np.array([int(name[k : k + 2], 16) for k in (1, 3, 5)]) for name in pair) for pair in DARK.items()]


def _darkened(value: Any) -> Any:
    """A colour, or colours (N, 4), where they are of the light page, as on the dark page; anything else as it is."""
    one = isinstance(value, tuple) and len(value) in (3, 4) and all(isinstance(part, (int, float)) for part in value)
    many = isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 4 and value.dtype.kind == "f"
    if not (one or many) or (many and not len(value)):
        return value
    found, colours = np.array(value, float), _bytes(value)
    for light, dark in _PAIRS:
        found[(colours == light).all(-1), :3] = dark / 255
    return tuple(found.tolist()) if one else found


def _on_white(picture: Image) -> Image:
    from PIL.Image import new

    white = new("RGB", picture.size, "white")
    white.paste(picture, mask=picture)
    return white


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png", dpi=(DPI, DPI), compress_level=3)  # half the time of 6, and a tenth larger
    return buffer.getvalue()
