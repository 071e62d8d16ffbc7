"""The gateway as an ASGI application: routes, query parameters, bodies, and errors as `google.rpc.Status` JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
from attrs import field, frozen
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cwsandbox._version import __version__
from cwsandbox.gateway import discovery, records
from cwsandbox.gateway.connection import Connection
from cwsandbox.gateway.errors import StatusError, error, invalid
from cwsandbox.gateway.params import Query
from cwsandbox.gateway.registry import PeerProcess
from cwsandbox.wire import codec, openapi
from cwsandbox.wire.errors import Code, ProtocolError, Reason, Status, WireError
from cwsandbox.wire.frames import PROTOCOL_VERSION
from cwsandbox.wire.resources import GatewayInfo, ListSandboxesResponse, Message, Sandbox, StopSandboxRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from cwsandbox.gateway.auth import Authenticator, Peer
    from cwsandbox.gateway.service import Service

    Handler = Callable[["Gateway", str, Request], Awaitable[Any]]

_log = logging.getLogger(__name__)

# File mounts travel in the body of a create, in base64.
BODY_BYTES: Final = 64 * 1024 * 1024
# A long poll is asked for again by clients that want to wait longer.
LONG_POLL_SECONDS: Final = 600.0


@frozen
class Gateway:
    """What the routes work on.

    Attributes:
        service: The sandboxes.
        authenticator: Says who is calling.
        shut_down: Ends the gateway; None where callers may not do that (on a port).
        instance_id: New for every start of a gateway.
        started_at: On the monotonic clock.
    """

    service: Service
    authenticator: Authenticator
    shut_down: Callable[[], None] | None = None
    instance_id: str = field(factory=lambda: secrets.token_hex(8))
    started_at: float = field(factory=time.monotonic)

    def principal(self, scope: Scope) -> str:
        """Return who is calling.

        Raises:
            StatusError: UNAUTHENTICATED.
        """
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        authorization = headers[0].decode("latin-1") if len(headers) == 1 else ""
        return self.authenticator.principal(_peer(scope), authorization)

    def still_admits(self, scope: Scope, principal: str) -> bool:
        """Whether who was let in as `principal` still would be."""
        try:
            return self.principal(scope) == principal
        except StatusError:
            return False


def make_app(gateway: Gateway) -> ASGIApp:
    """Return the ASGI application. It has no lifespan: the service is open already."""
    route = functools.partial(_route, gateway)
    resources = Starlette(
        routes=[
            route("POST", "/v1/sandboxes", _create),
            route("GET", "/v1/sandboxes", _list),
            route("POST", "/v1/sandboxes/{sandbox_id}:stop", _stop),
            route("GET", "/v1/sandboxes/{sandbox_id}", _get),
            route("DELETE", "/v1/sandboxes/{sandbox_id}", _delete),
            route("GET", "/v1/availableRunners", _list_runners),
            route("GET", "/v1/organizations/{organization_id}/availableRunners/{runner_id}", _get_runner),
            route("GET", "/v1/profiles", _list_profiles),
            route("GET", "/v1/profiles/{profile_name}", _get_profile),
            route("GET", "/v1/gateway", _info),
            route("POST", "/v1/gateway:shutdown", _shut_down),
            route("GET", "/openapi.json", _openapi),
        ],
        exception_handlers={404: _no_such_route, 405: _no_such_route},
    )
    resources.router.redirect_slashes = False  # To wherever the request says that this is.

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # Past the framework: every message of every command goes this way.
            await _serve_channel(gateway, scope, receive, send)
        else:
            await resources(scope, receive, send)

    return app


def _route(gateway: Gateway, method: str, path: str, handler: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            principal = gateway.principal(request.scope)
            return _json(await handler(gateway, principal, request))
        except StatusError as refusal:
            return _refusal(refusal.status)
        except WireError as problem:
            return _refusal(problem.to_status())
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:
            _log.exception("%s %s failed", method, path)
            return _refusal(Status.make(Code.INTERNAL, "the gateway failed; its log says more"))

    return Route(path, endpoint, methods=[method])


async def _create(gateway: Gateway, principal: str, request: Request) -> Sandbox:
    query = Query(request.query_params, "requestId")
    body = codec.load(Sandbox, await _body(request))
    if body.spec is None:
        raise invalid("spec is required")
    sandbox = await gateway.service.create(principal, body.spec, query.text("requestId"))
    return records.to_resource(sandbox.record)


async def _list(gateway: Gateway, principal: str, request: Request) -> ListSandboxesResponse:
    wanted = records.ListFilter.from_query(
        Query(
            request.query_params, "tags", "state", "showTerminated", "runnerIds", "profileIds", "pageSize", "pageToken"
        )
    )
    page, token = gateway.service.list(principal, wanted)
    return ListSandboxesResponse(
        sandboxes=tuple(records.to_resource(sandbox.record) for sandbox in page), next_page_token=token
    )


async def _get(gateway: Gateway, principal: str, request: Request) -> Sandbox:
    query = Query(request.query_params, "waitFor", "timeoutSeconds")
    sandbox_id = request.path_params["sandbox_id"]
    target = query.text("waitFor")
    timeout = query.number("timeoutSeconds", default=30.0, most=LONG_POLL_SECONDS)
    sandbox = gateway.service.get(principal, sandbox_id)
    if not target:
        sandbox.touch()
    elif not gateway.service.has_reached(sandbox, target) and timeout > 0:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_disconnect, request, tasks.cancel_scope)
            await gateway.service.wait_for(principal, sandbox_id, target, timeout)
            tasks.cancel_scope.cancel()
    return records.to_resource(sandbox.record)


async def _stop(gateway: Gateway, principal: str, request: Request) -> Sandbox:
    Query(request.query_params)
    options = codec.load(StopSandboxRequest, await _body(request) or b"{}")
    if options.snapshot_on_stop:
        raise error(
            Code.UNIMPLEMENTED, "this gateway's runner cannot take file system snapshots", Reason.NOT_IMPLEMENTED
        )
    sandbox = gateway.service.stop(principal, request.path_params["sandbox_id"], options.grace_period_seconds)
    answer = records.to_resource(sandbox.record)
    await gateway.service.kept()
    return answer


async def _delete(gateway: Gateway, principal: str, request: Request) -> Sandbox | dict[str, Any]:
    query = Query(request.query_params, "allowMissing")
    try:
        sandbox = await gateway.service.delete(principal, request.path_params["sandbox_id"])
    except StatusError as refusal:
        if refusal.status.code is Code.NOT_FOUND and query.flag("allowMissing"):
            return {}
        raise
    await gateway.service.kept()
    return records.to_resource(sandbox.record)


async def _list_runners(gateway: Gateway, principal: str, request: Request) -> Message:
    filters = ("runnerGroupId", "profileName", "gpuType", "architecture", "healthyOnly")
    query = Query(request.query_params, *filters, "view", "pageSize", "pageToken")
    return discovery.list_runners(gateway.service, query)


async def _get_runner(gateway: Gateway, principal: str, request: Request) -> Message:
    path = request.path_params
    query = Query(request.query_params, "view")
    return discovery.get_runner(gateway.service, path["organization_id"], path["runner_id"], query)


async def _list_profiles(gateway: Gateway, principal: str, request: Request) -> Message:
    query = Query(request.query_params, "gpuType", "architecture", "runnerId", "pageSize", "pageToken")
    return discovery.list_profiles(gateway.service, query)


async def _get_profile(gateway: Gateway, principal: str, request: Request) -> Message:
    query = Query(request.query_params, "runnerId")
    return discovery.get_profile(gateway.service, request.path_params["profile_name"], query)


async def _info(gateway: Gateway, principal: str, request: Request) -> GatewayInfo:
    Query(request.query_params)
    return GatewayInfo(
        version=__version__,
        protocol=PROTOCOL_VERSION,
        pid=os.getpid(),
        instance_id=gateway.instance_id,
        uptime_seconds=round(time.monotonic() - gateway.started_at, 3),
        sandboxes=sum(
            sandbox.record.principal == principal and not sandbox.terminal for sandbox in gateway.service.sandboxes()
        ),
    )


async def _shut_down(gateway: Gateway, principal: str, request: Request) -> dict[str, Any]:
    Query(request.query_params)
    if gateway.shut_down is None:
        raise error(Code.PERMISSION_DENIED, "only an embedded gateway is shut down by its clients")
    gateway.shut_down()
    return {}


async def _openapi(gateway: Gateway, principal: str, request: Request) -> dict[str, Any]:
    return openapi.document()


async def _body(request: Request) -> bytes:
    """Read a body of bounded size."""
    parts: list[bytes] = []
    size = 0
    async with contextlib.aclosing(request.stream()) as stream:
        async for part in stream:
            size += len(part)
            if size > BODY_BYTES:
                raise error(Code.RESOURCE_EXHAUSTED, f"the body is larger than {BODY_BYTES} bytes")
            parts.append(part)
    return b"".join(parts)


async def _cancel_on_disconnect(request: Request, scope: anyio.CancelScope) -> None:
    """A long poll that nobody waits for any more holds nothing."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _json(answer: Any) -> Response:
    return Response(codec.dump(answer), media_type="application/json")


