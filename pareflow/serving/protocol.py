"""The Open Inference Protocol, version 2, over HTTP: named arrays out of a request's body, and back into one.

Tensors travel as JSON, or raw behind the JSON (the binary tensor data extension): a float image of 3×224×224
takes 29 ms to read from JSON with the standard library, 10 ms with orjson, and 5 µs raw.
Source: open-inference/open-inference-protocol, inference_rest.md; Triton's extension_binary_data.md.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as brief  # of a list that is a thousand deep, too
from typing import Any

import numpy as np

from pareflow.errors import BadOutputError, InputError
from pareflow.serving.finite import allowed
from pareflow.workload import Arrays

HEADER = "inference-header-content-length"
"""How many bytes of a body are JSON; the rest are raw tensors."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{'U' * unsigned}INT{8 * size}": np.dtype(f"<{'u' if unsigned else 'i'}{size}")
       for size in (1, 2, 4, 8) for unsigned in (0, 1)},
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}  # fmt: skip
MOST_AXES = 64
"""That numpy's arrays can have."""
MOST_DIGITS = 19
"""Of a length: Python reads no number of thousands of them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_KINDS = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float), "O": (str,)}
"""What JSON may hold for a type of each kind."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked: the inputs, which outputs (None: all), and which of them raw."""

    inputs: Arrays
    id: str | None = None
    outputs: Sequence[str] | None = None
    raw: Mapping[str, bool] = field(default_factory=dict)
    raw_by_default: bool = False
    timeout_s: float | None = None


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a type; texts are BYTES. Raises: InputError."""
    if dtype.kind in "OSU":
        return "BYTES"
    try:
        return _NAMES[dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype]
    except KeyError:
        raise _refused("a tensor must have a type of the protocol", f"{dtype} is none") from None


def parse(body: bytes, header_length: str | None, *, missing: bool = False) -> Request:
    """The request in a body; `header_length` is the value of the header HEADER.

    `missing`: numbers may be, which are null in JSON, and NaN raw and in what is given.

    Raises: InputError, which says what is wrong with which tensor.
    """
    split = len(body) if header_length is None else _length(header_length, len(body))
    document = _document(body[:split])
    inputs = _sequence(document, "inputs", required=True)
    raw = memoryview(body)[split:]
    arrays: Arrays = {}
    for tensor in inputs:
        name, array, used = _tensor(tensor, raw, missing)
        if name in arrays:
            raise _refused("an input must be given once", f"`{name}` is there twice")
        arrays[name], raw = array, raw[used:]
    if raw:
        raise _refused(
            "every byte after the JSON must belong to a tensor", f"{len(raw)} bytes belong to none"
        )
    parameters = _mapping(document, "parameters")
    wanted = [_output(one) for one in _sequence(document, "outputs")]
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise _refused("`id` must be a text", f"it is {brief(identity)}")
    return Request(
        inputs=arrays,
        id=identity,
        outputs=[name for name, _ in wanted] or None,
        raw={name: raw for name, raw in wanted if raw is not None},
        raw_by_default=_flag(parameters, "binary_data_output") or False,
        timeout_s=timeout_s(parameters),
    )


def render(
    name: str, version: str, request: Request, outputs: Mapping[str, np.ndarray], *, missing: bool = False
) -> tuple[bytes, int | None]:
    """The body of the answer, and how many of its bytes are JSON where raw tensors follow.

    Raises: as `listed` where one is to be JSON, which `missing` is for.
    """
    chosen = list(outputs) if request.outputs is None else request.outputs
    tensors, pieces = [], []
    for one in chosen:
        array = _spelled(outputs[one])
        tensor: dict[str, Any] = {"name": one, "datatype": datatype(array.dtype), "shape": list(array.shape)}
        if request.raw.get(one, request.raw_by_default):
            piece = _raw(array)
            pieces.append(piece)
            tensor["parameters"] = {"binary_data_size": len(piece)}
        else:
            tensor["data"] = listed(one, array.ravel(), missing=missing)
        tensors.append(tensor)
    document: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": tensors}
    if request.id is not None:
        document["id"] = request.id
    head = dumps(document)
    return (head + b"".join(pieces), len(head)) if pieces else (head, None)


def check_wanted(outputs: Sequence[str], names: Collection[str]) -> None:
    """Raises: InputError where an output is asked for that is none of these."""
    unknown = [one for one in outputs if one not in names]
    if unknown:
        known = ", ".join(map(repr, sorted(names)))
        raise _refused(f"an output must be one of {known}", f"`{unknown[0]}` is not")


def dumps(document: Any) -> bytes:
    """A document as JSON."""
    import orjson

    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def loads(body: bytes) -> Any:
    """The document in JSON. Raises: InputError."""
    import orjson

    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _refused("the body must be JSON", f"it is not: {error}") from None


def _refused(must: str, found: str) -> InputError:
    return InputError(must, found, "See GET /v2/models/NAME for what it takes, and /openapi.json")


def _document(body: bytes) -> Mapping[str, Any]:
    document = loads(body)
    if not isinstance(document, dict):
        raise _refused("the body must be a JSON object", f"it is {_kind(document)}")
    return document


def _length(text: str, most: int) -> int:
    number = len(text) <= MOST_DIGITS and text.isascii() and text.isdecimal()
    if not number or int(text) > most:
        raise _refused(f"`{HEADER}` must be a number of bytes of the body ({most})", f"it is {brief(text)}")
    return int(text)


def _sequence(document: Mapping[str, Any], key: str, required: bool = False) -> Sequence[Mapping[str, Any]]:
    found = document.get(key)
    found = [] if found is None else found
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise _refused(f"`{key}` must be a list of objects", f"it is {_kind(found)}")
    if required and not found:
        raise _refused(f"`{key}` must hold at least one tensor", "there is none")
    return found


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = document.get(key)
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise _refused(f"`{key}` must be an object", f"it is {_kind(found)}")
    return found


def _flag(parameters: Mapping[str, Any], key: str) -> bool | None:
    found = parameters.get(key)
    if found is not None and not isinstance(found, bool):
        raise _refused(f"`{key}` must be true or false", f"it is {brief(found)}")
    return found


def timeout_s(parameters: Mapping[str, Any]) -> float | None:
    """Seconds; the protocol's servers take microseconds. Raises: InputError."""
    found = parameters.get("timeout")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found <= 0:
        raise _refused("`timeout` must be a whole number of microseconds above 0", f"it is {brief(found)}")
    return found / 1e6


