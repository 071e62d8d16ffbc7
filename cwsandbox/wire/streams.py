"""What an OPEN carries, by kind of stream.

    kind           params                 substreams                      result
    exec, shell    ExecOpen               stdin up, stdout, stderr down   exit status or signal
    logs           LogsOpen               data down                       exit status 0
    read           ReadOpen               data down                       exit status 0
    write          WriteOpen              data up                         exit status 0, once the file is in place
    files          FilesOpen              see `FileAction`                exit status 0

All of them may fail with a status instead. Times are in seconds; `wait_seconds` bounds the wait for the sandbox to be
RUNNING, `timeout_seconds` what follows, and None means no limit. Environment values are never part of a repr.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping  # noqa: TC003 - the codec resolves annotations
from datetime import datetime  # noqa: TC003 - likewise
from typing import Any, Self

from attrs import Attribute, field, frozen, validators

from cwsandbox.wire.codec import Int64, PosixPath, structure, unstructure

__all__ = [
    "LOG_STAMP_BYTES",
    "ExecInfo",
    "ExecOpen",
    "FileAction",
    "FileInfo",
    "FilesOpen",
    "LogsInfo",
    "LogsOpen",
    "ReadInfo",
    "ReadOpen",
    "SandboxInfo",
    "TerminalSize",
    "WriteOpen",
]


def _no_nul(instance: object, attribute: Attribute[Any], value: str) -> None:
    if "\0" in value:
        raise ValueError(f"{attribute.alias} must not contain NUL bytes")


def _command(instance: object, attribute: Attribute[Any], value: tuple[str, ...]) -> None:
    if not value or not value[0]:
        raise ValueError("argv must name a program")
    if any("\0" in argument for argument in value):
        raise ValueError("argv must not contain NUL bytes")


def _environment(instance: object, attribute: Attribute[Any], value: Mapping[str, str]) -> None:
    for name, text in value.items():
        if not name or "=" in name or "\0" in name or "\0" in text:
            raise ValueError("env must have names without '=' and no NUL bytes")


LOG_STAMP_BYTES = 28
"""The length of the time before a line of a log, such as `2026-04-30T12:00:00.123456Z `."""

_not_negative = validators.optional(validators.ge(0))
_ZERO = Int64(0)
_path = validators.and_(validators.min_len(1), _no_nul)


class _Params:
    """The way to an OPEN's params and back."""

    __slots__ = ()

    def to_params(self) -> dict[str, Any]:
        """Plain JSON values for `Channel.open`."""
        params: dict[str, Any] = unstructure(self)
        return params

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """Read them back.

        Raises:
            WireError: They have another structure; names the field.
        """
        return structure(params, cls)


@frozen(kw_only=True)
class TerminalSize(_Params):
    """A terminal's size in characters."""

    columns: int = field(default=80, validator=[validators.ge(0), validators.lt(2**16)])
    rows: int = field(default=24, validator=[validators.ge(0), validators.lt(2**16)])


@frozen(kw_only=True)
class ExecOpen(_Params):
    """Run a command.

    Attributes:
        sandbox_id: Where.
        argv: Program and arguments.
        cwd: Absolute directory; None is the sandbox's own.
        env: Added to the sandbox's environment.
        timeout_seconds: The command is killed after this; counted by the server, from its start.
        wait_seconds: How long the sandbox may take to run.
        stdin: False gives the command an empty stdin.
        terminal: Set gives the command a terminal; stderr then comes with stdout.
        detach: The command outlives the client.
    """

    sandbox_id: str
    argv: tuple[str, ...] = field(validator=_command)
    cwd: str | None = field(default=None, validator=validators.optional(_no_nul))
    env: Mapping[str, str] = field(factory=dict, repr=False, validator=_environment)
    timeout_seconds: float | None = field(default=None, validator=_not_negative)
    wait_seconds: float | None = field(default=None, validator=_not_negative)
    stdin: bool = False
    terminal: TerminalSize | None = None
    detach: bool = False


@frozen(kw_only=True)
class ReadOpen(_Params):
    """Read a file."""

    sandbox_id: str
    path: PosixPath = field(validator=_path)
    timeout_seconds: float | None = field(default=None, validator=_not_negative)
    wait_seconds: float | None = field(default=None, validator=_not_negative)


@frozen(kw_only=True)
class WriteOpen(_Params):
    """Write a file; it replaces an old one when all bytes came.

    Attributes:
        size: How many bytes will come, if that is known; another number is an error.
    """

    sandbox_id: str
    path: PosixPath = field(validator=_path)
    size: int | None = field(default=None, validator=_not_negative)
    timeout_seconds: float | None = field(default=None, validator=_not_negative)
    wait_seconds: float | None = field(default=None, validator=_not_negative)


