"""Source -> examples that are split, fitted and encoded: the first half of the way, the same for training and evaluation.

In: a source as the user wrote it, and what he asked for. Out: `Data`: the domain and the target chosen (with the reason),
encoded examples, and which of them are for training, validation and test. Called by training and by `Run`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset

from lamina import checks, findings, mapped, names, splits, views
from lamina.batches import keeping_generators, unpack
from lamina.batches.aside import SHARE, SetAside, reason
from lamina.domains.base import Domain, Encoded
from lamina.errors import DataError, UsageError, near, out_of_memory
from lamina.joined import Joined
from lamina.recipe import Recipe, share
from lamina.sources import Examples, Source
from lamina.targets.base import Target, bare

PARTS = ("train", "valid", "test")
_NUMBER_LOSSES = ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "PoissonNLLLoss", "GaussianNLLLoss",
                  "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss", "gaussian_nll_loss")  # fmt: skip
_CLASS_LOSSES = ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss", "cross_entropy", "nll_loss", "multi_margin_loss")
_BINARY_LOSSES = ("BCEWithLogitsLoss", "BCELoss", "binary_cross_entropy_with_logits", "binary_cross_entropy")


@dataclass
class Data:
    """Examples ready for the loader. `parts` maps train, valid, test to (examples, rows of them or None for all)."""

    source: Source
    domain: Domain
    target: Target
    why: dict[str, str]  # how domain and task were found
    parts: dict[str, tuple[Encoded, np.ndarray | None]]
    split: splits.Split | None = None  # rows of the pooled table; None where parts are separate
    findings: list[findings.Finding] = field(default_factory=list)
    more: tuple[Encoded, np.ndarray] | None = None  # to learn from in place of "train": with what was told

    @property
    def aside(self) -> SetAside | None:
        """The examples of a Dataset that could not be used; None for columns and loaders."""
        return self.parts["train"][0].aside if "train" in self.parts else None

    def rows(self, part: str) -> np.ndarray | None:
        return self.parts[part][1]

    def size(self, part: str) -> int | None:
        """Examples in a part, where it can be known."""
        if part not in self.parts:
            return 0
        encoded, rows = self.parts[part]
        if rows is not None:
            return len(rows)
        try:
            inputs = encoded.inputs
            if isinstance(inputs, DataLoader):
                return len(inputs.dataset)  # type: ignore[arg-type]
            return len(inputs[0]) if isinstance(inputs, tuple) else len(inputs)
        except TypeError:
            return None

    def called(self, numbers: np.ndarray) -> list[str]:
        """What a person calls some rows: their names, where the source has them, else their numbers."""
        ids = _ids(self.source)
        named = numbers if self.split is None or ids is None else ids[numbers]
        return [str(name) for name in named]

    def truth(self, part: str) -> Tensor | None:
        """Encoded answers of a part, where they are columns."""
        encoded, rows = self.parts[part]
        if encoded.truth is None:
            return None
        return encoded.truth if rows is None else encoded.truth[torch.from_numpy(rows)]

    @functools.cached_property
    def near(self) -> Tensor | None:
        """Of every row the training rows that are nearest as they are, int64 (N, k); None where near does not mean alike.
        Rows of the test part are not looked at."""
        encoded, train = self.parts["train"]
        table = None if train is None else self.domain.plain(encoded.inputs, train, "neighbours")
        if train is None or table is None:
            return None
        valid = self.rows("valid") if "valid" in self.parts else None
        more = [] if valid is None else [self.domain.plain(encoded.inputs, valid, "neighbours")]
        points = views.points(table, *more, dense=False)
        found = np.zeros((len(encoded.inputs[0]), min(views.NEAR, len(train) - 1)), np.int64)
        found[train] = train[views.neighbours(points[0])]
        if valid is not None:
            found[valid] = train[views.neighbours(points[0], points[1])[:, : found.shape[1]]]
        return torch.from_numpy(found)

    def fingerprint(self) -> str:
        """SHA-256 of the encoded columns, the answers and the classes: another hash, other data."""
        state, last = self.target.state(), self.target.learned_last
        digest = hashlib.sha256(repr({name: value for name, value in state.items() if name not in last}).encode())
        for part in PARTS:
            if part not in self.parts:
                continue
            encoded, rows = self.parts[part]
            columns = encoded.inputs if isinstance(encoded.inputs, tuple) else ()
            if part == "train" or rows is None:  # parts of one table share its columns
                for column in (*columns, *(() if encoded.truth is None else (encoded.truth,))):
                    digest.update(str((tuple(column.shape), column.dtype)).encode())
                    for piece in column.parts if isinstance(column, Joined) else [column]:
                        digest.update(np.ascontiguousarray(piece.numpy()).data)
            digest.update(b"" if rows is None else np.ascontiguousarray(rows).data)
            digest.update(f"{part} {self.size(part)}".encode())
        return digest.hexdigest()


def truths(dataset: Any, bad: dict[int, str] | None = None, first: int = 0) -> np.ndarray:
    """All answers of a Dataset: from its `targets` or `labels` where its items carry those, else by reading every item.

    bad: takes the reason for each item that cannot be read, which then has the answer of another; without it, the first
    one raises DataError. first: the number of its first item among all.
    """
    if not hasattr(dataset, "__getitem__"):
        raise UsageError(f"A {type(dataset).__name__} cannot be read example by example.", expected="a Dataset")
    if isinstance(dataset, ConcatDataset):
        starts = [first, *(first + end for end in dataset.cumulative_sizes)]
        return np.concatenate([truths(part, bad, start) for part, start in zip(dataset.datasets, starts, strict=False)])
    with keeping_generators():
        for name in ("targets", "labels"):
            column = getattr(dataset, name, None)
            if hasattr(column, "__len__") and len(column) == len(dataset):  # type: ignore[arg-type]
                column = column.numpy(force=True) if isinstance(column, Tensor) else np.asarray(column)
                if column.dtype == object:
                    continue
                some = np.unique(column, axis=0, return_index=True)[1][:10]  # a transform would give others than listed
                if all(_answer_is(dataset, int(k), column[k], bad, first) for k in some):
                    return column
        found: list[Any] = []
        for k in range(len(dataset)):
            try:
                item = dataset[k]
                if item is None:
                    raise TypeError("it is None")
            except Exception as error:
                if bad is None or out_of_memory(error):
                    raise DataError(
                        f"Example {first + k} of the Dataset could not be read: {type(error).__name__}: {error}",
                        fix="mend or leave out this example",
                    ) from error
                bad[first + k] = reason(error)
                found.append(None)
                continue
            _, truth = unpack(item)
            if truth is None:
                raise DataError(f"Item {k} of the Dataset has no answer.", expected="(input, answer)")
            found.append(np.asarray(truth))
    other = next((truth for truth in found if truth is not None), None)
    if other is None:
        raise DataError(f"No example of the Dataset could be read: {(bad or {}).get(first, 'it is empty')}.")
    return np.stack([other if truth is None else truth for truth in found])


def _answer_is(dataset: Any, k: int, listed: Any, bad: dict[int, str] | None, first: int) -> bool:
    """Whether an item's answer is the listed one. One that cannot be read does not speak against the list."""
    try:
        return np.array_equal(np.asarray(unpack(dataset[k])[1]), listed)
    except Exception as error:
        if bad is None or out_of_memory(error):
            return False
        bad[first + k] = reason(error)
        return True


