"""What was found out about data: by those who read them, check them or look at them after training.

A finding names what it is about, counts it, gives the first examples, and says what was done about it and how to
overrule that. It is printed, stands in data.json and in the report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lamina.errors import DataError

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    kind: str  # "duplicates", "one_class", ...: for programs
    severity: str  # "error" (training would be pointless), "warning", "note"
    what: str
    count: int  # examples, columns or classes that it is about
    examples: list[
        Any
    ]  # the first of them: row numbers, pairs of rows, file names, columns or labels, as JSON has them
    done: str  # what was done about it
    fix: str  # what the user can do, or how to overrule

    def state(self) -> dict[str, Any]:
        """The finding as JSON."""
        return asdict(self)


def worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def raise_errors(findings: list[Finding]) -> None:
    """One DataError with all findings that are errors; nothing where there are none."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        fixes = list(dict.fromkeys(finding.fix for finding in errors if finding.fix))
        raise DataError("\n".join(finding.what for finding in errors), fix="; ".join(fixes))
