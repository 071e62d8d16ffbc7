"""The HTTP face: routes, parameters, bodies, errors."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from cwsandbox.gateway import app as application
from cwsandbox.gateway.app import Gateway, make_app
from cwsandbox.gateway.auth import KeyAuthenticator, new_key, read_key_file
from cwsandbox.wire import openapi
from cwsandbox.wire.errors import Code, Reason, Status
from tests.gateway.client import AsgiSocket
from tests.gateway.conftest import ME

if TYPE_CHECKING:
    from tests.gateway.conftest import World

SLEEP = {"spec": {"containers": [{"name": "main", "command": "sleep", "args": ["1000"]}]}}


def with_main(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"command": "sleep", "args": ["1000"], **fields}]}}


def with_spec(**fields: Any) -> dict[str, Any]:
    return {"spec": {**SLEEP["spec"], **fields}}


def refused(answer: httpx.Response, code: Code, reason: Reason | None = None) -> Status:
    status = Status.from_json(answer.json())
    assert (status.code, answer.status_code) == (code, code.http_status)
    if reason is not None:
        assert (status.reason, status.domain) == (reason, "cwsandbox.com")
    return status


async def test_a_life_over_http(world: World) -> None:
    async with world.http() as http:
        made = await http.post("/v1/sandboxes", params={"requestId": "r"}, json=SLEEP)
        assert made.status_code == 200
        path = f"/v1/sandboxes/{made.json()['sandboxId']}"
        again = await http.post("/v1/sandboxes", params={"requestId": "r"}, json=SLEEP)
        assert again.json()["sandboxId"] == made.json()["sandboxId"]
        running = (await http.get(path, params={"waitFor": "running", "timeoutSeconds": "10"})).json()
        assert running["status"]["state"] == "STATE_RUNNING"
        assert running["status"]["startTime"].endswith("Z")
        assert "exitCode" not in running["status"]
        assert [s["sandboxId"] for s in (await http.get("/v1/sandboxes")).json()["sandboxes"]] == [running["sandboxId"]]
        assert (await http.get("/v1/gateway")).json()["sandboxes"] == 1
        stopping = (await http.post(f"{path}:stop", json={"gracePeriodSeconds": 5})).json()
        assert stopping["status"]["state"] == "STATE_TERMINATING"
        over = (await http.get(path, params={"waitFor": "terminal", "timeoutSeconds": "10"})).json()
        assert over["status"]["state"] == "STATE_TERMINATED"
        assert over["status"]["exitCode"] == 128 + 15
        assert (await http.delete(path)).status_code == 200
        status = refused(await http.get(path), Code.NOT_FOUND, Reason.SANDBOX_NOT_FOUND)
        assert status.metadata == {"sandboxId": running["sandboxId"]}


@pytest.mark.parametrize("end", ["stop", "delete"])
async def test_an_end_is_on_disk_before_it_is_answered(world: World, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Else a successor of a gateway that is killed right after it would let the sandbox run on."""
    sandbox = await world.sandbox()
    await world.store.flush()
    written, answered = threading.Event(), anyio.Event()
    write = world.store._write

    def slow(rows: dict[str, str | None]) -> None:
        assert written.wait(20)
        write(rows)

    monkeypatch.setattr(world.store, "_write", slow)

    async def ask() -> None:
        async with world.http() as http:
            path = f"/v1/sandboxes/{sandbox.record.sandbox_id}"
            answer = await (http.post(f"{path}:stop", json={}) if end == "stop" else http.delete(path))
            assert answer.status_code == 200
            answered.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        with anyio.fail_after(20):
            await world.service.wait_for(ME, sandbox.record.sandbox_id, "terminal", 20)
        await anyio.wait_all_tasks_blocked()
        assert not answered.is_set()
        written.set()
        with anyio.fail_after(20):
            await answered.wait()


