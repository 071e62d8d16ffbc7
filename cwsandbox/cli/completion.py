"""Shell completion: the script that installs it, and the ids that it offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from cwsandbox.session import Session

_SECONDS: Final = 2.0
"""A shell that waits for a completion is a shell that hangs."""


@click.command(short_help="Print the script for shell completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and sandbox ids.

    \b
    bash   echo 'eval "$(cwsandbox completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(cwsandbox completion zsh)"' >> ~/.zshrc
    fish   cwsandbox completion fish > ~/.config/fish/completions/cwsandbox.fish
    """
    from cwsandbox.cli.app import COMPLETION_VARIABLE, PROGRAM, cli

    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, PROGRAM, COMPLETION_VARIABLE)
    # Not source(): for bash that starts one, to complain of versions before 4.4.
    click.echo(script.source_template % script.source_vars())


def complete_sandbox_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The sandboxes that have not ended; none where no gateway runs, as completing must not start one."""
    from cwsandbox.cli.embedded import embedded_is_absent
    from cwsandbox.cli.running import run_in_session

    try:
        found = [] if embedded_is_absent() else run_in_session(_list)
    except Exception:
        # An error message has no place in the middle of somebody's command line.
        return []
    return [
        CompletionItem(sandbox_id, help=status)
        for sandbox_id, status in found
        if sandbox_id.startswith(incomplete) and sandbox_id.isprintable()
    ]


async def _list(session: Session) -> list[tuple[str, str]]:
    import anyio

    with anyio.move_on_after(_SECONDS):
        return [(str(sandbox.sandbox_id), str(sandbox.status)) for sandbox in await session.list()]
    return []
