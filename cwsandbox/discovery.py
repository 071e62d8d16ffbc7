"""What sandboxes can run on: runners and profiles.

`list_runners`, `get_runner`, `list_profiles` and `get_profile` block and return plain values. Each has a twin for async
code, on asyncio and trio: the same name with `_async`, the same arguments, awaited. The plain ones work on an event
loop's thread too (a notebook's), but hold that loop up; the twins never do, and cancelling them drops the request.

Every call takes 30 seconds at the most, all its pages together. It goes to the gateway that `CWSANDBOX_BASE_URL` names,
else to the embedded one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime  # noqa: TC003 - for get_type_hints
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from cwsandbox._core import SandboxCore
from cwsandbox._runtime.portal import run_blocking
from cwsandbox.defaults import SandboxDefaults
from cwsandbox.exceptions import DiscoveryError, SandboxError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from cwsandbox._client.discovery import DiscoveryApi
    from cwsandbox.wire.discovery import AvailableRunner, ProfileSummary

__all__ = [
    "EgressMode",
    "Profile",
    "Runner",
    "RunnerResources",
    "ServiceExposureMode",
    "format_bytes",
    "format_cpu",
    "get_profile",
    "get_profile_async",
    "get_runner",
    "get_runner_async",
    "list_profiles",
    "list_profiles_async",
    "list_runners",
    "list_runners_async",
]

T = TypeVar("T")

_BUDGET_SECONDS = 30.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class _Listed:
    """Lists that were given for tuples become tuples, so that what was found cannot be changed by accident."""

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, list):
                object.__setattr__(self, item.name, tuple(value))


@dataclass(frozen=True, kw_only=True)
class RunnerResources:
    """What a runner has left.

    Attributes:
        available_cpu_millicores: Processor time that no sandbox has requested, in thousandths of a processor.
        available_memory_bytes: Memory that no sandbox has requested.
        available_gpu_count: GPUs that no sandbox has.
        running_sandboxes: Sandboxes that run on it, of all users.
    """

    available_cpu_millicores: int
    available_memory_bytes: int
    available_gpu_count: int
    running_sandboxes: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Runner(_Listed):
    """A machine, or a cluster, that sandboxes run on.

    Attributes:
        runner_id: Its name, for `runner_ids=`.
        runner_group_id: The group it belongs to; "" if it is in none.
        tags: Labels that its operator gave it.
        healthy: Whether sandboxes can be made on it.
        profile_names: The profiles it has, for `profile_ids=`.
        connected_at: Since when it is there (aware, UTC).
        max_cpu_millicores: All its processors, in thousandths.
        max_memory_bytes: All its memory.
        max_gpu_count: All its GPUs.
        supported_gpu_types: Their types.
        supported_architectures: Such as "amd64".
        supports_privileged: Whether it runs privileged sandboxes.
        available_storage_classes: Storage classes for volumes.
        resources: What it has left; None unless that was asked for.
        organization_id: Whose it is; "" where gateways have no organizations.
        is_shared: Whether other organizations use it too.
        enforced_limits: Of "cpu", "memory", "processes": what a sandbox as a whole is held to.
        per_process_limits: Of the others: what each process of a sandbox is held to by itself.
    """

    runner_id: str
    runner_group_id: str
    tags: tuple[str, ...]
    healthy: bool
    profile_names: tuple[str, ...]
    connected_at: datetime | None
    max_cpu_millicores: int
    max_memory_bytes: int
    max_gpu_count: int
    supported_gpu_types: tuple[str, ...]
    supported_architectures: tuple[str, ...]
    supports_privileged: bool
    available_storage_classes: tuple[str, ...]
    resources: RunnerResources | None = None
    organization_id: str = ""
    is_shared: bool = False
    enforced_limits: tuple[str, ...] = ()
    per_process_limits: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"<Runner {self.runner_id!r} {'healthy' if self.healthy else 'unhealthy'}, "
            f"{format_cpu(self.max_cpu_millicores)}, {format_bytes(self.max_memory_bytes)}, {self.max_gpu_count} GPUs, "
            f"profiles: {', '.join(self.profile_names) or 'none'}>"
        )


@dataclass(frozen=True, kw_only=True)
class ServiceExposureMode:
    """A way to reach the ports of a sandbox, for `NetworkOptions.ingress_mode`."""

    name: str


@dataclass(frozen=True, kw_only=True)
class EgressMode:
    """What a sandbox can reach, for `NetworkOptions.egress_mode`."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Profile(_Listed):
    """What sandboxes may be that are created with it.

    Attributes:
        profile_name: Its name, for `profile_ids=`.
        runner_id: The runner that has it so.
        supported_gpu_types: GPU types to choose from.
        supported_architectures: Such as "amd64".
        service_exposure_modes: Ways to reach a sandbox's ports.
        egress_modes: What a sandbox can reach.
    """

    profile_name: str
    runner_id: str
    supported_gpu_types: tuple[str, ...]
    supported_architectures: tuple[str, ...]
    service_exposure_modes: tuple[ServiceExposureMode, ...]
    egress_modes: tuple[EgressMode, ...]


