"""Law 8: a measurement and a verdict belong to one environment."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pareflow.catalog import installed_version
from pareflow.gate import Evidence, judge
from pareflow.intervals import speedup
from pareflow.measurement import Environment, Measurement
from pareflow.measuring.environment import environment, of_verdict
from pareflow.serving import standing
from pareflow.sla import SLA
from pareflow.stages import registration
from pareflow.stages.baseline import SCREENING
from pareflow.stages.rejudging import held, rejudge
from pareflow.stages.timing import measuring_key
from pareflow.variant import Step
from tasks.serving import plan_tag

ANY = SLA.model_validate({"size": {"max_mib": 10}})


def test_verdict_names_the_environment_of_its_measurement(
    good: Evidence, measured: Callable[..., Measurement]
) -> None:
    here = environment().fingerprint
    blocks = [[1.0]] * 20
    ours, theirs = (measured(*blocks, environment=here, variant=name) for name in ("ours", "theirs"))
    verdict = judge(ANY, replace(good, measurement=ours, baseline=theirs))
    assert verdict.environment == here


def test_verdict_without_a_measurement_names_none(good: Evidence) -> None:
    assert judge(ANY, replace(good, measurement=None)).environment == "not measured"


def test_measurements_of_two_environments_are_never_compared(measured: Callable[..., Measurement]) -> None:
    baseline, candidate = measured([2.0]), measured([1.0], environment="elsewhere")
    with pytest.raises(ValueError, match=r"`environment` must be equal.*here != elsewhere"):
        speedup(baseline, candidate)


def test_this_environment_is_named_completely() -> None:
    here = environment()
    assert here.processor
    assert here.cores >= 1
    assert here.memory_mib > 0
    assert {"numpy", "onnxruntime", "torch"} <= here.runtimes.keys()
    assert environment().fingerprint == here.fingerprint


@pytest.mark.parametrize("name", Environment.__dataclass_fields__)
def test_every_part_of_the_environment_counts(name: str) -> None:
    here = environment()
    changed: dict[str, Any] = {"flags": ("none",), "runtimes": {}}
    assert replace(here, **{name: changed.get(name, "other")}).fingerprint != here.fingerprint


def test_a_verdict_belongs_to_what_its_backend_runs_on_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkout: Path
) -> None:
    """A worker's runtime lies in no interpreter of ours: its lock says what it is, and an upgrade counts."""
    here = environment()
    before = of_verdict(here, "litert")
    assert before.runtimes["litert"].startswith("ai-edge-litert ")
    lock = (checkout / "infra" / "environments" / "litert.txt").read_text()
    upgraded = re.sub(r"^ai-edge-litert==.*$", "ai-edge-litert==99.0", lock, flags=re.MULTILINE)
    (tmp_path / "litert.txt").write_text(upgraded)
    monkeypatch.setattr("pareflow.compiler.environment.lock_folders", lambda: [tmp_path])
    after = of_verdict(here, "litert")
    assert after.runtimes["litert"] == "ai-edge-litert 99.0"
    assert len({one.fingerprint for one in (here, before, after)}) == 3


def verdicts_of(found: Environment) -> dict[str, str]:
    return {name: of_verdict(found, name).fingerprint for name in ("onnxruntime", "openvino", "torch_eager")}


def differing(found: Environment, other: Environment) -> set[str]:
    """The backends whose verdicts in one environment do not hold in the other."""
    return {name for name, _ in verdicts_of(found).items() - verdicts_of(other).items()}


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pareflow.measuring.environment.installed_version",
        lambda name: None if name == "torch" else installed_version(name),
    )


def test_a_verdict_holds_in_an_image_that_lacks_what_its_backend_does_not_run_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The image that serves has no torch, and the worker's, which judged, has."""
    worker = environment()
    without_torch(monkeypatch)
    serving = environment()
    assert worker.fingerprint != serving.fingerprint
    assert of_verdict(worker, "onnxruntime") == of_verdict(serving, "onnxruntime")
    assert of_verdict(worker, "onnxruntime").runtimes.keys() == {"numpy", "onnxruntime"}
    assert differing(worker, serving) == {"torch_eager"}


