"""Whatever holds examples becomes a Source, or is refused in words that name the rows, the bytes and the way out."""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import struct
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import lamina
from lamina import mapped, sources
from lamina.errors import DataError, ResourceError, UsageError
from lamina.sources import arrays, idx, mnist, samples

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 0, 1])


# --- Arrays in memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, y",
    [
        (X, Y),
        (torch.tensor(X, requires_grad=True), torch.tensor(Y)),
        (X.tolist(), Y.tolist()),
        (list(torch.tensor(X)), list(torch.tensor(Y))),
        (X.astype(">f4"), Y.astype(">i8")),
    ],
    ids=["numpy", "torch", "lists", "lists of tensors", "the other byte order"],
)
def test_arrays_come_out_as_they_went_in(x, y):
    source = sources.open((x, y))
    (column,) = source.train.inputs
    assert source.train.kind == "arrays" and source.reopen is None and source.train.count == 4
    assert column.dtype == (np.float64 if isinstance(x[0], list) else np.float32)  # as numpy reads numbers
    assert column.dtype.isnative and np.array_equal(column, X)
    assert source.train.truth.dtype.kind == "i" and np.array_equal(source.train.truth, Y)


def test_tensors_and_arrays_share_their_memory():
    tensor = torch.zeros(4, 3)
    (column,) = sources.open((tensor, Y)).train.inputs
    tensor[2, 1] = 5
    assert column[2, 1] == 5
    assert np.shares_memory(sources.open((X, Y)).train.inputs[0], X)


def test_bfloat16_becomes_float32():
    (column,) = sources.open(torch.tensor(X).bfloat16()).train.inputs
    assert column.dtype == np.float32 and np.array_equal(column, X)


def test_inputs_alone_have_no_truth():
    assert sources.open(X).train.truth is None
    assert sources.open((X, None)).train.truth is None


def test_several_inputs():
    source = sources.open(((X, np.zeros((4, 2, 2), np.uint8)), Y))
    assert [column.shape for column in source.train.inputs] == [(4, 3), (4, 2, 2)]
    assert "4 examples" in source.about


@pytest.mark.parametrize("names", [["a", "b", "a", "b"], np.array(["a", "b", "a", "b"], dtype=object)])
def test_labels_may_be_texts(names):
    truth = sources.open((X, names)).train.truth
    assert truth.dtype.kind == "U" and truth.tolist() == ["a", "b", "a", "b"]


@pytest.mark.parametrize("labels", [["a", None, "b", float("nan")], [1, None, 2, 3]])
def test_missing_labels_stay_for_the_checks_to_name(labels):
    truth = sources.open((X, labels)).train.truth
    assert truth.dtype == object and truth[1] is None


def test_a_table_of_pandas_is_an_array():
    pandas = pytest.importorskip("pandas")
    source = sources.open((pandas.DataFrame(X), pandas.Series(["a", "b", "a", "b"])))
    assert source.train.inputs[0].shape == (4, 3) and source.train.truth.tolist() == ["a", "b", "a", "b"]


ragged = np.array([[1, 2], [3]], dtype=object)
spoilt = X.copy()
spoilt[[1, 3], 0] = np.nan, np.inf


