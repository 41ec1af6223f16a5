"""The search for schedules of TVM's kernels; what needs TVM itself is slow."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pareflow.compiler import Tvm
from pareflow.compiler.workers import schedules
from pareflow.compiler.workers.forked import survived
from pareflow.compiler.workers.schedules import Kernel, same
from pareflow.network import Form

# the processes that are forked here do nothing that a thread of this one could have locked
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as of a SIGSEGV, of which pytest would print more


def hang() -> None:
    while True:
        time.sleep(1)


def fail() -> None:
    raise ValueError


def test_what_survives_answers() -> None:
    array = np.arange(2**16)  # more than a pipe holds
    assert np.array_equal(survived(lambda: array * 2, 60), array * 2)


@pytest.mark.parametrize("end", [crash, hang, fail])
def test_what_crashes_hangs_or_fails_is_only_lost(end: Callable[[], None]) -> None:
    assert survived(end, 0.2 if end is hang else 60) is None
    assert survived(lambda: "the next", 60) == "the next"


@dataclass
class Scripted(Kernel):
    """A kernel whose schedules are functions that were written for it."""

    script: tuple[Callable[[], Any], ...] = ()

    def drawn(self) -> Any:
        return SimpleNamespace(mod=self.script[self.tried - 1])


def test_only_the_fastest_of_the_same_numbers_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, a hang and a failure end themselves; the slower, and the fastest but wrong, lose."""
    right, wrong = [np.ones(3)], [np.array([1, 1, 1.1])]

    def good() -> Any:
        return 2.0, right

    script = (lambda: (3.0, right), crash, hang, fail, good, lambda: (0.5, wrong), lambda: (2.5, right))
    monkeypatch.setattr(schedules, "timed", lambda module, target, given: module())
    kernel = Scripted("kernel", None, None, calls=1, fastest_s=4, expected=right, script=script)
    kept = []
    for step in script:
        kernel.search(0.5 if step is hang else 60)
        kept.append(kernel.fastest_s)
    assert kept == [3, 3, 3, 3, 2, 2, 2]
    assert kernel.schedule.mod is good


def test_numbers_are_the_same_up_to_rounding() -> None:
    expected = [np.array([100.0, 1, np.nan])]
    assert same([np.array([100.009, 1, np.nan])], expected)
    assert not same([np.array([100.011, 1, np.nan])], expected)
    assert not same([np.array([100.0, 1, 1])], expected)
    assert not same([np.array([True, False])], [np.array([True, True])])
    assert not same([np.array([0.0, 1e-9])], [np.zeros(2)])
    assert same([], [])


@dataclass
class Steady(Kernel):
    """A kernel whose schedules take a second to try, and are never faster."""

    clock: Any = None
    untuned_s: float = 0.0

    def start(self, limit_s: float) -> None:
        self.clock.now += 1
        self.fastest_s = self.untuned_s

    def search(self, limit_s: float) -> None:
        assert 0 < limit_s <= schedules.LONGEST_S
        self.clock.now += 1
        self.tried += 1


@pytest.mark.parametrize(
    ("budget_s", "tried"), [(3, [0, 0, 0]), (4, [1, 0, 0]), (11, [6, 2, 0]), (23, [15, 5, 0])]
)
def test_schedules_go_where_the_time_goes_until_the_budget_is_spent(
    monkeypatch: pytest.MonkeyPatch, budget_s: float, tried: list[int]
) -> None:
    """Two calls of 3 s and one of 2 share out what starting left, 3 to 1; what did not start gets none."""
    clock = SimpleNamespace(now=100.0)
    times, calls = (3.0, 2.0, 0.0), (2, 1, 9)
    kernels = [Steady(f"k{i}", None, None, calls=calls[i], clock=clock, untuned_s=times[i]) for i in range(3)]
    monkeypatch.setattr(schedules, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(schedules, "_kernels", lambda module, target: kernels)
    module = object()
    assert schedules.tuned(module, None, budget_s) == (module, 0, 3)
    assert [kernel.tried for kernel in kernels] == tried
    assert clock.now == 100 + budget_s


def test_kernels_that_the_budget_does_not_reach_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    kernels = [Steady(f"k{i}", None, None, calls=1, clock=clock, untuned_s=1.0) for i in range(5)]
    monkeypatch.setattr(schedules, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(schedules, "_kernels", lambda module, target: kernels)
    schedules.tuned(object(), None, 3)
    assert [kernel.fastest_s for kernel in kernels] == [1, 1, 1, 0, 0]


ENDING = """
import os, sys, types
workers = types.ModuleType("workers")
workers.__path__ = [sys.argv[1]]
sys.modules["workers"] = workers
from workers import schedules, tvm

drawn, schedules.LONGEST_S = schedules.Kernel.drawn, 2.0

def ending(kernel):
    if kernel.tried % 3 == 1:
        os.abort()
    while kernel.tried % 3 == 2:
        pass
    return drawn(kernel)

schedules.Kernel.drawn = ending
tvm.compile(sys.argv[2], sys.argv[3], batch_size=1, length=None, tuning_s=20, threads=1)
"""
"""Of three schedules, one crashes and one hangs as it is drawn, among TVM's own libraries."""


@pytest.mark.slow
def test_a_schedule_that_ends_the_process_of_tvm_is_only_lost(
    forms: Callable[[str], Mapping[Form, Path]], tmp_path: Path
) -> None:
    python, folder = Tvm.environment().ensure(), Path(schedules.__file__).parent
    subprocess.run([python, "-I", "-c", ENDING, folder, forms("images")["onnx"], tmp_path], check=True)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["tuned"].startswith("tuned for 20 s: ")
    assert not facts["tuned"].startswith("tuned for 20 s: 0 of")
