"""What a CUDA device computes: as the processor does, to the precision that was asked for.

`pytest -m cuda`, on a machine that has one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow import network, torch_network
from pareflow.compiler import Backend, OnnxRuntime, TorchCompile, TorchEager
from pareflow.compiler.cuda_graphs import graphed
from pareflow.errors import UnsuitableError
from pareflow.hardware.accelerators import Device, lacking
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

Forms = Callable[[str], Mapping[Form, Path]]
Load = Callable[[str], LoadedWorkload]
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
"""Of the largest output."""

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"precision": "tf32"},
    {"precision": "float16"},
    {"precision": "bfloat16"},
    {"cuda_graphs": True},
    {"cuda_graphs": True, "precision": "float16"},
    {"streams": 2},
    {"streams": 4, "precision": "float16"},
    {"memory_pool": "expandable"},
    {"memory_pool": "none"},
    {"channels_last": True},
)

pytestmark = pytest.mark.cuda


def able(backend: Backend) -> Backend:
    """The backend; the test is skipped where this device cannot do what it asks for."""
    reason = backend.unavailable() or backend.unfit()
    if reason:
        pytest.skip(reason)
    return backend


def agrees(backend: Backend, name: str, forms: Forms, load_tiny: Load, folder: Path) -> None:
    """Answers to several shapes, each met twice and in turn, are the processor's."""
    backend.compile(forms(name)[backend.form], folder)
    session = backend.load(folder)
    module = network.load("torch", forms(name)["torch"])
    for samples in (1, 6, 2, 6, 1):
        feeds = load_tiny(name).example(samples)
        expected = network.run_torch(module, feeds)["output"]
        error = np.abs(session.run(feeds)["output"] - expected).max() / np.abs(expected).max()
        assert error <= TOLERANCE[session.ran().precision]
    assert session.ran().device.lower().startswith("cuda")


def test_network_that_lies_on_the_device_is_stored_on_the_processor(cuda: Device) -> None:
    import torch

    stored = torch_network.as_stored(torch.nn.Linear(2, 2).cuda(), ["input"])
    assert {weight.device.type for weight in stored.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["images", "texts"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_eager_agrees_with_the_processor(
    cuda: Device, settings: dict[str, Any], name: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    agrees(able(TorchEager(device="cuda", **settings)), name, forms, load_tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "texts"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_inductor_agrees_with_the_processor(
    cuda: Device, settings: dict[str, Any], name: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    agrees(able(TorchCompile(device="cuda", **settings)), name, forms, load_tiny, tmp_path)


@pytest.mark.parametrize("name", ["images", "texts"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"tf32": True}, {"io_binding": True}, {"cuda_graphs": True}, {"memory_limit_mib": 256}],
    ids=str,
)
def test_onnx_runtime_agrees_with_the_processor(
    cuda: Device, settings: dict[str, Any], name: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    backend = able(OnnxRuntime(device="cuda", **settings))
    if name == "texts" and settings.get("cuda_graphs"):  # it leaves sizes to the processor
        with pytest.raises(UnsuitableError, match="every operator on the device"):
            agrees(backend, name, forms, load_tiny, tmp_path)
    else:
        agrees(backend, name, forms, load_tiny, tmp_path)


def test_tf32_drops_bits_and_fp32_does_not(cuda: Device, tmp_path: Path) -> None:
    """TF32 rounds inputs to 11 significant bits: sums of 1024 products err by some 1e-4 of their size, fp32's
    by some 1e-7. Source: NVIDIA, "A100 Tensor Core GPU architecture", TF32."""
    import torch

    if reason := lacking("tf32", cuda.capability):
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(1024, 1024, bias=False)
    layer.weight.data = torch.randn(1024, 1024, generator=generator)
    network.save(layer.eval(), "torch", tmp_path)
    feeds = {"x": torch.randn(256, 1024, generator=generator).numpy()}
    exact = feeds["x"].astype(np.float64) @ layer.weight.data.numpy().astype(np.float64).T
    errors = {}
    for precision in ("float32", "tf32"):
        session = TorchEager(device="cuda", precision=precision).load(tmp_path)
        errors[precision] = float(np.abs(session.run(feeds)["output"] - exact).max() / np.abs(exact).max())
    assert errors["float32"] < 1e-5
    assert 1e-5 < errors["tf32"] < 5e-3


def test_a_graph_is_captured_once_per_shape_and_its_answers_are_the_callers(cuda: Device) -> None:
    import torch

    calls = []

    def doubled(feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append(feeds["x"].shape)
        return {"y": feeds["x"] * 2}

    run = graphed(doubled)
    with torch.inference_mode():
        first = run({"x": torch.ones(4, device="cuda")})["y"]
        captured = len(calls)
        second = run({"x": torch.full((4,), 3.0, device="cuda")})["y"]
        assert len(calls) == captured  # replayed: no Python ran
        run({"x": torch.ones(5, device="cuda")})
    assert len(calls) == 2 * captured
    assert first.tolist() == [2.0] * 4
    assert second.tolist() == [6.0] * 4


def test_without_a_pool_nothing_stays_reserved(cuda: Device, tmp_path: Path) -> None:
    import torch

    network.save(torch.nn.Linear(1024, 1024).eval(), "torch", tmp_path)
    feeds = {"x": np.ones((4096, 1024), np.float32)}
    torch.cuda.empty_cache()
    reserved = {}
    for pool in ("none", "caching"):
        session = TorchEager(device="cuda", memory_pool=pool).load(tmp_path)
        before = torch.cuda.memory_reserved()
        session.run(feeds)
        reserved[pool] = torch.cuda.memory_reserved() - before
    assert reserved["none"] == 0
    assert reserved["caching"] >= 16 * 2**20  # the output alone has 16 MiB
