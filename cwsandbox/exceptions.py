"""The exceptions of the package.

    CWSandboxError                          .reason .metadata .retry_delay
      CWSandboxAuthenticationError
      CWSandboxValidationError              .field_violations
      SandboxError
        SandboxNotRunningError
          SandboxUnavailableError
        SandboxTimeoutError
          SandboxRequestTimeoutError
          SandboxCommandTimeoutError
        SandboxTerminatedError
        SandboxFailedError
        SandboxNotFoundError                .sandbox_id
        SandboxExecutionError               .exec_result .exception_type .exception_message
        SandboxFileError                    .filepath
        SandboxResourceExhaustedError
        SandboxRefusedError
          SandboxValidationError            (and CWSandboxValidationError)
      DiscoveryError
        DiscoveryValidationError            (and CWSandboxValidationError)
        RunnerNotFoundError                 .runner_id
        ProfileNotFoundError                .profile_name .runner_id
      FunctionError
        AsyncFunctionError
        FunctionSerializationError

A command that fails is a result, a sandbox that fails is an exception. Wrong arguments raise the built-in `TypeError`
and `ValueError`. `OperationRef.result(timeout=...)` that expires raises the built-in `TimeoutError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from cwsandbox.process import ProcessResult
    from cwsandbox.wire.errors import FieldViolation

__all__ = [
    "AsyncFunctionError",
    "CWSandboxAuthenticationError",
    "CWSandboxError",
    "CWSandboxValidationError",
    "DiscoveryError",
    "DiscoveryValidationError",
    "FunctionError",
    "FunctionSerializationError",
    "ProfileNotFoundError",
    "RunnerNotFoundError",
    "SandboxCommandTimeoutError",
    "SandboxError",
    "SandboxExecutionError",
    "SandboxFailedError",
    "SandboxFileError",
    "SandboxNotFoundError",
    "SandboxNotRunningError",
    "SandboxRefusedError",
    "SandboxRequestTimeoutError",
    "SandboxResourceExhaustedError",
    "SandboxTerminatedError",
    "SandboxTimeoutError",
    "SandboxUnavailableError",
    "SandboxValidationError",
]


class CWSandboxError(Exception):
    """The root of everything this package raises on its own account.

    Args:
        message: What happened and what to do next.
        reason: The server's machine-readable reason, such as `CWSANDBOX_FILE_NOT_FOUND`, if it gave one.
        metadata: What the server said beside the reason.
        retry_delay: When the server suggests to try again.
    """

    def __init__(
        self,
        message: str = "",
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_delay = retry_delay

    def __reduce__(self) -> tuple[object, ...]:
        """Keep all attributes through pickle and copy, keyword-only ones included."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[CWSandboxError], args: tuple[object, ...], state: dict[str, object]) -> CWSandboxError:
    error = cls.__new__(cls, *args)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class CWSandboxAuthenticationError(CWSandboxError):
    """The credentials are missing, incomplete, or were rejected."""


class CWSandboxValidationError(CWSandboxError):
    """The server names the fields of the request that are wrong.

    Attributes:
        field_violations: Each wrong field, as `field` and `description`.
    """

    def __init__(
        self,
        message: str = "",
        *,
        field_violations: Sequence[FieldViolation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retry_delay=retry_delay)
        self.field_violations: tuple[FieldViolation, ...] = tuple(field_violations)


class SandboxError(CWSandboxError):
    """An operation on a sandbox failed."""


class SandboxNotRunningError(SandboxError):
    """The sandbox cannot take operations: never started, stopping, stopped, or out of reach."""


class SandboxUnavailableError(SandboxNotRunningError):
    """The gateway or the runner is out of reach at the moment."""


class SandboxTimeoutError(SandboxError):
    """A time limit of the sandbox, a request or a command passed."""


class SandboxRequestTimeoutError(SandboxTimeoutError):
    """A request to the gateway took longer than its limit."""


class SandboxCommandTimeoutError(SandboxTimeoutError):
    """A command ran longer than its `timeout_seconds` and was killed."""


class SandboxTerminatedError(SandboxError):
    """The sandbox was stopped before it completed by itself."""


class SandboxFailedError(SandboxError):
    """The sandbox failed; the message carries the server's reason."""


class SandboxResourceExhaustedError(SandboxError):
    """A limit of the server or of the sandbox was reached."""


class SandboxRefusedError(SandboxError):
    """The gateway does not do what was asked for: the message names the option, and what to do instead.

    Repeating the request changes nothing. `reason` says which kind: an option that is not offered, more than the
    machine or the profile has, an unknown runner or profile, a value that cannot be meant.
    """


class SandboxValidationError(CWSandboxValidationError, SandboxRefusedError):
    """A request about a sandbox has wrong fields."""


class SandboxNotFoundError(SandboxError):
    """No such sandbox.

    Attributes:
        sandbox_id: The id that was asked for, if known.
    """

    def __init__(
        self,
        message: str = "",
        *,
        sandbox_id: str | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retry_delay=retry_delay)
        self.sandbox_id = sandbox_id


class SandboxExecutionError(SandboxError):
    """A command could not be run, or failed under `check=True`.

    Attributes:
        exec_result: What the command printed and returned, if it ran.
        exception_type: For remote functions: the name of the remote exception.
        exception_message: For remote functions: its message.
    """

    def __init__(
        self,
        message: str = "",
        *,
        exec_result: ProcessResult | None = None,
        exception_type: str | None = None,
        exception_message: str | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retry_delay=retry_delay)
        self.exec_result = exec_result
        self.exception_type = exception_type
        self.exception_message = exception_message


class SandboxFileError(SandboxError):
    """A file in the sandbox could not be read or written.

    Attributes:
        filepath: The path as the caller gave it.
    """

    def __init__(
        self,
        message: str = "",
        *,
        filepath: str | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retry_delay=retry_delay)
        self.filepath = filepath


class DiscoveryError(CWSandboxError):
    """Runners or profiles could not be listed."""


class DiscoveryValidationError(CWSandboxValidationError, DiscoveryError):
    """A request about runners or profiles has wrong fields."""


class RunnerNotFoundError(DiscoveryError):
    """No such runner.

    Attributes:
        runner_id: The id that was asked for.
    """

    def __init__(
        self,
        message: str = "",
        *,
        runner_id: str,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retry_delay=retry_delay)
        self.runner_id = runner_id


class ProfileNotFoundError(DiscoveryError):
    """No such profile.

    Attributes:
        profile_name: The name that was asked for.
        runner_id: The runner it was looked for on, if one was named.
    """

    def __init__(
        self,
        message: str = "",
        *,
        profile_name: str,
        runner_id: str | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retry_delay=retry_delay)
        self.profile_name = profile_name
        self.runner_id = runner_id


class FunctionError(CWSandboxError):
    """A remote function could not be prepared."""


class AsyncFunctionError(FunctionError):
    """Remote functions are plain functions; this one is async."""


class FunctionSerializationError(FunctionError, TypeError):
    """Arguments, captured values or the result of a remote function cannot be carried over."""
