"""The whole story: from a source to a run folder.

    check -> split -> fit, encode -> net, loss, optimiser -> learn -> evaluate -> report

In: a source and settings (`train`), or a run folder that stopped (`resume`). Out: a `Run`. Both go the same way from the
moment the data are there; a resumed run only starts from its newest checkpoint. The arithmetic is `engine.learn`; what
this module adds stands between its steps: validation, the watchers in the order of their list, checkpoints, signals.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import random
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lamina import (
    __version__,
    asking,
    data,
    devices,
    engine,
    files,
    fingerprints,
    initialisers,
    machine,
    mapped,
    names,
    penalties,
    results,
    splits,
    weights,
)
from lamina import job as jobs
from lamina import recipe as recipes
from lamina import run as runs_
from lamina import sources as sources_
from lamina import state as states
from lamina import unlabelled as unlabelled_
from lamina.batches import Batches, keeping_generators
from lamina.domains import image
from lamina.errors import Interrupted, LaminaError, ResourceError, RunError, UsageError
from lamina.history import History
from lamina.job import Job
from lamina.recipe import Origin, Recipe
from lamina.recovery import SKIPS, Recovery
from lamina.run import Run
from lamina.signals import Signals
from lamina.sources import places
from lamina.targets.base import Target
from lamina.watchers import Log, Save, Stop
from lamina.watchers.screen import Screen
from lamina.watchers.stopping import Best, EarlyStopping, TimeLimit
from lamina.writer import Writer


@dataclass
class _Learning:
    """What learns, what is remembered of it, and who watches: all that changes from step to step."""

    state: states.TrainState
    history: History
    watchers: list[Any]
    writer: Writer  # of checkpoints, and of what watchers ask to keep
    recovery: Recovery | None = None  # None: a training that diverges is stopped
    saved: int = -1  # the step of the newest checkpoint
    tags: set[str] = field(default_factory=set)  # names under which watchers may keep a state


def train(
    source: Any,
    *,
    net: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    domain: Any = None,
    task: Any = None,
    init: Any = None,
    valid: Any = None,
    test: Any = None,
    unlabelled: Any = None,
    groups: Any = None,
    times: Any = None,
    watchers: Sequence[Any] = (),
    name: str | None = None,
    runs: str | Path = "runs",
    recipe: str | Path | None = None,
    quiet: bool = False,
    command: str | None = None,
    **settings: Any,
) -> Run:
    """Train a net on a source and measure it on data it has not seen; gives the `Run`.

    source: a name ("digits", "mnist"), a path or several, a data frame, arrays (x, y), a Dataset or a DataLoader. net: an
    `nn.Module`, a class, "mlp", "convnet" or "my.py:Net"; loss: a callable (output, truth) -> 0-d, or a name; optimizer: a
    name, a `torch.optim.Optimizer`, or a callable (parameters) -> optimizer. valid, test: a source or a share. unlabelled: a
    source of examples without answers; those that can be told for sure are learned from as well. groups, times
    (N,): what must not be split, what comes later is held out. watchers: callables (progress) -> Stop, Save, Log or None.
    name, runs: the folder is runs/name, or a free number. recipe: a TOML file; settings: any field of `Recipe`.

    Your own net gets exactly what you ask for, by default Adam at a constant 1e-3 for 10 epochs of batches of 64.

    Raises UsageError, DataError, Diverged, ResourceError; Interrupted after Ctrl-C, when the run can be resumed.
    """
    began = time.monotonic()
    asked = recipes.read(recipe) if recipe is not None else {}
    named = {"net": net, "loss": loss, "optimizer": optimizer, "domain": domain, "task": task}
    if code := {what: asked[what] for what in named if named[what] is None and names.is_own(asked.get(what, ""))}:
        raise UsageError(
            "\n".join(
                f"{recipe} has {what} = {place}: code is run only when you name it." for what, place in code.items()
            ),
            fix=" ".join(f"--{what} {shlex.quote(place)}" for what, place in code.items()),
        )
    for column, given in (("groups", groups), ("times", times)):
        if isinstance(given, str):
            asked[column] = given
    groups, times = (None if isinstance(given, str) else given for given in (groups, times))
    objects: dict[str, Any] = {}
    for key, given in (("net", net), ("loss", loss), ("optimizer", optimizer), ("domain", domain), ("task", task),
                       ("init", init), ("valid", valid), ("test", test), ("unlabelled", unlabelled)):  # fmt: skip
        if given is None:
            continue
        if key in ("valid", "test", "unlabelled"):
            given = sources_.named(given) or given
        if isinstance(given, str) or (key in ("valid", "test") and isinstance(given, (int, float))):
            asked[key] = given
        else:
            objects[key] = given
            asked.pop(key, None)
    asked.update({key: value for key, value in settings.items() if value is not None})
    source = sources_.named(source) or source
    if isinstance(source, str):
        asked["source"] = source
    elif source is None:
        source = asked.get("source")
        if source is None and recipe is not None:
            raise UsageError(f"{recipe} names no source: its data were in memory.", fix="give the data as well")
    else:
        asked.pop("source", None)
    gone = [name for name, entry in asked.items() if str(entry).endswith(recipes.GIVEN)]
    if gone:
        raise UsageError(
            "\n".join(f"{recipe} had {name} = {asked[name]}." for name in gone),
            fix=f"give {', '.join(f'{name}=...' for name in gone)} to lamina.train as well",
        )
    wanted = asking.validated(asked, objects)
    own_net = "net" in objects or names.is_own(wanted.net or "")
    asking.check_idle({**settings, "init": init, "optimizer": optimizer}, objects, own_net)
    asking.check_watchers(watchers)
    place = asking.free_folder(Path(runs), name, source)
    screen = Screen(quiet=quiet)

    opened = asking.open_source(source, wanted, objects, groups, times)
    if "domain" not in objects and not names.is_own(wanted.domain or ""):  # an own domain reads as it likes
        asking.check_reading({**settings, "valid": valid, "test": test}, opened, wanted)
    with keeping_generators(), jobs.memory_in_words(), machine.ready(bool(wanted.strict), wanted.threads):
        return _start(opened, wanted, objects, place, name is not None, screen, watchers, began, command)


def resume(
    folder: str | Path,
    source: Any = None,
    *,
    net: Any = None,
    loss: Any = None,
    optimizer: Any = None,
    domain: Any = None,
    task: Any = None,
    valid: Any = None,
    test: Any = None,
    unlabelled: Any = None,
    groups: Any = None,
    watchers: Sequence[Any] = (),
    accept_data_change: bool = False,
    restart_epoch: bool = False,
    quiet: bool = False,
) -> Run:
    """Go on with a run where it stopped: the same bits as if it had not, on the same machine. A run that is done is left
    alone. What is not in the folder must be given again: data and groups that were in memory, an own net, loss,
    optimiser or watchers. What is refused leaves the run as it was.

    accept_data_change: go on with data that changed since, if classes and shapes are the same; run.json tells it.
    restart_epoch: walk the epoch under way from its beginning, with the weights as they are: for a stream that cannot be
    read again up to where it was."""
    began = time.monotonic()
    folder = Path(folder)
    facts = runs_.facts(folder)
    if facts["status"] == "done":
        with contextlib.suppress(LaminaError), files.Lock(folder):
            files.sweep(folder)  # what a power cut may have left of the deleted
        return Run(folder, net=net, domain=domain, task=task)
    runs_.require_own({"net": net, "loss": loss, "optimizer": optimizer}, facts)
    screen = Screen(quiet=quiet)
    with keeping_generators(), jobs.memory_in_words(), files.Lock(folder), contextlib.ExitStack() as stack:
        for place in (folder, folder / "checkpoints"):
            files.probe(files.folder(place))
        files.sweep(folder)
        asked = runs_.stored_recipe(folder)
        stack.enter_context(machine.ready(bool(asked.strict), asked.threads))
        origins = _origins(folder, asked)
        kinds = runs_.domain_and_target(folder, domain, task)
        if source is None and facts["source"]["reopen"] is None:
            raise UsageError(
                f"The data of {folder} were in memory and are gone.",
                fix="lamina.resume(run, (x, y), net=...) from Python",
            )
        given: dict[str, Any] = {k: v for k, v in (("valid", valid), ("test", test)) if v is not None}
        with mapped.limited(asked.memory_bytes):
            opened = source if isinstance(source, sources_.Source) else kinds[0].read(
                asked.source if source is None else source, **{**runs_.given_sources(asked), **given}
            )  # fmt: skip
        if groups is not None:
            opened.train.groups = np.asarray(groups)
        if _groups_print(opened) != facts["data"].get("groups"):
            raise RunError(
                f"The groups of the examples are not those {folder} was trained with.",
                fix="lamina.resume(run, ..., groups=...) with the groups as they were",
            )
        loss, optimizer = (
            _again(given, facts[what], what) for what, given in (("loss", loss), ("optimizer", optimizer))
        )
        loaded, changes = fingerprints.again(
            folder, asked, opened, kinds, fingerprint=facts["data"]["fingerprint"], accept=accept_data_change,
            loss=jobs.asked_loss(asked, loss), own_net=facts["net"]["own"],
        )  # fmt: skip
        record = facts["net"]
        _seed(asked.seed or 0)
        module = runs_.build_net(record, kinds[0], kinds[1], net)
        criterion = jobs.build_loss(asked, loss, loaded)
        device = devices.pick(asked.device or "auto")
        module, criterion = jobs.moved(module, criterion, device, loaded, asked, facts["net"]["own"])
        jobs.check_contract(module, loaded, criterion, device, asked)
        unlabelled_.again(loaded, folder, asked, facts, unlabelled)
        job = Job(asked, origins, loaded, module, criterion, device, optimizer, watchers, folder, facts, screen, began)
        job.screen.log = _logger(folder, screen)
        jobs.lay_out(job)
        learning = _learning(job)
        newest = states.newest(folder / "checkpoints", lambda words: screen.findings([("warning", words, "")]))
        if newest is None:
            raise RunError(
                f"No checkpoint of {folder} is sound, so there is nothing to go on from.",
                fix=f"restore {folder / 'checkpoints'} from a copy, or train again: lamina train --recipe "
                f"{folder / 'recipe.toml'}",
            )
        read_weights, tree, _ = states.read(newest)
        learning.state.load(read_weights, tree)
        learning.saved = learning.state.step
        states.prune(folder / "checkpoints", sound=newest)  # a disk that failed may have kept one too many
        if restart_epoch and learning.state.batch:
            learning.state.batch = 0
            epoch, step = learning.state.epoch, learning.state.step
            learning.history.tell(epoch, step, {"restarted_epoch": epoch + 1})
        if changes:
            _new_lineage(job, learning, changes)
        numerics = jobs.numerics(job)
        if numerics != facts["numerics"]:
            changed = [key for key in numerics if numerics[key] != facts["numerics"].get(key)]
            screen.findings([("warning", f"this machine differs from the one before ({', '.join(changed)}): the run goes "
                              "on, valid but not bit for bit the same", "")])  # fmt: skip
        jobs.check_strict(job)
        return _go(job, learning, resumed=True)


def _new_lineage(job: Job, learning: _Learning, changes: list[str]) -> None:
    """The run goes on with other data: it says so for ever, and the epoch under way begins anew. run.json, by which the
    change is noticed, is written last."""
    facts, state, words = job.facts, learning.state, "; ".join(changes)
    job.screen.findings([("warning", f"the data changed, which you accepted: {words}; the epoch begins anew", "")])
    state.batch = 0
    learning.history.tell(state.epoch, state.step, {"data_changed": changes})
    learning.saved = -1
    _checkpoint(job, learning)
    _flush(job, learning)
    if job.data.split is not None:
        files.write(job.folder / "splits.csv", splits.csv(job.data.split))
    fingerprints.write(job.folder, job.data, job.recipe)
    facts.setdefault("lineage", []).append(
        {"fingerprint": facts["data"]["fingerprint"], "until_step": state.step, "changes": changes}
    )
    facts["data"].update(fingerprint=job.data.fingerprint(), **{part: job.data.size(part) for part in data.PARTS})
    runs_.write_json(job.folder / "run.json", facts)


def _again(given: Any, record: dict[str, Any], what: str) -> Any:
    """An own loss or optimiser of a run, which must be given again, and be of the same class."""
    if given is not None and not record["own"]:
        raise UsageError(f"This run was not started with an own {what}.", fix=f"resume it without {what}=")
    found = runs_.own_code(given, record, what)
    if found is not None and (other := jobs.code_record(found, None)["class"]) != record["class"]:
        raise UsageError(
            f"The {what} given is a {other}.", expected=f"a {record['class']}, as the run was started with"
        )
    return found


def _groups_print(opened: sources_.Source) -> str | None:
    groups = opened.train.groups
    return None if groups is None else hashlib.sha256(repr(np.asarray(groups).tolist()).encode()).hexdigest()


def _picture(domain: Any, opened: sources_.Source) -> tuple[int, int, int] | None:
    """(channels, height, width) where the inputs are pictures in memory."""
    if domain.name != "image" or not isinstance(opened.train.inputs, tuple):
        return None
    return image.shape_of(np.shape(opened.train.inputs[0]))  # None: encode() will say why


def _start(
    opened: sources_.Source, wanted: Recipe, objects: dict[str, Any], place: Path, named: bool, screen: Screen,
    watchers: Sequence[Any], began: float, command: str | None,
) -> Run:  # fmt: skip
    own_net = "net" in objects or names.is_own(wanted.net or "")
    asked_loss = jobs.asked_loss(wanted, objects.get("loss"))
    origins: dict[str, Origin] = {}

    def resolve(domain: Any, target: Any, taken: sources_.Source, count: int | None) -> Recipe:
        """Called once kind and size of the data are known, and before they are split and fitted."""
        opinions: dict[str, tuple[Any, str]] = {}
        if not own_net:
            opinions |= domain.opinions(taken.train, target, wanted)
            opinions |= target.opinions(domain.name, taken.train, wanted)
        found, why = recipes.resolve(
            wanted,
            own_net=own_net,
            net=wanted.net or domain.default_net,
            examples=count,
            pictures=_picture(domain, taken),
            opinions=opinions,
            task=target.name,
            supervised=target.needs_truth or target.from_inputs,
            given_valid=taken.valid is not None,
            given_test=taken.test is not None,
            bytes_in=isinstance(taken.train.inputs, tuple) and str(taken.train.inputs[0].dtype).endswith("uint8"),
        )
        if found.target is None and opened.target:  # so that other tables are read as this one was
            found.target, why["target"] = list(opened.target), ("inferred", opened.why.get("target", ""))
        if hasattr(domain, "scale"):
            domain.scale = found.scale
        if asked_loss is not None and why["label_smoothing"][0] != "yours":
            found.label_smoothing, why["label_smoothing"] = 0.0, ("inferred", "the loss is yours")
        origins.update(why)
        return found

    loaded, found = data.load(
        wanted, opened, domain=objects.get("domain") or jobs.pretrained(wanted), target=objects.get("task"),
        loss=asked_loss, own_net=own_net, resolve=resolve,
    )  # fmt: skip
    _name_files(found, loaded.domain.name not in names.known("domains"))
    if "train" not in loaded.parts:
        raise UsageError("Nothing is left to train on.", fix="smaller valid and test shares")
    asking.check_validation(found, "valid" in loaded.parts)
    for key, title in (("domain", loaded.domain.name), ("task", loaded.target.name)):
        if getattr(found, key) is None and title:
            setattr(found, key, title)
            origins[key] = ("inferred", loaded.why[key])

    device = devices.pick(found.device or "auto")
    if found.precision != "auto":
        devices.autocast(device, found.precision or "fp32")
    if not isinstance(objects.get("net"), nn.Module):  # a net that is made already came with its own random numbers
        _seed(found.seed or 0)
    module, record = jobs.build_net(found, objects.get("net"), loaded, own_net, found.net or loaded.domain.default_net)
    criterion = jobs.build_loss(found, objects.get("loss"), loaded)
    module, criterion = jobs.moved(module, criterion, device, loaded, found, own_net)
    if found.weights is not None and not names.is_pretrained(found.net):
        weights.load_weights(module, found.weights)
    told: dict[str, Any] | None = None
    more = objects.get("unlabelled", found.unlabelled)
    if more is not None and own_net:
        raise UsageError("unlabelled is for nets of ours, and this one is yours.", fix="leave it out")
    fresh = not own_net and (found.weights is None or names.is_pretrained(found.net))
    if fresh and (rows := loaded.rows("train")) is not None:
        with keeping_generators():
            loaded.domain.begin(module, loaded.parts["train"][0], rows, loaded.target)
            if more is not None:
                told = unlabelled_.tell(loaded, more, module, found)
                assert loaded.more is not None
                loaded.domain.begin(module, *loaded.more, loaded.target)
    jobs.check_contract(module, loaded, criterion, device, found)
    how = objects.get("init") or found.init or "pytorch"
    if how != "pytorch" and found.weights is None:
        initialisers.initialise(module, how, activation=found.net_arg.get("activation", "relu"), seed=found.seed)
    if not own_net and found.net is None:
        found.net, origins["net"] = record["name"], ("inferred", "fits this kind of input")

    facts: dict[str, Any] = {
        "schema": runs_.SCHEMA,
        "lamina": __version__,
        "status": "running",
        "task": loaded.target.name,
        "domain": loaded.domain.name,
        "seed": found.seed,
        "source": {"name": opened.name, "reopen": opened.reopen},
        "command": command or _command(found, opened),
        "net": {**record, "parameters": sum(p.numel() for p in module.parameters())},
        "loss": jobs.code_record(objects.get("loss"), found.loss),
        "optimizer": jobs.code_record(objects.get("optimizer"), found.optimizer),
        "data": {
            "fingerprint": loaded.fingerprint(),
            "groups": _groups_print(opened),
            **{part: loaded.size(part) for part in data.PARTS},
        },
    }
    if told is not None:
        facts["unlabelled"] = told
    job = Job(found, origins, loaded, module, criterion, device, objects.get("optimizer"), watchers, place, facts, screen,
              began)  # fmt: skip
    jobs.fit_to_machine(job)
    facts["numerics"] = jobs.numerics(job)
    if found.penalize is not None:
        penalties.chosen(module, found.penalize)  # a pattern that fits no parameter is said now
    if found.budget is not None and origins.get("epochs", ("",))[0] != "yours":
        jobs.plan_budget(job)
    if found.learning_rate == "find":
        if not job.supervised:
            raise UsageError(
                "learning_rate is 'find', but these batches come from acting: a copy of the net would learn from other ones.",
                fix="set a rate: --learning-rate 1e-3",
            )
        rate = jobs.measured_rate(job)
        found.learning_rate, origins["learning_rate"] = (
            rate,
            ("inferred", "measured by a rising rate on a copy of the net"),
        )
    learning = _learning(job)
    if loaded.aside is not None:
        for index, reason in loaded.aside.reasons.items():  # found on the way here
            loaded.aside.tell(index, reason)
    jobs.read_ahead(job, learning.state.batches)
    jobs.try_batch(job, learning.state.batches)
    jobs.check_strict(job)
    while not files.claim(place):
        if named:
            raise UsageError(f"{place} exists already.", fix="choose another --name")
        stem, _, number = place.name.rpartition("-")
        place = place.with_name(f"{stem}-{int(number) + 1}")
    job.folder = place
    try:
        _write_start(job, learning)
    except BaseException:
        files.remove(place)
        raise
    with files.Lock(place):
        job.screen.log = _logger(place, screen)
        return _go(job, learning, resumed=False)


def _seed(number: int) -> None:
    """Every generator a net may draw from: torch's, numpy's and python's. The caller gets his back in the end."""
    devices.seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def _name_files(recipe: Recipe, own_domain: bool) -> None:
    """Write files that were named by their whole path, so that the run can be resumed from anywhere. To a domain of the
    user's own what is no path may mean anything."""
    for name in ("source", "valid", "test"):
        named = getattr(recipe, name)
        share = name in ("valid", "test") and recipes.share(named) is not None
        if named is None or share or named in sources_.SAMPLES:
            continue
        if own_domain and not Path(named).expanduser().exists():
            continue
        setattr(recipe, name, places.absolute(named))
    if recipe.data_dir is not None and Path(recipe.data_dir).expanduser().exists():
        recipe.data_dir = str(Path(recipe.data_dir).expanduser().absolute())
    if recipe.net and recipe.net.startswith("hf:"):
        recipe.net = f"hf:{Path(recipe.net.removeprefix('hf:')).expanduser().absolute()}"


