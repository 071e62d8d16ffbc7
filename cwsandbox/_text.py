"""Values in messages and reprs, at a length that a log can bear."""

from __future__ import annotations

__all__ = ["short_repr"]

_CHARACTERS = 200


def short_repr(value: object) -> str:
    """`repr(value)`, cut after 200 characters; then it says how long it was."""
    text = repr(value)
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}... ({len(text)} characters)"
