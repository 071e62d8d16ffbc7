"""Random lives of a channel: no byte is lost or doubled, every stream ends, whatever is cut and when."""

from __future__ import annotations

import inspect
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cwsandbox.wire.channel import ExitStatusReceived
from cwsandbox.wire.errors import Code, Status
from cwsandbox.wire.frames import WINDOW_BYTES
from tests.wire.pair import Pair

if TYPE_CHECKING:
    from tests.wire.pair import End

_indexes = st.integers(0, 7)
_codes = st.integers(0, 1)
_sizes = st.one_of(
    st.integers(1, 20), st.sampled_from([4095, 4096, 65536, 262144, 262145, WINDOW_BYTES]), st.integers(1, WINDOW_BYTES)
)


class ChannelMachine(RuleBasedStateMachine):
    """Two channels that the rules make act, lose messages, and come together again."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def _client(self, index: int) -> End:
        ends = list(self.pair.clients.values())
        return ends[index % len(ends)]

    def _server(self, index: int) -> End:
        ends = list(self.pair.servers.values())
        return ends[index % len(ends)]

    has_clients = precondition(lambda self: self.pair.clients)
    has_servers = precondition(lambda self: self.pair.servers)

    @precondition(lambda self: len(self.pair.clients) < 8)
    @rule()
    def open(self) -> None:
        self.pair.open()

    @has_clients
    @rule(index=_indexes, size=_sizes)
    def client_sends(self, index: int, size: int) -> None:
        end = self._client(index)
        end.send(min(size, end.stream.room()), 0)

    @has_clients
    @rule(index=_indexes)
    def client_ends_input(self, index: int) -> None:
        self._client(index).send_eof(0)

    @has_clients
    @rule(index=_indexes, size=_sizes, code=_codes)
    def client_consumes(self, index: int, size: int, code: int) -> None:
        self._client(index).consume(size, code)

    @has_clients
    @rule(index=_indexes, name=st.sampled_from(["TERM", "INT", "USR1"]))
    def client_signals(self, index: int, name: str) -> None:
        end = self._client(index)
        end.stream.signal(name)
        end.signals.append(name)

    @has_clients
    @rule(index=_indexes, columns=st.integers(1, 500))
    def client_resizes(self, index: int, columns: int) -> None:
        end = self._client(index)
        end.stream.window_change(columns, 24)
        end.size = (columns, 24)

    @has_clients
    @rule(index=_indexes)
    def client_gives_up(self, index: int) -> None:
        end = self._client(index)
        end.stream.close()
        end.gave_up |= not end.closed

    @has_servers
    @rule(index=_indexes)
    def server_confirms(self, index: int) -> None:
        end = self._server(index)
        if not end.confirmed:
            end.confirmed = True
            end.stream.confirm({"pid": 7})

    @has_servers
    @rule(index=_indexes, size=_sizes, code=_codes)
    def server_sends(self, index: int, size: int, code: int) -> None:
        end = self._server(index)
        if end.confirmed and end.result is None:
            end.send(min(size, end.stream.room(code)), code)

    @has_servers
    @rule(index=_indexes, code=_codes)
    def server_ends_output(self, index: int, code: int) -> None:
        end = self._server(index)
        if end.confirmed:
            end.send_eof(code)

    @has_servers
    @rule(index=_indexes, size=_sizes)
    def server_consumes(self, index: int, size: int) -> None:
        self._server(index).consume(size, 0)

    @has_servers
    @rule(index=_indexes, status=st.integers(0, 255))
    def server_exits(self, index: int, status: int) -> None:
        end = self._server(index)
        if end.confirmed and end.result is None and not end.gave_up:
            end.result = status
            end.stream.exit_status(status)

    @has_servers
    @rule(index=_indexes)
    def server_fails(self, index: int) -> None:
        end = self._server(index)
        if end.result is None and not end.gave_up:
            end.result = "failed"
            end.gave_up = True
            end.stream.fail(Status.make(Code.INTERNAL, "failed"))

    @has_servers
    @rule(index=_indexes)
    def server_closes(self, index: int) -> None:
        end = self._server(index)
        end.gave_up = True
        end.stream.close()

    @rule(max_bytes=st.sampled_from([1, 5000, 300_000, 2**20]))
    def client_writes(self, max_bytes: int) -> None:
        self.pair.flush_client(max_bytes)

    @rule(max_bytes=st.sampled_from([1, 5000, 300_000, 2**20]))
    def server_writes(self, max_bytes: int) -> None:
        self.pair.flush_server(max_bytes)

    @rule()
    def server_reads(self) -> None:
        self.pair.deliver_up()

    @rule()
    def client_reads(self) -> None:
        self.pair.deliver_down()

    @rule()
    def messages_flow(self) -> None:
        self.pair.settle()

    @rule(noticed=st.booleans())
    def connection_breaks(self, noticed: bool) -> None:
        self.pair.cut(noticed=noticed)

    @invariant()
    def bounds_hold(self) -> None:
        self.pair.check()

    def teardown(self) -> None:
        pair = self.pair
        pair.settle()
        for end in pair.servers.values():
            if not end.confirmed:
                end.stream.confirm({"pid": 7})
        progress = True
        while progress:
            pair.settle()
            progress = False
            for end in (*pair.clients.values(), *pair.servers.values()):
                for code in (0, 1):
                    if end.unread(code):
                        end.consume(2**30, code)
                        progress = True
        for end in pair.servers.values():
            if end.result is None:
                end.result = 0
                end.stream.exit_status(0)
            end.stream.close()
        pair.settle()
        self._everything_ended()

    def _everything_ended(self) -> None:
        pair = self.pair
        assert not pair.client.streams
        assert not pair.server.streams
        for exec_id, client in pair.clients.items():
            assert client.closed, "a stream without an end"
            assert client.stream.closed
            server = pair.servers.get(exec_id)
            if server is None:
                assert client.gave_up, "a command that was never started"
                continue
            if client.gave_up:
                continue
            # Nobody gave up on the client's side: all that was sent until the server closed has arrived.
            assert {k: v for k, v in client.received.items() if v} == {k: v for k, v in server.sent.items() if v}
            assert client.eof_received >= (server.eof_sent if not server.gave_up else set())
            if isinstance(server.result, int) and not server.gave_up:
                assert isinstance(client.result, ExitStatusReceived)
                assert client.result.status == server.result
            if not server.gave_up:
                assert server.received.get(0, 0) == client.sent.get(0, 0)
                assert server.eof_received == client.eof_sent
                assert not server.size or server.size == client.size
                assert set(server.signals) == set(client.signals)
                assert len(server.signals) <= len(client.signals), "a signal was delivered twice"


ChannelMachine.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestChannelLives = ChannelMachine.TestCase


# The same rules, drawn without hypothesis: ten times as many lives in the same time, and longer ones.

_CLIENT = ["sends", "ends_input", "consumes", "signals", "resizes", "gives_up"]
_SERVER = ["confirms", "confirms", "sends", "sends", "ends_output", "consumes", "exits", "fails", "closes"]
_WIRE = (
    "client_writes server_writes server_reads client_reads server_reads client_reads messages_flow connection_breaks"
)
_DRAWS = {
    "index": lambda r: r.randint(0, 7),
    "size": lambda r: r.choice([r.randint(1, 20), r.choice([4096, 262144, WINDOW_BYTES]), r.randint(1, WINDOW_BYTES)]),
    "code": lambda r: r.randint(0, 1),
    "name": lambda r: r.choice(["TERM", "INT", "USR1"]),
    "columns": lambda r: r.randint(1, 500),
    "status": lambda r: r.randint(0, 255),
    "max_bytes": lambda r: r.choice([1, 5000, 300_000, 2**20]),
    "noticed": lambda r: r.random() < 0.5,
}


def _live(seed: int) -> None:
    """One life; `seed` repeats it."""
    draw = random.Random(seed)
    machine = ChannelMachine()
    names = [*_WIRE.split(), "open", *(f"client_{n}" for n in _CLIENT), *(f"server_{n}" for n in _SERVER)]
    weights = [draw.random() for _ in names]
    for _ in range(draw.choice([10, 30, 100])):
        (name,) = draw.choices(names, weights)
        if name == "open" and len(machine.pair.clients) == 8:
            continue
        if name.startswith(tuple(f"client_{n}" for n in _CLIENT)) and not machine.pair.clients:
            continue
        if name.startswith(tuple(f"server_{n}" for n in _SERVER)) and not machine.pair.servers:
            continue
        step = getattr(machine, name)
        step(**{argument: _DRAWS[argument](draw) for argument in inspect.signature(step).parameters})
        machine.bounds_hold()
    machine.teardown()


@pytest.mark.parametrize("first", range(0, 1200, 100))
def test_seeded_lives(first: int) -> None:
    for seed in range(first, first + 100):
        try:
            _live(seed)
        except Exception as error:
            error.add_note(f"the seed was {seed}")
            raise
