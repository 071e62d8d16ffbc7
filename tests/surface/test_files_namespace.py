"""`sandbox.files`: one namespace for everything about files (issue 3, part 10)."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from cwsandbox import Sandbox, SandboxCommandTimeoutError, SandboxFileError, SandboxNotRunningError, SandboxTimeoutError
from cwsandbox.files import FileEntry, FileType

if TYPE_CHECKING:
    from collections.abc import Callable

    from cwsandbox.files import Files

MIB = 1024 * 1024


@pytest.fixture
def files(sb: Sandbox) -> Files:
    """The namespace of a running sandbox of the sync face."""
    return sb.files


@pytest.fixture
async def afiles(asb: Sandbox) -> Files:
    """The namespace of a running sandbox on the test's own loop."""
    return asb.files


def sh(sandbox: Sandbox, script: str) -> str:
    return sandbox.exec(["sh", "-ec", script], check=True).result().stdout


class TestWholeFiles:
    def test_bytes_come_back(self, files: Files) -> None:
        assert files.write_bytes("/srv/new/data", bytes(range(256))).result() == 256
        assert files.read_bytes("/srv/new/data").result() == bytes(range(256))

    async def test_bytes_come_back_async(self, afiles: Files) -> None:
        assert await afiles.write_bytes("/srv/new/data", bytes(range(256))) == 256
        assert await afiles.read_bytes("/srv/new/data") == bytes(range(256))

    def test_text_is_utf_8_unless_said_otherwise(self, files: Files) -> None:
        assert files.write_text("/tmp/text", "grün\r\n").result() == 6
        assert files.read_bytes("/tmp/text").result() == "grün\r\n".encode()
        assert files.read_text("/tmp/text").result() == "grün\r\n"
        files.write_text("/tmp/text", "grün", encoding="latin-1").result()
        assert files.read_text("/tmp/text", encoding="latin-1").result() == "grün"
        with pytest.raises(UnicodeDecodeError):
            files.read_text("/tmp/text").result()
        assert files.read_text("/tmp/text", errors="replace").result() == "gr\ufffdn"

    def test_what_is_no_text_or_no_bytes_is_refused_at_the_call(self, files: Files) -> None:
        wrong: Any = 5
        with pytest.raises(TypeError, match="write_bytes"):
            files.write_text("/tmp/x", wrong)
        with pytest.raises(TypeError):
            files.write_bytes("/tmp/x", wrong)
        with pytest.raises(ValueError, match="NUL"):
            files.read_bytes("/tmp/a\0b")
        with pytest.raises(ValueError, match="empty"):
            files.stat("")
        with pytest.raises(ValueError, match="timeout"):
            files.stat("/", timeout_seconds=-1)

    def test_the_sandbox_is_started_if_need_be(self, home_folder: object) -> None:
        sandbox = Sandbox()
        try:
            assert sandbox.files.is_dir("/tmp").result()
        finally:
            sandbox.stop().result()
        with pytest.raises(SandboxNotRunningError):
            sandbox.files.stat("/tmp").result()


