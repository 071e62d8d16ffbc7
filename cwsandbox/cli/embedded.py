"""The embedded gateway as it is: asked and ended, never started."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cwsandbox._client.http import Api
    from cwsandbox._client.transport import Transport
    from cwsandbox.wire.resources import GatewayInfo

_ANSWER_SECONDS: Final = 10.0


def embedded_is_absent() -> bool:
    """True if the embedded gateway is the one in use and does not run; quick, and sure only in that answer."""
    from cwsandbox._client.address import AddressKind, resolve_address
    from cwsandbox._client.folders import prepare_folders

    return resolve_address().kind is AddressKind.EMBEDDED and not os.path.exists(prepare_folders().socket)


@asynccontextmanager
async def open_unstarted() -> AsyncIterator[GatewayAsItIs]:
    """The gateway in use, which is not started by this.

    Raises:
        CWSandboxError: There is no address, or no credentials for it.
    """
    from cwsandbox._client.address import AddressKind, resolve_address
    from cwsandbox._client.auth import Credentials
    from cwsandbox._client.folders import prepare_folders
    from cwsandbox._client.gateway import find_account
    from cwsandbox._client.http import Api
    from cwsandbox._client.transport import open_transport

    address = resolve_address()
    folders = prepare_folders() if address.kind is AddressKind.EMBEDDED else None
    account = await find_account(address, None)
    path = address.path if folders is None else folders.socket
    async with open_transport(address, socket_path=path, credentials=Credentials(account)) as transport:
        yield GatewayAsItIs(
            str(address), path, folders.log if folders is not None else None, transport, Api(address, transport)
        )


@frozen
class GatewayAsItIs:
    """A gateway that may or may not be there.

    Attributes:
        address: What messages call it.
        socket: The path of its socket, if it has one.
        log: Where it logs, if it is the embedded one.
        api: Its calls; for when it is there.
    """

    address: str
    socket: str | None
    log: str | None
    _transport: Transport = field(repr=False)
    api: Api = field(repr=False)

    async def info(self) -> GatewayInfo | None:
        """What it says of itself; None if nobody is there.

        Raises:
            CWSandboxError: It does not say, or not in time.
        """
        import anyio

        from cwsandbox._client.errors import TransportError, bad_answer, unreachable
        from cwsandbox._client.http import read_gateway_info, refusal
        from cwsandbox.exceptions import SandboxUnavailableError

        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                reply = await self._transport.request("GET", "/v1/gateway")
        except TransportError as error:
            if error.absent:
                return None
            raise unreachable(self.address, error) from error
        except TimeoutError as error:
            raise SandboxUnavailableError(f"{self.address} gives no answer within {_ANSWER_SECONDS:g} s") from error
        if reply.status != 200:
            raise refusal(reply)
        try:
            return read_gateway_info(reply.content)
        except ValueError as error:
            raise bad_answer(self.address, error) from error