def _output(document: Mapping[str, Any]) -> tuple[str, bool | None]:
    name = document.get("name")
    if not isinstance(name, str):
        raise _refused("an output must have a `name`", f"it has {brief(name)}")
    return name, _flag(_mapping(document, "parameters"), "binary_data")


def _tensor(document: Mapping[str, Any], raw: memoryview, missing: bool) -> tuple[str, np.ndarray, int]:
    """Name, array, and how many of the raw bytes it took."""
    name, kind, shape = (document.get(key) for key in ("name", "datatype", "shape"))
    if not isinstance(name, str):
        raise _refused("an input must have a `name`", f"it has {brief(name)}")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise _refused(
            f"the `datatype` of `{name}` must be one of {', '.join(DTYPES)}", f"it is {brief(kind)}"
        )
    if isinstance(shape, list) and len(shape) > MOST_AXES:
        raise _refused(f"`{name}` must have at most {MOST_AXES} axes", f"its shape has {len(shape)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise _refused(f"the `shape` of `{name}` must be a list of whole numbers", f"it is {brief(shape)}")
    size = _mapping(document, "parameters").get("binary_data_size")
    if size is None:
        return name, _from_json(name, document.get("data"), DTYPES[kind], shape, missing), 0
    if document.get("data") is not None:
        raise _refused(f"`{name}` must come as `data` or raw", "it comes as both")
    if type(size) is not int or not 0 <= size <= len(raw):
        raise _refused(
            f"the `binary_data_size` of `{name}` must be what is there", f"{brief(size)} of {len(raw)} are"
        )
    return name, _from_raw(name, raw[:size], DTYPES[kind], shape, missing), size


def _from_json(name: str, data: Any, dtype: np.dtype[Any], shape: Sequence[int], missing: bool) -> np.ndarray:
    if not isinstance(data, list):
        raise _refused(f"`{name}` must have `data`, a list", f"it is {_kind(data)}")
    flat = list(_flat(data))
    if len(flat) != math.prod(shape):
        raise _refused(
            f"`{name}` must have as many values as its shape {tuple(shape)} ({math.prod(shape)})",
            f"it has {len(flat)}",
        )
    kinds = (*_KINDS[dtype.kind], *([type(None)] if missing and dtype.kind == "f" else []))
    wrong = [value for value in flat if type(value) not in kinds]
    if wrong:
        raise _refused(f"the values of `{name}` must be {datatype(dtype)}", f"one is {brief(wrong[0])}")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told below
            array = np.array(flat, dtype=dtype)
    except (OverflowError, ValueError) as error:
        raise _refused(f"the values of `{name}` must be {datatype(dtype)}", str(error)) from None
    return _finite(name, _shaped(name, array, shape), missing)


def _flat(data: Sequence[Any]) -> Iterator[Any]:
    """The values of lists in lists, however deep, in their order."""
    under_way = [iter(data)]
    while under_way:
        for value in under_way[-1]:
            if isinstance(value, list):
                under_way.append(iter(value))
                break
            yield value
        else:
            under_way.pop()


def _shaped(name: str, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Raises: InputError where no array can have the shape, such as (0, 2**70)."""
    try:
        return array.reshape(shape)
    except (OverflowError, ValueError) as error:
        raise _refused(f"the `shape` of `{name}` must be one that an array can have", str(error)) from None


def _from_raw(
    name: str, raw: memoryview, dtype: np.dtype[Any], shape: Sequence[int], missing: bool
) -> np.ndarray:
    count = math.prod(shape)
    if dtype.kind == "O":
        return _shaped(name, np.array(_texts(name, raw, count), dtype=object), shape)
    if len(raw) != count * dtype.itemsize:
        needed = count * dtype.itemsize
        raise _refused(f"`{name}` of shape {tuple(shape)} must have {needed} raw bytes", f"it has {len(raw)}")
    if dtype.kind == "b" and len(raw) and max(raw) > 1:
        raise _refused(f"the values of `{name}` must be BOOL, 0 or 1", f"one is {max(raw)}")
    return _finite(name, _shaped(name, np.frombuffer(raw, dtype=dtype), shape), missing)


def _texts(name: str, raw: memoryview, count: int) -> list[str]:
    """Each is four bytes that say how long it is, the lowest first, and so many bytes."""
    texts, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        at += 4 + size
        if at > len(raw) or at - size > len(raw):
            raise _refused(f"every text of `{name}` must be there in full", "the last one is cut")
        try:
            texts.append(str(raw[at - size : at], "utf-8"))
        except UnicodeDecodeError as error:
            raise _refused(f"the texts of `{name}` must be UTF-8", str(error)) from None
    if len(texts) != count:
        raise _refused(f"`{name}` must have {count} texts", f"it has {len(texts)}")
    return texts


def _finite(name: str, array: np.ndarray, missing: bool) -> np.ndarray:
    """Raises: InputError where a number is infinite; or NaN, unless some may be missing."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            total = array.sum(dtype=np.float64)
        if not math.isfinite(total) and not allowed(array, missing=missing):
            found = "one is infinite" if missing else "one is NaN or infinite"
            raise _refused(f"the numbers of `{name}` must be finite", found)
    return array


def _spelled(array: np.ndarray) -> np.ndarray:
    """Rows that differ in shape, lists in an array of objects, as texts: JSON."""
    if array.dtype != object:
        return array
    rows = [dumps(row).decode() if isinstance(row, list) else row for row in array.ravel()]
    return np.array(rows, dtype=object).reshape(array.shape)


def _raw(array: np.ndarray) -> bytes:
    if datatype(array.dtype) != "BYTES":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [str(text).encode() for text in array.ravel()]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def listed(name: str, array: np.ndarray, *, missing: bool = False) -> list[Any]:
    """What a network or its processing gave, for `dumps`, which writes NaN as null: some may be `missing`.

    Raises: BadOutputError where one is NaN else; InputError for infinity, which may stand for what is masked.
    """
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        if np.isnan(array).any() and not missing:
            found = f"`{name}` has NaN"
            raise BadOutputError("an answer must be numbers", found, "Mend the model, or roll back")
        if np.isinf(array).any():
            raise InputError(
                "numbers in JSON must be finite",
                f"`{name}` has infinity",
                "Ask `infer` for it with `binary_data: true`",
            )
    values: list[Any] = array.tolist()
    return values


def _kind(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__}"
