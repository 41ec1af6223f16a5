"""The profile: where a request's time goes, which operators take it, and what it could gain at most."""

from collections.abc import Mapping, Sequence
from typing import Any

from pareflow import network
from pareflow.catalog import installed_version
from pareflow.errors import TimedOutError, VariantError
from pareflow.measuring import event_file
from pareflow.measuring.advice import advice
from pareflow.measuring.roofline import roofline
from pareflow.stages.instruments import ceilings, measured
from pareflow.stages.jobs import original
from pareflow.stages.profile_files import write_event_file, write_trace
from pareflow.stages.run import Row, Run

RUNTIMES = ("onnxruntime", "torch", "openvino")


def attempt(run: Run, baselines: Sequence[Row]) -> tuple[dict[str, Any] | None, str]:
    """The profile, and what it says in a line. It only advises: where the strong baseline cannot be profiled
    within a variant's limits, None, and why.

    A time limit that stopped it is kept: it advises a run that goes on as it did. Raises: as `profile`.
    """
    if (stopped := run.clock.stopped("profile")) is not None:
        return None, stopped
    try:
        found = profile(run, baselines)
    except VariantError as error:
        reason = f"it could not be profiled: {error.must}, but {error.found}"
        if isinstance(error, TimedOutError):
            run.stop("profile", reason)
        return None, reason
    return found, found["bottleneck"]


def profile(run: Run, baselines: Sequence[Row]) -> dict[str, Any]:
    """Stages, counters, operators, the graph, roofline and advice; the trace, and event files if asked for,
    beside the report.

    Raises: MissingExtraError where those cannot be written; VariantError; BusyMachineError.
    """
    asked = run.spec.profile.tensorboard
    if asked:
        event_file.require()
    strong = baselines[0]
    found = _stages(run, strong)
    operators, unavailable = _operators(run, strong)
    known = operators["onnxruntime"]
    inference_ms = found.pop("example_ms")
    placed = _roofline(run, strong.threads, known, inference_ms, unavailable)
    bound = placed["bound"] if placed else None
    advised = advice(found["stages"], known["operators"], known["work"]["counted_share"], bound)
    document = {
        **found,
        "threads": strong.threads,
        "operators": {name: told["operators"] for name, told in operators.items()},
        "graph": _graph(run, strong),
        "roofline": placed,
        "advice": advised,
        "bottleneck": advised["words"],
        "unavailable": unavailable,
        "traces": {"profile": write_trace(run, {name: told["events"] for name, told in operators.items()})},
    }
    return {**document, "tensorboard": write_event_file(run, document) if asked else None}


def _stages(run: Run, strong: Row) -> dict[str, Any]:
    settings = {
        "variant": strong.id,
        "backend": strong.recipe.backend.to_json(),
        "batch_size": run.spec.sla.batch_size,
    }
    return measured(run, "profile", settings, "stages.json", "measuring/breakdown.py", "hardware/counters.py")


def _graph(run: Run, strong: Row) -> dict[str, Any]:
    """Nodes and activations before and after graph optimization, and what nodes were fused into."""
    settings = {
        "variant": strong.id,
        "batch_size": run.spec.sla.batch_size,
        "threads": strong.threads,
    }
    instrument = ("graph_report", "network_facts", "liveness")
    return measured(run, "graph", settings, "graph.json", *(f"measuring/{name}.py" for name in instrument))


def _operators(run: Run, strong: Row) -> tuple[dict[str, Any], dict[str, str]]:
    """What each runtime's profiler says, and why a runtime says nothing.

    Each runs in a process of its own: a runtime that cannot run the network costs its own row (law 7).
    Raises: VariantError where the strong baseline's own runtime fails.
    """
    found, unavailable = {}, {}
    for runtime in RUNTIMES:
        variant = original(run.facts.digest).id if runtime == "torch" else str(strong.id)
        reason = _absent(run, runtime, variant)
        try:
            if reason is None:
                found[runtime] = _profiled(run, runtime, variant, strong.threads)
            else:
                unavailable[runtime] = reason
        except VariantError as error:
            if runtime == "onnxruntime":
                raise
            unavailable[runtime] = error.found
    return found, unavailable


def _profiled(run: Run, runtime: str, variant: str, threads: int) -> dict[str, Any]:
    settings = {
        "runtime": runtime,
        "variant": variant,
        "batch_size": run.spec.sla.batch_size,
        "threads": threads,
    }
    return measured(run, "trace", settings, "operators.json", "measuring/operators.py", "measuring/work.py")


def _absent(run: Run, runtime: str, variant: str) -> str | None:
    """Why a runtime cannot be asked, or None."""
    if installed_version(runtime) is None:
        return "not installed"
    folder = run.store.find(variant)
    if runtime == "torch" and folder is not None and network.form_of(folder) != "torch":
        return "the original is no torch module"
    return None


def _roofline(
    run: Run, threads: int, known: Mapping[str, Any], inference_ms: float, unavailable: dict[str, str]
) -> dict[str, Any] | None:
    """Inference under the machine's ceilings; None, with the reason noted, where they cannot be measured."""
    try:
        return roofline(ceilings(run, threads), known["work"], known["operators"], inference_ms)
    except VariantError as error:
        unavailable["roofline"] = error.found
        return None
