"""Models to JSON and back: the names, the forms of values, and what is refused, with its path."""

from __future__ import annotations

import contextlib
import enum
import json
from collections.abc import Mapping  # noqa: TC003 - the codec resolves annotations
from datetime import UTC, datetime, timedelta, timezone

import pytest
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from cwsandbox.wire import codec
from cwsandbox.wire.codec import Int64
from cwsandbox.wire.errors import WireError


class Colour(enum.Enum):
    NONE = "COLOUR_NONE"
    RED = "COLOUR_RED"


ZERO = Int64(0)


@frozen(kw_only=True)
class Inner:
    some_name: str = ""


@frozen(kw_only=True)
class Everything:
    needed_text: str
    whole: int = 0
    big: Int64 = ZERO
    number: float = 0.0
    seen: int | None = None
    flag: bool = False
    raw: bytes = b""
    moment: datetime | None = None
    colour: Colour = Colour.NONE
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()
    table: Mapping[str, str] = field(factory=dict)


def parse(**values: object) -> Everything:
    return codec.structure({"neededText": "x", **values}, Everything)


texts = st.text()
moments = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))
inners = st.builds(Inner, some_name=texts)
everything = st.builds(
    Everything,
    needed_text=texts,
    whole=st.integers(-(2**63), 2**63 - 1),
    big=st.integers(-(2**63), 2**63 - 1),
    number=st.floats(allow_nan=False, allow_infinity=False),
    seen=st.none() | st.integers(0, 255),
    flag=st.booleans(),
    raw=st.binary(),
    moment=st.none() | moments,
    colour=st.sampled_from(Colour),
    inner=st.none() | inners,
    inners=st.lists(inners).map(tuple),
    words=st.lists(texts).map(tuple),
    table=st.dictionaries(texts, texts),
)


@given(everything)
def test_every_model_survives_json(model: Everything) -> None:
    assert codec.load(Everything, codec.dump(model)) == model


def test_the_forms_are_those_of_protobufs_json() -> None:
    model = Everything(
        needed_text="",
        big=Int64(2**60),
        number=2.0,
        seen=0,
        raw=b"\xfb\xff",
        moment=datetime(2026, 1, 2, 3, 4, 5, 600_000, timezone(timedelta(hours=1))),
        colour=Colour.RED,
        inner=Inner(),
    )
    assert json.loads(codec.dump(model)) == {
        "neededText": "",
        "big": "1152921504606846976",
        "number": 2,
        "seen": 0,
        "raw": "+/8=",
        "moment": "2026-01-02T02:04:05.600000Z",
        "colour": "COLOUR_RED",
        "inner": {},
    }


def test_plain_values_can_be_dumped_too() -> None:
    assert codec.dump({"a": [1, "ä"]}) == '{"a":[1,"ä"]}'.encode()


def test_python_names_are_accepted_too() -> None:
    assert codec.structure({"needed_text": "a", "inner": {"some_name": "b"}}, Everything) == Everything(
        needed_text="a", inner=Inner(some_name="b")
    )


def test_null_means_absent() -> None:
    assert parse(whole=None, seen=None, inner=None, words=None) == Everything(needed_text="x")


@pytest.mark.parametrize("text", ["+/8=", "-_8=", "+/8", "-_8"])
def test_bytes_are_accepted_in_both_alphabets_with_and_without_padding(text: str) -> None:
    assert parse(raw=text).raw == b"\xfb\xff"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5Z", datetime(2026, 1, 2, 3, 4, 5, 500_000, UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123_456, UTC)),
        ("2026-01-02T03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
    ],
)
def test_times_are_rfc_3339(text: str, moment: datetime) -> None:
    parsed = parse(moment=text).moment
    assert parsed == moment
    assert parsed is not None
    assert parsed.utcoffset() == timedelta(0)


def test_a_time_without_its_zone_is_not_written() -> None:
    with pytest.raises(ValueError, match="zone"):
        codec.dump(Everything(needed_text="", moment=datetime(2026, 1, 1)))


@pytest.mark.parametrize("value", ["7", 7, 7.0])
def test_large_integers_come_as_text_or_number(value: object) -> None:
    assert parse(big=value).big == 7


@pytest.mark.parametrize("value", ["COLOUR_RED", 1])
def test_enums_come_by_name_or_number(value: object) -> None:
    assert parse(colour=value).colour is Colour.RED


REFUSED = [
    ("neededText", 1),
    ("neededText", "\ud800"),
    ("neededText", b"x"),
    ("whole", "1"),
    ("whole", 1.5),
    ("whole", True),
    ("whole", 2**63),
    ("whole", float("inf")),
    ("big", "1.0"),
    ("big", "9" * 19),
    ("big", "9" * 5000),
    ("number", "1"),
    ("number", True),
    ("number", float("nan")),
    ("number", float("inf")),
    ("number", 10**400),
    ("flag", 1),
    ("flag", "true"),
    ("raw", "a"),
    ("raw", "ä==="),
    ("raw", 1),
    ("moment", "2026-01-02"),
    ("moment", "2026-01-02T03:04:05"),
    ("moment", "2026-13-02T03:04:05Z"),
    ("moment", "0001-01-01T00:00:00+02:00"),
    ("moment", "\u0662\u0660\u0662\u0666-01-02T03:04:05Z"),
    ("moment", 5),
    ("colour", "RED"),
    ("colour", 2),
    ("colour", -1),
    ("colour", True),
    ("colour", []),
    ("inner", []),
    ("inner", "x"),
    ("inners", {}),
    ("inners", "ab"),
    ("words", "ab"),
    ("table", []),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_nothing_is_converted_silently(name: str, value: object) -> None:
    with pytest.raises(WireError) as caught:
        parse(**{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"inners": [{}, {"someName": 1}]}, "inners[1].someName"),
        ({"inner": {"other": 1}}, "inner.other"),
        ({"words": ["a", 1]}, "words[1]"),
        ({"table": {"a b": 1}}, "table['a b']"),
        ({"unknownField": 1}, "unknownField"),
    ],
)
def test_an_error_names_the_field_by_its_path(document: dict[str, object], path: str) -> None:
    with pytest.raises(WireError) as caught:
        parse(**document)
    assert caught.value.field == path


def test_what_is_missing_or_given_twice_is_named() -> None:
    with pytest.raises(WireError, match="neededText: is required"):
        codec.structure({}, Everything)
    with pytest.raises(WireError, match="neededText: is given twice"):
        codec.structure({"neededText": "a", "needed_text": "b"}, Everything)


def test_errors_do_not_repeat_the_value() -> None:
    for document in (
        {"table": {"KEY": ["secret"]}},
        {"neededText": ["secret"]},
        {"raw": "secret!"},
        {"colour": "secret"},
    ):
        with pytest.raises(WireError) as caught:
            parse(**document)
        assert "secret" not in str(caught.value)


def test_long_unknown_names_are_cut() -> None:
    with pytest.raises(WireError) as caught:
        parse(**{"x" * 100_000: 1})
    assert len(str(caught.value)) < 200
    with pytest.raises(WireError) as caught:
        parse(table={"\ud800" * 100_000: 1})
    str(caught.value).encode()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"1"])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        codec.load(Everything, data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["neededText", "whole", "big", "raw", "moment", "colour", "inner", "inners", "words", "table"]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_document_is_read_or_refused(document: object) -> None:
    with contextlib.suppress(WireError):
        codec.structure(document, Everything)