def _truths_of_batches(batches: Any, most: int = 200_000) -> np.ndarray:
    """Answers of a loader or a stream, by walking it once (up to `most` examples)."""
    found, count = [], 0
    with keeping_generators():
        for item in batches:
            truth = unpack(item)[1]
            if truth is None:
                raise DataError("The loader's batches have no answers.", expected="batches of (x, y)")
            found.append(np.asarray(truth))
            count += len(found[-1])
            if count >= most:
                break
    if not found:
        raise DataError("The loader gave no batch.", expected="at least one batch of (x, y)")
    return np.concatenate(found)


def build(room: str, asked: Any, attribute: str) -> Any:
    """A domain or target from a name, FILE.py:CLASS, a class, or an object as it is."""
    if isinstance(asked, str):
        asked = names.own(asked) if names.is_own(asked) else getattr(names.module(room, asked), attribute)
    return asked() if isinstance(asked, type) else asked


def with_options(kind: Any, options: dict[str, Any], what: str) -> Any:
    """A domain or target with some of its fields set as asked."""
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [name for name in options if name not in known]
    if unknown:
        words = "\n".join(f"The {what} {kind.name!r} has no option {name!r}: {near(name, known)}" for name in unknown)
        raise UsageError(words, fix=f"--{what}-arg NAME=VALUE")
    return dataclasses.replace(kind, **options) if options else kind


