"""Look at processes from the host's side: find them by a marker in their argv, and wait for their end on pidfds."""

from __future__ import annotations

import os
import random
import select
import time
from pathlib import Path

GONE_SECONDS = 10.0
EXEC_SECONDS = 1.0

PROCESS_TREE = """
import os, signal, sys
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
seen, ready = os.pipe()

def stay():
    os.write(ready, b".")
    while True:
        signal.pause()

def spawn(*, session, orphan):
    child = os.fork()
    if child:
        if orphan:
            os.waitpid(child, 0)
        return
    if session:
        os.setsid()
    if orphan and os.fork():
        os._exit(0)
    stay()

spawn(session=False, orphan=False)
spawn(session=True, orphan=False)
spawn(session=True, orphan=True)
for _ in range(3):
    os.read(seen, 1)
print("ready", flush=True)
stay()
"""
"""A python program: a command, a child, a child in its own session and an orphaned daemon, all of which ignore TERM.

It says "ready" when all have started; four processes then carry its arguments in their argv.
"""

TREE_SIZE = 4


def new_marker() -> str:
    """An argument for `sleep` that no other process on this host has."""
    return f"31415.{random.randrange(10**9, 10**10)}"


def processes_with(text: str) -> list[int]:
    """The ids of all live processes that carry `text` in their argv."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and text.encode() in _argv(Path(f"/proc/{pid}"))]


def _argv(process: Path) -> bytes:
    deadline = time.monotonic() + EXEC_SECONDS
    while True:
        try:
            # A process whose first thread has ended shows its argv in the others only.
            argv = (process / "cmdline").read_bytes() or b"".join(
                (thread / "cmdline").read_bytes() for thread in (process / "task").iterdir()
            )
            if argv or time.monotonic() > deadline:
                return argv
            # One in the middle of execve shows none, but has a program, other than zombies and the kernel's threads.
            (process / "exe").readlink()
        except OSError:
            return b""


def wait_ended(pid: int, deadline: float) -> bool:
    """Whether the process `pid` ended by `deadline` (of `time.monotonic`)."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(fd)


def assert_gone(marker: str, *, within: float = GONE_SECONDS) -> None:
    """Fail unless every process with `marker` in its argv ends within `within` seconds."""
    deadline = time.monotonic() + within
    while pids := processes_with(marker):
        for pid in pids:
            assert wait_ended(pid, deadline), f"process {pid} with {marker!r} outlived its end by {within} s"


def descendants(pid: int) -> set[int]:
    """All live processes below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def start_time(pid: int) -> int | None:
    """When the process started in clock ticks, None if it is gone; tells a process from a later one of the same id."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def peak_rss_bytes(pid: int) -> int:
    """The most memory the process ever had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError(pid)
