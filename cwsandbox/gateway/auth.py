"""Who is calling: the peer of a Unix socket, or the holder of an API key.

API keys live hashed in a file, one `name:sha256-hex` per line; blank lines and lines that begin with `#` are skipped.
SHA-256 is enough because keys are 256 random bits (`new_key`): there is nothing to guess, unlike with passwords. Every
name is a principal; it may have several keys, so that one can be replaced while it is in use.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Final, Protocol

from attrs import field, frozen

from cwsandbox.gateway.errors import error
from cwsandbox.wire.errors import Code

if TYPE_CHECKING:
    from collections.abc import Iterable

_KEY_BYTES: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE: Final = re.compile(rf"(?P<name>{_NAME.pattern}):(?P<digest>[0-9a-f]{{64}})")


@frozen
class Peer:
    """The process at the other end of a Unix socket, as the kernel saw it when it connected.

    Attributes:
        uid: Its user.
        pid: Its process id; 0 if it is in another pid namespace.
    """

    uid: int
    pid: int


class Authenticator(Protocol):
    """Says who is calling."""

    def principal(self, peer: Peer | None, authorization: str) -> str:
        """Return the caller's name, from the socket's peer or the Authorization header.

        Raises:
            StatusError: UNAUTHENTICATED.
        """
        ...


@frozen
class PeerAuthenticator:
    """For the embedded gateway: the server admits the owner and root only, and both act for the owner.

    Attributes:
        uid: The owner of the gateway.
    """

    uid: int

    def principal(self, peer: Peer | None, authorization: str) -> str:
        """Return the owner, whoever of the admitted calls."""
        if peer is not None and peer.uid not in {self.uid, 0}:
            raise _unauthenticated("this gateway belongs to another user")
        return f"uid:{self.uid}"


@frozen
class KeyAuthenticator:
    """For a port: API keys as bearer tokens.

    Attributes:
        digests: Principal by the SHA-256 of its key.
    """

    digests: dict[bytes, str] = field(repr=False)

    def principal(self, peer: Peer | None, authorization: str) -> str:
        """Return the name of the key; every known digest is compared, each in constant time."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthenticated("an API key is required: Authorization: Bearer <key>")
        offered = hashlib.sha256(token.strip().encode()).digest()
        found = ""
        for digest, name in self.digests.items():
            if hmac.compare_digest(digest, offered):
                found = name
        if not found:
            raise _unauthenticated("the API key is not known")
        return f"key:{found}"


def read_key_file(lines: Iterable[str]) -> KeyAuthenticator:
    """Parse the lines of a key file.

    Raises:
        ValueError: A line is malformed or repeats a key; the message names the line, never its content.
    """
    digests: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise ValueError(f"line {number} of the key file is not name:sha256")
        digest = bytes.fromhex(match["digest"])
        if digest in digests:
            raise ValueError(f"line {number} of the key file repeats a key")
        digests[digest] = match["name"]
    if not digests:
        raise ValueError("the key file has no keys; nobody could use this gateway")
    return KeyAuthenticator(digests)


def new_key(name: str) -> tuple[str, str]:
    """Make an API key; return the key, for its holder, and the line for the key file.

    Raises:
        ValueError: The name has other characters than letters, digits and `._-`, or more than 64.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a key's name has 1 to 64 letters, digits and ._-, so it cannot be {name!r}")
    key = secrets.token_urlsafe(_KEY_BYTES)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def _unauthenticated(message: str) -> Exception:
    return error(Code.UNAUTHENTICATED, message)
