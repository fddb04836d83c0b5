"""Row 42: a step that does not fit into memory is made again in smaller pieces, and is the same step."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lamina
from lamina.errors import ResourceError

pytestmark = pytest.mark.timeout(3600)

SIZE = 24
torch.manual_seed(0)
PARTS = [(torch.randn(SIZE, 6), torch.randint(0, 3, (SIZE,))) for _ in range(5)]


class Allocator(TorchDispatchMode):
    """Refuses the n-th tensor with as many rows as a whole batch."""

    def __init__(self, n: int):
        super().__init__()
        self.left = n

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.ndim == 2 and len(leaf) == SIZE for leaf in tree_leaves(result)):
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("planted: out of memory")
        return result


def made() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)


def halves(parts: list[Any]) -> list[Any]:
    return [(x[start : start + SIZE // 2], y[start : start + SIZE // 2]) for x, y in parts for start in (0, SIZE // 2)]


def walk(learning: Any) -> list[Any]:
    return [progress.incident for progress in learning]


@pytest.mark.fault(42)
@pytest.mark.filterwarnings("ignore:24 examples do not fit")
def test_a_step_without_memory_is_that_of_accumulated_pieces_bit_for_bit(counted, recorded):
    """For every tensor of a step that could be refused, and at several steps."""
    planted = 0
    for before in [2, *range(counted(0, 2)), *range(3, counted(3, len(PARTS)))]:
        expected, optimizer = made(), None
        optimizer = adam(expected)
        torch.manual_seed(2)
        if before:
            walk(lamina.learn(expected, PARTS[:before], F.cross_entropy, optimizer, compile="off"))
        walk(lamina.learn(expected, halves(PARTS[before:]), F.cross_entropy, optimizer, accumulate=2, compile="off"))
        drawn = torch.rand(1)
        for n in range(1, 100):
            net = made()
            torch.manual_seed(2)
            learning = lamina.learn(net, PARTS, F.cross_entropy, adam(net), compile="off")
            for _ in range(before):
                next(learning)
            with Allocator(n) as memory:
                incident = next(learning).incident
            walk(learning)
            if memory.left > 0:  # all tensors of the step have had their turn
                assert incident == {}
                break
            planted += 1
            assert incident["most"] == SIZE // 2
            assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True)), n
            assert torch.equal(torch.rand(1), drawn)
    recorded(planted=planted, bit_equal=planted)
    assert planted >= 10


@pytest.mark.fault(42)
def test_a_mean_over_the_batch_is_said_to_be_another():
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    learning = lamina.learn(net, PARTS, F.cross_entropy, adam(net), compile="off")
    with Allocator(3), pytest.warns(RuntimeWarning, match="the means that 1 takes are over 12 examples now"):
        next(learning)


class Hungry(nn.Module):
    """Has memory for so many examples at a time, when it learns."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self.fc, self.drop = most, nn.Linear(6, 3), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled() and len(x) > self.most:
            raise torch.OutOfMemoryError("planted: out of memory")
        return self.drop(self.fc(x))


COMMON = {"test": 0, "epochs": 3, "batch_size": 16, "baselines": False, "report": False, "quiet": True}


@pytest.mark.fault(42)
@pytest.mark.filterwarnings("ignore:16 examples do not fit")
def test_pieces_stay_and_are_resumed(tmp_path):
    """The run in pieces is the run with accumulate; stopped and resumed it is that too, and tells of it once."""
    x, y = torch.cat([p[0] for p in PARTS]).numpy(), torch.cat([p[1] for p in PARTS]).numpy()

    def ends(progress: Any) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    def net(most: int) -> nn.Module:
        torch.manual_seed(0)
        return Hungry(most)

    lamina.train((x, y), net=net(4), runs=tmp_path, name="whole", **COMMON)
    with pytest.raises(KeyboardInterrupt):
        lamina.train((x, y), net=net(4), runs=tmp_path, name="parts", watchers=[ends], **COMMON)
    lamina.resume(tmp_path / "parts", (x, y), net=net(4), quiet=True)
    torch.manual_seed(0)
    more = {**COMMON, "batch_size": 4, "accumulate": 4}
    lamina.train((x, y), net=net(99), runs=tmp_path, name="accumulated", **more)
    files = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "parts", "accumulated")]
    assert files[0] == files[1] == files[2]
    history = [(tmp_path / name / "history.jsonl").read_text() for name in ("whole", "parts")]
    assert [text.count('"most": 4') for text in history] == [1, 1]


@pytest.mark.fault(42)
@pytest.mark.filterwarnings("ignore:.*do not fit")
def test_where_one_example_is_too_large_the_run_stops_with_advice(tmp_path):
    x, y = PARTS[0]
    with pytest.raises(ResourceError, match="memory is used up") as found:
        lamina.train((x.numpy(), y.numpy()), net=Hungry(0), runs=tmp_path, name="a", **COMMON)
    assert found.value.exit_code == 6


LIMITED = """
    import resource, sys, warnings
    import torch, lamina
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(2048, 16), torch.randint(0, 3, (2048,))
    net = nn.Sequential(nn.Linear(16, 8192), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8192, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    list(lamina.learn(net, [(x[:8], y[:8])], nn.CrossEntropyLoss(), optimizer))
    torch.manual_seed(1)
    most = int(sys.argv[1])
    if not most:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20), resource.RLIM_INFINITY))
    parts = [(x[k : k + most], y[k : k + most]) for k in range(0, 2048, most)] if most else [(x, y)]
    for progress in lamina.learn(net, parts, nn.CrossEntropyLoss(), optimizer, accumulate=len(parts), compile="off"):
        pass
    print(progress.state.most, sum(p.double().sum().item() for p in net.parameters()).hex())
"""


@pytest.mark.fault(42)
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_a_process_whose_memory_is_limited_goes_on_in_pieces():
    """2,048 x 8,192 numbers of 4 bytes are 67 MB a tensor, and 150 MB are left."""

    def child(most: int) -> list[str]:
        code = textwrap.dedent(LIMITED)
        done = subprocess.run([sys.executable, "-c", code, str(most)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("do not fit into memory" in done.stderr) == (most == 0)
        return done.stdout.split()

    most, weights = child(0)
    assert child(int(most)) == ["None", weights]
