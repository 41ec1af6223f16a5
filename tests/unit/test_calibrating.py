"""Thresholds of a plan, for the versions it serves: from held-out samples alone, and trusted by no other."""

import asyncio
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.errors import CalibrationError, InputError, SpecError
from pareflow.runtime.caching.calibration import pairs_needed
from pareflow.runtime.caching.semantic_cache import SemanticCache
from pareflow.runtime.calibration import Calibration
from pareflow.serving import calibrating
from pareflow.serving.calibrating import Budget
from pareflow.serving.executable import Executable, Release
from pareflow.serving.hosting import Hosted
from pareflow.serving.metrics import Metrics
from pareflow.serving.plan import ServingPlan
from pareflow.serving.slot import Slot
from pareflow.serving.standing import here
from pareflow.sla import SLA, QualityClause, SizeClause
from pareflow.stages.calibrating import left_by, may_lose, promised, require_kept
from pareflow.variant import Step
from pareflow.workload import LoadedWorkload, Split, SplitName, load

FULL: Mapping[str, Any] = {"file": {"path": "many_images.py", "settings": {"steps": 20}}}
SMALL: Mapping[str, Any] = {"file": {"path": "many_images.py", "settings": {"steps": 5}}}
BUDGET = {"max_drop": 0.03, "confidence": 0.95}


@dataclass
class Shelf:
    """A source that a test moves."""

    release: Release
    name: str = "many"

    def current(self) -> Release:
        return self.release

    def last(self) -> Release | None:
        return None

    def previous(self) -> Release | None:
        return None

    def challenger(self) -> None:
        return None


@dataclass(frozen=True)
class Versions:
    """A full model and a cheaper one, and the folder of their workload."""

    folder: Path
    full: Release
    small: Release

    def calibrated(
        self, policies: list[Any], reference: Any = FULL, *, learn: bool = False, **budget: float
    ) -> dict[str, Any]:
        plan = {"tiers": {"small": str(self.small.package)}, "policies": policies}
        releases = {
            name: {"name": one.name, "version": one.version, "package": str(one.package)}
            for name, one in {"": self.full, "small": self.small}.items()
        }
        return calibrating.calibrated(
            releases, plan, reference, str(self.folder), "accuracy", {**BUDGET, **budget}, learn
        )

    def slot(self, plan: ServingPlan | None, release: Release | None = None) -> Slot:
        return Slot(Shelf(release or self.full), plan, Metrics(), lambda _: Shelf(self.small))


