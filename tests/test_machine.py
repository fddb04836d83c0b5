"""The process is ready for arithmetic while it lasts and as it was afterwards; a crowded machine is noticed."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import threading

import pytest
import torch

from lamina import machine

LARGE = 400_000  # numbers: above what torch gives to one thread


def kept():
    """How many of many products of small numbers are denormal, over all of torch's threads."""
    return int(((torch.full((LARGE,), 1e-30) * 1e-10) != 0).sum())


def can_flush():
    able = torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)
    return able


needs_flushing = pytest.mark.skipif(not can_flush(), reason="this processor does not flush denormals")


# --- Ready ------------------------------------------------------------------------------------------------------------


def test_the_number_of_threads_is_as_before():
    before = torch.get_num_threads()
    with machine.ready(threads=3):
        assert torch.get_num_threads() == 3
        with machine.ready(threads=2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    with machine.ready():
        assert torch.get_num_threads() == before
        torch.set_num_threads(4)  # as `Crowd` does
    assert torch.get_num_threads() == before


@needs_flushing
@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_are_flushed_on_all_threads_while_it_lasts_and_no_longer(threads):
    torch.set_num_threads(threads)
    assert kept() == LARGE and not machine.flushes()  # torch's threads are born here, before
    with machine.ready(threads=threads):
        assert kept() == 0 and machine.flushes()
        with machine.ready(threads=threads):
            assert kept() == 0
        assert kept() == 0  # the inner one leaves it to the outer
    assert kept() == LARGE and not machine.flushes()


@needs_flushing
def test_threads_that_are_born_inside_do_not_flush_afterwards():
    command = (
        "import torch; from lamina import machine\n"
        "big = lambda: int(((torch.full((400_000,), 1e-30) * 1e-10) != 0).sum())\n"
        "with machine.ready(threads=2):\n    inside = big()\n"
        "torch.set_num_threads(2)\nprint(inside, big())"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", str(LARGE)]


@needs_flushing
def test_torchs_threads_are_the_ones_that_are_made_anew_where_others_have_openmp_too():
    """scikit-learn loads a runtime of its own, whose threads are not torch's."""
    command = (
        "import sklearn.cluster, torch; from lamina import machine\n"
        "big = lambda: int(((torch.full((400_000,), 1e-30) * 1e-10) != 0).sum())\n"
        "torch.set_num_threads(2)\nbefore = big()\n"
        "with machine.ready(threads=2):\n    inside = big()\n"
        "print(before, inside, big())"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(LARGE), "0", str(LARGE)]


@needs_flushing
def test_strict_keeps_denormals():
    with machine.ready(strict=True, threads=1):
        assert kept() == LARGE and not machine.flushes()
    with machine.ready(threads=1), machine.ready(strict=True):  # what an outer one set is not undone
        assert machine.flushes()
    assert not machine.flushes()


@needs_flushing
def test_a_caller_who_flushes_already_goes_on_flushing():
    torch.set_flush_denormal(True)
    try:
        with machine.ready():
            assert machine.flushes()
        assert machine.flushes()
    finally:
        torch.set_flush_denormal(False)


def test_an_error_inside_leaves_all_as_it_was():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), machine.ready(threads=3):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before and not machine.flushes()
    assert kept() == LARGE


def test_the_mode_of_other_threads_of_python_is_left_alone():
    found = []

    def look():
        found.append(machine.flushes())

    with machine.ready():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert found[-1] is False


@pytest.mark.parametrize("fast", [True, False])
def test_settings_of_gpus_are_put_back(fast):
    def now():
        return (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark)

    before = now()
    with machine._on_gpus(fast):
        assert now() == (fast, fast, fast)
    assert now() == before


def test_memory_is_kept_and_given_back(monkeypatch):
    calls = []

    class Libc:
        def mallopt(self, *what):
            calls.append(("mallopt", *what))

        def malloc_trim(self, what):
            calls.append(("trim", what))

    monkeypatch.setattr(machine, "_glibc", Libc)
    with machine.ready(strict=True):
        assert calls == [("mallopt", -3, 1 << 30), ("mallopt", -1, 2**31 - 1)]
    assert calls[2:] == [("trim", 0)]


@pytest.mark.parametrize(("part", "nothing"), [("_glibc", None), ("_openmp", [])])
def test_where_there_is_no_glibc_or_openmp_nothing_is_called(monkeypatch, part, nothing):
    monkeypatch.setattr(machine, part, lambda: nothing)
    with machine.ready(threads=1):
        assert torch.ones(3).sum() == 3
    assert not machine.flushes()


# --- A crowd ----------------------------------------------------------------------------------------------------------


class Machine:
    """A machine of two cores whose steps take as long as said, on a clock of its own."""

    def __init__(self, monkeypatch, alone=0.001, one=0.0012, crowded=0.010, one_crowded=0.0015):
        self.now, self.used, self.busy, self.threads = 0.0, 0.0, False, 2
        self.times = {(2, False): alone, (1, False): one, (2, True): crowded, (1, True): one_crowded}
        self.set = []
        monkeypatch.setattr(torch, "set_num_threads", self._set)
        self.crowd = machine.Crowd(2, lambda: self.now, lambda: self.used)

    def _set(self, threads):
        self.threads = threads
        self.set.append(threads)

    def steps(self, n, *, after=0.0):
        """What the crowd says in so many steps; the last is followed by other work of so many seconds."""
        said = []
        for k in range(n):
            seconds = self.times[self.threads, self.busy]
            self.now += seconds
            self.used += seconds * (1 if self.busy else self.threads)
            said.append(self.crowd(bool(after) and k == n - 1))
        self.now += after
        return [words for words in said if words]


WINDOW = machine._WINDOW


def test_a_quiet_machine_is_left_alone(monkeypatch):
    here = Machine(monkeypatch)
    assert here.steps(5_000) == [] and here.set == []


def test_a_busy_neighbour_is_noticed_when_it_comes_and_when_it_goes(monkeypatch):
    here = Machine(monkeypatch)
    here.steps(200)
    here.busy = True
    assert here.steps(3 * WINDOW) == ["1 thread from here: another process is busy"]
    assert here.crowd.threads == here.threads == 1
    here.busy = False
    assert here.steps(2_000) == []  # two threads are not tried again at once
    here.now += machine._PATIENCE
    assert here.steps(3 * WINDOW) == [] and here.threads == 1  # 1.0 ms and 1.2 ms are near each other


def test_all_threads_come_back_where_they_are_faster(monkeypatch):
    here = Machine(monkeypatch, alone=0.001, one=0.0018, one_crowded=0.002)
    here.steps(200)
    here.busy = True
    assert here.steps(3 * WINDOW)
    here.busy = False
    here.now += machine._PATIENCE
    assert here.steps(3 * WINDOW) == ["2 threads from here: all are free again"]
    assert here.crowd.threads == here.threads == 2


def test_a_neighbour_that_stays_is_tried_seldom(monkeypatch):
    here = Machine(monkeypatch)
    here.steps(200)
    here.busy = True
    began = here.now
    said = here.steps(40_000)
    assert said == ["1 thread from here: another process is busy"]
    trials = len(here.set) / 2
    assert trials <= 2 + (here.now - began) / machine._PATIENCE
    assert here.threads == 1


def test_where_one_thread_does_not_help_all_stay(monkeypatch):
    here = Machine(monkeypatch, one_crowded=0.0095)
    here.steps(200)
    here.busy = True
    assert here.steps(5 * WINDOW) == [] and here.threads == 2
    assert here.set == [1, 2]


def test_a_validation_in_between_is_not_counted(monkeypatch):
    here = Machine(monkeypatch)
    for _ in range(50):  # an epoch of a few steps, and a second of something else
        assert here.steps(3, after=1.0) == []
    assert here.set == []


def test_steps_that_take_long_whatever_the_threads_are_not_a_crowd(monkeypatch):
    here = Machine(monkeypatch)
    for _ in range(20):
        assert here.steps(WINDOW // 2) == []
        here.now += 0.5  # the system did something else
    assert here.set == [1, 2] and here.threads == 2


def test_long_steps_are_helped_too(monkeypatch):
    """Those of the convnet of PyTorch's examples take 23 ms alone and 320 beside another such training."""
    here = Machine(monkeypatch, alone=0.023, one=0.045, crowded=0.320, one_crowded=0.05)
    here.steps(200)
    here.busy = True
    assert here.steps(3 * WINDOW) == ["1 thread from here: another process is busy"]


def test_one_thread_is_left_alone(monkeypatch):
    here = Machine(monkeypatch)
    here.crowd, here.threads = machine.Crowd(1, lambda: here.now), 1
    here.steps(200)
    here.busy = True
    here.times[1, True] = 0.02
    assert here.steps(500) == [] and here.set == []


def test_a_neighbour_who_was_there_first_is_noticed(monkeypatch):
    here = Machine(monkeypatch)
    here.busy = True
    assert here.steps(3 * WINDOW) == ["1 thread from here: another process is busy"]


def test_one_thread_is_tried_again_at_once_where_the_cores_become_far_busier(monkeypatch):
    """The neighbour may itself have had but one core at the first trial, and one of its own now."""
    here = Machine(monkeypatch, crowded=0.0009, one_crowded=0.0008)
    here.busy = True
    assert here.steps(3 * WINDOW) == [] and here.set == [1, 2]
    here.times[2, True] = 0.007
    assert here.steps(3 * WINDOW) == ["1 thread from here: another process is busy"]
    assert here.now < machine._PATIENCE and here.threads == 1


def test_steps_that_crawl_are_not_waited_for(monkeypatch):
    """Torch's threads may take a hundred times as long where they wait for each other: two seconds a window."""
    here = Machine(monkeypatch, crowded=0.1)
    here.steps(200)
    here.busy = True
    began = here.now
    assert here.steps(machine._FEW + WINDOW + 1) == ["1 thread from here: another process is busy"]
    assert here.now - began < (machine._FEW + 1) * 0.1 + WINDOW * 0.0012 + 0.01


@pytest.mark.parametrize(("every", "noticed"), [(20, True), (3 * WINDOW, False)])
def test_a_few_steps_that_take_most_of_the_time_are_noticed_where_they_go_on(monkeypatch, every, noticed):
    here = Machine(monkeypatch)
    here.steps(200)
    here.times[1, False] = 0.0006
    said = []
    for k in range(1, 10 * WINDOW):
        said += here.steps(1)
        here.now += 0.08 if k % every == 0 and here.threads == 2 else 0.0
    assert said == ["1 thread from here: another process is busy"] * noticed


def test_first_steps_that_crawl_are_not_waited_for_either(monkeypatch):
    here = Machine(monkeypatch, crowded=0.1)
    here.busy = True
    assert here.steps(machine._FEW + WINDOW + 1) == ["1 thread from here: another process is busy"]


def test_a_slow_net_that_has_its_cores_is_left_alone(monkeypatch):
    here = Machine(monkeypatch, alone=0.3)
    assert here.steps(200) == [] and here.set == []


def test_one_step_that_takes_long_is_no_neighbour(monkeypatch):
    here = Machine(monkeypatch)
    here.steps(200)
    here.now += 5.0  # within a step
    assert here.steps(200) == [] and here.set == []


def test_a_net_that_keeps_one_core_busy_is_tried_once_on_one_thread(monkeypatch):
    here = Machine(monkeypatch, crowded=0.001, one_crowded=0.001)
    here.busy = True  # nobody else is, but the second thread is not used either
    assert here.steps(5_000) == [] and here.set == [1, 2]


def test_the_system_is_asked_for_shares_in_the_first_window_only():
    now, asked = itertools.count(0.0, 0.001), []
    crowd = machine.Crowd(2, lambda: next(now), lambda: (asked.append(1), 0.002 * len(asked))[1])
    assert [crowd() for _ in range(10 * WINDOW)] == [""] * (10 * WINDOW)
    assert len(asked) == WINDOW + 1


def test_a_window_is_judged_by_its_median():
    ticks = itertools.accumulate([0.001] * WINDOW + [0.0021] * (WINDOW // 2 - 1) + [0.001] * (WINDOW // 2 + 1))
    times = list(ticks)
    clock = iter(times)
    crowd = machine.Crowd(2, lambda: next(clock))
    assert [crowd() for _ in times] == [""] * len(times)
    assert statistics.median([0.0021] * 11 + [0.001] * 13) == 0.001
