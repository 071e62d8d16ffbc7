"""`sh` and `run --tty` on a real terminal, and what shows only on one."""

from __future__ import annotations

import signal

import pytest

from tests.cli.support import cws, sandboxes
from tests.cli.terminal import on_terminal


def test_a_shell_on_a_terminal(kept: str) -> None:
    with on_terminal("sh", kept, rows=33, columns=101) as terminal:
        terminal.type(b"PS1='ready> '; stty size; echo $TERM | wc -l; tty\r")
        terminal.wait_for(rb"33 101\r\n.*/dev/pts/\d+\r\n.*ready> ")
        terminal.type(b"exit 7\r")
        assert terminal.wait() == 7
        assert terminal.is_as_before


def test_a_new_size_reaches_the_shell(kept: str) -> None:
    with on_terminal("sh", kept) as terminal:
        terminal.type(b'sh -c \'trap "stty size; exit 4" WINCH; echo r""eady; sleep 1000 & wait\'; exit\r')
        terminal.wait_for(rb"ready\r\n")
        terminal.resize(50, 132)
        terminal.wait_for(rb"50 132\r\n")
        assert terminal.wait() == 4


def test_ctrl_c_is_for_the_program_in_the_shells_foreground(kept: str) -> None:
    with on_terminal("sh", kept) as terminal:
        terminal.type(b"PS1='ready> '; sh -c 'echo start\"\"ed; exec sleep 1000'\r")
        terminal.wait_for(rb"started\r\n")  # It has the foreground before it says so.
        terminal.type(b"\x03")
        terminal.wait_for(rb"ready> ")
        terminal.type(b"echo a''gain\r")
        terminal.wait_for(rb"again\r\n.*ready> ")  # Before its prompt the shell has not taken the terminal over.
        terminal.type(b"\x04")
        terminal.wait()
        assert terminal.is_as_before


def test_another_shell_with_arguments(kept: str) -> None:
    with on_terminal(
        "sh", "--cmd", "sh -c 'echo $0 $PWD $A; exit 5' name", "-w", "/usr", "-e", "A=1", kept
    ) as terminal:
        terminal.wait_for(rb"name /usr 1\r\n")
        assert terminal.wait() == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_the_program_is_killed(kept: str, number: signal.Signals) -> None:
    with on_terminal("sh", "--cmd", "sh -c 'echo pid $$; exec sleep 1000'", kept) as terminal:
        pid = terminal.wait_for(rb"pid (\d+)\r\n")[1].decode()
        was_changed = not terminal.is_as_before
        assert was_changed
        terminal.process.send_signal(number)
        assert terminal.wait() == 128 + number
        assert terminal.is_as_before
    assert cws("exec", kept, "test", "-e", f"/proc/{pid}").returncode == 1


def test_a_second_signal_ends_the_program_at_once_with_the_terminal_restored(kept: str) -> None:
    # A shell that ignores the hang-up has a second before it is killed.
    script = "sh -c 'trap \"\" HUP; echo up; while :; do sleep 1000; done'"
    with on_terminal("sh", "--cmd", script, kept) as terminal:
        terminal.wait_for(rb"up\r\n")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.process.send_signal(signal.SIGHUP)
        assert terminal.wait() in {128 + signal.SIGTERM, 128 + signal.SIGHUP}
        assert terminal.is_as_before


def test_run_on_a_terminal_stops_its_sandbox(home_folder: object) -> None:
    with on_terminal("run", "--tty", "--tag", "on-a-terminal", "sh", "-c", "tty; read line; exit $line") as terminal:
        terminal.wait_for(rb"/dev/pts/\d+\r\n")
        terminal.type(b"9\r")
        assert terminal.wait() == 9
        assert terminal.is_as_before
    assert sandboxes("-t", "on-a-terminal") == []


def test_what_is_typed_at_exec_stays_with_the_terminal_unless_asked_for(kept: str) -> None:
    with on_terminal("exec", kept, "wc", "-c") as terminal:
        terminal.wait_for(rb"0\r\n")
        assert terminal.wait() == 0
    with on_terminal("exec", "--stdin", kept, "sh", "-c", "echo up; cat") as terminal:
        terminal.wait_for(rb"up\r\n")
        terminal.type(b"typed\r")
        terminal.wait_for(rb"typed\r\ntyped\r\n")
        terminal.type(b"\x04")
        assert terminal.wait() == 0


def test_ctrl_c_on_the_terminal_interrupts_exec(kept: str) -> None:
    with on_terminal("exec", kept, "sh", "-c", "echo up; sleep 1000") as terminal:
        terminal.wait_for(rb"up\r\n")
        terminal.type(b"\x03")
        assert terminal.wait() == 130


def test_a_wait_shows_on_a_terminal_only(home_folder: object) -> None:
    stubborn = ("run", "--detach", "sh", "-c", "trap '' TERM; touch ~/up; while :; do sleep 1000; done")
    quiet, shown = (cws(*stubborn).stdout.decode().strip() for _ in range(2))
    for sandbox_id in (quiet, shown):
        assert cws("exec", sandbox_id, "sh", "-c", "until [ -e ~/up ]; do sleep 0.01; done").returncode == 0
    done = cws("stop", "--graceful-shutdown-seconds", "1", quiet)
    assert (done.stdout.decode(), done.stderr) == (f"Stopped sandbox {quiet}.\n", b"")
    with on_terminal("stop", "--graceful-shutdown-seconds", "1", shown) as terminal:
        terminal.wait_for(rb"Stopping")
        terminal.wait_for(rb"Stopped sandbox " + shown.encode())
        assert terminal.wait() == 0


def test_a_shell_needs_a_terminal_and_a_command(kept: str) -> None:
    for argv in (("sh", kept), ("run", "--tty", "true")):
        done = cws(*argv)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"must be a terminal" in done.stderr
    for command in ("", "'"):
        assert cws("sh", "--cmd", command, kept).returncode == 2
