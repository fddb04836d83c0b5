"""Small real sets that come with scikit-learn: nothing is downloaded.

In: a name. Out: a `Source`. Called by `lamina.sources.open`.

    digits          1,797 pictures 8x8 of handwritten digits, 10 classes     pictures, bytes
    iris            150 flowers, 4 measurements (cm), 3 species              float32
    wine            178 wines, 13 measurements, 3 growers                    float32
    breast_cancer   569 tumours, 30 measurements, 2 classes                  float32
    diabetes        442 patients, 10 measurements (unscaled), a number       float32

The files are read where scikit-learn keeps them; to ask it for them would load all of it, which takes a second.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from lamina.imports import loading
from lamina.sources import Examples, Source, describe

_MEASURED = ("radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points",
             "symmetry", "fractal dimension")  # fmt: skip
FEATURES = {
    "iris": ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"],
    "wine": ["alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids",
             "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines",
             "proline"],
    "breast_cancer": [form.format(what) for form in ("mean {}", "{} error", "worst {}") for what in _MEASURED],
    "diabetes": ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"],
}  # fmt: skip
LABELS = {
    "digits": [str(digit) for digit in range(10)],
    "iris": ["setosa", "versicolor", "virginica"],
    "wine": ["class_0", "class_1", "class_2"],
    "breast_cancer": ["malignant", "benign"],
}


def read(name: str) -> Source:
    """A sample of this name -> a Source without a split of its own."""
    table, answers = _columns(name)
    if name == "digits":
        pictures = np.round(table.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
        train = Examples((pictures,), answers.astype(np.int64), kind="pictures", labels=LABELS[name])
    else:
        labels = LABELS.get(name)
        answers = answers.astype(np.int64 if labels else np.float64)
        inputs = (np.ascontiguousarray(table, dtype=np.float32),)
        train = Examples(inputs, answers, names=FEATURES[name], labels=labels)
    return Source(name, train, reopen=name, about=f"{describe(train)}, from scikit-learn")


def _columns(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(inputs (N, F), answers (N,)), float64, out of scikit-learn's files; by its own loader where they lie elsewhere."""
    folder = _folder()
    try:
        if name == "diabetes":
            return np.loadtxt(folder / "diabetes_data_raw.csv.gz"), np.loadtxt(folder / "diabetes_target.csv.gz")
        file, header = {"digits": ("digits.csv.gz", 0), "wine": ("wine_data.csv", 1)}.get(name, (f"{name}.csv", 1))
        table = np.loadtxt(folder / file, delimiter=",", skiprows=header)
        return table[:, :-1], table[:, -1]
    except FileNotFoundError:
        with loading():
            from sklearn import datasets

        options = {"scaled": False} if name == "diabetes" else {}
        return getattr(datasets, f"load_{name}")(return_X_y=True, **options)


def _folder() -> Path:
    """Where scikit-learn keeps them."""
    found = importlib.util.find_spec("sklearn")  # finds the package, and does not load it
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "datasets" / "data"
