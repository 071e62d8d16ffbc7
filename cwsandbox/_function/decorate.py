"""Behind `Session.function`: everything is checked when the function is decorated, not at its first call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cwsandbox._core import request_timeout
from cwsandbox._request import SandboxRequest
from cwsandbox._validate import check_path, check_seconds
from cwsandbox.function import RemoteFunction
from cwsandbox.options import Serialization

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cwsandbox.session import Session

__all__ = ["decorator"]

P = ParamSpec("P")
R = TypeVar("R")

_MAX_STANDBY = 256


def decorator(
    session: Session,
    options: Mapping[str, Any],
    *,
    serialization: Serialization,
    temp_dir: str | None,
    request_timeout_seconds: float | None,
    standby: int,
) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]:
    """What `Session.function` returns; see there.

    Raises:
        TypeError: A value of the wrong type.
        ValueError: A value that cannot be meant.
    """
    defaults = session._defaults
    nothing: dict[str, Any] = dict.fromkeys(("command", "args", "tags", "max_lifetime_seconds", "secrets"))
    SandboxRequest.build(defaults, **nothing, **options)
    limit = request_timeout(defaults, request_timeout_seconds)
    check_seconds(limit, "request_timeout_seconds", positive=True)
    settings: dict[str, Any] = {
        "options": options,
        "serialization": _serialization(serialization),
        "temp_dir": _folder(defaults.temp_dir if temp_dir is None else temp_dir),
        "limit": limit,
        "standby": _count(standby),
    }

    def decorate(function: Callable[P, R]) -> RemoteFunction[P, R]:
        return RemoteFunction(session, function, **settings)

    return decorate


def _serialization(value: Serialization | str) -> Serialization:
    try:
        return Serialization(value)
    except ValueError:
        raise TypeError(f"serialization must be Serialization.JSON or Serialization.PICKLE, not {value!r}") from None


def _folder(path: str) -> str:
    folder = check_path(path, "temp_dir")
    if not folder.startswith("/"):
        raise ValueError(f"temp_dir must be an absolute path in the sandbox, not {path!r}")
    return folder


def _count(standby: int) -> int:
    if isinstance(standby, bool) or not isinstance(standby, int):
        raise TypeError(f"standby must be an int, not {type(standby).__name__}")
    if not 0 <= standby <= _MAX_STANDBY:
        raise ValueError(f"standby must be from 0 to {_MAX_STANDBY}, not {standby}")
    return standby
