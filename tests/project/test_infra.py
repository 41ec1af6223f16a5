"""What can be known of `infra/` without an engine: schemas, references, and that no secret is in it."""

import importlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.context import serialize_context
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from flows.cli import running
from pareflow.catalog import BUILDS
from pareflow.monitoring import rules
from pareflow.runtime.pool import HANGS_S
from pareflow.serving.server import DRAIN_S

SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|API_KEYS|_KEY$|ACCESS_KEY")
PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")
KUBERNETES = "1.31"


@pytest.fixture(scope="module")
def infra() -> Path:
    return Path(__file__).parents[2] / "infra"


@pytest.fixture(scope="module")
def compose(infra: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((infra / "compose.yaml").read_text())
    return document


def stages(infra: Path) -> dict[str, list[str]]:
    """The instructions of each stage of the Dockerfile, under its name."""
    text = re.sub(r"\\\n\s*", "", (infra / "Dockerfile").read_text())
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if stage := re.match(r"FROM (\S+) AS (\S+)", line):
            found[stage[2]] = [f"FROM {stage[1]}"]
        elif line and not line.startswith("#") and found:
            found[list(found)[-1]].append(line)
    return found


def objects(infra: Path) -> Iterator[dict[str, Any]]:
    """Every object of the Kubernetes manifests."""
    for path in sorted((infra / "kubernetes").rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def containers(infra: Path) -> Iterator[dict[str, Any]]:
    """Every container of the Kubernetes manifests."""
    for thing in objects(infra):
        if thing["kind"] == "Deployment":
            yield from thing["spec"]["template"]["spec"]["containers"]


def run(*command: object, folder: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def found(name: str) -> str:
    """The path of a command, or the test is skipped; `make install-dev` or Debian's package has it."""
    path = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def test_dockerfile_is_clean_by_hadolint(infra: Path) -> None:
    run(found("hadolint"), infra / "Dockerfile")


def test_images_run_as_no_root_and_hold_no_builder(infra: Path) -> None:
    """What is shipped stands on `final`, which ends as another user; only environments are copied into it."""
    made = stages(infra)
    (user,) = [line for line in made["final"] if line.startswith("USER ")]
    assert int(user.split()[1]) > 0
    for name in ("server", "serving", "worker"):
        assert made[name][0] == "FROM final"
        assert [line for line in made[name] if line.startswith(("USER", "RUN", "ADD"))] == []
        copied = [line.split()[-1] for line in made[name] if line.startswith("COPY")]
        assert copied
        assert set(copied) <= {"/opt/venv", "/opt/pareflow"}


def test_images_copy_what_is_there_and_what_the_ignore_file_lets_in(infra: Path) -> None:
    lines = (infra / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    copied = [
        source
        for stage in stages(infra).values()
        for line in stage
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    ]
    assert len(copied) > 5
    for source in copied:
        assert (infra.parent / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in let_in), source
    assert "*" in lines


def test_images_are_pinned(infra: Path, compose: dict[str, Any]) -> None:
    """By a full version; `latest` is none, nor is a bare name. What pip installs is under the lock."""
    (base,) = re.findall(r"ARG PYTHON_IMAGE=(\S+)", (infra / "Dockerfile").read_text())
    bought = [service["image"] for service in compose["services"].values() if "build" not in service]
    for image in (base, *bought):
        assert re.search(r":\S*\d+\.\d+\.\d+|:\d+\.\d+-|RELEASE\.\d{4}", image), image
    installed = [line for stage in stages(infra).values() for line in stage if "pip install" in line]
    assert len(installed) >= 5
    for line in installed:
        assert re.search(r"--constraint requirements.lock|torch==[\d.]+|--no-deps", line), line


def test_the_cuda_image_has_the_gpu_build_of_onnx_runtime_alone(infra: Path) -> None:
    made, (gpu, cpu) = stages(infra)["build-worker"], BUILDS["onnxruntime"]
    (line,) = [line for line in made if line.startswith("RUN ")]
    assert "ARG DEVICE" in made  # else it is empty there
    assert re.search(rf'"\${{DEVICE}}" = cuda .* uninstall --yes {cpu} .* install .*{gpu}==', line)


def test_no_image_asks_for_gpus_by_itself(infra: Path) -> None:
    """Where NVIDIA's runtime is a node's default, a pod that asked for none would see all of them."""
    assert "NVIDIA_VISIBLE_DEVICES" not in str(stages(infra))


def test_what_runs_from_its_sources_is_compiled_once(infra: Path) -> None:
    """pip compiles what it copies; beside sources that are root's no process can keep what it compiled."""
    edited = [line for stage in stages(infra).values() for line in stage if "--editable" in line]
    assert edited
    for line in edited:
        assert re.search(r"-m compileall -q pareflow tasks flows\b", line)


def test_each_image_has_a_name_of_its_own(
    infra: Path, compose: dict[str, Any], pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """A tag is a build's, and Kustomize's `newTag` a name's: nodes keep what they have of an old tag."""
    told = re.findall(r"docker build .*--target (\w+) +-t (\S+)", (infra / "Dockerfile").read_text())
    names = [name for _, name in told]
    assert len({*names}) == len(names) == 4
    for target, name in told:
        assert name in {f"pareflow-{target}", f"pareflow-{target}-cuda"}
    used = {service["image"] for service in compose["services"].values() if "build" in service}
    used |= {container["image"] for container in containers(infra)}
    used |= {pool["defaults"]["image"] for pool, _ in pools.values() if "defaults" in pool}
    assert used <= {*names}
    for path in ("ray/cluster.yaml", "kubernetes/overlays/cuda/kustomization.yaml"):
        assert "pareflow-worker-cuda\n" in (infra / path).read_text()
    page = (infra.parent / "docs/production.md").read_text()
    assert "newTag:" in page.partition("## On Kubernetes")[2].partition("\n## ")[0]


def test_kserve_is_told_an_image_that_the_dockerfile_makes(infra: Path) -> None:
    image = inspect.signature(running.export).parameters["image"].default
    assert f"-t {image} " in (infra / "Dockerfile").read_text()


def test_compose_is_one_by_its_schema(infra: Path) -> None:
    pytest.importorskip("check_jsonschema")
    checked = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    run(*checked, infra / "compose.yaml")


def test_compose_names_only_what_is_there(infra: Path, compose: dict[str, Any]) -> None:
    """Stages of the Dockerfile, mounted files, volumes, and services that others wait for."""
    services, known = compose["services"], stages(infra)
    for name, service in services.items():
        assert service.get("build", {}).get("target", "worker") in known, name
        assert set(service.get("depends_on", {})) <= set(services), name
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            there = (infra / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert there, f"{name}: {volume}"


def test_mlflow_answers_to_the_addresses_that_it_is_reached_at(compose: dict[str, Any]) -> None:
    """It refuses every other `Host` with 403: those of clients, and of whoever asks the published port."""
    service = compose["services"]["mlflow"]
    (allowed,) = re.findall(r'--allowed-hosts "([\w.:,]+)', service["command"][0])
    published = {port.rpartition(":")[0] for port in service["ports"]}
    asked = compose["x-client"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert {asked, "localhost:5000", *published} <= set(allowed.split(","))


def test_prefects_page_can_be_told_the_address_that_a_proxy_has(compose: dict[str, Any]) -> None:
    """Browsers call what it says, by default its own loopback: behind a proxy no panel has anything."""
    service = compose["services"]["prefect"]
    (published,) = [port.rpartition(":")[0] for port in service["ports"]]
    told = f"${{PREFECT_UI_API_URL:-http://{published}/api}}"
    assert service["environment"].get("PREFECT_UI_API_URL") == told


def test_nothing_waits_for_a_champion(compose: dict[str, Any]) -> None:
    """A new host has none, and `up` gives up where a service ends that another waits for to be healthy."""
    services = compose["services"]
    waiting = [service.get("depends_on", {}) for service in services.values()]
    assert [one["serving"]["condition"] for one in waiting if "serving" in one] == ["service_started"]
    # Until serving answers, `monitor` ends with 4, and is started again; so does serving itself.
    assert services["monitor"]["restart"] == services["serving"]["restart"] == "unless-stopped"


def test_no_secret_stands_in_a_file(infra: Path, compose: dict[str, Any]) -> None:
    """In compose each is a variable that must be set; its example and the manifests hold none."""
    values = [
        (name, str(value))
        for service in compose["services"].values()
        for name, value in service.get("environment", {}).items()
        if SECRET.search(name)
    ]
    assert len(values) > 10
    for name, value in values:
        assert re.fullmatch(r"(\$\{\w+:\?\} ?)+", value), name
    for line in (infra / "secrets.env.example").read_text().splitlines():
        name, _, value = line.partition("=")
        assert line.startswith("#") or not value or not SECRET.search(name), line
    for thing in objects(infra):
        assert thing["kind"] != "Secret"


def test_no_secret_is_an_argument(compose: dict[str, Any]) -> None:
    """Everybody on the host sees those. In a script it would be a variable in quotes."""
    given = set[str]()
    for name, service in compose["services"].items():
        script = " ".join([*service.get("entrypoint", []), *service.get("command", [])])
        variables = service.get("environment", {})
        arguments = set(re.findall(r'"\$\$\{?(\w+)', script))
        given |= arguments
        assert not [one for one in arguments if SECRET.search(str(variables.get(one)))], name
    assert given


def started(infra: Path, target: str, entrypoint: list[str] | None, command: list[str] | None) -> list[str]:
    """What a container of this image runs; None is the image's own."""
    told = dict(line.split(" ", 1) for line in stages(infra)[target] if re.match(r"ENTRYPOINT|CMD", line))
    own = [json.loads(told.get(name, "[]")) for name in ("ENTRYPOINT", "CMD")]
    if entrypoint is None:
        return [*own[0], *(own[1] if command is None else command)]
    return [*entrypoint, *(command or [])]


def test_what_a_container_runs_is_a_whole_command(infra: Path, compose: dict[str, Any]) -> None:
    """A program with its arguments: a command that leaves the program out is one for another entrypoint."""
    ours = {"pareflow", "prefect", "sh"}
    for name, service in compose["services"].items():
        if target := service.get("build", {}).get("target"):
            told = started(infra, target, service.get("entrypoint"), service.get("command"))
            assert told[0] in ours, f"{name}: {told}"
    for container in containers(infra):
        target = container["image"].removeprefix("pareflow-")
        told = started(infra, target, container.get("command"), container.get("args"))
        assert told[0] in ours, f"{container['name']}: {told}"


def taken(command: list[str]) -> set[tuple[str, str]]:
    """The queues that a worker takes runs from, with their pool: `default` too where none is named."""
    if command[:3] != ["prefect", "worker", "start"]:
        return set()
    options = list(pairwise(command))
    (pool,) = [value for option, value in options if option == "--pool"]
    queues = [value for option, value in options if option == "--work-queue"] or ["default"]
    return {(pool, queue) for queue in queues}


def test_what_is_deployed_has_a_worker(infra: Path, compose: dict[str, Any]) -> None:
    """In the pool that the environment names, since prefect.yaml names none; else nothing ever starts."""
    deployed = yaml.safe_load((infra.parent / "prefect.yaml").read_text())["deployments"]
    assert not any({"name", "work_queue_name"} & one["work_pool"].keys() for one in deployed)
    name, services = "PREFECT_DEFAULT_WORK_POOL_NAME", compose["services"]
    built = [one for one in services.values() if "build" in one and "profiles" not in one]
    workers = [
        started(infra, one["build"].get("target", "worker"), one.get("entrypoint"), one.get("command"))
        for one in built
    ]
    pool = services["pools"]["environment"][name]
    assert (pool, "default") in set().union(*map(taken, workers))
    text = (infra.parent / "docs/production.md").read_text()
    page = text.partition("## On Kubernetes")[2].partition("\n## ")[0]
    (pool,) = re.findall(rf"{name}=(\S+)", page)
    assert (pool, "default") in set().union(*(taken(one.get("command", [])) for one in containers(infra)))


def test_a_worker_looks_for_runs_every_second(infra: Path, compose: dict[str, Any]) -> None:
    """By Prefect's default of 10 s no trigger has a running flow within 10 s."""
    environments = {
        name: service["environment"]
        for name, service in compose["services"].items()
        if service.get("build", {}).get("target") == "worker"
        and taken(started(infra, "worker", service.get("entrypoint"), service.get("command")))
    }
    for one in containers(infra):
        if taken(one.get("command", [])):
            environments[f"pod {one['name']}"] = {told["name"]: told.get("value") for told in one["env"]}
    assert environments.keys() == {"worker", "worker-cuda", "pod worker"}
    for name, variables in environments.items():
        assert variables.get("PREFECT_WORKER_QUERY_SECONDS") == "1", name


def test_the_monitors_rules_can_be_read_and_need_no_kept_requests(infra: Path) -> None:
    found = rules.read(infra / "monitoring" / "rules.yaml")
    assert set(found.named()) == {"errors", "refused", "latency_p99"}
    assert not found.needs_requests


def test_runs_of_one_deployment_take_turns_and_the_safety_net_takes_no_place_of_theirs(infra: Path) -> None:
    deployed = yaml.safe_load((infra.parent / "prefect.yaml").read_text())["deployments"]
    runs = [one for one in deployed if one["entrypoint"].startswith(("flows/pipeline", "flows/retraining"))]
    assert len(runs) == 5
    assert all(one["concurrency_limit"]["limit"] == 1 for one in runs)
    (net,) = [one for one in deployed if one["entrypoint"] == "flows/reconcile.py:reconcile"]
    asked = net["work_pool"]["job_variables"]
    pools = yaml.safe_load((infra / "work-pools.yaml").read_text())["pools"]
    usual = pools["pareflow-kubernetes"]["defaults"]
    assert asked.keys() - {"env"} <= usual.keys()
    assert (asked["cpu_request"], asked["memory_request"]) == ("250m", "1Gi")
    assert asked["env"] == runs[0]["work_pool"]["job_variables"]["env"]


def test_the_worker_has_what_the_deployments_name(infra: Path) -> None:
    """Paths in the parameters of prefect.yaml lie in what the image copies."""
    copied = {
        source
        for line in stages(infra)["build-worker"]
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    }
    deployed = yaml.safe_load((infra.parent / "prefect.yaml").read_text())["deployments"]
    named = [
        str(value)
        for deployment in deployed
        for value in deployment.get("parameters", {}).values()
        if str(value).endswith(".yaml")
    ]
    assert len(named) >= 4
    for path in named:
        assert (infra.parent / path).is_file(), path
        assert path.split("/")[0] in copied, path


def test_the_page_tells_each_place_that_names_the_digits(infra: Path) -> None:
    """Whoever has a pipeline of their own changes them all."""
    page = (infra.parent / "docs/production.md").read_text()
    told = page.partition("## Your own pipeline")[2].partition("\n## ")[0]
    deployed = yaml.safe_load((infra.parent / "prefect.yaml").read_text())["deployments"]
    named = [one["name"] for one in deployed if "digits" in str(one.get("parameters"))]
    assert len(named) >= 4
    assert [name for name in named if f"`{name}`" not in told] == []
    manifests = "".join(path.read_text() for path in (infra / "kubernetes").rglob("*.yaml"))
    places = re.findall(r"[\w:/ -]*\bdigits\b[@\w]*", manifests)
    assert len(places) == 2
    assert [place for place in places if f"`{place.strip()}`" not in told] == []


def test_every_variable_of_compose_is_in_the_example(infra: Path) -> None:
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (infra / "compose.yaml").read_text()))
    told = set(re.findall(r"^(\w+)=", (infra / "secrets.env.example").read_text(), re.MULTILINE))
    assert used == told


def test_manifests_are_valid_by_kubernetes_own_schemas(infra: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    things = list(objects(infra))
    assert {"Deployment", "Role", "Service"} <= {thing["kind"] for thing in things}
    for thing in things:
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)


@pytest.mark.parametrize("folder", ["base", "overlays/cuda"])
def test_kustomize_builds_what_is_valid(infra: Path, folder: str) -> None:
    built = run(found("kubectl"), "kustomize", infra / "kubernetes" / folder)
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    things = list(yaml.safe_load_all(built))
    for thing in things:
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)
    deployments = {thing["metadata"]["name"]: thing for thing in things if thing["kind"] == "Deployment"}
    pod = deployments["pareflow-serving"]["spec"]["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) == (folder == "overlays/cuda")


def test_pods_run_as_no_root_with_limits(infra: Path) -> None:
    pods = [thing["spec"]["template"]["spec"] for thing in objects(infra) if thing["kind"] == "Deployment"]
    assert len(pods) >= 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "memory" in container["resources"]["limits"]


def test_a_rolling_update_on_gpus_asks_for_no_spare_one(infra: Path) -> None:
    """A third pod would wait for a third GPU, and the two others for that pod."""
    overlay = yaml.safe_load((infra / "kubernetes/overlays/cuda/kustomization.yaml").read_text())
    (patch,) = [yaml.safe_load(one["patch"]) for one in overlay["patches"]]
    told = {one["path"]: one["value"] for one in patch}
    assert any(path.endswith("nvidia.com~1gpu") for path in told)
    assert told.get("/spec/strategy/rollingUpdate") == {"maxUnavailable": 1, "maxSurge": 0}


def test_servers_that_were_never_ready_hold_up_no_drain_of_a_node(infra: Path) -> None:
    """By default a budget keeps them, too: every replica, for as long as there is no champion."""
    budgets = [thing["spec"] for thing in objects(infra) if thing["kind"] == "PodDisruptionBudget"]
    assert budgets
    assert {budget.get("unhealthyPodEvictionPolicy") for budget in budgets} == {"AlwaysAllow"}


def test_a_server_has_the_time_to_be_let_go_of_by_the_service_and_to_drain(infra: Path) -> None:
    """From its SIGTERM on it takes no connections: nobody may send it any by then."""
    pods = [thing["spec"]["template"]["spec"] for thing in objects(infra) if thing["kind"] == "Deployment"]
    ((pod, server),) = [(pod, one) for pod in pods for one in pod["containers"] if one["name"] == "serving"]
    program, seconds = server["lifecycle"]["preStop"]["exec"]["command"]
    assert (program, int(seconds) > 0) == ("sleep", True)
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + DRAIN_S + HANGS_S


def test_a_server_of_compose_has_the_time_to_drain(compose: dict[str, Any]) -> None:
    """Docker kills what has not ended by itself within 10 s, where nothing is said."""
    assert int(compose["services"]["serving"]["stop_grace_period"].removesuffix("s")) > DRAIN_S + HANGS_S


def test_a_monitor_that_ends_does_not_take_its_server_out_of_the_service(infra: Path, tmp_path: Path) -> None:
    """Where a container of a pod has ended the pod is not ready: within it all begins again, until told.

    Its command, where `pareflow` ends twice with 4 and then runs, and no sleep takes any time.
    """
    (monitor,) = [container for container in containers(infra) if container["name"] == "monitor"]
    told = tmp_path / "told"
    (tmp_path / "pareflow").write_text(
        f'#!/bin/sh\necho "$@" >> {told}\n[ $(wc -l < {told}) -lt 3 ] && exit 4\nexec /bin/sleep 1000\n'
    )
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    for name in ("pareflow", "sleep"):
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = [shutil.which(monitor["command"][0], path=path), *monitor["command"][1:]]
    with subprocess.Popen(command, env={"PATH": path}, start_new_session=True) as process:
        try:
            until = time.monotonic() + 30
            while not (told.exists() and len(told.read_text().splitlines()) == 3):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
            process.terminate()
            assert process.wait(timeout=30) == 0
            with pytest.raises(ProcessLookupError):  # what it had begun ends with it
                os.killpg(process.pid, 0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert set(told.read_text().splitlines()) == {"monitor digits --rules /rules/rules.yaml --data-dir /data"}


def test_the_worker_watches_the_namespace_that_its_role_is_for(infra: Path) -> None:
    """Prefect's observer watches the whole cluster unless told, which a Role does not allow."""
    kinds = {thing["kind"] for thing in objects(infra)}
    assert "Role" in kinds
    assert "ClusterRole" not in kinds
    (worker,) = [container for container in containers(infra) if container["name"] == "worker"]
    told = {one["name"]: one for one in worker["env"]}
    watched = told["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"]
    assert watched["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}


def test_a_worker_finds_the_flows_in_its_own_checkout(infra: Path, tmp_path: Path) -> None:
    """Wherever a deployment was made, and wherever the run begins: what `pull` of prefect.yaml says."""
    code = (
        "import asyncio, os, yaml\n"
        "os.environ['PREFECT_API_URL'] = 'http://127.0.0.1:9/api'\n"  # which must be set, and is not asked
        "from prefect.deployments.steps.core import run_steps\n"
        f"pull = yaml.safe_load(open({str(infra.parent / 'prefect.yaml')!r}))['pull']\n"
        "print(asyncio.run(run_steps(pull))['directory'])"
    )
    found = Path(run(sys.executable, "-W", "ignore", "-c", code, folder=tmp_path).splitlines()[-1])
    deployed = yaml.safe_load((infra.parent / "prefect.yaml").read_text())["deployments"]
    assert found != tmp_path
    for deployment in deployed:
        assert (found / deployment["entrypoint"].partition(":")[0]).is_file()


def secrets_of(container: dict[str, Any]) -> set[str]:
    """The Secrets that a container takes its environment from; without one of them it does not start."""
    told = [one["secretRef"] for one in container.get("envFrom", []) if "secretRef" in one]
    assert not any(one.get("optional") for one in told)
    return {one["name"] for one in told}


def test_who_moves_aliases_on_kubernetes_meets_in_the_lock_database(
    infra: Path, pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """A monitor, which rolls back, has a data folder of its own: a lock in it excludes nobody."""
    _, template = pools["pareflow-kubernetes"]
    (job,) = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    taking = {one["name"] for one in (job, *containers(infra)) if "pareflow-lock" in secrets_of(one)}
    assert taking == {"prefect-job", "monitor"}  # and who only serves needs no password of the database


def test_in_compose_who_moves_aliases_shares_a_data_folder(
    compose: dict[str, Any], pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """And so the lock in it."""
    for name in ("worker", "worker-cuda", "monitor"):
        assert "data:/opt/pareflow/.pareflow" in compose["services"][name]["volumes"], name
    docker, _ = pools["pareflow-docker"]
    assert f"{compose['name']}_data:/opt/pareflow/.pareflow" in docker["defaults"]["volumes"]


def test_worker_environments_outlive_their_container(
    compose: dict[str, Any], pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """A home in memory would lose them, and runs no code besides: they lie on the volume of the data."""
    told = [compose["services"][name]["environment"] for name in ("worker", "worker-cuda")]
    told += [pools[name][0]["defaults"]["env"] for name in ("pareflow-docker", "pareflow-kubernetes")]
    for environment in told:
        assert environment["PAREFLOW_ENVIRONMENTS"].startswith("/opt/pareflow/.pareflow/")


def test_a_server_makes_worker_environments_where_their_code_may_run(
    infra: Path, compose: dict[str, Any]
) -> None:
    """On a volume: Docker mounts a home in memory as `noexec`, and on Kubernetes there is none to write."""
    service = compose["services"]["serving"]
    (served,) = [container for container in containers(infra) if container["name"] == "serving"]
    environment = {one["name"]: one.get("value", "") for one in served.get("env", [])}
    mounts = [volume.split(":")[1] for volume in service["volumes"]]
    for told, volumes in (
        (service["environment"], mounts),
        (environment, [mount["mountPath"] for mount in served["volumeMounts"]]),
    ):
        place = Path(told.get("PAREFLOW_ENVIRONMENTS", ""))
        assert any(place.is_relative_to(volume) for volume in volumes), place


def test_who_serves_knows_nothing_of_prefect(infra: Path, compose: dict[str, Any]) -> None:
    """It faces clients and runs a workload's code; with Prefect's password one runs any flow on a worker."""
    told = compose["services"]["serving"]["environment"]
    assert [name for name in told if name.startswith("PREFECT_")] == []
    (served,) = [container for container in containers(infra) if container["name"] == "serving"]
    assert served["envFrom"] == [{"secretRef": {"name": "pareflow-serving"}}]  # that has the keys alone
    named = {one["name"]: one.get("valueFrom", {}) for one in served["env"]}
    assert [name for name in named if name.startswith("PREFECT_")] == []
    registry = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    asked = [next(iter(named[name].values())) for name in registry]
    assert asked == [{"name": "pareflow-client", "key": name} for name in registry]


def test_who_runs_a_rollout_has_a_key_of_the_servers(
    infra: Path, compose: dict[str, Any], pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """Servers have keys everywhere here, and answer 401 to whoever has none of them."""
    deployed = yaml.safe_load((infra.parent / "prefect.yaml").read_text())["deployments"]
    assert any(one["entrypoint"].endswith(":deployment") for one in deployed)
    name, services = "PAREFLOW_API_KEYS", compose["services"]
    given = set(services["serving"]["environment"][name].split())
    for worker in ("worker", "worker-cuda"):  # of the pool `pareflow`, whose runs have their environment
        assert set(services[worker]["environment"].get(name, "none").split()) <= given, worker
    docker, _ = pools["pareflow-docker"]
    assert "prefect.blocks.secret." in docker["defaults"]["env"].get(name, "")
    _, template = pools["pareflow-kubernetes"]
    (job,) = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    (serving,) = [one for one in containers(infra) if one["name"] == "serving"]
    assert "pareflow-serving" in secrets_of(serving) & secrets_of(job)


def test_the_worker_writes_prefects_password_into_no_job(
    infra: Path, pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """It hands its own settings on, that one as its value unless told which Secret a job has it from."""
    _, template = pools["pareflow-kubernetes"]
    (job,) = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    (worker,) = [container for container in containers(infra) if container["name"] == "worker"]
    told = {one["name"]: one.get("value") for one in worker["env"]}
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_"
    name, key = (told.get(f"{prefix}{which}") for which in ("NAME", "KEY"))
    assert name in secrets_of(job) & secrets_of(worker)
    page = (infra.parent / "docs/production.md").read_text().replace("\\\n", "")
    assert re.search(rf"secret generic {name} .*--from-literal={key}=", page)


def test_every_secret_block_is_one_that_the_pages_have_made(infra: Path) -> None:
    """A run whose pool names a block that is not there does not start."""
    named = set(re.findall(r"prefect\.blocks\.secret\.([\w-]+)", (infra / "work-pools.yaml").read_text()))
    assert len(named) == 3
    page = (infra.parent / "docs/production.md").read_text()
    assert set(re.findall(r"Secret\(value=.*?\.save\(\"([\w-]+)\"", page)) == named


def test_every_secret_of_the_manifests_is_one_that_the_pages_have_made(
    infra: Path, pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    _, template = pools["pareflow-kubernetes"]
    (job,) = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    mounted = re.search(r"/secrets/([\w-]+)/", (infra / "prometheus/kubernetes.yml").read_text())
    assert mounted is not None
    named = {mounted[1]}.union(*(secrets_of(one) for one in (job, *containers(infra))))
    for path in (infra / "kubernetes/base/kustomization.yaml", infra.parent / "docs/production.md"):
        assert set(re.findall(r"create secret generic (\S+)", path.read_text())) == named, path


def test_ray_nodes_are_pods_of_our_ray(infra: Path) -> None:
    """The operator's own schema is in no package; the pods in it are checked as pods."""
    cluster = yaml.safe_load((infra / "ray" / "cluster.yaml").read_text())["spec"]
    lock = (infra.parent / "requirements.lock").read_text()
    assert f"\nray=={cluster['rayVersion']}\n" in lock
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) == 3
    # Else whoever reaches the head runs code beside the store's keys.
    assert cluster.get("authOptions") == {"mode": "token"}
    # A run asks for nothing: it builds on the nodes that are up.
    assert "enableInTreeAutoscaling" not in cluster
    assert any(group.get("minReplicas", 0) >= 1 for group in groups)
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_page_says_that_prefects_password_goes_to_rays_nodes(infra: Path) -> None:
    """With each task, in what Prefect's runner for Ray sends of its context."""
    with temporary_settings({PREFECT_API_AUTH_STRING: "user:password"}):
        assert "user:password" in str(serialize_context()["settings_context"])
    page = " ".join((infra.parent / "docs/cluster.md").read_text().split())
    assert "Prefect's own settings, its password among them, go with each task" in page


@pytest.fixture(scope="module")
def pools(infra: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Each pool as it is written, and the template made of it, from the installed Prefect's own."""
    code = (
        "import json, sys, yaml\n"
        f"sys.path.insert(0, {str(infra)!r})\n"
        "import work_pools\n"
        "known = work_pools.templates()\n"
        "pools = yaml.safe_load(work_pools.FILE.read_text())['pools']\n"
        "print(json.dumps({n: [p, work_pools.filled(known[p['type']], p)] for n, p in pools.items()}))"
    )
    made: dict[str, tuple[dict[str, Any], dict[str, Any]]] = json.loads(
        run(sys.executable, "-W", "ignore", "-c", code)
    )
    return made


def test_pools_are_of_three_types_with_a_queue_per_kind_of_device(
    pools: dict[str, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    assert {pool["type"] for pool, _ in pools.values()} == {"process", "docker", "kubernetes"}
    queues = {pool["type"]: set(pool["queues"]) for pool, _ in pools.values()}
    # Prefect's Docker worker has no way to hand on a GPU.
    assert queues == {"process": {"cpu", "cuda"}, "docker": {"cpu"}, "kubernetes": {"cpu", "cuda"}}


def test_a_pool_that_is_there_gets_its_template_from_this_prefect_and_nothing_else(
    infra: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's templates come from the network, of whatever version; and who paused a pool has it so."""
    monkeypatch.syspath_prepend(str(infra))
    server = create_autospec(SyncPrefectClient, instance=True)
    server.__enter__.return_value = server
    server.create_work_pool.side_effect = ObjectAlreadyExists(http_exc=OSError())
    monkeypatch.setattr("prefect.client.orchestration.get_client", lambda **_: server)
    importlib.import_module("work_pools").main(["pareflow"])
    server.read_worker_metadata.assert_not_called()
    ((name, told), _) = server.update_work_pool.call_args
    assert (name, told.model_fields_set) == ("pareflow", {"base_job_template"})


def test_templates_use_only_variables_that_they_have(
    pools: dict[str, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    for name, (pool, template) in pools.items():
        used = set(PLACEHOLDER.findall(json.dumps(template["job_configuration"])))
        assert used <= set(template["variables"]["properties"]), name
        for variable, value in pool.get("defaults", {}).items():
            assert template["variables"]["properties"][variable]["default"] == value


def test_a_pools_image_runs_a_flow_run_as_prefect_gives_it(
    infra: Path, pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """As arguments of a container: they take the place of the image's command, not of its entrypoint."""
    for name in ("pareflow-docker", "pareflow-kubernetes"):
        pool, template = pools[name]
        target = pool["defaults"]["image"].removeprefix("pareflow-")
        job = template["job_configuration"]
        if "job_manifest" in job:
            (container,) = job["job_manifest"]["spec"]["template"]["spec"]["containers"]
            assert (container.get("command"), container["args"]) == (None, "{{ command }}")
        else:
            assert job["command"] == "{{ command }}"
        given = ["prefect", "flow-run", "execute"]
        assert started(infra, target, None, given) == given, name


def test_a_run_on_kubernetes_is_a_valid_job_that_asks_for_its_gpus(
    pools: dict[str, tuple[dict[str, Any], dict[str, Any]]],
) -> None:
    _, template = pools["pareflow-kubernetes"]
    defaults = {name: value.get("default") for name, value in template["variables"]["properties"].items()}
    given = {
        **defaults,
        "gpus": 1,
        "command": ["prefect", "flow-run", "execute"],
        "name": "run",
        "labels": {},
    }
    given["env"] = [{"name": name, "value": value} for name, value in given["env"].items()]

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        if isinstance(value, str) and (whole := PLACEHOLDER.fullmatch(value)):
            return given[whole[1]]
        return PLACEHOLDER.sub(lambda m: str(given[m[1]]), value) if isinstance(value, str) else value

    job = fill(template["job_configuration"]["job_manifest"])
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["containers"][0]["image"] == "pareflow-worker"
    assert pod["securityContext"]["runAsNonRoot"]
    for container in (*pod["initContainers"], *pod["containers"]):  # in all, else nothing is pinned
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert {name: limits[name] for name in ("cpu", "memory")} == requests
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    # Prefect's own template puts these two of the job's into its pod, where Kubernetes ignores them.
    del pod["parallelism"], pod["completions"]
    kubernetes_validate.validate(job, KUBERNETES, strict=True)


def test_a_run_on_kubernetes_may_lock_in_a_folder_that_the_kubelet_made(
    pools: dict[str, tuple[dict[str, Any], dict[str, Any]]], tmp_path: Path
) -> None:
    """It is root's, and nobody else's to write: whoever is root opens it, before a run begins."""
    pool, template = pools["pareflow-kubernetes"]
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (volume,) = [one["name"] for one in pod["volumes"] if "hostPath" in one]
    (opening,) = pod["initContainers"]
    for container in (opening, *pod["containers"]):
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == volume]
        assert mount["mountPath"] == pool["defaults"]["env"]["PAREFLOW_LOCK_DIR"]
    may = opening["securityContext"]
    assert (may["runAsUser"], may["runAsNonRoot"], may["allowPrivilegeEscalation"]) == (0, False, False)
    assert may["capabilities"] == {"drop": ["ALL"], "add": ["FOWNER"]}
    run(*(tmp_path if word == mount["mountPath"] else word for word in opening["command"]))
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


def test_no_pod_changes_the_owner_of_the_whole_store_each_time(
    infra: Path, pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """By default the kubelet goes through every file of a volume when a pod begins: each run does."""
    _, template = pools["pareflow-kubernetes"]
    deployments = [thing["spec"] for thing in objects(infra) if thing["kind"] == "Deployment"]
    specs = [*deployments, template["job_configuration"]["job_manifest"]["spec"]]
    pods = [spec["template"]["spec"] for spec in specs]
    kept = [pod for pod in pods if any("persistentVolumeClaim" in one for one in pod["volumes"])]
    assert len(kept) == 2
    for pod in kept:
        assert pod["securityContext"].get("fsGroupChangePolicy") == "OnRootMismatch"


def test_the_namespace_lets_in_pods_that_mount_a_folder_of_the_host(
    infra: Path, pools: dict[str, tuple[dict[str, Any], dict[str, Any]]]
) -> None:
    """As each run does. Where a cluster enforces `baseline`, its job is accepted, and its pod never is."""
    _, template = pools["pareflow-kubernetes"]
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert any("hostPath" in volume for volume in pod["volumes"])
    (namespace,) = [thing for thing in objects(infra) if thing["kind"] == "Namespace"]
    labels = namespace["metadata"].get("labels", {})
    assert labels.get("pod-security.kubernetes.io/enforce") == "privileged"


def test_prometheus_reads_its_configuration_and_its_rules(infra: Path) -> None:
    promtool = found("promtool")
    run(promtool, "check", "config", "--syntax-only", infra / "prometheus" / "prometheus.yml")
    run(promtool, "check", "rules", *(infra / "prometheus").glob("alerts*.yml"))


def test_each_prometheus_makes_the_job_that_alerts_are_about_and_has_a_key(
    infra: Path, compose: dict[str, Any]
) -> None:
    """Where no job has the name, or each answer is 401, no alert ever fires."""
    about = set(re.findall(r'job="(\w+)"', (infra / "prometheus/alerts.yml").read_text()))
    assert about
    for name in ("prometheus.yml", "kubernetes.yml"):
        document = yaml.safe_load((infra / "prometheus" / name).read_text())
        assert document["rule_files"] == ["alerts.yml"]
        assert about <= {job["job_name"] for job in document["scrape_configs"]}, name
        assert all("credentials_file" in job["authorization"] for job in document["scrape_configs"]), name


def on_kubernetes(infra: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Prometheus is to do there, without its discovery, which Debian's build cannot read; and that."""
    document = yaml.safe_load((infra / "prometheus/kubernetes.yml").read_text())
    (job,) = document["scrape_configs"]
    (discovery,) = job.pop("kubernetes_sd_configs")
    return document, discovery


def test_on_kubernetes_prometheus_looks_for_the_servers_pods(infra: Path) -> None:
    """By their label; annotations would lead others there, who have no key."""
    _, found = on_kubernetes(infra)
    (namespace,) = [thing for thing in objects(infra) if thing["kind"] == "Namespace"]
    assert (found["role"], found["namespaces"]) == ("pod", {"names": [namespace["metadata"]["name"]]})
    deployments = [thing for thing in objects(infra) if thing["kind"] == "Deployment"]
    pods = {thing["metadata"]["name"]: thing["spec"]["template"]["metadata"] for thing in deployments}
    assert not any("prometheus.io" in key for pod in pods.values() for key in pod.get("annotations", {}))
    (label,) = pods["pareflow-serving"]["labels"].items()
    assert found["selectors"] == [{"role": "pod", "label": "=".join(label)}]


def test_on_kubernetes_prometheus_asks_each_server_once_and_nothing_else(infra: Path, tmp_path: Path) -> None:
    """Given what it finds there: a pod's monitor is no server, nor is a pod that was evicted."""
    document, _ = on_kubernetes(infra)
    (serving,) = [one for one in containers(infra) if one["name"] == "serving"]
    (port,) = [str(port["containerPort"]) for port in serving["ports"]]
    seen = [
        ("one", "serving", port, "Running"),
        ("one", "monitor", "", "Running"),
        ("old", "serving", port, "Failed"),
    ]
    about = ("name", "container_name", "container_port_number", "phase")
    document["scrape_configs"][0]["static_configs"] = [
        {
            "targets": [f"10.0.0.{number}"],
            "labels": {
                f"__meta_kubernetes_pod_{what}": value for what, value in zip(about, pod, strict=True)
            },
        }
        for number, pod in enumerate(seen)
    ]
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({**document, "rule_files": []}))
    promtool = found("promtool")
    run(promtool, "check", "config", "--syntax-only", config)
    asked = json.loads(run(promtool, "check", "service-discovery", "--timeout=2s", config, "pareflow"))
    kept = [one["labels"] for one in asked if one["labels"]]
    assert len(asked) == len(seen)
    assert [(one["__address__"], one["instance"], one["job"]) for one in kept] == [
        ("10.0.0.0:80", "one", "pareflow")
    ]


def test_alerts_fire_when_they_should_and_not_before(infra: Path) -> None:
    tests = sorted((infra / "prometheus" / "tests").glob("*.yml"))
    assert tests
    run(found("promtool"), "test", "rules", *tests)


def test_expressions_of_the_dashboards_are_promql(infra: Path, tmp_path: Path) -> None:
    """As rules, since promtool reads those."""
    rules = [
        {"record": f"panel:{position}", "expr": re.sub(r"\$(instance|model)", ".*", expression)}
        for path in sorted((infra / "grafana" / "dashboards").glob("*.json"))
        for position, expression in enumerate(expressions(json.loads(path.read_text())))
    ]
    assert len(rules) > 5
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    run(found("promtool"), "check", "rules", tmp_path / "rules.yml")


def test_dashboards_ask_the_provisioned_source_in_panels_of_their_own(infra: Path) -> None:
    provisioned = yaml.safe_load((infra / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    sources = {source["uid"] for source in provisioned["datasources"]}
    for path in (infra / "grafana" / "dashboards").glob("*.json"):
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels) > 5
        assert {panel["datasource"]["uid"] for panel in panels} <= sources


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    """Every PromQL expression of a dashboard."""
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (note["expr"] for note in dashboard["annotations"]["list"])
