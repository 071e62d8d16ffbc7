"""The values of the contract: what a box is made from, what a command is, what a runner can do."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping


class IsolationLevel(enum.StrEnum):
    """How strongly a box is separated from its host."""

    NAMESPACES = "namespaces"
    """All Linux namespaces, an own root file system, no capabilities, seccomp: like a rootless container."""
    PROCESS = "process"
    """Own folders, clean environment, rlimits and seccomp only: the surrounding container is the boundary."""


@frozen
class Capabilities:
    """What a runner can do, and how much of it there is."""

    isolation: IsolationLevel
    cpu_millicores: int
    memory_bytes: int
    architecture: str
    enforced_limits: frozenset[str] = frozenset()
    """Of "memory", "cpu", "processes": those that are enforced for a whole box."""
    per_process_limits: frozenset[str] = frozenset()
    """Of the others: those that are enforced for each process of a box by itself."""
    default_limits: frozenset[str] = frozenset()
    """Of those that are enforced for a whole box: those that hold also when nobody asked for a limit."""
    healthy: bool = True
    """Whether boxes can be made at all."""
    egress_modes: tuple[str, ...] = ("isolated",)
    """What boxes can be allowed to reach; the first is what they get unasked."""
    ingress_modes: tuple[str, ...] = ()
    """Who can be allowed to reach exposed ports; without any, `Box.connect` and `Box.listen` are not there."""
    modes_without_loopback: frozenset[str] = frozenset()
    """The egress modes under which a box cannot make sockets at all, so that no port of it can be exposed."""


@frozen
class FileMount:
    """A read-only file that is in place before the main command starts."""

    path: str
    content: bytes = field(repr=False)


@frozen
class Limits:
    """Upper bounds for a whole box; None means the runner's default."""

    memory_bytes: int | None = None
    cpu_millicores: int | None = None
    processes: int | None = None


@frozen
class Port:
    """A TCP port of a box that can be reached from outside."""

    number: int
    name: str = ""


@frozen
class BoxNetwork:
    """How a box is connected.

    Attributes:
        egress_mode: One of the runner's; "" is its first.
        ingress_mode: One of the runner's; "" where nothing is exposed.
        exposed: What `Box.connect` will be asked for.
        listen: Ports of the box's loopback that are listened on before the main command starts; `Box.listen` takes
            the connections.
    """

    egress_mode: str = ""
    ingress_mode: str = ""
    exposed: tuple[Port, ...] = ()
    listen: tuple[int, ...] = ()


@frozen
class Requests:
    """What a box is to have when others want it too; None is no claim. As good as the machine can do it."""

    memory_bytes: int | None = None
    cpu_millicores: int | None = None


@frozen
class BoxSpec:
    """What a box is made from."""

    sandbox_id: str
    argv: tuple[str, ...]
    image: str = ""
    env: Mapping[str, str] = field(factory=dict, repr=False)
    files: tuple[FileMount, ...] = ()
    limits: Limits = Limits()
    network: BoxNetwork = BoxNetwork()
    requests: Requests = Requests()


@frozen
class TerminalSize:
    """A terminal's size in characters (RFC 4254, section 6.2)."""

    columns: int = 80
    rows: int = 24


@frozen
class ExecSpec:
    """One command to run in a box.

    Attributes:
        exec_id: Unique in the box; what a restarted gateway finds the command by.
        argv: Program and arguments; the program is looked up in PATH inside the box.
        cwd: Absolute directory inside the box; None is the box's own (`/root`, or the level's home).
        env: Added to the box's environment.
        stdin: False gives the command an empty stdin.
        note: What `Command.note` gives back, also to a restarted gateway; JSON, a few hundred bytes.
        terminal: Set gives the command a controlling terminal; stderr then comes with stdout.
    """

    exec_id: str
    argv: tuple[str, ...]
    cwd: str | None = None
    env: Mapping[str, str] = field(factory=dict, repr=False)
    stdin: bool = False
    terminal: TerminalSize | None = None
    note: Mapping[str, Any] = field(factory=dict)


@frozen
class ExitStatus:
    """How a command's first process ended: an exit code, or the signal that killed it. Exactly one is set."""

    code: int | None = None
    signal: int | None = None

    @property
    def returncode(self) -> int:
        """The status as a shell gives it: 128 + N for signal N (POSIX.1-2024, sh, 2.8.2)."""
        if self.signal is not None:
            return 128 + self.signal
        assert self.code is not None
        return self.code
