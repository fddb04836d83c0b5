"""Pictures of a run, one function a picture.

In: plain data (history lines, counts, arrays). Out: a matplotlib `Figure` on white that belongs to nobody: no pyplot, no
global settings; `painting` turns it into files. Called by the report.

The colours are of Okabe and Ito ("Color universal design", 2008), told apart by the colour-blind; nothing is said by
colour alone. Names of classes are shown as they are, never as mathematics, shortened where they are long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lamina.errors import printable
from lamina.imports import loading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1b2733", "#5f6b77", "#dde3e8"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
PAPER, DARK_PAPER = "#ffffff", "#151b21"  # the cards of the page
DARK = {INK: "#e6ebf0", MUTED: "#9aa6b2", GRID: "#333d47", BLUE: "#56b4e9", ORANGE: "#ff8b45", GREEN: "#2fc79a"}
SMALL, NORMAL = 8.0, 9.0  # points
WIDTH = 9.2  # inches: as wide as the page, where an inch is 96 pixels
DPI = 144  # pixels an inch: sharp on a fine screen, where a page has 96
PICTURE = "picture"  # the gid of an example's own picture, whose colours are no words of ours

ACROSS = 8  # pictures in a row of a gallery
CELLS_WRITTEN = 20  # classes up to which the confusion matrix has its counts written in
NAMES_SHOWN = 40  # labels along an axis; of more, every k-th
POINTS_MOST = 5000  # beyond it a scatter is a cloud: counts in hexagons


# ---------------------------------------------------------------------------------------------------- learning


def curves(history: Sequence[dict], *, score: str | None = None, best: float | None = None) -> Figure:
    """Loss, score and learning rate over the epochs, of training and validation.

    `history`: the lines of history.jsonl, with "epoch", "train/loss", "valid/loss", "valid/<score>", "learning_rate";
    what a line lacks, or has not finite, is left out. `score`: default the first found. `best`: the epoch whose weights
    were kept; default that of the least validation loss.
    """
    parts = ("train", "valid")
    found = dict.fromkeys(
        key.partition("/")[2] for line in history for key in line if key.startswith(("train/", "valid/"))
    )
    names = ["loss", score or next((name for name in found if name != "loss"), "")]
    panels = [name for name in names if any(len(_line(history, f"{part}/{name}")[0]) for part in parts)]
    rate = _line(history, "learning_rate")
    mark = f"kept: epoch {best:g}" if best is not None else ""
    epochs, losses = _line(history, "valid/loss")
    if best is None and len(epochs):
        best = float(epochs[losses.argmin()])
        mark = f"least loss: epoch {best:g}"

    widths = [3.0] * len(panels) + [2.0] * bool(len(rate[0]))
    figure = _figure(min(WIDTH, 1 + 1.1 * sum(widths)), 2.9)
    axes = list(figure.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]) if widths else []
    for axis, name in zip(axes, panels, strict=False):
        lines = {part: _line(history, f"{part}/{name}") for part in parts}
        for part, colour, style in zip(parts, (ORANGE, BLUE), ("--", "-"), strict=True):
            x, y = lines[part]
            if len(x):
                axis.plot(x, y, style, color=colour, lw=1.8, label=part, marker="o" if len(x) < 30 else "", ms=3)
        x, y = lines["valid"]
        if best is not None and best in x:
            axis.plot(
                best,
                y[x == best][0],
                "o",
                ms=9,
                mfc="none",
                mec=INK,
                mew=1.3,
                ls="",
                clip_on=False,
                label=mark,
            )
        seen = np.concatenate([y for _, y in lines.values()])
        if name == "loss" and seen.min() > 0 and seen.max() > 50 * seen.min():
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
        _style(axis, title(name), "epoch")
        axis.legend(frameon=False, fontsize=SMALL, labelcolor=MUTED, handlelength=2.2, borderpad=0)
    if len(rate[0]):
        axes[-1].plot(*rate, color=GREEN, lw=1.8, marker="o" if len(rate[0]) < 30 else "", ms=3)
        axes[-1].set_ylim(0, 1.08 * rate[1].max() or 1)
        _style(axes[-1], "Learning rate", "epoch")
    for axis in axes:
        low, high = axis.dataLim.intervalx
        axis.set_xlim(low - 0.5, high + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def _line(history: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, values), those that are finite."""
    points = [(line.get("epoch", k), line.get(key)) for k, line in enumerate(history, 1)]
    known = [(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)]
    x, y = np.array(known, float).reshape(-1, 2).T
    return x, y


