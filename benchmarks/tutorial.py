"""The tutorial job: MNIST, 784-128-64-10, cross-entropy, Adam at 1e-3, batches of 64, test accuracy at the end.

    python benchmarks/tutorial.py --data DIR [--rounds 5] [--epochs 10] [--json speed/tutorial.json]
    python benchmarks/tutorial.py --data DIR --python skorch=PATH --python lightning=PATH --python keras-jax=PATH

DIR holds the four IDX files. `hand` is the best ordinary loop by hand: all pictures one tensor, a permutation and one
indexing operation a batch, fused Adam, nothing read back within a step. `lamina` is `lamina.train` as it comes, with
baselines, figures and report in its whole process, from the files; `lamina, given floats` is the same from the tensors that
`hand` has; `lamina, net alone` leaves baselines and report out, as all others do. The other trainers run without bars,
loggers and checkpoints, each in the Python that --python names for it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from typing import Any

import contest
from contest import Clock
from pictures import floats, mnist

BATCH = 64


def build() -> Any:
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def accuracy(net: Any, x: Any, y: Any) -> float:
    import torch

    with torch.inference_mode():
        return float((net.eval()(x).argmax(1) == y).float().mean())


def hand(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    x, y, x2, y2 = floats(asked.data)
    net = build()
    learn_by_hand(net, x, y, asked.epochs, clock)
    return {"accuracy": accuracy(net, x2, y2)}


def learn_by_hand(net: Any, x: Any, y: Any, epochs: int, clock: Clock) -> None:
    import torch
    from torch.nn import functional as F

    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    clock.begin()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            loss = F.cross_entropy(net(x.index_select(0, rows)), y.index_select(0, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        clock.lap()


def dataloader(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """The usual loop: TensorDataset, DataLoader, Adam as it comes."""
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    x, y, x2, y2 = floats(asked.data)
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    clock.begin()
    for _ in range(asked.epochs):
        for inputs, truth in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), truth).backward()
            optimizer.step()
        clock.lap()
    return {"accuracy": accuracy(net, x2, y2)}


def lamina(
    asked: argparse.Namespace, clock: Clock, watchers: Any = (), source: Any = None, **settings: Any
) -> dict[str, Any]:
    from torch import nn

    from lamina import train

    source, where = ("mnist", {"data_dir": asked.data}) if source is None else (source, {})
    with tempfile.TemporaryDirectory() as runs:
        run = train(
            source, net=build(), loss=nn.CrossEntropyLoss(), epochs=asked.epochs, batch_size=BATCH, runs=runs,
            watchers=[clock, *watchers], **where, **settings,
        )  # fmt: skip
        return {"accuracy": run.headline.value}


def given_floats(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """All of it, from the tensors that `hand` has."""
    x, y, x2, y2 = floats(asked.data)
    return lamina(asked, clock, source=(x, y), test=(x2, y2))


def net_alone(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return lamina(asked, clock, baselines=False, report=False)


def compile_off(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    return lamina(asked, clock, baselines=False, report=False, compile="off")


def everything(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """A live bar on a terminal, the watch for dead units, checkpoints, and the loss written down every 50 steps."""
    from lamina.watchers import Log

    def log(progress: Any) -> Any:
        return Log({"loss": progress.loss}) if progress.step % 50 == 0 else None

    return lamina(asked, clock, [log], baselines=False, report=False, checkpoint_every="30s")


# --- Other trainers ---------------------------------------------------------------------------------------------------


def skorch(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    import skorch
    import torch

    x, y, x2, y2 = floats(asked.data)

    class Laps(skorch.callbacks.Callback):
        def on_epoch_begin(self, net: Any, **_: Any) -> None:
            clock.begin()

        def on_epoch_end(self, net: Any, **_: Any) -> None:
            clock.lap()

    net = skorch.NeuralNetClassifier(
        build(), criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=1e-3, batch_size=BATCH,
        max_epochs=asked.epochs, train_split=None, iterator_train__shuffle=True, verbose=0, callbacks=[Laps()],
    )  # fmt: skip
    net.fit(x, y)
    return {"accuracy": accuracy(net.module_, x2, y2), "versions": {"skorch": skorch.__version__}}


def lightning(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    import lightning as pl
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    x, y, x2, y2 = floats(asked.data)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = build()

        def training_step(self, batch: Any, index: int) -> Any:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

        def on_train_epoch_start(self) -> None:
            clock.begin()

        def on_train_epoch_end(self) -> None:
            clock.lap()

    module = Module()
    trainer = pl.Trainer(
        max_epochs=asked.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True))
    return {"accuracy": accuracy(module.net, x2, y2), "versions": {"lightning": pl.__version__}}


def keras_jax(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    x, y, x2, y2 = mnist(asked.data)
    x, x2 = x.astype("float32") / 255, x2.astype("float32") / 255

    class Laps(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            clock.begin()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            clock.lap()

    dense = keras.layers.Dense
    layers = [keras.Input((28, 28)), keras.layers.Flatten(), dense(128, "relu"), dense(64, "relu"), dense(10)]
    net = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, steps_per_execution=32)
    net.fit(x, y, batch_size=BATCH, epochs=asked.epochs, verbose=0, callbacks=[Laps()])
    right = float((net.predict(x2, batch_size=1000, verbose=0).argmax(1) == y2).mean())
    return {"accuracy": right, "versions": {"keras": keras.__version__, "jax": jax.__version__}}


def jax_hand(asked: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """By hand in JAX: an epoch is one compiled call, its steps a scan."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    x, y, x2, y2 = mnist(asked.data)
    x, x2 = (jnp.asarray(part.reshape(len(part), -1), jnp.float32) / 255 for part in (x, x2))
    y, y2 = jnp.asarray(y, jnp.int32), jnp.asarray(y2, jnp.int32)
    sizes, weights, key = (784, 128, 64, 10), [], jax.random.key(0)
    for fan_in, fan_out in itertools.pairwise(sizes):
        key, one, two = jax.random.split(key, 3)
        reach = fan_in**-0.5
        weights.append((jax.random.uniform(one, (fan_in, fan_out), minval=-reach, maxval=reach),
                        jax.random.uniform(two, (fan_out,), minval=-reach, maxval=reach)))  # fmt: skip

    def outputs(weights: Any, x: Any) -> Any:
        for weight, bias in weights[:-1]:
            x = jax.nn.relu(x @ weight + bias)
        return x @ weights[-1][0] + weights[-1][1]

    def loss(weights: Any, x: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs(weights, x)), y[:, None], 1).mean()

    def adam(state: Any, x: Any, y: Any) -> Any:
        weights, first, second, t = state
        t, gradients = t + 1, jax.grad(loss)(weights, x, y)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        a, b = 1 - 0.9**t, 1 - 0.999**t
        step = jax.tree.map(lambda w, m, v: w - 1e-3 * (m / a) / (jnp.sqrt(v / b) + 1e-8), weights, first, second)
        return step, first, second, t

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, key: Any) -> Any:
        order, full = jax.random.permutation(key, len(x)), len(x) // BATCH
        rows = order[: full * BATCH].reshape(full, BATCH)
        state = jax.lax.scan(lambda s, r: (adam(s, x[r], y[r]), None), state, rows, unroll=4)[0]
        last = order[full * BATCH :]
        return adam(state, x[last], y[last]) if len(last) else state

    def zeros() -> Any:
        return jax.tree.map(jnp.zeros_like, weights)

    state = (weights, zeros(), zeros(), jnp.zeros(()))
    clock.begin()
    for part in jax.random.split(key, asked.epochs):
        state = jax.block_until_ready(epoch(state, part))
        clock.lap()
    right = float((outputs(state[0], x2).argmax(1) == y2).mean())
    return {"accuracy": right, "versions": {"jax": jax.__version__}}


OURS = {
    "lamina": lamina,
    "lamina, net alone": net_alone,
    "lamina, given floats": given_floats,
    "lamina, compile off": compile_off,
    "lamina, everything on": everything,
}
PEERS = {"skorch": skorch, "lightning": lightning, "keras-jax": keras_jax, "jax by hand": jax_hand}
CONTENDERS: dict[str, contest.Contender] = {"hand": hand, **OURS, "dataloader": dataloader, **PEERS}


def main() -> None:
    options = contest.parser(__doc__ or "", CONTENDERS)
    options.add_argument("--data", required=True, metavar="DIR", help="where the four IDX files lie")
    options.add_argument("--epochs", type=int, default=10)
    contest.main(
        options, CONTENDERS, lambda asked: f"The tutorial job: MNIST, 784-128-64-10, batch 64, Adam, {asked.epochs} epochs",
        terminal=("lamina, everything on",), peers=tuple(PEERS),
    )  # fmt: skip


if __name__ == "__main__":
    main()
