"""How a gateway connects its sandboxes: which modes it has, what a specification asks for, and who serves it."""

from __future__ import annotations

import ipaddress
import logging
from typing import TYPE_CHECKING, Final

import anyio
from attrs import field, frozen

from cwsandbox.gateway.egress import proxy
from cwsandbox.gateway.egress.dialing import Dialer
from cwsandbox.gateway.egress.policy import Policy
from cwsandbox.gateway.errors import StatusError, error, invalid
from cwsandbox.gateway.ingress import Door, close_doors, open_doors, serve_doors
from cwsandbox.runners.errors import RunnerError
from cwsandbox.runners.specs import BoxNetwork, Port
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.resources import ExposedPort, ServiceProtocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from cwsandbox.runners.base import Box
    from cwsandbox.runners.specs import Capabilities
    from cwsandbox.wire.resources import SandboxSpec

_log = logging.getLogger(__name__)

PUBLIC: Final = "public"
INTERNAL: Final = "internal"
INTERNET: Final = "internet"
_LOOPBACK: Final = "127.0.0.1"
_PORTS: Final = 32
"""The most a sandbox may expose: each takes a listener."""


@frozen
class Network:
    """The network side of one gateway.

    Attributes:
        public_host: The numeric address of this machine where ports exposed as "public" are listened on; "" does not
            offer that mode. "internal" always means this machine's loopback.
        public_name: What clients are told to connect to instead of `public_host`.
        policy: What sandboxes with the egress mode "internet" may reach.

    Raises:
        ValueError: `public_host` is not a numeric address, or it is 0.0.0.0 or :: without a `public_name`.
    """

    public_host: str = _LOOPBACK
    public_name: str = ""
    policy: Policy = field(factory=Policy)

    def __attrs_post_init__(self) -> None:
        if self.public_host and ipaddress.ip_address(self.public_host).is_unspecified and not self.public_name:
            raise ValueError(f"clients cannot connect to {self.public_host}: say by which name they reach this machine")

    def ingress_modes(self, capabilities: Capabilities) -> tuple[str, ...]:
        """The ingress modes that sandboxes of this gateway can have."""
        return tuple(mode for mode in capabilities.ingress_modes if mode != PUBLIC or self.public_host)

    def plan(self, spec: SandboxSpec, capabilities: Capabilities) -> BoxNetwork:
        """Return what to ask the runner for.

        Raises:
            StatusError: INVALID_ARGUMENT for what contradicts itself, UNIMPLEMENTED for what is not offered here.
        """
        options = spec.network
        modes = capabilities.egress_modes
        egress = (options.egress_mode if options is not None else "") or modes[0]
        if egress not in modes:
            raise _missing(f"the egress mode {egress!r}", modes)
        exposed = _exposed(spec)
        ingress = options.ingress_mode if options is not None else ""
        ingress = ingress or (INTERNAL if exposed else "")
        offered = self.ingress_modes(capabilities)
        if exposed and not offered:
            raise _missing("exposing ports", ())
        if ingress and ingress not in offered:
            raise _missing(f"the ingress mode {ingress!r}", offered)
        if exposed and egress in capabilities.modes_without_loopback:
            raise error(
                Code.UNIMPLEMENTED,
                f"with the egress mode {egress!r} a sandbox has no sockets here, so its ports cannot be exposed; "
                f"leave the ports out, or choose another egress mode of {', '.join(modes)}",
                Reason.NOT_IMPLEMENTED,
            )
        listen = (proxy.PORT,) if egress == INTERNET else ()
        if any(port.number in listen for port in exposed):
            raise invalid(f"port {proxy.PORT} is the proxy's in a sandbox with the egress mode {egress!r}")
        return BoxNetwork(egress_mode=egress, ingress_mode=ingress, exposed=exposed, listen=listen)

    def connect(self, plan: BoxNetwork) -> SandboxNetwork:
        """Open the way to a sandbox that is about to be made.

        Raises:
            StatusError: RESOURCE_EXHAUSTED.
        """
        return self._open(plan, ())

    def reconnect(self, ingress_mode: str, egress_mode: str, endpoints: Sequence[ExposedPort]) -> SandboxNetwork:
        """Open the way to a sandbox that an earlier gateway left, where its clients know it if that is possible.

        Raises:
            StatusError: RESOURCE_EXHAUSTED.
        """
        exposed = tuple(Port(port.container_port, port.name) for port in endpoints)
        return self._open(BoxNetwork(egress_mode=egress_mode, ingress_mode=ingress_mode, exposed=exposed), endpoints)

    def _open(self, plan: BoxNetwork, earlier: Sequence[ExposedPort]) -> SandboxNetwork:
        host = self.public_host if plan.ingress_mode == PUBLIC else _LOOPBACK
        name = (self.public_name if plan.ingress_mode == PUBLIC else "") or host
        known = {port.container_port: int(port.address.rpartition(":")[2]) for port in earlier}
        doors = open_doors(plan.exposed, host, known)
        dialer = Dialer(self.policy) if plan.egress_mode == INTERNET else None
        return SandboxNetwork(doors, f"[{name}]" if ":" in name else name, dialer)


class SandboxNetwork:
    """The connections of one sandbox."""

    def __init__(self, doors: tuple[Door, ...] = (), name: str = "", dialer: Dialer | None = None) -> None:
        self._doors = doors
        self._dialer = dialer
        self._scope = anyio.CancelScope()
        self.endpoints: tuple[ExposedPort, ...] = tuple(
            ExposedPort(
                container_port=door.port.number, name=door.port.name, protocol="TCP", address=f"{name}:{door.number}"
            )
            for door in doors
        )

    async def serve(self, box: Box, in_use: Callable[[], AbstractContextManager[None]]) -> None:
        """Carry the sandbox's connections until `close`, or until its box has ended."""
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve_doors, self._doors, box, in_use)
                if self._dialer is not None:
                    tasks.start_soon(self._serve_egress, box, self._dialer)

    async def _serve_egress(self, box: Box, dialer: Dialer) -> None:
        try:
            await proxy.serve_egress(box, dialer)
        except (RunnerError, OSError) as problem:
            _log.warning("sandbox %s has no way out: %s", box.sandbox_id, problem)

    def close(self) -> None:
        """Stop listening, and cut what is connected."""
        close_doors(self._doors)
        self._scope.cancel()


def _exposed(spec: SandboxSpec) -> tuple[Port, ...]:
    """Return the ports to expose: those listed, or else all that were declared."""
    for service in spec.services:
        if service.protocol not in {ServiceProtocol.UNSPECIFIED, ServiceProtocol.TCP}:
            raise _missing(f"the protocol {service.protocol.name} (port {service.port})", ("TCP",))
    names = {service.port: service.name for service in spec.services}
    if len(names) < len(spec.services):
        raise invalid("spec.services has a port twice")
    listed = spec.network.exposed_ports if spec.network is not None else ()
    if any(not 1 <= number <= 65535 for number in listed):
        raise invalid("spec.network.exposedPorts must be from 1 to 65535")
    exposed = tuple(Port(number, names.get(number, "")) for number in dict.fromkeys(listed or names))
    if len(exposed) > _PORTS:
        raise invalid(f"a sandbox can expose {_PORTS} ports at most")
    return exposed


def _missing(what: str, offered: Sequence[str]) -> StatusError:
    there = f"; it has {', '.join(offered)}" if offered else ""
    return error(Code.UNIMPLEMENTED, f"this gateway's runner does not offer {what}{there}", Reason.NOT_IMPLEMENTED)
