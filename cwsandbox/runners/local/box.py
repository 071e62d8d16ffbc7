"""A box on the gateway's side: what its agent is asked, and how its end is seen and cleaned up after."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from cwsandbox.runners.errors import BoxGoneError, CommandNotStartedError, CommandTooLargeError, RunnerError
from cwsandbox.runners.local import connecting, protocol
from cwsandbox.runners.local.command import LocalCommand
from cwsandbox.runners.local.filejob import FinishedFileJob, LocalFileJob, begin_job, read_info, request_body
from cwsandbox.runners.local.link import Link, LinkClosedError
from cwsandbox.runners.local.transfers import FileWriter, InlineFile, OpenFile, only_file
from cwsandbox.runners.local.trees import remove_tree
from cwsandbox.runners.specs import ExecSpec, IsolationLevel
from cwsandbox.wire.opening import is_exec_id
from cwsandbox.wire.streams import FileAction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio.abc import TaskGroup

    from cwsandbox.runners.sockets import SocketStream
    from cwsandbox.wire.streams import FileInfo, FilesOpen

MAIN = "main"
TOO_LARGE = (
    "the arguments and environment are larger than the system passes to a program; "
    "pass large data through stdin or a file"
)
_BOX_HAS_ITS_END_SECONDS = 10.0
_CANCEL_SECONDS = 5.0
_FILE_JOBS = 16
"""File operations that stream at once, as each is a process in the box. Watches, which may last, are not counted."""
_UNREAD_BYTES = 64 * 1024 * 1024
"""What an agent may leave unread: twice the largest message."""
_ERRNO_LIMIT = 4096
"""The kernel's own (MAX_ERRNO)."""


