"""Triton's generate extension: a text in, the text that follows out, whole or as a stream of pieces.

Source: triton-inference-server/server, docs/protocol/extension_generate.md (provisional there). Departure:
`text_output` is the new text alone. Pieces are server-sent events (WHATWG HTML, section 9.2).
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pareflow.errors import InputError, PareflowError
from pareflow.serving import protocol, refusals
from pareflow.workload import Arrays

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger("pareflow.serving")

EVENTS = "text/event-stream"
_KINDS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "max_new_tokens": ("INT64", (int,)),
    "temperature": ("FP32", (int, float)),
    "top_k": ("INT64", (int,)),
    "top_p": ("FP32", (int, float)),
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


def parse(body: bytes, *, stream: bool = False) -> Asked:
    """What a body asks of `generate`, or of `generate_stream`. Raises: InputError.

    What is beside `text_input` is a parameter too.
    """
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
    if named.pop("stream", stream) is not stream:
        route, wanted = ("generate_stream", "true") if stream else ("generate", "false")
        raise _refused(f"`stream` must be {wanted} where `{route}` is asked", "it is not")
    timeout = protocol.timeout_s({"timeout": named.pop("timeout", None)})
    return Asked(
        document["text_input"], {name: _option(name, value) for name, value in named.items()}, timeout
    )


class Spelling:
    """Tokens as text, one after the other: a letter whose bytes are several tokens comes with its last."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def piece(self, token: int) -> str:
        """What this token adds; nothing where it is not known yet."""
        self._held.append(token)
        piece = self._stream.step(self._tokenizer, token)
        if piece is None:
            return ""
        self._held.clear()
        return str(piece)

    def rest(self) -> str:
        """What is left at the end of a text: half a letter."""
        return str(self._tokenizer.decode(self._held)) if self._held else ""


def spelled(tokenizer: "Tokenizer", tokens: Iterable[int]) -> str:
    """The same at once."""
    spelling = Spelling(tokenizer)
    return "".join(map(spelling.piece, tokens)) + spelling.rest()


def answer(name: str, version: str, text: str) -> dict[str, str]:
    """The document of a text, or of a piece of it."""
    return {"model_name": name, "model_version": version, "text_output": text}


async def events(
    name: str, version: str, first: str, others: AsyncGenerator[str, None]
) -> AsyncIterator[bytes]:
    """A text's pieces as server-sent events. What goes wrong between two of them is the last: `error`."""
    yield _event(answer(name, version, first))
    try:
        async with aclosing(others):
            async for piece in others:
                yield _event(answer(name, version, piece))
    except PareflowError as error:
        yield _event({"error": str(error)})
    except Exception:
        log.exception("a stream of %s broke off", name)
        yield _event(refusals.FAILED)


def _event(document: Mapping[str, str]) -> bytes:
    return b"data: " + protocol.dumps(document) + b"\n\n"


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
