"""Signals on the channel: their names, and the queue of those that were sent.

Names are POSIX names without "SIG" (RFC 4254, section 6.9). The set is fixed instead of taken from the running host, so
that both sides agree whatever they run on.
"""

from __future__ import annotations

import re
import signal
from collections import deque
from itertools import islice

from cwsandbox.wire.errors import ProtocolError

__all__ = ["SignalQueue", "is_signal_name", "signal_name", "signal_number"]

_NAMES = frozenset(
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG"  # noqa: SIM905 - readable as a list of words
    " XCPU XFSZ VTALRM PROF WINCH IO PWR SYS EMT INFO RTMIN RTMAX".split()
)
_REAL_TIME = re.compile(r"RTMIN\+[1-9][0-9]?")


def is_signal_name(name: str) -> bool:
    """Whether `name` is one the channel carries: `TERM`, `RTMIN+3`; not `SIGTERM`, not `term`."""
    return name in _NAMES or _REAL_TIME.fullmatch(name) is not None


def signal_name(number: int) -> str:
    """The channel's name of a signal number of this host.

    Raises:
        ValueError: No such signal.
    """
    real_time = number - signal.SIGRTMIN
    if 0 < real_time < signal.SIGRTMAX - signal.SIGRTMIN:
        return f"RTMIN+{real_time}"
    return signal.Signals(number).name.removeprefix("SIG")


def signal_number(name: str) -> int:
    """The number this host has for a channel name.

    Raises:
        ValueError: Not a signal name, or one that this host does not have.
    """
    if _REAL_TIME.fullmatch(name):
        number = signal.SIGRTMIN + int(name.removeprefix("RTMIN+"))
        if number <= signal.SIGRTMAX:
            return number
    elif name in _NAMES and f"SIG{name}" in signal.Signals.__members__:
        return signal.Signals[f"SIG{name}"].value
    raise ValueError(f"no signal is called {name!r}")


class SignalQueue:
    """The signals of one stream, numbered from 1 and kept until the server has acknowledged them.

    Attributes:
        acknowledged: How many are known to have arrived.
    """

    __slots__ = ("_kept", "_sent", "acknowledged")

    def __init__(self) -> None:
        self.acknowledged: int = 0
        self._kept: deque[str] = deque()
        self._sent = 0

    @property
    def due(self) -> bool:
        """Whether there is one that the present connection does not know of."""
        return self._sent < self.acknowledged + len(self._kept)

    def put(self, name: str) -> None:
        """Queue a signal; where one of that name was not sent yet, that one stands for both."""
        if name not in islice(self._kept, self._sent - self.acknowledged, None):
            self._kept.append(name)

    def take(self) -> tuple[int, str]:
        """Number and name of the next one to send."""
        name = self._kept[self._sent - self.acknowledged]
        self._sent += 1
        return self._sent, name

    def acknowledge(self, count: int) -> None:
        """Note how many have arrived.

        Raises:
            ProtocolError: More than there are.
        """
        if count > self.acknowledged + len(self._kept):
            raise ProtocolError("a signal acknowledged that was never sent")
        while self.acknowledged < count:
            self._kept.popleft()
            self.acknowledged += 1
        self._sent = max(self._sent, self.acknowledged)

    def rewind(self) -> None:
        """On a new connection: what is not known to have arrived is sent again."""
        self._sent = self.acknowledged