# ---------------------------------------------------------------------------------------------------- classes


def confusion(counts: np.ndarray, labels: Sequence) -> Figure:
    """Truth down, prediction across, counts (K, K). Right answers blue, mistakes orange; strength: the row's share."""
    counts = np.asarray(counts)
    size = len(counts)
    shares = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))  # the root, so that few mistakes are seen
    shares = np.where(counts > 0, 0.15 + 0.85 * shares, 0)
    image = np.zeros((size, size, 4))
    image[..., :3], image[..., 3] = _rgb(ORANGE), shares
    image[np.arange(size), np.arange(size), :3] = _rgb(BLUE)

    side = float(np.clip(0.46 * size, 2.2, 7.0))  # inches of the matrix alone
    names = [_short(label, 18) for label in labels]
    every = math.ceil(size / NAMES_SHOWN)
    longest = 0.078 * max(map(len, names), default=0)
    upright = longest > side / max(size, 1) * every
    figure = _figure(0.5 + longest + side, 0.5 + (longest if upright else 0.1) + side)
    axis = figure.subplots()
    axis.imshow(image, interpolation="nearest", aspect="equal")
    if size <= NAMES_SHOWN:
        edges = np.arange(size + 1) - 0.5
        axis.hlines(edges, edges[0], edges[-1], color=GRID, lw=0.6, clip_on=False)
        axis.vlines(edges, edges[0], edges[-1], color=GRID, lw=0.6, clip_on=False)
    places = np.arange(0, size, every)
    axis.set_xticks(places, [names[k] for k in places], rotation=90 if upright else 0, parse_math=False)
    axis.set_yticks(places, [names[k] for k in places], parse_math=False)
    if size <= CELLS_WRITTEN:
        for i, j in np.argwhere(counts):
            strong = shares[i, j] > 0.6
            digits = len(str(counts[i, j]))
            points = min(NORMAL + 1, 1.5 * side / size * 72 / (digits + 0.5))
            axis.text(
                j, i, f"{counts[i, j]}", ha="center", va="center", fontsize=points, color="white" if strong else INK
            )
    _style(axis, "", "predicted", grid=False)
    axis.set_ylabel("truth", fontsize=NORMAL, color=MUTED)
    axis.tick_params(which="both", length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


def reliability(calibration: dict) -> Figure:
    """How often the net is right when it is so sure: points of `evaluate.calibration` beside the honest diagonal."""
    figure = _figure(WIDTH / 2, 3.5)
    axis = figure.subplots()
    points = calibration.get("bins", [])
    x, y, low, high = (np.array([point[key] for point in points]) for key in ("confidence", "accuracy", "low", "high"))
    start = max(0.0, math.floor(10 * min([0.9, *x, *low])) / 10)
    axis.plot([0, 1], [0, 1], "--", color=MUTED, lw=1.2, label="honest")
    axis.errorbar(x, y, [y - low, high - y], fmt="o", color=BLUE, ms=5, lw=1.3, label="this net, 95 % intervals")
    axis.set_xlim(start - 0.02, 1.02)
    axis.set_ylim(start - 0.02, 1.02)
    _style(axis, "Confidence and truth", "confidence", "share that was right")
    axis.legend(frameon=False, fontsize=SMALL, labelcolor=MUTED, loc="upper left", borderpad=0)
    return figure


def histogram(confidence: np.ndarray, right: np.ndarray) -> Figure:
    """How sure the net is (n,), in [0, 1], where it was right (n,) beside where it was wrong: shares of each. Where it gave
    NaN it says nothing."""
    confidence, right = np.asarray(confidence, float), np.asarray(right, bool)
    said = ~np.isnan(confidence)
    confidence, right = confidence[said], right[said]
    figure = _figure(WIDTH / 2, 3.5)
    axis = figure.subplots()
    edges = np.linspace(math.floor(10 * confidence.min(initial=0.9)) / 10, 1, 16)
    for part, name, colour, hatch in ((right, "right", BLUE, ""), (~right, "wrong", ORANGE, "///")):
        shares = np.histogram(confidence[part], edges)[0] / max(part.sum(), 1)
        label = f"where it was {name} ({part.sum():,})"
        axis.stairs(shares, edges, fill=True, facecolor=colour, alpha=0.2)
        axis.stairs(shares, edges, color=colour, lw=1.8, hatch=hatch, label=label)
    axis.set_ylim(0, 1.02)
    _style(axis, "How sure it is", "confidence", "share")
    axis.legend(frameon=False, fontsize=SMALL, labelcolor=MUTED, loc="upper left", borderpad=0)
    return figure


# ---------------------------------------------------------------------------------------------------- numbers


def scatter(truth: np.ndarray, prediction: np.ndarray, names: Sequence[str] | None = None) -> Figure:
    """Predicted against true, and what is left over: (n,) or (n, D), a row of pictures each of the first four."""
    truth, prediction = np.asarray(truth, float), np.asarray(prediction, float)
    if truth.ndim == 1:
        truth, prediction = truth[:, None], prediction.reshape(len(truth), 1)
    size = min(truth.shape[1], 4)
    figure = _figure(WIDTH, 3.5 * size)
    for row, (left, right) in enumerate(figure.subplots(size, 2, squeeze=False)):
        x, y = truth[:, row], prediction[:, row]
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        name = f"{_short(names[row], 26)}: " if names else ""
        _cloud(left, x, y)
        ends = [
            min(x.min(initial=math.inf), y.min(initial=math.inf)),
            max(x.max(initial=-math.inf), y.max(initial=-math.inf)),
        ]
        if len(x):
            left.plot(ends, ends, "--", color=MUTED, lw=1.2)
        _style(left, f"{name}predicted against true" if name else "Predicted against true", "true", "predicted")
        _cloud(right, y, y - x)
        right.axhline(0, ls="--", color=MUTED, lw=1.2)
        _style(right, f"{name}residuals" if name else "Residuals", "predicted", "predicted − true")
    return figure


def _cloud(axis: Axes, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) <= POINTS_MOST:
        axis.plot(x, y, "o", ms=4 if len(x) < 1000 else 2.5, color=BLUE, alpha=0.55 if len(x) < 1000 else 0.35, mew=0)
    else:
        from matplotlib.colors import LinearSegmentedColormap

        shades = LinearSegmentedColormap.from_list("blue", [(*_rgb(BLUE), 0.12), (*_rgb(BLUE), 1.0)])
        axis.hexbin(x, y, gridsize=48, bins="log", cmap=shades, mincnt=1, linewidths=0.1)


# ---------------------------------------------------------------------------------------------------- examples


def mistakes(pictures: np.ndarray | None, rows: Sequence[dict], *, most: int = 24) -> Figure:
    """The mistakes the net was surest of. `rows`: "truth", "prediction", "confidence", "id" each; `pictures`
    (n, C, H, W) are theirs, or None: then bars of confidence."""
    order = [k for k, row in enumerate(rows) if row["truth"] != row["prediction"]]
    order = sorted(order, key=lambda k: -(rows[k].get("confidence") or 0))[:most]
    if pictures is not None:
        captions = [[(f"{_short(rows[k]['prediction'], 11)}{_sure(rows[k])}", ORANGE)] for k in order]
        for caption, k in zip(captions, order, strict=True):
            caption.append((f"is {_short(rows[k]['truth'], 15)}", INK))
            caption.append((_called(rows[k]["id"], 17) if "id" in rows[k] else "", MUTED))
        return _gallery([pictures[k] for k in order], captions)
    figure = _figure(WIDTH, 0.75 + 0.26 * max(1, len(order)))
    axis = figure.subplots()
    sure = [rows[k].get("confidence") or 0.0 for k in order]
    axis.barh(range(len(order)), sure, color=ORANGE, alpha=0.35, height=0.75)
    for place, k in enumerate(order):
        words = f"{_short(rows[k]['prediction'], 40)}{_sure(rows[k])}, is {_short(rows[k]['truth'], 40)}"
        axis.text(0.01, place, words, va="center", fontsize=NORMAL, color=INK, parse_math=False)
    axis.set_yticks(range(len(order)), [_called(rows[k].get("id", k), 24) for k in order])
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    _style(axis, "", "confidence", grid=False)
    return figure


def samples(pictures: np.ndarray, truths: Sequence, predictions: Sequence | None = None, *, most: int = 24) -> Figure:
    """Examples as they are, (n, C, H, W), with their truth and what the net said."""
    captions = []
    for k in range(min(most, len(pictures))):
        caption = [(_short(truths[k], 15), INK)]
        if predictions is not None:
            right = truths[k] == predictions[k]
            caption.append((f"{'✓' if right else '✗'} {_short(predictions[k], 15)}", GREEN if right else ORANGE))
        captions.append(caption)
    return _gallery(list(pictures[:most]), captions)


def clusters(pictures: np.ndarray, shown: Sequence[tuple[str, int]]) -> Figure:
    """The most typical examples of each cluster, a row each: pictures (n, C, H, W), and whose they are by name and number."""
    order: list[tuple[np.ndarray | None, list[tuple[str, str]]]] = []
    for name in dict.fromkeys(name for name, _ in shown):
        own = [(pictures[k], row) for k, (other, row) in enumerate(shown) if other == name][:ACROSS]
        order += [(picture, [(f"cluster {name}" if not k else "", INK), (f"no. {row}", MUTED)])
                  for k, (picture, row) in enumerate(own)]  # fmt: skip
        order += [(None, [])] * (ACROSS - len(own))
    return _gallery([picture for picture, _ in order], [caption for _, caption in order])


def stability(tried: Sequence[dict], chosen: int) -> Figure:
    """How stable each number of clusters is: entries of "clusters" and "stability", and the number that was taken."""
    figure = _figure(WIDTH / 2, 3.0)
    axis = figure.subplots()
    x, y = ([entry[key] for entry in tried] for key in ("clusters", "stability"))
    axis.plot(x, y, "o-", color=BLUE, lw=1.8, ms=4)
    axis.plot([chosen], [y[x.index(chosen)]], "o", color=ORANGE, ms=9, mfc="none", mew=2, label=f"taken: {chosen}")
    axis.set_ylim(min(0, *y), 1.04)
    axis.locator_params(axis="x", integer=True)
    _style(axis, "How many clusters", "clusters", "adjusted Rand index")
    axis.legend(frameon=False, fontsize=SMALL, labelcolor=MUTED, loc="lower left", borderpad=0)
    return figure


def _sure(row: dict) -> str:
    return "" if row.get("confidence") is None else f" · {math.floor(100 * row['confidence'])} %"


def _gallery(pictures: Sequence[np.ndarray | None], captions: Sequence[Sequence[tuple[str, str]]]) -> Figure:
    """Pictures (C, H, W) in rows of eight, each over its caption: lines of (words, colour). None: a place is left empty."""
    across = ACROSS
    down = max(1, math.ceil(len(pictures) / across))
    lines = max((len(caption) for caption in captions), default=0)
    cell, side, line = WIDTH / across, 0.92 * WIDTH / across, 0.155  # inches
    height = side + lines * line + 0.12
    figure = _figure(WIDTH, height * down)
    axis = figure.add_axes((0, 0, 1, 1))  # one, in inches: an axis a picture would take most of the time
    axis.set_axis_off()
    for k, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        if picture is None:
            continue
        left, top = k % across * cell, height * (down - k // across)
        shown = _shown(picture)
        high, wide = (side * edge / max(shown.shape[:2]) for edge in shown.shape[:2])
        across_from, up_to = left + (side - wide) / 2, top - (side - high) / 2
        how = "nearest" if max(shown.shape[:2]) <= 64 else "antialiased"
        place = (across_from, across_from + wide, up_to - high, up_to)
        axis.imshow(shown, "gray", interpolation=how, extent=place, gid=PICTURE)
        for number, (words, colour) in enumerate(caption):
            style: dict[str, Any] = {"fontsize": SMALL, "fontweight": "normal" if number else "bold", "color": colour}
            below = top - side - 0.04 - number * line
            axis.text(left + side / 2, below, words, ha="center", va="top", parse_math=False, **style)
    axis.set(xlim=(0, WIDTH), ylim=(0, height * down), aspect="auto")
    return figure


def _shown(picture: np.ndarray) -> np.ndarray:
    """(C, H, W) of any numbers -> (H, W) or (H, W, 3) that imshow takes. Of other than 3 channels, the mean."""
    picture = np.asarray(picture)
    picture = picture[None] if picture.ndim == 2 else picture
    picture = picture[:3] if len(picture) == 4 else picture  # transparency is not shown
    flat = np.moveaxis(picture, 0, -1) if len(picture) == 3 else picture.mean(0)
    if flat.ndim == 3 and picture.dtype != np.uint8:
        low, high = flat.min(), flat.max()
        flat = np.clip(flat, 0, 1) if low >= 0 and high <= 1 else (flat - low) / max(high - low, 1e-12)
    return flat


# ---------------------------------------------------------------------------------------------------- all of them


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))  # type: ignore[return-value]


