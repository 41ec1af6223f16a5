"""Triton's generate extension: a text in, the text that follows out.

Source: triton-inference-server/server, docs/protocol/extension_generate.md (provisional there). Departures:
`text_output` is the new text alone, and there is no `generate_stream`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pareflow.errors import InputError
from pareflow.serving import protocol
from pareflow.workload import Arrays

_KINDS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "max_new_tokens": ("INT64", (int,)),
    "temperature": ("FP32", (int, float)),
    "seed": ("INT64", (int,)),
}
ALIASES = {"max_tokens": "max_new_tokens"}
"""What clients of Triton's vLLM backend call it."""
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Asked:
    """A text, and how it is to be gone on with."""

    text: str
    options: Arrays
    timeout_s: float | None = None


def parse(body: bytes) -> Asked:
    """What a body asks. What is beside `text_input` is a parameter too. Raises: InputError."""
    document = protocol.loads(body)
    if not isinstance(document, dict) or not isinstance(document.get("text_input"), str):
        raise _refused("`text_input` must be a text", "there is none")
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _refused("`parameters` must be an object", f"it is {parameters!r}")
    given = {
        name: value for name, value in document.items() if name not in ("text_input", "parameters", "id")
    }
    named = {ALIASES.get(name, name): value for name, value in (given | parameters).items()}
    if named.pop("stream", False) is not False:
        raise _refused("`stream` must be false", "streaming is not supported")
    timeout = protocol.timeout_s({"timeout": named.pop("timeout", None)})
    return Asked(
        document["text_input"], {name: _option(name, value) for name, value in named.items()}, timeout
    )


def _option(name: str, value: Any) -> np.ndarray:
    """The tensor of one row. Raises: InputError."""
    if name not in _KINDS:
        raise _refused(
            f"a parameter must be one of {', '.join(_KINDS)}, stream, timeout", f"`{name}` is none"
        )
    datatype, kinds = _KINDS[name]
    if type(value) not in kinds or abs(value) > LARGEST:
        raise _refused(f"`{name}` must be a number, {datatype}", f"it is {value!r}")
    return np.array([value], protocol.DTYPES[datatype])


def _refused(must: str, found: str) -> InputError:
    return InputError(must, found, "See /openapi.json")
