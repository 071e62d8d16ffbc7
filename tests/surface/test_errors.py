"""The exceptions as values (behaviour 12.1): tree, attributes, pickle, copy."""

from __future__ import annotations

import copy
import datetime as dt
import pickle
from typing import Any

import pytest

from cwsandbox import (
    AsyncFunctionError,
    CWSandboxAuthenticationError,
    CWSandboxError,
    DiscoveryError,
    FunctionError,
    FunctionSerializationError,
    ProcessResult,
    ProfileNotFoundError,
    RunnerNotFoundError,
    Sandbox,
    SandboxError,
    SandboxExecutionError,
    SandboxFailedError,
    SandboxFileError,
    SandboxNotFoundError,
    SandboxNotRunningError,
    SandboxTerminatedError,
    SandboxTimeoutError,
    exceptions,
)

OWN: dict[type[CWSandboxError], dict[str, Any]] = {
    SandboxNotFoundError: {"sandbox_id": "sandbox-1"},
    SandboxFileError: {"filepath": "/tmp/x"},
    SandboxExecutionError: {"exception_type": "ValueError", "exception_message": "oops"},
    RunnerNotFoundError: {"runner_id": "runner-1"},
    ProfileNotFoundError: {"profile_name": "p", "runner_id": "runner-1"},
}
COMMON: dict[str, Any] = {"reason": "R", "metadata": {"a": "b"}, "retry_delay": dt.timedelta(seconds=3)}
CLASSES = sorted((getattr(exceptions, name) for name in exceptions.__all__), key=lambda cls: cls.__name__)


def test_the_tree() -> None:
    for child, parent in (
        (CWSandboxAuthenticationError, CWSandboxError),
        (SandboxError, CWSandboxError),
        (SandboxNotRunningError, SandboxError),
        (SandboxTimeoutError, SandboxError),
        (SandboxTerminatedError, SandboxError),
        (SandboxFailedError, SandboxError),
        (SandboxNotFoundError, SandboxError),
        (SandboxExecutionError, SandboxError),
        (SandboxFileError, SandboxError),
        (DiscoveryError, CWSandboxError),
        (RunnerNotFoundError, DiscoveryError),
        (ProfileNotFoundError, DiscoveryError),
        (FunctionError, CWSandboxError),
        (AsyncFunctionError, FunctionError),
        (FunctionSerializationError, FunctionError),
    ):
        assert issubclass(child, parent)
    assert not issubclass(SandboxTimeoutError, TimeoutError)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_attribute_survives_pickle_and_copy(cls: type[CWSandboxError]) -> None:
    error = cls("message", **COMMON, **OWN.get(cls, {}))
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is cls
        assert other.args == error.args == ("message",)
        assert str(other) == "message"
        assert vars(other) == vars(error)


@pytest.mark.parametrize("cls", CLASSES)
def test_attributes_have_defaults(cls: type[CWSandboxError]) -> None:
    required = {name: OWN[cls][name] for name in {"runner_id", "profile_name"} & set(OWN.get(cls, {}))}
    if cls is ProfileNotFoundError:
        required.pop("runner_id", None)
    error = cls("message", **required)
    assert (error.reason, error.metadata, error.retry_delay) == (None, {}, None)


def test_metadata_is_copied() -> None:
    metadata = {"a": "b"}
    error = SandboxError("message", metadata=metadata)
    metadata["a"] = "changed"
    assert error.metadata == {"a": "b"}


def test_an_error_with_a_result_survives_pickle(sb: Sandbox) -> None:
    with pytest.raises(SandboxExecutionError) as caught:
        sb.exec(["sh", "-c", "echo out; echo err >&2; exit 3"], check=True).result()
    other = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(other.exec_result, ProcessResult)
    assert (other.exec_result.stdout, other.exec_result.stderr, other.exec_result.returncode) == ("out\n", "err\n", 3)
    assert copy.copy(caught.value).exec_result == other.exec_result


def test_a_result_survives_pickle_and_copy(sb: Sandbox) -> None:
    result = sb.exec(["echo", "kept"]).result()
    for other in (pickle.loads(pickle.dumps(result)), copy.copy(result), copy.deepcopy(result)):
        assert (other.stdout, other.stdout_bytes, other.returncode) == ("kept\n", b"kept\n", 0)
        assert other == result


def test_a_real_error_names_the_sandbox_and_survives_pickle(home_folder: object) -> None:
    with pytest.raises(SandboxNotFoundError) as caught:
        Sandbox.from_id("no-such-sandbox").result()
    assert "no-such-sandbox" in str(caught.value)
    other = pickle.loads(pickle.dumps(caught.value))
    assert vars(other) == vars(caught.value)
