"""A CUDA device: tensor cores, CUDA graphs, streams, memory pools and utilisation, claimed against measured.

Needs the core library alone; rows of ONNX Runtime need its build for CUDA. Of two ways to compute the same,
each round times both, one after the other, by CUDA events; a row is the median of the rounds' ratios, with
what bounds it at 95 %. Torch's rows find their inputs on the device and leave their outputs there; where ONNX
Runtime takes part, both ways take arrays of the host and give such.
"""

import contextlib
import functools
import multiprocessing
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from claims import Claim, main

from pareflow import network
from pareflow.compiler import OnnxRuntime, TorchCompile, TorchEager
from pareflow.compiler.on_torch import prepare
from pareflow.hardware import accelerators
from pareflow.hardware.accelerators import Accelerated, Device, Precision

if TYPE_CHECKING:
    import torch
    from torch import nn

SIZE = 4096
"""Rows and columns of the products that tensor cores are measured by."""

WATCH_S = 3.0
DEVICE: Literal["cpu", "cuda"] = "cuda"
PLAIN = Accelerated(device=DEVICE)
STRONG = OnnxRuntime(device=DEVICE)


@dataclass(frozen=True)
class Way:
    """One way to compute: a call that queues work on the device, and the settings that it needs."""

    call: Callable[[], object]
    settings: Accelerated | OnnxRuntime


@dataclass(frozen=True)
class Row:
    """One claim, and what measures it: its estimate, low, high and samples, with a note."""

    name: str
    claimed: float
    unit: str
    measure: Callable[[Device, bool], Claim]

    def empty(self) -> Claim:
        return Claim(self.name, self.claimed, None, self.unit, 0, "at least")


def measure(quick: bool) -> Sequence[Claim]:
    """Every row; without a device each says that there is none, and a row that fails says why.

    Rows are measured in a process of their own: where it dies, that row has failed, and another goes on.
    """
    out: list[Claim] = []
    context = multiprocessing.get_context("spawn")
    while len(out) < len(rows()):
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(sender, len(out), quick))
        worker.start()
        sender.close()
        with contextlib.suppress(EOFError):
            while True:
                out.append(receiver.recv())
        worker.join()
        if worker.exitcode:
            note = f"not measured: its process died, exit code {worker.exitcode}"
            out.append(replace(rows()[len(out)].empty(), note=note))
    return out


def _work(sender: Connection, start: int, quick: bool) -> None:
    """Send the rows from `start` on, one by one."""
    found = accelerators.device()
    for row in rows()[start:]:
        sender.send(_measured(row, found, quick))


def _measured(row: "Row", device: Device | None, quick: bool) -> Claim:
    if device is None:
        return replace(row.empty(), note=f"not measured: {accelerators.NO_DEVICE}")
    try:
        return row.measure(device, quick)
    except Exception as error:  # the other rows are still worth having
        return replace(row.empty(), note=f"not measured: {type(error).__name__}: {error}"[:200])


def rows() -> list[Row]:
    """What is claimed. A band of a claim holds from its lower end."""
    tensor: list[Precision] = ["tf32", "bfloat16", "float16", "float8", "int8"]
    out = [_against(f"tensor cores, products of {SIZE}: {p}", 2, _products(p), p) for p in tensor]
    for precision in ("tf32", "float16"):
        faster = TorchEager(device=DEVICE, precision=precision, channels_last=True)
        name = f"tensor cores, resnet18 ×64: {precision}"
        out.append(_against(name, 2, _compared(_resnet, 64, TorchEager(device=DEVICE), faster), precision))
    eager, compiled = TorchEager(device=DEVICE), TorchCompile(device=DEVICE)
    graphs = {"cuda_graphs": True}
    small: dict[str, tuple[float, Any, Any]] = {
        "CUDA graphs, small network ×1": (1.5, eager, eager.model_copy(update=graphs)),
        "Inductor, small network ×1": (1, eager, compiled),
        "CUDA graphs on Inductor, small network ×1": (1.5, compiled, compiled.model_copy(update=graphs)),
        "2 streams, small network ×64": (1, eager, eager.model_copy(update={"streams": 2})),
        "memory pool over none, small network ×64": (
            1.2,
            eager.model_copy(update={"memory_pool": "none"}),
            eager,
        ),
        "expandable memory pool, small network ×64": (
            0.95,
            eager,
            eager.model_copy(update={"memory_pool": "expandable"}),
        ),
    }
    out += [
        _against(name, claimed, _compared(_small, 64 if "×64" in name else 1, slow, fast))
        for name, (claimed, slow, fast) in small.items()
    ]
    half = TorchEager(device=DEVICE, precision="float16", channels_last=True)
    streams = _compared(_resnet, 64, half, half.model_copy(update={"streams": 2}))
    out.append(_against("2 streams, resnet18 ×64 in fp16", 1, streams))
    out += [
        _against(f"against ONNX Runtime fp32, {name}", claimed, _compared(build, batch_size, STRONG, fast))
        for name, (claimed, build, batch_size, fast) in {
            "resnet18 ×64: its tf32": (2, _resnet, 64, STRONG.model_copy(update={"tf32": True})),
            "resnet18 ×64: torch fp16": (2, _resnet, 64, half),
            "small network ×1: its CUDA graphs": (1.5, _small, 1, STRONG.model_copy(update=graphs)),
            "small network ×1: torch's CUDA graphs": (
                1.5,
                _small,
                1,
                eager.model_copy(update=graphs),
            ),
        }.items()
    ]
    out.append(_row("utilisation at the best batch, resnet18 in fp16", 0.8, "share", _utilisation))
    return out


