"""What you asked for, and what that means for these data.

In: flags, keyword arguments or a TOML file. Out: a validated `Recipe`; with the facts of the data and the net, a resolved
one in which every setting has a value and an origin: yours, default, or inferred with its reason. All mistakes are
reported at once, with near misses. The field list is the command line, the file and the documentation.

A user's own net gets exactly what was asked. Settings with opinions (schedule, decay, augmentation, averaging, a
validation split) are for our own nets, and each carries its reason. No torch here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lamina.errors import UsageError, near
from lamina.imports import loading

Choose = Callable[..., None]
MOST_BYTES = 32 << 10  # of a recipe's file: those of runs have some 5,000
Origin = tuple[str, str]  # ("yours" | "default" | "inferred", reason)


def _seconds(text: str | float) -> float:
    """'90', '90s', '3m', '1.5h' -> seconds."""
    if isinstance(text, (int, float)):
        return float(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h)?\s*", str(text))
    if not match:
        raise ValueError(f"{text!r} is not a time; write 90s, 3m or 1.5h")
    return float(match[1]) * {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, None: 1}[match[2]]


def size_in_bytes(text: str | float) -> int:
    """'4GiB', '500MB', '1.5g', '4096' -> bytes: KB, MB, GB, TB in thousands, KiB, MiB, GiB, TiB (and K, M, G, T) in 1024s."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt]?)(i?)(b?))\s*", str(text), re.IGNORECASE)
    if not match or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is not a size; write 4GiB, 500MB or a number of bytes")
    base = 1000 if match[2] and match[4] and not match[3] else 1024
    size = int(float(match[1]) * base ** ("kmgt".index(match[2].lower()) + 1 if match[2] else 0))
    if size < 1:
        raise ValueError(f"{text!r} leaves no memory; write 4GiB, 500MB or a number of bytes")
    return size


