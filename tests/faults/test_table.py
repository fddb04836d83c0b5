"""FAULTS.md names the tests as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TABLE = Path(__file__).with_name("table.py")


def test_the_table_is_that_of_the_tests():
    done = subprocess.run([sys.executable, str(TABLE), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