@pytest.mark.parametrize(
    "source, words",
    [
        ((X, Y[:3]), ["4 examples", "y has 3"]),
        (((X, X[:2]), Y), [r"x\[1\] has 2"]),
        ((X[:0], Y[:0]), [r"no examples", r"\(0, 3\)"]),
        (([], []), ["no examples"]),
        (np.zeros((4, 0)), ["no values"]),
        ((spoilt, Y), ["NaN or infinite", "2 of 4", "rows 1, 3"]),
        ((X.astype(complex), Y), ["complex numbers"]),
        ((np.array(["2026-01-01"] * 4, dtype="datetime64[D]"), Y), ["dates"]),
        ((np.array(["1", "2", "3", "4"]), Y), ["texts"]),
        ((np.array([1, "a", None, 2.5], dtype=object), Y), [r"str \(row 1\)", r"NoneType \(row 2\)", "astype"]),
        ((ragged, Y[:2]), [r"list \(row 0\)"]),
        (([[1, 2], [3, 4], [5]], Y[:3]), [r"row 0 is \(2,\)", r"row 2 is \(1,\)"]),
        (([torch.zeros(2), torch.zeros(3)], Y[:2]), [r"row 1 is \(3,\)"]),
        (([torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(3, 5)], Y[:3]), [r"row 2 is \(3, 5\)", "RaggedBatches"]),
        ((ragged, Y[:2]), [r"row 1 is \(1,\)", "RaggedBatches"]),
        (([[1, 2], [3, 4], [5]], Y[:3]), ["RaggedBatches"]),
        ((np.zeros(4, dtype=[("a", "f4"), ("b", "i4")]), Y), ["records"]),
        ((np.ma.masked_greater(X, 10), Y), ["masked", "row 3"]),
        ((torch.eye(4).to_sparse(), Y), ["sparse"]),
        ((X, [1, "a", 2, 3]), [r"int \(row 0\)", r"str \(row 1\)"]),
        ((X[:2], np.array([np.arange(2), np.arange(3)], dtype=object)), [r"ndarray \(row 0\)"]),
        ((X, np.array([b"a", b"b", b"a", b"b"])), ["bytes"]),
        ((X, Y.astype(complex)), ["complex"]),
        ((3.0, Y), ["single float"]),
        (((), Y), ["empty tuple"]),
    ],
)
def test_bad_arrays_are_refused_in_words(source, words):
    for word in words:
        with pytest.raises(DataError, match=word):
            sources.open(source)


@pytest.mark.parametrize("rows", [[torch.zeros(2, 5), torch.zeros(2, 5), torch.zeros(2, 4)], [[1], [[2]]]])
def test_what_differs_in_more_than_its_length_is_not_taken_for_sequences(rows):
    with pytest.raises(DataError) as caught:
        sources.open((rows, Y[: len(rows)]))
    assert "RaggedBatches" not in str(caught.value)


def test_batches_are_no_source_and_belong_to_the_loop():
    with pytest.raises(UsageError, match=r"RaggedBatches(.|\n)*learn"):
        sources.open(lamina.RaggedBatches([X[0], X[0][:2]], [0, 1]))


@pytest.mark.parametrize("source", [{"x": X, "y": Y}, (X, Y, Y), 3, None, object(), {1, 2}])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(UsageError, match=r"\(x, y\)"):
        sources.open(source)


@given(st.lists(st.sampled_from([0.0, 1.5, np.nan, np.inf, -np.inf]), min_size=1, max_size=40), st.integers(1, 4))
def test_rows_that_are_not_finite_are_those_that_numpy_finds(values, width):
    from lamina.sources.arrays import rows_not_finite

    column = np.resize(np.array(values), (len(values), width))
    expected = [row for row in range(len(column)) if not all(map(np.isfinite, column[row]))]
    assert rows_not_finite(column).tolist() == expected


# --- Given test and validation examples -------------------------------------------------------------------------------


def test_given_parts_are_opened_like_the_source():
    valid = TensorDataset(torch.tensor(X), torch.tensor(Y))
    source = sources.open((X, Y), test=(torch.tensor(X[:2]), [0, 1]), valid=valid)
    assert source.test.count == 2 and source.valid.count == 4 and source.reopen is None


def test_a_given_part_may_be_that_part_of_a_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y, x_test=X[:1], y_test=Y[:1])
    source = sources.open(tmp_path / "a.npz", valid=tmp_path / "a.npz", test=tmp_path / "a.npz")
    assert (source.train.count, source.valid.count, source.test.count) == (4, 4, 1)
    assert sources.open(source.reopen).train.count == 4
    assert sources.open(tmp_path / "a.npz", test=(X, Y)).reopen is None  # the test lives in memory only


@pytest.mark.parametrize(
    "other, words",
    [
        ((X[:, :2], Y), r"\(N, 2\) float32; the training inputs are \(N, 3\) float32"),
        ((X.astype(int), Y), "int64"),
        (((X, X), Y), "training inputs are"),
        (X, "test examples have no answers"),
        ((X, ["a", "b", "a", "b"]), "test answers are"),
        ((X, Y + 0.5), "test answers are"),
        ((X, np.eye(4)), r"test answers are \(N, 4\)"),
    ],
)
def test_a_test_of_another_form_is_refused(other, words):
    with pytest.raises(DataError, match=words):
        sources.open((X, Y), test=other)
    with pytest.raises(DataError, match=words.replace("test", "validation")):
        sources.open((X, Y), valid=other)


