"""A `DataLoader`, or any iterable of (x, ..., y), as its owner made it -> batches."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, default_collate

from lamina.batches.batch import Batch, columns_of, moved, unpack
from lamina.batches.generators import generators, set_generators
from lamina.errors import DataError, RunError


class LoaderBatches:
    """A `DataLoader`, or any iterable of (x, ..., y), as its owner made it: his order, his generators, his workers.

    To resume in the middle of an epoch, the generators are put back to where they were when the epoch began and the
    loader is walked again up to the place: exact when its items depend on nothing but those generators. An IterableDataset
    that gives other answers than it gave, since it cannot be read again, is refused. A batch's `indices` are places in that
    walk, since only the loader knows which examples it gives.
    """

    indices_are = "counted in the order your loader gave them"

    def __init__(
        self,
        loader: Any,
        *,
        device: torch.device | str = "cpu",
        prepare: nn.Module | None = None,
        encode_truth: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
    ):
        self.loader, self.device, self.encode_truth, self.seed = loader, torch.device(device), encode_truth, seed
        self.prepare = prepare.to(self.device) if prepare is not None else None
        self.batch_size = getattr(loader, "batch_size", None)
        # With several workers the last batches of a stream can be more, or fewer, than its len() says.
        self.exact = not isinstance(getattr(loader, "dataset", None), IterableDataset)
        self._began: dict[str, Any] | None = None  # the generators at the beginning of the epoch under way
        self._seen = ""  # a hash of those batches
        self._given = 0  # batches of this epoch handed out: one more than the steps took, where one is read ahead
        self._resume: dict[str, Any] = {}
        self.reuse = False  # see `Batches`
        self._memory: list[Tensor] = []  # of a whole batch

    def __len__(self) -> int:
        return len(self.loader)

    def _generator(self) -> torch.Generator | None:
        own = getattr(self.loader, "generator", None)
        return own if own is not None else getattr(getattr(self.loader, "sampler", None), "generator", None)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        now, given = generators(), max(start, self._resume.get("given", 0))
        if start and self._resume.get("began") is not None:
            self._set(self._resume["began"])
        self._began, self._given, self._seen = self._get(), 0, ""
        again = self.reuse and not start and self.device.type == "cpu"  # what is read ahead has to stay
        walk, place, seen = _walk(self.loader, self._memory if again else None), 0, ""
        ahead: list[Any] = []  # had been read but not learned from, when the state was saved
        for k in range(given if start else 0):
            item = next(walk, None)
            if item is None:
                raise DataError(
                    f"The loader gave {k} batches; the run had already learned from {start} in this epoch.",
                    fix="give the loader of the run, over the same data",
                )
            seen = seen if self.exact else _after(seen, item)
            if k < start:
                self._seen, place = seen, place + len(unpack(item)[0][0])
            else:
                ahead.append(item)
        if start:
            set_generators(now)
            if not self.exact and self._resume.get("seen", seen) != seen:
                raise RunError(
                    f"The stream did not give the {given} batches again that the run had from it in this epoch, so nobody "
                    "knows where it stopped.",
                    expected="a stream that gives the same in every walk, or depends on the generators alone",
                    fix="begin the epoch anew: lamina resume --restart-epoch, lamina.resume(..., restart_epoch=True)",
                )
        for item in itertools.chain(ahead, walk):
            self._given = max(start, self._given) + 1
            if not self.exact:
                self._seen = _after(self._seen, item)
            inputs, truth = moved(item, self.encode_truth, self.device)
            if self.prepare is not None:
                with torch.no_grad():
                    inputs = (self.prepare(inputs[0]), *inputs[1:])
            count = len(inputs[0])
            indices = torch.arange(place, place + count, device=self.device)
            place += count
            lasting = bool(self._memory) and inputs[0] is self._memory[0]
            yield Batch(inputs, truth, indices, count, epoch, self.seed, lasting=lasting)
        self._given = 0

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def _get(self) -> dict[str, Any]:
        state, own = generators(), self._generator()
        return state if own is None else {**state, "own": own.get_state()}

    def _set(self, state: dict[str, Any]) -> None:
        set_generators(state)
        own = self._generator()
        if own is not None and "own" in state:
            own.set_state(state["own"])

    def state_dict(self) -> dict[str, Any]:
        own = self._generator()
        return {
            "began": self._began,
            "given": self._given,
            "seen": self._seen,
            "own": None if own is None else own.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resume = dict(state)
        own = self._generator()
        if own is not None and state.get("own") is not None:
            own.set_state(state["own"])


def _walk(loader: Any, memory: list[Tensor] | None) -> Iterator[Any]:
    """The batches of a loader. Where it only stacks rows of tensors, those of a batch are cut at once: the same rows, of the
    same sampler and generators, in a fifth of the time. memory: what whole batches are cut into; None: each into its own."""
    walk = iter(loader)
    plain = type(loader) is DataLoader and loader.collate_fn is default_collate and loader.batch_sampler is not None
    here = plain and loader.num_workers == 0 and not loader.pin_memory and hasattr(walk, "_next_index")
    found = columns_of(loader.dataset) if here else None
    if found is None:
        return walk
    columns, held = found
    if memory is not None and loader.batch_size:
        forms = [((loader.batch_size, *column.shape[1:]), column.dtype) for column in columns]
        if [(tuple(part.shape), part.dtype) for part in memory] != forms:  # the dataset may have been given others
            memory[:] = [torch.empty(shape, dtype=dtype) for shape, dtype in forms]
    return _cut(walk._next_index, columns, held, loader.dataset, memory)  # type: ignore[attr-defined]


def _cut(
    next_rows: Callable[[], Any], columns: tuple[Tensor, ...], held: Tensor | None, dataset: Any,
    memory: list[Tensor] | None,
) -> Iterator[Any]:  # fmt: skip
    """held: which rows of the columns the dataset has; None for all."""
    while True:
        try:
            rows = next_rows()
        except StopIteration:
            return
        if type(rows) is not list or set(map(type, rows)) != {int}:
            yield default_collate([dataset[row] for row in rows])
            continue
        places = torch.tensor(rows, dtype=torch.int64)
        if held is not None:
            places = held[places]
        elif min(rows) < 0:  # from the end
            places = torch.where(places < 0, places + len(columns[0]), places)
        if memory and len(rows) == len(memory[0]):
            yield [torch.index_select(c, 0, places, out=out) for c, out in zip(columns, memory, strict=True)]
        else:
            yield [column.index_select(0, places) for column in columns]


def _after(seen: str, item: Any) -> str:
    """A hash of batches and one more: of its answers, or of its inputs where it has none; those may be noisy, in the same
    numbers that the net draws from."""
    digest = hashlib.sha256(seen.encode())
    inputs, truth = unpack(item)
    for part in inputs if truth is None else (truth,):
        if isinstance(part, Tensor) and part.ndim and part.layout == torch.strided:
            numbers = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(str(tuple(part.shape)).encode() + numbers.numpy().tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
