"""What is wrong with these data, before an hour is spent.

In: a `Source` and, where they are known, the task and the split. Out: findings, the worst first; an "error" means that
training would be pointless. Called by `train` and by `lamina check`. Findings change nothing: they name examples, count
them and say what to do. A theme a file:

    pool       parts as one table, and how much of it is looked at
    arrays     inputs that are numbers
    columns    columns of a table
    texts      texts
    copies     examples that are there more than once; `near`: nearly so
    giveaways  columns that tell the answer
    drift      held-out examples that are unlike those to learn from
    answers    the answers

Plain numpy over whole columns. Of tables above `pool.MOST_BYTES` every k-th example is looked at, and a finding says so.
Of a Dataset only the answers are looked at.
"""

from __future__ import annotations

import numpy as np

from lamina.checks import answers, arrays, columns, copies, drift, giveaways, pool, texts
from lamina.checks.copies import Copies as Copies
from lamina.checks.copies import row_hashes as row_hashes
from lamina.findings import Finding, worst_first
from lamina.sources import Source
from lamina.splits import Split


def check(
    source: Source, *, task: str | None = None, split: Split | None = None, found: Copies | None = None
) -> list[Finding]:
    """Findings about a source, the worst first.

    task: "classes", "numbers" or "tags"; without one (or with another) answers are looked at for gaps only. split: rows
    of the training examples, or of the training, validation and test examples one after the other; without one,
    examples that were given to validate and test on are told from the others all the same. Rows are counted through
    all of them, in this order. found: their copies, where they were sought already.
    """
    table = pool.pool(source, split)
    same = copies.find(table) if found is None else found
    kept_together = split is not None and "kept together" in split.how
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers near the end of the range
        listed = [*pool.size(table)]
        if table.kind == "table":
            listed += columns.columns(table)
        elif table.kind == "texts":
            listed += texts.texts(table, task)
        else:
            listed += arrays.inputs(table)
        if not any(finding.severity == "error" for finding in listed):
            listed += giveaways.giveaways(table, task)
        listed += copies.findings(table, same, task, kept_together)
        listed += drift.drift(table, task)
        listed += answers.answers(table, task)
    return worst_first(listed)


def find_copies(source: Source, *, near: bool = True) -> Copies:
    """What is there more than once among all examples of a source: for the split, before it is drawn. near: also what is
    there nearly so, which takes longer."""
    return copies.find(pool.pool(source), near)


def large_batch(batch_size: int | None, count: int) -> list[Finding]:
    """A batch that was asked for and is larger than what there is to train on."""
    if batch_size is None or batch_size <= count or not count:
        return []
    what = f"batch_size is {batch_size:,}, and there are {count:,} training examples: an epoch is one batch, of all of them."
    return [
        Finding("large_batch", "warning", what, count, [], "one step an epoch", f"--batch-size {max(1, count // 8)}")
    ]
