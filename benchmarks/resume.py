"""Killed and resumed: does a run end where it would have ended? Lamina, Lightning, and the loop of a good tutorial.

    python benchmarks/resume.py [--trials 20] [--kills 2] [--python lightning=PATH]

The job: 1,437 digits, 64-64-10 with dropout, Adam, a falling learning rate, shuffled batches of 32, 30 epochs; 3 ms of sleep
a step, so that there is something to kill. Each contender trains once undisturbed. Then, in each trial, it is killed
(SIGKILL) at random instants between its first and its last step, started again each time as its own documentation says,
and in the end its weights are compared with those of the undisturbed run, to the bit.

`tutorial` saves model, optimiser, schedule and epoch after every epoch with `torch.save` and loads them again, as
docs.pytorch.org's "Saving and loading a general checkpoint" shows; `tutorial, every 25 steps` does so within epochs, too,
and starts the epoch anew. `lightning` has a ModelCheckpoint every 25 steps and goes on with `ckpt_path="last"`. `lamina`
is `lamina.train(..., checkpoint_every="25steps")` and `lamina.resume`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measured

EPOCHS, BATCH, EVERY, PAUSE = 30, 32, 25, 0.003
STEPS = EPOCHS * 45
Worker = Callable[[Path], Any]


def data() -> tuple[Any, Any, Any, Any]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    return x[:1437], y[:1437], x[1437:], y[1437:]


def build() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))


def did(step: int) -> None:
    """A step was done: the one who kills counts them."""
    print(f"step {step}", flush=True)
    time.sleep(PAUSE)


# --- The contenders: each trains in a folder, from its start or from what is there -------------------------------------


def tutorial(folder: Path, every: int = 0) -> Any:
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    x, y, *_ = map(torch.from_numpy, data())
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.3)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    place, first, step = folder / "checkpoint.pt", 0, 0

    def save(epoch: int) -> None:
        parts = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save({**parts, "epoch": epoch, "step": step}, place)

    if place.exists():
        saved = torch.load(place, weights_only=True)
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        first, step = saved["epoch"], saved["step"]
    net.train()
    for epoch in range(first, EPOCHS):
        for inputs, truth in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), truth).backward()
            optimizer.step()
            step += 1
            if every and step % every == 0:
                save(epoch)
            did(step)
        schedule.step()
        save(epoch + 1)
    return net


def tutorial_within(folder: Path) -> Any:
    return tutorial(folder, EVERY)


def lightning(folder: Path) -> Any:
    import logging
    import warnings

    import lightning as L
    import torch
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    L.seed_everything(0, verbose=False)
    x, y, *_ = map(torch.from_numpy, data())

    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = build()

        def training_step(self, batch: Any, number: int) -> Any:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.3)]

    class Count(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            did(trainer.global_step)

    keep = ModelCheckpoint(dirpath=folder / "checkpoints", every_n_train_steps=EVERY, save_last=True)
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[keep, Count()], default_root_dir=folder,
    )  # fmt: skip
    module = Net()
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True), ckpt_path="last")
    return module.net


def lamina(folder: Path) -> Any:
    from torch import nn

    from lamina import resume, train

    x, y, x2, y2 = data()

    def count(progress: Any) -> None:
        did(progress.step)

    run = folder / "run"
    own: dict[str, Any] = {"net": build(), "loss": nn.CrossEntropyLoss(), "watchers": [count], "quiet": True}
    if (run / "run.json").exists():
        return resume(run, (x, y), test=(x2, y2), **own).net
    return train(
        (x, y), test=(x2, y2), runs=folder, name="run", epochs=EPOCHS, batch_size=BATCH, optimizer="adam",
        learning_rate=3e-3, schedule="step", schedule_arg={"every": 10, "gamma": 0.3},
        checkpoint_every=f"{EVERY}steps", baselines=False, report=False, **own,
    ).net  # fmt: skip


CONTENDERS: dict[str, Worker] = {
    "tutorial": tutorial, "tutorial, every 25 steps": tutorial_within, "lightning": lightning, "lamina": lamina,
}  # fmt: skip


# --- Who kills --------------------------------------------------------------------------------------------------------


class Process:
    """A contender at work. What it says last, besides the steps it has done, is its weights' SHA-256 and its accuracy."""

    def __init__(self, name: str, python: str, folder: Path):
        command = [python, str(Path(__file__).resolve()), "--one", name, "--folder", str(folder)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
        )
        self.steps = 0
        self.result: dict[str, Any] = {}
        self.said: list[str] = []
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._hear)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):  # a line that the end of the process has cut
                if line.startswith("step "):
                    self.steps += 1
                elif line.startswith("{"):
                    self.result = json.loads(line)

    def _hear(self) -> None:
        assert self.process.stderr is not None
        self.said = [line.strip() for line in self.process.stderr if line.strip()]

    def after(self, steps: int) -> None:
        """Kill it when it has done so many steps; it may be done before."""
        while self.steps < steps and self.process.poll() is None:
            time.sleep(0.001)
        time.sleep(random.random() * 2 * PAUSE)  # anywhere within a step, or in what follows it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ended()

    def ended(self) -> int:
        code = self.process.wait()
        for thread in self._threads:
            thread.join()
        return code


