"""Work is done in order by one thread; what the disk refuses stays, is tried again, and holds up what comes after it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from lamina import writer
from lamina.errors import ResourceError, RunError
from lamina.writer import Writer


class Bench:
    """A writer, what it did, and a disk that can be made to refuse or to wait."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.warned: list[str] = []
        self.error: BaseException | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.writer = Writer(lambda error: self.warned.append(error.what))

    def work(self, name: str) -> Callable[[], None]:
        def act() -> None:
            assert self.gate.wait(10)
            if self.error is not None:
                raise self.error
            self.done.append(name)

        return act

    def settled(self) -> None:
        self.writer.close()
        assert not self.writer.busy


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_work_is_done_in_order_elsewhere(bench):
    threads: list[Any] = []
    bench.gate.clear()
    for name in ("best", "checkpoints", "fourth"):
        assert bench.writer.give(name, bench.work(name)) is False  # and nobody waits
    bench.writer.give("last", lambda: threads.append(threading.current_thread()))
    assert bench.done == [] and bench.writer.busy
    bench.gate.set()
    bench.writer.wait()
    assert bench.done == ["best", "checkpoints", "fourth"] and not bench.writer.busy
    assert threads[0] is not threading.main_thread() and not threads[0].is_alive()


def test_work_of_the_same_key_waits_for_the_one_before(bench):
    bench.gate.clear()
    bench.writer.give("checkpoints", bench.work("one"))
    opener = threading.Timer(0.05, bench.gate.set)
    opener.start()
    assert bench.writer.give("checkpoints", lambda: bench.done.append("after " + ", ".join(bench.done))) is False
    bench.writer.wait()
    opener.join()
    assert bench.done == ["one", "after one"]


@pytest.mark.parametrize("error", [ResourceError("the disk is full"), RunError("it reads otherwise")], ids=repr)
def test_what_is_refused_is_told_once_tried_again_and_holds_up_the_rest(bench, monkeypatch, error):
    bench.error = error
    bench.writer.give("best", bench.work("best"))
    bench.settled()
    bench.writer.give("checkpoints", bench.work("checkpoint"))
    bench.settled()
    for _ in range(3):
        bench.writer.look()
    assert bench.warned == [error.what] and bench.done == []
    bench.error = None
    bench.writer.look()  # too early to try again
    assert bench.done == []
    monkeypatch.setattr(bench.writer, "_again", 0.0)
    bench.writer.look()
    bench.settled()
    assert bench.done == ["best", "checkpoint"]
    bench.writer.look()
    bench.writer.wait()
    assert bench.warned == [error.what]


def test_what_was_refused_gives_way_to_the_new_in_its_place(bench):
    bench.error = ResourceError("the disk is full")
    bench.writer.give("best", bench.work("best"))
    bench.settled()
    bench.writer.give("checkpoints", bench.work("old"))
    bench.settled()
    bench.error = None
    assert bench.writer.give("checkpoints", bench.work("new")) is True
    bench.writer.wait()
    assert bench.done == ["best", "new"]


def test_a_wait_tries_once_more_and_then_raises(bench):
    tries: list[int] = []

    def refuse() -> None:
        tries.append(1)
        raise ResourceError("the disk is full")

    bench.writer.give("checkpoints", refuse)
    with pytest.raises(ResourceError, match="full"):
        bench.writer.wait()
    assert len(tries) == 2
    bench.writer.close()  # says nothing


@pytest.mark.parametrize("error", [ZeroDivisionError("a defect"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_any_other_error_is_raised_and_nothing_more_is_done(bench, error):
    bench.error = error
    bench.writer.give("checkpoints", bench.work("one"))
    bench.settled()
    bench.error = None
    for act in (bench.writer.look, bench.writer.wait, lambda: bench.writer.give("checkpoints", bench.work("two"))):
        with pytest.raises(type(error)):
            act()
    bench.writer.close()
    assert bench.done == [] and bench.warned == []


def test_nothing_to_do_is_nothing(bench):
    bench.writer.look()
    bench.writer.wait()
    bench.writer.close()
    assert not bench.writer.busy and writer.AGAIN > 0
