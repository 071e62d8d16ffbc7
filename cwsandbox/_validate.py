"""Checks of what a caller passes in: a wrong value fails at the call, by its name, before anything is sent."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import Any, TypeVar, cast

__all__ = [
    "check_bytes",
    "check_command",
    "check_cwd",
    "check_environment",
    "check_id",
    "check_path",
    "check_seconds",
    "check_since_time",
    "check_strings",
    "check_tail_lines",
    "check_terminal_side",
    "check_text",
    "makes_decorators",
    "profiles_of",
]

F = TypeVar("F", bound=Callable[..., Any])


_FOREVER_SECONDS = 2**53
"""From here on a number of seconds is taken as infinite: JSON and the system's clocks know no greater ones."""


def check_command(command: Sequence[str]) -> list[str]:
    """An argument vector as a list of str.

    Raises:
        TypeError: A bare str (it would be split into characters), no list, or an item that is neither str nor
            path-like.
        ValueError: Empty, with a NUL byte, or with half a character.
    """
    if isinstance(command, str | bytes):
        raise TypeError(
            f"command must be a list of arguments, not {type(command).__name__}; "
            f'write ["/bin/sh", "-c", {command!r}] to run a shell line'
        )
    if not _is_list(command):
        raise TypeError(f"command must be a list of arguments, not {type(command).__name__}")
    argv = [_sendable(_text(item, f"command[{index}]"), f"command[{index}]") for index, item in enumerate(command)]
    if not argv:
        raise ValueError("command must not be empty")
    if not argv[0]:
        raise ValueError("command[0], the program, must not be empty")
    return argv


def check_cwd(cwd: str | os.PathLike[str] | None) -> str | None:
    """A working directory in the sandbox: absolute, or None for the sandbox's own.

    Raises:
        TypeError: Neither str nor path-like.
        ValueError: Empty, relative, with a NUL byte, or with half a character.
    """
    if cwd is None:
        return None
    text = _sendable(_text(cwd, "cwd"), "cwd")
    if not text.startswith("/"):
        raise ValueError(f"cwd must be an absolute path in the sandbox, not {text!r}")
    return text


def check_path(path: str | os.PathLike[str], name: str = "filepath") -> str:
    """A path, in the sandbox or here.

    Raises:
        TypeError: Neither str nor path-like.
        ValueError: Empty, with a NUL byte, or neither text nor the name of a file.
    """
    text = _text(path, name)
    if not text:
        raise ValueError(f"{name} must not be empty")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{name} has a lone surrogate that no file's name can have: {text!r}") from None
    return text


def check_id(sandbox_id: str) -> str:
    """The id of a sandbox, whatever it looks like.

    Raises:
        TypeError: Not a str.
        ValueError: Empty, with a NUL byte, or with half a character.
    """
    text = check_text(sandbox_id, "sandbox_id")
    if not text:
        raise ValueError("sandbox_id must not be empty; sandbox.sandbox_id is None until the sandbox was started")
    return text


def check_environment(environment: Mapping[str, str] | None, name: str) -> dict[str, str]:
    """Environment variables as a dict.

    Raises:
        TypeError: Not a mapping of str to str.
        ValueError: An empty name, one with "=", a NUL byte, or half a character. The message never shows a value.
    """
    if environment is None:
        return {}
    if not isinstance(environment, Mapping):
        raise TypeError(f"{name} must be a dict of str to str, not {type(environment).__name__}")
    for key, value in environment.items():
        _text(key, f"a name in {name}")
        if not key or "=" in key:
            raise ValueError(f"{name}: {key!r} cannot be the name of an environment variable")
        if not isinstance(value, str):
            raise TypeError(f"{name}[{key!r}] must be a str, not {type(value).__name__}")
        if "\0" in value:
            raise ValueError(f"{name}[{key!r}] has a NUL byte")
        _sendable(key, f"a name in {name}")
        _sendable(value, f"{name}[{key!r}]")
    return dict(environment)