def _origins(folder: Path, recipe: Recipe) -> dict[str, Origin]:
    """Why each setting of a run is as it is; RunError where its recipe.toml has lost some of them."""
    record = runs_.read_json(folder / "data.json").get("origins", {})
    lost = [name for name in record if getattr(recipe, name) in (None, {})]
    if lost:
        raise RunError(
            f"{folder / 'recipe.toml'} lacks {', '.join(lost)}.", fix="restore it from a copy, or train again"
        )
    return {name: (entry[0], entry[1]) for name, entry in record.items()}


def _write_start(job: Job, learning: _Learning) -> None:
    """Everything a resumed process needs, before the first step; run.json, which makes the folder a run, last."""
    folder, loaded = job.folder, job.data
    files.folder(folder / "checkpoints")
    _checkpoint(job, learning)
    learning.writer.wait()
    records = {what: job.facts[what] for what in ("net", "loss", "optimizer")}
    objects = {
        what: record.get("class") or record["name"]
        for what, record in records.items()
        if (record.get("own") or record.get("object")) and not names.is_own(getattr(job.recipe, what) or "")
    }
    kinds = {}
    for what, kind, room in (("domain", loaded.domain, "domains"), ("task", loaded.target, "targets")):
        own = kind.name not in names.known(room)
        kinds[what] = {
            "name": kind.name,
            "state": kind.state(),
            **(jobs.code_record(kind, None) if own else {"own": False}),
        }
    runs_.write_json(
        folder / "data.json",
        {
            **kinds,
            "source": {"name": loaded.source.name, "about": loaded.source.about},
            "parts": {part: loaded.size(part) for part in data.PARTS},
            "split": loaded.split.how if loaded.split is not None else "as given",
            "findings": [found.state() for found in loaded.findings],
            "origins": {name: list(origin) for name, origin in job.origins.items() if name not in objects},
        },
    )
    loaded.domain.save(folder)
    unlabelled_.save(loaded, folder)
    fingerprints.write(folder, loaded, job.recipe)
    if loaded.split is not None:
        files.write(folder / "splits.csv", splits.csv(loaded.split))
    files.write(folder / "recipe.toml", recipes.text(job.recipe, job.origins, objects))
    runs_.write_json(folder / "run.json", job.facts)


