"""Folder streams: whole trees come through, and nothing that a hostile one says leads out of the target."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwsandbox.wire.folderstream import (
    CHUNK_BYTES,
    DEEPEST,
    FolderStreamError,
    Kind,
    Reader,
    encode,
    link_stays_inside,
)
from cwsandbox.wire.packing import Tally, pack, tree_bytes
from cwsandbox.wire.unpacking import Unpacker

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

END = encode(Kind.END)
UP = encode(Kind.UP)
ROOT = encode(Kind.FOLDER, b"", 0o755)


def file(name: bytes, content: bytes = b"", mode: int = 0o644) -> bytes:
    chunk = encode(Kind.CHUNK, content=content) if content else b""
    return encode(Kind.FILE, name, mode, 0, len(content)) + chunk + encode(Kind.DONE)


def folder(name: bytes, *inside: bytes, mode: int = 0o755) -> bytes:
    return encode(Kind.FOLDER, name, mode) + b"".join(inside) + UP


def link(name: bytes, target: bytes) -> bytes:
    return encode(Kind.LINK, name, 0o777, content=target)


def unpack(target: Path, pieces: Iterable[bytes], *, contain: bool = True) -> Tally:
    unpacker = Unpacker(str(target), contain=contain)
    try:
        for piece in pieces:
            unpacker.feed(piece)
        unpacker.finish()
    finally:
        unpacker.close()
    return unpacker.tally


def snapshot(root: Path) -> dict[str, tuple[str, object, int]]:
    """What is below a folder: kind, content, mode."""
    found: dict[str, tuple[str, object, int]] = {}
    for where, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = Path(where, name)
            mode = stat.S_IMODE(path.lstat().st_mode)
            if path.is_symlink():
                found[str(path.relative_to(root))] = ("link", os.readlink(path), 0o777)
            elif path.is_dir():
                found[str(path.relative_to(root))] = ("folder", None, mode)
            else:
                found[str(path.relative_to(root))] = ("file", path.read_bytes(), mode)
    return found


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of one example's own, as hypothesis runs many in one test."""
    path = Path(tempfile.mkdtemp(prefix="cws"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


names = st.text("abAB.-é \n\udcff", min_size=1, max_size=4).filter(lambda name: name not in {".", ".."})
trees = st.recursive(
    st.binary(max_size=40) | names.map(lambda name: ("link", name)),
    lambda inside: st.dictionaries(names, inside, max_size=4),
    max_leaves=12,
)


def make(path: Path, tree: object) -> None:
    if isinstance(tree, dict):
        path.mkdir()
        for name, inside in tree.items():
            make(path / name, inside)
        path.chmod(0o750)
    elif isinstance(tree, tuple):
        path.symlink_to(tree[1])
    else:
        assert isinstance(tree, bytes)
        path.write_bytes(tree)
        path.chmod(0o640)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(names, trees, max_size=4), st.integers(1, 200))
def test_a_tree_comes_back_as_it_was(tree: dict[str, object], step: int) -> None:
    with scratch() as base:
        make(base / "source", tree)
        stream = b"".join(pack(str(base / "source"), totals=True))
        pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
        tally = unpack(base / "new", pieces)
        assert snapshot(base / "new") == snapshot(base / "source")
        assert tally.bytes == tally.total_bytes == tree_bytes(str(base / "source"))
        (base / "old").mkdir()
        unpack(base / "old", pieces)
        assert snapshot(base / "old") == snapshot(base / "source")
        assert sorted(os.listdir(base)) == ["new", "old", "source"]


hostile_names = st.sampled_from([b"a", b"A", b"b", b"..", b".", b"", b"a/b", b"/etc", b"a\0", b"\xff", b"n" * 255])
hostile_targets = st.lists(
    st.sampled_from([b"..", b".", b"a", b"A", b"b", b"", b"outside"]), min_size=1, max_size=6
).map(b"/".join)
hostile_records = st.one_of(
    hostile_names.map(file),
    st.builds(lambda name: encode(Kind.FOLDER, name, 0o777), hostile_names),
    st.builds(link, hostile_names, hostile_targets),
    st.builds(lambda name: encode(Kind.SKIPPED, name, content=b"why"), hostile_names),
    st.sampled_from([UP, UP, encode(Kind.DONE), encode(Kind.CHUNK, content=b"x"), encode(Kind.TOTAL, size=5), END]),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(hostile_records, max_size=12))
def test_nothing_leads_out_of_a_new_folder(records: list[bytes]) -> None:
    with scratch() as base:
        unpacker = Unpacker(str(base / "target"), contain=True)
        try:
            unpacker.feed(ROOT + b"".join(records))
            unpacker.finish()
            assert os.listdir(base) == ["target"]
        except (FolderStreamError, OSError):
            assert [name for name in os.listdir(base) if not name.endswith(".part")] == []
        for where, folders, files in os.walk(base):
            for path in [os.path.join(where, name) for name in [*folders, *files] if where != str(base)]:
                assert os.path.realpath(path).startswith(f"{base}/")
        unpacker.close()
        assert set(os.listdir(base)) <= {"target"}


@settings(max_examples=400, deadline=None)
@given(st.lists(hostile_records, max_size=12))
def test_a_folder_that_was_there_is_not_left_through_its_links(records: list[bytes]) -> None:
    with scratch() as base:
        (base / "outside").mkdir()
        (base / "outside" / "kept").write_bytes(b"kept")
        (base / "target").mkdir()
        for name in ("a", "b"):
            (base / "target" / name).symlink_to(base / "outside")
        with contextlib.suppress(FolderStreamError, OSError):
            unpack(base / "target", [ROOT, *records])
        assert snapshot(base / "outside") == {"kept": ("file", b"kept", 0o644)}
        assert sorted(os.listdir(base)) == ["outside", "target"]
        assert not [name for name in snapshot(base / "target") if ".part" in name]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_bytes_that_are_no_stream_are_refused_and_nothing_else(data: bytes, cuts: list[int]) -> None:
    reader = Reader()
    at = 0
    try:
        for cut in [*sorted(cuts), len(data)]:
            list(reader.feed(data[at:cut]))
            at = max(at, cut)
        reader.finish()
    except FolderStreamError:
        pass


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        (b"a", 0, True),
        (b"a/b", 0, True),
        (b"./a//b/.", 0, True),
        (b"../a", 1, True),
        (b"../..", 2, True),
        (b"..", 0, False),
        (b"../../a", 1, False),
        (b"/etc", 5, False),
        (b"a/..", 3, False),  # `a` may be a symlink to somewhere higher up.
        (b"../a/../..", 3, False),
        (b"", 3, False),
        (b"a\0b", 3, False),
    ],
)
def test_which_links_stay_inside(target: bytes, depth: int, inside: bool) -> None:
    assert link_stays_inside(target, depth) is inside


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        END,
        ROOT,
        ROOT + UP,
        ROOT + END,
        ROOT + UP + UP,
        ROOT + UP + ROOT + UP + END,
        ROOT + folder(b"..") + UP + END,
        ROOT + file(b"a/b") + UP + END,
        ROOT + file(b"/a") + UP + END,
        ROOT + file(b"") + UP + END,
        ROOT + encode(Kind.FILE, b"a") + UP + END,
        ROOT + encode(Kind.CHUNK, content=b"x") + UP + END,
        ROOT + UP + END + END,
        ROOT + encode(Kind.TOTAL, size=1) + UP + END,
        ROOT + encode(Kind.UP, b"x") + END,
        encode(Kind.FOLDER, b"named") + UP + END,
        link(b"", b"/etc") + END,
        encode(Kind.SKIPPED, b"", content=b"x") + END,
        encode(Kind.FOLDER, b"") * (DEEPEST + 1),
        ROOT + b"".join(encode(Kind.FOLDER, b"d") for _ in range(DEEPEST)) + UP * (DEEPEST + 1) + END,
        b"\0" * 23,
        ROOT + encode(Kind.CHUNK, size=CHUNK_BYTES + 1),
        ROOT + encode(Kind.FILE, b"a", size=2**63),
    ],
    ids=range(24),
)
def test_what_is_no_folder_is_refused_and_leaves_nothing(tmp_path: Path, stream: bytes) -> None:
    with pytest.raises(FolderStreamError):
        unpack(tmp_path / "target", [stream])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("twice", [file(b"x"), folder(b"x"), link(b"x", b"y")])
