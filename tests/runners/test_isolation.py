"""What a sandbox cannot reach, tried from inside: one probe each. Only where namespaces are to be had."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from cwsandbox.runners.specs import IsolationLevel, Limits
from tests.runners.conftest import box_spec
from tests.runners.support import (
    python,
    read_file,
    read_until,
    run,
    shell,
    started,
    token,
    write_file,
)
from tests.support.processes import processes_with

if TYPE_CHECKING:
    from pathlib import Path

    from cwsandbox.runners.base import Box
    from cwsandbox.runners.local.runner import LocalRunner

pytestmark = pytest.mark.skipif(
    os.environ.get("CWSANDBOX_TEST_CONFINED") == "container", reason="level `process` promises none of this"
)

SYSCALL = "import ctypes,os,sys\nlibc=ctypes.CDLL(None,use_errno=True)\n"


@pytest.fixture(autouse=True)
async def _isolated(box: Box) -> None:
    if box.isolation is not IsolationLevel.NAMESPACES:
        pytest.skip(
            "level process holds none of this; that namespaces are used where they can be has a test of its own"
        )


async def test_the_callers_home_and_files_are_not_there(box: Box, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    tmp_path.chmod(0o777)
    assert (await run(box, "cat", str(secret))).status.code == 1
    assert (await shell(box, "ls -A /home /srv /mnt /root/.ssh /root/.bashrc 2>/dev/null")).text.split() == [
        "/home:",
        "/mnt:",
        "/srv:",
    ]


async def test_private_files_of_etc_are_not_there(box: Box) -> None:
    result = await shell(
        box, "ls -d /etc/shadow /etc/gshadow /etc/ssh /etc/sudoers /etc/ssl/private /etc/pip.conf /sys/kernel"
    )
    assert result.stdout == b""


async def test_the_hosts_root_cannot_be_reached_through_proc(box: Box) -> None:
    result = await shell(
        box, "ls /proc/1/root /proc/1/cwd /proc/1/fd /proc/1/map_files; cat /proc/1/environ /proc/1/mem"
    )
    assert result.stdout == b""


async def test_other_processes_are_not_seen(box: Box) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            pids = [int(word) for word in (await shell(box, "cd /proc; ls -d [0-9]*")).text.split()]
            assert len(pids) <= 5
            assert 1 in pids
            result = await python(box, f"import os; os.kill({process.pid + 100000}, 9)")
            assert "No such process" in result.stderr.decode()
        finally:
            process.kill()


async def test_another_sandbox_is_not_seen(box: Box, runner: LocalRunner) -> None:
    other = await runner.create(box_spec())
    try:
        await write_file(other, "/tmp/of-the-other", b"x", size=1)
        word = token()
        async with started(other, "sh", "-c", f"echo ready; sleep 600; echo {word}") as command:
            await read_until(command.stdout, b"ready")
            assert processes_with(word)
            assert (await shell(box, f"cat /proc/*/cmdline | grep -c {word[:8]}[{word[8]}]{word[9:]}")).text == "0\n"
        assert (await run(box, "ls", "/tmp/of-the-other")).status.code == 2
    finally:
        await other.stop(0)


async def test_the_hosts_loopback_is_not_reached(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = await python(box, f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)")
    assert "ConnectionRefusedError" in result.stderr.decode()


async def test_the_sandbox_has_a_loopback_and_nothing_else(box: Box) -> None:
    script = (
        "import socket\ns=socket.create_server(('127.0.0.1',0)); socket.create_connection(s.getsockname()).close()\n"
        "print([name for _, name in socket.if_nameindex() if name != 'lo' and not name.startswith(('sit','tunl','gre','erspan','ip'))])\n"
        "try: socket.create_connection(('192.0.2.1', 80), timeout=5)\nexcept OSError as e: print(e.strerror)"
    )
    assert (await python(box, script)).text == "[]\nNetwork is unreachable\n"


async def test_abstract_sockets_of_the_host_are_not_reached(box: Box) -> None:
    name = f"\0{token()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        result = await python(box, f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})")
    assert "ConnectionRefusedError" in result.stderr.decode()


async def test_writes_stay_in_the_sandboxs_layer(box: Box, runner: LocalRunner) -> None:
    result = await shell(
        box, "echo x > /etc/made; mkdir /top; echo x > /usr/made 2>/dev/null; echo x >> /etc/hosts; cat /etc/made"
    )
    assert result.stdout == b"x\n"
    assert not os.path.exists("/etc/made")
    assert not os.path.exists("/top")
    assert not os.path.exists("/usr/made")
    other = await runner.create(box_spec())
    try:
        assert (await shell(other, "ls -d /etc/made /top /usr/made; grep -c ^x$ /etc/hosts")).stdout == b"0\n"
    finally:
        await other.stop(0)


async def test_the_interpreter_cannot_be_changed(box: Box) -> None:
    result = await python(box, "import os, sys; open(os.__file__, 'a')")
    assert result.status.code == 1
    assert any(word in result.stderr for word in (b"Read-only", b"Permission denied")) or os.geteuid() == 0


async def test_a_symlink_to_the_host_leads_nowhere(box: Box) -> None:
    await shell(box, "ln -s ../../../../../../../../etc/machine-id /root/out; ln -s /proc/1/root/etc/shadow /root/out2")
    for name in ("out", "out2"):
        with pytest.raises(OSError):
            await read_file(box, name)


async def test_nothing_has_capabilities_and_none_can_be_gained(box: Box) -> None:
    result = await run(box, "grep", "-E", "^(Cap|NoNewPrivs|Seccomp:)", "/proc/self/status")
    values = dict(line.split(":\t") for line in result.text.splitlines())
    assert values.pop("NoNewPrivs") == "1"
    assert values.pop("Seccomp") == "2"
    assert set(values.values()) == {"0000000000000000"}


async def test_set_user_id_programs_gain_nothing(box: Box) -> None:
    assert "nosuid" in (await shell(box, "grep ' / ' /proc/self/mountinfo")).text
    assert (await shell(box, "grep -cv nosuid /proc/self/mountinfo")).text == "0\n"


async def test_user_namespaces_are_off(box: Box) -> None:
    assert (await run(box, "unshare", "-U", "true")).status.code != 0
    assert (await shell(box, "cat /proc/sys/user/max_user_namespaces")).text == "0\n"
    result = await python(
        box,
        SYSCALL
        + "print(libc.syscall(56 if os.uname().machine=='x86_64' else 220, 0x10000000|17,0,0,0,0), ctypes.get_errno())",
    )
    assert result.text == "-1 1\n"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)", 1),
        ("libc.umount2(b'/proc', 2)", 1),
        ("libc.unshare(0x20000)", 1),
        ("libc.unshare(0x4000000)", 1),
        ("libc.setns(os.open('/proc/self/ns/uts', 0), 0)", 1),
        ("libc.syscall(428, -100, b'/', 1)", 1),
        ("libc.syscall(425, 1, None)", 38),
        ("libc.syscall(435, None, 0)", 38),
        ("libc.syscall(321 if x86 else 280, 0, None, 0)", 1),
        ("libc.syscall(250 if x86 else 219, 0, -3, 0)", 1),
        ("libc.syscall(323 if x86 else 282, 0)", 1),
        ("libc.syscall(298 if x86 else 241, None, 0, -1, -1, 0)", 1),
        ("libc.socket(38, 5, 0)", 97),
        ("libc.socket(40, 1, 0)", 97),
        ("libc.socket(17, 3, 0)", 97),
        ("libc.personality(0x0040000)", 1),
        ("libc.ioctl(0, 0x5412, b'x')", 1),
        ("libc.sethostname(b'x', 1)", 1),
        ("libc.mknod(b'/tmp/disk', 0o60600, 65024)", 1),
        ("libc.syscall(0x40000000 + 39) if x86 else ctypes.set_errno(38) or -1", 38),
    ],
)
async def test_dangerous_system_calls_are_refused(box: Box, call: str, error: int) -> None:
    result = await python(box, f"{SYSCALL}x86 = os.uname().machine == 'x86_64'\nprint({call}, ctypes.get_errno())")
    assert result.text == f"-1 {error}\n", result.stderr


async def test_the_agent_cannot_be_harmed(box: Box) -> None:
    script = (
        SYSCALL + "import signal\nfor n in range(1, 65):\n"
        " try: os.kill(1, n)\n except OSError as e: print(n, e)\n"
        "print(libc.ptrace(16, 1, 0, 0), ctypes.get_errno())"
    )
    result = await python(box, script)
    assert result.text.splitlines()[-1] == "-1 1"
    assert (await run(box, "echo", "alive")).text == "alive\n"


async def test_kernel_settings_cannot_be_written(box: Box) -> None:
    result = await shell(
        box,
        "find /proc/sys -type f -writable 2>/dev/null | while read f; do (cat < $f > $f) 2>/dev/null && echo $f; done",
    )
    assert result.stdout == b""


async def test_processes_are_limited(runner: LocalRunner) -> None:
    small = await runner.create(box_spec(limits=Limits(processes=20)))
    try:
        result = await python(small, "import subprocess\nfor _ in range(50): subprocess.Popen(['sleep','60'])")
        assert "Resource temporarily unavailable" in result.stderr.decode()
    finally:
        await small.stop(0)


async def test_memory_is_limited_where_it_can_be(runner: LocalRunner) -> None:
    if "memory" not in runner.capabilities().enforced_limits:
        pytest.skip("no cgroup to limit memory with")
    small = await runner.create(box_spec(limits=Limits(memory_bytes=100 * 1024 * 1024)))
    try:
        result = await python(small, "x = bytearray(300 * 1024 * 1024); print('got it')")
        assert result.stdout == b""
        assert result.status.returncode == 137
    finally:
        await small.stop(0)


async def test_the_template_is_not_writable_through_a_sandbox(box: Box, runner: LocalRunner) -> None:
    await shell(box, "chmod 777 /etc /root; rm -rf /var/log; echo bad > /etc/passwd")
    other = await runner.create(box_spec())
    try:
        assert (
            await shell(other, "stat -c %a /root; ls -d /var/log; head -c 4 /etc/passwd")
        ).text == "700\n/var/log\nroot"
    finally:
        await other.stop(0)


async def test_a_storm_that_leaves_its_session_all_the_time_is_killed(box: Box) -> None:
    word = token()
    script = (
        "import os\nfor _ in range(5): os.fork()\nprint('ready', flush=True)\n"
        "while True:\n if os.fork(): os._exit(0)\n os.setsid()"
    )
    async with started(box, "python3", "-I", "-c", script, word) as command:
        await read_until(command.stdout, b"ready")
        await command.kill()
        assert processes_with(word) == []
