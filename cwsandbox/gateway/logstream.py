"""The logs stream: what the main command of a sandbox prints."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from cwsandbox.gateway.errors import error, not_running
from cwsandbox.gateway.mainlog import tail
from cwsandbox.gateway.streamtask import StreamTask
from cwsandbox.wire.errors import Code
from cwsandbox.wire.resources import State
from cwsandbox.wire.streams import LOG_STAMP_BYTES, LogsInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cwsandbox.gateway.mainlog import Entry, MainLog, Snapshot
    from cwsandbox.gateway.service import Service
    from cwsandbox.wire.channel import Stream
    from cwsandbox.wire.streams import LogsOpen


class LogStream(StreamTask):
    """Logs on their way to a client.

    The confirmation says at which position of the log the stream begins. A client that has lost a stream, because the
    gateway was restarted, says in a new one how far it came, and nothing is lost or told twice.
    """

    def __init__(self, service: Service, principal: str, stream: Stream, request: LogsOpen) -> None:
        super().__init__(service, principal, stream)
        self._request = request
        # How much of the stamp of the line that comes next the client has; all of it within a line.
        self._stamped_bytes = request.stamp_bytes

    async def _serve(self) -> None:
        request = self._request
        sandbox = self.service.get(self.principal, request.sandbox_id)
        over = sandbox.terminal or sandbox.record.state is State.TERMINATING
        if request.follow and over and request.position is None:
            raise not_running(sandbox.record)
        with sandbox.in_use():
            if not over:
                await self._box(sandbox, request.wait_seconds)
            if request.timeout_seconds is not None:
                self._scope.deadline = anyio.current_time() + request.timeout_seconds
            await self._carry(sandbox.log)
        self.stream.send_eof()
        self.stream.exit_status(0)

    async def _expired(self) -> None:
        raise error(Code.DEADLINE_EXCEEDED, f"the log was not read within {self._request.timeout_seconds:g} s")

    async def _carry(self, log: MainLog) -> None:
        snapshot = await log.read(self._request.position or 0)
        entries = self._selected(snapshot)
        begin = entries[0].position if entries else snapshot.position
        self._confirm(LogsInfo(position=begin).to_params())
        self.wake()
        await self._print(entries)
        while self._request.follow:
            await log.wait_beyond(snapshot.position)
            following = await log.read(snapshot.position)
            if not following.entries and log.closed:
                return
            self._check_complete(following, snapshot.position)
            await self._print(following.entries)
            snapshot = following

    def _selected(self, snapshot: Snapshot) -> tuple[Entry, ...]:
        request = self._request
        if request.position is not None:
            self._check_complete(snapshot, request.position)
            return snapshot.entries
        entries = snapshot.entries
        if request.since_time is not None:
            moment = request.since_time.timestamp()
            # What follows comes along, even if the clock was set back: positions have no gaps.
            entries = tuple(itertools.dropwhile(lambda entry: entry.time < moment, entries))
        return tail(entries, request.tail_lines) if request.tail_lines else entries

    @staticmethod
    def _check_complete(snapshot: Snapshot, position: int) -> None:
        begin = snapshot.entries[0].position if snapshot.entries else snapshot.oldest
        if begin > position:
            raise error(Code.DATA_LOSS, "the sandbox printed faster than the log was read; some of it is lost")

    async def _print(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            data = self._stamped(entry) if self._request.timestamps else entry.data
            view = memoryview(data)
            while view:
                room = await self._room()
                self._send(bytes(view[:room]))
                view = view[room:]

    def _stamped(self, entry: Entry) -> bytes:
        """Put the time before every line; a line that comes in pieces is stamped once."""
        moment = datetime.fromtimestamp(entry.time, UTC)
        stamp = moment.isoformat(timespec="microseconds").replace("+00:00", "Z ").encode()
        *lines, rest = entry.data.split(b"\n")
        parts: list[bytes] = []
        for line in [*(line + b"\n" for line in lines), rest]:
            if line:
                parts += [stamp[self._stamped_bytes :], line]
                self._stamped_bytes = 0 if line.endswith(b"\n") else LOG_STAMP_BYTES
        return b"".join(parts)
