"""Run code in isolated sandboxes, from sync Python, asyncio or trio.

    from cwsandbox import Sandbox

    with Sandbox.run() as sandbox:
        print(sandbox.exec(["echo", "hello"]).result().stdout)

Names load on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cwsandbox._version import __version__

if TYPE_CHECKING:
    from cwsandbox._client.auth import AuthHeaders as AuthHeaders
    from cwsandbox._client.auth import set_auth_mode as set_auth_mode
    from cwsandbox._runtime.operation import OperationRef as OperationRef
    from cwsandbox.defaults import SandboxDefaults as SandboxDefaults
    from cwsandbox.discovery import EgressMode as EgressMode
    from cwsandbox.discovery import Profile as Profile
    from cwsandbox.discovery import Runner as Runner
    from cwsandbox.discovery import RunnerResources as RunnerResources
    from cwsandbox.discovery import ServiceExposureMode as ServiceExposureMode
    from cwsandbox.discovery import format_bytes as format_bytes
    from cwsandbox.discovery import format_cpu as format_cpu
    from cwsandbox.discovery import get_profile as get_profile
    from cwsandbox.discovery import get_profile_async as get_profile_async
    from cwsandbox.discovery import get_runner as get_runner
    from cwsandbox.discovery import get_runner_async as get_runner_async
    from cwsandbox.discovery import list_profiles as list_profiles
    from cwsandbox.discovery import list_profiles_async as list_profiles_async
    from cwsandbox.discovery import list_runners as list_runners
    from cwsandbox.discovery import list_runners_async as list_runners_async
    from cwsandbox.exceptions import AsyncFunctionError as AsyncFunctionError
    from cwsandbox.exceptions import CWSandboxAuthenticationError as CWSandboxAuthenticationError
    from cwsandbox.exceptions import CWSandboxError as CWSandboxError
    from cwsandbox.exceptions import CWSandboxValidationError as CWSandboxValidationError
    from cwsandbox.exceptions import DiscoveryError as DiscoveryError
    from cwsandbox.exceptions import DiscoveryValidationError as DiscoveryValidationError
    from cwsandbox.exceptions import FunctionError as FunctionError
    from cwsandbox.exceptions import FunctionSerializationError as FunctionSerializationError
    from cwsandbox.exceptions import ProfileNotFoundError as ProfileNotFoundError
    from cwsandbox.exceptions import RunnerNotFoundError as RunnerNotFoundError
    from cwsandbox.exceptions import SandboxCommandTimeoutError as SandboxCommandTimeoutError
    from cwsandbox.exceptions import SandboxError as SandboxError
    from cwsandbox.exceptions import SandboxExecutionError as SandboxExecutionError
    from cwsandbox.exceptions import SandboxFailedError as SandboxFailedError
    from cwsandbox.exceptions import SandboxFileError as SandboxFileError
    from cwsandbox.exceptions import SandboxNotFoundError as SandboxNotFoundError
    from cwsandbox.exceptions import SandboxNotRunningError as SandboxNotRunningError
    from cwsandbox.exceptions import SandboxRefusedError as SandboxRefusedError
    from cwsandbox.exceptions import SandboxRequestTimeoutError as SandboxRequestTimeoutError
    from cwsandbox.exceptions import SandboxResourceExhaustedError as SandboxResourceExhaustedError
    from cwsandbox.exceptions import SandboxTerminatedError as SandboxTerminatedError
    from cwsandbox.exceptions import SandboxTimeoutError as SandboxTimeoutError
    from cwsandbox.exceptions import SandboxUnavailableError as SandboxUnavailableError
    from cwsandbox.exceptions import SandboxValidationError as SandboxValidationError
    from cwsandbox.function import RemoteFunction as RemoteFunction
    from cwsandbox.options import NetworkOptions as NetworkOptions
    from cwsandbox.options import ResourceOptions as ResourceOptions
    from cwsandbox.options import Secret as Secret
    from cwsandbox.options import Serialization as Serialization
    from cwsandbox.process import Process as Process
    from cwsandbox.process import ProcessResult as ProcessResult
    from cwsandbox.process import StreamReader as StreamReader
    from cwsandbox.process import StreamWriter as StreamWriter
    from cwsandbox.sandbox import Sandbox as Sandbox
    from cwsandbox.session import Session as Session
    from cwsandbox.status import SandboxStatus as SandboxStatus
    from cwsandbox.terminal import TerminalResult as TerminalResult
    from cwsandbox.terminal import TerminalSession as TerminalSession
    from cwsandbox.waiting import Waitable as Waitable
    from cwsandbox.waiting import results as results
    from cwsandbox.waiting import wait as wait
    from cwsandbox.wire.errors import FieldViolation as FieldViolation

_HOMES = {
    "cwsandbox._client.auth": ("AuthHeaders", "set_auth_mode"),
    "cwsandbox._runtime.operation": ("OperationRef",),
    "cwsandbox.defaults": ("SandboxDefaults",),
    "cwsandbox.discovery": (
        "EgressMode",
        "Profile",
        "Runner",
        "RunnerResources",
        "ServiceExposureMode",
        "format_bytes",
        "format_cpu",
        "get_profile",
        "get_profile_async",
        "get_runner",
        "get_runner_async",
        "list_profiles",
        "list_profiles_async",
        "list_runners",
        "list_runners_async",
    ),
    "cwsandbox.exceptions": (
        "AsyncFunctionError",
        "CWSandboxAuthenticationError",
        "CWSandboxError",
        "CWSandboxValidationError",
        "DiscoveryError",
        "DiscoveryValidationError",
        "FunctionError",
        "FunctionSerializationError",
        "ProfileNotFoundError",
        "RunnerNotFoundError",
        "SandboxCommandTimeoutError",
        "SandboxError",
        "SandboxExecutionError",
        "SandboxFailedError",
        "SandboxFileError",
        "SandboxNotFoundError",
        "SandboxNotRunningError",
        "SandboxRefusedError",
        "SandboxRequestTimeoutError",
        "SandboxResourceExhaustedError",
        "SandboxTerminatedError",
        "SandboxTimeoutError",
        "SandboxUnavailableError",
        "SandboxValidationError",
    ),
    "cwsandbox.function": ("RemoteFunction",),
    "cwsandbox.options": ("NetworkOptions", "ResourceOptions", "Secret", "Serialization"),
    "cwsandbox.process": ("Process", "ProcessResult", "StreamReader", "StreamWriter"),
    "cwsandbox.sandbox": ("Sandbox",),
    "cwsandbox.session": ("Session",),
    "cwsandbox.status": ("SandboxStatus",),
    "cwsandbox.terminal": ("TerminalResult", "TerminalSession"),
    "cwsandbox.waiting": ("Waitable", "results", "wait"),
    "cwsandbox.wire.errors": ("FieldViolation",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 - the names are strings; the linter cannot see that


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
