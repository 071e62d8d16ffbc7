"""Which credentials go along."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import pytest

from cwsandbox._client import auth
from cwsandbox._client.auth import AuthHeaders, resolve_auth, set_auth_mode
from cwsandbox.exceptions import CWSandboxAuthenticationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NETRC = "machine other.example login a password no\nmachine api.wandb.ai\n  login user\n  password from-netrc\n"
KEY = {"CWSANDBOX_API_KEY": "key"}
WANDB = {"WANDB_API_KEY": "wkey"}
ENTITY = {"WANDB_ENTITY_NAME": "team"}


def wandb(key: str, project: str = "uncategorized") -> AuthHeaders:
    return AuthHeaders({"x-api-key": key, "x-entity-id": "team", "x-project-name": project}, "wandb")


@pytest.fixture(autouse=True)
def no_mode() -> Iterator[None]:
    auth._reset_auth_mode()
    yield
    auth._reset_auth_mode()


@pytest.mark.parametrize(
    ("env", "netrc", "expected"),
    [
        ({}, None, AuthHeaders({}, "none")),
        (KEY, None, AuthHeaders({"authorization": "Bearer key"}, "api_key")),
        ({**KEY, **WANDB, **ENTITY}, NETRC, AuthHeaders({"authorization": "Bearer key"}, "api_key")),
        ({**WANDB, **ENTITY}, NETRC, wandb("wkey")),
        ({**WANDB, **ENTITY, "WANDB_PROJECT_NAME": "p"}, None, wandb("wkey", "p")),
        ({**WANDB, **ENTITY, "CWSANDBOX_API_KEY": ""}, None, wandb("wkey")),
        (ENTITY, NETRC, wandb("from-netrc")),
        ({**ENTITY, "WANDB_API_KEY": ""}, NETRC, wandb("from-netrc")),
        (ENTITY, "machine other.example login a password b\n", AuthHeaders({}, "none")),
        (ENTITY, None, AuthHeaders({}, "none")),
    ],
)
def test_the_order_of_sources(tmp_path: Path, env: dict[str, str], netrc: str | None, expected: AuthHeaders) -> None:
    if netrc is not None:
        (tmp_path / ".netrc").write_text(netrc)
    found = resolve_auth(env={**env, "HOME": str(tmp_path)})
    assert found == expected
    assert bool(found) == bool(expected.headers)


@pytest.mark.parametrize(("env", "netrc"), [(WANDB, None), ({}, NETRC), ({**WANDB, "WANDB_ENTITY_NAME": ""}, None)])
def test_a_wandb_key_needs_the_entity(tmp_path: Path, env: dict[str, str], netrc: str | None) -> None:
    if netrc is not None:
        (tmp_path / ".netrc").write_text(netrc)
    with pytest.raises(CWSandboxAuthenticationError, match="WANDB_ENTITY_NAME") as caught:
        resolve_auth(env={**env, "HOME": str(tmp_path)})
    assert "wkey" not in str(caught.value)
    assert "from-netrc" not in str(caught.value)


def test_an_unreadable_netrc_is_skipped_with_a_warning_that_quotes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user passwort hunter2\n")
    with caplog.at_level(logging.WARNING, "cwsandbox"):
        assert not resolve_auth(env={**ENTITY, "HOME": str(tmp_path)})
    assert ".netrc" in caplog.text
    assert "hunter2" not in caplog.text
    assert "passwort" not in caplog.text


def test_a_binary_netrc_is_skipped(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_bytes(b"\xff\xfe\x00machine")
    assert not resolve_auth(env={**ENTITY, "HOME": str(tmp_path)})


def test_secrets_do_not_show() -> None:
    headers = AuthHeaders({"authorization": "Bearer hunter2"}, "api_key")
    assert "hunter2" not in repr(headers)
    assert "hunter2" not in str(headers)
    assert "authorization" in repr(headers)
    with pytest.raises(dataclasses.FrozenInstanceError):
        headers.strategy = "x"  # type: ignore[misc]


def test_a_mode_replaces_everything_and_the_last_one_wins() -> None:
    set_auth_mode("first", lambda: AuthHeaders({"a": "1"}, "first"))
    set_auth_mode("second", lambda: AuthHeaders({"b": "2"}, "second"))
    assert resolve_auth(env=KEY) == AuthHeaders({"b": "2"}, "second")


def test_a_mode_that_returns_nothing_is_an_authentication_error() -> None:
    set_auth_mode("odd", lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(CWSandboxAuthenticationError, match="odd"):
        resolve_auth(env=KEY)


def test_what_a_mode_raises_is_passed_on() -> None:
    def fail() -> AuthHeaders:
        raise LookupError("vault")

    set_auth_mode("vault", fail)
    with pytest.raises(LookupError, match="vault"):
        resolve_auth(env=KEY)


def test_what_is_no_mode_and_no_headers_is_a_type_error() -> None:
    for name, get_auth in ((None, dict), ("mode", None)):
        with pytest.raises(TypeError):
            set_auth_mode(name, get_auth)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="headers must be a dict, not list"):
        AuthHeaders(["a"], "mode")  # type: ignore[arg-type]
