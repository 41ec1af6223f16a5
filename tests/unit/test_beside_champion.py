"""A champion that was packaged with another workload than the run's is judged as it is served."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow import spec as specs
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.errors import StepFailedError
from pareflow.gate import Verdict
from pareflow.measuring.contestant import read_feeds
from pareflow.serving.model import PackagedModel, verified, write_manifest
from pareflow.sla import SLA
from pareflow.stages import building, retraining
from pareflow.stages.baseline import train
from pareflow.stages.promotion import against_champion, packaged_row
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import contestant
from pareflow.variant import Recipe
from pareflow.workload import LoadedWorkload, load
from tests.unit.test_fitting import ROOMY, on

STRONG = Recipe((), OnnxRuntime(threads=1).step)
NAMED = '    def class_names(self) -> list[str]:\n        return ["a", "b", "c", "d"]\n\n    def given('
CHANGES = {
    '{"images": np.asarray(samples, dtype=np.float32)[:, None]}': (
        '{"negatives": (0.7 - np.asarray(samples, dtype=np.float32)[:, None]) / 0.3}'
    ),
    '["images"])': '["negatives"])',
    "Split(images, quadrants)": "Split(images, 3 - quadrants)",
    '["a", "b", "c", "d"]': '["d", "c", "b", "a"]',
}
"""Negatives of the images, standardised, under another name; and the classes in the other order."""
PIPELINE: Mapping[str, Any] = {
    "name": "images",
    "workload": "images.py",
    "target": {"device": "cpu", "threads": [1]},
    "objective": "size",
    "sla": {"quality": {"metric": "accuracy", "max_drop": 0.2}},
    "budget": {"minutes": 60, "variant_minutes": 10, "quiet_minutes": 30},
}


@dataclass(frozen=True)
class Changed:
    """A run of a workload that was changed since, the samples of before, and what was packaged then."""

    run: Run
    before: LoadedWorkload
    package: Path

    @property
    def served(self) -> float:
        """The accuracy of the package as it is served, on the verdict split."""
        verdict = self.before.splits.verdict
        return float(np.mean(PackagedModel(self.package).predict(verdict.samples) == verdict.targets))

    def with_sla(self, **clauses: Any) -> Run:
        sla = SLA.model_validate(clauses)
        return dataclasses.replace(self.run, spec=self.run.spec.model_copy(update={"sla": sla}))

    def judged(self, run: Run) -> Verdict:
        """What was trained anew, beside the package."""
        train(run)
        return against_champion(run, building.make(run, Row(STRONG)), self.package, retrained=True)


@pytest.fixture(scope="module")
def changed(workloads: Path, make_package: Callable[..., Path], tmp_path_factory: Any) -> Changed:
    root = tmp_path_factory.mktemp("changed")
    before, now = (Path(shutil.copytree(workloads, root / name)) for name in ("before", "now"))
    code = (before / "images.py").read_text().replace("    def given(", NAMED)
    (before / "images.py").write_text(code)
    for old, new in CHANGES.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    (now / "images.py").write_text(code)
    reference = {"file": {"path": "images.py"}}
    package = make_package(reference, before, root / "store", STRONG.backend, "images")
    run = Run.open(specs.parse(PIPELINE, "the tests' pipeline"), now / "pipeline.yaml", root / "data")
    return Changed(run, load(reference, before), package)


def test_a_champions_quality_is_that_of_its_own_processing(changed: Changed) -> None:
    assert changed.served > 0.9
    found = building.evaluate(changed.run, packaged_row(changed.run, changed.package), "verdict").quality
    assert found is not None
    assert found.value == changed.served
    assert found.slices.keys() == {f"class {label}" for label in range(4)}


def test_a_champion_is_timed_on_the_same_samples_made_into_its_own_inputs(changed: Changed) -> None:
    train(changed.run)
    row = packaged_row(changed.run, changed.package)
    building.feed(changed.run, row)
    entered = contestant(changed.run, row)
    assert entered.feeds is not None
    model, samples = PackagedModel(changed.package), changed.before.splits.search.samples
    for position, batch in enumerate(read_feeds(entered.feeds)):
        expected = model.preprocess(samples[position : position + 1])
        assert batch.keys() == expected.keys() == {"images"}
        assert np.array_equal(batch["images"], expected["images"])


def test_a_package_of_this_very_workload_needs_no_other_processing(changed: Changed, tmp_path: Path) -> None:
    same = repackaged(changed, tmp_path, workload_digest=changed.run.facts.digest)
    rows = [packaged_row(changed.run, package) for package in (same, changed.package)]
    assert rows[0].processing is None
    assert rows[1].processing is not None
    assert rows[0].id == rows[1].id  # what it is does not depend on who looks


def test_processing_is_part_of_what_a_package_is(changed: Changed, tmp_path: Path) -> None:
    other = repackaged(changed, tmp_path, code="# another\n")
    rows = [packaged_row(changed.run, package) for package in (other, changed.package)]
    assert rows[0].id != rows[1].id
    assert rows[0].processing != rows[1].processing


def test_quality_is_of_one_workload(changed: Changed) -> None:
    """Its original and its slices are in it: with the data alone, one command gave two verdicts."""
    facts = dataclasses.replace(changed.run.facts, digest="another")
    row = Row(STRONG, id="packaged")
    keys = {
        building._evaluation(run, row, "verdict")["key"]
        for run in (changed.run, dataclasses.replace(changed.run, facts=facts))
    }
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("code", "samples", "said"),
    [
        pytest.param("import absent_module\n", "float32", "No module named 'absent_module'", id="an import"),
        pytest.param("", "int8", "it takes samples of int8, and these are of float32", id="other numbers"),
        pytest.param("", "text", "it takes samples of text, and these are of float32", id="texts"),
    ],
)
def test_processing_that_does_not_run_here_fails_the_package_alone(
    changed: Changed, tmp_path: Path, code: str, samples: str, said: str
) -> None:
    """As a variant that does not run: the champion then stays, inconclusively."""
    row = packaged_row(changed.run, repackaged(changed, tmp_path, code=code, samples=samples))
    with pytest.raises(StepFailedError, match=said):
        building.evaluate(changed.run, row, "verdict")


def test_a_class_that_is_gone_cannot_be_compared(changed: Changed, tmp_path: Path) -> None:
    package = repackaged(changed, tmp_path, replaced=('"b"', '"gone"'))
    with pytest.raises(StepFailedError, match="`gone` is none of them"):
        building.evaluate(changed.run, packaged_row(changed.run, package), "verdict")


def test_what_was_trained_anew_is_promoted_beside_a_champion_that_is_fed_otherwise(changed: Changed) -> None:
    """Timed side by side, too: by the run's inputs alone the champion does not answer."""
    verdict = changed.judged(changed.run)
    assert verdict.decision == "promote", verdict.missed
    (drop,) = [check for check in verdict.checks if check.clause == "quality.max_drop"]
    assert drop.estimate is not None
    assert abs(drop.estimate) < 0.1


