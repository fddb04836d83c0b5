"""A run folder, opened: what was trained, how good it is, and the net in use.

In: a folder that `lamina train` wrote. Out: `Run`: its headline, history and scores, predictions of new inputs, and
evaluation on labelled data. Everything that comes after training takes a run; nothing here trains.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lamina import data, devices, documents, evaluate, familiar, files, names, recipe, splits, state, weights
from lamina.domains.base import Domain
from lamina.errors import DataError, LaminaError, RunError, UsageError, near
from lamina.sources import Columns, Examples, Source, delimited
from lamina.targets.base import Answers, Measure, Target

SCHEMA = 1
WEIGHTS = "weights.safetensors"
_RESTORE = "restore it from a copy, or train again"


@dataclass(frozen=True)
class Headline:
    """The score of a run, with its 95 % interval."""

    score: str
    value: float
    low: float | None
    high: float | None
    split: str
    n: int

    def __str__(self) -> str:
        between = "" if self.low is None else f" (95 % interval {self.low:.4f} to {self.high:.4f}, {self.n:,} examples)"
        return f"{self.split} {self.score} {self.value:.4f}{between}"


def read_json(path: Path) -> Any:
    try:
        return documents.parse(path.read_bytes(), path, _RESTORE)
    except FileNotFoundError:
        raise RunError(f"{path} is missing.", expected="a run folder as `lamina train` writes it") from None


@contextmanager
def _sound(place: Path) -> Iterator[None]:
    """Where what a file says is put to use: values that Lamina never wrote are told as damage, whatever they break."""
    try:
        yield
    except Exception as error:
        if isinstance(error, LaminaError) and not isinstance(error, UsageError):
            raise
        raise RunError(f"{place} is damaged: {type(error).__name__}: {error}", fix=_RESTORE) from error


def write_json(path: Path, content: Any) -> None:
    files.write(path, json.dumps(content, indent=1, default=_plain, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON")


def facts(folder: str | Path) -> dict[str, Any]:
    """run.json of a folder, checked."""
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        beside = [p.parent.name for p in folder.parent.glob("*/run.json")] if folder.parent.is_dir() else []
        raise RunError(
            f"{folder} is no run: it has no run.json. {near(folder.name, beside) if beside else ''}".rstrip(),
            expected="a folder that `lamina train` wrote",
        )
    found = read_json(folder / "run.json")
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        version = found.get("lamina") if isinstance(found, dict) else None
        raise RunError(
            f"{folder} was written by Lamina {version or 'of an unknown version'}, run schema "
            f"{found.get('schema') if isinstance(found, dict) else None!r}.",
            expected=f"run schema {SCHEMA}",
            fix="open it with the Lamina that wrote it",
        )
    missing = [name for name in ("status", "task", "seed", "source", "net", "data") if name not in found]
    if missing:
        raise RunError(f"{folder / 'run.json'} is damaged: it lacks {', '.join(missing)}.", fix=_RESTORE)
    kinds = {"status": str, "task": str, "seed": int, "source": dict, "net": dict, "data": dict}
    odd = [name for name, kind in kinds.items() if not isinstance(found[name], kind)]
    if odd := odd + [
        name for name in ("headline", "weights", "familiar") if not isinstance(found.get(name) or {}, dict)
    ]:
        raise RunError(f"{folder / 'run.json'} is damaged: {', '.join(odd)} in it is of another kind.", fix=_RESTORE)
    return found


def stored_recipe(folder: Path) -> recipe.Recipe:
    """recipe.toml of a run."""
    try:
        stored = recipe.read(folder / "recipe.toml")
        return recipe.make(**{name: entry for name, entry in stored.items() if not str(entry).endswith(recipe.GIVEN)})
    except UsageError as error:
        raise RunError(f"{folder / 'recipe.toml'} cannot be used: {error.what}", fix=_RESTORE) from error


def stored_split(folder: Path) -> splits.Split | None:
    """splits.csv of a run; None where its parts were given apart."""
    place = folder / "splits.csv"
    try:
        return splits.from_csv(place.read_text(encoding="utf-8")) if place.is_file() else None
    except (DataError, UnicodeDecodeError) as error:
        raise RunError(f"{place} is damaged: {error}", fix=_RESTORE) from error


def own_code(asked: Any, record: dict[str, Any] | None, what: str) -> Any:
    """The user's own object for a run that was trained with one: only from what he names again, never by itself."""
    if asked is not None:
        if isinstance(asked, str) and names.is_own(asked):
            file = Path(asked.rpartition(":")[0]).expanduser()
            if record and record.get("sha256") and file.is_file() and names.file_hash(file) != record["sha256"]:
                raise RunError(
                    f"{file} is not the file the run was trained with: its SHA-256 differs.",
                    fix=f"give the original file, or pass the {what} itself from Python",
                )
            return names.own(asked)
        return asked
    if record and record.get("own"):
        place, title = record.get("file"), record.get("class")
        python = f"from Python: lamina.{'resume' if what in ('loss', 'optimizer') else 'load'}(run, {what}=...)"
        if place is None:
            raise RunError(
                f"The {what} of this run was an object of yours ({title}), and objects are not stored.",
                fix=f"give it again {python}",
            )
        raise RunError(
            f"The {what} of this run is code of yours ({title} in {place}), and code is run only when you name it.",
            fix=f"--{what} {shlex.quote(f'{place}:{title}')}, or {python}",
        )
    return None


