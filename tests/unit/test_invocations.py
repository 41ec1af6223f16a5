"""Raw samples in every form that MLflow's clients send them in, and what none of them may hold."""

import json
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from starlette.testclient import TestClient

from pareflow.errors import InputError, WorkloadError
from pareflow.monitoring.comparing import Comparison
from pareflow.serving import model as serving_model
from pareflow.serving import protocol, request_log
from pareflow.serving.executable import Release
from pareflow.serving.model import PackagedModel, holds_text, kind_of
from pareflow.serving.request_log import RequestLogSettings
from pareflow.serving.slot import FolderSource
from pareflow.variant import Step
from tests.unit.conftest import INFER, Packaged, Serve, Shelf

PEOPLE = [{"age": 1.5, "size": 3}, {"age": 9.0, "size": 2}]


@pytest.fixture
def people(make_package: Callable[..., Path], own_workloads: Path, tmp_path: Path) -> Path:
    """A model of records, an age and a size each, which predicts which of them is larger."""
    nodes = [
        helper.make_node("Cast", ["size"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["age", "column"], ["first"]),
        helper.make_node("Reshape", ["real", "column"], ["second"]),
        helper.make_node("Concat", ["first", "second"], ["y"], axis=1),
    ]
    kinds = {"age": TensorProto.FLOAT, "size": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, kind, ["batch"]) for name, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])]
    column = [helper.make_tensor("column", TensorProto.INT64, [2], [-1, 1])]
    graph = helper.make_graph(nodes, "people", inputs, outputs, column)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, own_workloads / "people.onnx")
    ages = np.random.default_rng(0).uniform(0, 90, 400).astype(np.float32)
    np.savez(own_workloads / "people.npz", age=ages, size=np.arange(400), targets=np.arange(400) % 2)
    given = {"model": "people.onnx", "arrays": "people.npz", "samples": {"age": "age", "size": "size"}}
    return make_package({"onnx": given}, own_workloads, tmp_path / "store", Step("onnxruntime"), "images")


def csv(client: TestClient, table: str) -> Any:
    return client.post("/invocations", content=table, headers={"content-type": "text/csv"})


def test_records_come_in_every_form(serve: Serve, people: Path) -> None:
    """Of a table by the names of its columns, in whatever order."""
    client = serve(Shelf(Release("images", "1", people))).client
    for form in (
        {"instances": PEOPLE},
        {"inputs": {"size": [3, 2], "age": [1.5, 9.0]}},
        {"dataframe_split": {"columns": ["size", "age"], "data": [[3, 1.5], [2, 9.0]]}},
        {"dataframe_records": PEOPLE},
    ):
        assert client.post("/invocations", json=form).json() == {"predictions": [1, 0]}
    assert csv(client, "size,age\n3,1.5\n2,9\n").json() == {"predictions": [1, 0]}


def test_records_are_kept_and_compared_with_the_original(serve: Serve, people: Path, tmp_path: Path) -> None:
    """Models of several inputs are asked with nothing else."""
    settings = RequestLogSettings(share=1, flush_s=0.05)
    source = Shelf(Release("images", "1", people))
    served = serve(source, requests=settings, requests_folder=tmp_path / "log")
    assert served.client.post("/invocations", json={"instances": PEOPLE}).status_code == 200
    served.client.__exit__(None, None, None)
    (kept,) = (one for path in request_log.files(tmp_path / "log") for one in request_log.exchanges(path))
    backend = json.loads((people / "model.json").read_text())["backend"]
    watched = {"features": 2, "projections": 0, "embedding": None, "tolerance": 0.05}
    rows = Comparison(str(people), str(people / "artifact"), backend, watched).live([kept])
    assert (rows["served"].tolist(), rows["agrees"].tolist()) == ([1, 0], [True, True])
    assert rows["feature.age.mean"].tolist() == [1.5, 9]
    served.client.__enter__()


