"""What TensorRT is asked for. No library of it is here: a stand-in for onnxruntime writes the calls down."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from pareflow.compiler import OnnxRuntime, TensorRt
from pareflow.compiler.tensorrt import PROVIDER
from pareflow.errors import EnvironmentUnfitError, UnsuitableError
from pareflow.hardware import accelerators
from pareflow.hardware.accelerators import Capability, Device
from pareflow.network import FILES, Form
from pareflow.workload import LoadedWorkload

Forms = Callable[[str], Mapping[Form, Path]]


class Recorded:
    """An `InferenceSession` that answers zeros; it notes with what it was made, and leaves an engine."""

    made: list["Recorded"]
    lacks: str | None = None
    """A provider whose libraries are not there: onnxruntime lists it, and leaves it out of the session."""

    def __init__(self, graph: Path, options: Any, providers: list[Any], enable_fallback: int) -> None:
        self.graph, self.options, self.providers, self.falls_back = graph, options, providers, enable_fallback
        (Path(self.asked["trt_engine_cache_path"]) / "subgraph.engine").write_bytes(b"engine")
        self.made.append(self)

    @property
    def asked(self) -> dict[str, str]:
        name, options = self.providers[0]
        assert name == PROVIDER
        return dict(options)

    def get_providers(self) -> list[str]:
        asked = [provider if isinstance(provider, str) else provider[0] for provider in self.providers]
        return [name for name in asked if name != self.lacks]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images", type="tensor(float)", shape=["batch", 1, 8, 8])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="output")]

    def run(self, names: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.zeros((len(feeds["images"]), 4), np.float32) for _ in names]


@pytest.fixture
def graph(forms: Forms) -> Path:
    """The tiny images' network, made by the real onnxruntime."""
    return forms("images")["onnx"]


@pytest.fixture
def made(graph: Path, monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """The sessions that were made, oldest first."""
    Recorded.made = []
    standing_in = SimpleNamespace(
        __version__="1.32.0",
        get_available_providers=lambda: [PROVIDER, "CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=SimpleNamespace,
        InferenceSession=Recorded,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", standing_in)
    return Recorded.made


def has_device(monkeypatch: pytest.MonkeyPatch, capability: Capability) -> None:
    monkeypatch.setattr(accelerators, "device", lambda: Device("a device", capability, 8192))


def test_without_the_provider_it_says_so() -> None:
    assert TensorRt.unavailable() == f"this onnxruntime has no {PROVIDER}"


def test_with_the_provider_it_is_available(made: list[Recorded]) -> None:
    assert TensorRt.unavailable() is None


@pytest.mark.parametrize(
    ("capability", "precision", "reason"),
    [
        ((7, 5), "bfloat16", "compute capability 8.0 or later is needed for bfloat16, this device has 7.5"),
        ((7, 5), "int8", None),
        ((7, 0), "int8", "compute capability 7.2 or later is needed for int8, this device has 7.0"),
        ((6, 1), "float32", None),
    ],
)
def test_a_precision_needs_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: Capability, precision: Any, reason: str | None
) -> None:
    has_device(monkeypatch, capability)
    assert TensorRt(precision=precision).unfit() == reason


def test_the_engine_is_built_when_it_is_compiled_and_found_when_it_is_loaded(
    made: list[Recorded], monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path
) -> None:
    has_device(monkeypatch, (8, 0))
    backend = TensorRt(precision="float16", batch_size=8, workspace_mib=512, level=4, threads=2)
    backend.compile(graph, tmp_path)
    (compiled,) = made
    assert compiled.graph == tmp_path / FILES["onnx"]
    assert not compiled.falls_back
    assert compiled.get_providers() == [PROVIDER, "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert compiled.asked == {
        "trt_fp16_enable": "True",
        "trt_bf16_enable": "False",
        "trt_int8_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_timing_cache_enable": "True",
        "trt_cuda_graph_enable": "False",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_path": str(tmp_path),
        "trt_max_workspace_size": str(512 * 1024 * 1024),
        "trt_builder_optimization_level": "4",
        "trt_profile_min_shapes": "images:1x1x8x8",
        "trt_profile_opt_shapes": "images:8x1x8x8",
        "trt_profile_max_shapes": "images:64x1x8x8",
    }
    session = backend.load(tmp_path)
    assert made[1].asked == compiled.asked  # the same options find the same engine
    assert made[1].options.intra_op_num_threads == 2
    ran = session.ran()
    assert (ran.runtime, ran.precision, ran.device, ran.threads) == (PROVIDER, "float16", "cuda:0", 2)
    assert ran.notes.startswith("compiled in ")
    assert session.run({"images": np.zeros((3, 1, 8, 8), np.float32)})["output"].shape == (3, 4)


def test_what_would_run_on_another_provider_is_no_tensorrt(
    made: list[Recorded], monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path
) -> None:
    """As with onnxruntime-gpu where libnvinfer is not installed. Not measured: no such device was at hand."""
    monkeypatch.setattr(Recorded, "lacks", PROVIDER)
    with pytest.raises(
        EnvironmentUnfitError, match=r"but .*CUDAExecutionProvider, CPUExecutionProvider would run"
    ):
        TensorRt(precision="float16").compile(graph, tmp_path)


@pytest.mark.skipif(PROVIDER in onnxruntime.get_available_providers(), reason="the provider is there")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_not_there_is_no_reason_for_another(graph: Path, tmp_path: Path) -> None:
    """The real onnxruntime, which goes on with the processor."""
    with pytest.raises(EnvironmentUnfitError, match="CPUExecutionProvider would run"):
        TensorRt().compile(graph, tmp_path)


def test_a_device_that_fails_in_a_request_is_not_replaced_by_the_processor(
    graph: Path, tmp_path: Path, load_tiny: Callable[[str], LoadedWorkload]
) -> None:
    """`InferenceSession.run` would make the session anew on the processor, and answer."""
    backend = OnnxRuntime()
    backend.compile(graph, tmp_path)
    session = backend.load(tmp_path)
    failing = Failing(session._session._sess)
    session._session._sess = failing
    with pytest.raises(EPFail, match="out of memory"):
        session.run(load_tiny("images").example(1))


class Failing:
    """A native session whose device fails."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *given: object) -> None:
        raise EPFail("the device is out of memory")


def test_fp32_is_told_as_tf32_where_tensor_cores_take_it(
    made: list[Recorded], monkeypatch: pytest.MonkeyPatch, graph: Path, tmp_path: Path
) -> None:
    TensorRt().compile(graph, tmp_path)
    for capability, precision in (((7, 5), "float32"), ((8, 6), "tf32")):
        has_device(monkeypatch, capability)
        assert TensorRt().load(tmp_path).ran().precision == precision


def test_every_axis_that_varies_has_its_sizes() -> None:
    backend = TensorRt(batch_size=4, largest_batch=16, length=128)
    assert backend.profile({"ids": [None, None], "pixels": [None, 3, 32, 32]}) == {
        "trt_profile_min_shapes": "ids:1x1,pixels:1x3x32x32",
        "trt_profile_opt_shapes": "ids:4x128,pixels:4x3x32x32",
        "trt_profile_max_shapes": "ids:16x128,pixels:16x3x32x32",
    }
    assert backend.profile({"pixels": [1, 3, 32, 32]}) == {}


def test_int8_needs_a_quantized_graph(made: list[Recorded], graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsuitableError, match=r"needs a graph with Q/DQ nodes, but model\.onnx has none"):
        TensorRt(precision="int8").compile(graph, tmp_path)
    assert not made
