"""The gateway's configuration file: TOML, read once when the gateway starts.

    [runner]
    group_id = "lab"
    tags = ["ssd"]

    [profiles.small]
    egress_modes = ["isolated"]
    limits = { cpu = "500m", memory = "512Mi", processes = 100 }

Every key is checked: one that is not known, or a value that cannot be meant, keeps the gateway from starting.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping  # noqa: TC003 - the codec resolves annotations
from typing import Any, Final

from attrs import Attribute, Factory, field, frozen, validators

from cwsandbox.wire import codec
from cwsandbox.wire.errors import WireError
from cwsandbox.wire.quantity import parse_quantity

CONFIG_VARIABLE: Final = "CWSANDBOX_CONFIG"
DEFAULT_PROFILE: Final = "default"
_FILE: Final = os.path.join("cwsandbox", "gateway.toml")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LEVELS: Final = ("", "namespaces")


class ConfigurationError(ValueError):
    """The configuration file cannot be used; the message names the file and the place in it."""


def _quantity(_: object, attribute: Attribute[str], value: str) -> None:
    if value and parse_quantity(value) <= 0:
        raise ValueError(f"{attribute.name} must be more than nothing")


@frozen(kw_only=True)
class ProfileLimits:
    """The most that a sandbox of a profile may use, and what one gets that asks for no limit.

    Attributes:
        cpu: A Kubernetes quantity; "" is no bound.
        memory: Likewise, in bytes.
        processes: Processes and threads at a time; 0 is the runner's own bound.
    """

    cpu: str = field(default="", validator=_quantity)
    memory: str = field(default="", validator=_quantity)
    processes: int = field(default=0, validator=validators.ge(0))


@frozen(kw_only=True)
class Profile:
    """What a sandbox may be that is created with the profile. Nothing set restricts nothing.

    Attributes:
        egress_modes: The egress modes to choose from; the first is for those who choose none. None: the runner's.
        service_exposure_modes: Likewise for ingress modes; an empty list forbids exposed ports.
        isolation: "namespaces" refuses to run where only the level `process` can be had.
        max_lifetime_seconds: The longest life, also of those who ask for none; 0 is no bound.
        limits: See there.
        strict_limits: Refuse limits that cannot be held for the sandbox as a whole, instead of telling so.
    """

    egress_modes: tuple[str, ...] | None = None
    service_exposure_modes: tuple[str, ...] | None = None
    isolation: str = field(default="", validator=validators.in_(_LEVELS))
    max_lifetime_seconds: float = field(default=0.0, validator=validators.ge(0))
    limits: ProfileLimits = ProfileLimits()
    strict_limits: bool = False


@frozen(kw_only=True)
class RunnerTable:
    """What the gateway's runner is called besides its id."""

    group_id: str = ""
    tags: tuple[str, ...] = ()


def _with_default(profiles: Mapping[str, Profile]) -> dict[str, Profile]:
    return {DEFAULT_PROFILE: Profile(), **profiles}


@frozen(kw_only=True)
class Configuration:
    """The file's content.

    Attributes:
        runner: See there.
        profiles: By name. "default" is what sandboxes get that name no profile; it is there without being written.
    """

    runner: RunnerTable = RunnerTable()
    profiles: Mapping[str, Profile] = field(default=Factory(dict), converter=_with_default)

    @profiles.validator
    def _check_names(self, _: object, profiles: Mapping[str, Profile]) -> None:
        for name in profiles:
            if not _NAME.fullmatch(name):
                raise ValueError(f"the profile name {name!r} must be letters, digits, '.', '_' and '-', at most 63")


def find_configuration(path: str, env: Mapping[str, str]) -> Configuration:
    """Read the file at `path`, else at $CWSANDBOX_CONFIG, else `cwsandbox/gateway.toml` in the XDG config folder.

    Only the last of these may be missing.

    Raises:
        ConfigurationError: A file that was named is not there, or a file cannot be used.
    """
    named = path or env.get(CONFIG_VARIABLE, "")
    if named:
        return read_configuration(named)
    home = env.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(home):  # Relative ones are to be ignored (XDG Base Directory Specification).
        home = os.path.join(os.path.expanduser("~"), ".config")
    usual = os.path.join(home, _FILE)
    return read_configuration(usual) if os.path.exists(usual) else Configuration()


def read_configuration(path: str) -> Configuration:
    """Read one file.

    Raises:
        ConfigurationError: It is not there, not TOML, or has something in it that cannot be meant.
    """
    try:
        with open(path, "rb") as file:
            document: dict[str, Any] = tomllib.load(file)
    except OSError as problem:
        raise ConfigurationError(f"the configuration file {path} cannot be read: {problem.strerror}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigurationError(f"the configuration file {path} is not TOML: {problem}") from problem
    try:
        return codec.structure(document, Configuration)
    except WireError as problem:
        raise ConfigurationError(f"the configuration file {path}: {problem}") from problem
