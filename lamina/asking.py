"""What was asked for, checked before any data are read.

In: settings and objects as the user gave them. Out: a validated `Recipe`, a folder that is free, an opened source; or one
error that names every mistake. Called by `train`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lamina import augment, data, devices, files, initialisers, losses, mapped, names, optimizers, schedules
from lamina import recipe as recipes
from lamina import run as runs_
from lamina import sources as sources_
from lamina.errors import DataError, ResourceError, UsageError, near
from lamina.recipe import Recipe


def validated(asked: dict[str, Any], objects: dict[str, Any]) -> Recipe:
    """The recipe, or every mistake in it at once: values, keys, names and objects, before any data are read."""
    mistakes = _of_wrong_kind(objects)
    try:
        wanted = recipes.make(**asked)
    except UsageError as error:
        mistakes.append(str(error))
    known: dict[str, list[str]] = {
        "net": names.known("nets"),
        "domain": names.known("domains"),
        "task": names.known("targets"),
        "optimizer": optimizers.names(),
        "schedule": schedules.names(),
        "init": [*initialisers.names(), "pytorch"],
    }
    for what, choices in known.items():
        given = asked.get(what)
        pretrained = what == "net" and names.is_pretrained(given)
        if isinstance(given, str) and not names.is_own(given) and not pretrained:
            plain = given.lower().replace("-", "_")
            if plain not in choices:
                mistakes.append(f"There is no {what} {given!r}: {near(plain, choices)}")
    for what, build in (
        ("augment", augment.make),
        ("device", _named_device),
        ("loss", lambda name: losses.make(name, **asked.get("loss_arg", {}))),
    ):
        if isinstance(asked.get(what), str) and not names.is_own(asked[what]):
            try:
                build(asked[what])
            except UsageError as error:
                mistakes.append(str(error))
    if mistakes:
        raise UsageError("\n".join(mistakes))
    if wanted.compile == "on" and (wanted.accumulate or 1) > 1:
        raise UsageError(
            f"compile is on, and gradients of {wanted.accumulate} batches are added up eagerly.",
            fix="accumulate=1 and a larger batch_size, or compile=auto",
        )
    for what in ("net", "loss", "domain", "task"):
        if names.is_own(getattr(wanted, what) or ""):
            names.own(getattr(wanted, what))
    return wanted


def _named_device(name: str) -> None:
    """A UsageError for a name that is none. Whether the device is here is asked later: a recipe may have travelled."""
    with suppress(ResourceError):
        devices.pick(name)


def _of_wrong_kind(objects: dict[str, Any]) -> list[str]:
    """What was given in the place of a net, a loss, ... and cannot be one."""
    fits: dict[str, tuple[Callable[[Any], bool], str]] = {
        "net": (lambda given: isinstance(given, nn.Module) or callable(given), "an nn.Module, or a class of one"),
        "loss": (callable, "a callable (output, truth) -> 0-d tensor"),
        "optimizer": (lambda given: isinstance(given, torch.optim.Optimizer) or callable(given),
                      "a torch.optim.Optimizer, or a callable (parameters) -> optimizer"),
        "domain": (lambda given: hasattr(given, "encode"), "a class of lamina.domains.base.Domain"),
        "task": (lambda given: hasattr(given, "encode"), "a class of lamina.targets.base.Target"),
    }  # fmt: skip
    return [
        f"The {what} is of the type {type(given).__name__}; it can be {fits[what][1]}, or a name."
        for what, given in objects.items()
        if what in fits and not fits[what][0](given)
    ]


def check_idle(settings: dict[str, Any], objects: dict[str, Any], own_net: bool) -> None:
    """Refuse settings that would do nothing beside the objects they were given with."""
    made = {"net": "net_arg", "loss": "loss_arg"}
    idle = {
        name: f"the {what} is made already" for what, name in made.items() if isinstance(objects.get(what), nn.Module)
    }
    if "optimizer" in objects:
        names_ = ("learning_rate", "weight_decay", "rates", "optimizer_arg")
        idle |= dict.fromkeys(names_, "the optimizer is yours, and has its own")
    if own_net:
        idle["size"] = "the net is yours, and has its own"
    if not settings.get("l1") and not settings.get("l2"):
        idle["penalize"] = "neither l1 nor l2 is asked for"
    if settings.get("weights") is not None:
        idle["init"] = "the weights are read from a file"
    if settings.get("optimizer") == "muon":
        idle["rates"] = "muon has one rate for all matrices"
    if settings.get("steps"):
        idle["epochs"] = "the length is given in steps"
    _refuse_idle(idle, settings)


def check_reading(settings: dict[str, Any], opened: sources_.Source, wanted: Recipe) -> None:
    """Refuse settings that would do nothing for what was opened: each kind of source is read in its own way.

    settings: as they were given, `valid` and `test` among them; a recipe may come from a run on another source."""
    kind, title = opened.train.kind, type(opened.train.inputs).__name__
    words = {part: settings[part] for part in ("valid", "test") if isinstance(settings[part], (str, float))}
    idle = {}
    if isinstance(opened.train.inputs, tuple):
        why = "it is for a Dataset that makes its examples one by one, and these are columns, which are cut at once"
        idle = dict.fromkeys(("workers", "cache", "set_aside"), why)
    else:
        idle["baselines"] = f"simple models learn from columns, and this is a {title}"
    if kind == "dataset" and not wanted.cache:
        idle["memory"] = "nothing is kept of a Dataset without cache"
    if kind in ("loader", "stream"):
        idle["memory"] = f"nothing is kept of a {title}"
        idle["set_aside"] = f"a {title} gives the batches it likes"
        drawn = [part for part, given in words.items() if recipes.share(given)]
        idle |= dict.fromkeys(drawn, f"no share can be drawn from a {title}, which is taken as it comes; give a source")
    if kind == "loader":
        idle |= dict.fromkeys(("workers", "batch_size"), "a DataLoader has its own")
    if opened.valid is not None and opened.test is not None:
        idle["split"] = "all parts are given"
    if "mnist" not in (opened.name, *words.values()):
        idle["data_dir"] = "it says where mnist lies"
    _refuse_idle(idle, settings)


def _refuse_idle(idle: dict[str, str], settings: dict[str, Any]) -> None:
    mistakes = [f"{name} would do nothing: {why}." for name, why in idle.items() if settings.get(name)]
    if mistakes:
        raise UsageError("\n".join(mistakes), fix="leave it out" if len(mistakes) == 1 else "leave them out")


def check_watchers(watchers: Sequence[Any]) -> None:
    for watch in watchers:
        if not callable(watch):
            raise UsageError(
                f"A watcher is of the type {type(watch).__name__}.",
                expected="a callable (progress) -> Stop, Save, Log or None",
            )


def check_tag(folder: Path, tag: str) -> None:
    """A watcher may keep a state under a name of its own, and not over what else is in the run."""
    if Path(tag).name != tag or tag in (".", ".."):
        raise UsageError(f"Save({tag!r}) is not the name of a folder.", expected="a name without slashes")
    if (folder / tag).exists() and not (folder / tag / files.MANIFEST).is_file():
        raise UsageError(f"Save({tag!r}) would replace {folder / tag}.", fix="another name")


def check_validation(recipe: Recipe, there: bool) -> None:
    """Refuse settings that read the scores of a validation split where there is none."""
    asked = {"early_stopping": bool(recipe.early_stopping), "keep=best": recipe.keep == "best",
             "schedule=plateau": recipe.schedule == "plateau"}  # fmt: skip
    needs = [name for name, wanted in asked.items() if wanted]
    if needs and not there:
        raise UsageError(
            f"{' and '.join(needs)} reads the scores of a validation split, and there is none.",
            fix="--valid 0.1, or validation data of your own",
        )


def free_folder(runs: Path, name: str | None, source: Any) -> Path:
    """The folder the run will have; that it can be written is found out now, not after an hour."""
    files.probe(files.folder(runs))
    if name is not None:
        place = runs / name
        if not re.fullmatch(r"(?!\.)[^/\\:]{1,60}", name) or not name.isprintable():
            raise UsageError(
                f"name is {name!r}.",
                expected="the name of a folder: at most 60 visible characters, no slash or colon",
                fix="--runs DIR for the place",
            )
        if place.exists():
            raise UsageError(
                f"{place} exists already.",
                fix=f"choose another --name, delete it, or go on with it: lamina resume {place}",
            )
        return place
    stem = Path(str(source)).stem.lower() if isinstance(source, (str, Path)) else "run"
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem).strip("-") or "run"
    k = 1
    while (runs / f"{stem}-{k}").exists():
        k += 1
    return runs / f"{stem}-{k}"


def open_source(source: Any, wanted: Recipe, objects: dict[str, Any], groups: Any, times: Any) -> sources_.Source:
    with mapped.limited(wanted.memory_bytes):
        return _open_source(source, wanted, objects, groups, times)


def _open_source(source: Any, wanted: Recipe, objects: dict[str, Any], groups: Any, times: Any) -> sources_.Source:
    kind = objects.get("domain", wanted.domain)
    options = runs_.given_sources(wanted)
    options.update({part: objects[part] for part in ("valid", "test") if part in objects})
    if isinstance(source, sources_.Source):
        if idle := [name for name in ("columns", "options") if name in options]:
            what = {"columns": "target, ignore, groups, times or split_column", "options": "source_arg"}
            raise UsageError(f"{' and '.join(what[name] for name in idle)} would do nothing: the source is opened already.",
                             fix="leave it out, or give it to lamina.sources.open")  # fmt: skip
        opened = source
    elif kind is not None:
        domain = data.with_options(data.build("domains", kind, "DOMAIN"), wanted.domain_arg, "domain")
        opened = domain.read(source, **options)
    else:
        opened = sources_.open(source, **options)
    _refuse_one_class(opened, wanted)
    for attribute, column in (("groups", groups), ("times", times)):
        if column is not None:
            column = np.asarray(column)
            if len(column) != opened.train.count:
                raise UsageError(
                    f"{attribute} has {len(column)} entries for {opened.train.count} examples.",
                    fix=f"name a column of the table: {attribute}=NAME" if opened.train.kind == "table" else "",
                )
            setattr(opened.train, attribute, column)
    for part in ("valid", "test"):
        if recipes.share(getattr(wanted, part)) is not None and getattr(opened, part) is not None:
            raise UsageError(
                f"{part} is the share {getattr(wanted, part)}, but {opened.name} has {part} examples of its own.",
                fix=f"leave {part} out, or give a source of training examples only",
            )
    return opened


def _refuse_one_class(opened: sources_.Source, wanted: Recipe) -> None:
    """DataError where the answers are words, and all the same: no split and no number of examples would help."""
    truth = opened.train.truth
    if not isinstance(truth, np.ndarray) or truth.ndim != 1 or truth.dtype.kind not in "UO" or not len(truth):
        return
    if wanted.task in (None, "classes") and (truth == truth[0]).all():
        raise DataError(
            f"All {len(truth):,} examples of {opened.name} are of one class, {str(truth[0])!r}: there is nothing to tell "
            "apart.",
            expected="two classes or more; in a folder, a folder for each",
            fix="give examples of another class",
        )
