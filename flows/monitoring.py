"""Watch a served model: look, record, and act on what breaks a rule; for ever, or for so long."""

from pathlib import Path
from typing import Any

from flows.environment import api_key, set_environment

set_environment()  # before prefect is imported

from prefect import flow  # noqa: E402

from pareflow.errors import InputError  # noqa: E402
from pareflow.monitoring import exposition, rules  # noqa: E402
from tasks import flow_runs  # noqa: E402
from tasks.tracking import CONFIG, Tracker  # noqa: E402
from tasks.watching import Asked, Session, Told  # noqa: E402

BESIDE = "monitoring.yaml"
"""The rules of a pipeline, beside its YAML."""


@flow(name="monitoring", flow_run_name="{name}", persist_result=False, on_running=[flow_runs.claim])
def monitoring(
    name: str,
    url: str = "http://127.0.0.1:8000",
    rules: str | None = None,
    data_dir: str = ".pareflow",
    config: str | None = None,
    requests: str | None = None,
    labels: str | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Watch the model of this name behind `url`. What was seen, and each breach with what followed."""
    named = {"rules": rules, "config": config, "requests": requests, "labels": labels}
    paths = {what: None if path is None else Path(path) for what, path in named.items()}
    return monitor(Asked(name, url, Path(data_dir), **paths, seconds=seconds, api_key=api_key()), print)


def monitor(asked: Asked, told: Told) -> dict[str, Any]:
    """The same as a plain function; `told` hears each breach, and what goes wrong on the way.

    Raises: InputError where the rules, the server or the version cannot be monitored; TransientError.
    """
    reading = exposition.read(asked.url, asked.name, asked.api_key)
    tracker = Tracker.open(asked.data_dir)
    config = asked.config or _pipeline(tracker, asked.name, reading.version)
    chosen = _rules(asked.rules, config)
    return Session(asked, tracker, chosen, config, told).follow(reading)


def _pipeline(tracker: Tracker, name: str, version: str) -> Path | None:
    """The pipeline YAML that a registered version came from, where it is at hand."""
    if not version.isdecimal():
        return None  # a package in a folder
    path = Path(tracker.resolve(f"models:/{name}/{version}").tags.get(CONFIG, ""))
    return path if path.is_file() else None


def _rules(named: Path | None, config: Path | None) -> rules.Rules:
    """Those that are named, else those beside the pipeline. Raises: InputError, SpecError."""
    if named is not None:
        return rules.read(named)
    beside = None if config is None else config.parent / BESIDE
    if beside is not None and beside.is_file():
        return rules.read(beside)
    raise InputError(
        "there must be rules of monitoring",
        f"none are named, and there is no {beside or BESIDE}",
        "Name some with --rules; configs/monitoring/rules.yaml comes with pareflow",
    )
