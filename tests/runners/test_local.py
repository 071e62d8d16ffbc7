"""The local runner keeps the contract, at the level that this machine gives."""

from __future__ import annotations

from tests.runners.contract import RunnerContract


class TestLocalRunner(RunnerContract):
    """See `contract`."""
