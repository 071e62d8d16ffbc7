"""`Session`: several sandboxes with common defaults, and one end for all of them."""

from __future__ import annotations

import builtins
import logging
import operator
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

import anyio
import anyio.to_thread

from cwsandbox._context import OwnScope, await_shielded, leave_failed
from cwsandbox._core import SandboxCore
from cwsandbox._exit import expect, expect_no_more, hold, release, remove_handlers
from cwsandbox._listing import ListQuery, with_terminated
from cwsandbox._metrics import Metrics
from cwsandbox._operate import SharedOperation, operate
from cwsandbox._runtime._loops import background
from cwsandbox._runtime.portal import portal_scope
from cwsandbox._validate import check_id, check_strings, makes_decorators, profiles_of
from cwsandbox.defaults import SandboxDefaults
from cwsandbox.exceptions import SandboxError
from cwsandbox.integrations.wandb import WandbReporter
from cwsandbox.options import Serialization
from cwsandbox.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from cwsandbox._runtime.operation import OperationRef
    from cwsandbox._runtime.scope import Cleanup, Scope
    from cwsandbox.function import RemoteFunction
    from cwsandbox.options import NetworkOptions, ResourceOptions, Secret
    from cwsandbox.status import SandboxStatus
    from cwsandbox.wire.resources import Sandbox as Record

__all__ = ["Session"]

P = ParamSpec("P")
R = TypeVar("R")
logger: logging.Logger = logging.getLogger("cwsandbox")

_CLOSE_SECONDS = 60.0
"""How long leaving `async with` may take: all sandboxes stop at once, with 10 s of grace each."""