def _row(name: str, claimed: float, unit: str, found: Callable[[Row, Device, bool], Claim]) -> Row:
    row = Row(name, claimed, unit, lambda device, quick: found(row, device, quick))  # it knows its own name
    return row


def _against(
    name: str,
    claimed: float,
    ways: Callable[[], "contextlib.AbstractContextManager[tuple[Way, Way]]"],
    precision: Precision = "float32",
) -> Row:
    """A row of how many times faster the second way is; where a precision is lacking it is not measured."""

    def found(row: Row, device: Device, quick: bool) -> Claim:
        lacking = accelerators.lacking(precision, device.capability)
        if lacking:
            return replace(row.empty(), note=f"not measured: {lacking}")
        with ways() as (slow, fast):
            ratios = _ratios(slow, fast, rounds=7 if quick else 21)
        low, high = _bounds(ratios)
        return replace(
            row.empty(),
            measured=float(np.median(ratios)),
            low=low,
            high=high,
            samples=len(ratios),
            note=f"{device.name}, fp32 is IEEE's",
        )

    return _row(name, claimed, "× faster", found)


def _ratios(slow: Way, fast: Way, rounds: int) -> list[float]:
    """Time of the one over time of the other, per round; which comes first alternates."""
    calls = {id(way): _calls_for(way, ms=20) for way in (slow, fast)}
    out = []
    for number in range(rounds):
        pair = (slow, fast) if number % 2 else (fast, slow)
        ms = {id(way): _ms(way, calls[id(way)]) for way in pair}
        out.append(ms[id(slow)] / ms[id(fast)])
    return out


def _calls_for(way: Way, ms: float) -> int:
    """How many calls take about so long, once the way is warm."""
    _ms(way, 10)
    return max(3, int(ms / max(_ms(way, 10), 1e-3)))


def _ms(way: Way, calls: int) -> float:
    """The ms of one call, by events in the device's queue around all of them."""
    import torch

    _prepare(way)
    way.call()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    began.record()
    for _ in range(calls):
        way.call()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / calls


def _prepare(way: Way) -> None:
    """Set what torch keeps per process, which the other way may have changed."""
    if isinstance(way.settings, Accelerated):
        prepare(way.settings, threads=1)


def _bounds(ratios: Sequence[float]) -> tuple[float, float]:
    """Where the median lies at 95 %, by a bootstrap of the rounds."""
    drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _products(precision: Precision) -> Callable[[], Any]:
    """A product of two matrices in IEEE fp32, and in a precision of tensor cores."""

    @contextlib.contextmanager
    def ways() -> Iterator[tuple[Way, Way]]:
        import torch

        left, right = (torch.randn(SIZE, SIZE, device=DEVICE) for _ in range(2))
        tf32 = PLAIN.model_copy(update={"precision": "tf32"})
        settings = tf32 if precision == "tf32" else PLAIN
        yield Way(lambda: left @ right, PLAIN), Way(_product(precision, left, right), settings)

    return ways


def _product(precision: Precision, left: "torch.Tensor", right: "torch.Tensor") -> Callable[[], object]:
    """The product of two matrices as this precision's tensor cores take it; int8 and fp8 by column."""
    import torch

    if precision == "tf32":
        return lambda: left @ right
    if precision in ("float16", "bfloat16"):
        narrow = [matrix.to(getattr(torch, precision)) for matrix in (left, right)]
        return lambda: narrow[0] @ narrow[1]
    columns = right.t().contiguous()
    if precision == "int8":
        bytes_left, bytes_right = (
            (matrix * 32).clamp(-128, 127).to(torch.int8) for matrix in (left, columns)
        )
        return lambda: torch._int_mm(bytes_left, bytes_right.t())
    eights_left, eights_right = (matrix.to(torch.float8_e4m3fn) for matrix in (left, columns))
    one = torch.ones((), device=DEVICE)
    return lambda: torch._scaled_mm(
        eights_left, eights_right.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16
    )


