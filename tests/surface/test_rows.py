"""Every row of the checklist has a test."""

from __future__ import annotations

import re
import string
from pathlib import Path

MARK = re.compile(r"@pytest\.mark\.row\(([^)]*)\)")
ROWS = {f"S{number}" for number in range(1, 135)} | {f"FIX-{letter}" for letter in string.ascii_uppercase[:21]}


def test_every_row_has_a_test_and_every_mark_names_a_row() -> None:
    marked = {
        row
        for path in Path(__file__).parent.glob("test_*.py")
        for arguments in MARK.findall(path.read_text())
        for row in re.findall(r'"([^"]+)"', arguments)
    }
    assert marked == ROWS
