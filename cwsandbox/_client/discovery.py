"""The discovery calls to one gateway."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import anyio

from cwsandbox._client.errors import discovery_error
from cwsandbox._client.paging import read_pages
from cwsandbox.exceptions import CWSandboxError, DiscoveryError, SandboxError
from cwsandbox.wire import codec
from cwsandbox.wire.discovery import (
    AvailableRunner,
    ListAvailableRunnersResponse,
    ListProfilesResponse,
    ProfileSummary,
    RunnerView,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cwsandbox._client.http import Api
    from cwsandbox._client.paging import Params
    from cwsandbox.wire.errors import Status

T = TypeVar("T")

_PAGE_SIZE = 100
_ANY_ORGANIZATION = "-"
_RUNNER = functools.partial(codec.load, AvailableRunner)
_RUNNERS = functools.partial(codec.load, ListAvailableRunnersResponse)
_PROFILE = functools.partial(codec.load, ProfileSummary)
_PROFILES = functools.partial(codec.load, ListProfilesResponse)


class DiscoveryApi:
    """Calls that end before `ends`, a time of the loop's clock.

    All raise `CWSandboxAuthenticationError` where the credentials are not accepted, and `DiscoveryError` for any other
    failure.
    """

    def __init__(self, api: Api, ends: float) -> None:
        self._api = api
        self._ends = ends

    async def runners(self, filters: Mapping[str, str | None], *, full: bool) -> list[AvailableRunner]:
        """Read all runners that the server finds.

        Raises:
            CWSandboxError: The pages have no end.
        """
        view = RunnerView.FULL if full else RunnerView.BASIC
        params = (*_given(filters), ("view", view.value), ("pageSize", str(_PAGE_SIZE)))

        async def fetch(token: Params) -> tuple[Sequence[AvailableRunner], str]:
            page = await self._read("list runners", "/v1/availableRunners", (*params, *token), _RUNNERS)
            return page.runners, page.next_page_token

        return await read_pages(fetch)

    async def runner(self, runner_id: str, organization_id: str | None) -> AvailableRunner:
        """Read one runner with what it has left.

        Raises:
            RunnerNotFoundError: There is none.
        """
        organization = quote(organization_id or _ANY_ORGANIZATION, safe="")
        path = f"/v1/organizations/{organization}/availableRunners/{quote(runner_id, safe='')}"
        translate = functools.partial(discovery_error, runner_id=runner_id)
        return await self._read("get runner", path, (("view", RunnerView.FULL.value),), _RUNNER, translate)

    async def profiles(self, filters: Mapping[str, str | None]) -> list[ProfileSummary]:
        """Read all profiles that the server finds.

        Raises:
            CWSandboxError: The pages have no end.
        """
        params = (*_given(filters), ("pageSize", str(_PAGE_SIZE)))

        async def fetch(token: Params) -> tuple[Sequence[ProfileSummary], str]:
            page = await self._read("list profiles", "/v1/profiles", (*params, *token), _PROFILES)
            return page.profiles, page.next_page_token

        return await read_pages(fetch)

    async def profile(self, profile_name: str, runner_id: str | None) -> ProfileSummary:
        """Read one profile.

        Raises:
            ProfileNotFoundError: There is none.
        """
        path = f"/v1/profiles/{quote(profile_name, safe='')}"
        translate = functools.partial(discovery_error, profile_name=profile_name, runner_id=runner_id)
        return await self._read("get profile", path, _given({"runner_id": runner_id}), _PROFILE, translate)

    async def _read(
        self,
        what: str,
        path: str,
        params: Params,
        decode: Callable[[bytes], T],
        translate: Callable[[Status], CWSandboxError] = discovery_error,
    ) -> T:
        left = self._ends - anyio.current_time()
        if left <= 0:
            raise DiscoveryError(f"{what}: there is no time left for it")
        try:
            return await self._api.read(what, path, params, decode, translate=translate, timeout=left)
        except SandboxError as error:
            raise as_discovery_error(error) from error


def as_discovery_error(error: CWSandboxError) -> DiscoveryError:
    """The error for a gateway that is out of reach or slow, as discovery has it."""
    return DiscoveryError(str(error), reason=error.reason, metadata=error.metadata, retry_delay=error.retry_delay)


def _given(filters: Mapping[str, str | None]) -> tuple[tuple[str, str], ...]:
    return tuple((codec.json_name(name), value) for name, value in filters.items() if value)
