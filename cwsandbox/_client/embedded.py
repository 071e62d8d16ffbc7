"""The embedded gateway: every user's own, found or started on first use.

Finding is connecting. Only when nobody answers on the socket, one starter at a time (a file lock across processes)
tries again and then starts the gateway, as a process of its own that outlives the caller. The new gateway says over an
inherited pipe that it listens, so that nobody polls.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

import cwsandbox
from cwsandbox._client.address import API_KEY_VARIABLE
from cwsandbox._runtime._loops import LoopHandle
from cwsandbox.exceptions import SandboxUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from cwsandbox._client.folders import Folders

_LOCK_SECONDS = 60.0
_START_SECONDS = 30.0
_LOG_TAIL_BYTES = 4096
_LOG_KEEP_BYTES = 1024 * 1024
_INHERITED = frozenset({"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"})
_INHERITED_PREFIXES = ("XDG_", "CWSANDBOX_")

# `-I` keeps the caller's folder, PYTHONPATH and user site out of a process that outlives the caller; in exchange the
# package is taken from where the caller has it, which may be a plain checkout. Its folder is in front for that one
# import only: what else lies there must not shadow the standard library. The fork makes the gateway nobody's child: no
# zombie is left in a long-lived caller, and the caller's own `os.wait()` never sees it.
_BOOTSTRAP = """\
import os, sys
root = sys.argv.pop(1)
if os.fork():
    os._exit(0)
sys.path.insert(0, root)
import cwsandbox
sys.path.remove(root)
sys.path.append(root)
import runpy
runpy.run_module("cwsandbox.gateway", run_name="__main__", alter_sys=True)
"""


async def start(folders: Folders, lock: StartLock, env: Mapping[str, str] | None = None) -> str:
    """Start the gateway; returns when it listens. Call it when nobody answers on the socket.

    When cancelled, the gateway goes on starting, and holds the lock itself until it listens: whoever comes next waits
    for it. The same if this process is killed.

    Args:
        folders: Its places.
        lock: That of `start_lock`.
        env: The environment that its own is picked from; default `os.environ`.

    Returns:
        What its user should be told, such as a weaker isolation than usual; mostly empty.

    Raises:
        SandboxUnavailableError: It did not start; the message holds the end of its log.
    """
    environment = _environment(os.environ if env is None else env)
    spawned = await anyio.to_thread.run_sync(_spawn, folders, environment, lock.descriptor)
    try:
        with anyio.move_on_after(_START_SECONDS) as limit:
            ready = await _read_line(spawned.ready)
    except anyio.get_cancelled_exc_class():
        lock.shared = True
        raise
    finally:
        os.close(spawned.ready)
    if limit.cancelled_caught:
        problem = f"is not ready after {_START_SECONDS:g} s"
    elif ready:
        return _notice(ready, folders)
    else:
        problem = "ended while starting"
    tail = await anyio.to_thread.run_sync(_log_tail, folders.log, spawned.log_start)
    raise SandboxUnavailableError(f"the embedded gateway {problem}; its log {folders.log} ends with:\n{tail}")


def _notice(line: bytes, folders: Folders) -> str:
    report = json.loads(line)
    if "error" in report:
        raise SandboxUnavailableError(f"the embedded gateway cannot run: {report['error']} (its log is {folders.log})")
    return str(report.get("notice", ""))


@asynccontextmanager
async def start_lock(folders: Folders) -> AsyncIterator[StartLock]:
    """Hold the lock under which the gateway is started, across processes and threads.

    Raises:
        SandboxUnavailableError: Somebody else holds it for longer than a start can take.
    """
    lock = StartLock(folders.lock)
    with anyio.move_on_after(_LOCK_SECONDS):
        await lock.acquire()
    if not lock.held:
        raise SandboxUnavailableError(
            f"another process has been starting the embedded gateway for {_LOCK_SECONDS:g} s; it holds {folders.lock}"
        )
    try:
        yield lock
    finally:
        lock.release()


class StartLock:
    """`flock` off the event loop.

    A blocked `flock` can neither time out nor be cancelled: it waits in a daemon thread, which gives the lock back by
    itself when nobody wants it any more.

    Attributes:
        descriptor: What holds it, together with all that inherited it.
        held: Whether it is held here.
        shared: A gateway that inherited it is to keep it when it is released here.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._wanted = True
        self.descriptor: int = -1
        self.held: bool = False
        self.shared: bool = False

    async def acquire(self) -> None:
        """Wait for the lock. Cancelling gives up."""
        if await anyio.to_thread.run_sync(self._try):
            return
        loop, acquired = LoopHandle.current(), anyio.Event()
        threading.Thread(
            target=self._wait, args=(lambda: loop.run_soon(acquired.set),), name="cwsandbox-lock", daemon=True
        ).start()
        try:
            await acquired.wait()
        except BaseException:
            self._give_up()
            raise

    def release(self) -> None:
        """Give the lock back."""
        if not self.shared:
            # Explicitly: a process that was forked meanwhile has the descriptor too, and would keep the lock.
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)
        self.held = False

    def _try(self) -> bool:
        self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.held = True
        return True

    def _wait(self, tell: Callable[[], object]) -> None:
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        with self._mutex:
            self.held = True
            if not self._wanted:
                self.release()
                return
        tell()

    def _give_up(self) -> None:
        with self._mutex:
            self._wanted = False
            if self.held:
                self.release()


