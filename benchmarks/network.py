"""Connections to a server in a sandbox, and to the same server beside it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from attrs import frozen

from benchmarks.timing import milliseconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cwsandbox import Sandbox

PORT = 8080
PORTS = [{"container_port": PORT, "name": "bench", "protocol": "TCP"}]
_MEBIBYTE = 1 << 20
_FLOOD_BYTES = 256 * _MEBIBYTE
# "e": echoes one byte and waits for the end; "f": sends the flood.
_SERVER = f"""
import socket, sys, threading
block = bytes({_MEBIBYTE})
def serve(connection):
    with connection:
        if connection.recv(1) == b"f":
            for _ in range({_FLOOD_BYTES // _MEBIBYTE}): connection.sendall(block)
        else:
            connection.sendall(b"e"); connection.recv(1)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
print(server.getsockname()[1], flush=True)
while True: threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


@frozen
class Server:
    """Where it listens."""

    host: str
    port: int

    def connect_and_echo(self, times: int) -> list[float]:
        """A new connection and one byte each way."""

        def one() -> None:
            with socket.create_connection((self.host, self.port)) as connection:
                connection.sendall(b"e")
                connection.recv(1)

        return milliseconds(one, times)

    def flood(self) -> list[float]:
        """MB/s from the server to here."""
        begin, left, buffer = time.perf_counter(), _FLOOD_BYTES, bytearray(_MEBIBYTE)
        with socket.create_connection((self.host, self.port)) as connection:
            connection.sendall(b"f")
            while left:
                left -= connection.recv_into(buffer)
        return [_FLOOD_BYTES / 1e6 / (time.perf_counter() - begin)]


@contextlib.contextmanager
def beside() -> Iterator[Server]:
    """The server as a process of this machine."""
    with subprocess.Popen([sys.executable, "-Ic", _SERVER, "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server("127.0.0.1", int(process.stdout.readline()))
        finally:
            process.terminate()


def inside(sandbox: Sandbox) -> Server:
    """The server in a sandbox that exposes `PORTS`."""
    process = sandbox.exec(["python3", "-Ic", _SERVER, str(PORT)])
    next(iter(process.stdout))
    assert sandbox.service_address is not None
    host, _, port = sandbox.service_address.rpartition(":")
    return Server(host, int(port))
