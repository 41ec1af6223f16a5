"""Every error pareflow raises on purpose.

PareflowError                   exit code 1
├── InputError                  exit code 2: what the user gave cannot be used
│   ├── SpecError               the pipeline YAML; carries every problem at once
│   ├── WorkloadError           the workload raises, or gives what cannot be used
│   │   ├── SplitError          a split is empty, or two splits share a sample
│   │   └── MetricError         the metric does not exist or is not defined here
│   ├── ExportError             the original does not become a plain ONNX graph
│   └── CalibrationError        a calibration has too few samples, or is of other variants
├── EnvironmentUnfitError       exit code 4: the input is good, this machine or set-up is not
│   ├── MissingExtraError       an optional dependency is not installed
│   ├── BusyMachineError        too much else runs here for a timing to mean anything
│   ├── NodeError               a machine that builds lacks what the flow's machine has
│   ├── StoreError              the store cannot be used: disk full, read-only, of another format
│   └── TrackingError           MLflow or Prefect cannot be used
├── VariantError                one bad variant: a failed row, never the end of a run (law 7)
│   ├── StepFailedError         its code raised
│   ├── CrashedError            its process died
│   │   └── KilledError         from outside, as by a kernel that lacks memory: worth one more try
│   ├── TimedOutError           it did not finish inside its limit
│   ├── OutOfMemoryError        it asked for more memory than its limit
│   ├── BadOutputError          it answered NaN or infinity, or the wrong shape
│   ├── DoesNotFitError         the device lacks the room, the runtime or the operators that it needs
│   ├── TrainingDivergedError   its loss became NaN or infinity
│   └── UnsuitableError         the network or its data lack what the technique works on
└── TransientError              exit code 4: worth another try (a server that is restarting)
    └── OverloadedError         too many requests wait already; says when to try again
        └── DeadlineError       the answer would come after its deadline

Every message has three parts: what must hold, what was found, what to do next.
"""

from typing import ClassVar


class PareflowError(Exception):
    """An error with a law, a finding and a way out."""

    exit_code: ClassVar[int] = 1

    def __init__(self, must: str, found: str, remedy: str) -> None:
        super().__init__(must, found, remedy)
        self.must, self.found, self.remedy = must, found, remedy

    def __str__(self) -> str:
        return f"{self.must}, but {self.found}. {self.remedy}"


class InputError(PareflowError):
    """What the user gave cannot be used."""

    exit_code = 2


class SpecError(InputError):
    """The pipeline YAML is wrong; `problems` holds every problem found, not only the first."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source, self.problems = source, problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{source} must be valid", f"it has {count}", "Mend each of these:")

    def __reduce__(self) -> tuple[type, tuple[str, list[str]]]:
        return (type(self), (self.source, self.problems))

    def __str__(self) -> str:
        return "\n  - ".join([super().__str__(), *self.problems])


class WorkloadError(InputError):
    """The workload raises, or gives what cannot be used."""


class SplitError(WorkloadError):
    """A split is empty, or two splits share a sample."""


class MetricError(WorkloadError):
    """The metric does not exist, or is not defined on these predictions."""


class ExportError(InputError):
    """The original network does not become a plain ONNX graph."""


class CalibrationError(InputError):
    """A calibration has too few samples, or is of other variants than those it stands before."""


class EnvironmentUnfitError(PareflowError):
    """The input is good; this machine or set-up is not."""

    exit_code = 4


class MissingExtraError(EnvironmentUnfitError):
    """An optional dependency is not installed."""


class BusyMachineError(EnvironmentUnfitError):
    """Too much else runs here for a timing to mean anything."""


class NodeError(EnvironmentUnfitError):
    """A machine that builds lacks what the flow's machine has, or has another version of it."""


class StoreError(EnvironmentUnfitError):
    """The store cannot be written, or is of another format."""


class TrackingError(EnvironmentUnfitError):
    """MLflow or Prefect cannot be used."""


class VariantError(PareflowError):
    """One bad variant: a failed row, never the end of a run."""

    variant: str | None = None
    """Which, where several were timed together."""


class StepFailedError(VariantError):
    """The variant's code raised."""


class CrashedError(VariantError):
    """The variant's process died, or gave no answer."""


class KilledError(CrashedError):
    """The variant's process was killed from outside (SIGKILL): by the kernel, for memory that others may have
    held, or by somebody who meant another."""


class TimedOutError(VariantError):
    """The variant did not finish inside its time limit."""


class OutOfMemoryError(VariantError):
    """The variant asked for more memory than its limit."""


class BadOutputError(VariantError):
    """The variant answered NaN or infinity, or the wrong shape."""


class DoesNotFitError(VariantError):
    """The device that it is for lacks the room, the runtime or the operators that it needs."""


class TrainingDivergedError(VariantError):
    """The loss became NaN or infinity while the variant trained."""


class UnsuitableError(VariantError):
    """The network or its data lack what the technique works on; the message names the layer."""


class TransientError(PareflowError):
    """Worth another try: a server that is restarting, a connection that was cut."""

    exit_code = 4


class OverloadedError(TransientError):
    """Too many requests wait already; `retry_after_s` says when fewer may."""

    def __init__(
        self,
        must: str,
        found: str,
        remedy: str = "Try again later, or serve from more sessions",
        retry_after_s: float = 1.0,
    ) -> None:
        super().__init__(must, found, remedy)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type, tuple[str, str, str, float]]:
        return (type(self), (self.must, self.found, self.remedy, self.retry_after_s))


class DeadlineError(OverloadedError):
    """The answer would come after the request's deadline."""
