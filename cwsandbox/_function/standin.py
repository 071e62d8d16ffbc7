"""Sent as `cwsandbox` to sandboxes that do not have it, when a module of the caller's that is sent imports it.

What modules do with it while they are imported works: sessions and options are made, and a decorated function stays
what it is. Everything else says that `cwsandbox` is not there. Kept to what Python 3.8 understands.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing is not worth its import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, Self


class Absent:
    """Something that cannot be used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        return _absent(self._name, name)

    def __call__(self, *args: object, **options: object) -> NoReturn:
        raise ModuleNotFoundError(f"{self._name}() cannot be called here: the sandbox's Python has no cwsandbox")


class Kind(type):
    """The type of the classes, so that their attributes, such as members of enumerations, exist too."""

    def __getattr__(cls, name: str) -> Absent:
        return _absent("cwsandbox." + cls.__name__, name)


class Thing(metaclass=Kind):
    """A session, a sandbox that was not started, options."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __getattr__(self, name: str) -> Absent:
        return _absent("cwsandbox." + type(self).__name__, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def function(self, **options: object) -> Callable[[Any], Any]:
        """A decorator that leaves the function as it is; the caller's code calls it as `name.local()`."""

        def decorate(function: Any) -> Any:
            function.local = function
            return function

        return decorate


def __getattr__(name: str) -> Any:
    if name.startswith("__") or name[:1].islower():
        return _absent("cwsandbox", name)
    return Kind(name, (Exception if name.endswith("Error") else Thing,), {})


def _absent(owner: str, name: str) -> Absent:
    if name.startswith("__"):  # Python asks for them, and takes no for an answer
        raise AttributeError(name)
    return Absent(owner + "." + name)
