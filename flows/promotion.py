"""A person's word on a model that awaits approval: promoted, if the gate still agrees, or declined."""

from pathlib import Path
from typing import Annotated, Any, Literal

from flows.environment import set_environment

set_environment()  # before prefect is imported

from prefect import flow  # noqa: E402
from pydantic import Field  # noqa: E402

from pareflow import collection  # noqa: E402
from pareflow.stages.run import Run  # noqa: E402
from pareflow.store import Store  # noqa: E402
from tasks import flow_runs, steps  # noqa: E402
from tasks.execution import Execution, of_the_flow  # noqa: E402
from tasks.pipelines import described  # noqa: E402
from tasks.promotion import challenger_of  # noqa: E402
from tasks.tracking import Tracker  # noqa: E402

Said = Annotated[str, Field(min_length=1)]


@flow(
    name="promotion", flow_run_name="{decision} {model}", persist_result=False, on_running=[flow_runs.claim]
)
def promotion(
    model: Said,
    decision: Literal["approve", "reject"],
    by: Said,
    reason: Said,
    config: str | None = None,
    data_dir: str = ".pareflow",
) -> dict[str, Any]:
    """Decide on the challenger of `model`; `by` and `reason` are for the record. `config` is the pipeline
    YAML, where it is not where it was when the version was registered."""
    path = None if config is None else Path(config)
    return run_promotion(model, decision, by, reason, path, Path(data_dir), of_the_flow())


def run_promotion(
    model: str,
    decision: Literal["approve", "reject"],
    by: str,
    reason: str,
    config: Path | None,
    data_dir: Path,
    execution: Execution,
) -> dict[str, Any]:
    """Where the challenger stands after the decision."""
    tracker = Tracker.open(data_dir)
    if decision == "reject":
        return execution.call(steps.decide, model, None, tracker, decision, by, reason)
    spec, path = described(tracker, model, challenger_of(tracker, model), config)
    with collection.holding(Store(data_dir / "store"), f"promote {model}"):
        run = Run.open(spec, path, data_dir)
        return execution.call(steps.decide, model, run, tracker, decision, by, reason)