def require_own(given: dict[str, Any], facts: dict[str, Any]) -> None:
    """Say in one message which code of the user's a run needs and was not given again."""
    refused = []
    for what, thing in given.items():
        if thing is None:
            try:
                own_code(None, facts.get(what), what)
            except RunError as error:
                refused.append(error)
    if refused:
        raise RunError("\n".join(error.what for error in refused), fix="\n     ".join(error.fix for error in refused))


def domain_and_target(folder: Path, domain: Any = None, task: Any = None) -> tuple[Domain, Target]:
    """What data.json says, built again with what was learned."""
    record = read_json(folder / "data.json")
    built = []
    for room, asked, attribute, what in (("domains", domain, "DOMAIN", "domain"), ("targets", task, "TARGET", "task")):
        with _sound(folder / "data.json"):
            entry = dict(record[what])
        own = own_code(asked, entry, what)
        with _sound(folder / "data.json"):
            kind = own if own is not None else getattr(names.module(room, entry["name"]), attribute)
            kind = kind if isinstance(kind, type) else type(kind)
            built.append(kind(**entry["state"]))
            built[-1].open(folder)
            if own is None:
                built[-1].prepare() if what == "domain" else built[-1].measures()  # what the state is for
    return built[0], built[1]


def build_net(record: dict[str, Any], domain: Domain, target: Target, asked: Any = None) -> nn.Module:
    """The net of a run, with fresh weights."""
    own = own_code(asked, record, "net")
    if own is None:
        return domain.net(target, record.get("size") or "small", record["name"], **record.get("arguments", {}))
    return own(**record.get("arguments", {})) if not isinstance(own, nn.Module) else own