def _logger(folder: Path, screen: Screen) -> Callable[[str], None]:
    def log(words: str) -> None:
        try:
            files.append(folder / "train.log", words)
        except ResourceError as error:  # no reason to stop a training
            screen.log = None
            screen.findings([("warning", f"{error.what} A line of it is lost.", error.fix)])
            screen.log = log

    return log


def _command(recipe: Recipe, opened: sources_.Source) -> str:
    return " ".join(["lamina.train", opened.name])


def _go(job: Job, learning: _Learning, *, resumed: bool) -> Run:
    """From everything decided to a run that is done. Whatever ends it early is written into run.json."""
    try:
        with job.screen, Signals(job.folder) as signals:
            try:
                _story(job, learning, signals, resumed)
            finally:
                learning.writer.close()  # nothing may be written any more when the lock is let go
                files.sweep(job.folder)  # a disk that failed may have kept what was to be deleted
    except BaseException as error:
        if job.facts["status"] == "done":  # and written: only its last words were cut off
            raise
        status = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        reason = str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
            error = Interrupted(f"Stopped. The run is kept in {job.folder}.", fix=f"lamina resume {job.folder}")
        job.facts.update(status=status, reason=reason.splitlines()[0])
        try:
            runs_.write_json(job.folder / "run.json", job.facts)
        except LaminaError as second:  # the disk that failed us: say both, but not to the log, which is on it
            job.screen.log = None
            job.screen.stopped(f"run.json could not be written either: {second.what}")
        raise error
    return Run(job.folder, net=job.net if job.facts["net"].get("own") else None, domain=type(job.data.domain),
               task=type(job.data.target))  # fmt: skip


