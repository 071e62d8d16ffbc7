from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cwsandbox.wire import codec
from cwsandbox.wire.codec import Int64
from cwsandbox.wire.errors import WireError
from cwsandbox.wire.resources import (
    Container,
    ExposedPort,
    FileMount,
    Gpu,
    ListSandboxesResponse,
    NetworkOptions,
    ResourceRequirements,
    Resources,
    S3Mount,
    Sandbox,
    SandboxSpec,
    SandboxStatus,
    SecretMapping,
    SecretStoreReference,
    Service,
    ServiceProtocol,
    State,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SANDBOX = Sandbox(
    sandbox_id="sb-1",
    spec=SandboxSpec(
        containers=(
            Container(
                image="python:3.12",
                command="sleep",
                args=("1",),
                environment_variables={"KEY": "secret-value"},
                resource_requirements=ResourceRequirements(
                    requests=Resources(cpu="1", memory="1Gi", gpu=Gpu(count=Int64(2), type="H100")),
                    limits=Resources(cpu="2"),
                ),
                files=(FileMount(path="/etc/key", content=b"secret-value"),),
                secret_stores=(SecretStoreReference(store_name="s", secrets=(SecretMapping(path="p", env_var="E"),)),),
                working_dir="/srv",
            ),
        ),
        services=(Service(port=80, name="web", protocol=ServiceProtocol.TCP),),
        max_lifetime_seconds=60,
        max_timeout_seconds=1.5,
        tags=("a", "b"),
        runner_ids=("r",),
        profile_ids=("p",),
        network=NetworkOptions(ingress_mode="public", egress_mode="internet", exposed_ports=(80,)),
        annotations={"k": "v"},
        s3_mount=S3Mount(bucket="b", directory="d", mount_path="/m"),
    ),
    status=SandboxStatus(
        state=State.RUNNING,
        create_time=NOW,
        exit_code=0,
        isolation="namespaces",
        exposed_ports=(ExposedPort(container_port=80, name="web"),),
    ),
)


def test_a_sandbox_travels_in_the_published_names() -> None:
    document = json.loads(codec.dump(SANDBOX))
    assert document == {
        "sandboxId": "sb-1",
        "spec": {
            "containers": [
                {
                    "image": "python:3.12",
                    "command": "sleep",
                    "args": ["1"],
                    "environmentVariables": {"KEY": "secret-value"},
                    "resourceRequirements": {
                        "requests": {"cpu": "1", "memory": "1Gi", "gpu": {"count": "2", "type": "H100"}},
                        "limits": {"cpu": "2"},
                    },
                    "files": [{"path": "/etc/key", "content": "c2VjcmV0LXZhbHVl"}],
                    "secretStores": [{"storeName": "s", "secrets": [{"path": "p", "envVar": "E"}]}],
                    "workingDir": "/srv",
                }
            ],
            "services": [{"port": 80, "name": "web", "protocol": "SERVICE_PROTOCOL_TCP"}],
            "maxLifetimeSeconds": 60,
            "maxTimeoutSeconds": 1.5,
            "tags": ["a", "b"],
            "runnerIds": ["r"],
            "profileIds": ["p"],
            "network": {"ingressMode": "public", "egressMode": "internet", "exposedPorts": [80]},
            "annotations": {"k": "v"},
            "s3Mount": {"bucket": "b", "directory": "d", "mountPath": "/m"},
        },
        "status": {
            "state": "STATE_RUNNING",
            "createTime": "2026-01-02T03:04:05Z",
            "exitCode": 0,
            "isolation": "namespaces",
            "exposedPorts": [{"containerPort": 80, "name": "web"}],
        },
    }
    assert Sandbox.from_json(document) == SANDBOX


def test_environment_values_and_file_contents_are_not_part_of_a_repr() -> None:
    assert "secret-value" not in repr(SANDBOX)


def status_of(status: dict[str, object]) -> SandboxStatus:
    parsed = Sandbox.from_json({"status": status}).status
    assert parsed is not None
    return parsed


def test_an_exit_code_that_was_not_seen_differs_from_zero() -> None:
    assert status_of({}).exit_code is None
    assert status_of({"exitCode": 0}).exit_code == 0
    assert SandboxStatus().to_json() == {}
    assert SandboxStatus(exit_code=0).to_json() == {"exitCode": 0}


def test_states_have_the_published_numbers() -> None:
    names = [
        "UNSPECIFIED",
        "CREATING",
        "RUNNING",
        "COMPLETED",
        "FAILED",
        "TERMINATING",
        "TERMINATED",
        "PENDING",
        "PAUSED",
    ]
    for number, name in enumerate(names):
        assert status_of({"state": number}).state is State[name]
        assert State[name].value == f"STATE_{name}"


def test_a_page_travels() -> None:
    page = ListSandboxesResponse(sandboxes=(SANDBOX, Sandbox(sandbox_id="b")), next_page_token="t")
    assert ListSandboxesResponse.from_json(page.to_json()) == page
    assert ListSandboxesResponse.from_json({}) == ListSandboxesResponse()


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"containers": [{"name": "main", "env": {}}]}, "spec.containers[0].env"),
        ({"containers": [], "services": [{"port": 0}]}, "spec.services[0]"),
        ({"containers": [], "services": [{"port": 65536}]}, "spec.services[0]"),
        ({"containers": [], "maxLifetimeSeconds": -1}, "spec"),
        ({"tags": []}, "spec.containers"),
    ],
)
def test_a_wrong_specification_is_refused_with_its_path(spec: object, path: str) -> None:
    with pytest.raises(WireError) as caught:
        Sandbox.from_json({"spec": spec})
    assert caught.value.field == path
