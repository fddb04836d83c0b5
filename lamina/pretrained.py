"""Nets that somebody else trained, as the first part of one of ours: a folder of transformers, or a net of timm.

    hf:FOLDER     config.json, weights in safetensors, and for texts the tokenizer: what `save_pretrained` writes
    timm:NAME     a net of timm (which needs torchvision), with the weights of a file: --weights FILE

In: such a name. Out: a `Card`, what the folder says of itself, read without loading a library; the `tokenizer`; and the
`Trunk`, a module from tokens (B, T) or pictures (B, C, H, W) to features (B, F). `Tuned` puts the layer that learns on top.
Called by the domain `pretrained`.

Nothing here runs code that came with a net: configurations that ask for it are refused, weights are safetensors, or go
through the process of their own that opens `.bin` files (`foreign`). Nothing is downloaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lamina import documents, files, foreign, weights
from lamina.errors import RunError, UsageError, near
from lamina.imports import loading
from lamina.nets.textnet import Bag

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
KEPT = (  # what a run needs beside the weights, which it has in its own file
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
    "merges.txt", "added_tokens.json", "tokenizer.model", "preprocessor_config.json", "modules.json",
    "1_Pooling/config.json",
)  # fmt: skip
GRAMS = 1 << 17  # hashed tokens and pairs of tokens
_PRIMES = (2_654_435_761, 1_000_003, 2_246_822_519)
TOKENS_MOST = 512  # of a text, where the model does not say less
LAYER = re.compile(r"\.(?:layer|layers|block|blocks|h|stages)\.(\d+)\.")  # how models name what they consist of


@dataclass(frozen=True)
class Card:
    """What is known of a trunk before it is loaded."""

    name: str  # "hf:FOLDER" or "timm:NAME"
    folder: Path | None  # None: timm
    inputs: str  # "texts" or "pictures"
    model: str  # "bert", "vit", "resnet50"
    side: int = 0  # pixels: what pictures are resized to
    channels: int = 3
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of each channel, for bytes brought to 0..1
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    pool: str = "mean"  # over the tokens; or "first", the token that stands before them


def card(name: str) -> Card:
    """What "hf:FOLDER" or "timm:NAME" is. UsageError where there is no such thing, where it would need foreign code, or
    where it takes neither texts nor pictures."""
    way, _, rest = name.partition(":")
    if way == "timm":
        return _card_of_timm(name, rest)
    folder = Path(rest).expanduser()
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        alike = difflib.get_close_matches(folder.name, beside, n=8)
        raise UsageError(
            f"There is no folder {rest!r}{': ' + near(folder.name, alike) if alike else ''}.",
            expected="hf:FOLDER, a folder as transformers' save_pretrained writes it; nothing is downloaded",
        )
    config = _json(folder / "config.json")
    if not config:
        raise UsageError(
            f"{folder} has no config.json.", expected="a folder as transformers' save_pretrained writes it",
            fix=f"it holds {', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'}",
        )  # fmt: skip
    model = str(config.get("model_type", ""))
    if "auto_map" in config or not model:
        raise UsageError(
            f"{folder / 'config.json'} names {'code of its own to be run (auto_map)' if model else 'no model_type'}.",
            expected="a model that transformers has itself; code that comes with a model is never run",
        )
    if "vision_config" in config and "text_config" in config:
        raise UsageError(
            f"{folder} is a {model}, with a part for texts and one for pictures.",
            expected="a model of texts, or one of pictures",
            fix="save the part alone: model.vision_model.save_pretrained(FOLDER)",
        )
    if "vocab_size" in config and "num_channels" not in config:
        pooling = _json(folder / "1_Pooling" / "config.json")
        return Card(name, folder, "texts", model, pool="first" if pooling.get("pooling_mode_cls_token") else "mean")
    if "num_channels" not in config and "image_size" not in config:
        raise UsageError(f"{folder} is a {model}, which takes neither texts nor pictures.", expected="one of the two")
    seen = _json(folder / "preprocessor_config.json")
    size = seen.get("size", config.get("image_size", 224))
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge", 224))
    side = config.get("image_size", size)
    side = side[0] if isinstance(side, list) else side
    channels = int(config.get("num_channels", 3))
    mean, std = (tuple(seen.get(key) or [0.5] * channels) for key in ("image_mean", "image_std"))
    return Card(name, folder, "pictures", model, int(side), channels, mean, std)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object of the folder; an empty one where there is no file."""
    if not path.is_file():
        return {}
    found = documents.parse(path.read_bytes(), path, "save the model again")
    return found if isinstance(found, dict) else {}


