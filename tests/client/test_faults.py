"""The exec channel on connections that break."""

from __future__ import annotations

import anyio
import pytest

from cwsandbox import exceptions as e
from cwsandbox._client.channel import Timing
from cwsandbox._client.stream import Exited, Lost
from cwsandbox.wire.channel import StreamKind
from tests.client.peer import flood_bytes, serving
from tests.client.proxy import proxying
from tests.client.sink import run
from tests.client.test_channel import channel_to

TIMING = Timing(
    connect=1.0, first_connect=5.0, grace=1.5, first_delay=0.01, longest_delay=0.05, farewell=1.0, ping=0.2, silence=0.5
)


@pytest.mark.parametrize("cut_after", [1_000, 70_001, 300_000])
async def test_a_flood_survives_cuts_anywhere(cut_after: int) -> None:
    """No byte is lost, none comes twice, and the command runs once."""
    size = 40 * cut_after
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        proxy.cut_after = cut_after
        sink = run(channel, "flood", str(size))
        await proxy.wait_accepted(5)
        proxy.cut_after = None
        assert await sink.result() == Exited(0)
    assert bytes(sink.received) == flood_bytes(size)
    assert len(peer.runs) == 1


async def test_stdin_and_output_survive_cuts() -> None:
    data = flood_bytes(2_000_000)
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        proxy.cut_after = 400_000
        sink = run(channel, "cat")
        await sink.send_all(data)
        sink.stream.send_eof()
        assert await sink.result() == Exited(0)
    assert bytes(sink.received) == data
    assert len(peer.runs) == 1
    assert proxy.accepted > 3


async def test_many_commands_survive_cuts() -> None:
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        proxy.cut_after = 7_000
        for wave in range(10):
            sinks = [run(channel, "echo", f"{wave}.{n}") for n in range(20)]
            for n, sink in enumerate(sinks):
                assert await sink.result() == Exited(0)
                assert bytes(sink.received) == b"%d.%d\n" % (wave, n)
    assert len(peer.runs) == 200
    assert proxy.accepted > 3


async def test_an_idle_command_survives_a_cut() -> None:
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        sink = run(channel, "cat")
        await sink.running.wait()
        await proxy.cut()
        sink.stream.send(b"still here")
        await sink.wait_bytes(10)
        sink.stream.send_eof()
        assert await sink.result() == Exited(0)
    assert sink.log.count("confirmed") == 1


async def test_a_stalled_connection_is_replaced() -> None:
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        sink = run(channel, "cat")
        await sink.running.wait()
        proxy.stall = True
        sink.stream.send(b"x")
        sink.stream.send_eof()
        await proxy.wait_held()
        assert sink.outcome is None
        await proxy.wait_accepted(2)
        proxy.stall = False
        assert await sink.result() == Exited(0)
    assert bytes(sink.received) == b"x"


async def test_a_gateway_out_of_reach_for_longer_than_the_grace_is_an_error() -> None:
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        sink = run(channel, "hang")
        await sink.running.wait()
        proxy.refuse = True
        await proxy.cut()
        began = anyio.current_time()
        outcome = await sink.result()
        assert TIMING.grace <= anyio.current_time() - began
        assert isinstance(outcome, Lost)
        assert type(outcome.error) is e.SandboxUnavailableError
        assert outcome.error.__cause__ is not None
        # The next command does not suffer from that.
        proxy.refuse = False
        assert await run(channel, "echo", "x").result() == Exited(0)


async def test_the_grace_is_the_gateways() -> None:
    async with (
        serving() as peer,
        proxying(peer.path) as proxy,
        channel_to(proxy.path, Timing(first_delay=0.01)) as channel,
    ):
        peer.hello = {"grace_seconds": 0.2}
        sink = run(channel, "hang")
        await sink.running.wait()
        proxy.refuse = True
        await proxy.cut()
        with anyio.fail_after(5):
            assert isinstance(await sink.result(), Lost)


async def test_a_connection_that_broke_while_idle_is_not_missed() -> None:
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        assert await run(channel, "echo", "x").result() == Exited(0)
        await proxy.cut()
        await anyio.wait_all_tasks_blocked()  # The client has noticed, and is not in a hurry.
        assert proxy.accepted == 1
        assert await run(channel, "echo", "x").result() == Exited(0)
    assert proxy.accepted == 2


async def test_a_restarted_gateway_is_not_given_again_what_must_not_be_done_twice() -> None:
    """Commands are: it finds those that run in the sandboxes, by their exec ids. This peer has no sandboxes."""
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        unanswered = run(channel, "never", exec_id="unanswered", kind=StreamKind.WRITE)
        command = run(channel, "never", exec_id="command")
        confirmed = run(channel, "hang", exec_id="confirmed")
        await confirmed.running.wait()
        assert peer.runs == ["unanswered", "command", "confirmed"]
        proxy.refuse = True
        await proxy.cut()
        await proxy.wait_accepted(2)  # The client has noticed, and been refused.
        fresh = run(channel, "echo", "x", exec_id="fresh")
        peer.forget("two")
        proxy.refuse = False
        assert await fresh.result() == Exited(0)
        for sink in (unanswered, confirmed):
            outcome = await sink.result()
            assert isinstance(outcome, Lost)
            assert type(outcome.error) is e.SandboxUnavailableError
        assert command.outcome is None
    assert sorted(peer.runs) == ["command", "command", "confirmed", "fresh", "unanswered"]


async def test_a_command_that_the_same_gateway_did_not_answer_is_asked_for_again_and_runs_once() -> None:
    async with serving() as peer, proxying(peer.path) as proxy, channel_to(proxy.path, TIMING) as channel:
        first = run(channel, "hang")
        await first.running.wait()
        proxy.stall = True
        sink = run(channel, "echo", "x", exec_id="once")
        await proxy.wait_held()
        await proxy.cut()
        proxy.stall = False
        assert await sink.result() == Exited(0)
    assert peer.runs.count("once") == 1


async def test_a_broken_protocol_ends_the_streams_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as peer, channel_to(peer.path, TIMING) as channel:
        sink = run(channel, "hang")
        await sink.running.wait()
        broken = channel._mux.receive
        monkeypatch.setattr(channel._mux, "receive", lambda message, now: broken(b"nonsense", now))
        run(channel, "echo", "x")
        outcome = await sink.result()
        assert isinstance(outcome, Lost)
        assert type(outcome.error) is e.SandboxUnavailableError
        assert await run(channel, "echo", "x").result() == Exited(0)


async def test_leaving_during_an_outage_is_quick() -> None:
    async with serving() as peer, proxying(peer.path) as proxy:
        async with channel_to(proxy.path, Timing(farewell=1000)) as channel:
            sink = run(channel, "hang")
            await sink.running.wait()
            proxy.refuse = True
            await proxy.cut()
            await proxy.wait_accepted(2)
    assert isinstance(sink.outcome, Lost)
