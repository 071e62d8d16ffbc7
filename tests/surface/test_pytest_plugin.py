"""The pytest plugin in suites of its users: under every async plugin, on several workers, and where it is not used."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.support.leftovers import gateway_processes
from tests.support.processes import assert_gone, new_marker
from tests.surface.test_documentation import blocks

pytest_plugins = ["pytester"]

ARGUMENTS = ("-p", "cwsandbox.pytest_plugin", "-W", "error", "-q", "-rA")
NO_ASYNC = ("-p", "no:asyncio", "-p", "no:trio")
ASYNCIO = ("-p", "no:trio", "-o", "asyncio_default_fixture_loop_scope=function", "-o")

USES = """
import pytest

{mark}
async def test_awaits(sandbox):
    result = await sandbox.exec(["sh", "-c", "echo $GREETING"])
    assert result.stdout == "\\n"
    lines = [line async for line in sandbox.exec(["printf", "a\\\\nb\\\\n"]).stdout]
    assert lines == ["a\\n", "b\\n"]

def test_blocks(sandbox):
    assert sandbox.exec(["echo", "a"]).result().stdout == "a\\n"

{mark}
async def test_several(session, sandbox):
    other = session.sandbox()
    await other.write_file("/tmp/file", b"text")
    assert await other.read_file("/tmp/file") == b"text"
    assert session.sandbox_count == 2
    assert len(await session.list()) == 2
"""

ANYIO = """
import pytest

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
"""


def run(pytester: pytest.Pytester, code: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(code)
    return pytester.runpytest_subprocess(*ARGUMENTS, *arguments, timeout=50)


@pytest.mark.parametrize(
    ("mark", "arguments", "passed"),
    [
        ("@pytest.mark.anyio", NO_ASYNC, 5),
        ("@pytest.mark.asyncio", (*ASYNCIO, "asyncio_mode=strict"), 3),
        ("", (*ASYNCIO, "asyncio_mode=auto"), 3),
        ("", ("-p", "no:asyncio", "-o", "trio_mode=true"), 3),
    ],
    ids=["anyio", "asyncio strict", "asyncio auto", "trio"],
)
def test_under_every_async_plugin(
    home_folder: Path, pytester: pytest.Pytester, mark: str, arguments: tuple[str, ...], passed: int
) -> None:
    pytester.makeconftest(ANYIO)
    run(pytester, USES.format(mark=mark), *arguments).assert_outcomes(passed=passed)


def test_the_tests_of_its_guide_pass(home_folder: Path, pytester: pytest.Pytester) -> None:
    guide = Path(__file__).parents[2] / "docs" / "guide" / "pytest.md"
    code = "\n".join(code for _, _, code in blocks(guide))
    assert code.count("def test_") == 4
    pytester.makeconftest(ANYIO)
    result = run(pytester, code, *NO_ASYNC, "-o", "anyio_mode=auto")
    if "needs isolation 'namespaces'" in result.stdout.str():  # As it should where there are none.
        result.assert_outcomes(passed=4, errors=1)
    else:
        result.assert_outcomes(passed=5)


def test_workers_share_one_gateway_and_see_their_own_sandboxes_only(
    home_folder: Path, pytester: pytest.Pytester
) -> None:
    code = """
import pytest

@pytest.mark.parametrize("number", range(8))
def test_own(sandbox, session, number):
    assert sandbox.exec(["echo", str(number)]).result().stdout == f"{number}\\n"
    assert [found.sandbox_id for found in session.list().result()] == [sandbox.sandbox_id]
"""
    run(pytester, "def test_gateway_runs(sandbox): pass", *NO_ASYNC).assert_outcomes(passed=1)
    before = gateway_processes(home_folder)
    run(pytester, code, *NO_ASYNC, "-n", "2").assert_outcomes(passed=8)
    assert gateway_processes(home_folder) == before


def test_a_command_left_running_fails_its_test_and_is_killed(home_folder: Path, pytester: pytest.Pytester) -> None:
    marker = new_marker()
    code = f"""
def test_leaves(sandbox):
    process = sandbox.exec(["sh", "-c", "echo up; sleep $0", "{marker}"])
    assert next(process.stdout) == "up\\n"

def test_leaves_a_terminal(sandbox):
    shell = sandbox.shell(["sh", "-c", "echo up; sleep $0", "{marker}"])
    assert b"up" in next(shell.output)

