"""The user's private folders: sockets and locks in one, logs and records in the other.

All of it blocks: not for an event loop's thread.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from typing import TYPE_CHECKING

from attrs import frozen

from cwsandbox._version import __version__
from cwsandbox.exceptions import CWSandboxError
from cwsandbox.wire.frames import PROTOCOL_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNTIME_VARIABLE = "CWSANDBOX_RUNTIME_DIR"
STATE_VARIABLE = "CWSANDBOX_STATE_DIR"
ISOLATION_VARIABLE = "CWSANDBOX_ISOLATION"
_LOGIN_FOLDERS = "/run/user"
_ISOLATIONS = ("auto", "namespaces", "process")
_SUN_PATH_BYTES = 96  # Of the 107 that Linux takes; the gateway binds a name with its process id behind it first.
_UNWRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT}
)


@frozen
class Folders:
    """Where one user's embedded gateway lives.

    Names carry version, protocol and a chosen isolation: gateways that differ in them coexist, so nobody who asked
    for one isolation is served by a gateway with another.

    Attributes:
        runtime: Private folder for the socket and the lock; gone after a reboot.
        state: Private folder for logs and records.
        isolation: What `CWSANDBOX_ISOLATION` asks for: "namespaces", "process", or "auto".
    """

    runtime: str
    state: str
    isolation: str = "auto"

    @property
    def _stem(self) -> str:
        chosen = "" if self.isolation == "auto" else f"-{self.isolation}"
        return f"gateway-{__version__}-{PROTOCOL_VERSION}{chosen}"

    @property
    def socket(self) -> str:
        """The gateway's socket."""
        return os.path.join(self.runtime, f"{self._stem}.sock")

    @property
    def lock(self) -> str:
        """The file that is locked while a gateway is started."""
        return os.path.join(self.runtime, f"{self._stem}.lock")

    @property
    def gateway_runtime(self) -> str:
        """The gateway's own folder for what does not outlive the machine's next start; made by the gateway."""
        return os.path.join(self.runtime, self._stem)

    @property
    def gateway_state(self) -> str:
        """The gateway's own folder for its records; made by the gateway, which locks it."""
        return os.path.join(self.state, self._stem)

    @property
    def log(self) -> str:
        """What the gateway prints."""
        return os.path.join(self.state, f"{self._stem}.log")


def prepare_folders(env: Mapping[str, str] | None = None) -> Folders:
    """Find the folders, make them if they are missing, and check that nobody else can use them.

    Args:
        env: The environment; default `os.environ`.

    Raises:
        CWSandboxError: A folder cannot be made, is a symbolic link, belongs to somebody else or is open to others,
            or the socket's path would be too long, or the chosen isolation is none. The message names the remedy.
    """
    env = os.environ if env is None else env
    runtime = _runtime_folder(env)
    folders = Folders(runtime, _state_folder(env, runtime), _isolation(env))
    if len(os.fsencode(folders.socket)) > _SUN_PATH_BYTES:
        raise CWSandboxError(
            f"the socket's path {folders.socket!r} is longer than {_SUN_PATH_BYTES} bytes; "
            f"set {RUNTIME_VARIABLE} to a shorter folder"
        )
    return folders


def _isolation(env: Mapping[str, str]) -> str:
    isolation = env.get(ISOLATION_VARIABLE) or "auto"
    if isolation not in _ISOLATIONS:
        raise CWSandboxError(f"{ISOLATION_VARIABLE} must be one of {', '.join(_ISOLATIONS)}, not {isolation!r}")
    return isolation


def _runtime_folder(env: Mapping[str, str]) -> str:
    if own := env.get(RUNTIME_VARIABLE):
        return _private_folder(os.path.abspath(own), RUNTIME_VARIABLE)
    # Cron and sudo do not set the variable that a login sets, and should find the same gateway. After su or sudo it may
    # still name the other user's folder.
    for shared in (env.get("XDG_RUNTIME_DIR"), f"{_LOGIN_FOLDERS}/{os.geteuid()}"):
        if shared and os.path.isabs(shared) and _is_ours(shared):
            return _private_folder(os.path.join(shared, "cwsandbox"), RUNTIME_VARIABLE)
    return _private_folder(f"/tmp/cwsandbox-{os.geteuid()}", RUNTIME_VARIABLE)  # noqa: S108 - checked


def _state_folder(env: Mapping[str, str], runtime: str) -> str:
    if own := env.get(STATE_VARIABLE):
        return _private_folder(os.path.abspath(own), STATE_VARIABLE)
    base = env.get("XDG_STATE_HOME")
    if not base or not os.path.isabs(base):
        home = env.get("HOME") or _home_of_user()
        if not home or not os.path.isabs(home):
            return runtime
        base = os.path.join(home, ".local", "state")
    try:
        return _private_folder(os.path.join(base, "cwsandbox"), STATE_VARIABLE, must_write=True)
    except _UnwritableError:
        return runtime


class _UnwritableError(CWSandboxError):
    """A folder cannot be made or written: the one case in which the state goes elsewhere."""


def _home_of_user() -> str | None:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return None  # A container's user without an entry in /etc/passwd.


def _is_ours(path: str) -> bool:
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:
        return False


def _private_folder(path: str, variable: str, *, must_write: bool = False) -> str:
    """Make the folder with mode 0700 or check that it is so. The check is on the opened folder, not on its name."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        kind = _UnwritableError if error.errno in _UNWRITABLE else CWSandboxError
        raise kind(
            f"cannot make the folder {path!r} ({error.strerror}); set {variable} to one that is yours"
        ) from error
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CWSandboxError(
            f"{path!r} must be a folder of yours, not a symbolic link or a file ({error.strerror}); "
            f"remove it or set {variable}"
        ) from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if status.st_uid != os.geteuid():
        raise CWSandboxError(
            f"the folder {path!r} belongs to user {status.st_uid}, not to you; set {variable} to one that is yours"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise CWSandboxError(f"the folder {path!r} is open to other users; run `chmod 700` on it or set {variable}")
    if must_write and not os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise _UnwritableError(f"the folder {path!r} is not writable; set {variable} to one that is")
    return path
