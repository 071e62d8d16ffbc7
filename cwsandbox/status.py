"""`SandboxStatus`: the states of a sandbox as its user sees them."""

from __future__ import annotations

import enum
import logging

__all__ = ["SandboxStatus"]

logger: logging.Logger = logging.getLogger("cwsandbox")


class SandboxStatus(enum.StrEnum):
    """The state of a sandbox.

    A sandbox goes PENDING, CREATING, RUNNING and ends COMPLETED (its main command ended by itself), FAILED (it could
    not be made, or broke) or TERMINATED (it was stopped, or its lifetime passed). TERMINATING is the grace period of a
    stop. Members compare equal to their lowercase values.
    """

    UNSPECIFIED = "unspecified"
    CREATING = "creating"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TERMINATED = "terminated"
    PENDING = "pending"
    PAUSED = "paused"
    TERMINATING = "terminating"

    @property
    def is_terminal(self) -> bool:
        """True for COMPLETED, FAILED and TERMINATED: the sandbox has ended and stays so."""
        return self in _TERMINAL

    @classmethod
    def from_proto(cls, value: int) -> SandboxStatus:
        """The status for a number of the v1beta2 wire enum; an unknown one is UNSPECIFIED, with a log warning."""
        status = _FROM_NUMBER.get(value)
        if status is None:
            logger.warning("unknown sandbox status number %d; reading it as unspecified", value)
            return cls.UNSPECIFIED
        return status

    def to_proto(self) -> int:
        """The number of this status in the v1beta2 wire enum."""
        return _TO_NUMBER[self]


_TERMINAL = frozenset({SandboxStatus.COMPLETED, SandboxStatus.FAILED, SandboxStatus.TERMINATED})

# v1beta2 SandboxStatus; 8 was retired before publication.
_TO_NUMBER = {
    SandboxStatus.UNSPECIFIED: 0,
    SandboxStatus.CREATING: 1,
    SandboxStatus.RUNNING: 2,
    SandboxStatus.COMPLETED: 3,
    SandboxStatus.FAILED: 4,
    SandboxStatus.TERMINATED: 5,
    SandboxStatus.PENDING: 6,
    SandboxStatus.PAUSED: 7,
    SandboxStatus.TERMINATING: 9,
}
_FROM_NUMBER = {number: status for status, number in _TO_NUMBER.items()}
