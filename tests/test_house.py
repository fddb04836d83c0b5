"""The rules of the house. Each is a function from a text to its faults, tried on every file and on a planted fault."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import lamina

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "lamina").rglob("*.py"))


def test_there_are_sources():
    assert len(SOURCES) > 10


# --- Imports flow one way ---------------------------------------------------------------------------------------------

# A room imports its own line and the lines above it.
ORDER = [
    "errors names recipe documents files archives imports findings keyed distinct joined mapped signals processes writer "
    "quarantine foreign",
    "sources splits checks batches inference chains mixing augment nets weights losses optimizers schedules penalties devices "
    "activations initialisers machine masks products quicker layouts pieces pseudo features familiar views pictures grams",
    "targets pretrained",
    "domains evaluate",
    "data state history",
    "run fingerprints",
    "purity tape tracing divergence rewrites graphs flat compiling lanes trial ondevice engine watchers recovery determinism "
    "baselines explain report bundle export serve",
    "finder unlabelled",
    "job asking",
    "inspection results",
    "training",
    "tune bench",
    "cli",
    "__init__ __main__",
]
LINE = {room: number for number, line in enumerate(ORDER) for room in line.split()}
AFTER_TRAINING = {"evaluate", "explain", "report", "bundle", "export", "serve"}  # they take a run, and never train one


def imports(source: str, module: str, package: str) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything of Lamina's that a source text imports: at the top, in functions, by string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "lamina" and name != module)


def room(dotted: str) -> str:
    """The room of a dotted name. What is no room is a public name, and stands in lamina/__init__.py."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LINE else "__init__"


def import_faults(source: str, module: str, *, is_package: bool = False) -> list[str]:
    own = "__init__" if module == "lamina" else module.split(".")[1]
    package = module if is_package else module.rpartition(".")[0]
    faults = []
    for name, line in imports(source, module, package):
        other = room(name)
        if LINE[other] > LINE[own] and name != "lamina.__version__":
            faults.append(f"{module}:{line} imports {name}; {own} stands before {other}")
        elif own in AFTER_TRAINING and other == "engine":
            faults.append(f"{module}:{line} imports {name}; what comes after training imports run")
    return faults


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_room_has_its_place_in_the_order():
    rooms = {path.relative_to(ROOT / "lamina").parts[0].removesuffix(".py") for path in SOURCES}
    assert rooms - set(LINE) == set(), "a new room needs its place in ORDER"


def test_imports_flow_one_way():
    faults = []
    for path in SOURCES:
        faults += import_faults(path.read_text(), module_name(path), is_package=path.name == "__init__.py")
    assert faults == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lamina.errors", "import lamina.batches"),
        ("lamina.losses", "from lamina.engine import learn"),
        ("lamina.losses", "from lamina import engine"),
        ("lamina.losses", "from lamina import learn"),
        ("lamina.losses", "import lamina"),
        ("lamina.losses", "def late():\n    from lamina.run import Run"),
        ("lamina.losses", "import importlib\nimportlib.import_module('lamina.run')"),
        ("lamina.losses", "from . import run"),
        ("lamina.nets.mlp", "from ..targets import classes"),
        ("lamina.targets.base", "from ..domains.base import Domain"),
        ("lamina.evaluate", "from lamina.engine import learn"),
        ("lamina.explain.gradients", "from ..engine import learn"),
        ("lamina.run", "import lamina.cli.train"),
    ],
)
def test_an_import_against_the_stream_is_seen(module, source):
    assert len(import_faults(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lamina.losses", "import torch\nfrom lamina.errors import near\nfrom lamina import files, __version__"),
        ("lamina.nets.mlp", "from ..activations import named\nfrom . import cnn"),
        ("lamina.cli.train", "def run():\n    from lamina.engine import train\n    import lamina.report"),
        ("lamina.engine", "from lamina.evaluate import evaluate\nfrom lamina.run import Run"),
    ],
)
def test_an_import_with_the_stream_is_not(module, source):
    assert import_faults(source, module) == []