class Session:
    """Makes sandboxes with common defaults and stops them all when it is left.

    Under `async with` operations on its sandboxes run as tasks of the caller's own loop (asyncio or trio); under
    `with`, or without either, on the background thread. It may be entered in one task and left in another.

    It counts its sandboxes and how their commands end (`get_metrics`), and logs that to the W&B run that the program
    has, if it has one: when `log_metrics` is called, and when it is closed.

    Args:
        defaults: Values for its sandboxes; a mapping is read by `SandboxDefaults.from_dict`.
        report_to: None or `["wandb"]` count and log; an empty list does neither. Other names are ignored with a warning
            in the log.

    Raises:
        TypeError: `defaults` is of another type, or `report_to` is not a list of strings.
    """

    def __init__(
        self,
        defaults: SandboxDefaults | Mapping[str, Any] | None = None,
        report_to: Sequence[str] | None = None,
    ) -> None:
        self._defaults = SandboxDefaults.of(defaults)
        self._metrics = Metrics() if _wants_reports(report_to) else None
        self._reporter = WandbReporter()
        self._lock = threading.Lock()
        self._sandboxes: dict[int, Sandbox] = {}  # by object identity, strongly: what nobody else holds is stopped too
        self._closed = False
        # Of its own: it is taken in the middle of sandboxes' locks, and these in the middle of _lock.
        self._scope_lock = threading.Lock()
        self._scope: Scope | None = None
        self._own_scope = OwnScope("session")
        self._closing: SharedOperation | None = None
        self._at_exit: Cleanup | None = None

    @property
    def sandbox_count(self) -> int:
        """How many sandboxes the session holds now, those that were not started yet included."""
        return len(self._sandboxes)

    def sandbox(
        self,
        *,
        command: str | None = None,
        args: Sequence[str] | None = None,
        container_image: str | None = None,
        tags: Sequence[str] | None = None,
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
    ) -> Sandbox:
        """An unstarted sandbox of this session; no I/O.

        Arguments and errors are those of `Sandbox`, over the session's defaults.

        Raises:
            SandboxError: The session is closed.
        """
        sandbox = Sandbox(
            command=command,
            args=args,
            defaults=self._defaults,
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
        self._register(sandbox)
        if self._metrics is not None:
            self._metrics.sandbox_created()
        return sandbox

    @makes_decorators
    def function(
        self,
        *,
        container_image: str | None = None,
        serialization: Serialization = Serialization.JSON,
        temp_dir: str | None = None,
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
        request_timeout_seconds: float | None = None,
        standby: int = 0,
    ) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]:
        """Decorator: each call of the function runs in a new sandbox of this session.

        What is not said here is that of `sandbox`, over the session's defaults, tags and secrets included.
        `environment_variables` and `annotations` are read at each call.

        Args:
            container_image: Image to run; it must have a `python`.
            serialization: How arguments, captured values and the result travel. JSON is safe; with PICKLE code in the
                sandbox can run code in this process, through the result: for sandboxes that run trusted code only.
            temp_dir: Absolute folder in the sandbox for the result file; default is that of the session. Made if
                missing.
            profile_ids: Profiles it may run with.
            profile_names: Another name of `profile_ids`.
            runner_ids: Runners it may run on.
            resources: CPU, memory, GPU.
            mounted_files: Read-only files.
            s3_mount: A bucket.
            ports: Ports of the sandbox.
            network: Ingress and egress.
            max_timeout_seconds: The longest limit that an operation may ask for.
            environment_variables: For the function, over those of the defaults. Not for secrets.
            annotations: Metadata for the runner, over that of the defaults.
            request_timeout_seconds: Limit for one call, from the start of its interpreter on; default is that of the
                session.
            standby: How many sandboxes to keep ready, each for exactly one call; used ones are replaced in the
                background. They count in `sandbox_count`.

        Raises:
            AsyncFunctionError: The function is async.
            TypeError: A value of the wrong type.
            ValueError: A value that cannot be meant.
        """
        from cwsandbox._function.decorate import decorator

        options = {
            "container_image": container_image,
            "profile_ids": profiles_of(profile_ids, profile_names),
            "runner_ids": runner_ids,
            "resources": resources,
            "mounted_files": mounted_files,
            "s3_mount": s3_mount,
            "ports": ports,
            "network": network,
            "max_timeout_seconds": max_timeout_seconds,
            "environment_variables": environment_variables,
            "annotations": annotations,
        }
        return decorator(
            self,
            options,
            serialization=serialization,
            temp_dir=temp_dir,
            request_timeout_seconds=request_timeout_seconds,
            standby=standby,
        )

    def list(
        self,
        *,
        tags: Sequence[str] | None = None,
        status: SandboxStatus | str | None = None,
        profile_ids: Sequence[str] | None = None,
        profile_names: Sequence[str] | None = None,
        runner_ids: Sequence[str] | None = None,
        include_stopped: bool = False,
        show_terminated: bool | None = None,
        adopt: bool = False,
    ) -> OperationRef[builtins.list[Sandbox]]:
        """The sandboxes that have the session's default tags and match all that is given, whoever started them.

        Args:
            tags: These tags too.
            status: This status only; a terminal one includes stopped sandboxes.
            profile_ids: Any of these profiles; default are the session's.
            profile_names: Another name of `profile_ids`.
            runner_ids: Any of these runners; default are the session's.
            include_stopped: Also those that ended, as long as the gateway remembers them.
            show_terminated: Another name of `include_stopped`.
            adopt: Stop what was found when the session is left.

        Raises:
            SandboxError: From the ref: `adopt`, and the session is closed.
            TypeError: Two names of one setting contradict each other.
            ValueError: From the ref: `status` is not a `SandboxStatus` value.
        """
        profiles = profiles_of(profile_ids, profile_names)
        query = ListQuery(
            [*self._defaults.tags, *(check_strings(tags, "tags") or ())],
            status,
            self._defaults.profile_ids if profiles is None else profiles,
            self._defaults.runner_ids if runner_ids is None else check_strings(runner_ids, "runner_ids"),
            with_terminated(include_stopped, show_terminated),
        )
        finder = self._finder(adopt)
        return finder.operate(self._list, finder, query, adopt, name="list sandboxes")

    def from_id(self, sandbox_id: str, *, adopt: bool = True) -> OperationRef[Sandbox]:
        """Attach to a sandbox that exists.

        Args:
            sandbox_id: Its id.
            adopt: Stop it when the session is left.

        Raises:
            SandboxNotFoundError: From the ref: no such sandbox.
            SandboxError: From the ref: `adopt`, and the session is closed.
            ValueError: The id is empty.
        """
        wanted, finder = check_id(sandbox_id), self._finder(adopt)
        return finder.operate(self._find, finder, wanted, adopt, name="find sandbox")

    def adopt(self, sandbox: Sandbox) -> None:
        """Stop this sandbox, too, when the session is left; its commands count for this session from now on.

        A sandbox has one session: another one that held it lets go of it.

        Raises:
            SandboxError: The session is closed.
            TypeError: Not a `Sandbox`.
            ValueError: The sandbox was not started, so there is nothing to stop.
        """
        if not isinstance(sandbox, Sandbox):
            raise TypeError(f"a Sandbox is adopted, not {type(sandbox).__name__}; from_id() adopts by id")
        if sandbox.sandbox_id is None:
            raise ValueError("the sandbox has no id: only sandboxes that were started can be adopted")
        self._register(sandbox)

    def get_metrics(self) -> dict[str, Any]:
        """What was counted since the session began, or since it was last logged with `reset`.

        Returns:
            Names beginning with `cwsandbox/` and their values; empty under `report_to=[]`. Rates, times and counts per
            sandbox are there once they mean something.
        """
        return {} if self._metrics is None else self._metrics.values()

    def log_metrics(self, step: int | None = None, *, reset: bool = True) -> bool:
        """Log what `get_metrics` tells to the active W&B run. Blocks as `wandb.log` does, which is not for long.

        Args:
            step: The training step; None leaves it to wandb.
            reset: Begin to count anew after it was logged. What could not be logged is kept in any case.

        Returns:
            False if it was not logged: no run, nothing to report, `report_to=[]`, or wandb refused.

        Raises:
            TypeError: `step` is not a whole number.
        """
        if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__")):
            raise TypeError(f"step must be an int, not {type(step).__name__}")
        at = None if step is None else operator.index(step)
        if self._metrics is None or not self._reporter.active:
            return False
        return self._metrics.report(partial(self._reporter.log, step=at), reset=reset)

    def close(self) -> OperationRef[None]:
        """Stop all sandboxes of the session, at once, then log its metrics; returns immediately.

        Returns:
            A ref that resolves when all have ended; closing again joins the first closing. Cancelling whoever awaits it
            stops the waiting only.

        Raises:
            SandboxError: From the ref: some could not be stopped; how many, with all their errors as the cause. The
                others are stopped all the same.
        """
        with self._lock:
            self._closed = True
            if self._closing is None:
                sandboxes, self._sandboxes = builtins.list(self._sandboxes.values()), {}
                self._closing = SharedOperation(self._operations_scope, partial(self._end, sandboxes), "close session")
            closing = self._closing
        expect_no_more(self)
        if closing.over:
            return closing.outcome()
        operate(self._operations_scope, closing.begin, name="close session")
        ref = operate(self._operations_scope, closing.join, name="close session")
        if self._at_exit is not None:
            cleanup = self._at_exit
            ref.add_done_callback(lambda _: cleanup.remove())
        return ref

    def __enter__(self) -> Self:
        self._refuse_if_closed()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self.close().result()
        except Exception as error:
            leave_failed(error, "closing the session", body=exc)
        finally:
            remove_handlers()

    async def __aenter__(self) -> Self:
        self._refuse_if_closed()
        if self._scope is None:
            await self._own_scope.open(self._take_scope)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await await_shielded(self.close(), _CLOSE_SECONDS, f"closing {self!r}")
        except Exception as error:
            leave_failed(error, "closing the session", body=exc)
        finally:
            await self._own_scope.close()
            remove_handlers()

    def __repr__(self) -> str:
        return f"<Session {len(self._sandboxes)} sandboxes, {'closed' if self._closed else 'open'}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Session stays in its process: make another one there, and adopt sandboxes by from_id()")

    # For the session's sandboxes.

    def _operations_scope(self) -> Scope:
        """The scope of this session: the one it was entered with, or the portal's from its first use on."""
        if self._scope is not None:
            return self._scope
        with self._scope_lock:
            if self._scope is None:
                scope = portal_scope()
                # The portal's scope is left when the program ends: what the session still holds then goes with it.
                self._at_exit = scope.add_cleanup(self._close_at_exit)
                self._scope = scope
            return self._scope

    def _take_scope(self, scope: Scope) -> bool:
        with self._scope_lock:
            if self._scope is not None:
                return False
            self._scope = scope
            return True

    async def _close_at_exit(self) -> None:
        with self._lock:
            self._closed = True
            sandboxes, self._sandboxes = builtins.list(self._sandboxes.values()), {}
        failure = await _stop_all(sandboxes)
        self.log_metrics()  # Not in a thread: a program that ends starts none.
        if failure is not None:
            raise failure

    async def _end(self, sandboxes: builtins.list[Sandbox]) -> None:
        failure = await _stop_all(sandboxes)
        if self._reporter.active:
            await anyio.to_thread.run_sync(self.log_metrics)
        if failure is not None:
            raise failure

    def _register(self, sandbox: Sandbox) -> None:
        with self._lock:
            self._refuse_if_closed()
            before, sandbox._session = sandbox._session, self
            sandbox._core.belong_to(self._operations_scope)
            sandbox._core.count_for(self._metrics)
            self._sandboxes[id(sandbox)] = sandbox
        hold(sandbox._core)
        if before is not None and before is not self:
            before._forget(sandbox)

    def _finder(self, adopt: bool) -> SandboxCore:
        """What looks for sandboxes, in the session's scope as long as there is one: what it finds is used there."""
        finder = SandboxCore(None, self._defaults, None, None)
        if not self._closed:
            finder.belong_to(self._operations_scope)
            if adopt:
                expect(self)
        return finder

    async def _list(self, finder: SandboxCore, query: ListQuery, adopt: bool) -> builtins.list[Sandbox]:
        if adopt:
            self._refuse_if_closed()
        return [self._attach(record, finder, adopt) for record in await query.run(finder)]

    async def _find(self, finder: SandboxCore, sandbox_id: str, adopt: bool) -> Sandbox:
        if adopt:
            self._refuse_if_closed()
        return self._attach(await finder.get(sandbox_id), finder, adopt)

    def _attach(self, record: Record, finder: SandboxCore, adopt: bool) -> Sandbox:
        sandbox = Sandbox._from_record(record, finder)
        sandbox._core.belong_to(finder.scope)
        if adopt:
            self._register(sandbox)
        return sandbox

    def _forget(self, sandbox: Sandbox) -> None:
        """The sandbox is not usable any more."""
        with self._lock:
            self._sandboxes.pop(id(sandbox), None)

    def _expect_sandboxes(self) -> None:
        """Sandboxes will be registered, by operations too: the program's end must know while it is in its main thread.

        Raises:
            SandboxError: The session is closed.
        """
        self._refuse_if_closed()
        expect(self)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise SandboxError("the session is closed; make a new Session")


