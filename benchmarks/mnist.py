"""MNIST: the tutorial job against the same loop by hand, the best recipe for an MLP, and the convnet.

    python benchmarks/mnist.py tutorial --data DIR [--seeds 5]
    python benchmarks/mnist.py mlp --data DIR
    python benchmarks/mnist.py convnet --data DIR

DIR holds the four IDX files. Every training is a process of its own; `hand` and `lamina` take turns. Prints a section of
RESULTS.md: test accuracy (measured once, after the last epoch) and seconds, mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time

from measured import heading, row, spread, table

RECIPES = {
    # What `lamina train mnist --net mlp` does, without a validation split and longer.
    "mlp": {
        "net": "mlp",
        "size": "medium",
        "net_arg": {"dropout": 0.4, "input_dropout": 0.2, "normalisation": "batch"},
        "epochs": 30,
        "valid": 0,
        "augment": "none",
    },
    "convnet": {"net": "convnet", "valid": 0},  # the defaults, on all 60,000 pictures
}


def hand(data: str, seed: int) -> dict:
    """The tutorial's loop, as well as plain PyTorch can: resident tensors, one indexing operation a batch, fused Adam."""
    import torch
    from torch import nn

    from lamina import sources

    source = sources.open("mnist", data_dir=data)
    assert source.test is not None
    x, y, x2, y2 = (
        torch.from_numpy(column)
        for column in (source.train.inputs[0], source.train.truth, source.test.inputs[0], source.test.truth)
    )
    x, x2, y, y2 = x.float() / 255, x2.float() / 255, y.long(), y2.long()
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    began = time.perf_counter()
    for _ in range(10):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(net(x[rows]), y[rows]).backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        accuracy = (net.eval()(x2).argmax(1) == y2).float().mean().item()
    return {"accuracy": accuracy, "seconds": seconds}


def tutorial(data: str, seed: int) -> dict:
    """The same net and settings through `lamina.train`."""
    import torch
    from torch import nn

    import lamina

    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    with tempfile.TemporaryDirectory() as runs:
        run = lamina.train(
            "mnist", data_dir=data, net=net, loss=nn.CrossEntropyLoss(), epochs=10, seed=seed, runs=runs, quiet=True
        )
        return {"accuracy": run.headline.value, "seconds": run.facts["seconds"]["train"], "all": run.facts["seconds"]}


def recipe(name: str, data: str, seed: int) -> dict:
    import lamina

    with tempfile.TemporaryDirectory() as runs:
        run = lamina.train("mnist", data_dir=data, seed=seed, runs=runs, quiet=True, **RECIPES[name])
        return {"accuracy": run.headline.value, "seconds": run.facts["seconds"]["train"], "all": run.facts["seconds"]}


def one(job: str, data: str, seed: int) -> dict:
    """One training in a process of its own."""
    command = [sys.executable, __file__, job, "--data", data, "--one", str(seed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["tutorial", "hand", "mlp", "convnet"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        run = {"hand": hand, "tutorial": tutorial}.get(asked.job)
        found = run(asked.data, asked.one) if run else recipe(asked.job, asked.data, asked.one)
        print(json.dumps(found))
        return
    contenders = ["hand", "tutorial"] if asked.job == "tutorial" else [asked.job]
    found = {name: [] for name in contenders}
    for seed in range(asked.seeds):
        for name in contenders:
            found[name].append(one(name, asked.data, seed))
            print(f"# {name} seed {seed}: {found[name][-1]}", file=sys.stderr, flush=True)
    heading({"tutorial": "MNIST, tutorial net 784-128-64-10, batch 64, Adam 1e-3, 10 epochs",
             "mlp": "MNIST, best recipe for an MLP, no augmentation",
             "convnet": "MNIST, convnet, defaults on all 60,000 pictures"}[asked.job])  # fmt: skip
    table("", "test accuracy, %", "seconds of training")
    for name in contenders:
        title = {"tutorial": "lamina", "hand": "by hand"}.get(name, name)
        row(
            title,
            spread([100 * each["accuracy"] for each in found[name]], 2),
            spread([each["seconds"] for each in found[name]], 1),
        )


if __name__ == "__main__":
    main()
