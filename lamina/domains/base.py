"""What every domain gives: the contract between a kind of input and everything that learns, evaluates and serves.

A domain is a dataclass: its fields are its options and what it learned, and they are its saved JSON. All methods but
`encode` and `net` have defaults that fit supervised work on columns; a domain whose batches come from acting, or whose
answers are made step by step, overrides `batches`, `loss` or `answers` and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina import losses
from lamina.batches import Batch, over
from lamina.errors import UsageError
from lamina.sources import Examples, Source
from lamina.sources import open as open_source
from lamina.targets.base import Answers, Target


@dataclass
class Encoded:
    """Examples as the loader wants them: columns, or a Dataset whose items carry the answer."""

    inputs: Any  # tuple of tensors (N, ...), or a Dataset / DataLoader
    truth: Tensor | None = None
    encode_truth: Callable[[Any], Tensor] | None = None  # for Datasets, batch by batch


@dataclass
class Domain:
    name: ClassVar[str] = ""

    @classmethod
    def sniff(cls, examples: Examples) -> tuple[float, str]:
        """How sure (0 to 1) that these inputs are of this kind, and why."""
        return 0.0, "only when asked for"

    def read(self, source: Any, **options: Any) -> Source:
        """A source as the user wrote it -> examples."""
        return open_source(source, **options)

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        """Learn from the training rows of the raw inputs."""

    def encode(self, inputs: Any) -> Any:
        """Raw inputs -> tuple of compact tensors (N, ...); a Dataset stays as it is."""
        raise NotImplementedError(f"{type(self).__name__} must define encode")

    def prepare(self) -> nn.Module:
        """The deterministic first layers, from compact tensors to what the net takes."""
        return nn.Identity()

    def net(self, target: Target, size: str, name: str | None = None, **arguments: Any) -> nn.Module:
        """The default net for this input and answer, or the built-in net of a name, fitted to both."""
        raise UsageError(f"The domain {self.name!r} has no net of its own.", fix="name one: --net FILE.py:CLASS")

    def batches(self, net: nn.Module, examples: Encoded, rows: np.ndarray | None, **options: Any) -> Any:
        """Batches over some rows. `options` are those of `lamina.batches.Batches`, and `workers`."""
        return over(
            examples.inputs,
            examples.truth,
            indices=rows,
            prepare=self.prepare(),
            encode_truth=examples.encode_truth,
            **options,
        )

    def loss(self, net: nn.Module, batch: Batch, target: Target, loss: Any) -> tuple[Tensor, Any]:
        """What is minimised over a batch (0-d), and the count its mean is taken over."""
        output = net(*batch.inputs)
        truth = target.shape_truth(batch.truth, output)
        return loss(output, truth), losses.count(loss, output, truth, batch.count)

    @torch.no_grad()
    def validate(self, net: nn.Module, batches: Any, target: Target, loss: Any) -> dict[str, float]:
        """Loss and quick scores over batches, summed on the device. The net is in evaluation mode."""
        total: Tensor | float = 0.0
        sums: dict[str, Tensor] = {}
        count = 0
        for batch in batches.epoch(0):
            output = net(*batch.inputs)
            truth = target.shape_truth(batch.truth, output)
            total = total + loss(output, truth).float() * batch.count
            for name, value in target.tally(output, truth).items():
                sums[name] = sums[name] + value if name in sums else value
            count += batch.count
        return {
            "loss": float(total) / count,
            **target.summary({name: float(value) for name, value in sums.items()}, count),
        }

    @torch.no_grad()
    def answers(
        self, net: nn.Module, examples: Encoded, target: Target, rows: np.ndarray | None = None, **options: Any
    ) -> tuple[Answers, np.ndarray | None]:
        """Answers for encoded examples, and their encoded truth where they have one. The net is in evaluation mode."""
        outputs, truths = [], []
        for batch in self.batches(net, examples, rows, shuffle=False, **{"batch_size": 1000, **options}).epoch(0):
            outputs.append(net(*batch.inputs).cpu())
            if batch.truth is not None:
                truths.append(batch.truth.cpu().numpy())
        return target.decode(torch.cat(outputs)), np.concatenate(truths) if truths else None

    def predict(self, net: nn.Module, inputs: Any, target: Target, **options: Any) -> Answers:
        """Raw inputs -> answers for people: what `Run.predict` and a server call."""
        return self.answers(net, Encoded(self.encode(inputs)), target, **options)[0]

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A file of inputs to predict on -> raw inputs and a name for each."""
        source = open_source(path)
        inputs = source.train.inputs
        count = len(inputs[0]) if isinstance(inputs, tuple) else len(inputs)
        return inputs, [str(row) for row in range(count)]

    def pictures(self, inputs: Any, rows: np.ndarray) -> np.ndarray | None:
        """Some encoded inputs as pictures (n, C, H, W) uint8 for the report; None where there is nothing to see."""
        return None

    @classmethod
    def tiny(cls) -> Any:
        """A source that can be learned in seconds."""
        raise NotImplementedError(f"{cls.__name__} has no tiny sample")

    def state(self) -> dict[str, Any]:
        """JSON: enough to build it again with `type(self)(**state)`."""
        return dataclasses.asdict(self)
