"""Row 45: a mistyped setting, or a value of the wrong unit, is refused with the nearest name before any data are read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import lamina
from lamina import recipe as recipes
from lamina import sources
from lamina.errors import UsageError


def mistyped(name: str, draw: random.Random) -> str:
    """One slip of a finger: a letter left out, doubled, changed, or two swapped."""
    while True:
        k = draw.randrange(len(name) - 1)
        other = draw.choice("abcdefghijklmnopqrstuvwxyz")
        slips = [
            name[:k] + name[k + 1 :],
            name[:k] + name[k] + name[k:],
            name[:k] + other + name[k + 1 :],
            name[:k] + name[k + 1] + name[k] + name[k + 2 :],
        ]
        typed = draw.choice(slips)
        if typed not in recipes.FIELDS and typed.isidentifier() and typed not in ("groups", "times", "name", "runs"):
            return typed


@pytest.fixture
def no_data(monkeypatch):
    def read(*_, **__):
        raise AssertionError("data were read")

    monkeypatch.setattr(sources, "open", read)


@pytest.mark.fault(45)
@pytest.mark.parametrize("how", ["python", "file"])
def test_every_mistyped_setting_is_refused_with_the_nearest_name(how, counted, recorded, no_data, tmp_path):
    draw, planted, named = random.Random(0), 0, 0
    for name in recipes.FIELDS:
        for _ in range(counted(1, 20)):
            typed = mistyped(name, draw)
            path = tmp_path / "recipe.toml"
            path.write_text(f"{typed} = 1\n")
            given = {typed: 1} if how == "python" else {"recipe": path}
            with pytest.raises(UsageError, match=f"There is no setting '{typed}'") as found:
                lamina.train("digits", runs=tmp_path / "runs", **given)  # type: ignore[arg-type]
            planted, named = planted + 1, named + (repr(name) in found.value.what)
    recorded(planted=planted, refused=planted, named=round(named / planted, 4))
    assert named >= 0.95 * planted  # a slip in a short name can be as near to another
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": "3 weeks"}, "write 90s, 3m or 1.5h"),
        ({"checkpoint_every": "25 stps"}, "is not an interval"),
        ({"checkpoint_every": "0.5steps"}, "whole number of steps"),
        ({"memory": "4 parsecs"}, "write 4GiB"),
        ({"valid": 20}, "20 is not a share"),
        ({"label_smoothing": 10}, "label_smoothing"),
        ({"ema": 99.9}, "ema"),
        ({"learning_rate": -0.1}, "not a learning rate"),
        ({"epochs": 0.5}, "epochs"),
        ({"batch_size": "64MB"}, "batch_size"),
        ({"on_divergence": "recovr"}, "did you mean 'recover'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_of_the_wrong_unit_is_refused(settings, words, no_data, tmp_path: Path):
    with pytest.raises(UsageError, match=words):
        lamina.train("digits", runs=tmp_path / "runs", **settings)
    assert not (tmp_path / "runs").exists()
