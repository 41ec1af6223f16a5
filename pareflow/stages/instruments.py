"""Instruments that run alone on the device, in processes of their own, and whose findings the store keeps."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pareflow.hardware.device import device_lock
from pareflow.hardware.noise import await_quiet
from pareflow.isolation import Limits, run_isolated
from pareflow.stages.run import Run
from pareflow.store import Store
from pareflow.variant import digest, sources

CEILINGS_S = 300.0


def measured(run: Run, job: str, settings: Mapping[str, Any], file: str, *instrument: str) -> dict[str, Any]:
    """What a job of `stages/jobs.py` writes into `file`, once per environment and version of the instrument.

    `instrument` names its sources. Raises: VariantError, BusyMachineError.
    """
    about = (job, run.facts.digest, settings, run.environment.fingerprint)
    key = run.own_key(digest(*about, sources(*instrument)))

    def measure() -> None:
        log, arguments = f"{job}-{settings.get('runtime', 'stages')}-{run.id}", {"key": key, **settings}
        _alone(run, lambda descriptor: run.job(job, arguments, log, descriptors=(descriptor,)))

    found: dict[str, Any] = json.loads((run.made(key, measure) / file).read_text())
    return found


def ceilings(run: Run, threads: int) -> dict[str, Any]:
    """The machine's rates with so many threads, measured once per environment.

    Raises: VariantError, BusyMachineError.
    """
    patience_s, fingerprint = run.spec.budget.quiet_minutes * 60, run.environment.fingerprint
    return machine_ceilings(run.data_dir, fingerprint, threads, patience_s, remeasure=run.remeasure)


def machine_ceilings(
    data_dir: Path, fingerprint: str, threads: int, patience_s: float, *, remeasure: bool = False
) -> dict[str, Any]:
    """The same without a run: `fingerprint` is the environment's. Without patience nothing is waited for.

    Raises: VariantError, BusyMachineError.
    """
    store = Store(data_dir / "store")
    key = digest("ceilings", threads, fingerprint, sources("hardware/ceilings.py"))
    if remeasure:
        store.evict(key)

    def write(into: Path) -> None:
        with device_lock("cpu", exclusive=True, wait=patience_s > 0) as descriptor:
            await_quiet(patience_s)
            found = run_isolated(
                "pareflow.hardware.ceilings:ceilings",
                {"threads": threads},
                Limits(CEILINGS_S, threads=threads),
                data_dir / "logs" / "ceilings.log",
                (descriptor,),
            )
        (into / "ceilings.json").write_text(json.dumps(found))

    found: dict[str, Any] = json.loads((store.ensure(key, write) / "ceilings.json").read_text())
    return found


def _alone(run: Run, work: Callable[[int], Any]) -> Any:
    """Do it while nobody else times or builds on the device, and the machine is quiet.

    It gets the lock's descriptor to pass on. Raises: BusyMachineError.
    """
    with device_lock(run.spec.target.device, exclusive=True) as descriptor:
        await_quiet(run.spec.budget.quiet_minutes * 60)
        return work(descriptor)
