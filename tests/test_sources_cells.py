"""Cells that mean a date or a number and are written as words: what they come out as, and what stays a word."""

from __future__ import annotations

import datetime as dt
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sources_tables import column, kinds, table, told  # noqa: F401

from lamina import sources
from lamina.domains.table import Table
from lamina.errors import DataError
from lamina.sources import Columns, dates, delimited, numerals, tables


def opened(table, cells, *, options=None, separator=";", target="y", **columns):  # noqa: F811
    rows = "".join(f'"{cell}"{separator}{"ab"[k % 2]}\n' for k, cell in enumerate(cells))
    return sources.open(table(f"x{separator}y\n" + rows), columns=Columns(target=(target,), **columns), options=options)


# --- Dates ------------------------------------------------------------------------------------------------------------

DAYS = [dt.datetime(2019, 1, 1) + dt.timedelta(days=37 * k, hours=k % 24, minutes=7 * k % 60) for k in range(60)]


@pytest.mark.parametrize("time", dates._TIMES)
@pytest.mark.parametrize("day", dates._DAYS)
def test_dates_come_out_as_python_wrote_them(table, day, time):  # noqa: F811
    source = opened(table, [when.strftime(day + time) for when in DAYS])
    unit = "D" if not time else "m" if "%S" not in time else "s"
    assert column(source, "x").dtype.kind == "M"
    assert column(source, "x").astype(f"M8[{unit}]").tolist() == np.array(DAYS, f"M8[{unit}]").tolist()


def test_times_with_fractions_of_a_second_are_dates():
    words = ["2024-01-31T12:30:00.25", "2024-02-01T00:00:00.125"]
    source = sources.open(
        {"x": words * 20, "n": list(range(40)), "y": ["a", "b"] * 20}, columns=Columns(("y",), times="x")
    )
    assert source.train.times[:2].tolist() == [dt.datetime.fromisoformat(f"{word:0<26}") for word in words]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1)), min_size=1, max_size=30), st.sampled_from(dates._DAYS)
)
def test_whatever_style_reads_them_python_reads_the_same(days, style):
    """Two figures of a year say no century, and 3/4 no month: so what is read is compared with the style that was chosen."""
    words = list(dict.fromkeys(day.strftime(style) for day in days))
    found = dates.read(words, np.ones(len(words)))
    assert found is not None and not np.isnat(found.values).any()
    assert found.values.tolist() == [dt.datetime.strptime(word, found.style).date() for word in words]
    two = {day.day > 12 for day in days}
    assert found.style == style or found.either or "%y" in style or two == {False}


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1970, 2068), st.integers(1, 12), st.sampled_from([0, 1, 12, 28, 29, 30, 31, 32])),
    st.sampled_from(dates._DAYS), st.sampled_from(dates._TIMES),
)  # fmt: skip
def test_a_day_that_its_month_does_not_have_is_none(asked, day, time):
    """29.02.2023 is no first of March."""
    year, month, number = asked
    parts = {"%Y": f"{year}", "%y": f"{year % 100:02d}", "%m": f"{month:02d}", "%d": f"{number:02d}", "%H": "11",
             "%I": "11", "%M": "30", "%S": "29", "%p": "AM", "%b": dt.date(2000, month, 1).strftime("%b")}  # fmt: skip
    word = day + time
    for sign, written in parts.items():
        word = word.replace(sign, written)
    try:
        truth = dt.datetime.strptime(word, day + time)
    except ValueError:
        truth = None
    assert dates.parsed([word, None], day + time).astype("M8[us]").tolist() == [truth, None]