def test_of_two_originals_a_metric_of_fidelity_cannot_tell(changed: Changed) -> None:
    """It compares both with the new one: the champion loses by construction."""
    run = changed.with_sla(quality={"metric": "agreement", "max_drop": 0.2})
    verdict = changed.judged(run)
    assert verdict.decision == "inconclusive"
    assert verdict.missed == (
        "quality.max_drop: agreement compares both with the challenger's own original, so that it cannot tell"
    )
    told = retraining.original_against(run, changed.package)
    assert told["decision"] is None
    assert "cannot tell" in told["reason"]


def test_beside_a_champion_too_the_device_is_judged_by_its_profile(changed: Changed) -> None:
    """This host measures no power; the device draws at most 5 W."""
    run = on(changed.with_sla(energy={"max_w": 6}), ROOMY)
    verdict = changed.judged(run)
    (power,) = [check for check in verdict.checks if check.clause == "energy.max_w"]
    assert "estimated, not measured on roomy" in power.reason
    assert (power.decision, verdict.decision) == ("promote", "promote"), verdict.missed


def repackaged(
    changed: Changed,
    into: Path,
    *,
    code: str = "",
    replaced: tuple[str, str] = ("", ""),
    **document: Any,
) -> Path:
    """The package with other code before its own, words of it replaced, or other words in `model.json`."""
    folder = Path(shutil.copytree(changed.package, into / "package"))
    told = {**verified(folder), **document}
    (folder / "model.json").unlink()
    path = folder / "workload" / "images.py"
    text = path.read_text().replace(*replaced) if replaced[0] else path.read_text()
    path.write_text(code + text)
    write_manifest(folder, told)
    return folder
