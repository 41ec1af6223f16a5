"""Networks of microseconds: how often one counts as faster than its equal, by where processes lie."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from claims import Claim, main
from onnx import TensorProto, helper, numpy_helper
from scipy import stats

from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.hardware import layout
from pareflow.hardware.device import device_lock
from pareflow.intervals import speedup
from pareflow.isolation import Limits
from pareflow.measurement import Measurement
from pareflow.measuring.arena import Arena, Contestant, Protocol, write_feeds
from pareflow.stages.validation import BLOCKS

EQUALS = 4
"""Contestants of one arena, all of them the same file."""
WIDTH = 64
Layout = Callable[[], AbstractContextManager[bool]]


def measure(quick: bool) -> Iterator[Claim]:
    """As contestants are begun, and as the kernel begins processes by itself."""
    times = 2 if quick else 10
    yield from claims("alike", layout.alike, times, told=0.1)
    yield from claims("at random", lambda: nullcontext(False), times, told=1)


def claims(where: str, lie: Layout, times: int, told: float) -> Iterator[Claim]:
    """Of all pairs of equals: the share that is not equal by its interval; 10 % may be, 5 % to each side."""
    with mock.patch.object(layout, "alike", lie):
        found = [pair for seed in range(times) for pair in itertools.combinations(equals(seed), 2)]
    ratios = [speedup(*pair) for pair in found]
    wrong = sum((one.low or 0) > 1 or (one.high or 2) < 1 for one in ratios)
    bounds = stats.binomtest(wrong, len(ratios)).proportion_ci(0.95, method="exact")
    median_us = 1000 * float(np.median([np.median(one.samples_ms) for pair in found for one in pair]))
    furthest = max(abs(one.estimate - 1) for one in ratios)
    name = f"equals of {median_us:.0f} µs, processes {where}: not equal by their interval"
    note = (
        f"furthest from equal: {furthest:.1%}; pairs share contestants, so that these bounds are too narrow"
    )
    low, high = float(bounds.low), float(bounds.high)
    yield Claim(name, told, wrong / len(ratios), "share", len(ratios), "at most", low, high, note)


def equals(seed: int) -> Sequence[Measurement]:
    """One file, timed by several processes beside each other as finalists are."""
    backend = OnnxRuntime(threads=1)
    with tempfile.TemporaryDirectory() as name, device_lock("cpu", exclusive=True) as descriptor:
        folder = Path(name)
        (folder / "source").mkdir()
        onnx.save(network(), folder / "source" / "model.onnx")
        (folder / "artifact").mkdir()
        backend.compile(folder / "source", folder / "artifact")
        write_feeds([{"x": np.ones((1, WIDTH), np.float32)}], folder / "feeds.npz")
        contestants = [Contestant(str(i), folder / "artifact", backend.step, 1.0) for i in range(EQUALS)]
        with Arena(
            contestants,
            feeds=folder / "feeds.npz",
            batch_size=1,
            environment="here",
            workload=({}, folder),  # torch alone would ask for one
            limits=Limits(),
            logs=folder / "logs",
            descriptors=(descriptor,),
        ) as arena:
            found = arena.measure(Protocol(blocks=BLOCKS, seed=seed))
            for error in arena.failures.values():
                raise error
    return list(found.values())


def network() -> onnx.ModelProto:
    """A perceptron with one hidden layer."""
    generator = np.random.default_rng(0)
    weights = {"w": (WIDTH, WIDTH), "v": (WIDTH, 4)}
    constants = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    given, taken = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("x", WIDTH), ("y", 4))
    )
    graph = helper.make_graph(nodes, "perceptron", [given], [taken], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


if __name__ == "__main__":
    main("networks of microseconds beside themselves", measure)
