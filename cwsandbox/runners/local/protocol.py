"""Messages between the gateway, the zygote and the agents.

One message is one datagram on a SOCK_SEQPACKET Unix socket: the length of a JSON object, the object, raw bytes, and
file descriptors beside it. Larger ones travel in a memfd. Both sides use this module; it is plain standard library.
"""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from cwsandbox.runners.local.descriptors import memory_file

if TYPE_CHECKING:
    from collections.abc import Sequence

INLINE_BYTES = 96 * 1024
"""The largest message sent as a datagram: well below the default socket buffer."""
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
INLINE_FILE_BYTES = 64 * 1024
"""File contents up to this size travel in a message, larger ones as a descriptor."""
MAX_DESCRIPTORS = 8
JOURNALS = {"stdin": "input", "stdout": "output", "stderr": "errors"}
"""A command's descriptors go by names: its streams (`stdout` is the terminal's master side if it has one), the journal
of each, and the pipe `relay_in`, `relay_out` between a terminal and its journal."""

_LENGTH = struct.Struct("!I")
_IN_MEMFD = 0xFFFF_FFFF
_NO_DESCRIPTORS: tuple[int, ...] = ()


class ProtocolError(Exception):
    """The other side sent something that is not a message."""


class DescriptorsLostError(ProtocolError):
    """A message's descriptors did not all arrive: this process has no room for them.

    The message as such arrived: `body` says what it was about.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__("a message's descriptors were cut off")
        self.body = body


class Message(NamedTuple):
    """One message; whoever receives it owns `fds`."""

    body: dict[str, Any]
    payload: bytes = b""
    fds: Sequence[int] = _NO_DESCRIPTORS

    def close_fds(self) -> None:
        """Close the descriptors that came with it."""
        for fd in self.fds:
            os.close(fd)


def encode(body: dict[str, Any], payload: bytes = b"") -> bytes:
    """The bytes of one message."""
    text = json.dumps(body, separators=(",", ":")).encode("ascii")
    return _LENGTH.pack(len(text)) + text + payload


def send(connection: socket.socket, data: bytes, fds: Sequence[int] = _NO_DESCRIPTORS) -> None:
    """Send one encoded message.

    Raises:
        BlockingIOError: A non-blocking socket's buffer is full; nothing was sent.
        OSError: The other side is gone.
    """
    if len(data) <= INLINE_BYTES:
        _send_datagram(connection, data, fds)
        return
    memory = memory_file("message")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
        _send_datagram(connection, _LENGTH.pack(_IN_MEMFD), [memory, *fds])
    finally:
        os.close(memory)


def _send_datagram(connection: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive(connection: socket.socket, *, large: bool) -> Message | None:
    """Receive one message; None at the end of the connection.

    Args:
        connection: A SOCK_SEQPACKET socket.
        large: Accept messages in a memfd. Refused from agents, which have no reason to send any.

    Raises:
        BlockingIOError: A non-blocking socket has none.
        DescriptorsLostError: A message whose descriptors were lost. Those that came are closed.
        ProtocolError: Not a message. Its descriptors are closed.
    """
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(INLINE_BYTES + 1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data and not fds:
        return None
    held = list(fds)
    try:
        # As many as there was space for: more were sent than ever are, and it is not for a lack of room here.
        if flags & socket.MSG_TRUNC or (flags & socket.MSG_CTRUNC and len(held) == MAX_DESCRIPTORS):
            raise ProtocolError("a message was cut off")  # noqa: TRY301
        if flags & socket.MSG_CTRUNC:
            raise DescriptorsLostError(_decode(data)[0])  # noqa: TRY301
        if large and held and data == _LENGTH.pack(_IN_MEMFD):
            data = _read_memory(held[0])
            os.close(held.pop(0))
        return Message(*_decode(data), held)
    except BaseException:
        for fd in held:
            os.close(fd)
        raise


def _read_memory(memory: int) -> bytes:
    status = os.fstat(memory)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MESSAGE_BYTES:
        raise ProtocolError("a message is too large")
    return os.pread(memory, status.st_size, 0)


def _decode(data: bytes) -> tuple[dict[str, Any], bytes]:
    if len(data) < _LENGTH.size:
        raise ProtocolError("a message is too short")
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    if end > len(data):
        raise ProtocolError("a message's length is wrong")
    try:
        body = json.loads(data[_LENGTH.size : end])
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not JSON") from error
    if not isinstance(body, dict):
        raise ProtocolError("a message is not an object")
    return body, data[end:]
