"""`files`: the file operations of a sandbox, one command each."""

from __future__ import annotations

import json
import os
import stat as modes
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cwsandbox.cli.output import print_fields, print_json, print_table, printable, shown_time
from cwsandbox.cli.parameters import output_option, quiet_option, sandbox_argument, timeout_option
from cwsandbox.cli.running import run_in_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from typing import TypeVar

    from cwsandbox.files import FileEntry, FileEvent, Files
    from cwsandbox.session import Session

    T = TypeVar("T")

_path_argument = click.argument("path")
_timeout_option = timeout_option("Give up after this long (default 5m; inf for no limit).")


@click.group
def files() -> None:
    """Read, write, list and change the files of a sandbox; `cp` copies folders.

    Relative paths start at the sandbox's home.
    """


def _in_sandbox(sandbox_id: str, operation: Callable[[Files], Awaitable[T]]) -> T:
    async def run(session: Session) -> T:
        return await operation((await session.from_id(sandbox_id, adopt=False)).files)

    return run_in_session(run)


@files.command
@sandbox_argument
@_path_argument
@click.option("-o", "--output", metavar="FILE", help="Write there, once it is complete, instead of to stdout.")
@_timeout_option
def read(sandbox_id: str, path: str, output: str | None, timeout: float | None) -> None:
    """Print a file of a sandbox, byte for byte."""

    async def to_stdout(sandbox_files: Files) -> None:
        from cwsandbox.cli.streams import STDOUT, Output

        stdout = Output(STDOUT)
        async with sandbox_files.open_read(path, timeout_seconds=timeout) as reader:
            async for data in reader:
                await stdout.write(data)

    async def to_file(sandbox_files: Files) -> None:
        import anyio

        from cwsandbox.cli.progress import transferring

        entry = await sandbox_files.stat(path, timeout_seconds=timeout)
        done = 0
        with _replacing(str(output)) as file, transferring(path) as progress:
            async with sandbox_files.open_read(path, timeout_seconds=timeout) as reader:
                async for data in reader:
                    await anyio.to_thread.run_sync(file.write, data)
                    done += len(data)
                    progress(done, entry.size)

    _in_sandbox(sandbox_id, to_file if output is not None else to_stdout)


