"""What each command does, as functions that return documents; `cli/` only parses and prints."""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

import pareflow
from flows import listing, servers
from flows.environment import SHARED
from flows.progress import Lines, shown
from pareflow import remote_store, spec
from pareflow.catalog import BACKENDS, TECHNIQUES
from pareflow.collection import holding
from pareflow.compiler.backend import Backend
from pareflow.errors import InputError, PareflowError
from pareflow.hardware import graphics, topology
from pareflow.measuring.environment import environment
from pareflow.serving.settings import Settings
from pareflow.stages import planning
from pareflow.stages.instruments import machine_ceilings
from pareflow.stages.machine import check_machine
from pareflow.stages.run import Run
from pareflow.store import Store

if TYPE_CHECKING:
    from tasks.tracking import Version

TEMPLATES = Path(__file__).parent / "templates"
QUIET_S = 300.0
"""How long a command without a pipeline waits for a machine that is fit to time on."""


def optimize(
    config: Path,
    data_dir: Path,
    console: Console,
    *,
    orchestrated: bool,
    remeasure: bool,
    target: Path | None = None,
    runner: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    store_url: str | None = None,
) -> dict[str, Any]:
    """The main job; the document of its outcome. Runs under Prefect, or as plain functions.

    Building goes out to the Ray cluster at `ray_address` where `runner` says so. Child processes and nodes
    share the store at `store_url`.
    """
    if store_url is not None:
        os.environ[remote_store.VARIABLE] = store_url
    if runner == "ray":
        if not orchestrated:
            must = "`--runner ray` must run under Prefect"
            raise InputError(must, "`--no-orchestrator` was given", "Leave one of them out")
        config, data_dir = config.absolute(), data_dir.absolute()  # nodes have a current folder of their own
        target = None if target is None else target.absolute()
    spec.read(config, target)  # bad input is told before anything is started,
    Store(data_dir / "store")  # and so is a disk that cannot be written,
    remote_store.check()  # or a shared store
    with Lines(console) as lines, _kept_from_stdout(data_dir) if runner == "ray" else nullcontext():
        shown.set(lines)
        if not orchestrated:
            return _plainly(config, data_dir, remeasure=remeasure, target=target)
        options = _on_ray(ray_address) if runner == "ray" else {}
        from flows.local_server import under_prefect

        with under_prefect(data_dir, meanwhile="flows.pipeline"):
            return _by_prefect(config, data_dir, options, remeasure=remeasure, target=target)


def check_pipeline(config: Path, data_dir: Path, console: Console) -> dict[str, Any]:
    """The pipeline with every setting said, once its YAML, workload, data and metric are found in order.

    Raises: EnvironmentUnfitError where all are, and this machine cannot run it.
    """
    found = spec.read(config)
    _check_run(Run.open(found, config, data_dir), console)
    return found.to_json()


def _check_run(run: Run, console: Console) -> None:
    """Raises: EnvironmentUnfitError where this machine cannot run it; what else is known is shown."""
    check_machine(run)
    if run.samples_lacking is not None:
        console.print(run.samples_lacking, highlight=False, markup=False, soft_wrap=True)


def check_version(uri: str, config: Path | None, data_dir: Path) -> dict[str, Any]:
    """A registered version judged again here. Raises: InputError if its pipeline YAML cannot be found, or
    it is not what was registered."""
    from pareflow.serving.standing import backend_in
    from pareflow.stages.rejudging import rejudge
    from tasks.pipelines import described as pipeline_of
    from tasks.promotion import as_registered
    from tasks.tracking import Tracker

    tracker = Tracker.open(data_dir)
    version = tracker.resolve(uri)
    found, path = pipeline_of(tracker, version.name, str(version.version), config)
    described = _here(found)
    with holding(Store(data_dir / "store"), f"check {uri}"), tempfile.TemporaryDirectory() as folder:
        run = Run.open(described, path, data_dir).aside()
        package = as_registered(tracker, version.name, str(version.version), Path(folder))
        judged = rejudge(run, package)
        backend = backend_in(package)
    decision = judged["now"]["decision"] if judged["now"] else "reject"
    tracker.record_verdict(run, version, decision, backend)
    return {"name": version.name, "version": str(version.version), **judged}


def plan(config: Path, data_dir: Path, console: Console, target: Path | None = None) -> dict[str, Any]:
    """What should compute, and every candidate: its level, effort and bound, and whether it is made."""
    run = Run.open(spec.read(config, target), config, data_dir)
    _check_run(run, console)
    return {"pipeline": run.spec.name, "run_id": run.id, **planning.plan(run)}


def export(target: str, to: Path, data_dir: Path) -> dict[str, Any]:
    """The offline bundle of a registered version, or of a pipeline's winner, written to `to`."""
    from pareflow.serving import archive
    from pareflow.stages.exporting import export as exported

    archive.check_target(to)
    with _package(target, data_dir) as (package, version):
        return {**_told(version), **exported(package, to, data_dir / "logs")}