class Run:
    """A run folder. `load` opens one; `train` gives the one it made."""

    def __init__(self, folder: str | Path, *, net: Any = None, domain: Any = None, task: Any = None):
        self.folder = Path(folder)
        self.facts = facts(self.folder)
        self._net, self._domain, self._task = net, domain, task
        self._built: nn.Module | None = None
        self._known: familiar.Familiar | None = None
        self._strict: bool | None = None
        self._kinds: tuple[Domain, Target] | None = None

    def __repr__(self) -> str:
        score = self.headline if self.facts.get("headline") else "no score"
        return f"Run({str(self.folder)!r}, {self.facts['status']}, {score})"

    @property
    def headline(self) -> Headline:
        found = self.facts.get("headline")
        if not found:
            if self.facts["status"] == "done":
                raise RunError(f"{self.folder} has no score: no examples were held out.",
                               fix="run.evaluate(DATA) with others than it learned from, or train with test=...")  # fmt: skip
            raise RunError(f"{self.folder} has no score: its status is {self.facts['status']!r}.",
                           fix=f"lamina resume {self.folder}")  # fmt: skip
        with _sound(self.folder / "run.json"):
            made = Headline(**{name: found[name] for name in ("score", "value", "low", "high", "split", "n")})
            str(made)  # that its numbers are numbers
            return made

    @property
    def history(self) -> list[dict[str, Any]]:
        """An entry an epoch, and an event."""
        place = self.folder / "history.jsonl"
        if not place.is_file():
            raise RunError(f"{place} is missing.", expected=f"the run in {self.folder.absolute()}", fix=_RESTORE)
        return [documents.parse(line, place, _RESTORE) for line in place.read_bytes().splitlines()]

    @property
    def scores(self) -> list[dict[str, Any]]:
        with _sound(self.folder / "scores.json"):
            return list(read_json(self.folder / "scores.json")["scores"])

    @property
    def domain(self) -> Domain:
        self._kinds = self._kinds or domain_and_target(self.folder, self._domain, self._task)
        return self._kinds[0]

    @property
    def target(self) -> Target:
        self._kinds = self._kinds or domain_and_target(self.folder, self._domain, self._task)
        return self._kinds[1]

    @functools.cached_property
    def recipe(self) -> recipe.Recipe:
        return stored_recipe(self.folder)

    @property
    def net(self) -> nn.Module:
        """The trained net, in evaluation mode, on the CPU: a plain `nn.Module` that takes what `prepare` gives."""
        if self._built is None:
            given, how = self.weights(), (self.facts["net"], self.domain, self.target, self._net)
            if self.facts["net"].get("own") or self._net is not None:
                net = build_net(*how)
            else:
                with _sound(self.folder / "run.json"), weights.Bounded(given):
                    net = build_net(*how)
            weights.load_exactly(net, given)
            self._built = net.eval()
        return self._built

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights the run ended with; of a run that has not ended, those of its newest checkpoint."""
        place = self.folder / WEIGHTS
        if place.is_file():
            wanted = (self.facts.get("weights") or {}).get("sha256")
            if wanted and hashlib.sha256(place.read_bytes()).hexdigest() != wanted:
                raise RunError(f"{place} is damaged: its SHA-256 is not that of run.json.", fix=_RESTORE)
            return weights.read_weights(place)
        if self.facts["status"] == "done":
            raise RunError(f"{place} is missing.", fix=_RESTORE)
        newest = state.newest(self.folder / "checkpoints", lambda words: None)
        if newest is None:
            raise RunError(f"{self.folder} has no weights yet.", fix=f"lamina resume {self.folder}")
        return state.read(newest)[0]

    def _options(self, device: str, batch_size: int | None) -> tuple[nn.Module, dict[str, Any]]:
        place = devices.pick(device)
        options: dict[str, Any] = (
            {"device": place} if batch_size is None else {"device": place, "batch_size": batch_size}
        )
        if self._strict is None:
            self._strict = bool(self.recipe.strict)
        return self.net.to(place), {**options, "exact": True} if self._strict else options

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A file of inputs -> raw inputs and what each is called; read as the run's own data were."""
        asked = self.recipe
        known = [*(asked.target or ()), *(asked.ignore or ()), asked.groups, asked.times, asked.split_column]
        with delimited.read_as(asked.source_arg, [name for name in known if name]):
            return self.domain.open_inputs(path)

    def predict(
        self, inputs: Any, *, device: str = "cpu", batch_size: int | None = None, unlike: bool = True
    ) -> Answers:
        """Answers for raw inputs (N, ...), or for a file of them: labels or numbers, confidence, probabilities, and whether
        each input is unlike those the net has learned from (see `lamina.familiar`).

        batch_size: examples at a time; without it, as many as the net answers fastest. unlike: without it nobody looks
        whether inputs are unlike, which for a small net takes half as long as the answers.
        """
        if isinstance(inputs, (str, Path)):
            inputs = self.open_inputs(str(inputs))[0]
        net, options = self._options(device, batch_size)
        known = self._familiar(net) if unlike else None
        with self._used():
            if known is None:
                return self.target.given(self.domain.predict(net, inputs, self.target, **options))
            watched = familiar.Watched(net, known.to(options["device"])).eval()
            encoded = data.Encoded(self.domain.encode(inputs))
            output, strange = watched.apart(self.domain.ask(watched, encoded, None, **options)[0])
            unknown = self.domain.unknown(encoded.inputs)
            if unknown is not None:
                strange |= unknown > self.facts["familiar"].get("unknown", 1.0)
            return self.target.given(replace(self.target.decode(output), unlike=strange))

    def _familiar(self, net: nn.Module) -> familiar.Familiar | None:
        """What the net knows, where that was measured when the run ended."""
        record = self.facts.get("familiar") or {}
        if self._known is None and "file" in record:
            place = self.folder / familiar.FILE
            if not place.is_file() or hashlib.sha256(place.read_bytes()).hexdigest() != record.get("sha256"):
                what = "is damaged: its SHA-256 is not that of run.json" if place.is_file() else "is missing"
                raise RunError(f"{place} {what}.", fix=_RESTORE)
            with _sound(self.folder / "run.json"):
                tensors = weights.read_weights(place)
                if "least" not in tensors:
                    warnings.warn(
                        f"{place} is of an earlier version, which looked at inputs in another way: whether they are unlike "
                        "those learned from is not told. Train again for that.",
                        stacklevel=4,
                    )
                    return None
                self._known = familiar.Familiar(list(record["layers"]), [int(dim) for dim in record["dims"]], tensors)
                for name in self._known.layers:
                    net.get_submodule(name)
        return self._known

    def verify(self, one: Any, other: Any, *, device: str = "cpu") -> tuple[np.ndarray, np.ndarray | None]:
        """Whether two inputs are of one person, pair by pair: (similarity (N,), a cosine; the same or not (N,), None where
        the run had no validation split to choose a threshold on). one, other: inputs (N, ...) or files, of people that the
        run need not know. Of runs with task="embedding"."""
        self._of_likeness("verify")
        return self.target.compare(self._likeness(one, device), self._likeness(other, device))  # type: ignore[attr-defined]

    def enroll(self, person: str, inputs: Any, *, keep: bool = True, device: str = "cpu") -> None:
        """Make a person known without training: inputs (N, ...), or a file or folder of them, go into the gallery, and
        with `keep` into the run's folder. Of runs with task="embedding"."""
        self._of_likeness("enroll")
        ids = None
        if isinstance(inputs, (str, Path)):
            inputs, ids = self.open_inputs(str(inputs))
        found = self._likeness(inputs, device)
        called = [f"{person} {k + 1}" for k in range(len(found))] if ids is None else ids
        target: Any = self.target
        table = torch.from_numpy(found.embedding)
        target.gallery = target.gallery.with_(table, np.array([person] * len(found)), np.array(called))
        if keep:
            target.save(self.folder)

    def _likeness(self, inputs: Any, device: str) -> Any:
        """Answers for inputs or a file of them, as the target decodes them."""
        if isinstance(inputs, (str, Path)):
            inputs = self.open_inputs(str(inputs))[0]
        net, options = self._options(device, None)
        with self._used():
            return self.domain.predict(net, inputs, self.target, **options)

    def _of_likeness(self, what: str) -> None:
        if getattr(self.target, "gallery", None) is None:
            raise UsageError(
                f"{self.folder} cannot {what} anybody: it learned {self.target.name}, not an embedding.",
                fix="train with task='embedding'",
            )

    @contextmanager
    def _used(self) -> Iterator[None]:
        """What goes wrong in code of ours, in words: these inputs may be to blame, or numbers in data.json."""
        try:
            yield
        except (LaminaError, MemoryError):
            raise
        except Exception as error:
            if self.facts["net"].get("own") or self._net or self._domain or self._task:
                raise
            raise RunError(
                f"{self.folder} has no answer to these inputs: {type(error).__name__}: {error}",
                fix="if it has none to those it was trained on, data.json is damaged: restore it from a copy",
            ) from error

    def reload(self, source: Any = None) -> data.Data:
        """The data of the run, as they were split and fitted then."""
        asked = self.recipe
        if source is None:
            if self.facts.get("source", {}).get("reopen") is None:
                raise RunError(
                    f"The data of {self.folder} were in memory and are gone.",
                    fix="give them again: run.evaluate((x, y)), or lamina.resume(run, (x, y), ...)",
                )
            source = asked.source
        if not isinstance(source, Source):
            source = self.domain.read(source, **given_sources(asked))
        loaded, _ = data.load(asked, source, split=stored_split(self.folder), fitted=(self.domain, self.target),
                              loss=self.target.loss(), own_net=self.facts["net"]["own"])  # fmt: skip
        if loaded.fingerprint() != self.facts["data"]["fingerprint"]:
            raise RunError(
                f"The data are not those {self.folder} was trained on: their SHA-256 differs.",
                fix="give the data as they were, or evaluate on these: run.evaluate(source)",
            )
        return loaded

    def answers(self, part: str = "test", source: Any = None, **options: Any) -> tuple[np.ndarray, Answers, np.ndarray]:
        """(truth, answers, row numbers) of a part of the run's own data, or of labelled data given."""
        net, device = self._options(options.get("device", "cpu"), options.get("batch_size"))
        with self._used():
            return self._asked(net, part, source, device)

    def _asked(
        self, net: nn.Module, part: str, source: Any, device: dict[str, Any]
    ) -> tuple[np.ndarray, Answers, np.ndarray]:
        if source is None:
            return held_out(net, self.reload(), part, **device)
        given = self.domain.take(self.domain.read(source, **reading(self.recipe)))
        for finding in given.findings:
            if finding.severity == "warning":
                warnings.warn(finding.told()[1], stacklevel=4)
        examples = _of_known_classes(given.test or given.train, self.target)
        inputs = self.domain.encode(examples.inputs)
        known = examples.truth is not None and not self.target.from_inputs
        column = self.target.encode(examples.truth) if known else None
        encoded = data.Encoded(inputs, column, None if isinstance(inputs, tuple) else self.target.encode)
        return _answers(net, self.domain, self.target, encoded, None, **device)

    def evaluate(
        self, source: Any = None, *, part: str = "test", device: str = "cpu", groups: Any = None
    ) -> list[dict[str, Any]]:
        """Scores with 95 % intervals, on the held-out split or on labelled data given: (x, y), a path or a Dataset.

        groups (N,): who belongs together among the examples given, or among all of the run's own; those that a run was
        trained with must be given again, since intervals that leave them out would be too narrow.
        """
        drawn = source is None and (part == "train" or recipe.share(getattr(self.recipe, part, None)) is not None)
        if drawn and groups is None and self.facts["data"].get("groups") is not None:
            raise RunError(
                f"{self.folder} was trained with groups, which are not stored.",
                fix="run.evaluate(groups=...) from Python; what the training measured is in scores.json",
            )
        if isinstance(source, (str, Path)) and str(source) in (self.recipe.source, self.facts["source"]["name"]):
            warnings.warn(
                f"{source} is what {self.folder} was trained on: unless it has a test part of its own, these scores "
                "include training examples. Without a source the held-out ones are measured.",
                stacklevel=2,
            )
        truth, found, numbers = self.answers(part, source, device=device)
        of_rows = None
        if groups is not None and (drawn or source is not None):
            of_rows = np.asarray(groups)
            if (len(of_rows) != len(found)) if source is not None else (len(of_rows) <= numbers.max()):
                raise UsageError(f"groups has {len(of_rows)} entries.", expected="one for each example")
            of_rows = of_rows[numbers]
        split = part if source is None else "given"
        labels = getattr(self.target, "labels", None) or None
        measures = self.target.measures()
        return evaluate.scores(
            measures, truth, found, split=split, seed=self.facts["seed"], groups=of_rows, labels=labels
        )

    def save(self, path: str | Path) -> Path:
        """The trained weights in a file: `net.pth` in PyTorch's format, or `net.safetensors`."""
        weights.save_weights(self.net, path)
        return Path(path)


