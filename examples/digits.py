"""The data of the tutorial as plain arrays: scikit-learn's digits, the last fifth held out.

Out: x, y to learn from, x2, y2 to measure with. x is float32 (N, 8, 8) in 0..1, y int64 (N,).
"""

import numpy as np
from sklearn.datasets import load_digits


def load():
    pictures, labels = load_digits(return_X_y=True)
    x = (pictures.reshape(-1, 8, 8) / 16).astype(np.float32)
    y = labels.astype(np.int64)
    cut = len(x) * 4 // 5
    return x[:cut], y[:cut], x[cut:], y[cut:]
