"""The pipeline YAML: read, written back, and every problem told at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pareflow import spec as specs
from pareflow.errors import InputError, SpecError
from pareflow.spec import PipelineSpec, Target
from pareflow.variant import Recipe, Step

Document = Mapping[str, Any]
positive = st.floats(1e-3, 1e6)
clauses: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "quality": st.fixed_dictionaries({"max_drop": st.floats(0, 0.99)}, optional={"min": positive}),
    "latency": st.fixed_dictionaries({"p99_ms": positive}, optional={"batch_size": st.integers(1, 64)}),
    "throughput": st.fixed_dictionaries({"min_per_s": positive}),
    "size": st.fixed_dictionaries({"max_mib": positive}),
}
recipes = st.sampled_from(
    [
        ["onnxruntime"],
        ["fp16", "onnxruntime"],
        [{"static_int8": {"samples": 8}}, {"openvino": {"threads": 2}}],
    ]
)
documents = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z0-9][a-z0-9_-]*", fullmatch=True),
        "workload": st.sampled_from(["workload.py", {"file": {"path": "w.py", "settings": {"epochs": 3}}}]),
        "sla": st.sampled_from(sorted(clauses)).flatmap(
            lambda name: st.fixed_dictionaries({name: clauses[name]})
        ),
    },
    optional={
        "target": st.sampled_from(["cpu", {"threads": [1, 2]}, {"device": "cpu", "threads": [4, 2, 1]}]),
        "objective": st.sampled_from(["latency_p50", "latency_p99", "throughput", "size", "peak_memory"]),
        "budget": st.fixed_dictionaries({"minutes": positive}),
        "candidates": st.lists(recipes, max_size=3),
        "finalists": st.integers(1, 9),
        "space": st.sampled_from([{}, {"low_rank": {}}, {"distillation": {"depth": [0.5, 0.75]}}]),
    },
)


@given(documents.filter(lambda document: not {"space", "candidates"} <= document.keys()))
def test_what_is_written_reads_as_it_was(document: Document) -> None:
    spec = specs.parse(document, "here")
    assert specs.parse(yaml.safe_load(yaml.safe_dump(spec.to_json())), "there") == spec


def test_reading_a_file_gives_its_pipeline(tmp_path: Path, tiny_document: Document) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump(dict(tiny_document)))
    before = path.read_bytes()
    assert specs.read(path) == specs.parse(tiny_document, "here")
    assert path.read_bytes() == before


def test_short_forms_mean_the_long_ones(tiny_document: Document) -> None:
    spec = specs.parse({**tiny_document, "target": "cpu"}, "here")
    assert spec.workload == {"file": {"path": "images.py"}}
    assert spec.target == Target(device="cpu", threads=(1, 2))


def test_candidates_are_recipes_or_left_to_the_search(tiny_document: Document) -> None:
    named = specs.parse({**tiny_document, "candidates": [["fp16", "onnxruntime"]]}, "here")
    assert named.recipes() == (Recipe((Step("fp16"),), Step("onnxruntime")),)
    assert specs.parse(tiny_document, "here").recipes() is None


def problems_of(document: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        specs.parse(document, "here")
    return caught.value.problems


def test_values_of_the_space_count_together(tiny_document: Document) -> None:
    """Four of eight: neither must do with the other's default."""
    space = {"n_m_pruning": {"n": [4], "m": [8]}}
    assert specs.parse({**tiny_document, "space": space}, "here").space


def test_a_range_of_the_space_is_seventeen_values(tiny_document: Document) -> None:
    """By hand: steps of 0.03; of 10 to the power of an eighth. What is read is what was written."""
    ranges = {
        "ratio": {"low": 0.25, "high": 0.73},
        "learning_rate": {"low": "1e-4", "high": 0.01, "log": True},
    }
    spec = specs.parse({**tiny_document, "space": {"channel_pruning": ranges}}, "here")
    assert spec.space is not None
    ratios, rates = spec.space["channel_pruning"].values()
    assert ratios == (*(round(0.25 + 0.03 * n, 2) for n in range(17)),)
    assert (len(rates), rates[0], rates[1], rates[8], rates[16]) == (17, 1e-4, 1.33e-4, 1e-3, 1e-2)
    assert specs.parse(spec.to_json(), "again") == spec


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"low": 0.5, "high": 0.5}, "a range must lead from `low` up to `high`.*but is 0.5 to 0.5"),
        ({"low": 0, "high": 0.5, "log": True}, "from above 0 with `log`, but is 0 to 0.5"),
        ({"low": 0.5}, "high: must be given"),
        ({"low": 0.2, "high": 0.5, "logs": True}, "unknown key 'logs'; did you mean 'log'"),
        ({"low": 0.2, "high": 1.5}, "space.channel_pruning: ratio: .*1.5"),
    ],
)
def test_a_range_that_cannot_be_is_told(given: Any, told: str, tiny_document: Document) -> None:
    with pytest.raises(SpecError, match=told):
        specs.parse({**tiny_document, "space": {"channel_pruning": {"ratio": given}}}, "here")


