"""Tables of Weka and of Arrow come out as they were written, and what is none is refused in words."""

from __future__ import annotations

import csv
import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather

import lamina
from lamina import sources
from lamina.errors import DataError
from lamina.sources import arff, delimited, formats

HEAD = """% Flowers
@RELATION 'some flowers'

@ATTRIBUTE length  NUMERIC
@attribute "petal's width" real
@ATTRIBUTE colour {red, 'dark blue', "o'clock"}
@ATTRIBUTE note string
@ATTRIBUTE class {a,b}

@DATA
"""
ROWS = [f"{k / 4},{-k},{('red', repr('dark blue'), chr(34) + 'o' + chr(39) + 'clock' + chr(34))[k % 3]},007,{'ab'[k % 2]}"
        for k in range(60)]  # fmt: skip


def read(path) -> delimited.Table:
    return formats.file(path, path.name, delimited.Reading())


def test_a_table_of_weka_is_a_table(tmp_path):
    rows = [*ROWS[:30], "% half way", "", "?,?,?,?,b", *ROWS[30:]]
    (tmp_path / "t.arff").write_text(HEAD + "\n".join(rows) + "\n")
    table = read(tmp_path / "t.arff")
    assert table.names == ["length", "petal's width", "colour", "note", "class"]
    columns = [column.to_pylist() for column in table.columns]
    assert columns[0][:3] == ["0.0", "0.25", "0.5"] and columns[2][:3] == ["red", "dark blue", "o'clock"]
    assert columns[3][0] == "007"  # a text, though it looks like a number
    assert table.lines[0] == 11 and table.lines[30] == 43 and table.rows == 61
    source = sources.open(tmp_path / "t.arff")
    assert source.train.inputs[0][:3].tolist() == [0.0, 0.25, 0.5]
    assert source.train.names == ["length", "petal's width", "colour", "note"] and set(source.train.truth) == {"a", "b"}
    assert np.isnan(source.train.inputs[0][30]) and source.train.inputs[2][30] is None
    run = lamina.train(tmp_path / "t.arff", epochs=1, runs=tmp_path / "runs", quiet=True, report=False, baselines=False)
    found = run.predict(str(tmp_path / "t.arff"))
    assert len(found.prediction) == 61


def test_it_is_what_scipy_reads(tmp_path):
    from scipy.io import arff as known

    rng = np.random.default_rng(0)
    rows = "".join(
        f"{a:.6g},{b},'{c}'\n" for a, b, c in zip(rng.normal(size=50), rng.integers(0, 9, 50), "xyz" * 20, strict=False)
    )
    (tmp_path / "t.arff").write_text(
        f"@relation r\n@attribute a real\n@attribute b integer\n@attribute c {{'x','y','z'}}\n@data\n{rows}"
    )
    limit = csv.field_size_limit()
    truth, _ = known.loadarff(tmp_path / "t.arff")
    csv.field_size_limit(limit)  # which it leaves raised for the whole process
    found = read(tmp_path / "t.arff")
    assert found.columns[0].to_pylist() == truth["a"].tolist() and found.columns[1].to_pylist() == truth["b"].tolist()
    assert found.columns[2].to_pylist() == [word.decode().strip("'") for word in truth["c"]]


WORDS = (
    st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12)
    .map(str.strip)
    .filter(bool)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=3, max_size=3), min_size=1, max_size=5), st.sampled_from("'\""))
def test_quoted_cells_come_out_as_they_were(rows, quote):
    def quoted(word: str) -> str:
        return quote + word.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote

    text = "@relation r\n@attribute a string\n@attribute b string\n@attribute c string\n@data\n"
    data, texts = arff.as_csv((text + "\n".join(",".join(map(quoted, row)) for row in rows)).encode(), "t")
    found = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert texts == ["a", "b", "c"] and [row for row in found if row][1:] == rows


@pytest.mark.parametrize(
    "text, words",
    [
        ("@relation r\n@attribute a real\n1\n2\n", "no line @data"),
        ("@relation r\n@data\n1\n2\n", "no @attribute lines"),
        ("@attribute a real\n@attribute b {x,y}\n@data\n{0 1, 1 x}\n", r"sparse rows.*line 4"),
        ("@attribute a relational\n@attribute b real\n@data\n1,2\n", "'a' of t.arff is of the kind 'relational'"),
        ("@attribute a real\n@attribute b real\n@data\n", "no rows below it"),
    ],
    ids=["no data", "no columns", "sparse", "relational", "empty"],
)
def test_what_is_no_such_table_is_refused(tmp_path, text, words):
    (tmp_path / "t.arff").write_text(text)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "t.arff")


@pytest.mark.parametrize("kind", ["feather", "arrow", "stream"])
def test_files_of_arrow(tmp_path, kind):
    table = pa.table({"u": np.arange(60) / 7, "v": ["x", "y", None] * 20, "y": ["a", "b"] * 30})
    place = tmp_path / f"t.{'feather' if kind == 'feather' else 'arrow'}"
    if kind == "stream":
        with pa.OSFile(str(place), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    else:
        feather.write_feather(table, place, compression="lz4" if kind == "feather" else "uncompressed")
    found = read(place)
    assert found.names == ["u", "v", "y"]
    assert [column.to_pylist() for column in found.columns] == [column.to_pylist() for column in table.columns]
    assert sources.open(place).train.names == ["u", "v"]
    whole = place.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):  # whatever is damaged, the process lives and it is said
        torn = bytearray(whole)
        for at in rng.integers(0, len(torn), 4):
            torn[at] = rng.integers(256)
        place.write_bytes(torn[: rng.integers(100, len(torn))] if rng.random() < 0.3 else torn)
        try:
            read(place)
        except DataError:
            continue
    place.write_bytes(b"no such thing")
    with pytest.raises(DataError, match="is no Arrow file"):
        read(place)


def test_sparse_rows_of_svmlight_are_refused_and_texts_with_colons_are_not(tmp_path):
    (tmp_path / "a9a.txt").write_text(
        "".join(f"{'+1' if k % 2 else '-1'} 3:1 {5 + k % 7}:{k / 8} \n" for k in range(50))
    )
    with pytest.raises(DataError, match=r"svmlight(?s:.*)load_svmlight_file"):
        sources.open(tmp_path / "a9a.txt")
    (tmp_path / "times.txt").write_text("".join(f"at {k % 12}:30 we met and went away\n" for k in range(50)))
    assert sources.open(tmp_path / "times.txt").train.kind == "texts"
    (tmp_path / "nameless").write_bytes(b"")
    feather.write_feather(pa.table({"u": np.arange(60) / 7, "y": ["a", "b"] * 30}), tmp_path / "nameless")
    assert sources.open(tmp_path / "nameless").train.names == ["u"]
