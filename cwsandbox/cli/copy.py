"""`cp`: files and folders between here and a sandbox."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from cwsandbox.cli.completion import complete_sandbox_ids
from cwsandbox.cli.output import print_json, printable
from cwsandbox.cli.parameters import output_option, quiet_option, timeout_option
from cwsandbox.cli.running import run_in_session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from cwsandbox.files import Files, TransferReport
    from cwsandbox.session import Session


@frozen
class Place:
    """Where files are.

    Attributes:
        sandbox_id: The sandbox; "" is here.
        path: The path there.
    """

    sandbox_id: str
    path: str

    @classmethod
    def read(cls, text: str) -> Place:
        """`ID:PATH`, with a colon before any slash, is in a sandbox; everything else is here."""
        head, colon, path = text.partition(":")
        if not colon or "/" in head or not head:
            return cls("", text)
        return cls(head, path or ".")


def _complete_place(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    ids = complete_sandbox_ids(ctx, param, incomplete) if "/" not in incomplete and ":" not in incomplete else []
    for item in ids:
        item.value += ":"
    return [*ids, CompletionItem(incomplete, type="file")]


@click.command(short_help="Copy files and folders into and out of a sandbox.")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True, shell_complete=_complete_place)
@click.argument("target", shell_complete=_complete_place)
@timeout_option("Give a transfer up after this long (default 5m; inf for no limit).")
@quiet_option
@output_option
def cp(sources: tuple[str, ...], target: str, timeout: float | None, quiet: bool, output: str) -> None:
    """Copy files and folders into and out of a sandbox, with modes, times and symlinks.

    A place in a sandbox is ID:PATH; a relative PATH starts at the sandbox's home. A local file with a colon in its name
    is written ./a:b. Into a folder that exists, things are put under their own names.

    \b
    cwsandbox cp train.py data ID:/srv/
    cwsandbox cp ID:results.json .
    cwsandbox cp ID:/srv/out ./out
    """
    places, to = [Place.read(source) for source in sources], Place.read(target)
    ids = {place.sandbox_id for place in places}
    if len(ids) > 1 or bool(to.sandbox_id) == bool(*ids):
        raise click.UsageError("the sources must all be in one sandbox (ID:PATH) and the target here, or the reverse")
    if not to.sandbox_id and os.path.exists(to.path) and not (os.path.isfile(to.path) or os.path.isdir(to.path)):
        raise click.UsageError(f"{to.path!r} is no file to replace; `cwsandbox files read -o` writes to it as it is")
    for place in places:
        if to.sandbox_id and not os.path.lexists(place.path):
            raise click.UsageError(f"{place.path!r} does not exist here (a place in a sandbox is ID:PATH)")
        if place.sandbox_id and posixpath.basename(place.path.rstrip("/")) == "..":
            # Put under its own name it would not be below the target.
            raise click.UsageError(f"{place.path!r} has no name of its own; name the folder")

    async def copy(session: Session) -> list[dict[str, Any]]:
        sandbox = await session.from_id(to.sandbox_id or places[0].sandbox_id, adopt=False)
        into = await _is_folder(sandbox.files, to) or to.path.endswith("/")
        if len(places) > 1 and not into:
            raise click.UsageError(f"{target!r} is not a folder; for several sources it has to be, or to end with /")
        base = to.path.rstrip("/") + "/" if into else to.path
        reports = []
        for place in places:
            name = posixpath.basename(posixpath.normpath(place.path))
            report = await _transfer(sandbox.files, place, base, name, timeout)
            reports.append(_described(place, to, report))
        return reports

    reports = run_in_session(copy)
    if output == "json":
        print_json(reports)
    elif not quiet:
        from cwsandbox.discovery import format_bytes

        files, size = (sum(report[name] for report in reports) for name in ("files", "bytes"))
        click.echo(f"Copied {files} {'file' if files == 1 else 'files'} ({format_bytes(size)}) to {printable(target)}.")


async def _is_folder(files: Files, place: Place) -> bool:
    import anyio

    if place.sandbox_id:
        return await files.is_dir(place.path)
    return await anyio.Path(place.path).is_dir()


async def _transfer(files: Files, source: Place, target: str, name: str, timeout: float | None) -> TransferReport:
    from cwsandbox.cli.progress import transferring

    with transferring(name) as progress:
        if source.sandbox_id:
            return await files.download(source.path, target, progress=progress, timeout_seconds=timeout)
        return await files.upload(source.path, target, progress=progress, timeout_seconds=timeout)


def _described(source: Place, target: Place, report: TransferReport) -> dict[str, Any]:
    return {
        "source": _written(source),
        "target": _written(target),
        "files": report.files,
        "bytes": report.bytes,
        "skipped": [{"path": skipped.path, "reason": skipped.why} for skipped in report.skipped],
        "skipped_count": report.skipped_count,
    }


def _written(place: Place) -> str:
    return f"{place.sandbox_id}:{place.path}" if place.sandbox_id else place.path
