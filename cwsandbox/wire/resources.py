"""The HTTP resources: the messages of the published v1 REST mapping that are used here, and a few fields more.

Python names are the snake_case of the JSON names. Empty text and zero mean "not set", as in protobuf; None is used
where a value may be absent and zero has a meaning of its own. Values that may be secret (environment values, file
contents) are never part of a repr. What the published v1 does not have is marked [ours].
"""

from __future__ import annotations

import enum
from collections.abc import Mapping  # noqa: TC003 - the codec resolves annotations
from datetime import datetime  # noqa: TC003 - likewise
from typing import Any, Self

from attrs import field, frozen, validators

from cwsandbox.wire.codec import Int64, structure, unstructure

__all__ = [
    "Container",
    "ExposedPort",
    "FileMount",
    "GatewayInfo",
    "Gpu",
    "LimitHold",
    "ListSandboxesResponse",
    "Message",
    "NetworkOptions",
    "ResourceRequirements",
    "Resources",
    "S3Mount",
    "Sandbox",
    "SandboxSpec",
    "SandboxStatus",
    "SecretMapping",
    "SecretStoreReference",
    "Service",
    "ServiceProtocol",
    "State",
    "StopSandboxRequest",
]

_ZERO = Int64(0)
MAIN_CONTAINER = "main"
"""The name of a sandbox's one container."""


class State(enum.Enum):
    """Where a sandbox is in its life. The order gives the published numbers."""

    UNSPECIFIED = "STATE_UNSPECIFIED"
    CREATING = "STATE_CREATING"
    RUNNING = "STATE_RUNNING"
    COMPLETED = "STATE_COMPLETED"
    FAILED = "STATE_FAILED"
    TERMINATING = "STATE_TERMINATING"
    TERMINATED = "STATE_TERMINATED"
    PENDING = "STATE_PENDING"
    PAUSED = "STATE_PAUSED"


class LimitHold(enum.Enum):
    """How a limit is held [ours]."""

    SANDBOX = "sandbox"
    """The sandbox as a whole cannot exceed it."""
    PROCESS = "process"
    """Each of its processes by itself cannot exceed it; several together can."""
    NONE = "none"
    """Nothing holds it."""


class ServiceProtocol(enum.Enum):
    """A port's transport protocol; unspecified is TCP."""

    UNSPECIFIED = "SERVICE_PROTOCOL_UNSPECIFIED"
    TCP = "SERVICE_PROTOCOL_TCP"
    UDP = "SERVICE_PROTOCOL_UDP"
    SCTP = "SERVICE_PROTOCOL_SCTP"


class Message:
    """Base of the models: their way to JSON and back."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the fields that have their default."""
        document: dict[str, Any] = unstructure(self)
        return document

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """The model from parsed JSON.

        Raises:
            WireError: It has another structure; names the field.
        """
        return structure(document, cls)


@frozen(kw_only=True)
class Gpu(Message):
    """GPUs: how many, and either their type or their memory."""

    count: Int64 = _ZERO
    type: str = ""
    memory_gb: Int64 = _ZERO


@frozen(kw_only=True)
class Resources(Message):
    """Amounts as Kubernetes quantities: cpu "500m", memory "1Gi"."""

    cpu: str = ""
    memory: str = ""
    gpu: Gpu | None = None


@frozen(kw_only=True)
class ResourceRequirements(Message):
    """What is guaranteed, and what is allowed at the most."""

    requests: Resources | None = None
    limits: Resources | None = None


@frozen(kw_only=True)
class FileMount(Message):
    """A read-only file that is in place before the main command starts."""

    path: str
    content: bytes = field(default=b"", repr=False)


@frozen(kw_only=True)
class SecretMapping(Message):
    """A secret of a store, and the environment variable that carries it."""

    path: str
    field: str = ""
    env_var: str


@frozen(kw_only=True)
class SecretStoreReference(Message):
    """Secrets of one store."""

    store_name: str
    secrets: tuple[SecretMapping, ...]


@frozen(kw_only=True)
class Container(Message):
    """The sandbox's command and what surrounds it. `resources` and `resource_requirements` exclude each other."""

    name: str = MAIN_CONTAINER
    image: str = ""
    command: str = ""
    args: tuple[str, ...] = ()
    environment_variables: Mapping[str, str] = field(factory=dict, repr=False)
    resources: Resources | None = None
    resource_requirements: ResourceRequirements | None = None
    files: tuple[FileMount, ...] = ()
    secret_stores: tuple[SecretStoreReference, ...] = ()
    working_dir: str = ""


