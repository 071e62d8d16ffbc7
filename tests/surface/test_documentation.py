"""The examples of the documentation run and print what they promise."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import pytest

import cwsandbox
from cwsandbox import Sandbox, Session

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PRINTED = {
    "quickstart.py": "hello\n",
    "quickstart_async.py": "hello\n",
    "streaming.py": "hello ada\nhello grace\nexit code 0\n",
    "parallel.py": "['0', '1', '4']\n",
    "files.py": "42\n",
    "cancellation.py": "all gone\n",
}
BACKENDS = {"quickstart_async.py": ["asyncio", "trio"], "cancellation.py": ["asyncio", "trio"]}
RUNS = [(name, *argument) for name in PRINTED for argument in ([[b] for b in BACKENDS.get(name, [])] or [[]])]


def test_every_example_is_known_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("argv", RUNS, ids=" ".join)
def test_examples(home_folder: object, argv: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / argv[0]), *argv[1:]],
        capture_output=True,
        text=True,
        timeout=50,
        env=os.environ,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, PRINTED[argv[0]], "")


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTEST_PAGE = ROOT / "docs" / "guide" / "pytest.md"
"""Its blocks are test modules: test_pytest_plugin.py has pytest run them."""
BLOCK = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^(?P<indent>[ ]*)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN_AT_MOST = 10
"""Across all pages: a page that cannot show what runs is mostly a page to write differently."""


def blocks(page: Path) -> list[tuple[str, str | None, str]]:
    """The Python blocks of a page: where they stand, why they are not run, and their code."""
    text = page.read_text()
    found = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code")) + 1
        found.append((f"{page.relative_to(ROOT)}:{line}", block["reason"], textwrap.dedent(block["code"])))
    return found


def is_async(code: str) -> bool:
    """Whether it awaits at its top level, or defines a `main` for the text to run."""
    compiled = compile(code, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    awaits = bool(compiled.co_flags & inspect.CO_COROUTINE)
    return awaits or ("async def main(" in code and "anyio.run" not in code and "asyncio.run" not in code)


ALL = [block for page in PAGES if page != PYTEST_PAGE for block in blocks(page)]
RUN = [(where, code) for where, reason, code in ALL if reason is None]


def test_few_blocks_are_not_run_and_they_say_why() -> None:
    reasons = [reason for _, reason, _ in ALL if reason is not None]
    assert all(len(reason) > 10 for reason in reasons)
    assert len(reasons) <= NOT_RUN_AT_MOST


@pytest.mark.parametrize(
    ("code", "backend"),
    [
        pytest.param(code, backend, id=f"{where} {backend}".strip())
        for where, code in RUN
        for backend in (("asyncio", "trio") if is_async(code) else ("",))
    ],
)
def test_code_on_the_pages_runs(home_folder: object, code: str, backend: str) -> None:
    """A block may use what the text around it speaks of: a running sandbox with a few files, and commands in it."""
    with Sandbox.run() as sandbox, Session() as session:
        sandbox.write_file("/srv/train.py", b"print('trained')").result()
        for number in range(10):
            sandbox.write_file(f"/app/{number}", b"x").result()
        names = {
            "anyio": anyio,
            "cwsandbox": cwsandbox,
            "sandbox": sandbox,
            "session": session,
            "processes": [sandbox.exec(["true"]) for _ in range(3)],
        }
        compiled = compile(code, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if compiled.co_flags & inspect.CO_COROUTINE:

            async def run() -> None:
                await eval(compiled, names)

            anyio.run(run, backend=backend)
        else:
            exec(compiled, names)
            if backend:
                main = names["main"]
                assert callable(main)
                anyio.run(main, backend=backend)
