"""read_file and write_file (S28 to S30, FIX-T, behaviour 6)."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import anyio
import pytest

from cwsandbox import Sandbox, SandboxFileError, SandboxNotFoundError, SandboxNotRunningError

MIB = 1024 * 1024


@pytest.mark.row("S28", "S29")
def test_s028_s029_bytes_written_are_read_back(sb: Sandbox) -> None:
    assert sb.write_file("/tmp/data.bin", bytes(range(256)) * 5).result() is None
    assert sb.read_file("/tmp/data.bin").result() == bytes(range(256)) * 5
    sb.write_file("/tmp/text", "grün\n".encode()).result()
    assert sb.read_file("/tmp/text").result().decode() == "grün\n"


@pytest.mark.row("S28", "S29")
async def test_s028_s029_bytes_written_are_read_back_async(asb: Sandbox) -> None:
    await asb.write_file("/tmp/data.bin", bytes(range(256)) * 5)
    assert await asb.read_file("/tmp/data.bin") == bytes(range(256)) * 5


@pytest.mark.row("S29")
def test_s029_files_are_shared_with_commands(sb: Sandbox) -> None:
    sb.write_file("/tmp/in", b"from outside").result()
    assert sb.exec(["cat", "/tmp/in"]).result().stdout == "from outside"
    sb.exec(["sh", "-c", "printf inside > /tmp/out"], check=True).result()
    assert sb.read_file("/tmp/out").result() == b"inside"


@pytest.mark.row("S30")
def test_s030_ten_reads_in_parallel_in_order(sb: Sandbox) -> None:
    for ref in [sb.write_file(f"/app/file{n}.txt", f"content {n}".encode()) for n in range(10)]:
        ref.result()
    refs = [sb.read_file(f"/app/file{n}.txt") for n in range(10)]
    assert [ref.result() for ref in refs] == [f"content {n}".encode() for n in range(10)]


@pytest.mark.row("S30")
async def test_s030_ten_reads_in_parallel_in_order_async(asb: Sandbox) -> None:
    for writing in [asb.write_file(f"/app/file{n}.txt", f"content {n}".encode()) for n in range(10)]:
        await writing
    refs = [asb.read_file(f"/app/file{n}.txt") for n in range(10)]
    assert [await ref for ref in refs] == [f"content {n}".encode() for n in range(10)]


@pytest.mark.row("FIX-T")
def test_fix_t_there_is_no_four_mebibyte_wall(sb: Sandbox) -> None:
    content = random.Random(5).randbytes(MIB) * 64
    sb.write_file("/tmp/large", content).result()
    counted = sb.exec(["sha256sum", "/tmp/large"]).result().stdout.split()[0]
    assert counted == hashlib.sha256(content).hexdigest()
    assert sb.read_file("/tmp/large").result() == content


@pytest.mark.row("FIX-T")
async def test_fix_t_there_is_no_four_mebibyte_wall_async(asb: Sandbox) -> None:
    content = random.Random(6).randbytes(MIB) * 9
    await asb.write_file("/tmp/large", content)
    assert await asb.read_file("/tmp/large") == content


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, MIB, MIB + 1])
def test_sizes_around_the_frame_and_the_window(sb: Sandbox, size: int) -> None:
    content = random.Random(size).randbytes(size)
    sb.write_file("/tmp/sized", content).result()
    assert sb.read_file("/tmp/sized").result() == content


def test_writing_makes_parents_and_replaces_the_whole_file(sb: Sandbox) -> None:
    sb.write_file("/data/a/b/c/file", b"a long first content").result()
    sb.write_file("/data/a/b/c/file", b"short").result()
    assert sb.read_file("/data/a/b/c/file").result() == b"short"
    assert sb.exec(["ls", "-A", "/data/a/b/c"]).result().stdout == "file\n"


def test_replacing_keeps_the_mode(sb: Sandbox) -> None:
    sb.write_file("/tmp/script", b"#!/bin/sh\necho one\n").result()
    sb.exec(["chmod", "755", "/tmp/script"], check=True).result()
    sb.write_file("/tmp/script", b"#!/bin/sh\necho two\n").result()
    assert sb.exec(["/tmp/script"]).result().stdout == "two\n"


def test_bytes_like_contents_are_taken_as_they_are_now(sb: Sandbox) -> None:
    buffer: Any = bytearray(b"before")
    ref = sb.write_file("/tmp/buffer", buffer)
    buffer[:] = b"behind"
    ref.result()
    assert sb.read_file("/tmp/buffer").result() == b"before"


WATCH = """
import os, sys
print("watching", flush=True)
sizes = set()
while not os.path.exists("/tmp/enough"):
    with open("/tmp/atomic", "rb") as file:
        data = file.read()
    sizes.add((len(data), len(set(data))))
