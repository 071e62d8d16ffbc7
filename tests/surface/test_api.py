"""The public surface is what is recorded: a change of a name, a parameter or an annotation is a change of `api.txt`."""

from __future__ import annotations

from tests.support.api import RECORDED, surface


def test_the_surface_is_the_recorded_one() -> None:
    """`python -m tests.support.api` records it anew; the difference belongs into the change that makes it."""
    assert surface().splitlines() == RECORDED.read_text().splitlines()
