"""The examples of the documentation run and print what they promise."""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import os
import re
import select
import signal
import subprocess
import sys
import termios
import textwrap
from contextlib import ExitStack, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import anyio
import pytest

import cwsandbox
from cwsandbox import Sandbox, Session
from cwsandbox._client.auth import _reset_auth_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PRINTED = {
    "quickstart.py": "hello\n",
    "quickstart_async.py": "hello\n",
    "streaming.py": "hello ada\nhello grace\nexit code 0\n",
    "parallel.py": "['0', '1', '4']\n",
    "files.py": "42\n",
    "cancellation.py": "all gone\n",
    "agent.py": """\
model: I will write a program.
write_file: wrote mean.py
model: Let me run it.
run: exit code 1: NameError: name 'values' is not defined
model: The data is missing.
write_file: wrote mean.py
model: Let me run it.
run: exit code 0: 3
model: The mean is 3.
""",
    "parallel_tests.py": """\
passed test_add.py::test_add
FAILED test_wrong.py::test_wrong
passed test_text.py::test_split
passed test_text.py::test_upper
passed test_dict.py::test_get
some failed
""",
    "rollouts.py": """\
step 0: 4 executions, not logged
step 1: 8 executions, not logged
step 2: 12 executions, not logged
best: print(sum(range(1, 11)))
""",
    "data_processing.py": "[('fox', 3), ('dog', 3)]\n",
}
ON_A_TERMINAL = "interactive_shell.py"
BACKENDS = {name: ["asyncio", "trio"] for name in ("quickstart_async.py", "cancellation.py", "agent.py")}
RUNS = [(name, *argument) for name in PRINTED for argument in ([[b] for b in BACKENDS.get(name, [])] or [[]])]


def test_every_example_is_known_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTED, ON_A_TERMINAL}


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


def test_the_rollouts_log_to_a_wandb_run(home_folder: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "rollouts.py"), "--wandb"],
        capture_output=True,
        text=True,
        timeout=55,
        cwd=tmp_path,
        check=True,
    )
    assert done.stdout.splitlines()[:3] == [f"step {step}: 4 executions, logged" for step in range(3)]
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


class Terminal:
    """The near side of a terminal that a program runs on."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.shown = b""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until this is shown, and forget what came before its end."""
        while text.encode() not in self.shown:
            ready, _, _ = select.select([self.descriptor], [], [], 20)
            assert ready, f"{text!r} is not shown, but {self.shown!r}"
            self.shown += os.read(self.descriptor, 4096)
        self.shown = self.shown.partition(text.encode())[2]


def test_the_interactive_shell_on_a_terminal(home_folder: object) -> None:
    # Given, not inherited: the readline module sets LINES and COLUMNS behind the back of os.environ.
    env = {name: value for name, value in os.environ.items() if name not in {"LINES", "COLUMNS"}}
    near, far = os.openpty()
    termios.tcsetwinsize(far, (30, 100))
    settings = termios.tcgetattr(far)
    program = [sys.executable, "-W", "error", str(EXAMPLES / ON_A_TERMINAL)]
    with ExitStack() as stack:
        shell = stack.enter_context(subprocess.Popen(program, stdin=far, stdout=far, stderr=far, env=env))
        stack.callback(shell.kill)
        terminal = Terminal(near)
        terminal.wait_for(" ")  # The prompt: from here on the terminal takes keys as they are.
        terminal.type("stty size\n")
        terminal.wait_for("30 100")
        terminal.type("sh -c 'echo sta\"\"rted; exec sleep 1000'\n")  # It has the foreground before it says so.
        terminal.wait_for("started")
        terminal.type("\x03")  # Ctrl-C ends the sleep, not the shell; it also drops what was typed and not yet read.
        terminal.wait_for(" ")
        terminal.type("echo $((6 * 7))\n")
        terminal.wait_for("42\r\n")
        termios.tcsetwinsize(far, (40, 120))
        shell.send_signal(signal.SIGWINCH)
        terminal.type("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; echo res''ized\n")
        terminal.wait_for("resized")
        terminal.type("exit 3\n")
        assert shell.wait(30) == 3
    assert termios.tcgetattr(far) == settings
    os.close(near)
    os.close(far)


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


class Printed:
    """A block's `print`, which remembers what was printed on which line."""

    def __init__(self, print_: Callable[..., None]) -> None:
        self.values: dict[int, list[object]] = {}
        self._print = print_

    def __call__(self, *values: object, **options: object) -> None:
        caller = sys._getframe(1)
        if len(values) == 1 and caller.f_code.co_filename == "<block>":
            self.values.setdefault(caller.f_lineno, []).append(values[0])
        self._print(*values, **options)

    def check(self, code: str) -> None:
        """Compare with the comments that tell a value, as in `print(result.returncode)  # 0`."""
        for number, line in enumerate(code.splitlines(), 1):
            _, hash_, comment = line.partition("  # ")
            with suppress(ValueError, SyntaxError):
                promised = ast.literal_eval(comment)
                if hash_ and number in self.values:
                    assert self.values[number] == [promised], line


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


@pytest.fixture
def own_auth_mode() -> Iterator[None]:
    """A page that sets a mode sets it for itself."""
    yield
    _reset_auth_mode()


@pytest.mark.usefixtures("own_auth_mode")
@pytest.mark.parametrize(
    ("code", "backend"),
    [
        pytest.param(code, backend, id=f"{where} {backend}".strip())
        for where, code in RUN
        for backend in (("asyncio", "trio") if is_async(code) else ("",))
    ],
)
def test_code_on_the_pages_runs(home_folder: object, code: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block may use what the text around it speaks of: a running sandbox with a few files, and commands in it."""
    main = ModuleType("__main__")  # A block is a program: its classes are found by pickle, its source by inspect.
    monkeypatch.setitem(sys.modules, "__main__", main)
    printed = Printed(print)
    monkeypatch.setattr(builtins, "print", printed)
    monkeypatch.setitem(linecache.cache, "<block>", (len(code), None, code.splitlines(keepends=True), "<block>"))
    with Sandbox.run() as sandbox, Session() as session:
        sandbox.write_file("/srv/train.py", b"print('trained')").result()
        for number in range(10):
            sandbox.write_file(f"/app/{number}", b"x").result()
        main.__dict__.update(anyio=anyio, cwsandbox=cwsandbox, sandbox=sandbox, session=session)
        main.__dict__["processes"] = [sandbox.exec(["true"]) for _ in range(3)]
        compiled = compile(code, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if compiled.co_flags & inspect.CO_COROUTINE:

            async def run() -> None:
                await eval(compiled, main.__dict__)

            anyio.run(run, backend=backend)
        else:
            exec(compiled, main.__dict__)
            if backend:
                anyio.run(main.__dict__["main"], backend=backend)
        printed.check(code)
