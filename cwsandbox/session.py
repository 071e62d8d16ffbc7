"""`Session`: several sandboxes with common defaults, and one end for all of them."""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import anyio

from cwsandbox._operate import SharedOperation, await_shielded, operate
from cwsandbox._runtime.portal import portal_scope
from cwsandbox._runtime.scope import Scope
from cwsandbox.defaults import SandboxDefaults
from cwsandbox.exceptions import SandboxError
from cwsandbox.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from cwsandbox._runtime.operation import OperationRef
    from cwsandbox.options import NetworkOptions, ResourceOptions, Secret

__all__ = ["Session"]

logger = logging.getLogger("cwsandbox")

_CLOSE_SECONDS = 60.0
"""How long leaving `async with` may take: all sandboxes stop at once, with 10 s of grace each."""


class Session:
    """Makes sandboxes with common defaults and stops them all when it is left.

    Under `async with` operations on its sandboxes run as tasks of the caller's own loop (asyncio or trio); under
    `with`, or without either, on the background thread. It may be entered in one task and left in another.

    Args:
        defaults: Values for its sandboxes; a mapping is read by `SandboxDefaults.from_dict`.

    Raises:
        TypeError: `defaults` is of another type.
    """

    def __init__(self, defaults: SandboxDefaults | Mapping[str, Any] | None = None) -> None:
        self._defaults = SandboxDefaults.of(defaults)
        self._lock = threading.Lock()
        self._sandboxes: dict[int, Sandbox] = {}  # by object identity, strongly: what nobody else holds is stopped too
        self._closed = False
        self._scope: Scope | None = None
        self._own_scope: Scope | None = None
        self._closing: SharedOperation | None = None

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
        runner_ids: Sequence[str] | None = None,
        resources: ResourceOptions | Mapping[str, Any] | None = None,
        mounted_files: Sequence[Mapping[str, Any]] | None = None,
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
            profile_ids=profile_ids,
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
        with self._lock:
            if self._closed:
                raise SandboxError("the session is closed; make a new Session")
            sandbox._session = self
            sandbox._core.belong_to(self._operations_scope)
            self._sandboxes[id(sandbox)] = sandbox
        return sandbox

    def close(self) -> OperationRef[None]:
        """Stop all sandboxes of the session, at once; returns immediately.

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
                sandboxes, self._sandboxes = list(self._sandboxes.values()), {}
                self._closing = SharedOperation(self._operations_scope, partial(_stop_all, sandboxes), "close session")
            closing = self._closing
        return operate(self._operations_scope, closing.join, name="close session")

    def __enter__(self) -> Self:
        self._refuse_if_closed()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self.close().result()
        except Exception as error:
            _leave_failed(error, body=exc)

    async def __aenter__(self) -> Self:
        self._refuse_if_closed()
        if self._scope is None:
            self._own_scope = self._scope = await Scope("session").enter()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await await_shielded(self.close(), _CLOSE_SECONDS, f"closing {self!r}")
        except Exception as error:
            _leave_failed(error, body=exc)
        finally:
            scope, self._own_scope = self._own_scope, None
            if scope is not None:
                await scope.aclose()

    def __repr__(self) -> str:
        return f"<Session {len(self._sandboxes)} sandboxes, {'closed' if self._closed else 'open'}>"

    # For the session's sandboxes.

    def _operations_scope(self) -> Scope:
        """The scope of this session: the one it was entered with, or the portal's from its first use on."""
        if self._scope is None:
            self._scope = portal_scope()
        return self._scope

    def _forget(self, sandbox: Sandbox) -> None:
        """The sandbox is not usable any more."""
        with self._lock:
            self._sandboxes.pop(id(sandbox), None)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise SandboxError("the session is closed; make a new Session")


async def _stop_all(sandboxes: list[Sandbox]) -> None:
    errors: list[Exception] = []

    async def stop(sandbox: Sandbox) -> None:
        try:
            await sandbox.stop()
        except Exception as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for sandbox in sandboxes:
            tasks.start_soon(stop, sandbox)
    if errors:
        causes = ExceptionGroup("sandboxes could not be stopped", errors)
        raise SandboxError(f"{len(errors)} of {len(sandboxes)} sandboxes could not be stopped") from causes


def _leave_failed(error: Exception, *, body: BaseException | None) -> None:
    """The body's own exception wins; a failed close alone is raised."""
    if body is None:
        raise error
    logger.warning("closing the session failed: %s", error)
