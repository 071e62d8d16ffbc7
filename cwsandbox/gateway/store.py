"""Sandbox records on disk, so that `list` and `get` tell the truth after a restart.

The service keeps all records in memory and hands every change to the store. The store writes behind: what changed since
the last write goes to SQLite in one transaction, in a worker thread. The backlog holds one row per sandbox at most, so
it is bounded by the number of sandboxes however fast they change. `flush` waits until what was put before it is on disk
(in the sense of SQLite's WAL with `synchronous=NORMAL`: safe against the death of the gateway, not of the machine).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from typing import TYPE_CHECKING, Self

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sandboxes (sandbox_id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
"""


class Store:
    """The records of one gateway. Open it with `Store.open`."""

    def __init__(self, path: str) -> None:
        self._path = path
        # One thread at a time: SQLite connections may move between threads but not be shared.
        self._one_thread = anyio.CapacityLimiter(1)
        self._database: sqlite3.Connection | None = None
        self._rows: dict[str, str | None] = {}
        self._dirty = anyio.Event()
        self._attempted = anyio.Event()
        self._failure: Exception | None = None
        # Changes put so far, and how many of them are on disk.
        self._put = 0
        self._durable = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, path: str) -> AsyncIterator[Self]:
        """Open or create the database `path` (mode 0600); leaving writes what is left and closes it.

        Raises:
            sqlite3.Error: The file is not a database, or not ours.
            OSError: The file cannot be made.
        """
        store = cls(path)
        await anyio.to_thread.run_sync(store._connect)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store._write_behind)
            try:
                yield store
            finally:
                tasks.cancel_scope.cancel()
                with anyio.move_on_after(5, shield=True):
                    await anyio.to_thread.run_sync(store._close, limiter=store._one_thread)

    def put(self, sandbox_id: str, body: str) -> None:
        """Remember `body` as the record of the sandbox. Never blocks."""
        self._rows[sandbox_id] = body
        self._changed()

    def delete(self, sandbox_id: str) -> None:
        """Forget the sandbox. Never blocks."""
        self._rows[sandbox_id] = None
        self._changed()

    async def flush(self) -> None:
        """Wait until everything put so far is written. Cancelling stops waiting only.

        Raises:
            sqlite3.Error: It could not be written.
        """
        target = self._put
        while self._durable < target:
            await self._attempted.wait()
            if self._failure is not None:
                raise self._failure

    async def load(self) -> tuple[str, ...]:
        """The body of every record."""
        return await anyio.to_thread.run_sync(self._read, limiter=self._one_thread)

    def _changed(self) -> None:
        self._put += 1
        self._dirty.set()

    async def _write_behind(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty = anyio.Event()
            rows, self._rows = self._rows, {}
            version, self._failure = self._put, None
            try:
                await anyio.to_thread.run_sync(self._write, rows, limiter=self._one_thread)
                self._durable = version
            except sqlite3.Error as error:
                _log.exception("sandbox records could not be written")
                self._failure = error
            finally:
                if self._durable < version:
                    # Failed or cancelled: kept for the next change or for `_close`; newer bodies win.
                    self._rows = {**rows, **self._rows}
                self._attempted.set()
                self._attempted = anyio.Event()

    def _connect(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        self._database = database

    def _write(self, rows: dict[str, str | None]) -> None:
        database = self._database
        assert database is not None
        gone = [(sandbox_id,) for sandbox_id, body in rows.items() if body is None]
        with _transaction(database):
            database.executemany(
                "INSERT OR REPLACE INTO sandboxes VALUES (?, ?)",
                [(sandbox_id, body) for sandbox_id, body in rows.items() if body is not None],
            )
            if gone:
                database.executemany("DELETE FROM sandboxes WHERE sandbox_id = ?", gone)

    def _read(self) -> tuple[str, ...]:
        assert self._database is not None
        records = self._database.execute("SELECT body FROM sandboxes").fetchall()
        return tuple(body for (body,) in records)

    def _close(self) -> None:
        assert self._database is not None
        if self._rows:
            self._write(self._rows)
        self._database.close()


@contextlib.contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