def test_a_test_of_whole_numbers_may_stand_beside_fractional_ones():
    assert sources.open((X, Y + 0.5), test=(X, Y)).test.count == 4


# --- Datasets ---------------------------------------------------------------------------------------------------------


class Items(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, row):
        return X[row], Y[row]


class Lengthless(Dataset):
    def __getitem__(self, row):
        return X[row], Y[row]


class Duck:
    __len__, __getitem__ = Items.__len__, Items.__getitem__


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


class Doubled(TensorDataset):
    def __getitem__(self, row):
        return tuple(2 * column for column in super().__getitem__(row))


def tensors() -> TensorDataset:
    return TensorDataset(torch.tensor(X), torch.tensor(Y))


def test_a_tensor_dataset_becomes_columns():
    source = sources.open(tensors())
    assert source.train.kind == "arrays" and np.array_equal(source.train.inputs[0], X)
    assert np.array_equal(source.train.truth, Y) and source.name == "TensorDataset"
    assert len(sources.open(TensorDataset(torch.tensor(X), torch.tensor(X), torch.tensor(Y))).train.inputs) == 2
    assert sources.open(TensorDataset(torch.tensor(X))).train.truth is None


def test_a_subset_of_a_tensor_dataset_becomes_its_rows():
    source = sources.open(Subset(Subset(tensors(), [3, 1, 0]), [2, 0]))
    assert np.array_equal(source.train.inputs[0], X[[0, 3]]) and source.train.truth.tolist() == [0, 1]


@pytest.mark.parametrize("dataset", [Items(), Duck(), Subset(Items(), [0, 1]), Doubled(torch.tensor(X))])
def test_other_datasets_stay_whole(dataset):
    train = sources.open(dataset).train
    assert train.kind == "dataset" and train.inputs is dataset and train.truth is None and train.count == len(dataset)


def test_streams_and_loaders_stay_whole():
    stream = Stream()
    assert sources.open(stream).train.kind == "stream" and sources.open(stream).train.count is None
    for dataset, count in ((tensors(), 4), (Items(), 4), (stream, None)):
        loader = DataLoader(dataset, batch_size=2)
        train = sources.open(loader).train
        assert (train.kind, train.inputs, train.count) == ("loader", loader, count)


def test_a_dataset_without_length_or_items_is_refused():
    with pytest.raises(UsageError, match="no length"):
        sources.open(Lengthless())
    with pytest.raises(DataError, match="is empty"):
        sources.open(Subset(Items(), []))
    with pytest.raises(DataError, match="is empty"):
        sources.open(TensorDataset(torch.zeros(0, 3), torch.zeros(0)))


def test_beside_a_dataset_a_tensor_dataset_stays_whole():
    test = tensors()
    assert sources.open(Items(), test=test).test.inputs is test
    loader = DataLoader(Items())
    assert sources.open(loader, test=(X, Y)).test.kind == "arrays"  # loaders are taken as they come


@pytest.mark.parametrize("test", [Items(), DataLoader(Items()), Stream()])
def test_unlike_forms_do_not_stand_in_one_table(test):
    with pytest.raises(UsageError, match="training examples are arrays"):
        sources.open((X, Y), test=test)


def test_a_test_in_memory_does_not_stand_beside_a_dataset():
    with pytest.raises(UsageError, match="training examples are a Dataset"):
        sources.open(Items(), test=(X, Y))


# --- .npz files -------------------------------------------------------------------------------------------------------


def test_npz_with_all_parts(tmp_path):
    np.savez_compressed(
        tmp_path / "a.npz", x_train=X, y_train=Y, x_valid=X[:1], y_valid=Y[:1], x_test=X[:2], y_test=Y[:2], other=Y
    )
    source = sources.open(str(tmp_path / "a.npz"))
    assert (source.train.count, source.valid.count, source.test.count) == (4, 1, 2)
    assert "1 for valid, 2 for test" in source.about
    np.savez(tmp_path / "b.npz", x=X)
    assert sources.open(tmp_path / "b.npz").train.truth is None


