"""What this machine cannot do for a pipeline is told before anything is trained for it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from pareflow import spec as specs
from pareflow.errors import EnvironmentUnfitError
from pareflow.hardware import probe
from pareflow.sla import EnergyClause
from pareflow.stages import machine
from pareflow.stages.run import Run

PROFILES = Path(__file__).parents[2] / "configs" / "devices"


def asking(run: Run, *, energy: bool = False, **target: Any) -> Run:
    """The run, whose pipeline asks for energy, or for another target."""
    clause = EnergyClause(max_j=1) if energy else None
    sla = run.spec.sla.model_copy(update={"energy": clause})
    changed = specs.Target.model_validate({**run.spec.target.model_dump(), **target})
    return dataclasses.replace(run, spec=run.spec.model_copy(update={"sla": sla, "target": changed}))


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives this machine a counter of joules, or two, or none."""

    def give(*, processor: bool = False, device: bool = False) -> None:
        for name, there in (("processor_joules", processor), ("device_joules", device)):
            monkeypatch.setattr(machine, name, lambda there=there: (lambda: 0.0) if there else None)

    return give


def test_energy_needs_a_counter(trained: Any, counters: Callable[..., None]) -> None:
    """Of any device here; for a device of a profile it is estimated."""
    counters()
    machine.check_machine(trained.run)
    with pytest.raises(EnvironmentUnfitError, match=r"`energy` .* must be measured, but .* no counter"):
        machine.check_machine(asking(trained.run, energy=True))
    profile = specs.read_profile(sorted(PROFILES.glob("*.yaml"))[0])
    machine.check_machine(asking(trained.run, energy=True, profile=profile.model_dump(), threads=[1]))
    for there in ("processor", "device"):
        counters(**{there: True})
        machine.check_machine(asking(trained.run, energy=True))


def test_threads_need_cores(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this machine, where no other is named; the default is for it, however few it has."""
    monkeypatch.setattr(probe, "cores", lambda: (0, 1, 2))
    machine.check_machine(asking(trained.run, threads=[1, 3]))
    with pytest.raises(EnvironmentUnfitError, match=r"no more than the 3 cores .* but got 4, 1000\."):
        machine.check_machine(asking(trained.run, threads=[1, 4, 1000]))
    monkeypatch.setattr(probe, "cores", lambda: (0,))
    machine.check_machine(asking(trained.run, threads=[1, 2]))
    profile = {**specs.read_profile(sorted(PROFILES.glob("*.yaml"))[0]).model_dump(), "cores": 4}
    machine.check_machine(asking(trained.run, profile=profile, threads=[4]))


@pytest.mark.parametrize("command", ["check", "plan", "optimize", "retrain"])
def test_commands_tell_it_before_training(command: str, own_workloads: Path, tmp_path: Path) -> None:
    described = yaml.safe_load((own_workloads / "images.yaml").read_text())
    path = own_workloads / "many.yaml"
    path.write_text(yaml.safe_dump({**described, "target": {"threads": [1000]}, "candidates": None}))
    plainly = ["--no-orchestrator"] if command in ("optimize", "retrain") else []
    words = [command, str(path), *plainly, "--data-dir", str(tmp_path / "data")]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, EnvironmentUnfitError), error
    assert error.exit_code == 4
    assert list((tmp_path / "data" / "store" / "entries").iterdir()) == []