def test_a_package_is_its_own_parent():
    assert import_faults("from .base import Source", "lamina.sources", is_package=True) == []
    assert len(import_faults("from ..run import Run", "lamina.sources", is_package=True)) == 1


# --- Cold start -------------------------------------------------------------------------------------------------------

HEAVY = {"torch", "sklearn", "scipy", "pandas", "matplotlib", "PIL", "jinja2"}


def fresh(statements: str) -> tuple[str, set[str]]:
    """What some statements print in a fresh interpreter, and the top-level packages that are loaded after them."""
    code = f"import json, sys\n{statements}\nprint('\\n' + json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    printed, _, modules = done.stdout.rstrip().rpartition("\n")
    return printed, {name.partition(".")[0] for name in json.loads(modules)}


def command(*words: str) -> str:
    """Statements that run `lamina WORDS`."""
    return f"""
sys.argv = {["lamina", *words]}
from lamina.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param("import lamina; dir(lamina)", id="import lamina"),
        pytest.param("import lamina.errors, lamina.names, lamina.recipe, lamina.files", id="rooms without torch"),
        pytest.param(command("--help"), id="lamina --help"),
        pytest.param(command("train", "--help"), id="lamina train --help"),
    ],
)
def test_cold_start_loads_nothing_heavy(statements):
    assert fresh(statements)[1] & HEAVY == set()


def test_the_help_of_every_verb_loads_nothing_heavy():
    page, _ = fresh(command("--help"))
    files = [path.stem.replace("_", "-") for path in (ROOT / "lamina" / "cli").glob("[a-z]*.py")]
    verbs = [name for name in files if re.search(rf"^\W*{name}\s", page, re.MULTILINE)]
    assert "train" in verbs
    assert fresh("".join(command(verb, "--help") for verb in verbs))[1] & HEAVY == set()


def test_a_loaded_package_is_seen():
    assert fresh("print('a')\ndef late():\n    import colorsys\nlate()")[0] == "a\n"
    assert "colorsys" in fresh("def late():\n    import colorsys\nlate()")[1]
    assert "colorsys" not in fresh("")[1]


# --- Public names -----------------------------------------------------------------------------------------------------


def shadowed(names: Iterable[str], modules: Iterable[str]) -> set[str]:
    """Public names that are also modules: after the first access `lamina.NAME` would be the module."""
    return set(names) & set(modules)


def typed_names(source: str) -> set[str]:
    """The names that a type checker sees: imported under `if TYPE_CHECKING:`."""
    blocks = [n for n in ast.parse(source).body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    lines = [line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom)]
    return {alias.asname or alias.name for line in lines for alias in line.names}


def test_public_names_are_listed():
    assert list(lamina.__all__) == sorted(set(lamina.__all__))
    assert set(lamina.__all__) <= set(dir(lamina))
    assert typed_names((ROOT / "lamina" / "__init__.py").read_text()) == set(lamina.__all__)
    with pytest.raises(AttributeError, match="'no_such_name'"):
        lamina.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", lamina.__all__)
def test_a_public_name_resolves_and_again(name):
    first = getattr(lamina, name)
    assert not isinstance(first, ModuleType)
    assert getattr(lamina, name) is first


def test_a_public_name_is_no_module():
    assert shadowed(lamina.__all__, LINE) == set()


def test_shadowed_and_untyped_names_are_seen():
    assert shadowed(["train", "evaluate"], ["engine", "evaluate"]) == {"evaluate"}
    source = "from a import b\nif TYPE_CHECKING:\n    from c import d as d\n    from e import f as g"
    assert typed_names(source) == {"d", "g"}


# --- No pickle --------------------------------------------------------------------------------------------------------

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SAFE = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def pickle_faults(source: str) -> list[str]:
    """Where a text imports a pickle, or loads a file in a way that would run one."""
    faults, full = [], {}
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        if isinstance(node, ast.Import):
            full.update({alias.asname or alias.name: alias.name for alias in node.names})
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            full.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
            names = [node.module]
        else:
            continue
        faults += [f"{node.lineno}: {name}" for name in names if PICKLES & set(name.split("."))]
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr in ("read_pickle", "to_pickle"):
            faults.append(f"{node.lineno}: {node.attr}")
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            called = full.get(first, first) + dot + rest
            if called in SAFE:
                word, wanted = SAFE[called]
                given = [k.value.value for k in node.keywords if k.arg == word and isinstance(k.value, ast.Constant)]
                if given != [wanted]:
                    faults.append(f"{node.lineno}: {called} without {word}={wanted}")
    return faults


def test_no_pickle():
    assert {module_name(path): found for path in SOURCES if (found := pickle_faults(path.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def late():\n    from joblib import dump",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch\ntorch.load(f, weights_only=trust)",
        "import torch as t\nt.load(f)",
        "from torch import load as read\nread(f)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import pandas as pd\npd.read_pickle(f)",
    ],
)
def test_a_pickle_is_seen(source):
    assert len(pickle_faults(source)) == 1


def test_safe_loading_is_no_pickle():
    safe = "torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\njson.load(f)\nlamina.load(f)"
    assert pickle_faults(f"import json, torch, lamina\nimport numpy as np\n{safe}") == []


# --- Files and their words --------------------------------------------------------------------------------------------

PAGES = sorted(
    path
    for place in (".ci", "lamina", "tests", "benchmarks", "examples", "docs")
    for path in (ROOT / place).rglob("*")
    if path.suffix in (".py", ".md", ".sh", ".toml", ".txt", ".html", ".css", ".js", ".json", "") and path.is_file()
) + sorted(path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".txt") or path.name == "Makefile")


def vague_names(paths: Iterable[Path]) -> list[Path]:
    """Files and folders whose name says nothing: what is in them belongs where its noun lives."""
    vague = {"utils", "util", "common", "helpers", "helper"}
    return [path for path in paths if vague & {part.partition(".")[0].strip("_") for part in path.parts}]


def machine_paths(text: str) -> list[str]:
    """Absolute paths that exist on somebody's machine only."""
    return re.findall(r"(?<![\w.}])/(?:work|root|home|opt|tmp|Users)/\w+|\b[A-Z]:\\\w+|file://[\w/]+", text)


