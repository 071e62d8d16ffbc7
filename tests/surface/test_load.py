"""Much at once, and much data (contract 3 and 7)."""

from __future__ import annotations

import json
import threading

import anyio
import pytest

from cwsandbox import Process, Sandbox
from tests.support.clients import run_client
from tests.support.levels import needs_descriptors

MIB = 1024 * 1024


@pytest.mark.timeout(120)
def test_a_hundred_threads_share_a_sandbox(sb: Sandbox) -> None:
    outputs: dict[int, list[str]] = {}

    def use(number: int) -> None:
        outputs[number] = [sb.exec(["echo", f"{number} {turn}"]).result().stdout for turn in range(3)]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert outputs == {number: [f"{number} {turn}\n" for turn in range(3)] for number in range(100)}


@needs_descriptors(1600)
@pytest.mark.timeout(120)
def test_two_hundred_commands_in_flight_on_one_sandbox(sb: Sandbox) -> None:
    processes = [sb.exec(["cat"], stdin=True) for _ in range(200)]
    for number, process in enumerate(processes):
        assert process.stdin is not None
        process.stdin.writeline(str(number))
    for number, process in enumerate(processes):
        assert next(process.stdout) == f"{number}\n"
    assert all(process.poll() is None for process in processes)
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.result().stdout for process in processes] == [f"{number}\n" for number in range(200)]


@needs_descriptors(8000)
@pytest.mark.timeout(120)
def test_a_thousand_commands_in_flight_on_one_sandbox(sb: Sandbox) -> None:
    processes = [sb.exec(["echo", str(number)]) for number in range(1000)]
    assert [process.result().stdout for process in processes] == [f"{number}\n" for number in range(1000)]


@pytest.mark.timeout(120)
async def test_two_hundred_awaited_commands_in_flight_on_one_sandbox(asb: Sandbox) -> None:
    outputs: dict[int, str] = {}

    async def use(number: int) -> None:
        outputs[number] = (await asb.exec(["echo", str(number)])).stdout

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(use, number)
    assert outputs == {number: f"{number}\n" for number in range(200)}


THOUSAND = """
import json, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from cwsandbox import Session

with Session() as session:
    sandboxes = [session.sandbox() for _ in range(20)]
    processes = [sandboxes[n % 20].exec(["echo", str(n)]) for n in range(1000)]
    right = sum(process.result().stdout == f"{n}\\n" for n, process in enumerate(processes))
print(json.dumps({"right": right}))
"""


@needs_descriptors(8000)
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_thousand_commands_over_twenty_sandboxes_with_1024_descriptors(home_folder: object) -> None:
    done = run_client(THOUSAND, seconds=170)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"right": 1000}


FLOOD = """
import json, os, time
from cwsandbox import Sandbox

LINES, WIDTH = 5_000_000, 99

def peak(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) // 1024

def gateways():
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    argv = file.read()
            except OSError:
                continue
            if os.environ["CWSANDBOX_RUNTIME_DIR"].encode() in argv:
                yield int(name)

with Sandbox.run() as sandbox:
    sandbox.exec(["true"]).result()
    before = {pid: peak(pid) for pid in gateways()}
    own = peak("self")
    process = sandbox.exec(["sh", "-c", f"yes {'x' * WIDTH} | head -n {LINES}"], timeout_seconds=150)
    count = 0
    for line in process.stdout:
        count += 1
        if count <= 20:
            time.sleep(0.05)  # A slow reader, at first.
    after = {pid: peak(pid) for pid in gateways()}
    print(json.dumps({
        "lines": count,
        "client_growth_mib": peak("self") - own,
        "gateway_growth_mib": max(after[pid] - before.get(pid, 0) for pid in after),
        "returncode": process.wait(),
    }))
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_half_a_gigabyte_iterated_costs_bounded_memory(home_folder: object) -> None:
    done = run_client(FLOOD, seconds=170)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["lines"] == 5_000_000
    assert seen["returncode"] == 0
    assert seen["client_growth_mib"] < 96
    assert seen["gateway_growth_mib"] < 96


def feed(process: Process, block: bytes, times: int) -> None:
    assert process.stdin is not None
    for _ in range(times):
        process.stdin.write(block).result()
    process.stdin.close().result()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_64_mib_through_cat_while_nobody_reads(sb: Sandbox) -> None:
    block = bytes(range(256)) * (MIB // 256)
    process = sb.exec(["cat"], stdin=True, timeout_seconds=110)
    feed(process, block, 64)
    result = process.result()
    assert result.returncode == 0
    assert len(result.stdout_bytes) == 64 * MIB
    assert result.stdout_bytes == block * 64


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_64_mib_through_cat_while_nobody_reads_async(asb: Sandbox) -> None:
    block = bytes(range(256)) * (MIB // 256)
    process = asb.exec(["cat"], stdin=True, timeout_seconds=110)
    assert process.stdin is not None
    for _ in range(64):
        await process.stdin.write(block)
    await process.stdin.close()
    assert (await process).stdout_bytes == block * 64


def test_a_flood_on_one_stream_delays_no_other(sb: Sandbox) -> None:
    flood = sb.exec(["sh", "-c", "yes | head -c 100000000"], timeout_seconds=60)
    for number in range(30):
        assert sb.exec(["echo", str(number)]).result(timeout=20).stdout == f"{number}\n"
    flood.cancel()


def test_many_sandboxes_come_and_go(home_folder: object) -> None:
    for _ in range(3):
        sandboxes = [Sandbox() for _ in range(10)]
        for ref in [sandbox.exec(["true"]) for sandbox in sandboxes]:
            assert ref.result().returncode == 0
        for stopping in [sandbox.stop() for sandbox in sandboxes]:
            stopping.result()
