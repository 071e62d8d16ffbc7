"""What a sandbox may use: what was asked for, within its profile and its machine, and how that is held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from cwsandbox.gateway.errors import StatusError, error, invalid
from cwsandbox.runners.base import Limits, Requests
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.quantity import parse_quantity
from cwsandbox.wire.resources import LimitHold, ResourceRequirements, Resources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cwsandbox.gateway.config import ProfileLimits
    from cwsandbox.runners.base import Capabilities
    from cwsandbox.wire.resources import Container, SandboxSpec

_AMOUNTS: Final = ("cpu", "memory")
_LEAST_MEMORY: Final = 16 * 1024 * 1024
"""What the box's own agent and a small program need; with less a box dies before it has begun."""


def requirements(
    container: Container, bounds: ProfileLimits, capabilities: Capabilities
) -> ResourceRequirements | None:
    """Return the requirements that take effect: those of the container, filled up with the profile's.

    Raises:
        StatusError: INVALID_ARGUMENT for what cannot be meant, or is more than the profile or the machine has;
            UNIMPLEMENTED for GPUs.
    """
    if container.resources is not None and container.resource_requirements is not None:
        raise invalid("resources and resourceRequirements exclude each other")
    both = container.resources
    asked = container.resource_requirements or ResourceRequirements(requests=both, limits=both)
    requests, limits = asked.requests or Resources(), asked.limits or Resources()
    if requests.gpu is not None or limits.gpu is not None:
        raise _missing("GPUs", "leave `gpu` out, or name a gateway that has some")
    filled = {name: getattr(limits, name) or getattr(bounds, name) for name in _AMOUNTS}
    for name in _AMOUNTS:
        _check_amount(name, getattr(requests, name), filled[name], getattr(bounds, name), capabilities)
    effective = ResourceRequirements(requests=_or_none(requests), limits=_or_none(attrs.evolve(limits, **filled)))
    return effective if effective.requests or effective.limits else None


def limits_of(wanted: ResourceRequirements | None, bounds: ProfileLimits) -> Limits:
    """Return the upper bounds for the runner."""
    limits = (wanted.limits if wanted else None) or Resources()
    return Limits(_bytes(limits.memory), _millicores(limits.cpu), bounds.processes or None)


def requests_of(wanted: ResourceRequirements | None) -> Requests:
    """Return what the runner is to keep for the sandbox."""
    requests = (wanted.requests if wanted else None) or Resources()
    return Requests(_bytes(requests.memory), _millicores(requests.cpu))


def holds(limits: Limits, capabilities: Capabilities, *, strict: bool) -> dict[str, LimitHold]:
    """Return how each limit is held: what was asked for, and the number of processes, which is always limited.

    Raises:
        StatusError: UNIMPLEMENTED: `strict`, and one is not held for the sandbox as a whole.
    """
    found = {name: _hold(name, capabilities) for name in (*_asked(limits), "processes")}
    for name in _asked(limits) if strict else ():
        if found[name] is not LimitHold.SANDBOX:
            raise _missing(
                f"{name} limits for a sandbox as a whole",
                "its profile insists on them; run the gateway where it may make cgroups, or leave the limit out",
            )
    return found


def reserved(specs: Iterator[SandboxSpec]) -> Requests:
    """Return what all these sandboxes together have requested."""
    each = [requests_of(spec.containers[0].resource_requirements) for spec in specs]
    return Requests(
        sum(requests.memory_bytes or 0 for requests in each), sum(requests.cpu_millicores or 0 for requests in each)
    )


def _asked(limits: Limits) -> Iterator[str]:
    asked: Mapping[str, int | None] = {
        "cpu": limits.cpu_millicores,
        "memory": limits.memory_bytes,
        "processes": limits.processes,
    }
    return (name for name, value in asked.items() if value is not None)


def _hold(name: str, capabilities: Capabilities) -> LimitHold:
    if name in capabilities.enforced_limits:
        return LimitHold.SANDBOX
    return LimitHold.PROCESS if name in capabilities.per_process_limits else LimitHold.NONE


def _check_amount(name: str, request: str, limit: str, bound: str, capabilities: Capabilities) -> None:
    scale = _SCALES[name]
    amounts = {text: _amount(text, scale, name) for text in (request, limit, bound) if text}
    if request and limit and amounts[request] > amounts[limit]:
        raise invalid(f"the {name} request {request!r} is above the limit {limit!r}")
    if bound and limit and amounts[limit] > amounts[bound]:
        raise invalid(
            f"{name} {limit!r} is more than the {bound!r} of the sandbox's profile; ask for less, or for another "
            "profile",
            Reason.RESOURCE_CEILING_EXCEEDED,
        )
    most = {"cpu": capabilities.cpu_millicores, "memory": capabilities.memory_bytes}[name]
    if request and amounts[request] > most:
        raise _too_large(name, request, most, capabilities)
    if limit and limit != bound and amounts[limit] > most:
        raise _too_large(name, limit, most, capabilities)


def _too_large(name: str, text: str, most: int, capabilities: Capabilities) -> StatusError:
    has = f"{most}m" if name == "cpu" else f"{most // 1024**2}Mi"
    return invalid(
        f"{name} {text!r} is more than this machine has ({has}); ask for less", Reason.RESOURCE_CEILING_EXCEEDED
    )


_SCALES: Final = {"cpu": 1000, "memory": 1}


def _amount(text: str, scale: int, name: str) -> int:
    try:
        amount = int(parse_quantity(text) * scale)
    except ValueError as problem:
        raise invalid(f"{name}: {problem}") from None
    if amount <= 0:
        raise invalid(f"{name} must be more than nothing")
    if name == "memory" and amount < _LEAST_MEMORY:
        raise invalid(f"memory {text!r} is less than the {_LEAST_MEMORY // 1024**2}Mi that a sandbox needs")
    return amount


def _bytes(text: str) -> int | None:
    return int(parse_quantity(text)) if text else None


def _millicores(text: str) -> int | None:
    return int(parse_quantity(text) * 1000) if text else None


def _or_none(amounts: Resources) -> Resources | None:
    return amounts if amounts != Resources() else None


def _missing(what: str, detail: str) -> StatusError:
    return error(Code.UNIMPLEMENTED, f"this gateway does not offer {what}: {detail}", Reason.NOT_IMPLEMENTED)
