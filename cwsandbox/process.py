"""`Process`: a command running in a sandbox, and `ProcessResult`, what it leaves."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, ClassVar

from cwsandbox._running import RunningCommand
from cwsandbox._runtime.readers import ChunkReader, LineReader, StreamReader
from cwsandbox._runtime.spool import Spool
from cwsandbox._stdin import StreamWriter
from cwsandbox._text import short_repr

__all__ = ["Process", "ProcessResult", "StreamReader", "StreamWriter"]


@dataclass
class _Fields:
    """`ProcessResult` as the published SDK has it, where all fields are there from the beginning."""

    stdout: str
    stderr: str
    returncode: int
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    command: list[str] = field(default_factory=list)


class ProcessResult:  # noqa: PLW1641 - mutable, so not hashable
    """What a finished command printed and returned.

    Output is decoded, and what lies on disk (beyond 8 MiB a stream) is read back, when an attribute is first looked at;
    from then on it is kept. That takes about a second for 200 MB, in which an event loop does nothing else: where this
    matters, iterate `Process.stdout`. Text is UTF-8; what is not becomes U+FFFD.

    Attributes:
        returncode: The exit code: 126 not executable, 127 not found, 128 + N for signal N.
        command: The caller's argument vector.
    """

    # For `dataclasses.asdict`, `replace` and `match`. A field of a dataclass cannot be made late and have a docstring.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]] = _Fields.__dataclass_fields__
    __match_args__ = ("stdout", "stderr", "returncode", "stdout_bytes", "stderr_bytes", "command")

    def __init__(  # noqa: PLR0917 - the published order of fields
        self,
        stdout: str | None = None,
        stderr: str | None = None,
        returncode: int = 0,
        stdout_bytes: bytes = b"",
        stderr_bytes: bytes = b"",
        command: list[str] | None = None,
    ) -> None:
        self.returncode = returncode
        self.command: list[str] = command if command is not None else []
        self._text: list[str | None] = [stdout or "", stderr or ""]
        self._bytes: list[bytes | None] = [stdout_bytes, stderr_bytes]
        self._spools: tuple[Spool, Spool] | None = None

    @classmethod
    def _from_spools(cls, stdout: Spool, stderr: Spool, returncode: int, command: list[str]) -> ProcessResult:
        result = cls(returncode=returncode, command=command)
        result._text, result._bytes, result._spools = [None, None], [None, None], (stdout, stderr)
        return result

    @property
    def stdout(self) -> str:
        """Standard output as text. Reads the disk where the output was large."""
        return self._decoded(0)

    @stdout.setter
    def stdout(self, value: str) -> None:
        self._text[0] = value

    @property
    def stderr(self) -> str:
        """Standard error as text. Reads the disk where the output was large."""
        return self._decoded(1)

    @stderr.setter
    def stderr(self, value: str) -> None:
        self._text[1] = value

    @property
    def stdout_bytes(self) -> bytes:
        """Standard output as it came."""
        return self._raw(0)

    @stdout_bytes.setter
    def stdout_bytes(self, value: bytes) -> None:
        self._bytes[0] = value

    @property
    def stderr_bytes(self) -> bytes:
        """Standard error as it came."""
        return self._raw(1)

    @stderr_bytes.setter
    def stderr_bytes(self, value: bytes) -> None:
        self._bytes[1] = value

    @property
    def stdout_dropped_bytes(self) -> int:
        """Bytes of standard output beyond what one stream keeps (2 GiB); they were counted and dropped."""
        return self._spools[0].dropped_bytes if self._spools else 0

    @property
    def stderr_dropped_bytes(self) -> int:
        """As `stdout_dropped_bytes`, for standard error."""
        return self._spools[1].dropped_bytes if self._spools else 0

    @property
    def stdout_truncated(self) -> bool:
        """True if standard output is not complete."""
        return self.stdout_dropped_bytes > 0

    @property
    def stderr_truncated(self) -> bool:
        """True if standard error is not complete."""
        return self.stderr_dropped_bytes > 0

    def _raw(self, index: int) -> bytes:
        value = self._bytes[index]
        if value is None:
            assert self._spools is not None
            value = self._bytes[index] = self._spools[index].getvalue()
        return value

    def _decoded(self, index: int) -> str:
        value = self._text[index]
        if value is None:
            value = self._text[index] = self._raw(index).decode("utf-8", "replace")
        return value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ProcessResult):
            return NotImplemented
        return self._fields() == other._fields()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={short_repr(getattr(self, name))}" for name in ("stdout", "stderr"))
        return f"ProcessResult(returncode={self.returncode}, {shown}, command={short_repr(self.command)})"

    def __getstate__(self) -> dict[str, Any]:
        return dict(zip(self.__match_args__, self._fields(), strict=True))

    def __setstate__(self, state: dict[str, Any]) -> None:
        ProcessResult.__init__(self, **state)

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)


class Process(RunningCommand[ProcessResult]):
    """A command running in a sandbox.

    Wait for it with `result()` or `wait()` from any thread, or `await` it from any event loop. Iterate `stdout` and
    `stderr` (with `for` or `async for`) for lines as they arrive; `result()` is complete all the same, before or after.
    Nobody has to read for the command to go on; while somebody iterates, that reader sets the pace.

    Cancelling the last task that awaits a process kills the command, children included; the cancelled `await` comes
    back when the gateway has confirmed it, after 5 s at the most.
    """

    def __init__(self, command: list[str], *, stdin: bool, keep_output: bool = True) -> None:
        super().__init__(command, (Spool(keep=keep_output), Spool(keep=keep_output)), stdin=stdin)

    @property
    def stdout(self) -> LineReader:
        """Standard output, line by line. It ends with the command, however that ends; a failure shows in `result()`."""
        return self._spools[0].lines()

    @property
    def stderr(self) -> LineReader:
        """Standard error, line by line."""
        return self._spools[1].lines()

    @property
    def stdin(self) -> StreamWriter | None:
        """Standard input, if the command was started with `stdin=True`; else None and the command's input is empty."""
        return self._stdin

    def _chunks(self) -> list[ChunkReader]:
        """Both outputs as bytes as they come, instead of as lines; the readers set the pace."""
        for spool in self._spools:
            spool.expect_reader()
        return [spool.chunks() for spool in self._spools]

    def _end_output(self, error: BaseException | None) -> None:
        """Streams just end; what went wrong is told by the result."""
        for spool in self._spools:
            spool.close()
