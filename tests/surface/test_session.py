"""Session: construction, tracking, close (S52, S99, S100, S108 to S116, S118 to S124, S133, S134; FIX-G)."""

from __future__ import annotations

import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from cwsandbox import (
    NetworkOptions,
    Sandbox,
    SandboxDefaults,
    SandboxError,
    SandboxStatus,
    SandboxTerminatedError,
    Secret,
    Session,
)
from cwsandbox._runtime.portal import portal_scope
from tests.support.processes import assert_gone, new_marker

if TYPE_CHECKING:
    from tests.support.gateway import ServedGateway

TERMINAL = {SandboxStatus.COMPLETED, SandboxStatus.FAILED, SandboxStatus.TERMINATED}


def spec_of(sandbox: Sandbox) -> Any:
    """What its create request asks for."""
    assert sandbox._core._request is not None
    return sandbox._core._request.to_resource().spec


@pytest.fixture
def tag() -> str:
    return f"tag-{uuid.uuid4().hex}"


@pytest.mark.row("S99")
def test_s099_construction() -> None:
    for session in (Session(), Session(SandboxDefaults()), Session({"tags": ["a"], "unknown key": 1}), Session(None)):
        assert session.sandbox_count == 0
        session.close().result()
    with pytest.raises(TypeError):
        Session("defaults")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Session(5)  # type: ignore[arg-type]


@pytest.mark.row("S99")
async def test_s099_construction_async() -> None:
    for defaults in (None, SandboxDefaults(), {"tags": ["a"]}):
        async with Session(defaults) as session:
            assert isinstance(session, Session)


@pytest.mark.row("S99")
def test_s099_sandbox_session_makes_one() -> None:
    with Sandbox.session({"tags": ["a"]}) as session:
        assert isinstance(session, Session)


@pytest.mark.row("S100")
def test_s100_sandbox_count() -> None:
    session = Session()
    assert session.sandbox_count == 0
    session.sandbox()
    session.sandbox()
    assert session.sandbox_count == 2
    assert "2" in repr(session)
    session.close().result()
    assert session.sandbox_count == 0


@pytest.mark.row("S100", "FIX-G")
def test_fix_g_a_stopped_sandbox_is_no_longer_tracked(home_folder: object) -> None:
    with Session() as session:
        unstarted, running, deleted = (session.sandbox() for _ in range(3))
        unstarted.stop().result()
        assert session.sandbox_count == 2
        running.start().result()
        running.stop().result()
        assert session.sandbox_count == 1
        deleted.start().result()
        assert deleted.sandbox_id is not None
        Sandbox.delete(deleted.sandbox_id).result()
        deleted.stop(missing_ok=True).result()
        assert session.sandbox_count == 0


@pytest.mark.row("S108")
def test_s108_close_returns_before_the_sandboxes_ended(gateway: ServedGateway) -> None:
    session = Session({"base_url": gateway.url})
    sandboxes = [session.sandbox() for _ in range(2)]
    for sandbox in sandboxes:
        sandbox.wait()
    gateway.ending.close()
    closing = session.close()
    gateway.ending.wait_for_arrivals(2)
    with pytest.raises(TimeoutError):
        closing.result(timeout=0.05)
    assert {sandbox.status for sandbox in sandboxes}.isdisjoint(TERMINAL)
    gateway.ending.open()
    closing.result()
    assert {sandbox.status for sandbox in sandboxes} <= TERMINAL


@pytest.mark.row("S108")
async def test_s108_close_returns_before_the_sandboxes_ended_async(gateway: ServedGateway) -> None:
    async with Session({"base_url": gateway.url}) as session:
        sandboxes = [await session.sandbox() for _ in range(2)]
        gateway.ending.close()
        closing = session.close()
        await anyio.to_thread.run_sync(gateway.ending.wait_for_arrivals, 2)
        assert {sandbox.status for sandbox in sandboxes}.isdisjoint(TERMINAL)
        gateway.ending.open()
        await closing
        assert {sandbox.status for sandbox in sandboxes} <= TERMINAL


