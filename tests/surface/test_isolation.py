"""What a sandbox cannot do (contract 10). At level `process` some of it is the surrounding container's task."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import cwsandbox
from cwsandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def namespaced(sb: Sandbox) -> Sandbox:
    """A sandbox in namespaces of its own; the level `process` skips what it does not promise."""
    sb.wait()
    if sb.isolation == "process":
        pytest.skip(
            "level `process` shares the container's files, processes and network; the container is the boundary"
        )
    assert sb.isolation == "namespaces"
    for name in ("user", "mnt", "pid", "net", "ipc", "uts"):  # The tests below must never hit the host itself.
        inside = sb.exec(["readlink", f"/proc/self/ns/{name}"]).result().stdout.strip()
        assert inside.startswith(f"{name}:")
        assert inside != os.readlink(f"/proc/self/ns/{name}")
    return sb


def run(sb: Sandbox, *argv: str) -> tuple[int, str]:
    result = sb.exec(list(argv), timeout_seconds=30).result()
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def private_file() -> Iterator[Path]:
    path = Path.home() / f".cwsandbox-test-{uuid.uuid4().hex}"
    path.write_text("private to the user")
    try:
        yield path
    finally:
        path.unlink()


def test_a_file_in_the_users_home_cannot_be_read(namespaced: Sandbox, private_file: Path) -> None:
    code, output = run(namespaced, "cat", str(private_file))
    assert code != 0
    assert "private to the user" not in output


def test_a_file_in_the_users_temporary_folder_cannot_be_read(namespaced: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("private to the user")
    code, output = run(namespaced, "cat", str(tmp_path / "file"))
    assert code != 0
    assert "private to the user" not in output


def test_the_gateways_folders_cannot_be_seen(namespaced: Sandbox, home_folder: Path) -> None:
    code, _ = run(namespaced, "ls", str(home_folder))
    assert code != 0


def test_a_file_of_another_sandbox_cannot_be_read(namespaced: Sandbox) -> None:
    with Sandbox.run() as other:
        other.write_file("/tmp/only-here", b"private to the other").result()
        for command in (
            ["cat", "/tmp/only-here"],
            ["grep", "-rs", "private to the other", "/tmp", "/root", "/home", "/run"],
        ):
            code, output = run(namespaced, *command)
            assert code != 0
            assert "private to the other" not in output


def test_processes_of_the_host_and_of_other_sandboxes_are_invisible(namespaced: Sandbox) -> None:
    marker = f"31416.{os.getpid()}"
    with subprocess.Popen(["sleep", marker]) as host, Sandbox.run() as other:
        try:
            running = other.exec(["sh", "-c", f"echo up; exec sleep {marker}1"])
            assert next(running.stdout) == "up\n"
            listing = 'for f in /proc/[0-9]*/cmdline; do tr "\\0" " " < $f; echo; done'
            _, output = run(namespaced, "sh", "-c", listing)
            assert marker not in output
            assert "pytest" not in output
            for path in (sys.prefix, sys.executable, os.path.dirname(cwsandbox.__file__)):
                assert path not in output  # Agents are forked from the gateway's interpreter.
            _, count = run(namespaced, "sh", "-c", "ls -d /proc/[0-9]* | wc -l")
            assert int(count) < 12
        finally:
            host.kill()


CONNECT = """
import socket, sys
family, address = sys.argv[1], sys.argv[2:]
try:
    if family == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address[0])
    else:
        connection = socket.create_connection((address[0], int(address[1])), timeout=5)
    print("connected", connection.recv(100))
except OSError as error:
    print("refused", error)
