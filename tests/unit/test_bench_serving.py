"""`bench/serving.py`: other servers at their best, runs that tell nothing, and which answers are right."""

import importlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pareflow.measuring.load import Load, Said
from pareflow.measuring.loadgen_log import Log


@pytest.fixture
def serving(bench: Callable[[str], Any]) -> Any:
    return bench("serving")


def test_another_server_is_run_at_the_best_of_its_settings(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_s = {(1, 1): 10.0, (2, 1): 30.0, (1, 2): 20.0}
    monkeypatch.setattr(serving, "closed_loop", lambda server, _: SimpleNamespace(per_s=per_s[server]))
    best = serving._best(lambda *setting: nullcontext(setting), serving.THREADS)
    with best() as setting:
        assert setting == (2, 1)


@pytest.mark.filterwarnings("ignore:.*Any type hint")  # MLflow's own, when first imported
@pytest.mark.parametrize("threads", [1, 2])
def test_mlflows_session_has_so_many_threads_and_they_do_not_spin(
    threads: int, serving: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow

    importlib.import_module("serving_models").tiny(tmp_path)
    monkeypatch.setattr(serving, "FOLDER", tmp_path)
    monkeypatch.setattr(serving, "graph", lambda _: tmp_path / "model.onnx")
    monkeypatch.setattr(mlflow.models, "infer_pip_requirements", lambda *_, fallback, **__: fallback)
    loaded = mlflow.pyfunc.load_model(str(serving._mlflow_model(threads)))
    options = loaded.get_raw_model().get_session_options()
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("valid", "trouble", "measured"),
    [(True, (), 1.5), (False, (), None), (True, ("ended early",), None)],
    ids=["valid", "invalid", "in trouble"],
)
def test_arrivals_at_random_measure_where_loadgen_calls_the_run_valid(
    valid: bool,
    trouble: tuple[str, ...],
    measured: float | None,
    serving: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = Said(valid, "p99 is not known", 3, {}, None, trouble)
    monkeypatch.setattr(serving, "pareflow", lambda *_, **__: nullcontext(SimpleNamespace(posts=())))
    monkeypatch.setattr(serving, "closed_loop", lambda *_: SimpleNamespace(per_s=100.0))
    monkeypatch.setattr(serving, "under_load", lambda *_, **__: Log([10.0] * 90 + [15.0] * 10, said))
    (claim,) = serving.at_random(True)
    assert claim.measured == (measured and pytest.approx(measured))
    for words in ("p99 is not known",) * (not valid) + trouble:
        assert words in claim.note


@pytest.fixture
def endurance(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`serving_endurance`, whose versions answer 1 and 2."""
    module = bench("serving_endurance")
    answers = {"bert": [np.ones(2, np.float32)], "bert-2": [2 * np.ones(2, np.float32)]}
    monkeypatch.setattr(module, "_answers", answers.get)
    return module


@pytest.mark.parametrize(("version", "value", "right"), [("1", 1, True), ("2", 2, True), ("2", 1, False)])
def test_an_answer_must_be_that_of_the_version_that_it_names(
    version: str, value: float, right: bool, endurance: Any
) -> None:
    versions, wrong = set[str](), list[str]()
    content = json.dumps({"model_version": version}).encode() + np.full(2, value, "<f4").tobytes()
    endurance._checked(versions, wrong)(0, 200, content)
    assert versions == {version}
    assert bool(wrong) is not right


def told(endurance: Any, trouble: tuple[str, ...], wrong: list[str]) -> list[Any]:
    """The claims of ten minutes whose memory was 10 MiB in the second minute, and 11 in the last."""
    log = Log([1.0] * 10, Said(True, "", 10, {}, None, trouble))
    memory = [*[5.0] * 12, *[10.0] * 12, *[20.0] * 84, *[11.0] * 12]
    return list(endurance._claims(log, Load("Server", 80, 1000, seconds=600), wrong, {"1", "2"}, memory))


def test_memory_is_compared_before_and_after_the_changes_and_its_peak_told(endurance: Any) -> None:
    *_, memory = told(endurance, (), [])
    assert memory.measured == pytest.approx(0.1)
    assert memory.note == "10 MiB, then 11; at most 20"


def test_a_run_that_ended_early_measures_nothing_but_wrong_answers(endurance: Any) -> None:
    assert [claim.met for claim in told(endurance, ("ended early",), [])] == [None] * 3
    assert [claim.met for claim in told(endurance, ("ended early",), ["wrong"])] == [False, None, None]