def _story(job: Job, learning: _Learning, signals: Signals, resumed: bool) -> None:
    job.facts.update(status="running")
    job.facts.pop("reason", None)
    runs_.write_json(job.folder / "run.json", job.facts)
    results.opening(job, resumed)
    loaded_seconds = time.monotonic() - job.began
    files.write(job.folder / "history.jsonl", learning.history.text())

    if not learning.history.stopped:
        signals.patient = True
        _learn(job, learning, signals)
        signals.patient = False
        if signals.received:
            raise signals.answer(f"Stopped after the last step. The run is saved in {job.folder}.")
    results.finish(job, learning.state, learning.history, loaded_seconds)


def _learning(job: Job) -> _Learning:
    """Everything that learns, in one state."""
    recipe = job.recipe
    optimizer = jobs.build_optimizer(job, job.net)
    batches = jobs.batches(job, "train")
    history = History()
    watchers = _watchers(job)
    state = states.TrainState(
        job.net,
        optimizer,
        batches,
        jobs.build_schedule(job, batches),
        devices.scaler(job.device, recipe.precision or "fp32"),
        jobs.build_ema(job),
        parts={"history": history} | {f"watcher-{k}": w for k, w in enumerate(watchers) if hasattr(w, "state_dict")},
    )
    recovery = None
    if recipe.on_divergence != "stop":
        recovery = state.parts["recovery"] = Recovery(state, lambda: jobs.lower_rate(job, state), job.supervised)
    if job.data.aside is not None:
        state.parts["aside"] = job.data.aside
        job.data.aside.tell = functools.partial(_tell_aside, job, state, history)

    def warn(error: LaminaError) -> None:
        words = f"{error.what} The training goes on, and this is tried again."
        job.screen.findings([("warning", words, error.fix)])

    return _Learning(state, history, watchers, Writer(warn), recovery)


