"""What a pipeline asks of this machine, where it names no other: told before anything is trained for it."""

from pareflow.errors import EnvironmentUnfitError
from pareflow.hardware import probe
from pareflow.hardware.energy import device_joules, processor_joules
from pareflow.spec import Target
from pareflow.stages.loading import check_loadgen
from pareflow.stages.run import Run


def check_machine(run: Run) -> None:
    """Raises: EnvironmentUnfitError where a clause can never be measured here, or threads share cores;
    MissingExtraError where what measures a clause is not installed.

    A run is checked where it runs: a pipeline that another machine can run is no wrong one.
    """
    check_loadgen(run)
    if run.spec.target.profile is None:
        _check_energy(run)
        _check_threads(run)


def _check_energy(run: Run) -> None:
    """A processor's counter or a device's: a candidate for either may be judged by its own."""
    if run.spec.sla.energy is not None and processor_joules() is None and device_joules() is None:
        raise EnvironmentUnfitError(
            "`energy` in the SLA must be measured",
            "this machine has no counter of joules (RAPL, NVML) that this user may read",
            "Leave it out, go where there is one, set CUDA_DEVICE_ORDER=PCI_BUS_ID where GPUs differ, "
            "or name the device that serves in `target.profile`",
        )


def _check_threads(run: Run) -> None:
    """What nobody asked for, the default, is let pass on a machine with one core."""
    cores, target = len(probe.cores()), run.spec.target
    more = [str(count) for count in target.threads if count > cores]
    if more and target.threads != Target().threads:
        raise EnvironmentUnfitError(
            f"`target.threads` must be no more than the {cores} cores that this process may use",
            f"got {', '.join(more)}",
            "Mend it, go where there are so many, or name the device that serves in `target.profile`",
        )
