"""The payload of a remote call, and the result that comes back.

A payload is one line of JSON, the head, and then blobs, whose sizes the head gives: pickles, and last the arguments, as
JSON or as a pickle. A result is one line of JSON, the report, and then the returned value, as JSON or as a pickle.
What comes back is hostile: bounded, checked, and only ever unpickled if the caller chose pickle.
"""

from __future__ import annotations

import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

from attrs import frozen

from cwsandbox._function.capture import Capture
from cwsandbox._function.values import pickle_value, to_json
from cwsandbox.exceptions import FunctionSerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MAX_RESULT_BYTES", "BadResultError", "Failure", "Snapshot", "read_result"]

MAX_RESULT_BYTES = 512 * 1024 * 1024
"""The largest result that is taken from a sandbox: it is held in memory."""

_MAX_TEXT = 65536
_MAX_NAME = 200


class Snapshot:
    """A function and all that it refers to, as they are at this moment.

    Args:
        function: What to call.
        use_pickle: How values travel.

    Raises:
        FunctionSerializationError: Something that it refers to cannot be sent.
    """

    def __init__(self, function: Callable[..., Any], *, use_pickle: bool) -> None:
        self._use_pickle = use_pickle
        self._capture = Capture(use_pickle=use_pickle)
        self._function = self._capture.ref(function, "the function")
        self._head: dict[str, Any] | None = None

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """The arguments of one call, as they are at this moment. Before the first `payload`.

        Raises:
            FunctionSerializationError: They cannot be sent.
        """
        value = [list(args), dict(kwargs)]
        if self._use_pickle:
            return pickle_value(value, "the arguments", self._capture.name)
        return to_json(value, "the arguments").encode()

    def payload(self, arguments: bytes, result_path: str) -> bytes:
        """What the driver reads, for one call."""
        if self._head is None:
            self._head = self._make_head()
        sizes = [len(blob) for blob in (*self._capture.blobs, arguments)]
        head = json.dumps({**self._head, "result": result_path, "blobs": sizes})
        return b"".join((head.encode(), b"\n", *self._capture.blobs, arguments))

    def imports(self) -> tuple[str, ...]:
        """The installed modules that the function refers to."""
        own = self._capture.modules
        named = {node["module"] for node in self._capture.nodes if node["kind"] in {"module", "attribute"}}
        named |= {"pickle"} if self._use_pickle else set()
        return tuple(sorted(name for name in named if name not in own))

    def _make_head(self) -> dict[str, Any]:
        capture = self._capture
        capture.finish()
        return {
            "function": self._function,
            "pickle": self._use_pickle,
            "python": sys.version_info[:2] if capture.has_bytecode else None,
            "modules": capture.modules.to_payload(),
            "spaces": capture.spaces,
            "nodes": capture.nodes,
            "cells": capture.cells,
        }


@frozen
class Failure:
    """The function raised, could not be called, or its result cannot be sent."""

    stage: str
    """`load`, `call` or `dump`."""
    type: str
    message: str
    traceback: str
    python: str | None
    """The sandbox's Python version, if bytecode was sent and that was the failure."""


class BadResultError(Exception):
    """What came back is no result."""


def read_result(data: bytes, *, use_pickle: bool) -> Any:
    """The value that was returned, or a `Failure`.

    Raises:
        BadResultError: It is not what a driver writes.
        FunctionSerializationError: The value cannot be unpickled here.
    """
    head, _, body = data.partition(b"\n")
    report = _json(head)
    if not isinstance(report, dict) or not isinstance(report.get("ok"), bool):
        raise BadResultError("its report is not one")
    if not report["ok"]:
        return _failure(report)
    if not use_pickle:
        return _json(body)
    try:
        return pickle.loads(body)  # noqa: S301 - only where the user chose it
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}"
        raise FunctionSerializationError(f"the result cannot be unpickled here: {text}") from error


def _failure(report: dict[str, Any]) -> Failure:
    stage, kind, message, trace = (report.get(name) for name in ("stage", "type", "message", "traceback"))
    if not isinstance(kind, str) or not isinstance(message, str) or not isinstance(trace, str):
        raise BadResultError("its report is not one")
    # A tuple: what came may be of any type, and need not be hashable.
    if stage not in ("load", "call", "dump"):
        raise BadResultError("its report is not one")
    python = message[:_MAX_NAME] if report.get("mismatch") is True else None
    return Failure(stage, kind[:_MAX_NAME], message[:_MAX_TEXT], trace[-_MAX_TEXT:], python)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadResultError(f"it is not JSON: {error}") from error