def test_records_that_are_none_of_the_models_are_refused(serve: Serve, people: Path) -> None:
    """A column too many or too few, and numbers that are none."""
    client = serve(Shelf(Release("images", "1", people))).client
    person = PEOPLE[0]
    for wrong in ({**person, "name": 1}, {"age": 1.5}, {**person, "age": None}, {**person, "size": 2.5}):
        split = {"columns": list(wrong), "data": [list(wrong.values())]}
        forms = ({"instances": [wrong]}, {"dataframe_records": [wrong]}, {"dataframe_split": split})
        for form in forms:
            assert client.post("/invocations", json=form).status_code == 400, form
        assert csv(client, f"{','.join(wrong)}\n{','.join(map(str, wrong.values()))}\n").status_code == 400
    assert csv(client, "size,age\n3,nan\n").status_code == 400
    assert csv(client, "size,age\n3\n").status_code == 400
    ragged = {"columns": ["size", "age"], "data": [[3, 1.5], [2]]}
    assert client.post("/invocations", json={"dataframe_split": ragged}).status_code == 400


def test_what_is_no_text_is_no_sample_of_a_model_of_texts(serve: Serve, packaged: Packaged) -> None:
    """Else `None` and the words of a dict would be classified."""
    client = serve(FolderSource(packaged("texts"))).client
    for form in (
        {"instances": [{"text": "ab"}]},
        {"inputs": [None]},
        {"inputs": ["ab", 1]},
        {"dataframe_records": [{"text": "ab", "more": "b"}]},
        {"dataframe_split": {"columns": ["text", "more"], "data": [["ab", "b"]]}},
    ):
        answer = client.post("/invocations", json=form)
        assert (answer.status_code, list(answer.json())) == (400, ["error"]), form
    assert csv(client, "text,more\nab,b\n").status_code == 400


@pytest.mark.parametrize("missing", [None, "nan", "inf"])
def test_numbers_that_are_missing_or_not_finite_are_refused(serve: Serve, missing: Any) -> None:
    served = serve()
    (sample,) = served.golden["samples"][:1]
    sample = [[missing, *sample[0][1:]], *sample[1:]]
    answer = served.client.post("/invocations", json={"inputs": [sample]})
    assert (answer.status_code, "must be finite" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("gaps", [True, False])
def test_missing_numbers_are_taken_where_the_calibration_samples_lack_some(
    serve: Serve, with_gaps: Callable[..., Path], gaps: bool
) -> None:
    """As null and as raw bytes, by every route; infinity is taken nowhere."""
    package = with_gaps(gaps)
    assert json.loads((package / "model.json").read_text()).get("missing_values", False) is gaps
    client, status = serve(Shelf(Release("images", "1", package))).client, 200 if gaps else 400

    def asked(name: str, value: float, as_json: bool) -> Any:
        tensor = {"name": name, "datatype": "FP32", "shape": [1, 4]}
        if as_json:
            return client.post(INFER, json={"inputs": [{**tensor, "data": [1, None, 3, 2]}]})
        row = np.array([1, value, 3, 2], np.float32)
        head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": row.nbytes}}]}).encode()
        length = {protocol.HEADER: str(len(head))}
        return client.post(INFER, content=head + row.tobytes(), headers=length)

    for name in ("x", "samples"):
        assert asked(name, np.inf, as_json=False).status_code == 400
        for as_json in (True, False):
            answer = asked(name, np.nan, as_json)
            assert answer.status_code == status
            if gaps:
                outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
                assert outputs["y"] == [1, 0, 3, 2]
    answer = client.post("/invocations", json={"inputs": [[1, None, 3, 2]]})
    assert (answer.status_code, answer.json().get("predictions")) == (status, [2] if gaps else None)
    assert client.post("/invocations", json={"inputs": [[1, "inf", 3, 2]]}).status_code == 400


@pytest.mark.parametrize("in_list", [False, True])
def test_samples_of_different_sizes_and_outputs_that_are_booleans_survive_a_package(
    serve: Serve, make_package: Callable[..., Path], workloads: Path, tmp_path: Path, in_list: bool
) -> None:
    reference: Mapping[str, Any] = {"file": {"path": "ragged.py", "settings": {"in_list": in_list}}}
    backend = Step("onnxruntime")
    package = make_package(reference, workloads, tmp_path / "store", backend, "images")
    client = serve(Shelf(Release("images", "1", package))).client
    answer = client.post("/invocations", json={"inputs": [[1, -2.5], [0.5], [-3, 1, 4]]})
    assert answer.json() == {"predictions": [0, 1, 1]}
    assert client.post("/invocations", json={"inputs": [["a"]]}).status_code == 400


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (np.array([b"one", b"two"]), "ndarray of |S3"),
        (np.array([b"one", b"two"], dtype=object), "ndarray of |S3"),
        (np.array(["2026-11-30"], dtype="datetime64[ns]"), r"ndarray of datetime64[ns]"),
        (np.array([5], dtype="timedelta64[s]"), "ndarray of timedelta64[s]"),
        (np.array([1 + 2j]), "ndarray of complex128"),
        (np.zeros(2, dtype="V8"), "ndarray of |V8"),
        (np.zeros(2, dtype=[("age", "<f4"), ("born", "<M8[D]")]), "ndarray of [('age', '<f4'), ('born'"),
        (np.zeros(2, dtype=[("name", "O")]), "ndarray of [('name', 'O')]"),
        ([("a question", "an answer"), ("another", "one more")], "list of <U10, <U8"),
        ([b"one", b"two"], "list of |S3"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_samples_that_json_does_not_give_back_are_refused(samples: Any, found: str) -> None:
    with pytest.raises(WorkloadError, match=r"samples must be .* which JSON gives back") as told:
        kind_of(samples)
    assert found in told.value.found


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (np.zeros((2, 3), dtype=">i2"), ">i2"),
        (np.array([True]), "bool"),
        (np.array(["one"]), "<U3"),
        (np.array(["one", {"a": [1]}], dtype=object), "object"),
        (np.zeros(1, dtype=[("a", "<i8", (3,)), ("b", "<U4")]), "[('a', '<i8', (3,)), ('b', '<U4')]"),
        (["one"], "text"),
        ([np.zeros(2), np.zeros(3)], "list of float64"),
    ],
)
def test_samples_that_it_does_are_named(samples: Any, kind: str) -> None:
    assert kind_of(samples) == kind


