"""`lamina check` on the files that people have: kind, answers and faults on one screen, the worst first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lamina.cli import main as entry
from lamina.findings import SEVERITIES


@pytest.fixture
def check(capsys):
    def run(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            entry(["check", *map(str, words)])
        done = capsys.readouterr()
        assert "Traceback" not in done.err
        return ended.value.code or 0, done.out + done.err

    return run


def found(check, *words: object) -> dict[str, dict[str, Any]]:
    _, out = check(*words, "--json")
    return {finding["kind"]: finding for finding in json.loads(out)["findings"]}


KINDS = ["rose", "iris", "lily"]


def flowers(**columns: Any) -> str:
    """120 rows; a column is a function of (row, kind)."""
    rng = np.random.default_rng(0)
    lines = [",".join([*columns, "length", "width", "kind"])]
    for row in range(120):
        kind = KINDS[row % 3]
        cells = [str(make(row, kind)) for make in columns.values()]
        lines.append(",".join([*cells, f"{rng.normal():.3f}", f"{rng.normal():.3f}", kind]))
    return "\n".join(lines) + "\n"


@pytest.fixture
def file(tmp_path):
    def write(content: str, name: str = "flowers.csv") -> Path:
        place = tmp_path / name
        place.write_text(content, encoding="utf-8")
        return place

    return write


def test_a_sound_table(check, file):
    code, out = check(file(flowers()))
    assert code == 0 and "Nothing to complain of." in out
    assert "table" in out and "classes" in out and "the last column" in out


def test_faults_come_worst_first_on_one_screen(check, file):
    content = flowers(code=lambda row, kind: KINDS.index(kind) + 1, key=lambda row, kind: f"k{row * 7919 % 9973}",
                      same=lambda row, kind: 7, none=lambda row, kind: "")  # fmt: skip
    lines = content.splitlines()
    place = file("\n".join([*lines, lines[5], lines[9].replace("lily", "iris")]) + "\n")
    code, out = check(place)
    assert code == 0 and out.rstrip().endswith("Training would go on.") and len(out.splitlines()) < 60
    all_of_it = found(check, place)
    severities = [finding["severity"] for finding in all_of_it.values()]
    assert severities == sorted(severities, key=SEVERITIES.index)
    assert set(all_of_it) == {"gives_away", "empty_columns", "constant_columns", "duplicates"} | (
        set(all_of_it) & {"identifier_columns", "high_cardinality", "conflicts"}
    )
    assert all_of_it["gives_away"]["examples"] == ["code"] and all_of_it["gives_away"]["fix"] == "--ignore code"
    assert "gives_away" not in found(check, place, "--ignore", "code")


def test_what_makes_training_pointless_is_an_error(check, file, tmp_path):
    code, out = check(file(flowers().replace("iris", "rose").replace("lily", "rose")), "--target", "kind")
    assert code == 3 and "error" in out and "of one class, 'rose'" in out
    np.savez(tmp_path / "x.npz", x=np.zeros((120, 3)), y=np.arange(120) % 2)
    code, out = check(tmp_path / "x.npz")
    assert code == 3 and out.startswith("data") and "the same in all 120 examples" in out
    assert out.index("error") < out.index("warning") and out.endswith("Training would be refused.\n")


def test_what_cannot_be_opened_is_said(check, file):
    code, out = check(file("a,b\n"))
    assert code == 3 and "flowers.csv" in out
    assert check("no-such-file.csv")[0] == 2
    code, out = check(file(flowers()), "--target", "kid")
    assert code == 2 and "'kind'" in out


def test_target_and_task_are_options(check, file):
    place = file(flowers(size=lambda row, kind: row % 4))
    for words, task in (((), "classes"), (("--target", "width"), "numbers"), (("--target", "size"), "classes"),
                        (("--target", "size", "--task", "numbers"), "numbers")):  # fmt: skip
        code, out = check(place, *words, "--json")
        assert code == 0 and json.loads(out)["task"] == task


def test_a_test_source_is_compared_with_training(check, file):
    train = file(flowers())
    shifted = flowers().splitlines()
    rows = [line.split(",") for line in shifted[1:]]
    moved = [",".join([f"{float(length) + 3:.3f}", width, kind]) for length, width, kind in rows]
    test = file("\n".join([shifted[0], *moved, shifted[4]]) + "\n", "test.csv")
    told = found(check, train, "--test", test)
    assert told["drift"]["examples"] == ["length"]
    assert told["leak"]["count"] == 1 and "1 of 121 test" in told["leak"]["what"]


def test_texts_with_the_answer_in_them(check, file):
    rng = np.random.default_rng(0)
    words = ["rain", "wind", "snow", "sun", "cloud", "frost", "hail", "fog"]
    lines = ["sentence\tlabel"]
    lines += [f"__label__{k % 2} {' '.join(rng.choice(words, 9))}\t{k % 2}" for k in range(60)]
    told = found(check, file("\n".join(lines) + "\n", "texts.tsv"))
    assert set(told["answer_in_text"]["examples"]) == {"__label__0", "__label__1"}


def test_every_text_twice(check, file):
    rng = np.random.default_rng(0)
    words = ["rain", "wind", "snow", "sun", "cloud", "frost", "hail", "fog"]
    lines = [f"{' '.join(rng.choice(words, 9))}\t{k % 2}" for k in range(60)]
    told = found(check, file("\n".join(["sentence\tlabel", *lines, *lines]) + "\n", "texts.tsv"))
    assert told["duplicates"]["count"] == 60 and "conflicts" not in told


def test_pictures_that_cannot_be_read_and_copies(check, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for k in range(8):
            coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
            coarse.resize((40, 40), Image.Resampling.BICUBIC).save(tmp_path / kind / f"{k}.png")
    Image.open(tmp_path / "cat" / "3.png").save(tmp_path / "dog" / "copy.jpg", quality=80)
    (tmp_path / "dog" / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    told = found(check, tmp_path)
    assert "broken.jpg" in told["unreadable"]["what"]
    assert told["near_duplicates"]["count"] == 1 and told["near_duplicates"]["examples"][0][1].endswith("copy.jpg")