def test_a_name_that_comes_twice_into_a_new_folder_is_refused(tmp_path: Path, twice: bytes) -> None:
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "target", [ROOT + link(b"x", b"sub") + twice + UP + END])
    assert os.listdir(tmp_path) == []


def test_a_link_that_was_just_made_is_not_walked_through(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "target" / "way").symlink_to("../other")
    with pytest.raises(OSError, match="way"):
        unpack(tmp_path / "target", [ROOT + folder(b"way", file(b"f")) + UP + END])
    unpack(tmp_path / "target", [ROOT + file(b"way", b"new") + UP + END])
    assert (tmp_path / "target" / "way").read_bytes() == b"new"
    assert os.listdir(tmp_path / "other") == []


def test_links_out_are_left_out_and_named(tmp_path: Path) -> None:
    stream = ROOT + link(b"out", b"/etc") + folder(b"d", link(b"up", b"../../x"), link(b"in", b"../f")) + UP + END
    tally = unpack(tmp_path / "t", [stream])
    assert [skipped.path for skipped in tally.skipped] == ["out", "d/up"]
    assert list(snapshot(tmp_path / "t")) == ["d", "d/in"]
    tally = unpack(tmp_path / "u", [stream], contain=False)
    assert (tally.skipped_count, os.readlink(tmp_path / "u" / "out")) == (0, "/etc")