def every(text: str) -> tuple[str, float]:
    """'25steps', '2m', '1epoch' -> ("steps" | "seconds" | "epochs", amount)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?)\s*", text)
    if match:
        unit = "steps" if match[2].startswith("step") else "epochs"
        if float(match[1]) < 1 or float(match[1]) != int(float(match[1])):
            raise ValueError(f"{text!r}: a whole number of {unit}, 1 or more")
        return unit, int(float(match[1]))
    try:
        return "seconds", _seconds(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an interval; write 25steps, 2m, 30s or 1epoch") from None


class Recipe(BaseModel):
    """Every setting of a training. None means: not asked for, to be resolved."""

    model_config = ConfigDict(extra="forbid", validate_default=False, allow_inf_nan=False)

    # data
    source: str | None = Field(None, description="Where the examples come from: a file, a folder or a name.")
    data_dir: str | None = Field(None, description="Where named data sets such as mnist lie.")
    target: list[str] | None = Field(
        None, description="Column of a table with the answers; none: there are no answers."
    )
    ignore: list[str] | None = Field(None, description="Columns of a table not to be looked at.")
    groups: str | None = Field(None, description="Column of who belongs together: never on both sides of a split.")
    times: str | None = Field(None, description="Column of when: the latest are held out.")
    split_column: str | None = Field(None, description="Column that says train, valid or test of each row.")
    source_arg: dict[str, Any] = Field(
        default_factory=dict, description="How a file is read: separator=;, encoding=latin-1, decimal=, header=no."
    )
    domain: str | None = Field(None, description="Kind of input: arrays, table, image, text, or FILE.py:CLASS.")
    task: str | None = Field(
        None, description="Kind of answer: classes, numbers, tags, embedding, clusters, or FILE.py:CLASS."
    )
    domain_arg: dict[str, Any] = Field(default_factory=dict, description="Options of the domain, its fields: size=32.")
    task_arg: dict[str, Any] = Field(
        default_factory=dict, description="Options of the target, its fields: threshold=0.3."
    )
    valid: str | None = Field(None, description="Validation data: a source, or a share such as 0.1; 0 for none.")
    test: str | None = Field(None, description="Test data: a source, or a share such as 0.2; 0 for none.")
    unlabelled: str | None = Field(
        None, description="Examples without answers, a source: those that can be told for sure are learned from too."
    )
    split: Literal["auto", "random", "stratified", "grouped", "time"] | None = Field(
        None, description="How shares are drawn."
    )
    scale: Literal["none", "unit", "standard"] | None = Field(
        None,
        description="Inputs: as they are, bytes to 0..1, or mean 0 and deviation 1 (fitted on the training split).",
    )
    balance: Literal["none", "over", "under", "weights"] | None = Field(
        None, description="Unequal classes: repeat small ones, thin out large ones, or weigh the loss."
    )
    augment: str | None = Field(None, description="Random changes of pictures: shift=2,flip,rotate=10,...; or none.")
    mixup: float | None = Field(
        None, ge=0, description="Mix pairs of examples; alpha of the Beta distribution, 0 for none."
    )
    cutmix: float | None = Field(
        None, ge=0, description="Paste parts of pictures; alpha of the Beta distribution, 0: none."
    )
    workers: int | None = Field(None, ge=0, description="Processes that read your own Dataset ahead; else measured.")
    cache: bool | None = Field(
        None, description="Your Dataset gives the same item every time: keep what the first epoch read."
    )
    set_aside: float | None = Field(
        None, ge=0, lt=1, description="Share of a Dataset's examples that may be unusable: they are set aside."
    )
    memory: str | None = Field(None, description="Columns that together take more than this stay on disk: 4GiB.")
    # net
    net: str | None = Field(None, description="A net by name (mlp, convnet), or your own: FILE.py:CLASS.")
    net_arg: dict[str, Any] = Field(default_factory=dict, description="Arguments of the net: hidden=256,128.")
    size: Literal["small", "medium", "large"] | None = Field(None, description="How large our own net is.")
    init: str | None = Field(None, description="Initial weights: kaiming, xavier, orthogonal, normal, ...; or pytorch.")
    weights: str | None = Field(None, description="Start from these weights: a .pth or .safetensors file.")
    # loss
    loss: str | None = Field(None, description="A loss by name (cross_entropy, focal, ...), or FILE.py:FUNCTION.")
    loss_arg: dict[str, Any] = Field(default_factory=dict, description="Arguments of the loss: gamma=2.")
    label_smoothing: float | None = Field(
        None, ge=0, lt=1, description="Share of certainty given to the other classes."
    )
    l1: float | None = Field(None, ge=0, description="Strength of the L1 penalty on weights.")
    l2: float | None = Field(None, ge=0, description="Strength of the L2 penalty on weights.")
    penalize: str | None = Field(
        None, description="What l1 and l2 act on: a pattern of names, 'fc1.*'; else all weights."
    )
    # optimiser
    optimizer: str | None = Field(None, description="sgd, adam, adamw, nadam, radam, rmsprop, adagrad, muon, ...")
    optimizer_arg: dict[str, Any] = Field(default_factory=dict, description="Arguments of the optimiser: momentum=0.9.")
    learning_rate: float | Literal["find"] | None = Field(None, description="The peak rate; find: measured first.")
    rates: dict[str, float] = Field(default_factory=dict, description="Own rates by parameter name: 'features.*=1e-4'.")
    weight_decay: float | None = Field(
        None, ge=0, description="Decoupled decay of weights; biases and norms are spared."
    )
    batch_size: int | None = Field(None, ge=1, description="Examples a step.")
    accumulate: int | None = Field(None, ge=1, description="Batches a step, weighted by their counts.")
    clip_norm: float | None = Field(None, ge=0, description="Largest norm of all gradients together; 0 for none.")
    clip_value: float | None = Field(None, ge=0, description="Largest absolute gradient; 0 for none.")
    ema: float | None = Field(
        None, ge=0, lt=1, description="Decay of an average of the weights, such as 0.999; 0: none."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = Field(
        None, description="Arithmetic of forward and backward; auto: bf16 where a trial shows it faster."
    )
    compile: Literal["auto", "on", "off"] | None = Field(
        None, description="Run the step without autograd's overhead: where it pays, always, never."
    )
    on_divergence: Literal["recover", "stop"] | None = Field(
        None, description="Loss or gradients that are not finite: skip the step, go back, lower the rate; or stop."
    )
    threads: int | None = Field(None, ge=1, description="Threads of the arithmetic on the CPU; else measured.")
    strict: bool | None = Field(None, description="Nothing that is not exact: the arithmetic of the plain loop.")
    # length
    schedule: str | None = Field(
        None, description="constant, one_cycle, cosine, linear, step, exponential, plateau, ..."
    )
    schedule_arg: dict[str, Any] = Field(default_factory=dict, description="Arguments of the schedule: gamma=0.5.")
    warmup: float | None = Field(None, ge=0, description="Steps of warm-up, or a share of all below 1.")
    epochs: int | None = Field(None, ge=1, description="Passes over the training data.")
    steps: int | None = Field(None, ge=1, description="Optimiser steps, instead of epochs.")
    budget: float | None = Field(None, gt=0, description="Time for the whole run: 90s, 3m, 1h; sets the epochs.")
    early_stopping: int | None = Field(
        None, ge=0, description="Stop after this many epochs without progress; 0: never."
    )
    keep: Literal["best", "last"] | None = Field(None, description="Which weights the run ends with.")
    # run
    seed: int | None = Field(None, ge=0, description="Of split, order, initial weights, augmentation and dropout.")
    device: str | None = Field(None, description="cpu, cuda, cuda:1, mps or auto.")
    checkpoint_every: str | None = Field(None, description="25steps, 2m, 30s or 1epoch.")
    baselines: bool | None = Field(None, description="Measure simple models beside the net.")
    report: bool | None = Field(None, description="Draw figures and write report.html.")

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else size_in_bytes(self.memory)

    @field_validator("budget", mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        return None if value is None else _seconds(value)

    @field_validator("checkpoint_every")
    @classmethod
    def _interval(cls, value: str | None) -> str | None:
        if value is not None:
            every(value)
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _memory(cls, value: Any) -> Any:
        if value is None:
            return None
        size_in_bytes(value)
        return str(value)

    @field_validator("valid", "test", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = f"{value:g}"
        if isinstance(value, str) and share(value) is not None and not 0 <= float(value) < 1:
            raise ValueError(f"{value} is not a share of the data; it is at least 0 and below 1")
        return value

    @field_validator("target", "ignore", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else value

    @field_validator("augment", mode="before")
    @classmethod
    def _augment(cls, value: Any) -> Any:
        return ",".join(value) if isinstance(value, (list, tuple)) else value

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _rate(cls, given: Any) -> Any:
        rate = share(given) if isinstance(given, str) else given
        if given in (None, "find") or (isinstance(rate, (int, float)) and 0 < rate < math.inf):
            return given
        raise ValueError(f"{given!r} is not a learning rate; it is a number above 0, or find")

    @field_validator("net_arg", "loss_arg", "optimizer_arg", "schedule_arg")
    @classmethod
    def _arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {name: _plain(entry, name) for name, entry in value.items()}


FIELDS = Recipe.model_fields
MAPPINGS = ("source_arg", "domain_arg", "task_arg", "net_arg", "loss_arg", "optimizer_arg", "schedule_arg", "rates")


def _plain(entry: Any, name: str) -> Any:
    """An argument as a file can hold it: numbers, words, true and false, none, lists and tables of those."""
    if isinstance(entry, (list, tuple)):
        return [_plain(part, name) for part in entry]
    if isinstance(entry, dict):
        return {str(key): _plain(part, name) for key, part in entry.items()}
    if hasattr(entry, "item") and not getattr(entry, "shape", ()):  # a number of numpy's or torch's
        entry = entry.item()
    if entry is None or isinstance(entry, (bool, int, float, str)):
        return entry
    raise ValueError(
        f"{name} is a {type(entry).__name__}, which a recipe cannot hold; give the object itself, made with it"
    )


def _swap(entry: Any, old: Any, new: Any) -> Any:
    """TOML has no null: None is written "none", as on the command line, and read back."""
    if isinstance(entry, list):
        return [_swap(part, old, new) for part in entry]
    if isinstance(entry, dict):
        return {key: _swap(part, old, new) for key, part in entry.items()}
    return new if entry == old and type(entry) is type(old) else entry


def share(text: str | None) -> float | None:
    """'0.1' -> 0.1; anything that is not a number -> None."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def value(text: str) -> Any:
    """A value on the command line: 3, 0.5, true, none, 64,32 or a word."""
    low = text.strip().lower()
    if low in ("true", "false"):
        return low == "true"
    if low in ("none", "null"):
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    if "," in text:
        return [value(part) for part in text.split(",") if part.strip()]
    return text


