"""`Sandbox`: run commands and move files in an isolated environment."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

from cwsandbox._context import OwnScope, await_shielded, leave_failed
from cwsandbox._core import SandboxCore
from cwsandbox._exec import ExecOperation
from cwsandbox._exit import hold, release
from cwsandbox._files.whole import ReadFile, WriteFile
from cwsandbox._lifecycle import Phase
from cwsandbox._listing import ListQuery, with_terminated
from cwsandbox._logs import LogsOperation
from cwsandbox._operate import SharedOperation
from cwsandbox._request import SandboxRequest
from cwsandbox._runtime.operation import OperationRef, block_for
from cwsandbox._runtime.scope import ScopeClosedError
from cwsandbox._shell import ShellOperation
from cwsandbox._stopping import stop_sandbox
from cwsandbox._validate import (
    check_bytes,
    check_command,
    check_cwd,
    check_environment,
    check_id,
    check_path,
    check_seconds,
    check_since_time,
    check_tail_lines,
    check_terminal_side,
    profiles_of,
)
from cwsandbox.defaults import SandboxDefaults
from cwsandbox.exceptions import SandboxNotRunningError
from cwsandbox.process import Process
from cwsandbox.terminal import TerminalSession

if TYPE_CHECKING:
    import builtins
    import os
    from collections.abc import AsyncIterable, Generator, Iterable, Mapping, Sequence
    from datetime import datetime
    from types import TracebackType

    from cwsandbox._client.auth import Auth
    from cwsandbox._runtime.readers import LineReader, StreamReader
    from cwsandbox._runtime.scope import Cleanup
    from cwsandbox.files import Files
    from cwsandbox.options import NetworkOptions, ResourceOptions, Secret
    from cwsandbox.session import Session
    from cwsandbox.status import SandboxStatus
    from cwsandbox.wire.resources import Sandbox as Record

__all__ = ["Sandbox"]

_GRACE_SECONDS = 10.0
_LEAVE_SLACK_SECONDS = 10.0
"""What leaving a cancelled `async with` allows beyond the grace period, for requests and for the kill."""


class Sandbox:
    """An isolated environment to run commands in.

    Constructing one does no I/O; the first operation that needs it starts it (`exec`, `read_file`, `write_file`,
    `wait`, `wait_until_complete`, `await sandbox`, entering a context). Leaving `with` or `async with` stops it.

    Operations return at once with a ref: `.result()` in sync code, `await` in async code, any thread and any event
    loop. Under `async with` they run as tasks of the caller's own loop, asyncio or trio; elsewhere on a background
    thread. A sandbox belongs to the first of these that used it.

    Args:
        command: Main command; the default keeps the sandbox alive until it is stopped.
        args: Its arguments. A command without args has none; default args go with the default command only.
        defaults: Values for what is not given here; a mapping is read by `SandboxDefaults.from_dict`.
        container_image: Image to run.
        tags: Labels, after those of the defaults.
        base_url: The gateway: `http(s)://host[:port]`, `unix:///path`, or "local" for the embedded one. Default:
            `CWSANDBOX_BASE_URL`, the defaults, the embedded gateway.
        auth: The account to be there, as in `SandboxDefaults`. Default: that of the defaults, then of the process.
        request_timeout_seconds: Limit for a request, for waiting, and for a command without its own (default 300).
        max_lifetime_seconds: When the gateway ends the sandbox, counted from its creation.
        profile_ids: Profiles it may run with; an empty list clears those of the defaults.
        profile_names: Another name of `profile_ids`.
        runner_ids: Runners it may run on; likewise.
        resources: CPU, memory, GPU: `ResourceOptions`, or a dict in its nested or flat form.
        mounted_files: Read-only files, as dicts of `path` and `content` (or `mount_path` and `file_content`), or as one
            dict of contents by path.
        s3_mount: Dict of `bucket`, `mount_path` and optionally `directory`.
        ports: Dicts of `container_port` and optionally `name` and `protocol`.
        network: `NetworkOptions` or a dict of its fields.
        max_timeout_seconds: Forwarded to the gateway: the longest limit that an operation may ask for.
        environment_variables: For every command, over those of the defaults. Not for secrets.
        annotations: Metadata for the runner, over that of the defaults.
        secrets: `Secret`s or dicts of their fields, after those of the defaults.

    Raises:
        TypeError: A value of the wrong type, or an unknown keyword.
        ValueError: A value that cannot be meant; the message names it.
    """

    def __init__(
        self,
        *,
        command: str | None = None,
        args: Sequence[str] | None = None,
        defaults: SandboxDefaults | Mapping[str, Any] | None = None,
        container_image: str | None = None,
        tags: Sequence[str] | None = None,
        base_url: str | None = None,
        request_timeout_seconds: float | None = None,
        max_lifetime_seconds: float | None = None,
        profile_ids: Sequence[str] | None = None,
        profile_names: Sequence[str] | None = None,
        runner_ids: Sequence[str] | None = None,
        resources: ResourceOptions | Mapping[str, Any] | None = None,
        mounted_files: Sequence[Mapping[str, Any]] | Mapping[str, str | bytes] | None = None,
        s3_mount: Mapping[str, Any] | None = None,
        ports: Sequence[Mapping[str, Any]] | None = None,
        network: NetworkOptions | Mapping[str, Any] | None = None,
        max_timeout_seconds: int | None = None,
        environment_variables: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        secrets: Sequence[Secret | Mapping[str, Any]] | None = None,
        auth: Auth | None = None,
    ) -> None:
        chosen = SandboxDefaults.of(defaults)
        request = SandboxRequest.build(
            chosen,
            command=command,
            args=args,
            container_image=container_image,
            tags=tags,
            max_lifetime_seconds=max_lifetime_seconds,
            profile_ids=profiles_of(profile_ids, profile_names),
            runner_ids=runner_ids,
            resources=resources,
            mounted_files=mounted_files,
            s3_mount=s3_mount,
            ports=ports,
            network=network,
            max_timeout_seconds=max_timeout_seconds,
            environment_variables=environment_variables,
            annotations=annotations,
            secrets=secrets,
        )
        self._adopt_core(SandboxCore(request, chosen, base_url, request_timeout_seconds, auth))

    def _adopt_core(self, core: SandboxCore) -> None:
        self._core = core
        self._life = core.life
        self._lock = threading.Lock()
        self._own_scope = OwnScope("sandbox")
        self._session: Session | None = None
        self._stopping: SharedOperation | None = None
        self._at_exit: Cleanup | None = None

    @classmethod
    def _from_record(cls, record: Record, core: SandboxCore) -> Self:
        """The face of a sandbox that the gateway told of; it will use the same gateway as `core`."""
        sandbox = cls.__new__(cls)
        sandbox._adopt_core(core.sibling())
        sandbox._life.observe(record)
        return sandbox

    # Class methods.

    @classmethod
    def run(cls, *args: str, **kwargs: Any) -> Self:
        """Start a sandbox and return once the gateway has accepted it; it need not run yet.

        The first positional argument is the main command, the rest its arguments; none at all keeps the sandbox alive
        until it is stopped. Keywords are those of the constructor without `command`, `args` and `base_url`.

        This blocks: in async code construct `Sandbox()` and use `async with` or `await`.

        Raises:
            CWSandboxError: As `start`.
            TypeError: An unknown keyword.
        """
        if refused := sorted({"command", "args", "base_url"} & kwargs.keys()):
            raise TypeError(
                f"Sandbox.run() takes no {', '.join(refused)}: the command and its arguments are positional, and "
                "Sandbox(base_url=...) names a gateway"
            )
        argv = check_command(args) if args else []
        sandbox = cls(command=argv[0] if argv else None, args=argv[1:] if argv else None, **kwargs)
        try:
            sandbox._start_blocking()
        except (KeyboardInterrupt, SystemExit) as error:
            sandbox.__exit__(type(error), error, None)
            raise
        return sandbox

    @classmethod
    def session(cls, defaults: SandboxDefaults | Mapping[str, Any] | None = None) -> Session:
        """A `Session` with these defaults."""
        from cwsandbox.session import Session

        return Session(defaults)

    @classmethod
    def list(
        cls,
        *,
        tags: Sequence[str] | None = None,
        status: SandboxStatus | str | None = None,
        profile_ids: Sequence[str] | None = None,
        profile_names: Sequence[str] | None = None,
        runner_ids: Sequence[str] | None = None,
        include_stopped: bool = False,
        show_terminated: bool | None = None,
        base_url: str | None = None,
        timeout_seconds: float | None = None,
        auth: Auth | None = None,
    ) -> OperationRef[builtins.list[Self]]:
        """The sandboxes that match all that is given.

        Args:
            tags: All of these tags.
            status: This status only; a terminal one includes stopped sandboxes.
            profile_ids: Any of these profiles.
            profile_names: Another name of `profile_ids`.
            runner_ids: Any of these runners.
            include_stopped: Also those that ended, as long as the gateway remembers them.
            show_terminated: Another name of `include_stopped`.
            base_url: The gateway; default as in the constructor.
            timeout_seconds: Limit for the call (default 300).
            auth: The account; default is that of the process.

        Raises:
            TypeError: Two names of one setting contradict each other.
            ValueError: From the ref: `status` is not a `SandboxStatus` value.
        """
        finder = _finder(base_url, timeout_seconds, auth)
        stopped = with_terminated(include_stopped, show_terminated)
        profiles = profiles_of(profile_ids, profile_names)
        query = ListQuery(tags, status, profiles, runner_ids, stopped)
        return finder.operate(cls._list, finder, query, name="list sandboxes")

    @classmethod
    def from_id(
        cls,
        sandbox_id: str,
        *,
        base_url: str | None = None,
        timeout_seconds: float | None = None,
        auth: Auth | None = None,
    ) -> OperationRef[Self]:
        """Attach to a sandbox that exists, an ended one included.

        Raises:
            SandboxNotFoundError: From the ref: no such sandbox.
            ValueError: The id is empty.
        """
        wanted = check_id(sandbox_id)
        finder = _finder(base_url, timeout_seconds, auth)
        return finder.operate(cls._find, finder, wanted, name="find sandbox")

    @classmethod
    def delete(
        cls,
        sandbox_id: str,
        *,
        base_url: str | None = None,
        timeout_seconds: float | None = None,
        missing_ok: bool = False,
        auth: Auth | None = None,
    ) -> OperationRef[None]:
        """Kill a sandbox at once and have the gateway forget it.

        Raises:
            SandboxNotFoundError: From the ref: no such sandbox, and not `missing_ok`.
            ValueError: The id is empty.
        """
        wanted = check_id(sandbox_id)
        finder = _finder(base_url, timeout_seconds, auth)
        return finder.operate(_delete, finder, wanted, missing_ok, name="delete sandbox")

    @classmethod
    async def _find(cls, finder: SandboxCore, sandbox_id: str) -> Self:
        return cls._from_record(await finder.get(sandbox_id), finder)

    @classmethod
    async def _list(cls, finder: SandboxCore, query: ListQuery) -> builtins.list[Self]:
        return [cls._from_record(record, finder) for record in await query.run(finder)]

    # Properties: cached, no I/O.

    @property
    def sandbox_id(self) -> str | None:
        """The id; None before the start was accepted."""
        return self._life.sandbox_id

    @property
    def status(self) -> SandboxStatus | None:
        """The last observed status; None before the start. `get_status` asks anew."""
        return self._life.status

    @property
    def status_updated_at(self) -> datetime | None:
        """When `status` was last confirmed (aware, UTC)."""
        return self._life.status_updated_at

    @property
    def returncode(self) -> int | None:
        """The main command's exit code once the sandbox was seen COMPLETED; else None."""
        return self._life.exit_code

    @property
    def tags(self) -> tuple[str, ...]:
        """Its labels, those of the defaults first."""
        return self._core.facts.tags

    @property
    def annotations(self) -> dict[str, str]:
        """Its metadata, which the gateway keeps as long as its record."""
        return self._core.facts.annotations

    @property
    def started_at(self) -> datetime | None:
        """When it began to run (aware, UTC); None before, and where the gateway did not say."""
        return self._core.facts.started_at

    @property
    def runner_id(self) -> str | None:
        """The runner it runs or ran on."""
        return self._core.facts.text("runner_id")

    @property
    def profile_id(self) -> str | None:
        """The profile it runs with."""
        return self._core.facts.text("profile_id")

    @property
    def runner_group_id(self) -> str | None:
        """The group of its runner."""
        return self._core.facts.text("runner_group_id")

    @property
    def service_address(self) -> str | None:
        """Where its first exposed port is reached, "host:port"; None without any, and once it ended."""
        return self._core.facts.text("service_address")

    @property
    def exposed_ports(self) -> tuple[tuple[int, str], ...] | None:
        """Its exposed ports as (container port, name)."""
        return self._core.facts.exposed_ports

    @property
    def service_urls(self) -> tuple[tuple[int, str, str], ...] | None:
        """Where each exposed port is to be reached: (port, name, "host:port"). None without any, and once it ended."""
        return self._core.facts.service_urls

    @property
    def applied_ingress_mode(self) -> str | None:
        """Who can reach the exposed ports: "internal" (the gateway's machine) or "public"; None without ports."""
        return self._core.facts.text("applied_ingress_mode")

    @property
    def applied_egress_mode(self) -> str | None:
        """What it can reach: "isolated" (itself), "internet", or "host" (all that its container can)."""
        return self._core.facts.text("applied_egress_mode")

    @property
    def isolation(self) -> str | None:
        """How strongly it is separated from its host: "namespaces" or "process"; None before it runs."""
        return self._core.facts.text("isolation")

    @property
    def limit_holds(self) -> dict[str, str] | None:
        """How its limits are held: keys "processes", "cpu" and "memory", where they are limited.

        "sandbox": the sandbox as a whole cannot exceed it. "process": each of its processes cannot. "none": nothing
        holds it on this machine. None before the start, and if nothing is limited.
        """
        return self._core.facts.limit_holds

    @property
    def resource_limits(self) -> dict[str, str] | None:
        """Limits in force: keys cpu, memory."""
        return self._core.facts.limits

    @property
    def resource_requests(self) -> dict[str, str] | None:
        """Guarantees in force: keys cpu, memory."""
        return self._core.facts.requests

    @property
    def resource_gpu(self) -> dict[str, Any] | None:
        """The GPU in force: keys count, type, memory_gb."""
        return self._core.facts.gpu

    @property
    def exec_stats(self) -> dict[str, int]:
        """How many commands were run through this object, and how they ended."""
        return self._core.stats.snapshot()

    # Starting, waiting, stopping.

    def start(self) -> OperationRef[None]:
        """Ask the gateway to start the sandbox; the ref resolves when it has accepted.

        Concurrent and repeated calls make one sandbox. Cancelling whoever awaits it gives the start up and stops what
        may have been made.

        Raises:
            SandboxNotRunningError: From the ref: it was stopped before it was started.
            CWSandboxAuthenticationError: From the ref: the credentials were rejected.
            SandboxTimeoutError: From the ref: no answer within the request timeout.
            SandboxError: From the ref: the gateway refused; the message says what to change.
        """
        return self._core.operate(self._core.start, name="start sandbox")

    def wait(self, timeout: float | None = None) -> Self:
        """Block until the sandbox runs (or has completed). In async code `await sandbox`.

        Args:
            timeout: Seconds to wait once it was started; None is the request timeout, infinity waits as long as it
                takes.

        Raises:
            SandboxFailedError: It failed.
            SandboxTerminatedError: It was stopped.
            SandboxNotRunningError: Our own stop came first.
            SandboxTimeoutError: It does not run after `timeout`; it is not stopped.
        """
        limit = check_seconds(timeout, "timeout")
        self._core.operate(self._core.wait_running, limit, name="wait until running").result()
        return self

    def wait_until_complete(
        self, timeout: float | None = None, *, raise_on_termination: bool = True
    ) -> OperationRef[Self]:
        """Wait for the main command to end; `returncode` then tells how.

        Args:
            timeout: As in `wait`.
            raise_on_termination: False takes a sandbox that was stopped as complete.

        Raises:
            SandboxFailedError: From the ref: it failed.
            SandboxTerminatedError: From the ref: it was stopped, and `raise_on_termination`.
            SandboxTimeoutError: From the ref: not complete after `timeout`.
        """
        limit = check_seconds(timeout, "timeout")
        return self._core.operate(self._wait_complete, limit, raise_on_termination, name="wait until complete")

    def __await__(self) -> Generator[Any, None, Self]:
        """Start if needed, and wait until the sandbox runs. Raises as `wait`."""
        return self._core.operate(self._wait_running, None, name="wait until running").__await__()

    def get_status(self) -> SandboxStatus:
        """Ask the gateway for the present status. Blocks the calling thread, an event loop's too, for one request.

        Raises:
            SandboxNotRunningError: It was never started.
        """
        match self._life.phase:
            case Phase.NOT_STARTED:
                raise SandboxNotRunningError("the sandbox was not started yet: call start() or run something in it")
            case Phase.CANCELLED:
                raise SandboxNotRunningError("the sandbox was stopped before it was started")
            case Phase.TERMINAL:
                self._life.confirm()
            case _:
                # Not in our own scope: its loop may be the one that this call blocks.
                probe = self._core.sibling()
                assert self.sandbox_id is not None
                self._life.observe(probe.operate(probe.get, self.sandbox_id, name="get status").result())
        assert self._life.status is not None
        return self._life.status

    def stop(
        self,
        *,
        snapshot_on_stop: bool = False,
        graceful_shutdown_seconds: float = _GRACE_SECONDS,
        missing_ok: bool = False,
    ) -> OperationRef[None]:
        """Stop the sandbox: TERM to the main command, a grace period, then KILL to everything.

        Stopping one that was never started cancels it. Concurrent calls share one stop with the first call's
        parameters.

        Args:
            snapshot_on_stop: Keep a snapshot of its files.
            graceful_shutdown_seconds: The grace period.
            missing_ok: A sandbox that the gateway does not know is taken as stopped.

        Returns:
            A ref that resolves when the sandbox has ended. Cancelling whoever awaits it stops the waiting only.

        Raises:
            TypeError: The grace period is no number.
            ValueError: It is negative, NaN or infinite.
            SandboxNotFoundError: From the ref: unknown to the gateway, and not `missing_ok`.
            SandboxError: From the ref: the gateway could not stop it; a later call tries again.
        """
        if graceful_shutdown_seconds is None:
            raise TypeError("graceful_shutdown_seconds must be a number of seconds, not None")
        check_seconds(graceful_shutdown_seconds, "graceful_shutdown_seconds", finite=True)
        with self._lock:
            if self._life.ended or self._life.cancel():
                self._leave_session()
                return OperationRef.completed(None)
            if self._stopping is None or self._stopping.over:
                work = partial(
                    self._stop,
                    snapshot=snapshot_on_stop,
                    grace_seconds=graceful_shutdown_seconds,
                    missing_ok=missing_ok,
                )
                self._stopping = SharedOperation(self._core.scope, work, "stop sandbox")
            stopping = self._stopping
        self._core.operate(stopping.begin, name="stop sandbox")
        return self._core.operate(stopping.join, name="stop sandbox")

    # Commands and files.

    def exec(
        self,
        command: Sequence[str],
        *,
        cwd: str | None = None,
        check: bool = False,
        timeout_seconds: float | None = None,
        stdin: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Run a command; starts the sandbox and waits until it runs, if needed.

        Args:
            command: Program and arguments; no shell is involved.
            cwd: Absolute directory in the sandbox; default is the sandbox's own.
            check: Raise `SandboxExecutionError` for a non-zero exit.
            timeout_seconds: Limit for the command, from its start on; the gateway kills it and what it started. Default
                is the request timeout, infinity has no limit.
            stdin: Give it a `process.stdin`; else its input is empty.
            env: Environment variables for this command, over the sandbox's.

        Returns:
            The running command; what goes wrong from here on is raised when its result is asked for.

        Raises:
            TypeError: `command` is a str, or a value has the wrong type.
            ValueError: Empty command, relative `cwd`, NUL bytes, a time-out that is negative or NaN.

        Cancelling the task that awaits it kills the command and everything it started.
        """
        argv = check_command(command)
        directory = check_cwd(cwd)
        variables = check_environment(env, "env")
        limit = self._core.limit(timeout_seconds)
        process = Process(argv, stdin=bool(stdin))
        operation = ExecOperation(self._core, process, cwd=directory, env=variables, check=check, timeout_seconds=limit)
        operation.start()
        return process

    def shell(
        self,
        command: Sequence[str] | None = None,
        *,
        width: int | None = None,
        height: int | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> TerminalSession:
        """Run a command on a terminal; starts the sandbox and waits until it runs, if needed.

        Args:
            command: Program and arguments; default is `["/bin/bash"]`.
            width: Columns, 1 to 65535 (default 80).
            height: Rows, 1 to 65535 (default 24).
            cwd: Absolute directory in the sandbox; default is the sandbox's own.
            env: Environment variables for this command, over the sandbox's; `TERM` is xterm-256color unless given.

        Returns:
            The session; what goes wrong from here on is raised when its result is asked for, and from its output.

        Raises:
            TypeError: `command` is a str, or a value has the wrong type.
            ValueError: Empty command, a size out of range, relative `cwd`, NUL bytes.

        Cancelling the task that awaits it hangs the terminal up and kills everything that was started on it.
        """
        argv = ["/bin/bash"] if command is None else check_command(command)
        for value, name in ((width, "width"), (height, "height")):
            if value is not None:
                check_terminal_side(value, name)
        directory, variables = check_cwd(cwd), check_environment(env, "env")
        session = TerminalSession(argv)
        ShellOperation(self._core, session, cwd=directory, env=variables, width=width, height=height).start()
        return session

    def stream_logs(
        self,
        *,
        follow: bool = False,
        tail_lines: int | None = None,
        since_time: datetime | None = None,
        timestamps: bool = False,
        timeout_seconds: float | None = None,
    ) -> LineReader:
        """What the main command printed (never what `exec` runs), line by line, standard output and error together.

        Args:
            follow: Go on until the sandbox ends; else end with what there is, which works on ended sandboxes too.
            tail_lines: The last lines only; None (or 0) gives all that is kept.
            since_time: Nothing older; a naive time is taken as UTC.
            timestamps: The gateway puts an ISO 8601 time before every line.
            timeout_seconds: Limit for the whole; default is the request timeout, or none when following.

        Returns:
            A reader to iterate with `for` or `async for`; errors come from it. `close()` ends the stream.

        Raises:
            TypeError: A value of the wrong type.
            ValueError: Negative `tail_lines` or time-out.
        """
        limit = None if follow and timeout_seconds is None else self._core.limit(timeout_seconds)
        return LogsOperation(
            self._core,
            follow=follow,
            tail_lines=check_tail_lines(tail_lines),
            since_time=check_since_time(since_time),
            timestamps=timestamps,
            timeout_seconds=limit,
        ).start()

    def read_file(
        self, filepath: str | os.PathLike[str], *, timeout_seconds: float | None = None
    ) -> OperationRef[bytes]:
        """Read a whole file.

        Args:
            filepath: Path in the sandbox.
            timeout_seconds: Limit for the transfer (default: the request timeout).

        Raises:
            SandboxFileError: From the ref: no such file, a directory, no permission; see `reason` and `filepath`.
        """
        path, limit = check_path(filepath), self._core.limit(timeout_seconds)
        return self._core.operate(ReadFile(self._core, path, limit), name="read file")

    def write_file(
        self, filepath: str | os.PathLike[str], contents: bytes, *, timeout_seconds: float | None = None
    ) -> OperationRef[None]:
        """Write a whole file, atomically; missing parent directories are made.

        Args:
            filepath: Path in the sandbox; an existing file is replaced and keeps its mode.
            contents: Bytes; encode text first.
            timeout_seconds: Limit for the transfer (default: the request timeout).

        Raises:
            TypeError: `contents` is not bytes-like.
            SandboxFileError: From the ref: a directory, no permission, no space; see `reason` and `filepath`.
        """
        path, limit = check_path(filepath), self._core.limit(timeout_seconds)
        return self._core.operate(
            WriteFile(self._core, path, check_bytes(contents, "contents"), limit), name="write file"
        )

    def read_file_streaming(
        self, filepath: str | os.PathLike[str], *, timeout_seconds: float | None = None
    ) -> StreamReader[bytes]:
        """`files.open_read` under its name in later versions of the published surface."""
        return self.files.open_read(filepath, timeout_seconds=timeout_seconds)

    def write_file_streaming(
        self,
        filepath: str | os.PathLike[str],
        source: bytes | Iterable[bytes] | AsyncIterable[bytes],
        *,
        timeout_seconds: float | None = None,
    ) -> OperationRef[None]:
        """Write a file from pieces, atomically, under the name of later versions; `files.open_write` is the other way.

        Args:
            filepath: Path in the sandbox.
            source: Bytes, or what gives pieces of bytes. A plain iterable is asked in a worker thread; an async one
                needs a sandbox of this event loop (`async with`).
            timeout_seconds: Limit for the transfer (default: the request timeout).

        Raises:
            TypeError: `source` is none of these, or an async iterable that would run on another loop.
            SandboxFileError: From the ref, as `write_file`. What the source raises comes from the ref, too.
        """
        from cwsandbox._files.writer import write_from

        return write_from(self._core, check_path(filepath), source, self._core.limit(timeout_seconds))

    @property
    def files(self) -> Files:
        """Everything else that can be done with files: folders, streams, transfers, watching."""
        from cwsandbox.files import Files

        return Files(self._core)

    # Contexts.

    def __enter__(self) -> Self:
        hold(self._core)
        try:
            self._start_blocking()
        except Exception:
            self._release()
            raise
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        if self._session is None and self._at_exit is None:
            self._at_exit = self._core.scope().add_cleanup(self._stop_at_exit)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if self.sandbox_id is not None:
                self.stop().result()
        except Exception as error:
            if not _nobody_was_asked(error):
                self._release()
            leave_failed(error, f"stopping {self!r}", body=exc)
        else:
            self._release()

    async def __aenter__(self) -> Self:
        if not self._core.bound:
            await self._own_scope.open(lambda scope: self._core.belong_to(lambda: scope))
        hold(self._core)
        try:
            await self.start()
        except Exception:
            await self._own_scope.close()
            self._release()
            raise
        except BaseException as error:
            # Cancelled as the gateway accepted it, or started before: there is a sandbox, and nobody else to stop it.
            await self.__aexit__(type(error), error, None)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        keep = False
        try:
            if self.sandbox_id is not None:
                await await_shielded(self.stop(), _GRACE_SECONDS + _LEAVE_SLACK_SECONDS, f"stopping {self!r}")
        except Exception as error:
            keep = _nobody_was_asked(error)
            leave_failed(error, f"stopping {self!r}", body=exc)
        finally:
            await self._own_scope.close()
            if not keep:
                self._release()

    def _start_blocking(self) -> None:
        """Start, and wait until it was accepted; a signal gives the start up, unless it was accepted first."""
        block_for(lambda ref: self._core.operate(self._core.start, name="start sandbox", ref=ref))

    def _release(self) -> None:
        """It has ended, or the caller was told that it could not be stopped. A context that is interrupted keeps it."""
        cleanup, self._at_exit = self._at_exit, None
        if cleanup is not None:
            cleanup.remove()
        release(self._core)

    async def _stop_at_exit(self) -> None:
        """The program ends inside the context. A stop that was accepted before needs nobody to wait for it."""
        if self._life.phase is not Phase.STOPPING:
            await self._stop(missing_ok=True)

    def __repr__(self) -> str:
        return repr(self._core)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Sandbox stays in its process: send its sandbox_id, and call Sandbox.from_id() there")

    # For operations.

    def _watch_running(self, watch: OperationRef[None] | None) -> OperationRef[None]:
        """Finished when the sandbox runs, or cannot any more, at once if that is known; `watch` if that goes on."""
        if self._life.phase not in {Phase.NOT_STARTED, Phase.STARTING}:
            return OperationRef.completed(None)
        return watch or self._core.operate(self._core.wait_running, None, name="watch until running")

    async def _wait_running(self, timeout: float | None) -> Self:
        await self._core.wait_running(timeout)
        return self

    async def _wait_complete(self, timeout: float | None, raise_on_termination: bool) -> Self:
        await self._core.wait_complete(timeout, raise_on_termination=raise_on_termination)
        return self

    async def _stop(
        self, *, snapshot: bool = False, grace_seconds: float = _GRACE_SECONDS, missing_ok: bool = False
    ) -> None:
        try:
            await stop_sandbox(self._core, snapshot=snapshot, grace_seconds=grace_seconds, missing_ok=missing_ok)
        finally:
            if self._life.ended:
                self._leave_session()

    def _leave_session(self) -> None:
        """Nothing can be run in it any more, so there is nothing left to stop, for its session or at exit."""
        release(self._core)
        if self._session is not None:
            self._session._forget(self)


def _finder(base_url: str | None, timeout_seconds: float | None, auth: Auth | None) -> SandboxCore:
    """What looks for sandboxes of anybody's."""
    return SandboxCore(None, SandboxDefaults(), base_url, check_seconds(timeout_seconds, "timeout_seconds"), auth)


def _nobody_was_asked(error: Exception) -> bool:
    """Whether a stop failed because its scope takes no more work: the sandbox is held on, and goes with the program."""
    return isinstance(error.__cause__, ScopeClosedError)


async def _delete(finder: SandboxCore, sandbox_id: str, missing_ok: bool) -> None:
    client = await finder.client()
    await client.api.delete(sandbox_id, allow_missing=missing_ok, timeout=finder.timeout)
