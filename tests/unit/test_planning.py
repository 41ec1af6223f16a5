"""The plan: levels in the order of their effort, and what each candidate can gain at most."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.tables import running as tables
from pareflow.search import bounds
from pareflow.search.effort import BUILD_MINUTES, LEVELS, Effort, level_of
from pareflow.sla import LoadClause
from pareflow.spec import read_profile
from pareflow.stages import planning, searching
from pareflow.variant import Recipe, Step

STRONG = Step("onnxruntime")
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
    assert level_of(Recipe.from_json(recipe)) == level


def test_the_plan_for_a_device_names_its_strongest_unit_and_orders_by_effort(trained: Any) -> None:
    plan = planning.plan(on(trained.run, "jetson_orin_nano"))
    assert plan["accelerator"]["name"].startswith("Ampere GPU")
    assert "33500×10⁹ operations per second in int8, by tensorrt" in plan["accelerator"]["why"]
    runnable = [row for row in plan["candidates"] if row["unavailable"] is None]
    levels = [LEVELS.index(row["level"]) for row in runnable]
    assert levels == sorted(levels)
    assert all(row["effort"] for row in plan["candidates"])
    refused = [row for row in plan["candidates"] if row["recipe"].endswith("→ openvino")]
    assert refused
    assert all("the device does not run it" in row["unavailable"] for row in refused)


def test_the_plan_for_this_machine_names_it(trained: Any) -> None:
    assert planning.accelerator(trained.run)["name"]


def test_a_bound_is_amdahls_with_the_devices_own_rates() -> None:
    """On a Pi bytes multiply 4 times as fast as floats; of half a request, 1/(0.5 + 0.5/4)."""
    pi = read_profile(DEVICES / "pi5.yaml")
    recipe = Recipe((Step("static_int8"),), Step("onnxruntime"))
    assert bounds.at_most(recipe, STRONG, pi, {}) == pytest.approx(4)
    assert bounds.at_most(recipe, STRONG, pi, {"quantization": 0.5}) == pytest.approx(1.6)
    plain = Recipe((), Step("onnxruntime"))
    assert bounds.at_most(plain, STRONG, pi, {}) is None
    assert bounds.at_most(plain, STRONG, pi, {"compiler": 0.75}) == pytest.approx(4)
    taught = Recipe((Step("distillation", {"student": "narrow"}), Step("static_int8")), Step("onnxruntime"))
    assert bounds.at_most(taught, STRONG, pi, {}) is None  # nobody knows what a student gains
    shares = {"distillation": 0.5, "quantization": 0.4}
    assert bounds.at_most(taught, STRONG, pi, shares) == pytest.approx(2)  # and not 2 times 1/(0.6 + 0.4/4)
    assert bounds.at_most(recipe, STRONG, None, {}) is None  # no rates are told of this machine


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(("low_rank", "dynamic_int8"), 2.5, id="both of the products: 1/(1 - 0.6), not 6.25"),
        pytest.param(("channel_pruning", "low_rank"), 5, id="products of inference: 1/(1 - 0.8), not 12.5"),
    ],
)
def test_steps_that_touch_the_same_part_are_bounded_by_it_once(
    names: tuple[str, ...], expected: float
) -> None:
    """Of a request 0.8 are inference, 0.6 its products."""
    recipe = Recipe(tuple(map(Step, names)), STRONG)
    shares = {"pruning": 0.8, "low rank": 0.6, "quantization": 0.6}
    assert bounds.at_most(recipe, STRONG, None, shares) == pytest.approx(expected)


def test_before_any_run_minutes_come_from_the_network_as_it_is_made(trained: Any) -> None:
    """Of what trains too: a pass takes three times what the network takes for all of the training split."""
    spec = trained.run.spec.model_copy(update={"candidates": None})
    plan = planning.plan(dataclasses.replace(trained.run, spec=spec))
    minutes = {row["recipe"]: row["minutes"] for row in plan["candidates"]}
    assert minutes["dynamic_int8 → onnxruntime"] == BUILD_MINUTES
    trained_ones = [row for row in plan["candidates"] if row["level"] == "architecture"]
    assert trained_ones
    assert all(row["minutes"] > BUILD_MINUTES for row in trained_ones)


@pytest.mark.parametrize(("epoch_minutes", "passes"), [(1.0, 1), (0.2, 2), (0.01, 9)])
def test_what_trains_is_planned_for_as_long_as_the_search_trains_it_first(
    epoch_minutes: float, passes: int, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10 minutes an eighth: 1, 5 and 27 passes at the end of the search's last rung."""
    budget = trained.run.spec.budget.model_copy(update={"minutes": 10.0, "variant_minutes": 5.0})
    spec = trained.run.spec.model_copy(update={"candidates": None, "budget": budget})
    run = dataclasses.replace(trained.run, spec=spec)
    for module, name in ((planning, "_effort"), (searching, "effort_of")):
        monkeypatch.setattr(module, name, lambda *_: Effort(epoch_minutes))
    plan = planning.plan(run)
    students = [row for row in plan["candidates"] if row["recipe"].startswith("distillation(")]
    assert [row["minutes"] for row in students] == [pytest.approx(BUILD_MINUTES + passes * epoch_minutes)]
    assert searching.search_of(run, trained.rows, None)._rungs()[0] == passes