def make(**settings: Any) -> Recipe:
    """A recipe from keyword arguments; every mistake in one UsageError."""
    try:
        return Recipe(**settings)
    except ValidationError as error:
        found = error.errors()
        more = [f"And {len(found) - 20:,} more."] if len(found) > 20 else []
        raise UsageError("\n".join([*map(_mistake, found[:20]), *more])) from None


def _mistake(error: Any) -> str:
    name, *inner = map(str, error["loc"])
    if error["type"] == "extra_forbidden":
        return f"There is no setting {name!r}: {near(name, FIELDS)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        choices = [choice for part in get_args(FIELDS[name].annotation) for choice in get_args(part)]
        hint = near(error["input"], choices)
        message = (f"{hint} " if hint.startswith("did you mean") else "") + f"It is one of {', '.join(choices)}"
    place = f"{name}.{'.'.join(inner)}" if name in MAPPINGS and inner else name
    return f"{place} = {error['input']!r}: {message[0].lower() + message[1:]}."


def read(path: str | Path) -> dict[str, Any]:
    """The settings of a TOML file, not yet validated. Empty strings mean: not asked for."""
    with loading():
        import tomlkit
        from tomlkit.exceptions import TOMLKitError

    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes; a recipe has at most {MOST_BYTES:,}")
        written = path.read_text(encoding="utf-8")
        bare = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'|#.*", "text", written)
        if re.search(r"\.[ \t]*[\w-]+[ \t]*\.[ \t]*[\w-]+[ \t]*\.", bare):  # tomlkit takes minutes for many
            raise ValueError("a name of four parts, a.b.c.d; the settings of a recipe have two at most")
        table = tomlkit.parse(written).unwrap()
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise UsageError(f"There is no recipe {str(path)!r}: {near(path.name, beside)}") from None
    except (TOMLKitError, ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise UsageError(f"{path} is not TOML: {error}") from None
    return {
        name: _swap(entry, "none", None) if name in MAPPINGS else entry for name, entry in table.items() if entry != ""
    }


GIVEN = ", given from Python"  # an object of the user's, which no file can hold: it must be given again


def text(recipe: Recipe, origins: dict[str, Origin], objects: dict[str, str] | None = None) -> str:
    """The recipe as TOML, a comment of origin beside each setting. Reading it back gives the same recipe.

    objects: the names of net, loss or optimiser where they were objects; they are written so that nobody trains without
    them in silence.
    """
    with loading():
        import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("Every setting of this run. Yours: you asked for it. Default: nobody did."))
    document.add(tomlkit.comment("Inferred: from your data, for the reason given. Use it again: --recipe FILE"))
    tables: list[tuple[str, Any]] = []
    for name in FIELDS:
        entry = getattr(recipe, name)
        origin, reason = origins.get(name, ("default", ""))
        if objects and name in objects:
            entry, origin, reason = objects[name] + GIVEN, "yours", ""
        if name in MAPPINGS:
            if entry:
                tables.append((name, _swap(entry, None, "none")))
            continue
        if entry is None:
            continue
        item = tomlkit.item(entry)
        item.comment(f"{origin}{': ' + reason if reason else ''}".replace("\n", " "))
        document.add(name, item)
    for name, entry in tables:
        table = tomlkit.table()
        for key, part in entry.items():
            table.add(key, part)
        table.comment(" ".join(part for part in origins.get(name, ("yours", "")) if part))
        document.add(name, table)
    return tomlkit.dumps(document)


