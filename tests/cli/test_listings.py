"""`ls`, `get`, `runners`, `profiles`: as tables and as JSON, and never as terminal escapes."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

from cwsandbox.cli.output import error_line, print_fields, print_table, printable
from tests.cli.support import COMMAND, cws, document, sandboxes

if TYPE_CHECKING:
    import pytest

HOSTILE = "a\x1b]0;owned\x07\r\n\u202eb\x9b31m"


def test_a_listing_as_a_table_and_as_json(kept: str) -> None:
    heading, dashes, line = cws("ls", "-t", "kept", "-s", "RUNNING").stdout.decode().splitlines()
    assert heading.split() == ["SANDBOX", "ID", "STATUS", "RUNNER", "PROFILE", "STARTED", "AT"]
    assert set(dashes) == {"-", " "}
    assert re.fullmatch(rf"{kept} +running +local +\S+ +\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC", line)
    (row,) = document("ls", "-t", "kept")
    assert list(row) == ["sandbox_id", "status", "runner_id", "profile_id", "runner_group_id", "started_at"]
    assert (row["sandbox_id"], row["status"], row["runner_id"]) == (kept, "running", "local")
    assert sandboxes("-t", "kept") == [kept]
    assert sandboxes("-t", "") == []  # as in `ls -q -t "$UNSET" | xargs cwsandbox rm`


def test_an_empty_listing_says_so(home_folder: object) -> None:
    assert cws("ls", "-t", "no-such-tag").stdout == b"No sandboxes found.\n"
    assert document("ls", "-t", "no-such-tag") == []
    assert sandboxes("-t", "no-such-tag") == []
    assert cws("runners", "--group", "no-such-group").stdout == b"No runners found.\n"
    assert cws("profiles", "--gpu-type", "no-such-type").stdout == b"No profiles found.\n"


def test_ended_sandboxes_are_listed_when_asked_for(home_folder: object) -> None:
    assert cws("run", "--tag", "over", "true").returncode == 0
    assert sandboxes("-t", "over") == []
    assert len(sandboxes("-t", "over", "--all")) == len(document("list", "-t", "over", "--all")) == 1
    assert sandboxes("-t", "over", "-s", "terminated") == sandboxes("-t", "over", "-a")


def test_one_sandbox_as_fields_and_as_json(kept: str) -> None:
    fields = dict(re.findall(r"^([^:]+): +(.*)$", cws("get", kept).stdout.decode(), re.MULTILINE))
    assert (fields["Sandbox"], fields["Status"], fields["Exit code"]) == (kept, "running", "-")
    facts = document("get", kept)
    assert {
        "sandbox_id", "status", "runner_id", "profile_id", "runner_group_id", "started_at", "returncode", "isolation",
        "service_address", "exposed_ports", "ingress_mode", "egress_mode", "resource_requests", "resource_limits",
        "resource_gpu", "limit_holds", "tags", "annotations",
    } == facts.keys()  # fmt: skip
    assert facts["tags"] == ["kept"]
    assert facts["isolation"] in {"namespaces", "process"}


def test_runners_and_profiles(home_folder: object) -> None:
    (runner,) = document("runners")
    assert document("runners", runner["runner_id"])[0]["max_cpu_millicores"] == runner["max_cpu_millicores"] > 0
    assert re.search(rf"^{runner['runner_id']} +yes ", cws("runners").stdout.decode(), re.MULTILINE)
    assert [profile["profile_name"] for profile in document("profiles")] == runner["profile_names"]
    assert document("profiles", runner["profile_names"][0])[0]["runner_id"] == runner["runner_id"]
    assert cws("profiles").stdout.decode().splitlines()[2].split()[0] == runner["profile_names"][0]
    for command in ("runners", "profiles"):
        done = cws(command, "nope")
        assert (done.returncode, done.stdout) == (1, b"")
        assert re.fullmatch(rb"Error: [^\n]*nope[^\n]*\n", done.stderr)
        assert cws(command, "--gpu-type", "x", "nope").returncode == 2


def test_names_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME",), [(HOSTILE,)])
    print_fields([("Name", HOSTILE)])
    printed = capsys.readouterr().out
    assert printed == (
        "NAME\n" + "-" * len(printable(HOSTILE)) + "\n" + printable(HOSTILE) + "\n" + f"Name:  {printable(HOSTILE)}\n"
    )
    assert printable(HOSTILE) == r"a\x1b]0;owned\x07\r\n\u202eb\x9b31m"
    assert printable("Grüße, 世界") == "Grüße, 世界"
    assert error_line(ValueError(HOSTILE)) == "Error: " + printable("a\x1b]0;owned\x07\r") + "\n" + printable(
        "\u202eb\x9b31m"
    )


def test_a_hostile_file_name_is_shown_as_escapes(kept: str) -> None:
    script = "import os; os.makedirs('/srv/evil'); open(b'/srv/evil/a\\x1b[31m\\xff', 'w')"
    assert cws("exec", kept, "python3", "-c", script).returncode == 0
    assert rb"a\x1b[31m" in cws("files", "ls", kept, "/srv/evil").stdout
    done = cws("files", "read", kept, "/srv/evil/\x1b[31m")
    assert b"\x1b" not in done.stderr
    assert rb"\x1b[31m" in done.stderr


def test_a_reader_that_leaves_a_listing_is_no_error(kept: str) -> None:
    script = '"$@"; echo $? >&3'
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&2; {{ {script}; }} | true", "bash", *COMMAND, "ls", "-o", "json"], capture_output=True
    )
    assert done.stderr == b"0\n"


def test_completion_scripts_and_ids(kept: str) -> None:
    for shell, sign in (("bash", b"complete -o"), ("zsh", b"#compdef"), ("fish", b"complete --no-files")):
        done = cws("completion", shell)
        assert (done.returncode, done.stderr) == (0, b"")
        assert sign in done.stdout

    def complete(*words: str) -> list[str]:
        line = {"COMP_WORDS": " ".join(["cwsandbox", *words]), "COMP_CWORD": str(len(words))}
        done = cws(env={"_CWSANDBOX_COMPLETE": "bash_complete", **line})
        return done.stdout.decode().split()

    assert f"plain,{kept}" in complete("exec", kept[:5])
    assert complete("exec", "no-such") == []
    assert f"plain,{kept}:" in complete("cp", kept[:5])
    assert "plain,runners" in complete("run")


def test_completing_starts_no_gateway(tmp_path_factory: pytest.TempPathFactory) -> None:
    folders = {"CWSANDBOX_RUNTIME_DIR": "run", "CWSANDBOX_STATE_DIR": "state"}
    made = {name: str(tmp_path_factory.mktemp(folder)) for name, folder in folders.items()}
    line = {"_CWSANDBOX_COMPLETE": "bash_complete", "COMP_WORDS": "cwsandbox exec ", "COMP_CWORD": "2"}
    assert cws(env={**made, **line}).stdout.strip() == b""
    done = cws("gateway", "status", "-o", "json", env=made)
    assert (done.returncode, json.loads(done.stdout)["running"]) == (1, False)
