"""End the embedded gateway of a folder, and list everything of it that is still there."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import httpx

from tests.support.processes import descendants, processes_with, start_time, wait_ended

END_SECONDS = 20.0
KEPT_SUFFIXES = (".log", ".lock", ".sqlite", ".db", "-wal", "-shm", ".json")


def gateway_processes(folder: Path) -> list[int]:
    """The processes that carry `folder` in their argv: the gateway and what it execs."""
    return processes_with(str(folder))


def shut_down_and_look(folder: Path) -> list[str]:
    """Shut down the gateways whose sockets are below `folder`; say what outlived them, one line each."""
    family = {(pid, start_time(pid)) for parent in gateway_processes(folder) for pid in {parent, *descendants(parent)}}
    for path in folder.rglob("*.sock"):
        _shut_down(path)
    deadline = time.monotonic() + END_SECONDS
    outlived = [pid for pid, started in family if started == start_time(pid) and not wait_ended(pid, deadline)]
    there = {*outlived, *gateway_processes(folder)}
    return [
        *(f"process {pid}: {_argv(pid)}" for pid in there),
        *(f"its log: {line}" for log in folder.rglob("*.log") if there for line in _tail(log)),
        *_lines_with(folder, Path("/proc/self/mountinfo"), "mount"),
        *_lines_with(folder, Path("/proc/net/unix"), "socket"),
        *(f"cgroup {path}" for path in _empty_cgroups(family)),
        *(f"left in the folder: {path}" for path in sorted(folder.rglob("*")) if _is_left(path)),
    ]


def _shut_down(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=END_SECONDS) as client:
        client.post("http://localhost/v1/gateway:shutdown").raise_for_status()


def _argv(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return "gone meanwhile"


def _tail(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-20:]


def _lines_with(folder: Path, table: Path, word: str) -> list[str]:
    return [f"{word}: {line}" for line in table.read_text().splitlines() if str(folder) in line]


def _empty_cgroups(family: set[tuple[int, int | None]]) -> list[Path]:
    """Cgroups named after the package that hold no process: nobody is left who could remove them."""
    roots = Path("/sys/fs/cgroup")
    named = [path for pattern in ("*cwsandbox*", "*/*cwsandbox*") for path in roots.glob(pattern) if path.is_dir()]
    pids = {str(pid) for pid, _ in family}
    return [path for path in named if any(pid in path.name for pid in pids)]


def _is_left(path: Path) -> bool:
    """Whether the file is more than a record, a log, a lock or an image that a next gateway uses again."""
    if "images" in path.parts or "logs" in path.parts:
        return False
    if path.is_dir():
        return path.name not in {"run", "runtime", "state", "boxes"} and not path.name.startswith("gateway-")
    return path.name != "lock" and not path.name.endswith(KEPT_SUFFIXES)
