"""What a sandbox may use: what was asked for, within its profile and its machine, and how that is held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from cwsandbox.gateway.errors import StatusError, error, invalid
from cwsandbox.runners.specs import Limits, Requests
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.quantity import parse_quantity
from cwsandbox.wire.resources import LimitHold, ResourceRequirements, Resources

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cwsandbox.gateway.config import ProfileLimits
    from cwsandbox.runners.specs import Capabilities
    from cwsandbox.wire.resources import Container, SandboxSpec

_SCALES: Final = {"cpu": 1000, "memory": 1}
"""What is counted in, for one unit of a quantity: thousandths of a processor, and bytes."""
_LEAST: Final = {"cpu": 10, "memory": 16 * 1024 * 1024}
"""A thousandth of a second per period is the least quota that the kernel takes (CONFIG_CFS_BANDWIDTH), 10 of 1000; with
less memory the box's own agent and a small program do not fit."""


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
    filled = {name: getattr(limits, name) or getattr(bounds, name) for name in _SCALES}
    machine = {"cpu": capabilities.cpu_millicores, "memory": capabilities.memory_bytes}
    for name, limit in filled.items():
        _check(name, getattr(requests, name), limit, getattr(bounds, name), machine[name])
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
    """Return how each limit is held: what was asked for, and what the runner limits unasked.

    Raises:
        StatusError: UNIMPLEMENTED: `strict`, and one is not held for the sandbox as a whole.
    """
    found = {name: _hold(name, capabilities) for name in (*_asked(limits), *sorted(capabilities.default_limits))}
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


def _check(name: str, request: str, limit: str, bound: str, machine: int) -> None:
    """Check one amount; a profile's bound above what the machine has holds nobody back and is no mistake."""
    amounts = {text: _amount(name, text) for text in (request, limit, bound) if text}
    if limit and amounts[limit] < _LEAST[name]:
        raise invalid(f"a {name} limit of {limit!r} is less than the least, {_shown(name, _LEAST[name])}")
    if request and limit and amounts[request] > amounts[limit]:
        raise invalid(f"the {name} request {request!r} is above the limit {limit!r}")
    if bound and amounts[limit] > amounts[bound]:
        raise invalid(
            f"{name} {limit!r} is more than the {bound!r} of the sandbox's profile; ask for less, or for another "
            "profile",
            Reason.RESOURCE_CEILING_EXCEEDED,
        )
    for text in (request, limit if limit != bound else ""):
        if text and amounts[text] > machine:
            raise invalid(
                f"{name} {text!r} is more than this machine has ({_shown(name, machine)}); ask for less",
                Reason.RESOURCE_CEILING_EXCEEDED,
            )


def _shown(name: str, amount: int) -> str:
    return f"{amount}m" if name == "cpu" else f"{amount // 1024**2}Mi"


def _amount(name: str, text: str) -> int:
    try:
        amount = int(parse_quantity(text) * _SCALES[name])
    except ValueError as problem:
        raise invalid(f"{name}: {problem}") from None
    if amount <= 0:
        raise invalid(f"{name} must be more than nothing")
    return amount


def _bytes(text: str) -> int | None:
    return int(parse_quantity(text)) if text else None


def _millicores(text: str) -> int | None:
    return int(parse_quantity(text) * _SCALES["cpu"]) if text else None


def _or_none(amounts: Resources) -> Resources | None:
    return amounts if amounts != Resources() else None


def _missing(what: str, detail: str) -> StatusError:
    return error(Code.UNIMPLEMENTED, f"this gateway does not offer {what}: {detail}", Reason.NOT_IMPLEMENTED)
