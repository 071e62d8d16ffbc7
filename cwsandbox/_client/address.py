"""Where the gateway is: the address from the argument, the environment or the defaults."""

from __future__ import annotations

import enum
import ipaddress
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from attrs import frozen

from cwsandbox.exceptions import CWSandboxError

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE_URL_VARIABLE = "CWSANDBOX_BASE_URL"
API_KEY_VARIABLE = "CWSANDBOX_API_KEY"
_SUN_PATH_BYTES = 107  # What Linux takes in sockaddr_un.sun_path, without the final zero byte.
_DEFAULT_PORTS = {"http": 80, "https": 443}


class AddressKind(enum.StrEnum):
    """How a gateway is reached."""

    EMBEDDED = "embedded"
    UNIX = "unix"
    HTTP = "http"


@frozen
class Address:
    """One gateway. Hashable: the key under which a scope keeps its connection.

    Attributes:
        kind: How it is reached.
        url: The base URL for requests, without a trailing slash; for sockets a stand-in, `http://localhost`.
        path: The socket's path; None for `http(s)` and for the embedded gateway (found on first use).
    """

    kind: AddressKind
    url: str = "http://localhost"
    path: str | None = None

    @property
    def is_plaintext(self) -> bool:
        """Whether others can read along: `http://` to another machine."""
        host = urlsplit(self.url).hostname or ""
        if self.kind is not AddressKind.HTTP or not self.url.startswith("http:") or host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(host).is_loopback
        except ValueError:
            return True

    def __str__(self) -> str:
        match self.kind:
            case AddressKind.EMBEDDED:
                return "the embedded gateway"
            case AddressKind.UNIX:
                return f"unix://{self.path}"
            case AddressKind.HTTP:
                return self.url


EMBEDDED = Address(AddressKind.EMBEDDED)


def resolve_address(
    base_url: str | None = None,
    *,
    defaults_url: str | None = None,
    has_auth: bool = False,
    env: Mapping[str, str] | None = None,
) -> Address:
    """Decide which gateway to talk to. Does no I/O.

    The first that is set counts: the argument, `CWSANDBOX_BASE_URL`, the defaults object; empty means unset. If none is
    set, the embedded gateway is meant, unless `CWSANDBOX_API_KEY` or credentials of the caller's say that the hosted
    service is.

    Args:
        base_url: `http(s)://host[:port]`, `unix:///path/to/socket`, or `local` for the embedded gateway.
        defaults_url: The same, from the defaults object.
        has_auth: Whether the caller gave credentials.
        env: The environment; default `os.environ`.

    Returns:
        The address.

    Raises:
        ValueError: The URL has another scheme, no host, a bad port, a path, a query, or credentials in it.
        CWSandboxError: The hosted service is meant, which this version does not reach.
    """
    env = os.environ if env is None else env
    url = base_url or env.get(BASE_URL_VARIABLE) or defaults_url
    if url:
        return parse_address(url)
    given = "auth" if has_auth else API_KEY_VARIABLE
    if has_auth or env.get(API_KEY_VARIABLE):
        raise CWSandboxError(
            f"{given} is set, which means the hosted service, and this version does not talk to it. Either name a "
            f"gateway of your own with base_url= or {BASE_URL_VARIABLE}=https://... (the credentials are sent to it), "
            f"or unset {given} or set {BASE_URL_VARIABLE}=local to run sandboxes on this machine."
        )
    return EMBEDDED


def parse_address(url: str) -> Address:
    """Read one URL.

    Raises:
        TypeError: Not a str.
        ValueError: As in `resolve_address`.
    """
    if not isinstance(url, str):
        raise TypeError(f"the base URL must be a str, not {type(url).__name__}")
    if url == "local":
        return EMBEDDED
    try:
        parts = urlsplit(url)
    except ValueError:  # Whose message may repeat the part of the URL that holds a secret.
        raise ValueError("the base URL cannot be read; write it as https://HOST, or https://HOST:PORT") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the base URL must not carry credentials; set {API_KEY_VARIABLE} instead")
    if parts.query or parts.fragment:
        raise ValueError(f"the base URL must not have a query or a fragment: {_shown(url)}")
    match parts.scheme:
        case "unix":
            return _unix_address(url, parts)
        case "http" | "https":
            return _http_address(url, parts)
        case _:
            raise ValueError(f"the base URL must be http://, https://, unix:///path or local, not {_shown(url)}")


def _unix_address(url: str, parts: SplitResult) -> Address:
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/") or path == "/" or "\0" in path:
        raise ValueError(
            f"a socket's URL is unix:// and an absolute path, as in unix:///run/cwsandbox.sock, not {_shown(url)}"
        )
    if len(os.fsencode(path)) > _SUN_PATH_BYTES:
        raise ValueError(f"a socket's path has at most {_SUN_PATH_BYTES} bytes: {path!r}")
    return Address(AddressKind.UNIX, path=path)


def _http_address(url: str, parts: SplitResult) -> Address:
    if not parts.hostname or re.search(r"\s", parts.hostname):
        raise ValueError(f"the base URL has no host: {_shown(url)}")
    if parts.path not in {"", "/"}:
        raise ValueError(f"the base URL must not have a path: {_shown(url)}")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"the base URL has a bad port: {_shown(url)}") from None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    suffix = "" if port in {None, _DEFAULT_PORTS[parts.scheme]} else f":{port}"
    return Address(AddressKind.HTTP, url=f"{parts.scheme}://{host}{suffix}")


def _shown(url: str) -> str:
    """A URL for a message. A mistyped one may hold a key or a password where this package does not look for it."""
    return "(not shown: it may hold a secret)" if {"@", "?", "#"} & set(url) else repr(url)
