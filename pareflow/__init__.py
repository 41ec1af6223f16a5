"""pareflow: the fastest variant of your model that provably meets its SLA, or a plain no.

Importing it fills the catalog; heavy libraries are imported by the members when they are used.
"""

from pareflow import compiler, huggingface, model, onnx_file, runtime

__all__ = ["compiler", "huggingface", "model", "onnx_file", "runtime"]
__version__ = "0.1.0"