def _card_of_timm(name: str, model: str) -> Card:
    timm = _timm()
    if model not in timm.list_models():
        alike = difflib.get_close_matches(model, timm.list_models(), n=8)
        raise UsageError(f"timm has no net {model!r}{': ' + near(model, alike) if alike else ''}.",
                         expected="a name that timm.list_models() gives")  # fmt: skip
    about = timm.create_model(model, pretrained=False, num_classes=0).pretrained_cfg
    channels, side, _ = about.get("input_size", (3, 224, 224))
    return Card(name, None, "pictures", model, side, channels, tuple(about["mean"]), tuple(about["std"]))


def _timm() -> Any:
    try:
        with loading():
            import timm
    except ImportError as error:
        raise UsageError(
            f"--net timm:NAME needs timm, which cannot be imported here: {error}.",
            expected="timm and torchvision, which timm needs, in the version that belongs to this torch",
            fix="pip install timm torchvision; or use a net of transformers: --net hf:FOLDER",
        ) from error
    return timm


@contextmanager
def _transformers(inputs: str) -> Iterator[Any]:
    """The library, without its bars and advice."""
    try:
        with loading():
            import transformers
            from transformers.utils import logging
    except ImportError as error:
        extra = "text" if inputs == "texts" else "image"
        raise UsageError(
            f"--net hf:FOLDER needs transformers, which cannot be imported here: {error}.",
            fix=f"pip install 'lamina[{extra}]'",
        ) from error
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# --- Texts -> tokens --------------------------------------------------------------------------------------------------


class Tokens:
    """The tokenizer of a folder: texts -> whole numbers (N, T), filled up at the end."""

    def __init__(self, found: Card):
        assert found.folder is not None
        with _transformers(found.inputs) as library:
            try:
                self._made = library.AutoTokenizer.from_pretrained(
                    found.folder, local_files_only=True, trust_remote_code=False
                )
            except Exception as error:  # whatever foreign files do to it
                raise UsageError(
                    f"The tokenizer in {found.folder} cannot be read: {type(error).__name__}: {_line(error)}",
                    expected="tokenizer.json, or the files of a tokenizer that transformers knows",
                ) from error
        if self._made.pad_token_id is None:
            self._made.pad_token = self._made.eos_token or self._made.unk_token
        if self._made.pad_token_id is None:
            raise UsageError(f"The tokenizer in {found.folder} has nothing to fill up with: no pad, eos or unk token.")
        config = _json(found.folder / "config.json")
        most = (self._made.model_max_length, config.get("max_position_embeddings", TOKENS_MOST), TOKENS_MOST)
        self.most = int(min(entry for entry in most if isinstance(entry, int) and entry > 2))
        self.padding = int(self._made.pad_token_id)
        self.special = {int(number) for number in self._made.all_special_ids}

    def __call__(self, texts: list[str], most: int | None = None) -> list[list[int]]:
        """The numbers of each text, at most `most`; an empty text is what the tokenizer makes of it, one at least."""
        kept = most is not None
        found = self._made(texts, truncation=kept, max_length=most, return_attention_mask=False, verbose=False)
        return [numbers or [self.padding] for numbers in found["input_ids"]]


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def grams(tokens: np.ndarray, padding: int, special: set[int]) -> np.ndarray:
    """Which tokens and pairs of tokens stand in each text: (N, T) -> (N, 2 T), numbers from 1 to GRAMS, each once, in
    order, 0 for none. Numbers are hashes, so no vocabulary is needed; tokens that the tokenizer sets itself are left out."""
    words = tokens.astype(np.int64)
    there = ~np.isin(words, [padding, *special])
    single = np.where(there, 1 + words * _PRIMES[0] % GRAMS, 0)
    pair = np.where(there[:, 1:] & there[:, :-1],
                    1 + (words[:, :-1] * _PRIMES[1] + words[:, 1:] * _PRIMES[2]) % GRAMS, 0)  # fmt: skip
    found = -np.sort(-np.concatenate([single, pair, np.zeros((len(words), 1), np.int64)], 1), 1)
    found[:, 1:][found[:, 1:] == found[:, :-1]] = 0
    return (-np.sort(-found, 1)).astype(np.int32)


