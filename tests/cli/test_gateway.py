"""`gateway`, `serve` and `doctor`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.support import SECONDS, cws, start
from tests.support.leftovers import shut_down_and_look
from tests.support.processes import wait_ended

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def folders() -> Iterator[dict[str, str]]:
    """Folders of the test's own, for gateways of its own; nothing may be left of these."""
    base = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    made = {"CWSANDBOX_RUNTIME_DIR": base / "run", "CWSANDBOX_STATE_DIR": base / "state"}
    for folder in made.values():
        folder.mkdir(mode=0o700)
    yield {name: str(folder) for name, folder in made.items()}
    left = [line for line in shut_down_and_look(base) if "api-keys" not in line and "/serve" not in line]
    shutil.rmtree(base)
    assert left == []


def test_the_embedded_gateway_is_looked_at_and_ended(folders: dict[str, str]) -> None:
    def status() -> tuple[int, dict[str, object]]:
        done = cws("gateway", "status", "-o", "json", env=folders)
        assert done.stderr == b""
        return done.returncode, json.loads(done.stdout)

    code, facts = status()
    assert (code, facts["running"], facts["pid"]) == (1, False, None)
    assert cws("gateway", "stop", env=folders).stdout == b"No gateway runs.\n"
    assert cws("run", "-d", env=folders).returncode == 0
    code, facts = status()
    assert (code, facts["running"], facts["sandboxes"]) == (0, True, 1)
    assert b"Your sandboxes:  1" in cws("gateway", "status", env=folders).stdout
    refused = cws("gateway", "stop", env=folders)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"--force" in refused.stderr
    assert cws("gateway", "stop", "--force", env=folders).stdout == b"Stopped the gateway.\n"
    assert isinstance(facts["pid"], int)
    assert wait_ended(facts["pid"], 0)
    assert status()[0] == 1
    again = cws("gateway", "stop", "-o", "json", env=folders)
    assert json.loads(again.stdout) == {"address": "the embedded gateway", "was_running": False, "running": False}


