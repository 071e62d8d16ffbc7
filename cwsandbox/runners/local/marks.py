"""How the agent knows which processes belong to which command, whatever they did to hide.

Every command is started with a mark that its descendants inherit and cannot take off: parents, sessions, process
groups and environments can all be shed by a daemon. In a box with namespaces the mark is a UTS namespace of the
command's own: leaving it takes a capability that nothing in the box has. Without namespaces it is the hard limit of a
resource that nobody uses, unique per command: an ordinary process can lower its limit but never raise it.
"""

from __future__ import annotations

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

_GIVE_UP_SECONDS = 5.0
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
        """All marked processes that still run: (process id, mark)."""
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
                mark = self._mark_of(name)
                if mark is not None:
                    yield int(name), mark

    def _mark_of(self, name: str) -> int | None:
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
            return None
        for thread in threads:
            if thread != name:
                try:
                    return os.stat(f"/proc/{name}/task/{thread}/ns/uts").st_ino
                except OSError:
                    continue
        return None


class LimitMarks:
    """Marks that are hard limits of RLIMIT_RTTIME; for a subreaper, whose descendants stay its descendants."""

    _LINE = re.compile(rb"^Max realtime timeout\s+\S+\s+(\S+)", re.MULTILINE)

    def __init__(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        self._next = (1 << 62) if hard == resource.RLIM_INFINITY else hard

    def make(self) -> Mark:
        """See `Marks`."""
        self._next -= 1
        resource.setrlimit(resource.RLIMIT_RTTIME, (self._next, self._next))
        return Mark(self._next, -1)

    def processes(self) -> Iterator[tuple[int, int]]:
        """See `Marks`."""
        for pid in descendants(os.getpid()):
            try:
                with open(f"/proc/{pid}/limits", "rb") as file:
                    found = self._LINE.search(file.read())
            except OSError:
                continue
            value = int(found[1]) if found and found[1].isdigit() else UNREADABLE
            yield pid, value if value >= self._next else UNREADABLE  # Lower ones were never given out.


def descendants(ancestor: int) -> list[int]:
    """The processes below `ancestor` that still run."""
    children: dict[int, list[int]] = {}
    running = set()
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        state, parent, threads = fields[0], int(fields[1]), int(fields[17])
        children.setdefault(parent, []).append(int(name))
        # The first thread of a process may have ended while others run on.
        if state not in {b"Z", b"X"} or threads > 1:
            running.add(int(name))
    found: list[int] = []
    pending = [ancestor]
    while pending:
        below = children.get(pending.pop(), [])
        pending += below
        found += [pid for pid in below if pid in running]
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
        self._looked = False
        self._delay = _FIRST_DELAY
        self._deadline = time.monotonic() + _GIVE_UP_SECONDS
        self.next_look = 0.0

    @property
    def given_up(self) -> bool:
        """It has taken too long."""
        return time.monotonic() > self._deadline

    def wants(self, value: int) -> bool:
        """Does a process with this mark have to die? One that hides its mark goes with whatever is killed first."""
        return self.mark is None or value in {self.mark.value, UNREADABLE}

    def look(self, pids: list[int]) -> bool:
        """Deal with the processes found; True when there were none."""
        if not pids:
            return True
        new = [pid for pid in pids if pid not in self._seen]
        self._seen.update(new)
        if new and self._looked:
            _send_all(new, signal.SIGSTOP)
            self.next_look = 0.0
        else:
            _send_all(pids, signal.SIGKILL)
            self.next_look = time.monotonic() + self._delay
            self._delay = min(self._delay * 2, _LAST_DELAY)
        self._looked = True
        return False


def _send_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        except PermissionError:
            continue  # Not ours to kill (a set-user-id program at level `process`); the deadline deals with it.
