"""Figures of `lamina bench` as text: tables with bars, what would help, what was tried.

In: the dicts of `measure_machine` and `measure_run`. Out: lines. Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_BAR = 30  # characters of the largest
_BUSY = 0.1  # processors of others above which figures are too low


def machine_lines(found: dict[str, Any]) -> Iterator[str]:
    """The machine, for people."""
    yield f"{found['device']}: {found['processor']}, torch {found['torch']}"
    yield ""
    yield "matrix products, GFLOP/s"
    rates = [(_product(entry), entry["gflops"]) for entry in found["products"]]
    yield from bars(rates, "{:,.0f}")
    yield ""
    figures = [("memory, copied", f"{found['memory_gb_per_s']:.1f} GB/s")]
    figures.append(("smallest operation", f"{found['operation_us']:.1f} µs"))
    for count, spent in found["small_product_us"].items():
        figures.append((f"product 64x784 by 784x128, {_threads(int(count))}", f"{spent:.1f} µs"))
    hand, ours = found["step_us"]["hand"], found["step_us"]["lamina"]
    figures.append(("step of a tiny net by hand", f"{hand:.0f} µs"))
    figures.append(("the same through lamina.learn", f"{ours:.0f} µs, {ours - hand:+.0f}"))
    widest = max(len(title) for title, _ in figures)
    yield from (f"  {title:<{widest}}  {value}" for title, value in figures)
    yield from _company(found)


def run_lines(found: dict[str, Any]) -> Iterator[str]:
    """A run, for people."""
    yield f"{found['run']}: {found['net']}, batches of {found['batch_size']}, {found['precision']}, {found['device']}"
    yield ""
    yield from _headline(found)
    yield ""
    yield "where the time goes, milliseconds a step"
    yield from bars([(entry["name"], entry["milliseconds"]) for entry in found["parts"]], "{:.3f}", shares=True)
    yield f"  its steps are {found['lane']}"
    yield ""
    helpful = [trial for trial in found["tried"] if trial["helps"]]
    yield "what would help, tried on this net" if helpful else "nothing that was tried makes it a tenth faster"
    widest = max((len(trial["option"]) for trial in found["tried"]), default=0)
    for trial in helpful:
        yield f"  {trial['option']:<{widest}}  x{trial['factor']:.2f}  {trial['words']}"
    for trial in found["tried"]:
        if trial["factor"] is None:
            yield f"  {trial['option']:<{widest}}  failed: {trial['error']}"
    without = [
        f"{t['option']} (x{t['factor']:.2f})" for t in found["tried"] if not t["helps"] and t["factor"] is not None
    ]
    if without:
        yield f"  tried without gain: {', '.join(without)}"
    for note in found["notes"]:
        yield f"note: {note}"
    yield from _company(found)


def run_line(found: dict[str, Any]) -> str:
    """A run in one line, tabs between."""
    floor = f"{100 * found['floor']['share']:.0f} % of the floor" if found["floor"] else "no floor"
    rate = f"{found['examples_per_second']:,.0f} examples/s"
    return "\t".join([found["run"], rate, f"{found['milliseconds']:.3f} ms a step", floor])


def machine_line(found: dict[str, Any]) -> str:
    """The machine in one line, tabs between."""
    best = {entry["precision"]: entry["gflops"] for entry in found["products"]}  # most threads come last
    rates = [f"{kind} {rate:,.0f} GFLOP/s" for kind, rate in best.items()]
    return "\t".join([*rates, f"{found['memory_gb_per_s']:.1f} GB/s", f"{found['operation_us']:.1f} µs an operation"])


def bars(entries: list[tuple[str, float]], form: str, *, shares: bool = False) -> Iterator[str]:
    """Lines of title, figure, share of all and a bar."""
    widest = max(len(title) for title, _ in entries)
    figures = [form.format(value) for _, value in entries]
    broad = max(map(len, figures))
    most, whole = max(value for _, value in entries), sum(value for _, value in entries)
    for (title, value), figure in zip(entries, figures, strict=True):
        share = f"{100 * value / whole:4.0f} %  " if shares else ""
        yield f"  {title:<{widest}}  {figure:>{broad}}  {share}{'█' * round(_BAR * value / most)}".rstrip()


def _headline(found: dict[str, Any]) -> Iterator[str]:
    yield f"  {found['examples_per_second']:,.0f} examples/s, {found['milliseconds']:.3f} ms a step"
    floor = found["floor"]
    if floor:
        yield (
            f"  {100 * floor['share']:.0f} % of the speed of the floor: its products, {floor['gflop']:.3g} GFLOP a step, "
            f"take {floor['milliseconds']:.3f} ms at this machine's {floor['gflops']:,.0f} GFLOP/s ({floor['kind']})"
        )
        if floor["uncounted"]:
            yield f"  not counted: {', '.join(floor['uncounted'])}, so the floor is too low"
    else:
        yield "  no floor: this net has no matrix products or convolutions that can be counted"


def _company(found: dict[str, Any]) -> Iterator[str]:
    if (found["others_cores"] or 0.0) > _BUSY:
        yield ""
        yield f"Other processes used {found['others_cores']:.1f} processors meanwhile: a quiet machine is faster than this."


def _product(entry: dict[str, Any]) -> str:
    return f"{entry['precision']}, {_threads(entry['threads'])}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count != 1 else ''}"