def test_a_tuned_plan_holds_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def tags() -> tuple[str, str]:
        found = environment()
        monkeypatch.setattr(standing, "_environment", lambda: found)
        plan_tag.cache_clear()
        return plan_tag("onnxruntime"), plan_tag("torch_eager")

    ours, eager = tags()
    without_torch(monkeypatch)
    theirs, other = tags()
    plan_tag.cache_clear()
    assert ours == theirs
    assert eager != other


def test_a_verdict_belongs_to_a_quota_of_processor_time_and_to_no_limit_of_memory() -> None:
    """Less time is slower; memory that suffices is not: who serves is given less than who trains."""
    here = environment()
    assert differing(here, replace(here, cpu_quota=0.5)) == {"onnxruntime", "openvino", "torch_eager"}
    assert differing(here, replace(here, memory_limit_mib=512)) == set()


@pytest.mark.parametrize(
    ("library", "judged_anew"),
    [
        ("numpy", {"onnxruntime", "openvino", "torch_eager"}),
        ("onnxruntime", {"onnxruntime"}),
        ("openvino", {"openvino"}),
        ("torch", {"torch_eager"}),
    ],
)
def test_another_version_of_what_a_backend_runs_on_is_another_environment(
    library: str, judged_anew: set[str]
) -> None:
    here = environment()
    assert differing(here, replace(here, runtimes={**here.runtimes, library: "99.0"})) == judged_anew


def test_a_registered_verdict_is_judged_again_where_the_environment_differs(
    judged: Any, tmp_path: Path
) -> None:
    """The package says that it was judged on another processor, in a container: that is told, and it is
    measured here."""
    run = dataclasses.replace(judged.run, data_dir=shutil.copytree(judged.run.data_dir, tmp_path / "data"))
    row = next(row for row in judged.finalists if row.verdict.decision == "promote")
    package = shutil.copytree(registration.package(run, row), tmp_path / "package")
    document = json.loads((package / "model.json").read_text())
    document["environment"] |= {"processor": "another", "cpu_quota": 0.5}
    (package / "model.json").write_text(json.dumps(document))
    own = run.store.root / "entries" / measuring_key(run, judged.baselines, SCREENING) / "measurements.json"
    before, clock = own.read_bytes(), run.clock.file.read_text()
    found = rejudge(run.aside(), package)
    assert (own.read_bytes(), run.clock.file.read_text()) == (
        before,
        clock,
    )  # by which the run goes on where it is asked again
    assert found["environment_changes"] == {
        "cpu_quota": {"then": 0.5, "now": None},
        "processor": {"then": "another", "now": run.environment.processor},
    }
    assert found["now"]["environment"] == run.environment.fingerprint


def test_a_registered_baseline_is_judged_again_as_itself(judged: Any, tmp_path: Path) -> None:
    """As another variant it would have to hold a hundredth less memory than it does."""
    spec = judged.run.spec.model_copy(update={"objective": "peak_memory"})
    data_dir = shutil.copytree(judged.run.data_dir, tmp_path / "data")
    run = dataclasses.replace(judged.run, spec=spec, data_dir=data_dir)
    found = rejudge(run.aside(), registration.made(run, judged.finalists[0]))
    harm = found["now"]["checks"][-1]
    assert (harm["clause"], harm["limit"], harm["estimate"]) == ("do_no_harm", 1.0, 1.0)
    assert found["holds"], found["reason"]


def test_what_only_resembles_a_baseline_is_not_it(trained: Any) -> None:
    """Other files, other settings of what runs them, or another way of feeding."""
    run, (strong, eager) = trained.run, trained.rows
    packaged = dataclasses.replace(strong, role="candidate")
    assert held(run, packaged, trained.rows) == strong
    settings = {**strong.recipe.backend.settings, "graph_level": "basic"}
    other = dataclasses.replace(strong.recipe, backend=Step("onnxruntime", settings))
    changes: list[dict[str, Any]] = [{"id": eager.id}, {"recipe": other}, {"processing": "its own"}]
    for change in changes:
        assert held(run, dataclasses.replace(packaged, **change), trained.rows) is None
