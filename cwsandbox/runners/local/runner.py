"""The local runner: keeps the zygote, makes boxes, takes back those of an earlier gateway."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import anyio
import anyio.to_thread
from attrs import define, evolve, field

import cwsandbox
from cwsandbox.runners.errors import BoxGoneError, CommandTooLargeError, IsolationUnavailableError, RunnerError
from cwsandbox.runners.local import cgroups, image, probe, protocol
from cwsandbox.runners.local.box import MAIN, TOO_LARGE, LocalBox
from cwsandbox.runners.local.link import Link, connect
from cwsandbox.runners.local.trees import remove_tree
from cwsandbox.runners.local.zygote import CONTROL_FD, remove_cgroups
from cwsandbox.runners.specs import BoxSpec, Capabilities, ExecSpec, IsolationLevel, Limits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from anyio.abc import TaskGroup

_logger = logging.getLogger("cwsandbox.runner")

_DEFAULT_PROCESSES = 8192
_CLEAN_UP_SECONDS = 15.0
_ZYGOTE_ENDS_SECONDS = 2.0
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, {path!r}); sys.dont_write_bytecode = True; "
    "from cwsandbox.runners.local import zygote; zygote.main()"
)
_unreaped: set[int] = set()
"""Zygotes that outlived their runner, for the sake of their boxes."""


@define(eq=False)
class _Birth:
    """A box that the zygote is asked for."""

    done: anyio.Event = field(factory=anyio.Event)
    failure: str | None = None


class LocalRunner(anyio.AsyncContextManagerMixin):
    """Runs boxes on this machine. Leaving it releases the boxes to a later run, or to their end after a grace.

    Args:
        state_dir: Layers and templates; survives a restart.
        runtime_dir: Sockets of the agents; private to the user (0700).
        isolation: "namespaces" refuses anything weaker, "process" asks for no more than that, "auto" takes the first
            where it can be had, and the second only inside a container.
        orphan_grace_seconds: How long boxes live without a gateway.
        runner_id: Its name in records.
    """

    def __init__(
        self,
        state_dir: Path,
        runtime_dir: Path,
        *,
        isolation: Literal["auto", "namespaces", "process"] = "auto",
        orphan_grace_seconds: float = 30,
        runner_id: str = "local",
    ) -> None:
        self._boxes_dir = Path(state_dir).absolute() / "boxes"
        self._images_dir = Path(state_dir).absolute() / "images"
        self._runtime_dir = Path(runtime_dir).absolute()
        self._wanted = isolation
        self._grace = orphan_grace_seconds
        self._runner_id = runner_id
        self._tasks: TaskGroup | None = None
        self._image: dict[str, Any] = {}
        self._cgroups = cgroups.Cgroups()
        self._cpu_millicores = self._memory_bytes = 0
        self._wardens = True
        self._level: IsolationLevel | None = None
        self._reason = ""
        self._zygote: Link | None = None
        self._zygote_pid = -1
        self._births: dict[str, _Birth] = {}
        self._boxes: dict[str, LocalBox] = {}

    # -- the contract

    @property
    def runner_id(self) -> str:
        """Its name in records."""
        return self._runner_id

    @property
    def isolation_notice(self) -> str | None:
        """What the user should know: that isolation is weak, or not to be had at all. None with full isolation."""
        if self._level is None:
            return probe.remedies(self._reason) if self._reason else None
        return probe.notice(self._level, self._reason)

    def capabilities(self) -> Capabilities:
        """What this machine enforces, as found when the runner was entered.

        Where no sandbox can be made, `isolation` is what would be needed.
        """
        namespaces = self._level is not IsolationLevel.PROCESS
        limits = self._cgroups.limits | ({"processes"} if namespaces or self._wardens else set())
        return Capabilities(
            isolation=IsolationLevel.NAMESPACES if namespaces else IsolationLevel.PROCESS,
            cpu_millicores=self._cpu_millicores,
            memory_bytes=self._memory_bytes,
            architecture=probe.architecture(),
            enforced_limits=frozenset(limits),
            default_limits=frozenset({"processes"} if namespaces else {"processes"} & self._cgroups.limits),
            per_process_limits=frozenset({"memory"} - limits),
            healthy=self._level is not None,
            egress_modes=("isolated", "internet") if namespaces else ("host", "isolated"),
            ingress_modes=("internal", "public"),
            modes_without_loopback=frozenset() if namespaces else frozenset({"isolated"}),
        )

    def check(self, spec: BoxSpec) -> None:
        """Refuse a box that can never be made here; as the contract has it."""
        if self._level is None:
            raise IsolationUnavailableError(probe.remedies(self._reason))
        image.check_name(spec.image)

    async def create(self, spec: BoxSpec) -> LocalBox:
        """Make a box and start its main command. If cancelled, no box is left.

        Raises:
            IsolationUnavailableError: The machine cannot isolate as required; the message names the remedies.
            ImageNotFoundError: Not a name for the machine's own programs.
            CommandNotStartedError: The main command could not be started.
            RunnerError: Anything else.
        """
        self.check(spec)
        if spec.image:
            _logger.info("image %r of sandbox %s: this machine's own programs are used", spec.image, spec.sandbox_id)
        assert self._level is not None
        return await self._create(spec, self._level)

    async def recover(self) -> Sequence[LocalBox]:
        """Boxes that an earlier run left and that still live; what is left of dead ones is removed."""
        boxes: list[LocalBox | None] = []
        living: set[str] = set()
        for name in sorted(os.listdir(self._runtime_dir)):
            if not name.endswith(".sock") or name[:-5] in self._boxes:
                continue
            try:
                connection = connect(str(self._runtime_dir / name))
            except (ConnectionRefusedError, FileNotFoundError):
                continue
            except OSError as error:
                _logger.warning("sandbox box %s does not answer: %s", name[:-5], error)
                living.add(name[:-5])
                continue
            boxes.append(await self._take_back(name[:-5], connection))
        await anyio.to_thread.run_sync(self._remove_dead, living)
        return [box for box in boxes if box is not None]

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        await anyio.to_thread.run_sync(self._prepare)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                try:
                    await self._decide_level()
                    yield self
                finally:
                    self._tasks = None
                    tasks.cancel_scope.cancel()
        except ExceptionGroup as group:
            # No task of ours raises: it is the caller's own error, which the task group wrapped.
            raise (group.exceptions[0] if len(group.exceptions) == 1 else group) from None
        finally:
            await self._let_zygote_go()

    # -- making boxes

    async def _create(self, spec: BoxSpec, level: IsolationLevel) -> LocalBox:
        name = secrets.token_hex(8)
        plan = self._plan(name, spec, level)
        if spec.files:
            plan["files"] = await anyio.to_thread.run_sync(_store_files, plan["folder"], spec)
        box: LocalBox | None = None
        try:
            await self._bear(name, plan)
            box = self._join(name)
            await box.wait_listed()
            for port in spec.network.listen:
                await box.listen(port)
            await box.exec(ExecSpec(MAIN, spec.argv))
        except BaseException:
            await self._undo(name, box)
            raise
        return box

    def _plan(self, name: str, spec: BoxSpec, level: IsolationLevel) -> dict[str, Any]:
        held = self._cgroups.limits
        processes = _DEFAULT_PROCESSES if spec.limits.processes is None else spec.limits.processes
        # Only when it is asked for: a fork that a warden is asked about can be interrupted by a signal, and shells that
        # do not expect that fail.
        asked = spec.limits.processes is not None
        watched = level is IsolationLevel.PROCESS and "processes" not in held and self._wardens and asked
        if level is IsolationLevel.PROCESS:
            spec = evolve(spec, limits=evolve(spec.limits, processes=processes))
        return {
            "box": name,
            "level": str(level),
            "folder": str(self._boxes_dir / name),
            "socket": str(self._runtime_dir / f"{name}.sock"),
            "image": self._image,
            "hostname": image.HOSTNAME,
            "env": dict(spec.env),
            "files": [],
            "sockets": level is IsolationLevel.NAMESPACES or spec.network.egress_mode != "isolated",
            "cgroups": self._cgroups.plan(name, spec.limits, spec.requests),
            "processes": processes,
            "warden": processes if watched else None,
            "process_memory": None if "memory" in held else spec.limits.memory_bytes,
            "grace": self._grace,
            "info": {"sandbox_id": spec.sandbox_id},
        }

    async def _bear(self, name: str, plan: dict[str, Any]) -> None:
        """Have the zygote make a box."""
        if len(protocol.encode({"plan": plan})) > protocol.MAX_MESSAGE_BYTES:
            # The zygote would end: it takes no message that it cannot trust, and boxes of others are in the making.
            raise CommandTooLargeError(TOO_LARGE)
        zygote = await self._running_zygote()
        birth = self._births[name] = _Birth()
        zygote.post({"plan": plan})
        await birth.done.wait()
        del self._births[name]
        if birth.failure is not None:
            raise RunnerError(f"the sandbox could not be made: {birth.failure}")

    def _join(self, name: str) -> LocalBox:
        try:
            connection = connect(str(self._runtime_dir / f"{name}.sock"))
        except OSError as error:
            raise BoxGoneError("the sandbox ended as soon as it was made") from error
        return self._hold(name, connection)

    def _hold(self, name: str, connection: socket.socket) -> LocalBox:
        if self._tasks is None:
            connection.close()
            raise RunnerError("the runner has been closed")
        try:
            box = LocalBox(name, str(self._boxes_dir / name), connection, self._tasks, self._box_gone)
        except OSError as error:
            connection.close()
            raise BoxGoneError(f"the sandbox ended before it could be held: {error}") from error
        self._boxes[name] = box
        return box

    async def _undo(self, name: str, box: LocalBox | None) -> None:
        """Leave nothing of a box whose making failed or was cancelled."""
        with anyio.move_on_after(_CLEAN_UP_SECONDS, shield=True):
            birth = self._births.get(name)
            if box is None and birth is not None:
                await birth.done.wait()
                del self._births[name]
                if birth.failure is None:
                    with contextlib.suppress(RunnerError):
                        box = self._join(name)
            if box is not None:
                box.kill_now()
                await box.wait_gone()
            else:
                await anyio.to_thread.run_sync(self._remove_box, name)

    def _box_gone(self, box: LocalBox) -> None:
        self._boxes.pop(box.name, None)
        with contextlib.suppress(OSError):
            os.unlink(self._runtime_dir / f"{box.name}.sock")

    # -- the zygote

    async def _running_zygote(self) -> Link:
        if self._tasks is None:
            raise RunnerError("the runner has been closed")
        if self._zygote is None or self._zygote.closed:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._zygote_pid = await anyio.to_thread.run_sync(_start_zygote, theirs.fileno())
            self._zygote = Link(ours, self._tasks, self._zygote_says)
            self._tasks.start_soon(self._serve_zygote, self._zygote)
        return self._zygote

    async def _serve_zygote(self, zygote: Link) -> None:
        try:
            await zygote.run()
        finally:
            for birth in self._births.values():
                birth.failure = "the process that makes sandboxes ended"
                birth.done.set()
            for box in self._boxes.values():
                box.swept.set()

    def _zygote_says(self, message: protocol.Message) -> None:
        message.close_fds()
        name, event = message.body["box"], message.body["event"]
        if event == "gone":
            if name in self._boxes:
                self._boxes[name].swept.set()
        elif (birth := self._births.get(name)) is not None and not birth.done.is_set():
            birth.failure = message.body["message"] if event == "failed" else None
            birth.done.set()

    async def _let_zygote_go(self) -> None:
        """Wait for the zygote if it has no reason to stay."""
        pid, self._zygote_pid = self._zygote_pid, -1
        if pid > 0:
            _unreaped.add(pid)
            if not self._boxes:
                with anyio.move_on_after(_ZYGOTE_ENDS_SECONDS, shield=True):
                    await _wait_for_exit(pid)
        _reap_zygotes()

    # -- level, start and clean-up

    def _prepare(self) -> None:
        for folder in (self._boxes_dir, self._images_dir, self._runtime_dir):
            folder.mkdir(0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        self._image = image.build_template(self._images_dir)
        self._cgroups = cgroups.find_cgroups()
        self._cpu_millicores, self._memory_bytes = probe.cpu_millicores(), probe.memory_bytes()

    async def _decide_level(self) -> None:
        """Find the level by making a box: whatever the machine forbids shows there."""
        if self._wanted == "process":
            await self._settle_for_process("as asked for")
            return
        try:
            await self._try_out(IsolationLevel.NAMESPACES)
        except RunnerError as error:
            self._reason = str(error)
            if self._wanted == "auto" and probe.in_container():
                await self._settle_for_process(self._reason)
                _logger.warning("%s", probe.notice(IsolationLevel.PROCESS, self._reason))
            return
        self._level = IsolationLevel.NAMESPACES

    async def _try_out(self, level: IsolationLevel) -> None:
        box = await self._create(BoxSpec("probe", ("true",), limits=Limits(processes=_DEFAULT_PROCESSES)), level)
        await box.stop(0)
        box.main.forget()

    async def _settle_for_process(self, reason: str) -> None:
        """Take level `process`, and see whether the number of processes can be bounded there without a cgroup."""
        if "processes" not in self._cgroups.limits:
            try:
                await self._try_out(IsolationLevel.PROCESS)
            except RunnerError as error:
                _logger.warning("the number of processes of a sandbox cannot be limited: %s", error)
                self._wardens = False
        self._level, self._reason = IsolationLevel.PROCESS, reason

    async def _take_back(self, name: str, connection: socket.socket) -> LocalBox | None:
        try:
            box = self._hold(name, connection)
        except BoxGoneError:
            return None
        box.swept.set()
        with anyio.move_on_after(_CLEAN_UP_SECONDS):
            if await box.wait_listed() and box.complete:
                return box
        box.kill_now()
        box.forget_commands()
        return None

    def _remove_dead(self, living: set[str]) -> None:
        """Remove what boxes left that are no more: folders, sockets, cgroups."""
        names = {path.name for path in self._boxes_dir.iterdir()}
        names |= {path.stem for path in self._runtime_dir.glob("*.sock")}
        for name in names - living - self._boxes.keys() - self._births.keys():
            self._remove_box(name)

    def _remove_box(self, name: str) -> None:
        _kill_strays(str(self._boxes_dir / name))
        remove_cgroups(self._cgroups.leftovers(name))
        with contextlib.suppress(OSError):
            remove_tree(str(self._boxes_dir / name))
        with contextlib.suppress(OSError):
            os.unlink(self._runtime_dir / f"{name}.sock")


def _kill_strays(folder: str) -> None:
    """Kill what is left of a box without namespaces whose agent and zygote were both killed: its home tells it."""
    home = f"HOME={folder}/home".encode()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                if home in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    os.kill(int(name), signal.SIGKILL)


def _store_files(folder: str, spec: BoxSpec) -> list[list[str]]:
    """Put file mounts where the launcher mounts them from."""
    os.makedirs(f"{folder}/files", 0o711)
    stored = []
    for number, mount in enumerate(spec.files):
        path = f"{folder}/files/{number}"
        Path(path).write_bytes(mount.content)
        Path(path).chmod(0o444)
        stored.append([mount.path, path])
    return stored


def _start_zygote(control: int) -> int:
    """Start the zygote with a session of its own and nothing of this process's environment."""
    package = Path(cwsandbox.__file__).parent.parent
    program = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP.format(path=str(package))]
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, control, CONTROL_FD),
    ]
    return os.posix_spawn(
        sys.executable,
        program,
        {},
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGCHLD, signal.SIGPIPE),
    )


async def _wait_for_exit(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        await anyio.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _reap_zygotes() -> None:
    for pid in list(_unreaped):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _unreaped.discard(pid)
