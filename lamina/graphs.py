"""A step on a GPU captured as a CUDA graph: launched at once, in place of kernel by kernel.

In: a function of no arguments that reads tensors which stay where they are and gives tensors, and places for some of those.
Out: a `Graph`, which does it again as a `tape.Tape` does: `replay()`, then `given`. The arithmetic and the random numbers are
those of the eager step; kernels that add up in any order, as some of cuDNN's do, give other last bits here as there.

    graph = Graph(step)
    x.copy_(other); graph.replay(); graph.given

Whether a function may be captured, `tape.record` has said before: it sees whoever reads values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Graph:
    """Kernels that a function launches, made ready to be launched again.

    given: what the function gave, at every replay the same objects; into: for some of them, tensors of the same shape that
    they are written to, and that are given. The function is run twice, once to warm up.
    """

    def __init__(self, function: Callable[[], Sequence[Tensor]], into: dict[int, Tensor] | None = None):
        into = into or {}
        beside = torch.cuda.Stream()  # libraries make their workspaces there, which a capture must not
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            function()
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            found = [tensor.detach() for tensor in function()]
            with torch.no_grad():
                for number, place in into.items():
                    found[number] = place.copy_(found[number])
        self.given = found

    def replay(self) -> None:
        """Do it again."""
        self._graph.replay()
