"""Every row of the checklist that these tests are for has a test."""

from __future__ import annotations

import re
from pathlib import Path

MARK = re.compile(r"@pytest\.mark\.row\(([^)]*)\)")
NUMBERS = set(range(1, 135))
FIXES = set("ABCDEFGHIJKLMNOPQRSTU")


def test_every_row_has_a_test() -> None:
    marked = {
        row
        for path in Path(__file__).parent.glob("test_*.py")
        for arguments in MARK.findall(path.read_text())
        for row in re.findall(r'"([^"]+)"', arguments)
    }
    assert {f"S{number}" for number in NUMBERS} | {f"FIX-{letter}" for letter in FIXES} <= marked
