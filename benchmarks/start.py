"""How long a person waits before anything happens, and beside the training: whole processes, in turn, and their memory.

    python benchmarks/start.py [--times 5] [--data DIR] [--only TEXT]

Modules are compiled before, as they are after an installation (`PYTHONDONTWRITEBYTECODE` is not handed on). "Beside" is
what a process took beside its epochs: imports, reading, checks, the final scores, figures and report. `import torch` is in
all that train. DIR is a folder with the four IDX files of MNIST; without it the tutorial job is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import heading, row, table

TUTORIAL = """
import torch
from torch import nn
import lamina
net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
lamina.train("mnist", data_dir={data!r}, net=net, loss=nn.CrossEntropyLoss(), epochs={epochs}, quiet=True{more})
"""


LAMINA = str(Path(sys.executable).with_name("lamina"))


def commands(data: str | None, runs: Path) -> dict[str, list[str]]:
    lamina, a_net, a_table = LAMINA, str(runs / "digits"), str(runs / "iris")
    found = {
        "`python -c 'import torch'`": [sys.executable, "-c", "import torch"],
        "`python -c 'import lamina'`": [sys.executable, "-c", "import lamina"],
        "`lamina --help`": [lamina, "--help"],
        "`lamina train --help`": [lamina, "train", "--help"],
        "`lamina check iris`": [lamina, "check", "iris"],
        "`lamina train iris --epochs 1`": [lamina, "train", "iris", "--epochs", "1", "--quiet"],
        "`lamina train breast_cancer --epochs 1`": [lamina, "train", "breast_cancer", "--epochs", "1", "--quiet"],
        "`lamina train digits --net mlp`": [lamina, "train", "digits", "--net", "mlp", "--quiet"],
        "`lamina evaluate RUN`, of digits": [lamina, "evaluate", a_net],
        "`lamina predict RUN digits`, 1,797 pictures": [lamina, "predict", a_net, "digits"],
        "`lamina predict RUN iris`, 150 rows": [lamina, "predict", a_table, "iris"],
    }
    if data:
        for title, more in (("", ""), (", no baselines", ", baselines=False"),
                            (", no baselines, no report", ", baselines=False, report=False")):  # fmt: skip
            words = TUTORIAL.format(data=data, epochs=1, more=more)
            found[f"`lamina.train('mnist', epochs=1)`{title}"] = [sys.executable, "-c", words]
    return found


def once(command: list[str]) -> tuple[float, float | None, float]:
    """Seconds of the whole process, those beside its epochs where it trained, and its peak memory in MiB."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}")
        runs = list(Path(folder).glob("runs/*/history.jsonl"))
        lines = [json.loads(line) for place in runs for line in place.read_text(encoding="utf-8").splitlines()]
        epochs = sum(line.get("seconds", 0.0) for line in lines)
        return (
            seconds,
            seconds - epochs if runs else None,
            usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="runs of each command (default 5)")
    parser.add_argument("--data", help="the folder of MNIST's IDX files")
    parser.add_argument("--only", default="", metavar="TEXT", help="commands that hold this text")
    asked = parser.parse_args()
    data = str(Path(asked.data).absolute()) if asked.data else None
    with tempfile.TemporaryDirectory() as folder:
        for name, more in (("digits", ("--net", "mlp")), ("iris", ())):
            once([LAMINA, "train", name, "--epochs", "1", "--quiet", "--name", name, "--runs", folder, *more])
        measure(asked, commands(data, Path(folder)))


def measure(asked: argparse.Namespace, known: dict[str, list[str]]) -> None:
    wanted = {title: command for title, command in known.items() if asked.only in title}
    found: dict[str, list[tuple[float, float | None, float]]] = {title: [] for title in wanted}
    for command in wanted.values():
        once(command)  # compiles what is not compiled, and brings the files into memory
    for _ in range(asked.times):
        for title, command in wanted.items():
            found[title].append(once(command))
    heading("Start-up, seconds of the whole process")
    table("command", "median", "lowest", "highest", "n", "beside the epochs", "peak MiB")
    for title, runs in found.items():
        seconds = [run[0] for run in runs]
        beside = [run[1] for run in runs if run[1] is not None]
        row(
            title,
            *(f"{f(seconds):.2f}" for f in (statistics.median, min, max)),
            len(runs),
            f"{statistics.median(beside):.2f}" if beside else "–",
            f"{statistics.median(run[2] for run in runs):.0f}",
        )


if __name__ == "__main__":
    main()