@pytest.mark.parametrize(
    "mark, first, warned",
    [("/", "month", True), (".", "day", True), ("-", "day", True)],
    ids=["stroke", "point", "hyphen"],
)
def test_day_or_month_is_asked_where_no_cell_tells(table, mark, first, warned):  # noqa: F811
    cells = [mark.join([f"{1 + k % 12:02d}", f"{1 + k // 12 % 12:02d}", "2024"]) for k in range(40)]
    source = opened(table, cells)
    a, b = (1 + np.arange(40) % 12, 1 + np.arange(40) // 12 % 12)
    month, day = (a, b) if first == "month" else (b, a)
    assert column(source, "x").tolist() == [dt.date(2024, m, d) for m, d in zip(month, day, strict=True)]
    finding = told(source, "day_or_month")
    assert f"the {first} is taken to stand first" in finding.done and finding.severity == "warning"
    said = {"day_first": "yes" if first == "month" else "no"}
    other = opened(table, cells, options=said)
    assert column(other, "x").tolist() == [dt.date(2024, m, d) for d, m in zip(month, day, strict=True)]
    assert "day_or_month" not in kinds(other)
    sure = opened(table, [*cells, f"25{mark}03{mark}2024"])  # one cell tells
    assert column(sure, "x")[-1] == np.datetime64("2024-03-25") and "day_or_month" not in kinds(sure)
    assert column(sure, "x")[0] == np.datetime64("2024-01-01") and column(sure, "x")[1] == np.datetime64("2024-01-02")


def test_cells_that_are_no_dates_among_dates_are_gaps_and_told(table):  # noqa: F811
    cells = [when.strftime("%d.%m.%Y") for when in DAYS]
    cells[7] = cells[9] = "soon"
    source = opened(table, cells)
    assert np.flatnonzero(np.isnat(column(source, "x"))).tolist() == [7, 9]
    assert "are no dates" in told(source, "odd_cells").what and told(source, "odd_cells").count == 2
    assert column(opened(table, cells[:10] + ["later", "never"] * 3), "x").dtype.kind == "O"


@pytest.mark.parametrize(
    "words",
    [
        ["1.2.3", "1.10.2", "2.0.1"], ["192.168.0.1", "10.0.0.7", "10.0.12.7"], ["030-123-4567", "030-765-4321"],
        ["3-1", "2-2", "0-4"], ["12/2024", "01/2025"], ["978-3-16-148410-0", "978-0-306-40615-7"], ["May", "June"],
        ["99.99.2024", "45.45.2024"],
    ],
    ids=["versions", "addresses", "telephones", "scores", "months", "books", "names", "no such days"],
)  # fmt: skip
def test_what_only_looks_like_dates_is_left_alone(table, words):  # noqa: F811
    source = opened(table, list(itertools.islice(itertools.cycle(words), 40)))
    assert column(source, "x").dtype.kind == "O" and column(source, "x")[0] == words[0]


def test_a_row_to_predict_on_is_read_as_the_table_was_learned_from(table):  # noqa: F811
    cells = [f"{1 + k % 28:02d}/{1 + k % 12:02d}/2024" for k in range(40)]  # day first: there is a 13/01
    domain = Table()
    domain.take(opened(table, cells))
    domain = Table(**domain.state())
    inputs, _ = domain.open_inputs(table("x\n03/04/2024\n", "new.csv"))
    assert inputs[0].tolist() == [dt.date(2024, 4, 3)]
    money = [f"{k}.{k:03d} EUR" for k in range(1, 30)] + ["7,50 EUR"]  # points between thousands
    domain = Table()
    domain.take(opened(table, money))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that there is a unit is known
        inputs, _ = Table(**domain.state()).open_inputs(table("x\n2.500 EUR\n3\n4,5\n", "new.csv"))
    assert inputs[0].tolist() == [2500, 3, 4.5]


def test_rows_from_python_are_read_as_the_table_was_learned_from(table):  # noqa: F811
    rows = "".join(f"{1 + k % 28:02d}/{1 + k % 12:02d}/2024;{k}.{k:03d},5 EUR;{'ab'[k % 2]}\n" for k in range(1, 60))
    source = sources.open(table("when;price;y\n" + rows), columns=Columns(target=("y",)))
    domain = Table()
    taken = domain.take(source)
    domain.fit(taken.train.inputs, np.arange(59))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (words,) = domain.encode({"when": ["03/04/2024", None], "price": ["2.500 EUR", "7"]})
        (plain,) = domain.encode({"when": np.array(["2024-04-03", "NaT"], "M8[D]"), "price": [2500.0, 7.0]})
    assert np.array_equal(words.numpy(), plain.numpy(), equal_nan=True)
    with pytest.warns(UserWarning, match="are not dates, as in training: '31.12.2024'"):
        domain.encode({"when": ["31.12.2024"], "price": ["1"]})


def test_a_table_to_evaluate_on_is_read_as_the_table_was_learned_from(table):  # noqa: F811
    domain = Table()
    domain.take(opened(table, [f"{1 + k % 28:02d}/{1 + k % 12:02d}/2024" for k in range(40)]))
    other = domain.read(table("x;y\n03/04/2024;a\n05/06/2024;b\n", "other.csv"), columns=Columns(target=("y",)))
    assert column(other, "x").tolist() == [dt.date(2024, 4, 3), dt.date(2024, 6, 5)] and other.findings == []
    fresh = Table().read(table("x;y\n03/04/2024;a\n05/06/2024;b\n", "other.csv"), columns=Columns(target=("y",)))
    assert column(fresh, "x")[0] == np.datetime64("2024-03-04")


def test_columns_that_told_nothing_are_not_missed(table):  # noqa: F811
    rows = "".join(f"k{k:03d};{k % 7};same;{'ab'[k % 2]}\n" for k in range(60))
    domain = Table()
    taken = domain.take(sources.open(table("name;size;note;y\n" + rows), columns=Columns(target=("y",))))
    domain.fit(taken.train.inputs, np.arange(60))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs, _ = domain.open_inputs(table("size\n3\n", "new.csv"))
    assert len(inputs) == 3 and inputs[1].tolist() == [3]
    for useless in ("other\n3\n", "name;note\nk1;same\n"):
        with pytest.raises(DataError, match="lacks 1 of 1 columns"):
            domain.open_inputs(table(useless, "new.csv"))


def test_times_are_ordered_however_they_are_written(table):  # noqa: F811
    rows = "".join(f"{k};{when.strftime('%d. %b %Y %H:%M')};{'ab'[k % 2]}\n" for k, when in enumerate(DAYS))
    source = sources.open(table("x;when;y\n" + rows), columns=Columns(target=("y",), times="when"))
    assert source.train.times.astype("M8[m]").tolist() == np.array(DAYS, "M8[m]").tolist()
    with pytest.raises(DataError, match="in no style that is known, such as 'dawn'"):
        sources.open(table("x;when;y\n1;dawn;a\n2;dusk;b\n"), columns=Columns(target=("y",), times="when"))


# --- Numbers with a unit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cells, expected",
    [
        (["12 kg", "7 kg", "1,250.5 kg"], [12, 7, 1250.5]),
        (["$1,234.50", "-$3", "$0.5"], [1234.5, -3, 0.5]),
        (["USD 5", "USD 1,000", "7"], [5, 1000, 7]),
        (["20.347,98 EUR", "7,5 EUR", "1.000 EUR"], [20347.98, 7.5, 1000]),
        (["4,1 %", "54,4 %", "100 %"], [4.1, 54.4, 100]),
        (["(1,200.00)", "35.00", "(7.25)"], [-1200, 35, -7.25]),
        (["1 234,5", "12 000,25", "7,5"], [1234.5, 12000.25, 7.5]),
        (["1'234.5 CHF", "99 CHF", "10'000 CHF"], [1234.5, 99, 10000]),
        (["−5 °C", "21 °C", "3.5°C"], [-5, 21, 3.5]),
        (["120元", "35元", "7.5元"], [120, 35, 7.5]),
        (["80 km/h", "130 km/h", "50 km/h"], [80, 130, 50]),
        (["45 m²", "80.5 m²", "61 m²"], [45, 80.5, 61]),
    ],
)
def test_numbers_with_a_unit_are_numbers(table, cells, expected):  # noqa: F811
    source = opened(table, cells * 5)
    assert column(source, "x").tolist() == expected * 5
    assert told(source, "units").examples == ["x"]
    kept = opened(table, cells * 5, options={"text": ["x"]})
    assert column(kept, "x").tolist() == cells * 5 and "units" not in kinds(kept)