print(sorted(sizes))
"""


def test_a_reader_never_sees_half_a_write(sb: Sandbox) -> None:
    sizes = (3 * MIB, 5 * MIB)
    sb.write_file("/tmp/atomic", b"a" * sizes[0]).result()
    watching = sb.exec(["python3", "-c", WATCH], timeout_seconds=50)
    assert next(watching.stdout) == "watching\n"
    for turn in range(6):
        sb.write_file("/tmp/atomic", bytes([98 + turn]) * sizes[turn % 2]).result()
    sb.write_file("/tmp/enough", b"").result()
    seen = watching.result().stdout.splitlines()[1]
    assert set(seen.replace("[", "").replace("]", "").replace("), ", ");").split(";")) <= {
        f"({size}, 1)" for size in sizes
    }


async def test_a_cancelled_write_leaves_the_old_file(asb: Sandbox) -> None:
    await asb.write_file("/tmp/kept", b"old")
    with anyio.move_on_after(0.02) as scope:
        await asb.write_file("/tmp/kept", bytes(200 * MIB))
    assert scope.cancelled_caught
    assert await asb.read_file("/tmp/kept") == b"old"
    assert (await asb.exec(["sh", "-c", "ls -A /tmp | grep -c kept"])).stdout == "1\n"


def test_a_missing_file(sb: Sandbox) -> None:
    with pytest.raises(SandboxFileError) as caught:
        sb.read_file("/tmp/not/there").result()
    assert caught.value.filepath == "/tmp/not/there"
    assert caught.value.reason == "CWSANDBOX_FILE_NOT_FOUND"


async def test_a_missing_file_async(asb: Sandbox) -> None:
    with pytest.raises(SandboxFileError) as caught:
        await asb.read_file("/tmp/not/there")
    assert caught.value.filepath == "/tmp/not/there"


def test_a_folder_is_no_file(sb: Sandbox) -> None:
    for ref in (sb.read_file("/tmp"), sb.write_file("/tmp", b"x")):
        with pytest.raises(SandboxFileError) as caught:
            ref.result()
        assert caught.value.filepath == "/tmp"
        assert caught.value.reason == "CWSANDBOX_FILE_IS_DIRECTORY"


def test_a_file_used_as_a_folder(sb: Sandbox) -> None:
    sb.write_file("/tmp/plain", b"x").result()
    for ref in (sb.read_file("/tmp/plain/below"), sb.write_file("/tmp/plain/below", b"x")):
        with pytest.raises(SandboxFileError):
            ref.result()
    assert sb.read_file("/tmp/plain").result() == b"x"


def test_a_device_or_a_pipe_is_refused_at_once(sb: Sandbox) -> None:
    sb.exec(["mkfifo", "/tmp/pipe"], check=True).result()
    for path in ("/tmp/pipe", "/dev/zero"):
        with pytest.raises(SandboxFileError):
            sb.read_file(path).result(timeout=30)


def test_a_link_is_followed_inside_the_sandbox_only(sb: Sandbox) -> None:
    sb.exec(
        [
            "sh",
            "-c",
            "echo target > /tmp/target; ln -s /tmp/target /tmp/link; ln -s ../../../../../../etc/nowhere /tmp/up",
        ]
    ).result()
    assert sb.read_file("/tmp/link").result() == b"target\n"
    with pytest.raises(SandboxFileError):
        sb.read_file("/tmp/up").result()


def test_files_of_a_stopped_or_deleted_sandbox(home_folder: object) -> None:
    sandbox = Sandbox.run()
    assert sandbox.sandbox_id is not None
    other = Sandbox.from_id(sandbox.sandbox_id).result()
    sandbox.stop().result()
    with pytest.raises(SandboxNotRunningError):
        sandbox.read_file("/etc/hostname").result()
    Sandbox.delete(sandbox.sandbox_id).result()
    with pytest.raises((SandboxNotFoundError, SandboxNotRunningError)):
        other.read_file("/etc/hostname").result()
