"""Where a checkpoint or a dataset lies: in a local folder, or in the snapshot of a hub repository."""

from pathlib import Path
from typing import Literal

from pareflow.errors import EnvironmentUnfitError, MissingExtraError, WorkloadError

Kind = Literal["model", "dataset"]
_TIMEOUT_S = 10
_DESCRIBING = ("*.json", "*.txt", "*.model")


def checkpoint_folder(name: str, base: Path, revision: str | None = None) -> Path:
    """The folder with a checkpoint's weights, configuration and tokenizer. Raises: as `folder_of`."""
    folder = folder_of(name, base, "model", revision, [*_DESCRIBING, "*.safetensors"])
    if not any(folder.glob("*.safetensors")):  # older repositories hold a pickle instead
        folder = folder_of(name, base, "model", revision, [*_DESCRIBING, "pytorch_model*.bin"])
    return folder


def folder_of(
    name: str, base: Path, kind: Kind, revision: str | None = None, patterns: list[str] | None = None
) -> Path:
    """The local folder `name`, relative to `base`; else the snapshot of the hub repository `name`.

    A snapshot that was downloaded before is used where no hub is reachable. Only files that match one of
    `patterns` are downloaded. Raises: WorkloadError if there is no such folder or repository,
    EnvironmentUnfitError if no hub is reachable, MissingExtraError.
    """
    local = base / Path(name).expanduser()
    if local.is_dir():
        return local
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise WorkloadError(
            f"the {kind} folder must exist", f"there is no {local}", "Mend its path in the YAML"
        )
    return _snapshot(name, local, kind, revision, patterns)


def _snapshot(name: str, local: Path, kind: Kind, revision: str | None, patterns: list[str] | None) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise missing("huggingface-hub") from error
    wrong = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
    try:
        return Path(
            snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=patterns, etag_timeout=_TIMEOUT_S
            )
        )
    except wrong as error:
        raise WorkloadError(
            f"the {kind} must be a local folder or a hub repository",
            f"there is no {local}, and the hub raised {summary(error)}",
            "Mend its name in the YAML; a private repository needs `HF_TOKEN`",
        ) from error
    except OSError as error:  # of the connection, and LocalEntryNotFoundError
        raise EnvironmentUnfitError(
            f"a hub must be reachable to download the {kind} `{name}`",
            f"there is no {local}, no earlier download, and {type(error).__name__} came back",
            "Go online once, or give a local folder",
        ) from error


def summary(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def missing(distribution: str) -> MissingExtraError:
    """The error for a library of the `huggingface` extra that is not installed."""
    return MissingExtraError(
        "Hugging Face checkpoints need the extra `huggingface`",
        f"`{distribution}` is not installed",
        "Run `pip install 'pareflow[huggingface]'`",
    )
