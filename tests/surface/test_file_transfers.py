"""`sandbox.files.upload` and `download`: whole folders, and what a hostile sandbox may not do with them."""

from __future__ import annotations

import filecmp
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from cwsandbox import Sandbox, SandboxFileError, SandboxTimeoutError
from cwsandbox.files import SkippedFile

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a bit of everything."""
    root = tmp_path / "project"
    (root / "bin").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "bin" / "run").write_text("#!/bin/sh\necho ran\n")
    (root / "bin" / "run").chmod(0o755)
    (root / "grün.bin").write_bytes(os.urandom(2 * MIB))
    (root / "private").write_text("secret")
    (root / "private").chmod(0o600)
    (root / "link").symlink_to("bin/run")
    os.utime(root / "private", (1_000_000, 1_000_000))
    return root


def same(one: Path, other: Path) -> bool:
    difference = filecmp.dircmp(one, other)
    stack = [difference]
    while stack:
        difference = stack.pop()
        if difference.left_only or difference.right_only or difference.diff_files or difference.funny_files:
            return False
        stack += difference.subdirs.values()
    return True


def test_a_folder_goes_in_and_comes_out_with_modes_times_and_links(sb: Sandbox, project: Path, tmp_path: Path) -> None:
    report = sb.files.upload(project, "/srv/deep/project").result()
    assert (report.files, report.bytes, report.skipped) == (3, 2 * MIB + 25, ())
    told = sb.exec(
        ["sh", "-ec", "cd /srv/deep/project; ./link; stat -c '%a %Y' private; readlink link; ls -A .."], check=True
    ).result()
    assert told.stdout == "ran\n600 1000000\nbin/run\nproject\n"
    report = sb.files.download("/srv/deep/project", tmp_path / "back").result()
    assert (report.files, report.bytes) == (3, 2 * MIB + 25)
    assert same(project, tmp_path / "back")
    assert os.readlink(tmp_path / "back" / "link") == "bin/run"
    assert stat.S_IMODE((tmp_path / "back" / "private").stat().st_mode) == 0o600
    assert (tmp_path / "back" / "private").stat().st_mtime == 1_000_000


async def test_a_folder_goes_in_and_comes_out_async(asb: Sandbox, project: Path, tmp_path: Path) -> None:
    await asb.files.upload(project, "/srv/project")
    await asb.files.download("/srv/project", tmp_path / "back")
    assert same(project, tmp_path / "back")


def test_a_single_file_keeps_its_mode(sb: Sandbox, project: Path, tmp_path: Path) -> None:
    sb.files.upload(project / "bin" / "run", "/srv/tool").result()
    assert sb.exec(["/srv/tool"]).result().stdout == "ran\n"
    sb.files.download("/srv/tool", tmp_path / "tool").result()
    assert os.access(tmp_path / "tool", os.X_OK)


def test_a_slash_at_the_end_puts_it_into_the_folder(sb: Sandbox, project: Path, tmp_path: Path) -> None:
    sb.files.upload(project / "private", "/srv/").result()
    sb.files.upload(project, "/srv/").result()
    assert [entry.name for entry in sb.files.list("/srv").result()] == ["private", "project"]
    sb.files.download("/srv/project/bin", f"{tmp_path}/into/").result()
    assert os.listdir(tmp_path / "into") == ["bin"]


def test_a_folder_that_exists_is_added_to(sb: Sandbox, project: Path) -> None:
    sb.files.write_text("/srv/p/kept", "kept").result()
    sb.files.write_text("/srv/p/private", "old").result()
    sb.files.upload(project, "/srv/p").result()
    assert sb.files.read_text("/srv/p/kept").result() == "kept"
    assert sb.files.read_text("/srv/p/private").result() == "secret"


def test_progress_is_told(sb: Sandbox, project: Path, tmp_path: Path) -> None:
    for upload in (True, False):
        steps: list[tuple[int, int | None]] = []

        def told(done: int, total: int | None, steps: list[tuple[int, int | None]] = steps) -> None:
            steps.append((done, total))

        if upload:
            sb.files.upload(project, "/srv/p", progress=told).result()
        else:
            sb.files.download("/srv/p", tmp_path / "back", progress=told).result()
        assert steps[-1] == (2 * MIB + 25, 2 * MIB + 25)
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert len(steps) > 2


def test_what_progress_raises_ends_the_transfer(sb: Sandbox, project: Path, tmp_path: Path) -> None:
    def refuse(done: int, total: int | None) -> None:
        raise ZeroDivisionError

    for _ in range(30):  # The end of the input and the word to stop race in the sandbox.
        with pytest.raises(ZeroDivisionError):
            sb.files.upload(project, "/srv/p", progress=refuse).result()
        assert sb.files.list("/srv").result() == []
    sb.files.upload(project, "/srv/p").result()
    with pytest.raises(ZeroDivisionError):
        sb.files.download("/srv/p", tmp_path / "back", progress=refuse).result()
    assert os.listdir(tmp_path) == ["project"]


def test_trouble_here_is_an_os_error_and_makes_nothing_there(sb: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sb.files.upload(tmp_path / "none", "/srv/none").result()
    (tmp_path / "file").write_text("x")
    sb.files.write_text("/srv/f", "x").result()
    with pytest.raises(NotADirectoryError):
        sb.files.download("/srv/f", tmp_path / "file" / "below").result()
    with pytest.raises(IsADirectoryError):
        sb.files.download("/srv/f", tmp_path).result()
    assert not sb.files.exists("/srv/none").result()


def test_trouble_there_is_a_file_error_and_makes_nothing_here(sb: Sandbox, tmp_path: Path, project: Path) -> None:
    with pytest.raises(SandboxFileError) as caught:
        sb.files.download("/srv/none", tmp_path / "none").result()
    assert (caught.value.filepath, caught.value.reason) == ("/srv/none", "CWSANDBOX_FILE_NOT_FOUND")
    sb.files.write_text("/srv/plain", "x").result()
    with pytest.raises(SandboxFileError) as refused:
        sb.files.upload(project, "/srv/plain/below").result()
    assert refused.value.reason in {"CWSANDBOX_FILE_NOT_A_DIRECTORY", "CWSANDBOX_FILE_EXISTS"}
    with pytest.raises(SandboxFileError):
        sb.files.upload(project, "/srv/plain").result()
    assert os.listdir(tmp_path) == ["project"]


def test_a_full_disk_is_a_file_error_and_leaves_nothing(sb: Sandbox, tmp_path: Path) -> None:
    if sb.isolation != "namespaces":
        pytest.skip("there is no small file system at this level")
    (tmp_path / "big").mkdir()
    with (tmp_path / "big" / "file").open("wb") as file:
        file.truncate(300 * MIB)
    with pytest.raises(SandboxFileError, match="No space left"):
        sb.files.upload(tmp_path / "big", "/dev/shm/big").result()
    assert sb.exec(["ls", "-A", "/dev/shm"]).result().stdout == ""


async def test_a_cancelled_upload_leaves_nothing_there(asb: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    with (tmp_path / "big" / "file").open("wb") as file:
        file.truncate(500 * MIB)
    begun = anyio.Event()

    async with anyio.create_task_group() as tasks:

        async def upload() -> None:
            await asb.files.upload(tmp_path / "big", "/srv/big", progress=lambda done, total: begun.set())

        tasks.start_soon(upload)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert (await asb.exec(["ls", "-A", "/srv"])).stdout == ""


async def test_a_cancelled_download_leaves_nothing_here(asb: Sandbox, tmp_path: Path) -> None:
    await asb.exec(["sh", "-c", "mkdir /srv/big; truncate -s 500M /srv/big/file"], check=True)
    begun = anyio.Event()

    async with anyio.create_task_group() as tasks:

        async def download() -> None:
            await asb.files.download("/srv/big", tmp_path / "big", progress=lambda done, total: begun.set())

        tasks.start_soon(download)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert os.listdir(tmp_path) == []


def test_a_transfer_has_its_limit(sb: Sandbox, tmp_path: Path) -> None:
    sb.exec(["truncate", "-s", "100G", "/srv/endless"], check=True).result()
    with pytest.raises(SandboxTimeoutError):
        sb.files.download("/srv/endless", tmp_path / "endless", timeout_seconds=0.3).result()
    assert os.listdir(tmp_path) == []


HOSTILE = """
cd /srv/evil
ln -s /etc/passwd absolute; ln -s ../../outside up; ln -s . here; mkdir d; ln -s here/../.. d/through
mkfifo pipe; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
touch plain Plain PLAIN; chmod 4777 plain; printf x > "$(printf 'new\\nline')"
"""


def test_nothing_of_a_hostile_folder_leads_out(sb: Sandbox, tmp_path: Path) -> None:
    sb.files.mkdir("/srv/evil").result()
    sb.exec(["sh", "-ec", HOSTILE], check=True).result()
    report = sb.files.download("/srv/evil", tmp_path / "evil").result()
    assert {skipped.path for skipped in report.skipped} == {"absolute", "up", "d/through", "pipe", "socket"}
    assert SkippedFile("pipe", "a named pipe") in report.skipped
    assert report.skipped_count == 5
    for where, folders, files in os.walk(tmp_path / "evil"):
        for name in [*folders, *files]:
            assert os.path.realpath(os.path.join(where, name)).startswith(str(tmp_path / "evil"))
    assert stat.S_IMODE((tmp_path / "evil" / "plain").stat().st_mode) == 0o755
    assert os.listdir(tmp_path) == ["evil"]


def test_a_link_of_the_users_own_is_not_followed_by_a_download(sb: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "sub").symlink_to(tmp_path / "outside")
    sb.files.write_text("/srv/t/sub/planted", "x").result()
    with pytest.raises(OSError, match="sub"):
        sb.files.download("/srv/t", tmp_path / "target").result()
    assert os.listdir(tmp_path / "outside") == []


def test_transfers_run_side_by_side(sb: Sandbox, project: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    refs = [sb.files.upload(project, f"/srv/{number}") for number in range(6)]
    assert {ref.result().files for ref in refs} == {3}
    back = [sb.files.download(f"/srv/{number}", tmp_path / str(number)) for number in range(6)]
    assert {ref.result().files for ref in back} == {3}
    assert threading.active_count() < before + 50


class TestNamesOfLaterVersions:
    def test_a_file_is_written_from_pieces(self, sb: Sandbox) -> None:
        pieces: list[Any] = [b"one ", bytearray(b"two "), memoryview(b"three")]
        sb.write_file_streaming("/srv/f", iter(pieces)).result()
        assert sb.read_file("/srv/f").result() == b"one two three"
        sb.write_file_streaming("/srv/f", b"bytes").result()
        assert b"".join(sb.read_file_streaming("/srv/f")) == b"bytes"

    async def test_a_file_is_written_from_pieces_async(self, asb: Sandbox) -> None:
        async def pieces() -> Any:
            for number in range(3):
                await anyio.sleep(0)
                yield bytes([number]) * 1000

        await asb.write_file_streaming("/srv/f", pieces())
        assert b"".join([piece async for piece in asb.read_file_streaming("/srv/f")]) == b"".join(
            bytes([number]) * 1000 for number in range(3)
        )

    async def test_a_source_that_does_not_answer_holds_up_no_cancellation(self, asb: Sandbox) -> None:
        asked, answer = threading.Event(), threading.Event()

        def pieces() -> Any:
            asked.set()
            answer.wait(60)
            yield b""

        writing = asb.write_file_streaming("/srv/f", pieces())
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(writing._wait)
                await anyio.to_thread.run_sync(asked.wait)
                tasks.cancel_scope.cancel()
            assert writing._finished
            assert not await asb.files.exists("/srv/f")
        finally:
            answer.set()

    def test_a_source_that_fails_leaves_the_old_file(self, sb: Sandbox) -> None:
        def pieces() -> Any:
            yield b"new"
            raise ZeroDivisionError

        sb.write_file("/srv/f", b"old").result()
        with pytest.raises(ZeroDivisionError):
            sb.write_file_streaming("/srv/f", pieces()).result()
        assert sb.read_file("/srv/f").result() == b"old"
        assert sb.exec(["ls", "-A", "/srv"]).result().stdout == "f\n"

    def test_what_is_no_source_is_refused(self, sb: Sandbox) -> None:
        wrong: Any = "text"
        with pytest.raises(TypeError, match="source"):
            sb.write_file_streaming("/srv/f", wrong)
        wrong = ["text"]
        with pytest.raises(TypeError, match="source"):
            sb.write_file_streaming("/srv/f", wrong).result()
        assert not sb.files.exists("/srv/f").result()

    async def test_an_async_source_of_another_loop_is_refused(self, sb: Sandbox) -> None:
        async def pieces() -> Any:
            yield b""

        with pytest.raises(TypeError, match="async with"):
            sb.write_file_streaming("/srv/f", pieces())
