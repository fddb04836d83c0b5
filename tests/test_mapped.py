"""Columns above the memory they were given lie on the disk: the same values, batches and trainings, in as much memory."""

from __future__ import annotations

import dataclasses
import errno
import gc
import gzip
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lamina
from lamina import batches as b
from lamina import inspection, mapped
from lamina.checks import drift, pool
from lamina.domains.arrays import Arrays, moments
from lamina.errors import ResourceError, UsageError
from lamina.recipe import make, size_in_bytes
from lamina.sources import Examples
from lamina.sources.arrays import rows_not_finite

X = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)


def on_disk(array):
    with mapped.limited(0):
        made = mapped.empty(array.shape, array.dtype)
    made[:] = array
    assert mapped.is_mapped(made)
    return made


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 4 << 30), ("500MB", 500_000_000), ("64 mib", 64 << 20), ("1.5g", 3 << 29), ("100kB", 100_000), ("4096", 4096),
     (4096, 4096), ("2K", 2048), ("1TB", 10**12)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text, size):
    assert size_in_bytes(text) == size and make(memory=text).memory == str(text)


@pytest.mark.parametrize("text", ["much", "4 GiBs", "-1", "0", "", "4i", "GiB", "1e9x"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match=r"memory = .*(4GiB)"):
        make(memory=text)


@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64", "float64", "bool"])
def test_columns_on_the_disk_give_the_same_batches(dtype, size):
    column = (X * 50).astype(dtype)
    plain = lamina.Batches(column, Y, batch_size=size, seed=4)
    other = lamina.Batches(on_disk(column), Y, batch_size=size, seed=4)
    assert mapped.is_mapped(other.columns[0])
    for epoch, start in ((0, 0), (1, 3)):
        for one, two in zip(plain.epoch(epoch, start), other.epoch(epoch, start), strict=True):
            assert torch.equal(one.inputs[0], two.inputs[0]) and torch.equal(one.indices, two.indices)


@pytest.mark.parametrize("rows", [[3], [0, 1, 2, 3], [7, 7, 2, 499, 0], list(range(499, -1, -1)), []])
@pytest.mark.parametrize("shape", [(500,), (500, 6), (500, 2, 3)])
def test_rows_are_taken_as_index_select_takes_them(rows, shape):
    column = torch.from_numpy(on_disk(np.arange(np.prod(shape), dtype=np.float32).reshape(shape)))
    wanted = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(mapped.take(column, wanted), column.index_select(0, wanted))
    part = column[100:]  # a view begins elsewhere in the file
    assert torch.equal(mapped.take(part, wanted % 400), part.index_select(0, wanted % 400))
    out = torch.empty((len(rows), *shape[1:]))
    assert torch.equal(mapped.take(column, wanted, out), column.index_select(0, wanted))


@pytest.mark.parametrize("away", [False, True])
def test_rows_that_are_on_the_disk_alone_are_asked_for_together_and_the_next_ones_ahead(away, monkeypatch):
    column = on_disk(X)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, place, size, how: asked.append((place, size)))
    if away:
        monkeypatch.setattr(mapped, "_is_here", lambda *_: False)
    walk = lamina.Batches(column, Y, batch_size=200, seed=4)
    found = [batch.inputs[0] for batch in walk.epoch(0)]
    rows = walk.positions(0)
    assert torch.equal(torch.cat(found), torch.from_numpy(X)[rows])
    # a batch as it is cut, and the one after it before that is due
    parts = [rows[:200], rows[200:400], rows[200:400], rows[400:], rows[400:]] if away else []
    assert asked == [(24 * row, 24) for part in parts for row in sorted(part.tolist())]


def test_where_the_system_cannot_tell_what_it_holds_rows_are_read_all_the_same(monkeypatch):
    column, read = torch.from_numpy(on_disk(X)), os.preadv

    def without_flags(file, buffers, place, flags=0):
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no")
        return read(file, buffers, place)

    rows = torch.tensor([7, 499, 0, 7])
    monkeypatch.setattr(os, "preadv", without_flags)
    assert torch.equal(mapped.take(column, rows), torch.from_numpy(X)[rows])


def test_an_array_its_owner_mapped_is_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", X)
    column = np.load(tmp_path / "x.npy", mmap_mode="r")
    batches = lamina.Batches(column[10:], Y[10:], batch_size=50, shuffle=False)
    assert mapped.is_mapped(batches.columns[0])
    assert np.array_equal(torch.cat([batch.inputs[0] for batch in batches.epoch(0)]).numpy(), X[10:])


