"""The whole story once, on servers: PostgreSQL, S3, MLflow and Prefect behind passwords, and a worker.

`make test-production` runs it; `infra/loopback.py` starts what `infra/compose.yaml` starts in containers.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.production import CHECKOUT, SetUp, Story, answer, serving

pytestmark = [pytest.mark.slow, pytest.mark.production, pytest.mark.timeout(1500)]
FIRST, SECOND = ["fp16", "onnxruntime"], ["static_int8", "onnxruntime"]


@pytest.fixture(scope="module")
def story(servers: SetUp, digits: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Two pipelines run by the worker, one after the other: the second one's winner is smaller."""
    data_dir = tmp_path_factory.mktemp("data") / "data"
    runs = (servers.finish(digits(FIRST), data_dir), servers.finish(digits(SECOND), data_dir))
    story = Story(servers, data_dir, runs, [])
    story.found.extend(story.pareflow("list", "versions", "--json"))
    return story


def test_both_servers_ask_for_a_password(servers: SetUp) -> None:
    mlflow = f"{servers.client['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search"
    for url in (mlflow, f"{servers.client['PREFECT_API_URL']}/flow_runs/filter"):
        request = urllib.request.Request(url, b'{"max_results": 1}', {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        refused.value.close()
        assert refused.value.code == 401


def test_doctor_finds_both_servers_in_order_and_tells_a_wrong_password(story: Story) -> None:
    """Of the servers: what else it says of this machine is not the test's."""
    found = story.doctor()
    assert [server["name"] for server in found["servers"]] == ["MLflow", "Prefect"]
    assert [server["problems"] for server in found["servers"]] == [[], []]
    refused = story.doctor(MLFLOW_TRACKING_PASSWORD="wrong", PREFECT_API_AUTH_STRING="pareflow:wrong")
    for server, variable in zip(refused["servers"], ("PASSWORD", "PREFECT_API_AUTH_STRING"), strict=True):
        (problem,) = server["problems"]
        assert "it says 401. Set" in problem
        assert variable in problem


def test_every_pool_is_made_and_made_again(servers: SetUp) -> None:
    command = [sys.executable, str(CHECKOUT / "infra" / "work_pools.py")]
    for paused in (False, True):  # and whoever paused a pool finds it so
        done = subprocess.run(
            command, env={**os.environ, **servers.client}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert servers.api("work_pools/pareflow-docker")["is_paused"] == paused
        servers.api("work_pools/pareflow-docker", {"is_paused": True}, "PATCH")
    kubernetes = servers.api("work_pools/pareflow-kubernetes")
    assert kubernetes["type"] == "kubernetes"
    assert kubernetes["base_job_template"]["variables"]["properties"]["gpus"]["default"] == 0
    queues = servers.api("work_pools/pareflow-kubernetes/queues/filter", {})
    limits = {queue["name"]: queue["concurrency_limit"] for queue in queues}
    assert limits == {"default": None, "cpu": 1, "cuda": 1}


def test_the_workers_runs_are_registered_and_the_better_one_is_champion(story: Story) -> None:
    aliases = {row["version"]: sorted(row["aliases"]) for row in story.found}
    assert aliases == {"1": ["previous"], "2": ["challenger", "champion"]}


def test_the_champion_is_served_and_a_rollback_and_a_retraining_reach_the_server(
    story: Story, digits: Callable[..., Path]
) -> None:
    """The nightly deployment finds new code, another pass of training, and promotes it: it is smaller."""
    config = digits(SECOND)
    code = config.parent / "workload.py"
    with serving(story) as url:
        assert answer(url) == ("2", 1)
        assert story.pareflow("rollback", "digits", "--json")["version"] == "1"
        becomes(url, "1")
        code.write_text(code.read_text().replace("Field(default=8,", "Field(default=9,"))
        story.servers.finish(config, story.data_dir, "retraining/daily")
        becomes(url, "3")


def becomes(url: str, version: str) -> None:
    """Wait until this version answers."""
    deadline = time.monotonic() + 60
    while answer(url) != (version, 1):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_prometheus_reads_a_server_with_its_key_and_evaluates_every_rule(
    story: Story, tmp_path: Path
) -> None:
    """`infra/prometheus` as it is, but for the address and the place of the key."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus is not installed: `make servers`")
    (tmp_path / "key").write_text("a-key")
    for path in (CHECKOUT / "infra" / "prometheus").glob("*.yml"):
        shutil.copy(path, tmp_path)
    with serving(story, PAREFLOW_API_KEYS="a-key") as url, socket.create_server(("127.0.0.1", 0)) as bound:
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        bound.close()
        configuration = (tmp_path / "prometheus.yml").read_text()
        changed = configuration.replace("serving:8000", url.removeprefix("http://"))
        changed = changed.replace("/run/secrets/serving-key", str(tmp_path / "key")).replace("5s", "1s")
        (tmp_path / "prometheus.yml").write_text(changed)
        command = [prometheus, f"--config.file={tmp_path / 'prometheus.yml'}"]
        command += [f"--web.listen-address={address}", f"--storage.tsdb.path={tmp_path / 'data'}"]
        with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
            try:
                assert within_a_minute(lambda: result(address, "query?query=up==1")) == 1
                assert within_a_minute(lambda: result(address, "query?query=pareflow_model_info")) == 1
                rules = asked(address, "rules")["groups"][0]["rules"]
                assert len(rules) >= 6
                assert within_a_minute(lambda: healthy(address)) == len(rules)
            finally:
                process.terminate()
                process.wait(60)


def healthy(address: str) -> int:
    """How many rules were evaluated well; 0 until all were."""
    rules = asked(address, "rules")["groups"][0]["rules"]
    return len(rules) if all(rule["health"] == "ok" for rule in rules) else 0


def within_a_minute(ask: Callable[[], int]) -> int:
    """The first answer that is not 0, or 0; a server that does not listen yet is asked again."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(urllib.error.URLError):
            if found := ask():
                return found
        time.sleep(0.5)
    return 0


def result(address: str, path: str) -> int:
    """How many series answer a query."""
    return len(asked(address, path)["result"])


def asked(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{address}/api/v1/{path}", timeout=10) as found:
        return json.loads(found.read())["data"]


def test_no_password_stands_in_a_log_or_an_artifact(story: Story, tmp_path: Path) -> None:
    """Logs of all processes, the flows' logs at Prefect, the data folder, and every artifact at MLflow."""
    fetched = "import sys, mlflow\nfor run in mlflow.search_runs(search_all_experiments=True).run_id: "
    fetched += "mlflow.artifacts.download_artifacts(run_id=run, dst_path=sys.argv[1] + '/' + run)"
    command = [sys.executable, "-W", "ignore", "-c", fetched, str(tmp_path / "artifacts")]
    done = subprocess.run(command, env=story.environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    logs = story.servers.api("logs/filter", {"logs": {"flow_run_id": {"any_": list(story.runs)}}})
    assert logs
    (tmp_path / "flows.log").write_text(json.dumps(logs))
    read = [tmp_path, story.data_dir, *story.servers.folder.glob("*.log")]
    files = [
        file for path in read for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    ]
    assert {"model.json", "variant.json", "report.html", "flows.log", "worker.log"} <= {f.name for f in files}
    told = [
        (name, str(file))
        for file in files
        for name, secret in story.servers.secrets.items()
        if secret.encode() in file.read_bytes()
    ]
    assert told == []