def _asked(job: Job, learning: _Learning, watch: Any, progress: engine.Progress) -> Any:
    """What a watcher asks for. One that fails ends the run after its step, which is saved."""
    try:
        return watch(progress)
    except KeyboardInterrupt:  # a signal came while it looked, which is answered at once
        raise
    except Exception as error:
        _checkpoint(job, learning)
        _flush(job, learning)
        if isinstance(error, LaminaError):
            raise
        raise UsageError(
            f"The watcher {jobs.title(watch)} raised {type(error).__name__} after step {progress.step}: {error}. "
            f"The run is saved in {job.folder}.",
            fix=f"mend it, and lamina.resume({str(job.folder)!r}, ..., watchers=[...])",
        ) from error


def _tell_incidents(job: Job, learning: _Learning, events: list[dict[str, Any]]) -> None:
    for event in events:
        job.screen.findings([("warning", event["words"], "")])
        learning.history.tell(learning.state.epoch, learning.state.step, event)


def _sound(job: Job, learning: _Learning) -> None:
    """Before the weights are measured or kept: those that are not finite are given up for the last good ones."""
    if learning.recovery is not None:
        _tell_incidents(job, learning, learning.recovery.sound())


def _tell_step(job: Job, progress: engine.Progress) -> None:
    """Steps that were to be recorded, and are not; a net that was compiled, or is not."""
    facts, why = job.facts.get("step", {}), progress.eager
    if why and (facts.get("recorded") or facts.get("captured")):
        facts.update(recorded=False, captured=False, why=why)
        job.screen.findings([("note", f"steps are eager from here: {why}", "")])
    if progress.compiled != facts.get("compiled", ""):
        facts["compiled"] = progress.compiled
        job.screen.findings([("note", progress.compiled, "")])


