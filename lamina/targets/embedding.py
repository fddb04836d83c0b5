"""Who it is, by likeness: known people are named, two unseen ones compared, and "nobody I know" is an answer.

In: names or numbers of people (N,), as for classes. The net gives an embedding (N, D), of which only the direction
counts. It learns by a margin loss on the cosines with fixed, evenly spread directions, one a person (`centres`). Out: the
nearest person of a `Gallery`, which holds the embeddings of the training examples and of whoever was added later without
training; the similarity, a cosine from -1 to 1; the nearest examples.

Two thresholds are chosen on the validation split, each where both kinds of mistake are equally frequent: `stranger`, the
similarity below which it is nobody known, and `same`, that of two pictures of one person.

The directions are fixed, not learned: trained classifiers come to spread theirs evenly anyway (Papyan et al.,
"Prevalence of neural collapse", 2020), so that the net needs no last layer that is thrown away afterwards, and its output
is the embedding itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lamina import files, foreign, losses, weights
from lamina.errors import RunError, UsageError
from lamina.keyed import number
from lamina.recipe import Recipe
from lamina.sources import Examples
from lamina.splits import spread
from lamina.targets.base import Answers, Measure, Target
from lamina.targets.classes import Classes

NOBODY = "nobody I know"
GALLERY = "gallery.safetensors"
EXAMPLES_MOST = 20_000  # in a gallery: 20 MB at 256 numbers each. Of more, as many of each person, evenly taken
NEAREST = 3  # examples shown
PAIRED_MOST = 2_000  # examples of which all pairs are compared: two million pairs
FEW = 5_000  # pictures up to which there is little to learn from
LEAST = 32  # pixels of a side from which on pictures are taken for faces
PASSES = 4_000  # pictures seen in all, within 5 to 20 epochs
ROWS = 4096  # examples compared with the gallery at a time


@dataclass
class Matches(Answers):
    """Answers with what they were made from. `embedding` is float32, of length 1."""

    similarity: np.ndarray | None = None  # (N,) cosine with the person named
    known: np.ndarray | None = None  # (N,) bool, whether that is near enough
    nearest: np.ndarray | None = None  # (N, M) text, the nearest examples of the gallery
    row: np.ndarray | None = None  # (N,) which example: one that was drawn twice is no pair with itself


@dataclass
class Gallery:
    """The people that are known: an embedding an example."""

    embeddings: Tensor  # (M, D) float32, of length 1
    people: np.ndarray  # (M,) text, who it is
    names: np.ndarray  # (M,) text, what the example is called
    left_out: int = 0  # examples for which there was no room

    def with_(self, embeddings: Tensor, people: np.ndarray, names: np.ndarray) -> Gallery:
        """More examples, of people known or new."""
        table = torch.cat([self.embeddings, F.normalize(embeddings.detach().float().cpu())])
        return bounded(table, np.append(self.people, people), np.append(self.names, names), self.left_out)

    @functools.cached_property
    def means(self) -> tuple[np.ndarray, Tensor]:
        """(K,) people, sorted, and the directions (K, D) of their mean embeddings."""
        people, who = np.unique(self.people, return_inverse=True)
        table = torch.zeros(len(people), self.embeddings.shape[1])
        return people, F.normalize(table.index_add_(0, torch.from_numpy(who), self.embeddings))


def bounded(embeddings: Tensor, people: np.ndarray, names: np.ndarray, left_out: int = 0) -> Gallery:
    """A gallery of at most EXAMPLES_MOST examples, and one of each person at least."""
    if len(people) <= EXAMPLES_MOST:
        return Gallery(embeddings, people.astype(str), names.astype(str), left_out)
    _, who, counts = np.unique(people, return_inverse=True, return_counts=True)
    most = max(1, EXAMPLES_MOST // len(counts))
    taken = [spread(rows, most)
             for rows in np.split(np.argsort(who, kind="stable"), np.cumsum(counts)[:-1])]  # fmt: skip
    rows = np.sort(np.concatenate(taken))
    left = left_out + len(people) - len(rows)
    return Gallery(embeddings[torch.from_numpy(rows)], people[rows].astype(str), names[rows].astype(str), left)


@functools.cache
def centres(classes: int, dimensions: int) -> Tensor:
    """A direction for each class: (K, D) rows of length 1, always the same for the same numbers.

    Up to K = D they are the corners of a simplex, each at the cosine -1 / (K - 1) from all others, which is as far apart
    as can be. Of more there are random directions, whose cosines are about 1 / sqrt(D) in size.
    """
    if classes <= dimensions:
        place = (torch.arange(dimensions, dtype=torch.float64) + 0.5) * math.pi / dimensions
        table = torch.cos(torch.arange(classes, dtype=torch.float64)[:, None] * place)  # orthogonal: a cosine transform
        table = F.normalize(table)
        table = table - table.mean(0) if classes > 1 else table
    else:
        generator = torch.Generator().manual_seed(number(0, "centres", classes, dimensions))
        table = torch.randn(classes, dimensions, generator=generator, dtype=torch.float64)
    return F.normalize(table).float()


@dataclass
class Embedding(Target):
    name: ClassVar[str] = "embedding"
    quick: ClassVar[str] = "accuracy"
    baseline: ClassVar[str] = "classes"
    simple: ClassVar[tuple[str, ...]] = ("neighbour", "fisher")
    remembers: ClassVar[bool] = True
    learned_last: ClassVar[tuple[str, ...]] = ("stranger", "same")

    labels: list[str] = field(default_factory=list)  # the people of training
    values: list[Any] = field(default_factory=list)  # the same as the user gave them
    dimensions: int = 256  # of the embedding
    margin: float = 0.3  # radians
    scale: float = 16.0  # of the cosines in the loss
    stranger: float | None = None  # similarity below which it is nobody known; None: not measured
    same: float | None = None  # similarity from which two pictures are of one person

    def __post_init__(self) -> None:
        self.gallery: Gallery | None = None  # in a file of its own
        self._strangers: list[str] = []  # people met in data to measure with

    def opinions(self, domain: str, examples: Examples, asked: Recipe) -> dict[str, tuple[Any, str]]:
        """For few pictures: a net with little to learn, and changes that leave a person who he is."""
        found: dict[str, tuple[Any, str]] = {"label_smoothing": (0.0, "the margin is what it would be for")}
        column = examples.inputs[0] if isinstance(examples.inputs, tuple) else None
        if domain != "image" or column is None or min(np.shape(column)[-2:]) < LEAST or len(column) > FEW:
            return found
        count = len(column)
        if asked.net in (None, "hog"):
            why = f"{count:,} pictures: a deep net would know each by heart"
            found["net"], found["size"] = ("hog", why), ("small", why)
            found["net_arg"] = ({"mirrored": True, **asked.net_arg}, "the mean of a picture and its mirror image")
            if asked.optimizer in (None, "adamw"):
                found["optimizer"], found["schedule"] = ("adamw", why), ("one_cycle", "up, then down to nothing")
                found["learning_rate"] = (1e-5, "it begins near its goal")
            if asked.budget is None and asked.steps is None:
                found["epochs"] = (int(np.clip(PASSES // count, 5, 20)), f"{count:,} pictures")
        found["batch_size"] = (32, f"{count:,} pictures")
        change = "shift=0.06,rotate=8,scale=0.1,flip,brightness=0.15,contrast=0.2"
        found["augment"] = (change, "people stay who they are: moved, turned a little, mirrored, in other light")
        return found

    @property
    def _people(self) -> Classes:
        return Classes(labels=self.labels, values=self.values)

    def fit(self, truth: Any, *, own_net: bool = False, names: list[str] | None = None) -> None:
        people = Classes()
        people.fit(truth, own_net=own_net, **({"names": names} if names else {}))
        self.labels, self.values = people.labels, people.values

    def encode(self, truth: Any) -> Tensor:
        """Numbers of people, int64 (N,): those of training 0 to K-1, whoever else is met K and up."""
        column = Classes._column(truth)
        if len(self.values) and isinstance(self.values[0], (bool, int)) and column.dtype.kind in "iub":
            place = {value: k for k, value in enumerate(self.values)}
        else:
            place = {str(value): k for k, value in enumerate(self.values)}
            column = column.astype(str)
        seen, which = np.unique(column, return_inverse=True)
        numbers = np.empty(len(seen), np.int64)
        for k, value in enumerate(seen.tolist()):
            found = place.get(value)
            if found is None:
                if str(value) not in self._strangers:
                    self._strangers.append(str(value))
                found = len(self.labels) + self._strangers.index(str(value))
            numbers[k] = found
        return torch.from_numpy(numbers[which])

    def people(self, truth: Any) -> np.ndarray:
        return np.asarray([*self.labels, *self._strangers])[np.asarray(truth).astype(int).reshape(-1)]

    @property
    def width(self) -> int:
        return self.dimensions

    def centres(self, like: Tensor) -> Tensor:
        """(K, D), on the device of an output."""
        return centres(len(self.labels), self.dimensions).to(like.device, like.dtype)

    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return functools.partial(arcface, self)

    def check(self, output: Any, truth: Tensor, loss: Any) -> None:
        if output.ndim != 2 or len(output) != len(truth) or output.shape[1] < 2:
            raise UsageError(
                f"Your net returned {tuple(output.shape)} for {len(truth)} examples.",
                expected=f"an embedding of two numbers or more each: ({len(truth)}, D)",
            )
        self.dimensions = int(output.shape[1])

    def tally(self, output: Tensor, truth: Tensor) -> dict[str, Tensor]:
        known = truth < len(self.labels)
        right = (F.normalize(output) @ self.centres(output).T).argmax(1) == truth
        return {"correct": (right & known).sum(), "known": known.sum()}

    def summary(self, sums: dict[str, float], count: int) -> dict[str, float]:
        return {"accuracy": sums["correct"] / sums["known"] if sums["known"] else float("nan")}

    # --- What is known after training ---------------------------------------------------------------------------------

    def remember(self, output: Tensor, truth: Tensor | None, names: np.ndarray) -> None:
        """Make the gallery of the training examples: outputs (N, D), their numbers (N,), what each is called (N,)."""
        assert truth is not None
        self.gallery = bounded(F.normalize(output.detach().float().cpu()), self.people(truth), np.asarray(names))

    def calibrate(self, output: Tensor, truth: Tensor) -> None:
        """The two thresholds. A validation example of somebody known is asked for twice: with his own pictures in the
        gallery, and as if he were not in it."""
        if self.gallery is None or not len(output):
            return
        found = F.normalize(output.detach().float().cpu())
        people, means = self.gallery.means
        alike = (found @ means.T).numpy()
        own = np.asarray(people)[None] == self.people(truth)[:, None]
        known = own.any(1)
        if known.any() and len(people) > 1:
            best, other = alike[own], np.where(own, -2.0, alike)[known].max(1)
            strangers = np.where(own, -2.0, alike)[~known].max(1)
            self.stranger = equal_error(best, np.concatenate([other, strangers]))[0]
        scores, together = pairs(found.numpy(), truth.numpy(), np.arange(len(found)))
        if not together.any() or together.all():  # too few pictures of each: against those of the gallery
            scores = (found @ self.gallery.embeddings.T).numpy().reshape(-1)
            together = (self.gallery.people[None] == self.people(truth)[:, None]).reshape(-1)
        if together.any() and not together.all():
            self.same = equal_error(scores[together], scores[~together])[0]

    def decode(self, output: Tensor) -> Matches:
        found = F.normalize(output.detach().float().cpu())
        if self.gallery is None:
            people, means = np.asarray(self.labels), self.centres(found)
        else:
            people, means = self.gallery.means
        best, alike, sure, nearest = [], [], [], []
        for piece in found.split(ROWS):
            cosines = piece @ means.T  # (B, K)
            top = cosines.max(1)
            best.append(top.indices)
            alike.append(top.values)
            sure.append((cosines * self.scale).softmax(1).amax(1))
            if self.gallery is not None:
                count = min(NEAREST, len(self.gallery.names))
                nearest.append(self.gallery.names[(piece @ self.gallery.embeddings.T).topk(count).indices.numpy()])
        similarity = torch.cat(alike).numpy() if alike else np.zeros(0, np.float32)
        return Matches(
            people[torch.cat(best).numpy()] if best else people[:0],
            torch.cat(sure).clamp(0, 1).numpy() if sure else np.zeros(0, np.float32),
            similarity=similarity,
            known=similarity >= (-2.0 if self.stranger is None else self.stranger),
            nearest=np.concatenate(nearest).astype(object) if nearest else None,
            embedding=found.numpy(),
            row=np.arange(len(found)),
        )

    def remarks(self) -> list[str]:
        found = []
        if self.gallery is not None and self.gallery.left_out:
            found.append(f"The gallery holds {len(self.gallery.names):,} training examples; {self.gallery.left_out:,} more "
                         f"of the same people were left out.")  # fmt: skip
        if self.stranger is None:
            return [*found, "Nobody is a stranger to this run: the similarity below which it is nobody known is chosen on a "
                    "validation split, and there is none (--valid 0.1)."]  # fmt: skip
        found.append(f"Below a similarity of {self.stranger:.2f} the answer of predict is {NOBODY!r}; it was chosen on the "
                     f"validation split, where as many known were refused as strangers named.")  # fmt: skip
        return found

    def given(self, answers: Answers) -> Answers:
        """Nobody is named whose likeness is too small."""
        if not isinstance(answers, Matches) or answers.known is None:
            return answers
        return replace(answers, prediction=np.where(answers.known, answers.prediction, NOBODY))

    def measures(self) -> list[Measure]:
        known = np.asarray(self.labels)

        def hits(truth: np.ndarray, answers: Answers) -> np.ndarray:
            right = truth == answers.prediction
            near = getattr(answers, "known", None)
            return np.where(np.isin(truth, known), right, False if near is None else ~near).astype(float)

        def auc(truth: np.ndarray, answers: Answers) -> float:
            scores, same = _pairs_of(truth, answers)
            return area(scores[same], scores[~same])

        def eer(truth: np.ndarray, answers: Answers) -> float:
            scores, same = _pairs_of(truth, answers)
            return equal_error(scores[same], scores[~same])[1] if same.any() and not same.all() else float("nan")

        return [
            Measure("accuracy", lambda t, a: float(hits(t, a).mean()), each=hits, exact=True),
            Measure("verification_auc", auc),
            Measure("verification_eer", eer, better="lower"),
        ]

    def columns(self, answers: Answers) -> dict[str, Any]:
        found = super().columns(answers)
        if isinstance(answers, Matches):
            found["similarity"] = answers.similarity
            if answers.nearest is not None:
                found["nearest"] = np.array([" | ".join(row) for row in answers.nearest], dtype=object)
        return found

    def compare(self, one: Matches, other: Matches) -> tuple[np.ndarray, np.ndarray | None]:
        """(similarity (N,), whether it is the same person (N,)) of two rows of answers, pair by pair; None where no
        threshold was chosen."""
        assert one.embedding is not None and other.embedding is not None
        if len(one) != len(other):
            raise UsageError(f"There are {len(one)} pictures on one side and {len(other)} on the other.")
        similarity = (one.embedding * other.embedding).sum(1)
        return similarity, None if self.same is None else similarity >= self.same

    # --- The gallery's file -------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """gallery.safetensors: `embeddings` (M, D), and as UTF-8, a line each, `people` and `names`."""
        if self.gallery is not None:
            held = {"embeddings": self.gallery.embeddings, "left_out": torch.tensor([self.gallery.left_out])}
            for title, column in (("people", self.gallery.people), ("names", self.gallery.names)):
                lines = "\n".join(" ".join(str(entry).splitlines()) for entry in column)
                held[title] = torch.frombuffer(bytearray(lines.encode() or b" "), dtype=torch.uint8)
            files.write(folder / GALLERY, weights.to_bytes(held))

    def open(self, folder: Path) -> None:
        place = folder / GALLERY
        if not place.is_file():
            return
        held = foreign.read_safetensors(place)
        try:
            people, names = (np.array(bytes(held[key].numpy()).decode().split("\n")) for key in ("people", "names"))
            table = held["embeddings"].float()
            if not len(people) == len(names) == len(table) or table.ndim != 2:
                raise ValueError(f"{len(table)} embeddings of {len(people)} people with {len(names)} names")
            self.gallery = Gallery(table, people, names, int(held["left_out"][0]))
        except (KeyError, ValueError, IndexError) as error:
            raise RunError(f"{place} is damaged: {error}", fix="restore it from a copy, or train again") from error


def arcface(target: Embedding, output: Tensor, truth: Tensor) -> Tensor:
    """The loss of embeddings (B, D) and numbers of people (B,)."""
    cosines = F.normalize(output) @ target.centres(output).T
    return losses.arcface(cosines, truth, margin=target.margin, scale=target.scale)


# --- Pairs: same person or not ----------------------------------------------------------------------------------------


def pairs(embeddings: np.ndarray, people: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cosines, whether it is one person) of all pairs of examples (N, D). Of more than PAIRED_MOST examples, evenly
    taken ones; one row twice is no pair."""
    if len(row) > PAIRED_MOST:
        some = spread(np.arange(len(row)), PAIRED_MOST)
        embeddings, people, row = embeddings[some], people[some], row[some]
    one, other = np.triu_indices(len(row), 1)
    apart = row[one] != row[other]
    one, other = one[apart], other[apart]
    return (embeddings @ embeddings.T)[one, other], people[one] == people[other]


