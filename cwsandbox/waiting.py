"""`results` and `wait`: for several operations at once, from sync code."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload
from weakref import WeakKeyDictionary

from cwsandbox._runtime.operation import OperationRef
from cwsandbox._validate import check_seconds
from cwsandbox.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Waitable", "results", "wait"]

T = TypeVar("T")
Waitable: TypeAlias = Sandbox | OperationRef[Any]
W = TypeVar("W", Sandbox, OperationRef[Any], Waitable)

_watches: WeakKeyDictionary[Sandbox, OperationRef[None]] = WeakKeyDictionary()
"""What watches the sandboxes that were pending when a `wait` returned. The next one goes on with it: polling sees what
happened between two looks, and does not pile up operations."""


@overload
def results(refs: OperationRef[T]) -> T: ...
@overload
def results(refs: Iterable[OperationRef[T]]) -> list[T]: ...
def results(refs: OperationRef[T] | Iterable[OperationRef[T]]) -> T | list[T]:
    """Block for the value of one ref, or for the values of several in their order.

    Raises:
        TypeError: An item is not a ref.
        Exception: What the first failing ref raises; the others go on.
    """
    if isinstance(refs, OperationRef):
        return refs.result()
    given: Any = refs
    items: list[OperationRef[T]] = list(given) if isinstance(given, Iterable) else [given]
    for item in items:
        if not isinstance(item, OperationRef):
            raise TypeError(f"results() takes refs such as those of exec() or read_file(), not {type(item).__name__}")
    return [item.result() for item in items]


def wait(
    waitables: Sequence[W], num_returns: int | None = None, timeout: float | None = None
) -> tuple[list[W], list[W]]:
    """Block until some or all are done.

    A sandbox is done when it runs (it is started if needed), a ref when it finished. A failure counts as done and is
    not raised here: ask the item. What is pending goes on and may be waited for again.

    Args:
        waitables: Sandboxes, refs and processes, mixed as you like.
        num_returns: Return when so many are done; None waits for all.
        timeout: Seconds to wait at the most; 0 looks without waiting.

    Returns:
        (done, pending), both in the order given; `done` has at most `num_returns` items.

    Raises:
        ValueError: `num_returns` is less than 1, or `timeout` negative or NaN.
        TypeError: An item can not be waited for, `waitables` is no list, or `num_returns` no whole number.
        RuntimeError: Called on the event loop that has to do the work; use `await` there.
    """
    if isinstance(waitables, OperationRef | Sandbox):
        raise TypeError(f"wait() takes a list: write wait([...]) for one {type(waitables).__name__}")
    if num_returns is not None and (isinstance(num_returns, bool) or not isinstance(num_returns, int)):
        raise TypeError(f"num_returns must be an int, not {type(num_returns).__name__}")
    if num_returns is not None and num_returns < 1:
        raise ValueError(f"num_returns must be at least 1, not {num_returns}")
    timeout = check_seconds(timeout, "timeout")
    items = list(waitables)
    refs = [_ref(item) for item in items]
    wanted = len(refs) if num_returns is None else min(num_returns, len(refs))
    _wait_for(refs, wanted, timeout)
    done: list[W] = []
    pending: list[W] = []
    for item, ref in zip(items, refs, strict=True):
        if ref._finished and len(done) < wanted:
            done.append(item)
        else:
            pending.append(item)
            if isinstance(item, Sandbox):
                _watches[item] = ref
    return done, pending


def _ref(item: Waitable) -> OperationRef[Any]:
    if isinstance(item, OperationRef):
        return item
    if isinstance(item, Sandbox):
        return item._watch_running(_watches.pop(item, None))
    raise TypeError(f"wait() takes sandboxes, refs and processes, not {type(item).__name__}")


def _wait_for(refs: Sequence[OperationRef[Any]], wanted: int, timeout: float | None) -> None:
    if any(ref._loop is not None and ref._loop.is_current() for ref in refs):
        raise RuntimeError("wait() would block the event loop that has to do the work; await the items instead")
    changed = threading.Condition()
    finished = 0

    def count() -> None:
        nonlocal finished
        with changed:
            finished += 1
            changed.notify()

    deadline = math.inf if timeout is None else time.monotonic() + timeout
    with ExitStack() as waiting, changed:
        for ref in refs:
            # Taken back at the end: who waits again and again for something long must not leave a callback each time.
            waiting.callback(ref._latch.discard_callback, count)
            if not ref._latch.add_callback(count):
                finished += 1
            ref._wait_begins()  # like result(): a stalled reader must not keep the command from finishing
            waiting.callback(ref._wait_ends)
        while finished < wanted and (left := deadline - time.monotonic()) > 0:
            changed.wait(min(left, threading.TIMEOUT_MAX))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_watches.clear)