class TestWhatIsThere:
    def test_a_file_a_folder_a_symlink_and_others_are_told_apart(self, sb: Sandbox) -> None:
        sh(
            sb,
            "mkdir /srv/d; printf abc > /srv/f; chmod 640 /srv/f; ln -s f /srv/l; mkfifo /srv/p; touch -d @5.5 /srv/f",
        )
        found = {entry.name: entry for entry in sb.files.list("/srv").result()}
        assert found["f"] == FileEntry("f", "/srv/f", FileType.FILE, 3, 0o640, 5_500_000_000)
        assert found["f"].mtime == 5.5
        assert {name: entry.type.value for name, entry in found.items()} == {
            "d": "directory",
            "f": "file",
            "l": "symlink",
            "p": "other",
        }
        assert sb.files.stat("/srv/l").result().type is FileType.FILE
        assert sb.files.stat("/srv/l", follow_symlinks=False).result().type is FileType.SYMLINK

    async def test_what_exists(self, afiles: Files) -> None:
        await afiles.write_bytes("/tmp/f", b"")
        assert [await afiles.exists(path) for path in ("/tmp", "/tmp/f", "/tmp/g", "/tmp/f/x")] == [
            True,
            True,
            False,
            False,
        ]
        assert [await afiles.is_dir(path) for path in ("/tmp", "/tmp/f", "/tmp/g")] == [True, False, False]
        assert [await afiles.is_file(path) for path in ("/tmp", "/tmp/f", "/tmp/g")] == [False, True, False]

    def test_relative_paths_start_at_home(self, sb: Sandbox) -> None:
        sb.files.write_text("below/home.txt", "x").result()
        assert sh(sb, "cat ~/below/home.txt") == "x"
        assert [entry.path for entry in sb.files.list("below").result()] == ["below/home.txt"]

    def test_names_that_are_no_utf_8_can_be_used_as_they_are_listed(self, sb: Sandbox) -> None:
        sb.exec(["python3", "-c", "open(b'/srv/\\xff\\n', 'w').write('odd')"], check=True).result()
        (entry,) = sb.files.list("/srv").result()
        assert os.fsencode(entry.name) == b"\xff\n"
        assert sb.files.read_bytes(entry.path).result() == b"odd"
        sb.files.move(entry.path, "/srv/even").result()
        assert sb.files.read_text("/srv/even").result() == "odd"

    def test_errors_about_names_that_are_no_utf_8_arrive(self, files: Files) -> None:
        odd = os.fsdecode(b"/srv/\xff")
        for ref in (files.read_bytes(odd), files.stat(odd), files.list(odd), files.write_bytes(f"{odd}/", b"")):
            with pytest.raises(SandboxFileError) as caught:
                ref.result()
            assert (caught.value.filepath or "").rstrip("/") == odd
        with pytest.raises(SandboxTimeoutError):
            files.mkdir(odd).result()
            list(files.watch(odd, timeout_seconds=0.2))

    def test_a_folder_of_a_hundred_thousand_is_read_in_bounded_memory(self, sb: Sandbox) -> None:
        sh(sb, "cd /srv; seq 100000 | xargs touch")
        tracemalloc.start()
        try:
            names = 0
            for entry in sb.files.iterdir("/srv"):
                names += int(entry.name)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert names == 100_000 * 100_001 // 2
        assert peak < 16 * MIB

    async def test_a_folder_is_read_asynchronously(self, asb: Sandbox) -> None:
        await asb.exec(["sh", "-c", "cd /srv; seq 1000 | xargs touch"])
        assert len([entry async for entry in asb.files.iterdir("/srv")]) == 1000
        assert [entry.name for entry in await asb.files.list("/srv")] == sorted(str(n) for n in range(1, 1001))

    def test_an_empty_folder_has_no_entries(self, files: Files) -> None:
        files.mkdir("/srv/empty").result()
        assert files.list("/srv/empty").result() == []
        assert list(files.iterdir("/srv/empty")) == []
        assert list(files.glob("/srv/empty", "*")) == []

    def test_wildcards(self, sb: Sandbox) -> None:
        sh(sb, "cd /srv; mkdir -p a/b; touch one.py a/two.py a/b/three.py a/b/four.txt")
        found = {entry.path: entry.name for entry in sb.files.glob("/srv", "**/*.py")}
        assert found == {"/srv/one.py": "one.py", "/srv/a/two.py": "two.py", "/srv/a/b/three.py": "three.py"}
        assert [entry.path for entry in sb.files.glob("/srv", "a/b/f*")] == ["/srv/a/b/four.txt"]
        with pytest.raises(ValueError, match="relative"):
            sb.files.glob("/srv", "/etc/*")

    def test_a_listing_can_be_left_early(self, sb: Sandbox) -> None:
        sh(sb, "cd /srv; seq 20000 | xargs touch")
        with sb.files.iterdir("/srv") as entries:
            assert next(entries).path.startswith("/srv/")
        assert list(entries) == []