def test_a_range_of_what_must_be_whole_is_told_before_anything_trains(tiny_document: Document) -> None:
    """Its ends are whole numbers, and what lies between is not."""
    with pytest.raises(SpecError, match=r"steps: .*valid integer.*1\.19"):
        specs.parse({**tiny_document, "space": {"channel_pruning": {"steps": {"low": 1, "high": 4}}}}, "here")


def test_a_setting_of_the_space_needs_no_other_beside_it(tiny_document: Document) -> None:
    """An architecture search must be told its trials and epochs, too: the search does."""
    space = {"architecture_search": {"max_latency_share": [0.25, 0.5]}}
    spec = specs.parse({**tiny_document, "space": space}, "here")
    assert spec.space == {"architecture_search": {"max_latency_share": (0.25, 0.5)}}


def test_every_problem_is_told_at_once(tiny_document: Document) -> None:
    document = {
        **tiny_document,
        "name": "Tiny!",
        "objectve": "size",
        "sla": {"latency": {"p99": 5}},
        "budget": {"minutes": 0},
        "candidates": [["statik_int8", {"onnxruntime": {"thread": 1}}], ["openvinno"]],
    }
    problems = problems_of(document)
    told = [
        ("name", "Tiny!"),
        ("objectve", "did you mean 'objective'?"),
        ("sla.latency.p99", "did you mean 'p99_ms'?"),
        ("budget.minutes", "greater than 0, but got 0"),
        ("candidates.0", "unknown technique 'statik_int8'; did you mean 'static_int8'?"),
        ("candidates.0", "unknown key 'thread'; did you mean 'threads'?"),
        ("candidates.1", "unknown backend 'openvinno'; did you mean 'openvino'?"),
    ]
    assert len(problems) == len(told)
    for where, what in told:
        assert any(where in problem and what in problem for problem in problems), (where, what, problems)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"workload": "a", "name": 3}, ["name: should be a valid string, but got 3"], id="type"),
        pytest.param({"sla": {}}, ["sla: an SLA must have at least one clause"], id="empty SLA"),
        pytest.param(
            {"sla": {"latency": {"batch_size": 2}}},
            ["sla.latency: at least one of p50_ms, p99_ms"],
            id="no limit",
        ),
        pytest.param(
            {"budget": {"minutes": float("inf")}},
            ["budget.minutes: should be a finite number"],
            id="infinite",
        ),
        pytest.param(
            {"workload": {"huggingfaec": {}}}, ["workload: unknown workload 'huggingfaec'"], id="workload"
        ),
        pytest.param({"workload": {"file": {"pth": "w.py"}}}, ["workload.file: must be `{path:"], id="path"),
        pytest.param(
            {"workload": {"onnx": "network.onnx"}},
            ["workload.onnx: must be a mapping of settings, but got 'network.onnx'"],
            id="no settings",
        ),
        pytest.param(
            {"workload": {"onnx": {"modl": "a.onnx", "arrays": "a.npz"}}, "name": 3},
            [
                "name: should be a valid string, but got 3",
                "workload.onnx: model: must be given",
                "workload.onnx: unknown key 'modl'; did you mean 'model'?",
            ],
            id="workload's settings",
        ),
        pytest.param(
            {"workload": {"file": {"path": "w.py", "setings": {}}}},
            ["workload.file: unknown key 'setings'; did you mean 'settings'?"],
            id="workload key",
        ),
        pytest.param(
            {"candidates": [[]]}, ["candidates.0: a recipe must be a list of steps"], id="empty recipe"
        ),
        pytest.param(
            {"candidates": ["fp16"]}, ["candidates.0: should be a valid list, but got 'fp16'"], id="no list"
        ),
        pytest.param({"candidates": [[5]]}, ["candidates.0: a recipe must be"], id="number"),
        pytest.param(
            {"candidates": [[{"static_int8": {"samples": 0}}, "onnxruntime"]]},
            ["candidates.0: static_int8: samples: should be greater than or equal to 1, but got 0"],
            id="settings",
        ),
        pytest.param(
            {"candidates": [["nncf_int8", "onnxruntime"]]},
            ["candidates.0: forms must follow torch → onnx → openvino"],
            id="order",
        ),
        pytest.param({"target": {"threads": []}}, ["target.threads: "], id="no threads"),
        pytest.param(
            {"target": {"threads": [1]}, "candidates": [["openvino"], [{"openvino": {"threads": 2}}]]},
            [
                "candidates.1: `threads` must be one of `target.threads` (1), but it is 2; "
                "set `openvino: {threads: 1}`, or add 2 to `target.threads`"
            ],
            id="two threads beside one",
        ),
        pytest.param(
            {"target": {"threads": [2, 4]}, "candidates": [["openvino"]]},
            ["candidates.0: `threads` must be one of `target.threads` (2, 4), but it is 1"],
            id="one thread, unsaid",
        ),
        pytest.param(
            {"space": {"low_rnk": {}}},
            ["space: unknown technique with training 'low_rnk'; did you mean 'low_rank'?"],
            id="space's technique",
        ),
        pytest.param(
            {"space": {"fp16": {}}}, ["space: unknown technique with training 'fp16'"], id="no training"
        ),
        pytest.param(
            {"space": {"low_rank": {"shares": [0.5], "epochs": [3]}}},
            [
                "space.low_rank: `epochs` is the search's to set",
                "space.low_rank: unknown key 'shares'; did you mean 'share'?",
            ],
            id="space's settings",
        ),
        pytest.param(
            {"space": {"channel_pruning": {"ratio": [0.5, 1.5]}}},
            ["space.channel_pruning: ratio: should be less than 1, but got 1.5"],
            id="space's values",
        ),
        pytest.param(
            {"space": {"early_exit": {"exits": [2, 4], "taken": [3]}}},
            ["space.early_exit: `taken <= exits` must hold, but got 3 of 2"],
            id="space's values together",
        ),
        pytest.param({"space": {"low_rank": {"share": []}}}, ["space.low_rank.share: "], id="no value"),
    ],
)
def test_problem_says_where_and_what(tiny_document: Document, changes: Document, expected: list[str]) -> None:
    problems = problems_of({**tiny_document, **changes})
    assert [problem[: len(start)] for problem, start in zip(problems, expected, strict=True)] == expected


