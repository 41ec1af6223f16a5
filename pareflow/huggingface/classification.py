"""Any text- or image-classification checkpoint, on any labelled dataset."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from pareflow.errors import WorkloadError
from pareflow.huggingface import hub, image, labelled, text
from pareflow.variant import Step
from pareflow.workload import Arrays, LoadedWorkload, Samples, Splits, Workload

if TYPE_CHECKING:
    from torch import nn

    from pareflow.huggingface.checkpoint import Task

_PACKED = "checkpoint"
_DECISIVE = (".safetensors", ".bin", ".json", ".txt", ".model")
_UNNAMED = {"0": "LABEL_0", "1": "LABEL_1"}
"""transformers' default, which it leaves out of config.json."""

_UNREAD = {
    "image_column": ("max_length", "pad_to_length"),
    "files": ("dataset_config", "dataset_revision"),
    "dataset": ("encoding",),
}
"""By what is given, the settings that are for its alternative."""


class HuggingFace(Workload):
    """A fine-tuned transformers checkpoint and the data that judges it.

    Samples are texts, or images as the base64 text of their files. Paths start from the YAML's folder.
    """

    name: ClassVar[str] = "huggingface"
    serving_requires: ClassVar[tuple[str, ...]] = ("tokenizers", "pillow")

    checkpoint: str = Field(description="hub id, or folder, of a sequence- or image-classification model")
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub checkpoint")
    dataset: str | None = Field(default=None, description="hub id, or folder, of a dataset")
    dataset_config: str | None = Field(
        default=None, description="which configuration, where a dataset has several"
    )
    dataset_revision: str | None = Field(default=None, description="commit, tag or branch of a hub dataset")
    files: dict[str, str] | None = Field(
        default=None, description="instead of a dataset: csv, tsv, json(l) or parquet file per split"
    )
    encoding: str = Field(default="utf-8", description="of csv, tsv and json files")
    text_column: str | None = Field(default=None, description="column of the texts")
    image_column: str | None = Field(default=None, description="column of the images, or of their paths")
    label_column: str = Field(default="label", description="column of the labels, numbers or names")
    label_names: str | None = Field(
        default=None,
        description="file with the classes in order, a JSON list or one per line; default: config.json",
    )
    train_split: str = Field(
        default="train", description="split that train, calibration and search are cut from"
    )
    verdict_split: str | None = Field(
        default=None,
        description="split that decides; default `test`, and where there is none a third of the data",
    )
    calibration_samples: int = Field(default=200, ge=1, description="samples that calibrate quantization")
    search_samples: int = Field(default=500, ge=1, description="samples that steer the search")
    verdict_samples: int | None = Field(
        default=None, ge=1, description="samples that decide, at most; default: all"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="tokens; longer texts are cut. Default: what the checkpoint takes"
    )
    pad_to_length: int | None = Field(
        default=None, ge=2, description="tokens; every batch has this shape. Default: its longest text"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        for first, second in (("text_column", "image_column"), ("dataset", "files")):
            given = [name for name in (first, second) if getattr(self, name) is not None]
            if len(given) != 1:
                raise ValueError(f"one of `{first}` and `{second}` must be given, but {len(given)} are")
        return self

    @model_validator(mode="after")
    def _none_is_for_the_other_kind(self) -> Self:
        for chosen, unread in _UNREAD.items():
            fields = type(self).model_fields
            given = [name for name in unread if getattr(self, name) != fields[name].default]
            if given and getattr(self, chosen) is not None:
                raise ValueError(f"`{given[0]}` must not be given with `{chosen}`, which does not read it")
        return self

    @cached_property
    def checkpoint_folder(self) -> Path:
        """The local folder of the checkpoint; downloads it once. Raises: as `hub.folder_of`."""
        return hub.checkpoint_folder(self.checkpoint, self.folder, self.revision)

    @cached_property
    def encoder(self) -> text.TextEncoder | image.ImageEncoder:
        """What turns samples into the network's inputs. Raises: WorkloadError where its files are missing."""
        if self.text_column is None:
            return image.ImageEncoder(self.checkpoint_folder)
        return text.TextEncoder(self.checkpoint_folder, self.max_length, self.pad_to_length)

    @cached_property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        if self.label_names is not None:
            return _names(self.folder / self.label_names)
        path = self.checkpoint_folder / "config.json"
        if not path.is_file():
            raise WorkloadError(
                "a checkpoint must hold config.json", f"there is none in {path.parent}", "Mend `checkpoint:`"
            )
        names: dict[str, str] = json.loads(path.read_text()).get("id2label", _UNNAMED)
        return [names[key] for key in sorted(names, key=int)]

    def sources(self) -> list[Path]:
        """The weights, configuration and tokenizer of the checkpoint."""
        return sorted(path for path in self.checkpoint_folder.iterdir() if path.suffix in _DECISIVE)

    def data(self) -> Splits:
        """Train, calibration and search from `train_split`; the verdict from `verdict_split`.

        Samples that occur twice are kept once, in the verdict split where they occur there: no leakage.
        """
        images = self.text_column is None
        columns = labelled.Columns(
            self.image_column or self.text_column or "", self.label_column, images, self.classes
        )
        with self.tables() as (tables, base):
            rows = labelled.rows(tables, self.train_split, columns, base)
            by_default = "test" if "test" in tables and self.train_split != "test" else None
            verdict = self.verdict_split or by_default
            test = None if verdict is None else labelled.rows(tables, verdict, columns, base)
        sizes = labelled.Sizes(self.calibration_samples, self.search_samples, self.verdict_samples)
        return labelled.split_rows(rows, test, sizes, self.seed, str if images else labelled.text_key)

    @contextmanager
    def tables(self) -> Iterator[tuple[Any, Path]]:
        """The data as a `datasets.DatasetDict`, and the folder that its relative image paths start from."""
        if self.files is not None:
            base = (self.folder / next(iter(self.files.values()))).parent
            with labelled.tables_of_files(self.files, self.folder, self.encoding) as tables:
                yield tables, base
        else:
            assert self.dataset is not None  # checked when made
            source = (self.dataset, self.folder, self.dataset_config, self.dataset_revision)
            with labelled.tables_of_dataset(*source) as tables:
                yield tables, self.folder

    def check(self, example: Arrays) -> None:
        """Raises: WorkloadError where the network is the checkpoint's own code, or has too few positions."""
        from pareflow.huggingface.checkpoint import check_code

        check_code(self.checkpoint_folder)
        asked = "pad_to_length" if self.pad_to_length else "max_length"
        length, most = getattr(self, asked), text.places(self.checkpoint_folder)
        if length is not None and most is not None and length > most:
            raise WorkloadError(
                f"`{asked}` must be at most {most}, as many tokens as the checkpoint's config.json has "
                "positions for",
                f"it is {length}",
                f"Set `{asked}: {most}` or less",
            )

    @property
    def task(self) -> "Task":
        """The name that transformers and optimum have for it."""
        return "image-classification" if self.text_column is None else "text-classification"

    def network(self) -> "nn.Module":
        """The checkpoint's model. Raises: WorkloadError where it is of another task, MissingExtraError."""
        from pareflow.huggingface.checkpoint import check_encoder, load_model
        from pareflow.huggingface.network import Classifier

        model = load_model(self.checkpoint_folder, self.task)
        check_encoder(self.encoder, self.checkpoint_folder)
        return Classifier(model, self.encoder.names)

    def export(self, network: "nn.Module", workload: LoadedWorkload, path: Path) -> None:
        """Through optimum, which knows each architecture's traps; where it knows none, as any torch module.

        Raises: ExportError.
        """
        from pareflow.huggingface import checkpoint
        from pareflow.huggingface.network import Classifier
        from pareflow.network import export_onnx

        if isinstance(network, Classifier) and checkpoint.optimum_knows(network.model, self.task):
            checkpoint.export(network.model, self.task, path)
        else:
            export_onnx(network, workload, path)

    def preprocess(self, samples: Samples) -> Arrays:
        """Texts to token ids, images to pixels, as the checkpoint's own files say."""
        return self.encoder(samples)

    def at_length(self, length: int) -> Workload:
        """This checkpoint on texts of exactly `length` tokens: longer ones cut, shorter ones padded.

        Raises: WorkloadError for images, and for lengths that the network does not take.
        """
        if self.text_column is None:
            return super().at_length(length)
        longest = text.longest(self.checkpoint_folder)
        least, most = (self.pad_to_length,) * 2 if self.pad_to_length else (2, longest)
        if not least <= length <= most:
            raise WorkloadError(
                "lengths that are swept must be ones that the network takes",
                f"{length} is not from {least} to {most}",
                "Mend `sweep.lengths`; `pad_to_length` leaves one only",
            )
        fixed = self.model_copy(update={"pad_to_length": length, "max_length": length})
        fixed.__dict__.pop("encoder", None)  # a copy holds what was cached
        return fixed

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """The class with the highest logit, shape (n,); its name is in `classes`."""
        logits = next(iter(outputs.values()))  # `output` in torch, `logits` in optimum's graph
        predictions: np.ndarray = logits.argmax(axis=1)
        return predictions

    def class_names(self) -> list[str]:
        return self.classes

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The batch; for texts that are not padded to one length, the sequence too."""
        varying = {0: "batch", 1: "sequence"} if self.text_column and not self.pad_to_length else {0: "batch"}
        return dict.fromkeys(self.encoder.names, varying)

    def pack(self, folder: Path) -> Step:
        """Copy the files that `encoder` and `classes` read; neither torch nor transformers is needed then."""
        target = folder / _PACKED
        target.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", *text.FILES, *image.FILES):
            if (self.checkpoint_folder / name).is_file():
                shutil.copy2(self.checkpoint_folder / name, target / name)
        (target / "labels.json").write_text(json.dumps(self.classes))
        packed = {"checkpoint": _PACKED, "revision": None, "label_names": f"{_PACKED}/labels.json"}
        return self.model_copy(update=packed).step


def _names(path: Path) -> list[str]:
    """The classes in a file: a JSON list, or one per line. Raises: WorkloadError."""
    if not path.is_file():
        raise WorkloadError("the file of `label_names` must exist", f"there is no {path}", "Mend the YAML")
    content = path.read_text()
    names = json.loads(content) if path.suffix == ".json" else content.split("\n")
    return [str(name).strip() for name in names if str(name).strip()]