class TestChanges:
    def test_folders_are_made_and_removed(self, files: Files) -> None:
        files.mkdir("/srv/a/b", parents=True).result()
        files.mkdir("/srv/a/b", exist_ok=True).result()
        files.rmdir("/srv/a/b").result()
        assert files.exists("/srv/a").result()
        assert not files.exists("/srv/a/b").result()

    async def test_files_and_trees_are_removed(self, asb: Sandbox) -> None:
        await asb.exec(
            ["sh", "-c", "cd /srv; mkdir -p t/a/b; touch t/a/b/f t/g; ln -s /etc t/link; chmod 0 t/a; touch f"]
        )
        await asb.files.remove("/srv/f")
        await asb.files.remove("/srv/t", recursive=True)
        assert await asb.files.list("/srv") == []
        assert await asb.files.exists("/etc/passwd")

    def test_a_symlink_is_removed_itself(self, sb: Sandbox) -> None:
        sh(sb, "mkdir /srv/t; touch /srv/t/f; ln -s t /srv/l; ln -s t /srv/m")
        sb.files.remove("/srv/l").result()
        sb.files.remove("/srv/m", recursive=True).result()
        assert [entry.name for entry in sb.files.list("/srv").result()] == ["t"]
        assert sb.files.exists("/srv/t/f").result()

    def test_a_move_replaces_and_keeps_what_is_moved(self, sb: Sandbox) -> None:
        sh(sb, "mkdir /srv/t; printf new > /srv/t/f; printf old > /srv/g; chmod 755 /srv/t/f")
        sb.files.move("/srv/t/f", "/srv/g").result()
        assert sb.files.read_text("/srv/g").result() == "new"
        assert sb.files.stat("/srv/g").result().mode == 0o755
        sb.files.rename("/srv/t", "/srv/u").result()
        assert sb.files.is_dir("/srv/u").result()

    def test_a_move_crosses_file_systems(self, sb: Sandbox) -> None:
        sh(sb, "mkdir -p /srv/t/a; printf x > /srv/t/a/f; chmod 750 /srv/t/a/f; ln -s f /srv/t/a/l; printf y > /srv/y")
        sb.files.move("/srv/t", "/dev/shm/t").result()
        sb.files.move("/srv/y", "/dev/shm/t/y").result()
        assert sh(sb, "cd /dev/shm/t; cat a/f y; readlink a/l; stat -c %a a/f; ls -A /srv") == "xyf\n750\n"

    @pytest.mark.parametrize(
        ("call", "reason"),
        [
            (lambda f: f.stat("/srv/none"), "NOT_FOUND"),
            (lambda f: f.list("/srv/none"), "NOT_FOUND"),
            (lambda f: f.remove("/srv/none"), "NOT_FOUND"),
            (lambda f: f.remove("/srv/none", recursive=True), "NOT_FOUND"),
            (lambda f: f.move("/srv/none", "/srv/x"), "NOT_FOUND"),
            (lambda f: f.mkdir("/srv/none/x"), "NOT_FOUND"),
            (lambda f: f.list("/srv/full/f"), "NOT_A_DIRECTORY"),
            (lambda f: f.rmdir("/srv/full/f"), "NOT_A_DIRECTORY"),
            (lambda f: f.mkdir("/srv/full/f/x"), "NOT_A_DIRECTORY"),
            (lambda f: f.mkdir("/srv/full/f/x/y", parents=True), "NOT_A_DIRECTORY"),
            (lambda f: f.mkdir("/srv/full"), "EXISTS"),
            (lambda f: f.mkdir("/srv/full/f", exist_ok=True), "EXISTS"),
            (lambda f: f.rmdir("/srv/full"), "DIRECTORY_NOT_EMPTY"),
            (lambda f: f.move("/srv/other", "/srv/full"), "DIRECTORY_NOT_EMPTY"),
            (lambda f: f.remove("/srv/full"), "IS_DIRECTORY"),
            (lambda f: f.read_bytes("/srv/full"), "IS_DIRECTORY"),
            (lambda f: f.remove("/proc", recursive=True), "IO_FAILED"),
            (lambda f: f.rmdir("/proc/1"), "PERMISSION_DENIED"),
        ],
    )
    def test_what_is_refused_says_why(self, files: Files, call: Callable[[Files], Any], reason: str) -> None:
        files.write_text("/srv/full/f", "").result()
        files.mkdir("/srv/other").result()
        with pytest.raises(SandboxFileError) as caught:
            call(files).result()
        assert caught.value.reason == f"CWSANDBOX_FILE_{reason}"
        assert (caught.value.filepath or "").startswith(("/srv", "/proc"))

    def test_an_error_below_a_folder_names_the_place(self, sb: Sandbox) -> None:
        sh(sb, "mkdir -p /srv/t/a; touch /srv/t/a/f; chmod 0 /srv/t/a/f")
        with pytest.raises(SandboxFileError) as caught:
            sb.files.download("/srv/t", "/tmp/never").result()
        assert caught.value.filepath == "/srv/t"
        assert caught.value.metadata["filepath"] == "/srv/t/a/f"
        assert caught.value.reason == "CWSANDBOX_FILE_PERMISSION_DENIED"
        assert not os.path.exists("/tmp/never")