def _tell_aside(job: Job, state: states.TrainState, history: History, index: int, reason: str) -> None:
    job.screen.findings([("warning", f"example {index} is set aside: {reason}", "")])
    history.tell(state.epoch, state.step, {"set_aside": index, "reason": reason})


def _watchers(job: Job) -> list[Any]:
    """In the order they are asked after every step."""
    recipe, target = job.recipe, job.data.target
    found: list[Any] = []
    if "valid" in job.data.parts:
        score, better = (f"valid/{target.quick}", target.quick_better) if target.quick else ("valid/loss", "lower")
        if recipe.early_stopping:
            score, better = ("valid/loss", "lower") if job.supervised else (score, better)
            found.append(EarlyStopping(score=score, better=better, patience=recipe.early_stopping))
        else:
            found.append(Best(score=score, better=better))
    if job.supervised:
        job.health = jobs.health(job, job.net)
        found.append(job.health)
    if recipe.budget is not None:
        found.append(TimeLimit(recipe.budget))
    return [*found, *job.watchers, job.screen]


def _shown_net(state: states.TrainState) -> nn.Module:
    """The net that is validated and kept: the average of the weights where there is one."""
    return state.net if state.ema is None else state.ema.module


def _falling(found: dict[str, float], target: Target) -> float:
    """What falls as validation gets better: the loss, or where there is none the quick score, turned round."""
    if "loss" in found:
        return found["loss"]
    return found[target.quick] if target.quick_better == "lower" else -found[target.quick]


