"""Remote functions: a call with and without a standby sandbox, beside a bare interpreter."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.timing import milliseconds

if TYPE_CHECKING:
    from cwsandbox import Sandbox, Session

SETTLE_SECONDS = 0.3
"""Between calls with standby sandboxes: the interpreter of the next one starts meanwhile."""


def add(x: int, y: int) -> int:
    """What is called."""
    return x + y


def bare_interpreter(sandbox: Sandbox, times: int) -> list[float]:
    """`python -c pass` in a sandbox that runs already."""
    return milliseconds(lambda: sandbox.exec(["python", "-c", "pass"]).result(), times)


def cold_call(session: Session, times: int) -> list[float]:
    """A call that starts its own sandbox and interpreter, and stops them."""
    function = session.function()(add)
    return milliseconds(lambda: function.remote(1, 2).result(), times)


def warm_call(session: Session, times: int) -> list[float]:
    """A call that finds a standby sandbox, the stopping of which is counted."""
    function = session.function(standby=2)(add)
    taken = []
    for _ in range(times):
        function.prepare().result()
        time.sleep(SETTLE_SECONDS)
        begin = time.perf_counter()
        function.remote(1, 2).result()
        taken.append((time.perf_counter() - begin) * 1000)
    return taken
