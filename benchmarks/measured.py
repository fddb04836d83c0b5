"""What every benchmark says beside its figures: machine, versions, command, n and spread."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path


def machine() -> str:
    """'AMD EPYC 9R14, 2 cores, Python 3.11.7, torch 2.13.0'"""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        name = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), name
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {cores} cores{gpu}, Python {platform.python_version()}, torch {torch.__version__}"


def spread(values: Sequence[float], digits: int = 4) -> str:
    """'0.9812 (0.9790 to 0.9830, n = 5)': mean and range."""
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f}, n = {len(values)})"


def heading(title: str) -> None:
    """Open a section of RESULTS.md. Where things lie on this machine is nobody's business: DIR and PATH."""
    words = [re.sub(r"^(.*=)?[/~].*", r"\1PATH", word) for word in sys.argv[1:]]
    words = ["DIR" if word == "PATH" and before == "--data" else word for before, word in zip(["", *words], words)]  # noqa: B905
    program = Path(sys.argv[0])
    place = f"benchmarks/{program.name}" if program.is_absolute() else program.as_posix()
    command = shlex.join(["python", place, *words])
    print(f"\n## {title}\n\n{machine()}  \n`{command}`\n", flush=True)


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def table(*titles: str) -> None:
    row(*titles)
    row(*["---"] * len(titles))


def nets_and_turns(about: str) -> argparse.Namespace:
    """What a job over many nets in one process is asked: `only`, a text in their names, and `turns`."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", metavar="TEXT", default="", help="nets that hold this text")
    options.add_argument("--turns", type=int, default=3)
    return options.parse_args()
