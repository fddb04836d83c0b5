"""Small real sets that come with scikit-learn: nothing is downloaded.

In: a name. Out: a `Source`. Called by `lamina.sources.open`.

    digits          1,797 pictures 8x8 of handwritten digits, 10 classes     pictures, bytes
    iris            150 flowers, 4 measurements (cm), 3 species              float32
    wine            178 wines, 13 measurements, 3 growers                    float32
    breast_cancer   569 tumours, 30 measurements, 2 classes                  float32
    diabetes        442 patients, 10 measurements (unscaled), a number       float32
"""

from __future__ import annotations

import numpy as np

from lamina.sources import Examples, Source, describe


def read(name: str) -> Source:
    """A sample of this name -> a Source without a split of its own."""
    from sklearn import datasets

    if name == "digits":
        bunch = datasets.load_digits()
        pictures = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]  # 0..16 -> 0..255
        train = Examples((pictures,), bunch.target.astype(np.int64), kind="pictures", labels=_texts(bunch.target_names))
    else:
        bunch = datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()
        numbers = name == "diabetes"
        train = Examples(
            (np.ascontiguousarray(bunch.data, dtype=np.float32),),
            bunch.target.astype(np.float64 if numbers else np.int64),
            names=_texts(bunch.feature_names),
            labels=None if numbers else _texts(bunch.target_names),
        )
    return Source(name, train, reopen=name, about=f"{describe(train)}, from scikit-learn")


def _texts(names: object) -> list[str]:
    return [str(name) for name in np.asarray(names)]
