"""The resource calls against a scripted front."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import pytest

from cwsandbox import exceptions as e
from cwsandbox._client import http as module
from cwsandbox._client.address import Address, AddressKind
from cwsandbox._client.auth import NO_AUTH, Account, AuthHeaders
from cwsandbox._client.errors import TransportError, may_have_happened
from cwsandbox._client.gateway import GatewayClient, open_gateway
from cwsandbox._client.http import Api, Reply, WaitFor
from cwsandbox.wire.errors import Code, Status
from cwsandbox.wire.resources import Sandbox, State
from tests.client.peer import Peer, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RECORD = {"sandboxId": "sb-1", "status": {"state": "STATE_RUNNING"}}


@asynccontextmanager
async def client_of(peer: Peer, auth: AuthHeaders = NO_AUTH) -> AsyncIterator[GatewayClient]:
    async with open_gateway(Address(AddressKind.UNIX, path=peer.path), account=Account(auth)) as client:
        yield client


class Script:
    """Answers in turn; the last one again and again."""

    def __init__(self, *answers: tuple[int, Any] | Status | None) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, str, dict[str, str], bytes]] = []

    async def __call__(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        self.calls.append((method, target, headers, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise anyio.EndOfStream  # The peer cuts the connection.
        return (answer.code.http_status, answer.to_json()) if isinstance(answer, Status) else answer

    def query(self, call: int = -1) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.calls[call][1]).query)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY_SECONDS", 0.001)


async def test_every_call_says_what_it_should() -> None:
    script = Script((200, RECORD))
    auth = AuthHeaders({"authorization": "Bearer k"}, "api_key")
    async with serving() as peer, client_of(peer, auth) as client:
        peer.handler = script
        api = client.api
        await api.create(Sandbox(), request_id="r-1", timeout=5)
        await api.get("sb-1", timeout=5)
        await api.get("sb-1", wait_for=WaitFor.TERMINAL, wait_seconds=2.5, timeout=5)
        await api.stop("sb-1", grace_period_seconds=10, timeout=5)
        await api.delete("sb-1", allow_missing=True, timeout=5)
        await api.shutdown(timeout=5)
    assert [call[:2] for call in script.calls] == [
        ("POST", "/v1/sandboxes?requestId=r-1"),
        ("GET", "/v1/sandboxes/sb-1"),
        ("GET", "/v1/sandboxes/sb-1?waitFor=terminal&timeoutSeconds=2.500"),
        ("POST", "/v1/sandboxes/sb-1:stop"),
        ("DELETE", "/v1/sandboxes/sb-1?allowMissing=true"),
        ("POST", "/v1/gateway:shutdown"),
    ]
    assert all(call[2]["authorization"] == "Bearer k" for call in script.calls)
    assert json.loads(script.calls[3][3]) == {"gracePeriodSeconds": 10.0}


@pytest.mark.parametrize("sandbox_id", ["", ".", "..", "a/b", "a?b", "a b", "sb-1:stop", "\u00e4"])
async def test_what_cannot_be_an_id_is_not_found_and_never_sent(sandbox_id: str) -> None:
    script = Script((200, RECORD))
    async with serving() as peer, client_of(peer) as client:
        peer.handler = script
        for call in (
            client.api.get(sandbox_id, timeout=5),
            client.api.stop(sandbox_id, grace_period_seconds=1, timeout=5),
            client.api.delete(sandbox_id, timeout=5),
        ):
            with pytest.raises(e.SandboxNotFoundError) as caught:
                await call
            assert caught.value.sandbox_id == sandbox_id
        assert await client.api.delete(sandbox_id, allow_missing=True, timeout=5) is None
    assert script.calls == []


async def test_the_answer_is_the_record() -> None:
    async with serving() as peer, client_of(peer) as client:
        peer.handler = Script((200, RECORD))
        record = await client.api.get("sb-1", timeout=5)
    assert record.sandbox_id == "sb-1"
    assert record.status is not None
    assert record.status.state is State.RUNNING


async def test_a_list_is_read_page_by_page() -> None:
    script = Script((200, {"sandboxes": [RECORD], "nextPageToken": "two"}), (200, {"sandboxes": [RECORD, RECORD]}))
    async with serving() as peer, client_of(peer) as client:
        peer.handler = script
        found = await client.api.list(
            tags=["a", "b"], state=State.FAILED, show_terminated=True, runner_ids=["r"], profile_ids=["p"], timeout=5
        )
    assert [record.sandbox_id for record in found] == ["sb-1"] * 3
    first = [
        ("tags", "a"),
        ("tags", "b"),
        ("runnerIds", "r"),
        ("profileIds", "p"),
        ("state", "STATE_FAILED"),
        ("showTerminated", "true"),
    ]
    assert script.query(0) == first
    assert script.query(1) == [*first, ("pageToken", "two")]


async def test_a_create_is_repeated_with_its_request_id() -> None:
    script = Script(None, Status.make(Code.UNAVAILABLE, "soon", retry_delay=timedelta(0)), (200, RECORD))
    async with serving() as peer, client_of(peer) as client:
        peer.handler = script
        record = await client.api.create(Sandbox(), request_id="r-1", timeout=5)
    assert record.sandbox_id == "sb-1"
    assert [script.query(n) for n in range(3)] == [[("requestId", "r-1")]] * 3
    assert len({call[3] for call in script.calls}) == 1


@pytest.mark.parametrize(
    "status",
    [
        Status.make(Code.UNAVAILABLE, "no"),
        Status.make(Code.INTERNAL, "no", retry_delay=timedelta(0)),
        Status.make(Code.RESOURCE_EXHAUSTED, "no"),
        Status.make(Code.NOT_FOUND, "no"),
    ],
)
async def test_what_says_nothing_of_coming_back_is_not_repeated(status: Status) -> None:
    script = Script(status)
    async with serving() as peer, client_of(peer) as client:
        peer.handler = script
        with pytest.raises(e.CWSandboxError):
            await client.api.get("sb-1", timeout=5)
    assert len(script.calls) == 1


async def test_retries_end() -> None:
    script = Script(None)
    async with serving() as peer, client_of(peer) as client:
        peer.handler = script
        with pytest.raises(e.SandboxUnavailableError) as caught:
            await client.api.get("sb-1", timeout=30)
    assert len(script.calls) == 6
    assert caught.value.__cause__ is not None


async def test_a_call_that_is_cancelled_as_its_connection_breaks_is_cancelled() -> None:
    """Who gives a start up has to hear of that, and not of a broken connection, to remove what it made."""
    seen: list[BaseException] = []

    class Breaks:
        async def request(self, *args: object, **kwargs: object) -> Reply:
            scope.cancel()
            raise TransportError("broken", sent=True)

    with anyio.CancelScope() as scope:
        try:
            await Api("here", Breaks()).create(Sandbox(), request_id="r-1", timeout=5)
        except BaseException as error:
            seen.append(error)
            raise
    assert [type(error) for error in seen] == [anyio.get_cancelled_exc_class()]


async def test_a_failure_says_whether_the_call_may_have_worked() -> None:
    async def fail(*problems: TransportError) -> e.CWSandboxError:
        left = list(problems)

        class Fails:
            async def request(self, *args: object, **kwargs: object) -> Reply:
                raise left.pop(0) if len(left) > 1 else left[0]

        with pytest.raises(e.SandboxUnavailableError) as caught:
            await Api("here", Fails()).create(Sandbox(), request_id="r-1", timeout=5)
        return caught.value

    lost, refused = TransportError("lost", sent=True), TransportError("refused", sent=False, absent=True)
    assert may_have_happened(await fail(lost))
    assert may_have_happened(await fail(refused, lost, refused))
    assert not may_have_happened(await fail(refused))
    assert not may_have_happened(e.SandboxResourceExhaustedError())


async def test_a_retry_that_would_be_too_late_is_not_waited_for() -> None:
    script = Script(Status.make(Code.UNAVAILABLE, "later", retry_delay=timedelta(seconds=60)))
    async with serving() as peer, client_of(peer) as client:
        peer.handler = script
        with anyio.fail_after(5), pytest.raises(e.SandboxUnavailableError, match="later") as caught:
            await client.api.get("sb-1", timeout=20)
    assert caught.value.retry_delay == timedelta(seconds=60)


async def test_a_delete_that_may_have_worked_forgives_that_it_did() -> None:
    script = Script(None, (200, {}))
    async with serving() as peer, client_of(peer) as client:
        peer.handler = script
        assert await client.api.delete("sb-1", timeout=5) is None
    assert [script.query(0), script.query(1)] == [[], [("allowMissing", "true")]]


async def stall(*_: object) -> tuple[int, Any]:
    await anyio.sleep_forever()
    raise AssertionError


async def test_the_deadline_is_for_the_whole_call() -> None:
    async with serving() as peer, client_of(peer) as client:
        peer.handler = stall
        with pytest.raises(e.SandboxRequestTimeoutError, match=r"0\.2 s"):
            await client.api.get("sb-1", timeout=0.2)
        # The connection of the abandoned call is not used again, and nothing is left of it.
        peer.handler = Script((200, RECORD))
        assert (await client.api.get("sb-1", timeout=5)).sandbox_id == "sb-1"


async def test_a_wait_has_its_time_on_top() -> None:
    async def answer_late(*_: object) -> tuple[int, Any]:
        await anyio.sleep(0.3)  # Longer than the call's own time.
        return 200, RECORD

    async with serving() as peer, client_of(peer) as client:
        peer.handler = answer_late
        record = await client.api.get("sb-1", wait_for=WaitFor.RUNNING, wait_seconds=5, timeout=0.2)
        assert record.sandbox_id == "sb-1"


async def test_a_hundred_cancelled_calls_leave_the_client_usable() -> None:
    async with serving() as peer, client_of(peer) as client:
        peer.handler = stall
        for _ in range(2):
            with anyio.move_on_after(0.1):
                async with anyio.create_task_group() as tasks:
                    for _ in range(100):
                        tasks.start_soon(lambda: client.api.get("sb-1", timeout=5))
        peer.handler = Script((200, RECORD))
        assert (await client.api.get("sb-1", timeout=5)).sandbox_id == "sb-1"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((502, b"<html>bad gateway</html>"), e.SandboxUnavailableError),
        ((401, b""), e.CWSandboxAuthenticationError),
        ((404, b"null"), e.SandboxNotFoundError),
        ((429, b"[]"), e.SandboxResourceExhaustedError),
        ((504, b""), e.SandboxRequestTimeoutError),
        ((500, b"\xff"), e.SandboxError),
        ((200, b"<html>login</html>"), e.SandboxError),
        ((200, b'{"sandboxId": 3}'), e.SandboxError),
        ((404, {"error": {"code": 404, "status": "UNAVAILABLE", "message": "m"}}), e.SandboxUnavailableError),
    ],
)
async def test_answers_that_are_not_ours_are_errors_of_ours(answer: tuple[int, Any], kind: type[Exception]) -> None:
    async with serving() as peer, client_of(peer) as client:
        peer.handler = Script(answer)
        with pytest.raises(kind) as caught:
            await client.api.get("sb-1", timeout=5)
    assert len(str(caught.value).split()) > 1 or str(caught.value) == "m"


async def test_nobody_there_is_an_error_of_ours(tmp_path: object) -> None:
    async with open_gateway(Address(AddressKind.UNIX, path=f"{tmp_path}/none")) as client:
        with pytest.raises(e.SandboxUnavailableError, match="none") as caught:
            await client.api.get("sb-1", timeout=5)
    assert caught.value.__cause__ is not None


async def test_nobody_on_the_port_is_an_error_of_ours() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with open_gateway(Address(AddressKind.HTTP, url=f"http://127.0.0.1:{port}")) as client:
        with pytest.raises(e.SandboxUnavailableError, match=str(port)):
            await client.api.get("sb-1", timeout=5)


async def test_the_gateway_describes_itself_and_may_say_more_than_we_know() -> None:
    async with serving() as peer, client_of(peer) as client:
        info = await client.api.gateway_info(timeout=5)
    assert (info.instance_id, info.version) == ("one", "0")