def check_seconds(value: float | None, name: str, *, positive: bool = False, finite: bool = False) -> float | None:
    """A number of seconds, or None. Infinity means no limit, and is allowed unless `finite` is wanted.

    Raises:
        TypeError: Not a number.
        ValueError: NaN, negative, zero where `positive` is wanted, or infinite where `finite` is.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if value > _FOREVER_SECONDS:
        value = math.inf
    if finite and value == math.inf:
        raise ValueError(f"{name} must be a finite number of seconds")
    if math.isnan(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be {'positive' if positive else 'zero or more'} seconds, not {value!r}")
    return value


def check_strings(values: Iterable[str] | None, name: str) -> list[str] | None:
    """A list of strings, or None.

    Raises:
        TypeError: A bare str, a mapping, no list at all, or an item that is not a str.
        ValueError: A NUL byte or half a character in an item.
    """
    if values is None:
        return None
    if isinstance(values, str | bytes):
        raise TypeError(
            f"{name} must be a list of strings, not the {type(values).__name__} {values!r}; write [{values!r}]"
        )
    if not _is_list(values):
        raise TypeError(f"{name} must be a list of strings, not {type(values).__name__}")
    return [check_text(value, f"{name}[{index}]") for index, value in enumerate(values)]


def check_text(value: str, name: str) -> str:
    """A str that can be sent.

    Raises:
        TypeError: Not a str.
        ValueError: A NUL byte, or half a character.
    """
    return _sendable(_text(value, name, paths=False), name)


def check_tail_lines(value: int | None) -> int | None:
    """A number of lines, or None for all; zero is all too, as the published service takes it.

    Raises:
        TypeError: Not an int.
        ValueError: Negative.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"tail_lines must be an int, not {type(value).__name__}")
    if value is not None and value < 0:
        raise ValueError(f"tail_lines must be zero or more, not {value}")
    return value or None


def check_since_time(value: datetime | None) -> datetime | None:
    """A moment in UTC, or None; a naive one is taken as UTC.

    Raises:
        TypeError: Not a datetime.
        ValueError: In UTC it is before the year 1 or after the year 9999.
    """
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise TypeError(f"since_time must be a datetime, not {type(value).__name__}")
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"since_time is no date in UTC: {value.isoformat()}") from None


def check_terminal_side(value: int, name: str) -> int:
    """The width or height of a terminal in characters.

    Raises:
        TypeError: Not an int.
        ValueError: Not from 1 to 65535.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 1 <= value < 2**16:
        raise ValueError(f"{name} must be from 1 to 65535 characters, not {value}")
    return value


def profiles_of(profile_ids: Sequence[str] | None, profile_names: Sequence[str] | None) -> Sequence[str] | None:
    """The profiles that are chosen: two names of one setting, as a profile's name is its id.

    Raises:
        TypeError: They contradict each other, or are no lists of strings.
    """
    ids, names = check_strings(profile_ids, "profile_ids"), check_strings(profile_names, "profile_names")
    if ids is not None and names is not None and ids != names:
        raise TypeError("profile_ids and profile_names contradict each other; they mean the same")
    return ids if names is None else names


def makes_decorators(method: F) -> F:
    """Let a method of Session that takes keywords only say what a positional argument means: forgotten parentheses."""

    @wraps(method)
    def checked(self: Any, /, *misplaced: Any, **options: Any) -> Any:
        if misplaced:
            name = f"session.{method.__name__}"
            raise TypeError(
                f"{name}() takes its options by keyword and gives a decorator: write @{name}(), with parentheses"
            )
        return method(self, **options)

    return cast("F", checked)


def check_bytes(data: Any, name: str) -> bytes:
    """A copy-free look at bytes-like data as bytes.

    Raises:
        TypeError: Not bytes-like; a str has to be encoded by the caller.
    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    hint = '; encode it first: text.encode("utf-8")' if isinstance(data, str) else ""
    raise TypeError(f"{name} must be bytes, not {type(data).__name__}{hint}")


def _is_list(values: Any) -> bool:
    """Whether it can stand for a list: of a mapping, half of what was written would be lost."""
    return isinstance(values, Iterable) and not isinstance(values, Mapping)


def _text(value: Any, name: str, *, paths: bool = True) -> str:
    text = os.fspath(value) if paths and isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    if "\0" in text:
        raise ValueError(f"{name} has a NUL byte: {text!r}")
    return text


def _sendable(text: str, name: str) -> str:
    """Text that has a UTF-8 form: names of files that are no text, as `os.listdir` gives them, have none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not text: it has a lone surrogate, from bytes that are not UTF-8") from None
    return text
