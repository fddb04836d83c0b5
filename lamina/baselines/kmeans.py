"""k-means on the inputs as they are: what clusters are worth that no net was needed for.

In: numbers of the training and the held-out examples, dense or sparse, and how many clusters. Out: the held-out examples'
clusters, as the target gives them. Called by results where a net has sought clusters; no contract of `baselines`, since
there are no answers to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.targets.clusters import Groups, group

ROWS = 10_000  # training examples at most
WIDE = 50  # numbers an example from which on principal components take their place: distances stay nearly as they are


def answers(train: Any, held_out: Any, clusters: int, seed: int) -> tuple[Groups, str]:
    """Clusters of train (N, ...) and where the held-out ones (M, ...) belong -> (answers, a note).

    Columns of their own (N, F) are standardised, missing ones are their mean; pictures are taken as they are.
    """
    one, other, note = train, held_out, ""
    if not hasattr(one, "tocsr"):
        one, other = (table.reshape(len(table), -1).astype(np.float32) for table in (one, other))
        if train.ndim == 2:
            mean, spread = np.nanmean(one, 0), np.nanstd(one, 0)
            one, other = (np.nan_to_num((table - mean) / np.where(spread > 0, spread, 1)) for table in (one, other))
    if one.shape[1] > WIDE:
        from sklearn.decomposition import PCA, TruncatedSVD

        kind = TruncatedSVD if hasattr(one, "tocsr") else PCA
        parts = min(WIDE, one.shape[0] - 1)
        solver = {} if kind is TruncatedSVD else {"svd_solver": "randomized"}
        model = kind(parts, random_state=seed & 0xFFFFFFFF, **solver).fit(one)
        one, other = model.transform(one).astype(np.float32), model.transform(other).astype(np.float32)
        note = f"on {parts} principal components"
    return group(one, clusters, seed).answers(other), note
