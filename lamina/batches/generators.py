"""The random generators of the process (python, numpy, torch on the CPU): kept, put back, seeded, and watched for draws."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class _Python:
    seed = staticmethod(random.seed)
    state = staticmethod(random.getstate)
    put = staticmethod(random.setstate)


class _Numpy:
    """Numpy takes 40 us to give its state, so what was given is remembered, and known by its words in memory."""

    def __init__(self) -> None:
        self._known: tuple[bytes, Any] | None = None  # words, state

    @staticmethod
    def seed(seed: int) -> None:
        np.random.seed(seed & 0xFFFFFFFF)

    def state(self) -> Any:
        generator = np.random.mtrand._rand._bit_generator  # type: ignore[attr-defined]
        words = ctypes.string_at(generator.ctypes.state_address, 2500)  # 624 words and the position
        # The second number of a pair of normal ones lies beside the words, and is taken without moving them.
        if self._known is None or self._known[0] != words or self._known[1][3]:
            name, keys, *rest = np.random.get_state(legacy=True)
            self._known = words, (name, np.asarray(keys).tobytes(), *rest)
        return self._known[1]

    @staticmethod
    def put(state: Any) -> None:
        name, keys, *rest = state
        np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))


class _Torch:
    @staticmethod
    def seed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    @staticmethod
    def state() -> bytes:
        return torch.get_rng_state().numpy().tobytes()

    @staticmethod
    def put(state: bytes) -> None:
        torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


# Each has seed(number), state() -> something that is equal where nothing was drawn, and put(state).
GENERATORS: dict[str, Any] = {"python": _Python, "numpy": _Numpy(), "torch": _Torch}


def states() -> dict[str, Any]:
    return {name: generator.state() for name, generator in GENERATORS.items()}


def put(kept: dict[str, Any]) -> None:
    """Back to `states()`; those in which nothing was drawn are left alone."""
    for name, state in kept.items():
        if GENERATORS[name].state() != state:
            GENERATORS[name].put(state)


def seeding(names: Any) -> Callable[[int], None]:
    """A function that seeds the generators of these names, and only those: a third of the time where torch is enough."""
    seeds = [GENERATORS[name].seed for name in GENERATORS if name in names]

    def seed(number: int) -> None:
        for one in seeds:
            one(number)

    return seed


class keeping_generators:
    """The process' random generators (python, numpy, torch on the CPU) are afterwards as they were."""

    def __init__(self, active: bool = True):
        self.active = active

    def __enter__(self) -> None:
        self.state = states() if self.active else None

    def __exit__(self, *_: Any) -> None:
        if self.state is not None:
            put(self.state)


def generators() -> dict[str, Any]:
    """The state of the process' generators as a checkpoint can hold it: numbers, words, tensors."""
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
