"""Two trainings at once on one machine: the tutorial job, alone and beside another of itself.

    python benchmarks/crowd.py --data DIR [--rounds 3] [--only lamina] [--copies 2] [--epochs 10]

DIR holds the four IDX files. Torch's threads wait for each other by spinning, so that two processes with as many threads as
there are cores each can take ten times as long as one after the other. Time is from the start of all to the end of the last;
the loop by hand is that of `tutorial.py`, with the threads that torch takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contest
from measured import heading, row, table

JOB = Path(__file__).with_name("tutorial.py")
CONTENDERS = ("lamina", "lamina, net alone", "hand")


def at_once(name: str, copies: int, data: str, epochs: int) -> float:
    """Seconds until the last of so many processes has ended."""
    contest.wait_for_quiet()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        started = []
        for k in range(copies):
            job = [sys.executable, str(JOB), "--data", data, "--epochs", str(epochs), "--one", name]
            started.append(
                subprocess.Popen([*job, "--out", f"{folder}/{k}.json"], cwd=folder, stdout=subprocess.DEVNULL)
            )
        codes = [process.wait() for process in started]
        if any(codes):
            raise RuntimeError(f"{name}: exit codes {codes}")
        return time.perf_counter() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="the folder of the four IDX files")
    options.add_argument("--rounds", type=int, default=3, help="times each is run, in turn (default 3)")
    options.add_argument("--only", action="append", choices=CONTENDERS, help="this one alone, again for more")
    options.add_argument("--copies", type=int, default=2, help="processes at once (default 2)")
    options.add_argument("--epochs", type=int, default=10, help="epochs of each (default 10)")
    asked = options.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as in `contest`
    wanted = [(name, copies) for name in asked.only or CONTENDERS for copies in (1, asked.copies)]
    found: dict[tuple[str, int], list[float]] = {key: [] for key in wanted}
    for _ in range(asked.rounds):
        for name, copies in wanted:
            found[name, copies].append(at_once(name, copies, str(Path(asked.data).absolute()), asked.epochs))
            print(f"# {name} x {copies}: {found[name, copies][-1]:.1f} s", file=sys.stderr, flush=True)
    heading(f"{asked.copies} trainings at once: the tutorial job, {asked.epochs} epochs, seconds of whole processes")
    table("", "alone", f"{asked.copies} at once", "lowest to highest", "n", "to alone")
    for name in asked.only or CONTENDERS:
        alone, together = (statistics.median(found[name, copies]) for copies in (1, asked.copies))
        spread = found[name, asked.copies]
        row(name, f"{alone:.1f}", f"{together:.1f}", f"{min(spread):.1f} to {max(spread):.1f}", len(spread),
            f"{together / alone:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
