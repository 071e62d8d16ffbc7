"""Where this process may make cgroups, and how a box's limits are written there: version 1, 2, or both mixed."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from cwsandbox.runners.base import Limits

_CPU_PERIOD_MICROSECONDS = 100_000
_CONTROLLERS = {"memory": "memory", "cpu": "cpu", "processes": "pids"}


@frozen
class Cgroups:
    """Folders under which a box's cgroups can be made, by what they limit."""

    version1: dict[str, str] = field(factory=dict)
    version2: str | None = None
    version2_limits: frozenset[str] = frozenset()

    @property
    def limits(self) -> frozenset[str]:
        """Of "memory", "cpu" and "processes": those that can be enforced."""
        return frozenset(self.version1) | self.version2_limits

    def plan(self, box: str, limits: Limits) -> list[list[Any]]:
        """The cgroups that `limits` need: a folder and the settings in it, each."""
        wanted = {
            "memory": limits.memory_bytes,
            "cpu": limits.cpu_millicores,
            "processes": limits.processes,
        }
        planned: list[list[Any]] = []
        together: dict[str, str] = {}
        for name, value in wanted.items():
            if value is None:
                continue
            if name in self.version1:
                planned.append([f"{self.version1[name]}/cwsandbox-{box}", _version1_settings(name, value)])
            elif name in self.version2_limits:
                together |= _version2_settings(name, value)
        if together:
            planned.append([f"{self.version2}/cwsandbox-{box}", together])
        return planned

    def leftovers(self, box: str) -> list[list[Any]]:
        """Where a box's cgroups would be, for cleaning up."""
        parents = {*self.version1.values(), *filter(None, (self.version2,))}
        return [[f"{parent}/cwsandbox-{box}", {}] for parent in parents]


def _version1_settings(name: str, value: int) -> dict[str, str]:
    if name == "memory":
        return {"memory.limit_in_bytes": str(value)}
    if name == "cpu":
        quota = value * _CPU_PERIOD_MICROSECONDS // 1000
        return {"cpu.cfs_period_us": str(_CPU_PERIOD_MICROSECONDS), "cpu.cfs_quota_us": str(max(quota, 1000))}
    return {"pids.max": str(value)}


def _version2_settings(name: str, value: int) -> dict[str, str]:
    if name == "memory":
        return {"memory.max": str(value), "memory.oom.group": "0"}
    if name == "cpu":
        quota = max(value * _CPU_PERIOD_MICROSECONDS // 1000, 1000)
        return {"cpu.max": f"{quota} {_CPU_PERIOD_MICROSECONDS}"}
    return {"pids.max": str(value)}


def find_cgroups() -> Cgroups:
    """Look where cgroups can be made and limits set, by trying. Blocking, about a millisecond."""
    mounts = _mounts()
    own = _own_cgroups()
    version1 = {}
    for name, controller in _CONTROLLERS.items():
        for kind, options, root, place in mounts:
            if kind == "cgroup" and controller in options:
                folder = _folder(place, root, own.get(controller, "/"))
                if _can_make(folder):
                    version1[name] = folder
    for kind, _, root, place in mounts:
        if kind == "cgroup2":
            folder = _folder(place, root, own.get("", "/"))
            limits = {n for n, c in _CONTROLLERS.items() if c in _words(f"{folder}/cgroup.subtree_control")}
            limits -= version1.keys()
            if limits and _can_make(folder):
                return Cgroups(version1, folder, frozenset(limits))
    return Cgroups(version1)


def _mounts() -> list[tuple[str, list[str], str, str]]:
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            fields, kind = before.split(), after.split()
            found.append((kind[0], kind[2].split(","), fields[3], fields[4]))
    return found


def _own_cgroups() -> dict[str, str]:
    """This process's cgroup by controller; version 2 under the empty name."""
    own = {}
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            own.update(dict.fromkeys(controllers.split(","), path))
    return own


def _folder(place: str, root: str, path: str) -> str:
    """The folder of a cgroup under a mount that shows the hierarchy from `root` on."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return (place + path).rstrip("/")


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def _can_make(folder: str) -> bool:
    trial = f"{folder}/cwsandbox-trial-{os.getpid()}"
    try:
        os.mkdir(trial)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        os.rmdir(trial)
    return True
