"""From a target to a connection: resolve on this machine, judge every address, connect to one that passed."""

from __future__ import annotations

import enum
import errno
import socket
from typing import TYPE_CHECKING, Any, Final

import anyio

from cwsandbox.gateway.egress.policy import Policy, RefusedError
from cwsandbox.runners.sockets import SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from cwsandbox.gateway.egress.target import Target

    Resolve = Callable[[str, int], Awaitable[Sequence[tuple[Any, ...]]]]

_RESOLVE_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 10.0
_LOOKUPS: Final = 4
"""A sandbox's at the same time: they take threads that all sandboxes share (`embedded.run` has how many)."""
_ADDRESSES: Final = 8
"""Of a name, that are tried."""


class Failure(enum.Enum):
    """Why there is no connection."""

    NOT_ALLOWED = enum.auto()
    NO_SUCH_HOST = enum.auto()
    REFUSED = enum.auto()
    UNREACHABLE = enum.auto()
    TIMED_OUT = enum.auto()


class DialError(Exception):
    """There is no connection; the message is fit for the sandbox: it tells no address that it did not ask for."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


async def resolve(host: str, port: int) -> Sequence[tuple[Any, ...]]:
    """The addresses of a name, as this machine sees it."""
    return await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Dialer:
    """Makes the connections of one sandbox."""

    def __init__(self, policy: Policy, resolve: Resolve = resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._lookups = anyio.Semaphore(_LOOKUPS)

    async def dial(self, target: Target) -> SocketStream:
        """Connect.

        Raises:
            DialError: The policy refuses, or nobody answers.
        """
        last = DialError(Failure.UNREACHABLE, f"{target} cannot be reached")
        for address in self._allowed(target, await self._addresses(target)):
            try:
                with anyio.fail_after(_CONNECT_SECONDS):
                    return await SocketStream.connect(address, target.port)
            except TimeoutError:
                last = DialError(Failure.TIMED_OUT, f"{target} does not answer")
            except ConnectionRefusedError:
                last = DialError(Failure.REFUSED, f"{target} refused the connection")
            except OSError as problem:
                why = problem.strerror if problem.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH} else "failed"
                last = DialError(Failure.UNREACHABLE, f"{target} cannot be reached: {why}")
        raise last

    async def _addresses(self, target: Target) -> list[str]:
        try:
            with anyio.fail_after(_RESOLVE_SECONDS):
                async with self._lookups:
                    found = await self._resolve(target.host, target.port)
        except TimeoutError:
            raise DialError(Failure.TIMED_OUT, f"looking up {target.host} took too long") from None
        except (OSError, UnicodeError):
            raise DialError(Failure.NO_SUCH_HOST, f"there is no host {target.host}") from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def _allowed(self, target: Target, addresses: Sequence[str]) -> list[str]:
        allowed, reasons = [], []
        for address in addresses:
            try:
                allowed.append(self._policy.check(address, target.port))
            except RefusedError as problem:
                reasons.append(str(problem))
        if not allowed:
            reason = f"that is {reasons[0]}" if reasons else "it has no addresses"
            raise DialError(Failure.NOT_ALLOWED, f"egress to {target} is refused: {reason}")
        return allowed[:_ADDRESSES]
