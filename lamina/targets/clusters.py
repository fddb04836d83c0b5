"""Groups of like examples, where nobody gave answers.

In: inputs alone. The net gives an embedding (N, D), of which only the direction counts. It learns to tell two views of one
example (`lamina.views`) from those of all others in the batch (`contrast`), so what a view changes does not matter to it,
and what is alike lies together. After training, k-means groups the embeddings of the training examples. Out: the cluster of
an example, numbered from 1 by size, and how sure that is.

How many clusters there are, unless `clusters` says it, is found by stability (`count`): clusters that are there are found
again in other examples of the same kind. What is found again in resamples also makes the confidence, and the first score:
the share of resamples in whose clustering an example falls into the same cluster.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lamina import files, foreign, weights
from lamina.errors import DataError, RunError, UsageError
from lamina.imports import loading
from lamina.keyed import number
from lamina.recipe import Recipe
from lamina.sources import Examples
from lamina.targets.base import Answers, Measure, Target

FILE = "clusters.safetensors"
AGAIN = 10  # resamples that are clustered as well
MOST = 20  # clusters that are tried
TRIED_ON = 2_000  # examples that numbers of clusters are tried on
FITTED_ON = 20_000  # examples of a resample
STEPS = 1_000  # of training
LARGE = 32  # pixels a side from which on the domain says how long a net learns
NEAR = 0.02  # ARI below the best that is still as stable


@dataclass
class Groups(Answers):
    """Answers with what they were made from."""

    again: np.ndarray | None = None  # (N, AGAIN) the cluster in each resample's clustering
    silhouette: np.ndarray | None = None  # (N,) how much nearer the own centre is than the next: -1 to 1
    distance: np.ndarray | None = None  # (N,) to the own centre


@dataclass
class Grouping:
    """Clusters of points in D dimensions, the largest first."""

    centres: np.ndarray  # (K, D) float32
    again: np.ndarray  # (AGAIN, K, D) float32, those of resamples in the same order
    variance: float  # of a point round its centre, along the directions in which points differ
    sizes: np.ndarray  # (K,) points that they were found with

    def answers(self, points: np.ndarray) -> Groups:
        """The clusters of points (N, D).

        The probability of a cluster is that under a mixture of round normal distributions of the same size, averaged over
        the clusterings of all resamples: one that is not found again is not sure.
        """
        squares = _squares(points, self.centres)  # (N, K)
        best = squares.argmin(1)
        total, labels = np.zeros(squares.shape), []
        for centres in (self.centres, *self.again):
            apart = _squares(points, centres)
            labels.append(apart.argmin(1))
            powers = np.exp(-(apart - apart.min(1, keepdims=True)) / (2 * max(self.variance, 1e-12)))
            total += powers / powers.sum(1, keepdims=True)
        probabilities = total / (1 + len(self.again))
        near = np.sqrt(np.sort(squares, 1)[:, :2])  # (N, 2)
        rows = np.arange(len(points))
        return Groups(
            best + 1,
            probabilities[rows, best],
            probabilities,
            embedding=points,
            again=np.stack(labels[1:], 1) + 1,
            silhouette=(near[:, 1] - near[:, 0]) / np.maximum(near[:, 1], 1e-12),
            distance=near[:, 0],
        )


def _squares(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances (N, K), float64."""
    one, other = points.astype(np.float64), centres.astype(np.float64)
    return np.maximum((one**2).sum(1)[:, None] - 2 * one @ other.T + (other**2).sum(1), 0.0)


def _kmeans(points: np.ndarray, clusters: int, seed: int, starts: int) -> np.ndarray:
    """Centres (K, D)."""
    with loading():
        from sklearn.cluster import KMeans

    found = KMeans(clusters, n_init=starts, random_state=seed & 0xFFFFFFFF).fit(
        np.ascontiguousarray(points, np.float32)
    )
    return np.asarray(found.cluster_centers_, np.float32)


def group(points: np.ndarray, clusters: int, seed: int = 0) -> Grouping:
    """k-means of points (N, D), and of AGAIN resamples of them."""
    with loading():
        from scipy.optimize import linear_sum_assignment

    centres = _kmeans(points, clusters, number(seed, "clusters"), 10)
    squares = _squares(points, centres)
    own = squares.argmin(1)
    order = np.argsort(-np.bincount(own, minlength=clusters), kind="stable")
    centres, own = centres[order], np.argsort(order)[own]
    again = []
    for turn in range(AGAIN):
        rng = np.random.default_rng(number(seed, "resample", turn))
        drawn = points[rng.integers(0, len(points), min(len(points), FITTED_ON))]
        other = _kmeans(drawn, clusters, number(seed, "again", turn), 3)
        common = np.zeros((clusters, clusters))
        np.add.at(common, (own, _squares(points, other).argmin(1)), 1)
        again.append(other[linear_sum_assignment(-common)[1]])
    off = (points - centres[own]).astype(np.float64)
    spread = off.T @ off / len(off)  # (D, D) covariance within clusters
    # Of its variances in all directions the mean, weighted by themselves: few directions have most, the others next to none.
    variance = float((spread**2).sum() / max(np.trace(spread), 1e-12))
    return Grouping(centres, np.stack(again), variance, np.bincount(own, minlength=clusters))


