"""Ports of this machine for what binds them later."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """A TCP port of the loopback that nobody has.

    Below those that the kernel gives to whoever asks for any: between now and its use, another test's server cannot
    get it by accident.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
