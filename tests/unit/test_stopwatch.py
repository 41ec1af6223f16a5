"""What times a request: it waits for the work, on processors and on devices."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow import network
from pareflow.compiler.torch_eager import TorchEager
from pareflow.hardware import accelerators
from pareflow.measuring.stopwatch import device_memory_mib, stopwatch

RUNTIMES = {
    "torch": {"runtime": "torch", "device": "cpu"},
    "openvino": {"runtime": "openvino", "device": "CPU"},
    "onnxruntime": {"runtime": "onnxruntime", "device": "CUDA"},
    "tensorrt": {"runtime": "TensorrtExecutionProvider", "device": "cuda:0"},
}
"""On a processor, or on a device that torch has nothing to do with, and that a torch for processors lacks."""

elsewhere = pytest.mark.parametrize("ran", RUNTIMES.values(), ids=list(RUNTIMES))


@elsewhere
def test_the_wall_clock_holds_the_whole_call(ran: dict[str, str]) -> None:
    assert stopwatch(ran)(lambda: time.sleep(0.02)) >= 20


@elsewhere
def test_device_memory_that_torch_does_not_hold_is_unknown(ran: dict[str, str]) -> None:
    assert device_memory_mib(ran) == (None, None)


def test_torch_on_a_device_that_is_not_here_is_unfit() -> None:
    import torch

    expected = None if torch.cuda.is_available() else "there is no CUDA device"
    assert TorchEager(device="cuda").unfit() == expected
    assert TorchEager().unfit() is None


@pytest.fixture
def products(tmp_path: Path) -> Path:
    import torch

    layers = [torch.nn.Linear(2048, 2048) for _ in range(8)]
    network.save(torch.nn.Sequential(*layers).eval(), "torch", tmp_path)
    return tmp_path


@pytest.mark.cuda
@pytest.mark.skipif(accelerators.device() is None, reason=accelerators.NO_DEVICE)
def test_a_device_answers_as_the_processor_does_and_is_timed_by_events(products: Path) -> None:
    feeds = {"x": np.random.default_rng(0).random((512, 2048), dtype=np.float32)}
    ours: Any = TorchEager(device="cuda").load(products)
    theirs = TorchEager().load(products)
    ran = {"runtime": ours.ran().runtime, "device": ours.ran().device}
    assert ran == {"runtime": "torch", "device": "cuda:0"}
    assert np.allclose(ours.run(feeds)["output"], theirs.run(feeds)["output"], atol=1e-2)
    assert stopwatch(ran)(lambda: ours.run(feeds)) > 0
    allocated, reserved = device_memory_mib(ran)
    assert allocated is not None
    assert reserved is not None
    assert 128 < allocated <= reserved  # eight layers of 16 MiB
