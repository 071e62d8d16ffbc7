"""How the agent knows which processes belong to which command, whatever they did to hide.

Every command is started with a mark that its descendants inherit and cannot take off: parents, sessions, process
groups and environments can all be shed by a daemon. In a box with namespaces the mark is a UTS namespace of the
command's own: leaving it takes a capability that nothing in the box has. Without namespaces it is the hard limit of a
resource that nobody uses, unique per command: an ordinary process can lower its limit but never raise it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cwsandbox.runners.local import syscalls as linux

if TYPE_CHECKING:
    from collections.abc import Iterator

UNREADABLE = -1
"""The mark of a process whose mark is hidden even from the agent (a program that may be run but not read)."""
GONE = -2
"""The mark of a process that ended while it was looked at."""

_GIVE_UP_SECONDS = 5.0
_FEW_DOUBTS, _MANY_DOUBTS = 3, 20
_FIRST_DELAY, _LAST_DELAY = 0.0005, 0.02


class Mark(NamedTuple):
    """A command's mark; `fd` (or -1) keeps its number from being given to another command."""

    value: int
    fd: int


class Marks(Protocol):
    """One kind of mark."""

    def make(self) -> Mark:
        """Put a new mark on the calling process, for what it starts next."""
        ...

    def processes(self) -> Iterator[tuple[int, int]]:
        """All marked processes: (process id, mark), also of those that end at this moment."""
        ...


class NamespaceMarks:
    """Marks that are UTS namespaces; for a PID 1 with CAP_SYS_ADMIN and CAP_SYS_PTRACE in its user namespace."""

    def make(self) -> Mark:
        """See `Marks`."""
        linux.unshare(linux.CLONE_NEWUTS)
        fd = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        return Mark(os.fstat(fd).st_ino, fd)

    def processes(self) -> Iterator[tuple[int, int]]:
        """See `Marks`."""
        for name in os.listdir("/proc"):
            if name.isdecimal() and name != "1":
                yield int(name), self._mark_of(name)

    def _mark_of(self, name: str) -> int:
        try:
            return os.stat(f"/proc/{name}/ns/uts").st_ino
        except PermissionError:
            return UNREADABLE
        except OSError:
            pass
        # A zombie has no namespaces any more, but its threads may run on after the first one has ended.
        try:
            threads = os.listdir(f"/proc/{name}/task")
        except OSError:
            return GONE
        for thread in threads:
            if thread != name:
                try:
                    return os.stat(f"/proc/{name}/task/{thread}/ns/uts").st_ino
                except OSError:
                    continue
        return GONE


