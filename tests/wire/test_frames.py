from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwsandbox.wire import frames
from cwsandbox.wire.errors import ProtocolError
from cwsandbox.wire.frames import HEADER, Frame, FrameType, MessageBuilder, dump_json, load_json_object, parse_message

u8, u32, u64 = st.integers(0, 2**8 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(
    st.lists(
        st.tuples(st.sampled_from(list(FrameType)), u8, u32, u64, st.binary(max_size=64)).map(lambda f: Frame(*f)),
        max_size=9,
    )
)
def test_what_the_builder_writes_is_what_the_parser_reads(written: list[Frame]) -> None:
    builder = MessageBuilder(2**20)
    for frame in written:
        builder.add(FrameType(frame.type), frame.stream, code=frame.code, offset=frame.offset, payload=frame.payload)
    message = builder.finish() or b""
    assert parse_message(message) == written
    assert builder.size == len(message)


def test_the_header_is_the_documented_one() -> None:
    builder = MessageBuilder(100)
    builder.add(FrameType.DATA, 0x01020304, code=1, offset=0x0A0B0C0D0E0F1011, payload=b"xy")
    assert builder.finish() == bytes.fromhex("04 01 01020304 0a0b0c0d0e0f1011 00000002") + b"xy"


def test_data_in_pieces_is_one_frame() -> None:
    builder = MessageBuilder(100)
    builder.add_data(5, 1, 70, [b"ab", memoryview(b"cdef")[1:3]], 4)
    assert parse_message(builder.finish() or b"") == [Frame(FrameType.DATA, 1, 5, 70, b"abde")]


def test_an_empty_builder_makes_no_message() -> None:
    assert MessageBuilder(100).finish() is None


def test_the_first_frame_fits_however_large_and_a_later_one_only_into_what_is_left() -> None:
    builder = MessageBuilder(100)
    assert builder.fits(10_000)
    builder.add(FrameType.PING, 0)
    assert builder.fits(100 - 2 * HEADER.size)
    assert not builder.fits(100 - 2 * HEADER.size + 1)


@pytest.mark.parametrize("cut", range(1, HEADER.size + 4))
def test_a_message_that_ends_inside_a_frame_is_refused(cut: int) -> None:
    builder = MessageBuilder(100)
    builder.add(FrameType.DATA, 1, payload=b"data")
    message = builder.finish()
    assert message is not None
    with pytest.raises(ProtocolError):
        parse_message(message[:-cut])


def test_data_frames_are_limited_to_256_kib_and_others_to_8_mib() -> None:
    for kind, limit in ((FrameType.DATA, frames.FRAME_BYTES), (FrameType.OPEN, frames.MAX_CONTROL_BYTES)):
        header = HEADER.pack(kind, 0, 1, 0, limit)
        assert len(parse_message(header + bytes(limit))) == 1
        with pytest.raises(ProtocolError, match="too large"):
            parse_message(HEADER.pack(kind, 0, 1, 0, limit + 1) + bytes(limit + 1))


def test_oversized_messages_are_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="allowed"):
        parse_message(bytes(frames.MAX_MESSAGE_BYTES + 1))


def test_the_number_of_frames_in_a_message_is_bounded() -> None:
    ping = HEADER.pack(FrameType.PING, 0, 0, 0, 0)
    assert len(parse_message(ping * frames.MAX_FRAMES)) == frames.MAX_FRAMES
    with pytest.raises(ProtocolError, match="more than"):
        parse_message(ping * (frames.MAX_FRAMES + 1))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        parsed = parse_message(data)
    except ProtocolError:
        return
    assert sum(HEADER.size + len(frame.payload) for frame in parsed) == len(data)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b"\xff{}",
        b'{"a":NaN}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "list", "number", "cut", "not utf-8", "nan", "surrogate", "surrogate key", "deep", "huge number"],
)
def test_control_payloads_that_are_no_json_object_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        load_json_object(payload)


def test_json_survives_the_way() -> None:
    document = {"text": "äöü \U0001f600 \0 \\u", "list": [1, 1.5, None, True], "deep": {"x": {}}}
    assert load_json_object(dump_json(document)) == document


@pytest.mark.parametrize("document", [{"x": float("inf")}, {"x": "\ud800"}, {"x": "a" * frames.MAX_CONTROL_BYTES}])
def test_what_a_frame_cannot_carry_is_a_value_error(document: object) -> None:
    with pytest.raises(ValueError):
        dump_json(document)
