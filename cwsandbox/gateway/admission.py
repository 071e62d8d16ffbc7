"""What a gateway accepts: a specification becomes what its runner is asked for, or is refused by name.

Nothing is ever ignored in silence: a parameter that cannot be honoured here is an error, not a weaker sandbox.
"""

from __future__ import annotations

import posixpath
import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final

from cwsandbox.gateway.errors import StatusError, error, invalid
from cwsandbox.runners.base import BoxSpec, FileMount, Limits
from cwsandbox.wire.errors import Code, Reason

if TYPE_CHECKING:
    from cwsandbox.gateway.network import Network
    from cwsandbox.runners.base import Capabilities, Runner
    from cwsandbox.wire.resources import Container, ResourceRequirements, Resources, SandboxSpec

_LIFETIME_SECONDS: Final = 30 * 24 * 3600
_TAGS: Final = 64
_TAG_BYTES: Final = 256

_QUANTITY: Final = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,9})?(?:[eE][+-]?\d{1,2})?)(?P<unit>[KMGTPE]i|[mkMGTPE]|)")
_UNITS: Final = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}


def admit(sandbox_id: str, spec: SandboxSpec, runner: Runner, network: Network) -> BoxSpec:
    """Return what to ask the runner for.

    Raises:
        StatusError: INVALID_ARGUMENT for what is wrong anywhere, UNIMPLEMENTED for what this runner cannot do,
            FAILED_PRECONDITION for a placement it does not match.
    """
    if len(spec.containers) != 1:
        raise invalid("spec.containers must have exactly one entry")
    container = spec.containers[0]
    if spec.primary_container not in {"", container.name}:
        raise invalid("spec.primaryContainer names no container")
    if spec.max_lifetime_seconds > _LIFETIME_SECONDS:
        raise invalid(f"spec.maxLifetimeSeconds must be at most {_LIFETIME_SECONDS} (30 days)")
    if len(spec.tags) > _TAGS or any(len(tag.encode()) > _TAG_BYTES for tag in spec.tags):
        raise invalid(f"spec.tags may have {_TAGS} tags of {_TAG_BYTES} bytes each")
    _check_placement(spec, runner.runner_id)
    if spec.s3_mount is not None:
        raise _missing("S3 mounts")
    _check_container(container)
    return BoxSpec(
        sandbox_id=sandbox_id,
        argv=(container.command, *container.args),
        image=container.image,
        env=dict(container.environment_variables),
        files=tuple(FileMount(file.path, file.content) for file in container.files),
        limits=_limits(container, runner.capabilities()),
        network=network.plan(spec, runner.capabilities()),
    )


def _check_placement(spec: SandboxSpec, runner_id: str) -> None:
    if spec.runner_ids and runner_id not in spec.runner_ids:
        raise error(
            Code.FAILED_PRECONDITION,
            f"none of the runners {', '.join(spec.runner_ids)} is here; this gateway has {runner_id}",
            Reason.NO_SUITABLE_RUNNER,
        )
    if spec.profile_ids:
        raise error(
            Code.FAILED_PRECONDITION,
            f"none of the profiles {', '.join(spec.profile_ids)} is here; this gateway has no profiles",
            Reason.NO_SUITABLE_RUNNER,
        )


def _check_container(container: Container) -> None:
    where = "spec.containers[0]"
    if not container.command:
        raise invalid(f"{where}.command is required")
    if any("\0" in text for text in (container.command, *container.args)):
        raise invalid(f"{where}.command and args must not contain NUL bytes")
    for name, value in container.environment_variables.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise invalid(f"{where}.environmentVariables must have names without '=' and no NUL bytes")
    paths = [file.path for file in container.files]
    for path in paths:
        if not path.startswith("/") or "\0" in path or posixpath.normpath(path) in {"/", "//"}:
            raise invalid(f"{where}.files must have absolute paths, not {path!r}")
    if len(set(paths)) < len(paths):
        raise invalid(f"{where}.files has a path twice")
    if container.secret_stores:
        raise error(
            Code.FAILED_PRECONDITION,
            f"this gateway has no secret stores, so not {container.secret_stores[0].store_name!r} either",
            Reason.SECRET_STORE_NOT_PROVISIONED,
        )
    if container.working_dir:
        raise _missing("a working directory for the main command")


def _limits(container: Container, capabilities: Capabilities) -> Limits:
    """Return the upper bounds that the box gets; what was requested only has to fit the machine."""
    if container.resources is not None and container.resource_requirements is not None:
        raise invalid("resources and resourceRequirements exclude each other")
    requirements = container.resource_requirements
    sides = [container.resources, *_sides(requirements)]
    if any(side is not None and side.gpu is not None for side in sides):
        raise _missing("GPUs")
    memory = cpu = None
    for side in sides:
        if side is None:
            continue
        # Limits come last and win over requests.
        memory = _amount(side.memory, 1, "memory", capabilities.memory_bytes, capabilities) or memory
        cpu = _amount(side.cpu, 1000, "cpu", capabilities.cpu_millicores, capabilities) or cpu
    return Limits(memory_bytes=memory, cpu_millicores=cpu)


def _sides(requirements: ResourceRequirements | None) -> tuple[Resources | None, ...]:
    return () if requirements is None else (requirements.requests, requirements.limits)


def _amount(text: str, scale: int, name: str, most: int, capabilities: Capabilities) -> int | None:
    if not text:
        return None
    if name not in capabilities.enforced_limits:
        raise _missing(f"{name} limits", "the kernel cannot enforce them for a sandbox here")
    amount = int(_quantity(text, name) * scale)
    if amount <= 0:
        raise invalid(f"{name} must be more than nothing")
    if amount > most:
        raise invalid(f"{name} {text!r} is more than this machine has", Reason.RESOURCE_CEILING_EXCEEDED)
    return amount


def _quantity(text: str, name: str) -> Decimal:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or (match["unit"] and "e" in match["number"].lower()):
        raise invalid(f"{name} {text!r} is not a quantity such as 500m or 1Gi")
    try:
        return Decimal(match["number"]) * _UNITS[match["unit"]]
    except InvalidOperation:
        raise invalid(f"{name} {text!r} is out of range") from None


def _missing(what: str, detail: str = "") -> StatusError:
    tail = f": {detail}" if detail else ""
    return error(Code.UNIMPLEMENTED, f"this gateway's runner does not offer {what}{tail}", Reason.NOT_IMPLEMENTED)
