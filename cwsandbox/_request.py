"""What a sandbox is asked for, checked when it is constructed, and put into the wire's form when it is started."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from cwsandbox._validate import check_command, check_environment, check_seconds, check_strings, check_text
from cwsandbox.options import MAX_PORT, ResourceOptions, merge_secrets, network_options, resource_options

if TYPE_CHECKING:
    from cwsandbox.defaults import SandboxDefaults
    from cwsandbox.options import NetworkOptions, Secret
    from cwsandbox.wire.resources import NetworkOptions as NetworkResource
    from cwsandbox.wire.resources import ResourceRequirements, SecretMapping, SecretStoreReference
    from cwsandbox.wire.resources import Sandbox as Record

__all__ = ["SandboxRequest"]

_PROTOCOLS = ("TCP", "UDP", "SCTP")


@frozen
class SandboxRequest:
    """Everything that goes into a create request; the meaning of each value is the constructor's of `Sandbox`."""

    argv: tuple[str, ...]
    image: str
    tags: tuple[str, ...]
    max_lifetime_seconds: float | None
    profile_ids: tuple[str, ...]
    runner_ids: tuple[str, ...]
    resources: ResourceOptions | None
    files: tuple[tuple[str, bytes], ...] = field(repr=False)
    s3_mount: dict[str, str] | None
    ports: tuple[tuple[int, str, str], ...]
    network: NetworkOptions | None
    max_timeout_seconds: int | None
    environment: dict[str, str] = field(repr=False)
    annotations: dict[str, str]
    secrets: tuple[Secret, ...]

    @classmethod
    def build(
        cls,
        defaults: SandboxDefaults,
        *,
        command: str | None,
        args: Sequence[str] | None,
        container_image: str | None,
        tags: Sequence[str] | None,
        max_lifetime_seconds: float | None,
        profile_ids: Sequence[str] | None,
        runner_ids: Sequence[str] | None,
        resources: Any,
        mounted_files: Sequence[Mapping[str, Any]] | Mapping[str, str | bytes] | None,
        s3_mount: Mapping[str, Any] | None,
        ports: Sequence[Mapping[str, Any]] | None,
        network: Any,
        max_timeout_seconds: int | None,
        environment_variables: Mapping[str, str] | None,
        annotations: Mapping[str, str] | None,
        secrets: Sequence[Any] | None,
    ) -> SandboxRequest:
        """Merge what is given over the defaults, and check it all.

        Raises:
            TypeError: A value of the wrong type.
            ValueError: A value that cannot be meant.
        """
        lifetime = defaults.max_lifetime_seconds if max_lifetime_seconds is None else max_lifetime_seconds
        return cls(
            argv=_argv(defaults, command, args),
            image=_image(container_image, defaults.container_image),
            tags=(*_strings(defaults.tags, "tags of the defaults"), *_strings(tags, "tags")),
            max_lifetime_seconds=check_seconds(lifetime, "max_lifetime_seconds", positive=True),
            profile_ids=_ids(profile_ids, defaults.profile_ids, "profile_ids"),
            runner_ids=_ids(runner_ids, defaults.runner_ids, "runner_ids"),
            resources=resource_options(defaults.resources if resources is None else resources),
            files=_files(mounted_files),
            s3_mount=_s3_mount(s3_mount),
            ports=tuple(_port(entry, index) for index, entry in enumerate(_entries(ports, "ports"))),
            network=network_options(defaults.network if network is None else network),
            max_timeout_seconds=_seconds(max_timeout_seconds, "max_timeout_seconds"),
            environment=_merged(defaults.environment_variables, environment_variables, "environment_variables"),
            annotations=_merged(defaults.annotations, annotations, "annotations"),
            secrets=merge_secrets(defaults.secrets, secrets),
        )

    def to_resource(self) -> Record:
        """The body of a create request."""
        from cwsandbox.wire import resources as wire

        container = wire.Container(
            image=self.image,
            command=self.argv[0],
            args=self.argv[1:],
            environment_variables=self.environment,
            resource_requirements=_requirements(self.resources),
            files=tuple(wire.FileMount(path=path, content=content) for path, content in self.files),
            secret_stores=_secret_stores(self.secrets),
        )
        spec = wire.SandboxSpec(
            containers=(container,),
            services=tuple(
                wire.Service(port=number, name=name, protocol=wire.ServiceProtocol[protocol])
                for number, name, protocol in self.ports
            ),
            max_lifetime_seconds=_lifetime(self.max_lifetime_seconds),
            max_timeout_seconds=float(self.max_timeout_seconds or 0),
            tags=self.tags,
            runner_ids=self.runner_ids,
            profile_ids=self.profile_ids,
            network=_network(self.network),
            annotations=self.annotations,
            s3_mount=wire.S3Mount(**self.s3_mount) if self.s3_mount else None,
        )
        return wire.Sandbox(spec=spec)


def _network(options: NetworkOptions | None) -> NetworkResource | None:
    if options is None:
        return None
    from cwsandbox.wire import resources as wire

    return wire.NetworkOptions(
        ingress_mode=options.ingress_mode or "",
        egress_mode=options.egress_mode or "",
        exposed_ports=options.exposed_ports or (),
    )