class LimitMarks:
    """Marks that are hard limits of RLIMIT_RTTIME; for a subreaper, whose descendants stay its descendants.

    Every agent has a range of its own, so that a mark says by itself whose process it is on: parents cannot be followed
    while they are dying.
    """

    _LINE = re.compile(rb"^Max realtime timeout\s+\S+\s+(\S+)", re.MULTILINE)
    _RANGE = 1 << 24

    def __init__(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        highest = 1 << 62 if hard == resource.RLIM_INFINITY else hard
        self._first = self._next = highest - self._RANGE * int.from_bytes(os.urandom(4))

    def make(self) -> Mark:
        """See `Marks`."""
        self._next -= 1
        resource.setrlimit(resource.RLIMIT_RTTIME, (self._next, self._next))
        return Mark(self._next, -1)

    def processes(self) -> Iterator[tuple[int, int]]:
        """See `Marks`."""
        strangers = []
        for name in os.listdir("/proc"):
            if not name.isdecimal() or name == str(os.getpid()):
                continue
            try:
                with open(f"/proc/{name}/limits", "rb") as file:
                    found = self._LINE.search(file.read())
            except OSError:
                found = None
            if found is None:
                yield int(name), GONE
            elif found[1].isdigit():
                value = int(found[1])
                if self._next <= value < self._first:
                    yield int(name), value if runs(name) else GONE
                else:
                    strangers.append(int(name))
        if strangers:
            # Another agent's, or a process of ours that lowered its limit to be overlooked.
            ours = set(ProcessTree().below(os.getpid()))
            yield from ((pid, UNREADABLE) for pid in strangers if pid in ours)


def runs(pid: str) -> bool:
    """Does any thread of a process still run? Its first one may have ended before the others."""
    return _family(pid)[1]


def _family(pid: str) -> tuple[int, bool, int]:
    """A process's parent (0 if the process is gone), whether it runs, and how many tasks it is."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0, False, 0
    tasks = int(fields[17])
    return int(fields[1]), fields[0] not in {b"Z", b"X"} or tasks > 1, tasks


class ProcessTree:
    """One look at the process list: who is whose child, and who still runs."""

    def __init__(self) -> None:
        self._children: dict[int, list[int]] = {}
        self._running: set[int] = set()
        self._tasks: dict[int, int] = {}
        for name in os.listdir("/proc"):
            if name.isdecimal():
                parent, runs_on, tasks = _family(name)
                self._children.setdefault(parent, []).append(int(name))
                self._tasks[int(name)] = tasks
                if runs_on:
                    self._running.add(int(name))

    def below(self, ancestor: int) -> list[int]:
        """The processes below `ancestor` that ran at the time of the look."""
        return [pid for pid in self._below(ancestor) if pid in self._running]

    def tasks_below(self, ancestor: int) -> int:
        """How many tasks there are below `ancestor`: threads, and what has ended and was not waited for."""
        return sum(self._tasks[pid] for pid in self._below(ancestor))

    def _below(self, ancestor: int) -> list[int]:
        found: list[int] = []
        pending, seen = [ancestor], set[int]()
        while pending:
            below = [pid for pid in self._children.get(pending.pop(), ()) if pid not in seen]
            seen.update(below)
            pending += below
            found += below
        return found


class TreeKill:
    """Kill everything with one mark (None: every mark), by repeated looks at the process list.

    The first look kills at once. If more processes turn up after that, they are being forked faster than they are
    killed: then all are stopped first, which keeps their places in the process limit, and killed when no new ones
    appear.
    """

    def __init__(self, mark: Mark | None) -> None:
        self.mark = mark
        self.requests: list[int] = []
        self._seen: set[int] = set()
        self._gone: set[int] = set()
        self._doubts = 0
        self._most_doubts = _FEW_DOUBTS
        self._looked = False
        self._delay = _FIRST_DELAY
        self._deadline = time.monotonic() + _GIVE_UP_SECONDS
        self.next_look: float = 0.0

    @property
    def given_up(self) -> bool:
        """It has taken too long."""
        return time.monotonic() > self._deadline

    def _wants(self, value: int) -> bool:
        """Does a process with this mark have to die? One that hides its mark goes with whatever is killed first."""
        return self.mark is None or value in {self.mark.value, UNREADABLE}

    def look(self, processes: list[tuple[int, int]]) -> bool:
        """Deal with the processes there are; True when none is left to kill."""
        pids = [pid for pid, mark in processes if mark != GONE and self._wants(mark)]
        if not pids:
            gone = {pid for pid, mark in processes if mark == GONE}
            new_gone, self._gone = gone - self._gone, gone
            self._doubts += 1
            return not new_gone or self._doubts > self._most_doubts
        new = [pid for pid in pids if pid not in self._seen]
        self._seen.update(new)
        if new and self._looked:
            self._most_doubts = _MANY_DOUBTS
            signal_groups(new, signal.SIGSTOP)
            self.next_look = 0.0
        else:
            signal_groups(pids, signal.SIGKILL)
            self.next_look = time.monotonic() + self._delay
            self._delay = min(self._delay * 2, _LAST_DELAY)
        self._looked = True
        return False


def signal_groups(pids: list[int], number: signal.Signals) -> None:
    """Signal processes with their process groups.

    The kernel signals a group in one go that no fork can slip through. A group belongs to a session, and a session to
    one command, so nobody else is hit; only the caller's own group is never signalled.
    """
    own = os.getpgid(0)
    groups = set()
    for pid in pids:
        # What is not ours to signal (a set-user-id program without namespaces) is left to the deadline.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            group = os.getpgid(pid)
            if group in {0, own}:
                os.kill(pid, number)
            elif group not in groups:
                groups.add(group)
                os.killpg(group, number)
