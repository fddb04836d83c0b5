"""Contenders in turn: each run a fresh process, round after round, and what other processes did to it.

A job is a file with functions (asked, clock) -> dict, by name, and one call of `main`. In a run the function marks its
epochs on the clock and gives its test accuracy; outside, the process is timed from start to exit and its peak memory is
taken. The clock also tells how much of the processors others used: an epoch so spoilt is left out, and said so. Torch's
threads wait for each other by spinning, so that one busy process beside two threads can cost a factor.

Only the standard library is loaded here, since the Python of another trainer may have nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

QUIET = 0.06  # processors of others below which the machine is called quiet
PATIENCE = 30.0  # seconds to wait for that before a run


def cpu_used() -> tuple[float, float]:
    """Processor seconds used by the whole machine, and by this process with its ended children."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _waiting, irq, softirq, steal = ticks
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    mine = sum(usage.ru_utime + usage.ru_stime for usage in own)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), mine


class Clock:
    """Marks the epochs of one run. A watcher of Lamina's, too: it marks the end of every epoch."""

    at_epoch_end = True

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.others: list[float] = []  # processor seconds of other processes, an epoch
        self.begin()

    def begin(self) -> None:
        self._at, self._used = time.perf_counter(), cpu_used()

    def lap(self, seconds: float | None = None) -> None:
        """The end of an epoch, and the beginning of the next. seconds: what it took, where somebody knows better."""
        now, used = time.perf_counter(), cpu_used()
        self.seconds.append(now - self._at if seconds is None else seconds)
        self.others.append(max(0.0, (used[0] - self._used[0]) - (used[1] - self._used[1])))
        self._at, self._used = now, used

    def __call__(self, progress: Any) -> None:
        if progress.epoch_end:
            self.lap()


Contender = Callable[[argparse.Namespace, Clock], dict[str, Any]]


def parser(words: str, contenders: Iterable[str], *, rounds: int = 5) -> argparse.ArgumentParser:
    """The options every job has; a job adds its own."""
    made = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help=f"runs of each contender (default {rounds})")
    made.add_argument("--only", action="append", metavar="NAME", help=f"of: {'; '.join(contenders)}. Repeatable")
    made.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="whose Python a peer needs")
    made.add_argument("--json", metavar="FILE", help="write the figures there, for picture.py")
    made.add_argument("--one", help=argparse.SUPPRESS)
    made.add_argument("--out", help=argparse.SUPPRESS)
    return made


def main(
    options: argparse.ArgumentParser, contenders: dict[str, Contender], title: Callable[[argparse.Namespace], str], *,
    base: str = "hand", bases: tuple[str, ...] = (), terminal: tuple[str, ...] = (), peers: tuple[str, ...] = (),
    unit: Callable[[argparse.Namespace], str] = lambda asked: "epoch",
) -> None:  # fmt: skip
    """The whole of a job: one run, if this process was started for it; else all of them, and the table.

    base, bases: whom the ratios are to. terminal: who sees a terminal instead of a file. peers: those that run only where
    --python names an interpreter for them, or --only names them.
    """
    asked = options.parse_args()
    if asked.one:
        clock = Clock()
        found = contenders[asked.one](asked, clock)
        epochs = {"seconds": clock.seconds, "others": clock.others}
        Path(asked.out).write_text(json.dumps({**epochs, **found}), encoding="utf-8")
        return
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # else a checkout is compiled at every start, and what is installed is not
    pythons = dict(entry.split("=", 1) for entry in asked.python)
    if unknown := {*pythons, *(asked.only or ())} - set(contenders):
        options.error(f"no contender {', '.join(sorted(unknown))}: there are {', '.join(contenders)}")
    wanted = [name for name in contenders if name in (asked.only or contenders)]
    wanted = [name for name in wanted if name not in peers or name in pythons or name in (asked.only or ())]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    for turn in range(asked.rounds):
        for name in wanted:
            try:
                runs[name].append(run(name, pythons.get(name, sys.executable), name in terminal))
            except RuntimeError as error:
                print(f"# {name} failed: {error}", file=sys.stderr, flush=True)
                continue
            said = ", ".join(f"{second:.2f}" for second in runs[name][-1]["seconds"])
            print(f"# {turn + 1}. {name}: {said} s; {runs[name][-1]['wall']:.1f} s in all", file=sys.stderr, flush=True)
    results = {name: summary(found) for name, found in runs.items() if found}
    tell(title(asked), results, [name for name in (base, *bases) if name in results], unit(asked))
    if asked.json:
        write(Path(asked.json), title(asked), results, base, unit(asked))


# --- One run ----------------------------------------------------------------------------------------------------------


def run(name: str, python: str, terminal: bool) -> dict[str, Any]:
    """One contender in a process of its own: what it reports, and what can be seen from outside."""
    quiet = wait_for_quiet()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [python, *sys.argv, "--one", name, "--out", str(out)]
        began, before = time.perf_counter(), cpu_used()[0]
        code, usage, said = (under_terminal if terminal else into_file)(command, Path(folder) / "said.txt")
        wall, busy = time.perf_counter() - began, cpu_used()[0] - before
        if code or not out.is_file():
            last = [line.strip() for line in said.splitlines() if line.strip()][-3:]
            raise RuntimeError(f"exit code {code}: {' '.join(last)[-500:]}")
        own = usage.ru_utime + usage.ru_stime
        return {
            **json.loads(out.read_text(encoding="utf-8")),
            "wall": wall,
            "wall_others": max(0.0, busy - own),
            "peak_mib": usage.ru_maxrss / (1024 if sys.platform == "linux" else 2**20),
            "quiet_before": quiet,
        }