class FileAction(enum.Enum):
    """What a files stream does.

    The first group answers in the confirmation, with `FileInfo`. For the others the confirmation means that the work
    has begun (the folder could be opened, the watch is in place), and the exit status that it is done.
    """

    STAT = "stat"
    MKDIR = "mkdir"
    RMDIR = "rmdir"
    UNLINK = "unlink"

    LIST = "list"
    """Down: lines, each a JSON array of entries `[name, mode, size, mtime in ns]`."""
    GLOB = "glob"
    """Likewise; names are paths relative to `path`."""
    WATCH = "watch"
    """Down: lines, each a JSON array of events `[kind, path, is a folder, target]`; without end."""
    MOVE = "move"
    REMOVE = "remove"
    """A file, or a folder with all that is in it."""
    PACK = "pack"
    """Down: a folder stream (see `folderstream`)."""
    UNPACK = "unpack"
    """Up: a folder stream; all of it is in place at the end, or the part of a folder that was there before."""

    @property
    def quick(self) -> bool:
        """Answered in the confirmation."""
        return self in {FileAction.STAT, FileAction.MKDIR, FileAction.RMDIR, FileAction.UNLINK}


@frozen(kw_only=True)
class FilesOpen(_Params):
    """Do something with files.

    Attributes:
        path: Relative paths start at the sandbox's home.
        target: MOVE: where to.
        pattern: GLOB: shell wildcards, `**` for any number of folders.
        follow: STAT: of what a symlink leads to.
        parents: MKDIR: missing parents too.
        exist_ok: MKDIR: a folder that is there already is fine.
        recursive: WATCH: folders below, too.
        totals: PACK: count first, for progress.
    """

    sandbox_id: str
    action: FileAction
    path: PosixPath = field(validator=_path)
    target: PosixPath | None = field(default=None, validator=validators.optional(_path))
    pattern: PosixPath | None = field(default=None, validator=validators.optional(_path))
    follow: bool = True
    parents: bool = False
    exist_ok: bool = False
    recursive: bool = False
    totals: bool = False
    timeout_seconds: float | None = field(default=None, validator=_not_negative)
    wait_seconds: float | None = field(default=None, validator=_not_negative)

    def __attrs_post_init__(self) -> None:
        for action, name in ((FileAction.MOVE, "target"), (FileAction.GLOB, "pattern")):
            if (self.action is action) != (getattr(self, name) is not None):
                raise ValueError(f"{name} goes with {action.value}, and only with it")


@frozen(kw_only=True)
class FileInfo(_Params):
    """The confirmation of a quick action.

    Attributes:
        mode: Type and permissions, as `stat` has them; 0 where nothing was asked.
        size: In bytes.
        mtime_ns: The last change, in ns since 1970.
    """

    mode: int = 0
    size: Int64 = _ZERO
    mtime_ns: Int64 = _ZERO


@frozen(kw_only=True)
class LogsOpen(_Params):
    """Read what the sandbox's main command printed.

    Attributes:
        follow: Go on until the sandbox ends.
        tail_lines: The last lines only; None gives all there are.
        since_time: Nothing older.
        timestamps: Put the time before every line: UTC in ISO 8601 with microseconds, and a space; `LOG_STAMP_BYTES`.
        position: Go on from this byte of the log, instead of `tail_lines` and `since_time`: a stream that was lost.
        stamp_bytes: How much of the stamp before that byte the client has; all of it if the byte is within a line.
    """

    sandbox_id: str
    follow: bool = False
    tail_lines: int | None = field(default=None, validator=_not_negative)
    since_time: datetime | None = None
    timestamps: bool = False
    position: int | None = field(default=None, validator=_not_negative)
    stamp_bytes: int = field(default=0, validator=[validators.ge(0), validators.le(LOG_STAMP_BYTES)])
    timeout_seconds: float | None = field(default=None, validator=_not_negative)
    wait_seconds: float | None = field(default=None, validator=_not_negative)


@frozen(kw_only=True)
class ExecInfo(_Params):
    """The confirmation of a command: it was started.

    Attributes:
        pid: Its process id in the sandbox; 0 if it could not be started (its exit status says why).
    """

    pid: int = 0


@frozen(kw_only=True)
class SandboxInfo(_Params):
    """What the confirmation of any stream says, as its "sandbox", of a sandbox that runs: what only then is known.

    Attributes:
        start_time: When it began to run.
        isolation: "namespaces" or "process".
    """

    start_time: datetime | None = None
    isolation: str = ""


@frozen(kw_only=True)
class LogsInfo(_Params):
    """The confirmation of a log.

    Attributes:
        position: Of the first byte that will be sent, in all that the main command ever printed.
    """

    position: int = 0


@frozen(kw_only=True)
class ReadInfo(_Params):
    """The confirmation of a read.

    Attributes:
        size: The file's size when it was opened, in bytes.
    """

    size: int = 0
