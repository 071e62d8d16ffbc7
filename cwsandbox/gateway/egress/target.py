"""What clients of the proxy ask for: a host and a port, read strictly."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from attrs import frozen

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,252}")
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,253}))(?::(?P<port>[0-9]{1,5}))?"
)
_HTTP: Final = re.compile(r"http://(?P<authority>[^/?#]*)(?P<path>[^#]*)", re.IGNORECASE)


class TargetError(ValueError):
    """Not a target; the message says what is wrong with it."""


@frozen
class Target:
    """Where to connect to: a name or a numeric address, and a port."""

    host: str
    port: int

    @classmethod
    def make(cls, host: str, port: int) -> Target:
        """Check a host and a port.

        Raises:
            TargetError: One of them is none.
        """
        if not 1 <= port <= 65535:
            raise TargetError("a port is from 1 to 65535")
        if ":" in host:
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                raise TargetError("not an IPv6 address") from None
        elif not _NAME.fullmatch(host):
            raise TargetError("not a host name")
        return cls(host, port)

    @classmethod
    def from_authority(cls, text: str, default_port: int | None = None) -> Target:
        """Read "host:port", "[v6]:port", or without a port if there is a default.

        Raises:
            TargetError: It is something else.
        """
        match = _AUTHORITY.fullmatch(text)
        if match is None:
            raise TargetError("not host:port")
        port = int(match["port"]) if match["port"] is not None else default_port
        if port is None:
            raise TargetError("a port is needed: host:port")
        return cls.make(match["v6"] or match["name"], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def split_http_url(text: str) -> tuple[Target, str, str]:
    """Split an absolute http URL into where to connect to, the value of the Host field, and what to ask for there.

    Raises:
        TargetError: It is something else.
    """
    match = _HTTP.fullmatch(text)
    if match is None:
        raise TargetError("the proxy takes CONNECT host:port and absolute http:// URLs")
    path = match["path"]
    if not path.startswith("/"):
        path = "/" + path
    return Target.from_authority(match["authority"], 80), match["authority"], path