@pytest.mark.parametrize("missing", ["name", "workload", "sla"])
def test_missing_key_is_named(tiny_document: Document, missing: str) -> None:
    rest = {key: value for key, value in tiny_document.items() if key != missing}
    assert problems_of(rest) == [f"{missing}: must be given"]


@pytest.mark.parametrize("document", [None, [], "text", 5], ids=["empty", "list", "text", "number"])
def test_top_must_be_a_mapping(document: Any) -> None:
    assert problems_of(document)[0].startswith("the top must be a mapping of keys")


@pytest.mark.parametrize("text", ["a: [", "\t", "a: 'b"], ids=["bracket", "tab", "quote"])
def test_what_is_no_yaml_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"bad\.yaml must be valid, but it has 1 problem") as caught:
        specs.read(tmp_path / "bad.yaml")
    assert caught.value.problems[0].startswith("not YAML: ")


def test_key_given_twice_is_refused_and_not_dropped(tmp_path: Path) -> None:
    """YAML's own readers keep the last of two equal keys: a goal would be gone without a word (law 2)."""
    text = "name: a\nworkload: w.py\nsla:\n  latency: {p99_ms: 5}\n  latency: {p50_ms: 1}\n"
    (tmp_path / "twice.yaml").write_text(text)
    with pytest.raises(SpecError, match="`latency` is given twice"):
        specs.read(tmp_path / "twice.yaml")


def test_file_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be readable, but .*No such file") as caught:
        specs.read(tmp_path / "absent.yaml")
    assert caught.value.exit_code == 2


def test_settings_are_frozen(tiny_document: Document) -> None:
    spec: PipelineSpec = specs.parse(tiny_document, "here")
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"


def test_profile_leaves_event_files_only_where_asked_for(tiny_document: Document) -> None:
    assert specs.parse(tiny_document, "here").profile.tensorboard is False
    asked = specs.parse({**tiny_document, "profile": {"tensorboard": True}}, "here")
    assert asked.profile.tensorboard is True
    with pytest.raises(SpecError, match="did you mean 'tensorboard'"):
        specs.parse({**tiny_document, "profile": {"tensorbord": True}}, "here")


def test_space_is_the_searchs_and_goes_with_no_candidates(tiny_document: Document) -> None:
    both = {**tiny_document, "space": {"low_rank": {}}, "candidates": [["onnxruntime"]]}
    (problem,) = problems_of(both)
    assert "one of `space` and `candidates` must be given" in problem


def test_only_an_approval_has_hours() -> None:
    document = {"name": "x", "workload": "workload.py", "sla": {"size": {"max_mib": 1}}, "approval_hours": 2}
    assert specs.parse({**document, "promotion": "approval"}, "a test").approval_hours == 2
    with pytest.raises(SpecError, match="`approval_hours` needs `promotion: approval`"):
        specs.parse(document, "a test")
