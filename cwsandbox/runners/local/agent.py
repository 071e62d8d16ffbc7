"""PID 1 of a box: starts commands, hands out their streams, moves files, kills trees, reaps.

One thread, one selector, no blocking call that a sandbox could prolong. The gateway connects to the agent's socket,
and may come back: the agent keeps copies of the gateway's ends of all pipes until a command is forgotten. If no
gateway comes back in time, the agent ends, and the box with it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from cwsandbox.runners.local import fileops, files, ports, protocol
from cwsandbox.runners.local.descriptors import close_others
from cwsandbox.runners.local.marks import LimitMarks, Mark, Marks, NamespaceMarks, TreeKill
from cwsandbox.runners.local.spawn import DEFAULT_PATH, NotStartedError, Spawner, Started

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_LIMIT_OF_PENDING_FILES = 64
_LIMIT_OF_FILE_JOBS = 256


def serve(plan: dict[str, Any], listener: socket.socket) -> NoReturn:
    """Be the agent until the box ends."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_others(listener.fileno())
    agent = Agent(plan, listener)
    try:
        agent.run()
    except BaseException as error:
        agent.tell_last(f"{type(error).__name__}: {error}")
    os._exit(1)


class Command:
    """A command that runs or was not forgotten yet."""

    def __init__(self, exec_id: str, started: Started, mark: Mark, note: Any) -> None:
        self.exec_id = exec_id
        self.pid: int = started.pid
        self.fds: dict[str, int] = started.fds
        """What the gateway has too, by the names of `protocol.JOURNALS`."""
        self.mark = mark
        self.note = note
        """What the gateway wants to be told when it comes back."""
        self.status: int | None = None
        """What `os.waitstatus_to_exitcode` gives: an exit code, or a negative signal."""

    def close(self, *names: str) -> None:
        """Close the agent's copies."""
        for name in names:
            fd = self.fds.pop(name, -1)
            if fd >= 0:
                os.close(fd)