def list_runners(
    *,
    runner_group_id: str | None = None,
    profile_name: str | None = None,
    gpu_type: str | None = None,
    architecture: str | None = None,
    include_resources: bool = False,
    min_available_cpu_millicores: int | None = None,
    min_available_memory_bytes: int | None = None,
    min_available_gpu_count: int | None = None,
    service_exposure_mode: str | None = None,
    egress_mode: str | None = None,
    healthy_only: bool = False,
) -> list[Runner]:
    """The runners that match all that is given. Blocks; `list_runners_async` is for async code.

    Args:
        runner_group_id: In this group.
        profile_name: With this profile.
        gpu_type: With GPUs of this type.
        architecture: Of this architecture, such as "amd64".
        include_resources: Tell what each has left, in `Runner.resources`.
        min_available_cpu_millicores: With so much processor time left; implies `include_resources`, as do the next two.
        min_available_memory_bytes: With so much memory left.
        min_available_gpu_count: With so many GPUs left.
        service_exposure_mode: With a profile that has this mode.
        egress_mode: With a profile that has this mode; with both modes given, one profile must have both.
        healthy_only: On which sandboxes can be made.

    Raises:
        CWSandboxAuthenticationError: The credentials are not accepted.
        DiscoveryError: The gateway refused, was out of reach, or took more than 30 seconds.
        CWSandboxError: Its list has no end.
    """
    return run_blocking(partial(list_runners_async, **locals()), name="list runners")


async def list_runners_async(
    *,
    runner_group_id: str | None = None,
    profile_name: str | None = None,
    gpu_type: str | None = None,
    architecture: str | None = None,
    include_resources: bool = False,
    min_available_cpu_millicores: int | None = None,
    min_available_memory_bytes: int | None = None,
    min_available_gpu_count: int | None = None,
    service_exposure_mode: str | None = None,
    egress_mode: str | None = None,
    healthy_only: bool = False,
) -> list[Runner]:
    """`list_runners` for asyncio and trio; the same arguments and errors."""
    _check_texts(service_exposure_mode=service_exposure_mode, egress_mode=egress_mode)
    filters = {
        "runner_group_id": runner_group_id,
        "profile_name": profile_name,
        "gpu_type": gpu_type,
        "architecture": architecture,
        "healthy_only": "true" if healthy_only else None,
    }
    _check_texts(**filters)
    least = {
        "available_cpu_millicores": min_available_cpu_millicores,
        "available_memory_bytes": min_available_memory_bytes,
        "available_gpu_count": min_available_gpu_count,
    }
    _check_amounts(**least)
    full = include_resources or any(amount is not None for amount in least.values())

    async def discover(api: DiscoveryApi) -> list[Runner]:
        runners = [_runner(each) for each in await api.runners(filters, full=full)]
        runners = [runner for runner in runners if _has_left(runner, least)]
        if service_exposure_mode is None and egress_mode is None:
            return runners
        profiles = _with_modes(map(_profile, await api.profiles({})), service_exposure_mode, egress_mode)
        return [runner for runner in runners if any(_has(runner, profile) for profile in profiles)]

    return await _discover(discover, "list runners")


