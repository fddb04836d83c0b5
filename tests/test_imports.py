"""Loading: the collector rests meanwhile, and is afterwards as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextlib import suppress

import pytest

from lamina.imports import ahead, loading


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


def test_a_module_is_loaded_ahead_once_and_what_is_missing_is_told_to_whoever_needs_it(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('loaded')\ntime.sleep(0.3)\nanswer = 7\n")
    code = (
        "from lamina.imports import ahead\n"
        "thread = ahead('no_such_module', 'slow'); thread.join()\n"
        "thread = ahead('slow')\n"
        "import slow, gc\n"
        "assert slow.answer == 7\n"
        "thread.join(); assert gc.isenabled()\n"
        "try:\n    import no_such_module\nexcept ImportError: print('told')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["loaded", "told"], "")


def test_the_collector_is_on_again_after_loading_here_and_there():
    for _ in range(20):
        with loading():
            thread = ahead("json")
        thread.join()
        assert gc.isenabled()
