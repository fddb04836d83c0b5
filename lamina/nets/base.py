"""What nets are asked for, read: sizes, shapes of pictures, and lists of whole numbers as people write them.

In: what somebody gave. Out: what a net is built from, its class by name, or a `UsageError` that says what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lamina import names
from lamina.errors import UsageError, near

T = TypeVar("T")


_MADE_FOR = {"tabular": "the columns of a table", "textnet": "texts"}


def named(name: str, inputs: str) -> Any:
    """The class of a net by name, for inputs of a kind, which has words for people. UsageError for one that takes others."""
    if made_for := _MADE_FOR.get(name):
        raise UsageError(
            f"The net {name} is for {made_for}, and these are {inputs}.", fix="another --net, or one of your own"
        )
    return names.module("nets", name).NET


def sized(sizes: Mapping[str, T], size: str) -> T:
    """What a net has in a size: small, medium, large."""
    if size not in sizes:
        raise UsageError(f"unknown size {size!r}", expected=near(size, sizes))
    return sizes[size]


def demand_picture(net: str, shape: Sequence[int], least: int) -> None:
    """Refuse what is no picture (C, H, W) with sides of `least` pixels or more. net: who refuses it."""
    if len(shape) != 3 or min(shape[1:]) < least:
        raise UsageError(f"{net} cannot take inputs of shape {tuple(shape)}", expected=f"(C, H, W), sides >= {least}")


def whole_numbers(given: Sequence[int] | int | str, what: str, example: str) -> list[int]:
    """(16, 32), 16 or "16,32" -> [16, 32], [16] or [16, 32]. what: what they are; example: how they may be written."""
    if isinstance(given, int):
        return [given]
    try:
        return [int(number) for number in (given.removesuffix(",").split(",") if isinstance(given, str) else given)]
    except (TypeError, ValueError):
        raise UsageError(f"{what} {given!r} are not whole numbers", expected=example) from None
