"""What is known of a sandbox: the gateway's last word, in the types of the public properties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cwsandbox._lifecycle import Phase

if TYPE_CHECKING:
    from datetime import datetime

    from cwsandbox._lifecycle import Lifecycle
    from cwsandbox._request import SandboxRequest
    from cwsandbox.wire.resources import ExposedPort, ResourceRequirements, Resources, SandboxSpec, SandboxStatus

__all__ = ["Facts"]


class Facts:
    """A reading of the record in a `Lifecycle`. No I/O; None is what is not known, or not the case.

    Args:
        life: Of the sandbox.
        request: What it was made with, if it was made here: that is known before the gateway says so.
    """

    def __init__(self, life: Lifecycle, request: SandboxRequest | None) -> None:
        self._life = life
        self._request = request

    @property
    def _spec(self) -> SandboxSpec | None:
        record = self._life.record
        if record is not None:
            return record.spec
        return None if self._request is None else self._request.to_resource().spec

    @property
    def _status(self) -> SandboxStatus | None:
        record = self._life.record
        return None if record is None else record.status

    @property
    def _requirements(self) -> ResourceRequirements | None:
        return None if (status := self._status) is None else status.effective_resource_requirements

    @property
    def _ports(self) -> tuple[ExposedPort, ...]:
        return () if (status := self._status) is None else status.exposed_ports

    def text(self, name: str) -> str | None:
        """A field of the status that is text; None if it is empty."""
        return getattr(self._status, name, None) or None

    @property
    def tags(self) -> tuple[str, ...]:
        """Labels, those of the defaults first."""
        return () if (spec := self._spec) is None else tuple(spec.tags)

    @property
    def annotations(self) -> dict[str, str]:
        """Metadata."""
        return {} if (spec := self._spec) is None else dict(spec.annotations)

    @property
    def started_at(self) -> datetime | None:
        """When it began to run."""
        if self._life.phase is Phase.STARTING or (status := self._status) is None:
            return None
        return status.start_time

    @property
    def exposed_ports(self) -> tuple[tuple[int, str], ...] | None:
        """(port, name) of each."""
        return tuple((port.container_port, port.name) for port in self._ports) or None

    @property
    def service_urls(self) -> tuple[tuple[int, str, str], ...] | None:
        """(port, name, "host:port") of each."""
        return tuple((port.container_port, port.name, port.address) for port in self._ports) or None

    @property
    def limit_holds(self) -> dict[str, str] | None:
        """How each limit is held."""
        return None if (status := self._status) is None else {k: v.value for k, v in status.limit_holds.items()} or None

    @property
    def limits(self) -> dict[str, str] | None:
        """CPU and memory that it may use."""
        return None if (found := self._requirements) is None else _amounts(found.limits)

    @property
    def requests(self) -> dict[str, str] | None:
        """CPU and memory that it is to have."""
        return None if (found := self._requirements) is None else _amounts(found.requests)

    @property
    def gpu(self) -> dict[str, Any] | None:
        """What it has of `count`, `type` and `memory_gb`."""
        found = self._requirements
        gpu = found.requests.gpu if found is not None and found.requests is not None else None
        if gpu is None:
            return None
        fields = {"count": gpu.count, "type": gpu.type, "memory_gb": gpu.memory_gb}
        return {key: value for key, value in fields.items() if value}


def _amounts(side: Resources | None) -> dict[str, str] | None:
    if side is None:
        return None
    return {key: value for key, value in (("cpu", side.cpu), ("memory", side.memory)) if value} or None
