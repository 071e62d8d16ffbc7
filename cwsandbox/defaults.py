"""`SandboxDefaults`: what several sandboxes have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cwsandbox._client.auth import Auth  # noqa: TC001 - for those who read the fields' types at run time
from cwsandbox._validate import check_environment, check_strings
from cwsandbox.options import NetworkOptions, ResourceOptions, Secret, check_secrets, network_options

__all__ = ["DEFAULT_BASE_URL", "SandboxDefaults"]

# Made at run time, so that it is another object than an equal literal in a caller's program: identity tells a URL that
# nobody chose from the same URL chosen on purpose.
DEFAULT_BASE_URL = b"https://api.cwsandbox.com".decode()

# PID 1 of a container ignores signals it has no handler for; the trap makes a stop take effect at once.
_KEEP_ALIVE = 'trap "exit 0" TERM INT; sleep infinity & wait'


@dataclass(frozen=True)
class SandboxDefaults:
    """Values for sandboxes that do not say otherwise.

    For one sandbox an explicit scalar, network or resources replaces the default; tags are appended; environment
    variables and annotations are merged, the explicit value winning per key; secrets are appended; ids are
    replaced (an explicit empty list clears them).

    Attributes:
        container_image: Image to run; the local runner takes Python images as the host's own Python.
        command: Main command; together with `args` a keep-alive that ends at once when the sandbox is stopped.
        args: Arguments that belong to `command`.
        base_url: The gateway; the built-in value means that nobody chose one.
        request_timeout_seconds: Limit for one request, for waiting, and for a command without its own limit.
        max_lifetime_seconds: When the server ends the sandbox; None leaves it to the server.
        temp_dir: Where remote functions keep their files in the sandbox.
        tags: Labels to find sandboxes by.
        profile_ids: Profiles a sandbox may run with; None means any.
        runner_ids: Runners a sandbox may run on; None means any.
        resources: CPU, memory and GPU.
        network: Ingress and egress.
        secrets: Values from secret stores for the environment.
        environment_variables: Environment of every command; not for secrets.
        annotations: Metadata for the runner; not for secrets.
        auth: The account to be at the gateway: `AuthHeaders`, or a function that returns them, which is asked again
            when the gateway no longer accepts them. None is what the process finds. The embedded gateway needs none
            and is given none.
    """

    container_image: str = "python:3.11"
    command: str = "/bin/sh"
    args: tuple[str, ...] = ("-c", _KEEP_ALIVE)
    base_url: str = DEFAULT_BASE_URL
    request_timeout_seconds: float = 300.0
    max_lifetime_seconds: float | None = None
    temp_dir: str = "/tmp"  # noqa: S108 - a path inside the sandbox
    tags: tuple[str, ...] = ()
    profile_ids: tuple[str, ...] | None = None
    runner_ids: tuple[str, ...] | None = None
    resources: ResourceOptions | dict[str, Any] | None = None
    network: NetworkOptions | None = None
    secrets: tuple[Secret, ...] | None = None
    environment_variables: dict[str, str] = field(default_factory=dict, repr=False)
    annotations: dict[str, str] = field(default_factory=dict)
    auth: Auth | None = field(default=None, repr=False)

    @classmethod
    def of(cls, value: SandboxDefaults | Mapping[str, Any] | None) -> SandboxDefaults:
        """`value` as defaults: as it is, or read by `from_dict`.

        Raises:
            TypeError: Another type.
        """
        if isinstance(value, SandboxDefaults):
            return value
        if value is None or isinstance(value, Mapping):
            return cls.from_dict(value)
        raise TypeError(f"defaults must be SandboxDefaults or a dict of its fields, not {type(value).__name__}")

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any] | None) -> SandboxDefaults:
        """Defaults from a mapping, such as a parsed configuration file.

        None gives the plain defaults; unknown keys are ignored; a None for a field that cannot be None is its default.

        Raises:
            TypeError: No mapping, a str where a list of strings is wanted, or a network or secret of another type.
        """
        if not isinstance(mapping, Mapping | None):
            raise TypeError(f"defaults must be a dict of their fields, not {type(mapping).__name__}")
        given = dict(mapping or {})
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            value = given.get(item.name)
            if value is not None:
                values[item.name] = _FROM_MAPPING.get(item.name, _same)(value, item.name)
        return cls(**values)

    def __getstate__(self) -> dict[str, Any]:
        """Without the URL that nobody chose: where it is unpickled nobody has chosen it either."""
        return {name: value for name, value in vars(self).items() if value is not DEFAULT_BASE_URL}

    def with_overrides(self, **overrides: Any) -> SandboxDefaults:
        """A copy with some fields replaced.

        Raises:
            TypeError: An unknown field.
        """
        return dataclasses.replace(self, **overrides)

    def merge_tags(self, additional: list[str] | tuple[str, ...] | None) -> list[str]:
        """The default tags, then `additional`; duplicates are kept."""
        return [*self.tags, *(additional or ())]

    def merge_environment_variables(self, additional: Mapping[str, str] | None) -> dict[str, str]:
        """The default environment with `additional` over it."""
        return {**self.environment_variables, **(additional or {})}

    def merge_annotations(self, additional: Mapping[str, str] | None) -> dict[str, str]:
        """The default annotations with `additional` over them."""
        return {**self.annotations, **(additional or {})}


def _same(value: Any, name: str) -> Any:
    return value


def _strings(value: Any, name: str) -> tuple[str, ...]:
    return tuple(check_strings(value, name) or ())


def _network(value: Any, name: str) -> NetworkOptions | None:
    return network_options(value)


def _secrets(value: Any, name: str) -> tuple[Secret, ...]:
    return tuple(check_secrets(value))


def _resources(value: Any, name: str) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


_FROM_MAPPING: dict[str, Callable[[Any, str], Any]] = {
    "args": _strings,
    "tags": _strings,
    "profile_ids": _strings,
    "runner_ids": _strings,
    "network": _network,
    "secrets": _secrets,
    "resources": _resources,
    "environment_variables": check_environment,
    "annotations": check_environment,
}