class _Spawned:
    """What is needed to watch a start: the pipe to read from, and where in the log this start begins."""

    def __init__(self, ready: int, log_start: int) -> None:
        self.ready = ready
        self.log_start = log_start


def _spawn(folders: Folders, environment: dict[str, str], lock: int) -> _Spawned:
    if not sys.executable:
        raise SandboxUnavailableError("cannot start the embedded gateway: this Python does not know its own executable")
    log = _open_log(folders.log)
    ready, ready_child = os.pipe()
    root = os.path.dirname(os.path.dirname(os.path.abspath(cwsandbox.__file__)))
    gateway = ["--embedded", "--socket", folders.socket, "--ready-fd", str(ready_child), "--start-lock-fd", str(lock)]
    gateway += ["--runtime-dir", folders.gateway_runtime, "--state-dir", folders.gateway_state]
    gateway += ["--isolation", folders.isolation]
    try:
        log_start = os.fstat(log).st_size
        subprocess.run(
            [sys.executable, "-I", "-c", _BOOTSTRAP, root, *gateway],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(ready_child, lock),
            cwd="/",
            env=environment,
            umask=0o077,
            start_new_session=True,
            check=True,
            timeout=_START_SECONDS,
        )
    except BaseException as error:
        os.close(ready)
        if isinstance(error, (OSError, subprocess.SubprocessError)):
            raise SandboxUnavailableError(f"cannot start the embedded gateway: {error}") from error
        raise
    finally:
        os.close(log)
        os.close(ready_child)
    os.set_blocking(ready, False)
    return _Spawned(ready, log_start)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """What the gateway may know of the user's environment; never credentials."""
    return {
        name: value
        for name, value in env.items()
        if (name in _INHERITED or name.startswith(_INHERITED_PREFIXES)) and name != API_KEY_VARIABLE
    }


def _open_log(path: str) -> int:
    """Open the log for appending; a large one is set aside first. Under the start lock nobody else writes."""
    try:
        if os.stat(path).st_size > _LOG_KEEP_BYTES:
            os.replace(path, path + ".1")
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _log_tail(path: str, start: int) -> str:
    try:
        with open(path, "rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(start, end - _LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError as error:
        return f"({error.strerror})"
    # It ends up on a terminal, and may quote what a sandbox said.
    return "".join(c if c == "\n" or c.isprintable() else "?" for c in text).strip() or "(nothing)"


async def _read_line(descriptor: int) -> bytes:
    """Read until a newline; what came before the end of file if there is none."""
    line = b""
    while not line.endswith(b"\n"):
        await anyio.wait_readable(descriptor)
        try:
            data = os.read(descriptor, 4096)
        except BlockingIOError:
            continue
        if not data:
            return b""
        line += data
    return line