def choose_domain(examples: Examples, asked: Any, *, own_net: bool) -> tuple[Domain, str]:
    if asked is not None:
        return build("domains", asked, "DOMAIN"), "yours"
    candidates = [names.module("domains", name).DOMAIN for name in names.known("domains")]
    if own_net and examples.kind == "arrays":  # what a user's own net is given has the shape he gave it
        candidates = [kind for kind in candidates if kind.name == "arrays"]
    _, reason, kind = max(((*kind.sniff(examples), kind) for kind in candidates), key=lambda found: found[0])
    return kind(), reason


def choose_target(
    truth: np.ndarray | None, asked: Any, loss: Any, *, known: list[str] | None, name: str
) -> tuple[Target, str]:
    if asked is not None:
        return build("targets", asked, "TARGET"), "yours"
    if truth is None and loss is None:
        clusters = names.module("targets", "clusters").TARGET()
        return clusters, "there are no answers, so groups of like examples are sought"
    if truth is None:
        raise DataError(f"{name} has no answers to learn from.", expected="(inputs, answers): give the labels too")
    loss = bare(loss)
    title = getattr(loss, "__name__", type(loss).__name__)
    one = np.ndim(truth) == 1 or np.shape(truth)[1:] == (1,)
    if title in _NUMBER_LOSSES:
        return names.module("targets", "numbers").TARGET(), f"the loss is {title}"
    if title in _CLASS_LOSSES:
        return names.module("targets", "classes").TARGET(), f"the loss is {title}"
    if known and one:
        return names.module("targets", "classes").TARGET(), f"the source names {len(known)} classes"
    if title in _BINARY_LOSSES and one and set(np.unique(truth)) <= {0, 1}:
        return names.module("targets", "classes").TARGET(), f"the loss is {title} and the answers are 0 and 1"
    kinds = [names.module("targets", name).TARGET for name in names.known("targets")]
    sure, reason, kind = max(((*kind.sniff(truth), kind) for kind in kinds), key=lambda found: found[0])
    if sure == 0.0:
        raise DataError(
            f"These answers ({np.asarray(truth).dtype}, shape {np.shape(truth)}) are of no kind that is known here.",
            expected=f"{', '.join(names.known('targets'))}",
            fix="name it: task='classes'",
        )
    return kind(), reason


def load(recipe: Recipe, source: Source, **options: Any) -> tuple[Data, Recipe]:
    """Choose, split, check, fit and encode, within the memory that columns may take: see `_load`."""
    with mapped.limited(recipe.memory_bytes):
        return _load(recipe, source, **options)


