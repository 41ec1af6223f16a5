"""The server's application: every route, every refusal, and one version after another."""

import asyncio
import json
import os
import shutil
import sqlite3
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from pareflow.errors import CrashedError, InputError, StepFailedError, TransientError, VariantError
from pareflow.measurement import Ran
from pareflow.monitoring import exposition
from pareflow.runtime import DynamicBatching
from pareflow.serving import protocol, request_log
from pareflow.serving.executable import Executable, Release
from pareflow.serving.hosting import PREDICTIONS
from pareflow.serving.metrics import Metrics
from pareflow.serving.model import PackagedModel
from pareflow.serving.plan import ServingPlan
from pareflow.serving.request_log import RequestLogSettings
from pareflow.serving.slot import FolderSource, Slot
from pareflow.session import Session
from pareflow.variant import Step
from pareflow.workload import Arrays
from tests.unit.conftest import INFER, LINEAR_WEIGHTS, Linear, Packaged, Serve, Shelf


def test_outputs_are_the_golden_ones(serve: Serve) -> None:
    served = serve()
    answer = served.infer(id="7").json()
    (output,) = answer["outputs"]
    expected = np.asarray(served.golden["outputs"]["output"][:2])
    assert (answer["model_name"], answer["id"], output["shape"]) == ("images", "7", list(expected.shape))
    assert np.allclose(output["data"], expected.ravel(), atol=1e-5)


@pytest.mark.parametrize("inline_ms", [0, 1000])
def test_raw_samples_give_the_golden_predictions(serve: Serve, inline_ms: float) -> None:
    """By the protocol, and as MLflow's clients ask; in a thread, and on the event loop."""
    served = serve(plan={"inline_ms": inline_ms})
    samples = np.asarray(served.golden["samples"], dtype=np.float32)
    tensor = {"name": "samples", "datatype": "FP32", "shape": list(samples.shape)}
    content = {"inputs": [{**tensor, "data": samples.ravel().tolist()}], "outputs": [{"name": "predictions"}]}
    (output,) = served.client.post(INFER, content=json.dumps(content)).json()["outputs"]
    expected = served.golden["predictions"]
    assert output["data"] == expected
    for form in (
        {"inputs": served.golden["samples"]},
        {"instances": served.golden["samples"]},
        {"inputs": {"image": served.golden["samples"]}},
        {"dataframe_split": {"columns": ["image"], "data": [[one] for one in served.golden["samples"]]}},
        {"dataframe_records": [{"image": one} for one in served.golden["samples"]]},
    ):
        assert served.client.post("/invocations", json=form).json() == {"predictions": expected}


def test_a_model_of_texts_takes_texts(serve: Serve, packaged: Packaged) -> None:
    """Of different lengths, which its metadata says; as JSON, raw, and as a table."""
    package = packaged("texts")
    served = serve(FolderSource(package))
    golden = json.loads((package / "golden.json").read_text())
    samples, expected = golden["samples"], golden["predictions"]
    metadata = served.client.get("/v2/models/texts").json()
    assert all(tensor["shape"][0] == -1 for tensor in metadata["inputs"])
    tensor = {"name": "samples", "datatype": "BYTES", "shape": [len(samples)], "data": samples}
    answer = served.client.post("/v2/models/texts/infer", json={"inputs": [tensor]}).json()
    assert answer["outputs"][0]["data"] == expected
    table = "text\n" + "\n".join(f'"{text}"' for text in samples)
    asked = served.client.post("/invocations", content=table, headers={"content-type": "text/csv"})
    assert asked.json() == {"predictions": expected}


@pytest.fixture
def whole(make_package: Callable[..., Path], workloads: Path, tmp_path: Path) -> Callable[[str], Release]:
    """A model of whole pixels, which predicts names or scores."""

    def made(answers: str) -> Release:
        workload = {"file": {"path": "whole_images.py", "settings": {"answers": answers}}}
        backend = Step("onnxruntime")
        return Release("images", "1", make_package(workload, workloads, tmp_path / "store", backend, answers))

    return made


@pytest.mark.parametrize("answers", ["names", "scores"])
def test_predictions_of_every_kind_are_told(
    serve: Serve, whole: Callable[[str], Release], answers: str
) -> None:
    """Texts, and numbers that do not lie one after the other."""
    release = whole(answers)
    golden = json.loads((release.package / "golden.json").read_text())
    answer = serve(Shelf(release)).client.post("/invocations", json={"inputs": golden["samples"]})
    assert answer.json() == {"predictions": golden["predictions"]}


