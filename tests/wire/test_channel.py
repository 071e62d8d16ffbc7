"""The channel on one connection: the state table, credit, fairness, limits, time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cwsandbox.wire.channel import (
    Channel,
    Closed,
    Confirmed,
    Credit,
    Data,
    Eof,
    Event,
    ExitSignalReceived,
    ExitStatusReceived,
    Failed,
    Goodbye,
    Hello,
    Opened,
    PeerSilentError,
    ProtocolError,
    Role,
    SignalReceived,
    Stream,
    StreamKind,
    WindowChanged,
)
from cwsandbox.wire.errors import Code, Status
from cwsandbox.wire.frames import FRAME_BYTES, HEADER, WINDOW_BYTES, FrameType, dump_json, parse_message
from tests.wire.pair import message_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Line:
    """Two channels; `up` and `down` carry everything that is ready and return the events."""

    def __init__(self, **server: Any) -> None:
        self.client = Channel(Role.CLIENT, hello={"client_id": "me"})
        self.server = Channel(Role.SERVER, **server)
        self.up()

    def up(self) -> list[Event]:
        return self._carry(self.client, self.server)

    def down(self) -> list[Event]:
        return self._carry(self.server, self.client)

    @staticmethod
    def _carry(source: Channel, target: Channel) -> list[Event]:
        events: list[Event] = []
        while (message := source.message_to_send()) is not None:
            events += target.receive(message, 0.0)
        return events

    def open(self, exec_id: str = "e", *, confirm: bool = True) -> tuple[Stream, Stream]:
        stream = self.client.open(StreamKind.EXEC, {"argv": ["x"]}, exec_id)
        events = self.up()
        peer = next(event.stream for event in events if isinstance(event, Opened))
        if confirm:
            peer.confirm({"pid": 1})
            self.down()
        return stream, peer


def types(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


def frame_types(message: bytes | None) -> list[FrameType]:
    return [FrameType(frame.type) for frame in parse_message(message or b"")]


def frame(kind: int, stream: int = 0, *, code: int = 0, offset: int = 0, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, code, stream, offset, len(payload)) + payload


# One exec


def test_both_sides_introduce_themselves_first() -> None:
    client = Channel(Role.CLIENT, hello={"client_id": "me"})
    server = Channel(Role.SERVER)
    client.open(StreamKind.EXEC, {}, "e")
    assert not server.has_output
    events = server.receive(message_of(client), 0.0)
    assert events[0] == Hello({"client_id": "me"})
    server.hello({"grace_seconds": 30, "resumed": False})
    assert client.receive(message_of(server), 0.0) == [Hello({"grace_seconds": 30, "resumed": False})]


def test_a_small_exec_is_one_message_each_way_and_a_close() -> None:
    line = Line()
    stream = line.client.open(StreamKind.EXEC, {"argv": ["echo"]}, "e1")
    stream.send_eof()
    message = message_of(line.client)
    assert frame_types(message) == [FrameType.OPEN, FrameType.EOF]
    opened, eof = line.server.receive(message, 0.0)
    assert isinstance(opened, Opened)
    peer = opened.stream
    assert eof == Eof(peer, 0)
    assert (peer.kind, peer.exec_id, peer.params, peer.attach) == (StreamKind.EXEC, "e1", {"argv": ["echo"]}, None)
    peer.confirm({"pid": 4})
    peer.send(b"out")
    peer.send(b"put")
    peer.send_eof(0)
    peer.send_eof(1)
    peer.exit_status(3)
    peer.close()
    message = message_of(line.server)
    assert frame_types(message)[0] is FrameType.OPEN_CONFIRMATION
    assert frame_types(message)[-2:] == [FrameType.EXIT_STATUS, FrameType.CLOSE]
    assert not line.server.has_output
    events = line.client.receive(message, 0.0)
    assert events[0] == Confirmed(stream, {"pid": 4})
    assert [e for e in events if isinstance(e, Data)] == [Data(stream, 0, b"output")]
    assert {e.code for e in events if isinstance(e, Eof)} == {0, 1}
    assert events[-2:] == [ExitStatusReceived(stream, 3), Closed(stream)]
    assert frame_types(line.client.message_to_send()) == [FrameType.CLOSE]
    assert stream.closed
    assert not line.client.streams


def test_stdin_follows_its_open_without_waiting_for_the_confirmation() -> None:
    line = Line()
    stream = line.client.open(StreamKind.EXEC, {}, "e")
    stream.send(b"in")
    stream.send_eof()
    opened, data, eof = line.up()
    assert isinstance(opened, Opened)
    assert (data, eof) == (Data(opened.stream, 0, b"in"), Eof(opened.stream, 0))


def test_a_signal_and_a_new_size_arrive() -> None:
    line = Line()
    stream, peer = line.open()
    stream.signal("TERM")
    stream.window_change(120, 40)
    assert line.up() == [SignalReceived(peer, "TERM"), WindowChanged(peer, 120, 40)]


def test_a_signal_that_was_not_sent_yet_merges_and_one_that_was_does_not() -> None:
    line = Line()
    stream, peer = line.open()
    for name in ("INT", "USR1", "INT"):
        stream.signal(name)
    assert line.up() == [SignalReceived(peer, "INT"), SignalReceived(peer, "USR1")]
    stream.signal("INT")
    assert line.up() == [SignalReceived(peer, "INT")]


def test_a_death_by_signal_arrives_as_its_name() -> None:
    line = Line()
    stream, peer = line.open()
    peer.exit_signal("KILL")
    assert line.down() == [ExitSignalReceived(stream, "KILL")]


def test_the_first_result_counts() -> None:
    line = Line()
    stream, peer = line.open()
    peer.exit_status(1)
    peer.exit_signal("KILL")
    peer.fail(Status(Code.INTERNAL))
    assert line.down() == [ExitStatusReceived(stream, 1), Closed(stream)]


def test_a_refusal_needs_no_confirmation_and_ends_the_stream() -> None:
    line = Line()
    stream, peer = line.open(confirm=False)
    status = Status.make(Code.NOT_FOUND, "no such sandbox", reason="R")
    peer.fail(status)
    assert line.down() == [Failed(stream, status), Closed(stream)]
    assert line.up() == [Closed(peer)]
    assert stream.closed
    assert peer.closed


def test_an_endless_error_message_is_cut() -> None:
    line = Line()
    _stream, peer = line.open()
    peer.fail(Status(Code.INTERNAL, "x" * 10_000_000 + "\ud800"))
    failed, _ = line.down()
    assert isinstance(failed, Failed)
    assert len(failed.status.message) == 16 * 1024


@pytest.mark.parametrize("detail", ["z" * 300_000, "z" * 9_000_000, "\ud800"])
def test_details_that_no_frame_holds_are_left_out(detail: str) -> None:
    line = Line()
    _stream, peer = line.open()
    peer.fail(Status(Code.INTERNAL, "why", [{"@type": "x", "y": detail}]))
    failed, _ = line.down()
    assert isinstance(failed, Failed)
    assert failed.status == Status(Code.INTERNAL, "why")


def test_the_result_comes_behind_all_data_queued_before() -> None:
    line = Line()
    _stream, peer = line.open()
    peer.send(bytes(WINDOW_BYTES), 0)
    peer.send(b"err", 1)
    peer.exit_status(0)
    peer.close()
    events = line.down()
    assert types(events)[-2:] == [ExitStatusReceived, Closed]
    assert sum(len(e.data) for e in events if isinstance(e, Data)) == WINDOW_BYTES + 3


# The state table


def test_a_server_that_closes_is_answered_by_the_clients_channel() -> None:
    line = Line()
    stream, peer = line.open()
    peer.exit_status(0)
    peer.close()
    closed_too_early = peer.closed
    assert not closed_too_early
    line.down()
    assert stream.peer_closed
    assert stream.closing
    assert line.up() == [Closed(peer)]
    assert peer.closed
    assert stream.closed
    assert not line.server.streams


def test_a_client_that_closes_first_hears_when_the_command_is_dead() -> None:
    line = Line()
    stream, peer = line.open()
    stream.close()
    assert line.up() == [Closed(peer)]
    assert peer.peer_closed
    assert not peer.closing, "half-open: the command has to be killed first"
    assert not line.server.has_output
    assert line.client.streams, "the client still waits"
    peer.exit_signal("KILL")
    peer.close()
    assert line.down() == [ExitSignalReceived(stream, "KILL"), Closed(stream)]
    assert stream.closed
    assert peer.closed
    assert not line.client.has_output


def test_closes_that_cross_end_the_stream_on_both_sides() -> None:
    line = Line()
    stream, peer = line.open()
    stream.close()
    peer.close()
    up, down = message_of(line.client), message_of(line.server)
    assert line.client.receive(down, 0.0) == [Closed(stream)]
    assert line.server.receive(up, 0.0) == [Closed(peer)]
    assert stream.closed
    assert peer.closed
    assert not line.client.has_output
    assert not line.server.has_output


def test_closing_again_changes_nothing() -> None:
    line = Line()
    stream, _peer = line.open()
    stream.close()
    stream.close()
    assert frame_types(line.client.message_to_send()) == [FrameType.CLOSE]
    stream.close()
    assert not line.client.has_output


def test_a_stream_closed_before_it_was_sent_is_opened_and_closed() -> None:
    line = Line()
    stream = line.client.open(StreamKind.EXEC, {}, "e")
    stream.close()
    opened, closed = line.up()
    assert isinstance(opened, Opened)
    assert closed == Closed(opened.stream)
    assert opened.stream.peer_closed
    opened.stream.close()
    assert line.down() == [Closed(stream)]


def test_after_its_own_close_a_side_hears_only_of_the_end() -> None:
    line = Line()
    stream, peer = line.open()
    peer.send(b"late")
    peer.send_eof(0)
    stream.close()
    assert line.down() == []
    line.up()
    peer.exit_status(1)
    peer.close()
    assert types(line.down()) == [ExitStatusReceived, Closed]


@pytest.mark.parametrize("closer", ["own", "peer"])
def test_on_a_closed_stream_there_is_always_room_and_data_goes_nowhere(closer: str) -> None:
    line = Line()
    stream, peer = line.open()
    peer.send(bytes(WINDOW_BYTES))
    assert peer.room() == 0
    if closer == "own":
        peer.close()
    else:
        stream.close()
        line.up()
    assert peer.room() == WINDOW_BYTES
    peer.send(bytes(WINDOW_BYTES))
    peer.send_eof()
    sent = sum(len(e.data) for e in line.down() if isinstance(e, Data))
    assert sent == (WINDOW_BYTES if closer == "own" else 0)
    assert line.client.streams or stream.closed


def test_late_frames_of_a_forgotten_stream_are_ignored() -> None:
    line = Line()
    stream, peer = line.open()
    peer.close()
    line.down()
    line.up()
    assert stream.closed
    number = frame(FrameType.DATA, 1, payload=b"late") + frame(FrameType.CLOSE, 1)
    assert line.client.receive(number, 0.0) == []
    assert line.server.receive(number, 0.0) == []


def test_frames_of_a_stream_that_never_was_are_refused() -> None:
    line = Line()
    line.open()
    for channel in (line.client, line.server):
        for stream_id in (0, 2, 2**32 - 1):
            with pytest.raises(ProtocolError, match="never opened"):
                channel.receive(frame(FrameType.CLOSE, stream_id), 0.0)


def test_what_goes_on_behind_a_close_is_refused() -> None:
    line = Line()
    line.open()
    with pytest.raises(ProtocolError, match="after its end"):
        line.server.receive(frame(FrameType.CLOSE, 1) + frame(FrameType.DATA, 1, payload=b"x"), 0.0)


# Credit


def test_a_reader_that_takes_nothing_stops_the_sender_at_the_window() -> None:
    line = Line()
    stream, peer = line.open()
    peer.send(bytes(WINDOW_BYTES))
    line.down()
    assert peer.room() == 0
    with pytest.raises(ValueError, match="room for 0"):
        peer.send(b"x")
    assert peer.room(1) == WINDOW_BYTES, "the other substream is not concerned"
    stream.consumed(WINDOW_BYTES // 2)
    assert line.up() == [Credit(peer, 0)]
    assert peer.room() == WINDOW_BYTES // 2
    assert peer.taken() == WINDOW_BYTES // 2


@pytest.mark.parametrize("eof_first", [True, False])
def test_the_sender_learns_when_everything_was_consumed(eof_first: bool) -> None:
    line = Line()
    stream, peer = line.open()
    stream.send(b"abc")
    if eof_first:
        stream.send_eof()
    line.up()
    peer.consumed(3)
    if not eof_first:
        stream.send_eof()
        line.up()
    assert stream.taken() == 0
    line.down()
    assert stream.taken() == 3


def test_nothing_is_owed_before_a_quarter_of_the_window() -> None:
    line = Line()
    stream, peer = line.open()
    peer.send(bytes(1000))
    line.down()
    stream.consumed(1000)
    assert not line.client.has_output


# Fairness and size of messages


def test_a_flood_on_one_stream_holds_up_another_by_one_frame() -> None:
    line = Line()
    _first, flood = line.open("a")
    _second, small = line.open("b")
    flood.send(bytes(WINDOW_BYTES), 0)
    small.send(b"quick", 0)
    frames = parse_message(message_of(line.server))
    assert [(f.stream, len(f.payload)) for f in frames[:3]] == [(1, FRAME_BYTES), (2, 5), (1, FRAME_BYTES)]


def test_a_flood_on_stdout_holds_up_stderr_by_one_frame() -> None:
    line = Line()
    _stream, peer = line.open()
    for code in (0, 1):
        peer.send(bytes(WINDOW_BYTES), code)
    codes = [f.code for f in parse_message(message_of(line.server))]
    assert sorted(codes) == [0, 0, 1, 1]
    assert codes[0] != codes[1]


def test_control_frames_overtake_the_data_of_other_streams() -> None:
    line = Line()
    _first, flood = line.open("a")
    _second, ending = line.open("b")
    flood.send(bytes(WINDOW_BYTES), 0)
    ending.exit_status(0)
    ending.close()
    line.server.receive(frame(FrameType.PING), 0.0)
    kinds = frame_types(line.server.message_to_send())
    assert kinds[:4] == [FrameType.PONG, FrameType.EXIT_STATUS, FrameType.CLOSE, FrameType.DATA]


def test_messages_keep_to_the_size_asked_for() -> None:
    line = Line()
    _stream, peer = line.open()
    peer.send(bytes(WINDOW_BYTES), 0)
    sizes = []
    while (message := line.server.message_to_send(100_000)) is not None:
        sizes.append(len(message))
    assert max(sizes) <= 100_000
    assert sum(sizes) < WINDOW_BYTES + 1000


def test_many_small_sends_make_one_frame() -> None:
    line = Line()
    _stream, peer = line.open()
    for _ in range(1000):
        peer.send(b"line\n")
    (only,) = parse_message(message_of(line.server))
    assert only.payload == b"line\n" * 1000


def test_a_command_line_of_two_megabytes_passes_and_waits_for_no_one() -> None:
    line = Line()
    small = line.client.open(StreamKind.EXEC, {"argv": ["a"]}, "a")
    large = line.client.open(StreamKind.EXEC, {"argv": ["x" * 2_000_000]}, "b")
    first = message_of(line.client)
    assert len(first) < 1000
    opened = [event for event in line.server.receive(first, 0.0) + line.up() if isinstance(event, Opened)]
    assert [event.stream.id for event in opened] == [small.id, large.id]
    assert opened[1].stream.params == {"argv": ["x" * 2_000_000]}


def test_what_is_too_large_for_any_message_is_a_value_error() -> None:
    line = Line()
    with pytest.raises(ValueError):
        line.client.open(StreamKind.EXEC, {"argv": ["x" * 9_000_000]}, "a")
    assert not line.client.streams
    assert not line.client.has_output


# Limits against a hostile peer


def test_streams_beyond_the_limit_are_refused_and_the_connection_lives() -> None:
    line = Line(max_streams=2)
    streams = [line.client.open(StreamKind.EXEC, {}, f"e{n}") for n in range(3)]
    assert types(line.up()) == [Opened, Opened]
    failed, closed = line.down()
    assert isinstance(failed, Failed)
    assert failed.stream is streams[2]
    assert closed == Closed(streams[2])
    assert failed.status.code is Code.RESOURCE_EXHAUSTED
    assert line.up() == []
    assert len(line.server.streams) == len(line.client.streams) == 2


def test_refusals_that_nobody_reads_do_not_pile_up() -> None:
    server = Line(max_streams=2).server
    opens = [frame(FrameType.OPEN, n, payload=dump_json({"kind": "exec", "execId": f"e{n}"})) for n in range(1, 6)]
    for message in opens[:4]:
        server.receive(message, 0.0)
    with pytest.raises(ProtocolError, match="too many"):
        server.receive(opens[4], 0.0)


def test_the_memory_of_open_requests_is_bounded_and_given_back() -> None:
    line = Line(max_open_bytes=10_000)
    stream = line.client.open(StreamKind.EXEC, {"argv": ["x" * 6000]}, "a")
    (opened,) = line.up()
    assert isinstance(opened, Opened)
    line.client.open(StreamKind.EXEC, {"argv": ["x" * 6000]}, "b")
    assert line.up() == []
    failed = line.down()[0]
    assert isinstance(failed, Failed)
    assert failed.status.code is Code.RESOURCE_EXHAUSTED
    opened.stream.fail(Status(Code.INTERNAL))
    line.down()
    line.up()
    assert stream.closed
    line.client.open(StreamKind.EXEC, {"argv": ["x" * 6000]}, "c")
    assert types(line.up()) == [Opened]


def test_a_kind_that_the_server_does_not_know_is_refused_as_such() -> None:
    line = Line()
    payload = dump_json({"kind": "teleport", "execId": "e", "params": {}})
    assert line.server.receive(frame(FrameType.OPEN, 1, payload=payload), 0.0) == []
    status, close = parse_message(message_of(line.server))
    assert b'"code":12' in status.payload
    assert close.type == FrameType.CLOSE


def test_any_number_of_pings_has_one_answer_waiting() -> None:
    line = Line()
    line.server.receive(b"".join(frame(FrameType.PING, offset=n) for n in range(1000)), 0.0)
    (pong,) = parse_message(message_of(line.server))
    assert (pong.type, pong.offset) == (FrameType.PONG, 999)


HELLO = frame(FrameType.HELLO, payload=b'{"protocol":1}')
OPEN = frame(FrameType.OPEN, 1, payload=dump_json({"kind": "exec", "execId": "e", "params": {}}))
TO_SERVER = {
    "unknown type": HELLO + frame(99),
    "no hello": OPEN,
    "hello twice": HELLO + HELLO,
    "other protocol": frame(FrameType.HELLO, payload=b'{"protocol":2}'),
    "no protocol": frame(FrameType.HELLO, payload=b"{}"),
    "number used again": HELLO + OPEN + OPEN,
    "stream zero": HELLO + frame(FrameType.OPEN, 0, payload=dump_json({"kind": "exec", "execId": "e"})),
    "open without json": HELLO + frame(FrameType.OPEN, 1),
    "open without kind": HELLO + frame(FrameType.OPEN, 1, payload=b'{"execId":"e"}'),
    "open without id": HELLO + frame(FrameType.OPEN, 1, payload=b'{"kind":"exec"}'),
    "malformed id": HELLO + frame(FrameType.OPEN, 1, payload=b'{"kind":"exec","execId":"../x"}'),
    "params no object": HELLO + frame(FrameType.OPEN, 1, payload=b'{"kind":"exec","execId":"e","params":[]}'),
    "attach no object": HELLO + frame(FrameType.OPEN, 1, payload=b'{"kind":"exec","execId":"e","attach":1}'),
    "attach with text": HELLO
    + frame(FrameType.OPEN, 1, payload=b'{"kind":"exec","execId":"e","attach":{"received":{"0":"1"}}}'),
    "attach with true": HELLO
    + frame(FrameType.OPEN, 1, payload=b'{"kind":"exec","execId":"e","attach":{"received":{"0":true}}}'),
    "attach of stdin": HELLO
    + frame(FrameType.OPEN, 1, payload=b'{"kind":"exec","execId":"e","attach":{"received":{"2":1}}}'),
    "confirmation from a client": HELLO + OPEN + frame(FrameType.OPEN_CONFIRMATION, 1, payload=b'{"info":{}}'),
    "status from a client": HELLO + OPEN + frame(FrameType.STATUS, 1, payload=b"{}"),
    "exit from a client": HELLO + OPEN + frame(FrameType.EXIT_STATUS, 1, payload=bytes(4)),
    "stderr from a client": HELLO + OPEN + frame(FrameType.DATA, 1, code=1, payload=b"x"),
    "substream 255": HELLO + OPEN + frame(FrameType.EOF, 1, code=255),
    "gap": HELLO + OPEN + frame(FrameType.DATA, 1, offset=1, payload=b"x"),
    "beyond the window": HELLO
    + OPEN
    + b"".join(frame(FrameType.DATA, 1, offset=n * FRAME_BYTES, payload=bytes(FRAME_BYTES)) for n in range(5)),
    "data behind eof": HELLO + OPEN + frame(FrameType.EOF, 1) + frame(FrameType.DATA, 1, payload=b"x"),
    "eof too far": HELLO + OPEN + frame(FrameType.EOF, 1, offset=1),
    "credit for nothing": HELLO + OPEN + frame(FrameType.WINDOW_ADJUST, 1, offset=1, payload=bytes(8)),
    "credit without limit": HELLO + OPEN + frame(FrameType.WINDOW_ADJUST, 1),
    "bad signal": HELLO + OPEN + frame(FrameType.SIGNAL, 1, offset=1, payload=b"SIGTERM"),
    "long signal": HELLO + OPEN + frame(FrameType.SIGNAL, 1, offset=1, payload=b"TERM" + b" " * 100),
    "missing signal": HELLO + OPEN + frame(FrameType.SIGNAL, 1, offset=2, payload=b"TERM"),
    "short size": HELLO + OPEN + frame(FrameType.WINDOW_CHANGE, 1, payload=bytes(7)),
}
TO_CLIENT = {
    "open from a server": OPEN,
    "goodbye from a server": frame(FrameType.GOODBYE),
    "signal from a server": frame(FrameType.SIGNAL, 1, offset=1, payload=b"TERM"),
    "size from a server": frame(FrameType.WINDOW_CHANGE, 1, payload=bytes(8)),
    "data before the confirmation": frame(FrameType.DATA, 1, payload=b"x"),
    "exit before the confirmation": frame(FrameType.EXIT_STATUS, 1, payload=bytes(4)),
    "confirmation without json": frame(FrameType.OPEN_CONFIRMATION, 1),
    "malformed exit": frame(FrameType.OPEN_CONFIRMATION, 1, payload=b'{"info":{}}')
    + frame(FrameType.EXIT_STATUS, 1, payload=b"x"),
    "malformed exit signal": frame(FrameType.OPEN_CONFIRMATION, 1, payload=b'{"info":{}}')
    + frame(FrameType.EXIT_SIGNAL, 1, payload=b"\xff"),
    "signal never sent": frame(FrameType.OPEN_CONFIRMATION, 1, payload=b'{"info":{}}')
    + frame(FrameType.WINDOW_ADJUST, 1, code=2, offset=1),
    "status without json": frame(FrameType.STATUS, 1, payload=b"oops"),
    "result behind the end": frame(FrameType.CLOSE, 1) + frame(FrameType.STATUS, 1, payload=b"{}"),
}


@pytest.mark.parametrize("message", TO_SERVER.values(), ids=TO_SERVER.keys())
def test_a_server_refuses(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        Channel(Role.SERVER).receive(message, 0.0)


@pytest.mark.parametrize("message", TO_CLIENT.values(), ids=TO_CLIENT.keys())
def test_a_client_refuses(message: bytes) -> None:
    client = Channel(Role.CLIENT)
    client.open(StreamKind.EXEC, {}, "e")
    with pytest.raises(ProtocolError):
        client.receive(message, 0.0)


# Time


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    channel = Channel(Role.SERVER, ping_seconds=15, silence_seconds=45)
    assert channel.deadline() is None
    channel.check(100.0)
    assert channel.deadline() == 115.0
    channel.check(114.9)
    assert not channel.has_output
    channel.check(115.0)
    assert frame_types(channel.message_to_send()) == [FrameType.PING]
    assert channel.deadline() == 145.0
    channel.check(144.9)
    assert not channel.has_output
    with pytest.raises(PeerSilentError):
        channel.check(145.0)


def test_whatever_the_peer_says_shows_that_it_lives() -> None:
    line = Line()
    line.client.check(0.0)
    line.client.check(20.0)
    line.server.receive(message_of(line.client), 20.0)
    line.client.receive(message_of(line.server), 21.0)
    assert line.client.deadline() == 36.0
    assert line.server.deadline() == 35.0


# Goodbye


def test_goodbye_is_the_last_frame_behind_everything_queued() -> None:
    line = Line()
    stream, peer = line.open()
    stream.send(bytes(WINDOW_BYTES))
    line.client.goodbye()
    events = line.up()
    assert types(events[:-1]) == [Data] * (len(events) - 1)
    assert sum(len(e.data) for e in events if isinstance(e, Data)) == WINDOW_BYTES
    assert events[-1] == Goodbye()
    assert not line.client.has_output
    assert line.server.receive(frame(FrameType.CLOSE, 1), 0.0) == []
    assert not peer.peer_closed
    with pytest.raises(RuntimeError):
        line.client.open(StreamKind.EXEC, {}, "late")


# Wrong use


def test_wrong_use_is_an_error_at_the_call() -> None:
    line = Line()
    stream, peer = line.open("a")
    _other, unconfirmed = line.open("b", confirm=False)
    calls: list[Callable[[], object]] = [
        lambda: stream.send(b"x", 1),
        lambda: peer.send(b"x", 2),
        lambda: peer.room(-1),
        lambda: stream.consumed(1),
        lambda: peer.consumed(0, 1),
        lambda: stream.signal("SIGTERM"),
        lambda: peer.signal("TERM"),
        lambda: stream.window_change(-1, 0),
        lambda: stream.exit_status(0),
        lambda: stream.fail(Status(Code.INTERNAL)),
        lambda: stream.confirm({}),
        lambda: peer.confirm({}),
        lambda: peer.exit_status(-1),
        lambda: peer.exit_signal("nonsense"),
        lambda: unconfirmed.send(b"x"),
        unconfirmed.send_eof,
        lambda: unconfirmed.exit_status(0),
        lambda: unconfirmed.confirm({"x": float("nan")}),
        lambda: line.client.open(StreamKind.EXEC, {}, "not an id"),
        lambda: line.client.open(StreamKind.EXEC, {"x": "\ud800"}, "c"),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(ValueError):
            call()
            pytest.fail(f"call {number} was let through")
    with pytest.raises(RuntimeError):
        line.server.open(StreamKind.EXEC, {}, "x")
    stream.send_eof()
    with pytest.raises(ValueError):
        stream.send(b"x")
    assert not line.server.has_output


def test_changing_a_buffer_after_sending_it_changes_nothing() -> None:
    line = Line()
    stream, peer = line.open()
    buffer = bytearray(b"before")
    stream.send(buffer)
    buffer[:] = b"after!"
    assert line.up() == [Data(peer, 0, b"before")]


def test_neither_data_nor_parameters_are_part_of_a_repr() -> None:
    line = Line()
    stream = line.client.open(StreamKind.EXEC, {"env": {"KEY": "secret"}}, "e")
    stream.send(b"secret")
    assert "secret" not in repr(line.up())
    assert "secret" not in repr(stream)
