"""What boxes are held to, by cgroups of both kinds, by limits of each process, and by a warden."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cwsandbox.runners.local import cgroups
from cwsandbox.runners.local.cgroups import Cgroups, find_cgroups
from cwsandbox.runners.local.runner import LocalRunner
from cwsandbox.runners.local.warden import Gate
from cwsandbox.runners.local.zygote import make_cgroups
from cwsandbox.runners.specs import ExecSpec, IsolationLevel, Limits, Requests
from tests.runners.conftest import box_spec
from tests.runners.support import check_full_and_emptied, python, read_until, run, shell, until_ended
from tests.support.processes import descendants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from cwsandbox.runners.local.box import LocalBox
    from tests.runners.support import MakeRunner

MIB = 1024**2
TAKE = "import sys; bytearray(int(sys.argv[1]) << 20); print('had it')"
# Starts 30 sleeps and no more, whatever holds it; prints how many it got, and again for every line it reads.
THIRTY = """
import contextlib, subprocess, sys
started = []
def fill():
    with contextlib.suppress(BlockingIOError):
        while len(started) < 30:
            with contextlib.suppress(InterruptedError):  # Which a warden's answer may be.
                started.append(subprocess.Popen(["sleep", "60"]))
    print(len(started), flush=True)
fill()
for _ in sys.stdin:
    fill()
for each in started:
    each.kill()
    each.wait()
"""
THIRTY_THREADS = """
import threading
done, started = threading.Event(), 0
try:
    for _ in range(30):
        threading.Thread(target=done.wait).start()
        started += 1
except RuntimeError:
    pass
print(started)
done.set()
"""


@pytest.fixture
def no_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose cgroups cannot be written, or as an ordinary user."""
    monkeypatch.setattr(cgroups, "find_cgroups", Cgroups)


@pytest.fixture
async def bare(make_runner: MakeRunner, no_cgroups: None) -> AsyncIterator[LocalRunner]:
    """A runner without namespaces and cgroups."""
    async with make_runner(isolation="process") as runner:
        yield runner


# The number of processes.


async def test_without_namespaces_and_cgroups_processes_are_counted_all_the_same(bare: LocalRunner) -> None:
    assert bare.capabilities().enforced_limits == {"processes"}
    assert bare.capabilities().per_process_limits == {"memory"}
    box = await bare.create(box_spec(limits=Limits(processes=20)))
    try:
        for _ in range(2):
            assert 10 <= int((await python(box, THIRTY)).text) < 20
        assert 10 <= int((await python(box, THIRTY_THREADS)).text) < 20
        assert (await run(box, "echo", "room")).text == "room\n"
    finally:
        await box.stop(0)


async def test_a_full_box_without_namespaces_says_so_and_can_still_be_emptied(bare: LocalRunner) -> None:
    box = await bare.create(box_spec(limits=Limits(processes=20)))
    try:
        hog = await box.exec(ExecSpec("hog", ("python3", "-c", THIRTY), stdin=True))
        await check_full_and_emptied(box, hog)
    finally:
        await box.stop(0)


async def test_boxes_do_not_count_for_each_other(bare: LocalRunner) -> None:
    first, second = [await bare.create(box_spec(limits=Limits(processes=20))) for _ in range(2)]
    try:
        hog = await first.exec(ExecSpec("hog", ("python3", "-c", THIRTY), stdin=True))
        await read_until(hog.stdout, b"\n")
        assert 10 <= int((await python(second, THIRTY)).text) < 20
        await hog.kill()
        hog.forget()
    finally:
        await first.stop(0)
        await second.stop(0)


