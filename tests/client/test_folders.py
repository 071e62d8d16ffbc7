"""The user's private folders."""

from __future__ import annotations

import os
import pwd
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cwsandbox._client import folders as module
from cwsandbox._client.folders import prepare_folders
from cwsandbox.exceptions import CWSandboxError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cwf-") as folder:
        yield Path(folder)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_the_variables_of_our_own_come_first(base: Path) -> None:
    env = {
        "CWSANDBOX_RUNTIME_DIR": f"{base}/deep/run",
        "CWSANDBOX_STATE_DIR": f"{base}/deep/state",
        "XDG_RUNTIME_DIR": f"{base}/x",
        "XDG_STATE_HOME": f"{base}/y",
        "HOME": f"{base}/z",
    }
    found = prepare_folders(env)
    assert (found.runtime, found.state) == (f"{base}/deep/run", f"{base}/deep/state")
    assert mode(found.runtime) == mode(found.state) == 0o700


def test_xdg_folders(base: Path) -> None:
    (base / "x").mkdir()
    found = prepare_folders({"XDG_RUNTIME_DIR": f"{base}/x", "XDG_STATE_HOME": f"{base}/y", "HOME": f"{base}/z"})
    assert (found.runtime, found.state) == (f"{base}/x/cwsandbox", f"{base}/y/cwsandbox")
    assert mode(found.runtime) == mode(found.state) == 0o700


def test_the_state_is_below_the_home_folder_by_default(base: Path) -> None:
    found = prepare_folders({"CWSANDBOX_RUNTIME_DIR": f"{base}/run", "HOME": str(base)})
    assert found.state == f"{base}/.local/state/cwsandbox"


def test_without_home_the_user_database_says_where_it_is(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.struct_passwd(("u", "x", os.geteuid(), 0, "", str(base), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    found = prepare_folders({"CWSANDBOX_RUNTIME_DIR": f"{base}/run"})
    assert found.state == f"{base}/.local/state/cwsandbox"


def test_a_user_whom_nobody_knows_has_the_state_in_the_runtime_folder(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    found = prepare_folders({"CWSANDBOX_RUNTIME_DIR": f"{base}/run"})
    assert found.state == found.runtime


def test_a_home_that_cannot_be_written_puts_the_state_in_the_runtime_folder(base: Path) -> None:
    (base / "file").write_text("")
    found = prepare_folders({"CWSANDBOX_RUNTIME_DIR": f"{base}/run", "HOME": f"{base}/file"})
    assert found.state == found.runtime


def test_a_runtime_folder_of_another_user_is_not_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = base / "x"
    shared.mkdir()
    monkeypatch.setattr(module, "_is_ours", lambda path: path != str(shared))
    monkeypatch.setattr(module, "_private_folder", lambda path, variable, **_: path)
    monkeypatch.setattr(module, "_LOGIN_FOLDERS", f"{base}/logins")
    found = prepare_folders({"XDG_RUNTIME_DIR": str(shared), "CWSANDBOX_STATE_DIR": f"{base}/s"})
    assert found.runtime == f"{base}/logins/{os.geteuid()}/cwsandbox"
    monkeypatch.setattr(module, "_is_ours", lambda path: False)
    found = prepare_folders({"XDG_RUNTIME_DIR": str(shared), "CWSANDBOX_STATE_DIR": f"{base}/s"})
    assert found.runtime == f"/tmp/cwsandbox-{os.geteuid()}"
    assert not list(shared.iterdir())


def test_without_the_variable_of_the_login_its_folder_is_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOGIN_FOLDERS", str(base))
    (base / str(os.geteuid())).mkdir()
    found = prepare_folders({"CWSANDBOX_STATE_DIR": f"{base}/s"})
    assert found.runtime == f"{base}/{os.geteuid()}/cwsandbox"


@pytest.mark.parametrize("variable", ["CWSANDBOX_RUNTIME_DIR", "CWSANDBOX_STATE_DIR"])
class TestRefused:
    def check(self, base: Path, variable: str, path: Path, match: str) -> None:
        env = {"CWSANDBOX_RUNTIME_DIR": f"{base}/r", "CWSANDBOX_STATE_DIR": f"{base}/s", variable: str(path)}
        with pytest.raises(CWSandboxError, match=match) as caught:
            prepare_folders(env)
        assert variable in str(caught.value)
        assert str(path) in str(caught.value)

    def test_a_symbolic_link(self, base: Path, variable: str) -> None:
        (base / "real").mkdir(mode=0o700)
        (base / "link").symlink_to(base / "real")
        self.check(base, variable, base / "link", "symbolic link")

    def test_a_dangling_link(self, base: Path, variable: str) -> None:
        (base / "link").symlink_to(base / "nowhere")
        self.check(base, variable, base / "link", "symbolic link")
        assert not (base / "nowhere").exists()

    def test_a_file(self, base: Path, variable: str) -> None:
        (base / "file").write_text("")
        self.check(base, variable, base / "file", "folder of yours")

    def test_a_folder_that_is_open_to_others(self, base: Path, variable: str) -> None:
        (base / "open").mkdir()
        (base / "open").chmod(0o750)
        self.check(base, variable, base / "open", "chmod 700")

    def test_a_folder_that_cannot_be_made(self, base: Path, variable: str) -> None:
        (base / "file").write_text("")
        self.check(base, variable, base / "file" / "below", "cannot make|folder of yours")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    def test_a_folder_of_somebody_else(self, base: Path, variable: str) -> None:
        (base / "theirs").mkdir(mode=0o700)
        os.chown(base / "theirs", 12345, -1)
        self.check(base, variable, base / "theirs", "belongs to user 12345")


def test_a_path_too_long_for_a_socket_is_refused(base: Path) -> None:
    env = {"CWSANDBOX_RUNTIME_DIR": f"{base}/{'x' * 80}", "CWSANDBOX_STATE_DIR": f"{base}/s"}
    with pytest.raises(CWSandboxError, match="CWSANDBOX_RUNTIME_DIR"):
        prepare_folders(env)


def test_gateways_of_different_isolation_never_share_a_socket(base: Path) -> None:
    def socket_for(isolation: str | None) -> str:
        env = {"CWSANDBOX_RUNTIME_DIR": str(base / "run"), "CWSANDBOX_STATE_DIR": str(base / "state")}
        return prepare_folders(env if isolation is None else {**env, "CWSANDBOX_ISOLATION": isolation}).socket

    assert socket_for(None) == socket_for("") == socket_for("auto")
    assert len({socket_for("auto"), socket_for("namespaces"), socket_for("process")}) == 3
    with pytest.raises(CWSandboxError, match="CWSANDBOX_ISOLATION"):
        socket_for("strong")
