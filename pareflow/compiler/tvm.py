"""Apache TVM: the graph compiled to machine code of its own, in a worker environment."""

import shutil
from typing import ClassVar

from pydantic import Field

from pareflow import network
from pareflow.compiler.worker import WorkerBackend


class Tvm(WorkerBackend):
    """Compile the ONNX graph with TVM's Relax, for this processor.

    Untuned its code is slow, on a transformer 92 times slower than ONNX Runtime's (measured before), on
    MobileNetV2 21 times: loops lie as they were written down, on one thread.

    `tuning_s` is for schedules: ways to tile, vectorize and unroll a kernel's loops, drawn from
    MetaSchedule's spaces; the fastest that gives the untuned numbers is kept. Measured on one thread of a
    busy machine: 60 s made a small CNN 17 times faster and an MLP 2.5 times, 120 s MobileNetV2 6.6 times.
    All remain three times slower than ONNX Runtime; of the small two's 0.5 ms the worker's pipe takes 0.2.
    The search ends with its budget. Importing TVM, and compiling what was found, lie outside: 6 s for small
    networks, 40 for MobileNetV2. Measured times decide, so tuned twice a network gets other schedules, and
    its answers other roundings. Kernels with open sizes stay untuned. MetaSchedule's own tuner is not used:
    it dies of SIGSEGV as it begins (TVM 0.27.0.post1).

    The batch is fixed, and larger ones are answered piece by piece; other open axes may be fixed by `length`.

    Source: Lai et al., 2023, arXiv:2311.02103 (Relax); of tuning, see `workers/schedules.py`.
    """

    name: ClassVar[str] = "tvm"
    form: ClassVar[network.Form] = "onnx"
    runtime: ClassVar[tuple[str, ...]] = ("apache-tvm",)
    parts: ClassVar[tuple[str, ...]] = ("forked", "schedules")

    batch_size: int = Field(default=1, ge=1, description="samples that the executable takes at once")
    length: int | None = Field(
        default=None, ge=1, description="the size of other axes that are open; null leaves them open"
    )
    tuning_s: float = Field(
        default=0,
        ge=0,
        description="seconds for which faster schedules of its kernels are searched for; 0: none are",
    )

    @classmethod
    def unavailable(cls) -> str | None:
        if shutil.which("g++") or shutil.which("clang++") or shutil.which("c++"):
            return super().unavailable()
        return "there is no C++ compiler (g++, clang++ or c++), which links what TVM compiles"