@frozen(kw_only=True)
class Service(Message):
    """A port of the sandbox."""

    port: int = field(validator=[validators.ge(1), validators.le(65535)])
    name: str = ""
    protocol: ServiceProtocol = ServiceProtocol.UNSPECIFIED


@frozen(kw_only=True)
class NetworkOptions(Message):
    """How the sandbox is connected, by the names of modes [ours]."""

    ingress_mode: str = ""
    egress_mode: str = ""
    exposed_ports: tuple[int, ...] = ()


@frozen(kw_only=True)
class S3Mount(Message):
    """A bucket's directory as a directory of the sandbox [ours]."""

    bucket: str
    directory: str = ""
    mount_path: str


@frozen(kw_only=True)
class SandboxSpec(Message):
    """What a sandbox is asked to be. Lifetimes are in seconds, 0 is the gateway's default.

    Attributes:
        max_timeout_seconds: Upper bound for operations in it, in seconds. [ours]
        profile_ids: Any of these profiles. [ours]
        s3_mount: [ours]
    """

    containers: tuple[Container, ...]
    primary_container: str = ""
    services: tuple[Service, ...] = ()
    max_lifetime_seconds: float = field(default=0.0, validator=validators.ge(0))
    max_timeout_seconds: float = field(default=0.0, validator=validators.ge(0))
    tags: tuple[str, ...] = ()
    runner_ids: tuple[str, ...] = ()
    profile_ids: tuple[str, ...] = ()
    network: NetworkOptions | None = None
    annotations: Mapping[str, str] = field(factory=dict)
    s3_mount: S3Mount | None = None


@frozen(kw_only=True)
class ExposedPort(Message):
    """A port that can be reached from outside, and where: `address` is "host:port" [ours]."""

    container_port: int
    name: str = ""
    protocol: str = ""
    address: str = ""


@frozen(kw_only=True)
class SandboxStatus(Message):
    """What a sandbox is.

    Attributes:
        exit_code: The main command's, absent until it was seen; 128 + N for signal N.
        isolation: "namespaces" or "process", once it runs. [ours]
        profile_id: [ours]
        limit_holds: How each limit is held: those that were asked for, and those that its runner sets unasked. [ours]
        service_address: [ours]
        exposed_ports: [ours]
        applied_ingress_mode: [ours]
        applied_egress_mode: [ours]
    """

    state: State = State.UNSPECIFIED
    state_reason: str = ""
    create_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    exit_code: int | None = None
    runner_id: str = ""
    runner_group_id: str = ""
    profile_id: str = ""
    effective_resource_requirements: ResourceRequirements | None = None
    effective_max_lifetime_seconds: float = 0.0
    isolation: str = ""
    limit_holds: Mapping[str, LimitHold] = field(factory=dict)
    service_address: str = ""
    exposed_ports: tuple[ExposedPort, ...] = ()
    applied_ingress_mode: str = ""
    applied_egress_mode: str = ""


@frozen(kw_only=True)
class Sandbox(Message):
    """A sandbox: the body of a create, and the answer to most calls."""

    sandbox_id: str = ""
    spec: SandboxSpec | None = None
    status: SandboxStatus | None = None


@frozen(kw_only=True)
class ListSandboxesResponse(Message):
    """A page of sandboxes; the token is empty on the last one."""

    sandboxes: tuple[Sandbox, ...] = ()
    next_page_token: str = ""


@frozen(kw_only=True)
class StopSandboxRequest(Message):
    """The body of a stop [ours].

    Attributes:
        grace_period_seconds: How long the main command may take to end by itself.
        snapshot_on_stop: Keep the file system.
    """

    grace_period_seconds: float = field(default=0.0, validator=validators.ge(0))
    snapshot_on_stop: bool = False


@frozen(kw_only=True)
class GatewayInfo(Message):
    """Who answers [ours].

    Attributes:
        version: The package's version.
        protocol: The exec channel's version.
        pid: The gateway's process.
        instance_id: New at every start of the gateway.
        uptime_seconds: Since that start.
        sandboxes: How many of the caller's have not ended.
    """

    version: str
    protocol: int
    pid: int = 0
    instance_id: str = ""
    uptime_seconds: float = 0.0
    sandboxes: int = 0
