"""The end of a run on paper: figures/ and report.html in its folder.

In: the run's folder, its data and the facts of its training. Out: PNG files and one page that opens offline. Called by
training at the end, and by `lamina report` again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamina import data, evaluate, files
from lamina.report import figures, groups, page
from lamina.report.painting import Painted, paint
from lamina.run import Run, held_out, read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = 20  # mistakes shown
Drawn = dict[str, Callable[[], "Figure"]]  # how each figure is drawn, from plain data


def draw(folder: Path, loaded: data.Data, facts: dict[str, Any]) -> Drawn:
    """What is to be painted of a run; what the page tells beside it comes to the facts.

    facts: "history", what the weights were "kept" for, and truth, answers and numbers of the held-out split."""
    truth, answers, numbers = (facts.get(name) for name in ("truth", "answers", "numbers"))  # type: tuple[Any, Any, Any]
    facts["history"] = epochs = [row for row in facts["history"] if "event" not in row]
    drawn: Drawn = {}
    if epochs:
        best = files.manifest(folder / "best")["epoch"] if facts["kept"] == "best" else None
        drawn["curves"] = partial(figures.curves, epochs, best=best)
    if answers is None:
        return drawn
    # Of people, only where all of them were learned.
    if loaded.target.name in ("classes", "embedding") and set(truth) <= set(loaded.target.labels):
        _classes(loaded, facts, drawn, truth, answers, np.asarray(numbers))
    if loaded.target.name == "numbers":
        drawn["scatter"] = partial(figures.scatter, truth, answers.prediction)
    if loaded.target.name == "clusters":
        _clusters(loaded, facts, drawn, answers, np.asarray(numbers))
    return drawn


def painted(drawn: Drawn) -> dict[str, Painted]:
    """All of it as PNG files."""
    return {name: paint(figure()) for name, figure in drawn.items()}


def write(folder: Path, facts: dict[str, Any], pictures: dict[str, Painted]) -> None:
    """Figures and page of a run. facts: those of `page`."""
    files.folder(folder / "figures")
    for name, picture in pictures.items():
        files.write(folder / "figures" / f"{name}.png", picture.light)
    files.write(folder / "report.html", page.page({"name": folder.name, **facts}, pictures))


def again(run: Run) -> None:
    """The report of a run that is done, from what its folder holds and its data."""
    loaded = run.reload()
    scores = read_json(run.folder / "scores.json")
    entry = read_json(run.folder / "data.json")
    facts: dict[str, Any] = {
        "run": run.facts,
        "history": run.history,
        "scores": scores["scores"],
        "baselines": scores["baselines"],
        "findings": entry["findings"],
        "telling": loaded.domain.telling(run.net, loaded.target),
        "split": {part: count for part, count in entry["parts"].items() if count},
        "settings": [
            (name, value, *entry["origins"].get(name, ("default", "")))
            for name, value in run.recipe.model_dump().items()
            if value not in (None, {})
        ],
    }
    part = next(name for name in ("test", "valid", "train") if name in loaded.parts)
    truth, answers, numbers = held_out(run.net, loaded, part)
    facts |= {"kept": run.facts.get("weights", {}).get("kept"), "truth": truth, "answers": answers, "numbers": numbers}
    drawn = draw(run.folder, loaded, facts)
    write(run.folder, facts, painted(drawn))


def _clusters(loaded: data.Data, facts: dict[str, Any], drawn: Drawn, answers: Any, numbers: np.ndarray) -> None:
    facts["clusters"] = groups.describe(loaded, answers, numbers)
    encoded = next(loaded.parts[part][0] for part in ("test", "valid", "train") if part in loaded.parts)
    shown = [(group["name"], row) for group in facts["clusters"] for row in group["typical"]]
    pictures = loaded.domain.pictures(encoded.inputs, np.array([row for _, row in shown], dtype=np.int64))
    if pictures is not None:
        drawn["clusters"] = partial(figures.clusters, pictures, shown)
    if tried := loaded.target.state()["tried"]:
        drawn["stability"] = partial(figures.stability, tried, len(loaded.target.labels))


def _classes(loaded: data.Data, facts: dict[str, Any], drawn: Drawn, truth: Any, answers: Any, numbers: Any) -> None:
    labels = loaded.target.labels
    facts["per_class"] = evaluate.per_class(truth, answers.prediction, labels)
    facts["calibration"] = evaluate.calibration(truth, answers, labels)
    if (plain := loaded.target.uncalibrated(answers)) is not answers:
        before = evaluate.calibration(truth, plain, labels)["ece"]
        facts["calibration"] |= {"temperature": loaded.target.state()["temperature"], "ece_before": before}
    counts = evaluate.confusion(truth, answers.prediction, labels)
    drawn["confusion"] = partial(figures.confusion, counts, labels)
    facts["confused"] = evaluate.confused(counts, labels)
    drawn["histogram"] = partial(figures.histogram, answers.confidence, truth == answers.prediction)
    drawn["reliability"] = partial(figures.reliability, facts["calibration"])
    wrong = np.flatnonzero(truth != answers.prediction)
    wrong = wrong[np.argsort(-answers.confidence[wrong], kind="stable")][:WORST]
    rows = np.asarray(numbers)[wrong]
    names = loaded.called(rows)
    facts["mistakes"] = [
        {"id": int(numbers[k]) if name == str(numbers[k]) else name, "truth": str(truth[k]),
         "prediction": str(answers.prediction[k]), "confidence": float(answers.confidence[k])}
        for k, name in zip(wrong, names, strict=True)
    ]  # fmt: skip
    encoded = next(loaded.parts[part][0] for part in ("test", "valid", "train") if part in loaded.parts)
    if isinstance(encoded.inputs, tuple) and len(wrong):
        pictures = loaded.domain.pictures(encoded.inputs, rows)
        if pictures is not None:
            drawn["mistakes"] = partial(figures.mistakes, pictures, facts["mistakes"])
