"""The server's side of SOCKS 5 (RFC 1928) without I/O: CONNECT, no authentication."""

from __future__ import annotations

import enum
import ipaddress
from typing import Final

from cwsandbox.gateway.egress.target import Target, TargetError

VERSION: Final = 5
_NO_AUTHENTICATION: Final = 0
_NO_ACCEPTABLE_METHOD: Final = b"\x05\xff"
_CONNECT: Final = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4
_LENGTHS: Final = {_IPV4: 4, _IPV6: 16}


class Reply(enum.IntEnum):
    """What became of a request (RFC 1928, section 6)."""

    SUCCEEDED = 0
    GENERAL_FAILURE = 1
    NOT_ALLOWED = 2
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    CONNECTION_REFUSED = 5
    TTL_EXPIRED = 6
    COMMAND_NOT_SUPPORTED = 7
    ADDRESS_TYPE_NOT_SUPPORTED = 8


class SocksError(Exception):
    """The client asked for something that is not done; `answer` is the last thing to send."""

    def __init__(self, message: str, answer: bytes) -> None:
        super().__init__(message)
        self.answer = answer


def reply(code: Reply) -> bytes:
    """The answer to a request; the bound address is not told."""
    return bytes((VERSION, code, 0, _IPV4, 0, 0, 0, 0, 0, 0))


class Handshake:
    """What a client says until it is connected.

    Attributes:
        target: Where it wants to go, once that is known.
    """

    def __init__(self) -> None:
        self.target: Target | None = None
        self._buffer = bytearray()
        self._greeted = False

    @property
    def rest(self) -> bytes:
        """What came after the request: for the target."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """Take what arrived; return what to send. After `target` is set nothing more is to be fed.

        Raises:
            SocksError: Send its answer and close.
        """
        self._buffer += data
        answer = b""
        if not self._greeted:
            answer = self._greeting()
        if self._greeted:
            try:
                self._request()
            except SocksError as problem:
                problem.answer = answer + problem.answer
                raise
        return answer

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _greeting(self) -> bytes:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise SocksError("not SOCKS 5", b"")
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return b""
        methods = self._take(2 + buffer[1])[2:]
        if _NO_AUTHENTICATION not in methods:
            raise SocksError("no authentication is needed here, and none is taken", _NO_ACCEPTABLE_METHOD)
        self._greeted = True
        return bytes((VERSION, _NO_AUTHENTICATION))

    def _request(self) -> None:
        buffer = self._buffer
        if buffer and buffer[0] != VERSION:
            raise SocksError("not SOCKS 5", b"")
        if len(buffer) < 5:
            return
        command, kind = buffer[1], buffer[3]
        if command != _CONNECT:
            raise SocksError("only CONNECT is done here", reply(Reply.COMMAND_NOT_SUPPORTED))
        if kind != _NAME and kind not in _LENGTHS:
            raise SocksError("an unknown type of address", reply(Reply.ADDRESS_TYPE_NOT_SUPPORTED))
        start = 5 if kind == _NAME else 4
        length = buffer[4] if kind == _NAME else _LENGTHS[kind]
        if len(buffer) < start + length + 2:
            return
        request = self._take(start + length + 2)
        self.target = _target(kind, request[start:-2], int.from_bytes(request[-2:], "big"))


def _target(kind: int, host: bytes, port: int) -> Target:
    try:
        return Target.make(host.decode("ascii") if kind == _NAME else str(ipaddress.ip_address(host)), port)
    except (TargetError, UnicodeDecodeError) as problem:
        raise SocksError(f"not a target: {problem}", reply(Reply.GENERAL_FAILURE)) from None
