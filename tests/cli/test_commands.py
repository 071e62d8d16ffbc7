"""`run` and `exec`: output, input, options and exit codes pass as they are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cwsandbox.cli.app import main
from tests.cli.support import COMMAND, SECONDS, cws, document, sandboxes, start

if TYPE_CHECKING:
    from tests.support.gateway import ServedGateway


def test_the_two_outputs_are_exact_and_unmixed(kept: str) -> None:
    script = r"printf 'a\0\377\r\n\033[31m'; printf 'b\0\376' >&2; exit 7"
    done = cws("exec", kept, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"a\0\xff\r\n\x1b[31m", b"b\0\xfe")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 255"], 255),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
    ],
)
def test_the_exit_code_is_the_commands(kept: str, argv: list[str], status: int) -> None:
    assert cws("exec", kept, *argv).returncode == status
    assert cws("run", *argv).returncode == status


@pytest.mark.parametrize(
    "argv",
    [
        ["ID", "printf", "%s|", "-t", "5", "--cwd", "x", "--", "-o", "json"],
        ["ID", "--", "printf", "%s|", "-t", "5", "--cwd", "x", "--", "-o", "json"],
        ["-t", "9", "ID", "-w", "/usr", "printf", "%s|", "-t", "5", "--cwd", "x", "--", "-o", "json"],
        ["--", "ID", "printf", "%s|", "-t", "5", "--cwd", "x", "--", "-o", "json"],
    ],
)
def test_what_follows_the_command_is_the_commands_own(kept: str, argv: list[str]) -> None:
    done = cws("exec", *[kept if word == "ID" else word for word in argv])
    assert (done.returncode, done.stdout) == (0, b"-t|5|--cwd|x|--|-o|json|")


def test_options_work_before_and_behind_the_sandbox(kept: str) -> None:
    for argv in (
        ["--cwd", "/usr", "-e", "A=1", kept],
        [kept, "--cwd=/usr", "-e", "A=1"],
        ["-w/usr", kept, "--env", "A=1"],
    ):
        assert cws("exec", *argv, "sh", "-c", "echo $PWD $A").stdout == b"/usr 1\n"


def test_a_piped_input_reaches_the_command_byte_for_byte(kept: str) -> None:
    data = os.urandom(3_000_000)
    done = cws("exec", kept, "sha256sum", stdin=data)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert cws("run", "cat", stdin=b"\0\xff\n").stdout == b"\0\xff\n"


def test_an_input_file_and_a_closed_input_are_inputs_too(kept: str, tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "input")
    with open(path, "wb") as file:
        file.write(b"from a file")
    with open(path, "rb") as file:
        assert subprocess.run([*COMMAND, "exec", kept, "cat"], stdin=file, capture_output=True).stdout == b"from a file"
    closed = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *COMMAND, "exec", kept, "wc", "-c"], capture_output=True)
    assert (closed.returncode, closed.stdout) == (0, b"0\n")


def test_an_input_that_cannot_be_read_is_a_failure(kept: str, tmp_path: object) -> None:
    for argv in (["exec", kept], ["exec", "-o", "json", kept]):
        done = subprocess.run(
            ["sh", "-c", f'"$@" 0>{tmp_path}/x', "sh", *COMMAND, *argv, "sleep", "1000"], capture_output=True
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr == b"Error: the input cannot be read: Bad file descriptor\n"


def test_ctrl_c_ends_following_a_log_with_success(home_folder: object) -> None:
    sandbox_id = cws("run", "-d", "sh", "-c", "echo up; sleep 1000").stdout.decode().strip()
    with start("logs", "-f", sandbox_id) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    assert sandboxes("-s", "running").count(sandbox_id) == 1
    assert cws("rm", "-q", sandbox_id).returncode == 0


def test_following_the_log_of_a_sandbox_that_is_being_stopped_prints_it(home_folder: object) -> None:
    stubborn = "trap 'echo told' TERM; echo up; while :; do sleep 0.1; done"
    sandbox_id = cws("run", "-d", "sh", "-c", stubborn).stdout.decode().strip()
    with start("logs", "-f", sandbox_id) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"up\n"
        with start("stop", "-q", "--graceful-shutdown-seconds", "1h", sandbox_id):
            assert follower.stdout.readline() == b"told\n"
            done = cws("logs", "-f", sandbox_id)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"up\ntold\n", b"")
            assert cws("rm", "-q", sandbox_id).returncode == 0
        assert follower.wait(SECONDS) == 0


def test_no_stdin_keeps_the_input_for_the_caller(kept: str) -> None:
    script = 'read -r first; "$@"; cat'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, "exec", "-n", kept, "cat"], input=b"one\ntwo\n", capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, b"two\n")


def test_a_command_that_does_not_read_its_input_ends(kept: str) -> None:
    with start("exec", kept, "echo", "done", stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"
        assert process.wait(SECONDS) == 0


def test_a_reader_that_leaves_ends_the_command_with_success(kept: str) -> None:
    with start("exec", kept, "sh", "-c", "echo $$; exec yes") as process:
        assert process.stdout is not None
        pid = process.stdout.readline().strip().decode()
        process.stdout.close()
        assert process.wait(SECONDS) == 0
    assert cws("exec", kept, "test", "-e", f"/proc/{pid}").returncode == 1


def test_output_arrives_while_the_command_runs(kept: str) -> None:
    with start("exec", kept, "sh", "-c", "echo first; read line; echo $line", stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"first\n"
        process.stdin.write(b"second\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"second\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_kills_the_remote_command(kept: str, number: signal.Signals) -> None:
    with start("exec", kept, "sh", "-c", "echo $$; sleep 1000") as process:
        assert process.stdout is not None
        pid = process.stdout.readline().strip().decode()
        process.send_signal(number)
        assert process.wait(SECONDS) == 128 + number
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert cws("exec", kept, "test", "-e", f"/proc/{pid}").returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_sandbox_of_run(home_folder: object, number: signal.Signals) -> None:
    tag = f"interrupted-{number}"
    with start("run", "--tag", tag, "sh", "-c", "echo up; sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert len(sandboxes("-t", tag)) == 1
        process.send_signal(number)
        assert process.wait(SECONDS) == 128 + number
    assert sandboxes("-t", tag) == []


def test_a_stalled_reader_does_not_keep_an_interrupted_command(kept: str) -> None:
    with start("exec", kept, "yes") as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"  # And then nobody reads: the pipe fills up.
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 128 + signal.SIGTERM


def test_run_stops_its_sandbox_and_keep_leaves_it(home_folder: object) -> None:
    assert cws("run", "--tag", "gone", "true").returncode == 0
    assert sandboxes("-t", "gone") == []
    kept = cws("run", "--keep", "--tag", "stays", "sh", "-c", "echo 42 > /root/answer")
    (sandbox_id,) = sandboxes("-t", "stays")
    assert kept.stderr.decode() == f"Sandbox {sandbox_id} is kept.\n"
    assert cws("exec", sandbox_id, "cat", "/root/answer").stdout == b"42\n"
    assert cws("stop", sandbox_id).stdout.decode() == f"Stopped sandbox {sandbox_id}.\n"


def test_a_detached_command_is_the_main_command(home_folder: object) -> None:
    sandbox_id = cws("run", "-d", "sh", "-c", "echo hello; exit 3").stdout.decode().strip()
    for option in ("--follow", "--tail=1", "--since=2020-01-01"):
        assert cws("logs", option, sandbox_id).stdout == b"hello\n"
    (line,) = [json.loads(line) for line in cws("logs", "-o", "json", sandbox_id).stdout.splitlines()]
    assert line["line"] == "hello"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d.*", line["time"])
    assert document("get", sandbox_id)["returncode"] == 3


def test_run_passes_what_a_sandbox_is_made_from(home_folder: object, tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "settings")
    with open(path, "wb") as file:
        file.write(b"x = 1\n")
    done = cws(
        "run", "-e", "A=1", "-e", "FROM_HERE", "--file", f"{path}:/etc/settings", "--lifetime", "10m", "-w", "/usr",
        "sh", "-c", "echo $A $FROM_HERE $PWD; cat /etc/settings",
        env={"FROM_HERE": "2"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1 2 /usr\nx = 1\n", b"")


def test_json_holds_what_a_command_did(kept: str) -> None:
    assert document("exec", kept, "sh", "-c", r"printf out; printf '\377' >&2; exit 4", status=4) == {
        "sandbox_id": kept,
        "command": ["sh", "-c", r"printf out; printf '\377' >&2; exit 4"],
        "returncode": 4,
        "stdout": "out",
        "stdout_base64": None,
        "stderr": None,
        "stderr_base64": "/w==",
        "truncated": False,
    }
    outcome = json.loads(cws("run", "-o", "json", "cat", stdin=b"in").stdout)
    assert (outcome["stdout"], outcome["returncode"]) == ("in", 0)
    lost = subprocess.run(["sh", "-c", '"$@" >/dev/full', "sh", *COMMAND, "run", "-d", "--tag", "lost"], stderr=-3)
    assert (lost.returncode, sandboxes("-t", "lost")) == (1, [])  # Nobody knows its id.
    detached = document("run", "--detach", "--tag", "json")
    assert detached["status"] == "running"
    assert document("rm", detached["sandbox_id"]) == [
        {"sandbox_id": detached["sandbox_id"], "result": "deleted", "error": None}
    ]


def test_a_command_past_its_time_out_is_an_error_without_a_traceback(kept: str) -> None:
    done = cws("exec", "-t", "1", kept, "sh", "-c", "echo early; sleep 1000")
    assert (done.returncode, done.stdout) == (1, b"early\n")
    assert re.fullmatch(r"Error: the command .* was killed after timeout_seconds=1\n", done.stderr.decode())


def test_wrong_usage_is_status_2_and_says_what_is_wrong(kept: str, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        ((), "Usage:"),
        (("exec", kept), "Missing argument 'COMMAND"),
        (("exec", "--cwd", "rel", kept, "ls"), "must be an absolute path in the sandbox, not 'rel'"),
        (("exec", kept, "--cwd", "rel", "ls"), "must be an absolute path in the sandbox, not 'rel'"),
        (("exec", "--timeout", "0", kept, "ls"), "is not a duration"),
        (("run", "--lifetime", "inf", "true"), "is not a duration"),
        (("exec", "--nope", kept, "ls"), "No such option"),
        (("exec", "", "ls"), "'SANDBOX_ID': must not be empty"),
        (("rm", kept, ""), "'SANDBOX_ID...': must not be empty"),
        (("exec", "-e", "=x", kept, "ls"), "no name"),
        (("exec", kept, ""), "must not be empty"),
        (("run",), "a COMMAND is needed, or --detach"),
        (("run", "--detach", "--keep"), "--keep is for a command that is waited for"),
        (("run", "--port", "70000", "true"), "is not a port number"),
        (("run", "--file", "/no/such:/x", "true"), "cannot be read"),
        (("run", "--file", "/etc/passwd:x", "true"), "is not LOCAL:PATH"),
        (("logs", "--since", "yesterday", kept), "is not a time"),
        (("logs", "--tail", "-1", kept), "x>=0"),
        (("ls", "--status", "gone"), "is not one of"),
        (("nope",), "No such command"),
    ):
        assert main(argv) == 2, argv
        assert said in capsys.readouterr().err, argv


def test_what_the_environment_says_wrongly_is_wrong_usage(home_folder: object) -> None:
    done = cws("ls", env={"CWSANDBOX_BASE_URL": "ftp://x"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"Error: the base URL must be http://")


def test_failures_are_one_line_and_status_1(home_folder: object) -> None:
    for command in (["get"], ["exec"], ["logs"], ["stop"], ["rm"]):
        done = cws(*command, "sb-none", *(["true"] if command == ["exec"] else []))
        assert (done.returncode, done.stdout) == (1, b"")
        assert re.fullmatch(rb"Error: [^\n]*sb-none[^\n]*\n", done.stderr), done.stderr
    for name in ("stop", "rm"):
        done = cws(name, "--missing-ok", "sb-none")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"Sandbox sb-none is already missing.\n", b"")


def test_the_package_does_not_load_the_command_line() -> None:
    script = (
        "import sys, cwsandbox; cwsandbox.Sandbox, cwsandbox.Session; "
        "print([m for m in sys.modules if m.partition('.')[0] in ('click', 'rich')])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).stdout == b"[]\n"


@pytest.mark.parametrize("door", ["accepting", "making"])
def test_a_signal_while_the_sandbox_starts_leaves_none(gateway: ServedGateway, door: str) -> None:
    """Whether the request was not yet accepted, or accepted and the sandbox not yet made."""
    there = {"CWSANDBOX_BASE_URL": gateway.url}
    getattr(gateway, door).close()
    with start("run", "true", env=os.environ | there) as process:
        getattr(gateway, door).wait_for_arrivals(1)
        process.send_signal(signal.SIGTERM)
        getattr(gateway, door).open()
        assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert cws("ls", "-q", env=there).stdout == b""


def test_closed_and_full_outputs_are_no_tracebacks(kept: str) -> None:
    for argv in (("exec", kept, "echo", "hi"), ("ls",)):
        closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *COMMAND, *argv], capture_output=True)
        assert (closed.returncode, closed.stderr) == (0, b"")
        full = subprocess.run(["sh", "-c", '"$@" >/dev/full', "sh", *COMMAND, *argv], capture_output=True)
        assert full.returncode == 1
        assert re.fullmatch(rb"Error: [^\n]*No space left on device\n", full.stderr)


@pytest.mark.parametrize(("missing", "hint"), [("click", b"pip install click"), ("anyio", b"No module named|halted")])
def test_a_missing_package_of_the_command_line_is_named(missing: str, hint: bytes) -> None:
    script = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['ls']; "
        "from cwsandbox.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == 1
    assert re.search(hint, done.stderr)
    assert (b"Traceback" in done.stderr) == (missing != "click")


def test_the_version_is_the_packages() -> None:
    import cwsandbox

    assert cws("--version").stdout.decode() == f"cwsandbox, version {cwsandbox.__version__}\n"