async def test_deleting_what_is_missing(world: World) -> None:
    async with world.http() as http:
        refused(await http.delete("/v1/sandboxes/sb-none"), Code.NOT_FOUND, Reason.SANDBOX_NOT_FOUND)
        allowed = await http.delete("/v1/sandboxes/sb-none", params={"allowMissing": "true"})
        assert (allowed.status_code, allowed.json()) == (200, {})


async def test_secrets_do_not_come_back(world: World) -> None:
    body = with_main(environmentVariables={"KEY": "hunter2"}, files=[{"path": "/etc/x", "content": "aHVudGVyMg=="}])
    async with world.http() as http:
        made = await http.post("/v1/sandboxes", json=body)
        listed = await http.get("/v1/sandboxes")
    await world.store.flush()
    for text in (made.text, listed.text, *await world.store.load()):
        assert "hunter2" not in text
        assert "aHVudGVyMg" not in text


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ({"waitfor": "running"}, "waitfor"),
        ({"waitFor": "paused"}, "waitFor"),
        ({"waitFor": "running", "timeoutSeconds": "-1"}, "timeoutSeconds"),
        ({"waitFor": "running", "timeoutSeconds": "nan"}, "timeoutSeconds"),
        ([("waitFor", "running"), ("waitFor", "terminal")], "waitFor"),
    ],
)
async def test_wrong_queries_are_refused_by_name(world: World, query: Any, word: str) -> None:
    async with world.http() as http:
        made = (await http.post("/v1/sandboxes", json=SLEEP)).json()
        answer = await http.get(f"/v1/sandboxes/{made['sandboxId']}", params=query)
    assert word in refused(answer, Code.INVALID_ARGUMENT).message


