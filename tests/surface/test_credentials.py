"""Which account a program is at its gateway (S125 to S127), and that keys stay secret and can be replaced."""

from __future__ import annotations

import copy
import gc
import http.server
import itertools
import logging
import pickle
import re
import threading
import traceback
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio
import pytest

import cwsandbox
from cwsandbox import (
    AuthHeaders,
    CWSandboxAuthenticationError,
    CWSandboxError,
    Sandbox,
    SandboxDefaults,
    SandboxNotFoundError,
    Session,
    set_auth_mode,
)
from cwsandbox._client.auth import _reset_auth_mode
from cwsandbox._runtime.portal import portal_scope
from cwsandbox.gateway.keyfile import add_key, revoke_key, rotate_key
from tests.support.teamgateway import TeamGateway, team_gateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cwsandbox import OperationRef

NETRC = "machine api.wandb.ai login user password wandb-secret\n"
ENTITY = {"WANDB_ENTITY_NAME": "team"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No credentials but those of the test."""
    for name in ("CWSANDBOX_API_KEY", "CWSANDBOX_BASE_URL", "WANDB_API_KEY", *ENTITY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    _reset_auth_mode()


@pytest.fixture(scope="module")
def team() -> Iterator[TeamGateway]:
    with team_gateway("--grace-seconds", "2") as gateway:
        yield gateway


@pytest.fixture
def gateway(team: TeamGateway, monkeypatch: pytest.MonkeyPatch) -> TeamGateway:
    """The gateway that the environment names."""
    monkeypatch.setenv("CWSANDBOX_BASE_URL", team.url)
    return team


class Listener:
    """A server that writes down who called with which headers, and answers the same to all."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.requests: list[dict[str, str]] = []
        seen = self.requests

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                seen.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("content-length", "0")
                self.end_headers()

            do_POST = do_DELETE = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def credentials(self) -> list[dict[str, str]]:
        names = ("authorization", "x-api-key", "x-entity-id", "x-project-name")
        return [{name: call[name] for name in names if name in call} for call in self.requests]


def sent_by(listener: Listener, **options: Any) -> dict[str, str]:
    """The credentials that one call sends."""
    with pytest.raises(CWSandboxError):
        Sandbox.list(base_url=listener.url, **options).result()
    return listener.credentials()[-1]


# The order of sources.


@pytest.mark.row("S125")
def test_s125_the_api_key_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(NETRC)
    for name, value in {"CWSANDBOX_API_KEY": "key\n", "WANDB_API_KEY": "wkey", **ENTITY}.items():
        monkeypatch.setenv(name, value)
    with Listener(400) as listener:
        assert sent_by(listener) == {"authorization": "Bearer key"}


@pytest.mark.row("S126")
def test_s126_a_wandb_key_with_its_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wkey")
    with Listener(400) as listener:
        with pytest.raises(CWSandboxAuthenticationError, match="WANDB_ENTITY_NAME"):
            Sandbox.list(base_url=listener.url).result()
        assert listener.requests == []
        monkeypatch.setenv("WANDB_ENTITY_NAME", "team")
        expected = {"x-api-key": "wkey", "x-entity-id": "team", "x-project-name": "uncategorized"}
        assert sent_by(listener) == expected
        monkeypatch.setenv("WANDB_PROJECT_NAME", "project")
        assert sent_by(listener) == {**expected, "x-project-name": "project"}


@pytest.mark.row("S127")
async def test_s127_netrc_needs_the_entity_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(NETRC)
    with Listener(400) as listener:
        with pytest.raises(CWSandboxAuthenticationError, match="WANDB_ENTITY_NAME"):
            await Sandbox.list(base_url=listener.url)
        monkeypatch.setenv("WANDB_ENTITY_NAME", "team")
        with pytest.raises(CWSandboxError):
            await Sandbox.list(base_url=listener.url)
        assert [call["x-api-key"] for call in listener.credentials()] == ["wandb-secret"]


@pytest.mark.row("S125", "S126")
async def test_s125_s126_the_order_async(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CWSANDBOX_API_KEY": "key", "WANDB_API_KEY": "wkey", **ENTITY}.items():
        monkeypatch.setenv(name, value)
    with Listener(400) as listener:
        async with Session({"base_url": listener.url}) as session:
            for _ in range(2):
                with pytest.raises(CWSandboxError):
                    await session.list()
                monkeypatch.delenv("CWSANDBOX_API_KEY", raising=False)
        first, second = listener.credentials()
        assert (list(first), second["x-api-key"], second["x-entity-id"]) == (["authorization"], "wkey", "team")


def test_without_credentials_none_are_sent() -> None:
    with Listener(400) as listener:
        assert sent_by(listener) == {}


# Own modes and several accounts.


def test_a_mode_replaces_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWSANDBOX_API_KEY", "unused")
    set_auth_mode("vault", lambda: AuthHeaders({"Authorization": "Token a"}, "vault"))
    with Listener(400) as listener:
        assert sent_by(listener) == {"authorization": "Token a"}
        set_auth_mode("other", lambda: AuthHeaders.api_key("b"))
        assert sent_by(listener) == {"authorization": "Bearer b"}
        set_auth_mode("none", lambda: None)  # type: ignore[arg-type, return-value]
        with pytest.raises(CWSandboxAuthenticationError, match="'none'"):
            Sandbox.list(base_url=listener.url).result()

        def broken() -> AuthHeaders:
            raise LookupError("the vault is shut")

        set_auth_mode("broken", broken)
        with pytest.raises(LookupError, match="shut"):
            Sandbox.list(base_url=listener.url).result()


def test_each_call_can_have_its_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWSANDBOX_API_KEY", "process")
    account = AuthHeaders.api_key("own")
    with Listener(400) as listener:
        defaults = SandboxDefaults(base_url=listener.url, auth=account)
        at: dict[str, Any] = {"base_url": listener.url, "auth": account}
        session = Session(defaults)
        calls: list[Callable[[], OperationRef[Any]]] = [
            partial(Sandbox.list, **at),
            partial(Sandbox.from_id, "sb-1", **at),
            partial(Sandbox.delete, "sb-1", **at),
            Sandbox(**at).start,
            Sandbox(defaults=defaults).start,
            session.list,
            partial(session.from_id, "sb-1"),
            session.sandbox().start,
            partial(Sandbox.list, base_url=listener.url, auth=lambda: account),
        ]
        for call in calls:
            with pytest.raises(CWSandboxError):
                call().result()
        assert listener.credentials() == [{"authorization": "Bearer own"}] * len(calls)
        assert sent_by(listener) == {"authorization": "Bearer process"}
        session.close().result()


def test_tokens_that_are_new_each_time_collect_no_connections() -> None:
    numbers = itertools.count()
    set_auth_mode("minted", lambda: AuthHeaders.api_key(f"token-{next(numbers)}"))
    with Listener(404) as listener:
        kept = Sandbox.from_id("sb-1", base_url=listener.url)
        for _ in range(20):
            with pytest.raises(SandboxNotFoundError):
                Sandbox.from_id("sb-1", base_url=listener.url).result()
            gc.collect()
        with pytest.raises(SandboxNotFoundError):
            kept.result()
        held = [key for key in portal_scope()._connections if str(key) == listener.url]
        assert 1 <= len(held) <= 15  # Of 21; some are still being closed.


def test_newer_credentials_are_tried_once_for_a_call() -> None:
    numbers = itertools.count()
    with Listener(401) as listener:
        with pytest.raises(CWSandboxAuthenticationError):
            Sandbox.list(base_url=listener.url, auth=lambda: AuthHeaders.api_key(f"token-{next(numbers)}")).result()
        assert [call["authorization"] for call in listener.credentials()] == ["Bearer token-0", "Bearer token-1"]
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match="empty"):
            AuthHeaders.api_key(empty)


@pytest.mark.parametrize("auth", ["key", b"key", {"authorization": "key"}, 5])
def test_what_is_no_account_is_a_type_error_that_does_not_show_it(auth: Any) -> None:
    for make in (partial(Sandbox, auth=auth), partial(Sandbox.list, auth=auth)):
        with pytest.raises(TypeError, match="AuthHeaders") as caught:
            make()
        assert "key'" not in str(caught.value)


async def test_accounts_of_one_process_see_their_own_sandboxes_only(gateway: TeamGateway) -> None:
    ada, bob = (AuthHeaders.api_key(gateway.account()[1]) for _ in range(2))
    async with (
        Session(SandboxDefaults(auth=ada)) as of_ada,
        Session({"auth": lambda: bob, "base_url": "http://127.0.0.1:1"}) as of_bob,  # The environment's URL wins.
    ):
        one, two = await of_ada.sandbox(), await of_bob.sandbox()
        assert (await one.exec(["echo", "ada"])).stdout == "ada\n"
        assert (await two.exec(["echo", "bob"])).stdout == "bob\n"
        assert [found.sandbox_id for found in await of_ada.list()] == [one.sandbox_id]
        assert [found.sandbox_id for found in await of_bob.list()] == [two.sandbox_id]
        with pytest.raises(SandboxNotFoundError):
            await of_bob.from_id(str(one.sandbox_id))
        assert (await Sandbox.from_id(str(one.sandbox_id), auth=ada)).sandbox_id == one.sandbox_id
        with pytest.raises(SandboxNotFoundError):
            await Sandbox.delete(str(one.sandbox_id), auth=bob)
        await Sandbox.delete(str(two.sandbox_id), auth=bob)
        await two.stop(missing_ok=True)


def test_a_process_that_changes_its_key_changes_its_account(
    gateway: TeamGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        sandboxes = []
        for _ in range(2):
            monkeypatch.setenv("CWSANDBOX_API_KEY", gateway.account()[1])
            sandboxes.append(stack.enter_context(Sandbox.run()))
            found = Sandbox.list().result()
            assert [one.sandbox_id for one in found] == [sandboxes[-1].sandbox_id]
        for sandbox in [*sandboxes, *found]:  # Each stays with the account that it was made or found with.
            assert sandbox.exec(["echo", "mine"]).result().stdout == "mine\n"
            assert sandbox.get_status() == "running"


# Rotation.


def test_keys_are_replaced_under_a_running_program(gateway: TeamGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    name, key = gateway.account()
    monkeypatch.setenv("CWSANDBOX_API_KEY", key)
    with Sandbox.run() as sandbox:
        process = sandbox.exec(["cat"], stdin=True)
        assert process.stdin is not None
        process.stdin.write(b"before\n").result()
        assert next(process.stdout) == "before\n"
        # The environment has the new key before the old one ends: no call fails.
        monkeypatch.setenv("CWSANDBOX_API_KEY", rotate_key(gateway.keys, name))
        rotate_key(gateway.keys, name)
        process.stdin.write(b"after\n").result()
        process.stdin.close().result()
        assert list(process.stdout) == ["after\n"]
        assert process.result().stdout == "before\nafter\n"
        assert sandbox.get_status() == "running"
        assert sandbox.exec(["echo", "on"]).result().stdout == "on\n"


async def test_a_function_is_asked_again_when_its_token_is_refused(gateway: TeamGateway) -> None:
    name, first = gateway.account()
    tokens = [first]

    def token() -> AuthHeaders:
        return AuthHeaders.api_key(tokens[-1])

    async with Sandbox(auth=token) as sandbox:
        assert (await sandbox.exec(["echo", "one"])).stdout == "one\n"
        for _ in range(2):
            tokens.append(rotate_key(gateway.keys, name))
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(sandbox.exec(["true"])._wait)
                tasks.start_soon(sandbox.read_file("/etc/hostname")._wait)
        assert (await sandbox.exec(["echo", "two"])).stdout == "two\n"


def test_a_revoked_key_is_cut_off_from_what_runs(gateway: TeamGateway) -> None:
    name, key = gateway.account()
    auth = AuthHeaders.api_key(key)
    sandbox = Sandbox(auth=auth)
    process = sandbox.exec(["cat"], stdin=True)
    assert process.stdin is not None
    process.stdin.write(b"x\n").result()
    assert next(process.stdout) == "x\n"
    revoke_key(gateway.keys, name)
    process.stdin.write(b"y\n")
    with pytest.raises(CWSandboxAuthenticationError):
        process.result()
    with pytest.raises(CWSandboxAuthenticationError):
        sandbox.exec(["true"]).result()
    with pytest.raises(CWSandboxAuthenticationError):
        Sandbox.list(auth=auth).result()
    # Its holder gets another key, and with it what is his.
    again = AuthHeaders.api_key(add_key(gateway.keys, name))
    Sandbox.delete(str(sandbox.sandbox_id), auth=again).result()
    sandbox._life.gone()


@pytest.mark.parametrize("key", ["wrong", ""])
def test_a_key_that_is_not_known_is_an_authentication_error(
    gateway: TeamGateway, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("CWSANDBOX_API_KEY", key)
    sandbox = Sandbox()
    for call in (sandbox.start, partial(sandbox.exec, ["true"]), Sandbox.list):
        with pytest.raises(CWSandboxAuthenticationError):
            call().result()
    assert sandbox.sandbox_id is None


# Where credentials go, and where not.


def test_credentials_do_not_follow_a_redirect() -> None:
    with Listener(200) as elsewhere, Listener(307, {"location": f"{elsewhere.url}/v1/sandboxes"}) as listener:
        assert sent_by(listener, auth=AuthHeaders.api_key("k")) == {"authorization": "Bearer k"}
        assert elsewhere.requests == []


def test_the_embedded_gateway_gets_none(home_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWSANDBOX_BASE_URL", "local")
    monkeypatch.setenv("WANDB_API_KEY", "there is no entity")
    set_auth_mode("fails", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert isinstance(Sandbox.list().result(), list)


def test_an_account_without_a_gateway_means_the_hosted_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (Sandbox, partial(Sandbox, auth=AuthHeaders.api_key("hunter2"))):
        with pytest.raises(CWSandboxError, match=r"CWSANDBOX_BASE_URL.*local") as caught:
            monkeypatch.setenv("CWSANDBOX_API_KEY", "hunter2" if make is Sandbox else "")
            make().start().result()
        assert "hunter2" not in str(caught.value)


def test_keys_in_the_clear_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cwsandbox"):
        for _ in range(2):
            sandbox = Sandbox(base_url="http://192.0.2.1:9", auth=AuthHeaders.api_key("k"), request_timeout_seconds=0.1)
            with pytest.raises(CWSandboxError):
                sandbox.start().result()
    assert len(re.findall("unencrypted", caplog.text)) == 1


# Secrets stay secret.


def test_accounts_are_values_that_do_not_show() -> None:
    headers = AuthHeaders.api_key("hunter2")
    assert headers == AuthHeaders.api_key("hunter2") != AuthHeaders.api_key("other")
    assert len({headers, copy.deepcopy(headers), pickle.loads(pickle.dumps(headers))}) == 1
    assert (bool(headers), bool(AuthHeaders({}, "none"))) == (True, False)
    assert (headers.headers, headers.strategy) == ({"authorization": "Bearer hunter2"}, "api_key")
    defaults = SandboxDefaults(auth=headers)
    with_function = SandboxDefaults(auth=partial(AuthHeaders.api_key, "hunter2"))
    shown = [headers, defaults, with_function, Session(defaults), Sandbox(defaults=with_function)]
    assert all("hunter2" not in f"{value!r} {value!s}" for value in shown)


@pytest.mark.parametrize("key", ["hunter2\n", "hunter2\r\nx: y", " hunter2", "hünter2", "hunter2\0"])
def test_what_no_header_can_carry_is_refused_at_once_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    with pytest.raises(ValueError, match="authorization") as caught:
        AuthHeaders({"authorization": key}, "own")
    assert "nter2" not in str(caught.value)
    if key.strip() == "hunter2":
        assert AuthHeaders.api_key(key) == AuthHeaders.api_key("hunter2")
    elif "\0" not in key:
        monkeypatch.setenv("CWSANDBOX_API_KEY", key)
        with pytest.raises(CWSandboxAuthenticationError, match="CWSANDBOX_API_KEY") as refused:
            Sandbox.list(base_url="http://127.0.0.1:1").result()
        assert "nter2" not in "".join(traceback.format_exception(refused.value))


def test_no_key_in_logs_and_errors(
    gateway: TeamGateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key, stranger = gateway.account()[1], "cw-a-stranger's-key"
    told: list[str] = []
    with caplog.at_level(logging.DEBUG):
        monkeypatch.setenv("CWSANDBOX_API_KEY", key)
        with Sandbox.run() as sandbox:
            sandbox.exec(["echo", "hello"]).result()
            with pytest.raises(CWSandboxError) as caught:
                sandbox.read_file("/no/such/file").result()
            told += traceback.format_exception(caught.value)
        for address in (gateway.url, "http://127.0.0.1:1"):
            calls: list[Callable[[], OperationRef[Any]]] = [
                Sandbox(base_url=address, auth=AuthHeaders.api_key(stranger), request_timeout_seconds=0.5).start,
                partial(Sandbox.list, base_url=address, auth=lambda: AuthHeaders.api_key(stranger)),
            ]
            for call in calls:
                with pytest.raises(CWSandboxError) as caught:
                    call().result()
                told += traceback.format_exception(caught.value)
                told.append(repr(vars(caught.value)))
    gc.collect()
    everything = "\n".join([caplog.text, *told, gateway.log.read_text()])
    assert len(everything) > 1000
    assert key not in everything
    assert stranger not in everything


def test_the_names_are_exported() -> None:
    assert {"AuthHeaders", "set_auth_mode"} <= set(cwsandbox.__all__)
