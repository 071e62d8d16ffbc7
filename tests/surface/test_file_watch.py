"""`sandbox.files.watch`: changes as they happen, and what cannot be told is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox import Sandbox, SandboxFileError
from cwsandbox.files import EventReader, FileEvent, FileEventKind

if TYPE_CHECKING:
    from collections.abc import Callable


def run(sb: Sandbox, script: str) -> None:
    sb.exec(["sh", "-ec", script], check=True).result()


def until(events: EventReader, wanted: Callable[[FileEvent], bool]) -> list[FileEvent]:
    seen = []
    for event in events:
        seen.append(event)
        if wanted(event):
            return seen
    raise AssertionError(f"the events ended: {seen}")


def test_changes_of_a_folder(sb: Sandbox) -> None:
    run(sb, "mkdir /srv/sub; touch /srv/old")
    with sb.files.watch("/srv") as events:
        run(
            sb, "cd /srv; echo x > new; echo y >> old; mv old moved; rm new; mkdir d; touch sub/unseen; touch /srv/last"
        )
        seen = until(events, lambda event: event.path == "/srv/last")
    assert seen == [
        FileEvent(FileEventKind.CREATED, "/srv/new"),
        FileEvent(FileEventKind.MODIFIED, "/srv/new"),
        FileEvent(FileEventKind.MODIFIED, "/srv/old"),
        FileEvent(FileEventKind.MOVED, "/srv/old", target="/srv/moved"),
        FileEvent(FileEventKind.DELETED, "/srv/new"),
        FileEvent(FileEventKind.CREATED, "/srv/d", is_dir=True),
        FileEvent(FileEventKind.CREATED, "/srv/last"),
    ]


async def test_changes_of_a_folder_async(asb: Sandbox) -> None:
    async with asb.files.watch("/srv") as events:
        await asb.files.write_text("/srv/f", "x")
        kinds = []
        with anyio.fail_after(30):
            async for event in events:
                kinds.append(event.kind)
                if event.kind is FileEventKind.MOVED:
                    break
    # A write is a file with a temporary name that gets its own at the end.
    assert kinds[0] is FileEventKind.CREATED


def test_folders_below_and_those_that_are_made_later(sb: Sandbox) -> None:
    run(sb, "mkdir -p /srv/a/b")
    with sb.files.watch("/srv", recursive=True) as events:
        run(sb, "touch /srv/a/b/f")
        until(events, lambda event: event.path == "/srv/a/b/f")
        run(sb, "mkdir -p /srv/n/m; touch /srv/n/m/f")
        until(events, lambda event: event.path == "/srv/n/m/f")
        run(sb, "mv /srv/n /srv/a/n")
        until(events, lambda event: event == FileEvent(FileEventKind.MOVED, "/srv/n", True, "/srv/a/n"))
        run(sb, "touch /srv/a/n/m/g")
        until(events, lambda event: event.path == "/srv/a/n/m/g")
        run(sb, "mv /srv/a /tmp/a; touch /tmp/a/b/unseen; touch /srv/last")
        seen = until(events, lambda event: event.path == "/srv/last")
    assert FileEvent(FileEventKind.DELETED, "/srv/a", is_dir=True) in seen
    assert not [event for event in seen if "unseen" in event.path]


def test_a_file_can_be_watched_and_the_end_of_it_is_the_end(sb: Sandbox) -> None:
    run(sb, "touch /srv/f")
    with sb.files.watch("/srv/f") as events:
        run(sb, "echo x >> /srv/f; rm /srv/f")
        seen = list(events)
    assert [event.kind for event in seen] == [FileEventKind.MODIFIED, FileEventKind.DELETED]
    assert {event.path for event in seen} == {"/srv/f"}


def test_the_end_of_a_folder_is_the_end(sb: Sandbox) -> None:
    run(sb, "mkdir /srv/d")
    with sb.files.watch("/srv/d") as events:
        run(sb, "rmdir /srv/d")
        assert [event.kind for event in events] == [FileEventKind.DELETED]


def test_what_is_not_there_cannot_be_watched(sb: Sandbox) -> None:
    with pytest.raises(SandboxFileError) as caught, sb.files.watch("/srv/none"):
        pass
    assert caught.value.reason == "CWSANDBOX_FILE_NOT_FOUND"


async def test_entering_can_be_cancelled(asb: Sandbox) -> None:
    with anyio.move_on_after(0) as scope:
        async with asb.files.watch("/srv"):
            pass
    assert scope.cancelled_caught
    async with asb.files.watch("/srv") as events:
        with anyio.move_on_after(0.05):
            async for _ in events:
                pass


def test_more_than_can_be_noted_is_said(sb: Sandbox) -> None:
    with sb.files.watch("/srv") as events:
        run(
            sb,
            'cd /srv; python3 -c \'import os\nfor n in range(60000): os.close(os.open(f"n{n%7}", 65)), os.unlink(f"n{n%7}")\'',
        )
        seen = until(events, lambda event: event.kind is FileEventKind.OVERFLOW)
        assert seen[-1].path == "/srv"
        run(sb, "touch /srv/after")
        until(events, lambda event: event.path == "/srv/after")


def test_closing_ends_it(sb: Sandbox) -> None:
    events = sb.files.watch("/srv")
    events.close()
    assert list(events) == []
