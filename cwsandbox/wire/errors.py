"""`google.rpc.Status` in JSON, the reasons we give, and the exceptions of this package.

A status says what went wrong in a form that both people and programs read: a code, a message, and details. Of the
details three kinds have a meaning here: `ErrorInfo` (reason, domain, metadata), `RetryInfo` (when to try again) and
`BadRequest` (which fields were wrong). The same JSON travels in HTTP bodies and in the channel's STATUS frames.
"""

from __future__ import annotations

import base64
import enum
import math
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from attrs import field, frozen

__all__ = [
    "DOMAIN",
    "Code",
    "FieldViolation",
    "PeerSilentError",
    "ProtocolError",
    "Reason",
    "Status",
    "WireError",
]

DOMAIN = "cwsandbox.com"
"""Only reasons of this domain choose an exception class."""

_TYPE_PREFIX = "type.googleapis.com/"
_ERROR_INFO = "google.rpc.ErrorInfo"
_RETRY_INFO = "google.rpc.RetryInfo"
_BAD_REQUEST = "google.rpc.BadRequest"
_LONGEST_DURATION_SECONDS = 315_576_000_000
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")


class ProtocolError(Exception):
    """The peer broke the channel's protocol; the connection is of no further use.

    What the message carried before the fault is lost, so such a connection must not be resumed.
    """


class PeerSilentError(Exception):
    """Nothing was heard from the peer for longer than the limit."""


class WireError(ValueError):
    """JSON that does not have the structure it should have.

    Attributes:
        field: Where, as in `spec.containers[0].image`; empty for the whole document.
        problem: What is wrong there. Never contains the offending value, which could be a secret.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[WireError], tuple[str, str]]:
        return type(self), (self.field, self.problem)

    def to_status(self) -> Status:
        """The INVALID_ARGUMENT status that names the field."""
        return Status.make(
            Code.INVALID_ARGUMENT,
            str(self),
            reason=Reason.INVALID_ARGUMENT,
            violations=[FieldViolation(self.field, self.problem)],
        )


class Code(enum.IntEnum):
    """The canonical codes of google.rpc."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def http_status(self) -> int:
        """The HTTP status this code travels under."""
        return _HTTP_STATUS[self]

    @classmethod
    def from_http_status(cls, number: int) -> Code:
        """The code for an HTTP answer that carries no status of its own, such as a proxy's."""
        if number in _FROM_HTTP:
            return _FROM_HTTP[number]
        if 400 <= number < 500:
            return cls.FAILED_PRECONDITION
        return cls.INTERNAL if 500 <= number < 600 else cls.UNKNOWN


