"""Where this process may make cgroups, and how a box's limits are written there: version 1, 2, or both mixed."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cwsandbox.runners.specs import Limits, Requests

_CPU_PERIOD_MICROSECONDS = 100_000
_LEAST_QUOTA_MICROSECONDS = 1000
_SWAP1, _SWAP2 = "memory.memsw.limit_in_bytes", "memory.swap.max"
_CONTROLLERS = {"memory": "memory", "cpu": "cpu", "processes": "pids"}


@frozen
class Cgroups:
    """Folders under which a box's cgroups can be made, by what they limit.

    Attributes:
        version1: The folder for each of "memory", "cpu" and "processes" that has a hierarchy of its own.
        version2: The folder in the unified hierarchy.
        version2_limits: What can be limited there.
        swap: The setting that keeps a box from using swap beyond its memory, where the kernel has one.
    """

    version1: dict[str, str] = field(factory=dict)
    version2: str | None = None
    version2_limits: frozenset[str] = frozenset()
    swap: str | None = None

    @property
    def limits(self) -> frozenset[str]:
        """Of "memory", "cpu" and "processes": those that can be enforced."""
        return frozenset(self.version1) | self.version2_limits

    def plan(self, box: str, limits: Limits, requests: Requests) -> list[list[Any]]:
        """The cgroups that these need: a folder and the settings in it, each."""
        wanted = {
            "memory": (limits.memory_bytes, requests.memory_bytes),
            "cpu": (limits.cpu_millicores, requests.cpu_millicores),
            "processes": (limits.processes, None),
        }
        planned: list[list[Any]] = []
        together: dict[str, str] = {}
        for name, (limit, request) in wanted.items():
            if limit is None and request is None:
                continue
            if name in self.version1:
                settings = _version1_settings(name, limit, request)
                if name == "memory" and self.swap and limit is not None:
                    settings[self.swap] = str(limit)
                planned.append([f"{self.version1[name]}/cwsandbox-{box}", settings])
            elif name in self.version2_limits:
                together |= _version2_settings(name, limit, request)
                if name == "memory" and self.swap and limit is not None:
                    together[self.swap] = "0"
        if together:
            planned.append([f"{self.version2}/cwsandbox-{box}", together])
        return planned

    def leftovers(self, box: str) -> list[list[Any]]:
        """Where a box's cgroups would be, for cleaning up."""
        parents = {*self.version1.values(), *filter(None, (self.version2,))}
        return [[f"{parent}/cwsandbox-{box}", {}] for parent in parents]


def _version1_settings(name: str, limit: int | None, request: int | None) -> dict[str, str]:
    settings = {}
    if name == "memory":
        if limit is not None:
            settings["memory.limit_in_bytes"] = str(limit)
        if request is not None:
            settings["memory.soft_limit_in_bytes"] = str(request)
    elif name == "cpu":
        if request is not None:
            settings["cpu.shares"] = str(_weight(request, usual=1024, most=262144))
        if limit is not None:
            settings["cpu.cfs_period_us"] = str(_CPU_PERIOD_MICROSECONDS)
            settings["cpu.cfs_quota_us"] = str(_quota(limit))
    else:
        settings["pids.max"] = str(limit)
    return settings


def _version2_settings(name: str, limit: int | None, request: int | None) -> dict[str, str]:
    settings = {}
    if name == "memory":
        if limit is not None:
            settings["memory.max"] = str(limit)
        if request is not None:
            settings["memory.low"] = str(request)
    elif name == "cpu":
        if request is not None:
            settings["cpu.weight"] = str(_weight(request, usual=100, most=10000))
        if limit is not None:
            settings["cpu.max"] = f"{_quota(limit)} {_CPU_PERIOD_MICROSECONDS}"
    else:
        settings["pids.max"] = str(limit)
    return settings


