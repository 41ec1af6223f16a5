"""Law 10: what is recorded is what ran, read back from the runtime, not what was asked for."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from pareflow import network
from pareflow.catalog import BACKENDS, TECHNIQUES, find
from pareflow.compiler import Backend, OnnxRuntime, OpenVino, TorchEager
from pareflow.hardware import probe
from pareflow.measurement import Ran
from pareflow.model import Technique
from pareflow.network import Form
from pareflow.variant import Step
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
HAS_BF16 = bool({"avx512_bf16", "amx_bf16"} & set(probe.instruction_flags()))

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Case:
    technique: str | None
    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.technique} in {self.backend}: {self.precision}"


CASES = [
    Case(None, "torch_eager", "float32"),
    Case(None, "onnxruntime", "float32"),
    Case("static_int8", "onnxruntime", "int8"),
    Case("dynamic_int8", "onnxruntime", "int8"),
    Case("fp16", "onnxruntime", "float32" if platform.machine() == "x86_64" else "float16"),
    Case(None, "openvino", "float32"),
    Case("nncf_int8", "openvino", "int8"),
]


def ran(backend: Backend, source: Path, tmp_path: Path) -> Ran:
    (tmp_path / "artifact").mkdir()
    backend.compile(source, tmp_path / "artifact")
    return backend.load(tmp_path / "artifact").ran()


@pytest.mark.parametrize("name", ["images", "texts"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_precision_is_what_the_network_computes_in(
    case: Case, name: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    backend = find(BACKENDS, Step(case.backend), "backend")
    assert isinstance(backend, Backend)
    source = forms(name)[backend.form]
    if case.technique is not None:
        technique = find(TECHNIQUES, Step(case.technique), "technique")
        assert isinstance(technique, Technique)
        changed = technique.apply(network.load(technique.form, source), load_tiny(name))
        source = tmp_path / "changed"
        source.mkdir()
        network.save(changed, technique.form, source)
    found = ran(backend, source, tmp_path)
    assert found.precision == case.precision
    installed = version({"torch_eager": "torch"}.get(case.backend, case.backend))
    assert found.version.partition("+")[0] == installed.partition("+")[0]  # torch adds what it is built for


def test_bf16_that_the_processor_lacks_is_float32_in_the_record(forms: Forms, tmp_path: Path) -> None:
    """Asked for bf16, OpenVINO computes in f32 where there are no bf16 instructions, and we say so."""
    found = ran(OpenVino(precision="bf16"), forms("images")["openvino"], tmp_path)
    assert found.precision == ("bfloat16" if HAS_BF16 else "float32")


def test_network_in_bf16_is_said_to_be(tmp_path: Path, forms: Forms) -> None:
    halved = network.load("torch", forms("images")["torch"]).to(torch.bfloat16)
    (tmp_path / "source").mkdir()
    network.save(halved, "torch", tmp_path / "source")
    assert ran(TorchEager(), tmp_path / "source", tmp_path).precision == "bfloat16"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("cls", [TorchEager, OnnxRuntime, OpenVino], ids=lambda cls: str(cls.name))
def test_threads_are_those_of_the_runtime(
    cls: type[Backend], threads: int, forms: Forms, tmp_path: Path
) -> None:
    found = ran(cls(threads=threads), forms("images")[cls.form], tmp_path)
    assert found.threads == threads
    assert found.device.upper() == "CPU"


def test_every_measurement_carries_what_ran(trained: Any) -> None:
    strong, original = (row.measurement.ran for row in trained.rows)
    assert (strong.runtime, strong.precision, strong.threads) == ("onnxruntime", "float32", 1)
    assert (original.runtime, original.version) == ("torch", torch.__version__)
