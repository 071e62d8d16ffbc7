"""Query parameters, read strictly: what is not known, given twice, or malformed is refused with its name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cwsandbox.gateway.errors import invalid

if TYPE_CHECKING:
    from starlette.datastructures import QueryParams


class Query:
    """The parameters of one request.

    Args:
        params: As parsed.
        known: The names that the route takes.

    Raises:
        StatusError: INVALID_ARGUMENT for any other name.
    """

    def __init__(self, params: QueryParams, *known: str) -> None:
        unknown = set(params) - set(known)
        if unknown:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise invalid(f"unknown query parameter {min(unknown)!r}; {takes}")
        self._params = params

    def texts(self, name: str) -> tuple[str, ...]:
        """All values of a repeated parameter.

        An empty one is one that nothing matches, or only what is named so: leaving it out would make a filter whose
        value somebody forgot match everything.
        """
        return tuple(self._params.getlist(name))

    def text(self, name: str) -> str:
        """The value, "" if there is none."""
        values = self._params.getlist(name)
        if len(values) > 1:
            raise invalid(f"{name} is given {len(values)} times")
        return values[0] if values else ""

    def number(self, name: str, *, default: float, most: float) -> float:
        """A number from 0 on; a larger one than `most` counts as `most`."""
        text = self.text(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not value >= 0:
            raise invalid(f"{name} must be a number that is not negative")
        return min(value, most)

    def flag(self, name: str) -> bool:
        """`true` or `false`, false if absent."""
        text = self.text(name)
        if text not in {"", "true", "false"}:
            raise invalid(f"{name} must be true or false")
        return text == "true"
