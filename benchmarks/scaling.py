"""How time and memory grow: with the number of examples, with the batch size, and with data ten times `--memory`.

    python benchmarks/scaling.py [--rounds 3] [--only examples|batch|memory]

Synthetic rows of 16 floats (for memory: of 256), two classes, an MLP 16-64-2, `lamina.train` as it comes without baselines,
report and test. Each figure is a process of its own. Examples: 6,000 to 6,000,000 at batch 256; what is timed is the last of
three epochs. Batch size: 600,000 examples at 64 to 4096; linear means that the time of an epoch is a constant for each step
and one for each example. Memory: the peak (VmHWM) of a process that trains on an .npz of once and of ten times `--memory`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import heading, row, table

EXAMPLES = (6_000, 60_000, 600_000, 6_000_000)
BATCHES = (64, 256, 1024, 4096)
MEMORY = 64 << 20  # bytes


def rows(count: int, width: int) -> tuple[Any, Any]:
    import numpy as np

    x = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(np.int64)


def learn(source: Any, width: int, batch: int, epochs: int, **settings: Any) -> list[float]:
    """Seconds of each epoch."""
    import time

    from torch import nn

    from lamina import train

    marks = [time.perf_counter()]

    def clock(progress: Any) -> None:
        if progress.epoch_end:
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as runs:
        train(
            source, net=nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 2)), epochs=epochs, batch_size=batch,
            runs=runs, watchers=[clock], baselines=False, report=False, quiet=True, **settings,
        )  # fmt: skip
    return [after - before for before, after in itertools.pairwise(marks)]


def timed(count: int, batch: int) -> float:
    return learn(rows(count, 16), 16, batch, 3, test=0)[-1]


def peak(times: int) -> int:
    """MiB."""
    count = times * MEMORY // (256 * 4) + 1
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "x.npz")
        subprocess.run([sys.executable, __file__, "--write", place, str(count)], check=True)
        learn(place, 256, 256, 1, memory=MEMORY, test=0.01)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def one(*words: Any) -> Any:
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    print(f"# {words}: {done.stdout.split()[-1]}", file=sys.stderr, flush=True)
    return json.loads(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("examples", "batch", "memory"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.write:
        import numpy as np

        x, y = rows(int(asked.write[1]), 256)
        np.savez(asked.write[0], x=x, y=y)
        return
    if asked.one:
        kind, *words = json.loads(asked.one)
        print({"timed": timed, "peak": peak}[kind](*words))
        return
    if asked.only in (None, "examples"):
        found = {count: [one("timed", count, 256) for _ in range(asked.rounds)] for count in EXAMPLES}
        heading("Time of an epoch against the number of examples: batch 256, 16 numbers, MLP 16-64-2")
        table("examples", "s an epoch", "lowest to highest", "us an example", "to 600,000")
        base = statistics.median(found[600_000]) / 600_000
        for count, seconds in found.items():
            each = statistics.median(seconds) / count
            row(f"{count:,}", f"{each * count:.3f}", f"{min(seconds):.3f} to {max(seconds):.3f}", f"{1e6 * each:.3f}",
                f"{each / base:.2f}")  # fmt: skip
    if asked.only in (None, "batch"):
        found = {batch: [one("timed", 600_000, batch) for _ in range(asked.rounds)] for batch in BATCHES}
        heading("Time of an epoch against the batch size: 600,000 examples, 16 numbers, MLP 16-64-2")
        table("batch size", "steps", "s an epoch", "lowest to highest", "us a step")
        for batch, seconds in found.items():
            steps, median = -(-600_000 // batch), statistics.median(seconds)
            row(
                batch,
                f"{steps:,}",
                f"{median:.3f}",
                f"{min(seconds):.3f} to {max(seconds):.3f}",
                f"{1e6 * median / steps:.1f}",
            )
    if asked.only in (None, "memory"):
        peaks = {times: [one("peak", times) for _ in range(asked.rounds)] for times in (1, 10)}
        heading(f"Peak memory of a training with memory={MEMORY >> 20} MiB, rows of 256 numbers in an .npz")
        table("data", "peak MiB", "lowest to highest", "n")
        for times, found_ in peaks.items():
            row(f"{times} x", f"{statistics.median(found_):.0f}", f"{min(found_)} to {max(found_)}", len(found_))


if __name__ == "__main__":
    main()
