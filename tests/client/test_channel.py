"""The exec channel against a scripted front, on a connection that holds."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox import exceptions as e
from cwsandbox._client.address import Address, AddressKind
from cwsandbox._client.auth import NO_AUTH, Account, AuthHeaders
from cwsandbox._client.channel import ExecChannel, Timing
from cwsandbox._client.gateway import open_gateway
from cwsandbox._client.stream import Exited, Lost, Refused, Signaled
from cwsandbox.wire.errors import Code, Status
from cwsandbox.wire.frames import FrameType, parse_message
from tests.client.peer import Peer, flood_bytes, serving
from tests.client.sink import Sink, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

QUICK = Timing(first_connect=0.3, first_delay=0.01, longest_delay=0.05, farewell=1.0)


@asynccontextmanager
async def channel_to(path: str, timing: Timing = QUICK, auth: AuthHeaders = NO_AUTH) -> AsyncIterator[ExecChannel]:
    async with open_gateway(Address(AddressKind.UNIX, path=path), account=Account(auth), timing=timing) as client:
        yield client.channel


def frames(peer: Peer) -> list[list[FrameType]]:
    return [[FrameType(frame.type) for frame in parse_message(message)] for message in peer.messages]


async def test_a_command_from_open_to_end() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        sink = run(channel, "echo", "hello")
        assert await sink.result() == Exited(0)
    assert bytes(sink.received) == b"hello\n"
    assert sink.info == {"pid": 7}
    assert [step for step in sink.log if step != "eof 1"] == ["confirmed", "data", "eof 0", "ended"]
    assert sink.log.count("eof 1") == 1


@pytest.mark.parametrize(
    ("argv", "outcome"),
    [
        (("exit", "3"), Exited(3)),
        (("signal", "KILL"), Signaled("KILL")),
        (("refuse", "NOT_FOUND"), Refused(Status.make(Code.NOT_FOUND, "refused", reason="CWSANDBOX_X"))),
    ],
)
async def test_how_a_stream_ends(argv: tuple[str, ...], outcome: object) -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        sink = run(channel, *argv)
        assert await sink.result() == outcome
        assert await sink.stream.wait_closed() == outcome
        assert sink.stream.outcome == outcome


async def test_an_end_without_a_result_is_not_a_success() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        outcome = await run(channel, "vanish").result()
    assert isinstance(outcome, Lost)
    assert isinstance(outcome.error, e.SandboxUnavailableError)


async def test_stdin_goes_up_and_its_echo_comes_down() -> None:
    data = flood_bytes(3_000_000)
    async with serving() as peer, channel_to(peer.path) as channel:
        sink = run(channel, "cat")
        await sink.send_all(data)
        sink.stream.send_eof()
        assert await sink.result() == Exited(0)
    assert bytes(sink.received) == data


async def test_output_beyond_the_window_waits_for_credit() -> None:
    size = 5_000_000
    async with serving() as peer, channel_to(peer.path) as channel:
        sink = run(channel, "flood", str(size), greedy=False)
        await sink.wait_bytes(1024 * 1024)
        other = run(channel, "echo", "meanwhile")
        assert await other.result() == Exited(0)
        assert len(sink.received) == 1024 * 1024
        assert sink.outcome is None
        sink.greedy = True
        sink.stream.consumed(len(sink.received))
        assert await sink.result() == Exited(0)
    assert bytes(sink.received) == flood_bytes(size)


async def test_what_is_done_in_one_go_is_one_message() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        await run(channel, "exit", "0").result()
        peer.messages.clear()
        sinks = [run(channel, "cat") for _ in range(50)]
        for sink in sinks:
            sink.stream.send(b"x")
            sink.stream.send_eof()
        for sink in sinks:
            assert await sink.result() == Exited(0)
    assert frames(peer)[0].count(FrameType.OPEN) == 50


async def test_one_command_after_another_costs_one_message_each() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        for _ in range(20):
            await run(channel, "echo", "x").result()
        sent = len([kinds for kinds in frames(peer) if FrameType.OPEN in kinds or FrameType.CLOSE in kinds])
    assert sent <= 21


async def test_the_end_of_a_stream_is_acknowledged_even_if_nothing_follows() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        await run(channel, "exit", "0").result()
        await peer.until(lambda: FrameType.CLOSE in frames(peer)[-1])


async def test_closing_a_stream_is_confirmed() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        sink = run(channel, "hang")
        await sink.running.wait()
        sink.stream.close()
        with anyio.fail_after(5):
            assert isinstance(await sink.stream.wait_closed(), Lost)
        # After the end nothing does anything.
        sink.stream.send(b"x" * 10_000_000)
        sink.stream.send_eof()
        sink.stream.consumed(10)
        sink.stream.signal("INT")
        sink.stream.window_change(1, 2)
        sink.stream.close()
        assert sink.stream.room() == 0


async def test_a_signal_arrives() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        sink = run(channel, "hang")
        await sink.running.wait()
        sink.stream.signal("TERM")
        assert await sink.result() == Signaled("TERM")


async def test_leaving_says_goodbye_and_ends_what_runs() -> None:
    async with serving() as peer:
        async with channel_to(peer.path) as channel:
            sink = run(channel, "hang")
            await sink.running.wait()
        assert peer.goodbyes == 1
        assert not peer.connections
    assert isinstance(sink.outcome, Lost)
    with pytest.raises(e.SandboxUnavailableError):
        run(channel, "echo", "late")


async def test_leaving_is_bounded_when_the_gateway_does_not_answer() -> None:
    async with serving() as peer:
        with anyio.fail_after(8):
            async with channel_to(peer.path) as channel:
                sink = run(channel, "hang")
                await sink.running.wait()
                peer.silent = True
    assert isinstance(sink.outcome, Lost)


async def test_a_channel_that_is_not_used_does_not_connect() -> None:
    async with serving() as peer, channel_to(peer.path):
        pass
    assert (peer.goodbyes, peer.requests) == (0, [])


async def test_what_the_body_raises_comes_out_as_it_is() -> None:
    async with serving() as peer:
        with pytest.raises(LookupError, match="mine"):
            async with channel_to(peer.path) as channel:
                await run(channel, "echo", "x").result()
                raise LookupError("mine")


async def test_being_cancelled_leaves_nothing() -> None:
    async with serving() as peer:
        with anyio.CancelScope() as scope:
            async with channel_to(peer.path) as channel:
                sink = run(channel, "hang")
                await sink.running.wait()
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert peer.goodbyes == 1
        assert not peer.connections
    assert isinstance(sink.outcome, Lost)


class Clumsy(Sink):
    def data(self, code: int, data: bytes) -> None:
        raise ArithmeticError("clumsy")


async def test_a_user_that_fails_ends_its_own_stream_only(caplog: pytest.LogCaptureFixture) -> None:
    from cwsandbox.wire.channel import StreamKind

    async with serving() as peer, channel_to(peer.path) as channel:
        other = run(channel, "cat")
        await other.running.wait()
        clumsy = Clumsy()
        clumsy.stream = channel.open(StreamKind.EXEC, {"argv": ["echo", "x"]}, "clumsy", clumsy)
        outcome = await clumsy.result()
        assert isinstance(outcome, Lost)
        assert isinstance(outcome.error.__cause__, ArithmeticError)
        other.stream.send_eof()
        assert await other.result() == Exited(0)


async def test_a_malformed_exec_id_is_a_value_error() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        with pytest.raises(ValueError):
            run(channel, "echo", "x", exec_id="no spaces")
        assert await run(channel, "echo", "x").result() == Exited(0)


async def test_nobody_there_is_told_to_the_stream(tmp_path: object) -> None:
    async with channel_to(f"{tmp_path}/none") as channel:
        outcome = await run(channel, "echo", "x").result()
    assert isinstance(outcome, Lost)
    assert type(outcome.error) is e.SandboxUnavailableError
    assert "none" in str(outcome.error)


async def test_a_stream_that_can_wait_for_less_than_the_channel_ends_alone() -> None:
    async with serving() as peer, channel_to(peer.path, Timing(first_delay=0.01, first_connect=60)) as channel:
        peer.status = Status.make(Code.UNAVAILABLE, "soon")
        patient = run(channel, "echo", "x")
        impatient = run(channel, "echo", "y", exec_id="impatient", reach_seconds=0.1)
        outcome = await impatient.result()
        assert isinstance(outcome, Lost)
        assert type(outcome.error) is e.SandboxRequestTimeoutError
        assert "within 0.1 s" in str(outcome.error)
        assert patient.outcome is None
        peer.status = None
        assert await patient.result() == Exited(0)
        assert bytes(patient.received) == b"x\n"
        assert not any(b"impatient" in message for message in peer.messages)


async def test_a_gateway_that_takes_connections_and_says_nothing_is_not_waited_for_longer(tmp_path: Path) -> None:
    async with (
        await anyio.create_unix_listener(tmp_path / "mute") as listener,
        anyio.create_task_group() as tasks,
        channel_to(str(tmp_path / "mute"), Timing()) as channel,
    ):
        tasks.start_soon(listener.serve, _say_nothing)
        with anyio.fail_after(5):
            outcome = await run(channel, "echo", "x", reach_seconds=0.1).result()
        assert isinstance(outcome, Lost)
        assert type(outcome.error) is e.SandboxRequestTimeoutError
        tasks.cancel_scope.cancel()


async def _say_nothing(stream: anyio.abc.SocketStream) -> None:
    async with stream:
        await anyio.sleep_forever()


async def test_a_refused_handshake_carries_its_status() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        peer.status = Status.make(Code.UNAUTHENTICATED, "who are you", reason="CWSANDBOX_AUTH_EXPIRED")
        first, second = run(channel, "echo", "x"), run(channel, "echo", "x")
        outcomes = [await first.result(), await second.result()]
        errors = [outcome.error for outcome in outcomes if isinstance(outcome, Lost)]
        assert [type(error) for error in errors] == [e.CWSandboxAuthenticationError] * 2
        assert errors[0] is not errors[1]
        assert errors[0].reason == "CWSANDBOX_AUTH_EXPIRED"
        assert "who are you" in str(errors[0])
        peer.status = None
        assert await run(channel, "echo", "x").result() == Exited(0)


async def test_a_gateway_that_is_busy_for_a_moment_is_asked_again() -> None:
    async with serving() as peer, channel_to(peer.path, Timing(first_delay=0.01)) as channel:
        peer.status = Status.make(Code.UNAVAILABLE, "soon")
        sink = run(channel, "echo", "x")
        await peer.until(lambda: peer.rejected == 3)
        assert sink.outcome is None
        peer.status = None
        assert await sink.result() == Exited(0)


async def test_another_protocol_is_named() -> None:
    async with serving() as peer, channel_to(peer.path) as channel:
        peer.protocol = 99
        outcome = await run(channel, "echo", "x").result()
    assert isinstance(outcome, Lost)
    assert "99" in str(outcome.error)


async def test_credentials_go_along() -> None:
    auth = AuthHeaders({"authorization": "Bearer k"}, "api_key")
    async with serving() as peer, channel_to(peer.path, auth=auth) as channel:
        await run(channel, "echo", "x").result()
    assert [headers["authorization"] for _, _, headers in peer.requests] == ["Bearer k"]
