"""The pipeline that a registered version came from: its YAML holds the data and the SLA to judge it by."""

from pathlib import Path

from pareflow import spec
from pareflow.errors import InputError
from tasks.tracking import CONFIG, Tracker


def described(
    tracker: Tracker, name: str, version: str, config: Path | None
) -> tuple[spec.PipelineSpec, Path]:
    """The pipeline of a version, and its YAML: `config`, else where it lay when the version was registered.

    Raises: InputError, SpecError.
    """
    path = config or _noted(tracker, name, version)
    if not path.is_file():
        raise InputError(
            "the pipeline YAML that a version came from must be at hand: it holds the data and the SLA",
            f"there is no {path}",
            "Name it with --config",
        )
    found = spec.read(path)
    if found.name != name:
        raise InputError(f"{path} must describe {name}", f"it describes {found.name}", "Name another")
    return found, path


def _noted(tracker: Tracker, name: str, version: str) -> Path:
    """Where the YAML lay. Raises: InputError where the version does not say."""
    tags = tracker.version(name, version).tags
    if CONFIG not in tags:
        raise InputError(
            "a version must have been registered by pareflow, which notes where its pipeline YAML lay",
            f"models:/{name}/{version} has no tag {CONFIG}",
            "Register it by `pareflow optimize`, or name the YAML with --config where it was",
        )
    return Path(tags[CONFIG])
