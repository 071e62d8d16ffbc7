"""The default image: this machine's /usr and Python, with a small /etc and empty folders of its own.

What a box sees beside /usr is copied by an allow-list into a template, once per gateway start: nothing private of the
host's /etc, nobody's home, none of the host's variable data. Files must be readable by everybody to be copied at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import sysconfig
from pathlib import Path
from typing import Any

from attrs import define

from cwsandbox.runners.errors import ImageNotFoundError

HOSTNAME = "sandbox"
_HOST_NAMES = ("debian", "ubuntu", "python")
_VERSION = "2"

_FOLDERS = (
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("srv", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
)
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_COPIED = (
    "alternatives",
    "bash.bashrc",
    "ca-certificates.conf",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "java*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "networks",
    "os-release",
    "perl",
    "pki/ca-trust",
    "pki/tls",
    "profile",
    "protocols",
    "python3*",
    "rpc",
    "services",
    "shells",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
)
_GENERATED = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "hosts": f"127.0.0.1\tlocalhost {HOSTNAME}\n::1\tlocalhost\n",
    "hostname": f"{HOSTNAME}\n",
    "resolv.conf": "# This sandbox has no network.\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
}
_HIDDEN_PARENTS = tuple(f"/{name}" for name in ("root", "home", "tmp", "var", "run", "etc", "dev", "srv", "mnt"))
_RELOCATED = "/opt/python"
_LARGEST_FILE = 16 * 1024 * 1024


@define
class Interpreter:
    """The Python of this process, as boxes see it.

    Attributes:
        executable: Its path inside a box.
        prefix: The folder to mount read-only, None if it lies in /usr.
        target: Where that folder is mounted in a box.
    """

    executable: str
    prefix: str | None = None
    target: str | None = None

    @classmethod
    def current(cls) -> Interpreter:
        """The interpreter that runs this code, outside of any virtual environment."""
        prefix = os.path.realpath(sys.base_prefix)
        executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        if prefix == "/usr" or prefix.startswith("/usr/"):
            return cls(executable)
        hidden = any(prefix == parent or prefix.startswith(parent + "/") for parent in _HIDDEN_PARENTS)
        # A shared libpython is found by its absolute path: such an installation only works where it is.
        movable = not sysconfig.get_config_var("Py_ENABLE_SHARED") and executable.startswith(prefix + "/")
        target = _RELOCATED if hidden and movable else prefix
        if executable.startswith(prefix + "/"):
            executable = target + executable[len(prefix) :]
        return cls(executable, prefix, target)


def check_name(name: str) -> None:
    """Accept image names that stand for the machine's own user land.

    Raises:
        ImageNotFoundError: Any other name.
    """
    last = name.rpartition("/")[2].partition("@")[0].partition(":")[0]
    if name and not last.startswith(_HOST_NAMES):
        raise ImageNotFoundError(
            f"image {name!r}: the local runner has no registry access and runs this machine's own programs; "
            "leave the image empty, or name a Python, Debian or Ubuntu image, for which they are taken"
        )


def build_template(folder: Path) -> dict[str, Any]:
    """Make the template in `folder` unless it is there already; what a box's plan says about its image.

    Blocking, some tens of milliseconds the first time. Several processes may do it at once.
    """
    interpreter = Interpreter.current()
    name = f"host-{_fingerprint(interpreter)}"
    target = folder / name
    if not target.exists():
        draft = folder / f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
        draft.mkdir(0o755, parents=True)
        _fill(draft, interpreter)
        try:
            draft.rename(target)
        except OSError:
            shutil.rmtree(draft)
            if not target.exists():
                raise
    return {
        "folder": str(target),
        "prefix": interpreter.prefix,
        "prefix_target": interpreter.target,
        "executable": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
    }


def _fingerprint(interpreter: Interpreter) -> str:
    parts = [_VERSION, str(os.geteuid()), repr(interpreter)]
    for name in ("ld.so.cache", "ssl/certs", "alternatives", "localtime", "os-release"):
        try:
            parts.append(str(os.stat(f"/etc/{name}").st_mtime_ns))
        except OSError:
            parts.append("-")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _fill(draft: Path, interpreter: Interpreter) -> None:
    draft.chmod(0o755)
    root = draft / "root"
    root.mkdir()
    root.chmod(0o755)
    for name, mode in _FOLDERS:
        (root / name).mkdir()
        (root / name).chmod(mode)
    for name in _LINKS:
        if Path("/", name).is_symlink() or Path("/usr", name).is_dir():
            (root / name).symlink_to(f"usr/{name}")
    for pattern in _COPIED:
        for source in Path("/etc").glob(pattern):
            _copy(source, root / "etc" / source.relative_to("/etc"))
    for name, text in _GENERATED.items():
        _write(root / "etc" / name, text.encode())
    (root / "etc" / "mtab").symlink_to("/proc/self/mounts")
    programs = draft / "usr" / "local" / "bin"
    _make_folders(programs, draft)
    for name in ("python", "python3"):
        if interpreter.executable != f"/usr/local/bin/{name}":
            (programs / name).symlink_to(interpreter.executable)


def _make_folders(folder: Path, top: Path) -> None:
    for parent in [*reversed(folder.parents), folder]:
        if parent.is_relative_to(top) and not parent.exists():
            parent.mkdir()
            parent.chmod(0o755)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)


def _copy(source: Path, target: Path) -> None:
    """Copy what everybody may read; symlinks stay symlinks, and lead to whatever a box has there."""
    status = source.lstat()
    _make_folders(target.parent, target.parents[-2])
    if stat.S_ISLNK(status.st_mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISDIR(status.st_mode):
        if status.st_mode & 0o005 == 0o005:
            target.mkdir(exist_ok=True)
            target.chmod(0o755)
            for child in source.iterdir():
                _copy(child, target / child.name)
    elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o004 and status.st_size <= _LARGEST_FILE:
        _write(target, source.read_bytes())
        target.chmod(0o755 if status.st_mode & 0o100 else 0o644)
