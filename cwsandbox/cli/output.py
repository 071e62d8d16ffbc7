"""What the commands print: tables, JSON, messages.

Names, ids and messages may come from a sandbox or from whoever tagged it. On a terminal they must not do more than be
read, so tables and messages show what is not printable as escapes. JSON escapes by itself.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cwsandbox.sandbox import Sandbox

MISSING = "-"


def printable(text: object) -> str:
    """`text` with everything that is not printable, such as terminal escapes and bidi controls, as `\\x1b`."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def error_line(problem: BaseException) -> str:
    """The message of a failure; its line breaks stay, the number of an `OSError` does not."""
    text = str(problem)
    if isinstance(problem, OSError) and problem.strerror:
        text = problem.strerror if problem.filename is None else f"{problem.filename}: {problem.strerror}"
    text = "\n".join(printable(line) for line in text.split("\n"))
    return f"Error: {text or type(problem).__name__}"


def print_json(value: Any) -> None:
    """Print a document."""
    click.echo(json.dumps(value, indent=2, default=_time_text))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns as wide as their content, under headings and dashes. Nothing is cut: output is piped, too."""
    cells = [[MISSING if value in {None, ""} else printable(value) for value in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(headings, *cells, strict=True)]
    for row in (headings, ["-" * width for width in widths], *cells):
        padded = (text + " " * (width - _width(text)) for text, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print labels and values, one pair a line."""
    pairs = [(label + ":", MISSING if value in {None, ""} else printable(value)) for label, value in fields]
    width = max(len(label) for label, _ in pairs)
    for label, value in pairs:
        click.echo(f"{label:<{width}}  {value}")


def shown_time(moment: datetime | None) -> str:
    """A time (aware, UTC) as tables show it."""
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment is not None else MISSING


def sandbox_summary(sandbox: Sandbox) -> dict[str, Any]:
    """A sandbox as `ls -o json` has it."""
    return {
        "sandbox_id": sandbox.sandbox_id,
        "status": str(sandbox.status) if sandbox.status is not None else None,
        "runner_id": sandbox.runner_id,
        "profile_id": sandbox.profile_id,
        "runner_group_id": sandbox.runner_group_id,
        "started_at": sandbox.started_at.isoformat() if sandbox.started_at is not None else None,
    }


def sandbox_details(sandbox: Sandbox) -> dict[str, Any]:
    """A sandbox as `get -o json` has it."""
    return {
        **sandbox_summary(sandbox),
        "returncode": sandbox.returncode,
        "isolation": sandbox.isolation,
        "service_address": sandbox.service_address,
        "exposed_ports": [{"container_port": port, "name": name} for port, name in sandbox.exposed_ports or ()],
        "ingress_mode": sandbox.applied_ingress_mode,
        "egress_mode": sandbox.applied_egress_mode,
        "resource_requests": sandbox.resource_requests,
        "resource_limits": sandbox.resource_limits,
        "resource_gpu": sandbox.resource_gpu,
        "limit_holds": sandbox.limit_holds,
        "tags": list(sandbox.tags),
        "annotations": sandbox.annotations,
    }


def _time_text(value: object) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} has no JSON form here")
    return value.isoformat()


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