@pytest.mark.row("S109")
def test_s109_a_second_close_joins_the_first(gateway: ServedGateway) -> None:
    session = Session({"base_url": gateway.url})
    sandbox = session.sandbox()
    sandbox.wait()
    gateway.ending.close()
    first = session.close()
    second = session.close()
    gateway.ending.wait_for_arrivals(1)
    with pytest.raises(TimeoutError):
        second.result(timeout=0.05)
    gateway.ending.open()
    second.result()
    assert sandbox.status in TERMINAL
    first.result()


@pytest.mark.row("S109")
async def test_s109_closing_what_was_left_has_nothing_to_wait_for(home_folder: object) -> None:
    async with Session() as session:
        await session.sandbox()
        first = session.close()
    await session.close()
    await first
    await anyio.to_thread.run_sync(session.close().result)


@pytest.mark.row("S109")
async def test_s109_leaving_waits_for_all_async(home_folder: object) -> None:
    async with Session() as session:
        sandboxes = [session.sandbox() for _ in range(3)]
        for sandbox in sandboxes:
            await sandbox
    assert {sandbox.status for sandbox in sandboxes} <= TERMINAL


@pytest.mark.row("S110")
def test_s110_close_counts_the_failures_and_stops_the_others(gateway: ServedGateway) -> None:
    session = Session({"base_url": gateway.url})
    sandboxes = [session.sandbox() for _ in range(3)]
    for sandbox in sandboxes:
        sandbox.wait()
    gateway.refuse("stop", times=1)
    with pytest.raises(SandboxError, match="1") as caught:
        session.close().result()
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.exceptions) == 1
    assert session.sandbox_count == 0
    left = Sandbox.list(base_url=gateway.url).result()
    assert len(left) == 1
    left[0].stop().result()
    for sandbox in sandboxes:
        sandbox.stop().result()


@pytest.mark.usefixtures("never_stopped")
@pytest.mark.row("S110")
async def test_s110_close_counts_the_failures_async(gateway: ServedGateway) -> None:
    with pytest.raises(SandboxError, match="1"):
        async with Session({"base_url": gateway.url}) as session:
            for sandbox in [session.sandbox() for _ in range(2)]:
                await sandbox
            gateway.refuse("stop", times=1)
    for left in await Sandbox.list(base_url=gateway.url):
        await left.stop()


@pytest.mark.usefixtures("never_stopped")
@pytest.mark.row("S110")
def test_s110_a_body_exception_wins_over_close_failures(gateway: ServedGateway) -> None:
    with pytest.raises(KeyError, match="body"), Session({"base_url": gateway.url}) as session:
        session.sandbox().wait()
        gateway.refuse("stop", times=1)
        raise KeyError("body")
    for left in Sandbox.list(base_url=gateway.url).result():
        left.stop().result()


@pytest.mark.row("S111")
def test_s111_a_closed_session_makes_and_adopts_nothing(sb: Sandbox) -> None:
    session = Session()
    session.close().result()
    with pytest.raises(SandboxError):
        session.sandbox()
    with pytest.raises(SandboxError):
        session.adopt(sb)
    with pytest.raises(SandboxError):
        session.from_id(str(sb.sandbox_id)).result()
    session.close().result()


@pytest.mark.row("S111")
async def test_s111_a_left_session_makes_nothing(home_folder: object) -> None:
    async with Session() as session:
        pass
    with pytest.raises(SandboxError):
        session.sandbox()


@pytest.mark.row("S112", "S118", "S119", "S120")
def test_s112_s118_tags_merge_and_filter(home_folder: object, tag: str) -> None:
    with Session(SandboxDefaults(tags=(tag,))) as session, Sandbox.run(tags=["other"]):
        red, done = session.sandbox(tags=["red"]), session.sandbox(command="true")
        red.start().result()
        done.wait_until_complete().result()
        assert [found.sandbox_id for found in session.list().result()] == [red.sandbox_id]
        assert [found.sandbox_id for found in session.list(tags=["red"]).result()] == [red.sandbox_id]
        assert session.list(tags=["blue"]).result() == []
        assert session.list(tags=[""]).result() == session.list(profile_ids=[""]).result() == []
        assert len(session.list(include_stopped=True).result()) == 2
        assert [found.sandbox_id for found in session.list(status="completed").result()] == [done.sandbox_id]


