"""Lamina: from data to a deep neural network that is trained, measured, understood and in use.

The rooms, in the order the data go through them:

    sources  checks  splits  domains  targets  keyed  batches  augment  nets  losses  optimizers  schedules  penalties
    state  engine  files  watchers  devices  run  training  evaluate  baselines  report  cli

Names are loaded when they are touched, so that `import lamina` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lamina.imports import loading as _loading

__version__ = "0.1.0"

_WHERE = {
    "train": "training",
    "resume": "training",
    "learn": "engine",
    "find_learning_rate": "finder",
    "Batches": "batches",
    "RaggedBatches": "batches",
    "Mixup": "mixing",
    "Cutmix": "mixing",
    "load": "run",
    "Run": "run",
    "load_weights": "weights",
    "save_weights": "weights",
    "LaminaError": "errors",
}
__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from lamina.batches import Batches as Batches
    from lamina.batches import RaggedBatches as RaggedBatches
    from lamina.engine import learn as learn
    from lamina.errors import LaminaError as LaminaError
    from lamina.finder import find_learning_rate as find_learning_rate
    from lamina.mixing import Cutmix as Cutmix
    from lamina.mixing import Mixup as Mixup
    from lamina.run import Run as Run
    from lamina.run import load as load
    from lamina.training import resume as resume
    from lamina.training import train as train
    from lamina.weights import load_weights as load_weights
    from lamina.weights import save_weights as save_weights


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'lamina' has no attribute {name!r}; it has {', '.join(__all__)}")
    with _loading():
        value = getattr(importlib.import_module(f"lamina.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
