"""From a fork of the zygote to a box's PID 1.

`launch` never returns: one process of it leaves the host's namespaces and forks the other, which builds the root,
gives up its rights and becomes the agent. It talks to the zygote over a socket: it asks for what only the host's root
can do (`map`), says which process the agent is (`pid`), and in the end `ready` or `error`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any, NoReturn

from cwsandbox.runners.local import agent, files, protocol, root, seccomp, warden
from cwsandbox.runners.local import syscalls as linux

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMESPACES = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


class LaunchError(Exception):
    """A step of building a box failed; the message names it."""


def launch(plan: dict[str, Any], zygote: socket.socket, cgroups: list[str]) -> NoReturn:
    """Become a box.

    Args:
        plan: The creation message; `runner.LocalRunner` makes it.
        zygote: This box's socket to the zygote, blocking.
        cgroups: Folders of the cgroups to join.
    """
    try:
        os.umask(0o022)
        listener = _listen(plan["socket"])
        _join_cgroups(cgroups)
        if plan["level"] == "namespaces":
            _enter_namespaces(plan, zygote)
        else:
            _enter_folder(plan, zygote)
        _set_limits(plan)
        _drop_rights(namespaces=plan["level"] == "namespaces", network=plan["sockets"])
        if plan["warden"] is not None:
            with _step("limiting the number of processes"):
                warden.begin(plan["warden"])
        listener.listen(16)
        protocol.send(zygote, protocol.encode({"event": "ready"}))
        zygote.close()
    except BaseException as error:
        with contextlib.suppress(OSError):
            protocol.send(zygote, protocol.encode({"event": "error", "message": str(error)[:4000]}))
        os._exit(1)
    agent.serve(plan, listener)


def _listen(path: str) -> socket.socket:
    """Bind the agent's socket while the host's file system is in reach.

    The agent listens on it later: whoever connects sees the credentials of the process that did.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
    listener.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    os.close(folder)
    return listener


def _join_cgroups(folders: list[str]) -> None:
    for folder in folders:
        with open(f"{folder}/cgroup.procs", "w", encoding="ascii") as file:
            file.write("0")


def _enter_namespaces(plan: dict[str, Any], zygote: socket.socket) -> None:
    user, group = os.geteuid(), os.getegid()
    with _step("making the box's folders"):
        root.prepare_folders(plan["folder"], plan["base"] or user)
    with _step("making namespaces"):
        if plan["base"]:
            os.setgroups([])
        linux.unshare(_NAMESPACES)
    trees: list[int] = []
    with _step("mapping users"):
        if plan["base"]:
            trees = _ask_for_maps(zygote)
        else:
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"0 {user} 1")
            _write("/proc/self/gid_map", f"0 {group} 1")
    _become_first_process(zygote)
    with _step("building the root file system"):
        root.enter_root(plan, trees)
    with _step("configuring the box"):
        socket.sethostname(plan["hostname"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def _enter_folder(plan: dict[str, Any], zygote: socket.socket) -> None:
    """Level `process`: folders instead of namespaces."""
    _become_first_process(zygote)
    os.setsid()
    folder = plan["folder"]
    with _step("making the box's folders"):
        for name in ("home", "tmp", "bin"):
            os.makedirs(f"{folder}/{name}", 0o700, exist_ok=True)
        for name in ("python", "python3"):
            os.symlink(plan["image"]["executable"], f"{folder}/bin/{name}")
    with _step("placing files"):
        for target, source in plan["files"]:
            with open(source, "rb") as file:
                content = file.read()
            if files.place(target, content):
                protocol.send(zygote, protocol.encode({"event": "placed", "path": target}))
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)


def _become_first_process(zygote: socket.socket) -> None:
    """Fork; the child goes on as the agent, a child of the zygote's by adoption.

    It waits until it has been announced: a zygote that had never heard of it would take it for an orphan.
    """
    announced, announcer = os.pipe()
    pid = os.fork()
    if pid:
        protocol.send(zygote, protocol.encode({"event": "pid", "pid": pid}))
        os._exit(0)
    os.close(announcer)
    os.read(announced, 1)
    os.close(announced)


def _ask_for_maps(zygote: socket.socket) -> list[int]:
    protocol.send(zygote, protocol.encode({"event": "map", "pid": os.getpid()}))
    answer = protocol.receive(zygote, large=False)
    if answer is None:
        raise LaunchError("the zygote ended")
    if "error" in answer.body:
        raise LaunchError(answer.body["error"])
    return list(answer.fds)


def _set_limits(plan: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    processes = plan["processes"]
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes is not None and plan["level"] == "namespaces":
        # Counted per user namespace, so these are the box's own.
        processes = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    memory = plan["process_memory"]
    if memory is not None:
        # Not RLIMIT_AS: that counts what a program only reserves, which for Go and V8 is many times what they use.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _drop_rights(*, namespaces: bool, network: bool) -> None:
    with _step("dropping rights"):
        with contextlib.nullcontext() if namespaces else contextlib.suppress(PermissionError):
            linux.drop_bounding_set()
        linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
        # The agent marks commands (a UTS namespace each) and looks at their marks; programs it starts get neither
        # right.
        linux.set_capabilities((linux.CAP_SYS_ADMIN, linux.CAP_SYS_PTRACE) if namespaces else ())
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
    with _step("installing the system-call filter"):
        linux.install_filter(seccomp.build_filter(network=network))
    # A handler or a default action that ends the process must not be reachable from inside.
    signal.signal(signal.SIGINT, signal.SIG_DFL if namespaces else signal.SIG_IGN)


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LaunchError(f"{what}: {error}") from error


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
