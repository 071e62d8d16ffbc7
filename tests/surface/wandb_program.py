"""A training loop that reports to the real wandb, offline; prints what it saw and what wandb wrote, as JSON.

python wandb_program.py sync|asyncio|trio
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import wandb
from wandb.proto import wandb_internal_pb2 as wandb_files

from cwsandbox import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

EXEC = ["true"]
BLOCK = 32768
FULL, LAST = 1, 4


def begin() -> wandb.Run:
    return wandb.init(project="tests", settings=wandb.Settings(console="off", x_disable_stats=True, save_code=False))


def sync(seen: dict[str, object]) -> wandb.Run:
    with Session() as session:
        sandbox = session.sandbox()
        sandbox.exec(EXEC).result()
        seen["without a run"] = session.log_metrics(step=0)
        run = begin()
        seen["logged"] = [session.log_metrics(step=0), session.log_metrics(step=0)]
        sandbox.exec(["false"]).result()
        seen["kept"] = [session.log_metrics(step=1, reset=False), session.log_metrics(step=2)]
        run.log({"own/loss": 0.5}, step=3)
        unread = sandbox.exec(["sleep", "1000"])
        session.sandbox()
    seen["unread"] = repr(type(unread._error))
    return run


async def native(seen: dict[str, object]) -> wandb.Run:
    async with Session(report_to=["wandb"]) as session:
        sandbox = session.sandbox()
        await sandbox.exec(EXEC)
        seen["without a run"] = session.log_metrics(step=0)
        run = begin()
        seen["logged"] = [session.log_metrics(step=0), session.log_metrics(step=0)]
        await sandbox.exec(["false"])
        seen["kept"] = [session.log_metrics(step=1, reset=False), session.log_metrics(step=2)]
        run.log({"own/loss": 0.5}, step=3)
        unread = sandbox.exec(["sleep", "1000"])
        session.sandbox()
    seen["unread"] = repr(type(unread._error))
    return run


def refused(seen: dict[str, object], run: wandb.Run) -> None:
    """The run is over, and the session that found it keeps what it could not log."""
    with Session() as session:
        session.sandbox()
        assert session.log_metrics(step=9)
        session.sandbox()
        run.finish()
        seen["refused"] = [session.log_metrics(), session.get_metrics()["cwsandbox/sandboxes_created"]]


def records(path: str) -> Iterator[bytes]:
    """wandb's file: a header of seven bytes, then LevelDB's log format."""
    content, at, whole = Path(path).read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
        size, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in {FULL, LAST}:
            yield whole
            whole = b""


def written(run: wandb.Run) -> list[dict[str, object]]:
    rows = []
    for data in records(run.settings.sync_file):
        record = wandb_files.Record.FromString(data)  # type: ignore[attr-defined]
        if record.WhichOneof("record_type") == "history":
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            rows.append({name: value for name, value in row.items() if name == "_step" or "/" in name})
    return rows


def main(mode: str) -> None:
    seen: dict[str, object] = {}
    run = sync(seen) if mode == "sync" else anyio.run(native, seen, backend=mode)
    refused(seen, run)
    wandb.teardown()
    print(json.dumps({"seen": seen, "rows": written(run)}))


if __name__ == "__main__":
    main(sys.argv[1])
