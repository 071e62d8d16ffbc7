"""One converter between attrs models and JSON, in the manner of protobuf's JSON mapping.

Python names are snake_case and JSON names camelCase; the snake_case names are accepted too, as ProtoJSON demands. Times
are RFC 3339 in UTC, bytes are base64, enum members travel by value and are accepted by number. Fields that have their
default value are left out on output. On input null means absent, an unknown field is an error, and so is a value of
another type: nothing is converted silently, a number is never text.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NewType, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_unstructure_fn, override

from cwsandbox.wire.errors import WireError

__all__ = ["Int64", "PosixPath", "dump", "json_name", "load", "structure", "unstructure"]

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]

Int64 = NewType("Int64", int)
"""An integer that JSON carries as a string, because JavaScript's numbers would round it."""

PosixPath = NewType("PosixPath", str)
"""A path as `os.fsdecode` gives it: text, or `{"base64": ...}` where its bytes are no UTF-8."""

_INT64_LIMIT = 2**63
_EXACT_LIMIT = 2**53
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_NAME_CHARS = 64


def json_name(name: str) -> str:
    """The JSON name of a Python name: `sandbox_id` is `sandboxId`."""
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)


def structure(document: Any, cls: type[T]) -> T:
    """Make a model from parsed JSON.

    Raises:
        WireError: The JSON has not the model's structure; names the first field that is wrong.
    """
    return _converter.structure(document, cls)


def unstructure(value: Any) -> Any:
    """Make plain JSON values (dict, list, str, ...) from a model."""
    return _converter.unstructure(value)