def test_samples_that_the_models_kind_of_number_cannot_hold_are_refused(
    serve: Serve, whole: Callable[[str], Release]
) -> None:
    """Pixels are whole numbers from 0 to 255; of whatever type they come, they must not become others."""
    client = serve(Shelf(whole("names"))).client
    pixels = np.zeros((1, 8, 8))

    def asked(pixel: float, datatype: str | None = None) -> Any:
        pixels[0, 0, 0] = pixel
        kind = float if datatype is None or datatype.startswith("FP") else int
        if datatype is None:
            return client.post("/invocations", json={"inputs": pixels.tolist()})
        tensor = {"name": "samples", "datatype": datatype, "shape": [1, 8, 8]}
        return client.post(INFER, json={"inputs": [{**tensor, "data": pixels.astype(kind).ravel().tolist()}]})

    for pixel, datatype in ((300, "INT64"), (-1, "INT8"), (0.5, "FP32"), (0.5, None), (300, None)):
        answer = asked(pixel, datatype)
        assert (answer.status_code, "uint8" in answer.json()["error"]) == (400, True)
    whole_pixels = pixels.astype(int)
    whole_pixels[0, 0, 0] = 300
    assert client.post("/invocations", json={"inputs": whole_pixels.tolist()}).status_code == 400
    for datatype in ("UINT8", "INT64", "FP32", None):
        assert asked(255, datatype).status_code == 200


