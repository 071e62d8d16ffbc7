"""The queue between `process.stdin` and the exec channel."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from cwsandbox._runtime.operation import OperationRef
from cwsandbox._validate import check_bytes
from cwsandbox.exceptions import SandboxExecutionError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["StreamWriter"]


class StreamWriter:
    """The standard input of a running command.

    Writes are queued in order and sent as the command takes them. The queue holds `QUEUE_SIZE` writes; a further write
    is kept too, but its ref resolves only when it has moved up: wait for it, and the command sets the pace. Any thread
    and any event loop may write.

    What is written before the sandbox runs is sent when it does.
    """

    QUEUE_SIZE = 16

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._data: deque[memoryview] = deque()
        self._waiting: deque[OperationRef[None]] = deque()  # the refs of the writes beyond QUEUE_SIZE, in order
        self._closed = False
        self._eof_taken = False
        self._failure: BaseException | None = None

    @property
    def closed(self) -> bool:
        """True once `close` was called; the end of the command does not change it."""
        return self._closed

    def __repr__(self) -> str:
        return f"<StreamWriter {'closed' if self._closed or self._failure is not None else 'open'}>"

    def write(self, data: bytes) -> OperationRef[None]:
        """Queue raw bytes.

        Returns:
            A ref that resolves when the bytes are queued, not when the command has read them. Cancelling whoever awaits
            it stops the waiting only: the bytes stay queued.

        Raises:
            TypeError: `data` is not bytes-like.
            SandboxExecutionError: `close` was called, or the command has ended.
        """
        view = memoryview(check_bytes(data, "data"))
        with self._lock:
            self._refuse_if_over()
            if not view.nbytes:
                return OperationRef.completed(None)
            self._data.append(view)
            ref = self._slot()
        self._wake()
        return ref

    def writeline(self, text: str, encoding: str = "utf-8") -> OperationRef[None]:
        """Queue a line: `text`, encoded, and a newline. Returns and raises as `write`."""
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, not {type(text).__name__}; use write() for bytes")
        return self.write((text + "\n").encode(encoding))

    def close(self) -> OperationRef[None]:
        """Signal end of file after all pending writes. Idempotent; fine after the command has ended."""
        with self._lock:
            if self._closed:
                return OperationRef.completed(None)
            self._closed = True
            ref = OperationRef.completed(None) if self._failure else self._slot()
        self._wake()
        return ref

    def set_exception(self, error: BaseException) -> None:
        """Make later writes, and those still waiting for room in the queue, fail."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
            self._data.clear()
            waiting, self._waiting = self._waiting, deque()
        for ref in waiting:
            ref._settle_error(self._over(error))

    def _take(self, room: int) -> bytes | None:
        """The next at most `room` bytes to send; None if there are none. For the owner's loop."""
        with self._lock:
            if not self._data:
                return None
            head = self._data[0]
            if head.nbytes > room:
                self._data[0] = head[room:]
                return bytes(head[:room])
            self._data.popleft()
            moved_up = self._waiting.popleft() if self._waiting else None
        if moved_up is not None:
            moved_up._settle_value(None)
        return head.obj if isinstance(head.obj, bytes) and len(head.obj) == head.nbytes else bytes(head)

    def _take_eof(self) -> bool:
        """True once, when the queue is empty and `close` was called. For the owner's loop."""
        with self._lock:
            if not self._closed or self._data or self._eof_taken:
                return False
            self._eof_taken = True
            return True

    def _slot(self) -> OperationRef[None]:
        queued = len(self._data) + (1 if self._closed else 0)
        if queued <= self.QUEUE_SIZE:
            return OperationRef.completed(None)
        ref: OperationRef[None] = OperationRef()
        self._waiting.append(ref)
        return ref

    # What a queue for something else than a command's input says instead is up to its class.

    def _refuse_if_over(self) -> None:
        if self._failure is not None:
            raise self._over(self._failure)
        if self._closed:
            raise SandboxExecutionError("stdin is closed: write before close()")

    def _over(self, cause: BaseException) -> BaseException:
        why = str(cause) if isinstance(cause, Exception) else "it was cancelled"
        error = SandboxExecutionError(f"the command has ended, so nothing can be written to its stdin: {why}")
        error.__cause__ = cause if isinstance(cause, Exception) else None
        return error
