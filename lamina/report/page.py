"""The report of a run as one HTML text: it opens offline, runs nothing and asks nobody for anything.

In: the facts of a run as plain data, and its painted figures. Out: the page, light or dark as the reader's machine is, the
pictures inside. Called by the report's writer, which puts it into the run folder. The words and numbers are made here;
where they stand is in page.html.j2, which escapes all of them, so that a class named <script> is text.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamina.errors import printable
from lamina.evaluate import beats, best_of, clopper_pearson
from lamina.report.figures import title

if TYPE_CHECKING:
    from lamina.report.painting import Painted

PERCENT = ("accuracy", "balanced_accuracy", "exact")  # scores that people read as percentages
CLASSES_SHOWN = 12  # rows of the table by class; the others are folded away

# What is drawn where, and what a blind reader is told of it. Other figures go under "More pictures".
CAPTIONS = {
    "curves": "Loss, score and learning rate, epoch by epoch.",
    "confusion": "Rows are the truth, columns what the net said. Blue is right, orange is wrong.",
    "reliability": "Points below the dashed line: the net is surer than it should be.",
    "histogram": "How sure the net was where it was right, and where it was wrong.",
    "mistakes": "What the net was surest of, and wrong: what it said, how sure it was, what is true.",
    "samples": "Held-out examples: the truth, and what the net said.",
    "clusters": "The most typical held-out examples of each cluster, nearest to its centre first.",
    "stability": "How alike clusterings of resamples are, by the number of clusters: 1 is the same every time.",
    "scatter": "Every held-out example. On the dashed line the net is exactly right.",
}


def page(facts: Mapping[str, Any], figures: Mapping[str, Painted] | None = None) -> str:
    """The report as HTML. Of the facts only "run" must be there; a part without facts is left out.

    run: run.json. scores, baselines: entries of scores.json. per_class, calibration, confused: as `evaluate` gives
    them. history: lines of history.jsonl. settings: (name, value, origin, reason) each. findings: "severity", "what",
    "done", "fix" each. split: examples in each part. mistakes: "id", "truth", "prediction", "confidence" each.
    telling: (answer, what speaks most for it) each. words: sentences. commands: what can be typed next. name: of the run.
    figures: by name, those of CAPTIONS at their place.
    """
    run = facts["run"]
    headline = run.get("headline") or next(iter(facts.get("scores") or ()), None)
    simple = [entry for entry in facts.get("baselines") or () if headline and entry["score"] == headline["score"]]
    return load().render(
        name=facts.get("name") or run.get("name") or _source(run) or "A run",
        run=run,
        headline=headline,
        chart=_chart(headline, simple) if headline and headline.get("value") is not None else None,
        verdict=_verdict(headline, simple),
        words=facts.get("words") or (),
        advice=advice(facts),
        parts=_parts(facts.get("split") or {}),
        findings=facts.get("findings") or (),
        trained=_trained(run),
        settings=_settings(facts.get("settings") or ()),
        table=_table(facts.get("scores") or (), facts.get("baselines") or ()),
        classes=_classes(facts.get("per_class") or ()),
        confused=facts.get("confused") or (),
        calibration=_calibration(facts.get("calibration") or {}),
        mistakes=facts.get("mistakes") or (),
        clusters=facts.get("clusters") or (),
        telling=facts.get("telling") or (),
        commands=facts.get("commands") or (),
        figures={key: _picture(painted, key) for key, painted in (figures or {}).items()},
        known=CAPTIONS,
    )


@cache
def load() -> Any:
    """The page without its facts, which takes longer to read than to fill."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    place = FileSystemLoader(Path(__file__).parent, encoding="utf-8")
    inside = Environment(loader=place, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                         finalize=_visible)  # fmt: skip
    inside.filters.update(number=number, span=_span, percent=_percent, seconds=_seconds, title=title, plain=_plain)
    return inside.get_template("page.html.j2")


