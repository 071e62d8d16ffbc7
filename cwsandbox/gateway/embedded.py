"""A gateway as a process: its folders, its lock, its parts put together, and when it ends.

A state directory belongs to one running gateway: it holds a file lock on it, which the kernel releases however the
process ends. A successor waits for the lock, then takes the sandboxes back.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import resource
import signal
import sqlite3
from importlib.util import find_spec
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import anyio
from attrs import frozen

from cwsandbox._version import __version__
from cwsandbox.gateway.auth import PeerAuthenticator
from cwsandbox.gateway.config import find_configuration
from cwsandbox.gateway.egress.policy import Policy
from cwsandbox.gateway.keyfile import KeyFileAuthenticator
from cwsandbox.gateway.network import Network
from cwsandbox.gateway.reaper import reap
from cwsandbox.gateway.service import Directories, Limits, Service
from cwsandbox.gateway.store import Store
from cwsandbox.runners.errors import RunnerError
from cwsandbox.wire.frames import PROTOCOL_VERSION

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator

    from anyio.abc import TaskStatus

    from cwsandbox.gateway.auth import Authenticator
    from cwsandbox.gateway.server import Connections
    from cwsandbox.runners.local.runner import LocalRunner

_log = logging.getLogger(__name__)

# A predecessor that was told to end takes at most this long (`Limits.shutdown_seconds` and the server's own).
_LOCK_SECONDS: Final = 25.0
# A log file that is larger is set aside, in place of the one before.
_LOG_BYTES: Final = 4 * 1024 * 1024


@frozen
class Options:
    """How a gateway runs; the fields are the command line's options.

    Attributes:
        state_dir: Records, logs of main commands, the lock. Made with mode 0700.
        runtime_dir: The runner's sockets and boxes. Made with mode 0700.
        socket: The Unix socket of an embedded gateway.
        host: The address of one on a port; "" is embedded.
        port: The port; 0 chooses one.
        api_key_file: The keys, on a port.
        tls_cert: File with the certificate and its chain, on a port; "" serves plain HTTP.
        tls_key: File with its key; "" if the certificate's file holds it too.
        ready_fd: Where one JSON line is written when the gateway accepts; -1 is nowhere.
        start_lock_fd: A lock that was inherited, which keeps others from starting a second gateway; closed when this
            one accepts or has failed. -1 is none.
        idle_seconds: Embedded: how long without connections and sandboxes before it ends.
        sandbox_idle_seconds: How long a sandbox may be unused; 0 is for ever.
        grace_seconds: How long a client that was lost may come back.
        isolation: The level that is required; "auto" takes the best there is.
        log_file: Where to log; "" is stderr.
        config: The configuration file; "" looks in the usual places (`config.find_configuration`).
        egress_allow: What sandboxes may reach beyond the internet, as `egress.policy.Policy.parse` reads it.
        ingress_host: Where ports exposed as "public" are listened on, a numeric address; "" is this machine's loopback
            of an embedded gateway, and does not offer the mode of one on a port.
        ingress_name: What clients are told to connect to instead of `ingress_host`.
    """

    state_dir: str
    runtime_dir: str
    socket: str = ""
    host: str = ""
    port: int = 0
    api_key_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    ready_fd: int = -1
    start_lock_fd: int = -1
    idle_seconds: float = 60.0
    sandbox_idle_seconds: float = 1800.0
    grace_seconds: float = 30.0
    isolation: Literal["auto", "namespaces", "process"] = "auto"
    log_file: str = ""
    config: str = ""
    egress_allow: str = ""
    ingress_host: str = ""
    ingress_name: str = ""

    @property
    def embedded(self) -> bool:
        """On a Unix socket, for one user."""
        return not self.host


def run(options: Options) -> int:
    """Serve until told to end or idle; return the exit status.

    What keeps it from starting is logged, and reported on the ready descriptor as `{"error": ...}`.
    """
    os.umask(0o077)
    for descriptor in (options.ready_fd, options.start_lock_fd):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    _raise_descriptor_limit()
    # Names are looked up for sandboxes, and uvloop's four threads for that are fewer than one sandbox can keep waiting.
    os.environ.setdefault("UV_THREADPOOL_SIZE", "32")
    try:
        for folder in (options.state_dir, os.path.join(options.state_dir, "logs"), options.runtime_dir):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        _start_logging(options.log_file)
        with _lock(options.state_dir):
            anyio.run(_main, options, backend_options={"use_uvloop": find_spec("uvloop") is not None})
    except Exception as failure:
        problem = _first(failure)
        if not isinstance(problem, (OSError, ValueError, RunnerError, sqlite3.Error)):
            raise
        _log.error("the gateway cannot run: %s", problem)
        _announce(options, {"error": str(problem)})
        return 1
    return 0


async def _main(options: Options) -> None:
    # Whoever ends the gateway (a signal, a request, idleness) sets this.
    ending = anyio.Event()
    async with anyio.create_task_group() as tasks:
        await tasks.start(_end_on_signal, ending)
        await _serve(options, ending)
        tasks.cancel_scope.cancel()


async def _serve(options: Options, ending: anyio.Event) -> None:
    authenticator = _authenticator(options)
    async with _open_service(options) as (runner, service):
        from cwsandbox.gateway import server as serving
        from cwsandbox.gateway.app import Gateway, make_app

        gateway = Gateway(service, authenticator, shut_down=ending.set if options.embedded else None)
        connections = serving.Connections()
        tls = {"ssl_certfile": options.tls_cert, "ssl_keyfile": options.tls_key or None} if options.tls_cert else {}
        server = serving.GatewayServer(make_app(gateway), connections, **tls)
        if options.embedded:
            listener = serving.bind_unix(options.socket)
        else:
            listener = serving.bind_port(options.host, options.port)
        readiness = _readiness(options, gateway.instance_id, listener, runner)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(server.serve, sockets=[listener]))
            await server.listening.wait()
            _announce(options, readiness)
            where = readiness["socket"]
            _log.info("gateway %s (version %s, pid %d) serves %s", gateway.instance_id, __version__, os.getpid(), where)
            async with anyio.create_task_group() as watchers:
                if options.embedded:
                    watchers.start_soon(_end_when_idle, service, connections, options.idle_seconds, ending)
                await ending.wait()
                watchers.cancel_scope.cancel()
            _log.info("gateway %s ends", gateway.instance_id)
            # First the path: a client that comes now starts a successor, which waits for our lock. Then the boxes, so
            # that clients learn how their commands ended. Then the connections.
            if options.embedded:
                os.unlink(options.socket)
            await service.end_all()
            server.stop()


@contextlib.asynccontextmanager
async def _open_service(options: Options) -> AsyncIterator[tuple[LocalRunner, Service]]:
    from cwsandbox.runners.local.runner import LocalRunner

    configuration = find_configuration(options.config, os.environ)
    network = Network(
        public_host=options.ingress_host or (Network().public_host if options.embedded else ""),
        public_name=options.ingress_name,
        policy=Policy.parse(options.egress_allow),
    )
    limits = Limits(idle_seconds=options.sandbox_idle_seconds or None, grace_seconds=options.grace_seconds)
    async with (
        Store.open(os.path.join(options.state_dir, "sandboxes.sqlite")) as store,
        LocalRunner(Path(options.state_dir), Path(options.runtime_dir), isolation=options.isolation) as runner,
        Service.open(
            runner,
            store,
            Directories(os.path.join(options.state_dir, "logs")),
            limits,
            network=network,
            configuration=configuration,
        ) as service,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(reap, service)
        yield runner, service
        tasks.cancel_scope.cancel()


async def _end_on_signal(ending: anyio.Event, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for number in received:
            _log.info("%s received", number.name)
            ending.set()


async def _end_when_idle(service: Service, connections: Connections, seconds: float, ending: anyio.Event) -> None:
    """Set `ending` after `seconds` without sandboxes and connections."""
    while True:
        if service.active:
            await service.population.wait()
        elif connections.count:
            await connections.changed.wait()
        else:
            # Without a connection nobody can create a sandbox, so watching connections is enough.
            with anyio.move_on_after(seconds) as quiet:
                await connections.changed.wait()
            if quiet.cancelled_caught:
                _log.info("nothing to do for %g s", seconds)
                ending.set()
                return


def _authenticator(options: Options) -> Authenticator:
    if options.embedded:
        return PeerAuthenticator(os.geteuid())
    return KeyFileAuthenticator(options.api_key_file)


def _readiness(options: Options, instance_id: str, listener: socket.socket, runner: LocalRunner) -> dict[str, object]:
    # Who asked for a weaker level was told so by asking.
    notice = (options.isolation == "auto" and runner.isolation_notice) or ""
    if notice:
        _log.warning("%s", notice)
    return {
        "version": __version__,
        "protocol": PROTOCOL_VERSION,
        "pid": os.getpid(),
        "socket": options.socket or "{}:{}".format(*listener.getsockname()[:2]),
        "instanceId": instance_id,
        "notice": notice,
    }


def _announce(options: Options, document: dict[str, object]) -> None:
    """Write one line to whoever started us, and close; it may have gone. Then others may find us, or try themselves."""
    if options.ready_fd >= 0:
        with contextlib.suppress(OSError), os.fdopen(options.ready_fd, "wb") as pipe:
            pipe.write(json.dumps(document).encode() + b"\n")
    if options.start_lock_fd >= 0:
        os.close(options.start_lock_fd)


@contextlib.contextmanager
def _lock(folder: str) -> Iterator[None]:
    """Hold the state directory for ourselves; waits for a predecessor that ends just now. Blocks: before the loop runs.

    Raises:
        TimeoutError: Another gateway holds it.
    """
    descriptor = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with _alarm(_LOCK_SECONDS, f"another gateway uses {folder}; one with another runtime folder?"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alarm(seconds: float, message: str) -> Iterator[None]:
    """Interrupt a blocking call of the main thread."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(message)

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _raise_descriptor_limit() -> None:
    """Each command has up to six descriptors here; the soft limit is for programs that still use select()."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start_logging(path: str) -> None:
    """Log to a private file of bounded size, or to stderr."""
    handler: logging.Handler = logging.StreamHandler()
    if path:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        handler = RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # uvicorn tells of every start, end and connection.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def _first(problem: Exception) -> Exception:
    """Return the first failure inside of a group, or the failure itself."""
    return _first(problem.exceptions[0]) if isinstance(problem, ExceptionGroup) else problem