def test_values_outlive_the_giving_back_and_nothing_is_left_when_columns_go():
    column = on_disk(X)
    time.sleep(0.03)
    mapped._give_back()
    assert np.array_equal(column, X)
    known = len(mapped._maps)
    del column
    gc.collect()
    mapped._give_back()
    assert len(mapped._maps) == known - 1


def test_the_thread_ends_with_the_last_map():
    column = on_disk(X)
    assert any(thread.name == "lamina-maps" for thread in threading.enumerate())
    del column
    gc.collect()
    until = time.monotonic() + 10
    while mapped._maps or any(thread.name == "lamina-maps" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
        gc.collect()


def test_only_what_is_above_the_limit_goes_to_the_disk_the_largest_first():
    columns = (torch.zeros(10), torch.zeros(1000), torch.zeros(100))
    for limit, expected in ((None, [0, 0, 0]), (5000, [0, 0, 0]), (1000, [0, 1, 0]), (100, [0, 1, 1]), (0, [1, 1, 1])):
        with mapped.limited(limit):
            found = mapped.within(columns)
        assert [mapped.is_mapped(column) for column in found] == [bool(one) for one in expected], limit
        assert all(torch.equal(one, two) for one, two in zip(columns, found, strict=True))


def test_pooled_and_changed_columns_are_what_numpy_makes_of_them():
    with mapped.limited(100):
        assert np.array_equal(whole := mapped.concatenated([X[:3], X[3:], X]), np.concatenate([X, X]))
        made = mapped.changed(torch.from_numpy(on_disk(X)), Tensor_double)
    assert mapped.is_mapped(whole) and mapped.is_mapped(made) and torch.equal(made, torch.from_numpy(X).double())


def Tensor_double(part):
    return part.double()


def test_moments_are_those_of_the_rows_however_many_are_worked_on_together(monkeypatch):
    monkeypatch.setattr(mapped, "PIECE", 300)
    rows = np.random.default_rng(1).permutation(500)[:333]
    for column, axes in (
        (X, (0,)),
        (X.reshape(500, 2, 3), (0, 1, 2)),
        ((X * 20).astype(np.uint8).reshape(500, 2, 3), (0, 1, 2)),
    ):
        some = column[rows].astype(np.float64)
        assert np.allclose(moments(column, rows, axes), (some.mean(axes), some.std(axes)), rtol=1e-12)


@pytest.mark.parametrize("kind", ["f2", "f4", ">f4", "f8", "longdouble"])
def test_rows_that_are_not_finite_are_found_in_whichever_piece_they_lie(kind, monkeypatch):
    monkeypatch.setattr(mapped, "PIECE", 300)
    column = X.astype(kind)
    assert len(rows_not_finite(column)) == 0
    column[[7, 400], 0], column[450, 1], column[451] = np.nan, -np.inf, [np.inf, -np.inf, 0, 0, 0, 0]
    for seen in (column, np.asfortranarray(column)):
        assert rows_not_finite(seen).tolist() == [7, 400, 450, 451]
    huge = np.full((500, 6), np.finfo(kind).max)  # whose sum is infinite
    assert len(rows_not_finite(huge)) == 0


@pytest.mark.parametrize("end", ["", ".gz"])
def test_pictures_of_an_idx_file_are_learned_from_where_they_lie(end, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (400, 8, 8), np.uint8)
    for name, magic, array in (("images-idx3", 0x803, pictures), ("labels-idx1", 0x801, pictures[:, 0, 0] % 2)):
        data = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()
        (tmp_path / f"a-{name}-ubyte{end}").write_bytes(gzip.compress(data) if end else data)
    ends = []
    for memory in (None, "1kB"):
        torch.manual_seed(0)
        run = lamina.train(
            tmp_path / f"a-images-idx3-ubyte{end}", net=nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), memory=memory,
            epochs=2, quiet=True, runs=tmp_path / "runs", report=False, baselines=False,
        )  # fmt: skip
        ends.append((run.net[1].weight, run.headline.value))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


@pytest.mark.parametrize("form", ["npz", "compressed", "arrays", "own map", "given test"])
def test_a_training_on_the_disk_learns_what_one_in_memory_learns(form, tmp_path):
    save = np.savez_compressed if form == "compressed" else np.savez
    parts = {"x_train": X[:400], "y_train": Y[:400], "x_test": X[400:], "y_test": Y[400:]}
    save(tmp_path / "t.npz", **(parts if form == "given test" else {"x": X, "y": Y}))
    np.save(tmp_path / "x.npy", X)
    source = (X, Y) if form == "arrays" else str(tmp_path / "t.npz")
    if form == "own map":
        source = np.load(tmp_path / "x.npy", mmap_mode="r"), Y

    def trained(**options):
        torch.manual_seed(0)
        return lamina.train(
            source, net=nn.Linear(6, 2), epochs=2, quiet=True, runs=tmp_path / "runs", report=False, **options
        )

    one, other = trained(), trained(memory="1kB")
    assert torch.equal(one.net.weight, other.net.weight) and one.headline.value == other.headline.value


