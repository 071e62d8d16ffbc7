"""What the gateway says of itself as a place to run: its runner with what it has left, and its profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from cwsandbox.gateway import limits
from cwsandbox.gateway.admission import offered
from cwsandbox.gateway.errors import error, invalid
from cwsandbox.wire.codec import Int64
from cwsandbox.wire.discovery import (
    AvailableRunner,
    EgressMode,
    ListAvailableRunnersResponse,
    ListProfilesResponse,
    ProfileSummary,
    RunnerCapabilitySummary,
    RunnerResourceSummary,
    RunnerView,
    ServiceExposureMode,
)
from cwsandbox.wire.errors import Code, Reason
from cwsandbox.wire.resources import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cwsandbox.gateway.config import Profile
    from cwsandbox.gateway.params import Query
    from cwsandbox.gateway.service import Service

T = TypeVar("T")

_ANY_ORGANIZATION: Final = "-"
_PAGE_SIZE: Final = 1000


def list_runners(service: Service, query: Query) -> ListAvailableRunnersResponse:
    """Answer a list of runners; without a view it is the basic one.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    runner = _runner(service, _view(query, RunnerView.BASIC))
    matches = (
        query.text("runnerGroupId") in {"", runner.runner_group_id}
        and query.text("profileName") in {"", *runner.profile_names}
        and _supports(query, runner.capabilities)
        and (runner.healthy or not query.flag("healthyOnly"))
    )
    runners, token = _page((runner,) if matches else (), query)
    return ListAvailableRunnersResponse(runners=tuple(runners), next_page_token=token)


def get_runner(service: Service, organization_id: str, runner_id: str, query: Query) -> AvailableRunner:
    """Answer for one runner; without a view it is the full one.

    Raises:
        StatusError: NOT_FOUND, INVALID_ARGUMENT.
    """
    if runner_id != service.runner.runner_id or organization_id != _ANY_ORGANIZATION:
        where = "" if organization_id == _ANY_ORGANIZATION else f" of an organization {organization_id!r}"
        raise error(
            Code.NOT_FOUND,
            f"there is no runner {runner_id!r}{where} here; this gateway has {service.runner.runner_id}",
            Reason.RUNNER_NOT_FOUND,
            {"runnerId": runner_id},
        )
    return _runner(service, _view(query, RunnerView.FULL))


def list_profiles(service: Service, query: Query) -> ListProfilesResponse:
    """Answer a list of profiles.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    found: list[ProfileSummary] = []
    if query.text("runnerId") in {"", service.runner.runner_id} and _supports(query, _capabilities(service)):
        found = [_profile(service, *item) for item in sorted(service.configuration.profiles.items())]
    profiles, token = _page(found, query)
    return ListProfilesResponse(profiles=tuple(profiles), next_page_token=token)


def get_profile(service: Service, name: str, query: Query) -> ProfileSummary:
    """Answer for one profile.

    Raises:
        StatusError: NOT_FOUND, INVALID_ARGUMENT.
    """
    profile = service.configuration.profiles.get(name)
    runner_id = query.text("runnerId")
    if profile is None or runner_id not in {"", service.runner.runner_id}:
        where = f" on a runner {runner_id!r}" if runner_id else ""
        raise error(
            Code.NOT_FOUND,
            f"there is no profile {name!r}{where} here; this gateway has {', '.join(service.configuration.profiles)}",
            Reason.PROFILE_NOT_FOUND,
            {"profileName": name},
        )
    return _profile(service, name, profile)


def _runner(service: Service, view: RunnerView) -> AvailableRunner:
    capabilities = service.runner.capabilities()
    runner = AvailableRunner(
        runner_id=service.runner.runner_id,
        runner_group_id=service.configuration.runner.group_id,
        tags=service.configuration.runner.tags,
        healthy=capabilities.healthy,
        capabilities=_capabilities(service),
        profile_names=tuple(sorted(service.configuration.profiles)),
        connected_at=service.opened_at,
        enforced_limits=tuple(sorted(capabilities.enforced_limits)),
        per_process_limits=tuple(sorted(capabilities.per_process_limits)),
    )
    return runner if view is RunnerView.BASIC else attrs.evolve(runner, resources=_resources(service))


def _capabilities(service: Service) -> RunnerCapabilitySummary:
    capabilities = service.runner.capabilities()
    return RunnerCapabilitySummary(
        max_cpu_millicores=Int64(capabilities.cpu_millicores),
        max_memory_bytes=Int64(capabilities.memory_bytes),
        supported_architectures=(capabilities.architecture,),
    )


def _resources(service: Service) -> RunnerResourceSummary:
    """What is left when everybody takes what they requested; requests may be more than there is, then that is 0."""
    capabilities = service.runner.capabilities()
    living = [sandbox.record for sandbox in service.sandboxes() if not sandbox.terminal]
    taken = limits.reserved(record.spec for record in living)
    return RunnerResourceSummary(
        available_cpu_millicores=Int64(max(0, capabilities.cpu_millicores - (taken.cpu_millicores or 0))),
        available_memory_bytes=Int64(max(0, capabilities.memory_bytes - (taken.memory_bytes or 0))),
        running_sandboxes=sum(record.state is State.RUNNING for record in living),
    )


def _profile(service: Service, name: str, profile: Profile) -> ProfileSummary:
    has = offered(profile, service.runner.capabilities())
    return ProfileSummary(
        profile_name=name,
        runner_id=service.runner.runner_id,
        supported_architectures=(has.architecture,),
        service_exposure_modes=tuple(ServiceExposureMode(name=mode) for mode in service.network.ingress_modes(has)),
        egress_modes=tuple(EgressMode(name=mode) for mode in has.egress_modes),
    )


def _supports(query: Query, capabilities: RunnerCapabilitySummary | None) -> bool:
    assert capabilities is not None
    return query.text("gpuType") in {"", *capabilities.supported_gpu_types} and query.text("architecture") in {
        "",
        *capabilities.supported_architectures,
    }


def _view(query: Query, default: RunnerView) -> RunnerView:
    text = query.text("view")
    try:
        view = RunnerView(text) if text else default
    except ValueError:
        raise invalid(f"view must be one of {', '.join(view.value for view in RunnerView)}") from None
    return default if view is RunnerView.UNSPECIFIED else view


def _page(items: Sequence[T], query: Query) -> tuple[Sequence[T], str]:
    """Return one page, and the token of what follows: how many came before it."""
    size = int(query.number("pageSize", default=0, most=_PAGE_SIZE)) or _PAGE_SIZE
    token = query.text("pageToken")
    if token and not (token.isascii() and token.isdigit() and len(token) < 10):
        raise invalid("pageToken is not one that this gateway gave")
    first = int(token or 0)
    end = first + size
    return items[first:end], str(end) if end < len(items) else ""