def _load(
    recipe: Recipe,
    source: Source,
    *,
    domain: Any = None,
    target: Any = None,
    loss: Any = None,
    own_net: bool = False,
    resolve: Any = None,
    split: splits.Split | None = None,
    fitted: tuple[Domain, Target] | None = None,
) -> tuple[Data, Recipe]:
    """Choose, split, check, fit and encode.

    resolve(domain, target, source taken, n_train_estimate) -> Recipe with every setting filled; called once kind and size
    are known.
    split, fitted: those of an earlier run, used instead of drawing and learning them again.
    """
    loss = loss() if isinstance(loss, type) else loss
    bad: dict[int, str] = {}
    kind, answer, why, source, truth = _choose(recipe, source, bad, domain, target, loss, own_net, fitted)
    examples = source.train
    asked_batch = recipe.batch_size if resolve is not None else None
    recipe = resolve(kind, answer, source, _count(examples)) if resolve is not None else recipe
    if examples.kind in ("loader", "stream"):
        return _separate(source, kind, answer, why, truth, loss, own_net, fitted is None), recipe

    inputs, truth, given, table, named = _together(source, answer, truth, bad, truth is not None and kind.joins())
    n = sum(len(rows) for rows in given.values())
    aside = SetAside(n, SHARE if recipe.set_aside is None else recipe.set_aside)
    aside.tell = lambda index, reason: None  # until there is somebody to be told
    aside.add(bad)
    found = list(source.findings)
    copies = checks.find_copies(table, near=split is None)
    if split is None:
        split = _split(recipe, source, truth, answer, given, copies)
    if max((int(rows.max()) for rows in (split.train, split.valid, split.test) if len(rows)), default=-1) >= n:
        raise DataError(f"The stored split speaks of more than the {n} examples there are.",
                        fix="give the data the run was trained on")  # fmt: skip
    known = answer.name in names.known("targets") and kind.name in names.known("domains")
    if known and (truth is not None or answer.from_inputs):
        found += checks.check(table, task=None if truth is None else answer.name, split=split, found=copies)
        findings.raise_errors(found)
    found += checks.large_batch(asked_batch, len(split.train))
    if fitted is None:
        kind.fit(inputs, split.train)
        if truth is not None:
            answer.fit(truth[split.train], own_net=own_net, **({"names": named} if named else {}))
        answer.adopt(loss)
        if hasattr(kind, "features"):
            kind.features = examples.names
    found = _with_learned(found, kind, answer)
    column = None if truth is None else answer.encode(truth)
    if isinstance(inputs, tuple):
        encoded = Encoded(mapped.within(kind.encode(inputs)), column)
    else:
        encoded = Encoded(inputs, None, encode_truth=answer.encode, aside=aside)
    parts = {part: (encoded, getattr(split, part)) for part in PARTS if len(getattr(split, part))}
    return Data(source, kind, answer, why, parts, split, findings.worst_first(found)), recipe


def _inputs_alone(source: Source) -> Source:
    """The examples without their answers, which are not looked at."""
    if not isinstance(source.train.inputs, tuple):
        raise UsageError(f"Clusters are sought among columns, and you gave a {type(source.train.inputs).__name__}.",
                         fix="give arrays, a table, or files")  # fmt: skip
    given = {part: examples for part in PARTS if (examples := getattr(source, part)) is not None}
    alone = {part: dataclasses.replace(examples, truth=None, labels=None) for part, examples in given.items()}
    return dataclasses.replace(source, **alone)


def _choose(
    recipe: Recipe, source: Source, bad: dict[int, str], domain: Any, target: Any, loss: Any, own_net: bool,
    fitted: tuple[Domain, Target] | None,
) -> tuple[Domain, Target, dict[str, str], Source, np.ndarray | None]:  # fmt: skip
    """Kind of input and of answer, how they were found, the source as the domain learns from it, and its answers."""
    why: dict[str, str] = dict(source.why)
    if fitted is None:
        kind, why["domain"] = choose_domain(
            source.train, domain if domain is not None else recipe.domain, own_net=own_net
        )
        kind = with_options(kind, recipe.domain_arg, "domain")
    else:
        kind, answer = fitted
    if recipe.strict and hasattr(kind, "unreadable"):
        kind.unreadable = 0.0
    source = kind.take(source, own_net=own_net)
    examples = source.train
    truth = answers(examples, bad)
    if fitted is None and not isinstance(examples.inputs, tuple) and recipe.scale not in (None, "none"):
        raise UsageError(
            f"scale={recipe.scale} is measured on columns, and you gave a {type(examples.inputs).__name__}.",
            fix="scale in your Dataset, or give arrays: (x, y)",
        )
    asked = target if target is not None else recipe.task
    if fitted is None:
        answer, why["task"] = choose_target(truth, asked, loss, known=examples.labels, name=source.name)
        answer = with_options(answer, recipe.task_arg, "task")
    if answer.from_inputs and not (own_net and asked is None):
        source, truth = _inputs_alone(source), None
        examples = source.train
    elif truth is None and (answer.needs_truth or answer.from_inputs):
        raise DataError(
            f"{source.name} has no answers to learn from.", expected="(inputs, answers): give the labels too"
        )
    return kind, answer, why, source, truth


