"""A client of one gateway on one event loop: the calls and the exec channel, found and opened on first use."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from attrs import frozen

from cwsandbox._client.address import Address
from cwsandbox._client.auth import AuthHeaders
from cwsandbox._client.channel import ExecChannel
from cwsandbox._client.http import Api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@frozen
class GatewayClient:
    """What one scope uses of one gateway.

    Attributes:
        address: Where it is.
        api: The resource calls.
        channel: The streams; connects at the first `open`.
    """

    address: Address
    api: Api
    channel: ExecChannel


@asynccontextmanager
async def open_gateway(address: Address, *, auth: AuthHeaders | None = None) -> AsyncIterator[GatewayClient]:
    """Open a client; leaving says goodbye to the gateway, which kills the commands that still run for this client.

    Finds or starts the embedded gateway if that is the address. Fits `Scope.connection(address, lambda: open_gateway(address))`.

    Args:
        address: From `resolve_address`.
        auth: The credentials; default: `resolve_auth()`. The embedded gateway is given none.

    Raises:
        CWSandboxAuthenticationError: The credentials are incomplete.
        SandboxUnavailableError: The embedded gateway could not be started; the message holds the end of its log.
    """
    raise NotImplementedError
    yield