def trial(name: str, python: str, kills: int, chance: random.Random) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        steps = 0
        for _ in range(kills):
            process = Process(name, python, Path(folder))
            process.after(chance.randint(1, STEPS // kills))
            steps += process.steps
            if process.result:
                break
        process = Process(name, python, Path(folder))
        code = process.ended()
        steps += process.steps
        left = [path.name for path in Path(folder).rglob("*") if "tmp" in path.name]
        if code or not process.result:
            return {"lost": " ".join(process.said[-1:]) or f"exit code {code}", "steps": steps, "left": left}
        return {**process.result, "steps": steps, "left": left}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, default=20)
    options.add_argument("--kills", type=int, default=2, help="in each trial (default 2)")
    options.add_argument("--seed", type=int, default=0, help="of the instants")
    options.add_argument("--only", action="append", choices=CONTENDERS)
    options.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="whose Python a peer needs")
    options.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.one:
        one(asked)
        return
    pythons = dict(entry.split("=", 1) for entry in asked.python)
    wanted = [name for name in asked.only or CONTENDERS if name != "lightning" or name in pythons or asked.only]
    measured.heading(f"Killed {asked.kills} times and resumed, {asked.trials} trials each")
    measured.table(
        "", "end in the same bits", "cannot go on", "steps done twice, a trial", "test accuracy, %", "undisturbed, %"
    )
    for name in wanted:
        python, chance = pythons.get(name, sys.executable), random.Random(asked.seed)
        golden = trial(name, python, 0, chance)
        if "lost" in golden:
            sys.exit(f"{name} does not run: {golden['lost']}")
        found = []
        for number in range(asked.trials):
            found.append(trial(name, python, asked.kills, chance))
            print(f"# {name} {number + 1}: {found[-1]}", file=sys.stderr, flush=True)
        ended = [one for one in found if "lost" not in one]
        same = sum(one["weights"] == golden["weights"] for one in ended)
        again = sum(one["steps"] for one in ended) / max(1, len(ended)) - golden["steps"]
        accuracy = measured.spread([100 * one["accuracy"] for one in ended], 2) if ended else "–"
        measured.row(
            name, f"{same} of {len(found)}", len(found) - len(ended), f"{again:.0f}", accuracy,
            f"{100 * golden['accuracy']:.2f}",
        )  # fmt: skip


def one(asked: argparse.Namespace) -> None:
    """In a process of its own."""
    import torch

    net = CONTENDERS[asked.one](asked.folder).eval()
    *_, x, y = map(torch.from_numpy, data())
    with torch.inference_mode():
        accuracy = float((net(x).argmax(1) == y).float().mean())
    weights = b"".join(p.detach().numpy().tobytes() for p in net.parameters())
    print(json.dumps({"weights": hashlib.sha256(weights).hexdigest(), "accuracy": accuracy}), flush=True)


if __name__ == "__main__":
    main()
