"""Kubernetes resource quantities: "500m", "1.5", "2Gi"."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["parse_quantity"]

# Bounded everywhere, and ASCII digits only: this is read from clients too.
_FORM = re.compile(
    r"(?P<number>\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:(?P<exponent>[eE][+-]?\d{1,2})|(?P<suffix>[A-Za-z]{0,2}))",
    re.ASCII,
)
_FACTORS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{name + "i": Decimal(1024) ** power for power, name in enumerate("KMGTPE", start=1)},
    **{name: Decimal(1000) ** power for power, name in enumerate("kMGTPE", start=1)},
}


def parse_quantity(text: str) -> Decimal:
    """The number that a Kubernetes quantity stands for.

    Suffixes are case-sensitive: `m` (thousandth), `k M G T P E` (powers of 1000), `Ki Mi Gi Ti Pi Ei` (powers of 1024);
    an exponent excludes a suffix (Kubernetes API reference, "Quantity").

    Raises:
        TypeError: `text` is not a str.
        ValueError: `text` is empty, negative, or not a quantity.
    """
    if not isinstance(text, str):
        raise TypeError(f"a quantity is a str such as '500m' or '1Gi', not {type(text).__name__}")
    match = _FORM.fullmatch(text.strip())
    suffix = (match["suffix"] or "") if match else ""
    if match is None or suffix not in _FACTORS:
        raise ValueError(
            f"not a quantity: {text[:40]!r}; write a number with an optional suffix, such as '500m', '2' or '1Gi'"
        )
    return Decimal(match["number"] + (match["exponent"] or "")) * _FACTORS[suffix]
