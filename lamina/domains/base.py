"""What every domain gives: the contract between a kind of input and everything that learns, evaluates and serves.

A domain is a dataclass: its fields are its options and what it learned, and they are its saved JSON. All methods but
`encode` and `net` have defaults that fit supervised work on columns; a domain whose batches come from acting, or whose
answers are made step by step, overrides `batches`, `outputs`, `loss`, `validate` or `answers` and nothing else.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lamina import losses, machine, mapped
from lamina.batches import Batch, Batches, Kept, over
from lamina.batches.aside import SetAside
from lamina.errors import DataError, UsageError
from lamina.findings import Finding
from lamina.inference import ELSEWHERE, FEW, MOST, PORTIONS, WORTH, portion, quickest
from lamina.pieces import part
from lamina.recipe import Recipe
from lamina.sources import Examples, Source, describe
from lamina.sources import open as open_source
from lamina.targets.base import Answers, Target
from lamina.views import Change, Swap


@dataclass
class Encoded:
    """Examples as the loader wants them: columns, or a Dataset whose items carry the answer."""

    inputs: Any  # tuple of tensors (N, ...), or a Dataset / DataLoader
    truth: Tensor | None = None
    encode_truth: Callable[[Any], Tensor] | None = None  # for Datasets, batch by batch
    aside: SetAside | None = None  # the items of a Dataset that cannot be used
    kept: Kept | None = None  # the items of a Dataset that gives the same ones every time, as far as they were read


@dataclass
class Domain:
    name: ClassVar[str] = ""
    default_net: ClassVar[str] = "mlp"  # a name in nets/
    simple: ClassVar[tuple[str, ...]] = ("linear",)  # the models of `baselines` that stand beside the net
    tried: ClassVar[bool] = False  # where `loss` is its own: net, answers and loss are tried on a batch all the same

    @classmethod
    def sniff(cls, examples: Examples) -> tuple[float, str]:
        """How sure (0 to 1) that these inputs are of this kind, and why."""
        return 0.0, "only when asked for"

    def read(self, source: Any, **options: Any) -> Source:
        """A source as the user wrote it -> examples."""
        return open_source(source, **options)

    def take(self, source: Source, *, own_net: bool = False) -> Source:
        """The source as this domain learns from it: of a table the columns it uses, of picture files the pictures. What
        cannot be used is left out and told in `findings`. Called before the split; what was taken once is taken again
        the same way. own_net: the net is the user's, and wants plain numbers."""
        return source

    def joins(self) -> bool:
        """Whether columns may come as `Joined` to `fit`, `encode` and the rest."""
        return False

    def opinions(self, examples: Examples, target: Target, asked: Recipe) -> dict[str, tuple[Any, str]]:
        """Settings of the recipe that fit these examples (taken, not yet split) and the domain's own net, each with its
        reason; what was asked for goes before. Not called for a user's own net."""
        return {}

    def fit(self, inputs: Any, rows: np.ndarray) -> None:
        """Learn from the training rows of the raw inputs."""

    def findings(self) -> list[Finding]:
        """What `fit` found out about the data, and what it left out for that."""
        return []

    def begin(self, net: nn.Module, examples: Encoded, rows: np.ndarray, target: Target) -> None:
        """Give a net of the domain's own, just made, what its weights can know of the training rows before it learns."""

    def sides(self, net: nn.Module, examples: Encoded, rows: np.ndarray) -> list[Any]:
        """Some encoded examples (rows sorted) as simple models see them that are to tell the answers of others: one table of
        numbers (n, F), or a sparse matrix of which words stand in them, or both."""
        found = [self.plain(examples.inputs, rows, model) for model in self.simple]
        tables = [table for table in found if table is not None and not hasattr(table, "tocsr")][:1]
        return tables + [table for table in found if hasattr(table, "tocsr")][:1]

    def save(self, folder: Path) -> None:
        """Write into the run's folder what is too large for its JSON."""

    def open(self, folder: Path) -> None:
        """Read what `save` wrote."""

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
        """Batches over some rows. `options` are those of `lamina.batches.Batches`, and `workers`, `cache` and `memory`; with
        shuffle=False the rows as they are, to measure with. A domain that makes its batches by acting does it with `net`,
        and what a resumed run needs of them is in their `state_dict`; they may have `scores()`, asked at the end of each
        epoch."""
        if options.get("cache") and examples.kept is None and hasattr(examples.inputs, "__getitem__"):
            examples.kept = Kept(len(examples.inputs), options.get("memory"))
        if examples.kept is not None:
            options["cache"] = examples.kept  # one for all parts, and for whoever measures afterwards
        if examples.aside is not None:
            options["aside"] = examples.aside
        return over(
            examples.inputs,
            examples.truth,
            indices=rows,
            prepare=self.prepare(),
            encode_truth=examples.encode_truth,
            **options,
        )

    def change(self, recipe: Recipe) -> Change:
        """A random change of encoded inputs under which an example stays what it is: what is learned from where there are
        no answers (`lamina.views`)."""
        return Swap()

    def outputs(self, net: nn.Module, batch: Batch) -> Any:
        """What the net gives for a batch whose answers are known: a net that writes its answer is told them here."""
        return net(*batch.inputs)

    def loss(self, net: nn.Module, batch: Batch, target: Target, loss: Any) -> tuple[Tensor, Any]:
        """What is minimised over a batch (0-d), and the count its mean is taken over."""
        output = self.outputs(net, batch)
        truth = target.shape_truth(batch.truth, output)
        return loss(output, truth), losses.count(loss, output, truth, batch.count, known=batch.known)

    def loss_of_members(self, net: nn.Module, batch: Batch, target: Target, loss: Any) -> tuple[Tensor, Any]:
        """The same where a net gives an answer a member, (B, members, outputs): each learns the truth for itself."""
        output = self.outputs(net, batch)
        one, each = output[:, 0], output.flatten(0, 1)
        truth = batch.truth.repeat_interleave(output.shape[1], 0)
        count = losses.count(loss, one, target.shape_truth(batch.truth, one), batch.count, known=batch.known)
        return loss(each, target.shape_truth(truth, each)), count

    @torch.no_grad()
    def validate(
        self, net: nn.Module, batches: Any, target: Target, loss: Any, *, exact: bool = False
    ) -> dict[str, float]:
        """Loss and quick scores over batches, summed on the device. The net is in evaluation mode.

        The loss is that of all examples together, whatever the size of the batches; of a sum, it is that of an example.
        exact: the net as it is, in no other layout.
        """
        asked, walk = net, batches
        if isinstance(batches, Batches) and batches.rows > PORTIONS[0] and batches.augment is None and not exact:
            walk = copy.copy(batches)
            if self._plain("outputs"):
                asked = self._quick(net, walk)
            else:
                walk.batch_size = FEW
                few = next(walk.epoch(0))
                walk.batch_size = portion(net, few.inputs, lambda count: self.outputs(net, part(few, slice(count))))
        total: Any = 0.0
        over_all: Any = 0  # what the loss's mean is taken over, together
        sums: dict[str, Tensor] = {}
        examples = 0
        for batch in walk.epoch(0):
            output = self.outputs(asked, batch)
            truth = target.shape_truth(batch.truth, output)
            value, count = loss(output, truth).float(), losses.count(loss, output, truth, batch.count)
            if isinstance(count, Tensor):  # where every truth is ignored, the loss is 0/0 and weighs nothing
                value = torch.where(count > 0, value, 0.0)
            total = total + (value if count is None else value * count)
            over_all = over_all + (batch.count if count is None else count)
            for name, amount in target.tally(output, truth).items():
                sums[name] = sums[name] + amount if name in sums else amount
            examples += batch.count
        if not examples:
            raise DataError("The validation data gave no batch.", expected="at least one batch of (x, y)")
        return {
            "loss": float(total) / float(over_all) if over_all else float("nan"),
            **target.summary({name: float(amount) for name, amount in sums.items()}, examples),
        }

    def answers(
        self, net: nn.Module, examples: Encoded, target: Target, rows: np.ndarray | None = None, **options: Any
    ) -> tuple[Answers, np.ndarray | None]:
        """Answers for encoded examples, and their encoded truth where they have one. See `ask`."""
        output, truth = self.ask(net, examples, rows, **options)
        return target.decode(output), truth

    @torch.no_grad()
    def ask(
        self, net: nn.Module, examples: Encoded, rows: np.ndarray | None = None, **options: Any
    ) -> tuple[Tensor, np.ndarray | None]:
        """The net's outputs for encoded examples, on the CPU, and their encoded truth where they have one. The net is in
        evaluation mode.

        batch_size: without it, as many at a time as the net answers fastest. exact: the net as it is, in no other layout.
        """
        size, exact = options.pop("batch_size", None), options.pop("exact", False)
        walk = self.batches(net, examples, rows, shuffle=False, batch_size=size or ELSEWHERE, **options)
        if isinstance(walk, Batches) and walk.rows > PORTIONS[0] and not (exact and size):
            net = self._quick(net, walk, size, exact)
        outputs, truths = [], []
        with machine.full_precision():
            for batch in walk.epoch(0):
                outputs.append(net(*batch.inputs).cpu())
                if batch.truth is not None:
                    truths.append(batch.truth.cpu().numpy())
                del batch  # the next one lies in the same memory, which the cores still have at hand
        return torch.cat(outputs), np.concatenate(truths) if truths else None

    def _quick(self, net: nn.Module, walk: Batches, size: int | None = None, exact: bool = False) -> nn.Module:
        """The net as it answers fastest, to be called with inputs alone, and `walk` made to go with it: the first layers are
        the net's own, rows that follow one another are no copies, and batches are portions unless their size is given.
        """
        if walk.prepare is not None and len(walk.columns) == 1:
            net, walk.prepare = nn.Sequential(walk.prepare, net), None
        walk.batch_size = FEW
        few = next(walk.epoch(0)).inputs
        known = not torch.is_inference_mode_enabled()  # there, nobody counts how often a tensor is written to
        before = [column._version for column in few] if known else None
        fitting = portion(net, few)
        walk.batch_size = size or fitting
        if exact:
            return net
        walk.views = known and walk.device.type == "cpu" and [column._version for column in few] == before
        if len(walk) >= WORTH:
            net = quickest(net, few)
            walk.batch_size = size or portion(net, few, most=MOST, views=walk.views)
        return net

    def _plain(self, name: str) -> bool:
        """Whether a method is the one of this class, so that the net is asked for nothing but its output."""
        return getattr(type(self), name) is getattr(Domain, name)

    def predict(self, net: nn.Module, inputs: Any, target: Target, **options: Any) -> Answers:
        """Raw inputs -> answers for people: what `Run.predict` and a server call."""
        return self.answers(net, Encoded(self.encode(inputs)), target, **options)[0]

    def open_inputs(self, path: str) -> tuple[Any, list[str]]:
        """A file of inputs to predict on, as the command line names it -> raw inputs and a name for each."""
        source = open_source(path)
        if source.train.kind in ("table", "texts", "files"):  # a domain that takes them opens them itself
            raise DataError(f"{path} cannot be used: it holds {describe(source.train)}.",
                            expected=f"inputs for a run of {self.name}")  # fmt: skip
        inputs = source.train.inputs
        count = len(inputs[0]) if isinstance(inputs, tuple) else len(inputs)
        return inputs, [str(row) for row in range(count)]

    def unknown(self, inputs: Any) -> np.ndarray | None:
        """The share (N,), from 0 to 1, of each of some encoded inputs that nothing was learned about, such as words never
        seen, and that the net therefore cannot find strange; None where there is no such thing."""
        return None

    def plain(self, inputs: Any, rows: np.ndarray, model: str) -> Any:
        """Some encoded inputs (rows sorted) as numbers (n, F), dense or a sparse matrix of scipy, for a simple model of this
        name, which is not to write to them; None where it cannot learn from them."""
        column = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else None
        return None if column is None else mapped.seen(column, torch.from_numpy(rows)).numpy()

    def pictures(self, inputs: Any, rows: np.ndarray) -> np.ndarray | None:
        """Some encoded inputs as pictures (n, C, H, W) uint8 for the report; None where there is nothing to see."""
        return None

    def telling(self, net: nn.Module, target: Target) -> list[tuple[str, str]]:
        """What speaks most for each answer, for the report: (answer, words); nothing where nobody can say."""
        return []

    @classmethod
    def tiny(cls) -> Any:
        """A source that can be learned in seconds."""
        raise NotImplementedError(f"{cls.__name__} has no tiny sample")

    def state(self) -> dict[str, Any]:
        """JSON: enough to build it again with `type(self)(**state)`."""
        return dataclasses.asdict(self)