@pytest.mark.parametrize("backend", [Step("openvino"), Step("onnxruntime", {"huge_pages": True})])
def test_what_runs_otherwise_than_the_baseline_is_bounded_by_all_that_a_compiler_touches(
    backend: Step,
) -> None:
    """Half of the time is products, which low rank shrinks; another runtime may be faster at all the rest."""
    shares = {"low rank": 0.5, "compiler": 1.0}
    assert bounds.at_most(Recipe((Step("low_rank"),), STRONG), STRONG, None, shares) == pytest.approx(2)
    assert bounds.at_most(Recipe((Step("low_rank"),), backend), STRONG, None, shares) is None


def test_a_finished_runs_profile_bounds_the_families(trained: Any) -> None:
    """Its baseline took 2 ms for each of 460 images: a pass over them takes three times that, 2.76 s."""
    assert [row["at_most"] for row in planning.plan(trained.run)["candidates"]] == [None]
    trained.run.output.mkdir(parents=True, exist_ok=True)
    advice = {"families": [{"family": "compiler", "share": 0.75}]}
    document = {"profile": {"advice": advice}, "baseline": {"latency_ms": {"p50": 2.0}}}
    (trained.run.output / "run.json").write_text(json.dumps(document))
    (row,) = planning.plan(trained.run)["candidates"]
    assert (row["minutes"], row["at_most"]) == (BUILD_MINUTES, 4)
    effort = planning._effort(trained.run, document)
    assert effort.epoch_minutes * 60 == pytest.approx(2.76)


def test_the_plan_tells_of_the_serving_plan_where_the_sla_states_a_load(trained: Any) -> None:
    """Three plans of winner and baseline: at 10 requests/s 860 take 86 s each, and 0.1 minutes to start."""
    run = trained.run
    sla = run.spec.sla.model_copy(update={"load": LoadClause(per_s=10, p99_ms=20)})
    loaded = dataclasses.replace(run, spec=run.spec.model_copy(update={"sla": sla}))
    found = planning.plan(loaded)["serving"]
    assert found == {"per_s": 10, "p99_ms": 20, "minutes": pytest.approx(6 * (86 / 60 + 0.1))}
    assert planning.plan(run)["serving"] is None
    assert planning.plan(on(loaded, "pi5"))["serving"] is None
    console = Console(width=200, record=True, file=io.StringIO())
    tables.plan({"pipeline": "images", "run_id": run.id, **planning.plan(loaded)}, console)
    assert (
        "for a p99 of 20 ms at 10 requests/s through the server: about 9.2 minutes" in console.export_text()
    )


def test_the_plan_says_of_what_a_first_run_tells_whether_it_is_there(trained: Any) -> None:
    spec = trained.run.spec.model_copy(update={"candidates": None})
    plan = planning.plan(dataclasses.replace(trained.run, spec=spec))
    console = Console(width=200, record=True, file=io.StringIO())
    tables.plan({"pipeline": "images", "run_id": trained.run.id, **plan}, console)
    assert "whether there is attention, or layers to prune" in console.export_text()
    assert planning.plan(trained.run)["unseen"] is None  # candidates are named
