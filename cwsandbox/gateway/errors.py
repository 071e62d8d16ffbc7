"""What the gateway refuses with: google.rpc.Status values, raised as one exception."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cwsandbox.wire.errors import Code, Reason, Status
from cwsandbox.wire.resources import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cwsandbox.gateway.sandbox import Record

_FACT_CHARS: Final = 4096
"""As long as a path may be (PATH_MAX). What a client sent is given back in statuses, and those have to fit a frame."""


class StatusError(Exception):
    """A request cannot be done; `status` goes to the client as it is."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


def error(
    code: Code, message: str, reason: Reason | None = None, metadata: Mapping[str, str] | None = None
) -> StatusError:
    """Make the exception for a code and a message."""
    facts = {name: text[:_FACT_CHARS] for name, text in (metadata or {}).items()}
    return StatusError(Status.make(code, message, reason=reason, metadata=facts))


def invalid(message: str, reason: Reason = Reason.INVALID_ARGUMENT) -> StatusError:
    """The request itself is wrong."""
    return error(Code.INVALID_ARGUMENT, message, reason)


def not_found(sandbox_id: str) -> StatusError:
    """No such sandbox, or not the caller's."""
    return error(
        Code.NOT_FOUND,
        f"there is no sandbox {sandbox_id!r}",
        Reason.SANDBOX_NOT_FOUND,
        {"sandboxId": sandbox_id},
    )


def not_running(record: Record) -> StatusError:
    """The sandbox cannot take the operation in its state; the metadata says which and why."""
    because = f": {record.state_reason}" if record.state_reason else ""
    # Who lost a box in the middle of an operation comes here before the record has changed.
    state = "lost" if record.state is State.RUNNING else record.state.name.lower()
    return error(
        Code.FAILED_PRECONDITION,
        f"sandbox {record.sandbox_id} is not running (state {state}){because}",
        Reason.SANDBOX_NOT_RUNNING,
        {"sandboxId": record.sandbox_id, "state": record.state.value, "stateReason": record.state_reason},
    )