def _sees_descriptors() -> bool:
    """Those of a process that may not be traced are seen with CAP_SYS_PTRACE alone (proc(5), /proc/pid/fd)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:")]
    return bool(int(line.split()[1], 16) & 1 << 19)


@pytest.mark.skipif(not _sees_descriptors(), reason="needs CAP_SYS_PTRACE, to see a warden's descriptors")
async def test_no_warden_is_left_of_a_box(bare: LocalRunner) -> None:
    def wardens(box: LocalBox) -> list[int]:  # Only its own: other tests on this machine have theirs.
        return [pid for pid in descendants(box._agent_pid) if _listens(pid)]

    unwatched = await bare.create(box_spec())
    assert wardens(unwatched) == []
    await unwatched.stop(0)
    box = await bare.create(box_spec(limits=Limits(processes=100)))
    (warden,) = wardens(box)
    await box.stop(0)
    await until_ended(warden)


def _listens(pid: int) -> bool:
    """Does a process answer for a seccomp filter?"""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any("seccomp notify" in link for link in links)


async def test_where_no_warden_can_be_had_that_is_said(
    make_runner: MakeRunner, no_cgroups: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The zygote, which is another process, is made to fail by a plan that it cannot carry out.
    plan = LocalRunner._plan

    def impossible(self: LocalRunner, *arguments: Any) -> dict[str, Any]:
        made = plan(self, *arguments)
        return made | {"warden": "many"} if made["warden"] is not None else made

    monkeypatch.setattr(LocalRunner, "_plan", impossible)
    async with make_runner(isolation="process") as runner:
        assert runner.capabilities().enforced_limits == set()
        box = await runner.create(box_spec())
        assert (await run(box, "echo", "here")).text == "here\n"
        await box.stop(0)


def test_a_gate_counts_only_when_what_it_allowed_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    below, takes = 3, 0.0
    now, spent = [1.0], [5.0]

    class Tree:
        def tasks_below(self, pid: int) -> int:
            counts.append(pid)
            now[0] += 3.0  # The machine is busy: that alone is no reason not to count again.
            spent[0] += takes
            now[0] += takes
            return below

    monkeypatch.setattr("cwsandbox.runners.local.warden.ProcessTree", Tree)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: spent[0])
    gate = Gate(agent=77, most=4)
    assert [gate.admits(99) for _ in range(2)] == [True, True]
    assert counts == [77]
    below = 5
    assert [gate.admits(99) for _ in range(3)] == [False] * 3
    assert counts == [77] * 4
    takes = 0.5  # A long count is not repeated at once.
    assert [gate.admits(99) for _ in range(3)] == [False] * 3
    assert counts == [77] * 5
    assert not gate.admits(77)  # But what the agent is told is true.
    assert counts == [77] * 6
    now[0] += 2
    below = 4
    assert gate.admits(99)
    assert gate.admits(99)  # A long count that found room is: who just left it may have ended.
    assert counts == [77] * 8


# Memory of each process.


@pytest.mark.parametrize("level", ["namespaces", "process"])
async def test_without_a_cgroup_each_process_is_held_to_the_memory_limit(
    make_runner: MakeRunner, no_cgroups: None, level: str
) -> None:
    async with make_runner(isolation=level) as runner:
        if not runner.capabilities().healthy:
            pytest.skip("namespaces are not allowed here")
        assert "memory" in runner.capabilities().per_process_limits
        box = await runner.create(box_spec(limits=Limits(memory_bytes=64 * MIB)))
        try:
            assert (await python(box, TAKE, "30")).text == "had it\n"
            result = await python(box, TAKE, "100")
            assert result.status.code == 1
            assert b"MemoryError" in result.stderr
            raised = await shell(box, "ulimit -d unlimited 2>/dev/null; python3 -I -c 'bytearray(100 << 20)'")
            assert raised.status.code != 0
        finally:
            await box.stop(0)


async def test_a_box_lives_with_the_least_memory_there_is(make_runner: MakeRunner, no_cgroups: None) -> None:
    async with make_runner(isolation="process") as runner:
        box = await runner.create(box_spec(limits=Limits(memory_bytes=16 * MIB)))
        assert (await run(box, "echo", "here")).text == "here\n"
        await box.stop(0)


async def test_a_box_lives_with_the_least_memory_in_a_cgroup(runner: LocalRunner) -> None:
    if "memory" not in runner.capabilities().enforced_limits:
        pytest.skip("no cgroup to limit memory with")
    box = await runner.create(box_spec(limits=Limits(memory_bytes=16 * MIB)))
    assert (await run(box, "echo", "here")).text == "here\n"
    await box.stop(0)


# Cgroups.


async def test_a_processor_limit_holds_for_the_whole_box(runner: LocalRunner) -> None:
    if "cpu" not in runner.capabilities().enforced_limits:
        pytest.skip("no cgroup to limit processors with")
    box = await runner.create(box_spec(limits=Limits(cpu_millicores=200)))
    burn = "import time,os\nend=time.monotonic()+1\nwhile time.monotonic()<end: pass\nprint(sum(os.times()[:2]))"
    try:
        used = float((await python(box, burn)).text)
    finally:
        await box.stop(0)
    assert used < 0.6  # 0.2 of a processor for a second, and what one period allows at the start.


def test_requests_and_limits_as_version_1_has_them() -> None:
    places = Cgroups({"memory": "/m", "cpu": "/c", "processes": "/p"}, swap="memory.memsw.limit_in_bytes")
    limits = Limits(memory_bytes=100, cpu_millicores=500, processes=7)
    assert places.plan("b", limits, Requests(memory_bytes=50, cpu_millicores=1500)) == [
        [
            "/m/cwsandbox-b",
            {
                "memory.limit_in_bytes": "100",
                "memory.soft_limit_in_bytes": "50",
                "memory.memsw.limit_in_bytes": "100",
            },
        ],
        ["/c/cwsandbox-b", {"cpu.shares": "1536", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}],
        ["/p/cwsandbox-b", {"pids.max": "7"}],
    ]


def test_requests_and_limits_as_version_2_has_them() -> None:
    places = Cgroups(version2="/u", version2_limits=frozenset({"memory", "cpu", "processes"}), swap="memory.swap.max")
    limits = Limits(memory_bytes=100, cpu_millicores=1500, processes=7)
    ((folder, settings),) = places.plan("b", limits, Requests(memory_bytes=50, cpu_millicores=250))
    assert folder == "/u/cwsandbox-b"
    assert settings == {
        "memory.max": "100",
        "memory.low": "50",
        "memory.swap.max": "0",
        "cpu.weight": "100",
        "cpu.max": "150000 100000",
        "pids.max": "7",
    }
    assert places.plan("b", Limits(), Requests()) == []
    assert places.leftovers("b") == [["/u/cwsandbox-b", {}]]


class Tree:
    """A file tree that looks like a machine's cgroups, and a process in it."""

    def __init__(self, folder: Path) -> None:
        self.top = folder / "cgroup"
        self.process = folder / "self"
        self.process.mkdir()

    def unified(self, own: str, handed_on: dict[str, str], *, root: str = "/") -> None:
        (self.process / "cgroup").write_text(f"0::{own}\n")
        (self.process / "mountinfo").write_text(
            f"21 20 0:1 / / rw - ext4 /dev/vda rw\n31 21 0:2 {root} {self.top} rw,nosuid - cgroup2 cgroup2 rw\n"
        )
        for place, controllers in handed_on.items():
            (self.top / place).mkdir(parents=True, exist_ok=True)
            (self.top / place / "cgroup.subtree_control").write_text(controllers)

    def find(self) -> Cgroups:
        return find_cgroups(str(self.process))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_boxes_go_where_controllers_are_handed_on(tree: Tree) -> None:
    """A session of a systemd machine: its own scope hands nothing on, the slices above do."""
    tree.unified(
        "/user.slice/user-0.slice/session-1.scope",
        {
            "": "cpu io memory pids",
            "user.slice": "cpu memory pids",
            "user.slice/user-0.slice": "memory pids",
            "user.slice/user-0.slice/session-1.scope": "",
        },
    )
    found = tree.find()
    assert found.version2 == str(tree.top / "user.slice")
    assert found.version2_limits == found.limits == {"memory", "cpu", "processes"}
    assert found.swap is None
    assert os.listdir(tree.top / "user.slice" / "user-0.slice" / "session-1.scope") == ["cgroup.subtree_control"]