def asked_for(client: TestClient, route: str, name: str, array: np.ndarray) -> Any:
    """The answer to an array, given as `name` where the route names what it is given."""
    if route == "/invocations":
        return client.post(route, json={"inputs": array.tolist()})
    tensor = {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
    return client.post(route, json={"inputs": [tensor]})


@pytest.mark.parametrize(("route", "name"), [(INFER, "x"), (INFER, "samples"), ("/invocations", "samples")])
def test_another_size_is_the_callers_mistake_by_every_route(
    serve: Serve, linear: Linear, route: str, name: str
) -> None:
    """What counts against the version is what it does wrong itself."""
    client = serve(Shelf(Release("images", "1", linear()))).client
    answer = asked_for(client, route, name, np.zeros((1, 1, 9, 9), np.float32))
    assert (answer.status_code, "`x` has shape (1, 1, 9, 9)" in answer.json()["error"]) == (400, True)
    assert exposition.parse(client.get("/metrics").text, "images", 0.0).statuses == {"400": 1}


class OfAWorker:
    """A session whose runtime is in a worker: whatever that raises is told as a failed step, or kills it."""

    def __init__(self, session: Session, told: type[VariantError] = StepFailedError) -> None:
        self._session, self._told = session, told

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        try:
            return self._session.run(feeds)
        except Exception as error:
            raise self._told("the worker must do as it is asked", f"{error}", "See the log") from error

    def ran(self) -> Ran:
        return self._session.ran()


def test_another_size_is_the_callers_mistake_though_it_is_a_worker_that_fails(
    serve: Serve, linear: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = PackagedModel.load_session
    monkeypatch.setattr(PackagedModel, "load_session", lambda model: OfAWorker(load(model)))
    client = serve(Shelf(Release("images", "1", linear()))).client
    answer = asked_for(client, INFER, "x", np.zeros((1, 1, 9, 9), np.float32))
    assert (answer.status_code, "`x` has shape (1, 1, 9, 9)" in answer.json()["error"]) == (400, True)


def test_a_worker_that_is_dead_is_not_the_callers_mistake_though_the_size_is_unusual(
    serve: Serve, linear: Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = PackagedModel.load_session
    monkeypatch.setattr(PackagedModel, "load_session", lambda model: OfAWorker(load(model), CrashedError))
    client = serve(Shelf(Release("images", "1", linear()))).client
    assert asked_for(client, INFER, "x", np.zeros((1, 1, 9, 9), np.float32)).status_code == 500


@pytest.mark.parametrize("shape", [(1, 3, 3), (1, 3, 8, 8)], ids=["sizes", "rank"])
@pytest.mark.parametrize("route", [INFER, "/invocations"])
def test_samples_that_become_inputs_of_another_size_or_rank_are_the_callers_mistake(
    serve: Serve, packaged: Packaged, route: str, shape: tuple[int, ...]
) -> None:
    served = serve(FolderSource(packaged("images", Step("torch_eager"))))
    answer = asked_for(served.client, route, "samples", np.zeros(shape, np.float32))
    assert (answer.status_code, "`images` has shape" in answer.json()["error"]) == (400, True)


def test_predictions_are_predictions_though_the_network_calls_its_output_so(
    serve: Serve, linear: Linear
) -> None:
    """Raw samples give them by both routes; tensors give what the network says, and their predictions."""
    served = serve(Shelf(Release("images", "1", linear(scores="predictions"))))
    client, portal = served.client, served.client.portal
    assert portal is not None
    images = np.random.default_rng(1).standard_normal((3, 1, 8, 8), np.float32)
    scores = LINEAR_WEIGHTS.T @ images.reshape(3, 64, 1)
    expected = scores[:, :, 0].argmax(axis=1).tolist()
    (output,) = asked_for(client, INFER, "samples", images).json()["outputs"]
    assert (output["name"], output["data"]) == ("predictions", expected)
    assert asked_for(client, "/invocations", "", images).json() == {"predictions": expected}
    (output,) = asked_for(client, INFER, "x", images).json()["outputs"]
    np.testing.assert_allclose(output["data"], scores.ravel(), rtol=1e-4, atol=1e-4)

    async def predictions() -> list[int]:
        hosted = served.slot.hosted
        answers = [await hosted.answer({name: images}) for name in ("x", "samples")]
        return [(await hosted.predictions(one)).tolist() for one in answers]

    assert portal.call(predictions) == [expected, expected]


def test_detections_are_lists_and_by_the_protocol_texts_of_json(serve: Serve, detector: Path) -> None:
    """Its tensors have one size."""
    served = serve(Shelf(Release("images", "1", detector)))
    golden = json.loads((detector / "golden.json").read_text())
    images, counts = np.asarray(golden["samples"], np.float32), [len(row) for row in golden["predictions"]]
    answer = served.client.post("/invocations", json={"inputs": golden["samples"]}).json()
    assert [len(row) for row in answer["predictions"]] == counts
    outputs = asked_for(served.client, INFER, "samples", images).json()["outputs"]
    output = next(one for one in outputs if one["name"] == "predictions")
    assert (output["datatype"], output["shape"]) == ("BYTES", [len(counts)])
    assert [len(json.loads(row)) for row in output["data"]] == counts
    spread = served.slot.hosted.spread
    assert 0 < spread < 10


@pytest.mark.parametrize("images", [1, 2])
def test_detections_are_texts_of_json_though_all_images_of_a_request_have_as_many(
    serve: Serve, detector: Path, images: int, tmp_path: Path
) -> None:
    """Their request is kept, too, without what can be made again."""
    asked_to_keep = RequestLogSettings(share=1, flush_s=0.05)
    release = Release("images", "1", detector)
    served = serve(Shelf(release), requests=asked_to_keep, requests_folder=tmp_path / "kept")
    golden = json.loads((detector / "golden.json").read_text())
    sample, boxes = next(
        pair for pair in zip(golden["samples"], golden["predictions"], strict=True) if pair[1]
    )
    given = np.asarray([sample] * images, np.float32)
    outputs = asked_for(served.client, INFER, "samples", given).json()["outputs"]
    output = next(one for one in outputs if one["name"] == "predictions")
    assert (output["datatype"], output["shape"]) == ("BYTES", [images])
    assert [len(json.loads(row)) for row in output["data"]] == [len(boxes)] * images
    served.client.__exit__(None, None, None)
    (path,) = request_log.files(tmp_path / "kept")
    assert [set(one.outputs) for one in request_log.exchanges(path)] == [{"output"}]
    served.client.__enter__()


def test_an_input_that_the_network_calls_samples_is_the_networks(serve: Serve, linear: Linear) -> None:
    """As its metadata says; raw ones go to `/invocations`, and a refusal promises nothing else."""
    served = serve(Shelf(Release("images", "1", linear("samples", scale=0.5, zero_point=0.25))))
    client = served.client
    raw = np.random.default_rng(1).standard_normal((3, 1, 8, 8), np.float32)
    scores = raw.reshape(3, 64) @ LINEAR_WEIGHTS
    assert client.get("/v2/models/images").json()["inputs"][0]["name"] == "samples"
    (output,) = asked_for(client, INFER, "samples", raw).json()["outputs"]
    assert output["name"] == "y"
    np.testing.assert_allclose(output["data"], scores.ravel(), rtol=1e-4, atol=1e-4)
    processed = 0.5 * (raw.reshape(3, 64) - 0.25) @ LINEAR_WEIGHTS
    expected = processed.argmax(axis=1).tolist()
    assert expected != scores.argmax(axis=1).tolist()
    assert asked_for(client, "/invocations", "", raw).json() == {"predictions": expected}
    assert "alone" not in asked_for(client, INFER, "images", raw).json()["error"]


def test_inputs_may_come_in_any_order(serve: Serve, packaged: Packaged) -> None:
    """A torch module takes its inputs by position."""
    served = serve(FolderSource(packaged("texts", Step("torch_eager"))))
    values = {"ids": [1, 1, 2] + 9 * [0], "mask": 3 * [1] + 9 * [0]}
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1, 12], "data": data} for name, data in values.items()
    ]
    answers = [
        served.client.post("/v2/models/texts/infer", json={"inputs": given}).json()["outputs"]
        for given in (inputs, inputs[::-1])
    ]
    assert answers[0] == answers[1]


def test_raw_answers_say_where_they_begin(serve: Serve) -> None:
    served = serve()
    answer = served.infer(parameters={"binary_data_output": True})
    head = int(answer.headers[protocol.HEADER])
    (output,) = json.loads(answer.content[:head])["outputs"]
    values = np.frombuffer(answer.content[head:], "<f4")
    assert output["parameters"] == {"binary_data_size": values.nbytes}
    assert np.allclose(values, np.asarray(served.golden["outputs"]["output"][:2]).ravel(), atol=1e-5)


