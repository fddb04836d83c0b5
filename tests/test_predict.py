"""`lamina predict` on what people have: tables in any order and from standard input, folders with broken pictures, patterns,
texts without a word. What cannot be used is named, and the rest is answered."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import lamina
from lamina.cli import main as entry


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out)))


class _Standard(NamedTuple):
    buffer: io.BytesIO


@pytest.fixture
def predict(capsys, monkeypatch):
    def run(*words: object, stdin: str | bytes | None = None) -> Done:
        content = stdin.encode() if isinstance(stdin, str) else stdin or b""
        monkeypatch.setattr(sys, "stdin", _Standard(io.BytesIO(content)))
        with pytest.raises(SystemExit) as ended:
            entry(["predict", *map(str, words)])
        return Done(ended.value.code or 0, *capsys.readouterr())

    return run


def flowers(count: int = 160, seed: int = 0) -> list[dict[str, object]]:
    """Two kinds, told by length and colour."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        kind = k % 2
        rows.append({"length": round(float(rng.normal(3 + 4 * kind, 0.7)), 2), "width": round(float(rng.normal(2, 0.3)), 2),
                     "colour": ["red", "blue"][kind] if rng.random() < 0.9 else "white",
                     "kind": ["rose", "iris"][kind]})  # fmt: skip
    return rows


def written(place: Path, rows: list[dict[str, object]], names: list[str]) -> Path:
    with open(place, "w", newline="") as file:
        out = csv.DictWriter(file, names, extrasaction="ignore")
        out.writeheader()
        out.writerows(rows)
    return place


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("table")
    source = written(place / "flowers.csv", flowers(), ["length", "width", "colour", "kind"])
    return lamina.train(source, target=["kind"], epochs=15, runs=place, name="run", quiet=True, baselines=False,
                        report=False).folder  # fmt: skip


NEW = flowers(40, seed=1)


def test_columns_are_found_by_name(table, predict, tmp_path):
    same = predict(table, written(tmp_path / "a.csv", NEW, ["length", "width", "colour"]))
    other = predict(table, written(tmp_path / "b.csv", NEW, ["colour", "kind", "length", "width"]))
    assert same.code == other.code == 0 and same.out == other.out
    assert same.err == other.err == ""  # of the column of the answers it is known that it is no input
    wider = [{**row, "new": 1} for row in NEW]
    more = predict(table, written(tmp_path / "c.csv", wider, ["new", "length", "width", "colour"]))
    assert more.out == same.out and "'new'" in more.err and "warning" in more.err
    assert list(same.rows[0]) == ["id", "prediction", "confidence", "unlike"]
    right = [row["prediction"] == flower["kind"] for row, flower in zip(same.rows, NEW, strict=True)]
    assert np.mean(right) > 0.95
    assert {row["unlike"] for row in same.rows} <= {"true", "false"}
    assert [row["unlike"] for row in same.rows].count("true") <= 4


def test_a_missing_column_is_a_gap_and_said(table, predict, tmp_path):
    done = predict(table, written(tmp_path / "a.csv", NEW, ["colour", "length"]))
    assert done.code == 0 and "'width'" in done.err and len(done.rows) == 40
    nothing = written(tmp_path / "b.csv", [{"height": 1, "kind": "rose"}], ["height", "kind"])
    assert predict(table, nothing).code == 3


def test_unseen_categories_and_gaps_are_answered(table, predict):
    done = predict(table, "-", stdin="length,width,colour\n3,2,violet\n,,\n7,2,blue\n")
    assert done.code == 0 and [row["prediction"] for row in done.rows[::2]] == ["rose", "iris"]
    assert [row["unlike"] for row in done.rows] == ["true", "true", "false"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "semicolons"])
def test_tables_from_standard_input(table, predict, form):
    rows = [{key: flower[key] for key in ("length", "width", "colour")} for flower in NEW[:4]]
    content = {
        "csv": "length,width,colour\n" + "".join(f"{r['length']},{r['width']},{r['colour']}\n" for r in rows),
        "semicolons": "length;width;colour\n" + "".join(f"{r['length']};{r['width']};{r['colour']}\n" for r in rows),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "json": json.dumps(rows),
    }[form]
    done = predict(table, "-", "--jsonl", stdin=content)
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0 and [answer["prediction"] for answer in answers] == [flower["kind"] for flower in NEW[:4]]
    assert all(set(answer) == {"id", "prediction", "confidence", "unlike", "probabilities"} for answer in answers)
    assert all(isinstance(answer["unlike"], bool) for answer in answers)


def test_what_is_wrong_with_standard_input_is_said_of_it(table, predict):
    empty = predict(table, "-", stdin=" \n")
    assert empty.code == 3 and "Standard input is empty" in empty.err
    odd = predict(table, "-", stdin="a,b\n1,2\n")
    assert odd.code == 3 and "standard input" in odd.err and "/input" not in odd.err


def test_several_tables_and_patterns(table, predict, tmp_path):
    for k, name in enumerate("ab"):
        written(tmp_path / f"{name}.csv", NEW[k * 20 : k * 20 + 20], ["length", "width", "colour"])
    one = predict(table, tmp_path / "a.csv", tmp_path / "b.csv")
    other = predict(table, tmp_path / "*.csv")
    assert one.code == 0 and one.out == other.out and len(one.rows) == 40
    assert one.rows[0]["id"] == f"{tmp_path / 'a.csv'}:2" and one.rows[39]["id"] == f"{tmp_path / 'b.csv'}:21"
    (tmp_path / "c.csv").write_text("")
    done = predict(table, tmp_path / "*.csv")
    assert done.code == 0 and "c.csv" in done.err and len(done.rows) == 41
    assert done.rows[40]["error"] and done.rows[40]["prediction"] == "" and done.rows[0]["error"] == ""
    assert predict(table, tmp_path / "*.tsv").code == 2