def _refusal(status: Status) -> Response:
    headers = {"retry-after": status.retry_after} if status.retry_after is not None else {}
    if status.code is Code.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return Response(
        json.dumps(status.to_json()), status.code.http_status, headers=headers, media_type="application/json"
    )


async def _no_such_route(request: Request, problem: Exception) -> Response:
    return _refusal(Status.make(Code.UNIMPLEMENTED, f"there is no {request.method} {request.scope['path']} here"))


def _peer(scope: Scope) -> Peer | None:
    peer: Peer | None = scope.get("state", {}).get("peer")
    return peer


class _WebSocketTransport:
    """Messages over an accepted ASGI WebSocket."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._over = False

    async def receive(self) -> bytes | None:
        message = await self._receive()
        if message["type"] != "websocket.receive":
            self._over = True
            return None
        data: bytes | None = message.get("bytes")
        if data is None:
            raise ProtocolError("the channel carries binary messages only")
        return data

    async def close(self) -> None:
        if not self._over:
            with contextlib.suppress(OSError):  # The client may be first.
                await self._send({"type": "websocket.close", "code": 1000})

    async def send(self, message: bytes) -> None:
        await self._send({"type": "websocket.send", "bytes": message})


async def _serve_channel(gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
    """`/v1/channel`: the exec channel."""
    await receive()  # websocket.connect
    if scope["path"] != "/v1/channel":
        await _deny(scope, send, Status.make(Code.UNIMPLEMENTED, f"there is no {scope['path']} here"))
        return
    try:
        principal = gateway.principal(scope)
    except StatusError as refusal:
        await _deny(scope, send, refusal.status)
        return
    await send({"type": "websocket.accept"})
    peer = _peer(scope)
    process = PeerProcess(peer.pid if peer is not None else 0)
    transport = _WebSocketTransport(receive, send)
    admitted = functools.partial(gateway.still_admits, scope, principal)
    await Connection(gateway.service, principal, transport, process, admitted).run()
    await transport.close()


async def _deny(scope: Scope, send: Send, status: Status) -> None:
    """Refuse the handshake, with the status in the body where the server can carry one."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    body = json.dumps(status.to_json()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "websocket.http.response.start", "status": status.code.http_status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
