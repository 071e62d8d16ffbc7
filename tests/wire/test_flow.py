from __future__ import annotations

import pytest

from cwsandbox.wire.errors import ProtocolError
from cwsandbox.wire.flow import ReceiveFlow, SendFlow
from cwsandbox.wire.frames import WINDOW_BYTES


def taken(flow: SendFlow, count: int) -> bytes:
    return b"".join(flow.take(count))


def test_bytes_come_out_in_order_and_once() -> None:
    flow = SendFlow()
    for part in (b"abc", b"d" * 5000, b"efg"):
        flow.append(part)
    assert taken(flow, 2) == b"ab"
    assert taken(flow, 10) == b"c" + b"d" * 9
    assert taken(flow, 10_000) == b"d" * 4991 + b"efg"
    assert taken(flow, 10) == b""
    assert flow.sent == flow.end == 5006


def test_large_chunks_are_passed_on_without_a_copy() -> None:
    flow = SendFlow()
    chunk = bytes(100_000)
    flow.append(chunk)
    (piece,) = flow.take(200_000)
    assert piece is chunk
    flow.append(chunk)
    (half,) = flow.take(50_000)
    assert isinstance(half, memoryview)
    assert half.obj is chunk


def test_a_rewound_flow_sends_again_from_where_the_peer_is() -> None:
    flow = SendFlow()
    flow.append(b"0123456789")
    assert taken(flow, 8) == b"01234567"
    flow.rewind(3)
    assert flow.sent == 3
    assert taken(flow, 100) == b"3456789"


def test_a_flow_can_be_rewound_again_and_again() -> None:
    flow = SendFlow()
    flow.append(b"0123456789")
    for position in (0, 0, 4, 4, 9, 10):
        taken(flow, 100)
        flow.rewind(position)
        assert taken(flow, 100) == b"0123456789"[position:]


def test_what_is_acknowledged_is_let_go_in_whole_chunks() -> None:
    flow = SendFlow()
    flow.append(b"a" * 5000)
    flow.append(b"b" * 5000)
    taken(flow, 10_000)
    flow.acknowledge(4999, 0)
    assert flow.kept_bytes == 10_000
    flow.acknowledge(5000, 0)
    assert flow.kept_bytes == 5000
    flow.acknowledge(10_000, 0)
    assert flow.kept_bytes == 0


def test_acknowledging_gives_room_but_never_more_than_a_window() -> None:
    flow = SendFlow()
    flow.append(bytes(WINDOW_BYTES))
    taken(flow, WINDOW_BYTES)
    assert flow.room == 0
    assert flow.acknowledge(100, 100 + WINDOW_BYTES) is True
    assert flow.room == 100
    assert flow.acknowledge(100, 2**64 - 1) is False
    assert flow.room == 100


def test_old_acknowledgements_change_nothing() -> None:
    flow = SendFlow()
    flow.append(bytes(1000))
    taken(flow, 1000)
    assert flow.acknowledge(600, 600 + WINDOW_BYTES)
    assert not flow.acknowledge(500, 500 + WINDOW_BYTES)
    assert (flow.consumed, flow.limit) == (600, 600 + WINDOW_BYTES)


def test_credit_for_what_was_not_sent_is_refused() -> None:
    flow = SendFlow()
    flow.append(b"abc")
    taken(flow, 2)
    with pytest.raises(ProtocolError):
        flow.acknowledge(3, WINDOW_BYTES)


@pytest.mark.parametrize("position", [2, 11])
def test_a_position_that_is_not_held_is_refused(position: int) -> None:
    flow = SendFlow()
    flow.append(b"0123456789")
    taken(flow, 10)
    flow.rewind(3)
    with pytest.raises(ProtocolError):
        flow.rewind(position)


def test_single_bytes_do_not_cost_an_object_each() -> None:
    flow = SendFlow()
    for _ in range(20_000):
        flow.append(b"x")
    assert len(flow._unsent) < 10
    for _ in range(20_000):
        flow.take(1)
    assert len(flow._kept) < 10
    flow.rewind(19_999)
    assert taken(flow, 5) == b"x"


def test_received_data_is_trimmed_to_what_is_new() -> None:
    flow = ReceiveFlow()
    assert flow.accept(0, b"abcd") == b"abcd"
    assert flow.accept(0, b"abcd") == b""
    assert flow.accept(2, b"cdef") == b"ef"
    assert flow.received == 6


def test_a_gap_is_refused() -> None:
    flow = ReceiveFlow()
    with pytest.raises(ProtocolError):
        flow.accept(1, b"b")


def test_data_beyond_the_credit_is_refused() -> None:
    flow = ReceiveFlow()
    flow.accept(0, bytes(WINDOW_BYTES))
    with pytest.raises(ProtocolError):
        flow.accept(WINDOW_BYTES, b"x")


def test_data_behind_the_end_is_refused_but_not_a_repetition_before_it() -> None:
    flow = ReceiveFlow()
    flow.accept(0, b"abc")
    assert flow.finish(3) is True
    assert flow.finish(3) is False
    assert flow.accept(1, b"bc") == b""
    with pytest.raises(ProtocolError):
        flow.accept(3, b"d")
    with pytest.raises(ProtocolError):
        flow.finish(4)


def test_an_end_that_is_not_at_the_end_is_refused() -> None:
    flow = ReceiveFlow()
    with pytest.raises(ProtocolError):
        flow.finish(1)


def test_credit_is_given_by_quarters_of_a_window() -> None:
    flow = ReceiveFlow()
    flow.accept(0, bytes(WINDOW_BYTES))
    assert flow.consume(WINDOW_BYTES // 4 - 1) is False
    assert flow.consume(1) is True
    assert flow.consume(1) is False, "it is due already"
    assert flow.grant() == WINDOW_BYTES + WINDOW_BYTES // 4 + 1
    assert flow.consume(10) is False


def test_after_the_end_the_last_byte_consumed_is_reported() -> None:
    flow = ReceiveFlow()
    flow.accept(0, b"abc")
    flow.finish(3)
    assert flow.consume(2) is False
    assert flow.consume(1) is True


def test_more_than_received_cannot_be_consumed() -> None:
    flow = ReceiveFlow()
    flow.accept(0, b"abc")
    for count in (4, -1):
        with pytest.raises(ValueError):
            flow.consume(count)
