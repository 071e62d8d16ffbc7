"""`logs`: what a sandbox's main command printed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from cwsandbox.cli.parameters import output_option, sandbox_argument
from cwsandbox.cli.running import Interrupted, run_in_session
from cwsandbox.status import SandboxStatus

if TYPE_CHECKING:
    from cwsandbox.session import Session

_CTRL_C: Final = 130


class _Moment(click.ParamType):  # type: ignore[type-arg]
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-04-30 or 2026-04-30T12:00:00", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@click.command(short_help="Print what a sandbox's main command printed.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the sandbox ends.")
@click.option("--tail", metavar="N", type=click.IntRange(min=0), help="The last N lines only; 0 for all.")
@click.option(
    "--since", metavar="TIME", type=_Moment(), help="Nothing older: a date or date and time, UTC unless it says."
)
@click.option("-t", "--timestamps", is_flag=True, help="Begin every line with its time.")
@output_option
@sandbox_argument
def logs(sandbox_id: str, follow: bool, tail: int | None, since: datetime | None, timestamps: bool, output: str) -> int:
    """Print what the main command of a sandbox printed (not what `exec` ran), ended sandboxes included.

    With `-o json` there is one object a line, with `time` and `line`. Ctrl-C ends following; the sandbox goes on.
    """
    as_json = output == "json"

    async def run(session: Session) -> int:
        from cwsandbox.cli.streams import STDOUT, Output

        sandbox = await session.from_id(sandbox_id, adopt=False)
        # One that has ended has all of its log: there is nothing to follow, and no reason to refuse. The SDK refuses to
        # follow one that is about to, too.
        ended = sandbox.status is SandboxStatus.TERMINATING or (sandbox.status and sandbox.status.is_terminal)
        reader = sandbox.stream_logs(
            follow=follow and not ended, tail_lines=tail, since_time=since, timestamps=timestamps or as_json
        )
        stdout = Output(STDOUT)
        async for line in reader:
            await stdout.write((_object(line) if as_json else line).encode())
        return 0

    try:
        return run_in_session(run)
    except Interrupted as interruption:
        if interruption.status == _CTRL_C:
            interruption.status = 0  # The way to end following.
        raise


def _object(line: str) -> str:
    time, _, text = line.rstrip("\n").partition(" ")
    return json.dumps({"time": time, "line": text}) + "\n"
