"""Train anew where there is something new: train → the pipeline, gated against the champion → promote."""

from pathlib import Path
from typing import Any

from flows.environment import set_environment

set_environment()  # before prefect is imported

from prefect import flow  # noqa: E402

from flows.endings import ended  # noqa: E402
from flows.pipeline import bound_store, optimize  # noqa: E402
from flows.progress import shown  # noqa: E402
from pareflow import collection, spec  # noqa: E402
from pareflow.stages.machine import check_machine  # noqa: E402
from pareflow.stages.run import Run  # noqa: E402
from pareflow.store import Store  # noqa: E402
from tasks import approval, flow_runs, steps  # noqa: E402
from tasks.execution import Execution, of_the_flow  # noqa: E402
from tasks.retraining import news  # noqa: E402
from tasks.tracking import Tracker  # noqa: E402


@flow(name="retraining", flow_run_name="{config}", persist_result=False, on_running=[flow_runs.claim])
def retraining(config: str, data_dir: str = ".pareflow") -> dict[str, Any]:
    """Train and optimize again what `config` (a pipeline YAML) describes, if its data or code are new."""
    return ended(run_retraining(Path(config), Path(data_dir), of_the_flow()))


def run_retraining(config: Path, data_dir: Path, execution: Execution) -> dict[str, Any]:
    """The pipeline's document, with what was new and how the new original stands beside the champion.

    Where nothing is new, nothing is made, and the pipeline's keys are None.
    """
    described = spec.read(config)
    with collection.holding(Store(data_dir / "store"), f"retrain {described.name}"):
        run = Run.open(described, config, data_dir)
        check_machine(run)
        tracker = Tracker.open(data_dir)
        approval.expire(tracker, described.name)
        found = news(tracker, run)
        if found["new"] is None:
            return {"pipeline": described.name, "winner": None, "registered": None, "retraining": found}
        shown.get().note(f"retraining: {found['new']}")

        shown.get().stage("train")
        execution.call(steps.train, run)

        document = optimize(run, tracker, execution)

        shown.get().stage("compare")
        original = execution.call(steps.compare_original, run, tracker, found["champion"])
        bound_store(data_dir, described.budget.store_gib)
    return {**document, "retraining": {**found, "original": original}}
