"""What went wrong, in the package's exceptions: the one place where statuses and transport errors are translated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cwsandbox.exceptions import (
    CWSandboxAuthenticationError,
    CWSandboxError,
    DiscoveryError,
    DiscoveryValidationError,
    ProfileNotFoundError,
    RunnerNotFoundError,
    SandboxCommandTimeoutError,
    SandboxError,
    SandboxFileError,
    SandboxNotFoundError,
    SandboxNotRunningError,
    SandboxRefusedError,
    SandboxRequestTimeoutError,
    SandboxResourceExhaustedError,
    SandboxUnavailableError,
    SandboxValidationError,
)
from cwsandbox.wire.errors import DOMAIN, Code, Reason, Status

if TYPE_CHECKING:
    from collections.abc import Callable

_BY_CODE: dict[Code, type[CWSandboxError]] = {
    Code.NOT_FOUND: SandboxNotFoundError,
    Code.CANCELLED: SandboxNotRunningError,
    Code.DEADLINE_EXCEEDED: SandboxRequestTimeoutError,
    Code.UNAVAILABLE: SandboxUnavailableError,
    Code.UNAUTHENTICATED: CWSandboxAuthenticationError,
    Code.PERMISSION_DENIED: CWSandboxAuthenticationError,
    Code.RESOURCE_EXHAUSTED: SandboxResourceExhaustedError,
}

_BY_REASON: dict[str, type[CWSandboxError]] = {
    Reason.SANDBOX_NOT_FOUND: SandboxNotFoundError,
    Reason.SANDBOX_NOT_RUNNING: SandboxNotRunningError,
    Reason.COMMAND_TIMEOUT: SandboxCommandTimeoutError,
    Reason.RUNNER_UNAVAILABLE: SandboxUnavailableError,
    Reason.BACKEND_UNAVAILABLE: SandboxUnavailableError,
    Reason.FILE_NOT_FOUND: SandboxFileError,
    Reason.FILE_IS_DIRECTORY: SandboxFileError,
    Reason.FILE_IO_FAILED: SandboxFileError,
    Reason.FILE_PERMISSION_DENIED: SandboxFileError,
    Reason.FILE_EXISTS: SandboxFileError,
    Reason.FILE_NOT_A_DIRECTORY: SandboxFileError,
    Reason.FILE_DIRECTORY_NOT_EMPTY: SandboxFileError,
    Reason.FILE_TOO_LARGE: SandboxFileError,
    Reason.FILE_TRUNCATED: SandboxFileError,
    Reason.INVALID_ARGUMENT: SandboxRefusedError,
    Reason.NOT_IMPLEMENTED: SandboxRefusedError,
    Reason.RESOURCE_CEILING_EXCEEDED: SandboxRefusedError,
    Reason.NO_SUITABLE_RUNNER: SandboxRefusedError,
    Reason.PLACEMENT_REJECTED: SandboxRefusedError,
    Reason.PLACEMENT_CONSTRAINT_UNSATISFIED: SandboxRefusedError,
    Reason.SECRET_STORE_NOT_PROVISIONED: SandboxRefusedError,
}


class TransportError(Exception):
    """The gateway was not reached, or the connection to it broke. Stays inside the client.

    Attributes:
        sent: Whether the gateway may have seen the request.
        absent: Whether nobody listens at the address.
    """

    def __init__(self, message: str, *, sent: bool, absent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent
        self.absent = absent


def status_error(status: Status, *, sandbox_id: str | None = None, filepath: str | None = None) -> CWSandboxError:
    """Make the exception for what a gateway said about a sandbox.

    A reason of our own domain decides; else the code does.

    Args:
        status: What it said.
        sandbox_id: The sandbox that was asked for, if the caller knows.
        filepath: The file that was asked for, if there was one.

    Returns:
        The exception, not raised.
    """
    kind = _BY_REASON.get(_trusted_reason(status) or "") or _BY_CODE.get(status.code, SandboxError)
    own: dict[str, Any] = {}
    message = _message(status)
    if kind is SandboxNotFoundError:
        own["sandbox_id"] = sandbox_id or status.metadata.get("sandboxId")
        if own["sandbox_id"] and own["sandbox_id"] not in message:
            message = f"{message} (sandbox {own['sandbox_id']})"
    elif kind is SandboxFileError:
        own["filepath"] = filepath if filepath is not None else status.metadata.get("filepath")
    elif kind in {SandboxError, SandboxRefusedError} and _has_wrong_fields(status):
        kind, own["field_violations"] = SandboxValidationError, status.violations
    return _build(kind, status, message, own)


def discovery_error(status: Status, *, runner_id: str | None = None, profile_name: str | None = None) -> CWSandboxError:
    """Make the exception for what a gateway said about runners or profiles.

    Args:
        status: What it said.
        runner_id: The runner that was asked for, if one was.
        profile_name: The profile that was asked for, if one was.

    Returns:
        The exception, not raised.
    """
    message = _message(status)
    if status.code in {Code.UNAUTHENTICATED, Code.PERMISSION_DENIED}:
        return _build(CWSandboxAuthenticationError, status, message, {})
    if status.code is Code.NOT_FOUND and profile_name is not None:
        return _build(ProfileNotFoundError, status, message, {"profile_name": profile_name, "runner_id": runner_id})
    if status.code is Code.NOT_FOUND and runner_id is not None:
        return _build(RunnerNotFoundError, status, message, {"runner_id": runner_id})
    if _has_wrong_fields(status):
        return _build(DiscoveryValidationError, status, message, {"field_violations": status.violations})
    return _build(DiscoveryError, status, message, {})


def is_not_found(status: Status) -> bool:
    """Whether the sandbox is gone: what `missing_ok` forgives."""
    return status.code is Code.NOT_FOUND or _trusted_reason(status) == Reason.SANDBOX_NOT_FOUND


def unreachable(where: object, cause: BaseException) -> SandboxUnavailableError:
    """Make the exception for a gateway that cannot be reached or that stopped answering.

    Args:
        where: The address.
        cause: The transport's error; becomes `__cause__`.
    """
    remote = isinstance(cause, TransportError) and not cause.sent and str(where).startswith("http")
    hint = "; is the address right, and does a gateway run there?" if remote else ""
    error = SandboxUnavailableError(f"cannot reach {where}: {cause}{hint}")
    error.__cause__ = cause
    return error


def request_timed_out(
    what: str, where: object, timeout: float, cause: BaseException | None
) -> SandboxRequestTimeoutError:
    """Make the exception for a call that took longer than its limit.

    Args:
        what: The call, such as `create`.
        where: The address.
        timeout: The limit, in seconds.
        cause: What failed meanwhile, if something did.
    """
    error = SandboxRequestTimeoutError(f"{what}: no answer from {where} within {timeout:g} s")
    error.__cause__ = cause
    return error


def may_have_happened(error: CWSandboxError) -> bool:
    """Whether what a call asked for may have been done although it failed with this."""
    if isinstance(error, SandboxRequestTimeoutError):
        return True
    return isinstance(error.__cause__, TransportError) and error.__cause__.sent


def bad_answer(where: object, cause: BaseException) -> SandboxError:
    """Make the exception for an answer that makes no sense.

    Args:
        where: The address.
        cause: What is wrong with it.
    """
    error = SandboxError(f"{where} answered something that is not this protocol: {cause}")
    error.__cause__ = cause
    return error


def _trusted_reason(status: Status) -> str | None:
    return status.reason if status.domain == DOMAIN else None


def _has_wrong_fields(status: Status) -> bool:
    return status.code is Code.INVALID_ARGUMENT and bool(status.violations)


def _message(status: Status) -> str:
    message = status.message or status.code.name
    violations = [f"{violation.field}: {violation.description}" for violation in status.violations]
    violations = [violation for violation in violations if violation not in message]
    return f"{message} ({'; '.join(violations)})" if violations else message


def _build(kind: Callable[..., CWSandboxError], status: Status, message: str, own: dict[str, Any]) -> CWSandboxError:
    return kind(message, reason=status.reason, metadata=status.metadata, retry_delay=status.retry_delay, **own)
