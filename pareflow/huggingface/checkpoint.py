"""A checkpoint's model in torch, and its way to ONNX. Imports transformers, and optimum for the export."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pareflow.errors import ExportError, WorkloadError
from pareflow.huggingface.hub import missing, summary
from pareflow.huggingface.image import ImageEncoder
from pareflow.huggingface.text import TextEncoder, read_json
from pareflow.workload import Samples

Task = Literal["text-classification", "image-classification"]
_HEADS: dict[Task, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}
_AS_IT_LIES: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""No hub is asked, nor whoever sits there whether a checkpoint's own code may run."""
_WRITE_A_WORKLOAD = "Write a workload.py whose `network()` loads it: no code of checkpoints is run here"


def check_code(folder: Path) -> None:
    """Raises: WorkloadError where only code of the checkpoint's own makes its network."""
    if not _has_code(folder):
        return
    kind = read_json(folder / "config.json").get("model_type")
    with quiet() as transformers:
        if kind not in transformers.CONFIG_MAPPING:
            raise WorkloadError(
                "transformers must know the checkpoint's architecture",
                f"`{kind}` of {folder} is in code of its own (`auto_map` in its config.json)",
                _WRITE_A_WORKLOAD,
            )


def _has_code(folder: Path) -> bool:
    """Whether the checkpoint comes with code, which it may do without where transformers has the same."""
    return "auto_map" in read_json(folder / "config.json")


def load_model(folder: Path, task: Task) -> Any:
    """The fine-tuned model, in float32. Raises: WorkloadError if it is of another task, MissingExtraError."""
    import torch

    with quiet() as transformers:
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **_AS_IT_LIES)
            _check_task(config, folder, task)
            config.return_dict, config.torchscript = True, False  # logits are read by name
            model, found = getattr(transformers, _HEADS[task]).from_pretrained(
                folder, config=config, **_AS_IT_LIES, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise WorkloadError(
                f"transformers must load {folder} for {task}",
                f"it raised {summary(error)}",
                _WRITE_A_WORKLOAD if _has_code(folder) else "Mend `checkpoint:`, or the files in that folder",
            ) from error
    if found["missing_keys"]:
        raise _other_task(
            folder, task, f"it has no weights for {', '.join(sorted(found['missing_keys'])[:3])}"
        )
    return model.eval()


def _check_task(config: Any, folder: Path, task: Task) -> None:
    head = _HEADS[task].removeprefix("AutoModel")
    architectures = config.architectures or []
    if architectures and not any(name.endswith(head) for name in architectures):
        raise _other_task(folder, task, f"it is a {', '.join(architectures)}")
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise _other_task(folder, task, f"it gives {config.num_labels} values for {config.problem_type}")


def _other_task(folder: Path, task: Task, found: str) -> WorkloadError:
    return WorkloadError(
        f"{folder} must hold a checkpoint fine-tuned for {task}, with one class per sample",
        found,
        "Fine-tune it first, or write a workload.py with a `network` and a `train` of its own",
    )


def check_encoder(encoder: TextEncoder | ImageEncoder, folder: Path) -> None:
    """Compare the preprocessing that will be served with transformers' own, on an example.

    Raises: WorkloadError where they differ: the checkpoint's files say something that is not read here.
    """
    samples: Samples = ["Déjà vu: 2 EXAMPLES, of unequal length.", "long " * 1000]
    if isinstance(encoder, ImageEncoder):
        samples = np.random.default_rng(0).integers(0, 256, (1, 75, 100, 3), dtype=np.uint8)
    theirs = _transformers_inputs(encoder, samples, folder)
    for name, ours in encoder(samples).items():
        if name in theirs and (ours.shape != theirs[name].shape or np.abs(ours - theirs[name]).max() > 1e-4):
            raise WorkloadError(
                "preprocessing without transformers must equal transformers' own",
                f"`{name}` differs for the checkpoint in {folder}",
                "Load its tokenizer or image processor with transformers and `save_pretrained` it there, "
                "or write a workload.py with a `preprocess` of its own",
            )


def _transformers_inputs(encoder: TextEncoder | ImageEncoder, samples: Samples, folder: Path) -> Any:
    """What transformers makes of the samples, by input name."""
    with quiet() as transformers:
        try:
            if isinstance(encoder, ImageEncoder):
                processor = transformers.AutoImageProcessor.from_pretrained(
                    folder, **_AS_IT_LIES, use_fast=False
                )
                return processor(list(samples), return_tensors="np")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_AS_IT_LIES)
            length = {"truncation": True, "max_length": encoder.max_length, "padding": True}
            return tokenizer(list(samples), return_tensors="np", **length)
        except (OSError, ValueError, KeyError) as error:
            raise WorkloadError(
                f"transformers must load the tokenizer or image processor in {folder}",
                f"it raised {summary(error)}",
                "Mend the files in that folder",
            ) from error


def optimum_knows(model: Any, task: Task) -> bool:
    """Whether optimum can export this architecture for this task."""
    try:
        import optimum.exporters.onnx.model_configs  # noqa: F401  (it fills the manager)
        from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise missing("optimum-onnx") from error
    try:
        return task in TasksManager.get_supported_tasks_for_model_type(
            model.config.model_type, "onnx", library_name="transformers"
        )
    except (KeyError, ValueError, AttributeError):
        return False


def export(model: Any, task: Task, path: Path) -> None:
    """Write the model as a graph, with optimum's patches of what cannot be traced. Raises: ExportError."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's deprecation and tracing notes; its graph is checked
        from optimum.exporters.onnx import export as write
        from optimum.exporters.tasks import TasksManager

        configure = TasksManager.get_exporter_config_constructor(
            "onnx", model=model, task=task, library_name="transformers"
        )
        config = configure(model.config)
        try:
            write(model.eval(), config, path, opset=config.DEFAULT_ONNX_OPSET)
        except Exception as error:
            raise ExportError(
                "the original must become an ONNX graph",
                f"optimum raised {summary(error)}",
                "Rewrite the operation it names, or give the workload an `export` method",
            ) from error


@contextmanager
def quiet() -> Iterator[Any]:
    """transformers, without its progress bars and its notes on what every load does; errors still show."""
    try:
        import transformers
    except ImportError as error:
        raise missing("transformers") from error
    verbosity, shown = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        transformers.logging.set_verbosity(verbosity)
        if shown:
            transformers.logging.enable_progress_bar()