@pytest.mark.row("S113")
def test_s113_environment_merges_per_key(home_folder: object) -> None:
    with Session({"environment_variables": {"A": "default", "B": "default"}}) as session:
        sandbox = session.sandbox(environment_variables={"B": "own"})
        assert sandbox.exec(["sh", "-c", 'echo "$A $B"']).result().stdout == "default own\n"


@pytest.mark.row("S115")
def test_s115_network_as_dict_or_options() -> None:
    with Session() as session:
        session.sandbox(network={"egress_mode": "isolated"})
        session.sandbox(network=NetworkOptions(egress_mode="isolated"))
        with pytest.raises(TypeError):
            session.sandbox(network={"colour": "red"})
        with pytest.raises(TypeError):
            session.sandbox(network="isolated")  # type: ignore[arg-type]
        assert session.sandbox_count == 2


@pytest.mark.row("S114")
def test_s114_secrets_of_the_defaults_come_first() -> None:
    team, own = Secret(store="vault", name="TEAM"), Secret(store="vault", name="OWN")
    with Session({"secrets": [team]}) as session:
        sandbox = session.sandbox(secrets=[own, {"store": "vault", "name": "TEAM"}])
        (store,) = spec_of(sandbox).containers[0].secret_stores
        assert [mapping.path for mapping in store.secrets] == ["TEAM", "OWN"]
        with pytest.raises(ValueError, match="TEAM"):
            session.sandbox(secrets=[Secret(store="other", name="TEAM")])


@pytest.mark.row("S116")
def test_s116_ids_replace_the_session_s(gateway: ServedGateway) -> None:
    with Session({"base_url": gateway.url, "profile_ids": ["default"], "runner_ids": ["elsewhere"]}) as session:
        assert (spec_of(session.sandbox()).profile_ids, spec_of(session.sandbox()).runner_ids) == (
            ("default",),
            ("elsewhere",),
        )
        own = session.sandbox(profile_ids=["other"], runner_ids=[])
        assert (spec_of(own).profile_ids, spec_of(own).runner_ids) == (("other",), ())
        anywhere = session.sandbox(profile_ids=[], runner_ids=[])
        anywhere.wait()
        runner = str(anywhere.runner_id)
        assert session.list().result() == []  # The session's ids: none runs there.
        assert len(session.list(profile_ids=[], runner_ids=[]).result()) == 1
        assert len(session.list(profile_ids=[], runner_ids=[runner]).result()) == 1


@pytest.mark.row("S117")
def test_s117_what_only_a_sandbox_can_be_given_is_asked_for() -> None:
    with Session() as session:
        sandbox = session.sandbox(
            mounted_files=[{"path": "/etc/a", "content": "a"}, {"mount_path": "/etc/b", "file_content": b"b"}],
            s3_mount={"bucket": "b", "mount_path": "/data"},
            ports=[{"container_port": 8080, "name": "web"}],
            max_timeout_seconds=7,
        )
        spec = spec_of(sandbox)
        assert [(file.path, file.content) for file in spec.containers[0].files] == [("/etc/a", b"a"), ("/etc/b", b"b")]
        assert (spec.s3_mount.bucket, spec.s3_mount.mount_path) == ("b", "/data")
        assert [(service.port, service.name) for service in spec.services] == [(8080, "web")]
        assert spec.max_timeout_seconds == 7


@pytest.mark.row("S117")
async def test_s117_mounted_files_are_there_async(home_folder: object) -> None:
    async with Session() as session:
        sandbox = session.sandbox(mounted_files=[{"path": "/etc/greeting", "content": "hello"}])
        assert (await sandbox.exec(["cat", "/etc/greeting"])).stdout == "hello"


