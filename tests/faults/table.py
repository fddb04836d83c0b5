"""FAULTS.md, from the marks of the tests and the figures they left.

    python tests/faults/table.py [--check]

In: `@pytest.mark.fault(ROW)` of every test here and elsewhere, and `figures.jsonl` beside this file, of which the newest
line of a test counts, lines in full before others. Out: FAULTS.md at the root; with --check only whether it says which
test covers which row as it is now. To make figures anew:

    LAMINA_FAULTS=full LAMINA_FIGURES=$PWD/tests/faults/figures.jsonl python -m pytest tests/faults
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

PARTS = {
    "Process and storage": {
        1: ("the process is killed (SIGKILL) at any instant of training", "resumed, it ends in the same bits"),
        2: ("it is killed while a checkpoint is written", "the one before is used, nothing is left behind"),
        3: ("it is killed while old checkpoints are deleted or a new one is renamed", "one that verifies remains"),
        4: ("the power fails: what was not flushed is gone, torn, zeroed or out of order", "the newest that verifies is used"),
        5: ("a file is cut short", "found, named, the one before is used"),
        6: ("a bit of any file flips", "found"),
        7: ("a file is missing, or from another checkpoint", "found"),
        8: ("the disk is full", "training goes on, no old checkpoint is lost"),
        9: ("the folder cannot be written", "refused before any data are read"),
        10: ("a write fails: I/O error, too many files, interrupted", "tried again; training goes on"),
        11: ("a file system without atomic renames", "refused where it is not safe"),
        12: ("SIGTERM", "step finished, saved, exit 143"),
        13: ("Ctrl-C, once and twice", "saved, exit 130; at once, nothing damaged"),
        14: ("the terminal is closed, nobody reads the output", "training goes on"),
        15: ("the clock jumps", "durations and order stay right"),
        16: ("two processes on one run", "the second is refused"),
        17: ("a lock of a process that is gone", "taken over"),
        18: ("the run folder was moved or copied", "resumed"),
        19: ("a checkpoint of another version", "refused, versions named"),
        20: ("other threads, device or torch at resume", "said: valid, not to the bit"),
        21: ("the main process is killed", "its workers end, no shared memory is left"),
        22: ("the system kills for memory", "as a kill; said"),
        23: ("the writer is still busy at the next checkpoint, or at the end", "waited for"),
    },
    "Data": {
        24: ("the data changed between stop and resume", "refused, with the difference"),
        25: ("a class was added, renamed or moved", "refused"),
        26: ("a sample cannot be read", "named, set aside up to a share"),
        27: ("a picture or table that is a bomb", "refused, memory bounded"),
        28: ("wrong shape, type, channels, rate", "a stated rule, or an error with an example"),
        29: ("labels that are none", "found before training"),
        30: ("one class, one example, hopeless imbalance", "explained"),
        31: ("empty sets and splits, a batch larger than the data", "defined, no NaN"),
        32: ("train and test share examples", "reported"),
        33: ("names in any script", "work, or a clear error"),
        34: ("loops, pipes and devices among the files", "skipped and named"),
        35: ("NaN, infinity, constants, 1e308 in the inputs", "found before training"),
        36: ("untidy CSV, cells with formulas", "parsed or named; escaped"),
        37: ("a file changes while it is read", "found"),
    },
    "Training": {
        38: ("a loss or gradient that is not finite", "never reaches the weights; the layer is named"),
        39: ("a learning rate that is far too high", "recovers, or stops with advice"),
        40: ("a worker dies", "replaced, the same batch"),
        41: ("a worker hangs", "timed out, the example named"),
        42: ("out of memory", "the batch is split, the result the same"),
        43: ("an operation that is not deterministic", "`--strict` names it"),
        44: ("a watcher raises", "stops at a clean point, a checkpoint is kept"),
        45: ("a misspelt setting", "refused with the nearest name, before data are read"),
    },
    "Hostile files": {
        46: ("a pickle with code in it", "never executed"),
        47: ("crafted safetensors and JSON", "refused quickly in little memory"),
        48: ("archives that write elsewhere, or are bombs", "refused, nothing outside the folder"),
        49: ("code, aliases or paths in settings", "refused"),
        50: ("exported nets with outside files", "refused"),
        51: ("markup, formulas and control characters in names", "escaped"),
    },
}  # fmt: skip


class _Marks:
    """A pytest plugin that only looks."""

    def __init__(self) -> None:
        self.rows: dict[int, list[str]] = defaultdict(list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            for mark in item.iter_markers("fault"):
                for row in mark.args:
                    test = item.nodeid.split("[")[0]
                    if test not in self.rows[row]:
                        self.rows[row].append(test)


def marks() -> dict[int, list[str]]:
    """The tests of each row."""
    found = _Marks()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", str(ROOT / "tests")], [found])
    if code:
        sys.exit(f"the tests could not be collected: {said.getvalue()}")
    unknown = found.rows.keys() - {row for rows in PARTS.values() for row in rows}
    if unknown:
        sys.exit(f"there are no rows {sorted(unknown)}")
    return found.rows


def figures() -> dict[str, list[dict[str, Any]]]:
    """The newest figures of each test, a list for those with parameters."""
    newest: dict[str, dict[str, Any]] = {}
    place = HERE / "figures.jsonl"
    for line in place.read_text(encoding="utf-8").splitlines() if place.exists() else []:
        found = json.loads(line)
        if found["full"] or not newest.get(found["test"], {}).get("full"):
            newest[found["test"]] = found
    grouped: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for test, found in newest.items():
        grouped[test.split("[")[0]].append(found)
    return grouped


def words(found: list[dict[str, Any]]) -> str:
    """'planted 1,000, lost 0': of several parameters, sums of counts, and the largest of what is measured."""
    total: dict[str, Any] = {}
    for one in found:
        for name, value in one.items():
            if name in ("test", "full", "seconds"):
                continue
            if isinstance(value, int) and not isinstance(value, bool) and name in total and name != "seed":
                value += total[name]
            elif isinstance(value, float):
                value = max(value, total.get(name, value))
            total[name] = value
    parts = [
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in total.items()
    ]
    return ", ".join(parts) + ("" if all(one["full"] for one in found) else " (a part)")


def table() -> str:
    rows, seen = marks(), figures()
    lines = [
        "# Faults",
        "",
        "What a run, its data and its files survive. Each row is held by the tests beside it, which plant the fault and look",
        "what came of it: a few times whenever the tests run, and as often as the last column says when the figures were",
        "made. Made by `python tests/faults/table.py` from the tests' marks and `tests/faults/figures.jsonl`.",
        "",
    ]
    for title, faults in PARTS.items():
        lines += [f"## {title}", "", "| | fault | what must happen | tests | last figures |", "|---|---|---|---|---|"]
        for row, (fault, must) in faults.items():
            tests = rows.get(row, [])
            names = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in tests) or "none yet"
            last = "<br>".join(words(seen[test]) for test in tests if test in seen)
            lines.append(f"| {row} | {fault} | {must} | {names} | {last} |")
        lines.append("")
    return "\n".join(lines)


def without_figures(text: str) -> list[str]:
    return [line.rsplit("|", 2)[0] if line.startswith("|") else line for line in text.splitlines()]


def main() -> None:
    place, made = ROOT / "FAULTS.md", table()
    if "--check" not in sys.argv:
        place.write_text(made, encoding="utf-8")
        print(f"wrote {place.name}")
    elif without_figures(made) != without_figures(place.read_text(encoding="utf-8")):
        sys.exit("FAULTS.md does not name the tests as they are: python tests/faults/table.py")


if __name__ == "__main__":
    main()
