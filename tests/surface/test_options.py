"""NetworkOptions, Secret, ResourceOptions, quantities, enums (behaviour 10.4 to 10.9, 3.1)."""

from __future__ import annotations

from typing import Any

import pytest

import cwsandbox
from cwsandbox import (
    NetworkOptions,
    ResourceOptions,
    Sandbox,
    SandboxDefaults,
    SandboxStatus,
    Secret,
    Serialization,
)


def test_network_options() -> None:
    options = NetworkOptions(ingress_mode="public", egress_mode="internet", exposed_ports=[80, 443])  # type: ignore[arg-type]
    assert options.exposed_ports == (80, 443)
    assert options == NetworkOptions(ingress_mode="public", egress_mode="internet", exposed_ports=(80, 443))
    assert hash(options) == hash(NetworkOptions(ingress_mode="public", egress_mode="internet", exposed_ports=(80, 443)))
    assert NetworkOptions(exposed_ports=()).exposed_ports is None
    assert NetworkOptions() == NetworkOptions(exposed_ports=None)
    with pytest.raises(TypeError):
        NetworkOptions("public")  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        options.egress_mode = "isolated"  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"colour": "red"},
        "public",
        5,
        ["public"],
        {"egress_mode": 1},
        NetworkOptions(exposed_ports=("80",)),  # type: ignore[arg-type]
        NetworkOptions(exposed_ports=80),  # type: ignore[arg-type]
        NetworkOptions(exposed_ports="80"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_network_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Sandbox(network=wrong)


def test_a_number_that_is_no_port_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="from 1 to 65535, not 0"):
        Sandbox(network=NetworkOptions(exposed_ports=(80, 0)))


def test_secret() -> None:
    secret = Secret(store="vault", name="token")
    assert (secret.field, secret.env_var) == ("", "token")
    assert Secret(store="vault", name="token", env_var="TOKEN").env_var == "TOKEN"
    assert hash(secret) == hash(Secret(store="vault", name="token"))
    with pytest.raises(TypeError):
        Secret("vault", "token")  # type: ignore[call-arg]


@pytest.mark.parametrize("wrong", [{"store": ""}, {"name": ""}, {"env_var": ""}])
def test_an_empty_part_of_a_secret_is_a_value_error(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Secret(**{"store": "s", "name": "n", **wrong})


def test_secrets_merge_defaults_first_and_collapse_equal_ones() -> None:
    defaults = SandboxDefaults(secrets=(Secret(store="s", name="a"),))
    Sandbox(defaults=defaults, secrets=[{"store": "s", "name": "a"}, Secret(store="s", name="b")])
    with pytest.raises(ValueError, match="a"):
        Sandbox(defaults=defaults, secrets=[Secret(store="other", name="a")])
    with pytest.raises(TypeError):
        Sandbox(secrets=[{"store": "s", "name": "a", "colour": "red"}])


@pytest.mark.parametrize(
    "resources",
    [
        None,
        {"cpu": "1", "memory": "512Mi"},
        {"cpu": "250m"},
        {"memory": "1G"},
        {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}},
        {"requests": {"cpu": "1"}},
        {"limits": {"memory": "1Gi"}},
        {"requests": {"memory": "1024Ki"}, "limits": {"memory": "1Mi"}},
        {"requests": {"cpu": "1E"}, "limits": {"cpu": "1e18"}},
        ResourceOptions(requests={"cpu": "1"}),
        ResourceOptions(),
    ],
)
def test_right_resources(resources: Any) -> None:
    Sandbox(resources=resources)


