"""Options and arguments that several commands have."""

from __future__ import annotations

import math
import os
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cwsandbox.cli.completion import complete_sandbox_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    F = TypeVar("F", bound=Callable[..., Any])
    _Seconds = click.ParamType[float, Any]
else:
    _Seconds = click.ParamType  # Not generic in every version.

OUTPUT_FORMATS: Final = ("table", "json")
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(_Seconds):
    """A number of seconds, or one with the unit s, m, h or d.

    Args:
        zero: Zero is one, too.
        endless: "inf" is one, too, and has no end.
    """