class Gateway:
    """The connection to the gateway, with a queue for what its socket has no room for."""

    def __init__(self, connection: socket.socket, selector: selectors.BaseSelector) -> None:
        self.connection = connection
        self.pending: dict[int, files.Pending] = {}
        self._selector = selector
        self._queue: deque[tuple[bytes, Sequence[int]]] = deque()

    def send(self, body: dict[str, Any], payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send now or later; descriptors are sent as they are now, whoever closes them in between."""
        data = protocol.encode(body, payload)
        if not self._queue:
            try:
                protocol.send(self.connection, data, fds)
            except BlockingIOError:
                pass
            except OSError:
                return  # The end of the connection is seen by reading.
            else:
                return
        self._queue.append((data, [os.dup(fd) for fd in fds]))
        self._watch(_READ | _WRITE)

    def flush(self) -> None:
        """Send what had to wait."""
        while self._queue:
            data, fds = self._queue[0]
            try:
                protocol.send(self.connection, data, fds)
            except BlockingIOError:
                return
            except OSError:
                pass
            self._queue.popleft()
            for fd in fds:
                os.close(fd)
        self._watch(_READ)

    def _watch(self, events: int) -> None:
        """Wait for other events; `modify` forgets the callback unless it is told again."""
        self._selector.modify(self.connection, events, self._selector.get_key(self.connection).data)

    def close(self) -> None:
        """Let the connection go, and what was half done for it."""
        self._selector.unregister(self.connection)
        self.connection.close()
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        for pending in self.pending.values():
            files.abort(pending)


class Agent:
    """The state of PID 1."""

    def __init__(self, plan: dict[str, Any], listener: socket.socket) -> None:
        self._info: dict[str, Any] = plan["info"]
        self._namespaces = plan["level"] == "namespaces"
        self._grace: float = plan["grace"]
        self._home, self._env = _surroundings(plan)
        self._marks: Marks = NamespaceMarks() if self._namespaces else LimitMarks()
        self._spawner = Spawner()
        self._commands: dict[str, Command] = {}
        self._running: dict[int, Command] = {}
        self._kills: dict[int, TreeKill] = {}
        self._file_jobs: dict[int, int] = {}
        """Process ids of children that work on files, by request."""
        self._ending: TreeKill | None = None
        self._gateway: Gateway | None = None
        self._alone_since = time.monotonic()
        self._selector = selectors.EpollSelector()
        self._listener = listener
        self._listeners = ports.Listeners(self._selector)
        self._operations: dict[str, Callable[[Gateway, protocol.Message], None]] = {
            "spawn": self._spawn,
            "signal": self._signal,
            "kill": self._kill,
            "close_stdin": self._close_stdin,
            "forget": self._forget,
            "open": self._open,
            "put": self._put,
            "create": self._create,
            "commit": self._commit,
            "abort": self._abort,
            "file": self._file,
            "file_job": self._file_job,
            "end_file_job": self._end_file_job,
            "end": self._end,
            "connect": self._connect,
            "listen": self._listen,
            "accept": self._accept_inside,
        }
        listener.setblocking(False)
        self._selector.register(listener, _READ, self._accept)
        self._watch_children()

    # -- the loop

    def run(self) -> None:
        """Serve until the gateway says `end` or stays away for too long."""
        while True:
            for key, mask in self._selector.select(self._timeout()):
                key.data(mask)
            if self._kills:
                self._look_for_processes()
            if self._ending is not None and self._look(self._ending):
                return
            if self._gateway is None and time.monotonic() - self._alone_since >= self._grace:
                self._begin_end()

    def _timeout(self) -> float | None:
        now = time.monotonic()
        times = [kill.next_look for kill in self._kills.values()]
        if self._ending is not None:
            times.append(self._ending.next_look)
        elif self._gateway is None:
            times.append(self._alone_since + self._grace)
        return max(0.0, min(times) - now) if times else None

    def tell_last(self, message: str) -> None:
        """Say why the box ends, if anybody listens."""
        if self._gateway is not None:
            self._gateway.send({"event": "fatal", "message": message[:1000]})

    def _accept(self, mask: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if self._gateway is not None:
            self._gateway.close()
            self._listeners.forget_requests()
        connection.setblocking(False)
        gateway = self._gateway = Gateway(connection, self._selector)
        self._selector.register(connection, _READ, lambda mask: self._converse(gateway, mask))
        level = "namespaces" if self._namespaces else "process"
        gateway.send({"event": "hello", "info": self._info, "level": level, "commands": len(self._commands)})
        for command in self._commands.values():
            body = {
                "event": "command",
                "exec": command.exec_id,
                "pid": command.pid,
                "fds": list(command.fds),
                "note": command.note,
                "status": command.status,
            }
            gateway.send(body, fds=list(command.fds.values()))

    def _converse(self, gateway: Gateway, mask: int) -> None:
        if mask & _WRITE:
            gateway.flush()
        while mask & _READ and self._gateway is gateway:
            try:
                message = protocol.receive(gateway.connection, large=True)
            except BlockingIOError:
                return
            except (OSError, protocol.ProtocolError):
                message = None
            if message is None:
                gateway.close()
                self._listeners.forget_requests()
                self._gateway = None
                self._alone_since = time.monotonic()
                return
            self._serve(gateway, message)

    def _serve(self, gateway: Gateway, message: protocol.Message) -> None:
        request = message.body.get("id", 0)
        try:
            self._operations[message.body["op"]](gateway, message)
        except NotStartedError as error:
            gateway.send({"id": request, "fail": "not_started", "status": error.status, "message": str(error)})
        except OSError as error:
            _fail(gateway, request, error)

    # -- commands

    def _spawn(self, gateway: Gateway, message: protocol.Message) -> None:
        body = message.body
        env = self._env | body["env"]
        terminal = body["terminal"]
        if terminal is not None:
            env.setdefault("TERM", "xterm-256color")
        mark = self._marks.make()
        try:
            cwd = os.path.join(self._home, body["cwd"] or "")
            started = self._spawner.start(body["argv"], env, cwd, stdin=body["stdin"], terminal=terminal)
        except BaseException:
            _release(mark)
            raise
        command = Command(body["exec"], started, mark, body["note"])
        self._commands[command.exec_id] = self._running[command.pid] = command
        reply = {"id": body["id"], "pid": command.pid, "fds": list(command.fds)}
        gateway.send(reply, fds=list(command.fds.values()))

    def _signal(self, gateway: Gateway, message: protocol.Message) -> None:
        command = self._commands.get(message.body["exec"])
        if command is not None and command.status is None:
            os.kill(command.pid, message.body["signal"])
        gateway.send({"id": message.body["id"]})

    def _kill(self, gateway: Gateway, message: protocol.Message) -> None:
        command = self._commands.get(message.body["exec"])
        if command is None:
            gateway.send({"id": message.body["id"]})
            return
        if command.status is None:
            # Not reaped yet, so the number is still its session's, and most of what it started is in there.
            os.killpg(command.pid, signal.SIGKILL)
        kill = self._kills.setdefault(command.mark.value, TreeKill(command.mark))
        kill.requests.append(message.body["id"])
        kill.next_look = 0.0

    def _close_stdin(self, gateway: Gateway, message: protocol.Message) -> None:
        command = self._commands.get(message.body["exec"])
        if command is not None:
            command.close("stdin")

    def _forget(self, gateway: Gateway, message: protocol.Message) -> None:
        command = self._commands.pop(message.body["exec"], None)
        if command is None:
            return
        command.close(*(command.fds.keys() - {"stdout", "stderr"}))
        if command.mark.value not in self._kills:
            _release(command.mark)
        for fd in command.fds.values():
            # What still writes there must not be stopped by a full pipe, nor killed by a broken one.
            self._selector.register(fd, _READ, lambda _, fd=fd: self._drain(fd))

    def _drain(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                raise
            except OSError:
                data = b""
            if not data:
                self._selector.unregister(fd)
                os.close(fd)

    # -- processes

    def _watch_children(self) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore_signal)
        signal.siginterrupt(signal.SIGCHLD, False)
        self._selector.register(read, _READ, lambda _: self._reap(read))

    def _reap(self, wakeups: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeups, 4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._file_jobs = {job: child for job, child in self._file_jobs.items() if child != pid}
            command = self._running.pop(pid, None)
            if command is not None:
                command.status = os.waitstatus_to_exitcode(status)
                if self._gateway is not None and command.exec_id in self._commands:
                    self._gateway.send({"event": "exit", "exec": command.exec_id, "status": command.status})
        for kill in (*self._kills.values(), *filter(None, (self._ending,))):
            kill.next_look = 0.0

    def _look_for_processes(self) -> None:
        now = time.monotonic()
        if all(kill.next_look > now for kill in self._kills.values()):
            return
        # Children that work on files belong to no command.
        workers = set(self._file_jobs.values())
        processes = [process for process in self._marks.processes() if process[0] not in workers]
        for value, kill in list(self._kills.items()):
            if kill.look(processes):
                del self._kills[value]
                self._answer_kill(kill)
            elif kill.given_up:
                self.tell_last("processes were started faster than they could be killed; the sandbox was ended")
                self._begin_end()

    def _answer_kill(self, kill: TreeKill) -> None:
        if kill.mark not in [command.mark for command in self._commands.values()]:
            _release(kill.mark)
        if self._gateway is not None:
            for request in kill.requests:
                self._gateway.send({"id": request})

    def _look(self, ending: TreeKill) -> bool:
        if self._namespaces or ending.given_up:
            return True
        return time.monotonic() >= ending.next_look and ending.look(list(self._marks.processes()))

    def _begin_end(self) -> None:
        """End the box: with namespaces the kernel kills the rest when PID 1 is gone."""
        if self._ending is None:
            self._ending = TreeKill(None)

    def _end(self, gateway: Gateway, message: protocol.Message) -> None:
        self._begin_end()

    # -- files

    def _path(self, message: protocol.Message) -> str:
        return os.path.join(self._home, message.body["path"])

    def _open(self, gateway: Gateway, message: protocol.Message) -> None:
        fd = files.open_regular(self._path(message))
        try:
            content = files.read_small(fd)
            if content is not None:
                gateway.send({"id": message.body["id"]}, content)
                return
            fd = files.with_known_size(fd)
            gateway.send({"id": message.body["id"]}, fds=[fd])
        finally:
            os.close(fd)

    def _put(self, gateway: Gateway, message: protocol.Message) -> None:
        files.write_whole(self._path(message), message.payload)
        gateway.send({"id": message.body["id"]})

    def _create(self, gateway: Gateway, message: protocol.Message) -> None:
        if len(gateway.pending) >= _LIMIT_OF_PENDING_FILES:
            raise OSError(24, "too many files are being written at once")
        pending = files.begin_write(self._path(message))
        gateway.pending[message.body["id"]] = pending
        gateway.send({"id": message.body["id"]}, fds=[pending.fd])

    def _commit(self, gateway: Gateway, message: protocol.Message) -> None:
        files.commit(gateway.pending.pop(message.body["file"]))
        gateway.send({"id": message.body["id"]})

    def _abort(self, gateway: Gateway, message: protocol.Message) -> None:
        pending = gateway.pending.pop(message.body["file"], None)
        if pending is not None:
            files.abort(pending)

    def _file_request(self, message: protocol.Message) -> dict[str, Any]:
        """The request with paths that do not depend on where the agent is."""
        body = message.body
        paths = {name: os.path.join(self._home, body[name]) for name in ("path", "target") if body[name] is not None}
        return {**body, **paths}

    def _file(self, gateway: Gateway, message: protocol.Message) -> None:
        gateway.send({"id": message.body["id"], "found": fileops.quick(self._file_request(message))})

    def _file_job(self, gateway: Gateway, message: protocol.Message) -> None:
        if len(self._file_jobs) >= _LIMIT_OF_FILE_JOBS:
            raise OSError(11, "too many file operations at once")
        request = self._file_request(message)
        output = fileops.at_once(request)
        if output is not None:
            gateway.send({"id": message.body["id"]}, output)
            return
        pid, fds = fileops.begin(request)
        self._file_jobs[message.body["id"]] = pid
        gateway.send({"id": message.body["id"]}, fds=fds)
        for fd in fds:
            os.close(fd)

    def _end_file_job(self, gateway: Gateway, message: protocol.Message) -> None:
        pid = self._file_jobs.get(message.body["job"])
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
        if "id" in message.body:
            gateway.send({"id": message.body["id"]})

    # -- connections

    def _connect(self, gateway: Gateway, message: protocol.Message) -> None:
        with ports.begin_connect(message.body["address"], message.body["port"]) as connection:
            gateway.send({"id": message.body["id"]}, fds=[connection.fileno()])

    def _listen(self, gateway: Gateway, message: protocol.Message) -> None:
        self._listeners.listen(message.body["port"])
        gateway.send({"id": message.body["id"]})

    def _accept_inside(self, gateway: Gateway, message: protocol.Message) -> None:
        request = message.body["id"]

        def deliver(taken: socket.socket | OSError) -> None:
            if isinstance(taken, OSError):
                _fail(gateway, request, taken)
                return
            with taken:
                gateway.send({"id": request}, fds=[taken.fileno()])

        self._listeners.accept(message.body["port"], deliver)


def _fail(gateway: Gateway, request: int, error: OSError) -> None:
    text = error.strerror or str(error)
    gateway.send({"id": request, "fail": "os", "errno": error.errno, "message": text})


def _ignore_signal(number: int, frame: object) -> None:
    """Only a signal that has a handler wakes the selector."""


def _release(mark: Mark | None) -> None:
    if mark is not None and mark.fd >= 0:
        os.close(mark.fd)


def _surroundings(plan: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The box's home, and the environment of everything in it."""
    env = {"LANG": "C.UTF-8", "HOSTNAME": plan["hostname"]}
    if plan["level"] == "namespaces":
        env |= {"HOME": "/root", "PATH": DEFAULT_PATH}
    else:
        folder = plan["folder"]
        env |= {"HOME": f"{folder}/home", "PATH": f"{folder}/bin:{DEFAULT_PATH}"}
        env["TMPDIR"] = os.path.join(folder, "tmp")
    return env["HOME"], env | plan["env"]
