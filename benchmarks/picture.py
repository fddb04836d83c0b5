"""One picture of the figures that the jobs wrote with --json: bars of the ratio to `hand`, a panel a job.

    python benchmarks/picture.py speed/tutorial.json speed/convnet.json speed/table.json [--out docs/images/speed.png]

Short is fast. What is Lamina's is dark and bold, everybody else's light; the line at 1 is the loop by hand. Whiskers go
from the fastest epoch to the slowest. Bars that would squeeze the others are cut, with their ratio written beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

OURS, OTHERS, INK, FAINT = "#1b4f72", "#c3ced6", "#1c1c1c", "#6b7680"
WIDEST = 2.6  # ratios beyond this are cut


def bars(found: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """(name, ratio, lowest, highest) of a job, the fastest first."""
    base = found["contenders"].get(found["base"])
    if base is None:
        raise SystemExit(f"{found['title']}: the figures of {found['base']!r}, to which ratios are, are missing")
    one = base["epoch"]["median"]
    entries = [
        (name, each["epoch"]["median"] / one, each["epoch"]["low"] / one, each["epoch"]["high"] / one)
        for name, each in found["contenders"].items()
    ]
    return sorted(entries, key=lambda entry: entry[1])


def draw(jobs: list[dict[str, Any]], out: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plot

    tables = [bars(job) for job in jobs]
    heights = [len(table) + 1.4 for table in tables]
    plot.rcParams.update({"font.size": 10, "font.family": "sans-serif", "axes.edgecolor": FAINT, "text.color": INK})
    figure, panels = plot.subplots(
        len(jobs), 1, figsize=(8.6, 0.34 * sum(heights) + 0.9), squeeze=False, sharex=True, layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    limit = min(WIDEST, 1.12 * max(high for table in tables for *_, high in table))
    for panel, job, table in zip(panels[:, 0], jobs, tables, strict=True):
        for place, (name, ratio, low, high) in enumerate(table):
            ours = name.startswith("lamina")
            panel.barh(place, min(ratio, limit), 0.66, color=OURS if ours else OTHERS, zorder=2)
            shown = min(high, limit)
            if low < limit:
                panel.plot([low, shown], [place, place], color=FAINT, linewidth=1.2, zorder=3, solid_capstyle="butt")
            inside = ratio > 0.85 * limit
            panel.text(
                limit * 0.985 if inside else max(ratio, shown) + 0.015 * limit, place,
                f"{ratio:.2f}{' →' if ratio > limit else ''}", va="center", ha="right" if inside else "left",
                color="white" if inside and ours else INK, fontweight="bold" if ours else "normal", zorder=4,
                bbox=None if inside else {"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
        panel.axvline(1.0, color=INK, linewidth=1.0, zorder=3)
        panel.set_yticks(range(len(table)), [name for name, *_ in table])
        for label in panel.get_yticklabels():
            label.set_fontweight("bold" if label.get_text().startswith("lamina") else "normal")
        panel.invert_yaxis()
        panel.set_xlim(0, limit)
        panel.set_title(job["title"], loc="left", fontsize=10.5, fontweight="bold", pad=5)
        panel.tick_params(axis="y", length=0)
        panel.tick_params(axis="x", length=0, labelcolor=FAINT)
        panel.grid(axis="x", color="#e4e9ed", linewidth=0.8, zorder=0)
        panel.spines[:].set_visible(False)
    panels[-1, 0].set_xlabel("training time as a ratio to the best ordinary loop by hand (short is fast)", color=FAINT)
    machines = sorted({job["machine"] for job in jobs})
    figure.text(0.995, 0.001, "; ".join(machines), ha="right", va="bottom", fontsize=7, color=FAINT)
    figure.get_layout_engine().set(rect=(0, 0.012, 1, 0.988))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=160, metadata={"Software": None})  # the same bytes for the same figures
    plot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what a job wrote with --json")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images" / "speed.png")
    asked = parser.parse_args()
    draw([json.loads(file.read_text(encoding="utf-8")) for file in asked.files], asked.out)
    print(asked.out)


if __name__ == "__main__":
    main()
