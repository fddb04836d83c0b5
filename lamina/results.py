"""What a run says of itself: the opening block, the scores, the report and the last screen.

In: a `Job`, and at the end its `TrainState` and history. Out: scores.json, predictions.csv, figures/, report.html and
run.json in the run's folder, and what a person reads on the terminal. Called by training before and after the steps.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from lamina import baselines, data, devices, evaluate, files, inspection, mapped, names, processes, splits, weights
from lamina import job as jobs
from lamina import recipe as recipes
from lamina import run as runs_
from lamina import state as states
from lamina.baselines import kmeans
from lamina.baselines.limits import Rows
from lamina.history import History
from lamina.job import Job
from lamina.nets import beside
from lamina.report import page, writing
from lamina.report.painting import Painted

TRAIN_SCORE_MOST = 10_000  # training examples scored at the end, to show the gap to the test


def finish(job: Job, state: states.TrainState, history: History, loaded_seconds: float) -> None:
    """Final weights, held-out scores, simple models beside them, predictions, pictures, the page, and the last screen."""
    folder = job.folder
    digest = _final_weights(job, state)
    _remember(job)
    _calibrate(job)
    inspection.familiarise(job)
    facts = _measure(job)
    scores = facts["scores"]
    work: Callable[[], dict[str, Painted]] | None = None
    painted = work
    if job.recipe.report:
        facts |= {"history": history.rows, "kept": job.recipe.keep}
        work = partial(writing.painted, writing.draw(folder, job.data, facts))
        painted = processes.beside(work)
    with processes.sharing() if painted is not work else nullcontext():  # where it is not done here
        inspection.doubt(job, facts["measured"])
        simple = facts["baselines"] = _simple_models(job, facts)
    told = runs_.read_json(folder / "data.json")
    told["task"]["state"] = job.data.target.state()
    told["findings"] = [finding.state() for finding in job.data.findings]
    if job.data.aside is not None and job.data.aside.reasons:
        told["set_aside"] = job.data.aside.state_dict()
    runs_.write_json(folder / "data.json", told)
    headline = scores[0] if scores else None  # of the test split, else of validation, else of training
    same = [entry for entry in simple if headline and entry["score"] == headline["score"]]
    runs_.write_json(folder / "scores.json", {"scores": scores, "baselines": simple})
    if "answers" in facts:
        table = runs_.predictions_csv(
            job.data.target, facts["answers"], job.data.called(facts["numbers"]), facts["truth"]
        )
        files.write(folder / "predictions.csv", table)
    job.facts.update(
        headline=headline,
        baseline=evaluate.best_of(same),
        epochs=state.epoch,
        steps=state.step,
        stopped=history.stopped or None,
        weights={"file": runs_.WEIGHTS, "sha256": digest, "kept": job.recipe.keep},
        seconds={
            "total": round(time.monotonic() - job.began, 3),
            "train": round(state.seconds, 3),
            "load": round(loaded_seconds, 3),
        },
    )
    words = _words(job, scores, history)
    if painted is not None:
        _report(job, {**facts, "words": words}, painted)
    job.facts["seconds"]["total"] = round(time.monotonic() - job.began, 3)
    job.facts["status"] = "done"
    runs_.write_json(folder / "run.json", job.facts)
    _closing(job, same, words)


def _final_weights(job: Job, state: states.TrainState) -> str:
    """The best or the last weights, averaged where an average was asked for, into the net and its file; its SHA-256."""
    best = job.folder / "best"
    if job.recipe.keep == "best" and best.is_dir():
        read_weights, tree, _ = states.read(best)
        weights.load_exactly(job.net, read_weights)
        if state.ema is not None:
            state.ema.load_state_dict(tree["ema"])
    if state.ema is not None:
        job.net.load_state_dict(state.ema.module.state_dict())
    if not best.is_dir():
        states.save(best, state, {"score": {}})
    _settle(job)
    written = weights.to_bytes(job.net.eval().state_dict())
    files.write(job.folder / runs_.WEIGHTS, written)
    return hashlib.sha256(written).hexdigest()


def _settle(job: Job) -> None:
    """What answers beside the net is fitted, and given its share by the validation examples."""
    net, loaded = job.net.eval(), job.data
    own = job.facts["net"]["own"] or job.facts["loss"]["own"]
    if own or getattr(net, "beside", None) is None or "valid" not in loaded.parts:
        return
    train, valid = (
        loaded.domain.batches(net, *loaded.parts[part], shuffle=False, batch_size=1000, device=job.device)
        for part in ("train", "valid")
    )

    def loss(output: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return job.loss(output, loaded.target.shape_truth(truth, output))  # type: ignore[no-any-return]

    share = beside.settle(net, train.epoch(0), valid.epoch(0), loss, loaded.target.name == "numbers")
    job.facts["beside"] = round(share, 3)


def _remember(job: Job) -> None:
    """The target keeps what its answers are compared with: the training examples as the net sees them."""
    target, (encoded, rows) = job.data.target, job.data.parts["train"]
    if target.remembers and (encoded.truth is not None or target.from_inputs) and rows is not None:
        output, truth = job.data.domain.ask(job.net, encoded, rows, device=job.device)
        ids = job.data.source.train.ids
        called = [str(ids[row]) if ids is not None and row < len(ids) else f"example {row}" for row in rows]
        target.remember(output, None if truth is None else torch.from_numpy(truth), np.asarray(called))
        target.save(job.folder)


def _calibrate(job: Job) -> None:
    """The target learns how sure the net's answers are, from examples that were not learned from."""
    plain = type(job.data.domain).answers is data.Domain.answers
    if job.supervised and plain and "valid" in job.data.parts and not job.facts["net"]["own"]:
        encoded, rows = job.data.parts["valid"]
        output, truth = job.data.domain.ask(job.net, encoded, rows, device=job.device)
        if truth is not None:
            job.data.target.calibrate(output, torch.from_numpy(truth))