def npz(path: Path, **columns: np.ndarray) -> bytes:
    np.savez(path, **columns)
    return path.read_bytes()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: npz(path, y=Y, inputs=X), "no array 'x'.*inputs"),
        (lambda path: npz(path, x=X, y=Y[:2]), "y in .* has 2"),
        (lambda path: npz(path, x=X, y=Y, y_test=Y), "'y_test' but no 'x_test'"),
        (lambda path: npz(path, x=spoilt, y=Y), "x in .*rows 1, 3"),
        (lambda path: npz(path, x=X, y=np.array([{}] * 4)), "pickle"),
        (lambda path: npz(path, x=X, y=Y)[:-30], "no zip archive"),
        (lambda path: npz(path, x=X, y=Y).replace(b"\x93NUMPY", b"\x93numpy"), "cannot be read as .npz"),
        (lambda path: b"x,y\n1,2\n", "no zip archive"),
        (lambda path: b"", "no zip archive"),
    ],
)
def test_a_bad_npz_is_refused(tmp_path, make, words):
    path = tmp_path / "a.npz"
    path.write_bytes(make(path))
    with pytest.raises(DataError, match=words):
        sources.open(path)


def test_an_npz_that_claims_more_than_it_holds_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 100)
    with pytest.raises(DataError, match="cannot be read as"):
        sources.open(tmp_path / "a.npz")


# --- Names and paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, shape, dtype, classes",
    [
        ("digits", (1797, 1, 8, 8), np.uint8, 10),
        ("iris", (150, 4), np.float32, 3),
        ("wine", (178, 13), np.float32, 3),
        ("breast_cancer", (569, 30), np.float32, 2),
        ("diabetes", (442, 10), np.float32, None),
    ],
)
def test_samples(name, shape, dtype, classes):
    source = sources.open(name)
    (column,), truth = source.train.inputs, source.train.truth
    assert column.shape == shape and column.dtype == dtype and source.name == source.reopen == name
    assert len(truth) == shape[0] and f"{shape[0]:,}" in source.about
    if classes is None:
        assert truth.dtype == np.float64 and source.train.labels is None and source.train.names[2] == "bmi"
        assert column[:, 0].max() == 79  # years: not scaled
    else:
        assert truth.dtype == np.int64 and len(source.train.labels) == classes == len(np.unique(truth))
    assert (source.train.kind == "pictures") == (name == "digits")
    assert source.train.names is None if name == "digits" else len(source.train.names) == shape[1]


def test_the_digits_are_scaled_to_bytes():
    from sklearn.datasets import load_digits

    (column,) = sources.open("digits").train.inputs
    assert np.array_equal(column[:, 0], np.round(load_digits().images * 255 / 16))
    assert column.max() == 255


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("name", sources.SAMPLES[:5])
def test_samples_are_those_of_scikit_learn_also_where_it_moved_its_files(name, moved, monkeypatch, tmp_path):
    from sklearn import datasets

    bunch = datasets.load_diabetes(scaled=False) if name == "diabetes" else getattr(datasets, f"load_{name}")()
    if moved:
        monkeypatch.setattr(samples, "_folder", lambda: tmp_path)
    found = sources.open(name).train
    if name != "digits":
        assert np.array_equal(found.inputs[0], bunch.data.astype(np.float32))
        assert found.names == [str(feature) for feature in bunch.feature_names]
    assert np.array_equal(found.truth, bunch.target)
    assert found.labels == (None if name == "diabetes" else [str(label) for label in bunch.target_names])


def test_a_path_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path / "flowers.npz").touch()
    monkeypatch.chdir(tmp_path)
    for text, words in (
        ("flower.npz", "did you mean 'flowers.npz'"),
        ("mnits", "did you mean 'mnist'"),
        ("zzzzz", "known are: .*digits.*flowers.npz"),
        ("no/such/place.npz", "no folder 'no/such'"),
        ("", "no file"),
        ("x" * 5000, "no file"),
    ):
        with pytest.raises(UsageError, match=words):
            sources.open(text)
    for k in range(100):
        (tmp_path / f"many-{k}").touch()
    with pytest.raises(UsageError) as told:
        sources.open("zzzzz")
    assert "many" not in str(told.value)


def test_a_path_of_another_kind(tmp_path):
    (tmp_path / "a.mp3").write_bytes(b"ID3\x04\0\0")
    for path in (tmp_path, tmp_path / "a.mp3"):
        with pytest.raises(UsageError, match="IDX"):
            sources.open(path)


# --- IDX files --------------------------------------------------------------------------------------------------------

