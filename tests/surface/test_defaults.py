"""SandboxDefaults (behaviour 7)."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from cwsandbox import NetworkOptions, ResourceOptions, Sandbox, SandboxDefaults, Secret, Session


def test_the_fields_and_their_defaults() -> None:
    defaults = SandboxDefaults()
    assert [field.name for field in dataclasses.fields(defaults)] == [
        "container_image",
        "command",
        "args",
        "base_url",
        "request_timeout_seconds",
        "max_lifetime_seconds",
        "temp_dir",
        "tags",
        "profile_ids",
        "runner_ids",
        "resources",
        "network",
        "secrets",
        "environment_variables",
        "annotations",
        "auth",
    ]
    assert defaults.container_image == "python:3.11"
    assert defaults.command == "/bin/sh"
    assert defaults.args[0] == "-c"
    assert defaults.base_url == "https://api.cwsandbox.com"
    assert defaults.request_timeout_seconds == 300.0
    assert defaults.temp_dir == "/tmp"
    assert (defaults.tags, defaults.environment_variables, defaults.annotations) == ((), {}, {})
    for name in ("max_lifetime_seconds", "profile_ids", "runner_ids", "resources", "network", "secrets"):
        assert getattr(defaults, name) is None


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SandboxDefaults().tags = ("a",)  # type: ignore[misc]


def test_merging() -> None:
    defaults = SandboxDefaults(tags=("a", "b"), environment_variables={"A": "1", "B": "1"}, annotations={"x": "1"})
    assert defaults.merge_tags(["b", "c"]) == ["a", "b", "b", "c"]
    assert defaults.merge_tags(None) == ["a", "b"]
    merged = defaults.merge_environment_variables({"B": "2"})
    assert merged == {"A": "1", "B": "2"}
    merged["A"] = "changed"
    assert defaults.environment_variables == {"A": "1", "B": "1"}
    assert defaults.merge_environment_variables(None) == {"A": "1", "B": "1"}
    assert defaults.merge_annotations({"y": "2"}) == {"x": "1", "y": "2"}


def test_with_overrides() -> None:
    defaults = SandboxDefaults()
    changed = defaults.with_overrides(temp_dir="/work", tags=("a",))
    assert (changed.temp_dir, changed.tags, defaults.temp_dir) == ("/work", ("a",), "/tmp")
    with pytest.raises(TypeError):
        defaults.with_overrides(colour="red")


def test_from_dict_coerces_and_ignores_unknown_keys() -> None:
    defaults = SandboxDefaults.from_dict(
        {
            "args": ["a"],
            "tags": (tag for tag in ("x", "y")),
            "profile_ids": ["p"],
            "runner_ids": ["r"],
            "network": {"egress_mode": "isolated", "exposed_ports": [80]},
            "secrets": [{"store": "s", "name": "n"}],
            "resources": {"cpu": "1"},
            "environment_variables": {"A": "1"},
            "colour": "red",
        }
    )
    assert (defaults.args, defaults.tags) == (("a",), ("x", "y"))
    assert (defaults.profile_ids, defaults.runner_ids) == (("p",), ("r",))
    assert defaults.network == NetworkOptions(egress_mode="isolated", exposed_ports=(80,))
    assert defaults.secrets == (Secret(store="s", name="n"),)
    assert defaults.resources == {"cpu": "1"}
    assert defaults.environment_variables == {"A": "1"}


def test_from_dict_takes_none_as_the_default() -> None:
    names = [field.name for field in dataclasses.fields(SandboxDefaults)]
    assert SandboxDefaults.from_dict(dict.fromkeys(names)) == SandboxDefaults()
    assert SandboxDefaults.from_dict(None) == SandboxDefaults()


@pytest.mark.parametrize("name", ["args", "tags", "profile_ids", "runner_ids"])
def test_from_dict_refuses_a_str_for_a_list(name: str) -> None:
    with pytest.raises(TypeError):
        SandboxDefaults.from_dict({name: "text"})


def test_from_dict_keeps_resource_options() -> None:
    options = ResourceOptions(requests={"cpu": "1"})
    assert SandboxDefaults.from_dict({"resources": options}).resources is options


@pytest.mark.parametrize("value", [5, "s", {"store": "s", "name": "n"}, ["s"]], ids=str)
def test_from_dict_refuses_what_are_no_secrets(value: object) -> None:
    with pytest.raises(TypeError, match="must be a"):
        SandboxDefaults.from_dict({"secrets": value})


@pytest.mark.parametrize("value", ["text", [("tags", ["a"])]], ids=str)
def test_from_dict_refuses_what_is_no_mapping(value: Any) -> None:
    with pytest.raises(TypeError, match="defaults must be a dict"):
        SandboxDefaults.from_dict(value)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("request_timeout_seconds", "5", TypeError),
        ("request_timeout_seconds", None, TypeError),
        ("request_timeout_seconds", -1, ValueError),
        ("max_lifetime_seconds", "5", TypeError),
        ("max_lifetime_seconds", -1, ValueError),
    ],
)
def test_wrong_limits_are_named_when_they_are_used(field: str, value: Any, error: type[Exception]) -> None:
    session = Session(SandboxDefaults(**{field: value}))
    for use in (session.sandbox, session.function):
        with pytest.raises(error, match=field):
            use()


def test_it_may_be_sent_to_another_process(home_folder: object) -> None:
    """The URL that nobody chose stays one that nobody chose."""
    defaults = pickle.loads(pickle.dumps(SandboxDefaults(tags=("sent",))))
    assert defaults == SandboxDefaults(tags=("sent",)) == copy.deepcopy(defaults)
    with Session(defaults) as session:
        assert session.sandbox().exec(["true"]).result().returncode == 0


def test_a_mapping_is_taken_by_sandbox_too(home_folder: object) -> None:
    with Sandbox(defaults={"environment_variables": {"A": "1"}}) as sandbox:
        assert sandbox.exec(["sh", "-c", 'echo "$A"']).result().stdout == "1\n"


def test_default_arguments_belong_to_the_default_command_only(home_folder: object) -> None:
    with Session({"command": "echo", "args": ["from", "defaults"]}) as session:
        inherited, own = session.sandbox(), session.sandbox(command="echo")
        for sandbox in (inherited, own):
            sandbox.wait_until_complete().result()
        assert list(inherited.stream_logs()) == ["from defaults\n"]
        assert list(own.stream_logs()) == ["\n"]


def test_no_value_of_the_environment_is_in_the_repr() -> None:
    assert "hidden-value" not in repr(SandboxDefaults(environment_variables={"TOKEN": "hidden-value"}))
