"""Every keyword of the constructor takes effect inside the sandbox, or the sandbox is refused by its name.

At three levels: what this machine gives by itself, the level `process`, and that without cgroups, as in a container.
Ports and networks have tests of their own (test_network.py), runners and profiles too (test_discovery.py).
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cwsandbox import (
    NetworkOptions,
    ResourceOptions,
    Sandbox,
    SandboxDefaults,
    SandboxRefusedError,
    SandboxStatus,
    SandboxTerminatedError,
    SandboxTimeoutError,
    Secret,
    Session,
)
from cwsandbox._request import SandboxRequest
from cwsandbox.options import resource_options
from cwsandbox.runners.local import cgroups
from cwsandbox.runners.local.cgroups import find_cgroups
from cwsandbox.wire.resources import Resources
from tests.support.gateway import served_gateway
from tests.support.levels import NAMESPACES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cwsandbox.wire.resources import SandboxSpec

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
TAKE = "import sys; bytearray(int(sys.argv[1]) << 20); print('had it')"


@pytest.fixture(scope="module", params=["best", "process", "bare"])
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def defaults(level: str, runner_state: Path) -> Iterator[SandboxDefaults]:
    """A gateway at the level."""
    with pytest.MonkeyPatch.context() as patch:
        if level == "bare":
            patch.setattr(cgroups, "find_cgroups", cgroups.Cgroups)
        with served_gateway(runner_state, isolation="auto" if level == "best" else "process") as gateway:
            yield SandboxDefaults(base_url=gateway.url)


def bounds_processes(level: str) -> bool:
    """Whether the number of processes is limited without being asked for."""
    if level == "best" and NAMESPACES:
        return True
    return level != "bare" and "processes" in find_cgroups().limits


async def output(sandbox: Sandbox, *argv: str) -> str:
    return (await sandbox.exec(list(argv), check=True)).stdout


async def refusal(sandbox: Sandbox) -> SandboxRefusedError:
    with pytest.raises(SandboxRefusedError) as caught:
        await sandbox.start()
    assert (sandbox.sandbox_id, sandbox.status) == (None, None)
    return caught.value


def sent(**options: Any) -> SandboxSpec:
    """What goes into the create request."""
    core = Sandbox(**options)._core
    assert isinstance(core._request, SandboxRequest)
    spec = core._request.to_resource().spec
    assert spec is not None
    return spec


async def test_command_and_args(defaults: SandboxDefaults) -> None:
    async with Sandbox(command="sh", args=["-c", 'echo "$0" "$@"; sleep 60', "a", "b c"], defaults=defaults) as sandbox:
        async for line in sandbox.stream_logs(follow=True):
            assert line.endswith("a b c\n")
            break


async def test_a_command_that_is_not_there_fails_the_sandbox_with_the_reason(defaults: SandboxDefaults) -> None:
    async with Sandbox(command="no-such-program", defaults=defaults) as sandbox:
        with pytest.raises(Exception, match="no-such-program"):
            await sandbox.wait_until_complete()
        assert sandbox.status is SandboxStatus.FAILED


async def test_container_image_of_this_machines_kind(defaults: SandboxDefaults) -> None:
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    async with Sandbox(container_image="python:3.11-slim", defaults=defaults) as sandbox:
        assert (await output(sandbox, "python3", "--version")).startswith(version)


async def test_container_image_that_is_not_here_is_refused(defaults: SandboxDefaults) -> None:
    refused = await refusal(Sandbox(container_image="ghcr.io/acme/app:1", defaults=defaults))
    assert "ghcr.io/acme/app:1" in str(refused)
    assert refused.reason == "CWSANDBOX_NOT_IMPLEMENTED"


async def test_a_refused_create_leaves_no_record(defaults: SandboxDefaults) -> None:
    await refusal(Sandbox(container_image="ghcr.io/acme/app:1", tags=["refused"], defaults=defaults))
    found = await Sandbox.list(tags=["refused"], include_stopped=True, base_url=defaults.base_url)
    assert found == []


@pytest.mark.row("S112")
async def test_tags(defaults: SandboxDefaults) -> None:
    common = defaults.with_overrides(tags=("common",))
    async with Session(common) as session:
        sandbox = await session.sandbox(tags=["own", "common"])
        assert sandbox.tags == ("common", "own", "common")
        (found,) = await Sandbox.list(tags=["own", "common"], base_url=defaults.base_url)
        assert (found.sandbox_id, found.tags) == (sandbox.sandbox_id, sandbox.tags)


@pytest.mark.row("S113")
async def test_environment_variables_and_annotations_override_per_key(defaults: SandboxDefaults) -> None:
    common = defaults.with_overrides(
        environment_variables={"A": "default", "B": "default"}, annotations={"a": "default", "b": "default"}
    )
    async with Session(common) as session:
        sandbox = session.sandbox(environment_variables={"B": "own", "C": "own"}, annotations={"b": "own"})
        assert await output(sandbox, "sh", "-c", "echo $A $B $C") == "default own own\n"
        assert sandbox.annotations == {"a": "default", "b": "own"}
        assert sandbox.sandbox_id is not None
        found = await Sandbox.from_id(sandbox.sandbox_id, base_url=defaults.base_url)
        assert found.annotations == {"a": "default", "b": "own"}


@pytest.mark.row("S112", "S113", "S116")
def test_defaults_and_own_values_in_sync_code(defaults: SandboxDefaults) -> None:
    common = defaults.with_overrides(
        tags=("common",), environment_variables={"A": "default", "B": "default"}, runner_ids=("local",)
    )
    with Session(common) as session:
        sandbox = session.sandbox(tags=["own"], environment_variables={"B": "own"}, profile_ids=["default"])
        assert sandbox.exec(["sh", "-c", "echo $A $B"], check=True).result().stdout == "default own\n"
        (found,) = session.list(tags=["own"], profile_ids=["default"]).result()
        assert (found.sandbox_id, found.tags, found.runner_id) == (sandbox.sandbox_id, ("common", "own"), "local")
        assert session.list(runner_ids=["other"]).result() == []


@pytest.mark.row("S117")
def test_refusals_in_sync_code(defaults: SandboxDefaults) -> None:
    with pytest.raises(SandboxRefusedError, match="S3"):
        Sandbox.run(s3_mount={"bucket": "b", "mount_path": "/data"}, defaults=defaults)
    files = [{"path": "/tmp/sync-file", "content": "x"}]
    with Sandbox.run(mounted_files=files, max_timeout_seconds=1, defaults=defaults) as sandbox:
        assert sandbox.read_file("/tmp/sync-file").result() == b"x"
        with pytest.raises(SandboxTimeoutError):
            sandbox.exec(["sleep", "60"]).result()


async def test_base_url_goes_before_the_environment(defaults: SandboxDefaults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWSANDBOX_BASE_URL", "unix:///nowhere/gateway.sock")
    async with Sandbox(base_url=f"{defaults.base_url}/".rstrip("/")) as sandbox:
        assert await output(sandbox, "echo", "here") == "here\n"


async def test_request_timeout_seconds_is_what_a_command_without_its_own_gets(defaults: SandboxDefaults) -> None:
    async with Sandbox(defaults=defaults) as sandbox:
        await sandbox
        attached = await Sandbox.from_id(sandbox.sandbox_id or "", base_url=defaults.base_url, timeout_seconds=1)
        with pytest.raises(SandboxTimeoutError, match=r"timeout_seconds=1$"):
            await attached.exec(["sleep", "60"])
    with pytest.raises(SandboxTimeoutError):
        await Sandbox(defaults=defaults, request_timeout_seconds=0).start()


async def test_an_infinite_lifetime_is_none(defaults: SandboxDefaults) -> None:
    async with Sandbox(defaults=defaults, max_lifetime_seconds=math.inf) as sandbox:
        assert (await sandbox.exec(["true"])).returncode == 0


async def test_max_lifetime_seconds(defaults: SandboxDefaults) -> None:
    async with Sandbox(defaults=defaults, max_lifetime_seconds=0.5) as sandbox:
        with pytest.raises(SandboxTerminatedError, match="lifetime"):
            await sandbox.wait_until_complete(timeout=30)
    refused = await refusal(Sandbox(defaults=defaults, max_lifetime_seconds=31 * 24 * 3600))
    assert "30 days" in str(refused)


async def test_max_timeout_seconds_bounds_what_a_command_may_ask_for(defaults: SandboxDefaults) -> None:
    async with Sandbox(defaults=defaults, max_timeout_seconds=1) as sandbox:
        for timeout in (None, 600):
            with pytest.raises(SandboxTimeoutError, match=r"timeout_seconds=1, .*max_timeout_seconds"):
                await sandbox.exec(["sleep", "60"], timeout_seconds=timeout)
        assert await output(sandbox, "echo", "still here") == "still here\n"
        with pytest.raises(SandboxTimeoutError):
            async with sandbox.files.watch("/tmp") as changes:
                async for _ in changes:
                    pass


@pytest.mark.row("FIX-B")
async def test_mounted_files_in_both_spellings_are_read_only(defaults: SandboxDefaults, level: str) -> None:
    names = [f"/tmp/mounted-{level}-{number}" for number in range(3)]
    files: list[dict[str, Any]] = [
        {"path": names[0], "content": "grün"},
        {"mount_path": names[1], "file_content": b"\x00\xff"},
        {"path": names[2], "content": b"#!/bin/sh\necho main $(cat /tmp/mounted-*-0); sleep 60"},
    ]
    async with Sandbox(command="sh", args=[names[2]], mounted_files=files, defaults=defaults) as sandbox:
        async for line in sandbox.stream_logs(follow=True):
            assert line == "main grün\n"
            break
        assert await sandbox.read_file(names[1]) == b"\x00\xff"
        for line in (f"echo x > {names[0]}", f"echo x >> {names[1]}"):
            assert (await sandbox.exec(["sh", "-c", line])).returncode != 0
        assert await sandbox.read_file(names[0]) == "grün".encode()
    assert not [name for name in names if Path(name).exists()]


@pytest.mark.row("S117")
async def test_s3_mount_is_taken_and_refused_by_name(defaults: SandboxDefaults) -> None:
    mount = {"bucket": "b", "directory": "d", "mount_path": "/data"}
    s3 = sent(s3_mount=mount).s3_mount
    assert s3 is not None
    assert (s3.bucket, s3.directory, s3.mount_path) == ("b", "d", "/data")
    refused = await refusal(Sandbox(s3_mount=mount, defaults=defaults))
    assert ("S3" in str(refused), refused.reason) == (True, "CWSANDBOX_NOT_IMPLEMENTED")


@pytest.mark.row("FIX-C")
@pytest.mark.parametrize(
    "mount", [{"bucket": "b", "mount_path": "/d", "read_only": True}, {"bucket": "b"}, {"mount_path": "/d"}]
)
def test_a_wrong_s3_mount_is_an_error_where_it_is_written(mount: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="s3_mount"):
        Sandbox(s3_mount=mount)


@pytest.mark.row("S117")
def test_ports_files_and_max_timeout_seconds_go_into_the_request() -> None:
    spec = sent(
        ports=[{"container_port": 8080, "name": "web", "protocol": "tcp"}],
        mounted_files=[{"path": "/a", "content": "x"}],
        max_timeout_seconds=7,
    )
    assert (spec.services[0].port, spec.services[0].name) == (8080, "web")
    assert (spec.containers[0].files[0].path, spec.containers[0].files[0].content) == ("/a", b"x")
    assert spec.max_timeout_seconds == 7


@pytest.mark.row("S115")
def test_a_network_as_a_dict_is_the_same_request() -> None:
    options = {"ingress_mode": "public", "egress_mode": "internet", "exposed_ports": [80]}
    assert sent(network=options) == sent(network=NetworkOptions(**options))  # type: ignore[arg-type]
    assert sent(network={"egress_mode": "internet"}) == sent(
        defaults=SandboxDefaults(network=NetworkOptions(egress_mode="internet"))
    )


@pytest.mark.row("S114")
def test_secrets_are_merged_defaults_first_and_grouped_by_store() -> None:
    first, second = Secret(store="vault", name="a"), Secret(store="other", name="b", field="f", env_var="B")
    spec = sent(
        defaults=SandboxDefaults(secrets=(first,)),
        secrets=[second, {"store": "vault", "name": "c"}, {"store": "vault", "name": "a"}],
    )
    stores = [(each.store_name, [m.path for m in each.secrets]) for each in spec.containers[0].secret_stores]
    assert stores == [("vault", ["a", "c"]), ("other", ["b"])]
    mapping = spec.containers[0].secret_stores[1].secrets[0]
    assert (mapping.path, mapping.field, mapping.env_var) == ("b", "f", "B")
    with pytest.raises(ValueError, match="token"):
        sent(defaults=SandboxDefaults(secrets=(first,)), secrets=[Secret(store="x", name="token", env_var="a")])


async def test_secrets_are_refused_by_their_stores_name(defaults: SandboxDefaults) -> None:
    refused = await refusal(Sandbox(secrets=[Secret(store="vault", name="token")], defaults=defaults))
    assert "vault" in str(refused)
    assert refused.reason == "CWSANDBOX_SECRET_STORE_NOT_PROVISIONED"


# Resources.


async def test_a_memory_limit_is_felt_inside(defaults: SandboxDefaults, level: str) -> None:
    async with Sandbox(resources={"memory": "64Mi"}, defaults=defaults) as sandbox:
        await sandbox
        assert sandbox.resource_limits == sandbox.resource_requests == {"memory": "64Mi"}
        assert sandbox.resource_gpu is None
        assert await output(sandbox, "python3", "-c", TAKE, "20") == "had it\n"
        assert (await sandbox.exec(["python3", "-c", TAKE, "200"])).returncode != 0
        holds = sandbox.limit_holds
        assert holds is not None
        assert holds["memory"] == ("process" if level == "bare" or "memory" not in find_cgroups().limits else "sandbox")
        assert holds.get("processes") == ("sandbox" if bounds_processes(level) else None)
        found = await Sandbox.from_id(sandbox.sandbox_id or "", base_url=defaults.base_url)
        assert (found.resource_limits, found.limit_holds) == (sandbox.resource_limits, holds)


async def test_a_limit_that_nothing_holds_is_told(
    defaults: SandboxDefaults, level: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwsandbox._client.gateway._told", set())
    for _ in range(2):
        async with Sandbox(
            resources={"requests": {"cpu": "250m"}, "limits": {"cpu": "1"}}, defaults=defaults
        ) as sandbox:
            await sandbox
            assert (sandbox.resource_limits, sandbox.resource_requests) == ({"cpu": "1"}, {"cpu": "250m"})
            assert sandbox.limit_holds is not None
            held = sandbox.limit_holds["cpu"]
    told = capfd.readouterr().err
    if held == "none":
        assert told.count("cpu not at all") == 1
    else:
        assert (held, told) == ("sandbox", "")
    if level == "bare":
        assert held == "none"


async def test_without_resources_nothing_is_said_of_them(defaults: SandboxDefaults, level: str) -> None:
    async with Sandbox(defaults=defaults) as sandbox:
        await sandbox
        assert (sandbox.resource_limits, sandbox.resource_requests, sandbox.resource_gpu) == (None, None, None)
        assert sandbox.limit_holds == ({"processes": "sandbox"} if bounds_processes(level) else None)


@pytest.mark.parametrize(
    ("resources", "word"),
    [
        ({"memory": str(MEMORY * 2)}, "memory"),
        ({"cpu": str(len(os.sched_getaffinity(0)) + 1)}, "cpu"),
        ({"requests": {"cpu": "100"}, "limits": {"cpu": "200"}}, "cpu"),
        ({"memory": "1Mi"}, "16Mi"),
        ({"cpu": "1m"}, "10m"),
        ({"gpu": 1}, "GPU"),
        (ResourceOptions(gpu={"count": 1, "type": "H100"}), "GPU"),
        ({"limits": {"memory": "64Mi"}, "gpu": {"count": 2}}, "GPU"),
    ],
)
async def test_more_than_the_machine_has_is_refused(defaults: SandboxDefaults, resources: Any, word: str) -> None:
    assert word in str(await refusal(Sandbox(resources=resources, defaults=defaults)))


async def test_snapshots_are_refused_and_the_sandbox_goes_on(defaults: SandboxDefaults) -> None:
    async with Sandbox(defaults=defaults) as sandbox:
        await sandbox
        with pytest.raises(SandboxRefusedError, match="snapshot"):
            await sandbox.stop(snapshot_on_stop=True)
        assert await output(sandbox, "echo", "still here") == "still here\n"


# What goes into the request (behaviour 10.6, 10.8).


@pytest.mark.parametrize(
    ("given", "requests", "limits"),
    [
        ({"cpu": "1", "memory": "1Gi"}, {"cpu": "1", "memory": "1Gi"}, {"cpu": "1", "memory": "1Gi"}),
        ({"requests": {"cpu": "1"}}, {"cpu": "1"}, {"cpu": "1"}),
        ({"limits": {"memory": "1Gi"}}, {"memory": "1Gi"}, {"memory": "1Gi"}),
        (
            {"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Gi"}},
            {"cpu": "1"},
            {"cpu": "2", "memory": "1Gi"},
        ),
        (ResourceOptions(requests={"cpu": "1"}, limits={}), {"cpu": "1"}, {"cpu": "1"}),
    ],
)
def test_a_missing_side_is_filled_as_a_whole(given: Any, requests: dict[str, Any], limits: dict[str, Any]) -> None:
    sides = sent(resources=given).containers[0].resource_requirements
    assert sides is not None
    assert sides.requests == Resources(**requests)
    assert sides.limits == Resources(**limits)


@pytest.mark.parametrize("given", [{"gpu": 2}, {"gpu": {"count": 2}}, {"requests": {}, "gpu": {"count": 2}}])
def test_gpus_go_with_both_sides(given: Any) -> None:
    sides = sent(resources=given).containers[0].resource_requirements
    assert sides is not None
    assert sides.requests is not None
    assert sides.requests.gpu is not None
    assert (sides.requests.gpu.count, sides.limits) == (2, sides.requests)


@pytest.mark.parametrize("given", [None, ResourceOptions(), {"requests": None}])
def test_nothing_asked_for_is_nothing_sent(given: Any) -> None:
    assert sent(resources=given).containers[0].resource_requirements is None


def test_the_callers_dict_is_not_what_is_kept() -> None:
    given = {"cpu": "1"}
    options = resource_options(given)
    assert options is not None
    given["cpu"] = "2"
    assert (options.requests, options.limits) == ({"cpu": "1"}, {"cpu": "1"})
    assert options.requests is not options.limits


def test_ids_are_replaced_and_an_empty_list_clears_them() -> None:
    common = SandboxDefaults(profile_ids=("a",), runner_ids=("b",))
    assert (sent(defaults=common).profile_ids, sent(defaults=common).runner_ids) == (("a",), ("b",))
    cleared = sent(defaults=common, profile_ids=[], runner_ids=[])
    assert (cleared.profile_ids, cleared.runner_ids) == ((), ())
    assert sent(defaults=common, profile_ids=["c"]).profile_ids == ("c",)