PICTURES = np.random.default_rng(0).integers(0, 256, (20, 6, 5), dtype=np.uint8)
LABELS = np.arange(20, dtype=np.uint8) % 10


def packed(array: np.ndarray, magic: int | None = None) -> bytes:
    """The bytes of an IDX file, written independently of the reader."""
    code = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}[array.dtype.str[1:]]
    start = struct.pack(">I", (code << 8) + array.ndim if magic is None else magic)
    return start + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (2, 1, 3, 4)])
def test_idx_of_every_type_and_shape(tmp_path, dtype, shape, zipped):
    array = (np.arange(np.prod(shape)).reshape(shape) * 5 - 60).astype(dtype)
    data = packed(array)
    (tmp_path / "a").write_bytes(gzip.compress(data) if zipped else data)
    found = idx.read(tmp_path / "a")
    assert found.dtype == np.dtype(dtype) and found.dtype.isnative and np.array_equal(found, array)
    assert found.flags.writeable
    with mapped.limited(1):
        found = idx.read(tmp_path / "a")
        assert mapped.adopt(found) and found.dtype.isnative and np.array_equal(found, array)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=12), st.sampled_from(sorted(idx.TYPES)), st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_any_bytes_are_read_or_refused(tmp_path_factory, payload, code, first, second, zipped):
    path = tmp_path_factory.mktemp("idx") / "a"
    data = struct.pack(">BBBBII", 0, 0, code, 2, first, second) + payload
    path.write_bytes(gzip.compress(data) if zipped else data)
    items = first * second
    if items and len(payload) == items * np.dtype(idx.TYPES[code]).itemsize:
        assert idx.read(path).astype(idx.TYPES[code]).tobytes() == payload
    else:
        with pytest.raises(DataError):
            idx.read(path)


good, claims = packed(PICTURES), struct.pack(">4I", 0x803, 20, 6, 5)