def test_a_gateway_is_served_to_those_with_a_key(folders: dict[str, str], tmp_path: Path) -> None:
    refused = cws("serve", "127.0.0.1:0", env=folders)
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert b"cwsandbox gateway keys add NAME" in refused.stderr
    ada, bob = (cws("gateway", "keys", "add", name, env=folders).stdout.decode().strip() for name in ("ada", "bob"))
    assert cws("gateway", "keys", "ls", env=folders).stdout == b"NAME\n----\nada\nbob\n"
    taken = cws("gateway", "keys", "add", "ada", env=folders)
    assert (taken.returncode, taken.stderr.startswith(b"Error: there is a key 'ada' already")) == (2, True)
    with start(
        "serve", "-o", "json", "127.0.0.1:0", "--log-file", str(tmp_path / "log"), env=os.environ | folders
    ) as server:
        assert server.stdout is not None
        url = "http://" + json.loads(server.stdout.readline())["socket"]
        of_ada, of_bob = ({**folders, "CWSANDBOX_BASE_URL": url, "CWSANDBOX_API_KEY": key} for key in (ada, bob))
        sandbox_id = cws("run", "-d", env=of_ada).stdout.decode().strip()
        assert cws("exec", sandbox_id, "cat", stdin=b"\0in", env=of_ada).stdout == b"\0in"
        assert cws("exec", sandbox_id, "true", env=of_bob).returncode == 1
        assert cws("ls", "-q", env=of_bob).stdout == b""
        assert cws("gateway", "status", "-o", "json", env=of_ada).returncode == 0
        denied = cws("gateway", "stop", "-f", env=of_ada)
        assert (denied.returncode, b"only an embedded gateway" in denied.stderr) == (1, True)
        # Without a restart: bob's key goes, and eve's comes.
        assert cws("gateway", "keys", "revoke", "bob", env=folders).stdout == b"Revoked bob.\n"
        assert cws("ls", env=of_bob).returncode == 1
        eve = json.loads(cws("gateway", "keys", "add", "eve", "-o", "json", env=folders).stdout)["key"]
        assert cws("ls", env={**of_bob, "CWSANDBOX_API_KEY": eve}).returncode == 0
        second, third = (cws("gateway", "keys", "rotate", "eve", env=folders).stdout.decode().strip() for _ in range(2))
        codes = [cws("ls", env={**of_bob, "CWSANDBOX_API_KEY": key}).returncode for key in (eve, second, third)]
        assert codes == [1, 0, 0]
        assert b"there is no key 'bob'" in cws("gateway", "keys", "rotate", "bob", env=folders).stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0
    log = (tmp_path / "log").read_text()
    assert f"serves {url.removeprefix('http://')}" in log
    assert ada not in log


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_tls(folders: dict[str, str], tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    subprocess.run([*make, *subject, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    api_key = cws("gateway", "keys", "add", "ada", env=folders).stdout.decode().strip()
    options = ["--tls-cert", certificate, "--tls-key", key]
    with start("serve", "-o", "json", "127.0.0.1:0", *options, env=os.environ | folders) as server:
        assert server.stdout is not None
        url = "https://" + json.loads(server.stdout.readline())["socket"]
        client = {"CWSANDBOX_BASE_URL": url, "CWSANDBOX_API_KEY": api_key, "SSL_CERT_FILE": certificate}
        done = cws("run", "echo", "over TLS", env={**folders, **client})
        assert (done.returncode, done.stdout, done.stderr) == (0, b"over TLS\n", b"")
        mistrusted = cws("ls", env={**folders, **client, "SSL_CERT_FILE": "/etc/hostname"})
        assert mistrusted.returncode != 0
        server.send_signal(signal.SIGINT)
        assert server.wait(SECONDS) == 0
    assert cws("serve", "127.0.0.1:0", "--tls-key", key, env=folders).returncode == 2


def test_a_key_file_that_others_may_write_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "keys"
    assert cws("gateway", "keys", "add", "ada", "--api-key-file", str(path), env=folders).returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    done = cws("serve", "127.0.0.1:0", "--api-key-file", str(path), env=folders)
    assert (done.returncode, b"chmod go-w" in done.stderr) == (1, True)


def test_an_address_that_is_none_is_wrong_usage(folders: dict[str, str]) -> None:
    for address in ("8471", "host:", ":1", "host:70000"):
        done = cws("serve", address, env=folders)
        assert (done.returncode, b"is not HOST:PORT" in done.stderr) == (2, True)


def test_doctor_says_what_the_machine_can_enforce(folders: dict[str, str]) -> None:
    done = cws("doctor", "-o", "json", env=folders)
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], report["problem"]) == (0, True, None)
    sandbox = json.loads(cws("run", "-d", "-o", "json", env=folders).stdout)
    facts = json.loads(cws("get", "-o", "json", sandbox["sandbox_id"], env=folders).stdout)
    assert report["isolation"] == facts["isolation"]
    assert cws("doctor", env=folders).stdout.startswith(b"Sandboxes: ")
    for folder in folders.values():
        assert not [name for name in os.listdir(folder) if name.startswith("doctor")]
    weaker = json.loads(cws("doctor", "-o", "json", env={**folders, "CWSANDBOX_ISOLATION": "process"}).stdout)
    assert (weaker["isolation"], weaker["ok"]) == ("process", True)
    assert "call filter" in weaker["notice"]


def test_doctor_names_a_folder_that_is_not_private(folders: dict[str, str]) -> None:
    os.chmod(folders["CWSANDBOX_STATE_DIR"], 0o755)
    done = cws("doctor", env=folders)
    assert (done.returncode, done.stderr) == (1, b"")
    assert b"chmod 700" in done.stdout
    os.chmod(folders["CWSANDBOX_STATE_DIR"], 0o700)


def test_doctor_fails_where_namespaces_are_required_and_forbidden(folders: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import sys; from tests.runners.confined import become; become('container'); sys.argv[1:] = ['doctor', '-o', 'json']; "
        "from cwsandbox.__main__ import main; sys.exit(main())"
    )
    environment = {**os.environ, **folders, "TMPDIR": str(tmp_path), "CWSANDBOX_ISOLATION": "namespaces"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (1, b"")
    report = json.loads(done.stdout)
    assert (report["ok"], report["isolation"]) == (False, None)
    assert "cannot isolate sandboxes" in report["problem"]
    assert any("container" in remedy for remedy in report["remedies"])
