"""Reading a Dataset ahead: the same batches, whoever reads; a worker that dies is named, and none is left behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset, default_collate, get_worker_info

import lamina
from lamina import batches as b
from lamina import processes, trial
from lamina.batches import datasets, items
from lamina.batches.generators import states
from lamina.errors import DataError, ResourceError, UsageError


class Items(Dataset):
    """Whatever a function makes of the number of an example."""

    def __init__(self, make, n=20):
        self.make, self.n, self.shift = make, n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        return self.make(k)


class Shifted(Items):
    def __getitem__(self, k):
        return torch.tensor([k + self.shift]), k


def read(dataset, workers=0, epochs=(0,), **options):
    """Everything that is read, as bytes: values, shapes and types."""
    walk = b.DatasetBatches(dataset, batch_size=6, workers=workers, seed=1, **options)
    return [facts(batch) for epoch in epochs for batch in walk.epoch(epoch)]


def facts(batch):
    parts = (*batch.inputs, *(() if batch.truth is None else (batch.truth,)))
    return batch.indices.tolist(), [
        (part.dtype, tuple(part.shape), part.contiguous().flatten().view(torch.uint8).tolist()) for part in parts
    ]


KINDS = {
    "tensor and int": lambda k: (torch.full((2, 3), float(k)), k),
    "bytes": lambda k: (torch.full((3,), k, dtype=torch.uint8), k),
    "bfloat16": lambda k: (torch.full((3,), k, dtype=torch.bfloat16), k),
    "array and numpy number": lambda k: (np.full((2, 2), k, np.float64), np.int64(k)),
    "transposed array": lambda k: (np.arange(6.0).reshape(2, 3).T + k, k),
    "number of no dimension": lambda k: (torch.tensor(1.5 * k), np.float32(k)),
    "float and bool": lambda k: (0.1 * k, k % 2 == 0),
    "two inputs": lambda k: (torch.ones(2) * k, torch.zeros(3), k),
    "nested": lambda k: ((torch.ones(2) * k, np.ones(3) * k), k),
    "no answer": lambda k: torch.ones(2) * k,
    "empty part": lambda k: (torch.empty(0), k),
    "list": lambda k: [torch.ones(2) * k, k],
    "two types of number": lambda k: (k if k % 2 else 0.5 * k, k),
    "tensor or array": lambda k: (torch.ones(2) * k if k != 9 else torch.ones(2, dtype=torch.float32) * k, np.int32(k)),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_items_of_every_form_come_out_as_without_workers(kind):
    plain = read(Items(KINDS[kind]), epochs=(0, 1))
    assert (
        plain
        == read(Items(KINDS[kind]), workers=1, epochs=(0, 1))
        == read(Items(KINDS[kind]), workers=3, epochs=(0, 1))
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "two types of number"])
def test_a_batch_in_shared_memory_is_what_torch_collates(kind):
    made = [KINDS[kind](k) for k in range(5)]
    form = items.Form.of(made[0])
    room = form.room(5)
    assert form.write(made, room)

    def flat(part):
        return [leaf for inner in part for leaf in flat(inner)] if isinstance(part, (list, tuple)) else [part]

    for found, expected in zip(flat(form.tied(room)), flat(default_collate(made)), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize(
    "odd",
    [(torch.ones(3), 1), (torch.ones(2).double(), 1), (np.ones(2), 1), (torch.ones(2), 1.0), (torch.ones(2), True),
     (torch.ones(2), 1, 1), torch.ones(2), (torch.ones(2), 1 << 70)],
)  # fmt: skip
def test_an_item_of_another_form_is_seen(odd):
    usual = (torch.ones(2), 1)
    form = items.Form.of(usual)
    assert form.write([usual, usual], form.room(2)) and not form.write([usual, odd], form.room(2))


@pytest.mark.parametrize(
    "item", [("word", 1), {"x": 1}, (None, 1), (np.array(["a"]), 1), (torch.ones(2).to_sparse(), 1)]
)
def test_items_of_no_fixed_form_are_left_to_collation(item):
    assert items.Form.of(item) is None


def test_words_and_other_items_are_sent_as_they_are():
    named = Items(lambda k: (torch.ones(2) * k, "odd" if k % 2 else "even"))
    found = read(named, workers=2, encode_truth=lambda words: torch.tensor([word == "odd" for word in words]))
    assert [part[1][1][2] for part in found] == [[k % 2 for k in part[0]] for part in found]


def test_batches_of_the_users_own_collation_come_from_workers_too():
    def padded(parts):
        return nn.utils.rnn.pad_sequence([x for x, _ in parts], batch_first=True), torch.tensor([y for _, y in parts])

    growing = Items(lambda k: (torch.ones(k + 1), k))
    assert read(growing, collate=padded) == read(growing, workers=2, collate=padded)


def test_batches_that_were_handed_out_stay_as_they_are():
    """They are copies: the shared memory is written to again."""
    walk = b.DatasetBatches(Items(KINDS["tensor and int"], 200), batch_size=4, workers=2)
    for batch in list(walk.epoch(0)):
        assert torch.equal(batch.inputs[0][:, 0, 0].long(), batch.truth)


def test_an_epoch_may_be_left_in_the_middle_and_two_walked_at_once():
    walk = b.DatasetBatches(Items(KINDS["tensor and int"], 50), batch_size=3, workers=2, seed=1)
    expected = [
        [facts(batch) for batch in b.DatasetBatches(walk.reader.dataset, batch_size=3, seed=1).epoch(e)] for e in (0, 1)
    ]
    for _ in range(3):
        going = walk.epoch(1)
        next(going)
        del going
        assert [facts(batch) for batch in walk.epoch(0)] == expected[0]
    one, other = walk.epoch(0), walk.epoch(1)
    pairs = [(facts(x), facts(y)) for x, y in zip(one, other, strict=True)]
    assert [x for x, _ in pairs] == expected[0] and [y for _, y in pairs] == expected[1]


def test_workers_stay_from_epoch_to_epoch_and_end_with_their_batches():
    walk = b.DatasetBatches(Items(lambda k: (torch.tensor([os.getpid()]), k)), batch_size=2, workers=2)
    first, second = ({int(pid) for batch in walk.epoch(epoch) for pid in batch.inputs[0]} for epoch in (0, 1))
    assert first == second and os.getpid() not in first and 1 <= len(first) <= 2
    assert all(Path(f"/proc/{pid}").exists() for pid in first)
    del walk
    gc.collect()
    assert not any(Path(f"/proc/{pid}").exists() for pid in first)


def test_closed_batches_can_be_walked_again():
    walk = b.DatasetBatches(Items(KINDS["bytes"]), batch_size=6, workers=2)
    before = [facts(batch) for batch in walk.epoch(0)]
    walk.close()
    assert [facts(batch) for batch in walk.epoch(0)] == before


@pytest.mark.parametrize(
    "change", [lambda d: setattr(d, "shift", 5), lambda d: d.table.add_(5), lambda d: d.inner.append(5)]
)
def test_a_dataset_that_was_changed_between_epochs_is_read_as_it_is_now(change):
    class Changing(Items):
        def __init__(self):
            super().__init__(None)
            self.table, self.inner = torch.zeros(20), [0]

        def __getitem__(self, k):
            return torch.tensor([k + self.shift + self.table[k] + self.inner[-1]]), k

    dataset = Changing()
    walk = b.DatasetBatches(dataset, batch_size=6, workers=2)
    list(walk.epoch(0))
    change(dataset)
    for batch in walk.epoch(1):
        assert torch.equal(batch.inputs[0][:, 0], batch.truth + 5.0)


def test_a_dataset_sees_which_worker_it_is_in():
    def who(k):
        info = get_worker_info()
        return torch.tensor([info.id, info.num_workers]), k

    for batch in b.DatasetBatches(Items(who), batch_size=6, workers=2):
        assert batch.inputs[0][:, 0].max() <= 1 and (batch.inputs[0][:, 1] == 2).all()


def test_where_processes_cannot_be_copied_a_dataloader_reads(monkeypatch):
    plain = read(Items(KINDS["nested"]))
    monkeypatch.setattr(processes, "CAN", False)
    assert read(Items(KINDS["nested"]), workers=2) == plain
    with pytest.raises(DataError, match="Example 7 "):
        read(Items(lambda k: (k, 1 // (k - 7))), workers=2)


# --- What goes wrong --------------------------------------------------------------------------------------------------


def in_worker(action):
    def make(k):
        if k == 7 and get_worker_info() is not None:
            action()
        return torch.ones(2), k

    return Items(make)


@pytest.mark.filterwarnings("ignore:Worker . of 2 .* Another reads:RuntimeWarning")
@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"killed by SIGKILL, as the system does when memory is used up"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), r"killed by SIGTERM"),
        (lambda: os._exit(3), r"ended with exit code 3"),
    ],
    ids=["out of memory", "crash", "exit"],
)
def test_a_worker_that_dies_is_named_with_its_example(action, words):
    walk = b.DatasetBatches(in_worker(action), batch_size=4, workers=2)
    with pytest.raises(ResourceError, match=rf"Worker [12] of 2 was {words}|Worker [12] of 2 {words}") as error:
        list(walk.epoch(0))
    assert "example 7 of the Dataset" in str(error.value) and "--workers" in error.value.fix
    assert not walk._pool[0][0]._workers


def test_an_example_that_takes_all_memory_is_named():
    def take():
        raise MemoryError

    for dataset, count in ((in_worker(take), 2), (Items(lambda k: take() if k == 7 else k), 0)):
        with pytest.raises(ResourceError, match=r"Example 7 of the Dataset could not be read: the memory is used up"):
            read(dataset, workers=count)


@pytest.mark.parametrize("count", [0, 2])
def test_changing_shapes_are_named(count):
    with pytest.raises(
        DataError, match=r"example \d+ is \(\(2,\) float32, int\), example 7 is \(\(5,\) float32, int\)"
    ):
        read(Items(lambda k: (torch.ones(5 if k == 7 else 2), k)), workers=count, shuffle=True)


def test_a_defect_in_a_worker_is_shown_whole(monkeypatch):
    monkeypatch.setattr(items.Form, "write", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match=r"(?s)should not have.*ZeroDivisionError"):
        read(Items(KINDS["bytes"]), workers=1)


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(UsageError, match="workers is -1"):
        b.DatasetBatches(Items(KINDS["bytes"]), workers=-1)


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    """Nobody tells them: they see that their parent has gone."""
    child = os.fork()
    if child == 0:
        walk = b.DatasetBatches(Items(lambda k: (torch.tensor([os.getpid()]), k)), batch_size=2, workers=1)
        pid = int(next(walk.epoch(0)).inputs[0][0])
        (tmp_path / "pid").write_text(str(pid))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    pid = (tmp_path / "pid").read_text()
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < until, "the worker outlives its parent"
        time.sleep(0.05)


# --- Random numbers of an example -------------------------------------------------------------------------------------

DRAWS = {
    "nothing": lambda k: 0.0,
    "python": lambda k: random.random(),
    "numpy": lambda k: np.random.rand(),
    "torch": lambda k: torch.rand(()).item(),
    "all": lambda k: random.random() + np.random.rand() + torch.rand(()).item(),
    "normal pairs": lambda k: np.random.randn() + random.gauss(0, 1),  # a second number is kept for the next call
    "seldom": lambda k: np.random.rand() if k == 13 else 0.0,
    "seldom, and torch always": lambda k: torch.rand(()).item() + (random.random() if k in (3, 13) else 0.0),
    "the seed alone": lambda k: float(np.random.default_rng(torch.initial_seed()).random()),
    "seeds itself": lambda k: torch.manual_seed(k) and torch.rand(()).item(),
}


def by_hand(draw, epoch, seed, n=20):
    """The contract, spelled out: every generator seeded for every example."""
    from lamina.keyed import number

    found = {}
    with b.keeping_generators():
        for k in range(n):
            one = number(seed, "example", epoch, k)
            random.seed(one), np.random.seed(one & 0xFFFFFFFF), torch.manual_seed(one)
            found[k] = draw(k)
    return found


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("name", list(DRAWS))
def test_what_is_drawn_is_a_function_of_seed_epoch_and_example(name, count):
    draw = DRAWS[name]
    walk = b.DatasetBatches(
        Items(lambda k: (torch.tensor([draw(k)], dtype=torch.float64), k)), batch_size=3, seed=4, workers=count
    )
    np.random.seed(0), np.random.randn()  # one of a pair is left, which an example must not be given
    before = states()
    for epoch in (0, 1, 0):
        found = {
            int(k): float(x) for batch in walk.epoch(epoch) for x, k in zip(batch.inputs[0], batch.indices, strict=True)
        }
        assert found == by_hand(draw, epoch, seed=4)
    assert states() == before


def test_a_dataset_that_draws_nothing_is_read_once_an_example():
    asked = []
    dataset = Items(lambda k: (asked.append(k), torch.ones(1), k)[1:])
    walk = b.DatasetBatches(dataset, batch_size=6, workers=0)
    for epoch in range(2):
        list(walk.epoch(epoch))
    assert len(asked) == 2 * 20 + 2  # and the very first twice more, to see whether it comes out the same


def test_only_what_is_drawn_from_is_seeded():
    reader = items.Reader(Items(lambda k: (torch.rand(1), k)), seed=0)
    reader.batch(0, [0, 1])
    assert reader.drawn == {"torch"}


# --- How many workers -------------------------------------------------------------------------------------------------


def slow(k):
    until = time.perf_counter() + 2e-3
    while time.perf_counter() < until:
        pass
    return torch.ones(1), k


def test_quick_items_are_read_here_and_slow_ones_by_no_more_workers_than_cores(monkeypatch):
    quick = b.DatasetBatches(TensorDataset(torch.ones(50, 2), torch.ones(50)))
    assert quick.choose_workers() == 0 and "us" in quick.why
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    many = b.DatasetBatches(Items(slow, 1000))
    assert many.choose_workers() == 3 and "3 cores" in many.why
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert b.DatasetBatches(Items(slow, 1000)).choose_workers() == 0


def test_slow_steps_need_fewer_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    walks = [b.DatasetBatches(Items(slow, 1000), batch_size=8) for _ in range(2)]
    assert walks[0].choose_workers() == 16 and 1 <= walks[1].choose_workers(0.1) <= 4 and "100 ms" in walks[1].why


@pytest.mark.parametrize("asked, threads", [({}, 1), ({"threads": 2}, 2), ({"workers": 0}, 2)])
def test_the_step_gets_the_cores_that_workers_leave(asked, threads, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets, "WORTH", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(trial, "_try_one_thread", lambda *_: None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run = lamina.train(
            Items(lambda k: (torch.ones(3), k % 2), 40), net=nn.Linear(3, 2), epochs=1, baselines=False, runs=tmp_path,
            report=False, **asked,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert run.recipe.threads == threads and (run.recipe.workers > 0) == ("workers" not in asked)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("workers")]
    assert row.split()[1] == str(run.recipe.workers) and ("an item takes" in row) == ("workers" not in asked)


def test_a_dataset_that_holds_an_open_file_is_not_copied_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "WORTH", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    (tmp_path / "x").write_bytes(bytes(range(200)))
    file = os.open(tmp_path / "x", os.O_RDONLY)

    def through_a_place(k):
        os.lseek(file, k, 0)
        return torch.tensor([os.read(file, 1)[0]]), k

    try:
        walk = b.DatasetBatches(Items(through_a_place, 200), batch_size=8)
        assert all(torch.equal(batch.inputs[0][:, 0], batch.indices) for batch in walk)
        assert walk.workers == 0 and "open" in walk.why
    finally:
        os.close(file)
    dataset = Items(KINDS["bytes"], 200)
    with (tmp_path / "x").open("rb") as dataset.file:
        assert b.DatasetBatches(dataset).choose_workers() == 0
    assert b.DatasetBatches(dataset).choose_workers() > 0


def test_files_that_others_close_or_write_meanwhile_say_nothing_of_a_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "WORTH", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    (tmp_path / "x").write_bytes(bytes(range(200)))
    read_elsewhere, log, pipes = (tmp_path / "x").open("rb"), (tmp_path / "log").open("wb", buffering=0), []

    def beside_others(k):
        read_elsewhere.close()
        log.write(b"a line")
        pipes.extend(os.pipe())
        return torch.tensor([k]), k

    try:
        walk = b.DatasetBatches(Items(beside_others, 200), batch_size=8)
        assert walk.choose_workers() > 0, walk.why
    finally:
        log.close()
        for end in pipes:
            os.close(end)


def test_the_choice_changes_no_batch(monkeypatch):
    expected = read(Items(KINDS["tensor and int"]), epochs=(0, 1))
    monkeypatch.setattr(datasets, "WORTH", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert read(Items(KINDS["tensor and int"]), workers=None, epochs=(0, 1)) == expected


def test_a_training_that_was_not_asked_says_nothing_of_workers_in_its_numbers(tmp_path):
    def trained(**options):
        torch.manual_seed(0)
        dataset = Items(lambda k: (torch.randn(4), k % 2), 40)
        return lamina.train(
            dataset, net=nn.Linear(4, 2), epochs=2, quiet=True, baselines=False, runs=tmp_path, report=False, **options
        )

    one, other = trained(), trained(workers=2)
    assert torch.equal(one.net.weight, other.net.weight)
