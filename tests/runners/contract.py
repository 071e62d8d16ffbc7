"""The contract suite: what every runner promises. A runner's tests subclass `RunnerContract` and give it a `box` fixture."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import stat
from typing import TYPE_CHECKING

import anyio
import pytest

from cwsandbox.runners.errors import BoxGoneError, CommandNotStartedError, CommandTooLargeError, RunnerError
from cwsandbox.runners.specs import ExecSpec, ExitStatus, TerminalSize
from cwsandbox.wire.folderstream import Kind, encode
from cwsandbox.wire.packing import pack
from cwsandbox.wire.unpacking import Unpacker
from tests.runners.support import (
    FINISH_SECONDS,
    agent_turn,
    asked,
    exec_id,
    file_job,
    file_rows,
    host_children,
    input_of,
    python,
    read_all,
    read_file,
    read_until,
    run,
    shell,
    started,
    token,
    until_gone,
    write_file,
)
from tests.support.levels import needs_descriptors, needs_own_ipv6
from tests.support.ports import free_port
from tests.support.processes import processes_with

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from cwsandbox.runners.base import Box

MEBIBYTE = 1024 * 1024

DOUBLE_FORK = "import os,time\nif os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
READY = "import sys; print('ready', flush=True)\n"
SLEEP = "import time; time.sleep(600)\n"
TREES = {
    "double fork": f"import os,sys,time\nif os.fork()==0:\n os.setsid()\n if os.fork(): os._exit(0)\n {READY} {SLEEP}\ntime.sleep(600)",
    "own session": f"import os\nif os.fork()==0:\n os.setsid()\n {READY} {SLEEP}\n{SLEEP}",
    "TERM ignored": f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{READY}{SLEEP}",
    "not dumpable": f"import ctypes\nctypes.CDLL(None).prctl(4,0,0,0,0)\n{READY}{SLEEP}",
    "first thread gone": "import threading,ctypes,time\n"
    "def go():\n time.sleep(.05)\n print('ready',flush=True)\n time.sleep(600)\n"
    "threading.Thread(target=go).start()\nctypes.CDLL(None).pthread_exit(None)",
    "environment cleared": "import os,sys,time\n"
    f"if len(sys.argv)<3: os.fork() and time.sleep(600); os.setsid(); os.execve(sys.executable,[sys.executable,'-I','-c','''{READY}{SLEEP}''',sys.argv[1],'x'],{{}})",
}


def daemons(word: str, *preludes: str) -> str:
    """A shell script that ends when its daemons run, each in a session of its own and with `word` in its argv."""
    script = "".join(
        f'setsid sh -c "{prelude}; echo > up; read x < never; echo {word}" & read x < up; '
        for prelude in preludes or ":"
    )
    return f"mkfifo up never; {script}"  # Waiting by a child would be seen twice, until the child is `sleep`.


class RunnerContract:
    # -- output, input, exits

    async def test_output_and_exit_code_arrive(self, box: Box) -> None:
        result = await shell(box, "echo out; echo err >&2; exit 7")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
        assert result.status == ExitStatus(code=7)

    async def test_a_killed_command_reports_its_signal(self, box: Box) -> None:
        result = await shell(box, "kill -USR1 $$")
        assert result.status == ExitStatus(signal=signal.SIGUSR1)
        assert result.status.returncode == 128 + signal.SIGUSR1

    async def test_wait_does_not_need_the_output_read(self, box: Box) -> None:
        async with started(box, "echo", "unread") as command:
            with anyio.fail_after(FINISH_SECONDS):
                assert await command.wait() == ExitStatus(code=0)
            assert await read_all(command.stdout) == b"unread\n"

    async def test_wait_can_be_called_again_and_by_many(self, box: Box) -> None:
        async with started(box, "true") as command, anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(command.wait)
            assert await command.wait() == ExitStatus(code=0)

    async def test_cancelling_wait_stops_waiting_only(self, box: Box) -> None:
        async with started(box, "cat", stdin=True) as command:
            with anyio.move_on_after(0) as scope:
                await command.wait()
            assert scope.cancelled_caught
            await input_of(command).aclose()
            assert await command.wait() == ExitStatus(code=0)

    async def test_stdin_reaches_the_command_and_ends(self, box: Box) -> None:
        assert (await run(box, "cat", stdin=b"hello")).stdout == b"hello"

    async def test_without_stdin_a_command_reads_the_end_at_once(self, box: Box) -> None:
        assert (await run(box, "cat")).status == ExitStatus(code=0)

    async def test_many_bytes_pass_unchanged_both_ways(self, box: Box) -> None:
        data = bytes(range(256)) * 4096 * 16
        assert (await run(box, "cat", stdin=data)).stdout == data

    async def test_a_cancelled_send_says_how_much_was_taken(self, box: Box) -> None:
        async with started(box, "sh", "-c", "read line; cat | wc -c", stdin=True) as command:
            with anyio.move_on_after(0.2):
                await input_of(command).send(b"x" * MEBIBYTE)
            taken = input_of(command).sent_bytes
            assert 0 < taken < MEBIBYTE
            await input_of(command).send(b"\n")
            await input_of(command).aclose()
            assert await read_all(command.stdout) == b"0\n"

    async def test_sending_to_a_command_that_reads_no_more_fails(self, box: Box) -> None:
        async with started(box, "true", stdin=True) as command:
            await command.wait()
            with pytest.raises(anyio.BrokenResourceError):
                await input_of(command).send(b"x")

    async def test_a_cancelled_receive_loses_nothing(self, box: Box) -> None:
        async with started(box, "cat", stdin=True) as command:
            with anyio.move_on_after(0.05) as scope:
                await command.stdout.receive()
            assert scope.cancelled_caught
            await input_of(command).send(b"kept")
            assert await command.stdout.receive() == b"kept"

    async def test_the_output_of_a_daemon_does_not_hold_the_stream_open(self, box: Box) -> None:
        with anyio.fail_after(FINISH_SECONDS):
            result = await shell(box, "echo first; sleep 600 & echo last")
        assert result.stdout == b"first\nlast\n"

    async def test_all_that_the_command_wrote_comes_before_the_end(self, box: Box) -> None:
        async with started(box, "sh", "-c", "head -c 60000 /dev/zero; sleep 600 &") as command:
            await command.wait()
            assert len(await read_all(command.stdout)) == 60000

    async def test_a_daemon_outlives_its_command_and_may_go_on_printing(self, box: Box) -> None:
        result = await shell(
            box, "(head -c 3000000 /dev/zero; echo done > $HOME/daemon; exec sleep 600) & echo started"
        )
        assert result.stdout.startswith(b"started") or result.stdout.startswith(b"\0")
        content = b""
        with anyio.fail_after(FINISH_SECONDS):
            while content != b"done\n":
                content = (await shell(box, "cat $HOME/daemon 2>/dev/null")).stdout
        assert content == b"done\n"

    @needs_descriptors(1600)
    async def test_two_hundred_commands_at_once(self, box: Box) -> None:
        commands = [await box.exec(ExecSpec(exec_id(), ("cat",), stdin=True)) for _ in range(200)]
        for number, command in enumerate(commands):
            await input_of(command).send(str(number).encode())
            await input_of(command).aclose()
        for number, command in enumerate(commands):
            assert await read_all(command.stdout) == str(number).encode()
            assert await command.wait() == ExitStatus(code=0)
            command.forget()
        assert box.commands() == []

    # -- how commands are started

    @pytest.mark.parametrize(
        ("argv", "status"),
        [
            (("no-such-program",), 127),
            (("/no/such/program",), 127),
            (("",), 127),
            (("/etc/passwd",), 126),
            (("/etc",), 126),
            (("echo", "nul\0byte"), 126),
            ((), 126),
        ],
    )
    async def test_what_cannot_be_started_has_a_shells_status(
        self, box: Box, argv: tuple[str, ...], status: int
    ) -> None:
        with pytest.raises(CommandNotStartedError) as raised:
            await box.exec(ExecSpec(exec_id(), argv))
        assert raised.value.status == status
        assert box.commands() == []

    async def test_a_missing_working_directory_is_said(self, box: Box) -> None:
        with pytest.raises(CommandNotStartedError, match="/nowhere") as raised:
            await box.exec(ExecSpec(exec_id(), ("true",), cwd="/nowhere"))
        assert raised.value.status == 2

    async def test_a_script_whose_interpreter_is_missing_is_not_found(self, box: Box) -> None:
        await shell(box, "printf '#!/no/such/interpreter\n' > $HOME/script; chmod +x $HOME/script")
        with pytest.raises(CommandNotStartedError) as raised:
            await box.exec(ExecSpec(exec_id(), ("sh", "-c", "exec $HOME/script"), env={"PATH": "/nowhere"}))
        assert raised.value.status == 127

    async def test_the_working_directory_is_used(self, box: Box) -> None:
        assert (await run(box, "pwd", cwd="/usr/bin")).text == "/usr/bin\n"

    async def test_the_default_working_directory_is_home(self, box: Box) -> None:
        assert (await shell(box, "[ $PWD = $HOME ] && [ -w . ] && echo yes")).text == "yes\n"

    async def test_a_command_sees_its_environment_only(self, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GATEWAY_SECRET", "hidden")
        result = await run(box, "env", env={"MINE": "1", "FROM_BOX": "replaced"})
        names = dict(line.split("=", 1) for line in result.text.splitlines())
        assert names["MINE"] == "1"
        assert names["FROM_BOX"] == "replaced"
        assert names["ALSO_FROM_BOX"] == "kept"
        assert "GATEWAY_SECRET" not in names
        assert names.keys() - {"MINE", "FROM_BOX", "ALSO_FROM_BOX"} <= {"HOME", "PATH", "LANG", "HOSTNAME", "TMPDIR"}

    async def test_path_is_looked_up_in_the_commands_environment(self, box: Box) -> None:
        await shell(box, "mkdir $HOME/bin; printf '#!/bin/sh\necho own' > $HOME/bin/own; chmod +x $HOME/bin/own")
        home = (await shell(box, "echo $HOME")).text.strip()
        assert (await run(box, "own", env={"PATH": f"{home}/bin:/usr/bin:/bin"})).text == "own\n"

    async def test_a_large_command_line_is_passed_whole(self, box: Box) -> None:
        arguments = ["x" * 100_000] * 15
        result = await run(box, "sh", "-c", 'echo "$#" "${#1}"', "sh", *arguments)
        assert result.text == "15 100000\n"

    async def test_too_large_a_command_line_is_a_clear_error(self, box: Box) -> None:
        with pytest.raises(CommandTooLargeError, match="stdin or a file"):
            await box.exec(ExecSpec(exec_id(), ("echo", *["x" * 100_000] * 40)))

    async def test_text_that_is_not_utf8_is_passed_unchanged(self, box: Box) -> None:
        assert (await run(box, "printf", "%s", b"\xff\xfe".decode(errors="surrogateescape"))).stdout == b"\xff\xfe"

    async def test_signals_are_as_usual_in_commands(self, box: Box) -> None:
        result = await run(box, "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
        blocked, ignored = (int(line.split()[1], 16) for line in result.text.splitlines())
        reserved_by_libc = 0b11 << 31
        assert (blocked, ignored & ~reserved_by_libc) == (0, 0)

    async def test_a_command_has_no_foreign_descriptors(self, box: Box) -> None:
        result = await python(box, "import os; print(sorted(os.listdir('/proc/self/fd')))")
        assert result.text == "['0', '1', '2', '3']\n"

    async def test_python_is_the_callers_version(self, box: Box) -> None:
        import platform

        for name in ("python", "python3"):
            result = await run(
                box, name, "-c", "import platform, ssl, sqlite3, ctypes; print(platform.python_version())"
            )
            assert result.text.strip() == platform.python_version(), result.stderr

    async def test_an_exec_id_in_use_is_refused(self, box: Box) -> None:
        async with started(box, "cat", stdin=True) as command:
            with pytest.raises(RunnerError):
                await box.exec(ExecSpec(command.exec_id, ("true",)))
            assert [found.exec_id for found in box.commands()] == [command.exec_id]

    async def test_a_cancelled_exec_leaves_no_command(self, box: Box) -> None:
        word = token()
        for delay in (0, 0.0001, 0.0003, 0.001):
            with anyio.move_on_after(delay) as scope:
                await box.exec(ExecSpec(exec_id(), ("sh", "-c", f"sleep 600; echo {word}")))
            if not scope.cancelled_caught:
                for command in box.commands():
                    await command.kill()
                    command.forget()
            assert processes_with(word) == []
        assert box.commands() == []

    # -- terminals

    async def test_a_terminal_is_a_controlling_terminal_with_a_size(self, box: Box) -> None:
        async with started(
            box,
            "sh",
            "-c",
            "tty; stty size < /dev/tty; test -t 2 && echo $TERM",
            terminal=TerminalSize(99, 33),
            stdin=True,
        ) as command:
            lines = (await read_all(command.stdout)).decode().split("\r\n")
            assert lines[0].startswith("/dev/pts/")
            assert lines[1:] == ["33 99", "xterm-256color", ""]
            assert command.stderr is None
            assert await command.wait() == ExitStatus(code=0)

    async def test_a_resized_terminal_signals_its_programs(self, box: Box) -> None:
        script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
        async with started(box, "sh", "-c", script, terminal=TerminalSize(80, 24)) as command:
            await read_until(command.stdout, b"ready")
            await command.resize(TerminalSize(columns=120, rows=50))
            assert b"50 120" in await read_all(command.stdout)

    async def test_control_c_interrupts_the_foreground(self, box: Box) -> None:
        async with started(
            box, "sh", "-c", "echo ready; exec sleep 600", terminal=TerminalSize(), stdin=True
        ) as command:
            await read_until(command.stdout, b"ready")
            await input_of(command).send(b"\x03")
            with anyio.fail_after(FINISH_SECONDS):
                assert await command.wait() == ExitStatus(signal=signal.SIGINT)

    async def test_the_end_of_a_terminals_input_ends_a_reader(self, box: Box) -> None:
        async with started(box, "cat", terminal=TerminalSize(), stdin=True) as command:
            await input_of(command).send(b"line\n")
            await read_until(command.stdout, b"line\r\nline\r\n")
            await input_of(command).aclose()
            with anyio.fail_after(FINISH_SECONDS):
                assert await command.wait() == ExitStatus(code=0)

    # -- signals and kills

    async def test_a_signal_reaches_the_first_process(self, box: Box) -> None:
        async with started(
            box, "sh", "-c", "trap 'echo got; exit 3' HUP; echo ready; while :; do sleep 0.02; done"
        ) as command:
            await read_until(command.stdout, b"ready")
            await command.signal(signal.SIGHUP)
            assert await command.wait() == ExitStatus(code=3)
            await command.signal(signal.SIGHUP)

    @pytest.mark.parametrize("way", TREES)
    async def test_kill_ends_the_whole_tree(self, box: Box, way: str) -> None:
        word = token()
        async with started(box, "python3", "-I", "-c", TREES[way], word) as command:
            await read_until(command.stdout, b"ready")
            assert processes_with(word)
            with anyio.fail_after(FINISH_SECONDS):
                await command.kill()
            assert processes_with(word) == []

    async def test_kill_ends_daemons_of_a_command_that_has_exited(self, box: Box) -> None:
        word = token()
        async with started(box, "sh", "-c", daemons(word)) as command:
            await command.wait()
            assert processes_with(word)
            await command.kill()
            assert processes_with(word) == []

    async def test_kill_ends_a_fork_storm(self, box: Box) -> None:
        word = token()
        script = "import os,sys\nfor _ in range(6): os.fork()\nprint('ready',flush=True)\nwhile True:\n if os.fork(): os._exit(0)"
        async with started(box, "python3", "-I", "-c", script, word) as command:
            await read_until(command.stdout, b"ready")
            with anyio.fail_after(FINISH_SECONDS):
                await command.kill()
            assert processes_with(word) == []

    async def test_kill_leaves_other_commands_alone(self, box: Box) -> None:
        async with started(box, "cat", stdin=True) as other, started(box, "sleep", "600") as command:
            await command.kill()
            assert await command.wait() == ExitStatus(signal=signal.SIGKILL)
            await input_of(other).send(b"alive")
            assert await other.stdout.receive() == b"alive"

    async def test_many_kills_at_once(self, box: Box) -> None:
        commands = [await box.exec(ExecSpec(exec_id(), ("sleep", "600"))) for _ in range(50)]
        with anyio.fail_after(FINISH_SECONDS):
            async with anyio.create_task_group() as tasks:
                for command in commands:
                    tasks.start_soon(command.kill)
        for command in commands:
            assert await command.wait() == ExitStatus(signal=signal.SIGKILL)
            command.forget()

    # -- files

    @pytest.mark.parametrize("size", [0, 1, 65536, 65537, 5 * MEBIBYTE + 3])
    @pytest.mark.parametrize("told", [True, False])
    async def test_files_come_back_as_they_were_written(self, box: Box, size: int, told: bool) -> None:
        content = (b"0123456789abcdef" * math.ceil(size / 16))[:size]
        await write_file(box, "new/folders/file", content, size=size if told else None)
        assert await read_file(box, "new/folders/file") == content
        file = await box.open_file("new/folders/file")
        assert file.size == size
        await file.aclose()
        assert (await shell(box, "cat $HOME/new/folders/file")).stdout == content
        assert (await shell(box, "ls -A $HOME/new/folders")).text == "file\n"

    async def test_absolute_paths_are_the_boxs(self, box: Box) -> None:
        home = (await shell(box, "echo $HOME")).text.strip()
        await write_file(box, f"{home}/absolute", b"x", size=1)
        assert await read_file(box, "absolute") == b"x"

    async def test_reading_errors_are_the_kernels(self, box: Box) -> None:
        await shell(box, "mkdir $HOME/folder; mkfifo $HOME/pipe")
        for path, error in (
            ("missing", FileNotFoundError),
            ("folder", IsADirectoryError),
            ("/etc/passwd/below", NotADirectoryError),
            ("pipe", OSError),
            ("/dev/zero", OSError),
            ("nul\0", OSError),
        ):
            with anyio.fail_after(FINISH_SECONDS), pytest.raises(error):
                await box.open_file(path)

    async def test_writing_errors_are_the_kernels(self, box: Box) -> None:
        await shell(box, "mkdir $HOME/folder")
        for path, error in (
            ("folder", IsADirectoryError),
            ("/etc/passwd/below", NotADirectoryError),
            ("/dev/null", OSError),
        ):
            for size in (1, MEBIBYTE):
                with pytest.raises(error):
                    await write_file(box, path, b"x" * size, size=size)

    async def test_a_replaced_file_keeps_its_mode(self, box: Box) -> None:
        for size in (10, MEBIBYTE):
            await shell(box, "echo old > $HOME/tool; chmod 750 $HOME/tool")
            await write_file(box, "tool", b"y" * size, size=size)
            assert (await shell(box, "stat -c '%a %s' $HOME/tool")).text == f"750 {size}\n"

    async def test_a_new_file_is_readable_by_all(self, box: Box) -> None:
        await write_file(box, "plain", b"", size=0)
        assert (await shell(box, "stat -c %a $HOME/plain")).text == "644\n"

    async def test_symlinks_are_written_through(self, box: Box) -> None:
        await shell(box, "mkdir $HOME/a; ln -s a/target $HOME/link")
        await write_file(box, "link", b"through", size=7)
        assert (await shell(box, "cat $HOME/a/target; test -L $HOME/link && echo link")).text == "throughlink\n"

    async def test_a_file_is_invisible_until_it_is_committed(self, box: Box) -> None:
        for size in (10, MEBIBYTE):
            await shell(box, "mkdir -p $HOME/d; echo old > $HOME/d/file")
            file = await box.create_file("d/file", size=size)
            await file.send(b"n" * size)
            assert await read_file(box, "d/file") == b"old\n"
            await file.aclose()
            assert await read_file(box, "d/file") == b"old\n"
            assert (await shell(box, "ls -A $HOME/d")).text == "file\n"

    async def test_files_that_do_not_know_their_size_are_read_whole(self, box: Box) -> None:
        assert b"Name:" in await read_file(box, "/proc/self/status")

    # -- other file operations

    async def test_quick_operations_say_what_they_found(self, box: Box, home: str) -> None:
        await box.file_info(asked("mkdir", f"{home}/a/b", parents=True))
        await write_file(box, f"{home}/a/b/f", b"12345")
        found = await box.file_info(asked("stat", f"{home}/a/b/f"))
        assert (found.size, stat.S_ISREG(found.mode)) == (5, True)
        await box.file_info(asked("unlink", f"{home}/a/b/f"))
        await box.file_info(asked("rmdir", f"{home}/a/b"))
        with pytest.raises(FileNotFoundError):
            await box.file_info(asked("stat", f"{home}/a/b"))

    async def test_entries_of_a_folder(self, box: Box, home: str) -> None:
        await shell(box, f"mkdir {home}/l; cd {home}/l; seq 1000 | xargs touch")
        for folder, expected in ((f"{home}/l", {str(n) for n in range(1, 1001)}), (f"{home}/l/../l", None)):
            rows = await file_rows(box, asked("list", folder))
            assert expected is None or {row[0] for row in rows} == expected
            assert len(rows) == 1000
        assert {row[0] for row in await file_rows(box, asked("glob", home, pattern="l/99*"))} == {
            "l/99",
            *(f"l/99{n}" for n in range(10)),
        }

    async def test_a_folder_goes_in_and_comes_out(self, box: Box, home: str, tmp_path: Path) -> None:
        (tmp_path / "source" / "deep").mkdir(parents=True)
        (tmp_path / "source" / "deep" / "run").write_bytes(b"#!/bin/sh\necho ran\n")
        (tmp_path / "source" / "deep" / "run").chmod(0o755)
        (tmp_path / "source" / "large").write_bytes(bytes(3 * MEBIBYTE))
        (tmp_path / "source" / "link").symlink_to("deep/run")
        await file_job(box, asked("unpack", f"{home}/new/there"), pack(str(tmp_path / "source")))
        assert (await run(box, f"{home}/new/there/link")).text == "ran\n"
        unpacker = Unpacker(str(tmp_path / "back"), contain=True)
        unpacker.feed(await file_job(box, asked("pack", f"{home}/new/there", totals=True)))
        unpacker.finish()
        assert (unpacker.tally.files, unpacker.tally.total_bytes) == (2, 3 * MEBIBYTE + 19)
        assert (tmp_path / "back" / "large").read_bytes() == bytes(3 * MEBIBYTE)

    async def test_a_transfer_that_is_given_up_leaves_nothing(self, box: Box, home: str) -> None:
        job = await box.file_job(asked("unpack", f"{home}/half"))
        assert job.input is not None
        await job.input.send(encode(Kind.FOLDER) + encode(Kind.FILE, b"f") + encode(Kind.CHUNK, content=b"x" * 1000))
        await job.aclose()
        assert (await shell(box, f"ls -A {home} | grep -c half; ls -A {home} | grep -c part")).text == "0\n0\n"

    async def test_a_stream_that_is_none_is_refused(self, box: Box, home: str) -> None:
        with pytest.raises(OSError, match="leads elsewhere"):
            await file_job(
                box, asked("unpack", f"{home}/bad"), [encode(Kind.FOLDER) + encode(Kind.FILE, b"..") + bytes(100_000)]
            )
        with pytest.raises(OSError, match="cut off"):
            await file_job(box, asked("unpack", f"{home}/bad"), [encode(Kind.FOLDER)])
        assert (await shell(box, f"ls -A {home} | grep -c bad; ls -A {home} | grep -c part")).text == "0\n0\n"

    async def test_trees_are_moved_and_removed(self, box: Box, home: str) -> None:
        await shell(box, f"mkdir -p {home}/t/a; touch {home}/t/a/f; chmod 0 {home}/t/a")
        await file_job(box, asked("move", f"{home}/t", target=f"{home}/u"))
        await file_job(box, asked("remove", f"{home}/u"))
        assert (await shell(box, f"ls -d {home}/t {home}/u")).stdout == b""

    async def test_errors_of_jobs_are_the_kernels(self, box: Box, home: str) -> None:
        await write_file(box, f"{home}/plain", b"x")
        for request, error in (
            (asked("list", f"{home}/none"), FileNotFoundError),
            (asked("list", f"{home}/plain"), NotADirectoryError),
            (asked("glob", f"{home}/plain", pattern="*"), NotADirectoryError),
            (asked("pack", f"{home}/none"), FileNotFoundError),
            (asked("watch", f"{home}/none"), FileNotFoundError),
            (asked("remove", f"{home}/none"), FileNotFoundError),
            (asked("move", f"{home}/none", target=f"{home}/x"), FileNotFoundError),
            (asked("move", f"{home}/plain", target="/var"), IsADirectoryError),
        ):
            with pytest.raises(error):
                await file_job(box, request)

    async def test_changes_are_told(self, box: Box, home: str) -> None:
        await box.file_info(asked("mkdir", f"{home}/w"))
        job = await box.file_job(asked("watch", f"{home}/w", recursive=True))
        try:
            await shell(box, f"mkdir {home}/w/d")
            told = await read_until(job.output, f'"{home}/w/d",true'.encode())  # From then on it is watched, too.
            await shell(box, f"cd {home}/w; touch d/f; mv d/f g; rm g")
            told += await read_until(job.output, f'["deleted","{home}/w/g"'.encode())
        finally:
            await job.aclose()
        rows = [row for line in told.splitlines() for row in json.loads(line)]
        assert ["created", f"{home}/w/d", True, None] in rows
        assert ["created", f"{home}/w/d/f", False, None] in rows
        assert ["moved", f"{home}/w/d/f", False, f"{home}/w/g"] in rows

    async def test_jobs_survive_the_kill_of_a_command(self, box: Box, home: str) -> None:
        await box.file_info(asked("mkdir", f"{home}/w"))
        job = await box.file_job(asked("watch", f"{home}/w"))
        try:
            async with started(box, "sleep", "600") as command:
                await command.kill()
            await shell(box, f"touch {home}/w/after")
            await read_until(job.output, f"{home}/w/after".encode())
        finally:
            await job.aclose()

    async def test_many_jobs_at_once(self, box: Box) -> None:
        counts = []

        async def count() -> None:
            counts.append(len(await file_rows(box, asked("list", "/etc"))))

        async with anyio.create_task_group() as tasks:
            for _ in range(60):
                tasks.start_soon(count)
        assert len(counts) == 60
        assert len(set(counts)) == 1

    async def test_a_cancelled_job_leaves_no_process(self, box: Box, home: str) -> None:
        await shell(box, f"mkdir -p {home}/big; cd {home}/big; seq 5000 | xargs touch")
        before = len(host_children(box))
        for delay in (0, 0.001, 0.01):
            with anyio.move_on_after(delay):
                await file_job(box, asked("list", f"{home}/big"))
        with anyio.fail_after(FINISH_SECONDS):
            while len(host_children(box)) > before:
                await agent_turn(box)  # It reaps them when it has one.

    async def test_what_is_asked_of_files_in_a_stopped_box_says_so(self, box: Box) -> None:
        job = await box.file_job(asked("watch", "/tmp"))
        await box.stop(0)
        with pytest.raises(BoxGoneError):
            await job.wait()
        await job.aclose()
        with pytest.raises(BoxGoneError):
            await box.file_info(asked("stat", "/tmp"))
        with pytest.raises(BoxGoneError):
            await box.file_job(asked("list", "/tmp"))

    async def test_file_mounts_are_in_place_and_read_only(self, box: Box) -> None:
        assert await read_file(box, "/tmp/mounted/deep.txt") == b"mounted content"
        result = await shell(box, "cat /tmp/mounted/deep.txt; echo x > /tmp/mounted/deep.txt")
        assert result.stdout == b"mounted content"
        assert await read_file(box, "/tmp/mounted/deep.txt") == b"mounted content"

    # -- the end

    async def test_stop_lets_the_main_command_finish(self, box: Box) -> None:
        with anyio.fail_after(FINISH_SECONDS):
            await box.stop(10)
        assert await box.main.wait() == ExitStatus(code=42)
        assert b"main ended" in await read_all(box.main.stdout)

    async def test_nothing_runs_after_stop(self, box: Box) -> None:
        word = token()
        await shell(box, daemons(word, ":", "trap '' TERM"))
        assert len(processes_with(word)) == 2
        await box.stop(0)
        assert processes_with(word) == []

    async def test_stop_may_be_called_again_and_by_many(self, box: Box) -> None:
        with anyio.fail_after(FINISH_SECONDS):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(box.stop, 0)
            await box.stop(5)
            await box.wait_gone()

    async def test_a_cancelled_stop_has_killed(self, box: Box) -> None:
        word = token()
        await shell(box, daemons(word))
        assert processes_with(word)
        with anyio.move_on_after(0):
            await box.stop(60)
        await until_gone(word)
        with anyio.fail_after(FINISH_SECONDS):
            await box.wait_gone()

    async def test_what_is_asked_of_a_stopped_box_says_so(self, box: Box) -> None:
        async with started(box, "sleep", "600") as command:
            await box.stop(0)
            with contextlib.suppress(BoxGoneError):
                assert await command.wait() == ExitStatus(signal=signal.SIGKILL)
            assert await read_all(command.stdout) == b""
        with pytest.raises(RunnerError, match="ended"):
            await box.exec(ExecSpec(exec_id(), ("true",)))
        with pytest.raises(RunnerError, match="ended"):
            await box.open_file("/etc/passwd")

    # -- connections

    @pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", pytest.param("::1", marks=needs_own_ipv6)])
    async def test_a_server_in_the_box_can_be_connected_to(self, box: Box, bound: str) -> None:
        async with serving(box, bound, ECHO) as port:
            connection = await box.connect(port)
            await connection.send(b"hello")
            await connection.send_eof()
            assert await read_all(connection) == b"hello"
            await connection.aclose()

    async def test_a_port_on_which_nobody_listens_refuses(self, box: Box) -> None:
        with anyio.fail_after(FINISH_SECONDS), pytest.raises(ConnectionRefusedError, match="port 1 "):
            await box.connect(1)

    async def test_an_aborted_connection_does_not_look_finished(self, box: Box) -> None:
        program = ECHO.replace("break", "print('ended', flush=True)")
        async with serving(box, "127.0.0.1", program) as port:
            connection = await box.connect(port)
            await connection.send(b"x")
            assert await connection.receive() == b"x"
            connection.abort()
            with pytest.raises(anyio.ClosedResourceError):
                await connection.receive()

    async def test_many_connections_at_once(self, box: Box) -> None:
        answers = []

        async def ask(port: int, number: int) -> None:
            connection = await box.connect(port)
            await connection.send(b"%d" % number * 1000)
            await connection.send_eof()
            answers.append(await read_all(connection) == b"%d" % number * 1000)
            await connection.aclose()

        async with serving(box, "127.0.0.1", ECHO) as port:
            with anyio.fail_after(FINISH_SECONDS):
                async with anyio.create_task_group() as tasks:
                    for number in range(50):
                        tasks.start_soon(ask, port, number)
        assert answers == [True] * 50

    async def test_a_cancelled_connect_leaves_nothing(self, box: Box) -> None:
        before = len(os.listdir("/proc/self/fd"))
        async with serving(box, "127.0.0.1", ECHO) as port:
            here = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                with anyio.move_on_after(0):
                    (await box.connect(port)).abort()
            await (await box.connect(port)).aclose()
            assert len(os.listdir("/proc/self/fd")) <= here  # Fewer if something of an earlier test was collected.
        assert len(os.listdir("/proc/self/fd")) <= before

    async def test_the_gateway_takes_connections_from_inside(self, box: Box) -> None:
        port = free_port()  # Without namespaces the box's loopback is this machine's.
        listener = await box.listen(port)
        program = (
            "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
            "s.sendall(b'from inside'); s.shutdown(1); print(s.recv(100).decode())"
        )
        async with started(box, "python3", "-Ic", program, str(port)) as command:
            with anyio.fail_after(FINISH_SECONDS):
                connection = await listener.accept()
                assert await read_all(connection) == b"from inside"
                await connection.send(b"from outside")
                await connection.aclose()
                assert await read_all(command.stdout) == b"from outside\n"

    async def test_listening_again_goes_on_where_it_was(self, box: Box) -> None:
        port = free_port()
        first = await box.listen(port)
        with anyio.move_on_after(0.05):
            await first.accept()
        again = await box.listen(port)
        program = (
            "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(9).decode())"
        )
        async with started(box, "python3", "-Ic", program, str(port)) as command:
            with anyio.fail_after(FINISH_SECONDS):
                connection = await again.accept()
                await connection.send(b"taken")
                await connection.aclose()
                assert await read_all(command.stdout) == b"taken\n"

    async def test_a_port_that_a_program_has_cannot_be_listened_on(self, box: Box) -> None:
        async with serving(box, "127.0.0.1", ECHO) as port:
            with pytest.raises(OSError) as caught:
                await box.listen(port)
            assert caught.value.errno == errno.EADDRINUSE

    async def test_a_connection_ends_with_its_box(self, box: Box) -> None:
        async with serving(box, "127.0.0.1", ECHO, ends=False) as port:
            connection = await box.connect(port)
            await connection.send(b"x")
            assert await connection.receive() == b"x"
            await box.stop(0)
            with anyio.fail_after(FINISH_SECONDS), contextlib.suppress(anyio.BrokenResourceError):
                assert await read_all(connection) == b""
            await connection.aclose()
            with pytest.raises(BoxGoneError):
                await box.connect(port)


ECHO = """
import socket, sys, threading
def echo(connection):
    with connection:
        while True:
            try: data = connection.recv(65536)
            except ConnectionResetError: break
            if not data: break
            connection.sendall(data)
server = socket.create_server((sys.argv[1], 0), family=10 if ":" in sys.argv[1] else 2, backlog=64)
print(server.getsockname()[1], flush=True)
while True: threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
"""


@contextlib.asynccontextmanager
async def serving(box: Box, bound: str, program: str, *, ends: bool = True) -> AsyncIterator[int]:
    """A server in the box that says its port."""
    command = await box.exec(ExecSpec(exec_id(), ("python3", "-Ic", program, bound)))
    try:
        yield int(await read_until(command.stdout, b"\n"))
    finally:
        with anyio.CancelScope(shield=True):
            if ends:
                await command.kill()
            command.forget()
