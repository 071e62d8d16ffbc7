"""What an OPEN says about a stream: who asks, what for, by which name, and what is known from an earlier connection."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cwsandbox.wire.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Attach", "Role", "StreamKind", "by_code", "is_exec_id", "offsets"]

_EXEC_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Role(enum.Enum):
    """Which side of the connection this is. Clients open streams and send down substream 0 only."""

    CLIENT = "client"
    SERVER = "server"


class StreamKind(enum.StrEnum):
    """What a stream is for."""

    EXEC = "exec"
    SHELL = "shell"
    LOGS = "logs"
    READ = "read"
    WRITE = "write"
    FILES = "files"


@frozen
class Attach:
    """What a client that comes back says about a stream it has had before.

    Attributes:
        received: Bytes it received, per substream.
        consumed: Bytes its user took, per substream.
        confirmed: It knows that the stream was confirmed.
        signals: How many signals it knows to have arrived.
    """

    received: tuple[int, ...] = ()
    consumed: tuple[int, ...] = ()
    confirmed: bool = False
    signals: int = 0

    def to_json(self) -> dict[str, Any]:
        """The "attach" member of an OPEN."""
        document: dict[str, Any] = {
            "received": by_code(self.received),
            "consumed": by_code(self.consumed),
            "confirmed": self.confirmed,
        }
        return {**document, "signals": self.signals} if self.signals else document

    @classmethod
    def from_json(cls, document: Any, codes: int) -> Attach:
        """Read it back; there are `codes` substreams.

        Raises:
            ProtocolError: It is malformed.
        """
        if not isinstance(document, Mapping):
            raise ProtocolError("attach is not an object")
        received = offsets(document.get("received"), codes)
        consumed = offsets(document.get("consumed"), codes)
        signals = document.get("signals", 0)
        if type(signals) is not int or not 0 <= signals < 2**64:
            raise ProtocolError("attach with malformed signals")
        return cls(received, consumed, document.get("confirmed") is True, signals)


def by_code(values: Iterable[int]) -> dict[str, int]:
    """Offsets of the substreams as JSON has them: `{"0": n, "1": m}`."""
    return {str(code): value for code, value in enumerate(values)}


def offsets(document: Any, codes: int) -> tuple[int, ...]:
    """An offset for each of `codes` substreams from `{"0": n, ...}`; what is not mentioned is at 0.

    Raises:
        ProtocolError: It is malformed.
    """
    values = [0] * codes
    if document is None:
        return tuple(values)
    if not isinstance(document, Mapping):
        raise ProtocolError("offsets are not an object")
    for key, value in document.items():
        code = {"0": 0, "1": 1}.get(key, codes)
        if code >= codes or type(value) is not int or not 0 <= value < 2**64:
            raise ProtocolError("offsets are not numbers by substream")
        values[code] = value
    return tuple(values)


def is_exec_id(value: str) -> bool:
    """Whether `value` can name a stream across connections: 1 to 128 letters, digits, `_`, `.`, `:`, `-`."""
    return _EXEC_ID.fullmatch(value) is not None