def load(folder: str | Path, *, net: Any = None, domain: Any = None, task: Any = None) -> Run:
    """Open a run. An own net, domain or task is code: it must be given again, as an object, a class or FILE.py:NAME."""
    run = Run(folder, net=net, domain=domain, task=task)
    record = run.facts.get("net") or {}
    if net is None and record.get("own"):
        own_code(None, record, "net")
    return run


def given_sources(asked: recipe.Recipe) -> dict[str, Any]:
    """Validation and test sources that were named, and how sources are read: what `sources.open` takes."""
    found: dict[str, Any] = reading(asked)
    if asked.data_dir is not None:
        found["data_dir"] = asked.data_dir
    for part in ("valid", "test"):
        named = getattr(asked, part)
        if named is not None and recipe.share(named) is None:
            found[part] = named
    return found


def reading(asked: recipe.Recipe) -> dict[str, Any]:
    """How a source is read, whichever part it is: what `sources.open` takes."""
    target = None if asked.target is None else tuple(name for name in asked.target if name != "none")
    if target is None and asked.task == "clusters":
        target = ()
    columns = Columns(target, tuple(asked.ignore or ()), asked.groups, asked.times, asked.split_column)
    found: dict[str, Any] = {} if columns == Columns() else {"columns": columns}
    return {**found, "options": asked.source_arg} if asked.source_arg else found


