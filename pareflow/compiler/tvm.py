"""Apache TVM: the graph compiled to machine code of its own, in a worker environment."""

import shutil
from typing import ClassVar

from pydantic import Field

from pareflow import network
from pareflow.compiler.worker import WorkerBackend


class Tvm(WorkerBackend):
    """Compile the ONNX graph with TVM's Relax, for this processor.

    Its code is untuned and slow, on a transformer 92 times slower than ONNX Runtime's (measured before):
    loops lie as they were written down, on one thread. MetaSchedule, which tries schedules, dies of SIGSEGV
    when it begins to (TVM 0.27.0.post1), so it is not used.
    The batch is fixed, and larger ones are answered piece by piece; other open axes may be fixed by `length`.

    Source: Lai et al., 2023, arXiv:2311.02103 (Relax).
    """

    name: ClassVar[str] = "tvm"
    form: ClassVar[network.Form] = "onnx"
    parts: ClassVar[tuple[str, ...]] = ("schedules",)

    batch_size: int = Field(default=1, ge=1, description="samples that the executable takes at once")
    length: int | None = Field(
        default=None, ge=1, description="the size of other axes that are open; null leaves them open"
    )
    tuning_s: float = Field(
        default=0,
        ge=0,
        description="seconds for which faster schedules of its kernels are searched for; 0: none are",
    )

    @property
    def reproducible(self) -> bool:
        return not self.tuning_s  # schedules are chosen by timing them

    @classmethod
    def unavailable(cls) -> str | None:
        if shutil.which("g++") or shutil.which("clang++") or shutil.which("c++"):
            return super().unavailable()
        return "there is no C++ compiler (g++, clang++ or c++), which links what TVM compiles"
