"""The random generators of the process (python, numpy, torch on the CPU): kept, put back, and seeded together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


class keeping_generators:
    """The process' random generators (python, numpy, torch on the CPU) are afterwards as they were."""

    def __init__(self, active: bool = True):
        self.active = active

    def __enter__(self) -> None:
        self.state = generators() if self.active else None

    def __exit__(self, *_: Any) -> None:
        if self.state is not None:
            set_generators(self.state)


def generators() -> dict[str, Any]:
    """The state of the process' generators: python, numpy, torch."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "numpy": {
            "name": name, "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)), "position": int(position),
            "has_gauss": int(has_gauss), "cached": float(cached),
        },
        "python": {"version": version, "internal": torch.tensor(internal, dtype=torch.int64), "gauss": gauss},
    }  # fmt: skip


def set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    n = state["numpy"]
    np.random.set_state((n["name"], n["keys"].numpy().astype(np.uint32), n["position"], n["has_gauss"], n["cached"]))
    p = state["python"]
    random.setstate((p["version"], tuple(p["internal"].tolist()), p["gauss"]))
