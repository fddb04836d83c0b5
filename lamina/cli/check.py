"""`lamina check SOURCE`: what is wrong with these data, the worst first; exit code 3 when training would refuse them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from lamina.cli.frame import Debug, mapping, say, with_recipe
from lamina.imports import loading
from lamina.recipe import FIELDS, MAPPINGS

LOOKED_AT = ("data_dir", "target", "ignore", "groups", "times", "split_column", "source_arg", "domain", "task", "domain_arg",
             "task_arg", "valid", "test", "memory")  # settings that say what the data are  # fmt: skip
NOTES = 6  # shown


def _check(
    source: Annotated[str, typer.Argument(help="As for train.")],
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    debug: Debug = False,
    **settings: Any,
) -> int:
    with loading(for_good=True):
        from lamina import asking, data, recipe
        from lamina.watchers.screen import Screen

    for key in MAPPINGS:
        if key in settings:
            settings[key] = mapping(settings[key], f"--{key.replace('_', '-')}")
    asked = recipe.make(source=source, **settings)
    opened = asking.open_source(source, asked, {}, None, None)
    domain, target, why, findings = data.examine(asked, opened)
    if json:
        from json import dumps

        found = {"source": opened.name, "about": opened.about, "domain": domain.name, "task": target.name, "why": why}
        typer.echo(dumps({**found, "findings": [finding.state() for finding in findings]}, indent=1, default=str))
    else:
        screen = Screen()
        rows = [
            ("data", opened.name, opened.about),
            ("input", domain.name, why.get("domain", "")),
            ("answer", target.name, why.get("task", "")),
        ]
        if opened.target:
            rows.append(("target", ", ".join(opened.target), why.get("target", "")))
        screen.opening(rows)
        notes = [finding for finding in findings if finding.severity == "note"]
        shown = [finding for finding in findings if finding not in notes[NOTES:]]
        screen.findings([finding.told() for finding in shown])
        say(_count(findings, len(notes[NOTES:])))
    return 3 if any(finding.severity == "error" for finding in findings) else 0


def _count(findings: list[Any], left: int) -> str:
    """The last line."""
    counts = Counter(finding.severity for finding in findings)
    if not counts:
        return "Nothing to complain of."
    words = [f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items()]
    more = f"; {left} notes are not shown, --json has them" if left else ""
    end = "Training would be refused." if counts["error"] else "Training would go on."
    return f"{', '.join(words)}{more}. {end}"


check = with_recipe(_check, without=tuple(name for name in FIELDS if name not in LOOKED_AT))
