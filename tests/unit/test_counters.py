"""What the processor counts, where it counts, and the reason where it does not."""

import mmap
import shutil
from pathlib import Path

import pytest

from pareflow.hardware import counters

# perf 6.1 on a machine with counters: Linux, tools/perf/Documentation/perf-stat.txt, section CSV FORMAT.
COUNTED = """# started on Mon Nov 23 06:34:48 2026

3000000,,instructions,152241268,100.00,1.50,insn per cycle
2000000,,cycles:u,152241268,100.00,,
500,,cache-misses,152241268,100.00,,
"""
UNSUPPORTED = "<not supported>,,instructions,0,100.00,,\n<not counted>,,cycles,0,100.00,,\n"


def test_counts_are_read_by_event_and_what_is_no_number_is_unknown() -> None:
    assert counters.read(COUNTED) == {"instructions": 3e6, "cycles": 2e6, "cache-misses": 500}
    assert counters.read(UNSUPPORTED) == {"instructions": None, "cycles": None}
    assert counters.read("") == {}


def test_figures_are_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "count", lambda work, events: (counters.read(COUNTED), None))
    assert counters.counted(lambda: None, requests=100) == {
        "instructions": 30_000,
        "cycles": 20_000,
        "cache_misses": 5,
        "ipc": 1.5,
        "reason": None,
    }


def test_without_perf_the_work_is_done_and_the_reason_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    calls: list[int] = []
    found = counters.counted(lambda: calls.append(1), requests=7)
    assert len(calls) == 7
    assert found.pop("reason") == "perf is not installed"
    assert set(found.values()) == {None}


def test_perf_that_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where /proc/sys/kernel/perf_event_paranoid forbids it."""
    perf = tmp_path / "perf"
    perf.write_text("#!/bin/sh\necho 'No permission to enable instructions event.' >&2\nexit 255\n")
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    calls: list[int] = []
    found, reason = counters.count(lambda: calls.append(1), ("instructions",))
    assert calls == [1]
    assert found == {"instructions": None}
    assert reason == "perf would not count: No permission to enable instructions event."


@pytest.fixture
def perf() -> None:
    if shutil.which("perf") is None:
        pytest.skip("perf is not installed: apt-get install linux-perf")


@pytest.mark.usefixtures("perf")
def test_only_the_work_is_counted() -> None:
    """By an event that every kernel counts, virtual machine or not: page faults of new memory."""
    pages = 1000

    def touch() -> None:
        with mmap.mmap(-1, pages * 4096) as memory:
            for page in range(pages):
                memory[page * 4096] = 1

    found, reason = counters.count(touch, ("page-faults",))
    if reason is not None:
        pytest.skip(reason)  # no permission here
    faults = found["page-faults"]
    assert faults is not None
    assert pages <= faults < 4 * pages


@pytest.mark.usefixtures("perf")
def test_an_event_that_the_machine_lacks_is_named() -> None:
    found, reason = counters.count(lambda: sum(range(1000)), ("instructions", "task-clock"))
    if found["instructions"] is None:
        assert reason is not None
        assert "instructions" in reason or "perf would not count" in reason
    else:
        assert reason is None
