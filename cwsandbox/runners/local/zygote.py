"""The process that boxes are forked from.

A single-threaded interpreter with everything imported once and none of the gateway's memory, environment or
descriptors. It does for boxes what only the host's side can do (user maps, owner-mapped mounts, cgroups), adopts and
reaps them, and tells the gateway. When the gateway is gone it stays until its last box is, removes what they leave,
and ends.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import os
import random
import selectors
import signal
import socket
import time
from typing import Any

from cwsandbox.runners.local import launch, protocol
from cwsandbox.runners.local import syscalls as linux
from cwsandbox.runners.local.descriptors import close_others
from cwsandbox.runners.local.marks import ProcessTree, signal_groups
from cwsandbox.runners.local.trees import remove_tree

CONTROL_FD = 3
_FIRST_BASE = 0x4000_0000
_RANGE = 65536
_RANGES = 16000
_REQUESTS = frozenset({"memory.soft_limit_in_bytes", "cpu.shares", "memory.low", "cpu.weight"})
"""Settings for what a box is to have, as good as the kernel can: a real-time one, for example, has no soft limits."""
_ORPHAN_LOOKS, _EMPTY_LOOKS = 500, 3


class BoxEntry:
    """What the zygote knows of a box."""

    def __init__(self, plan: dict[str, Any], setup: socket.socket, builder: int) -> None:
        self.plan = plan
        self.setup: socket.socket | None = setup
        self.builder = builder
        self.agent = -1
        self.ready = False
        self.told = False


def main() -> None:
    """Serve the gateway at the other end of descriptor 3."""
    os.umask(0o077)
    close_others(CONTROL_FD)  # A listening socket of the gateway's, kept here, would outlive the gateway.
    linux.set_title("cwsandbox")  # Sandboxes see the arguments of their agents, which are not to tell of this machine.
    codecs.lookup("ascii")  # Codecs are modules too, and nothing can be imported inside a box.
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    zygote = Zygote(socket.socket(fileno=CONTROL_FD))
    gc.collect()
    gc.freeze()
    zygote.run()


class Zygote:
    """The state of the zygote."""

    def __init__(self, control: socket.socket) -> None:
        self._control: socket.socket | None = control
        self._boxes: dict[str, BoxEntry] = {}
        self._early_exits: set[int] = set()
        self._placed: set[str] = set()
        self._next_range = random.randrange(_RANGES)  # noqa: S311 - spreads gateways that share a machine.
        self._selector = selectors.EpollSelector()
        self._selector.register(control, selectors.EVENT_READ, self._listen_to_gateway)
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore_signal)
        self._selector.register(read, selectors.EVENT_READ, lambda: self._reap(read))

    def run(self) -> None:
        """Serve until the gateway and all boxes are gone."""
        while self._control is not None or self._boxes:
            for key, _ in self._selector.select():
                key.data()

    # -- the gateway

    def _listen_to_gateway(self) -> None:
        control = self._control
        assert control is not None
        try:
            message = protocol.receive(control, large=True)
        except (OSError, protocol.ProtocolError):
            message = None
        if message is None:
            self._selector.unregister(control)
            control.close()
            self._control = None
            return
        self._create(message.body["plan"])

    def _tell(self, body: dict[str, Any]) -> None:
        if self._control is not None:
            with contextlib.suppress(OSError):
                protocol.send(self._control, protocol.encode(body))

    def _create(self, plan: dict[str, Any]) -> None:
        name = plan["box"]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            plan["base"] = self._pick_range() if plan["level"] == "namespaces" and os.geteuid() == 0 else 0
            cgroups = make_cgroups(plan["cgroups"])
            builder = os.fork()
        except OSError as error:
            ours.close()
            theirs.close()
            remove_cgroups(plan["cgroups"])
            self._tell({"event": "failed", "box": name, "message": f"starting the box: {error}"})
            return
        if builder == 0:
            signal.set_wakeup_fd(-1)
            ours.close()
            launch.launch(plan, theirs, cgroups)
        theirs.close()
        ours.setblocking(False)
        box = self._boxes[name] = BoxEntry(plan, ours, builder)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._listen_to_box(name, box))

    def _pick_range(self) -> int:
        """The first of 65536 user ids that no box of this zygote has; others start elsewhere, by chance."""
        taken = {box.plan["base"] for box in self._boxes.values()}
        while True:
            self._next_range = (self._next_range + 1) % _RANGES
            base = _FIRST_BASE + self._next_range * _RANGE
            if base not in taken:
                return base

    # -- the boxes

    def _listen_to_box(self, name: str, box: BoxEntry) -> None:
        setup = box.setup
        if setup is None:
            return
        try:
            message = protocol.receive(setup, large=False)
        except BlockingIOError:
            return
        except (OSError, protocol.ProtocolError):
            message = None
        if message is None:
            self._selector.unregister(setup)
            setup.close()
            box.setup = None
            if not box.ready:
                self._fail(name, box, "the process that built the box died")
            self._forget_if_gone(name, box)
            return
        event = message.body["event"]
        if event == "map":
            self._map(setup, box.plan, message.body["pid"])
        elif event == "pid":
            box.agent = message.body["pid"]
        elif event == "placed":
            self._placed.add(message.body["path"])
        elif event == "ready":
            box.ready = True
            self._tell({"event": "ready", "box": name, "pid": box.agent})
        elif event == "error":
            self._fail(name, box, message.body["message"])

    def _fail(self, name: str, box: BoxEntry, message: str) -> None:
        if not box.told:
            box.told = True
            self._tell({"event": "failed", "box": name, "message": message})

    def _map(self, setup: socket.socket, plan: dict[str, Any], pid: int) -> None:
        """Give a box's user namespace its range of user ids, and mounts whose owners are mapped to it."""
        try:
            for kind in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{kind}", "w", encoding="ascii") as file:
                    file.write(f"0 {plan['base']} {_RANGE}")
            trees = _mapped_trees(plan["image"], pid)
        except OSError as error:
            protocol.send(setup, protocol.encode({"error": str(error)}))
            return
        protocol.send(setup, protocol.encode({}), trees)
        for tree in trees:
            os.close(tree)

    def _reap(self, wakeups: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._early_exits.add(pid)
            for name, box in list(self._boxes.items()):
                self._forget_if_gone(name, box)
            if all(box.setup is None for box in self._boxes.values()):
                self._early_exits.clear()  # Only a box in the making can say later which process its agent was.

    def _forget_if_gone(self, name: str, box: BoxEntry) -> None:
        """A box is gone when it can say no more and its agent, if there ever was one, was reaped."""
        if box.setup is not None:
            return
        if box.agent in self._early_exits:
            box.agent = -1
            if box.plan["level"] == "process":
                self._kill_orphans()
        elif box.agent > 0:
            return
        del self._boxes[name]
        self._remove_placed(box)
        remove_cgroups(box.plan["cgroups"])
        self._tell({"event": "gone", "box": name})
        if self._control is None:
            with contextlib.suppress(OSError):
                os.unlink(box.plan["socket"])
            with contextlib.suppress(OSError):
                remove_tree(box.plan["folder"])

    def _remove_placed(self, gone: BoxEntry) -> None:
        """Remove the files that were put into the host's file system for a box, unless another box has them too."""
        used = {target for box in self._boxes.values() for target, _ in box.plan["files"]}
        for target, _ in gone.plan["files"]:
            if target in self._placed - used:
                self._placed.discard(target)
                with contextlib.suppress(OSError):
                    os.unlink(target)

    def _kill_orphans(self) -> None:
        """Kill what an agent without a PID namespace left behind: our descendants below no other agent."""
        empty_looks = 0
        for _ in range(_ORPHAN_LOOKS):
            tree = ProcessTree()
            # An agent in the making is below its builder in that look, or was adopted before it and then announced: it
            # is not taken for an orphan. A second look would find it adopted and not yet announced.
            for name, box in list(self._boxes.items()):
                if not box.ready:
                    self._listen_to_box(name, box)
            kept = {pid for box in self._boxes.values() for pid in (box.agent, box.builder) if pid > 0}
            safe = kept.union(*map(tree.below, kept))
            orphans = [pid for pid in tree.below(os.getpid()) if pid not in safe]
            empty_looks = 0 if orphans else empty_looks + 1
            if empty_looks >= _EMPTY_LOOKS:
                return
            signal_groups(orphans, signal.SIGKILL)
            time.sleep(0.001)


def _ignore_signal(number: int, frame: object) -> None:
    """Only a signal that has a handler wakes the selector."""


def _mapped_trees(image: dict[str, Any], pid: int) -> list[int]:
    """Detached mounts with owners mapped to the user namespace of `pid`; none if a file system cannot do that."""
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    trees: list[int] = []
    try:
        for path in filter(None, (image["folder"], "/usr", image["prefix"])):
            tree = linux.open_tree(path)
            trees.append(tree)
            linux.mount_setattr(tree, linux.MOUNT_ATTR_IDMAP, namespace)
    except OSError:
        for tree in trees:
            os.close(tree)
        return []
    finally:
        os.close(namespace)
    return trees


def make_cgroups(wanted: list[list[Any]]) -> list[str]:
    """Make a box's cgroups and set their limits; the folders to join."""
    folders = []
    for folder, settings in wanted:
        os.makedirs(folder, exist_ok=True)
        folders.append(folder)
        for name, value in settings.items():
            try:
                with open(f"{folder}/{name}", "w", encoding="ascii") as file:
                    file.write(value)
            except OSError:
                if name not in _REQUESTS:
                    raise
    return folders


def remove_cgroups(wanted: list[list[Any]]) -> None:
    """Remove a box's cgroups; the kernel may need a moment after the last process."""
    for folder, _ in wanted:
        for _ in range(100):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.001)
            else:
                break