async def test_lists_refuse_nonsense(world: World) -> None:
    async with world.http() as http:
        for query in ({"state": "RUNNING"}, {"pageToken": "x"}, {"pageSize": "a"}, {"showTerminated": "yes"}):
            refused(await http.get("/v1/sandboxes", params=query), Code.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    ("body", "code", "reason", "word"),
    [
        ({"spec": {"containers": []}}, Code.INVALID_ARGUMENT, None, "containers"),
        ({}, Code.INVALID_ARGUMENT, None, "spec"),
        ({"spec": {"containers": [{"comand": "x"}]}}, Code.INVALID_ARGUMENT, None, "comand"),
        (with_main(command=""), Code.INVALID_ARGUMENT, None, "command"),
        (with_main(args=["a\0b"]), Code.INVALID_ARGUMENT, None, "NUL"),
        (with_main(environmentVariables={"A=B": "x"}), Code.INVALID_ARGUMENT, None, "environmentVariables"),
        (with_main(files=[{"path": "etc/x", "content": ""}]), Code.INVALID_ARGUMENT, None, "absolute"),
        (with_main(files=[{"path": "/x"}, {"path": "/x"}]), Code.INVALID_ARGUMENT, None, "twice"),
        (with_main(workingDir="/srv"), Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED, "working directory"),
        (with_main(resources={"gpu": {"count": 1}}), Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED, "GPU"),
        (with_main(resources={"memory": "1Mi"}), Code.INVALID_ARGUMENT, None, "16Mi"),
        (with_main(resources={"cpu": "3"}), Code.INVALID_ARGUMENT, Reason.RESOURCE_CEILING_EXCEEDED, "2000m"),
        (with_main(resources={"memory": "1Ti"}), Code.INVALID_ARGUMENT, Reason.RESOURCE_CEILING_EXCEEDED, "memory"),
        (with_main(resources={"memory": "much"}), Code.INVALID_ARGUMENT, None, "quantity"),
        (with_main(resources={"memory": "5e3m"}), Code.INVALID_ARGUMENT, None, "quantity"),
        (
            with_main(secretStores=[{"storeName": "wandb", "secrets": [{"path": "p", "envVar": "V"}]}]),
            Code.FAILED_PRECONDITION,
            Reason.SECRET_STORE_NOT_PROVISIONED,
            "wandb",
        ),
        (with_spec(runnerIds=["other"]), Code.FAILED_PRECONDITION, Reason.NO_SUITABLE_RUNNER, "other"),
        (with_spec(profileIds=["gold"]), Code.FAILED_PRECONDITION, Reason.NO_SUITABLE_RUNNER, "gold"),
        (with_spec(services=[{"port": 80}]), Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED, "ports"),
        (with_spec(network={"exposedPorts": [80]}), Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED, "ports"),
        (with_spec(network={"ingressMode": "public"}), Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED, "public"),
        (with_spec(network={"egressMode": "internet"}), Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED, "internet"),
        (with_spec(s3Mount={"bucket": "b", "mountPath": "/m"}), Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED, "S3"),
        (with_spec(maxLifetimeSeconds=31 * 86400), Code.INVALID_ARGUMENT, None, "30 days"),
        (with_spec(primaryContainer="side"), Code.INVALID_ARGUMENT, None, "primaryContainer"),
        (with_spec(tags=["x" * 300]), Code.INVALID_ARGUMENT, None, "tags"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    world: World, body: dict[str, Any], code: Code, reason: Reason | None, word: str
) -> None:
    async with world.http() as http:
        status = refused(await http.post("/v1/sandboxes", json=body), code, reason)
    assert word in status.message
    assert world.runner.created == 0


async def test_what_can_be_honoured_is_accepted(world: World) -> None:
    body = with_main(resourceRequirements={"requests": {"memory": "64Mi"}, "limits": {"memory": "0.5Gi"}})
    body["spec"] |= {"network": {"egressMode": "isolated"}, "runnerIds": ["host"], "maxLifetimeSeconds": 60}
    seen = []
    make = world.runner.create

    async def create(spec: Any) -> Any:
        seen.append(spec)
        return await make(spec)

    world.runner.create = create  # type: ignore[method-assign]
    async with world.http() as http:
        made = (await http.post("/v1/sandboxes", json=body)).json()
        record = await http.get(f"/v1/sandboxes/{made['sandboxId']}", params={"waitFor": "running"})
    assert record.json()["status"]["state"] == "STATE_RUNNING"
    assert record.json()["status"]["effectiveMaxLifetimeSeconds"] == 60
    assert seen[0].limits.memory_bytes == 512 * 1024**2


def http_scope(method: str, path: str, query: bytes = b"") -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": [],
    }


async def test_bodies_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "BODY_BYTES", 1000)
    parts, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal parts
        parts += 1
        return {"type": "http.request", "body": b"x" * 300, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    await world.app(http_scope("POST", "/v1/sandboxes"), receive, send)
    assert sent[0]["status"] == Code.RESOURCE_EXHAUSTED.http_status
    assert parts == 4


async def test_bodies_are_json(world: World) -> None:
    async with world.http() as http:
        refused(await http.post("/v1/sandboxes", content=b"{"), Code.INVALID_ARGUMENT)


async def test_unknown_routes_answer_in_kind(world: World) -> None:
    async with world.http() as http:
        refused(await http.get("/v1/volumes"), Code.UNIMPLEMENTED)
        refused(await http.put("/v1/sandboxes"), Code.UNIMPLEMENTED)
        refused(await http.get("/v1/volumes", headers={"host": "["}), Code.UNIMPLEMENTED)
        refused(await http.get("/v1/sandboxes/", headers={"host": "elsewhere"}), Code.UNIMPLEMENTED)


async def test_a_snapshot_on_stop_is_refused(world: World) -> None:
    sandbox = await world.sandbox()
    async with world.http() as http:
        answer = await http.post(f"/v1/sandboxes/{sandbox.record.sandbox_id}:stop", json={"snapshotOnStop": True})
    refused(answer, Code.UNIMPLEMENTED, Reason.NOT_IMPLEMENTED)
    assert not sandbox.terminal


async def test_every_described_route_is_there(world: World) -> None:
    async with world.http() as http:
        document = (await http.get("/openapi.json")).json()
        assert document == json.loads(json.dumps(openapi.document()))
        for path, operations in document["paths"].items():
            for method in operations:
                answer = await http.request(method, path.replace("{sandboxId}", "sb-none"), json={})
                if answer.status_code != 200:
                    assert Status.from_json(answer.json()).code is not Code.UNIMPLEMENTED, (method, path)


async def test_only_an_embedded_gateway_is_shut_down_by_request(world: World) -> None:
    asked = anyio.Event()
    gateway = Gateway(world.service, KeyAuthenticator({}))
    async with world.http() as http:
        refused(await http.post("/v1/gateway:shutdown"), Code.PERMISSION_DENIED)
    from cwsandbox.gateway.auth import PeerAuthenticator

    gateway = Gateway(world.service, PeerAuthenticator(1000), shut_down=asked.set)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(gateway)), base_url="http://gateway") as http:
        assert (await http.post("/v1/gateway:shutdown")).status_code == 200
    assert asked.is_set()


