from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwsandbox.wire.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("2", "2"),
        (" 2 ", "2"),
        ("1.5", "1.5"),
        (".5", "0.5"),
        ("1.", "1"),
        ("500m", "0.5"),
        ("0.1m", "0.0001"),
        ("1k", "1000"),
        ("1M", "1e6"),
        ("1G", "1e9"),
        ("1T", "1e12"),
        ("1P", "1e15"),
        ("1E", "1e18"),
        ("1Ki", "1024"),
        ("1.5Mi", "1572864"),
        ("1Gi", str(2**30)),
        ("1Ti", str(2**40)),
        ("1Pi", str(2**50)),
        ("1Ei", str(2**60)),
        ("5e3", "5000"),
        ("5E3", "5000"),
        ("1e-3", "0.001"),
    ],
)
def test_quantities(text: str, number: str) -> None:
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "+1", "5e3m", "1e", "1KI", "1mi", "1n", "1u", "inf", "NaN", "1_000", "1 Gi", "1Gib", "٣", "1" * 40],
)
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="quantity"):
        parse_quantity(text)


@pytest.mark.parametrize("value", [1, 1.5, None, b"1", True])
def test_only_text_is_a_quantity(value: Any) -> None:
    with pytest.raises(TypeError):
        parse_quantity(value)


@given(st.text(max_size=40))
def test_nothing_else_is_raised(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_quantity(text) >= 0