@pytest.mark.parametrize(("backend", "every_size"), [("onnxruntime", False), ("openvino", True)])
def test_what_is_compiled_for_each_size_of_batch_is_before_the_first_request(
    packaged: Packaged, monkeypatch: pytest.MonkeyPatch, backend: str, every_size: bool
) -> None:
    sizes, load = set[int](), PackagedModel.load_session

    def load_session(model: PackagedModel) -> Session:
        session = load(model)
        run = session.run

        def counted(feeds: Mapping[str, np.ndarray]) -> Arrays:
            sizes.add(len(feeds["images"]))
            return run(feeds)

        monkeypatch.setattr(session, "run", counted)
        return session

    monkeypatch.setattr(PackagedModel, "load_session", load_session)
    policies = ({"dynamic_batching": {"max_batch_size": 7}},)
    release = Release("images", "1", packaged("images", Step(backend)))
    Executable(release, ServingPlan(policies=policies)).close()
    golden = {1, len(json.loads((release.package / "golden.json").read_text())["samples"])}
    assert sizes - golden == (set(range(1, 8)) if every_size else {7}) - golden


def test_metadata_says_what_the_model_takes(serve: Serve) -> None:
    served = serve()
    found = served.client.get("/v2/models/images").json()
    assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert served.slot.hosted.main.endpoint.shapes == {"images": (-1, 1, 8, 8)}  # what policies know
    version = found["versions"][0]
    assert served.client.get(f"/v2/models/images/versions/{version}").json() == found
    assert served.client.get(f"/v2/models/images/versions/{version}/ready").json()["ready"]
    assert served.infer(f"/v2/models/images/versions/{version}/infer").status_code == 200
    assert served.client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert served.client.get("/v2/health/live").json() == {"live": True}
    assert served.client.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "image"}, "`images` is missing"),
        ({"datatype": "FP64"}, "`images` is FP64"),
        ({"shape": [2, 64]}, r"`images` has shape \(2, 64\)"),
        ({"shape": [2, 1, 4, 16]}, r"`images` is float32 \(2, 1, 4, 16\)"),  # told by the runtime
        ({"shape": [0, 1, 8, 8], "data": []}, "it holds no sample"),
    ],
)
def test_an_input_that_is_not_the_models_is_refused(serve: Serve, changes: Any, said: str) -> None:
    served = serve()
    answer = served.client.post(INFER, json={"inputs": [{**served.input(), **changes}]})
    assert answer.status_code == 400
    with pytest.raises(InputError, match=said):
        raise InputError(answer.json()["error"], "", "")


def test_inputs_of_different_numbers_of_samples_are_refused(serve: Serve, packaged: Packaged) -> None:
    served = serve(FolderSource(packaged("texts")))
    tensors = served.client.get("/v2/models/texts").json()["inputs"]
    assert len(tensors) == 2
    inputs = [
        {**tensor, "shape": [count, 12], "data": [1] * 12 * count}
        for count, tensor in enumerate(tensors, start=1)
    ]
    answer = served.client.post("/v2/models/texts/infer", json={"inputs": inputs})
    assert answer.status_code == 400
    assert "its inputs hold 1 and 2 samples" in answer.json()["error"]


def test_no_raw_samples_are_refused_before_they_join_others(serve: Serve) -> None:
    """Joined with good ones, none of them would fail the batch for all."""
    served = serve()
    none = np.zeros((0, 8, 8), np.float32)
    answer = asked_for(served.client, INFER, "samples", none)
    assert (answer.status_code, "it holds no sample" in answer.json()["error"]) == (400, True)
    hosted, portal = served.slot.hosted, served.client.portal
    assert portal is not None
    good = np.asarray(served.golden["samples"][:1], np.float32)

    async def together() -> list[Any]:
        asked = (hosted.predicted(one) for one in (none, good))
        return await asyncio.gather(*asked, return_exceptions=True)

    refused, answered = portal.call(together)
    assert isinstance(refused, InputError)
    assert answered[PREDICTIONS].tolist() == served.golden["predictions"][:1]
    assert hosted.figures["dynamic_batching"]()["batches"] == 1