def _measure(job: Job) -> dict[str, Any]:
    """Scores on every part, row numbers and answers of those that were held out, and all of the first of them."""
    loaded, recipe = job.data, job.recipe
    measures, labels = loaded.target.measures(), loaded.target.labels or None
    found: dict[str, Any] = {"scores": [], "measured": {}}
    options: dict[str, Any] = {"device": job.device, **({"exact": True} if recipe.strict else {})}
    for part in [name for name in ("test", "valid") if name in loaded.parts]:
        truth, answers, numbers = runs_.held_out(job.net, loaded, part, **options)
        groups = _groups(job, numbers)
        found["scores"] += evaluate.scores(
            measures, truth, answers, split=part, seed=recipe.seed or 0, groups=groups, labels=labels
        )
        found["measured"][part] = numbers, answers
        if "answers" not in found:
            found.update(truth=truth, answers=answers, numbers=numbers, groups=groups)
    rows = loaded.rows("train")
    if job.supervised and rows is not None:
        some = rows[:: max(1, len(rows) // TRAIN_SCORE_MOST)][:TRAIN_SCORE_MOST]
        truth, answers, _ = runs_.held_out(job.net, loaded, "train", rows=some, **options)
        entry = {
            "score": measures[0].name,
            "value": float(measures[0].compute(truth, answers)),
            "low": None,
            "high": None,
        }
        found["scores"].append(
            {**entry, "split": "train", "n": len(some), "better": measures[0].better, "interval": "none"}
        )
    return found


def _groups(job: Job, numbers: np.ndarray) -> np.ndarray | None:
    """Which held-out examples belong together, where that is known."""
    groups = job.data.source.train.groups
    return groups[numbers] if groups is not None and numbers.max() < len(groups) else None


def _simple_models(job: Job, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Simple models on the same examples, compared with the net example by example."""
    loaded = job.data
    known = job.supervised and loaded.target.name in names.known("targets")
    if not job.recipe.baselines or not known or "test" not in loaded.parts:
        return []
    encoded, rows = loaded.parts["train"]
    if loaded.target.from_inputs:
        return _raw_clusters(job, facts)
    truth = loaded.truth("train")
    if rows is None or truth is None or not isinstance(encoded.inputs, tuple):
        return []
    large = [column for column in encoded.inputs if mapped.is_mapped(column)]
    if large:  # simple models take no more than fits into memory, and need no more
        most = max(1000, (job.recipe.memory_bytes or 64 << 20) // max(1, sum(column[0].nbytes for column in large)))
        some = splits.spread(np.arange(len(rows)), most)
        rows, truth = rows[some], truth[some]

    def plain(model: str) -> tuple[Any, Any] | None:
        # A linear model asks for the rows it needs.
        if model == "linear" and len(encoded.inputs) == 1 and loaded.domain._plain("plain"):
            return Rows(encoded.inputs[0], rows), Rows(encoded.inputs[0], facts["numbers"])
        table = loaded.domain.plain(encoded.inputs, rows, model)
        return None if table is None else (table, loaded.domain.plain(encoded.inputs, facts["numbers"], model))

    return baselines.baselines(
        loaded.target.baseline or loaded.target.name,
        {name: partial(plain, name) for name in (*loaded.target.simple, *loaded.domain.simple)},
        loaded.target.people(truth.numpy()),
        facts["truth"],
        loaded.target.measures(),
        seed=job.recipe.seed or 0,
        labels=loaded.target.labels or None,
        groups=facts["groups"],
        net=facts["answers"],
    )


def _raw_clusters(job: Job, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """As many clusters of the inputs as they are, by k-means: each in the space it was sought in."""
    began, loaded, (encoded, rows) = time.perf_counter(), job.data, job.data.parts["train"]
    assert rows is not None  # clusters are sought among columns
    some = splits.spread(rows, kmeans.ROWS)
    table = loaded.domain.plain(encoded.inputs, some, "kmeans")
    if table is None:
        return []
    held_out, seed = loaded.domain.plain(encoded.inputs, facts["numbers"], "kmeans"), job.recipe.seed or 0
    answers, note = kmeans.answers(table, held_out, len(loaded.target.labels), seed)
    if len(some) < len(rows):
        note = ", ".join(filter(None, (f"learned from {len(some):,} of {len(rows):,} rows", note)))
    extra = {"name": "k-means", "trained_on": len(some), "seconds": round(time.perf_counter() - began, 3)}
    entries = evaluate.scores(loaded.target.measures(), facts["truth"], answers, seed=seed, groups=facts["groups"])
    return [entry | extra | ({"note": note} if note else {}) for entry in entries]


def _words(job: Job, scores: list[dict[str, Any]], history: History) -> list[str]:
    """What a person should know beside the score, in sentences."""
    found = []
    by_split = {entry["split"]: entry for entry in reversed(scores) if entry["score"] == scores[0]["score"]}
    train, test = by_split.get("train"), by_split.get("test")
    if (
        train
        and test
        and test["low"] is not None
        and test["better"] == "higher"
        and train["value"] - test["value"] > 0.05
    ):
        remedies = ["more data"]
        if job.data.domain.name != "text":  # there the weights of n-grams always know them better
            remedies += ["--augment"] if job.data.domain.name == "image" else []
            remedies += ["nn.Dropout in your net" if job.facts["net"]["own"] else "--net-arg dropout=0.3"]
            remedies += [] if job.recipe.early_stopping else ["--early-stopping 5"]
        found.append(
            f"The net knows its training data better than new data ({train['score']} {train['value']:.3f} against "
            f"{test['value']:.3f}): {' or '.join(remedies)} may help."
        )
    if (share := job.facts.get("beside", 0)) >= 0.5:
        found.append(
            f"A linear model beside the net has {share:.0%} of the say, by the validation examples: little of what can be "
            "learned here is more than a line."
        )
    found += [f"{doubt.what} data.json lists them." for doubt in job.data.findings if doubt.kind == "suspected_labels"]
    if history.stopped:
        found.append(f"Stopped early: {history.stopped}")
    if job.data.aside is not None and (bad := job.data.aside.reasons):
        first = ", ".join(f"{index} ({reason})" for index, reason in list(bad.items())[:3])
        found.append(f"{len(bad)} of {job.data.aside.count:,} examples could not be used and were set aside: {first}"
                     f"{', ...' if len(bad) > 3 else ''}. data.json has all of them.")  # fmt: skip
    if "test" not in job.data.parts:
        found.append("There is no test split, so this score is from data the training has seen the effects of.")
    found += job.data.target.remarks()
    if job.health is not None:
        found += [f"{finding['what']} {finding['fix']}" for finding in job.health.findings[:3]]
    return found


def _commands(job: Job) -> list[str]:
    """The next three."""
    folder, loaded = job.folder, job.data
    records = {"net": job.facts["net"]}
    for what, room, kind in (("domain", "domains", loaded.domain), ("task", "targets", loaded.target)):
        named = getattr(job.recipe, what)
        records[what] = jobs.code_record(type(kind), named) if kind.name not in names.known(room) else {}
    own = "".join(f" --{what} {record.get('file') or 'FILE.py'}:{record['class']}"
                  for what, record in records.items() if record.get("own"))  # fmt: skip
    example = {
        "image": "PICTURE.png",
        "text": "TEXTS.txt",
        "table": "TABLE.csv",
        "arrays": "INPUT.csv" if _flat(job) else "INPUT.npz",
    }.get(loaded.domain.name, "INPUT")
    page = f"python -m webbrowser {folder}/report.html" if job.recipe.report else f"lamina report {folder}{own}"
    return [
        page,
        f"lamina predict {folder} {example}{own}",
        f"lamina evaluate {folder}{own}",
    ]


def _flat(job: Job) -> bool:
    """Whether an example is a row of numbers."""
    inputs = job.data.parts["train"][0].inputs
    return isinstance(inputs, tuple) and len(inputs) == 1 and inputs[0].ndim == 2


def opening(job: Job, resumed: bool) -> None:
    """What is about to happen, what was inferred, why, and how to change it."""
    recipe, loaded, record = job.recipe, job.data, job.facts["net"]

    def why(name: str) -> str:
        origin, reason = job.origins.get(name, ("default", ""))
        return reason if origin == "inferred" else origin if origin == "yours" else ""

    sizes = " / ".join(f"{loaded.size(part):,}" for part in data.PARTS if loaded.size(part))
    titles = " / ".join(part for part in data.PARTS if loaded.size(part))
    labels = getattr(loaded.target, "labels", None) or []
    target = f"{loaded.target.name} ({len(labels)})" if labels else loaded.target.name
    rows = [
        ("run", str(job.folder), "resumed" if resumed else "--name and --runs choose another"),
        ("data", loaded.source.name, loaded.source.about),
        ("input", loaded.domain.name, why("domain")),
        ("answer", target, why("task")),
        ("split", sizes, f"{titles}; {loaded.split.how if loaded.split else 'as given'}"),
        ("net", f"{record['name']}, {record['parameters']:,} parameters", why("net")),
        ("loss", jobs.title(job.loss), "yours" if job.facts["loss"].get("own") or recipe.loss else ""),
    ]
    name = type(job.own_optimizer).__name__ if job.own_optimizer is not None else recipe.optimizer
    rate = "" if job.own_optimizer is not None else f", rate {recipe.learning_rate:g}"
    rows.append(("optimizer", f"{name}{rate}, {recipe.schedule}", why("schedule") or why("optimizer")))
    length = f"{recipe.epochs} epochs" if recipe.steps is None else f"{recipe.steps} steps"
    rows.append(("length", f"{length}, batches of {recipe.batch_size}", why("epochs")))
    extras = [
        (name, f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        for name in ("augment", "balance", "mixup", "cutmix", "label_smoothing", "weight_decay", "l1", "l2", "clip_norm",
                     "clip_value", "ema", "accumulate", "early_stopping", "precision", "init")
        if (value := getattr(recipe, name)) not in (None, 0, 0.0, 1, "none", "fp32", "pytorch")
    ]  # fmt: skip
    if extras:
        rows.append(("also", ", ".join(words for _, words in extras), "recipe.toml has each reason"))
    rows.append(("device", devices.describe(job.device), why("threads") or why("device")))
    rows.append(_step(job))
    if recipe.workers is not None:
        rows.append(("workers", str(recipe.workers), why("workers")))
    job.screen.opening(rows)
    job.screen.findings([finding.told() for finding in loaded.findings])


def _step(job: Job) -> tuple[str, str, str]:
    """How a step is made: the row of the opening block."""
    facts = job.facts.get("step") or {}
    words = [job.recipe.precision or "fp32", *(["channels_last"] if facts.get("channels_last") else [])]
    if facts.get("recorded"):
        return ("step", ", ".join(["recorded", *words]), "below autograd, and replayed: the same bits; --compile off")
    if facts.get("captured"):
        return ("step", ", ".join(["a CUDA graph", *words]), "captured and compared with the eager step; --compile off")
    return ("step", ", ".join(["eager", *words]), facts.get("why", ""))


def _closing(job: Job, simple: list[dict[str, Any]], words: list[str]) -> None:
    headline = job.facts["headline"]
    paths = [
        ("report.html", "the whole story, with pictures"),
        ("predictions.csv", "held-out examples, truth and prediction"),
        ("recipe.toml", "every setting, and why"),
        ("weights.safetensors", "the trained weights"),
        ("gallery.safetensors", "the people that are known"),
    ]
    paths = [(name, what) for name, what in paths if (job.folder / name).is_file()]
    if headline is not None:
        job.screen.closing(headline, simple, str(job.folder), paths, _commands(job), words)


def _report(job: Job, facts: dict[str, Any], painted: Callable[[], dict[str, Painted]]) -> None:
    facts["settings"] = [
        (name, value, *job.origins.get(name, ("default", "")))
        for name in recipes.FIELDS
        if (value := getattr(job.recipe, name)) not in (None, {})
    ]
    facts["commands"] = _commands(job)
    facts["telling"] = job.data.domain.telling(job.net, job.data.target)
    facts["findings"] = [found.state() for found in job.data.findings]
    facts["split"] = {part: job.data.size(part) for part in data.PARTS if job.data.size(part)}
    facts["run"] = {**job.facts, "status": "done"}
    page.load()  # while the figures are painted
    writing.write(job.folder, facts, painted())