def export_served(
    target: str,
    to: Path,
    data_dir: Path,
    kind: Literal["triton", "kserve"],
    plan: Path | None,
    **cluster: Any,
) -> dict[str, Any]:
    """The same for another server: a Triton model repository, or a KServe InferenceService.

    Without a plan it is by the one that is kept with the version for this environment, else by the default.
    """
    from pareflow.serving import plan as plans
    from pareflow.serving.model import verified
    from pareflow.serving.standing import backend_in
    from pareflow.stages import exporting
    from tasks.serving import plan_of

    named = None if plan is None else plans.read(plan)
    with _package(target, data_dir) as (package, version):
        kept = None if version is None else plan_of(version, backend_in(package))
        chosen = named or kept or plans.default(verified(package))
        about = {**_told(version), "plan": chosen.to_json()}
        if kind == "triton":
            return {**about, **exporting.export_triton(package, chosen, to, data_dir / "logs")}
        return {**about, **exporting.export_kserve(package, chosen, to, **cluster)}


def _told(version: "Version | None") -> dict[str, str]:
    return {} if version is None else {"version": str(version.version)}


@contextmanager
def _package(target: str, data_dir: Path) -> Iterator[tuple[Path, "Version | None"]]:
    """The package of a registered version, and that version; or the package of a pipeline's winner."""
    from pareflow.stages.exporting import winner_package

    if not target.startswith("models:"):
        described = spec.read(Path(target))
        with holding(Store(data_dir / "store"), f"export {target}"):
            yield winner_package(Run.open(described, Path(target), data_dir)), None
        return
    from tasks.promotion import as_registered
    from tasks.tracking import Tracker

    tracker = Tracker.open(data_dir)
    version = tracker.resolve(target)
    with tempfile.TemporaryDirectory() as folder:
        yield as_registered(tracker, version.name, str(version.version), Path(folder)), version


def split(
    config: Path,
    data_dir: Path,
    link: Mapping[str, float],
    target: Path | None,
    *,
    most: int,
    into: Path | None,
    at: int | None,
) -> dict[str, Any]:
    """Every placement of a network's halves over a link, and the one to take. Raises: InputError."""
    from pydantic import ValidationError

    from pareflow.catalog import problem
    from pareflow.runtime.placement import Link
    from pareflow.stages import splitting

    try:
        checked = Link.model_validate(link)
    except ValidationError as error:
        problems = "; ".join(problem(e, Link.model_fields) for e in error.errors())
        raise InputError("the link must be one that can be", problems, "Mend the options") from error
    described = spec.read(config, target)
    with holding(Store(data_dir / "store"), f"split {described.name}"):
        run = Run.open(described, config, data_dir)
        return splitting.split(run, checked, most=most, into=into, at=at)


def init(name: str, parent: Path) -> list[Path]:
    """The files of a new workload folder. Raises: InputError if it is there already."""
    folder = parent / name
    if folder.exists():
        raise InputError(
            "a new workload needs a new folder", f"{folder} is there already", "Choose another name"
        )
    spec.parse({"name": name, "workload": "workload.py", "sla": {"size": {"max_mib": 1}}}, f"`init {name}`")
    folder.mkdir(parents=True)
    written = []
    for template in sorted(TEMPLATES.iterdir()):
        path = folder / template.name.removesuffix(".txt")
        path.write_text(template.read_text().replace("NAME", name))
        written.append(path)
    return written


def report(config: Path, data_dir: Path, target: Path | None = None) -> Path:
    """The report of a pipeline's run here. Raises: InputError if there is none."""
    path = Run.open(spec.read(config, target), config, data_dir).output / "report.html"
    if not path.is_file():
        raise InputError(
            "a report is written by a finished run",
            f"there is none at {path}",
            f"`pareflow optimize {config}`",
        )
    return path


def serve(targets: Sequence[str], data_dir: Path, plan: Path | None, settings: Settings) -> None:
    """Serve registered versions, or packages in folders, until told to end."""
    from pareflow.serving import plan as plans
    from pareflow.serving.server import serve as served
    from tasks.serving import source

    described = None if plan is None else plans.read(plan)
    found = partial(source, data_dir=data_dir)
    served(list(map(found, targets)), described, settings, found, lambda url: print(url, flush=True))


def serve_on_ray(
    targets: Sequence[str],
    data_dir: Path,
    plan: Path | None,
    settings: Settings,
    replicas: tuple[int, int],
    address: str | None,
) -> None:
    """The same as replicas on a Ray cluster, until told to end."""
    from pareflow.serving import plan as plans
    from tasks import ray_serving

    described = None if plan is None else plans.read(plan)
    build = ray_serving.Build(tuple(targets), str(data_dir.resolve()), described, settings)
    scale = ray_serving.Scale(*replicas)
    ray_serving.serve(build, scale, address, SHARED, lambda url: print(url, flush=True))


