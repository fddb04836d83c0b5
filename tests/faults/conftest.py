"""What the tests of faults share: how often a fault is planted, and the record of what came of it.

`LAMINA_FAULTS=full` plants as often as FAULTS.md promises; without it a small share is planted, so that all of it takes
minutes. `LAMINA_FIGURES=FILE` appends what was seen, a line of JSON a test; `table.py` makes FAULTS.md of that.

    @pytest.mark.fault(1)                      # a row of the matrix; several where a test covers several
    def test_...(counted, recorded):
        kills = counted(6, 1000)               # in CI, in full
        ...
        recorded(planted=kills, lost=0)        # any figures by name; the test itself says what must hold
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

FULL = os.environ.get("LAMINA_FAULTS") == "full"


@pytest.fixture
def counted() -> Callable[[int, int], int]:
    """How often: a few times in CI, or in full."""
    return lambda few, full: full if FULL else few


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Keeps figures of a test that passes, where somebody asks for them."""
    figures: dict[str, Any] = {}
    began = time.monotonic()
    yield lambda **found: figures.update(found)
    place = os.environ.get("LAMINA_FIGURES")
    if place and figures and getattr(request.node, "passed", False):
        line = {"test": request.node.nodeid, "full": FULL, "seconds": round(time.monotonic() - began, 1), **figures}
        with open(place, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        item.passed = report.passed  # type: ignore[attr-defined]
    return report
