"""Names -> things: "mlp", "classes", "my.py:Net".

In: a room ("nets", "targets", "domains") and a name. Out: the module that stands in that folder under the name, or the
class or function out of the user's own file. The folder is the registry; nothing is registered by hand. A user's file is
code: it is run only here, and only because the user wrote its name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lamina.errors import UsageError, near


def known(room: str) -> list[str]:
    """The names in a room, without importing what they name."""
    package = importlib.util.find_spec(f"lamina.{room}")
    places = package.submodule_search_locations if package else None
    return sorted(m.name for m in pkgutil.iter_modules(places or []) if m.name != "base" and not m.name.startswith("_"))


def module(room: str, name: str) -> ModuleType:
    """The module of a name in a room."""
    plain = name.strip().lower().replace("-", "_")
    if plain not in known(room):
        raise UsageError(
            f"There is no {room.rstrip('s')} {name!r}: {near(plain, known(room))}",
            expected=f"one of {', '.join(known(room))}, or FILE.py:NAME for your own",
        )
    return importlib.import_module(f"lamina.{room}.{plain}")


def is_own(name: str) -> bool:
    """Whether a name means something in a user's file: "my.py:Net"."""
    return isinstance(name, str) and ".py:" in name


def is_pretrained(name: Any) -> bool:
    """Whether a name means a net that somebody else trained: "hf:FOLDER", "timm:NAME"."""
    return isinstance(name, str) and name.startswith(("hf:", "timm:"))


def own(name: str) -> Any:
    """The class or function `NAME` of the user's `FILE.py:NAME`. Runs that file."""
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UsageError(f"There is no file {file!r}: {near(path.name, beside)}", expected="FILE.py:NAME")
    title = f"lamina_own_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    loaded, source = sys.modules.get(title), path.read_bytes()
    if loaded is None or loaded.__dict__.get("__source__") != source:
        spec = importlib.util.spec_from_file_location(title, path)
        assert spec is not None
        loaded = importlib.util.module_from_spec(spec)
        loaded.__dict__["__source__"] = source
        sys.modules[title] = loaded
        sys.path.insert(0, str(path.parent))  # so that it can import its neighbours
        try:  # not by the loader: its cached bytecode is stale for a file saved twice within a second
            exec(compile(source, str(path), "exec"), loaded.__dict__)
        except (Exception, SystemExit) as error:  # a script that ends by sys.exit() would end us, in silence
            del sys.modules[title]
            raise UsageError(
                f"{file} could not be run: {type(error).__name__}: {error}", fix=f"try `python {file}`"
            ) from error
        finally:
            sys.path.remove(str(path.parent))
    if not hasattr(loaded, attribute):
        public = [word for word in vars(loaded) if not word.startswith("_")]
        raise UsageError(f"{file} has no {attribute!r}: {near(attribute, public)}")
    return getattr(loaded, attribute)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
