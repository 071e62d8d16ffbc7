"""The configuration file: where it is looked for, what it may say, and what keeps a gateway from starting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cwsandbox.gateway.config import Configuration, ConfigurationError, Profile, find_configuration, read_configuration
from cwsandbox.gateway.embedded import Options, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHOLE = """
[runner]
group_id = "lab"
tags = ["ssd"]

[profiles.small]
egress_modes = ["isolated"]
service_exposure_modes = []
isolation = "namespaces"
max_lifetime_seconds = 60
strict_limits = true
limits = { cpu = "500m", memory = "512Mi", processes = 100 }
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "gateway.toml"
        path.write_text(text)
        return str(path)

    return write


def test_every_key_is_read(write: Callable[[str], str]) -> None:
    read = read_configuration(write(WHOLE))
    assert (read.runner.group_id, read.runner.tags) == ("lab", ("ssd",))
    small = read.profiles["small"]
    assert (small.egress_modes, small.service_exposure_modes, small.isolation) == (("isolated",), (), "namespaces")
    assert (small.max_lifetime_seconds, small.strict_limits) == (60, True)
    assert (small.limits.cpu, small.limits.memory, small.limits.processes) == ("500m", "512Mi", 100)


def test_a_default_profile_is_there_without_being_written(write: Callable[[str], str]) -> None:
    assert Configuration().profiles == {"default": Profile()}
    assert set(read_configuration(write(WHOLE)).profiles) == {"default", "small"}
    own = read_configuration(write("[profiles.default]\nmax_lifetime_seconds = 5"))
    assert own.profiles["default"].max_lifetime_seconds == 5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[profiles.small", "TOML"),
        ("[profile.small]", "profile"),
        ("[profiles.small]\nspeed = 5", "small.*speed"),
        ("[profiles.small.limits]\ncpu = 5", "limits.cpu"),
        ('[profiles.small.limits]\nmemory = "much"', "limits.*quantity"),
        ('[profiles.small.limits]\ncpu = "0"', "limits.*cpu"),
        ("[profiles.small.limits]\nprocesses = -1", "processes"),
        ('[profiles.small]\nisolation = "strong"', "isolation"),
        ('[profiles.small]\negress_modes = "isolated"', "egressModes"),
        ('[profiles."a b"]', "a b"),
        ("[runner]\ntags = 5", "tags"),
    ],
)
def test_what_cannot_be_meant_is_named_with_the_file(write: Callable[[str], str], text: str, named: str) -> None:
    path = write(text)
    with pytest.raises(ConfigurationError, match=f"gateway.toml.*{named}"):
        read_configuration(path)


def test_where_the_file_is_looked_for(tmp_path: Path, write: Callable[[str], str]) -> None:
    named = write("[runner]\ngroup_id = 'named'")
    usual = tmp_path / "xdg" / "cwsandbox" / "gateway.toml"
    usual.parent.mkdir(parents=True)
    usual.write_text("[runner]\ngroup_id = 'usual'")
    env = {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "CWSANDBOX_CONFIG": named}
    assert find_configuration(str(usual), env).runner.group_id == "usual"
    assert find_configuration("", env).runner.group_id == "named"
    assert find_configuration("", {**env, "CWSANDBOX_CONFIG": ""}).runner.group_id == "usual"
    assert find_configuration("", {"XDG_CONFIG_HOME": str(tmp_path / "none")}) == Configuration()
    with pytest.raises(ConfigurationError, match="nowhere"):
        find_configuration("", {"CWSANDBOX_CONFIG": "/nowhere/gateway.toml"})


def test_a_bad_file_keeps_the_gateway_from_starting(
    tmp_path: Path, write: Callable[[str], str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwsandbox.gateway.embedded._start_logging", lambda path: None)
    monkeypatch.setattr("os.umask", lambda mask: 0)
    options = Options(
        state_dir=str(tmp_path / "state"),
        runtime_dir=str(tmp_path / "run"),
        socket=str(tmp_path / "gateway.sock"),
        config=write("[profiles.small]\nspeed = 5"),
    )
    assert run(options) == 1
    assert "speed" in caplog.text
    assert "gateway.toml" in caplog.text
