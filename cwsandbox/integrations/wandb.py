"""Metrics into the program's own W&B run. Never imports wandb: a program that did not has no run."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["WandbReporter"]

logger: logging.Logger = logging.getLogger("cwsandbox")


class WandbReporter:
    """Logs to the run that is active when it is first needed, and to no other. It never begins a run of its own."""

    def __init__(self) -> None:
        self._run: Any = None

    @property
    def active(self) -> bool:
        """Whether there is a run to log to. It may begin after the session did."""
        if self._run is None:
            self._run = getattr(sys.modules.get("wandb"), "run", None)
        return self._run is not None

    def log(self, values: Mapping[str, Any], step: int | None = None) -> bool:
        """Log values to the run. May block for as long as wandb does.

        Args:
            values: Names and values.
            step: The training step, or None for wandb's own count.

        Returns:
            False if there is no run, or if wandb refused (then with a warning in the log).
        """
        if not self.active:
            return False
        try:
            self._run.log(dict(values), **({} if step is None else {"step": step}))
        except Exception as error:
            logger.warning("the session's metrics were not logged to wandb, and are kept: %s", error)
            return False
        return True
