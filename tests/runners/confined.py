"""Run pytest with less: `user` is an ordinary user, `container` may make no namespaces, as under Docker's own profile."""

from __future__ import annotations

import os
import sys

import pytest

from cwsandbox.runners.local import seccomp
from cwsandbox.runners.local import syscalls as linux

USER = 54321


def become(kind: str) -> None:
    if kind == "user":
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
    os.environ["HOME"] = os.environ["TMPDIR"]


if __name__ == "__main__":
    become(sys.argv[1])
    sys.exit(pytest.main(sys.argv[2:]))
