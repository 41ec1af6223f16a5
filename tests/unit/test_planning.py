"""The plan: levels in the order of their effort, and what each candidate can gain at most."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pareflow.spec import read_profile
from pareflow.stages import planning
from pareflow.variant import Recipe, Step

DEVICES = Path(__file__).parents[2] / "configs" / "devices"


def on(run: Any, device: str) -> Any:
    target = run.spec.target.model_copy(update={"profile": read_profile(DEVICES / f"{device}.yaml")})
    return dataclasses.replace(run, spec=run.spec.model_copy(update={"target": target, "candidates": None}))


@pytest.mark.parametrize(
    ("recipe", "level"),
    [
        ([{"onnxruntime": {"threads": 2}}], "hardware"),
        ([{"onnxruntime": {"graph_level": "basic"}}], "compiler"),
        (["static_int8", {"onnxruntime": {"threads": 2}}], "model"),
        ([{"distillation": {"student": "narrow"}}, "static_int8", "onnxruntime"], "architecture"),
    ],
)
def test_a_recipe_is_of_the_level_of_its_most_laborious_step(recipe: list[Any], level: str) -> None:
    assert planning.level_of(Recipe.from_json(recipe)) == level


def test_the_plan_for_a_device_names_its_strongest_unit_and_orders_by_effort(trained: Any) -> None:
    plan = planning.plan(on(trained.run, "jetson_orin_nano"))
    assert plan["accelerator"]["name"].startswith("Ampere GPU")
    assert "33500×10⁹ operations per second in int8, by tensorrt" in plan["accelerator"]["why"]
    runnable = [row for row in plan["candidates"] if row["unavailable"] is None]
    levels = [planning.LEVELS.index(row["level"]) for row in runnable]
    assert levels == sorted(levels)
    assert all(row["effort"] for row in plan["candidates"])
    refused = [row for row in plan["candidates"] if row["recipe"].endswith("→ openvino")]
    assert refused
    assert all("the device does not run it" in row["unavailable"] for row in refused)


def test_the_plan_for_this_machine_names_it(trained: Any) -> None:
    assert planning.accelerator(trained.run)["name"]


def test_a_bound_is_amdahls_with_the_devices_own_rates(trained: Any) -> None:
    """On a Pi bytes multiply 4 times as fast as floats; of half a request, 1/(0.5 + 0.5/4)."""
    run = on(trained.run, "pi5")
    recipe = Recipe((Step("static_int8"),), Step("onnxruntime"))
    assert planning.at_most(run, recipe, {}) == pytest.approx(4)
    assert planning.at_most(run, recipe, {"quantization": 0.5}) == pytest.approx(1.6)
    plain = Recipe((), Step("onnxruntime"))
    assert planning.at_most(run, plain, {}) is None
    assert planning.at_most(run, plain, {"compiler": 0.75}) == pytest.approx(4)
    taught = Recipe((Step("distillation", {"student": "narrow"}), Step("static_int8")), Step("onnxruntime"))
    assert planning.at_most(run, taught, {}) is None  # nobody knows what a student gains
    assert planning.at_most(run, taught, {"distillation": 0.5}) == pytest.approx(2 * 4)
    assert planning.at_most(trained.run, recipe, {}) is None  # no rates are told of this machine


def test_a_finished_runs_profile_bounds_the_families(trained: Any) -> None:
    assert planning._families(trained.run) == {}
    trained.run.output.mkdir(parents=True)
    advice = {"families": [{"family": "quantization", "share": 0.25}]}
    (trained.run.output / "run.json").write_text(json.dumps({"profile": {"advice": advice}}))
    assert planning._families(trained.run) == {"quantization": 0.25}
