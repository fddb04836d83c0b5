"""What a person sees: the opening block, findings, progress, the closing block.

In: rows of settings, findings, a `Progress` after every step, scores with intervals. Out: text on a stream. On a
terminal a live bar with a permanent line for each epoch above it; elsewhere one plain line an epoch, without colour or
control codes; with quiet nothing. `log` is given every line as plain text in any case: it is what `train.log` holds.

The story makes one `Screen`, calls `opening`, has it among the watchers, and calls `closing`. It draws ten times a
second at most and reads the loss, which waits for the device, only then. rich is loaded by the first drawing.
"""

from __future__ import annotations

import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

Span = tuple[str, str]  # text, rich style ("" for none)

_DRAW_EVERY = 0.1  # seconds
_PLAIN_WIDTH = 80  # columns where there is no terminal
_WIDEST = 100  # columns: longer lines are hard to read
_VALUE, _REASON = 32, 24  # columns: values up to this and reasons from this stand side by side
_STYLES = {"error": "bold red", "warning": "yellow"}


class Screen:
    """Tells a person what happens. A watcher, and `opening`, `findings`, `stopped`, `closing` around it.

    quiet: write nothing, but to the log. log: called with each line. stream: where to write, standard output if None.
    Leave with `close()` or a `with` block: while the bar is up, the cursor is hidden and prints go above it.
    """

    def __init__(
        self, quiet: bool = False, log: Callable[[str], Any] | None = None, stream: TextIO | None = None
    ) -> None:
        self.quiet, self.log = quiet, log
        self.stream = sys.stdout if stream is None else stream
        self.terminal = not quiet and self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._console: Any = None  # rich's, on a terminal
        self._live: Any = None  # the bar, while it is up
        self._pace: _Pace | None = None
        self._due = 0.0  # when to draw next, on the monotonic clock

    def __call__(self, progress: Any) -> None:
        """After every step. When nothing is due this is one look at the clock."""
        now = time.monotonic()
        if now >= self._due or progress.epoch_end:
            self._draw(progress, now)

    def opening(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """What was asked for and what was decided: (setting, value, reason) in three columns."""
        rows = [(str(setting), str(value), str(reason)) for setting, value, reason in rows]
        left = max((len(setting) for setting, _, _ in rows), default=0) + 2
        room = self._width() - left
        fitting = [len(value) for _, value, reason in rows if reason and len(value) <= min(room // 2, _VALUE)]
        middle = max(fitting, default=0) + 2
        for setting, value, reason in rows:
            if reason and len(value) + 2 <= middle and room - middle >= _REASON:
                head, *more = textwrap.wrap(reason, room - middle)
                self._say((setting.ljust(left), "cyan"), (value.ljust(middle), ""), (head, "dim"))
                for line in more:
                    self._say((" " * (left + middle) + line, "dim"))
                continue
            head, *more = textwrap.wrap(value, room, break_on_hyphens=False) or [""]
            self._say((setting.ljust(left), "cyan"), (head, ""))
            for line in more:
                self._say((" " * left + line, ""))
            for line in textwrap.wrap(reason, room - 2):
                self._say((" " * (left + 2) + line, "dim"))
        self._say()

    def findings(self, findings: Iterable[tuple[str, str, str]]) -> None:
        """What is wrong, worst first as given: (severity, what, how to fix it)."""
        findings = list(findings)
        indent = max((len(severity) for severity, _, _ in findings), default=0) + 2
        for severity, what, fix in findings:
            head = severity.ljust(indent)
            for line in self._wrap(what, indent):
                self._say((head, _STYLES.get(severity, "bold")), (line, ""))
                head = " " * indent
            for line in self._wrap(f"fix: {fix}", indent) if fix else []:
                self._say((head, ""), (line, "dim"))

    def stopped(self, reason: str) -> None:
        """Why training ended before its plan."""
        self.close()
        for k, line in enumerate(self._wrap(f"stopped: {reason}", 0)):
            self._say(("  " if k else "", ""), (line, "yellow"))

    def closing(
        self,
        headline: Mapping[str, Any],
        baselines: Sequence[Mapping[str, Any]] = (),
        folder: str = "",
        files: Sequence[tuple[str, str]] = (),
        commands: Sequence[str] = (),
        words: Sequence[str] = (),
    ) -> None:
        """The last block: the score with its interval, what it is measured against, where to look, what to type next.

        headline: `score`, `value`, `low`, `high`, `split`, `n`, and `better` ("higher" unless it says "lower").
        baselines: `name`, `value`, `low`, `high`. words: remarks, a paragraph each.
        """
        self.close()
        self._say()
        low, high, n = headline.get("low"), headline.get("high"), headline["n"]
        examples = f"{n:,} {headline['split']} example{'s' if n != 1 else ''}"
        interval = (
            f"95 % interval {_interval(headline)}, {examples}" if low is not None and high is not None else examples
        )
        for line in self._wrap(f"{headline['score']} {_value(headline)} ({interval})", 0):
            self._say((line, "bold green"))
        widest = max((len(baseline["name"]) for baseline in baselines), default=0)
        for baseline in baselines:
            given = f" ({_interval(baseline)})" if baseline.get("low") is not None else ""
            self._say((f"  {baseline['name'].ljust(widest)}  {_value(baseline)}{given}", "dim"))
        for paragraph in [*_verdict(headline, baselines), *words]:
            for line in self._wrap(paragraph, 0):
                self._say((line, ""))
        if folder or files:
            self._say()
            self._say(("look at  ", "cyan"), (folder, "bold"))
            widest = max((len(path) for path, _ in files), default=0)
            for path, what in files:
                self._say((f"  {path.ljust(widest)}  ", ""), (what, "dim"))
        if commands:
            self._say()
            self._say(("next", "cyan"))
            for command in commands:  # never wrapped: they are there to be copied
                self._say((f"  {command}", "bold"))

    def close(self) -> None:
        """Take the bar down, if it is up."""
        if self._live is not None:
            live, self._live = self._live, None
            with self._heard():
                live.stop()

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    # Progress

    def _draw(self, progress: Any, now: float) -> None:
        if self._pace is None:
            self._pace = _Pace(now, progress.step, progress.examples)
        self._pace.update(now, progress.step, progress.examples)
        if progress.epoch_end:
            if not self.quiet or self.log is not None:
                self._say(*_epoch_line(progress, self._pace))
            if self._live is not None:
                with self._heard():
                    self._live.update("", refresh=True)
        elif self.terminal:
            with self._heard():
                self._bar(progress)
        self._due = now + _DRAW_EVERY if self.terminal else math.inf

    def _bar(self, progress: Any) -> None:
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            ours = self.stream is sys.stdout  # then what others print while the bar is up goes above it
            self._live = Live(
                console=self._rich(),
                auto_refresh=False,
                transient=True,
                redirect_stdout=ours,
                redirect_stderr=ours and sys.stderr.isatty(),
            )
            self._live.start()
        assert self._pace is not None
        blocks = ("━", "─") if self._encoding().lower().startswith("utf") else ("#", "-")
        spans = _bar_line(progress, self._pace, self._rich().width - 1, blocks)
        self._live.update(Text.assemble(*spans, no_wrap=True, overflow="crop"), refresh=True)

    # The stream

    def _say(self, *spans: Span) -> None:
        """One line, to the log and to the stream. What is not printable (a column's name may hold control codes) is not
        printed."""
        line = [("".join(c if c.isprintable() else "?" for c in text), style) for text, style in spans]
        plain = "".join(text for text, _ in line).rstrip()
        if self.log is not None:
            self.log(plain)
        if self.quiet:
            return
        with self._heard():
            if self.terminal:
                from rich.text import Text

                self._rich().print(Text.assemble(*[span for span in line if span[0]]), soft_wrap=True)
            else:
                self.stream.write(plain.encode(self._encoding(), "replace").decode(self._encoding()) + "\n")
                self.stream.flush()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Nobody may be there any more: the reader has enough (`| head`), the terminal is closed, the disk of a file is
        full. The run goes on without a word, and train.log has the rest."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self.stream.closed:
                raise
            self.quiet, self.terminal = True, False
            self.close()

    def _rich(self) -> Any:
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self.stream, force_terminal=True, highlight=False, markup=False, emoji=False)
        return self._console

    def _encoding(self) -> str:
        return self.stream.encoding or "utf-8"  # a StringIO has none

    def _width(self) -> int:
        return min(self._rich().width, _WIDEST) if self.terminal else _PLAIN_WIDTH

    def _wrap(self, text: str, indent: int) -> list[str]:
        return textwrap.wrap(text, max(self._width() - indent, 20), break_long_words=False, break_on_hyphens=False)


class _Pace:
    """Steps and examples a second, over all time that passed: validation and saving are part of the way.

    Older time counts less, by half for every quarter of what has passed (at least 10 s): so the estimate follows a
    change of speed, and a pause for validation does not shake it.
    """

    def __init__(self, now: float, step: int, examples: int):
        self.began = self.now = now
        self.step, self.examples = step, examples
        self._seconds = self._steps = self._examples = 0.0

    def update(self, now: float, step: int, examples: int) -> None:
        passed = now - self.now
        keep = 0.5 ** (passed / max(10.0, (now - self.began) / 4))
        self._seconds = self._seconds * keep + passed
        self._steps = self._steps * keep + step - self.step
        self._examples = self._examples * keep + examples - self.examples
        self.now, self.step, self.examples = now, step, examples

    def per_second(self) -> float | None:
        """Examples a second; None before there is anything to divide."""
        return self._examples / self._seconds if self._seconds > 0 and self._examples > 0 else None

    def left(self, steps: int | None) -> float | None:
        """Seconds to the planned end; None without a plan or before there is anything to divide."""
        if steps is None or not self._steps > 0:
            return None
        return max(steps - self.step, 0) * self._seconds / self._steps


def _epoch_line(progress: Any, pace: _Pace) -> list[Span]:
    """epoch 3/10  loss 0.1234  valid/accuracy 0.9810  12,345 examples/s  12 s left"""
    done = progress.steps is not None and progress.step >= progress.steps
    fields = [
        _epoch(progress),
        f"loss {_short(progress.mean_loss)}",
        _score(progress.scores),
        _speed(pace),
        f"took {_duration(progress.seconds)}" if done else _left(progress, pace),
    ]
    return [("  ".join(field for field in fields if field), "")]


def _bar_line(progress: Any, pace: _Pace, width: int, blocks: tuple[str, str]) -> list[Span]:
    """The epoch, a bar of its batches, and as much of the rest as fits; speed goes first, then the score."""
    loss, left = f"loss {_short(progress.mean_loss)}", _left(progress, pace)
    score, speed = _score(progress.scores), _speed(pace).replace(" examples", "")
    for fields in ([loss, score, speed, left], [loss, score, left], [loss, left], [loss], []):
        rest = "".join(f"  {field}" for field in fields if field)
        room = width - len(_epoch(progress)) - 2 - len(rest)
        if room >= 10:
            break
    if progress.batches is None:
        bar = [(f"batch {progress.batch + 1:,}", "")]
    else:
        size = max(min(room, 30), 0)
        full = round(size * (progress.batch + 1) / progress.batches)
        bar = [(blocks[0] * full, "green"), (blocks[1] * (size - full), "dim")]
    return [(_epoch(progress), "bold"), ("  ", ""), *bar, (rest, "")]


def _epoch(progress: Any) -> str:
    if progress.epochs is None:
        return f"epoch {progress.epoch + 1}"
    return f"epoch {progress.epoch + 1:>{len(str(progress.epochs))}}/{progress.epochs}"


def _score(scores: Mapping[str, float]) -> str:
    """The first score of the validation that is not the loss; else the first there is. The training loss is shown anyway."""
    names = sorted(
        scores.keys() - {"train/loss"}, key=lambda name: (not name.startswith("valid/"), name.endswith("loss"))
    )
    return f"{names[0]} {_short(scores[names[0]])}" if names else ""


def _speed(pace: _Pace) -> str:
    speed = pace.per_second()
    return "" if speed is None else f"{speed:,.0f} examples/s"


def _left(progress: Any, pace: _Pace) -> str:
    left = pace.left(progress.steps)
    return "" if left is None else f"{_duration(left)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _short(value: float) -> str:
    return f"{value:.4f}" if 0.001 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def _decimals(entry: Mapping[str, Any]) -> int:
    """Decimals for an interval's ends: two digits of its width, three at least for a share."""
    low, high = entry.get("low"), entry.get("high")
    if low is None or high is None or not math.isfinite(high - low) or high <= low:
        return 3
    return min(max(math.ceil(-math.log10(high - low)) + 1, 3 if abs(entry["value"]) <= 1 else 0), 6)


def _value(entry: Mapping[str, Any]) -> str:
    return f"{entry['value']:,.{_decimals(entry) + 1}f}"


def _interval(entry: Mapping[str, Any]) -> str:
    decimals = _decimals(entry)
    return f"{entry['low']:,.{decimals}f} to {entry['high']:,.{decimals}f}"


def _verdict(headline: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether the net beats the best baseline: paired, on the same examples, where both answered them."""
    from lamina.evaluate import beats, best_of

    best = best_of([{"better": headline.get("better"), **entry} for entry in baselines])
    if best is None or best.get("low") is None or headline.get("low") is None:
        return []
    name, paired = f"the best baseline, {best['name']}", best.get("paired")
    certain = beats(headline, best)
    if certain:
        by = "the intervals are apart" if paired is None else f"paired, p = {paired['p']:.2g}"
        return [f"The net {'beats' if certain > 0 else 'is worse than'} {name}, for certain ({by})."]
    return [f"Whether the net beats {name}, is not certain. More test examples would tell."]
