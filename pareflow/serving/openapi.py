"""The server's OpenAPI document: every route, what it takes, and each status that it answers with."""

from collections.abc import Mapping
from typing import Any, get_args

from pareflow.serving import protocol
from pareflow.serving.hosting import Standing
from pareflow.serving.invocations import FORMS

Schema = dict[str, Any]


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _list(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least}


def _or_null(schema: Schema) -> Schema:
    """What may be left out is left out by null, too."""
    return {**schema, "type": [schema["type"], "null"]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
JUDGED: Schema = {"type": "string", "enum": list(get_args(Standing))}
COUNT: Schema = {"type": "integer", "minimum": 0}
ANY_LIST: Schema = {"type": "array", "items": {}}
SAMPLES: Schema = {"anyOf": [ANY_LIST, {"type": "object"}]}
SHAPE = _list(COUNT)
DATATYPE: Schema = {"type": "string", "enum": list(protocol.DTYPES)}

SCHEMAS: Mapping[str, Schema] = {
    "Error": _object(("error",), error=TEXT),
    "Tensor": _object(
        ("name", "datatype", "shape"),
        name=TEXT,
        datatype=DATATYPE,
        shape=SHAPE,
        data=_or_null(ANY_LIST),
        parameters=_or_null(_object(binary_data_size=_or_null(COUNT))),
    ),
    "Wanted": _object(("name",), name=TEXT, parameters=_or_null(_object(binary_data=_or_null(FLAG)))),
    "InferenceRequest": _object(
        ("inputs",),
        id=_or_null(TEXT),
        inputs=_list(_ref("Tensor"), least=1),
        outputs=_or_null(_list(_ref("Wanted"))),
        parameters=_or_null(
            _object(binary_data_output=_or_null(FLAG), timeout=_or_null({"type": "integer", "minimum": 1}))
        ),
    ),
    "InferenceResponse": _object(
        ("model_name", "model_version", "outputs"),
        id=TEXT,
        model_name=TEXT,
        model_version=TEXT,
        outputs=_list(_ref("Tensor")),
    ),
    "TensorMetadata": _object(
        ("name", "datatype", "shape"), name=TEXT, datatype=DATATYPE, shape=_list({"type": "integer"})
    ),
    "ModelMetadata": _object(
        ("name", "versions", "platform", "inputs", "outputs"),
        name=TEXT,
        versions=_list(TEXT),
        platform=TEXT,
        inputs=_list(_ref("TensorMetadata")),
        outputs=_list(_ref("TensorMetadata")),
    ),
    "ServerMetadata": _object(
        ("name", "version", "extensions"), name=TEXT, version=TEXT, extensions=_list(TEXT)
    ),
    "Trial": _object(
        ("model", "champion", "judged", "ready", "trial", "refused"),
        model=TEXT,
        champion=TEXT,
        judged=JUDGED,
        ready={"type": ["string", "null"]},
        trial={"type": ["object", "null"]},
        refused={"type": ["object", "null"]},
    ),
    "Live": _object(("live",), live=FLAG),
    "Ready": _object(("ready",), ready=FLAG, name=TEXT, judged=JUDGED),
    "Invocation": {
        "oneOf": [{"type": "object", "properties": {form: SAMPLES}, "required": [form]} for form in FORMS]
    },
    "GenerateRequest": _object(("text_input",), text_input=TEXT, parameters=_or_null({"type": "object"})),
    "GenerateResponse": _object(
        ("model_name", "model_version", "text_output"), model_name=TEXT, model_version=TEXT, text_output=TEXT
    ),
    "Predictions": _object(("predictions",), predictions={}),
}
REFUSALS = {
    "400": "what was sent cannot be answered",
    "404": "no such model, or no such version of it",
    "408": "the body does not come, or the answer would come after the request's own deadline",
    "413": "the body is too large",
    "415": "the body is encoded",
    "429": "too many requests wait",
    "500": "the model failed",
    "503": "the answer would come after the deadline of the server, or what it needs is away",
}


def document(version: str, models: Mapping[str, str]) -> dict[str, Any]:
    """OpenAPI 3.1 of a server that answers for these models, each in one version.

    With keys, every route but the health checks also answers 401.
    """
    known = {
        "model": {"type": "string", "enum": list(models)},
        "version": {"type": "string", "enum": sorted(set(models.values()))},
    }
    paths: dict[str, Any] = {
        "/v2": {"get": _get("What serves", "ServerMetadata")},
        "/v2/health/live": {"get": _get("Whether it runs", "Live")},
        "/v2/health/ready": {"get": _get("Whether every model is ready", "Ready")},
        "/ping": {"get": _get("The same, as MLflow asks it", "Ready")},
        "/health": {"get": _get("The same", "Ready")},
        "/version": {"get": _text("The server's version")},
        "/metrics": {"get": _text("For Prometheus")},
        "/openapi.json": {"get": {"summary": "This document", "responses": {"200": {"description": "It"}}}},
        "/invocations": {"post": _post("Predictions for raw samples", "Invocation", "Predictions")},
    }
    paths["/v2/models/{model}/trial"] = {
        "get": _get("What stands beside the version that answers, and what was seen of it", "Trial", "404"),
        "parameters": [{"name": "model", "in": "path", "required": True, "schema": known["model"]}],
    }
    for path, names in (("", ("model",)), ("/versions/{version}", ("model", "version"))):
        model = "/v2/models/{model}" + path
        given = [{"name": name, "in": "path", "required": True, "schema": known[name]} for name in names]
        paths[model] = {
            "get": _get("What a model takes and gives", "ModelMetadata", "404"),
            "parameters": given,
        }
        paths[f"{model}/ready"] = {"get": _get("Whether it answers", "Ready", "404"), "parameters": given}
        infer = _post("Its outputs", "InferenceRequest", "InferenceResponse")
        raw = {"schema": {"type": "string", "format": "binary"}}
        infer["responses"]["200"]["content"]["application/octet-stream"] = raw
        paths[f"{model}/infer"] = {"post": infer, "parameters": given}
        told = _post("The text that follows, of a language model", "GenerateRequest", "GenerateResponse")
        paths[f"{model}/generate"] = {"post": told, "parameters": given}
        streamed = _post("The same, as server-sent events", "GenerateRequest", "GenerateResponse")
        streamed["responses"]["200"]["content"] = {"text/event-stream": {"schema": TEXT}}
        paths[f"{model}/generate_stream"] = {"post": streamed, "parameters": given}
    return {
        "openapi": "3.1.0",
        "info": {"title": "pareflow serve", "version": version, "description": __doc__},
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS)},
    }


def _content(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(schema)}}


def _answers(schema: str, *statuses: str) -> dict[str, Any]:
    refused = {status: {"description": REFUSALS[status], "content": _content("Error")} for status in statuses}
    return {"200": {"description": "The answer", "content": _content(schema)}, **refused}


def _get(summary: str, schema: str, *statuses: str) -> dict[str, Any]:
    return {"summary": summary, "responses": _answers(schema, *statuses)}


def _post(summary: str, taken: str, given: str) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _content(taken)},
        "responses": _answers(given, *REFUSALS),
    }


def _text(summary: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": TEXT}}
    return {"summary": summary, "responses": {"200": {"description": "Text", "content": content}}}