class LocalBox:
    """One box.

    Which sandbox it is for and how it is isolated, the agent says when it is connected to.

    Args:
        name: The runner's name for it.
        folder: Its folder on the host, removed when the box is gone.
        connection: Connected to its agent.
        tasks: The runner's task group.
        on_gone: Called when nothing is left of the box.
    """

    def __init__(
        self,
        name: str,
        folder: str,
        connection: socket.socket,
        tasks: TaskGroup,
        on_gone: Callable[[LocalBox], None],
    ) -> None:
        self.name = name
        self._sandbox_id = ""
        self._isolation = IsolationLevel.NAMESPACES
        self._folder = folder
        self._on_gone = on_gone
        self._main: LocalCommand | None = None
        self._commands: dict[str, LocalCommand] = {}
        self._starting: dict[str, int | None] = {}
        self._fatal = ""
        self._stopping = False
        self._ending = False
        self._empty = False
        """None of its processes runs any more."""
        self._gone = anyio.Event()
        self._listed = anyio.Event()
        self._to_list: int | None = None
        """How many commands the agent has yet to tell of; None before it has introduced itself."""
        self._file_jobs = anyio.Semaphore(_FILE_JOBS, fast_acquire=True)
        self.swept: anyio.Event = anyio.Event()
        """Set by the runner when the zygote has reaped the box; boxes of an earlier zygote have it set from the
        start."""
        self._agent_pid = _peer(connection)
        self._pidfd = os.pidfd_open(self._agent_pid)
        self._link = Link(connection, tasks, self._event, unread_bytes=_UNREAD_BYTES)
        self._tasks = tasks
        tasks.start_soon(self._live)

    # -- the contract

    @property
    def sandbox_id(self) -> str:
        """The sandbox this box is for."""
        return self._sandbox_id

    @property
    def isolation(self) -> IsolationLevel:
        """How strongly it is separated from the host."""
        return self._isolation

    @property
    def main(self) -> LocalCommand:
        """The sandbox's main command."""
        if self._main is None:
            raise BoxGoneError("the sandbox has no main command")
        return self._main

    def commands(self) -> Sequence[LocalCommand]:
        """Commands that were not forgotten yet, main excluded."""
        return [command for command in self._commands.values() if command is not self._main]

    async def exec(self, spec: ExecSpec) -> LocalCommand:
        """Start a command. If cancelled, no command is left running.

        Raises:
            CommandNotStartedError: No such program, not executable, no such cwd, or something that cannot be passed.
            BoxGoneError: The box ended.
            RunnerError: The box is out of processes or descriptors, or the exec id is in use.
        """
        _check(spec)
        if spec.exec_id in self._commands or spec.exec_id in self._starting:
            raise RunnerError(f"there is a command {spec.exec_id!r} already")
        body = {
            "op": "spawn",
            "exec": spec.exec_id,
            "argv": spec.argv,
            "env": dict(spec.env),
            "cwd": spec.cwd,
            "stdin": spec.stdin and spec.terminal is None,
            "note": spec.note,
            "terminal": None if spec.terminal is None else _size(spec.terminal.columns, spec.terminal.rows),
        }
        self._starting[spec.exec_id] = None
        try:
            reply = await self._ask(body)
            command = self._adopt(spec.exec_id, reply)
        except anyio.get_cancelled_exc_class():
            await self._take_back(spec.exec_id)
            raise
        except OSError as error:
            await self._take_back(spec.exec_id)
            raise RunnerError(f"the gateway is out of descriptors: {error.strerror}") from error
        finally:
            early = self._starting.pop(spec.exec_id)
        # Much may have happened before this task had its turn.
        if early is not None:
            command._exited(early)
        if self._link.closed:
            command._box_ended()
        if self._empty:
            command._settle()
        if spec.exec_id == MAIN:
            self._main = command
        return command

    async def open_file(self, path: str) -> InlineFile | OpenFile:
        """Open a regular file; relative paths start at the box's home.

        Raises:
            OSError: FileNotFoundError, IsADirectoryError, PermissionError, or what the box's kernel said.
            BoxGoneError: The box ended.
        """
        reply = await self._ask({"op": "open", "path": _checked_path(path)})
        return OpenFile(only_file(self, reply)) if reply.fds else InlineFile(reply.payload)

    async def create_file(self, path: str, *, size: int | None = None) -> FileWriter:
        """Open a file for writing; missing parents are made.

        Args:
            path: Relative paths start at the box's home.
            size: How much will be written, if known: small files are sent whole, and fail in `commit`.

        Raises:
            OSError: As `open_file` (ENOSPC, ENOTDIR, ...).
            BoxGoneError: The box ended.
        """
        writer = FileWriter(self, _checked_path(path))
        if size is None or size > protocol.INLINE_FILE_BYTES:
            await writer.open()
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()
        return writer

    async def connect(self, port: int) -> SocketStream:
        """Connect to what listens on a TCP port of the box's loopback, IPv4 or IPv6.

        Raises:
            ConnectionRefusedError: Nothing does.
            OSError: The box is out of descriptors.
            BoxGoneError: The box ended.
        """
        return await connecting.connect(self, port)

    async def listen(self, port: int) -> connecting.BoxListener:
        """Take connections from a TCP port of the box's loopback, again if we did before.

        Raises:
            OSError: A program of the sandbox has the port (EADDRINUSE).
            BoxGoneError: The box ended.
        """
        (await self._ask({"op": "listen", "port": port})).close_fds()
        return connecting.BoxListener(self, port)

    async def file_info(self, request: FilesOpen) -> FileInfo:
        """Do a quick action. Raises as `open_file`."""
        _check_paths(request)
        reply = await self._ask({"op": "file", **request_body(request)})
        reply.close_fds()
        info = read_info(reply.body.get("found"))
        if info is None:
            raise self._broken("a file's status that is none")
        return info

    async def file_job(self, request: FilesOpen) -> FinishedFileJob | LocalFileJob:
        """Begin an action that streams; waits while too many run. Raises as `open_file`.

        If cancelled, nothing is left running.
        """
        _check_paths(request)
        slots = None if request.action is FileAction.WATCH else self._file_jobs
        if slots is not None:
            await slots.acquire()
        try:
            return await begin_job(self, request, slots)
        except BaseException:
            if slots is not None:
                slots.release()
            raise

    async def stop(self, grace_seconds: float) -> None:
        """TERM to the main command, wait up to `grace_seconds` for it, KILL everything, remove the box's layer.

        Idempotent; a second caller waits for the same end. If cancelled, the kill has happened.
        """
        try:
            if not self._stopping and self._main is not None and grace_seconds > 0:
                self._stopping = True
                with anyio.move_on_after(grace_seconds), contextlib.suppress(BoxGoneError):
                    await self._main.signal(signal.SIGTERM)
                    await self._main.wait()
        finally:
            self.kill_now()
        await self._gone.wait()

    async def wait_gone(self) -> None:
        """Wait until nothing of the box is left. Cancelling stops waiting only."""
        await self._gone.wait()

    # -- for the runner, commands and transfers

    @property
    def complete(self) -> bool:
        """It has its main command; a runner that was killed while it made the box may have left it without."""
        return self._main is not None

    async def wait_listed(self) -> bool:
        """Wait until the agent has said what box this is and which commands it has; False if it ended before."""
        await self._listed.wait()
        return not self._link.closed

    def forget_commands(self) -> None:
        """Let go of all commands, main included: nobody will read what they printed."""
        for command in list(self._commands.values()):
            command.forget()

    def kill_now(self) -> None:
        """Start the end of the box, without waiting for it."""
        self._stopping = True
        if self._ending or self._gone.is_set():
            return
        self._ending = True
        if self._isolation is IsolationLevel.NAMESPACES:
            self._kill_agent()
        else:
            self._link.post({"op": "end"})
            self._tasks.start_soon(self._kill_agent_later)

    def _kill_agent(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def _kill_agent_later(self) -> None:
        """Without namespaces the agent kills its descendants itself, unless it cannot."""
        with anyio.move_on_after(_BOX_HAS_ITS_END_SECONDS):
            await self._gone.wait()
        self._kill_agent()

    def _post(self, body: dict[str, Any]) -> None:
        self._link.post(body)

    def _next_request(self) -> int:
        return self._link.next_request()

    async def _request(self, body: dict[str, Any], payload: bytes = b"") -> protocol.Message:
        return await self._link.request(body, payload)

    async def _ask(self, body: dict[str, Any], payload: bytes = b"") -> protocol.Message:
        """A request whose failure is raised as what it is."""
        try:
            reply = await self._link.request(body, payload)
        except LinkClosedError:
            raise BoxGoneError(self._why_gone()) from None
        fail = reply.body.get("fail")
        if fail is None:
            return reply
        reply.close_fds()
        message = _text(reply.body.get("message"))
        if fail == "not_started":
            status = reply.body.get("status")
            raise CommandNotStartedError(message, status if status in {2, 126, 127} else 126)
        number = reply.body.get("errno")
        number = number if isinstance(number, int) and 0 < number < _ERRNO_LIMIT else errno.EIO
        if body["op"] == "spawn" and number == errno.E2BIG:
            raise CommandTooLargeError(TOO_LARGE)
        if body["op"] == "spawn":
            raise RunnerError(f"the sandbox is out of processes, memory or descriptors: {os.strerror(number)}")
        raise OSError(number, message or os.strerror(number), body.get("path"))

    def _forget(self, command: LocalCommand) -> None:
        if self._commands.get(command.exec_id) is command and command is not self._main:
            del self._commands[command.exec_id]
            self._link.post({"op": "forget", "exec": command.exec_id})

    def _why_gone(self) -> str:
        if self._fatal:
            return f"the sandbox ended: {self._fatal}"
        return "the sandbox has ended" if self._stopping else "the sandbox ended unexpectedly"

    def _broken(self, what: str) -> BoxGoneError:
        """The agent lied: its box ends, and only that."""
        self._fatal = f"its agent sent {what}"
        self.kill_now()
        self._link.close()
        return BoxGoneError(self._why_gone())

    # -- what the agent says

    def _adopt(self, exec_id: str, message: protocol.Message) -> LocalCommand:
        try:
            command = self._commands[exec_id] = LocalCommand(self, exec_id, message)
        except protocol.ProtocolError as error:
            raise self._broken(str(error)) from error
        return command

    async def _take_back(self, exec_id: str) -> None:
        """The caller of `exec` went away: what the agent may have started is killed and forgotten."""
        with anyio.move_on_after(_CANCEL_SECONDS, shield=True), contextlib.suppress(LinkClosedError):
            (await self._link.request({"op": "kill", "exec": exec_id})).close_fds()
        self._link.post({"op": "forget", "exec": exec_id})

    def _event(self, message: protocol.Message) -> None:
        body, kind = message.body, message.body.get("event")
        if kind == "command":
            self._rejoin(message)
        else:
            message.close_fds()
            if kind == "exit":
                self._command_exited(_text(body.get("exec")), _exit_status(body.get("status")))
            elif kind == "hello":
                self._introduced(body)
            elif kind == "fatal":
                self._fatal = _text(body.get("message"))
            else:
                raise protocol.ProtocolError("an unknown event")
        if self._to_list == 0:
            self._listed.set()

    def _introduced(self, body: dict[str, Any]) -> None:
        info, count = body.get("info"), body.get("commands")
        if self._to_list is not None or not isinstance(info, dict) or not isinstance(count, int) or count < 0:
            raise protocol.ProtocolError("an introduction that is none")
        self._sandbox_id = _text(info.get("sandbox_id"))
        self._isolation = IsolationLevel.PROCESS if body.get("level") == "process" else IsolationLevel.NAMESPACES
        self._to_list = count

    def _command_exited(self, exec_id: str, status: int) -> None:
        command = self._commands.get(exec_id)
        if command is not None:
            command._exited(status)
        elif exec_id in self._starting:
            self._starting[exec_id] = status

    def _rejoin(self, message: protocol.Message) -> None:
        """A command that an earlier gateway started."""
        exec_id, status = _text(message.body.get("exec")), message.body.get("status")
        if not self._to_list or not is_exec_id(exec_id) or exec_id in self._commands:
            message.close_fds()
            raise protocol.ProtocolError("a command that nobody started")
        self._to_list -= 1
        try:
            command = self._adopt(exec_id, message)
        except (BoxGoneError, OSError) as error:
            raise protocol.ProtocolError(str(error)) from error
        if exec_id == MAIN:
            self._main = command
        if status is not None:
            command._exited(_exit_status(status))

    # -- life and end

    async def _live(self) -> None:
        """Serve the link; when it ends, so does the box."""
        try:
            await self._link.run()
            self._listed.set()
            for command in self._commands.values():
                command._box_ended()
            await self._see_end()
        except BaseException:
            for command in self._commands.values():
                command._box_ended()
                command._close()
            raise
        finally:
            self._link.close()
            pidfd, self._pidfd = self._pidfd, -1
            os.close(pidfd)

    async def _see_end(self) -> None:
        if not self._ending:
            # The agent hung up by itself: it ends, or is broken. Either way nothing may be left.
            with anyio.move_on_after(_BOX_HAS_ITS_END_SECONDS):
                await anyio.wait_readable(self._pidfd)
            self._kill_agent()
        await anyio.wait_readable(self._pidfd)
        self._empty = True
        for command in self._commands.values():
            command._settle()
        with anyio.move_on_after(_BOX_HAS_ITS_END_SECONDS):
            await self.swept.wait()
        with contextlib.suppress(OSError):
            await anyio.to_thread.run_sync(remove_tree, self._folder)
        self._gone.set()
        self._on_gone(self)


def _peer(connection: socket.socket) -> int:
    """The process at the other end: whoever called `listen`."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, _, _ = struct.unpack("3i", credentials)
    return int(pid)


def _check(spec: ExecSpec) -> None:
    if not spec.argv:
        raise CommandNotStartedError("there is no command to run", 126)
    if any("\0" in argument for argument in spec.argv):
        raise CommandNotStartedError("an argument contains a NUL byte", 126)
    for name, value in spec.env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise CommandNotStartedError(f"the environment variable {name!r} cannot be passed to a command", 126)
    if spec.cwd is not None and "\0" in spec.cwd:
        raise CommandNotStartedError("the working directory contains a NUL byte", 2)


def _check_paths(request: FilesOpen) -> None:
    for path in (request.path, request.target, request.pattern):
        if path is not None:
            _checked_path(path)


def _checked_path(path: str) -> str:
    if "\0" in path:
        raise OSError(errno.EINVAL, "a path contains a NUL byte", path)
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return path


def _size(columns: int, rows: int) -> tuple[int, int]:
    return min(max(columns, 0), 0xFFFF), min(max(rows, 0), 0xFFFF)


def _exit_status(value: object) -> int:
    if not isinstance(value, int) or not -128 < value < 256:
        raise protocol.ProtocolError("an exit status that is none")
    return value


def _text(value: object) -> str:
    return value[:4096] if isinstance(value, str) else ""
