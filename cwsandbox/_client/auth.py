"""Which credentials go with a request: the API key, W&B's variables, W&B's entry in `~/.netrc`, or an own mode."""

from __future__ import annotations

import logging
import netrc
import os
from typing import TYPE_CHECKING

from attrs import field, frozen

from cwsandbox._client.address import API_KEY_VARIABLE
from cwsandbox.exceptions import CWSandboxAuthenticationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_logger = logging.getLogger("cwsandbox")
_NETRC_MACHINE = "api.wandb.ai"
_NO_PROJECT = "uncategorized"


def _names_only(headers: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: '***'" for name in headers) + "}"


@frozen
class AuthHeaders:
    """The headers that authenticate a caller. True if there are any.

    Attributes:
        headers: Header names and values; the values never show in `repr`.
        strategy: Where they came from: `api_key`, `wandb`, `none`, or the name of an own mode.
    """

    headers: dict[str, str] = field(repr=_names_only)
    strategy: str

    def __bool__(self) -> bool:
        return bool(self.headers)


NO_AUTH = AuthHeaders({}, "none")


@frozen
class _AuthMode:
    name: str
    get_auth: Callable[[], AuthHeaders]


_mode: _AuthMode | None = None


def set_auth_mode(name: str, get_auth: Callable[[], AuthHeaders]) -> None:
    """Replace how this process finds its credentials. The last call wins; modes do not chain.

    Args:
        name: The mode's name, for messages.
        get_auth: Called in a worker thread whenever a connection to a gateway is first made. What it raises reaches the
            caller as it is.
    """
    global _mode
    _mode = _AuthMode(name, get_auth)


def _reset_auth_mode() -> None:
    """Go back to the built-in resolution; for tests."""
    global _mode
    _mode = None


def resolve_auth(*, env: Mapping[str, str] | None = None) -> AuthHeaders:
    """Find the credentials. May read `~/.netrc`: not for an event loop's thread.

    Args:
        env: The environment; default `os.environ`.

    Returns:
        The headers, empty if there are no credentials.

    Raises:
        CWSandboxAuthenticationError: W&B's key is there and `WANDB_ENTITY_NAME` is not, or the own mode returned
            something else than `AuthHeaders`.
    """
    mode = _mode
    if mode is not None:
        found = mode.get_auth()
        if not isinstance(found, AuthHeaders):
            raise CWSandboxAuthenticationError(f"the auth mode {mode.name!r} returned no AuthHeaders")
        return found
    env = os.environ if env is None else env
    if key := env.get(API_KEY_VARIABLE):
        return AuthHeaders({"authorization": f"Bearer {key}"}, "api_key")
    if key := env.get("WANDB_API_KEY"):
        return _wandb_headers(key, "WANDB_API_KEY", env)
    if key := _netrc_password(env):
        return _wandb_headers(key, f"~/.netrc's entry for {_NETRC_MACHINE}", env)
    return NO_AUTH


def _wandb_headers(key: str, source: str, env: Mapping[str, str]) -> AuthHeaders:
    entity = env.get("WANDB_ENTITY_NAME")
    if not entity:
        raise CWSandboxAuthenticationError(
            f"{source} needs WANDB_ENTITY_NAME beside it; set it, or set {API_KEY_VARIABLE}"
        )
    headers = {
        "x-api-key": key,
        "x-entity-id": entity,
        "x-project-name": env.get("WANDB_PROJECT_NAME") or _NO_PROJECT,
    }
    return AuthHeaders(headers, "wandb")


def _netrc_password(env: Mapping[str, str]) -> str | None:
    home = env.get("HOME") or os.path.expanduser("~")
    path = os.path.join(home, ".netrc")
    try:
        entry = netrc.netrc(path).authenticators(_NETRC_MACHINE)
    except netrc.NetrcParseError as error:
        # The parser's own message quotes the token it stumbled over, which may be a password.
        _logger.warning("ignored %s: not readable as netrc, line %s", path, error.lineno)
        return None
    except (OSError, UnicodeDecodeError):
        return None
    return entry[2] if entry else None
