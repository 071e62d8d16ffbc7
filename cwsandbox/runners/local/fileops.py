"""File operations on the agent's side: quick ones at once, the others in a child process of their own.

A child leads its work to the end, or until it is told to stop (SIGTERM), and then removes what it had not completed. It
has the sandbox's view and no more rights than the sandbox's commands. Its results go into one pipe, what became of it
into another: a line when it has begun, and a line at the end.
"""

from __future__ import annotations

import errno
import glob
import itertools
import json
import os
import signal
import stat
from typing import TYPE_CHECKING, Any, NoReturn

from cwsandbox.runners.local import syscalls as linux
from cwsandbox.runners.local.descriptors import close_others
from cwsandbox.runners.local.files import write_all
from cwsandbox.runners.local.protocol import INLINE_FILE_BYTES
from cwsandbox.runners.local.trees import remove_tree
from cwsandbox.runners.local.watch import watch
from cwsandbox.wire.folderstream import CHUNK_BYTES, FolderStreamError
from cwsandbox.wire.packing import pack
from cwsandbox.wire.unpacking import Unpacker, make_parents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_ROWS_PER_LINE = 200
_PATH_MAX = 4096


# Quick operations, in the agent itself.


def stat_file(body: dict[str, Any]) -> list[int]:
    """Mode, size and time of the last change."""
    status = os.stat(body["path"]) if body["follow"] else os.lstat(body["path"])
    return [status.st_mode, status.st_size, status.st_mtime_ns]


def make_folder(body: dict[str, Any]) -> None:
    """A folder, if asked for with its parents."""
    path = body["path"]
    if body["parents"]:
        make_parents(path.rstrip("/"))
    try:
        os.mkdir(path)
    except FileExistsError:
        if not body["exist_ok"] or not os.path.isdir(path):
            raise


def quick(body: dict[str, Any]) -> list[int]:
    """Do one of the quick actions; what it found out."""
    action, path = body["action"], body["path"]
    if action == "stat":
        return stat_file(body)
    if action == "mkdir":
        make_folder(body)
    elif action == "rmdir":
        os.rmdir(path)
    else:
        os.unlink(path)
    return []


def at_once(body: dict[str, Any]) -> bytes | None:
    """Do what is not worth a child, although its action may be: the output, or None for what is."""
    if body["action"] == "list":
        return _small_listing(body)
    try:
        if body["action"] == "move":
            os.rename(body["path"], body["target"])
            return b""
        if body["action"] == "remove":
            os.unlink(body["path"])
            return b""
    except OSError as error:
        # Between file systems, and for folders (POSIX says EPERM), it is.
        if error.errno not in {errno.EXDEV, errno.EISDIR, errno.EPERM}:
            raise
    return None


def _small_listing(body: dict[str, Any]) -> bytes | None:
    rows = list(itertools.islice(_entries(body["path"]), _ROWS_PER_LINE + 1))
    if len(rows) > _ROWS_PER_LINE:
        return None
    line = _line(rows)
    return line if len(line) <= INLINE_FILE_BYTES else None


# The others, in a child.


class _StoppedError(BaseException):
    """The child was told to stop."""


def begin(body: dict[str, Any]) -> tuple[int, list[int]]:
    """Fork a child for an action that streams.

    Returns:
        Its process id, and the gateway's ends of its pipes: output, status, and input if it has one.
    """
    opened: list[int] = []
    try:
        for _ in range(3 if body["action"] == "unpack" else 2):
            opened += os.pipe()
        out_read, out_write, status_read, status_write, *rest = opened
        pid = os.fork()
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    if pid == 0:
        _be_child(body, out_write, status_write, rest[0] if rest else -1)
    for fd in (out_write, status_write, *rest[:1]):
        os.close(fd)
    return pid, [out_read, status_read, *rest[1:]]


