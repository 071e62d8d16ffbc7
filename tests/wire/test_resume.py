"""A stream on one connection after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cwsandbox.wire.channel import (
    Attach,
    Channel,
    Closed,
    Confirmed,
    Data,
    ExitStatusReceived,
    Failed,
    Hello,
    Opened,
    ProtocolError,
    Role,
    StreamKind,
)
from cwsandbox.wire.errors import Code, Status
from cwsandbox.wire.frames import HEADER, WINDOW_BYTES, FrameType, dump_json, load_json_object, parse_message
from tests.wire.pair import Pair, message_of

if TYPE_CHECKING:
    from .pair import End


def started(pair: Pair) -> tuple[End, End]:
    """A stream that both sides know."""
    client = pair.open()
    pair.settle()
    server = pair.servers[client.stream.exec_id]
    server.stream.confirm({"pid": 7})
    server.confirmed = True
    pair.settle()
    return client, server


def finish(pair: Pair, client: End, server: End) -> None:
    """Bring the stream to its end, and check that nothing was lost."""
    pair.settle()
    server.stream.exit_status(5)
    server.stream.close()
    pair.settle()
    assert client.result == ExitStatusReceived(client.stream, 5)
    assert client.closed
    assert client.received == server.sent
    assert server.received == client.sent
    assert not pair.client.streams
    assert not pair.server.streams


def test_what_was_on_the_way_is_sent_again_both_ways() -> None:
    pair = Pair()
    client, server = started(pair)
    client.send(100_000, 0)
    server.send(300_000, 0)
    server.send(200_000, 1)
    pair.flush_client()
    pair.flush_server()
    pair.cut()
    finish(pair, client, server)


def test_what_arrived_is_not_sent_again() -> None:
    pair = Pair()
    client, server = started(pair)
    server.send(500_000, 0)
    pair.settle()
    client.send(400_000, 0)
    pair.settle()
    pair.cut()
    pair.flush_client()
    pair.deliver_up()
    pair.flush_server()
    assert sum(len(message) for message in (*pair.up, *pair.down)) < 1000
    pair.deliver_down()
    assert not pair.flush_client()
    finish(pair, client, server)


@pytest.mark.parametrize("consumed", [10, 300_000])
def test_a_full_window_survives_and_credit_goes_on_from_where_it_was(consumed: int) -> None:
    pair = Pair()
    client, server = started(pair)
    server.send(WINDOW_BYTES, 0)
    client.send(WINDOW_BYTES, 0)
    pair.settle()
    client.consume(consumed, 0)
    server.consume(consumed, 0)
    pair.cut()
    pair.settle()
    for end in (client, server):
        assert end.stream.room() == consumed
        end.send(consumed, 0)
    finish(pair, client, server)


def test_an_open_that_never_arrived_is_simply_sent_again_with_its_input() -> None:
    pair = Pair()
    client = pair.open()
    client.send(1000, 0)
    client.send_eof(0)
    pair.flush_client()
    pair.cut()
    pair.flush_client()
    kinds = [frame.type for frame in parse_message(pair.up[0])]
    assert kinds == [FrameType.HELLO, FrameType.OPEN], "input waits until the server says what it has"
    pair.deliver_up()
    server = pair.servers[client.stream.exec_id]
    assert server.stream.attach is None
    server.stream.confirm({"pid": 7})
    pair.settle()
    assert server.received == {0: 1000}
    assert server.eof_received == {0}
    finish(pair, client, server)


def test_a_cut_before_the_confirmation_arrived_starts_nothing_twice() -> None:
    pair = Pair()
    client = pair.open()
    client.send(1000, 0)
    pair.flush_client()
    pair.deliver_up()
    server = pair.servers[client.stream.exec_id]
    server.stream.confirm({"pid": 7})
    server.send(10, 0)
    pair.flush_server()
    pair.cut()
    pair.settle()
    assert client.confirmed
    finish(pair, client, server)


def test_a_server_that_has_not_confirmed_yet_takes_input_and_a_close_after_a_cut() -> None:
    pair = Pair()
    client = pair.open()
    pair.settle()
    server = pair.servers[client.stream.exec_id]
    pair.cut()
    pair.settle()
    assert not client.confirmed
    client.send(1000, 0)
    pair.settle()
    assert server.received == {0: 1000}
    client.gave_up = True
    client.stream.close()
    pair.settle()
    assert server.closed


def test_a_cut_in_the_middle_of_the_end_loses_no_result() -> None:
    pair = Pair()
    client, server = started(pair)
    server.send(10, 0)
    server.stream.exit_status(5)
    server.stream.close()
    pair.flush_server()
    pair.cut()
    pair.settle()
    assert client.result == ExitStatusReceived(client.stream, 5)
    assert client.closed
    assert client.received == server.sent
    assert server.stream.closed


def test_a_result_that_had_arrived_is_reported_once() -> None:
    pair = Pair()
    client, server = started(pair)
    server.stream.exit_status(5)
    pair.settle()
    assert client.result == ExitStatusReceived(client.stream, 5)
    pair.cut()
    pair.settle()
    server.stream.close()
    pair.settle()
    assert client.closed


def test_what_the_client_was_told_at_the_start_is_not_told_again() -> None:
    pair = Pair()
    started(pair)
    pair.cut()
    pair.flush_client()
    pair.deliver_up()
    pair.flush_server()
    (confirmation,) = (f for f in parse_message(pair.down[0]) if f.type == FrameType.OPEN_CONFIRMATION)
    assert "info" not in load_json_object(confirmation.payload)


def test_a_goodbye_that_a_broken_connection_swallowed_is_said_on_the_next() -> None:
    pair = Pair()
    started(pair)
    pair.client.goodbye()
    pair.flush_client()
    pair.cut()
    pair.flush_client()
    assert parse_message(pair.up[0])[-1].type == FrameType.GOODBYE


def test_a_client_that_saw_the_end_does_not_ask_again() -> None:
    pair = Pair()
    client, server = started(pair)
    server.stream.exit_status(5)
    server.stream.close()
    pair.flush_server()
    pair.deliver_down()
    assert client.closed
    pair.cut()
    assert client.stream.closed
    assert not pair.client.streams
    pair.settle()
    assert pair.servers[client.stream.exec_id].stream is server.stream
    assert not server.stream.closed, "kept until the grace has passed"


def test_a_cancellation_is_heard_on_the_next_connection() -> None:
    pair = Pair()
    client, server = started(pair)
    client.send(1000, 0)
    client.gave_up = True
    client.stream.close()
    pair.flush_client()
    pair.cut()
    pair.settle()
    assert server.closed
    server.stream.close()
    pair.settle()
    assert client.closed
    assert client.stream.closed


def test_a_stream_cancelled_before_it_was_ever_sent_is_not_started_by_asking_again() -> None:
    pair = Pair()
    client = pair.open()
    client.gave_up = True
    client.stream.close()
    pair.cut()
    pair.settle()
    assert not pair.servers
    assert isinstance(client.result, Failed)
    assert client.closed


def test_a_server_that_forgot_the_stream_says_so() -> None:
    pair = Pair()
    client, _server = started(pair)
    pair.cut()
    pair.servers.clear()
    pair.settle()
    assert isinstance(client.result, Failed)
    assert client.closed


def test_a_stream_that_was_heard_of_once_is_never_started_afresh() -> None:
    pair = Pair()
    client = pair.open()
    pair.settle()
    pair.cut()
    pair.settle()
    assert not client.confirmed
    pair.cut()
    pair.servers.clear()
    pair.settle()
    assert not pair.servers
    assert isinstance(client.result, Failed)


def test_signals_arrive_once_and_the_last_size_is_repeated() -> None:
    pair = Pair()
    client, server = started(pair)
    client.stream.signal("USR1")
    pair.settle()
    client.stream.signal("USR2")
    client.stream.window_change(100, 50)
    pair.flush_client()
    pair.cut()
    client.stream.signal("TERM")
    pair.settle()
    assert server.signals == ["USR1", "USR2", "TERM"]
    assert server.size == (100, 50)


def test_a_signal_whose_acknowledgement_was_lost_arrives_once() -> None:
    pair = Pair()
    client, server = started(pair)
    client.stream.signal("USR1")
    pair.flush_client()
    pair.deliver_up()
    pair.cut()
    pair.settle()
    assert server.signals == ["USR1"]


def test_streams_opened_and_closed_between_connections_are_carried_over() -> None:
    pair = Pair()
    started(pair)
    pair.cut()
    second = pair.open()
    pair.cut()
    third = pair.open()
    pair.settle()
    assert [end.stream.id for end in pair.clients.values()] == [1, 2, 3]
    assert set(pair.servers) == {"e0", second.stream.exec_id, third.stream.exec_id}


def test_a_server_that_has_not_noticed_the_cut_hands_the_stream_over() -> None:
    pair = Pair()
    client, server = started(pair)
    old = pair.server
    pair.cut(noticed=False)
    pair.settle()
    assert not old.streams
    assert old.abandon() == []
    server.send(10, 0)
    assert not old.has_output
    finish(pair, client, server)


def test_the_client_introduces_itself_as_before_and_as_resuming() -> None:
    client = Channel(Role.CLIENT, hello={"client_id": "me"})
    for _ in range(2):
        client = client.resume()
        assert Channel(Role.SERVER).receive(message_of(client), 0.0) == [Hello({"client_id": "me", "resume": True})]


def test_the_old_channel_is_dead() -> None:
    pair = Pair()
    _client, server = started(pair)
    old_client, old_server = pair.client, pair.server
    pair.cut()
    server.send(10, 0)
    assert old_client.receive(b"nonsense", 0.0) == []
    for old in (old_client, old_server):
        assert not old.has_output
        assert old.message_to_send() is None


def test_events_before_an_adoption_speak_of_the_adopted_stream() -> None:
    pair = Pair()
    client, server = started(pair)
    client.stream.close()
    pair.server.abandon()
    again = pair.client.resume()
    channel = Channel(Role.SERVER)
    _hello, opened, closed = channel.receive(message_of(again), 0.0)
    assert isinstance(opened, Opened)
    assert closed == Closed(opened.stream)
    assert opened.stream is not server.stream
    channel.adopt(server.stream, opened)
    assert opened.stream is closed.stream is server.stream
    assert server.stream.peer_closed


def _attach(channel: Channel, exec_id: str, **attach: object) -> Opened:
    payload = dump_json({"kind": "exec", "execId": exec_id, "attach": attach})
    message = HEADER.pack(FrameType.OPEN, 0, 1, 0, len(payload)) + payload
    channel.receive(message_of(Channel(Role.CLIENT)), 0.0)
    (opened,) = channel.receive(message, 0.0)
    assert isinstance(opened, Opened)
    return opened


def test_an_attach_that_says_what_cannot_be_is_refused() -> None:
    pair = Pair()
    client, server = started(pair)
    server.send(1000, 0)
    pair.settle()
    client.consume(1000, 0)
    (stream,) = pair.server.abandon()
    for attach in ({"received": {"0": 1001}}, {"received": {"0": 10}, "consumed": {"0": 11}}):
        channel = Channel(Role.SERVER)
        opened = _attach(channel, "e0", **attach)
        with pytest.raises(ProtocolError):
            channel.adopt(stream, opened)


def test_only_a_stream_that_awaits_its_answer_can_take_up_its_own_kind() -> None:
    pair = Pair()
    _client, server = started(pair)
    channel = Channel(Role.SERVER)
    opened = _attach(channel, "other")
    with pytest.raises(ValueError):
        channel.adopt(server.stream, opened)
    opened.stream.fail(Status(Code.NOT_FOUND))
    with pytest.raises(ValueError):
        channel.adopt(server.stream, opened)
    assert pair.server.streams, "the stream stays where it was"


def test_what_an_attach_says_can_be_read() -> None:
    channel = Channel(Role.SERVER)
    opened = _attach(channel, "e", received={"0": 5, "1": 7}, consumed={"1": 6}, confirmed=True)
    assert opened.stream.attach == Attach(received=(5, 7), consumed=(0, 6), confirmed=True)


def test_a_resumed_stream_can_only_go_on_behind_its_confirmation() -> None:
    client = Channel(Role.CLIENT)
    server = Channel(Role.SERVER)
    stream = client.open(StreamKind.EXEC, {}, "e")
    opened = server.receive(message_of(client), 0.0)[-1]
    assert isinstance(opened, Opened)
    opened.stream.confirm({})
    assert client.receive(message_of(server), 0.0) == [Confirmed(stream, {})]
    opened.stream.send(b"x")
    assert client.receive(message_of(server), 0.0) == [Data(stream, 0, b"x")]
    again = client.resume()
    again.message_to_send()
    with pytest.raises(ProtocolError, match="before it was confirmed"):
        again.receive(HEADER.pack(FrameType.DATA, 0, 1, 1, 1) + b"y", 0.0)