def get_runner(runner_id: str, *, organization_id: str | None = None) -> Runner:
    """One runner, with what it has left. Blocks; `get_runner_async` is for async code.

    Args:
        runner_id: Its id.
        organization_id: Whose it is; None is the caller's own organization, or a gateway without any.

    Raises:
        ValueError: The id is blank.
        RunnerNotFoundError: There is no such runner.
        CWSandboxAuthenticationError: The credentials are not accepted.
        DiscoveryError: As in `list_runners`.
    """
    return run_blocking(partial(get_runner_async, **locals()), name="get runner")


async def get_runner_async(runner_id: str, *, organization_id: str | None = None) -> Runner:
    """`get_runner` for asyncio and trio; the same arguments and errors."""
    _check_name(runner_id, "runner_id")
    _check_texts(organization_id=organization_id)

    async def discover(api: DiscoveryApi) -> Runner:
        return _runner(await api.runner(runner_id, organization_id))

    return await _discover(discover, "get runner")


def list_profiles(
    *,
    gpu_type: str | None = None,
    architecture: str | None = None,
    runner_id: str | None = None,
    service_exposure_mode: str | None = None,
    egress_mode: str | None = None,
) -> list[Profile]:
    """The profiles that match all that is given. Blocks; `list_profiles_async` is for async code.

    Args:
        gpu_type: With GPUs of this type.
        architecture: Of this architecture, such as "amd64".
        runner_id: Of this runner.
        service_exposure_mode: That have this mode.
        egress_mode: That have this mode.

    Raises:
        CWSandboxAuthenticationError: The credentials are not accepted.
        DiscoveryError: As in `list_runners`.
        CWSandboxError: The gateway's list has no end.
    """
    return run_blocking(partial(list_profiles_async, **locals()), name="list profiles")


async def list_profiles_async(
    *,
    gpu_type: str | None = None,
    architecture: str | None = None,
    runner_id: str | None = None,
    service_exposure_mode: str | None = None,
    egress_mode: str | None = None,
) -> list[Profile]:
    """`list_profiles` for asyncio and trio; the same arguments and errors."""
    _check_texts(service_exposure_mode=service_exposure_mode, egress_mode=egress_mode)
    filters = {"gpu_type": gpu_type, "architecture": architecture, "runner_id": runner_id}
    _check_texts(**filters)

    async def discover(api: DiscoveryApi) -> list[Profile]:
        return _with_modes(map(_profile, await api.profiles(filters)), service_exposure_mode, egress_mode)

    return await _discover(discover, "list profiles")


def get_profile(profile_name: str, *, runner_id: str | None = None) -> Profile:
    """One profile. Blocks; `get_profile_async` is for async code.

    Args:
        profile_name: Its name.
        runner_id: As this runner has it.

    Raises:
        ValueError: The name is blank.
        ProfileNotFoundError: There is no such profile, or not on that runner.
        CWSandboxAuthenticationError: The credentials are not accepted.
        DiscoveryError: As in `list_runners`.
    """
    return run_blocking(partial(get_profile_async, **locals()), name="get profile")


async def get_profile_async(profile_name: str, *, runner_id: str | None = None) -> Profile:
    """`get_profile` for asyncio and trio; the same arguments and errors."""
    _check_name(profile_name, "profile_name")
    _check_texts(runner_id=runner_id)

    async def discover(api: DiscoveryApi) -> Profile:
        return _profile(await api.profile(profile_name, runner_id))

    return await _discover(discover, "get profile")


def format_bytes(count: int) -> str:
    """A number of bytes for people: `0 B`, `512 B`, `1.5 GiB`. Units go up to TiB."""
    amount = float(count)
    power = 0
    while amount >= 1024 and power < len(_UNITS) - 1:
        amount /= 1024
        power += 1
    return f"{amount:.1f} {_UNITS[power]}" if power else f"{count} B"


