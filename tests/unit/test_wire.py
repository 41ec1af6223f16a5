"""Messages over a pipe: whatever is written is read again, and what is no message is said to be none."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pareflow.compiler.workers import wire

DTYPES = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="="),
    arrays.unsigned_integer_dtypes(endianness=">"),
    arrays.floating_dtypes(endianness="?"),
    arrays.complex_number_dtypes(),
    arrays.byte_string_dtypes(min_len=1, max_len=5),
    arrays.unicode_string_dtypes(min_len=1, max_len=5),
    arrays.datetime64_dtypes(),
    arrays.timedelta64_dtypes(),
)
ARRAYS = arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
HEADERS = st.dictionaries(st.text().filter(lambda key: key != "arrays"), SCALARS | st.lists(SCALARS))


def written(header: dict[str, object], **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    wire.write(stream, header, arrays)
    return stream.getvalue()


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Type, shape and every byte, NaNs included."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@given(header=HEADERS, sent=st.dictionaries(st.text(), ARRAYS, max_size=3))
def test_what_is_written_is_read(header: dict[str, object], sent: dict[str, np.ndarray]) -> None:
    stream = io.BytesIO()
    for _ in range(2):  # one message ends where the next begins
        wire.write(stream, header, sent)
    stream.seek(0)
    for _ in range(2):
        said, got = wire.read(stream)
        assert said == header
        assert list(got) == list(sent)
        assert all(same(got[name], array) for name, array in sent.items())


def test_bytes_of_a_message_are_as_documented() -> None:
    """By hand: the magic with the protocol's number, the header's length, the header, the array's bytes."""
    text = b'{"call": "run", "arrays": [["x", "<i2", [2]]]}'
    expected = b"pareflo\x01" + struct.pack("<Q", len(text)) + text + b"\x01\x00\x02\x01"
    assert written({"call": "run"}, x=np.asarray([1, 258], np.int16)) == expected


@pytest.mark.parametrize("array", [np.ones((4, 6))[::2, ::3], np.ones((2, 3)).T, np.ones((3, 2), order="F")])
def test_arrays_that_do_not_lie_in_one_piece_arrive_whole(array: np.ndarray) -> None:
    array = array * np.arange(array.size).reshape(array.shape)
    _, got = wire.read(io.BytesIO(written({}, x=array)))
    assert same(got["x"], np.ascontiguousarray(array))


def test_arrays_that_arrive_may_be_changed() -> None:
    _, got = wire.read(io.BytesIO(written({}, x=np.zeros(3))))
    got["x"][0] = 1


@given(cut=st.floats(0, 1, exclude_max=True), array=ARRAYS)
def test_stream_that_ends_amid_a_message_is_broken(cut: float, array: np.ndarray) -> None:
    message = written({"call": "run"}, x=array)
    with pytest.raises(wire.BrokenPipe, match="it ended after"):
        wire.read(io.BytesIO(message[: int(cut * len(message))]))


@pytest.mark.parametrize("start", [b"pareflo\x02", b"Traceback (most recent call last)"])
def test_other_protocol_is_broken_and_shown(start: bytes) -> None:
    with pytest.raises(wire.BrokenPipe, match=r"it began with b'.*no message of protocol 1"):
        wire.read(io.BytesIO(start + written({})))


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfe",
        b"{",
        b"[]",
        b"{}",
        b'{"arrays": 1}',
        *(
            json.dumps({"arrays": [["x", dtype, shape]]}).encode()
            for dtype, shape in [("|O", [1]), ("?!", [1]), ("<f4", [-1]), ("<f4", ["2"])]
        ),
    ],
)
def test_damaged_header_is_broken(header: bytes) -> None:
    with pytest.raises(wire.BrokenPipe, match="its header is damaged"):
        wire.read(io.BytesIO(wire.MAGIC + struct.pack("<Q", len(header)) + header))


def test_damaged_length_takes_no_memory() -> None:
    with pytest.raises(wire.BrokenPipe, match="its header would have 1152921504606846976 bytes"):
        wire.read(io.BytesIO(wire.MAGIC + struct.pack("<Q", 2**60)))


@pytest.mark.parametrize("array", [np.asarray([None]), np.zeros(1, [("a", "f4")])])
def test_arrays_of_objects_and_records_are_refused_before_anything_is_sent(array: np.ndarray) -> None:
    stream = io.BytesIO()
    with pytest.raises(TypeError, match="only numbers, booleans and texts can"):
        wire.write(stream, {}, {"fine": np.zeros(1), "wrong": array})
    assert stream.getvalue() == b""
