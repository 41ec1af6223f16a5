"""Whose a delivery is, when it was sent, and whether it came before."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import InputError
from tasks.deliveries import (
    DELIVERY,
    KEPT_S,
    SIGNATURE,
    TIMESTAMP,
    WINDOW_S,
    Delivery,
    ForgedError,
    Memory,
    RepeatedError,
    received,
    sign,
)

NOW = 1_800_000_000.0
BODY = json.dumps({"entity": "model_version", "data": {"name": "digits", "version": "3"}}).encode()


def headers(
    secret: str = "secret", body: bytes = BODY, at: float = NOW, name: str = "a"
) -> Mapping[str, str]:
    stamp = str(int(at))
    return {SIGNATURE: sign(secret, name, stamp, body), TIMESTAMP: stamp, DELIVERY: name}


def test_signature_is_that_of_mlflow() -> None:
    """MLflow's own function, on the same text."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    text = '{"data": {"name": "größer"}}'
    expected = _generate_hmac_signature("secret", "id", "1800000000", text)  # type: ignore[no-untyped-call]
    assert sign("secret", "id", "1800000000", text.encode()) == expected


def test_signature_of_a_known_delivery() -> None:
    """By `printf 'id.1.{}' | openssl dgst -sha256 -hmac secret -binary | base64`."""
    assert sign("secret", "id", "1", b"{}") == EXPECTED


EXPECTED = "v1,490pAcC1LQ1k1cOcmH0da199+A88OKCj0Io4WnJlp68="


def test_a_signed_delivery_says_which_version_it_is_about() -> None:
    delivery = received(["other", "secret"], headers(), BODY, NOW)
    assert (delivery.id, delivery.version) == ("a", ("digits", "3"))


@given(st.binary(max_size=200).filter(lambda body: body != BODY))
def test_another_body_is_forged(body: bytes) -> None:
    with pytest.raises(ForgedError):
        received(["secret"], headers(), body, NOW)


@pytest.mark.parametrize("name", [SIGNATURE, TIMESTAMP, DELIVERY])
def test_each_header_is_signed_and_needed(name: str) -> None:
    for changed in ({}, {name: headers()[name] + "0"}):
        rest = {key: value for key, value in headers().items() if key != name}
        with pytest.raises(ForgedError):
            received(["secret"], rest | changed, BODY, NOW)


def test_a_signature_with_another_secret_or_with_none_is_forged() -> None:
    for secret in ("", "Secret", "secret "):
        with pytest.raises(ForgedError):
            received(["secret"], headers(secret), BODY, NOW)


@given(st.floats(min_value=-2 * WINDOW_S, max_value=2 * WINDOW_S))
def test_only_what_was_sent_within_the_window_is_taken(age_s: float) -> None:
    sent = int(NOW - age_s)
    if abs(NOW - sent) <= WINDOW_S:
        assert received(["secret"], headers(at=sent), BODY, NOW).id == "a"
    else:
        with pytest.raises(ForgedError):
            received(["secret"], headers(at=sent), BODY, NOW)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"data": 1}', b"\xff", b"[" * 100_000])
def test_signed_and_unreadable_is_not_forged(body: bytes) -> None:
    with pytest.raises(InputError) as caught:
        received(["secret"], headers(body=body), body, NOW)
    assert not isinstance(caught.value, ForgedError)


def test_what_was_handled_is_known_after_a_restart(tmp_path: Path) -> None:
    delivery = Delivery("a", "content", {"data": {}})
    Memory(tmp_path / "d.db").remember(delivery, {"run_id": "x"}, NOW)
    memory = Memory(tmp_path / "d.db")
    assert memory.outcome(delivery) == {"run_id": "x"}
    assert memory.outcome(Delivery("b", "content", {"data": {}})) is None


def test_an_id_that_came_with_other_content_is_refused(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "d.db")
    memory.remember(Delivery("a", "content", {"data": {}}), {}, NOW)
    with pytest.raises(RepeatedError):
        memory.outcome(Delivery("a", "other", {"data": {}}))


def test_a_delivery_is_forgotten_only_when_it_could_not_be_sent_again(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "d.db")
    first, later = (Delivery(name, "content", {"data": {}}) for name in "ab")
    memory.remember(first, {}, NOW)
    memory.remember(later, {}, NOW + 3 * WINDOW_S)
    assert memory.outcome(first) is not None
    memory.remember(Delivery("c", "content", {"data": {}}), {}, NOW + KEPT_S + 1)
    assert memory.outcome(first) is None
    assert memory.outcome(later) is not None