def zipped(data):
    """Without the time, which would make another name of the test in every process."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "is empty"),
        (b"\0\0\x08", "begins with 0x000008"),
        (b"\x12\x34\x56\x78" + good[4:], "begins with 0x12345678"),
        (packed(PICTURES, magic=0x0A03), "begins with 0x00000a03"),
        (packed(PICTURES, magic=0x0800), "begins with 0x00000800"),
        (b"\0\0\x08\x28" + struct.pack(">40I", *[1] * 40) + b"\0", "begins with 0x00000828"),
        (good[:8], "ends within its header, after 8 bytes"),
        (good[:16], r"has 16 bytes.*20 x 6 x 5(.|\n)*616 bytes"),
        (good[:300], r"has 300 bytes(.|\n)*16 \+ 600 = 616 bytes"),
        (good + b"\0" * 9, r"has 625 bytes(.|\n)*616 bytes"),
        (packed(PICTURES[:0]), "has no items.* 0 x 6 x 5"),
        (struct.pack(">4I", 0x803, 0x7FFFFFFF, 28, 28) + good[16:], r"has 616 bytes(.|\n)*1,683,627,179,264 bytes"),
        (packed(LABELS), "file of labels: 1 dimension, 20 items"),
        (zipped(good)[:200], "damaged"),
        (zipped(good)[:-9] + b"\0" * 9, "damaged"),
        (b"\x1f\x8b" + b"\0" * 30, "damaged"),
        (zipped(good[:300]), r"unpacks to 300 bytes(.|\n)*616 bytes"),
        (zipped(good + b"\0" * 9), r"unpacks to more than 616 bytes"),
        (zipped(struct.pack(">4I", 0x803, 0x7FFFFFFF, 28, 28) + good[16:]), "cannot hold what it says"),
    ],
)
@pytest.mark.parametrize("memory", [None, 1])
def test_a_bad_idx_file_is_refused(tmp_path, data, words, memory):
    path = tmp_path / "a-images-idx3-ubyte"
    path.write_bytes(data)
    with mapped.limited(memory), pytest.raises(DataError, match=words):
        sources.open(path)


def test_a_gzip_that_unpacks_to_far_more_than_its_header_says_is_not_unpacked(tmp_path):
    import tracemalloc

    path = tmp_path / "a-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(good + bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(DataError, match="more than 616"):
        idx.read(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def write_pair(folder: Path, images: str, labels: str, count: int = 20, end: str = "") -> None:
    zipped = gzip.compress if end else bytes
    (folder / (images + end)).write_bytes(zipped(packed(PICTURES)))
    (folder / (labels + end)).write_bytes(zipped(packed(LABELS[:count])))


@pytest.mark.parametrize(
    "images, labels",
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
        ("my-images.idx3-ubyte", "my-labels.idx1-ubyte"),
        ("a-images-idx3-ubyte", "a-labels.idx1-ubyte"),
    ],
)
def test_labels_are_found_beside_the_pictures(tmp_path, images, labels):
    write_pair(tmp_path, images, labels)
    source = sources.open(tmp_path / images)
    (column,) = source.train.inputs
    assert source.train.kind == "pictures" and column.shape == (20, 1, 6, 5) and column.dtype == np.uint8
    assert np.array_equal(column[:, 0], PICTURES) and np.array_equal(source.train.truth, LABELS)
    assert source.train.truth.dtype == np.int64 and labels in source.about
    assert sources.open(source.reopen).train.count == 20


def test_pictures_without_labels_and_other_dimensions(tmp_path):
    (tmp_path / "a-images-idx3-ubyte").write_bytes(packed(PICTURES))
    source = sources.open(tmp_path / "a-images-idx3-ubyte")
    assert source.train.truth is None and "no labels beside it" in source.about
    (tmp_path / "b").write_bytes(packed(PICTURES.reshape(20, 30)))  # told by content
    assert sources.open(tmp_path / "b").train.kind == "arrays"
    (tmp_path / "c").write_bytes(packed(PICTURES.reshape(20, 1, 6, 5)))
    assert sources.open(tmp_path / "c").train.inputs[0].shape == (20, 1, 6, 5)
    (tmp_path / "d").write_bytes(packed(np.array([[1.0, np.nan]], np.float32)))
    with pytest.raises(DataError, match="row 0"):
        sources.open(tmp_path / "d")


def test_labels_that_do_not_fit_are_refused(tmp_path):
    write_pair(tmp_path, "a-images-idx3-ubyte", "a-labels-idx1-ubyte", count=19)
    with pytest.raises(DataError, match="19 labels for the 20 pictures"):
        sources.open(tmp_path / "a-images-idx3-ubyte")
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(packed(PICTURES))
    with pytest.raises(DataError, match="no file of labels: it has 3 dimensions"):
        sources.open(tmp_path / "a-images-idx3-ubyte")


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_folder_of_four_files(tmp_path, end):
    write_pair(tmp_path, *idx.CANONICAL[:2], end=end)
    source = sources.open(tmp_path)
    assert source.train.count == 20 and source.test is None
    write_pair(tmp_path, *idx.CANONICAL[2:], end=end)
    source = sources.open(tmp_path)
    assert source.train.count == source.test.count == 20 and "20 for test" in source.about
    (tmp_path / (idx.CANONICAL[3] + end)).unlink()
    with pytest.raises(DataError, match="lacks t10k-labels-idx1-ubyte"):
        sources.open(tmp_path)


BAD = {
    "wrong_magic-images-idx3-ubyte": "begins with 0x12345678",
    "labels_as_images-images-idx3-ubyte": "file of labels: 1 dimension, 20 items",
    "short_payload-images-idx3-ubyte": r"has 5,000 bytes(.|\n)*15,696 bytes",
    "long_payload-images-idx3-ubyte": r"has 15,796 bytes(.|\n)*15,696 bytes",
    "header_only_8_bytes-images-idx3-ubyte": "after 8 bytes",
    "zero_items-images-idx3-ubyte": "no items",
    "huge_count-images-idx3-ubyte": r"has 15,696 bytes(.|\n)*1,683,627,179,264 bytes",
    "truncated-images-idx3-ubyte.gz": "damaged",
    "count_mismatch-labels-idx1-ubyte": "file of labels: 1 dimension, 19 items",
    "good-labels-idx1-ubyte": "file of labels",
}
SOUND = {"good-images-idx3-ubyte", "not_gzip-images-idx3-ubyte.gz", "float32-images-idx3"}


def test_every_shared_idx_file_is_known_here(shared_data):
    assert {path.name for path in (shared_data / "bad" / "idx").iterdir()} == set(BAD) | SOUND


@pytest.mark.parametrize("name", BAD)
def test_shared_bad_idx_files_are_refused(shared_data, name):
    with pytest.raises(DataError, match=BAD[name]):
        sources.open(shared_data / "bad" / "idx" / name)


@pytest.mark.parametrize("name", sorted(SOUND))
def test_shared_sound_idx_files_are_read(shared_data, name):
    folder = shared_data / "bad" / "idx"
    source = sources.open(folder / name)
    (column,) = source.train.inputs
    assert source.train.kind == "pictures" and column.shape == (20, 1, 28, 28)
    assert column.dtype == (np.float32 if name.startswith("float32") else np.uint8)
    assert (source.train.truth is not None) == name.startswith("good")
    assert np.isfinite(column.astype(float)).all() and column.max() > 0


def test_shared_label_count_that_does_not_fit_is_refused(shared_data):
    folder = shared_data / "bad" / "idx"
    with pytest.raises(DataError, match="19 labels for the 20 pictures"):
        idx.examples(folder / "good-images-idx3-ubyte", folder / "count_mismatch-labels-idx1-ubyte")


# --- MNIST ------------------------------------------------------------------------------------------------------------

FILES = {name: packed(PICTURES if "images" in name else LABELS) for name in idx.CANONICAL}
KNOWN = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloads go. Nothing else is looked at, and no proxy is asked."""
    for variable in ("LAMINA_DATA", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lamina" / "mnist"


class Mirror:
    """A server of the four files that can cut, lie, refuse and forget about ranges."""

    def __init__(self) -> None:
        self.files = {f"{name}.gz": gzip.compress(data) for name, data in FILES.items()}
        self.cuts: list[int] = []  # bytes after which the next answers end
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
                mirror.asked.append((name, wanted))
                if name not in mirror.files:
                    self.send_error(404)
                    return
                data, start = mirror.files[name], 0
                if wanted and mirror.ranges:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    if start >= len(data):
                        self.send_error(416)
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:][: mirror.cuts.pop(0) if mirror.cuts else None])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()


