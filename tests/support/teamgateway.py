"""A gateway on a port, as a team runs it: `python -m cwsandbox.gateway` with a file of API keys."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cwsandbox.gateway.keyfile import add_key

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 20.0


class TeamGateway:
    """One in a process of its own.

    Attributes:
        url: Its address.
        keys: Its key file, which it reads again when it changes.
        log: What it logged.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.keys, self.log = str(folder / "keys"), folder / "log"
        self.account()  # A gateway without a key does not start.
        ready, write = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "cwsandbox.gateway", "--host", "127.0.0.1", "--api-key-file", self.keys),
                *("--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")),
                *("--ready-fd", str(write), "--log-file", str(self.log), *options),
            ],
            pass_fds=(write,),
        )
        os.close(write)
        with os.fdopen(ready, "rb") as pipe:
            assert select.select([pipe], [], [], SECONDS)[0], "it is not ready"
            told = json.loads(pipe.readline())
        self.url = f"http://{told['socket']}"

    def account(self) -> tuple[str, str]:
        """A new name in the key file, and its key."""
        name = uuid.uuid4().hex
        return name, add_key(self.keys, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._process.terminate()
        assert self._process.wait(SECONDS) == 0


@contextlib.contextmanager
def team_gateway(*options: str) -> Iterator[TeamGateway]:
    """Serve one; nothing is left of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cws", dir="/tmp"))
    try:
        with TeamGateway(folder, *options) as gateway:
            yield gateway
    finally:
        shutil.rmtree(folder)