def _figure(width: float, height: float) -> Figure:
    """An empty figure, inches. Its axes lie about where `painting` will have them, so that they have their ticks already."""
    with loading():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(0.6 / width, 0.5 / height, 1 - 0.15 / width, 1 - 0.3 / height)
    return figure


def _style(axis: Axes, heading: str, across: str, up: str = "", *, grid: bool = True) -> None:
    axis.set_title(heading, loc="left", fontsize=NORMAL + 1, fontweight="bold", color=INK, parse_math=False)
    axis.set_xlabel(across, fontsize=NORMAL, color=MUTED)
    axis.set_ylabel(up, fontsize=NORMAL, color=MUTED)
    axis.tick_params(colors=MUTED, labelsize=SMALL, length=0)
    axis.tick_params(which="minor", length=0)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axis.set_axisbelow(True)
    if grid:
        axis.grid(axis="y", color=GRID, lw=0.8)
    for offset in (axis.xaxis.get_offset_text(), axis.yaxis.get_offset_text()):
        offset.set(color=MUTED, fontsize=SMALL)


TITLES = {"rmse": "RMSE", "mae": "MAE", "r2": "R²", "f1": "F1", "macro_f1": "Macro F1", "roc_auc": "ROC AUC"}


def title(name: str) -> str:
    """A score's name for people: "log_loss" is "Log loss"."""
    words = name.replace("_", " ")
    return TITLES.get(name, words[:1].upper() + words[1:])


def _called(name: Any, most: int) -> str:
    """An example by its number, or by the end of its name, where files differ."""
    if isinstance(name, int):
        return f"no. {name}"
    words = printable(" ".join(str(name).split()))
    return words if len(words) <= most else "…" + words[len(words) - most + 1 :]


def _short(label: Any, most: int) -> str:
    """One line of at most `most` characters."""
    words = printable(" ".join(str(label).split()))
    return words if len(words) <= most else words[: most - 1] + "…"
