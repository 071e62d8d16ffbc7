"""Samples, medians and the rows of the table."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@define
class Measurement:
    """One row: `sample` returns some values; the median over all rounds counts."""

    name: str
    unit: str
    sample: Callable[[], list[float]]
    goal: float | None = None
    more_is_better: bool = False
    values: list[float] = field(factory=list)

    @property
    def median(self) -> float:
        """The middle of all values."""
        return statistics.median(self.values)


def milliseconds(function: Callable[[], object], times: int) -> list[float]:
    """How long each of `times` calls took, after one that does not count."""
    function()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        function()
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


async def milliseconds_async(function: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """The same for what is awaited."""
    await function()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        await function()
        taken.append((time.perf_counter() - begin) * 1000)
    return taken


def table(measurements: list[Measurement]) -> str:
    """The measurements as aligned text. The ratio is median to goal, turned so that 1.00 or less reaches the goal."""
    rows = [("measured", "median", "unit", "goal", "ratio", "spread", "n")]
    for measurement in measurements:
        goal, ratio = "", ""
        if measurement.goal is not None:
            wanted = measurement.goal
            goal = f"{'>=' if measurement.more_is_better else '<='} {wanted:.2f}"
            ratio = f"{wanted / measurement.median if measurement.more_is_better else measurement.median / wanted:.2f}"
        low, high = _quartiles(measurement.values)
        count = str(len(measurement.values))
        rows.append(
            (
                measurement.name,
                f"{measurement.median:.2f}",
                measurement.unit,
                goal,
                ratio,
                f"{low:.2f}-{high:.2f}",
                count,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    quarters = statistics.quantiles(values, n=4)
    return quarters[0], quarters[2]
