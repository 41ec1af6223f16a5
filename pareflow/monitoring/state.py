"""What a monitor remembers of its rules: in a file, so that the same command goes on after a kill."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pareflow import store
from pareflow.errors import StoreError
from pareflow.monitoring.evidence import Evidence
from pareflow.monitoring.labels import Place
from pareflow.monitoring.rules import Action, RuleName


@dataclass(frozen=True, slots=True)
class Breach:
    """A rule that is broken, by which version, and what is to follow."""

    rule: RuleName
    version: str
    estimate: float
    """In the window that was the last straw."""
    limit: float
    reason: str
    then: tuple[Action, ...]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Breach":
        return cls(**{**document, "then": tuple(document["then"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RuleState:
    """Where one rule stands. In a breach nothing is judged: enough `calm` looks under the limit end it."""

    evidence: Evidence = field(default_factory=Evidence)
    breached: bool = False
    calm: int = 0
    streak: int = 0
    """Windows in a row that drifted."""
    seen: int = 0
    hits: float = 0
    """Of all that was seen of this version, so much was an error, slow, otherwise, …: for the interval."""

    def fresh(self) -> "RuleState":
        """For another version: what this week may still spend stays."""
        return RuleState(self.evidence.restarted())

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RuleState":
        return cls(**{**document, "evidence": Evidence.from_json(document["evidence"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "evidence": self.evidence.to_json()}


@dataclass(frozen=True, slots=True)
class State:
    """All of it, of one served model."""

    version: str = ""
    rules: Mapping[RuleName, RuleState] = field(default_factory=dict)
    compared: str = ""
    """The last file of compared requests that was read."""
    labels: Place = field(default_factory=Place)
    """How far the labels were read."""
    looks: int = 0
    waiting: tuple[Breach, ...] = ()
    """Those whose rollback waits until the registry answers again."""
    untold: tuple[Mapping[str, Any], ...] = ()
    """Events that Prefect has not taken yet, of whichever version."""

    def of(self, rule: RuleName) -> RuleState:
        return self.rules.get(rule, RuleState())

    def having(self, rule: RuleName, state: RuleState) -> "State":
        return replace(self, rules={**self.rules, rule: state})

    def for_version(self, version: str) -> "State":
        """The same where it serves this version already; else with every rule fresh, no rollback waiting."""
        if version == self.version:
            return self
        fresh = {name: state.fresh() for name, state in self.rules.items()}
        return replace(self, version=version, rules=fresh, compared="", waiting=())

    def write(self, path: Path) -> None:
        document = {**asdict(self), "rules": {name: state.to_json() for name, state in self.rules.items()}}
        path.parent.mkdir(parents=True, exist_ok=True)
        store.replace(path, json.dumps(document, indent=1))

    @classmethod
    def read(cls, path: Path) -> "State":
        """What was written, or a new one. Raises: StoreError where it is damaged."""
        try:
            document = json.loads(path.read_text())
            rules = {name: RuleState.from_json(state) for name, state in document["rules"].items()}
            waiting = tuple(Breach.from_json(breach) for breach in document.get("waiting", ()))
            untold = tuple(document.get("untold", ()))
            labels = Place(**document["labels"])
            return cls(**{**document, "rules": rules, "waiting": waiting, "untold": untold, "labels": labels})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                "the state of a monitor must be readable",
                f"{path} is not: {error}",
                "Remove it: monitoring then starts anew",
            ) from error