def _learn(job: Job, learning: _Learning, signals: Signals) -> None:
    recipe, loaded, state, history = job.recipe, job.data, learning.state, learning.history
    unit, amount = recipes.every(recipe.checkpoint_every or "30s")
    valid = jobs.batches(job, "valid") if "valid" in loaded.parts else None
    unchanged = fingerprints.Watch(loaded, recipe)
    saved_at = time.monotonic()
    epoch_began = time.monotonic()
    if learning.recovery is not None:
        learning.recovery.begin()
    exact = {"exact": True} if recipe.strict else {}  # no option for domains that know none
    measured = job.origins.get("threads", ("",))[0] == "inferred"  # what was asked for stays
    crowd = machine.Crowd(recipe.threads) if measured and recipe.threads else None
    often = [watch for watch in learning.watchers if not getattr(watch, "at_epoch_end", False)]
    alone = _alone(job, state.batches, often)
    for progress in engine.learn(
        job.net,
        state.batches,
        objective=jobs.objective(job),
        epochs=recipe.epochs if recipe.steps is None else None,
        steps=recipe.steps,
        schedule=state.schedule,
        penalty=jobs.penalty(recipe),
        clip_norm=recipe.clip_norm or 0.0,
        clip_value=recipe.clip_value or 0.0,
        accumulate=recipe.accumulate or 1,
        precision=recipe.precision or "fp32",
        ema=state.ema,
        skips=SKIPS if learning.recovery is not None else 0,
        compile=recipe.compile or "auto",
        strict=bool(recipe.strict),
        state=state,
    ):
        if "most" in progress.incident:
            told = {name: progress.incident[name] for name in ("most", "words")}
            _tell_incidents(job, learning, [told])
        progress.untouched = alone and not progress.epoch_end and not progress.incident
        if learning.recovery is not None and (events := learning.recovery(progress)):
            progress.untouched = False
            _tell_incidents(job, learning, events)
        if crowd is not None and (words := crowd(progress.epoch_end)):
            history.tell(progress.epoch, progress.step, {"threads": crowd.threads})
            if job.screen.log is not None:
                job.screen.log(words)

        # Validate.
        if progress.epoch_end:
            _tell_step(job, progress)
            unchanged.look(progress.epoch)
            _sound(job, learning)
            progress.scores = {"train/loss": progress.mean_loss}
            if hasattr(state.batches, "scores"):
                progress.scores.update({f"train/{name}": value for name, value in state.batches.scores().items()})
            if valid is not None:
                net = _shown_net(state)
                with jobs.evaluating(net), keeping_generators():
                    found = loaded.domain.validate(net, valid, loaded.target, job.loss, **exact)
                progress.scores.update({f"valid/{name}": value for name, value in found.items()})
                if state.schedule is not None and hasattr(state.schedule, "observe"):
                    state.schedule.observe(_falling(found, loaded.target))
            now = time.monotonic()
            history.rows.append(
                {
                    "epoch": progress.epoch + 1,
                    "step": progress.step,
                    **progress.scores,
                    "learning_rate": progress.learning_rate,
                    "seconds": round(now - epoch_began, 3),
                }
            )
            epoch_began = now

        # Ask everybody who watches.
        stop = None
        for watch in learning.watchers if progress.epoch_end else often:
            request = _asked(job, learning, watch, progress)
            if request is None:
                continue
            if isinstance(request, Save):
                if request.tag not in learning.tags:
                    asking.check_tag(job.folder, request.tag)
                    learning.tags.add(request.tag)
                copied = states.copy(state, {"score": {k: v for k, v in progress.scores.items() if math.isfinite(v)}})
                learning.writer.give(request.tag, functools.partial(states.write, job.folder / request.tag, copied))
            elif isinstance(request, Log):
                history.tell(progress.epoch, progress.step, request.values)
            elif isinstance(request, Stop):
                stop = stop or request
            else:
                raise UsageError(
                    f"The watcher {jobs.title(watch)} returned a {type(request).__name__}.",
                    expected="Stop(reason), Save(tag), Log(values) or None",
                )
        if progress.epoch_end:
            _tell(job, history)

        # Checkpoint, and stop where somebody wants it.
        learning.writer.look()
        if unit == "steps":
            due = progress.step % max(1, int(amount)) == 0
        elif unit == "epochs":
            due = progress.epoch_end and (progress.epoch + 1) % max(1, int(amount)) == 0
        else:
            due = time.monotonic() - saved_at >= amount and not learning.writer.busy
        if stop is not None:
            history.stopped = stop.reason
            job.screen.stopped(stop.reason)
            break
        if due or signals.received:
            _checkpoint(job, learning)
            progress.untouched = False  # weights that are not finite are given up there
            saved_at = time.monotonic()
        if signals.received:
            _flush(job, learning)
            raise signals.answer(
                f"Stopped after step {state.step} (epoch {progress.epoch + 1}). The run is saved in {job.folder}."
            )
    _checkpoint(job, learning)
    _flush(job, learning)


