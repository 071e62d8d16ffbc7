"""The examples of the documentation run and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
