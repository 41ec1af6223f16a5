"""Which registered versions start which pipeline: rules as data, from a YAML of `mlflow/`."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pareflow import spec

OWN_TAGS = ("pareflow.content_sha256", "pareflow.run")
"""What pareflow's own versions carry: a pipeline that started itself would never end."""


@dataclass(frozen=True)
class Registered:
    """A version as the registry tells it now; `created_ms` since 1970."""

    name: str
    version: str
    ready: bool
    created_ms: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    @property
    def own(self) -> bool:
        """Whether pareflow registered it."""
        return any(tag in self.tags for tag in OWN_TAGS)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Rule(_Part):
    """The versions that it names start a run of its deployment."""

    model: Annotated[str, Field(min_length=1)]
    alias: str | None = Field(default=None, description="only the version that it points at")
    tags: Mapping[str, str] = Field(default={}, description="that the version must have, with these values")
    deployment: Annotated[str, Field(pattern="^[^/]+/[^/]+$")] = "pipeline/on-demand"
    parameters: Mapping[str, Any]

    @field_validator("parameters")
    @classmethod
    def _names_a_pipeline(cls, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        if not isinstance(parameters.get("config"), str):
            raise ValueError("`parameters` must name the pipeline YAML as `config`")
        return parameters

    @property
    def config(self) -> Path:
        return Path(self.parameters["config"])

    @property
    def target(self) -> Path | None:
        """The device profile, where the rule names one."""
        target = self.parameters.get("target")
        return None if target is None else Path(target)

    def names(self, version: Registered) -> bool:
        return (
            fnmatchcase(version.name, self.model)
            and (self.alias is None or self.alias in version.aliases)
            and all(version.tags.get(tag) == value for tag, value in self.tags.items())
        )

    def key(self, registry: str, version: Registered) -> str:
        """What the one flow run of a version is known by, of the registry at this address.

        Prefect's server may work for several, whose models share names, and has one list of keys per flow.
        """
        return f"{registry} {self.deployment} {version.name}:{version.version}"


class Rules(_Part):
    """All of them; the first that names a version counts."""

    rules: tuple[Rule, ...]
    newest_days: float = Field(default=7, gt=0, description="how far back missed versions are looked for")

    def chosen(self, version: Registered) -> Rule | None:
        """The rule for a version; None for what pareflow registered itself, whatever the rules say."""
        if version.own:
            return None
        return next((rule for rule in self.rules if rule.names(version)), None)

    def may_name(self, model: str) -> bool:
        """Whether some rule is about versions of this model."""
        return any(fnmatchcase(model, rule.model) for rule in self.rules)

    def check(self) -> None:
        """Raises: InputError, SpecError unless every pipeline that is named can be run."""
        for rule in self.rules:
            spec.read(rule.config, rule.target)


def read(path: Path) -> Rules:
    """The rules in a YAML file. Raises: InputError if it cannot be read, SpecError with every problem."""
    return spec.read_part(Rules, path, "the rules of triggers", "Name another with --rules")