def test_an_input_too_many_is_refused(serve: Serve) -> None:
    served = serve()
    more = {"name": "more", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    answer = served.client.post(INFER, json={"inputs": [served.input(), more]})
    assert answer.status_code == 400
    assert "there is no `more`" in answer.json()["error"]


def test_each_refusal_has_its_status(serve: Serve) -> None:
    served = serve(body_mib=0.01)
    client = served.client
    assert served.infer("/v2/models/other/infer").status_code == 404
    assert served.infer("/v2/models/images/versions/0/infer").status_code == 404
    assert client.get("/v2/models/other").status_code == 404
    assert client.get(INFER).status_code == 405
    assert client.get("/nothing").status_code == 404
    assert "GET /nothing must be a route" in client.get("/nothing").json()["error"]
    assert client.post(INFER, content=b"{").status_code == 400
    assert client.post(INFER, content=b" " * 20_000).status_code == 413
    assert client.post(INFER, content=(b" " * 4000 for _ in range(5))).status_code == 413  # of unknown length
    assert client.post(INFER, content=b"x", headers={"content-encoding": "gzip"}).status_code == 415
    assert client.post("/invocations", json={"rows": []}).status_code == 400
    assert client.post("/invocations", json={"inputs": ["no", "picture"]}).status_code == 400
    assert (
        client.post("/invocations", content=b"\xff", headers={"content-type": "text/csv"}).status_code == 400
    )


def test_nothing_is_told_to_who_has_no_key(serve: Serve) -> None:
    served = serve(api_keys=("first", "second"))
    client = served.client
    assert served.infer().status_code == 401
    assert client.get("/metrics", headers={"authorization": "Bearer third"}).status_code == 401
    assert client.get("/metrics", headers={"authorization": "Bearer second"}).status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2", headers={"authorization": "second"}).headers["www-authenticate"] == "Bearer"


def test_a_request_that_would_be_late_is_told_when_to_come_again(serve: Serve) -> None:
    """One microsecond is over before anything can be computed. A deadline of the caller's own that the server
    could not keep is no failure of the server's."""
    served = serve(plan={"inline_ms": 0, "deadline_ms": 60_000})
    served.infer()
    late = served.infer(parameters={"timeout": 1})
    assert late.status_code == 408
    assert int(late.headers["retry-after"]) >= 1
    assert "must be answered before its deadline" in late.json()["error"]
    assert served.infer(parameters={"timeout": 10_000_000}).status_code == 200
    reading = exposition.parse(served.client.get("/metrics").text, "images", at_s=1)
    assert exposition.between(replace(reading, statuses={}, buckets={}), reading).failed == 0


def test_the_plans_deadline_counts_where_the_request_names_a_later_one(serve: Serve) -> None:
    served = serve(plan={"deadline_ms": 0.001, "inline_ms": 0})
    served.infer()
    assert served.infer(parameters={"timeout": 10_000_000}).status_code == 503


def test_metrics_count_requests_and_what_policies_count(serve: Serve) -> None:
    served = serve(plan={"policies": [{"exact_cache": {}}, {"dynamic_batching": {}}]})
    for _ in range(3):
        served.infer()
    served.client.post(INFER, content=b"{")
    served.infer(outputs=[{"name": "none"}])  # told before anything is asked of a policy
    lines = served.client.get("/metrics").text.splitlines()
    assert 'pareflow_requests_total{model="images",route="infer",status="200"} 3.0' in lines
    assert 'pareflow_requests_total{model="images",route="infer",status="400"} 2.0' in lines
    assert 'pareflow_policy_total{figure="hits",model="images",policy="exact_cache"} 2.0' in lines
    assert 'pareflow_policy_total{figure="batches",model="images",policy="dynamic_batching"} 1.0' in lines


def test_a_worker_that_is_killed_costs_one_request_at_most(
    serve: Serve, make_package: Callable[..., Path], workloads: Path, tmp_path: Path, rogues: None
) -> None:
    reference = {"file": {"path": "rogue_images.py"}}
    package = make_package(reference, workloads, tmp_path / "store", Step("relayed"), "rogues")
    served = serve(Shelf(Release("images", "1", package)), plan={"sessions": 1})
    expected = served.infer().json()["outputs"]
    model: Any = served.slot.hosted.main.processing
    model.session.relay._worker.kill()
    answers = [served.infer() for _ in range(20)]
    answered = [answer.json()["outputs"] for answer in answers if answer.status_code == 200]
    assert len(answered) >= 19
    assert all(outputs == expected for outputs in answered)


@pytest.mark.parametrize("inline_ms", [0, 1e9], ids=["in a thread", "on the event loop"])
def test_who_gave_up_is_counted_and_timed_and_neither_a_success_nor_a_failure(
    serve: Serve, inline_ms: float
) -> None:
    """A client that goes while its request waits for others to come."""
    waiting = {"min_batch_size": 2, "max_wait_ms": 60_000}
    served = serve(plan={"inline_ms": inline_ms, "policies": [{"dynamic_batching": waiting}]})
    client = served.client
    before = exposition.parse(client.get("/metrics").text, "images", at_s=0)
    body = json.dumps({"inputs": [served.input(1)]}).encode()
    told = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return told.pop(0)

    _infer_of(client, receive)
    reading = exposition.parse(client.get("/metrics").text, "images", at_s=1)
    assert reading.statuses == {"499": 1}
    window = exposition.between(before, reading)
    assert (window.requests, window.failed, window.answered) == (0, 0, 1)


def _infer_of(client: TestClient, receive: Callable[[], Awaitable[Any]]) -> None:
    """One request whose body comes as `receive` gives it, and whose answer nobody reads (ASGI)."""

    async def send(_: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "query_string": b""}
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)


@pytest.mark.parametrize("ends", [True, False], ids=["comes slowly", "never comes whole"])
def test_how_long_a_body_takes_to_come_is_not_the_servers_time(serve: Serve, ends: bool) -> None:
    """A request is timed from when it is whole; one that never is, is counted alone."""
    served = serve()
    client, body = served.client, json.dumps({"inputs": [served.input(1)]}).encode()
    last = {"type": "http.request", "body": body[10:]} if ends else {"type": "http.disconnect"}
    told = [{"type": "http.request", "body": body[:10], "more_body": True}, last]
    upload_s = 1.0

    async def receive() -> Any:
        if len(told) == 1:
            await asyncio.sleep(upload_s)
        return told.pop(0) if told else await asyncio.Event().wait()

    _infer_of(client, receive)
    reading = exposition.parse(client.get("/metrics").text, "images", at_s=1)
    assert reading.statuses == ({"200": 1} if ends else {"499": 1})
    assert max(reading.buckets.values(), default=0) == ends
    assert reading.buckets.get(upload_s, 0) == ends


