"""What dashboards and rules of `infra/` ask for is in a running server's /metrics: names, labels, values."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.orchestration.conftest import CHECKOUT

INFRA = CHECKOUT / "infra"
OF_PROMETHEUS = {"up"}
"""What Prometheus itself says of each server."""
SELECTED = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
TARGET = {"instance", "job"}
"""Labels that Prometheus adds."""
Series = dict[str, list[dict[str, str]]]


def expressions() -> list[str]:
    """All of PromQL in `infra/`."""
    found = list[str]()
    for path in sorted((INFRA / "prometheus").glob("*.yml")):
        groups = yaml.safe_load(path.read_text()).get("groups", [])
        found += [rule["expr"] for group in groups for rule in group["rules"]]
    for path in sorted((INFRA / "grafana" / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        found += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
        found += [note["expr"] for note in board["annotations"]["list"]]
        asked = [re.match(r"label_values\((\w+),", one["query"]) for one in board["templating"]["list"]]
        found += [name[1] for name in asked if name]
    return found


def names(expression: str) -> set[str]:
    """The metrics of an expression: identifiers that are no functions, keywords or labels."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", expression)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)\b(?!\s*\()", bare)
    return set(words) - {"and", "or", "unless", "offset", "bool", "by", "without"}


@pytest.fixture(scope="module")
def series(packaged: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Series:
    """What a server with every kind of policy that is drawn says, after two requests."""
    plan = tmp_path_factory.mktemp("plan") / "plan.yaml"
    plan.write_text(json.dumps({"policies": ["exact_cache", {"dynamic_batching": {"max_batch_size": 4}}]}))
    command = [sys.executable, "-m", "pareflow.serving", str(packaged("images")), "--port", "0"]
    with subprocess.Popen(
        [*command, "--plan", str(plan)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url, server.communicate()[1]
            image = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
            body = json.dumps({"inputs": [image]}).encode()
            for _ in range(2):
                asked = urllib.request.Request(f"{url}/v2/models/images/infer", body)
                asked.add_header("Content-Type", "application/json")
                urllib.request.urlopen(asked, timeout=30).close()
            with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        finally:
            server.terminate()
            server.communicate(timeout=60)
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_every_metric_that_is_named_is_told_by_a_server(series: Series) -> None:
    found = expressions()
    assert len(found) > 15
    named = {name for expression in found for name in names(expression)} - OF_PROMETHEUS
    assert len(named) >= 5
    assert named - set(series) == set()


def test_every_label_and_value_that_is_asked_for_is_there(series: Series) -> None:
    """But for what this server is not: one that has not failed has no status of 5xx, none is both judged here
    and rejected."""
    checked = 0
    for expression in expressions():
        for name, body in SELECTED.findall(expression):
            for label, operator, value in MATCHER.findall(body):
                if name in OF_PROMETHEUS or label in TARGET:
                    continue
                values = {labels.get(label) for labels in series[name]}
                assert None not in values, f"{name} has no label {label}"
                if label not in ("status", "judged") and not value.startswith("$"):  # $: from a series
                    pattern = value if operator == "=~" else re.escape(value)
                    assert any(re.fullmatch(pattern, str(known)) for known in values), (
                        f"{name}: {label}={value}"
                    )
                checked += 1
    assert checked > 10


def test_names_are_told_from_functions_keywords_and_labels() -> None:
    expression = 'sum by (le, route) (rate(a_bucket{route=~"infer"}[5m])) / b unless c offset 30s > 0'
    assert names(expression) == {"a_bucket", "b", "c"}
