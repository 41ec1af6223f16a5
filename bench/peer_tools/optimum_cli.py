"""Optimum's command line: `optimum-cli onnxruntime quantize`, with the preset for this processor.

Source: huggingface.co/docs/optimum, ONNX Runtime's usage guides, "Quantizing a model to be used with
Optimum's CLI". Its presets quantize dynamically; static needs Python and a data set of the hub.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from job import Job, flags, main


def make(job: Job) -> None:
    """The command takes a folder of ONNX files, and leaves `model_quantized.onnx`."""
    source = job.output / "source"
    source.mkdir()
    shutil.copy(job.model, source / "model.onnx")
    command = [str(Path(sys.executable).parent / "optimum-cli"), "onnxruntime", "quantize"]
    made = job.output / "made"
    subprocess.run([*command, "--onnx_model", str(source), preset(), "-o", str(made)], check=True)
    (made / "model_quantized.onnx").rename(job.output / "model.onnx")


def preset() -> str:
    """The widest instructions that the processor has."""
    known = flags()
    if "avx512_vnni" in known:
        return "--avx512_vnni"
    return "--avx512" if "avx512f" in known else "--avx2"


if __name__ == "__main__":
    main(make)