def ending_faults(text: str) -> list[str]:
    """A text ends with one newline, and its lines with none but that."""
    faults = [f"line {n} ends with space" for n, line in enumerate(text.split("\n"), 1) if line != line.rstrip()]
    return faults + (["the last line has no newline, or many"] if text and not re.search(r"[^\n]\n\Z", text) else [])


def test_no_vague_file_names():
    assert vague_names(path.relative_to(ROOT) for path in PAGES) == []


def test_every_module_says_what_it_is_for():
    assert [module_name(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_no_machine_paths():
    assert {str(path.relative_to(ROOT)): found for path in PAGES if (found := machine_paths(path.read_text()))} == {}


def test_sources_end_with_one_newline():
    assert {module_name(path): found for path in SOURCES if (found := ending_faults(path.read_text()))} == {}


def test_types_are_announced():
    assert (ROOT / "lamina" / "py.typed").is_file()


def test_constraints_are_exact():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    # A name and a version, so no address and no folder.
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert len(lines) == len({line.partition("==")[0].lower() for line in lines}) > 20


def test_bad_files_are_seen():
    assert vague_names([Path("nets/common.py"), Path("utils/a.py"), Path("_helpers.py"), Path("nets/mlp.py")]) == [
        Path("nets/common.py"),
        Path("utils/a.py"),
        Path("_helpers.py"),
    ]
    slash, back = "/", "\\"  # so that this file passes its own test
    for bad in (f"{slash}home/ada/x", f"see {slash}tmp/y.csv", f"file:{slash * 3}srv", f"C:{back}data"):
        assert len(machine_paths(bad)) == 1, bad
    for good in ("runs/work/x", "https://example.org/home/page", "{folder}/home/x", "./tmp/x", "10 m/s", "/dev/null"):
        assert machine_paths(good) == [], good
    assert ending_faults("a\nb\n") == [] == ending_faults("")
    assert len(ending_faults("a")) == len(ending_faults("a\n\n")) == len(ending_faults("a \n")) == 1