@pytest.mark.row("S51", "S52", "S122")
def test_s051_s052_s122_from_id_adopts_unless_asked_not_to(home_folder: object) -> None:
    adopted, watched = Sandbox.run(), Sandbox.run()
    with Session() as session:
        one = session.from_id(str(adopted.sandbox_id)).result()
        other = session.from_id(str(watched.sandbox_id), adopt=False).result()
        assert session.sandbox_count == 1
        assert one.exec(["echo", "adopted"]).result().stdout == "adopted\n"
        assert other.exec(["echo", "watched"]).result().stdout == "watched\n"
        assert isinstance(session.list().result()[0], Sandbox)
    assert adopted.get_status() in TERMINAL
    assert watched.get_status() == SandboxStatus.RUNNING
    watched.stop().result()


@pytest.mark.row("S51", "S52")
async def test_s051_s052_from_id_adopts_async(home_folder: object) -> None:
    async with Sandbox() as sandbox:
        async with Session() as session:
            adopted = await session.from_id(str(sandbox.sandbox_id))
            assert (await adopted.exec(["echo", "hello"])).stdout == "hello\n"
            assert all(isinstance(found, Sandbox) for found in await session.list())
        with pytest.raises(SandboxTerminatedError):
            await sandbox.wait_until_complete()


@pytest.mark.row("S121", "S134")
def test_s121_s134_listed_orphans_are_adopted_and_stopped(home_folder: object, tag: str) -> None:
    orphan = Sandbox.run(tags=[tag])
    with Session({"tags": [tag]}) as session:
        assert [found.sandbox_id for found in session.list(adopt=True).result()] == [orphan.sandbox_id]
        assert session.sandbox_count == 1
    assert orphan.get_status() in TERMINAL


@pytest.mark.row("S121", "S134")
async def test_s121_s134_listed_orphans_are_adopted_and_stopped_async(home_folder: object, tag: str) -> None:
    orphan = Sandbox(tags=[tag])
    await orphan.start()
    async with Session({"tags": [tag]}) as session:
        assert len(await session.list(adopt=True)) == 1
    assert await orphan.wait_until_complete(raise_on_termination=False) is orphan


@pytest.mark.row("S123", "S124")
def test_s124_adopting_an_unstarted_sandbox_is_a_value_error(home_folder: object) -> None:
    with Session() as session, pytest.raises(ValueError, match="id"):
        session.adopt(Sandbox())


