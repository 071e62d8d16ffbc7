"""The resource calls: one deadline per call, retries inside it, answers as models, errors as the package's own.

What is retried: calls that changed nothing or may be repeated, after a failed connection or an answer that says when to
come back. That is all of them: a create is repeated with its request id, stop and delete are done once however often
they are asked.
"""

from __future__ import annotations

import enum
import functools
import json
import random
import re
from typing import TYPE_CHECKING, Protocol

import anyio
import attrs
from attrs import frozen

from cwsandbox._client.errors import TransportError, bad_answer, request_timed_out, status_error, unreachable
from cwsandbox._client.paging import read_pages
from cwsandbox.exceptions import SandboxNotFoundError
from cwsandbox.wire import codec
from cwsandbox.wire.errors import Status, WireError
from cwsandbox.wire.resources import GatewayInfo, ListSandboxesResponse, Sandbox, StopSandboxRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeVar

    from cwsandbox._client.paging import Params
    from cwsandbox.exceptions import CWSandboxError
    from cwsandbox.wire.resources import State

    T = TypeVar("T")
    Sandboxes = list[Sandbox]  # Api.list hides the builtin.

_ATTEMPTS = 6
_SANDBOX_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 2.0
_REQUESTS = 64
_WAITS = 256
_UNAVAILABLE = 503
_SANDBOX = functools.partial(codec.load, Sandbox)
_PAGE = functools.partial(codec.load, ListSandboxesResponse)
_INFO_NAMES = frozenset(codec.json_name(attribute.name) for attribute in attrs.fields(GatewayInfo))


