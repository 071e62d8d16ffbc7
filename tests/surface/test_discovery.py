"""Runners and profiles (behaviour 10.3), and choosing them (10.3, 2.1)."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

import cwsandbox
from cwsandbox import (
    CWSandboxError,
    DiscoveryError,
    EgressMode,
    Profile,
    ProfileNotFoundError,
    Runner,
    RunnerNotFoundError,
    RunnerResources,
    Sandbox,
    SandboxRefusedError,
    ServiceExposureMode,
    Session,
    format_bytes,
    format_cpu,
)
from cwsandbox.runners.local import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RUNNER: dict[str, Any] = {
    "runner_id": "r",
    "runner_group_id": "g",
    "tags": ["a"],
    "healthy": True,
    "profile_names": ["p", "q"],
    "connected_at": datetime.now(UTC),
    "max_cpu_millicores": 1500,
    "max_memory_bytes": 3 * 1024**3,
    "max_gpu_count": 2,
    "supported_gpu_types": [],
    "supported_architectures": ["amd64"],
    "supports_privileged": False,
    "available_storage_classes": [],
}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (1024**2, "1.0 MiB"),
        (1024**3, "1.0 GiB"),
        (1024**4, "1.0 TiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_processors_for_people() -> None:
    assert [format_cpu(millicores) for millicores in (0, 250, 1500, 64000)] == [
        "0.0 vCPU",
        "0.2 vCPU",
        "1.5 vCPU",
        "64.0 vCPU",
    ]


def test_what_was_found_cannot_be_changed() -> None:
    runner = Runner(**RUNNER)
    assert (runner.tags, runner.profile_names, runner.resources) == (("a",), ("p", "q"), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        runner.healthy = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        Runner("r")  # type: ignore[call-arg]
    assert repr(runner) == "<Runner 'r' healthy, 1.5 vCPU, 3.0 GiB, 2 GPUs, profiles: p, q>"
    mode = EgressMode(name="isolated")
    profile = Profile(
        profile_name="p",
        runner_id="r",
        supported_gpu_types=[],  # type: ignore[arg-type]
        supported_architectures=[],  # type: ignore[arg-type]
        service_exposure_modes=[ServiceExposureMode(name="public")],  # type: ignore[arg-type]
        egress_modes=[mode],  # type: ignore[arg-type]
    )
    assert (profile.egress_modes, hash(profile) == hash(dataclasses.replace(profile))) == ((mode,), True)


def test_the_embedded_gateway_is_one_runner_with_what_this_machine_has(home_folder: Path) -> None:
    (runner,) = cwsandbox.list_runners()
    assert (runner.runner_id, runner.runner_group_id, runner.healthy) == ("local", "tests", True)
    assert runner.max_cpu_millicores == probe.cpu_millicores() <= len(os.sched_getaffinity(0)) * 1000
    assert runner.max_memory_bytes == probe.memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert set(runner.profile_names) >= {"default", "small"}
    assert runner.connected_at is not None
    assert runner.connected_at.tzinfo is UTC
    assert runner.resources is None
    full = cwsandbox.get_runner("local")
    assert dataclasses.replace(full, resources=None) == runner
    assert isinstance(full.resources, RunnerResources)


def test_a_running_sandbox_is_counted_with_what_it_requested(home_folder: Path) -> None:
    before = cwsandbox.get_runner("local").resources
    assert before is not None
    with Sandbox.run(resources={"memory": "64Mi"}) as sandbox:
        sandbox.wait()
        during = cwsandbox.get_runner("local").resources
    assert during is not None
    assert during.running_sandboxes == before.running_sandboxes + 1
    assert during.available_memory_bytes == before.available_memory_bytes - 64 * 1024**2
    assert during.available_cpu_millicores == before.available_cpu_millicores


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"runner_group_id": "tests"}, True),
        ({"runner_group_id": "none"}, False),
        ({"profile_name": "small"}, True),
        ({"profile_name": "large"}, False),
        ({"gpu_type": "H100"}, False),
        ({"architecture": "riscv64"}, False),
        ({"healthy_only": True}, True),
        ({"min_available_cpu_millicores": 1}, True),
        ({"min_available_cpu_millicores": 10**9}, False),
        ({"min_available_memory_bytes": 1024}, True),
        ({"min_available_memory_bytes": 10**18}, False),
        ({"min_available_gpu_count": 0}, True),
        ({"min_available_gpu_count": 1}, False),
        ({"egress_mode": "isolated"}, True),
        ({"egress_mode": "teleport"}, False),
        ({"service_exposure_mode": "teleport"}, False),
    ],
)
def test_runners_are_filtered(home_folder: Path, wanted: dict[str, Any], found: bool) -> None:
    runners = cwsandbox.list_runners(**wanted)
    assert [runner.runner_id for runner in runners] == (["local"] if found else [])
    assert all((runner.resources is not None) == any("min" in name for name in wanted) for runner in runners)


def test_profiles(home_folder: Path) -> None:
    profiles = {profile.profile_name: profile for profile in cwsandbox.list_profiles(runner_id="local")}
    assert profiles["small"] == cwsandbox.get_profile("small", runner_id="local")
    assert profiles["small"].egress_modes == (EgressMode(name="isolated"),)
    assert profiles["small"].service_exposure_modes == ()
    assert cwsandbox.list_profiles(egress_mode="teleport") == []
    assert "small" in [profile.profile_name for profile in cwsandbox.list_profiles(egress_mode="isolated")]
    assert cwsandbox.list_profiles(runner_id="other") == []


def test_what_is_not_there_has_its_own_error(home_folder: Path) -> None:
    with pytest.raises(RunnerNotFoundError, match="other") as runner:
        cwsandbox.get_runner("other")
    assert runner.value.runner_id == "other"
    with pytest.raises(RunnerNotFoundError):
        cwsandbox.get_runner("local", organization_id="acme")
    with pytest.raises(ProfileNotFoundError, match="large") as profile:
        cwsandbox.get_profile("large", runner_id="local")
    assert (profile.value.profile_name, profile.value.runner_id) == ("large", "local")


@pytest.mark.parametrize("blank", ["", "  "])
async def test_a_blank_name_is_a_value_error(blank: str) -> None:
    for blocking in (cwsandbox.get_runner, cwsandbox.get_profile):
        with pytest.raises(ValueError, match="blank"):
            blocking(blank)
    for coroutine in (cwsandbox.get_runner_async, cwsandbox.get_profile_async):
        with pytest.raises(ValueError, match="blank"):
            await coroutine(blank)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpu_type": 5},
        {"runner_group_id": b"x"},
        {"egress_mode": ["isolated"]},
        {"min_available_cpu_millicores": "1"},
        {"min_available_gpu_count": True},
        {"colour": "red"},
    ],
)
def test_a_wrong_filter_is_a_type_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        cwsandbox.list_runners(**wrong)


async def test_async_code_awaits_the_twins_and_its_loop_goes_on(home_folder: Path) -> None:
    assert [runner.runner_id for runner in await cwsandbox.list_runners_async()] == ["local"]
    assert (await cwsandbox.get_runner_async("local")).resources is not None
    assert "small" in [profile.profile_name for profile in await cwsandbox.list_profiles_async()]
    assert (await cwsandbox.get_profile_async("small")).runner_id == "local"
    with pytest.raises(RunnerNotFoundError):
        await cwsandbox.get_runner_async("other")


async def test_the_plain_functions_do_not_deadlock_on_a_loops_thread(home_folder: Path) -> None:
    assert [runner.runner_id for runner in cwsandbox.list_runners()] == ["local"]
    assert await anyio.to_thread.run_sync(cwsandbox.get_profile, "small") == cwsandbox.get_profile("small")


# A gateway that misbehaves.


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """A gateway that gives every path the answer of the test's choosing."""
    server = Answers()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("CWSANDBOX_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Answers(ThreadingHTTPServer):
    """Answers 200 with what `answer` makes of a path, or with the status it gives; `paths` is what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.paths: list[str] = []
        self.answer: Callable[[str], Any] = lambda path: {}
        self.released = threading.Event()


class Answering(BaseHTTPRequestHandler):
    server: Answers

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        answer = self.server.answer(self.path)
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


async def test_pages_are_followed_with_the_filters_and_a_page_size(answers: Answers) -> None:
    pages = {"": ("a", "t1"), "t1": ("b", "t2"), "t2": ("c", "")}

    def answer(path: str) -> Any:
        name, following = pages[path.partition("pageToken=")[2]]
        return {"runners": [{"runnerId": name}], "nextPageToken": following}

    answers.answer = answer
    assert [runner.runner_id for runner in await cwsandbox.list_runners_async(gpu_type="H100")] == ["a", "b", "c"]
    assert all("gpuType=H100" in path and "pageSize=100" in path for path in answers.paths)


async def test_a_runner_without_capabilities_has_none(answers: Answers) -> None:
    answers.answer = lambda path: {"runnerId": "a/b"}
    runner = await cwsandbox.get_runner_async("a/b")
    assert (runner.max_cpu_millicores, runner.supported_gpu_types, runner.supports_privileged) == (0, (), False)
    assert (runner.connected_at, runner.resources) == (None, None)
    assert "/availableRunners/a%2Fb?" in answers.paths[-1]


async def test_runners_that_do_not_tell_what_they_have_left_are_not_enough(answers: Answers) -> None:
    answers.answer = lambda path: {"runners": [{"runnerId": "a"}]}
    assert await cwsandbox.list_runners_async(min_available_gpu_count=0) == []
    assert "view=RUNNER_VIEW_FULL" in answers.paths[-1]


async def test_modes_are_those_of_a_profile_that_the_runner_has(answers: Answers) -> None:
    def profile(name: str, runner_id: str, mode: str) -> dict[str, Any]:
        return {"profileName": name, "runnerId": runner_id, "serviceExposureModes": [{"name": mode}]}

    profiles = [profile("p", "a", "public"), profile("p", "b", "internal"), profile("q", "", "public")]
    runners = [{"runnerId": name, "profileNames": names} for name, names in (("a", ["p"]), ("b", ["p"]), ("c", ["q"]))]
    answers.answer = lambda path: {"profiles": profiles} if "profiles" in path else {"runners": runners}
    found = await cwsandbox.list_runners_async(service_exposure_mode="public")
    assert [runner.runner_id for runner in found] == ["a", "c"]


async def test_a_repeated_page_token_is_an_error(answers: Answers) -> None:
    answers.answer = lambda path: {"nextPageToken": "again"}
    with pytest.raises(CWSandboxError, match="twice"):
        await cwsandbox.list_runners_async()
    assert len(answers.paths) == 2


async def test_more_than_a_hundred_pages_are_an_error(answers: Answers) -> None:
    answers.answer = lambda path: {"nextPageToken": str(len(answers.paths))}
    with pytest.raises(CWSandboxError, match="100 pages"):
        await cwsandbox.list_profiles_async()
    assert len(answers.paths) == 100


@pytest.mark.parametrize("answer", [(400, {"code": 9, "message": "no"}), (404, {}), (500, {}), (200, [])])
async def test_a_list_that_is_refused_or_makes_no_sense_is_a_discovery_error(answers: Answers, answer: Any) -> None:
    answers.answer = lambda path: answer
    with pytest.raises(DiscoveryError) as caught:
        await cwsandbox.list_runners_async()
    assert type(caught.value) is DiscoveryError


@pytest.mark.parametrize("status", [401, 403])
async def test_credentials_that_are_not_accepted_keep_their_error(answers: Answers, status: int) -> None:
    answers.answer = lambda path: (status, {})
    with pytest.raises(cwsandbox.CWSandboxAuthenticationError):
        await cwsandbox.list_profiles_async()


@pytest.mark.parametrize("silent", ["availableRunners", "profiles"])
async def test_one_budget_covers_all_requests(answers: Answers, monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    await cwsandbox.list_profiles_async()  # The connection is there: the budget is for the answers alone.
    monkeypatch.setattr("cwsandbox.discovery._BUDGET_SECONDS", 0.5)

    def answer(path: str) -> Any:
        return answers.released.wait() and {} if silent in path else {}

    answers.answer = answer
    with pytest.raises(DiscoveryError):
        await cwsandbox.list_runners_async(egress_mode="isolated")
    assert silent in answers.paths[-1]


async def test_nobody_there_is_a_discovery_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwsandbox.discovery._BUDGET_SECONDS", 1.0)
    monkeypatch.setenv("CWSANDBOX_BASE_URL", "unix:///nowhere/gateway.sock")
    with pytest.raises(DiscoveryError):
        await cwsandbox.get_runner_async("local")
    with pytest.raises(DiscoveryError):
        cwsandbox.get_runner("local")


def test_an_empty_base_url_counts_as_unset(monkeypatch: pytest.MonkeyPatch, home_folder: Path) -> None:
    monkeypatch.setenv("CWSANDBOX_BASE_URL", "")
    assert cwsandbox.get_runner("local").runner_id == "local"


# Choosing.


@pytest.mark.row("S116")
async def test_a_sandbox_tells_where_it_runs_and_lists_find_it_by_that(home_folder: Path) -> None:
    async with Session({"profile_ids": ["small"], "runner_ids": ["local"], "tags": ["chosen"]}) as session:
        chosen = await session.sandbox()
        assert (chosen.profile_id, chosen.runner_id, chosen.runner_group_id) == ("small", "local", "tests")
        other = await session.sandbox(profile_ids=[])
        assert other.profile_id == "default"
        ids = {"small": chosen.sandbox_id, "default": other.sandbox_id}
        assert [found.sandbox_id for found in await session.list()] == [chosen.sandbox_id]
        for name, sandbox_id in ids.items():
            found = await Sandbox.list(tags=["chosen"], profile_ids=[name], runner_ids=["local"])
            assert [each.sandbox_id for each in found] == [sandbox_id]
        assert await Sandbox.list(tags=["chosen"], runner_ids=["other"]) == []
        found = await Sandbox.list(tags=["chosen"], profile_ids=[], runner_ids=[])
        assert {each.sandbox_id for each in found} == set(ids.values())
        assert (await Sandbox.from_id(ids["small"] or "")).profile_id == "small"


@pytest.mark.row("S116")
@pytest.mark.parametrize("wrong", [{"profile_ids": ["large"]}, {"runner_ids": ["local", "elsewhere"]}])
async def test_an_unknown_id_is_refused_when_the_sandbox_is_created(
    home_folder: Path, wrong: dict[str, list[str]]
) -> None:
    ((_, ids),) = wrong.items()
    with pytest.raises(SandboxRefusedError, match=ids[-1]) as caught:
        await Sandbox(**wrong).start()  # type: ignore[arg-type]
    assert caught.value.reason == "CWSANDBOX_NO_SUITABLE_RUNNER"
    run = functools.partial(Sandbox.run, **wrong)
    with pytest.raises(SandboxRefusedError):
        await anyio.to_thread.run_sync(run)


async def test_a_profile_takes_effect_inside(home_folder: Path) -> None:
    async with Sandbox(profile_ids=["small"]) as sandbox:
        await sandbox
        assert sandbox.resource_limits == {"memory": "64Mi"}
        result = await sandbox.exec(["python3", "-c", "bytearray(200 << 20)"])
        assert result.returncode != 0
    with pytest.raises(SandboxRefusedError, match="64Mi"):
        await Sandbox(profile_ids=["small"], resources={"memory": "128Mi"}).start()
    with pytest.raises(SandboxRefusedError, match="profile 'small'"):
        await Sandbox(profile_ids=["small"], max_lifetime_seconds=3600).start()
