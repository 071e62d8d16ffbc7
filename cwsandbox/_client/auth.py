"""Which credentials go with a request: an account of the caller's, or those that the process finds.

The process's are the API key, W&B's variables, W&B's entry in `~/.netrc`, or an own mode. They are looked up when a
sandbox first needs its gateway, and again when a gateway refuses them: keys can be replaced under a running program.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import anyio
import anyio.to_thread
from attrs import Factory, field, frozen

from cwsandbox._client.address import API_KEY_VARIABLE
from cwsandbox.exceptions import CWSandboxAuthenticationError

_logger = logging.getLogger("cwsandbox")
_NETRC_MACHINE = "api.wandb.ai"
_NO_PROJECT = "uncategorized"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"([!-~]([ -~]*[!-~])?)?")


@dataclass(frozen=True, repr=False)
class AuthHeaders:
    """The headers that authenticate a caller. True if there are any.

    Attributes:
        headers: Header names and values; the values never show in `repr`.
        strategy: Where they came from: `api_key`, `wandb`, `none`, or the name of an own mode.

    Raises:
        TypeError: A name or value is not a str.
        ValueError: A name or value that HTTP cannot carry, such as a key with the line's end of its file. The message
            does not show values.
    """

    headers: dict[str, str]
    strategy: str

    def __post_init__(self) -> None:
        if not isinstance(self.headers, Mapping):
            raise TypeError(f"headers must be a dict, not {type(self.headers).__name__}")
        given: list[tuple[object, object]] = [*self.headers.items()]
        for name, value in given:
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError("the names and values of headers must be str")
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError("the name of a header has characters that HTTP does not allow in it")
            if not _HEADER_VALUE.fullmatch(value):
                raise ValueError(
                    f"the value of the header {name} has characters that HTTP does not allow there "
                    "(spaces around it, line ends, letters beyond ASCII)"
                )

    @classmethod
    def api_key(cls, key: str) -> AuthHeaders:
        """An API key, as a bearer token; space around it is dropped, as keys come out of files with the line's end.

        Raises:
            ValueError: It is empty, or as the constructor.
        """
        return cls({"authorization": f"Bearer {_key(key)}"}, "api_key")

    @classmethod
    def wandb(cls, key: str, *, entity: str, project: str | None = None) -> AuthHeaders:
        """A W&B key; space around it is dropped.

        Args:
            key: The key.
            entity: The team or user that it acts for.
            project: A project of the entity.

        Raises:
            ValueError: It is empty, or as the constructor.
        """
        return cls({"x-api-key": _key(key), "x-entity-id": entity, "x-project-name": project or _NO_PROJECT}, "wandb")

    def __bool__(self) -> bool:
        return bool(self.headers)

    def __hash__(self) -> int:
        return hash((frozenset(self.headers.items()), self.strategy))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name!r}: '***'" for name in self.headers)
        return f"AuthHeaders(headers={{{shown}}}, strategy={self.strategy!r})"


def _key(key: str) -> str:
    if stripped := key.strip():
        return stripped
    raise ValueError("the key is empty")


NO_AUTH = AuthHeaders({}, "none")

Auth: TypeAlias = AuthHeaders | Callable[[], AuthHeaders]
"""One account: its headers, or a function that returns them, called in a worker thread."""


@frozen
class _AuthMode:
    name: str
    get_auth: Callable[[], AuthHeaders]


_mode: _AuthMode | None = None


def set_auth_mode(name: str, get_auth: Callable[[], AuthHeaders]) -> None:
    """Replace how this process finds its credentials. The last call wins; modes do not chain.

    For several accounts in one process use `auth=` of `SandboxDefaults` or `Sandbox` instead.

    Args:
        name: The mode's name, for messages.
        get_auth: Called in a worker thread when a sandbox first needs its gateway, for each `Sandbox.list`, `from_id`
            and `delete`, and when a gateway no longer accepts what it returned. What it raises reaches the caller as it
            is.

    Raises:
        TypeError: `get_auth` cannot be called, or `name` is no str.
    """
    global _mode
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if not callable(get_auth):
        raise TypeError(f"get_auth must be a function that returns AuthHeaders, not {type(get_auth).__name__}")
    _mode = _AuthMode(name, get_auth)


def _reset_auth_mode() -> None:
    """Go back to the built-in resolution; for tests."""
    global _mode
    _mode = None


def check_auth(auth: Auth | None) -> Auth | None:
    """`auth` as it is.

    Raises:
        TypeError: Neither `AuthHeaders` nor callable; the message does not show it.
    """
    if auth is None or isinstance(auth, AuthHeaders) or callable(auth):
        return auth
    raise TypeError(
        f"auth must be AuthHeaders or a function that returns them, not {type(auth).__name__}; "
        "for an API key write AuthHeaders.api_key(key)"
    )


@frozen
class Account:
    """Who a client is at its gateway.

    Attributes:
        headers: What it sends to begin with.
        look_up: Finds others when the gateway refuses these; None: there are no others. Called in a worker thread.
        key: Equal for what is the same account, and so may share a client.
    """

    headers: AuthHeaders
    look_up: Callable[[], AuthHeaders] | None = None
    key: Hashable = field(default=Factory(lambda self: self.headers, takes_self=True), repr=False)

    @classmethod
    async def find(cls, auth: Auth | None) -> Account:
        """The account that is meant, or (None) that of the process.

        A function is an account, whatever tokens it returns over time. The process's credentials are what they are now:
        other ones later are another account.

        Raises:
            CWSandboxAuthenticationError: The credentials are incomplete, or the function did not return `AuthHeaders`.
            Exception: Whatever the function raised.
        """
        if isinstance(auth, AuthHeaders):
            return cls(auth)
        if auth is None:
            return cls(await anyio.to_thread.run_sync(resolve_auth), resolve_auth)
        look_up = partial(_asked, auth, "the function given as auth")
        return cls(await anyio.to_thread.run_sync(look_up), look_up, _identity(auth))


NOBODY = Account(NO_AUTH)


class Credentials:
    """What one client sends at present. Used on one event loop.

    Attributes:
        headers: See there; replaced by `renew`.
    """

    def __init__(self, account: Account) -> None:
        self.headers = account.headers
        self._look_up = account.look_up
        self._lock = anyio.Lock()

    async def renew(self, refused: AuthHeaders) -> bool:
        """The gateway refused these: look for others. Those who ask at the same time share one look.

        Returns:
            Whether there are others to try.

        Raises:
            Exception: As `Account.find`.
        """
        if self._look_up is None:
            return False
        async with self._lock:
            if self.headers == refused:
                self.headers = await anyio.to_thread.run_sync(self._look_up)
            return self.headers != refused


def _identity(function: Callable[[], AuthHeaders]) -> Hashable:
    """Two looks at one bound method are equal and not identical; some callables cannot be compared by hash."""
    try:
        hash(function)
    except TypeError:
        return id(function)  # Stays its own as long as somebody holds the function, as the client does.
    return function


def _asked(function: Callable[[], AuthHeaders], who: str) -> AuthHeaders:
    found = function()
    if not isinstance(found, AuthHeaders):
        raise CWSandboxAuthenticationError(f"{who} returned no AuthHeaders")
    return found


def resolve_auth(*, env: Mapping[str, str] | None = None) -> AuthHeaders:
    """Find the credentials of the process. May read `~/.netrc`: not for an event loop's thread.

    Args:
        env: The environment; default `os.environ`.

    Returns:
        The headers, empty if there are no credentials.

    Raises:
        CWSandboxAuthenticationError: W&B's key is there and `WANDB_ENTITY_NAME` is not, a key cannot be sent in a
            header, or the own mode returned something else than `AuthHeaders`.
    """
    mode = _mode
    if mode is not None:
        return _asked(mode.get_auth, f"the auth mode {mode.name!r}")
    env = os.environ if env is None else env
    if key := env.get(API_KEY_VARIABLE, "").strip():
        try:
            return AuthHeaders.api_key(key)
        except ValueError:
            raise CWSandboxAuthenticationError(f"{API_KEY_VARIABLE} has characters that no key has") from None
    if key := env.get("WANDB_API_KEY", "").strip():
        return _wandb_headers(key, "WANDB_API_KEY", env)
    if found := _netrc_password(env):
        return _wandb_headers(found, f"~/.netrc's entry for {_NETRC_MACHINE}", env)
    return NO_AUTH


def _wandb_headers(key: str, source: str, env: Mapping[str, str]) -> AuthHeaders:
    entity = env.get("WANDB_ENTITY_NAME")
    if not entity:
        raise CWSandboxAuthenticationError(
            f"{source} needs WANDB_ENTITY_NAME beside it; set it, or set {API_KEY_VARIABLE}"
        )
    try:
        return AuthHeaders.wandb(key, entity=entity, project=env.get("WANDB_PROJECT_NAME"))
    except ValueError as error:
        raise CWSandboxAuthenticationError(f"{source} cannot be used: {error}") from None


def _netrc_password(env: Mapping[str, str]) -> str | None:
    import netrc

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