@pytest.fixture
def nowhere() -> str:
    """An address that refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


IMAGES = "train-images-idx3-ubyte.gz"


def test_a_download_is_kept_and_not_repeated(cache, mirror):
    source = mnist.read(mirrors=[mirror.url], known=KNOWN)
    assert source.name == source.reopen == "mnist" and source.train.labels == [str(k) for k in range(10)]
    assert np.array_equal(source.train.inputs[0][:, 0], PICTURES) and np.array_equal(source.test.truth, LABELS)
    assert sorted(path.name for path in cache.glob("*.gz*")) == sorted(f"{name}.gz" for name in FILES)
    assert len(mirror.asked) == 4
    mnist.read(mirrors=[mirror.url], known=KNOWN)
    assert len(mirror.asked) == 4


def test_a_cut_download_is_resumed_where_it_was_cut(cache, mirror):
    mirror.cuts = [100, 50]
    mnist.read(mirrors=[mirror.url], known=KNOWN)
    assert mirror.asked[:3] == [(IMAGES, None), (IMAGES, "bytes=100-"), (IMAGES, "bytes=150-")]
    assert (cache / IMAGES).read_bytes() == mirror.files[IMAGES]


def test_what_another_process_left_is_resumed(cache, mirror):
    cache.mkdir(parents=True)
    (cache / f"{IMAGES}.part").write_bytes(mirror.files[IMAGES][:70])
    mnist.read(mirrors=[mirror.url], known=KNOWN)
    assert mirror.asked[0] == (IMAGES, "bytes=70-")


def test_a_server_without_ranges_begins_again(cache, mirror):
    mirror.cuts, mirror.ranges = [100], False
    mnist.read(mirrors=[mirror.url], known=KNOWN)
    assert (cache / IMAGES).read_bytes() == mirror.files[IMAGES]


@pytest.mark.parametrize("length", [100, 5000])
def test_a_part_of_other_bytes_is_thrown_away(cache, mirror, length):
    cache.mkdir(parents=True)
    (cache / f"{IMAGES}.part").write_bytes(b"?" * length)  # shorter than the file: 206; longer: 416
    mnist.read(mirrors=[mirror.url], known=KNOWN)
    assert [wanted for name, wanted in mirror.asked if name == IMAGES] == [f"bytes={length}-", None]


@pytest.mark.parametrize(
    "data",
    [gzip.compress(packed(PICTURES + 1)), b"<html>Log in</html>", b"", gzip.compress(bytes(9**7)), bytes(10**6)],
    ids=["other pictures", "a login page", "nothing", "a bomb", "a flood"],
)
def test_wrong_bytes_are_never_kept(cache, mirror, data):
    mirror.files[IMAGES] = data
    with pytest.raises(ResourceError, match=f"its bytes are not those of {IMAGES}") as told:
        mnist.read(mirrors=[mirror.url], known=KNOWN)
    assert not list(cache.glob("*.gz*"))
    assert told.value.exit_code == 6


def test_the_next_mirror_is_asked(cache, mirror, nowhere):
    other = Mirror()
    other.files = {}
    source = mnist.read(mirrors=[nowhere, other.url, mirror.url.rstrip("/")], known=KNOWN)
    assert source.train.count == 20 and len(other.asked) == 4
    other.server.shutdown()
    other.server.server_close()


def test_without_a_network_the_message_says_which_files_go_where(cache, nowhere):
    with pytest.raises(ResourceError) as told:
        mnist.read(mirrors=[nowhere], known=KNOWN)
    for words in (*(f"{name}.gz" for name in FILES), str(cache), "data_dir", "LAMINA_DATA", "digits", "refused"):
        assert words in str(told.value)


def test_a_cache_that_cannot_be_made(tmp_path, cache, mirror, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="XDG_CACHE_HOME"):
        mnist.read(mirrors=[mirror.url], known=KNOWN)


def test_a_download_waits_for_that_of_another_process(cache, mirror):
    from lamina.files import Lock, folder

    lock, asked_before = Lock(folder(cache)), []

    def release() -> None:
        asked_before.append(len(mirror.asked))
        lock.release()

    threading.Timer(0.3, release).start()
    assert mnist.read(mirrors=[mirror.url], known=KNOWN).train.count == 20
    assert asked_before == [0]


def test_a_terminal_sees_a_bar(cache, mirror, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    mnist.read(mirrors=[mirror.url], known=KNOWN)
    assert IMAGES in sys.stderr.getvalue()


@pytest.mark.parametrize("below", [".", "mnist", "image/mnist", "MNIST/raw"])
def test_files_are_found_below_a_folder(tmp_path, cache, nowhere, monkeypatch, below):
    folder = tmp_path / "data" / below
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    source = mnist.read(tmp_path / "data", mirrors=[nowhere], known=KNOWN)
    assert source.train.count == 20 and Path(source.reopen).samefile(folder)
    monkeypatch.setenv("LAMINA_DATA", str(tmp_path / "data"))
    assert mnist.read(mirrors=[nowhere], known=KNOWN).reopen == "mnist"


def test_files_of_the_same_names_that_are_not_mnist(tmp_path, cache, nowhere):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="train-images-idx3-ubyte does not hold MNIST"):
        mnist.read(tmp_path, mirrors=[nowhere])
    assert sources.open(tmp_path).train.count == 20  # as a folder it is what it is


def test_a_data_dir_that_is_not_there(cache, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        sources.open("mnist", data_dir=tmp_path / "none")


def test_the_real_mnist(shared_data, cache):
    source = sources.open("mnist", data_dir=shared_data)
    assert source.train.inputs[0].shape == (60000, 1, 28, 28) and source.test.inputs[0].shape == (10000, 1, 28, 28)
    assert np.bincount(source.train.truth).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(source.test.truth).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(
    "column",
    [np.array([3, -2, 3, 9], dtype) for dtype in ("int8", "int16", "int32", "int64")]
    + [np.array([255, 0, 7, 7], "uint8"), np.array([2**63 + 1, 2**63], "uint64"), np.array([-(2**62), 2**62]),
       np.array([5, 5, 2**40]), np.array([1.5, 0.5, 1.5]), np.array(["b", "a", "b"]), np.array([True, False]),
       np.array([], "int64"), np.random.default_rng(0).integers(-3000, 3000, 600_000)],
    ids=lambda column: f"{column.dtype} {len(column)}",
)  # fmt: skip
def test_distinct_values_are_those_of_numpy(column):
    values, codes = arrays.distinct(column)
    expected = np.unique(column, return_inverse=True)
    assert values.dtype == column.dtype and np.array_equal(values, expected[0]) and np.array_equal(codes, expected[1])
