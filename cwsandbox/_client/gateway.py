"""A client of one gateway on one event loop: found, checked, and ready for calls and streams."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import anyio
import anyio.to_thread
from attrs import field, frozen

from cwsandbox._client import embedded
from cwsandbox._client.address import Address, AddressKind
from cwsandbox._client.auth import NOBODY, Account, Credentials
from cwsandbox._client.channel import Connection, ExecChannel, Timing, open_channel
from cwsandbox._client.errors import TransportError, bad_answer, unreachable
from cwsandbox._client.folders import Folders, prepare_folders
from cwsandbox._client.http import Api, Reply, read_gateway_info, refusal
from cwsandbox._runtime.portal import exiting
from cwsandbox._version import __version__
from cwsandbox.exceptions import CWSandboxError, SandboxNotFoundError, SandboxUnavailableError
from cwsandbox.wire.frames import PROTOCOL_VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable

    from cwsandbox._client.auth import Auth
    from cwsandbox._client.transport import Transport
    from cwsandbox._runtime.scope import Scope
    from cwsandbox.wire.resources import GatewayInfo

_logger = logging.getLogger("cwsandbox")
_GREETING = "/v1/gateway"
_GREETING_SECONDS = 10.0
_SPARE_CLIENTS = 8
_PASSING = frozenset({408, 429, 502, 503, 504})  # What may be better next time.
_told: set[str] = set()


@frozen
class GatewayClient:
    """What one scope uses of one gateway.

    Attributes:
        address: Where it is.
        api: The resource calls.
        channel: The streams; connects at the first `open`.
        users: Who may use it again; held weakly.
    """

    address: Address
    api: Api
    channel: ExecChannel
    users: WeakSet[object] = field(factory=WeakSet, eq=False, repr=False)


@frozen
class _ClientKey:
    """What shares a client. Keys name tasks and stand in logs, so they say nothing about the account."""

    address: Address
    account: Hashable = field(repr=False)

    def __str__(self) -> str:
        return str(self.address)


async def connect(scope: Scope, address: Address, account: Account, user: object) -> GatewayClient:
    """The scope's client for an address and an account; opened on first use. On the scope's loop.

    It stays open as long as `user` lives, and some longer: a process whose tokens are new each time would otherwise
    collect a connection for each.

    Raises:
        CWSandboxError: As `open_gateway`.
    """
    key = _ClientKey(address, account.key)
    client = await scope.connection(key, lambda: open_gateway(address, account=account))
    client.users.add(user)
    scope.close_spare_connections(_is_spare, _SPARE_CLIENTS)
    return client


def _is_spare(connection: object) -> bool:
    return isinstance(connection, GatewayClient) and not connection.users


async def find_account(address: Address, auth: Auth | None) -> Account:
    """Who to be at a gateway: the caller's choice, or who the process is; nobody at the embedded one.

    Raises:
        Exception: As `Account.find`.
    """
    return NOBODY if address.kind is AddressKind.EMBEDDED else await Account.find(auth)


@asynccontextmanager
async def open_gateway(
    address: Address, *, account: Account = NOBODY, timing: Timing | None = None
) -> AsyncIterator[GatewayClient]:
    """Open a client; leaving says goodbye to the gateway, which kills the commands that still run for this client.

    Finds or starts the embedded gateway if that is the address.

    Args:
        address: From `resolve_address`.
        account: Who to be; default is nobody, which is right for the embedded gateway.
        timing: How patient the channel is.

    Raises:
        SandboxUnavailableError: The embedded gateway could not be started; the message holds the end of its log.
        CWSandboxError: The embedded gateway's folders are not private.
    """
    is_embedded = address.kind is AddressKind.EMBEDDED
    folders = await anyio.to_thread.run_sync(prepare_folders) if is_embedded else None
    if account.headers and address.is_plaintext:
        _warn_of_plaintext(address)
    transports = await anyio.to_thread.run_sync(_load_transport)
    path = folders.socket if folders is not None else address.path
    async with transports.open_transport(address, socket_path=path, credentials=Credentials(account)) as transport:
        timing = timing or Timing()
        finder = _Finder(address, transport, folders, timing)
        if is_embedded:
            await finder.ensure()
        async with open_channel(address, finder.connect, timing) as channel:
            yield GatewayClient(address, Api(address, transport, finder.ensure if is_embedded else None), channel)


def _warn_of_plaintext(address: Address) -> None:
    if str(address) not in _told:
        _told.add(str(address))
        _logger.warning("the credentials for %s travel unencrypted: use https://, or keep to this machine", address)


def _load_transport() -> Any:
    """Import httpx and httpx-ws: a tenth of a second of work that no event loop should wait for."""
    return importlib.import_module("cwsandbox._client.transport")


class _Finder:
    """Makes sure that the gateway is there and is one that we understand."""

    def __init__(self, address: Address, transport: Transport, folders: Folders | None, timing: Timing) -> None:
        self._address = address
        self._timing = timing
        self._transport = transport
        self._folders = folders

    async def ensure(self) -> None:
        """Find the embedded gateway or start it.

        Raises:
            SandboxNotFoundError: It has ended, its sandboxes with it, and a program that ends needs no other one.
            CWSandboxError: It is not there and cannot be started, or is not one that we understand.
        """
        assert self._folders is not None
        if await self._answers():
            return
        if exiting() and self._ended_in_order():
            raise SandboxNotFoundError(f"{self._address} has ended, and its sandboxes with it")
        async with embedded.start_lock(self._folders) as lock:
            if await self._answers():
                return
            tell_once(await embedded.start(self._folders, lock))
        if not await self._answers():
            raise SandboxUnavailableError(f"{self._address} ended right after its start; see {self._folders.log}")

    def _ended_in_order(self) -> bool:
        """Whether there are no sandboxes: a gateway that crashes leaves its socket, and boxes for its successor."""
        assert self._folders is not None
        return not os.path.lexists(self._folders.socket)

    async def _answers(self) -> bool:
        try:
            with anyio.fail_after(_GREETING_SECONDS):
                reply = await self._transport.request("GET", _GREETING)
        except TransportError as error:
            if error.absent or error.sent:
                return False  # Nobody is there, or somebody was just leaving.
            raise unreachable(self._address, error) from error
        except TimeoutError as error:
            raise SandboxUnavailableError(f"{self._address} gives no answer within {_GREETING_SECONDS:g} s") from error
        if reply.status in _PASSING:
            return False  # It is about to end.
        self._understand(reply)
        return True

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """Connect the exec channel.

        Raises:
            TransportError: It may work next time.
            CWSandboxError: It will not.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(self._connect())
            except TransportError as error:
                if self._folders is None or not error.absent:
                    raise
                await self.ensure()
                connection = await stack.enter_async_context(self._connect())
            yield connection

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[Connection]:
        from cwsandbox._client.transport import UpgradeRefusedError

        try:
            with anyio.move_on_after(self._timing.connect) as limit:
                async with self._transport.websocket("/v1/channel", greeting=_GREETING) as (reply, socket):
                    info = self._understand(reply)
                    limit.deadline = math.inf
                    yield Connection(socket, info.instance_id)
                    return
        except UpgradeRefusedError as error:
            problem = refusal(error.reply)
            if error.reply.status in _PASSING:
                raise TransportError(str(problem), sent=False) from problem
            raise problem from error
        raise TransportError(f"no connection within {self._timing.connect:g} s", sent=False)

    def _understand(self, reply: Reply) -> GatewayInfo:
        if reply.status != 200:
            raise refusal(reply)
        try:
            info = read_gateway_info(reply.content)
        except ValueError as error:
            raise bad_answer(self._address, error) from error
        if info.protocol != PROTOCOL_VERSION:
            raise CWSandboxError(
                f"{self._address} speaks version {info.protocol} of the exec channel (cwsandbox {info.version}), and "
                f"this cwsandbox {__version__} speaks {PROTOCOL_VERSION}; use the same version on both sides"
            )
        tell_once(json.loads(reply.content).get("notice"))
        return info


def tell_once(notice: object) -> None:
    """Say something once in this process, where the user of a script sees it: the isolation is weaker than usual."""
    if not isinstance(notice, str) or not notice or notice in _told:
        return
    _told.add(notice)
    _logger.info("%s", notice)
    with contextlib.suppress(OSError, ValueError):
        print(f"cwsandbox: {notice}", file=sys.stderr)  # noqa: T201 - a plain line for a person