def held_out(
    net: nn.Module, loaded: data.Data, part: str, rows: np.ndarray | None = None, **options: Any
) -> tuple[np.ndarray, Answers, np.ndarray]:
    """(truth, answers, row numbers) of one part of data, or of some `rows` of it."""
    if part not in loaded.parts:
        raise UsageError(f"There is no {part} split: {near(part, loaded.parts)}")
    encoded, all_rows = loaded.parts[part]
    return _answers(net, loaded.domain, loaded.target, encoded, all_rows if rows is None else rows, **options)


def _answers(
    net: nn.Module, domain: Domain, target: Target, encoded: data.Encoded, rows: np.ndarray | None, **options: Any
) -> tuple[np.ndarray, Answers, np.ndarray]:
    found, truth = domain.answers(net, encoded, target, rows, **options)
    if truth is None and target.needs_truth:
        raise DataError("These examples have no answers to compare with.", expected="(inputs, answers)")
    people = np.empty((len(found), 0)) if truth is None else target.people(truth)  # of nothing, for each
    if encoded.aside is not None and rows is not None:
        rows = encoded.aside.without(rows)
    return people, found, np.arange(len(found)) if rows is None else rows


def _of_known_classes(examples: Examples, target: Target) -> Examples:
    """Without the examples of classes that the target does not know, where it knows others: they are warned of."""
    values = getattr(target, "values", None)
    if not values or examples.truth is None or not isinstance(examples.inputs, tuple) or target.name != "classes":
        return examples
    truth = np.asarray(examples.truth).reshape(len(examples.truth), -1)[:, 0]
    words = truth.dtype.kind not in "fiub" or not all(isinstance(value, (int, float)) for value in values)
    known = np.isin(truth.astype(str), [str(value) for value in values]) if words else np.isin(truth, values)
    if known.all() or not known.any():
        return examples
    new, counts = np.unique(truth[~known].astype(str), return_counts=True)
    listed = ", ".join(f"{label!r} ({count:,})" for label, count in zip(new[:5].tolist(), counts, strict=False))
    warnings.warn(
        f"{(~known).sum():,} of {len(known):,} examples are of classes the run has never seen: {listed}"
        f"{' and others' if len(new) > 5 else ''}. It cannot be right about them; the scores are of the other "
        f"{known.sum():,}.",
        stacklevel=5,
    )
    kept = {name: None if (column := getattr(examples, name)) is None else np.asarray(column)[known]
            for name in ("truth", "ids", "groups", "times")}  # fmt: skip
    return replace(examples, inputs=tuple(column[known] for column in examples.inputs), **kept)  # type: ignore[arg-type]


