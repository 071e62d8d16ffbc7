"""What a sandbox may be asked for: network, secrets, resources, and how values travel.

Everything is checked where it is made, so that a mistake shows at its own line and not at the first request.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwsandbox.wire.quantity import parse_quantity

__all__ = [
    "NetworkOptions",
    "ResourceOptions",
    "Secret",
    "Serialization",
    "check_secrets",
    "merge_secrets",
    "network_options",
    "resource_options",
]

MAX_PORT = 65535


class Serialization(enum.StrEnum):
    """How a remote function's arguments and result travel."""

    PICKLE = "pickle"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """How a sandbox is connected.

    Attributes:
        ingress_mode: Who may reach the exposed ports, such as "internal" or "public"; None leaves it to the profile.
        egress_mode: What the sandbox may reach, such as "isolated" or "internet"; None leaves it to the profile.
        exposed_ports: Ports of the sandbox to expose; a list is taken as a tuple, an empty one as None, which exposes
            what `ports` declares.
    """

    ingress_mode: str | None = None
    egress_mode: str | None = None
    exposed_ports: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.exposed_ports, list | tuple):
            object.__setattr__(self, "exposed_ports", tuple(self.exposed_ports) or None)


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A value from a secret store, put into the sandbox's environment.

    Attributes:
        store: Name of the secret store.
        name: Name of the secret in it.
        field: Field of the secret; empty for a secret that is a single value.
        env_var: Environment variable that carries it; defaults to `name`.

    Raises:
        ValueError: `store`, `name` or `env_var` is empty.
    """

    store: str
    name: str
    field: str = ""
    env_var: str | None = None

    def __post_init__(self) -> None:
        if self.env_var is None:
            object.__setattr__(self, "env_var", self.name)
        for label in ("store", "name", "env_var"):
            if not getattr(self, label):
                raise ValueError(f"Secret.{label} must not be empty")


@dataclass(frozen=True, kw_only=True)
class ResourceOptions:
    """Resources of a sandbox, in Kubernetes quantities.

    Attributes:
        requests: What is guaranteed: keys "cpu" and "memory".
        limits: What is allowed at the most: the same keys.
        gpu: Keys "count", "type", "memory_gb".

    One of `requests` and `limits` stands for both where the other is missing.
    """

    requests: dict[str, str] | None = None
    limits: dict[str, str] | None = None
    gpu: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for label in ("requests", "limits", "gpu"):
            if getattr(self, label) == {}:
                object.__setattr__(self, label, None)


def network_options(value: NetworkOptions | Mapping[str, Any] | None) -> NetworkOptions | None:
    """`value` as NetworkOptions; a mapping is taken as its keywords.

    Raises:
        TypeError: Another type, an unknown key, a mode that is no str, ports that are no whole numbers.
        ValueError: A number that is no port.
    """
    if isinstance(value, Mapping):
        value = NetworkOptions(**value)
    if value is None:
        return None
    if not isinstance(value, NetworkOptions):
        raise TypeError(f"network must be NetworkOptions or a dict of its fields, not {type(value).__name__}")
    for name in ("ingress_mode", "egress_mode"):
        mode = getattr(value, name)
        if mode is not None and not isinstance(mode, str):
            raise TypeError(f"{name} must be a str, not {type(mode).__name__}")
    if value.exposed_ports is not None:
        _check_ports(value.exposed_ports)
    return value


def _check_ports(ports: Any) -> None:
    if not isinstance(ports, Collection) or isinstance(ports, str | bytes):
        raise TypeError(f"exposed_ports must be a list of port numbers, not {type(ports).__name__}")
    for port in ports:
        if isinstance(port, bool) or not isinstance(port, int):
            raise TypeError(f"exposed_ports must be whole numbers, not {port!r}")
        if not 1 <= port <= MAX_PORT:
            raise ValueError(f"exposed_ports must be from 1 to {MAX_PORT}, not {port}")


def merge_secrets(
    defaults: Iterable[Secret | Mapping[str, Any]] | None, explicit: Sequence[Secret | Mapping[str, Any]] | None
) -> tuple[Secret, ...]:
    """Secrets of the defaults, then explicit ones; identical duplicates count once.

    Raises:
        TypeError: An item is neither a Secret nor a mapping of its fields.
        ValueError: Two different secrets want the same environment variable.
    """
    merged: dict[str, Secret] = {}
    for secret in (*check_secrets(defaults), *check_secrets(explicit)):
        assert secret.env_var is not None
        earlier = merged.setdefault(secret.env_var, secret)
        if earlier != secret:
            raise ValueError(f"two secrets want the environment variable {secret.env_var!r}: {earlier} and {secret}")
    return tuple(merged.values())


def check_secrets(items: Iterable[Secret | Mapping[str, Any]] | None) -> list[Secret]:
    """Secrets, each of them given as one or as a mapping of its fields.

    Raises:
        TypeError: Another type, of the whole or of an item.
    """
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable | None):
        raise TypeError(f"secrets must be a list of Secret or of dicts of its fields, not {type(items).__name__}")
    return [_secret(item) for item in items or ()]


def _secret(item: Secret | Mapping[str, Any]) -> Secret:
    if isinstance(item, Secret):
        return item
    if isinstance(item, Mapping):
        return Secret(**item)
    raise TypeError(f"a secret must be a Secret or a dict of its fields, not {type(item).__name__}")


_AMOUNTS = ("cpu", "memory")
_GPU_KEYS = ("count", "type", "memory_gb")


def resource_options(value: ResourceOptions | Mapping[str, Any] | None) -> ResourceOptions | None:
    """`value` in its full form: both sides filled, quantities compared.

    A mapping is either nested (`requests`, `limits`, `gpu`) or flat (`cpu`, `memory`, `gpu`: the same for both sides).

    Raises:
        TypeError: Not a mapping with a known key, or a quantity that is not a str.
        ValueError: Unknown keys, a bad quantity or GPU, or a request above its limit.
    """
    if value is None:
        return None
    if isinstance(value, ResourceOptions):
        requests, limits, gpu = value.requests, value.limits, value.gpu
    elif isinstance(value, Mapping):
        requests, limits, gpu = _split(value)
    else:
        raise TypeError(f"resources must be ResourceOptions or a dict, not {type(value).__name__}")
    for label, side in (("requests", requests), ("limits", limits)):
        _known(side, _AMOUNTS, label)
    requests, limits = (
        dict(side) if side else (dict(other) if other else None)
        for side, other in ((requests, limits), (limits, requests))
    )
    _compare(requests or {}, limits or {})
    return ResourceOptions(requests=requests, limits=limits, gpu=_gpu(gpu))


def _split(value: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    if "requests" in value or "limits" in value:
        _known(value, ("requests", "limits", "gpu"), "resources")
        return value.get("requests"), value.get("limits"), value.get("gpu")
    if not any(key in value for key in (*_AMOUNTS, "gpu")):
        raise TypeError("resources has none of the keys cpu, memory, gpu, requests, limits")
    _known(value, (*_AMOUNTS, "gpu"), "resources")
    flat = {key: value[key] for key in _AMOUNTS if key in value}
    return flat, dict(flat), value.get("gpu")


def _known(value: Mapping[str, Any] | None, known: tuple[str, ...], where: str) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise TypeError(f"resources: {where} must be a dict, not {type(value).__name__}")
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"{where}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(known)}")


def _compare(requests: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
    for key in _AMOUNTS:
        amounts = [parse_quantity(side[key]) for side in (requests, limits) if key in side]
        if len(amounts) == len((requests, limits)) and amounts[0] > amounts[1]:
            raise ValueError(f"resources: the {key} request {requests[key]!r} is above the limit {limits[key]!r}")


def _gpu(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        return {"count": _positive(value, "gpu")}
    _known(value, _GPU_KEYS, "gpu")
    for key in ("count", "memory_gb"):
        if key in value:
            _positive(value[key], f"gpu {key}")
    if not isinstance(value.get("type", ""), str):
        raise ValueError("gpu type must be a str such as 'H100'")  # noqa: TRY004 - the published error
    return dict(value) or None


def _positive(value: Any, label: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{label} must be a positive int, not {value!r}")
    return value
