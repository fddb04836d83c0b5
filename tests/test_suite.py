"""The benchmarks' plumbing: contenders in turn, what is left out, the tables and the picture. No real job is run."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("the benchmarks are not here", allow_module_level=True)
sys.path.insert(0, str(FOLDER))

import contest  # noqa: E402
import measured  # noqa: E402
import picture  # noqa: E402
import pictures  # noqa: E402
import table  # noqa: E402

JOB = '''"""A job for a test."""
import sys
import contest


def quick(asked, clock):
    for _ in range(asked.epochs):
        clock.lap(1.0)
    return {"accuracy": 0.5 if sys.stdout.isatty() else 0.25}


def slow(asked, clock):
    print("a line of its own")
    for _ in range(asked.epochs):
        clock.lap(2.0)
    return {"note": "10 a second", "versions": {"slow": "1.2"}}


def broken(asked, clock):
    raise ValueError("as planned")


def peer(asked, clock):
    return slow(asked, clock)


contest.PATIENCE = 0.0
jobs = {"hand": quick, "on a terminal": quick, "slow": slow, "broken": broken, "peer": peer}
options = contest.parser(__doc__, jobs)
options.add_argument("--epochs", type=int, default=3)
contest.main(options, jobs, lambda asked: "A job", terminal=("on a terminal",), peers=("peer",))
'''


def job(folder: Path, *typed: str) -> subprocess.CompletedProcess:
    (folder / "job.py").write_text(JOB)
    return subprocess.run(
        [sys.executable, "job.py", *typed], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
    )  # fmt: skip


def test_contenders_take_turns_and_one_that_fails_does_not_stop_them(tmp_path):
    done = job(tmp_path, "--rounds", "2", "--json", "figures/job.json")
    assert done.returncode == 0, done.stderr
    turns = [line.partition(": ")[0] for line in done.stderr.splitlines()]
    one = ["hand", "on a terminal", "slow", "broken failed"]
    assert [turn.lstrip("# 12.") for turn in turns] == one * 2
    assert "ValueError: as planned" in done.stderr
    found = json.loads((tmp_path / "figures" / "job.json").read_text())
    assert found["title"] == "A job" and list(found["contenders"]) == ["hand", "on a terminal", "slow"]
    slow = found["contenders"]["slow"]
    assert slow["epoch"] == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 4}  # the first of each run warms up
    assert slow["runs"] == 2 and slow["wall"]["n"] >= 1 and slow["peak_mib"] > 1
    assert found["contenders"]["on a terminal"]["accuracy"]["median"] == 0.5
    assert found["contenders"]["hand"]["accuracy"]["median"] == 0.25
    row = next(line for line in done.stdout.splitlines() if line.startswith("| slow |"))
    assert row.split(" | ")[3:5] == ["4", "2.00"]  # n, and the ratio to hand
    assert "slow: 10 a second." in done.stdout and "slow 1.2" in done.stdout


def test_a_peer_runs_where_its_python_is_named(tmp_path):
    done = job(tmp_path, "--rounds", "1", "--only", "hand", "--only", "peer", "--python", f"peer={sys.executable}")
    assert "| peer |" in done.stdout and "| slow |" not in done.stdout
    gone = job(tmp_path, "--rounds", "1", "--only", "hand", "--only", "per")
    assert gone.returncode == 2 and "no contender per" in gone.stderr


@pytest.mark.parametrize(
    ("seconds", "others", "left_out"),
    [(0.5, 0.04, False), (0.5, 0.2, True), (60.0, 3.0, False), (60.0, 20.0, True)],
)
def test_an_epoch_that_others_spoilt_is_known(seconds, others, left_out):
    assert contest.spoilt(seconds, others) == left_out


def run(seconds: list[float], others: list[float]) -> dict:
    return {"seconds": seconds, "others": others, "wall": 10.0, "wall_others": 0.0, "peak_mib": 100.0}


def test_spoilt_epochs_are_left_out_and_counted():
    found = contest.summary([run([9.0, 1.0, 5.0], [0, 0, 4.0]), run([9.0, 3.0, 2.0], [0, 0, 0])])
    assert found["epoch"] == {"median": 2.0, "low": 1.0, "high": 3.0, "n": 3}
    assert (found["left_out"], found["disturbed"]) == (1, False)
    quiet = contest.summary([run([9.0, 1.0, 5.0], [0, 0, 0])])
    assert (quiet["left_out"], quiet["disturbed"], quiet["epoch"]["n"]) == (0, False, 2)


def test_where_all_are_spoilt_they_are_kept_and_marked():
    found = contest.summary([run([1.0, 5.0], [4.0, 4.0])])
    assert (found["disturbed"], found["epoch"]["median"]) == (True, 5.0)


def test_a_single_epoch_is_its_own_figure():
    assert contest.summary([run([4.0], [0.0]), run([6.0], [0.0])])["epoch"]["median"] == 5.0


def test_no_paths_of_a_machine_are_printed(monkeypatch, capsys):
    slash = "/"  # so that this file passes the test of such paths
    typed = [f"{slash}a/b/job.py", "--data", f"{slash}home/x", "--python", f"jax by hand={slash}y/z", "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", typed)
    measured.heading("A job")
    said = capsys.readouterr().out
    assert "`python benchmarks/job.py --data DIR --python 'jax by hand=PATH' --epochs 2`" in said
    monkeypatch.setattr(sys, "argv", ["benchmarks/job.py", "--json", "speed/job.json"])
    measured.heading("A job")
    assert "`python benchmarks/job.py --json speed/job.json`" in capsys.readouterr().out


# --- Data -------------------------------------------------------------------------------------------------------------


def test_idx_files_are_read(tmp_path):
    column = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    raw = bytes([0, 0, 8, 3]) + np.array(column.shape, ">i4").tobytes() + column.tobytes()
    (tmp_path / "a-ubyte").write_bytes(raw)
    (tmp_path / "b-ubyte.gz").write_bytes(gzip.compress(raw))
    assert np.array_equal(pictures.idx(tmp_path, "a-ubyte"), column)
    assert np.array_equal(pictures.idx(tmp_path, "b-ubyte"), column)
    with pytest.raises(SystemExit, match="no c-ubyte"):
        pictures.idx(tmp_path, "c-ubyte")


def test_the_table_is_scaled_and_coded_by_its_training_rows(tmp_path):
    head = [*table.NUMBERS, *table.CODES, "income"]
    rows = [["1"] * 6 + ["a"] * 8 + ["<=50K"], ["3"] * 6 + ["b"] * 8 + [">50K"], ["5"] * 6 + ["c"] * 8 + [">50K"]]
    for part, some in (("train", rows[:2]), ("test", rows[2:])):
        (tmp_path / f"adult_{part}.csv").write_text("\n".join(",".join(row) for row in [head, *some]) + "\n")
    (numbers, codes, truth), (numbers2, codes2, truth2), categories = table.columns(str(tmp_path))
    assert numbers[:, 0].tolist() == [-1, 1] and numbers2[:, 0].tolist() == [3]
    assert codes[:, 0].tolist() == [1, 2] and codes2[:, 0].tolist() == [0]  # a category that training has not
    assert truth.tolist() == [0, 1] and truth2.tolist() == [1] and categories == [3] * 8
    net = table.build(categories)
    tensors = [table.tensors(str(tmp_path))[0][k] for k in (0, 1)]
    assert net(*tensors).shape == (2, 2)


# --- The picture ------------------------------------------------------------------------------------------------------


def figures(**medians: float) -> dict:
    contenders = {name: {"epoch": {"median": m, "low": 0.9 * m, "high": 1.1 * m}} for name, m in medians.items()}
    return {"title": "A job", "machine": "a machine", "base": "hand", "contenders": contenders}


def test_bars_are_ratios_to_hand_the_fastest_first():
    bars = picture.bars(figures(hand=2.0, slow=30.0, lamina=1.0))
    assert [(name, ratio) for name, ratio, *_ in bars] == [("lamina", 0.5), ("hand", 1.0), ("slow", 15.0)]
    with pytest.raises(SystemExit, match="'hand'"):
        picture.bars(figures(lamina=1.0))


def test_the_same_figures_give_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        picture.draw([figures(hand=2.0, slow=30.0, lamina=1.0), figures(hand=1.0, lamina=0.8)], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


# --- Every job --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tutorial", "convnet", "table", "gpu", "picture"])
def test_help_says_the_job_without_loading_torch(name):
    code = f"import sys; sys.argv = ['x', '--help']; sys.path.insert(0, {str(FOLDER)!r}); import {name}\n" + (
        f"try:\n    {name}.main()\nexcept SystemExit:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    module = __import__(name)
    assert module.__doc__.splitlines()[0] in done.stdout


def test_every_file_is_on_the_page():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in FOLDER.glob("*.py") if f"({file.name})" not in page] == []
