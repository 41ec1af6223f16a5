"""Which registered versions start which pipeline."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import SpecError
from tasks import rules
from tasks.rules import OWN_TAGS, Registered, Rules


def version(name: str = "digits", **changes: Any) -> Registered:
    known = {"version": "3", "ready": True, "created_ms": 0, "aliases": (), "tags": {}}
    return Registered(name, **{**known, **changes})


def of(*documents: dict[str, Any]) -> Rules:
    return Rules.model_validate({"rules": [{"parameters": {"config": "p.yaml"}, **one} for one in documents]})


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ({"model": "digits"}, True),
        ({"model": "dig*"}, True),
        ({"model": "Digits"}, False),
        ({"model": "digits", "alias": "ready"}, False),
        ({"model": "digits", "alias": "go"}, True),
        ({"model": "digits", "tags": {"stage": "ready"}}, True),
        ({"model": "digits", "tags": {"stage": "ready", "lang": "de"}}, False),
    ],
)
def test_rule_names_a_version_that_has_all_it_asks_for(rule: dict[str, Any], named: bool) -> None:
    found = of(rule).chosen(version(aliases=("go",), tags={"stage": "ready"}))
    assert (found is not None) == named


def test_first_rule_counts() -> None:
    found = of({"model": "*", "deployment": "a/first"}, {"model": "digits", "deployment": "a/second"})
    chosen = found.chosen(version())
    assert chosen is not None
    assert chosen.deployment == "a/first"


@given(st.sampled_from(OWN_TAGS), st.text(), st.text(min_size=1))
def test_no_rule_names_what_pareflow_registered(tag: str, value: str, name: str) -> None:
    assert of({"model": "*"}).chosen(version(name, tags={tag: value})) is None


@given(st.text(min_size=1), st.integers(min_value=1))
def test_a_version_s_key_is_its_own(name: str, number: int) -> None:
    (rule,) = of({"model": "*", "deployment": "a/first"}).rules
    key = rule.key("http://mlflow:5000", version(name, version=str(number)))
    assert key == f"http://mlflow:5000 a/first {name}:{number}"


def test_a_server_of_prefect_s_tells_two_registries_and_two_deployments_apart() -> None:
    """Both registries have a version 3 of `digits`, and two listeners have rules for it."""
    found = of({"model": "digits", "deployment": "a/first"}, {"model": "digits", "deployment": "a/second"})
    addresses = ("http://here", "http://there")
    assert len({rule.key(address, version()) for rule in found.rules for address in addresses}) == 4


def test_every_problem_of_the_rules_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n- {model: a, parameters: {}}\n- {model: b, parameters: {config: c}, alais: x}\n")
    with pytest.raises(SpecError) as caught:
        rules.read(path)
    assert len(caught.value.problems) == 2


def test_rules_that_come_with_pareflow_can_be_followed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    found = sorted((checkout / "mlflow").glob("*.yaml"))
    assert found
    for path in found:
        rules.read(path).check()