def taking(kind: str) -> PackagedModel:
    """A model of which nothing is there but the kind of its samples."""
    model = object.__new__(PackagedModel)
    model.document = {"samples": kind}
    return model


def test_texts_that_would_take_too_much_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes as much as the longest."""
    monkeypatch.setattr(serving_model, "MOST_BYTES", 2**20)
    with pytest.raises(InputError, match="each as long as the longest, but 1001 of them take 3 MiB"):
        taking("<U4").preprocess(["b" * 1000, *"a" * 1000])


def test_a_text_in_a_record_is_as_long_as_it_was_given() -> None:
    """However long those were that the model was made of; what is no text is told."""
    model = taking("[('q', '<U2'), ('n', '<i8'), ('names', '<U1', (2,))]")
    record = {"q": "abc", "n": 1, "names": ["d", "efgh"]}
    found = np.asarray(model._raw([record]))[0]
    assert (found["q"], found["n"], found["names"].tolist()) == ("abc", 1, ["d", "efgh"])
    for wrong in ({"q": 5}, {"q": None}, {"names": ["d", 5]}):
        with pytest.raises(InputError, match="samples must be texts"):
            model._raw([{**record, **wrong}])


def test_texts_in_records_that_would_take_too_much_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_model, "MOST_BYTES", 2**20)
    with pytest.raises(InputError, match="each as long as the longest, but 1001 of them take 3 MiB"):
        taking("[('q', '<U4')]")._raw([{"q": text} for text in ("b" * 1000, *"a" * 1000)])


class Compared(int):
    """A whole number that nobody may compare by itself."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __ne__ = __eq__


def test_numbers_are_held_against_what_was_given_all_at_once() -> None:
    assert np.array(taking("int32")._raw([[Compared(1)], [Compared(2)]])).tolist() == [[1], [2]]
    with pytest.raises(InputError, match=r"must be numbers that int32 holds, but one is 2\.5"):
        taking("int32")._raw([[1, 2], [2.5, "3"]])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([[1, 2.5], [None, True]], False),
        ([[1], ("2",)], True),
        ([b"1"], True),
        ([np.array([1]), np.array(["2"])], True),
        ([np.array([1, ["2"]], dtype=object)], True),
        ([np.array([1]), np.int8(2)], False),
        (["1" * 3], True),
        (5, False),
    ],
    ids=str,
)
def test_a_text_is_found_wherever_it_lies(values: Any, found: bool) -> None:
    assert holds_text(values) is found


@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_a_number_in_a_long_text_costs_no_room_for_the_others(kind: str) -> None:
    tracemalloc.start()
    found = taking(kind)._raw(["0" * 4000, *range(1000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.asarray(found).tolist() == [0, *range(1000)]
    assert peak < 2**20