@pytest.fixture(scope="module")
def versions(
    workloads: Path, make_package: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Versions:
    root, step = tmp_path_factory.mktemp("store"), Step("onnxruntime", {"threads": 1})
    full = make_package(FULL, workloads, root, step, "full")
    small = make_package(SMALL, workloads, root, step, "small")
    return Versions(workloads, Release("many", "3", full), Release("many", "2", small))


def test_a_cascade_is_calibrated_on_what_was_held_out(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says was lost is what the served plan loses on these samples, and no verdict is looked at."""
    opened: set[str] = set()
    split = LoadedWorkload.split

    def seen(self: LoadedWorkload, name: SplitName) -> Split:
        opened.add(name)
        return split(self, name)

    monkeypatch.setattr(LoadedWorkload, "split", seen)
    done = versions.calibrated([{"confidence_cascade": {}}, {"dynamic_batching": {}}])
    assert opened == {"calibration", "search"}
    assert done["samples"] == 1200
    (record,) = done["found"]
    assert (record["policy"], record["samples"], record["max_drop"]) == ("confidence_cascade", 1200, 0.03)
    assert 0.05 < record["answered"]["small"] < 1
    workload = load(FULL, versions.folder)
    parts = [workload.split(name) for name in calibrating.HELD_OUT]
    images = np.concatenate([np.asarray(part.samples) for part in parts])
    labels = np.concatenate([part.labels() for part in parts])
    plan = ServingPlan(**done["plan"])

    async def right(plan: ServingPlan) -> np.ndarray:
        slot = versions.slot(plan)
        slot.start()
        predictions, _ = await slot.hosted.predict(images)
        figures = slot.hosted.endpoint.figures
        await slot.close()
        if "confidence_cascade" in figures:
            answered = figures["confidence_cascade"]()["answered_small"]
            assert answered / 1200 == pytest.approx(record["answered"]["small"], abs=2 / 1200)
        return np.asarray(predictions == labels)

    lost = asyncio.run(right(ServingPlan())).mean() - asyncio.run(right(plan)).mean()
    assert lost == pytest.approx(record["drop"], abs=2 / 1200)  # batches may round otherwise
    assert record["drop"] < 0.03


def test_too_few_samples_are_told(versions: Versions, packaged: Callable[..., Path]) -> None:
    few = Release("images", "1", packaged("images"))
    told = replace(versions, full=few, small=few)
    with pytest.raises(CalibrationError, match="at least 500 samples, but there are 140"):
        told.calibrated([{"confidence_cascade": {}}], {"file": {"path": "images.py"}})


@pytest.mark.parametrize("which", ["full", "small"])
def test_batches_larger_than_answers_were_judged_in_have_no_threshold(
    versions: Versions, tmp_path: Path, which: str
) -> None:
    """Where an answer depends on those beside it: while thresholds are calibrated, there are none."""
    release: Release = getattr(versions, which)
    package = shutil.copytree(release.package, tmp_path / "mixing")
    document = json.loads((package / "model.json").read_text())
    (package / "model.json").write_text(json.dumps({**document, "judged_batch_size": 1}))
    changed: Any = {which: replace(release, package=package)}
    told = replace(versions, **changed)
    tier = ", the tier `small`," if which == "small" else ""
    said = f"version {release.version} of many{tier} was judged in batches of 1, and the plan makes"
    with pytest.raises(InputError, match=said):
        told.calibrated([{"confidence_cascade": {}}, {"dynamic_batching": {}}])
    alone = {"dynamic_batching": {"max_batch_size": 1}}
    assert told.calibrated([{"confidence_cascade": {}}, alone])["samples"] == 1200


def test_other_data_may_have_trained_on_what_is_held_out(versions: Versions) -> None:
    other = {"file": {"path": "many_images.py", "settings": {"seed": 1}}}
    with pytest.raises(InputError, match="it was made with other data"):
        versions.calibrated([{"confidence_cascade": {}}], other)


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ([{"dynamic_batching": {}}], "it has dynamic_batching"),
        ([], "it has no policy"),
        ([{"ranking_cascade": {}}], "single samples"),
        (
            [{"semantic_cache": {"encoder": "small"}}, {"confidence_cascade": {}}],
            "names none that is no encoder",
        ),
    ],
)
def test_a_plan_without_a_threshold_to_fill_in_is_told(
    versions: Versions, policies: list[Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        versions.calibrated(policies)


def test_a_name_that_is_none_of_the_models_is_told_before_anything_is_asked(versions: Versions) -> None:
    with pytest.raises(SpecError, match="judged: unknown output 'outputs'; did you mean 'output'"):
        versions.calibrated([{"semantic_cache": {"judged": "outputs"}}])


def test_two_cascades_share_one_budget_and_the_first_stands_before_the_second(versions: Versions) -> None:
    """Half the drop, the error and the samples each; the outer full model is the inner cascade, by name."""
    done = versions.calibrated([{"complexity_routing": {"input": "images"}}, {"confidence_cascade": {}}])
    outer, inner = done["found"]
    assert (outer["policy"], outer["score"]) == ("complexity_routing", "shortness of images")
    assert outer["max_drop"] == inner["max_drop"] == 0.015
    assert outer["confidence"] == inner["confidence"] == 0.975
    assert outer["samples"] == inner["samples"] == 600
    assert outer["variants"]["full"].startswith(f"{inner['variants']['full']}+")
    assert _promised(done["plan"]) == pytest.approx((0.03, 0.95))
    assert versions.slot(ServingPlan(**done["plan"])).hosted.release.version == "3"


def _promised(plan: Mapping[str, Any]) -> tuple[float, float] | None:
    """What a plan's thresholds keep to together: the drop, and how surely."""
    found = promised(ServingPlan(**plan))
    return None if found is None else (found.max_drop, found.confidence)


def test_scores_are_learned_on_samples_that_no_threshold_is_calibrated_on(versions: Versions) -> None:
    """By hand: a third of 1200 learns, and 800 are left."""
    done = versions.calibrated([{"complexity_routing": {"input": "images"}}], learn=True)
    (record,) = done["found"]
    assert record["samples"] == 800
    assert record["score"].startswith("learned ")
    (step,) = done["plan"]["policies"]
    assert step["complexity_routing"]["scores"].keys() == {"small"}
    assert versions.slot(ServingPlan(**done["plan"])).hosted.release.version == "3"


def test_a_semantic_cache_gets_a_threshold_of_its_own(versions: Versions) -> None:
    """On pairs of kept and asked samples; all-or-nothing here, since answers of one class are all alike."""
    loose = {"semantic_cache": {"score": "similarity", "max_false_hits": 0.9, "min_similarity": -1}}
    done = versions.calibrated([loose])
    (record,) = done["found"]
    assert (record["pairs"], record["score"]) == (600, "similarity")
    assert record["hits"] >= pairs_needed(0.9, 0.95)
    assert record["held_answers"] == 600
    assert record["variants"].keys() == {"full"}
    assert _promised({"policies": [loose]}) is None
    assert _promised(done["plan"]) == (Budget().max_drop, 0.95)
    (step,) = done["plan"]["policies"]
    assert step["semantic_cache"]["calibration"]["threshold"] == record["threshold"]
    other = replace(versions.full, version="4")
    with pytest.raises(CalibrationError, match="which this calibration is for"):
        versions.slot(ServingPlan(**done["plan"]), other)
    settings = step["semantic_cache"]
    for change in ({"min_similarity": -0.5}, {"score": "margin"}, {"max_false_hits": 0.5}):
        changed = SemanticCache(**settings | change)
        with pytest.raises(CalibrationError, match="with the settings of its cache, and to its limit"):
            changed.wrap(Executable(versions.full, calibrating.ALONE).endpoint)
    with pytest.raises(ValueError, match="must not both be given"):
        SemanticCache(**settings | {"threshold": 0.5})
    with pytest.raises(CalibrationError, match="no threshold shows it"):
        versions.calibrated([{"semantic_cache": {"max_false_hits": 0.001}}])


CASCADE: Any = {"confidence_cascade": {}}
CACHE: Any = {"semantic_cache": {"max_false_hits": 0.02}}


ROUTING: Any = {"deadline_routing": {}}


@pytest.mark.parametrize(
    ("quality", "checks", "left"),
    [
        ({"max_drop": 0.03}, {"max_drop": 0.012}, 0.018),
        ({"max_drop": 0.03}, {"max_drop": 0.02}, 0.01),
        ({"max_drop": 0.015}, {"max_drop": 0.012}, 0.003),  # the SLA of now, whichever it was judged by
        ({"min": 0.9}, {"min": 0.93}, 0.03),
        ({"max_drop": 0.03, "min": 0.9}, {"max_drop": 0.012, "min": 0.905}, 0.005),
        ({"max_drop": 0.03}, {"max_drop": 0.04}, 0.0),
        ({"max_drop": 0.03}, {"max_drop": None}, 0.0),
        ({"max_drop": 0.03}, {}, 0.0),  # it was judged by an SLA that did not ask
        ({"max_drop": 0.1, "worst_slice_max_drop": 0.1}, {"max_drop": 0, "worst_slice_max_drop": 0}, 0.0),
        (None, {"max_drop": 0.0}, None),
    ],
)
def test_a_registered_plan_and_its_version_keep_the_sla_together(
    packaged: Callable[..., Path],
    tmp_path: Path,
    quality: dict[str, Any] | None,
    checks: dict[str, float | None],
    left: float | None,
) -> None:
    """By hand: of a drop of 3 points the version may have used 1.2, so that 1.8 are left to its plan."""
    sla = SLA(quality=None if quality is None else QualityClause(**quality), size=SizeClause(max_mib=5))
    release = _judged(packaged("images"), tmp_path / "judged", checks, here("onnxruntime"))
    assert left_by(release, sla) == (left if left is None else pytest.approx(left))
    for policies, loses in (((CASCADE,), 0.01), ((CASCADE, CASCADE), 0.01), ((CACHE, CASCADE), 0.03)):
        plan, budget = ServingPlan(policies=policies), Budget(max_drop=0.01)
        assert may_lose(plan, budget) == pytest.approx(loses)
        if left is None or loses <= left:
            require_kept(release, plan, budget, sla)
        else:
            with pytest.raises(InputError, match="a registered plan must keep the SLA of its version"):
                require_kept(release, plan, budget, sla)


def test_nothing_is_left_by_a_verdict_of_elsewhere_and_to_what_has_no_bound(
    packaged: Callable[..., Path], tmp_path: Path
) -> None:
    sla, budget = SLA(quality=QualityClause(max_drop=0.03)), Budget(max_drop=0.01)
    elsewhere = _judged(packaged("images"), tmp_path / "elsewhere", {"max_drop": 0.0}, "another machine")
    assert left_by(elsewhere, sla) == 0
    ours = _judged(packaged("images"), tmp_path / "here", {"max_drop": 0.0}, here("onnxruntime"))
    routed = ServingPlan(tiers={"small": "models:/images/1"}, policies=(CASCADE, ROUTING))
    assert may_lose(routed, budget) is None
    with pytest.raises(InputError, match="any share of it: `deadline_routing` has no bound"):
        require_kept(ours, routed, budget, sla)
    require_kept(ours, routed.model_copy(update={"tiers": {}}), budget, sla)  # nobody else answers


def _judged(package: Path, to: Path, checks: Mapping[str, float | None], environment: str) -> Release:
    """A copy of a package that says so of its quality: what was lost at most, or how good it is at least."""
    folder = shutil.copytree(package, to)
    told = [{"clause": f"quality.{name}", "low": bound, "high": bound} for name, bound in checks.items()]
    added = {"verdict": {"checks": told}, "environment": {"fingerprint": environment}}
    document = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**document, **added}))
    return Release("images", "1", folder)


