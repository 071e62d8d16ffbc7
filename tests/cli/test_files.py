"""`cp` and `files`."""

from __future__ import annotations

import hashlib
import json
import os
import select
from typing import TYPE_CHECKING

import pytest

from tests.cli.support import SECONDS, cws, document, start
from tests.cli.terminal import on_terminal

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_goes_in_and_comes_out_byte_for_byte(kept: str, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(data)
    assert cws("files", "write", kept, "d/file", str(tmp_path / "in")).stdout == b"Wrote 3000000 bytes to d/file.\n"
    assert cws("files", "read", kept, "d/file").stdout == data
    assert cws("files", "read", kept, "d/file", "-o", str(tmp_path / "out")).stdout == b""
    assert (tmp_path / "out").read_bytes() == data
    assert cws("files", "write", "-q", kept, "piped", "-", stdin=data).stdout == b""
    assert cws("exec", kept, "sha256sum", "piped").stdout.decode().split()[0] == hashlib.sha256(data).hexdigest()


def test_a_read_that_fails_leaves_the_local_file_as_it_was(kept: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"before")
    done = cws("files", "read", kept, "no/such", "-o", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"Error: no/such: ")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"before"


def test_what_is_no_file_is_not_replaced_by_one(kept: str, tmp_path: Path) -> None:
    assert cws("files", "write", "-q", kept, "small", "-", stdin=b"data").returncode == 0
    (tmp_path / "link").symlink_to("target")
    assert cws("files", "read", kept, "small", "-o", str(tmp_path / "link")).returncode == 0
    assert (os.readlink(tmp_path / "link"), (tmp_path / "target").read_bytes()) == ("target", b"data")
    os.mkfifo(tmp_path / "pipe")
    with start("files", "read", kept, "small", "-o", str(tmp_path / "pipe")) as process:
        assert (tmp_path / "pipe").read_bytes() == b"data"
        assert process.wait(SECONDS) == 0
    assert (tmp_path / "pipe").is_fifo()
    for place, problem in ((tmp_path, "Is a directory"), (tmp_path / "no" / "file", "No such file or directory")):
        done = cws("files", "read", kept, "small", "-o", str(place))
        assert (done.returncode, done.stderr.decode()) == (1, f"Error: {place}: {problem}\n")


def test_what_is_there_and_how_it_is_changed(kept: str) -> None:
    assert cws("files", "mkdir", "-p", kept, "/srv/a/b").returncode == 0
    assert cws("files", "write", kept, "/srv/a/b/x.txt", "-", stdin=b"x").returncode == 0
    assert cws("files", "mv", kept, "/srv/a/b/x.txt", "/srv/a/y.txt").returncode == 0
    listed = json.loads(cws("files", "ls", kept, "/srv/a", "-o", "json").stdout)
    assert [(entry["name"], entry["type"], entry["path"]) for entry in listed] == [
        ("b", "directory", "/srv/a/b"),
        ("y.txt", "file", "/srv/a/y.txt"),
    ]
    heading, _, *lines = cws("files", "ls", kept, "/srv", "--glob", "**/*.txt").stdout.decode().splitlines()
    assert heading.split() == ["MODE", "SIZE", "CHANGED", "NAME"]
    assert [line.split()[0] + " " + line.split()[-1] for line in lines] == ["-rw-r--r-- /srv/a/y.txt"]
    assert json.loads(cws("files", "stat", kept, "/srv/a/y.txt", "-o", "json").stdout)["size"] == 1
    assert cws("files", "rm", kept, "/srv/a").returncode == 1
    assert cws("files", "rm", "-r", kept, "/srv/a").returncode == 0
    assert cws("files", "stat", kept, "/srv/a").returncode == 1


def test_changes_are_printed_as_they_happen(kept: str) -> None:
    assert cws("files", "mkdir", kept, "/srv/watched").returncode == 0
    with start("exec", kept, "sh", "-c", "cd /srv/watched; while read name; do mkdir $name; done", stdin=-1) as maker:
        assert maker.stdin is not None
        with start("files", "watch", "-o", "json", kept, "/srv/watched") as watcher:
            assert watcher.stdout is not None
            # The watch may not be there yet when the first are made; then nothing is missed any more.
            number = 0
            while not select.select([watcher.stdout], [], [], 0.2)[0]:
                maker.stdin.write(b"%d\n" % number)
                maker.stdin.flush()
                number += 1
            event = json.loads(watcher.stdout.readline())
            assert (event["kind"], event["is_dir"]) == ("created", True)
            watcher.terminate()
            assert watcher.wait() == 143
        maker.stdin.close()


def test_folders_are_copied_both_ways(kept: str, tmp_path: Path) -> None:
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "src" / "sub" / "run.sh").chmod(0o755)
    (tmp_path / "other").write_text("o")
    done = cws("cp", str(tmp_path / "src"), str(tmp_path / "other"), f"{kept}:/srv/")
    assert done.stdout.decode() == f"Copied 2 files (20 B) to {kept}:/srv/.\n"
    assert cws("exec", kept, "/srv/src/sub/run.sh").stdout == b"ran\n"
    (report,) = document("cp", f"{kept}:/srv/src", str(tmp_path / "back"))
    assert report == {
        "source": f"{kept}:/srv/src",
        "target": str(tmp_path / "back"),
        "files": 1,
        "bytes": 19,
        "skipped": [],
        "skipped_count": 0,
    }
    assert (tmp_path / "back" / "sub" / "run.sh").read_text() == "#!/bin/sh\necho ran\n"
    assert cws("cp", "-q", f"{kept}:/srv/other", str(tmp_path / "back")).stdout == b""
    assert (tmp_path / "back" / "other").read_text() == "o"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["here", "there"], b"the sources must all be in one sandbox"),
        (["ID:a", "ID:b"], b"the sources must all be in one sandbox"),
        (["ID:a", "other:b", "."], b"the sources must all be in one sandbox"),
        (["ID:/srv/..", "."], b"has no name of its own"),
        (["no/such", "ID:"], b"does not exist here"),
        (["ID:no/such", "/dev/null"], b"is no file"),
        (["/etc/hosts", "/etc/hostname", "ID:/etc/hosts"], b"is not a folder"),
    ],
)
def test_a_copy_that_cannot_be_meant_is_wrong_usage(kept: str, argv: list[str], said: bytes) -> None:
    done = cws("cp", *[word.replace("ID", kept) for word in argv])
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr


def test_a_long_transfer_shows_its_progress_on_a_terminal_only(kept: str, tmp_path: Path) -> None:
    source = tmp_path / "pipe"
    os.mkfifo(source)
    with on_terminal("files", "write", kept, "/srv/copy", str(source)) as terminal:
        with source.open("wb", buffering=0) as file:
            count = 0
            while not terminal.shows(rb"/srv/copy .*bytes", within=0.1):
                count += file.write(b"x")
        terminal.wait_for(rb"Wrote %d bytes to /srv/copy" % count)
        assert terminal.wait() == 0