def count(points: np.ndarray, most: int = MOST, seed: int = 0) -> tuple[int, list[dict[str, float]]]:
    """How many clusters there are in points (N, D): the largest number that is as stable as the most stable one.

    Each number from 2 to `most` is tried in AGAIN resamples; its stability is the mean adjusted Rand index (Hubert and
    Arabie, 1985) of all pairs of those clusterings on the same points. Ben-Hur, Elisseeff and Guyon, "A stability based
    method for discovering structure in clustered data", PSB 2002. -> (number, an entry a number tried).
    """
    with loading():
        from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(number(seed, "count"))
    points = points[rng.permutation(len(points))[:TRIED_ON]]
    tried = []
    for clusters in range(2, min(most, len(points) // 3) + 1):
        labels = []
        for turn in range(AGAIN):
            drawn = points[rng.integers(0, len(points), len(points))]
            labels.append(_squares(points, _kmeans(drawn, clusters, number(seed, "try", turn), 3)).argmin(1))
        pairs = [adjusted_rand_score(labels[a], labels[b]) for a in range(AGAIN) for b in range(a)]
        tried.append({"clusters": clusters, "stability": float(np.mean(pairs))})
    best = max(entry["stability"] for entry in tried)
    return max(int(entry["clusters"]) for entry in tried if entry["stability"] >= best - NEAR), tried


def contrast(output: Tensor, truth: Any = None, temperature: float = 0.5) -> Tensor:
    """How badly each view (2 B, D) tells its other half, rows k and B + k, from all other rows: the mean over rows of

        -log( exp(cos(a, b) / temperature) / sum over the others c of exp(cos(a, c) / temperature) ).

    There is no truth. NT-Xent of Chen, Kornblith, Norouzi and Hinton, "A simple framework for contrastive learning", ICML 2020.
    """
    found = F.normalize(output)
    rows = len(found)
    alike = found @ found.T / temperature  # (2 B, 2 B)
    alike = alike.masked_fill(torch.eye(rows, dtype=torch.bool, device=found.device), -torch.inf)
    return F.cross_entropy(alike, torch.arange(rows, device=found.device).roll(rows // 2))


@dataclass
class Clusters(Target):
    name: ClassVar[str] = "clusters"
    needs_truth: ClassVar[bool] = False
    from_inputs: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    learned_last: ClassVar[tuple[str, ...]] = ("labels", "tried", "sizes")

    labels: list[str] = field(default_factory=list)  # "1", "2", ...: by size
    clusters: int | None = None  # how many, as asked; without it by stability
    dimensions: int = 32  # of the embedding
    temperature: float = 0.5  # of the contrast
    tried: list[dict[str, float]] = field(default_factory=list)  # numbers of clusters, and how stable each is
    sizes: list[int] = field(default_factory=list)  # training examples in each

    def __post_init__(self) -> None:
        self.grouping: Grouping | None = None  # in a file of its own
        if self.clusters is not None and (not isinstance(self.clusters, int) or self.clusters < 2):
            raise UsageError(f"clusters is {self.clusters!r}.", expected="a whole number, 2 or more",
                             fix="--task-arg clusters=10, or leave it out to have it found")  # fmt: skip

    def opinions(self, domain: str, examples: Examples, asked: Recipe) -> dict[str, tuple[Any, str]]:
        n = examples.count or 0
        if n < 3 * (self.clusters or 2):
            raise DataError(f"There are {n} examples for {self.clusters or 2} clusters.", expected="three for each")
        many = f"{n:,} examples"
        batch = asked.batch_size or max(16, min(256, 2 ** round(math.log2(n / 8))))
        found: dict[str, tuple[Any, str]] = {
            "batch_size": (batch, f"{many}: each view is told from all others of its batch"),
            "label_smoothing": (0.0, "there are no classes to be sure of"),
        }
        shape = np.shape(examples.inputs[0])[1:] if isinstance(examples.inputs, tuple) else ()
        pictures = domain == "image" and len(shape) > 1
        small = not pictures or min(sorted(shape)[-2:]) < LARGE
        if asked.epochs is None and asked.steps is None and asked.budget is None and small:
            most = STEPS // 4 if domain == "text" else STEPS
            steps = max(1, round(0.8 * n) // batch)
            found["epochs"] = (max(4, min(100, round(most / steps))), f"about {most:,} steps, fewer for few examples")
        if pictures and (len(shape) == 2 or 1 in shape):
            reach = max(1, round(min(side for side in shape if side > 1) / 10))
            found["augment"] = (
                f"shift={reach},rotate=15,scale=0.2,shear=15",
                "two views of one picture are to be alike",
            )
        elif pictures:
            found["augment"] = ("zoom=0.7,flip,brightness=0.4,contrast=0.4,saturation=0.8", "two views are to be alike")
        if domain == "table" and asked.net is None:
            found["net"] = ("mlp", "one embedding, not one of each of many members")
        if small and domain != "text" and asked.net in (None, "convnet", "mlp"):
            found["net_arg"] = ({"dropout": 0.0, **asked.net_arg}, "the views differ enough")
        return found

    def adopt(self, loss: Any) -> None:
        if loss is not None:
            raise UsageError("Clusters are learned by telling views of examples apart, and you named a loss.",
                             fix="leave the loss out")  # fmt: skip

    def encode(self, truth: Any) -> Tensor:
        raise UsageError("Clusters have no answers to encode.")

    @property
    def width(self) -> int:
        return self.dimensions

    def loss(self) -> Callable[..., Tensor]:
        return functools.partial(contrast, temperature=self.temperature)

    def check(self, output: Any, truth: Any, loss: Any) -> None:
        if output.ndim != 2 or output.shape[1] < 2:
            raise UsageError(f"Your net returned {tuple(output.shape)}.",
                             expected="an embedding of two numbers or more an example: (N, D)")  # fmt: skip
        self.dimensions = int(output.shape[1])

    def remember(self, output: Tensor, truth: Any, names: np.ndarray) -> None:
        """Find the clusters of the training examples: outputs (N, D)."""
        points = _points(output)
        clusters = self.clusters
        if clusters is None:
            clusters, self.tried = count(points)
        self.grouping = group(points, clusters)
        self.sizes = self.grouping.sizes.tolist()
        self.labels = [str(k + 1) for k in range(clusters)]

    def remarks(self) -> list[str]:
        if not self.tried:
            return []
        found = {int(entry["clusters"]): entry["stability"] for entry in self.tried}
        return [
            f"There are {len(self.labels)} clusters by stability: of 2 to {max(found)}, that is the largest number that is "
            f"found again in resamples as well as any (adjusted Rand index {found[len(self.labels)]:.2f}). --task-arg "
            "clusters=10 sets it."
        ]

    def decode(self, output: Tensor) -> Answers:
        if self.grouping is None:
            raise RunError("This run has no clusters yet.", fix="lamina resume RUN: they are found after training")
        return self.grouping.answers(_points(output))

    def measures(self) -> list[Measure]:
        def found_again(truth: np.ndarray, answers: Answers) -> np.ndarray:
            assert isinstance(answers, Groups) and answers.again is not None
            return (answers.again == answers.prediction[:, None]).mean(1)

        def silhouettes(truth: np.ndarray, answers: Answers) -> np.ndarray:
            assert isinstance(answers, Groups) and answers.silhouette is not None
            return answers.silhouette

        return [
            Measure("stability", lambda t, a: float(found_again(t, a).mean()), each=found_again),
            Measure("silhouette", lambda t, a: float(silhouettes(t, a).mean()), each=silhouettes),
        ]

    def columns(self, answers: Answers) -> dict[str, Any]:
        return {"cluster": answers.prediction, "confidence": answers.confidence}

    def save(self, folder: Path) -> None:
        """clusters.safetensors: `centres` (K, D), `again` (AGAIN, K, D), `variance` and `sizes` (K,)."""
        if self.grouping is not None:
            found = self.grouping
            held = {"centres": torch.from_numpy(found.centres), "again": torch.from_numpy(found.again),
                    "variance": torch.tensor([found.variance]), "sizes": torch.from_numpy(found.sizes)}  # fmt: skip
            files.write(folder / FILE, weights.to_bytes(held))

    def open(self, folder: Path) -> None:
        place = folder / FILE
        if not place.is_file():
            return
        held = foreign.read_safetensors(place)
        try:
            centres, again = held["centres"].float().numpy(), held["again"].float().numpy()
            if centres.ndim != 2 or again.shape[1:] != centres.shape or len(held["sizes"]) != len(centres):
                raise ValueError(f"centres of shape {centres.shape}, those of resamples {again.shape}")
            self.grouping = Grouping(centres, again, float(held["variance"][0]), held["sizes"].numpy())
        except (KeyError, ValueError, IndexError) as error:
            raise RunError(f"{place} is damaged: {error}", fix="restore it from a copy, or train again") from error


def _points(output: Tensor) -> np.ndarray:
    """The directions of outputs, float32 (N, D)."""
    return F.normalize(output.detach().float().cpu()).numpy()


TARGET = Clusters