def _alone(job: Job, batches: Any, often: list[Any]) -> bool:
    """Whether no code of the user's runs between two steps of one epoch. often: the watchers that are asked there."""
    ours = type(batches) is Batches and type(job.data.domain).__module__.startswith("lamina.")
    return ours and job.own_optimizer is None and not any(watch in often for watch in job.watchers)


def _checkpoint(job: Job, learning: _Learning) -> None:
    """A copy of the state, handed to the writer. Where the disk refused the one before, this one is waited for: training
    that two intervals cannot save is stopped."""
    state = learning.state
    if learning.saved == state.step:
        return
    _sound(job, learning)
    _tell(job, learning.history)
    copied = states.copy(state, {"data": job.facts["data"]["fingerprint"], "score": learning.history.scores()})
    refused = learning.writer.give("checkpoints", functools.partial(_write_checkpoint, job.folder, copied))
    learning.saved = state.step
    if refused:
        _flush(job, learning)


def _write_checkpoint(folder: Path, copied: states.Copy) -> None:
    """In the writer's thread."""
    files.flush(folder / "history.jsonl")  # it has all that the checkpoint tells
    place = folder / "checkpoints" / f"step-{copied.about['step']:07d}"
    states.write(place, copied)
    files.check(place)
    states.prune(place.parent, sound=place)


def _flush(job: Job, learning: _Learning) -> None:
    """Until everything is on the disk; ResourceError where the disk does not take it."""
    try:
        learning.writer.wait()
    except (ResourceError, RunError) as error:
        newest = states.newest(job.folder / "checkpoints", lambda words: None)
        raise ResourceError(
            f"{error.what} Training stops after step {learning.state.step}; {newest.name if newest else 'nothing'} is saved.",
            expected=error.expected,
            fix=f"{error.fix or 'mend the disk'}; then go on: lamina resume {job.folder}",
        ) from error


def _tell(job: Job, history: History) -> None:
    try:
        history.add_to(job.folder / "history.jsonl")
    except ResourceError as error:
        job.screen.findings([("warning", f"{error.what} It is tried again with the next entry.", error.fix)])
