"""The tutorial's promise: the plain loop, our loop, the few lines and the command end in the same weights, bit for bit."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lamina
import lamina.cli
from lamina import names

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
HEIGHTS = ("bare_loop", "own_loop", "few_lines")
DROPPING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))

    def forward(self, x):
        return self.layers(x)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tutorial")


def example(name: str, place: Path, capture: list[str]) -> dict:
    """Run a file of examples/ as `python examples/NAME.py` does, in another folder; its names, and what it printed."""
    import contextlib
    import io

    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(screen):
        patch.chdir(place)
        patch.syspath_prepend(EXAMPLES)
        try:
            found = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        finally:
            for neighbour in ("digits", "net"):
                sys.modules.pop(neighbour, None)
    capture.append(screen.getvalue())
    return found


@pytest.fixture(scope="module")
def heights(place) -> dict[str, tuple[dict, str]]:
    found = {}
    for name in HEIGHTS:
        screen: list[str] = []
        found[name] = (example(name, place, screen), screen[0])
    return found


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, ...]:
    return runpy.run_path(str(EXAMPLES / "digits.py"))["load"]()


@pytest.fixture(scope="module")
def table(place, digits) -> Path:
    x, y, x2, y2 = digits
    np.savez(place / "digits.npz", x=x, y=y, x_test=x2, y_test=y2)
    return place / "digits.npz"


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def command(words: str) -> None:
    """The command of a page, in this process."""
    with pytest.raises(SystemExit) as end:
        lamina.cli.main(shlex.split(words)[1:])
    assert not end.value.code


def test_all_heights_end_in_the_same_weights(heights):
    nets = [heights[name][0]["net"] for name in HEIGHTS]
    assert same(nets[0], nets[1]) and same(nets[0], nets[2])
    assert all(torch.isfinite(value).all() for value in nets[0].state_dict().values())


def test_the_loops_print_the_same_losses_and_all_the_same_score(heights, place, monkeypatch):
    """What the loops print is equal to the digit; the run says it with an interval."""
    monkeypatch.chdir(place)
    assert heights["bare_loop"][1] == heights["own_loop"][1]
    accuracy = re.search(r"test accuracy (0\.\d{4})", heights["bare_loop"][1])
    assert accuracy and float(accuracy[1]) > 0.85
    assert f"test accuracy {accuracy[1]} (95 % interval" in heights["few_lines"][1]
    history = heights["few_lines"][0]["run"].history
    losses = re.findall(r"epoch \d+: loss (\S+)", heights["own_loop"][1])
    assert losses == [f"{row['train/loss']:.4f}" for row in history if "event" not in row] and len(losses) == 10


def test_the_command_ends_in_the_same_weights(heights, table, place, monkeypatch):
    monkeypatch.chdir(place)
    net = f"{shlex.quote(str(EXAMPLES / 'net.py'))}:Net"
    command(f"lamina train digits.npz --net {net} --loss cross_entropy --epochs 10 --seed 0 --name command -q")
    run = lamina.load("runs/command", net=heights["bare_loop"][0]["Net"])
    assert same(run.net, heights["bare_loop"][0]["net"])
    assert run.headline == heights["few_lines"][0]["run"].headline


def test_the_same_holds_with_dropout(table, digits, place, monkeypatch):
    x, y, x2, y2 = digits
    monkeypatch.chdir(place)
    (place / "dropping.py").write_text(DROPPING)
    Net = names.own("dropping.py:Net")

    torch.manual_seed(0)
    bare = Net()
    optimizer = torch.optim.Adam(bare.parameters(), lr=1e-3, fused=True)
    batches = lamina.Batches(x, y, batch_size=64, seed=0)
    for _ in range(3):
        for inputs, truth in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(bare(inputs), truth).backward()
            optimizer.step()

    torch.manual_seed(0)
    own = Net()
    optimizer = torch.optim.Adam(own.parameters(), lr=1e-3, fused=True)
    for _ in lamina.learn(own, lamina.Batches(x, y, batch_size=64, seed=0), nn.CrossEntropyLoss(), optimizer, epochs=3):
        pass

    torch.manual_seed(0)
    few = lamina.train((x, y), net=Net(), loss=nn.CrossEntropyLoss(), test=(x2, y2), epochs=3, quiet=True)
    command("lamina train digits.npz --net dropping.py:Net --loss cross_entropy --epochs 3 --seed 0 --name dropping -q")
    typed = lamina.load("runs/dropping", net="dropping.py:Net")
    for other in (own, few.net, typed.net):
        assert same(bare, other)
    torch.manual_seed(1)
    assert not same(bare, Net())


def test_nothing_in_the_examples_net_knows_of_us():
    assert "import lamina" not in (EXAMPLES / "net.py").read_text()


def test_every_file_of_the_tutorial_runs(heights):
    """Those that are run are run above; the others are parts, which these import."""
    pages = {path.stem: path.read_text() for path in EXAMPLES.glob("*.py")}
    tutorial = {name: page for name, page in pages.items() if re.search("tutorial", page.partition("\n")[0])}
    assert {name for name, page in tutorial.items() if f"python examples/{name}.py" in page} == set(HEIGHTS)
    for part in tutorial.keys() - set(HEIGHTS):
        assert all(f"from {part} import" in tutorial[name] for name in HEIGHTS)


def test_the_command_in_the_docstring_of_the_net_is_one_that_works(place, monkeypatch):
    text = (EXAMPLES / "net.py").read_text()
    found = re.search(r"^    (lamina train .*)$", text, re.MULTILINE)
    assert found
    monkeypatch.chdir(EXAMPLES.parent)
    command(f"{found[1]} --epochs 1 --runs {shlex.quote(str(place / 'docs'))} -q")
    assert (place / "docs" / "digits-1" / "report.html").is_file()