def test_next(sandbox):
    pass
"""
    result = run(pytester, code, *NO_ASYNC)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*the test left commands running (they were killed):", f"*sh*{marker}*"] * 2)
    assert_gone(marker)


def test_a_sandbox_left_fails_its_test_and_is_stopped(home_folder: Path, pytester: pytest.Pytester) -> None:
    marker = new_marker()
    code = f"""
import pytest
from cwsandbox import Sandbox

kept = []

@pytest.mark.usefixtures("no_sandbox_leaks")
def test_leaves():
    kept.append(Sandbox.run("sleep", "{marker}"))

@pytest.mark.usefixtures("no_sandbox_leaks")
def test_stops(request):
    sandbox = Sandbox.run()
    request.addfinalizer(lambda: sandbox.stop().result())

@pytest.mark.usefixtures("no_sandbox_leaks")
def test_ends_by_itself():
    kept.append(Sandbox.run("true").wait_until_complete().result())

@pytest.fixture(scope="module")
def shared():
    with Sandbox.run() as sandbox:
        yield sandbox

@pytest.mark.usefixtures("no_sandbox_leaks")
def test_uses_one_of_a_wider_scope(shared):
    shared.exec(["true"]).result()
"""
    result = run(pytester, code, *NO_ASYNC)
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaves*", "*left sandboxes that nobody stopped*: sb-*"])
    assert_gone(marker)


def test_a_test_that_failed_is_told_nothing_more_and_leaves_nothing(
    home_folder: Path, pytester: pytest.Pytester
) -> None:
    marker = new_marker()
    code = f"""
from cwsandbox import Sandbox

kept = []

def test_fails(no_sandbox_leaks):
    kept.append(Sandbox.run("sleep", "{marker}"))
    assert False, "of its own"
"""
    result = run(pytester, code, *NO_ASYNC)
    result.assert_outcomes(failed=1)
    assert "left" not in result.stdout.str().partition("short test summary")[2]
    assert_gone(marker)


def test_options(home_folder: Path, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ncwsandbox_image = python:3.11\ncwsandbox_isolation = process\n")
    code = """
import pytest

pytestmark = pytest.mark.cwsandbox(environment_variables={"GREETING": "module"}, tags=["mine"])

def test_module(sandbox):
    assert sandbox.wait().isolation == "process"
    assert sandbox.exec(["sh", "-c", "echo $GREETING"]).result().stdout == "module\\n"

@pytest.mark.cwsandbox(environment_variables={"GREETING": "test"}, isolation="process")
def test_own(sandbox):
    assert sandbox.exec(["sh", "-c", "echo $GREETING"]).result().stdout == "test\\n"

@pytest.mark.cwsandbox(isolation="namespaces")
def test_not_had(sandbox):
    pass

@pytest.mark.cwsandbox(image="python:3.11")
def test_unknown(sandbox):
    pass

@pytest.mark.cwsandbox(isolation="weak")
def test_no_level(session):
    pass

@pytest.mark.cwsandbox("python:3.11")
def test_positional(session):
    pass
"""
    result = run(pytester, code, *NO_ASYNC)
    result.assert_outcomes(passed=2, errors=4)
    result.stdout.fnmatch_lines(
        [
            "*needs isolation 'namespaces', and this gateway gives 'process'*",
            "*takes isolation and the fields of SandboxDefaults, not image*",
            "*isolation is one of namespaces, process, not 'weak'*",
            "*takes keywords only*",
        ]
    )


def test_a_suite_without_sandboxes_imports_nothing_and_keeps_its_own_fixtures(pytester: pytest.Pytester) -> None:
    code = """
import sys
import pytest

@pytest.fixture
def session():
    return "a database session"

def test_own_fixture(session):
    assert session == "a database session"

def test_nothing_is_imported():
    loaded = {name for name in sys.modules if name.split(".")[0] in ("cwsandbox", "anyio", "httpx")}
    assert loaded == {"cwsandbox", "cwsandbox._version", "cwsandbox.pytest_plugin"}
"""
    run(pytester, code, *NO_ASYNC, "-p", "no:anyio").assert_outcomes(passed=2)


def test_the_plugin_is_found_by_the_name_of_its_module() -> None:
    """Else `-p cwsandbox.pytest_plugin` beside the installed package would load it twice, which pytest refuses."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"cwsandbox.pytest_plugin": "cwsandbox.pytest_plugin"}
