"""Which registered model a command is about: its name, `models:/NAME@ALIAS`, or its pipeline's YAML."""

import re
from pathlib import Path

from pareflow import spec
from pareflow.errors import InputError


def model_name(target: str) -> str:
    """The name of the model. An alias is left out: which version is moved or watched is the command's to say.

    Raises: InputError for one version's number, which is no whole model, and for what is no name; as
    `spec.read` for a YAML.
    """
    path = pipeline_file(target)
    if path is not None:
        return spec.read(path).name
    matched = re.fullmatch(r"models:/([^/@]+)(?:@[^/@]+)?", target)
    name = matched[1] if matched else target
    if re.fullmatch(spec.NAME, name) is None:
        raise InputError(
            "a model must be named NAME, models:/NAME@ALIAS, or by its pipeline's YAML",
            f"got `{target}`",
            "See `pareflow list versions`",
        )
    return name


def pipeline_file(target: str) -> Path | None:
    """The YAML that is named; None for a model, whose name has neither dots nor slashes."""
    of_the_registry = target.startswith("models:")
    return Path(target) if not of_the_registry and ("." in target or "/" in target) else None