_HTTP_STATUS = {
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
# Where several codes share a number, the one a bare proxy or server most likely means.
_FROM_HTTP = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    413: Code.RESOURCE_EXHAUSTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


class Reason(enum.StrEnum):
    """The machine-readable reasons of `DOMAIN` that this version gives or understands."""

    SANDBOX_NOT_FOUND = "CWSANDBOX_SANDBOX_NOT_FOUND"
    RUNNER_NOT_FOUND = "CWSANDBOX_RUNNER_NOT_FOUND"
    PROFILE_NOT_FOUND = "CWSANDBOX_PROFILE_NOT_FOUND"
    FILE_NOT_FOUND = "CWSANDBOX_FILE_NOT_FOUND"
    FILE_IS_DIRECTORY = "CWSANDBOX_FILE_IS_DIRECTORY"
    FILE_PERMISSION_DENIED = "CWSANDBOX_FILE_PERMISSION_DENIED"
    FILE_IO_FAILED = "CWSANDBOX_FILE_IO_FAILED"
    FILE_EXISTS = "CWSANDBOX_FILE_EXISTS"
    FILE_NOT_A_DIRECTORY = "CWSANDBOX_FILE_NOT_A_DIRECTORY"
    FILE_DIRECTORY_NOT_EMPTY = "CWSANDBOX_FILE_DIRECTORY_NOT_EMPTY"
    FILE_TOO_LARGE = "CWSANDBOX_FILE_TOO_LARGE"
    FILE_TRUNCATED = "CWSANDBOX_FILE_TRUNCATED"
    SANDBOX_NOT_RUNNING = "CWSANDBOX_SANDBOX_NOT_RUNNING"
    COMMAND_TIMEOUT = "CWSANDBOX_COMMAND_TIMEOUT"
    RUNNER_UNAVAILABLE = "CWSANDBOX_RUNNER_UNAVAILABLE"
    BACKEND_UNAVAILABLE = "CWSANDBOX_BACKEND_UNAVAILABLE"
    RUNNER_CAPACITY_EXHAUSTED = "CWSANDBOX_RUNNER_CAPACITY_EXHAUSTED"
    RUNNER_OVERLOADED = "CWSANDBOX_RUNNER_OVERLOADED"
    NO_SUITABLE_RUNNER = "CWSANDBOX_NO_SUITABLE_RUNNER"
    PLACEMENT_REJECTED = "CWSANDBOX_PLACEMENT_REJECTED"
    PLACEMENT_CONSTRAINT_UNSATISFIED = "CWSANDBOX_PLACEMENT_CONSTRAINT_UNSATISFIED"
    INVALID_ARGUMENT = "CWSANDBOX_INVALID_ARGUMENT"
    INVALID_REQUEST = "CWSANDBOX_INVALID_REQUEST"
    RESOURCE_CEILING_EXCEEDED = "CWSANDBOX_RESOURCE_CEILING_EXCEEDED"
    NOT_IMPLEMENTED = "CWSANDBOX_NOT_IMPLEMENTED"
    SECRET_STORE_NOT_PROVISIONED = "CWSANDBOX_SECRET_STORE_NOT_PROVISIONED"  # noqa: S105 - the reason's name
    AUTH_EXPIRED = "CWSANDBOX_AUTH_EXPIRED"


@frozen
class FieldViolation:
    """One wrong field of a request.

    Attributes:
        field: Its path in JSON names, as in `spec.services[0].port`.
        description: What is wrong with it.
    """

    field: str
    description: str


def _no_details(value: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    return tuple(value)


@frozen
class Status:
    """A `google.rpc.Status`.

    Attributes:
        code: The canonical code.
        message: For people; says what to do next where we know.
        details: The details as JSON objects, each with its `@type`.
    """

    code: Code
    message: str = ""
    details: tuple[Mapping[str, Any], ...] = field(default=(), converter=_no_details)

    @classmethod
    def make(  # noqa: PLR0917 - the parts of a status, in the order of its JSON
        cls,
        code: Code,
        message: str,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_delay: timedelta | None = None,
        violations: Iterable[FieldViolation] = (),
    ) -> Status:
        """A status with the details that the arguments ask for.

        Args:
            code: The canonical code.
            message: For people.
            reason: A `Reason`; gives an ErrorInfo of our domain.
            metadata: Facts beside the reason; needs one.
            retry_delay: When to try again; gives a RetryInfo.
            violations: Wrong fields; gives a BadRequest.
        """
        details: list[Mapping[str, Any]] = []
        if reason is not None:
            info = {"reason": str(reason), "domain": DOMAIN, "metadata": dict(metadata or {})}
            details.append({"@type": _TYPE_PREFIX + _ERROR_INFO, **info})
        if retry_delay is not None:
            details.append({"@type": _TYPE_PREFIX + _RETRY_INFO, "retryDelay": _format_duration(retry_delay)})
        wrong = [{"field": v.field, "description": v.description} for v in violations]
        if wrong:
            details.append({"@type": _TYPE_PREFIX + _BAD_REQUEST, "fieldViolations": wrong})
        return cls(code, message, tuple(details))

    def _error_info(self) -> Mapping[str, Any]:
        """The first ErrorInfo that gives a reason."""
        for detail in self.details:
            if detail.get("@type") == _TYPE_PREFIX + _ERROR_INFO and _text(detail.get("reason")):
                return detail
        return {}

    @property
    def reason(self) -> str | None:
        """The machine-readable reason, whatever its domain."""
        return _text(self._error_info().get("reason")) or None

    @property
    def domain(self) -> str | None:
        """Who gave the reason."""
        return _text(self._error_info().get("domain")) or None

    @property
    def metadata(self) -> dict[str, str]:
        """What was said beside the reason."""
        metadata = self._error_info().get("metadata")
        if not isinstance(metadata, Mapping):
            return {}
        return {key: value for key, value in metadata.items() if isinstance(key, str) and isinstance(value, str)}

    @property
    def retry_delay(self) -> timedelta | None:
        """When the server suggests to try again; None if it said nothing that makes sense."""
        for detail in self.details:
            if detail.get("@type") == _TYPE_PREFIX + _RETRY_INFO:
                delay = _parse_duration(detail.get("retryDelay"))
                if delay is not None:
                    return delay
        return None

    @property
    def retry_after(self) -> str | None:
        """The value for an HTTP `Retry-After` header: whole seconds, rounded up, not negative."""
        delay = self.retry_delay
        return None if delay is None else str(max(0, math.ceil(delay.total_seconds())))

    @property
    def violations(self) -> tuple[FieldViolation, ...]:
        """All wrong fields that the details name."""
        found: list[FieldViolation] = []
        for detail in self.details:
            if detail.get("@type") == _TYPE_PREFIX + _BAD_REQUEST:
                found += _violations(detail.get("fieldViolations"))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this status."""
        return {"code": int(self.code), "message": self.message, "details": [dict(detail) for detail in self.details]}

    @classmethod
    def from_json(cls, document: Any, http_status: int | None = None) -> Status:
        """Read a status in any of its three shapes: google.rpc, AIP-193 (`{"error": ...}`), or Connect.

        Never raises: what cannot be understood is left out, because this runs where something already went wrong.

        Args:
            document: Parsed JSON, of any form.
            http_status: The number of the HTTP answer it came in; decides the code where the document does not.
        """
        fallback = Code.UNKNOWN if http_status is None else Code.from_http_status(http_status)
        if not isinstance(document, Mapping):
            return cls(fallback)
        body: Mapping[str, Any] = document
        code = body.get("code")
        if isinstance(body.get("error"), Mapping):
            body = body["error"]
            code = body.get("status")
        message = _text(body.get("message"))
        details = body.get("details")
        if not isinstance(details, list):
            details = []
        return cls(_code(code, fallback), message, tuple(filter(None, map(_detail, details))))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _code(value: Any, fallback: Code) -> Code:
    if isinstance(value, str):
        name = value.upper()
        return Code.CANCELLED if name == "CANCELED" else Code.__members__.get(name, fallback)
    if isinstance(value, int) and 1 <= value <= 16:
        return Code(value)
    return fallback


def _detail(detail: Any) -> Mapping[str, Any] | None:
    """One detail with its full `@type`; None if it cannot be used."""
    if not isinstance(detail, Mapping):
        return None
    if isinstance(detail.get("@type"), str):
        return detail
    kind = _text(detail.get("type"))
    debug = detail.get("debug")
    # Connect sends protobuf bytes for programs and, in "debug", the same as JSON, which needs no protobuf to be read.
    if kind and isinstance(debug, Mapping):
        return {**debug, "@type": _TYPE_PREFIX + kind.removeprefix(_TYPE_PREFIX)}
    if kind.removeprefix(_TYPE_PREFIX) == _ERROR_INFO:
        return _error_info_from_protobuf(_text(detail.get("value")))
    return None


def _error_info_from_protobuf(value: str) -> Mapping[str, Any] | None:
    """Reason and domain from a serialized ErrorInfo, the one detail that matters most without its "debug" form."""
    try:
        data = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    except ValueError:
        return None
    texts: dict[int, str] = {}
    position = 0
    while position + 2 <= len(data):
        tag, length = data[position], data[position + 1]
        # Reasons, domains and metadata entries are shorter than 128 bytes, so that a length is one byte; else give up.
        if tag & 7 != 2 or length >= 128:
            break
        texts.setdefault(tag >> 3, data[position + 2 : position + 2 + length].decode("utf-8", "replace"))
        position += 2 + length
    if not texts.get(1):
        return None
    return {"@type": _TYPE_PREFIX + _ERROR_INFO, "reason": texts[1], "domain": texts.get(2, ""), "metadata": {}}


def _violations(entries: Any) -> list[FieldViolation]:
    found = []
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping):
            localized = entry.get("localizedMessage")
            words = _text(localized.get("message")) if isinstance(localized, Mapping) else ""
            description = _text(entry.get("description")) or words or _text(entry.get("reason"))
            found.append(FieldViolation(_text(entry.get("field")), description))
    return found


def _format_duration(delay: timedelta) -> str:
    microseconds = round(delay / timedelta(microseconds=1))
    sign = "-" if microseconds < 0 else ""
    seconds, rest = divmod(abs(microseconds), 1_000_000)
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    return f"{sign}{seconds}{fraction}s"


def _parse_duration(value: Any) -> timedelta | None:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    sign, seconds, fraction = match.groups()
    if int(seconds) > _LONGEST_DURATION_SECONDS:
        return None
    delay = timedelta(seconds=int(seconds), microseconds=int((fraction or "0").ljust(9, "0")) // 1000)
    return -delay if sign else delay
