"""Row 51: names of classes, columns and files are text: on the page, in pictures, in tables, on the screen."""

from __future__ import annotations

import csv
import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import hostile
import numpy as np
import pytest

import lamina
from lamina.cli import main
from lamina.errors import printable

LABELS = [
    "<script>document.title='owned'</script>", "\"><img src=x onerror=document.title='owned'>",
    "' onload='document.title=1",
    "</style><script>document.title='owned'</script>", "{{7*7}}{% raw %}",
    "\x1b]0;owned\x07\x1b[31mred\x1b[2J", "\u202egnp.exe\u2066",
    "a\x00b", "=cmd|' /C calc'!A0", "+1+cmd|' /C calc'!A0", "@SUM(1+1)*cmd", "-2+3", "\t=1+1", "\uff1d1+1", "\r\nevil,1",
    "$\\frac{$", "&lt;b&gt;", "javascript:alert(1)", "\x9b31m\x84", "wörter 日本語 👩‍💻", "x" * 300,
]  # fmt: skip


class Seen(html.parser.HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Pictures of so many classes, named by LABELS."""
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(len(LABELS)), 20)
    x = random.normal(0, 1, (len(y), 6)).astype("float32") + y[:, None]
    path = tmp_path_factory.mktemp("data") / "=evil\x1b[31m<img src=x onerror=alert(1)>.npz"
    np.savez(path, x=x, y=np.array(LABELS)[y])
    return path


@pytest.fixture(scope="module")
def run(source, tmp_path_factory) -> lamina.run.Run:
    return lamina.train(source, runs=tmp_path_factory.mktemp("runs"), epochs=2, quiet=True)


def unseen(text: str) -> list[str]:
    """Characters that a terminal obeys or that turn the direction of writing."""
    return sorted(set(re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)))


@pytest.mark.fault(51)
def test_the_page_shows_names_as_text(run, recorded):
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    seen = Seen(page)
    assert "script" not in seen.tags and not [name for name in seen.attributes if name.startswith("on")]
    assert unseen(page) == []
    for label in LABELS:
        assert printable(label).strip()[:30].split("\n")[0] in seen.text, label
    assert "{{7*7}}" in seen.text and "49" not in re.findall(r">(49)\{", page)
    recorded(names=len(LABELS), executed=0)


@pytest.mark.fault(51)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_browser_runs_nothing(run, tmp_path):
    def title(path: Path) -> str:
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        words += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
        shown = subprocess.run(["chromium", *words], capture_output=True, text=True, timeout=60, check=True).stdout
        return re.search(r"<title>(.*?)</title>", shown, re.DOTALL)[1]

    trap = tmp_path / "trap.html"
    trap.write_text(f"<title>x</title><body>{LABELS[0]}", encoding="utf-8")
    assert title(trap) == "owned"
    assert title(run.folder / "report.html").endswith("Lamina") and "owned" not in title(run.folder / "report.html")


@pytest.mark.fault(51, 36)
def test_no_cell_is_a_formula(run, recorded):
    with open(run.folder / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    cells = [cell for row in rows for cell in row]
    numbers = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?")
    risky = [cell for cell in cells if re.match(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]", cell)]
    assert [cell for cell in risky if not numbers.fullmatch(cell)] == []
    assert all(len(row) == len(rows[0]) for row in rows)
    assert {"'=cmd|' /C calc'!A0", "'-2+3", "'\uff1d1+1"} <= set(cells)
    recorded(cells=len(cells), formulas=0)


@pytest.mark.fault(51)
@pytest.mark.parametrize(
    "words",
    [
        ["check", "{source}"],
        ["train", "{source}", "--epochs", "1", "--runs", "{folder}", "--no-report"],
        ["evaluate", "{run}", "{source}"],
        ["predict", "{run}", "{source}", "--out", "{folder}/out.csv"],
        ["compare", "{run}", "{run}"],
        ["checkpoints", "{run}"],
        ["train", "{folder}/\x1b[31m\u202enothing.npz"],
        ["train", "iris", "--net", "\x1b]0;owned\x07"],
        ["train", "iris", "--\x1b[31m"],
        ["\x1b[31mverb"],
        ["import", "{folder}/evil\x1b[2J.pth"],
        ["import", "{model}"],
    ],
)
def test_a_terminal_is_told_nothing(run, source, tmp_path, capfd, words):
    model = tmp_path / "\x1b[31m.pth"
    hostile.write(model, hostile.in_zip(b"\x80\x02}" + hostile.text("a\x1b[31m") + b"c\x1b[31mos\nsy\x07stem\n)Rs."))
    given = {"source": str(source), "folder": str(tmp_path), "run": str(run.folder), "model": str(model)}
    with pytest.raises(SystemExit):
        main([word.format(**given) for word in words])
    out, err = capfd.readouterr()
    assert (out or err) and unseen(out + err) == []
    for log in tmp_path.rglob("train.log"):
        assert unseen(log.read_text()) == []


@pytest.mark.fault(51)
def test_names_of_tensors_are_text_too(tmp_path, capfd):
    import torch

    torch.save({"a\x1b[31m\u202e": torch.zeros(2), "epoch\x07": 3}, tmp_path / "net.pth")
    with pytest.raises(SystemExit) as ended:
        main(["import", str(tmp_path / "net.pth")])
    out, err = capfd.readouterr()
    assert ended.value.code == 0 and unseen(out + err) == [] and "a\ufffd[31m\ufffd" in out and "epoch\ufffd" in out


def test_what_is_seen_is_left_as_it_is():
    text = "wörter\tund\nZeilen, 日本語\u3000x, 👩\u200d💻, مرحبا, שלום, 1\u00a0000"
    assert printable(text) == text
    assert printable("\x1b[31m\u202e\x00\u2028") == "\ufffd[31m\ufffd\ufffd\ufffd"
