"""What was found out about data: by those who read them, check them or look at them after training.

A finding names what it is about, counts it, gives the first examples, and says what was done about it and how to
overrule that. It is printed, stands in data.json and in the report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lamina.errors import DataError

SEVERITIES = ("error", "warning", "note")
_AS_IT_WAS = ("kept", "nothing is trained")  # done, and no news


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

    def told(self) -> tuple[str, str, str]:
        """(severity, what was found and done, how to fix it), as a screen shows it."""
        done = "" if self.done in _AS_IT_WAS or not self.done else f" {self.done[0].upper()}{self.done[1:]}."
        return self.severity, self.what + done, self.fix


def worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def raise_errors(findings: list[Finding]) -> None:
    """One DataError with all findings that are errors; nothing where there are none."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        fixes = list(dict.fromkeys(finding.fix for finding in errors if finding.fix))
        raise DataError("\n".join(finding.what for finding in errors), fix="; ".join(fixes))