def _visible(value: Any) -> Any:
    """A text as it may stand on the page; what is markup already was made of such texts."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


# ---------------------------------------------------------------------------------------------------- numbers as words


def number(value: float | None, entry: Mapping[str, Any] | None = None) -> str:
    """A score for people: as exact as its interval allows, two digits of its width; a percentage where that is usual.

    `entry`: the score it belongs to ("score", "low", "high"); without an interval four digits are given.
    """
    if value is None:
        return "–"
    entry = entry or {}
    percent = entry.get("score") in PERCENT
    scale = 100 if percent else 1
    low, high = entry.get("low"), entry.get("high")
    width = scale * (high - low) if low is not None and high is not None else 0
    about = width if width > 0 else abs(scale * value) / 100
    digits = int(min(6, max(0, 1 - math.floor(math.log10(about))))) if about > 0 else 0
    digits = min(digits, 2) if percent and width <= 0 else digits
    while digits < 6 and 0 < value < 1 and round(scale * value, digits) in (0, 100):
        digits += 1  # 99.97 % is not 100 %
    shown = round(scale * value, digits) or 0.0  # not -0.00
    return f"{shown:,.{digits}f}{' %' if percent else ''}"


def _span(entry: Mapping[str, Any]) -> str:
    """An interval for people: "92.9 to 97.4 %"; nothing where there is none."""
    if entry.get("low") is None or entry.get("high") is None:
        return ""
    return f"{number(entry['low'], entry).removesuffix(' %')} to {number(entry['high'], entry)}"


def _percent(share: float) -> str:
    """0.042 -> "4.2 %"."""
    return f"{100 * share:.{0 if share >= 0.9995 or share == 0 else 1}f} %"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes = round(seconds / 60, 1 if seconds < 600 else 0)
    return f"{minutes:g} min" if minutes < 60 else f"{int(minutes // 60)} h {int(minutes % 60):02d} min"


def _plain(value: Any) -> str:
    """A setting's value: 3e-05, yes, a, b."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_plain(part)}" for key, part in value.items()) or "–"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value)) or "–"
    return (
        "–"
        if value is None
        else f"{value:,}"
        if isinstance(value, int)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


# ---------------------------------------------------------------------------------------------------- parts of the page


def _chart(headline: Mapping[str, Any], simple: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The headline and its baselines as intervals on one axis; lengths are shares of it, 0 to 100."""
    entries = [("this net", headline), *((entry["name"], entry) for entry in simple if entry.get("value") is not None)]
    ends = [e[key] for _, e in entries for key in ("low", "value", "high") if e.get(key) is not None]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = low - room, high + room
    if headline["score"] in PERCENT:
        low, high = max(low, 0.0), min(high, 1.0)
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
    ticks = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 3)

    def name(value: float) -> str:
        return f"{100 * value:g} %" if headline["score"] in PERCENT else f"{value:,.10g}"

    rows = [
        {"name": who, "entry": entry, "value": place(entry["value"])}
        | {key: place(entry[key]) if entry.get(key) is not None else None for key in ("low", "high")}
        for who, entry in entries
    ]
    return {"rows": rows, "ticks": [{"at": place(tick), "name": name(round(tick, 12))} for tick in ticks]}


def _verdict(headline: Mapping[str, Any] | None, simple: Sequence[Mapping[str, Any]]) -> str:
    """Is the net better than no net?"""
    best = best_of([{"better": (headline or {}).get("better"), **entry} for entry in simple])
    if not headline or headline.get("value") is None or best is None:
        return ""
    words = f"the best baseline, {best['name']} ({number(best['value'], best)})"
    if certain := beats(headline, best):
        paired = f" Paired on the same examples: p = {best['paired']['p']:.2g}." if "paired" in best else ""
        return f"{'Better' if certain > 0 else 'Worse'} than {words}, for certain.{paired}"
    return f"No certain difference from {words}."


def advice(facts: Mapping[str, Any]) -> list[str]:
    """What to do next, from what was measured: sentences, the weightiest first; none where nothing is to be said."""
    run = facts["run"]
    headline = run.get("headline") or {}
    simple = [entry for entry in facts.get("baselines") or () if entry["score"] == headline.get("score")]
    found = []

    linear = next((entry for entry in simple if entry["name"] == "linear"), None)
    if linear and headline.get("value") is not None and (certain := beats(headline, linear)) <= 0:
        found.append(
            f"A linear model does {'better' if certain else 'as well, as far as these examples can tell'}. Give the net "
            f"more examples, try another one (--net), or use the linear model."
        )

    losses = [
        (line["epoch"], line["valid/loss"]) for line in facts.get("history") or () if _finite(line.get("valid/loss"))
    ]
    if len(losses) >= 5:
        best, least = min(losses, key=lambda point: point[1])
        last, now = losses[-1]
        before = losses[-1 - max(1, len(losses) // 10)][1]
        if now > least + 0.1 * abs(least) and best <= 0.7 * last:
            found.append(
                f"The validation loss was least at epoch {best} of {last} and rose again: the net learned its examples "
                f"by heart. Try --early-stopping 5, --augment, or more examples."
            )
        elif best == last and not run.get("stopped") and before - now > 0.02 * abs(before):
            found.append(f"The validation loss was still falling when training ended: try --epochs {2 * last}.")

    rows = facts.get("per_class") or ()
    total = sum(row["support"] for row in rows)
    if len(rows) > 2 and total:
        overall = sum(row["recall"] * row["support"] for row in rows) / total
        level = 1 - 0.05 / len(rows)  # of many classes, one will look weak by chance
        for row in sorted(rows, key=lambda row: row["recall"])[:3]:
            if clopper_pearson(row["recall"] * row["support"], row["support"], level)[1] >= overall:
                continue
            found.append(
                f"{_quoted(row['label'])} is found less often than the others: {_percent(row['recall'])} of "
                f"{row['support']:,} ({_percent(row['recall_low'])} to {_percent(row['recall_high'])}). Look at these "
                f"examples first; more of them, or --balance, may help."
            )

    sure = facts.get("calibration") or {}
    if sure and sure["ece"] > sure["ece_chance"]:
        too = "sure" if sure["confidence"] > sure["accuracy"] else "unsure"
        found.append(
            f"The net is too {too}: on average it says {_percent(sure['confidence'])} and is right in "
            f"{_percent(sure['accuracy'])}."
            + (
                " Try --label-smoothing 0.1 or fewer epochs."
                if too == "sure"
                else " Label smoothing and mixup do that."
            )
        )

    low, high, n = headline.get("low"), headline.get("high"), headline.get("n") or 0
    if headline.get("score") in PERCENT and low is not None and high is not None and high - low > 0.05 and n:
        found.append(
            f"The score is known to within {_percent(high - low)}, from {n:,} examples. Four times as many held-out "
            f"examples would halve that."
        )
    return found


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _quoted(label: Any) -> str:
    words = str(label)
    return f"“{words if len(words) <= 40 else words[:39] + '…'}”"


def _parts(split: Mapping[str, int]) -> list[dict[str, Any]]:
    total = sum(split.values())
    return [{"name": part, "n": n, "share": 100 * n / total} for part, n in split.items() if n] if total else []


def _trained(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was trained and how long it took, in a few pairs of words."""
    net: Mapping[str, Any] = run.get("net") or {}
    seconds: Mapping[str, Any] = run.get("seconds") or {}
    numerics = run.get("numerics") or {}
    spent = (
        f"{_seconds(seconds['total'])}, of which {_seconds(seconds['train'])} training" if "train" in seconds else ""
    )
    pairs = [
        (
            "net",
            f"{net.get('name', 'own')}, {net['parameters']:,} parameters" if "parameters" in net else net.get("name"),
        ),
        ("beside it", f"a linear model, {run['beside']:.0%} of the answer" if run.get("beside") else None),
        ("answer", run.get("task")),
        ("input", run.get("domain")),
        ("source", _source(run)),
        ("epochs", run.get("epochs")),
        ("stopped early", run.get("stopped")),
        ("time", spent or (_seconds(seconds["total"]) if "total" in seconds else None)),
        ("device", numerics.get("device")),
        ("precision", numerics.get("precision")),
        ("torch", numerics.get("torch")),
        ("seed", run.get("seed")),
    ]
    return [
        (name, f"{value:,}" if isinstance(value, int) else str(value)) for name, value in pairs if value is not None
    ]


def _source(run: Mapping[str, Any]) -> str | None:
    source = run.get("source")
    return source.get("name") if isinstance(source, Mapping) else source


def _settings(settings: Sequence[Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """What somebody chose, and what nobody did."""
    rows = [dict(zip(("name", "value", "origin", "reason"), [*row, "", ""][:4], strict=True)) for row in settings]
    return {
        "chosen": [row for row in rows if row["origin"] != "default"],
        "default": [row for row in rows if row["origin"] == "default"],
    }


def _classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows, hardest class first, and where the bars of their intervals begin (0 to 0.9)."""
    lows = [row[key] for row in rows for key in ("recall_low", "precision_low") if key in row]
    hardest = sorted(rows, key=lambda row: row["recall"])
    start = min(0.9, math.floor(10 * min(lows, default=0.0)) / 10)
    return {"shown": hardest[:CLASSES_SHOWN], "folded": hardest[CLASSES_SHOWN:], "start": start}


def _table(scores: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores of the first split with the baselines beside them; those of other splits apart."""
    names = list(dict.fromkeys(entry["name"] for entry in baselines))
    beside = {(entry["name"], entry["score"], entry.get("split")): entry for entry in baselines}
    rows: list[dict[str, Any]] = [
        {"entry": entry, "beside": [beside.get((name, entry["score"], entry.get("split"))) for name in names]}
        for entry in scores
    ]
    first = scores[0].get("split") if scores else None
    notes = dict.fromkeys(f"{entry['name']}: {entry['note']}" for entry in baselines if entry.get("note"))
    return {
        "first": [row for row in rows if row["entry"].get("split") == first],
        "others": [row for row in rows if row["entry"].get("split") != first],
        "names": names,
        "notes": list(notes),
    }


def _calibration(found: Mapping[str, Any]) -> list[str]:
    """Sentences on how far the confidence can be trusted."""
    if not found:
        return []
    far = found["ece"] > found["ece_chance"]
    words = [
        f"Confidence is off by {100 * found['ece']:.1f} percentage points on average (expected calibration error). A "
        f"net that is right as often as it says would stay below {100 * found['ece_chance']:.1f} on so many examples: "
        f"this one is {'not calibrated' if far else 'not seen to be off'}."
    ]
    if "temperature" in found:
        words.append(
            f"Its probabilities are calibrated: logits are divided by the temperature {found['temperature']:.3g}, which "
            f"makes the validation split likeliest. Without that the error would be {100 * found['ece_before']:.1f} points."
        )
    if found.get("brier") is not None:
        words.append(f"Brier score {found['brier']:.4g}, lower is better.")
    return words


def _picture(painted: Painted, key: str) -> dict[str, Any]:
    """Two pictures inside the page, on its light and on its dark card."""
    light, dark = (base64.b64encode(picture).decode("ascii") for picture in (painted.light, painted.dark))
    size = {"width": painted.width, "height": painted.height}
    return {"light": light, "dark": dark, "caption": CAPTIONS.get(key, key.replace("_", " "))} | size
