"""list, from_id and delete (S45 to S50, behaviour 2.3)."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from cwsandbox import Sandbox, SandboxNotFoundError, SandboxStatus

if TYPE_CHECKING:
    from tests.support.gateway import ServedGateway


@pytest.fixture
def tag() -> str:
    return f"tag-{uuid.uuid4().hex}"


@pytest.mark.row("S45")
def test_s045_list_filters_by_all_tags(home_folder: object, tag: str) -> None:
    with Sandbox.run(tags=[tag, "red"]) as red, Sandbox.run(tags=[tag, "blue"]):
        red.wait()
        found = Sandbox.list(tags=[tag, "red"]).result()
        assert [sandbox.sandbox_id for sandbox in found] == [red.sandbox_id]
        assert found[0].status == SandboxStatus.RUNNING
        assert len(Sandbox.list(tags=[tag]).result()) == 2
    assert Sandbox.list(tags=[tag]).result() == []


@pytest.mark.row("S45", "S46")
async def test_s046_await_list(home_folder: object, tag: str) -> None:
    async with Sandbox(tags=[tag]) as sandbox:
        await sandbox
        assert [found.sandbox_id for found in await Sandbox.list(tags=[tag])] == [sandbox.sandbox_id]


@pytest.mark.row("S45", "S120")
def test_s045_ended_sandboxes_are_listed_on_request(home_folder: object, tag: str) -> None:
    done = Sandbox.run("true", tags=[tag])
    done.wait_until_complete().result()
    assert Sandbox.list(tags=[tag]).result() == []
    assert [found.sandbox_id for found in Sandbox.list(tags=[tag], include_stopped=True).result()] == [done.sandbox_id]
    by_status = Sandbox.list(tags=[tag], status="completed").result()
    assert [(found.sandbox_id, found.status) for found in by_status] == [(done.sandbox_id, SandboxStatus.COMPLETED)]
    assert Sandbox.list(tags=[tag], status=SandboxStatus.FAILED).result() == []


def test_a_wrong_status_is_a_value_error(home_folder: object) -> None:
    with pytest.raises(ValueError, match="asleep"):
        Sandbox.list(status="asleep").result()


def test_listing_more_than_one_page(home_folder: object, tag: str) -> None:
    sandboxes = [Sandbox(command="true", tags=[tag]) for _ in range(105)]
    for ref in [sandbox.wait_until_complete() for sandbox in sandboxes]:
        ref.result()
    found = Sandbox.list(tags=[tag], include_stopped=True).result()
    assert {sandbox.sandbox_id for sandbox in found} == {sandbox.sandbox_id for sandbox in sandboxes}


@pytest.mark.row("S47")
def test_s047_from_id_then_exec(gateway: ServedGateway) -> None:
    with Sandbox(base_url=gateway.url) as sandbox:
        assert sandbox.sandbox_id is not None
        attached = Sandbox.from_id(sandbox.sandbox_id, base_url=gateway.url).result()
        assert attached.sandbox_id == sandbox.sandbox_id
        assert attached.exec(["echo", "reconnected"]).result().stdout == "reconnected\n"
    assert gateway.count("create") == 1


@pytest.mark.row("S47")
async def test_s047_from_id_then_exec_async(home_folder: object) -> None:
    async with Sandbox() as sandbox:
        assert sandbox.sandbox_id is not None
        attached = await Sandbox.from_id(sandbox.sandbox_id)
        assert (await attached.exec(["echo", "reconnected"])).stdout == "reconnected\n"


def test_from_id_of_an_ended_sandbox(home_folder: object) -> None:
    sandbox = Sandbox.run("true")
    sandbox.wait_until_complete().result()
    assert sandbox.sandbox_id is not None
    assert Sandbox.from_id(sandbox.sandbox_id).result().status == SandboxStatus.COMPLETED


@pytest.mark.row("S48", "S49", "S50")
def test_s048_to_s050_delete(gateway: ServedGateway) -> None:
    sandbox = Sandbox(base_url=gateway.url)
    sandbox.start().result()
    assert sandbox.sandbox_id is not None
    assert Sandbox.delete(sandbox.sandbox_id, base_url=gateway.url).result() is None
    assert gateway.count("delete") == 1
    assert Sandbox.delete(sandbox.sandbox_id, base_url=gateway.url, missing_ok=True).result() is None
    with pytest.raises(SandboxNotFoundError) as caught:
        Sandbox.delete(sandbox.sandbox_id, base_url=gateway.url).result()
    assert caught.value.sandbox_id == sandbox.sandbox_id
    sandbox.stop(missing_ok=True).result()


@pytest.mark.row("S48", "S49", "S50")
async def test_s048_to_s050_delete_async(home_folder: object) -> None:
    sandbox = Sandbox()
    await sandbox.start()
    assert sandbox.sandbox_id is not None
    await Sandbox.delete(sandbox.sandbox_id)
    await Sandbox.delete(sandbox.sandbox_id, missing_ok=True)
    with pytest.raises(SandboxNotFoundError) as caught:
        await Sandbox.delete(sandbox.sandbox_id)
    assert caught.value.sandbox_id == sandbox.sandbox_id
    with pytest.raises(SandboxNotFoundError):
        await Sandbox.from_id("no-such-sandbox")
    await sandbox.stop(missing_ok=True)


@pytest.mark.parametrize("sandbox_id", ["no-such-sandbox", "a/b", "..", "%2e%2e", "x?y=z", "ü", "a" * 5000])
def test_an_unknown_or_strange_id_is_not_found(home_folder: object, sandbox_id: str) -> None:
    with pytest.raises(SandboxNotFoundError) as caught:
        Sandbox.from_id(sandbox_id).result()
    assert caught.value.sandbox_id == sandbox_id
    with pytest.raises(SandboxNotFoundError):
        Sandbox.delete(sandbox_id).result()