def into_file(command: list[str], place: Path) -> tuple[int, resource.struct_rusage, str]:
    with place.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage, place.read_text(encoding="utf-8", errors="replace")


def under_terminal(command: list[str], place: Path) -> tuple[int, resource.struct_rusage, str]:
    """With a terminal of 120 columns, so that bars are drawn as for a person."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    while True:
        if select.select([ours], [], [], 1.0)[0]:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said = (said + part)[-100_000:]
    os.close(ours)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage, said.decode(errors="replace")


def wait_for_quiet() -> bool:
    """Until others leave the processors alone for a second; False when they do not."""
    end, quiet = time.perf_counter() + PATIENCE, 0
    while quiet < 2:
        if time.perf_counter() > end:
            return False
        before = cpu_used()
        time.sleep(0.5)
        after = cpu_used()
        quiet = quiet + 1 if (after[0] - before[0]) - (after[1] - before[1]) < 0.5 * QUIET else 0
    return True


# --- All runs of a contender ------------------------------------------------------------------------------------------


def spoilt(seconds: float, others: float) -> bool:
    """Whether others used more of the processors than clock ticks and the system's own work explain."""
    return others > 0.03 + QUIET * seconds


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and spread of a contender's runs: of the epochs after the first of each (it warms up), where there are."""
    epochs = []
    for found in runs:
        pairs = list(zip(found["seconds"], found["others"], strict=True))
        epochs += pairs[1:] if len(pairs) > 1 else pairs
    clean = [seconds for seconds, others in epochs if not spoilt(seconds, others)]
    walls = [found["wall"] for found in runs if not spoilt(found["wall"], found["wall_others"])]
    accuracies = [found["accuracy"] for found in runs if found.get("accuracy") is not None]
    versions = {name: version for found in runs for name, version in found.get("versions", {}).items()}
    return {
        "epoch": spread(clean or [seconds for seconds, _ in epochs]),
        "left_out": len(epochs) - len(clean) if clean else 0,
        "disturbed": not clean,
        "wall": spread(walls or [found["wall"] for found in runs]),
        "wall_disturbed": not walls,
        "accuracy": spread(accuracies) if accuracies else None,
        "peak_mib": statistics.median(found["peak_mib"] for found in runs),
        "runs": len(runs),
        "versions": versions,
        "note": "; ".join(found["note"] for found in runs[-1:] if "note" in found),
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def tell(title: str, results: dict[str, dict[str, Any]], bases: list[str], unit: str) -> None:
    """A section of RESULTS.md."""
    from measured import heading, row, table

    heading(title)
    ratios = [f"to {base}" for base in bases]
    table("", f"s an {unit}" if unit == "epoch" else f"s for {unit}", "lowest to highest", "n", *ratios,
          "s of the whole process", *ratios, "test accuracy, %", "peak MiB")  # fmt: skip
    for name, found in results.items():
        epoch, wall, accuracy = found["epoch"], found["wall"], found["accuracy"]
        row(
            name,
            f"{'~' if found['disturbed'] else ''}{epoch['median']:.3f}",
            f"{epoch['low']:.3f} to {epoch['high']:.3f}",
            epoch["n"],
            *(f"{epoch['median'] / results[base]['epoch']['median']:.2f}" for base in bases),
            f"{'~' if found['wall_disturbed'] else ''}{wall['median']:.1f}",
            *(f"{wall['median'] / results[base]['wall']['median']:.2f}" for base in bases),
            f"{100 * accuracy['median']:.2f} ({100 * accuracy['low']:.2f} to {100 * accuracy['high']:.2f})"
            if accuracy
            else "–",
            f"{found['peak_mib']:.0f}",
        )
    left = {name: found["left_out"] for name, found in results.items() if found["left_out"]}
    words = []
    if left:
        words.append(
            "left out, as other processes were busy: " + ", ".join(f"{n} of {name}" for name, n in left.items())
        )
    if any(found["disturbed"] or found["wall_disturbed"] for found in results.values()):
        words.append("~: other processes were busy in all of them")
    versions = {name: version for found in results.values() for name, version in found["versions"].items()}
    if versions:
        words.append("versions of the others: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if words:
        print("\n" + "; ".join(words)[:1].upper() + "; ".join(words)[1:] + ".", flush=True)
    for name, found in results.items():
        if found["note"]:
            print(f"\n{name}: {found['note']}.", flush=True)


def write(place: Path, title: str, results: dict[str, dict[str, Any]], base: str, unit: str) -> None:
    """The figures of a job, as picture.py reads them."""
    from measured import machine

    place.parent.mkdir(parents=True, exist_ok=True)
    facts = {"title": title, "machine": machine(), "base": base, "unit": unit, "contenders": results}
    place.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
