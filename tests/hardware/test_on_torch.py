"""What torch's backends do with their settings, as far as a processor can tell."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pareflow import network
from pareflow.compiler import OnnxRuntime, TorchEager, cuda_graphs, onnxruntime_session
from pareflow.compiler.cuda_streams import joined, parts
from pareflow.compiler.onnxruntime_session import FixedSession
from pareflow.compiler.signature import checked
from pareflow.errors import EnvironmentUnfitError, WorkloadError
from pareflow.hardware import accelerators, probe
from pareflow.network import FILES, Form
from pareflow.workload import Arrays, LoadedWorkload
from tests.concurrency import answered_at_once

Forms = Callable[[str], Mapping[Form, Path]]
Load = Callable[[str], LoadedWorkload]
Tensors = Mapping[str, torch.Tensor]
Call = Callable[[Tensors], Tensors]

TAKES = {
    "ids": {"dtype": "int64", "shape": [None, None]},
    "pixels": {"dtype": "float32", "shape": [None, 3, 4, 4]},
}


def given_feeds(samples: int = 2) -> dict[str, np.ndarray]:
    return {"pixels": np.zeros((samples, 3, 4, 4), np.float32), "ids": np.zeros((samples, 5), np.int64)}


@given(st.integers(1, 40), st.integers(1, 8))
def test_parts_of_a_batch_make_the_batch_again(samples: int, count: int) -> None:
    batch = {"x": torch.arange(samples * 3).reshape(samples, 3), "y": torch.arange(samples)}
    cut = parts(batch, count)
    sizes = [len(part["x"]) for part in cut]
    assert len(cut) == min(count, samples)
    assert max(sizes) - min(sizes) <= 1
    assert all(torch.equal(joined(cut)[name], batch[name]) for name in batch)


def test_channels_last_moves_weights_and_inputs(tmp_path: Path) -> None:
    network.save(torch.nn.Conv2d(3, 8, 3).eval(), "torch", tmp_path)
    plain, session = (TorchEager(channels_last=last).load(tmp_path) for last in (False, True))
    images = torch.rand(2, 3, 8, 8)
    assert session._module.weight.stride() == (27, 1, 9, 3)  # channels, then columns, then rows
    assert session._laid(images).stride() == (192, 1, 24, 3)
    assert session._laid(torch.rand(2, 3)).stride() == (3, 1)
    feeds = {"images": images.numpy()}
    np.testing.assert_allclose(session.run(feeds)["output"], plain.run(feeds)["output"], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not probe.has_bf16(), reason="this processor has no bf16 instructions")
def test_a_half_precision_casts_weights_and_keeps_whole_numbers(
    forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    TorchEager().compile(forms("texts")["torch"], tmp_path)
    session = TorchEager(precision="bfloat16").load(tmp_path)
    assert {parameter.dtype for parameter in session._module.parameters()} == {torch.bfloat16}
    assert session._laid(torch.zeros(1, dtype=torch.int64)).dtype == torch.int64
    assert session._laid(torch.zeros(1)).dtype == torch.bfloat16
    assert session.ran().precision == "bfloat16"
    assert session.run(load_tiny("texts").example(2))["output"].dtype == np.float32


def test_inputs_are_put_in_the_programs_order() -> None:
    assert list(checked({**given_feeds(), "more": np.zeros(1)}, TAKES)) == ["ids", "pixels"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"ids": None}, "`ids` is missing; given are pixels"),
        ({"pixels": np.zeros((2, 3, 4, 5), np.float32)}, r"it is float32 of shape \(2, 3, 4, 5\)"),
        ({"pixels": np.zeros((2, 3, 4, 4))}, r"it is float64 of shape \(2, 3, 4, 4\)"),
        ({"ids": np.zeros(2, np.int64)}, r"it is int64 of shape \(2\)"),
        ({"ids": np.zeros((0, 5), np.int64)}, r"it is int64 of shape \(0, 5\)"),
    ],
)
def test_inputs_that_a_package_would_misread_are_refused(
    changes: dict[str, np.ndarray | None], found: str
) -> None:
    feeds = {name: array for name, array in {**given_feeds(), **changes}.items() if array is not None}
    with pytest.raises(WorkloadError, match=found):
        checked(feeds, TAKES)


def test_fixed_addresses_keep_the_answers_for_every_shape(
    forms: Forms, load_tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session that CUDA graphs need, on the processor: the same answers, and the caller's to keep.

    It keeps buffers for so many shapes, and computes the next one without.
    """
    import onnxruntime

    monkeypatch.setattr(onnxruntime_session, "MOST", 2)
    source = forms("texts")["onnx"]
    OnnxRuntime().compile(source, tmp_path)
    plain = OnnxRuntime().load(tmp_path)
    session = onnxruntime.InferenceSession(source / FILES["onnx"], providers=["CPUExecutionProvider"])
    fixed = FixedSession(session, 1, "float32", device="cpu")
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for turn, samples in enumerate((1, 6, 1, 6, 3)):
        feeds = load_tiny("texts").example(samples)
        feeds = {name: np.roll(array, turn, axis=0) for name, array in feeds.items()}
        answer = fixed.run(feeds)["output"]
        kept += [(answer, answer.copy()), *((array, array.copy()) for array in feeds.values())]
        np.testing.assert_allclose(answer, plain.run(feeds)["output"], rtol=1e-5, atol=1e-6)
    assert len(fixed._bound) == 2
    assert all(np.array_equal(answer, copy) for answer, copy in kept)


