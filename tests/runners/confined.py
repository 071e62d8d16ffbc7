"""Run pytest with less, or elsewhere.

user: an ordinary user. container: no namespaces may be made, as under Docker's own profile. overlay: temporary files
lie on an overlay, as in a container that allows namespaces. mounts: an ordinary user on a machine with a mount below
/usr.
"""

from __future__ import annotations

import os
import sys

import pytest

from cwsandbox.runners.local import seccomp
from cwsandbox.runners.local import syscalls as linux

USER = 54321


def become(kind: str) -> None:
    folder = os.environ["TMPDIR"]
    if kind in {"overlay", "mounts"}:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    if kind == "mounts":
        linux.mount("tmpfs", "/usr/share", "tmpfs")
    if kind == "overlay":
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{folder}/{name}")
        options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
        linux.mount("overlay", folder, "overlay", 0, options)
    elif kind in {"user", "mounts"}:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    else:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        if os.geteuid() == 0:
            linux.drop_bounding_set()
            linux.set_capabilities()
        # The filter of a box refuses namespaces, mounts and the rest to whoever runs under it.
        linux.install_filter(seccomp.build_filter())
    os.environ["HOME"] = folder


if __name__ == "__main__":
    become(sys.argv[1])
    # Where the package is installed, pytest loads its plugin and notes that this program has imported it before.
    imported = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
    sys.exit(pytest.main([*sys.argv[2:], "-W", imported]))
