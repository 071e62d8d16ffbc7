"""The resources that describe what sandboxes can run on: runners of the published v1 mapping, profiles of v1beta2.

v1 has no profiles any more; they keep their v1beta2 names under v1 paths. [ours]
"""

from __future__ import annotations

import enum
from datetime import datetime  # noqa: TC003 - the codec resolves annotations

from attrs import frozen

from cwsandbox.wire.codec import Int64
from cwsandbox.wire.resources import Message

__all__ = [
    "AvailableRunner",
    "EgressMode",
    "ListAvailableRunnersResponse",
    "ListProfilesResponse",
    "ProfileSummary",
    "RunnerCapabilitySummary",
    "RunnerResourceSummary",
    "RunnerView",
    "ServiceExposureMode",
]

_ZERO = Int64(0)


class RunnerView(enum.Enum):
    """How much of a runner is told. Unspecified is BASIC in a list and FULL for one runner."""

    UNSPECIFIED = "RUNNER_VIEW_UNSPECIFIED"
    BASIC = "RUNNER_VIEW_BASIC"
    """Without `resources`."""
    FULL = "RUNNER_VIEW_FULL"


@frozen(kw_only=True)
class RunnerCapabilitySummary(Message):
    """What a runner could give to sandboxes if it had none."""

    max_cpu_millicores: Int64 = _ZERO
    max_memory_bytes: Int64 = _ZERO
    max_gpu_count: Int64 = _ZERO
    supported_gpu_types: tuple[str, ...] = ()
    supported_architectures: tuple[str, ...] = ()
    supports_privileged: bool = False
    available_storage_classes: tuple[str, ...] = ()


@frozen(kw_only=True)
class RunnerResourceSummary(Message):
    """What is left of that at the moment."""

    available_cpu_millicores: Int64 = _ZERO
    available_memory_bytes: Int64 = _ZERO
    available_gpu_count: Int64 = _ZERO
    running_sandboxes: int = 0


@frozen(kw_only=True)
class AvailableRunner(Message):
    """A runner.

    Attributes:
        profile_names: Profiles that sandboxes on it may have. [ours in v1]
        enforced_limits: Of "cpu", "memory", "processes": what is held for a sandbox as a whole. [ours]
        per_process_limits: What is held for each process of a sandbox by itself only. [ours]
    """

    runner_id: str = ""
    runner_group_id: str = ""
    tags: tuple[str, ...] = ()
    healthy: bool = False
    capabilities: RunnerCapabilitySummary | None = None
    resources: RunnerResourceSummary | None = None
    profile_names: tuple[str, ...] = ()
    connected_at: datetime | None = None
    is_shared: bool = False
    organization_id: str = ""
    enforced_limits: tuple[str, ...] = ()
    per_process_limits: tuple[str, ...] = ()


@frozen(kw_only=True)
class ListAvailableRunnersResponse(Message):
    """A page of runners; the token is empty on the last one."""

    runners: tuple[AvailableRunner, ...] = ()
    next_page_token: str = ""


@frozen(kw_only=True)
class ServiceExposureMode(Message):
    """A way to reach the ports of a sandbox."""

    name: str = ""


@frozen(kw_only=True)
class EgressMode(Message):
    """What a sandbox can reach."""

    name: str = ""


@frozen(kw_only=True)
class ProfileSummary(Message):
    """A profile, as one runner has it."""

    profile_name: str = ""
    runner_id: str = ""
    supported_gpu_types: tuple[str, ...] = ()
    supported_architectures: tuple[str, ...] = ()
    service_exposure_modes: tuple[ServiceExposureMode, ...] = ()
    egress_modes: tuple[EgressMode, ...] = ()


@frozen(kw_only=True)
class ListProfilesResponse(Message):
    """A page of profiles; the token is empty on the last one."""

    profiles: tuple[ProfileSummary, ...] = ()
    next_page_token: str = ""
