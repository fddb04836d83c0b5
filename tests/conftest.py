"""What all tests share: one thread a process, one seed, a folder for runs, the way to the data that lie beside the checkout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Read by torch, OpenBLAS and MKL when they are first imported, and inherited by every command a test starts.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Draw alike in whatever order tests run, and put the thread count back. Loads no torch where no test did."""
    if torch := sys.modules.get("torch"):  # else a process of torch's draws its first seed by chance
        torch.manual_seed(0)
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What one run keeps for later ones stays with the tests."""
    os.environ["LAMINA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty folder for run folders."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger samples: LAMINA_SHARED, or ../shared/data beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("LAMINA_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"there are no shared data at {folder}; LAMINA_SHARED may name their folder")
    return folder