def tune(
    target: str, data_dir: Path, promise: Mapping[str, Any], to: Path | None, register: bool
) -> dict[str, Any]:
    """The serving plans of a registered version or a package, tried; the best written, and registered."""
    from pareflow.isolation import Limits
    from pareflow.stages import tuning
    from tasks.serving import check_kept, register_plan, source

    check_kept(target, to, register=register)
    release = source(target, data_dir).current()
    wanted = tuning.Promise(**promise)
    ground = tuning.Ground(release.package, Limits(), data_dir / "logs", QUIET_S)
    tried = tuning.tune(ground, wanted)
    best = tried[0] if tried[0].decision == "promote" else None
    if best is not None and register:
        register_plan(data_dir, release, best.plan)
    if best is not None and to is not None:
        best.plan.write(to)
    return {
        "model": release.name,
        "version": release.version,
        "registered": best is not None and register,
        "promise": asdict(wanted),
        "tried": [one.to_json() for one in tried],
        "plan": None if best is None else best.plan.to_json(),
        "written": str(to) if best is not None and to is not None else None,
    }


def store(data_dir: Path) -> dict[str, Any]:
    """What lies in the store and who needs it. Raises: InputError where there is none."""
    from tasks import collecting

    _must_have_a_store(data_dir)
    return collecting.contents(data_dir)


def collect(data_dir: Path, max_gib: float) -> dict[str, Any]:
    """The store made smaller, and what that took. Raises: InputError where there is none."""
    from tasks import collecting

    _must_have_a_store(data_dir)
    if not math.isfinite(max_gib):
        raise InputError("the limit must be a number of GiB", f"got {max_gib}", "Name another with --max-gib")
    return collecting.collect(data_dir, max_gib)


def _must_have_a_store(data_dir: Path) -> None:
    if not (data_dir / "store").exists():
        raise InputError(
            "there must be a store", f"{data_dir} holds none", "Name the right folder with --data-dir"
        )


def doctor(data_dir: Path) -> dict[str, Any]:
    """This machine, every member's availability, and what keeps a run from working.

    Its rates are measured by the first call on a quiet machine, and kept.
    """
    problems = []
    try:
        Store(data_dir / "store")
    except PareflowError as error:
        problems.append(str(error))
    free_mib = shutil.disk_usage(data_dir if data_dir.exists() else Path.cwd()).free // 2**20
    if free_mib < 2048:
        problems.append(f"a run needs about 2048 MiB of disk, but {free_mib} MiB are free. Free some")
    found = [servers.check(server) for server in servers.named()]
    problems += [problem for server in found for problem in server["problems"]]
    if all(server["problems"] == [] for server in found):
        problems += servers.set_up_problems(data_dir)
    return {
        "version": pareflow.__version__,
        "environment": environment().to_json(),
        "machine": _machine(data_dir),
        "techniques": [listing.member(cls) for cls in TECHNIQUES.values()],
        "backends": [listing.member(cls) for cls in BACKENDS.values()],
        "free_mib": free_mib,
        "servers": found,
        "promotions_meet_in": servers.promotions_meet_in(),
        "problems": problems,
    }


def _machine(data_dir: Path) -> dict[str, Any]:
    """What the machine is made of, what its runtimes list, and its rates or why there are none."""
    listed = {name: cls.devices() for name, cls in BACKENDS.items() if issubclass(cls, Backend)}
    return {
        "caches": topology.caches(),
        "memory_nodes": topology.memory_nodes(),
        "huge_pages": topology.huge_pages(),
        "allocators": topology.allocators(),
        "graphics": graphics.graphics(),
        "devices": {name: dict(devices) for name, devices in listed.items() if devices},
        **_rates(data_dir),
    }


def _rates(data_dir: Path) -> dict[str, Any]:
    """`rates` of one thread, or None with `no_rates`, the reason."""
    try:
        found = machine_ceilings(data_dir, environment().fingerprint, 1, patience_s=0)
    except PareflowError as error:
        return {"rates": None, "no_rates": error.found}
    return {"rates": found, "no_rates": None}


def _here(found: spec.PipelineSpec) -> spec.PipelineSpec:
    """The pipeline for this machine: a registered version is judged where it is."""
    target = found.target.model_copy(update={"profile": None})
    return found.model_copy(update={"target": target})


def _plainly(config: Path, data_dir: Path, *, remeasure: bool, target: Path | None) -> dict[str, Any]:
    from flows.pipeline import run_pipeline
    from tasks.execution import Plain

    return run_pipeline(config, data_dir, Plain(), remeasure=remeasure, target=target)


def _on_ray(address: str | None) -> dict[str, Any]:
    """The options of a flow whose tasks go out to a cluster. Raises: EnvironmentUnfitError."""
    from tasks.cluster import task_runner

    return {"task_runner": task_runner(address, SHARED)}


@contextmanager
def _kept_from_stdout(data_dir: Path) -> Iterator[None]:
    """What is printed meanwhile goes to `logs/ray.log`: Ray prints the log of a node that died, and no switch
    of its own keeps it from stdout, which is the document's."""
    path = data_dir / "logs" / "ray.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as log, redirect_stdout(log):
        yield


def _by_prefect(
    config: Path, data_dir: Path, options: Mapping[str, Any], *, remeasure: bool, target: Path | None
) -> dict[str, Any]:
    from flows.pipeline import pipeline

    flow = pipeline.with_options(**options)
    return flow(str(config), str(data_dir), remeasure, None if target is None else str(target))
