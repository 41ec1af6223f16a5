"""How the machine is built inside, against files as the kernel writes them, and against this machine."""

import platform
import re
from pathlib import Path

import numpy as np
import pytest

from pareflow.compiler import OnnxRuntime, OpenVino
from pareflow.hardware import ceilings, graphics, probe, topology
from pareflow.hardware import huge_pages as pages


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_caches_are_told_level_by_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_CORES", tmp_path)
    assert topology.caches() == []
    rows = [("1", "Data", "48K", "0"), ("2", "Unified", "1024K", "0-1"), ("3", "Unified", "32M", "0-7")]
    for index, values in enumerate(rows):
        for name, value in zip(("level", "type", "size", "shared_cpu_list"), values, strict=True):
            written(tmp_path / f"cpu0/cache/index{index}/{name}", value)
    assert topology.caches() == [
        {"level": 1, "kind": "Data", "kib": 48, "cores": "0"},
        {"level": 2, "kind": "Unified", "kib": 1024, "cores": "0-1"},
        {"level": 3, "kind": "Unified", "kib": 32 * 1024, "cores": "0-7"},
    ]


def test_memory_nodes_have_their_cores_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_NODES", tmp_path)
    assert topology.memory_nodes() == []
    for node, cores in ((0, "0-3"), (1, "4-7")):
        written(tmp_path / f"node{node}/cpulist", cores)
        written(tmp_path / f"node{node}/meminfo", f"Node {node} MemTotal:       2048000 kB")
    assert topology.memory_nodes() == [
        {"node": 0, "cores": "0-3", "mib": 2000},
        {"node": 1, "cores": "4-7", "mib": 2000},
    ]


def test_private_memory_is_cut_to_whole_huge_pages() -> None:
    """From 3 MiB to 9: two, from 4 to 8. Files, shared memory, stacks, small and read-only ones stay."""
    maps = """
00300000-00900000 rw-p 00000000 00:00 0
00a00000-01000000 rw-p 00000000 00:00 0 [heap]
02000000-03000000 rw-p 00000000 08:01 77 /lib/a.so
03000000-04000000 rw-s 00000000 00:00 0
04000000-05000000 rw-p 00000000 00:00 0 [stack]
05000000-05100000 rw-p 00000000 00:00 0
06000000-07000000 r--p 00000000 00:00 0
""".strip()
    mib = 2**20
    assert list(pages._regions(maps)) == [(4 * mib, 4 * mib), (10 * mib, 6 * mib)]


def test_memory_is_put_in_huge_pages_and_stays_what_it_was() -> None:
    if pages.unfit():
        pytest.skip(str(pages.unfit()))
    held = np.arange(16 * 2**20 // 8)
    done_mib = pages.collapse()
    assert int(held.sum()) == len(held) * (len(held) - 1) // 2
    rollup = Path("/proc/self/smaps_rollup").read_text()
    there_mib = int(re.search(r"AnonHugePages:\s+(\d+)", rollup)[1]) / 1024  # type: ignore[index]
    at_once = tuple(map(int, platform.release().split(".")[:2])) >= (6, 1)
    assert there_mib >= max(12, done_mib)
    assert (done_mib >= 12) is at_once


def test_huge_pages_that_the_system_does_not_give_are_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "huge_pages", lambda: "never")
    assert OnnxRuntime(huge_pages=True).unfit() == "huge pages are `never` on this system"
    assert OpenVino(huge_pages=True).unfit() == "huge pages are `never` on this system"
    assert OnnxRuntime().unfit() is None


@pytest.mark.parametrize("chosen", ["always", "madvise", "never"])
def test_huge_pages_are_the_choice_in_brackets(
    chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = " ".join(f"[{name}]" if name == chosen else name for name in ("always", "madvise", "never"))
    written(tmp_path / "enabled", told)
    monkeypatch.setattr(topology, "_HUGE_PAGES", tmp_path / "enabled")
    assert topology.huge_pages() == chosen
    monkeypatch.setattr(topology, "_HUGE_PAGES", tmp_path / "absent")
    assert topology.huge_pages() is None


def test_an_allocator_is_a_library_or_none() -> None:
    assert set(topology.allocators()) == set(topology.ALLOCATORS)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (
            "echo 'NVIDIA H100 80GB HBM3, 81559, 9.0, 575.57'; echo 'Tesla T4, 15360, 7.5, 575.57'",
            [
                ("NVIDIA H100 80GB HBM3", ["float16", "int8", "bfloat16", "tf32", "fp8"]),
                ("Tesla T4", ["float16", "int8"]),
            ],
        ),
        ("echo 'GeForce GTX 1080, 8192, 6.1, 470.1'", [("GeForce GTX 1080", [])]),
        (
            "echo 'NVIDIA GB10, [N/A], 12.1, 580.1'",
            [("NVIDIA GB10", ["float16", "int8", "bfloat16", "tf32", "fp8"])],
        ),
        ("exit 9", []),
        (None, []),
    ],
    ids=["two", "no tensor cores", "no memory of its own", "no driver", "not installed"],
)
def test_graphics_are_what_nvidia_smi_lists_with_what_their_tensor_cores_take(
    says: str | None, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphics, "_DRIVER", tmp_path / "absent")
    if says is not None:
        written(tmp_path / "nvidia-smi", f"#!/bin/sh\n{says}")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [(found["name"], found["tensor_cores"]) for found in graphics.graphics()] == expected


def test_a_driver_without_its_tool_is_asked_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("PATH", str(tmp_path))
    written(tmp_path / "version", "NVRM version")
    monkeypatch.setattr(graphics, "_DRIVER", tmp_path / "version")
    assert len(graphics.graphics()) == torch.cuda.device_count()


@pytest.mark.parametrize("has", [True, False])
def test_a_precision_that_would_be_emulated_has_no_rate(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "TRIES", 1)
    monkeypatch.setattr(ceilings, "SIZE", 64)
    monkeypatch.setattr(ceilings, "LEAST_MIB", 1)
    monkeypatch.setattr(probe, "cache_bytes", lambda: None)
    monkeypatch.setattr(probe, "has_bf16", lambda: has)
    monkeypatch.setattr(probe, "has_vnni", lambda: has)
    rates = ceilings.ceilings(threads=1)["by_precision"]
    assert rates["float32"] > 0
    assert [rates[name] is not None for name in ("bfloat16", "int8")] == [has, has]
