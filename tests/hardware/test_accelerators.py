"""What a device can be asked for: pure, and the same on every machine."""

import re
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pareflow.compiler import OnnxRuntime, TorchCompile, TorchEager
from pareflow.hardware import accelerators, probe
from pareflow.hardware.accelerators import NO_DEVICE, Accelerated, Capability, Device, lacking, precisions

CAPABILITIES = st.tuples(st.integers(5, 13), st.integers(0, 9))


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("Pascal", (6, 1), ()),
        ("V100", (7, 0), ("float16",)),
        ("Xavier", (7, 2), ("float16", "int8")),
        ("T4", (7, 5), ("float16", "int8")),
        ("A100", (8, 0), ("tf32", "bfloat16", "float16", "int8")),
        ("Jetson Orin", (8, 7), ("tf32", "bfloat16", "float16", "int8")),
        ("L4", (8, 9), ("tf32", "bfloat16", "float16", "float8", "int8")),
        ("H100", (9, 0), ("tf32", "bfloat16", "float16", "float8", "int8")),
        ("B200", (10, 0), ("tf32", "bfloat16", "float16", "float8", "int8")),
    ],
)
def test_tensor_cores_of_known_devices(
    device: str, capability: Capability, expected: tuple[str, ...]
) -> None:
    assert Device(device, capability, 16384).precisions == expected


@given(CAPABILITIES, CAPABILITIES)
def test_a_later_device_multiplies_in_all_that_an_earlier_one_does(
    one: Capability, other: Capability
) -> None:
    earlier, later = sorted((one, other))
    assert set(precisions(earlier)) <= set(precisions(later))


@given(CAPABILITIES, st.sampled_from(sorted(get_args(accelerators.Precision))))
def test_what_is_lacking_and_what_there_is_agree(capability: Capability, precision: Any) -> None:
    has = precision == "float32" or precision in precisions(capability)
    assert (lacking(precision, capability) is None) == has


def test_what_is_lacking_is_said() -> None:
    expected = "compute capability 8.9 or later is needed for float8, this device has 8.0"
    assert lacking("float8", (8, 0)) == expected
    assert lacking("float8", None) == NO_DEVICE == "there is no CUDA device"


@pytest.mark.parametrize("backend", [TorchEager, TorchCompile], ids=lambda cls: str(cls.name))
@pytest.mark.parametrize(
    ("settings", "wanting"),
    [
        ({"cuda_graphs": True}, "cuda_graphs"),
        ({"streams": 2}, "streams"),
        ({"memory_pool": "expandable"}, "memory_pool"),
        ({"memory_pool": "none"}, "memory_pool"),
        ({"precision": "tf32"}, "precision: tf32"),
    ],
)
def test_settings_of_a_device_are_refused_on_a_processor(
    backend: type[TorchEager], settings: dict[str, Any], wanting: str
) -> None:
    assert backend(**settings).unfit() == f"`{wanting}` needs `device: cuda`"


def test_half_precisions_on_a_processor() -> None:
    assert TorchEager(precision="float16").unfit() == "fp16 products on a processor are far slower than fp32"
    expected = None if probe.has_bf16() else "this processor has no bf16 instructions"
    assert TorchEager(precision="bfloat16").unfit() == expected
    assert TorchEager().unfit() is None


@pytest.mark.parametrize(
    ("capability", "precision", "reason"),
    [
        (None, "float32", "there is no CUDA device"),
        ((7, 5), "tf32", "compute capability 8.0 or later is needed for tf32, this device has 7.5"),
        ((7, 5), "float16", None),
        ((8, 0), "bfloat16", None),
    ],
)
def test_settings_of_a_device_need_one_that_has_them(
    monkeypatch: pytest.MonkeyPatch, capability: Capability | None, precision: Any, reason: str | None
) -> None:
    found = None if capability is None else Device("a device", capability, 8192)
    monkeypatch.setattr(accelerators, "device", lambda: found)
    assert TorchEager(device="cuda", precision=precision).unfit() == reason


@pytest.mark.parametrize(
    ("settings", "law"),
    [
        ({"cuda_graphs": True, "streams": 2}, "`cuda_graphs` must go with one stream"),
        ({"cuda_graphs": True, "memory_pool": "none"}, "`cuda_graphs` must go with a memory pool"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], law: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(law)):
        Accelerated(device="cuda", **settings)


def test_the_cuda_provider_is_told_every_setting() -> None:
    backend = OnnxRuntime(
        device="cuda", tf32=True, conv_search="heuristic", memory_limit_mib=512, cuda_graphs=True
    )
    assert backend.providers() == [
        (
            "CUDAExecutionProvider",
            {
                "use_tf32": "1",
                "cudnn_conv_algo_search": "HEURISTIC",
                "enable_cuda_graph": "1",
                "gpu_mem_limit": str(512 * 1024 * 1024),
            },
        ),
        "CPUExecutionProvider",
    ]
    assert OnnxRuntime().providers() == ["CPUExecutionProvider"]


def test_fp32_on_the_cuda_provider_is_fp32_unless_asked() -> None:
    """ONNX Runtime itself would take TF32."""
    assert OnnxRuntime(device="cuda").provider_options()["use_tf32"] == "0"


@pytest.mark.parametrize(("machine", "computed"), [("x86_64", "float32"), ("aarch64", "float16")])
def test_the_cpu_provider_says_that_it_widens_fp16_on_x86(
    machine: str, computed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    precision, notes = OnnxRuntime().computed("float16")
    assert precision == computed
    assert bool(notes) == (computed == "float32")


@pytest.mark.parametrize(
    ("backend", "graph", "computed"),
    [
        (OnnxRuntime(), "int8", "int8"),
        (OnnxRuntime(), "rounded", "float32"),
        (OnnxRuntime(device="cuda"), "int8", "float32"),
        (OnnxRuntime(device="cuda"), "rounded", "float32"),
        (OnnxRuntime(device="cuda"), "float16", "float16"),
        (OnnxRuntime(device="cuda", tf32=True), "float32", "tf32"),
    ],
)
def test_a_provider_says_what_it_computes_in(backend: OnnxRuntime, graph: str, computed: str) -> None:
    precision, notes = backend.computed(graph)
    assert precision == computed
    assert bool(notes) == (graph in ("int8", "rounded") and computed == "float32")


@pytest.mark.parametrize(
    "settings", [{"tf32": True}, {"conv_search": "default"}, {"memory_limit_mib": 1}, {"cuda_graphs": True}]
)
def test_settings_of_the_cuda_provider_are_refused_on_a_processor(settings: dict[str, Any]) -> None:
    assert OnnxRuntime(**settings).unfit() == f"`{next(iter(settings))}` needs `device: cuda`"
