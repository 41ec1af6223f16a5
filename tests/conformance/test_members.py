"""What every registered class keeps: its name, its words, its settings."""

import json
import re
from typing import Any

import pytest
import yaml

from pareflow.catalog import BACKENDS, POLICIES, TECHNIQUES, Member, find
from pareflow.errors import SpecError
from pareflow.network import FORMS
from pareflow.variant import Step


def family_of(cls: type[Member]) -> tuple[dict[str, type[Member]], str]:
    families = ((TECHNIQUES, "technique"), (BACKENDS, "backend"), (POLICIES, "policy"))
    return next((family, kind) for family, kind in families if cls in family.values())


def test_name_is_snake_case_and_the_key_of_its_family(cls: type[Member]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", cls.name)
    assert family_of(cls)[0][cls.name] is cls


def test_form_is_one_of_the_forms(cls: type[Member]) -> None:
    if cls not in POLICIES.values():  # which wrap whatever is loaded
        assert getattr(cls, "form") in FORMS  # noqa: B009 (both other families have it)


def test_docstring_says_what_it_does_and_a_technique_where_it_is_from(cls: type[Member]) -> None:
    assert cls.__doc__
    assert cls.__doc__.strip().splitlines()[0].endswith(".")
    if cls in TECHNIQUES.values():
        assert re.search(r"Source: .+", cls.__doc__)


def test_every_setting_says_what_it_is(cls: type[Member]) -> None:
    assert [name for name, field in cls.model_fields.items() if not field.description] == []


def test_what_it_runs_on_is_named(cls: type[Member]) -> None:
    assert cls.requires


def comes_back(member: Member) -> None:
    """Through JSON and through YAML, in an equal member with an equal step."""
    family, kind = family_of(type(member))
    for text in (json.dumps(member.step.to_json()), yaml.safe_dump(member.step.to_json())):
        again = find(family, Step.from_json(yaml.safe_load(text)), kind)
        assert again == member
        assert again.step == member.step


def test_technique_comes_back_from_its_step(technique: Member) -> None:
    comes_back(technique)


def test_backend_comes_back_from_its_step(backend: Member) -> None:
    comes_back(backend)


def test_policy_comes_back_from_its_step(policy: Member) -> None:
    comes_back(policy)


def test_setting_that_is_out_of_range_is_a_typed_error(member: type[Member], refused: dict[str, Any]) -> None:
    family, kind = family_of(member)
    with pytest.raises(SpecError) as caught:
        find(family, Step(member.name, refused), kind)
    assert len(caught.value.problems) == 1


def test_unknown_setting_is_a_typed_error(cls: type[Member]) -> None:
    family, kind = family_of(cls)
    with pytest.raises(SpecError, match="unknown key 'no_such_setting'"):
        find(family, Step(cls.name, {"no_such_setting": 1}), kind)


def test_settings_are_frozen(cls: type[Member]) -> None:
    assert cls.model_config.get("frozen")
    assert cls.model_config.get("extra") == "forbid"