class Reply(Protocol):
    """One HTTP answer, read to its end."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def content(self) -> bytes:
        """The body."""


class Requester(Protocol):
    """What sends a request; `transport.Transport` does."""

    async def request(
        self, method: str, path: str, *, params: Sequence[tuple[str, str]] = (), content: bytes | None = None
    ) -> Reply:
        """Send one request and read the whole answer.

        Raises:
            TransportError: There was no answer.
        """


class WaitFor(enum.StrEnum):
    """What a `get` may wait for."""

    RUNNING = "running"
    TERMINAL = "terminal"


@frozen
class _Call:
    """One call, as often as it is tried.

    Attributes:
        what: Its name in messages.
        method: The HTTP method.
        path: The path, quoted.
        params: The query.
        content: The body.
        sandbox_id: The sandbox it is about, for its errors.
        again: Parameters to add once an earlier try may have been carried out.
        translate: Makes the exception for a refusal; None is that for sandboxes.
    """

    what: str
    method: str
    path: str
    params: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    sandbox_id: str | None = None
    again: tuple[tuple[str, str], ...] = ()
    translate: Callable[[Status], CWSandboxError] | None = None


class Api:
    """The calls to one gateway, for one event loop.

    `timeout` is the total for a call in seconds, retries included; when it is over, `SandboxRequestTimeoutError` is
    raised. Cancelling a call drops its connection; what it asked for may have been done.

    Args:
        where: What messages call the gateway.
        requester: Sends the requests.
        revive: Called when nobody answers at all; starts an embedded gateway again.
    """

    def __init__(
        self, where: object, requester: Requester, revive: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self._where = where
        self._requester = requester
        self._revive = revive
        # httpx's own pool has no limit: its slots leak when requests are cancelled.
        self._requests = anyio.Semaphore(_REQUESTS, fast_acquire=True)
        self._waits = anyio.Semaphore(_WAITS, fast_acquire=True)

    async def create(self, sandbox: Sandbox, *, request_id: str, timeout: float) -> Sandbox:
        """Create a sandbox: one, however often the request has to be repeated.

        Args:
            sandbox: Its specification.
            request_id: A name that nobody used before.
            timeout: See the class.

        Returns:
            The record, PENDING or CREATING.

        Raises:
            SandboxError: The gateway refuses, does not answer in time, or is out of reach.
            CWSandboxAuthenticationError: The credentials are not accepted. This holds for all calls.
        """
        content = codec.dump(sandbox)
        call = _Call("create", "POST", "/v1/sandboxes", (("requestId", request_id),), content)
        return await self._perform(call, timeout, _SANDBOX)

    async def get(
        self, sandbox_id: str, *, wait_for: WaitFor | None = None, wait_seconds: float = 0.0, timeout: float
    ) -> Sandbox:
        """Read one record.

        Args:
            sandbox_id: Which.
            wait_for: Answer when this is reached (or cannot be any more) or after `wait_seconds`, whichever is first.
            wait_seconds: How long to wait; comes on top of `timeout`.
            timeout: See the class.

        Raises:
            SandboxNotFoundError: There is none.
            SandboxError: As in `create`.
        """
        path = _sandbox_path(sandbox_id)
        if wait_for is None:
            return await self._perform(_Call("get", "GET", path, sandbox_id=sandbox_id), timeout, _SANDBOX)
        params = (("waitFor", wait_for.value), ("timeoutSeconds", f"{wait_seconds:.3f}"))
        call = _Call("get", "GET", path, params, sandbox_id=sandbox_id)
        return await self._perform(call, timeout + wait_seconds, _SANDBOX, slots=self._waits)

    async def list(
        self,
        *,
        tags: Sequence[str] = (),
        state: State | None = None,
        show_terminated: bool = False,
        runner_ids: Sequence[str] = (),
        profile_ids: Sequence[str] = (),
        timeout: float,
    ) -> Sandboxes:
        """Read all records that match, page by page.

        Args:
            tags: All of these.
            state: In this state; a terminal one finds ended sandboxes too.
            show_terminated: Ended ones too.
            runner_ids: On one of these.
            profile_ids: With one of these.
            timeout: For all pages together.

        Raises:
            SandboxError: As in `create`.
        """
        params = [*(("tags", tag) for tag in tags), *(("runnerIds", i) for i in runner_ids)]
        params += [("profileIds", i) for i in profile_ids]
        if state is not None:
            params.append(("state", state.value))
        if show_terminated:
            params.append(("showTerminated", "true"))
        ends = anyio.current_time() + timeout

        async def fetch(token: Params) -> tuple[Sequence[Sandbox], str]:
            call = _Call("list", "GET", "/v1/sandboxes", (*params, *token))
            page = await self._perform(call, max(0.0, ends - anyio.current_time()), _PAGE)
            return page.sandboxes, page.next_page_token

        return await read_pages(fetch)

    async def stop(
        self, sandbox_id: str, *, grace_period_seconds: float, snapshot_on_stop: bool = False, timeout: float
    ) -> Sandbox:
        """Ask for a graceful stop; answers when it is accepted.

        Args:
            sandbox_id: Which.
            grace_period_seconds: How long its main command may take to end by itself.
            snapshot_on_stop: Passed on.
            timeout: See the class.

        Raises:
            SandboxNotFoundError: There is none.
            SandboxError: As in `create`.
        """
        body = StopSandboxRequest(grace_period_seconds=grace_period_seconds, snapshot_on_stop=snapshot_on_stop)
        path = _sandbox_path(sandbox_id) + ":stop"
        call = _Call("stop", "POST", path, content=codec.dump(body), sandbox_id=sandbox_id)
        return await self._perform(call, timeout, _SANDBOX)

    async def delete(self, sandbox_id: str, *, allow_missing: bool = False, timeout: float) -> Sandbox | None:
        """Kill a sandbox at once and forget it.

        Args:
            sandbox_id: Which.
            allow_missing: Do not mind if there is none.
            timeout: See the class.

        Returns:
            Its last record; None if it was gone already.

        Raises:
            SandboxNotFoundError: There is none, and `allow_missing` was not given.
            SandboxError: As in `create`.
        """
        forgiving = (("allowMissing", "true"),)
        try:
            path = _sandbox_path(sandbox_id)
        except SandboxNotFoundError:
            if allow_missing:
                return None
            raise
        call = _Call(
            "delete",
            "DELETE",
            path,
            forgiving if allow_missing else (),
            sandbox_id=sandbox_id,
            again=() if allow_missing else forgiving,
        )
        record = await self._perform(call, timeout, _SANDBOX)
        return record if record.sandbox_id else None

    async def read(
        self,
        what: str,
        path: str,
        params: Params,
        decode: Callable[[bytes], T],
        *,
        translate: Callable[[Status], CWSandboxError],
        timeout: float,
    ) -> T:
        """Read what is no sandbox.

        Args:
            what: Its name in messages.
            path: The path, quoted.
            params: The query.
            decode: Makes a model of the body.
            translate: Makes the exception for a refusal.
            timeout: See the class.

        Raises:
            CWSandboxError: What `translate` made.
            SandboxError: As in `create`: no answer, none in time, or one that makes no sense.
        """
        return await self._perform(_Call(what, "GET", path, tuple(params), translate=translate), timeout, decode)

    async def gateway_info(self, *, timeout: float) -> GatewayInfo:
        """Ask the gateway about itself.

        Raises:
            SandboxError: As in `create`.
        """
        return await self._perform(_Call("info", "GET", "/v1/gateway"), timeout, read_gateway_info)

    async def shutdown(self, *, timeout: float) -> None:
        """End an embedded gateway and all its sandboxes. One that is not there is not started.

        Raises:
            SandboxError: As in `create`; a gateway on a port refuses.
        """
        call = _Call("shutdown", "POST", "/v1/gateway:shutdown", content=b"{}")
        await self._perform(call, timeout, lambda _: None, revive=False)

    async def _perform(
        self,
        call: _Call,
        timeout: float,
        decode: Callable[[bytes], T],
        *,
        slots: anyio.Semaphore | None = None,
        revive: bool = True,
    ) -> T:
        failure: CWSandboxError | None = None
        unsure: TransportError | None = None
        params = call.params
        with anyio.move_on_after(timeout) as limit:
            for attempt in range(_ATTEMPTS):
                if failure is not None:
                    delay = self._delay(attempt, failure)
                    if anyio.current_time() + delay >= limit.deadline:
                        break
                    await anyio.sleep(delay)
                try:
                    async with slots or self._requests:
                        reply = await self._requester.request(
                            call.method, call.path, params=params, content=call.content
                        )
                except TransportError as error:
                    failure = unreachable(self._where, error)
                    if error.sent:
                        unsure, params = error, call.params + call.again
                    elif error.absent and revive and self._revive is not None:
                        await self._revive()
                else:
                    if reply.status < 300:
                        return self._decode(reply, decode)
                    failure = refusal(reply, call.sandbox_id, call.translate)
                    if reply.status != _UNAVAILABLE or failure.retry_delay is None:
                        raise failure
            assert failure is not None
            raise failure from unsure or failure.__cause__
        raise request_timed_out(call.what, self._where, timeout, failure)

    def _delay(self, attempt: int, failure: CWSandboxError) -> float:
        """How long to wait before a retry."""
        delay: float = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** (attempt - 1))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing
        return delay if failure.retry_delay is None else max(delay, failure.retry_delay.total_seconds())

    def _decode(self, reply: Reply, decode: Callable[[bytes], T]) -> T:
        try:
            return decode(reply.content)
        except (ValueError, WireError) as error:
            raise bad_answer(self._where, error) from error


def read_gateway_info(content: bytes) -> GatewayInfo:
    """Read a gateway's description of itself, whatever else a newer one adds to it.

    Raises:
        ValueError: It is not that.
    """
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("not a gateway's description of itself")  # noqa: TRY004 - of content, not of arguments
    return GatewayInfo.from_json({name: value for name, value in document.items() if name in _INFO_NAMES})


def refusal(
    reply: Reply,
    sandbox_id: str | None = None,
    translate: Callable[[Status], CWSandboxError] | None = None,
) -> CWSandboxError:
    """Make the exception for an answer that is not a success.

    Args:
        reply: The answer; a body that is no status, such as a proxy's page, is ignored.
        sandbox_id: The sandbox that was asked for, if one was.
        translate: Makes the exception, where it is not about sandboxes.
    """
    try:
        document = json.loads(reply.content)
    except ValueError:
        document = None
    status = Status.from_json(document, reply.status)
    if not status.message:
        status = attrs.evolve(
            status,
            message=f"HTTP {reply.status} without a word that a gateway would say; is the address that of a gateway?",
        )
    return status_error(status, sandbox_id=sandbox_id) if translate is None else translate(status)


def _sandbox_path(sandbox_id: str) -> str:
    """The path of a sandbox. What cannot be an id is not found, without asking: it could name another resource."""
    if not _SANDBOX_ID.fullmatch(sandbox_id):
        raise SandboxNotFoundError(f"there is no sandbox {sandbox_id!r}", sandbox_id=sandbox_id)
    return f"/v1/sandboxes/{sandbox_id}"