"""


def test_a_server_on_the_hosts_loopback_cannot_be_reached(namespaced: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in ("127.0.0.1", "localhost", socket.gethostname()):
            _, output = run(namespaced, "python3", "-c", CONNECT, "tcp", address, str(port))
            assert output.startswith("refused")


def test_the_gateways_socket_and_abstract_sockets_cannot_be_reached(namespaced: Sandbox, home_folder: Path) -> None:
    name = f"\0cwsandbox-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        code = CONNECT.replace("address[0])\n    else", "'\\0' + address[0])\n    else")
        _, output = run(namespaced, "python3", "-c", code, "unix", name[1:])
        assert output.startswith("refused")
    for path in home_folder.rglob("*"):
        if path.is_socket():
            _, output = run(namespaced, "python3", "-c", CONNECT, "unix", str(path))
            assert output.startswith("refused")


def test_what_it_writes_stays_in_its_own_layer(namespaced: Sandbox) -> None:
    name = f"cwsandbox-test-{uuid.uuid4().hex}"
    for folder in ("/tmp", "/etc", "/usr", "/var/tmp", "/root", "/opt"):
        namespaced.exec(["sh", "-c", f"echo x > {folder}/{name}"]).result()
        assert not os.path.exists(f"{folder}/{name}")
    assert namespaced.read_file(f"/tmp/{name}").result() == b"x\n"
    with Sandbox.run() as other:
        assert run(other, "ls", f"/tmp/{name}")[0] != 0


def test_the_environment_of_the_gateway_is_not_passed_on(
    sb: Sandbox, monkeypatch: pytest.MonkeyPatch, home_folder: Path
) -> None:
    monkeypatch.setenv("CWSANDBOX_TEST_TOKEN", "of the host")
    code, output = run(sb, "env")
    assert code == 0
    assert "of the host" not in output
    if sb.isolation == "namespaces":  # Else its own folders lie there.
        assert str(home_folder) not in output
    assert "VIRTUAL_ENV" not in output
    assert {"PATH", "HOME"} <= {line.partition("=")[0] for line in output.splitlines()}


def test_the_environment_of_other_processes_inside_holds_nothing_of_the_host(sb: Sandbox, home_folder: Path) -> None:
    _, output = run(sb, "sh", "-c", 'cat /proc/1/environ /proc/$PPID/environ 2>/dev/null | tr "\\0" "\\n"')
    if sb.isolation == "process":
        pytest.skip("level `process` shows the container's own processes")
    assert str(home_folder) not in output
    assert "CWSANDBOX_STATE_DIR" not in output


SETUID = """
import ctypes, os, shutil, subprocess, sys
shutil.copy("/usr/bin/id" if os.path.exists("/usr/bin/id") else "/bin/id", "/tmp/id")
try:
    os.chmod("/tmp/id", 0o4755)
except OSError:
    pass
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print("nnp", status["NoNewPrivs"].strip())
print("eff", int(status["CapEff"], 16))
print("bnd", int(status["CapBnd"], 16))
print("amb", int(status["CapAmb"], 16))
"""


def test_setuid_gives_nothing_and_no_capability_is_held(sb: Sandbox) -> None:
    sb.wait()
    code, output = run(sb, "python3", "-c", SETUID)
    assert code == 0, output
    values = dict(line.split() for line in output.splitlines())
    assert values["nnp"] == "1"
    if sb.isolation == "process":
        pytest.skip("level `process` keeps the capabilities that the container left")
    assert (values["eff"], values["amb"]) == ("0", "0")


@pytest.mark.parametrize(
    "command",
    [
        ["mount", "-t", "tmpfs", "none", "/mnt"],
        ["unshare", "-U", "true"],
        ["unshare", "-Ur", "true"],
        ["unshare", "-m", "true"],
        ["chroot", "/", "true"],
        ["dmesg"],
        ["sh", "-c", "echo 1 > /proc/sys/kernel/sysrq"],
        ["sh", "-c", "echo x > /proc/sys/kernel/hostname"],
        ["mknod", "/tmp/device", "b", "8", "0"],
    ],
    ids=" ".join,
)
def test_privileged_operations_fail(namespaced: Sandbox, command: list[str]) -> None:
    assert run(namespaced, *command)[0] != 0


def test_files_of_the_host_are_not_changed(namespaced: Sandbox) -> None:
    folders = [folder for folder in ("/etc", "/opt", "/usr/lib", "/var/tmp") if os.access(folder, os.W_OK)]
    files = [Path(folder, f"cwsandbox-test-{uuid.uuid4().hex}") for folder in folders]
    try:
        for file in files:
            file.write_text("of the host")
            file.chmod(0o666)
            run(namespaced, "sh", "-c", f"echo changed > {file}; chmod 000 {file}; rm -f {file}")
            assert file.read_text() == "of the host"
            assert file.stat().st_mode & 0o777 == 0o666
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_the_agent_cannot_be_killed_or_traced(namespaced: Sandbox) -> None:
    run(namespaced, "sh", "-c", "kill -9 1; kill -TERM 1; kill -STOP 1")
    assert namespaced.exec(["echo", "still here"]).result().stdout == "still here\n"
    assert run(namespaced, "cat", "/proc/1/mem")[0] != 0


LEAK = """
import os
open_ones = sorted(int(n) for n in os.listdir("/proc/self/fd"))
print([n for n in open_ones if n > 2 and os.path.exists(f"/proc/self/fd/{n}")])
"""


def test_a_command_inherits_the_three_standard_descriptors_only(sb: Sandbox) -> None:
    assert run(sb, "python3", "-c", LEAK) == (0, "[]\n")


BOMB = """
import threading
threading.stack_size(65536)
made, hold = 0, threading.Event()
try:
    while made < 30000:
        threading.Thread(target=hold.wait, daemon=True).start()
        made += 1
except RuntimeError:
    pass
print(made, flush=True)
import os
os._exit(0)
"""


def test_the_number_of_processes_and_threads_is_bounded(namespaced: Sandbox) -> None:
    result = namespaced.exec(["python3", "-c", BOMB], timeout_seconds=50).result()
    assert 0 < int(result.stdout) < 30000
    assert namespaced.exec(["echo", "usable"]).result().stdout == "usable\n"
