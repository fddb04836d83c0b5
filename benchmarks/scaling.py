"""How time and memory grow: with the number of examples, with the batch size, and with data ten times `--memory`.

    python benchmarks/scaling.py [--rounds 5] [--only examples|batch|memory]

Synthetic rows of 16 floats (for memory: of 256), two classes, an MLP 16-64-2, `lamina.train` as it comes without baselines,
report and test. Each figure is a process of its own, and they take turns. Examples: 6,000 to 6,000,000 at batch 256; what is
timed is the median epoch after the first three, of two or of as many as have 100,000 examples. `batches` is what no loop is
without: the same rows in the same order, cut by `index_select` into the same memory, and nothing learned from them. Batch
size: 600,000 examples at 64 to 4096; linear means that the time of an epoch is a constant for each step and one for each
example. Memory: the peaks, looked at every 2 ms, of a process that trains on an .npz of once and of ten times `--memory`,
with as many examples for test; anonymous memory is what the process holds, the rest are pages of files, code among them,
which the system takes back when it wants them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from measured import heading, row, table

EXAMPLES = (6_000, 60_000, 600_000, 6_000_000)
BATCHES = (64, 256, 1024, 4096)
MEMORY = 64 << 20  # bytes
SETTLED = 3  # epochs: in each of the first three a shape of batches (the last of an epoch is short) is recorded


def rows(count: int, width: int) -> tuple[Any, Any]:
    import numpy as np

    x = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    return x, (x[:, 0] + x[:, 1] > 0).astype(np.int64)


def epochs_of(count: int) -> int:
    return max(SETTLED + 2, SETTLED + 100_000 // count)


def learn(source: Any, width: int, batch: int, epochs: int, **settings: Any) -> list[float]:
    """Seconds of each epoch."""
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
    return statistics.median(learn(rows(count, 16), 16, batch, epochs_of(count), test=0)[SETTLED:])


def cutting(count: int, batch: int) -> float:
    """The same rows in the same order, cut into the same memory."""
    import torch

    from lamina.keyed import permutation

    torch.set_num_threads(1)
    columns = [torch.from_numpy(column) for column in rows(count, 16)]
    parts = [column.new_empty((batch, *column.shape[1:])) for column in columns]
    seconds = []
    for epoch in range(epochs_of(count)):
        began = time.perf_counter()
        for some in permutation(0, epoch, count).split(batch):
            for column, part in zip(columns, parts, strict=True):
                torch.index_select(column, 0, some, out=part if len(some) == batch else None)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[SETTLED:])


def peaks(times: int) -> list[int]:
    """MiB: anonymous, of files, and both together, each at its highest."""
    count = times * MEMORY // (256 * 4) + 1
    highest = [0, 0, 0]
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            anonymous, file = (int(status.split(f"{name}:")[1].split()[0]) // 1024 for name in ("RssAnon", "RssFile"))
            highest[:] = map(max, highest, (anonymous, file, anonymous + file))

    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "x.npz")
        subprocess.run([sys.executable, __file__, "--write", place, str(count)], check=True)
        threading.Thread(target=look, daemon=True).start()
        learn(place, 256, 256, 1, memory=MEMORY, test=0.1 / times)
        done.set()
    return highest


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
    parser.add_argument("--rounds", type=int, default=5)
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
        print(json.dumps({"timed": timed, "cutting": cutting, "peaks": peaks}[kind](*words), separators=(",", ":")))
        return

    def each(*runs: tuple[Any, ...]) -> dict[tuple[Any, ...], list[Any]]:
        """What each run gave, round after round."""
        found: dict[tuple[Any, ...], list[Any]] = {words: [] for words in runs}
        for _ in range(asked.rounds):
            for words in runs:
                found[words].append(one(*words))
        return found

    if asked.only in (None, "examples"):
        found = each(*((kind, count, 256) for count in EXAMPLES for kind in ("timed", "cutting")))
        heading("Time of an epoch against the number of examples: batch 256, 16 numbers, MLP 16-64-2")
        table("examples", "s an epoch", "lowest to highest", "us an example", "to 600,000", "batches, us an example")

        def middle(kind: str, count: int) -> float:
            """us an example"""
            return 1e6 * statistics.median(found[kind, count, 256]) / count

        base = middle("timed", 600_000)
        for count in EXAMPLES:
            seconds, whole = found["timed", count, 256], middle("timed", count)
            row(f"{count:,}", f"{statistics.median(seconds):.4f}", f"{min(seconds):.4f} to {max(seconds):.4f}",
                f"{whole:.3f}", f"{whole / base:.2f}", f"{middle('cutting', count):.3f}")  # fmt: skip
    if asked.only in (None, "batch"):
        found = each(*(("timed", 600_000, batch) for batch in BATCHES))
        heading("Time of an epoch against the batch size: 600,000 examples, 16 numbers, MLP 16-64-2")
        table("batch size", "steps", "s an epoch", "lowest to highest", "us a step", "a line through all, us")
        steps = [-(-600_000 // batch) for batch in BATCHES]
        medians = [statistics.median(found["timed", 600_000, batch]) for batch in BATCHES]
        slope, start = statistics.linear_regression(steps, medians)
        for batch, count, median in zip(BATCHES, steps, medians, strict=True):
            seconds = found["timed", 600_000, batch]
            row(batch, f"{count:,}", f"{median:.3f}", f"{min(seconds):.3f} to {max(seconds):.3f}",
                f"{1e6 * median / count:.1f}", f"{1e6 * (slope * count + start) / count:.1f}")  # fmt: skip
    if asked.only in (None, "memory"):
        found = each(("peaks", 1), ("peaks", 10))
        heading(f"Peak memory of a training with memory={MEMORY >> 20} MiB, rows of 256 numbers in an .npz")
        table("data", "anonymous, MiB", "lowest to highest", "of files, MiB", "together, MiB", "lowest to highest", "n")
        for (_, times), highest in found.items():
            anonymous, file, both = zip(*highest, strict=True)
            row(f"{times} x", f"{statistics.median(anonymous):.0f}", f"{min(anonymous)} to {max(anonymous)}",
                f"{statistics.median(file):.0f}", f"{statistics.median(both):.0f}", f"{min(both)} to {max(both)}",
                len(highest))  # fmt: skip


if __name__ == "__main__":
    main()
