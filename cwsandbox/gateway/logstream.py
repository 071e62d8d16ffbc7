"""The logs stream: what the main command of a sandbox prints."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cwsandbox.gateway.errors import error, not_running
from cwsandbox.gateway.mainlog import Entry, tail
from cwsandbox.gateway.streamtask import StreamTask
from cwsandbox.wire.errors import Code
from cwsandbox.wire.resources import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cwsandbox.gateway.service import Service
    from cwsandbox.wire.channel import Stream
    from cwsandbox.wire.streams import LogsOpen


class LogStream(StreamTask):
    """Logs on their way to a client."""

    def __init__(self, service: Service, principal: str, stream: Stream, request: LogsOpen) -> None:
        super().__init__(service, principal, stream)
        self._request = request
        self._at_line_start = True

    async def _serve(self) -> None:
        request = self._request
        sandbox = self.service.get(self.principal, request.sandbox_id)
        over = sandbox.terminal or sandbox.record.state is State.TERMINATING
        if request.follow and over:
            raise not_running(sandbox.record)
        with sandbox.in_use():
            if not over:
                await self.service.box(sandbox, request.wait_seconds)
            self.stream.confirm({})
            self.wake()
            snapshot = await sandbox.log.read()
            await self._print(self._selected(snapshot.entries))
            while request.follow:
                await sandbox.log.wait_beyond(snapshot.position)
                following = await sandbox.log.read(snapshot.position)
                if following.oldest > snapshot.position:
                    raise error(Code.DATA_LOSS, "the sandbox printed faster than the log was read; some of it is lost")
                if not following.entries and sandbox.log.closed:
                    break
                await self._print(following.entries)
                snapshot = following
        self.stream.send_eof()
        self.stream.exit_status(0)

    def _selected(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        since = self._request.since_time
        if since is not None:
            moment = since.timestamp()
            entries = tuple(entry for entry in entries if entry.time >= moment)
        return tail(entries, self._request.tail_lines) if self._request.tail_lines else entries

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
                parts += [stamp, line] if self._at_line_start else [line]
                self._at_line_start = line.endswith(b"\n")
        return b"".join(parts)
