"""The compatibility table has a row for each exported name and each public member, and for nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import cwsandbox
from tests.support.api import members

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
ROW = re.compile(r"^\| `([\w.]+)` \| (\w+) \|", re.MULTILINE)


def test_every_name_has_a_row_with_a_verdict() -> None:
    text = PAGE.read_text()
    exported = {name: getattr(cwsandbox, name) for name in cwsandbox.__all__}
    classes = {name: value for name, value in exported.items() if isinstance(value, type)}
    wanted = {*exported, *(f"{name}.{member}" for name, value in classes.items() for member in members(value))}
    assert {name for name in wanted if f"`{name}`" not in text} == set()
    rows = ROW.findall(text)
    assert {verdict for _, verdict in rows} == {"same", "better", "extra"}
    assert {name for name, _ in rows} - wanted == set()
    assert len(rows) == len(dict(rows))


def test_every_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (PAGE.parent / "reference").glob("*.md"))
    shown = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)}
    assert set(cwsandbox.__all__) - shown - set(cwsandbox.exceptions.__all__) - {"__version__"} == set()
