"""Whether there are namespaces here, and what tests do without."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRY = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x10000000) != 0)"
NAMESPACES = subprocess.call([sys.executable, "-c", _TRY]) == 0
"""Whether this machine lets its users make namespaces."""

needs_namespaces = pytest.mark.skipif(not NAMESPACES, reason="namespaces are not allowed here")


def _loopback_has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_own_ipv6 = pytest.mark.skipif(
    not NAMESPACES and not _loopback_has_ipv6(),
    reason="level `process` shares the container's network, whose loopback has no IPv6",
)

_, _DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)

_OF_TESTS = Path("/srv")
"""Nothing but the tests puts files here."""
_NAMED = re.compile(r"(/tmp|/dev/shm)/(\w[\w.-]*)")


def needs_descriptors(count: int) -> pytest.MarkDecorator:
    """For tests of many commands or connections: each takes several in the gateway and in the agent."""
    return pytest.mark.skipif(
        0 <= _DESCRIPTORS < count,
        reason=f"so much at once takes {count} descriptors, and the hard limit here is {_DESCRIPTORS}",
    )


@contextlib.contextmanager
def tidied(source: Path) -> Iterator[None]:
    """Remove what a test left in folders that sandboxes without namespaces share, so that the next one finds them as it would in a sandbox of its own.

    Args:
        source: The test's file. Of what appeared in `/tmp`, only what it names is removed: the rest is somebody else's.
    """
    named = {Path(folder, name) for folder, name in _NAMED.findall(source.read_text())}
    before = _there(named)
    yield
    for path in _there(named) - before:
        if path.is_dir() and not path.is_symlink():
            subprocess.run(["chmod", "-R", "u+rwx", str(path)], check=True)
            shutil.rmtree(path)
        else:
            path.unlink()


def _there(named: set[Path]) -> set[Path]:
    return {*filter(os.path.lexists, named), *_OF_TESTS.iterdir()}
