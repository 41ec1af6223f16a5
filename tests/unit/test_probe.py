"""What this machine is, against the kernel's own words."""

import os
import platform
from pathlib import Path

import pytest

from pareflow.hardware import probe

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Processor @ 2.00GHz
flags\t\t: fpu sse2 sse4_2 avx2 fma avx512_vnni amx_int8 rdtscp

processor\t: 1
model name\t: another
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose /proc/cpuinfo is known."""
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(probe, "Path", lambda path: tmp_path / Path(path).name)
    probe.processor.cache_clear()
    probe.instruction_flags.cache_clear()


@pytest.fixture(autouse=True)
def _forgotten() -> object:
    yield
    probe.processor.cache_clear()
    probe.instruction_flags.cache_clear()
    probe.accelerators.cache_clear()


@pytest.mark.usefixtures("machine")
def test_processor_is_named_with_family_and_model() -> None:
    assert probe.processor() == "Intel(R) Xeon(R) Processor @ 2.00GHz (family 6, model 143)"


@pytest.mark.usefixtures("machine")
def test_flags_are_those_that_kernels_choose_between() -> None:
    assert probe.instruction_flags() == ("amx_int8", "avx2", "avx512_vnni", "fma", "sse4_2")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("avx2", "fma"), False),
        (("avx2", "avx_vnni"), True),
        (("avx512_vnni",), True),
        (("asimddp",), True),
        (("asimd",), False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_vnni_is_known_by_its_names(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], expected: bool
) -> None:
    monkeypatch.setattr(probe, "instruction_flags", lambda: flags)
    assert probe.has_vnni() is expected


def test_machine_without_cpuinfo_still_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "Path", lambda _: tmp_path / "absent")
    probe.processor.cache_clear()
    probe.instruction_flags.cache_clear()
    assert probe.processor() == (platform.processor() or platform.machine())
    assert probe.instruction_flags() == ()


def test_cores_are_those_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert probe.cores() == (min(allowed),)
    finally:
        os.sched_setaffinity(0, allowed)
    assert probe.cores() == tuple(sorted(allowed))


def test_memory_and_system_are_the_kernels() -> None:
    total = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    assert probe.memory_mib() == int(total.split()[1]) // 1024
    assert probe.system() == f"{os.uname().sysname} {os.uname().release} {os.uname().machine}"


@pytest.mark.parametrize(
    ("own", "files", "quota", "limit_mib"),
    [
        ("0::/", {}, None, None),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ("0::/", {"cpu.max": "150000 100000", "memory.max": "2147483648"}, 1.5, 2048),
        ("0::/", {"cpu.max": "400000 100000", "memory.max": str(2**50)}, None, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5, None),
        ("0::/a/b", {"a/memory.max": str(2**30), "a/b/memory.max": str(2**29)}, None, 512),
        (
            "4:memory:/x\n3:cpu,cpuacct:/x\n0::/",
            {
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(2**30),
            },
            0.5,
            1024,
        ),
        (
            "4:memory:/x\n3:cpu:/",
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/x/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
    ],
    ids=["no file", "no bound", "bound", "more than there is", "above", "both", "version 1", "unbounded 1"],
)
def test_bounds_of_a_container_are_its_control_groups(
    own: str,
    files: dict[str, str],
    quota: float | None,
    limit_mib: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of its own and of those above it, the lowest; None where the machine has no more."""
    monkeypatch.setattr(probe, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(probe, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(probe, "cores", lambda: (0, 1))
    monkeypatch.setattr(probe, "memory_mib", lambda: 8192)
    written(tmp_path / "own", own)
    for name, text in files.items():
        written(tmp_path / "groups" / name, text)
    assert (probe.cpu_quota(), probe.memory_limit_mib()) == (quota, limit_mib)


def test_a_machine_is_told_from_its_like_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.boot() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    monkeypatch.setattr(probe, "_BOOT", Path("/nowhere"))
    assert probe.boot() == platform.node()


def test_cache_is_the_largest_that_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CORES", tmp_path)
    assert probe.cache_bytes() is None
    for index, size in enumerate(["32K", "1024K", "32M"]):
        written(tmp_path / f"cpu0/cache/index{index}/size", size)
    assert probe.cache_bytes() == 32 * 2**20


def test_governor_is_the_allowed_cores_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_CORES", tmp_path)
    monkeypatch.setattr(probe, "cores", lambda: (0, 1, 2))
    assert probe.governor() is None  # as in most virtual machines
    for core, name in enumerate(["powersave", "powersave", "powersave", "performance"]):
        written(tmp_path / f"cpu{core}/cpufreq/scaling_governor", name)
    assert probe.governor() == "powersave"
    written(tmp_path / "cpu2/cpufreq/scaling_governor", "performance")
    assert probe.governor() == "performance, powersave"


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("echo 'NVIDIA H200, 575.57.08'", ("NVIDIA H200", "575.57.08")),
        ("echo 'NVIDIA L4, 570.1'; echo 'NVIDIA A10, 570.1'", ("NVIDIA A10, NVIDIA L4", "570.1")),
        ("echo No devices were found", None),
        ("exit 9", None),
        (None, None),
    ],
    ids=["one", "two", "no device", "no driver", "not installed"],
)
def test_accelerators_are_what_nvidia_smi_lists(
    says: str | None, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if says is not None:
        written(tmp_path / "nvidia-smi", f"#!/bin/sh\n{says}")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    probe.accelerators.cache_clear()
    assert probe.accelerators() == expected
