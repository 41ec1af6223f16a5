"""Triton's generate extension: a text in, the text that follows out, whole or as a stream of pieces.

Source: triton-inference-server/server, docs/protocol/extension_generate.md (provisional there). Departure:
`text_output` is the new text alone. Pieces are server-sent events (WHATWG HTML, section 9.2).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from pareflow.errors import InputError, PareflowError
from pareflow.serving import protocol, refusals
from pareflow.workload import Arrays

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger("pareflow.serving")

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
SHORT = 2_000
"""Letters of a text whose tokens take a millisecond or two."""


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
    parameters = document.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise _refused("`parameters` must be an object", f"it is {brief(parameters)}")
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
    """Tokens behind a prompt as text, one after the other: what a tokenizer makes of both without the prompt.

    A letter whose bytes are several tokens comes with its last.
    """

    def __init__(self, tokenizer: "Tokenizer", prompt: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, list(prompt)
        self._told = len(self._ids)

    def piece(self, token: int) -> str:
        """What this token adds; nothing where it is not known yet."""
        self._ids.append(token)
        piece = self.rest()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._ids = self._ids[self._told :]  # those before say nothing of what comes
        self._told = len(self._ids)
        return piece

    def rest(self) -> str:
        """What is left at the end of a text: half a letter."""
        before: str = self._tokenizer.decode(self._ids[: self._told])
        whole: str = self._tokenizer.decode(self._ids)
        if whole.startswith(before):
            return whole[len(before) :]
        return str(
            self._tokenizer.decode(self._ids[self._told :])
        )  # bad bytes may spoil the good before them


def spelled(tokenizer: "Tokenizer", prompt: Sequence[int], tokens: Iterable[int]) -> str:
    """The same at once."""
    spelling = Spelling(tokenizer, prompt)
    return "".join(map(spelling.piece, tokens)) + spelling.rest()


async def encoded(tokenizer: "Tokenizer", text: str) -> list[int]:
    """The tokens of a text; those of a long one are made in a thread."""
    if len(text) > SHORT:
        (found,) = await asyncio.to_thread(tokenizer.encode_batch_fast, [text])
        return list(found.ids)
    return list(tokenizer.encode(text).ids)


def answer(name: str, version: str, text: str) -> dict[str, str]:
    """The document of a text, or of a piece of it."""
    return {"model_name": name, "model_version": version, "text_output": text}


class Events(StreamingResponse):
    """A text's pieces as server-sent events. What goes wrong between two of them is the last: `error`.

    However it ends, be it before the first was sent, `others` is closed, and `ended` is told the status that
    the whole would have had.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        name: str,
        version: str,
        first: str,
        others: AsyncGenerator[str, None],
        ended: Callable[[int], None],
    ) -> None:
        self._name, self._version, self._others, self._ended = name, version, others, ended
        self._events, self._status = self._told(first), refusals.GONE
        super().__init__(self._events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._others), aclosing(self._events):
                await super().__call__(scope, receive, send)
        finally:
            self._ended(self._status)

    async def _told(self, first: str) -> AsyncGenerator[bytes, None]:
        try:
            yield _event(answer(self._name, self._version, first))
            async for piece in self._others:
                yield _event(answer(self._name, self._version, piece))
            self._status = 200
        except PareflowError as error:
            self._status = refusals.status_of(error)
            yield _event({"error": str(error)})
        except Exception:
            self._status = 500
            log.exception("a stream of %s broke off", self._name)
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
        raise _refused(f"`{name}` must be a number, {datatype}", f"it is {brief(value)}")
    return np.array([value], protocol.DTYPES[datatype])


def _refused(must: str, found: str) -> InputError:
    return InputError(must, found, "See /openapi.json")