def test_scaling_on_the_disk_is_scaling_in_memory():
    plain, other = Arrays(scale="standard"), Arrays(scale="standard")
    rows = np.arange(400)
    plain.fit((X,), rows), other.fit((on_disk(X),), rows)
    assert np.allclose(plain.mean, other.mean, rtol=1e-9) and np.allclose(plain.std, other.std, rtol=1e-9)


def test_a_full_disk_is_said_before_the_first_value():
    with pytest.raises(ResourceError, match="could not be put into"), mapped.limited(0):
        mapped.empty((1 << 60,), np.uint8)


PEAK = """
import sys
import numpy as np, torch
from torch import nn
import lamina

torch.set_num_threads(1)
lamina.train(sys.argv[1], net=nn.Linear(256, 2), epochs=1, batch_size=256, quiet=True, runs=sys.argv[2], memory="8MiB",
             scale="standard", test=float(sys.argv[3]), baselines=False, report=False)
status = open("/proc/self/status").read()  # getrusage would count what the parent held when it forked
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_ten_times_the_data_take_no_more_memory(tmp_path):
    peaks = []
    for count in (16_384, 163_840):  # 16 and 160 MiB, of which 8 may lie in memory
        x = np.random.default_rng(0).standard_normal((count, 256), dtype=np.float32)
        np.savez(tmp_path / "x.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
        done = subprocess.run(
            [sys.executable, "-c", PEAK, tmp_path / "x.npz", tmp_path / "runs", str(1600 / count)],  # as many are tested
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 16, peaks  # held whole, the columns alone would add 144 MiB, and encoding them as much


def resident():
    """Bytes of all maps that this process holds in memory."""
    found, inside = 0, False
    with mapped._lock:
        places = [(known.address, known.address + known.size) for known in mapped._maps.values()]
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024 * inside
        elif "-" in line.split()[0] and not line.split()[0].endswith(":"):
            begin = int(line.split("-")[0], 16)
            inside = any(first <= begin < last for first, last in places)
    return found


@pytest.fixture
def kept_pages(monkeypatch):
    """From now on nobody gives back what was read of a map."""

    def keep():
        mapped._give_back()
        monkeypatch.setattr(mapped, "_give_back", lambda: True)

    return keep


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="pages are counted in /proc")
def test_what_a_net_knows_is_learned_from_rows_of_the_file_and_not_from_its_map(kept_pages, monkeypatch, tmp_path):
    x = np.random.default_rng(0).standard_normal((32_768, 256), dtype=np.float32)  # 32 MiB
    np.savez(tmp_path / "x.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    found, own = [], inspection.familiarise

    def familiarise(job):
        kept_pages()
        found.append(resident())
        own(job)
        found.append(resident())

    monkeypatch.setattr(inspection, "familiarise", familiarise)
    net = nn.Sequential(nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 2))
    run = lamina.train(str(tmp_path / "x.npz"), net=net, steps=10, quiet=True, runs=tmp_path, memory="1MiB", baselines=False,
                       report=False)  # fmt: skip
    assert run.facts["familiar"]["layers"]
    assert found[1] - found[0] < 4 << 20  # rows that are asked for by their place in the map draw in all of it


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="pages are counted in /proc")
def test_drift_is_measured_on_rows_of_the_file_and_not_on_its_map(kept_pages):
    x = np.random.default_rng(0).standard_normal((131_072, 64), dtype=np.float32)  # 32 MiB
    column = on_disk(x)
    table = pool.Pool([column], None, np.arange(len(x)).astype(np.int8) % 2 * 2, Examples((column,)))
    plain = dataclasses.replace(table, columns=[x])
    kept_pages()
    assert list(drift.drift(table, None)) == list(drift.drift(plain, None))
    assert resident() < 4 << 20


def test_forked_workers_know_nothing_of_maps():
    class Rows(torch.utils.data.Dataset):
        def __init__(self):
            self.column = torch.from_numpy(on_disk(X))

        def __len__(self):
            return len(self.column)

        def __getitem__(self, k):
            return self.column[k], int(mapped.is_mapped(self.column))

    dataset = Rows()
    for batch in b.DatasetBatches(dataset, batch_size=64, workers=2, shuffle=False):
        assert torch.equal(batch.inputs[0], torch.from_numpy(X)[batch.indices]) and not batch.truth.any()
