"""The wheel: it carries every source file, and trains in a new environment that has nothing but what it asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(*words: object, cwd: Path, seconds: int = 120) -> str:
    """Run a command in a folder that is not the checkout, with no way back to it; its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{done.args} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the installed hatchling."""
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("lamina-*.whl")
    return built


def test_the_wheel_carries_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {path for path in (ROOT / "lamina").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(ROOT).as_posix() for path in files}
    assert "lamina/py.typed" in names


@pytest.mark.timeout(600)  # torch is large
def test_the_wheel_trains_in_an_empty_environment(wheel, tmp_path):
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    call(sys.executable, "-m", "venv", environment, cwd=elsewhere)
    # Without bytecode: compiling all of torch takes longer than importing it once.
    install = ("-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt", wheel)
    call(environment / "bin" / "python", *install, cwd=elsewhere, seconds=540)

    where = call(environment / "bin" / "python", "-c", "import lamina; print(lamina.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(environment)

    train = ("train", "iris", "--epochs", 2, "--quiet", "--runs", "runs", "--name", "w")
    call(environment / "bin" / "lamina", *train, cwd=elsewhere)
    assert json.loads((elsewhere / "runs" / "w" / "run.json").read_text())["status"] == "done"