def _weight(millicores: int, *, usual: int, most: int) -> int:
    """A processor is the usual weight. Never less: what asked for nothing has no cgroup, and so the usual weight."""
    return min(max(millicores * usual // 1000, usual), most)


def _quota(millicores: int) -> int:
    return max(millicores * _CPU_PERIOD_MICROSECONDS // 1000, _LEAST_QUOTA_MICROSECONDS)


def find_cgroups(process: str = "/proc/self") -> Cgroups:
    """Look where cgroups can be made and limits set, by trying. Blocking, about a millisecond."""
    mounts = _mounts(process)
    own = _own_cgroups(process)
    version1 = {}
    swap = None
    for name, controller in _CONTROLLERS.items():
        for kind, options, root, place in mounts:
            if kind == "cgroup" and controller in options:
                folder = _folder(place, root, own.get(controller, "/"))
                if _can_make(folder):
                    version1[name] = folder
    if "memory" in version1 and os.path.exists(f"{version1['memory']}/{_SWAP1}"):
        swap = _SWAP1
    for kind, _, root, place in mounts:
        if kind == "cgroup2":
            folder, limits = _find_unified(
                place, _folder(place, root, own.get("", "/")), set(_CONTROLLERS) - set(version1)
            )
            if limits:
                if "memory" in limits and os.path.exists(f"{folder}/{_SWAP2}"):
                    swap = _SWAP2
                return Cgroups(version1, folder, limits, swap)
    return Cgroups(version1, swap=swap)


@frozen
class Bounds:
    """What the cgroups of a process, and those above them, leave it of the machine; None is no bound."""

    memory_bytes: int | None = None
    cpu_millicores: int | None = None


def find_bounds(process: str = "/proc/self") -> Bounds:
    """Look what this process and all it starts may use: a container's limits. Blocking, well below a millisecond."""
    own = _own_cgroups(process)
    memory: list[int] = []
    millicores: list[int] = []
    for kind, options, root, place in _mounts(process):
        if kind == "cgroup2":
            for folder in _upwards(place, _folder(place, root, own.get("", "/"))):
                memory += _numbers(f"{folder}/memory.max")[:1]
                millicores += _processors(_words(f"{folder}/cpu.max"))
        elif kind == "cgroup" and "memory" in options:
            for folder in _upwards(place, _folder(place, root, own.get("memory", "/"))):
                memory += _numbers(f"{folder}/memory.limit_in_bytes")[:1]
        elif kind == "cgroup" and "cpu" in options:
            for folder in _upwards(place, _folder(place, root, own.get("cpu", "/"))):
                quota = _words(f"{folder}/cpu.cfs_quota_us")
                millicores += _processors([*quota, *_words(f"{folder}/cpu.cfs_period_us")])
    return Bounds(min(memory, default=None), min(millicores, default=None))


def _processors(quota_and_period: list[str]) -> list[int]:
    """The quota as thousandths of a processor; nothing where it is "max", -1 or absent."""
    numbers = [int(word) for word in quota_and_period if word.isdecimal()]
    if len(numbers) != 2 or not all(numbers):
        return []
    quota, period = numbers
    return [max(quota * 1000 // period, 1)]


def _numbers(path: str) -> list[int]:
    return [int(word) for word in _words(path) if word.isdecimal()]


def _upwards(top: str, folder: str) -> Iterator[str]:
    """The folder and those above it, to `top`."""
    while folder == top or folder.startswith(top + "/"):
        yield folder
        folder = os.path.dirname(folder)


def _find_unified(top: str, own: str, wanted: set[str]) -> tuple[str, frozenset[str]]:
    """The folder for boxes in the unified hierarchy, and what can be limited there.

    A cgroup with processes in it, as our own has, cannot hand controllers to cgroups below it (cgroups(7), "no internal
    processes"). But one further up may do so already and let us make cgroups: as root on a machine with systemd the
    slice that the session is in, as a user what systemd delegated to the user's own manager.
    """
    found: tuple[str, frozenset[str]] = ("", frozenset())
    for folder in _upwards(top, own):
        limits = frozenset(name for name in wanted if _CONTROLLERS[name] in _words(f"{folder}/cgroup.subtree_control"))
        if len(limits) > len(found[1]) and _can_make(folder):
            found = (folder, limits)
    return found


def _mounts(process: str) -> list[tuple[str, list[str], str, str]]:
    found = []
    with open(f"{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            fields, kind = before.split(), after.split()
            found.append((kind[0], kind[2].split(","), fields[3], fields[4]))
    return found


def _own_cgroups(process: str) -> dict[str, str]:
    """This process's cgroup by controller; version 2 under the empty name."""
    own = {}
    with open(f"{process}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
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
