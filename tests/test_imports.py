"""Loading: the collector rests meanwhile, and is afterwards as it was."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest

from lamina.imports import loading


@pytest.mark.parametrize("active", [True, False])
def test_the_collector_rests_and_is_afterwards_as_it_was(active):
    before = gc.isenabled()
    try:
        (gc.enable if active else gc.disable)()
        with loading():
            assert not gc.isenabled()
        assert gc.isenabled() is active
        with suppress(ImportError), loading():
            raise ImportError
        assert gc.isenabled() is active
    finally:
        (gc.enable if before else gc.disable)()


def test_for_good_nothing_that_is_loaded_is_looked_through_again():
    before = gc.get_freeze_count()
    try:
        with loading():
            pass
        assert gc.get_freeze_count() == before
        with loading(for_good=True):
            pass
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()
