"""A wire between client and gateway that a test can cut."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Relay:
    """Passes bytes between a Unix socket of its own and the gateway's.

    Attributes:
        url: The address for the client.
        connections: How many were made so far.
    """

    def __init__(self, path: str, target: str) -> None:
        self.url = f"unix://{path}"
        self.connections = 0
        self._target = target
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._refusing = False
        self._cut_after: int | None = None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(64)
        threading.Thread(target=self._accept, name="relay", daemon=True).start()

    def cut(self) -> None:
        """End all present connections without a goodbye."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def cut_after(self, received_bytes: int) -> None:
        """End the connections when the client has received so many more bytes."""
        with self._lock:
            self._cut_after = received_bytes

    def refuse(self, refusing: bool = True) -> None:
        """Take no new connection, or take them again."""
        self._refusing = refusing

    def close(self) -> None:
        """End everything."""
        self.refuse()
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                server.connect(self._target)
            except OSError:
                client.close()
                server.close()
                continue
            with self._lock:
                self.connections += 1
                self._pairs.append((client, server))
            ends = _Ends(client, server)
            threading.Thread(target=self._copy, args=(client, server, ends, False), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, ends, True), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, ends: _Ends, downwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if downwards and self._is_used_up(len(data)):
                    self.cut()
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        ends.done()

    def _is_used_up(self, size: int) -> bool:
        with self._lock:
            if self._cut_after is None:
                return False
            self._cut_after -= size
            if self._cut_after > 0:
                return False
            self._cut_after = None
            return True


class _Ends:
    """Closes both sockets when both directions are done."""

    def __init__(self, *ends: socket.socket) -> None:
        self._ends = ends
        self._open = 2
        self._lock = threading.Lock()

    def done(self) -> None:
        with self._lock:
            self._open -= 1
            if self._open:
                return
        for end in self._ends:
            end.close()


@contextlib.contextmanager
def relay(target_url: str) -> Iterator[Relay]:
    """A relay before the gateway at `target_url`, which is `unix://...`."""
    target = target_url.removeprefix("unix://")
    path = os.path.join(os.path.dirname(target), "relay.sock")
    made = Relay(path, target)
    try:
        yield made
    finally:
        made.close()
        os.unlink(path)
