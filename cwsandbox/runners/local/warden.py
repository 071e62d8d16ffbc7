"""Bounds the number of processes of a box where neither a user namespace nor a cgroup can.

The kernel asks the warden, a process of its own beside the agent, before every fork and every new thread in the box
(seccomp user notification), and the warden lets it go on or fails it with EAGAIN, as RLIMIT_NPROC does. It does not
poll: a count of the box's tasks tells how many forks can be allowed before it has to count again.

A signal that comes between a fork and the warden's taking it up interrupts the fork. Handlers with SA_RESTART do not
notice; without it the program sees EINTR, and `dash` says "Cannot fork". The kernel has no way around that, so the
warden takes forks up as soon as it can.

Nothing in the box gets around it: the filter cannot be taken off, and without a warden every fork fails. Forks that are
on their way while it counts are not seen, so that a box may for a moment have up to twice its tasks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from typing import NoReturn

from cwsandbox.runners.local import seccomp
from cwsandbox.runners.local import syscalls as linux
from cwsandbox.runners.local.descriptors import close_others
from cwsandbox.runners.local.marks import ProcessTree

# linux/seccomp.h
_RECEIVE, _SEND, _SET_FLAGS = 0xC050_2100, 0xC018_2101, 0x4008_2104
_WAKE_SYNCHRONOUSLY = 1
_NOTIFICATION = struct.Struct("QII64x")
_RESPONSE = struct.Struct("QqiI")
_CONTINUE = 1

_TIME_SLICE_SECONDS = 0.0001
"""The shortest that Linux grants: what asks for short turns is run soon after it wakes."""
_LONG_COUNT_SECONDS = 0.01
"""After a count that took longer and found no room, as among hundreds of tasks, there is none for twice as long.

Of the processor's time: to wait for one on a busy machine says nothing about the box.
"""


def begin(most: int) -> None:
    """Have the calling process and everything it will start watched: at most `most` tasks below it.

    Raises:
        OSError: The kernel cannot do that here.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent = os.getpid()
    if os.fork() == 0:
        ours.close()
        with contextlib.suppress(BaseException):
            _watch(theirs, agent, most)
        os._exit(0)
    theirs.close()
    with ours:
        listener = linux.install_listener(seccomp.build_fork_filter())
        socket.send_fds(ours, [b"l"], [listener])
        os.close(listener)


def _watch(link: socket.socket, agent: int, most: int) -> NoReturn:
    alive = os.pidfd_open(agent)
    _, fds, _, _ = socket.recv_fds(link, 1, 1)
    if not fds:
        os._exit(0)  # There is no filter.
    listener = fds[0]
    os.dup2(alive, 0)
    close_others(listener)
    _hurry(listener)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(listener, select.POLLIN)
    gate = Gate(agent, most)
    while True:
        ready = dict(poll.poll())
        if 0 in ready or ready.get(listener, 0) & (select.POLLHUP | select.POLLERR):
            os._exit(0)
        _answer(listener, gate)


def _hurry(listener: int) -> None:
    """Take forks up sooner, as far as this kernel can: interrupted ones become 10 to 30 times rarer."""
    with contextlib.suppress(OSError):  # Since Linux 6.6: the one who asks makes room for the warden.
        fcntl.ioctl(listener, _SET_FLAGS, _WAKE_SYNCHRONOUSLY)
    with contextlib.suppress(OSError):
        linux.set_time_slice(_TIME_SLICE_SECONDS)


def _answer(listener: int, gate: Gate) -> None:
    notification = bytearray(_NOTIFICATION.size)
    with contextlib.suppress(OSError):  # Who asked was killed meanwhile.
        fcntl.ioctl(listener, _RECEIVE, notification)
        number, asker, _ = _NOTIFICATION.unpack(notification)
        answer = (0, 0, _CONTINUE) if gate.admits(asker) else (0, -errno.EAGAIN, 0)
        fcntl.ioctl(listener, _SEND, bytearray(_RESPONSE.pack(number, *answer)))


class Gate:
    """How many more tasks there may be."""

    def __init__(self, agent: int, most: int) -> None:
        self._agent = agent
        self._most = most
        self._left = 0
        self._next_count = 0.0

    def admits(self, asker: int) -> bool:
        """May this process have one more? The agent, which asks for users, is always answered by a count."""
        if self._left <= 0 and (time.monotonic() >= self._next_count or asker == self._agent):
            began = time.thread_time()
            # The warden is below the agent too.
            self._left = self._most - ProcessTree().tasks_below(self._agent) + 1
            took = time.thread_time() - began
            is_storm = took > _LONG_COUNT_SECONDS and self._left <= 0
            self._next_count = time.monotonic() + 2 * took if is_storm else 0.0
        self._left -= 1
        return self._left >= 0
