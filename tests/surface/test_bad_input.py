"""Wrong arguments raise the documented error at once and leave the sandbox usable (behaviour 5.1, 6, 12.5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

import cwsandbox
from cwsandbox import (
    OperationRef,
    Sandbox,
    SandboxDefaults,
    SandboxError,
    SandboxExecutionError,
    SandboxFileError,
    Session,
)
from cwsandbox._client.errors import status_error
from cwsandbox.wire.errors import Code, FieldViolation, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def usable(sb: Sandbox) -> Iterator[Sandbox]:
    """A sandbox that must still work after the test."""
    yield sb
    assert sb.exec(["echo", "usable"]).result(timeout=30).stdout == "usable\n"


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ([], ValueError),
        ((), ValueError),
        ("echo hello", TypeError),
        (b"echo", TypeError),
        (None, TypeError),
        (5, TypeError),
        (["echo", 5], TypeError),
        (["echo", None], TypeError),
        (["echo", b"bytes"], TypeError),
        ([["echo"]], TypeError),
        (["echo", "nul\0inside"], ValueError),
        (["ec\0ho"], ValueError),
        ([""], ValueError),
        (["echo", "half\udc80"], ValueError),
    ],
)
def test_a_wrong_command(usable: Sandbox, command: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        usable.exec(command)
    assert usable.exec_stats["exec_count"] == 0


@pytest.mark.parametrize(
    ("cwd", "error"),
    [
        ("", ValueError),
        ("relative", ValueError),
        (".", ValueError),
        ("/a\0b", ValueError),
        ("/a\udc80", ValueError),
        (5, TypeError),
        (b"/", TypeError),
    ],
)
def test_a_wrong_cwd(usable: Sandbox, cwd: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        usable.exec(["pwd"], cwd=cwd)


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"A": "nul\0inside"}, ValueError),
        ({"A\0B": "x"}, ValueError),
        ({"A=B": "x"}, ValueError),
        ({"": "x"}, ValueError),
        ({"A": "half\udc80"}, ValueError),
        ({"A": 5}, TypeError),
        ({5: "x"}, TypeError),
        ({"A": b"x"}, TypeError),
        ({"A": None}, TypeError),
        (["A=B"], TypeError),
        ("A=B", TypeError),
    ],
)
def test_a_wrong_env(usable: Sandbox, env: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        usable.exec(["env"], env=env)
    assert "nul\0inside" not in str(caught.value)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [
        (math.nan, ValueError),
        (-1, ValueError),
        (-0.5, ValueError),
        (0, ValueError),
        (0.0, ValueError),
        (-math.inf, ValueError),
        (True, TypeError),
        (False, TypeError),
        ("5", TypeError),
    ],
)
def test_a_wrong_time_limit(usable: Sandbox, timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        usable.exec(["true"], timeout_seconds=timeout)
    with pytest.raises(error):
        usable.read_file("/etc/hostname", timeout_seconds=timeout).result()
    with pytest.raises(error):
        usable.write_file("/tmp/x", b"", timeout_seconds=timeout).result()


def test_an_unknown_keyword(usable: Sandbox) -> None:
    for keyword in ("tty", "user", "shell"):
        with pytest.raises(TypeError):
            usable.exec(["true"], **{keyword: True})  # type: ignore[arg-type]


async def test_wrong_arguments_raise_before_the_await(asb: Sandbox) -> None:
    for command, error in (([], ValueError), ("echo", TypeError), (["a\0b"], ValueError)):
        with pytest.raises(error):
            asb.exec(command)
    assert (await asb.exec(["echo", "usable"])).stdout == "usable\n"


def test_a_huge_argument_list(usable: Sandbox) -> None:
    with pytest.raises(SandboxError, match="larger"):
        usable.exec(["true", *["x" * 100_000] * 50]).result(timeout=30)


def test_a_huge_single_argument(usable: Sandbox) -> None:
    with pytest.raises(SandboxError, match="larger"):
        usable.exec(["true", "x" * 200_000]).result(timeout=30)


def test_an_argument_list_of_many_small_arguments(usable: Sandbox) -> None:
    result = usable.exec(["sh", "-c", 'echo "$#"', "sh", *["x"] * 20_000]).result(timeout=30)
    assert result.stdout == "20000\n"


def test_arguments_of_every_kind_arrive_as_they_are(usable: Sandbox) -> None:
    arguments = ["", " ", "a b", "$HOME", "*", "'", '"', "\\", "\n", "\t", "ü漢😀", "-n", "--", ";", "`x`", "\x7f"]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    import json

    assert json.loads(usable.exec(["python3", "-c", code, *arguments]).result().stdout) == arguments


def test_a_missing_program_is_127(usable: Sandbox) -> None:
    for program in ("no-such-program", "/no/such/program"):
        result = usable.exec([program]).result()
        assert result.returncode == 127
        assert program in result.stderr
    with pytest.raises(SandboxExecutionError) as caught:
        usable.exec(["no-such-program"], check=True).result()
    assert caught.value.exec_result is not None
    assert caught.value.exec_result.returncode == 127


async def test_a_missing_program_is_127_async(asb: Sandbox) -> None:
    assert (await asb.exec(["no-such-program"])).returncode == 127


def test_a_file_that_is_not_executable_is_126(usable: Sandbox) -> None:
    usable.write_file("/tmp/plain", b"just text").result()
    assert usable.exec(["/tmp/plain"]).result().returncode == 126
    assert usable.exec(["/tmp"]).result().returncode == 126


def test_a_missing_interpreter_is_127(usable: Sandbox) -> None:
    usable.write_file("/tmp/script", b"#!/no/such/interpreter\n").result()
    usable.exec(["chmod", "755", "/tmp/script"], check=True).result()
    assert usable.exec(["/tmp/script"]).result().returncode in {126, 127}


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("", (ValueError, SandboxFileError)),
        ("/tmp/a\0b", (ValueError,)),
        (5, (TypeError,)),
        (None, (TypeError,)),
        (b"/x", (TypeError,)),
    ],
)
def test_a_wrong_path(usable: Sandbox, path: Any, error: tuple[type[Exception], ...]) -> None:
    with pytest.raises(error):
        usable.read_file(path).result()
    with pytest.raises(error):
        usable.write_file(path, b"x").result()


def test_a_path_that_is_too_long(usable: Sandbox) -> None:
    for path in ("/tmp/" + "x" * 300, "/tmp" + "/x" * 3000):
        with pytest.raises(SandboxFileError):
            usable.read_file(path).result()
        with pytest.raises(SandboxFileError):
            usable.write_file(path, b"x").result()


@pytest.mark.parametrize("contents", ["text", 5, None, ["x"], object()])
def test_contents_of_a_wrong_type(usable: Sandbox, contents: Any) -> None:
    with pytest.raises(TypeError):
        usable.write_file("/tmp/wrong", contents).result()
    with pytest.raises(SandboxFileError):
        usable.read_file("/tmp/wrong").result()


def test_a_folder_without_permission(usable: Sandbox) -> None:
    for path in ("/proc/1/environ/x", "/proc/x", "/dev/null/x"):
        with pytest.raises(SandboxFileError) as caught:
            usable.write_file(path, b"x").result()
        assert caught.value.filepath == path


def test_a_file_without_permission(usable: Sandbox) -> None:
    usable.exec(["sh", "-c", "mkdir /tmp/closed && echo x > /tmp/closed/file && chmod 000 /tmp/closed"]).result()
    inside = usable.exec(["cat", "/tmp/closed/file"]).result()
    if inside.returncode == 0:  # Root inside the sandbox may read it, and so may read_file.
        assert usable.read_file("/tmp/closed/file").result() == b"x\n"
    else:
        with pytest.raises(SandboxFileError) as caught:
            usable.read_file("/tmp/closed/file").result()
        assert caught.value.reason == "CWSANDBOX_FILE_PERMISSION_DENIED"
    usable.exec(["chmod", "755", "/tmp/closed"]).result()


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "https://host/path", "nonsense", "unix://", "http://host:99999"]
)
def test_a_wrong_base_url_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Sandbox(base_url=url).start().result()


def test_a_gateway_that_is_not_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    sandbox = Sandbox(base_url="unix:///tmp/no-such-gateway.sock", request_timeout_seconds=5)
    with pytest.raises(SandboxError):
        sandbox.start().result(timeout=30)
    with pytest.raises(SandboxError):
        sandbox.exec(["true"]).result(timeout=30)


def test_the_hosted_service_is_refused_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from cwsandbox import CWSandboxError

    monkeypatch.setenv("CWSANDBOX_API_KEY", "key-that-is-secret")
    with pytest.raises(CWSandboxError, match="CWSANDBOX_BASE_URL") as caught:
        Sandbox().start().result()
    assert "CWSANDBOX_API_KEY" in str(caught.value)
    assert "key-that-is-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "keywords",
    [
        {"mounted_files": [{"path": "/x"}]},
        {"mounted_files": [{"path": "/x", "content": 5}]},
        {"mounted_files": [{"path": "relative", "content": "x"}]},
        {"s3_mount": {"bucket": "b", "mount_path": "/m", "read_only": True}},
        {"max_timeout_seconds": "5"},
        {"environment_variables": {"A": 5}},
        {"environment_variables": {"A=B": "x"}},
        {"args": "text"},
    ],
    ids=str,
)
def test_wrong_options_of_a_sandbox(keywords: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Sandbox(**keywords).start().result()


@pytest.mark.parametrize("call", [Sandbox.from_id, Sandbox.delete, Session().from_id])
@pytest.mark.parametrize(
    ("value", "error"), [("", ValueError), ("a\udc80", ValueError), (None, TypeError), (5, TypeError)]
)
def test_a_wrong_id(call: Callable[[Any], object], value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="sandbox_id"):
        call(value)


NUMBER: Any = 3
HALF: Any = 1.5
NOTHING: Any = None
TEXT: Any = "one"
LIST: Any = ["running"]
REF: Any = OperationRef.completed(1)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: cwsandbox.wait(REF), r"wait\(\[...\]\)"),
        (lambda: cwsandbox.wait([], num_returns=HALF), "num_returns must be an int"),
        (lambda: cwsandbox.results(NUMBER), "results.. takes refs"),
        (lambda: cwsandbox.get_runner(NOTHING), "runner_id must be a str"),
        (lambda: Sandbox.list(status=LIST).result(), "status must be one of unspecified, .*, not"),
        (lambda: Sandbox.list(status="ended").result(), "status must be one of unspecified, .*, not 'ended'"),
        (lambda: SandboxDefaults.from_dict({"tags": "one"}), "tags must be a list of strings"),
        (lambda: Sandbox(defaults=SandboxDefaults(tags=TEXT)), "tags of the defaults must be a list"),
        (lambda: Sandbox(container_image=NUMBER), "container_image must be a str"),
        (lambda: Sandbox(annotations=NUMBER), "annotations must be a dict"),
        (lambda: Sandbox(profile_ids=NUMBER), "profile_ids must be a list of strings, not int"),
        (lambda: Sandbox(profile_names=NUMBER), "profile_names must be a list of strings, not int"),
        (lambda: Sandbox(ports=NUMBER), "ports must be a list of dicts, not int"),
        (lambda: Sandbox(ports={"container_port": 80}), "ports must be a list of dicts, not dict"),  # type: ignore[arg-type]
        (lambda: Sandbox(mounted_files=NUMBER), "mounted_files must be a list of dicts, not int"),
        (lambda: Sandbox(secrets={"store": "s", "name": "n"}), "secrets must be a list of Secret"),  # type: ignore[arg-type]
        (lambda: Sandbox(max_timeout_seconds=-1), "max_timeout_seconds must be zero or more seconds, not -1"),
        (lambda: Session(report_to=NUMBER), "report_to must be a list of strings, not int"),
        (lambda: Session().list(runner_ids=NUMBER), "runner_ids must be a list of strings, not int"),
        (lambda: Session().log_metrics(HALF), "step must be an int, not float"),
        (lambda: Sandbox().stop(graceful_shutdown_seconds=math.inf), "must be a finite number of seconds"),
        (lambda: Sandbox(base_url=NUMBER), "the base URL must be a str"),
    ],
)
def test_what_is_wrong_is_named(call: Callable[[], object], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"command": 0}, TypeError, "command must be a str"),
        ({"command": ["echo", "a"]}, TypeError, "its arguments go into args"),
        ({"args": 5}, TypeError, "args must be a list of strings, not int"),
        ({"args": {"a": "b"}}, TypeError, "args must be a list of strings, not dict"),
        ({"tags": {"team": "x"}}, TypeError, "tags must be a list of strings, not dict"),
        ({"tags": ["half\udc80"]}, ValueError, r"tags\[0\] .*lone surrogate"),
        ({"profile_ids": {"small": True}}, TypeError, "profile_ids must be a list of strings, not dict"),
        ({"container_image": 0}, TypeError, "container_image must be a str"),
        ({"container_image": "a\0b"}, ValueError, "container_image has a NUL byte"),
        ({"mounted_files": 0}, TypeError, "mounted_files must be a list of dicts, not int"),
        ({"mounted_files": ""}, TypeError, "mounted_files must be a list of dicts, not str"),
        ({"mounted_files": {"/a\udc80": "x"}}, ValueError, "the path .*lone surrogate"),
        ({"ports": {"container_port": 80}}, TypeError, "ports must be a list of dicts, not dict"),
        ({"ports": 8080}, TypeError, "ports must be a list of dicts, not int"),
        ({"secrets": 0}, TypeError, "secrets must be a list"),
        ({"secrets": {"store": "s", "name": "n"}}, TypeError, "secrets must be a list"),
        ({"max_timeout_seconds": -1}, ValueError, "max_timeout_seconds must be"),
        ({"base_url": 5}, TypeError, "base URL must be a str"),
        ({"base_url": []}, TypeError, "base URL must be a str"),
        ({"base_url": "localhost:8080"}, ValueError, "base URL must be http://"),
        ({"defaults": {"base_url": "localhost:8080"}}, ValueError, "base URL must be http://"),
        ({"defaults": {"request_timeout_seconds": "5"}}, TypeError, "request_timeout_seconds of the defaults"),
        ({"defaults": SandboxDefaults(request_timeout_seconds=None)}, TypeError, "of the defaults"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_option_is_refused_where_it_is_written(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Sandbox(**options)


def test_wrong_values_of_other_calls_are_named(usable: Sandbox) -> None:
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: usable.exec(5), TypeError, "command must be a list of arguments, not int"),  # type: ignore[arg-type]
        (lambda: usable.exec({"echo": 1}), TypeError, "command must be a list of arguments, not dict"),  # type: ignore[arg-type]
        (lambda: usable.stop(graceful_shutdown_seconds=None), TypeError, "graceful_shutdown_seconds"),  # type: ignore[arg-type]
        (lambda: usable.read_file("half\ud800"), ValueError, "filepath .*lone surrogate"),
        (lambda: usable.exec(["true"]).result("5"), TypeError, "timeout must be a number of seconds, not str"),  # type: ignore[arg-type]
        (lambda: OperationRef.completed(1).result("5"), TypeError, "timeout must be a number"),  # type: ignore[arg-type]
        (lambda: Sandbox.list(base_url=5), TypeError, "base URL"),  # type: ignore[arg-type]
        (lambda: Sandbox.list(timeout_seconds=-1), ValueError, "^timeout_seconds must be"),
        (lambda: Sandbox.list(tags={"team": "x"}).result(), TypeError, "tags must be a list"),  # type: ignore[arg-type]
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("forever", [2**53 + 1, 10**30, 10**400, 1e300])
def test_a_time_limit_beyond_all_clocks_is_none(usable: Sandbox, forever: float) -> None:
    Sandbox(max_timeout_seconds=10**400, max_lifetime_seconds=forever)
    assert usable.exec(["true"], timeout_seconds=forever).result(forever).returncode == 0
    assert usable.wait(forever) is usable
    ref = usable.read_file("/etc/hostname", timeout_seconds=forever)
    assert cwsandbox.wait([ref], timeout=forever) == ([ref], [])


def test_a_wrong_field_is_named_once() -> None:
    status = Status.make(Code.INVALID_ARGUMENT, "a: is wrong", violations=[FieldViolation("a", "is wrong")])
    assert str(status_error(status)) == "a: is wrong"
