"""k-means on the inputs as they are: what clusters are worth that no net was needed for.

In: numbers of the training and the held-out examples, dense or sparse, and how many clusters. Out: the held-out examples'
clusters, as the target gives them. Called by results where a net has sought clusters; no contract of `baselines`, since
there are no answers to learn.
"""

from __future__ import annotations

from typing import Any

from lamina import views
from lamina.targets.clusters import Groups, group

ROWS = 10_000  # training examples at most


def answers(train: Any, held_out: Any, clusters: int, seed: int) -> tuple[Groups, str]:
    """Clusters of train (N, ...) and where the held-out ones (M, ...) belong -> (answers, a note)."""
    one, other = views.points(train, held_out, seed=seed)
    fewer = hasattr(train, "tocsr") or one.size < train.size
    return group(one, clusters, seed).answers(other), f"on {one.shape[1]} principal components" if fewer else ""
