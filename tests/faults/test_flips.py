"""Damage to a checkpoint is seen: a flipped bit, a cut, a page of zeros, a file of another checkpoint, a file that is gone.

The checkpoint is a real one of about 40 kB. Flips are tried in memory, on the function that reads; all other damage on the
disk. LAMINA_SEED is where random places begin.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lamina import files, state
from lamina.errors import RunError
from lamina.state import TrainState

SEED = int(os.environ.get("LAMINA_SEED", 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a training."""
    place = tmp_path_factory.mktemp("run")
    torch.manual_seed(SEED)
    net = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    found = TrainState(net, torch.optim.Adam(net.parameters()))
    for _ in range(3):
        net(torch.randn(8, 20)).square().mean().backward()
        found.optimizer.step()
        found.step += 1
        state.save(place / f"step-{found.step:07d}", found, {"data": "0" * 64})
    return place


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def put(place: Path, found: dict[str, bytes]) -> None:
    for path in place.iterdir():
        path.unlink()
    for name, data in found.items():
        (place / name).write_bytes(data)


@pytest.fixture
def restored(folder: Path) -> Iterator[Path]:
    """Damage what you like: it is mended afterwards."""
    sound = {place: contents(place) for place in folder.iterdir()}
    yield folder
    for place, found in sound.items():
        put(place, found)


def seen(act: Callable[[], Any]) -> bool:
    """Whether damage is refused in words. Any other error is a crash, and fails the test."""
    try:
        act()
    except RunError:
        return True
    return False


@pytest.mark.timeout(3600)
@pytest.mark.fault(6)
def test_a_flipped_bit_is_never_silent(folder, monkeypatch, counted, recorded):
    """Every bit of every file, the manifest included; in CI some of them."""
    place = folder / "step-0000003"
    held = {name: bytearray(data) for name, data in contents(place).items()}
    monkeypatch.setattr(files, "_read", lambda path: bytes(held[path.name]))
    size = sum(map(len, held.values()))
    assert 35_000 < size < 50_000
    files.verify(place)
    bits = [(name, bit) for name, data in held.items() for bit in range(8 * len(data))]
    wanted = counted(4000, len(bits))
    silent = []
    for name, bit in bits if wanted == len(bits) else random.Random(SEED).sample(bits, wanted):
        held[name][bit >> 3] ^= 1 << (bit & 7)
        if not seen(lambda: files.verify(place)):
            silent.append((name, bit))
        held[name][bit >> 3] ^= 1 << (bit & 7)
    files.verify(place)
    assert silent == []
    recorded(planted=wanted, silent=0, bytes=size, seed=SEED)


def test_without_hashes_flips_are_silent(folder, monkeypatch):
    """The control: nearly every flip of a weight reads as another weight."""
    from safetensors.torch import load

    data = bytearray((folder / "step-0000003" / "weights.safetensors").read_bytes())
    draw, silent = random.Random(SEED), 0
    for _ in range(200):
        bit = draw.randrange(8 * len(data) // 2, 8 * len(data))
        data[bit >> 3] ^= 1 << (bit & 7)
        load(bytes(data))
        silent += 1
        data[bit >> 3] ^= 1 << (bit & 7)
    assert silent == 200


def damages(
    sound: dict[str, bytes], others: list[dict[str, bytes]], cuts: int
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(what was done, the files of a checkpoint as they are then)."""
    draw = random.Random(SEED)
    for name, data in sound.items():
        at_pages = set(range(0, len(data), 4096))
        for at in sorted(at_pages | {draw.randrange(len(data)) for _ in range(cuts)}):
            yield f"{name} cut at {at}", {**sound, name: data[:at]}
        for at in sorted(at_pages):
            page = bytes(len(data[at : at + 4096]))
            if data[at : at + 4096] != page:
                yield f"{name} with zeros from {at}", {**sound, name: data[:at] + page + data[at + 4096 :]}
        yield f"{name} with bytes after its end", {**sound, name: data + b"\0"}
        yield f"{name} gone", {other: content for other, content in sound.items() if other != name}
        for other in others:
            yield f"{name} of another checkpoint", {**sound, name: other[name]}
    for names in itertools.permutations(sound):
        if list(names) != list(sound):
            yield f"files named {names}", dict(zip(names, sound.values(), strict=True))


@pytest.mark.timeout(3600)
@pytest.mark.fault(5, 7)
def test_other_damage_is_seen_named_and_passed_over(restored, counted, recorded):
    """Every time the checkpoint before it is taken, and the damaged one is named."""
    place, before = restored / "step-0000003", restored / "step-0000002"
    sound = contents(place)
    others = [contents(restored / f"step-000000{k}") for k in (1, 2)]
    planted = 0
    for what, found in damages(sound, others, counted(10, 250)):
        put(place, found)
        told: list[str] = []
        assert seen(lambda: files.verify(place)) and seen(lambda: files.check(place)), what
        assert state.newest(restored, told.append) == before, what
        assert len(told) == 1 and "step-0000003 is passed over" in told[0], what
        planted += 1
    put(place, sound)
    assert state.newest(restored, pytest.fail) == place  # silent without damage
    recorded(planted=planted, silent=0, seed=SEED)


def test_whole_checkpoints_that_change_places_are_still_theirs(restored):
    """Names of folders are not believed: what is read says which step it is."""
    one, other = restored / "step-0000002", restored / "step-0000003"
    one.rename(restored / "aside")
    other.rename(one)
    (restored / "aside").rename(other)
    try:
        assert state.read(other)[2]["step"] == 2 and state.read(one)[2]["step"] == 3
        assert state.read(other)[1]["cursor"]["step"] == 2
    finally:
        one.rename(restored / "aside")
        other.rename(one)
        (restored / "aside").rename(other)
