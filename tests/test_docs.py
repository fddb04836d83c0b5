"""The pages do what they say.

Their blocks run as they stand, from top to bottom, in a folder that has nothing but examples/. Python blocks of a page
share their names, as in one session; a comment behind a `print(...)` is what it prints. A block whose fence says
title="FILE" is that file. Blocks marked `text` are only read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import test_house

from lamina import recipe
from lamina.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ENGLISH, *DOCS, ROOT / "examples" / "README.md"]
LANGUAGES = {"python", "sh", "text"}


class Block(NamedTuple):
    """A fenced block: what its fence says, its text, and the line of the page it begins on."""

    language: str
    title: str  # of the file it is, or ""
    code: str
    line: int


def blocks(page: str) -> Iterator[Block]:
    for found in re.finditer(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', page, re.MULTILINE | re.DOTALL):
        yield Block(found[1], found[2] or "", found[3], page.count("\n", 0, found.start()) + 2)


def prose(page: str) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)


def headings(page: str) -> list[int]:
    """The level of each heading."""
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(page), re.MULTILINE)]


def promised(code: str) -> list[str]:
    """What a block says it prints: `print(x)  # this`."""
    return re.findall(r"^ *print\(.*\)  # (.+)$", code, re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- Blocks run -------------------------------------------------------------------------------------------------------


def run_shell(code: str) -> None:
    """A block of commands, of which each must succeed, with the `lamina` of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{code}\ngave {done.returncode}\n{done.stdout}\n{done.stderr}"


def run_python(block: Block, module: ModuleType, page: str, capsys: Any) -> None:
    capsys.readouterr()
    lines = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's line
    exec(compile(lines, page, "exec"), module.__dict__)
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in promised(block.code) if line not in printed] == [], "\n".join(printed)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__", "runs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    session = ModuleType("session")  # a module, so that classes and dataclasses find where they were made
    monkeypatch.setitem(sys.modules, "session", session)
    before = set(sys.modules)
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.title:
            (tmp_path / block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "sh":
            run_shell(block.code)
        elif block.language == "python":
            run_python(block, session, page.name, capsys)
    for loaded in set(sys.modules) - before:  # a file of this page is not that of the next
        if str(getattr(sys.modules[loaded], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[loaded]


@pytest.mark.parametrize("page", [*PAGES, CHINESE], ids=name)
def test_every_block_says_what_it_is(page):
    assert {block.language for block in blocks(page.read_text(encoding="utf-8"))} <= LANGUAGES


def test_a_block_that_fails_is_seen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="gave 3"):
        run_shell("true\nexit 3\n")
    page = "# A page\n\n```python\nprint(1 + 1)  # 3\n```\n"
    (block,) = blocks(page)
    assert block == Block("python", "", "print(1 + 1)  # 3\n", 4)
    with pytest.raises(AssertionError, match="2"):
        run_python(block, ModuleType("session"), "page", capsys)
    run_python(block._replace(code="print(1 + 1)  # 2\n"), ModuleType("session"), "page", capsys)
    (file,) = blocks('```python title="net.py"\nx = 1\n```\n')
    assert (file.title, file.code) == ("net.py", "x = 1\n")


# --- Two languages ----------------------------------------------------------------------------------------------------


def test_the_two_readmes_are_in_step():
    measured = re.compile(r"<!-- figures:start -->.*<!-- figures:end -->", re.DOTALL)  # filled in by a program
    english, chinese = (measured.sub("", page.read_text(encoding="utf-8")) for page in (ENGLISH, CHINESE))
    assert [block[:3] for block in blocks(chinese)] == [block[:3] for block in blocks(english)]
    assert headings(chinese) == headings(english)
    assert len(table_rows(chinese)) == len(table_rows(english))
    assert sorted(links(chinese)) == sorted(
        "README.md" if link == "README.zh-CN.md" else link for link in links(english)
    )


# --- Links ------------------------------------------------------------------------------------------------------------


def links(page: str) -> list[str]:
    """Where a page points to inside the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: str) -> set[str]:
    """The names GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: str, folder: Path) -> list[str]:
    """Links to files that are not there, and to headings that their page has not."""
    bad = []
    for link in links(page):
        file, _, anchor = link.partition("#")
        place = folder / file
        text = place.read_text(encoding="utf-8") if file and place.suffix == ".md" and place.is_file() else page
        if (file and not place.exists()) or (anchor and anchor not in anchors(text)):
            bad.append(link)
    return bad


@pytest.mark.parametrize("page", [*PAGES, CHINESE], ids=name)
def test_links_lead_somewhere(page):
    assert broken(page.read_text(encoding="utf-8"), page.parent) == []


def test_a_broken_link_is_seen():
    page = "# A b\n[a](README.md) [b](#a-b) [c](https://example.org/x) [d](nowhere.md) [e](README.md#nothing)"
    assert broken(page, ROOT) == ["nowhere.md", "README.md#nothing"]


# --- Every option, every verb -----------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A setting as the tables write it: 0.001, no, or a dash for what is not there."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value in (None, {}) else str(value)


def table_rows(page: str) -> list[list[str]]:
    """The cells of every line of every table."""
    lines = re.findall(r"^\| *(.+?) *\|$", prose(page), re.MULTILINE)
    return [re.split(r" *(?<!\\)\| *", line) for line in lines]


def options() -> dict[str, list[list[str]]]:
    """Field -> its lines in the tables of options, whose first line begins with `option`."""
    found: dict[str, list[list[str]]] = {}
    for page in DOCS:
        of_options = False
        for cells in table_rows(page.read_text(encoding="utf-8")):
            if cells[0] == "option":
                of_options = True
            elif not cells[0].startswith(("`", "---")):  # the head of another table
                of_options = False
            elif of_options and cells[0].startswith("`"):
                found.setdefault(cells[0].strip("`"), []).append(cells)
    return found


def test_every_field_of_the_recipe_is_in_one_table():
    assert {field: len(lines) for field, lines in options().items()} == dict.fromkeys(recipe.FIELDS, 1)


def test_the_defaults_of_an_own_net_are_those_in_the_tables():
    values, _ = recipe.resolve(recipe.make(), own_net=True, net="Net", examples=1000, pictures=None, task="classes")
    stated = {field: lines[0][2].strip("`") for field, lines in options().items()}
    assert stated == {field: shown(getattr(values, field)) for field in recipe.FIELDS}


def test_every_verb_is_documented():
    together = "\n".join(page.read_text(encoding="utf-8") for page in DOCS)
    assert [verb for verb in VERBS if f"lamina {verb} " not in together] == []
    for page in (ENGLISH, CHINESE):
        rows = {cells[0] for cells in table_rows(page.read_text(encoding="utf-8"))}
        assert [verb for verb in VERBS if not any(row.startswith(f"`lamina {verb} ") for row in rows)] == []


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert {page.name for page in DOCS} - {"README.md"} <= set(links(index))


# --- The rooms --------------------------------------------------------------------------------------------------------


def test_the_architecture_page_names_every_room_in_its_order():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    places = (ROOT / "lamina").iterdir()
    rooms = {path.stem for path in places if path.suffix == ".py" or (path / "__init__.py").is_file()}
    order = [rooms & set(line.split()) for line in test_house.ORDER]
    (written,) = [block.code for block in blocks(page) if block.code.startswith("errors ")]
    assert [set(line.split()) for line in written.splitlines()] == [line for line in order if line]
    described = set(re.findall(r"`(\w+)(?:\.py|/)`", " ".join(cells[0] for cells in table_rows(page))))
    assert rooms - described - {"__init__", "__main__"} == set()