def format_cpu(millicores: int) -> str:
    """Thousandths of a processor for people: `1500` is `1.5 vCPU`."""
    return f"{millicores / 1000:.1f} vCPU"


async def _discover(discover: Callable[[DiscoveryApi], Awaitable[T]], what: str) -> T:
    """Run on the process's background loop, which keeps its connection to the gateway, whatever loop this is."""
    finder = SandboxCore(None, SandboxDefaults(), None, _BUDGET_SECONDS)

    async def run() -> T:
        from cwsandbox._client.discovery import DiscoveryApi, as_discovery_error

        ends = anyio.current_time() + _BUDGET_SECONDS
        try:
            with anyio.fail_after(_BUDGET_SECONDS):
                client = await finder.client()
                return await discover(DiscoveryApi(client.api, ends))
        except SandboxError as error:
            raise as_discovery_error(error) from error
        except TimeoutError as error:
            raise DiscoveryError(f"{what}: not done within {_BUDGET_SECONDS:g} s") from error

    return await finder.operate(run, name=what)


def _runner(found: AvailableRunner) -> Runner:
    from cwsandbox.wire.discovery import RunnerCapabilitySummary

    has, left = found.capabilities or RunnerCapabilitySummary(), found.resources
    return Runner(
        runner_id=found.runner_id,
        runner_group_id=found.runner_group_id,
        tags=found.tags,
        healthy=found.healthy,
        profile_names=found.profile_names,
        connected_at=found.connected_at,
        max_cpu_millicores=has.max_cpu_millicores,
        max_memory_bytes=has.max_memory_bytes,
        max_gpu_count=has.max_gpu_count,
        supported_gpu_types=has.supported_gpu_types,
        supported_architectures=has.supported_architectures,
        supports_privileged=has.supports_privileged,
        available_storage_classes=has.available_storage_classes,
        resources=None
        if left is None
        else RunnerResources(
            available_cpu_millicores=left.available_cpu_millicores,
            available_memory_bytes=left.available_memory_bytes,
            available_gpu_count=left.available_gpu_count,
            running_sandboxes=left.running_sandboxes,
        ),
        organization_id=found.organization_id,
        is_shared=found.is_shared,
        enforced_limits=found.enforced_limits,
        per_process_limits=found.per_process_limits,
    )


def _profile(found: ProfileSummary) -> Profile:
    return Profile(
        profile_name=found.profile_name,
        runner_id=found.runner_id,
        supported_gpu_types=found.supported_gpu_types,
        supported_architectures=found.supported_architectures,
        service_exposure_modes=tuple(ServiceExposureMode(name=mode.name) for mode in found.service_exposure_modes),
        egress_modes=tuple(EgressMode(name=mode.name) for mode in found.egress_modes),
    )


def _has_left(runner: Runner, least: dict[str, int | None]) -> bool:
    wanted = {name: amount for name, amount in least.items() if amount is not None}
    left = runner.resources
    return not wanted or (left is not None and all(getattr(left, name) >= amount for name, amount in wanted.items()))


def _with_modes(profiles: Iterable[Profile], exposure: str | None, egress: str | None) -> list[Profile]:
    return [
        profile
        for profile in profiles
        if (exposure is None or exposure in {mode.name for mode in profile.service_exposure_modes})
        and (egress is None or egress in {mode.name for mode in profile.egress_modes})
    ]


def _has(runner: Runner, profile: Profile) -> bool:
    return profile.profile_name in runner.profile_names and profile.runner_id in {"", runner.runner_id}


def _check_texts(**values: str | None) -> None:
    for label, value in values.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{label} must be a str, not {type(value).__name__}")


def _check_amounts(**values: int | None) -> None:
    for label, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"min_{label} must be an int, not {type(value).__name__}")


def _check_name(value: Any, label: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{label} must be a str, not {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{label} must not be blank")