def _together(
    source: Source, answer: Target, truth: np.ndarray | None, bad: dict[int, str], join: bool = False
) -> tuple[Any, np.ndarray | None, dict[str, np.ndarray], Source, list[str] | None]:
    """The parts as one table: inputs, answers, the rows of each part, the same as a source that is checked, and the names of
    classes or tags where the source has them. join: arrays of the caller's are not copied together."""
    inputs, truth, given, _ = _pool(source, truth, bad, join)
    named = source.train.labels
    if truth is not None:
        if truth.ndim == 2 and truth.shape[1] == len(source.target):
            named = named or list(source.target)
        truth, named = answer.take(truth, named)
    examples = dataclasses.replace(source.train, inputs=inputs, truth=truth, ids=_ids(source), groups=None, times=None)
    return inputs, truth, given, Source(source.name, examples, target=source.target), named


def _ids(source: Source) -> np.ndarray | None:
    """What a person calls the examples of all parts, one part after the other; None where one of them has no names."""
    called = [getattr(source, part).ids for part in PARTS if getattr(source, part) is not None]
    return None if any(column is None for column in called) else np.concatenate(called)


def examine(recipe: Recipe, source: Source) -> tuple[Domain, Target, dict[str, str], list[findings.Finding]]:
    """What there is to say about a source before anything is trained: kind of input and of answer, how they were found, and
    findings, the worst first. Errors among them are not raised."""
    with mapped.limited(recipe.memory_bytes):
        bad: dict[int, str] = {}
        kind, answer, why, source, truth = _choose(recipe, source, bad, None, None, None, False, None)
        if source.train.kind in ("loader", "stream"):
            return kind, answer, why, list(source.findings)
        inputs, truth, given, table, named = _together(source, answer, truth, bad)
        split = None
        if len(given) > 1:
            none = np.zeros(0, np.int64)
            split = splits.Split(given["train"], given.get("valid", none), given.get("test", none), "as given")
        found = source.findings + checks.check(table, task=answer.name, split=split)
        if not any(finding.severity == "error" for finding in found) and isinstance(inputs, tuple):
            kind.fit(inputs, given["train"])
            if truth is not None:
                answer.fit(truth[given["train"]], own_net=False, **({"names": named} if named else {}))
            found = _with_learned(found, kind, answer)
        return kind, answer, why, findings.worst_first(found)


def _with_learned(found: list[findings.Finding], kind: Domain, answer: Target) -> list[findings.Finding]:
    """Findings, and those of who has learned from the data, who knows better what was done about the same thing."""
    learned = [*kind.findings(), *answer.findings()]
    kinds = {finding.kind for finding in learned}
    return [finding for finding in found if finding.kind not in kinds] + learned


def answers(examples: Examples, bad: dict[int, str] | None = None, first: int = 0) -> np.ndarray | None:
    """The answers of some examples as one array, wherever they are kept; None where there are none. See `truths`."""
    if examples.truth is not None:
        truth = examples.truth
        return truth.detach().cpu().numpy() if isinstance(truth, Tensor) else np.asarray(truth)
    if examples.kind == "dataset":
        return truths(examples.inputs, bad, first)
    if examples.kind == "loader":
        dataset = examples.inputs.dataset
        streamed = isinstance(dataset, IterableDataset)
        return _truths_of_batches(examples.inputs) if streamed else truths(dataset)
    if examples.kind == "stream":
        return _truths_of_batches(DataLoader(examples.inputs, batch_size=256))
    return None


def _count(examples: Examples) -> int | None:
    if isinstance(examples.inputs, tuple):
        return len(examples.inputs[0])
    try:
        held = examples.inputs.dataset if isinstance(examples.inputs, DataLoader) else examples.inputs
        return len(held)  # type: ignore[arg-type]
    except TypeError:
        return None


