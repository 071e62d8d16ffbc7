"""A byte proxy on a Unix socket that breaks connections in every way that networks do."""

from __future__ import annotations

import contextlib
import tempfile
from typing import TYPE_CHECKING

import anyio
import httpcore

from cwsandbox._client.unixsocket import UnixSocketBackend, UnixSocketStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import SocketStream


class Proxy:
    """Passes bytes on between `path` and the target.

    Attributes:
        path: Where clients connect.
        cut_after: Both directions together, per connection: how many bytes pass before it is cut, mid-message or not.
        refuse: New connections are closed at once.
        stall: No more bytes pass; connections stay open.
        accepted: How many connections there were.
        held: How many pieces of data a stall has held back.
    """

    def __init__(self, path: str, target: str) -> None:
        self.path = path
        self.target = target
        self.cut_after: int | None = None
        self.refuse = False
        self.stall = False
        self.accepted = 0
        self.held = 0
        self._news = anyio.Event()
        self.pairs: set[tuple[UnixSocketStream, UnixSocketStream]] = set()

    async def cut(self) -> None:
        """Cut all present connections."""
        for pair in list(self.pairs):
            for stream in pair:
                await stream.aclose()

    async def wait_accepted(self, count: int) -> None:
        """Wait until there were so many connections, refused ones included."""
        with anyio.fail_after(20):
            while self.accepted < count:
                await self._news.wait()

    async def wait_held(self) -> None:
        """Wait until a stall has held something back."""
        with anyio.fail_after(20):
            while not self.held:
                await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def serve(self, accepted: SocketStream) -> None:
        self.accepted += 1
        self._tell()
        client = UnixSocketStream(accepted.extra(anyio.abc.SocketAttribute.raw_socket))
        if self.refuse:
            await client.aclose()
            return
        server = await UnixSocketBackend().connect_unix_socket(self.target)
        pair = (client, server)
        self.pairs.add(pair)
        budget = [self.cut_after]
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._pass_on, client, server, budget, tasks.cancel_scope)
                tasks.start_soon(self._pass_on, server, client, budget, tasks.cancel_scope)
        finally:
            self.pairs.discard(pair)
            with anyio.CancelScope(shield=True):
                await client.aclose()
                await server.aclose()

    async def _pass_on(
        self, source: UnixSocketStream, drain: UnixSocketStream, budget: list[int | None], scope: anyio.CancelScope
    ) -> None:
        with contextlib.suppress(httpcore.NetworkError):
            while data := await source.read(16384):
                if self.stall:
                    self.held += 1
                    self._tell()
                    await anyio.sleep_forever()
                left = budget[0]
                if left is not None:
                    data = data[:left]
                    budget[0] = left - len(data)
                await drain.write(data)
                if budget[0] == 0:
                    break
        scope.cancel()


@contextlib.asynccontextmanager
async def proxying(target: str) -> AsyncIterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="cwproxy-") as folder:
        proxy = Proxy(f"{folder}/proxy.sock", target)
        async with await anyio.create_unix_listener(proxy.path) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, proxy.serve)
            yield proxy
            tasks.cancel_scope.cancel()
