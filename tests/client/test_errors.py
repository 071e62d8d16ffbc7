"""Statuses and transport errors as exceptions: the tables of the behaviour reference, 12.2 and 12.3, and the finer classes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from cwsandbox import exceptions as e
from cwsandbox._client.errors import discovery_error, is_not_found, request_timed_out, status_error, unreachable
from cwsandbox.wire.errors import Code, FieldViolation, Status

BY_CODE = {
    Code.CANCELLED: e.SandboxNotRunningError,
    Code.UNKNOWN: e.SandboxError,
    Code.INVALID_ARGUMENT: e.SandboxError,
    Code.DEADLINE_EXCEEDED: e.SandboxRequestTimeoutError,
    Code.NOT_FOUND: e.SandboxNotFoundError,
    Code.ALREADY_EXISTS: e.SandboxError,
    Code.PERMISSION_DENIED: e.CWSandboxAuthenticationError,
    Code.RESOURCE_EXHAUSTED: e.SandboxResourceExhaustedError,
    Code.FAILED_PRECONDITION: e.SandboxError,
    Code.ABORTED: e.SandboxError,
    Code.OUT_OF_RANGE: e.SandboxError,
    Code.UNIMPLEMENTED: e.SandboxError,
    Code.INTERNAL: e.SandboxError,
    Code.UNAVAILABLE: e.SandboxUnavailableError,
    Code.DATA_LOSS: e.SandboxError,
    Code.UNAUTHENTICATED: e.CWSandboxAuthenticationError,
}

BY_REASON = {
    "FILE_NOT_FOUND": e.SandboxFileError,
    "FILE_IS_DIRECTORY": e.SandboxFileError,
    "FILE_IO_FAILED": e.SandboxFileError,
    "FILE_PERMISSION_DENIED": e.SandboxFileError,
    "FILE_TOO_LARGE": e.SandboxFileError,
    "SANDBOX_NOT_FOUND": e.SandboxNotFoundError,
    "SANDBOX_NOT_RUNNING": e.SandboxNotRunningError,
    "COMMAND_TIMEOUT": e.SandboxCommandTimeoutError,
    "RUNNER_UNAVAILABLE": e.SandboxUnavailableError,
    "BACKEND_UNAVAILABLE": e.SandboxUnavailableError,
}


def test_every_code_has_a_row() -> None:
    assert set(BY_CODE) == set(Code)


@pytest.mark.parametrize("code", Code)
def test_the_code_chooses_the_class(code: Code) -> None:
    error = status_error(Status.make(code, "what happened"))
    assert type(error) is BY_CODE[code]
    assert "what happened" in str(error)
    assert (error.reason, error.metadata, error.retry_delay) == (None, {}, None)


@pytest.mark.parametrize("reason", BY_REASON)
@pytest.mark.parametrize("code", [Code.INTERNAL, Code.NOT_FOUND, Code.UNAUTHENTICATED])
def test_a_trusted_reason_beats_the_code(reason: str, code: Code) -> None:
    error = status_error(Status.make(code, "m", reason=f"CWSANDBOX_{reason}", metadata={"k": "v"}))
    assert type(error) is BY_REASON[reason]
    assert error.reason == f"CWSANDBOX_{reason}"
    assert error.metadata == {"k": "v"}


@pytest.mark.parametrize("reason", ["CWSANDBOX_RUNNER_NOT_FOUND", "CWSANDBOX_SOMETHING_NEW"])
def test_other_reasons_leave_it_to_the_code(reason: str) -> None:
    error = status_error(Status.make(Code.NOT_FOUND, "m", reason=reason))
    assert type(error) is e.SandboxNotFoundError
    assert error.reason == reason


def test_a_reason_of_another_domain_is_shown_but_does_not_choose() -> None:
    detail = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "CWSANDBOX_FILE_NOT_FOUND",
        "domain": "evil",
    }
    error = status_error(Status(Code.INTERNAL, "m", (detail,)))
    assert type(error) is e.SandboxError
    assert error.reason == "CWSANDBOX_FILE_NOT_FOUND"


@pytest.mark.parametrize("seconds", [-1, 0, 1.5])
def test_the_retry_delay_is_kept(seconds: float) -> None:
    delay = timedelta(seconds=seconds)
    assert status_error(Status.make(Code.UNAVAILABLE, "m", retry_delay=delay)).retry_delay == delay


def test_the_sandbox_of_a_not_found() -> None:
    said = Status.make(
        Code.NOT_FOUND, "gone", reason="CWSANDBOX_SANDBOX_NOT_FOUND", metadata={"sandboxId": "sb-server"}
    )
    asked = status_error(said, sandbox_id="sb-asked")
    assert isinstance(asked, e.SandboxNotFoundError)
    assert asked.sandbox_id == "sb-asked"
    assert "sb-asked" in str(asked)
    unasked = status_error(said)
    assert isinstance(unasked, e.SandboxNotFoundError)
    assert unasked.sandbox_id == "sb-server"


def test_the_path_of_a_file_error() -> None:
    said = Status.make(Code.INTERNAL, "no", reason="CWSANDBOX_FILE_IO_FAILED", metadata={"filepath": "/server"})
    asked = status_error(said, filepath="asked")
    assert isinstance(asked, e.SandboxFileError)
    assert asked.filepath == "asked"
    unasked = status_error(said)
    assert isinstance(unasked, e.SandboxFileError)
    assert unasked.filepath == "/server"


def test_wrong_fields_are_listed() -> None:
    violations = [FieldViolation("spec.a", "must be b"), FieldViolation("spec.c", "must be d")]
    error = status_error(Status.make(Code.INVALID_ARGUMENT, "invalid spec", violations=violations))
    assert "spec.a: must be b" in str(error)
    assert "spec.c: must be d" in str(error)


def test_a_status_without_a_message_is_named_by_its_code() -> None:
    assert str(status_error(Status(Code.INTERNAL))) == "INTERNAL"


def test_discovery() -> None:
    missing, denied = Status.make(Code.NOT_FOUND, "m"), Status.make(Code.PERMISSION_DENIED, "m")
    runner = discovery_error(missing, runner_id="r")
    assert isinstance(runner, e.RunnerNotFoundError)
    assert runner.runner_id == "r"
    profile = discovery_error(missing, profile_name="p", runner_id="r")
    assert isinstance(profile, e.ProfileNotFoundError)
    assert (profile.profile_name, profile.runner_id) == ("p", "r")
    assert type(discovery_error(denied, runner_id="r")) is e.CWSandboxAuthenticationError
    for code in (Code.NOT_FOUND, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.INTERNAL):
        assert type(discovery_error(Status.make(code, "m"))) is e.DiscoveryError


def test_what_missing_ok_forgives() -> None:
    assert is_not_found(Status.make(Code.NOT_FOUND, "m"))
    assert is_not_found(Status.make(Code.INTERNAL, "m", reason="CWSANDBOX_SANDBOX_NOT_FOUND"))
    assert not is_not_found(Status.make(Code.INTERNAL, "m"))


def test_transport_errors_keep_their_cause() -> None:
    cause = OSError("wire cut")
    error = unreachable("unix:///x", cause)
    assert error.__cause__ is cause
    assert "unix:///x" in str(error)
    assert "wire cut" in str(error)
    late = request_timed_out("create", "unix:///x", 1.5, error)
    assert isinstance(late, e.SandboxTimeoutError)
    assert late.__cause__ is error
    assert "1.5 s" in str(late)