def predictions_csv(
    target: Target, found: Answers, ids: Iterable[Any], truth: np.ndarray | None = None, name: str = "id",
    broken: Mapping[int, str] | None = None, errors: bool = False,
) -> str:  # fmt: skip
    """predictions.csv: id, truth where it is known, prediction, confidence; unlike, where that is known, as true or false.

    broken: by their place among the ids, the inputs that have no answer, and why: their cells are empty, and a column
    `error` says it, which is there if there are any, or with errors=True.
    """
    errors = errors or bool(broken)
    columns: dict[str, Any] = {}
    if truth is not None and truth.size:
        columns["truth"] = target.written(truth)
    columns.update(_columns(target, found))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name, *columns, *(["error"] if errors else [])])
    rows = zip(*map(_cells, columns.values()), strict=True)
    for k, called in enumerate(_cells(ids)):
        if broken and k in broken:
            writer.writerow([called, *[""] * len(columns), _cell(broken[k])])
        else:
            writer.writerow([called, *next(rows), *([""] if errors else [])])
    return out.getvalue()


def _columns(target: Target, found: Answers) -> dict[str, Any]:
    columns = dict(target.columns(found))
    return columns if found.unlike is None else {**columns, "unlike": found.unlike}


def predictions_jsonl(
    target: Target, found: Answers, ids: Iterable[Any], broken: Mapping[int, str] | None = None
) -> str:
    """A JSON object a line: id, prediction, confidence, unlike, and the probability of each class; or id and error."""
    columns = _columns(target, found)
    lines = []
    rows = enumerate(zip(*columns.values(), strict=True))
    for place, called in enumerate(ids):
        entry: dict[str, Any] = {"id": called}
        if broken and place in broken:
            entry["error"] = broken[place]
        else:
            k, row = next(rows)
            for key, cell in zip(columns, row, strict=True):
                entry[key] = _plain(cell) if isinstance(cell, (np.generic, np.ndarray)) else cell
            if found.probabilities is not None and getattr(target, "labels", None):
                entry["probabilities"] = dict(zip(target.labels, found.probabilities[k].tolist(), strict=True))
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines)