def test_modes_from_a_sandbox_let_nobody_else_write_and_set_no_ids(tmp_path: Path) -> None:
    stream = ROOT + file(b"x", mode=0o6777) + folder(b"d", mode=0o1777) + file(b"z", mode=0o4700) + UP + END
    unpack(tmp_path / "t", [stream])
    assert {name: mode for name, (_, _, mode) in snapshot(tmp_path / "t").items()} == {
        "x": 0o755,
        "d": 0o755,
        "z": 0o700,
    }


def test_an_unreadable_folder_is_made_whole(tmp_path: Path) -> None:
    unpack(tmp_path / "t", [ROOT + folder(b"d", file(b"f", b"x"), mode=0o000) + UP + END])
    assert stat.S_IMODE((tmp_path / "t" / "d").stat().st_mode) == 0
    (tmp_path / "t" / "d").chmod(0o700)
    assert (tmp_path / "t" / "d" / "f").read_bytes() == b"x"


def test_a_stream_that_is_cut_off_leaves_nothing_new_and_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(bytes(1000))
    (tmp_path / "source" / "b").write_bytes(bytes(1000))
    stream = b"".join(pack(str(tmp_path / "source")))
    (tmp_path / "old").mkdir()
    for length in range(0, len(stream), 97):
        for target in ("new", "old"):
            with pytest.raises(FolderStreamError):
                unpack(tmp_path / target, [stream[:length]])
        assert not (tmp_path / "new").exists()
        assert set(os.listdir(tmp_path / "old")) <= {"a", "b"}
        assert all(len(path.read_bytes()) == 1000 for path in (tmp_path / "old").iterdir())


def test_a_file_is_a_stream_too(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    (tmp_path / "f").chmod(0o755)
    os.utime(tmp_path / "f", (5, 5))
    unpack(tmp_path / "deep" / "g", pack(str(tmp_path / "f")))
    status = (tmp_path / "deep" / "g").stat()
    assert (status.st_mode & 0o777, status.st_mtime, status.st_size) == (0o755, 5, 7)
    (tmp_path / "link").symlink_to("f")
    unpack(tmp_path / "link", pack(str(tmp_path / "deep" / "g")))
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(IsADirectoryError):
        unpack(tmp_path / "deep", pack(str(tmp_path / "f")))


def test_what_is_no_file_is_skipped_and_said(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "pipe")
    sent = Tally()
    got = unpack(tmp_path / "t", pack(str(tmp_path / "source"), tally=sent))
    assert (sent.skipped_count, [tuple(one) for one in got.skipped]) == (1, [("pipe", "a named pipe")])
    with pytest.raises(OSError, match="not a regular file"):
        list(pack(str(tmp_path / "source" / "pipe")))


def test_a_large_file_is_packed_in_bounded_pieces(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(5 * CHUNK_BYTES + 1))
    assert max(map(len, pack(str(tmp_path / "f")))) <= 2 * CHUNK_BYTES + 100


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        list(pack(str(tmp_path / "none")))
    deep = tmp_path / "deep"
    deep.mkdir()
    for _ in range(DEEPEST):
        deep /= "d"
        deep.mkdir()
    with pytest.raises(OSError, match="deeper"):
        list(pack(str(tmp_path / "deep")))
