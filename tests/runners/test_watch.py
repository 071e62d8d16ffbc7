"""What the agent's watcher makes of the kernel's events, when they are read late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cwsandbox.runners.local.watch import _Watcher

if TYPE_CHECKING:
    from pathlib import Path


def test_what_happens_in_a_folder_that_was_moved_away_is_not_told(tmp_path: Path) -> None:
    top, away = tmp_path / "top", tmp_path / "away"
    (top / "a" / "b").mkdir(parents=True)
    watcher = _Watcher(str(top), recursive=True)
    try:
        (top / "a").rename(away)
        (away / "b" / "unseen").touch()
        (top / "last").touch()
        events = []
        while ["created", str(top / "last"), False, None] not in events:
            events += watcher.read()
    finally:
        watcher.close()
    assert ["deleted", str(top / "a"), True, None] in events
    assert not [event for event in events if "unseen" in str(event[1])]
