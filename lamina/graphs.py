"""A step on a GPU captured as a CUDA graph: launched at once, in place of kernel by kernel.

In: a function of no arguments that reads tensors which stay where they are and gives tensors, and places for some of those.
Out: a `Graph`, which does it again as a `tape.Tape` does: `replay()`, then `given`. The arithmetic and the random numbers are
those of the eager step; kernels that add up in any order, as some of cuDNN's do, give other last bits here as there.

    graph = Graph(step)
    x.copy_(other); graph.replay(); graph.given

Whether a function may be captured, `tape.record` has said before: it sees whoever reads values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Graph:
    """Kernels that a function launches, made ready to be launched again.

    given: what the function gave, at every replay the same objects; into: for some of them, tensors of the same shape that
    they are written to, and that are given. The function runs once to warm up, unless the same kernels have run before
    (`warm`), and once more while it is captured, where nothing is computed. If it cannot be captured, what it raised comes out
    and the current stream is what it was.
    """

    def __init__(
        self, function: Callable[[], Sequence[Tensor]], into: dict[int, Tensor] | None = None, *, warm: bool = False
    ):
        into = into or {}
        now = torch.cuda.current_stream()
        beside = torch.cuda.Stream()  # libraries make their workspaces there, which a capture must not
        beside.wait_stream(now)
        with torch.cuda.stream(beside):
            if not warm:
                function()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=beside, capture_error_mode="thread_local"):
                found = [tensor.detach() for tensor in function()]
                if into:
                    with torch.no_grad():
                        torch._foreach_copy_(list(into.values()), [found[number] for number in into])
        now.wait_stream(beside)
        self.given = [into.get(number, tensor) for number, tensor in enumerate(found)]

    def replay(self) -> None:
        """Do it again."""
        self._graph.replay()

    def seconds(self, times: int = 5) -> float:
        """How long it takes; as often as this it is done."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            self._graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / times

    def close(self) -> None:
        """Give its memory back. It cannot be replayed any more."""
        self._graph.reset()
        self.given = []
