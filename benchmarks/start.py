"""How long a person waits before anything happens: whole processes, median of several.

python benchmarks/start.py [--times 15]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import heading, row, table

COMMANDS = {
    "`lamina --help`": ["--help"],
    "`lamina train --help`": ["train", "--help"],
    "`lamina train iris --epochs 1`": ["train", "iris", "--epochs", "1", "--quiet"],
    "`lamina train digits --net mlp`": ["train", "digits", "--net", "mlp", "--quiet"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=15)
    times = parser.parse_args().times
    heading("Start-up, seconds of the whole process")
    table("command", "median", "lowest", "highest", "n")
    lamina = str(Path(sys.executable).with_name("lamina"))
    for title, arguments in COMMANDS.items():
        seconds = []
        for _ in range(times if "help" in title else max(3, times // 5)):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                subprocess.run([lamina, *arguments], cwd=folder, check=True, capture_output=True)
                seconds.append(time.perf_counter() - began)
        row(title, *(f"{f(seconds):.2f}" for f in (statistics.median, min, max)), len(seconds))


if __name__ == "__main__":
    main()
