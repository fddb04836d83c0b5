"""Domains: raw inputs -> tensors -> what a net takes, fitted on training rows only; and files of inputs to predict on."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Pillow
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lamina
from lamina.batches import over
from lamina.domains.arrays import Arrays, array_file
from lamina.domains.base import Encoded
from lamina.domains.image import Image, layout
from lamina.errors import DataError, UsageError
from lamina.sources import Examples
from lamina.targets.classes import Classes
from lamina.targets.numbers import Numbers

RNG = np.random.default_rng(0)


def fitted(kind, column, rows=None, **options):
    domain = kind(**options)
    columns = column if isinstance(column, tuple) else (column,)
    domain.fit(columns, np.arange(len(columns[0])) if rows is None else rows)
    return domain


def rebuilt(domain):
    return type(domain)(**json.loads(json.dumps(domain.state())))


# --- Scaling ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    table=hnp.arrays(np.float64, st.tuples(st.integers(2, 9), st.integers(1, 4)), elements=st.floats(-1e3, 1e3)),
    shift=st.sampled_from([0.0, 50.0]),
)
def test_standardised_columns_have_mean_0_and_deviation_1(table, shift):
    table = np.round(table, 1) + shift
    rows = np.arange(len(table) - 1)
    domain = fitted(Arrays, table, rows)
    found = domain.prepare()(*domain.encode((table,)))
    std = table[rows].std(0)
    # a column that does not vary is left with its own scale; the comparison is in float32
    expected = (table - table[rows].mean(0)) / np.where(std > 1e-6, std, 1)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected, rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("shape", [(20, 3, 4), (20, 2, 3, 4), (20,)])
def test_inputs_of_other_shapes_are_standardised_all_together(shape):
    column = RNG.normal(5, 3, shape)
    domain = fitted(Arrays, column, np.arange(15))
    found = domain.prepare()(*domain.encode((column,))).numpy()
    assert found == pytest.approx((column - column[:15].mean()) / column[:15].std(), abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 + 0.1, 1e12])
def test_a_constant_column_does_not_explode(constant):
    """The deviation of a constant is rounding noise: divided by it, the next value would be enormous."""
    table = np.full((997, 2), constant)
    table[:, 1] = np.arange(997)
    domain = fitted(Arrays, table)
    nearby = table + np.array([1e-3 * max(1.0, abs(constant) * 1e-4), 0])
    found = domain.prepare()(*domain.encode((nearby,)))[:, 0]
    assert found.abs().max() <= 1.1e-7 * max(1e4, abs(constant)) + 1e-7 * abs(constant)


def test_a_column_of_tiny_numbers_is_standardised_too():
    table = np.array([[1e-15], [3e-15]])
    domain = fitted(Arrays, table)
    assert domain.prepare()(*domain.encode((table,))).flatten().tolist() == pytest.approx([-1, 1])


@pytest.mark.parametrize("kind", [Arrays, Image])
@pytest.mark.parametrize("scale", ["none", "unit", "standard"])
def test_bytes_are_scaled_as_asked(kind, scale):
    column = RNG.integers(0, 256, (30, 3, 5, 6), dtype=np.uint8)
    column[:, 2] = 7
    rows = np.arange(20)
    domain = fitted(kind, column, rows, scale=scale)
    (encoded,) = domain.encode((column,))
    assert encoded.dtype == torch.uint8 and np.array_equal(encoded.numpy(), column)
    axes = (0, 2, 3) if kind is Image else (0, 1, 2, 3)
    mean, std = column[rows].mean(axes, keepdims=True), column[rows].std(axes, keepdims=True)
    unit = {
        "none": column,
        "unit": column / 255,
        "standard": (column - mean) / np.where(std > 0, std, 1),
    }[scale]  # fmt: skip
    assert domain.prepare()(encoded).numpy() == pytest.approx(unit, abs=1e-4)


@pytest.mark.parametrize(("kind", "shape"), [(Arrays, (40, 4)), (Image, (40, 1, 6, 6))])
def test_what_is_learned_is_learned_from_the_training_rows_only(kind, shape):
    column = RNG.normal(size=shape)
    rows = np.arange(0, 40, 2)
    other = column.copy()
    other[1::2] = 1e6
    assert fitted(kind, column, rows).state() == fitted(kind, other, rows).state()
    other[0] += 1
    assert fitted(kind, column, rows).state() != fitted(kind, other, rows).state()


# --- Arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "encoded"),
    [
        ("float64", torch.float32), ("float16", torch.float32), ("float32", torch.float32), ("bool", torch.float32),
        ("int16", torch.int64), ("int64", torch.int64), ("uint16", torch.int64), ("uint8", torch.uint8),
    ],
)  # fmt: skip
def test_numbers_keep_their_values_and_their_kind(dtype, encoded):
    column = (np.arange(12).reshape(4, 3) % 2).astype(dtype)
    (found,) = fitted(Arrays, column).encode((column,))
    assert found.dtype == encoded and found.tolist() == column.tolist()


def test_several_inputs_keep_their_order():
    columns = (np.zeros((4, 2)), np.ones((4, 3), np.int64))
    domain = fitted(Arrays, columns, scale="none")
    assert [tuple(part.shape) for part in domain.encode(columns)] == [(4, 2), (4, 3)]
    with pytest.raises(DataError, match=r"There are 1 inputs(?s:.*)2, as in training"):
        domain.encode(columns[:1])
    with pytest.raises(UsageError, match="There are 2 inputs"):
        domain.net(Numbers(), "small")


TABLE = RNG.normal(size=(6, 4))


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (TABLE[:, :3], r"shape \(6, 3\)(?s:.*)\(N, 4\), as in training"),
        (TABLE[0], r"shape \(4,\)(?s:.*)x\[None\]"),
        (TABLE[None], r"shape \(1, 6, 4\)"),
        (np.where(np.eye(6, 4) == 1, np.nan, TABLE), "4 inputs hold NaN or infinite values: rows 0, 1, 2, 3"),
        (TABLE * 1e300, "infinite"),  # beyond float32
        (TABLE.astype(str), "<U"),
        (TABLE.astype(complex), "complex128"),
        (torch.zeros(2, 4, dtype=torch.complex64), "complex64"),
        (np.array([[None] * 4]), "such as None"),
        ([[1.0, 2, 3, 4], [5.0]], "cannot be made an array"),
        ((TABLE, TABLE), "There are 2 inputs(?s:.*)1, as in training"),
        (np.float64(3.5), "are float64, such as"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_with_what_was_expected(given_, words):
    domain = fitted(Arrays, TABLE)
    with pytest.raises(DataError, match=words):
        domain.encode(given_)


@pytest.mark.parametrize("form", [np.asarray, torch.tensor, np.ndarray.tolist, lambda x: (x,), np.asfortranarray])
def test_inputs_may_come_in_any_form_of_array(form):
    domain = fitted(Arrays, TABLE)
    assert torch.equal(domain.encode(form(TABLE))[0], torch.from_numpy(TABLE).float())


def test_a_data_frame_is_an_array_too():
    pandas = pytest.importorskip("pandas")
    assert torch.equal(fitted(Arrays, TABLE).encode(pandas.DataFrame(TABLE))[0], torch.from_numpy(TABLE).float())


def test_where_training_had_bytes_fractions_are_refused():
    """0 to 1 and 0 to 255 would both be taken, and one of them be wrong by a factor of 255."""
    domain = fitted(Arrays, np.zeros((3, 2), np.uint8), scale="unit")
    assert domain.encode(np.array([[0, 255]]))[0].dtype == torch.uint8
    assert domain.encode([[7, 8]])[0].tolist() == [[7, 8]]
    for bad, words in (
        ([[0.5, 1.0]], "float64 from 0.5 to 1"),
        ([[0, 256]], "from 0 to 256"),
        ([[-1, 0]], "from -1 to 0"),
    ):
        with pytest.raises(DataError, match=words + "; training had bytes"):
            domain.encode(bad)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_so_large_that_their_sum_is_infinite_are_numbers(bad):
    table = np.full((3000, 4), 3e38, np.float32)
    assert torch.equal(Arrays(scale="none").encode(table)[0], torch.from_numpy(table))
    table[2999, 3] = bad
    with pytest.raises(DataError, match=r"1 inputs hold NaN or infinite values: rows? 2999"):
        Arrays(scale="none").encode(table)


def test_an_array_that_may_not_be_written_to_is_taken_without_a_copy():
    column = np.frombuffer(RNG.bytes(4 * 8 * 8), np.uint8).reshape(4, 8, 8)
    (encoded,) = Arrays(scale="unit").encode(column)
    assert encoded.data_ptr() == column.ctypes.data and np.array_equal(encoded.numpy(), column)


def test_whole_numbers_are_taken_where_training_had_fractions_and_bytes_where_it_had_whole_numbers():
    assert fitted(Arrays, TABLE).encode(np.ones((2, 4), int))[0].dtype == torch.float32
    assert fitted(Arrays, TABLE).encode(np.ones((2, 4), np.uint8))[0].dtype == torch.float32
    assert fitted(Arrays, np.ones((2, 4), int)).encode(np.ones((2, 4), np.uint8))[0].dtype == torch.int64


class Items(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, k):
        return torch.full((1, 4, 4), float(k)), k


@pytest.mark.parametrize("kind", [Arrays, Image])
def test_a_dataset_stays_as_it_is(kind):
    dataset = Items()
    domain = kind()
    domain.fit(dataset, np.arange(5))
    assert domain.encode(dataset) is dataset and isinstance(domain.prepare(), nn.Identity)
    with pytest.raises(UsageError, match="no net can be fitted"):
        domain.net(Numbers(), "small")


# --- Pictures ---------------------------------------------------------------------------------------------------------

PICTURES = RNG.integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((9, 28, 28), "NHW"), ((9, 1, 28, 28), "NCHW"), ((9, 3, 4, 5), "NCHW"), ((9, 32, 32, 3), "NHWC"),
        ((9, 8, 8, 4), "NHWC"), ((9, 8, 8, 1), "NHWC"), ((9, 2, 8, 8), None), ((9, 8), None), ((9, 3, 2), None),
        ((8, 8), None), ((9, 1, 3, 8), None), ((9, 1, 1, 8, 8), None),
    ],
)  # fmt: skip
def test_layouts_are_seen_by_their_shape(shape, way):
    assert layout(shape) == way


def test_pictures_are_the_same_in_every_layout():
    grey = PICTURES[:, :1]
    for forms in ((PICTURES, PICTURES.transpose(0, 2, 3, 1)), (grey, grey[:, 0], grey.transpose(0, 2, 3, 1))):
        domains = [fitted(Image, form) for form in forms]
        assert all(domain.state() == domains[0].state() for domain in domains)
        for domain, form in zip(domains, forms, strict=True):
            assert torch.equal(domain.encode((form,))[0], torch.from_numpy(forms[0]))
            assert torch.equal(domain.encode(forms[0])[0], torch.from_numpy(forms[0]))


@pytest.mark.parametrize(
    ("column", "kind", "sure"),
    [
        (PICTURES, "arrays", True),
        (PICTURES[:, 0], "arrays", True),
        (PICTURES / 255, "arrays", True),
        (PICTURES[:, 0] / 255, "arrays", False),  # a table of several rows, as likely
        (PICTURES[:, 0, 0], "arrays", False),
        (PICTURES[:, 0, 0], "pictures", True),
    ],
)
def test_pictures_are_recognised(column, kind, sure):
    examples = Examples((column,), kind=kind)
    assert (Image.sniff(examples)[0] > Arrays.sniff(examples)[0]) == sure


def test_bytes_and_floats_between_0_and_1_stand_for_each_other():
    domain = fitted(Image, PICTURES)
    shares = (PICTURES / 255).astype(np.float32)
    assert torch.equal(domain.encode(shares)[0], torch.from_numpy(PICTURES))
    assert torch.equal(domain.encode(PICTURES.astype(np.int64))[0], torch.from_numpy(PICTURES))
    floats = fitted(Image, shares)
    assert floats.encode(PICTURES)[0].numpy() == pytest.approx(shares)
    bits = fitted(Image, PICTURES > 127)
    assert set(bits.encode(PICTURES > 127)[0].unique().tolist()) == {0, 255}


@pytest.mark.parametrize("column", [PICTURES / 16.0, PICTURES / 127.5 - 1])
def test_floats_of_another_range_are_not_mixed_with_bytes(column):
    domain = fitted(Image, column)
    assert domain.encode(column)[0].numpy() == pytest.approx(column.astype(np.float32))
    with pytest.raises(DataError, match="floats that did not lie between 0 and 1"):
        domain.encode(PICTURES)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        (PICTURES[:, :1], r"\(1, 5, 7\) \(channels, height, width\)(?s:.*)\(3, 5, 7\), as in training"),
        (PICTURES[:, :, :4], r"\(3, 4, 7\)"),
        (PICTURES[0], r"x\[None\]"),
        (PICTURES[0].transpose(1, 2, 0), r"shape \(5, 7, 3\)(?s:.*)x\[None\]"),
        (PICTURES.reshape(6, -1), r"shape \(6, 105\)(?s:.*)\(N, H, W\)"),
        (PICTURES.astype(np.int64) * 2, "whole numbers from 0 to"),
        (PICTURES.astype(float), "training had bytes"),
        (np.where(PICTURES[2] == PICTURES, np.nan, 0.5), "pictures hold NaN or infinite values: row"),
        (PICTURES.astype(str), "<U"),
    ],
)
def test_pictures_that_do_not_fit_are_refused_with_what_was_expected(given_, words):
    with pytest.raises(DataError, match=words):
        fitted(Image, PICTURES).encode(given_)


def test_one_grey_picture_lacks_its_batch_dimension():
    with pytest.raises(DataError, match=r"shape \(5, 7\)(?s:.*)x\[None\]"):
        fitted(Image, PICTURES[:, 0]).encode(PICTURES[0, 0])


def test_pictures_of_whole_numbers_beyond_bytes_are_refused_at_training_too():
    with pytest.raises(DataError, match="whole numbers from -1 to 0"):
        fitted(Image, -np.ones((2, 5, 5), int) * (np.arange(25).reshape(5, 5) > 3))


def test_pictures_for_the_report_are_bytes():
    assert np.array_equal(fitted(Image, PICTURES).pictures((torch.from_numpy(PICTURES),), [4, 1]), PICTURES[[4, 1]])
    floats = fitted(Image, PICTURES / 16.0).pictures((torch.from_numpy(PICTURES / 16.0),), [0, 1])
    assert floats.dtype == np.uint8 and floats.min() == 0 and floats.max() == 255
    assert Arrays().pictures((torch.zeros(3, 4),), [0]) is None


# --- A whole way, saved and opened again ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        (Arrays, RNG.normal(3, 5, (20, 4))),
        (Arrays, RNG.integers(0, 9, (20, 4))),
        (Arrays, RNG.integers(0, 256, (20, 4), dtype=np.uint8)),
        (Arrays, RNG.normal(3, 5, (20, 3, 2))),
        (Image, RNG.integers(0, 256, (20, 16, 16), dtype=np.uint8)),
        (Image, RNG.random((20, 16, 16, 3))),
    ],
)
def test_saved_as_json_and_built_again_it_predicts_the_same_numbers(kind, column):
    target = Classes(["a", "b", "c"], ["a", "b", "c"])
    domain = fitted(kind, column, np.arange(15))
    net = domain.net(target, "small").eval()
    again = rebuilt(domain)
    assert again.state() == domain.state()
    one, other = domain.predict(net, column, target), again.predict(net, column, target)
    assert np.array_equal(one.probabilities, other.probabilities) and (one.prediction == other.prediction).all()
    assert one.probabilities.shape == (20, 3)
    alone = [again.predict(net, column[k : k + 1], target).probabilities[0] for k in range(3)]
    assert np.array(alone) == pytest.approx(one.probabilities[:3], abs=1e-6)
    encoded = [domain.encode(column)[0] for _ in range(2)]
    assert torch.equal(*encoded)


# --- Validation -------------------------------------------------------------------------------------------------------

NET = nn.Linear(4, 3)
X, Y = torch.randn(23, 4), torch.arange(23) ** 2 % 3


@pytest.mark.parametrize(
    ("loss", "truth", "whole"),
    [
        (nn.CrossEntropyLoss(), Y, None),
        (nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 9.0])), Y, None),
        (nn.CrossEntropyLoss(ignore_index=1), torch.cat([torch.ones(5).long(), Y[5:]]), None),
        (nn.CrossEntropyLoss(reduction="sum"), Y, lambda: F.cross_entropy(NET(X), Y).item()),
    ],
    ids=["mean", "class weights", "ignored", "sum"],
)
@pytest.mark.parametrize("size", [5, 23])
def test_the_validation_loss_is_that_of_all_examples_whatever_the_batches(loss, truth, whole, size):
    target = Classes(["a", "b", "c"], [0, 1, 2])
    with torch.no_grad():
        expected = loss(NET(X), truth).item() if whole is None else whole()
    batches = over((X,), truth, batch_size=size, shuffle=False)
    found = Arrays(scale="none").validate(NET, batches, target, loss)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx((NET(X).argmax(1) == truth).float().mean().item())


def test_validation_data_that_give_no_batch_are_refused():
    class Empty(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="gave no batch"):
        Arrays().validate(NET, over(DataLoader(Empty(), batch_size=2)), Classes(["a"], [0]), nn.CrossEntropyLoss())


def test_predictions_of_a_dataset_are_those_of_its_columns():
    target = Classes(["a", "b", "c"], [0, 1, 2])
    domain = Arrays(scale="none")
    some, others = (domain.predict(NET, inputs, target, batch_size=5) for inputs in (X, TensorDataset(X, Y)))
    assert np.array_equal(some.probabilities, others.probabilities)
    answers, truth = domain.answers(NET, Encoded((X,), Y), target, np.array([3, 1]))
    assert truth.tolist() == Y[[3, 1]].tolist() and np.array_equal(answers.probabilities, some.probabilities[[3, 1]])


# --- Files of inputs to predict on ------------------------------------------------------------------------------------

ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.0, -2.0, 4e1, 1.5], [0.0, 1.0, 2.0, 3.0]])
FEATURES = ["sepal length", "sepal width", "petal length", "petal width"]


@pytest.fixture
def flowers():
    return Arrays(shapes=[[4]], kinds=["f"], features=FEATURES)


@pytest.fixture
def nameless():
    return Arrays(shapes=[[4]], kinds=["f"])


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def csv_of(table, header=None, separator=","):
    lines = [] if header is None else [separator.join(header)]
    return "\n".join(lines + [separator.join(map(str, row)) for row in table]) + "\n"


def read(domain, path):
    inputs, ids = domain.open_inputs(path)
    return domain.encode(inputs)[0].tolist(), ids


EXPECTED = torch.tensor(ROWS).float().tolist(), ["0", "1", "2"]


@pytest.mark.parametrize("order", [None, FEATURES, FEATURES[::-1]])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_columns_are_matched_by_name(flowers, file, order, separator):
    table = ROWS if order is None else ROWS[:, [FEATURES.index(name) for name in order]]
    path = file("new.csv", csv_of(table, order, separator))
    assert read(flowers, path) == EXPECTED


@pytest.mark.parametrize("header", [None, ["a", "b", "c", "d"]])
def test_without_names_csv_columns_are_taken_in_their_order(nameless, file, header):
    assert read(nameless, file("new.csv", csv_of(ROWS, header))) == EXPECTED


@pytest.mark.parametrize("text", ["\ufeff{}", "\n\n{}\n\n", " {}", "{}"])
def test_marks_blank_lines_spaces_and_quotes_do_no_harm(flowers, file, text):
    content = text.format('"sepal length",sepal width, petal length ,petal width\r\n"5.1", 3.5,1.4,0.2\r\n\r\n')
    assert read(flowers, file("new.csv", content)) == ([EXPECTED[0][0]], ["0"])


def test_other_columns_are_left_out_and_that_is_said(flowers, file):
    header = ["species", *FEATURES, "remark"]
    path = file("new.csv", csv_of([["setosa", *row, "seen twice"] for row in ROWS], header))
    with pytest.warns(UserWarning, match="species, remark is no input of this run"):
        assert read(flowers, path) == EXPECTED


def test_a_column_of_ids_names_the_rows(flowers, nameless, file):
    content = csv_of([[f"flower {k}", *row] for k, row in enumerate(ROWS)], ["id", *FEATURES])
    for domain in (flowers, nameless):
        assert read(domain, file("new.csv", content)) == (EXPECTED[0], ["flower 0", "flower 1", "flower 2"])
    lines = "".join(
        json.dumps({"id": 7 + k, **dict(zip(FEATURES, row, strict=True))}) + "\n" for k, row in enumerate(ROWS)
    )
    assert read(flowers, file("new.jsonl", lines)) == (EXPECTED[0], ["7", "8", "9"])


def test_a_feature_that_is_called_id_is_a_feature(file):
    domain = Arrays(shapes=[[2]], kinds=["f"], features=["id", "age"])
    assert read(domain, file("new.csv", "age,id\n1,2\n")) == ([[2.0, 1.0]], ["0"])
    assert read(domain, file("new.jsonl", '{"age": 1, "id": 2}')) == ([[2.0, 1.0]], ["0"])


def test_features_may_be_called_by_numbers(file):
    domain = Arrays(shapes=[[2]], kinds=["f"], features=["1", "0"])
    assert read(domain, file("new.csv", "0,1\n7,8\n")) == ([[8.0, 7.0]], ["0"])


@pytest.mark.parametrize("named", [False, True])
def test_json_lines_hold_arrays_or_objects(flowers, file, named):
    rows = [dict(zip(FEATURES[::-1], row[::-1], strict=True)) if named else row for row in ROWS.tolist()]
    assert read(flowers, file("new.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")) == EXPECTED


@pytest.mark.parametrize("name", ["new.txt", "new", "new.png"])
def test_text_of_any_name_is_read_as_rows(flowers, file, name):
    assert read(flowers, file(name, csv_of(ROWS, FEATURES))) == EXPECTED
    assert read(flowers, file(name, "\n".join(map(json.dumps, ROWS.tolist())))) == EXPECTED
    for binary in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF", b"\x1f\x8b\x08"):
        with pytest.raises((UsageError, DataError), match=r"not a kind of file|cannot be"):
            flowers.open_inputs(file(name, binary))


def test_rows_of_numbers_take_the_shape_of_the_inputs(file):
    domain = Arrays(shapes=[[2, 3]], kinds=["f"])
    for name, content in (("a.csv", "1,2,3,4,5,6\n"), ("a.jsonl", "[[1,2,3],[4,5,6]]"), ("b.jsonl", "[1,2,3,4,5,6]")):
        assert read(domain, file(name, content))[0] == [[[1, 2, 3], [4, 5, 6]]]


def test_whole_numbers_stay_whole_where_training_had_them(file):
    path = file("new.csv", "1,250\n3,4\n")
    for kind, dtype in (("i", torch.int64), ("u", torch.uint8), ("f", torch.float32)):
        domain = Arrays(shapes=[[2]], kinds=[kind])
        (encoded,) = domain.encode(domain.open_inputs(path)[0])
        assert encoded.dtype == dtype and encoded.tolist() == [[1, 250], [3, 4]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (csv_of(ROWS), EXPECTED),
        (csv_of(ROWS[:, ::-1], FEATURES[::-1]), EXPECTED),
        ("\n" + "\n".join(map(json.dumps, ROWS.tolist())), EXPECTED),
        (json.dumps(dict(zip(FEATURES, ROWS[0].tolist(), strict=True))), ([EXPECTED[0][0]], ["0"])),
    ],
)
def test_standard_input_is_csv_or_json_lines_by_its_first_character(flowers, monkeypatch, text, expected):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert read(flowers, "-") == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "5.1,3.5,1.4,0.2\n5.1,x,1.4,0.2\n1,2,3,\n", r"2 of 3 rows of .* lines 2, 3. Line 2: 'x' is no number"),
        ("a.csv", "1,2,3,nan\n1,2,3,4\n", "line 1. Line 1: value 4 is nan, which is not finite"),
        ("a.csv", "1,2,3,4\n1,2,3,1e999\n", "Line 2: value 4 is 1e999"),
        ("a.csv", "1,2,3,4\n1,2,3\n1,2,3,4,5\n", "lines 2, 3. Line 2: it has 3 cells, the first row has 4"),
        ("a.csv", "1,2,3\n4,5,6\n", "Line 1: there are 3 numbers, expected 4"),
        ("a.csv", "1,x,3,4\n4,5,6,7\n", "1 of 2 rows .* Line 1: 'x' is no number"),  # a bad row is no header
        ("a.csv", ",0,1,2,3\n0,5,6,7,8\n", "Line 1: value 1 is missing"),
        ("a.csv", "", "holds no rows"),
        ("a.csv", "sepal length,sepal width,petal length,petal width\n", "holds no rows"),
        ("a.csv", "sepal length,petal width,petal_length\n1,2,3\n", "lacks 2 of the 4 columns(?s:.*)'petal length': did you "),
        ("a.csv", "a,b,c,d\n1,2,3,4\n", "lacks 4 of the 4 columns(?s:.*)the columns sepal length, sepal width"),
        ("a.csv", b"\xff\xfe1,2", "is no text in UTF-8"),
        ("a.csv", '1,2,3,"4\n', "cannot be read as CSV at line 1: unexpected end"),
        ("a.csv", "1,2,3," + "4" * 200_000, "cannot be read as CSV at line 1"),
        ("a.jsonl", "[1,2,3,4]\n{oops\n\n[1,2]\n", "2 of 3 rows .* lines 2, 4. Line 2: it is not JSON"),
        ("a.jsonl", '[1,2,3,null]\n[1,2,3,"x"]\n[1,2,3,[4]]', "lines 1, 2. Line 1: value 4 is missing"),
        ("a.jsonl", '[1,2,3,{"a":1}]', "{'a': 1} is no number"),
        ("a.jsonl", "[1,2,3,NaN]", "which is not finite"),
        ("a.jsonl", "[1,2,3,1" + "0" * 400 + "]", "is no number"),
        ("a.jsonl", "7", "there are 1 numbers, expected 4"),
        ("a.jsonl", '{"sepal length": 1}', "lacks 3 of the 4 columns"),
        ("a.jsonl", '{"sepal length":1,"sepal width":2,"petal length":3,"petal width":4}\n{"sepal width":1}',
         "Line 2: it lacks 'sepal length', 'petal length', 'petal width'"),
        ("a.npy", b"not an array", "cannot be read as numbers"),
        ("a.npz", b"PK not a zip", "cannot be read as numbers"),
        ("a.npz", b"", "cannot be read as numbers"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_with_their_lines(flowers, file, name, content, words):
    with pytest.raises(DataError, match=words):
        flowers.open_inputs(file(name, content))


def test_no_more_than_a_few_lines_are_listed(nameless, file):
    content = "".join(f"{k},2,3,x\n" for k in range(100))
    with pytest.raises(DataError, match=r"100 of 100 rows .* lines 1, 2, 3, 4, 5 and 95 more"):
        nameless.open_inputs(file("a.csv", content))


def test_arrays_are_read_from_their_files(flowers, tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    np.savez(tmp_path / "named.npz", y=np.arange(3), x=ROWS)
    np.savez(tmp_path / "split.npz", x_train=ROWS[:0], x_test=ROWS)
    np.savez_compressed(tmp_path / "alone.npz", flowers=ROWS)
    for name in ("a.npy", "named.npz", "split.npz", "alone.npz"):
        assert read(flowers, str(tmp_path / name)) == EXPECTED


def test_several_inputs_are_read_from_as_many_arrays(tmp_path):
    domain = Arrays(shapes=[[4], [2]], kinds=["f", "f"])
    np.savez(tmp_path / "two.npz", ROWS, ROWS[:, :2])
    inputs, ids = domain.open_inputs(str(tmp_path / "two.npz"))
    assert [part.shape for part in inputs] == [(3, 4), (3, 2)] and len(ids) == 3
    np.savez(tmp_path / "one.npz", x=ROWS)
    with pytest.raises(DataError, match=r"holds the arrays x(?s:.*)2 arrays"):
        domain.open_inputs(str(tmp_path / "one.npz"))
    (tmp_path / "rows.csv").write_text("1,2,3,4\n")
    with pytest.raises(UsageError, match=r"the net takes 2(?s:.*)an .npz file of 2 arrays"):
        domain.open_inputs(str(tmp_path / "rows.csv"))


def test_which_array_is_meant_must_be_clear(tmp_path):
    np.savez(tmp_path / "a.npz", first=ROWS, second=ROWS)
    with pytest.raises(DataError, match=r"holds the arrays first, second(?s:.*)one called x"):
        array_file(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_python_objects_in_a_file_are_never_opened(tmp_path, name):
    """They are stored by pickle, which runs what it is told to."""

    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    content = np.array([Bomb()], dtype=object)
    (np.save if name.endswith("npy") else np.savez)(tmp_path / name, content, allow_pickle=True)
    with pytest.raises(DataError, match=r"holds Python objects(?s:.*)pickle, which is never opened"):
        array_file(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_what_is_no_such_file_goes_to_the_sources(flowers):
    inputs, ids = Arrays(shapes=[[4]]).open_inputs("iris")
    assert inputs[0].shape == (150, 4) and ids[-1] == "149"
    for path in ("no-such-file.csv", "no-such-file.npy", "nothing"):
        with pytest.raises(UsageError, match=f"There is no file, folder or sample '{path}'"):
            flowers.open_inputs(path)


# --- Picture files ----------------------------------------------------------------------------------------------------


def save(path, table, mode=None, **options):
    picture = Pillow.fromarray(table) if mode is None else Pillow.fromarray(table).convert(mode)
    picture.save(path, **options)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_picture_files_are_brought_to_the_channels_of_training(tmp_path, channels, mode):
    table = RNG.integers(0, 256, (8, 6, 3), dtype=np.uint8)
    domain = Image(channels=channels, height=8, width=6)
    save(tmp_path / "a.png", table)
    inputs, ids = domain.open_inputs(str(tmp_path / "a.png"))
    expected = np.asarray(Pillow.fromarray(table).convert(mode)).reshape(8, 6, channels).transpose(2, 0, 1)
    assert np.array_equal(inputs[0], expected[None]) and ids == [str(tmp_path / "a.png")]
    assert domain.encode(inputs)[0].shape == (1, channels, 8, 6)


def test_a_grey_picture_serves_a_run_of_coloured_ones(tmp_path):
    save(tmp_path / "a.png", np.full((4, 4), 90, np.uint8))
    assert (Image(channels=3, height=4, width=4).open_inputs(str(tmp_path / "a.png"))[0][0] == 90).all()


def test_a_picture_is_turned_upright_by_its_exif(tmp_path):
    table = np.zeros((4, 8), np.uint8)
    table[0, 0] = 255  # the upper left corner, of a camera held on its side
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be seen, turn by 90 degrees clockwise
    save(tmp_path / "a.png", table, exif=exif)
    found = Image(channels=1, height=8, width=4).open_inputs(str(tmp_path / "a.png"))[0][0][0, 0]
    assert np.array_equal(found, np.rot90(table, -1)) and found[0, 3] == 255


def test_a_picture_of_another_size_is_resized(tmp_path):
    save(tmp_path / "a.png", np.repeat(np.repeat(np.array([[0, 200], [100, 50]], np.uint8), 8, 0), 8, 1))
    found = Image(channels=1, height=8, width=8).open_inputs(str(tmp_path / "a.png"))[0][0][0, 0]
    assert found[[0, 0, 7, 7], [0, 7, 0, 7]].tolist() == [0, 200, 100, 50]


def test_sixteen_bits_a_pixel_are_brought_to_eight(tmp_path):
    """Pillow by itself would cut everything above 255 off to white."""
    table = np.array([[0, 256, 32768, 65535]] * 4, np.uint16)
    save(tmp_path / "a.png", table)
    found = Image(channels=1, height=4, width=4).open_inputs(str(tmp_path / "a.png"))[0][0][0, 0]
    assert found[0].tolist() == [0, 1, 128, 255]


def test_a_folder_of_pictures_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    for name, value in (("2.png", 2), ("1.JPG", 1), ("b/3.bmp", 3)):
        save(tmp_path / name, np.full((4, 4), value, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    inputs, ids = Image(channels=1, height=4, width=4).open_inputs(str(tmp_path))
    assert inputs[0][:, 0, 0, 0].tolist() == [1, 2, 3]
    assert ids == [str(tmp_path / name) for name in ("1.JPG", "2.png", "b/3.bmp")]


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n and then nothing", b"GIF89a"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png could not be read as a picture"):
        Image(channels=1, height=4, width=4).open_inputs(str(tmp_path / "broken.png"))


def test_arrays_of_pictures_are_read_from_their_files(tmp_path):
    np.save(tmp_path / "a.npy", PICTURES)
    np.savez(tmp_path / "a.npz", x=PICTURES)
    domain = fitted(Image, PICTURES)
    for name in ("a.npy", "a.npz"):
        inputs, ids = domain.open_inputs(str(tmp_path / name))
        assert torch.equal(domain.encode(inputs)[0], torch.from_numpy(PICTURES)) and len(ids) == 6


def test_a_picture_that_is_not_there_is_said_with_near_misses(tmp_path):
    (tmp_path / "seven.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"There is no file .*sevn\.png.*did you mean 'seven\.png'"):
        Image(height=8, width=8).open_inputs(str(tmp_path / "sevn.png"))


# --- Nets by name -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["digits", "wine"])
@pytest.mark.parametrize("net, kind", [("textnet", "texts"), ("tabular", "the columns of a table")])
def test_a_net_that_takes_other_inputs_is_refused_by_name(source, net, kind, tmp_path):
    with pytest.raises(UsageError, match=f"The net {net} is for {kind}, and these are"):
        lamina.train(source, net=net, runs=tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())
