"""Notebooks: cells run by a real kernel, which has an event loop of its own running in the thread that runs the cells."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.support.processes import assert_gone, descendants, new_marker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CREATE = """
# Cell 1 - Create sandbox
from cwsandbox import Sandbox
sandbox = Sandbox.run()
sandbox.wait()  # Wait until RUNNING
"""
EXECUTE = """
# Cell 2 - Execute commands
result = sandbox.exec(["python", "-c", "print(1+1)"]).result()
print(result.stdout)
"""
CLEAN_UP = """
# Cell 3 - Cleanup
sandbox.stop().result()
"""
AWAIT = """
from cwsandbox import Sandbox
# Works in Jupyter without asyncio.run()
sandboxes = await Sandbox.list(tags=["notebook"])
"""


@pytest.fixture(autouse=True)
def jupyter_folders(home_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel's own files stay in the test's folder, and no process of it stays at all."""
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    before = descendants(os.getpid())
    yield
    assert descendants(os.getpid()) <= before  # What an earlier test left to end may have ended.


def run_cells(*cells: str) -> list[str]:
    """What each cell printed; the first that raises ends the notebook."""
    code: Any = nbformat.v4  # untyped
    notebook = code.new_notebook(cells=[code.new_code_cell(cell.strip()) for cell in cells])
    NotebookClient(notebook, timeout=50, kernel_name="python3").execute()
    return [
        "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
        for cell in notebook.cells
    ]


@pytest.mark.row("S131")
def test_the_three_cells() -> None:
    assert run_cells(CREATE, EXECUTE, CLEAN_UP) == ["", "2\n\n", ""]


@pytest.mark.row("S46", "S131")
def test_await_in_a_cell() -> None:
    code = "print(len(sandboxes), sandboxes[0].sandbox_id == own.sandbox_id)"
    started = 'from cwsandbox import Sandbox\nown = Sandbox.run(tags=["notebook"])'
    assert run_cells(started, AWAIT, code, "own.stop().result()")[2] == "1 True\n"


def test_async_with_and_sync_calls_share_a_notebook() -> None:
    cells = (
        "from cwsandbox import Sandbox\nawaited = Sandbox()\nawait awaited",
        'print((await awaited.exec(["echo", "a"])).stdout, end="")',
        'print(awaited.exec(["echo", "b"]).result().stdout, end="")',
        'async with Sandbox() as own:\n    async for line in own.exec(["seq", "2"]).stdout:\n        print(line, end="")',
        "await awaited.stop()",
    )
    assert run_cells(*cells) == ["", "a\n", "b\n", "1\n2\n", ""]


def test_a_call_that_would_block_the_notebooks_own_loop_is_refused() -> None:
    """Under `async with` operations run on the loop that `.result()` in a cell would block."""
    with pytest.raises(CellExecutionError, match="use the `await` form"):
        run_cells('from cwsandbox import Sandbox\nasync with Sandbox() as own:\n    own.exec(["true"]).result()')


def test_interrupting_a_cell_kills_its_command() -> None:
    marker = new_marker()
    cell = f"""
import os, signal
from cwsandbox import Sandbox
with Sandbox.run() as sandbox:
    process = sandbox.exec(["sh", "-c", "echo up; exec sleep $0", "{marker}"])
    assert next(process.stdout) == "up\\n"
    process._on_wait_begin = lambda: os.kill(os.getpid(), signal.SIGINT)
    try:
        process.result()
    except KeyboardInterrupt:
        print("interrupted")
    try:
        process.result()
    except BaseException as error:
        print(type(error).__name__)
"""
    assert run_cells(cell) == ["interrupted\nCancelledError\n"]
    assert_gone(marker)


def test_what_a_session_holds_goes_with_the_kernel() -> None:
    marker = new_marker()
    run_cells(
        f'from cwsandbox import Session\nsession = Session()\nsession.sandbox(command="sleep", args=["{marker}"]).wait()'
    )
    assert_gone(marker)


@pytest.mark.row("S87", "S88", "S89")
def test_a_remote_function_of_a_cell() -> None:
    cells = (
        "import dataclasses, math\nfrom cwsandbox import Session\nsession = Session()\nFACTOR = 2",
        "@dataclasses.dataclass\nclass Point:\n    x: int\n    y: int",
        "def helper(value):\n    return math.floor(value) * FACTOR",
        "@session.function()\ndef compute(x: int, y: int) -> int:\n    return helper(Point(x, y).x + Point(x, y).y)",
        "print(compute.remote(2, 3).result(), await compute.remote(2, 3))",
        "FACTOR = 3\nprint([ref.result() for ref in compute.map([(1, 2), (3, 4)])], compute.local(1, 1))",
        "await session.close()",
    )
    assert run_cells(*cells) == ["", "", "", "", "10 10\n", "[9, 21] 6\n", ""]