def _pairs_of(truth: np.ndarray, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    embedding, row = getattr(answers, "embedding", None), getattr(answers, "row", None)
    if embedding is None or row is None:  # a simple model, which has none
        return np.zeros(0), np.zeros(0, bool)
    return pairs(embedding, truth, row)


def area(same: np.ndarray, other: np.ndarray) -> float:
    """The share of (same, other) couples of pairs in which the first is more alike; ties count half. ROC AUC."""
    if not len(same) or not len(other):
        return float("nan")
    ordered = np.sort(other)
    below = np.searchsorted(ordered, same, "left") + np.searchsorted(ordered, same, "right")
    return float(below.mean() / 2 / len(other))


def equal_error(same: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """(threshold, error): where as many of `same` lie below as of `other` at or above, in shares, or as nearly as can be;
    the error is the mean of the two shares. The threshold lies midway between two neighbouring values."""
    values = np.unique(np.concatenate([same, other]).astype(np.float64))
    edges = np.concatenate([values[:1] - 1e-6, (values[1:] + values[:-1]) / 2, values[-1:] + 1e-6])
    missed = np.searchsorted(np.sort(same), edges, "left") / len(same)
    taken = 1 - np.searchsorted(np.sort(other), edges, "left") / len(other)
    gap, error = np.abs(missed - taken), (missed + taken) / 2
    best = np.flatnonzero(gap == gap.min())
    place = best[np.argsort(error[best], kind="stable")]
    ties = place[error[place] == error[place[0]]]
    return float(edges[ties[len(ties) // 2]]), float(error[ties[0]])


TARGET = Embedding