def test_threads_that_ask_at_fixed_addresses_get_their_own_answers(
    forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    import onnxruntime

    graph = forms("images")["onnx"] / FILES["onnx"]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    fixed, feeds = FixedSession(session, 1, "float32", device="cpu"), load_tiny("images").example(8)
    alone = [{name: array[row : row + 4] for name, array in feeds.items()} for row in range(4)]
    answered_at_once(fixed.run, alone, [fixed.run(one)["output"] for one in alone])


class Recorded:
    """What a CUDA graph does, on the processor: it computes from its own inputs into its own outputs."""

    def __init__(self, run: Call, feeds: Tensors) -> None:
        self.inputs = {name: tensor.clone() for name, tensor in feeds.items()}
        self._run, self.outputs = run, run(self.inputs)

    def replay(self) -> None:
        for name, tensor in self._run(self.inputs).items():
            self.outputs[name].copy_(tensor)


def recorded(run: Call, feeds: Tensors) -> tuple[Recorded, Tensors, Tensors]:
    made = Recorded(run, feeds)
    return made, made.inputs, made.outputs


def test_graphs_are_kept_for_so_many_shapes_and_threads_replay_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graphs, "_captured", recorded)
    monkeypatch.setattr(cuda_graphs, "MOST", 2)
    sizes: list[int] = []

    def doubled(feeds: Tensors) -> Tensors:
        sizes.append(len(feeds["x"]))
        time.sleep(0.0005)  # where another thread has its turn
        return {"y": feeds["x"] * 2}

    run = cuda_graphs.graphed(doubled)
    for size in (1, 2, 3, 3):
        assert run({"x": torch.ones(size)})["y"].tolist() == [2.0] * size
    assert sizes == [1, 1, 2, 2, 3, 3]  # captured and replayed; the third shape is computed without

    def answer(feeds: Arrays) -> Arrays:
        return {"output": run({"x": torch.tensor(feeds["x"])})["y"].numpy()}

    rows = [np.full(2, row, np.float32) for row in range(4)]
    answered_at_once(answer, [{"x": row} for row in rows], [row * 2 for row in rows])


class Launch:
    """A CUDA stream that waits for nothing, and a graph that has computed already."""

    def wait_stream(self, other: "Launch") -> None:
        """Nothing is under way."""

    def replay(self) -> None:
        """What it gives lies there since it was captured."""


def test_sessions_capture_one_after_the_other_and_bear_what_other_threads_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[str] = []
    under_way = threading.Lock()

    @contextmanager
    def capture(graph: Launch, capture_error_mode: str = "global") -> Iterator[None]:
        modes.append(capture_error_mode)
        assert under_way.acquire(blocking=False), "another session captures"
        try:
            time.sleep(0.05)  # where another would begin
            yield
        finally:
            under_way.release()

    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, Launch)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    together = threading.Barrier(3)

    def first_request(row: int) -> list[float]:
        session = cuda_graphs.graphed(lambda feeds: {"y": feeds["x"] * 2})
        together.wait(20)
        answer: list[float] = session({"x": torch.tensor([float(row)])})["y"].tolist()
        return answer

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(first_request, range(3))) == [[0.0], [2.0], [4.0]]
    assert modes == ["thread_local"] * 3


@pytest.mark.skipif(accelerators.device() is not None, reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfitError, match="there is no CUDA device"):
        TorchEager(device="cuda").load(tmp_path)