def test_metrics_tell_the_policies_of_every_model() -> None:
    metrics = Metrics()
    for name, waiting in (("images", 4.0), ("texts", 9.0)):
        metrics.serves(name, "1", {"batching": partial(dict, waiting=waiting)}, "here")
    lines = metrics.text().decode().splitlines()
    assert 'pareflow_policy_total{figure="waiting",model="images",policy="batching"} 4.0' in lines
    assert 'pareflow_policy_total{figure="waiting",model="texts",policy="batching"} 9.0' in lines


def test_the_next_version_takes_over_between_two_requests(serve: Serve, two: tuple[Release, Release]) -> None:
    source = Shelf(two[0])
    served = serve(source)
    assert served.infer().json()["model_version"] == "1"
    source.release = two[1]
    served.refresh()
    assert served.infer().json()["model_version"] == "2"
    assert served.infer("/v2/models/images/versions/1/infer").status_code == 404
    assert 'pareflow_model_info{model="images",version="2"} 1.0' in served.client.get("/metrics").text


def test_who_names_the_previous_version_is_answered_by_it_while_it_stands_ready(
    serve: Serve, two: tuple[Release, Release]
) -> None:
    source = Shelf(two[0])
    served = serve(source)
    source.release, source.before = two[1], two[0]
    served.refresh()
    answers = [served.infer(f"/v2/models/images{named}/infer").json() for named in ("", "/versions/1")]
    assert [answer["model_version"] for answer in answers] == ["2", "1"]
    assert served.infer("/v2/models/images/versions/3/infer").status_code == 404


def test_nothing_is_left_of_a_version_that_was_replaced(serve: Serve, two: tuple[Release, Release]) -> None:
    source = Shelf(two[0])
    served = serve(source)
    served.infer()
    before = weakref.ref(served.slot.hosted)
    source.release = two[1]
    served.refresh()
    for _ in range(100):
        if before() is None:
            break
        time.sleep(0.05)
    assert before() is None


def test_a_version_that_is_served_already_is_not_loaded_again(
    serve: Serve, two: tuple[Release, Release]
) -> None:
    served = serve(Shelf(two[0]))
    before = served.slot.hosted
    served.refresh()
    assert served.slot.hosted is before


