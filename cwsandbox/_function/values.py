"""How values travel: as JSON, or as pickles."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import decimal
import enum
import io
import json
import os
import pickle
import threading
import uuid
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any

from cwsandbox._function.origin import has_own_name
from cwsandbox._text import short_repr
from cwsandbox.exceptions import FunctionSerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

__all__ = ["PICKLE_PROTOCOL", "pickle_code", "pickle_value", "to_json"]

PICKLE_PROTOCOL = 4
"""Known to every Python that a sandbox may have."""

_by_value = threading.RLock()  # cloudpickle's registry of modules is the process's; what is pickled may hold pickles.


def to_json(value: Any, what: str) -> str:
    """A value as JSON text.

    Dataclasses and models become objects; tuples, sets and frozensets arrays; dates, times, paths, UUIDs and decimals
    strings; enum members their values; bytes text, if they are UTF-8.

    Raises:
        FunctionSerializationError: It has no JSON form.
    """
    try:
        return json.dumps(value, default=_plain)
    except Exception as error:  # whatever a user's model_dump raises
        raise FunctionSerializationError(
            f"{what} cannot be sent as JSON: {error}; send plain values, or use serialization=Serialization.PICKLE"
        ) from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if not isinstance(value, type) and callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    match value:
        case set() | frozenset():
            return list(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value).decode()
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case dt.timedelta():
            return value.total_seconds()
        case enum.Enum():
            return value.value
        case os.PathLike():
            return os.fspath(value)
        case uuid.UUID() | decimal.Decimal():
            return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def pickle_value(value: Any, what: str, on_name: Callable[[Any], None]) -> bytes:
    """A value as a pickle.

    Args:
        value: The value.
        what: What to call it in messages.
        on_name: Told of each class and function that the pickle names instead of holding it.

    Raises:
        FunctionSerializationError: It cannot be pickled, as objects of local classes, locks and generators cannot.
    """
    from cwsandbox.function import RemoteFunction

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type | FunctionType | RemoteFunction):
                on_name(obj)
            return NotImplemented

    with _pickling_errors(what):
        buffer = io.BytesIO()
        Pickler(buffer, PICKLE_PROTOCOL).dump(value)
        return buffer.getvalue()


def pickle_code(value: Any, modules: list[ModuleType], what: str, by_name: Callable[[Any], bool]) -> bytes:
    """A function or class without source, by value: bytecode, for the same Python version only.

    The pickle holds the value and a list of the caller's classes and functions that are in it, which pickles made in
    the sandbox will name.

    Args:
        value: The function or class.
        modules: The caller's modules whose members are to be taken by value, too.
        what: What to call it in messages.
        by_name: Asked for each other class and function; True if it will be there under its name.

    Raises:
        FunctionSerializationError: It, or what it refers to, cannot be pickled.
    """
    import cloudpickle  # type: ignore[import-untyped]

    from cwsandbox.function import RemoteFunction

    named: list[Any] = []

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, RemoteFunction):  # copying a function gives itself
                return copy.copy, (obj._function,), {"local": obj._function}
            if obj is not value and isinstance(obj, type | FunctionType) and by_name(obj):
                return obj.__qualname__
            if isinstance(obj, type | FunctionType) and has_own_name(obj):
                named.append(obj)
            return super().reducer_override(obj)

    with _pickling_errors(what), _by_value:
        known = cloudpickle.list_registry_pickle_by_value()
        registered = [module for module in modules if module.__name__ not in known]
        for module in registered:
            cloudpickle.register_pickle_by_value(module)
        try:
            buffer = io.BytesIO()
            Pickler(buffer, PICKLE_PROTOCOL).dump((value, named))
            return buffer.getvalue()
        finally:
            for module in registered:
                cloudpickle.unregister_pickle_by_value(module)


@contextmanager
def _pickling_errors(what: str) -> Iterator[None]:
    try:
        yield
    except FunctionSerializationError:
        raise
    except Exception as error:  # whatever a user's __reduce__ raises
        raise FunctionSerializationError(f"{what} cannot be pickled: {short_repr(str(error))}") from error