# --- The trunk --------------------------------------------------------------------------------------------------------


class Trunk(nn.Module):
    """Tokens (B, T) or pictures (B, C, H, W) -> features (B, F).

    Of texts: the mean over the tokens that are no filling, or the first one, and over the upper half of the layers, which
    tell more than the last alone (of film reviews, 1,000 known answers and a MiniLM of 6 layers: 75 % against 72 %); the
    batch is cut to its longest text. Of pictures: the mean over the places of the last layer. `padding` is the number that
    fills up.
    """

    def __init__(self, found: Card, model: nn.Module, padding: int = 0):
        super().__init__()
        self.model, self.pictures, self.pool, self.padding = model, found.inputs == "pictures", found.pool, padding
        self.plain = found.folder is None  # timm gives features at once

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            return self.model(x)
        if self.pictures:
            found = self.model(pixel_values=x).last_hidden_state  # (B, T, F), or (B, F, H, W) of a convnet
            return found.mean(1) if found.ndim == 3 else found.mean((2, 3))
        there = x != self.padding  # (B, T)
        there[:, 0] = True  # an empty text is one filling
        longest = int(there.any(0).nonzero().max()) + 1
        x, there = x[:, :longest].long(), there[:, :longest]
        asked = self.model(input_ids=x, attention_mask=there.long(), output_hidden_states=True)
        layers = asked.hidden_states  # of the embeddings and of each layer, (B, T, F)
        found = torch.stack(layers[len(layers) // 2 :]).mean(0)
        if self.pool == "first":
            return found[:, 0]
        shares = there.to(found.dtype)[:, :, None]
        return (found * shares).sum(1) / shares.sum(1)


class Tuned(nn.Module):
    """A trunk, a linear layer on its features, brought to mean 0 and spread 1, and beside it what the words say (`grams`:
    how many there are; 0 for none).

    In: what the trunk takes, or features (B, F) that were computed before, where it is frozen; and the n-grams that stand
    in each text (B, A). Out: (B, outputs).
    """

    def __init__(
        self, trunk: nn.Module, features: int, outputs: int, frozen: bool = True, dropout: float = 0.1, grams: int = 0
    ):
        super().__init__()
        self.trunk, self.frozen, self.features = trunk, frozen, features
        trunk.requires_grad_(not frozen)
        if not frozen:
            for name, parameter in trunk.named_parameters():
                if ".pooler." in name:  # which nobody asks
                    parameter.requires_grad_(False)
        self.head = Head(features, outputs, dropout, grams)

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        if self.frozen:
            self.trunk.eval()
        return self

    def forward(self, x: Tensor, *grams: Tensor) -> Tensor:
        if x.ndim == 2 and x.is_floating_point():
            return self.head(x, *grams)
        return self.head(self.trunk(x), *grams)


class Head(nn.Module):
    """Features (B, F), and n-grams (B, A) where it has a bag of them -> (B, outputs). `mean` and `std` (F,) are measured, not
    learned."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, outputs: int, dropout: float = 0.1, grams: int = 0):
        super().__init__()
        self.bag = Bag(grams, outputs) if grams else None
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(features, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, *grams: Tensor) -> Tensor:
        found = self.out(self.dropout((x - self.mean) / self.std))
        return found if self.bag is None else found + self.bag(*grams)


def trunk(found: Card, padding: int = 0, *, file: str | None = None, empty: bool = False) -> Trunk:
    """The trunk of a card. file: its weights, for timm. empty: without weights, which will be loaded from a run."""
    model = _of_timm(found, file, empty) if found.folder is None else _of_transformers(found, empty)
    return Trunk(found, model.eval(), padding)


def width(model: Trunk, found: Card) -> int:
    """How many features a trunk gives."""
    for title in ("num_features",) if found.folder is None else ("hidden_size", "d_model", "dim", "hidden_sizes"):
        value = getattr(model.model if found.folder is None else model.model.config, title, None)
        if value:
            return int(value[-1] if isinstance(value, (list, tuple)) else value)
    raise UsageError(f"The model {found.model} in {found.name} does not say how many features it has.")


def _of_transformers(found: Card, empty: bool) -> Any:
    assert found.folder is not None
    have = [name for name in WEIGHTS if (found.folder / name).is_file()]
    if not have and not empty:
        raise UsageError(
            f"{found.folder} has no weights.", expected=f"one of {', '.join(WEIGHTS)}",
            fix="model.save_pretrained(FOLDER), which writes model.safetensors",
        )  # fmt: skip
    with _transformers(found.inputs) as library:
        try:
            config = library.AutoConfig.from_pretrained(found.folder, local_files_only=True, trust_remote_code=False)
            if empty or have[0].endswith(".bin"):
                model = library.AutoModel.from_config(config, trust_remote_code=False)
            else:
                model = library.AutoModel.from_pretrained(
                    found.folder, config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                    dtype=torch.float32,
                )  # fmt: skip
        except Exception as error:  # whatever foreign files do to it
            raise UsageError(
                f"The model in {found.folder} cannot be loaded: {type(error).__name__}: {_line(error)}"
            ) from error
    if not empty and have[0].endswith(".bin"):
        _fill(model, foreign.read(found.folder / have[0]).tensors, found.folder / have[0])
    return model.float()


def _of_timm(found: Card, file: str | None, empty: bool) -> Any:
    model = _timm().create_model(found.model, pretrained=False, num_classes=0)
    if empty:
        return model
    if file is None:
        raise UsageError(
            f"--net {found.name} has no weights, and nothing is downloaded.", fix="--weights FILE.safetensors (or .pth)"
        )
    _fill(model, weights.unwrapped(weights.find(file).tensors)[0], Path(file))
    return model


def _fill(model: nn.Module, tensors: dict[str, Tensor], place: Path) -> None:
    """Weights into a trunk. What the file has beside them (the last layer of another task) is left out; nothing of the
    trunk but a pooler may be missing."""
    own = model.state_dict()
    prefix = next(
        (p for p in ("", f"{getattr(model, 'base_model_prefix', '')}.") if any(p + n in tensors for n in own)), ""
    )
    chosen = {name: tensors[prefix + name] for name in own if prefix + name in tensors}
    missing = [name for name in own if name not in chosen and "pooler" not in name and "position_ids" not in name]
    wrong = [name for name, value in chosen.items() if value.shape != own[name].shape]
    if missing or wrong:
        raise RunError(
            f"{place} does not fit {type(model).__name__}: {len(missing)} weights are missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(wrong)} of another shape ({', '.join(wrong[:3]) or 'none'}).",
            expected="weights of the same model",
        )
    model.load_state_dict({**own, **chosen})


def layer_rates(model: nn.Module, rate: float, factor: float = 0.8) -> dict[str, float]:
    """A rate for each layer of a net with a trunk, by patterns of names: the last layer of the trunk has `rate`, each before
    it `factor` times that of the next, and what comes before the first layer the least (Howard and Ruder, "Universal
    language model fine-tuning", 2018)."""
    names = [f".{name}" for name, _ in model.named_parameters()]
    layers = {match[0]: int(match[1]) for name in names if (match := LAYER.search(name))}
    count = max(layers.values(), default=-1) + 1
    rates = {f"*{part}*": rate * factor ** (count - 1 - depth) for part, depth in layers.items()}
    return {**rates, "trunk.*": rate * factor**count}


def keep(found: Card, folder: Path) -> None:
    """What a run needs of a trunk beside its weights, copied into `folder`."""
    if found.folder is None:
        return
    for name in KEPT:
        if (found.folder / name).is_file():
            files.folder((folder / name).parent)
            files.write(folder / name, (found.folder / name).read_bytes())
