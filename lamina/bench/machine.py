"""What this machine can do, before any net is looked at.

In: a device, and how long the measuring may take. Out: a dict of figures: matrix products a second, memory, the smallest
operation, one step of a tiny net by hand and through `learn`, and what a second thread costs where there is little to do.

On CUDA the device is waited for at the end of every round; single operations are then the time to ask for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lamina import __version__, devices, engine, optimizers
from lamina.batches import Batches, keeping_generators
from lamina.bench.clock import Company, per_call, threads

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TINY = (64, 784, 128)  # batch, inputs, units: the first layer of the tutorial's net
_STEPS = 64  # of the tiny net, an epoch


def measure_machine(device: torch.device, seconds: float = 10.0) -> dict[str, Any]:
    """Every figure of the machine, as JSON values."""
    most = torch.get_num_threads()
    counts = sorted({1, most}) if device.type == "cpu" else [most]
    share = seconds / 16  # there are about so many things to measure
    with keeping_generators(), Company() as company:
        found: dict[str, Any] = {
            "lamina": __version__,
            "torch": torch.__version__,
            "device": devices.describe(device),
            "processor": devices.fingerprint(device)["cpu"],
            "threads": most,
            "products": [
                {
                    "precision": precision,
                    "threads": count,
                    "gflops": product_rate(device, precision, count, share) / 1e9,
                }
                for precision in product_kinds(device)
                for count in counts
            ],
            "memory_gb_per_s": memory_rate(device, share) / 1e9,
            "operation_us": 1e6 * per_call(_smallest(device), device, share),
            "small_product_us": {},
            "step_us": {},
        }
        for count in counts:
            with threads(count):
                found["small_product_us"][str(count)] = 1e6 * per_call(_small_product(device), device, share)
        with threads(1):  # a tiny net has nothing for a second thread
            for name, seconds_a_step in tiny_steps(device, share).items():
                found["step_us"][name] = 1e6 * seconds_a_step
    found["others_cores"] = company.cores
    return found


def product_kinds(device: torch.device) -> list[str]:
    """fp32 and bf16; on a GPU with tensor cores fp32 also in their format."""
    kinds = [kind for kind in devices.precisions(device) if kind != "fp16"]
    return ["fp32", "tf32", *kinds[1:]] if device.type == "cuda" else kinds


@contextmanager
def _products(kind: str) -> Iterator[None]:
    """Products of floats exactly (fp32), or on a GPU's tensor cores with 10 bits of mantissa (tf32)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product_rate(device: torch.device, precision: str, count: int | None = None, seconds: float = 0.3) -> float:
    """Operations a second in a large square product, two for each multiplication with its addition."""
    size = 2048 if device.type == "cpu" else 8192
    dtype = DTYPES["fp32" if precision == "tf32" else precision]
    # Of random numbers, since ones cost a GPU less power.
    one, other, out = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(3))
    with threads(count or torch.get_num_threads()), _products(precision):
        return 2.0 * size**3 / per_call(lambda: torch.mm(one, other, out=out), device, seconds)


def memory_rate(device: torch.device, seconds: float = 0.3) -> float:
    """Bytes a second, read and written, in a copy that no cache holds."""
    source = torch.ones(2**25 if device.type == "cpu" else 2**28, dtype=torch.float32, device=device)  # 128 MiB, 1 GiB
    target = torch.empty_like(source)
    return 2.0 * source.numel() * 4 / per_call(lambda: target.copy_(source), device, seconds)


def _smallest(device: torch.device) -> Callable[[], Tensor]:
    one = torch.ones(1, device=device)
    return lambda: one.add_(1)


def _small_product(device: torch.device) -> Callable[[], Tensor]:
    batch, inputs, units = _TINY
    x, weight = torch.ones(batch, inputs, device=device), torch.ones(inputs, units, device=device)
    out = torch.empty(batch, units, device=device)
    return lambda: torch.mm(x, weight, out=out)


def tiny_steps(device: torch.device, seconds: float) -> dict[str, float]:
    """Seconds of a step of a net with next to no arithmetic, by hand and through `learn`: what a loop costs.

    The same columns, batches of 8, SGD. By hand: one indexing operation a batch, a fused optimiser, nothing else.
    """
    x, y = torch.randn(8 * _STEPS, 4, device=device), torch.randn(8 * _STEPS, 1, device=device)

    def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.Linear(4, 1).to(device)
        return net, optimizers.make("sgd", net, 0.0)

    net, optimizer = parts()

    def by_hand() -> None:
        for rows in torch.randperm(len(x), device=device).split(8):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x[rows]), y[rows]).backward()
            optimizer.step()

    ours, our_optimizer = parts()
    learning = engine.learn(ours, Batches(x, y, batch_size=8, device=device), nn.MSELoss(), our_optimizer, epochs=None)

    def by_learn() -> None:
        for _ in range(_STEPS):
            next(learning)

    return {name: per_call(f, device, seconds) / _STEPS for name, f in (("hand", by_hand), ("lamina", by_learn))}