@pytest.mark.parametrize(
    "cells",
    [
        ["1st", "2nd", "3rd"], ["10am", "11pm", "9am"], ["3 kg", "500 g", "2 kg"], ["$5", "3 €", "7 €"],
        ["K00017", "K00018", "K00311"], ["12a", "7b", "3"], ["A1", "A2", "A10"], ["3 rooms and a bath", "4 rooms", "2"],
        ["1,2,3", "4,5,6", "7,8,9"], ["+49 30 1234", "+49 89 99", "+1 555 0"],
    ],
)  # fmt: skip
def test_words_with_figures_in_them_stay_words(table, cells):  # noqa: F811
    assert column(opened(table, cells * 5), "x").tolist() == cells * 5


def test_few_cells_without_a_number_among_numbers_with_a_unit_are_gaps_and_told(table):  # noqa: F811
    source = opened(table, [f"{k} kg" for k in range(36)] + ["light", "heavy"])
    assert np.isnan(column(source, "x")[-2:]).all() and column(source, "x")[:36].tolist() == list(range(36))
    assert told(source, "odd_cells").count == 2


def test_answers_with_a_unit_are_numbers_and_kinds_of_things_are_classes(table):  # noqa: F811
    prices = opened(table, [f"{k * 1000:,} $" for k in range(1, 61)], target="x")
    assert prices.train.truth.tolist() == [k * 1000 for k in range(1, 61)]
    nets = opened(table, ["4G", "5G", "3G"] * 12, target="x")
    assert nets.train.truth.tolist() == ["4G", "5G", "3G"] * 12


