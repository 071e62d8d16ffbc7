"""The HTTP client below everything, where a scripted peer does not get to."""

from __future__ import annotations

import socket

import anyio

from cwsandbox._client.address import Address, AddressKind
from cwsandbox._client.auth import NOBODY, Credentials
from cwsandbox._client.transport import open_transport


async def test_a_connect_that_is_cancelled_is_cancelled_and_nothing_else() -> None:
    """trio connects in a nursery, which wraps the cancellation in a group: `except` clauses would not know it."""
    seen: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as first:
        first.connect(listener.getsockname())  # There is no room for another one: it waits.
        address = Address(AddressKind.HTTP, url="http://{}:{}".format(*listener.getsockname()))

        async def connect() -> None:
            try:
                await transport.request("GET", "/v1/gateway")
            except BaseException as error:
                seen.append(error)
                raise

        async with (
            open_transport(address, socket_path=None, credentials=Credentials(NOBODY)) as transport,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(connect)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert [type(error) for error in seen] == [anyio.get_cancelled_exc_class()]