def resolve(
    recipe: Recipe,
    *,
    own_net: bool,
    net: str,
    examples: int | None,
    pictures: tuple[int, int, int] | None,
    task: str,
    supervised: bool = True,
    given_valid: bool = False,
    given_test: bool = False,
    bytes_in: bool = False,
    opinions: dict[str, tuple[Any, str]] | None = None,
) -> tuple[Recipe, dict[str, Origin]]:
    """Give every setting a value and an origin.

    examples: to train on and to draw splits from, None where nobody knows; pictures: (channels, height, width) when the
    inputs are pictures; supervised: False where a domain makes its own batches (a game); opinions: what the domain would
    have for these data and its own net, each value with its reason: {"epochs": (20, "10,000 examples")}.
    """
    found = recipe.model_copy(deep=True)
    origins: dict[str, Origin] = {}
    for name in FIELDS:
        if getattr(recipe, name) not in (None, {}):
            origins[name] = ("yours", "")

    def choose(name: str, chosen: Any, reason: str = "") -> None:
        """Where nobody asked, and of arguments those that nobody gave."""
        if name not in origins or name in MAPPINGS:
            setattr(found, name, chosen)
            origins[name] = ("inferred" if reason else "default", reason)

    if not given_test:
        choose("test", "0.2" if supervised else "0", "the source has no test split" if supervised else "")
    for name, (chosen, reason) in (opinions or {}).items():  # what is chosen first stays
        choose(name, chosen, reason)
    choose("seed", 0)
    choose("device", "auto")
    choose("split", "auto")
    choose("balance", "none")
    choose("accumulate", 1)
    choose("precision", "auto")
    choose("compile", "auto")
    choose("on_divergence", "recover")
    choose("strict", False)
    choose("cache", False)
    choose("set_aside", 0.001)
    choose("init", "pytorch")
    choose("clip_value", 0.0)
    choose("mixup", 0.0)
    choose("cutmix", 0.0)
    choose("l1", 0.0)
    choose("l2", 0.0)
    choose("warmup", 0.0)
    choose("ema", 0.0)
    choose("early_stopping", 0)
    choose("checkpoint_every", "30s")
    choose("baselines", supervised)
    choose("report", True)
    if own_net or not supervised:
        _exactly(found, choose, given_valid, bytes_in, "your own net gets just what you ask for" if own_net else "")
    else:
        _ours(found, choose, net, examples or 10_000, pictures, task, given_valid)
    return found, origins


