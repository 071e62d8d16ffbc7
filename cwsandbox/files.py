"""`sandbox.files`: everything that can be done with the files of a sandbox."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING, TypeVar

from cwsandbox._files.entries import FileEntry, FileEvent, FileEventKind, FileType, entry_from_info
from cwsandbox._files.operations import ListOperation, PlainOperation, QuickOperation
from cwsandbox._files.readers import EntryReader, EventReader, FileReader, list_entries, open_reader, watch_events
from cwsandbox._files.transfer import Download, Progress, SkippedFile, TransferReport, Upload
from cwsandbox._files.whole import ReadFile, WriteFile
from cwsandbox._files.writer import FileWriter
from cwsandbox._validate import check_bytes, check_path
from cwsandbox.exceptions import SandboxFileError

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable, Callable

    from cwsandbox._core import SandboxCore
    from cwsandbox._runtime.operation import OperationRef

T = TypeVar("T")
R = TypeVar("R")

__all__ = [
    "EntryReader",
    "EventReader",
    "FileEntry",
    "FileEvent",
    "FileEventKind",
    "FileReader",
    "FileType",
    "FileWriter",
    "Files",
    "SkippedFile",
    "TransferReport",
]

FilePath = str | os.PathLike[str]

_ABSENT = frozenset({"CWSANDBOX_FILE_NOT_FOUND", "CWSANDBOX_FILE_NOT_A_DIRECTORY"})


class Files:
    """The files of one sandbox, under the names that `anyio.Path` has, where it has one.

    Every method returns at once, with a ref (`.result()` or `await`) or a reader (`for` or `async for`), and starts the
    sandbox if need be. Paths are POSIX paths in the sandbox; relative ones start at its home. Cancelling whoever awaits
    a ref stops the operation, and leaves nothing half done at the target.

    What the sandbox refuses is a `SandboxFileError` with `filepath` (the path as it was given here) and `reason`:
    CWSANDBOX_FILE_NOT_FOUND, _IS_DIRECTORY, _NOT_A_DIRECTORY, _EXISTS, _DIRECTORY_NOT_EMPTY, _PERMISSION_DENIED,
    _IO_FAILED; `metadata["filepath"]` names the very file where a folder was asked for. Trouble with local files is an
    ordinary `OSError`. Every `timeout_seconds` is a limit for the whole operation, from when the sandbox runs; the
    default is the request timeout, infinity has no limit.
    """

    def __init__(self, core: SandboxCore) -> None:
        self._core = core

    def __repr__(self) -> str:
        return f"<Files of {self._core!r}>"

    # Whole files.

    def read_bytes(self, path: FilePath, *, timeout_seconds: float | None = None) -> OperationRef[bytes]:
        """Read a whole file."""
        name, limit = self._checked(path, timeout_seconds)
        return self._core.operate(ReadFile(self._core, name, limit), name="read file")

    def read_text(
        self,
        path: FilePath,
        encoding: str = "utf-8",
        errors: str = "strict",
        *,
        timeout_seconds: float | None = None,
    ) -> OperationRef[str]:
        """Read a whole file as text; newlines stay as they are.

        Raises:
            UnicodeDecodeError: From the ref: it is not text in that encoding.
        """
        name, limit = self._checked(path, timeout_seconds)
        read = ReadFile(self._core, name, limit)
        return self._then(read, lambda data: data.decode(encoding, errors), "read file")

    def write_bytes(self, path: FilePath, data: bytes, *, timeout_seconds: float | None = None) -> OperationRef[int]:
        """Write a whole file, atomically; missing parent folders are made, and the mode of a replaced file is kept.

        Returns:
            A ref to the number of bytes.

        Raises:
            TypeError: `data` is not bytes-like.
        """
        name, limit = self._checked(path, timeout_seconds)
        content = check_bytes(data, "data")
        return self._then(WriteFile(self._core, name, content, limit), lambda _: len(content), "write file")

    def write_text(
        self,
        path: FilePath,
        data: str,
        encoding: str = "utf-8",
        errors: str = "strict",
        *,
        timeout_seconds: float | None = None,
    ) -> OperationRef[int]:
        """Write text, as `write_bytes` writes bytes; newlines stay as they are.

        Returns:
            A ref to the number of characters.

        Raises:
            TypeError: `data` is not a str.
            UnicodeEncodeError: It cannot be written in that encoding.
        """
        if not isinstance(data, str):
            raise TypeError(f"data must be a str, not {type(data).__name__}; write_bytes() takes bytes")
        name, limit = self._checked(path, timeout_seconds)
        content = data.encode(encoding, errors)
        return self._then(WriteFile(self._core, name, content, limit), lambda _: len(data), "write file")

    # Piece by piece.

    def open_read(self, path: FilePath, *, timeout_seconds: float | None = None) -> FileReader:
        """Read a file piece by piece, at the pace of the reader.

        Returns:
            A reader of bytes to iterate with `for` or `async for`; errors come from it. As a context manager it is
            closed by leaving, and entering it raises at once what is wrong with the file.
        """
        return open_reader(self._core, *self._checked(path, timeout_seconds))

    def open_write(self, path: FilePath, *, timeout_seconds: float | None = None) -> FileWriter:
        """Write a file piece by piece. It appears at once and complete when the writer is closed."""
        return FileWriter(self._core, *self._checked(path, timeout_seconds))

    # What is there.

    def stat(
        self, path: FilePath, *, follow_symlinks: bool = True, timeout_seconds: float | None = None
    ) -> OperationRef[FileEntry]:
        """What a path is; of a symlink, what it leads to, unless told otherwise."""
        name, limit = self._checked(path, timeout_seconds)
        operation = QuickOperation(self._core, "stat", name, limit, follow=follow_symlinks)
        return self._then(operation, lambda info: entry_from_info(name, info), "stat")

    def exists(self, path: FilePath, *, timeout_seconds: float | None = None) -> OperationRef[bool]:
        """Whether the path leads to something."""
        return self._test(path, timeout_seconds, lambda _: True)

    def is_file(self, path: FilePath, *, timeout_seconds: float | None = None) -> OperationRef[bool]:
        """Whether the path leads to a regular file."""
        return self._test(path, timeout_seconds, lambda entry: entry.is_file)

    def is_dir(self, path: FilePath, *, timeout_seconds: float | None = None) -> OperationRef[bool]:
        """Whether the path leads to a folder."""
        return self._test(path, timeout_seconds, lambda entry: entry.is_dir)

    def iterdir(self, path: FilePath, *, timeout_seconds: float | None = None) -> EntryReader:
        """The entries of a folder, in no order, as they are found: one with 100,000 costs no more memory than a few.

        Returns:
            A reader to iterate with `for` or `async for`; errors come from it.
        """
        name, limit = self._checked(path, timeout_seconds)
        return list_entries(self._core, name, None, limit)

    def list(self, path: FilePath, *, timeout_seconds: float | None = None) -> OperationRef[builtins.list[FileEntry]]:
        """The entries of a folder, sorted by name; all at once, so `iterdir` is for large ones."""
        name, limit = self._checked(path, timeout_seconds)
        return self._core.operate(ListOperation(self._core, name, limit), name="list folder")

    def glob(self, path: FilePath, pattern: str, *, timeout_seconds: float | None = None) -> EntryReader:
        """What is in and below a folder and matches shell wildcards; `**` stands for any number of folders.

        Returns:
            A reader, as that of `iterdir`.

        Raises:
            ValueError: `pattern` is empty or absolute.
        """
        if not pattern or pattern.startswith("/") or "\0" in pattern:
            raise ValueError(f"pattern must be relative to the folder, such as '**/*.py', not {pattern!r}")
        name, limit = self._checked(path, timeout_seconds)
        return list_entries(self._core, name, pattern, limit)

    def watch(self, path: FilePath, *, recursive: bool = False, timeout_seconds: float | None = None) -> EventReader:
        """Changes of what is in a folder, or of a file, as the kernel tells them.

        Args:
            path: What to watch; the events end when it is gone.
            recursive: Folders below it, too, those that are made later included.
            timeout_seconds: When to end; the default is never.

        Returns:
            A reader of `FileEvent`s. Enter it (`with`, `async with`) before making the changes to be seen: the watch is
            in place then. If more happens than anybody reads, one OVERFLOW says so.
        """
        name = check_path(path)
        limit = None if timeout_seconds is None else self._core.limit(timeout_seconds)
        return watch_events(self._core, name, recursive, limit)

    # Changing what is there.

    def mkdir(
        self,
        path: FilePath,
        *,
        parents: bool = False,
        exist_ok: bool = False,
        timeout_seconds: float | None = None,
    ) -> OperationRef[None]:
        """Make a folder.

        Args:
            path: The folder.
            parents: Make missing parents, too.
            exist_ok: A folder that is there already is fine.
            timeout_seconds: Limit for the operation.
        """
        return self._quick("mkdir", path, timeout_seconds, parents=parents, exist_ok=exist_ok)

    def rmdir(self, path: FilePath, *, timeout_seconds: float | None = None) -> OperationRef[None]:
        """Remove an empty folder."""
        return self._quick("rmdir", path, timeout_seconds)

    def remove(
        self, path: FilePath, *, recursive: bool = False, timeout_seconds: float | None = None
    ) -> OperationRef[None]:
        """Remove a file or a symlink.

        Args:
            path: What to remove; a symlink goes, what it leads to stays.
            recursive: Remove a folder, too, with all that is in it.
            timeout_seconds: Limit for the operation.
        """
        if not recursive:
            return self._quick("unlink", path, timeout_seconds)
        name, limit = self._checked(path, timeout_seconds)
        return self._core.operate(PlainOperation(self._core, "remove", name, limit), name="remove")

    unlink = remove

    def move(self, source: FilePath, target: FilePath, *, timeout_seconds: float | None = None) -> OperationRef[None]:
        """Give a file or folder another path. A file that is there is replaced; so is a folder, if it is empty.

        At once within a file system; from one to another it is a copy, which appears at once, and a removal.
        """
        name, limit = self._checked(source, timeout_seconds)
        operation = PlainOperation(self._core, "move", name, limit, target=check_path(target))
        return self._core.operate(operation, name="move")

    rename = move

    # Between here and there.

    def upload(
        self,
        local: FilePath,
        remote: FilePath,
        *,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> OperationRef[TransferReport]:
        """Copy a local file or folder into the sandbox, with modes, times and symlinks.

        A folder that is new appears at once and complete; into one that exists, files are put one by one, each
        atomically.

        Args:
            local: What to copy.
            remote: What it becomes; with a slash at the end, the folder that it is put into under its own name.
            progress: Called with bytes done and bytes in all, on the event loop that transfers; must be quick.
            timeout_seconds: Limit for the transfer.

        Raises:
            OSError: From the ref: something here cannot be read.
        """
        source, limit = os.path.abspath(check_path(local, "local")), self._core.limit(timeout_seconds)
        target = _into(check_path(remote), os.path.basename(source))
        return self._core.operate(Upload(self._core, source, target, progress, limit), name="upload")

    def download(
        self,
        remote: FilePath,
        local: FilePath,
        *,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> OperationRef[TransferReport]:
        """Copy a file or folder of the sandbox to here, as `upload` does in the other direction.

        Nothing outside of `local` is touched, whatever the sandbox sends: symlinks that could lead out are left out and
        named in the report, existing ones are not followed, and nobody else may write what comes (modes lose 0o022).

        Raises:
            OSError: From the ref: something here cannot be written.
        """
        name, limit = self._checked(remote, timeout_seconds)
        target = os.path.abspath(_into(check_path(local, "local"), posixpath.basename(name.rstrip("/"))))
        return self._core.operate(Download(self._core, name, target, progress, limit), name="download")

    # For the above.

    def _checked(self, path: FilePath, timeout_seconds: float | None) -> tuple[str, float | None]:
        return check_path(path), self._core.limit(timeout_seconds)

    def _then(self, operation: Callable[[], Awaitable[T]], convert: Callable[[T], R], name: str) -> OperationRef[R]:
        async def run() -> R:
            return convert(await operation())

        return self._core.operate(run, name=name)

    def _quick(self, action: str, path: FilePath, timeout_seconds: float | None, **options: bool) -> OperationRef[None]:
        name, limit = self._checked(path, timeout_seconds)
        return self._then(QuickOperation(self._core, action, name, limit, **options), lambda _: None, action)

    def _test(
        self, path: FilePath, timeout_seconds: float | None, test: Callable[[FileEntry], bool]
    ) -> OperationRef[bool]:
        name, limit = self._checked(path, timeout_seconds)

        async def run() -> bool:
            try:
                info = await QuickOperation(self._core, "stat", name, limit)()
            except SandboxFileError as error:
                if error.reason in _ABSENT:
                    return False
                raise
            return test(entry_from_info(name, info))

        return self._core.operate(run, name="stat")


def _into(target: str, name: str) -> str:
    """The target itself, or what `name` is called in the folder that it is."""
    return f"{target}{name}" if target.endswith("/") else target
