"""Bodies as they come in: not too slowly, and not too many at once."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from pareflow.errors import OverloadedError
from pareflow.serving import bodies, refusals
from pareflow.serving.bodies import Bodies
from pareflow.serving.refusals import SlowBodyError


def sent(*pieces: bytes, ends: bool = True) -> Request:
    """A request whose body comes in these pieces; one that does not end hangs then."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if ends:
        messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def test_a_body_is_its_pieces() -> None:
    async def scenario() -> None:
        for pieces in ((), (b"ab",), (b"a", b"bc")):
            async with Bodies(1).of(sent(*pieces)) as body:
                assert body == b"".join(pieces)

    asyncio.run(scenario())


def test_a_body_that_does_not_come_is_given_up_and_its_connection_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "COMES_WITHIN_S", 0.05)

    async def scenario() -> None:
        async with Bodies(1).of(sent(b"half", ends=False)):
            raise AssertionError("it never came")

    with pytest.raises(SlowBodyError, match="4 bytes are") as refused:
        asyncio.run(scenario())
    answer = refusals.response(refused.value)
    assert (answer.status_code, answer.headers["connection"]) == (408, "close")


def test_the_bodies_of_all_requests_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes while there is no room is told to come again; then there is."""
    monkeypatch.setattr(bodies, "ROOM_MIB", 3)
    piece = b"x" * 2**20

    async def scenario() -> None:
        taken = Bodies(2)
        async with taken.of(sent(piece, piece)):
            with pytest.raises(OverloadedError, match="at most 3 MiB") as refused:
                async with taken.of(sent(piece, piece)):
                    raise AssertionError("there was no room")
            assert refusals.response(refused.value).status_code == 429
            async with taken.of(sent(piece)) as body:
                assert len(body) == 2**20
        async with taken.of(sent(piece, piece)) as body:
            assert len(body) == 2 * 2**20

    asyncio.run(scenario())