@files.command
@sandbox_argument
@click.argument("remote")
@click.argument("local", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@_timeout_option
@quiet_option
@output_option
def write(sandbox_id: str, remote: str, local: str, timeout: float | None, quiet: bool, output: str) -> None:
    """Write a file of a sandbox from the file LOCAL, or from stdin if that is -.

    It appears at once and complete; missing folders are made.
    """

    async def store(sandbox_files: Files, descriptor: int) -> int:
        from cwsandbox.cli.progress import transferring
        from cwsandbox.cli.streams import read_input

        size = os.fstat(descriptor).st_size or None
        done = 0
        with transferring(remote) as progress:
            async with sandbox_files.open_write(remote, timeout_seconds=timeout) as writer:
                async for data in read_input(descriptor):
                    await writer.write(data)
                    done += len(data)
                    progress(done, size)
        return done

    with open(0 if local == "-" else local, "rb", closefd=local != "-", buffering=0) as source:
        count = _in_sandbox(sandbox_id, lambda sandbox_files: store(sandbox_files, source.fileno()))
    if output == "json":
        print_json({"path": remote, "bytes": count})
    elif not quiet:
        click.echo(f"Wrote {count} bytes to {printable(remote)}.")


@files.command("ls")
@sandbox_argument
@click.argument("path", default=".")
@click.option("--glob", metavar="PATTERN", help="What matches, in and below PATH; ** is any number of folders.")
@_timeout_option
@output_option
def list_(sandbox_id: str, path: str, glob: str | None, timeout: float | None, output: str) -> None:
    """List a folder of a sandbox (default: its home)."""

    async def find(sandbox_files: Files) -> list[FileEntry]:
        if glob is None:
            return await sandbox_files.list(path, timeout_seconds=timeout)
        found = [entry async for entry in sandbox_files.glob(path, glob, timeout_seconds=timeout)]
        return sorted(found, key=lambda entry: entry.path)

    entries = _in_sandbox(sandbox_id, find)
    if output == "json":
        print_json([_described(entry) for entry in entries])
    elif entries:
        rows = [
            (_mode(entry), entry.size, shown_time(_changed(entry)), entry.name if glob is None else entry.path)
            for entry in entries
        ]
        print_table(("MODE", "SIZE", "CHANGED", "NAME"), rows)


@files.command
@sandbox_argument
@_path_argument
@_timeout_option
@output_option
def stat(sandbox_id: str, path: str, timeout: float | None, output: str) -> None:
    """Say what a path is; of a symlink, what it leads to."""
    entry = _in_sandbox(sandbox_id, lambda sandbox_files: sandbox_files.stat(path, timeout_seconds=timeout))
    if output == "json":
        print_json(_described(entry))
    else:
        print_fields(
            (
                ("Path", entry.path),
                ("Type", entry.type),
                ("Mode", _mode(entry)),
                ("Size", entry.size),
                ("Changed", shown_time(_changed(entry))),
            )
        )


@files.command
@sandbox_argument
@_path_argument
@click.option("-p", "--parents", is_flag=True, help="Make missing parents too, and accept a folder that is there.")
@_timeout_option
@output_option
def mkdir(sandbox_id: str, path: str, parents: bool, timeout: float | None, output: str) -> None:
    """Make a folder."""
    _in_sandbox(
        sandbox_id,
        lambda sandbox_files: sandbox_files.mkdir(path, parents=parents, exist_ok=parents, timeout_seconds=timeout),
    )
    if output == "json":
        print_json({"path": path})


@files.command
@sandbox_argument
@_path_argument
@click.option("-r", "--recursive", is_flag=True, help="A folder too, with all that is in it.")
@_timeout_option
@output_option
def rm(sandbox_id: str, path: str, recursive: bool, timeout: float | None, output: str) -> None:
    """Remove a file or a symlink."""
    _in_sandbox(
        sandbox_id, lambda sandbox_files: sandbox_files.remove(path, recursive=recursive, timeout_seconds=timeout)
    )
    if output == "json":
        print_json({"path": path})


@files.command
@sandbox_argument
@click.argument("source")
@click.argument("target")
@_timeout_option
@output_option
def mv(sandbox_id: str, source: str, target: str, timeout: float | None, output: str) -> None:
    """Give a file or folder another path; a file that is there is replaced."""
    _in_sandbox(sandbox_id, lambda sandbox_files: sandbox_files.move(source, target, timeout_seconds=timeout))
    if output == "json":
        print_json({"path": target})


@files.command
@sandbox_argument
@_path_argument
@click.option("-r", "--recursive", is_flag=True, help="Folders below it too.")
@output_option
def watch(sandbox_id: str, path: str, recursive: bool, output: str) -> None:
    """Print the changes of what is in a folder, or of a file, as they happen, until it is gone or Ctrl-C.

    With `-o json` there is one object a line.
    """

    async def follow(sandbox_files: Files) -> None:
        from cwsandbox.cli.streams import STDOUT, Output

        stdout = Output(STDOUT)
        async with sandbox_files.watch(path, recursive=recursive) as events:
            async for event in events:
                await stdout.write(_shown_event(event, output).encode())

    _in_sandbox(sandbox_id, follow)


def _shown_event(event: FileEvent, output: str) -> str:
    if output == "json":
        fields = {"kind": str(event.kind), "path": event.path, "is_dir": event.is_dir, "target": event.target}
        return json.dumps(fields) + "\n"
    target = f" -> {printable(event.target)}" if event.target is not None else ""
    return f"{event.kind} {printable(event.path)}{target}\n"


def _described(entry: FileEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": entry.path,
        "type": str(entry.type),
        "size": entry.size,
        "mode": f"{entry.mode:04o}",
        "changed_at": _changed(entry),
    }


def _mode(entry: FileEntry) -> str:
    kinds = {"file": modes.S_IFREG, "directory": modes.S_IFDIR, "symlink": modes.S_IFLNK}
    return modes.filemode(kinds.get(entry.type, 0) | entry.mode)


def _changed(entry: FileEntry) -> datetime | None:
    try:
        return datetime.fromtimestamp(entry.mtime, UTC)
    except (OverflowError, ValueError, OSError):
        return None  # A sandbox may give its files any time, years beyond 9999 included.


@contextmanager
def _replacing(path: str) -> Iterator[Any]:
    """A file to write that takes the place of `path` when it is complete; a device or a pipe is written to as it is."""
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as file:
            yield file
        return
    path = os.path.realpath(path)  # A link stays one.
    try:
        draft = tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False)  # noqa: SIM115 - just below
    except OSError as error:
        error.filename = path
        raise
    with draft as file:
        try:
            yield file
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