class TestPieces:
    def test_a_file_is_read_piece_by_piece(self, files: Files) -> None:
        content = os.urandom(5 * MIB)
        files.write_bytes("/srv/f", content).result()
        pieces = list(files.open_read("/srv/f"))
        assert b"".join(pieces) == content
        assert max(map(len, pieces)) <= 256 * 1024

    async def test_a_file_is_read_piece_by_piece_async(self, afiles: Files) -> None:
        content = os.urandom(3 * MIB)
        await afiles.write_bytes("/srv/f", content)
        async with afiles.open_read("/srv/f") as reader:
            assert b"".join([piece async for piece in reader]) == content

    async def test_iterating_on_the_loop_that_receives_is_an_error_and_no_deadlock(self, afiles: Files) -> None:
        reader = afiles.open_read("/etc/hostname")
        with pytest.raises(RuntimeError, match="async for"):
            next(reader)
        with pytest.raises(RuntimeError, match="await"), reader:
            pass

    async def test_a_writer_that_is_given_up_on_its_loop_does_not_block_it(self, afiles: Files) -> None:
        await afiles.write_text("/srv/f", "old")
        with pytest.raises(ZeroDivisionError), afiles.open_write("/srv/f") as writer:
            await writer.write(b"new")
            raise ZeroDivisionError
        assert await afiles.read_text("/srv/f") == "old"

    def test_a_reader_of_what_is_not_there_says_so(self, files: Files) -> None:
        with pytest.raises(SandboxFileError, match="No such file"), files.open_read("/srv/none"):
            pass
        with pytest.raises(SandboxFileError, match="No such file"):
            list(files.open_read("/srv/none"))

    def test_a_file_is_written_piece_by_piece(self, files: Files) -> None:
        pieces = [os.urandom(100_000) for _ in range(40)]
        files.write_text("/srv/f", "old").result()
        with files.open_write("/srv/f") as writer:
            for piece in pieces:
                writer.write(piece).result()
            assert files.read_text("/srv/f").result() == "old"
        assert files.read_bytes("/srv/f").result() == b"".join(pieces)
        with pytest.raises(SandboxFileError, match="is closed"):
            writer.write(b"late")

    async def test_a_file_is_written_piece_by_piece_async(self, afiles: Files) -> None:
        async with afiles.open_write("/srv/new/f") as writer:
            for _ in range(40):
                await writer.write(bytes(100_000))
        assert (await afiles.stat("/srv/new/f")).size == 4_000_000

    def test_a_writer_whose_body_fails_leaves_the_old_file(self, sb: Sandbox) -> None:
        sb.files.write_text("/srv/f", "old").result()
        with pytest.raises(ZeroDivisionError), sb.files.open_write("/srv/f") as writer:
            writer.write(b"new").result()
            raise ZeroDivisionError
        with pytest.raises(CancelledError):
            writer.close().result()
        assert sb.files.read_text("/srv/f").result() == "old"
        assert sh(sb, "ls -A /srv") == "f\n"

    def test_a_writer_says_what_is_wrong(self, files: Files) -> None:
        writer = files.open_write("/tmp")
        with pytest.raises(SandboxFileError) as caught:
            writer.close().result()
        assert caught.value.reason == "CWSANDBOX_FILE_IS_DIRECTORY"
        with pytest.raises(SandboxFileError) as late:
            writer.write(b"x")
        assert late.value.reason == "CWSANDBOX_FILE_IS_DIRECTORY"


async def test_cancelling_stops_and_leaves_nothing(asb: Sandbox) -> None:
    await asb.exec(["sh", "-c", "cd /srv; mkdir many; cd many; seq 30000 | xargs touch"])
    with anyio.move_on_after(0) as scope:
        await asb.files.list("/srv/many")
    assert scope.cancelled_caught
    with anyio.move_on_after(0.05):
        await asb.files.move("/srv/many", "/dev/shm/many")
    there = [await asb.files.exists(path) for path in ("/srv/many", "/dev/shm/many")]
    assert any(there)
    assert "part" not in (await asb.exec(["ls", "-A", "/dev/shm"])).stdout


def test_an_operation_has_its_limit(sb: Sandbox) -> None:
    with pytest.raises(SandboxTimeoutError):
        list(sb.files.watch("/srv", timeout_seconds=0.2))


def test_many_operations_at_once(files: Files) -> None:
    refs = [files.mkdir(f"/srv/d{number}") for number in range(50)]
    for ref in refs:
        ref.result()
    listings = [files.list("/srv") for _ in range(50)]
    assert {len(listing.result()) for listing in listings} == {50}


def test_killing_a_command_leaves_operations_alone(sb: Sandbox) -> None:
    with sb.files.watch("/srv") as before:
        killed = sb.exec(["sleep", "60"], timeout_seconds=0.3)
        with sb.files.watch("/tmp") as during:
            with pytest.raises(SandboxCommandTimeoutError):
                killed.result()
            sb.files.write_text("/srv/x", "").result()
            assert next(before).path.startswith("/srv/")
            sb.files.write_text("/tmp/x", "").result()
            assert next(during).path.startswith("/tmp/")
