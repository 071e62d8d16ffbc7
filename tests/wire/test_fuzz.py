"""Whatever comes in, nothing but ProtocolError comes out, and what the peer can make us hold is bounded."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cwsandbox.wire.channel import Channel, Opened, ProtocolError, Role, StreamKind
from cwsandbox.wire.frames import HEADER, WINDOW_BYTES, FrameType
from tests.wire.pair import Pair

_json = st.sampled_from(
    [
        b"{}",
        b"[]",
        b'{"protocol":1}',
        b'{"kind":"exec","execId":"e0","params":{}}',
        b'{"kind":"exec","execId":"e0","attach":{"received":{"0":0,"1":0}}}',
        b'{"kind":"exec","execId":"e0","attach":{"received":{"0":3,"1":0},"consumed":{"0":3},"confirmed":true}}',
        b'{"kind":"exec","execId":"e0","attach":{"received":{"0":99999999999999999999}}}',
        b'{"info":{}}',
        b'{"info":{},"received":{"0":1},"signals":1}',
        b'{"received":{"0":-1}}',
        b'{"received":{"0":3},"consumed":{"0":4},"signals":-1}',
        b'{"code":5,"message":"m","details":[{"@type":1}]}',
        b'{"code":[],"message":{},"details":{}}',
    ]
)
_payloads = st.one_of(_json, st.binary(max_size=20), st.sampled_from([b"TERM", bytes(4), bytes(8), b"\xff" * 8]))
_frames = st.builds(
    lambda kind, code, stream, offset, payload: HEADER.pack(kind, code, stream, offset, len(payload)) + payload,
    st.one_of(st.sampled_from(list(FrameType)), st.integers(0, 255)),
    st.one_of(st.integers(0, 3), st.integers(0, 255)),
    st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 10), st.integers(0, 2**64 - 1)),
    _payloads,
)
_messages = st.one_of(st.binary(max_size=300), st.lists(_frames, max_size=12).map(b"".join))


def _busy_pair() -> Pair:
    """Streams in many states: running, not confirmed, closing, resumed."""
    pair = Pair()
    for _ in range(4):
        pair.open()
    pair.settle()
    for end in list(pair.servers.values())[1:]:
        end.stream.confirm({"pid": 7})
        end.send(3, 0)
    pair.settle()
    ends = list(pair.clients.values())
    ends[2].send(3, 0)
    ends[2].stream.signal("TERM")
    ends[3].stream.close()
    return pair


def _feed(channel: Channel, messages: list[bytes]) -> None:
    for message in messages:
        try:
            events = channel.receive(message, 0.0)
        except ProtocolError:
            return
        for event in events:
            repr(event)
            if isinstance(event, Opened):
                event.stream.confirm({})
        while channel.message_to_send() is not None:
            pass
        for stream in channel.streams.values():
            for flow in stream._in:
                assert flow.received - flow.consumed <= WINDOW_BYTES


@given(st.lists(_messages, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=250)
def test_a_busy_client_survives_anything(messages: list[bytes], resumed: bool, sent: bool) -> None:
    client = _busy_pair().client
    if resumed:
        client = client.resume()
    if sent:
        client.message_to_send()
    _feed(client, messages)


@given(st.lists(_messages, max_size=4))
@settings(max_examples=250)
def test_a_busy_server_survives_anything(messages: list[bytes]) -> None:
    _feed(_busy_pair().server, messages)


@given(st.lists(_messages, max_size=4))
@settings(max_examples=200)
def test_a_new_server_survives_anything_behind_a_greeting(messages: list[bytes]) -> None:
    hello = Channel(Role.CLIENT).message_to_send()
    assert hello is not None
    _feed(Channel(Role.SERVER, max_streams=3), [hello, *messages])


@given(st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
@example([(0, 0)], False)
@settings(max_examples=200)
def test_a_conversation_with_changed_bytes_ends_in_a_protocol_error_or_goes_on(
    changes: list[tuple[int, int]], up: bool
) -> None:
    pair = _busy_pair()
    sender, receiver = (pair.client, pair.server) if up else (pair.server, pair.client)
    next(iter(pair.servers.values())).stream.confirm({"pid": 7})
    pair.open()
    message = bytearray(sender.message_to_send() or b"\0")
    for position, value in changes:
        message[position % len(message)] = value
    _feed(receiver, [bytes(message)])


@given(st.lists(_frames, max_size=6).map(b"".join))
@settings(max_examples=200)
def test_an_adoption_that_a_hostile_client_asks_for_is_done_or_refused(message: bytes) -> None:
    pair = _busy_pair()
    (_, stream, *_) = pair.server.abandon()
    channel = Channel(Role.SERVER, hello={})
    hello = Channel(Role.CLIENT).message_to_send()
    assert hello is not None
    try:
        events = channel.receive(hello + message, 0.0)
    except ProtocolError:
        return
    for event in events:
        if isinstance(event, Opened) and event.stream.kind is StreamKind.EXEC and not stream.closed:
            event.stream.exec_id = stream.exec_id
            try:
                channel.adopt(stream, event)
            except ProtocolError:
                return
            break
    while channel.message_to_send() is not None:
        pass