@given(st.decimals(-(10**9), 10**9, places=2), st.sampled_from(["", "kg", "%", "€", "°C", "m²", "km/h", "元"]),
       st.sampled_from([",", " ", "'", "\u202f", ""]), st.booleans(), st.booleans())  # fmt: skip
def test_what_is_written_with_groups_and_a_unit_is_read_again(number, unit, between, comma, apart):
    word = f"{number:,.2f}".replace(",", between)
    if comma:
        word = word.translate(str.maketrans(",.", ".,"))
    word += f"{' ' if apart else ''}{unit}"
    assert numerals.dressed(word.strip(), "," if comma else ".") == (float(number), unit)
    if not unit and not between:
        assert numerals.plain(word.strip(), "," if comma else ".") == float(number)


# --- Words ------------------------------------------------------------------------------------------------------------


def test_classes_that_differ_in_capitals_or_blanks_only_are_told(table):  # noqa: F811
    source = opened(table, ["yes", "Yes", "no", " yes ", "N o", "maybe"] * 6, target="x")
    finding = told(source, "spellings")
    assert finding.severity == "warning" and finding.count == 2 and "'yes', 'Yes'; 'no', 'N o'" in finding.what
    assert sorted(set(source.train.truth)) == ["N o", "Yes", "maybe", "no", "yes"]  # told, and left as they are
    merged = opened(table, ["yes", "Yes", "no", " yes ", "N o", "maybe"] * 6, target="x", options={"lower": ["x"]})
    assert sorted(set(merged.train.truth)) == ["maybe", "n o", "no", "yes"] and "--source-arg lower=x" in finding.fix
    beside = told(opened(table, ["Rome", "rome", "Oslo"] * 12), "spellings")
    assert beside.severity == "note" and beside.examples == ["Rome", "rome"]


@pytest.mark.parametrize("cells", [["a", "A", "b", "B"], ["yes", " yes ", "no"], ["red", "read", "reed"]])
def test_letters_blanks_around_and_other_words_are_not_told(table, cells):  # noqa: F811
    assert "spellings" not in kinds(opened(table, cells * 10, target="x"))


def test_a_table_of_a_run_before_there_were_styles_is_opened():
    state = Table().state()
    del state["styles"]
    assert Table(**state).styles == {}


def test_open_inputs_reads_a_column_as_it_is_told_to(table):  # noqa: F811
    path = table("when\n03/04/2024\n", "one.csv")
    for style, month in (("%d/%m/%Y", 4), ("%m/%d/%Y", 3)):
        with delimited.written_as({"when": style}):
            (found,), _, _ = tables.open_inputs(path, ["when"], kinds="M")
        assert found.astype("M8[M]").astype(int) % 12 + 1 == month
