"""Apache TVM: the graph compiled to machine code of its own, in a worker environment."""

import shutil
from typing import ClassVar

from pydantic import Field

from pareflow import network
from pareflow.compiler.worker import WorkerBackend


class Tvm(WorkerBackend):
    """Compile the ONNX graph with TVM's Relax, for this processor.

    Untuned code is slow, on a transformer 92 times slower than ONNX Runtime's (measured before):
    loops lie as they were written down, on one thread. `tuning_minutes` would let MetaSchedule try schedules
    and keep the fastest; the wheel holds it, but in 0.27.0.post1 it dies of SIGSEGV when it begins, so that
    rows which ask for it are unavailable and say so.
    The batch is fixed, and larger ones are answered piece by piece. What has open axes is not tuned, so give
    the graph's other open axes a `length`.

    Source: Shao et al., 2022, arXiv:2205.13603; Lai et al., 2023, arXiv:2311.02103; TVM 0.27's wheel holds
    both, and LLVM.
    """

    name: ClassVar[str] = "tvm"
    form: ClassVar[network.Form] = "onnx"

    tuning_minutes: float = Field(default=0, ge=0, description="time for trying schedules; 0 tries none")
    batch_size: int = Field(default=1, ge=1, description="samples that the executable takes at once")
    length: int | None = Field(
        default=None, ge=1, description="the size of other axes that are open; null leaves them open"
    )

    @classmethod
    def unavailable(cls) -> str | None:
        if shutil.which("g++") or shutil.which("clang++") or shutil.which("c++"):
            return super().unavailable()
        return "there is no C++ compiler (g++, clang++ or c++), which links what TVM compiles"

    def unfit(self) -> str | None:
        return (
            "MetaSchedule in TVM 0.27.0.post1 dies of SIGSEGV when it tunes" if self.tuning_minutes else None
        )