def test_the_nearest_place_is_taken_of_several_that_are_as_good(tree: Tree) -> None:
    tree.unified("/a/b", {"": "memory pids", "a": "memory pids", "a/b": ""})
    (tree.top / "a" / "memory.swap.max").touch()
    found = tree.find()
    assert (found.version2, found.swap) == (str(tree.top / "a"), "memory.swap.max")
    assert found.limits == {"memory", "processes"}


def test_in_a_container_that_hands_nothing_on_there_are_no_limits(tree: Tree) -> None:
    tree.unified("/", {"": ""})
    assert tree.find() == Cgroups()


def test_a_container_sees_only_its_part_of_the_hierarchy(tree: Tree) -> None:
    tree.unified("/docker/1/inner", {"": "cpu memory pids", "inner": ""}, root="/docker/1")
    assert tree.find().version2 == str(tree.top)


def test_each_hierarchy_of_version_1_is_found(tree: Tree) -> None:
    for name in ("memory", "cpu,cpuacct", "pids"):
        (tree.top / name / "mine").mkdir(parents=True)
    (tree.top / "memory" / "mine" / "memory.memsw.limit_in_bytes").touch()
    (tree.process / "cgroup").write_text("4:memory:/mine\n3:cpu,cpuacct:/mine\n2:pids:/mine\n0::/\n")
    (tree.process / "mountinfo").write_text(
        "".join(
            f"3{n} 21 0:{n} / {tree.top}/{name} rw - cgroup cgroup rw,{name}\n"
            for n, name in enumerate(("memory", "cpu,cpuacct", "pids"))
        )
    )
    found = tree.find()
    assert found.limits == {"memory", "cpu", "processes"}
    assert found.version1["cpu"] == str(tree.top / "cpu,cpuacct" / "mine")
    assert found.swap == "memory.memsw.limit_in_bytes"


