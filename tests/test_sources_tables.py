"""Tables come out as they are written, whoever wrote them; what was guessed, mended or left out is told with its lines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lamina
from lamina import sources
from lamina.errors import DataError, UsageError
from lamina.sources import Columns, delimited, tables

ROWS = [
    ["Adelie", "Dream", "38.1", "187", "FEMALE"],
    ["Adelie", "Torgersen", "39", "191", "MALE"],
    ["Gentoo", "Biscoe", "46.3", "215", "MALE"],
    ["Chinstrap", "Dream", "51.3", "198", "FEMALE"],
] * 5
NAMES = ["species", "island", "bill", "flipper", "sex"]


def text(rows=ROWS, names=NAMES, separator=",", end="\n"):
    return "".join(separator.join(row) + end for row in [names, *rows])


@pytest.fixture
def table(tmp_path):
    """A function (content, name) -> the path of a file that holds it."""

    def write(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def kinds(source):
    return [finding.kind for finding in source.findings]


def column(source, name, part="train"):
    examples = getattr(source, part)
    return examples.inputs[examples.names.index(name)]


def told(source, kind):
    (finding,) = [finding for finding in source.findings if finding.kind == kind]
    return finding


# --- A sound file -----------------------------------------------------------------------------------------------------


def test_a_sound_table_is_read_without_a_word(table):
    source = sources.open(table(text()), columns=Columns(target=("species",)))
    assert source.findings == [] and source.why == {} and source.target == ("species",)
    assert source.train.kind == "table" and source.train.names == ["island", "bill", "flipper", "sex"]
    assert source.train.truth.tolist() == [row[0] for row in ROWS] and source.train.truth.dtype.kind == "U"
    assert column(source, "bill").dtype == np.float64 and column(source, "bill").tolist() == [float(r[2]) for r in ROWS]
    assert column(source, "island").dtype == object and column(source, "island").tolist() == [r[1] for r in ROWS]
    assert source.train.ids.tolist() == list(range(2, 22)) and source.train.count == 20


@pytest.mark.parametrize(
    "content",
    [
        text(separator=";").encode(),
        text(separator="\t").encode(),
        text(separator="|").encode(),
        text(separator="::").encode(),
        text(end="\r\n").encode(),
        text(end="\r").encode(),
        text().rstrip().encode(),
        b"\xef\xbb\xbf" + text().encode(),
        text().encode("utf-16"),
        text().encode("utf-16-le"),
        text().encode("utf-16-be"),
        text(separator=";").replace(".", ",").encode(),
        text([[f'"{cell}"' for cell in row] for row in ROWS]).encode(),
        text([[f' "{cell}"' for cell in row] for row in ROWS]).encode(),
        text(separator=" , ").encode(),
        b"sep=;\n" + text(separator=";").encode(),
        b"# penguins\n\n" + text().encode(),
        text().replace("\n", "\n\n").encode(),
    ],
    ids=["semicolons", "tabs", "bars", "two colons", "CRLF", "CR", "no last newline", "BOM", "UTF-16", "UTF-16 LE",
         "UTF-16 BE", "decimal commas", "quotes", "quotes after a space", "spaces around", "sep=", "a remark",
         "blank lines"],
)  # fmt: skip
def test_however_it_is_written_the_table_is_the_same(content, table):
    source = sources.open(table(content), columns=Columns(target=("species",)))
    plain = sources.open(table(text(), "plain.csv"), columns=Columns(target=("species",)))
    assert source.findings == [] and source.train.names == plain.train.names
    for ours, theirs in zip(source.train.inputs, plain.train.inputs, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert np.array_equal(source.train.truth, plain.train.truth)


def test_numbers_between_spaces_are_columns(table):
    content = "".join(f"{k:5d}   {k / 3:8.3f}\t {k % 2}\n" for k in range(30))
    source = sources.open(table(content, "housing.data"))
    assert source.train.inputs[1].tolist() == [round(k / 3, 3) for k in range(30)]
    assert source.train.truth.tolist() == [k % 2 for k in range(30)] and kinds(source) == ["no_header"]


_cells = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_cells, st.floats(-1e6, 1e6), _cells), min_size=5, max_size=20), st.sampled_from(",;\t|"))
def test_what_python_writes_is_read_as_python_reads_it(rows, separator):
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows([("first", "second", "third"), *rows])
    read = delimited.read(
        out.getvalue().encode(),
        "it",
        ".csv",
        delimited.Reading(separator=separator, header=True, text=("first", "third")),
    )
    assert read.names == ["first", "second", "third"] and read.findings == []
    assert [column.to_pylist() for column in read.columns[::2]] == [[r[0] for r in rows], [r[2] for r in rows]]
    assert read.columns[1].to_pylist() == pytest.approx([row[1] for row in rows], rel=1e-14)
    assert read.lines.tolist() == list(range(2, 2 + len(rows)))


def test_lines_are_those_of_the_file_whatever_stands_between(table):
    content = 'id,comment,label\n1,"He said ""no"", twice",a\n2,"two\nlines",b\n3,"comma, inside",a\n\n4,plain,b\n'
    source = sources.open(table(content))
    assert source.findings == [] and source.train.ids.tolist() == [2, 3, 5, 7]
    assert column(source, "comment").tolist() == ['He said "no", twice', "two\nlines", "comma, inside", "plain"]


def test_a_gzip_is_read_like_the_file_within(table):
    source = sources.open(table(gzip.compress(text().encode()), "table.csv.gz"))
    assert source.train.count == 20 and source.target == ("sex",)
    with pytest.raises(DataError, match="cannot be unpacked"):
        sources.open(table(gzip.compress(text().encode())[:-20], "half.csv.gz"))
    with pytest.raises(DataError, match="unpacks to more than"):
        sources.open(table(gzip.compress(b"0,0\n" * (10 << 20)), "bomb.csv.gz"))


# --- Encodings --------------------------------------------------------------------------------------------------------


def test_latin_letters_are_found_and_told(table):
    rows = [["Zoë", "1"], ["José", "2"], ["Müller", "3"], ["Façade", "4"]] * 3
    source = sources.open(table(text(rows, ["naïve", "größe"]).encode("latin-1")), columns=Columns(target=("größe",)))
    assert column(source, "naïve")[:4].tolist() == ["Zoë", "José", "Müller", "Façade"]
    finding = told(source, "encoding")
    assert finding.severity == "warning" and "latin-1" in finding.what and "encoding=" in finding.fix


def test_other_bytes_are_refused_with_their_place_and_read_where_named(table):
    path = table("слово,y\nда,1\nнет,0\n".encode("cp1251"))
    with pytest.raises(DataError, match=r"line 1 holds the byte 0xf1 at place 1.*\n.*\n.*encoding="):
        sources.open(path)
    source = sources.open(path, options={"encoding": "cp1251"})
    assert source.train.inputs[0].tolist() == ["да", "нет"] and source.findings == []
    path = table(b"sentence\tlabel\ngood film\t1\nbad \xff\xfe film\t0\nfine \xc3\t1\nawful\t0\n", "bad.tsv")
    with pytest.raises(DataError, match="line 3 holds the byte 0xff at place 5"):
        sources.open(path)


def test_a_few_bad_bytes_in_a_long_file_are_replaced_and_told(table):
    lines = [f"né {k},{k % 2}" for k in range(300)]
    content = "word,y\n" + "\n".join(lines) + "\n"
    data = bytearray(content.encode())
    data[data.index(b"100,")] = 0xFF
    source = sources.open(table(bytes(data)))
    assert told(source, "encoding").examples == [102] and source.train.count == 300
    assert column(source, "word")[100] == "né \ufffd00" and column(source, "word")[99] == "né 99"


def test_nul_bytes_are_taken_out_and_told(table):
    source = sources.open(table(b"a,b,y\n1,2,x\n3,\x004,y\n5,6,x\n"))
    assert column(source, "b").tolist() == [2.0, 4.0, 6.0] and told(source, "nul_bytes").examples == [3]
    with pytest.raises(DataError, match="NUL"):
        sources.open(table(bytes(range(256)).replace(b"\n", b"") * 4 + b"\0" * 100 + b"\n,y\n", "b.csv"),
                     options={"encoding": "latin-1"})  # fmt: skip


# --- Rows and quotes --------------------------------------------------------------------------------------------------


def test_a_few_rows_of_another_length_are_left_out_and_told(table):
    rows = [list(row) for row in ROWS] * 3
    rows[2] = rows[2][:4]
    rows[9] = [*rows[9], "extra", "cells"]
    content = text(rows).replace("\n", "\n\n", 3)
    source = sources.open(table(content), columns=Columns(target=("species",)))
    finding = told(source, "ragged_rows")
    assert finding.count == 2 and finding.examples == [7, 14] and "line 7 has 4" in finding.what
    kept = [row for k, row in enumerate(rows) if k not in (2, 9)]
    assert column(source, "flipper").tolist() == [float(row[3]) for row in kept]
    lines = content.split("\n")
    assert [lines[line - 1].split(",")[0] for line in source.train.ids] == source.train.truth.tolist()


def test_many_rows_of_another_length_are_refused(table):
    rows = [row if k % 5 else row[:3] for k, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r"4 of 20 rows .* another number of cells than 5: lines 2, 7, 12, 17"):
        sources.open(table(text(rows)))
    content = "sentence\tlabel\n" + "".join(f"film {k}{' ' if k % 6 == 0 else chr(9)}{k % 2}\n" for k in range(40))
    with pytest.raises(DataError, match=r"7 of 40 rows .* lines 2, 8, 14"):
        sources.open(table(content, "t.tsv"))


@pytest.mark.parametrize("row, place", [(9, 0), (9, 4), (19, 2)])
@pytest.mark.parametrize("later", [False, True], ids=["the only quote", "with quotes after it"])
def test_a_quote_that_is_never_closed_is_refused_with_its_line(row, place, later, table):
    rows = [list(cells) for cells in ROWS] * 2
    rows[row][place] = '"' + rows[row][place]
    if later:
        rows[30][1] = '"Dream"'
        rows[2][1] = '"Biscoe"'
    with pytest.raises(DataError, match=f"opens a quote in line {row + 2} .*closed"):
        sources.open(table(text(rows)))


def test_quotation_marks_that_are_text_are_left_there(table):
    rows = [['the " good " film', "1"], ['"bad" he said', "0"], ['5" of rain', "0"], ['"', "1"]] * 4
    source = sources.open(table(text(rows, ["sentence", "label"], "\t"), "sst.tsv"))
    assert source.findings == [] and column(source, "sentence").tolist() == [row[0] for row in rows]
    assert source.train.truth.tolist() == [1, 0, 0, 1] * 4


def test_marks_may_be_said_to_be_text_or_quotes(table):
    path = table('a,y\n"x",1\n"z",0\n')
    assert sources.open(path).train.inputs[0].tolist() == ["x", "z"]
    assert sources.open(path, options={"quote": None}).train.inputs[0].tolist() == ['"x"', '"z"']
    assert sources.open(table("a;y\n'x;z';1\n'z';0\n", "b.csv"), options={"quote": "'"}).train.inputs[0][0] == "x;z"


def test_a_cell_longer_than_any_block_is_read(table):
    long = "word " * 500_000
    source = sources.open(table(f'text,y\n"{long}",1\n"a\nb",0\nshort,1\n'))
    assert column(source, "text").tolist() == [long.strip(), "a\nb", "short"] and source.train.ids.tolist() == [2, 3, 5]


# --- Too little -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, words",
    [
        ("", "is empty"),
        ("\n\n\n", "nothing but blank lines"),
        (",".join(NAMES) + "\n", "a line of names and no rows"),
        ("species\n" + "Adelie\nGentoo\n" * 9, "has one column, 'species'"),
        ("a,y\n1,\n2,\n", "column 'y' is empty"),
    ],
)
def test_too_little_is_refused_each_with_its_reason(content, words, table):
    with pytest.raises(DataError, match=words):
        sources.open(table(content))


# --- Names ------------------------------------------------------------------------------------------------------------


def test_odd_names_are_mended_and_told(table):
    source = sources.open(table('a,, b ,a,"c\nd","e  f"\n1,2,3,4,5,6\n1,2,3,5,5,7\n'))
    assert source.train.names == ["a", "column_2", "b", "a_2", "c d"] and source.target == ("e f",)
    finding = told(source, "column_names")
    assert finding.count == 5 and "'' to 'column_2'" in finding.done and "'a' to 'a_2'" in finding.done
    assert source.train.ids.tolist() == [3, 4]


def test_a_first_line_of_data_is_data(table):
    path = table(text(names=ROWS[0]))
    source = sources.open(path)
    assert source.train.count == 21 and source.train.ids[0] == 1 and told(source, "no_header").severity == "warning"
    assert source.train.names == ["column_1", "column_2", "column_3", "column_4"] and source.target == ("column_5",)
    assert "no_header" not in kinds(sources.open(path, options={"header": "no"}))
    named = sources.open(path, options={"header": True})
    assert named.train.count == 20 and named.train.names == ROWS[0][:4]


@pytest.mark.parametrize("names", [["2019", "2020", "2021", "y"], ["0", "1", "2", "3"]])
def test_years_and_counts_may_be_names(names, table):
    assert sources.open(table(text([["1", "2", "5", "0"]] * 4, names))).train.names == names[:3]


def test_letters_that_come_again_are_no_names(table):
    source = sources.open(table("p,x,s\n" + "e,x,s\np,y,f\n" * 10))
    assert "no_header" in kinds(source) and source.train.count == 21


# --- Cells ------------------------------------------------------------------------------------------------------------


def test_words_for_gaps_are_gaps_and_told(table):
    words = ["NaN", "inf", "-inf", "NA", "null", "-", "?", "1e400", "N/A", "None", ""]
    rows = [[word, word, "a"] for word in words] + [[f"{k}.5", "red", "b"] for k in range(30)]
    source = sources.open(table(text(rows, ["x", "colour", "y"])))
    x, colour = column(source, "x"), column(source, "colour")
    assert x.dtype == np.float64 and np.isnan(x[:11]).all() and x[11:].tolist() == [k + 0.5 for k in range(30)]
    assert [v for v in colour[:11] if v is not None] == ["inf", "-inf", "1e400"] and set(colour[11:]) == {"red"}
    finding = told(source, "markers")
    assert finding.severity == "warning" and finding.examples == ["x", "colour"] and finding.count == 10 + 7
    clean = sources.open(table(text([["1.5", "red", "a"], ["", "", "b"]] * 9, ["x", "colour", "y"]), "clean.csv"))
    assert clean.findings == []  # what is just empty is a gap without a word


def test_words_of_your_own_may_be_gaps_or_none(table):
    path = table(text([["-9", "NA", "a"], ["1", "CH", "b"]] * 9, ["x", "country", "y"]))
    assert np.isnan(column(sources.open(path, options={"missing": "-9"}), "x")[0])
    source = sources.open(path, options={"text": ["country"]})
    assert column(source, "country")[:2].tolist() == ["NA", "CH"] and source.findings == []


def test_a_few_odd_cells_leave_a_column_of_numbers_one(table):
    odd = ["one hundred", "181 mm", "TRUE", "2020-01-02"]
    rows = [[word, "a"] for word in odd] + [[str(k), "b"] for k in range(40)]
    source = sources.open(table(text(rows, ["x", "y"])))
    x = column(source, "x")
    assert x.dtype == np.float64 and np.isnan(x[:4]).all() and x[4:].tolist() == list(range(40))
    finding = told(source, "odd_cells")
    assert finding.count == 4 and finding.severity == "warning" and "'181 mm' once" in finding.what
    words = sources.open(table(text(rows, ["x", "y"])), options={"text": "x"})
    assert column(words, "x")[:5].tolist() == [*odd, "0"] and words.findings == []


def test_many_odd_cells_make_it_one_of_words(table):
    rows = [[f"A{k}", "a"] for k in range(15)] + [[str(k), "b"] for k in range(30)]
    source = sources.open(table(text(rows, ["ticket", "y"])))
    assert column(source, "ticket").dtype == object and column(source, "ticket")[20] == "5"
    assert "67%" in told(source, "mixed_column").what
    few = sources.open(table(text([*rows[:15], *rows[15:20]], ["ticket", "y"]), "few.csv"))
    assert few.findings == [] and column(few, "ticket").dtype == object


def test_numbers_in_another_dress_are_numbers(table):
    rows = [["1,234.5", "$5", "12 %", "01234", "True"], ["7", "$1,000", "3.5%", "00017", "False"]] * 6
    source = sources.open(table(text([[f'"{cell}"' for cell in row] for row in rows], ["a", "b", "c", "zip", "flag"])),
                          columns=Columns(target=()))  # fmt: skip
    found = [list(one[:2]) for one in source.train.inputs]
    assert found == [[1234.5, 7.0], [5.0, 1000.0], [12.0, 3.5], ["01234", "00017"], [True, False]]


def test_booleans_dates_and_numbers_have_their_types(table):
    content = "flag,day,when,gap,y\nTrue,2021-01-02,2021-01-02 10:30:00,true,1\nFalse,,2021-01-03 11:00:00,,0\n"
    source = sources.open(table(content))
    flag, day, when, gap = source.train.inputs
    assert flag.dtype == bool and flag.tolist() == [True, False] and gap.tolist() == ["True", None]
    assert day.dtype.kind == "M" and day[0] == np.datetime64("2021-01-02") and np.isnat(day[1])
    assert when[0] == np.datetime64("2021-01-02T10:30:00")


# --- Answers ----------------------------------------------------------------------------------------------------------


def test_rows_without_an_answer_are_left_out_never_a_class(table):
    rows = [["" if k % 4 == 0 else "nan" if k % 4 == 1 else cell[0], *cell[1:]] for k, cell in enumerate(ROWS)]
    source = sources.open(table(text(rows)), columns=Columns(target=("species",)))
    assert set(source.train.truth) == {"Gentoo", "Chinstrap"} and source.train.count == 10
    assert source.train.ids[:3].tolist() == [4, 5, 8] and len(column(source, "bill")) == 10
    finding = told(source, "no_answer")
    assert finding.count == 10 and finding.examples == [2, 3, 6, 7, 10]


def test_numbers_to_predict_are_finite(table):
    rows = [[str(k), f"{k}.25"] for k in range(40)]
    for k, word in ((3, "nan"), (7, "inf"), (9, ""), (11, "-inf"), (13, "oops")):
        rows[k][1] = word
    source = sources.open(table(text(rows, ["x", "y"])))
    assert source.train.truth.dtype == np.float64 and np.isfinite(source.train.truth).all()
    assert source.train.count == 35 and sorted(kinds(source)) == ["markers", "no_answer", "odd_cells"]


def test_odd_answers_among_class_numbers_are_classes_that_are_told(table):
    rows = [[f"text {k}", str(k % 2)] for k in range(40)] + [["odd", "positive"], ["odder", "label"]]
    source = sources.open(table(text(rows, ["sentence", "label"])))
    assert set(source.train.truth) == {"0", "1", "positive", "label"}
    assert "'positive' once" in told(source, "mixed_column").what


def test_whole_numbers_stay_whole_where_some_are_missing(table):
    source = sources.open(table(text([[str(k), "" if k == 3 else str(k * 100)] for k in range(50)], ["x", "y"])))
    assert source.train.truth.dtype.kind == "i" and source.train.count == 49


def test_a_class_may_be_called_none(table):
    rows = [[str(k), "None" if k % 2 else "Apnea"] for k in range(20)]
    source = sources.open(table(text(rows, ["x", "disorder"])))
    assert set(source.train.truth) == {"None", "Apnea"} and source.findings == []


def test_the_answers_may_have_gaps_and_are_no_dates(table):
    rows = [[str(k % 7), f"{k / 7:.4f}" if k % 9 else "NA", f"20{k % 24:02d}-01-{k % 28 + 1:02d}"] for k in range(60)]
    found = sources.open(table(text(rows, ["size", "price", "seen"])))
    assert found.target == ("price",) and found.train.truth.dtype.kind == "f" and len(found.train.truth) == 53
    last = sources.open(table(text([row[:2] for row in rows], ["size", "price"])))
    assert last.target == ("price",)
    names = [[*row[:2], f"buyer {k}"] for k, row in enumerate(rows)]
    assert sources.open(table(text(names, ["size", "price", "who"]))).target == ("price",)


@pytest.mark.parametrize(
    "names, wanted, why",
    [
        (["a", "Label", "b"], "Label", "called Label"),
        (["y", "a", "b"], "y", "called y"),
        (["a", "b", "c"], "c", "the last column"),
    ],
)
def test_the_target_is_found_and_the_reason_said(names, wanted, why, table):
    source = sources.open(table(text([["1", "2", "3"], ["2", "3", "4"]] * 5, names)))
    assert source.target == (wanted,) and why in source.why["target"]


def test_texts_that_never_come_again_are_no_target(table):
    rows = [[str(k % 3), str(k), f"name {k}"] for k in range(40)]
    source = sources.open(table(text(rows, ["kind", "size", "name"])))
    assert source.target == ("size",) and "can be answers" in source.why["target"]


def test_several_targets(table):
    path = table(text([["x", "1.5", "2"], ["z", "2.5", "3"]] * 4, ["a", "u", "v"]))
    source = sources.open(path, columns=Columns(target=("u", "v")))
    assert source.train.truth.tolist()[:2] == [[1.5, 2.0], [2.5, 3.0]] and source.train.names == ["a"]
    with pytest.raises(DataError, match="'a' holds no numbers"):
        sources.open(path, columns=Columns(target=("a", "v")))
    alone = sources.open(path, columns=Columns(target=()))
    assert alone.train.truth is None and alone.train.names == ["a", "u", "v"] and alone.target == ()


def test_a_column_that_is_not_there_is_refused_with_the_nearest(table):
    path = table(text())
    with pytest.raises(UsageError, match=r"no column 'speces' \(target\): did you mean 'species'") as error:
        sources.open(path, columns=Columns(target=("speces",), ignore=("islnd",)))
    assert "'islnd' (ignore): did you mean 'island'" in str(error.value) and "bill, flipper, sex" in str(error.value)


# --- Which column is what ---------------------------------------------------------------------------------------------


def test_ignored_columns_groups_and_times(table):
    rows = [[f"p{k // 2}", f"0{1 + k % 9}.02.2021", str(k), "x", str(k % 2)] for k in range(18)]
    path = table(text(rows, ["patient", "day", "a", "b", "y"]))
    source = sources.open(path, columns=Columns(ignore=("b",), groups="patient", times="day"))
    assert source.train.names == ["day", "a"] and source.train.groups.tolist() == [row[0] for row in rows]
    assert source.train.times[1] == np.datetime64("2021-02-02") and source.train.times.dtype.kind == "M"
    rows[4][1], rows[5][0] = "soon", ""
    path = table(text(rows, ["patient", "day", "a", "b", "y"]))
    with pytest.raises(DataError, match=r"'day' .* are in no style that is known"):
        sources.open(path, columns=Columns(times="day"))
    source = sources.open(path, columns=Columns(groups="patient"))
    assert told(source, "no_group").examples == [7] and len(set(source.train.groups)) == 10


def test_a_column_says_which_part_each_row_is_for(table):
    rows = [[str(k), str(k % 2), ["Train", "train", "val", "test"][k % 4]] for k in range(40)]
    for name, columns in (("split", Columns()), ("which", Columns(split="which"))):
        source = sources.open(table(text(rows, ["x", "y", name])), columns=columns)
        assert [part.count for part in (source.train, source.valid, source.test)] == [20, 10, 10]
        assert source.test.inputs[0].tolist() == list(range(3, 40, 4)) and source.test.ids[0] == 5
        assert source.valid.truth.tolist() == [0] * 10 and source.train.names == ["x"]
    assert "split_column" in sources.open(table(text(rows, ["x", "y", "split"]))).why
    rows[3][2] = "maybe"
    with pytest.raises(DataError, match=r"neither train, valid nor test, but 'maybe' .line 5"):
        sources.open(table(text(rows, ["x", "y", "which"])), columns=Columns(split="which"))
    assert sources.open(table(text(rows, ["x", "y", "split"]))).test is None  # it is no such column


# --- Test tables ------------------------------------------------------------------------------------------------------


def test_test_tables_are_matched_by_name(table):
    train = table("colour,x,y\n" + "red,1,a\nblue,2,b\n" * 9)
    test = table("y,x,colour,new\na,2,red,1\nb,3,green,2\n", "test.csv")
    source = sources.open(train, test=test)
    assert source.test.names == ["colour", "x"] and source.test.truth.tolist() == ["a", "b"]
    assert source.test.inputs[0].tolist() == ["red", "green"] and source.test.inputs[1].tolist() == [2.0, 3.0]
    assert "'new'" in told(source, "new_columns").what
    with pytest.raises(DataError, match="lacks 1 of 2 columns: 'colour': did you mean 'color'"):
        sources.open(train, test=table("color,x,y\nred,1,a\n", "other.csv"))
    with pytest.raises(UsageError, match="no column 'y'"):
        sources.open(train, test=table("colour,x\nred,1\n", "none.csv"))


def test_test_cells_have_the_kinds_of_the_training_table(table):
    train = table("n,w,f,d,y\n" + "1,a,True,2021-01-01,u\n2,b,False,2021-01-02,v\n" * 9)
    test = table("n,w,f,d,y\nx,1,0,soon,u\n3,2,,2021-03-03,v\n,,1,,v\n", "test.csv")
    source = sources.open(train, test=test)
    n, w, f, d = source.test.inputs
    assert [one.dtype.kind for one in source.test.inputs] == ["f", "O", "O", "M"]
    assert np.isnan(n[[0, 2]]).all() and n[1] == 3 and w.tolist() == ["1", "2", None]
    assert f.tolist() == ["False", None, "True"] and d[1] == np.datetime64("2021-03-03") and np.isnat(d[0])
    odd = [finding for finding in source.findings if finding.kind == "odd_cells"]
    assert [finding.examples for finding in odd] == [["x"], [2]]


# --- Other files ------------------------------------------------------------------------------------------------------


def test_json_lines(table):
    rows = [{"text": f"t {k}", "n": k, "deep": {"a": k / 2}, "label": "ab"[k % 2]} for k in range(20)]
    source = sources.open(table("\n".join(map(json.dumps, rows)), "rows.jsonl"))
    assert source.findings == [] and source.target == ("label",) and source.train.names == ["text", "n", "deep.a"]
    assert column(source, "deep.a").tolist() == [k / 2 for k in range(20)] and source.train.ids[0] == 1
    same = sources.open(table(json.dumps(rows), "rows.json"))
    assert same.train.inputs[0].tolist() == source.train.inputs[0].tolist()


def test_bad_json_lines_are_refused_or_left_out_with_their_place(table):
    bad = '{"text": "ok", "label": 1}\n{"text": "broken \\ud83d here", "label": 0}\n{"text": "half\n'
    with pytest.raises(DataError, match=r"1 of 3 lines .* line 3 .*place 10"):
        sources.open(table(bad, "bad.jsonl"))
    rows = "".join(json.dumps({"text": f"t {k}", "label": k % 2}) + "\n" for k in range(40))
    source = sources.open(table(rows + bad, "long.jsonl"))
    assert source.train.count == 42 and told(source, "bad_lines").examples == [43]
    assert column(source, "text")[-1] == "broken \ufffd here" and told(source, "lone_surrogate").examples == [42]


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    made = pa.table({"x": [1.0, None, float("inf")] * 4, "w": ["a", None, "c"] * 4, "flag": [True, False, True] * 4,
                     "day": pa.array([0, 1, None] * 4, pa.date32()), "y": ["u", "v", "u"] * 4})  # fmt: skip
    parquet.write_table(made, tmp_path / "t.parquet")
    source = sources.open(tmp_path / "t.parquet")
    assert [one.dtype.kind for one in source.train.inputs] == ["f", "O", "b", "M"] and source.target == ("y",)
    assert np.isnan(column(source, "x")[[1, 2]]).all() and told(source, "markers").count == 4
    (tmp_path / "half.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-10])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        sources.open(tmp_path / "half.parquet")


def test_excel(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    for row in [["x", "w", "y"], [1, "a", "u"], [2.5, None, "v"], [None, None, None], [3, "c", "u"]]:
        sheet.append(row)
    book.create_sheet("more").append(["p", "q"])
    book.save(tmp_path / "t.xlsx")
    source = sources.open(tmp_path / "t.xlsx")
    assert source.train.inputs[0].tolist() == [1.0, 2.5, 3.0] and source.train.ids.tolist() == [2, 3, 5]
    assert column(source, "w").tolist() == ["a", None, "c"] and kinds(source) == ["sheet"]
    with pytest.raises(UsageError, match="no sheet 'mor': did you mean 'more'"):
        sources.open(tmp_path / "t.xlsx", options={"sheet": "mor"})
    with pytest.raises(DataError, match="a row of names and no rows"):
        sources.open(tmp_path / "t.xlsx", options={"sheet": "more"})


def test_excel_without_its_reader_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match=r"pip install 'lamina\[excel\]'"):
        sources.open(tmp_path / "t.xlsx")


# --- From Python ------------------------------------------------------------------------------------------------------


class Frame:
    """As much of a data frame of pandas as is asked."""

    class Series:
        def __init__(self, values):
            self.values = np.asarray(values)

        def __array__(self, dtype=None, copy=None):
            return self.values

    def __init__(self, columns, index):
        self._columns, self.columns, self.index = list(columns.values()), list(columns), np.asarray(index)
        self.shape = (len(index), len(columns))
        self.iloc = self

    def __getitem__(self, place):
        return Frame.Series(self._columns[place[1]])


def test_data_frames_dicts_and_arrow_tables(table):
    pa = pytest.importorskip("pyarrow")
    columns = {"x": [1.0, float("nan"), 3.0], "w": np.array(["a", None, "c"], object), "y": ["u", "v", "u"]}
    frame = Frame(columns, ["r1", "r2", "r3"])
    for given_ in (columns, frame, pa.table({name: list(one) for name, one in columns.items()})):
        source = sources.open(given_, columns=Columns(target=("y",)))
        assert source.train.inputs[0][[0, 2]].tolist() == [1.0, 3.0] and np.isnan(source.train.inputs[0][1])
        assert column(source, "w").tolist() == ["a", None, "c"] and source.train.truth.tolist() == ["u", "v", "u"]
        assert source.reopen is None
    assert sources.open(frame).train.ids.tolist() == ["r1", "r2", "r3"]
    apart = sources.open(({"x": [1.0, 2.0, 3.0]}, [0, 1, 0]))
    assert apart.train.kind == "table" and apart.train.truth.tolist() == [0, 1, 0]
    frame.__class__.__array__ = lambda self, dtype=None, copy=None: np.ones((3, 2))
    assert sources.open((frame, [0, 1, 0])).train.kind == "arrays"  # nothing but numbers
    del Frame.__array__
    with pytest.raises(DataError, match="different lengths: 'a' 2, 'b' 3"):
        sources.open({"a": [1, 2], "b": [1, 2, 3]})
    with pytest.raises(DataError, match="3 rows, and there are 2 answers"):
        sources.open(({"x": [1.0, 2.0, 3.0]}, [0, 1]))


# --- What would do nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"seperator": ";"}, "no 'seperator': did you mean 'separator'"),
        ({"encoding": "utf-9"}, "no encoding 'utf-9'"),
        ({"decimal": "x"}, "decimal in source_arg is 'x'"),
        ({"header": "maybe"}, "header in source_arg is 'maybe'"),
        ({"quote": "''"}, "it is one character"),
        ({"sheet": "a"}, "sheet in source_arg would do nothing"),
    ],
)
def test_what_is_asked_of_reading_is_checked(options, words, table):
    with pytest.raises(UsageError, match=words):
        sources.open(table(text()), options=options)


def test_the_command_line_may_write_a_comma_and_a_tab(table):
    assert delimited.reading({"decimal": [], "separator": "tab"}) == delimited.Reading(decimal=",", separator="\t")
    source = sources.open(table("a;y\n1.5;2\n2.5;3\n"), options={"separator": "semicolon", "decimal": "point"})
    assert source.train.inputs[0].tolist() == [1.5, 2.5]


@pytest.mark.parametrize("columns", [Columns(target=("a",)), Columns(ignore=("a",)), Columns(split="a")])
def test_columns_of_what_has_none_are_refused(columns):
    for source in ("iris", (np.zeros((3, 2)), [0, 1, 0])):
        with pytest.raises(UsageError, match=r"would do nothing: .* has no columns with names"):
            sources.open(source, columns=columns)
    with pytest.raises(UsageError, match="encoding in source_arg would do nothing"):
        sources.open("iris", options={"encoding": "utf-8"})


def test_answers_may_be_left_out_of_anything():
    assert sources.open("iris", columns=Columns(target=())).train.truth is None


# --- To predict on ----------------------------------------------------------------------------------------------------


def test_inputs_to_predict_on_are_matched_by_name(table, monkeypatch):
    path = table("id,c,b,a\nr1,x,true,1\nr2,y,false,oops\n")
    columns, ids, found = tables.open_inputs(path, ["a", "b", "c"], kinds="fbO")
    assert ids == ["r1", "r2"] and columns[0][0] == 1 and np.isnan(columns[0][1])
    assert columns[1].tolist() == [True, False] and columns[2].tolist() == ["x", "y"]
    assert [finding.kind for finding in found] == ["odd_cells"] and ids == ["r1", "r2"]
    with pytest.raises(DataError, match="lacks 1 of 2 columns: 'bb'"):
        tables.open_inputs(path, ["a", "bb"])
    columns, _, found = tables.open_inputs(path, ["a", "bb"], missing="gap", kinds="fO")
    assert columns[1].tolist() == [None, None] and {"missing_columns", "new_columns"} <= {f.kind for f in found}
    with pytest.raises(UsageError, match=r"no file.*did you mean 'table.csv'"):
        tables.open_inputs(path.replace("table", "tabel"), ["a"])

    class Stdin:
        buffer = io.BytesIO(b'{"a": 1, "b": "x"}\n{"b": "y"}\n')

    monkeypatch.setattr(sys, "stdin", Stdin)
    columns, ids, _ = tables.open_inputs("-", ["b", "a"], kinds="Of")
    assert columns[0].tolist() == ["x", "y"] and columns[1][0] == 1 and np.isnan(columns[1][1]) and ids == ["1", "2"]


def test_rows_without_names_are_taken_in_their_order(table):
    columns, _, _ = tables.open_inputs(table("1.5,red\n2.5,blue\n"), ["x", "colour"], kinds="fO")
    assert columns[0].tolist() == [1.5, 2.5] and columns[1].tolist() == ["red", "blue"]


def test_one_row_of_data_is_no_line_of_names(table):
    columns, ids, _ = tables.open_inputs(table("3,red\n"), ["x", "colour"], kinds="fO")
    assert columns[0].tolist() == [3.0] and columns[1].tolist() == ["red"] and ids == ["1"]


# --- What people's files begin and end with ---------------------------------------------------------------------------


def test_lines_above_the_names_are_left_out_and_told(table):
    source = sources.open(table("Sales of 2021\nby region\n\n" + text()))
    assert source.train.names == NAMES[:4] and told(source, "title_lines").count == 2
    assert source.train.ids[0] == 5 and source.train.count == 20


def test_so_are_titles_that_a_spreadsheet_filled_up_with_blank_cells(table, tmp_path):
    titles = [["Sales of 2021", "", "", "", ""], ["", "", "", "", ""], ["Region", "North", "", "", ""]]
    sparse = [["", "", "40.1", "190", ""], *ROWS]  # a row of data of which most is missing, below the names
    source = sources.open(table("".join(",".join(row) + "\n" for row in [*titles, NAMES, *sparse])))
    assert source.train.names == NAMES[:4] and told(source, "title_lines").count == 3
    assert "title_lines" not in kinds(sources.open(table(text(sparse))))
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [["Sales of 2021"], [], ["Region", "North"], NAMES, *ROWS]:
        book.active.append(row)
    book.save(tmp_path / "book.xlsx")
    source = sources.open(str(tmp_path / "book.xlsx"))
    assert source.train.names == NAMES[:4] and told(source, "title_lines").count == 2 and source.train.count == 20


def test_a_separator_at_the_end_of_each_row_shifts_nothing(table):
    plain = sources.open(table(text(), "plain.csv"), columns=Columns(target=("sex",)))
    for names in (NAMES, [*NAMES, ""]):
        source = sources.open(table(text([[*row, ""] for row in ROWS], names)), columns=Columns(target=("sex",)))
        assert column(source, "bill").tolist() == column(plain, "bill").tolist() and source.train.names[:4] == NAMES[:4]
    rows = [[f"r{k}", *row] for k, row in enumerate(ROWS)]
    source = sources.open(table(text(rows)), columns=Columns(target=("sex",)))  # as R writes it
    assert (
        source.train.names == ["row", *NAMES[:4]] and column(source, "bill").tolist() == column(plain, "bill").tolist()
    )
    with pytest.raises(DataError, match="5 names in its first line and 6 cells"):
        sources.open(table(text([["same", *row] for row in ROWS])))


def test_names_that_come_again_are_no_row(table):
    source = sources.open(table(text() + text()), columns=Columns(target=("species",)))
    assert source.train.count == 40 and told(source, "names_again").examples == [22]
    assert column(source, "bill").dtype == np.float64 and kinds(source) == ["names_again"]
    assert source.train.ids[20] == 23


def test_a_word_above_numbers_is_a_name(table):
    source = sources.open(table("id,2019,2020\n" + "".join(f"{k},{k + 5},{k % 2}\n" for k in range(9))))
    assert source.train.names == ["id", "2019"] and source.findings == []
    gap = sources.open(table("NA,red,1\n" + "".join(f"{k},red,{k % 2}\n" for k in range(9))))
    assert "no_header" in kinds(gap) and gap.train.count == 10


def test_columns_between_blanks_may_have_names_and_quotes(table):
    rows = "".join(f'{k / 4:.2f}   {k % 5}\t"model {k}"  {k % 2}\n' for k in range(30))
    source = sources.open(table(rows, "auto.data"), columns=Columns(target=("column_4",)))
    assert column(source, "column_3").tolist() == [f"model {k}" for k in range(30)] and source.train.ids[0] == 1
    assert column(source, "column_1").tolist() == [k / 4 for k in range(30)]
    named = sources.open(table("a  b y\n" + "".join(f"{k}   {k}.5  {k % 2}\n" for k in range(9)), "named.txt"))
    assert named.train.names == ["a", "b"] and named.target == ("y",) and named.findings == []


def test_numbers_as_they_are_written_on_the_continent(table):
    rows = "".join(f'"Müller, {k}";{1 + k // 9}.{k:03d},25;{k},5 €;{"ab"[k % 2]}\n' for k in range(40))
    source = sources.open(table("who;sum;fee;y\n" + rows))
    assert column(source, "sum")[:3].tolist() == [1000.25, 1001.25, 1002.25] and column(source, "fee")[1] == 1.5
    assert column(source, "who")[0] == "Müller, 0"
    assert [(found.kind, found.severity, found.examples) for found in source.findings] == [
        ("units", "note", ["sum", "fee"])
    ]


def test_quotes_behind_a_backslash_are_part_of_the_text(table):
    rows = "".join(f'"he said \\"no, {k}\\"",{k % 2}\n' for k in range(9))
    source = sources.open(table("text,y\n" + rows))
    assert column(source, "text")[3] == 'he said "no, 3"' and source.findings == []


@pytest.mark.parametrize(
    "content, words",
    [
        ("<!DOCTYPE html>\n<html><body>404</body></html>\n", "a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "a pointer of Git LFS"),
        (
            "text,y\n" + "".join(f"hello, world {k},{k % 2}\n" for k in range(9)),
            "2 names in its first line and 3 cells",
        ),
    ],
)
def test_what_is_no_table_is_called_by_its_name(content, words, table):
    with pytest.raises(DataError, match=words):
        sources.open(table(content))


def test_what_was_said_of_reading_holds_for_predictions(table, runs):
    rows = "".join(f"{'да' if k % 2 else 'нет'}§{k},5§{k % 2}\n" for k in range(60))
    path = table(("слово§x§y\n" + rows).encode("cp1251"))
    asked = {"encoding": "cp1251", "separator": "§", "text": ["y"]}
    run = lamina.train(path, source_arg=asked, epochs=1, runs=runs, quiet=True, baselines=False, report=False)
    new = table("x§слово\n1,5§да\n".encode("cp1251"), "new.csv")
    inputs, ids = run.open_inputs(new)
    assert sorted(str(one[0]) for one in inputs) == ["1.5", "да"] and ids == ["2"]
    assert len(run.predict(new)) == 1
    with delimited.read_as(asked):  # which says nothing of other kinds
        assert sources.open("iris").train.count == 150
    with pytest.raises(UsageError, match="would do nothing"):
        sources.open("iris", options=asked)


def test_several_tables_to_predict_on_and_what_is_none(table, tmp_path):
    table("x,y\n1,a\n", "new-1.csv"), table("y,x\nb,2\n", "new-2.csv")
    columns, ids, _ = tables.open_inputs(str(tmp_path / "new-*.csv"), ["x"])
    assert columns[0].tolist() == [1.0, 2.0] and ids[1].endswith("new-2.csv:2")
    for path in (str(tmp_path), table(b"\x89PNG\r\n\x1a\n", "picture.csv")):
        with pytest.raises(UsageError, match="is no table"):
            tables.open_inputs(path, ["x"])
