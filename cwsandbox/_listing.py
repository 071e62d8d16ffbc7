"""How sandboxes are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from cwsandbox._validate import check_strings
from cwsandbox.status import SandboxStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cwsandbox._core import SandboxCore
    from cwsandbox.wire.resources import Sandbox as Record

__all__ = ["ListQuery", "with_terminated"]


@frozen
class ListQuery:
    """What `Sandbox.list` was asked for, unchecked: mistakes are raised from its ref."""

    tags: Sequence[str] | None
    status: SandboxStatus | str | None
    profile_ids: Sequence[str] | None
    runner_ids: Sequence[str] | None
    include_stopped: bool

    async def run(self, finder: SandboxCore) -> list[Record]:
        """The records that match.

        Raises:
            ValueError: `status` is no status.
            TypeError: A str where a list of strings is wanted.
        """
        from cwsandbox.wire.resources import State

        wanted = _status(self.status)
        tags, profiles, runners = (
            check_strings(getattr(self, name), name) or () for name in ("tags", "profile_ids", "runner_ids")
        )
        client = await finder.client()
        return await client.api.list(
            tags=tags,
            state=None if wanted is None else State[wanted.name],
            show_terminated=self.include_stopped,
            runner_ids=runners,
            profile_ids=profiles,
            timeout=finder.timeout,
        )


def _status(value: SandboxStatus | str | None) -> SandboxStatus | None:
    if value is None or isinstance(value, SandboxStatus):
        return value
    if value not in list(SandboxStatus):
        raise ValueError(f"status must be one of {', '.join(SandboxStatus)}, not {value!r}")
    return SandboxStatus(value)


def with_terminated(include_stopped: bool, show_terminated: bool | None) -> bool:
    """Whether ended sandboxes are wanted: two names of one setting, the published one and its later name.

    Raises:
        TypeError: They contradict each other.
    """
    if include_stopped and show_terminated is False:
        raise TypeError("include_stopped=True and show_terminated=False contradict each other; they mean the same")
    return bool(include_stopped or show_terminated)