def _exactly(found: Recipe, choose: Choose, given_valid: bool, bytes_in: bool, why: str) -> None:
    """No opinions: what was not asked for is off, or what PyTorch has."""
    choose("scale", "unit" if bytes_in else "none", "bytes to 0..1, as ToTensor does" if bytes_in else "")
    choose("augment", "none", why)
    choose("optimizer", "adam")
    choose("learning_rate", 1e-3)
    choose("weight_decay", 0.0)
    choose("schedule", "constant", why)
    choose("batch_size", 64)
    if found.budget is None and found.steps is None:
        choose("epochs", 10)
    choose("label_smoothing", 0.0)
    choose("clip_norm", 0.0)
    needs = bool(found.early_stopping) or found.schedule == "plateau" or found.keep == "best"
    if not given_valid:
        choose("valid", "0.1" if needs else "0", "early stopping, plateau or keep=best needs it" if needs else why)
    choose("keep", "best" if found.early_stopping else "last", "" if found.early_stopping else why)


FEW = 10_000  # training examples up to which a linear model may know better than a net
ENOUGH = 4  # times the usual number of epochs are the most that a budget, however long, is used for
# Peak rates for batches of about 100, by optimiser; adamw's depends on the net.
_RATES = {"sgd": 0.1, "adagrad": 0.02, "rmsprop": 1e-3, "muon": 0.01}


