"""Reading a list that comes in pages, to its end but not for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from cwsandbox.exceptions import CWSandboxError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    Params = Sequence[tuple[str, str]]

T = TypeVar("T")

MOST_PAGES = 100
"""Of the published client."""


async def read_pages(fetch: Callable[[Params], Awaitable[tuple[Sequence[T], str]]]) -> list[T]:
    """Read all pages. The time that this may take is the caller's to bound.

    Args:
        fetch: Reads the page that follows the query parameters it is given; returns its items and the next token.

    Raises:
        CWSandboxError: The server repeats a page token, or has more than 100 pages.
    """
    found: list[T] = []
    seen: set[str] = set()
    token: Params = ()
    for _ in range(MOST_PAGES):
        items, following = await fetch(token)
        found += items
        if not following:
            return found
        if following in seen:
            raise CWSandboxError(f"the gateway's list goes round in a circle: the page token {following!r} came twice")
        seen.add(following)
        token = (("pageToken", following),)
    raise CWSandboxError(f"the gateway's list has more than {MOST_PAGES} pages; narrow it down with filters")