@pytest.mark.parametrize(
    ("resources", "error"),
    [
        ({}, TypeError),
        ({"disk": "1"}, TypeError),
        ("1 cpu", TypeError),
        (5, TypeError),
        ({"cpu": 1}, TypeError),
        ({"cpu": "1", "disk": "1"}, ValueError),
        ({"requests": {"disk": "1"}}, ValueError),
        ({"requests": {"cpu": "1"}, "cpu": "1"}, ValueError),
        ({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, ValueError),
        ({"requests": {"memory": "1Gi"}, "limits": {"memory": "1G"}}, ValueError),
        ({"cpu": ""}, ValueError),
        ({"cpu": "-1"}, ValueError),
        ({"cpu": "5e3m"}, ValueError),
        ({"cpu": "1e"}, ValueError),
        ({"memory": "1KI"}, ValueError),
        ({"memory": "1mi"}, ValueError),
        ({"memory": "1n"}, ValueError),
        ({"memory": "much"}, ValueError),
        ({"gpu": "1"}, ValueError),
        ({"gpu": True}, ValueError),
        ({"gpu": 0}, ValueError),
        ({"gpu": {"number": 1}}, ValueError),
        ({"gpu": {"count": "1"}}, ValueError),
        ({"gpu": {"count": 1, "type": 5}}, ValueError),
        ({"gpu": {"memory_gb": -1}}, ValueError),
        ({"requests": {"cpu": "1"}, "gpu": "one"}, ValueError),
    ],
)
def test_wrong_resources(resources: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Sandbox(resources=resources)


def test_resource_options_take_empty_as_none() -> None:
    assert ResourceOptions(requests={}, limits={}, gpu={}) == ResourceOptions()
    with pytest.raises(TypeError):
        hash(ResourceOptions(requests={"cpu": "1"}))


def test_statuses_are_their_lowercase_values() -> None:
    assert {member.name: member.value for member in SandboxStatus} == {
        name: name.lower()
        for name in (
            "UNSPECIFIED",
            "CREATING",
            "RUNNING",
            "COMPLETED",
            "FAILED",
            "TERMINATED",
            "PENDING",
            "PAUSED",
            "TERMINATING",
        )
    }
    assert f"{SandboxStatus.RUNNING}" == "running"
    assert SandboxStatus("running") is SandboxStatus.RUNNING


def test_status_numbers_of_the_wire() -> None:
    numbers = {
        0: "unspecified",
        1: "creating",
        2: "running",
        3: "completed",
        4: "failed",
        5: "terminated",
        6: "pending",
    }
    numbers |= {7: "paused", 9: "terminating"}
    for number, value in numbers.items():
        assert SandboxStatus.from_proto(number) == value
        assert SandboxStatus(value).to_proto() == number
    assert SandboxStatus.from_proto(8) is SandboxStatus.UNSPECIFIED
    assert SandboxStatus.from_proto(1000) is SandboxStatus.UNSPECIFIED


def test_serialization() -> None:
    assert (Serialization.JSON, Serialization.PICKLE) == ("json", "pickle")


def test_the_public_names() -> None:
    expected = [
        "__version__",
        "Sandbox",
        "SandboxStatus",
        "Session",
        "SandboxDefaults",
        "OperationRef",
        "Process",
        "ProcessResult",
        "StreamReader",
        "StreamWriter",
        "Serialization",
        "RemoteFunction",
        "TerminalResult",
        "TerminalSession",
        "NetworkOptions",
        "ResourceOptions",
        "Secret",
        "EgressMode",
        "Profile",
        "Runner",
        "RunnerResources",
        "ServiceExposureMode",
        "format_bytes",
        "format_cpu",
        "get_profile",
        "get_profile_async",
        "get_runner",
        "get_runner_async",
        "list_profiles",
        "list_profiles_async",
        "list_runners",
        "list_runners_async",
        "results",
        "wait",
        "Waitable",
        "CWSandboxError",
        "CWSandboxAuthenticationError",
        "SandboxError",
        "SandboxNotRunningError",
        "SandboxTimeoutError",
        "SandboxTerminatedError",
        "SandboxFailedError",
        "SandboxNotFoundError",
        "SandboxExecutionError",
        "SandboxFileError",
        "DiscoveryError",
        "RunnerNotFoundError",
        "ProfileNotFoundError",
        "FunctionError",
        "AsyncFunctionError",
        "FunctionSerializationError",
        "SandboxCommandTimeoutError",
        "SandboxRefusedError",
        "SandboxRequestTimeoutError",
        "SandboxResourceExhaustedError",
        "SandboxUnavailableError",
    ]
    assert set(expected) <= set(cwsandbox.__all__)  # All of them, with their signatures: test_api.py.
    for name in cwsandbox.__all__:
        assert getattr(cwsandbox, name) is not None
