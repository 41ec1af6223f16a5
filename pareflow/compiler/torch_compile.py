"""torch.compile's compiler, Inductor, ahead of time: a library of kernels made for this machine."""

import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pareflow import network
from pareflow.comparison import first_line
from pareflow.compiler import autocast, signature
from pareflow.compiler.backend import Backend
from pareflow.compiler.on_torch import HALVES, called, from_torch, prepare, to_torch
from pareflow.errors import UnsuitableError
from pareflow.hardware.accelerators import Accelerated
from pareflow.measurement import Ran
from pareflow.workload import Arrays

PACKAGE = "package.pt2"
FACTS = "compiled.json"
"""Beside the package: what compiling cost, and what the package takes."""

_FIRST_CUDA = "cuda:0"
"""With its number: programs assert where their tensors lie, and are told with it."""


class TorchCompile(Accelerated, Backend):
    """Run what Inductor makes of the network when it is compiled: C++ on processors, Triton on CUDA.

    Nothing is compiled when it is loaded or when a batch has another size. It needs a C++ compiler where it
    is compiled, and the same processor where it runs. Compiling takes half a minute for a small network
    (measured); its seconds are told with what ran. In a half precision products are computed in it, and what
    loses by it stays fp32, as under torch's autocast.
    Source: Ansel et al., 2024, PyTorch 2, ASPLOS (Inductor); PyTorch, "AOTInductor".
    On CUDA: not to be relied on. On an H200 with torch 2.11 a convolutional network ran and agreed, a chain
    of linear layers killed the process as its package was loaded; no speed was measured.
    """

    name: ClassVar[str] = "torch_compile"
    form: ClassVar[network.Form] = "exported"
    requires: ClassVar[tuple[str, ...]] = ("torch",)

    frozen: bool = Field(default=True, description="weights are laid out for the kernels, as constants")
    channels_last: bool = Field(
        default=True, description="where Inductor finds it faster, channels lie innermost in convolutions"
    )
    max_autotune: bool = Field(default=False, description="kernels are tried out: slower to compile")

    @classmethod
    def unavailable(cls) -> str | None:
        compiler = os.environ.get("CXX", "g++")
        absent = None if shutil.which(compiler) else f"there is no C++ compiler `{compiler}`"
        return super().unavailable() or absent

    def unfit(self) -> str | None:
        return self.device_unfit()

    def compile(self, source: Path, into: Path) -> None:
        prepare(self, self.threads)
        program = network.load("exported", source)
        takes = signature.of(program)
        began = time.monotonic()
        try:
            self._package(program, into / PACKAGE)
        except Exception as error:
            raise UnsuitableError(
                "Inductor must be able to compile the network",
                f"it raised {type(error).__name__}: {first_line(error)}",
                "The log holds the stack trace; take onnxruntime, which needs no compiler",
            ) from error
        facts = {"compile_s": time.monotonic() - began, "takes": takes}
        (into / FACTS).write_text(json.dumps(facts))

    def _package(self, program: Any, path: Path) -> None:
        """Compile in a fresh cache: what other networks left behind would make its cost look smaller."""
        from torch._inductor import aoti_compile_and_package
        from torch._inductor.utils import fresh_cache
        from torch.export.passes import move_to_device_pass

        if self.device != "cpu":
            program = move_to_device_pass(program, _FIRST_CUDA)
        if self.precision in HALVES:
            program = autocast.exported(program, self.precision, self.device)
        settings = {
            "freezing": self.frozen,
            "layout_optimization": self.channels_last,
            "max_autotune": self.max_autotune,
            "cpp.threads": self.threads,
            "compile_threads": 1,  # a pool of compilers would outlive the variant
        }
        with TemporaryDirectory() as folder, fresh_cache(dir=folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notes on its own parts
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)

    def load(self, artifact: Path) -> "CompiledSession":
        from torch._inductor import aoti_load_package

        prepare(self, self.threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notes on its own parts
            run = aoti_load_package(str(artifact / PACKAGE), run_single_threaded=self.cuda_graphs)
        return CompiledSession(run, json.loads((artifact / FACTS).read_text()), self)


class CompiledSession:
    """A loaded package: one mapping of tensors in, another out."""

    def __init__(self, run: Any, facts: Mapping[str, Any], settings: TorchCompile) -> None:
        self.call, self._facts, self._settings = called(run, settings), facts, settings

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: WorkloadError; the package itself would read past the end of arrays."""
        import torch

        given = signature.checked(feeds, self._facts["takes"])
        with torch.inference_mode():
            return from_torch(self.call(to_torch(given, self._settings.device)))

    def ran(self) -> Ran:
        import torch

        return Ran(
            "torch_inductor",
            torch.__version__,
            self._settings.precision,
            _FIRST_CUDA if self._settings.device == "cuda" else "cpu",
            torch.get_num_threads(),
            f"compiled in {self._facts['compile_s']:.1f} s",
        )
