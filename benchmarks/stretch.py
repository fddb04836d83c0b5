"""The two examples that stretch the contract, over several seeds: score, seconds, moves.

    python benchmarks/stretch.py [--seeds 5] [--only reverse]

Out: a line a run and the mean and range of each example. What counts: `reverse` answers 99 % of unseen words right as a
whole, in about a minute; `cartpole` has a mean return of 475 or more over 100 held-out episodes, in under two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import cartpole
import reverse
import torch

import lamina

JOBS: dict[str, tuple[Any, dict[str, Any]]] = {
    "reverse": ("random-20000", dict(domain=reverse.Reverse, task=reverse.Tokens, net=reverse.Seq2Seq, **reverse.SETTINGS)),
    "cartpole": (cartpole.GAME, dict(domain=cartpole.CartPole, task=cartpole.Return, net=cartpole.Policy, **cartpole.SETTINGS)),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1")
    parser.add_argument("--only", choices=JOBS, help="one of the two")
    asked = parser.parse_args()
    game = cartpole.CartPole()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in [asked.only] if asked.only else JOBS:
        source, settings = JOBS[name]
        values, walls = [], []
        for seed in range(asked.seeds):
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.perf_counter(), time.process_time()
                run = lamina.train(source, seed=seed, runs=folder, quiet=True, **settings)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                values.append(run.headline.value)
                walls.append(wall)
                also = ", ".join(f"{e['score']} {e['value']:.5f}" for e in run.scores[1:] if e["split"] == "test")
                if name == "cartpole":
                    also = f"{run.facts['epochs'] * game.poles * game.moves:,} moves"
                print(f"{name} seed {seed}: {run.headline}; {also}; {wall:.1f} s, of a core {cpu:.1f} s", flush=True)
        spread = f"{min(values):.4f} to {max(values):.4f}"
        print(f"{name}: mean {sum(values) / len(values):.4f} ({spread}), {min(walls):.1f} to {max(walls):.1f} s, "
              f"{len(values)} seeds", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
