"""The examples of the documentation run and print what they promise."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import cwsandbox
from cwsandbox import Sandbox

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
PAGES = ("README.md", "docs/guide.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(block, id=f"{page}:{number}")
    for page in PAGES
    for number, block in enumerate(BLOCK.findall((ROOT / page).read_text()))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_code_on_the_pages_runs(home_folder: object, block: str) -> None:
    """A block may use what the text around it speaks of: a running sandbox with a few files, and commands in it."""
    with Sandbox.run() as sandbox:
        sandbox.write_file("/srv/train.py", b"print('trained')").result()
        for number in range(10):
            sandbox.write_file(f"/app/{number}", b"x").result()
        names = {
            "anyio": anyio,
            "cwsandbox": cwsandbox,
            "sandbox": sandbox,
            "processes": [sandbox.exec(["true"]) for _ in range(3)],
        }
        code = compile(block, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:

            async def run() -> None:
                await eval(code, names)

            anyio.run(run)
        else:
            exec(code, names)
            if inspect.iscoroutinefunction(main := names.get("main")) and "anyio.run" not in block:
                anyio.run(main)