def test_a_containers_own_limits_are_what_the_machine_has(tree: Tree) -> None:
    tree.unified("/pod/inner", {"": "", "pod": "", "pod/inner": ""})
    assert cgroups.find_bounds(str(tree.process)) == cgroups.Bounds()
    (tree.top / "pod" / "memory.max").write_text("1000\n")
    (tree.top / "pod" / "inner" / "memory.max").write_text("max\n")
    (tree.top / "pod" / "cpu.max").write_text("150000 100000\n")
    (tree.top / "pod" / "inner" / "cpu.max").write_text("max 100000\n")
    assert cgroups.find_bounds(str(tree.process)) == cgroups.Bounds(1000, 1500)


def test_a_containers_own_limits_in_version_1(tree: Tree) -> None:
    for name in ("memory", "cpu"):
        (tree.top / name).mkdir(parents=True)
    (tree.top / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (tree.top / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tree.top / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tree.process / "cgroup").write_text("4:memory:/docker/1\n3:cpu:/docker/1\n")
    (tree.process / "mountinfo").write_text(
        f"31 21 0:1 /docker/1 {tree.top}/memory rw - cgroup cgroup rw,memory\n"
        f"32 21 0:2 /docker/1 {tree.top}/cpu rw - cgroup cgroup rw,cpu\n"
    )
    assert cgroups.find_bounds(str(tree.process)) == cgroups.Bounds(2000, 500)
    (tree.top / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroups.find_bounds(str(tree.process)).cpu_millicores is None


async def test_the_level_process_limits_processes_by_default(make_runner: MakeRunner) -> None:
    async with make_runner(isolation="process") as runner:
        assert runner.capabilities().isolation is IsolationLevel.PROCESS
        assert "processes" in runner.capabilities().enforced_limits


def test_only_what_is_a_request_may_fail_to_be_set(tmp_path: Path) -> None:
    folder = tmp_path / "box"
    folder.mkdir()
    for name in ("memory.low", "pids.max"):
        (folder / name).mkdir()  # Cannot be written.
    assert make_cgroups([[str(folder), {"memory.low": "1", "memory.max": "5"}]]) == [str(folder)]
    assert (folder / "memory.max").read_text() == "5"
    with pytest.raises(OSError, match=r"pids\.max"):
        make_cgroups([[str(folder), {"pids.max": "7"}]])
