from __future__ import annotations

import copy
import json
import pickle
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwsandbox.wire.errors import DOMAIN, Code, FieldViolation, Reason, Status, WireError

FULL = Status.make(
    Code.RESOURCE_EXHAUSTED,
    "busy",
    reason=Reason.RUNNER_OVERLOADED,
    metadata={"runner": "r1"},
    retry_delay=timedelta(seconds=1.5),
    violations=[FieldViolation("spec.tags[0]", "too long")],
)


def test_a_status_survives_json() -> None:
    back = Status.from_json(json.loads(json.dumps(FULL.to_json())))
    assert back == FULL
    assert (back.reason, back.domain, back.metadata) == ("CWSANDBOX_RUNNER_OVERLOADED", DOMAIN, {"runner": "r1"})
    assert back.retry_delay == timedelta(seconds=1.5)
    assert back.violations == (FieldViolation("spec.tags[0]", "too long"),)


def test_the_json_is_that_of_google_rpc() -> None:
    assert FULL.to_json() == {
        "code": 8,
        "message": "busy",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "CWSANDBOX_RUNNER_OVERLOADED",
                "domain": "cwsandbox.com",
                "metadata": {"runner": "r1"},
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.5s"},
            {
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [{"field": "spec.tags[0]", "description": "too long"}],
            },
        ],
    }


def test_the_aip_193_form_is_read() -> None:
    document = {
        "error": {"code": 429, "message": "busy", "status": "RESOURCE_EXHAUSTED", "details": FULL.to_json()["details"]}
    }
    assert Status.from_json(document) == FULL


def test_the_connect_form_is_read() -> None:
    info = {"reason": "CWSANDBOX_SANDBOX_NOT_FOUND", "domain": DOMAIN, "metadata": {"a": "b"}}
    document = {
        "code": "not_found",
        "message": "gone",
        "details": [{"type": "google.rpc.ErrorInfo", "value": "", "debug": info}],
    }
    status = Status.from_json(document)
    assert (status.code, status.message, status.reason) == (Code.NOT_FOUND, "gone", Reason.SANDBOX_NOT_FOUND)
    assert status.metadata == {"a": "b"}


def test_the_reason_is_read_from_protobuf_where_connect_gives_no_debug_form() -> None:
    # ErrorInfo{reason: "CWSANDBOX_AUTH_EXPIRED", domain: "cwsandbox.com"}, unpadded as Connect has it.
    value = "ChZDV1NBTkRCT1hfQVVUSF9FWFBJUkVEEg1jd3NhbmRib3guY29t"
    status = Status.from_json(
        {"code": "unauthenticated", "details": [{"type": "google.rpc.ErrorInfo", "value": value}]}
    )
    assert (status.code, status.reason, status.domain) == (Code.UNAUTHENTICATED, "CWSANDBOX_AUTH_EXPIRED", DOMAIN)


def test_without_a_usable_body_the_http_status_decides() -> None:
    assert Status.from_json("<html>", 502) == Status(Code.UNAVAILABLE)
    assert Status.from_json({"message": "m"}, 404) == Status(Code.NOT_FOUND, "m")
    assert Status.from_json(None).code is Code.UNKNOWN
    assert Status.from_json({"code": 99}, 418).code is Code.FAILED_PRECONDITION


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "code",
                        "error",
                        "details",
                        "@type",
                        "type",
                        "value",
                        "debug",
                        "reason",
                        "metadata",
                        "retryDelay",
                        "fieldViolations",
                        "message",
                        "status",
                    ]
                )
                | st.text(),
                inner,
            )
        ),
    )
)
def test_whatever_is_sent_reading_it_never_raises(document: object) -> None:
    status = Status.from_json(document)
    _ = status.reason, status.domain, status.metadata, status.retry_delay, status.violations, status.retry_after
    assert isinstance(status.message, str)


@given(
    st.sampled_from(["reason", "metadata", "retryDelay", "fieldViolations"]),
    st.sampled_from(["ErrorInfo", "RetryInfo", "BadRequest"]),
    st.sampled_from([None, 1, "x", [], [1], [{}], {}, {"a": 1}, True]),
)
def test_malformed_details_are_left_out(name: str, kind: str, value: object) -> None:
    status = Status.from_json(
        {"code": 5, "details": [{"@type": f"type.googleapis.com/google.rpc.{kind}", name: value}]}
    )
    assert status.reason in {None, "x"}
    assert status.metadata == {}
    assert status.retry_delay is None
    assert status.retry_after is None
    assert all(isinstance(v.field, str) for v in status.violations)


def test_the_first_reason_and_the_first_delay_that_say_something_count() -> None:
    details = [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "", "domain": "x"},
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "A", "domain": "a"},
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "B", "domain": "b"},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "soon"},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "3s"},
    ]
    status = Status(Code.INTERNAL, "", details)
    assert (status.reason, status.domain, status.retry_delay) == ("A", "a", timedelta(seconds=2))


@pytest.mark.parametrize(
    ("text", "delay", "header"),
    [
        ("0s", timedelta(0), "0"),
        ("1.000000001s", timedelta(seconds=1), "1"),
        ("1.25s", timedelta(seconds=1.25), "2"),
        ("-2s", timedelta(seconds=-2), "0"),
        ("999999999999s", None, None),
        ("1", None, None),
        ("1e3s", None, None),
    ],
)
def test_delays(text: str, delay: timedelta | None, header: str | None) -> None:
    status = Status(Code.UNAVAILABLE, "", [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": text}])
    assert (status.retry_delay, status.retry_after) == (delay, header)


@given(st.timedeltas(timedelta(days=-1000), timedelta(days=1000)))
def test_delays_survive(delay: timedelta) -> None:
    assert Status.make(Code.UNAVAILABLE, "", retry_delay=delay).retry_delay == delay


def test_violations_are_described_by_whatever_words_there_are() -> None:
    detail = {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [
            {"field": "a", "description": "d"},
            {"field": "b", "localizedMessage": {"message": "l"}},
            {"field": "c", "reason": "r"},
            "nonsense",
        ],
    }
    found = Status(Code.INVALID_ARGUMENT, "", [detail]).violations
    assert [(v.field, v.description) for v in found] == [("a", "d"), ("b", "l"), ("c", "r")]


@pytest.mark.parametrize(
    ("code", "http"),
    [
        (Code.NOT_FOUND, 404),
        (Code.INVALID_ARGUMENT, 400),
        (Code.CANCELLED, 499),
        (Code.UNAUTHENTICATED, 401),
        (Code.UNAVAILABLE, 503),
    ],
)
def test_codes_have_their_http_status_and_come_back_from_it(code: Code, http: int) -> None:
    assert code.http_status == http
    assert Code.from_http_status(http) is code


def test_every_code_has_an_http_status() -> None:
    assert {code.value for code in Code} == set(range(1, 17))
    assert all(400 <= code.http_status < 600 for code in Code)


def test_a_wire_error_names_the_field_and_survives_copying() -> None:
    error = WireError("spec.tags[1]", "must be a string")
    for twin in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (str(twin), twin.field, twin.problem) == (
            "spec.tags[1]: must be a string",
            "spec.tags[1]",
            "must be a string",
        )
    status = error.to_status()
    assert (status.code, status.reason) == (Code.INVALID_ARGUMENT, Reason.INVALID_ARGUMENT)
    assert status.violations == (FieldViolation("spec.tags[1]", "must be a string"),)