def _be_child(body: dict[str, Any], output: int, status: int, source: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        close_others(output, status, source)
        linux.set_capabilities(())
        _run(body, output, status, source)
    except _StoppedError:
        pass
    finally:
        os._exit(0)


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Cleaning up is not to be interrupted.
    raise _StoppedError


def _run(body: dict[str, Any], output: int, status: int, source: int) -> None:
    try:
        steps = run(body, source)
        first = next(steps)
        _tell(status, {"begun": True})
        write_all(output, first)
        for data in steps:
            write_all(output, data)
    except BrokenPipeError:
        return  # Nobody is interested any more.
    except FolderStreamError as error:
        _tell_error(status, errno.EPROTO, str(error), body["path"])
    except OSError as error:
        path = error.filename if isinstance(error.filename, str) else body["path"]
        _tell_error(status, error.errno or errno.EIO, error.strerror or str(error), path)
    except Exception as error:
        _tell_error(status, errno.EIO, f"{type(error).__name__}: {error}", body["path"])
    else:
        _tell(status, {"done": True})


def _tell_error(status: int, number: int, message: str, path: str) -> None:
    # The gateway takes a line of 32 KiB, and a character may take six bytes of it.
    _tell(status, {"errno": number, "message": message[:1000], "path": path[:_PATH_MAX]})


def _tell(status: int, body: dict[str, Any]) -> None:
    try:
        write_all(status, json.dumps(body).encode("ascii") + b"\n")
    except BrokenPipeError:
        return


def run(body: dict[str, Any], source: int = -1) -> Iterator[bytes]:
    """Do the work of a child; what comes first says that it has begun.

    Args:
        body: The request.
        source: A blocking descriptor to read UNPACK's stream from.
    """
    path = body["path"]
    actions: dict[str, Callable[[], Iterator[bytes]]] = {
        "list": lambda: _lines(_entries(path)),
        "glob": lambda: _lines(_matches(path, body["pattern"])),
        "watch": lambda: _event_lines(path, body["recursive"]),
        "move": lambda: _move(path, body["target"]),
        "remove": lambda: _remove(path),
        "pack": lambda: pack(path, totals=body["totals"]),
        "unpack": lambda: _unpack(path, source),
    }
    return actions[body["action"]]()


def _row(name: str, status: os.stat_result) -> list[Any]:
    return [name, status.st_mode, status.st_size, status.st_mtime_ns]


def _entries(path: str) -> Iterator[list[Any]]:
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                yield _row(entry.name, entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue  # Removed meanwhile.


def _matches(path: str, pattern: str) -> Iterator[list[Any]]:
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    for name in glob.iglob(pattern, root_dir=path, recursive=True, include_hidden=True):
        try:
            yield _row(name, os.lstat(os.path.join(path, name)))
        except FileNotFoundError:
            continue


def _lines(rows: Iterable[list[Any]]) -> Iterator[bytes]:
    """Rows as lines of some each; an empty piece first, when the first row was found."""
    gathered: list[list[Any]] = []
    begun = False
    for row in rows:
        gathered.append(row)
        if not begun:
            begun = True
            yield b""
        if len(gathered) >= _ROWS_PER_LINE:
            yield _line(gathered)
            gathered = []
    yield _line(gathered)


def _line(rows: Sequence[Any]) -> bytes:
    """Rows as one line; nothing for none."""
    return json.dumps(rows, separators=(",", ":")).encode("ascii") + b"\n" if rows else b""


def _event_lines(path: str, recursive: bool) -> Iterator[bytes]:
    for events in watch(path, recursive=recursive):
        yield _line(events)


def _move(path: str, target: str) -> Iterator[bytes]:
    os.lstat(path)
    yield b""
    try:
        os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_over(path, target)


def _move_over(path: str, target: str) -> None:
    """Move between file systems: a copy that appears at once, then the original goes."""
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        os.unlink(path)
        return
    if os.path.isdir(path) and os.path.lexists(target):
        os.rmdir(target)  # As rename has it: only an empty folder is replaced.
    unpacker = Unpacker(target, contain=False)
    try:
        for data in pack(path):
            unpacker.feed(data)
        unpacker.finish()
    finally:
        unpacker.close()
    remove_tree(os.path.abspath(path))


def _remove(path: str) -> Iterator[bytes]:
    os.lstat(path)
    yield b""
    parent, name = os.path.split(os.path.abspath(path))
    whole = os.path.join(os.path.realpath(parent), name)
    if os.path.ismount(whole):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
    remove_tree(whole)


def _unpack(path: str, source: int) -> Iterator[bytes]:
    unpacker = Unpacker(path, contain=False)
    yield b""
    try:
        try:
            while data := os.read(source, CHUNK_BYTES):
                unpacker.feed(data)
            unpacker.finish()
        finally:
            unpacker.close()
    finally:
        # The end of the input and the word to stop come together: the one signal there is may have come within `close`.
        unpacker.close()
