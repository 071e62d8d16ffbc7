"""What a `with` or a session holds goes with the program, however that ends short of SIGKILL.

    the program ends, an exception, sys.exit, Ctrl-C   Python leaves `with` and `async with`; what is left over, atexit
    SIGTERM, SIGHUP                                    Python runs nothing of ours: a signal handler
    SIGKILL, os._exit                                  nothing runs: the gateway's grace and idle limit

A signal handler is installed only while something is held or expected, only in the main thread, and only where the
signal has its default disposition: a program that ignores or handles the signal keeps its own ways, and leaves its
contexts itself.
When the signal comes, the loop that a sandbox belongs to may be the very one that the handler interrupts, so the
gateway is asked over a connection of its own, from a thread of its own. Then the program ends with status 128 + n; a
second signal ends it at once.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING, Any

import anyio

from cwsandbox._runtime.portal import begin_end
from cwsandbox._runtime.scope import Scope
from cwsandbox.exceptions import SandboxNotFoundError

if TYPE_CHECKING:
    from types import FrameType

    from cwsandbox._core import SandboxCore

__all__ = ["expect", "expect_no_more", "hold", "release", "remove_handlers"]

logger: logging.Logger = logging.getLogger("cwsandbox")

END_SECONDS = 5.0
"""How long a program that ends may wait for its sandboxes to end. Those that take longer have been told to."""

_GRACE_SECONDS = 10.0
"""What the main command of a sandbox may take to end by itself, as in `Sandbox.stop`; the gateway counts it."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

# A set and a bare flag: a signal handler runs between any two steps of the main thread, which may hold any lock.
_held: set[SandboxCore] = set()
_expecting: weakref.WeakSet[Any] = weakref.WeakSet()
_ending = False


def expect(session: object) -> None:
    """This session will hold sandboxes, maybe from its loop's thread, where no signal handler can be installed.

    From any thread, any number of times; ended by `expect_no_more`, or with the session.
    """
    _expecting.add(session)
    if threading.current_thread() is threading.main_thread():
        _install()


def expect_no_more(session: object) -> None:
    """This session holds no further sandboxes."""
    _expecting.discard(session)
    remove_handlers()


def hold(sandbox: SandboxCore) -> None:
    """End this sandbox with the program, until it is released. From any thread, any number of times."""
    _held.add(sandbox)
    if threading.current_thread() is threading.main_thread():
        _install()


def release(sandbox: SandboxCore) -> None:
    """It has ended, or is nobody's any more. From any thread, any number of times."""
    _held.discard(sandbox)
    remove_handlers()


def remove_handlers() -> None:
    """Give the signals back, if nothing is held or expected any more; does nothing off the main thread."""
    if not _held and not _expecting and threading.current_thread() is threading.main_thread():
        _remove()


def _install() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # Not the main interpreter.
                signal.signal(number, _on_signal)


def _remove() -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_DFL)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _ending
    if not _ending:
        _ending = True
        try:
            worker = threading.Thread(target=_end_held, name="cwsandbox-exit", daemon=True)
            worker.start()
            worker.join(END_SECONDS + 1)
        except KeyboardInterrupt:
            number = signal.SIGINT
        except RuntimeError as error:  # No thread to be had.
            logger.warning("sandboxes were left to their gateway: %s", error)
    os._exit(128 + number)


def _at_exit() -> None:
    """The portal has left its scopes by now; what is still held belongs to loops that nobody runs any more."""
    if _held and not _ending:
        _end_held()


def _end_held() -> None:
    left = [sandbox for sandbox in list(_held) if sandbox.life.wants_stop]
    if not left:
        return
    begin_end()
    try:
        anyio.run(_end_all, left)
    except Exception as error:
        logger.warning("sandboxes were left to their gateway: %s", error)


async def _end_all(sandboxes: list[SandboxCore]) -> None:
    async with Scope("exit") as scope:
        with anyio.move_on_after(END_SECONDS):
            async with anyio.create_task_group() as tasks:
                for sandbox in sandboxes:
                    tasks.start_soon(_end, sandbox, scope)


async def _end(sandbox: SandboxCore, scope: Scope) -> None:
    from cwsandbox._client.http import WaitFor

    probe = sandbox.sibling()
    probe.belong_to(lambda: scope)
    try:
        client = await probe.client()
        if sandbox.sandbox_id is None:
            await sandbox.take_back(client)
            return
        await client.api.stop(sandbox.sandbox_id, grace_period_seconds=_GRACE_SECONDS, timeout=END_SECONDS)
        await client.api.get(
            sandbox.sandbox_id, wait_for=WaitFor.TERMINAL, wait_seconds=END_SECONDS, timeout=END_SECONDS
        )
    except SandboxNotFoundError:
        pass
    except Exception as error:
        logger.warning("%r could not be stopped when the program ended: %s", sandbox, error)


def _forget_after_fork() -> None:
    """What is held is held by the parent process."""
    _held.clear()
    _expecting.clear()
    _remove()


# Importing has no other effect. Whoever registers later runs earlier: the portal, with its open connections.
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
