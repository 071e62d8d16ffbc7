"""What a gateway accepts: a specification becomes what its runner is asked for, or is refused by name.

Nothing is ever ignored in silence: a parameter that cannot be honoured here is an error, or a weaker hold that the
sandbox tells of.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

import attrs
from attrs import frozen

from cwsandbox.gateway import limits
from cwsandbox.gateway.config import DEFAULT_PROFILE
from cwsandbox.gateway.egress.proxy import proxy_environment
from cwsandbox.gateway.errors import StatusError, error, invalid
from cwsandbox.gateway.network import INTERNET
from cwsandbox.runners.errors import ImageNotFoundError, IsolationUnavailableError, RunnerError
from cwsandbox.runners.specs import BoxSpec, FileMount
from cwsandbox.wire.errors import Code, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cwsandbox.gateway.config import Configuration, Profile
    from cwsandbox.gateway.network import Network
    from cwsandbox.runners.base import Runner
    from cwsandbox.runners.specs import Capabilities
    from cwsandbox.wire.resources import Container, LimitHold, SandboxSpec

_LIFETIME_SECONDS: Final = 30 * 24 * 3600
_TAGS: Final = 64
_TAG_BYTES: Final = 256


@frozen
class Admission:
    """What a create leads to.

    Attributes:
        spec: The specification as it takes effect: what was sent, filled up with the profile's values.
        box: What to ask the runner for.
        profile_id: The profile it runs with.
        limit_holds: How each of its limits is held.
    """

    spec: SandboxSpec
    box: BoxSpec
    profile_id: str
    limit_holds: Mapping[str, LimitHold]


def admit(
    sandbox_id: str, spec: SandboxSpec, runner: Runner, network: Network, configuration: Configuration
) -> Admission:
    """Return what takes effect; of several profiles the first that allows what is asked for.

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
    if spec.s3_mount is not None:
        raise _missing("S3 mounts", "fetch the objects from inside, or give files with mounted_files or write_file")
    _check_container(container)
    _check_placement(spec, runner.runner_id, configuration)
    refusal: StatusError | None = None
    for name in spec.profile_ids or (DEFAULT_PROFILE,):
        try:
            return _admit_with(
                name, configuration.profiles[name], sandbox_id=sandbox_id, spec=spec, runner=runner, network=network
            )
        except StatusError as problem:
            refusal = refusal or problem
    assert refusal is not None
    raise refusal


def _admit_with(
    name: str, profile: Profile, *, sandbox_id: str, spec: SandboxSpec, runner: Runner, network: Network
) -> Admission:
    capabilities = runner.capabilities()
    if profile.isolation and capabilities.healthy and capabilities.isolation != profile.isolation:
        raise error(
            Code.FAILED_PRECONDITION,
            f"the profile {name!r} wants isolation {profile.isolation!r}, and this machine gives sandboxes "
            f"{str(capabilities.isolation)!r}; choose another profile, or another machine",
            Reason.NO_SUITABLE_RUNNER,
        )
    has = offered(profile, capabilities)
    if not has.egress_modes:
        raise _missing(f"an egress mode that the profile {name!r} allows", "choose another profile")
    wanted = limits.requirements(spec.containers[0], profile.limits, capabilities)
    upper = limits.limits_of(wanted, profile.limits)
    container = attrs.evolve(spec.containers[0], resources=None, resource_requirements=wanted)
    lifetime = spec.max_lifetime_seconds or profile.max_lifetime_seconds
    if 0 < profile.max_lifetime_seconds < lifetime:
        raise invalid(
            f"a lifetime of {lifetime:g} s is more than the {profile.max_lifetime_seconds:g} s of the profile {name!r}",
            Reason.RESOURCE_CEILING_EXCEEDED,
        )
    plan = network.plan(spec, has)
    environment = dict(container.environment_variables)
    if plan.egress_mode == INTERNET:
        environment = proxy_environment(environment) | environment
    box = BoxSpec(
        sandbox_id=sandbox_id,
        argv=(container.command, *container.args),
        image=container.image,
        env=environment,
        files=tuple(FileMount(file.path, file.content) for file in container.files),
        limits=upper,
        requests=limits.requests_of(wanted),
        network=plan,
    )
    _check_runner(runner, box)
    effective = attrs.evolve(spec, containers=(container,), max_lifetime_seconds=lifetime)
    return Admission(effective, box, name, limits.holds(upper, capabilities, strict=profile.strict_limits))


def _check_runner(runner: Runner, box: BoxSpec) -> None:
    try:
        runner.check(box)
    except ImageNotFoundError as problem:
        raise error(Code.UNIMPLEMENTED, str(problem), Reason.NOT_IMPLEMENTED) from problem
    except IsolationUnavailableError as problem:
        raise error(Code.FAILED_PRECONDITION, str(problem), Reason.NO_SUITABLE_RUNNER) from problem
    except RunnerError as problem:
        raise error(Code.FAILED_PRECONDITION, str(problem), Reason.PLACEMENT_REJECTED) from problem


def _check_placement(spec: SandboxSpec, runner_id: str, configuration: Configuration) -> None:
    """Every id must be known: one that is not is a mistake, whatever the others are."""
    for kind, ids, known in (
        ("runner", spec.runner_ids, (runner_id,)),
        ("profile", spec.profile_ids, tuple(configuration.profiles)),
    ):
        for name in ids:
            if name not in known:
                raise error(
                    Code.FAILED_PRECONDITION,
                    f"there is no {kind} {name!r} here; this gateway has {', '.join(known)}",
                    Reason.NO_SUITABLE_RUNNER,
                    {f"{kind}Id": name},
                )


def offered(profile: Profile, capabilities: Capabilities) -> Capabilities:
    """Return the runner's capabilities as far as the profile allows them, its modes in the profile's order."""

    def both(there: tuple[str, ...], allowed: tuple[str, ...] | None) -> tuple[str, ...]:
        return there if allowed is None else tuple(mode for mode in allowed if mode in there)

    return attrs.evolve(
        capabilities,
        egress_modes=both(capabilities.egress_modes, profile.egress_modes),
        ingress_modes=both(capabilities.ingress_modes, profile.service_exposure_modes),
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
            f"this gateway has no secret stores, so not {container.secret_stores[0].store_name!r} either; give the "
            "value to the commands that need it, with exec(env=...)",
            Reason.SECRET_STORE_NOT_PROVISIONED,
        )
    if container.working_dir:
        raise _missing("a working directory for the main command")


def _missing(what: str, detail: str = "") -> StatusError:
    tail = f": {detail}" if detail else ""
    return error(Code.UNIMPLEMENTED, f"this gateway's runner does not offer {what}{tail}", Reason.NOT_IMPLEMENTED)