def with_line(asked: Recipe, task: str, n: int) -> bool:
    """Whether a linear model is to answer beside a net of ours for numbers (`lamina.nets.beside`): its weights would fit no
    file of others'."""
    return n <= FEW and asked.weights is None and task in ("classes", "tags", "numbers")


def _ours(
    found: Recipe, choose: Choose, net: str, n: int, pictures: tuple[int, int, int] | None, task: str, given_valid: bool
) -> None:
    """Recipes for our own nets. The figures were found on the validation splits of the samples and of MNIST."""
    if not given_valid:
        choose("valid", "0.1", "to see overfitting while it happens")
    n = round(n * (1.0 - (share(found.valid) or 0.0) - (share(found.test) or 0.0)))  # what is left to train on
    small, numbers = n < 3_000, task == "numbers"  # few examples of numbers are soon learned by heart
    kind = "convnet" if net == "convnet" else "pictures" if pictures is not None else "vectors"
    choose("size", "medium" if kind != "convnet" and n >= 20_000 else "small", f"{n:,} training examples")
    choose("scale", "standard", "the net sees mean 0 and deviation 1")
    choose("optimizer", "adamw")
    choose("batch_size", max(16, min(128, 2 ** round(math.log2(max(n, 2) / 20)))), f"{n:,} training examples")
    choose("schedule", "one_cycle", "up, then down to nothing: good in few epochs")
    rate = _RATES.get(
        found.optimizer or "",
        {"convnet": 6e-3, "pictures": 1e-2 if small else 4e-3, "vectors": 2e-3 if numbers else 5e-3}[kind],
    )
    rate = rate if found.schedule == "one_cycle" else rate / 4
    choose("learning_rate", rate, f"peak of {found.optimizer} for {net} with {found.schedule}")
    decays = found.optimizer in ("adamw", "muon")
    choose("weight_decay", (0.05 if small or kind == "convnet" else 0.02) if decays else 0.0,
           "against overfitting; biases and norms are spared" if decays else "")  # fmt: skip
    if net == "mlp":
        many: dict[str, Any] = {"dropout": 0.3, "input_dropout": 0.1, "normalisation": "batch"}
        arguments = {"dropout": 0.2} if kind == "vectors" else {} if small else many
        why = "against overfitting"
        if kind == "vectors" and with_line(found, task, n):
            arguments, why = {**arguments, "beside": True}, f"{why}, and a linear model has a say"
        if arguments:
            choose("net_arg", {**arguments, **found.net_arg}, why)
    steps_an_epoch = max(1, -(-n // (found.batch_size or 64)))
    if found.steps is None:
        wanted = {
            "convnet": 4_500,
            "pictures": 2_500 if small else 8_000,
            "vectors": (500 if numbers else 1_000) if small else 6_000,
        }[kind]
        most = {"convnet": 40, "pictures": 100, "vectors": 25 if small and numbers else 60}[kind]
        epochs = max(10, min(most, round(wanted / steps_an_epoch)))
        epochs *= 1 if found.budget is None else ENOUGH
        choose("epochs", epochs, f"{n:,} training examples, about {epochs * steps_an_epoch:,} steps")
    if pictures is not None and (small or kind == "convnet"):
        reach = max(1, round(min(pictures[1:]) / 14))
        choose("augment", f"shift={reach},rotate=10,scale=0.1", "no mirror: it would turn letters and digits round")
    else:
        choose("augment", "none")
    if task == "classes" and kind == "convnet":
        choose("label_smoothing", 0.05, "against too much certainty")
    else:
        choose("label_smoothing", 0.0)
    choose("clip_norm", 1.0, "one odd batch cannot throw the net off")
    if found.early_stopping:
        choose("keep", "best", "early stopping goes back to the best")
    else:
        choose("keep", "last", "one_cycle ends at its best" if found.schedule == "one_cycle" else "")