def test_no_request_fails_while_versions_change(serve: Serve, two: tuple[Release, Release]) -> None:
    source = Shelf(two[0])
    served = serve(source, plan={"inline_ms": 0})
    stop, statuses = threading.Event(), list[int]()

    def ask() -> None:
        while not stop.is_set():
            statuses.append(served.infer().status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(6):
        source.release = two[(number + 1) % 2]
        served.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    assert len(statuses) >= len(threads)


def test_a_damaged_version_is_refused_and_the_present_one_stays(
    serve: Serve, two: tuple[Release, Release], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(two[0].package, damaged)
    with (damaged / "artifact" / "model.onnx").open("ab") as file:
        file.write(b"x")
    source = Shelf(two[0])
    served = serve(source)
    source.release = Release("images", "2", damaged)
    for _ in range(2):
        served.refresh()
    assert served.infer().json()["model_version"] == "1"
    told = [record.message for record in caplog.records if "refused, and 1 stays" in record.message]
    assert len(told) == 1  # once for as long as it lasts
    assert "artifact/model.onnx" in told[0]


AWAY = TransientError("the registry must be reachable", "it is not", "Start it")


def test_a_registry_that_goes_away_changes_nothing(serve: Serve, two: tuple[Release, Release]) -> None:
    source = Shelf(two[0])
    served = serve(source)
    source.release = AWAY
    served.refresh()
    assert served.infer().status_code == 200
    assert "pareflow_registry_reachable 0.0" in served.client.get("/metrics").text
    source.release = two[1]
    served.refresh()
    assert served.infer().json()["model_version"] == "2"
    assert "pareflow_registry_reachable 1.0" in served.client.get("/metrics").text


def test_where_the_registry_is_away_at_the_start_the_last_good_copy_serves(
    serve: Serve, two: tuple[Release, Release], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(Shelf(AWAY, kept=two[0]))
    assert served.infer().json()["model_version"] == "1"
    assert "serving version 1 of images, the last that came whole" in caplog.text
    with pytest.raises(TransientError):
        serve(Shelf(AWAY))


def test_the_end_waits_for_who_is_being_answered(packaged: Packaged) -> None:
    """A version is closed when its last request is answered, and not before."""
    metrics = Metrics()
    slot = Slot(FolderSource(packaged("images")), ServingPlan(), metrics)

    async def scenario() -> None:
        slot.start()
        async with slot.hosted.asked():
            closing = asyncio.create_task(slot.close())
            await asyncio.sleep(0.05)
            assert not closing.done()
        await closing

    asyncio.run(scenario())


def test_what_tiers_keep_goes_with_their_version(
    packaged: Packaged, two: tuple[Release, Release], tmp_path: Path
) -> None:
    """A cache below the choice stands before each tier, and keeps an answer of each in one file; that of a
    tier which the next version has, too, stays."""
    cache = {"exact_cache": {"store": f"sqlite:{tmp_path / 'answers.db'}"}}
    small = str(packaged("images", Step("torch_eager")))
    plan = ServingPlan(tiers={"small": small}, policies=({"deadline_routing": {}}, cache))
    source = Shelf(replace(two[0], plan=plan))
    slot = Slot(source, None, Metrics())

    def kept() -> int:
        with closing(sqlite3.connect(tmp_path / "answers.db")) as connection:
            (count,) = connection.execute("SELECT count(*) FROM entries").fetchone()
        return int(count)

    async def until(count: int) -> None:
        for _ in range(100):
            if kept() == count:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{kept()} are kept, not {count}")

    async def scenario() -> None:
        slot.start()
        feeds = {"images": np.zeros((1, 1, 8, 8), np.float32)}
        for endpoint in (slot.hosted.endpoint, slot.hosted.endpoint.tiers["small"]):
            await endpoint.answer(feeds)
        await until(2)
        source.release = replace(two[1], plan=plan)
        await slot.refresh()
        await until(1)
        source.release = two[1]
        await slot.refresh()
        await until(0)
        await slot.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"policies": [{"dynamic_batch": {}}]}, "dynamic_batching"),
        ({"policies": [{"dynamic_batching": {"max_batch_size": 0}}]}, "max_batch_size"),
        ({"policies": [{"a": {}, "b": {}}]}, "one `name: {settings}`"),
        ({"policies": [{"dynamic_batching": 8}]}, "one `name: {settings}`"),
        ({"policies": [8]}, "one `name: {settings}`"),
        ({"sessions": 0}, "sessions"),
        (
            {"policies": [{"exact_cache": {}}, {"dynamic_batching": {}}, {"deadline_routing": {}}]},
            "`exact_cache` must stand behind `deadline_routing`",
        ),
        (
            {"policies": [{"embedding_cache": {}}, {"semantic_cache": {}}]},
            "Name `semantic_cache` first",
        ),
        (
            {"policies": [{"dynamic_batching": {}}, {"ranking_cascade": {}}]},
            "`dynamic_batching` must stand behind `ranking_cascade`, .* several queries as one's",
        ),
        *(
            ({"policies": [{name: {}}, {"ranking_cascade": {}}]}, f"`{name}` must stand behind .* a part of")
            for name in ("embedding_cache", "semantic_cache", "confidence_cascade", "complexity_routing")
        ),
        (
            {"policies": [{"semantic_cache": {}}, {"deadline_routing": {}}]},
            "`semantic_cache` must stand behind `deadline_routing`",
        ),
        (
            {"policies": [{"dynamic_batching": {}}, {"deadline_routing": {}}]},
            "requests without their deadlines. Name `deadline_routing` first",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ServingPlan(**wrong)


def test_a_cache_may_stand_before_what_keeps_to_one_answer_and_behind_what_approximates() -> None:
    for order in (
        ("semantic_cache", "exact_cache"),
        ("deadline_routing", "embedding_cache"),
        ("exact_cache", "confidence_cascade"),
        ("exact_cache", "ranking_cascade"),
        ("deadline_routing", "ranking_cascade"),
        ("ranking_cascade", "dynamic_batching"),
    ):
        policies: Any = tuple({name: {}} for name in order)
        assert len(ServingPlan(policies=policies).chosen()) == 2


def test_answers_that_depend_on_their_batch_are_served_in_no_larger_one_than_was_judged(
    mixing: Path, packaged: Packaged, caplog: pytest.LogCaptureFixture
) -> None:
    """By default; a plan that says otherwise is taken, and told of."""

    def most(package: Path, plan: ServingPlan | None) -> int:
        slot = Slot(FolderSource(package), plan, Metrics())
        (batching,) = slot.hosted.plan.chosen()
        slot.hosted.close()
        assert isinstance(batching, DynamicBatching)
        return batching.max_batch_size

    assert (most(mixing, None), most(packaged("images"), None)) == (2, 8)
    assert "depend on the samples beside them" not in caplog.text
    assert most(mixing, ServingPlan()) == 8
    said = "was judged in batches of 2, and the plan makes batches of up to 8"
    assert f" {said}" in caplog.text
    assert "the tier" not in caplog.text
    caplog.clear()
    policies: Any = ({"deadline_routing": {}}, {"dynamic_batching": {}})
    plan = ServingPlan(tiers={"small": str(mixing)}, policies=policies)
    Slot(FolderSource(packaged("images")), plan, Metrics()).hosted.close()
    assert f", the tier `small`, {said}" in caplog.text


def test_tiers_are_other_variants_of_the_model(packaged: Packaged) -> None:
    """Loaded beside it, by name, behind what stands below the choice; another model is none."""
    metrics = Metrics()
    main, small = FolderSource(packaged("images")), str(packaged("images", Step("torch_eager")))
    policies: Any = ({"deadline_routing": {}}, {"dynamic_batching": {}})
    slot = Slot(main, ServingPlan(tiers={"small": small}, policies=policies), metrics)
    assert set(slot.hosted.releases) == {"", "small"}

    async def scenario() -> None:
        slot.start()
        endpoint = slot.hosted.endpoint
        assert set(endpoint.figures) == {"sessions", "deadline_routing", "dynamic_batching"}
        assert set(endpoint.tiers["small"].figures) == {"sessions", "dynamic_batching"}
        images = np.zeros((2, 1, 8, 8), np.float32)
        answers = [await one.answer({"images": images}) for one in (endpoint, endpoint.tiers["small"])]
        assert np.allclose(answers[0]["output"], answers[1]["output"], atol=1e-4)
        await slot.close()

    asyncio.run(scenario())
    with pytest.raises(InputError, match="the tier `other` must have the inputs of images"):
        Slot(main, ServingPlan(tiers={"other": str(packaged("texts"))}), metrics)


def test_requests_are_kept_only_where_that_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    """Off by default; on, each under the id that the answer names: the caller's, else one that is made."""
    assert "x-request-id" not in serve().infer(id="7").headers
    kept = serve(requests=RequestLogSettings(share=1, flush_s=0.05), requests_folder=tmp_path)
    images = kept.golden["samples"][:2]
    named = kept.infer(id="7").headers["x-request-id"]
    made = kept.infer().headers["x-request-id"]
    told = kept.client.post("/invocations", json={"inputs": images}, headers={"x-request-id": "mine"})
    refused = kept.infer("/v2/models/images/infer", inputs=[])
    kept.client.__exit__(None, None, None)
    found = {one.id: one for path in request_log.files(tmp_path) for one in request_log.exchanges(path)}
    assert (named, told.headers["x-request-id"], refused.status_code) == ("7", "mine", 400)
    assert found.keys() == {"7", made, "mine"}
    assert found["7"].inputs["images"].shape == (2, 1, 8, 8)
    assert np.allclose(found["7"].outputs["output"], kept.golden["outputs"]["output"][:2], atol=1e-5)
    assert found["mine"].inputs["samples"].shape == (2, 8, 8)
    assert found["mine"].outputs["predictions"].tolist() == kept.golden["predictions"][:2]
    kept.client.__enter__()


def test_an_input_that_is_left_out_is_in_no_raw_sample_that_is_kept(serve: Serve, tmp_path: Path) -> None:
    """By whichever route it came; and what is no tensor of the model's is told before anything is kept."""
    with pytest.raises(InputError, match=r"images, output.*got `imgaes`"):
        serve(requests=RequestLogSettings(left_out=("imgaes",)), requests_folder=tmp_path)
    settings = RequestLogSettings(share=1, flush_s=0.05, left_out=("images",))
    kept = serve(requests=settings, requests_folder=tmp_path)
    assert kept.infer().status_code == 200
    assert kept.client.post("/invocations", json={"inputs": kept.golden["samples"][:1]}).status_code == 200
    kept.client.__exit__(None, None, None)
    found = [one.inputs for path in request_log.files(tmp_path) for one in request_log.exchanges(path)]
    assert found == [{}, {}]
    kept.client.__enter__()


def test_a_server_that_keeps_none_removes_what_one_kept_before(serve: Serve, tmp_path: Path) -> None:
    kept = request_log.place(tmp_path, "0000000000001-1-1.npz")
    kept.parent.mkdir()
    kept.touch()
    os.utime(kept, (0, 0))
    request_log.note_days(tmp_path, 7)
    serve(requests_folder=tmp_path)
    until = time.monotonic() + 60
    while kept.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("identity", ["a\r\nset-cookie: x=1", "é", "x" * 1000, ""])
def test_an_id_that_no_header_holds_is_replaced(serve: Serve, tmp_path: Path, identity: str) -> None:
    kept = serve(requests=RequestLogSettings(share=1), requests_folder=tmp_path)
    answer = kept.infer(id=identity)
    assert (answer.status_code, answer.json()["id"]) == (200, identity)
    assert len(answer.headers["x-request-id"]) == 32
    assert "set-cookie" not in answer.headers


def test_what_becomes_of_kept_requests_is_in_the_metrics(serve: Serve, tmp_path: Path) -> None:
    """With memory and processor time of the process: what monitoring reads."""
    kept = serve(requests=RequestLogSettings(share=1, queue_mib=1e-6), requests_folder=tmp_path)
    kept.infer()
    text = kept.client.get("/metrics").text
    assert 'pareflow_request_log_total{figure="dropped"} 1.0' in text
    assert "process_resident_memory_bytes" in text
    assert "process_cpu_seconds_total" in text
