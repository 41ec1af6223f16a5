"""A small Llama that goes on with a text: given tokens, the next one.

Source: Eldan and Li, 2023, arXiv:2305.07759 (TinyStories); karpathy/tinyllamas, stories260K.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import WorkloadError
from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    from torch import nn


class Stories(Workload):
    """Rows of tokens from a text, and the token behind each row; 100 calibrate, 200 steer, 500 decide."""

    metric: ClassVar[str] = "agreement"

    weights: Path = Field(description="the network, as llama2.c reads it; relative to the YAML")
    vocabulary: Path = Field(description="its tokens, as llama2.c reads them")
    text: Path = Field(description="a text to go on with")
    length: int = Field(default=64, ge=2, le=512, description="tokens of a row")
    rows: int = Field(default=900, ge=10, description="how many rows are cut from the text")

    def data(self) -> Splits:
        """Rows (n, length) that each begin anew, and the tokens that come next."""
        from .tokenizer import START, Tokenizer

        tokens: list[int] = []
        known = Tokenizer(self._existing(self.vocabulary), 512)
        with self._existing(self.text).open(encoding="utf-8") as lines:
            for line in lines:
                tokens += known.encode(line)
                if len(tokens) >= self.rows * self.length:
                    break
        count = len(tokens) // self.length
        cut = np.unique(np.asarray(tokens[: count * self.length]).reshape(count, self.length), axis=0)
        starts = np.full((len(cut), 1), START)
        rows = Split(np.concatenate([starts, cut[:, :-1]], axis=1), cut[:, -1])
        verdict = max(0, min(500, len(rows) - 301))
        return Splits.cut(rows, calibration=100, search=200, verdict=verdict, seed=self.seed)

    def _existing(self, path: Path) -> Path:
        found = self.folder / path
        if not found.is_file():
            raise WorkloadError(
                "the network, its vocabulary and a text must be at hand",
                f"there is no {found}",
                "Fetch stories260K.bin and tok512.bin from karpathy/tinyllamas",
            )
        return found

    def network(self) -> "nn.Module":
        from .network import read

        return read(self._existing(self.weights))

    def sources(self) -> list[Path]:
        return [self._existing(self.weights)]

    def preprocess(self, samples: Samples) -> Arrays:
        """Rows of token numbers, as they are; the last `length` of longer ones."""
        return {"tokens": np.asarray(samples, np.int64)[:, -self.length :]}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """The most likely token behind each row, shape (n,)."""
        predictions: np.ndarray = outputs["output"][:, -1].argmax(axis=-1)
        return predictions

    def at_length(self, length: int) -> Workload:
        """This workload on the last `length` tokens of each row. Raises: WorkloadError."""
        if not 2 <= length <= self.length:
            return super().at_length(length)
        return self.model_copy(update={"length": length})

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", 1: "tokens"} for name in ("tokens", "output")}