def _compared(
    build: Callable[[], "tuple[nn.Module, torch.Tensor]"], batch_size: int, slow: Any, fast: Any
) -> Callable[[], Any]:
    """One network by two backends: its inputs on the device if both are torch's, else on the host."""

    @contextlib.contextmanager
    def ways() -> Iterator[tuple[Way, Way]]:
        import torch

        sample = build()[1]
        feeds = {"x": sample.repeat(batch_size, *[1] * (sample.dim() - 1))}
        first, second = (backend.load(_artifact(build, _as_compiled(backend))) for backend in (slow, fast))
        with torch.inference_mode():
            if STRONG.name in (slow.name, fast.name):
                arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
                yield Way(lambda: first.run(arrays), slow), Way(lambda: second.run(arrays), fast)
            else:
                feeds = {name: tensor.to(DEVICE) for name, tensor in feeds.items()}
                yield Way(lambda: first.call(feeds), slow), Way(lambda: second.call(feeds), fast)

    return ways


def _as_compiled(backend: Any) -> Any:
    """The backend without what it does only once it is loaded."""
    later = {"cuda_graphs": False, "streams": 1, "memory_pool": "caching", "tf32": False}
    return backend.model_copy(update={k: v for k, v in later.items() if k in type(backend).model_fields})


_FOLDER = TemporaryDirectory(prefix="pareflow-")


@functools.cache
def _artifact(build: Callable[[], "tuple[nn.Module, torch.Tensor]"], backend: Any) -> Path:
    """A network compiled by a backend: once, since Inductor takes its time. Raises: what it fails with."""
    reason = backend.unavailable() or backend.unfit()
    if reason:
        raise RuntimeError(reason)
    source, artifact = (Path(mkdtemp(dir=_FOLDER.name)) for _ in range(2))
    module, sample = build()
    network.save(_FORMS[backend.form](module, sample), backend.form, source)
    backend.compile(source, artifact)
    return artifact


def _graph(module: "nn.Module", sample: "torch.Tensor") -> Any:
    """The network as the form `onnx` has it, for any batch."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=1024)
    exported = torch.onnx.export(
        module,
        (sample.repeat(2, *[1] * (sample.dim() - 1)),),
        input_names=["x"],
        output_names=["output"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    assert exported is not None  # dynamo gives a program
    return exported.model_proto


def _program(module: "nn.Module", sample: "torch.Tensor") -> Any:
    """The network as the form `exported` has it: one mapping in, one out, and any batch."""
    import torch

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"output": self.network(*feeds.values())}

    feeds = {"x": sample.repeat(2, *[1] * (sample.dim() - 1))}
    batch = torch.export.Dim.DYNAMIC(min=1, max=1024)
    return torch.export.export(Named().eval(), (feeds,), dynamic_shapes=({"x": {0: batch}},))


_FORMS: dict[str, Callable[..., Any]] = {
    "torch": lambda module, sample: module,
    "exported": _program,
    "onnx": _graph,
}


def _resnet() -> "tuple[nn.Module, torch.Tensor]":
    import torch
    from zoo.networks import resnet18

    torch.manual_seed(0)
    return resnet18().eval(), torch.randn(1, 3, 224, 224)


def _small() -> "tuple[nn.Module, torch.Tensor]":
    """Many small kernels: what a device waits for is their launch."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(256, 256), nn.LayerNorm(256), nn.GELU()) for _ in range(24)]
    return nn.Sequential(*blocks).eval(), torch.randn(1, 256)


def _utilisation(row: Row, device: Device, quick: bool) -> Claim:
    """The share of time in which the device computed, at the batch that answers most samples per second."""
    backend = TorchEager(device=DEVICE, precision="float16", channels_last=True)
    rates = {}
    for batch_size in (1, 16, 64, 256) if quick else (1, 4, 16, 32, 64, 128, 256, 512):
        with _compared(_resnet, batch_size, backend, backend)() as (way, _):
            rates[batch_size] = batch_size / _ms(way, 20)
    best = max(rates, key=rates.__getitem__)
    with _compared(_resnet, best, backend, backend)() as (way, _):
        shares = _watched(way)
    if not shares:
        return replace(row.empty(), note="not measured: neither pynvml nor nvidia-smi tells it")
    note = f"{device.name}: batch {best}, {rates[best] * 1000:.0f} per second, inputs on the device; "
    note += "low and high: the least and the largest reading"
    low, high = min(shares), max(shares)
    return replace(
        row.empty(), measured=float(np.mean(shares)), low=low, high=high, samples=len(shares), note=note
    )


def _watched(way: Way) -> list[float]:
    """Readings of the device's utilisation while it is kept busy; the first second does not count."""
    import torch

    read, shares, done = _reader(), list[float](), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            share = read()
            if share is not None:
                shares.append(share)

    _prepare(way)
    deadline = time.monotonic() + 1 + WATCH_S
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        while time.monotonic() < deadline:
            way.call()
            torch.cuda.synchronize()
    finally:
        done.set()
        watcher.join()
    return shares[5:]


def _reader() -> Callable[[], float | None]:
    """Reads the utilisation, 0 to 1: by NVML, else by `nvidia-smi`; None where neither tells."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetUtilizationRates(handle)
    except Exception:  # not installed, or it does not tell: a MIG slice, for one
        return _by_command
    return lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100


def _by_command() -> float | None:
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return float(done.stdout.split()[0]) / 100
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


if __name__ == "__main__":
    main("gpu", measure)
