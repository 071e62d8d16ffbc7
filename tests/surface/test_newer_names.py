"""Later names of the published SDK that are accepted beside the April ones."""

from __future__ import annotations

import uuid

import pytest

from cwsandbox import (
    CWSandboxValidationError,
    DiscoveryError,
    DiscoveryValidationError,
    FieldViolation,
    FunctionSerializationError,
    Sandbox,
    SandboxError,
    SandboxResourceExhaustedError,
    SandboxValidationError,
    Session,
)
from cwsandbox._client.errors import discovery_error, status_error
from cwsandbox.wire.errors import Code, Status, WireError

WRONG_FIELD = WireError("spec.tags[0]", "too long").to_status()


def test_show_terminated_is_include_stopped(home_folder: object) -> None:
    tag = uuid.uuid4().hex
    with Session({"tags": [tag]}) as session:
        sandbox = session.sandbox()
        sandbox.start().result()
        sandbox.stop().result()
        for listing in (Sandbox.list, session.list):
            assert listing(tags=[tag]).result() == []
            for found in (listing(tags=[tag], show_terminated=True), listing(tags=[tag], include_stopped=True)):
                assert [item.sandbox_id for item in found.result()] == [sandbox.sandbox_id]


def test_two_names_of_one_setting_must_not_contradict_each_other() -> None:
    for listing in (Sandbox.list, Session().list):
        with pytest.raises(TypeError, match="contradict"):
            listing(include_stopped=True, show_terminated=False)


def test_wrong_fields_are_named_by_a_subclass_of_what_april_raises() -> None:
    error = status_error(WRONG_FIELD)
    assert isinstance(error, SandboxValidationError)
    assert isinstance(error, SandboxError)
    assert isinstance(error, CWSandboxValidationError)
    assert error.field_violations == (FieldViolation("spec.tags[0]", "too long"),)
    assert "spec.tags[0]: too long" in str(error)


def test_profile_names_are_profile_ids(home_folder: object) -> None:
    tag = uuid.uuid4().hex
    with Session({"tags": [tag], "profile_ids": ["default"]}) as session:
        sandbox = session.sandbox(profile_names=["small"])
        sandbox.start().result()
        assert sandbox.wait().profile_id == "small"
        for listing in (Sandbox.list, session.list):
            assert listing(tags=[tag], profile_names=["default"]).result() == []
            (found,) = listing(tags=[tag], profile_names=["small"]).result()
            assert found.sandbox_id == sandbox.sandbox_id
        with pytest.raises(TypeError, match="contradict"):
            session.function(profile_ids=["a"], profile_names=["b"])
    Sandbox(profile_ids=["a"], profile_names=["a"])
    for call in (Sandbox, Sandbox.run, Sandbox.list, Session().list, Session().sandbox):
        with pytest.raises(TypeError, match="contradict"):
            call(profile_ids=["a"], profile_names=["b"])
    with pytest.raises(TypeError, match="profile_names"):
        Sandbox(profile_ids=["a"], profile_names="a")


def test_mounted_files_may_be_one_dict(home_folder: object) -> None:
    with Sandbox.run(mounted_files={"/tmp/one/a": "x", "/tmp/one/b": b"y"}) as sandbox:
        assert sandbox.exec(["cat", "/tmp/one/a", "/tmp/one/b"]).result().stdout == "xy"
    with pytest.raises(ValueError, match="absolute"):
        Sandbox(mounted_files={"path": "/tmp/a", "content": "x"})


def test_wrong_fields_of_a_discovery_request() -> None:
    error = discovery_error(WRONG_FIELD)
    assert isinstance(error, DiscoveryValidationError)
    assert isinstance(error, DiscoveryError)
    assert error.field_violations == (FieldViolation("spec.tags[0]", "too long"),)


def test_an_invalid_argument_without_named_fields_is_the_plain_error() -> None:
    error = status_error(Status.make(Code.INVALID_ARGUMENT, "no"))
    assert type(error) is SandboxError


def test_resource_exhaustion_has_a_class_of_its_own() -> None:
    assert type(status_error(Status.make(Code.RESOURCE_EXHAUSTED, "full"))) is SandboxResourceExhaustedError


def test_a_value_that_cannot_be_carried_over_is_a_type_error_too() -> None:
    assert issubclass(FunctionSerializationError, TypeError)