async def _stop_all(sandboxes: builtins.list[Sandbox]) -> SandboxError | None:
    """Stop all that can be stopped; the failures, if there are any, as one error."""
    errors: list[Exception] = []
    async with anyio.create_task_group() as tasks:
        for sandbox in sandboxes:
            tasks.start_soon(_stop_one, sandbox, errors)
    for sandbox in sandboxes:
        release(sandbox._core)
    if not errors:
        return None
    failure = SandboxError(f"{len(errors)} of {len(sandboxes)} sandboxes could not be stopped: {errors[0]}")
    failure.__cause__ = ExceptionGroup("sandboxes could not be stopped", errors)
    return failure


@background
async def _stop_one(sandbox: Sandbox, errors: list[Exception]) -> None:
    try:
        # Not as an operation of its own: at exit the scope takes no more of them. What was deleted is gone, too.
        await sandbox._stop(missing_ok=True)
    except Exception as error:
        errors.append(error)


def _wants_reports(report_to: Sequence[str] | None) -> bool:
    """Whether a session reports at all; says what it does not report to."""
    names = check_strings(report_to, "report_to")
    if names is None:
        return True
    if unknown := [name for name in names if name != "wandb"]:
        logger.warning('report_to: %s ignored; the only reporter is "wandb"', ", ".join(map(repr, unknown)))
    return "wandb" in names