class TestKeys:
    async def test_each_key_sees_its_own_sandboxes_only(self, world: World) -> None:
        (ann, ann_line), (bob, bob_line) = new_key("ann"), new_key("bob")
        app = make_app(Gateway(world.service, read_key_file(["# keys", "", ann_line, bob_line])))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            refused(await http.get("/v1/sandboxes"), Code.UNAUTHENTICATED)
            for wrong in ("Bearer nonsense", "Basic " + ann, "Bearer", ann):
                answer = await http.get("/v1/sandboxes", headers={"authorization": wrong})
                refused(answer, Code.UNAUTHENTICATED)
            as_ann, as_bob = ({"authorization": f"Bearer {key}"} for key in (ann, bob))
            made = await http.post("/v1/sandboxes", json=SLEEP, headers=as_ann)
            path = f"/v1/sandboxes/{made.json()['sandboxId']}"
            assert (await http.get(path, headers=as_ann)).status_code == 200
            refused(await http.get(path, headers=as_bob), Code.NOT_FOUND)
            refused(await http.delete(path, headers=as_bob), Code.NOT_FOUND)
            assert (await http.get("/v1/sandboxes", headers=as_bob)).json() == {}
            assert (await http.get("/v1/gateway", headers=as_bob)).json().get("sandboxes", 0) == 0

    async def test_the_channel_asks_for_a_key_too(self, world: World) -> None:
        _, line = new_key("ann")
        app = make_app(Gateway(world.service, read_key_file([line])))
        socket = AsgiSocket(app)
        world.tasks.start_soon(socket.run)
        answer = await socket.receive()
        assert (answer["type"], answer["status"]) == ("websocket.http.response.start", 401)
        body = await socket.receive()
        assert Status.from_json(json.loads(body["body"])).code is Code.UNAUTHENTICATED
        socket.close()

    def test_key_files_are_checked(self) -> None:
        key, line = new_key("ann")
        assert key not in line
        for lines in ([], ["# none"], ["ann"], [line, line], [line, line.replace("ann", "bob")], ["a b:" + "0" * 64]):
            with pytest.raises(ValueError, match="key file"):
                read_key_file(lines)
        second, second_line = new_key("ann")
        both = read_key_file([line, second_line])
        assert {both.principal(None, f"Bearer {each}") for each in (key, second)} == {"key:ann"}

    def test_keys_do_not_show(self) -> None:
        _, line = new_key("ann")
        assert line.partition(":")[2] not in repr(read_key_file([line]))


async def test_a_long_poll_ends_with_its_client(world: World) -> None:
    sandbox = await world.sandbox()
    scope = http_scope("GET", f"/v1/sandboxes/{sandbox.record.sandbox_id}", b"waitFor=terminal&timeoutSeconds=500")
    sent = []
    gone = anyio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.app, scope, receive, send)
            await anyio.wait_all_tasks_blocked()
            assert sandbox.idle_since is None
            gone.set()
    assert sandbox.idle_since is not None