def test_tables_are_safe_to_open_in_a_spreadsheet(table, predict, tmp_path):
    rows = [{"id": "=1+1", **NEW[0]}, {"id": "@x", **NEW[1]}]
    done = predict(table, written(tmp_path / "a.csv", rows, ["id", "length", "width", "colour"]))
    assert len(done.rows) == 2 and not any(cell[:1] in "=@" for row in done.rows for cell in row.values() if cell)


# --- Pictures ---------------------------------------------------------------------------------------------------------


def colours(place: Path, count: int, seed: int = 0) -> Path:
    """A folder a class: pictures that are mostly red, or mostly blue."""
    rng = np.random.default_rng(seed)
    for k in range(count):
        kind = k % 2
        picture = rng.integers(0, 90, (24, 24, 3), dtype=np.uint8)
        picture[..., 2 * kind] += 140
        folder = place / ["red", "blue"][kind]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{k:03d}.png")
    return place


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    return lamina.train(colours(place / "train", 120), epochs=4, runs=place, name="run", quiet=True, baselines=False,
                        report=False).folder  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four pictures, one of which is cut off, and one that is a text."""
    place = tmp_path / "new"
    place.mkdir()
    for k, file in enumerate(sorted(colours(tmp_path / "made", 4, seed=1).rglob("*.png"))):
        file.rename(place / f"{k}.png")
    content = (place / "1.png").read_bytes()
    (place / "1.png").write_bytes(content[: len(content) // 2])
    (place / "4.png").write_text("no picture")
    return place


def test_a_broken_picture_has_a_line_with_an_error_and_the_others_are_answered(pictures, predict, folder):
    done = predict(pictures, folder)
    assert done.code == 0 and "1.png" in done.err and "4.png" in done.err
    assert [Path(row["id"]).name for row in done.rows] == [f"{k}.png" for k in range(5)]
    assert [bool(row["error"]) for row in done.rows] == [False, True, False, False, True]
    assert [row["prediction"] for row in done.rows] == ["blue", "", "red", "red", ""]
    lines = [json.loads(line) for line in predict(pictures, folder, "--jsonl").out.splitlines()]
    assert set(lines[1]) == {"id", "error"} and set(lines[0]) >= {"id", "prediction", "unlike"}


def test_single_files_and_standard_input(pictures, predict, folder):
    one = predict(pictures, folder / "0.png")
    assert one.code == 0 and [row["prediction"] for row in one.rows] == ["blue"]
    assert predict(pictures, "-", stdin=(folder / "0.png").read_bytes()).rows[0]["prediction"] == "blue"
    several = predict(pictures, *(folder / f"{k}.png" for k in range(3)))
    assert several.code == 0 and [bool(row["error"]) for row in several.rows] == [False, True, False]
    assert [row["id"] for row in several.rows] == [str(folder / f"{k}.png") for k in range(3)]
    assert predict(pictures, folder / "1.png").code == 3
    none = predict(pictures, folder / "1.png", folder / "4.png")
    assert none.code == 3 and "None of the 2 inputs" in none.err


def test_a_picture_of_another_kind_is_unlike(pictures, predict, tmp_path):
    stripes = np.zeros((24, 24, 3), np.uint8)
    stripes[::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert predict(pictures, tmp_path / "stripes.png").rows[0]["unlike"] == "true"


# --- Texts ------------------------------------------------------------------------------------------------------------

GOOD = ["good", "fine", "lovely", "bright", "warm", "happy"]
BAD = ["bad", "poor", "awful", "dull", "cold", "sad"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    place, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    lines = ["sentence\tmood"]
    for k in range(160):
        words = [*rng.choice([BAD, GOOD][k % 2], 3), *rng.choice(["the", "film", "was", "and", "day", "it"], 4)]
        lines.append(f"{' '.join(rng.permutation(words))}\t{['low', 'high'][k % 2]}")
    (place / "moods.tsv").write_text("\n".join(lines) + "\n")
    return lamina.train(place / "moods.tsv", epochs=4, runs=place, name="run", quiet=True, baselines=False,
                        report=False).folder  # fmt: skip


def test_texts_a_line_and_in_tables(texts, predict, tmp_path):
    words = ["the film was good and lovely", "it was a poor and awful day"]
    (tmp_path / "lines.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "table.csv").write_text("number,sentence\n" + "".join(f"{k},{text}\n" for k, text in enumerate(words)))
    for given, stdin in ((tmp_path / "lines.txt", None), (tmp_path / "table.csv", None), ("-", "\n".join(words)),
                         ("-", "".join(json.dumps({"sentence": text}) + "\n" for text in words))):  # fmt: skip
        done = predict(texts, given, stdin=stdin)
        assert done.code == 0 and [row["prediction"] for row in done.rows] == ["high", "low"], (given, done)


def test_a_text_without_a_word_is_answered_and_its_confidence_is_low(texts, predict, tmp_path):
    (tmp_path / "table.csv").write_text('sentence\n""\n"   "\ngood fine\n')
    done = predict(texts, tmp_path / "table.csv")
    assert done.code == 0 and len(done.rows) == 3
    assert all(0.4 < float(row["confidence"]) < 0.9 for row in done.rows[:2]) and done.rows[2]["prediction"] == "high"


def test_words_never_seen_are_unlike(texts, predict):
    words = ["good film was happy and lovely the", "Buchhaltung und Steuererklärung leicht gemacht", "这部电影很好看"]
    done = predict(texts, "-", stdin="\n".join(words) + "\n")
    assert [row["unlike"] for row in done.rows] == ["false", "true", "true"]
