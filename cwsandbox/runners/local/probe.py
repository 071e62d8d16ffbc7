"""What this machine allows, and what to tell the user about it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from cwsandbox.runners.local.cgroups import find_bounds
from cwsandbox.runners.specs import IsolationLevel

_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
_CONTAINER_WORDS = ("docker", "kubepods", "containerd", "libpod", "lxc", "garden")


def in_container() -> bool:
    """Is this process inside a container, so that the container can be the boundary?"""
    if any(os.path.exists(path) for path in _CONTAINER_FILES) or "container" in os.environ:
        return True
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return True
    return any(word in _read("/proc/1/cgroup") for word in _CONTAINER_WORDS) or _root_is_overlay()


def _root_is_overlay() -> bool:
    return any(
        line.split()[4] == "/" and line.partition(" - ")[2].startswith("overlay ")
        for line in _read("/proc/self/mountinfo").splitlines()
    )


def remedies(reason: str) -> str:
    """Why sandboxes cannot be isolated here, and what helps."""
    return f"this machine cannot isolate sandboxes ({reason}); ways out: {'; or '.join(ways_out())}"


def ways_out() -> list[str]:
    """What helps where namespaces are forbidden, the best first."""
    ways = []
    if _read("/proc/sys/kernel/unprivileged_userns_clone").strip() == "0":
        ways.append("allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)")
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1":
        ways.append("let AppArmor allow them (sysctl kernel.apparmor_restrict_unprivileged_userns=0)")
    if _read("/proc/sys/user/max_user_namespaces").strip() == "0":
        ways.append("raise sysctl user.max_user_namespaces")
    ways += [
        "run the gateway inside a container, which then is the boundary",
        "set CWSANDBOX_ISOLATION=process to run commands without isolation from this machine",
    ]
    return ways


def notice(level: IsolationLevel, reason: str) -> str | None:
    """What the user should know about the level once; None if there is nothing to say."""
    if level is IsolationLevel.NAMESPACES:
        return None
    because = f" ({reason})" if reason else ""
    return (
        f"sandboxes run at isolation level `process`{because}: own folders, a clean environment, a call filter, "
        "but they share this machine's files, processes and network"
        + ("; the surrounding container is the boundary" if in_container() else "")
    )


def architecture() -> str:
    """The machine's architecture as container images name it."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def cpu_millicores() -> int:
    """The processors this process may use, in thousandths; a container's quota counts."""
    processors = len(os.sched_getaffinity(0)) * 1000
    return min(processors, find_bounds().cpu_millicores or processors)


def memory_bytes() -> int:
    """The memory this process may use: the machine's, or what a container leaves of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory, find_bounds().memory_bytes or memory)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