def _requirements(options: ResourceOptions | None) -> ResourceRequirements | None:
    if options is None or options == ResourceOptions():
        return None
    from cwsandbox.wire import resources as wire

    gpu = wire.Gpu(**options.gpu) if options.gpu else None
    sides = (options.requests, options.limits)
    requests, limits = (wire.Resources(**(side or {}), gpu=gpu) if side or gpu else None for side in sides)
    return wire.ResourceRequirements(requests=requests, limits=limits)


def _secret_stores(secrets: Sequence[Secret]) -> tuple[SecretStoreReference, ...]:
    from cwsandbox.wire import resources as wire

    stores: dict[str, list[SecretMapping]] = {}
    for secret in secrets:
        mapping = wire.SecretMapping(path=secret.name, field=secret.field, env_var=secret.env_var or secret.name)
        stores.setdefault(secret.store, []).append(mapping)
    return tuple(wire.SecretStoreReference(store_name=name, secrets=tuple(each)) for name, each in stores.items())


def _lifetime(seconds: float | None) -> float:
    """As the wire has it: 0 is none, and so is infinity, which JSON cannot say."""
    return 0.0 if seconds is None or seconds == math.inf else seconds


def _argv(defaults: SandboxDefaults, command: str | None, args: Sequence[str] | None) -> tuple[str, ...]:
    """Default args accompany the default command only: they would mean something else to another one."""
    if command is not None and not isinstance(command, str):
        raise TypeError(f"command must be a str, the program; its arguments go into args, not {type(command).__name__}")
    given = check_strings(args, "args")
    if given is None:
        given = [] if command else _strings(defaults.args, "args of the defaults")
    return tuple(check_command([command or defaults.command, *given]))


def _ids(given: Sequence[str] | None, default: Sequence[str] | None, name: str) -> tuple[str, ...]:
    return tuple(_strings(default, f"{name} of the defaults") if given is None else _strings(given, name))


def _strings(values: Sequence[str] | None, name: str) -> list[str]:
    return check_strings(values, name) or []


def _merged(defaults: Mapping[str, str], given: Mapping[str, str] | None, name: str) -> dict[str, str]:
    return {**check_environment(defaults, f"{name} of the defaults"), **check_environment(given, name)}


def _image(given: str | None, default: str) -> str:
    image = "" if given is None else check_text(given, "container_image")
    return image or check_text(default, "container_image of the defaults")


def _entries(values: Any, name: str) -> Sequence[Any]:
    if values is None:
        return ()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of dicts, not {type(values).__name__}")
    return tuple(values)


def _files(
    entries: Sequence[Mapping[str, Any]] | Mapping[str, str | bytes] | None,
) -> tuple[tuple[str, bytes], ...]:
    if isinstance(entries, Mapping):
        entries = [{"path": path, "content": content} for path, content in entries.items()]
    return tuple(_file(entry, index) for index, entry in enumerate(_entries(entries, "mounted_files")))


def _file(entry: Mapping[str, Any], index: int) -> tuple[str, bytes]:
    where = f"mounted_files[{index}]"
    _keys(entry, {"path", "mount_path", "content", "file_content"}, where)
    path = _one_of(entry, "path", "mount_path", where)
    content = _one_of(entry, "content", "file_content", where)
    if not check_text(path, f"{where}: the path").startswith("/"):
        raise ValueError(f"{where}: the path must be absolute, not {path!r}")
    if isinstance(content, str):
        return path, content.encode()
    if isinstance(content, bytes | bytearray | memoryview):
        return path, bytes(content)
    raise TypeError(f"{where}: the content must be str or bytes, not {type(content).__name__}")


def _one_of(entry: Mapping[str, Any], name: str, other: str, where: str) -> Any:
    if (name in entry) == (other in entry):
        raise ValueError(f"{where} must have {name!r} (or {other!r}), once")
    return entry[name] if name in entry else entry[other]


def _s3_mount(value: Mapping[str, Any] | None) -> dict[str, str] | None:
    if value is None:
        return None
    _keys(value, {"bucket", "directory", "mount_path"}, "s3_mount")
    for key in ("bucket", "mount_path"):
        if not value.get(key):
            raise ValueError(f"s3_mount must have {key!r}")
    return {key: check_text(item, f"s3_mount[{key!r}]") for key, item in value.items()}


def _port(entry: Mapping[str, Any], index: int) -> tuple[int, str, str]:
    where = f"ports[{index}]"
    _keys(entry, {"container_port", "name", "protocol"}, where)
    number = _whole(entry.get("container_port"), f"{where}: container_port")
    if number is None or not 1 <= number <= MAX_PORT:
        raise ValueError(f"{where}: container_port must be from 1 to {MAX_PORT}, not {number!r}")
    name = check_text(entry.get("name") or "", f"{where}: name")
    protocol = check_text(entry.get("protocol") or "TCP", f"{where}: protocol")
    if protocol.upper() not in _PROTOCOLS:
        raise ValueError(f"{where}: protocol must be one of {', '.join(_PROTOCOLS)}, not {protocol!r}")
    return number, name, protocol.upper()


def _whole(value: int | None, name: str) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    return value


def _seconds(value: int | None, name: str) -> int | None:
    limit = check_seconds(_whole(value, name), name)
    return None if limit == math.inf else value


def _keys(entry: Any, known: set[str], where: str) -> None:
    if not isinstance(entry, Mapping):
        raise TypeError(f"{where} must be a dict, not {type(entry).__name__}")
    if unknown := sorted(set(entry) - known):
        raise ValueError(f"{where}: unknown {', '.join(map(repr, unknown))}; known are {', '.join(sorted(known))}")
