"""Signal names as the channel spells them: POSIX names without "SIG" (RFC 4254, section 6.9).

The set is fixed instead of taken from the running host, so that both sides agree whatever they run on.
"""

from __future__ import annotations

import re
import signal

__all__ = ["is_signal_name", "signal_name", "signal_number"]

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
