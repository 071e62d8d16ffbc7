"""What is checked: `nox` runs tests, lint and types; `nox -s bench` measures, `nox -s soak` looks
for what no test has thought of, `nox -s docs` builds the site."""

import nox

nox.options.sessions = ["tests", "lint", "types"]
PROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    session.install(".", *nox.project.dependency_groups(PROJECT, *groups))


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; arguments go to pytest, instead of `-n 4` (most of a test's time is waiting for processes)."""
    install(session, "test")
    session.run("python", "-m", "pytest", *(session.posargs or ["-n", "4"]))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the code, the benchmarks and the tests, and that every public name has one."""
    install(session, "types")
    session.run("mypy", "cwsandbox", "benchmarks", "tests")
    session.run("pyright", "--verifytypes", "cwsandbox", "--ignoreexternal")


@nox.session
def bench(session: nox.Session) -> None:
    """Print the table of measurements."""
    install(session, "test")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Use sandboxes at random, under random trouble; arguments are those of `python -m tests.soak`."""
    install(session, "test")
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site into `site/`; every warning is an error."""
    install(session, "docs")
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})
