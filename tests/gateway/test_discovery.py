"""Runners and profiles as the gateway tells of them, and what choosing a profile does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from cwsandbox.gateway.config import Configuration, Profile, ProfileLimits, RunnerTable
from cwsandbox.gateway.errors import StatusError
from cwsandbox.runners.errors import ImageNotFoundError, IsolationUnavailableError, RunnerError
from cwsandbox.wire.errors import Code, Reason, Status
from cwsandbox.wire.resources import LimitHold, NetworkOptions, ResourceRequirements, Resources
from tests.gateway.conftest import ME, World, open_world, spec_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SMALL = Profile(
    egress_modes=("isolated",),
    max_lifetime_seconds=60,
    limits=ProfileLimits(cpu="500m", memory="64Mi", processes=100),
)
CONFIGURATION = Configuration(
    runner=RunnerTable(group_id="lab", tags=("ssd",)),
    profiles={
        "small": SMALL,
        "strict": Profile(strict_limits=True),
        "walled": Profile(isolation="namespaces"),
        "online": Profile(egress_modes=("internet",)),
    },
)
GIB = 1024**3


@pytest.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    async with open_world(folder, configuration=CONFIGURATION) as world:
        yield world


async def read(world: World, path: str, **params: str) -> Any:
    async with world.http() as http:
        answer = await http.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(world: World, path: str, **params: str) -> Status:
    async with world.http() as http:
        answer = await http.get(path, params=params)
    assert answer.status_code >= 400
    return Status.from_json(answer.json(), answer.status_code)


RUNNER = "/v1/organizations/-/availableRunners/host"


async def test_the_runner_is_told_as_it_is(world: World) -> None:
    runner = await read(world, RUNNER)
    age = datetime.now(UTC) - datetime.fromisoformat(runner.pop("connectedAt"))
    assert 0 <= age.total_seconds() < 60
    assert runner == {
        "runnerId": "host",
        "runnerGroupId": "lab",
        "tags": ["ssd"],
        "healthy": True,
        "capabilities": {
            "maxCpuMillicores": "2000",
            "maxMemoryBytes": str(GIB),
            "supportedArchitectures": ["x86_64"],
        },
        "resources": {"availableCpuMillicores": "2000", "availableMemoryBytes": str(GIB)},
        "profileNames": ["default", "online", "small", "strict", "walled"],
        "enforcedLimits": ["memory"],
    }


async def test_requests_of_living_sandboxes_are_taken_off(world: World) -> None:
    asked = Resources(cpu="500m", memory="256Mi")
    sandbox = await world.sandbox(container={"resource_requirements": ResourceRequirements(requests=asked)})
    await world.sandbox(container={"resources": Resources(memory="256Mi")})
    left = (await read(world, RUNNER))["resources"]
    assert left == {
        "availableCpuMillicores": "1500",
        "availableMemoryBytes": str(GIB // 2),
        "runningSandboxes": 2,
    }
    await world.service.delete(ME, sandbox.record.sandbox_id)
    left = (await read(world, RUNNER))["resources"]
    assert (left["availableMemoryBytes"], left["runningSandboxes"]) == (str(GIB * 3 // 4), 1)


async def test_more_requests_than_there_is_leave_nothing(world: World) -> None:
    for _ in range(3):
        await world.sandbox(container={"resources": Resources(memory="600Mi")})
    assert "availableMemoryBytes" not in (await read(world, RUNNER))["resources"]


async def test_a_list_is_basic_unless_more_is_asked_for(world: World) -> None:
    (basic,) = (await read(world, "/v1/availableRunners"))["runners"]
    (full,) = (await read(world, "/v1/availableRunners", view="RUNNER_VIEW_FULL"))["runners"]
    assert "resources" not in basic
    assert "resources" in full
    assert (await refused(world, "/v1/availableRunners", view="ALL")).code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"runnerGroupId": "lab"}, 1),
        ({"runnerGroupId": "other"}, 0),
        ({"profileName": "small"}, 1),
        ({"profileName": "large"}, 0),
        ({"architecture": "x86_64"}, 1),
        ({"architecture": "arm64"}, 0),
        ({"gpuType": "H100"}, 0),
        ({"healthyOnly": "true"}, 1),
    ],
)
async def test_runners_are_filtered(world: World, wanted: dict[str, str], found: int) -> None:
    assert len((await read(world, "/v1/availableRunners", **wanted)).get("runners", ())) == found


async def test_a_runner_that_cannot_make_sandboxes_is_not_healthy(world: World) -> None:
    world.runner.healthy = False
    assert "healthy" not in await read(world, RUNNER)
    assert await read(world, "/v1/availableRunners", healthyOnly="true") == {}


async def test_profiles_come_in_pages(world: World) -> None:
    names, token = [], ""
    for _ in range(3):
        page = await read(world, "/v1/profiles", pageSize="2", **({"pageToken": token} if token else {}))
        names += [profile["profileName"] for profile in page["profiles"]]
        token = page.get("nextPageToken", "")
    assert (names, token) == (["default", "online", "small", "strict", "walled"], "")
    assert (await refused(world, "/v1/profiles", pageToken="next")).code is Code.INVALID_ARGUMENT


async def test_a_profile_tells_only_what_the_runner_has(world: World) -> None:
    assert (await read(world, "/v1/profiles/small"))["egressModes"] == [{"name": "isolated"}]
    assert "egressModes" not in await read(world, "/v1/profiles/online")
    assert await read(world, "/v1/profiles", runnerId="other") == {}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/v1/organizations/-/availableRunners/other", Reason.RUNNER_NOT_FOUND),
        ("/v1/organizations/acme/availableRunners/host", Reason.RUNNER_NOT_FOUND),
        ("/v1/profiles/large", Reason.PROFILE_NOT_FOUND),
        ("/v1/profiles/small?runnerId=other", Reason.PROFILE_NOT_FOUND),
    ],
)
async def test_what_is_not_there_is_not_found(world: World, path: str, reason: Reason) -> None:
    async with world.http() as http:
        answer = await http.get(path)
    status = Status.from_json(answer.json(), answer.status_code)
    assert (status.code, status.reason) == (Code.NOT_FOUND, reason)


# Choosing a profile.


async def refusal(world: World, **fields: Any) -> Status:
    with pytest.raises(StatusError) as caught:
        await world.service.create(ME, spec_of(**fields))
    assert world.runner.created == 0
    return caught.value.status


async def test_without_a_choice_it_is_the_default_profile(world: World) -> None:
    record = (await world.sandbox()).record
    assert (record.profile_id, record.runner_id, record.runner_group_id) == ("default", "host", "lab")


async def test_a_profile_fills_in_what_was_not_asked_for(world: World) -> None:
    record = (await world.sandbox(profile_ids=("small",))).record
    container = record.spec.containers[0]
    assert record.profile_id == "small"
    assert container.resource_requirements == ResourceRequirements(limits=Resources(cpu="500m", memory="64Mi"))
    assert record.egress_mode == "isolated"
    assert record.spec.max_lifetime_seconds == 60
    assert record.limit_holds == {
        "cpu": LimitHold.NONE,
        "memory": LimitHold.SANDBOX,
        "processes": LimitHold.NONE,
    }


async def test_the_runner_gets_the_limits(world: World) -> None:
    await world.sandbox(profile_ids=("small",), container={"resources": Resources(memory="32Mi")})
    box = world.runner.specs[-1]
    assert (box.limits.memory_bytes, box.limits.cpu_millicores, box.limits.processes) == (32 * 1024**2, 500, 100)
    assert box.requests.memory_bytes == 32 * 1024**2


@pytest.mark.parametrize(
    "fields",
    [
        {"container": {"resources": Resources(memory="65Mi")}},
        {"container": {"resources": Resources(cpu="1")}},
        {"container": {"resource_requirements": ResourceRequirements(requests=Resources(cpu="1"))}},
        {"max_lifetime_seconds": 61},
        {"network": NetworkOptions(egress_mode="internet")},
    ],
)
async def test_more_than_the_profile_allows_is_refused(world: World, fields: dict[str, Any]) -> None:
    status = await refusal(world, profile_ids=("small",), **fields)
    assert status.code in {Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED}


async def test_of_several_profiles_the_first_that_fits_is_taken(world: World) -> None:
    large = {"resources": Resources(memory="128Mi")}
    record = (await world.sandbox(profile_ids=("small", "default"), container=large)).record
    assert record.profile_id == "default"


async def test_an_unknown_id_is_refused_even_beside_known_ones(world: World) -> None:
    status = await refusal(world, profile_ids=("default", "large"))
    assert (status.reason, status.metadata["profileId"]) == (Reason.NO_SUITABLE_RUNNER, "large")
    status = await refusal(world, runner_ids=("host", "other"))
    assert (status.reason, status.metadata["runnerId"]) == (Reason.NO_SUITABLE_RUNNER, "other")


async def test_a_strict_profile_refuses_what_is_not_held_for_the_sandbox_as_a_whole(world: World) -> None:
    assert (await world.sandbox(profile_ids=("strict",), container={"resources": Resources(memory="64Mi")})).box
    world.runner.created = 0
    status = await refusal(world, profile_ids=("strict",), container={"resources": Resources(cpu="1")})
    assert (status.reason, "cpu" in status.message) == (Reason.NOT_IMPLEMENTED, True)


async def test_a_profile_can_insist_on_isolation(world: World) -> None:
    status = await refusal(world, profile_ids=("walled",))
    assert (status.reason, "namespaces" in status.message) == (Reason.NO_SUITABLE_RUNNER, True)


async def test_sandboxes_are_listed_by_the_profile_they_have(world: World) -> None:
    small = await world.sandbox(profile_ids=("small",))
    await world.sandbox()
    found = (await read(world, "/v1/sandboxes", profileIds="small"))["sandboxes"]
    assert [each["sandboxId"] for each in found] == [small.record.sandbox_id]
    assert found[0]["status"]["profileId"] == "small"
    assert found[0]["status"]["limitHolds"]["memory"] == "sandbox"


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (ImageNotFoundError("image 'x' is not here"), Code.UNIMPLEMENTED),
        (IsolationUnavailableError("no isolation here"), Code.FAILED_PRECONDITION),
        (RunnerError("not like this"), Code.FAILED_PRECONDITION),
    ],
)
async def test_what_the_runner_can_never_make_is_refused_at_once(
    world: World, problem: RunnerError, code: Code
) -> None:
    world.runner.refusal = problem
    status = await refusal(world)
    assert (status.code, status.message) == (code, str(problem))


async def test_the_profile_and_the_holds_survive_a_restart(folder: Path) -> None:
    async with open_world(folder, configuration=CONFIGURATION) as first:
        sandbox_id = (await first.sandbox(profile_ids=("small",))).record.sandbox_id
    async with open_world(folder, configuration=CONFIGURATION) as second:
        record = second.service.get(ME, sandbox_id).record
    assert (record.profile_id, record.limit_holds["memory"]) == ("small", LimitHold.SANDBOX)