@pytest.mark.row("S133")
def test_s133_three_starts_overlap(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    with Session(SandboxDefaults(base_url=gateway.url)) as session:
        processes = [session.sandbox().exec(["echo", f"sb-{n}"]) for n in range(3)]
        gateway.accepting.wait_for_arrivals(3)
        gateway.accepting.open()
        assert [process.result().stdout for process in processes] == ["sb-0\n", "sb-1\n", "sb-2\n"]


@pytest.mark.row("S133")
async def test_s133_three_starts_overlap_async(gateway: ServedGateway) -> None:
    gateway.accepting.close()
    async with Session(SandboxDefaults(base_url=gateway.url)) as session:
        processes = [session.sandbox().exec(["echo", f"sb-{n}"]) for n in range(3)]
        await anyio.to_thread.run_sync(gateway.accepting.wait_for_arrivals, 3)
        gateway.accepting.open()
        assert [(await process).stdout for process in processes] == ["sb-0\n", "sb-1\n", "sb-2\n"]


def test_a_sandbox_stopped_inside_leaves_the_session(home_folder: object) -> None:
    with Session() as session:
        with session.sandbox() as sandbox:
            assert session.sandbox_count == 1
        assert sandbox.status in TERMINAL
        assert session.sandbox_count == 0


async def test_leaving_an_async_session_kills_running_commands(home_folder: object) -> None:
    marker = new_marker()
    async with Session() as session:
        sandbox = session.sandbox()
        process = sandbox.exec(["sh", "-c", f"echo up; exec sleep {marker}"])
        assert await anext(process.stdout) == "up\n"
    await anyio.to_thread.run_sync(assert_gone, marker)
    with pytest.raises(BaseException):  # noqa: B017 - an SDK error or a cancellation, but never a result
        await anyio.to_thread.run_sync(process.result, 5)
    assert process.returncode is None


@pytest.mark.row("S111", "S121", "S123")
async def test_s123_a_closed_session_adopts_nothing_that_it_finds(home_folder: object) -> None:
    session = Session()
    await session.close()
    for ref in (session.list(adopt=True), session.list(status="completed", adopt=True), session.from_id("sb-none")):
        with pytest.raises(SandboxError, match="closed"):
            await ref
    with pytest.raises(TypeError, match="from_id"):
        session.adopt("sb-none")  # type: ignore[arg-type]


async def test_a_left_session_still_finds(home_folder: object, tag: str) -> None:
    async with Session({"tags": [tag]}) as session:
        sandbox = session.sandbox()
        await sandbox
    found = await session.list(include_stopped=True)
    assert [each.sandbox_id for each in found] == [sandbox.sandbox_id]
    assert sandbox.sandbox_id is not None
    assert (await session.from_id(sandbox.sandbox_id, adopt=False)).status is SandboxStatus.TERMINATED
    with pytest.raises(SandboxError, match="the session is closed"):
        await session.list(adopt=True)


def test_a_sandbox_that_was_deleted_is_no_failure_of_closing(home_folder: object) -> None:
    with Session() as session:
        deleted, other = session.sandbox(), session.sandbox()
        other.wait()
        deleted.wait()
        assert deleted.sandbox_id is not None
        Sandbox.delete(deleted.sandbox_id).result()
    assert (deleted.status, other.status) == (SandboxStatus.TERMINATED, SandboxStatus.TERMINATED)


def test_first_uses_in_several_threads_find_one_scope() -> None:
    before, interval = len(portal_scope()._cleanups), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            session, gate = Session(), threading.Barrier(4)

            def use(session: Session = session, gate: threading.Barrier = gate) -> None:
                gate.wait()
                session._operations_scope()

            threads = [threading.Thread(target=use) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            session.close().result()
            assert len(portal_scope()._cleanups) <= before
    finally:
        sys.setswitchinterval(interval)


def test_a_sandbox_has_one_session(home_folder: object) -> None:
    with Session() as outer, Session() as inner:
        sandbox = outer.sandbox()
        sandbox.start().result()
        inner.adopt(sandbox)
        inner.adopt(sandbox)
        assert (outer.sandbox_count, inner.sandbox_count) == (0, 1)
        sandbox.stop().result()
        assert inner.sandbox_count == 0


@pytest.mark.row("S119")
def test_s119_show_terminated_is_include_stopped(home_folder: object, tag: str) -> None:
    with Session({"tags": [tag]}) as session:
        session.sandbox(command="true").wait_until_complete().result()
        assert session.list().result() == []
        assert len(session.list(show_terminated=True).result()) == 1


@pytest.mark.usefixtures("never_stopped")
@pytest.mark.row("S110")
def test_s110_all_causes_are_told_and_a_second_close_tells_the_same(gateway: ServedGateway) -> None:
    session = Session({"base_url": gateway.url})
    for sandbox in [session.sandbox() for _ in range(3)]:
        sandbox.wait()
    gateway.refuse("stop", times=2)
    refs = [session.close(), session.close()]
    for number in range(3):
        ref = refs[number] if number < 2 else session.close()
        with pytest.raises(
            SandboxError, match=r"2 of 3 sandboxes could not be stopped: .*refused by the test"
        ) as caught:
            ref.result()
        cause = caught.value.__cause__
        assert isinstance(cause, ExceptionGroup)
        assert [type(error) for error in cause.exceptions] == [SandboxError] * 2
    for left in Sandbox.list(base_url=gateway.url).result():
        left.stop().result()