def shared_predictions(one: Run, other: Run) -> tuple[np.ndarray, Answers, Answers, Measure]:
    """(truth, answers of one, answers of the other, headline measure) on the held-out examples both runs have."""
    tables = []
    for run in (one, other):
        place = run.folder / "predictions.csv"
        if not place.is_file():
            raise RunError(f"{place} is missing.", fix=f"lamina resume {run.folder}")
        with open(place, encoding="utf-8", newline="") as file:
            tables.append({row["id"]: row for row in csv.DictReader(file)})
    if one.facts["source"]["name"] != other.facts["source"]["name"] or one.facts["task"] != other.facts["task"]:
        raise UsageError(
            f"{one.folder} learned {one.facts['task']} of {one.facts['source']['name']}, {other.folder} "
            f"{other.facts['task']} of {other.facts['source']['name']}.",
            expected="runs on the same data",
        )
    ids = [name for name in tables[0] if name in tables[1]]
    if not ids or "truth" not in tables[0][ids[0]] or "prediction" not in tables[0][ids[0]]:
        raise UsageError(
            "The two runs share no held-out example.", fix="train both with the same --seed or the same test data"
        )
    if any(tables[0][name]["truth"] != tables[1][name]["truth"] for name in ids):
        raise UsageError("The two runs have different answers for the same examples.", expected="runs on the same data")
    numeric = one.facts["task"] == "numbers"

    def column(k: int, name: str) -> np.ndarray:
        found = np.array([tables[k][key][name] for key in ids])
        return found.astype(float) if numeric else found

    return (
        column(0, "truth"),
        Answers(column(0, "prediction")),
        Answers(column(1, "prediction")),
        one.target.measures()[0],
    )


def _cells(column: Iterable[Any]) -> list[Any]:
    plain = isinstance(column, np.ndarray) and column.dtype.kind in "fiubOU"  # whose numbers Python has as well
    return list(map(_cell, column.tolist() if plain else column))  # type: ignore[attr-defined]


_FORMULA = frozenset("=+-@\t\r\n＝＋－＠")  # the wide ones in Japan


def _cell(value: Any) -> Any:
    """Numbers to seven digits, true and false; text that a spreadsheet would run as a formula gets an apostrophe."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.7g}"
    if isinstance(value, str) and value[:1] in _FORMULA:
        return value if recipe.share(value) is not None else "'" + value  # a number is none, with its sign
    return value
