"""The load: real runs of LoadGen on the tiny images, in all of its scenarios; what goes wrong is told."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from pareflow.compiler import OnnxRuntime, TorchEager
from pareflow.errors import CrashedError, MissingExtraError, PareflowError, StepFailedError, TimedOutError
from pareflow.isolation import Limits
from pareflow.measuring.arena import Contestant, write_feeds
from pareflow.measuring.load import Load, Scenario, Served, serve
from pareflow.network import Form
from pareflow.variant import Step
from pareflow.workload import LoadedWorkload

Serve = Callable[..., Served]
ROGUE = {"file": {"path": "rogue_images.py"}}
EASY = 10_000.0
"""ms that any request keeps."""


@pytest.fixture
def under(
    tmp_path: Path,
    forms: Callable[[str], Mapping[Form, Path]],
    load_tiny: Callable[[str], LoadedWorkload],
    workloads: Path,
) -> Serve:
    """Serves compiled tiny images by one backend under a load."""
    write_feeds(list(load_tiny("images").feeds("search", 2, 16)), tmp_path / "feeds.npz")

    def served(load: Load, step: Step | None = None, seconds: float = 60) -> Served:
        step = step or OnnxRuntime().step
        backend = OnnxRuntime() if step.name == "onnxruntime" else TorchEager()
        artifact = tmp_path / step.name
        if not artifact.exists():
            artifact.mkdir()
            backend.compile(forms("images")[backend.form], artifact)
        return serve(
            Contestant("v", artifact, step, size_mib=1.5),
            load,
            feeds=tmp_path / "feeds.npz",
            batch_size=2,
            environment="here",
            workload=(ROGUE, workloads),
            limits=Limits(seconds=seconds),
            logs=tmp_path / "logs",
        )

    return served


def quick(scenario: Scenario, per_s: float | None = None, limit_ms: float | None = None) -> Load:
    return Load(scenario, per_s, limit_ms, queries=100, seconds=0.3)


@pytest.mark.parametrize("scenario", get_args(Scenario))
def test_every_scenario_gives_the_latencies_and_what_loadgen_says(scenario: Scenario, under: Serve) -> None:
    load = quick(scenario, 300, EASY) if scenario == "Server" else quick(scenario)
    served = under(load)
    ours, said = served.measurement, served.said
    assert ours.load == load.label == ("Server 300/s" if scenario == "Server" else scenario)
    assert (ours.variant, ours.batch_size, ours.size_mib, ours.ran.runtime) == ("v", 2, 1.5, "onnxruntime")
    assert len(ours.samples_ms) >= 100
    assert (ours.samples_ms > 0).all()
    assert said.queries == (1 if scenario == "Offline" else len(ours.samples_ms))
    assert said.trouble == ()
    assert {"50.00", "99.00"} <= set(said.percentiles_ms)
    for percentile, ms in said.percentiles_ms.items():  # what it says is what its trace holds
        assert np.isclose(ours.samples_ms, ms).any()
        assert np.mean(ours.samples_ms <= ms) == pytest.approx(float(percentile) / 100, abs=0.02)
    assert Served.from_json(served.to_json()) == served


def test_requests_of_the_server_scenario_come_at_its_rate_and_its_seed(under: Serve) -> None:
    served = under(Load("Server", 400, EASY, queries=400, seconds=1))
    assert served.said.samples_per_s == pytest.approx(400, rel=0.25)  # 5 standard deviations
    assert len(served.measurement.blocks_ms) > 1


def test_server_counts_the_time_in_line(under: Serve) -> None:
    """150 in a second keep a contestant that takes 5 ms busy, so that some wait for others."""
    alone = under(quick("SingleStream"), Step("sluggish")).measurement
    crowded = under(quick("Server", 150, EASY), Step("sluggish")).measurement
    assert crowded.quantile_ms(0.99) > 1.5 * alone.quantile_ms(0.5)


def test_too_many_requests_end_the_run_early_and_it_is_not_valid(under: Serve) -> None:
    served = under(Load("Server", 5000, 20, queries=5000, seconds=1), Step("sluggish"))
    assert not served.said.valid
    assert "Too many outstanding queries" in served.said.trouble[0]
    assert np.mean(served.measurement.samples_ms > 20) > 0.05  # it could not pass by ending early


def test_few_queries_are_not_valid_and_it_is_said_how_many_are_missing(under: Serve) -> None:
    served = under(quick("Server", 300, EASY))
    assert not served.said.valid
    assert "more queries" in served.said.early_stopping


@pytest.mark.parametrize(
    ("backend", "error"),
    [
        (Step("segfaults_under_load", {"requests": 40}), CrashedError),
        pytest.param(Step("hangs_under_load"), TimedOutError, marks=pytest.mark.slow),
        (Step("raises_under_load"), StepFailedError),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_goes_wrong_under_load_is_told(backend: Step, error: type[PareflowError], under: Serve) -> None:
    with pytest.raises(error):
        under(quick("Server", 300, EASY), backend, seconds=10 if error is TimedOutError else 60)


def test_absent_loadgen_is_a_missing_extra(
    under: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_loadgen(tmp_path, monkeypatch)
    with pytest.raises(MissingExtraError, match=r"needs the extra `loadgen`.*pareflow\[loadgen\]"):
        under(quick("SingleStream"))


def without_loadgen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that child processes look into first, where the package cannot be imported."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "mlperf_loadgen.py").write_text("raise ModuleNotFoundError('mlperf_loadgen')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "absent"))


def test_server_needs_a_rate_and_a_limit() -> None:
    with pytest.raises(ValueError, match="must have a rate and a limit, but got per_s=100, limit_ms=None"):
        Load("Server", 100)