@pytest.fixture(scope="module")
def plan(versions: Versions) -> ServingPlan:
    return ServingPlan(**versions.calibrated([{"confidence_cascade": {}}])["plan"])


def test_another_version_does_not_start_by_a_threshold_that_is_not_its_own(
    versions: Versions, plan: ServingPlan
) -> None:
    for other in (
        replace(versions.full, version="4"),
        replace(versions.full, package=versions.small.package),
    ):
        with pytest.raises(CalibrationError, match="which this calibration is for, but it is many/"):
            versions.slot(plan, other)


def test_another_version_is_refused_once_and_the_present_one_stays(
    versions: Versions, plan: ServingPlan, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not loaded again at every poll; what comes with a calibration of its own is taken."""
    slot = versions.slot(plan)
    loads: list[Mapping[str, Release]] = []
    opened = Slot._opened

    def counted(self: Slot, releases: Mapping[str, Release], apart: Any = None) -> Hosted:
        loads.append(releases)
        return opened(self, releases, apart)

    monkeypatch.setattr(Slot, "_opened", counted)

    async def scenario() -> None:
        slot.start()
        assert isinstance(slot.source, Shelf)
        slot.source.release = replace(versions.full, version="4")
        for _ in range(3):
            await slot.refresh()
        assert (slot.hosted.release.version, len(loads)) == ("3", 1)
        slot.source.release = versions.full
        await slot.refresh()
        assert (slot.hosted.release.version, len(loads)) == ("3", 1)
        await slot.close()

    asyncio.run(scenario())
    assert caplog.text.count("the new version is refused, and 3 stays") == 1
    assert "Calibrate again: what one version earned is not another's" in caplog.text


def test_a_registered_plan_brings_its_tiers_and_goes_with_its_version(
    versions: Versions, plan: ServingPlan, caplog: pytest.LogCaptureFixture
) -> None:
    """The next version has none of its own: it is served without tiers and thresholds, and that is said."""
    slot = versions.slot(None, replace(versions.full, plan=plan))

    async def scenario() -> None:
        slot.start()
        assert set(slot.hosted.releases) == {"", "small"}
        assert set(slot.hosted.endpoint.figures) == {"sessions", "confidence_cascade"}
        assert isinstance(slot.source, Shelf)
        slot.source.release = replace(versions.full, version="4")
        await slot.refresh()
        assert set(slot.hosted.releases) == {""}
        assert set(slot.hosted.endpoint.figures) == {"sessions", "dynamic_batching"}
        await slot.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "version 4 of many has no plan of its own in this environment" in caplog.text


def test_a_record_survives_json(plan: ServingPlan) -> None:
    again = ServingPlan.model_validate_json(plan.model_dump_json(exclude_defaults=True))
    (policy,) = again.chosen()
    assert isinstance(getattr(policy, "calibration", None), Calibration)
    assert json.loads(plan.model_dump_json())["policies"] == list(again.policies)