def _pool(
    source: Source, truth: np.ndarray | None, bad: dict[int, str], join: bool
) -> tuple[Any, np.ndarray | None, dict[str, np.ndarray], int]:
    """Given parts put together into one table: inputs, answers, the rows of each part, and how many there are. Columns of the
    parts are views of it afterwards: what was read for them alone need not stay."""
    parts = [(name, getattr(source, name)) for name in PARTS if getattr(source, name) is not None]
    ends = np.cumsum([0, *(_count(part) for _, part in parts)])
    columns = [truth] + [answers(part, bad, int(end)) for (_, part), end in zip(parts[1:], ends[1:], strict=False)]
    for (name, _), column in zip(parts, columns, strict=True):
        if (column is None) != (truth is None):
            raise DataError(f"The {name} data have no answers.", expected="(inputs, answers)")
    given = {name: np.arange(ends[k], ends[k + 1]) for k, (name, _) in enumerate(parts)}
    if len(parts) == 1:
        return parts[0][1].inputs, truth, given, int(ends[-1])
    together = None if truth is None else np.concatenate([column for column in columns if column is not None])
    if isinstance(parts[0][1].inputs, tuple):
        tables = list(zip(*(part.inputs for _, part in parts), strict=True))
        joined = tuple(mapped.joined(column) for column in tables) if join else (None,)
        if None not in joined:
            return joined, together, given, int(ends[-1])
        inputs: Any = tuple(mapped.concatenated([np.asarray(table) for table in column]) for column in tables)
        for k, (_, part) in enumerate(parts):
            part.inputs = tuple(column[ends[k] : ends[k + 1]] for column in inputs)
    else:
        inputs = ConcatDataset([part.inputs for _, part in parts])
    return inputs, together, given, int(ends[-1])


def _split(
    recipe: Recipe, source: Source, truth: np.ndarray | None, target: Target, given: dict[str, np.ndarray],
    copies: checks.Copies,
) -> splits.Split:  # fmt: skip
    """Given parts stay as they are; shares are drawn from the training data, copies of an example into one part."""
    pool = given["train"]
    drawn = splits.split(
        len(pool),
        truth=truth[: len(pool)] if truth is not None and (target.baseline or target.name) == "classes" else None,
        valid=0.0 if "valid" in given else share(recipe.valid) or 0.0,
        test=0.0 if "test" in given else share(recipe.test) or 0.0,
        how=recipe.split or "auto",
        groups=source.train.groups,
        times=source.train.times,
        copies=copies.units(len(pool)),
        seed=recipe.seed or 0,
    )
    as_given = " and ".join(part for part in ("valid", "test") if part in given)
    how = f"{drawn.how}; {as_given} as given".removesuffix(";  as given")
    if len(drawn.train) == len(pool):
        how = "as given"
    return splits.Split(
        pool[drawn.train], given.get("valid", pool[drawn.valid]), given.get("test", pool[drawn.test]), how
    )


def _separate(
    source: Source,
    kind: Domain,
    answer: Target,
    why: dict[str, str],
    truth: Any,
    loss: Any,
    own_net: bool,
    fit: bool,
) -> Data:
    """Loaders and streams are taken as they are: their parts cannot be drawn, only given."""
    if fit:
        answer.fit(truth, own_net=own_net)
        answer.adopt(loss)
    if not own_net:
        raise UsageError(
            f"{source.name} cannot be measured before training, so a net cannot be fitted to it.",
            expected="an own net with a loader or stream of your own",
            fix="pass net=..., or give arrays or a map-style Dataset",
        )
    parts: dict[str, tuple[Encoded, np.ndarray | None]] = {}
    for part in PARTS:
        examples = getattr(source, part)
        if examples is not None:
            columns = isinstance(examples.inputs, tuple)
            inputs = kind.encode(examples.inputs) if columns else examples.inputs
            column = answer.encode(examples.truth) if columns else None
            parts[part] = (Encoded(inputs, column, None if columns else answer.encode), None)
    return Data(source, kind, answer, why, parts)