def load(cls: type[T], data: bytes) -> T:
    """Make a model from JSON text.

    Raises:
        WireError: It is not JSON, or not the model's.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise WireError("", "not valid JSON") from None
    return structure(document, cls)


def dump(value: Any) -> bytes:
    """Make JSON text from a model or from plain values."""
    return json.dumps(unstructure(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


# Input. Every hook raises WireError with a path relative to its own value, and each level puts its own step before it.


def _string(value: Any, _: Any) -> str:
    if type(value) is not str:
        raise WireError("", "must be a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise WireError("", "holds half of a surrogate pair, which is not text") from None
    return value


def _boolean(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise WireError("", "must be true or false")
    return value


def _integer(value: Any, _: Any) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise WireError("", "must be an integer")
    if not -_INT64_LIMIT <= value < _INT64_LIMIT:
        raise WireError("", "is out of range")
    return value


def _int64(value: Any, _: Any) -> int:
    if type(value) is str and re.fullmatch(r"-?[0-9]{1,19}", value):
        value = int(value)
    return _integer(value, int)


def _number(value: Any, _: Any) -> float:
    if type(value) is int and abs(value) < _INT64_LIMIT:
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        raise WireError("", "must be a number")
    return value


def _bytes(value: Any, _: Any) -> bytes:
    text = _string(value, str).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise WireError("", "must be base64") from None


def _path(value: Any, _: Any) -> str:
    if isinstance(value, Mapping) and value.keys() == {"base64"}:
        return _bytes(value["base64"], bytes).decode("utf-8", "surrogateescape")
    return _string(value, str)


def _time(value: Any, _: Any) -> datetime:
    match = _TIME.fullmatch(_string(value, str))
    if match is None:
        raise WireError("", "must be a time such as 2026-01-31T12:00:00Z")
    seconds, fraction, zone = match.groups(default="")
    try:
        # Python keeps microseconds; further digits are cut.
        return datetime.fromisoformat(seconds + fraction[:7] + zone).astimezone(UTC)
    except (ValueError, OverflowError):
        raise WireError("", "is not a time that exists") from None


def _enum(value: Any, cls: Any) -> Any:
    members = list(cls)
    if type(value) is int and 0 <= value < len(members):
        return members[value]
    for member in members:
        if member.value == value:
            return member
    raise WireError("", f"must be one of {', '.join(member.value for member in members)}")


def _tuple_hook(cls: Any) -> Hook:
    item_type = get_args(cls)[0]
    item_hook = _converter.get_structure_hook(item_type)

    def hook(value: Any, _: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise WireError("", "must be a list")
        return tuple(_inside(f"[{index}]", item_hook, item, item_type) for index, item in enumerate(value))

    return hook


def _mapping_hook(cls: Any) -> Hook:
    item_type = get_args(cls)[1]
    item_hook = _converter.get_structure_hook(item_type)

    def hook(value: Any, _: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise WireError("", "must be an object")
        return {
            _string(key, str): _inside(f"[{key!r:.{_NAME_CHARS}}]", item_hook, item, item_type)
            for key, item in value.items()
        }

    return hook


def _model_hook(cls: type[Any]) -> Hook:
    attrs.resolve_types(cls)
    fields = {}
    for attribute in attrs.fields(cls):
        entry = (
            attribute.name,
            json_name(attribute.name),
            attribute.type,
            _converter.get_structure_hook(attribute.type),
        )
        fields[entry[0]] = fields[entry[1]] = entry
    required = {a.name: json_name(a.name) for a in attrs.fields(cls) if a.default is attrs.NOTHING}

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise WireError("", "must be an object")
        arguments: dict[str, Any] = {}
        for key, item in value.items():
            if key not in fields:
                raise WireError(str(key)[:_NAME_CHARS].encode(errors="replace").decode(), "unknown field")
            name, step, item_type, item_hook = fields[key]
            if name in arguments:
                raise WireError(step, "is given twice")
            if item is not None:
                arguments[name] = _inside(step, item_hook, item, item_type)
        for name, step in required.items():
            if name not in arguments:
                raise WireError(step, "is required")
        try:
            return cls(**arguments)
        except WireError:
            raise
        except ValueError as error:
            raise WireError("", str(error)) from None

    return hook


def _inside(step: str, hook: Hook, value: Any, cls: Any) -> Any:
    try:
        return hook(value, cls)
    except WireError as error:
        dot = "." if error.field and not error.field.startswith("[") else ""
        raise WireError(step + dot + error.field, error.problem) from None


# Output.


def _plain_number(value: float) -> float:
    """Whole numbers without ".0", which readers that expect an integer would refuse."""
    return int(value) if abs(value) < _EXACT_LIMIT and value == int(value) else value


def _utc_text(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError("a time without its zone")
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _plain_path(value: str) -> str | dict[str, str]:
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"base64": base64.b64encode(value.encode("utf-8", "surrogateescape")).decode()}
    return value


def _model_unstructure_hook(cls: type[Any]) -> Callable[[Any], dict[str, Any]]:
    attrs.resolve_types(cls)
    names: Any = {a.name: override(rename=json_name(a.name)) for a in attrs.fields(cls)}
    return make_dict_unstructure_fn(cls, _converter, _cattrs_omit_if_default=True, **names)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    hooks: dict[Any, Hook] = {
        str: _string,
        bool: _boolean,
        int: _integer,
        float: _number,
        bytes: _bytes,
        datetime: _time,
        Int64: _int64,
        PosixPath: _path,
    }
    for cls, hook in hooks.items():
        converter.register_structure_hook(cls, hook)
    converter.register_structure_hook_func(_is_enum, _enum)
    converter.register_structure_hook_factory(_has_origin(tuple), _tuple_hook)
    converter.register_structure_hook_factory(_has_origin(Mapping), _mapping_hook)
    converter.register_structure_hook_factory(attrs.has, _model_hook)
    converter.register_unstructure_hook(float, _plain_number)
    converter.register_unstructure_hook(bytes, lambda value: base64.b64encode(value).decode())
    converter.register_unstructure_hook(datetime, _utc_text)
    converter.register_unstructure_hook(Int64, str)
    converter.register_unstructure_hook(PosixPath, _plain_path)
    converter.register_unstructure_hook_func(_is_enum, lambda value: value.value)
    converter.register_unstructure_hook_factory(attrs.has, _model_unstructure_hook)
    return converter


def _has_origin(generic: Any) -> Callable[[Any], bool]:
    return lambda cls: get_origin(cls) is generic


def _is_enum(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, enum.Enum)


_converter = _make_converter()
