"""What is to be done about a version in the registry: a rule's pipeline run for it, once."""

import time
from dataclasses import dataclass

from pareflow import spec
from pareflow.errors import InputError
from tasks import flow_runs, registry
from tasks.registries import without_secrets
from tasks.rules import Rules
from tasks.tracking import Tracker

_DAY_MS = 24 * 3600 * 1000
SKEW_MS = 60_000
"""By which the clocks of two servers may differ."""


@dataclass(frozen=True)
class Handled:
    """What came of a version: the flow run that is its own, or the reason why it has none.

    `new` says whether the run was started just now.
    """

    name: str
    version: str
    reason: str
    run_id: str | None = None
    new: bool = False


def handle(tracker: Tracker, rules: Rules, name: str, number: str) -> Handled:
    """The run of the rule that names a version, started unless it was. The registry is asked, not the sender.

    However often and from wherever it is called for a version, one run is started, by its key.
    A run that is older than the version was of a namesake: a model that was deleted, and registered anew.
    Raises: InputError where the rule's pipeline cannot be run; TransientError, TrackingError.
    """
    version = registry.registered(tracker, name, number)
    if version is None:
        return Handled(name, number, "the registry has no such version")
    if not version.ready:
        return Handled(name, number, "the registry does not call it ready")
    if version.own:
        return Handled(name, number, "pareflow registered it")
    rule = rules.chosen(version)
    if rule is None:
        return Handled(name, number, "no rule names it")
    spec.read(rule.config, rule.target)  # no run is started that could only fail
    tags = [f"models:/{name}/{number}"]
    key = rule.key(without_secrets(tracker.registry_uri).rstrip("/"), version)
    started = flow_runs.start(rule.deployment, rule.parameters, key, tags)
    if started.at_ms < version.created_ms - SKEW_MS:
        key = f"{key}:{version.created_ms}"
        started = flow_runs.start(rule.deployment, rule.parameters, key, tags)
    return Handled(name, number, f"{rule.deployment} for {rule.config}", started.run_id, started.new)


def missed(tracker: Tracker, rules: Rules) -> list[Handled]:
    """What was not heard of: the versions that rules name, whose runs were started now.

    One whose pipeline cannot be run has no run, and a reason; it does not keep the others from theirs.
    """
    found = []
    for name, number in _named(tracker, rules):
        try:
            handled = handle(tracker, rules, name, number)
        except InputError as error:
            found.append(Handled(name, number, str(error)))
        else:
            found += [handled] if handled.new else []
    return found


def _named(tracker: Tracker, rules: Rules) -> list[tuple[str, str]]:
    """The versions that are new enough, and those that an alias of a rule points at, whatever their age."""
    since_ms = int(time.time() * 1000 - rules.newest_days * _DAY_MS)
    wanted = {rule.alias for rule in rules.rules if rule.alias}
    aliased = [(name, number) for name, alias, number in registry.aliased(tracker) if alias in wanted]
    found = dict.fromkeys([*registry.newest(tracker, since_ms), *aliased])
    return [(name, number) for name, number in found if rules.may_name(name)]
