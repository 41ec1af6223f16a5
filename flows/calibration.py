"""`pareflow calibrate`: the thresholds of a serving plan, for the registered versions that it serves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pareflow import spec
from pareflow.collection import holding
from pareflow.errors import InputError
from pareflow.serving import plan as plans
from pareflow.serving.calibrating import Budget
from pareflow.serving.executable import Release
from pareflow.stages import calibrating
from pareflow.stages.exporting import winner_package
from pareflow.stages.run import Run
from pareflow.store import Store
from tasks import pipelines
from tasks.serving import check_kept, register_plan, releases_of, source
from tasks.tracking import Tracker

PIPELINES = (".yaml", ".yml")


def calibrate(
    target: str,
    data_dir: Path,
    plan: Path,
    budget: Mapping[str, float],
    *,
    learn_scores: bool = False,
    config: Path | None = None,
    to: Path | None = None,
    register: bool = False,
) -> dict[str, Any]:
    """The plan with its thresholds, written and registered where asked.

    Raises: InputError, also where a plan to be registered may lose more than its version's SLA leaves;
    CalibrationError.
    """
    check_kept(target, to, register=register)
    described = plans.read(plan)
    path = _config(target, data_dir, config)
    run_spec = spec.read(path)
    with holding(Store(data_dir / "store"), f"calibrate {target}"):
        run = Run.open(run_spec, path, data_dir)
        main = _release(run, target, data_dir)
        if register:  # before minutes are spent
            calibrating.require_kept(main, described, Budget(**budget), run_spec.sla)
        releases = releases_of(main, described, data_dir)
        done = calibrating.calibrate(run, releases, described, Budget(**budget), learn_scores=learn_scores)
    document = done.plan.to_json()
    if register:
        register_plan(data_dir, main, done.plan)
    if to is not None:
        done.plan.write(to)
    return {
        "model": main.name,
        "version": main.version,
        "registered": register,
        "samples": done.samples,
        **budget,
        "may_lose": calibrating.may_lose(done.plan, Budget(**budget)),
        "left_by_sla": calibrating.left_by(main, run_spec.sla),
        "calibrated": done.found,
        "plan": document,
        "written": None if to is None else str(to),
    }


def show(document: Mapping[str, Any], console: Console) -> None:
    """Each threshold, what it was decided on, and the plan where it is written nowhere."""
    table = Table(title=f"{document['model']} version {document['version']}, {document['samples']} samples")
    for heading in ("policy", "threshold", "of", "decided on", "what was found"):
        table.add_column(heading)
    for row in document["calibrated"]:
        samples = row["pairs"] if "pairs" in row else row["samples"]
        threshold = f"{row['threshold']:.6g}"
        table.add_row(row["policy"], threshold, row["score"], f"{samples} samples", escape(_found(row)))
    console.print(table)
    left, loses = document["left_by_sla"], document["may_lose"]
    if left is not None and (loses is None or loses > left):
        most = "any share" if loses is None else f"{loses:.4g}"
        loss = f"the plan may lose {most} of the metric, and the SLA leaves it {left:.4g}"
        console.print(f"[bold red]together they may break the SLA[/]: {loss}", soft_wrap=True)
    written = f"; written to {document['written']}" if document["written"] else ""
    registered = "; registered with the version, for this environment" if document["registered"] else ""
    said = f"these thresholds are for these versions alone{written}{registered}"
    console.print(escape(said), soft_wrap=True)
    if not document["written"] and not document["registered"]:
        plan = yaml.safe_dump(document["plan"], sort_keys=False)
        console.print(escape(plan), soft_wrap=True, highlight=False)


def _found(row: Mapping[str, Any]) -> str:
    if "pairs" in row:
        sure = f"at most {row['max_false_hits']:.2%} are, with {row['confidence']:.1%} confidence"
        return f"{row['hits']} hits, {row['false_hits']} of them false: {sure}"
    shares = ", ".join(f"{name} answers {share:.1%}" for name, share in row["answered"].items())
    sure = f"at most {row['max_drop']:.2%}, with {row['confidence']:.1%} confidence"
    return f"{shares}; {row['drop']:.2%} lost here: {sure}"


def _config(target: str, data_dir: Path, named: Path | None) -> Path:
    """The pipeline YAML, which holds the data. Raises: InputError where it is not at hand."""
    if target.endswith(PIPELINES):
        return Path(target)
    if target.startswith("models:"):
        tracker = Tracker.open(data_dir)
        version = tracker.resolve(target)
        return pipelines.described(tracker, version.name, str(version.version), named)[1]
    if named is None:
        raise InputError(
            "the pipeline YAML of a package must be named: it holds the data",
            f"{target} is a folder",
            "Name it with --config",
        )
    return named


def _release(run: Run, target: str, data_dir: Path) -> Release:
    """What is to be served: the registered version, the package, or the pipeline's winner."""
    named = str(winner_package(run)) if target.endswith(PIPELINES) else target
    return source(named, data_dir).current()
